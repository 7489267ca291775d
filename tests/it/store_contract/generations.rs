//! Generations of the tables: made beside the live one, filled, finished, swapped, kept and dropped.

use std::collections::BTreeMap;
use std::task::Poll;

use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::SessionFilter;
use dashi_store::{
    Claim, ClaimError, CommitError, Foreign, ForeignRows, Generation, GenerationError, GenerationState,
    Store, SwapError, Swapped, compare,
};

use super::fixture::{
    P0, Raw, SOON, StoreFixture, WEBSITE, at, claim, commit, event, id, log, page_views, session,
};
use super::rows::full_changes;

/// Commits to a generation as a replay does, behind what it has.
async fn replay(generation: &Store, changes: &Changes) {
    let claim: Claim = generation.claim_for_replay(&log(), P0, "a replay").await.unwrap();
    let to = Checkpoint::after(claim.resume_from.offset());
    generation.commit(&claim, claim.resume_from, to, changes).await.unwrap();
}

async fn states(store: &Store) -> Vec<(u32, GenerationState)> {
    let all = store.generations().await.unwrap();
    all.iter().map(|generation: &Generation| (generation.number, generation.state)).collect()
}

async fn equal(first: &Store, second: &Store) {
    let compared = compare(first, second).await.unwrap();
    assert!(compared.equal, "{compared:#?}");
}

