//! The URLs of log and store.

use std::{fmt, path::PathBuf};

use dashi_store::PostgresStore;

use super::{error::ConfigError, secret::redact_url};

const LOG_REMEDY: &str = "write `sqlite:PATH` or `kafka://HOST:PORT[,HOST:PORT]/TOPIC`";
const STORE_REMEDY: &str = "write `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE` (DASHI_STORE wins over DATABASE_URL)";

/// Longest name of a topic. Source: Apache Kafka, `Topic.MAX_NAME_LENGTH`.
const TOPIC_CHARACTERS_MAX: usize = 249;

/// Location of the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogUrl {
    /// Embedded, in this file.
    Sqlite(PathBuf),
    /// On Kafka.
    Kafka {
        /// `HOST:PORT[,HOST:PORT]`, as librdkafka takes it.
        brokers: String,
        /// The topic.
        topic: String,
    },
}

/// Location of the store.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// Embedded, in this file.
    Sqlite(PathBuf),
    /// In PostgreSQL; the URL as it was given, with its password.
    Postgres(String),
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::Postgres(url) => f.debug_tuple("Postgres").field(&redact_url(url)).finish(),
        }
    }
}

/// Reads the URL of an event log.
///
/// # Errors
/// [`ConfigError::Url`], if it names no log that Dashi can open.
pub fn parse_log_url(url: &str) -> Result<LogUrl, ConfigError> {
    let refuse =
        |reason: String| ConfigError::Url { what: "log", got: redact_url(url), reason, remedy: LOG_REMEDY };
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite_path(path).map(LogUrl::Sqlite).map_err(refuse);
    }
    let Some(rest) = url.strip_prefix("kafka://") else {
        return Err(refuse(unknown_scheme(url)));
    };
    if rest.contains('@') {
        return Err(refuse(
            "user and password belong in kafka.properties (sasl.username, sasl.password)".into(),
        ));
    }
    let (brokers, topic) = rest.split_once('/').ok_or_else(|| refuse("the topic is missing".into()))?;
    if let Some(broker) = brokers.split(',').find(|broker| !is_host_and_port(broker)) {
        return Err(refuse(format!("`{broker}` is no broker's HOST:PORT")));
    }
    if !is_topic(topic) {
        return Err(refuse(format!(
            "`{topic}` is no topic's name (1 to {TOPIC_CHARACTERS_MAX} letters, digits, dots, hyphens, underscores)"
        )));
    }
    Ok(LogUrl::Kafka { brokers: brokers.to_owned(), topic: topic.to_owned() })
}

/// Reads the URL of a store.
///
/// # Errors
/// [`ConfigError::Url`], if it names no store that Dashi can open.
pub fn parse_store_url(url: &str) -> Result<StoreUrl, ConfigError> {
    let refuse = |reason: String| ConfigError::Url {
        what: "store",
        got: redact_url(url),
        reason,
        remedy: STORE_REMEDY,
    };
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite_path(path).map(StoreUrl::Sqlite).map_err(refuse);
    }
    // Both schemes that PostgreSQL's own library takes.
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(refuse(no_database(url).unwrap_or_else(|| unknown_scheme(url))));
    }
    PostgresStore::check_url(url).map_err(|error| refuse(error.to_string()))?;
    Ok(StoreUrl::Postgres(url.to_owned()))
}

/// The reason, for URLs that an Umami's environment may hold and that name no PostgreSQL.
fn no_database(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once(':')?;
    match scheme {
        "prisma" | "prisma+postgres" => Some(format!(
            "`{scheme}:` is an address of Prisma's own service; give the URL of the PostgreSQL database behind it"
        )),
        "mysql" | "mariadb" => Some(format!(
            "`{scheme}:` is no known kind: Umami no longer supports it, and Dashi writes to PostgreSQL"
        )),
        _ => None,
    }
}

fn unknown_scheme(url: &str) -> String {
    match url.split_once(':') {
        Some((scheme, _)) if !scheme.contains(['/', '@']) => format!("`{scheme}:` is no known kind"),
        _ => "it has no scheme".to_owned(),
    }
}

