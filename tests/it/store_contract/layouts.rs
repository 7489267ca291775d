//! Layouts of logs, and the growth that processes agree on.

use dashi_domain::fold::Changes;
use dashi_domain::layout::{Barrier, Growth, Layout, Passed};
use dashi_domain::position::Partition;
use dashi_store::Appender;
use uuid::Uuid;

use super::fixture::{P0, P1, StoreFixture, at, claim, log};

fn appender(run: u128, place: &str, keeps_lease: bool) -> Appender {
    let (log, place) = (log(), place.to_owned());
    Appender { run_id: Uuid::from_u128(run), log, name: format!("run {run}"), place, keeps_lease }
}

pub(super) async fn a_growth_is_committed_once_all_processes_have_acknowledged_it(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let states = async || {
        let stored = store.layouts(&log()).await.unwrap();
        stored.into_iter().map(|stored| (stored.layout, stored.state)).collect::<Vec<_>>()
    };
    let (zero, one) = (Layout { version: 0, partitions: 8 }, Layout { version: 1, partitions: 12 });
    assert_eq!(states().await, []);
    store.note_first_layout(&log(), 8).await.unwrap();
    store.note_first_layout(&log(), 9).await.unwrap();
    assert_eq!(states().await, [(zero, Growth::Open)]);
    let (first, second) = (appender(1, "a", false), appender(2, "b", false));
    store.note_appender(&first, 0).await.unwrap();
    store.note_appender(&second, 0).await.unwrap();

    assert!(store.begin_growth(&log(), one, 600).await.unwrap());
    let two = Layout { version: 2, partitions: 16 };
    assert!(!store.begin_growth(&log(), two, 600).await.unwrap(), "one at a time");
    assert!(!store.commit_growth(&log(), 1).await.unwrap());
    store.note_appender(&first, 1).await.unwrap();
    assert!(!store.commit_growth(&log(), 1).await.unwrap());
    let awaited = |version: u32| {
        let store = store.clone();
        async move {
            let states = store.appenders(&log()).await.unwrap();
            states
                .into_iter()
                .filter(|state| state.is_awaited(version))
                .map(|state| state.name)
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(awaited(1).await, ["run 2"]);
    // A later run at the same place replaces it.
    store.note_appender(&appender(3, "b", false), 1).await.unwrap();
    assert_eq!(awaited(1).await, [""; 0]);
    assert!(store.commit_growth(&log(), 1).await.unwrap());
    assert!(!store.move_growth(&log(), 1, Growth::Draining, Growth::Aborted).await.unwrap(), "it is decided");
    assert!(store.move_growth(&log(), 1, Growth::Committed, Growth::Open).await.unwrap());
    assert!(!store.move_growth(&log(), 1, Growth::Committed, Growth::Open).await.unwrap(), "it was done");
    assert_eq!(states().await, [(zero, Growth::Open), (one, Growth::Open)]);

    // A growth that was given up leaves its version behind, so that its acknowledgements do not count for the next one.
    assert!(store.begin_growth(&log(), two, 0).await.unwrap());
    assert!(store.layouts(&log()).await.unwrap()[2].is_expired);
    store.note_appender(&first, 2).await.unwrap();
    assert!(store.move_growth(&log(), 2, Growth::Draining, Growth::Aborted).await.unwrap());
    assert!(!store.commit_growth(&log(), 2).await.unwrap());
    assert!(!store.begin_growth(&log(), two, 600).await.unwrap());
    let three = Layout { version: 3, partitions: 16 };
    assert!(store.begin_growth(&log(), three, 600).await.unwrap());
    assert_eq!(awaited(3).await, ["run 1", "run 3"]);
    for run in [1, 3] {
        assert!(store.forget_appender(Uuid::from_u128(run)).await.unwrap());
        assert!(!store.forget_appender(Uuid::from_u128(run)).await.unwrap());
    }
    assert!(store.commit_growth(&log(), 3).await.unwrap(), "nobody appends");
}

pub(super) async fn a_partition_notes_the_last_barrier_that_it_has_passed(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let passed = |version| Passed { version, from: 2, to: 3 };
    let changes = |version, partition: Partition| Changes {
        barrier: Some(Barrier { log: log(), partition, at_ms: 5, layouts: passed(version) }),
        ..Changes::default()
    };
    let mut held = claim(&store, P0).await;
    assert_eq!(held.layout, None);
    store.commit(&held, at(0), at(1), &changes(2, P0)).await.unwrap();
    store.commit(&held, at(1), at(2), &changes(1, P0)).await.unwrap();
    store.commit(&held, at(2), at(3), &changes(7, P1)).await.unwrap();
    store.commit(&held, at(3), at(4), &Changes::default()).await.unwrap();
    held = claim(&store, P0).await;
    assert_eq!(
        held.layout,
        Some(passed(2)),
        "an older one, one of another partition and none change nothing"
    );
    claim(&store, P1).await;
    let layouts: Vec<_> = store.partitions().await.unwrap().into_iter().map(|state| state.layout).collect();
    assert_eq!(layouts, [Some(passed(2)), None]);
}
