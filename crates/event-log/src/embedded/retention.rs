//! Retention: removing old records that every projection has applied.

use std::sync::Arc;

use dashi_domain::position::{Offset, Partition};
use sqlx::Connection as _;

use super::EmbeddedLog;
use super::appender::Appender;
use super::catalogue::{OFFSETS_PER_PARTITION, now_ms, renew};
use super::read::blocking;
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

    /// Records count as removed at once; their files go when nothing in them is left to read.
    pub(crate) async fn trim(&self, before_ms: i64) -> Result<u64, LogError> {
        const TRIMMING: &str = "removing records that retention no longer keeps";
        let applied = self.applied().await.map_err(LogError::away(TRIMMING))?;
        let mut removed = 0;
        for (partition, applied) in applied {
            let low = self.extent(partition).await?.low;
            if applied <= low {
                continue;
            }
            let end = self.offset_at(partition, before_ms).await?.min(applied);
            if end > low {
                self.raise_low(partition, end).await.map_err(LogError::away(TRIMMING))?;
                removed += end.number() - low.number();
            }
        }
        if removed > 0 {
            self.remove_files(1).await?;
        }
        Ok(removed)
    }

    /// The offset of each partition that every projection has reached. A log that no projection has ever read keeps everything,
    /// and a projection that has saved no checkpoint of a partition yet needs all of it.
    async fn applied(&self) -> Result<Vec<(Partition, Offset)>, sqlx::Error> {
        let rows: Vec<(u32, i64)> = sqlx::query_as(
            "SELECT partition.partition, min(coalesce(position.checkpoint, 0))
             FROM (SELECT DISTINCT projection FROM position) AS known CROSS JOIN partition
             LEFT JOIN position ON position.projection = known.projection AND position.partition = partition.partition
             GROUP BY partition.partition ORDER BY partition.partition",
        )
        .fetch_all(&self.0.readers)
        .await?;
        Ok(rows
            .into_iter()
            .map(|(partition, at)| (Partition::new(partition), Offset::new(at as u64)))
            .collect())
    }

    /// Lets a partition begin at an offset, from which it never goes back. Durable on return.
    pub(super) async fn raise_low(&self, partition: Partition, low: Offset) -> Result<(), sqlx::Error> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let first = i64::from(partition.number()) * OFFSETS_PER_PARTITION;
        let raised = async {
            let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("UPDATE partition SET low_offset = max(low_offset, ?) WHERE partition = ?")
                .bind(low.number() as i64)
                .bind(partition.number())
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM overwritten WHERE id >= ? AND id < ?")
                .bind(first)
                .bind(first + low.number() as i64)
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        }
        .await;
        if raised.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        raised?;
        drop(housekeeper);
        self.reload_low().await?;
        let segments = Arc::clone(&self.0.segments);
        blocking(move || segments.note_change()).await.map_err(sqlx::Error::Io)
    }

    /// Removes the files that have nothing left to read. The one that grows is among them if it has this many bytes, and another
    /// one is begun.
    pub(super) async fn remove_files(&self, bytes: u64) -> Result<(), LogError> {
        let (segments, low) = (Arc::clone(&self.0.segments), self.low());
        let remove = move || Appender::new(segments)?.hold(now_ms())?.remove_before(&low, bytes);
        blocking(remove).await.map_err(LogError::away("removing files without records"))
    }
}
