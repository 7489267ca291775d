//! The task of one partition, live or in a replay: it claims the partition, reads on from the checkpoint, folds and commits,
//! until it is stopped.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_archive::Archive;
use dashi_domain::fold::{Changes, FoldRules};
use dashi_domain::guard::WriterStep;
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EventLog, LogError};
use dashi_store::{Claim, ClaimError, CommitError, Store};
use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, Applying, apply, passing};
use crate::budget::{Budget, Share};
use crate::fold_panic::panic_text;
use crate::fold_threads::FoldThreads;
use crate::layout::Barriers;
use crate::letters::give_up;
use crate::metrics::ProjectorMetrics;
use crate::outage::{Doing, Outages, Trouble};
use crate::progress::Progress;
use crate::reading::Reading;
use crate::replay::rate::RateLimit;
use crate::settings::ProjectorSettings;
use crate::source::{Batch, LastApplied, ReadError, Source};
use crate::state::FailureKind;
use crate::tail::{Ending, Tail};

/// The task of one partition.
pub(crate) struct PartitionTask {
    pub shared: Arc<Shared>,
    pub partition: Partition,
    pub mode: Mode,
    pub stop: CancellationToken,
    /// Memory that its batches share with those of other partitions.
    pub budget: Budget,
}

/// Values that the tasks of all partitions share.
pub(crate) struct Shared {
    pub log: EventLog,
    /// Of a replay: records that retention has removed from the log.
    pub archive: Option<Archive>,
    pub store: Store,
    pub settings: ProjectorSettings,
    pub rules: Arc<FoldRules>,
    pub progress: Progress,
    pub metrics: ProjectorMetrics,
    /// Memory that the batches of all partitions share.
    pub budget: Budget,
    /// The same for the batches of tails, which do not wait for those of backlogs.
    pub tail_budget: Budget,
    pub fold_threads: FoldThreads,
    /// Wakes the partitions that wait for the store, when it answers one of them.
    pub store_is_back: Notify,
    /// Of a replay.
    pub rate: Option<RateLimit>,
    /// Of a replay: partitions of which it applies no more, so that none waits for them at a barrier.
    pub exhausted: Mutex<HashSet<Partition>>,
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
        let budget = Budget::new(settings.batches_bytes_max);
        let tail_budget = Budget::new(settings.batches_bytes_max / TAIL_PART);
        Self {
            log,
            archive: None,
            store,
            settings,
            rules,
            progress,
            metrics,
            budget,
            tail_budget,
            fold_threads: FoldThreads::start(),
            store_is_back: Notify::new(),
            rate: None,
            exhausted: Mutex::default(),
        }
    }

    /// Whether a replay applies no more of the partition.
    pub fn is_exhausted(&self, partition: Partition) -> bool {
        self.exhausted.lock().unwrap_or_else(PoisonError::into_inner).contains(&partition)
    }
}

/// When the task of a partition ends, and its reaction to a failure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// It ends when it is stopped. A failed partition is tried again at this interval.
    Live { failed_retry: Duration },
    /// It reads from the beginning of the log up to this checkpoint, and ends exactly there. A failure that waiting does not
    /// cure ends it.
    Replay { until: Checkpoint },
}

/// How a run ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was stopped.
    Stopped,
    /// It reached the end of a replay.
    Reached,
    /// In a replay, it waits at a barrier for other partitions: they are to run.
    Waits,
}

/// How long the log has returned no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// As is usual at its end.
    Short,
    /// For so long that a new reader is to be tried.
    Long,
}

/// Why a run ended. A live run ends only with `Refused`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The store does not let this writer write: another projector has the claim, or the whole store.
    #[error(transparent)]
    Refused(ClaimError),
    /// In a replay: an error that waiting does not cure.
    #[error(transparent)]
    Trouble(Trouble),
}

/// Of the memory for batches, the part that tails have beside.
const TAIL_PART: usize = 4;

/// How long the log may return no record to a replay although it has more, before that counts as an outage of the log.
const SILENCE: Duration = Duration::from_secs(30);

/// The log has more records by its high watermark, and returns none.
#[derive(Debug, thiserror::Error)]
#[error("no record came from offset {from} on within {waited_s} s, though the partition ends at {high}")]
struct Silent {
    from: Offset,
    high: Offset,
    waited_s: u64,
}

