//! The event log: ordered by partition, durable, the source of truth. Two backends, one set of promises
//! (`tests/it/log_contract.rs` runs against both).
//!
//! * [`EventLog::append`] returns when the records are durable (I1).
//! * [`EventLog::reader`] reads one partition in order, from any offset.
//! * [`EventLog::membership`] assigns partitions to this process, which is to project them.
//!
//! One partition, with the offsets that this program names:
//!
//! ```text
//!              low                  checkpoint               high watermark
//!               |                       |                         |
//!  removed by   v     applied by the    v     not applied yet     v     not
//!  retention    | 4 | 5 | 7 | 8 | 9 |11 |12 |13 |14 |16 |17 | 18 |     appended
//!  ------------>|<--------------------->|<----------- lag ------->|<----------
//! ```
//!
//! * `low` is inclusive: the oldest offset that can be read.
//! * The checkpoint is the first offset that a projection has not applied, never the last one that it has: applied records
//!   end before it (exclusive), reading goes on at it (inclusive). It lies in the store.
//! * The high watermark is exclusive: the offset that the next record gets. Nothing at or above it can be read.
//! * Lag is the high watermark minus the checkpoint, or minus `low` where retention has passed the checkpoint. Offsets
//!   increase strictly and may have gaps (6, 10 and 15 above; brokers leave them, the embedded log none), so the lag is an
//!   upper bound on the records that are left.
//! * A checkpoint below `low` is [`LogError::Trimmed`], a checkpoint above the high watermark
//!   [`LogError::Beyond`]; a checkpoint that equals either is fine.

mod embedded;
mod error;
mod forward_spans;
mod kafka;
mod lane;
mod membership;
mod spool;
mod topic;

pub use embedded::{EmbeddedLog, EmbeddedSettings};
pub use error::{AppendError, LogError, OpenError};
pub use kafka::{KafkaLog, KafkaSettings};
pub use lane::{Front, Lane, LaneSettings, LaneStatus};
pub use membership::{Membership, Ownership};
pub use spool::{Spool, SpoolSettings, SpoolState, SpoolStatus};
pub use topic::{Concern, TopicNote};

use async_recursion::async_recursion as boxed;
use std::ops::Range;
use std::time::Duration;

use dashi_domain::missing;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::record::Record;
use uuid::Uuid;

/// A record that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The session; it decides the partition.
    pub session_id: Uuid,
    /// The encoded event.
    pub value: Vec<u8>,
}

/// How much a read may return and how long it may wait.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// At most this many records, at least 1.
    pub records_max: usize,
    /// No further record once the values add up to this many bytes; one record is always returned.
    pub bytes_max: usize,
    /// How long to wait for a first record.
    pub wait: Duration,
}

/// The readable part of a partition: `low` inclusive, `high` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The oldest offset that retention has left.
    pub low: Offset,
    /// The high watermark: the offset that the next record will get.
    pub high: Offset,
}

/// An event log.
#[derive(Clone)]
pub enum EventLog {
    /// A file on this machine.
    Embedded(EmbeddedLog),
    /// A topic of an Apache Kafka cluster.
    Kafka(KafkaLog),
}

/// How long [`EventLog::reader_behind`] waits for the record before a checkpoint, which the log has.
const PROOF: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[error("no record came from offset {offset} on")]
struct NoRecord {
    offset: Offset,
}

impl EventLog {
    /// The identity of this log. Offsets mean something only together with it.
    pub fn id(&self) -> &LogId {
        match self {
            Self::Embedded(log) => log.id(),
            Self::Kafka(log) => log.id(),
        }
    }

