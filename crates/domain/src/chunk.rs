//! Recordings of a visitor's page and actions, as the recorder in the page sends them (rrweb events), chunk by chunk.
//! `/api/record` takes a chunk; its row lies in Umami's table `session_replay`. "Replay" is kept for reading the event
//! log again. Source of the rules: docs/umami-contract.md §14.

use std::borrow::Cow;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use uuid::Uuid;

use crate::heatmap::HeatmapSubmission;
use crate::json::{self, Value};
use crate::record::{DecodeError, Envelope, Fields};
use crate::schema::{self, BAD_UUID, Node, SchemaError, parse_uuid, wrong_type};

/// Events of one chunk, or of one heatmap post, at most.
pub(crate) const EVENTS_MAX: usize = 200;

/// The type of the events that a large one is sent in parts as, from Umami 3.2 on.
const FRAGMENT: &str = "umami:rrweb-event-fragment";

/// A body `/api/record` accepts.
#[derive(Debug, Clone, PartialEq)]
pub enum RecorderSubmission<'a> {
    /// A chunk of a recording: the type `record`.
    Chunk(ChunkSubmission<'a>),
    /// Clicks and scrolls: the type `heatmap`.
    Heatmap(HeatmapSubmission<'a>),
}

/// A chunk of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkSubmission<'a> {
    /// The website.
    pub website_id: Uuid,
    /// Any JSON values; at most 200.
    pub events: Vec<Value<'a>>,
    /// Seconds since 1970, never 0 (that is "not given").
    pub timestamp: Option<i64>,
}

impl<'a> RecorderSubmission<'a> {
    /// Reads a body of `/api/record`. With `takes_heatmaps` it may be of either type, as from Umami 3.2 on; else it has to
    /// be a chunk.
    ///
    /// # Errors
    /// [`SchemaError`] if the body is not JSON or does not fit the schema. Answer it with a 400; sending the same again
    /// gives the same.
    pub fn parse(body: &'a [u8], takes_heatmaps: bool) -> Result<Self, SchemaError> {
        let undefined = |expected| Node::leaf(wrong_type(expected, "undefined"));
        let mut object = match json::parse(body) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(SchemaError(Node::leaf(wrong_type("object", other.type_name())))),
            Err(_) => return Err(SchemaError(undefined("object"))),
        };
        let mut tree = Node::default();
        let is_heatmap = match object.get("type").and_then(Value::as_str) {
            Some("record") => false,
            Some("heatmap") if takes_heatmaps => true,
            // Where the type decides between two shapes, zod reports nothing of a value that has neither.
            _ if takes_heatmaps => {
                tree.add("type", "Invalid input");
                return Err(SchemaError(tree));
            }
            _ => {
                tree.add("type", r#"Invalid input: expected "record""#);
                false
            }
        };
        let payload = match object.remove("payload") {
            Some(Value::Object(fields)) if is_heatmap => {
                HeatmapSubmission::from_object(fields).map(Self::Heatmap)
            }
            Some(Value::Object(fields)) => ChunkSubmission::from_object(fields).map(Self::Chunk),
            Some(other) => Err(Node::leaf(wrong_type("object", other.type_name()))),
            None => Err(undefined("object")),
        };
        match payload {
            Ok(submission) if tree.is_empty() => Ok(submission),
            Ok(_) => Err(SchemaError(tree)),
            Err(node) => {
                tree.properties.push(("payload", node));
                Err(SchemaError(tree))
            }
        }
    }

    /// The website.
    pub fn website_id(&self) -> Uuid {
        match self {
            Self::Chunk(chunk) => chunk.website_id,
            Self::Heatmap(heatmap) => heatmap.website_id,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Chunk(chunk) => chunk.events.is_empty(),
            Self::Heatmap(heatmap) => heatmap.events.is_empty(),
        }
    }
}

impl<'a> ChunkSubmission<'a> {
    pub(crate) fn from_object(fields: json::Object<'a>) -> Result<Self, Node> {
        let body = body_of_recorder(fields, |_| Node::default())?;
        Ok(Self { website_id: body.website_id, events: body.events, timestamp: body.timestamp })
    }
}

/// The fields that both types of bodies have.
pub(crate) struct RecorderBody<'a> {
    pub(crate) website_id: Uuid,
    pub(crate) events: Vec<Value<'a>>,
    pub(crate) timestamp: Option<i64>,
}

/// Reads a payload; `refused` gives the errors of its events beside their number.
pub(crate) fn body_of_recorder<'a>(
    mut fields: json::Object<'a>,
    refused: impl FnOnce(&[Value<'a>]) -> Node,
) -> Result<RecorderBody<'a>, Node> {
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
            } else {
                let refused = refused(&events);
                if !refused.is_empty() {
                    tree.properties.push(("events", refused));
                }
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
        let seconds = schema::seconds(&value).map_err(|refusal| tree.add("timestamp", refusal.error));
        seconds.ok().filter(|seconds| *seconds != 0)
    });
    match website_id {
        Some(website_id) if tree.is_empty() => Ok(RecorderBody { website_id, events, timestamp }),
        _ => Err(tree),
    }
}

