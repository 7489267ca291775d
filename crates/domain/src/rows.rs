//! The rows of the projection: Umami's tables, column for column, and Dashi's own beside them.
//!
//! Every text is already cut to its column's width and free of U+0000, so a row that reaches a store fits it.

use uuid::Uuid;

use crate::decimal::Decimal;
use crate::flatten::DataType;
use crate::parking::Parking;
use crate::position::Offset;

pub use crate::session::{SessionAttributes, SessionRow};

/// The values of `website_event.event_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum EventType {
    /// A page was seen.
    PageView = 1,
    /// Something with a name happened.
    Custom = 2,
    /// A tracked link was followed.
    Link = 3,
    /// A tracking pixel was loaded.
    Pixel = 4,
    /// Web vitals of a page.
    Performance = 5,
}

impl EventType {
    /// The type with this number.
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::PageView, Self::Custom, Self::Link, Self::Pixel, Self::Performance]
            .into_iter()
            .find(|event_type| *event_type as i32 == code)
    }
}

/// A row of `website_event`.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Primary key.
    pub event_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The visit.
    pub visit_id: Uuid,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Never null; "" when the event named no page.
    pub url_path: String,
    /// Without `?`; null on performance rows.
    pub url_query: Option<String>,
    /// Campaign and click parameters of the URL.
    pub campaign: Campaign,
    /// The referrer's path.
    pub referrer_path: Option<String>,
    /// The referrer's query without `?`.
    pub referrer_query: Option<String>,
    /// The referrer's host without `www.`.
    pub referrer_domain: Option<String>,
    /// The page's title.
    pub page_title: Option<String>,
    /// The site's host.
    pub hostname: Option<String>,
    /// The kind of event.
    pub event_type: EventType,
    /// The custom event's name.
    pub event_name: Option<String>,
    /// The tracker's tag.
    pub tag: Option<String>,
    /// Web vitals; all null but on performance rows.
    pub vitals: Vitals,
}

/// Campaign and click parameters, each at most 255 characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are the columns and the query parameters of the same names")]
pub struct Campaign {
    pub utm_source: Option<String>,
    pub utm_medium: Option<String>,
    pub utm_campaign: Option<String>,
    pub utm_content: Option<String>,
    pub utm_term: Option<String>,
    pub gclid: Option<String>,
    pub fbclid: Option<String>,
    pub msclkid: Option<String>,
    pub ttclid: Option<String>,
    pub li_fat_id: Option<String>,
    pub twclid: Option<String>,
}

/// Web vitals: milliseconds with one decimal, `cls` without unit and with four.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the fields are the columns and the web vitals of the same names")]
pub struct Vitals {
    pub lcp: Option<Decimal>,
    pub inp: Option<Decimal>,
    pub cls: Option<Decimal>,
    pub fcp: Option<Decimal>,
    pub ttfb: Option<Decimal>,
}

/// The value columns that `event_data` and `session_data` share.
#[derive(Debug, Clone, PartialEq)]
pub struct DataValue {
    /// The value's type in the request.
    pub data_type: DataType,
    /// At most 500 characters.
    pub string_value: Option<String>,
    /// Set for numbers that fit `numeric(19,4)`.
    pub number_value: Option<Decimal>,
    /// Set for dates, milliseconds since 1970.
    pub date_value_ms: Option<i64>,
}

