//! Who projects which partition: decided outside, told to the projector as plain events.

use std::fs::File;

use dashi_domain::position::Partition;

use crate::kafka::KafkaMembership;
use crate::{LogError, PartitionCheckpoint};

/// A change in what this process is to project. It decides nothing about rows: a stale owner is made harmless by
/// the store's fencing epoch, not by this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Project these, from the store's checkpoint on.
    Assigned(Vec<Partition>),
    /// Stop projecting these.
    Revoked(Vec<Partition>),
}

/// A seat among those who project a log.
pub enum Membership {
    /// The only seat of an embedded log.
    Sole(SoleMembership),
    /// A member of a Kafka consumer group with cooperative rebalancing.
    Group(KafkaMembership),
}

impl Membership {
    /// The next change; waits without limit, for there may never be one. Cancelling loses nothing.
    ///
    /// # Errors
    /// The membership is lost for good, and the process should end.
    pub async fn next(&mut self) -> Result<Ownership, LogError> {
        match self {
            Self::Sole(sole) => sole.next().await,
            Self::Group(group) => group.next().await,
        }
    }

    /// Has the log save how far the projection has come, for retention and for the tools that show lag. Returns the checkpoints
    /// that were found saved since the last call: on Kafka those of earlier calls, for its answer is not waited for. A
    /// position that is not returned within some seconds was not saved: pass it again. Failures are logged here, once
    /// until a position is saved again.
    pub async fn save(&mut self, checkpoints: &[PartitionCheckpoint]) -> Vec<PartitionCheckpoint> {
        match self {
            Self::Sole(sole) => sole.save(checkpoints).await,
            Self::Group(group) => group.save(checkpoints),
        }
    }

    /// Leaves, so that others take over at once rather than after a time-out.
    pub async fn leave(self) {
        if let Self::Group(group) = self {
            group.leave().await;
        }
    }
}

/// See [`Membership::Sole`]. All partitions, once, for as long as it lives.
pub struct SoleMembership {
    pub(crate) log: crate::EmbeddedLog,
    pub(crate) group: String,
    pub(crate) assigned: bool,
    /// Whether the last save failed.
    pub(crate) is_failing: bool,
    /// Holds the lock that keeps a second projector away; the kernel lets go of it when the process ends,
    /// however it ends.
    pub(crate) _lock: File,
}

impl SoleMembership {
    async fn next(&mut self) -> Result<Ownership, LogError> {
        if self.assigned {
            return std::future::pending().await;
        }
        self.assigned = true;
        Ok(Ownership::Assigned((0..self.log.partition_count()).map(Partition::new).collect()))
    }

    async fn save(&mut self, checkpoints: &[PartitionCheckpoint]) -> Vec<PartitionCheckpoint> {
        if checkpoints.is_empty() {
            return Vec::new();
        }
        match self.log.save_checkpoints(&self.group, checkpoints).await {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the event log saves again how far the projection has come");
                }
                checkpoints.to_vec()
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        error = %error, cause, "the event log cannot save how far the projection has come; trying again"
                    );
                }
                Vec::new()
            }
        }
    }
}
