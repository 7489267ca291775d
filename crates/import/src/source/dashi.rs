//! An export of a Dashi log: a record on each line, which is appended as it is.
//!
//! ```json
//! {"partition":0,"offset":17,"appended_at_ms":1777623630123,"record":{"v":1,"id":"…"}}
//! ```
//!
//! A record that is no JSON object is there as `record_base64`; `"erased":true` stands for one that was erased.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dashi_domain::log_record::LogRecord;
use dashi_domain::record::Event;
use dashi_domain::submission::SourceKind;
use dashi_event_log::NewRecord;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::past::Decided;
use crate::batch::{Item, Wanted};

#[derive(Deserialize)]
struct Exported<'a> {
    #[serde(borrow, default)]
    record: Option<&'a RawValue>,
    #[serde(borrow, default)]
    record_base64: Option<Cow<'a, str>>,
    #[serde(default)]
    erased: bool,
}

pub(super) fn line(at: u64, bytes: &[u8]) -> Decided {
    let exported: Exported<'_> = match serde_json::from_slice(bytes) {
        Ok(exported) => exported,
        Err(error) => return Decided::Refused(format!("it is no line of an export: {error}")),
    };
    let value = match exported {
        Exported { erased: true, .. } => return Decided::Ignored("erased"),
        Exported { record: Some(record), .. } => record.get().as_bytes().to_vec(),
        // Its key is not known, so its partition is not either; and it was a dead letter.
        Exported { record_base64: Some(text), .. } => match BASE64.decode(text.as_bytes()) {
            Ok(value) => value,
            Err(error) => return Decided::Refused(format!("its `record_base64` is not base64: {error}")),
        },
        _ => return Decided::Refused("it has neither `record` nor `record_base64` nor `erased`".to_owned()),
    };
    match item(at, value) {
        Ok(item) => Decided::Item(Box::new(item)),
        Err(reason) => Decided::Refused(reason),
    }
}

fn item(line: u64, value: Vec<u8>) -> Result<Item, String> {
    let decoded =
        LogRecord::decode(&value).map_err(|error| format!("its record cannot be applied: {error}"))?;
    let id = decoded.id();
    let (session_id, website) = match &decoded {
        LogRecord::Event(Event { session_id, submission, .. }) => {
            let source = &submission.payload.source;
            let hostname = submission.payload.hostname.as_deref().map(str::to_owned);
            let is_website = source.kind == SourceKind::Website;
            (*session_id, is_website.then(|| wanted(source.id, hostname)))
        }
        LogRecord::Chunk(chunk) => (chunk.session_id, Some(wanted(chunk.website_id, None))),
        LogRecord::Heatmap(post) => (post.session_id, Some(wanted(post.submission.website_id, None))),
        LogRecord::Imported(imported) => {
            // Rows of links and pixels look like those of websites, except by their events.
            let is_of_website = imported.event.as_ref().is_none_or(|event| {
                use dashi_domain::rows::EventType;
                !matches!(event.event_type, EventType::Link | EventType::Pixel)
            });
            (imported.session_id, is_of_website.then(|| wanted(imported.website_id, None)))
        }
    };
    drop(decoded);
    Ok(Item { line, id, website, record: NewRecord { session_id, value } })
}

fn wanted(id: Uuid, domain: Option<String>) -> Wanted {
    Wanted { id, name: None, domain }
}
