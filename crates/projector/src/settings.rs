//! Settings of a projector and of a replay.

use std::collections::HashSet;
use std::time::Duration;

use dashi_domain::fold::{Changes, FoldRules};
use dashi_domain::parking::ParkingLimits;
use dashi_domain::record::Record;
use dashi_domain::spans::Tracer;
use dashi_event_log::ReadLimit;
use uuid::Uuid;

/// Turns records into changes, given the events that the store holds already. It is [`dashi_domain::fold::fold`] except in
/// tests that need a fold which fails.
pub type Fold = fn(&[Record], &HashSet<Uuid>, &FoldRules) -> Changes;

/// Settings of a projector.
#[derive(Debug, Clone)]
pub struct ProjectorSettings {
    /// The consumer group, or the name of the projection in an embedded log.
    pub group: String,
    /// Name of this process, for people who look at claims.
    pub owner: String,
    /// The function that turns records into changes.
    pub fold: Fold,
    /// The rules of the fold.
    pub rules: FoldRules,
    /// The bounds within which later records of a session wait behind a dead letter of it; `None` if they do not wait.
    pub parking: Option<ParkingLimits>,
    /// Limits of one batch, and how long to wait for records.
    pub read_limit: ReadLimit,
    /// Most bytes of records that are folded and written at one moment, over all partitions of this process. A batch
    /// takes no more of them than there are.
    pub batches_bytes_max: usize,
    /// Least time between two batches of a partition, unless the last one was full.
    pub batch_interval: Duration,
    /// Age of a partition's oldest record that is not applied, from which on new sessions' records are applied before it.
    /// `None`: they never are.
    pub live_first_after: Option<Duration>,
    /// The longest wait between two tries while the log or the store is away.
    pub retry_wait_max: Duration,
    /// The wait between two tries of a partition that has failed.
    pub failed_retry: Duration,
    /// Whether the store may go on with a log whose checkpoints it does not hold, beside those of another one.
    pub accept_new_log: bool,
    /// Takes the spans of records. A replay has none.
    pub tracer: Tracer,
}
