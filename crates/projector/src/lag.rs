//! The gauges of states and of lag. Their task outlives the projector, so a backlog shows while no projector works on it,
//! too.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::{EventLog, Extent, ReadLimit};
use dashi_store::Store;
use tokio_util::sync::CancellationToken;

use crate::metrics::ProjectorMetrics;
use crate::progress::{Measured, Progress, now_ms};
use crate::state::{PartitionState, ProjectorState};

/// How often the gauges are set.
const TICK: Duration = Duration::from_secs(1);

/// How long to wait before reading a record again that could not be read for its time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long reading one record for its time may take.
const LOOK: Duration = Duration::from_secs(2);

/// Sets the gauges of a projector until `stop`. While the projector is up they show the partitions of this process, else
/// all partitions of the log with the checkpoints of the store.
#[boxed]
pub async fn measure(
    log: EventLog,
    store: Store,
    progress: Progress,
    metrics: ProjectorMetrics,
    stop: CancellationToken,
) {
    let gauges = Gauges { log, store, progress, metrics, looks: Arc::default() };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // One measurement at a time, on a task of its own: a broker or a database that is away may be slow to fail.
    let mut measuring: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let is_up = gauges.progress.projector() == ProjectorState::Up;
        let partitions = gauges.progress.measured();
        gauges.metrics.states(is_up, &partitions);
        if measuring.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            let gauges = gauges.clone();
            measuring = Some(tokio::spawn(async move { gauges.lags(is_up, partitions).await }));
        }
    }
    if let Some(measuring) = measuring {
        measuring.abort();
    }
}

#[derive(Clone)]
struct Gauges {
    log: EventLog,
    store: Store,
    progress: Progress,
    metrics: ProjectorMetrics,
    looks: Arc<Mutex<HashMap<Partition, Look>>>,
}

/// The time at which the log took the record at a checkpoint.
#[derive(Clone, Copy)]
struct Look {
    checkpoint: Checkpoint,
    appended_at_ms: Option<i64>,
    at: Instant,
}

impl Gauges {
    async fn lags(&self, is_up: bool, partitions: Vec<Measured>) {
        let mut mine: BTreeMap<Partition, Option<Measured>> =
            partitions.into_iter().map(|measured| (measured.partition, Some(measured))).collect();
        if !is_up {
            // A log that does not answer leaves the gauges as they are.
            let Ok(all) = self.log.partitions().await else { return };
            mine.extend(all.into_iter().map(|partition| (partition, None)));
        }
        self.metrics.forget_other_lags(mine.keys().copied().collect());
        let stored = if mine.values().flatten().filter(|measured| measured.checkpoint.is_some()).count()
            < mine.len()
        {
            self.stored().await
        } else {
            Some(HashMap::new())
        };
        for (partition, measured) in mine {
            // A partition that was never claimed has everything still to be applied; if the store is away, nothing is known.
            let known = measured.and_then(|measured| measured.checkpoint);
            let checkpoint = match (known, &stored) {
                (Some(checkpoint), _) => checkpoint,
                (None, Some(stored)) => stored.get(&partition).copied().unwrap_or(Checkpoint::START),
                (None, None) => continue,
            };
            match self.log.extent_at_a_glance(partition).await {
                Ok(extent) => self.show(partition, checkpoint, extent, measured).await,
                Err(error) => {
                    tracing::debug!(partition = %partition, error = %error, "the lag cannot be measured");
                }
            }
        }
    }

    async fn show(
        &self,
        partition: Partition,
        checkpoint: Checkpoint,
        extent: Extent,
        measured: Option<Measured>,
    ) {
        let from = checkpoint.max(Checkpoint::at(extent.low));
        let lag = from.lag(extent.high);
        let mut oldest = measured.and_then(|measured| measured.oldest_appended_at_ms);
        let is_running = measured.is_some_and(|measured| measured.state == PartitionState::Running);
        if lag > 0 && oldest.is_none() && !is_running {
            oldest = self.look(partition, from).await;
        }
        let age_ms = oldest.filter(|_| lag > 0).map_or(0, |ms| now_ms() - ms);
        self.metrics.lag(partition, lag, age_ms.max(0));
    }

    /// The time at which the log took the record at `from`, which the partition's task has not read. It is read once per
    /// checkpoint.
    async fn look(&self, partition: Partition, from: Checkpoint) -> Option<i64> {
        let known = self.looks().get(&partition).copied().filter(|look| look.checkpoint == from);
        if let Some(look) =
            known.filter(|look| look.appended_at_ms.is_some() || look.at.elapsed() < LOOK_AGAIN)
        {
            return look.appended_at_ms;
        }
        let limit = ReadLimit { records_max: 1, bytes_max: 1, wait: LOOK };
        let read = async { self.log.reader(partition, from.offset()).await?.next(limit).await };
        let records = read.await.unwrap_or_default();
        let appended_at_ms = records.first().map(|record| record.appended_at_ms);
        self.looks().insert(partition, Look { checkpoint: from, appended_at_ms, at: Instant::now() });
        appended_at_ms
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, HashMap<Partition, Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's checkpoints of this log; `None` if the store does not answer.
    async fn stored(&self) -> Option<HashMap<Partition, Checkpoint>> {
        let states = self.store.partitions().await.ok()?;
        let of_log = states.into_iter().filter(|state| state.log == *self.log.id());
        Some(of_log.map(|state| (state.partition, state.checkpoint)).collect())
    }
}
