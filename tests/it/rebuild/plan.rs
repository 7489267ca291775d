//! The plan of a rebuild: what it would read; nothing is written.

use std::collections::BTreeMap;

use integration_tests::{Database, Ledger};
use serde_json::json;

use super::{Place, fill, on_both, replay, replay_json};

on_both!(a_plan_says_what_would_be_read_and_writes_nothing);

async fn a_plan_says_what_would_be_read_and_writes_nothing(place: &Place) {
    let deployment = &place.deployment;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(deployment);
    fill(deployment, &mut ledger, &server, 500).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    let before = content(place).await;

    let plan = replay_json(deployment, &["plan", "--website", deployment.website()], 0).await;
    assert_eq!((&plan["records_max"], &plan["partitions"]), (&json!(500), &json!(8)), "{plan}");
    assert_eq!(plan["website_records"], 500, "{plan}");
    assert!(plan["bytes"].as_u64().unwrap() > 500 * 100, "{plan}");
    assert!(plan["least_s"].as_f64().unwrap() > 0.0, "{plan}");
    let (first, last) = (&plan["first_appended_at_ms"], &plan["last_appended_at_ms"]);
    assert!(first.as_i64().unwrap() <= last.as_i64().unwrap(), "{plan}");
    let nobody = replay_json(deployment, &["plan", "--website", &uuid::Uuid::now_v7().to_string()], 0).await;
    assert_eq!(nobody["website_records"], 0, "{nobody}");
    let slow = replay_json(deployment, &["plan", "--rate", "10"], 0).await;
    assert_eq!(slow["least_s"], 50.0, "{slow}");

    // Parts of the log.
    let later = replay_json(deployment, &["plan", "--from", "2100-01-01"], 0).await;
    assert_eq!((&later["records_max"], &later["first_appended_at_ms"]), (&json!(0), &json!(null)), "{later}");
    let earlier = replay_json(deployment, &["plan", "--until", "2020-01-01T00:00:00Z"], 0).await;
    assert_eq!(earlier["records_max"], 0, "{earlier}");
    let from = replay_json(deployment, &["plan", "--from", "1"], 0).await;
    assert_eq!(from["records_max"], 500 - 8, "{from}");
    let wrong = replay(deployment, &["plan", "--from", "soon"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);

    let text = replay(deployment, &["plan"]).await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    for part in ["records    500 at most, in 8 partitions", "appended   ", "duration   at least "] {
        assert!(text.stdout.contains(part), "{part} is not in {}", text.stdout);
    }
    assert_eq!(content(place).await, before, "nothing was written");
}

/// The number of rows of each table of the store, by name.
async fn content(place: &Place) -> BTreeMap<String, i64> {
    let mut database = Database::open(place.deployment.store()).await;
    let tables = match &database {
        Database::Sqlite(_) => "SELECT name, 0 FROM sqlite_schema WHERE type = 'table'",
        Database::Postgres(_) => {
            "SELECT format('%I.%I', schemaname, tablename), 0::bigint FROM pg_tables
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        }
    };
    let mut content = BTreeMap::new();
    for (table, _) in database.pairs(tables).await {
        let rows = database.count(&format!("SELECT count(*) FROM {table}")).await;
        content.insert(table, rows);
    }
    assert!(content.len() > 10, "{content:?}");
    content
}
