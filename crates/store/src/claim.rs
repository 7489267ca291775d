//! Ownership of a partition.

use dashi_domain::fold::Outcomes;
use dashi_domain::guard::{GuardRow, Position};
use dashi_domain::layout::Passed;
use dashi_domain::missing::Missing;
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset, Partition};
use dashi_domain::tail::Tail;

use crate::ClaimError;

/// The right to write the rows that a partition folds into, until someone claims it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The log.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// The number of this ownership.
    pub epoch: Epoch,
    /// Where the projection stood when it was claimed.
    pub resume_from: Checkpoint,
    /// The fingerprint of the record before `resume_from`, if it is known; see [`dashi_domain::missing::fingerprint`].
    pub fingerprint: Option<i64>,
    /// Whether the last error that was noted is not over, as far as the store knows.
    pub has_open_error: bool,
    /// The last barrier that the partition's writers have passed.
    pub layout: Option<Passed>,
    /// The partition's tail, if it has one.
    pub tail: Option<Tail>,
    /// The fingerprint of the record before the tail's end, if it is known.
    pub tail_fingerprint: Option<i64>,
    /// The position that its commits move.
    pub position: Position,
}

impl Claim {
    /// A claim from the row that it wrote.
    pub(crate) fn made(log: &LogId, partition: Partition, row: ClaimColumns) -> Self {
        let (epoch, checkpoint, fingerprint, has_open_error, ..) = row;
        let (.., version, before, since, from, to, applied, tail_fingerprint) = row;
        let tail = crate::tail::tail((from, to, applied));
        Self {
            log: log.clone(),
            partition,
            epoch: Epoch::new(epoch as u64),
            resume_from: Checkpoint::at(Offset::new(checkpoint as u64)),
            fingerprint,
            has_open_error,
            layout: crate::layout::passed((version, before, since)),
            tail,
            tail_fingerprint,
            position: crate::tail::position(tail),
        }
    }

    /// The same claim, whose commits move the end of the tail.
    #[must_use]
    pub fn of_tail(&self) -> Self {
        Self { position: Position::Tail, ..self.clone() }
    }

    /// The checkpoint from which this writer goes on, by the row that is stored.
    ///
    /// # Errors
    /// [`ClaimError::Fenced`].
    pub(crate) fn resume(&self, stored: GuardRow) -> Result<Checkpoint, ClaimError> {
        stored.resume(self.epoch).map_err(|_| ClaimError::Fenced {
            partition: self.partition,
            held: self.epoch,
            current: stored.epoch,
        })
    }
}

/// The row of a claim as both backends read it: epoch, checkpoint, the last record's fingerprint, whether the last error is
/// not over, the last barrier: version, partitions before and since; and the tail: from, to, applied,
/// fingerprint.
pub(crate) type ClaimColumns =
    (i64, i64, Option<i64>, bool, i64, i64, i64, Option<i64>, Option<i64>, i64, Option<i64>);

/// An error to be noted with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorNote<'a> {
    /// One word for programs, such as "beyond".
    pub kind: &'a str,
    /// The error in words, with its values and its causes.
    pub text: &'a str,
    /// When it happened; milliseconds since 1970.
    pub at_ms: i64,
    /// Whether it is over already: it was an event, not a condition that lasts.
    pub is_over: bool,
}

/// Records that were not in the log where a checkpoint passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRange {
    /// The log.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// Where, how many, and why.
    pub missing: Missing,
    /// When it was noted; milliseconds since 1970.
    pub noted_at_ms: i64,
}

/// The store's state of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionState {
    /// The log.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// The first offset not applied, except those that the tail has applied.
    pub checkpoint: Checkpoint,
    /// Records behind a backlog that are applied before it.
    pub tail: Option<Tail>,
    /// The fingerprint of the record before the checkpoint, if it is known.
    pub fingerprint: Option<i64>,
    /// The newest claim's number.
    pub epoch: Epoch,
    /// The owner that made that claim.
    pub owner: String,
    /// The outcomes of all records so far.
    pub outcomes: Outcomes,
    /// Records that were not in the log where the checkpoint passed.
    pub missing: u64,
    /// Offsets that the checkpoint passed and that never held a record for a reader.
    pub markers: u64,
    /// Offsets that the checkpoint went back over, because the log ended before it.
    pub rewound: u64,
    /// When the checkpoint last moved, or was claimed; milliseconds since 1970.
    pub updated_at_ms: i64,
    /// The last barrier that the partition's writers have passed.
    pub layout: Option<Passed>,
    /// Whether a live projector claimed it, not only a replay.
    pub is_live: bool,
    /// The last error, if there was any.
    pub last_error: Option<String>,
    /// Its kind; `None` if an older program noted it.
    pub last_error_kind: Option<String>,
    /// When that was; milliseconds since 1970.
    pub last_error_at_ms: Option<i64>,
    /// When it was over; milliseconds since 1970. `None` if it is not, or nothing went wrong.
    pub last_error_over_at_ms: Option<i64>,
}
