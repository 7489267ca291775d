//! The memory of a projector that works off a backlog has a bound, however many partitions it has.

use dashi_event_log::NewRecord;
use integration_tests::log::open_log;
use integration_tests::{Deployment, TestDatabase, kafka};
use serde_json::json;
use uuid::Uuid;

/// The backlog: of each of 8 partitions about 12 MiB, more than a reader may fetch ahead and a batch may have.
const RECORDS: usize = 6_000;
const RECORD_BYTES: usize = 16 << 10;

/// Peak of resident memory, in MiB. Without shared bounds eight batches and eight readers have 300 and more.
const PEAK_MAX: u64 = 190;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_works_off_a_backlog_keeps_to_its_memory() {
    let database = TestDatabase::create().await;
    let url = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("memory"));
    let deployment = Deployment::new(url.clone(), database.url())
        .with("DASHI_EVENT_LOG_PARTITIONS", "8")
        .with("DASHI_PROJECTOR_BATCHES_BYTES_MAX", "8388608");
    deployment.register().await;
    let log = open_log(&url).await;
    let text = "x".repeat(RECORD_BYTES);
    for first in (0..RECORDS).step_by(50) {
        let records = (first..first + 50).map(|number| record(deployment.website(), number, &text)).collect();
        for appended in log.append(records).await {
            appended.expect("the log takes it");
        }
    }
    log.close().await;

    let server = deployment.start("project").ready().await;
    let status = deployment.settled().await;
    let peak = server.dashi.memory_peak_kib().expect("it runs") >> 10;
    assert_eq!(status.totals.applied, RECORDS as u64);
    println!("peak of resident memory: {peak} MiB");
    assert!(peak <= PEAK_MAX, "{peak} MiB at most, where {PEAK_MAX} are allowed");
}

fn record(website: &str, number: usize, text: &str) -> NewRecord {
    // Spread over all partitions.
    let session_id =
        Uuid::from_u128((number as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
    let value = json!({
        "v": 1, "id": Uuid::now_v7(), "at": 1_777_623_630_000_u64 + number as u64, "session": session_id,
        "visit": session_id, "type": "event",
        "payload": {"website": website, "url": "/", "name": "large", "data": {"text": text}},
    });
    NewRecord { session_id, value: value.to_string().into_bytes() }
}
