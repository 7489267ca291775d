//! The tail of a partition, see [`dashi_domain::tail`]: while the writer goes through a backlog, a second pass of the same
//! writer applies what comes behind it.
//!
//! Both passes hold the partition's claim, and commit by themselves: one moves the checkpoint, the other the tail's end. They
//! meet under a lock: no record is applied by both, and none by neither. When anything fails in one of them, both
//! end between two batches, and the partition is claimed again, which shows where both stand.

use dashi_domain::fold::Changes;
use dashi_domain::parking::session_of;
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::tail::{SessionFilter, Tail as StoredTail};
use dashi_store::{Claim, ClaimError};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Mutex, MutexGuard};

use crate::apply::{ApplyError, Applying, apply, commit_once};
use crate::outage::{Doing, Outages};
use crate::partition::{End, Failure, PartitionTask, is_lost};
use crate::reading::Reading;
use crate::source::{Batch, LastApplied, ReadError, Source};
use crate::survey::Surveyed;

/// A tail that both passes know.
pub(crate) struct Tail {
    from: Checkpoint,
    /// Its end; `None` when the checkpoint has reached it. The pass that moves it, or ends it, holds it until that is committed.
    to: Mutex<Option<Checkpoint>>,
    sessions: SessionFilter,
}

/// The end of a tail, held while the checkpoint moves onto it.
pub(crate) type Ending<'t> = MutexGuard<'t, Option<Checkpoint>>;

impl Tail {
    /// The part of a batch that the checkpoint passes next: up to the tail's end, without what the tail has applied. If it ends
    /// with the tail, the end is held.
    pub async fn passed(&self, mut batch: Batch) -> (Batch, Option<Ending<'_>>) {
        let end = self.to.lock().await;
        let Some(to) = *end else { return (batch, None) };
        let ending = (batch.to >= to).then_some(end);
        if batch.to > to {
            batch.records.retain(|record| record.offset < to.offset());
            batch.to = to;
        }
        batch.fingerprint = batch.last_fingerprint();
        let from = self.from.offset();
        let records = std::mem::take(&mut batch.records).into_iter();
        let (skipped, left): (Vec<_>, Vec<_>) =
            records.partition(|record| record.offset >= from && self.sessions.lets_pass(&record.value));
        batch.skipped = skipped.iter().map(|record| record.offset).collect();
        batch.records = left;
        (batch, ending)
    }

    /// The part of a batch behind the tail that it takes: up to the first record of no session, without those of sessions that
    /// wait.
    fn taken(&self, mut batch: Batch) -> Batch {
        if let Some(place) = batch.records.iter().position(|record| session_of(&record.value).is_none()) {
            batch.to = Checkpoint::at(batch.records[place].offset);
            batch.records.truncate(place);
        }
        batch.fingerprint = batch.last_fingerprint();
        batch.records.retain(|record| self.sessions.lets_pass(&record.value));
        batch.missing = Vec::new();
        batch
    }
}

/// That a partition has a tail, in the metrics.
struct Shown<'m>(&'m Gauge);

