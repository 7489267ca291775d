//! The rows of an event: the store's part of the answer to "was my event recorded?".

use dashi_domain::position::{LogId, Offset, Partition};
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

/// A record that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The log it lies in.
    pub log: LogId,
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
    /// The reason why it could not be applied.
    pub reason: String,
    /// When that was, milliseconds since 1970.
    pub set_aside_at_ms: i64,
    /// The record.
    pub record: Vec<u8>,
}

/// The columns of a dead letter as both backends read them: log, partition, offset, reason, time and record.
pub(crate) type DeadLetterColumns = (String, i64, i64, String, i64, Vec<u8>);

impl From<DeadLetterColumns> for SetAside {
    fn from((log, partition, offset, reason, set_aside_at_ms, record): DeadLetterColumns) -> Self {
        Self {
            log: LogId::new(log),
            partition: Partition::new(partition as u32),
            offset: Offset::new(offset as u64),
            reason,
            set_aside_at_ms,
            record,
        }
    }
}

/// The tables whose key is an event's id. An id is in at most one of them.
pub(crate) const IDENTITIES: [&str; 4] = ["website_event", "identify", "applied", "session_replay"];
