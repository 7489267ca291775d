//! The log and the store, as they answer.

use std::time::{Duration, Instant};

use dashi_config::{LogUrl, Settings, StoreUrl, parse_log_url, parse_store_url};
use dashi_event_log::EventLog;
use dashi_store::{Fitness, Store};

use super::Finding;
use crate::clock::now_ms;
use crate::open;

/// How long each of them may take.
const BOUND: Duration = Duration::from_secs(15);

/// How long all of the questions may take: to open it, and to ask it.
pub const LONGEST: Duration = Duration::from_secs(2 * BOUND.as_secs());

/// A difference of clocks at which times of events become doubtful, and one at which sessions and ids go wrong, in
/// milliseconds.
const CLOCK_WARN_MS: i64 = 2_000;
const CLOCK_FAIL_MS: i64 = 60_000;

/// What was found, and the log or store if it could be opened.
pub struct Examined<T> {
    pub findings: Vec<Finding>,
    pub opened: Option<T>,
}

impl<T> Examined<T> {
    fn without(finding: Finding) -> Self {
        Self { findings: vec![finding], opened: None }
    }
}

/// Opens the log, and proves that an append would be durable.
pub async fn log(settings: &Settings) -> Examined<EventLog> {
    let Ok(url) = parse_log_url(&settings.log) else {
        return Examined { findings: Vec::new(), opened: None };
    };
    let remedy = match &url {
        LogUrl::Sqlite(path) if !path.exists() => {
            return Examined::without(Finding::ok("log", "not there yet: the first start makes it"));
        }
        LogUrl::Sqlite(_) => "look at the file's rights and at its disk",
        LogUrl::Kafka { .. } => {
            "look at the brokers' addresses, at the network, and at kafka.properties (TLS, SASL)"
        }
    };
    let opened = tokio::time::timeout(BOUND, open::log(settings, open::Absent::Refuse)).await;
    let log = match opened {
        Ok(Ok(log)) => log,
        Ok(Err(error)) => return Examined::without(Finding::fail("log", format!("{error:#}"), remedy)),
        Err(_) => return Examined::without(Finding::fail("log", silent(), remedy)),
    };
    let mut findings = Vec::new();
    match tokio::time::timeout(BOUND, log.probe()).await {
        Ok(Ok(())) => findings.push(Finding::ok("log", format!("{} takes appends", log.id()))),
        Ok(Err(error)) => {
            findings.push(Finding::fail("log", format!("{:#}", anyhow::Error::from(error)), remedy))
        }
        Err(_) => findings.push(Finding::fail("log", silent(), remedy)),
    }
    for note in log.notes() {
        let remedy = note
            .remedy
            .unwrap_or_else(|| "docs/operations.md lists the settings that a topic needs".to_owned());
        let of = if note.concern.is_refusal() { Finding::fail } else { Finding::warn };
        findings.push(of("topic", note.text, remedy));
    }
    if matches!(url, LogUrl::Kafka { .. }) && log.notes().is_empty() {
        findings.push(Finding::ok("topic", "its settings keep every acknowledged event"));
    }
    if settings.event_log.retention_h > 0 && matches!(url, LogUrl::Sqlite(_)) {
        findings.push(Finding::warn(
            "log",
            format!(
                "records are removed {} h after they were applied, so a rebuild lacks them",
                settings.event_log.retention_h
            ),
            "archive them before (`dashi archive`, docs/archive.md), or set event_log.retention_h = 0",
        ));
    }
    Examined { findings, opened: Some(log) }
}

/// Opens the store, and asks it about its tables, rights and clock.
pub async fn store(settings: &Settings) -> Examined<Store> {
    let Ok(url) = parse_store_url(&settings.store) else {
        return Examined { findings: Vec::new(), opened: None };
    };
    let remedy = match &url {
        StoreUrl::Sqlite(path) if !path.exists() => {
            return Examined::without(Finding::ok("store", "not there yet: the first start makes it"));
        }
        StoreUrl::Sqlite(_) => "look at the file's rights and at its disk",
        StoreUrl::Postgres(_) => {
            "look at host, port, name, password and sslmode in the URL, and at pg_hba.conf"
        }
    };
    let opened = match open::store(&settings.store, settings, open::Absent::Refuse).await {
        Ok(store) => store,
        Err(error) => return Examined::without(Finding::fail("store", format!("{error:#}"), remedy)),
    };
    match tokio::time::timeout(BOUND, ask(&opened)).await {
        Ok(Ok(findings)) => Examined { findings, opened: Some(opened) },
        Ok(Err(error)) => Examined::without(Finding::fail("store", format!("{error:#}"), remedy)),
        Err(_) => Examined::without(Finding::fail("store", silent(), remedy)),
    }
}

