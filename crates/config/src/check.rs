//! Checks values that have the right type and still must not run, alone or together.

use std::fmt;

use dashi_domain::api_key::{self, BadHash, KeyEntry};
use dashi_domain::client_address::TrustedProxies;

use super::{
    error::ConfigError,
    secret::redact_url,
    settings::{Kafka, Limits, Settings, Tracing},
    url::{LogUrl, StoreUrl, parse_log_url, parse_store_url},
};

/// Most partitions of a log that Dashi creates.
pub const PARTITIONS_MAX: u32 = 4096;

/// The lowest priority of a thread.
const NICE_MAX: u8 = 19;

/// Below this, brokers refuse a group's member. Source: Apache Kafka, `group.min.session.timeout.ms`.
const SESSION_TIMEOUT_MS_MIN: u64 = 6_000;

/// librdkafka refuses a session timeout above its `max.poll.interval.ms`, whose default this is.
const SESSION_TIMEOUT_MS_MAX: u64 = 300_000;

/// Longest time librdkafka takes for a delivery, and far above any other sensible time in ms. Source: its
/// `message.timeout.ms`, a 32-bit number.
const MILLISECONDS_MAX: u64 = i32::MAX as u64;

/// Fewest characters of an API key. At 16 letters and digits, guessing has no prospect.
pub const API_KEY_CHARS_MIN: usize = 16;

/// Fewest characters of the identity key. Whoever has a signature can try out keys at leisure, so there are more of them.
pub const IDENTITY_KEY_CHARS_MIN: usize = 32;

/// Shortest silence that shows something: three signs of life.
const SILENCE_MS_MIN: u64 = 3_000;

/// The same with Kafka: a read that fails has asked for metadata, watermarks and the topic's identity, each for 5 s at most.
const SILENCE_ON_KAFKA_MS_MIN: u64 = 30_000;

/// Most addresses whose counts are kept: 320 MB.
const ADDRESSES_MAX: usize = 10_000_000;

/// Longest ages and waits of the backlog: a month, in seconds.
const BACKLOG_S_MAX: u64 = 2_678_400;

/// Most streams or reads: far above any number of connections, and far below the limit of a semaphore.
const PERMITS_MAX: usize = 1_000_000;

/// A setting that may run and that an operator should know about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The paths that this program serves, against which the paths of the settings are checked.
#[derive(Debug, Clone, Copy)]
pub struct ServedPaths<'p> {
    /// All routes. One with a name in braces answers at every path that begins as it does.
    pub routes: &'p [&'p [&'p str]],
    /// The route of events, for which `ingest.send_path` is another path.
    pub send: &'p str,
    /// The route of the tracker script, for which `script.names` are other paths.
    pub script: &'p str,
    /// The paths that are served beside a tracker script's path.
    pub files_beside: fn(&str) -> [String; 2],
}

impl ServedPaths<'_> {
    /// Whether a route other than `own` answers at a path.
    fn is_taken(&self, path: &str, own: &str) -> bool {
        let mut routes = self.routes.iter().copied().flatten();
        path != own
            && routes.any(|route| match route.split_once('{') {
                Some((begin, _)) => path.starts_with(begin),
                None => path == *route,
            })
    }
}

