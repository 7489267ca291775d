//! Reading one partition from an offset on.

use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use tokio::sync::watch;

use super::EmbeddedLog;
use super::file::OFFSETS_PER_PARTITION;
use crate::{Extent, LogError, ReadLimit};

impl EmbeddedLog {
    pub(crate) fn reader(&self, partition: Partition, from: Offset) -> EmbeddedReader {
        let commits = self.0.commits.clone();
        EmbeddedReader { log: self.clone(), partition, next: from, commits, is_at_end: false }
    }

    /// Times grow with offsets, so this halves the range; there is no index of times.
    pub(crate) async fn offset_at(&self, partition: Partition, at_ms: i64) -> Result<Offset, LogError> {
        let base = i64::from(partition.number()) * OFFSETS_PER_PARTITION;
        let Extent { low, high } = self.extent(partition).await?;
        let (mut low, mut high) = (low.number(), high.number());
        while low < high {
            let middle = low + (high - low) / 2;
            let appended_at_ms: Option<i64> = sqlx::query_scalar(
                "SELECT appended_at_ms FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT 1",
            )
            .bind(base + middle as i64)
            .bind(base + OFFSETS_PER_PARTITION)
            .fetch_optional(&self.0.readers)
            .await
            .map_err(LogError::away("looking for a time"))?;
            match appended_at_ms {
                Some(ms) if ms < at_ms => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(Offset::new(low))
    }
}

/// See [`crate::Reader`].
pub struct EmbeddedReader {
    log: EmbeddedLog,
    partition: Partition,
    next: Offset,
    commits: watch::Receiver<u64>,
    /// Whether there was no record from `next` on when it looked last: then a look is worth it after a commit only.
    is_at_end: bool,
}

impl EmbeddedReader {
    pub(crate) fn seek(&mut self, offset: Offset) {
        self.next = offset;
        self.is_at_end = false;
    }

    pub(crate) fn passed(&self) -> Offset {
        self.next
    }

    pub(crate) async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let deadline = tokio::time::Instant::now() + limit.wait;
        loop {
            // The channel of a log that is closed has no changes: then every call looks.
            if !self.is_at_end || self.commits.has_changed().unwrap_or(true) {
                self.commits.mark_unchanged();
                self.is_at_end = false;
                let records = self.read(limit).await?;
                if let Some(first) = records.first() {
                    // Offsets are missing before the first record only where retention removed records: appends leave no
                    // gaps.
                    if first.offset > self.next {
                        self.refuse_outside().await?;
                    }
                    if let Some(last) = records.last() {
                        self.next = last.offset.next();
                    }
                    return Ok(records);
                }
                self.refuse_outside().await?;
                self.is_at_end = true;
            }
            // Once the channel is closed it returns an error at once, for ever: then only the time counts.
            tokio::select! {
                Ok(()) = self.commits.changed() => self.is_at_end = false,
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn read(&self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let base = i64::from(self.partition.number()) * OFFSETS_PER_PARTITION;
        let mut rows = sqlx::query(
            "SELECT id, appended_at_ms, value FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        )
        .bind(base + self.next.number() as i64)
        .bind(base + OFFSETS_PER_PARTITION)
        .bind(limit.records_max.max(1) as i64)
        .fetch(&self.log.0.readers);
        let away = |error| LogError::away("reading records")(error);
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await.map_err(away)? {
            let id: i64 = row.try_get(0).map_err(away)?;
            let value: Vec<u8> = row.try_get(2).map_err(away)?;
            bytes += value.len();
            records.push(Record {
                partition: self.partition,
                offset: Offset::new((id - base) as u64),
                appended_at_ms: row.try_get(1).map_err(away)?,
                value,
            });
            if bytes >= limit.bytes_max {
                break;
            }
        }
        Ok(records)
    }

    /// An error if the reader stands outside of the partition's readable part.
    async fn refuse_outside(&self) -> Result<(), LogError> {
        let Extent { low, high } = self.log.extent(self.partition).await?;
        let (partition, from) = (self.partition, self.next);
        if from < low {
            return Err(LogError::Trimmed { partition, from, low });
        }
        if from > high {
            return Err(LogError::Beyond { partition, from, high });
        }
        Ok(())
    }
}
