//! The settings as types. `config/default.toml` documents the meaning, unit and cost of each.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::Deserialize;

use super::secret::Secret;

/// Every setting, each with a value of the right type. [`check`](super::check()) decides whether they may run together.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the event log; see [`parse_log_url`](super::parse_log_url).
    pub log: String,
    /// URL of the store, with its password; see [`parse_store_url`](super::parse_store_url).
    pub store: String,
    /// Address and port of the HTTP server.
    pub listen: SocketAddr,
    /// Secret of ids and tokens; read it through [`Settings::secret_text`].
    pub secret: Secret<String>,
    /// IANA time zone in which months, weeks, days and hours begin.
    pub timezone: String,
    /// The version of Umami whose rules events are taken and folded by.
    pub umami_release: UmamiRelease,
    /// The HTTP server and the collector.
    pub ingest: Ingest,
    /// Limits of what the collector takes in.
    pub limits: Limits,
    /// Historical events.
    pub history: History,
    /// The tracker script.
    pub script: Script,
    /// The location of addresses.
    pub geo: Geo,
    /// The event log on either backend.
    pub event_log: EventLogSettings,
    /// Only for a log on Kafka.
    pub kafka: Kafka,
    /// The projector.
    pub projector: Projector,
    /// Records that could not be applied.
    pub dead_letters: DeadLetters,
    /// The store's connections.
    pub database: Database,
    /// The fold, which turns events into rows.
    pub fold: Fold,
    /// Traits of people.
    pub profiles: Profiles,
    /// The API of the read side.
    pub api: Api,
    /// The web page for operators.
    pub console: Console,
    /// Health checks.
    pub health: Health,
    /// Tracing by OpenTelemetry.
    pub tracing: Tracing,
    /// Stopping on SIGTERM.
    pub shutdown: Shutdown,
    /// Diagnostic output.
    pub logs: Logs,
}

impl Settings {
    /// The text from which the secret of ids and tokens is hashed: `secret` (`APP_SECRET`) if it is not empty,
    /// else `DATABASE_URL` if the environment has it, which [`load`](super::load) has put in its place; else
    /// none.
    ///
    /// With none, an embedded Dashi generates its own secret. Source:
    /// docs/umami-contract.md §6.1.
    pub fn secret_text(&self) -> Option<&str> {
        Some(self.secret.expose().as_str()).filter(|text| !text.is_empty())
    }
}

impl Settings {
    /// The further paths of the tracker script, each with its slash.
    pub fn script_paths(&self) -> Vec<String> {
        let names = self.script.names.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(|name| format!("/{}", name.trim_start_matches('/'))).collect()
    }
}

/// Prints the name only: URLs and Kafka's properties hold passwords.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// The HTTP server and the collector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Largest request body; more is answered 413.
    pub body_bytes_max: usize,
    /// Memory of all request bodies together; more is answered 503.
    pub bodies_bytes_max: usize,
    /// Elements of one batch; more are answered 413.
    pub batch_elements_max: usize,
    /// Requests in flight, half of them of one client; more are answered 503.
    pub in_flight_max: usize,
    /// Open client connections; further ones replace idle ones, or wait.
    pub connections_max: usize,
    /// Time limit of one request, including the append.
    pub request_timeout_ms: u64,
    /// Longest time until a connection's next request head is there.
    pub idle_timeout_ms: u64,
    /// Longest time from a head's first byte to its last.
    pub head_timeout_ms: u64,
    /// Longest pause in a body.
    pub body_pause_ms_max: u64,
    /// Least rate of a body that takes longer than that, in bytes per second.
    pub body_rate_bytes_min: u64,
    /// Longest time for the client to read an answer.
    pub answer_timeout_ms: u64,
    /// Memory of answers that clients have not read yet.
    pub answers_bytes_max: usize,
    /// Header whose whole value is the client's address; empty for the usual ones.
    pub client_ip_header: String,
    /// Comma list of blocked addresses and CIDR blocks.
    pub ignore_ip: String,
    /// Comma list of proxies whose address and location headers are believed; empty for all peers.
    pub trusted_proxies: String,
    /// Whether events of bots are taken, too.
    pub disable_bot_check: bool,
    /// How long an anonymous visitor keeps a session id.
    pub salt_rotation: SaltRotation,
    /// The effect of a distinct id on a session.
    pub identified_sessions: IdentifiedSessions,
    /// Whether texts longer than their columns are taken, and cut, where Umami refuses them.
    pub cut_long_fields: bool,
    /// Whether location headers of providers are ignored.
    pub skip_location_headers: bool,
    /// How long browsers may cache a CORS preflight; 0 is never.
    pub cors_max_age_s: u64,
    /// Interval of reading the list of websites.
    pub website_refresh_ms: u64,
    /// Least time between two look-ups of an unknown website.
    pub website_recheck_ms: u64,
    /// Value of `Retry-After` in a 503.
    pub retry_after_s: u64,
    /// Whether events become durable in a spool while a log on Kafka is away or slow.
    pub spool: bool,
    /// The spool's directory, of this collector's own.
    pub spool_directory: String,
    /// How long an append may wait for its acknowledgement before its events go into the spool.
    pub spool_after_ms: u64,
    /// Bytes of the events in the spool; more are answered 503.
    pub spool_bytes_max: u64,
    /// Age of the spool's oldest event at which further ones are answered 503.
    pub spool_age_s_max: u64,
    /// How long a visitor of a link or pixel may be kept waiting until the visit is stored.
    pub redirect_wait_ms: u64,
    /// Whether submissions of unknown types are kept in the log.
    pub keep_unknown_types: bool,
    /// Prefix of every path; empty for none.
    pub base_path: String,
    /// Second path of `/api/send`; empty for none.
    pub send_path: String,
    /// Whether browsers are made to use HTTPS only.
    pub force_ssl: bool,
}

