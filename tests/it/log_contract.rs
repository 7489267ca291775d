//! The promises of an event log, one suite for every backend.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dashi_domain::partitioner;
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{
    AppendError, EmbeddedLog, EmbeddedSettings, EventLog, Extent, KafkaLog, KafkaSettings, LogError,
    Membership, NewRecord, Ownership, ReadLimit, Reader,
};
use integration_tests::{KafkaServer, TestDirectory, eventually, kafka};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(30);

/// Runs each function of the suite against a log that lies at a fresh place of the given kind.
macro_rules! log_contract {
    ($place:path: $($promise:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($place()).await;
            }
        )+
    };
}

/// Calls `log_contract!` with every function that all backends share.
macro_rules! whole_contract {
    ($place:path) => {
        log_contract!($place:
            records_are_read_back_in_their_order_with_their_values,
            records_of_one_session_lie_in_one_partition_and_increase,
            the_partition_is_the_one_that_every_kafka_client_computes,
            a_reader_begins_exactly_where_it_is_told_and_sees_everything,
            a_reader_seeks_back_and_forward,
            a_read_keeps_to_its_limits,
            a_record_beyond_the_limit_is_returned_all_the_same,
            a_read_at_the_end_waits_and_is_empty,
            a_waiting_read_wakes_when_something_is_appended,
            the_extent_tells_where_records_lie,
            concurrent_appends_are_each_there_exactly_once,
            every_entry_has_a_result,
            a_reopened_log_is_the_same_log,
            the_partitions_of_an_existing_log_win_over_the_setting,
            two_processes_append_without_losing_or_doubling,
            a_sole_member_gets_every_partition,
            a_reader_below_retention_is_told_so,
            a_reader_that_retention_overtakes_is_told_so,
            a_reader_beyond_the_end_is_told_so,
            close_waits_for_outcomes_and_then_refuses,
            dropping_a_read_loses_nothing,
            a_record_of_nine_mebibytes_goes_through,
            a_probe_of_a_log_that_is_there_succeeds,
        );
    };
}

mod embedded {
    whole_contract!(super::Place::embedded);
    log_contract!(super::Place::embedded:
        a_second_member_is_refused_until_the_first_is_gone,
        trim_keeps_everything_while_no_position_is_saved,
        trim_keeps_what_any_projection_has_not_applied,
        trim_keeps_what_is_young,
        appends_that_wait_together_share_a_commit_and_none_is_answered_before_it,
        a_full_queue_refuses_and_loses_nothing_it_took,
        two_processes_may_make_the_log_at_once,
    );
}

mod on_kafka {
    whole_contract!(super::Place::kafka);
    log_contract!(super::Place::kafka:
        two_members_share_and_the_rest_falls_to_the_one_that_stays,
        a_topic_made_again_is_another_log,
        a_record_too_large_for_the_topic_is_refused_as_such,
        saved_positions_are_committed_offsets,
    );
}

/// Where a log lies; it can be opened there several times, as by several processes.
enum Place {
    Embedded(TestDirectory),
    Kafka { brokers: String, topic: String },
}

impl Place {
    fn embedded() -> Self {
        Self::Embedded(TestDirectory::create("log"))
    }

    fn kafka() -> Self {
        Self::Kafka { brokers: kafka::shared_broker(), topic: kafka::unique_topic("log") }
    }

    async fn open(&self, partitions: u32) -> EventLog {
        match self {
            Self::Embedded(_) => {
                EventLog::Embedded(EmbeddedLog::open(self.embedded_settings(partitions)).await.unwrap())
            }
            Self::Kafka { brokers, topic } => {
                EventLog::Kafka(KafkaLog::open(kafka_settings(brokers, topic, partitions)).await.unwrap())
            }
        }
    }

    fn embedded_settings(&self, partitions: u32) -> EmbeddedSettings {
        let Self::Embedded(directory) = self else { panic!("this place is not a file") };
        EmbeddedSettings {
            path: directory.path().join("made/with/the.log"),
            partitions,
            queue_max: 10_000,
            batch_max: 1_000,
        }
    }

