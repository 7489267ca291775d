//! Claims, epochs and commits: who may write, and from where.

use std::collections::BTreeSet;
use std::time::Instant;

use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::guard::{CommitOutcome, GuardRefusal, GuardRow, Position};
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset, Partition};
use dashi_domain::rows::DeadLetter;
use dashi_domain::tail::{SessionFilter, Tail};
use dashi_store::{Claim, ClaimError, CommitError, ErrorNote, StoreError};
use integration_tests::{PostgresServer, eventually};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::fixture::{
    P0, P1, Raw, SOON, StoreFixture, at, claim, commit, event, id, log, open_postgres, page_views, property,
};
use super::rows::full_changes;

pub(super) async fn every_claim_has_a_higher_epoch(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    for number in 1..=3 {
        let claim = store.claim(&log(), P0, "x").await.unwrap();
        assert_eq!((claim.epoch, claim.resume_from), (Epoch::new(number), Checkpoint::START));
        assert_eq!((claim.log, claim.partition), (log(), P0));
    }
    // Each partition of each log has its own.
    assert_eq!(claim(&store, P1).await.epoch, Epoch::new(1));
    assert_eq!(store.claim(&LogId::new("another"), P0, "x").await.unwrap().epoch, Epoch::new(1));
    commit(&store, &page_views([1, 2])).await;
    let next = claim(&store, P0).await;
    assert_eq!((next.epoch, next.resume_from), (Epoch::new(5), at(1)));
    // Many at once, each with its own.
    let claims: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(&log(), P0, "x").await.unwrap().epoch.number() })
        })
        .collect();
    let mut epochs = BTreeSet::new();
    for claim in claims {
        epochs.insert(claim.await.unwrap());
    }
    assert_eq!(epochs, (6..26).collect());
}

pub(super) async fn a_stale_epoch_is_fenced_and_changes_nothing(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let stale = claim(&store, P0).await;
    store.commit(&stale, at(0), at(10), &page_views([4_000])).await.unwrap();
    let current = claim(&fixture.open().await, P0).await;
    let before = fixture.dump().await;
    let full = full_changes();
    for (from, to) in [(10, 20), (0, 10), (10, 11)] {
        match store.commit(&stale, at(from), at(to), &full).await {
            Err(CommitError::Fenced { partition, held, current }) => {
                assert_eq!((partition, held, current), (P0, Epoch::new(1), Epoch::new(2)));
            }
            other => panic!("{other:?}"),
        }
    }
    match store.resume(&stale).await {
        Err(ClaimError::Fenced { partition, held, current }) => {
            assert_eq!((partition, held, current), (P0, Epoch::new(1), Epoch::new(2)));
        }
        other => panic!("{other:?}"),
    }
    // Nor an epoch that was never given.
    let invented = Claim { epoch: Epoch::new(9), ..stale };
    let fenced = store.commit(&invented, at(10), at(20), &full).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    assert_eq!(fixture.dump().await, before);
    assert_eq!(current.resume_from, at(10));
    store.commit(&current, at(10), at(20), &full).await.unwrap();
}

