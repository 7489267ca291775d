//! Profiles: the rows of people, for any identifies in any order of arrival, against a model without a short cut.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helper functions too")]

use std::collections::{BTreeMap, BTreeSet, HashSet};

use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::ids::session_data_id;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::profile::{
    BaseKey, BaseRow, Person, ProfileCounts, ProfileLink, ProfileLinkKind, ProfileRows, ProfileState, Stamp,
    TraitKey, TraitRow, TraitSend, WriteRow, distinct_id, merge, parse_version, persons, session_version,
    settle, version,
};
use dashi_domain::record::Record;
use dashi_domain::rows::DataValue;
use dashi_domain::umami::Release;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use uuid::Uuid;

const RECEIVED_MS: i64 = 1_777_636_800_000;
const PARTITIONS: usize = 3;
/// A website; the next number is another one's.
const SITE: u128 = 0x11111111_1111_4111_8111_111111111110;

fn rules(null_deletes: bool) -> FoldRules {
    FoldRules {
        zone: TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes,
    }
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// An identify with a distinct id, made of small numbers so that people, sessions and devices meet.
#[derive(Debug, Clone)]
struct Identify {
    session: u8,
    device: Option<u8>,
    person: u8,
    received_at_ms: i64,
    event_id: Uuid,
    /// Of [`KEYS`] and [`VALUES`].
    data: BTreeMap<usize, usize>,
    base_version: Option<String>,
    /// The stamp that the version stands for.
    base: Option<Stamp>,
}

const KEYS: [&str; 4] = ["a", "n.x", "n.y", "n.z.deep"];

/// As sent, and type and text as stored.
const VALUES: [(&str, i32, &str); 9] = [
    ("1", 2, "1.0000"),
    ("1.0", 2, "1.0000"),
    ("1.00004", 2, "1.0000"),
    ("2", 2, "2.0000"),
    ("\"1\"", 1, "1"),
    ("true", 3, "true"),
    ("null", 5, "null"),
    ("[1]", 5, "[1]"),
    ("\"2026-05-01T08:20:30.123Z\"", 4, "2026-05-01T08:20:30.123Z"),
];

/// A value of the model.
type Plain = Option<(i32, String)>;

impl Identify {
    fn website(&self) -> Uuid {
        uuid(SITE + u128::from(self.session % 2))
    }

    fn session_id(&self) -> Uuid {
        uuid(0x5000 + u128::from(self.session))
    }

    fn device_id(&self) -> Uuid {
        self.device.map_or(self.session_id(), |device| uuid(0xde00 + u128::from(device)))
    }

    fn distinct_id(&self) -> String {
        format!("p{}", self.person)
    }

    fn stamp(&self) -> Stamp {
        Stamp { received_at_ms: self.received_at_ms, event_id: self.event_id }
    }

    fn partition(&self) -> usize {
        usize::from(self.session) % PARTITIONS
    }

    fn values(&self, null_deletes: bool) -> Vec<(String, Plain)> {
        let plain = |value: usize| {
            let (sent, data_type, text) = VALUES[value];
            (sent != "null" || !null_deletes).then(|| (data_type, text.to_owned()))
        };
        self.data.iter().map(|(&key, &value)| (KEYS[key].to_owned(), plain(value))).collect()
    }

    fn record(&self) -> Record {
        let mut data = Map::new();
        for (&key, &value) in &self.data {
            let value: Value = serde_json::from_str(VALUES[value].0).unwrap();
            let mut path: Vec<&str> = KEYS[key].split('.').collect();
            let last = path.pop().unwrap();
            let inner = path.into_iter().fold(&mut data, |object, name| {
                let inner = object.entry(name).or_insert_with(|| json!({}));
                inner.as_object_mut().unwrap()
            });
            inner.insert(last.to_owned(), value);
        }
        let mut payload = json!({ "website": self.website(), "id": self.distinct_id(), "data": data });
        if let Some(base_version) = &self.base_version {
            payload["baseVersion"] = base_version.as_str().into();
        }
        let mut record = json!({
            "v": 1, "id": self.event_id, "at": self.received_at_ms, "session": self.session_id(),
            "visit": uuid(1), "type": "identify", "payload": payload,
        });
        if self.device.is_some() {
            record["device"] = self.device_id().to_string().into();
        }
        Record {
            partition: Partition::new(self.partition() as u32),
            offset: Offset::ZERO,
            appended_at_ms: 0,
            value: record.to_string().into_bytes(),
        }
    }
}

fn records<'a>(identifies: impl IntoIterator<Item = &'a Identify>) -> Vec<Record> {
    identifies.into_iter().map(Identify::record).collect()
}

