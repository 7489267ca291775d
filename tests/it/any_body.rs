//! Whatever anybody sends: it is refused as documented, or it is in the tables as one whole event.
//!
//! Many more bodies go the same way without servers, in `crates/ingest/src/decide.rs` and in the fuzz target's corpus.

use std::collections::{BTreeMap, BTreeSet};

use dashi_domain::record::Event;
use integration_tests::any_body::any_body;
use integration_tests::http::Connection;
use integration_tests::setup::AGENT;
use integration_tests::{Setup, on_both_setups};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

on_both_setups!(any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables);

/// The widths of Umami's text columns, which are the same in every table that has a column of this name. SQLite has
/// no bounds of its own.
const WIDTHS: &[(&str, usize)] = &[
    ("browser", 20),
    ("os", 20),
    ("device", 20),
    ("screen", 11),
    ("language", 35),
    ("country", 2),
    ("region", 20),
    ("city", 50),
    ("distinct_id", 50),
    ("url_path", 500),
    ("url_query", 500),
    ("referrer_path", 500),
    ("referrer_query", 500),
    ("referrer_domain", 500),
    ("page_title", 500),
    ("utm_source", 255),
    ("utm_medium", 255),
    ("utm_campaign", 255),
    ("utm_content", 255),
    ("utm_term", 255),
    ("gclid", 255),
    ("fbclid", 255),
    ("msclkid", 255),
    ("ttclid", 255),
    ("li_fat_id", 255),
    ("twclid", 255),
    ("event_name", 50),
    ("tag", 50),
    ("hostname", 100),
    ("data_key", 500),
    ("string_value", 500),
    ("currency", 10),
];

/// The answer to one body.
#[derive(Debug, PartialEq)]
enum Answered {
    /// The session and the visit.
    Taken(String, String),
    Bot,
    /// The body of the answer.
    Refused(Value),
}

fn answered(status: u16, answer: Value) -> Answered {
    if status == 400 {
        let error = &answer["error"];
        assert_eq!((&error["code"], &error["status"]), (&json!("bad-request"), &json!(400)), "{answer}");
        if error["message"] != "Website not found." {
            assert_eq!(error["message"], "Bad request", "{answer}");
            assert!(error["errors"].is_array(), "{answer}");
        }
        return Answered::Refused(answer);
    }
    assert_eq!(status, 200, "{answer}");
    if answer == json!({ "beep": "boop" }) {
        return Answered::Bot;
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("{name}: {answer}")).to_owned();
    assert!(!text("cache").is_empty());
    Answered::Taken(text("sessionId"), text("visitId"))
}

async fn any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables(setup: Setup) {
    const BODIES: usize = 400;
    let running = setup.start(&[]).await;
    let mut runner = TestRunner::default();
    let bodies: Vec<Vec<u8>> =
        (0..BODIES).map(|_| any_body().new_tree(&mut runner).unwrap().current()).collect();
    let mut connection = Connection::open(running.authority()).await.unwrap();
    let headers = [("user-agent", AGENT), ("cf-connecting-ip", "203.0.113.9"), ("cf-ipcountry", "GB")];
    let mut answers = Vec::new();
    for body in &bodies {
        let shown = String::from_utf8_lossy(body);
        let post = connection.send(hyper::Method::POST, "/api/send", body.clone(), &headers).await;
        let answer = post.unwrap_or_else(|error| panic!("{error:#}: {shown}"));
        let answer = (answer.status, serde_json::from_slice(&answer.body));
        answers.push(match answer {
            (status, Ok(body)) => answered(status, body),
            (status, Err(error)) => panic!("{status} {error}: {shown}"),
        });
    }
    let taken = answers.iter().filter(|answer| matches!(answer, Answered::Taken(..))).count();
    let refused = answers.iter().filter(|answer| matches!(answer, Answered::Refused(_))).count();
    assert!(taken > BODIES / 10 && refused > BODIES / 10, "{taken} taken, {refused} refused");

    // All of them in one batch get the same answers again; those that are no objects would spoil it for the others.
    let is_object = |body: &[u8]| matches!(serde_json::from_slice(body), Ok(Value::Object(_)));
    let alike: Vec<_> = bodies.iter().zip(&answers).filter(|(body, _)| is_object(body)).collect();
    let elements: Vec<_> = alike.iter().map(|(body, _)| body.as_slice()).collect();
    let batch = [b"[".as_slice(), &elements.join(&b","[..]), b"]"].concat();
    let answer = connection.send(hyper::Method::POST, "/api/batch", batch, &headers).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let expected: Vec<_> = alike
        .iter()
        .enumerate()
        .filter_map(|(index, (_, answer))| match answer {
            Answered::Refused(response) => Some(json!({ "index": index, "response": response })),
            _ => None,
        })
        .collect();
    let summary = answer.json();
    let (spelled_out, omitted) = expected.split_at(expected.len().min(100));
    assert!(!omitted.is_empty(), "more failures than are spelled out");
    assert_eq!((&summary["size"], &summary["details"]), (&json!(alike.len()), &json!(spelled_out)));
    assert_eq!(summary["detailsOmitted"], omitted.len());
    assert_eq!(
        (&summary["processed"], &summary["errors"]),
        (&json!(alike.len() - expected.len()), &json!(expected.len()))
    );
    let again = alike.iter().filter(|(_, answer)| matches!(answer, Answered::Taken(..))).count();
    assert_rows(&running, &answers, (taken + again) as u64).await;
}

