//! `dashi erase`: what goes, what stays, and that no replay brings it back.

mod interleaving;

use std::time::Duration;

use dashi_domain::erasure::{ErasureCopy, Tombstone};
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Database, Running, Setup, eventually, on_both_setups};
use serde_json::{Value, json};

on_both_setups!(
    a_person_goes_with_all_sessions_and_others_stay,
    a_session_goes_and_its_person_keeps_what_others_set,
    a_website_goes_whole_and_takes_no_more_events,
    it_is_refused_where_it_cannot_be_right,
);

const SOON: Duration = Duration::from_secs(60);

/// Another browser than [`AGENT`].
const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// Another website.
const OTHER: &str = "22222222-2222-4222-8222-222222222222";

/// Sends from a browser; returns the session.
async fn send(running: &Running, agent: &str, kind: &str, payload: Value) -> String {
    let body = submission(kind, &payload).to_string();
    let answer = running.post("/api/send", body, &[("user-agent", agent)]).await;
    assert_eq!(answer.status, 200, "{payload}: {}", answer.text());
    answer.json()["sessionId"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
}

async fn erase(running: &Running, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = running.run(&[&["erase", "--json"], arguments].concat()).await;
    let report = serde_json::from_str(&ended.stdout);
    (ended.code, report.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", ended.stdout, ended.stderr)))
}

async fn state(running: &Running, id: &str) -> String {
    let ended = running.run(&["trace", "--json", id]).await;
    let trace: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    trace["state"].as_str().unwrap().to_owned()
}

async fn in_step(running: &Running) {
    eventually(SOON, "every record is applied", async || {
        let totals = running.totals().await;
        if totals.lag_records == 0 { Ok(()) } else { Err(format!("{totals:?}")) }
    })
    .await;
}

/// Ids of the events of pages.
async fn events(running: &Running, path: &str) -> Vec<String> {
    let query = format!("SELECT event_id FROM website_event WHERE url_path LIKE '{path}'");
    running.texts(&query).await
}

/// Asserts that no row and, where they can be overwritten, no record has a text, but for the erasures themselves.
async fn assert_nowhere(running: &Running, text: &str) {
    let records = running.records().await;
    let has = |value: &[u8]| String::from_utf8_lossy(value).contains(text);
    let left = records.iter().filter(|record| has(&record.value) && !ErasureCopy::is(&record.value)).count();
    if running.log().starts_with("sqlite:") {
        assert_eq!(left, 0, "{text} is in the log");
        assert!(records.iter().any(|record| Tombstone::is(&record.value)), "nothing was overwritten");
    } else {
        assert!(left > 0, "records of a topic stay");
    }
}

async fn a_person_goes_with_all_sessions_and_others_stay(setup: Setup) {
    // As a visitor before she is known, and then by name, on two devices; and somebody else.
    let mut running = setup.start(&[]).await;
    for agent in [AGENT, FIREFOX] {
        send(&running, agent, "event", json!({ "url": "/secret/anonymous" })).await;
        send(
            &running,
            agent,
            "event",
            json!({ "url": "/secret/named", "id": "ada", "name": "buy",
            "data": { "revenue": 5, "currency": "EUR", "secret": "s" } }),
        )
        .await;
        send(&running, agent, "identify", json!({ "id": "ada", "data": { "secret": agent } })).await;
    }
    send(&running, AGENT, "event", json!({ "url": "/public", "id": "bob" })).await;
    send(&running, AGENT, "identify", json!({ "id": "bob", "data": { "plan": "pro" } })).await;
    running.applied(8).await;
    let erased = events(&running, "/secret/%").await;
    assert_eq!(erased.len(), 4);

    let of_ada = ["--website", WEBSITE, "--distinct-id", "ada"];
    let (code, report) = erase(&running, &of_ada).await;
    assert_eq!((code, &report["applied"]), (Some(0), &Value::Null), "{report}");
    let tables = report["erasable"]["tables"].as_array().unwrap();
    let rows =
        |name: &str| tables.iter().find(|table| table["table"] == name).map(|table| table["rows"].clone());
    assert_eq!(rows("website_event"), Some(json!(4)), "{report}");
    assert_eq!(rows("revenue"), Some(json!(2)), "{report}");
    assert_eq!(events(&running, "/secret/%").await.len(), 4, "without --apply nothing changes");

    let (code, report) = erase(&running, &[&of_ada[..], &["--apply"]].concat()).await;
    assert_eq!((code, &report["applied"]["rows_are_gone"]), (Some(0), &json!(true)), "{report}");
    for (table, left) in [("website_event", 1), ("event_data", 0), ("revenue", 0), ("session_data", 1)] {
        assert_eq!(running.number(&format!("SELECT count(*) FROM {table}")).await, left, "{table}");
    }
    for table in ["profile", "profile_trait", "profile_write", "profile_link", "profile_base", "identify"] {
        let table = running.own(table);
        let left = running.texts(&format!("SELECT distinct_id FROM {table}")).await;
        assert!(!left.is_empty() && left.iter().all(|person| person == "bob"), "{table}: {left:?}");
    }
    assert_nowhere(&running, "secret").await;
    for id in &erased {
        assert_eq!(state(&running, id).await, "erased", "{id}");
    }
    assert!(running.run(&["trace", &erased[0]]).await.stdout.contains(": erased "));
    running.assert_replay_gives_the_same_rows().await;
    let (code, _) = erase(&running, &of_ada).await;
    assert_eq!(code, Some(0));

    // Who comes back is new.
    send(&running, AGENT, "identify", json!({ "id": "ada", "data": { "plan": "free" } })).await;
    send(&running, AGENT, "event", json!({ "url": "/again", "id": "ada" })).await;
    in_step(&running).await;
    assert_eq!(events(&running, "/again").await.len(), 1);
    let traits = format!("SELECT key FROM {} WHERE distinct_id = 'ada'", running.own("profile_trait"));
    assert_eq!(running.texts(&traits).await, ["plan"]);
    assert_eq!(running.dashi().terminate().await, Some(0));
    let again = format!("sqlite:{}", running.directory().join("again-2.db").display());
    assert_eq!(running.run(&["replay", "--into", &again]).await.code, Some(0));
    let compared = running.run(&["compare", running.store(), &again]).await;
    assert_eq!(compared.code, Some(0), "{}", compared.stdout);
    let audited = running.run(&["audit"]).await;
    assert_eq!(audited.code, Some(0), "{}", audited.stdout);
}

async fn a_session_goes_and_its_person_keeps_what_others_set(setup: Setup) {
    // As from Umami 3.4 on, so that each device of a person has a session of its own.
    let running = setup.start(&[("DASHI_INGEST_IDENTIFIED_SESSIONS", "per-device")]).await;
    let identify = |data: Value| json!({ "id": "ada", "data": data });
    let first = send(&running, AGENT, "identify", identify(json!({ "a": "first", "b": "first" }))).await;
    let second = send(&running, FIREFOX, "identify", identify(json!({ "b": "second", "c": "second" }))).await;
    assert_ne!(first, second);
    send(&running, AGENT, "event", json!({ "url": "/first", "id": "ada" })).await;
    send(&running, FIREFOX, "event", json!({ "url": "/second", "id": "ada" })).await;
    running.applied(4).await;
    let traits =
        format!("SELECT key || '=' || string_value FROM {} ORDER BY key", running.own("profile_trait"));
    assert_eq!(running.texts(&traits).await, ["a=first", "b=second", "c=second"]);
    let (code, report) = erase(&running, &["--website", WEBSITE, "--session", &second, "--apply"]).await;
    assert_eq!((code, &report["applied"]["rows_are_gone"]), (Some(0), &json!(true)), "{report}");
    // What the erased session had set over is as the other one had set it.
    assert_eq!(running.texts(&traits).await, ["a=first", "b=first"]);
    assert_eq!((events(&running, "/first").await.len(), events(&running, "/second").await.len()), (1, 0));
    let links = format!("SELECT session_id FROM {} WHERE kind = 0", running.own("profile_link"));
    assert_eq!(running.texts(&links).await, [first]);
    assert_nowhere(&running, "second").await;
    running.assert_replay_gives_the_same_rows().await;
}

async fn a_website_goes_whole_and_takes_no_more_events(setup: Setup) {
    let mut running = setup.start(&[]).await;
    let add = ["website", "add", "--name", "other", "--id", OTHER];
    assert_eq!(running.run(&add).await.code, Some(0));
    for number in 0..40 {
        let person = format!("p{}", number % 7);
        send(&running, AGENT, "identify", json!({ "id": person, "data": { "secret": number } })).await;
        send(&running, AGENT, "event", json!({ "url": format!("/secret/{number}"), "id": person })).await;
    }
    eventually(SOON, "the other website is listed", async || {
        let body =
            submission("event", &json!({ "website": OTHER, "url": "/public", "id": "p1" })).to_string();
        let answer = running.post("/api/send", body, &[]).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    in_step(&running).await;
    // Records that were set aside go, too.
    let (code, report) = erase(&running, &["--website", WEBSITE, "--all", "--apply"]).await;
    assert_eq!((code, &report["applied"]["rows_are_gone"]), (Some(0), &json!(true)), "{report}");
    for table in ["website_event", "session", "session_data", "event_data"] {
        let left = running.texts(&format!("SELECT DISTINCT website_id FROM {table}")).await;
        assert!(left.iter().all(|website| website == OTHER), "{table}: {left:?}");
    }
    for table in ["profile", "profile_trait", "profile_write", "profile_link", "identify"] {
        let left = running.texts(&format!("SELECT DISTINCT website_id FROM {}", running.own(table))).await;
        assert!(left.iter().all(|website| website == OTHER), "{table}: {left:?}");
    }
    assert_eq!(events(&running, "/public").await.len(), 1);
    assert_nowhere(&running, "secret").await;
    running.assert_replay_gives_the_same_rows().await;

    // It still takes events, until it is deleted.
    send(&running, AGENT, "event", json!({ "url": "/new" })).await;
    in_step(&running).await;
    let (code, report) = erase(&running, &["--website", WEBSITE, "--all", "--and-website", "--apply"]).await;
    assert_eq!((code, &report["applied"]["website_removed"]), (Some(0), &json!(true)), "{report}");
    assert_eq!(events(&running, "/new").await.len(), 0);
    assert_eq!(running.dashi().terminate().await, Some(0));
    running.start_again().await;
    let refused = running.send(&submission("event", &json!({ "url": "/late" }))).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
}

async fn it_is_refused_where_it_cannot_be_right(setup: Setup) {
    let mut running = setup.start(&[]).await;
    for arguments in [
        &["erase", "--website", WEBSITE][..],
        &["erase", "--website", WEBSITE, "--distinct-id", "", "--apply"],
        &["erase", "--website", WEBSITE, "--distinct-id", "x", "--all"],
        &["erase", "--website", WEBSITE, "--distinct-id", "x", "--and-website"],
    ] {
        assert_eq!(running.run(arguments).await.code, Some(2), "{arguments:?}");
    }
    send(&running, AGENT, "event", json!({ "url": "/a", "id": "ada" })).await;
    running.applied(1).await;
    assert_eq!(running.dashi().terminate().await, Some(0));
    // Nobody projects: the erasure is in the log, and its rows go later.
    let apply = ["--website", WEBSITE, "--distinct-id", "ada", "--apply", "--wait", "1"];
    let (code, report) = erase(&running, &apply).await;
    assert_eq!((code, &report["applied"]["rows_are_gone"]), (Some(4), &json!(false)), "{report}");
    assert_eq!(events(&running, "/a").await.len(), 1);
    // The next one does not know whether there are more sessions.
    let ended = running.run(&[&["erase"], &apply[..]].concat()).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("start `dashi serve`"), "{}", ended.stderr);
    running.start_again().await;
    eventually(SOON, "the rows are gone", async || events(&running, "/a").await.is_empty()).await;
    // The rows go in pieces, each in a transaction of its own; the last one notes the erasure.
    let mut database = Database::open(running.store()).await;
    eventually(SOON, "the erasure is noted once", async || {
        let noted = database.count("SELECT count(*) FROM @erasure").await;
        if noted == 1 { Ok(()) } else { Err(format!("{noted} times")) }
    })
    .await;
}
