//! A store's promises about people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dashi_domain::flatten::DataType;
use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::position::{Checkpoint, Partition};
use dashi_domain::profile::{Person, ProfileCounts, ProfileLink, ProfileLinkKind, Stamp, TraitSend};
use dashi_domain::rows::{DataValue, IdentifyRow, SessionDataRow};
use dashi_store::{Committed, Profile, ProfileChange, Store, compare};
use tokio::sync::Barrier;
use tokio::sync::broadcast::Receiver;
use uuid::Uuid;

use super::fixture::{
    NOON_MS, P0, P1, Raw, SOON, StoreFixture, WEBSITE, claim, event, id, property, session,
};

/// A send of the session with this number, from a device of its own, `at` milliseconds after noon.
fn send(session: u128, person: &str, key: &str, text: &str, at: i64) -> TraitSend {
    TraitSend {
        website_id: id(WEBSITE),
        session_id: id(session),
        device: id(session + 1),
        distinct_id: person.to_owned(),
        key: key.to_owned(),
        value: Some(value(text)),
        stamp: stamp(session, at),
        base: None,
    }
}

fn stamp(session: u128, at: i64) -> Stamp {
    Stamp { received_at_ms: NOON_MS + at, event_id: id(session * 10_000_000 + at as u128) }
}

fn value(text: &str) -> DataValue {
    DataValue {
        data_type: DataType::String,
        string_value: Some(text.to_owned()),
        number_value: None,
        date_value_ms: None,
    }
}

fn link(session: u128, person: &str, kind: ProfileLinkKind, at: i64) -> ProfileLink {
    ProfileLink {
        website_id: id(WEBSITE),
        session_id: id(session),
        distinct_id: person.to_owned(),
        kind,
        first_ms: NOON_MS + at,
    }
}

fn sending(sends: impl IntoIterator<Item = TraitSend>) -> Changes {
    Changes { sends: sends.into_iter().collect(), ..Changes::default() }
}

/// Commits one record's changes behind everything that the partition has.
async fn commit_to(store: &Store, partition: Partition, changes: &Changes) -> Committed {
    let claim = claim(store, partition).await;
    let to = Checkpoint::after(claim.resume_from.offset());
    store.commit(&claim, claim.resume_from, to, changes).await.unwrap()
}

async fn profile(store: &Store, person: &str) -> Profile {
    store.profile(id(WEBSITE), person).await.unwrap().expect("somebody named them")
}

