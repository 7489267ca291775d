//! The log on Apache Kafka: an idempotent producer that waits for all in-sync replicas, a consumer group that
//! hands out partitions, and a reader per partition that begins at an exact offset.
//!
//! The group's client never fetches: it serves ownership and the committed offsets that tools show. Records come through
//! readers with manual assignment, so a projector, a replay and a test read in the same way.

mod append;
mod client;
mod gaps;
mod growth;
mod known;
mod membership;
mod producer;
mod read;
mod router;
mod settings;
mod topic;
mod topic_id;

pub(crate) use append::Sent;
pub(crate) use membership::KafkaMembership;
pub(crate) use read::KafkaReader;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_domain::layout::Layout;
use dashi_domain::position::{LogId, Offset, Partition};
use rdkafka::admin::AdminClient;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use self::append::Slot;
use self::client::{Quiet, base_config, reader_config};
use self::known::KnownTopic;
use self::router::Router;
use self::topic::{State, Topic, TopicState, create_topic, log_id, look_up, topic_state};
use crate::{Extent, LogError, OpenError, Spool, SpoolSettings};

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
    /// Name of a member of the group that comes back under it after a restart; `None` for a member that leaves.
    pub instance_id: Option<String>,
    /// Records that may wait for their acknowledgement.
    pub queue_max: usize,
    /// Size of the largest record that may be appended; a topic that takes less gets a warning.
    pub record_bytes_max: usize,
    /// How often the topic's identity and settings are checked.
    pub topic_check_interval: Duration,
    /// Settings of librdkafka, passed through: TLS, SASL, client id and so on.
    pub properties: BTreeMap<String, String>,
}

/// Size of the largest record: the largest request body and its envelope.
pub(crate) const MESSAGE_BYTES_MAX: usize = 12 * 1024 * 1024;

/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(5);

/// Least time between two checks of the topic, and between two times that one question is asked.
const ASKS_APART: Duration = Duration::from_millis(200);

/// How long opening waits for a cluster that is still starting.
const OPEN: Duration = Duration::from_secs(60);

/// How long opening waits for a cluster that a collector with a spool can do without.
const OPEN_KNOWN: Duration = Duration::from_secs(5);

/// A log on a topic of an Apache Kafka cluster. Cheap to clone; all clones are one log.
///
/// The producer is idempotent and waits for all in-sync replicas; a consumer group hands out partitions; each reader reads
/// one partition from an exact offset. A topic that was deleted and created again is another log: see
/// [`LogError::Replaced`].
#[derive(Clone)]
pub struct KafkaLog(Arc<Shared>);

struct Shared {
    id: LogId,
    settings: KafkaSettings,
    topic: TopicState,
    admin: AdminClient<Quiet>,
    producer: RwLock<Slot>,
    /// Whether it was opened while the cluster was away.
    began_away: bool,
    router: Router,
    /// Partitions that the producer is known to know.
    learnt: AtomicU32,
    /// Once it was opened.
    spool: OnceLock<Spool>,
}

/// A log that is still open, perhaps.
pub(crate) struct WeakKafkaLog(Weak<Shared>);

impl WeakKafkaLog {
    pub(crate) fn upgrade(&self) -> Option<KafkaLog> {
        self.0.upgrade().map(KafkaLog)
    }
}

impl KafkaLog {
    /// Connects, creating the topic if it is not there.
    ///
    /// # Errors
    /// A setting is refused, no broker answers for a minute, or the topic cannot be created.
    #[boxed]
    pub async fn open(settings: KafkaSettings) -> Result<Self, OpenError> {
        Self::open_within(settings, OPEN).await
    }

