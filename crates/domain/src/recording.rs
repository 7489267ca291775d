//! Recordings: what a visitor saw and did, as the recorder in the page tells it (rrweb events), chunk by chunk.
//! `/api/record` takes a chunk; its row lies in Umami's table `session_replay`. "Replay" is kept for reading the event
//! log again. Source of the rules: docs/umami-contract.md §14.

use std::borrow::Cow;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use uuid::Uuid;

use crate::json::{self, Value};
use crate::record::{DecodeError, Envelope, Fields};
use crate::schema::{self, BAD_UUID, Node, SchemaError, parse_uuid, wrong_type};

/// Events of one chunk, at most.
const EVENTS_MAX: usize = 200;

/// The last millisecond a JavaScript `Date` can hold, inclusive (ECMA-262, time values).
const TIME_MS_MAX: f64 = 8.64e15;

/// A body `/api/record` accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkSubmission<'a> {
    /// The website.
    pub website_id: Uuid,
    /// Any JSON values; at most 200.
    pub events: Vec<Value<'a>>,
    /// Seconds since 1970, never 0 (that is "not given").
    pub timestamp: Option<i64>,
}

impl<'a> ChunkSubmission<'a> {
    /// Reads a body of `/api/record`.
    ///
    /// # Errors
    /// [`SchemaError`] if the body is not JSON or does not fit the schema. Answer it with a 400; sending the same again
    /// gives the same.
    pub fn parse(body: &'a [u8]) -> Result<Self, SchemaError> {
        let undefined = |expected| Node::leaf(wrong_type(expected, "undefined"));
        let mut object = match json::parse(body) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(SchemaError(Node::leaf(wrong_type("object", other.type_name())))),
            Err(_) => return Err(SchemaError(undefined("object"))),
        };
        let mut tree = Node::default();
        if object.get("type").and_then(Value::as_str) != Some("record") {
            tree.add("type", r#"Invalid input: expected "record""#);
        }
        let payload = match object.remove("payload") {
            Some(Value::Object(fields)) => Self::from_object(fields),
            Some(other) => Err(Node::leaf(wrong_type("object", other.type_name()))),
            None => Err(undefined("object")),
        };
        match payload {
            Ok(chunk) if tree.is_empty() => Ok(chunk),
            Ok(_) => Err(SchemaError(tree)),
            Err(node) => {
                tree.properties.push(("payload", node));
                Err(SchemaError(tree))
            }
        }
    }

    fn from_object(mut fields: json::Object<'a>) -> Result<Self, Node> {
        let mut tree = Node::default();
        let website_id = match fields.remove("website") {
            Some(Value::String(text)) => {
                let id = parse_uuid(&text);
                if id.is_none() {
                    tree.add("website", BAD_UUID);
                }
                id
            }
            other => {
                let received = other.as_ref().map_or("undefined", Value::type_name);
                tree.add("website", wrong_type("string", received));
                None
            }
        };
        let events = match fields.remove("events") {
            Some(Value::Array(events)) => {
                if events.len() > EVENTS_MAX {
                    tree.add("events", format!("Too big: expected array to have <={EVENTS_MAX} items"));
                }
                events
            }
            other => {
                let received = other.as_ref().map_or("undefined", Value::type_name);
                tree.add("events", wrong_type("array", received));
                Vec::new()
            }
        };
        let timestamp = fields.remove("timestamp").and_then(|value| {
            schema::seconds(&value).unwrap_or_else(|refusal| {
                tree.add("timestamp", refusal.error);
                None
            })
        });
        match website_id {
            Some(website_id) if tree.is_empty() => Ok(Self { website_id, events, timestamp }),
            _ => Err(tree),
        }
    }
}

