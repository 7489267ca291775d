//! The projector: starts and stops the tasks of partitions as they are assigned and revoked. A partition fails alone: its
//! task stays, and tries again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use dashi_domain::position::{LogId, Partition};
use dashi_event_log::{EventLog, LogError, Membership, Ownership};
use dashi_store::{Store, StoreError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::ProjectorMetrics;
use crate::partition::{Mode, PartitionTask, Shared};
use crate::progress::Progress;
use crate::settings::ProjectorSettings;
use crate::state::ProjectorState;

/// How often the log is asked to save checkpoints.
const TICK: Duration = Duration::from_secs(1);

/// Why a projector ended. An error of one partition is none of these: that partition fails alone, and the projector goes
/// on.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// The store holds the projection of another log.
    #[error(
        "the store holds the projection of the log {stored}, not of {log}: to go on with the new log beside it, \
         start once with --accept-new-log; to start afresh, replay into an empty store"
    )]
    OtherLog {
        /// The log that was given.
        log: LogId,
        /// The log whose checkpoints the store holds.
        stored: LogId,
    },
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log refuses this projector.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Projects the partitions that the log assigns to this process.
pub struct Projector(Arc<Shared>);

impl Projector {
    /// A projector of `log` into `store`. `progress` shows its state, also after it has ended.
    pub fn new(
        log: EventLog,
        store: Store,
        settings: ProjectorSettings,
        metrics: ProjectorMetrics,
        progress: Progress,
    ) -> Self {
        Self(Arc::new(Shared::new(log, store, settings, progress, metrics)))
    }

    /// Projects until `stop`. Then it commits the batches that were begun, and saves its checkpoints in the log.
    ///
    /// # Errors
    /// See [`ProjectorError`]. A partition that fails is no error of the projector: its state in `progress` is failed, it is
    /// tried again at an interval, and the others go on.
    #[boxed]
    pub async fn run(self, stop: CancellationToken) -> Result<(), ProjectorError> {
        self.check_log().await?;
        let mut membership = self.0.log.membership(&self.0.settings.group).await?;
        self.0.progress.set_projector(ProjectorState::Up);
        let mut tasks = Tasks::default();
        let ended = self.conduct(&mut membership, &mut tasks, &stop).await;
        for stop in tasks.stops.values() {
            stop.cancel();
        }
        while tasks.set.join_next().await.is_some() {}
        self.save(&mut membership).await;
        membership.leave().await;
        ended
    }

    /// Refuses a log other than the store's own: its offsets mean other records.
    async fn check_log(&self) -> Result<(), ProjectorError> {
        let logs = self.0.store.logs().await?;
        match logs.first() {
            Some(stored) if !logs.contains(self.0.log.id()) && !self.0.settings.accept_new_log => {
                Err(ProjectorError::OtherLog { log: self.0.log.id().clone(), stored: stored.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Starts and stops tasks until `stop` or until the membership is lost.
    async fn conduct(
        &self,
        membership: &mut Membership,
        tasks: &mut Tasks,
        stop: &CancellationToken,
    ) -> Result<(), ProjectorError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                change = membership.next() => match change? {
                    Ownership::Assigned(partitions) => {
                        tracing::info!(partitions = %numbers(&partitions), "assigned");
                        self.0.metrics.assigned.inc_by(partitions.len() as u64);
                        for partition in partitions {
                            tasks.start(self, partition);
                        }
                    }
                    Ownership::Revoked(partitions) => {
                        tracing::info!(partitions = %numbers(&partitions), "revoked");
                        self.0.metrics.revoked.inc_by(partitions.len() as u64);
                        for partition in partitions {
                            tasks.stop(partition);
                            self.0.progress.revoked(partition);
                        }
                    }
                },
                Some(ended) = tasks.set.join_next() => if let Err(error) = ended {
                    tracing::error!(error = %error, "the supervision of a partition ended with a panic");
                },
                _ = tick.tick() => self.save(membership).await,
            }
        }
    }

    /// Has the log save the checkpoints that it has not saved yet.
    async fn save(&self, membership: &mut Membership) {
        let saved = membership.save(&self.0.progress.take_unsaved()).await;
        self.0.progress.saved(&saved);
    }
}

/// The tasks of partitions, and the token that stops each.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    stops: HashMap<Partition, CancellationToken>,
}

impl Tasks {
    /// Starts a task; one of the same partition that still runs is stopped.
    fn start(&mut self, projector: &Projector, partition: Partition) {
        self.stop(partition);
        projector.0.progress.assigned(partition);
        let mode = Mode::Live { failed_retry: projector.0.settings.failed_retry };
        let (shared, stop) = (Arc::clone(&projector.0), CancellationToken::new());
        let task = PartitionTask::new(shared, partition, mode, stop.clone());
        self.stops.insert(partition, stop);
        self.set.spawn(task.supervise());
    }

    fn stop(&mut self, partition: Partition) {
        if let Some(stop) = self.stops.remove(&partition) {
            stop.cancel();
        }
    }
}

/// The numbers of partitions in ascending order, with a run of three or more as its ends: `0-7,9`.
fn numbers(partitions: &[Partition]) -> String {
    let mut numbers: Vec<u32> = partitions.iter().map(|partition| partition.number()).collect();
    numbers.sort_unstable();
    let runs = numbers.chunk_by(|number, next| number + 1 == *next).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first}-{last}"),
        run => run.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_partitions_are_short() {
        for (partitions, text) in [
            (&[0, 1, 2, 3, 4, 5, 6, 7][..], "0-7"),
            (&[9, 3, 2, 1], "1-3,9"),
            (&[1, 2, 4, 6, 7, 8], "1,2,4,6-8"),
            (&[5], "5"),
            (&[], ""),
        ] {
            let partitions: Vec<_> = partitions.iter().map(|number| Partition::new(*number)).collect();
            assert_eq!(numbers(&partitions), text);
        }
    }
}
