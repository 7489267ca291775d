//! The projection's tables and columns, as far as rows are compared: one list for all backends.

/// A table of the projection.
#[derive(Debug)]
pub struct Table {
    /// Its name, without the schema or prefix of Dashi's own.
    pub name: &'static str,
    /// Whether it is Dashi's own: in the schema `dashi` (PostgreSQL) or with the prefix `dashi_` (SQLite).
    pub own: bool,
    /// Its columns; the first ones are the key that rows are ordered by.
    pub columns: &'static [(&'static str, Kind)],
    /// How many of the columns are the key.
    pub key: usize,
}

/// How a column's value is written as text, the same from every backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 36 lower-case characters.
    Uuid,
    /// As it is.
    Text,
    /// Decimal.
    Integer,
    /// Milliseconds since 1970.
    Time,
    /// Decimal with this many digits behind the point.
    Decimal(u8),
    /// Hexadecimal.
    Bytes,
}

use Kind::{Bytes, Decimal, Integer, Text, Time, Uuid};

/// Every table of the projection.
pub const ALL: &[&Table] = &[
    &SESSION,
    &WEBSITE_EVENT,
    &EVENT_DATA,
    &SESSION_DATA,
    &REVENUE,
    &SESSION_REPLAY,
    &HEATMAP_EVENT,
    &IDENTIFY,
    &APPLIED,
    &PROFILE,
    &PROFILE_TRAIT,
    &PROFILE_WRITE,
    &PROFILE_BASE,
    &PROFILE_LINK,
    &DEAD_LETTER,
];

static SESSION: Table = Table {
    name: "session",
    own: false,
    key: 1,
    columns: &[
        ("session_id", Uuid),
        ("website_id", Uuid),
        ("browser", Text),
        ("os", Text),
        ("device", Text),
        ("screen", Text),
        ("language", Text),
        ("country", Text),
        ("region", Text),
        ("city", Text),
        ("distinct_id", Text),
        ("created_at", Time),
    ],
};

