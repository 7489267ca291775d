//! The begin and the end of a partition's tail, and its filter of sessions.

use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::SessionFilter;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, guard_row};
use crate::{Claim, ClaimError, StoreError, tail};

impl SqliteStore {
    pub(crate) async fn begin_tail(
        &self,
        claim: &Claim,
        at: Checkpoint,
        sessions: &SessionFilter,
    ) -> Result<(), ClaimError> {
        let doing = "beginning a tail";
        let mut writer = self.0.writer.alone().await;
        let begun = begin(&mut writer, claim, at, sessions).await;
        match begun {
            Ok(true) => Ok(()),
            Ok(false) => {
                let row = guard_row(&mut writer, claim).await.map_err(StoreError::away(doing))?;
                Err(tail::not_begun(claim, at, row))
            }
            Err(error) => {
                writer.renew().await;
                Err(StoreError::away(doing)(error).into())
            }
        }
    }

    pub(crate) async fn drop_tail(&self, claim: &Claim) -> Result<(), ClaimError> {
        let mut writer = self.0.writer.alone().await;
        let dropped = sqlx::query(
            "UPDATE dashi_checkpoint
             SET tail_from = NULL, tail_to = NULL, tail_fingerprint = NULL, rewound = rewound + tail_applied, tail_applied = 0
             WHERE log_id = ? AND partition = ? AND epoch = ?",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(claim.epoch.number() as i64)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("dropping a tail"))?;
        if dropped.rows_affected() == 1 {
            return Ok(());
        }
        let row = guard_row(&mut writer, claim).await.map_err(StoreError::away("dropping a tail"))?;
        claim.resume(row).map(drop)
    }

    pub(crate) async fn tail_sessions(
        &self,
        log: &LogId,
        partition: Partition,
    ) -> Result<Option<SessionFilter>, StoreError> {
        let doing = "reading the sessions of a backlog";
        let bytes: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sessions FROM dashi_tail_sessions WHERE log_id = ? AND partition = ?")
                .bind(log.as_str())
                .bind(partition.number())
                .fetch_optional(&self.0.readers)
                .await
                .map_err(StoreError::away(doing))?;
        bytes.map(tail::filter).transpose().map_err(StoreError::away(doing))
    }
}

async fn begin(
    writer: &mut SqliteConnection,
    claim: &Claim,
    at: Checkpoint,
    sessions: &SessionFilter,
) -> Result<bool, sqlx::Error> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let begun = sqlx::query(
        "UPDATE dashi_checkpoint SET tail_from = ?1, tail_to = ?1, tail_applied = 0, tail_fingerprint = NULL
         WHERE log_id = ?2 AND partition = ?3 AND epoch = ?4 AND tail_to IS NULL AND checkpoint <= ?1",
    )
    .bind(at.offset().number() as i64)
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(claim.epoch.number() as i64)
    .execute(&mut *tx)
    .await?;
    if begun.rows_affected() == 0 {
        tx.rollback().await?;
        return Ok(false);
    }
    sqlx::query("INSERT OR REPLACE INTO dashi_tail_sessions (log_id, partition, sessions) VALUES (?, ?, ?)")
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(sessions.to_bytes())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(true)
}
