//! Outages of the database and of the log: what is logged and shown, and what is made up for afterwards.

use std::time::Duration;

use dashi_load::Mode;
use integration_tests::{
    Database, Deployment, KafkaServer, Ledger, PostgresServer, TestDatabase, TestDirectory, eventually,
};

use super::{
    BEGUN, CHANGED, OVER, SOON, file, lines_with, on_files, partition, readiness, send_events, state_line,
    until_metrics,
};

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