/// How many events a chunk holds, one that was sent in parts counting once.
fn event_count(events: &[Value<'_>]) -> u32 {
    let is_later_part = |event: &&Value<'_>| {
        let Some(event) = event.as_object() else { return false };
        let Some(data) = event.get("data").and_then(Value::as_object) else { return false };
        let whole = |key: &str| match data.get(key) {
            Some(Value::Number(number)) if number.fract() == 0.0 && *number >= 0.0 => Some(*number),
            _ => None,
        };
        event.get("type").and_then(Value::as_str) == Some(FRAGMENT)
            && data.get("id").and_then(Value::as_str).is_some()
            && data.get("value").and_then(Value::as_str).is_some()
            && whole("index").zip(whole("total")).is_some_and(|(index, total)| index > 0.0 && index < total)
    };
    (events.len() - events.iter().filter(is_later_part).count()) as u32
}

/// A chunk as it lies in the log.
///
/// Its record has the envelope of every record ([`crate::record`]) with the type `record`, and as payload the website,
/// `second`, `count`, `started`, `ended`, and `events`: base64 of the row's bytes, for the JSON text of a page is ten
/// times as long. `heatmap` is there, and false, if no clicks are to be read out of it.
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
    /// Whether rows of the heatmap are made of its clicks and scrolls. Not where the website wants none.
    pub derives_heatmap: bool,
}

impl Chunk {
    /// The chunk of a submission, which makes rows of the heatmap. Costs as much time as compressing its text.
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
                .filter(|time| *time > 0.0 && *time <= schema::TIME_MS_MAX)
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
            event_count: event_count(&submission.events),
            started_at_ms: times().min().unwrap_or(second * 1_000),
            ended_at_ms: times().max().unwrap_or(second * 1_000),
            events_gzip: gzip(text.as_bytes()),
            derives_heatmap: true,
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
        out.push('"');
        if !self.derives_heatmap {
            out.push_str(",\"heatmap\":false");
        }
        out.push_str("}}");
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
            derives_heatmap: match payload.0.get("heatmap") {
                None => true,
                Some(Value::Bool(derives)) => *derives,
                other => return Err(DecodeError::field("heatmap", other, "true, false or absent")),
            },
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
    use crate::log_record::LogRecord;

    const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

    fn refused(body: &str) -> String {
        RecorderSubmission::parse(body.as_bytes(), false).expect_err(body).to_json()
    }

    fn chunk(events: &str, timestamp: &str) -> Chunk {
        let body = format!(
            r#"{{"type":"record","payload":{{"website":"{WEBSITE}","events":{events}{timestamp}}}}}"#
        );
        let Ok(RecorderSubmission::Chunk(submission)) = RecorderSubmission::parse(body.as_bytes(), false)
        else {
            panic!("{body}")
        };
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
    fn where_heatmaps_are_taken_the_type_is_one_of_two() {
        let heatmap = format!(r#"{{"type":"heatmap","payload":{{"website":"{WEBSITE}","events":[]}}}}"#);
        let parse = |body: &str, takes| {
            RecorderSubmission::parse(body.as_bytes(), takes)
                .map(|taken| taken.is_empty())
                .map_err(|e| e.to_json())
        };
        assert_eq!(parse(&heatmap, true), Ok(true));
        assert!(parse(&heatmap, false).unwrap_err().contains(r#"expected \"record\""#));
        let neither = parse(r#"{"type":"x","payload":7}"#, true).unwrap_err();
        assert!(
            neither.ends_with(r#""errors":[],"properties":{"type":{"errors":["Invalid input"]}}}}"#),
            "{neither}"
        );
        assert!(parse("", true).unwrap_err().contains("expected object, received undefined"));
    }

    #[test]
    fn an_event_that_was_sent_in_parts_counts_once() {
        let part = |index: i32| {
            format!(
                r#"{{"type":"{FRAGMENT}","data":{{"id":"a","index":{index},"total":3,"value":"x"}},"timestamp":1}}"#
            )
        };
        let events = format!(r#"[{{"type":4}},{},{},{},{}]"#, part(0), part(1), part(2), part(3));
        // The last one is no part: there are but three.
        assert_eq!(chunk(&events, "").event_count, 3);
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
        match LogRecord::decode(&bytes) {
            Ok(LogRecord::Chunk(read)) => assert_eq!(read, written),
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
            let error = LogRecord::decode(damaged.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
