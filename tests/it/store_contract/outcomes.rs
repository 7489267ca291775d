//! Outcomes: applied, duplicate, dead or missing, and their counts.

use std::collections::HashSet;

use dashi_domain::fold::{Changes, FoldRules, Outcomes, fold};
use dashi_domain::glance::{HOUR_MS, HourKey};
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset};
use dashi_domain::record::Record;
use dashi_domain::rows::DeadLetter;
use dashi_domain::umami::Release;
use dashi_store::{CommitError, SpoolNote, compare};
use uuid::Uuid;

use super::fixture::{NOON_MS, P0, P1, Raw, StoreFixture, WEBSITE, at, claim, commit, id, log, page_views};

pub(super) fn record(offset: u64, event: u128, session: u128, kind: &str, payload: &str) -> Record {
    let value = format!(
        r#"{{"v":1,"id":"{}","at":{},"session":"{}","visit":"{}","type":"{kind}","payload":{{"website":"{}"{payload}}}}}"#,
        id(event),
        NOON_MS + event as i64,
        id(session),
        id(session + 1),
        id(WEBSITE)
    );
    Record { partition: P0, offset: Offset::new(offset), appended_at_ms: 0, value: value.into_bytes() }
}

pub(super) fn rules() -> FoldRules {
    FoldRules {
        zone: jiff::tz::TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    }
}