/// The traits that are there, as text.
async fn traits(store: &Store, person: &str) -> BTreeMap<String, String> {
    let traits = profile(store, person).await.traits.into_iter();
    let text = |value: DataValue| value.string_value.expect("text");
    traits.filter_map(|row| Some((row.key, text(row.settled.value?)))).collect()
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Asserts that a store of the other backend that takes these in one batch, by stamp, has the same rows.
async fn assert_as_if_in_order(fixture: &StoreFixture, store: &Store, mut all: Changes) {
    all.sends.sort_by_key(|send| send.stamp);
    let mut links: BTreeMap<_, ProfileLink> = BTreeMap::new();
    for link in all.links {
        let key = (link.website_id, link.session_id, link.distinct_id.clone(), link.kind);
        let first = links.entry(key).or_insert_with(|| link.clone());
        first.first_ms = first.first_ms.min(link.first_ms);
    }
    all.links = links.into_values().collect();
    let other = fixture.of_the_other_backend().await;
    let in_order = other.migrated().await;
    commit_to(&in_order, P0, &all).await;
    let compared = compare(store, &in_order).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
}

/// Writers of several partitions meet at the same people, each in another order, some of whom are new, some named by
/// a link alone, some known from later events only, as in a replay.
pub(super) async fn writers_of_one_person_neither_block_each_other_nor_lose_anything(fixture: StoreFixture) {
    const PARTITIONS: u32 = 4;
    const ROUNDS: i64 = 25;
    const PEOPLE: u128 = 40;
    let mut stores = vec![fixture.migrated().await];
    for _ in 1..PARTITIONS {
        stores.push(fixture.open().await);
    }
    let barrier = Arc::new(Barrier::new(PARTITIONS as usize));
    let writers: Vec<_> = (0..PARTITIONS)
        .zip(stores.clone())
        .map(|(number, store)| {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                let claim = claim(&store, Partition::new(number)).await;
                let (mut from, mut all, mut written) = (claim.resume_from, Changes::default(), 0);
                for round in 0..ROUNDS {
                    let mut changes = round_of(u128::from(number), round, PEOPLE);
                    if number % 2 == 1 {
                        changes.sends.reverse();
                    }
                    let to = Checkpoint::after(from.offset());
                    barrier.wait().await;
                    let committed = store.commit(&claim, from, to, &changes).await;
                    written += committed.unwrap_or_else(|error| panic!("{round}: {error:?}")).profiles.writes;
                    from = to;
                    all.sends.extend(changes.sends);
                    all.links.extend(changes.links);
                }
                (all, written)
            })
        })
        .collect();
    let (mut all, mut written) = (Changes::default(), 0);
    for writer in writers {
        let (changes, writes) = writer.await.unwrap();
        all.sends.extend(changes.sends);
        all.links.extend(changes.links);
        written += writes;
    }
    // Every send of these is a difference, and the newest of a trait is what it is.
    assert_eq!(written, all.sends.len() as u64);
    let mut newest: BTreeMap<(&str, &str), &TraitSend> = BTreeMap::new();
    for send in &all.sends {
        let newest = newest.entry((&send.distinct_id, &send.key)).or_insert(send);
        if send.stamp > newest.stamp {
            *newest = send;
        }
    }
    let mut people: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for ((person, key), send) in newest {
        let text = send.value.as_ref().and_then(|value| value.string_value.clone()).unwrap();
        people.entry(person).or_default().insert(key.to_owned(), text);
    }
    for (person, expected) in people {
        assert_eq!(traits(&stores[0], person).await, expected, "{person}");
    }
    assert_as_if_in_order(&fixture, &stores[0], all).await;
}

/// One partition's part of a round. Partitions lag behind each other, so some see people earlier who are there already.
fn round_of(partition: u128, round: i64, people: u128) -> Changes {
    let mut changes = Changes::default();
    for person in 0..people {
        let session = 100 * person + 10 * partition;
        // Half of them are new in this round.
        let name = match person % 2 {
            0 => format!("{person}"),
            _ => format!("{person} of {round}"),
        };
        // The later the round the older, for one of four, who is another one for each partition.
        let at = if person % 4 == partition { 1_000 - round } else { 1_000 + round } * 10 + partition as i64;
        changes.links.push(link(session, &name, ProfileLinkKind::Own, at));
        if !(person + partition + round as u128).is_multiple_of(5) {
            let text = format!("{partition} in {round}");
            changes.sends.push(send(session, &name, "shared", &text, at));
            changes.sends.push(send(session, &name, &format!("of {partition}"), &text, at));
        }
    }
    changes.links.sort_by(|a, b| (a.session_id, &a.distinct_id).cmp(&(b.session_id, &b.distinct_id)));
    changes
}

const TABLES: [&str; 5] = ["profile", "profile_trait", "profile_write", "profile_base", "profile_link"];

/// Distinguishes rows that were written from rows that were not, even if their values are the same. On PostgreSQL it
/// also sees rows that were locked.
struct Touched(Raw);

impl Touched {
    async fn watch(fixture: &StoreFixture) -> Self {
        let mut raw = fixture.raw().await;
        if matches!(raw, Raw::Sqlite(_)) {
            raw.execute("CREATE TABLE touched (what text)").await;
            for table in TABLES {
                for what in ["INSERT", "UPDATE", "DELETE"] {
                    let trigger = format!(
                        "CREATE TRIGGER {table}_{what} AFTER {what} ON dashi_{table}
                         BEGIN INSERT INTO touched VALUES ('{what} {table}'); END"
                    );
                    raw.execute(&trigger).await;
                }
            }
        }
        Self(raw)
    }

