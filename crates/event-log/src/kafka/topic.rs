//! The topic behind a log. It is found or created when the log is opened, and checked again while the log is open: is it
//! still the same topic, and do its settings keep acknowledged records?

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Instant;

use dashi_domain::position::LogId;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::client::Quiet;
use super::settings::{Described, Expected, judge};
use super::{ASK, KafkaLog, KafkaSettings, MESSAGE_BYTES_MAX, Shared, topic_id};
use crate::topic::{Concern, TopicNote};
use crate::{LogError, OpenError};

/// When the last question began that had the right answer; locked while a question is asked.
type LastCheck = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// State of the topic, as it was last looked at.
#[derive(Debug)]
pub(super) struct TopicState {
    /// The id that the cluster gave the topic, as the log was opened.
    pub id: String,
    /// The cluster's id, as the log was opened.
    pub cluster: String,
    /// Partitions, as the log was opened.
    pub partitions: u32,
    notes: RwLock<Vec<TopicNote>>,
    /// Set once, because a topic's id is never given again.
    replaced: RwLock<Option<LogId>>,
    /// By broker: when it was last asked for the topic's id and gave the right answer. Each broker is asked one question at
    /// a time.
    checks: Mutex<HashMap<Option<i32>, LastCheck>>,
    soon: Arc<Notify>,
    stop: CancellationToken,
}

