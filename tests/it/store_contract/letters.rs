//! Dead letters: listing them, trying them again, discarding them.

use std::collections::HashSet;

use dashi_domain::dead_letters::{LetterAction, LetterCommand, Tried};
use dashi_domain::fold::{Changes, FoldRules, Outcomes, fold};
use dashi_domain::parking::{Parked, Parking, ParkingLimits};
use dashi_domain::position::{Checkpoint, LogId, Offset};
use dashi_domain::record::Record;
use dashi_domain::umami::Release;
use dashi_store::{Claim, CommitError, LetterFilter, LetterToTry, SetAside, Store};
use serde_json::{Value, json};
use uuid::Uuid;

use super::fixture::{NOON_MS, P0, P1, StoreFixture, WEBSITE, at, claim, id, log};

/// Rules by which an identify names its session.
fn rules() -> FoldRules {
    FoldRules {
        zone: jiff::tz::TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: true,
        null_deletes: false,
    }
}

/// A record at an offset, received so many milliseconds after noon.
fn record(offset: u64, event: u128, session: u128, kind: &str, more: Value) -> Record {
    let mut payload = json!({ "website": id(WEBSITE), "url": format!("/{event}") });
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let value = json!({
        "v": 1, "id": id(event), "at": NOON_MS + offset as i64, "session": id(session), "visit": id(session + 1),
        "type": kind, "payload": payload,
    });
    Record {
        partition: P0,
        offset: Offset::new(offset),
        appended_at_ms: NOON_MS,
        value: value.to_string().into(),
    }
}

/// Applies records from a checkpoint on, one after another.
async fn apply(store: &Store, held: &Claim, records: &[Record]) {
    for record in records {
        let changes = fold(std::slice::from_ref(record), &HashSet::new(), &rules());
        let (from, to) = (Checkpoint::at(record.offset), Checkpoint::after(record.offset));
        store.commit(held, from, to, &changes).await.unwrap();
    }
}

/// Sets records aside from a checkpoint on.
async fn set_aside(store: &Store, held: &Claim, records: &[Record], reason: &str) {
    for record in records {
        let changes = Changes::dead_letter(record, reason.to_owned());
        let (from, to) = (Checkpoint::at(record.offset), Checkpoint::after(record.offset));
        store.commit(held, from, to, &changes).await.unwrap();
    }
}

fn command(number: u128, action: LetterAction, offsets: &[u64]) -> LetterCommand {
    LetterCommand {
        command_id: id(number),
        key: Uuid::nil(),
        at_ms: NOON_MS + number as i64,
        action,
        log: log(),
        partition: P0,
        partitions: 1,
        offsets: offsets.iter().copied().map(Offset::new).collect(),
    }
}

/// As the projector does: reads what a command has not tried, folds it, and commits it where the checkpoint stands; those
/// of `dead` cannot be applied this time. Returns the offsets that were tried.
async fn try_again(
    store: &Store,
    held: &Claim,
    here: Checkpoint,
    command: &LetterCommand,
    dead: &[u64],
) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let letters = store.letters_to_try(held, command, 2).await.unwrap();
        if letters.is_empty() {
            return all;
        }
        for LetterToTry { record: letter, .. } in &letters {
            let mut applied = HashSet::new();
            loop {
                let mut changes = fold(std::slice::from_ref(letter), &applied, &rules());
                if dead.contains(&letter.offset.number()) {
                    changes = Changes::dead_letter(letter, "again \0".to_owned());
                }
                match store.commit(held, here, here, &tried(changes, command, &[letter.offset])).await {
                    Ok(_) => break,
                    Err(CommitError::Duplicates(ids)) => applied.extend(ids),
                    Err(error) => panic!("{error:?}"),
                }
            }
            all.push(letter.offset.number());
        }
    }
}