    /// Another one whenever a row was touched.
    async fn state(&mut self) -> Vec<String> {
        if matches!(self.0, Raw::Sqlite(_)) {
            return self.0.strings("SELECT what FROM touched").await;
        }
        let mut rows = Vec::new();
        for table in TABLES {
            let sql = format!(
                "SELECT concat_ws(' ', '{table}', ctid, xmin, xmax, t) FROM dashi.{table} AS t ORDER BY ctid"
            );
            rows.extend(self.0.strings(&sql).await);
        }
        rows
    }
}

pub(super) async fn a_repeated_send_touches_no_row(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut touched = Touched::watch(&fixture).await;
    let nothing = touched.state().await;
    let snapshot = |at: i64| Changes {
        links: vec![
            link(1, "ada", ProfileLinkKind::Own, at),
            link(2, "ada", ProfileLinkKind::Anonymous, at),
            link(11, "bob", ProfileLinkKind::Own, at),
        ],
        ..sending([
            send(1, "ada", "name", "Ada", at),
            send(1, "ada", "colour", "red", at),
            TraitSend { value: None, ..send(1, "ada", "gone", "", at) },
        ])
    };
    let first = commit_to(&store, P0, &snapshot(0)).await.profiles;
    assert_eq!(first, ProfileCounts { sends: 3, writes: 3, avoided: 0 });
    let before = touched.state().await;
    assert_ne!(before, nothing);
    let was = profile(&store, "ada").await;
    // By their own writer, and by another partition's, which knows of them only what is stored.
    for (partition, at) in [(P0, 1), (P0, 2), (P1, 3)] {
        let again = commit_to(&store, partition, &snapshot(at)).await.profiles;
        assert_eq!(again, ProfileCounts { sends: 3, writes: 0, avoided: 3 });
        assert_eq!(touched.state().await, before, "at {at}");
    }
    assert_eq!(profile(&store, "ada").await, was);
    // What another device changed since stays when the first repeats itself.
    commit_to(&store, P1, &sending([send(21, "ada", "name", "Lady Ada", 4)])).await;
    let before = touched.state().await;
    let version = profile(&store, "ada").await.version;
    assert_ne!(version, was.version);
    commit_to(&store, P0, &snapshot(5)).await;
    assert_eq!(touched.state().await, before);
    assert_eq!(traits(&store, "ada").await, map(&[("name", "Lady Ada"), ("colour", "red")]));
    assert_eq!(profile(&store, "ada").await.version, version);
}

pub(super) async fn a_late_send_settles_where_it_belongs(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut all = Vec::new();
    let mut commit = async |partition, send: TraitSend| {
        all.push(send.clone());
        commit_to(&store, partition, &sending([send])).await;
    };
    commit(P0, send(1, "ada", "name", "second", 20)).await;
    commit(P0, send(1, "ada", "name", "fourth", 40)).await;
    let before = profile(&store, "ada").await;
    // Two that are older than the newest are kept and change nothing, also not what a version is.
    commit(P1, send(11, "ada", "name", "third", 30)).await;
    commit(P1, send(21, "ada", "name", "first", 10)).await;
    let after = profile(&store, "ada").await;
    assert_eq!((&after.traits, &after.version), (&before.traits, &before.version));
    assert_eq!(after.created_at_ms, NOON_MS + 10, "though they are known for longer");
    assert_eq!((after.traits[0].settled.changed, after.traits[0].settled.changed_by), (stamp(1, 40), id(1)));
    // An older write of the present value shows that the trait has had this value for longer.
    commit(P1, send(31, "ada", "name", "fourth", 35)).await;
    let settled = &profile(&store, "ada").await.traits[0].settled;
    assert_eq!((settled.changed, settled.changed_by, settled.last), (stamp(31, 35), id(31), stamp(1, 40)));
    commit(P1, send(31, "ada", "name", "fifth", 50)).await;
    assert_eq!(traits(&store, "ada").await, map(&[("name", "fifth")]));
    assert_as_if_in_order(&fixture, &store, sending(all)).await;
}

