//! Appending: one idempotent producer that waits for all in-sync replicas.

use std::sync::{Arc, PoisonError};

use dashi_domain::partitioner;
use dashi_domain::position::{Offset, Partition};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use super::client::{Quiet, base_config};
use super::{KafkaLog, MESSAGE_BYTES_MAX};
use crate::{AppendError, NewRecord};

/// Memory of all records that wait for their acknowledgement.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The producer, once there is one. It is made with the first append, and again when the library calls its state fatal.
pub(super) enum Slot {
    Unmade,
    Made(FutureProducer<Quiet>),
    Closed,
}

impl KafkaLog {
    pub(crate) async fn append(
        &self,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        // A topic that loses acknowledged records takes none.
        if let Some(reason) = self.0.topic.refusal() {
            return vec![Err(AppendError::Refused(reason)); records.len()];
        }
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return vec![Err(error); records.len()],
        };
        let topic = self.0.settings.topic.as_str();
        // All records are handed over before the first acknowledgement is awaited, so that they share requests.
        let sent: Vec<_> = records
            .iter()
            .map(|record| {
                let key = partitioner::key(record.session_id);
                let message = FutureRecord::to(topic).key(&key).payload(&record.value);
                producer.send_result(message).map_err(|(error, _)| refusal(error, record.value.len()))
            })
            .collect();
        let mut outcomes = Vec::with_capacity(sent.len());
        for (sent, record) in sent.into_iter().zip(&records) {
            outcomes.push(match sent {
                Err(refused) => Err(refused),
                Ok(delivery) => match delivery.await {
                    Ok(Ok(delivery)) => Ok((
                        Partition::new(delivery.partition as u32),
                        Offset::new(delivery.offset.max(0) as u64),
                    )),
                    Ok(Err((error, _))) => Err(refusal(error, record.value.len())),
                    Err(_) => Err(AppendError::Closed),
                },
            });
        }
        if outcomes.iter().any(Result::is_err) {
            // The topic may be gone, or another one may have its name.
            self.0.topic.look_soon();
            self.replace_if_fatal(&producer);
        }
        outcomes
    }

    fn producer(&self) -> Result<FutureProducer<Quiet>, AppendError> {
        if let Slot::Made(producer) = &*self.0.producer.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(producer.clone());
        }
        let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Slot::Made(producer) => return Ok(producer.clone()),
            Slot::Closed => return Err(AppendError::Closed),
            Slot::Unmade => {}
        }
        let settings = &self.0.settings;
        let producer: FutureProducer<Quiet> = base_config(settings)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The partitioner of every other Kafka client, and of the embedded log.
            .set("partitioner", "murmur2_random")
            .set("delivery.timeout.ms", settings.delivery_timeout.as_millis().to_string())
            .set("linger.ms", settings.linger.as_millis().to_string())
            .set("queue.buffering.max.messages", settings.queue_max.max(1).to_string())
            .set("queue.buffering.max.kbytes", (QUEUE_BYTES_MAX / 1_024).to_string())
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .create_with_context(Quiet::default())
            .map_err(|error| AppendError::Unconfirmed(Arc::new(error)))?;
        *slot = Slot::Made(producer.clone());
        Ok(producer)
    }

    /// An idempotent producer whose sequence is broken refuses everything from then on; a new producer starts a new
    /// sequence. Records that the old one had not confirmed were answered as unconfirmed.
    fn replace_if_fatal(&self, producer: &FutureProducer<Quiet>) {
        if let Some((code, reason)) = producer.client().fatal_error() {
            tracing::error!(code = ?code, reason, "the Kafka producer is broken, making a new one");
            let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
            if matches!(&*slot, Slot::Made(current) if current.client().fatal_error().is_some()) {
                *slot = Slot::Unmade;
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.0.topic.stop();
        let slot = std::mem::replace(
            &mut *self.0.producer.write().unwrap_or_else(PoisonError::into_inner),
            Slot::Closed,
        );
        if let Slot::Made(producer) = slot {
            let timeout = self.0.settings.delivery_timeout;
            let flushed = tokio::task::spawn_blocking(move || producer.flush(timeout)).await;
            if !matches!(flushed, Ok(Ok(()))) {
                tracing::warn!("the Kafka producer closed before every record was confirmed");
            }
        }
    }
}

fn refusal(error: KafkaError, bytes: usize) -> AppendError {
    match error {
        KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => AppendError::Full,
        KafkaError::MessageProduction(
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize,
        ) => AppendError::TooLarge { bytes },
        error => AppendError::Unconfirmed(Arc::new(error)),
    }
}
