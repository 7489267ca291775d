//! Reading one partition from an offset on.

use std::io;

use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use tokio::sync::watch;

use super::EmbeddedLog;
use super::cursor::{Cursor, Found};
use super::overwrite::overwritten_id;
use crate::{LogError, ReadLimit};

const READING: &str = "reading records";

impl EmbeddedLog {
    pub(crate) fn reader(&self, partition: Partition, from: Offset) -> EmbeddedReader {
        let cursor = Cursor::new(self.0.segments.clone(), partition, from);
        let high = self.0.segments.high(partition);
        EmbeddedReader { log: self.clone(), partition, next: from, cursor, high }
    }

    pub(crate) async fn offset_at(&self, partition: Partition, at_ms: i64) -> Result<Offset, LogError> {
        let low = self.extent(partition).await?.low;
        let cursor = Cursor::new(self.0.segments.clone(), partition, low);
        blocking(move || cursor.offset_at(at_ms)).await.map_err(LogError::away("looking for a time"))
    }

    /// Reads on with a cursor: at once if the files are in memory, on a thread for such work otherwise. A damaged record is
    /// logged and left out, so its offset is missing. Without a value of its own a record has the one that the catalogue has in
    /// its place.
    pub(super) async fn read_with(
        &self,
        partition: Partition,
        mut cursor: Cursor,
        (records_max, bytes_max): (usize, usize),
    ) -> Result<(Cursor, Vec<Found>), LogError> {
        let away = LogError::away(READING);
        let (cursor, mut found) = if cursor.is_warm() {
            let found = cursor.read(records_max, bytes_max).map_err(away)?;
            (cursor, found)
        } else {
            let read = move || cursor.read(records_max, bytes_max).map(|found| (cursor, found));
            blocking(read).await.map_err(away)?
        };
        if found.iter().any(|record| record.is_overwritten || !record.is_whole) {
            self.substitute(partition, &mut found).await?;
        }
        Ok((cursor, found))
    }

    /// Puts values of the catalogue into the place of those that were overwritten, and leaves out damaged records.
    async fn substitute(&self, partition: Partition, found: &mut Vec<Found>) -> Result<(), LogError> {
        let mut kept = Vec::with_capacity(found.len());
        for mut record in found.drain(..) {
            if record.is_overwritten || !record.is_whole {
                let value: Option<Vec<u8>> = sqlx::query_scalar("SELECT value FROM overwritten WHERE id = ?")
                    .bind(overwritten_id(partition, record.offset))
                    .fetch_optional(&self.0.readers)
                    .await
                    .map_err(LogError::away(READING))?;
                let Some(value) = value else {
                    tracing::error!(
                        partition = partition.number(),
                        offset = record.offset.number(),
                        file = %self.0.segments.path(record.at.0).display(),
                        at_byte = record.at.1 - record.at.0,
                        "a record of the event log is damaged: it is not as it was written. It counts as missing. Restore the \
                         file from a copy, if there is one, and replay"
                    );
                    continue;
                };
                record.value = value;
            }
            kept.push(record);
        }
        *found = kept;
        Ok(())
    }
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// See [`crate::Reader`].
pub struct EmbeddedReader {
    log: EmbeddedLog,
    partition: Partition,
    next: Offset,
    cursor: Cursor,
    high: watch::Receiver<u64>,
}

impl EmbeddedReader {
    pub(crate) fn seek(&mut self, offset: Offset) {
        if offset != self.next {
            self.cursor = Cursor::new(self.log.0.segments.clone(), self.partition, offset);
            self.next = offset;
        }
    }

    pub(crate) fn passed(&self) -> Offset {
        self.next
    }

    pub(crate) async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let deadline = tokio::time::Instant::now() + limit.wait;
        loop {
            self.high.mark_unchanged();
            let (partition, from) = (self.partition, self.next);
            let extent = self.log.known_extent(partition).await?;
            if from < extent.low {
                return Err(LogError::Trimmed { partition, from, low: extent.low });
            }
            if from > extent.high {
                return Err(LogError::Beyond { partition, from, high: extent.high });
            }
            if from < extent.high {
                let limits = (limit.records_max, limit.bytes_max);
                // If this future is dropped, or the read fails, the next one looks for its place anew.
                let fresh = Cursor::new(self.log.0.segments.clone(), partition, from);
                let cursor = std::mem::replace(&mut self.cursor, fresh);
                let (cursor, found) = match self.log.read_with(partition, cursor, limits).await {
                    Ok(read) => read,
                    // Retention may have removed the file on the way; then the next look says so.
                    Err(_) if self.log.extent(partition).await?.low > from => continue,
                    Err(error) => return Err(error),
                };
                self.next = cursor.next().max(if found.is_empty() { extent.high } else { Offset::ZERO });
                self.cursor = cursor;
                // Without records the offsets up to here hold none and never will.
                return Ok(found.into_iter().map(|found| found.into_record(partition)).collect());
            }
            // Once the channel is closed it returns an error at once, for ever: then only the time counts.
            tokio::select! {
                Ok(()) = self.high.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }
}

impl Found {
    fn into_record(self, partition: Partition) -> Record {
        Record { partition, offset: self.offset, appended_at_ms: self.appended_at_ms, value: self.value }
    }
}
