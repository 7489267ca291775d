//! Retention: removing old records that every projection has applied.

use dashi_domain::position::Partition;
use sqlx::Connection as _;

use super::EmbeddedLog;
use super::file::{OFFSETS_PER_PARTITION, renew};
use crate::{LogError, PartitionCheckpoint};

/// What begins the name of a holder beside the names of projections.
const HOLDER: &str = "hold:";

impl EmbeddedLog {
    /// A holder counts as a projection: retention removes only records that it has passed.
    pub(crate) async fn hold(&self, holder: &str, reached: &[PartitionCheckpoint]) -> Result<(), LogError> {
        self.save_checkpoints(&format!("{HOLDER}{holder}"), reached).await
    }

    pub(crate) async fn is_held(&self, holder: &str) -> Result<bool, LogError> {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM position WHERE projection = ?)")
            .bind(format!("{HOLDER}{holder}"))
            .fetch_one(&self.0.readers)
            .await
            .map_err(LogError::away("looking for a hold"))
    }

    pub(crate) async fn release(&self, holder: &str) -> Result<bool, LogError> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let released = sqlx::query("DELETE FROM position WHERE projection = ?")
            .bind(format!("{HOLDER}{holder}"))
            .execute(&mut *housekeeper)
            .await
            .map_err(LogError::away("releasing a hold"))?;
        Ok(released.rows_affected() > 0)
    }

    pub(crate) async fn trim(&self, before_ms: i64) -> Result<u64, LogError> {
        let mut removed = 0;
        for partition in (0..self.partition_count()).map(Partition::new) {
            loop {
                let gone = self.trim_some(partition, before_ms).await;
                if gone.is_err() {
                    renew(&mut *self.0.housekeeper.lock().await, &self.0.path).await;
                }
                let gone = gone.map_err(LogError::away("removing records that retention no longer keeps"))?;
                removed += gone;
                if gone == 0 {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Removes some of the oldest records of a partition; a bounded number, so that appends wait but briefly. Returns how
    /// many it removed. A log that no projection has ever read keeps everything, and a projection that has saved no
    /// checkpoint of this partition yet needs all of it.
    async fn trim_some(&self, partition: Partition, before_ms: i64) -> Result<u64, sqlx::Error> {
        const ROWS: i64 = 2_000;
        let base = i64::from(partition.number()) * OFFSETS_PER_PARTITION;
        let mut housekeeper = self.0.housekeeper.lock().await;
        let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
        let applied: Option<i64> =
            sqlx::query_scalar(
                "SELECT min(coalesce(position.checkpoint, 0)) FROM (SELECT DISTINCT projection FROM position) AS known
                 LEFT JOIN position ON position.projection = known.projection AND position.partition = ?",
            )
            .bind(partition.number())
            .fetch_one(&mut *tx)
            .await?;
        // The first record to stay: the oldest that is young enough, not applied, or beyond this round.
        let stays: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM (SELECT id, appended_at_ms FROM record WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3)
             WHERE appended_at_ms >= ?4 OR id >= ?5 ORDER BY id LIMIT 1",
        )
        .bind(base)
        .bind(base + OFFSETS_PER_PARTITION)
        .bind(ROWS)
        .bind(before_ms)
        .bind(base + applied.unwrap_or(0))
        .fetch_optional(&mut *tx)
        .await?;
        let end = match stays {
            Some(id) => id,
            None => {
                let last: Option<i64> = sqlx::query_scalar(
                    "SELECT max(id) FROM (SELECT id FROM record WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3)",
                )
                .bind(base)
                .bind(base + OFFSETS_PER_PARTITION)
                .bind(ROWS)
                .fetch_one(&mut *tx)
                .await?;
                last.map_or(base, |id| id + 1)
            }
        };
        let gone = sqlx::query("DELETE FROM record WHERE id >= ? AND id < ?")
            .bind(base)
            .bind(end)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if gone > 0 {
            sqlx::query("UPDATE partition SET low_offset = ? WHERE partition = ?")
                .bind(end - base)
                .bind(partition.number())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(gone)
    }
}