/// Asserts that the log holds what was taken, and the tables one whole event of each.
async fn assert_rows(running: &integration_tests::Running, answers: &[Answered], records: u64) {
    let totals = running.applied(records).await;
    assert_eq!(totals.in_log, records, "what is refused is not in the log");
    assert_eq!(running.complaints(), [""; 0]);
    let (mut events, mut identifies) = (BTreeMap::new(), BTreeSet::new());
    // A session lies in one partition, in the order of its requests.
    let mut sessions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in running.records().await {
        let event = Event::decode(&record.value).unwrap();
        sessions.entry(event.session_id.to_string()).or_default().push(event.visit_id.to_string());
        if event.is_row() {
            let ids = (event.session_id.to_string(), event.visit_id.to_string());
            // The first of two copies counts: the other may already belong to the next hour's visit.
            events.entry(event.event_id.to_string()).or_insert(ids);
        } else {
            identifies.insert(event.event_id.to_string());
        }
    }
    assert_eq!(totals.applied, (events.len() + identifies.len()) as u64, "only named events have copies");
    let rows = running.rows("website_event", "1 = 1").await;
    let text = |row: &integration_tests::setup::Row, name: &str| row[name].as_str().unwrap().to_owned();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (text(row, "event_id"), (text(row, "session_id"), text(row, "visit_id"))))
        .collect();
    assert_eq!(found, events, "one row of each");
    let ids = running.texts(&format!("SELECT CAST(event_id AS TEXT) FROM {}", running.own("identify"))).await;
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), identifies);
    let found: BTreeSet<_> =
        running.rows("session", "1 = 1").await.iter().map(|row| text(row, "session_id")).collect();
    assert_eq!(found, sessions.keys().cloned().collect(), "one session of each");
    let mut answered: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for answer in answers {
        if let Answered::Taken(session, visit) = answer {
            answered.entry(session).or_default().push(visit);
        }
    }
    for (session, visits) in answered {
        // Behind them come those of the batch.
        let in_log: Vec<_> = sessions[session].iter().take(visits.len()).collect();
        assert_eq!(in_log, visits, "{session}: an event has the ids that were answered");
    }
    for table in ["session", "website_event", "event_data", "session_data", "revenue"] {
        for row in running.rows(table, "1 = 1").await {
            for (column, value) in &row {
                let Some(value) = value.as_str() else { continue };
                let width = WIDTHS.iter().find(|(name, _)| name == column).map_or(36, |(_, width)| *width);
                assert!(
                    value.chars().count() <= width && !value.contains('\0'),
                    "{table}.{column}: {value:?}"
                );
            }
        }
    }
}