/// A row of `event_data`: one leaf of an event's data.
#[derive(Debug, Clone, PartialEq)]
pub struct EventDataRow {
    /// Primary key, computed from the event's id.
    pub event_data_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The event.
    pub website_event_id: Uuid,
    /// Dotted path of the leaf, at most 500 characters.
    pub data_key: String,
    /// Its value.
    pub value: DataValue,
    /// Equal to the event's, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A row of `session_data`: the newest value of one property of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionDataRow {
    /// Primary key, computed from session and key.
    pub session_data_id: Uuid,
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// Dotted path of the leaf, at most 500 characters.
    pub data_key: String,
    /// Its value.
    pub value: DataValue,
    /// The distinct id that came with it.
    pub distinct_id: Option<String>,
    /// When it was set, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A row of `revenue`.
#[derive(Debug, Clone, PartialEq)]
pub struct RevenueRow {
    /// Primary key, computed from the event's id.
    pub revenue_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The event.
    pub event_id: Uuid,
    /// Never null; "" when the event had no name.
    pub event_name: String,
    /// As sent, at most 10 characters.
    pub currency: String,
    /// Four decimals.
    pub revenue: Decimal,
    /// Equal to the event's, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A row of `session_replay`: a chunk of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// Primary key.
    pub replay_id: Uuid,
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The visit; its chunks are read in the order of their index.
    pub visit_id: Uuid,
    /// The least index it may have, its second. The writer of the row takes the next index that no other chunk of the
    /// visit has, so that chunks of one second keep the order of the log.
    pub chunk_index_min: i32,
    /// JSON text of an array of events, compressed by gzip.
    pub events: Vec<u8>,
    /// How many events.
    pub event_count: i32,
    /// Milliseconds since 1970, as are the others.
    pub started_at_ms: i64,
    /// The last event's time.
    pub ended_at_ms: i64,
    /// When it arrived.
    pub created_at_ms: i64,
}

/// The values of `heatmap_event.event_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum HeatmapKind {
    /// The visitor clicked.
    Click = 1,
    /// The visitor scrolled.
    Scroll = 2,
}

/// A row of `heatmap_event`, which Umami has from 3.2 on. Lengths are CSS pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatmapRow {
    /// Primary key, computed from the record's id and the event's place.
    pub heatmap_event_id: Uuid,
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The visit.
    pub visit_id: Uuid,
    /// The page's path without query and hash, at most 500 characters.
    pub url_path: String,
    /// The kind of event.
    pub kind: HeatmapKind,
    /// The node that was clicked, by its number in the recording.
    pub node_id: Option<i32>,
    /// Where in the window, from its left.
    pub x: Option<i32>,
    /// Where in the window, from its top.
    pub y: Option<i32>,
    /// Where in the page, from its left; only of posts.
    pub page_x: Option<i32>,
    /// Where in the page, from its top; only of posts.
    pub page_y: Option<i32>,
    /// The page's width; only of posts.
    pub page_w: Option<i32>,
    /// The window's width.
    pub viewport_w: Option<i32>,
    /// The window's height.
    pub viewport_h: Option<i32>,
    /// The page's height.
    pub page_h: Option<i32>,
    /// How much of the page had come into view, 0 to 100.
    pub scroll_pct: Option<i32>,
    /// Where in a recording it comes from.
    pub recorded: Option<ChunkEvent>,
    /// When it happened, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// The event of a recording that a row of a heatmap is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEvent {
    /// The chunk: [`ChunkRow::replay_id`]. The row itself has the chunk's index, which its writer gives.
    pub chunk_id: Uuid,
    /// The event's place in the chunk, from 0.
    pub event_index: i32,
    /// The event's own time, milliseconds since 1970.
    pub time_ms: Option<i64>,
}

/// A row of Dashi's own `applied`: of a record that leaves no row by whose key a copy of it would be known, the fact
/// that it was applied is written here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedRow {
    /// Primary key: the record's id.
    pub record_id: Uuid,
    /// The record's type.
    pub record_type: String,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// When the collector had it, milliseconds since 1970.
    pub received_at_ms: i64,
}

/// A row of Dashi's own `identify`: an identify leaves no row in `website_event`, so that it was applied is
/// written here, once per event id. On a database of Umami 3.0, which has no web vitals, the same holds for performance
/// events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifyRow {
    /// Primary key.
    pub event_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The session that was identified.
    pub session_id: Uuid,
    /// The distinct id, if the event brought one; at most 50 characters.
    pub distinct_id: Option<String>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A row of `session_link`, which Umami has from 3.3 on: an identify named this distinct id in this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionLinkRow {
    /// The website.
    pub website_id: Uuid,
    /// The session that was identified.
    pub session_id: Uuid,
    /// Never empty; at most 50 characters.
    pub distinct_id: String,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A record set aside: it can be read again, but not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it lies.
    pub offset: Offset,
    /// When the log took it, milliseconds since 1970.
    pub appended_at_ms: i64,
    /// The reason, in words.
    pub reason: String,
    /// The record's value.
    pub value: Vec<u8>,
    /// Whether it holds up its session, or waits.
    pub parking: Parking,
}
