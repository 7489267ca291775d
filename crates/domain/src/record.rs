//! The one format of a record in the event log, on every backend.
//!
//! A record's key is the session id ([`crate::partitioner::key`]); its value is one JSON object:
//!
//! ```json
//! {"v":1,"id":"<event id>","at":1777623630123,"session":"<uuid>","visit":"<uuid>","agent":"Mozilla/5.0 …",
//!  "country":"GB","region":"GB-ENG","city":"London","type":"event","payload":{"website":"<uuid>","url":"/"}}
//! ```
//!
//! `agent`, `country`, `region` and `city` are absent when unknown. `device`, a session id, is there when the event has
//! a distinct id and a website: the session that the same client has while it is anonymous. `payload` holds the
//! client's values, known keys only, less its address and agent: the address is used at ingest and then dropped. A
//! `timestamp` of 0 in it is the first second of 1970; texts may have any length, and are cut in the fold. All that can
//! be derived (browser, URL parts, flattened data) is derived in the fold, so a fix there reaches history by replay.
//!
//! Behind `v`, a record may have `trace`, the context of the span that appended it ([`crate::spans`]). No row depends on it, and
//! readers that are older than the field pass over it, so the version is the same.
//!
//! A record of the type `record` is a chunk of a recording; its payload is described at [`crate::chunk::Chunk`]. One of
//! the type `heatmap` holds clicks and scrolls; see [`crate::heatmap::HeatmapPost`]. One of
//! the type `imported` holds rows of another store; see [`crate::imported::Imported`]. One with `"kept":true` is of a
//! type that its writer did not know; its payload is the client's, all of it but the address, the agent and
//! `messageId`. A reader that knows the type reads it as one of its own.

use std::borrow::Cow;

use uuid::Uuid;

use crate::json::{self, Object, Value};
use crate::location::Location;
use crate::position::{Offset, Partition};
use crate::schema::SchemaError;
use crate::submission::{SchemaRules, Submission, SubmissionKind};

/// The version this code writes and the only one it reads.
pub const VERSION: u32 = 1;

/// An event as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The partition it lies in.
    pub partition: Partition,
    /// Its place there.
    pub offset: Offset,
    /// When the log took it, milliseconds since 1970. For lag in seconds only; the fold does not look at it.
    pub appended_at_ms: i64,
    /// The encoded [`Event`].
    pub value: Vec<u8>,
}

/// An accepted event: the facts that ingest worked out, and the client's submission.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// Fixed at ingest; the identity of this event through redelivery and replay.
    pub event_id: Uuid,
    /// When the collector had the whole request, milliseconds since 1970.
    pub received_at_ms: i64,
    /// The session; also the record's key.
    pub session_id: Uuid,
    /// The visit.
    pub visit_id: Uuid,
    /// The session of the same address and agent without the distinct id. Absent where there is no distinct id, where
    /// the source is a link or a pixel, and in records older than the field.
    pub device: Option<Uuid>,
    /// The effective user agent.
    pub user_agent: Option<Cow<'a, str>>,
    /// Where the client was.
    pub location: Location,
    /// The submission as it was sent.
    pub submission: Submission<'a>,
}

/// Why a record is not an event. Reading it again will not help: it is a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The value is not a JSON object.
    #[error("the record is not a JSON object: {0}")]
    NotJson(String),
    /// Another version wrote it; a newer reader may understand it.
    #[error("the record has format version {found}, this reader knows version {VERSION} only")]
    Version {
        /// The version it names, or the value that stands in its place.
        found: String,
    },
    /// A field of the envelope is missing or of the wrong form.
    #[error("the record's field `{field}` is {found}, expected {expected}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The value that stands there.
        found: String,
        /// The expected value.
        expected: &'static str,
    },
    /// The payload does not fit the schema of requests.
    #[error("the record's payload is not a valid submission: {0}")]
    Payload(String),
}

impl DecodeError {
    pub(crate) fn field(field: &'static str, found: Option<&Value<'_>>, expected: &'static str) -> Self {
        let found = found.map_or_else(|| "missing".to_owned(), Value::to_json);
        Self::Field { field, found, expected }
    }
}

impl From<SchemaError> for DecodeError {
    fn from(error: SchemaError) -> Self {
        Self::Payload(error.to_json())
    }
}

