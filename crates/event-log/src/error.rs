//! Errors of a log, one variant per decision of the caller.

use std::path::PathBuf;
use std::sync::Arc;

use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::spool::Full;

/// The driver's own error, shared because one failure may answer many appends.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a log cannot be opened. The process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be made or read.
    #[error("cannot open the event log {path}", path = path.display())]
    File {
        /// The log's file.
        path: PathBuf,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The file was written by a newer version.
    #[error("the event log {path} has format {found}, this program knows up to {known}: use a newer program", path = path.display())]
    Format {
        /// The log's file.
        path: PathBuf,
        /// The format of the file.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// A client of the cluster cannot be made, usually because of a setting.
    #[error("cannot make a Kafka client for {brokers}: check [kafka.properties]")]
    Client {
        /// The configured brokers.
        brokers: String,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// No broker of the cluster answered.
    #[error("no Kafka broker at {brokers} answered within {waited_ms} ms")]
    Unreachable {
        /// The configured brokers.
        brokers: String,
        /// How long it was asked.
        waited_ms: u64,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The topic is not there and cannot be created.
    #[error("cannot create the topic {topic} with {partitions} partitions at {brokers}: {reason}")]
    Topic {
        /// The configured topic.
        topic: String,
        /// The configured partitions.
        partitions: u32,
        /// The configured brokers.
        brokers: String,
        /// The cluster's answer.
        reason: String,
    },
    /// A file of the spool cannot be made, read or written.
    #[error("cannot open the spool {path}: set ingest.spool_directory to a directory of this collector's own that can be written, or ingest.spool = false", path = path.display())]
    Spool {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// Another process uses the spool's directory.
    #[error("another collector uses the spool's directory (it holds {lock}): give each its own ingest.spool_directory", lock = lock.display())]
    SpoolTaken {
        /// The file whose lock it holds.
        lock: PathBuf,
    },
    /// A file of the lane of historical events cannot be made, read or written.
    #[error("cannot open the lane of historical events {path}", path = path.display())]
    Lane {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// Another process uses the lane's directory.
    #[error("another collector has the lane of historical events (it holds {lock})", lock = lock.display())]
    LaneTaken {
        /// The file whose lock it holds.
        lock: PathBuf,
    },
    /// The records in the spool's file are of another log.
    #[error("the spool {path} holds events of the log {destination}, and this is the log {log}: set another ingest.spool_directory", path = path.display())]
    SpoolOfOther {
        /// The spool's file.
        path: PathBuf,
        /// The log that its records wait for.
        destination: String,
        /// The log that was opened.
        log: LogId,
    },
}

/// Why a record was not acknowledged. Try again later, except after `TooLarge`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The queue of waiting appends is full. Nothing was appended.
    #[error("the event log's queue is full")]
    Full,
    /// The record is larger than the log takes. Trying again will not help.
    #[error("the record of {bytes} bytes is larger than the event log takes")]
    TooLarge {
        /// The size of the record's value.
        bytes: usize,
    },
    /// The log did not confirm the record. It may or may not be in.
    #[error("the event log did not confirm the record")]
    Unconfirmed(#[source] Cause),
    /// With its present settings the log would lose records that it acknowledged. Nothing was appended.
    #[error("the event log takes no records: {0}")]
    Refused(String),
    /// The log does not acknowledge, and the spool takes no more. The record may be in the log all the same.
    #[error("the event log is away and the spool is full: {0}")]
    SpoolFull(Full),
    /// The lane of historical events takes no more. Nothing was appended.
    #[error("the lane of historical events is full: {0}")]
    LaneFull(Full),
    /// The number of partitions grows, and the record's session moves: it waited as long as a record may wait. Nothing was
    /// appended.
    #[error(
        "the event log's partitions grow, and records of sessions that move wait for that: `dashi partitions` shows it"
    )]
    Held,
    /// The log was closed. Nothing was appended.
    #[error("the event log is closed")]
    Closed,
}

/// Why the log could not be read, or did not answer a question.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The backend did not answer; try again later.
    #[error("the event log does not answer while {doing}")]
    Away {
        /// The action that failed, as a participle: "reading records".
        doing: &'static str,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// Retention removed `from`: an operator has to accept the loss before a projection whose checkpoint it is goes on.
    #[error(
        "partition {partition} begins at offset {low}, offset {from} has been removed by retention; `dashi accept-lost` \
         records the loss and goes on"
    )]
    Trimmed {
        /// The partition.
        partition: Partition,
        /// The reader's next offset.
        from: Offset,
        /// The oldest offset left.
        low: Offset,
    },
    /// The log ends before `from`: it lost records that the projection has applied, or is an older copy. The log needs a
    /// repair, or an operator has to accept the loss.
    #[error(
        "partition {partition} ends at offset {high}, before offset {from}, up to which it was projected; if an older \
         copy of the log was restored, `dashi accept-lost` records the loss and goes on"
    )]
    Beyond {
        /// The partition.
        partition: Partition,
        /// The reader's next offset.
        from: Offset,
        /// The high watermark.
        high: Offset,
    },
    /// The record before `from` is not the one that was projected: the log lost records that the projection has applied,
    /// and others have taken their offsets. An operator has to accept the loss.
    #[error(
        "partition {partition} has another record before offset {from} than the one that was projected: an older copy \
         of the log has grown again; `dashi accept-lost` records the loss and goes on"
    )]
    Rewritten {
        /// The partition.
        partition: Partition,
        /// The checkpoint: the first offset that was not projected.
        from: Offset,
    },
    /// The topic was deleted and created again: it holds another log now, with offsets of its own. Stop; no record of the
    /// new log was returned.
    #[error(
        "the topic {topic} was deleted and created again: it is the log {found} now, not {known} any more; to go on \
         with the new log, start once with --accept-new-log (rows of the old one stay)"
    )]
    Replaced {
        /// The topic's name.
        topic: String,
        /// The log that was opened.
        known: LogId,
        /// The log that has the topic's name now.
        found: LogId,
    },
    /// The topic's settings lose records that were acknowledged. They are checked again at an interval; call again later.
    #[error("{reason}")]
    Refused {
        /// Which setting is wrong, and the command that corrects it.
        reason: String,
    },
    /// Another process joined the group under this one's name and has its partitions now. Stop: if both went on, each would
    /// take them from the other.
    #[error(
        "another projector has joined the group as {instance_id} and has this one's partitions now; give each projector \
         a kafka.instance_id of its own"
    )]
    Fenced {
        /// The name.
        instance_id: String,
    },
    /// Another process projects this log.
    #[error("another process projects the event log already (it holds {lock}); stop it first", lock = lock.display())]
    Taken {
        /// The file whose lock it holds.
        lock: PathBuf,
    },
}

impl LogError {
    pub(crate) fn away<E>(doing: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Away { doing, source: Arc::new(source) }
    }
}
