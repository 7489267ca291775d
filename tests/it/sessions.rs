//! A session is made by its first event, whatever that is, and is there for every event, however many arrive at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dashi_domain::record::Event;
use integration_tests::http::Connection;
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{Running, Setup, on_both_setups};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

on_both_setups!(
    an_identify_before_twenty_page_views_makes_one_session_with_all_its_properties,
    two_hundred_first_events_at_once_make_one_session,
    whatever_changes_while_a_token_is_kept_no_event_lacks_its_session,
    the_first_events_attributes_stay_and_later_ones_fill_what_was_null,
    a_session_is_of_one_device_and_one_place,
    every_type_of_event_alone_makes_the_session,
    a_property_has_its_last_value_and_the_others_stay,
    of_conflicting_identifies_the_last_in_the_log_stays,
    ten_thousand_identifies_at_once_leave_one_row_per_key,
    a_copy_of_a_named_event_is_answered_and_changes_nothing,
);

/// Events and properties without a session row.
async fn orphans(running: &Running) -> i64 {
    let lacks = |table: &str| {
        format!(
            "(SELECT count(*) FROM {table} AS t WHERE NOT EXISTS
              (SELECT 1 FROM session AS s WHERE s.session_id = t.session_id AND s.website_id = t.website_id))"
        )
    };
    let tables = ["website_event", "session_data", "revenue"].map(lacks);
    running.number(&format!("SELECT {}", tables.join(" + "))).await
}

/// The properties of a session as text by key.
async fn properties(running: &Running, session: &str) -> BTreeMap<String, String> {
    let rows = running.rows("session_data", &format!("session_id = '{session}'")).await;
    let count = rows.len();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found: BTreeMap<_, _> =
        rows.iter().map(|row| (text(&row["data_key"]), text(&row["string_value"]))).collect();
    assert_eq!(found.len(), count, "one row per key: {rows:?}");
    found
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn an_identify_before_twenty_page_views_makes_one_session_with_all_its_properties(setup: Setup) {
    let running = setup.start(&[]).await;
    let data = json!({ "plan": "pro", "seats": 5, "beta": true });
    let first = running.accept("identify", &json!({ "id": "user-1", "data": data })).await;
    let mut token = String::new();
    for page in 0..20 {
        let body =
            submission("event", &json!({ "id": "user-1", "url": format!("/{page}"), "screen": "1920x1080" }));
        let answer = running.post("/api/send", body.to_string(), &[("x-umami-cache", &token)]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["sessionId"], first["sessionId"]);
        token = answer.json()["cache"].as_str().unwrap().to_owned();
    }
    running.applied(21).await;
    let sessions = running.rows("session", "1 = 1").await;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(
        json!([
            sessions[0]["session_id"],
            sessions[0]["distinct_id"],
            sessions[0]["browser"],
            sessions[0]["screen"]
        ]),
        json!([first["sessionId"], "user-1", "chrome", "1920x1080"])
    );
    let mut paths: Vec<_> = running
        .rows("website_event", "event_type = 1")
        .await
        .iter()
        .map(|row| row["url_path"].as_str().unwrap().to_owned())
        .collect();
    paths.sort();
    let mut expected: Vec<_> = (0..20).map(|page| format!("/{page}")).collect();
    expected.sort();
    assert_eq!(paths, expected);
    let session = first["sessionId"].as_str().unwrap();
    let expected = map(&[("plan", "pro"), ("seats", "5.0000"), ("beta", "true")]);
    assert_eq!(properties(&running, session).await, expected);
    assert_eq!(running.complaints(), [""; 0]);
}

async fn two_hundred_first_events_at_once_make_one_session(setup: Setup) {
    let running = setup.start(&[]).await;
    let mut connections = Vec::new();
    for _ in 0..200 {
        connections.push(Connection::open(running.authority()).await.unwrap());
    }
    let mut posts = JoinSet::new();
    for (place, mut connection) in connections.into_iter().enumerate() {
        let body = if place % 2 == 0 {
            submission("event", &json!({ "url": format!("/{place}") }))
        } else {
            submission("identify", &json!({ "data": { (format!("key-{place}")): place, "shared": place } }))
        };
        posts.spawn(async move {
            connection.post_json("/api/send", &body, &[("user-agent", AGENT)]).await.unwrap()
        });
    }
    let answers = posts.join_all().await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["sessionId"], answers[0].json()["sessionId"]);
    }
    let totals = running.applied(200).await;
    assert_eq!((totals.in_log, totals.applied), (200, 200));
    assert_eq!(running.number("SELECT count(*) FROM session").await, 1);
    assert_eq!(running.number("SELECT count(*) FROM website_event").await, 100);
    assert_eq!(running.number("SELECT count(*) FROM session_data").await, 101);
    assert_eq!(orphans(&running).await, 0);
    assert_eq!(running.complaints(), [""; 0]);
}