fn tried(changes: Changes, command: &LetterCommand, offsets: &[Offset]) -> Changes {
    let (command_id, at_ms) = (command.command_id, command.at_ms);
    let offsets = offsets.to_vec();
    Changes { tried: Some(Tried { command_id, at_ms, offsets, in_order: false }), ..changes }
}

async fn all(store: &Store) -> Vec<SetAside> {
    store.dead_letters(&LetterFilter::default(), None, 1_000).await.unwrap()
}

fn offsets(letters: &[SetAside]) -> Vec<u64> {
    letters.iter().map(|letter| letter.place.offset.number()).collect()
}

async fn outcomes(store: &Store) -> Outcomes {
    store.partitions().await.unwrap()[0].outcomes
}

/// The outcomes of all hours together.
async fn of_hours(store: &Store) -> Outcomes {
    let mut sum = Outcomes::default();
    for (_, outcomes) in &store.counts(&log()).await.unwrap()[0].hours {
        sum.applied += outcomes.applied;
        sum.duplicate += outcomes.duplicate;
        sum.dead += outcomes.dead;
    }
    sum
}

pub(super) async fn letters_are_listed_by_filters_and_in_pages(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let (held, other) = (claim(&store, P0).await, claim(&store, P1).await);
    let records: Vec<Record> = (0..25).map(|n| record(n, u128::from(n), 500, "event", json!({}))).collect();
    set_aside(&store, &held, &records[..20], "one reason, é").await;
    set_aside(&store, &held, &records[20..], "another reason").await;
    set_aside(&store, &other, &records[..3], "one reason, é").await;
    let command = command(900, LetterAction::Discard, &[3, 4]);
    let discards = Changes { command: Some(command), ..Changes::default() };
    store.commit(&held, at(25), at(26), &discards).await.unwrap();

    let letters = all(&store).await;
    assert_eq!(letters.len(), 28);
    let first = &letters[0];
    assert_eq!((&first.place.log, first.place.partition, first.place.offset), (&log(), P0, Offset::ZERO));
    assert_eq!((first.reason.as_str(), &first.record), ("one reason, é", &records[0].value));
    assert_eq!((first.appended_at_ms, first.tries, first.parking), (Some(NOON_MS), 1, Parking::None));
    assert_eq!((first.tried_by, first.tried_at_ms, first.discarded_at_ms), (None, None, None));
    assert!(letters.is_sorted_by(|one, next| one.place < next.place), "{letters:?}");
    let count = async |filter: LetterFilter| store.dead_letters(&filter, None, 100).await.unwrap().len();
    // PostgreSQL rounds its microseconds.
    let now = first.set_aside_at_ms - 1_000;
    for (filter, expected) in [
        (LetterFilter { partition: Some(P1), ..LetterFilter::default() }, 3),
        (LetterFilter { log: Some(LogId::new("other")), ..LetterFilter::default() }, 0),
        (LetterFilter { offset: Some(Offset::new(2)), ..LetterFilter::default() }, 2),
        (LetterFilter { reason: Some("another".to_owned()), ..LetterFilter::default() }, 5),
        (LetterFilter { reason: Some(", é".to_owned()), ..LetterFilter::default() }, 23),
        (LetterFilter { reason: Some("%".to_owned()), ..LetterFilter::default() }, 0),
        (LetterFilter { record: Some("\"/24\"".to_owned()), ..LetterFilter::default() }, 1),
        (LetterFilter { since_ms: Some(now), ..LetterFilter::default() }, 28),
        (LetterFilter { since_ms: Some(now + 3_600_000), ..LetterFilter::default() }, 0),
        (LetterFilter { until_ms: Some(now), ..LetterFilter::default() }, 0),
        (LetterFilter { until_ms: Some(now + 3_600_000), ..LetterFilter::default() }, 28),
        (LetterFilter { discarded: Some(true), ..LetterFilter::default() }, 2),
        (LetterFilter { discarded: Some(false), ..LetterFilter::default() }, 26),
    ] {
        assert_eq!(count(filter.clone()).await, expected, "{filter:?}");
    }
    let mut pages: Vec<SetAside> = Vec::new();
    loop {
        let after = pages.last().map(|letter| letter.place.clone());
        let page = store.dead_letters(&LetterFilter::default(), after.as_ref(), 5).await.unwrap();
        assert!(page.len() <= 5);
        if page.is_empty() {
            break;
        }
        pages.extend(page);
    }
    assert_eq!(pages, letters);
    assert_eq!(store.dead_letters_with("\"/2").await.unwrap().len(), 1 + 5 + 1);
    let counts = store.letter_counts().await.unwrap();
    let [first, second] = &counts[..] else { panic!("{counts:?}") };
    assert_eq!((first.partition, first.open, first.discarded, first.waiting), (P0, 23, 2, 0));
    assert_eq!((second.partition, second.open, second.discarded, second.held_sessions), (P1, 3, 0, 0));
}