/// Checks that the settings may run together. `known_timezone` returns whether a name is a time zone.
///
/// # Errors
/// Everything that has to be changed first, not only the first of it.
pub fn check(
    settings: &Settings,
    known_timezone: impl Fn(&str) -> bool,
    served: &ServedPaths<'_>,
) -> Result<Vec<Warning>, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let log = parse_log_url(&settings.log).map_err(|error| errors.push(error)).ok();
    let store = parse_store_url(&settings.store).map_err(|error| errors.push(error)).ok();
    errors.extend(ranges(settings));
    if !known_timezone(&settings.timezone) {
        errors.push(ConfigError::OutOfRange {
            key: "timezone",
            got: format!("{:?}", settings.timezone),
            reason: "no such time zone is known here, and session ids depend on it",
            remedy: "set an IANA name such as \"UTC\" or \"Europe/Berlin\" (DASHI_TIMEZONE wins over TZ)",
        });
    }
    if let (Some(LogUrl::Sqlite(log)), Some(StoreUrl::Sqlite(store))) = (&log, &store)
        && log == store
    {
        errors.push(ConfigError::Unsafe {
            first: format!("log = {}", settings.log),
            second: format!("store = {}", settings.store),
            reason: "the log is the source of truth and the tables can be deleted, so they cannot be one file",
            remedy: "give each its own file",
        });
    }
    errors.extend(paths(settings, served));
    errors.extend(api(settings));
    errors.extend(identity_key(settings));
    errors.extend(health(settings));
    errors.extend(tracing(settings));
    if let Err(entry) = TrustedProxies::parse(&settings.ingest.trusted_proxies) {
        errors.push(ConfigError::OutOfRange {
            key: "ingest.trusted_proxies",
            got: format!("{entry:?}"),
            reason: "this is neither an address nor a CIDR block",
            remedy: "name each proxy as 192.0.2.1 or a network as 10.0.0.0/8, with commas between",
        });
    }
    let on_kafka = matches!(log, Some(LogUrl::Kafka { .. }));
    if on_kafka {
        errors.extend(times_on_kafka(settings));
        if settings.health.silence_ms_max < SILENCE_ON_KAFKA_MS_MIN {
            errors.push(ConfigError::OutOfRange {
                key: "health.silence_ms_max",
                got: settings.health.silence_ms_max.to_string(),
                reason: "a task that asks a silent broker waits for some time-outs of 5 s in a row",
                remedy: "set 30000 or more",
            });
        }
        if settings.ingest.spool && settings.ingest.spool_directory.is_empty() {
            errors.push(ConfigError::OutOfRange {
                key: "ingest.spool_directory",
                got: "\"\"".to_owned(),
                reason: "the spool needs a place on a disk",
                remedy: "set a directory of this collector's own, or ingest.spool = false",
            });
        }
    }
    errors.extend(settings.kafka.properties.keys().filter_map(|property| reserved(property)));
    if settings.secret_text().is_none() {
        if on_kafka {
            errors.push(ConfigError::NoSecret { key: "log", got: redact_url(&settings.log) });
        } else if matches!(store, Some(StoreUrl::Postgres(_))) {
            errors.push(ConfigError::NoSecret { key: "store", got: redact_url(&settings.store) });
        }
    }
    if errors.is_empty() { Ok(warnings(settings, on_kafka)) } else { Err(errors) }
}

fn ranges(settings: &Settings) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for (key, got) in limits(settings) {
        if got == 0 {
            errors.push(ConfigError::OutOfRange {
                key,
                got: "0".to_owned(),
                reason: "with a limit of 0 nothing could ever pass, or nothing would be limited",
                remedy: "set 1 or more",
            });
        } else if key.contains("_ms") && got > MILLISECONDS_MAX {
            errors.push(ConfigError::OutOfRange {
                key,
                got: got.to_string(),
                reason: "this is longer than 24 days, so it would never end",
                remedy: "give milliseconds, at most 2147483647",
            });
        }
    }
    if settings.event_log.partitions > PARTITIONS_MAX {
        errors.push(ConfigError::OutOfRange {
            key: "event_log.partitions",
            got: settings.event_log.partitions.to_string(),
            reason: "every partition costs a task, a claim and transactions of its own",
            remedy: "set 1 to 4096",
        });
    }
    if settings.projector.nice > NICE_MAX {
        errors.push(ConfigError::OutOfRange {
            key: "projector.nice",
            got: settings.projector.nice.to_string(),
            reason: "the system knows no lower priority",
            remedy: "set 0 to 19",
        });
    }
    errors.extend(kafka_ranges(&settings.kafka));
    errors.extend(limits_ranges(&settings.limits));
    errors
}

fn limits_ranges(limits: &Limits) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if limits.addresses_max > ADDRESSES_MAX {
        errors.push(ConfigError::OutOfRange {
            key: "limits.addresses_max",
            got: limits.addresses_max.to_string(),
            reason: "each address takes 32 bytes of memory, all of them from the first event on",
            remedy: "set 1 to 10000000",
        });
    }
    for (key, got) in [
        ("limits.backlog_s_max", limits.backlog_s_max),
        ("limits.retry_after_s_max", limits.retry_after_s_max),
    ] {
        if got > BACKLOG_S_MAX {
            errors.push(ConfigError::OutOfRange {
                key,
                got: got.to_string(),
                reason: "this is longer than a month",
                remedy: "give seconds, at most 2678400; to shed nothing, set limits.backlog_policy = \"accept\"",
            });
        }
    }
    for (key, burst, rate_key, rate) in [
        (
            "limits.website_burst_events_max",
            limits.website_burst_events_max,
            "limits.website_rate_events_max",
            limits.website_rate_events_max,
        ),
        (
            "limits.address_burst_events_max",
            limits.address_burst_events_max,
            "limits.address_rate_events_max",
            limits.address_rate_events_max,
        ),
    ] {
        if burst > 0 && rate == 0 {
            errors.push(ConfigError::Unsafe {
                first: format!("{key} = {burst}"),
                second: format!("{rate_key} = 0"),
                reason: "a burst is a part of a rate, so nothing would be limited",
                remedy: "set the rate, or a number by the day",
            });
        }
    }
    errors
}

