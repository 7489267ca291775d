use std::collections::BTreeSet;

use super::*;
use crate::{FlagValue, Layers, load, schema::Schema};

/// [`check`] with a stand-in for the paths that the program serves.
fn check_settings(
    settings: &Settings,
    known_timezone: impl Fn(&str) -> bool,
) -> Result<Vec<Warning>, Vec<ConfigError>> {
    let served = ServedPaths {
        routes: &[
            &[
                "/api/send",
                "/api/batch",
                "/q/{slug}",
                "/script.js",
                "/script-vitals.js",
                "/script-profile.js",
            ],
            &["/metrics"],
        ],
        send: "/api/send",
        script: "/script.js",
        files_beside: |script| {
            let name = script.strip_suffix(".js").unwrap_or(script);
            [format!("{name}-vitals.js"), format!("{name}-profile.js")]
        },
    };
    check(settings, known_timezone, &served)
}

const KAFKA: (&str, &str) = ("log", "kafka://h:9092/t");
const SECRET: (&str, &str) = ("secret", "s");

fn settings(values: &[(&'static str, &str)]) -> Settings {
    let flags = values
        .iter()
        .map(|(key, value)| FlagValue { key, value: (*value).to_owned(), flag: "--test" })
        .collect();
    load(Layers { flags, ..Layers::default() }).unwrap().settings
}

fn refused(values: &[(&'static str, &str)]) -> Vec<ConfigError> {
    check_settings(&settings(values), |_| true).unwrap_err()
}

fn refusal(values: &[(&'static str, &str)]) -> String {
    let errors = refused(values);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

#[test]
fn the_defaults_may_run_without_a_warning_on_either_log() {
    assert_eq!(check_settings(&settings(&[]), |zone| zone == "UTC").unwrap(), []);
    assert_eq!(check_settings(&settings(&[KAFKA, SECRET]), |_| true).unwrap(), []);
}

#[test]
fn on_kafka_a_request_outlasts_the_delivery_of_its_record() {
    for (key, value) in [("ingest.request_timeout_ms", "20000"), ("shutdown.grace_ms", "19999")] {
        let error = refusal(&[KAFKA, SECRET, (key, value)]);
        assert!(error.contains(&format!("{key} = {value}")), "{error}");
        assert!(
            error.contains("kafka.delivery_timeout_ms = 20000") && error.contains("second event"),
            "{error}"
        );
        // The embedded log has no delivery timeout.
        assert!(check_settings(&settings(&[(key, value)]), |_| true).is_ok());
    }
    let error = refusal(&[KAFKA, SECRET, ("kafka.linger_ms", "20000")]);
    assert!(error.contains("kafka.linger_ms = 20000 with kafka.delivery_timeout_ms = 20000"), "{error}");
}

#[test]
fn a_limit_of_zero_is_refused_unless_it_means_something() {
    let meaningful = BTreeSet::from([
        "event_log.retention_h",
        "kafka.linger_ms",
        "ingest.cors_max_age_s",
        "history.event_age_s_min",
        "projector.batch_interval_ms",
        "projector.live_first_after_s",
        "projector.batches_bytes_max",
        "projector.nice",
        "limits.website_rate_events_max",
        "limits.website_burst_events_max",
        "limits.website_day_events_max",
        "limits.address_rate_events_max",
        "limits.address_burst_events_max",
        "limits.address_day_events_max",
    ]);
    let schema = Schema::compiled_in();
    for key in schema.leaves().iter().filter(|(_, value)| value.is_integer()).map(|(key, _)| key.as_str()) {
        let flag = FlagValue { key: key.to_owned().leak(), value: "0".into(), flag: "--test" };
        let settings = load(Layers { flags: vec![flag], ..Layers::default() }).unwrap().settings;
        match check_settings(&settings, |_| true) {
            Ok(_) => assert!(meaningful.contains(key), "{key} = 0 was let through"),
            Err(errors) => {
                assert!(errors[0].to_string().starts_with(&format!("{key} = 0")), "{errors:?}")
            }
        }
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (key, value) in [
        ("event_log.partitions", "4097"),
        ("kafka.session_timeout_ms", "5999"),
        ("projector.nice", "20"),
        ("kafka.session_timeout_ms", "300001"),
        ("kafka.replication_factor", "-2"),
        ("kafka.replication_factor", "40000"),
        ("ingest.request_timeout_ms", "9223372036854775807"),
        ("projector.retry_wait_ms_max", "2147483648"),
        ("api.streams_max", "1000001"),
        ("api.reads_max", "1000001"),
        ("api.person_streams_max", "1000001"),
        ("limits.addresses_max", "10000001"),
        ("limits.backlog_s_max", "2678401"),
        ("limits.retry_after_s_max", "2678401"),
    ] {
        let error = refusal(&[(key, value)]);
        assert!(error.starts_with(&format!("{key} = {value}: ")), "{error}");
    }
    assert!(refusal(&[("kafka.group", "")]).contains("kafka.group"));
    assert!(check_settings(&settings(&[("event_log.partitions", "4096")]), |_| true).is_ok());
}

#[test]
fn a_burst_without_a_rate_is_refused() {
    for sender in ["website", "address"] {
        let (burst, rate) =
            (format!("limits.{sender}_burst_events_max"), format!("limits.{sender}_rate_events_max"));
        let [burst, rate] = [burst, rate].map(|key| &*key.leak());
        let error = refusal(&[(burst, "5")]);
        assert!(error.starts_with(&format!("{burst} = 5 with {rate} = 0: ")), "{error}");
        assert!(check_settings(&settings(&[(burst, "5"), (rate, "1")]), |_| true).is_ok());
    }
}

#[test]
fn an_unknown_time_zone_is_refused() {
    let errors = check_settings(&settings(&[("timezone", "Mars/Olympus")]), |_| false).unwrap_err();
    assert!(errors[0].to_string().starts_with("timezone = \"Mars/Olympus\": "), "{errors:?}");
}

#[test]
fn a_networked_log_or_store_needs_a_secret() {
    let error = refusal(&[KAFKA]);
    assert!(
        error.starts_with("log = kafka://h:9092/t without a secret") && error.contains("APP_SECRET"),
        "{error}"
    );
    let error = refusal(&[("store", "postgres://u:hunter2@h/d")]);
    assert!(error.starts_with("store = postgres://u:redacted@h/d without a secret"), "{error}");
    assert!(check_settings(&settings(&[SECRET, ("store", "postgres://h/d")]), |_| true).is_ok());
}

#[test]
fn a_bad_url_is_refused_together_with_everything_else() {
    let errors = refused(&[("log", "nats://h"), ("store", "mysql://h"), ("ingest.in_flight_max", "0")]);
    assert!(matches!(errors[0], ConfigError::Url { what: "log", .. }));
    assert!(matches!(errors[1], ConfigError::Url { what: "store", .. }));
    assert!(matches!(errors[2], ConfigError::OutOfRange { key: "ingest.in_flight_max", .. }));
}

#[test]
fn log_and_store_are_not_one_file() {
    let error = refusal(&[("log", "sqlite:a.db"), ("store", "sqlite://a.db")]);
    assert!(error.contains("log = sqlite:a.db with store = sqlite://a.db"), "{error}");
}

#[test]
fn properties_that_guarantees_rest_on_are_refused_with_the_reason() {
    for (names, reason) in RESERVED {
        for name in *names {
            let error = refusal(&[("kafka.properties", &format!("{name}=x"))]);
            assert_eq!(error, format!("kafka.properties.{name} cannot be passed through: {reason}"));
        }
    }
    let free = ("kafka.properties", "security.protocol=sasl_ssl,client.id=a");
    assert!(check_settings(&settings(&[free]), |_| true).is_ok());
}

#[test]
fn paths_and_addresses_are_ones_that_a_request_can_have() {
    for (key, value) in [
        ("ingest.base_path", "umami"),
        ("ingest.base_path", "/"),
        ("ingest.send_path", "/a b"),
        ("ingest.send_path", "/{x}"),
        ("ingest.send_path", "//h.example/x"),
        ("script.names", "a.js,b?c"),
        ("ingest.send_path", "/api/batch"),
        ("ingest.send_path", "/q/x"),
        ("ingest.send_path", "/script.js"),
        ("script.names", "metrics"),
        ("script.names", "/api/send"),
        ("script.names", "script-vitals.js"),
        ("script.names", "stats.js, stats-vitals.js"),
        ("script.names", "script-profile.js"),
        ("script.names", "stats.js, stats-profile.js"),
        ("ingest.send_path", "/script-vitals.js"),
        ("script.url", "javascript:alert(1)"),
        ("script.collect_host", "https://a\u{e9}.example"),
    ] {
        let error = refusal(&[(key, value)]);
        assert!(error.starts_with(&format!("{key} = \"")), "{error}");
    }
    let good = [
        ("ingest.base_path", "/umami"),
        ("ingest.send_path", "/api/collect"),
        ("script.names", " stats.js, /x/y ,"),
        ("script.url", "https://cdn.example/x.js?v=1"),
        ("script.collect_host", "https://c.example"),
    ];
    assert!(check_settings(&settings(&good), |_| true).is_ok());
    assert_eq!(settings(&good).script_paths(), ["/stats.js", "/x/y"]);
}

#[test]
fn api_keys_cannot_be_guessed_and_are_not_repeated() {
    for (keys, number) in [
        ("hunter2", 1),
        ("a-key-of-16-chars,hunter2", 2),
        ("a key with spaces in it", 1),
        ("ключ-ключ-ключ-ключ", 1),
        ("a-key-of-16-chars,sha256:hunter2", 2),
        // Of an empty text.
        ("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1),
    ] {
        let error = refusal(&[("api.keys", keys)]);
        assert!(error.starts_with(&format!("api.keys = (key {number} of the list): ")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    // Of the text "abc", as sha256sum prints it.
    let hash = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for keys in [
        "",
        "a-key-of-16-char",
        "a-key-of-16-char, b-key-of-16-char,",
        hash,
        &format!("a-key-of-16-char,{hash}"),
    ] {
        assert!(check_settings(&settings(&[("api.keys", keys)]), |_| true).is_ok(), "{keys:?}");
    }
}

#[test]
fn an_identity_key_cannot_be_found_by_trying_and_is_not_repeated() {
    for key in [
        "hunter2",
        "a-key-of-31-characters-and-not-",
        "a key of 32 characters with spaces",
        "ключ-ключ-ключ-ключ",
    ] {
        let error = refusal(&[("profiles.identity_key", key)]);
        assert!(error.starts_with(&format!("profiles.identity_key = ({} bytes): ", key.len())), "{error}");
        assert!(!error.contains(key), "{error}");
    }
    for key in ["", "a-key-of-32-characters-and-signs"] {
        assert!(check_settings(&settings(&[("profiles.identity_key", key)]), |_| true).is_ok(), "{key:?}");
    }
}

#[test]
fn a_task_is_not_stuck_while_a_statement_may_run() {
    let silence = |silence: &'static str, statement: &'static str| {
        let values = [("health.silence_ms_max", silence), ("database.statement_timeout_ms", statement)];
        check_settings(&settings(&values), |_| true).err().map(|errors| errors[0].to_string())
    };
    assert_eq!(silence("3000", "2999"), None);
    assert!(silence("2999", "1000").unwrap().starts_with("health.silence_ms_max = 2999"));
    let on_kafka =
        [KAFKA, SECRET, ("health.silence_ms_max", "29999"), ("database.statement_timeout_ms", "1000")];
    assert!(refusal(&on_kafka).starts_with("health.silence_ms_max = 29999"));
    assert!(silence("60000", "60000").unwrap().contains("database.statement_timeout_ms = 60000"));
}

#[test]
fn spans_go_to_an_address_of_http() {
    let tracing = |key: &'static str, value: &'static str| {
        let values = [(key, value)];
        check_settings(&settings(&values), |_| true).err().map(|errors| errors[0].to_string())
    };
    for good in ["", "http://127.0.0.1:4318", "http://otel/base", "http://[::1]:4318"] {
        assert_eq!(tracing("tracing.otlp_endpoint", good), None, "{good}");
    }
    for wrong in
        ["https://otel:4318", "otel:4318", "http://", "http:///v1", "http://otel:4318/?x", "http://u:p@otel"]
    {
        let said = tracing("tracing.otlp_endpoint", wrong).unwrap();
        assert!(said.starts_with("tracing.otlp_endpoint = ") && !said.contains("u:p@"), "{said}");
    }
    for good in ["0", "1", "0.5", "1e-9"] {
        assert_eq!(tracing("tracing.sampled_ratio", good), None, "{good}");
    }
    for wrong in ["1.01", "-0.1", "NaN"] {
        let said = tracing("tracing.sampled_ratio", wrong).unwrap();
        assert!(said.starts_with("tracing.sampled_ratio = "), "{said}");
    }
}

#[test]
fn warnings_name_the_setting() {
    let warned = |values: &[(&'static str, &str)]| {
        let warnings = check_settings(&settings(values), |_| true).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        warnings[0].to_string()
    };
    assert!(warned(&[("listen", "0.0.0.0:80")]).starts_with("listen = 0.0.0.0:80: "));
    assert!(
        warned(&[KAFKA, SECRET, ("event_log.retention_h", "1")]).starts_with("event_log.retention_h = 1: ")
    );
    assert!(
        warned(&[KAFKA, SECRET, ("kafka.replication_factor", "1")]).starts_with("kafka.replication_factor")
    );
    let named = [("listen", "[::]:80"), ("ingest.trusted_proxies", "10.0.0.0/8")];
    assert_eq!(check_settings(&settings(&named), |_| true).unwrap(), []);
}
