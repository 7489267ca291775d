//! Websites, links and pixels: which of them take events, and from when on.

use std::time::Duration;

use integration_tests::setup::{WEBSITE, submission};
use integration_tests::{Setup, eventually, on_both_setups};
use serde_json::{Value, json};

use super::{UNKNOWN, UNKNOWN_ANSWER, assert_answer};

on_both_setups!(
    a_website_added_later_takes_events_within_two_seconds,
    a_removed_website_takes_no_events_but_with_a_token,
    links_and_pixels_are_not_looked_up,
);

#[tokio::test]
async fn unknown_websites_in_a_batch_wait_for_one_look_together() {
    let running = Setup::Embedded.start(&[]).await;
    let mut elements: Vec<Value> = (0..400)
        .map(|n: u128| {
            let website = uuid::Uuid::from_u128((n << 80) | 0x4000_8000_0000_0000_0000);
            submission("event", &json!({ "website": website, "url": "/" }))
        })
        .collect();
    elements.push(submission("event", &json!({ "url": "/" })));
    let began = std::time::Instant::now();
    let answer = running.post("/api/batch", Value::Array(elements).to_string(), &[]).await;
    let answer = answer.json();
    assert_eq!(
        (&answer["errors"], &answer["processed"]),
        (&json!(400), &json!(1)),
        "{}",
        answer["details"][0]
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    running.applied(1).await;
}

async fn a_website_added_later_takes_events_within_two_seconds(setup: Setup) {
    let running = setup.start(&[]).await;
    let body = submission("event", &json!({ "website": UNKNOWN }));
    assert_answer(&running.send(&body).await, 400, UNKNOWN_ANSWER, "unknown");
    let added = running.run(&["website", "add", "--name", "later", "--id", UNKNOWN]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    eventually(Duration::from_secs(2), "the website takes events", async || {
        let answer = running.send(&body).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let totals = running.applied(1).await;
    assert_eq!(totals.in_log, 1, "the refused ones are not in the log");
    assert_eq!(running.rows("website_event", "1 = 1").await[0]["website_id"], UNKNOWN);
}

async fn a_removed_website_takes_no_events_but_with_a_token(setup: Setup) {
    let running = setup.start(&[("DASHI_INGEST_WEBSITE_REFRESH_MS", "200")]).await;
    let token = running.accept("event", &json!({ "url": "/" })).await["cache"].as_str().unwrap().to_owned();
    let removed = running.run(&["website", "remove", WEBSITE]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    let body = submission("event", &json!({ "url": "/" })).to_string();
    eventually(Duration::from_secs(10), "the removed website is unknown", async || {
        let answer = running.post("/api/send", body.clone(), &[]).await;
        if answer.status == 400 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_answer(&running.post("/api/send", body.clone(), &[]).await, 400, UNKNOWN_ANSWER, "removed");
    let answer = running.post("/api/send", body, &[("x-umami-cache", &token)]).await;
    assert_eq!(answer.status, 200, "an open tab goes on as it does in Umami: {}", answer.text());
    running.applied(2).await;
    assert!(running.number("SELECT count(*) FROM website_event").await >= 2, "its rows stay");
    // It can come back.
    let added = running.run(&["website", "add", "--name", "again", "--id", WEBSITE]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    eventually(Duration::from_secs(2), "it takes events again", async || {
        running.send(&submission("event", &json!({ "url": "/" }))).await.status == 200
    })
    .await;
}

async fn links_and_pixels_are_not_looked_up(setup: Setup) {
    let running = setup.start(&[]).await;
    let pixel = "44444444-4444-4444-8444-444444444444";
    let payload = json!({ "url": "https://a.example/q/slug?utm_source=mail", "name": "named" });
    for (source, id) in [("link", UNKNOWN), ("pixel", pixel)] {
        let mut payload = payload.clone();
        payload[source] = json!(id);
        running.accept("event", &payload).await;
    }
    running.applied(2).await;
    for (id, event_type) in [(UNKNOWN, 3), (pixel, 4)] {
        let rows = running.rows("website_event", &format!("website_id = '{id}'")).await;
        let row = &rows[0];
        assert_eq!(
            json!([rows.len(), row["event_type"], row["event_name"], row["utm_source"], row["url_path"]]),
            json!([1, event_type, "named", "mail", "/q/slug"])
        );
        let sessions = running.rows("session", &format!("website_id = '{id}'")).await;
        assert_eq!(sessions[0]["session_id"], row["session_id"]);
    }
}
