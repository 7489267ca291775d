//! The log on Apache Kafka: an idempotent producer that waits for all in-sync replicas, a consumer group that
//! hands out partitions, and a reader per partition that begins exactly where it is told.
//!
//! The group's client never fetches: it is there for ownership and for the committed offsets that tools show.
//! Records come through readers with manual assignment, so a projector, a replay and a test read in one way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};
use std::time::Duration;

use dashi_domain::partitioner;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::record::Record;
use futures::FutureExt as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, ClientContext, TopicPartitionList};
use tokio::sync::Notify;

use crate::{
    AppendError, Entry, Extent, LogError, Membership, OpenError, Ownership, Position, ReadLimit, topic_id,
};

/// Settings of a log on Kafka.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic; created if it is not there.
    pub topic: String,
    /// Partitions of a new topic. An existing one keeps its own number.
    pub partitions: u32,
    /// Replicas of a new topic; `-1` leaves it to the cluster.
    pub replication_factor: i32,
    /// How long a record may wait for its acknowledgement before the append fails.
    pub delivery_timeout: Duration,
    /// How long a record waits for others to share its request.
    pub linger: Duration,
    /// Silence after which the group gives a member's partitions to others.
    pub session_timeout: Duration,
    /// Records that may wait for their acknowledgement.
    pub queue_max: usize,
    /// Settings of librdkafka, passed through: TLS, SASL, client id and so on.
    pub properties: BTreeMap<String, String>,
}

/// The largest record: the largest request body and its envelope.
const MESSAGE_BYTES_MAX: usize = 12 * 1024 * 1024;

/// Memory of all records that wait for their acknowledgement.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(5);

/// How long opening waits for a cluster that is still starting.
const OPEN: Duration = Duration::from_secs(60);

/// See the module's text. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub struct KafkaLog(Arc<Shared>);

struct Shared {
    id: LogId,
    settings: KafkaSettings,
    admin: AdminClient<DefaultClientContext>,
    producer: RwLock<Slot>,
}

/// Where the producer is. It is made with the first append, and anew when the library calls its state fatal.
enum Slot {
    Unmade,
    Made(FutureProducer),
    Closed,
}