    /// Has retention remove all of a partition that lies before `end`.
    async fn remove_before(&self, log: &EventLog, partition: Partition, end: Offset) {
        match self {
            Self::Embedded(_) => {
                let mut member = log.membership("remover").await.unwrap();
                member.save(&[(partition, Checkpoint::at(end))]).await;
                log.trim(i64::MAX).await.unwrap();
            }
            Self::Kafka { brokers, topic } => {
                let mut offsets = TopicPartitionList::new();
                let end = rdkafka::Offset::Offset(end.number() as i64);
                offsets.add_partition_offset(topic, partition.number() as i32, end).unwrap();
                admin(brokers).delete_records(&offsets, &AdminOptions::new()).await.unwrap();
            }
        }
    }
}

fn kafka_settings(brokers: &str, topic: &str, partitions: u32) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        partitions,
        replication_factor: 1,
        delivery_timeout: Duration::from_secs(30),
        linger: Duration::from_millis(1),
        session_timeout: Duration::from_secs(6),
        queue_max: 100_000,
        record_bytes_max: 1 << 20,
        topic_check_interval: Duration::from_secs(1),
        properties: BTreeMap::new(),
    }
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

fn entry(session_id: Uuid, value: impl Into<Vec<u8>>) -> NewRecord {
    NewRecord { session_id, value: value.into() }
}

/// Entries with the values `prefix0`, `prefix1` and so on, each of a session of its own.
fn entries(prefix: &str, count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| entry(new_session(), format!("{prefix}{n}"))).collect()
}

/// A random session id; `Uuid::new_v4` would need another feature of its crate.
fn new_session() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, Uuid::now_v7().as_bytes())
}

const fn limit(records_max: usize, wait: Duration) -> ReadLimit {
    ReadLimit { records_max, bytes_max: 64 << 20, wait }
}

async fn append(log: &EventLog, entries: Vec<NewRecord>) -> Vec<(Partition, Offset)> {
    log.append(entries).await.into_iter().map(|result| result.unwrap()).collect()
}

/// Reads on until `count` records are there.
async fn read(reader: &mut Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let start = Instant::now();
    while records.len() < count {
        assert!(start.elapsed() < SOON, "read {} of {count} records", records.len());
        records.extend(reader.next(limit(1_000, Duration::from_millis(500))).await.unwrap());
    }
    assert_eq!(records.len(), count, "more was read than there is");
    records
}

async fn read_partition(log: &EventLog, partition: Partition) -> Vec<Record> {
    let Extent { low, high } = log.extent(partition).await.unwrap();
    let mut reader = log.reader(partition, low).await.unwrap();
    read(&mut reader, (high.number() - low.number()) as usize).await
}

/// Everything in the log, by place.
async fn read_log(log: &EventLog) -> BTreeMap<(Partition, Offset), Vec<u8>> {
    let mut found = BTreeMap::new();
    for partition in log.partitions().await.unwrap() {
        for record in read_partition(log, partition).await {
            assert_eq!(record.partition, partition);
            let twice = found.insert((partition, record.offset), record.value);
            assert_eq!(twice, None, "an offset is unique");
        }
    }
    found
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.value.clone()).unwrap()).collect()
}

fn offsets(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.offset.number()).collect()
}

const P0: Partition = Partition::new(0);

async fn records_are_read_back_in_their_order_with_their_values(place: Place) {
    let log = place.open(1).await;
    let session = new_session();
    let sent: Vec<Vec<u8>> =
        vec![b"plain".to_vec(), Vec::new(), vec![0, 255, 10, 0], "é\u{1f600}".into(), vec![b'x'; 100_000]];
    let before_ms = wall_clock_ms();
    let places = append(&log, sent.iter().map(|value| entry(session, value.clone())).collect()).await;
    assert_eq!(places, (0..5).map(|n| (P0, Offset::new(n))).collect::<Vec<_>>());
    let records = read_partition(&log, P0).await;
    assert_eq!(records.iter().map(|record| record.value.clone()).collect::<Vec<_>>(), sent);
    assert_eq!(offsets(&records), [0, 1, 2, 3, 4]);
    for record in records {
        assert!((before_ms..=wall_clock_ms()).contains(&record.appended_at_ms), "{}", record.appended_at_ms);
    }
}

