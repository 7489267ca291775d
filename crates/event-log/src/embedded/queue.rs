//! The log of one partition as a queue: its front is read with the keys and removed, and single records are set aside.
//! [`crate::spool`] is one.
//!
//! Records that are set aside stand in the range of ids behind that of the partition.

use dashi_domain::position::Offset;
use futures::TryStreamExt as _;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::EmbeddedLog;
use super::file::{OFFSETS_PER_PARTITION, renew};
use crate::{LogError, NewRecord};

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

impl EmbeddedLog {
    /// The oldest records from an offset on (inclusive), one at least if there is one.
    pub(crate) async fn front(
        &self,
        from: Offset,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Queued>, LogError> {
        let away = |error| LogError::away("reading the spool")(error);
        let mut rows = sqlx::query(
            "SELECT id, session_id, value FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        )
        .bind(from.number() as i64)
        .bind(OFFSETS_PER_PARTITION)
        .bind(records_max.max(1) as i64)
        .fetch(&self.0.readers);
        let (mut queued, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await.map_err(away)? {
            let id: i64 = row.try_get(0).map_err(away)?;
            let key: String = row.try_get(1).map_err(away)?;
            let value: Vec<u8> = row.try_get(2).map_err(away)?;
            bytes += value.len();
            let session_id = Uuid::parse_str(&key).map_err(LogError::away("reading a record's key"))?;
            let record = NewRecord { session_id, value };
            queued.push(Queued { offset: Offset::new(id as u64), record });
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(queued)
    }

    /// Counts what the queue holds; reads all of it but the values.
    pub(crate) async fn content(&self) -> Result<Content, LogError> {
        let (records, bytes, oldest_ms, aside): (i64, i64, Option<i64>, i64) = sqlx::query_as(
            "SELECT coalesce(sum(id < ?1), 0), coalesce(sum(length(value)), 0),
                    min(CASE WHEN id < ?1 THEN appended_at_ms END), coalesce(sum(id >= ?1), 0) FROM record",
        )
        .bind(OFFSETS_PER_PARTITION)
        .fetch_one(&self.0.readers)
        .await
        .map_err(LogError::away("counting the spool's records"))?;
        Ok(Content { records: records as u64, bytes: bytes as u64, oldest_ms, aside: aside as u64 })
    }

    /// When the oldest record was appended, milliseconds since 1970.
    pub(crate) async fn oldest_ms(&self) -> Result<Option<i64>, LogError> {
        sqlx::query_scalar("SELECT appended_at_ms FROM record WHERE id < ? ORDER BY id LIMIT 1")
            .bind(OFFSETS_PER_PARTITION)
            .fetch_optional(&self.0.readers)
            .await
            .map_err(LogError::away("reading the spool"))
    }

    /// Removes all records before an offset (exclusive). Durable on return.
    pub(crate) async fn remove_front(&self, end: Offset) -> Result<(), LogError> {
        self.change("removing forwarded records", async |connection| {
            let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("DELETE FROM record WHERE id < ?")
                .bind(end.number() as i64)
                .execute(&mut *tx)
                .await?;
            // No offset is used again.
            sqlx::query("UPDATE partition SET low_offset = max(low_offset, ?) WHERE partition = 0")
                .bind(end.number() as i64)
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Sets a record aside: it is at the front no more, and is kept. Durable on return.
    pub(crate) async fn set_aside(&self, offset: Offset) -> Result<(), LogError> {
        self.change("setting a record aside", async |connection| {
            sqlx::query("UPDATE record SET id = id + ? WHERE id = ?")
                .bind(OFFSETS_PER_PARTITION)
                .bind(offset.number() as i64)
                .execute(connection)
                .await
                .map(drop)
        })
        .await
    }

    /// Some of the records that are set aside, the oldest first; see [`Self::remove_aside`].
    pub(crate) async fn aside(&self) -> Result<Vec<Queued>, LogError> {
        let away = |error| LogError::away("reading the spool")(error);
        let rows: Vec<(i64, String, Vec<u8>)> =
            sqlx::query_as("SELECT id, session_id, value FROM record WHERE id >= ? ORDER BY id LIMIT 10")
                .bind(OFFSETS_PER_PARTITION)
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
            sqlx::query("DELETE FROM record WHERE id = ?")
                .bind(offset.number() as i64)
                .execute(connection)
                .await
                .map(drop)
        })
        .await
    }

    /// Gives the space of removed records back to the file system, if that is worth it. For a queue that is empty.
    pub(crate) async fn give_space_back(&self) -> Result<(), LogError> {
        const PAGES_MIN: i64 = 4_096;
        self.change("giving the spool's space back", async |connection| {
            let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&mut *connection).await?;
            if free >= PAGES_MIN {
                sqlx::query("VACUUM").execute(&mut *connection).await?;
                sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await?;
            }
            Ok(())
        })
        .await
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