/// Where an identify's `baseVersion` comes from.
#[derive(Debug, Clone)]
enum Base {
    None,
    Nothing,
    /// The stamp of some event: that of the same person as it was at some time, or of another's, or of a later time.
    Of(Index),
    Garbage(&'static str),
}

fn base() -> impl Strategy<Value = Base> {
    prop_oneof![
        4 => Just(Base::None),
        1 => Just(Base::Nothing),
        4 => any::<Index>().prop_map(Base::Of),
        1 => proptest::sample::select(vec!["", "-1", "s-0123456789abcdef", "99-x-0123456789abcdef"])
            .prop_map(Base::Garbage),
    ]
}

fn identifies(count_max: usize) -> impl Strategy<Value = Vec<Identify>> {
    let data = proptest::collection::btree_map(0..KEYS.len(), 0..VALUES.len(), 1..4);
    let one = (0..4_u8, proptest::option::of(0..2_u8), 0..3_u8, 0..12_i64, any::<u8>(), data, base());
    proptest::collection::vec(one, 1..count_max).prop_map(|made| {
        let stamp = |place: usize| {
            let (_, _, _, at, order, ..) = &made[place];
            let event_id = uuid(u128::from(*order) << 64 | place as u128);
            Stamp { received_at_ms: RECEIVED_MS + at, event_id }
        };
        let all = made.iter().enumerate().map(|(place, made_one)| {
            let (session, device, person, _, _, data, base) = made_one.clone();
            let Stamp { received_at_ms, event_id } = stamp(place);
            let (base_version, base) = match base {
                Base::None => (None, None),
                Base::Nothing => (Some("0".to_owned()), Some(Stamp::NEVER)),
                Base::Garbage(text) => (Some(text.to_owned()), None),
                Base::Of(index) => {
                    let stamp = stamp(index.index(made.len()));
                    let text = format!("{}-{}-0123456789abcdef", stamp.received_at_ms, stamp.event_id);
                    (Some(text), Some(stamp))
                }
            };
            Identify { session, device, person, received_at_ms, event_id, data, base_version, base }
        });
        all.collect()
    })
}

/// Identifies of which each session's come in the order of their stamps.
fn in_order(mut identifies: Vec<Identify>) -> Vec<Identify> {
    identifies.sort_by_key(Identify::stamp);
    identifies
}

/// The content of the store's tables. Every send goes through the state that is read for it and the rows that are
/// written for it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tables {
    applied: HashSet<Uuid>,
    bases: BTreeMap<BaseKey, BaseRow>,
    traits: BTreeMap<TraitKey, TraitRow>,
    writes: BTreeMap<(TraitKey, Stamp), WriteRow>,
    links: BTreeMap<(Uuid, Uuid, String, ProfileLinkKind), i64>,
}

impl Tables {
    fn project(&mut self, records: &[Record], null_deletes: bool) -> ProfileRows {
        let changes = fold(records, &self.applied, &rules(null_deletes));
        assert_eq!(changes.outcomes.dead, 0, "{:?}", changes.dead_letters);
        self.applied.extend(changes.identifies.iter().map(|row| row.event_id));
        for ProfileLink { website_id, session_id, distinct_id, kind, first_ms } in changes.links {
            let first = self.links.entry((website_id, session_id, distinct_id, kind)).or_insert(first_ms);
            *first = first_ms.min(*first);
        }
        self.merge(&changes.sends)
    }

    fn merge(&mut self, sends: &[TraitSend]) -> ProfileRows {
        let bases = sends.iter().filter_map(|send| self.bases.get(&send.base_key())).cloned();
        let traits = sends.iter().filter_map(|send| self.traits.get(&send.trait_key())).cloned();
        let mut state = ProfileState::new(bases, traits);
        let needed = state.needs_history(sends);
        let rows: Vec<WriteRow> = needed.iter().flat_map(|key| self.history(key)).cloned().collect();
        state.add_history(needed, rows);
        assert_eq!(state.needs_history(sends), []);
        let rows = merge(&state, sends);
        let ProfileRows { bases, writes, traits, changed: _, counts } = rows.clone();
        assert_eq!(counts.sends, sends.len() as u64);
        assert_eq!(counts, ProfileCounts { avoided: counts.sends - counts.writes, ..counts });
        assert_eq!(counts.writes, writes.len() as u64);
        assert!(bases.is_sorted_by(|a, b| a.base_key() < b.base_key()), "{bases:?}");
        let named = |row: &WriteRow| (row.trait_key(), row.stamp);
        assert!(writes.is_sorted_by(|a, b| named(a) < named(b)), "{writes:?}");
        assert!(traits.is_sorted_by(|a, b| a.trait_key() < b.trait_key()), "{traits:?}");
        for row in bases {
            assert_ne!(self.bases.insert(row.base_key(), row.clone()), Some(row), "written in vain");
        }
        for row in writes {
            assert_eq!(self.writes.insert((row.trait_key(), row.stamp), row), None, "written twice");
        }
        for row in traits {
            assert_ne!(self.traits.insert(row.trait_key(), row.clone()), Some(row), "written in vain");
        }
        rows
    }

    fn history(&self, key: &TraitKey) -> impl Iterator<Item = &WriteRow> {
        self.writes.values().filter(move |row| row.trait_key() == *key)
    }

    fn of(&self, person: &Person) -> impl Iterator<Item = &TraitRow> {
        let is_of = move |row: &&TraitRow| {
            row.website_id == person.website_id && row.distinct_id == person.distinct_id
        };
        self.traits.values().filter(is_of)
    }

    /// Values and version of a person.
    fn profile(&self, person: &Person) -> (BTreeMap<String, DataValue>, String) {
        let value = |row: &TraitRow| Some((row.key.clone(), row.settled.value.clone()?));
        (self.of(person).filter_map(value).collect(), version(self.of(person)))
    }

    fn people(&self) -> BTreeSet<Person> {
        let person =
            |key: &TraitKey| Person { website_id: key.website_id, distinct_id: key.distinct_id.clone() };
        self.traits.keys().map(person).collect()
    }
}

fn plain(value: &Option<DataValue>) -> Plain {
    let value = value.as_ref()?;
    Some((value.data_type.code(), value.string_value.clone().unwrap()))
}

/// The definition, evaluated from scratch for each question over the list of all that was sent.
struct Model {
    identifies: Vec<Identify>,
    null_deletes: bool,
}