    /// All partitions, in order. A Kafka topic may have grown since the last call.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn partitions(&self) -> Result<Vec<Partition>, LogError> {
        let count = match self {
            Self::Embedded(log) => log.partition_count(),
            Self::Kafka(log) => log.partition_count().await?,
        };
        Ok((0..count).map(Partition::new).collect())
    }

    /// Appends the records in their order; those of one session get increasing offsets. Returns one result per record, in
    /// the same order: its partition and offset, or why it was not acknowledged. `Ok` means durable: fsynced, or
    /// acknowledged by all in-sync replicas.
    ///
    /// Waits for durability as long as the backend's own limit allows (`delivery_timeout`; a disk has none).
    #[boxed]
    pub async fn append(&self, records: Vec<NewRecord>) -> Vec<Result<(Partition, Offset), AppendError>> {
        match self {
            Self::Embedded(log) => log.append(records).await,
            Self::Kafka(log) => log.append(records).await,
        }
    }

    /// Appends records to one partition, which the log has, whatever their keys: commands that are about a partition lie in
    /// it. Otherwise it is [`EventLog::append`].
    #[boxed]
    pub async fn append_to(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        match self {
            Self::Embedded(log) => log.append_to(partition, records).await,
            Self::Kafka(log) => log.append_to(partition, records).await,
        }
    }

    /// The number of partitions over which new records are spread, as far as this process knows; `None` if it does not. A
    /// topic may have more partitions, with older records, or none.
    pub fn partitions_in_force(&self) -> Option<u32> {
        match self {
            Self::Embedded(log) => Some(log.partition_count()),
            Self::Kafka(log) => log.routing().current().map(|layout| layout.partitions),
        }
    }

    /// Makes records durable, in their order: in the log, or in its [spool](EventLog::open_spool) while the log is away or
    /// slow, from where they are forwarded before newer ones. Returns one result per record, in the same order. A record may
    /// be in the log twice, if its acknowledgement was lost. Without a spool it is [`EventLog::append`].
    ///
    /// # Errors
    /// Those of [`EventLog::append`], and [`AppendError::SpoolFull`].
    #[boxed]
    pub async fn accept(&self, records: Vec<NewRecord>) -> Vec<Result<(), AppendError>> {
        match self.spool() {
            Some((log, spool)) => spool.accept(log, records).await,
            None => self.append(records).await.into_iter().map(|appended| appended.map(drop)).collect(),
        }
    }

    /// Opens the spool of this log, from now on for [`EventLog::accept`], and starts to forward what an earlier process left
    /// there. An embedded log needs none: nothing is opened, and `None` is returned.
    ///
    /// # Errors
    /// The directory cannot be used, or another process uses it.
    #[boxed]
    pub async fn open_spool(&self, settings: SpoolSettings) -> Result<Option<Spool>, OpenError> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Kafka(log) => log.open_spool(settings).await.map(Some),
        }
    }

    fn spool(&self) -> Option<(&KafkaLog, &Spool)> {
        match self {
            Self::Embedded(_) => None,
            Self::Kafka(log) => log.spool().map(|spool| (log, spool)),
        }
    }

    /// A reader of one partition whose first record is the first one at or after `from`.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn reader(&self, partition: Partition, from: Offset) -> Result<Reader, LogError> {
        Ok(match self {
            Self::Embedded(log) => Reader::Embedded(log.reader(partition, from)),
            Self::Kafka(log) => Reader::Kafka(Box::new(log.reader(partition, from)?)),
        })
    }

    /// A reader as [`EventLog::reader`] returns it, for a projection whose checkpoint is `from` and whose last record, at
    /// the offset before `from`, has this fingerprint. Proves that the log still has that record.
    ///
    /// # Errors
    /// [`LogError::Beyond`] and [`LogError::Rewritten`]: the log lost records that were projected; an operator has to accept the loss.
    /// Any other: call again later.
    #[boxed]
    pub async fn reader_behind(
        &self,
        partition: Partition,
        from: Offset,
        fingerprint: Option<i64>,
    ) -> Result<Reader, LogError> {
        let Extent { low, high } = self.extent(partition).await?;
        if from > high {
            self.is_same().await?;
            return Err(LogError::Beyond { partition, from, high });
        }
        // Retention may have removed that record; then there is nothing to compare.
        let (Some(before), Some(fingerprint)) = (from.before().filter(|before| *before >= low), fingerprint)
        else {
            return self.reader(partition, from).await;
        };
        let mut reader = self.reader(partition, before).await?;
        let limit = ReadLimit { records_max: 1, bytes_max: 1, wait: PROOF };
        match reader.next(limit).await?.first() {
            Some(record) if record.offset == before => {
                if missing::fingerprint(&record.value) != fingerprint {
                    return Err(LogError::Rewritten { partition, from });
                }
            }
            Some(_) => reader.seek(from),
            None => {
                let source = std::sync::Arc::new(NoRecord { offset: before });
                return Err(LogError::Away { doing: "reading the last projected record", source });
            }
        }
        Ok(reader)
    }

    /// The part of a partition that can be read now.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn extent(&self, partition: Partition) -> Result<Extent, LogError> {
        match self {
            Self::Embedded(log) => log.extent(partition).await,
            Self::Kafka(log) => log.extent(partition).await,
        }
    }

    /// The same for those who look again and again, such as a gauge of lag: of an embedded log, the oldest offset may be that of a
    /// moment ago, before another process removed records.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn extent_at_a_glance(&self, partition: Partition) -> Result<Extent, LogError> {
        match self {
            Self::Embedded(log) => log.known_extent(partition).await,
            Self::Kafka(log) => log.extent(partition).await,
        }
    }

    /// The first offset of a partition whose record was appended at `at_ms` or later, in milliseconds since 1970; the high
    /// watermark if there is none. A record has the time of the process that appended it, so neighbours of several
    /// processes may be a little out of order.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn offset_at(&self, partition: Partition, at_ms: i64) -> Result<Offset, LogError> {
        match self {
            Self::Embedded(log) => log.offset_at(partition, at_ms).await,
            Self::Kafka(log) => log.offset_at(partition, at_ms).await,
        }
    }

    /// Joins those who project this log under the name `group`.
    ///
    /// # Errors
    /// Embedded: another process projects this log already. Kafka: the client cannot be made.
    #[boxed]
    pub async fn membership(&self, group: &str) -> Result<Membership, LogError> {
        match self {
            Self::Embedded(log) => log.membership(group),
            Self::Kafka(log) => log.membership(group),
        }
    }

    /// Proves that an append would be durable now: writes (embedded), or asks for the partitions' leaders.
    ///
    /// # Errors
    /// Why an append would not be durable.
    #[boxed]
    pub async fn probe(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(log) => log.probe().await,
            Self::Kafka(log) => log.probe().await,
        }
    }

    /// Notes for the operator about the topic behind the log, as of the last look at it. The topic is looked at when the
    /// log is opened, at an interval since then, and whenever something went wrong. An embedded log has no notes.
    pub fn notes(&self) -> Vec<TopicNote> {
        match self {
            Self::Embedded(_) => Vec::new(),
            Self::Kafka(log) => log.notes(),
        }
    }

    /// Proves that this is still the log that was opened, so that answers it gave before this call are of this log.
    ///
    /// # Errors
    /// [`LogError::Replaced`]: another log has its name now. Any other: the backend is away; ask again later.
    #[boxed]
    pub async fn is_same(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Kafka(log) => log.is_same().await,
        }
    }

    /// The parts of `gaps` whose records are missing. `gaps` are ranges of offsets of one partition at which a reader found
    /// no record, in order; their starts are inclusive, their ends exclusive. The other parts never held a record for a
    /// reader: they are markers of transactions and records of aborted transactions.
    ///
    /// # Errors
    /// The backend is away; ask again later. [`LogError::Replaced`]: stop.
    #[boxed]
    pub async fn missing(
        &self,
        partition: Partition,
        gaps: Vec<Range<Offset>>,
    ) -> Result<Vec<Range<Offset>>, LogError> {
        match self {
            // Only records take offsets there, so every gap is a loss.
            Self::Embedded(_) => Ok(gaps),
            Self::Kafka(log) if !gaps.is_empty() => log.missing(partition, gaps).await,
            Self::Kafka(_) => Ok(gaps),
        }
    }

    /// Removes records appended before `before_ms` (exclusive) that every projection known to the log has applied. Kafka
    /// does this itself, by the topic's own settings, so nothing is removed there. Returns how many records were removed.
    ///
    /// # Errors
    /// The backend is away; records that were removed before the error stay removed.
    #[boxed]
    pub async fn trim(&self, before_ms: i64) -> Result<u64, LogError> {
        match self {
            Self::Embedded(log) => log.trim(before_ms).await,
            Self::Kafka(_) => Ok(0),
        }
    }

    /// Lets retention keep all records that `holder` has not passed: from now on [`EventLog::trim`] removes no record at or
    /// behind these checkpoints. The next call of the same holder moves them. Kafka's retention is the topic's own: there
    /// it does nothing and returns `false`. Durable on return.
    ///
    /// # Errors
    /// The backend is away; nothing changed.
    #[boxed]
    pub async fn hold(&self, holder: &str, reached: &[PartitionCheckpoint]) -> Result<bool, LogError> {
        match self {
            Self::Embedded(log) => log.hold(holder, reached).await.map(|()| true),
            Self::Kafka(_) => Ok(false),
        }
    }

    /// Whether `holder` holds records of this log.
    ///
    /// # Errors
    /// The backend is away; ask again later.
    #[boxed]
    pub async fn is_held(&self, holder: &str) -> Result<bool, LogError> {
        match self {
            Self::Embedded(log) => log.is_held(holder).await,
            Self::Kafka(_) => Ok(false),
        }
    }

    /// Ends the hold of `holder`; returns whether there was one. Durable on return.
    ///
    /// # Errors
    /// The backend is away; the hold stays.
    #[boxed]
    pub async fn release(&self, holder: &str) -> Result<bool, LogError> {
        match self {
            Self::Embedded(log) => log.release(holder).await,
            Self::Kafka(_) => Ok(false),
        }
    }

    /// Whether [`EventLog::overwrite`] works here.
    pub fn can_overwrite(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }

    /// Puts other values into the place of records of a partition. Offsets, keys of other records and times of appending stay;
    /// the key of these becomes the nil UUID. A record that is not there is left out. Durable on return. Returns how many
    /// records were overwritten; on Kafka, whose records cannot be changed, none.
    ///
    /// # Errors
    /// The backend is away: nothing of this call is overwritten; call again.
    #[boxed]
    pub async fn overwrite(
        &self,
        partition: Partition,
        values: &[(Offset, Vec<u8>)],
    ) -> Result<u64, LogError> {
        match self {
            Self::Embedded(log) => log.overwrite(partition, values).await,
            Self::Kafka(_) => Ok(0),
        }
    }

    /// Stops to forward what the spool holds, and closes it, if there is one. To be called when nothing calls
    /// [`EventLog::accept`] any more.
    #[boxed]
    pub async fn close_spool(&self) {
        if let Some((log, spool)) = self.spool() {
            spool.close(log).await;
        }
    }

    /// Waits until every record given to [`EventLog::append`] has its outcome, then closes the backend. A spool keeps what
    /// it holds for the next process that opens it.
    #[boxed]
    pub async fn close(&self) {
        self.close_spool().await;
        match self {
            Self::Embedded(log) => log.close().await,
            Self::Kafka(log) => log.close().await,
        }
    }
}

