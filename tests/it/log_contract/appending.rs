//! Appending: order, partitions, results, durability, and limits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dashi_domain::partitioner;
use dashi_domain::position::{Offset, Partition};
use dashi_event_log::{
    AppendError, EmbeddedLog, EmbeddedSettings, EventLog, KafkaLog, KafkaSettings, LogError, NewRecord,
};
use integration_tests::{KafkaServer, eventually, kafka};
use uuid::Uuid;

use super::location::{LogLocation, kafka_settings};
use super::{
    P0, SOON, append, limit, new_record, new_records, new_session, read_log, read_partition, values,
};

pub(super) async fn records_of_one_session_lie_in_one_partition_and_increase(location: LogLocation) {
    let log = location.open(8).await;
    let sessions: Vec<Uuid> = (0..20).map(|_| new_session()).collect();
    let mut last: BTreeMap<Uuid, (Partition, Offset)> = BTreeMap::new();
    for round in 0..10 {
        let round: Vec<NewRecord> = sessions
            .iter()
            .chain(&sessions)
            .enumerate()
            .map(|(n, session)| new_record(*session, format!("{round}/{n}")))
            .collect();
        for (sent, place) in round.clone().iter().zip(append(&log, round).await) {
            if let Some((partition, offset)) = last.insert(sent.session_id, place) {
                assert_eq!(partition, place.0);
                assert!(offset < place.1, "{offset} before {}", place.1);
            }
        }
    }
    assert!(last.values().map(|(partition, _)| partition).collect::<BTreeSet<_>>().len() > 1);
}

pub(super) async fn the_partition_is_the_one_that_every_kafka_client_computes(location: LogLocation) {
    let log = location.open(7).await;
    let sent = new_records("", 200);
    for (sent, (partition, _)) in sent.clone().iter().zip(append(&log, sent).await) {
        let key = sent.session_id.hyphenated().to_string();
        assert_eq!(partition, partitioner::partition_for(key.as_bytes(), 7));
    }
}

/// Appends from many tasks through each of `logs`; returns what was acknowledged, by place.
async fn append_from_many_tasks(logs: &[EventLog]) -> BTreeMap<(Partition, Offset), Vec<u8>> {
    let mut tasks = Vec::new();
    for (handle, log) in logs.iter().enumerate() {
        for task in 0..24 {
            let log = log.clone();
            tasks.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for round in 0..20 {
                    let sent = new_records(&format!("{handle}/{task}/{round}/"), 1 + (task + round) % 5);
                    let places = append(&log, sent.clone()).await;
                    assert_eq!(places.len(), sent.len());
                    acknowledged.extend(places.into_iter().zip(sent));
                }
                acknowledged
            }));
        }
    }
    let mut acknowledged = BTreeMap::new();
    for task in tasks {
        for (place, record) in task.await.unwrap() {
            assert_eq!(acknowledged.insert(place, record.value), None, "{place:?} was given twice");
        }
    }
    acknowledged
}

pub(super) async fn concurrent_appends_are_each_there_exactly_once(location: LogLocation) {
    let log = location.open(4).await;
    let acknowledged = append_from_many_tasks(std::slice::from_ref(&log)).await;
    assert_eq!(read_log(&log).await, acknowledged);
}

pub(super) async fn two_processes_append_without_losing_or_doubling(location: LogLocation) {
    let logs = [location.open(4).await, location.open(4).await];
    let acknowledged = append_from_many_tasks(&logs).await;
    for log in &logs {
        assert_eq!(read_log(log).await, acknowledged);
    }
    // One finds what the other appends, without an append of its own.
    let mut reader = logs[0].reader(P0, logs[0].extent(P0).await.unwrap().high).await.unwrap();
    let in_p0 = (0..)
        .map(|_| new_session())
        .find(|session| partitioner::partition_for(partitioner::key(*session).as_bytes(), 4) == P0);
    for _ in 0..2 {
        assert!(reader.next(limit(1, Duration::ZERO)).await.unwrap().is_empty());
    }
    append(&logs[1], vec![new_record(in_p0.unwrap(), "of the other")]).await;
    assert_eq!(values(&reader.next(limit(1, SOON)).await.unwrap()), ["of the other"]);
}