impl<'a> Event<'a> {
    /// When the event happened: the payload's own timestamp, or when it was received. Milliseconds since 1970.
    pub fn created_at_ms(&self) -> i64 {
        created_at_ms(self.submission.payload.timestamp, self.received_at_ms)
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = String::with_capacity(768);
        out.push_str("{\"v\":1,\"id\":\"");
        let mut buffer = Uuid::encode_buffer();
        out.push_str(self.event_id.hyphenated().encode_lower(&mut buffer));
        out.push_str("\",\"at\":");
        out.push_str(&self.received_at_ms.to_string());
        out.push_str(",\"session\":\"");
        out.push_str(self.session_id.hyphenated().encode_lower(&mut buffer));
        out.push_str("\",\"visit\":\"");
        out.push_str(self.visit_id.hyphenated().encode_lower(&mut buffer));
        out.push('"');
        if let Some(device) = self.device {
            out.push_str(",\"device\":\"");
            out.push_str(device.hyphenated().encode_lower(&mut buffer));
            out.push('"');
        }
        let Location { country, region, city } = &self.location;
        for (key, value) in [
            ("agent", self.user_agent.as_deref()),
            ("country", country.as_deref()),
            ("region", region.as_deref()),
            ("city", city.as_deref()),
        ] {
            if let Some(value) = value {
                out.push_str(",\"");
                out.push_str(key);
                out.push_str("\":");
                json::write_string(value, &mut out);
            }
        }
        out.push_str(",\"type\":");
        match &self.submission.kept {
            Some(kept) => {
                json::write_string(&kept.kind, &mut out);
                out.push_str(",\"kept\":true,\"payload\":");
                kept.payload.write_exact(&mut out);
            }
            None => {
                json::write_string(self.submission.kind.as_str(), &mut out);
                out.push_str(",\"payload\":");
                self.submission.payload.write(&mut out);
            }
        }
        out.push('}');
        out.into_bytes()
    }

    /// Reads the value of an event's record back. The payload is checked again as a request's is, since other
    /// producers may append to the same log.
    ///
    /// # Errors
    /// Each is final for this record: make it a dead letter with the error's text as reason.
    pub fn decode(value: &'a [u8]) -> Result<Self, DecodeError> {
        let (envelope, fields) = Envelope::decode(value)?;
        Self::from_fields(envelope, fields)
    }

    pub(crate) fn from_fields(envelope: Envelope, mut fields: Fields<'a>) -> Result<Self, DecodeError> {
        let keeps = fields.is_kept()?;
        let submission = Object::from_members(
            [("type", fields.0.remove("type")), ("payload", fields.0.remove("payload"))]
                .into_iter()
                .filter_map(|(key, value)| Some((Cow::Borrowed(key), value?))),
        );
        let Envelope { event_id, received_at_ms, session_id, visit_id } = envelope;
        Ok(Self {
            event_id,
            received_at_ms,
            session_id,
            visit_id,
            device: fields.optional_uuid("device")?,
            user_agent: fields.text("agent")?,
            location: Location {
                country: fields.text("country")?.map(Cow::into_owned),
                region: fields.text("region")?.map(Cow::into_owned),
                city: fields.text("city")?.map(Cow::into_owned),
            },
            submission: Submission::from_value(
                Value::Object(submission),
                SchemaRules::RECORDED.keeping(keeps),
            )?,
        })
    }

    /// Whether this event is a row of its own in `website_event`; an identify is not, nor is a kept submission of an
    /// unknown type.
    pub fn is_row(&self) -> bool {
        matches!(self.submission.kind, SubmissionKind::Event | SubmissionKind::Performance)
    }
}

/// The moment an event counts for: its own timestamp (seconds), if it brought one, else when it was received.
pub fn created_at_ms(timestamp_s: Option<i64>, received_at_ms: i64) -> i64 {
    timestamp_s.map_or(received_at_ms, |seconds| seconds * 1_000)
}

/// The fields that every record has, of any type.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) event_id: Uuid,
    pub(crate) received_at_ms: i64,
    pub(crate) session_id: Uuid,
    pub(crate) visit_id: Uuid,
}

impl Envelope {
    /// The envelope, and the fields that are left.
    pub(crate) fn decode(value: &[u8]) -> Result<(Self, Fields<'_>), DecodeError> {
        let object = match json::parse(value) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(DecodeError::NotJson(format!("it is of type {}", other.type_name()))),
            Err(error) => return Err(DecodeError::NotJson(error.to_string())),
        };
        let fields = Fields(object);
        match fields.0.get("v") {
            Some(Value::Number(v)) if *v == f64::from(VERSION) => {}
            Some(other) => return Err(DecodeError::Version { found: other.to_json() }),
            None => return Err(DecodeError::Version { found: "none".to_owned() }),
        }
        let received_at_ms = match fields.0.get("at") {
            Some(Value::Number(n)) if n.fract() == 0.0 && n.abs() <= 8.64e15 => *n as i64,
            other => return Err(DecodeError::field("at", other, "milliseconds since 1970")),
        };
        let envelope = Self {
            event_id: fields.uuid("id")?,
            received_at_ms,
            session_id: fields.uuid("session")?,
            visit_id: fields.uuid("visit")?,
        };
        Ok((envelope, fields))
    }
}

/// Fields of a record.
pub(crate) struct Fields<'a>(pub(crate) Object<'a>);