impl KafkaLog {
    /// Connects, creating the topic if it is not there.
    ///
    /// # Errors
    /// A setting is refused, no broker answers for a minute, or the topic cannot be created.
    pub async fn open(settings: KafkaSettings) -> Result<Self, OpenError> {
        let admin: AdminClient<DefaultClientContext> = base_config(&settings).create().map_err(|error| {
            OpenError::Client { brokers: settings.brokers.clone(), source: Arc::new(error) }
        })?;
        let deadline = tokio::time::Instant::now() + OPEN;
        // The admin client is not `Clone`, and its calls block; it goes into the closure and comes back.
        let mut admin = admin;
        loop {
            let settings_ = settings.clone();
            let (returned, found) = tokio::task::spawn_blocking(move || {
                let found = look_up(&admin, &settings_);
                (admin, found)
            })
            .await
            .map_err(|error| OpenError::Client {
                brokers: settings.brokers.clone(),
                source: Arc::new(error),
            })?;
            admin = returned;
            match found {
                Ok(Topic::There(id)) => {
                    let producer = RwLock::new(Slot::Unmade);
                    return Ok(Self(Arc::new(Shared { id, settings, admin, producer })));
                }
                Ok(Topic::Absent) => create_topic(&admin, &settings).await?,
                Ok(Topic::Unready(reason)) if tokio::time::Instant::now() >= deadline => {
                    return Err(OpenError::Topic {
                        topic: settings.topic,
                        partitions: settings.partitions,
                        brokers: settings.brokers,
                        reason,
                    });
                }
                Ok(Topic::Unready(_)) => {}
                Err(source) if tokio::time::Instant::now() >= deadline => {
                    return Err(OpenError::Unreachable {
                        brokers: settings.brokers,
                        waited_ms: OPEN.as_millis() as u64,
                        source: Arc::new(source),
                    });
                }
                Err(error) => {
                    tracing::warn!(brokers = %settings.brokers, error = %error, "waiting for the Kafka cluster");
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn id(&self) -> &LogId {
        &self.0.id
    }

    /// Asks the cluster in a thread of its own, since the library's calls block.
    async fn ask<T: Send + 'static>(
        &self,
        doing: &'static str,
        question: impl FnOnce(&Shared) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || question(&shared))
            .await
            .map_err(LogError::away(doing))?
            .map_err(LogError::away(doing))
    }

    pub(crate) async fn partition_count(&self) -> Result<u32, LogError> {
        self.ask("counting the topic's partitions", |shared| {
            let metadata = shared.admin.inner().fetch_metadata(Some(&shared.settings.topic), ASK)?;
            let absent = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
            match metadata.topics().first().map(|topic| (topic.error(), topic.partitions().len())) {
                Some((None, count)) if count > 0 => Ok(count as u32),
                Some((Some(error), _)) => Err(KafkaError::MetadataFetch(error.into())),
                // A log without partitions would look like one with nothing to project.
                _ => Err(absent),
            }
        })
        .await
    }

    pub(crate) async fn extent(&self, partition: Partition) -> Result<Extent, LogError> {
        self.ask("reading a partition's watermarks", move |shared| {
            let (low, high) = shared.admin.inner().fetch_watermarks(
                &shared.settings.topic,
                partition.number() as i32,
                ASK,
            )?;
            Ok(Extent { low: Offset::new(low.max(0) as u64), high: Offset::new(high.max(0) as u64) })
        })
        .await
    }

    pub(crate) async fn probe(&self) -> Result<(), LogError> {
        self.ask("asking for the partitions' leaders", |shared| {
            match topic_state(&shared.admin, &shared.settings.topic)? {
                State::Ready => Ok(()),
                State::Absent => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)),
                State::Unready(_) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable)),
            }
        })
        .await
    }

    pub(crate) async fn append(&self, entries: Vec<Entry>) -> Vec<Result<(Partition, Offset), AppendError>> {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return vec![Err(error); entries.len()],
        };
        let topic = self.0.settings.topic.as_str();
        // All are handed over before the first is waited for, so that they share requests.
        let sent: Vec<_> = entries
            .iter()
            .map(|entry| {
                let key = partitioner::key(entry.session_id);
                let record = FutureRecord::to(topic).key(&key).payload(&entry.value);
                producer.send_result(record).map_err(|(error, _)| refusal(error, entry.value.len()))
            })
            .collect();
        let mut outcomes = Vec::with_capacity(sent.len());
        for (sent, entry) in sent.into_iter().zip(&entries) {
            outcomes.push(match sent {
                Err(refused) => Err(refused),
                Ok(delivery) => match delivery.await {
                    Ok(Ok(delivery)) => Ok((
                        Partition::new(delivery.partition as u32),
                        Offset::new(delivery.offset.max(0) as u64),
                    )),
                    Ok(Err((error, _))) => Err(refusal(error, entry.value.len())),
                    Err(_) => Err(AppendError::Closed),
                },
            });
        }
        if outcomes.iter().any(Result::is_err) {
            self.replace_if_fatal(&producer);
        }
        outcomes
    }

    fn producer(&self) -> Result<FutureProducer, AppendError> {
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
        let producer: FutureProducer = base_config(settings)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The partitioner of every other Kafka client, and of the embedded log.
            .set("partitioner", "murmur2_random")
            .set("delivery.timeout.ms", settings.delivery_timeout.as_millis().to_string())
            .set("linger.ms", settings.linger.as_millis().to_string())
            .set("queue.buffering.max.messages", settings.queue_max.max(1).to_string())
            .set("queue.buffering.max.kbytes", (QUEUE_BYTES_MAX / 1_024).to_string())
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .create()
            .map_err(|error| AppendError::Unconfirmed(Arc::new(error)))?;
        *slot = Slot::Made(producer.clone());
        Ok(producer)
    }

    /// An idempotent producer whose sequence is broken refuses everything from then on; a new one starts a new
    /// sequence. What the old one had not confirmed was answered as unconfirmed.
    fn replace_if_fatal(&self, producer: &FutureProducer) {
        if let Some((code, reason)) = producer.client().fatal_error() {
            tracing::error!(code = ?code, reason, "the Kafka producer is broken, making a new one");
            let mut slot = self.0.producer.write().unwrap_or_else(PoisonError::into_inner);
            if matches!(&*slot, Slot::Made(current) if current.client().fatal_error().is_some()) {
                *slot = Slot::Unmade;
            }
        }
    }

    pub(crate) fn reader(&self, partition: Partition, from: Offset) -> Result<KafkaReader, LogError> {
        let settings = &self.0.settings;
        let consumer: StreamConsumer = base_config(settings)
            // A group id is asked for, but a client that only assigns never joins a group.
            .set("group.id", "dashi-reader")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            // A projector may wait for its database for as long as it takes.
            .set("max.poll.interval.ms", "86400000")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "20")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.message.max.bytes", "4194304")
            .create()
            .map_err(LogError::away("making a reader"))?;
        let mut reader = KafkaReader {
            log: self.clone(),
            partition,
            consumer,
            next: from,
            taken: Vec::new(),
            failed: None,
            stopped: false,
        };
        reader.seek(from)?;
        Ok(reader)
    }

    pub(crate) fn membership(&self, group: &str) -> Result<Membership, LogError> {
        let settings = &self.0.settings;
        let context = GroupContext::default();
        let changes = Arc::clone(&context.0);
        let consumer: StreamConsumer<GroupContext> = base_config(settings)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", settings.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (settings.session_timeout.as_millis() / 4).max(1).to_string())
            .create_with_context(context)
            .map_err(LogError::away("joining the consumer group"))?;
        consumer.subscribe(&[&settings.topic]).map_err(LogError::away("joining the consumer group"))?;
        let topic = settings.topic.clone();
        Ok(Membership::Group(KafkaMembership { topic, consumer, changes, is_failing: false }))
    }

    pub(crate) async fn close(&self) {
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

/// What all clients share. The caller's own properties come first, so that what the guarantees rest on wins.
fn base_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "dashi")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (key, value) in &settings.properties {
        config.set(key, value);
    }
    config.set("bootstrap.servers", &settings.brokers).set("allow.auto.create.topics", "false");
    config
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