#[expect(clippy::disallowed_methods, reason = "the log stamps its records by this clock")]
fn wall_clock_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

async fn records_of_one_session_lie_in_one_partition_and_increase(place: Place) {
    let log = place.open(8).await;
    let sessions: Vec<Uuid> = (0..20).map(|_| new_session()).collect();
    let mut last: BTreeMap<Uuid, (Partition, Offset)> = BTreeMap::new();
    for round in 0..10 {
        let round: Vec<NewRecord> = sessions
            .iter()
            .chain(&sessions)
            .enumerate()
            .map(|(n, session)| entry(*session, format!("{round}/{n}")))
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

async fn the_partition_is_the_one_that_every_kafka_client_computes(place: Place) {
    let log = place.open(7).await;
    let sent = entries("", 200);
    for (sent, (partition, _)) in sent.clone().iter().zip(append(&log, sent).await) {
        let key = sent.session_id.hyphenated().to_string();
        assert_eq!(partition, partitioner::partition_for(key.as_bytes(), 7));
    }
}

async fn a_reader_begins_exactly_where_it_is_told_and_sees_everything(place: Place) {
    const BEFORE: usize = 4_000;
    const DURING: usize = 2_000;
    let log = place.open(1).await;
    let mut sent = BTreeMap::new();
    for (n, (_, offset)) in append(&log, entries("", BEFORE)).await.into_iter().enumerate() {
        sent.insert(offset.number(), n.to_string());
    }
    let appender = tokio::spawn({
        let log = log.clone();
        async move {
            let mut sent = Vec::new();
            for n in (BEFORE..BEFORE + DURING).step_by(20) {
                let some = (n..n + 20).map(|n| entry(new_session(), n.to_string())).collect();
                sent.extend(append(&log, some).await.into_iter().zip(n..));
            }
            sent
        }
    });
    let mut readings = Vec::new();
    for from in [0, 1, BEFORE / 2, BEFORE - 1, BEFORE] {
        let log = log.clone();
        readings.push(tokio::spawn(async move {
            let mut reader = log.reader(P0, Offset::new(from as u64)).await.unwrap();
            (from, read(&mut reader, BEFORE + DURING - from).await)
        }));
    }
    for ((_, offset), n) in appender.await.unwrap() {
        sent.insert(offset.number(), n.to_string());
    }
    for reading in readings {
        let (from, records) = reading.await.unwrap();
        let expected: Vec<u64> = (from as u64..(BEFORE + DURING) as u64).collect();
        assert_eq!(offsets(&records), expected, "from {from}");
        for (record, value) in records.iter().zip(values(&records)) {
            assert_eq!(value, sent[&record.offset.number()]);
        }
    }
}

async fn a_reader_seeks_back_and_forward(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("", 3_000)).await;
    let mut reader = log.reader(P0, Offset::new(10)).await.unwrap();
    let first = reader.next(limit(5, SOON)).await.unwrap();
    assert_eq!(first[0].offset, Offset::new(10));
    // More than once, with records of the old place on their way.
    for to in [0, 2_990, 7, 7, 2_999, 1, 1_500] {
        reader.seek(Offset::new(to)).unwrap();
        let records = reader.next(limit(3, SOON)).await.unwrap();
        assert_eq!(records[0].offset, Offset::new(to));
        let follow: Vec<u64> = (to..).take(records.len()).collect();
        assert_eq!(offsets(&records), follow);
    }
}

async fn a_read_keeps_to_its_limits(place: Place) {
    const COUNT: usize = 100;
    let log = place.open(1).await;
    append(&log, (0..COUNT).map(|_| entry(new_session(), vec![b'x'; 1_000])).collect()).await;
    for (records_max, bytes_max, most) in
        [(7, 1 << 20, 7), (1, 1 << 20, 1), (1_000, 2_500, 3), (1_000, 2_000, 2), (1_000, 1, 1)]
    {
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        let (mut seen, mut fullest) = (0, 0);
        let start = Instant::now();
        while seen < COUNT {
            assert!(start.elapsed() < SOON, "only {seen} records came");
            let limit = ReadLimit { records_max, bytes_max, wait: Duration::from_millis(500) };
            let records = reader.next(limit).await.unwrap();
            assert!(records.len() <= most, "{} records for {limit:?}", records.len());
            fullest = fullest.max(records.len());
            for record in records {
                assert_eq!(record.offset, Offset::new(seen as u64));
                seen += 1;
            }
        }
        assert_eq!(fullest, most, "a limit is used, too");
    }
}

async fn a_record_beyond_the_limit_is_returned_all_the_same(place: Place) {
    let log = place.open(1).await;
    append(&log, vec![entry(Uuid::nil(), vec![1; 50_000]), entry(Uuid::nil(), "next")]).await;
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let limit = ReadLimit { records_max: 10, bytes_max: 100, wait: SOON };
    let first = reader.next(limit).await.unwrap();
    assert_eq!((first.len(), first[0].value.len()), (1, 50_000));
    assert_eq!(values(&reader.next(limit).await.unwrap()), ["next"]);
}

async fn a_read_at_the_end_waits_and_is_empty(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("", 3)).await;
    let mut reader = log.reader(P0, Offset::new(3)).await.unwrap();
    for wait in [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)] {
        let start = Instant::now();
        assert_eq!(reader.next(limit(10, wait)).await.unwrap(), []);
        let waited = start.elapsed();
        assert!(waited >= wait && waited < wait + Duration::from_secs(5), "waited {waited:?} of {wait:?}");
    }
}

