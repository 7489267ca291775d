//! Reading a partition on from its checkpoint: records, and the offsets at which records are missing. A replay may have an
//! archive: it is read where the log does not begin yet, then the log.

use std::ops::Range;

use dashi_archive::{ArchiveError, ArchiveReader};
use dashi_domain::missing::{MissingCause, fingerprint, gaps};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::record::Record;
use dashi_event_log::{LogError, ReadLimit, Reader};

use crate::partition::PartitionTask;

/// Reads one partition.
#[derive(Default)]
pub(crate) struct Source {
    /// The reader of the log, and the checkpoint that it reads on from; `None` at first and after an error.
    reader: Option<(Reader, Checkpoint)>,
    /// The reader of the archive, if there is an archive.
    archive: Option<ArchiveReader>,
    /// The log's oldest offset, as far as it is known. Retention may have moved it on since.
    low: Option<Offset>,
}

/// Result of one read.
pub(crate) struct Batch {
    /// In the order of their offsets; none if no record came in time, or the task is to stop.
    pub records: Vec<Record>,
    /// The checkpoint behind the last record, and behind offsets after it that hold no record.
    pub to: Checkpoint,
    /// Offsets before `to` at which records are missing, and why.
    pub missing: Vec<MissingRange>,
    /// Offsets before `to` of records that were applied as part of a tail, in their order.
    pub skipped: Vec<Offset>,
    /// The fingerprint of the record before `to`, where that is known already: it need not be among `records`.
    pub fingerprint: Option<i64>,
}

impl Batch {
    /// With nothing in it.
    pub fn empty(at: Checkpoint) -> Self {
        Self { records: Vec::new(), to: at, missing: Vec::new(), skipped: Vec::new(), fingerprint: None }
    }

    /// The fingerprint of the record before `to`, if there is one.
    pub fn last_fingerprint(&self) -> Option<i64> {
        self.fingerprint.or_else(|| {
            let last = self.records.last().filter(|record| Checkpoint::after(record.offset) == self.to);
            last.map(|record| fingerprint(&record.value))
        })
    }

    /// The bytes of its records.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.value.len()).sum()
    }
}

/// Offsets at which records are missing, and why.
pub(crate) type MissingRange = (Range<Offset>, MissingCause);

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// The last record that was applied: its fingerprint, and the checkpoint behind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastApplied {
    pub behind: Checkpoint,
    pub fingerprint: Option<i64>,
}

impl Source {
    /// Reads the next records from the checkpoint `from` on, up to `limit`. A reader of the log that is opened for it proves that the log
    /// still has the record `last`, if that lies right before `from`; so an archive and the log that it goes over into
    /// are of one history.
    ///
    /// # Errors
    /// Those of [`Reader::next`], of [`EventLog::reader_behind`](dashi_event_log::EventLog::reader_behind) and of
    /// [`ArchiveReader::next`].
    pub async fn read(
        &mut self,
        task: &PartitionTask,
        limit: ReadLimit,
        from: Checkpoint,
        last: LastApplied,
    ) -> Result<Batch, ReadError> {
        let read = self.read_from(task, limit, from, last).await;
        if read.is_err() {
            // After any error the log may be an older copy of itself; the next reader proves that it is not.
            self.reader = None;
        }
        read
    }

    async fn read_from(
        &mut self,
        task: &PartitionTask,
        limit: ReadLimit,
        from: Checkpoint,
        last: LastApplied,
    ) -> Result<Batch, ReadError> {
        if let Some(archived) = self.read_archive(task, limit, from).await? {
            return Ok(archived);
        }
        match self.read_log(task, limit, from, last).await {
            Err(LogError::Trimmed { partition, from: offset, low }) => {
                // Retention may have removed these records from the log since it was asked for its beginning, and the
                // archiver may have archived them since the manifest was read.
                (self.reader, self.archive, self.low) = (None, None, Some(low));
                let archived = self.read_archive(task, limit, from).await?;
                archived.ok_or(LogError::Trimmed { partition, from: offset, low }.into())
            }
            read => Ok(read?),
        }
    }

    /// The next records from the archive; `None` if there is no archive, or the log is to be read.
    async fn read_archive(
        &mut self,
        task: &PartitionTask,
        limit: ReadLimit,
        from: Checkpoint,
    ) -> Result<Option<Batch>, ReadError> {
        let Some(archive) = &task.shared.archive else { return Ok(None) };
        let low = match self.low {
            Some(low) => low,
            None => *self.low.insert(task.shared.log.extent(task.partition).await?.low),
        };
        let reader = self.archive.get_or_insert_with(|| archive.reader(task.partition));
        let part = reader.next(from.offset(), low, limit).await?;
        Ok(part.map(|part| Batch {
            records: part.records,
            to: Checkpoint::at(part.to),
            missing: part.missing,
            skipped: Vec::new(),
            fingerprint: None,
        }))
    }

    async fn read_log(
        &mut self,
        task: &PartitionTask,
        limit: ReadLimit,
        from: Checkpoint,
        last: LastApplied,
    ) -> Result<Batch, LogError> {
        let log = &task.shared.log;
        let open = &mut self.reader;
        let (reader, at) = match open {
            Some(open) => open,
            None => {
                let fingerprint = last.fingerprint.filter(|_| last.behind == from);
                let reader = log.reader_behind(task.partition, from.offset(), fingerprint).await?;
                open.insert((reader, from))
            }
        };
        if *at != from {
            reader.seek(from.offset());
            *at = from;
        }
        let records = tokio::select! {
            biased;
            () = task.stop.cancelled() => Vec::new(),
            records = reader.next(limit) => records?,
        };
        let to = match records.last() {
            Some(last) => Checkpoint::after(last.offset),
            None => from.max(Checkpoint::at(reader.passed())),
        };
        let missing = log.missing(task.partition, gaps(from, &records, to)).await?;
        let missing = missing.into_iter().map(|range| (range, MissingCause::Gap)).collect();
        *at = to;
        Ok(Batch { records, to, missing, skipped: Vec::new(), fingerprint: None })
    }
}
