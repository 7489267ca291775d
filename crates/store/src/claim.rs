//! Ownership of a partition.

use dashi_domain::fold::Outcomes;
use dashi_domain::position::{Checkpoint, Epoch, LogId, Partition};

/// The right to write what a partition folds into, until someone claims it anew.
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
}

/// What the store knows of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionState {
    /// The log.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// The first offset not applied.
    pub checkpoint: Checkpoint,
    /// The newest claim's number.
    pub epoch: Epoch,
    /// Who made that claim.
    pub owner: String,
    /// What became of all records so far.
    pub outcomes: Outcomes,
    /// When the checkpoint last moved, or was claimed; milliseconds since 1970.
    pub updated_at_ms: i64,
    /// What went wrong last, if anything did.
    pub last_error: Option<String>,
    /// When that was; milliseconds since 1970.
    pub last_error_at_ms: Option<i64>,
}