async fn a_waiting_read_wakes_when_something_is_appended(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("", 3)).await;
    let mut reader = log.reader(P0, Offset::new(3)).await.unwrap();
    assert_eq!(reader.next(limit(10, Duration::from_millis(300))).await.unwrap(), []);
    for n in 3..13 {
        let waiting = tokio::spawn(async move {
            let records = reader.next(limit(10, SOON)).await.unwrap();
            (reader, records, Instant::now())
        });
        let start = Instant::now();
        append(&log, vec![entry(Uuid::nil(), "new")]).await;
        let (returned, records, at) = waiting.await.unwrap();
        assert_eq!(offsets(&records), [n]);
        assert!(at - start < Duration::from_secs(3), "woke after {:?}", at - start);
        reader = returned;
    }
}

async fn the_extent_tells_where_records_lie(place: Place) {
    let log = place.open(3).await;
    let none = Extent { low: Offset::ZERO, high: Offset::ZERO };
    for partition in log.partitions().await.unwrap() {
        assert_eq!(log.extent(partition).await.unwrap(), none);
    }
    let mut counts = BTreeMap::new();
    for (partition, _) in append(&log, entries("", 100)).await {
        *counts.entry(partition).or_insert(0) += 1;
    }
    for (partition, count) in counts {
        let extent = log.extent(partition).await.unwrap();
        assert_eq!(extent, Extent { low: Offset::ZERO, high: Offset::new(count) });
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
                    let sent = entries(&format!("{handle}/{task}/{round}/"), 1 + (task + round) % 5);
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
        for (place, entry) in task.await.unwrap() {
            assert_eq!(acknowledged.insert(place, entry.value), None, "{place:?} was given twice");
        }
    }
    acknowledged
}

async fn concurrent_appends_are_each_there_exactly_once(place: Place) {
    let log = place.open(4).await;
    let acknowledged = append_from_many_tasks(std::slice::from_ref(&log)).await;
    assert_eq!(read_log(&log).await, acknowledged);
}

async fn two_processes_append_without_losing_or_doubling(place: Place) {
    let logs = [place.open(4).await, place.open(4).await];
    let acknowledged = append_from_many_tasks(&logs).await;
    for log in &logs {
        assert_eq!(read_log(log).await, acknowledged);
    }
    // One finds what the other appends, without an append of its own.
    let mut reader = logs[0].reader(P0, logs[0].extent(P0).await.unwrap().high).await.unwrap();
    let in_p0 = (0..)
        .map(|_| new_session())
        .find(|session| partitioner::partition_for(partitioner::key(*session).as_bytes(), 4) == P0);
    append(&logs[1], vec![entry(in_p0.unwrap(), "of the other")]).await;
    assert_eq!(values(&reader.next(limit(1, SOON)).await.unwrap()), ["of the other"]);
}

