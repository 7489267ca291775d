//! The vectors recorded from Umami, sent to the real process and read back from its tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use integration_tests::setup::{AGENT, Row, SECRET, WEBSITE, submission};
use integration_tests::vectors::{self, IdVector};
use integration_tests::{Running, Setup, on_both_setups};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

on_both_setups!(
    every_recorded_id_of_the_usual_settings_is_answered_and_stored,
    every_recorded_event_gives_its_row,
    every_recorded_data_gives_its_rows,
    every_kind_of_leaf_is_stored_in_its_columns,
    what_umami_fails_on_is_stored_within_the_columns_bounds,
    every_line_of_umamis_failures_is_answered_and_stored,
    every_recorded_agent_is_detected_or_refused_as_a_bot,
);

const SILENCE: Duration = Duration::from_secs(10);

/// The members of a JSON object.
fn object(value: &Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn is_usual(vector: &IdVector) -> bool {
    vector.secret_input == SECRET && vector.salt_rotation == "month" && vector.tz == "UTC"
}

/// Sends the event of one vector and compares the ids in the answer and in the row.
async fn assert_ids(running: &Running, vector: &IdVector, source: &str) {
    let ip = vector.ip.as_deref().expect("an address can be sent");
    let payload = json!({
        source: vector.source_id, "ip": ip, "userAgent": vector.user_agent, "timestamp": vector.timestamp, "url": "/",
    });
    let mut payload = object(&payload);
    if let Some(id) = &vector.distinct_id {
        payload.insert("id".to_owned(), json!(id));
    }
    let answer = running.accept("event", &Value::Object(payload)).await;
    assert_eq!(answer["sessionId"], vector.session_id, "{vector:?}");
    assert_eq!(answer["visitId"], vector.visit_id, "{vector:?}");
}

async fn assert_stored(running: &Running, vector: &IdVector) {
    let found = running
        .rows(
            "website_event",
            &format!(
                "session_id = '{}' AND visit_id = '{}' AND website_id = '{}'",
                vector.session_id,
                vector.visit_id,
                vector.source_id.to_lowercase()
            ),
        )
        .await;
    let at = json!(vector.timestamp * 1_000);
    assert!(found.iter().any(|row| row["created_at"] == at), "{vector:?} is not among {found:?}");
}

async fn every_recorded_id_of_the_usual_settings_is_answered_and_stored(setup: Setup) {
    let running = setup.start(&[]).await;
    let vectors: Vec<_> = vectors::load().ids.into_iter().filter(is_usual).collect();
    assert_eq!(vectors.len(), 9);
    let mut sent = Vec::new();
    for vector in &vectors {
        // The peer's address stands in for a missing one, so this one cannot arrive over HTTP.
        if vector.ip.is_none() {
            continue;
        }
        let source = if vector.note.contains("link") { "link" } else { "website" };
        if source == "website" && vector.source_id != WEBSITE {
            let id = vector.source_id.to_lowercase();
            let added = running.run(&["website", "add", "--name", "other", "--id", &id]).await;
            assert_eq!(added.code, Some(0), "{}", added.stderr);
        }
        assert_ids(&running, vector, source).await;
        sent.push(vector);
    }
    assert_eq!(sent.len(), 8, "one vector has neither address nor agent");
    running.applied(sent.len() as u64).await;
    for vector in sent {
        assert_stored(&running, vector).await;
    }
}

#[test]
fn without_address_and_agent_the_session_is_that_of_empty_texts() {
    let all = vectors::load().ids;
    let vector = all.iter().find(|vector| vector.ip.is_none()).expect("it was recorded");
    assert_eq!(vector.user_agent, None);
    let rules = IdRules {
        secret: Secret::from_text(&vector.secret_input),
        rotation: SaltRotation::Month,
        zone: TimeZone::UTC,
        identified: IdentifiedSessions::Shared,
    };
    let visitor = Visitor { source: &vector.source_id, address: "", user_agent: "", distinct_id: None };
    let session = rules.session_id(&visitor, vector.timestamp * 1_000);
    assert_eq!(session.to_string(), vector.session_id);
    assert_eq!(rules.visit_id(session, vector.timestamp * 1_000).to_string(), vector.visit_id);
}

#[tokio::test]
async fn an_agents_header_is_read_as_latin_1() {
    let all = vectors::load().ids;
    let vector = all.iter().find(|vector| vector.note.contains("latin-1")).expect("it was recorded");
    let agent = vector.user_agent.as_deref().expect("it has an agent");
    let latin1: Vec<u8> = agent.chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect();
    assert!(latin1.contains(&0xF6));
    let running = Setup::Embedded.start(&[]).await;
    let payload = json!({ "ip": vector.ip, "timestamp": vector.timestamp, "url": "/" });
    let body = submission("event", &payload).to_string();
    let head = format!(
        "POST /api/send HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    let request = [head.as_bytes(), b"user-agent: ", &latin1, b"\r\n\r\n", body.as_bytes()].concat();
    let answer = running.raw(&request, SILENCE).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains(&vector.session_id) && answer.contains(&vector.visit_id), "{answer}");
}

#[tokio::test]
async fn rotation_and_time_zone_decide_the_salts() {
    let all = vectors::load().ids;
    let vectors: Vec<_> =
        all.iter().filter(|vector| vector.secret_input == SECRET && !is_usual(vector)).collect();
    let settings: BTreeSet<_> =
        vectors.iter().map(|vector| (vector.salt_rotation.as_str(), vector.tz.as_str())).collect();
    assert_eq!(settings.len(), 4);
    let mut sent = 0;
    for (rotation, tz) in settings {
        let env = [("DASHI_INGEST_SALT_ROTATION", rotation), ("DASHI_TIMEZONE", tz)];
        let running = Setup::Embedded.start(&env).await;
        for vector in vectors.iter().filter(|vector| vector.salt_rotation == rotation && vector.tz == tz) {
            assert_ids(&running, vector, "website").await;
            sent += 1;
        }
    }
    assert_eq!(sent, vectors.len());
}

#[tokio::test]
async fn umamis_own_variables_decide_the_salts_too() {
    let all = vectors::load().ids;
    let vector = all.iter().find(|vector| vector.salt_rotation == "week" && vector.tz != "UTC");
    let vector = vector.expect("it was recorded");
    let env = [("SALT_ROTATION", "week"), ("TZ", vector.tz.as_str())];
    let running = Setup::Embedded.start(&env).await;
    assert_ids(&running, vector, "website").await;
}

#[tokio::test]
async fn without_a_secret_the_text_of_database_url_is_the_secret() {
    let all = vectors::load().ids;
    let vector = all.iter().find(|vector| vector.secret_input != SECRET).expect("it was recorded");
    let env = [("APP_SECRET", ""), ("DATABASE_URL", vector.secret_input.as_str())];
    let running = Setup::Embedded.start(&env).await;
    assert_ids(&running, vector, "website").await;
}

/// A moment of its own for each request of a test, by which its rows are found.
fn moment(place: usize) -> i64 {
    1_777_593_600 + place as i64
}

async fn rows_of(running: &Running, table: &str, place: usize) -> Vec<Row> {
    let at = moment(place) * 1_000;
    let mut rows = running.rows(table, "1 = 1").await;
    rows.retain(|row| row["created_at"] == json!(at));
    rows
}

async fn every_recorded_event_gives_its_row(setup: Setup) {
    let running = setup.start(&[]).await;
    let vectors = vectors::load().events;
    let mut answers = Vec::new();
    for (place, vector) in vectors.iter().enumerate() {
        let mut payload = object(&vector.payload);
        payload.insert("timestamp".to_owned(), json!(moment(place)));
        answers.push(running.accept(&vector.kind, &Value::Object(payload)).await);
    }
    running.applied(vectors.len() as u64).await;
    let rows = running.rows("website_event", "1 = 1").await;
    assert_eq!(rows.len(), vectors.len());
    // One moment after the other, and rows come in the order of their moments.
    for (place, ((vector, row), answer)) in vectors.iter().zip(&rows).zip(&answers).enumerate() {
        let mut expected = match &vector.row {
            Some(row) => row.clone(),
            // The one that Umami fails on: the host is kept as it was sent, the path is that on any host.
            None => {
                assert_eq!((vector.status, &vector.payload["hostname"]), (500, &json!("foo bar")));
                let mut row: Map<_, _> = object(&json!(vectors[0].row));
                row.values_mut().for_each(|value| *value = Value::Null);
                row.extend(object(&json!({
                    "event_type": 1, "url_path": "/p", "url_query": "", "hostname": "foo bar",
                })));
                row
            }
        };
        // Umami leaves it null and shows such a visitor twice; Dashi fills it.
        if vector.kind == "performance" {
            expected.insert("hostname".to_owned(), vector.payload["hostname"].clone());
        }
        expected.extend(object(&json!({
            "website_id": WEBSITE, "session_id": answer["sessionId"], "visit_id": answer["visitId"],
            "created_at": moment(place) * 1_000, "event_id": row["event_id"],
        })));
        assert_eq!(Value::Object(row.clone()), Value::Object(expected), "{:?}", vector.payload);
    }
}

/// A row with these columns only, and the others of the vectors that share them.
fn only(row: &Row, columns: &Map<String, Value>) -> Value {
    columns.keys().map(|name| (name.clone(), row[name].clone())).collect::<Map<_, _>>().into()
}

/// Compares rows without regard to their order, in the columns that are expected.
fn assert_rows(rows: &[Row], expected: &[Map<String, Value>], what: &Value) {
    let text = |value: Value| value.to_string();
    let columns = expected.first().cloned().unwrap_or_default();
    let mut found: Vec<_> = rows.iter().map(|row| text(only(row, &columns))).collect();
    let mut expected: Vec<_> = expected.iter().map(|row| text(row.clone().into())).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{what}");
}

fn string_leaf(key: &str, data_type: i32, string_value: &str) -> Map<String, Value> {
    object(&json!({
        "data_key": key, "data_type": data_type, "string_value": string_value, "number_value": null, "date_value": null,
    }))
}

async fn every_recorded_data_gives_its_rows(setup: Setup) {
    let running = setup.start(&[]).await;
    let vectors = vectors::load().data;
    let mut answers = Vec::new();
    for (place, vector) in vectors.iter().enumerate() {
        let payload = json!({ "name": "ev", "url": "/", "data": vector.data, "timestamp": moment(place) });
        answers.push(running.accept(&vector.kind, &payload).await);
    }
    running.applied(vectors.len() as u64).await;
    for (place, (vector, answer)) in vectors.iter().zip(&answers).enumerate() {
        let expected = match &vector.data {
            // What Umami fails on, and the values that are stored instead.
            data if vector.rows.is_empty() && data.get("d").is_some() => {
                vec![string_leaf("d", 1, "2026-13-45T99:99:99")]
            }
            data if vector.rows.is_empty() && data.get("n").is_some() => {
                vec![string_leaf("n", 2, "1000000000000000.0000")]
            }
            data if vector.rows.is_empty() && data.get("s").is_some() => {
                vec![string_leaf("s", 1, &"x".repeat(500))]
            }
            _ => vector.rows.clone(),
        };
        assert!(!expected.is_empty(), "{}", vector.data);
        let event = rows_of(&running, "website_event", place).await;
        assert_eq!(event.len(), 1, "{}", vector.data);
        let rows = rows_of(&running, "event_data", place).await;
        assert_rows(&rows, &expected, &vector.data);
        for row in &rows {
            assert_eq!(
                (&row["website_id"], &row["website_event_id"]),
                (&json!(WEBSITE), &event[0]["event_id"])
            );
        }
        let revenue = rows_of(&running, "revenue", place).await;
        assert_rows(&revenue, &vector.revenue, &vector.data);
        for row in &revenue {
            assert_eq!(row["session_id"], answer["sessionId"]);
            assert_eq!((&row["website_id"], &row["event_id"]), (&json!(WEBSITE), &event[0]["event_id"]));
        }
    }
}

async fn every_kind_of_leaf_is_stored_in_its_columns(setup: Setup) {
    let running = setup.start(&[]).await;
    // As text, for a JSON library would drop what matters here: the doubled key and __proto__.
    let data = r#"{"s":"text","empty":"","n":5,"tie":0.03125,"minus":-0.00001,"big":1e21,"t":true,"f":false,"nothing":null,
        "list":[1,"a",null,{"k":[]}],"o":{"p":{"q":"deep"},"none":{}},"a.b":1,"a":{"b":2},"twice":1,"twice":"last",
        "__proto__":{"x":1},"date":"2026-05-01T08:20:30.123+02:00","utc":"2026-05-01T08:20:30.123Z",
        "local":"2026-05-01T08:20:30","zoned":"2026-05-01T08:20:30Z","west":"2026-05-01T08:20:30.000-02:00",
        "day":"2026-05-01","space":"2026-05-01 08:20:30","nul":"a\u0000b"}"#;
    let body = |kind: &str| {
        let timestamp = moment(0);
        format!(
            r#"{{"type":"{kind}","payload":{{"website":"{WEBSITE}","name":"ev","timestamp":{timestamp},"data":{data}}}}}"#
        )
    };
    for kind in ["event", "identify"] {
        assert_eq!(running.post("/api/send", body(kind), &[]).await.status, 200);
    }
    running.applied(2).await;
    let number = |key: &str, text: &str, value: f64| {
        let mut row = string_leaf(key, 2, text);
        row.insert("number_value".to_owned(), json!(value));
        row
    };
    let date = |key: &str, text: &str, value: i64| {
        let mut row = string_leaf(key, 4, text);
        row.insert("date_value".to_owned(), json!(value));
        row
    };
    let mut expected = vec![
        string_leaf("s", 1, "text"),
        string_leaf("empty", 1, ""),
        number("n", "5.0000", 5.0),
        number("tie", "0.0313", 0.0313),
        number("minus", "-0.0000", 0.0),
        string_leaf("big", 2, "1e+21"),
        string_leaf("t", 3, "true"),
        string_leaf("f", 3, "false"),
        string_leaf("nothing", 5, "null"),
        string_leaf("list", 5, r#"[1,"a",null,{"k":[]}]"#),
        string_leaf("o.p.q", 1, "deep"),
        number("a.b", "1.0000", 1.0),
        number("a.b", "2.0000", 2.0),
        string_leaf("twice", 1, "last"),
        date("date", "2026-05-01T06:20:30.123Z", 1_777_616_430_123),
        date("utc", "2026-05-01T08:20:30.123Z", 1_777_623_630_123),
        date("local", "2026-05-01T08:20:30.000Z", 1_777_623_630_000),
        string_leaf("zoned", 1, "2026-05-01T08:20:30Z"),
        string_leaf("west", 1, "2026-05-01T08:20:30.000-02:00"),
        string_leaf("day", 1, "2026-05-01"),
        string_leaf("space", 1, "2026-05-01 08:20:30"),
        string_leaf("nul", 1, "ab"),
    ];
    assert_rows(&running.rows("event_data", "1 = 1").await, &expected, &json!("event_data"));
    // Of a session's property the last value stays.
    expected.retain(|row| row["string_value"] != "1.0000");
    assert_rows(&running.rows("session_data", "1 = 1").await, &expected, &json!("session_data"));
}

async fn what_umami_fails_on_is_stored_within_the_columns_bounds(setup: Setup) {
    let running = setup.start(&[]).await;
    let long = |text: &str, times: usize| text.repeat(times);
    let utm = long("u", 256);
    let payloads = [
        json!({ "id": long("d", 51), "url": "/" }),
        json!({ "url": format!("/?utm_source={utm}&utm_term={utm}&gclid={utm}&twclid={utm}") }),
        json!({ "url": "/a%00b?q=%00", "title": "x%00y\u{0}z", "name": "a\u{0}b", "tag": "\u{0}", "data": {
            "k\u{0}": 1, "arr": ["\u{0}"], "long": [long("y", 600)], (long("k", 501)): 1,
        } }),
        json!({ "browser": long("b", 21), "os": long("o", 21), "device": long("v", 21), "id": "overrides" }),
        json!({ "data": { "revenue": "12.5", "currency": "eur" } }),
        json!({ "data": { "revenue": [7], "currency": "EUR" } }),
        json!({ "data": { "revenue": "0x10", "currency": "EUR" } }),
        json!({ "data": { "revenue": 7, "currency": ["EUR"] } }),
        json!({ "data": { "revenue": 1e15, "currency": "EUR" } }),
        json!({ "title": format!("{}😀", long("t", 499)), "url": format!("/{}", long("p", 600)) }),
    ];
    for (place, payload) in payloads.iter().enumerate() {
        let mut payload = object(payload);
        payload.insert("timestamp".to_owned(), json!(moment(place)));
        running.accept("event", &Value::Object(payload)).await;
    }
    let link = "33333333-3333-4333-8333-333333333333";
    let data = json!({ "link": link, "data": { "a": 1 }, "timestamp": moment(payloads.len()) });
    running.accept("identify", &data).await;
    let late = json!({ "website": WEBSITE, "timestamp": 8_640_000_000_001_i64 });
    assert_eq!(running.send(&submission("event", &late)).await.status, 400);
    let totals = running.applied(payloads.len() as u64 + 1).await;
    assert_eq!(totals.in_log, payloads.len() as u64 + 1);

    let rows = running.rows("website_event", "1 = 1").await;
    assert_eq!(rows.len(), payloads.len());
    let sessions = running.rows("session", "1 = 1").await;
    let session = |row: &Row| {
        let found = sessions.iter().find(|session| session["session_id"] == row["session_id"]);
        found.expect("every event has its session").clone()
    };
    assert_eq!(session(&rows[0])["distinct_id"], long("d", 50));
    for column in ["utm_source", "utm_term", "gclid", "twclid"] {
        assert_eq!(rows[1][column], long("u", 255), "{column}");
    }
    assert_eq!(rows[1]["utm_medium"], Value::Null);
    let texts =
        ["url_path", "url_query", "page_title", "event_name", "tag"].map(|name| rows[2][name].clone());
    assert_eq!(texts, ["/ab", "q=%00", "xyz", "ab", ""].map(|text| json!(text)));
    let mut arrays = running.rows("event_data", "data_type = 5").await;
    arrays.retain(|row| row["website_event_id"] == rows[2]["event_id"]);
    assert_rows(
        &arrays,
        &[string_leaf("arr", 5, r#"["\u0000"]"#), string_leaf("long", 5, &format!("[\"{}", long("y", 498)))],
        &json!("arrays"),
    );
    let keys = running.rows("event_data", &format!("data_key IN ('k', '{}')", long("k", 500))).await;
    assert_eq!(keys.len(), 2, "{keys:?}");
    let overridden = session(&rows[3]);
    let overridden = ["browser", "os", "device"].map(|name| overridden[name].clone());
    assert_eq!(overridden, [long("b", 20), long("o", 20), long("v", 20)].map(|text| json!(text)));
    let revenue = running.rows("revenue", "1 = 1").await;
    assert_rows(
        &revenue,
        &[object(
            &json!({ "event_name": "", "currency": "eur", "revenue": 12.5, "event_id": rows[4]["event_id"] }),
        )],
        &json!("revenue"),
    );
    assert_eq!(rows[9]["page_title"], format!("{}\u{FFFD}", long("t", 499)));
    assert_eq!(rows[9]["url_path"], format!("/{}", long("p", 499)));
    let of_link = running.rows("session", &format!("website_id = '{link}'")).await;
    assert_eq!(of_link.len(), 1, "the session of the link");
    assert_eq!(running.number("SELECT count(*) FROM session_data").await, 0);
}

/// A request that Umami answers 500, by its line in the table of docs/umami-contract.md §3.4, and what is stored
/// instead: a table, one of its columns, and its value in the rows of that request.
struct Failure {
    line: usize,
    kind: &'static str,
    payload: Value,
    headers: Vec<(&'static str, String)>,
    stored: Vec<(&'static str, &'static str, Vec<Value>)>,
}

/// Every line of the table but the one about a moment that is refused.
fn failures() -> Vec<Failure> {
    let x = |times: usize| "x".repeat(times);
    let mut all = Vec::new();
    let mut add = |line, kind, payload, stored| {
        all.push(Failure { line, kind, payload, headers: Vec::new(), stored });
    };
    for (kind, end) in [("event", "1"), ("identify", "2"), ("performance", "3"), ("event", "4")] {
        let stored = vec![("session", "distinct_id", vec![json!(x(50))])];
        add(1, kind, json!({ "id": format!("{}{end}", x(50)), "url": "/" }), stored);
    }
    for name in ["utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_term"] {
        let stored = vec![("website_event", name, vec![json!(x(255))])];
        add(2, "event", json!({ "url": format!("/?{name}={}", x(256)) }), stored);
    }
    for name in ["gclid", "fbclid", "msclkid", "ttclid", "li_fat_id", "twclid"] {
        let stored = vec![("website_event", name, vec![json!(x(255))])];
        add(2, "event", json!({ "url": format!("/?{name}={}", x(300)) }), stored);
    }
    for (kind, table) in [("event", "event_data"), ("identify", "session_data")] {
        let data = |data: Value| json!({ "name": "ev", "data": data });
        let value = |value: Value| vec![(table, "string_value", vec![value])];
        add(3, kind, data(json!({ "s": x(501) })), value(json!(x(500))));
        add(3, kind, data(json!({ "l": [x(600), 1] })), value(json!(format!("[\"{}", x(498)))));
        add(3, kind, data(json!({ (x(501)): "v" })), vec![(table, "data_key", vec![json!(x(500))])]);
        add(
            3,
            kind,
            data(json!({ "o": { (x(600)): "v" } })),
            vec![(table, "data_key", vec![json!(format!("o.{}", x(498)))])],
        );
        for (number, text) in [
            (json!(1e15), "1000000000000000.0000"),
            (json!(-1e15), "-1000000000000000.0000"),
            (json!(1e21), "1e+21"),
        ] {
            let stored = vec![
                (table, "string_value", vec![json!(text)]),
                (table, "data_type", vec![json!(2)]),
                (table, "number_value", vec![Value::Null]),
            ];
            add(4, kind, data(json!({ "n": number })), stored);
        }
        for text in ["2026-13-45T99:99:99", "2026-05-01T25:00:00.000Z", "9999-99-99T00:00:00"] {
            let stored = vec![
                (table, "string_value", vec![json!(text)]),
                (table, "data_type", vec![json!(1)]),
                (table, "date_value", vec![Value::Null]),
            ];
            add(5, kind, data(json!({ "d": text })), stored);
        }
        let stored = vec![(table, "data_key", vec![json!("k")]), (table, "string_value", vec![json!("ab")])];
        add(6, kind, data(json!({ "k\0": "a\0b" })), stored);
    }
    let columns = ["url_path", "page_title", "event_name", "tag", "hostname", "utm_source"];
    let stored = columns.into_iter().zip(["/ab", "xyz", "n", "t", "a.example", "u"]);
    let stored = stored.map(|(column, text)| ("website_event", column, vec![json!(text)])).collect();
    let payload = json!({
        "url": "/a%00b?utm_source=u%00", "title": "x%00y\0z", "name": "n\0", "tag": "\0t", "hostname": "a.\0example",
    });
    add(6, "event", payload, stored);
    let columns = ["distinct_id", "screen", "language", "browser"];
    let stored = columns.into_iter().map(|column| ("session", column, vec![json!("ab")])).collect();
    let payload =
        json!({ "id": "a\0b", "screen": "a\0b", "language": "a\0b", "browser": "a\0b", "url": "/" });
    add(6, "event", payload, stored);
    let stored = vec![("revenue", "event_name", vec![json!("")]), ("revenue", "revenue", vec![json!(7.0)])];
    add(7, "event", json!({ "data": { "revenue": 7, "currency": "EUR" } }), stored);
    for data in [
        json!({ "revenue": 7, "currency": "EUROEUROEUR" }),
        json!({ "revenue": 7, "currency": 978 }),
        json!({ "revenue": true, "currency": "EUR" }),
        json!({ "revenue": [7], "currency": "EUR" }),
        json!({ "revenue": "0x10", "currency": "EUR" }),
    ] {
        let leaves = vec![json!("ev")];
        let stored = vec![("website_event", "event_name", leaves), ("revenue", "revenue", vec![])];
        add(7, "event", json!({ "name": "ev", "data": data }), stored);
    }
    for column in ["browser", "os", "device"] {
        add(8, "event", json!({ (column): x(21) }), vec![("session", column, vec![json!(x(20))])]);
    }
    for hostname in ["foo bar", "a b:c", "[::1", "%"] {
        let stored = vec![
            ("website_event", "url_path", vec![json!("/p")]),
            ("website_event", "hostname", vec![json!(hostname)]),
        ];
        add(9, "event", json!({ "hostname": hostname, "url": "/p" }), stored);
    }
    let link = "33333333-3333-4333-8333-333333333333";
    for source in ["link", "pixel"] {
        let stored = vec![("session", "website_id", vec![json!(link)]), ("session_data", "data_key", vec![])];
        add(11, "identify", json!({ (source): link, "data": { "a": 1 } }), stored);
    }
    for ip in ["unknown", "[2001:db8::1]:443", "198.51.100.7:80", "some text"] {
        add(
            12,
            "event",
            json!({ "ip": ip, "url": "/" }),
            vec![("website_event", "url_path", vec![json!("/")])],
        );
    }
    let nowhere = ["country", "region", "city"].map(|column| ("session", column, vec![Value::Null]));
    add(13, "event", json!({ "ip": "203.0.113.9", "url": "/" }), nowhere.to_vec());
    for ip in ["unknown", "[2001:db8::1]:443"] {
        all.push(Failure {
            line: 12,
            kind: "event",
            payload: json!({ "url": "/" }),
            headers: vec![("x-forwarded-for", ip.to_owned())],
            stored: vec![("website_event", "url_path", vec![json!("/")])],
        });
    }
    all.push(Failure {
        line: 8,
        kind: "event",
        payload: json!({ "url": "/" }),
        headers: vec![
            ("x-real-ip", "203.0.113.9".to_owned()),
            ("cf-ipcountry", "GBR".to_owned()),
            ("cf-region-code", x(30)),
            ("cf-ipcity", x(60)),
        ],
        stored: vec![
            ("session", "country", vec![Value::Null]),
            ("session", "region", vec![json!(format!("GBR-{}", x(16)))]),
            ("session", "city", vec![json!(x(50))]),
        ],
    });
    all
}

async fn every_line_of_umamis_failures_is_answered_and_stored(setup: Setup) {
    let env = [("IGNORE_IP", "198.51.100.0/24"), ("GEOLITE_DB_PATH", "no-such-file.mmdb")];
    let running = setup.start(&env).await;
    let failures = failures();
    let mut sessions = BTreeSet::new();
    for (place, Failure { line, kind, payload, headers, .. }) in failures.iter().enumerate() {
        let mut payload = object(payload);
        payload.insert("timestamp".to_owned(), json!(moment(place)));
        // A visitor of its own for each, whose session is recognised by it.
        payload.entry("id").or_insert_with(|| json!(format!("visitor-{place}")));
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let body = submission(kind, &Value::Object(payload)).to_string();
        let answer = running.post("/api/send", body, &headers).await;
        assert_eq!(answer.status, 200, "line {line}: {}", answer.text());
        sessions.insert(answer.json()["sessionId"].to_string());
    }
    assert_eq!(sessions.len(), failures.len(), "an id that is too long counts whole");
    for at in [8_640_000_000_001_i64, 9_007_199_254_740_991] {
        let late = submission("event", &json!({ "url": "/", "timestamp": at }));
        let answer = running.send(&late).await;
        assert_eq!(answer.status, 400, "line 10: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "bad-request");
    }
    let lines: BTreeSet<_> = failures.iter().map(|failure| failure.line).chain([10]).collect();
    assert_eq!(lines, (1..=13).collect(), "every line of the table");
    let totals = running.applied(failures.len() as u64).await;
    assert_eq!(totals.in_log, failures.len() as u64);

    let mut tables = BTreeMap::new();
    for table in ["session", "website_event", "event_data", "session_data", "revenue"] {
        tables.insert(table, running.rows(table, "1 = 1").await);
    }
    for (place, failure) in failures.iter().enumerate() {
        let at = json!(moment(place) * 1_000);
        let of = |table: &str| tables[table].iter().filter(|row| row["created_at"] == at).collect::<Vec<_>>();
        assert_eq!(of("session").len(), 1, "line {}", failure.line);
        assert_eq!(
            of("website_event").len(),
            usize::from(failure.kind != "identify"),
            "line {}",
            failure.line
        );
        for (table, column, expected) in &failure.stored {
            let found: Vec<_> = of(table).iter().map(|row| row[*column].clone()).collect();
            assert_eq!(found, *expected, "line {}: {table}.{column} of {}", failure.line, failure.payload);
        }
    }
    let shown = running.complaints();
    assert!(shown.len() == 1 && shown[0].contains("no-such-file.mmdb"), "{shown:?}");
}

async fn every_recorded_agent_is_detected_or_refused_as_a_bot(setup: Setup) {
    let running = setup.start(&[]).await;
    let mut sent = Vec::new();
    for (name, vector) in vectors::load().user_agents {
        let screens = [
            (None, &vector.device_no_screen),
            (Some("1920x1080"), &vector.device_1920x1080),
            (Some("2560x1440"), &vector.device_2560x1440),
        ];
        for (screen, device) in screens {
            let mut payload = object(&json!({ "url": "/", "id": format!("{name} {screen:?}") }));
            let mut headers = vec![];
            // Without a screen the agent comes in the header, else in the payload, beside a header that gives way.
            match screen {
                Some(screen) => {
                    payload.insert("screen".to_owned(), json!(screen));
                    payload.insert("userAgent".to_owned(), json!(vector.user_agent));
                    if !vector.user_agent.is_empty() {
                        headers.push(("user-agent", "curl/8.0"));
                    }
                }
                None if vector.user_agent.is_empty() => {}
                None => headers.push(("user-agent", vector.user_agent.as_str())),
            }
            let body = submission("event", &Value::Object(payload));
            let url = running.url("/api/send");
            let answer = integration_tests::http::post_json(&url, &body, &headers).await.unwrap();
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            if vector.is_bot {
                assert_eq!(answer.text(), r#"{"beep":"boop"}"#, "{name}");
            } else {
                let session = answer.json()["sessionId"].clone();
                assert!(session.is_string(), "{name}: {}", answer.text());
                sent.push((
                    name.clone(),
                    session,
                    vector.browser.clone(),
                    vector.os.clone(),
                    device.clone(),
                    screen,
                ));
            }
        }
    }
    assert!(sent.len() > 60, "{}", sent.len());
    let totals = running.applied(sent.len() as u64).await;
    assert_eq!(totals.in_log, sent.len() as u64, "bots leave nothing in the log");
    let rows = running.rows("session", "1 = 1").await;
    for (name, session, browser, os, device, screen) in sent {
        let row = rows.iter().find(|row| row["session_id"] == session).expect("every session has a row");
        let found = json!([row["browser"], row["os"], row["device"], row["screen"]]);
        assert_eq!(found, json!([browser, os, device, screen]), "{name}");
    }
}

#[tokio::test]
async fn bots_are_taken_where_they_are_welcome() {
    let running = Setup::Embedded.start(&[("DISABLE_BOT_CHECK", "false")]).await;
    let body = submission("event", &json!({ "url": "/" })).to_string();
    let answer = running.post("/api/send", body, &[("user-agent", "curl/8.0")]).await;
    assert!(answer.json()["cache"].is_string(), "any text means true: {}", answer.text());
    let body = submission("event", &json!({ "url": "/", "userAgent": "Googlebot" })).to_string();
    assert!(running.post("/api/send", body, &[("user-agent", AGENT)]).await.json()["cache"].is_string());
}

#[tokio::test]
async fn an_embedded_log_and_a_postgres_store_go_together() {
    let running = Setup::EmbeddedAndPostgres.start(&[]).await;
    let payload =
        json!({ "url": "/?utm_source=x", "name": "ev", "data": { "revenue": 5, "currency": "USD" } });
    let answer = running.accept("event", &payload).await;
    running.accept("identify", &json!({ "data": { "plan": "pro" } })).await;
    running.accept("performance", &json!({ "url": "/p", "lcp": 1234.56 })).await;
    running.applied(3).await;
    let counts =
        [("session", 1), ("website_event", 2), ("event_data", 2), ("session_data", 1), ("revenue", 1)];
    for (table, count) in counts {
        let rows = running.rows(table, "1 = 1").await;
        assert_eq!(rows.len(), count, "{table}: {rows:?}");
    }
    let events = running.rows("website_event", "event_type = 5").await;
    assert_eq!((&events[0]["session_id"], &events[0]["lcp"]), (&answer["sessionId"], &json!(1234.6)));
}
