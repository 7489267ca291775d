//! One partition, live or in a replay: claim it, read on from the checkpoint, fold, commit, until it is stopped.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashi_domain::fold::{Changes, FoldRules};
use dashi_domain::missing::{Missing, MissingCause, fingerprint, gaps};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, LogError, Reader};
use dashi_store::{Claim, ClaimError, CommitError, Store};
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, apply, passing};
use crate::fold_panic::panic_text;
use crate::metrics::ProjectorMetrics;
use crate::outage::{Doing, Outages, Trouble};
use crate::progress::{FailureKind, Progress};
use crate::settings::ProjectorSettings;

/// The task of one partition.
pub(crate) struct PartitionTask {
    pub shared: Arc<Shared>,
    pub partition: Partition,
    pub mode: Mode,
    pub stop: CancellationToken,
}

/// What the tasks of all partitions share.
pub(crate) struct Shared {
    pub log: EventLog,
    pub store: Store,
    pub settings: ProjectorSettings,
    pub rules: Arc<FoldRules>,
    pub progress: Progress,
    pub metrics: ProjectorMetrics,
}

impl Shared {
    pub fn new(
        log: EventLog,
        store: Store,
        settings: ProjectorSettings,
        progress: Progress,
        metrics: ProjectorMetrics,
    ) -> Self {
        let rules = Arc::new(settings.rules.clone());
        Self { log, store, settings, rules, progress, metrics }
    }
}

/// Until when a partition is projected, and what becomes of a failure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// Until it is stopped. A failed partition is tried again now and then.
    Live { failed_retry: Duration },
    /// Up to this offset, exclusive, and from where the log begins. A failure that waiting does not mend ends it.
    Replay { until: Offset },
}

/// How a run ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was stopped.
    Stopped,
    /// It came to the end that it was given.
    Reached,
}

/// Why a run ended. A live one ends only when it is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The store does not let this writer write: the claim is another's, or the store is.
    #[error(transparent)]
    Refused(ClaimError),
    /// What waiting does not mend, in a replay.
    #[error(transparent)]
    Trouble(Trouble),
    /// A replay's log says that there is more, and gives nothing.
    #[error("no record came from offset {from} on, though the log ends at {high}")]
    Stalled {
        /// Where the replay stands.
        from: Offset,
        /// The partition's end.
        high: Offset,
        /// How long nothing came.
        waited: Duration,
    },
}

/// How long a replay's log may give nothing although it has more.
const STALL: Duration = Duration::from_secs(60);

impl PartitionTask {
    /// Runs until an [`End`] or a [`Failure`]. Stopping takes effect between batches: a batch that was begun is committed.
    /// A log or a store that is away is waited for.
    pub async fn run(&self, outages: &mut Outages<'_>) -> Result<End, Failure> {
        let Some(claim) = self.claim(outages).await? else { return Ok(End::Stopped) };
        let (mut from, mut source, mut idle_since) = (claim.resume_from, None, Instant::now());
        let mut last = Last { before: from, fingerprint: claim.fingerprint };
        while !self.stop.is_cancelled() {
            if matches!(self.mode, Mode::Replay { until } if from.offset() >= until) {
                return Ok(End::Reached);
            }
            let Batch { records, to, missing } = match self.read(&mut source, from, last).await {
                Ok(batch) => batch,
                Err(LogError::Trimmed { low, .. }) if matches!(self.mode, Mode::Replay { .. }) => {
                    let gone = Missing::all(from.offset()..low, MissingCause::Retention);
                    let changes = Changes { missing: vec![gone], ..Changes::default() };
                    from = self.skip(outages, &claim, from, Checkpoint::at(low), changes).await?;
                    self.shared.progress.claimed(self.partition, from);
                    continue;
                }
                Err(error) => {
                    let is_lost = is_lost(&error);
                    outages.wait(Some(&claim), Doing::Reading(from), error).await?;
                    if is_lost {
                        // Somebody may have accepted the loss meanwhile, under a claim of their own.
                        from = self.stored(outages, &claim, from).await?;
                    }
                    continue;
                }
            };
            let Some(first) = records.first() else {
                if to == from {
                    self.nothing_read(outages, &claim, from, &mut idle_since).await?;
                } else {
                    let passed = passing(Changes::default(), from, to, &records, &missing);
                    from = self.skip(outages, &claim, from, to, passed).await?;
                    self.shared.progress.reached(self.partition, from);
                }
                continue;
            };
            outages.log_answers(&claim).await;
            let fingerprint = records.last().map(|record| fingerprint(&record.value));
            let (began, full) = (Instant::now(), self.is_full(&records));
            self.shared.progress.behind(self.partition, Some(first.appended_at_ms));
            from = match apply(self, &claim, from, records.into(), &missing).await {
                Ok(to) => {
                    last = Last { before: to, fingerprint };
                    outages.store_answers(&claim).await;
                    outages.works(&claim).await;
                    to
                }
                Err(ApplyError::Fenced(error)) => return Err(Failure::Refused(error)),
                Err(ApplyError::Interrupted(error)) => self.resume(outages, &claim, from, error).await?,
            };
            idle_since = Instant::now();
            self.shared.progress.reached(self.partition, from);
            if !full {
                self.pause(self.shared.settings.batch_interval.saturating_sub(began.elapsed())).await;
            }
        }
        Ok(End::Stopped)
    }