/// A row of the model: stamp, session, value and version.
type PlainRow = (Stamp, Uuid, Plain, Option<Stamp>);

impl Model {
    /// The sends of a session's device for a person and key, in the order of its log: the rows, and its last value.
    fn own(&self, base: &BaseKey) -> (Vec<PlainRow>, Option<(Plain, Stamp)>) {
        let mut rows: Vec<PlainRow> = Vec::new();
        let mut last: Option<(Plain, Stamp)> = None;
        for identify in &self.identifies {
            let is_own = identify.session_id() == base.session_id
                && identify.device_id() == base.device
                && identify.distinct_id() == base.distinct_id;
            if !is_own {
                continue;
            }
            let mut values = identify.values(self.null_deletes);
            values.retain(|(key, _)| *key == base.key);
            let Some((_, value)) = values.pop() else { continue };
            let at = identify.stamp();
            let repeats = match &last {
                None => false,
                Some((known, _)) if *known == value => true,
                Some((_, known_at)) if *known_at < at => false,
                // Late: compared with what it had written by then.
                Some(_) => {
                    let earlier = rows.iter().filter(|row| row.0 <= at).max_by_key(|row| row.0);
                    earlier.is_some_and(|row| row.2 == value)
                }
            };
            if identify.base.is_some() || !repeats {
                rows.push((at, identify.session_id(), value.clone(), identify.base));
            }
            if last.as_ref().is_none_or(|(known, known_at)| *known_at < at && *known != value) {
                last = Some((value, at));
            }
        }
        (rows, last)
    }

    fn base_keys(&self) -> BTreeSet<BaseKey> {
        let keys = self.identifies.iter().flat_map(|identify| {
            identify.values(self.null_deletes).into_iter().map(|(key, _)| BaseKey {
                session_id: identify.session_id(),
                device: identify.device_id(),
                distinct_id: identify.distinct_id(),
                key,
            })
        });
        keys.collect()
    }

    fn bases(&self) -> BTreeMap<BaseKey, (Plain, Stamp)> {
        self.base_keys().into_iter().map(|key| (key.clone(), self.own(&key).1.unwrap())).collect()
    }

    fn rows(&self) -> BTreeMap<TraitKey, Vec<PlainRow>> {
        let mut all: BTreeMap<TraitKey, Vec<PlainRow>> = BTreeMap::new();
        for base in self.base_keys() {
            let website_of = |identify: &&Identify| identify.session_id() == base.session_id;
            let website_id = self.identifies.iter().find(website_of).unwrap().website();
            let rows = self.own(&base).0;
            let BaseKey { distinct_id, key, .. } = base;
            all.entry(TraitKey { website_id, distinct_id, key }).or_default().extend(rows);
        }
        all.retain(|_, rows| !rows.is_empty());
        all.values_mut().for_each(|rows| rows.sort());
        all
    }

    /// Value, and stamp and session of its last change.
    fn settled(rows: &[PlainRow]) -> (Plain, Option<(Stamp, Uuid)>) {
        let mut is_write: Vec<bool> = Vec::new();
        let value_at = |is_write: &[bool], upto: Stamp| -> Plain {
            let mut writes = rows.iter().zip(is_write).filter(|(row, is_write)| **is_write && row.0 <= upto);
            writes.next_back().and_then(|(row, _)| row.2.clone())
        };
        for (_, _, value, base) in rows {
            is_write.push(base.is_none_or(|base| value_at(&is_write, base) != *value));
        }
        let (mut now, mut changed) = (None, None);
        for ((at, session, value, _), _) in rows.iter().zip(&is_write).filter(|(_, is_write)| **is_write) {
            if *value != now {
                now = value.clone();
                changed = Some((*at, *session));
            }
        }
        (now, changed)
    }

    fn links(&self) -> BTreeMap<(Uuid, Uuid, String, ProfileLinkKind), i64> {
        let mut links = BTreeMap::new();
        for identify in &self.identifies {
            let own = Some((identify.session_id(), ProfileLinkKind::Own));
            let anonymous = identify.device.map(|_| (identify.device_id(), ProfileLinkKind::Anonymous));
            for (session, kind) in own.into_iter().chain(anonymous) {
                let key = (identify.website(), session, identify.distinct_id(), kind);
                let times = self.identifies.iter().filter(|other| {
                    let other_session = match kind {
                        ProfileLinkKind::Own => Some(other.session_id()),
                        ProfileLinkKind::Anonymous => other.device.map(|_| other.device_id()),
                    };
                    (other.website(), other_session, other.distinct_id())
                        == (identify.website(), Some(session), identify.distinct_id())
                });
                links.insert(key, times.map(|other| other.received_at_ms).min().unwrap());
            }
        }
        links
    }

    fn check(&self, tables: &Tables) -> Result<(), TestCaseError> {
        let bases = tables.bases.iter().map(|(key, row)| (key.clone(), (plain(&row.value), row.stamp)));
        prop_assert_eq!(bases.collect::<BTreeMap<_, _>>(), self.bases());
        let mut rows: BTreeMap<TraitKey, Vec<PlainRow>> = BTreeMap::new();
        for ((key, _), row) in &tables.writes {
            let row = (row.stamp, row.session_id, plain(&row.value), row.base);
            rows.entry(key.clone()).or_default().push(row);
        }
        let expected = self.rows();
        prop_assert_eq!(&rows, &expected);
        prop_assert_eq!(
            tables.traits.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "a trait for each set of rows"
        );
        for (key, row) in &tables.traits {
            let (value, changed) = Self::settled(&expected[key]);
            let settled = &row.settled;
            prop_assert_eq!(plain(&settled.value), value, "{:?}", key);
            let (at, by) = changed.unwrap_or((Stamp::NEVER, Uuid::nil()));
            prop_assert_eq!((settled.changed, settled.changed_by), (at, by), "{:?}", key);
            prop_assert_eq!(Some(settled.last), expected[key].last().map(|row| row.0));
            prop_assert_eq!(settled.conditional, expected[key].iter().any(|row| row.3.is_some()));
            prop_assert_eq!(Some(settled.clone()), settle(tables.history(key)));
        }
        for person in tables.people() {
            let changes = tables.of(&person).map(|row| row.settled.changed);
            prop_assert_eq!(parse_version(&tables.profile(&person).1), changes.max());
        }
        Ok(())
    }
}