/// The path in `sqlite:a/b`, `sqlite:/a/b`, `sqlite://a/b` and `sqlite:///a/b`: two slashes mean nothing.
fn sqlite_path(path: &str) -> Result<PathBuf, String> {
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err("the path is missing".to_owned()),
        ":memory:" => Err("a database in memory loses acknowledged events".to_owned()),
        _ if path.contains('?') => Err("parameters after `?` are not supported".to_owned()),
        _ if path.ends_with('/') => Err("it names a directory instead of a file".to_owned()),
        _ => Ok(PathBuf::from(path)),
    }
}

fn is_host_and_port(broker: &str) -> bool {
    let Some((host, port)) = broker.rsplit_once(':') else { return false };
    let host_reads = match host.strip_prefix('[') {
        Some(address) => {
            address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        }
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    host_reads && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Source: Apache Kafka, `Topic.validate`.
fn is_topic(topic: &str) -> bool {
    (1..=TOPIC_CHARACTERS_MAX).contains(&topic.len())
        && !matches!(topic, "." | "..")
        && topic.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_urls_are_read() {
        let kafka =
            |brokers: &str, topic: &str| LogUrl::Kafka { brokers: brokers.into(), topic: topic.into() };
        for (url, log) in [
            ("sqlite:data/log.db", LogUrl::Sqlite("data/log.db".into())),
            ("sqlite:/var/log.db", LogUrl::Sqlite("/var/log.db".into())),
            ("sqlite://data/log.db", LogUrl::Sqlite("data/log.db".into())),
            ("sqlite:///var/log.db", LogUrl::Sqlite("/var/log.db".into())),
            ("kafka://a:9092/events", kafka("a:9092", "events")),
            ("kafka://a.b-c:9092,[::1]:9093/ev.e-n_ts", kafka("a.b-c:9092,[::1]:9093", "ev.e-n_ts")),
        ] {
            assert_eq!(parse_log_url(url).unwrap(), log, "{url}");
        }
    }

    #[test]
    fn log_urls_that_name_no_log_are_refused_with_the_reason() {
        for (url, reason) in [
            ("", "it has no scheme"),
            ("data/log.db", "it has no scheme"),
            ("redis://h:1/t", "`redis:` is no known kind"),
            ("postgres://u:p@h/db", "`postgres:` is no known kind"),
            ("sqlite:", "path is missing"),
            ("sqlite::memory:", "loses acknowledged events"),
            ("sqlite:a.db?mode=ro", "parameters"),
            ("sqlite:data/", "directory"),
            ("kafka://h:9092", "topic is missing"),
            ("kafka://h/t", "`h` is no broker's HOST:PORT"),
            ("kafka://h:9092,/t", "`` is no broker's"),
            ("kafka://h:0/t", "`h:0` is no broker's"),
            ("kafka://h:99999/t", "is no broker's"),
            ("kafka://h:9092/a/b", "`a/b` is no topic's name"),
            ("kafka://h:9092/", "`` is no topic's name"),
            ("kafka://u:hunter2@h:9092/t", "sasl.username"),
        ] {
            let error = parse_log_url(url).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("kafka://HOST:PORT"), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn store_urls_are_read_or_refused_without_their_password() {
        assert_eq!(parse_store_url("sqlite:s.db").unwrap(), StoreUrl::Sqlite("s.db".into()));
        for url in ["postgres://u:hunter2@h/db", "postgresql://u:hunter2@h/db"] {
            let store = parse_store_url(url).unwrap();
            assert_eq!(store, StoreUrl::Postgres(url.into()));
            assert!(!format!("{store:?}").contains("hunter2"));
        }
        let error = parse_store_url("mysql://u:hunter2@h/db").unwrap_err().to_string();
        assert!(error.contains("`mysql:` is no known kind") && error.contains("u:redacted@h"), "{error}");
        assert!(!error.contains("hunter2"));
    }
}