    /// Takes the partition, however long the store is away; `None` if it is to stop.
    async fn claim(&self, outages: &mut Outages<'_>) -> Result<Option<Claim>, Failure> {
        while !self.stop.is_cancelled() {
            let call = self.shared.progress.call(self.partition, "claiming the partition");
            let (log, partition) = (self.shared.log.id(), self.partition);
            let claimed = match self.mode {
                Mode::Live { .. } => {
                    self.shared.store.claim(log, partition, &self.shared.settings.owner).await
                }
                Mode::Replay { .. } => {
                    self.shared.store.claim_for_replay(log, partition, &self.shared.settings.owner).await
                }
            };
            drop(call);
            match claimed {
                Ok(claim) => {
                    self.shared.metrics.claims.inc();
                    self.shared.progress.claimed(partition, claim.resume_from);
                    tracing::info!(
                        partition = %partition, epoch = %claim.epoch, checkpoint = %claim.resume_from, "projecting"
                    );
                    if claim.has_open_error {
                        outages.found_open_error();
                    }
                    outages.store_answers(&claim).await;
                    return Ok(Some(claim));
                }
                Err(ClaimError::Store(error)) => {
                    outages.wait(None, Doing::Claiming, error).await?;
                }
                Err(refused) => return Err(Failure::Refused(refused)),
            }
        }
        Ok(None)
    }

    /// Reads on from the checkpoint; nothing if it is to stop.
    async fn read(
        &self,
        source: &mut Option<Source>,
        from: Checkpoint,
        last: Last,
    ) -> Result<Batch, LogError> {
        let read = self.read_from(source, from, last).await;
        if read.is_err() {
            // After whatever happened, the log may be an older copy of itself: the next reader proves that it is not.
            *source = None;
        }
        read
    }

    async fn read_from(
        &self,
        source: &mut Option<Source>,
        from: Checkpoint,
        last: Last,
    ) -> Result<Batch, LogError> {
        let log = &self.shared.log;
        let source = match source {
            Some(source) => source,
            None => {
                let fingerprint = last.fingerprint.filter(|_| last.before == from);
                let reader = log.reader_behind(self.partition, from.offset(), fingerprint).await?;
                source.insert(Source { reader, at: from })
            }
        };
        if source.at != from {
            source.reader.seek(from.offset())?;
            source.at = from;
        }
        let records = tokio::select! {
            biased;
            () = self.stop.cancelled() => Vec::new(),
            records = source.reader.next(self.shared.settings.read_limit) => records?,
        };
        let to = match records.last() {
            Some(last) => Checkpoint::after(last.offset),
            None => from.max(Checkpoint::at(source.reader.passed())),
        };
        let missing = log.missing(self.partition, gaps(from, &records, to)).await?;
        source.at = to;
        Ok(Batch { records, to, missing })
    }

    /// Where the store says that the partition stands.
    async fn stored(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
    ) -> Result<Checkpoint, Failure> {
        match self.shared.store.resume(claim).await {
            Ok(stored) => Ok(stored),
            Err(ClaimError::Store(error)) => {
                outages.wait(Some(claim), Doing::Resuming, error).await?;
                Ok(from)
            }
            Err(refused) => Err(Failure::Refused(refused)),
        }
    }