enum Topic {
    There(LogId),
    Unready(String),
    Absent,
}

/// Blocks. Finds the topic and its identity: the cluster's id, and the id the cluster gave the topic.
fn look_up(admin: &AdminClient<DefaultClientContext>, settings: &KafkaSettings) -> KafkaResult<Topic> {
    match topic_state(admin, &settings.topic)? {
        State::Absent => return Ok(Topic::Absent),
        State::Unready(reason) => return Ok(Topic::Unready(reason)),
        State::Ready => {}
    }
    let cluster = admin
        .inner()
        .fetch_cluster_id(ASK)
        .ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut))?;
    match topic_id::fetch(admin.inner(), &settings.topic, ASK) {
        Ok(id) => Ok(Topic::There(LogId::new(format!("kafka:{cluster}/{}/{id}", settings.topic)))),
        Err(reason) => Ok(Topic::Unready(reason)),
    }
}

enum State {
    Ready,
    Unready(String),
    Absent,
}

/// Blocks. Ready means that every partition has a leader.
fn topic_state(admin: &AdminClient<DefaultClientContext>, topic: &str) -> KafkaResult<State> {
    let metadata = admin.inner().fetch_metadata(Some(topic), ASK)?;
    let Some(found) = metadata.topics().first() else { return Ok(State::Absent) };
    if let Some(error) = found.error() {
        return Ok(match error.into() {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => State::Absent,
            code => State::Unready(code.to_string()),
        });
    }
    if found.partitions().is_empty() {
        return Ok(State::Absent);
    }
    Ok(match found.partitions().iter().find(|partition| partition.leader() < 0) {
        Some(partition) => State::Unready(format!("partition {} has no leader", partition.id())),
        None => State::Ready,
    })
}

async fn create_topic(
    admin: &AdminClient<DefaultClientContext>,
    settings: &KafkaSettings,
) -> Result<(), OpenError> {
    let failed = |reason: String| OpenError::Topic {
        topic: settings.topic.clone(),
        partitions: settings.partitions,
        brokers: settings.brokers.clone(),
        reason,
    };
    let bytes_max = MESSAGE_BYTES_MAX.to_string();
    // The log is the source of truth: nothing is removed from it unless the operator says so.
    let topic = NewTopic::new(
        &settings.topic,
        settings.partitions as i32,
        TopicReplication::Fixed(settings.replication_factor),
    )
    .set("cleanup.policy", "delete")
    .set("retention.ms", "-1")
    .set("max.message.bytes", &bytes_max);
    let options = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK));
    let results = admin.create_topics([&topic], &options).await.map_err(|error| failed(error.to_string()))?;
    match results.into_iter().next() {
        None | Some(Ok(_)) => {
            tracing::info!(topic = %settings.topic, partitions = settings.partitions, "created the topic");
            Ok(())
        }
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(failed(code.to_string())),
    }
}

