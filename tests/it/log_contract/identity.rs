//! The identity of a log: after it was opened again, made again, or made by two processes at once.

use std::collections::{BTreeMap, BTreeSet};

use dashi_domain::position::Partition;
use dashi_event_log::{EmbeddedLog, EventLog};
use integration_tests::eventually;
use rdkafka::admin::AdminOptions;

use super::location::{LogLocation, admin};
use super::{SOON, append, new_records, read_log};

pub(super) async fn a_reopened_log_is_the_same_log(location: LogLocation) {
    let log = location.open(5).await;
    let acknowledged: BTreeMap<_, _> = {
        let sent = new_records("", 300);
        append(&log, sent.clone())
            .await
            .into_iter()
            .zip(sent.into_iter().map(|record| record.value))
            .collect()
    };
    log.close().await;
    let again = location.open(5).await;
    assert_eq!(again.id(), log.id());
    assert_eq!(again.partitions().await.unwrap(), (0..5).map(Partition::new).collect::<Vec<_>>());
    assert_eq!(read_log(&again).await, acknowledged);
    let (partition, offset) = append(&again, new_records("more", 1)).await[0];
    assert!(!acknowledged.contains_key(&(partition, offset)), "the count of offsets goes on");
}

pub(super) async fn the_partitions_of_an_existing_log_win_over_the_setting(location: LogLocation) {
    let log = location.open(3).await;
    let other = location.open(9).await;
    assert_eq!(other.id(), log.id());
    for log in [log, other] {
        assert_eq!(log.partitions().await.unwrap(), (0..3).map(Partition::new).collect::<Vec<_>>());
        for (partition, _) in append(&log, new_records("", 50)).await {
            assert!(partition < Partition::new(3));
        }
    }
}

pub(super) async fn a_probe_of_a_log_that_is_there_succeeds(location: LogLocation) {
    let log = location.open(2).await;
    log.probe().await.unwrap();
    append(&log, new_records("", 1)).await;
    log.probe().await.unwrap();
}

pub(super) async fn two_processes_may_make_the_log_at_once(location: LogLocation) {
    let opening: Vec<_> =
        (1..=6).map(|n| EmbeddedLog::open(location.embedded_settings(n))).map(tokio::spawn).collect();
    let mut seen = BTreeSet::new();
    for log in opening {
        let log = EventLog::Embedded(log.await.unwrap().unwrap());
        seen.insert((log.id().clone(), log.partitions().await.unwrap()));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

pub(super) async fn a_topic_made_again_is_another_log(location: LogLocation) {
    let LogLocation::Kafka { brokers, topic } = &location else { panic!("only Kafka has topics") };
    let log = location.open(2).await;
    append(&log, new_records("", 3)).await;
    let admin = admin(brokers);
    admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    eventually(SOON, "the topic is gone", async || log.probe().await.is_err()).await;
    assert!(log.partitions().await.is_err(), "a topic that is gone is no topic without partitions");
    let again = location.open(2).await;
    assert_ne!(again.id(), log.id());
    // Cluster and topic are the same; they differ by the id that the cluster gave the topic.
    let common = format!("/{topic}/");
    let [(cluster, _), (before, _)] =
        [&again, &log].map(|log| log.id().as_str().split_once(&common).unwrap());
    assert_eq!(cluster, before);
    append(&again, new_records("new", 1)).await;
    assert_eq!(read_log(&again).await.len(), 1);
}
