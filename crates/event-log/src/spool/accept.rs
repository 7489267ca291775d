//! Taking records: to the log, or into the spool.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use dashi_domain::spool::{Entry, Mode, Ticket};
use tokio::sync::oneshot;

use super::forward::{note_trouble, with_cause};
use super::{Inner, Spool, bytes, hour_key, now_ms};
use crate::embedded::Submitted;
use crate::kafka::{KafkaLog, MESSAGE_BYTES_MAX, Sent};
use crate::{AppendError, NewRecord};

/// Bytes of a record's value that a topic may take; a message has some more beside it.
pub(crate) const RECORD_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1_024;

/// Records for which it is not decided yet which way they go.
pub(super) struct Waiting {
    records: Vec<NewRecord>,
    way: oneshot::Sender<Result<Way, AppendError>>,
}

/// The way on which records were sent.
pub(super) enum Way {
    /// To the log.
    Direct(Seat, Sent, Vec<NewRecord>),
    /// Into the spool.
    Spool(Placed),
}

/// The first step of an append.
enum Step {
    Go(Way),
    Wait(oneshot::Receiver<Result<Way, AppendError>>),
    /// To the log, without the spool, which keeps what it has and takes no more.
    Past(Vec<NewRecord>),
}

impl Spool {
    /// Makes records durable: in the log, or in the spool. One result for each, in their order.
    pub(crate) async fn accept(
        &self,
        log: &KafkaLog,
        mut records: Vec<NewRecord>,
    ) -> Vec<Result<(), AppendError>> {
        // No log would ever take them from the spool.
        let too_large: Vec<Option<AppendError>> = records.iter().map(too_large).collect();
        let mut fits = too_large.iter().map(Option::is_none);
        records.retain(|_| fits.next().unwrap_or(true));
        let mut outcomes = self.accept_fitting(log, records).await.into_iter();
        let outcome = |too_large: Option<AppendError>| match too_large {
            Some(error) => Err(error),
            None => outcomes.next().unwrap_or(Err(AppendError::Closed)),
        };
        too_large.into_iter().map(outcome).collect()
    }

    async fn accept_fitting(&self, log: &KafkaLog, records: Vec<NewRecord>) -> Vec<Result<(), AppendError>> {
        let count = records.len();
        let way = match self.enter(log, records) {
            Ok(Step::Go(way)) => Ok(way),
            Ok(Step::Wait(way)) => way.await.unwrap_or(Err(AppendError::Closed)),
            Ok(Step::Past(records)) => {
                return log.append(records).await.into_iter().map(|outcome| outcome.map(drop)).collect();
            }
            Err(error) => Err(error),
        };
        match way {
            Ok(way) => self.finish(log, way, count).await,
            Err(error) => vec![Err(error); count],
        }
    }

    /// Sends records on their way, or has them wait for it.
    fn enter(&self, log: &KafkaLog, records: Vec<NewRecord>) -> Result<Step, AppendError> {
        if let Some(reason) = log.refusal() {
            return Err(AppendError::Refused(reason));
        }
        let mut inner = self.inner();
        if inner.stranded.is_some() {
            return Ok(Step::Past(records));
        }
        if log.holds() {
            // Everything goes into the spool until the layout is open, and is forwarded by that one.
            let released = inner.gate.switch();
            self.release(&mut inner, released);
        }
        match inner.gate.enter() {
            // Under the lock, so that the producer gets the records in the order of their tickets.
            Entry::Direct(ticket) => self.send(&mut inner, log, ticket, records).map(Step::Go),
            Entry::Waits(ticket) => {
                let (way, receiver) = oneshot::channel();
                inner.waiting.insert(ticket, Waiting { records, way });
                Ok(Step::Wait(receiver))
            }
            Entry::Spool => self.place(&mut inner, records).map(Way::Spool).map(Step::Go),
        }
    }

    /// Gives records of a direct append to the producer.
    fn send(
        &self,
        inner: &mut Inner,
        log: &KafkaLog,
        ticket: Ticket,
        records: Vec<NewRecord>,
    ) -> Result<Way, AppendError> {
        match log.send(&records) {
            Ok(sent) => {
                inner.began.insert(ticket, Instant::now());
                Ok(Way::Direct(Seat { spool: self.clone(), ticket: Some(ticket) }, sent, records))
            }
            Err(error) => {
                let released = inner.gate.settled(ticket);
                self.release(inner, released);
                Err(error)
            }
        }
    }

