//! The task of a spool: it notices that the log is slow, and brings the log what the spool holds, oldest first.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use dashi_domain::position::{LogId, Offset};
use dashi_domain::spool::Mode;

use super::{Inner, Spool, bytes, count, hour_key};
use crate::embedded::Queued;
use crate::forward_spans::ForwardSpans;
use crate::kafka::{KafkaLog, WeakKafkaLog};
use crate::{AppendError, LogError};

/// Records that are on their way to the log at once, at most.
pub(super) const RECORDS_MAX: usize = 2_000;

/// Bytes of them; one record is always sent.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// Records that are so few that new ones wait for them.
const REST_MAX: u64 = 500;

/// How long it waits before it tries a log again that is away: at first, and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long a stop waits for records on their way, which are forwarded again otherwise.
const STOP: Duration = Duration::from_secs(2);

/// The outcome of one attempt to forward.
enum Step {
    /// The log has some records more.
    Forwarded,
    /// The spool holds none.
    Empty,
    /// The log does not take them now.
    Away(String),
    /// Another log has the topic's name.
    Stranded(LogId, String),
    /// The process stops.
    Stopped,
}

/// Runs until the spool or its log is closed, or another log has the topic's name.
pub(super) async fn run(spool: Spool, log: WeakKafkaLog) {
    let shared = &spool.0;
    let tick = (shared.settings.after / 10).clamp(Duration::from_millis(10), Duration::from_millis(250));
    let (mut is_abandoned, mut wait) = (false, AWAY.0);
    loop {
        let mut pause = tick;
        {
            let Some(log) = log.upgrade() else { return };
            let mode = spool.inner().gate.mode();
            match mode {
                Mode::Direct => spool.watch(),
                // The log works: what was sent has its outcome soon.
                Mode::Switching if log.holds() && !spool.is_slow() => {}
                Mode::Spooling | Mode::Returning if log.holds() => {
                    spool.stall(None);
                    wait = AWAY.0;
                }
                Mode::Switching if !is_abandoned => {
                    log.abandon().await;
                    is_abandoned = true;
                }
                Mode::Switching => {}
                Mode::Spooling | Mode::Returning => {
                    if !is_abandoned {
                        // It may have switched without an append that was still on its way.
                        log.abandon().await;
                        is_abandoned = true;
                    }
                    match spool.forward(&log).await {
                        Step::Forwarded => {
                            spool.go_on();
                            (pause, wait) = (Duration::ZERO, AWAY.0);
                        }
                        Step::Empty => is_abandoned = !spool.emptied(&log).await,
                        Step::Away(reason) => {
                            spool.stall(Some(reason));
                            (pause, wait) = (wait, (wait * 2).min(AWAY.1));
                        }
                        Step::Stranded(found, reason) => return spool.strand(found, &reason),
                        Step::Stopped => return,
                    }
                }
            }
        }
        // New records are no reason to try a log sooner that is away.
        let is_away = {
            let inner = spool.inner();
            matches!(inner.gate.mode(), Mode::Spooling | Mode::Returning) && inner.trouble.is_some()
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.wake.notified(), if !is_away => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Spool {
    /// Switches if the log takes too long for an append.
    fn watch(&self) {
        let mut inner = self.inner();
        let oldest = inner.began.first_key_value().map(|(_, began)| began.elapsed());
        if oldest.is_none_or(|waited| waited < self.0.settings.after) {
            return;
        }
        note_trouble(&mut inner, Some(format!("no acknowledgement within {:?}", self.0.settings.after)));
        let released = inner.gate.switch();
        self.release(&mut inner, released);
        drop(inner);
        self.0.wake.notify_one();
    }

    /// Whether an append waits for its outcome for longer than one may.
    fn is_slow(&self) -> bool {
        let oldest = self.inner().began.first_key_value().map(|(_, began)| began.elapsed());
        oldest.is_some_and(|waited| waited >= self.0.settings.after)
    }

    /// Brings the log the oldest records.
    async fn forward(&self, log: &KafkaLog) -> Step {
        let (next, is_troubled, returns) = {
            let inner = self.inner();
            (inner.next, inner.trouble.is_some(), inner.gate.mode() == Mode::Returning)
        };
        // Less than the log's own limit, so that no record of a batch is given up while a later one is still tried; while
        // appends wait for the rest of the spool, as long as one may wait.
        let limit = log.delivery_timeout().mul_f64(0.75);
        let limit = if returns { limit.min(self.0.settings.after) } else { limit };
        let queued = match self.0.file.front(next, RECORDS_MAX, BYTES_MAX).await {
            Ok(queued) => queued,
            Err(error) => return Step::Away(with_cause(&error)),
        };
        let Some(last) = queued.last() else {
            // It may have nothing and not know whether the log is back.
            if is_troubled && let Some(step) = self.ask(log, true, limit).await {
                return step;
            }
            // Records that the log has may still be in the file, if it could not be written.
            return match self.remove(next).await {
                Ok(()) => Step::Empty,
                Err(error) => Step::Away(with_cause(&error)),
            };
        };
        let end = last.offset.next();
        if let Some(step) = self.ask(log, is_troubled, limit).await {
            return step;
        }
        let records = queued.iter().map(|queued| queued.record.clone()).collect();
        let spans = ForwardSpans::begin(&self.0.settings.tracer, "spool", &queued);
        let outcomes = tokio::select! {
            outcomes = log.append(records) => outcomes,
            () = tokio::time::sleep(limit) => {
                log.abandon().await;
                return Step::Away(format!("it did not acknowledge {} records within {limit:?}", queued.len()));
            }
            () = async { self.0.stop.cancelled().await; tokio::time::sleep(STOP).await } => {
                log.abandon().await;
                return Step::Stopped;
            }
        };
        if let Some(spans) = spans {
            spans.end(&outcomes);
        }
        let open = |outcome: &Result<_, AppendError>| match outcome {
            Err(AppendError::TooLarge { .. }) | Ok(_) => None,
            Err(error) => Some(with_cause(error)),
        };
        let trouble = outcomes.iter().position(|outcome| open(outcome).is_some());
        let done = trouble.unwrap_or(queued.len());
        for (queued, outcome) in queued.iter().zip(&outcomes).take(done) {
            if let Err(AppendError::TooLarge { bytes }) = outcome
                && let Err(error) = self.set_aside(queued, *bytes).await
            {
                return Step::Away(with_cause(&error));
            }
        }
        let removed = match (queued.get(done), done) {
            (_, 0) => Ok(()),
            (Some(kept), _) => self.forwarded(&queued[..done], &outcomes, kept.offset).await,
            (None, _) => self.forwarded(&queued, &outcomes, end).await,
        };
        match (removed, trouble.and_then(|at| open(&outcomes[at]))) {
            (_, Some(reason)) => {
                log.abandon().await;
                Step::Away(reason)
            }
            (Err(error), None) => Step::Away(with_cause(&error)),
            (Ok(()), None) => Step::Forwarded,
        }
    }

    /// Asks whether the log takes records, and is still the one that they are for; `None` if so. A log that is away is not given
    /// records until it answers: of those the outcome would be unknown.
    async fn ask(&self, log: &KafkaLog, is_troubled: bool, limit: Duration) -> Option<Step> {
        let answers = async {
            log.is_same().await?;
            if !is_troubled {
                return Ok(());
            }
            if log.began_away() {
                // Nobody has looked at its settings yet.
                log.look().await;
            }
            log.probe().await
        };
        let silent = || Err(LogError::away("asking whether it is back")(Silent(limit)));
        match tokio::time::timeout(limit, answers).await.unwrap_or_else(|_| silent()) {
            Ok(()) => None,
            Err(LogError::Replaced { found, topic, known }) => {
                let error = LogError::Replaced { found: found.clone(), topic, known };
                Some(Step::Stranded(found, error.to_string()))
            }
            Err(error) => Some(Step::Away(with_cause(&error))),
        }
    }

    /// The log has these records; the first one that it has not is at `next`. Removes them from the file; if that fails, it
    /// is tried again before the next records, and they are not forwarded again by this process.
    async fn forwarded<T>(
        &self,
        queued: &[Queued],
        outcomes: &[Result<T, AppendError>],
        next: Offset,
    ) -> Result<(), LogError> {
        {
            let mut inner = self.inner();
            inner.next = next;
            for (queued, _) in queued.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()) {
                inner.usage.records = inner.usage.records.saturating_sub(1);
                inner.usage.bytes = inner.usage.bytes.saturating_sub(bytes(&queued.record));
                inner.forwarded += 1;
                let key = hour_key(&queued.record);
                if let Some(records) = inner.hours.get_mut(&key) {
                    *records -= 1;
                    if *records == 0 {
                        inner.hours.remove(&key);
                    }
                }
            }
        }
        self.remove(next).await
    }

    async fn remove(&self, next: Offset) -> Result<(), LogError> {
        self.0.file.remove_front(next).await?;
        let oldest_ms = self.0.file.oldest_ms().await?;
        let mut inner = self.inner();
        // A record that is on its way into the file is not older than this.
        if oldest_ms.is_some() || self.0.pending.load(SeqCst) == 0 {
            inner.usage.oldest_ms = oldest_ms;
        }
        Ok(())
    }

    /// Keeps a record that the log refuses for good out of the way of the others.
    async fn set_aside(&self, queued: &Queued, size: usize) -> Result<(), LogError> {
        self.0.file.set_aside(queued.offset).await?;
        tracing::error!(
            bytes = size,
            session = %queued.record.session_id,
            "the log refuses a spooled event for its size: it is set aside in the spool and tried again at the next start; \
             raise the topic's max.message.bytes"
        );
        let mut inner = self.inner();
        inner.usage.records = inner.usage.records.saturating_sub(1);
        inner.aside += 1;
        Ok(())
    }

    /// The log took records. If few are left, new ones wait for them.
    fn go_on(&self) {
        let mut inner = self.inner();
        note_trouble(&mut inner, None);
        if inner.usage.records <= REST_MAX {
            inner.gate.drain();
        }
    }

    /// The log did not take records, for this reason, or they wait for the layout: new ones go into the spool.
    fn stall(&self, reason: Option<String>) {
        let mut inner = self.inner();
        if reason.is_some() {
            note_trouble(&mut inner, reason);
        }
        let released = inner.gate.stalled();
        self.release(&mut inner, released);
    }

    /// Goes back to the direct way if the spool holds nothing; returns whether it does.
    async fn emptied(&self, log: &KafkaLog) -> bool {
        if self.0.is_stale.load(SeqCst) {
            self.count_again().await;
        }
        let (forwarded, abandoned) = {
            let mut inner = self.inner();
            if log.holds() {
                return false;
            }
            if self.0.pending.load(SeqCst) > 0 || inner.usage.records > 0 || self.0.is_stale.load(SeqCst) {
                // What is on its way into the spool is the rest of it.
                inner.gate.drain();
                return false;
            }
            inner.trouble = None;
            let released = inner.gate.emptied();
            (inner.forwarded, self.release_to_log(&mut inner, log, released))
        };
        drop(abandoned);
        tracing::info!(forwarded, "the log has all events of the spool; new ones go to the log again");
        if let Err(error) = self.0.file.give_space_back().await {
            tracing::debug!(error = %error, "the spool's space cannot be given back");
        }
        true
    }

    /// Counts the content of the file, in place of counts that may be wrong; later, if records are on their way into it.
    async fn count_again(&self) {
        let spooled = self.inner().spooled;
        if self.0.pending.load(SeqCst) > 0 {
            return;
        }
        self.0.is_stale.store(false, SeqCst);
        let counted = count(&self.0.file).await;
        let mut inner = self.inner();
        match counted {
            Ok((usage, hours)) if self.0.pending.load(SeqCst) == 0 && inner.spooled == spooled => {
                (inner.usage, inner.hours) = (usage, hours);
            }
            _ => self.0.is_stale.store(true, SeqCst),
        }
    }

    fn strand(&self, found: LogId, reason: &str) {
        let mut inner = self.inner();
        tracing::error!(
            records = inner.usage.records,
            directory = %self.0.settings.directory.display(),
            "the spool keeps its events, which wait for a log that is gone: {reason}"
        );
        // What waits goes into the spool, too: it was promised nothing yet, and it may be adopted with the rest.
        let released = inner.gate.stalled();
        self.release(&mut inner, released);
        inner.trouble = Some(reason.to_owned());
        inner.stranded = Some(found);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct Silent(Duration);

/// Notes why the log does not take records, and logs it when it begins and ends.
pub(super) fn note_trouble(inner: &mut Inner, trouble: Option<String>) {
    let (before, records) = (inner.trouble.is_some(), inner.usage.records);
    match (&trouble, before) {
        (Some(reason), false) => {
            tracing::error!(reason, "the event log is away or slow: events go into the spool");
        }
        (None, true) => tracing::info!(records, "the event log is back: the spool's events are forwarded"),
        _ => {}
    }
    inner.trouble = trouble;
}

/// An error and its cause.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
