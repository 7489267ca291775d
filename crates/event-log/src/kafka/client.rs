//! Settings that all clients of the cluster share, and how the library's own messages reach the logs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};

use super::KafkaSettings;

/// The operator's own properties come first, so that they cannot replace the settings that the guarantees rest on.
pub(super) fn base_config(settings: &KafkaSettings) -> ClientConfig {
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

/// Settings of a client that reads one partition from an exact offset and belongs to no group.
pub(super) fn reader_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = base_config(settings);
    config
        // The library demands a group id, but a client that only assigns never joins the group.
        .set("group.id", "dashi-reader")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        // Records of an aborted transaction are no events.
        .set("isolation.level", "read_committed")
        // A projector may wait for its database for as long as it takes.
        .set("max.poll.interval.ms", "86400000");
    for (name, value) in READ_AHEAD {
        if !settings.properties.contains_key(name) {
            config.set(name, value);
        }
    }
    config
}

/// The bytes of one fetch of a reader, at most; a larger record is fetched alone. The library keeps the whole answer until
/// its last record is taken.
pub(super) const FETCH_BYTES: usize = 1 << 20;

/// Bounds of what a reader fetches ahead of its batches, for each partition: the library's own are 100,000 records and
/// 64 MiB. It asks for more as soon as fewer records wait, so a few hundred keep it busy.
const READ_AHEAD: [(&str, &str); 5] = [
    ("fetch.message.max.bytes", "1048576"),
    ("queued.min.messages", "500"),
    ("queued.max.messages.kbytes", "2048"),
    ("fetch.queue.backoff.ms", "5"),
    // It answers at once when there is a record.
    ("fetch.wait.max.ms", "500"),
];

/// How often one kind of trouble is logged, at most. The library repeats it with every attempt.
pub(super) const REPEAT: Duration = Duration::from_secs(60);

/// Receives the library's own messages. They report single attempts and consequences; the cause of a failure is logged
/// where the failure is handled, so these messages are details, logged at a level that is off by default.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    logged: Mutex<Vec<(RDKafkaErrorCode, Instant)>>,
}

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        note(facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

impl Quiet {
    /// Warns of trouble with connections (refused, unknown name, bad certificate or password), which the client keeps
    /// trying to make: an operator who sets up a cluster needs the library's words for it, once a minute.
    pub(super) fn trouble(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let is_of_connections = matches!(
            code,
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::Fatal
        );
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|(_, at)| at.elapsed() < REPEAT);
        if !is_of_connections || logged.iter().any(|(other, _)| *other == code) {
            return note("ERROR", reason);
        }
        logged.push((code, Instant::now()));
        tracing::warn!(detail = reason, "a connection to Kafka fails; the client keeps trying");
    }
}

/// Logs a message of the library at the debug level, which is off by default.
pub(super) fn note(facility: &str, line: &str) {
    tracing::debug!(target: "dashi_event_log::librdkafka", facility, "note of the Kafka client: {line}");
}
