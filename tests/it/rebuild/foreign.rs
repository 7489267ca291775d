//! Rows that others wrote into the tables: named by compare, and kept or lost by a swap only as it is told.

use integration_tests::{Database, Ledger};
use uuid::Uuid;

use super::{Place, build, fill, named, on_both, replay, replay_json, states};

on_both!(foreign_rows_are_named_and_kept_or_lost_as_is_told);

async fn foreign_rows_are_named_and_kept_or_lost_as_is_told(place: &Place) {
    let deployment = &place.deployment;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(deployment);
    fill(deployment, &mut ledger, &server, 300).await;
    build(deployment).await;
    let (session, event) = (Uuid::now_v7(), Uuid::now_v7());
    let mut database = Database::open(deployment.store()).await;
    let now = match &database {
        Database::Sqlite(_) => "1700000000000",
        Database::Postgres(_) => "to_timestamp(1700000000)",
    };
    let website = deployment.website();
    database
        .execute(&format!(
            "INSERT INTO session (session_id, website_id, created_at) VALUES ('{session}', '{website}', {now});
             INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type)
             VALUES ('{event}', '{website}', '{session}', '{session}', {now}, '/imported', 1)"
        ))
        .await;
    let events = "SELECT count(*) FROM website_event";
    let all = database.count(events).await;

    let compared = replay(deployment, &["compare"]).await;
    assert_eq!(compared.code, Some(3), "{}{}", compared.stdout, compared.stderr);
    for text in ["foreign", &event.to_string(), &session.to_string()] {
        assert!(compared.stdout.contains(text), "{text} is not in {}", compared.stdout);
    }
    let refused = replay(deployment, &["swap"]).await;
    assert_eq!(refused.code, Some(3), "{}{}", refused.stdout, refused.stderr);
    for text in [&*event.to_string(), "--keep-foreign", "--lose-foreign"] {
        assert!(refused.stdout.contains(text), "{text} is not in {}", refused.stdout);
    }
    assert_eq!(states(deployment).await, named(&[(1, "live"), (2, "ready")]));

    let kept = replay_json(deployment, &["swap", "--keep-foreign"], 0).await;
    let tables: Vec<_> = kept["foreign_kept"].as_array().unwrap().iter().map(|rows| &rows["table"]).collect();
    assert_eq!(tables, ["session", "website_event"], "{kept}");
    let own = format!("{events} WHERE event_id = '{event}'");
    assert_eq!((database.count(events).await, database.count(&own).await), (all, 1));
    fill(deployment, &mut ledger, &server, 50).await;

    // A new generation lacks them again, and this time they are given up; the former one still has them.
    let number = build(deployment).await;
    let lost = replay_json(deployment, &["swap", &number.to_string(), "--lose-foreign"], 0).await;
    assert!(lost["foreign_lost"].to_string().contains(&event.to_string()), "{lost}");
    assert_eq!(database.count(&own).await, 0);
    replay_json(deployment, &["rollback"], 0).await;
    assert_eq!(database.count(&own).await, 1);
    // No generation is ready now; one is kept, and named.
    let refused = replay(deployment, &["swap"]).await;
    assert_eq!(refused.code, Some(3), "{}{}", refused.stdout, refused.stderr);
    let remedy = format!("`dashi replay swap {number}`");
    assert!(refused.stderr.contains(&remedy), "{remedy} is not in {}", refused.stderr);
    database.execute(&format!("DELETE FROM website_event WHERE event_id = '{event}'")).await;
    database.execute(&format!("DELETE FROM session WHERE session_id = '{session}'")).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    ledger.check().await;
}
