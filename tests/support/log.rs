//! A deployment's event log, opened beside the processes that use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dashi_domain::position::Partition;
use dashi_domain::record::Record;
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, EventLog, KafkaLog, KafkaSettings, ReadLimit};

use crate::TestDirectory;

/// Opens the log at this URL: `sqlite:path` or `kafka://host:port/topic`. If there is none yet, it gets 8 partitions.
///
/// # Panics
/// If it cannot be opened.
pub async fn open_log(url: &str) -> EventLog {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let settings = EmbeddedSettings { path: path.into(), partitions: 8, queue_max: 100, batch_max: 100 };
        return EventLog::Embedded(EmbeddedLog::open(settings).await.expect("the log can be opened"));
    }
    let (brokers, topic) = url.trim_start_matches("kafka://").split_once('/').expect("host:port/topic");
    let settings = KafkaSettings { partitions: 8, ..kafka_settings(brokers, topic) };
    EventLog::Kafka(KafkaLog::open(settings).await.expect("the log can be opened"))
}

/// Settings for a topic of one partition and one replica, with short waits.
pub fn kafka_settings(brokers: &str, topic: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        partitions: 1,
        replication_factor: 1,
        delivery_timeout: Duration::from_secs(30),
        linger: Duration::ZERO,
        session_timeout: Duration::from_secs(6),
        instance_id: None,
        queue_max: 100,
        record_bytes_max: 1 << 20,
        topic_check_interval: Duration::from_secs(1),
        properties: Default::default(),
    }
}

/// Every record of a partition, in its order.
///
/// # Panics
/// If the log cannot be read, or ends before its high watermark of now.
pub async fn read_partition(log: &EventLog, partition: Partition) -> Vec<Record> {
    let limit = ReadLimit { records_max: 1_000, bytes_max: 1 << 24, wait: Duration::from_secs(10) };
    let extent = log.extent(partition).await.expect("the log answers");
    let mut reader = log.reader(partition, extent.low).await.expect("the log answers");
    let mut left = extent.high.number() - extent.low.number();
    let mut records = Vec::new();
    while left > 0 {
        let next = reader.next(limit).await.expect("the log can be read");
        assert!(!next.is_empty(), "the log lacks {left} records");
        left = left.saturating_sub(next.len() as u64);
        records.extend(next);
    }
    records
}

/// Every record of a log, partition after partition, each in its order.
///
/// # Panics
/// As [`read_partition`].
pub async fn read_log(log: &EventLog) -> Vec<Record> {
    let mut records = Vec::new();
    for partition in log.partitions().await.expect("the log answers") {
        records.extend(read_partition(log, partition).await);
    }
    records
}

/// A copy of an embedded log, and of what lies beside it. No process may write the log while it is taken or restored.
#[derive(Debug)]
pub struct LogCopy {
    log: String,
    directory: TestDirectory,
}

impl LogCopy {
    /// Copies the log of this URL.
    pub fn take(log: &str) -> Self {
        let copied = Self { log: log.to_owned(), directory: TestDirectory::create("backup") };
        for file in files(log).filter(|file| file.exists()) {
            copy(&file, &copied.directory.path().join(file.file_name().expect("a name")));
        }
        copied
    }

    /// Puts the copy in the log's place.
    pub fn restore(&self) {
        remove(&self.log);
        for file in files(&self.log) {
            let kept = self.directory.path().join(file.file_name().expect("a name"));
            if kept.exists() {
                copy(&kept, &file);
            }
        }
    }
}

/// Removes an embedded log and what lies beside it.
pub fn remove(log: &str) {
    for file in files(log).filter(|file| file.exists()) {
        let removed =
            if file.is_dir() { std::fs::remove_dir_all(&file) } else { std::fs::remove_file(&file) };
        removed.expect("the file can be removed");
    }
}

fn files(log: &str) -> impl Iterator<Item = PathBuf> {
    let path = log.trim_start_matches("sqlite:");
    ["", "-wal", "-shm", ".segments"].map(|end| PathBuf::from(format!("{path}{end}"))).into_iter()
}

/// Copies a file, or a directory with everything in it.
pub fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).expect("the file can be copied");
        return;
    }
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("the directory can be read") {
        let entry = entry.expect("an entry");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}
