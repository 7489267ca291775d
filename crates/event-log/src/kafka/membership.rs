//! The consumer group: its client holds this process's seat and never fetches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, Offset, Partition};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientContext, TopicPartitionList};
use tokio::sync::Notify;

use super::KafkaLog;
use super::client::{Quiet, REPEAT, base_config, note};
use crate::{LogError, Membership, Ownership, PartitionCheckpoint};

impl KafkaLog {
    pub(crate) fn membership(&self, group: &str) -> Result<Membership, LogError> {
        let settings = &self.0.settings;
        let context = GroupContext::default();
        let changes = Arc::clone(&context.changes);
        let mut config = base_config(settings);
        if let Some(id) = &settings.instance_id {
            config.set("group.instance.id", id);
        }
        let consumer: StreamConsumer<GroupContext> = config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", settings.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (settings.session_timeout.as_millis() / 4).max(1).to_string())
            .create_with_context(context)
            .map_err(LogError::away("joining the consumer group"))?;
        consumer.subscribe(&[&settings.topic]).map_err(LogError::away("joining the consumer group"))?;
        Ok(Membership::Group(KafkaMembership {
            topic: settings.topic.clone(),
            instance_id: settings.instance_id.clone(),
            consumer,
            changes,
            is_failing: false,
            warned_at: None,
        }))
    }
}

/// Time for a revocation to take effect inside the library before the next change of ownership.
///
/// A partition that is revoked, assigned and revoked again, as it happens when a topic is deleted and created at once, is
/// stopped twice if the first stop is still under way, and librdkafka up to 2.12 then ends the process by an assertion
/// (confluentinc/librdkafka#5574).
const REVOCATION: Duration = Duration::from_millis(300);

/// Changes of ownership, in the order in which the group made them, and the group's answers to commits of offsets.
#[derive(Default)]
struct Changes {
    waiting: StdMutex<VecDeque<Ownership>>,
    arrived: Notify,
    saves: StdMutex<Saves>,
    revoked_at: StdMutex<Option<Instant>>,
}

/// Answers of the group to commits of offsets, since they were last taken.
#[derive(Default)]
struct Saves {
    /// The newest committed checkpoint of each partition.
    saved: BTreeMap<Partition, Checkpoint>,
    /// Why other checkpoints are not committed.
    refused: Option<KafkaError>,
}

#[derive(Default)]
struct GroupContext {
    changes: Arc<Changes>,
    quiet: Quiet,
}

impl ClientContext for GroupContext {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        note(facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.trouble(&error, reason);
    }
}

impl ConsumerContext for GroupContext {
    /// Runs inside a poll of the client. It waits only where a change follows a revocation at once.
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        let revoked_at = *self.changes.revoked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = revoked_at.map_or(Duration::ZERO, |at| REVOCATION.saturating_sub(at.elapsed()));
        if rest.is_zero() {
            return;
        }
        let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match runtime {
            // Other tasks of the runtime go on meanwhile.
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => {
                tokio::task::block_in_place(|| std::thread::sleep(rest));
            }
            _ => std::thread::sleep(rest),
        }
    }

    /// Runs inside a poll of the client and must not wait: it queues the change and decides nothing. The client itself
    /// is paused, because records come through readers.
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let change = match rebalance {
            Rebalance::Assign(assigned) => {
                if let Err(error) = consumer.pause(assigned) {
                    tracing::warn!(error = %error, "the group's client could not be paused; it fetches records that nobody reads");
                }
                Ownership::Assigned(partitions(assigned))
            }
            Rebalance::Revoke(revoked) => {
                *self.changes.revoked_at.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Instant::now());
                Ownership::Revoked(partitions(revoked))
            }
            Rebalance::Error(error) => {
                tracing::error!(error = %error, "the consumer group could not be rebalanced");
                return;
            }
        };
        self.changes.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
        self.changes.arrived.notify_one();
    }

    /// Runs inside a poll of the client, too.
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let answered = saves(result, offsets);
        let mut saves = self.changes.saves.lock().unwrap_or_else(PoisonError::into_inner);
        saves.saved.extend(answered.saved);
        saves.refused = answered.refused.or(saves.refused.take());
    }
}

