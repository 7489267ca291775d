//! Growing: what was appended before lies before the barriers, what comes behind goes by the new number.

use std::time::{Duration, Instant};

use dashi_domain::layout::{Barrier, Growth, Layout, Passed};
use dashi_domain::partitioner::{key, partition_for};
use dashi_domain::position::Partition;
use dashi_event_log::{EventLog, LogError, Ownership};
use integration_tests::eventually;

use super::location::LogLocation;
use super::{SOON, append, new_records, read_partition};

/// Each partition has old records, one barrier or more, new records.
async fn assert_barriers(log: &EventLog, from: u32, to: u32) {
    for partition in (0..to).map(Partition::new) {
        let records = read_partition(log, partition).await;
        let is_barrier = |place: usize| Barrier::is(&records[place].value);
        let first = (0..records.len()).find(|place| is_barrier(*place)).expect("a barrier");
        let is_old = |place: usize| records[place].value.starts_with(b"old");
        assert!((0..first).all(is_old) && !(first..records.len()).any(is_old), "partition {partition}");
        assert!(first == 0 || partition.number() < from);
    }
}

pub(super) async fn a_log_grows_under_processes_that_append_and_project(location: LogLocation) {
    let (log, other) = (location.open(2).await, location.open(2).await);
    let mut member = log.membership("projectors").await.unwrap();
    assert_eq!(member.next().await.unwrap(), Ownership::Assigned([0, 1].map(Partition::new).to_vec()));
    append(&log, new_records("old", 20)).await;
    let EventLog::Embedded(file) = &other else { panic!("it is a file") };
    assert_eq!(file.layouts().await.unwrap(), [Layout { version: 0, partitions: 2 }]);
    let grown = file.grow(5).await.unwrap();
    assert_eq!(grown, Layout { version: 1, partitions: 5 });
    assert_eq!(file.grow(4).await.unwrap(), grown, "it never shrinks");
    // The first process may not have noticed it yet.
    let records = new_records("new", 50);
    let expected: Vec<Partition> =
        records.iter().map(|record| partition_for(key(record.session_id).as_bytes(), 5)).collect();
    let places: Vec<Partition> = append(&log, records).await.into_iter().map(|(place, _)| place).collect();
    assert_eq!(places, expected);
    let added = tokio::time::timeout(SOON, member.next()).await.expect("it is noticed").unwrap();
    assert_eq!(added, Ownership::Assigned([2, 3, 4].map(Partition::new).to_vec()));
    assert_barriers(&log, 2, 5).await;
    let layouts = [Layout { version: 0, partitions: 2 }, grown];
    assert_eq!(file.layouts().await.unwrap(), layouts);
    assert_eq!(log.partitions().await.unwrap().len(), 5);
    member.leave().await;
    log.close().await;
    let reopened = location.open(2).await;
    assert_eq!(reopened.partitions_in_force(), Some(5));
    let directly = reopened.append_to(Partition::new(4), new_records("new", 3)).await;
    assert!(directly.into_iter().all(|appended| appended.unwrap().0 == Partition::new(4)));
}

pub(super) async fn records_of_sessions_that_move_wait_while_the_topic_grows(location: LogLocation) {
    let log = location.open(2).await;
    let EventLog::Kafka(kafka) = &log else { panic!("it is a topic") };
    let layouts = |state| {
        [(Layout { version: 0, partitions: 2 }, Growth::Open), (Layout { version: 1, partitions: 4 }, state)]
    };
    append(&log, new_records("old", 20)).await;
    kafka.see_layouts(&layouts(Growth::Draining), Instant::now()).await.unwrap();
    // The outcome of an append reaches its caller a moment before it is counted.
    eventually(SOON, "the old records have their outcomes", async || kafka.acknowledged_layout() == Some(1))
        .await;
    let records = new_records("new", 20);
    let moved = records.clone();
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { append(&log, moved).await }
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(300), async {
            while !waiting.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await
        .is_err(),
        "some of them move"
    );
    kafka.make_partitions(4).await.unwrap();
    let grown = Passed { version: 1, from: 2, to: 4 };
    // Two processes finish it.
    kafka.append_barriers(grown, 5).await.unwrap();
    kafka.append_barriers(grown, 5).await.unwrap();
    let deadline = Instant::now() + SOON;
    while let Err(error) = kafka.see_layouts(&layouts(Growth::Open), Instant::now()).await {
        assert!(matches!(error, LogError::Away { .. }) && Instant::now() < deadline, "{error}");
    }
    let places = tokio::time::timeout(SOON, waiting).await.expect("they go on").unwrap();
    for ((place, _), record) in places.iter().zip(&records) {
        assert_eq!(*place, partition_for(key(record.session_id).as_bytes(), 4));
    }
    assert_barriers(&log, 2, 4).await;
}