/// Refuses paths that no request could have, and addresses that no header could hold.
fn paths(settings: &Settings, served: &ServedPaths<'_>) -> Vec<ConfigError> {
    let (ingest, script) = (&settings.ingest, &settings.script);
    let mut errors = Vec::new();
    let mut refuse = |key, got: &str, reason, remedy| {
        errors.push(ConfigError::OutOfRange { key, got: format!("{got:?}"), reason, remedy });
    };
    let is_path = |path: &str| {
        path.len() > 1
            && path.starts_with('/')
            && !path.ends_with('/')
            && !path.contains("//")
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%@:!$&+=".contains(&byte))
    };
    const SHAPE: &str =
        "a path begins with a slash, does not end with one, and has no spaces, queries or braces";
    if !ingest.base_path.is_empty() && !is_path(&ingest.base_path) {
        refuse("ingest.base_path", &ingest.base_path, SHAPE, "set something like \"/umami\"");
    }
    if !ingest.send_path.is_empty() && !is_path(&ingest.send_path) {
        refuse("ingest.send_path", &ingest.send_path, SHAPE, "set something like \"/collect\"");
    }
    for path in settings.script_paths().iter().filter(|path| !is_path(path)) {
        refuse("script.names", path, SHAPE, "set something like \"stats.js\"");
    }
    const TAKEN: &str = "Dashi answers something else there";
    let scripts = settings.script_paths();
    let is_beside = |path: &str| {
        scripts.iter().any(|script| (served.files_beside)(script).iter().any(|file| file == path))
    };
    if served.is_taken(&ingest.send_path, served.send) || is_beside(&ingest.send_path) {
        refuse("ingest.send_path", &ingest.send_path, TAKEN, "set a path of its own, such as \"/collect\"");
    }
    for path in &scripts {
        if served.is_taken(path, served.script) || *path == ingest.send_path || is_beside(path) {
            refuse("script.names", path, TAKEN, "set a name of its own, such as \"stats.js\"");
        }
    }
    for (key, url) in [("script.url", &script.url), ("script.collect_host", &script.collect_host)] {
        let is_address = url.starts_with("https://") || url.starts_with("http://") || url.starts_with('/');
        let can_be_gone_to = is_address && url.bytes().all(|byte| byte.is_ascii_graphic());
        if !url.is_empty() && !can_be_gone_to {
            refuse(key, url, "browsers need an address", "set something like \"https://c.example\"");
        }
    }
    errors
}

/// Refuses API keys that can be guessed or that no header can hold. The messages do not repeat a key.
fn api(settings: &Settings) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for (index, entry) in api_key::entries(settings.api.keys.expose()).enumerate() {
        let (reason, remedy) = match entry {
            Ok(KeyEntry::Plain(key))
                if key.len() < API_KEY_CHARS_MIN || !key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                (
                    "it is short enough to be guessed, or has characters that no header can hold",
                    "set 16 or more letters, digits and signs without spaces; `dashi keys new` makes a key and its hash",
                )
            }
            Err(BadHash::Digits) => (
                "it begins with sha256: and is not followed by 64 hexadecimal digits",
                "set the whole hash; `dashi keys new` makes a key and its hash, `dashi keys hash` that of a key",
            ),
            Err(BadHash::Empty) => (
                "it is the hash of an empty key",
                "set the hash of a key; `dashi keys new` makes both, `dashi keys hash` that of a key",
            ),
            Ok(_) => continue,
        };
        errors.push(ConfigError::OutOfRange {
            key: "api.keys",
            got: format!("(key {} of the list)", index + 1),
            reason,
            remedy,
        });
    }
    for (key, permits) in [
        ("api.streams_max", settings.api.streams_max),
        ("api.person_streams_max", settings.api.person_streams_max),
        ("api.reads_max", settings.api.reads_max),
        ("api.questions_max", settings.api.questions_max),
    ] {
        if permits > PERMITS_MAX {
            errors.push(ConfigError::OutOfRange {
                key,
                got: permits.to_string(),
                reason: "no process has so many connections",
                remedy: "set 1 to 1000000",
            });
        }
    }
    errors
}

