//! The begin and the end of a partition's tail, and its filter of sessions.

use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::SessionFilter;

use super::PostgresStore;
use crate::{Claim, ClaimError, StoreError, tail};

impl PostgresStore {
    pub(crate) async fn begin_tail(
        &self,
        claim: &Claim,
        at: Checkpoint,
        sessions: &SessionFilter,
    ) -> Result<(), ClaimError> {
        let doing = "beginning a tail";
        // One statement: the filter is written only if the tail begins.
        let begun = sqlx::query(
            "/* begin_tail */
             WITH begun AS (
                 UPDATE dashi.checkpoint SET tail_from = $4, tail_to = $4, tail_applied = 0, tail_fingerprint = NULL
                 WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND tail_to IS NULL AND checkpoint <= $4
                 RETURNING log_id, partition)
             INSERT INTO dashi.tail_sessions (log_id, partition, sessions) SELECT log_id, partition, $5 FROM begun
             ON CONFLICT (log_id, partition) DO UPDATE SET sessions = excluded.sessions",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(claim.epoch.number() as i64)
        .bind(at.offset().number() as i64)
        .bind(sessions.to_bytes())
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        if begun.rows_affected() == 1 {
            return Ok(());
        }
        let row = self.guard_row(claim).await.map_err(StoreError::away(doing))?;
        Err(tail::not_begun(claim, at, row))
    }

    pub(crate) async fn drop_tail(&self, claim: &Claim) -> Result<(), ClaimError> {
        let doing = "dropping a tail";
        let dropped = sqlx::query(
            "/* drop_tail */
             UPDATE dashi.checkpoint
             SET tail_from = NULL, tail_to = NULL, tail_fingerprint = NULL, rewound = rewound + tail_applied, tail_applied = 0
             WHERE log_id = $1 AND partition = $2 AND epoch = $3",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(claim.epoch.number() as i64)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        if dropped.rows_affected() == 1 {
            return Ok(());
        }
        let row = self.guard_row(claim).await.map_err(StoreError::away(doing))?;
        claim.resume(row).map(drop)
    }

    pub(crate) async fn tail_sessions(
        &self,
        log: &LogId,
        partition: Partition,
    ) -> Result<Option<SessionFilter>, StoreError> {
        let doing = "reading the sessions of a backlog";
        let bytes: Option<Vec<u8>> = sqlx::query_scalar(
            "/* tail_sessions */ SELECT sessions FROM dashi.tail_sessions WHERE log_id = $1 AND partition = $2",
        )
        .bind(log.as_str())
        .bind(partition.number() as i32)
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        bytes.map(tail::filter).transpose().map_err(StoreError::away(doing))
    }
}
