//! What becomes of a projector when one partition, its database or its log fails: a partition fails alone, everybody can see
//! it, it goes on by itself when the cause is gone, and the logs have a line for the beginning and the end of it.

use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::record::Record;
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, EventLog, KafkaLog, KafkaSettings, ReadLimit};
use dashi_load::Mode;
use dashi_projector::{
    PartitionState, Progress, Projector, ProjectorMetrics, ProjectorSettings, ReplayError, replay,
};
use dashi_store::{PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store};
use integration_tests::deployment::PartitionStatus;
use integration_tests::{
    Database, Deployment, KafkaServer, Ledger, PostgresServer, Server, TestDatabase, TestDirectory,
    eventually, http, kafka,
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// The beginnings and ends of outages in the logs.
const BEGUN: &str = "interrupted; trying again until it works";
const CHANGED: &str = "still interrupted, now for another reason";
const FAILED: &str = "the partition has failed and does not move";
const OVER: &str = "the interruption is over";

async fn on_files(name: &str) -> (TestDirectory, Deployment) {
    let directory = TestDirectory::create(name);
    let deployment = Deployment::embedded(&directory).with("DASHI_PROJECTOR_FAILED_RETRY_MS", "500");
    deployment.register().await;
    (directory, deployment)
}

async fn on_servers(name: &str) -> (TestDatabase, Deployment) {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic(name));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_EVENT_LOG_PARTITIONS", "8")
        .with("DASHI_PROJECTOR_FAILED_RETRY_MS", "500");
    deployment.register().await;
    (database, deployment)
}

/// Sends so many events of many visitors.
async fn send_events(ledger: &mut Ledger, server: &Server, events: u64) {
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 8;
        plan.sessions = 200;
        plan.requests_max = Some(events);
        plan.duration = SOON;
    });
    let report = ledger.finish(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
}

async fn readiness(server: &Server) -> (u16, Value) {
    let answer = http::get(&format!("{}/health/ready", server.url())).await.expect("it answers");
    (answer.status, answer.json())
}

async fn metrics(server: &Server) -> String {
    http::get(&format!("{}/metrics", server.url())).await.expect("it answers").text()
}

/// Waits until the metrics have all these lines.
async fn until_metrics(server: &Server, lines: &[String]) {
    eventually(SOON, "the metrics say so", async || {
        let text = metrics(server).await;
        match lines.iter().find(|line| !text.lines().any(|shown| shown == line.as_str())) {
            None => Ok(()),
            Some(missing) => {
                let shown: Vec<&str> = text.lines().filter(|line| line.contains("projector_")).collect();
                Err(format!("{missing} is not in {shown:#?}"))
            }
        }
    })
    .await;
}

fn state_line(partition: u32, state: &str, value: u8) -> String {
    format!("dashi_projector_partition_state{{partition=\"{partition}\",state=\"{state}\"}} {value}")
}

fn lines_with<'t>(text: &'t str, part: &str) -> Vec<&'t str> {
    text.lines().filter(|line| line.contains(part)).collect()
}

