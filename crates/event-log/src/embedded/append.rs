//! Appending: one writer task that writes all waiting appends as one frame with one fsync (group commit).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashi_domain::position::{Offset, Partition};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::fmt::Hyphenated;

use super::EmbeddedLog;
use super::appender::{Appender, FRAME_BYTES};
use super::catalogue::now_ms;
use super::frame::FrameBuilder;
use crate::error::Cause;
use crate::{AppendError, NewRecord};

/// The records of one call, and where the partition and offset of each are sent once they are durable.
pub(super) struct Append {
    records: Vec<NewRecord>,
    /// The partition of all of them; by their keys if there is none.
    to: Option<Partition>,
    done: oneshot::Sender<Result<Vec<(Partition, Offset)>, AppendError>>,
}

impl EmbeddedLog {
    pub(crate) async fn append(
        &self,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let count = records.len();
        match self.enqueue(records, None).await {
            Ok(offsets) => offsets.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    /// Appends to one partition, which the log has, whatever the records' keys.
    pub(crate) async fn append_to(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let count = records.len();
        match self.enqueue(records, Some(partition)).await {
            Ok(offsets) => offsets.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    /// Waits until the records are durable; returns the partition and offset of each, in their order.
    async fn enqueue(
        &self,
        records: Vec<NewRecord>,
        to: Option<Partition>,
    ) -> Result<Vec<(Partition, Offset)>, AppendError> {
        self.submit_to(records, to)?.outcome().await
    }

    /// Puts records into the queue of the writer, behind those of earlier calls.
    pub(crate) fn submit(&self, records: Vec<NewRecord>) -> Result<Submitted, AppendError> {
        self.submit_to(records, None)
    }

    fn submit_to(&self, records: Vec<NewRecord>, to: Option<Partition>) -> Result<Submitted, AppendError> {
        let (done, outcome) = oneshot::channel();
        self.0.queue.try_send(Append { records, to, done }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => AppendError::Full,
            mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
        })?;
        Ok(Submitted(outcome))
    }
}

/// Records in the writer's queue. They are written whether or not somebody waits for them.
pub(crate) struct Submitted(oneshot::Receiver<Result<Vec<(Partition, Offset)>, AppendError>>);

impl Submitted {
    /// Waits until they are durable; returns the partition and offset of each, in their order.
    pub(crate) async fn outcome(self) -> Result<Vec<(Partition, Offset)>, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// The only task of this process that appends, on a thread of its own, for it waits for the disk. Another process may append,
/// too: the lock of the directory serialises them.
pub(super) struct Writer {
    pub(super) appender: Appender,
    /// Appends that share one fsync, at most.
    pub(super) batch_max: usize,
    /// Appends refused since the log could last be written.
    pub(super) refused: usize,
    /// Whether the last append was refused, for others of this process.
    pub(super) is_failing: Arc<AtomicBool>,
}

impl Writer {
    /// Runs until the queue is closed.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Append>, close: CancellationToken) {
        let mut appends = Vec::with_capacity(self.batch_max);
        loop {
            let taken = tokio::select! {
                biased;
                taken = waiting.recv_many(&mut appends, self.batch_max) => taken,
                () = close.cancelled() => {
                    // Appends in the queue still get their outcome; no new one gets in.
                    waiting.close();
                    waiting.recv_many(&mut appends, self.batch_max).await
                }
            };
            if taken == 0 {
                return;
            }
            let committed = self.commit(&appends);
            self.is_failing.store(committed.is_err(), Ordering::SeqCst);
            match committed {
                Ok(offsets) => {
                    if self.refused > 0 {
                        tracing::info!(refused = self.refused, "the event log can be written again");
                        self.refused = 0;
                    }
                    let mut offsets = offsets.into_iter();
                    for append in appends.drain(..) {
                        let of_append = offsets.by_ref().take(append.records.len()).collect();
                        // The caller may have gone; its records are in the log all the same.
                        let _ = append.done.send(Ok(of_append));
                    }
                }
                Err(error) => {
                    // Logged once: the logs may lie on the disk that is full.
                    if self.refused == 0 {
                        tracing::error!(error = %error, appends = taken, "the event log cannot be written");
                    }
                    self.refused += taken;
                    let cause: Cause = Arc::new(error);
                    for append in appends.drain(..) {
                        let _ = append.done.send(Err(AppendError::Unconfirmed(Arc::clone(&cause))));
                    }
                }
            }
        }
    }

    /// Writes all records; they are durable when it returns `Ok`. Returns the partition and offset of each, in their order. They
    /// are spread over the partitions that the log has now, whichever process let it grow.
    fn commit(&mut self, appends: &[Append]) -> io::Result<Vec<(Partition, Offset)>> {
        let now_ms = now_ms();
        let mut held = self.appender.hold(now_ms)?;
        let (mut next, layout) = held.with(|state| (state.next.clone(), state.layout));
        let count = appends.iter().map(|append| append.records.len()).sum();
        let (mut places, mut order) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut key = [0; Hyphenated::LENGTH];
        for append in appends {
            for record in &append.records {
                let by_key = |key: &mut [u8]| {
                    layout.partition_of(record.session_id.hyphenated().encode_lower(key).as_bytes())
                };
                let partition = append.to.unwrap_or_else(|| by_key(&mut key));
                let offset =
                    next.get_mut(partition.number() as usize).ok_or_else(|| no_partition(partition))?;
                order.push((partition, places.len(), record));
                places.push((partition, Offset::new(*offset)));
                *offset += 1;
            }
        }
        // Those of one partition together, in their order.
        order.sort_unstable_by_key(|(partition, place, _)| (*partition, *place));
        let mut frame = FrameBuilder::default();
        for (partition, place, record) in order {
            if frame.bytes() > 0 && frame.bytes() + record.value.len() > FRAME_BYTES {
                held.write(&mut frame, layout)?;
            }
            frame.push(partition, places[place].1, now_ms, record.session_id, &record.value);
        }
        held.write(&mut frame, layout)?;
        Ok(places)
    }
}

fn no_partition(partition: Partition) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("the log has no partition {partition}"))
}
