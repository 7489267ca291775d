//! Membership: who gets which partitions, and where the group keeps checkpoints.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, Offset};
use dashi_event_log::{LogError, Membership, Ownership};
use integration_tests::{eventually, kafka};
use rdkafka::ClientConfig;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::location::LogLocation;
use super::{P0, SOON, append, new_records};

pub(super) async fn a_sole_member_gets_every_partition(location: LogLocation) {
    let log = location.open(6).await;
    let mut members = [(log.membership("projectors").await.unwrap(), BTreeSet::new())];
    until_owned(&mut members, |owned| owned[0] == (0..6).collect()).await;
    let [(mut member, _)] = members;
    let more = tokio::time::timeout(Duration::from_millis(300), member.next()).await;
    assert!(more.is_err(), "nothing changes when nobody comes or goes: {:?}", more.unwrap());
    member.leave().await;
}

pub(super) async fn a_second_member_is_refused_until_the_first_is_gone(location: LogLocation) {
    let (log, other) = (location.open(2).await, location.open(2).await);
    let first = log.membership("a").await.unwrap();
    for log in [&log, &other] {
        match log.membership("b").await {
            Err(LogError::Taken { lock }) => assert!(lock.exists(), "{}", lock.display()),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a second membership was given"),
        }
    }
    drop(first);
    let second = other.membership("b").await.unwrap();
    assert!(log.membership("a").await.is_err());
    second.leave().await;
    log.membership("a").await.unwrap();
}

pub(super) async fn two_members_share_and_the_rest_falls_to_the_one_that_stays(location: LogLocation) {
    let (log, other) = (location.open(6).await, location.open(6).await);
    let group = kafka::unique_topic("group");
    let mut members = vec![(log.membership(&group).await.unwrap(), BTreeSet::new())];
    until_owned(&mut members, |owned| owned[0].len() == 6).await;
    members.push((other.membership(&group).await.unwrap(), BTreeSet::new()));
    until_owned(&mut members, |owned| {
        owned[0].len() == 3 && owned[1].len() == 3 && owned[0].is_disjoint(&owned[1])
    })
    .await;
    let (first, _) = members.remove(0);
    let start = Instant::now();
    first.leave().await;
    until_owned(&mut members, |owned| owned[0] == (0..6).collect()).await;
    assert!(start.elapsed() < Duration::from_secs(5), "it left, so nobody waits for its time-out");
}

pub(super) async fn saved_positions_are_committed_offsets(location: LogLocation) {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let LogLocation::Kafka { brokers, topic } = &location else { panic!("only Kafka has groups") };
    let log = location.open(2).await;
    append(&log, new_records("", 100)).await;
    let group = kafka::unique_topic("group");
    let mut members = [(log.membership(&group).await.unwrap(), BTreeSet::new())];
    until_owned(&mut members, |owned| owned[0].len() == 2).await;
    members[0].0.save(&[(P0, Checkpoint::at(Offset::new(17)))]).await;
    let onlooker: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", &group).create().unwrap();
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, 0);
    eventually(SOON, "the offset is committed", async || {
        let found = onlooker.committed_offsets(wanted.clone(), Duration::from_secs(5)).unwrap();
        let offset = found.elements()[0].offset();
        if offset == rdkafka::Offset::Offset(17) { Ok(()) } else { Err(format!("{offset:?}")) }
    })
    .await;
}

/// Waits for changes until `members` own what they are expected to own.
async fn until_owned(
    members: &mut [(Membership, BTreeSet<u32>)],
    expected: impl Fn(&[BTreeSet<u32>]) -> bool,
) {
    let start = Instant::now();
    loop {
        let owned: Vec<_> = members.iter().map(|(_, owned)| owned.clone()).collect();
        if expected(&owned) {
            return;
        }
        assert!(start.elapsed() < SOON, "ownership stays {owned:?}");
        for (member, owned) in &mut *members {
            // Each is polled in turn, as its own process would; dropping the wait loses no change.
            let change = tokio::time::timeout(Duration::from_millis(50), member.next()).await;
            match change {
                Err(_) => {}
                Ok(Ok(Ownership::Assigned(more))) => {
                    for partition in more {
                        assert!(owned.insert(partition.number()), "{partition} was assigned twice");
                    }
                }
                Ok(Ok(Ownership::Revoked(less))) => {
                    for partition in less {
                        assert!(owned.remove(&partition.number()), "{partition} was not owned");
                    }
                }
                Ok(Err(error)) => panic!("{error}"),
            }
        }
    }
}
