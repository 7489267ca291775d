//! Kafka is away, silent or slow: events go into the collector's spool, are answered 200, and are in the log when it is back,
//! each once and in order, also if the collector is killed at any moment.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use dashi_domain::position::Partition;
use dashi_event_log::{
    AppendError, EventLog, KafkaLog, KafkaSettings, NewRecord, OpenError, Spool, SpoolSettings, SpoolState,
};
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use integration_tests::log::{kafka_settings, read_partition};
use integration_tests::{
    Database, Deployment, KafkaServer, Ledger, Server, TestDatabase, TestDirectory, eventually, free_port,
    http,
};
use serde_json::Value;
use uuid::Uuid;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

const P0: Partition = Partition::new(0);

async fn readiness(server: &Server) -> Result<(u16, Value), String> {
    let answer =
        http::get(&format!("{}/health/ready", server.url())).await.map_err(|error| error.to_string())?;
    Ok((answer.status, answer.json()))
}

/// Waits until readiness shows a spool for which this holds.
async fn until_spool(server: &Server, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let seen = std::cell::RefCell::new(Value::Null);
    eventually(SOON, what, async || {
        let (_, found) = readiness(server).await?;
        let so = is_so(&found["spool"]);
        seen.replace(found.clone());
        if so { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    seen.into_inner()
}

fn records(spool: &Value) -> u64 {
    spool["records"].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_and_kills_lose_and_double_nothing_and_no_request_is_deferred_but_by_a_full_spool() {
    let mut broker = KafkaServer::start().await;
    let (database, directory) = (TestDatabase::create().await, TestDirectory::create("spool"));
    let place = |name: &str| directory.path().join(name).display().to_string();
    let deployment = Deployment::new(format!("kafka://{}/spooled", broker.address()), database.url())
        .with("DASHI_INGEST_SPOOL", "true")
        .with("DASHI_INGEST_SPOOL_DIRECTORY", &place("spool"))
        .with("DASHI_INGEST_SPOOL_AFTER_MS", "500")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
    deployment.register().await;
    let authority = format!("127.0.0.1:{}", free_port());
    let mut server = deployment.start_at("serve", &authority).ready().await;
    // Another collector, with room for some events.
    let small = deployment
        .clone()
        .with("DASHI_INGEST_SPOOL_DIRECTORY", &place("small"))
        .with("DASHI_INGEST_SPOOL_BYTES_MAX", "20000");
    let mut full = small.start("collect").ready().await;

    // A directory has one collector.
    let mut second = deployment.start("collect");
    let ended = second.dashi.wait_exit(SOON).await;
    assert!(!ended.success(), "{ended:?}");
    let said = second.dashi.stderr();
    assert!(said.contains("another collector uses the spool's directory"), "{said}");

    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&authority, |plan| {
        plan.connections = 8;
        plan.duration = 10 * SOON;
    });
    eventually(SOON, "rows appear", async || {
        Ok::<_, String>(deployment.status().await?.totals.applied > 200)
    })
    .await;

    // Silent: connections stay open, and what is on its way may still arrive.
    broker.freeze();
    let found = until_spool(&server, "events are spooled", |spool| records(spool) > 500).await;
    let (status, checks) = readiness(&server).await.unwrap();
    assert_eq!(status, 200, "it makes events durable: {checks}");
    assert_eq!(found["spool"]["state"], "spooling", "{found}");
    eventually(SOON, "readiness shows that the log is away", async || {
        let (_, checks) = readiness(&server).await?;
        if checks["checks"]["event_log"] == "ok" { Err(checks.to_string()) } else { Ok(()) }
    })
    .await;
    let metrics = http::get(&format!("{}/metrics", server.url())).await.unwrap().text();
    for shown in
        ["dashi_spool_records ", "dashi_spool_state{state=\"spooling\"} 1", "dashi_spool_spooled_total "]
    {
        assert!(metrics.contains(shown), "{shown}: {metrics}");
    }
    // A spool that is full defers.
    eventually(SOON, "the small spool is full", async || {
        let answer = ledger.send(&full.authority, &[]).await.map_err(|error| error.to_string())?;
        match answer.status {
            503 if answer.header("retry-after").is_some() => Ok(()),
            other => Err(format!("{other}: {}", answer.text())),
        }
    })
    .await;
    let (status, found) = readiness(&full).await.unwrap();
    assert_eq!((status, found["spool"]["full"].is_string()), (503, true), "{found}");
    assert!(found["spool"]["bytes"].as_u64().unwrap() <= 20_000, "{found}");
    // It stops without its log, and keeps what it has.
    assert!(records(&found["spool"]) > 0, "{found}");
    assert_eq!(full.dashi.terminate().await, Some(0));

    broker.thaw();
    until_spool(&server, "the log has all of the spool", |spool| {
        records(spool) == 0 && spool["state"] == "idle"
    })
    .await;

    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    assert_eq!(report.counts.errors.total(), 0, "{report}");

    let load = ledger.start(&authority, |plan| {
        plan.connections = 8;
        plan.duration = 10 * SOON;
    });
    // Killed while it spools: what it has is in the books of the store.
    broker.kill();
    until_spool(&server, "events are spooled", |spool| records(spool) > 500).await;
    eventually(SOON, "the store has a note of it", async || {
        let mut store = Database::open(database.url()).await;
        let noted = store.count("SELECT CAST(coalesce(sum(records), 0) AS bigint) FROM @spool").await;
        if noted > 500 { Ok(()) } else { Err(noted.to_string()) }
    })
    .await;
    server.dashi.kill9();
    broker.start_again().await;
    let status: Value = serde_json::from_str(&deployment.run(&["status", "--json"]).await.stdout).unwrap();
    assert!(status["totals"]["spooled"].as_u64().unwrap() > 500, "{status}");
    let text = deployment.run(&["status"]).await.stdout;
    assert!(text.contains("spooling, ") && text.contains(&place("spool")), "{text}");
    let audit = deployment.run(&["audit", "--json"]).await;
    let found: Value = serde_json::from_str(&audit.stdout).unwrap();
    assert_eq!((audit.code, &found["adds_up"]), (Some(0), &Value::Bool(true)), "{found}");
    assert!(found["total"]["spooled"].as_u64().unwrap() > 500, "{found}");

    // Killed while it forwards.
    for _ in 0..2 {
        server = deployment.start_at("serve", &authority).ready().await;
        broker.freeze();
        let found = until_spool(&server, "events are spooled", |spool| {
            spool["state"] == "spooling" && records(spool) > 3_000
        })
        .await;
        let before = found["spool"]["forwarded"].as_u64();
        broker.thaw();
        until_spool(&server, "events are forwarded", |spool| spool["forwarded"].as_u64() > before).await;
        server.dashi.kill9();
    }
    let mut server = deployment.start_at("serve", &authority).ready().await;
    let mut full = small.start("collect").ready().await;
    for server in [&server, &full] {
        until_spool(server, "the log has all of the spool", |spool| {
            records(spool) == 0 && spool["state"] == "idle"
        })
        .await;
    }
    ledger.stop(load).await;
    let status = ledger.check().await;
    assert!(status.totals.applied > 3_000, "{status:?}");
    for server in [&mut server, &mut full] {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
    let mut store = Database::open(database.url()).await;
    assert_eq!(store.count("SELECT count(*) FROM @spool").await, 0);
    let audit = deployment.run(&["audit", "--json"]).await;
    let found: Value = serde_json::from_str(&audit.stdout).unwrap();
    assert_eq!((audit.code, &found["total"]["spooled"]), (Some(0), &Value::from(0)), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_starts_while_kafka_is_away_and_its_events_are_applied_once() {
    let mut broker = KafkaServer::start().await;
    let (database, directory) = (TestDatabase::create().await, TestDirectory::create("spool"));
    let deployment = Deployment::new(format!("kafka://{}/away", broker.address()), database.url())
        .with("DASHI_INGEST_SPOOL", "true")
        .with("DASHI_INGEST_SPOOL_DIRECTORY", &directory.path().join("spool").display().to_string())
        .with("DASHI_INGEST_SPOOL_AFTER_MS", "500");
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    // It learns the topic's identity.
    let mut before = deployment.start("collect").ready().await;
    assert_eq!(before.dashi.terminate().await, Some(0));

    broker.kill();
    let mut server = deployment.start("collect").ready().await;
    for _ in 0..20 {
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    }
    let found = until_spool(&server, "events are spooled", |spool| records(spool) == 20).await;
    assert_eq!(found["spool"]["state"], "spooling", "{found}");
    let said = server.dashi.logs();
    assert_eq!(said.matches("no Kafka broker answers").count(), 1, "{said}");
    // Killed and started again, it has them still.
    server.dashi.kill9();
    let mut server = deployment.start("collect").ready().await;
    until_spool(&server, "the events are there", |spool| records(spool) == 20).await;
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);

    broker.start_again().await;
    until_spool(&server, "the log has all of the spool", |spool| {
        records(spool) == 0 && spool["state"] == "idle"
    })
    .await;
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    let projector = deployment.start("project").ready().await;
    let status = ledger.check().await;
    assert_eq!(status.totals.applied, 22, "{status:?}");
    drop(projector);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

fn settings(directory: &Path) -> SpoolSettings {
    SpoolSettings {
        directory: directory.to_owned(),
        bytes_max: 1 << 20,
        age_max: Duration::from_secs(3_600),
        after: Duration::from_millis(500),
        queue_max: 1_000,
        batch_max: 100,
        adopt: false,
        tracer: Default::default(),
    }
}

async fn open(broker: &KafkaServer, topic: &str) -> EventLog {
    let settings = KafkaSettings {
        delivery_timeout: Duration::from_secs(4),
        queue_max: 10_000,
        ..kafka_settings(&broker.address(), topic)
    };
    EventLog::Kafka(KafkaLog::open(settings).await.unwrap())
}

async fn spool(log: &EventLog, settings: SpoolSettings) -> Spool {
    log.open_spool(settings).await.unwrap().expect("a log on Kafka has one")
}

/// Accepts numbered events of one session, in their order, all at once.
async fn accept(log: &EventLog, numbers: std::ops::Range<u32>) {
    let mut accepting: FuturesOrdered<_> = numbers
        .map(|number| {
            let record = NewRecord { session_id: Uuid::nil(), value: number.to_string().into_bytes() };
            log.accept(vec![record])
        })
        .collect();
    while let Some(accepted) = accepting.next().await {
        accepted.into_iter().for_each(|accepted| accepted.unwrap());
    }
}

async fn until_empty(spool: &Spool) {
    eventually(SOON, "the log has all of the spool", async || {
        let status = spool.status();
        let is_empty = (status.state, status.records) == (SpoolState::Idle, 0);
        if is_empty { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// The numbers in the log, each where it is for the first time.
async fn numbers(log: &EventLog) -> Vec<u32> {
    let records = read_partition(log, P0).await;
    let mut seen = HashSet::new();
    let numbers = records.iter().map(|record| String::from_utf8_lossy(&record.value).parse().unwrap());
    numbers.filter(|number| seen.insert(*number)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_session_keep_their_order_through_outages_and_a_spool_knows_its_log() {
    let mut broker = KafkaServer::start().await;
    let directory = TestDirectory::create("spool");
    let log = open(&broker, "ordered").await;
    let spooling = spool(&log, settings(directory.path())).await;
    accept(&log, 0..100).await;
    // A busy machine may take the first answer for late.
    until_empty(&spooling).await;

    // In the middle of many: some are acknowledged, some on their way, some not sent.
    let mut next = 100;
    for round in 0..3 {
        let accepting = accept(&log, next..next + 300);
        let outage = async {
            tokio::task::yield_now().await;
            if round == 1 { broker.kill() } else { broker.freeze() }
        };
        let began = Instant::now();
        tokio::join!(accepting, outage);
        assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
        // Behind what the spool holds.
        accept(&log, next + 300..next + 350).await;
        next += 350;
        let status = spooling.status();
        assert!(status.records >= 50 && status.state == SpoolState::Spooling, "{status:?}");
        if round == 1 {
            broker.start_again().await
        } else {
            broker.thaw()
        }
        // While it forwards.
        accept(&log, next..next + 50).await;
        next += 50;
        until_empty(&spooling).await;
        accept(&log, next..next + 10).await;
        next += 10;
    }
    assert_eq!(numbers(&log).await, (0..next).collect::<Vec<_>>());

    // A record that no log would take is refused, and not spooled.
    broker.freeze();
    let large = NewRecord { session_id: Uuid::nil(), value: vec![0; 13 << 20] };
    assert!(matches!(log.accept(vec![large]).await[0], Err(AppendError::TooLarge { .. })));
    accept(&log, next..next + 20).await;
    let status = spooling.status();
    assert_eq!((status.records, status.full), (20, None), "{status:?}");
    // It closes in time without its log, and keeps what it has.
    let began = Instant::now();
    log.close_spool().await;
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
    broker.thaw();
    log.close().await;
    drop((log, spooling));

    // Records of one log are not given to another, until somebody says so.
    let other = open(&broker, "other").await;
    let apart = spool(&other, settings(directory.path())).await;
    assert_eq!(apart.status().apart.iter().map(|(_, records)| *records).collect::<Vec<_>>(), [20]);
    let taken = open(&broker, "third").await.open_spool(settings(directory.path())).await;
    assert!(matches!(taken, Err(OpenError::SpoolTaken { .. })));
    accept(&other, 0..5).await;
    until_empty(&apart).await;
    other.close().await;
    assert_eq!(numbers(&open(&broker, "other").await).await, (0..5).collect::<Vec<_>>());
    let other = open(&broker, "other").await;
    let adopting = SpoolSettings { adopt: true, ..settings(directory.path()) };
    let adopted = spool(&other, adopting).await;
    until_empty(&adopted).await;
    assert_eq!((adopted.status().forwarded, adopted.status().apart), (20, Vec::new()));
    let all: Vec<u32> = (0..5).chain(next..next + 20).collect();
    assert_eq!(numbers(&other).await, all);
    other.close().await;
    let log = open(&broker, "ordered").await;
    let emptied = spool(&log, settings(directory.path())).await;
    assert_eq!((emptied.status().records, emptied.status().apart), (0, Vec::new()));
    log.close().await;
}
