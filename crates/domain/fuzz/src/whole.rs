//! The definition of a whole event, and the form of a refusal.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::json::{self, Value};
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::{Event, Record};
use dashi_domain::rows::{DataValue, EventRow, SessionRow};
use dashi_domain::submission::SubmissionKind;
use dashi_domain::umami::Release;
use jiff::tz::TimeZone;

/// When every request arrives: 2026-05-01 12:00:00.123 UTC.
pub const RECEIVED_MS: i64 = 1_777_636_800_123;

/// The times that both PostgreSQL's `timestamptz` and JavaScript's dates hold, milliseconds since 1970, inclusive.
pub const MOMENTS_MS: RangeInclusive<i64> = -210_866_803_200_000..=8_640_000_000_000_000;

/// Three kinds: none, a half hour, and one with summer time.
pub fn zones() -> [TimeZone; 3] {
    let zone = |name| TimeZone::get(name).expect("the zone is compiled in");
    [TimeZone::UTC, zone("Asia/Kolkata"), zone("America/New_York")]
}

/// Asserts that a record that we wrote can be read and folds into one whole event; returns its rows.
///
/// One session row, one row in `website_event` or one in `identify`, with the record's own ids; every text within its
/// column and without U+0000, every number within its column; a second copy changes nothing.
pub fn assert_whole(value: &[u8]) -> Changes {
    let event = Event::decode(value)
        .unwrap_or_else(|error| panic!("{error} in the record {}", String::from_utf8_lossy(value)));
    assert_eq!(event.encode(), value, "a record that is read and written stays the same");
    let record = Record {
        partition: Partition::new(0),
        offset: Offset::new(7),
        appended_at_ms: 0,
        value: value.to_vec(),
    };
    let [utc, _, west] = zones();
    let rules = FoldRules {
        zone: utc,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    };
    let changes = fold(std::slice::from_ref(&record), &HashSet::new(), &rules);
    assert_rows(&event, &changes);
    let twice = fold(&[record.clone(), record.clone()], &HashSet::new(), &rules);
    assert_eq!((twice.outcomes.applied, twice.outcomes.duplicate), (1, 1));
    let hours = changes.hours.clone();
    assert_eq!(Changes { outcomes: changes.outcomes, hours, ..twice }, changes, "a copy changes nothing");
    let known = HashSet::from([event.event_id]);
    let again = fold(std::slice::from_ref(&record), &known, &rules);
    let nothing = Changes { outcomes: Default::default(), hours: Default::default(), ..again };
    assert_eq!(nothing, Changes::default(), "applied before");
    let other = FoldRules {
        zone: west,
        remove_trailing_slash: true,
        release: Release::V3_4,
        names_sessions: true,
        null_deletes: true,
    };
    assert_rows(&event, &fold(&[record], &HashSet::new(), &other));
    changes
}

fn assert_rows(event: &Event<'_>, changes: &Changes) {
    let outcomes = changes.outcomes;
    assert_eq!((outcomes.applied, outcomes.duplicate, outcomes.dead), (1, 0, 0), "{changes:?}");
    assert!(changes.dead_letters.is_empty());
    let [session] = &changes.sessions[..] else { panic!("one session: {changes:?}") };
    let source = event.submission.payload.source.id;
    let created_at_ms = event.created_at_ms();
    assert_eq!((session.session_id, session.website_id), (event.session_id, source));
    assert_eq!(session.created_at_ms, created_at_ms);
    assert_session_fits(session);
    if event.submission.kind == SubmissionKind::Identify {
        let [identify] = &changes.identifies[..] else { panic!("one identify: {changes:?}") };
        assert_eq!((identify.event_id, identify.session_id), (event.event_id, event.session_id));
        assert_fits("distinct_id", identify.distinct_id.as_deref(), 50);
        assert!(changes.events.is_empty() && changes.event_data.is_empty() && changes.revenue.is_empty());
    } else {
        let [row] = &changes.events[..] else { panic!("one event: {changes:?}") };
        let ids = (event.event_id, source, event.session_id, event.visit_id, created_at_ms);
        assert_eq!((row.event_id, row.website_id, row.session_id, row.visit_id, row.created_at_ms), ids);
        assert_event_fits(row);
        assert!(changes.identifies.is_empty() && changes.session_data.is_empty());
    }
    let mut ids = HashSet::new();
    for row in &changes.event_data {
        assert!(ids.insert(row.event_data_id), "an id is there twice: {row:?}");
        let expected = (event.event_id, source, created_at_ms);
        assert_eq!((row.website_event_id, row.website_id, row.created_at_ms), expected);
        assert_value_fits(&row.data_key, &row.value);
    }
    let mut keys = HashSet::new();
    for row in &changes.session_data {
        assert!(ids.insert(row.session_data_id), "an id is there twice: {row:?}");
        assert!(keys.insert(&row.data_key), "a key is there twice: {row:?}");
        assert_eq!((row.session_id, row.website_id), (event.session_id, source));
        assert_value_fits(&row.data_key, &row.value);
    }
    assert!(changes.revenue.len() <= 1);
    for row in &changes.revenue {
        assert_eq!((row.event_id, row.session_id), (event.event_id, event.session_id));
        assert_eq!((row.website_id, row.created_at_ms), (source, created_at_ms));
        assert_fits("event_name", Some(&row.event_name), 50);
        assert_fits("currency", Some(&row.currency), 10);
        assert!(row.revenue.scale() == 4 && row.revenue.units().unsigned_abs() < 10_u128.pow(19), "{row:?}");
    }
}

