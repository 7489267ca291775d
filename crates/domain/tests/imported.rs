//! Imported rows: their record, and the fold of them among other records.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helper functions too")]

use std::collections::{BTreeMap, HashSet};

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::imported::{Imported, ImportedSession};
use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_domain::rows::{
    Campaign, DataValue, EventDataRow, EventRow, EventType, RevenueRow, SessionAttributes, SessionDataRow,
    SessionLinkRow, Vitals,
};
use dashi_domain::umami::Release;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use uuid::Uuid;

const WEBSITE: Uuid = Uuid::from_u128(1);
const SESSION: Uuid = Uuid::from_u128(7);
const AT_MS: i64 = 1_777_623_630_123;

fn rules() -> FoldRules {
    FoldRules {
        zone: TimeZone::UTC,
        remove_trailing_slash: true,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    }
}

fn records(values: &[Vec<u8>]) -> Vec<Record> {
    let record = |(offset, value): (u64, &Vec<u8>)| Record {
        partition: Partition::new(0),
        offset: Offset::new(offset),
        appended_at_ms: 0,
        value: value.clone(),
    };
    (0..).zip(values).map(record).collect()
}

fn folded(values: &[Vec<u8>]) -> Changes {
    fold(&records(values), &HashSet::new(), &rules())
}

