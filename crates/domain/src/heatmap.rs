//! Heatmaps: where visitors clicked, and how far down they scrolled. Rows of Umami's table `heatmap_event`.
//!
//! They come two ways: read out of the chunks of recordings ([`of_chunk`]), and, since the release of 3.2, posted by the
//! recorder, with coordinates of the page ([`HeatmapSubmission`], [`of_post`]). Both happen in the fold, so that a fix reaches history by replay. Source of the rules: docs/umami-contract.md §14.

use std::io::Read as _;

use uuid::Uuid;

use crate::chunk::{Chunk, body_of_recorder};
use crate::ids::dependent_id;
use crate::json::{self, Object, Value};
use crate::page_url::pathname;
use crate::record::{DecodeError, Envelope};
use crate::rows::{ChunkEvent, HeatmapKind, HeatmapRow};
use crate::schema::{self, Node, Refusal, TIME_MS_MAX, TIME_MS_MIN, wrong_type};
use crate::text::cut;

/// Bytes of a chunk's text that are looked through, at most: a chunk of another producer may unpack to anything.
const CHUNK_TEXT_MAX: u64 = 64 << 20;

/// The width of `heatmap_event.url_path`.
const PATH_MAX: usize = 500;

/// A body of `/api/record` with the type `heatmap`.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatmapSubmission<'a> {
    /// The website.
    pub website_id: Uuid,
    /// Objects of the type `click` or `scroll`, each with a `url`, as sent; at most 200.
    pub events: Vec<Value<'a>>,
    /// Seconds since 1970, never 0 (that is "not given").
    pub timestamp: Option<i64>,
}

impl<'a> HeatmapSubmission<'a> {
    pub(crate) fn from_object(fields: Object<'a>) -> Result<Self, Node> {
        let body = body_of_recorder(fields, |events| {
            let wrong = events.iter().enumerate().filter_map(|(index, event)| Some((index, refused(event)?)));
            Node { items: wrong.collect(), ..Node::default() }
        })?;
        Ok(Self { website_id: body.website_id, events: body.events, timestamp: body.timestamp })
    }
}

/// The error of an event, if it has one.
fn refused(event: &Value<'_>) -> Option<Node> {
    let Some(event) = event.as_object() else {
        return Some(Node::leaf(wrong_type("object", event.type_name())));
    };
    let mut tree = Node::default();
    let numbers: &[&'static str] = match event.get("type").and_then(Value::as_str) {
        Some("click") => &["x", "y", "pageX", "pageY", "pageW", "pageH", "viewportW", "viewportH"],
        Some("scroll") => &["scrollPct", "pageW", "pageH", "viewportW", "viewportH"],
        // zod reports no more of a value that decides between several shapes.
        _ => {
            tree.add("type", "Invalid input");
            return Some(tree);
        }
    };
    match event.get("url") {
        Some(Value::String(_)) => {}
        other => {
            tree.add("url", wrong_type("string", other.map_or("undefined", Value::type_name)));
        }
    }
    for name in numbers {
        let number = event.get(name).map(Value::to_number);
        if let Some(number) = number.filter(|number| !number.is_finite()) {
            tree.add(name, wrong_type("number", if number.is_nan() { "NaN" } else { "number" }));
        }
    }
    if let Some(Err(Refusal { error, .. })) = event.get("timestamp").map(schema::integer) {
        tree.add("timestamp", error);
    }
    (!tree.is_empty()).then_some(tree)
}

/// A heatmap post as it lies in the log.
///
/// Its record has the envelope of every record ([`crate::record`]) with the type `heatmap`, and the payload as it was
/// sent: `website`, `events` and, if it was given, `timestamp`.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatmapPost<'a> {
    /// Fixed at ingest; the ids of its rows are computed from it.
    pub post_id: Uuid,
    /// When the collector had the whole request, milliseconds since 1970.
    pub received_at_ms: i64,
    /// The token's session; also the record's key.
    pub session_id: Uuid,
    /// The token's visit.
    pub visit_id: Uuid,
    /// The submission as it was sent.
    pub submission: HeatmapSubmission<'a>,
}

