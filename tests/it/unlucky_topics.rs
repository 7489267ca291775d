//! Unlucky operators, the part of topics: made with the wrong settings, deleted and created again, emptied by retention,
//! thinned out by compaction, restored from an older copy.

mod running;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{
    AppendError, Concern, EventLog, KafkaLog, KafkaSettings, LogError, NewRecord, ReadLimit,
};
use integration_tests::log::kafka_settings;
use integration_tests::{KafkaServer, eventually, kafka};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use uuid::Uuid;

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(60);
const P0: Partition = Partition::new(0);

async fn open(brokers: &str, topic: &str) -> EventLog {
    let settings = KafkaSettings {
        queue_max: 1_000,
        record_bytes_max: 2 << 20,
        topic_check_interval: Duration::from_millis(300),
        ..kafka_settings(brokers, topic)
    };
    EventLog::Kafka(KafkaLog::open(settings).await.unwrap())
}

async fn append(log: &EventLog, count: usize) {
    let session_id = Uuid::now_v7();
    let entries = (0..count).map(|n| NewRecord { session_id, value: format!("{n}").into_bytes() }).collect();
    for appended in log.append(entries).await {
        appended.unwrap();
    }
}

fn concerns(log: &EventLog) -> BTreeSet<Concern> {
    log.notes().into_iter().map(|note| note.concern).collect()
}

fn limit(records_max: usize) -> ReadLimit {
    ReadLimit { records_max, bytes_max: 64 << 20, wait: Duration::from_millis(500) }
}

/// Everything that a reader gives from the beginning of partition 0 until it has passed `end`.
async fn read_up_to(log: &EventLog, end: u64) -> Vec<Record> {
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let (start, mut records) = (Instant::now(), Vec::new());
    while reader.passed() < Offset::new(end) {
        assert!(start.elapsed() < SOON, "it stands at {} of {end}", reader.passed());
        records.extend(reader.next(limit(1_000)).await.unwrap());
    }
    records
}

/// The ranges below `end` that hold none of these records.
fn gaps(records: &[Record], end: u64) -> Vec<Range<Offset>> {
    let mut next = Offset::ZERO;
    let mut gaps = Vec::new();
    for at in records.iter().map(|record| record.offset).chain([Offset::new(end)]) {
        if next < at {
            gaps.push(next..at);
        }
        next = at.next();
    }
    gaps
}

fn offsets(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.offset.number()).collect()
}

fn numbers(ranges: &[Range<Offset>]) -> Vec<Range<u64>> {
    ranges.iter().map(|range| range.start.number()..range.end.number()).collect()
}

/// Writes as another program does that shares the topic.
struct Foreign {
    producer: BaseProducer,
    topic: String,
}

impl Foreign {
    fn transactional(brokers: &str, topic: &str) -> Self {
        let id = format!("tx-{}", Uuid::now_v7());
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("transactional.id", id)
            .create()
            .unwrap();
        producer.init_transactions(SOON).unwrap();
        Self { producer, topic: topic.to_owned() }
    }

    fn plain(brokers: &str, topic: &str) -> Self {
        let producer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        Self { producer, topic: topic.to_owned() }
    }

    /// Each value a batch of its own, so that compaction and readers see batches.
    fn send(&self, keys: &[&str]) {
        for key in keys {
            self.producer.send(BaseRecord::to(&self.topic).partition(0).key(*key).payload("x")).unwrap();
            self.producer.flush(SOON).unwrap();
        }
    }

    /// One transaction, whose marker lies before `end` when this returns: brokers write it after they have answered.
    async fn transaction(&self, keys: &[&str], commit: bool, end: i64) {
        self.producer.begin_transaction().unwrap();
        self.send(keys);
        if commit {
            self.producer.commit_transaction(SOON).unwrap();
        } else {
            self.producer.abort_transaction(SOON).unwrap();
        }
        eventually(SOON, "the marker is written", async || {
            let (_, high) = self.producer.client().fetch_watermarks(&self.topic, 0, SOON).unwrap();
            if high == end { Ok(()) } else { Err(high.to_string()) }
        })
        .await;
    }
}

