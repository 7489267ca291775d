//! Which process projects which partition: the log's backend decides it and notifies the projector.

use async_recursion::async_recursion as boxed;
use dashi_domain::position::Partition;

use crate::embedded::SoleMembership;
use crate::kafka::KafkaMembership;
use crate::{LogError, PartitionCheckpoint};

/// A change in the partitions that this process is to project. It does not protect rows: the store's fencing epoch makes
/// a stale owner harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Project these, from the store's checkpoint on.
    Assigned(Vec<Partition>),
    /// Stop projecting these.
    Revoked(Vec<Partition>),
}

/// A seat among the processes that project a log.
pub enum Membership {
    /// The only seat of an embedded log.
    Sole(SoleMembership),
    /// A member of a Kafka consumer group with cooperative rebalancing.
    Group(KafkaMembership),
}

impl Membership {
    /// The next change. Waits without limit, because there may never be another change. Cancelling loses nothing.
    ///
    /// # Errors
    /// The membership is lost for good, and the process should end.
    #[boxed]
    pub async fn next(&mut self) -> Result<Ownership, LogError> {
        match self {
            Self::Sole(sole) => sole.next().await,
            Self::Group(group) => group.next().await,
        }
    }

    /// Saves checkpoints in the log, for retention and for the tools that show lag. Returns the checkpoints that are known
    /// to be saved since the last call: on Kafka those of earlier calls, because its answer is not waited for. A
    /// checkpoint that is not returned within some seconds was not saved: pass it again. Failures are logged here, once
    /// until a checkpoint is saved again.
    #[boxed]
    pub async fn save(&mut self, checkpoints: &[PartitionCheckpoint]) -> Vec<PartitionCheckpoint> {
        match self {
            Self::Sole(sole) => sole.save(checkpoints).await,
            Self::Group(group) => group.save(checkpoints),
        }
    }

    /// Leaves, so that others take over at once rather than after a time-out.
    #[boxed]
    pub async fn leave(self) {
        if let Self::Group(group) = self {
            group.leave().await;
        }
    }
}