/// A chunk as it lies in the log.
///
/// Its record has the envelope of every record ([`crate::record`]) with the type `record`, and as payload the website,
/// `second`, `count`, `started`, `ended`, and `events`: base64 of what the row holds, for the JSON text of a page is ten
/// times as long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Fixed at ingest; the key of the row.
    pub chunk_id: Uuid,
    /// When the collector had the whole request, milliseconds since 1970.
    pub received_at_ms: i64,
    /// The token's session; also the record's key.
    pub session_id: Uuid,
    /// The token's visit.
    pub visit_id: Uuid,
    /// The website.
    pub website_id: Uuid,
    /// When the chunk was made, by the recorder's clock or, without it, by ours; seconds since 1970.
    pub second: i64,
    /// How many events it holds.
    pub event_count: u32,
    /// The first event's time, milliseconds since 1970.
    pub started_at_ms: i64,
    /// The last event's time, milliseconds since 1970.
    pub ended_at_ms: i64,
    /// The JSON text of the array of events, compressed by gzip.
    pub events_gzip: Vec<u8>,
}

impl Chunk {
    /// The chunk of a submission. Costs as much time as compressing its text.
    pub fn new(
        submission: &ChunkSubmission<'_>,
        chunk_id: Uuid,
        session_id: Uuid,
        visit_id: Uuid,
        received_at_ms: i64,
    ) -> Self {
        let second = submission.timestamp.unwrap_or_else(|| received_at_ms.div_euclid(1_000));
        let times = || {
            let stamps = submission.events.iter().filter_map(|event| event.as_object()?.get("timestamp"));
            stamps
                .map(Value::to_number)
                .filter(|time| *time > 0.0 && *time <= TIME_MS_MAX)
                .map(|time| time as i64)
        };
        let mut text = String::new();
        Value::Array(submission.events.clone()).write(&mut text);
        Self {
            chunk_id,
            received_at_ms,
            session_id,
            visit_id,
            website_id: submission.website_id,
            second,
            event_count: submission.events.len() as u32,
            started_at_ms: times().min().unwrap_or(second * 1_000),
            ended_at_ms: times().max().unwrap_or(second * 1_000),
            events_gzip: gzip(text.as_bytes()),
        }
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { chunk_id, received_at_ms, session_id, visit_id, website_id, .. } = self;
        let mut out = format!(
            r#"{{"v":1,"id":"{chunk_id}","at":{received_at_ms},"session":"{session_id}","visit":"{visit_id}","type":"record","payload":{{"website":"{website_id}","second":{},"count":{},"started":{},"ended":{},"events":""#,
            self.second, self.event_count, self.started_at_ms, self.ended_at_ms,
        );
        BASE64.encode_string(&self.events_gzip, &mut out);
        out.push_str("\"}}");
        out.into_bytes()
    }

