//! The tables are a function of the log: folded again, in batches of any size and into either store, it gives the same
//! rows. What cannot be folded is set aside, and what was folded before changes nothing.

use std::time::Duration;

use dashi_domain::record::Record;
use dashi_event_log::{EventLog, NewRecord};
use integration_tests::log::{open_log, read_log};
use integration_tests::{
    Database, Deployment, Ledger, Server, TestDatabase, TestDirectory, eventually, http, kafka,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// Sends so many events and returns when they are in the tables.
async fn fill(deployment: &Deployment, server: &Server, events: u64) {
    let mut ledger = Ledger::new(deployment);
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 16;
        plan.sessions = 100;
        plan.requests_max = Some(events);
        plan.duration = SOON;
    });
    ledger.finish(load).await;
    assert_eq!(ledger.acknowledged() as u64, events);
    ledger.check().await;
}

/// Replays the deployment's log into a store; returns the report.
async fn replay(deployment: &Deployment, into: &str) -> Value {
    let ended = deployment.run(&["replay", "--json", "--into", into]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout));
    let shows_progress = ended.stderr.contains("{\"progress\":");
    assert_eq!(shows_progress, report["records"] != 0, "progress, unless nothing was left: {}", ended.stderr);
    report
}

/// Asserts that two stores hold the same rows.
async fn assert_equal(deployment: &Deployment, first: &str, second: &str) {
    let ended = deployment.run(&["compare", first, second]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("the stores hold the same rows"), "{}", ended.stdout);
}