async fn whatever_changes_while_a_token_is_kept_no_event_lacks_its_session(setup: Setup) {
    let running = setup.start(&[]).await;
    let may = 1_777_593_600;
    let base = json!({ "url": "/", "ip": "192.0.2.1", "userAgent": AGENT, "timestamp": may });
    let first = running.accept("event", &base).await;
    let token = first["cache"].as_str().unwrap().to_owned();
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let mut sessions = vec![first["sessionId"].clone()];
    for change in [
        json!({ "ip": "192.0.2.2" }),
        json!({ "userAgent": firefox }),
        json!({ "timestamp": may - 1 }),
        json!({ "timestamp": may + 32 * 86_400 }),
        json!({ "id": "user-1" }),
        json!({ "ip": "192.0.2.3", "userAgent": firefox, "id": "user-2", "timestamp": may - 99 * 86_400 }),
    ] {
        let mut payload = base.clone();
        payload.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let mut of_change = Vec::new();
        for kind in ["event", "performance", "identify"] {
            let mut payload = payload.clone();
            payload["data"] = json!({ "revenue": 5, "currency": "EUR" });
            let body = submission(kind, &payload).to_string();
            let answer = running.post("/api/send", body, &[("x-umami-cache", &token)]).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["visitId"], first["visitId"], "the token's visit goes on");
            of_change.push(answer.json()["sessionId"].clone());
        }
        assert!(of_change.iter().all(|session| session == &of_change[0]));
        assert!(!sessions.contains(&of_change[0]), "{change} makes another session");
        sessions.push(of_change.remove(0));
    }
    running.applied(19).await;
    assert_eq!(orphans(&running).await, 0);
    let rows = running.rows("session", "1 = 1").await;
    assert_eq!(rows.len(), sessions.len());
    for session in sessions {
        assert!(rows.iter().any(|row| row["session_id"] == session), "{session}");
    }
    assert_eq!(running.number("SELECT count(*) FROM website_event").await, 13);
    assert_eq!(running.number("SELECT count(*) FROM revenue").await, 6);
}