    /// Where to go on after a commit that failed, however long the store is away.
    async fn resume(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        error: CommitError,
    ) -> Result<Checkpoint, Failure> {
        outages.wait(Some(claim), Doing::Committing(from), error).await?;
        while !self.stop.is_cancelled() {
            let call = self.shared.progress.call(self.partition, "reading the checkpoint");
            let stored = self.shared.store.resume(claim).await;
            drop(call);
            match stored {
                Ok(stored) => {
                    // That it answers does not mean that it commits; that the checkpoint has moved does.
                    if stored == from {
                        outages.note(claim).await;
                    } else {
                        outages.store_answers(claim).await;
                    }
                    return Ok(stored);
                }
                Err(ClaimError::Store(error)) => {
                    outages.wait(Some(claim), Doing::Resuming, error).await?;
                }
                Err(refused) => return Err(Failure::Refused(refused)),
            }
        }
        Ok(from)
    }

    /// Moves the checkpoint over what is no record.
    async fn skip(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: Changes,
    ) -> Result<Checkpoint, Failure> {
        let call = self.shared.progress.call(self.partition, "moving the checkpoint");
        let moved = self.shared.store.commit(claim, from, to, &changes).await;
        drop(call);
        match moved {
            Ok(_) => {
                self.shared.metrics.missing(&changes);
                outages.store_answers(claim).await;
                Ok(to)
            }
            Err(CommitError::Fenced { partition, held, current }) => {
                Err(Failure::Refused(ClaimError::Fenced { partition, held, current }))
            }
            Err(error) => self.resume(outages, claim, from, error).await,
        }
    }

    /// The log gave nothing: because there is nothing, or because it is away.
    async fn nothing_read(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        idle_since: &mut Instant,
    ) -> Result<(), Failure> {
        let is_stalled = matches!(self.mode, Mode::Replay { .. }) && idle_since.elapsed() >= STALL;
        // A broker that is away is silent: the library says so once, and then only gives nothing.
        if (outages.is_log_out() || is_stalled) && !self.stop.is_cancelled() {
            match self.shared.log.extent(self.partition).await {
                Ok(extent) if is_stalled => {
                    let (from, high, waited) = (from.offset(), extent.high, idle_since.elapsed());
                    return Err(Failure::Stalled { from, high, waited });
                }
                Ok(_) => outages.log_answers(claim).await,
                Err(error) => {
                    *idle_since = Instant::now();
                    return outages.wait(Some(claim), Doing::Reading(from), error).await;
                }
            }
        }
        self.shared.progress.behind(self.partition, None);
        outages.works(claim).await;
        Ok(())
    }

    /// Whether a batch holds all that one may, so that there is probably more.
    fn is_full(&self, records: &[Record]) -> bool {
        records.len() >= self.shared.settings.read_limit.records_max
            || records.iter().map(|record| record.value.len()).sum::<usize>()
                >= self.shared.settings.read_limit.bytes_max
    }

    /// Waits, unless it is to stop.
    pub async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}

impl PartitionTask {
    /// Runs, and runs again when it fails, until it is stopped. It fails alone: a panic ends here, too.
    pub async fn supervise(self) {
        let mut outages = Outages::new(&self);
        loop {
            let ended = AssertUnwindSafe(self.run(&mut outages)).catch_unwind().await;
            let (kind, text) = match ended {
                Ok(Ok(_)) => return,
                Ok(Err(failure)) => {
                    self.shared.metrics.fenced.inc();
                    (FailureKind::ClaimLost, failure.to_string())
                }
                Err(panic) => {
                    let text = format!("the partition's task panicked: {}", panic_text(&*panic));
                    (FailureKind::Panicked, text)
                }
            };
            let wait = outages.ended(kind, text);
            self.pause(wait).await;
        }
    }

    /// How long a failed partition waits before it is tried again.
    pub const fn failed_retry(&self) -> Duration {
        match self.mode {
            Mode::Live { failed_retry } => failed_retry,
            Mode::Replay { .. } => Duration::ZERO,
        }
    }
}

/// What a read gave.
struct Batch {
    records: Vec<Record>,
    /// The checkpoint behind it all.
    to: Checkpoint,
    /// Offsets before that at which records are missing.
    missing: Vec<Range<Offset>>,
}

/// The last record that was projected, by its fingerprint, and the checkpoint behind it.
#[derive(Debug, Clone, Copy)]
struct Last {
    before: Checkpoint,
    fingerprint: Option<i64>,
}

/// Whether the log lost something that somebody has to accept.
fn is_lost(error: &LogError) -> bool {
    matches!(error, LogError::Trimmed { .. } | LogError::Beyond { .. } | LogError::Rewritten { .. })
}

/// A reader, and where it stands.
struct Source {
    reader: Reader,
    at: Checkpoint,
}