static WEBSITE_EVENT: Table = Table {
    name: "website_event",
    own: false,
    key: 1,
    columns: &[
        ("event_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("visit_id", Uuid),
        ("created_at", Time),
        ("url_path", Text),
        ("url_query", Text),
        ("utm_source", Text),
        ("utm_medium", Text),
        ("utm_campaign", Text),
        ("utm_content", Text),
        ("utm_term", Text),
        ("gclid", Text),
        ("fbclid", Text),
        ("msclkid", Text),
        ("ttclid", Text),
        ("li_fat_id", Text),
        ("twclid", Text),
        ("referrer_path", Text),
        ("referrer_query", Text),
        ("referrer_domain", Text),
        ("page_title", Text),
        ("hostname", Text),
        ("event_type", Integer),
        ("event_name", Text),
        ("tag", Text),
        ("lcp", Decimal(1)),
        ("inp", Decimal(1)),
        ("cls", Decimal(4)),
        ("fcp", Decimal(1)),
        ("ttfb", Decimal(1)),
    ],
};

static EVENT_DATA: Table = Table {
    name: "event_data",
    own: false,
    key: 1,
    columns: &[
        ("event_data_id", Uuid),
        ("website_id", Uuid),
        ("website_event_id", Uuid),
        ("data_key", Text),
        ("data_type", Integer),
        ("string_value", Text),
        ("number_value", Decimal(4)),
        ("date_value", Time),
        ("created_at", Time),
    ],
};

static SESSION_DATA: Table = Table {
    name: "session_data",
    own: false,
    key: 1,
    columns: &[
        ("session_data_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("data_key", Text),
        ("data_type", Integer),
        ("string_value", Text),
        ("number_value", Decimal(4)),
        ("date_value", Time),
        ("distinct_id", Text),
        ("created_at", Time),
    ],
};

static REVENUE: Table = Table {
    name: "revenue",
    own: false,
    key: 1,
    columns: &[
        ("revenue_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("event_id", Uuid),
        ("event_name", Text),
        ("currency", Text),
        ("revenue", Decimal(4)),
        ("created_at", Time),
    ],
};

static SESSION_REPLAY: Table = Table {
    name: "session_replay",
    own: false,
    key: 1,
    columns: &[
        ("replay_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("visit_id", Uuid),
        ("chunk_index", Integer),
        ("events", Bytes),
        ("event_count", Integer),
        ("started_at", Time),
        ("ended_at", Time),
        ("created_at", Time),
    ],
};

static HEATMAP_EVENT: Table = Table {
    name: "heatmap_event",
    own: false,
    key: 1,
    columns: &[
        ("heatmap_event_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("visit_id", Uuid),
        ("url_path", Text),
        ("event_type", Integer),
        ("node_id", Integer),
        ("x", Integer),
        ("y", Integer),
        ("page_x", Integer),
        ("page_y", Integer),
        ("page_w", Integer),
        ("viewport_w", Integer),
        ("viewport_h", Integer),
        ("page_h", Integer),
        ("scroll_pct", Integer),
        ("replay_chunk_index", Integer),
        ("replay_event_index", Integer),
        ("replay_time_ms", Integer),
        ("created_at", Time),
    ],
};

static APPLIED: Table = Table {
    name: "applied",
    own: true,
    key: 1,
    columns: &[
        ("record_id", Uuid),
        ("record_type", Text),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("received_at", Integer),
    ],
};

static IDENTIFY: Table = Table {
    name: "identify",
    own: true,
    key: 1,
    columns: &[
        ("event_id", Uuid),
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("distinct_id", Text),
        ("created_at", Time),
    ],
};

static PROFILE: Table = Table {
    name: "profile",
    own: true,
    key: 2,
    columns: &[("website_id", Uuid), ("distinct_id", Text), ("created_at", Integer)],
};

static PROFILE_TRAIT: Table = Table {
    name: "profile_trait",
    own: true,
    key: 3,
    columns: &[
        ("website_id", Uuid),
        ("distinct_id", Text),
        ("key", Text),
        ("data_type", Integer),
        ("string_value", Text),
        ("number_value", Decimal(4)),
        ("date_value", Integer),
        ("last_at", Integer),
        ("last_event_id", Uuid),
        ("changed_at", Integer),
        ("changed_event_id", Uuid),
        ("changed_by", Uuid),
        ("conditional", Integer),
    ],
};

static PROFILE_WRITE: Table = Table {
    name: "profile_write",
    own: true,
    key: 5,
    columns: &[
        ("website_id", Uuid),
        ("distinct_id", Text),
        ("key", Text),
        ("received_at", Integer),
        ("event_id", Uuid),
        ("session_id", Uuid),
        ("device", Uuid),
        ("data_type", Integer),
        ("string_value", Text),
        ("number_value", Decimal(4)),
        ("date_value", Integer),
        ("base_received_at", Integer),
        ("base_event_id", Uuid),
    ],
};

static PROFILE_BASE: Table = Table {
    name: "profile_base",
    own: true,
    key: 4,
    columns: &[
        ("session_id", Uuid),
        ("device", Uuid),
        ("distinct_id", Text),
        ("key", Text),
        ("data_type", Integer),
        ("string_value", Text),
        ("number_value", Decimal(4)),
        ("date_value", Integer),
        ("received_at", Integer),
        ("event_id", Uuid),
    ],
};

static PROFILE_LINK: Table = Table {
    name: "profile_link",
    own: true,
    key: 4,
    columns: &[
        ("website_id", Uuid),
        ("session_id", Uuid),
        ("distinct_id", Text),
        ("kind", Integer),
        ("first_at", Integer),
    ],
};

static DEAD_LETTER: Table = Table {
    name: "dead_letter",
    own: true,
    key: 3,
    columns: &[
        ("log_id", Text),
        ("partition", Integer),
        ("record_offset", Integer),
        ("reason", Text),
        ("record", Bytes),
    ],
};