async fn the_first_events_attributes_stay_and_later_ones_fill_what_was_null(setup: Setup) {
    let running = setup.start(&[]).await;
    let at: i64 = 1_777_593_600;
    let post = async |payload: Value, headers: &[(&str, &str)]| {
        let mut payload = payload;
        payload["id"] = json!("visitor");
        // No agent of the harness: what is not said is not known.
        let body = submission("event", &payload);
        let answer =
            integration_tests::http::post_json(&running.url("/api/send"), &body, headers).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let london = [
        ("cf-connecting-ip", "203.0.113.1"),
        ("cf-ipcountry", "GB"),
        ("cf-region-code", "ENG"),
        ("cf-ipcity", "London"),
    ];
    let paris = [
        ("cf-connecting-ip", "203.0.113.2"),
        ("cf-ipcountry", "FR"),
        ("cf-region-code", "IDF"),
        ("cf-ipcity", "Paris"),
    ];
    post(json!({ "url": "/1", "language": "de-DE", "timestamp": at }), &[]).await;
    running.applied(1).await;
    let row = running.rows("session", "1 = 1").await.remove(0);
    let columns =
        ["browser", "os", "device", "screen", "language", "country", "region", "city", "distinct_id"];
    let shown = |row: &integration_tests::setup::Row| Value::from_iter(columns.map(|name| row[name].clone()));
    let expected = json!([null, null, "desktop", null, "de-DE", null, null, null, "visitor"]);
    assert_eq!(shown(&row), expected);

    // In a later batch, and three in one.
    let later = json!({ "url": "/2", "screen": "800x600", "browser": "chrome", "language": "fr", "timestamp": at - 9 });
    post(later, &london).await;
    running.applied(2).await;
    let expected = json!([null, null, "desktop", null, "de-DE", "GB", "GB-ENG", "London", "visitor"]);
    assert_eq!(shown(&running.rows("session", "1 = 1").await[0]), expected, "a screen is of its own browser");
    post(
        json!({ "url": "/3", "screen": "1x1", "os": "ours", "device": "console", "timestamp": at + 1 }),
        &paris,
    )
    .await;
    post(json!({ "url": "/4", "userAgent": AGENT, "device": "desktop", "timestamp": at + 2 }), &paris).await;
    post(
        json!({ "url": "/5", "userAgent": AGENT, "device": "tablet", "screen": "2x2", "timestamp": at + 3 }),
        &paris,
    )
    .await;
    running.applied(5).await;
    let rows = running.rows("session", "1 = 1").await;
    assert_eq!(rows.len(), 1);
    let expected =
        json!(["chrome", "Windows 10", "desktop", "2x2", "de-DE", "GB", "GB-ENG", "London", "visitor"]);
    assert_eq!(shown(&rows[0]), expected);
    assert_eq!(rows[0]["created_at"], at * 1_000, "it began with its first event");
    assert_eq!(running.number("SELECT count(*) FROM website_event").await, 5);
}

/// A person with two devices has one session where a distinct id is one. Filled column by column it would be a visitor
/// who does not exist: Safari on Windows on a PlayStation, in an English village in Japan.
async fn a_session_is_of_one_device_and_one_place(setup: Setup) {
    let running = setup.start(&[]).await;
    let console = "Mozilla/5.0 (PlayStation; PlayStation 5/6.50) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/15.4 \
                   Safari/605.1.15";
    let from = |country: &'static str, region: &'static str, city: &'static str| {
        let named = [("cf-ipcountry", country), ("cf-region-code", region), ("cf-ipcity", city)];
        [("cf-connecting-ip", "203.0.113.7")]
            .into_iter()
            .chain(named.into_iter().filter(|(_, value)| !value.is_empty()))
            .collect::<Vec<_>>()
    };
    let post = async |visitor: &str, agent: &str, screen: Option<&str>, headers: &[(&str, &str)]| {
        let mut payload = json!({ "url": "/r", "id": visitor, "userAgent": agent });
        if let Some(screen) = screen {
            payload["screen"] = json!(screen);
        }
        let body = submission("event", &payload);
        let sent = integration_tests::http::post_json(&running.url("/api/send"), &body, headers).await;
        assert_eq!(sent.unwrap().status, 200);
    };
    let mut sent = 0;
    let mut expected = Vec::new();
    // In batches of their own, and in one: the others' events come before any of the second ones.
    let second = from("GB", "ENG", "Willesden");
    for (visitor, place) in [("apart", from("JP", "", "")), ("together", from("JP", "", ""))] {
        post(visitor, console, None, &place).await;
        sent += 1;
        if visitor == "apart" {
            running.applied(sent).await;
        }
        post(visitor, AGENT, Some("1920x1080"), &second).await;
        sent += 1;
        expected.push(json!([visitor, "safari", null, "console", null, "JP", null, null]));
    }
    // Region and city of an event of the same country belong to it, if no value that is set contradicts.
    for (visitor, places, row) in [
        ("further", [("US", "", ""), ("DE", "BE", "Berlin")], ["US", "", ""]),
        ("nearer", [("US", "", ""), ("US", "CA", "Fresno")], ["US", "US-CA", "Fresno"]),
        ("next door", [("US", "CA", ""), ("US", "TX", "Dallas")], ["US", "US-CA", ""]),
        ("unknown", [("", "", ""), ("DE", "BE", "Berlin")], ["DE", "DE-BE", "Berlin"]),
    ] {
        for (country, region, city) in places {
            post(visitor, AGENT, Some("1920x1080"), &from(country, region, city)).await;
            sent += 1;
        }
        let place = row.map(|value| if value.is_empty() { Value::Null } else { json!(value) });
        let [country, region, city] = place;
        expected.push(json!([visitor, "chrome", "Windows 10", "laptop", "1920x1080", country, region, city]));
    }
    running.applied(sent).await;
    let columns = ["distinct_id", "browser", "os", "device", "screen", "country", "region", "city"];
    let rows = running.rows("session", "1 = 1").await;
    let mut rows: Vec<_> =
        rows.iter().map(|row| Value::from_iter(columns.map(|name| row[name].clone()))).collect();
    for of in [&mut rows, &mut expected] {
        of.sort_by_key(|row| row[0].to_string());
    }
    assert_eq!(rows, expected);
}