/// Asserts that two stores hold the same rows, but for the counts of duplicates.
async fn assert_equal_but_for_counts(deployment: &Deployment, first: &str, second: &str) {
    let ended = deployment.run(&["compare", "--json", first, second]).await;
    let compared: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    let tables = compared["tables"].as_array().unwrap();
    let differing: Vec<_> = tables.iter().filter(|table| table["equal"] != true).collect();
    assert!(matches!(differing[..], [table] if table["table"] == "hour_count"), "{differing:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_any_size_give_the_same_rows_in_both_stores() {
    const EVENTS: u64 = 1_200;
    let directory = TestDirectory::create("replay");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    fill(&deployment, &server, EVENTS).await;
    assert_eq!(server.dashi.terminate().await, Some(0));

    for batch in ["1", "7", "2000"] {
        let deployment = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", batch);
        let database = TestDatabase::create().await;
        let file = format!("sqlite:{}", directory.path().join(format!("replayed-{batch}.db")).display());
        for into in [file.as_str(), database.url()] {
            let report = replay(&deployment, into).await;
            for (field, value) in [("applied", EVENTS), ("records", EVENTS), ("duplicate", 0), ("dead", 0)] {
                assert_eq!(report[field], value, "{field} of {report}");
            }
            assert_eq!((&report["complete"], &report["partitions"]), (&json!(true), &json!(8)), "{report}");
            assert!(report["elapsed_s"].is_number(), "{report}");
            assert_equal(&deployment, deployment.store(), into).await;
        }
        assert_equal(&deployment, &file, database.url()).await;
        // Once more: there is nothing left to do.
        assert_eq!(replay(&deployment, &file).await["records"], 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_from_kafka_into_postgres_gives_the_live_tables() {
    const EVENTS: u64 = 1_500;
    let (live, again) = (TestDatabase::create().await, TestDatabase::create().await);
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("replay"));
    let deployment = Deployment::new(log, live.url());
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    fill(&deployment, &server, EVENTS).await;
    // Beside the live projector, which goes on.
    let report = replay(&deployment, again.url()).await;
    assert_eq!((&report["applied"], &report["complete"]), (&json!(EVENTS), &json!(true)), "{report}");
    assert_equal(&deployment, live.url(), again.url()).await;
    fill_one_more(&deployment, &server).await;
    assert_eq!(replay(&deployment, again.url()).await["records"], 1);
    assert_equal(&deployment, live.url(), again.url()).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

async fn fill_one_more(deployment: &Deployment, server: &Server) {
    send(deployment, server, "event", json!({ "url": "/one-more" })).await;
    deployment.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_named_and_a_store_with_rows_is_refused() {
    let directory = TestDirectory::create("replay");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    fill(&deployment, &server, 100).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let replayed = file("replayed.db");
    replay(&deployment, &replayed).await;

    let mut database = Database::open(&replayed).await;
    let rows = database.pairs("SELECT event_id, event_type FROM website_event ORDER BY event_id").await;
    let changed = &rows[rows.len() / 2].0;
    let change = format!("UPDATE website_event SET page_title = 'changed' WHERE event_id = '{changed}'");
    database.execute(&change).await;
    let compared = deployment.run(&["compare", deployment.store(), &replayed]).await;
    assert_eq!(compared.code, Some(3), "{}", compared.stderr);
    let lines: Vec<&str> = compared.stdout.lines().collect();
    let differing: Vec<_> = lines.iter().filter(|line| line.contains("DIFFER")).collect();
    assert!(matches!(differing[..], [line] if line.starts_with("website_event ")), "{}", compared.stdout);
    assert!(compared.stdout.contains(changed.as_str()), "{}", compared.stdout);
    assert!(compared.stdout.contains("page_title: changed"), "{}", compared.stdout);

    let removed = &rows[0].0;
    database.execute(&format!("DELETE FROM website_event WHERE event_id = '{removed}'")).await;
    let compared = deployment.run(&["compare", "--json", deployment.store(), &replayed]).await;
    assert_eq!(compared.code, Some(3), "{}", compared.stderr);
    let shown: Value = serde_json::from_str(&compared.stdout).unwrap();
    assert_eq!(shown["equal"], false);
    let tables = shown["tables"].as_array().unwrap();
    let differing: Vec<_> = tables.iter().filter(|table| table["equal"] == false).collect();
    assert_eq!(differing.len(), 1, "{shown}");
    assert_eq!(differing[0]["table"], "website_event");
    assert_eq!(differing[0]["rows"], json!([rows.len(), rows.len() - 1]));
    let keys: Vec<_> =
        differing[0]["differences"].as_array().unwrap().iter().map(|row| row["key"].clone()).collect();
    assert_eq!(keys, [removed.as_str(), changed.as_str()]);

    // Another log's rows are no beginning of this one's replay; nor is the live store a place for it.
    let other = Deployment::new(file("other-log.db"), file("other-store.db"));
    other.register().await;
    let mut server = other.start("serve").ready().await;
    fill(&other, &server, 10).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let refused = other.run(&["replay", "--into", &replayed]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("not empty"), "{}", refused.stderr);
    let refused = other.run(&["replay", "--into", other.store()]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_is_a_dead_letter_and_its_neighbours_are_applied_embedded() {
    let directory = TestDirectory::create("replay");
    what_is_no_event_is_a_dead_letter(&Deployment::embedded(&directory)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_is_a_dead_letter_and_its_neighbours_are_applied_on_kafka_and_postgres() {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("replay"));
    what_is_no_event_is_a_dead_letter(&Deployment::new(log, database.url())).await;
}

async fn what_is_no_event_is_a_dead_letter(deployment: &Deployment) {
    deployment.register().await;
    let mut collector = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(deployment);
    // All of one visitor, and so of one partition: good ones around each bad one, in one batch.
    let answer = ledger.send(&collector.authority, &[]).await.unwrap().json();
    let session_id: Uuid = answer["sessionId"].as_str().unwrap().parse().unwrap();
    let log = open_log(deployment.log()).await;
    let good = read_log(&log).await.remove(0).value;
    let unknown = String::from_utf8(good).unwrap().replace(r#""v":1"#, r#""v":7"#);
    for value in [b"\xff\x00 garbage".to_vec(), unknown.into_bytes(), Vec::new()] {
        append(&log, session_id, value).await;
        assert_eq!(ledger.send(&collector.authority, &[]).await.unwrap().status, 200);
    }
    assert_eq!(collector.dashi.terminate().await, Some(0));

    let mut projector = deployment.start("project").ready().await;
    ledger.expect_dead(3);
    let status = ledger.check().await;
    assert_eq!(status.totals.applied, 4);
    let concerned: Vec<_> = status.partitions.iter().filter(|partition| partition.dead > 0).collect();
    let [partition] = concerned[..] else { panic!("{status:?}") };
    let number = partition.partition as usize;
    // Noted after the transaction, so not at once.
    eventually(SOON, "the last dead letter is the last error", async || {
        let last_error =
            deployment.status().await?.partitions.swap_remove(number).last_error.unwrap_or_default();
        let noted = last_error.contains("the record at offset 5 is a dead letter");
        if noted { Ok(()) } else { Err(last_error) }
    })
    .await;
    let mut letters = Database::open(deployment.store())
        .await
        .pairs("SELECT reason, CAST(record_offset AS bigint) FROM @dead_letter ORDER BY record_offset")
        .await;
    assert_eq!(letters.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [1, 3, 5], "{letters:?}");
    let reasons =
        ["not a JSON object", "format version 7, this reader knows version 1 only", "not a JSON object"];
    for ((reason, _), expected) in letters.drain(..).zip(reasons) {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(projector.dashi.terminate().await, Some(0));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_record_changes_nothing_embedded() {
    let directory = TestDirectory::create("replay");
    a_repeated_record_changes_nothing(&Deployment::embedded(&directory)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_record_changes_nothing_on_kafka_and_postgres() {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("replay"));
    a_repeated_record_changes_nothing(&Deployment::new(log, database.url())).await;
}

async fn a_repeated_record_changes_nothing(deployment: &Deployment) {
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    // The second identify overwrites the first, whose repetition must not come through.
    for (kind, payload) in [
        ("event", json!({ "url": "/first", "title": "first" })),
        ("identify", json!({ "data": { "plan": "free", "only": "first" } })),
        ("event", json!({ "url": "/buy", "name": "buy", "data": { "revenue": 5, "currency": "EUR" } })),
        ("identify", json!({ "id": "somebody", "data": { "plan": "team" } })),
        ("performance", json!({ "url": "/first", "lcp": 1200 })),
    ] {
        send(deployment, &server, kind, payload).await;
    }
    assert_eq!(deployment.settled().await.totals.applied, 5);
    assert_eq!(server.dashi.terminate().await, Some(0));
    let directory = TestDirectory::create("replay");
    let before = format!("sqlite:{}", directory.path().join("before.db").display());
    replay(deployment, &before).await;

    let log = open_log(deployment.log()).await;
    let originals = read_log(&log).await;
    let mut duplicates = 0;
    // All repetitions in one batch, each in one of its own, and again with the originals' batches long gone.
    for batch in ["2000", "1", "3"] {
        for _ in 0..2 {
            for record in &originals {
                let session_id = session_of(record);
                append(&log, session_id, record.value.clone()).await;
                duplicates += 1;
            }
        }
        let deployment = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", batch);
        // A group of its own: this one starts at once, and the checkpoints are the store's.
        let deployment = deployment.with("DASHI_KAFKA_GROUP", &format!("again-{}", Uuid::now_v7()));
        let mut projector = deployment.start("project").ready().await;
        let totals = deployment.settled().await.totals;
        assert_eq!((totals.applied, totals.duplicate, totals.dead), (5, duplicates, 0), "batches of {batch}");
        assert_equal_but_for_counts(&deployment, deployment.store(), &before).await;
        assert_eq!(projector.dashi.terminate().await, Some(0));
    }
    log.close().await;

    // A replay folds originals and repetitions together.
    let after = format!("sqlite:{}", directory.path().join("after.db").display());
    let report = replay(deployment, &after).await;
    assert_eq!((&report["applied"], &report["duplicate"]), (&json!(5), &json!(duplicates)), "{report}");
    assert_equal_but_for_counts(deployment, &before, &after).await;
}

/// Posts an event; it must be taken.
async fn send(deployment: &Deployment, server: &Server, kind: &str, mut payload: Value) {
    payload["website"] = deployment.website().into();
    payload["hostname"] = "example.com".into();
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let body = json!({ "type": kind, "payload": payload });
    let url = format!("{}/api/send", server.url());
    let answer = http::post_json(&url, &body, &[("user-agent", agent)]).await.unwrap();
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
}

async fn append(log: &EventLog, session_id: Uuid, value: Vec<u8>) {
    let appended = log.append(vec![NewRecord { session_id, value }]).await;
    assert!(matches!(appended[..], [Ok(_)]), "{appended:?}");
}

fn session_of(record: &Record) -> Uuid {
    let value: Value = serde_json::from_slice(&record.value).unwrap();
    value["session"].as_str().unwrap().parse().unwrap()
}