impl<'a> Fields<'a> {
    pub(crate) fn text(&mut self, field: &'static str) -> Result<Option<Cow<'a, str>>, DecodeError> {
        match self.0.remove(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(DecodeError::field(field, Some(&other), "a string or absent")),
        }
    }

    pub(crate) fn uuid(&self, field: &'static str) -> Result<Uuid, DecodeError> {
        match self.0.get(field) {
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        }
        .ok_or_else(|| DecodeError::field(field, self.0.get(field), "a UUID"))
    }

    /// Whether the record is of a type that its writer did not know.
    pub(crate) fn is_kept(&self) -> Result<bool, DecodeError> {
        match self.0.get("kept") {
            None => Ok(false),
            Some(Value::Bool(kept)) => Ok(*kept),
            other => Err(DecodeError::field("kept", other, "true, false or absent")),
        }
    }

    /// A UUID, or nothing where the field is absent.
    fn optional_uuid(&self, field: &'static str) -> Result<Option<Uuid>, DecodeError> {
        self.0.get(field).is_some().then(|| self.uuid(field)).transpose()
    }

    /// A whole number that a double holds exactly.
    pub(crate) fn integer(&self, field: &'static str) -> Result<i64, DecodeError> {
        match self.0.get(field) {
            Some(Value::Number(number)) if number.fract() == 0.0 && number.abs() <= 8.64e15 => {
                Ok(*number as i64)
            }
            other => Err(DecodeError::field(field, other, "a whole number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::glance::Glance;
    use crate::spans::TraceContext;
    use crate::umami::Release;

    const BODY: &str = r#"{"type":"event","payload":{"website":"11111111-1111-4111-8111-111111111111",
        "url":"/a?b=1","name":"buy","data":{"n":1.5,"s":"é\u0000\"","o":{"x":[1,null]}},"ip":"192.0.2.1",
        "userAgent":"agent","timestamp":1777593600,"unknown":1}}"#;

    fn event(submission: Submission<'_>) -> Event<'_> {
        Event {
            event_id: Uuid::from_u128(1),
            received_at_ms: 1_795_164_975_123,
            session_id: Uuid::from_u128(2),
            visit_id: Uuid::from_u128(3),
            device: Some(Uuid::from_u128(4)),
            user_agent: Some("agent \"x\"".into()),
            location: Location { country: Some("GB".into()), region: None, city: Some("Łódź".into()) },
            submission,
        }
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let written =
            event(Submission::parse(BODY.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid"));
        let bytes = written.encode();
        let read = Event::decode(&bytes).expect("decodes");
        assert_eq!(read.encode(), bytes);
        assert_eq!(read.user_agent.as_deref(), Some("agent \"x\""));
        assert_eq!(read.location, written.location);
        assert_eq!(read.device, Some(Uuid::from_u128(4)));
        assert_eq!(read.created_at_ms(), 1_777_593_600_000);
        assert_eq!(read.submission.payload.name.as_deref(), Some("buy"));
    }

    #[test]
    fn a_record_from_before_there_was_a_device_is_read() {
        let submission =
            Submission::parse(BODY.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid");
        let without = Event { device: None, ..event(submission) }.encode();
        assert!(!String::from_utf8_lossy(&without).contains("device"));
        assert_eq!(Event::decode(&without).expect("decodes").device, None);
    }

    #[test]
    fn a_record_that_carries_a_trace_context_reads_as_the_one_without() {
        let written =
            event(Submission::parse(BODY.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid"));
        let plain = written.encode();
        let header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(header).expect("valid");
        let mut traced = plain.clone();
        context.put(&mut traced);
        assert_ne!(traced, plain);
        assert_eq!(Event::decode(&traced).expect("decodes").encode(), plain);
        assert_eq!(Glance::of(&traced), Glance::of(&plain));
        assert_eq!(TraceContext::of_record(&plain), None);
    }

    #[test]
    fn the_version_that_a_client_had_read_is_in_the_log() {
        let body = BODY.replace("\"url\"", "\"messageId\":\"m\",\"baseVersion\":\"0\",\"url\"");
        let bytes =
            event(Submission::parse(body.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid"))
                .encode();
        let payload = Event::decode(&bytes).expect("decodes").submission.payload;
        assert_eq!((payload.base_version.as_deref(), payload.message_id), (Some("0"), None));
    }

    #[test]
    fn the_clients_address_is_not_in_the_log() {
        let bytes =
            event(Submission::parse(BODY.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid"))
                .encode();
        let text = String::from_utf8(bytes).expect("UTF-8");
        assert!(!text.contains("192.0.2.1") && !text.contains("\"ip\""), "{text}");
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let good = String::from_utf8(
            event(Submission::parse(BODY.as_bytes(), SchemaRules::of(Release::V3_1, false)).expect("valid"))
                .encode(),
        )
        .expect("UTF-8");
        for (value, reason) in [
            (String::new(), "not a JSON object"),
            ("[]".to_owned(), "not a JSON object: it is of type array"),
            ("{}".to_owned(), "format version none"),
            (good.replace("\"v\":1", "\"v\":2"), "format version 2, this reader knows version 1"),
            (good.replace("\"at\":", "\"at_\":"), "field `at` is missing"),
            (good.replace("\"session\":\"", "\"session\":\"x"), "field `session` is \"x"),
            (good.replace("\"agent\":\"", "\"agent\":7,\"_\":\""), "field `agent` is 7"),
            (good.replace("\"device\":\"", "\"device\":\"x"), "field `device` is \"x"),
            (good.replace("\"type\":\"event\"", "\"type\":\"x\""), "Invalid option"),
        ] {
            let error = Event::decode(value.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