async fn every_type_of_event_alone_makes_the_session(setup: Setup) {
    let running = setup.start(&[]).await;
    let link = "33333333-3333-4333-8333-333333333333";
    let cases = [
        ("event", json!({ "url": "/" })),
        ("event", json!({ "url": "/", "name": "signup" })),
        ("identify", json!({})),
        ("identify", json!({ "data": { "a": 1 } })),
        ("performance", json!({ "url": "/", "lcp": 1 })),
        ("event", json!({ "link": link, "url": "/" })),
        ("event", json!({ "pixel": link, "url": "/" })),
        ("identify", json!({ "link": link, "data": { "a": 1 } })),
    ];
    let mut expected = Vec::new();
    for (place, (kind, payload)) in cases.iter().enumerate() {
        let mut payload = payload.clone();
        payload["id"] = json!(format!("visitor-{place}"));
        payload["timestamp"] = json!(1_777_593_600 + place);
        payload["screen"] = json!("800x600");
        let answer = running.accept(kind, &payload).await;
        let website = if payload.get("link").or(payload.get("pixel")).is_some() { link } else { WEBSITE };
        expected.push(json!([
            answer["sessionId"],
            website,
            "chrome",
            "Windows 10",
            "laptop",
            "800x600",
            format!("visitor-{place}"),
            (1_777_593_600 + place) * 1_000
        ]));
    }
    running.applied(cases.len() as u64).await;
    let columns =
        ["session_id", "website_id", "browser", "os", "device", "screen", "distinct_id", "created_at"];
    let rows = running.rows("session", "1 = 1").await;
    let rows: Vec<_> =
        rows.iter().map(|row| Value::from_iter(columns.map(|name| row[name].clone()))).collect();
    assert_eq!(rows, expected);
    let types: Vec<_> =
        running.rows("website_event", "1 = 1").await.iter().map(|row| row["event_type"].clone()).collect();
    assert_eq!(types, [1, 2, 5, 3, 4], "an identify is no event");
}

async fn a_property_has_its_last_value_and_the_others_stay(setup: Setup) {
    let running = setup.start(&[]).await;
    let at: i64 = 1_777_593_600;
    let identify = async |place: i64, data: Value| {
        let payload = json!({ "data": data, "id": "user-1", "timestamp": at + place });
        running.accept("identify", &payload).await
    };
    let session =
        identify(0, json!({ "plan": "free", "seats": 1, "kept": "yes", "address": { "city": "Ulm" } })).await;
    running.applied(1).await;
    let ids = async || {
        let rows = running.rows("session_data", "1 = 1").await;
        rows.iter()
            .map(|row| (row["data_key"].to_string(), row["session_data_id"].clone()))
            .collect::<HashMap<_, _>>()
    };
    let before = ids().await;
    // In one batch and in two; back in time, for the log's order counts and not the event's moment.
    identify(5, json!({ "plan": "pro", "seats": "many" })).await;
    identify(3, json!({ "plan": null, "address": { "city": "Köln", "zip": 50667 } })).await;
    identify(9, json!({})).await;
    running.applied(4).await;
    let after = ids().await;
    for (key, id) in before {
        assert_eq!(after[&key], id, "a property keeps its row");
    }
    let rows = running.rows("session_data", "1 = 1").await;
    let mut rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let columns =
                ["data_key", "data_type", "string_value", "number_value", "created_at", "distinct_id"];
            assert_eq!((&row["session_id"], &row["website_id"]), (&session["sessionId"], &json!(WEBSITE)));
            Value::from_iter(columns.map(|name| row[name].clone()))
        })
        .collect();
    rows.sort_by_key(|row| row[0].to_string());
    let moment = |place: i64| (at + place) * 1_000;
    let expected = [
        json!(["address.city", 1, "Köln", null, moment(3), "user-1"]),
        json!(["address.zip", 2, "50667.0000", 50667.0, moment(3), "user-1"]),
        json!(["kept", 1, "yes", null, moment(0), "user-1"]),
        json!(["plan", 5, "null", null, moment(3), "user-1"]),
        json!(["seats", 1, "many", null, moment(5), "user-1"]),
    ];
    assert_eq!(rows, expected);
    assert_eq!(running.complaints(), [""; 0]);
}

/// The properties that each session has by the order of its identifies in the log.
async fn last_in_the_log(running: &Running) -> BTreeMap<String, BTreeMap<String, String>> {
    // A session lies in one partition, so the order of its records there is the order of its identifies.
    let mut expected: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for record in running.records().await {
        let event = Event::decode(&record.value).expect("an event");
        let of_session = expected.entry(event.session_id.to_string()).or_default();
        for (key, value) in event.submission.payload.data.expect("every identify has data") {
            let text = value.as_str().map_or_else(|| format!("{}.0000", value.to_json()), str::to_owned);
            of_session.insert(key.into_owned(), text);
        }
    }
    expected
}