/// See [`crate::Reader`].
pub struct KafkaReader {
    log: KafkaLog,
    partition: Partition,
    consumer: StreamConsumer,
    next: Offset,
    /// What a call has taken from the consumer and not returned yet, in case its future is dropped.
    taken: Vec<Record>,
    /// An error that came behind records: the next call's. The library tells some errors once and then is silent,
    /// so one that is let go would leave the reader waiting for ever.
    failed: Option<KafkaError>,
    /// The client has stopped at `next`, which the log does not have; the next call sets it going again, to meet
    /// the same if nothing has changed.
    stopped: bool,
}

impl KafkaReader {
    pub(crate) fn seek(&mut self, offset: Offset) -> Result<(), LogError> {
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(
                &self.log.0.settings.topic,
                self.partition.number() as i32,
                rdkafka::Offset::Offset(offset.number() as i64),
            )
            .and_then(|()| self.consumer.assign(&assignment))
            .map_err(LogError::away("assigning a partition to a reader"))?;
        self.next = offset;
        self.taken.clear();
        self.failed = None;
        self.stopped = false;
        Ok(())
    }

    pub(crate) async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        if self.stopped {
            self.seek(self.next)?;
        }
        let mut bytes = self.taken.iter().map(|record| record.value.len()).sum::<usize>();
        if self.taken.is_empty() {
            let received = match self.failed.take() {
                Some(error) => Err(error),
                None => match tokio::time::timeout(limit.wait, self.consumer.recv()).await {
                    Err(_) => return Ok(Vec::new()),
                    Ok(received) => received.map(|message| copy(self.partition, &message)),
                },
            };
            match received {
                Ok(record) => bytes += self.take(record),
                Err(error) => return Err(self.failure(error).await),
            }
        }
        while self.taken.len() < limit.records_max && bytes < limit.bytes_max {
            let Some(received) = self.consumer.recv().now_or_never() else { break };
            match received.map(|message| copy(self.partition, &message)) {
                Ok(record) => bytes += self.take(record),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(std::mem::take(&mut self.taken))
    }

    /// Returns the size of the record's value.
    fn take(&mut self, record: Record) -> usize {
        let bytes = record.value.len();
        self.next = record.offset.next();
        self.taken.push(record);
        bytes
    }

    async fn failure(&mut self, error: KafkaError) -> LogError {
        let KafkaError::MessageConsumption(
            RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset,
        ) = &error
        else {
            return LogError::away("reading records")(error);
        };
        let (partition, from) = (self.partition, self.next);
        // Noted before anything is waited for: this future may be dropped, or the cluster not answer.
        self.stopped = true;
        match self.log.extent(partition).await {
            Err(away) => away,
            Ok(Extent { low, .. }) if from < low => LogError::Trimmed { partition, from, low },
            Ok(Extent { high, .. }) if from > high => LogError::Beyond { partition, from, high },
            // The broker that was asked did not know of the offset yet; another leader does.
            Ok(_) => LogError::away("reading records")(error),
        }
    }
}

fn copy(partition: Partition, message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    Record {
        partition,
        offset: Offset::new(message.offset().max(0) as u64),
        appended_at_ms: message.timestamp().to_millis().unwrap_or(0),
        value: message.payload().unwrap_or_default().to_vec(),
    }
}

/// Changes of ownership, in the order in which the group told them, and the group's answers to commits of offsets.
#[derive(Default)]
struct Changes {
    waiting: StdMutex<VecDeque<Ownership>>,
    arrived: Notify,
    saves: StdMutex<Saves>,
}

/// Offsets that the group has answered for since they were last asked about.
#[derive(Default)]
struct Saves {
    /// The newest of each partition that is committed.
    saved: BTreeMap<Partition, Checkpoint>,
    /// Why others are not.
    refused: Option<KafkaError>,
}

#[derive(Default)]
struct GroupContext(Arc<Changes>);

impl ClientContext for GroupContext {}

impl ConsumerContext for GroupContext {
    /// Runs inside a poll of the client and must not wait: it notes the change and decides nothing. The client
    /// itself is paused, for records come through readers.
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let change = match rebalance {
            Rebalance::Assign(assigned) => {
                if let Err(error) = consumer.pause(assigned) {
                    tracing::warn!(error = %error, "the group's client could not be paused; it fetches in vain");
                }
                Ownership::Assigned(partitions(assigned))
            }
            Rebalance::Revoke(revoked) => Ownership::Revoked(partitions(revoked)),
            Rebalance::Error(error) => {
                tracing::error!(error = %error, "the consumer group could not be rebalanced");
                return;
            }
        };
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
        self.0.arrived.notify_one();
    }