pub(super) async fn a_generation_is_made_filled_and_finished_beside_the_live_one(fixture: StoreFixture) {
    use GenerationState::{Building, Live, Ready};
    let store = fixture.migrated().await;
    assert_eq!(states(&store).await, [(1, Live)]);
    commit(&store, &full_changes()).await;
    commit(&store, &page_views([11, 12, 13])).await;
    let before = fixture.dump().await;
    let begun = store.begin_generation(7, "release=3.1").await.unwrap();
    assert_eq!(
        (begun.number, begun.state, begun.projection_version, &*begun.rules),
        (2, Building, 7, "release=3.1")
    );
    // Interrupted and begun again: the same one, whatever it is asked for.
    assert_eq!(store.begin_generation(8, "").await.unwrap(), begun);
    assert_eq!(fixture.open().await.generations().await.unwrap()[1], begun);
    let generation = store.open_generation(2).await.unwrap();
    assert!(generation.is_empty().await.unwrap());
    assert!(matches!(store.claim_for_replay(&log(), P0, "x").await, Err(ClaimError::Live { .. })));
    replay(&generation, &full_changes()).await;
    // Opened again, as by another process.
    let again = fixture.open().await.open_generation(2).await.unwrap();
    replay(&again, &page_views([11, 12, 13])).await;
    equal(&store, &generation).await;
    // Nothing of the live one changed.
    let without = |dump: &BTreeMap<String, Vec<String>>| {
        let own = |table: &String| !table.contains("generation");
        dump.iter()
            .filter(|(table, _)| own(table))
            .map(|(table, rows)| (table.clone(), rows.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(without(&fixture.dump().await), without(&before));
    let steps = std::sync::Mutex::new(Vec::new());
    store.finish_generation(2, |step| steps.lock().unwrap().push(step)).await.unwrap();
    let steps = steps.into_inner().unwrap();
    assert!(
        steps.iter().any(|step| step.index.as_deref().is_some_and(|name| name.contains("created_at"))),
        "{steps:?}"
    );
    assert_eq!(steps.iter().map(|step| step.done).collect::<Vec<_>>(), (0..steps.len()).collect::<Vec<_>>());
    assert!(steps.iter().all(|step| step.total + 1 == steps.len()), "{steps:?}");
    assert_eq!(states(&store).await, [(1, Live), (2, Ready)]);
    // Again: nothing is left to do.
    store.finish_generation(2, |step| assert_eq!((step.done, step.total), (0, 0))).await.unwrap();
    equal(&store, &generation).await;
    assert!(matches!(store.open_generation(9).await, Err(GenerationError::None { number: 9 })));
    generation.close().await;
    again.close().await;
    // The claim of a live projector on this store, and the generation's of its own.
    assert_eq!(claim(&store, P0).await.resume_from.offset().number(), 2);
    tokio::time::timeout(SOON, store.drop_generation(2)).await.unwrap().unwrap();
    assert_eq!(states(&store).await, [(1, Live)]);
    let live = store.drop_generation(1).await;
    assert!(matches!(live, Err(GenerationError::State { number: 1, state: Live, .. })), "{live:?}");
    assert_eq!(without(&fixture.dump().await).len(), without(&before).len());
}

/// A log in memory: the changes of each record, one partition.
pub(super) struct Log(pub Vec<Changes>);

impl Log {
    /// Replays the rest of it up to the given checkpoints, as a rebuild does.
    pub(super) async fn catch_up(
        &self,
        generation: &Store,
        targets: &[(LogId, Partition, Checkpoint)],
    ) -> Result<(), CommitError> {
        for (log_id, partition, target) in targets {
            assert_eq!((log_id, *partition), (&log(), P0));
            let claim = generation.claim_for_replay(log_id, *partition, "a rebuild").await.unwrap();
            for offset in claim.resume_from.offset().number()..target.offset().number() {
                generation.commit(&claim, at(offset), at(offset + 1), &self.0[offset as usize]).await?;
            }
        }
        Ok(())
    }
}

/// Page views of three sessions, each with a row of every other kind once.
fn long_log() -> Log {
    let mut records = vec![full_changes()];
    records.extend((100..140).map(|n| {
        let session_id = 500_000 + n % 3;
        let events = vec![event(n, session_id)];
        let outcomes = Outcomes { applied: 1, ..Outcomes::default() };
        Changes { sessions: vec![session(session_id)], events, outcomes, ..Changes::default() }
    }));
    Log(records)
}

/// The same records under other rules: other paths.
fn under_other_rules(log: &Log) -> Log {
    let changed = |changes: &Changes| {
        let mut changes = changes.clone();
        for event in &mut changes.events {
            event.url_path = "/rebuilt".to_owned();
        }
        changes
    };
    Log(log.0.iter().map(changed).collect())
}

/// A store with the first records of a log, and a finished generation with the first of them under other rules.
async fn live_and_rebuilt(fixture: &StoreFixture, log: &Log, rebuilt: &Log, records: u64) -> Store {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    for offset in 0..records {
        store.commit(&claim, at(offset), at(offset + 1), &log.0[offset as usize]).await.unwrap();
    }
    let begun = store.begin_generation(2, "others").await.unwrap();
    let generation = store.open_generation(begun.number).await.unwrap();
    rebuilt.catch_up(&generation, &[(super::fixture::log(), P0, at(records / 2))]).await.unwrap();
    generation.close().await;
    store.finish_generation(begun.number, |_| ()).await.unwrap();
    store
}

async fn swap(
    store: &Store,
    number: u32,
    foreign: Foreign,
    log: &Log,
) -> Result<Swapped, SwapError<CommitError>> {
    let generation = store.open_generation(number).await.unwrap();
    let swapped = store.swap(number, foreign, async |targets| log.catch_up(&generation, targets).await).await;
    generation.close().await;
    swapped
}

/// How many page views have been made by other rules, and by the first ones.
async fn paths(fixture: &StoreFixture) -> (usize, usize) {
    let mut raw = fixture.raw().await;
    let rebuilt = raw.count("website_event WHERE url_path = '/rebuilt'").await;
    (rebuilt, raw.count("website_event").await - rebuilt)
}

pub(super) async fn a_swap_fences_every_writer_once_and_can_be_reverted(fixture: StoreFixture) {
    use GenerationState::{Kept, Live};
    let records = long_log();
    let rebuilt = under_other_rules(&records);
    let store = live_and_rebuilt(&fixture, &records, &rebuilt, 30).await;
    let stale = claim(&store, P0).await;
    let before = paths(&fixture).await;
    assert_eq!(before.0, 0);
    let swapped = swap(&store, 2, Foreign::Refuse, &rebuilt).await.unwrap();
    assert_eq!((swapped.old, &swapped.foreign_kept, &swapped.foreign_lost), (1, &vec![], &vec![]));
    assert_eq!(states(&store).await, [(1, Kept), (2, Live)]);
    assert_eq!(paths(&fixture).await, (before.1, 0));
    // By the same handle, and by another process's.
    for store in [&store, &fixture.open().await] {
        let fenced = store.commit(&stale, at(30), at(31), &records.0[30]).await;
        assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
        assert!(matches!(store.resume(&stale).await, Err(ClaimError::Fenced { .. })));
        assert_eq!(
            store.partitions().await.unwrap()[0].outcomes.applied,
            records.0[..30].iter().map(|changes| changes.outcomes.applied).sum::<u64>()
        );
    }
    let current = claim(&store, P0).await;
    assert_eq!(current.resume_from, at(30));
    assert!(current.epoch > stale.epoch);
    store.commit(&current, at(30), at(31), &rebuilt.0[30]).await.unwrap();
    assert_eq!(paths(&fixture).await.0, before.1 + 1);
    // The other one is as it was.
    let kept = store.open_generation(1).await.unwrap();
    assert_eq!(kept.partitions().await.unwrap()[0].checkpoint, at(30));
    kept.close().await;

    // Back: it is caught up with what came since.
    let back = swap(&store, 1, Foreign::Refuse, &records).await.unwrap();
    assert_eq!(back.old, 2);
    assert_eq!(states(&store).await, [(1, Live), (2, Kept)]);
    assert_eq!(paths(&fixture).await, (0, before.1 + 1));
    let fenced = store.commit(&current, at(31), at(32), &records.0[31]).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    let last = claim(&store, P0).await;
    assert!(last.epoch > current.epoch);
    store.commit(&last, at(31), at(32), &records.0[31]).await.unwrap();
    assert!(matches!(store.claim_for_replay(&log(), P0, "x").await, Err(ClaimError::Live { .. })));

    // And forth again; then the old one goes.
    swap(&store, 2, Foreign::Refuse, &rebuilt).await.unwrap();
    assert_eq!(paths(&fixture).await, (before.1 + 2, 0));
    let again = swap(&store, 2, Foreign::Refuse, &rebuilt).await;
    let is_live =
        |state: &GenerationError| matches!(state, GenerationError::State { number: 2, state: Live, .. });
    assert!(matches!(&again, Err(SwapError::Generation(state)) if is_live(state)), "{again:?}");
    store.drop_generation(1).await.unwrap();
    assert_eq!(states(&store).await, [(2, Live)]);
    assert_eq!(paths(&fixture).await, (before.1 + 2, 0));
    // Nothing is left of it, and the next one is built as the first was.
    let next = store.begin_generation(3, "").await.unwrap();
    assert_eq!(next.number, 3);
    let generation = store.open_generation(3).await.unwrap();
    rebuilt.catch_up(&generation, &[(log(), P0, at(32))]).await.unwrap();
    store.finish_generation(3, |_| ()).await.unwrap();
    equal(&store, &generation).await;
}

pub(super) async fn a_generation_that_is_behind_is_not_swapped(fixture: StoreFixture) {
    let records = long_log();
    let store = live_and_rebuilt(&fixture, &records, &records, 20).await;
    let before = fixture.dump().await;
    let behind = store.swap(2, Foreign::Lose, async |_| Ok::<_, std::io::Error>(())).await;
    match behind {
        Err(SwapError::Behind { partition, live, generation, .. }) => {
            assert_eq!((partition, live, generation), (P0, at(20), Some(at(10))));
        }
        other => panic!("{other:?}"),
    }
    let failed = store.swap(2, Foreign::Lose, async |_| Err(std::io::Error::other("no log"))).await;
    assert!(matches!(failed, Err(SwapError::CatchUp(_))), "{failed:?}");
    assert_eq!(fixture.dump().await, before);
    // Nor one beside which live records are applied before older ones: no generation has those.
    let claim_ = claim(&store, P0).await;
    store.begin_tail(&claim_, at(30), &SessionFilter::new(8)).await.unwrap();
    let with_tail =
        store.swap(2, Foreign::Lose, async |_| -> Result<(), std::io::Error> { panic!("not called") }).await;
    assert!(
        matches!(with_tail, Err(SwapError::Generation(GenerationError::HasTail { partition: P0 }))),
        "{with_tail:?}"
    );
    store.drop_tail(&claim_).await.unwrap();
    // One that is not finished is refused before anything is tried.
    let begun = store.begin_generation(2, "").await.unwrap();
    let building = store
        .swap(begun.number, Foreign::Lose, async |_| -> Result<(), std::io::Error> { panic!("not called") })
        .await;
    assert!(matches!(building, Err(SwapError::Generation(GenerationError::State { .. }))), "{building:?}");
    // The live one goes on under its claims.
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(20), at(21), &records.0[20]).await.unwrap();
}

pub(super) async fn foreign_rows_are_refused_kept_or_lost_as_it_is_said(fixture: StoreFixture) {
    let records = long_log();
    let store = live_and_rebuilt(&fixture, &records, &records, 20).await;
    let mut raw = fixture.raw().await;
    let table = |table: &str| table.to_owned();
    // An importer's session with an event and a property, and a property that it gave a session of the log.
    let at_noon = match raw {
        Raw::Postgres(_) => "to_timestamp(1777636800)",
        Raw::Sqlite(_) => "1777636800000",
    };
    raw.execute(&format!(
        "INSERT INTO session (session_id, website_id, created_at) VALUES ('{s}', '{w}', {at_noon});
         INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type)
             VALUES ('{e}', '{w}', '{s}', '{s}', {at_noon}, '/imported', 1);
         INSERT INTO session_data (session_data_id, website_id, session_id, data_key, data_type, string_value, created_at)
             VALUES ('{e}', '{w}', '{own}', 'colour', 1, 'red', {at_noon})",
        s = id(900_000),
        w = id(WEBSITE),
        e = id(900_001),
        own = id(500_000),
    ))
    .await;
    let generation = store.open_generation(2).await.unwrap();
    records.catch_up(&generation, &[(log(), P0, at(20))]).await.unwrap();
    generation.close().await;
    let found = store.foreign_rows(2).await.unwrap();
    let counts =
        |rows: &[ForeignRows]| rows.iter().map(|it| (it.table.clone(), it.rows)).collect::<BTreeMap<_, _>>();
    let expected =
        BTreeMap::from([(table("session"), 1), (table("website_event"), 1), (table("session_data"), 1)]);
    assert_eq!(counts(&found), expected);
    let event = found.iter().find(|it| it.table == "website_event").unwrap();
    assert_eq!(event.keys, [id(900_001).to_string()]);
    let compared = compare(&store, &store.open_generation(2).await.unwrap()).await.unwrap();
    let events = compared.tables.iter().find(|it| it.table == "website_event").unwrap();
    assert_eq!((events.only, events.changed, events.equal), ([1, 0], 0, false));
    let noon = events.days.iter().find(|it| it.day == "2026-05-01").unwrap();
    assert_eq!((noon.equal, noon.rows[0]), (false, noon.rows[1] + 1));

    let before = fixture.dump().await;
    match swap(&store, 2, Foreign::Refuse, &records).await {
        Err(SwapError::Foreign(refused)) => assert_eq!(counts(&refused), expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.dump().await, before);

    // More of it while the swap is at work: each time that it catches up, in a file only the first time.
    let live = store.clone();
    let calls = std::sync::atomic::AtomicU32::new(0);
    let generation = store.open_generation(2).await.unwrap();
    let swapped = live
        .swap(2, Foreign::Keep, async |targets| {
            let call = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // A file has one writer at a time.
            if call == 0 || matches!(fixture, StoreFixture::Postgres(_)) {
                let event_id = id(900_002 + u128::from(call));
                fixture.raw().await.execute(&format!(
                    "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type)
                     VALUES ('{event_id}', '{w}', '{s}', '{s}', {at_noon}, '/imported', 1)",
                    s = id(900_000),
                    w = id(WEBSITE),
                ))
                .await;
            }
            records.catch_up(&generation, targets).await
        })
        .await
        .unwrap();
    let events = if matches!(fixture, StoreFixture::Postgres(_)) { 4 } else { 2 };
    let mut expected = expected;
    expected.insert(table("website_event"), events);
    assert_eq!(counts(&swapped.foreign_kept), expected);
    assert!(swapped.foreign_lost.is_empty(), "{swapped:?}");
    let imported = "website_event WHERE url_path = '/imported'";
    assert_eq!(raw.count(imported).await, events as usize);
    assert_eq!(raw.count("session_data WHERE string_value = 'red'").await, 1);
    assert_eq!(raw.count("website_event").await, fixture_events(&records, 20) + events as usize);

    // Back again, and the other way: lost, and named.
    raw.execute("DELETE FROM session_data WHERE string_value = 'red'").await;
    raw.execute(&format!(
        "UPDATE website_event SET event_id = '{}' WHERE event_id = '{}'",
        id(900_009),
        id(900_001)
    ))
    .await;
    let lost = swap(&store, 1, Foreign::Lose, &records).await.unwrap();
    assert_eq!(counts(&lost.foreign_lost), BTreeMap::from([(table("website_event"), 1)]));
    assert_eq!(raw.count(&format!("website_event WHERE event_id = '{}'", id(900_009))).await, 0);
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(20), at(21), &records.0[20]).await.unwrap();
}

fn fixture_events(log: &Log, records: usize) -> usize {
    log.0[..records].iter().map(|changes| changes.events.len()).sum()
}

/// Abandons a swap after so many steps of its future. Returns whether it came to its end.
async fn abandoned(
    steps: usize,
    swap: impl Future<Output = Result<Swapped, SwapError<CommitError>>>,
) -> bool {
    let mut swap = std::pin::pin!(swap);
    let mut left = steps;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        swap.as_mut().poll(context).map(|swapped| {
            swapped.unwrap();
            true
        })
    })
    .await
}