/// Limits of what the collector takes in. Numbers of events are no limit at 0.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// What happens to events while the backlog is too old.
    pub backlog_policy: BacklogPolicy,
    /// The age past which it is.
    pub backlog_s_max: u64,
    /// Largest `Retry-After` of an event that is shed.
    pub retry_after_s_max: u64,
    /// Events of one website per second.
    pub website_rate_events_max: u64,
    /// Events of one website at once; 0 for those of ten seconds.
    pub website_burst_events_max: u64,
    /// Events of one website in a day.
    pub website_day_events_max: u64,
    /// Events of one address per second.
    pub address_rate_events_max: u64,
    /// Events of one address at once; 0 for those of ten seconds.
    pub address_burst_events_max: u64,
    /// Events of one address in a day.
    pub address_day_events_max: u64,
    /// Addresses whose counts are kept.
    pub addresses_max: usize,
    /// The limits file; empty for none.
    pub file: String,
}

/// What happens to events while the backlog is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BacklogPolicy {
    /// They are taken.
    Accept,
    /// They are shed.
    Shed,
    /// Those of websites of lower priorities are shed first.
    Priorities,
}

/// Historical events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Age from which on an event is historical; 0 for none.
    pub event_age_s_min: u64,
    /// How long live events may wait for history.
    pub delay_ms_max: u64,
    /// Bytes of the historical events that wait in one collector; more are answered 503.
    pub waiting_bytes_max: u64,
}

/// The tracker script.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Comma list of further paths; empty for none.
    pub names: String,
    /// Address of another script instead; empty for the built-in one.
    pub url: String,
    /// The host to which it posts; empty for the host that it comes from.
    pub collect_host: String,
}

/// The location of addresses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geo {
    /// File in MaxMind's format; empty for none.
    pub database: String,
}

/// How long an anonymous visitor keeps a session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaltRotation {
    /// From the first of the month.
    Month,
    /// From Sunday.
    Week,
    /// From midnight.
    Day,
}

/// A version of Umami, or the one that the database shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UmamiRelease {
    /// The version that the store's tables show.
    #[serde(rename = "auto")]
    Auto,
    /// 3.0.
    #[serde(rename = "3.0")]
    V3_0,
    /// 3.1.
    #[serde(rename = "3.1")]
    V3_1,
    /// 3.2.
    #[serde(rename = "3.2")]
    V3_2,
    /// 3.3.
    #[serde(rename = "3.3")]
    V3_3,
    /// 3.4 and newer.
    #[serde(rename = "3.4")]
    V3_4,
}

/// The effect of a distinct id on the session of its visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdentifiedSessions {
    /// That of the database's version of Umami.
    Auto,
    /// The distinct id is the session, on all devices.
    Shared,
    /// The distinct id is linked to the session, and no part of it.
    Linked,
    /// The distinct id is a part of the session.
    PerDevice,
}

/// The event log on either backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventLogSettings {
    /// Partitions of a log that does not exist yet.
    pub partitions: u32,
    /// Events waiting for the log at once; more are answered 503.
    pub append_queue_max: usize,
    /// Events that share one fsync of the embedded log.
    pub append_batch_max: usize,
    /// Hours that the embedded log keeps applied records; 0 is for ever.
    pub retention_h: u64,
}