pub(super) async fn a_deleted_trait_stays_deleted_until_it_is_written_anew(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let deletion = |session, at| TraitSend { value: None, ..send(session, "ada", "name", "", at) };
    commit_to(&store, P0, &sending([send(1, "ada", "name", "Ada", 10), send(1, "ada", "colour", "red", 10)]))
        .await;
    let whole = profile(&store, "ada").await;
    commit_to(&store, P1, &sending([deletion(11, 30)])).await;
    let deleted = profile(&store, "ada").await;
    assert_ne!(deleted.version, whole.version);
    assert_eq!(deleted.traits.len(), 2, "a deleted trait is returned as deleted");
    assert_eq!(traits(&store, "ada").await, map(&[("colour", "red")]));
    let session = store.session_traits(id(WEBSITE), id(1)).await.unwrap();
    assert!(session.is_none(), "no link, no row: {session:?}");
    // A device that repeats what it knew, one that comes late, and a second deletion.
    commit_to(&store, P0, &sending([send(1, "ada", "name", "Ada", 40)])).await;
    commit_to(&store, P1, &sending([send(21, "ada", "name", "late", 20)])).await;
    commit_to(&store, P1, &sending([deletion(31, 50)])).await;
    assert_eq!(traits(&store, "ada").await, map(&[("colour", "red")]));
    assert_eq!(profile(&store, "ada").await.version, deleted.version);
    assert_eq!(store.profiles(id(WEBSITE), "", None, 10).await.unwrap()[0].traits, 1);
    commit_to(&store, P0, &sending([send(1, "ada", "name", "Ada again", 60)])).await;
    assert_eq!(traits(&store, "ada").await, map(&[("name", "Ada again"), ("colour", "red")]));
}

/// A row that names a version is decided by what was true then, once all of it is there.
pub(super) async fn a_send_that_names_a_version_is_decided_anew_when_an_older_one_arrives(
    fixture: StoreFixture,
) {
    let store = fixture.migrated().await;
    let naming = |session, text: &str, at, base| TraitSend {
        base: Some(base),
        ..send(session, "ada", "name", text, at)
    };
    let mut all = Vec::new();
    let mut commit = async |partition, send: TraitSend, expected: &str| {
        all.push(send.clone());
        commit_to(&store, partition, &sending([send])).await;
        assert_eq!(traits(&store, "ada").await, map(&[("name", expected)]));
    };
    // As far as is known there was nothing when this client read, so its value is a change.
    commit(P0, naming(1, "Ada", 30, stamp(11, 10)), "Ada").await;
    // There was: it had read "Ada", and what it sent was no change.
    commit(P1, send(11, "ada", "name", "Ada", 10), "Ada").await;
    // So a change between its reading and its sending stays.
    commit(P1, send(11, "ada", "name", "Lady Ada", 20), "Lady Ada").await;
    // One that read that and changed it is believed, and one that read it and repeats it changes nothing.
    commit(P0, naming(1, "Countess", 40, stamp(11, 20)), "Countess").await;
    commit(P1, naming(21, "Lady Ada", 50, stamp(11, 20)), "Countess").await;
    // Nor does one that had read nothing and sends nothing.
    let empty = TraitSend { value: None, ..naming(31, "", 60, Stamp::NEVER) };
    commit(P1, empty, "Countess").await;
    let settled = profile(&store, "ada").await.traits.remove(0).settled;
    assert!(settled.conditional);
    assert_eq!((settled.changed, settled.last), (stamp(1, 40), stamp(31, 60)));
    assert_as_if_in_order(&fixture, &store, sending(all)).await;
}

/// The next change of which the store notifies; the first of a listener that is new, or was cut off, is a resync.
async fn next_change(changes: &mut Receiver<ProfileChange>) -> ProfileChange {
    tokio::time::timeout(SOON, changes.recv())
        .await
        .expect("a notification")
        .expect("a listener that keeps up")
}

fn of_person(person: &str) -> ProfileChange {
    ProfileChange::Person(Person { website_id: id(WEBSITE), distinct_id: person.to_owned() })
}

fn of_session(number: u128) -> ProfileChange {
    ProfileChange::Session { website_id: id(WEBSITE), session_id: id(number) }
}