/// Reads one partition in order.
pub enum Reader {
    /// Of an [`EmbeddedLog`].
    Embedded(embedded::EmbeddedReader),
    /// Of a [`KafkaLog`].
    Kafka(Box<kafka::KafkaReader>),
}

impl Reader {
    /// The next records, oldest first: at most as many as `limit` allows, fewer at the high watermark, none if nothing
    /// arrived in time. Offsets increase strictly; the broker may leave gaps, this program does not.
    ///
    /// Dropping the future loses no record: the next call begins where this one did.
    ///
    /// # Errors
    /// [`LogError::Trimmed`] and [`LogError::Beyond`]: the next records are not in the log; an operator has to accept the
    /// loss. [`LogError::Replaced`]: another log has the name now; stop. Any other: call again later.
    #[boxed]
    pub async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        match self {
            Self::Embedded(reader) => reader.next(limit).await,
            Self::Kafka(reader) => reader.next(limit).await,
        }
    }

    /// The offset that the reader has reached: the one behind the last record that it returned, or a later one if the
    /// offsets up to there hold no record and never will (see [`EventLog::missing`]).
    pub fn passed(&self) -> Offset {
        match self {
            Self::Embedded(reader) => reader.passed(),
            Self::Kafka(reader) => reader.passed(),
        }
    }

    /// Goes on from `offset`, forward or back, with the next call.
    pub fn seek(&mut self, offset: Offset) {
        match self {
            Self::Embedded(reader) => reader.seek(offset),
            Self::Kafka(reader) => reader.seek(offset),
        }
    }
}

/// A partition and the checkpoint that a projection has reached there, saved in the log for retention and for tools that
/// show lag. The checkpoint that counts is the store's; the saved one may be older.
pub type PartitionCheckpoint = (Partition, Checkpoint);