    /// Connects as [`KafkaLog::open`] does, and remembers the topic in the directory of the spool that will be opened. With
    /// `may_be_away`, if no broker answers, the log is the one that was remembered there: its spool takes records, and forwards
    /// them once a broker has confirmed that the topic is still that log.
    ///
    /// # Errors
    /// As [`KafkaLog::open`]; and that nothing was remembered.
    #[boxed]
    pub async fn open_for_spool(
        settings: KafkaSettings,
        directory: &Path,
        may_be_away: bool,
    ) -> Result<Self, OpenError> {
        let known = KnownTopic::read(directory, &settings.topic);
        let patience = if may_be_away && known.is_some() { OPEN_KNOWN } else { OPEN };
        match (Self::open_within(settings.clone(), patience).await, known) {
            (Ok(log), known) => {
                let topic = &log.0.topic;
                let now = KnownTopic {
                    cluster: topic.cluster.clone(),
                    id: topic.id.clone(),
                    partitions: topic.partitions,
                };
                if known.as_ref() != Some(&now)
                    && let Err(error) = now.write(directory, &settings.topic)
                {
                    tracing::warn!(
                        error = %error, directory = %directory.display(),
                        "the topic cannot be remembered beside the spool: the next start needs the Kafka cluster"
                    );
                }
                Ok(log)
            }
            (Err(OpenError::Unreachable { brokers, source, .. }), Some(known)) if may_be_away => {
                tracing::warn!(
                    brokers, error = %source,
                    "no Kafka broker answers: events go into the spool until one does"
                );
                let admin =
                    base_config(&settings).create_with_context(Quiet::default()).map_err(|error| {
                        OpenError::Client { brokers: settings.brokers.clone(), source: Arc::new(error) }
                    })?;
                let topic = TopicState::new(known.cluster, known.id, known.partitions);
                let log = Self::of(settings, topic, admin, true);
                log.watch();
                Ok(log)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn of(settings: KafkaSettings, topic: TopicState, admin: AdminClient<Quiet>, began_away: bool) -> Self {
        Self(Arc::new(Shared {
            id: log_id(&topic.cluster, &settings.topic, &topic.id),
            // Until another layout is read in the store.
            router: Router::new(Layout { version: 0, partitions: topic.partitions }),
            learnt: AtomicU32::new(0),
            settings,
            topic,
            admin,
            producer: RwLock::new(Slot::Unmade),
            began_away,
            spool: OnceLock::new(),
        }))
    }

    async fn open_within(settings: KafkaSettings, patience: Duration) -> Result<Self, OpenError> {
        let admin: AdminClient<Quiet> =
            base_config(&settings).create_with_context(Quiet::default()).map_err(|error| {
                OpenError::Client { brokers: settings.brokers.clone(), source: Arc::new(error) }
            })?;
        let deadline = tokio::time::Instant::now() + patience;
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
                Ok(Topic::There(topic)) => {
                    let log = Self::of(settings, topic, admin, false);
                    // Before any record is accepted, so that a topic that would lose records refuses them.
                    log.look().await;
                    log.watch();
                    return Ok(log);
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
                        waited_ms: patience.as_millis() as u64,
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

    /// The identity of this log.
    pub fn id(&self) -> &LogId {
        &self.0.id
    }

    /// Whether it was opened while the cluster was away.
    pub(crate) fn began_away(&self) -> bool {
        self.0.began_away
    }

    pub(crate) fn downgrade(&self) -> WeakKafkaLog {
        WeakKafkaLog(Arc::downgrade(&self.0))
    }

    /// See [`EventLog::open_spool`](crate::EventLog::open_spool).
    pub(crate) async fn open_spool(&self, settings: SpoolSettings) -> Result<Spool, OpenError> {
        let spool = Spool::open(self, settings).await?;
        // The directory's lock lets no second one be opened.
        Ok(self.0.spool.get_or_init(|| spool).clone())
    }

    pub(crate) fn spool(&self) -> Option<&Spool> {
        self.0.spool.get()
    }

    /// Why the log takes no records, if its settings would lose them.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.topic.refusal()
    }

    pub(crate) fn delivery_timeout(&self) -> Duration {
        self.0.settings.delivery_timeout
    }

    /// Asks the cluster in a thread of its own, since the library's calls block; asks again while a partition is changing
    /// its leader, which a new topic's partitions do, for as long as one question may take.
    async fn ask<T: Send + 'static>(
        &self,
        doing: &'static str,
        question: impl Fn(&Shared) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, LogError> {
        self.ask_once(doing, move |shared| {
            let deadline = Instant::now() + ASK;
            loop {
                match question(shared) {
                    Err(error) if changes_leader(&error) && Instant::now() + ASKS_APART < deadline => {
                        std::thread::sleep(ASKS_APART);
                    }
                    answer => return answer,
                }
            }
        })
        .await
    }

    /// Like [`Self::ask`], with the first answer, whatever it is.
    async fn ask_once<T: Send + 'static>(
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

    /// How many partitions the topic has now.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn partition_count(&self) -> Result<u32, LogError> {
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
        let extent = self.ask_extent(partition).await;
        if extent.is_err() {
            // The client may have cached the answer of a broker that had just started; a check of the topic asks again.
            self.0.topic.look_soon();
        }
        extent
    }

    async fn ask_extent(&self, partition: Partition) -> Result<Extent, LogError> {
        self.ask("reading a partition's watermarks", move |shared| {
            let (topic, number) = (&shared.settings.topic, partition.number() as i32);
            let (low, high) = match shared.admin.inner().fetch_watermarks(topic, number, ASK) {
                // The client asked a broker that had just started and did not know the partitions yet, and keeps that
                // answer for long. A new client has kept none.
                Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition)) => {
                    let client: BaseConsumer<Quiet> =
                        reader_config(&shared.settings).create_with_context(Quiet::default())?;
                    client.fetch_watermarks(topic, number, ASK)?
                }
                watermarks => watermarks?,
            };
            Ok(Extent { low: Offset::new(low.max(0) as u64), high: Offset::new(high.max(0) as u64) })
        })
        .await
    }

    pub(crate) async fn probe(&self) -> Result<(), LogError> {
        if let Some(reason) = self.0.topic.refusal() {
            return Err(LogError::Refused { reason });
        }
        self.ask_once("asking for the partitions' leaders", |shared| {
            match topic_state(&shared.admin, &shared.settings.topic)? {
                State::Ready(_) => Ok(()),
                State::Absent => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)),
                State::Unready(_) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable)),
            }
        })
        .await
    }

    /// See [`EventLog::is_same`](crate::EventLog::is_same).
    pub(crate) async fn is_same(&self) -> Result<(), LogError> {
        self.verify(None, Instant::now()).await
    }
}

/// Whether the answer is of a broker that has just become, or is no longer, the leader of the partition: it passes by
/// itself. Brokers learn of their partitions a moment after the topic's metadata name them (KIP-320 has the codes).
fn changes_leader(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::OffsetNotAvailable
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_again_while_a_partition_changes_its_leader_and_not_otherwise() {
        for (code, again) in [
            (RDKafkaErrorCode::NotLeaderForPartition, true),
            (RDKafkaErrorCode::OffsetNotAvailable, true),
            (RDKafkaErrorCode::UnknownTopicOrPartition, false),
            (RDKafkaErrorCode::AllBrokersDown, false),
            (RDKafkaErrorCode::TopicAuthorizationFailed, false),
        ] {
            assert_eq!(changes_leader(&KafkaError::MetadataFetch(code)), again, "{code}");
        }
        assert!(changes_leader(&KafkaError::OffsetFetch(RDKafkaErrorCode::NotLeaderForPartition)));
    }
}