/// Offset and value of the first record of partition 0 that is there.
fn first_offset(brokers: &str, topic: &str) -> (i64, Vec<u8>) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "onlooker")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(topic, 0, rdkafka::Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let first = consumer.poll(SOON).expect("a record comes").unwrap();
    (first.offset(), first.payload().unwrap_or_default().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_unlucky_setting_is_noted_with_its_command_and_no_longer_once_it_is_mended() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("settings"));
    let bad = [
        ("retention.ms", "604800000"),
        ("retention.bytes", "1073741824"),
        ("max.message.bytes", "1048588"),
        ("unclean.leader.election.enable", "true"),
    ];
    kafka::create_topic(&brokers, &topic, 1, &bad).await;
    let log = open(&brokers, &topic).await;
    let expected = BTreeSet::from([
        Concern::RetentionMs,
        Concern::RetentionBytes,
        Concern::MaxMessageBytes,
        Concern::MinInsyncReplicas,
        Concern::UncleanLeaderElection,
        Concern::ReplicationFactor,
    ]);
    assert_eq!(concerns(&log), expected, "known as soon as the log is open");
    for note in log.notes() {
        assert!(note.text.contains(&topic), "{note:?}");
        let has_command = note.remedy.is_some();
        assert_eq!(
            has_command,
            note.concern != Concern::MinInsyncReplicas,
            "one replica cannot be two: {note:?}"
        );
    }
    append(&log, 1).await;
    let good = [
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("max.message.bytes", "12582912"),
        ("unclean.leader.election.enable", "false"),
    ];
    kafka::configure(&brokers, &topic, &good).await;
    let left = BTreeSet::from([Concern::MinInsyncReplicas, Concern::ReplicationFactor]);
    eventually(SOON, "what was mended is noted no longer", async || concerns(&log) == left).await;
    kafka::grow(&topic, 2).await;
    eventually(SOON, "new partitions are noted", async || concerns(&log).contains(&Concern::Partitions))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_takes_and_gives_nothing_until_it_is_mended() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("compact"));
    for policy in ["compact", "compact,delete"] {
        let topic = format!("{topic}-{}", policy.len());
        kafka::create_topic(&brokers, &topic, 1, &[("cleanup.policy", policy)]).await;
        let log = open(&brokers, &topic).await;
        let refused = log.append(vec![NewRecord { session_id: Uuid::nil(), value: b"x".to_vec() }]).await;
        let Err(AppendError::Refused(reason)) = &refused[0] else { panic!("{policy}: {refused:?}") };
        let command = format!(
            "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} \
             --add-config cleanup.policy=delete"
        );
        assert!(reason.contains(&command), "{reason}");
        let probed = log.probe().await;
        assert!(
            matches!(&probed, Err(LogError::Refused { reason }) if reason.contains(&command)),
            "{probed:?}"
        );
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        let read = reader.next(limit(1)).await;
        assert!(matches!(read, Err(LogError::Refused { .. })), "{read:?}");

        kafka::configure(&brokers, &topic, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]).await;
        eventually(SOON, "it is taken again", async || log.probe().await).await;
        append(&log, 1).await;
        assert_eq!(offsets(&reader.next(limit(1)).await.unwrap()), [0]);

        // Somebody sets it while the log is open.
        kafka::configure(&brokers, &topic, &[("cleanup.policy", policy)]).await;
        eventually(SOON, "the change is noticed", async || log.probe().await.is_err()).await;
        let refused = log.append(vec![NewRecord { session_id: Uuid::nil(), value: b"x".to_vec() }]).await;
        assert!(matches!(refused[0], Err(AppendError::Refused(_))), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brokers_defaults_count_where_the_topic_has_no_setting_of_its_own() {
    let server = KafkaServer::start_with("log.cleanup.policy=compact\nlog.retention.bytes=1000000").await;
    kafka::create_topic(&server.address(), "foreign", 1, &[]).await;
    let log = open(&server.address(), "foreign").await;
    assert!(concerns(&log).contains(&Concern::CleanupPolicy), "{:?}", log.notes());
    // A topic that Dashi creates has settings of its own.
    let log = open(&server.address(), "own").await;
    let expected = BTreeSet::from([Concern::MinInsyncReplicas, Concern::ReplicationFactor]);
    assert_eq!(concerns(&log), expected, "{:?}", log.notes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_whose_settings_may_not_be_read_has_one_warning_and_goes_on() {
    let server = KafkaServer::start_with(
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         allow.everyone.if.no.acl.found=true",
    )
    .await;
    let brokers = server.address();
    kafka::create_topic(&brokers, "events", 1, &[("retention.ms", "1000000000")]).await;
    let everybody = ["--allow-principal", "User:ANONYMOUS", "--operation", "All"];
    server.acls(&[&["--add", "--topic", "events"], &everybody[..]].concat()).await;
    let nobody = ["--deny-principal", "User:ANONYMOUS", "--operation", "DescribeConfigs"];
    server.acls(&[&["--add", "--topic", "events"], &nobody[..]].concat()).await;
    let log = open(&brokers, "events").await;
    eventually(SOON, "the access list is in force", async || {
        let found = concerns(&log);
        let expected = BTreeSet::from([Concern::ReplicationFactor, Concern::SettingsUnreadable]);
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    append(&log, 1).await;
    assert_eq!(read_up_to(&log, 1).await.len(), 1);
}

/// A topic that is deleted and created again has offsets that look valid. The client library goes on reading where it
/// stood, in the other topic, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_of_a_topic_that_was_created_again_is_read() {
    let brokers = kafka::shared_broker();
    for (records, position) in [(12, 3), (2, 3), (3, 3), (0, 3), (5, 0)] {
        let topic = kafka::unique_topic("again");
        let log = open(&brokers, &topic).await;
        append(&log, 3).await;
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        while reader.passed() < Offset::new(position) {
            reader.next(limit(1)).await.unwrap();
        }
        kafka::delete_topic(&brokers, &topic).await;
        kafka::create_topic(&brokers, &topic, 1, &[]).await;
        let foreign = Foreign::plain(&brokers, &topic);
        (0..records).for_each(|_| foreign.send(&["new"]));
        let start = Instant::now();
        let error = loop {
            assert!(start.elapsed() < SOON, "nobody says that the topic is another one");
            match reader.next(limit(100)).await {
                Ok(read) => assert!(
                    read.iter().all(|record| record.value != b"x"),
                    "a record of the new topic at {:?}, with {records} in it",
                    offsets(&read)
                ),
                Err(error @ LogError::Replaced { .. }) => break error,
                // While it is gone.
                Err(LogError::Away { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let again = open(&brokers, &topic).await;
        let text = error.to_string();
        for part in ["deleted and created again", log.id().as_str(), again.id().as_str(), "--accept-new-log"]
        {
            assert!(text.contains(part), "{text}");
        }
        // It stays so, also for a new reader.
        assert!(matches!(reader.next(limit(1)).await, Err(LogError::Replaced { .. })));
        assert!(matches!(log.is_same().await, Err(LogError::Replaced { .. })));
        eventually(SOON, "it is noted", async || concerns(&log).contains(&Concern::Replaced)).await;
    }
}

/// The same with nobody reading: a collector.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_notices_a_topic_that_was_created_again_and_goes_on_in_it() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("again"));
    let log = open(&brokers, &topic).await;
    append(&log, 3).await;
    kafka::delete_topic(&brokers, &topic).await;
    kafka::create_topic(&brokers, &topic, 1, &[]).await;
    eventually(SOON, "it is noted", async || concerns(&log).contains(&Concern::Replaced)).await;
    log.probe().await.unwrap();
    append(&log, 2).await;
    let again = open(&brokers, &topic).await;
    assert_eq!(again.extent(P0).await.unwrap().high, Offset::new(2), "what was acknowledged is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_and_records_of_aborted_transactions_are_not_missing() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("transactions"));
    kafka::create_topic(&brokers, &topic, 1, &[]).await;
    let foreign = Foreign::transactional(&brokers, &topic);
    let log = open(&brokers, &topic).await;
    append(&log, 2).await; // 0, 1
    foreign.transaction(&["a"], true, 4).await; // 2, marker 3
    foreign.transaction(&["a", "b", "c"], false, 8).await; // 4, 5, 6 aborted, marker 7
    foreign.transaction(&["a"], true, 10).await; // 8, marker 9
    append(&log, 1).await; // 10
    foreign.transaction(&["a"], false, 13).await; // 11 aborted, marker 12
    foreign.transaction(&["a"], true, 15).await; // 13, marker 14
    let records = read_up_to(&log, 15).await;
    assert_eq!(offsets(&records), [0, 1, 2, 8, 10, 13]);
    let gaps = gaps(&records, 15);
    assert_eq!(numbers(&gaps), [3..8, 9..10, 11..13, 14..15]);
    assert_eq!(log.missing(P0, gaps).await.unwrap(), []);
}

/// Compaction leaves gaps that look as those of transactions do, in between them, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_compaction_removed_is_missing_also_between_markers() {
    let server =
        KafkaServer::start_with("log.cleaner.backoff.ms=200\nlog.cleaner.min.cleanable.ratio=0.01").await;
    let (brokers, topic) = (server.address(), "thinned");
    let compact = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "1000"),
        ("max.compaction.lag.ms", "1000"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "86400000"),
    ];
    kafka::create_topic(&brokers, topic, 1, &compact).await;
    let plain = Foreign::plain(&brokers, topic);
    let foreign = Foreign::transactional(&brokers, topic);
    plain.send(&["a", "b", "a", "a"]); // 0 .. 3
    foreign.transaction(&["c"], true, 6).await; // 4, marker 5
    plain.send(&["b", "c", "a"]); // 6 .. 8
    foreign.transaction(&["d", "d"], false, 12).await; // 9, 10 aborted, marker 11
    // A segment is closed by a record that comes after its time.
    eventually(SOON, "the log is compacted", async || {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        plain.send(&["e"]);
        let (first, _) = first_offset(&brokers, topic);
        if first == 6 { Ok(()) } else { Err(first.to_string()) }
    })
    .await;
    kafka::configure(&brokers, topic, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]).await;
    let log = open(&brokers, topic).await;
    let high = log.extent(P0).await.unwrap().high.number();
    let records = read_up_to(&log, high).await;
    let read = offsets(&records);
    assert_eq!(read[..3], [6, 7, 8]);
    let missing = log.missing(P0, gaps(&records, high)).await.unwrap();
    // The markers of transactions that were compacted away may be gone, too; those that are there are distinguished from the others.
    let offsets: BTreeSet<u64> =
        missing.iter().flat_map(|gap| gap.start.number()..gap.end.number()).collect();
    for lost in [0, 1, 2, 3, 4] {
        assert!(offsets.contains(&lost), "{lost} of {missing:?}");
    }
    assert!(read.iter().all(|offset| !offsets.contains(offset)));
    assert!(!offsets.contains(&11), "the marker at 11 is no record: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_transactions_every_gap_is_missing() {
    let (brokers, topic) = (kafka::shared_broker(), kafka::unique_topic("gap"));
    let log = open(&brokers, &topic).await;
    append(&log, 10).await;
    kafka::delete_records(&brokers, &topic, 0, 4).await;
    let gap = Offset::ZERO..Offset::new(4);
    assert_eq!(log.missing(P0, vec![gap.clone()]).await.unwrap(), [gap]);
    assert_eq!(log.missing(P0, Vec::new()).await.unwrap(), []);
}
