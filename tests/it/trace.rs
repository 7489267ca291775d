//! `dashi trace` shows for any event where it is and what its outcome was.

use std::collections::BTreeMap;

use dashi_domain::log_record::LogRecord;
use dashi_event_log::NewRecord;
use integration_tests::setup::{WEBSITE, submission};
use integration_tests::{Running, Setup, on_both_setups};
use serde_json::{Value, json};
use uuid::Uuid;

on_both_setups!(every_event_is_found_with_what_became_of_it, what_is_not_there_is_not_found);

async fn trace(running: &Running, arguments: &[&str]) -> (Option<i32>, Value) {
    let ended = running.run(&[&["trace", "--json"], arguments].concat()).await;
    let trace = serde_json::from_str(&ended.stdout);
    (ended.code, trace.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", ended.stdout, ended.stderr)))
}

/// A record as a collector would append it, of this id.
fn record(id: Uuid, session: Uuid, kind: &str, payload: Value) -> NewRecord {
    let value = json!({
        "v": 1, "id": id, "at": 1_777_623_630_123_i64, "session": session, "visit": Uuid::from_u128(5), "type": kind,
        "payload": payload,
    });
    NewRecord { session_id: session, value: value.to_string().into_bytes() }
}

async fn every_event_is_found_with_what_became_of_it(setup: Setup) {
    let mut running = setup.start(&[]).await;
    for (kind, payload) in [
        ("event", json!({ "website": WEBSITE, "url": "/a" })),
        (
            "event",
            json!({ "website": WEBSITE, "url": "/b", "name": "buy", "data": { "revenue": 5, "currency": "EUR", "n": 1 } }),
        ),
        ("performance", json!({ "website": WEBSITE, "url": "/a", "lcp": 12.5 })),
        ("identify", json!({ "website": WEBSITE, "id": "ada", "data": { "plan": "pro" } })),
        // Named by its client, with a time of its own.
        ("event", json!({ "website": WEBSITE, "url": "/c", "messageId": "m-1", "timestamp": 1_777_593_600 })),
    ] {
        running.accept(kind, &payload).await;
    }
    // The same again: a duplicate.
    let again = json!({ "website": WEBSITE, "url": "/c", "messageId": "m-1", "timestamp": 1_777_593_600 });
    let answer = running.send(&submission("event", &again)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    running.applied(6).await;

    let mut places: BTreeMap<Uuid, Vec<(u64, u64)>> = BTreeMap::new();
    let mut types = BTreeMap::new();
    for record in running.records().await {
        let decoded = LogRecord::decode(&record.value).unwrap();
        let place = (u64::from(record.partition.number()), record.offset.number());
        places.entry(decoded.id()).or_default().push(place);
        let LogRecord::Event(event) = decoded else { panic!("{decoded:?}") };
        types.insert(
            event.event_id,
            (event.submission.kind.as_str(), event.submission.payload.name.is_some()),
        );
    }
    assert_eq!(places.len(), 5);
    let place = |copy: &Value| (copy["partition"].as_u64().unwrap(), copy["offset"].as_u64().unwrap());
    for (id, expected) in &places {
        let (code, found) = trace(&running, &[&id.to_string(), "--scan"]).await;
        assert_eq!((code, &found["state"]), (Some(0), &json!("applied")), "{found}");
        let in_log: Vec<_> = found["in_log"].as_array().unwrap().iter().map(place).collect();
        assert_eq!(&in_log, expected, "{found}");
        assert!(found["in_log"].as_array().unwrap().iter().all(|copy| copy["is_passed"] == true), "{found}");
        let (kind, has_name) = types[id];
        let table = if kind == "identify" { "identify" } else { "website_event" };
        let applied = &found["applied"];
        assert_eq!((&applied["table"], &applied["website_id"]), (&json!(table), &json!(WEBSITE)), "{found}");
        assert_eq!(applied["has_session"], true, "{found}");
        let rows = if has_name { (json!(3), json!(true)) } else { (json!(0), json!(false)) };
        assert_eq!((applied["event_data"].clone(), applied["has_revenue"].clone()), rows, "{found}");
        // Without reading all of the log: an id that the collector made has the time at which to search.
        let (_, quick) = trace(&running, &[&id.to_string()]).await;
        assert_eq!(quick["state"], "applied");
        if id.get_version_num() == 7 {
            assert_eq!(quick["in_log"], found["in_log"], "{quick}");
        }
    }
    let (_, named) = trace(&running, &["m-1", "--website", WEBSITE, "--scan"]).await;
    assert_eq!(named["in_log"].as_array().unwrap().len(), 2, "{named}");
    let text = running.run(&["trace", "m-1", "--website", WEBSITE]).await.stdout;
    assert!(text.contains(": applied\n") && text.contains("its row is there"), "{text}");

    // Records that no projector has reached; then they are applied, except one that cannot be.
    assert_eq!(running.dashi().terminate().await, Some(0));
    let session = Uuid::from_u128(77);
    let properties: BTreeMap<String, u32> = (0..10_001).map(|n| (format!("k{n}"), n)).collect();
    let [good, bad] = [Uuid::now_v7(), Uuid::now_v7()];
    let log = running.open_log().await;
    let appended = log
        .append(vec![
            record(good, session, "event", json!({ "website": WEBSITE, "url": "/later" })),
            record(bad, session, "identify", json!({ "website": WEBSITE, "data": properties })),
        ])
        .await;
    assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    log.close().await;
    for (id, before) in [(good, 0), (bad, 1)] {
        let (code, found) = trace(&running, &[&id.to_string()]).await;
        assert_eq!((code, &found["state"]), (Some(0), &json!("not_yet_applied")), "{found}");
        let copy = &found["in_log"][0];
        assert_eq!((&copy["is_passed"], &copy["records_before"]), (&json!(false), &json!(before)), "{found}");
    }
    running.start_again().await;
    integration_tests::eventually(
        std::time::Duration::from_secs(60),
        "both have their outcomes",
        async || running.totals().await.lag_records == 0,
    )
    .await;
    assert_eq!(trace(&running, &[&good.to_string()]).await.1["state"], "applied");
    let (code, dead) = trace(&running, &[&bad.to_string()]).await;
    assert_eq!((code, &dead["state"]), (Some(0), &json!("dead_letter")), "{dead}");
    let letter = &dead["dead_letters"][0];
    assert_eq!(place(letter), place(&dead["in_log"][0]), "{dead}");
    assert!(letter["reason"].as_str().unwrap().contains("10000"), "{dead}");

    // Somebody deleted the row.
    let mut database = integration_tests::Database::open(running.store()).await;
    database.execute(&format!("DELETE FROM website_event WHERE event_id = '{good}'")).await;
    assert_eq!(trace(&running, &[&good.to_string()]).await.1["state"], "rows_deleted");
}

async fn what_is_not_there_is_not_found(setup: Setup) {
    let running = setup.start(&[]).await;
    running.accept("event", &json!({ "website": WEBSITE, "url": "/a" })).await;
    running.applied(1).await;
    for scan in [&[][..], &["--scan"]] {
        let id = Uuid::now_v7().to_string();
        let (code, found) = trace(&running, &[&[id.as_str()], scan].concat()).await;
        assert_eq!((code, &found["state"]), (Some(3), &json!("not_found")), "{found}");
        assert_eq!(found["is_whole_log"], !scan.is_empty());
    }
    let ended = running.run(&["trace", "m-1"]).await;
    assert_eq!(ended.code, Some(2), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("--website"), "{}", ended.stderr);
}
