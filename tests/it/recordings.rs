//! Recordings (docs/umami-contract.md §14): answers in Umami's order, chunks in the order of the log,
//! rows that Umami can read.

use std::io::Read as _;

use integration_tests::setup::WEBSITE;
use integration_tests::{Running, Setup, eventually, on_both_setups};
use serde_json::{Value, json};

on_both_setups!(
    answers_come_in_umamis_order,
    chunks_of_one_second_keep_their_order_and_their_events,
    a_copy_of_a_named_chunk_is_stored_once,
);

const OK: &str = r#"{"ok":true}"#;
const OTHER: &str = "22222222-2222-4222-8222-222222222222";
const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

fn chunk(website: &str, events: &Value, timestamp: Option<i64>) -> String {
    let mut payload = json!({ "website": website, "events": events });
    if let Some(timestamp) = timestamp {
        payload["timestamp"] = json!(timestamp);
    }
    json!({ "type": "record", "payload": payload }).to_string()
}

async fn record(running: &Running, body: String, headers: &[(&str, &str)]) -> (u16, String) {
    let answer = running.post("/api/record", body, headers).await;
    (answer.status, answer.text())
}

async fn take_recordings(running: &Running) {
    let set = running.run(&["website", "recordings", WEBSITE, "on"]).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
}

/// Turns recordings on and waits until the collector knows.
async fn recording(setup: Setup) -> (Running, Value) {
    let running =
        setup.start(&[("DASHI_INGEST_WEBSITE_REFRESH_MS", "100"), ("IGNORE_IP", "192.0.2.9")]).await;
    let token = running.accept("event", &json!({ "url": "/" })).await;
    take_recordings(&running).await;
    let cache = token["cache"].as_str().unwrap().to_owned();
    let bot = [("x-umami-cache", cache.as_str()), ("user-agent", "Googlebot/2.1")];
    eventually(std::time::Duration::from_secs(20), "the collector takes recordings", async || {
        let (_, text) = record(&running, chunk(WEBSITE, &json!([{}]), None), &bot).await;
        if text == r#"{"beep":"boop"}"# { Ok(()) } else { Err(text) }
    })
    .await;
    (running, token)
}

