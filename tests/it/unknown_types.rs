//! Submissions of types that this version does not know (docs/umami-contract.md §23): refused, or kept for a later one.

use integration_tests::http;
use integration_tests::setup::{AGENT, WEBSITE};
use integration_tests::{Running, Setup, on_both_setups};
use serde_json::{Value, json};

on_both_setups!(unknown_types_are_kept_as_they_are_when_that_is_set, unknown_types_are_refused_and_counted);

fn engagement(more: &Value) -> Value {
    let mut payload =
        json!({ "website": WEBSITE, "url": "/a", "engagement": 5000, "own": { "b": [1.5, null], "a": 1 } });
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "type": "engagement", "payload": payload })
}

async fn counted(running: &Running, kind: &str, outcome: &str) -> bool {
    let metrics = http::get(&running.url("/metrics")).await.unwrap().text();
    metrics.contains(&format!(r#"dashi_ingest_unknown_types_total{{kind="{kind}",outcome="{outcome}"}} 1"#))
}

async fn unknown_types_are_refused_and_counted(setup: Setup) {
    let running = setup.start(&[]).await;
    for (kind, counted_as) in [("engagement", "engagement"), ("x\u{1}", "other"), ("error", "error")] {
        let mut body = engagement(&json!({}));
        body["type"] = json!(kind);
        let answer = running.send(&body).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(r#"expected one of \"event\"|\"identify\"|\"performance\""#));
        assert!(counted(&running, counted_as, "refused").await, "{kind}");
    }
    assert_eq!(running.send(&json!({ "payload": {} })).await.status, 400);
    assert_eq!(running.totals().await.in_log, 0);
}

async fn unknown_types_are_kept_as_they_are_when_that_is_set(setup: Setup) {
    let running =
        setup.start(&[("DASHI_INGEST_KEEP_UNKNOWN_TYPES", "true"), ("IGNORE_IP", "192.0.2.9")]).await;
    let sent = engagement(
        &json!({ "messageId": "m", "ip": "192.0.2.7", "userAgent": AGENT, "timestamp": 1_777_593_600 }),
    );
    let first = running.send(&sent).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert!(counted(&running, "engagement", "kept").await);
    let event = json!({ "url": "/a", "ip": "192.0.2.7", "userAgent": AGENT, "timestamp": 1_777_593_600 });
    running.applied(1).await;
    assert_eq!(running.number("SELECT count(*) FROM session").await, 0, "what it means is not known");
    // The ids are those of any event of the same visitor, and a name is one of its type.
    let known = running.accept("event", &json!({ "messageId": "m", "url": "/a", "ip": "192.0.2.7", "userAgent": AGENT, "timestamp": 1_777_593_600 })).await;
    assert_eq!(
        [&known["sessionId"], &known["visitId"]],
        [&first.json()["sessionId"], &first.json()["visitId"]]
    );
    assert_eq!(running.accept("event", &event).await["sessionId"], known["sessionId"]);
    // A copy changes nothing; what is no submission at all is refused; bots and blocked ones are answered as ever.
    assert_eq!(running.send(&sent).await.status, 200);
    for (more, status) in [
        (json!({ "website": "x" }), 400),
        (json!({ "pixel": WEBSITE }), 400),
        (json!({ "timestamp": 1.5 }), 400),
        (json!({ "website": "99999999-9999-4999-8999-999999999999" }), 400),
        (json!({ "ip": "192.0.2.9" }), 403),
        (json!({ "userAgent": "Googlebot/2.1" }), 200),
    ] {
        assert_eq!(running.send(&engagement(&more)).await.status, status, "{more}");
    }
    // A website that is not on the list yet is looked up, and the body decided once more: counted once.
    const NEW: &str = "44444444-4444-4444-8444-444444444444";
    let added = running.run(&["website", "add", "--name", "new", "--id", NEW]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    let mut of_new = engagement(&json!({ "website": NEW, "timestamp": 1_777_593_600 }));
    of_new["type"] = json!("error");
    assert_eq!(running.send(&of_new).await.status, 200);
    assert!(counted(&running, "error", "kept").await);
    let mut long = engagement(&json!({}));
    long["type"] = json!("t".repeat(51));
    assert_eq!(running.send(&long).await.status, 400);
    let batch = json!([engagement(&json!({ "name": "n".repeat(99) })), { "type": "x", "payload": [] }]);
    let answer = running.post("/api/batch", batch.to_string(), &[]).await.json();
    assert_eq!([&answer["processed"], &answer["errors"]], [1, 1], "{answer}");
    let totals = running.applied(6).await;
    assert_eq!((totals.in_log, totals.applied, totals.duplicate, totals.dead), (6, 5, 1, 0));
    let applied = running.own("applied");
    assert_eq!(
        running.texts(&format!("SELECT record_type FROM {applied} ORDER BY 1")).await,
        ["engagement", "engagement", "error"]
    );
    let records: Vec<Value> = running
        .records()
        .await
        .iter()
        .filter_map(|record| serde_json::from_slice(&record.value).ok())
        .collect();
    let kept = records
        .iter()
        .find(|record| record["type"] == "engagement" && record["payload"]["timestamp"].is_number());
    let kept = kept.expect("it is in the log");
    assert_eq!(kept["kept"], true);
    let mut expected = sent["payload"].clone();
    for key in ["messageId", "ip", "userAgent"] {
        expected.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(kept["payload"], expected);
    assert!(!kept.to_string().contains("192.0.2.7"));
    running.assert_replay_gives_the_same_rows().await;
    assert!(running.complaints().is_empty(), "{:?}", running.complaints());
}
