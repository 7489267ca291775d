//! A log that grows while events come in: sessions that move keep their order, whichever process is killed or stands still.

mod visitors;

use std::collections::BTreeMap;
use std::time::Duration;

use dashi_domain::layout::{Growth, Layout};
use dashi_domain::partitioner::partition_for;
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::EventLog;
use dashi_store::{AppenderState, PostgresSettings, PostgresStore, Store};
use integration_tests::dashi::Ended;
use integration_tests::{
    Deployment, Running, Server, Setup, TestDatabase, TestDirectory, eventually, http, kafka, on_both_setups,
};
use serde_json::Value;

use self::visitors::{Visitors, assert_in_order, barriers, last_values};

on_both_setups!(sessions_that_move_keep_order_and_state,);

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(120);

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{} {}", ended.stdout, ended.stderr))
}

async fn grow(running: &Running, to: u32) -> Value {
    let grown = running.run(&["partitions", "grow", "--to", &to.to_string(), "--json"]).await;
    assert_eq!(grown.code, Some(0), "{}{}", grown.stdout, grown.stderr);
    let grown = json(&grown);
    assert_eq!((&grown["grown"], &grown["to"]), (&Value::Bool(true), &Value::from(to)), "{grown}");
    grown
}

async fn sessions_that_move_keep_order_and_state(setup: Setup) {
    let running = setup.start(&[("DASHI_EVENT_LOG_PARTITIONS", "2")]).await;
    let website = integration_tests::setup::WEBSITE;
    let mut visitors = Visitors::start(website, &[running.authority().to_owned()]);
    visitors.until_sent(3).await;
    let refused = running.run(&["partitions", "grow", "--to", "1"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    grow(&running, 3).await;
    visitors.until_sent(3).await;
    // A partition was an old one and gets sessions at once: 3 is no multiple of 2, nor 8 of 3.
    let grown = grow(&running, 8).await;
    assert_eq!(grown["from"], 3);
    visitors.until_sent(3).await;
    let again = running.run(&["partitions", "grow", "--to", "8"]).await;
    assert!(again.code == Some(0) && again.stdout.contains("8 partitions already"), "{again:?}");
    let sent = visitors.stop().await;

    let log = running.open_log().await;
    assert_in_order(&log, &[2, 3, 8], &sent).await;
    log.close().await;
    running.applied(sent.values().sum::<u64>() + 3 + 8).await;
    assert_eq!(last_values(running.store()).await, sent);
    let shown = json(&running.run(&["partitions", "--json"]).await);
    assert_eq!((&shown["partitions"], &shown["in_log"]), (&Value::from(8), &Value::from(8)), "{shown}");
    assert_eq!(shown["layouts"].as_array().map(Vec::len), Some(3), "{shown}");
    let waits =
        |partition: &Value| partition["waits_for"].as_array().is_some_and(|others| !others.is_empty());
    assert!(!shown["of_partitions"].as_array().expect("a list").iter().any(waits), "{shown}");
    let audit = running.run(&["audit", "--json"]).await;
    assert_eq!((audit.code, &json(&audit)["adds_up"]), (Some(0), &Value::Bool(true)), "{}", audit.stdout);
    assert_eq!(
        running.complaints(),
        [""; 0],
        "the collector knew of each growth before the topic had its partitions"
    );
    running.assert_replay_gives_the_same_rows().await;
}

/// A deployment, and what it lies on.
async fn deployment(setup: Setup) -> (Deployment, TestDirectory, Option<TestDatabase>) {
    let directory = TestDirectory::create("partitions");
    let (deployment, database) = match setup {
        Setup::KafkaAndPostgres => {
            let database = TestDatabase::create().await;
            let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("partitions"));
            (Deployment::new(log, database.url()), Some(database))
        }
        _ => (Deployment::embedded(&directory), None),
    };
    let deployment = deployment
        .with("DASHI_EVENT_LOG_PARTITIONS", "2")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000")
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "3");
    deployment.register().await;
    (deployment, directory, database)
}