async fn partition(deployment: &Deployment, number: u32) -> PartitionStatus {
    let status = deployment.status().await.unwrap();
    status.partitions.into_iter().find(|partition| partition.partition == number).expect("it is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_beyond_the_logs_end_fails_alone_and_recovers_embedded() {
    let (_directory, deployment) = on_files("supervision").await;
    a_partition_beyond_the_logs_end_fails_alone(deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_beyond_the_logs_end_fails_alone_and_recovers_on_kafka_and_postgres() {
    let (_database, deployment) = on_servers("supervision").await;
    a_partition_beyond_the_logs_end_fails_alone(deployment).await;
}

/// A log that was restored from an older copy stopped all partitions, of which one was concerned; `serve` said that once, and
/// readiness and metrics said nothing.
async fn a_partition_beyond_the_logs_end_fails_alone(deployment: Deployment) {
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 200).await;
    let status = deployment.settled().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let broken =
        status.partitions.iter().find(|partition| partition.checkpoint > 0).expect("events lie in one");
    let (number, checkpoint) = (broken.partition, broken.checkpoint);
    let mut store = Database::open(deployment.store()).await;
    let set =
        |checkpoint| format!("UPDATE @checkpoint SET checkpoint = {checkpoint} WHERE partition = {number}");
    store.execute(&set(checkpoint + 1_000)).await;

    // A group of its own: this one starts at once.
    let deployment = deployment.with("DASHI_KAFKA_GROUP", &format!("again-{}", Uuid::now_v7()));
    let mut server = deployment.start("serve").ready().await;
    send_events(&mut ledger, &server, 300).await;
    eventually(SOON, "the other partitions go on", async || {
        let status = deployment.status().await?;
        let behind = status.partitions.iter().filter(|p| p.partition != number && p.lag_records > 0).count();
        let rows = status.totals.applied > 200;
        if behind == 0 && rows { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    // Everybody sees it: metrics, readiness and status.
    let mut wanted = vec![
        "dashi_projector_up 1".to_owned(),
        format!("dashi_projector_partition_failure{{partition=\"{number}\",kind=\"beyond\"}} 1"),
        state_line(number, "running", 0),
    ];
    wanted.extend((0..8).map(|other| match other == number {
        true => state_line(other, "failed", 1),
        false => state_line(other, "running", 1),
    }));
    until_metrics(&server, &wanted).await;
    let (code, ready) = readiness(&server).await;
    assert_eq!((code, &ready["ready"]), (200, &json!(true)), "{ready}");
    let said = ready["checks"]["projector"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("1 of 8 partitions do not move: partition {number} (failed)")), "{ready}");
    let stuck = ready["partitions_not_moving"].as_array().unwrap();
    assert_eq!(stuck.len(), 1, "{ready}");
    assert_eq!((&stuck[0]["partition"], &stuck[0]["kind"]), (&json!(number), &json!("beyond")), "{ready}");
    assert!(stuck[0]["error"].as_str().unwrap().contains("ends at offset"), "{ready}");
    let noted = partition(&deployment, number).await;
    assert_eq!((noted.last_error_kind.as_deref(), noted.last_error_over_at_ms), (Some("beyond"), None));
    let shown = deployment.run(&["status"]).await.stdout;
    let line = format!("partition {number}: last error (beyond) at ");
    assert!(lines_with(&shown, &line).iter().any(|line| line.contains(", not over: ")), "{shown}");

    // It was tried again several times by now, and said once.
    let logs = server.dashi.stderr();
    assert_eq!(lines_with(&logs, FAILED).len(), 1, "{logs}");
    store.execute(&set(checkpoint)).await;
    eventually(SOON, "it moves again", async || {
        let (_, ready) = readiness(&server).await;
        if ready["checks"]["projector"] == "ok" { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    ledger.check().await;
    until_metrics(&server, &[state_line(number, "running", 1), state_line(number, "failed", 0)]).await;
    assert!(!metrics(&server).await.contains("partition_failure{"), "it is no failure any more");
    eventually(SOON, "the note says that it is over", async || {
        let noted = partition(&deployment, number).await;
        noted.last_error_kind.as_deref() == Some("beyond") && noted.last_error_over_at_ms.is_some()
    })
    .await;
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(lines_with(&shown, &line).iter().any(|line| line.contains(", over since 20")), "{shown}");
    let logs = server.dashi.stderr();
    assert_eq!((lines_with(&logs, FAILED).len(), lines_with(&logs, OVER).len()), (1, 1), "{logs}");
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_retention_overtook_fails_alone_and_a_setting_makes_that_unready() {
    let (directory, deployment) = on_files("supervision").await;
    let deployment = deployment.with("DASHI_PROJECTOR_FAILED_PARTITION_UNREADY", "true");
    let mut collector = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &collector, 200).await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let before = deployment.status().await.unwrap();
    let broken =
        before.partitions.iter().find(|partition| partition.lag_records > 5).expect("events lie in one");
    let number = broken.partition;
    let mut log = file(&directory.path().join("log.db")).await;
    for sql in [
        format!("DELETE FROM record WHERE id >= ({number} << 40) AND id < ({number} << 40) + 3"),
        format!("UPDATE partition SET low_offset = 3 WHERE partition = {number}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut log).await.unwrap();
    }

    // A process that only projects does not die of it either.
    let mut projector = deployment.start("project");
    eventually(SOON, "it says so", async || {
        let answer = http::get(&format!("{}/health/ready", projector.url())).await?;
        let told = answer.status == 503 && answer.text().contains("\"kind\":\"trimmed\"");
        if told { Ok(()) } else { Err(anyhow::anyhow!("{} {}", answer.status, answer.text())) }
    })
    .await;
    eventually(SOON, "the other partitions go on", async || {
        let status = deployment.status().await?;
        let behind = status.partitions.iter().filter(|p| p.partition != number && p.lag_records > 0).count();
        if behind == 0 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    // How far it is behind, and for how long, shows though nobody reads it.
    let lag = broken.lag_records - 3;
    until_metrics(
        &projector,
        &[
            state_line(number, "failed", 1),
            format!("dashi_projector_lag_records{{partition=\"{number}\"}} {lag}"),
        ],
    )
    .await;
    eventually(SOON, "its lag has an age", async || {
        let text = metrics(&projector).await;
        let line = format!("dashi_projector_lag_seconds{{partition=\"{number}\"}} ");
        let age_s: f64 =
            text.lines().find_map(|shown| shown.strip_prefix(&line)).unwrap_or("0").parse().unwrap();
        age_s > 0.0
    })
    .await;
    let mut store = Database::open(deployment.store()).await;
    store.execute(&format!("UPDATE @checkpoint SET checkpoint = 3 WHERE partition = {number}")).await;
    let url = projector.url();
    projector.dashi.wait_ready(&url).await;
    assert_eq!(deployment.settled().await.totals.applied, 197);
    assert_eq!(projector.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_a_projector_that_cannot_run_shows_and_serve_takes_over_when_it_can() {
    let (_directory, deployment) = on_files("supervision").await;
    let mut first = deployment.start("project").ready().await;
    let mut second = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    until_metrics(&second, &["dashi_projector_up 0".to_owned()]).await;
    until_metrics(&first, &["dashi_projector_up 1".to_owned()]).await;
    // It saves its position in the log now and then; stopped in the middle of that, it keeps everybody from the file.
    eventually(SOON, "the projector stands still and holds no lock", async || {
        first.dashi.sigstop();
        if is_writable(deployment.log()).await {
            return true;
        }
        first.dashi.sigcont();
        false
    })
    .await;
    send_events(&mut ledger, &second, 50).await;
    eventually(SOON, "the backlog shows where nobody works on it", async || {
        let text = metrics(&second).await;
        let lags = text.lines().filter_map(|line| line.strip_prefix("dashi_projector_lag_records{"));
        let lag: u64 = lags.map(|rest| rest.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        if lag == 50 { Ok(()) } else { Err(format!("{lag}")) }
    })
    .await;
    first.dashi.sigcont();
    first.dashi.kill9();
    until_metrics(&second, &["dashi_projector_up 1".to_owned()]).await;
    ledger.check().await;
    assert_eq!(second.dashi.terminate().await, Some(0));
    let logs = second.dashi.stderr();
    assert_eq!(lines_with(&logs, "the projector cannot run").len(), 1, "{logs}");
}

/// Whether nobody holds a lock on an embedded log.
async fn is_writable(log: &str) -> bool {
    use sqlx::Connection as _;
    let path = log.strip_prefix("sqlite:").expect("an embedded log");
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_millis(200));
    let Ok(mut connection) = sqlx::sqlite::SqliteConnection::connect_with(&options).await else {
        return false;
    };
    sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut connection).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_cannot_run_at_all_says_why_once_and_ends_with_1() {
    let (directory, deployment) = on_files("supervision").await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 20).await;
    deployment.settled().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let other_log = format!("sqlite:{}", directory.path().join("other.db").display());
    let mut projector = Deployment::new(other_log, deployment.store()).start("project");
    assert_eq!(projector.dashi.wait_exit(SOON).await.code(), Some(1));
    let logs = projector.dashi.logs();
    assert_eq!(lines_with(&logs, "the store holds the projection of the log").len(), 1, "{logs}");
}

/// A fold that panics on some records, as one with a mistake in it would.
fn poisoned(records: &[Record], applied_before: &HashSet<Uuid>, rules: &FoldRules) -> Changes {
    let is_poison = |record: &&Record| record.value.windows(6).any(|bytes| bytes == b"poison");
    if let Some(record) = records.iter().find(is_poison) {
        panic!("no way to fold {} bytes", record.value.len());
    }
    fold(records, applied_before, rules)
}

fn settings() -> ProjectorSettings {
    ProjectorSettings {
        group: format!("group-{}", Uuid::now_v7()),
        owner: "the test".to_owned(),
        fold: poisoned,
        rules: FoldRules {
            zone: jiff::tz::TimeZone::UTC,
            remove_trailing_slash: false,
            release: dashi_domain::umami::Release::V3_1,
            names_sessions: false,
            null_deletes: false,
        },
        read_limit: ReadLimit { records_max: 1_000, bytes_max: 1 << 20, wait: Duration::from_millis(200) },
        batch_interval: Duration::from_millis(20),
        retry_wait_max: Duration::from_millis(500),
        failed_retry: Duration::from_millis(200),
        accept_new_log: false,
    }
}

async fn open_log(url: &str) -> EventLog {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let settings = EmbeddedSettings { path: path.into(), partitions: 8, queue_max: 100, batch_max: 100 };
        return EventLog::Embedded(EmbeddedLog::open(settings).await.unwrap());
    }
    let (brokers, topic) = url.trim_start_matches("kafka://").split_once('/').expect("host:port/topic");
    let settings = KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        partitions: 8,
        replication_factor: -1,
        delivery_timeout: Duration::from_secs(30),
        linger: Duration::ZERO,
        session_timeout: Duration::from_secs(10),
        queue_max: 100,
        record_bytes_max: 1 << 20,
        topic_check_interval: Duration::from_secs(1),
        properties: Default::default(),
    };
    EventLog::Kafka(KafkaLog::open(settings).await.unwrap())
}

async fn open_store(url: &str) -> Store {
    let store = match url.strip_prefix("sqlite:") {
        Some(path) => Store::Sqlite(SqliteStore::open(&SqliteSettings { path: path.into() }).await.unwrap()),
        None => Store::Postgres(
            PostgresStore::open(&PostgresSettings {
                url: url.to_owned(),
                connections_max: 10,
                statement_timeout: Duration::from_secs(10),
            })
            .unwrap(),
        ),
    };
    store.migrate().await.unwrap();
    store
}

/// Posts a page view; all have one visitor and so one partition.
async fn view(deployment: &Deployment, server: &Server, url: &str) {
    let payload = json!({ "website": deployment.website(), "hostname": "example.com", "url": url });
    let agent = ("user-agent", integration_tests::setup::AGENT);
    let body = json!({ "type": "event", "payload": payload });
    let answer = http::post_json(&format!("{}/api/send", server.url()), &body, &[agent]).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_fold_panics_is_a_dead_letter_and_its_neighbours_are_applied_embedded() {
    let (_directory, deployment) = on_files("supervision").await;
    a_record_whose_fold_panics_is_a_dead_letter(deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_fold_panics_is_a_dead_letter_and_its_neighbours_are_applied_on_kafka_and_postgres() {
    let (_database, deployment) = on_servers("supervision").await;
    a_record_whose_fold_panics_is_a_dead_letter(deployment).await;
}

/// The panic ended the projector; after a restart the same record was read again, for ever.
async fn a_record_whose_fold_panics_is_a_dead_letter(deployment: Deployment) {
    let mut collector = deployment.start("collect").ready().await;
    for n in 0..25 {
        view(&deployment, &collector, &format!("/{}{n}", if n % 10 == 4 { "poison" } else { "good" })).await;
    }
    assert_eq!(collector.dashi.terminate().await, Some(0));

    let (log, store) = (open_log(deployment.log()).await, open_store(deployment.store()).await);
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let projector = Projector::new(log.clone(), store.clone(), settings(), metrics, progress.clone());
    let running = tokio::spawn(projector.run(stop.clone()));
    let totals = deployment.settled().await.totals;
    assert_eq!((totals.applied, totals.duplicate, totals.dead), (22, 0, 3));
    assert_eq!(progress.stuck(SOON), [], "it goes on");
    stop.cancel();
    running.await.unwrap().unwrap();
    let letters = "SELECT reason, CAST(record_offset AS bigint) FROM @dead_letter ORDER BY record_offset";
    let live = Database::open(deployment.store()).await.pairs(letters).await;
    assert_eq!(live.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [4, 14, 24], "{live:?}");
    for (reason, _) in &live {
        assert!(reason.starts_with("the fold panicked: no way to fold "), "{reason}");
        assert!(reason.contains("supervision.rs:"), "it says where: {reason}");
    }

    // A replay sets the same aside.
    let directory = TestDirectory::create("supervision");
    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let into = open_store(&again).await;
    let report =
        replay(log.clone(), into, settings(), metrics, CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!((report.applied, report.dead, report.complete), (22, 3, true));
    assert_eq!(Database::open(&again).await.pairs(letters).await, live);
    log.close().await;
    store.close().await;
}

/// Panics where the task of partition 2 says that it projects, as often as it is told.
struct Panicking {
    left: AtomicUsize,
    failed: AtomicUsize,
    over: AtomicUsize,
}

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl tracing::Subscriber for Panicking {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("dashi_projector")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let text = fields.0;
        if text.contains(FAILED) {
            assert!(text.contains("the partition's task panicked: of the test"), "{text}");
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if text.contains(OVER) {
            self.over.fetch_add(1, Ordering::Relaxed);
        }
        let is_of_two = text.contains("message=projecting") && text.contains("partition=2");
        if is_of_two
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            resume_unwind(Box::new("of the test"));
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

// On one thread, so that the subscriber is that of all tasks of this test and of no other.
#[tokio::test]
async fn a_partition_whose_task_panics_fails_alone_and_is_tried_again() {
    let directory = TestDirectory::create("supervision");
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let (log, store) = (open_log(&file("log.db")).await, open_store(&file("store.db")).await);
    let count = || AtomicUsize::new(0);
    let panicking = Arc::new(Panicking { left: AtomicUsize::new(3), failed: count(), over: count() });
    let _guard = tracing::subscriber::set_default(Arc::clone(&panicking));
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let projector = Projector::new(log.clone(), store.clone(), settings(), metrics, progress.clone());
    let running = tokio::spawn(projector.run(stop.clone()));
    eventually(SOON, "partition 2 has failed, and no other", async || {
        let stuck = progress.stuck(SOON);
        let is_two = matches!(&stuck[..], [stuck] if stuck.partition.number() == 2
            && matches!(stuck.state, PartitionState::Failed(kind) if kind.name() == "panicked"));
        if is_two { Ok(()) } else { Err(format!("{stuck:?}")) }
    })
    .await;
    eventually(SOON, "it runs", async || {
        let is_over = panicking.over.load(Ordering::Relaxed) == 1;
        if is_over && progress.stuck(SOON).is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", progress.stuck(SOON)))
        }
    })
    .await;
    assert_eq!(panicking.left.load(Ordering::Relaxed), 0, "it panicked three times");
    assert_eq!(panicking.failed.load(Ordering::Relaxed), 1, "and it was said once");
    eventually(SOON, "the note says that it is over", async || {
        let states = store.partitions().await.map_err(|error| error.to_string())?;
        let state = states.iter().find(|state| state.partition.number() == 2).unwrap().clone();
        let noted = state.last_error_kind.as_deref() == Some("panicked");
        if noted && state.last_error_over_at_ms.is_some() { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_outage_of_the_database_has_a_line_for_its_beginning_and_one_for_its_end() {
    let directory = TestDirectory::create("supervision");
    let mut postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi"));
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 4;
        plan.mode = Mode::Open { requests_per_s: 200.0 };
        plan.duration = 5 * SOON;
    });
    for outage in 1..=2 {
        let applied = deployment.status().await.unwrap().totals.applied;
        eventually(SOON, "rows appear", async || {
            Ok::<_, String>(deployment.status().await?.totals.applied > applied + 100)
        })
        .await;
        postgres.stop_immediate().await;
        until_metrics(&server, &(0..8).map(|n| state_line(n, "waiting_for_store", 1)).collect::<Vec<_>>())
            .await;
        let (_, ready) = readiness(&server).await;
        assert!(
            ready["checks"]["projector"].as_str().unwrap().contains("8 of 8 partitions do not move"),
            "{ready}"
        );
        postgres.start_again().await;
        until_metrics(&server, &(0..8).map(|n| state_line(n, "running", 1)).collect::<Vec<_>>()).await;
        let logs = server.dashi.stderr();
        for number in 0..8 {
            let of_it = |part| {
                let field = [format!("partition\":\"{number}\""), format!("partition={number} ")];
                let lines = lines_with(&logs, part).into_iter();
                lines.filter(|line| field.iter().any(|field| line.contains(field))).collect::<Vec<_>>()
            };
            let (begun, over) = (of_it(BEGUN), of_it(OVER));
            assert_eq!(
                (begun.len(), over.len()),
                (outage, outage),
                "partition {number}: {begun:#?} {over:#?}"
            );
            assert!(begun.iter().all(|line| line.contains("committing from offset")), "{begun:#?}");
        }
        assert!(lines_with(&logs, "could not be noted").is_empty(), "{logs}");
    }
    ledger.stop(load).await;
    ledger.check().await;
    eventually(SOON, "status says that it is over", async || {
        let status = deployment.status().await?;
        let open =
            status.partitions.iter().filter(|p| p.last_error.is_some() && p.last_error_over_at_ms.is_none());
        let noted =
            status.partitions.iter().filter(|p| p.last_error_kind.as_deref() == Some("waiting_for_store"));
        if open.count() == 0 && noted.count() == 8 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// Only the first error of an outage was logged, and `status` showed it long after all was applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cause_that_changes_is_logged_and_status_says_when_it_is_over() {
    let directory = TestDirectory::create("supervision");
    let database = TestDatabase::create().await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, database.url()).with("DASHI_EVENT_LOG_PARTITIONS", "1");
    deployment.register().await;
    let role = format!("{}_narrow", database.name());
    let mut admin = Database::open(database.url()).await;
    admin
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x';
             GRANT USAGE ON SCHEMA public, dashi TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public, dashi TO {role};
             REVOKE INSERT ON website_event FROM {role};"
        ))
        .await;
    let (_, rest) = database.url().split_once('@').expect("a user stands in the URL");
    let narrow = deployment.with_store(&format!("postgres://{role}:x@{rest}"));
    let mut server = narrow.start("serve").ready().await;
    let mut ledger = Ledger::new(&narrow);
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    until_metrics(&server, &[state_line(0, "waiting_for_store", 1)]).await;
    let noted = async |part: &str| {
        let shown = partition(&deployment, 0).await;
        let error = shown.last_error.clone().unwrap_or_default();
        let is_it = error.contains(part) && shown.last_error_over_at_ms.is_none();
        if is_it { Ok(()) } else { Err(format!("{shown:?}")) }
    };
    eventually(SOON, "the first cause is noted", async || {
        noted("permission denied for table website_event").await
    })
    .await;
    admin
        .execute(&format!("GRANT INSERT ON website_event TO {role}; REVOKE INSERT ON session FROM {role};"))
        .await;
    eventually(SOON, "the second cause is noted", async || {
        noted("permission denied for table session").await
    })
    .await;
    let logs = server.dashi.stderr();
    let (begun, changed) = (lines_with(&logs, BEGUN), lines_with(&logs, CHANGED));
    assert_eq!((begun.len(), changed.len()), (1, 1), "{logs}");
    assert!(begun[0].contains("table website_event") && changed[0].contains("table session"), "{logs}");
    admin.execute(&format!("GRANT INSERT ON session TO {role};")).await;
    ledger.check().await;
    eventually(SOON, "the note says that it is over", async || {
        partition(&deployment, 0).await.last_error_over_at_ms.is_some()
    })
    .await;
    eventually(SOON, "the logs, too", async || lines_with(&server.dashi.stderr(), OVER).len() == 1).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    admin.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role};")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_takes_longer_than_it_may_shows() {
    let directory = TestDirectory::create("supervision");
    let postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment =
        Deployment::new(log, postgres.url("dashi")).with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "2000");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    deployment.settled().await;
    postgres.freeze();
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    eventually(SOON, "the partition that waits for its commit shows", async || {
        let (_, ready) = readiness(&server).await;
        let stuck = &ready["partitions_not_moving"][0];
        let is_it = stuck["overdue"] == true || stuck["state"] == "waiting_for_store";
        if is_it { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    postgres.thaw();
    ledger.check().await;
    eventually(SOON, "it moves again", async || {
        let (_, ready) = readiness(&server).await;
        if ready["checks"]["projector"] == "ok" { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_waits_for_a_database_that_restarts() {
    let (_directory, deployment) = on_files("supervision").await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 3_000).await;
    deployment.settled().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let mut postgres = PostgresServer::start().await;
    postgres.create_database("again").await;
    let into = postgres.url("again");
    let slow = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "10");
    let mut replay = slow.spawn(&["replay", "--json", "--into", &into]);
    for rows in [100, 500] {
        eventually(SOON, "rows appear", async || {
            assert!(replay.is_running(), "{}", replay.logs());
            let mut database = Database::open(&into).await;
            if database.count("SELECT count(*) FROM pg_tables WHERE tablename = 'website_event'").await == 0 {
                return false;
            }
            database.count("SELECT count(*) FROM website_event").await > rows
        })
        .await;
        postgres.stop_immediate().await;
        eventually(SOON, "the replay has noticed", async || replay.stderr().contains(BEGUN)).await;
        postgres.start_again().await;
    }
    let ended = replay.wait_exit(2 * SOON).await;
    assert_eq!(ended.code(), Some(0), "{}", replay.logs());
    let report: Value = serde_json::from_str(&replay.stdout()).unwrap();
    assert_eq!((&report["applied"], &report["complete"]), (&json!(3_000), &json!(true)), "{report}");
    assert!(replay.stderr().contains(OVER), "{}", replay.stderr());
    let compared = deployment.run(&["compare", deployment.store(), &into]).await;
    assert_eq!(compared.code, Some(0), "{}{}", compared.stdout, compared.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_into_a_live_store_is_refused_however_its_url_is_spelled_embedded() {
    let (directory, deployment) = on_files("supervision").await;
    let path = directory.path().join("store.db");
    symlink(&path, directory.path().join("link.db")).unwrap();
    symlink(directory.path(), directory.path().join("here")).unwrap();
    let absolute = directory.path().display();
    let relative = format!("{}{}", "../".repeat(20), path.strip_prefix("/").unwrap().display());
    let spellings = [
        format!("sqlite:{absolute}/store.db"),
        format!("sqlite:{absolute}/./store.db"),
        format!("sqlite:{absolute}/link.db"),
        format!("sqlite:{absolute}/here/store.db"),
        format!("sqlite:{relative}"),
    ];
    a_replay_into_a_live_store_is_refused(&deployment, &spellings).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_into_a_live_store_is_refused_however_its_url_is_spelled_on_postgres() {
    let (database, deployment) = on_servers("supervision").await;
    let url = database.url();
    let other_host = match url.contains("127.0.0.1") {
        true => url.replace("127.0.0.1", "localhost"),
        false => url.replace("localhost", "127.0.0.1"),
    };
    let spellings = [
        url.to_owned(),
        other_host,
        format!("{url}?application_name=other"),
        url.replace("postgres://", "postgresql://"),
    ];
    a_replay_into_a_live_store_is_refused(&deployment, &spellings).await;
}

/// Texts of URLs were compared: a relative path let a replay take every partition from the live projector.
async fn a_replay_into_a_live_store_is_refused(deployment: &Deployment, spellings: &[String]) {
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(deployment);
    send_events(&mut ledger, &server, 50).await;
    let before = deployment.settled().await;
    for running in [true, false] {
        for spelling in spellings {
            let refused = deployment.run(&["replay", "--into", spelling]).await;
            assert_eq!(refused.code, Some(2), "{spelling}: {}{}", refused.stdout, refused.stderr);
            assert!(refused.stderr.contains("live projection"), "{spelling}: {}", refused.stderr);
            assert!(refused.stderr.contains("empty store"), "it says what to do: {}", refused.stderr);
        }
        let epochs = |status: &integration_tests::Status| {
            status.partitions.iter().map(|partition| partition.epoch).collect::<Vec<_>>()
        };
        assert_eq!(epochs(&deployment.status().await.unwrap()), epochs(&before), "nobody lost a claim");
        if running {
            send_events(&mut ledger, &server, 50).await;
            ledger.check().await;
            assert!(!server.dashi.stderr().contains("another projector took over"));
            assert_eq!(server.dashi.terminate().await, Some(0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_replay_goes_on_and_a_live_projector_takes_its_store_over() {
    let (directory, deployment) = on_files("supervision").await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 1_500).await;
    deployment.settled().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let into = format!("sqlite:{}", directory.path().join("again.db").display());
    let slow = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "5");
    let mut interrupted = slow.spawn(&["replay", "--into", &into]);
    eventually(SOON, "it has begun", async || {
        assert!(interrupted.is_running(), "{}", interrupted.logs());
        if !directory.path().join("again.db").exists() {
            return false;
        }
        let mut store = Database::open(&into).await;
        store.count("SELECT count(*) FROM sqlite_schema WHERE name = 'dashi_checkpoint'").await == 1
            && store.count("SELECT coalesce(sum(applied), 0) FROM @checkpoint").await > 20
    })
    .await;
    interrupted.kill9();
    let ended = deployment.run(&["replay", "--json", "--into", &into]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["applied"], 1_500, "{report}");
    assert!(report["records"].as_u64().unwrap() < 1_500, "it went on: {report}");
    let compared = deployment.run(&["compare", deployment.store(), &into]).await;
    assert_eq!(compared.code, Some(0), "{}{}", compared.stdout, compared.stderr);

    let taken = deployment.with_store(&into);
    taken.register().await;
    let mut server = taken.start("serve").ready().await;
    send_events(&mut ledger, &server, 50).await;
    assert_eq!(taken.settled().await.totals.applied, 1_550);
    let refused = deployment.run(&["replay", "--into", &into]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_a_live_projector_overtakes_ends_and_changes_nothing() {
    let (directory, deployment) = on_files("supervision").await;
    let mut collector = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &collector, 400).await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let log = open_log(deployment.log()).await;
    let store = open_store(&format!("sqlite:{}", directory.path().join("again.db").display())).await;
    let slow = ProjectorSettings { fold, ..settings() };
    let slow = ProjectorSettings { read_limit: ReadLimit { records_max: 1, ..slow.read_limit }, ..slow };
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let stop = CancellationToken::new();
    let replaying = tokio::spawn(replay(log.clone(), store.clone(), slow, metrics, stop, |_| {}));
    eventually(SOON, "it has begun", async || {
        let states = store.partitions().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(states.iter().map(|state| state.outcomes.applied).sum::<u64>() > 10)
    })
    .await;
    for partition in log.partitions().await.unwrap() {
        store.claim(log.id(), partition, "somebody live").await.unwrap();
    }
    let states = store.partitions().await.unwrap();
    let ended = replaying.await.unwrap();
    assert!(matches!(ended, Err(ReplayError::Fenced(_) | ReplayError::Live { .. })), "{ended:?}");
    assert_eq!(store.partitions().await.unwrap(), states, "nothing was written since the claims");
    log.close().await;
}

async fn file(path: &Path) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).busy_timeout(SOON);
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// A position counted as saved before it was: on a quiet topic there was no next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_could_not_be_saved_is_saved_later_without_new_events() {
    let (directory, deployment) = on_files("supervision").await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    // Rows wait for the store's file, so that the log's is not to be had when they are in.
    let mut store = file(&directory.path().join("store.db")).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut store).await.unwrap();
    send_events(&mut ledger, &server, 40).await;
    let mut log = file(&directory.path().join("log.db")).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut log).await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut store).await.unwrap();
    eventually(SOON, "saving has failed", async || {
        lines_with(&server.dashi.stderr(), "cannot save the projection's checkpoints").len() == 1
    })
    .await;
    sqlx::query("ROLLBACK").execute(&mut log).await.unwrap();
    ledger.check().await;
    eventually(SOON, "the log knows how far the projection is", async || {
        let saved: Vec<(u32, i64)> =
            sqlx::query_as("SELECT partition, checkpoint FROM position ORDER BY partition")
                .fetch_all(&mut log)
                .await
                .unwrap();
        let reached: Vec<(u32, i64)> =
            sqlx::query_as("SELECT partition, checkpoint FROM dashi_checkpoint ORDER BY 1")
                .fetch_all(&mut store)
                .await
                .unwrap();
        if saved == reached { Ok(()) } else { Err(format!("{saved:?} {reached:?}")) }
    })
    .await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_group_could_not_take_is_committed_when_the_broker_is_back() {
    let mut broker = KafkaServer::start().await;
    let database = TestDatabase::create().await;
    let deployment = Deployment::new(format!("kafka://{}/positions", broker.address()), database.url())
        .with("DASHI_EVENT_LOG_PARTITIONS", "2")
        // A partition rests as long after a batch: what is sent meanwhile is read as one. No part of it may be left for a
        // later read, which needs the broker.
        .with("DASHI_PROJECTOR_BATCH_INTERVAL_MS", "5000")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    send_events(&mut ledger, &server, 40).await;
    deployment.settled().await;
    let mut lock = database.connect().await;
    sqlx::query("BEGIN").execute(&mut lock).await.unwrap();
    sqlx::query("LOCK TABLE website_event IN SHARE MODE").execute(&mut lock).await.unwrap();
    send_events(&mut ledger, &server, 20).await;
    // What was read waits in a transaction; the group is away when it is committed.
    eventually(SOON, "both partitions wait for the table", async || {
        let mut database = Database::open(database.url()).await;
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'website_event'::regclass";
        database.count(waiting).await == 2
    })
    .await;
    broker.kill();
    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    eventually(SOON, "they are committed", async || {
        let mut database = Database::open(database.url()).await;
        database.count("SELECT coalesce(sum(checkpoint), 0)::bigint FROM dashi.checkpoint").await == 60
    })
    .await;
    // Longer than the group keeps a member that it does not hear.
    tokio::time::sleep(Duration::from_secs(8)).await;
    broker.start_again().await;
    let group = deployment.env("DASHI_KAFKA_GROUP").expect("it is set").to_owned();
    let address = broker.address();
    eventually(2 * SOON, "the group has the offsets", async || {
        let (group, address) = (group.clone(), address.clone());
        let committed =
            tokio::task::spawn_blocking(move || committed(&address, &group, "positions", 2)).await.unwrap();
        if committed.iter().sum::<i64>() == 60 { Ok(()) } else { Err(format!("{committed:?}")) }
    })
    .await;
    ledger.check().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// Blocks. The offsets that a group has committed, 0 where it has none.
fn committed(brokers: &str, group: &str, topic: &str, partitions: i32) -> Vec<i64> {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .create()
        .unwrap();
    let mut asked = rdkafka::TopicPartitionList::new();
    for partition in 0..partitions {
        asked.add_partition(topic, partition);
    }
    let Ok(found) = consumer.committed_offsets(asked, Duration::from_secs(5)) else { return Vec::new() };
    found.elements().iter().map(|element| element.offset().to_raw().unwrap_or(0).max(0)).collect()
}
