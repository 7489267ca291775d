//! Replay: the whole log, from its beginning, into an empty store, by the same loop and the same commits as a live
//! projection. Commits stay, so a replay that was killed goes on from its last commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dashi_domain::fold::Outcomes;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_event_log::{EventLog, Extent, LogError};
use dashi_store::{ClaimError, Store, StoreError};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::ProjectorMetrics;
use crate::outage::{Outages, Trouble, chain};
use crate::partition::{End, Failure, Mode, PartitionTask, Shared};
use crate::progress::Progress;
use crate::settings::ProjectorSettings;

/// Progress of a replay, in offsets: an upper bound on records where offsets have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReplayProgress {
    /// Offsets applied by this run and earlier ones.
    pub done: u64,
    /// Offsets in the log when the replay began.
    pub total: u64,
}

/// Result of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayReport {
    /// Partitions of the log.
    pub partitions: usize,
    /// Offsets that this run applied.
    pub records: u64,
    /// Records of the log that were applied, earlier runs' included.
    pub applied: u64,
    /// Records that were duplicates, earlier runs' included.
    pub duplicate: u64,
    /// Records that became dead letters, earlier runs' included.
    pub dead: u64,
    /// Whether it came to the end; `false` if it was stopped.
    pub complete: bool,
}

/// Why a replay did not come to its end. Its commits stay; run it again to go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store has rows that are not of an earlier run of this replay.
    #[error("the store is not empty and holds no replay of the log {log}: give it an empty store")]
    NotEmpty {
        /// The log.
        log: LogId,
    },
    /// A live projector has claimed partitions of the store.
    #[error(
        "the store is a live projection's ({owner} claimed partition {partition}), which a replay must not disturb: \
         replay into an empty store; to bring this one up to date, start `dashi project` or `dashi serve` on it"
    )]
    Live {
        /// The partition that was claimed last.
        partition: Partition,
        /// Its owner.
        owner: String,
    },
    /// Another process writes the same store.
    #[error("another process replays or projects into the same store")]
    Fenced(#[source] ClaimError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log does not answer at the start, or has lost records that were read already.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store cannot be written.
    #[error("a batch could not be committed: {0}")]
    Commit(String),
    /// The log has more records by its high watermark, and returns none.
    #[error(
        "partition {partition}: no record came from offset {from} on within {waited_s} s, though it ends at {high}"
    )]
    Stalled {
        /// The partition.
        partition: Partition,
        /// The replay's checkpoint.
        from: Offset,
        /// The partition's high watermark.
        high: Offset,
        /// How long it waited.
        waited_s: u64,
    },
    /// A task panicked.
    #[error("the task of a partition panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Partitions replayed at once.
const CONCURRENCY: usize = 4;

/// How often progress is reported.
const TICK: Duration = Duration::from_millis(200);

/// Replays up to the high watermarks that the partitions have when it begins. If the log or the store goes away meanwhile,
/// it waits, as a live projector does. `report` is called five times a second and at the end.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay(
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    metrics: ProjectorMetrics,
    stop: CancellationToken,
    report: impl Fn(ReplayProgress),
) -> Result<ReplayReport, ReplayError> {
    let states = store.partitions().await?;
    if let Some(live) = states.iter().filter(|state| state.is_live).max_by_key(|state| state.updated_at_ms) {
        return Err(ReplayError::Live { partition: live.partition, owner: live.owner.clone() });
    }
    if !states.iter().any(|state| state.log == *log.id()) && !store.is_empty().await? {
        return Err(ReplayError::NotEmpty { log: log.id().clone() });
    }
    let mut extents = Vec::new();
    for partition in log.partitions().await? {
        extents.push((partition, log.extent(partition).await?));
    }
    let settings = ProjectorSettings { batch_interval: Duration::ZERO, ..settings };
    let progress = Progress::default();
    let shared = Arc::new(Shared::new(log.clone(), store.clone(), settings, progress.clone(), metrics));
    let report = || report(reached(&progress, &extents));
    let mut waiting = extents.iter().copied();
    let mut tasks: JoinSet<Result<End, (Partition, Failure)>> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        while tasks.len() < CONCURRENCY {
            let Some((partition, extent)) = waiting.next() else { break };
            progress.assigned(partition);
            let (shared, mode) = (Arc::clone(&shared), Mode::Replay { until: extent.high });
            let task = PartitionTask { shared, partition, mode, stop: stop.clone() };
            tasks.spawn(async move {
                task.run(&mut Outages::new(&task)).await.map_err(|failure| (partition, failure))
            });
        }
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => break,
                Some(ended) => match ended.map_err(ReplayError::Panicked)? {
                    Ok(_) => {}
                    Err((partition, failure)) => return Err(failure_of(partition, failure)),
                },
            },
            _ = tick.tick() => report(),
        }
    }
    report();
    let mut outcomes = Outcomes::default();
    for state in store.partitions().await?.iter().filter(|state| state.log == *log.id()) {
        outcomes.applied += state.outcomes.applied;
        outcomes.duplicate += state.outcomes.duplicate;
        outcomes.dead += state.outcomes.dead;
    }
    Ok(ReplayReport {
        partitions: extents.len(),
        records: progress.applied(),
        applied: outcomes.applied,
        duplicate: outcomes.duplicate,
        dead: outcomes.dead,
        complete: !stop.is_cancelled(),
    })
}

/// Progress of all partitions, of the offsets that lay in them at the start.
fn reached(progress: &Progress, extents: &[(Partition, Extent)]) -> ReplayProgress {
    let checkpoints: HashMap<_, _> = progress.checkpoints().into_iter().collect();
    let mut reached = ReplayProgress { done: 0, total: 0 };
    for (partition, Extent { low, high }) in extents {
        let total = high.number() - low.number();
        let done =
            checkpoints.get(partition).map_or(0, |at| at.offset().number().saturating_sub(low.number()));
        // The last batch may also hold records that arrived meanwhile.
        reached.done += done.min(total);
        reached.total += total;
    }
    reached
}

fn failure_of(partition: Partition, failure: Failure) -> ReplayError {
    match failure {
        Failure::Refused(ClaimError::Live { partition, owner }) => ReplayError::Live { partition, owner },
        Failure::Refused(refused) => ReplayError::Fenced(refused),
        Failure::Trouble(Trouble::Log(error)) => ReplayError::Log(error),
        Failure::Trouble(Trouble::Store(error)) => ReplayError::Store(error),
        Failure::Trouble(Trouble::Commit(error)) => ReplayError::Commit(chain(&error)),
        Failure::Stalled { from, high, waited } => {
            ReplayError::Stalled { partition, from, high, waited_s: waited.as_secs() }
        }
    }
}