impl TopicState {
    pub fn new(cluster: String, id: String, partitions: u32) -> Self {
        Self {
            id,
            cluster,
            partitions,
            notes: RwLock::default(),
            replaced: RwLock::default(),
            checks: Mutex::default(),
            soon: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    pub fn notes(&self) -> Vec<TopicNote> {
        self.notes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the log refuses appends and reads, if it does.
    pub fn refusal(&self) -> Option<String> {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        notes.iter().find(|note| note.concern.is_refusal()).map(ToString::to_string)
    }

    /// The log that the topic holds now, if it is another one.
    pub fn replaced(&self) -> Option<LogId> {
        self.replaced.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the topic checked without waiting for the interval's end.
    pub fn look_soon(&self) {
        self.soon.notify_one();
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Replaces the notes; logs those that are new, have changed or are gone.
    fn note(&self, topic: &str, new: Vec<TopicNote>) {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        for note in new.iter().filter(|note| !notes.contains(note)) {
            let (concern, remedy) = (note.concern.name(), note.remedy.as_deref());
            if note.concern.is_refusal() || note.concern == Concern::Replaced {
                tracing::error!(concern, remedy, "{}", note.text);
            } else {
                tracing::warn!(concern, remedy, "{}", note.text);
            }
        }
        for gone in notes.iter().filter(|old| !new.iter().any(|note| note.concern == old.concern)) {
            tracing::info!(
                topic,
                concern = gone.concern.name(),
                "corrected: this concern about the topic is over"
            );
        }
        *notes = new;
    }
}

impl KafkaLog {
    /// See [`EventLog::notes`](crate::EventLog::notes).
    pub(crate) fn notes(&self) -> Vec<TopicNote> {
        self.0.topic.notes()
    }

    /// Proves that records read before `after` are of this log, by asking the broker that they were read from. All callers
    /// that wait for the same question share its answer.
    ///
    /// This is sound because a topic's id is never given again: if the broker answers after the fetch that the topic still
    /// has this id, it had it when the broker served the fetch. A broker sees changes of topics in one order, and serves no
    /// topic that it has not seen.
    pub(super) async fn verify(&self, broker: Option<i32>, after: Instant) -> Result<(), LogError> {
        let topic = &self.0.topic;
        if let Some(found) = topic.replaced() {
            return Err(self.is_replaced(found));
        }
        let last = {
            let mut checks = topic.checks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(checks.entry(broker).or_default())
        };
        let mut last = last.lock().await;
        if last.is_some_and(|began| began >= after) {
            return Ok(());
        }
        let began = Instant::now();
        let found = self.current_log(broker).await?;
        if found != self.0.id {
            return Err(self.is_replaced(found));
        }
        *last = Some(began);
        Ok(())
    }

    /// The log that the topic holds now, by this broker or any.
    pub(super) async fn current_log(&self, broker: Option<i32>) -> Result<LogId, LogError> {
        match self.ask_id(broker).await? {
            Found::Id(id) if id == self.0.topic.id => Ok(self.0.id.clone()),
            Found::Id(id) => Ok(self.replace(&id)),
            Found::Absent => Err(self.absent()),
        }
    }

    async fn ask_id(&self, broker: Option<i32>) -> Result<Found, LogError> {
        let shared = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            topic_id::fetch(shared.admin.inner(), &shared.settings.topic, broker, ASK)
        })
        .await
        .map_err(LogError::away("asking for the topic's id"))?;
        match asked {
            Ok(id) => Ok(Found::Id(id)),
            Err(topic_id::Error::Absent) => Ok(Found::Absent),
            Err(error) => Err(LogError::away("asking for the topic's id")(error)),
        }
    }

    /// Notes that the topic holds another log now; returns that log.
    fn replace(&self, id: &str) -> LogId {
        let topic = &self.0.topic;
        let found = log_id(&topic.cluster, &self.0.settings.topic, id);
        let mut replaced = topic.replaced.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = replaced.as_ref() != Some(&found);
        *replaced = Some(found.clone());
        drop(replaced);
        if is_new {
            topic.look_soon();
            // The new topic's offsets begin again, below those that the producer knows as acknowledged.
            self.renew_producer();
        }
        found
    }

    pub(super) fn is_replaced(&self, found: LogId) -> LogError {
        LogError::Replaced { topic: self.0.settings.topic.clone(), known: self.0.id.clone(), found }
    }

    fn absent(&self) -> LogError {
        LogError::away("looking for its topic")(TopicAbsent { topic: self.0.settings.topic.clone() })
    }

    /// Checks the topic now: its identity, its partitions and replicas, and its settings. Notes stay as they were where the
    /// cluster does not answer.
    pub(crate) async fn look(&self) {
        let (shared, topic) = (&self.0, &self.0.topic);
        let mut notes = Vec::new();
        match self.ask_id(None).await {
            Err(error) => {
                tracing::debug!(error = %error, "the topic cannot be checked");
                return;
            }
            Ok(Found::Absent) => {
                let name = &shared.settings.topic;
                let text =
                    format!("the topic {name} is not there: it was deleted, or this client may not see it");
                notes.push(TopicNote { concern: Concern::Absent, text, remedy: None });
                return topic.note(name, notes);
            }
            Ok(Found::Id(id)) if id != topic.id => {
                self.replace(&id);
            }
            Ok(Found::Id(_)) => {}
        }
        if let Some(found) = topic.replaced() {
            notes.push(TopicNote {
                concern: Concern::Replaced,
                text: self.is_replaced(found).to_string(),
                remedy: None,
            });
        }
        let Ok((partitions, replicas)) = self.count().await else { return };
        let Some(settings) = self.read_settings().await else { return };
        let described = Described { settings, partitions, replicas };
        let expected = Expected {
            brokers: &shared.settings.brokers,
            topic: &shared.settings.topic,
            record_bytes_max: shared.settings.record_bytes_max,
            partitions: shared.router.routing().current().map(|layout| layout.partitions),
            grows: shared.router.routing().next().is_some(),
        };
        notes.extend(judge(&described, expected));
        topic.note(&shared.settings.topic, notes);
    }

    /// Number of partitions, and of replicas of the partition with the fewest.
    async fn count(&self) -> Result<(u32, u32), LogError> {
        self.ask("counting the topic's partitions", |shared| {
            let metadata = shared.admin.inner().fetch_metadata(Some(&shared.settings.topic), ASK)?;
            let Some(topic) = metadata.topics().first().filter(|topic| !topic.partitions().is_empty()) else {
                return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition));
            };
            let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
            Ok((topic.partitions().len() as u32, replicas.unwrap_or(0) as u32))
        })
        .await
    }

    /// The settings in force. The inner `Err` is the reason why this client may not read them; `None` if the cluster does
    /// not answer now.
    async fn read_settings(&self) -> Option<Result<BTreeMap<String, String>, String>> {
        let resource = [ResourceSpecifier::Topic(&self.0.settings.topic)];
        let options = AdminOptions::new().request_timeout(Some(ASK));
        let described = self.0.admin.describe_configs(&resource, &options).await;
        let code = match described.map(|described| described.into_iter().next()) {
            Ok(Some(Ok(resource))) => {
                let entries = resource.entries.into_iter();
                let settings: BTreeMap<_, _> =
                    entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                // The library returns an empty list for a topic whose settings this client may not read.
                let is_shown = settings.contains_key("cleanup.policy");
                return Some(if is_shown { Ok(settings) } else { Err("none are shown".to_owned()) });
            }
            Ok(Some(Err(code))) => code,
            Ok(None) => return None,
            Err(error) => error.rdkafka_error_code()?,
        };
        let is_refused = matches!(
            code,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::UnsupportedVersion
                | RDKafkaErrorCode::UnsupportedFeature
                | RDKafkaErrorCode::PolicyViolation
        );
        tracing::debug!(error = %code, "the topic's settings cannot be read");
        is_refused.then(|| Err(code.to_string()))
    }

    /// Checks the topic at the interval, and sooner when something went wrong with it, for as long as the log is open.
    pub(super) fn watch(&self) {
        let log: Weak<Shared> = Arc::downgrade(&self.0);
        let interval = self.0.settings.topic_check_interval;
        let (stop, soon) = (self.0.topic.stop.clone(), Arc::clone(&self.0.topic.soon));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = soon.notified() => {}
                    () = tokio::time::sleep(interval) => {}
                }
                let Some(log) = log.upgrade().map(Self) else { return };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = log.look() => {}
                }
                drop(log);
                // A bound on how often the topic is checked, however many callers ask for it.
                tokio::time::sleep(super::ASKS_APART).await;
            }
        });
    }
}

