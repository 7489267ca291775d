//! Layouts of logs on Kafka, and the processes that append to them.

use dashi_domain::layout::{Growth, Layout};
use dashi_domain::position::LogId;
use uuid::Uuid;

use super::PostgresStore;
use crate::layout::{LEASED_SILENT_S, LayoutColumns, SILENT_S, stored};
use crate::{Appender, AppenderState, StoreError, StoredLayout};

const READING: &str = "reading the log's layouts";
const NOTING: &str = "noting a layout of the log";
const APPENDERS: &str = "noting which processes append to the log";

impl PostgresStore {
    pub(crate) async fn layouts(&self, log: &LogId) -> Result<Vec<StoredLayout>, StoreError> {
        let rows: Vec<LayoutColumns> = sqlx::query_as(
            "/* layouts */
             SELECT version::bigint, partitions::bigint, state, (extract(epoch FROM changed_at) * 1000)::bigint,
                    (extract(epoch FROM clock_timestamp() - changed_at) * 1000)::bigint,
                    expires_at <= clock_timestamp()
             FROM dashi.layout WHERE log_id = $1 ORDER BY version",
        )
        .bind(log.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(READING))?;
        Ok(rows.into_iter().map(stored).collect())
    }

    pub(crate) async fn note_first_layout(&self, log: &LogId, partitions: u32) -> Result<(), StoreError> {
        sqlx::query(
            "/* note_first_layout */
             INSERT INTO dashi.layout (log_id, version, partitions, state) VALUES ($1, 0, $2, 'open')
             ON CONFLICT DO NOTHING",
        )
        .bind(log.as_str())
        .bind(partitions as i32)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(StoreError::away(NOTING))
    }

    pub(crate) async fn begin_growth(
        &self,
        log: &LogId,
        layout: Layout,
        expires_s: u32,
    ) -> Result<bool, StoreError> {
        let begun = sqlx::query(
            "/* begin_growth */
             INSERT INTO dashi.layout (log_id, version, partitions, state, expires_at)
             VALUES ($1, $2, $3, 'draining', clock_timestamp() + make_interval(secs => $4))
             ON CONFLICT DO NOTHING",
        )
        .bind(log.as_str())
        .bind(layout.version as i32)
        .bind(layout.partitions as i32)
        .bind(f64::from(expires_s))
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(NOTING))?;
        Ok(begun.rows_affected() == 1)
    }

    pub(crate) async fn commit_growth(&self, log: &LogId, version: u32) -> Result<bool, StoreError> {
        let committed = sqlx::query(
            "/* commit_growth */
             UPDATE dashi.layout SET state = 'committed', changed_at = clock_timestamp()
             WHERE log_id = $1 AND version = $2 AND state = 'draining' AND NOT EXISTS (
                 SELECT 1 FROM dashi.appender AS a WHERE a.log_id = $1 AND a.acknowledged < $2
                 AND a.seen_at >= clock_timestamp()
                     - make_interval(secs => CASE WHEN a.keeps_lease THEN $3 ELSE $4 END))",
        )
        .bind(log.as_str())
        .bind(version as i32)
        .bind(LEASED_SILENT_S as f64)
        .bind(SILENT_S as f64)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(NOTING))?;
        Ok(committed.rows_affected() == 1)
    }

    pub(crate) async fn move_growth(
        &self,
        log: &LogId,
        version: u32,
        from: Growth,
        to: Growth,
    ) -> Result<bool, StoreError> {
        let moved = sqlx::query(
            "/* move_growth */
             UPDATE dashi.layout SET state = $4, changed_at = clock_timestamp()
             WHERE log_id = $1 AND version = $2 AND state = $3",
        )
        .bind(log.as_str())
        .bind(version as i32)
        .bind(from.name())
        .bind(to.name())
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(NOTING))?;
        Ok(moved.rows_affected() == 1)
    }

    pub(crate) async fn note_appender(
        &self,
        appender: &Appender,
        acknowledged: u32,
    ) -> Result<(), StoreError> {
        let noted = sqlx::query(
            "/* note_appender */
             UPDATE dashi.appender SET acknowledged = $2, seen_at = clock_timestamp() WHERE run_id = $1",
        )
        .bind(appender.run_id)
        .bind(acknowledged as i32)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away(APPENDERS))?;
        if noted.rows_affected() == 1 {
            return Ok(());
        }
        sqlx::query(
            "/* add_appender */
             WITH gone AS (DELETE FROM dashi.appender WHERE log_id = $2 AND run_id <> $1
                 AND (place = $4 OR seen_at < clock_timestamp() - make_interval(secs => $7)))
             INSERT INTO dashi.appender (run_id, log_id, name, place, keeps_lease, acknowledged)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(appender.run_id)
        .bind(appender.log.as_str())
        .bind(&appender.name)
        .bind(&appender.place)
        .bind(appender.keeps_lease)
        .bind(acknowledged as i32)
        .bind(SILENT_S as f64)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(StoreError::away(APPENDERS))
    }

    pub(crate) async fn forget_appender(&self, run_id: Uuid) -> Result<bool, StoreError> {
        let gone = sqlx::query("/* forget_appender */ DELETE FROM dashi.appender WHERE run_id = $1")
            .bind(run_id)
            .execute(&self.pool)
            .await
            .map_err(StoreError::away(APPENDERS))?;
        Ok(gone.rows_affected() == 1)
    }

    pub(crate) async fn appenders(&self, log: &LogId) -> Result<Vec<AppenderState>, StoreError> {
        let rows: Vec<(Uuid, String, bool, i32, i64)> = sqlx::query_as(
            "/* appenders */
             SELECT run_id, name, keeps_lease, acknowledged,
                    (extract(epoch FROM clock_timestamp() - seen_at) * 1000)::bigint
             FROM dashi.appender WHERE log_id = $1 ORDER BY name, run_id",
        )
        .bind(log.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(READING))?;
        let state = |(run_id, name, keeps_lease, acknowledged, silent_ms)| AppenderState {
            run_id,
            name,
            keeps_lease,
            acknowledged: acknowledged as u32,
            silent_ms,
        };
        Ok(rows.into_iter().map(state).collect())
    }
}
