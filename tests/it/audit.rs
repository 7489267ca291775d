//! `dashi audit` adds up whatever is killed, and finds what somebody took away or made up.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{
    Database, Deployment, Ledger, Setup, TestDatabase, TestDirectory, eventually, free_port, kafka,
    on_both_setups,
};
use serde_json::{Value, json};

on_both_setups!(each_submission_is_counted_by_its_outcome, made_up_counts_are_found);

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

async fn audit(deployment: &Deployment, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = deployment.run(&[&["audit", "--json"], arguments].concat()).await;
    let audit = serde_json::from_str(&ended.stdout);
    (ended.code, audit.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", ended.stdout, ended.stderr)))
}

fn number(audit: &Value, name: &str) -> u64 {
    audit["total"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {audit}"))
}

/// Kills the collector and the projector in turns while events come in. The audit adds up after each kill and in the end.
async fn adds_up_through_kills(deployment: Deployment, kills: u64, requests_per_s: f64) {
    deployment.register().await;
    let authority = format!("127.0.0.1:{}", free_port());
    let mut collector = deployment.start_at("collect", &authority).ready().await;
    let mut projector = deployment.start("project").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&authority, |plan| {
        plan.connections = 8;
        plan.mode = dashi_load::Mode::Open { requests_per_s };
        plan.duration = 4 * SOON;
    });
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(300 + 137 * (kill % 5))).await;
        if kill % 2 == 0 {
            collector.dashi.kill9();
            collector = deployment.start_at("collect", &authority).ready().await;
        } else {
            projector.dashi.kill9();
            projector = deployment.start("project").ready().await;
        }
        let (code, found) = audit(&deployment, &[]).await;
        assert_eq!((code, &found["adds_up"]), (Some(0), &json!(true)), "{found}");
    }
    let report = ledger.stop(load).await;
    assert!(report.counts.errors.total() > 0, "no kill was felt");
    ledger.check().await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let (code, found) = audit(&deployment, &[]).await;
    assert_eq!((code, &found["findings"]), (Some(0), &json!([])), "{found}");
    let [accepted, in_log, applied] = ["accepted", "in_log", "applied"].map(|name| number(&found, name));
    assert_eq!((number(&found, "not_read"), applied), (0, in_log), "{found}");
    assert!(in_log >= ledger.acknowledged() as u64 && accepted <= in_log, "{found}");
    // The last collector wrote all of its tallies, so there are some.
    assert!(accepted > 0, "{found}");
    assert_eq!(projector.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adds_up_while_collector_and_projector_are_killed_embedded() {
    let directory = TestDirectory::create("audit");
    let deployment = Deployment::embedded(&directory).with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "50");
    adds_up_through_kills(deployment, 8, 300.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adds_up_while_collector_and_projector_are_killed_on_kafka_and_postgres() {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("audit"));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "50")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
    adds_up_through_kills(deployment, 6, 200.0).await;
}