async fn of_conflicting_identifies_the_last_in_the_log_stays(setup: Setup) {
    const CONNECTIONS: usize = 20;
    const REQUESTS: usize = 100;
    const VISITORS: usize = 5;
    let running = setup.start(&[]).await;
    let mut posts = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let mut open = Connection::open(running.authority()).await.unwrap();
        posts.spawn(async move {
            for request in 0..REQUESTS {
                let data = json!({
                    "shared": format!("{connection}-{request}"), (format!("key-{}", request % 3)): request,
                });
                let visitor = format!("visitor-{}", (connection + request) % VISITORS);
                let body = submission("identify", &json!({ "id": visitor, "data": data }));
                let answer = open.post_json("/api/send", &body, &[]).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        });
    }
    posts.join_all().await;
    let sent = (CONNECTIONS * REQUESTS) as u64;
    assert_eq!(running.applied(sent).await.in_log, sent);
    let expected = last_in_the_log(&running).await;
    assert_eq!(expected.len(), VISITORS);
    assert_eq!(running.number("SELECT count(*) FROM session").await, VISITORS as i64);
    for (session, last) in &expected {
        assert_eq!(properties(&running, session).await, *last, "{session}");
    }
    assert_eq!(running.number("SELECT count(*) FROM session_data").await, (VISITORS * 4) as i64);
    assert_eq!(running.complaints(), [""; 0]);
}

/// Where Umami fails: two inserts of one key, and from then on every identify of that session (its #4183 and #4430).
async fn ten_thousand_identifies_at_once_leave_one_row_per_key(setup: Setup) {
    const CONNECTIONS: usize = 200;
    const REQUESTS: usize = 50;
    const VISITORS: usize = 4;
    const KEYS: usize = 5;
    let running = setup.start(&[]).await;
    let began = Arc::new(Barrier::new(CONNECTIONS));
    let mut posts = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let mut open = Connection::open(running.authority()).await.unwrap();
        let began = Arc::clone(&began);
        posts.spawn(async move {
            began.wait().await;
            for request in 0..REQUESTS {
                let value = format!("{connection}-{request}");
                let (first, second) = (request % KEYS, (request + connection) % KEYS);
                let data = json!({
                    "shared": value, (format!("key-{first}")): value, (format!("key-{second}")): value,
                });
                let visitor = format!("visitor-{}", (connection + request) % VISITORS);
                let body = submission("identify", &json!({ "id": visitor, "data": data }));
                let answer = open.post_json("/api/send", &body, &[]).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(answer.json()["cache"].is_string(), "{}", answer.text());
            }
        });
    }
    posts.join_all().await;
    let sent = (CONNECTIONS * REQUESTS) as u64;
    let totals = running.applied(sent).await;
    assert_eq!((totals.in_log, totals.applied, totals.duplicate), (sent, sent, 0));
    let expected = last_in_the_log(&running).await;
    assert_eq!(expected.len(), VISITORS);
    for (session, last) in &expected {
        assert_eq!(last.len(), KEYS + 1);
        assert_eq!(properties(&running, session).await, *last, "{session}");
    }
    let rows = (VISITORS * (KEYS + 1)) as i64;
    assert_eq!(running.number("SELECT count(*) FROM session_data").await, rows);
    assert_eq!(running.number("SELECT count(*) FROM session").await, VISITORS as i64);
    let identifies = format!("SELECT count(*) FROM {}", running.own("identify"));
    assert_eq!(running.number(&identifies).await, sent as i64);
    assert_eq!(running.complaints(), [""; 0]);
}

/// A client that did not hear the answer sends again, perhaps from another address: the copy lies in another session's
/// partition, and is still the same event.
async fn a_copy_of_a_named_event_is_answered_and_changes_nothing(setup: Setup) {
    let running = setup.start(&[]).await;
    for ip in ["192.0.2.1", "192.0.2.2"] {
        running.accept("event", &json!({ "messageId": "m1", "url": "/named", "ip": ip })).await;
    }
    let first = running.accept("identify", &json!({ "messageId": "m2", "data": { "seats": 1 } })).await;
    running.accept("identify", &json!({ "messageId": "m2", "data": { "seats": 2 } })).await;
    let element = |url: &str| submission("event", &json!({ "url": url }));
    let batch = json!([element("/first"), element("/second")]).to_string();
    for _ in 0..2 {
        let answer = running.post("/api/batch", batch.clone(), &[("idempotency-key", "r1")]).await;
        assert_eq!((answer.status, answer.json()["processed"].clone()), (200, json!(2)));
    }
    running.applied(8).await;
    let rows = running.rows("website_event", "1 = 1").await;
    let mut paths: Vec<_> = rows.iter().map(|row| row["url_path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/first", "/named", "/second"]);
    let session = first["sessionId"].as_str().unwrap();
    assert_eq!(properties(&running, session).await, map(&[("seats", "1.0000")]));
    assert_eq!(orphans(&running).await, 0);
}
