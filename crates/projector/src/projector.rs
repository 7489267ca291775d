//! Starts and stops the stories of partitions as ownership comes and goes.

use std::collections::HashMap;
use std::time::Duration;

use dashi_domain::position::{LogId, Partition};
use dashi_event_log::{EventLog, LogError, Membership, Ownership};
use dashi_store::{Store, StoreError};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::lag::{Standing, measure};
use crate::metrics::ProjectorMetrics;
use crate::partition::End;
use crate::story::{ProjectorSettings, Story};

/// How often the log is told of checkpoints and the lag is measured.
const TICK: Duration = Duration::from_secs(1);

/// How long a fenced partition that the group still gives to this process stays alone before it is claimed anew.
const RECLAIM: Duration = Duration::from_secs(3);

/// Why a projector ended.
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
    /// A partition's task panicked. What it had committed is committed; nothing else is.
    #[error("the task of a partition panicked")]
    Panicked(#[source] JoinError),
}

/// See the module's text.
pub struct Projector {
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    metrics: ProjectorMetrics,
    standing: Standing,
}

/// A running story: its stop signal, and a number that tells it from an earlier one of the same partition.
struct Running {
    number: u64,
    stop: CancellationToken,
}

impl Projector {
    /// A projector of `log` into `store`.
    pub fn new(log: EventLog, store: Store, settings: ProjectorSettings, metrics: ProjectorMetrics) -> Self {
        Self { log, store, settings, metrics, standing: Standing::default() }
    }

    /// Projects until `stop`; then the batches that were begun are committed, and the log is told how far it came.
    ///
    /// # Errors
    /// See [`ProjectorError`]. A partition that ended with an error of its own ends the projector: someone is to
    /// look at it.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ProjectorError> {
        self.check_log().await?;
        let mut membership = self.log.membership(&self.settings.group).await?;
        let mut stories = Stories::default();
        let ended = self.conduct(&mut membership, &mut stories, &stop).await;
        for running in stories.running.values() {
            running.stop.cancel();
        }
        while stories.tasks.join_next().await.is_some() {}
        membership.save(&self.standing.take_unsaved()).await;
        membership.leave().await;
        ended
    }

    /// A store goes on with its own log only: offsets of another one mean other records.
    async fn check_log(&self) -> Result<(), ProjectorError> {
        let logs = self.store.logs().await?;
        match logs.first() {
            Some(stored) if !logs.contains(self.log.id()) && !self.settings.accept_new_log => {
                Err(ProjectorError::OtherLog { log: self.log.id().clone(), stored: stored.clone() })
            }
            _ => Ok(()),
        }
    }

    async fn conduct(
        &self,
        membership: &mut Membership,
        stories: &mut Stories,
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
                        for partition in partitions {
                            stories.start(self, partition, Duration::ZERO);
                        }
                    }
                    Ownership::Revoked(partitions) => {
                        tracing::info!(partitions = %numbers(&partitions), "revoked");
                        for partition in partitions {
                            stories.stop(partition);
                            self.standing.left(partition);
                        }
                    }
                },
                Some(ended) = stories.tasks.join_next() => {
                    let (partition, number, end) = ended.map_err(ProjectorError::Panicked)?;
                    match end {
                        End::Stopped => {}
                        End::Lost(error) => return Err(error.into()),
                        End::Fenced(error) => {
                            self.metrics.fenced.inc();
                            tracing::warn!(partition = %partition, error = %error, "another projector took over");
                            // If the group still says it is ours, the other one is the stale one, or about to be.
                            if stories.is_current(partition, number) {
                                stories.start(self, partition, RECLAIM);
                            }
                        }
                    }
                },
                _ = tick.tick() => {
                    membership.save(&self.standing.take_unsaved()).await;
                    stories.measure(self);
                }
            }
        }
    }
}

#[derive(Default)]
struct Stories {
    tasks: JoinSet<(Partition, u64, End)>,
    running: HashMap<Partition, Running>,
    started: u64,
    measuring: Option<tokio::task::JoinHandle<()>>,
}

impl Stories {
    /// Starts a story after a delay; one of the same partition that still runs is told to stop.
    fn start(&mut self, projector: &Projector, partition: Partition, delay: Duration) {
        self.stop(partition);
        self.started += 1;
        let (number, stop) = (self.started, CancellationToken::new());
        let story = Story::new(
            (projector.log.clone(), projector.store.clone(), partition),
            &projector.settings,
            (projector.standing.clone(), projector.metrics.clone()),
            stop.clone(),
        );
        self.running.insert(partition, Running { number, stop: stop.clone() });
        self.tasks.spawn(async move {
            if !delay.is_zero() {
                tokio::select! {
                    () = stop.cancelled() => return (partition, number, End::Stopped),
                    () = tokio::time::sleep(delay) => {}
                }
            }
            (partition, number, story.run().await)
        });
    }

    fn stop(&mut self, partition: Partition) {
        if let Some(running) = self.running.remove(&partition) {
            running.stop.cancel();
        }
    }

    fn is_current(&self, partition: Partition, number: u64) -> bool {
        self.running.get(&partition).is_some_and(|running| running.number == number)
    }

    /// Measures the lag aside, one measurement at a time: the broker may be slow to answer.
    fn measure(&mut self, projector: &Projector) {
        if self.measuring.as_ref().is_some_and(|measuring| !measuring.is_finished()) {
            return;
        }
        let (log, standing, metrics) =
            (projector.log.clone(), projector.standing.clone(), projector.metrics.clone());
        self.measuring = Some(tokio::spawn(async move { measure(&log, &standing, &metrics).await }));
    }
}

fn numbers(partitions: &[Partition]) -> String {
    let numbers: Vec<_> = partitions.iter().map(ToString::to_string).collect();
    numbers.join(",")
}
