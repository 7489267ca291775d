//! Replays: they wait where a live projector waits, and leave a live store alone.

use std::os::unix::fs::symlink;

use dashi_domain::fold::fold;
use dashi_event_log::ReadLimit;
use dashi_projector::{ProjectorMetrics, ProjectorSettings, ReplayError, ReplayOptions, replay};
use integration_tests::log::open_log;
use integration_tests::{Database, Deployment, Ledger, PostgresServer, eventually};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{BEGUN, OVER, SOON, on_files, on_servers, open_store, send_events, settings};

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
    let replaying = tokio::spawn(replay(
        log.clone(),
        store.clone(),
        slow,
        ReplayOptions::default(),
        metrics,
        stop,
        |_| {},
    ));
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