enum Found {
    Id(String),
    Absent,
}

#[derive(Debug, thiserror::Error)]
#[error("the topic {topic} is not there")]
struct TopicAbsent {
    topic: String,
}

/// Identity of a log on Kafka: the cluster, the topic, and the id that the cluster gave the topic.
pub(super) fn log_id(cluster: &str, topic: &str, id: &str) -> LogId {
    LogId::new(format!("kafka:{cluster}/{topic}/{id}"))
}

/// Result of looking for the topic when a log is opened.
pub(super) enum Topic {
    There(TopicState),
    Unready(String),
    Absent,
}

/// Blocks. Finds the topic and its identity: the cluster's id, and the id the cluster gave the topic.
pub(super) fn look_up(admin: &AdminClient<Quiet>, settings: &KafkaSettings) -> KafkaResult<Topic> {
    let partitions = match topic_state(admin, &settings.topic)? {
        State::Absent => return Ok(Topic::Absent),
        State::Unready(reason) => return Ok(Topic::Unready(reason)),
        State::Ready(partitions) => partitions,
    };
    let cluster = admin
        .inner()
        .fetch_cluster_id(ASK)
        .ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut))?;
    match topic_id::fetch(admin.inner(), &settings.topic, None, ASK) {
        Ok(id) => Ok(Topic::There(TopicState::new(cluster, id, partitions))),
        Err(reason) => Ok(Topic::Unready(reason.to_string())),
    }
}

pub(super) enum State {
    Ready(u32),
    Unready(String),
    Absent,
}

/// Blocks. Ready means that every partition has a leader.
pub(super) fn topic_state(admin: &AdminClient<Quiet>, topic: &str) -> KafkaResult<State> {
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
        None => State::Ready(found.partitions().len() as u32),
    })
}

pub(super) async fn create_topic(
    admin: &AdminClient<Quiet>,
    settings: &KafkaSettings,
) -> Result<(), OpenError> {
    let failed = |reason: String| OpenError::Topic {
        topic: settings.topic.clone(),
        partitions: settings.partitions,
        brokers: settings.brokers.clone(),
        reason,
    };
    let bytes_max = MESSAGE_BYTES_MAX.to_string();
    // The log is the source of truth: nothing is removed from it unless the operator configures it so. The settings are
    // written out because the broker's defaults may differ.
    let topic = NewTopic::new(
        &settings.topic,
        settings.partitions as i32,
        TopicReplication::Fixed(settings.replication_factor),
    )
    .set("cleanup.policy", "delete")
    .set("retention.ms", "-1")
    .set("retention.bytes", "-1")
    .set("unclean.leader.election.enable", "false")
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