async fn ask(store: &Store) -> anyhow::Result<Vec<Finding>> {
    store.ping().await?;
    let began = (Instant::now(), now_ms());
    let Some(fitness) = store.fitness().await? else {
        return Ok(vec![Finding::ok("store", "the file takes writes")]);
    };
    // Its answer is of some moment between the question and now.
    let here_ms = began.1 + began.0.elapsed().as_millis() as i64 / 2;
    let tables = match store.umami().await {
        Ok(Some(tables)) => format!("with tables of Umami {}", tables.release),
        Ok(None) => "without tables: the first start makes them".to_owned(),
        // Without rights it cannot be asked for its tables; the line of the rights says which.
        Err(_) if !fitness.lacking.is_empty() => "and does not show its tables to this role".to_owned(),
        Err(error) => return Err(error.into()),
    };
    let mut findings = vec![Finding::ok("store", format!("{} answers, {tables}", fitness.server))];
    findings.push(rights(&fitness));
    findings.push(clock(fitness.clock_ms - here_ms));
    Ok(findings)
}

fn rights(fitness: &Fitness) -> Finding {
    if fitness.lacking.is_empty() {
        return Finding::ok("rights", "the role may write every table");
    }
    Finding::fail(
        "rights",
        format!("the role lacks {}", fitness.lacking.join(", ")),
        "let the owner GRANT them, or run `CREATE SCHEMA dashi AUTHORIZATION …` once (docs/umami.md, \"Switch over\")",
    )
}

/// `ahead_ms`: the database's clock less this machine's.
fn clock(ahead_ms: i64) -> Finding {
    let found = format!(
        "the database's clock is {:.1} s {}",
        ahead_ms.abs() as f64 / 1_000.0,
        if ahead_ms < 0 { "behind" } else { "ahead" }
    );
    let remedy =
        "let NTP set the clocks of both machines: times of events, visits and tokens come from this one";
    match ahead_ms.abs() {
        CLOCK_FAIL_MS.. => Finding::fail("clock", found, remedy),
        CLOCK_WARN_MS.. => Finding::warn("clock", found, remedy),
        _ => Finding::ok("clock", "the database's agrees with this machine's"),
    }
}

/// Whether the store holds the projection of this log, and where it stands.
pub async fn projection(log: &EventLog, store: &Store) -> Vec<Finding> {
    match tokio::time::timeout(BOUND, standing(log, store)).await {
        Ok(Ok(findings)) => findings,
        // Before the first start there are no tables to ask.
        Ok(Err(_)) => vec![Finding::ok("projection", "nothing is projected yet")],
        Err(_) => vec![Finding::fail("projection", silent(), "see the lines of log and store")],
    }
}

async fn standing(log: &EventLog, store: &Store) -> anyhow::Result<Vec<Finding>> {
    let logs = store.logs().await?;
    if let Some(other) = logs.first().filter(|_| !logs.contains(log.id())) {
        return Ok(vec![Finding::fail(
            "projection",
            format!("the store holds the projection of the log {other}, not of {}", log.id()),
            "correct `log` or `store`; if this log is to go on in this store, start once with --accept-new-log",
        )]);
    }
    let states = store.partitions().await?;
    let states: Vec<_> = states.iter().filter(|state| state.log == *log.id()).collect();
    let (mut lag, mut failing) = (0, Vec::new());
    for partition in log.partitions().await? {
        let extent = log.extent(partition).await?;
        let state = states.iter().find(|state| state.partition == partition);
        let from = state.map_or(extent.low, |state| state.checkpoint.offset().max(extent.low));
        lag += extent.high.number().saturating_sub(from.number());
        let failing_now = state.filter(|state| state.last_error_over_at_ms.is_none());
        if let Some(error) = failing_now.and_then(|state| state.last_error.as_ref()) {
            failing.push(format!("partition {partition}: {error}"));
        }
    }
    let mut findings = Vec::new();
    if failing.is_empty() {
        findings.push(Finding::ok(
            "projection",
            format!("{} partitions, {lag} records are not applied yet", states.len()),
        ));
    } else {
        findings.push(Finding::warn(
            "projection",
            format!("{lag} records are not applied yet; {}", failing.join("; ")),
            "docs/projector.md has the remedy of each state",
        ));
    }
    let open: u64 = store
        .letter_counts()
        .await?
        .iter()
        .filter(|counts| counts.log == *log.id())
        .map(|counts| counts.open)
        .sum();
    if open > 0 {
        findings.push(Finding::warn(
            "projection",
            format!("{open} records could not be applied"),
            "`dashi dead-letters list` groups them by reason (docs/dead-letters.md)",
        ));
    }
    Ok(findings)
}

fn silent() -> String {
    format!("no answer within {} s", BOUND.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn clocks_that_differ_are_warned_of_and_fail_when_far_apart() {
        for (ahead_ms, level) in [
            (0, Level::Ok),
            (-1_999, Level::Ok),
            (2_000, Level::Warn),
            (-59_999, Level::Warn),
            (60_000, Level::Fail),
        ] {
            assert_eq!(clock(ahead_ms).level, level, "{ahead_ms}");
        }
        assert!(clock(-3_500).found.contains("3.5 s behind"));
    }

    #[test]
    fn rights_that_lack_are_named() {
        let mut fitness = Fitness { server: String::new(), clock_ms: 0, lacking: Vec::new() };
        assert_eq!(rights(&fitness).level, Level::Ok);
        fitness.lacking = vec!["INSERT on session".to_owned(), "UPDATE on website".to_owned()];
        let finding = rights(&fitness);
        assert_eq!(
            (finding.level, finding.found.as_str()),
            (Level::Fail, "the role lacks INSERT on session, UPDATE on website")
        );
    }
}
