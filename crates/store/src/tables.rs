//! The tables of the projection, a line for each column, in the order of the tables. A new column is one line here, a
//! field of the row (`dashi_domain::rows`), the fold that fills it, and a step of each backend's migrations; inserts,
//! the catalogue and `dashi compare` follow.

use dashi_domain::profile::{BaseRow, LinkSource, ProfileLink, Stamp, TraitRow, WriteRow};
use dashi_domain::rows::{
    AppliedRow, ChunkRow, DataValue, EventDataRow, EventRow, HeatmapRow, IdentifyRow, RevenueRow,
    SessionDataRow, SessionLinkRow, SessionRow,
};

use crate::table::{Column, ColumnType, Owner, Table, rows, text};

/// Every table of the projection, in the order in which stores are compared. Umami's `session_link`, which only some
/// databases have and whose rows follow from those of `identify`, is not compared.
pub static ALL: &[&Table] = &[
    &SESSION.table,
    &WEBSITE_EVENT.table,
    &EVENT_DATA.table,
    &SESSION_DATA.table,
    &REVENUE.table,
    &SESSION_REPLAY.table,
    &HEATMAP_EVENT.table,
    &IDENTIFY.table,
    &APPLIED.table,
    &PROFILE,
    &PROFILE_TRAIT.table,
    &PROFILE_WRITE.table,
    &PROFILE_BASE.table,
    &PROFILE_LINK.table,
    &DEAD_LETTER,
    &HOUR_COUNT,
    &LINK_SOURCE.table,
    &ERASURE,
    &ERASURE_COPY,
];

/// The tables of Umami's that rows are written to.
pub fn of_umami() -> impl Iterator<Item = &'static Table> {
    ALL.iter().copied().filter(|table| !table.is_own()).chain([&SESSION_LINK.table])
}