impl<'a> HeatmapPost<'a> {
    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { post_id, received_at_ms, session_id, visit_id, submission } = self;
        let mut out = format!(
            r#"{{"v":1,"id":"{post_id}","at":{received_at_ms},"session":"{session_id}","visit":"{visit_id}","type":"heatmap","payload":{{"website":"{}","events":["#,
            submission.website_id
        );
        for (place, event) in submission.events.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            event.write(&mut out);
        }
        out.push(']');
        if let Some(timestamp) = submission.timestamp {
            out.push_str(&format!(",\"timestamp\":{timestamp}"));
        }
        out.push_str("}}");
        out.into_bytes()
    }

    /// Reads the payload of a record whose type is `heatmap`; it is checked again as a request's is.
    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'a>>) -> Result<Self, DecodeError> {
        let payload = match payload {
            Some(Value::Object(payload)) => payload,
            other => return Err(DecodeError::field("payload", other.as_ref(), "an object")),
        };
        let submission = HeatmapSubmission::from_object(payload)
            .map_err(|node| DecodeError::Payload(format!("{node}")))?;
        let Envelope { event_id, received_at_ms, session_id, visit_id } = envelope;
        Ok(Self { post_id: event_id, received_at_ms, session_id, visit_id, submission })
    }
}

/// The rows of a post, one per event.
pub fn of_post(post: &HeatmapPost<'_>) -> Vec<HeatmapRow> {
    let submission = &post.submission;
    let fallback_ms = submission.timestamp.map_or(post.received_at_ms, |seconds| seconds * 1_000);
    let events = submission.events.iter().filter_map(Value::as_object).enumerate();
    events
        .map(|(index, event)| {
            let number = |name: &str| event.get(name).and_then(|value| whole(value.to_number()));
            let clicked = event.get("type").and_then(Value::as_str) == Some("click");
            let of_click = |name: &str| number(name).filter(|_| clicked);
            let url = event.get("url").and_then(Value::as_str).unwrap_or_default();
            let path = pathname(url).or_else(|| before_query(url)).filter(|path| !path.is_empty());
            let sent_ms = event.get("timestamp").map(Value::to_number);
            HeatmapRow {
                heatmap_event_id: dependent_id(post.post_id, &format!("heatmap:{index}")),
                website_id: submission.website_id,
                session_id: post.session_id,
                visit_id: post.visit_id,
                url_path: column(path.unwrap_or_else(|| "/".to_owned())),
                kind: if clicked { HeatmapKind::Click } else { HeatmapKind::Scroll },
                node_id: None,
                x: of_click("x"),
                y: of_click("y"),
                page_x: of_click("pageX"),
                page_y: of_click("pageY"),
                page_w: number("pageW"),
                viewport_w: number("viewportW"),
                viewport_h: number("viewportH"),
                page_h: number("pageH"),
                scroll_pct: event
                    .get("scrollPct")
                    .filter(|_| !clicked)
                    .and_then(|value| percent(value.to_number())),
                recorded: None,
                created_at_ms: sent_ms.and_then(moment).unwrap_or(fallback_ms),
            }
        })
        .collect()
}

/// Events of a recording (rrweb): their types, and the sources of those that report a change.
mod rrweb {
    pub const INCREMENTAL: f64 = 3.0;
    pub const META: f64 = 4.0;
    pub const CUSTOM: f64 = 5.0;
    pub const MOUSE_INTERACTION: f64 = 2.0;
    pub const VIEWPORT_RESIZE: f64 = 4.0;
    pub const CLICK: f64 = 2.0;
}