fn error(message: &str) -> String {
    format!(r#"{{"error":{{"message":"{message}","code":"bad-request","status":400}}}}"#)
}

async fn answers_come_in_umamis_order(setup: Setup) {
    let running = setup.start(&[]).await;
    let token = running.accept("event", &json!({ "url": "/" })).await;
    let token = token["cache"].as_str().unwrap();
    let ours = [("x-umami-cache", token)];
    let foreign = [("x-umami-cache", "a.b.c")];
    let one = json!([{ "timestamp": 1_777_623_630_123_i64 }]);
    let (status, text) = record(&running, "[]".to_owned(), &ours).await;
    assert_eq!(status, 400);
    assert!(text.contains("expected object, received array"), "{text}");
    assert_eq!(record(&running, chunk(UNKNOWN, &json!([]), None), &[]).await, (200, OK.to_owned()));
    assert_eq!(
        record(&running, chunk(UNKNOWN, &one, None), &[]).await,
        (400, error("Missing session token."))
    );
    assert_eq!(
        record(&running, chunk(UNKNOWN, &one, None), &foreign).await,
        (400, error("Invalid session token."))
    );
    assert_eq!(record(&running, chunk(UNKNOWN, &one, None), &ours).await, (400, error("Website not found.")));
    // A token is for its own website, and one without a website for any.
    let added = running.run(&["website", "add", "--name", "other", "--id", OTHER]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    let other = chunk(OTHER, &one, None);
    eventually(std::time::Duration::from_secs(20), "the other website is known", async || {
        let (_, text) = record(&running, other.clone(), &ours).await;
        if text == error("Invalid session token.") { Ok(()) } else { Err(text) }
    })
    .await;
    let pixel = running.accept("event", &json!({ "pixel": UNKNOWN, "url": "/" })).await;
    let silent = [("x-umami-cache", pixel["cache"].as_str().unwrap())];
    let disabled = (200, r#"{"ok":false,"reason":"replay_disabled"}"#.to_owned());
    assert_eq!(record(&running, other, &silent).await, disabled);
    assert_eq!(
        record(&running, chunk(WEBSITE, &one, None), &ours).await,
        (200, r#"{"ok":false,"reason":"replay_disabled"}"#.to_owned())
    );
    running.applied(2).await;
    assert_eq!(running.totals().await.in_log, 2, "nothing of it was stored");
    drop(running);

    let (running, token) = recording(setup).await;
    let token = token["cache"].as_str().unwrap();
    let refused = record(
        &running,
        chunk(WEBSITE, &one, None),
        &[("x-umami-cache", token), ("x-forwarded-for", "192.0.2.9")],
    )
    .await;
    assert_eq!(refused.0, 403, "{}", refused.1);
    assert_eq!(
        record(&running, chunk(WEBSITE, &one, None), &[("x-umami-cache", token)]).await,
        (200, OK.to_owned())
    );
    assert_eq!(running.totals().await.in_log, 2);
}

async fn chunks_of_one_second_keep_their_order_and_their_events(setup: Setup) {
    let (running, token) = recording(setup).await;
    let ours = [("x-umami-cache", token["cache"].as_str().unwrap())];
    let second = 1_777_623_630_i64;
    let mut sent = Vec::new();
    for number in 0..6 {
        // Several of one second, one late, one large.
        let at = [second, second, second, second + 1, second - 5, second][number];
        let filler = if number == 3 { "x".repeat(300_000) } else { "é\u{0}".to_owned() };
        let events = json!([
            { "type": 4, "timestamp": at * 1_000 + 7, "number": number, "data": filler },
            { "type": 3, "timestamp": at * 1_000 + 3 },
        ]);
        assert_eq!(record(&running, chunk(WEBSITE, &events, Some(at)), &ours).await, (200, OK.to_owned()));
        sent.push(events);
    }
    running.applied(7).await;
    let encoded = if running.is_sqlite() { "hex(events)" } else { "encode(events, 'hex')" };
    let rows = running
        .texts(&format!(
            "SELECT chunk_index || ' ' || event_count || ' ' || {encoded} FROM session_replay
             WHERE website_id = '{WEBSITE}' AND visit_id = '{}' AND session_id = '{}' ORDER BY chunk_index",
            token["visitId"].as_str().unwrap(),
            token["sessionId"].as_str().unwrap()
        ))
        .await;
    let mut indexes = Vec::new();
    let mut numbers = Vec::new();
    for row in &rows {
        let [index, count, hex] = row.split(' ').collect::<Vec<_>>()[..] else { panic!("{row}") };
        assert_eq!(count, "2");
        indexes.push(index.parse::<i64>().unwrap() - second);
        let gzip: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_string(&mut text).expect("gzip");
        let events: Value = serde_json::from_str(&text).expect("JSON");
        let number = events[0]["number"].as_u64().unwrap() as usize;
        assert_eq!(events, sent[number]);
        numbers.push(number);
    }
    // The late one before all; those of one second in the order they came; the next second behind what they took.
    assert_eq!((indexes, numbers), (vec![-5, 0, 1, 2, 3, 4], vec![4, 0, 1, 2, 3, 5]));
    let times =
        running.rows_without("session_replay", &["events"], &format!("chunk_index = {}", second - 5)).await;
    assert_eq!(
        json!([times[0]["started_at"], times[0]["ended_at"]]),
        json!([(second - 5) * 1_000 + 3, (second - 5) * 1_000 + 7])
    );
    assert!(running.complaints().is_empty(), "{:?}", running.complaints());
}

async fn a_copy_of_a_named_chunk_is_stored_once(setup: Setup) {
    let (running, token) = recording(setup).await;
    let headers = [("x-umami-cache", token["cache"].as_str().unwrap()), ("idempotency-key", "chunk-1")];
    for copy in 0..3 {
        let body = chunk(WEBSITE, &json!([{ "n": 1 }]), Some(1_777_623_630));
        assert_eq!(record(&running, body, &headers).await, (200, OK.to_owned()));
        if copy == 1 {
            // The third copy meets a stored one, the second may meet the first in its batch.
            running.applied(3).await;
        }
    }
    let totals = running.applied(4).await;
    assert_eq!((totals.applied, totals.duplicate), (2, 2));
    assert_eq!(running.number("SELECT count(*) FROM session_replay").await, 1);
}
