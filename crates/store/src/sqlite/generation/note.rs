//! Notes in the registry of generations.

use dashi_domain::fold::PROJECTION_VERSION;

use super::super::SqliteStore;
use crate::StoreError;

impl SqliteStore {
    pub(crate) async fn note_rules(&self, rules: &str) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        sqlx::query(
            "UPDATE dashi_generation SET rules = ?
             WHERE state = 'live' AND rules = '' AND projection_version = ?
               AND NOT EXISTS (SELECT 1 FROM dashi_checkpoint WHERE checkpoint > 0)",
        )
        .bind(rules)
        .bind(PROJECTION_VERSION)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("noting the rules of the live tables"))?;
        Ok(())
    }

    pub(crate) async fn note_replay_rate(&self, number: u32, per_s: u64) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        sqlx::query("UPDATE dashi_generation SET replayed_per_s = ? WHERE number = ?")
            .bind(i64::try_from(per_s).unwrap_or(i64::MAX))
            .bind(number)
            .execute(&mut *writer)
            .await
            .map_err(StoreError::away("noting the rate of a replay"))?;
        Ok(())
    }
}
