//! Rebuilds of one log are equal, whatever the batches, the partitions at once and the store.

use std::collections::BTreeMap;

use integration_tests::{Deployment, Ledger};
use serde_json::Value;

use super::{fill, on_file_and_database, on_files, replay_json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuilds_are_equal_whatever_the_batches_the_jobs_and_the_store() {
    let (files, database) = (on_files().await, on_file_and_database().await);
    let mut server = files.deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&files.deployment);
    fill(&files.deployment, &mut ledger, &server, 1_000).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    // The database projects the same log.
    let on_database = Deployment::new(files.deployment.log(), database.deployment.store());
    let mut projector = on_database.start("project").ready().await;
    on_database.settled().await;
    assert_eq!(projector.dashi.terminate().await, Some(0));

    let mut all = Vec::new();
    for deployment in [&files.deployment, &on_database] {
        for (batch, jobs) in [("13", "1"), ("1000", "8")] {
            let deployment = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", batch);
            let built = replay_json(&deployment, &["run", "--jobs", jobs], 0).await;
            assert_eq!((&built["applied"], &built["dead"]), (&1_000.into(), &0.into()), "{built}");
            let number = built["generation"].to_string();
            let plan = replay_json(&deployment, &["plan"], 0).await;
            assert!(plan["last_replayed_per_s"].as_u64() > Some(0), "the rate is known now: {plan}");
            let compared = replay_json(&deployment, &["compare", &number], 0).await;
            all.push(checksums(&compared));
            replay_json(&deployment, &["drop", &number], 0).await;
        }
    }
    let first = &all[0];
    assert!(first.len() > 10, "{first:?}");
    assert!(all.iter().all(|checksums| checksums == first), "{all:#?}");
}

/// The checksum of the generation's rows, by table.
fn checksums(compared: &Value) -> BTreeMap<String, String> {
    let tables = compared["tables"].as_array().expect("a list of tables").iter();
    tables
        .map(|table| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            (text(&table["table"]), text(&table["checksums"][1]))
        })
        .collect()
}