/// Every epoch, position, beginning and end around the stored row, with a tail and without: the store answers and changes the
/// row as `domain::guard` says, whose every interleaving is checked by `crates/domain/tests/guard.rs` and `tail.rs`.
pub(super) async fn the_guard_is_the_one_that_is_checked_in_every_order(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut partitions = (0..).map(Partition::new);
    let intervals = [(4, 5), (5, 4), (5, 5), (5, 6), (5, 9), (5, 10), (6, 7), (9, 8), (9, 9), (9, 12)];
    let positions = [Position::Checkpoint, Position::BesideTail, Position::Tail];
    let cases = [false, true].into_iter().flat_map(|has_tail| (1..=3).map(move |held| (has_tail, held)));
    let cases = cases.flat_map(|(has_tail, held)| positions.map(|position| (has_tail, held, position)));
    let cases = cases.flat_map(|(has_tail, held, position)| {
        intervals.map(|(from, to)| (has_tail, held, position, (from, to)))
    });
    for (has_tail, held, position, (from, to)) in cases {
        let (held, from, to) = (Epoch::new(held), at(from), at(to));
        let partition = partitions.next().unwrap();
        let first = store.claim(&log(), partition, "x").await.unwrap();
        store.commit(&first, at(0), at(5), &Changes::default()).await.unwrap();
        if has_tail {
            store.begin_tail(&first, at(7), &SessionFilter::new(8)).await.unwrap();
            let applied = page_views([u128::from(partition.number())]);
            store.commit(&first.of_tail(), at(7), at(9), &applied).await.unwrap();
        }
        let second = store.claim(&log(), partition, "x").await.unwrap();
        let tail = has_tail.then_some(Tail { from: at(7), to: at(9), applied: 1 });
        let row = GuardRow { epoch: second.epoch, checkpoint: second.resume_from, tail: second.tail };
        assert_eq!(row, GuardRow { epoch: Epoch::new(2), checkpoint: at(5), tail });
        // Records of the tail that are applied by it, or passed towards it.
        let of_tail = u64::from(position != Position::Checkpoint);
        let changes = Changes { skipped: u64::from(position == Position::BesideTail), ..Changes::default() };
        let applied = Outcomes { applied: u64::from(position == Position::Tail), ..Outcomes::default() };
        let changes = Changes { outcomes: applied, ..changes };
        let expected = row.commit(held, position, from, to, of_tail);
        let forged = Claim { epoch: held, position, ..second };
        let outcome = match store.commit(&forged, from, to, &changes).await {
            Ok(_) => CommitOutcome::Moved,
            Err(error) => error.outcome(),
        };
        let case = format!("tail {has_tail}, epoch {held}, {position:?} {from} to {to}");
        assert_eq!(outcome, expected.map_or_else(CommitOutcome::Refused, |_| CommitOutcome::Moved), "{case}");
        let stored = expected.unwrap_or(row);
        let state =
            store.partitions().await.unwrap().into_iter().find(|state| state.partition == partition).unwrap();
        let found = GuardRow { epoch: state.epoch, checkpoint: state.checkpoint, tail: state.tail };
        assert_eq!(found, stored, "{case}");
        match (store.resume(&forged).await, stored.resume(held)) {
            (Ok(resumed), Ok(expected)) => assert_eq!(resumed, expected),
            (Err(ClaimError::Fenced { current, .. }), Err(refusal)) => {
                assert_eq!(refusal, GuardRefusal::Fenced { current });
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The checkpoint passes what the tail has applied, and the counts say at any time how many records have an outcome.
pub(super) async fn a_tail_is_in_the_counts_and_ends_where_the_checkpoint_reaches_it(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let mut sessions = SessionFilter::new(64);
    sessions.insert(id(1));
    let claim_ = claim(&store, P0).await;
    store.begin_tail(&claim_, at(4), &sessions).await.unwrap();
    assert_eq!(store.tail_sessions(&log(), P0).await.unwrap(), Some(sessions.clone()));
    // It has begun: neither does another one, nor moves a claim the checkpoint that does not know of it.
    store.begin_tail(&claim_, at(5), &sessions).await.unwrap_err();
    let plain = store.commit(&claim_, at(0), at(1), &page_views([1])).await;
    assert!(matches!(plain, Err(CommitError::TailDiffers { .. })), "{plain:?}");
    let claim_ = claim(&store, P0).await;
    let tail = |applied, to| Some(Tail { from: at(4), to: at(to), applied });
    assert_eq!((claim_.tail, claim_.position), (tail(0, 4), Position::BesideTail));
    // Of offsets 4 to 8 three records go ahead, one of which is there already.
    let three = Changes { outcomes: Outcomes { applied: 2, duplicate: 1, dead: 0 }, ..page_views([10, 11]) };
    store.commit(&claim_.of_tail(), at(4), at(9), &three).await.unwrap();
    let stands = async || {
        let state = store.partitions().await.unwrap().remove(0);
        let counts = store.counts(&log()).await.unwrap().remove(0);
        assert_eq!(
            (counts.tail, counts.checkpoint, counts.outcomes),
            (state.tail, state.checkpoint, state.outcomes)
        );
        (state.checkpoint, state.tail, state.outcomes.total(), state.rewound)
    };
    assert_eq!(stands().await, (at(0), tail(3, 9), 3, 0));
    store.commit(&claim_, at(0), at(4), &page_views([0, 1, 2, 3])).await.unwrap();
    assert_eq!(stands().await, (at(4), tail(3, 9), 7, 0));
    let passing = |skipped, changes| Changes { skipped, ..changes };
    store.commit(&claim_, at(4), at(6), &passing(1, page_views([12]))).await.unwrap();
    assert_eq!(stands().await, (at(6), tail(2, 9), 8, 0));
    // Beyond its end nothing goes but by the tail.
    let beyond = store.commit(&claim_, at(6), at(10), &passing(2, page_views([13]))).await;
    assert!(matches!(beyond, Err(CommitError::TailDiffers { .. })), "{beyond:?}");
    store.commit(&claim_, at(6), at(9), &passing(2, page_views([13]))).await.unwrap();
    assert_eq!(stands().await, (at(9), None, 9, 0), "each offset has an outcome, and is read once");
    let over = store.commit(&claim_.of_tail(), at(9), at(10), &page_views([14])).await;
    assert!(matches!(over, Err(CommitError::TailDiffers { .. })), "{over:?}");

    // One that is dropped is read again by the checkpoint, and what it applied counts twice.
    let claim_ = claim(&store, P0).await;
    store.begin_tail(&claim_, at(20), &sessions).await.unwrap();
    store.commit(&claim_.of_tail(), at(20), at(22), &page_views([20, 21])).await.unwrap();
    let stale = claim_;
    let claim_ = claim(&store, P0).await;
    assert!(matches!(store.drop_tail(&stale).await, Err(ClaimError::Fenced { .. })));
    store.drop_tail(&claim_).await.unwrap();
    assert_eq!(stands().await, (at(9), None, 11, 2));
    assert!(matches!(store.begin_tail(&stale, at(30), &sessions).await, Err(ClaimError::Fenced { .. })));
    store.begin_tail(&claim_, at(8), &sessions).await.unwrap_err();
}

/// The old owner commits as fast as it can while the new one claims: what the claim says must stay true.
pub(super) async fn no_commit_of_an_older_epoch_comes_after_a_claim(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let other = fixture.open().await;
    let mut n = 0;
    for _ in 0..10 {
        let old = claim(&store, P0).await;
        let writer = tokio::spawn({
            let (store, first) = (store.clone(), n);
            async move {
                let (mut at_, mut n) = (old.resume_from, first);
                loop {
                    let to = Checkpoint::after(at_.offset());
                    match store.commit(&old, at_, to, &page_views([n])).await {
                        Ok(_) => (at_, n) = (to, n + 1),
                        Err(CommitError::Fenced { .. }) => return (at_, n),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        eventually(SOON, "the old owner is at work", async || {
            other.partitions().await.unwrap()[0].checkpoint.offset().number() >= n as u64 + 3
        })
        .await;
        let new = claim(&other, P0).await;
        let (stands, next) =
            tokio::time::timeout(SOON, writer).await.expect("the old owner gets an error").unwrap();
        assert_eq!(new.resume_from, stands);
        assert_eq!(other.resume(&new).await.unwrap(), stands);
        assert_eq!(fixture.raw().await.count("website_event").await as u128, next);
        n = next;
    }
}

pub(super) async fn a_misplaced_batch_is_refused_and_told_where_to_go_on(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(10), &page_views([1])).await.unwrap();
    let before = fixture.dump().await;
    for (from, to) in [(0, 5), (9, 20), (11, 20), (20, 30)] {
        match store.commit(&claim, at(from), at(to), &page_views([2])).await {
            Err(CommitError::Misplaced { partition, start, stored }) => {
                assert_eq!((partition, start, stored), (P0, at(from), at(10)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.dump().await, before);
    assert_eq!(store.resume(&claim).await.unwrap(), at(10));
    store.commit(&claim, at(10), at(20), &page_views([2])).await.unwrap();
}

pub(super) async fn a_repeated_commit_changes_nothing(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    let full = full_changes();
    store.commit(&claim, at(0), at(10), &full).await.unwrap();
    let before = fixture.dump().await;
    for _ in 0..2 {
        match store.commit(&claim, at(0), at(10), &full).await {
            Err(CommitError::Misplaced { stored, .. }) => assert_eq!(stored, at(10)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.dump().await, before);
}

pub(super) async fn a_dropped_commit_is_whole_or_not_at_all(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    let mut raw = fixture.raw().await;
    let checkpoint = if matches!(raw, Raw::Postgres(_)) { "dashi.checkpoint" } else { "dashi_checkpoint" };
    let both = format!("SELECT checkpoint || '/' || (SELECT count(*) FROM website_event) FROM {checkpoint}");
    let (mut stands, mut dropped) = (0, 0);
    for round in 0..200_u64 {
        let changes = page_views((0..20).map(|n| u128::from(stands * 20 + n)));
        // In looks, not in time: the first commits are dropped at their first steps, the last ones never.
        let patience = async {
            for _ in 0..round * round / 4 {
                tokio::task::yield_now().await;
            }
            if round > 180 {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = store.commit(&claim, at(stands), at(stands + 1), &changes) => Some(outcome),
            () = patience => None,
        };
        stands = match outcome {
            Some(Ok(_)) => stands + 1,
            // What the server had in hand when its client went away ended a moment after that one had asked.
            Some(Err(CommitError::Misplaced { stored, .. })) => stored.offset().number(),
            Some(Err(error)) => panic!("{error:?}"),
            None => {
                dropped += 1;
                store.resume(&claim).await.unwrap().offset().number()
            }
        };
        let found = raw.strings(&both).await.remove(0);
        let (checkpoint, rows) = found.split_once('/').unwrap();
        assert_eq!(rows.parse::<u64>().unwrap(), checkpoint.parse::<u64>().unwrap() * 20);
    }
    assert!(dropped > 0 && stands > 0, "{dropped} dropped, {stands} committed: the test shows nothing");
}

pub(super) async fn errors_are_noted_for_their_owner_only(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let stale = claim(&store, P0).await;
    let current = claim(&store, P0).await;
    let note = |text| ErrorNote { kind: "beyond", text, at_ms: 1_700_000_000_123, is_over: false };
    store.note_error(&current, &note("it broke\0")).await.unwrap();
    store.note_error(&stale, &note("too late")).await.unwrap();
    let state = store.partitions().await.unwrap().remove(0);
    assert!(state.last_error.as_deref().is_some_and(|error| error.starts_with("it broke")), "{state:?}");
    assert_eq!(state.last_error_kind.as_deref(), Some("beyond"));
    assert_eq!((state.last_error_at_ms, state.last_error_over_at_ms), (Some(1_700_000_000_123), None));
    // Whoever claims next learns that it is not over, and only they say that it is.
    let next = claim(&store, P0).await;
    assert!(next.has_open_error && !current.has_open_error);
    store.note_over(&current).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, None);
    store.note_over(&next).await.unwrap();
    let over = store.partitions().await.unwrap().remove(0);
    assert!((over.last_error_over_at_ms.unwrap() - over.updated_at_ms).abs() < 60_000, "{over:?}");
    assert!(!claim(&store, P0).await.has_open_error);
}

pub(super) async fn an_error_is_over_when_the_checkpoint_moves(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &Changes::default()).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, None, "nothing went wrong");
    let note = ErrorNote { kind: "waiting_for_store", text: "it broke", at_ms: 5, is_over: false };
    store.note_error(&claim, &note).await.unwrap();
    // What went wrong last stays to be read.
    store.commit(&claim, at(1), at(2), &Changes::default()).await.unwrap();
    let moved = store.partitions().await.unwrap().remove(0);
    assert_eq!((moved.last_error.as_deref(), moved.last_error_at_ms), (Some("it broke"), Some(5)));
    let over = moved.last_error_over_at_ms.expect("it is over");
    assert!((over - moved.updated_at_ms).abs() < 60_000, "{moved:?}");
    // It is over since then, not since the last commit.
    store.commit(&claim, at(2), at(3), &Changes::default()).await.unwrap();
    assert_eq!(store.partitions().await.unwrap().remove(0).last_error_over_at_ms, Some(over));
}

pub(super) async fn a_replay_claims_only_what_no_live_projector_has_claimed(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let replayed = store.claim_for_replay(&log(), P0, "a replay").await.unwrap();
    assert_eq!((replayed.epoch, replayed.resume_from), (Epoch::new(1), at(0)));
    store.commit(&replayed, at(0), at(7), &Changes::default()).await.unwrap();
    // Interrupted, it goes on.
    let again = store.claim_for_replay(&log(), P0, "the replay again").await.unwrap();
    assert_eq!((again.epoch, again.resume_from), (Epoch::new(2), at(7)));
    assert!(store.partitions().await.unwrap().iter().all(|state| !state.is_live));
    // A live projector takes over where it stands, also of a replay that runs.
    let live = store.claim(&log(), P0, "somebody live").await.unwrap();
    assert_eq!((live.epoch, live.resume_from), (Epoch::new(3), at(7)));
    let fenced = store.commit(&again, at(7), at(8), &Changes::default()).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
    // From then on no replay claims anything of this store, of whichever partition or log, and nobody is fenced.
    let states = store.partitions().await.unwrap();
    for (log, partition) in [(log(), P0), (log(), P1), (LogId::new("another"), P0)] {
        let refused = store.claim_for_replay(&log, partition, "a replay").await;
        let Err(ClaimError::Live { partition: P0, owner }) = refused else { panic!("{refused:?}") };
        assert_eq!(owner, "somebody live");
    }
    assert_eq!(store.partitions().await.unwrap(), states);
    store.commit(&live, at(7), at(8), &Changes::default()).await.unwrap();
}

pub(super) async fn a_batch_for_a_locked_file_is_not_written_within_a_bounded_time(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let claim = claim(&store, P0).await;
    let mut raw = fixture.raw().await;
    let before = fixture.dump().await;
    raw.execute("BEGIN IMMEDIATE").await;
    let start = Instant::now();
    let refused = store.commit(&claim, at(0), at(1), &full_changes()).await;
    assert!(matches!(refused, Err(CommitError::NotWritten { partition: P0, .. })), "{refused:?}");
    assert!(start.elapsed() < SOON, "it waits a bounded time");
    assert_eq!(store.resume(&claim).await.unwrap(), at(0));
    raw.execute("COMMIT").await;
    assert_eq!(fixture.dump().await, before);
    store.commit(&claim, at(0), at(1), &full_changes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
pub(super) async fn a_database_that_goes_away_leaves_the_outcome_unknown_until_resume_tells() {
    let mut server = PostgresServer::start().await;
    server.create_database("dashi").await;
    let url = server.url("dashi");
    let store = open_postgres(&url);
    store.migrate().await.unwrap();
    let claim = claim(&store, P0).await;
    store.commit(&claim, at(0), at(1), &page_views([1])).await.unwrap();
    // Each lock stops the commit at another of its steps.
    for (n, table) in
        ["dashi.checkpoint", "website_event", "session_data", "dashi.dead_letter"].into_iter().enumerate()
    {
        let stands = n as u64 + 1;
        let mut other = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")))
            .execute(&mut other)
            .await
            .unwrap();
        let mut changes = page_views([100 + n as u128]);
        changes.session_data = vec![property(n as u128, 7, table, "1")];
        let letter = DeadLetter {
            offset: Offset::new(stands),
            appended_at_ms: 0,
            reason: "r".to_owned(),
            value: Vec::new(),
            parking: Default::default(),
        };
        changes.dead_letters = vec![letter];
        let commit = tokio::spawn({
            let (store, claim, changes) = (store.clone(), claim.clone(), changes.clone());
            async move { store.commit(&claim, at(stands), at(stands + 1), &changes).await }
        });
        eventually(SOON, "the commit waits for the lock", async || {
            let mut onlooker = PgConnection::connect(&url).await?;
            sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock')",
            )
            .fetch_one(&mut onlooker)
            .await
        })
        .await;
        server.stop_immediate().await;
        let cut = tokio::time::timeout(SOON, commit).await.unwrap().unwrap();
        assert!(matches!(cut, Err(CommitError::NotWritten { .. })), "at {table}: {cut:?}");
        let away = store.resume(&claim).await;
        assert!(matches!(away, Err(ClaimError::Store(StoreError::Away { .. }))), "{away:?}");
        assert!(store.ping().await.is_err());
        server.start_again().await;
        let mut resumed = None;
        eventually(SOON, "the store answers again", async || {
            resumed = Some(store.resume(&claim).await?);
            Ok::<_, ClaimError>(())
        })
        .await;
        assert_eq!(resumed, Some(at(stands)));
        eventually(SOON, "the batch is in", async || {
            match store.commit(&claim, at(stands), at(stands + 1), &changes).await {
                Err(CommitError::NotWritten { source, .. }) => Err(source.to_string()),
                other => {
                    other.unwrap();
                    Ok(())
                }
            }
        })
        .await;
    }
    let mut raw = Raw::Postgres(PgConnection::connect(&url).await.unwrap());
    assert_eq!(raw.count("website_event").await, 5);
    assert_eq!(raw.count("session_data").await, 4);
    assert_eq!(raw.count("dashi.dead_letter").await, 4);
}

/// SQLite writes batches that wait for their turn in one transaction. What becomes of one is no other's business.
pub(super) async fn batches_that_are_committed_at_once_fail_each_for_itself(fixture: StoreFixture) {
    const PARTITIONS: u32 = 10;
    let store = fixture.migrated().await;
    let stale = claim(&store, Partition::new(0)).await;
    let mut claims = Vec::new();
    for partition in 0..PARTITIONS {
        claims.push(claim(&store, Partition::new(partition)).await);
    }
    let other = claim(&store, Partition::new(PARTITIONS)).await;
    store.commit(&other, at(0), at(1), &page_views([5_000_000])).await.unwrap();
    let mut stands = vec![0; PARTITIONS as usize];
    let (mut duplicates, mut interrupted) = (0, 0);
    let events = |partition: u32, number: u64| {
        page_views((0..30).map(|n| u128::from(partition) * 100_000 + u128::from(number) * 100 + n))
    };
    for round in 0..20_u64 {
        let begin = tokio::sync::Barrier::new(PARTITIONS as usize + 4);
        let (store, begin, claims, stale) = (&store, &begin, &claims, &stale);
        // Its outcome, whatever it is: the four that fail do so in every round.
        let commit = |claim: &'_ Claim, from: u64, changes: Changes| {
            let claim = claim.clone();
            async move {
                begin.wait().await;
                store.commit(&claim, at(from), at(from + 1), &changes).await
            }
        };
        let batches = (0..PARTITIONS).map(|n| {
            let mut changes = events(n, stands[n as usize]);
            if n == 3 {
                // One that another partition has applied.
                changes.events.push(event(5_000_000, 500_000));
            }
            commit(&claims[n as usize], stands[n as usize], changes)
        });
        let good = futures::future::join_all(batches);
        let fenced = commit(stale, stands[0], events(0, stands[0]));
        let misplaced = commit(&claims[1], stands[1] + 7, events(1, stands[1] + 7));
        // One that is dropped at some point: its partition's other batch may then come first or last.
        let dropped = async {
            let commit = commit(&claims[2], stands[2], events(2, stands[2]));
            let patience = async {
                begin.wait().await;
                for _ in 0..round * 40 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { _ = commit => {}, () = patience => {} }
        };
        let (good, fenced, misplaced, ()) = tokio::join!(good, fenced, misplaced, dropped);
        assert!(matches!(fenced, Err(CommitError::Fenced { .. })), "{fenced:?}");
        assert!(matches!(misplaced, Err(CommitError::Misplaced { .. })), "{misplaced:?}");
        for (n, outcome) in good.into_iter().enumerate() {
            // A batch whose task is dropped takes those back that share its transaction: they are told, and come again.
            match outcome {
                Ok(_) => assert_ne!(n, 3, "its event is another partition's"),
                Err(CommitError::Duplicates(named)) if n == 3 => {
                    assert_eq!(named, [id(5_000_000)]);
                    duplicates += 1;
                }
                Err(CommitError::Misplaced { .. }) if n == 2 => {}
                Err(CommitError::NotWritten { .. } | CommitError::Unknown { .. }) => interrupted += 1,
                Err(error) => panic!("partition {n}: {error:?}"),
            }
            if store.resume(&claims[n]).await.unwrap() == at(stands[n]) {
                let changes = events(n as u32, stands[n]);
                store.commit(&claims[n], at(stands[n]), at(stands[n] + 1), &changes).await.unwrap();
            }
            stands[n] += 1;
            assert_eq!(store.resume(&claims[n]).await.unwrap(), at(stands[n]), "partition {n}");
        }
        let rows = fixture.raw().await.count("website_event").await as u64;
        assert_eq!(rows, 1 + (round + 1) * u64::from(PARTITIONS) * 30);
    }
    assert!(duplicates > 0 && interrupted < 100, "{duplicates} duplicates, {interrupted} interrupted");
}
