//! The log of one partition as a queue: its front is read with the keys and removed, and single records are set aside.
//! [`crate::spool`] is one.
//!
//! A record that is set aside is copied into the catalogue, where its row also says that the front passes over it.

use std::sync::Arc;

use dashi_domain::position::{Offset, Partition};
use sqlx::{Connection as _, SqliteConnection};
use uuid::Uuid;

use super::EmbeddedLog;
use super::catalogue::renew;
use super::cursor::{Cursor, Found};
use super::read::blocking;
use crate::{LogError, NewRecord};

/// The only partition of a queue.
const QUEUE: Partition = Partition::new(0);

/// A record of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) offset: Offset,
    pub(crate) record: NewRecord,
}

/// The content of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Content {
    /// Records, without those that are set aside.
    pub(crate) records: u64,
    /// Bytes of their values, with those that are set aside.
    pub(crate) bytes: u64,
    /// When the oldest was appended, milliseconds since 1970.
    pub(crate) oldest_ms: Option<i64>,
    /// Records that are set aside.
    pub(crate) aside: u64,
}

/// Bytes of records that are gone, from which on their file is worth removing at once.
const SPACE_BYTES: u64 = 16 << 20;

const READING: &str = "reading the spool";

impl EmbeddedLog {
    /// The oldest records from an offset on (inclusive), one at least if there is one.
    pub(crate) async fn front(
        &self,
        from: Offset,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Queued>, LogError> {
        let from = from.max(self.known_extent(QUEUE).await?.low);
        let mut cursor = Cursor::new(Arc::clone(&self.0.segments), QUEUE, from);
        let mut queued = Vec::new();
        // Again only where all records that were read are set aside.
        while queued.is_empty() {
            let (at, found) = self.read_with(QUEUE, cursor, (records_max, bytes_max)).await?;
            cursor = at;
            if found.is_empty() {
                break;
            }
            let aside = self.aside_offsets(found[0].offset).await?;
            queued = found
                .into_iter()
                .filter(|found| aside.binary_search(&found.offset).is_err())
                .map(queue)
                .collect();
        }
        Ok(queued)
    }

    /// Counts what the queue holds.
    pub(crate) async fn content(&self) -> Result<Content, LogError> {
        let low = self.known_extent(QUEUE).await?.low;
        let mut cursor = Cursor::new(Arc::clone(&self.0.segments), QUEUE, low);
        let counted = blocking(move || cursor.count()).await;
        let (records, bytes) = counted.map_err(LogError::away("counting the spool's records"))?;
        // Of those that are set aside, some are among the records still, and some not.
        let (aside, hidden, hidden_bytes, gone_bytes): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT count(value), coalesce(sum(id >= ?1), 0), coalesce(sum(CASE WHEN value IS NULL AND id >= ?1 THEN size END), 0),
                    coalesce(sum(CASE WHEN value IS NOT NULL AND id < ?1 THEN size END), 0) FROM aside",
        )
        .bind(low.number() as i64)
        .fetch_one(&self.0.readers)
        .await
        .map_err(LogError::away("counting the spool's records"))?;
        Ok(Content {
            records: records.saturating_sub(hidden as u64),
            bytes: (bytes + gone_bytes as u64).saturating_sub(hidden_bytes as u64),
            oldest_ms: self.oldest_ms().await?,
            aside: aside as u64,
        })
    }

    /// When the oldest record was appended, milliseconds since 1970.
    pub(crate) async fn oldest_ms(&self) -> Result<Option<i64>, LogError> {
        let Some(first) = self.front(Offset::ZERO, 1, 1).await?.pop() else { return Ok(None) };
        let cursor = Cursor::new(Arc::clone(&self.0.segments), QUEUE, first.offset);
        blocking(move || cursor.appended_at_ms()).await.map_err(LogError::away(READING))
    }