pub(super) async fn a_letter_that_is_tried_again_has_one_outcome_more_and_one_dead_fewer(
    fixture: StoreFixture,
) {
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    let letter = |n: u64| record(n, u128::from(n) + 1, 500, "event", json!({}));
    let letters: Vec<Record> = (0..5).map(letter).collect();
    set_aside(&store, &held, &letters, "first").await;
    // A copy of the second that came later was applied.
    apply(&store, &held, &[Record { offset: Offset::new(5), ..letters[1].clone() }]).await;
    let here = at(6);
    let before = store.claim(&log(), P0, "the test").await.unwrap();
    assert_eq!(outcomes(&store).await, Outcomes { applied: 1, duplicate: 0, dead: 5 });
    let held = before;

    let first = command(900, LetterAction::Retry, &[0, 1, 2, 3, 77]);
    assert_eq!(try_again(&store, &held, here, &first, &[2, 3]).await, [0, 1, 2, 3]);
    let expected = Outcomes { applied: 2, duplicate: 1, dead: 3 };
    assert_eq!((outcomes(&store).await, of_hours(&store).await), (expected, expected));
    let left = all(&store).await;
    assert_eq!(offsets(&left), [2, 3, 4]);
    for letter in &left[..2] {
        assert_eq!((letter.reason.as_str(), letter.tries), ("again \u{fffd}", 2));
        assert_eq!((letter.tried_by, letter.tried_at_ms), (Some(first.command_id), Some(first.at_ms)));
    }
    assert_eq!((left[2].reason.as_str(), left[2].tries, left[2].tried_by), ("first", 1, None));
    // The same command once more, as after an interruption.
    assert_eq!(try_again(&store, &held, here, &first, &[]).await, [0_u64; 0]);
    assert_eq!(outcomes(&store).await, expected);

    // Another one. A letter that was discarded can be tried, too.
    let discard = command(901, LetterAction::Discard, &[3]);
    store
        .commit(&held, here, at(7), &Changes { command: Some(discard), ..Changes::default() })
        .await
        .unwrap();
    let second = command(902, LetterAction::Retry, &[0, 1, 2, 3]);
    assert_eq!(try_again(&store, &held, at(7), &second, &[3]).await, [2, 3]);
    let expected = Outcomes { applied: 3, duplicate: 1, dead: 2 };
    assert_eq!((outcomes(&store).await, of_hours(&store).await), (expected, expected));
    let left = all(&store).await;
    assert_eq!((offsets(&left), left[0].tries, left[0].discarded_at_ms), (vec![3, 4], 3, None));
    // The checkpoint and the proof of the record before it are as they were.
    let again = claim(&store, P0).await;
    assert_eq!((again.resume_from, again.fingerprint), (at(7), None));
}