/// Refuses an identity key that can be found by trying. The message does not repeat it.
fn identity_key(settings: &Settings) -> Option<ConfigError> {
    let key = settings.profiles.identity_key.expose();
    let is_fit = key.is_empty()
        || key.len() >= IDENTITY_KEY_CHARS_MIN && key.bytes().all(|byte| byte.is_ascii_graphic());
    (!is_fit).then(|| ConfigError::OutOfRange {
        key: "profiles.identity_key",
        got: format!("({} bytes)", key.len()),
        reason: "it is short enough to be found by trying, or has characters that are no letters, digits or signs",
        remedy: "set 32 or more letters, digits and signs without spaces, such as the output of `openssl rand -hex 32`",
    })
}

/// Refuses a silence within which a task that works may well be silent.
fn health(settings: &Settings) -> Option<ConfigError> {
    let (silence_ms, statement_ms) = (settings.health.silence_ms_max, settings.database.statement_timeout_ms);
    if silence_ms < SILENCE_MS_MIN {
        return Some(ConfigError::OutOfRange {
            key: "health.silence_ms_max",
            got: silence_ms.to_string(),
            reason: "a task with nothing to do shows once a second that it lives, and a busy machine delays that",
            remedy: "set 3000 or more",
        });
    }
    (silence_ms <= statement_ms).then(|| ConfigError::Unsafe {
        first: format!("health.silence_ms_max = {silence_ms}"),
        second: format!("database.statement_timeout_ms = {statement_ms}"),
        reason: "a task that waits for one statement would count as stuck, and the process be ended for a slow database",
        remedy: "make the silence the longer one",
    })
}

fn tracing(settings: &Settings) -> Vec<ConfigError> {
    let Tracing { otlp_endpoint, service_name, sampled_ratio } = &settings.tracing;
    let mut errors = Vec::new();
    let is_address = otlp_endpoint.strip_prefix("http://").is_some_and(|rest| {
        let is_sound = |byte: u8| byte.is_ascii_graphic() && !b"?#@".contains(&byte);
        !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(is_sound)
    });
    if !otlp_endpoint.is_empty() && !is_address {
        errors.push(ConfigError::OutOfRange {
            key: "tracing.otlp_endpoint",
            got: redact_url(otlp_endpoint),
            reason: "spans are sent over plain HTTP, to a collector nearby that passes them on",
            remedy: "set something like \"http://127.0.0.1:4318\" there or in OTEL_EXPORTER_OTLP_ENDPOINT",
        });
    }
    if service_name.is_empty() {
        errors.push(ConfigError::OutOfRange {
            key: "tracing.service_name",
            got: "\"\"".to_owned(),
            reason: "spans without the name of a service cannot be found",
            remedy: "set a name, such as \"dashi\"",
        });
    }
    if !(0.0..=1.0).contains(sampled_ratio) {
        errors.push(ConfigError::OutOfRange {
            key: "tracing.sampled_ratio",
            got: sampled_ratio.to_string(),
            reason: "it is a share of all traces",
            remedy: "set a number from 0 to 1",
        });
    }
    errors
}

fn kafka_ranges(kafka: &Kafka) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if kafka.replication_factor != -1 && !(1..=i32::from(i16::MAX)).contains(&kafka.replication_factor) {
        errors.push(ConfigError::OutOfRange {
            key: "kafka.replication_factor",
            got: kafka.replication_factor.to_string(),
            reason: "no topic can have so many replicas",
            remedy: "set 1 or more, or -1 for the broker's default",
        });
    }
    if kafka.group.is_empty() {
        errors.push(ConfigError::OutOfRange {
            key: "kafka.group",
            got: "\"\"".to_owned(),
            reason: "without a consumer group no partition is assigned to a projector",
            remedy: "set a name that all projectors of this store share",
        });
    }
    // A zero is reported with the other limits.
    if kafka.session_timeout_ms != 0
        && !(SESSION_TIMEOUT_MS_MIN..=SESSION_TIMEOUT_MS_MAX).contains(&kafka.session_timeout_ms)
    {
        errors.push(ConfigError::OutOfRange {
            key: "kafka.session_timeout_ms",
            got: kafka.session_timeout_ms.to_string(),
            reason: "brokers refuse shorter times, and librdkafka times longer than its poll interval",
            remedy: "set 6000 to 300000",
        });
    }
    errors
}

