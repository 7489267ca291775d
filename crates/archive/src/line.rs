//! A line of NDJSON: one record with its place in the log. Export files and archives have the same lines.
//!
//! ```json
//! {"partition":0,"offset":17,"appended_at_ms":1777623630123,"record":{"v":1,"id":"…"}}
//! {"partition":0,"offset":18,"appended_at_ms":1777623630124,"record_base64":"//8="}
//! ```
//!
//! `record` holds the bytes of the record's value as they lie in the log, so a reader gets them back unchanged. A value
//! that is not one JSON object on one line is in `record_base64`.

use std::borrow::Cow;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Why a line is not one of an export or an archive.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is not JSON of the expected form.
    #[error("it is no JSON object with partition and offset: {0}")]
    Json(#[from] serde_json::Error),
    /// It has no record.
    #[error("it has neither `record` nor `record_base64`")]
    Empty,
    /// The base64 text is not valid.
    #[error("its `record_base64` is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

#[derive(Deserialize)]
struct Fields<'a> {
    partition: u32,
    offset: u64,
    #[serde(default)]
    appended_at_ms: i64,
    #[serde(borrow, default)]
    record: Option<&'a RawValue>,
    #[serde(borrow, default)]
    record_base64: Option<Cow<'a, str>>,
}

/// Reads the record of a line back, byte for byte as the log has it. `line` is without its end.
///
/// # Errors
/// Each is final for this line.
pub fn read_record(line: &[u8]) -> Result<Record, LineError> {
    let Fields { partition, offset, appended_at_ms, record, record_base64 } = serde_json::from_slice(line)?;
    let value = match (record, record_base64) {
        (Some(raw), _) => raw.get().as_bytes().to_vec(),
        (None, Some(text)) => BASE64.decode(text.as_bytes())?,
        (None, None) => return Err(LineError::Empty),
    };
    let (partition, offset) = (Partition::new(partition), Offset::new(offset));
    Ok(Record { partition, offset, appended_at_ms, value })
}

/// Appends the line of a record to `out`, with its end.
pub fn write_record(record: &Record, out: &mut Vec<u8>) {
    let Record { partition, offset, appended_at_ms, value } = record;
    // Writing to a vector does not fail.
    let _ = write!(
        out,
        "{{\"partition\":{partition},\"offset\":{offset},\"appended_at_ms\":{appended_at_ms},\"record"
    );
    if is_one_line_object(value) {
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value);
        out.extend_from_slice(b"}\n");
    } else {
        out.extend_from_slice(b"_base64\":\"");
        out.extend_from_slice(BASE64.encode(value).as_bytes());
        out.extend_from_slice(b"\"}\n");
    }
}

/// Whether a value can stand in a line as it is, and is read back unchanged.
fn is_one_line_object(value: &[u8]) -> bool {
    value.first() == Some(&b'{')
        && !value.iter().any(|byte| matches!(byte, b'\n' | b'\r'))
        && serde_json::from_slice::<&RawValue>(value).is_ok_and(|raw| raw.get().len() == value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &[u8]) -> Record {
        Record {
            partition: Partition::new(3),
            offset: Offset::new(1 << 60),
            appended_at_ms: -5,
            value: value.to_vec(),
        }
    }

    #[test]
    fn every_value_is_read_back_unchanged() {
        let values: [&[u8]; 14] = [
            br#"{"v":1,"a":"\u0000 \ud800 \u00e9"}"#,
            "{\"é\":[1e400,-0.0,12345678901234567890123]}".as_bytes(),
            br#"{ "spaces" : [ 1 , 2 ] }"#,
            b"{\"line\":\n1}",
            br#"{"twice":1,"twice":2}"#,
            b" {}",
            b"{} ",
            b"{}{}",
            b"[1]",
            b"null",
            b"",
            b"\xff\x00 garbage",
            b"{\"broken\":\"\xff\"}",
            b"{\"open\":",
        ];
        for value in values {
            let mut out = Vec::new();
            write_record(&record(value), &mut out);
            assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
            let line = out.strip_suffix(b"\n").unwrap();
            assert_eq!(read_record(line).unwrap(), record(value), "{out:?}");
            // Any reader of JSON reads it, and finds a JSON value as such.
            let read: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
            assert!(read.is_null() || read.get("record").is_some() != read.get("record_base64").is_some());
        }
    }

    #[test]
    fn deep_values_are_read_back_too() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let mut out = Vec::new();
        write_record(&record(deep.as_bytes()), &mut out);
        assert_eq!(read_record(out.trim_ascii_end()).unwrap(), record(deep.as_bytes()));
    }

    #[test]
    fn a_line_without_a_record_is_refused() {
        assert!(matches!(read_record(br#"{"partition":1,"offset":2}"#), Err(LineError::Empty)));
        assert!(matches!(read_record(br#"{"offset":2,"record":{}}"#), Err(LineError::Json(_))));
        let base64 = br#"{"partition":1,"offset":2,"record_base64":"?"}"#;
        assert!(matches!(read_record(base64), Err(LineError::Base64(_))));
    }
}