    /// Runs inside a poll of the client, too.
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let answered = saves(result, offsets);
        let mut saves = self.0.saves.lock().unwrap_or_else(PoisonError::into_inner);
        saves.saved.extend(answered.saved);
        saves.refused = answered.refused.or(saves.refused.take());
    }
}

/// Which offsets the group has committed, and the first error of those that it has not.
fn saves(result: KafkaResult<()>, offsets: &TopicPartitionList) -> Saves {
    let mut saves = Saves { refused: result.as_ref().err().cloned(), ..Saves::default() };
    for element in offsets.elements() {
        match (&result, element.error(), element.offset()) {
            (Ok(()), Ok(()), rdkafka::Offset::Offset(offset)) => {
                let checkpoint = Checkpoint::at(Offset::new(offset.max(0) as u64));
                saves.saved.insert(Partition::new(element.partition() as u32), checkpoint);
            }
            (_, Err(error), _) => saves.refused = saves.refused.or(Some(error)),
            _ => {}
        }
    }
    saves
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|element| Partition::new(element.partition() as u32)).collect()
}

/// See [`Membership::Group`].
pub struct KafkaMembership {
    topic: String,
    consumer: StreamConsumer<GroupContext>,
    changes: Arc<Changes>,
    /// Whether the last save that was answered failed.
    is_failing: bool,
}

impl KafkaMembership {
    pub(crate) async fn next(&mut self) -> Result<Ownership, LogError> {
        loop {
            let change = self.changes.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match change {
                Some(Ownership::Assigned(none) | Ownership::Revoked(none)) if none.is_empty() => continue,
                Some(change) => return Ok(change),
                None => {}
            }
            tokio::select! {
                () = self.changes.arrived.notified() => {}
                // Polled so that the group's protocol goes on; a record that slipped in before the pause is
                // nobody's: readers have it too.
                received = self.consumer.recv() => if let Err(error) = received {
                    tracing::warn!(error = %error, "the consumer group's client has an error");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                },
            }
        }
    }

    /// Commits in the background, and returns what earlier calls have committed. Offsets of partitions that were lost in
    /// the meantime are refused by the group, as they should be.
    pub(crate) fn save(&mut self, positions: &[Position]) -> Vec<Position> {
        let answered =
            std::mem::take(&mut *self.changes.saves.lock().unwrap_or_else(PoisonError::into_inner));
        let mut refused = answered.refused;
        let mut offsets = TopicPartitionList::new();
        for (partition, checkpoint) in positions {
            let offset = rdkafka::Offset::Offset(checkpoint.offset().number() as i64);
            if let Err(error) = offsets.add_partition_offset(&self.topic, partition.number() as i32, offset) {
                refused = Some(error);
            }
        }
        if offsets.count() > 0
            && let Err(error) = self.consumer.commit(&offsets, CommitMode::Async)
        {
            refused = Some(error);
        }
        if let Some(error) = refused {
            // While partitions move, the group refuses offsets of those that have moved, as it should.
            let moves = matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::RebalanceInProgress
                        | RDKafkaErrorCode::IllegalGeneration
                        | RDKafkaErrorCode::UnknownMemberId
                )
            );
            if !moves && !std::mem::replace(&mut self.is_failing, true) {
                tracing::warn!(
                    error = %error, "the consumer group does not take offsets, which tools show lag by; trying again"
                );
            }
        } else if !answered.saved.is_empty() && std::mem::take(&mut self.is_failing) {
            tracing::info!("the consumer group takes offsets again");
        }
        answered.saved.into_iter().collect()
    }

    pub(crate) async fn leave(self) {
        // Closing the client leaves the group, and blocks until it has.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(self)).await {
            tracing::warn!(error = %error, "leaving the consumer group failed");
        }
    }
}
