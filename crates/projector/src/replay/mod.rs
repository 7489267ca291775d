//! Replay: the log, from its beginning, into a store of its own, by the same loop and the same commits as a live
//! projection. Commits stay, so a replay that was killed goes on from its last commit.

pub(crate) mod plan;
pub(crate) mod rate;

use std::collections::{HashMap, VecDeque};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dashi_archive::{Archive, ArchiveError};
use dashi_domain::fold::Outcomes;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::spans::Tracer;
use dashi_event_log::{EventLog, LogError, PartitionCheckpoint};
use dashi_store::{ClaimError, PartitionState, Store, StoreError};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::ProjectorMetrics;
use crate::outage::{Outages, Trouble, chain};
use crate::partition::{End, Failure, Mode, PartitionTask, Shared};
use crate::progress::Progress;
use crate::settings::ProjectorSettings;
use rate::RateLimit;

/// How a replay runs.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Where it ends.
    pub end: ReplayEnd,
    /// Partitions that are replayed at once.
    pub jobs: NonZeroUsize,
    /// Most records per second, over all partitions; `None` for no limit.
    pub rate: Option<NonZeroU32>,
    /// The archive of the log, read where the log does not begin yet.
    pub archive: Option<Archive>,
}

/// Where a replay ends.
#[derive(Debug, Clone)]
pub enum ReplayEnd {
    /// At the high watermarks that the partitions have when it begins.
    HighWatermarks,
    /// Exactly at these checkpoints; partitions that are not named are left out. A partition that is beyond its checkpoint
    /// already stays there.
    At(Vec<PartitionCheckpoint>),
}

impl Default for ReplayOptions {
    /// The whole log, four partitions at once, no limit, no archive.
    fn default() -> Self {
        let jobs = NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN);
        Self { end: ReplayEnd::HighWatermarks, jobs, rate: None, archive: None }
    }
}

/// Progress of a replay, in offsets: an upper bound on records where offsets have gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplayProgress {
    /// Offsets applied by this run and earlier ones.
    pub done: u64,
    /// Offsets from the beginning of the log to the replay's end.
    pub total: u64,
    /// Partitions that wait for the log or the store.
    pub waiting: usize,
    /// Why the first of them waits.
    pub reason: Option<String>,
}

/// Result of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayReport {
    /// Partitions that it was to replay.
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
    /// The log ends before the end that was asked for.
    #[error(
        "partition {partition} of the log ends at offset {high}, before offset {until}, up to which it was projected: the \
         log has lost records; `dashi accept-lost` records the loss"
    )]
    LogTooShort {
        /// The partition.
        partition: Partition,
        /// Where the replay was to end, exclusive.
        until: Offset,
        /// The partition's high watermark.
        high: Offset,
    },
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log does not answer at the start, or has lost records that were read already.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The archive does not answer at the start, or a file of it is damaged.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store cannot be written.
    #[error("a batch could not be committed: {0}")]
    Commit(String),
    /// A task panicked.
    #[error("the task of a partition panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// How many times as many records as a live batch a batch has at most: nobody waits for its rows, and a larger one costs
/// less for each. The limit on its bytes is the same.
const BATCH_FACTOR: usize = 2;

/// How often progress is reported.
const TICK: Duration = Duration::from_millis(200);