    /// Waits until records are durable. Those that the log does not acknowledge go into the spool.
    async fn finish(&self, log: &KafkaLog, mut way: Way, count: usize) -> Vec<Result<(), AppendError>> {
        let mut outcomes = vec![Err(AppendError::Closed); count];
        let mut places: Vec<usize> = (0..count).collect();
        loop {
            let (mut seat, sent, records) = match way {
                Way::Direct(seat, sent, records) => (seat, sent, records),
                Way::Spool(placed) => {
                    let durable = placed.durable().await;
                    places.iter().for_each(|place| outcomes[*place] = durable.clone());
                    return outcomes;
                }
            };
            let (mut left, mut unconfirmed, mut reason) = (Vec::new(), Vec::new(), None);
            let got = log.outcomes(sent, &records).await;
            for ((place, outcome), record) in places.iter().zip(got).zip(records) {
                if let Err(error) = &outcome
                    && is_open(error)
                {
                    reason.get_or_insert_with(|| with_cause(error));
                    left.push(*place);
                    unconfirmed.push(record);
                }
                outcomes[*place] = outcome.map(drop);
            }
            let Some(ticket) = seat.ticket.take_if(|_| !left.is_empty()) else { return outcomes };
            let (sender, receiver) = oneshot::channel();
            {
                let mut inner = self.inner();
                inner.began.remove(&ticket);
                if inner.gate.mode() == Mode::Direct {
                    note_trouble(&mut inner, reason);
                }
                inner.waiting.insert(ticket, Waiting { records: unconfirmed, way: sender });
                let released = inner.gate.failed(ticket);
                self.release(&mut inner, released);
            }
            // The forwarding task abandons the producer.
            self.0.wake.notify_one();
            way = match receiver.await.unwrap_or(Err(AppendError::Closed)) {
                Ok(way) => way,
                Err(error) => {
                    left.iter().for_each(|place| outcomes[*place] = Err(error.clone()));
                    return outcomes;
                }
            };
            places = left;
        }
    }

    /// Puts the records of these appends into the queue of the spool's file, in this order.
    pub(super) fn release(&self, inner: &mut Inner, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if let Some(Waiting { records, way }) = inner.waiting.remove(&ticket) {
                // The caller may have gone; its records go into the spool all the same.
                let _ = way.send(self.place(inner, records).map(Way::Spool));
            }
        }
        self.0.wake.notify_one();
    }

    /// Gives the records of these appends to the producer, in this order. Returns the ways on which nobody
    /// waits any more, to be dropped without the lock.
    pub(super) fn release_to_log(&self, inner: &mut Inner, log: &KafkaLog, tickets: Vec<Ticket>) -> Vec<Way> {
        let mut abandoned = Vec::new();
        for ticket in tickets {
            match inner.waiting.remove(&ticket) {
                Some(Waiting { records, way }) => {
                    let sent = self.send(inner, log, ticket, records);
                    abandoned.extend(way.send(sent).err().and_then(Result::ok));
                }
                None => {
                    let released = inner.gate.settled(ticket);
                    self.release(inner, released);
                }
            }
        }
        abandoned
    }

    /// Puts records into the queue of the spool's file, if its bounds allow.
    fn place(&self, inner: &mut Inner, records: Vec<NewRecord>) -> Result<Placed, AppendError> {
        let (count, size, now_ms) = (records.len() as u64, records.iter().map(bytes).sum(), now_ms());
        if let Err(full) = self.0.bounds.admit(&inner.usage, size, now_ms) {
            if inner.refused == 0 {
                tracing::error!(reason = %full, "the spool is full: events are answered 503");
            }
            inner.refused += count;
            inner.refused_bytes = size;
            return Err(AppendError::SpoolFull(full));
        }
        let keys: Vec<_> = records.iter().map(hour_key).collect();
        let submitted = self.0.file.submit(records)?;
        if inner.refused > 0 {
            tracing::info!(refused = inner.refused, "the spool takes events again");
            inner.refused = 0;
        }
        self.0.pending.fetch_add(1, SeqCst);
        inner.usage.records += count;
        inner.usage.bytes += size;
        inner.usage.oldest_ms.get_or_insert(now_ms);
        for key in keys {
            *inner.hours.entry(key).or_default() += 1;
        }
        Ok(Placed { spool: self.clone(), submitted: Some(submitted), records: count })
    }
}

/// The place of a direct append among those that the gate waits for. Left on drop, which takes the lock.
pub(super) struct Seat {
    spool: Spool,
    ticket: Option<Ticket>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut inner = self.spool.inner();
        inner.began.remove(&ticket);
        let released = inner.gate.settled(ticket);
        self.spool.release(&mut inner, released);
    }
}

/// Records in the queue of the spool's file.
pub(super) struct Placed {
    spool: Spool,
    submitted: Option<Submitted>,
    records: u64,
}

impl Placed {
    /// Waits until they are durable.
    async fn durable(mut self) -> Result<(), AppendError> {
        let Some(submitted) = self.submitted.take() else { return Err(AppendError::Closed) };
        let outcome = submitted.outcome().await;
        match &outcome {
            Ok(_) => self.spool.inner().spooled += self.records,
            Err(_) => self.spool.0.is_stale.store(true, SeqCst),
        }
        outcome.map(drop)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // It may be dropped under the lock.
        if self.submitted.is_some() {
            // Nobody waited for the outcome, so the records are counted again.
            self.spool.0.is_stale.store(true, SeqCst);
        }
        self.spool.0.pending.fetch_sub(1, SeqCst);
        self.spool.0.wake.notify_one();
    }
}

/// Whether a record may go into the spool after this outcome: it may be in the log or not, and may be taken later.
fn is_open(error: &AppendError) -> bool {
    matches!(error, AppendError::Unconfirmed(_) | AppendError::Full | AppendError::Closed)
}

fn too_large(record: &NewRecord) -> Option<AppendError> {
    let bytes = record.value.len();
    (bytes > RECORD_BYTES_MAX).then_some(AppendError::TooLarge { bytes })
}