pub(super) async fn letters_that_are_not_as_they_were_read_are_not_written(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    let letters: Vec<Record> =
        (0..3).map(|n| record(n, u128::from(n) + 1, 500, "event", json!({}))).collect();
    set_aside(&store, &held, &letters, "first").await;
    let retry = command(900, LetterAction::Retry, &[0, 1, 2]);
    let of = |letters: &[Record]| {
        let offsets: Vec<Offset> = letters.iter().map(|letter| letter.offset).collect();
        tried(fold(letters, &HashSet::new(), &rules()), &retry, &offsets)
    };
    store.commit(&held, at(3), at(3), &of(&letters[..1])).await.unwrap();
    let before = fixture.dump().await;
    // The first one's outcome was not known, and all are tried again.
    let error = store.commit(&held, at(3), at(3), &of(&letters)).await.unwrap_err();
    assert!(matches!(error, CommitError::NotWritten { .. }), "{error:?}");
    assert_eq!(fixture.dump().await, before);
    // A writer that has lost its partition changes nothing (I4), nor does one that is elsewhere.
    let newer = claim(&store, P0).await;
    let before = fixture.dump().await;
    let error = store.commit(&held, at(3), at(3), &of(&letters[1..])).await.unwrap_err();
    assert!(matches!(error, CommitError::Fenced { .. }), "{error:?}");
    let error = store.commit(&newer, at(2), at(2), &of(&letters[1..])).await.unwrap_err();
    assert!(matches!(error, CommitError::Misplaced { .. }), "{error:?}");
    assert_eq!(fixture.dump().await, before);
    store.commit(&newer, at(3), at(3), &of(&letters[1..])).await.unwrap();
    assert_eq!(outcomes(&store).await, Outcomes { applied: 3, duplicate: 0, dead: 0 });
}

/// The first records of a session are dead at first; once they are applied, the tables are those of a log whose records
/// were all applied in their places (I5), and no older value has replaced a newer one (I6).
pub(super) async fn late_records_give_the_rows_that_they_would_have_given_in_time(fixture: StoreFixture) {
    let records = [
        record(0, 1, 500, "event", json!({ "screen": "1x1", "language": "de", "id": "ada" })),
        record(
            1,
            2,
            500,
            "identify",
            json!({ "id": "ada", "data": { "plan": "free", "only": "first", "n": 1.5 } }),
        ),
        record(
            2,
            3,
            500,
            "event",
            json!({ "screen": "2x2", "name": "buy", "data": { "revenue": 5, "currency": "EUR" } }),
        ),
        record(3, 4, 500, "identify", json!({ "id": "bob", "data": { "plan": "team" } })),
        record(4, 5, 600, "identify", json!({ "id": "cy", "data": { "k": "v" } })),
        record(5, 6, 500, "event", json!({ "language": "en" })),
    ];
    let directory = integration_tests::TestDirectory::create("letters");
    let settings = dashi_store::SqliteSettings { path: directory.path().join("in-time.db") };
    let in_time = Store::Sqlite(dashi_store::SqliteStore::open(&settings).await.unwrap());
    in_time.migrate().await.unwrap();
    let held = claim(&in_time, P0).await;
    apply(&in_time, &held, &records).await;

    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    let dead = [0, 1, 4];
    for record in &records {
        let one = std::slice::from_ref(record);
        if dead.contains(&record.offset.number()) {
            set_aside(&store, &held, one, "not yet").await;
        } else {
            apply(&store, &held, one).await;
        }
    }
    let compared = dashi_store::compare(&store, &in_time).await.unwrap();
    assert!(!compared.equal);
    let retry = command(900, LetterAction::Retry, &dead);
    assert_eq!(try_again(&store, &held, at(6), &retry, &[]).await, dead);
    let compared = dashi_store::compare(&store, &in_time).await.unwrap();
    let differing: Vec<_> = compared.tables.iter().filter(|table| !table.equal).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(outcomes(&store).await, outcomes(&in_time).await);
}

