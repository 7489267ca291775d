//! The rows of an event: the store's part of the answer to "was my event recorded?".

use serde::Serialize;
use uuid::Uuid;

/// The rows of an event that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedEvent {
    /// The table whose row shows that it was applied.
    pub table: &'static str,
    /// Its website, link or pixel.
    pub website_id: Uuid,
    /// Its session.
    pub session_id: Uuid,
    /// When it happened, milliseconds since 1970: the client's time if it gave one, else that of its arrival.
    pub created_at_ms: i64,
    /// Whether the session's row is there.
    pub has_session: bool,
    /// Number of its rows in `event_data`.
    pub event_data: u64,
    /// Whether it has a row in `revenue`.
    pub has_revenue: bool,
}

/// The tables whose key is an event's id. An id is in at most one of them.
pub(crate) const IDENTITIES: [&str; 4] = ["website_event", "identify", "applied", "session_replay"];