impl PartitionTask {
    /// Projects the partition: claims it, then reads, folds and commits, again and again.
    ///
    /// Stopping takes effect between batches: a batch that was begun is committed. A log or a store that is away is waited
    /// for. Returns
    /// * [`End::Stopped`] when it was stopped, or
    /// * [`End::Reached`] when a replay has come to its end.
    ///
    /// # Errors
    /// * [`Failure::Refused`]: the store does not let this writer write. A live run ends with no other failure.
    /// * [`Failure::Trouble`]: a replay cannot go on.
    #[boxed]
    pub async fn run(&self, outages: &mut Outages<'_>) -> Result<End, Failure> {
        while let Some(claim) = self.claim(outages).await? {
            let ended = match claim.tail {
                None => self.project_until_behind(&claim, outages).await?,
                Some(tail) => self.project_with_tail(&claim, tail, outages).await?,
            };
            if let Some(end) = ended {
                return Ok(end);
            }
        }
        Ok(End::Stopped)
    }

    /// Projects under a claim: reads, folds and commits, again and again; where the partition has a tail, up to its end. `None` if
    /// the partition is to be claimed again.
    pub async fn project(
        &self,
        claim: &Claim,
        tail: Option<&Tail>,
        outages: &mut Outages<'_>,
    ) -> Result<Option<End>, Failure> {
        let (mut from, mut source, mut idle_since) = (claim.resume_from, Source::default(), Instant::now());
        let mut last = LastApplied { behind: from, fingerprint: claim.fingerprint };
        // The rest of a batch behind a barrier.
        let (mut barriers, mut read_already) = (Barriers::of(claim), None);
        let mut reading = Reading::new(self.shared.settings.read_limit);
        while !self.stop.is_cancelled() {
            if self.is_at_end(from) {
                return Ok(Some(End::Reached));
            }
            let (read, mut share) = match read_already.take() {
                Some(batch) => (Ok(batch), None),
                None => self.read(&mut reading, &mut source, from, last).await,
            };
            let batch = match read {
                Ok(batch) => self.up_to_the_end(batch),
                Err(error) => {
                    drop(share);
                    let Some(stored) = self.after_failed_read(outages, claim, from, error).await? else {
                        return Ok(None);
                    };
                    from = stored;
                    continue;
                }
            };
            let (batch, ending) = match tail {
                Some(tail) => tail.passed(batch).await,
                None => (batch, None),
            };
            if let Some(first) = batch.records.first() {
                self.shared.progress.behind(self.partition, Some(first.appended_at_ms));
            }
            if batch.records.is_empty() {
                if batch.to == from && ending.is_none() {
                    if self.nothing_read(outages, claim, from, &mut idle_since).await? == Silence::Long {
                        source = Source::default();
                    }
                    continue;
                }
                let changes = Changes { fingerprint: batch.fingerprint, ..Changes::default() };
                let passed = passing(changes, from, batch.to, 0, &batch.missing, &batch.skipped);
                let Some(reached) = self.skip(outages, claim, from, batch.to, passed).await? else {
                    return Ok(None);
                };
                from = reached;
                idle_since = Instant::now();
                self.shared.progress.reached(self.partition, from);
                if let Some(ending) = ending {
                    self.tail_ended(ending);
                    return Ok(None);
                }
                continue;
            }
            if !barriers.is_open() || self.shared.rate.is_some() {
                // Nothing is held while it waits for others, or for its time.
                share = None;
            }
            outages.log_answers(claim).await;
            if !barriers.is_open() && !self.may_go_on(outages, claim, from, &mut barriers, &batch).await? {
                if let Mode::Replay { .. } = self.mode {
                    return Ok(Some(End::Waits));
                }
                read_already = Some(batch);
                continue;
            }
            if let Some(rate) = &self.shared.rate {
                tokio::select! {
                    () = self.stop.cancelled() => continue,
                    () = rate.pass(batch.records.len()) => {}
                }
            }
            let Some(share) = self.share(share, &batch).await else { continue };
            let (began, is_full) = (Instant::now(), reading.is_full(&batch));
            let (batch, rest) = self.up_to_a_barrier(batch);
            let (to, barrier) = (batch.to, self.barrier_at_the_end(&batch));
            let misplaced = barriers.misplaced(self.partition, &batch.records);
            let Some(reached) = self.apply(outages, claim, from, batch, share, &mut last).await? else {
                return Ok(None);
            };
            from = reached;
            if let Some(ending) = ending {
                self.tail_ended(ending);
                self.shared.progress.reached(self.partition, from);
                return Ok(None);
            }
            if from == to {
                self.shared.metrics.misplaced.inc_by(misplaced);
                if let Some(layouts) = barrier {
                    barriers.passed(layouts);
                }
                read_already = rest;
            }
            idle_since = Instant::now();
            self.shared.progress.reached(self.partition, from);
            if !is_full {
                self.pause(self.shared.settings.batch_interval.saturating_sub(began.elapsed())).await;
            }
        }
        Ok(Some(End::Stopped))
    }