async fn every_entry_has_a_result(place: Place) {
    let log = place.open(4).await;
    for count in [0, 1, 2, 63, 64, 65, 1_500] {
        let results = log.append(entries("", count)).await;
        assert_eq!(results.len(), count);
        let distinct: BTreeSet<_> = results.into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(distinct.len(), count);
    }
}

async fn a_reopened_log_is_the_same_log(place: Place) {
    let log = place.open(5).await;
    let acknowledged: BTreeMap<_, _> = {
        let sent = entries("", 300);
        append(&log, sent.clone()).await.into_iter().zip(sent.into_iter().map(|entry| entry.value)).collect()
    };
    log.close().await;
    let again = place.open(5).await;
    assert_eq!(again.id(), log.id());
    assert_eq!(again.partitions().await.unwrap(), (0..5).map(Partition::new).collect::<Vec<_>>());
    assert_eq!(read_log(&again).await, acknowledged);
    let (partition, offset) = append(&again, entries("more", 1)).await[0];
    assert!(!acknowledged.contains_key(&(partition, offset)), "the count of offsets goes on");
}

async fn the_partitions_of_an_existing_log_win_over_the_setting(place: Place) {
    let log = place.open(3).await;
    let other = place.open(9).await;
    assert_eq!(other.id(), log.id());
    for log in [log, other] {
        assert_eq!(log.partitions().await.unwrap(), (0..3).map(Partition::new).collect::<Vec<_>>());
        for (partition, _) in append(&log, entries("", 50)).await {
            assert!(partition < Partition::new(3));
        }
    }
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

async fn a_sole_member_gets_every_partition(place: Place) {
    let log = place.open(6).await;
    let mut members = [(log.membership("projectors").await.unwrap(), BTreeSet::new())];
    until_owned(&mut members, |owned| owned[0] == (0..6).collect()).await;
    let [(mut member, _)] = members;
    let more = tokio::time::timeout(Duration::from_millis(300), member.next()).await;
    assert!(more.is_err(), "nothing changes when nobody comes or goes: {:?}", more.unwrap());
    member.leave().await;
}

async fn a_reader_below_retention_is_told_so(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("", 100)).await;
    place.remove_before(&log, P0, Offset::new(40)).await;
    let extent = log.extent(P0).await.unwrap();
    assert_eq!(extent, Extent { low: Offset::new(40), high: Offset::new(100) });
    for from in [0, 39] {
        let mut reader = log.reader(P0, Offset::new(from)).await.unwrap();
        // Told again and again, for it stays true.
        for _ in 0..3 {
            match reader.next(limit(10, SOON)).await {
                Err(LogError::Trimmed { partition, from: stands, low }) => {
                    assert_eq!((partition, stands, low), (P0, Offset::new(from), Offset::new(40)));
                }
                other => panic!("from {from}: {other:?}"),
            }
        }
        reader.seek(Offset::new(40)).unwrap();
        assert_eq!(values(&read(&mut reader, 60).await)[0], "40");
    }
    place.remove_before(&log, P0, Offset::new(100)).await;
    let mut reader = log.reader(P0, Offset::new(100)).await.unwrap();
    assert_eq!(reader.next(limit(1, Duration::from_millis(300))).await.unwrap(), []);
    append(&log, entries("after", 1)).await;
    let record = &reader.next(limit(1, SOON)).await.unwrap()[0];
    assert_eq!((record.offset, record.value.as_slice()), (Offset::new(100), b"after0".as_slice()));
}

