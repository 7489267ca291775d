//! The same misfortunes under a running collector and projector: no record is skipped, the sums of `dashi status` agree,
//! and one command lets the projection continue.

use std::time::Duration;

use integration_tests::log::{LogCopy, copy};
use integration_tests::setup::AGENT;
use integration_tests::{
    Database, Deployment, KafkaServer, Server, Status, TestDatabase, TestDirectory, eventually, http, kafka,
};
use serde_json::{Value, json};

use super::{Foreign, SOON};

/// How long a process may take to start, and a projector to get its partitions: the group's client looks at the topic every 30 s,
/// and one look may fall between a topic's deletion and its creation.
const STARTED: Duration = Duration::from_secs(120);

/// A deployment on a topic of the shared broker and a database, that looks at the topic often.
async fn on_topic(brokers: &str, topic: &str) -> (Deployment, TestDatabase) {
    let database = TestDatabase::create().await;
    let deployment = Deployment::new(format!("kafka://{brokers}/{topic}"), database.url());
    let deployment = quick(deployment);
    deployment.register().await;
    (deployment, database)
}

fn quick(deployment: Deployment) -> Deployment {
    deployment
        .with("DASHI_EVENT_LOG_PARTITIONS", "1")
        .with("DASHI_KAFKA_TOPIC_CHECK_MS", "300")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000")
        .with("DASHI_PROJECTOR_BATCH_INTERVAL_MS", "50")
        .with("DASHI_PROJECTOR_FAILED_RETRY_MS", "500")
        .with("DASHI_PROJECTOR_FAILED_PARTITION_UNREADY", "true")
}

/// Sends a page view of one visitor; returns the status.
async fn send(server: &Server, deployment: &Deployment, path: &str) -> u16 {
    let body = json!({ "type": "event", "payload": {
        "website": deployment.website(), "hostname": "example.com", "url": path } });
    let answer =
        http::post_json(&format!("{}/api/send", server.url()), &body, &[("User-Agent", AGENT)]).await;
    answer.expect("the collector answers").status
}

async fn send_all(server: &Server, deployment: &Deployment, prefix: &str, count: u32) {
    for n in 1..=count {
        assert_eq!(send(server, deployment, &format!("{prefix}{n}")).await, 200);
    }
}

/// Paths of page views that begin so.
async fn rows(deployment: &Deployment, prefix: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM website_event WHERE url_path LIKE '{prefix}%'");
    Database::open(deployment.store()).await.count(&sql).await
}

async fn until_rows(deployment: &Deployment, prefix: &str, count: i64) {
    eventually(STARTED, "the events are rows", async || {
        let found = rows(deployment, prefix).await;
        if found == count { Ok(()) } else { Err(format!("{found} of {count}")) }
    })
    .await;
}

/// The answer of /health/ready: the status, and each check in words.
async fn readiness(server: &Server) -> (u16, Value) {
    match http::get(&format!("{}/health/ready", server.url())).await {
        Ok(answer) => (answer.status, answer.json()["checks"].clone()),
        Err(_) => (0, Value::Null),
    }
}

