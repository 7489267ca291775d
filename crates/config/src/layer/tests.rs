use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::{LogFormat, SaltRotation};

/// A settings file that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn holding(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dashi-config-{}-{number}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn with_env(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load(Layers { env: env(pairs), ..Layers::default() })
}

fn with_file(text: &str) -> Result<Loaded, ConfigError> {
    let file = Scratch::holding(text);
    load(Layers { file: Some(&file.0), ..Layers::default() })
}

fn origin(loaded: &Loaded, key: &str) -> String {
    loaded.origin(key).unwrap().to_string()
}

#[test]
fn a_file_of_variables_lies_below_the_environment() {
    let file = Scratch::holding(
        "# Umami\nAPP_SECRET='from the file'\nDATABASE_URL=postgres://u:p@h/d\nTZ=\nREDIS_URL=redis://h\n\
         export IGNORE_IP=\"192.0.2.0/24\" # comment\n",
    );
    let loaded = load(Layers {
        env_file: Some(&file.0),
        env: env(&[("APP_SECRET", "own"), ("IGNORE_IP", "")]),
        ..Layers::default()
    })
    .unwrap();
    assert_eq!(loaded.settings.secret_text(), Some("own"));
    assert_eq!(loaded.settings.ingest.ignore_ip, "192.0.2.0/24");
    assert_eq!(loaded.settings.store, "postgres://u:p@h/d");
    assert_eq!(origin(&loaded, "store"), format!("env DATABASE_URL in {}", file.0.display()));
    assert_eq!(origin(&loaded, "timezone"), "default");
    let unused: Vec<_> = loaded.unused_umami_env().iter().map(|(name, _)| *name).collect();
    assert_eq!(unused, ["REDIS_URL"]);
}

