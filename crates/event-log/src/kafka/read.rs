//! Reading one partition from an exact offset. Records that a read returns were in this log, not in another one that took
//! its name: see [`KafkaLog::verify`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use futures::FutureExt as _;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::client::{FETCH_BYTES, Quiet, reader_config};
use super::{ASK, KafkaLog, topic_id};
use crate::{Extent, LogError, ReadLimit};

/// Records that one fetch brings only from a backlog.
const MANY: usize = 500;

/// How long a batch that is not full waits for the next fetch of a backlog.
const NEXT_FETCH: Duration = Duration::from_millis(20);

/// See [`crate::Reader`].
pub struct KafkaReader {
    log: KafkaLog,
    partition: Partition,
    consumer: StreamConsumer<Quiet>,
    next: Offset,
    /// Records that a call has taken from the consumer and not returned yet, in case its future is dropped.
    taken: Vec<Record>,
    /// The brokers that `taken` came from.
    brokers: BTreeSet<Option<i32>>,
    /// An error that came behind records; the next call returns it. The library reports some errors once and then is
    /// silent, so an error that got lost would leave the reader waiting for ever.
    failed: Option<KafkaError>,
    /// The client has stopped, or is to read from another offset; the next call makes another one at `next`. Where the log does
    /// not have that offset, it gets the same error if nothing has changed.
    stopped: bool,
}

impl KafkaLog {
    pub(crate) fn reader(&self, partition: Partition, from: Offset) -> Result<KafkaReader, LogError> {
        Ok(KafkaReader {
            log: self.clone(),
            partition,
            consumer: self.consumer_at(partition, from)?,
            next: from,
            taken: Vec::new(),
            brokers: BTreeSet::new(),
            failed: None,
            stopped: false,
        })
    }

    /// A client that reads the partition from this offset on, and is assigned nothing else as long as it is there: one that is
    /// assigned its partition anew, or closed, while the stop of a former assignment is under way ends the process by an
    /// assertion, for the second stop finds the partition stopped (confluentinc/librdkafka#5574).
    fn consumer_at(&self, partition: Partition, from: Offset) -> Result<StreamConsumer<Quiet>, LogError> {
        let consumer: StreamConsumer<Quiet> = reader_config(&self.0.settings)
            .create_with_context(Quiet::default())
            .map_err(LogError::away("making a reader"))?;
        assignment(&self.0.settings.topic, partition, from)
            .and_then(|assignment| consumer.assign(&assignment))
            .map_err(LogError::away("assigning a partition to a reader"))?;
        Ok(consumer)
    }

    pub(crate) async fn offset_at(&self, partition: Partition, at_ms: i64) -> Result<Offset, LogError> {
        let found = self
            .ask("looking for a time", move |shared| {
                // Only a consumer can ask; the look-up takes times in the place of offsets.
                let consumer: BaseConsumer<Quiet> =
                    reader_config(&shared.settings).create_with_context(Quiet::default())?;
                let wanted = assignment(&shared.settings.topic, partition, Offset::new(at_ms.max(0) as u64))?;
                let found = consumer.offsets_for_times(wanted, ASK)?;
                let element = found.elements().first().map(|element| (element.error(), element.offset()));
                match element {
                    Some((Ok(()), offset)) => Ok(offset),
                    Some((Err(error), _)) => Err(error),
                    None => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition)),
                }
            })
            .await?;
        match found {
            rdkafka::Offset::Offset(offset) => Ok(Offset::new(offset.max(0) as u64)),
            // No record is as late.
            _ => Ok(self.extent(partition).await?.high),
        }
    }
}

impl KafkaReader {
    /// The next call reads from this offset on, by a client of its own.
    pub(crate) fn seek(&mut self, offset: Offset) {
        self.next = offset;
        self.taken.clear();
        self.brokers.clear();
        self.failed = None;
        self.stopped = true;
    }

    /// The offset behind the last record that it returned, and behind markers and aborted records that follow it.
    pub(crate) fn passed(&self) -> Offset {
        // That of a client that has stopped may be beyond records that are to be read again.
        let positions = self.consumer.position().ok().filter(|_| !self.stopped);
        let position = positions.and_then(|list| match list.elements().first()?.offset() {
            rdkafka::Offset::Offset(offset) => Some(Offset::new(offset.max(0) as u64)),
            _ => None,
        });
        // Records that were taken and not returned yet are not passed.
        let next = self.taken.first().map_or(self.next, |record| record.offset);
        if self.taken.is_empty() { next.max(position.unwrap_or(next)) } else { next }
    }