/// The limits that mean nothing at 0. The settings that mean something at 0 are not here: `event_log.retention_h`,
/// `kafka.linger_ms`, `ingest.cors_max_age_s`, `projector.batch_interval_ms`, `projector.live_first_after_s`, `projector.nice`, `history.event_age_s_min`, and
/// the numbers of events in `limits`.
fn limits(settings: &Settings) -> Vec<(&'static str, u64)> {
    let Settings {
        ingest,
        history,
        limits,
        event_log,
        kafka,
        projector,
        dead_letters,
        database,
        profiles,
        api,
        shutdown,
        ..
    } = settings;
    vec![
        ("ingest.body_bytes_max", ingest.body_bytes_max as u64),
        ("ingest.in_flight_max", ingest.in_flight_max as u64),
        ("ingest.connections_max", ingest.connections_max as u64),
        ("ingest.request_timeout_ms", ingest.request_timeout_ms),
        ("ingest.bodies_bytes_max", ingest.bodies_bytes_max as u64),
        ("ingest.idle_timeout_ms", ingest.idle_timeout_ms),
        ("ingest.batch_elements_max", ingest.batch_elements_max as u64),
        ("ingest.head_timeout_ms", ingest.head_timeout_ms),
        ("ingest.body_pause_ms_max", ingest.body_pause_ms_max),
        ("ingest.body_rate_bytes_min", ingest.body_rate_bytes_min),
        ("ingest.answer_timeout_ms", ingest.answer_timeout_ms),
        ("ingest.answers_bytes_max", ingest.answers_bytes_max as u64),
        ("ingest.website_refresh_ms", ingest.website_refresh_ms),
        ("ingest.website_recheck_ms", ingest.website_recheck_ms),
        ("ingest.retry_after_s", ingest.retry_after_s),
        ("ingest.spool_after_ms", ingest.spool_after_ms),
        ("ingest.spool_bytes_max", ingest.spool_bytes_max),
        ("ingest.spool_age_s_max", ingest.spool_age_s_max),
        ("history.delay_ms_max", history.delay_ms_max),
        ("history.waiting_bytes_max", history.waiting_bytes_max),
        ("ingest.redirect_wait_ms", ingest.redirect_wait_ms),
        ("limits.backlog_s_max", limits.backlog_s_max),
        ("limits.retry_after_s_max", limits.retry_after_s_max),
        ("limits.addresses_max", limits.addresses_max as u64),
        ("event_log.partitions", u64::from(event_log.partitions)),
        ("event_log.append_queue_max", event_log.append_queue_max as u64),
        ("event_log.append_batch_max", event_log.append_batch_max as u64),
        ("kafka.delivery_timeout_ms", kafka.delivery_timeout_ms),
        ("kafka.session_timeout_ms", kafka.session_timeout_ms),
        ("kafka.topic_check_ms", kafka.topic_check_ms),
        ("projector.batch_records_max", projector.batch_records_max as u64),
        ("projector.batch_bytes_max", projector.batch_bytes_max as u64),
        ("projector.read_wait_ms", projector.read_wait_ms),
        ("projector.retry_wait_ms_max", projector.retry_wait_ms_max),
        ("projector.failed_retry_ms", projector.failed_retry_ms),
        ("dead_letters.parked_records_max", u64::from(dead_letters.parked_records_max)),
        ("dead_letters.parked_sessions_max", dead_letters.parked_sessions_max as u64),
        ("database.pool_connections_max", u64::from(database.pool_connections_max)),
        ("database.statement_timeout_ms", database.statement_timeout_ms),
        ("profiles.live_s", profiles.live_s),
        ("api.questions_max", api.questions_max as u64),
        ("api.question_timeout_ms", api.question_timeout_ms),
        ("api.reads_max", api.reads_max as u64),
        ("api.streams_max", api.streams_max as u64),
        ("api.person_streams_max", api.person_streams_max as u64),
        ("api.stream_heartbeat_ms", api.stream_heartbeat_ms),
        ("api.stream_write_timeout_ms", api.stream_write_timeout_ms),
        ("shutdown.grace_ms", shutdown.grace_ms),
        ("kafka.replication_factor", kafka.replication_factor.unsigned_abs().into()),
    ]
}