fn decoded(imported: &Imported) -> Imported {
    match LogRecord::decode(&imported.encode()) {
        Ok(LogRecord::Imported(read)) => read,
        other => panic!("{other:?}"),
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn value(text: &str) -> DataValue {
    DataValue {
        data_type: DataType::String,
        string_value: some(text),
        number_value: None,
        date_value_ms: None,
    }
}

fn property(id: u128, key: &str, text: &str, created_at_ms: i64) -> SessionDataRow {
    SessionDataRow {
        session_data_id: Uuid::from_u128(id),
        website_id: WEBSITE,
        session_id: SESSION,
        data_key: key.to_owned(),
        value: value(text),
        distinct_id: some("ada"),
        created_at_ms,
    }
}

/// A record with every part, and odd characters in it.
fn full() -> Imported {
    let event_id = Uuid::from_u128(100);
    let attributes = SessionAttributes {
        browser: some("chrome"),
        os: some("Mac \"OS\"\n"),
        screen: some("1x1"),
        country: some("GB"),
        distinct_id: some("ada"),
        ..SessionAttributes::default()
    };
    Imported {
        record_id: event_id,
        at_ms: AT_MS,
        visit_id: Uuid::from_u128(9),
        session: Some(ImportedSession { attributes, created_at_ms: AT_MS - 5_000 }),
        event: Some(EventRow {
            event_id,
            website_id: WEBSITE,
            session_id: SESSION,
            visit_id: Uuid::from_u128(9),
            created_at_ms: AT_MS,
            url_path: "/a/".to_owned(),
            url_query: some("utm_source=not-read-again"),
            campaign: Campaign { utm_term: some("é😀"), twclid: some(""), ..Campaign::default() },
            referrer_path: some("/"),
            referrer_query: None,
            referrer_domain: some("b.example"),
            page_title: some("A"),
            hostname: None,
            event_type: EventType::Performance,
            event_name: some("n"),
            tag: some("t"),
            vitals: Vitals {
                lcp: Decimal::parse("12.5", 1),
                cls: Decimal::parse("0.0001", 4),
                ..Vitals::default()
            },
        }),
        event_data: vec![EventDataRow {
            event_data_id: Uuid::from_u128(200),
            website_id: WEBSITE,
            website_event_id: event_id,
            data_key: "a.b".to_owned(),
            value: DataValue {
                data_type: DataType::Number,
                string_value: some("999999999999999.0000"),
                number_value: Decimal::parse("999999999999999.0001", 4),
                date_value_ms: Some(-1),
            },
            created_at_ms: AT_MS + 1,
        }],
        revenue: vec![RevenueRow {
            revenue_id: Uuid::from_u128(300),
            website_id: WEBSITE,
            session_id: SESSION,
            event_id,
            event_name: "n".to_owned(),
            currency: "EUR".to_owned(),
            revenue: Decimal::parse("-3.5", 4).unwrap(),
            created_at_ms: AT_MS,
        }],
        session_data: vec![property(400, "plan", "free", AT_MS)],
        session_links: vec![SessionLinkRow {
            website_id: WEBSITE,
            session_id: SESSION,
            distinct_id: "ada".to_owned(),
            created_at_ms: AT_MS,
        }],
        ..Imported::of("umami", WEBSITE, SESSION)
    }
}

#[test]
fn a_record_gives_every_row_back() {
    assert_eq!(decoded(&full()), full());
    let data_alone = Imported { record_id: Uuid::from_u128(5), event: None, visit_id: Uuid::nil(), ..full() };
    assert_eq!(decoded(&data_alone), data_alone, "data of an event that is another record");
    let empty = Imported::of("umami-csv", WEBSITE, SESSION);
    assert_eq!(decoded(&empty), empty);
}

#[test]
fn texts_are_cut_to_their_columns() {
    let mut long = full();
    long.session.as_mut().unwrap().attributes.browser = some(&"b".repeat(30));
    long.event.as_mut().unwrap().url_path = "é".repeat(600);
    long.event_data[0].data_key = "k".repeat(501);
    let read = decoded(&long);
    assert_eq!(read.session.unwrap().attributes.browser, some(&"b".repeat(20)));
    assert_eq!(read.event.unwrap().url_path, "é".repeat(500));
    assert_eq!(read.event_data[0].data_key, "k".repeat(500));
}

#[test]
fn a_damaged_record_is_refused_by_name() {
    let good = String::from_utf8(full().encode()).unwrap();
    for (damaged, reason) in [
        (good.replace("\"event_type\":5", "\"event_type\":6"), "field `event_type` is 6, expected 1 to 5"),
        (good.replace("\"data_type\":2", "\"data_type\":9"), "field `data_type` is 9, expected 1 to 5"),
        (good.replace("\"lcp\":\"12.5\"", "\"lcp\":\"12,5\""), "field `lcp` is \"12,5\""),
        (good.replace("\"revenue\":\"-3.5000\"", "\"revenue\":7"), "field `revenue` is 7"),
        (good.replace("\"payload\":{", "\"payload\":[],\"_\":{"), "field `payload` is []"),
        (good.replace("\"session\":{", "\"session\":[],\"_\":{"), "field `session` is []"),
        (good.replace("\"event_data\":[{", "\"event_data\":[7,{"), "field `event_data` is 7"),
    ] {
        assert_ne!(damaged, good, "{reason}");
        let error = LogRecord::decode(damaged.as_bytes()).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_fold_emits_the_rows_unchanged() {
    let changes = folded(&[full().encode()]);
    let Imported { session, event, event_data, revenue, session_data, session_links, .. } = full();
    let session = session.unwrap();
    assert_eq!(changes.sessions.len(), 1);
    assert_eq!(changes.sessions[0].attributes, session.attributes);
    assert_eq!(changes.sessions[0].created_at_ms, session.created_at_ms);
    assert_eq!(changes.events, [event.unwrap()], "no rule of the fold touches it");
    assert_eq!((changes.event_data, changes.revenue), (event_data, revenue));
    assert_eq!((changes.imported_session_data, changes.session_data), (session_data, vec![]));
    assert_eq!((changes.imported_session_links, changes.session_links), (session_links, vec![]));
    assert_eq!((changes.applied, changes.identifies), (vec![], vec![]));
    let links: Vec<_> = changes.links.iter().map(|link| (link.distinct_id.as_str(), link.first_ms)).collect();
    assert_eq!(links, [("ada", AT_MS - 5_000)], "the earliest that names the person");
    assert_eq!((changes.sends[0].key.as_str(), changes.sends[0].stamp.received_at_ms), ("plan", AT_MS));
    assert_eq!(changes.outcomes.applied, 1);
}

#[test]
fn a_copy_is_a_duplicate_and_a_live_event_of_the_same_id_too() {
    let live = format!(
        r#"{{"v":1,"id":"{}","at":{AT_MS},"session":"{SESSION}","visit":"{SESSION}","type":"event","payload":{{"website":"{WEBSITE}"}}}}"#,
        Uuid::from_u128(100)
    )
    .replace(&WEBSITE.to_string(), "11111111-1111-4111-8111-111111111111");
    let changes = folded(&[full().encode(), full().encode(), live.into_bytes()]);
    assert_eq!((changes.outcomes.applied, changes.outcomes.duplicate), (1, 2));
}

#[test]
fn an_event_without_its_session_makes_one_of_which_nothing_is_known() {
    let changes = folded(&[Imported { session: None, ..full() }.encode()]);
    assert_eq!(changes.sessions[0].attributes, SessionAttributes::default());
    assert_eq!(changes.sessions[0].created_at_ms, AT_MS);
}

#[test]
fn a_session_alone_is_remembered_as_applied() {
    let alone = Imported { event: None, event_data: vec![], revenue: vec![], ..full() };
    let changes = folded(&[alone.encode()]);
    assert_eq!((changes.events.len(), changes.sessions.len()), (0, 1));
    assert_eq!(
        (changes.applied[0].record_id, changes.applied[0].record_type.as_str()),
        (alone.record_id, "imported")
    );
}

/// The stores' rules for `session_data`.
#[derive(Debug, Default, Clone, PartialEq)]
struct Stored(BTreeMap<String, SessionDataRow>);

impl Stored {
    fn commit(&mut self, changes: Changes) {
        let keeps_id = |row: SessionDataRow, before: Option<&SessionDataRow>| SessionDataRow {
            session_data_id: before.map_or(row.session_data_id, |before| before.session_data_id),
            ..row
        };
        for row in changes.session_data {
            let key = row.data_key.clone();
            let row = keeps_id(row, self.0.get(&key));
            self.0.insert(key, row);
        }
        for row in changes.imported_session_data {
            let key = row.data_key.clone();
            let before = self.0.get(&key);
            if before.is_none_or(|before| before.created_at_ms < row.created_at_ms) {
                let row = keeps_id(row, before);
                self.0.insert(key, row);
            }
        }
    }
}

proptest! {
    /// Live identifies and imported properties of one session and few keys, cut into batches at any place.
    #[test]
    fn however_properties_are_cut_into_batches_the_rows_are_the_same(
        made in prop::collection::vec((any::<bool>(), 0..2_u8, 0..4_i64), 1..12),
        cut in 0..12_usize,
    ) {
        let values: Vec<Vec<u8>> = (1_000..).zip(&made).map(|(n, (live, key, at))| {
            let (key, at) = (format!("k{key}"), AT_MS + at * 1_000);
            if *live {
                format!(
                    r#"{{"v":1,"id":"{}","at":{at},"session":"{SESSION}","visit":"{SESSION}","type":"identify","payload":{{"website":"11111111-1111-4111-8111-111111111111","data":{{"{key}":"live {n}"}}}}}}"#,
                    Uuid::from_u128(n)
                ).into_bytes()
            } else {
                Imported {
                    record_id: Uuid::from_u128(n),
                    session_data: vec![property(n, &key, &format!("imported {n}"), at)],
                    ..Imported::of("umami", WEBSITE, SESSION)
                }.encode()
            }
        }).collect();
        let (mut one_by_one, mut whole, mut parts) = (Stored::default(), Stored::default(), Stored::default());
        for value in &values {
            one_by_one.commit(folded(std::slice::from_ref(value)));
        }
        whole.commit(folded(&values));
        let (first, rest) = values.split_at(cut.min(values.len()));
        parts.commit(folded(first));
        parts.commit(folded(rest));
        prop_assert_eq!(&whole, &one_by_one);
        prop_assert_eq!(&parts, &one_by_one);
    }
}
