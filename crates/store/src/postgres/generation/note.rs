//! Notes in the registry of generations.

use dashi_domain::fold::PROJECTION_VERSION;

use super::super::PostgresStore;
use crate::StoreError;

impl PostgresStore {
    pub(crate) async fn note_rules(&self, rules: &str) -> Result<(), StoreError> {
        let doing = "noting the rules of the live tables";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let noted = sqlx::query(
            "UPDATE dashi.generation SET rules = $1
             WHERE state = 'live' AND rules = '' AND projection_version = $2
               AND NOT EXISTS (SELECT 1 FROM dashi.checkpoint WHERE checkpoint > 0)",
        )
        .bind(rules)
        .bind(PROJECTION_VERSION as i32)
        .execute(&mut session)
        .await;
        noted.map_err(StoreError::away(doing))?;
        session.commit().await.map_err(StoreError::away(doing))
    }

    pub(crate) async fn note_replay_rate(&self, number: u32, per_s: u64) -> Result<(), StoreError> {
        let doing = "noting the rate of a replay";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let noted = sqlx::query("UPDATE dashi.generation SET replayed_per_s = $2 WHERE number = $1")
            .bind(number as i32)
            .bind(i64::try_from(per_s).unwrap_or(i64::MAX))
            .execute(&mut session)
            .await;
        noted.map_err(StoreError::away(doing))?;
        session.commit().await.map_err(StoreError::away(doing))
    }
}