    pub(crate) async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        if let Some(reason) = self.log.0.topic.refusal() {
            return Err(LogError::Refused { reason });
        }
        if self.stopped {
            self.consumer = self.log.consumer_at(self.partition, self.next)?;
            self.stopped = false;
        }
        let mut bytes = self.taken.iter().map(|record| record.value.len()).sum::<usize>();
        if self.taken.is_empty() {
            let received = match self.failed.take() {
                Some(error) => Err(error),
                None => match tokio::time::timeout(limit.wait, self.consumer.recv()).await {
                    Err(_) => return self.nothing(),
                    Ok(received) => received.map(|message| copy(self.partition, &message)),
                },
            };
            match received {
                Ok(received) => bytes += self.take(received),
                Err(error) => return Err(self.failure(error).await),
            }
        }
        while self.taken.len() < limit.records_max && bytes < limit.bytes_max {
            let received = match self.consumer.recv().now_or_never() {
                Some(received) => received,
                None if bytes >= FETCH_BYTES / 2 || self.taken.len() >= MANY => {
                    // There is probably a backlog, and the next fetch is under way. Nothing is lost if this is dropped.
                    match tokio::time::timeout(NEXT_FETCH, self.consumer.recv()).await {
                        Ok(received) => received,
                        Err(_) => break,
                    }
                }
                None => break,
            };
            match received.map(|message| copy(self.partition, &message)) {
                Ok(received) => bytes += self.take(received),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        self.verify().await?;
        Ok(std::mem::take(&mut self.taken))
    }

    /// No record came in time. If the topic holds another log now, none ever will: that is an error.
    fn nothing(&self) -> Result<Vec<Record>, LogError> {
        match self.log.0.topic.replaced() {
            Some(found) => Err(self.log.is_replaced(found)),
            None => Ok(Vec::new()),
        }
    }

    /// Proves that the records taken are of this log. If the broker does not answer, they are dropped and read again: the
    /// broker that they came from may be gone for good.
    async fn verify(&mut self) -> Result<(), LogError> {
        let after = Instant::now();
        for broker in self.brokers.clone() {
            let Err(error) = self.log.verify(broker, after).await else { continue };
            if let Some(first) = self.taken.first().map(|record| record.offset) {
                self.seek(first);
            }
            return Err(error);
        }
        self.brokers.clear();
        Ok(())
    }

    /// Returns the size of the record's value.
    fn take(&mut self, (record, broker): (Record, Option<i32>)) -> usize {
        let bytes = record.value.len();
        self.next = record.offset.next();
        self.taken.push(record);
        self.brokers.insert(broker);
        bytes
    }

    async fn failure(&mut self, error: KafkaError) -> LogError {
        let is_of_the_offset = matches!(
            &error,
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::LogTruncation
            )
        );
        let is_of_the_topic = matches!(
            &error,
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
            )
        );
        if !is_of_the_offset && !is_of_the_topic {
            return LogError::away("reading records")(error);
        }
        let (partition, from) = (self.partition, self.next);
        // Noted before the first await: this future may be dropped, or the cluster may not answer.
        self.stopped = true;
        // Another topic of the same name has other ends, and other partitions.
        let asked = Instant::now();
        if let Err(error) = self.log.verify(None, asked).await {
            return error;
        }
        if is_of_the_topic {
            return LogError::away("reading records")(error);
        }
        let extent = self.log.extent(partition).await;
        // The extent is that of the log that has the name now.
        if let Err(error) = self.log.verify(None, Instant::now()).await {
            return error;
        }
        match extent {
            Err(away) => away,
            Ok(Extent { low, .. }) if from < low => LogError::Trimmed { partition, from, low },
            Ok(Extent { high, .. }) if from > high => LogError::Beyond { partition, from, high },
            // The broker that was asked did not know the offset yet; another leader does.
            Ok(_) => LogError::away("reading records")(error),
        }
    }
}

/// One partition from one offset.
pub(super) fn assignment(
    topic: &str,
    partition: Partition,
    from: Offset,
) -> Result<TopicPartitionList, KafkaError> {
    let mut assignment = TopicPartitionList::new();
    let from = rdkafka::Offset::Offset(from.number() as i64);
    assignment.add_partition_offset(topic, partition.number() as i32, from)?;
    Ok(assignment)
}

fn copy(partition: Partition, message: &BorrowedMessage<'_>) -> (Record, Option<i32>) {
    let record = Record {
        partition,
        offset: Offset::new(message.offset().max(0) as u64),
        appended_at_ms: message.timestamp().to_millis().unwrap_or(0),
        value: message.payload().unwrap_or_default().to_vec(),
    };
    (record, topic_id::broker_of(message))
}