async fn until_readiness(server: &Server, status: u16, says: &str) {
    eventually(STARTED, "readiness says it", async || {
        let found = readiness(server).await;
        if found.0 == status && found.1.to_string().contains(says) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

fn assert_balanced(status: &Status) {
    let totals = &status.totals;
    let accounted = totals.applied + totals.duplicate + totals.dead + totals.missing + totals.markers;
    let expected = totals.in_log + totals.removed + totals.rewound;
    assert_eq!(accounted + totals.lag_records, expected, "{totals:?}");
    assert_eq!(totals.unaccounted, 0, "{totals:?}");
}

/// One number of `/metrics`.
async fn metric(server: &Server, name: &str) -> Option<f64> {
    let text = http::get(&format!("{}/metrics", server.url())).await.ok()?.text();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_is_refused_by_collector_and_projector_until_the_command_is_run() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("compact"));
    kafka::create_topic(&brokers, &topic, 1, &[("cleanup.policy", "compact")]).await;
    let (deployment, _database) = on_topic(&brokers, &topic).await;
    let (collector, projector) = (deployment.start("collect"), deployment.start("project"));
    let command = format!("kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics");
    for server in [&collector, &projector] {
        until_readiness(server, 503, &command).await;
    }
    assert_eq!(send(&collector, &deployment, "/refused").await, 503);
    let gauge = "dashi_event_log_topic_concern{concern=\"cleanup_policy\"}";
    assert_eq!(metric(&collector, gauge).await, Some(1.0));
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(shown.contains("refused: ") && shown.contains(&command), "{shown}");

    kafka::configure(&brokers, &topic, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]).await;
    for server in [&collector, &projector] {
        until_readiness(server, 200, "").await;
    }
    assert_eq!(metric(&collector, gauge).await, Some(0.0));
    assert_eq!(send(&collector, &deployment, "/taken").await, 200);
    until_rows(&deployment, "/", 1).await;

    kafka::configure(&brokers, &topic, &[("cleanup.policy", "compact")]).await;
    until_readiness(&collector, 503, &command).await;
    assert_eq!(send(&collector, &deployment, "/refused").await, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_are_in_status_metrics_and_once_in_the_logs() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("warned"));
    kafka::create_topic(&brokers, &topic, 1, &[("retention.ms", "604800000")]).await;
    let (deployment, _database) = on_topic(&brokers, &topic).await;
    let collector = deployment.start("collect").ready().await;
    assert_eq!(send(&collector, &deployment, "/a").await, 200, "a warning stops nothing");
    assert_eq!(
        metric(&collector, "dashi_event_log_topic_concern{concern=\"retention_ms\"}").await,
        Some(1.0)
    );
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(shown.contains("warning: ") && shown.contains("retention.ms=604800000 (7 days)"), "{shown}");
    let shown: Value = serde_json::from_str(&deployment.run(&["status", "--json"]).await.stdout).unwrap();
    let concerns: Vec<&str> =
        shown["topic"].as_array().unwrap().iter().map(|note| note["concern"].as_str().unwrap()).collect();
    assert!(concerns.contains(&"retention_ms") && concerns.contains(&"replication_factor"), "{shown}");
    // Looked at several times since then.
    kafka::configure(&brokers, &topic, &[("retention.ms", "-1")]).await;
    eventually(SOON, "the logs say that it is corrected", async || {
        collector.dashi.logs().contains("corrected")
    })
    .await;
    let logs = collector.dashi.logs();
    assert_eq!(logs.matches("retention.ms=604800000").count(), 1, "{logs}");
}

/// Deleted and created again under a collector and a projector, with more records than the checkpoint and with fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_under_running_processes_loses_no_event() {
    for (partitions, new_partitions, new) in [(1, 1, 12), (1, 1, 2), (3, 1, 5), (1, 3, 5)] {
        let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("again"));
        kafka::create_topic(&brokers, &topic, partitions, &[("retention.ms", "-1")]).await;
        let (deployment, _database) = on_topic(&brokers, &topic).await;
        let collector = deployment.start("collect").ready().await;
        let projector = deployment.start("project").ready().await;
        send_all(&collector, &deployment, "/old/", 3).await;
        until_rows(&deployment, "/old/", 3).await;
        kafka::delete_topic(&brokers, &topic).await;
        kafka::create_topic(&brokers, &topic, new_partitions, &[("retention.ms", "-1")]).await;
        for n in 1..=new {
            eventually(SOON, "the collector goes on", async || {
                send(&collector, &deployment, &format!("/new/{n}")).await == 200
            })
            .await;
        }
        until_readiness(&collector, 200, "deleted and created again").await;
        until_readiness(&projector, 503, "deleted and created again").await;
        assert_eq!(
            rows(&deployment, "/new/").await,
            0,
            "nothing of the new log under the old one's checkpoint"
        );
        let said = projector.dashi.logs();
        assert!(said.contains("--accept-new-log"), "{said}");
        let shown = deployment.run(&["status"]).await.stdout;
        assert!(shown.contains("the store holds the projection of another log"), "{shown}");
        drop(projector);

        let args = ["project", "--accept-new-log", "--log", deployment.log(), "--store", deployment.store()];
        let address = format!("127.0.0.1:{}", integration_tests::free_port());
        let accepting = deployment.spawn(&[&args[..2], &["--listen", &address]].concat());
        until_rows(&deployment, "/new/", new).await;
        let status = deployment.settled().await;
        assert_balanced(&status);
        assert_eq!((status.totals.applied, status.totals.missing), (new as u64, 0));
        drop(accepting);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_retention_gap_one_command_goes_on_and_notes_it_under_a_running_projector() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("retention"));
    let (deployment, _database) = on_topic(&brokers, &topic).await;
    let collector = deployment.start("collect").ready().await;
    let projector = deployment.start("project").ready().await;
    send_all(&collector, &deployment, "/a/", 2).await;
    until_rows(&deployment, "/a/", 2).await;
    drop(projector);
    send_all(&collector, &deployment, "/b/", 40).await;
    kafka::delete_records(&brokers, &topic, 0, 15).await;
    let projector = deployment.start("project");
    until_readiness(&projector, 503, "offset 2").await;
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(shown.contains("offsets 2 to 14 (13 records) were removed"), "{shown}");
    assert!(shown.contains("not applied yet 27") && shown.contains("dashi accept-lost"), "{shown}");

    let accepted = deployment.run(&["accept-lost"]).await;
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    let expected = "partition 0: offsets 2 to 14 were removed before they were projected; 13 records are recorded as \
                    missing, and the projection goes on at offset 15\n";
    assert_eq!(accepted.stdout, expected);
    until_rows(&deployment, "/b/", 27).await;
    until_readiness(&projector, 200, "").await;
    let status = deployment.settled().await;
    assert_balanced(&status);
    assert_eq!((status.totals.applied, status.totals.missing, status.totals.removed), (29, 13, 15));
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(shown.contains("partition 0: offsets 2 to 14: 13 records removed from the log"), "{shown}");
    let again = deployment.run(&["accept-lost"]).await;
    assert_eq!((again.code, again.stdout.contains("nothing is lost")), (Some(0), true), "{}", again.stdout);
}

