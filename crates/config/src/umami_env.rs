//! Environment variables of others, read as aliases of our settings: Umami's, and OpenTelemetry's. Sources:
//! docs/umami-contract.md §20.2; OpenTelemetry, "Environment Variable Specification".

/// The variable whose text is the secret where no other is given. Source:
/// docs/umami-contract.md §6.1.
pub(super) const SECRET_FALLBACK: &str = "DATABASE_URL";

/// A variable that sets a setting of ours.
pub(super) struct Alias {
    pub(super) name: &'static str,
    pub(super) key: &'static str,
    /// Translates its value into ours; `None` if it does not concern this setting.
    pub(super) read: fn(&str) -> Option<String>,
}

/// OpenTelemetry's variables that have a setting.
pub(super) const OPENTELEMETRY: &[Alias] = &[
    Alias { name: "OTEL_EXPORTER_OTLP_ENDPOINT", key: "tracing.otlp_endpoint", read: as_it_is },
    Alias { name: "OTEL_SERVICE_NAME", key: "tracing.service_name", read: as_it_is },
    Alias { name: "OTEL_TRACES_SAMPLER_ARG", key: "tracing.sampled_ratio", read: as_it_is },
];

/// Umami's variables that concern collection and have a setting.
pub(super) const ALIASES: &[Alias] = &[
    Alias { name: "APP_SECRET", key: "secret", read: as_it_is },
    Alias { name: "DATABASE_URL", key: "store", read: as_it_is },
    Alias { name: "TZ", key: "timezone", read: zone },
    Alias { name: "CLIENT_IP_HEADER", key: "ingest.client_ip_header", read: as_it_is },
    Alias { name: "IGNORE_IP", key: "ingest.ignore_ip", read: as_it_is },
    Alias { name: "DISABLE_BOT_CHECK", key: "ingest.disable_bot_check", read: set },
    Alias { name: "SALT_ROTATION", key: "ingest.salt_rotation", read: rotation },
    Alias { name: "SKIP_LOCATION_HEADERS", key: "ingest.skip_location_headers", read: set },
    Alias { name: "GEOLITE_DB_PATH", key: "geo.database", read: as_it_is },
    Alias { name: "CORS_MAX_AGE", key: "ingest.cors_max_age_s", read: as_it_is },
    Alias { name: "REMOVE_TRAILING_SLASH", key: "fold.remove_trailing_slash", read: set },
    Alias { name: "BASE_PATH", key: "ingest.base_path", read: path },
    Alias { name: "COLLECT_API_ENDPOINT", key: "ingest.send_path", read: path },
    Alias { name: "FORCE_SSL", key: "ingest.force_ssl", read: set },
    Alias { name: "TRACKER_SCRIPT_NAME", key: "script.names", read: as_it_is },
    Alias { name: "TRACKER_SCRIPT_URL", key: "script.url", read: as_it_is },
    Alias { name: "COLLECT_API_HOST", key: "script.collect_host", read: as_it_is },
];

/// The others of docs/umami-contract.md §20.2, which have no effect here, with the reason: for operators who bring an
/// Umami's environment along.
pub(super) const UNUSED: &[(&str, &str)] = &[
    ("DATABASE_REPLICA_URL", "Dashi writes, and has no reads for a replica"),
    ("REDIS_URL", "websites, links and pixels are kept in memory"),
    ("CLICKHOUSE_URL", "rows go to PostgreSQL or SQLite"),
    ("KAFKA_URL", "the event log is named by the setting log"),
    ("KAFKA_BROKER", "the event log is named by the setting log"),
    ("KAFKA_SASL_MECHANISM", "librdkafka's settings are in kafka.properties"),
    ("USE_UUIDV7", "event ids are version 7 in any case"),
    ("COLLECT_REPLAY_ENDPOINT", "recordings are taken at /api/record; Umami has no route for it either"),
    ("ALLOWED_FRAME_URLS", "it concerns the dashboard"),
    ("LINKS_URL", "it concerns the dashboard"),
    ("PIXELS_URL", "it concerns the dashboard"),
    ("CLOUD_MODE", "it concerns the hosted service"),
    ("CLOUD_URL", "it concerns the hosted service"),
];

fn as_it_is(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Any non-empty text is true, even "0" and "false"; empty texts never get here.
fn set(_text: &str) -> Option<String> {
    Some("true".to_owned())
}

/// Umami rotates monthly for every text that it does not know.
fn rotation(text: &str) -> Option<String> {
    Some(if matches!(text, "day" | "week") { text } else { "month" }.to_owned())
}

/// With the slash that a path begins with, and without one at its end.
fn path(text: &str) -> Option<String> {
    Some(format!("/{}", text.trim_matches('/')))
}

/// POSIX allows a colon before a zone's name.
fn zone(text: &str) -> Option<String> {
    Some(text.strip_prefix(':').unwrap_or(text).to_owned())
}
