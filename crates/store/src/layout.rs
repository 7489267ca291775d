//! Layouts of logs on Kafka, and the processes that append to them: the rows by which a growth of the number of partitions
//! is agreed on. `dashi_domain::layout` has the rules.

use dashi_domain::layout::{Growth, Layout, Passed};
use dashi_domain::position::LogId;
use uuid::Uuid;

/// How long a process that keeps to a lease may be silent before a growth goes on without it, in seconds. Far longer than the
/// lease itself.
pub(crate) const LEASED_SILENT_S: i64 = 30;

/// How long any other process may be silent before it counts as gone for good, in seconds.
pub(crate) const SILENT_S: i64 = 24 * 3_600;

/// A layout as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLayout {
    /// The layout.
    pub layout: Layout,
    /// Whether it is in force.
    pub state: Growth,
    /// When the state changed last, milliseconds since 1970, by the store's clock.
    pub changed_at_ms: i64,
    /// How long ago that was, in milliseconds, by the store's clock.
    pub age_ms: i64,
    /// Whether the time is over within which all processes were to acknowledge it.
    pub is_expired: bool,
}

/// A process that appends to a log on Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appender {
    /// This run of it.
    pub run_id: Uuid,
    /// The log.
    pub log: LogId,
    /// Its name, for people.
    pub name: String,
    /// The place that it occupies, such as an address to listen on: a later run at the same place replaces it.
    pub place: String,
    /// Whether it appends nothing when it has not read the layouts for some seconds.
    pub keeps_lease: bool,
}

/// A process that appends, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppenderState {
    /// This run of it.
    pub run_id: Uuid,
    /// Its name, for people.
    pub name: String,
    /// Whether it appends nothing when it has not read the layouts for some seconds.
    pub keeps_lease: bool,
    /// The version of the layout that it has acknowledged.
    pub acknowledged: u32,
    /// How long it has not been heard of, in milliseconds, by the store's clock.
    pub silent_ms: i64,
}

impl AppenderState {
    /// Whether a growth waits for its acknowledgement of this version.
    pub const fn is_awaited(&self, version: u32) -> bool {
        let silent_s_max = if self.keeps_lease { LEASED_SILENT_S } else { SILENT_S };
        self.acknowledged < version && self.silent_ms <= silent_s_max * 1_000
    }
}

/// A layout as both backends read it: version, partitions, state, when it changed, how long ago, whether it is expired.
pub(crate) type LayoutColumns = (i64, i64, String, i64, i64, bool);

pub(crate) fn stored(
    (version, partitions, state, changed_at_ms, age_ms, is_expired): LayoutColumns,
) -> StoredLayout {
    StoredLayout {
        layout: Layout { version: version as u32, partitions: partitions as u32 },
        // The table has no others.
        state: Growth::named(&state).unwrap_or(Growth::Aborted),
        changed_at_ms,
        age_ms,
        is_expired,
    }
}

/// The last barrier of a partition as its columns have it: version, partitions before and since.
pub(crate) fn passed((version, from, to): (i64, i64, i64)) -> Option<Passed> {
    (version > 0).then_some(Passed { version: version as u32, from: from as u32, to: to as u32 })
}

/// The columns of the last barrier; none if there is none.
pub(crate) fn columns(passed: Option<Passed>) -> [Option<i64>; 3] {
    match passed {
        Some(Passed { version, from, to }) => [version, from, to].map(|number| Some(i64::from(number))),
        None => [None; 3],
    }
}