fn authority(server: &Server) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

async fn assert_replays(deployment: &Deployment, directory: &TestDirectory, jobs: &str) {
    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    let replayed = deployment.run(&["replay", "--into", &again, "--jobs", jobs]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    let compared = deployment.run(&["compare", deployment.store(), &again]).await;
    assert_eq!(compared.code, Some(0), "{}", compared.stdout);
}

async fn a_projector_that_comes_later_waits_at_barriers(setup: Setup) {
    let (deployment, directory, _database) = deployment(setup).await;
    let collector = deployment.start("collect").ready().await;
    let mut visitors = Visitors::start(deployment.website(), &[authority(&collector)]);
    visitors.until_sent(6).await;
    for to in ["3", "5"] {
        let grown = deployment.run(&["partitions", "grow", "--to", to, "--json"]).await;
        assert_eq!(grown.code, Some(0), "{}", grown.stderr);
        visitors.until_sent(3).await;
    }
    let sent = visitors.stop().await;
    // A replay with one job at a time comes to each barrier before the partitions that it waits for.
    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    let replayed = deployment.run(&["replay", "--into", &again, "--jobs", "1"]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(last_values(&again).await, sent);
    for _ in 0..2 {
        let mut projector = deployment.start("project");
        let reached = Duration::from_secs(2);
        let _ = tokio::time::timeout(reached, deployment.settled()).await;
        projector.dashi.kill9();
    }
    let _projector = deployment.start("project");
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, sent);
    let compared = deployment.run(&["compare", deployment.store(), &again]).await;
    assert_eq!(compared.code, Some(0), "{}", compared.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_comes_later_waits_at_barriers_embedded() {
    a_projector_that_comes_later_waits_at_barriers(Setup::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_comes_later_waits_at_barriers_on_kafka_and_postgres() {
    a_projector_that_comes_later_waits_at_barriers(Setup::KafkaAndPostgres).await;
}

/// The command is killed at moments of all of its steps, and so are a collector and a projector.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growth_is_finished_whoever_is_killed() {
    let (deployment, directory, _database) = deployment(Setup::KafkaAndPostgres).await;
    let mut collectors =
        [deployment.start("collect").ready().await, deployment.start("collect").ready().await];
    let mut projector = deployment.start("project");
    let authorities: Vec<String> = collectors.iter().map(authority).collect();
    let mut visitors = Visitors::start(deployment.website(), &authorities);
    visitors.until_sent(2).await;
    let mut layouts = vec![2];
    for (to, after_ms) in [(4, 0), (6, 400), (7, 900), (9, 1_600)] {
        let mut command = deployment.spawn(&["partitions", "grow", "--to", &to.to_string()]);
        // The moment is random on purpose.
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        command.kill9();
        match to {
            6 => {
                collectors[0].dashi.kill9();
                collectors[0] = deployment.start_at("collect", &authorities[0]).ready().await;
            }
            7 => {
                projector.dashi.kill9();
                projector = deployment.start("project");
            }
            _ => {}
        }
        eventually(COMMAND, "the log has grown", async || {
            let grown = deployment.run(&["partitions", "grow", "--to", &to.to_string()]).await;
            if grown.code == Some(0) { Ok(()) } else { Err(format!("{}{}", grown.stdout, grown.stderr)) }
        })
        .await;
        layouts.push(to);
        visitors.until_sent(2).await;
    }
    let sent = visitors.stop().await;
    let log = integration_tests::log::open_log(deployment.log()).await;
    assert_in_order(&log, &layouts, &sent).await;
    log.close().await;
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, sent);
    assert_replays(&deployment, &directory, "2").await;
    drop(projector);
}

/// A growth waits for a collector that stands still, is given up in time, and nobody is refused by a collector with a spool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_is_named_and_nothing_changes() {
    let (deployment, directory, _database) = deployment(Setup::KafkaAndPostgres).await;
    let spool = directory.path().join("spool").display().to_string();
    let spooling =
        deployment.clone().with("DASHI_INGEST_SPOOL", "true").with("DASHI_INGEST_SPOOL_DIRECTORY", &spool);
    let collector = spooling.start("collect").ready().await;
    let mut other = deployment.start("collect").ready().await;
    let _projector = deployment.start("project");
    let mut visitors = Visitors::start(deployment.website(), &[authority(&collector)]);
    visitors.until_sent(2).await;
    other.dashi.sigstop();
    let grow = async |more: &[&str]| {
        let args = [&["partitions", "grow", "--to", "4", "--wait", "3", "--json"], more].concat();
        deployment.run(&args).await
    };
    let stopped = authority(&other);
    let shown = async || {
        // The console of the collector that goes on shows the one that does not.
        eventually(SOON, "the console shows the growth", async || {
            let status = http::get(&format!("{}/console/data/status", collector.url())).await;
            let layout = status.map_err(|error| error.to_string())?.json()["layout"].clone();
            let growth = &layout["growth"];
            let awaits = growth["awaits"][0].as_str().is_some_and(|name| name.ends_with(&stopped));
            let numbers = ["to", "processes"].map(|name| growth[name].as_u64());
            if growth["state"] == "draining"
                && awaits
                && numbers == [4, 2].map(Some)
                && layout["partitions"] == 2
            {
                Ok(())
            } else {
                Err(layout.to_string())
            }
        })
        .await;
    };
    let watched = ["partitions", "grow", "--to", "4", "--wait", "15", "--json"];
    let (given_up, ()) = tokio::join!(deployment.run(&watched), shown());
    assert_eq!(given_up.code, Some(4), "{}{}", given_up.stdout, given_up.stderr);
    let report = json(&given_up);
    let name = report["not_acknowledged"][0]["name"].as_str().expect("a name").to_owned();
    assert!(name.ends_with(&authority(&other)), "{report}");
    assert_eq!((&report["grown"], &report["to"]), (&Value::Bool(false), &Value::from(2)), "{report}");
    visitors.until_sent(2).await;
    other.dashi.kill9();
    assert_eq!(grow(&[]).await.code, Some(4), "it may still be there");
    let grown = grow(&["--without", &name]).await;
    assert_eq!(grown.code, Some(0), "{}{}", grown.stdout, grown.stderr);
    visitors.until_sent(2).await;
    assert_eq!(visitors.refused(), 0, "the spool takes what waits");
    let sent = visitors.stop().await;
    eventually(SOON, "the spool is empty", async || {
        let ready =
            http::get(&format!("{}/health/ready", collector.url())).await.map_err(|e| e.to_string())?;
        let spool = ready.json()["spool"]["records"].clone();
        if spool == 0 { Ok(()) } else { Err(spool.to_string()) }
    })
    .await;
    let log = integration_tests::log::open_log(deployment.log()).await;
    assert_in_order(&log, &[2, 4], &sent).await;
    assert_eq!(barriers(&log).await, 4);
    log.close().await;
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, sent);
    assert_replays(&deployment, &directory, "4").await;
}

/// The command is killed between noting the growth and making the topic's partitions, which wait for a collector that stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growth_is_noted_before_the_topic_changes_and_finished_by_the_next_command() {
    let (deployment, directory, _database) = deployment(Setup::KafkaAndPostgres).await;
    let collector = deployment.start("collect").ready().await;
    let mut other = deployment.start("collect").ready().await;
    let _projector = deployment.start("project");
    let mut visitors = Visitors::start(deployment.website(), &[authority(&collector)]);
    visitors.until_sent(2).await;
    let shown = async || json(&deployment.run(&["partitions", "--json"]).await);
    other.dashi.sigstop();
    let mut command = deployment.spawn(&["partitions", "grow", "--to", "4", "--wait", "600"]);
    let stood_still = authority(&other);
    eventually(SOON, "the growth is noted, and one collector has not acknowledged it", async || {
        let shown = shown().await;
        let awaits = shown["growth"]["awaits"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = awaits.iter().filter_map(Value::as_str).collect();
        if matches!(names[..], [name] if name.ends_with(&stood_still)) {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    command.kill9();
    let now = shown().await;
    assert_eq!(
        (&now["growth"]["to"], &now["growth"]["state"]),
        (&Value::from(4), &Value::from("draining")),
        "{now}"
    );
    assert_eq!(
        (&now["partitions"], &now["in_log"]),
        (&Value::from(2), &Value::from(2)),
        "the topic is as it was"
    );
    let another = deployment.run(&["partitions", "grow", "--to", "3"]).await;
    assert_eq!(another.code, Some(1), "{}", another.stdout);
    assert!(another.stderr.contains("a growth to 4 partitions is under way"), "{}", another.stderr);

    other.dashi.sigcont();
    let grown = deployment.run(&["partitions", "grow", "--to", "4", "--json"]).await;
    assert_eq!(grown.code, Some(0), "{}{}", grown.stdout, grown.stderr);
    assert_eq!(
        (&json(&grown)["grown"], &json(&grown)["version"]),
        (&Value::Bool(true), &Value::from(1)),
        "the one that was noted"
    );
    assert_eq!(shown().await["in_log"], 4);
    visitors.until_sent(2).await;
    let sent = visitors.stop().await;
    let log = integration_tests::log::open_log(deployment.log()).await;
    assert_in_order(&log, &[2, 4], &sent).await;
    assert_eq!(barriers(&log).await, 4);
    log.close().await;
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, sent);
    assert_replays(&deployment, &directory, "2").await;
}

/// The command is killed between making the topic's partitions and the commit: its steps until then are done here. Once the next
/// command comes in time and finishes the growth; once it comes after a collector has given the growth up, and begins another one,
/// which uses the partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_were_made_before_a_kill_are_expected_and_used_on_kafka() {
    let (deployment, directory, database) = deployment(Setup::KafkaAndPostgres).await;
    let deployment = deployment.with("DASHI_KAFKA_TOPIC_CHECK_MS", "200");
    let collector = deployment.start("collect").ready().await;
    let projector = deployment.start("project");
    let mut visitors = Visitors::start(deployment.website(), &[authority(&collector)]);
    visitors.until_sent(2).await;
    let log = integration_tests::log::open_log(deployment.log()).await;
    let EventLog::Kafka(kafka) = &log else { panic!("{}", deployment.log()) };
    let store = Store::Postgres(
        PostgresStore::open(&PostgresSettings {
            url: deployment.store().to_owned(),
            connections_max: 2,
            statement_timeout: SOON,
        })
        .expect("a valid URL"),
    );
    let concern = "\"concern\":\"partitions\"";
    let note_and_make = async |layout: Layout| {
        assert!(store.begin_growth(log.id(), layout, 600).await.expect("it answers"));
        eventually(SOON, "the collector acknowledges", async || {
            let appenders = store.appenders(log.id()).await.expect("it answers");
            let awaits = |state: &AppenderState| state.is_awaited(layout.version);
            if appenders.iter().any(awaits) { Err(format!("{appenders:?}")) } else { Ok(()) }
        })
        .await;
        kafka.make_partitions(layout.partitions).await.expect("they are made");
    };

    note_and_make(Layout { version: 1, partitions: 4 }).await;
    // The topic is looked at five times a second: often enough until the next command has come.
    let grown = deployment.run(&["partitions", "grow", "--to", "4", "--json"]).await;
    assert_eq!(grown.code, Some(0), "{}{}", grown.stdout, grown.stderr);
    assert_eq!((&json(&grown)["grown"], &json(&grown)["version"]), (&Value::Bool(true), &Value::from(1)));
    visitors.until_sent(2).await;
    assert!(!collector.dashi.logs().contains(concern), "the growth was noted when the partitions came");

    note_and_make(Layout { version: 2, partitions: 7 }).await;
    let mut connection = database.as_ref().expect("a database").connect().await;
    let expired = sqlx::query("UPDATE dashi.layout SET expires_at = clock_timestamp() WHERE version = 2");
    expired.execute(&mut connection).await.expect("it answers");
    eventually(SOON, "the collector gives it up", async || {
        let layouts = store.layouts(log.id()).await.expect("it answers");
        let given_up =
            layouts.iter().any(|stored| stored.layout.version == 2 && stored.state == Growth::Aborted);
        if given_up { Ok(()) } else { Err(format!("{layouts:?}")) }
    })
    .await;
    eventually(SOON, "the collector names the command that uses them", async || {
        let logs = collector.dashi.logs();
        if logs.contains(concern) && logs.contains("dashi partitions grow --to 7") {
            Ok(())
        } else {
            Err(logs)
        }
    })
    .await;
    visitors.until_sent(2).await;
    let grown = deployment.run(&["partitions", "grow", "--to", "7", "--json"]).await;
    assert_eq!(grown.code, Some(0), "{}{}", grown.stdout, grown.stderr);
    assert_eq!((&json(&grown)["from"], &json(&grown)["version"]), (&Value::from(4), &Value::from(3)));
    visitors.until_sent(2).await;
    let sent = visitors.stop().await;
    assert_in_order(&log, &[2, 4, 7], &sent).await;
    store.close().await;
    log.close().await;
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, sent);
    assert!(!projector.dashi.logs().contains(concern), "a projector does not judge the number");
    assert_replays(&deployment, &directory, "2").await;
}

/// Retention removed the barriers of the old partitions, and what lay before them, before anybody read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn barriers_that_retention_removed_hold_up_nobody() {
    let (deployment, directory, _) = deployment(Setup::Embedded).await;
    let deployment = deployment.with("DASHI_PROJECTOR_FAILED_RETRY_MS", "500");
    let mut collector = deployment.start("collect").ready().await;
    let mut visitors = Visitors::start(deployment.website(), &[authority(&collector)]);
    visitors.until_sent(2).await;
    let grown = deployment.run(&["partitions", "grow", "--to", "3"]).await;
    assert_eq!(grown.code, Some(0), "{}", grown.stderr);
    visitors.until_sent(2).await;
    let sent = visitors.stop().await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let log = integration_tests::log::open_log(deployment.log()).await;
    let mut ends = Vec::new();
    for partition in [0, 1].map(Partition::new) {
        ends.push((partition, Checkpoint::at(log.extent(partition).await.expect("it answers").high)));
    }
    let mut remover = log.membership("remover").await.expect("nobody projects");
    remover.save(&ends).await;
    assert!(log.trim(i64::MAX).await.expect("it can be written") > 0);
    remover.leave().await;
    let moved = |session: &String| partition_for(session.as_bytes(), 3) == Partition::new(2);
    let expected: BTreeMap<String, u64> = sent.into_iter().filter(|(session, _)| moved(session)).collect();
    assert!(!expected.is_empty());
    log.close().await;

    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    let replayed = deployment.run(&["replay", "--into", &again]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(last_values(&again).await, expected);

    let _projector = deployment.start("project");
    let lost = std::cell::Cell::new(0);
    eventually(SOON, "the losses of both are accepted", async || {
        // One that was not claimed yet has lost nothing.
        let accepted = deployment.run(&["accept-lost", "--json"]).await;
        let more: Option<Vec<Value>> = serde_json::from_str(&accepted.stdout).ok();
        lost.set(lost.get() + more.map_or(0, |more| more.len()));
        if lost.get() == 2 { Ok(()) } else { Err(accepted.stdout + &accepted.stderr) }
    })
    .await;
    deployment.settled().await;
    assert_eq!(last_values(deployment.store()).await, expected);
}
