//! Growing: one transaction writes the barriers of all partitions, and makes the new ones.

use dashi_domain::layout::{Barrier, Layout, Passed};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use uuid::Uuid;

use super::EmbeddedLog;
use super::append::note_partitions;
use super::file::{FORMAT, HIGH_WATERMARK, OFFSETS_PER_PARTITION, now_ms, renew};
use crate::LogError;

impl EmbeddedLog {
    /// The layouts, by version; the last one is in force.
    ///
    /// # Errors
    /// The file does not answer.
    pub async fn layouts(&self) -> Result<Vec<Layout>, LogError> {
        let away = |error| LogError::away("reading its layouts")(error);
        let rows: Vec<(u32, u32)> = sqlx::query_as("SELECT version, partitions FROM layout ORDER BY version")
            .fetch_all(&self.0.readers)
            .await
            .map_err(away)?;
        if rows.is_empty() {
            return Ok(vec![Layout { version: 0, partitions: self.partition_count() }]);
        }
        Ok(rows.into_iter().map(|(version, partitions)| Layout { version, partitions }).collect())
    }

    /// Lets the log grow to so many partitions; returns the layout that is in force then, which has more if it had more
    /// before. Every append behind this transaction, of whichever process, is spread over the new number. Durable on return.
    ///
    /// # Errors
    /// The file cannot be written; nothing changed.
    pub async fn grow(&self, to: u32) -> Result<Layout, LogError> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let grown = self.grow_in(&mut housekeeper, to).await;
        if grown.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        let layout = grown.map_err(LogError::away("growing"))?;
        note_partitions(&self.0.partitions, layout.partitions);
        Ok(layout)
    }

    async fn grow_in(&self, connection: &mut SqliteConnection, to: u32) -> Result<Layout, sqlx::Error> {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut next: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT {HIGH_WATERMARK} FROM partition ORDER BY partition"
        )))
        .fetch_all(&mut *tx)
        .await?;
        let from = next.len() as u32;
        let known: Option<u32> =
            sqlx::query_scalar("SELECT max(version) FROM layout").fetch_one(&mut *tx).await?;
        if to <= from {
            return Ok(Layout { version: known.unwrap_or(0), partitions: from });
        }
        let (version, at_ms) = (known.unwrap_or(0) + 1, now_ms());
        if known.is_none() {
            note(&mut tx, Layout { version: 0, partitions: from }, 0).await?;
        }
        let layout = Layout { version, partitions: to };
        note(&mut tx, layout, at_ms).await?;
        for partition in from..to {
            sqlx::query("INSERT INTO partition (partition, low_offset) VALUES (?, 0)")
                .bind(partition)
                .execute(&mut *tx)
                .await?;
        }
        next.resize(to as usize, 0);
        let layouts = Passed { version, from, to };
        for (barrier, offset) in Barrier::all(&self.0.id, layouts, at_ms).zip(next) {
            let id = i64::from(barrier.partition.number()) * OFFSETS_PER_PARTITION + offset;
            sqlx::query("INSERT INTO record (id, appended_at_ms, session_id, value) VALUES (?, ?, ?, ?)")
                .bind(id)
                .bind(at_ms)
                .bind(Uuid::nil().to_string())
                .bind(barrier.encode())
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("UPDATE meta SET format = ?").bind(FORMAT).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(layout)
    }
}

async fn note(connection: &mut SqliteConnection, layout: Layout, at_ms: i64) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO layout (version, partitions, begun_at_ms) VALUES (?, ?, ?)")
        .bind(layout.version)
        .bind(layout.partitions)
        .bind(at_ms)
        .execute(connection)
        .await
        .map(drop)
}