pub(super) async fn applied_events_are_named_and_nothing_is_written(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim_ = claim(&store, P0).await;
    let all: Vec<Record> = (0..12)
        .map(|n| match n % 4 {
            0 => record(
                n,
                u128::from(n),
                100,
                "event",
                r#","url":"/x","name":"n","data":{"revenue":1,"currency":"EUR"}"#,
            ),
            1 => record(n, u128::from(n), 110, "identify", r#","id":"who","data":{"a":1}"#),
            // It has no row of its own.
            2 => record(n, u128::from(n), 130, "heatmap", r#","events":[]"#),
            _ => record(n, u128::from(n), 120, "performance", r#","url":"/x","lcp":1.5"#),
        })
        .collect();
    let (head, nothing) = (&all[..5], HashSet::new());
    store.commit(&claim_, at(0), at(5), &fold(head, &nothing, &rules())).await.unwrap();
    let before = fixture.dump().await;
    // The same five come again, under other offsets, with seven that are new.
    let again = fold(&all, &nothing, &rules());
    let named: HashSet<Uuid> = match store.commit(&claim_, at(5), at(17), &again).await {
        Err(CommitError::Duplicates(named)) => {
            assert_eq!(named.len(), 5, "each once: {named:?}");
            named.into_iter().collect()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(named, (0..5).map(id).collect());
    assert_eq!(fixture.dump().await, before);
    assert_eq!(store.resume(&claim_).await.unwrap(), at(5));
    let without = fold(&all, &named, &rules());
    store.commit(&claim_, at(5), at(17), &without).await.unwrap();

    // The tables are those of one copy of each.
    let other = fixture.of_the_other_backend().await.migrated_with(&fold(&all, &nothing, &rules())).await;
    let compared = compare(&store, &other.1).await.unwrap();
    // Only the counts know of the others.
    let differs = |table: &&dashi_store::TableComparison| !table.equal && table.table != "hour_count";
    assert_eq!(compared.tables.iter().filter(differs).count(), 0, "{compared:#?}");
    let outcomes = store.partitions().await.unwrap()[0].outcomes;
    assert_eq!(outcomes, Outcomes { applied: 12, duplicate: 5, dead: 0 });
}

/// Within a batch the fold counts the second as a duplicate. If the store did not, rows would depend on where a
/// batch ends, and a replay could give others (I5).
pub(super) async fn an_event_and_an_identify_with_one_id_are_one_event(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let both = [record(0, 1, 100, "event", r#","url":"/x""#), record(1, 2, 100, "identify", "")];
    let swapped = [record(2, 1, 100, "identify", ""), record(3, 2, 100, "event", r#","url":"/x""#)];
    let more = [record(4, 3, 100, "identify", ""), record(5, 4, 100, "event", r#","url":"/x""#)];
    commit(&store, &fold(&both, &HashSet::new(), &rules())).await;
    let before = fixture.dump().await;
    let claim = claim(&store, P0).await;
    for (n, late) in swapped.iter().enumerate() {
        let batch: Vec<Record> = more.iter().chain([late]).cloned().collect();
        let changes = fold(&batch, &HashSet::new(), &rules());
        match store.commit(&claim, at(1), at(2), &changes).await {
            Err(CommitError::Duplicates(named)) => assert_eq!(named, [id(n as u128 + 1)]),
            other => panic!("{other:?}"),
        }
    }
    let mut after = fixture.dump().await;
    for (table, rows) in before {
        // The claim has a new epoch.
        if !table.contains("checkpoint") {
            assert_eq!(after.remove(&table), Some(rows), "{table}");
        }
    }
}

pub(super) async fn of_two_partitions_with_one_event_one_applies_it(fixture: StoreFixture) {
    let stores = [fixture.migrated().await, fixture.open().await];
    let mut raw = fixture.raw().await;
    for round in 0..15_u128 {
        let claims = [claim(&stores[0], P0).await, claim(&stores[1], P1).await];
        // Each has events of its own around the shared one, and both orders of ids occur.
        let shared = 1_000 * round + 50;
        let batches = [
            page_views((0..40).map(|n| 1_000 * round + n).chain([shared])),
            page_views([shared].into_iter().chain((60..99).map(|n| 1_000 * round + n))),
        ];
        let commits: Vec<_> = stores
            .iter()
            .zip(claims.clone())
            .zip(batches.clone())
            .map(|((store, claim), changes)| {
                let store = store.clone();
                tokio::spawn(async move {
                    let from = claim.resume_from;
                    store.commit(&claim, from, Checkpoint::after(from.offset()), &changes).await
                })
            })
            .collect();
        let mut applied = 0;
        for (n, commit) in commits.into_iter().enumerate() {
            match commit.await.unwrap() {
                Ok(_) => applied += 1,
                Err(CommitError::Duplicates(named)) => {
                    assert_eq!(named, [id(shared)]);
                    let from = claims[n].resume_from;
                    let mut rest = batches[n].clone();
                    rest.events.retain(|row| row.event_id != id(shared));
                    stores[n]
                        .commit(&claims[n], from, Checkpoint::after(from.offset()), &rest)
                        .await
                        .unwrap();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(applied, 1, "one store applies it at once, the other one gets an error");
        assert_eq!(raw.count("website_event").await as u128, (round + 1) * 80);
    }
}

pub(super) async fn dead_letters_are_kept_with_their_place_and_reason(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P1).await;
    let garbage = [
        Record { value: b"\0\xff{".to_vec(), ..record(4, 1, 1, "event", "") },
        Record { value: Vec::new(), ..record(5, 1, 1, "event", "") },
        record(6, 1, 1, "unheard of", ""),
    ];
    let mut changes = fold(&garbage, &HashSet::new(), &rules());
    changes.dead_letters[1].reason = "with \0 in it".to_owned();
    let reasons: Vec<_> =
        changes.dead_letters.iter().map(|letter| letter.reason.replace('\0', "\u{fffd}")).collect();
    store.commit(&claim, at(0), at(7), &changes).await.unwrap();
    let mut raw = fixture.raw().await;
    let (table, hex) = match raw {
        Raw::Postgres(_) => ("dashi.dead_letter", "encode(record, 'hex')"),
        Raw::Sqlite(_) => ("dashi_dead_letter", "lower(hex(record))"),
    };
    let place = format!("SELECT log_id || '/' || partition || '/' || record_offset FROM {table} ORDER BY 1");
    assert_eq!(raw.strings(&place).await, ["test:log/1/4", "test:log/1/5", "test:log/1/6"]);
    assert_eq!(raw.strings(&format!("SELECT reason FROM {table} ORDER BY record_offset")).await, reasons);
    let values = raw.strings(&format!("SELECT {hex} FROM {table} ORDER BY record_offset")).await;
    assert_eq!(values[..2], ["00ff7b", ""]);
    assert_eq!(store.partitions().await.unwrap()[0].outcomes, Outcomes { dead: 3, ..Outcomes::default() });
}

pub(super) fn missing(from: u64, to: u64, cause: MissingCause) -> Missing {
    Missing::all(Offset::new(from)..Offset::new(to), cause)
}

pub(super) async fn what_is_missing_is_noted_with_the_checkpoint_that_passes_it(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let stale = claim(&store, P0).await;
    let held = claim(&store, P0).await;
    let gone = vec![missing(0, 3, MissingCause::Retention)];
    let lost = Changes { missing: gone.clone(), ..Changes::default() };
    assert!(store.commit(&stale, at(0), at(3), &lost).await.is_err(), "another's claim");
    assert!(store.commit(&held, at(1), at(3), &lost).await.is_err(), "another checkpoint");
    assert_eq!(store.missing().await.unwrap(), [], "what is not committed is not noted");

    store.commit(&held, at(0), at(3), &lost).await.unwrap();
    let gaps = vec![missing(4, 6, MissingCause::Gap), missing(8, 9, MissingCause::Gap)];
    let mixed = Changes { missing: gaps.clone(), markers: 1, ..page_views([1, 2]) };
    store.commit(&held, at(3), at(9), &mixed).await.unwrap();
    let state = &store.partitions().await.unwrap()[0];
    assert_eq!((state.missing, state.markers, state.rewound), (6, 1, 0));
    assert_eq!(state.checkpoint.offset().number(), state.outcomes.total() + state.missing + state.markers);
    let noted = store.missing().await.unwrap();
    let ranges: Vec<_> = noted.iter().map(|noted| noted.missing.clone()).collect();
    assert_eq!(ranges, [gone, gaps].concat());
    assert!(noted.iter().all(|noted| noted.log == log() && noted.partition == P0 && noted.noted_at_ms > 0));
}

/// Offsets that are used again get other records: a dead letter of theirs must not meet an older one, and neither may
/// be lost.
pub(super) async fn a_checkpoint_goes_back_and_dead_letters_of_the_other_records_stay(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let letter = |value: &str| Changes {
        dead_letters: vec![DeadLetter {
            offset: Offset::new(4),
            appended_at_ms: NOON_MS,
            reason: "bad".to_owned(),
            value: value.into(),
            parking: Default::default(),
        }],
        outcomes: Outcomes { dead: 1, ..Outcomes::default() },
        ..Changes::default()
    };
    let held = claim(&store, P0).await;
    store.commit(&held, at(0), at(4), &page_views([1, 2, 3, 4])).await.unwrap();
    store.commit(&held, at(4), at(5), &letter("old")).await.unwrap();
    let lost = Changes { missing: vec![missing(2, 5, MissingCause::LogEnded)], ..Changes::default() };
    store.commit(&held, at(5), at(0), &lost).await.unwrap();
    assert_eq!(claim(&store, P0).await.resume_from, at(0));
    let held = claim(&store, P0).await;
    let copies = Changes { outcomes: Outcomes { duplicate: 4, ..Outcomes::default() }, ..Changes::default() };
    store.commit(&held, at(0), at(4), &copies).await.unwrap();
    store.commit(&held, at(4), at(5), &letter("new")).await.unwrap();
    let state = &store.partitions().await.unwrap()[0];
    assert_eq!((state.missing, state.rewound), (0, 5), "what was projected is not missing");
    assert_eq!(state.checkpoint.offset().number() + state.rewound, state.outcomes.total());
    assert_eq!(store.missing().await.unwrap()[0].missing.cause, MissingCause::LogEnded);
    let dump = fixture.dump().await;
    let letters = format!("{dump:?}");
    for value in ["old", "new"] {
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let is_there = letters.to_lowercase().contains(&hex) || letters.contains(value);
        assert!(is_there, "the dead letter {value} is lost: {letters}");
    }
}

pub(super) async fn ranges_of_what_is_missing_are_bounded_and_their_counts_are_not(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let held = claim(&store, P0).await;
    for n in 0..22 {
        let (from, to) = (n * 100, (n + 1) * 100);
        let gaps =
            (0..50).map(|gap| missing(from + 2 * gap, from + 2 * gap + 1, MissingCause::Gap)).collect();
        let changes = Changes { missing: gaps, ..Changes::default() };
        store.commit(&held, at(from), at(to), &changes).await.unwrap();
    }
    let noted = store.missing().await.unwrap();
    assert_eq!(noted.len(), 1_000);
    assert_eq!(noted.iter().map(|noted| noted.missing.records).sum::<u64>(), 1_100);
    assert_eq!(noted[999].missing.range.end, Offset::new(2_199), "the last one stands for the rest");
    assert_eq!(store.partitions().await.unwrap()[0].missing, 1_100);
}

pub(super) async fn outcomes_add_up(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim_ = claim(&store, P0).await;
    let with = |applied, duplicate, dead| Changes {
        outcomes: Outcomes { applied, duplicate, dead },
        ..Changes::default()
    };
    store.commit(&claim_, at(0), at(6), &with(1, 2, 3)).await.unwrap();
    store.commit(&claim_, at(6), at(66), &with(10, 20, 30)).await.unwrap();
    // What is refused counts nothing.
    store.commit(&claim_, at(6), at(66), &with(10, 20, 30)).await.unwrap_err();
    let next = claim(&store, P0).await;
    store.commit(&claim_, at(66), at(99), &with(10, 20, 30)).await.unwrap_err();
    store.commit(&next, at(66), at(667), &with(100, 200, 300)).await.unwrap();
    let state = store.partitions().await.unwrap().remove(0);
    assert_eq!(state.outcomes, Outcomes { applied: 111, duplicate: 222, dead: 333 });
    assert_eq!(state.checkpoint, at(667));
}

pub(super) async fn what_a_store_holds_is_told(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    store.ping().await.unwrap();
    assert_eq!(store.logs().await.unwrap(), []);
    assert_eq!(store.partitions().await.unwrap(), []);
    assert!(store.is_empty().await.unwrap());
    let b = LogId::new("b");
    store.claim(&b, P1, "second").await.unwrap();
    store.claim(&b, P0, "first").await.unwrap();
    let claim = store.claim(&LogId::new("a"), P1, "third").await.unwrap();
    assert_eq!(store.logs().await.unwrap(), [LogId::new("a"), b.clone()]);
    assert!(store.is_empty().await.unwrap(), "a claim is no row of the projection");
    let states: Vec<_> = store
        .partitions()
        .await
        .unwrap()
        .into_iter()
        .map(|state| (state.log, state.partition, state.owner, state.epoch, state.last_error))
        .collect();
    let one = Epoch::new(1);
    assert_eq!(
        states,
        [
            (LogId::new("a"), P1, "third".to_owned(), one, None),
            (b.clone(), P0, "first".to_owned(), one, None),
            (b, P1, "second".to_owned(), one, None),
        ]
    );
    // Any row of any table counts, one that only sets a record aside too.
    let letter = DeadLetter {
        offset: Offset::ZERO,
        appended_at_ms: NOON_MS,
        reason: "r".to_owned(),
        value: Vec::new(),
        parking: Default::default(),
    };
    store
        .commit(&claim, at(0), at(1), &Changes { dead_letters: vec![letter], ..Changes::default() })
        .await
        .unwrap();
    assert!(!store.is_empty().await.unwrap());
    store.close().await;
}

pub(super) async fn notes_of_spools_are_replaced_and_go_when_they_hold_nothing(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let hour = |hour: i64, source| HourKey { hour_ms: hour * HOUR_MS, source_id: id(source) };
    let first = SpoolNote {
        spool_id: "first".to_owned(),
        log: log(),
        collector: "host/1".to_owned(),
        directory: "data/spool".to_owned(),
        state: "spooling".to_owned(),
        records: 7,
        bytes: 4_900,
        set_aside: 1,
        oldest_ms: Some(NOON_MS),
        full: Some("it is full".to_owned()),
        trouble: Some("no answer".to_owned()),
        hours: vec![(hour(3, 1), 6), (hour(4, WEBSITE), 2)],
        noted_at_ms: 0,
    };
    let second = SpoolNote { spool_id: "second".to_owned(), collector: "host/2".to_owned(), ..first.clone() };
    store.note_spool(&second).await.unwrap();
    store.note_spool(&first).await.unwrap();
    let noted = async || {
        let mut notes = store.spools().await.unwrap();
        for note in &mut notes {
            assert!(std::mem::take(&mut note.noted_at_ms) > NOON_MS / 2, "{note:?}");
        }
        notes
    };
    assert_eq!(noted().await, [first.clone(), second.clone()]);
    let later = SpoolNote {
        state: "forwarding".to_owned(),
        records: 2,
        set_aside: 0,
        oldest_ms: None,
        full: None,
        trouble: None,
        hours: Vec::new(),
        ..first.clone()
    };
    store.note_spool(&later).await.unwrap();
    assert_eq!(noted().await, [later.clone(), second.clone()]);
    let idle = SpoolNote { state: "idle".to_owned(), records: 0, ..later };
    store.note_spool(&idle).await.unwrap();
    store.note_spool(&idle).await.unwrap();
    assert_eq!(noted().await, [second]);
}