pub(super) async fn changes_of_profiles_are_told_once_they_are_committed(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    // On PostgreSQL any process hears of it.
    let listening = match &fixture {
        StoreFixture::Sqlite(_) => store.clone(),
        StoreFixture::Postgres(_) => fixture.open().await,
    };
    let mut changes = listening.profile_changes();
    if let StoreFixture::Postgres(_) = &fixture {
        assert_eq!(next_change(&mut changes).await, ProfileChange::Resync);
    }
    commit_to(&store, P0, &sending([send(1, "ada", "name", "Ada", 1), send(1, "ada", "x", "y", 1)])).await;
    assert_eq!(next_change(&mut changes).await, of_person("ada"));
    assert_eq!(traits(&listening, "ada").await.len(), 2, "a change can be read when it is notified");
    // Repetitions, late sends and known links are not notified: the next notification is of a real change.
    let known = vec![link(1, "ada", ProfileLinkKind::Own, 1)];
    commit_to(&store, P0, &Changes { links: known.clone(), ..Changes::default() }).await;
    assert_eq!(next_change(&mut changes).await, of_session(1), "a session got its person");
    let again = sending([send(1, "ada", "name", "Ada", 3)]);
    commit_to(&store, P0, &Changes { links: known, ..again }).await;
    commit_to(&store, P1, &sending([send(11, "ada", "name", "late", 0)])).await;
    commit_to(&store, P1, &sending([send(21, "bob's", "name", "Bob", 4)])).await;
    assert_eq!(next_change(&mut changes).await, of_person("bob's"));
    // Properties of a session that names nobody.
    let nobodys = Changes {
        sessions: vec![session(31)],
        session_data: vec![SessionDataRow { distinct_id: None, ..property(1, 31, "plan", "free") }],
        ..Changes::default()
    };
    commit_to(&store, P0, &nobodys).await;
    assert_eq!(next_change(&mut changes).await, of_session(31));
    let silence = tokio::time::timeout(Duration::from_millis(200), changes.recv()).await;
    assert!(silence.is_err(), "{silence:?}");
}

pub(super) async fn a_listener_that_is_cut_off_looks_at_everything_again(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let listening = fixture.open().await;
    let mut changes = listening.profile_changes();
    assert_eq!(next_change(&mut changes).await, ProfileChange::Resync);
    let mut raw = fixture.raw().await;
    for round in 1..=3 {
        let killed = raw
            .strings(
                "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()",
            )
            .await;
        assert_eq!(killed, ["true"]);
        assert_eq!(next_change(&mut changes).await, ProfileChange::Resync);
        let text = format!("of {round}");
        commit_to(&store, P0, &sending([send(1, "ada", "name", &text, round)])).await;
        // It may take more than one attempt to listen again.
        let mut next = next_change(&mut changes).await;
        while next == ProfileChange::Resync {
            next = next_change(&mut changes).await;
        }
        assert_eq!(next, of_person("ada"));
    }
}

/// Reads a list page by page and as a whole: no row is missing, none is there twice, whatever the size of a page.
macro_rules! assert_pages {
    ($whole:expr, $first:expr, |$after:ident, $limit:ident| $page:expr, |$last:ident| $fixture:expr) => {{
        let whole = $whole;
        for $limit in 1..=whole.len() as u32 + 1 {
            let mut paged = Vec::new();
            let mut $after = $first;
            loop {
                let page = $page.await.unwrap();
                assert!(page.len() <= $limit as usize);
                let Some($last) = page.last() else { break };
                $after = $fixture;
                paged.extend(page.clone());
                assert!(paged.len() <= whole.len(), "pages of {}: {paged:#?}", $limit);
            }
            assert_eq!(paged, whole, "pages of {}", $limit);
        }
    }};
}