rows! {
    /// Sessions. The texts of [`SessionRow::reported`] are of the same columns as its attributes.
    SESSION: SessionRow = Umami, "session", key 1, [
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        text!("browser", 20, attributes.browser),
        text!("os", 20, attributes.os),
        text!("device", 20, attributes.device),
        text!("screen", 11, attributes.screen),
        text!("language", 35, attributes.language),
        text!("country", 2, attributes.country),
        text!("region", 20, attributes.region),
        text!("city", 50, attributes.city),
        text!("distinct_id", 50, attributes.distinct_id),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// Page views, named events, visits of links and pixels, and web vitals, whose columns came with 3.1.
    WEBSITE_EVENT: EventRow = Umami, "website_event", key 1, [
        Field::uuid("event_id", |row| Some(row.event_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("visit_id", |row| Some(row.visit_id)),
        Field::time("created_at", |row| Some(row.created_at_ms)),
        text!("url_path", 500, url_path),
        text!("url_query", 500, url_query),
        text!("utm_source", 255, campaign.utm_source),
        text!("utm_medium", 255, campaign.utm_medium),
        text!("utm_campaign", 255, campaign.utm_campaign),
        text!("utm_content", 255, campaign.utm_content),
        text!("utm_term", 255, campaign.utm_term),
        text!("gclid", 255, campaign.gclid),
        text!("fbclid", 255, campaign.fbclid),
        text!("msclkid", 255, campaign.msclkid),
        text!("ttclid", 255, campaign.ttclid),
        text!("li_fat_id", 255, campaign.li_fat_id),
        text!("twclid", 255, campaign.twclid),
        text!("referrer_path", 500, referrer_path),
        text!("referrer_query", 500, referrer_query),
        text!("referrer_domain", 500, referrer_domain),
        text!("page_title", 500, page_title),
        text!("hostname", 100, hostname),
        Field::integer("event_type", |row| Some(row.event_type as i32)),
        text!("event_name", 50, event_name),
        text!("tag", 50, tag),
        Field::decimal("lcp", 1, |row| row.vitals.lcp).optional(),
        Field::decimal("inp", 1, |row| row.vitals.inp).optional(),
        Field::decimal("cls", 4, |row| row.vitals.cls).optional(),
        Field::decimal("fcp", 1, |row| row.vitals.fcp).optional(),
        Field::decimal("ttfb", 1, |row| row.vitals.ttfb).optional(),
    ]
}

rows! {
    /// The leaves of events' data.
    EVENT_DATA: EventDataRow = Umami, "event_data", key 1, [
        Field::uuid("event_data_id", |row| Some(row.event_data_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("website_event_id", |row| Some(row.website_event_id)),
        text!("data_key", 500, data_key),
        Field::integer("data_type", |row| Some(row.value.data_type.code())),
        text!("string_value", 500, value.string_value),
        Field::decimal("number_value", 4, |row| row.value.number_value),
        Field::time("date_value", |row| row.value.date_value_ms),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// The properties of sessions, of each key the newest value.
    SESSION_DATA: SessionDataRow = Umami, "session_data", key 1, [
        Field::uuid("session_data_id", |row| Some(row.session_data_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        text!("data_key", 500, data_key),
        Field::integer("data_type", |row| Some(row.value.data_type.code())),
        text!("string_value", 500, value.string_value),
        Field::decimal("number_value", 4, |row| row.value.number_value),
        Field::time("date_value", |row| row.value.date_value_ms),
        text!("distinct_id", 50, distinct_id),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// Revenue of events.
    REVENUE: RevenueRow = Umami, "revenue", key 1, [
        Field::uuid("revenue_id", |row| Some(row.revenue_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("event_id", |row| Some(row.event_id)),
        text!("event_name", 50, event_name),
        text!("currency", 10, currency),
        Field::decimal("revenue", 4, |row| Some(row.revenue)),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// Chunks of recordings.
    SESSION_REPLAY: ChunkRow = NewerUmami, "session_replay", key 1, [
        Field::uuid("replay_id", |row| Some(row.replay_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("visit_id", |row| Some(row.visit_id)),
        Field::chunk_index("chunk_index", |row| Some(row.replay_id)),
        Field::bytes("events", |row| Some(&row.events)),
        Field::integer("event_count", |row| Some(row.event_count)),
        Field::time("started_at", |row| Some(row.started_at_ms)),
        Field::time("ended_at", |row| Some(row.ended_at_ms)),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// The distinct ids that identifies named in sessions; from 3.3 on.
    SESSION_LINK: SessionLinkRow = NewerUmami, "session_link", key 3, [
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        text!("distinct_id", 50, distinct_id),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// Clicks and scrolls. A version that lacks one of the columns that are not optional gets no row.
    HEATMAP_EVENT: HeatmapRow = NewerUmami, "heatmap_event", key 1, [
        Field::uuid("heatmap_event_id", |row| Some(row.heatmap_event_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("visit_id", |row| Some(row.visit_id)),
        text!("url_path", 500, url_path),
        Field::integer("event_type", |row| Some(row.kind as i32)),
        Field::integer("node_id", |row| row.node_id).optional(),
        Field::integer("x", |row| row.x),
        Field::integer("y", |row| row.y),
        Field::integer("page_x", |row| row.page_x).optional(),
        Field::integer("page_y", |row| row.page_y).optional(),
        Field::integer("page_w", |row| row.page_w).optional(),
        Field::integer("viewport_w", |row| row.viewport_w),
        Field::integer("viewport_h", |row| row.viewport_h),
        Field::integer("page_h", |row| row.page_h).optional(),
        Field::integer("scroll_pct", |row| row.scroll_pct),
        Field::chunk_index("replay_chunk_index", |row| row.recorded.map(|event| event.chunk_id)).optional(),
        Field::integer("replay_event_index", |row| row.recorded.map(|event| event.event_index)).optional(),
        Field::big_integer("replay_time_ms", |row| row.recorded.and_then(|event| event.time_ms)).optional(),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

rows! {
    /// Records that leave no other row and are applied.
    APPLIED: AppliedRow = Dashi, "applied", key 1, [
        Field::uuid("record_id", |row| Some(row.record_id)),
        Field::text("record_type", |row| Some(&row.record_type)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::big_integer("received_at", |row| Some(row.received_at_ms)),
    ]
}

rows! {
    /// Identifies that are applied.
    IDENTIFY: IdentifyRow = Dashi, "identify", key 1, [
        Field::uuid("event_id", |row| Some(row.event_id)),
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        text!("distinct_id", 50, distinct_id),
        Field::time("created_at", |row| Some(row.created_at_ms)),
    ]
}

/// People.
static PROFILE: Table = Table {
    name: "profile",
    owner: Owner::Dashi,
    key: 2,
    columns: &[
        Column::new("website_id", ColumnType::Uuid),
        Column::new("distinct_id", ColumnType::Text),
        Column::new("created_at", ColumnType::Integer),
    ],
};

rows! {
    /// The traits of people.
    PROFILE_TRAIT: TraitRow = Dashi, "profile_trait", key 3, [
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::text("distinct_id", |row| Some(&row.distinct_id)),
        Field::text("key", |row| Some(&row.key)),
        Field::integer("data_type", |row| data_type(&row.settled.value)),
        Field::text("string_value", |row| string(&row.settled.value)),
        Field::decimal("number_value", 4, |row| row.settled.value.as_ref()?.number_value),
        Field::big_integer("date_value", |row| row.settled.value.as_ref()?.date_value_ms),
        Field::big_integer("last_at", |row| Some(row.settled.last.received_at_ms)),
        Field::uuid("last_event_id", |row| Some(row.settled.last.event_id)),
        Field::big_integer("changed_at", |row| Some(row.settled.changed.received_at_ms)),
        Field::uuid("changed_event_id", |row| Some(row.settled.changed.event_id)),
        Field::uuid("changed_by", |row| Some(row.settled.changed_by)),
        Field::integer("conditional", |row| Some(i32::from(row.settled.conditional))),
    ]
}

rows! {
    /// The sends that are differences, or may be.
    PROFILE_WRITE: WriteRow = Dashi, "profile_write", key 5, [
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::text("distinct_id", |row| Some(&row.distinct_id)),
        Field::text("key", |row| Some(&row.key)),
        Field::big_integer("received_at", |row| Some(row.stamp.received_at_ms)),
        Field::uuid("event_id", |row| Some(row.stamp.event_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("device", |row| Some(row.device)),
        Field::integer("data_type", |row| data_type(&row.value)),
        Field::text("string_value", |row| string(&row.value)),
        Field::decimal("number_value", 4, |row| row.value.as_ref()?.number_value),
        Field::big_integer("date_value", |row| row.value.as_ref()?.date_value_ms),
        Field::big_integer("base_received_at", |row| row.base.map(|Stamp { received_at_ms, .. }| received_at_ms)),
        Field::uuid("base_event_id", |row| row.base.map(|Stamp { event_id, .. }| event_id)),
    ]
}

rows! {
    /// The last differing value that a device sent, by session, person and key.
    PROFILE_BASE: BaseRow = Dashi, "profile_base", key 4, [
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::uuid("device", |row| Some(row.device)),
        Field::text("distinct_id", |row| Some(&row.distinct_id)),
        Field::text("key", |row| Some(&row.key)),
        Field::integer("data_type", |row| data_type(&row.value)),
        Field::text("string_value", |row| string(&row.value)),
        Field::decimal("number_value", 4, |row| row.value.as_ref()?.number_value),
        Field::big_integer("date_value", |row| row.value.as_ref()?.date_value_ms),
        Field::big_integer("received_at", |row| Some(row.stamp.received_at_ms)),
        Field::uuid("event_id", |row| Some(row.stamp.event_id)),
    ]
}

rows! {
    /// Which sessions belong to which people.
    PROFILE_LINK: ProfileLink = Dashi, "profile_link", key 4, [
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::text("distinct_id", |row| Some(&row.distinct_id)),
        Field::integer("kind", |row| Some(row.kind.code())),
        Field::big_integer("first_at", |row| Some(row.first_ms)),
    ]
}

rows! {
    /// Which sessions made the links to anonymous sessions.
    LINK_SOURCE: LinkSource = Dashi, "link_source", key 4, [
        Field::uuid("website_id", |row| Some(row.website_id)),
        Field::uuid("by_session", |row| Some(row.by_session)),
        Field::uuid("session_id", |row| Some(row.session_id)),
        Field::text("distinct_id", |row| Some(&row.distinct_id)),
        Field::big_integer("first_at", |row| Some(row.first_ms)),
    ]
}

/// Records that are set aside.
static DEAD_LETTER: Table = Table {
    name: "dead_letter",
    owner: Owner::Dashi,
    key: 3,
    columns: &[
        Column::new("log_id", ColumnType::Text),
        Column::new("partition", ColumnType::Integer),
        Column::new("record_offset", ColumnType::Integer),
        Column::new("reason", ColumnType::Text),
        Column::new("record", ColumnType::Bytes),
        Column::new("tries", ColumnType::Integer),
        Column::new("discarded_at", ColumnType::Integer),
        Column::new("parking", ColumnType::Integer),
    ],
};

/// Records by hour, website and outcome.
static HOUR_COUNT: Table = Table {
    name: "hour_count",
    owner: Owner::Dashi,
    key: 4,
    columns: &[
        Column::new("log_id", ColumnType::Text),
        Column::new("partition", ColumnType::Integer),
        Column::new("hour", ColumnType::Integer),
        Column::new("source_id", ColumnType::Uuid),
        Column::new("applied", ColumnType::Integer),
        Column::new("duplicate", ColumnType::Integer),
        Column::new("dead", ColumnType::Integer),
    ],
};

/// Erasures.
static ERASURE: Table = Table {
    name: "erasure",
    owner: Owner::Dashi,
    key: 1,
    columns: &[
        Column::new("erasure_id", ColumnType::Uuid),
        Column::new("website_id", ColumnType::Uuid),
        Column::new("kind", ColumnType::Text),
        Column::new("subject", ColumnType::Text),
        Column::new("erased_at", ColumnType::Integer),
    ],
};

/// The records by which erasures were applied.
static ERASURE_COPY: Table = Table {
    name: "erasure_copy",
    owner: Owner::Dashi,
    key: 1,
    columns: &[
        Column::new("copy_id", ColumnType::Uuid),
        Column::new("erasure_id", ColumnType::Uuid),
        Column::new("log_id", ColumnType::Text),
        Column::new("partition", ColumnType::Integer),
        Column::new("record_offset", ColumnType::Integer),
    ],
};

/// The column `data_type` of an optional value; null for a deleted trait.
fn data_type(value: &Option<DataValue>) -> Option<i32> {
    value.as_ref().map(|value| value.data_type.code())
}

fn string(value: &Option<DataValue>) -> Option<&str> {
    value.as_ref()?.string_value.as_deref()
}
