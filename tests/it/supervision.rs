//! A projector of which one partition, the database or the log fails: a partition fails alone, everybody can see
//! it, it goes on by itself when the cause is gone, and the logs have a line for the beginning and the end of it.

mod ends;
mod liveness;
mod outages;
mod panics;
mod partitions;
mod priority;
mod projector;
mod replays;

use std::path::Path;
use std::time::Duration;

use dashi_domain::fold::{FoldRules, fold};
use dashi_event_log::ReadLimit;
use dashi_projector::ProjectorSettings;
use dashi_store::{PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store};
use integration_tests::deployment::PartitionStatus;
use integration_tests::{Deployment, Ledger, Server, TestDatabase, TestDirectory, eventually, http, kafka};
use serde_json::Value;
use sqlx::{Connection as _, SqliteConnection};
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

fn settings() -> ProjectorSettings {
    ProjectorSettings {
        group: format!("group-{}", Uuid::now_v7()),
        owner: "the test".to_owned(),
        fold,
        rules: FoldRules {
            zone: jiff::tz::TimeZone::UTC,
            remove_trailing_slash: false,
            release: dashi_domain::umami::Release::V3_1,
            names_sessions: false,
            null_deletes: false,
        },
        parking: None,
        read_limit: ReadLimit { records_max: 1_000, bytes_max: 1 << 20, wait: Duration::from_millis(200) },
        batches_bytes_max: 8 << 20,
        batch_interval: Duration::from_millis(20),
        live_first_after: None,
        retry_wait_max: Duration::from_millis(500),
        failed_retry: Duration::from_millis(200),
        accept_new_log: false,
        tracer: Default::default(),
    }
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

async fn file(path: &Path) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).busy_timeout(SOON);
    SqliteConnection::connect_with(&options).await.unwrap()
}