/// A reader may hold records that retention removes; behind them, it must not wait for ever.
async fn a_reader_that_retention_overtakes_is_told_so(place: Place) {
    const COUNT: u64 = 48;
    let log = place.open(1).await;
    // More than a reader fetches ahead.
    for _ in 0..COUNT {
        append(&log, vec![entry(Uuid::nil(), vec![b'x'; 1 << 20])]).await;
    }
    let mut readers = Vec::new();
    for records_max in [1, 2, 3, 4] {
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        let first = reader.next(limit(1, SOON)).await.unwrap();
        assert_eq!(offsets(&first), [0]);
        readers.push((records_max, reader));
    }
    place.remove_before(&log, P0, Offset::new(COUNT)).await;
    for (records_max, mut reader) in readers {
        let (start, mut next) = (Instant::now(), 1);
        loop {
            assert!(start.elapsed() < SOON, "the reader waits in vain at {next}");
            match reader.next(limit(records_max, Duration::from_millis(200))).await {
                Ok(records) => {
                    for record in records {
                        assert_eq!(record.offset, Offset::new(next));
                        next += 1;
                    }
                    assert!(next < COUNT, "all records were fetched ahead: the test shows nothing");
                    // The pace of a projector that commits each batch.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(LogError::Trimmed { from, low, .. }) => {
                    assert_eq!((from, low), (Offset::new(next), Offset::new(COUNT)));
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn a_reader_beyond_the_end_is_told_so(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("", 10)).await;
    for from in [11, 5_000] {
        let mut reader = log.reader(P0, Offset::new(from)).await.unwrap();
        for _ in 0..2 {
            match reader.next(limit(10, SOON)).await {
                Err(LogError::Beyond { partition, from: stands, high }) => {
                    assert_eq!((partition, stands, high), (P0, Offset::new(from), Offset::new(10)));
                }
                other => panic!("from {from}: {other:?}"),
            }
        }
    }
}

async fn close_waits_for_outcomes_and_then_refuses(place: Place) {
    let log = place.open(2).await;
    append(&log, entries("first", 1)).await;
    let sent = entries("", 500);
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
    let again = place.open(2).await;
    let found = read_log(&again).await;
    let mut acknowledged = 0;
    for (result, entry) in outcomes.into_iter().flatten().zip(sent) {
        assert_eq!(found[&result.unwrap()], entry.value);
        acknowledged += 1;
    }
    assert_eq!(acknowledged, 500);
    let late = log.append(entries("late", 2)).await;
    assert!(late.iter().all(|result| matches!(result, Err(AppendError::Closed))), "{late:?}");
    assert_eq!(read_log(&again).await.len(), 501);
}

async fn dropping_a_read_loses_nothing(place: Place) {
    const COUNT: usize = 2_000;
    let log = place.open(1).await;
    let appender = tokio::spawn({
        let log = log.clone();
        async move {
            for n in (0..COUNT).step_by(10) {
                append(&log, (n..n + 10).map(|n| entry(Uuid::nil(), n.to_string())).collect()).await;
            }
        }
    });
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let (mut seen, mut dropped) = (Vec::new(), 0);
    let start = Instant::now();
    while seen.len() < COUNT {
        assert!(start.elapsed() < SOON, "{} of {COUNT}, {dropped} reads dropped", seen.len());
        // From one look to several: every place at which the future may stand.
        let patience = Duration::from_micros(dropped % 40 * 25);
        match tokio::time::timeout(patience, reader.next(limit(7, SOON))).await {
            Ok(records) => seen.extend(values(&records.unwrap())),
            Err(_) => dropped += 1,
        }
    }
    assert!(dropped > 0, "no read was dropped: the test shows nothing");
    assert_eq!(seen, (0..COUNT).map(|n| n.to_string()).collect::<Vec<_>>());
    appender.await.unwrap();
}

async fn a_record_of_nine_mebibytes_goes_through(place: Place) {
    let log = place.open(1).await;
    let large: Vec<u8> = (0..9_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    append(&log, vec![entry(Uuid::nil(), "a"), entry(Uuid::nil(), large.clone()), entry(Uuid::nil(), "b")])
        .await;
    let records = read_partition(&log, P0).await;
    assert_eq!(records[0].value, b"a");
    assert!(records[1].value == large, "the large record is another one");
    assert_eq!(records[2].value, b"b");
}

async fn a_probe_of_a_log_that_is_there_succeeds(place: Place) {
    let log = place.open(2).await;
    log.probe().await.unwrap();
    append(&log, entries("", 1)).await;
    log.probe().await.unwrap();
}

async fn a_second_member_is_refused_until_the_first_is_gone(place: Place) {
    let (log, other) = (place.open(2).await, place.open(2).await);
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

async fn trim_keeps_everything_while_no_position_is_saved(place: Place) {
    let log = place.open(3).await;
    append(&log, entries("", 100)).await;
    let before = read_log(&log).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    let mut member = log.membership("projectors").await.unwrap();
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    member.save(&[]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    assert_eq!(read_log(&log).await, before);
}

async fn trim_keeps_what_any_projection_has_not_applied(place: Place) {
    let log = place.open(2).await;
    let p1 = Partition::new(1);
    append(&log, entries("", 9_000)).await;
    let high = [log.extent(P0).await.unwrap().high, log.extent(p1).await.unwrap().high];
    let low =
        async || [log.extent(P0).await.unwrap().low.number(), log.extent(p1).await.unwrap().low.number()];

    let mut live = log.membership("live").await.unwrap();
    live.save(&[(P0, Checkpoint::at(Offset::new(2_500)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 2_500);
    assert_eq!(low().await, [2_500, 0]);
    assert_eq!(read_partition(&log, P0).await[0].offset, Offset::new(2_500));

    live.save(&[(P0, Checkpoint::at(high[0])), (p1, Checkpoint::at(high[1]))]).await;
    live.leave().await;
    // Another projection has begun, and has applied nothing of partition 1 yet.
    let mut rebuild = log.membership("rebuild").await.unwrap();
    rebuild.save(&[(P0, Checkpoint::at(Offset::new(2_600)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 100);
    assert_eq!(low().await, [2_600, 0]);
    rebuild.save(&[(p1, Checkpoint::at(Offset::new(1)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 1);
    assert_eq!(low().await, [2_600, 1]);
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);

    rebuild.save(&[(P0, Checkpoint::at(high[0])), (p1, Checkpoint::at(high[1]))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 9_000 - 2_601);
    assert_eq!(low().await, high.map(Offset::number));
    // What follows gets the offsets that follow, also after reopening.
    log.close().await;
    let again = place.open(2).await;
    for (partition, offset) in append(&again, entries("", 20)).await {
        assert!(offset >= high[partition.number() as usize], "{partition}/{offset}");
    }
}

async fn trim_keeps_what_is_young(place: Place) {
    let log = place.open(1).await;
    append(&log, entries("old", 50)).await;
    let last_ms = read_partition(&log, P0).await[49].appended_at_ms;
    eventually(SOON, "the clock moves", async || wall_clock_ms() > last_ms + 1).await;
    append(&log, entries("young", 50)).await;
    let mut member = log.membership("projectors").await.unwrap();
    member.save(&[(P0, Checkpoint::at(Offset::new(100)))]).await;
    assert_eq!(log.trim(last_ms - 10_000).await.unwrap(), 0);
    assert_eq!(log.trim(last_ms + 1).await.unwrap(), 50);
    assert_eq!(values(&read_partition(&log, P0).await)[0], "young0");
}

/// While another process holds the file's lock, nothing can become durable. So nothing may be answered, and what
/// comes in the meantime waits for the next commit together.
async fn appends_that_wait_together_share_a_commit_and_none_is_answered_before_it(place: Place) {
    use sqlx::Connection as _;
    const COUNT: usize = 200;
    let log = place.open(1).await;
    let path = place.embedded_settings(1).path;
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let appends: Vec<_> = (0..COUNT)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { append(&log, vec![entry(Uuid::nil(), n.to_string())]).await })
        })
        .collect();
    // Reads are answered all the while: they show that time has passed for the appends, too.
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    assert_eq!(reader.next(limit(1, Duration::from_millis(500))).await.unwrap(), []);
    assert!(appends.iter().all(|append| !append.is_finished()), "answered before it is durable");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    for append in appends {
        append.await.unwrap();
    }
    // A commit stamps all its records alike. The first took what was there when it began, the second the rest.
    let stamps: BTreeSet<_> =
        read_partition(&log, P0).await.into_iter().map(|record| record.appended_at_ms).collect();
    assert!(stamps.len() <= 2, "{} commits for {COUNT} appends that waited together", stamps.len());
}

async fn a_full_queue_refuses_and_loses_nothing_it_took(place: Place) {
    let settings = EmbeddedSettings { queue_max: 2, batch_max: 1, ..place.embedded_settings(1) };
    let log = EventLog::Embedded(EmbeddedLog::open(settings).await.unwrap());
    let appends: Vec<_> = (0..200)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { log.append(vec![entry(Uuid::nil(), n.to_string())]).await.remove(0) })
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

async fn two_processes_may_make_the_log_at_once(place: Place) {
    let opening: Vec<_> =
        (1..=6).map(|n| EmbeddedLog::open(place.embedded_settings(n))).map(tokio::spawn).collect();
    let mut seen = BTreeSet::new();
    for log in opening {
        let log = EventLog::Embedded(log.await.unwrap().unwrap());
        seen.insert((log.id().clone(), log.partitions().await.unwrap()));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

async fn two_members_share_and_the_rest_falls_to_the_one_that_stays(place: Place) {
    let (log, other) = (place.open(6).await, place.open(6).await);
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

async fn a_topic_made_again_is_another_log(place: Place) {
    let Place::Kafka { brokers, topic } = &place else { panic!("only Kafka has topics") };
    let log = place.open(2).await;
    append(&log, entries("", 3)).await;
    let admin = admin(brokers);
    admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    eventually(SOON, "the topic is gone", async || log.probe().await.is_err()).await;
    assert!(log.partitions().await.is_err(), "a topic that is gone is no topic without partitions");
    let again = place.open(2).await;
    assert_ne!(again.id(), log.id());
    // Cluster and topic are the same; what tells them apart is the id that the cluster gave the topic.
    let common = format!("/{topic}/");
    let [(cluster, _), (before, _)] =
        [&again, &log].map(|log| log.id().as_str().split_once(&common).unwrap());
    assert_eq!(cluster, before);
    append(&again, entries("new", 1)).await;
    assert_eq!(read_log(&again).await.len(), 1);
}

async fn a_record_too_large_for_the_topic_is_refused_as_such(place: Place) {
    let log = place.open(1).await;
    let results = log
        .append(vec![entry(Uuid::nil(), "a"), entry(Uuid::nil(), vec![0; 13 << 20]), entry(Uuid::nil(), "b")])
        .await;
    assert!(matches!(results[1], Err(AppendError::TooLarge { bytes }) if bytes == 13 << 20), "{results:?}");
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert_eq!(values(&read_partition(&log, P0).await), ["a", "b"]);
}

async fn saved_positions_are_committed_offsets(place: Place) {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let Place::Kafka { brokers, topic } = &place else { panic!("only Kafka has groups") };
    let log = place.open(2).await;
    append(&log, entries("", 100)).await;
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
    let sent = entries("before", 50);
    acknowledged.extend(append(&log, sent.clone()).await.into_iter().zip(sent.into_iter().map(|e| e.value)));
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let read_before = reader.next(limit(5, SOON)).await.unwrap();
    log.probe().await.unwrap();

    server.kill();
    let start = Instant::now();
    let results = log.append(entries("down", 20)).await;
    let took = start.elapsed();
    for result in &results {
        assert!(matches!(result, Err(AppendError::Unconfirmed(_))), "{result:?}");
    }
    assert!(took < DELIVERY + Duration::from_secs(3), "the append took {took:?}");
    assert!(matches!(log.probe().await, Err(LogError::Away { .. })));
    assert!(matches!(log.extent(P0).await, Err(LogError::Away { .. })));

    server.start_again().await;
    eventually(SOON, "an append is acknowledged again", async || {
        let sent = entries("after", 1).remove(0);
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
