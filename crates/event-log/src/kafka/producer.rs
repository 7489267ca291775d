//! The idempotent producer, and the proof that each acknowledged record has a place of its own in the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::spans::TraceContext;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::oneshot;

use super::client::{Quiet, base_config};
use super::router::UnderWay;
use super::{KafkaSettings, MESSAGE_BYTES_MAX};

/// Memory of all records that wait for their acknowledgement.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How long the outcomes of an abandoned producer's records may take.
const PURGED: std::time::Duration = std::time::Duration::from_secs(5);

/// One sequence of records, acknowledged by all in-sync replicas.
pub(super) struct IdempotentProducer {
    log: LogId,
    client: ThreadedProducer<Acknowledging>,
}

/// The acknowledgement of one record, to come.
pub(super) type Acknowledgement = oneshot::Receiver<Result<(Partition, Offset), NotAppended>>;

/// The reason why a record is not known to be in the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAppended {
    /// The library gave up, or was refused.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// See [`PlaceTaken`].
    #[error(transparent)]
    PlaceTaken(#[from] PlaceTaken),
}

/// The broker answered as for a copy of an earlier record, which another record has been acknowledged for: it took the record
/// for a repetition and did not append it, and the producer's sequence is not the broker's any more. Or the topic was
/// created again.
#[derive(Debug, thiserror::Error)]
#[error(
    "partition {partition} acknowledged offset {offset}, at or before offset {last} of a record that was acknowledged \
     earlier: it did not append this one"
)]
pub(super) struct PlaceTaken {
    /// The record's partition.
    pub partition: i32,
    /// The offset in the acknowledgement; -1 if it has none.
    pub offset: i64,
    /// The offset of the last record that was acknowledged.
    pub last: i64,
}

impl IdempotentProducer {
    pub(super) fn new(settings: &KafkaSettings, log: LogId) -> KafkaResult<Self> {
        let client = base_config(settings)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The partitioner of every other Kafka client, and of the embedded log.
            .set("partitioner", "murmur2_random")
            .set("delivery.timeout.ms", settings.delivery_timeout.as_millis().to_string())
            .set("linger.ms", settings.linger.as_millis().to_string())
            .set("queue.buffering.max.messages", settings.queue_max.max(1).to_string())
            .set("queue.buffering.max.kbytes", (QUEUE_BYTES_MAX / 1_024).to_string())
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .create_with_context(Acknowledging::default())?;
        Ok(Self { client, log })
    }

    /// The log that the topic was known to hold when this was made.
    pub(super) fn log(&self) -> &LogId {
        &self.log
    }

    /// Hands a record over, to this partition or to that of its key; it shares requests with those that are handed over soon.
    pub(super) fn send(
        &self,
        (topic, partition): (&str, Option<Partition>),
        key: &str,
        value: &[u8],
        under_way: UnderWay,
    ) -> KafkaResult<Acknowledgement> {
        let (sender, receiver) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new((sender, under_way)));
        let mut record = record.key(key).payload(value);
        if let Some(context) = TraceContext::of_record(value) {
            // For other programs that read the topic; ours find the context in the value, in every log.
            let context = context.to_string();
            record = record.headers(
                OwnedHeaders::new_with_capacity(1)
                    .insert(Header { key: "traceparent", value: Some(context.as_str()) }),
            );
        }
        record.partition = partition.map(|partition| partition.number() as i32);
        self.client.send(record).map_err(|(error, _)| error)?;
        Ok(receiver)
    }

    /// Blocks. How many partitions the brokers show; the client knows them then.
    pub(super) fn partitions(&self, topic: &str, timeout: std::time::Duration) -> KafkaResult<u32> {
        let metadata = self.client.client().fetch_metadata(Some(topic), timeout)?;
        Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len() as u32))
    }

    /// The reason why nothing that is sent from now on can be trusted, if there is one.
    pub(super) fn broken(&self) -> Option<String> {
        let client = self.client.client();
        let taken = || lock(&client.context().places).taken.clone();
        client.fatal_error().map(|(code, reason)| format!("{code:?}: {reason}")).or_else(taken)
    }

    /// Blocks. Gives up all records that are not acknowledged yet; none of them is sent any more.
    pub(super) fn abandon(&self) {
        self.client.purge(PurgeConfig::default().queue().inflight());
        // What is left is given up when the producer goes.
        let _ = self.client.flush(PURGED);
    }

    /// Waits until all records are acknowledged or given up.
    pub(super) fn flush(&self, timeout: std::time::Duration) -> KafkaResult<()> {
        self.client.flush(timeout)
    }
}

/// Passes acknowledgements on, in the order in which they come.
#[derive(Default)]
pub(super) struct Acknowledging {
    quiet: Quiet,
    places: Mutex<Places>,
}

impl ClientContext for Acknowledging {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.quiet.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.error(error, reason);
    }
}

impl ProducerContext for Acknowledging {
    type DeliveryOpaque = Box<(oneshot::Sender<Result<(Partition, Offset), NotAppended>>, UnderWay)>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let outcome = match delivered {
            Ok(message) => lock(&self.places).take(message.partition(), message.offset()),
            Err((error, _)) => Err(error.clone().into()),
        };
        // Whoever waited may have gone.
        let (waiting, _under_way) = *waiting;
        let _ = waiting.send(outcome);
    }
}

/// The last acknowledged offset of each partition. Acknowledgements of a partition come in the order of its records, so
/// each has a higher offset than the one before.
///
/// A broker answers a repetition with the offset of the first copy. If it takes a new record for one, because client and
/// broker do not agree on the sequence, the client reports the new record as delivered: that offset has been
/// acknowledged before, and shows it. librdkafka has lost its sequence like this when a broker that had just started
/// denied the topic (see the notes of its release 1.9.0).
#[derive(Debug, Default)]
struct Places {
    last: BTreeMap<i32, i64>,
    /// The first acknowledgement that was not of a new record.
    taken: Option<String>,
}

impl Places {
    fn take(&mut self, partition: i32, offset: i64) -> Result<(Partition, Offset), NotAppended> {
        let last = self.last.entry(partition).or_insert(-1);
        if offset <= *last {
            let error = PlaceTaken { partition, offset, last: *last };
            self.taken.get_or_insert_with(|| error.to_string());
            return Err(error.into());
        }
        *last = offset;
        Ok((Partition::new(partition as u32), Offset::new(offset as u64)))
    }
}

fn lock(places: &Mutex<Places>) -> std::sync::MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_acknowledged_for_one_record_and_breaks_the_producer_for_another() {
        let mut places = Places::default();
        let place = |partition, offset| Some((Partition::new(partition), Offset::new(offset)));
        assert_eq!(places.take(0, 0).ok(), place(0, 0));
        assert_eq!(places.take(0, 7).ok(), place(0, 7));
        assert_eq!(places.take(1, 3).ok(), place(1, 3));
        assert_eq!(places.taken, None);
        for offset in [7, 0, -1] {
            let Err(NotAppended::PlaceTaken(PlaceTaken { partition: 0, last: 7, .. })) =
                places.take(0, offset)
            else {
                panic!("offset {offset} has been acknowledged")
            };
        }
        assert!(places.taken.as_deref().is_some_and(|reason| reason.contains("offset 7")));
        assert_eq!(places.take(0, 8).ok(), place(0, 8));
    }
}