/// Records of a session wait behind its letter, are tried in order once that is settled or discarded, and hold up the others
/// if they fail themselves.
pub(super) async fn letters_wait_behind_the_first_of_their_session(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    let records: Vec<Record> =
        (0..6).map(|n| record(n, u128::from(n) + 1, 500 + u128::from(n % 2), "event", json!({}))).collect();
    let limits = ParkingLimits { waiting_max: 10, sessions_max: 10 };
    let mut parked = Parked::new(limits, []);
    for (place, record) in records.iter().enumerate() {
        let (one, from, to) =
            (std::slice::from_ref(record), Checkpoint::at(record.offset), Checkpoint::after(record.offset));
        let changes = if place < 2 {
            let mut changes = Changes::dead_letter(record, "bad".to_owned());
            parked.mark(&mut changes.dead_letters);
            changes
        } else {
            parked.waiting(one)
        };
        store.commit(&held, from, to, &changes).await.unwrap();
        parked.committed(&changes.dead_letters);
    }
    let here = at(6);
    let letters = all(&store).await;
    let parts = |letters: &[SetAside]| {
        letters
            .iter()
            .map(|letter| (letter.place.offset.number(), letter.tries, letter.parking))
            .collect::<Vec<_>>()
    };
    let (holds, waits) = (Parking::Holds, Parking::Waits);
    assert_eq!(
        parts(&letters),
        [(0, 1, holds), (1, 1, holds), (2, 0, waits), (3, 0, waits), (4, 0, waits), (5, 0, waits)]
    );
    let counts = store.letter_counts().await.unwrap()[0].clone();
    assert_eq!((counts.open, counts.waiting, counts.held_sessions), (2, 4, 2));
    let mut sessions = store.held_sessions(&held).await.unwrap();
    sessions.sort_unstable_by_key(|(_, offset, _)| *offset);
    assert_eq!(sessions, [(id(500), Offset::new(0), 2), (id(501), Offset::new(1), 2)]);
    assert_eq!(Parked::new(limits, sessions), parked, "a new claim knows the same");
    assert_eq!(store.released_letters(&held, 10).await.unwrap(), []);
    // Those that wait are not tried before the first one.
    let retry = command(900, LetterAction::Retry, &[0, 2, 4]);
    let tried_now = store.letters_to_try(&held, &retry, 10).await.unwrap();
    assert_eq!(
        tried_now.iter().map(|it| (it.record.offset.number(), it.in_order)).collect::<Vec<_>>(),
        [(0, true)]
    );
    assert_eq!(try_again(&store, &held, here, &retry, &[]).await, [0]);
    // The first one is settled; the next one fails and holds the last one up, and the other session waits on.
    let released = async || {
        let letters = store.released_letters(&held, 10).await.unwrap();
        letters.into_iter().map(|letter| letter.record).collect::<Vec<_>>()
    };
    let next = released().await;
    assert_eq!(next, [records[2].clone()]);
    let release = LetterCommand { command_id: Uuid::nil(), ..retry };
    let changes = Changes::dead_letter(&next[0], "bad, too".to_owned());
    store.commit(&held, here, here, &tried(changes, &release, &[next[0].offset])).await.unwrap();
    assert_eq!(released().await, []);
    let letters = all(&store).await;
    assert_eq!(parts(&letters)[1], (2, 1, holds));
    // It is discarded; the last one is free.
    let discard = command(901, LetterAction::Discard, &[2]);
    store
        .commit(&held, here, at(7), &Changes { command: Some(discard), ..Changes::default() })
        .await
        .unwrap();
    assert_eq!(released().await, [records[4].clone()]);
    // The order of the other session is given up.
    let nothing = Tried { command_id: Uuid::nil(), at_ms: 0, offsets: Vec::new(), in_order: false };
    let given_up = Changes { given_up: vec![id(501)], tried: Some(nothing), ..Changes::default() };
    store.commit(&held, at(7), at(7), &given_up).await.unwrap();
    let of_other = all(&store).await.into_iter().filter(|letter| letter.place.offset.number() % 2 == 1);
    assert!(of_other.clone().count() == 3 && of_other.clone().all(|letter| letter.parking == Parking::None));
    assert_eq!(released().await, [records[4].clone()]);
}
