//! Requests of clients other than the tracker.

use integration_tests::setup::WEBSITE;
use integration_tests::{Setup, http, on_both_setups};
use serde_json::{Value, json};

on_both_setups!(
    what_umamis_client_for_node_sends_is_taken_as_one_session,
    what_clients_for_python_send_is_taken_as_their_visitors,
);

/// The requests of `@umami/node` 0.4 (docs/umami-contract.md §19.3): its own agent, no token, keys that the server
/// ignores, mostly no URL.
async fn what_umamis_client_for_node_sends_is_taken_as_one_session(setup: Setup) {
    let running = setup.start(&[]).await;
    let agent = "Mozilla/5.0 Umami/20.11.1";
    let data = json!({ "plan": "pro", "seats": 5 });
    let bodies = [
        json!({ "type": "event", "payload": { "website": WEBSITE, "name": "signup", "data": data } }),
        json!({ "type": "event", "payload": {
            "website": WEBSITE, "url": "/docs?utm_source=mail", "title": "Docs", "hostname": "a.example",
            "referrer": "https://b.example/", "language": "en-GB", "screen": "1920x1080", "unknown": 1,
        } }),
        json!({ "type": "identify", "payload": { "website": WEBSITE, "session": "mine", "data": { "plan": "free" } } }),
        json!({ "type": "identify", "payload": { "website": WEBSITE, "session": "mine", "data": data } }),
    ];
    let mut sessions = Vec::new();
    for body in &bodies {
        let answer =
            http::post_json(&running.url("/api/send"), body, &[("user-agent", agent)]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["cache"].is_string(), "it is no bot: {}", answer.text());
        sessions.push(answer.json()["sessionId"].clone());
    }
    assert!(sessions.iter().all(|session| session == &sessions[0]), "{sessions:?}");
    running.applied(bodies.len() as u64).await;
    let shown = |rows: Vec<integration_tests::setup::Row>, columns: &[&str]| -> Vec<Value> {
        rows.iter().map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect()
    };
    let events = running.rows("website_event", "1 = 1").await;
    let mut events = shown(events, &["event_type", "event_name", "url_path", "hostname", "utm_source"]);
    events.sort_by_key(Value::to_string);
    let expected =
        [json!([1, null, "/docs", "a.example", "mail"]), json!([2, "signup", "", "localhost", null])];
    assert_eq!(events, expected);
    let session =
        shown(running.rows("session", "1 = 1").await, &["browser", "os", "device", "screen", "language"]);
    assert_eq!(session, [json!([null, null, "desktop", "1920x1080", "en-GB"])]);
    let mut properties = shown(running.rows("session_data", "1 = 1").await, &["data_key", "string_value"]);
    properties.sort_by_key(Value::to_string);
    assert_eq!(properties, [json!(["plan", "pro"]), json!(["seats", "5.0000"])]);
    assert_eq!(running.number("SELECT count(*) FROM event_data").await, 2);
}

/// The requests of `umami-analytics` 1.0 and `umami-asgi` 0.2 (docs/umami-contract.md §19.3): texts that are empty, an
/// `Authorization` that means nothing, a visitor's address and agent in headers, the whole `Accept-Language`.
async fn what_clients_for_python_send_is_taken_as_their_visitors(setup: Setup) {
    let running = setup.start(&[]).await;
    let agent = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";
    let phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1";
    let analytics = [("user-agent", agent), ("authorization", "Bearer None")];
    let asgi = [("user-agent", phone), ("x-real-ip", "203.0.113.7"), ("x-forwarded-for", "203.0.113.7")];
    let sale = json!({ "payload": {
        "hostname": "py.example", "language": "en-US", "referrer": "", "screen": "1920x1080", "title": "checkout",
        "url": "/checkout", "website": WEBSITE, "name": "checkout", "data": { "revenue": 19.99, "currency": "EUR" },
    }, "type": "event" });
    let without_data = json!({ "payload": {
        "hostname": "py.example", "language": "en-US", "referrer": "", "screen": "1920x1080", "title": "plain",
        "url": "/", "website": WEBSITE, "name": "plain", "data": {},
    }, "type": "event" });
    let view = json!({ "payload": {
        "hostname": "app.example", "language": "en-GB,en;q=0.5", "referrer": "https://www.b.example/x", "screen": "",
        "title": "", "url": "/feed", "website": WEBSITE,
    }, "type": "event" });
    for (body, headers) in [(&sale, &analytics[..]), (&without_data, &analytics[..]), (&view, &asgi[..])] {
        let answer = http::post_json(&running.url("/api/send"), body, headers).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.json()["cache"].is_string(), "it is no bot: {}", answer.text());
    }
    running.applied(3).await;
    let shown = |rows: Vec<integration_tests::setup::Row>, columns: &[&str]| -> Vec<Value> {
        let mut rows: Vec<Value> =
            rows.iter().map(|row| columns.iter().map(|column| row[*column].clone()).collect()).collect();
        rows.sort_by_key(Value::to_string);
        rows
    };
    let columns = ["event_type", "event_name", "url_path", "page_title", "hostname", "referrer_domain"];
    assert_eq!(
        shown(running.rows("website_event", "1 = 1").await, &columns),
        [
            json!([1, null, "/feed", "", "app.example", "b.example"]),
            json!([2, "checkout", "/checkout", "checkout", "py.example", null]),
            json!([2, "plain", "/", "plain", "py.example", null]),
        ]
    );
    assert_eq!(
        shown(running.rows("session", "1 = 1").await, &["browser", "os", "device", "screen", "language"]),
        [
            json!(["chrome", "Mac OS", "laptop", "1920x1080", "en-US"]),
            json!(["ios", "iOS", "mobile", "", "en-GB,en;q=0.5"]),
        ]
    );
    assert_eq!(running.number("SELECT count(*) FROM event_data").await, 2);
    let sales = shown(running.rows("revenue", "1 = 1").await, &["event_name", "currency"]);
    assert_eq!(sales, [json!(["checkout", "EUR"])]);
}