    /// Reads the payload of a record whose type is `record`.
    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'_>>) -> Result<Self, DecodeError> {
        let mut payload = match payload {
            Some(Value::Object(payload)) => Fields(payload),
            other => return Err(DecodeError::field("payload", other.as_ref(), "an object")),
        };
        let events: Cow<'_, str> =
            payload.text("events")?.ok_or_else(|| DecodeError::field("events", None, "base64"))?;
        Ok(Self {
            chunk_id: envelope.event_id,
            received_at_ms: envelope.received_at_ms,
            session_id: envelope.session_id,
            visit_id: envelope.visit_id,
            website_id: payload.uuid("website")?,
            second: payload.integer("second")?,
            event_count: u32::try_from(payload.integer("count")?).unwrap_or(u32::MAX),
            started_at_ms: payload.integer("started")?,
            ended_at_ms: payload.integer("ended")?,
            events_gzip: BASE64
                .decode(events.as_bytes())
                .map_err(|_| DecodeError::field("events", None, "base64"))?,
        })
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8 + 64), Compression::default());
    // Writing into memory cannot fail.
    #[expect(clippy::expect_used, reason = "proved by the line above")]
    {
        encoder.write_all(text).expect("a Vec takes all");
        encoder.finish().expect("a Vec takes all")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::recorded::Recorded;

    const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

    fn refused(body: &str) -> String {
        ChunkSubmission::parse(body.as_bytes()).expect_err(body).to_json()
    }

    fn chunk(events: &str, timestamp: &str) -> Chunk {
        let body = format!(
            r#"{{"type":"record","payload":{{"website":"{WEBSITE}","events":{events}{timestamp}}}}}"#
        );
        let submission = ChunkSubmission::parse(body.as_bytes()).expect("valid");
        Chunk::new(&submission, Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3), 1_795_164_975_123)
    }

    fn text(chunk: &Chunk) -> String {
        let mut text = String::new();
        flate2::read::GzDecoder::new(&chunk.events_gzip[..]).read_to_string(&mut text).expect("gzip");
        text
    }

    #[test]
    fn what_does_not_fit_is_answered_as_zod_would() {
        let answer = |members: &str| {
            format!(r#"{{"error":{{"message":"Bad request","code":"bad-request","status":400,{members}}}}}"#)
        };
        let payload = |members: &str| {
            answer(&format!(
                r#""errors":[],"properties":{{"payload":{{"errors":[],"properties":{{{members}}}}}}}"#
            ))
        };
        assert_eq!(refused(""), answer(r#""errors":["Invalid input: expected object, received undefined"]"#));
        assert_eq!(
            refused("{}"),
            answer(
                r#""errors":[],"properties":{"type":{"errors":["Invalid input: expected \"record\""]},"payload":{"errors":["Invalid input: expected object, received undefined"]}}"#
            )
        );
        assert_eq!(
            refused(r#"{"type":"record","payload":{"website":"x","events":{},"timestamp":1.5}}"#),
            payload(
                r#""website":{"errors":["Invalid UUID"]},"events":{"errors":["Invalid input: expected array, received object"]},"timestamp":{"errors":["Invalid input: expected int, received number"]}"#
            )
        );
        let many = format!(
            r#"{{"type":"record","payload":{{"website":"{WEBSITE}","events":[{}0]}}}}"#,
            "0,".repeat(EVENTS_MAX)
        );
        assert_eq!(
            refused(&many),
            payload(r#""events":{"errors":["Too big: expected array to have <=200 items"]}"#)
        );
    }

    #[test]
    fn the_times_are_those_of_the_events_or_the_chunks() {
        let times = |chunk: &Chunk| (chunk.second, chunk.started_at_ms, chunk.ended_at_ms, chunk.event_count);
        let events = r#"[{"timestamp":1777623630500},{"timestamp":"1777623630100"},{"timestamp":-1},{"timestamp":1e300},{},7,null]"#;
        assert_eq!(
            times(&chunk(events, r#","timestamp":1777623631"#)),
            (1_777_623_631, 1_777_623_630_100, 1_777_623_630_500, 7)
        );
        assert_eq!(
            times(&chunk("[{}]", r#","timestamp":"1777623631""#)),
            (1_777_623_631, 1_777_623_631_000, 1_777_623_631_000, 1)
        );
        assert_eq!(times(&chunk("[]", "")), (1_795_164_975, 1_795_164_975_000, 1_795_164_975_000, 0));
    }

    #[test]
    fn a_record_gives_the_chunk_back() {
        let events =
            r#"[{"type":4,"data":{"href":"https://a.example/","é":"\u0000"},"timestamp":1777623630500.5}]"#;
        let written = chunk(events, "");
        assert_eq!(text(&written), events);
        let bytes = written.encode();
        match Recorded::decode(&bytes) {
            Ok(Recorded::Chunk(read)) => assert_eq!(read, written),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_damaged_record_is_refused_by_name() {
        let good = String::from_utf8(chunk("[{}]", "").encode()).expect("UTF-8");
        for (damaged, reason) in [
            (good.replace("\"events\":\"", "\"events\":\"!"), "field `events`"),
            (good.replace("\"second\":", "\"second\":\"x\",\"_\":"), "field `second` is \"x\""),
            (good.replace("\"payload\":{", "\"payload\":7,\"_\":{"), "field `payload` is 7"),
            (good.replace("\"website\":\"", "\"website\":\"x"), "field `website`"),
        ] {
            let error = Recorded::decode(damaged.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
