//! Overwriting records, for erasures.

use dashi_domain::position::{Offset, Partition};
use sqlx::Connection as _;
use uuid::Uuid;

use super::EmbeddedLog;
use super::file::{OFFSETS_PER_PARTITION, renew};
use crate::LogError;

impl EmbeddedLog {
    pub(crate) async fn overwrite(
        &self,
        partition: Partition,
        values: &[(Offset, Vec<u8>)],
    ) -> Result<u64, LogError> {
        let mut housekeeper = self.0.housekeeper.lock().await;
        let overwritten = async {
            // What a value no longer needs of its page is zeroed, not only left out.
            sqlx::query("PRAGMA secure_delete = ON").execute(&mut *housekeeper).await?;
            let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
            let mut overwritten = 0;
            for (offset, value) in values {
                let id = i64::from(partition.number()) * OFFSETS_PER_PARTITION + offset.number() as i64;
                overwritten += sqlx::query("UPDATE record SET value = ?, session_id = ? WHERE id = ?")
                    .bind(value.as_slice())
                    .bind(Uuid::nil().to_string())
                    .bind(id)
                    .execute(&mut *tx)
                    .await?
                    .rows_affected();
            }
            tx.commit().await?;
            Ok::<u64, sqlx::Error>(overwritten)
        }
        .await;
        if overwritten.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        overwritten.map_err(LogError::away("overwriting records"))
    }
}