/// One delivery: of which partition, how many records further back it begins than where the last one ended, and how
/// many there are.
fn deliveries() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    proptest::collection::vec((0..PARTITIONS, 0..4_usize, 1..7_usize), 0..30)
}

/// The deliveries, batch by batch; all identifies are delivered in the end.
fn batches<'a>(all: &'a [Identify], deliveries: &[(usize, usize, usize)]) -> Vec<Vec<&'a Identify>> {
    let partition = |number| all.iter().filter(move |identify| identify.partition() == number).collect();
    let partitions: Vec<Vec<&Identify>> = (0..PARTITIONS).map(partition).collect();
    let mut reached = [0; PARTITIONS];
    let rest = (0..PARTITIONS).rev().map(|number| (number, 0, all.len()));
    let mut batches = Vec::new();
    for (number, back, count) in deliveries.iter().copied().chain(rest) {
        let from = reached[number] - back.min(reached[number]);
        let to = (from + count).min(partitions[number].len());
        reached[number] = to.max(reached[number]);
        batches.push(partitions[number][from..to].to_vec());
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_interleaving_batching_and_repetition_gives_what_the_model_gives(
        identifies in identifies(40),
        deliveries in deliveries(),
        null_deletes: bool,
    ) {
        let mut tables = Tables::default();
        for batch in batches(&identifies, &deliveries) {
            tables.project(&records(batch), null_deletes);
        }
        let model = Model { identifies, null_deletes };
        model.check(&tables)?;
        prop_assert_eq!(&tables.links, &model.links());
    }

    #[test]
    fn merging_again_what_is_merged_changes_nothing(
        identifies in identifies(40).prop_map(in_order),
        deliveries in deliveries(),
        null_deletes: bool,
        doubled: bool,
    ) {
        // Without the ids of what is applied, so that the merge itself is asked.
        let mut tables = Tables::default();
        for batch in batches(&identifies, &deliveries) {
            let mut sends = fold(&records(batch), &HashSet::new(), &rules(null_deletes)).sends;
            if doubled {
                sends.extend(sends.clone());
            }
            tables.merge(&sends);
            let there = tables.clone();
            let again = tables.merge(&sends);
            let counts = ProfileCounts { sends: sends.len() as u64, writes: 0, avoided: sends.len() as u64 };
            prop_assert_eq!(again, ProfileRows { counts, ..ProfileRows::default() });
            prop_assert_eq!(&tables, &there);
        }
        Model { identifies, null_deletes }.check(&tables)?;
    }

    #[test]
    fn rows_settle_as_a_set(
        (ordered, shuffled) in write_rows().prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle())),
        repeated in proptest::collection::vec(any::<Index>(), 0..6),
        cut in any::<Index>(),
    ) {
        let settled = settle(&ordered);
        prop_assert_eq!(&settle(&shuffled), &settled, "commutative");
        let repeated: Vec<WriteRow> = repeated.iter().map(|index| index.get(&ordered).clone()).collect();
        prop_assert_eq!(&settle(shuffled.iter().chain(&repeated)), &settled, "idempotent");
        // However the set is put together: a table that first had the one part, then the other.
        let (left, right) = shuffled.split_at(cut.index(shuffled.len()));
        for parts in [[left, right], [right, left]] {
            let mut tables = Tables::default();
            for part in parts {
                tables.merge(&part.iter().map(send).collect::<Vec<_>>());
            }
            prop_assert_eq!(tables.traits.into_values().next().map(|row| row.settled), settled.clone(), "associative");
        }
    }

    #[test]
    fn the_short_cut_equals_settling_all_rows(
        rows in write_rows().prop_flat_map(|rows| Just(rows).prop_shuffle()),
    ) {
        let mut tables = Tables::default();
        for (count, row) in rows.iter().enumerate() {
            tables.merge(&[send(row)]);
            let settled = tables.traits.values().next().map(|row| row.settled.clone());
            prop_assert_eq!(settled, settle(&rows[..=count]));
        }
    }

    #[test]
    fn a_send_that_is_no_difference_changes_no_value_and_no_row(
        identifies in identifies(30),
        null_deletes: bool,
        later_ms in 1..5_i64,
    ) {
        let mut tables = Tables::default();
        let website: BTreeMap<Uuid, Uuid> =
            identifies.iter().map(|identify| (identify.session_id(), identify.website())).collect();
        for identify in &identifies {
            tables.project(&records([identify]), null_deletes);
            let before = tables.clone();
            let repeat = |row: &BaseRow| {
                let BaseRow { session_id, device, distinct_id, key, value, stamp } = row.clone();
                let received_at_ms = stamp.received_at_ms + later_ms;
                let stamp = Stamp { received_at_ms, event_id: uuid(7) };
                let website_id = website[&session_id];
                TraitSend { website_id, session_id, device, distinct_id, key, value, stamp, base: None }
            };
            let sends: Vec<TraitSend> = tables.bases.values().map(repeat).collect();
            let rows = tables.merge(&sends);
            let counts = ProfileCounts { sends: sends.len() as u64, writes: 0, avoided: sends.len() as u64 };
            prop_assert_eq!(rows, ProfileRows { counts, ..ProfileRows::default() });
            prop_assert_eq!(&tables, &before);
        }
        // And what a client read and sends back with its version changes no value, whoever sends it.
        for (place, row) in tables.traits.clone().into_values().enumerate() {
            let person = Person { website_id: row.website_id, distinct_id: row.distinct_id.clone() };
            let read = tables.profile(&person);
            let TraitRow { website_id, distinct_id, key, settled } = row;
            let stamp = Stamp { received_at_ms: RECEIVED_MS + 100 + place as i64, event_id: uuid(8) };
            let (session_id, device) = (uuid(9), uuid(10));
            let base = parse_version(&read.1);
            prop_assert!(base.is_some(), "{}", read.1);
            let value = settled.value;
            tables.merge(&[TraitSend { website_id, session_id, device, distinct_id, key, value, stamp, base }]);
            prop_assert_eq!(tables.profile(&person), read);
        }
    }

    #[test]
    fn a_version_changes_if_and_only_if_a_value_does(
        identifies in identifies(30).prop_map(in_order),
        null_deletes: bool,
    ) {
        let mut tables = Tables::default();
        for identify in &identifies {
            let before = tables.clone();
            let changed = tables.project(&records([identify]), null_deletes).changed;
            for person in tables.people() {
                let ((values, version), (values_before, version_before)) =
                    (tables.profile(&person), before.profile(&person));
                prop_assert_eq!(values != values_before, version != version_before, "{:?}", &values);
                prop_assert_eq!(values != values_before, changed.contains(&person));
            }
        }
    }

    /// A late row may move the moment since when a value holds, and the version with it, but no value changes without
    /// a new version.
    #[test]
    fn no_value_changes_under_one_version_whatever_comes_late(
        identifies in identifies(30),
        null_deletes: bool,
    ) {
        let mut tables = Tables::default();
        let mut seen: BTreeMap<(Person, String), BTreeMap<String, DataValue>> = BTreeMap::new();
        for identify in &identifies {
            let before = tables.clone();
            let changed = tables.project(&records([identify]), null_deletes).changed;
            for person in tables.people() {
                let (values, version) = tables.profile(&person);
                prop_assert_eq!(version != before.profile(&person).1, changed.contains(&person));
                let known = seen.entry((person, version)).or_insert_with(|| values.clone());
                prop_assert_eq!(&*known, &values);
            }
        }
    }

    #[test]
    fn any_text_is_a_version_or_none(text in "[0-9é-]{0,6}-[0-9a-fé]{30,38}-[0-9a-f]{16}") {
        let _ = parse_version(&text);
    }

    #[test]
    fn a_persons_name_fits_its_column_and_is_its_own_name(sent in "\\PC{0,60}", more in any::<String>()) {
        let sent = sent + &more;
        let name = distinct_id(&sent);
        prop_assert!(name.encode_utf16().count() <= 50 && !name.contains('\0'), "{name}");
        prop_assert_eq!(distinct_id(&name), name);
    }
}

