//! Reading a partition on from its checkpoint: records, and the offsets at which records are missing.

use std::ops::Range;

use dashi_domain::missing::gaps;
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::record::Record;
use dashi_event_log::{LogError, Reader};

use crate::partition::PartitionTask;

/// Reads one partition.
#[derive(Default)]
pub(crate) struct Source {
    /// The reader, and the checkpoint that it reads on from; `None` at first and after an error.
    reader: Option<(Reader, Checkpoint)>,
}

/// Result of one read.
pub(crate) struct Batch {
    /// In the order of their offsets; none if no record came in time, or the task is to stop.
    pub records: Vec<Record>,
    /// The checkpoint behind the last record, and behind offsets after it that hold no record.
    pub to: Checkpoint,
    /// Offsets before `to` at which records are missing.
    pub missing: Vec<Range<Offset>>,
}

/// The last record that was applied: its fingerprint, and the checkpoint behind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastApplied {
    pub behind: Checkpoint,
    pub fingerprint: Option<i64>,
}

impl Source {
    /// Reads the next records from the checkpoint `from` on. A reader that is opened for it proves that the log still has
    /// the record `last`, if that lies right before `from`.
    ///
    /// # Errors
    /// Those of [`Reader::next`] and of [`EventLog::reader_behind`](dashi_event_log::EventLog::reader_behind).
    pub async fn read(
        &mut self,
        task: &PartitionTask,
        from: Checkpoint,
        last: LastApplied,
    ) -> Result<Batch, LogError> {
        let read = self.read_from(task, from, last).await;
        if read.is_err() {
            // After any error the log may be an older copy of itself; the next reader proves that it is not.
            self.reader = None;
        }
        read
    }

    async fn read_from(
        &mut self,
        task: &PartitionTask,
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
            reader.seek(from.offset())?;
            *at = from;
        }
        let records = tokio::select! {
            biased;
            () = task.stop.cancelled() => Vec::new(),
            records = reader.next(task.shared.settings.read_limit) => records?,
        };
        let to = match records.last() {
            Some(last) => Checkpoint::after(last.offset),
            None => from.max(Checkpoint::at(reader.passed())),
        };
        let missing = log.missing(task.partition, gaps(from, &records, to)).await?;
        *at = to;
        Ok(Batch { records, to, missing })
    }
}