pub(super) async fn lists_of_people_sessions_and_events_are_read_in_pages(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let people = ["Ada", "ada", "ada lovelace", "bob", "b%b", "b_b", "z\u{1F600}", "Łukasz"];
    let mut changes = Changes::default();
    for (n, person) in (0_i64..).zip(people) {
        changes.links.push(link(200 + n as u128, person, ProfileLinkKind::Own, n));
        changes.sends.push(send(200 + n as u128, person, "name", person, n));
    }
    // Of one moment, and of several.
    for (n, at) in [(1, 5), (2, 5), (3, 5), (4, 2), (5, 9)] {
        changes.sessions.extend([session(n * 20), session(n * 20 + 1)]);
        changes.links.push(link(n * 20, "ada", ProfileLinkKind::Own, at));
        changes.links.push(link(n * 20 + 1, "ada", ProfileLinkKind::Anonymous, at));
        changes.events.push(event(n, n * 20));
        changes.events.push(event(n + 50, n * 20 + 1));
        changes.identifies.push(IdentifyRow {
            event_id: id(n + 70),
            website_id: id(WEBSITE),
            session_id: id(n * 20),
            distinct_id: Some("ada".to_owned()),
            created_at_ms: NOON_MS + n as i64,
        });
    }
    // One of somebody else.
    changes.sessions.push(session(900));
    changes.events.push(event(900, 900));
    changes.links.sort_by(|a, b| (a.session_id, &a.distinct_id).cmp(&(b.session_id, &b.distinct_id)));
    changes.outcomes = Outcomes { applied: 16, ..Outcomes::default() };
    commit_to(&store, P0, &changes).await;

    let website = id(WEBSITE);
    let whole = store.profiles(website, "", None, 100).await.unwrap();
    let names: Vec<_> = whole.iter().map(|summary| summary.distinct_id.as_str()).collect();
    assert_eq!(names, ["Ada", "ada", "ada lovelace", "b%b", "b_b", "bob", "z\u{1F600}", "Łukasz"]);
    let ada = whole.iter().find(|summary| summary.distinct_id == "ada").unwrap();
    assert_eq!((ada.created_at_ms, ada.traits, ada.sessions), (NOON_MS + 1, 1, 11));
    assert_pages!(
        whole.clone(),
        None::<String>,
        |after, limit| store.profiles(website, "", after.as_deref(), limit),
        |last| Some(last.distinct_id.clone())
    );
    for (query, found) in
        [("ADA", 3), ("a l", 1), ("%", 1), ("_", 1), ("b", 3), ("\u{1F600}", 1), ("", 8), ("x", 0)]
    {
        assert_eq!(store.profiles(website, query, None, 100).await.unwrap().len(), found, "{query}");
    }
    assert_eq!(store.profiles(id(1), "", None, 100).await.unwrap(), []);

    let whole = store.person_sessions(website, "ada", None, 100).await.unwrap();
    let places: Vec<_> = whole.iter().map(|row| (row.first_at_ms - NOON_MS, row.session_id)).collect();
    let mut expected: Vec<_> = [(1, 5), (2, 5), (3, 5), (4, 2), (5, 9)]
        .iter()
        .flat_map(|(n, at)| [(*at, id(n * 20)), (*at, id(n * 20 + 1))])
        .chain([(1, id(201))])
        .collect();
    expected.sort_unstable();
    assert_eq!(places, expected);
    let of = |session| whole.iter().find(|row| row.session_id == session).unwrap();
    assert_eq!(of(id(20)).last_at_ms, Some(NOON_MS + 1));
    assert_eq!(of(id(21)).last_at_ms, Some(NOON_MS + 51));
    assert_eq!((of(id(21)).kind, of(id(20)).kind), (ProfileLinkKind::Anonymous, ProfileLinkKind::Own));
    let unseen = of(id(201));
    assert_eq!((&unseen.attributes, unseen.last_at_ms), (&None, None));
    assert_pages!(
        whole.clone(),
        None,
        |after, limit| store.person_sessions(website, "ada", after, limit),
        |last| Some((last.first_at_ms, last.session_id))
    );

    let whole = store.journey(website, "ada", None, 100).await.unwrap();
    let order: Vec<_> = whole.iter().map(|row| (row.created_at_ms, row.event_id)).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(whole.len(), 15);
    let kinds = |kind| whole.iter().filter(|row| row.event_type == kind).count();
    assert_eq!((kinds(0), kinds(1)), (5, 10));
    assert_pages!(whole, None, |after, limit| store.journey(website, "ada", after, limit), |last| Some((
        last.created_at_ms,
        last.event_id
    )));
    assert_eq!(store.profile(website, "nobody").await.unwrap(), None);
    assert_eq!(store.journey(website, "nobody", None, 10).await.unwrap(), []);
    let nobody: Option<Uuid> =
        store.session_traits(website, id(7_777)).await.unwrap().map(|session| session.session_id);
    assert_eq!(nobody, None);
}