/// Replays from the beginning of the archive or the log, or from where an earlier run ended, to the end that `options` name, and exactly to
/// it. If the log or the store goes away meanwhile, or the log is slow, it waits, as a live projector does. A stop, like a
/// failure of one partition, takes effect between batches: all that was begun is committed when it returns. `report` is
/// called five times a second and at the end.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay(
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    options: ReplayOptions,
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
    let may_extend = matches!(options.end, ReplayEnd::HighWatermarks);
    let mut spans = spans(&log, options.archive.as_ref(), options.end, &states).await?;
    let rate = options.rate.map(RateLimit::new);
    let mut settings =
        ProjectorSettings { batch_interval: Duration::ZERO, tracer: Tracer::default(), ..settings };
    let records_max = settings.read_limit.records_max;
    settings.read_limit.records_max = match &rate {
        Some(rate) => records_max.min(rate.batch_max()),
        None => records_max.saturating_mul(BATCH_FACTOR),
    };
    let progress = Progress::default();
    let shared = Shared::new(log.clone(), store.clone(), settings, progress.clone(), metrics);
    let shared = Arc::new(Shared { rate, archive: options.archive, ..shared });
    let is_complete = loop {
        let report = || report(reached(&progress, &spans));
        match run(&shared, &spans, options.jobs, &stop, &report).await? {
            Ran::Ended { is_complete } => {
                report();
                break is_complete;
            }
            // What the others wait for may have been appended since the ends were read.
            Ran::Blocked { .. } if may_extend && extend(&log, &mut spans).await? => {}
            Ran::Blocked { waiting } => shared.exhaust(&spans, &waiting),
        }
    };
    let mut outcomes = Outcomes::default();
    for state in store.partitions().await?.iter().filter(|state| state.log == *log.id()) {
        outcomes.applied += state.outcomes.applied;
        outcomes.duplicate += state.outcomes.duplicate;
        outcomes.dead += state.outcomes.dead;
    }
    Ok(ReplayReport {
        partitions: spans.len(),
        records: progress.applied(),
        applied: outcomes.applied,
        duplicate: outcomes.duplicate,
        dead: outcomes.dead,
        complete: is_complete,
    })
}

/// The part of a partition that is to be replayed.
#[derive(Debug, Clone, Copy)]
struct Span {
    partition: Partition,
    /// The low end of the archive, or of the log.
    low: Offset,
    /// Where an earlier run ended; `low` if there was none.
    begin: Checkpoint,
    /// Where the replay ends.
    until: Checkpoint,
}

async fn spans(
    log: &EventLog,
    archive: Option<&Archive>,
    end: ReplayEnd,
    states: &[PartitionState],
) -> Result<Vec<Span>, ReplayError> {
    let ends = match end {
        ReplayEnd::HighWatermarks => None,
        ReplayEnd::At(ends) => Some(ends.into_iter().collect::<HashMap<_, _>>()),
    };
    let mut spans = Vec::new();
    for partition in log.partitions().await? {
        let until = ends.as_ref().map(|ends| ends.get(&partition).copied());
        if until == Some(None) {
            continue;
        }
        let extent = log.extent(partition).await?;
        let until = until.flatten().unwrap_or(Checkpoint::at(extent.high));
        if until.offset() > extent.high {
            let (until, high) = (until.offset(), extent.high);
            return Err(ReplayError::LogTooShort { partition, until, high });
        }
        let archived = match archive {
            Some(archive) => archive.manifest(partition).await?.start(),
            None => None,
        };
        let low = archived.map_or(extent.low, |start| start.min(extent.low));
        let reached = states.iter().find(|state| state.log == *log.id() && state.partition == partition);
        let begin = reached.map_or(Checkpoint::at(low), |state| state.checkpoint);
        spans.push(Span { partition, low, begin, until });
    }
    Ok(spans)
}

/// How the tasks of all partitions ended.
enum Ran {
    /// By themselves; `false` if they were stopped.
    Ended { is_complete: bool },
    /// All others have come to their ends, and these wait for them at a barrier still.
    Blocked { waiting: Vec<Partition> },
}

impl Shared {
    /// No partition waits any more for others than these.
    fn exhaust(&self, spans: &[Span], waiting: &[Partition]) {
        let mut exhausted = self.exhausted.lock().unwrap_or_else(PoisonError::into_inner);
        let highest = spans.iter().map(|span| span.partition.number()).max().unwrap_or(0);
        exhausted.extend((0..=highest).map(Partition::new).filter(|partition| !waiting.contains(partition)));
    }
}

/// Moves the ends to the high watermarks of now; returns whether one has moved.
async fn extend(log: &EventLog, spans: &mut [Span]) -> Result<bool, ReplayError> {
    let mut has_moved = false;
    for span in spans {
        let until = Checkpoint::at(log.extent(span.partition).await?.high);
        has_moved |= until > span.until;
        span.until = until.max(span.until);
    }
    Ok(has_moved)
}