impl<'m> Shown<'m> {
    fn of(tails: &'m Gauge) -> Self {
        tails.inc();
        Self(tails)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Why the tail's pass ended early.
enum TailFailure {
    Read(ReadError),
    Apply(ApplyError),
}

impl From<ReadError> for TailFailure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<ApplyError> for TailFailure {
    fn from(error: ApplyError) -> Self {
        Self::Apply(error)
    }
}

impl PartitionTask {
    /// Projects a partition without a tail, until one begins; `None` if it is to be claimed again.
    pub async fn project_until_behind(
        &self,
        claim: &Claim,
        outages: &mut Outages<'_>,
    ) -> Result<Option<End>, Failure> {
        let writer = self.pass();
        let (surveyor, stop) = (writer.pass_beside(), &writer.stop);
        let writing = async {
            let ended = writer.project(claim, None, outages).await;
            stop.cancel();
            ended
        };
        let surveying = async {
            let surveyed = surveyor.survey().await;
            if surveyed.is_some() {
                stop.cancel();
            }
            surveyed
        };
        let (ended, surveyed) = tokio::join!(writing, surveying);
        let ended = ended?;
        match surveyed {
            Some(surveyed) if ended == Some(End::Stopped) && !self.stop.is_cancelled() => {
                self.begin_tail(claim, surveyed, outages).await?;
                Ok(None)
            }
            _ => Ok(ended),
        }
    }

    async fn begin_tail(
        &self,
        claim: &Claim,
        Surveyed { to, sessions }: Surveyed,
        outages: &mut Outages<'_>,
    ) -> Result<(), Failure> {
        let call = self.shared.progress.call(self.partition, "beginning a tail");
        let begun = self.shared.store.begin_tail(claim, to, &sessions).await;
        drop(call);
        match begun {
            Ok(()) => {
                tracing::info!(
                    partition = %self.partition, behind = %to,
                    "there is a backlog: records of sessions that have none in it are applied first from here on"
                );
                Ok(())
            }
            Err(ClaimError::Store(error)) => outages.wait(Some(claim), Doing::BeginningTail(to), error).await,
            Err(refused) => Err(Failure::Refused(refused)),
        }
    }

    /// Projects a partition with a tail, until the checkpoint has reached the tail's end; `None` if the partition is to be
    /// claimed again.
    pub async fn project_with_tail(
        &self,
        claim: &Claim,
        stored: StoredTail,
        outages: &mut Outages<'_>,
    ) -> Result<Option<End>, Failure> {
        let call = self.shared.progress.call(self.partition, "reading the sessions of a backlog");
        let sessions = self.shared.store.tail_sessions(&claim.log, claim.partition).await;
        drop(call);
        let sessions = match sessions {
            Ok(Some(sessions)) => sessions,
            // Somebody deleted it: nobody can know any more what the tail has applied.
            Ok(None) => return self.drop_tail(claim, outages).await,
            Err(error) => {
                outages.wait(Some(claim), Doing::Claiming, error).await?;
                return Ok(None);
            }
        };
        let tail = Tail { from: stored.from, to: Mutex::new(Some(stored.to)), sessions };
        let _shown = Shown::of(&self.shared.metrics.tails);
        let writer = self.pass();
        let (beside, stop) = (writer.pass_beside(), &writer.stop);
        let of_tail = claim.of_tail();
        let writing = async {
            let ended = writer.project(claim, Some(&tail), outages).await;
            stop.cancel();
            ended
        };
        let following = async {
            let ended = beside.follow(&of_tail, &tail).await;
            if ended.is_err() {
                stop.cancel();
            }
            ended
        };
        let (ended, followed) = tokio::join!(writing, following);
        let ended = ended?;
        let Err(failure) = followed else { return Ok(ended) };
        let at = tail.to.into_inner().unwrap_or(stored.to);
        match failure {
            TailFailure::Apply(ApplyError::Fenced(error)) => return Err(Failure::Refused(error)),
            TailFailure::Apply(ApplyError::Interrupted(error)) => {
                outages.wait(Some(claim), Doing::Committing(at), error).await?;
            }
            TailFailure::Read(ReadError::Log(error)) if is_lost(&error) => {
                tracing::warn!(
                    partition = %self.partition, %error,
                    "the log lost records that were applied before its backlog: it is read on from the checkpoint alone"
                );
                return self.drop_tail(claim, outages).await;
            }
            TailFailure::Read(error) => outages.wait(Some(claim), Doing::Reading(at), error).await?,
        }
        Ok(if self.stop.is_cancelled() { Some(End::Stopped) } else { None })
    }

    async fn drop_tail(&self, claim: &Claim, outages: &mut Outages<'_>) -> Result<Option<End>, Failure> {
        let call = self.shared.progress.call(self.partition, "dropping a tail");
        let dropped = self.shared.store.drop_tail(claim).await;
        drop(call);
        match dropped {
            Ok(()) => Ok(None),
            Err(ClaimError::Store(error)) => {
                outages.wait(Some(claim), Doing::Claiming, error).await?;
                Ok(None)
            }
            Err(refused) => Err(Failure::Refused(refused)),
        }
    }

    /// The tail's pass: applies what comes behind the tail, until it is to stop, the checkpoint has reached the tail, or a
    /// record comes that nothing behind it may pass.
    async fn follow(&self, claim: &Claim, tail: &Tail) -> Result<(), TailFailure> {
        if self.shared.settings.parking.is_some() {
            // Which sessions wait is decided in the order of the log.
            return Ok(());
        }
        let (mut source, mut reading) = (Source::default(), Reading::new(self.shared.settings.read_limit));
        let begin = claim.tail.map_or(Checkpoint::START, |tail| tail.to);
        let mut last = LastApplied { behind: begin, fingerprint: claim.tail_fingerprint };
        while !self.stop.is_cancelled() {
            let Some(from) = *tail.to.lock().await else { break };
            let (read, share) = self.read(&mut reading, &mut source, from, last).await;
            let batch = read?;
            let (is_full, is_empty) = (reading.is_full(&batch), batch.to == from);
            let batch = tail.taken(batch);
            if batch.to == from {
                if is_empty {
                    continue;
                }
                break;
            }
            let Some(mut share) = self.share(share, &batch).await else { break };
            let mut end = tail.to.lock().await;
            if *end != Some(from) {
                break;
            }
            let (to, fingerprint) = (batch.to, batch.fingerprint);
            if batch.records.is_empty() {
                commit_once(self, claim, from, to, Changes { fingerprint, ..Changes::default() }, None)
                    .await
                    .map_err(ApplyError::of)?;
            } else {
                apply(self, claim, from, Applying::of_tail(batch), &mut share).await?;
            }
            *end = Some(to);
            drop(end);
            last = LastApplied { behind: to, fingerprint };
            drop(share);
            if !is_full {
                self.pause(self.shared.settings.batch_interval).await;
            }
        }
        Ok(())
    }
}

/// How many of these offsets, which ascend, lie between two checkpoints.
pub(crate) fn between(offsets: &[Offset], from: Checkpoint, to: Checkpoint) -> u64 {
    let before = |at: Checkpoint| offsets.partition_point(|offset| *offset < at.offset());
    (before(to) - before(from).min(before(to))) as u64
}