pub(super) async fn a_swap_that_stops_at_any_step_is_done_wholly_later_or_was_done(fixture: StoreFixture) {
    let records = long_log();
    let rebuilt = under_other_rules(&records);
    let store = live_and_rebuilt(&fixture, &records, &rebuilt, 20).await;
    let events = fixture_events(&records, 20);
    let (mut kept, mut other) = ((1, &records), (2, &rebuilt));
    let mut steps = 1;
    let mut swapped = 0;
    while swapped < 2 {
        let generation = store.open_generation(other.0).await.unwrap();
        let swap = store
            .swap(other.0, Foreign::Refuse, async |targets| other.1.catch_up(&generation, targets).await);
        let ended = tokio::time::timeout(SOON, abandoned(steps, swap)).await.expect("a step comes");
        generation.close().await;
        // A commit that was not waited for may still take place: the tables are one generation's or the other's.
        let now = store.generations().await.unwrap();
        let now = now.iter().find(|it| it.state == GenerationState::Live).unwrap().number;
        let (rebuilt_rows, first_rows) = paths(&fixture).await;
        assert!([(0, events), (events, 0)].contains(&(rebuilt_rows, first_rows)), "after {steps} steps");
        if ended {
            assert_eq!(now, other.0);
            swapped += 1;
        }
        if now == other.0 {
            std::mem::swap(&mut kept, &mut other);
        }
        // Writers are not held any more.
        let claim = tokio::time::timeout(SOON, claim(&store, P0)).await.expect("a claim");
        assert_eq!(claim.resume_from, at(20));
        store.commit(&claim, at(20), at(20), &Changes::default()).await.unwrap();
        steps += 1 + steps / 12;
    }
    eprintln!("stopped at {steps} steps at most");
    assert!(steps > 20, "{steps}");
    if let StoreFixture::Sqlite(directory) = &fixture {
        let files = std::fs::read_dir(directory.path().join("made/with")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<_> = names
            .filter(|name| name.contains("gen-") && !name.ends_with("-wal") && !name.ends_with("-shm"))
            .collect();
        left.sort_unstable();
        assert_eq!(left, [format!("the.store.gen-{}", other.0)]);
    }
    let kept = store.open_generation(other.0).await.unwrap();
    assert_eq!(kept.partitions().await.unwrap()[0].checkpoint, at(20));
}