/// Runs the tasks of all partitions, so many at once. One that waits at a barrier gives its turn to the others.
async fn run(
    shared: &Arc<Shared>,
    spans: &[Span],
    jobs: NonZeroUsize,
    stop: &CancellationToken,
    report: &impl Fn(),
) -> Result<Ran, ReplayError> {
    // A failure stops the other partitions, too, and leaves the caller's token alone.
    let stop = stop.child_token();
    let (mut ready, mut at_barriers): (VecDeque<Span>, Vec<Span>) =
        (spans.iter().copied().collect(), Vec::new());
    let mut tasks: JoinSet<(Span, Result<End, Failure>)> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    let (mut is_complete, mut failed) = (true, None);
    let mut applied_before = shared.progress.applied();
    loop {
        while tasks.len() < jobs.get() {
            let Some(span) = ready.pop_front() else { break };
            let Span { partition, until, .. } = span;
            shared.progress.assigned_again(partition);
            let (shared, mode, stop) = (Arc::clone(shared), Mode::Replay { until }, stop.clone());
            let task = PartitionTask::new(shared, partition, mode, stop);
            tasks.spawn(async move { (span, task.run(&mut Outages::new(&task)).await) });
        }
        tokio::select! {
            ended = tasks.join_next() => match ended {
                // One of them may have passed what another one waits for.
                None if !at_barriers.is_empty() && shared.progress.applied() > applied_before => {
                    applied_before = shared.progress.applied();
                    ready.extend(at_barriers.drain(..));
                }
                None => break,
                Some(Ok((span, Ok(End::Waits)))) => at_barriers.push(span),
                Some(Ok((_, Ok(end)))) => {
                    is_complete &= end == End::Reached;
                    ready.extend(at_barriers.drain(..));
                }
                Some(Ok((_, Err(failure)))) => {
                    failed.get_or_insert(failure_of(failure));
                    stop.cancel();
                }
                Some(Err(panicked)) => {
                    failed.get_or_insert(ReplayError::Panicked(panicked));
                    stop.cancel();
                }
            },
            _ = tick.tick() => {
                ready.extend(at_barriers.drain(..));
                report();
            }
        }
    }
    if let Some(failed) = failed {
        return Err(failed);
    }
    Ok(if at_barriers.is_empty() || stop.is_cancelled() {
        Ran::Ended { is_complete: is_complete && at_barriers.is_empty() }
    } else {
        Ran::Blocked { waiting: at_barriers.iter().map(|span| span.partition).collect() }
    })
}

/// Progress of all partitions, of the offsets between the log's beginning and the replay's end.
fn reached(progress: &Progress, spans: &[Span]) -> ReplayProgress {
    let checkpoints: HashMap<_, _> = progress.checkpoints().into_iter().collect();
    let mut stuck = progress.stuck(Duration::MAX);
    let waiting = stuck.len();
    let reason = (waiting > 0)
        .then(|| stuck.swap_remove(0))
        .map(|first| format!("partition {} ({}): {}", first.partition, first.state.name(), first.reason));
    let mut reached = ReplayProgress { done: 0, total: 0, waiting, reason };
    for Span { partition, low, begin, until } in spans {
        let total = Checkpoint::at(*low).lag(until.offset());
        let at = checkpoints.get(partition).unwrap_or(begin);
        reached.done += Checkpoint::at(*low).lag(at.offset()).min(total);
        reached.total += total;
    }
    reached
}

fn failure_of(failure: Failure) -> ReplayError {
    match failure {
        Failure::Refused(ClaimError::Live { partition, owner }) => ReplayError::Live { partition, owner },
        Failure::Refused(refused) => ReplayError::Fenced(refused),
        Failure::Trouble(Trouble::Log(error)) => ReplayError::Log(error),
        Failure::Trouble(Trouble::Archive(error)) => ReplayError::Archive(error),
        Failure::Trouble(Trouble::Store(error)) => ReplayError::Store(error),
        Failure::Trouble(Trouble::Commit(error)) => ReplayError::Commit(chain(&error)),
    }
}