/// The rows of a chunk: its clicks and, where its recorder reported it, how far the visitor had scrolled.
///
/// An event is filed under the page that the chunk named last before it. A click before any is left out: a chunk knows
/// nothing of those before it. None where the chunk's text cannot be read, or is not to be looked through.
pub fn of_chunk(chunk: &Chunk) -> Vec<HeatmapRow> {
    if !chunk.derives_heatmap {
        return Vec::new();
    }
    let Some(text) = unpacked(&chunk.events_gzip) else { return Vec::new() };
    let Ok(Value::Array(events)) = json::parse_str(&text) else { return Vec::new() };
    let mut reading = Reading { chunk, path: None, viewport_w: None, viewport_h: None, rows: Vec::new() };
    for (index, event) in events.iter().enumerate() {
        if let Some(event) = event.as_object() {
            reading.event(index, event);
        }
    }
    reading.rows
}

struct Reading<'c> {
    chunk: &'c Chunk,
    path: Option<String>,
    viewport_w: Option<f64>,
    viewport_h: Option<f64>,
    rows: Vec<HeatmapRow>,
}

impl Reading<'_> {
    fn event(&mut self, index: usize, event: &Object<'_>) {
        let Some(data) = event.get("data").and_then(Value::as_object) else { return };
        let sent_ms = number(event, "timestamp");
        match number(event, "type") {
            Some(rrweb::META) => {
                self.page(data.get("href"));
                self.viewport(data);
            }
            Some(rrweb::CUSTOM) => {
                let payload = data.get("payload").and_then(Value::as_object);
                match (data.get("tag").and_then(Value::as_str), payload) {
                    (Some("url-change"), Some(payload)) => self.page(payload.get("url")),
                    (Some("scroll-progress"), Some(payload)) => self.scroll(index, sent_ms, payload),
                    _ => {}
                }
            }
            Some(rrweb::INCREMENTAL) => match number(data, "source") {
                Some(rrweb::VIEWPORT_RESIZE) => self.viewport(data),
                Some(rrweb::MOUSE_INTERACTION) if number(data, "type") == Some(rrweb::CLICK) => {
                    self.click(index, sent_ms, data);
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn page(&mut self, url: Option<&Value<'_>>) {
        if let Some(path) = page_path(url) {
            self.path = Some(path);
        }
    }

    fn viewport(&mut self, data: &Object<'_>) {
        self.viewport_w = number(data, "width").or(self.viewport_w);
        self.viewport_h = number(data, "height").or(self.viewport_h);
    }

    fn click(&mut self, index: usize, sent_ms: Option<f64>, data: &Object<'_>) {
        let Some(path) = self.path.clone() else { return };
        let row = HeatmapRow {
            node_id: number(data, "id").and_then(whole),
            x: number(data, "x").and_then(whole),
            y: number(data, "y").and_then(whole),
            ..self.row(index, sent_ms, path, HeatmapKind::Click)
        };
        self.rows.push(row);
    }

    fn scroll(&mut self, index: usize, sent_ms: Option<f64>, payload: &Object<'_>) {
        let Some(path) = page_path(payload.get("url")).or_else(|| self.path.clone()) else { return };
        let row = self.row(index, sent_ms, path, HeatmapKind::Scroll);
        self.rows.push(HeatmapRow {
            viewport_w: number(payload, "viewportW").map_or(row.viewport_w, whole),
            viewport_h: number(payload, "viewportH").map_or(row.viewport_h, whole),
            page_h: number(payload, "pageH").and_then(whole),
            scroll_pct: number(payload, "scrollPct").and_then(percent),
            ..row
        });
    }

    fn row(&self, index: usize, sent_ms: Option<f64>, path: String, kind: HeatmapKind) -> HeatmapRow {
        let chunk = self.chunk;
        let moment = sent_ms.and_then(moment);
        HeatmapRow {
            heatmap_event_id: dependent_id(chunk.chunk_id, &format!("heatmap:{index}")),
            website_id: chunk.website_id,
            session_id: chunk.session_id,
            visit_id: chunk.visit_id,
            url_path: column(path),
            kind,
            node_id: None,
            x: None,
            y: None,
            page_x: None,
            page_y: None,
            page_w: None,
            viewport_w: self.viewport_w.and_then(whole),
            viewport_h: self.viewport_h.and_then(whole),
            page_h: None,
            scroll_pct: None,
            recorded: Some(ChunkEvent {
                chunk_id: chunk.chunk_id,
                event_index: i32::try_from(index).unwrap_or(i32::MAX),
                time_ms: moment,
            }),
            created_at_ms: moment.unwrap_or(chunk.received_at_ms),
        }
    }
}

fn unpacked(gzip: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut reader = flate2::read::GzDecoder::new(gzip).take(CHUNK_TEXT_MAX + 1);
    let bytes = reader.read_to_string(&mut text).ok()?;
    (bytes as u64 <= CHUNK_TEXT_MAX).then_some(text)
}

fn number(object: &Object<'_>, key: &str) -> Option<f64> {
    match object.get(key) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    }
}

/// The path of a page's URL, or of a text that is one but for its host.
fn page_path(url: Option<&Value<'_>>) -> Option<String> {
    let url = url.and_then(Value::as_str)?;
    match pathname(url) {
        Some(path) if path.is_empty() => Some("/".to_owned()),
        Some(path) => Some(path),
        None => before_query(url),
    }
}

/// The part before query and hash of a URL that begins with its path.
fn before_query(url: &str) -> Option<String> {
    url.starts_with('/').then(|| url.split(['?', '#']).next().unwrap_or_default().to_owned())
}

fn column(path: String) -> String {
    cut(path.into(), PATH_MAX).into_owned()
}

/// The nearest whole number, a half going up as JavaScript's does; none if its column cannot hold it.
fn whole(number: f64) -> Option<i32> {
    let below = number.floor();
    let rounded = if number - below >= 0.5 { below + 1.0 } else { below };
    (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&rounded).then_some(rounded as i32)
}

fn percent(number: f64) -> Option<i32> {
    number.is_finite().then(|| whole(number.clamp(0.0, 100.0))).flatten()
}

/// A moment that the column can hold, milliseconds since 1970.
fn moment(ms: f64) -> Option<i64> {
    (TIME_MS_MIN..=TIME_MS_MAX).contains(&ms).then_some(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{ChunkSubmission, EVENTS_MAX, RecorderSubmission};
    use crate::log_record::LogRecord;

    const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";
    const RECEIVED_MS: i64 = 1_795_164_975_123;

    fn ids() -> (Uuid, Uuid, Uuid) {
        (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3))
    }

    fn chunk(events: &str) -> Chunk {
        let body = format!(r#"{{"type":"record","payload":{{"website":"{WEBSITE}","events":{events}}}}}"#);
        let Ok(RecorderSubmission::Chunk(submission)) = RecorderSubmission::parse(body.as_bytes(), true)
        else {
            panic!("{body}")
        };
        let (id, session, visit) = ids();
        Chunk::new(&submission, id, session, visit, RECEIVED_MS)
    }

    /// Kind, path, x, y, viewport, height of the page, percent, event.
    type Cells = (i32, String, [Option<i32>; 6], i32);

    fn cells(row: &HeatmapRow) -> Cells {
        let numbers = [row.x, row.y, row.viewport_w, row.viewport_h, row.page_h, row.scroll_pct];
        (row.kind as i32, row.url_path.clone(), numbers, row.recorded.map_or(-1, |place| place.event_index))
    }

    fn of(events: &str) -> Vec<Cells> {
        of_chunk(&chunk(events)).iter().map(cells).collect()
    }

    fn body(event: &str) -> String {
        format!(
            r#"{{"type":"heatmap","payload":{{"website":"{WEBSITE}","timestamp":1777623631,"events":[{event}]}}}}"#
        )
    }

    fn posted(event: &str) -> HeatmapRow {
        let body = body(event);
        let Ok(RecorderSubmission::Heatmap(submission)) = RecorderSubmission::parse(body.as_bytes(), true)
        else {
            panic!("{body}: {:?}", RecorderSubmission::parse(body.as_bytes(), true))
        };
        let (post_id, session_id, visit_id) = ids();
        let post = HeatmapPost { post_id, received_at_ms: RECEIVED_MS, session_id, visit_id, submission };
        let bytes = post.encode();
        let Ok(LogRecord::Heatmap(read)) = LogRecord::decode(&bytes) else { panic!("{body}") };
        let rows = of_post(&read);
        assert_eq!(rows, of_post(&post), "the log gives what was posted");
        let [row] = &rows[..] else { panic!("{rows:?}") };
        row.clone()
    }

    #[test]
    fn a_click_of_a_chunk_is_filed_under_the_page_before_it() {
        let events = r#"[
            {"type":3,"data":{"source":2,"type":2,"x":1,"y":1},"timestamp":5},
            {"type":4,"data":{"href":"https://x/p?q=1#h","width":1280,"height":720},"timestamp":1777623630000},
            {"type":3,"data":{"source":2,"type":2,"id":3,"x":10.4,"y":20.6},"timestamp":1777623630500},
            {"type":3,"data":{"source":2,"type":1,"id":3,"x":1,"y":1},"timestamp":1777623630501},
            {"type":3,"data":{"source":4,"width":800.5},"timestamp":1777623630502},
            {"type":5,"data":{"tag":"url-change","payload":{"url":"/next?a=b"}},"timestamp":1777623630503},
            {"type":3,"data":{"source":2,"type":2,"x":"7","y":-2.5}},
            null, 7, {"type":3}, {"type":4,"data":{"href":"none"}}]"#;
        assert_eq!(
            of(events),
            [
                (1, "/p".into(), [Some(10), Some(21), Some(1280), Some(720), None, None], 2),
                (1, "/next".into(), [None, Some(-2), Some(801), Some(720), None, None], 6),
            ]
        );
        let rows = of_chunk(&chunk(events));
        assert_eq!((rows[0].node_id, rows[0].created_at_ms), (Some(3), 1_777_623_630_500));
        assert_eq!(rows[1].created_at_ms, RECEIVED_MS, "a click without a time happened when it arrived");
        assert_ne!(rows[0].heatmap_event_id, rows[1].heatmap_event_id);
        assert_eq!(rows, of_chunk(&chunk(events)), "a replay gives the same ids");
    }

    #[test]
    fn how_far_was_scrolled_is_told_by_the_recorder() {
        let scroll = |payload: &str| {
            of(&format!(
                r#"[{{"type":4,"data":{{"href":"https://x/","width":9,"height":8}}}},
                    {{"type":5,"data":{{"tag":"scroll-progress","payload":{payload}}},"timestamp":1}}]"#
            ))
        };
        assert_eq!(
            scroll(
                r#"{"url":"https://x/long","scrollPct":62.5,"viewportW":1280,"viewportH":720,"pageH":3000}"#
            ),
            [(2, "/long".into(), [None, None, Some(1280), Some(720), Some(3000), Some(63)], 1)]
        );
        assert_eq!(
            scroll(r#"{"scrollPct":1e9,"viewportW":"x"}"#),
            [(2, "/".into(), [None, None, Some(9), Some(8), None, Some(100)], 1)]
        );
        assert_eq!(scroll("null"), []);
        assert_eq!(of(r#"[{"type":5,"data":{"tag":"scroll-progress","payload":{"scrollPct":1}}}]"#), []);
    }

    #[test]
    fn what_no_column_holds_is_left_out_and_long_paths_are_cut() {
        let events = format!(
            r#"[{{"type":4,"data":{{"href":"https://x/{}","width":1e300,"height":-3e9}}}},
                {{"type":3,"data":{{"source":2,"type":2,"x":1e10,"y":2147483647.4}},"timestamp":1e300}}]"#,
            "a".repeat(600)
        );
        let rows = of_chunk(&chunk(&events));
        assert_eq!(cells(&rows[0]).2, [None, Some(i32::MAX), None, None, None, None]);
        assert_eq!((rows[0].url_path.len(), rows[0].created_at_ms), (500, RECEIVED_MS));
    }

    #[test]
    fn a_chunk_that_cannot_be_read_has_no_rows() {
        let mut broken = chunk(r#"[{"type":4,"data":{"href":"https://x/"}}]"#);
        broken.events_gzip.truncate(12);
        assert_eq!(of_chunk(&broken), []);
        let events = r#"[{"type":4,"data":{"href":"https://x/"}},{"type":3,"data":{"source":2,"type":2}}]"#;
        assert_eq!(of_chunk(&chunk(events)).len(), 1);
        let silent = Chunk { derives_heatmap: false, ..chunk(events) };
        assert_eq!(of_chunk(&silent), [], "its website wants no heatmaps");
        let bytes = silent.encode();
        assert!(matches!(LogRecord::decode(&bytes), Ok(LogRecord::Chunk(read)) if read == silent));
    }

    #[test]
    fn a_post_gives_a_row_per_event() {
        let click = posted(
            r#"{"type":"click","url":"https://x/p?q","x":10.4,"y":"20.6","pageX":10,"pageY":920.5,"pageW":1265,"pageH":3000,"viewportW":1280,"viewportH":720,"scrollPct":5,"timestamp":1777623630500}"#,
        );
        assert_eq!(
            cells(&click),
            (1, "/p".into(), [Some(10), Some(21), Some(1280), Some(720), Some(3000), None], -1)
        );
        assert_eq!([click.page_x, click.page_y, click.page_w], [Some(10), Some(921), Some(1265)]);
        assert_eq!(click.created_at_ms, 1_777_623_630_500);
        let scroll =
            posted(r#"{"type":"scroll","url":"/a#b","x":1,"pageX":1,"pageW":7,"scrollPct":-4,"extra":{}}"#);
        assert_eq!(cells(&scroll), (2, "/a".into(), [None, None, None, None, None, Some(0)], -1));
        assert_eq!([scroll.page_x, scroll.page_y, scroll.page_w], [None, None, Some(7)]);
        assert_eq!(scroll.created_at_ms, 1_777_623_631_000, "the post's own time");
        for url in ["", "nowhere", "https://x", "https://x?a"] {
            assert_eq!(posted(&format!(r#"{{"type":"scroll","url":"{url}"}}"#)).url_path, "/", "{url}");
        }
        let odd = posted(r#"{"type":"click","url":"/","x":null,"y":1e11,"timestamp":9e15}"#);
        assert_eq!((odd.x, odd.y, odd.created_at_ms), (Some(0), None, 1_777_623_631_000));
    }

    #[test]
    fn a_post_that_does_not_fit_is_answered_as_zod_would() {
        let refused = |event: &str| match RecorderSubmission::parse(body(event).as_bytes(), true) {
            Ok(taken) => panic!("{taken:?}"),
            Err(error) => error.to_json(),
        };
        let events = |items: &str| {
            format!(
                r#"{{"error":{{"message":"Bad request","code":"bad-request","status":400,"errors":[],"properties":{{"payload":{{"errors":[],"properties":{{"events":{{"errors":[],"items":[{items}]}}}}}}}}}}}}"#
            )
        };
        assert_eq!(
            refused(r#"{"type":"scroll","url":"/"},{"type":"hover","url":"/"}"#),
            events(r#"null,{"errors":[],"properties":{"type":{"errors":["Invalid input"]}}}"#)
        );
        assert_eq!(
            refused(r#"{"type":"click","x":"a","pageX":1e999,"timestamp":1.5}"#),
            events(
                r#"{"errors":[],"properties":{"url":{"errors":["Invalid input: expected string, received undefined"]},"x":{"errors":["Invalid input: expected number, received NaN"]},"pageX":{"errors":["Invalid input: expected number, received number"]},"timestamp":{"errors":["Invalid input: expected int, received number"]}}}"#
            )
        );
        assert_eq!(refused("7"), events(r#"{"errors":["Invalid input: expected object, received number"]}"#));
        let many = format!("{}{{}}", r#"{"type":"scroll","url":"/"},"#.repeat(EVENTS_MAX));
        assert!(refused(&many).contains("Too big: expected array to have <=200 items"));
        assert!(ChunkSubmission::from_object(Object::default()).is_err());
    }
}
