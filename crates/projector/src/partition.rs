//! The story of one partition: claim it, read on from the checkpoint, fold, commit, until someone else's turn.

use std::time::{Duration, Instant};

use dashi_domain::position::Checkpoint;
use dashi_domain::record::Record;
use dashi_event_log::{LogError, Reader};
use dashi_store::{Claim, ClaimError};

use crate::apply::{ApplyError, apply};
use crate::story::{Story, chain};

/// Why a story ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It was told to stop.
    Stopped,
    /// Someone else claimed the partition.
    Fenced(ClaimError),
    /// The log no longer has what comes next; only a rebuild helps.
    Lost(LogError),
}

impl Story {
    /// Runs until an [`End`]. Stopping takes effect between batches: a batch that was begun is committed.
    pub async fn run(self) -> End {
        match self.tell().await {
            Ok(()) => End::Stopped,
            Err(end) => end,
        }
    }

    async fn tell(&self) -> Result<(), End> {
        let Some(claim) = self.claim().await else { return Ok(()) };
        let mut from = claim.resume_from;
        let Some(mut reader) = self.open(from).await? else { return Ok(()) };
        tracing::info!(partition = %self.partition, epoch = %claim.epoch, checkpoint = %from, "projecting");
        self.standing.reached(self.partition, from);
        let mut retry = Retry::new(self.retry_wait_max);
        while !self.stop.is_cancelled() {
            let records = match self.read(&mut reader).await {
                Ok(records) => records,
                Err(lost @ (LogError::Trimmed { .. } | LogError::Beyond { .. })) => {
                    self.note(&claim, &lost).await;
                    return Err(End::Lost(lost));
                }
                Err(error) => {
                    self.wait(&mut retry, &error).await;
                    continue;
                }
            };
            let Some(first) = records.first() else {
                self.standing.caught_up(self.partition);
                continue;
            };
            let (began, full) = (Instant::now(), self.is_full(&records));
            self.standing.behind(self.partition, first.appended_at_ms);
            match apply(self, &claim, from, records.into()).await {
                Ok(to) => {
                    from = to;
                    retry.reset();
                }
                Err(ApplyError::Fenced(error)) => return Err(End::Fenced(error)),
                Err(ApplyError::Interrupted(error)) => {
                    self.wait(&mut retry, &error).await;
                    let Some(stored) = self.resume(&claim, &mut retry).await? else { return Ok(()) };
                    self.note(&claim, &error).await;
                    self.seek(&mut reader, stored, &mut retry).await;
                    from = stored;
                }
            }
            self.standing.reached(self.partition, from);
            if !full {
                self.pause(self.batch_interval.saturating_sub(began.elapsed())).await;
            }
        }
        Ok(())
    }

    /// Whether a batch holds all that one may, so that there is probably more.
    fn is_full(&self, records: &[Record]) -> bool {
        records.len() >= self.read_limit.records_max
            || records.iter().map(|record| record.value.len()).sum::<usize>() >= self.read_limit.bytes_max
    }

    /// Takes the partition, however long the store is away; `None` if told to stop.
    async fn claim(&self) -> Option<Claim> {
        let mut retry = Retry::new(self.retry_wait_max);
        while !self.stop.is_cancelled() {
            match self.store.claim(self.log.id(), self.partition, &self.owner).await {
                Ok(claim) => {
                    self.metrics.claims.inc();
                    return Some(claim);
                }
                Err(error) => self.wait(&mut retry, &error).await,
            }
        }
        None
    }

    async fn open(&self, from: Checkpoint) -> Result<Option<Reader>, End> {
        let mut retry = Retry::new(self.retry_wait_max);
        while !self.stop.is_cancelled() {
            match self.log.reader(self.partition, from.offset()).await {
                Ok(reader) => return Ok(Some(reader)),
                Err(error) => self.wait(&mut retry, &error).await,
            }
        }
        Ok(None)
    }

    /// Reads, unless told to stop: then there is nothing more to read.
    async fn read(&self, reader: &mut Reader) -> Result<Vec<Record>, LogError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(Vec::new()),
            records = reader.next(self.read_limit) => records,
        }
    }

    /// Where the claim stands, however long the store is away; `None` if told to stop.
    async fn resume(&self, claim: &Claim, retry: &mut Retry) -> Result<Option<Checkpoint>, End> {
        while !self.stop.is_cancelled() {
            match self.store.resume(claim).await {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(fenced @ ClaimError::Fenced { .. }) => return Err(End::Fenced(fenced)),
                Err(error) => self.wait(retry, &error).await,
            }
        }
        Ok(None)
    }

    async fn seek(&self, reader: &mut Reader, to: Checkpoint, retry: &mut Retry) {
        while !self.stop.is_cancelled() {
            match reader.seek(to.offset()) {
                Ok(()) => return,
                Err(error) => self.wait(retry, &error).await,
            }
        }
    }

    /// Says once what failed, then waits: briefly at first, longer each time, never longer than the limit.
    async fn wait(&self, retry: &mut Retry, error: &(dyn std::error::Error + Sync)) {
        self.metrics.count_retry();
        if retry.attempts == 0 {
            tracing::warn!(partition = %self.partition, error = %chain(error), "interrupted; trying again");
        }
        self.pause(retry.next()).await;
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}

/// How long to wait before trying again.
struct Retry {
    attempts: u32,
    wait_max: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(50);

    fn new(wait_max: Duration) -> Self {
        Self { attempts: 0, wait_max }
    }

    fn next(&mut self) -> Duration {
        let wait = Self::FIRST.saturating_mul(1 << self.attempts.min(16)).min(self.wait_max);
        self.attempts += 1;
        wait
    }

    fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_begin_anew() {
        let mut retry = Retry::new(Duration::from_millis(300));
        let waits: Vec<_> = (0..5).map(|_| retry.next().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 300, 300]);
        retry.reset();
        assert_eq!(retry.next().as_millis(), 50);
    }
}