    /// Removes all records before an offset (exclusive). Durable on return.
    pub(crate) async fn remove_front(&self, end: Offset) -> Result<(), LogError> {
        const REMOVING: &str = "removing forwarded records";
        self.raise_low(QUEUE, end).await.map_err(LogError::away(REMOVING))?;
        self.change(REMOVING, async |connection| {
            sqlx::query("DELETE FROM aside WHERE value IS NULL AND id < ?")
                .bind(end.number() as i64)
                .execute(connection)
                .await
                .map(drop)
        })
        .await?;
        self.remove_files(SPACE_BYTES).await
    }

    /// Sets a record aside: it is at the front no more, and is kept. Durable on return.
    pub(crate) async fn set_aside(&self, offset: Offset) -> Result<(), LogError> {
        let cursor = Cursor::new(Arc::clone(&self.0.segments), QUEUE, offset);
        let (_, found) = self.read_with(QUEUE, cursor, (1, 1)).await?;
        let Some(record) = found.into_iter().find(|found| found.offset == offset) else { return Ok(()) };
        self.change("setting a record aside", async |connection| {
            sqlx::query(
                "INSERT INTO aside (id, session_id, size, value) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(offset.number() as i64)
            .bind(record.key.to_string())
            .bind(record.value.len() as i64)
            .bind(record.value)
            .execute(connection)
            .await
            .map(drop)
        })
        .await
    }

    /// The offsets from one on (inclusive) that are at the front no more, in their order.
    async fn aside_offsets(&self, from: Offset) -> Result<Vec<Offset>, LogError> {
        let offsets: Vec<i64> = sqlx::query_scalar("SELECT id FROM aside WHERE id >= ? ORDER BY id")
            .bind(from.number() as i64)
            .fetch_all(&self.0.readers)
            .await
            .map_err(LogError::away(READING))?;
        Ok(offsets.into_iter().map(|offset| Offset::new(offset as u64)).collect())
    }

    /// Some of the records that are set aside, the oldest first; see [`Self::remove_aside`].
    pub(crate) async fn aside(&self) -> Result<Vec<Queued>, LogError> {
        let away = |error| LogError::away(READING)(error);
        let rows: Vec<(i64, String, Vec<u8>)> = sqlx::query_as(
            "SELECT id, session_id, value FROM aside WHERE value IS NOT NULL ORDER BY id LIMIT 10",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(away)?;
        rows.into_iter()
            .map(|(id, key, value)| {
                let session_id = Uuid::parse_str(&key).map_err(LogError::away("reading a record's key"))?;
                Ok(Queued { offset: Offset::new(id as u64), record: NewRecord { session_id, value } })
            })
            .collect()
    }

    /// Removes a record that is set aside. Durable on return.
    pub(crate) async fn remove_aside(&self, offset: Offset) -> Result<(), LogError> {
        self.change("removing a record that was set aside", async |connection| {
            // The row stays until the front has passed it.
            sqlx::query("UPDATE aside SET value = NULL WHERE id = ?")
                .bind(offset.number() as i64)
                .execute(connection)
                .await
                .map(drop)
        })
        .await
    }

    /// Gives the space of removed records back to the file system, if that is worth it. For a queue that is empty.
    pub(crate) async fn give_space_back(&self) -> Result<(), LogError> {
        self.remove_files(SPACE_BYTES).await
    }

    /// The name of the log that the queue is for: the given one, if it has none yet. Durable on return.
    pub(crate) async fn destination(&self, log: &str) -> Result<String, sqlx::Error> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS destination (only INTEGER PRIMARY KEY CHECK (only = 1), log_id TEXT NOT NULL)")
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT INTO destination (only, log_id) VALUES (1, ?) ON CONFLICT DO NOTHING")
            .bind(log)
            .execute(&mut *tx)
            .await?;
        let destination = sqlx::query_scalar("SELECT log_id FROM destination").fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(destination)
    }

    /// Runs a statement on the connection for rare writes, which is replaced if that fails.
    async fn change(
        &self,
        doing: &'static str,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<(), sqlx::Error>,
    ) -> Result<(), LogError> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let changed = change(&mut housekeeper).await;
        if changed.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        changed.map_err(LogError::away(doing))
    }
}

fn queue(found: Found) -> Queued {
    Queued { offset: found.offset, record: NewRecord { session_id: found.key, value: found.value } }
}