/// Asserts that a text fits `varchar(chars)`, which counts characters, and that PostgreSQL takes it at all.
fn assert_fits(column: &str, text: Option<&str>, chars: usize) {
    let Some(text) = text else { return };
    assert!(text.chars().count() <= chars, "{column} is longer than {chars}: {text:?}");
    assert!(!text.contains('\0'), "{column} contains U+0000: {text:?}");
}

fn assert_session_fits(row: &SessionRow) {
    let attributes = &row.attributes;
    for (column, text, chars) in [
        ("browser", &attributes.browser, 20),
        ("os", &attributes.os, 20),
        ("device", &attributes.device, 20),
        ("screen", &attributes.screen, 11),
        ("language", &attributes.language, 35),
        ("country", &attributes.country, 2),
        ("region", &attributes.region, 20),
        ("city", &attributes.city, 50),
        ("distinct_id", &attributes.distinct_id, 50),
    ] {
        assert_fits(column, text.as_deref(), chars);
    }
}

fn assert_event_fits(row: &EventRow) {
    assert_fits("url_path", Some(&row.url_path), 500);
    let campaign = &row.campaign;
    for (column, text, chars) in [
        ("url_query", &row.url_query, 500),
        ("referrer_path", &row.referrer_path, 500),
        ("referrer_query", &row.referrer_query, 500),
        ("referrer_domain", &row.referrer_domain, 500),
        ("page_title", &row.page_title, 500),
        ("utm_source", &campaign.utm_source, 255),
        ("utm_medium", &campaign.utm_medium, 255),
        ("utm_campaign", &campaign.utm_campaign, 255),
        ("utm_content", &campaign.utm_content, 255),
        ("utm_term", &campaign.utm_term, 255),
        ("gclid", &campaign.gclid, 255),
        ("fbclid", &campaign.fbclid, 255),
        ("msclkid", &campaign.msclkid, 255),
        ("ttclid", &campaign.ttclid, 255),
        ("li_fat_id", &campaign.li_fat_id, 255),
        ("twclid", &campaign.twclid, 255),
        ("event_name", &row.event_name, 50),
        ("tag", &row.tag, 50),
        ("hostname", &row.hostname, 100),
    ] {
        assert_fits(column, text.as_deref(), chars);
    }
    let vitals = &row.vitals;
    for (vital, scale) in
        [(vitals.lcp, 1), (vitals.inp, 1), (vitals.cls, 4), (vitals.fcp, 1), (vitals.ttfb, 1)]
    {
        if let Some(vital) = vital {
            let fits = vital.scale() == scale && (0..10_i128.pow(10)).contains(&vital.units());
            assert!(fits, "{vital:?} does not fit numeric(10,{scale})");
        }
    }
}

fn assert_value_fits(key: &str, value: &DataValue) {
    assert_fits("data_key", Some(key), 500);
    assert_fits("string_value", value.string_value.as_deref(), 500);
    if let Some(number) = value.number_value {
        let fits = number.scale() == 4 && number.units().unsigned_abs() < 10_u128.pow(19);
        assert!(fits, "{number:?} does not fit numeric(19,4)");
    }
    if let Some(at_ms) = value.date_value_ms {
        assert!(MOMENTS_MS.contains(&at_ms), "{at_ms}");
    }
}

/// Asserts that a body is Umami's envelope of a schema error, to its last node.
pub fn assert_refusal(body: &str) {
    let answer = json::parse_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    let error = answer.as_object().and_then(|answer| answer.get("error")).and_then(Value::as_object);
    let error = error.unwrap_or_else(|| panic!("no error in {body}"));
    assert_eq!(error.get("message").and_then(Value::as_str), Some("Bad request"), "{body}");
    assert_eq!(error.get("code").and_then(Value::as_str), Some("bad-request"), "{body}");
    assert_eq!(error.get("status"), Some(&Value::Number(400.0)), "{body}");
    assert!(count_errors(error, &["message", "code", "status"], body) > 0, "no error is named: {body}");
}

/// The number of messages in a node of the tree of errors, whose members are those of the schema.
fn count_errors(node: &json::Object<'_>, beside: &[&str], body: &str) -> usize {
    let mut count = 0;
    for (name, value) in node.iter() {
        match (name, value) {
            ("errors", Value::Array(errors)) => {
                assert!(errors.iter().all(|error| error.as_str().is_some()), "{body}");
                count += errors.len();
            }
            ("properties", Value::Object(properties)) => {
                for (_, node) in properties.iter() {
                    count += count_errors(node.as_object().expect("a node"), &[], body);
                }
            }
            ("items", Value::Array(items)) => {
                for item in items.iter().filter(|item| !matches!(item, Value::Null)) {
                    count += count_errors(item.as_object().expect("a node"), &[], body);
                }
            }
            (name, _) => assert!(beside.contains(&name), "{name} in {body}"),
        }
    }
    assert!(node.get("errors").is_some(), "{body}");
    count
}