    fn tail_ended(&self, mut ending: Ending<'_>) {
        *ending = None;
        tracing::info!(partition = %self.partition, "the backlog is applied, and all in order again");
    }

    /// Whether a replay has come to its end.
    fn is_at_end(&self, from: Checkpoint) -> bool {
        matches!(self.mode, Mode::Replay { until } if from >= until)
    }

    /// The batch without the part behind the end of a replay, so that its rows and its checkpoint end exactly there.
    fn up_to_the_end(&self, mut batch: Batch) -> Batch {
        let Mode::Replay { until } = self.mode else { return batch };
        if batch.to <= until {
            return batch;
        }
        batch.records.retain(|record| record.offset < until.offset());
        batch.to = batch.records.last().map_or(until, |last| Checkpoint::after(last.offset));
        batch
    }

    /// Claims the partition, however long the store is away; `None` if it is to stop.
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
                    if let Err(error) = self.end_parking(&claim).await {
                        outages.wait(None, Doing::Claiming, error).await?;
                        continue;
                    }
                    self.shared.metrics.claims.inc();
                    self.shared.progress.resumed(partition, claim.resume_from);
                    // The line "assigned" names all partitions at once.
                    tracing::debug!(
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

    /// Where sessions do not wait any more: lets go those that did under another setting.
    async fn end_parking(&self, claim: &Claim) -> Result<(), CommitError> {
        if self.shared.settings.parking.is_some() {
            return Ok(());
        }
        let call = self.shared.progress.call(self.partition, "reading sessions that wait");
        let held = self.shared.store.held_sessions(claim).await;
        drop(call);
        let partition = self.partition;
        let held = held.map_err(|error| CommitError::NotWritten { partition, source: Arc::new(error) })?;
        let sessions: Vec<_> = held.into_iter().map(|(session, ..)| session).collect();
        if !sessions.is_empty() {
            give_up(self, claim, claim.resume_from, sessions).await?;
        }
        Ok(())
    }

    /// After a read that failed: waits until it is time to try again; returns the checkpoint to go on from. A replay does
    /// not wait for records that retention has removed: it begins where the log begins.
    async fn after_failed_read(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        error: ReadError,
    ) -> Result<Option<Checkpoint>, Failure> {
        if let (Mode::Replay { until }, ReadError::Log(LogError::Trimmed { low, .. })) = (self.mode, &error) {
            let to = Checkpoint::at(*low).min(until);
            let removed = Missing::all(from.offset()..to.offset(), MissingCause::Retention);
            let changes = Changes { missing: vec![removed], ..Changes::default() };
            let to = self.skip(outages, claim, from, to, changes).await?;
            if let Some(to) = to {
                self.shared.progress.claimed(self.partition, to);
            }
            return Ok(to);
        }
        let is_lost = matches!(&error, ReadError::Log(error) if is_lost(error));
        outages.wait(Some(claim), Doing::Reading(from), error).await?;
        // An operator may have accepted the loss meanwhile, which moved the checkpoint.
        Ok(Some(if is_lost { self.stored(outages, claim, from).await? } else { from }))
    }

    /// Applies a batch of one record or more; returns the checkpoint to go on from. The share is given back as soon as the
    /// batch is committed, or has failed.
    async fn apply(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        batch: Batch,
        mut share: Share,
        last: &mut LastApplied,
    ) -> Result<Option<Checkpoint>, Failure> {
        let batch = Applying::of(batch);
        let fingerprint = batch.fingerprint;
        let applied = apply(self, claim, from, batch, &mut share).await;
        drop(share);
        match applied {
            Ok(to) => {
                *last = LastApplied { behind: to, fingerprint };
                outages.store_answers(claim).await;
                outages.works(claim).await;
                Ok(Some(to))
            }
            Err(ApplyError::Fenced(error)) => Err(Failure::Refused(error)),
            Err(ApplyError::Interrupted(error)) => self.resume(outages, claim, from, error).await,
        }
    }

    /// The partition's checkpoint in the store; `from` if the store does not answer.
    async fn stored(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
    ) -> Result<Checkpoint, Failure> {
        let call = self.shared.progress.call(self.partition, "reading the checkpoint");
        let stored = self.shared.store.resume(claim).await;
        drop(call);
        match stored {
            Ok(stored) => Ok(stored),
            Err(ClaimError::Store(error)) => {
                outages.wait(Some(claim), Doing::Resuming, error).await?;
                Ok(from)
            }
            Err(refused) => Err(Failure::Refused(refused)),
        }
    }

    /// After a commit that failed: the checkpoint in the store, from which to go on, however long the store is away; `None` if the
    /// partition is to be claimed again.
    async fn resume(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        error: CommitError,
    ) -> Result<Option<Checkpoint>, Failure> {
        let claims_again = claim.tail.is_some() || error.outcome().next() == WriterStep::Claim;
        outages.wait(Some(claim), Doing::Committing(from), error).await?;
        if claims_again {
            return Ok(None);
        }
        while !self.stop.is_cancelled() {
            let call = self.shared.progress.call(self.partition, "reading the checkpoint");
            let stored = self.shared.store.resume(claim).await;
            drop(call);
            match stored {
                Ok(stored) => {
                    // An answer does not prove that the store commits; a checkpoint that has moved does.
                    if stored == from {
                        outages.report(claim).await;
                    } else {
                        outages.store_answers(claim).await;
                    }
                    return Ok(Some(stored));
                }
                Err(ClaimError::Store(error)) => {
                    outages.wait(Some(claim), Doing::Resuming, error).await?;
                }
                Err(refused) => return Err(Failure::Refused(refused)),
            }
        }
        Ok(Some(from))
    }

    /// Moves the checkpoint over offsets without records.
    async fn skip(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: Changes,
    ) -> Result<Option<Checkpoint>, Failure> {
        let call = self.shared.progress.call(self.partition, "moving the checkpoint");
        let moved = self.shared.store.commit(claim, from, to, &changes).await;
        drop(call);
        match moved {
            Ok(_) => {
                self.shared.metrics.missing(&changes.missing);
                outages.store_answers(claim).await;
                Ok(Some(to))
            }
            Err(CommitError::Fenced { partition, held, current }) => {
                Err(Failure::Refused(ClaimError::Fenced { partition, held, current }))
            }
            Err(error) => self.resume(outages, claim, from, error).await,
        }
    }

    /// No record was read: the log has none, or it is away. A replay knows that the log has more: if none comes for long,
    /// that is an outage, which ends with the next record.
    async fn nothing_read(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        idle_since: &mut Instant,
    ) -> Result<Silence, Failure> {
        let is_long = matches!(self.mode, Mode::Replay { .. }) && idle_since.elapsed() >= SILENCE;
        // The library reports once that a broker is away, and then only returns nothing.
        if (outages.is_log_out() || is_long) && !self.stop.is_cancelled() {
            match self.shared.log.extent(self.partition).await {
                Ok(extent) if is_long => {
                    let waited_s = idle_since.elapsed().as_secs();
                    let silent = Silent { from: from.offset(), high: extent.high, waited_s };
                    let error = LogError::Away { doing: "reading records", source: Arc::new(silent) };
                    outages.wait(Some(claim), Doing::Reading(from), error).await?;
                    return Ok(Silence::Long);
                }
                Ok(_) => outages.log_answers(claim).await,
                Err(error) => {
                    *idle_since = Instant::now();
                    outages.wait(Some(claim), Doing::Reading(from), error).await?;
                    return Ok(Silence::Short);
                }
            }
        }
        self.shared.progress.behind(self.partition, None);
        outages.works(claim).await;
        Ok(Silence::Short)
    }

    /// Waits, unless it is to stop.
    pub async fn pause(&self, length: Duration) {
        self.shared.progress.waits(self.partition, length);
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}

impl PartitionTask {
    /// Of this partition.
    pub fn new(shared: Arc<Shared>, partition: Partition, mode: Mode, stop: CancellationToken) -> Self {
        let budget = shared.budget.clone();
        Self { shared, partition, mode, stop, budget }
    }

    /// The same, which can be stopped by itself.
    pub fn pass(&self) -> Self {
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.child_token());
        Self { shared, stop, budget: self.budget.clone(), ..*self }
    }

    /// Another pass over the same partition, which stops with it.
    pub fn pass_beside(&self) -> Self {
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        Self { budget: shared.tail_budget.clone(), shared, stop, ..*self }
    }

    /// Runs, and runs again when it fails, until it is stopped. A failure or a panic stays with this partition.
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
            let wait = outages.task_ended(kind, text);
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

/// Whether the log lost records, which an operator has to accept.
pub(crate) fn is_lost(error: &LogError) -> bool {
    matches!(error, LogError::Trimmed { .. } | LogError::Beyond { .. } | LogError::Rewritten { .. })
}