async fn each_submission_is_counted_by_its_outcome(setup: Setup) {
    let mut running = setup.start(&[]).await;
    for url in ["/a", "/b", "/c"] {
        running.accept("event", &json!({ "url": url })).await;
    }
    let again = json!({ "url": "/d", "messageId": "m-1" });
    for _ in 0..2 {
        running.accept("event", &again).await;
    }
    // A bot, and two that are no events.
    let bot = submission("event", &json!({ "url": "/bot" })).to_string();
    running.post("/api/send", bot, &[("user-agent", "curl/8.0")]).await;
    running.post("/api/send", "{}", &[]).await;
    running.post("/api/send", "{}", &[("user-agent", AGENT)]).await;
    running.applied(5).await;
    assert_eq!(running.dashi().terminate().await, Some(0));

    let ended = running.run(&["audit", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    let counts =
        ["accepted", "in_log", "applied", "duplicate", "dead", "not_read"].map(|name| number(&found, name));
    assert_eq!(counts, [5, 5, 4, 1, 0, 0], "{found}");
    assert_eq!(found["total"]["refused"], json!({ "bot": 1, "invalid": 2 }), "{found}");
    assert_eq!((&found["findings"], &found["notes"]), (&json!([]), &json!([])), "{found}");
    let by_hour: u64 =
        found["hours"].as_array().unwrap().iter().map(|hour| hour["in_log"].as_u64().unwrap()).sum();
    assert_eq!(by_hour, 5);

    for (arguments, in_log) in [
        (vec!["--website", WEBSITE], 5),
        (vec!["--since", "2h"], 5),
        (vec!["--since", "2100-01-01"], 0),
        (vec!["--website", "22222222-2222-4222-8222-222222222222"], 0),
    ] {
        let ended = running.run(&[&["audit", "--json"], &arguments[..]].concat()).await;
        let found: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((ended.code, number(&found, "in_log")), (Some(0), in_log), "{arguments:?}: {found}");
    }
    let text = running.run(&["audit"]).await.stdout;
    assert!(text.contains("It adds up") && text.contains("refused or ignored: invalid 2, bot 1"), "{text}");
    assert_eq!(running.run(&["audit", "--since", "soon"]).await.code, Some(2));
}

async fn made_up_counts_are_found(setup: Setup) {
    let running = setup.start(&[]).await;
    for url in ["/a", "/b", "/c", "/d", "/e"] {
        running.accept("event", &json!({ "url": url })).await;
    }
    running.applied(5).await;
    let adds_up = async || {
        let ended = running.run(&["audit", "--json"]).await;
        let found: Value = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
        assert_eq!(ended.code, Some(if found["adds_up"] == true { 0 } else { 3 }), "{found}");
        found
    };
    eventually(SOON, "the tallies are written", async || {
        let found = adds_up().await;
        if number(&found, "accepted") == 5 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    assert_eq!(adds_up().await["findings"], json!([]));
    let mut store = Database::open(running.store()).await;
    for (forge, mend, kind) in [
        (
            "UPDATE @hour_count SET applied = applied + 1",
            "UPDATE @hour_count SET applied = applied - 1",
            "counts_differ",
        ),
        (
            "UPDATE @checkpoint SET applied = applied + 2 WHERE partition = 0",
            "UPDATE @checkpoint SET applied = applied - 2 WHERE partition = 0",
            "counts_differ",
        ),
        (
            "UPDATE @tally SET count = count + 3 WHERE outcome = 'accepted'",
            "UPDATE @tally SET count = count - 3 WHERE outcome = 'accepted'",
            "accepted_not_in_log",
        ),
    ] {
        store.execute(forge).await;
        let found = adds_up().await;
        assert_eq!(found["adds_up"], false, "{forge}: {found}");
        let kinds: Vec<_> =
            found["findings"].as_array().unwrap().iter().map(|finding| finding["kind"].clone()).collect();
        assert!(kinds.contains(&json!(kind)), "{forge}: {found}");
        store.execute(mend).await;
        assert_eq!(adds_up().await["adds_up"], true, "{mend}");
    }
    if setup != Setup::Embedded {
        return;
    }
    // A record of the file is damaged, the first one or the last one: then the log has it no more.
    let path =
        running.log().trim_start_matches("sqlite:").to_owned() + ".segments/00000000000000000000.records";
    let whole = std::fs::read(&path).unwrap();
    let begins = |bytes: &[u8]| bytes == b"{\"";
    let first = whole.windows(2).position(begins).unwrap();
    let last = whole.windows(2).rposition(begins).unwrap();
    for place in [first, last] {
        let damage = |byte| {
            std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[byte], place as u64)
        };
        damage(b'[').unwrap();
        let found = adds_up().await;
        assert_eq!(found["adds_up"], false, "{found}");
        let finding = &found["findings"][0];
        assert_eq!(
            (&finding["kind"], &finding["records"]),
            (&json!("log_lacks_records"), &json!(1)),
            "{found}"
        );
        damage(b'{').unwrap();
        assert_eq!(adds_up().await["adds_up"], true);
    }
}
