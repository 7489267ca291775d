//! The fold, for all records and for those that Umami was seen to answer.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helper functions too")]

use std::collections::{BTreeMap, HashMap, HashSet};

use dashi_domain::applied::AppliedEvents;
use dashi_domain::erasure::{Erasure, Subject};
use dashi_domain::fold::{Changes, FoldRules, Outcomes, fold, runs};
use dashi_domain::glance::HourKey;
use dashi_domain::ids::session_data_id;
use dashi_domain::location::Location;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::{Event, Record};
use dashi_domain::rows::{
    DeadLetter, EventDataRow, EventRow, EventType, IdentifyRow, RevenueRow, SessionDataRow, SessionRow,
};
use dashi_domain::submission::{SchemaRules, Submission};
use dashi_domain::umami::Release;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use uuid::Uuid;

const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";
const RECEIVED_MS: i64 = 1_777_636_800_123;

fn rules() -> FoldRules {
    FoldRules {
        zone: TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    }
}

/// The content of the stores' tables, with the stores' rules: a session is filled, a property has its newest value, and
/// a batch with an event that is there already is refused as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tables {
    sessions: BTreeMap<Uuid, SessionRow>,
    events: BTreeMap<Uuid, EventRow>,
    event_data: BTreeMap<Uuid, EventDataRow>,
    revenue: BTreeMap<Uuid, RevenueRow>,
    identifies: BTreeMap<Uuid, IdentifyRow>,
    session_data: BTreeMap<(Uuid, String), SessionDataRow>,
    dead_letters: BTreeMap<(Partition, Offset), DeadLetter>,
    outcomes: [u64; 3],
    /// Records by partition, hour and website, however they were cut into batches.
    hours: BTreeMap<(Partition, HourKey), [u64; 3]>,
}

impl Tables {
    /// Names the events that are there already; then nothing was written.
    fn commit(&mut self, partition: Partition, changes: Changes) -> Result<(), HashSet<Uuid>> {
        let events = changes.events.iter().map(|row| row.event_id);
        let identifies = changes.identifies.iter().map(|row| row.event_id);
        let applied: HashSet<Uuid> = events
            .chain(identifies)
            .filter(|id| self.events.contains_key(id) || self.identifies.contains_key(id))
            .collect();
        if !applied.is_empty() {
            return Err(applied);
        }
        self.events.extend(changes.events.into_iter().map(|row| (row.event_id, row)));
        self.identifies.extend(changes.identifies.into_iter().map(|row| (row.event_id, row)));
        for row in changes.sessions {
            match self.sessions.get_mut(&row.session_id) {
                Some(there) => {
                    there.attributes.fill_from(row.reported());
                }
                None => {
                    self.sessions.insert(row.session_id, SessionRow { reported: Vec::new(), ..row });
                }
            }
        }
        for row in changes.event_data {
            self.event_data.entry(row.event_data_id).or_insert(row);
        }
        for row in changes.revenue {
            self.revenue.entry(row.revenue_id).or_insert(row);
        }
        for row in changes.session_data {
            self.session_data.insert((row.session_id, row.data_key.clone()), row);
        }
        for row in changes.dead_letters {
            self.dead_letters.entry((partition, row.offset)).or_insert(row);
        }
        let Outcomes { applied, duplicate, dead } = changes.outcomes;
        for (sum, count) in self.outcomes.iter_mut().zip([applied, duplicate, dead]) {
            *sum += count;
        }
        for (key, Outcomes { applied, duplicate, dead }) in changes.hours {
            let sums = self.hours.entry((partition, key)).or_default();
            for (sum, count) in sums.iter_mut().zip([applied, duplicate, dead]) {
                *sum += count;
            }
        }
        Ok(())
    }

    /// As the projector does: fold, commit, and fold again without what the tables hold.
    fn project(&mut self, records: &[Record]) {
        let Some(first) = records.first() else { return };
        let mut applied = HashSet::new();
        while let Err(named) = self.commit(first.partition, fold(records, &applied, &rules())) {
            let known = applied.len();
            applied.extend(named);
            assert!(applied.len() > known, "a refusal names something new");
        }
    }
}