pub(super) async fn every_entry_has_a_result(location: LogLocation) {
    let log = location.open(4).await;
    for count in [0, 1, 2, 63, 64, 65, 1_500] {
        let results = log.append(new_records("", count)).await;
        assert_eq!(results.len(), count);
        let distinct: BTreeSet<_> = results.into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(distinct.len(), count);
    }
}

pub(super) async fn close_waits_for_outcomes_and_then_refuses(location: LogLocation) {
    let log = location.open(2).await;
    append(&log, new_records("first", 1)).await;
    let sent = new_records("", 500);
    let handed = sent.clone();
    let mut appends: Vec<_> = handed
        .chunks(5)
        .map(|some| {
            let (log, some) = (log.clone(), some.to_vec());
            Box::pin(async move { log.append(some).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for append in &mut appends {
        // One look hands it over.
        tokio::select! {
            biased;
            results = append => outcomes.push(results),
            () = std::future::ready(()) => outcomes.push(Vec::new()),
        }
    }
    tokio::time::timeout(SOON, log.close()).await.unwrap();
    for (outcome, append) in outcomes.iter_mut().zip(appends) {
        if outcome.is_empty() {
            *outcome = tokio::time::timeout(SOON, append).await.unwrap();
        }
    }
    let again = location.open(2).await;
    let found = read_log(&again).await;
    let mut acknowledged = 0;
    for (result, entry) in outcomes.into_iter().flatten().zip(sent) {
        assert_eq!(found[&result.unwrap()], entry.value);
        acknowledged += 1;
    }
    assert_eq!(acknowledged, 500);
    let late = log.append(new_records("late", 2)).await;
    assert!(late.iter().all(|result| matches!(result, Err(AppendError::Closed))), "{late:?}");
    assert_eq!(read_log(&again).await.len(), 501);
}

pub(super) async fn a_record_of_nine_mebibytes_goes_through(location: LogLocation) {
    let log = location.open(1).await;
    let large: Vec<u8> = (0..9_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    append(
        &log,
        vec![
            new_record(Uuid::nil(), "a"),
            new_record(Uuid::nil(), large.clone()),
            new_record(Uuid::nil(), "b"),
        ],
    )
    .await;
    let records = read_partition(&log, P0).await;
    assert_eq!(records[0].value, b"a");
    assert!(records[1].value == large, "the large record is another one");
    assert_eq!(records[2].value, b"b");
}

/// While another process holds the log's lock, nothing can become durable. So nothing may be answered, and what
/// comes in the meantime waits for the next commit together.
pub(super) async fn appends_that_wait_together_share_a_commit_and_none_is_answered_before_it(
    location: LogLocation,
) {
    const COUNT: usize = 200;
    let log = location.open(1).await;
    let segments = location.embedded_settings(1).path.with_extension("log.segments");
    let other = std::fs::File::open(segments.join("append-lock")).unwrap();
    other.lock().unwrap();
    let appends: Vec<_> = (0..COUNT)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { append(&log, vec![new_record(Uuid::nil(), n.to_string())]).await })
        })
        .collect();
    // Reads are answered all the while: they show that time has passed for the appends, too.
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    assert_eq!(reader.next(limit(1, Duration::from_millis(500))).await.unwrap(), []);
    assert!(appends.iter().all(|append| !append.is_finished()), "answered before it is durable");
    other.unlock().unwrap();
    for append in appends {
        append.await.unwrap();
    }
    // A commit stamps all its records alike. The first took what was there when it began, the second the rest.
    let stamps: BTreeSet<_> =
        read_partition(&log, P0).await.into_iter().map(|record| record.appended_at_ms).collect();
    assert!(stamps.len() <= 2, "{} commits for {COUNT} appends that waited together", stamps.len());
}

pub(super) async fn a_full_queue_refuses_and_loses_nothing_it_took(location: LogLocation) {
    let settings = EmbeddedSettings { queue_max: 2, batch_max: 1, ..location.embedded_settings(1) };
    let log = EventLog::Embedded(EmbeddedLog::open(settings).await.unwrap());
    let appends: Vec<_> = (0..200)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(
                async move { log.append(vec![new_record(Uuid::nil(), n.to_string())]).await.remove(0) },
            )
        })
        .collect();
    let (mut acknowledged, mut refused) = (BTreeMap::new(), 0);
    for (n, append) in appends.into_iter().enumerate() {
        match append.await.unwrap() {
            Ok(place) => assert_eq!(acknowledged.insert(place, n.to_string().into_bytes()), None),
            Err(AppendError::Full) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0, "the queue was never full: the test shows nothing");
    assert_eq!(read_log(&log).await, acknowledged);
}

pub(super) async fn a_record_too_large_for_the_topic_is_refused_as_such(location: LogLocation) {
    let log = location.open(1).await;
    let results = log
        .append(vec![
            new_record(Uuid::nil(), "a"),
            new_record(Uuid::nil(), vec![0; 13 << 20]),
            new_record(Uuid::nil(), "b"),
        ])
        .await;
    assert!(matches!(results[1], Err(AppendError::TooLarge { bytes }) if bytes == 13 << 20), "{results:?}");
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert_eq!(values(&read_partition(&log, P0).await), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_fails_appends_in_time_and_a_restarted_one_takes_them_without_reopening() {
    const DELIVERY: Duration = Duration::from_secs(3);
    let mut server = KafkaServer::start().await;
    let settings = KafkaSettings {
        delivery_timeout: DELIVERY,
        ..kafka_settings(&server.address(), &kafka::unique_topic("log"), 2)
    };
    let log = EventLog::Kafka(KafkaLog::open(settings).await.unwrap());
    let id = log.id().clone();
    let mut acknowledged: BTreeMap<(Partition, Offset), Vec<u8>> = BTreeMap::new();
    let sent = new_records("before", 50);
    acknowledged.extend(append(&log, sent.clone()).await.into_iter().zip(sent.into_iter().map(|e| e.value)));
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let read_before = reader.next(limit(5, SOON)).await.unwrap();
    log.probe().await.unwrap();

    server.kill();
    let start = Instant::now();
    let results = log.append(new_records("down", 20)).await;
    let took = start.elapsed();
    for result in &results {
        assert!(matches!(result, Err(AppendError::Unconfirmed(_))), "{result:?}");
    }
    assert!(took < DELIVERY + Duration::from_secs(3), "the append took {took:?}");
    assert!(matches!(log.probe().await, Err(LogError::Away { .. })));
    assert!(matches!(log.extent(P0).await, Err(LogError::Away { .. })));

    server.start_again().await;
    eventually(SOON, "an append is acknowledged again", async || {
        let sent = new_records("after", 1).remove(0);
        let result = log.append(vec![sent.clone()]).await.remove(0);
        if let Ok(place) = &result {
            acknowledged.insert(*place, sent.value);
        }
        result.map(|_| true)
    })
    .await;
    eventually(SOON, "a probe succeeds", async || log.probe().await).await;
    assert_eq!(log.id(), &id);
    // What was not confirmed may be in or not; what was, is, and once.
    let found = read_log(&log).await;
    for (place, value) in &acknowledged {
        assert_eq!(found.get(place), Some(value));
    }
    for record in found.into_iter().filter(|(place, _)| !acknowledged.contains_key(place)) {
        assert!(record.1.starts_with(b"down") || record.1.starts_with(b"after"), "{record:?}");
    }
    // The reader goes on where it stood.
    let mut at = read_before.last().unwrap().offset.next();
    let high = log.extent(P0).await.unwrap().high;
    let start = Instant::now();
    while at < high {
        assert!(start.elapsed() < SOON, "the reader stays at {at} of {high}");
        // While it finds the broker again, it may say so.
        for record in reader.next(limit(100, Duration::from_millis(500))).await.unwrap_or_default() {
            assert_eq!(record.offset, at);
            at = at.next();
        }
    }
}
