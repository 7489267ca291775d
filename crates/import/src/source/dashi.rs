//! An export of a Dashi log (`dashi export`): a record on each line, which is appended as it is. A record that the
//! projection would set aside is not taken.

use dashi_archive::read_record;
use dashi_domain::erasure::Tombstone;
use dashi_domain::layout::Barrier;
use dashi_domain::log_record::LogRecord;
use dashi_domain::record::Event;
use dashi_domain::rows::EventType;
use dashi_domain::submission::SourceKind;
use dashi_event_log::NewRecord;
use uuid::Uuid;

use super::past::Decided;
use crate::batch::{Item, Wanted};

pub(super) fn line(at: u64, bytes: &[u8]) -> Decided {
    match read_record(bytes) {
        Ok(record) if Tombstone::is(&record.value) => Decided::Ignored("erased"),
        // It is of that log's partitions.
        Ok(record) if Barrier::is(&record.value) => Decided::Ignored("barrier"),
        Ok(record) => match item(at, record.value) {
            Ok(item) => Decided::Item(Box::new(item)),
            Err(reason) => Decided::Refused(reason),
        },
        Err(error) => Decided::Refused(format!("it is no line of an export: {error}")),
    }
}

fn item(line: u64, value: Vec<u8>) -> Result<Item, String> {
    let decoded =
        LogRecord::decode(&value).map_err(|error| format!("its record cannot be applied: {error}"))?;
    let id = decoded.id();
    let (session_id, at_ms, website) = match &decoded {
        LogRecord::Event(event) => {
            let Event { session_id, submission, .. } = event;
            let source = &submission.payload.source;
            let hostname = submission.payload.hostname.as_deref().map(str::to_owned);
            let is_website = source.kind == SourceKind::Website;
            (*session_id, event.created_at_ms(), is_website.then(|| wanted(source.id, hostname)))
        }
        LogRecord::Chunk(chunk) => {
            (chunk.session_id, chunk.received_at_ms, Some(wanted(chunk.website_id, None)))
        }
        LogRecord::Heatmap(post) => {
            (post.session_id, post.received_at_ms, Some(wanted(post.submission.website_id, None)))
        }
        LogRecord::Imported(imported) => {
            // Rows of links and pixels look like those of websites, except by their events.
            let is_of_website = imported
                .event
                .as_ref()
                .is_none_or(|event| !matches!(event.event_type, EventType::Link | EventType::Pixel));
            (imported.session_id, imported.at_ms, is_of_website.then(|| wanted(imported.website_id, None)))
        }
        // It covers the records before it in a partition, which another log has in another order.
        LogRecord::Erasure(_) => {
            return Err("it is an erasure: run `dashi erase` on this log after the import".to_owned());
        }
        // It names places in the log that it was written for.
        LogRecord::Letters(_) => return Err("it is a command about dead letters of another log".to_owned()),
        LogRecord::Layout(_) => return Err("it is a barrier between layouts of another log".to_owned()),
        LogRecord::Erased(_) => return Err("its record was erased".to_owned()),
    };
    drop(decoded);
    Ok(Item { line, id, at_ms, website, record: NewRecord { session_id, value } })
}

fn wanted(id: Uuid, domain: Option<String>) -> Wanted {
    Wanted { id, name: None, domain }
}