#[test]
fn a_bad_file_of_variables_is_refused_without_its_secrets() {
    for (text, named) in [
        ("A=1\nAPP_SECRET=hunter2$x\n", "line 2: the value of APP_SECRET"),
        ("DATABASE_URL=\"postgres://u:hunter2$x@h/d\"", "line 1: the value of DATABASE_URL"),
        ("DASHI_CONFIG=/hunter2", "line 1: DASHI_CONFIG"),
    ] {
        let file = Scratch::holding(text);
        let error = load(Layers { env_file: Some(&file.0), ..Layers::default() }).unwrap_err().to_string();
        assert!(error.contains("--env-file") && error.contains(named), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = load(Layers { env_file: Some(Path::new("/nowhere")), ..Layers::default() }).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn without_sources_everything_is_the_default() {
    let loaded = load(Layers::default()).unwrap();
    assert_eq!(loaded.settings.log, "sqlite:data/log.db");
    assert_eq!(loaded.settings.listen.to_string(), "127.0.0.1:8484");
    assert_eq!(loaded.settings.ingest.salt_rotation, SaltRotation::Month);
    assert_eq!(loaded.settings.logs.format, LogFormat::Auto);
    assert_eq!(loaded.settings.kafka.replication_factor, -1);
    assert_eq!(loaded.settings.secret_text(), None);
    assert!(loaded.entries.values().all(|entry| entry.origin == Origin::Default));
}

#[test]
fn a_later_layer_wins_and_says_so() {
    let file = Scratch::holding(
        "listen = '127.0.0.1:1'\nlog = 'sqlite:file.db'\n[ingest]\nin_flight_max = 1\nretry_after_s = 1",
    );
    let loaded = load(Layers {
        file: Some(&file.0),
        env_file: None,
        env: env(&[("DASHI_LISTEN", "127.0.0.1:2"), ("DASHI_INGEST_IN_FLIGHT_MAX", "2")]),
        flags: vec![FlagValue { key: "listen", value: "127.0.0.1:3".into(), flag: "--listen" }],
    })
    .unwrap();
    assert_eq!(loaded.settings.listen.port(), 3);
    assert_eq!(origin(&loaded, "listen"), "flag --listen");
    assert_eq!(loaded.settings.ingest.in_flight_max, 2);
    assert_eq!(origin(&loaded, "ingest.in_flight_max"), "env DASHI_INGEST_IN_FLIGHT_MAX");
    assert_eq!(loaded.settings.ingest.retry_after_s, 1);
    assert_eq!(origin(&loaded, "log"), format!("file {}", file.0.display()));
    assert_eq!(origin(&loaded, "store"), "default");
}

#[test]
fn every_key_is_set_by_its_variable() {
    let schema = Schema::compiled_in();
    for (key, default) in schema.leaves() {
        let text = match default {
            Value::String(text) if text.is_empty() => "some".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = crate::schema::variable(key);
        let loaded = with_env(&[(&name, &text)]).unwrap();
        assert_eq!(origin(&loaded, key), format!("env {name}"));
    }
}

#[test]
fn an_unknown_key_in_a_file_is_refused_with_file_key_and_the_nearest_one() {
    for (text, key, nearest) in [
        (
            "[ingest]\nbody_bytes_maximum = 1",
            "ingest.body_bytes_maximum",
            "did you mean ingest.body_bytes_max?",
        ),
        ("[kafak]\ngroup = 'a'", "kafak.group", "did you mean kafka.group?"),
        ("[fold.deeper]\nx = 1", "fold.deeper.x", "`dashi config show` lists"),
        ("[ingestion]", "ingestion", "lists all"),
        ("liste = '[::]:1'", "liste", "did you mean listen?"),
    ] {
        let error = with_file(text).unwrap_err();
        assert!(matches!(&error, ConfigError::UnknownKey { key: found, .. } if found == key), "{error}");
        let error = error.to_string();
        assert!(error.starts_with("file ") && error.contains(nearest), "{error}");
    }
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest_one() {
    let error = with_env(&[("DASHI_INGEST_INFLIGHT_MAX", "2")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "environment variable DASHI_INGEST_INFLIGHT_MAX: there is no such setting; \
         did you mean DASHI_INGEST_IN_FLIGHT_MAX?"
    );
    assert!(with_env(&[("DASHI_PORT", "8484")]).is_err());
}

#[test]
fn variables_of_others_are_left_alone() {
    with_env(&[
        ("DASHI_TEST_KAFKA", "localhost:9092"),
        ("DASHI_CONFIG", "dashi.toml"),
        ("DASHI_SERVICE_HOST", "10.0.0.7"),
        ("DASHI_SERVICE_PORT_HTTP", "8484"),
        ("DASHI_COLLECTOR_PORT", "tcp://10.0.0.7:8484"),
        ("DASHI_PORT_8484_TCP_ADDR", "10.0.0.7"),
        ("DASHING", "1"),
        ("PATH", "/bin"),
    ])
    .unwrap();
}

#[test]
fn a_wrong_type_is_refused_with_origin_key_expectation_and_value() {
    for (text, message) in [
        (
            "ingest.in_flight_max = 'many'",
            "ingest.in_flight_max takes a whole number, such as 4096, not \"many\"",
        ),
        ("ingest.in_flight_max = 1.5", "ingest.in_flight_max takes a whole number, such as 4096, not 1.5"),
        (
            "ingest.in_flight_max = -1",
            "ingest.in_flight_max takes a whole number, such as 4096 (invalid value",
        ),
        ("ingest.disable_bot_check = 1", "ingest.disable_bot_check takes true or false, not 1"),
        ("timezone = 1", "timezone takes a text, such as \"UTC\", not 1"),
        (
            "listen = 'localhost:8484'",
            "listen takes a text, such as \"127.0.0.1:8484\" (invalid socket address",
        ),
        ("ingest.salt_rotation = 'year'", "expected one of `month`, `week`, `day`), not \"year\""),
        (
            "ingest.identified_sessions = 'both'",
            "expected one of `auto`, `shared`, `linked`, `per-device`), not \"both\"",
        ),
        ("[store]\nurl = 'sqlite:a'", "store takes a text, such as \"sqlite:data/store.db\", not "),
        ("kafka = 'h:1'", "kafka takes a section [kafka] with settings in it, not \"h:1\""),
        ("[kafka.properties]\nx = ['a']", "kafka.properties.x takes a text, not [\"a\"]"),
    ] {
        let error = with_file(text).unwrap_err().to_string();
        assert!(error.starts_with("file ") && error.contains(message), "{error}");
    }
    for (name, value, message) in [
        (
            "DASHI_EVENT_LOG_PARTITIONS",
            "eight",
            "event_log.partitions takes a whole number, such as 8, not \"eight\"",
        ),
        (
            "DASHI_FOLD_REMOVE_TRAILING_SLASH",
            "yes",
            "fold.remove_trailing_slash takes true or false, not \"yes\"",
        ),
        ("CORS_MAX_AGE", "long", "ingest.cors_max_age_s takes a whole number, such as 86400, not \"long\""),
    ] {
        let error = with_env(&[(name, value)]).unwrap_err().to_string();
        assert_eq!(error, format!("env {name}: {message}"));
    }
    let flag = FlagValue { key: "listen", value: "8484".into(), flag: "--listen" };
    let error = load(Layers { flags: vec![flag], ..Layers::default() }).unwrap_err().to_string();
    assert!(error.starts_with("flag --listen: listen takes"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_or_is_no_toml_is_named() {
    let missing = Path::new("/nonexistent/dashi.toml");
    let error = load(Layers { file: Some(missing), ..Layers::default() }).unwrap_err();
    assert!(matches!(error, ConfigError::FileUnread { .. }));
    assert!(error.to_string().contains("/nonexistent/dashi.toml"));

    let error = with_file("timezone = 'UTC'\nsecret = \"hunter2\n").unwrap_err();
    assert!(matches!(error, ConfigError::FileSyntax { line: 2, .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn errors_hold_no_secret() {
    for text in
        ["secret = 271828", "[secret]\ntext = 'hunter2'", "[kafka.properties]\n'sasl.password' = ['hunter2']"]
    {
        let error = with_file(text).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && !error.contains("271828"), "{error}");
    }
    let error = with_env(&[("DASHI_KAFKA_PROPERTIES", "sasl.password:hunter2")]).unwrap_err().to_string();
    assert!(error.contains("name=value") && !error.contains("hunter2"), "{error}");
}

#[test]
fn umamis_names_are_read_and_ours_win_over_them() {
    let umami = [
        ("APP_SECRET", "s"),
        ("DATABASE_URL", "postgresql://u:p@h/umami"),
        ("TZ", ":Asia/Kolkata"),
        ("CLIENT_IP_HEADER", "x-real-ip"),
        ("IGNORE_IP", "10.0.0.0/8, ::1"),
        ("DISABLE_BOT_CHECK", "0"),
        ("SALT_ROTATION", "week"),
        ("SKIP_LOCATION_HEADERS", "false"),
        ("GEOLITE_DB_PATH", "geo/city.mmdb"),
        ("CORS_MAX_AGE", "60"),
        ("REMOVE_TRAILING_SLASH", "1"),
        ("BASE_PATH", "umami/"),
        ("COLLECT_API_ENDPOINT", "/collect"),
        ("FORCE_SSL", "1"),
        ("TRACKER_SCRIPT_NAME", "stats.js,/s"),
        ("TRACKER_SCRIPT_URL", "https://cdn.example/s.js"),
        ("COLLECT_API_HOST", "https://c.example"),
    ];
    let loaded = with_env(&umami).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.secret_text(), Some("s"));
    assert_eq!(settings.store, "postgresql://u:p@h/umami");
    assert_eq!(settings.timezone, "Asia/Kolkata");
    assert_eq!(settings.ingest.client_ip_header, "x-real-ip");
    assert_eq!(settings.ingest.ignore_ip, "10.0.0.0/8, ::1");
    assert!(settings.ingest.disable_bot_check && settings.ingest.skip_location_headers);
    assert!(settings.fold.remove_trailing_slash);
    assert_eq!(settings.ingest.salt_rotation, SaltRotation::Week);
    assert_eq!(settings.ingest.cors_max_age_s, 60);
    assert_eq!(settings.geo.database, "geo/city.mmdb");
    assert_eq!(settings.ingest.base_path, "/umami");
    assert_eq!(settings.ingest.send_path, "/collect");
    assert!(settings.ingest.force_ssl);
    assert_eq!(settings.script_paths(), ["/stats.js", "/s"]);
    assert_eq!(settings.script.url, "https://cdn.example/s.js");
    assert_eq!(settings.script.collect_host, "https://c.example");
    for alias in ALIASES {
        assert_eq!(origin(&loaded, alias.key), format!("env {}", alias.name));
    }

    let mut both = umami.to_vec();
    both.extend([
        ("DASHI_SECRET", "t"),
        ("DASHI_STORE", "sqlite:s.db"),
        ("DASHI_INGEST_DISABLE_BOT_CHECK", "false"),
        ("DASHI_INGEST_CORS_MAX_AGE_S", "7"),
    ]);
    let loaded = with_env(&both).unwrap();
    assert_eq!(loaded.settings.secret_text(), Some("t"));
    assert_eq!(loaded.settings.store, "sqlite:s.db");
    assert!(!loaded.settings.ingest.disable_bot_check);
    assert_eq!(loaded.settings.ingest.cors_max_age_s, 7);
}

#[test]
fn opentelemetrys_names_set_our_settings_too() {
    let otel = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318"),
        ("OTEL_SERVICE_NAME", "collector"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ];
    let loaded = with_env(&otel).unwrap();
    let tracing = &loaded.settings.tracing;
    assert_eq!(
        (tracing.otlp_endpoint.as_str(), tracing.service_name.as_str()),
        ("http://otel:4318", "collector")
    );
    assert_eq!(tracing.sampled_ratio, 0.25);
    for alias in OPENTELEMETRY {
        assert_eq!(origin(&loaded, alias.key), format!("env {}", alias.name));
    }
    let ours = ("DASHI_TRACING_SAMPLED_RATIO", "1");
    assert_eq!(with_env(&[&otel[..], &[ours]].concat()).unwrap().settings.tracing.sampled_ratio, 1.0);
    assert_eq!(with_file("tracing.sampled_ratio = 1").unwrap().settings.tracing.sampled_ratio, 1.0);
    let error = with_env(&[("OTEL_TRACES_SAMPLER_ARG", "much")]).unwrap_err().to_string();
    assert!(error.contains("tracing.sampled_ratio takes a number, such as 0.01"), "{error}");
}

#[test]
fn umamis_names_stand_above_the_file() {
    let file = Scratch::holding("timezone = 'Asia/Tokyo'");
    let layers = Layers { file: Some(&file.0), env: env(&[("TZ", "Europe/Berlin")]), ..Layers::default() };
    assert_eq!(load(layers).unwrap().settings.timezone, "Europe/Berlin");
}

#[test]
fn an_unreadable_alias_matters_only_where_ours_is_missing() {
    assert!(with_env(&[("CORS_MAX_AGE", "long"), ("DASHI_INGEST_CORS_MAX_AGE_S", "7")]).is_ok());
}

#[test]
fn a_salt_rotation_that_umami_does_not_know_is_monthly() {
    assert_eq!(
        with_env(&[("SALT_ROTATION", "year")]).unwrap().settings.ingest.salt_rotation,
        SaltRotation::Month
    );
    assert!(with_env(&[("DASHI_INGEST_SALT_ROTATION", "year")]).is_err());
}

#[test]
fn the_secret_falls_back_to_database_url_as_in_umami() {
    let loaded = with_env(&[("DATABASE_URL", "mysql://u:p@h/umami")]).unwrap();
    assert_eq!(loaded.settings.secret_text(), Some("mysql://u:p@h/umami"));
    assert_eq!(origin(&loaded, "secret"), "env DATABASE_URL");
    // Not a store of ours, and not passed over: another one in its place would hide the events.
    assert_eq!(loaded.settings.store, "mysql://u:p@h/umami");

    let file = Scratch::holding("secret = 's'");
    let layers =
        Layers { file: Some(&file.0), env: env(&[("DATABASE_URL", "postgres://h/d")]), ..Layers::default() };
    let loaded = load(layers).unwrap();
    assert_eq!(loaded.settings.secret_text(), Some("s"));
    assert_eq!(loaded.settings.store, "postgres://h/d");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let loaded = with_env(&[
        ("DASHI_SECRET", ""),
        ("APP_SECRET", "s"),
        ("DASHI_INGEST_IN_FLIGHT_MAX", ""),
        ("DISABLE_BOT_CHECK", ""),
        ("TZ", ""),
    ])
    .unwrap();
    assert_eq!(loaded.settings.secret_text(), Some("s"));
    assert_eq!(loaded.settings.ingest.in_flight_max, 4096);
    assert!(!loaded.settings.ingest.disable_bot_check);
    assert_eq!(loaded.settings.timezone, "UTC");
}

#[test]
fn properties_of_librdkafka_are_free_and_laid_over_each_other_by_name() {
    let file = Scratch::holding(
        "[kafka.properties]\n\"security.protocol\" = 'ssl'\nssl.ca.location = '/ca'\n\"socket.keepalive.enable\" = true\n\
         \"statistics.interval.ms\" = 5",
    );
    let loaded = load(Layers {
        file: Some(&file.0),
        env: env(&[("DASHI_KAFKA_PROPERTIES", "security.protocol=sasl_ssl, sasl.password=a\\,b=c")]),
        ..Layers::default()
    })
    .unwrap();
    let properties = &loaded.settings.kafka.properties;
    assert_eq!(properties["security.protocol"], "sasl_ssl");
    assert_eq!(properties["sasl.password"], "a,b=c");
    assert_eq!(properties["ssl.ca.location"], "/ca");
    assert_eq!(properties["socket.keepalive.enable"], "true");
    assert_eq!(properties["statistics.interval.ms"], "5");
    assert_eq!(properties.len(), 5);
    assert_eq!(origin(&loaded, "kafka.properties.security.protocol"), "env DASHI_KAFKA_PROPERTIES");
}

#[test]
fn settings_print_without_their_secrets() {
    let loaded = with_env(&[
        ("DASHI_SECRET", "hunter2"),
        ("DASHI_STORE", "postgres://u:hunter2@h/d"),
        ("DASHI_KAFKA_PROPERTIES", "sasl.password=hunter2"),
    ])
    .unwrap();
    let printed = format!("{loaded:?} {:?} {:?}", loaded.settings, loaded.settings.kafka);
    assert!(!printed.contains("hunter2"), "{printed}");
}