fn times_on_kafka(settings: &Settings) -> Vec<ConfigError> {
    let shown = |key: &str, value: u64| format!("{key} = {value}");
    let delivery_ms = settings.kafka.delivery_timeout_ms;
    let delivery = shown("kafka.delivery_timeout_ms", delivery_ms);
    let mut errors = Vec::new();
    if settings.ingest.request_timeout_ms <= delivery_ms {
        errors.push(ConfigError::Unsafe {
            first: shown("ingest.request_timeout_ms", settings.ingest.request_timeout_ms),
            second: delivery.clone(),
            reason: "a request could be answered 503 while its record still arrives, and the client's retry would \
                     be a second event",
            remedy: "make the request timeout the longer one",
        });
    }
    if settings.shutdown.grace_ms <= delivery_ms {
        errors.push(ConfigError::Unsafe {
            first: shown("shutdown.grace_ms", settings.shutdown.grace_ms),
            second: delivery.clone(),
            reason: "a stop could cut off requests whose record still arrives, and the clients' retries would be \
                     second events",
            remedy: "make the grace the longer one",
        });
    }
    if settings.ingest.spool && settings.ingest.spool_after_ms >= delivery_ms {
        errors.push(ConfigError::Unsafe {
            first: shown("ingest.spool_after_ms", settings.ingest.spool_after_ms),
            second: delivery.clone(),
            reason: "records would be given up one by one before the spool takes all of them in their order",
            remedy: "make the delivery timeout the longer one",
        });
    }
    if settings.kafka.linger_ms >= delivery_ms {
        errors.push(ConfigError::Unsafe {
            first: shown("kafka.linger_ms", settings.kafka.linger_ms),
            second: delivery,
            reason: "an append would time out while it still waits to share a request",
            remedy: "make the delivery timeout the longer one",
        });
    }
    errors
}

/// librdkafka's settings on which Dashi's guarantees depend, or which have a setting of their own, with the reason.
const RESERVED: &[(&[&str], &str)] = &[
    (&["bootstrap.servers", "metadata.broker.list"], "the brokers are in the URL of the setting `log`"),
    (
        &["enable.idempotence", "acks", "request.required.acks"],
        "an event counts as accepted only once all in-sync replicas have it, exactly once",
    ),
    (&["transactional.id"], "a transactional producer would hide records until a commit that never comes"),
    (
        &["partitioner", "partitioner_cb"],
        "all events of a session lie in one partition, chosen by the same function on every backend",
    ),
    (&["delivery.timeout.ms", "message.timeout.ms"], "use the setting kafka.delivery_timeout_ms"),
    (&["linger.ms", "queue.buffering.max.ms"], "use the setting kafka.linger_ms"),
    (&["session.timeout.ms"], "use the setting kafka.session_timeout_ms"),
    (&["group.id"], "use the setting kafka.group"),
    (&["group.instance.id"], "use the setting kafka.instance_id"),
    (
        &["partition.assignment.strategy", "group.protocol", "group.remote.assignor"],
        "projectors of one group hand partitions over by cooperative rebalancing",
    ),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"],
        "checkpoints lie in the store and are committed to Kafka only after their rows",
    ),
    (&["auto.offset.reset"], "reading starts at the store's checkpoint and must never jump over records"),
    (&["isolation.level"], "records of a foreign producer's aborted transaction must not become events"),
    (
        &["allow.auto.create.topics"],
        "Dashi creates the topic itself, with event_log.partitions and kafka.replication_factor",
    ),
];

fn reserved(property: &str) -> Option<ConfigError> {
    let (_, reason) = RESERVED.iter().find(|(names, _)| names.contains(&property.trim()))?;
    Some(ConfigError::ReservedProperty { property: property.to_owned(), reason })
}

fn warnings(settings: &Settings, on_kafka: bool) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !settings.listen.ip().is_loopback() && settings.ingest.trusted_proxies.is_empty() {
        warnings.push(Warning(format!(
            "listen = {}: other machines reach it, and each of them can claim any client address in a header such as \
             x-forwarded-for; name your proxies in ingest.trusted_proxies",
            settings.listen
        )));
    }
    if on_kafka && settings.event_log.retention_h > 0 {
        warnings.push(Warning(format!(
            "event_log.retention_h = {}: it has no effect on Kafka; set the topic's own retention.ms",
            settings.event_log.retention_h
        )));
    }
    if on_kafka && settings.kafka.replication_factor == 1 {
        warnings.push(Warning(
            "kafka.replication_factor = 1: accepted events of a new topic lie on one broker only and are lost with \
             its disk; set 3 on a cluster"
                .to_owned(),
        ));
    }
    warnings
}

#[cfg(test)]
mod tests;
