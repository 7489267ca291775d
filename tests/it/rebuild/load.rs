//! A rebuild, its comparison and its swaps while events arrive.

use std::time::Duration;

use integration_tests::{Database, Ledger, eventually};
use tokio_util::sync::CancellationToken;

use super::{Place, SOON, build, named, on_both, replay_json, states};

on_both! {
    a_rebuild_under_load_is_equal_and_swaps_back_and_forth,
}

async fn a_rebuild_under_load_is_equal_and_swaps_back_and_forth(place: &Place) {
    let deployment = &place.deployment;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(deployment);
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 4;
        plan.sessions = 300;
        plan.mode = dashi_load::Mode::Open { requests_per_s: 150.0 };
        plan.duration = 5 * SOON;
    });
    eventually(SOON, "some events are applied", async || {
        deployment.status().await.map(|status| status.totals.applied > 500)
    })
    .await;

    // A reader that is there all the time, and must never see fewer events than before.
    let stop = CancellationToken::new();
    let reading = tokio::spawn(read(deployment.store().to_owned(), stop.clone()));

    let generation = build(deployment).await;
    assert_eq!(generation, 2);
    let compared = replay_json(deployment, &["compare"], 0).await;
    assert_eq!(compared["equal"], true, "{compared}");
    let swapped = replay_json(deployment, &["swap"], 0).await;
    assert_eq!((&swapped["generation"], &swapped["former"]), (&2.into(), &1.into()), "{swapped}");
    assert_eq!(states(deployment).await, named(&[(1, "kept"), (2, "live")]));
    applies_more(place).await;
    let compared = replay_json(deployment, &["compare", "1"], 0).await;
    assert_eq!(compared["equal"], true, "{compared}");

    let swapped = replay_json(deployment, &["rollback"], 0).await;
    assert_eq!((&swapped["generation"], &swapped["former"]), (&1.into(), &2.into()), "{swapped}");
    applies_more(place).await;
    replay_json(deployment, &["swap", "2"], 0).await;
    applies_more(place).await;

    stop.cancel();
    let reads = reading.await.unwrap();
    assert!(reads > 20, "{reads} reads");
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    ledger.check().await;
    let compared = replay_json(deployment, &["compare", "1"], 0).await;
    assert_eq!(compared["equal"], true, "{compared}");
    assert_eq!(states(deployment).await, named(&[(1, "kept"), (2, "live")]));
    replay_json(deployment, &["drop", "1"], 0).await;
    assert_eq!(states(deployment).await, named(&[(2, "live")]));
    assert_eq!(server.dashi.terminate().await, Some(0));
    ledger.check().await;
}

/// Waits until the running projector has applied more events than now.
async fn applies_more(place: &Place) {
    let before = place.deployment.status().await.unwrap().totals.applied;
    eventually(SOON, "the projector goes on", async || {
        place.deployment.status().await.map(|status| status.totals.applied > before + 50)
    })
    .await;
}

/// Reads in one session until it is stopped; returns how often.
async fn read(store: String, stop: CancellationToken) -> u64 {
    let mut database = Database::open(&store).await;
    let (mut events, mut sessions, mut reads) = (0, 0, 0);
    while !stop.is_cancelled() {
        let now = database.count("SELECT count(*) FROM website_event").await;
        assert!(now >= events, "{now} events after {events}");
        let orphans =
            "SELECT count(*) FROM website_event WHERE session_id NOT IN (SELECT session_id FROM session)";
        assert_eq!(database.count(orphans).await, 0, "a read saw half of the tables");
        let with_session = database.count("SELECT count(*) FROM session").await;
        assert!(with_session >= sessions, "{with_session} sessions after {sessions}");
        (events, sessions, reads) = (now, with_session, reads + 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    reads
}