/// An older copy of the log, which ends before the checkpoint, and one that has grown past it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_embedded_log_is_noticed_and_one_command_goes_on() {
    for grown in [0, 9] {
        let directory = TestDirectory::create("restored");
        let deployment = quick(Deployment::embedded(&directory));
        deployment.register().await;
        let mut server = deployment.start("serve").ready().await;
        send_all(&server, &deployment, "/a/", 3).await;
        until_rows(&deployment, "/a/", 3).await;
        server.dashi.terminate().await;
        let older = LogCopy::take(deployment.log());
        let mut server = deployment.start("serve").ready().await;
        send_all(&server, &deployment, "/b/", 4).await;
        until_rows(&deployment, "/b/", 4).await;
        server.dashi.terminate().await;
        older.restore();

        if grown > 0 {
            // A collector alone fills the offsets before any projector looks.
            let mut collector = deployment.start("collect").ready().await;
            send_all(&collector, &deployment, "/c/", grown).await;
            collector.dashi.terminate().await;
        }
        let server = deployment.start("serve");
        let says = if grown > 0 { "another record before offset 7" } else { "ends at offset 3" };
        eventually(STARTED, "it is noticed", async || {
            let found = readiness(&server).await.1.to_string();
            if found.contains(says) { Ok(()) } else { Err(found) }
        })
        .await;
        assert_eq!(send(&server, &deployment, "/d/1").await, 200, "the collector goes on");
        let accepted = deployment.run(&["accept-lost"]).await;
        assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
        assert!(accepted.stdout.contains("read again from offset 0"), "{}", accepted.stdout);
        until_rows(&deployment, "/d/", 1).await;
        until_rows(&deployment, "/c/", grown.into()).await;
        let status = deployment.settled().await;
        assert_balanced(&status);
        let totals = status.totals;
        assert_eq!((totals.applied, totals.duplicate), (7 + u64::from(grown) + 1, 3), "{totals:?}");
        assert_eq!((totals.rewound, totals.missing), (7, 0), "{totals:?}");
        assert_eq!(rows(&deployment, "/b/").await, 4, "what was applied stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_broker_is_noticed_under_running_processes_and_one_command_goes_on() {
    let mut server = KafkaServer::start().await;
    let (deployment, _database) = on_topic(&server.address(), "events").await;
    let collector = deployment.start("collect").ready().await;
    let projector = deployment.start("project").ready().await;
    send_all(&collector, &deployment, "/a/", 3).await;
    until_rows(&deployment, "/a/", 3).await;
    server.stop().await;
    let backup = TestDirectory::create("broker");
    copy(&server.data(), &backup.path().join("data"));
    server.start_again().await;
    for n in 1..=4 {
        eventually(STARTED, "the collector goes on", async || {
            send(&collector, &deployment, &format!("/b/{n}")).await == 200
        })
        .await;
    }
    until_rows(&deployment, "/b/", 4).await;
    server.stop().await;
    std::fs::remove_dir_all(server.data()).unwrap();
    copy(&backup.path().join("data"), &server.data());
    server.start_again().await;
    until_readiness(&projector, 503, "ends at offset 3").await;
    let accepted = deployment.run(&["accept-lost"]).await;
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    eventually(STARTED, "the collector goes on", async || send(&collector, &deployment, "/c/1").await == 200)
        .await;
    until_rows(&deployment, "/c/", 1).await;
    let status = deployment.settled().await;
    assert_balanced(&status);
    assert_eq!((status.totals.applied, status.totals.rewound), (8, 7), "{:?}", status.totals);
}

/// Compaction of a topic that held events already: what it removed is counted, with its places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_compaction_removed_is_in_the_books() {
    let server = KafkaServer::start_with("log.cleaner.backoff.ms=200").await;
    let (brokers, topic) = (server.address(), "events");
    let (deployment, _database) = on_topic(&brokers, topic).await;
    let mut collector = deployment.start("collect").ready().await;
    send_all(&collector, &deployment, "/a/", 20).await;
    collector.dashi.terminate().await;
    let compact = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "1000"),
        ("max.compaction.lag.ms", "1000"),
        ("min.cleanable.dirty.ratio", "0.01"),
    ];
    kafka::configure(&brokers, topic, &compact).await;
    // A segment is closed by a record that comes after its time.
    let foreign = Foreign::plain(&brokers, topic);
    let mut sent = 0;
    eventually(STARTED, "the log is compacted", async || {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        foreign.send(&["another"]);
        sent += 1;
        let (first, _) = super::first_offset(&brokers, topic);
        if first == 19 { Ok(()) } else { Err(format!("{first}")) }
    })
    .await;
    kafka::configure(&brokers, topic, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]).await;
    let projector = deployment.start("project").ready().await;
    until_rows(&deployment, "/a/", 1).await;
    let status = deployment.settled().await;
    assert_balanced(&status);
    let totals = status.totals;
    assert_eq!((totals.in_log, totals.applied), (20 + sent, 1), "{totals:?}");
    assert!(totals.missing >= 19 && totals.missing + totals.dead == 19 + sent, "{totals:?}");
    let shown = deployment.run(&["status"]).await.stdout;
    assert!(shown.contains("partition 0: offsets 0 to 18: 19 records not in the log"), "{shown}");
    drop(projector);
}

/// A foreign program's transactions: its markers are no events, at the end of a partition neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_of_transactions_are_neither_missing_nor_lag() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("markers"));
    let (deployment, _database) = on_topic(&brokers, &topic).await;
    let collector = deployment.start("collect").ready().await;
    let projector = deployment.start("project").ready().await;
    send_all(&collector, &deployment, "/a/", 2).await; // 0, 1
    let foreign = Foreign::transactional(&brokers, &topic);
    foreign.transaction(&["k"], true, 4).await; // 2, marker 3
    foreign.transaction(&["k", "k"], false, 7).await; // 4, 5 aborted, marker 6
    send_all(&collector, &deployment, "/b/", 1).await; // 7
    foreign.transaction(&["k"], false, 10).await; // 8 aborted, marker 9
    until_rows(&deployment, "/b/", 1).await;
    let status = deployment.settled().await;
    assert_balanced(&status);
    let totals = status.totals;
    assert_eq!((totals.applied, totals.dead, totals.missing, totals.markers), (3, 1, 0, 6), "{totals:?}");
    drop(projector);
}
