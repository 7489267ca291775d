//! A client that names its events may send them again, however, whenever and wherever to: each is there once.

use std::collections::BTreeMap;

use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor, named_event_id};
use dashi_domain::log_record::LogRecord;
use dashi_domain::partitioner::{key, partition_for};
use integration_tests::setup::{AGENT, SECRET, WEBSITE, submission};
use integration_tests::{Running, Setup, on_both_setups};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

on_both_setups!(copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each,);

const AT_S: i64 = 1_777_593_600;

/// An event of a moment of its own: a copy is then the same to the last column, whichever of the two is applied.
fn event(place: i64, members: Value) -> Value {
    let mut payload = json!({ "url": format!("/{place}"), "timestamp": AT_S + place });
    payload.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    submission("event", &payload)
}

/// Posts and returns the answer, which must be 200.
async fn post(running: &Running, path: &str, body: &Value, key: Option<&str>) -> Value {
    let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    let answer = running.post(path, body.to_string(), &headers).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    let answer = answer.json();
    if path == "/api/batch" {
        let size = body.as_array().unwrap().len();
        assert_eq!((&answer["processed"], &answer["errors"]), (&json!(size), &json!(0)), "{answer}");
    }
    answer
}

/// Sends everything that has a name, once.
async fn send_all(running: &Running) -> Vec<Value> {
    let named = |place, name: &str| event(place, json!({ "messageId": name }));
    let identify = json!({ "messageId": "i1", "id": "user", "data": { "seats": 1 }, "timestamp": AT_S });
    let (first, second) = (event(3, json!({})), event(4, json!({ "name": "custom", "data": { "a": 1 } })));
    vec![
        post(running, "/api/send", &named(0, "m0"), None).await,
        // Twice in one batch, beside one that is another event, and beside what was sent alone.
        post(
            running,
            "/api/batch",
            &json!([named(1, "m1"), named(1, "m1"), named(2, "m2"), named(0, "m0"), named(1, "m1")]),
            None,
        )
        .await,
        post(running, "/api/send", &submission("identify", &identify), None).await,
        // A request's key, and the same on a batch: that names its elements by their places.
        post(running, "/api/send", &first, Some("r1")).await,
        post(running, "/api/batch", &json!([event(5, json!({})), second]), Some("r1")).await,
        // An event's own name goes before its request's.
        post(running, "/api/batch", &json!([named(2, "m2"), event(6, json!({}))]), Some("r2")).await,
    ]
}

async fn copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each(setup: Setup) {
    const RECORDS: u64 = 1 + 5 + 1 + 1 + 2 + 2;
    let mut running = setup.start(&[]).await;
    let first = send_all(&running).await;
    let again = send_all(&running).await;
    for (first, again) in first.iter().zip(&again) {
        for id in ["sessionId", "visitId"] {
            assert_eq!(first[id], again[id], "a copy gets the same answer");
        }
    }
    assert_eq!(running.dashi().terminate().await, Some(0));
    running.start_again().await;
    send_all(&running).await;

    let totals = running.applied(3 * RECORDS).await;
    let expected = [("/0", "m0"), ("/1", "m1"), ("/2", "m2"), ("/3", ""), ("/4", ""), ("/5", ""), ("/6", "")];
    assert_eq!((totals.in_log, totals.applied), (3 * RECORDS, expected.len() as u64 + 1));
    let rows = running.rows("website_event", "1 = 1").await;
    assert_eq!(rows.len(), expected.len(), "{rows:?}");
    for (row, (path, name)) in rows.iter().zip(expected) {
        assert_eq!(row["url_path"], path);
        if !name.is_empty() {
            let id = named_event_id(WEBSITE.parse().unwrap(), &format!("message:{name}"));
            assert_eq!(row["event_id"], id.to_string());
        }
    }
    assert_eq!(running.number("SELECT count(*) FROM event_data").await, 1);
    let identifies = format!("SELECT count(*) FROM {}", running.own("identify"));
    assert_eq!(running.number(&identifies).await, 1);
    assert_eq!(running.complaints(), [""; 0]);
    running.assert_replay_gives_the_same_rows().await;
}

/// Copies of one event in two partitions: the writer of the second finds the first one's rows.
#[tokio::test]
async fn a_copy_in_another_partition_of_a_topic_that_grew_changes_nothing() {
    const BEFORE: u32 = 2;
    const AFTER: u32 = 7;
    const VISITORS: usize = 12;
    let running = Setup::KafkaAndPostgres.start(&[("DASHI_EVENT_LOG_PARTITIONS", "2")]).await;
    let rules = IdRules {
        secret: Secret::from_text(SECRET),
        rotation: SaltRotation::Month,
        zone: TimeZone::UTC,
        identified: IdentifiedSessions::Shared,
    };
    let partitions = |id: &str| {
        let visitor = Visitor { source: WEBSITE, address: "", user_agent: AGENT, distinct_id: Some(id) };
        let key = key(rules.session_id(&visitor, AT_S * 1_000));
        [BEFORE, AFTER].map(|count| partition_for(key.as_bytes(), count))
    };
    let moves = |id: &String| {
        let [before, after] = partitions(id);
        before != after
    };
    let visitors: Vec<String> =
        (0..).map(|number| format!("visitor-{number}")).filter(moves).take(VISITORS).collect();
    let send = async |running: &Running| {
        for (place, id) in visitors.iter().enumerate() {
            let place = place as i64;
            let page =
                event(place, json!({ "id": id, "messageId": format!("page-{place}"), "data": { "a": 1 } }));
            let answer = post(running, "/api/send", &page, None).await;
            let identify = json!({
                "id": id, "messageId": format!("identify-{place}"), "data": { "plan": place }, "timestamp": AT_S + place,
            });
            let other = post(running, "/api/send", &submission("identify", &identify), None).await;
            assert_eq!(answer["sessionId"], other["sessionId"]);
        }
    };
    send(&running).await;
    let sent = 2 * VISITORS as u64;
    assert_eq!(running.applied(sent).await.applied, sent);
    let grown = running.run(&["partitions", "grow", "--to", &AFTER.to_string()]).await;
    assert_eq!(grown.code, Some(0), "{}", grown.stderr);
    send(&running).await;

    let barriers = u64::from(AFTER);
    let totals = running.applied(2 * sent + barriers).await;
    assert_eq!(
        (totals.in_log, totals.applied, totals.duplicate),
        (2 * sent + barriers, sent + barriers, sent)
    );
    let mut places: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for record in running.records().await {
        let Ok(LogRecord::Event(event)) = LogRecord::decode(&record.value) else { continue };
        places.entry(event.event_id).or_default().push(record.partition);
    }
    assert_eq!(places.len() as u64, sent);
    for places in places.values() {
        assert!(matches!(places[..], [first, second] if first != second), "the copies lie apart: {places:?}");
    }
    let counts = [("website_event", 1), ("event_data", 1), ("session", 1), ("session_data", 1)];
    for (table, of_visitor) in counts {
        let count = running.number(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(count, of_visitor * VISITORS as i64, "{table}");
    }
    assert_eq!(running.complaints(), [""; 0]);
    // A barrier orders the copies, in a replay as well.
    running.assert_replay_gives_the_same_rows().await;
}