/// The parts of a record to be made; small numbers, so that sessions, events and keys meet.
#[derive(Debug, Clone)]
enum Made {
    Event { session: u8, event: u8, kind: u8, payload: Value, envelope: Value },
    Garbage(Vec<u8>),
}

impl Made {
    fn value(&self) -> Vec<u8> {
        let (session, event, kind, payload, envelope) = match self {
            Self::Garbage(bytes) => return bytes.clone(),
            Self::Event { session, event, kind, payload, envelope } => {
                (session, event, kind, payload, envelope)
            }
        };
        let mut payload = payload.as_object().unwrap().clone();
        payload.insert("website".to_owned(), WEBSITE.into());
        let mut record = envelope.as_object().unwrap().clone();
        record.extend(object(json!({
            "v": 1,
            // One event belongs to one session, as it does when the same request comes twice.
            "id": uuid(u128::from(*session) * 1_000 + u128::from(*event)),
            "at": RECEIVED_MS + i64::from(*event),
            "session": uuid(1_000_000 + u128::from(*session)),
            "visit": uuid(2_000_000 + u128::from(*session)),
            "type": (["event", "identify", "performance"][usize::from(*kind)]),
            "payload": payload,
        })));
        Value::Object(record).to_string().into_bytes()
    }

    fn partition(&self, partitions: usize) -> usize {
        match self {
            Self::Event { session, .. } => usize::from(*session) % partitions,
            Self::Garbage(bytes) => bytes.len() % partitions,
        }
    }
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

/// An object with some of the given keys.
fn some_of(choices: Vec<(&'static str, Vec<Value>)>) -> impl Strategy<Value = Value> {
    let keys: Vec<_> = choices
        .into_iter()
        .map(|(key, values)| {
            proptest::option::of(proptest::sample::select(values)).prop_map(move |value| (key, value))
        })
        .collect();
    keys.prop_map(|keys| {
        keys.into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect::<Map<_, _>>()
            .into()
    })
}

fn data() -> impl Strategy<Value = Value> {
    let leaf = || {
        vec![json!("x"), json!(1.5), json!(true), json!(null), json!([1]), json!("2026-05-01T08:20:30.123Z")]
    };
    some_of(vec![
        ("a", leaf()),
        ("a.b", leaf()),
        ("n", vec![json!({"b": 1}), json!({}), json!({"b": {"c": "deep"}})]),
        ("revenue", vec![json!(5), json!("7.25"), json!(0)]),
        ("currency", vec![json!("USD"), json!("")]),
    ])
}

fn payload() -> impl Strategy<Value = Value> {
    let rest = some_of(vec![
        ("url", vec![json!("/"), json!("/x?utm_source=s&gclid=g#h"), json!("https://a.example/y")]),
        ("hostname", vec![json!("a.example"), json!("not a host")]),
        ("referrer", vec![json!("https://www.b.example/z?q=1")]),
        ("title", vec![json!("t%20t")]),
        ("name", vec![json!("n"), json!("")]),
        ("tag", vec![json!("t")]),
        ("language", vec![json!("en-GB"), json!("de")]),
        ("screen", vec![json!("1920x1080"), json!("375x667")]),
        ("id", vec![json!("someone"), json!(""), json!("someone else")]),
        ("browser", vec![json!("chrome")]),
        ("timestamp", vec![json!(1_777_593_600), json!(0)]),
        ("lcp", vec![json!(1234.56)]),
        ("cls", vec![json!(0.12345)]),
    ]);
    (rest, proptest::option::of(data())).prop_map(|(mut payload, data)| {
        if let Some(data) = data {
            payload["data"] = data;
        }
        payload
    })
}

fn made() -> impl Strategy<Value = Made> {
    let envelope = some_of(vec![
        (
            "agent",
            vec![
                json!("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/120.0 Safari/537.36"),
                json!("?"),
            ],
        ),
        ("country", vec![json!("GB"), json!("DE")]),
        ("region", vec![json!("GB-ENG")]),
        ("city", vec![json!("London"), json!("Łódź")]),
    ]);
    let event = (0..4_u8, 0..8_u8, 0..3_u8, payload(), envelope).prop_map(
        |(session, event, kind, payload, envelope)| Made::Event { session, event, kind, payload, envelope },
    );
    let garbage = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        proptest::sample::select(vec![
            b"{}".to_vec(),
            br#"{"v":2}"#.to_vec(),
            br#"{"v":1,"id":"x"}"#.to_vec()
        ]),
    ];
    prop_oneof![9 => event, 1 => garbage.prop_map(Made::Garbage)]
}

fn records(made: &[Made]) -> Vec<Record> {
    partitioned(made, 1).remove(0)
}

fn partitioned(made: &[Made], partitions: usize) -> Vec<Vec<Record>> {
    let mut all = vec![Vec::new(); partitions];
    for made in made {
        let number = made.partition(partitions);
        let records = &mut all[number];
        records.push(Record {
            partition: Partition::new(number as u32),
            // Gaps are normal.
            offset: Offset::new(records.len() as u64 * 3),
            appended_at_ms: 0,
            value: made.value(),
        });
    }
    all
}

fn unique<T: std::hash::Hash + Eq + std::fmt::Debug>(
    keys: impl IntoIterator<Item = T>,
) -> Result<(), String> {
    let mut seen = HashSet::new();
    for key in keys {
        let text = format!("{key:?} is there twice");
        if !seen.insert(key) {
            return Err(text);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn cutting_a_batch_in_two_changes_nothing(
        made in proptest::collection::vec(made(), 0..40),
        cut in 0..40_usize,
    ) {
        let records = records(&made);
        let (mut whole, mut halves) = (Tables::default(), Tables::default());
        whole.project(&records);
        let (head, tail) = records.split_at(cut.min(records.len()));
        halves.project(head);
        halves.project(tail);
        prop_assert_eq!(halves, whole);
    }

    #[test]
    fn any_interleaving_of_partitions_gives_the_same_tables(
        made in proptest::collection::vec(made(), 0..60),
        steps in proptest::collection::vec((0..3_usize, 1..9_usize), 0..60),
    ) {
        let partitions = partitioned(&made, 3);
        let (mut one_by_one, mut interleaved) = (Tables::default(), Tables::default());
        for records in &partitions {
            one_by_one.project(records);
        }
        let mut rest: Vec<&[Record]> = partitions.iter().map(Vec::as_slice).collect();
        for (partition, count) in steps.into_iter().chain([(2, 60), (1, 60), (0, 60)]) {
            let (some, others) = rest[partition].split_at(count.min(rest[partition].len()));
            interleaved.project(some);
            rest[partition] = others;
        }
        prop_assert_eq!(interleaved, one_by_one);
    }

    #[test]
    fn replaying_what_is_applied_changes_nothing_but_the_count(
        made in proptest::collection::vec(made(), 1..40),
        from in 0..40_usize,
    ) {
        let records = records(&made);
        let mut tables = Tables::default();
        tables.project(&records);
        let before = tables.clone();
        // The end comes again, as after a checkpoint that was lost: a property is then written again, in order.
        let again = &records[from.min(records.len())..];
        tables.project(again);
        let [applied, duplicate, dead] = before.outcomes;
        let garbage = again.iter().filter(|record| Event::decode(&record.value).is_err()).count() as u64;
        let copies = again.len() as u64 - garbage;
        prop_assert_eq!(tables.outcomes, [applied, duplicate + copies, dead + garbage]);
        prop_assert_eq!(Tables { outcomes: before.outcomes, hours: before.hours.clone(), ..tables }, before);
    }

    #[test]
    fn every_record_has_one_outcome_and_no_row_is_there_twice(
        made in proptest::collection::vec(made(), 0..40),
        known in proptest::collection::hash_set(0..4_000_u128, 0..20),
    ) {
        let records = records(&made);
        let known: HashSet<Uuid> = known.into_iter().map(uuid).collect();
        let changes = fold(&records, &known, &rules());
        prop_assert_eq!(&changes, &fold(&records, &known, &rules()), "the same in, the same out");
        prop_assert_eq!(changes.outcomes.total(), records.len() as u64);
        let mut of_hours = Outcomes::default();
        for Outcomes { applied, duplicate, dead } in changes.hours.values() {
            of_hours.applied += applied;
            of_hours.duplicate += duplicate;
            of_hours.dead += dead;
        }
        prop_assert_eq!(of_hours, changes.outcomes, "every record is counted in its hour");
        let keys: HashSet<HourKey> = records.iter().map(HourKey::of).collect();
        prop_assert_eq!(changes.hours.keys().copied().collect::<HashSet<_>>(), keys);
        prop_assert_eq!(changes.outcomes.dead, changes.dead_letters.len() as u64);
        prop_assert_eq!(changes.outcomes.applied, (changes.events.len() + changes.identifies.len()) as u64);
        let ids = || changes.events.iter().map(|row| row.event_id).chain(changes.identifies.iter().map(|row| row.event_id));
        prop_assert_eq!(ids().find(|id| known.contains(id)), None);
        for twice in [
            unique(ids()),
            unique(changes.sessions.iter().map(|row| row.session_id)),
            unique(changes.event_data.iter().map(|row| row.event_data_id)),
            unique(changes.revenue.iter().map(|row| row.revenue_id)),
            unique(changes.session_data.iter().map(|row| (row.session_id, &row.data_key))),
            unique(changes.session_data.iter().map(|row| row.session_data_id)),
            unique(changes.dead_letters.iter().map(|row| row.offset)),
        ] {
            prop_assert_eq!(twice, Ok(()));
        }
    }

    #[test]
    fn a_session_row_exists_if_and_only_if_an_event_was_applied(
        made in proptest::collection::vec(made(), 0..40),
    ) {
        let changes = fold(&records(&made), &HashSet::new(), &rules());
        let sessions: HashSet<Uuid> = changes.sessions.iter().map(|row| row.session_id).collect();
        let events = changes.events.iter().map(|row| row.session_id);
        let seen: HashSet<Uuid> = events.chain(changes.identifies.iter().map(|row| row.session_id)).collect();
        prop_assert_eq!(&sessions, &seen);
        prop_assert!(changes.session_data.iter().all(|row| sessions.contains(&row.session_id)));
    }

    #[test]
    fn those_who_watch_see_the_last_applied_events_and_the_number_of_all(
        made in proptest::collection::vec(made(), 0..40), max in 0_usize..20,
    ) {
        let changes = fold(&records(&made), &HashSet::new(), &rules());
        let applied = AppliedEvents::of(&changes, max);
        let ids: HashSet<Uuid> = changes
            .events.iter().map(|row| row.event_id).chain(changes.identifies.iter().map(|row| row.event_id)).collect();
        prop_assert_eq!((applied.count, applied.last.len()), (ids.len() as u64, max.min(ids.len())));
        prop_assert!(applied.last.iter().all(|event| ids.contains(&event.event_id)));
        prop_assert!(applied.last.is_sorted_by_key(|event| (event.created_at_ms, event.event_id)));
        let attributes: HashMap<Uuid, _> =
            changes.sessions.iter().map(|row| (row.session_id, &row.attributes)).collect();
        for event in &applied.last {
            prop_assert_eq!(Some(&&event.attributes), attributes.get(&event.session_id));
        }
    }

    #[test]
    fn rows_of_an_event_carry_its_time_and_ids(made in proptest::collection::vec(made(), 0..40)) {
        let changes = fold(&records(&made), &HashSet::new(), &rules());
        let events: BTreeMap<Uuid, &EventRow> = changes.events.iter().map(|row| (row.event_id, row)).collect();
        for row in &changes.event_data {
            let event = events[&row.website_event_id];
            prop_assert_eq!((row.created_at_ms, row.website_id), (event.created_at_ms, event.website_id));
        }
        for row in &changes.revenue {
            let event = events[&row.event_id];
            prop_assert_eq!((row.created_at_ms, row.session_id), (event.created_at_ms, event.session_id));
            prop_assert_eq!(&row.event_name, &event.event_name.clone().unwrap_or_default());
        }
        for row in &changes.session_data {
            prop_assert_eq!(row.session_data_id, session_data_id(row.session_id, &row.data_key));
        }
    }
}

/// One request, encoded into a record and folded.
fn fold_request(kind: &str, mut payload: Value, location: Location) -> Changes {
    if ["website", "link", "pixel"].iter().all(|source| payload.get(source).is_none()) {
        payload["website"] = WEBSITE.into();
    }
    let body = json!({ "type": kind, "payload": payload }).to_string();
    let submission = Submission::parse(body.as_bytes(), SchemaRules::of(Release::V3_1, false))
        .unwrap_or_else(|error| panic!("{body}: {}", error.to_json()));
    let event = Event {
        event_id: uuid(1),
        received_at_ms: RECEIVED_MS,
        session_id: uuid(2),
        visit_id: uuid(3),
        device: None,
        user_agent: None,
        location,
        submission,
    };
    let record = Record {
        partition: Partition::new(0),
        offset: Offset::ZERO,
        appended_at_ms: 0,
        value: event.encode(),
    };
    let changes = fold(&[record], &HashSet::new(), &rules());
    assert_eq!(changes.outcomes, Outcomes { applied: 1, ..Outcomes::default() }, "{body}");
    changes
}

#[test]
fn an_identify_of_a_website_with_a_distinct_id_links_its_session() {
    let links = |kind, payload| fold_request(kind, payload, nowhere()).session_links;
    let linked = links("identify", json!({ "id": "user-1" }));
    assert_eq!(linked.len(), 1);
    assert_eq!((linked[0].session_id, linked[0].distinct_id.as_str()), (uuid(2), "user-1"));
    assert_eq!((linked[0].website_id, linked[0].created_at_ms), (WEBSITE.parse().unwrap(), RECEIVED_MS));
    assert_eq!(links("identify", json!({ "id": "x".repeat(51) }))[0].distinct_id, "x".repeat(50));
    for (kind, payload) in [
        ("identify", json!({ "id": "", "data": { "plan": "pro" } })),
        ("identify", json!({ "data": { "plan": "pro" } })),
        ("identify", json!({ "id": "user-1", "link": WEBSITE })),
        ("event", json!({ "id": "user-1" })),
    ] {
        assert_eq!(links(kind, payload.clone()), [], "{kind} {payload}");
    }
}

fn nowhere() -> Location {
    Location { country: None, region: None, city: None }
}

fn vectors(part: &str) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("vectors/umami-vectors.json")).unwrap();
    vectors[part].as_array().unwrap().clone()
}

/// A row as the vectors have it.
fn event_columns(row: &EventRow) -> Value {
    let (campaign, vitals) = (&row.campaign, &row.vitals);
    let number = |value: Option<dashi_domain::decimal::Decimal>| value.map(|value| value.to_f64());
    json!({
        "event_type": row.event_type as i32, "url_path": row.url_path, "url_query": row.url_query,
        "referrer_path": row.referrer_path, "referrer_query": row.referrer_query,
        "referrer_domain": row.referrer_domain, "hostname": row.hostname, "page_title": row.page_title,
        "event_name": row.event_name, "tag": row.tag,
        "utm_source": campaign.utm_source, "utm_medium": campaign.utm_medium,
        "utm_campaign": campaign.utm_campaign, "utm_content": campaign.utm_content,
        "utm_term": campaign.utm_term, "gclid": campaign.gclid, "fbclid": campaign.fbclid,
        "msclkid": campaign.msclkid, "ttclid": campaign.ttclid, "li_fat_id": campaign.li_fat_id,
        "twclid": campaign.twclid,
        "lcp": number(vitals.lcp), "inp": number(vitals.inp), "cls": number(vitals.cls),
        "fcp": number(vitals.fcp), "ttfb": number(vitals.ttfb),
    })
}

#[test]
fn recorded_events_fold_into_the_recorded_rows() {
    let vectors = vectors("events");
    assert_eq!(vectors.len(), 26);
    for vector in vectors {
        let kind = vector["type"].as_str().unwrap();
        let changes = fold_request(kind, vector["payload"].clone(), nowhere());
        assert_eq!((changes.events.len(), changes.sessions.len()), (1, 1));
        let found = event_columns(&changes.events[0]);
        let mut expected = vector["row"].clone();
        if vector["status"] == 500 {
            // Umami fails on a host with a space. The event is kept, its path read without that host.
            assert_eq!(vector["payload"]["hostname"], "foo bar", "{vector}");
            assert_eq!((&found["url_path"], &found["hostname"]), (&json!("/p"), &json!("foo bar")));
            continue;
        }
        if kind == "performance" {
            // The one column in which we differ: Umami leaves it null, and its session list shows two visitors.
            assert_eq!(expected["hostname"], Value::Null);
            expected["hostname"] = vector["payload"]["hostname"].clone();
        }
        assert_eq!(found, expected, "{}", vector["payload"]);
    }
}

fn data_columns(row: &EventDataRow) -> Value {
    json!({
        "data_key": row.data_key, "data_type": row.value.data_type.code(),
        "string_value": row.value.string_value, "number_value": row.value.number_value.map(|number| number.to_f64()),
        "date_value": row.value.date_value_ms,
    })
}

#[test]
fn recorded_data_folds_into_the_recorded_rows() {
    let vectors = vectors("data");
    assert_eq!(vectors.len(), 13);
    for vector in vectors {
        assert_eq!(vector["type"], "event");
        let data = &vector["data"];
        let payload = json!({ "url": "/", "name": "ev", "data": data });
        let changes = fold_request("event", payload, nowhere());
        let mut found: Vec<Value> = changes.event_data.iter().map(data_columns).collect();
        // The vectors are read into maps that order their keys.
        found.sort_by_key(|row| row["data_key"].to_string());
        let mut rows = vector["rows"].as_array().unwrap().clone();
        rows.sort_by_key(|row| row["data_key"].to_string());
        let revenue: Vec<Value> = changes
            .revenue
            .iter()
            .map(|row| json!({ "event_name": row.event_name, "currency": row.currency, "revenue": row.revenue.to_f64() }))
            .collect();
        // Where Umami answered 500, it lost the rows that it could not write; what it wrote, we write too.
        assert_eq!(Value::from(revenue), vector["revenue"], "{data}");
        if vector["status"] == 200 || !rows.is_empty() {
            assert_eq!(found, rows, "{data}");
            continue;
        }
        let of = |key: &str, data_type: i32, string_value: String| {
            json!([{ "data_key": key, "data_type": data_type, "string_value": string_value,
                     "number_value": null, "date_value": null }])
        };
        let expected = if data.get("d").is_some() {
            of("d", 1, data["d"].as_str().unwrap().to_owned())
        } else if data.get("n").is_some() {
            of("n", 2, "1000000000000000.0000".to_owned())
        } else {
            of("s", 1, data["s"].as_str().unwrap()[..500].to_owned())
        };
        assert_eq!(Value::from(found), expected, "{data}");
    }
}

/// The rest of what Umami answers with 500: docs/umami-contract.md §3.4.
#[test]
fn where_umami_fails_a_row_that_fits_is_written() {
    let long = |count: usize| "x".repeat(count);

    let changes = fold_request("identify", json!({ "id": long(60), "data": { "k": "v" } }), nowhere());
    for id in [
        &changes.sessions[0].attributes.distinct_id,
        &changes.identifies[0].distinct_id,
        &changes.session_data[0].distinct_id,
    ] {
        assert_eq!(id.as_deref(), Some(long(50).as_str()));
    }

    let url = format!("/?utm_term={}&li_fat_id={}", long(300), long(300));
    let changes = fold_request("event", json!({ "url": url }), nowhere());
    let campaign = &changes.events[0].campaign;
    assert_eq!((&campaign.utm_term, &campaign.li_fat_id), (&Some(long(255)), &Some(long(255))));

    let mut data = Map::new();
    data.insert(long(600), json!([long(600)]));
    let changes = fold_request("event", json!({ "url": "/", "data": data }), nowhere());
    let row = &changes.event_data[0];
    assert_eq!(row.data_key, long(500));
    assert_eq!(row.value.string_value.as_deref(), Some(format!("[\"{}", long(498)).as_str()));

    let changes = fold_request(
        "event",
        json!({ "url": "/a\0b", "title": "t%00t", "name": "n\0", "tag": "\0", "data": { "k\0": "v\0" } }),
        nowhere(),
    );
    let row = &changes.events[0];
    assert_eq!((row.page_title.as_deref(), row.event_name.as_deref()), (Some("tt"), Some("n")));
    assert!(!format!("{changes:?}").contains("\\0"), "{changes:?}");

    let changes =
        fold_request("event", json!({ "url": "/", "data": { "revenue": 1, "currency": "EUR" } }), nowhere());
    assert_eq!(changes.events[0].event_type, EventType::PageView);
    assert_eq!((changes.revenue.len(), changes.revenue[0].event_name.as_str()), (1, ""));
    for (revenue, currency) in
        [(json!(1), json!(7)), (json!([7]), json!("EUR")), (json!("0x10"), json!("EUR"))]
    {
        let data = json!({ "revenue": revenue, "currency": currency });
        let changes = fold_request("event", json!({ "url": "/", "data": data }), nowhere());
        assert_eq!((changes.event_data.len(), changes.revenue.len()), (2, 0), "{data}");
    }

    let location = Location { country: Some("GBR".to_owned()), region: Some(long(30)), city: Some(long(60)) };
    let payload = json!({ "url": "/", "browser": long(30), "os": long(30), "device": long(30) });
    let attributes = fold_request("event", payload, location).sessions.remove(0).attributes;
    for cut in [&attributes.browser, &attributes.os, &attributes.device, &attributes.region] {
        assert_eq!(cut.as_deref(), Some(long(20).as_str()));
    }
    assert_eq!((attributes.country, attributes.city), (None, Some(long(50))));

    for source in ["link", "pixel"] {
        let changes =
            fold_request("identify", json!({ source: WEBSITE, "id": "w", "data": { "k": 1 } }), nowhere());
        assert_eq!((changes.sessions.len(), changes.identifies.len(), changes.session_data.len()), (1, 1, 0));
    }
}

/// A record of an identify with so many properties, by id.
fn identify_with(properties: usize, offset: u64, id: u128) -> Record {
    let data: Map<String, Value> = (0..properties).map(|n| (format!("p{n}"), json!(1))).collect();
    let value = json!({
        "v": 1, "id": uuid(id), "at": RECEIVED_MS, "session": uuid(7), "visit": uuid(8), "type": "identify",
        "payload": { "website": WEBSITE, "data": data },
    });
    Record {
        partition: Partition::new(0),
        offset: Offset::new(offset),
        appended_at_ms: 0,
        value: value.to_string().into_bytes(),
    }
}

/// A copy of a record that was set aside counted as a duplicate in the same batch and as a dead letter in the next one: the
/// dead letters depended on where batches end (I5), and a "duplicate of an applied one" was one of a dead one (I2).
#[test]
fn copies_of_a_record_that_is_set_aside_are_set_aside_in_one_batch_as_in_two() {
    let copies = [identify_with(10_001, 0, 1), identify_with(10_001, 1, 1), identify_with(2, 2, 1)];
    let together = fold(&copies, &HashSet::new(), &rules());
    assert_eq!(together.outcomes, Outcomes { applied: 1, duplicate: 0, dead: 2 });
    let mut dead = Vec::new();
    for copy in &copies {
        dead.extend(fold(std::slice::from_ref(copy), &HashSet::new(), &rules()).dead_letters);
    }
    assert_eq!(together.dead_letters, dead);
    // Neither is it a copy of one that is applied: the store is not asked about what makes no row.
    let after = [identify_with(2, 0, 1), identify_with(10_001, 1, 1)];
    let outcomes = fold(&after, &HashSet::new(), &rules()).outcomes;
    assert_eq!(outcomes, Outcomes { applied: 1, duplicate: 0, dead: 1 });
    assert_eq!(fold(&after[1..], &HashSet::from([uuid(1)]), &rules()).outcomes.dead, 1);
}

#[test]
fn an_erasure_is_folded_alone_and_its_second_copy_is_a_duplicate() {
    let website = WEBSITE.parse().unwrap();
    let erasure = Erasure {
        erasure_id: uuid(5),
        erased_at_ms: RECEIVED_MS,
        website_id: website,
        subject: Subject::Person("ada".to_owned()),
        partitions: 1,
    };
    let copy = erasure.copies(&[uuid(7)], &[]).remove(0);
    let at = |offset, value: Vec<u8>| Record {
        partition: Partition::new(0),
        offset: Offset::new(offset),
        appended_at_ms: 0,
        value,
    };
    let event =
        |offset| Record { offset: Offset::new(offset), ..identify_with(1, offset, u128::from(offset)) };
    let records = [event(0), event(1), at(2, copy.encode()), at(3, copy.encode()), event(4)];
    assert_eq!(runs(&records), [0..2, 2..3, 3..4, 4..5]);
    assert_eq!(runs(&records[..2]), vec![0..2]);
    assert_eq!(runs(&[]), Vec::new());
    let changes = fold(&records[2..3], &HashSet::new(), &rules());
    assert_eq!(changes.erasure.as_ref(), Some(&copy));
    assert_eq!((changes.outcomes.applied, changes.sessions.len()), (1, 0));
    let again = fold(&records[3..4], &HashSet::from([copy.copy_id]), &rules());
    assert_eq!((again.outcomes.duplicate, again.erasure), (1, None));
    assert!(std::panic::catch_unwind(|| fold(&records, &HashSet::new(), &rules())).is_err());
}

/// The place of an erased record: the same counts, and no row; a later copy of the record is a later event.
#[test]
fn tombstones_count_as_the_records_that_they_replace() {
    let erasure = Erasure {
        erasure_id: uuid(5),
        erased_at_ms: RECEIVED_MS + 10,
        website_id: WEBSITE.parse().unwrap(),
        subject: Subject::Website,
        partitions: 1,
    };
    let copy = erasure.copies(&[], &[]).remove(0);
    // One, a copy of it, and two that are set aside.
    let mut records = vec![identify_with(2, 0, 1), identify_with(2, 1, 1), identify_with(10_001, 2, 2)];
    let mut broken = identify_with(1, 3, 3);
    broken.value =
        String::from_utf8(broken.value).unwrap().replace("\"visit\":\"", "\"visit\":\"x").into_bytes();
    records.push(broken);
    let before = fold(&records, &HashSet::new(), &rules());
    assert_eq!(before.outcomes, Outcomes { applied: 1, duplicate: 1, dead: 2 });
    let mut coverage = dashi_domain::erasure::Coverage::of(&copy, Offset::new(4));
    let erased: Vec<Record> = records
        .iter()
        .map(|record| {
            assert!(coverage.covers(record.offset, &record.value));
            Record {
                value: coverage.tombstone(&record.value, record.appended_at_ms, false),
                ..record.clone()
            }
        })
        .collect();
    let after = fold(&erased, &HashSet::new(), &rules());
    assert_eq!((after.outcomes, &after.hours), (before.outcomes, &before.hours));
    let nothing = Changes { outcomes: after.outcomes, hours: after.hours.clone(), ..Changes::default() };
    assert_eq!(after, nothing);
    let later: Vec<Record> = erased.into_iter().chain([identify_with(2, 5, 1)]).collect();
    assert_eq!(fold(&later, &HashSet::new(), &rules()).identifies.len(), 1);
}