/// Rows of one trait, of as many devices, so that no own base hides one.
fn write_rows() -> impl Strategy<Value = Vec<WriteRow>> {
    let one = (0..8_i64, any::<u8>(), 0..4_usize, proptest::option::of((any::<Index>(), 0..2_u8)));
    proptest::collection::vec(one, 1..14).prop_map(|made| {
        let stamp = |place: usize| Stamp {
            received_at_ms: RECEIVED_MS + made[place].0,
            event_id: uuid(u128::from(made[place].1) << 64 | place as u128),
        };
        let row = |place: usize| {
            let (_, _, value, base) = &made[place];
            let value = [None, Some("x"), Some("y"), Some("z")][*value].map(data_value);
            let base = base.as_ref().map(|(index, event)| match event {
                0 => stamp(index.index(made.len())),
                _ => Stamp { event_id: Uuid::nil(), ..stamp(index.index(made.len())) },
            });
            WriteRow {
                website_id: uuid(1),
                distinct_id: "p".to_owned(),
                key: "a".to_owned(),
                stamp: stamp(place),
                session_id: uuid(2),
                device: uuid(100 + place as u128),
                value,
                base,
            }
        };
        (0..made.len()).map(row).collect()
    })
}

fn data_value(text: &str) -> DataValue {
    DataValue {
        data_type: dashi_domain::flatten::DataType::String,
        string_value: Some(text.to_owned()),
        number_value: None,
        date_value_ms: None,
    }
}

fn send(row: &WriteRow) -> TraitSend {
    let WriteRow { website_id, distinct_id, key, stamp, session_id, device, value, base } = row.clone();
    TraitSend { website_id, session_id, device, distinct_id, key, value, stamp, base }
}

const PHONE: u128 = 0xde01;
const LAPTOP: u128 = 0xde02;

