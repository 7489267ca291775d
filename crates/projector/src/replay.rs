//! Replay: the whole log, from its beginning, into an empty store. The same fold, the same commits; what was
//! committed stays, so a replay that was killed goes on where it stood.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashi_domain::fold::Outcomes;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_event_log::{EventLog, Extent, LogError};
use dashi_store::{ClaimError, Store, StoreError};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, apply};
use crate::lag::Standing;
use crate::metrics::ProjectorMetrics;
use crate::story::{ProjectorSettings, Story, chain};

/// How far a replay has come, in offsets: an upper bound on records where offsets have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Applied, this run's and earlier ones'.
    pub done: u64,
    /// In the log when the replay began.
    pub total: u64,
}

/// What a replay did.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayReport {
    /// Partitions of the log.
    pub partitions: usize,
    /// Offsets that this run applied.
    pub records: u64,
    /// What became of all records of the log, earlier runs' included.
    pub applied: u64,
    /// See `applied`.
    pub duplicate: u64,
    /// See `applied`.
    pub dead: u64,
    /// Whether it came to the end; `false` if it was told to stop.
    pub complete: bool,
}

/// Why a replay did not come to its end. What it committed stays; run it again to go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store has rows that are not of an earlier run of this replay.
    #[error("the store is not empty and holds no replay of the log {log}: give it an empty store")]
    NotEmpty {
        /// The log.
        log: LogId,
    },
    /// Someone else writes the same store.
    #[error("another process replays or projects into the same store")]
    Fenced(#[source] ClaimError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log does not answer, or no longer begins where it was read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store did not say whether a batch is in.
    #[error("a batch could not be committed: {0}")]
    Commit(String),
    /// The log says that there is more, and gives nothing.
    #[error(
        "partition {partition}: no record came from offset {from} on within {waited_s} s, though it ends at {high}"
    )]
    Stalled {
        /// The partition.
        partition: Partition,
        /// Where the replay stands.
        from: Offset,
        /// The partition's end.
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

/// How long a partition may give nothing although it has more.
const STALL: Duration = Duration::from_secs(60);

/// Replays up to the ends that the partitions have when it begins.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay(
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    metrics: ProjectorMetrics,
    stop: CancellationToken,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<ReplayReport, ReplayError> {
    if !store.logs().await?.contains(log.id()) && !store.is_empty().await? {
        return Err(ReplayError::NotEmpty { log: log.id().clone() });
    }
    let mut extents = Vec::new();
    for partition in log.partitions().await? {
        extents.push((partition, log.extent(partition).await?));
    }
    let total = extents.iter().map(|(_, extent)| extent.high.number() - extent.low.number()).sum();
    let count = Count { done: AtomicU64::new(0), this_run: AtomicU64::new(0), total, tell: progress };
    let count = Arc::new(count);
    let mut waiting = extents.iter().copied();
    let mut tasks: JoinSet<Result<(), ReplayError>> = JoinSet::new();
    loop {
        while tasks.len() < CONCURRENCY {
            let Some((partition, extent)) = waiting.next() else { break };
            let about = (log.clone(), store.clone(), partition);
            let told = (Standing::default(), metrics.clone());
            let story = Story::new(about, &settings, told, stop.clone());
            let story = Story { batch_interval: Duration::ZERO, ..story };
            let count = Arc::clone(&count);
            tasks.spawn(async move { replay_partition(story, extent, &*count).await });
        }
        match tasks.join_next().await {
            None => break,
            Some(ended) => ended.map_err(ReplayError::Panicked)??,
        }
    }
    let mut outcomes = Outcomes::default();
    for state in store.partitions().await?.iter().filter(|state| state.log == *log.id()) {
        outcomes.applied += state.outcomes.applied;
        outcomes.duplicate += state.outcomes.duplicate;
        outcomes.dead += state.outcomes.dead;
    }
    Ok(ReplayReport {
        partitions: extents.len(),
        records: count.this_run.load(Ordering::Relaxed),
        applied: outcomes.applied,
        duplicate: outcomes.duplicate,
        dead: outcomes.dead,
        complete: !stop.is_cancelled(),
    })
}

struct Count<F> {
    done: AtomicU64,
    this_run: AtomicU64,
    total: u64,
    tell: F,
}

impl<F: Fn(Progress)> Count<F> {
    fn add(&self, offsets: u64) {
        let done = self.done.fetch_add(offsets, Ordering::Relaxed) + offsets;
        // Records that arrive meanwhile may be read along with the last ones.
        (self.tell)(Progress { done: done.min(self.total), total: self.total });
    }
}

async fn replay_partition<F: Fn(Progress)>(
    story: Story,
    extent: Extent,
    count: &Count<F>,
) -> Result<(), ReplayError> {
    let claim =
        story.store.claim(story.log.id(), story.partition, &story.owner).await.map_err(
            |error| match error {
                ClaimError::Store(error) => ReplayError::Store(error),
                fenced => ReplayError::Fenced(fenced),
            },
        )?;
    // A log that retention has shortened is replayed from where it begins.
    let mut from = claim.resume_from.max(Checkpoint::at(extent.low));
    if from != claim.resume_from {
        story
            .store
            .commit(&claim, claim.resume_from, from, &Default::default())
            .await
            .map_err(|error| ReplayError::Commit(chain(&error)))?;
    }
    count.add(from.offset().number() - extent.low.number());
    let mut reader = story.log.reader(story.partition, from.offset()).await?;
    let mut waited = Duration::ZERO;
    while from.offset() < extent.high && !story.stop.is_cancelled() {
        let records = reader.next(story.read_limit).await?;
        if records.is_empty() {
            waited += story.read_limit.wait;
            if waited >= STALL {
                let (from, high, waited_s) = (from.offset(), extent.high, STALL.as_secs());
                return Err(ReplayError::Stalled { partition: story.partition, from, high, waited_s });
            }
            continue;
        }
        waited = Duration::ZERO;
        let to = apply(&story, &claim, from, records.into()).await.map_err(|error| match error {
            ApplyError::Fenced(error) => ReplayError::Fenced(error),
            ApplyError::Interrupted(error) => ReplayError::Commit(chain(&error)),
        })?;
        let offsets = to.offset().number() - from.offset().number();
        count.this_run.fetch_add(offsets, Ordering::Relaxed);
        count.add(offsets);
        from = to;
    }
    Ok(())
}
