//! Appending: one idempotent producer that waits for all in-sync replicas.

use std::sync::{Arc, PoisonError};

use dashi_domain::partitioner;
use dashi_domain::position::{Offset, Partition};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::KafkaLog;
use super::producer::{Acknowledgement, IdempotentProducer, NotAppended, PlaceTaken};
use super::router::UnderWay;
use crate::{AppendError, NewRecord};

/// The producer, once there is one. It is made with the first append, and again when it is broken.
pub(super) enum Slot {
    Unmade,
    Made(Arc<IdempotentProducer>),
    Closed,
}

/// Records that were given to the producer, one entry for each.
pub(crate) struct Sent {
    producer: Arc<IdempotentProducer>,
    deliveries: Vec<Result<Acknowledgement, AppendError>>,
}

impl KafkaLog {
    pub(crate) async fn append(
        &self,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let deadline = tokio::time::Instant::now() + self.0.settings.delivery_timeout;
        loop {
            let mut changes = self.0.router.changes();
            match self.send(&records) {
                Ok(sent) => return self.outcomes(sent, &records).await,
                Err(AppendError::Held)
                    if tokio::time::timeout_at(deadline, changes.changed())
                        .await
                        .is_ok_and(|changed| changed.is_ok()) => {}
                Err(error) => return vec![Err(error); records.len()],
            }
        }
    }

    /// Appends to one partition, whatever the records' keys and the layout in force.
    pub(crate) async fn append_to(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        if let Err(error) = self.learn(partition.number() + 1).await {
            return vec![Err(AppendError::Unconfirmed(Arc::new(error))); records.len()];
        }
        match self.send_to(&records, vec![Some(partition); records.len()], &UnderWay::APART) {
            Ok(sent) => self.outcomes(sent, &records).await,
            Err(error) => vec![Err(error); records.len()],
        }
    }

    /// Whether there are records that wait for the layout.
    pub(crate) fn holds(&self) -> bool {
        self.0.router.holds()
    }

    /// Gives records to the producer, behind those of earlier calls, and does not wait: [`AppendError::Held`] if one of them
    /// has to.
    pub(crate) fn send(&self, records: &[NewRecord]) -> Result<Sent, AppendError> {
        if self.0.topic.replaced().is_some() {
            // The layout is that of the topic that was: the new one has partitions of its own.
            return self.send_to(records, vec![None; records.len()], &UnderWay::APART);
        }
        let Some((partitions, under_way)) = self.0.router.partitions(records) else {
            return Err(AppendError::Held);
        };
        self.send_to(records, partitions.into_iter().map(Some).collect(), &under_way)
    }

    fn send_to(
        &self,
        records: &[NewRecord],
        partitions: Vec<Option<Partition>>,
        under_way: &UnderWay,
    ) -> Result<Sent, AppendError> {
        // A topic that loses acknowledged records takes none.
        if let Some(reason) = self.0.topic.refusal() {
            return Err(AppendError::Refused(reason));
        }
        let producer = self.producer()?;
        let topic = self.0.settings.topic.as_str();
        // All records are handed over before the first acknowledgement is awaited, so that they share requests.
        let deliveries = records
            .iter()
            .zip(partitions)
            .map(|(record, partition)| {
                let key = partitioner::key(record.session_id);
                producer
                    .send((topic, partition), &key, &record.value, under_way.clone())
                    .map_err(|error| refusal(error, record.value.len()))
            })
            .collect();
        Ok(Sent { producer, deliveries })
    }

    /// Waits for the outcome of each of these records, which were given to the producer.
    pub(crate) async fn outcomes(
        &self,
        sent: Sent,
        records: &[NewRecord],
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let Sent { producer, deliveries } = sent;
        let mut outcomes = Vec::with_capacity(deliveries.len());
        for (sent, record) in deliveries.into_iter().zip(records) {
            outcomes.push(match sent {
                Err(refused) => Err(refused),
                Ok(delivery) => match delivery.await {
                    Ok(Ok(place)) => Ok(place),
                    Ok(Err(NotAppended::Kafka(error))) => Err(refusal(error, record.value.len())),
                    Ok(Err(NotAppended::PlaceTaken(taken))) => {
                        self.place_in_another_topic(&producer, taken).await
                    }
                    Err(_) => Err(AppendError::Closed),
                },
            });
        }
        if outcomes.iter().any(Result::is_err) {
            // The topic may be gone, or another one may have its name.
            self.0.topic.look_soon();
            self.replace_if_broken(&producer);
        }
        outcomes
    }

    /// An offset that was acknowledged before is the record's own if the topic was created again since: then its offsets
    /// begin again.
    async fn place_in_another_topic(
        &self,
        producer: &IdempotentProducer,
        taken: PlaceTaken,
    ) -> Result<(Partition, Offset), AppendError> {
        let is_in_another =
            taken.offset >= 0 && self.current_log(None).await.is_ok_and(|log| log != *producer.log());
        if is_in_another {
            return Ok((Partition::new(taken.partition as u32), Offset::new(taken.offset as u64)));
        }
        Err(AppendError::Unconfirmed(Arc::new(taken)))
    }

    /// Gives up on everything that was given to the producer: each record that is not acknowledged yet soon has the outcome
    /// [`AppendError::Unconfirmed`], and none of them is sent any more. Of each partition, the log has a prefix of the
    /// records, or will have. Records of later calls go to another producer.
    pub(crate) async fn abandon(&self) {
        let Some(producer) = self.take_producer() else { return };
        // It waits for the library's threads.
        if let Err(error) = tokio::task::spawn_blocking(move || producer.abandon()).await {
            tracing::error!(error = %error, "abandoning the Kafka producer ended with a panic");
        }
    }

    pub(super) fn producer(&self) -> Result<Arc<IdempotentProducer>, AppendError> {
        if let Slot::Made(producer) = &*self.0.producer.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(producer));
        }
        let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Slot::Made(producer) => return Ok(Arc::clone(producer)),
            Slot::Closed => return Err(AppendError::Closed),
            Slot::Unmade => {}
        }
        let log = self.0.topic.replaced().unwrap_or_else(|| self.0.id.clone());
        let producer = IdempotentProducer::new(&self.0.settings, log)
            .map_err(|error| AppendError::Unconfirmed(Arc::new(error)))?;
        let producer = Arc::new(producer);
        *slot = Slot::Made(Arc::clone(&producer));
        Ok(producer)
    }

    /// A producer whose sequence is broken refuses everything from then on, or is not to be believed; a new producer starts
    /// a new sequence. Records that the old one had not confirmed were answered as unconfirmed.
    fn replace_if_broken(&self, producer: &Arc<IdempotentProducer>) {
        let Some(reason) = producer.broken() else { return };
        let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*slot, Slot::Made(current) if Arc::ptr_eq(current, producer)) {
            tracing::error!(reason, "the Kafka producer is broken, making a new one");
            *slot = Slot::Unmade;
        }
    }

    /// The next append gets a new producer. Records that the one of now was given keep it until they have their outcome.
    pub(super) fn renew_producer(&self) {
        drop(self.take_producer());
    }

    /// Takes the producer out, so that the next append makes one. It is dropped outside the lock, for that may wait for the
    /// library's threads.
    fn take_producer(&self) -> Option<Arc<IdempotentProducer>> {
        let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Slot::Made(producer) => {
                let producer = Arc::clone(producer);
                *slot = Slot::Unmade;
                Some(producer)
            }
            Slot::Unmade | Slot::Closed => None,
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