/// An identify of a person on a device, `n` ms after the first moment, in the one session that all devices of a person
/// share.
fn identify(n: i64, device: u128, person: &str, data: Value, base_version: Option<&str>) -> Record {
    let session = Uuid::new_v5(&uuid(SITE), person.as_bytes());
    let mut payload = json!({ "website": uuid(SITE), "id": person, "data": data });
    if let Some(base_version) = base_version {
        payload["baseVersion"] = base_version.into();
    }
    let record = json!({
        "v": 1, "id": uuid(0xe000 + n as u128), "at": RECEIVED_MS + n, "session": session, "visit": uuid(1),
        "device": uuid(device), "type": "identify", "payload": payload,
    });
    Record {
        partition: Partition::new(0),
        offset: Offset::new(n as u64),
        appended_at_ms: 0,
        value: record.to_string().into_bytes(),
    }
}

fn person(name: &str) -> Person {
    Person { website_id: uuid(SITE), distinct_id: name.to_owned() }
}

/// A person's traits, as text.
fn texts(tables: &Tables, name: &str) -> BTreeMap<String, String> {
    let values = tables.profile(&person(name)).0;
    values.into_iter().map(|(key, value)| (key, value.string_value.unwrap())).collect()
}

fn expected(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
    texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn an_old_snapshot_with_a_new_avatar_leaves_the_nickname_that_another_device_gave() {
    let log = [
        identify(1, PHONE, "ada", json!({ "nickname": "A", "avatar": "cat" }), None),
        identify(2, LAPTOP, "ada", json!({ "nickname": "A", "avatar": "cat" }), None),
        identify(3, PHONE, "ada", json!({ "nickname": "Countess", "avatar": "cat" }), None),
        identify(4, LAPTOP, "ada", json!({ "nickname": "A", "avatar": "dog" }), None),
    ];
    let mut tables = Tables::default();
    for (count, record) in log.iter().enumerate() {
        let rows = tables.project(std::slice::from_ref(record), false);
        // The second device sends nothing new; the send itself is a row.
        assert_eq!(rows.changed.is_empty(), count == 1, "{rows:?}");
    }
    let settled = expected(&[("nickname", "Countess"), ("avatar", "dog")]);
    assert_eq!(texts(&tables, "ada"), settled);
    let version = tables.profile(&person("ada")).1;
    // Once more, late, and in one batch from the start.
    let again = identify(9, LAPTOP, "ada", json!({ "nickname": "A", "avatar": "dog" }), None);
    assert_eq!(tables.project(&[again], false).counts, ProfileCounts { sends: 2, writes: 0, avoided: 2 });
    let mut replayed = Tables::default();
    replayed.project(&log, false);
    for tables in [&tables, &replayed] {
        assert_eq!(
            (texts(tables, "ada"), tables.profile(&person("ada")).1),
            (settled.clone(), version.clone())
        );
    }
}

#[test]
fn two_people_on_one_address_and_agent_never_mix() {
    let mut tables = Tables::default();
    for (n, name) in ["ada", "bob", "ada", "bob"].into_iter().enumerate() {
        let data =
            json!({ "name": name, format!("only-{name}"): n, "theme": if n < 2 { "dark" } else { name } });
        tables.project(&[identify(n as i64, PHONE, name, data, None)], false);
    }
    for (name, n) in [("ada", "2.0000"), ("bob", "3.0000")] {
        let only = format!("only-{name}");
        assert_eq!(texts(&tables, name), expected(&[("name", name), (&only, n), ("theme", name)]));
    }
    // The device is linked with both, from when each signed in.
    let links: Vec<_> = tables
        .links
        .iter()
        .map(|((_, session, name, kind), first)| {
            let session = if *session == uuid(PHONE) { "phone" } else { "own" };
            (name.as_str(), session, *kind, first - RECEIVED_MS)
        })
        .collect();
    assert_eq!(links.len(), 4);
    for (name, first) in [("ada", 0), ("bob", 1)] {
        assert!(links.contains(&(name, "own", ProfileLinkKind::Own, first)), "{links:?}");
        assert!(links.contains(&(name, "phone", ProfileLinkKind::Anonymous, first)), "{links:?}");
    }
}

#[test]
fn what_is_sent_with_the_version_that_was_read_is_compared_with_that_version() {
    let mut tables = Tables::default();
    tables.project(&[identify(1, PHONE, "ada", json!({ "nickname": "A", "avatar": "cat" }), None)], false);
    let read = tables.profile(&person("ada")).1;
    tables.project(&[identify(2, PHONE, "ada", json!({ "nickname": "Countess" }), None)], false);
    // A device that never sent anything, and so has no base of its own.
    let stale = identify(3, LAPTOP, "ada", json!({ "nickname": "A", "avatar": "dog" }), Some(&read));
    tables.project(&[stale], false);
    assert_eq!(texts(&tables, "ada"), expected(&[("nickname", "Countess"), ("avatar", "dog")]));
    // Back to what it was, on purpose: it had read the other name.
    let now = tables.profile(&person("ada")).1;
    tables.project(&[identify(4, LAPTOP, "ada", json!({ "nickname": "A" }), Some(&now))], false);
    assert_eq!(texts(&tables, "ada"), expected(&[("nickname", "A"), ("avatar", "dog")]));
    // Of a session's version the person's part counts.
    let own = [("k", &data_value("v"))];
    let of_session = session_version(Some(&now), own);
    assert_eq!(parse_version(&of_session), parse_version(&now));
    let only_own = session_version(None, own);
    assert!(only_own.starts_with("s-") && parse_version(&only_own).is_none(), "{only_own}");
    assert_eq!(session_version(Some(&now), []), now);
    assert_ne!(of_session, session_version(Some(&now), [("k", &data_value("w"))]));
}

#[test]
fn a_change_that_comes_late_turns_a_repetition_into_what_it_was() {
    // The laptop had read the phone's second name before it sent the first again; the second comes late.
    let first = identify(1, PHONE, "ada", json!({ "nickname": "A" }), None);
    let second = identify(2, PHONE, "ada", json!({ "nickname": "Countess" }), None);
    let mut read = Tables::default();
    read.project(&[first.clone(), second.clone()], false);
    let version = read.profile(&person("ada")).1;
    let back = identify(3, LAPTOP, "ada", json!({ "nickname": "A" }), Some(&version));
    let mut tables = Tables::default();
    tables.project(&[first], false);
    let before = tables.clone();
    tables.project(&[back], false);
    assert_eq!(
        tables.profile(&person("ada")),
        before.profile(&person("ada")),
        "no change, as far as is known"
    );
    tables.project(&[second], false);
    assert_eq!(texts(&tables, "ada"), expected(&[("nickname", "A")]));
    let settled = &tables.traits.values().next().unwrap().settled;
    assert_eq!(settled.changed.received_at_ms, RECEIVED_MS + 3, "by the laptop");
}

#[test]
fn null_deletes_a_trait_if_told_so_and_the_sessions_own_properties_keep_it() {
    let log = [
        identify(1, PHONE, "ada", json!({ "nickname": "A", "n": { "x": 1 }, "z": null }), None),
        identify(2, PHONE, "ada", json!({ "nickname": null, "n": { "x": null } }), None),
    ];
    let mut tables = Tables::default();
    tables.project(&log, true);
    assert_eq!(texts(&tables, "ada"), expected(&[]));
    let version = tables.profile(&person("ada")).1;
    assert_eq!(parse_version(&version).unwrap().received_at_ms, RECEIVED_MS + 2, "a deletion is a change");
    // Again, and what was never there: no change.
    tables.project(&[identify(3, LAPTOP, "ada", json!({ "nickname": null, "other": null }), None)], true);
    assert_eq!(tables.profile(&person("ada")).1, version);
    let mut kept = Tables::default();
    kept.project(&log, false);
    assert_eq!(texts(&kept, "ada"), expected(&[("nickname", "null"), ("n.x", "null"), ("z", "null")]));
    let session_data = |null_deletes| fold(&log, &HashSet::new(), &rules(null_deletes)).session_data;
    assert_eq!(session_data(true), session_data(false));
    assert_eq!(session_data(true).len(), 3);
}

#[test]
fn a_person_of_whom_nothing_was_said_has_version_0() {
    let mut tables = Tables::default();
    assert_eq!(tables.profile(&person("ada")).1, "0");
    tables.project(&[identify(1, PHONE, "ada", json!({ "nickname": null }), None)], true);
    assert_eq!(tables.traits.len(), 1, "a later deletion counts against an earlier value that comes late");
    assert_eq!(tables.profile(&person("ada")).1, "0");
    assert_eq!(parse_version("0"), Some(Stamp::NEVER));
    tables.project(&[identify(0, LAPTOP, "ada", json!({ "nickname": "A" }), None)], true);
    assert_eq!(texts(&tables, "ada"), expected(&[]));
    assert_ne!(tables.profile(&person("ada")).1, "0");
}

#[test]
fn rows_are_read_back_only_for_what_cannot_be_told_without() {
    let mut tables = Tables::default();
    tables.project(&[identify(5, PHONE, "ada", json!({ "nickname": "A" }), None)], false);
    let before = tables.profile(&person("ada")).1;
    tables.project(&[identify(6, PHONE, "ada", json!({ "nickname": "B" }), None)], false);
    let now = tables.profile(&person("ada")).1;
    let needed = |n, device, text: &str, base_version: Option<&str>| {
        let record = identify(n, device, "ada", json!({ "nickname": text }), base_version);
        let sends = fold(&[record], &HashSet::new(), &rules(false)).sends;
        let state = ProfileState::new(tables.bases.values().cloned(), tables.traits.values().cloned());
        state.needs_history(&sends).len()
    };
    assert_eq!(needed(7, PHONE, "C", None), 0, "the newest");
    assert_eq!(needed(7, PHONE, "C", Some(&now)), 0, "the newest, by the version of now");
    assert_eq!(needed(7, PHONE, "C", Some(&before)), 1, "by an older version");
    assert_eq!(needed(4, LAPTOP, "C", None), 1, "late");
    assert_eq!(needed(4, PHONE, "B", None), 0, "late, but what the device says now");
    assert_eq!(needed(5, PHONE, "A", None), 1, "late, and maybe merged already");
}

#[test]
#[should_panic(expected = "are not in the state")]
fn a_merge_without_the_rows_that_it_needs_is_refused() {
    let mut tables = Tables::default();
    tables.project(&[identify(5, PHONE, "ada", json!({ "nickname": "A" }), None)], false);
    let late = identify(4, LAPTOP, "ada", json!({ "nickname": "B" }), None);
    let sends = fold(&[late], &HashSet::new(), &rules(false)).sends;
    merge(&ProfileState::new([], tables.traits.into_values()), &sends);
}

/// The changes of one record with these parts.
fn changes_of(kind: &str, payload: Value, device: Option<u128>) -> Changes {
    let mut record = json!({
        "v": 1, "id": uuid(1), "at": RECEIVED_MS, "session": uuid(2), "visit": uuid(3), "type": kind, "payload": payload,
    });
    if let Some(device) = device {
        record["device"] = uuid(device).to_string().into();
    }
    let record = Record {
        partition: Partition::new(0),
        offset: Offset::ZERO,
        appended_at_ms: 0,
        value: record.to_string().into_bytes(),
    };
    let changes = fold(&[record], &HashSet::new(), &rules(false));
    assert_eq!(changes.outcomes.applied, 1, "{:?}", changes.dead_letters);
    changes
}

#[test]
fn only_identifies_of_websites_with_a_distinct_id_and_data_send() {
    let site = uuid(SITE);
    for (kind, payload, sends, links) in [
        ("identify", json!({ "website": site, "id": "ada", "data": { "a": 1 } }), 1, 2),
        ("identify", json!({ "website": site, "id": "ada", "data": {} }), 0, 2),
        ("identify", json!({ "website": site, "id": "ada" }), 0, 2),
        ("identify", json!({ "website": site, "id": "", "data": { "a": 1 } }), 0, 0),
        ("identify", json!({ "website": site, "data": { "a": 1 } }), 0, 0),
        ("identify", json!({ "link": site, "id": "ada", "data": { "a": 1 } }), 0, 0),
        ("event", json!({ "website": site, "id": "ada", "url": "/", "data": { "a": 1 } }), 0, 2),
        ("event", json!({ "website": site, "url": "/" }), 0, 0),
        ("event", json!({ "pixel": site, "id": "ada", "url": "/" }), 0, 0),
        ("performance", json!({ "website": site, "id": "ada", "url": "/" }), 0, 2),
    ] {
        let changes = changes_of(kind, payload.clone(), Some(PHONE));
        assert_eq!((changes.sends.len(), changes.links.len()), (sends, links), "{kind} {payload}");
    }
    // A record that is older than the device: the session stands in for it, and nothing is known of another one.
    let payload = json!({ "website": site, "id": "ada", "data": { "a": 1 } });
    for device in [None, Some(2)] {
        let changes = changes_of("identify", payload.clone(), device);
        assert_eq!(changes.sends[0].device, uuid(2));
        let link = ProfileLink {
            website_id: site,
            session_id: uuid(2),
            distinct_id: "ada".to_owned(),
            kind: ProfileLinkKind::Own,
            first_ms: RECEIVED_MS,
        };
        assert_eq!(changes.links, [link]);
    }
}

#[test]
fn of_two_leaves_of_one_key_the_last_counts_as_it_does_for_the_session() {
    let data = json!({ "a": { "b": 2 }, "a.b": 1, "c": 3 });
    let changes =
        changes_of("identify", json!({ "website": uuid(SITE), "id": "ada", "data": data }), Some(PHONE));
    assert_eq!(changes.sends.len(), 2);
    for send in &changes.sends {
        let id = session_data_id(send.session_id, &send.key);
        let row = changes.session_data.iter().find(|row| row.session_data_id == id).unwrap();
        assert_eq!(send.value.as_ref(), Some(&row.value), "{}", send.key);
    }
}

#[test]
fn long_names_of_two_people_stay_two() {
    let (one, other) = (format!("{}1", "x".repeat(60)), format!("{}2", "x".repeat(60)));
    assert_ne!(distinct_id(&one), distinct_id(&other));
    assert_ne!(distinct_id("a\0"), distinct_id("a"));
    assert_eq!(distinct_id("ada"), "ada");
    assert_eq!(distinct_id(&"é".repeat(50)), "é".repeat(50));
    let payload = json!({ "website": uuid(SITE), "id": one, "data": { "a": 1 } });
    let changes = changes_of("identify", payload, Some(PHONE));
    assert_eq!(changes.sends[0].distinct_id, distinct_id(&one));
    assert!(changes.links.iter().all(|link| link.distinct_id == distinct_id(&one)));
}

#[test]
fn people_are_listed_once_with_the_earliest_arrival() {
    let log = [
        identify(3, PHONE, "bob", json!({ "a": 1 }), None),
        identify(1, LAPTOP, "bob", json!({ "a": 2 }), None),
        identify(2, PHONE, "ada", json!({}), None),
    ];
    let changes = fold(&log, &HashSet::new(), &rules(false));
    let all = [(person("ada"), RECEIVED_MS + 2), (person("bob"), RECEIVED_MS + 1)];
    assert_eq!(persons(&changes.sends, &changes.links), all);
    assert_eq!(persons(&changes.sends, &[]), all[1..]);
}

#[test]
fn what_is_no_version_is_none() {
    let id = "0190a5b2-0000-7000-8000-000000000001";
    let good = format!("{RECEIVED_MS}-{id}-0123456789abcdef");
    let stamp = Stamp { received_at_ms: RECEIVED_MS, event_id: id.parse().unwrap() };
    assert_eq!(parse_version(&good), Some(stamp));
    assert_eq!(parse_version(&format!("{good}+0123456789abcdef")), Some(stamp));
    let before_1970 = format!("-5-{id}-0123456789abcdef");
    assert_eq!(parse_version(&before_1970), Some(Stamp { received_at_ms: -5, ..stamp }));
    for bad in [
        "".to_owned(),
        "-".to_owned(),
        "00".to_owned(),
        "s-0123456789abcdef".to_owned(),
        good.to_uppercase(),
        good[1..].replace('-', "_"),
        good.replace("-0123456789abcdef", ""),
        good.replace("0123456789abcdef", "0123456789abcde"),
        good.replace(id, &id.replace('-', "")),
        format!("x{good}"),
        format!(" {good}"),
        format!("{good}+"),
        format!("{good}+0123456789abcdef+"),
        format!("{}{good}", i64::MAX),
        format!("é{good}"),
        format!("{RECEIVED_MS}-é{}-0123456789abcdef", &id[1..]),
    ] {
        assert_eq!(parse_version(&bad), None, "{bad}");
    }
}