/// The checkpoints that the group has committed, and the first error of those that it has not.
fn saves(result: KafkaResult<()>, offsets: &TopicPartitionList) -> Saves {
    let mut saves = Saves { refused: result.as_ref().err().cloned(), ..Saves::default() };
    for element in offsets.elements() {
        match (&result, element.error(), element.offset()) {
            (Ok(()), Ok(()), rdkafka::Offset::Offset(offset)) => {
                let checkpoint = Checkpoint::at(Offset::new(offset.max(0) as u64));
                saves.saved.insert(Partition::new(element.partition() as u32), checkpoint);
            }
            (_, Err(error), _) => saves.refused = saves.refused.or(Some(error)),
            _ => {}
        }
    }
    saves
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|element| Partition::new(element.partition() as u32)).collect()
}

/// See [`Membership::Group`].
pub struct KafkaMembership {
    topic: String,
    instance_id: Option<String>,
    consumer: StreamConsumer<GroupContext>,
    changes: Arc<Changes>,
    /// Whether the last save that was answered failed.
    is_failing: bool,
    /// When an error of the client was logged last.
    warned_at: Option<Instant>,
}

impl KafkaMembership {
    pub(crate) async fn next(&mut self) -> Result<Ownership, LogError> {
        loop {
            let change = self.changes.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match change {
                Some(Ownership::Assigned(none) | Ownership::Revoked(none)) if none.is_empty() => continue,
                Some(change) => return Ok(change),
                None => {}
            }
            tokio::select! {
                () = self.changes.arrived.notified() => {}
                // Polled so that the group's protocol goes on. A record that arrived before the pause is dropped: readers
                // read it, too.
                received = self.consumer.recv() => if let Err(error) = received {
                    self.is_member()?;
                    self.warn_of(&error);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                },
            }
        }
    }

    /// Warns once a minute at most: the client repeats its errors, of two kinds in turn, for as long as the brokers are away.
    fn warn_of(&mut self, error: &KafkaError) {
        if self.warned_at.is_none_or(|at| at.elapsed() >= REPEAT) {
            tracing::warn!(error = %error, "the consumer group's client has an error; it keeps trying");
            self.warned_at = Some(Instant::now());
        }
    }

    /// Whether the group still has this member: with a name, it is another's as soon as another joins under it.
    fn is_member(&self) -> Result<(), LogError> {
        match self.consumer.client().fatal_error() {
            Some((RDKafkaErrorCode::FencedInstanceId, _)) => {
                Err(LogError::Fenced { instance_id: self.instance_id.clone().unwrap_or_default() })
            }
            _ => Ok(()),
        }
    }

    /// Commits in the background, and returns the checkpoints that earlier calls have committed. The group refuses offsets
    /// of partitions that were lost in the meantime, as it should.
    pub(crate) fn save(&mut self, checkpoints: &[PartitionCheckpoint]) -> Vec<PartitionCheckpoint> {
        let answered =
            std::mem::take(&mut *self.changes.saves.lock().unwrap_or_else(PoisonError::into_inner));
        let mut refused = answered.refused;
        let mut offsets = TopicPartitionList::new();
        for (partition, checkpoint) in checkpoints {
            let offset = rdkafka::Offset::Offset(checkpoint.offset().number() as i64);
            if let Err(error) = offsets.add_partition_offset(&self.topic, partition.number() as i32, offset) {
                refused = Some(error);
            }
        }
        if offsets.count() > 0
            && let Err(error) = self.consumer.commit(&offsets, CommitMode::Async)
        {
            refused = Some(error);
        }
        if let Some(error) = refused {
            // While partitions move, the group refuses offsets of those that have moved, as it should.
            let moves = matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::RebalanceInProgress
                        | RDKafkaErrorCode::IllegalGeneration
                        | RDKafkaErrorCode::UnknownMemberId
                )
            );
            if !moves && !std::mem::replace(&mut self.is_failing, true) {
                tracing::warn!(
                    error = %error, "the consumer group refuses the offsets from which tools compute lag; trying again"
                );
            }
        } else if !answered.saved.is_empty() && std::mem::take(&mut self.is_failing) {
            tracing::info!("the consumer group accepts offsets again");
        }
        answered.saved.into_iter().collect()
    }

    pub(crate) async fn leave(self) {
        // Closing the client leaves the group, and blocks until it has.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(self)).await {
            tracing::warn!(error = %error, "leaving the consumer group failed");
        }
    }
}
