//! A partition that cannot go on fails alone: the others go on, it shows everywhere, and it recovers by itself.

use integration_tests::{Database, Deployment, Ledger, eventually, http};
use serde_json::json;
use uuid::Uuid;

use super::{
    FAILED, OVER, SOON, file, lines_with, metrics, on_files, on_servers, partition, readiness, send_events,
    state_line, until_metrics,
};

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
    let sql = format!("UPDATE partition SET low_offset = 3 WHERE partition = {number}");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut log).await.unwrap();

    // A process that only projects does not die of it either.
    let mut projector = deployment.start("project");
    eventually(SOON, "it says so", async || {
        let answer = http::get(&format!("{}/health/ready", projector.url())).await?;
        let shown = answer.status == 503 && answer.text().contains("\"kind\":\"trimmed\"");
        if shown { Ok(()) } else { Err(anyhow::anyhow!("{} {}", answer.status, answer.text())) }
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
