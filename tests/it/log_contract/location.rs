//! Where the log of a test lies, and how it is opened there.

use std::collections::BTreeMap;
use std::time::Duration;

use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, EventLog, KafkaLog, KafkaSettings};
use integration_tests::{TestDirectory, kafka};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::TopicPartitionList;

/// Where a log lies; it can be opened there several times, as by several processes.
pub(super) enum LogLocation {
    Embedded(TestDirectory),
    Kafka { brokers: String, topic: String },
}

impl LogLocation {
    pub(super) fn embedded() -> Self {
        Self::Embedded(TestDirectory::create("log"))
    }

    pub(super) fn kafka() -> Self {
        Self::Kafka { brokers: kafka::shared_broker(), topic: kafka::unique_topic("log") }
    }

    pub(super) async fn open(&self, partitions: u32) -> EventLog {
        match self {
            Self::Embedded(_) => {
                EventLog::Embedded(EmbeddedLog::open(self.embedded_settings(partitions)).await.unwrap())
            }
            Self::Kafka { brokers, topic } => {
                EventLog::Kafka(KafkaLog::open(kafka_settings(brokers, topic, partitions)).await.unwrap())
            }
        }
    }

    pub(super) fn embedded_settings(&self, partitions: u32) -> EmbeddedSettings {
        let Self::Embedded(directory) = self else { panic!("this log is no file") };
        EmbeddedSettings {
            path: directory.path().join("made/with/the.log"),
            partitions,
            queue_max: 10_000,
            batch_max: 1_000,
        }
    }

    /// Has retention remove all of a partition that lies before `end`.
    pub(super) async fn remove_before(&self, log: &EventLog, partition: Partition, end: Offset) {
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

pub(super) fn kafka_settings(brokers: &str, topic: &str, partitions: u32) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        partitions,
        replication_factor: 1,
        delivery_timeout: Duration::from_secs(30),
        linger: Duration::from_millis(1),
        session_timeout: Duration::from_secs(6),
        instance_id: None,
        queue_max: 100_000,
        record_bytes_max: 1 << 20,
        topic_check_interval: Duration::from_secs(1),
        properties: BTreeMap::new(),
    }
}

pub(super) fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}