/// Only for a log on Kafka.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Replicas of a topic that Dashi creates; -1 is the broker's default.
    pub replication_factor: i32,
    /// Consumer group of the projectors.
    pub group: String,
    /// Time limit of an append, including retries.
    pub delivery_timeout_ms: u64,
    /// How long an append waits for others to share its request.
    pub linger_ms: u64,
    /// Silence after which a projector loses its partitions.
    pub session_timeout_ms: u64,
    /// Name of a projector in the group that it keeps over restarts; empty for none.
    pub instance_id: String,
    /// How often the topic's identity and settings are checked.
    pub topic_check_ms: u64,
    /// Settings of librdkafka, passed through; they include passwords.
    pub properties: BTreeMap<String, String>,
}

/// Names the properties only: values hold passwords.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties: Vec<&String> = self.properties.keys().collect();
        f.debug_struct("Kafka")
            .field("group", &self.group)
            .field("properties", &properties)
            .finish_non_exhaustive()
    }
}

/// The projector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projector {
    /// Records of one partition in one transaction.
    pub batch_records_max: usize,
    /// Bytes of records in one transaction; a single larger record is a batch of its own.
    pub batch_bytes_max: usize,
    /// Bytes of records that are folded and written at one moment, over all partitions; 0 by the number of cores.
    pub batches_bytes_max: usize,
    /// Least time between two batches of a partition, unless the last one was full.
    pub batch_interval_ms: u64,
    /// Longest wait for new records.
    pub read_wait_ms: u64,
    /// Age of a backlog before which new sessions' events are applied; 0: never.
    pub live_first_after_s: u64,
    /// In `serve`: nice value of the threads that fold and write, 0 to 19.
    pub nice: u8,
    /// Longest pause between two attempts while a server is away.
    pub retry_wait_ms_max: u64,
    /// Pause between two attempts at a partition that has failed.
    pub failed_retry_ms: u64,
    /// Whether a process is not ready while one of its partitions is failed.
    pub failed_partition_unready: bool,
}

/// Records that could not be applied.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    /// Whether later records of a session wait behind a dead letter of it.
    pub park_session: bool,
    /// Records of one session that wait.
    pub parked_records_max: u32,
    /// Sessions of one partition that are held up at once.
    pub parked_sessions_max: usize,
}

/// The store's connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Connections of one process.
    pub pool_connections_max: u32,
    /// Time limit of one statement.
    pub statement_timeout_ms: u64,
}

/// The fold, which turns events into rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// Whether stored URL paths lose the slash at their end.
    pub remove_trailing_slash: bool,
}

/// Traits of people.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    /// Whether a null deletes a trait.
    pub null_deletes: bool,
    /// Age of its last event below which a session is live.
    pub live_s: u64,
    /// Secret by which signed pages may read their own person; empty for none.
    pub identity_key: Secret<String>,
}

/// The API of the read side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Comma list of keys; empty for none.
    pub keys: Secret<String>,
    /// Questions about traffic at once; further ones wait.
    pub questions_max: usize,
    /// Longest time of a question.
    pub question_timeout_ms: u64,
    /// Reads of the store at once; further ones wait.
    pub reads_max: usize,
    /// Open streams; more are answered 503.
    pub streams_max: usize,
    /// Open streams of the signed pages of one person; more are answered 503.
    pub person_streams_max: usize,
    /// Time between two comments of a stream.
    pub stream_heartbeat_ms: u64,
    /// Longest time for the reader of a stream to take an event.
    pub stream_write_timeout_ms: u64,
}

/// The web page for operators.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Whether it is served.
    pub enabled: bool,
}

/// Health checks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Longest time for which a task may show no sign of life.
    pub silence_ms_max: u64,
}

/// Tracing by OpenTelemetry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// Where spans are sent; empty for nowhere.
    pub otlp_endpoint: String,
    /// The name by which spans are found.
    pub service_name: String,
    /// The share of the traces that begin here which are sampled, from 0 to 1.
    pub sampled_ratio: f64,
}

/// Stopping on SIGTERM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Time limit of the whole drain.
    pub grace_ms: u64,
}

/// Diagnostic output.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Form of a line.
    pub format: LogFormat,
    /// Level, or directives per target.
    pub filter: String,
}

/// Form of a line of diagnostic output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text, for people.
    Text,
    /// JSON, for machines.
    Json,
}
