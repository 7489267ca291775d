//! Layouts of logs on Kafka, and the processes that append to them.

use dashi_domain::layout::{Growth, Layout};
use dashi_domain::position::LogId;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{NOW_MS, SqliteStore, parse_uuid, text};
use crate::layout::{LEASED_SILENT_S, LayoutColumns, SILENT_S, stored};
use crate::{Appender, AppenderState, StoreError, StoredLayout};

const READING: &str = "reading the log's layouts";
const NOTING: &str = "noting a layout of the log";
const APPENDERS: &str = "noting which processes append to the log";

impl SqliteStore {
    /// Runs statements on the writing connection, which is replaced if that fails.
    async fn change<T>(
        &self,
        doing: &'static str,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut writer = self.0.writer.alone().await;
        let changed = change(&mut writer).await;
        if changed.is_err() {
            writer.renew().await;
        }
        changed.map_err(StoreError::away(doing))
    }

    pub(crate) async fn layouts(&self, log: &LogId) -> Result<Vec<StoredLayout>, StoreError> {
        let rows: Vec<LayoutColumns> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT version, partitions, state, changed_at, {NOW_MS} - changed_at, expires_at <= {NOW_MS}
             FROM dashi_layout WHERE log_id = ? ORDER BY version"
        )))
        .bind(log.as_str())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(READING))?;
        Ok(rows.into_iter().map(stored).collect())
    }

    pub(crate) async fn note_first_layout(&self, log: &LogId, partitions: u32) -> Result<(), StoreError> {
        self.change(NOTING, async |connection| {
            sqlx::query(AssertSqlSafe(format!(
                "INSERT INTO dashi_layout (log_id, version, partitions, state, changed_at, expires_at)
                 VALUES (?, 0, ?, 'open', {NOW_MS}, {NOW_MS}) ON CONFLICT DO NOTHING"
            )))
            .bind(log.as_str())
            .bind(partitions)
            .execute(connection)
            .await
            .map(drop)
        })
        .await
    }

    pub(crate) async fn begin_growth(
        &self,
        log: &LogId,
        layout: Layout,
        expires_s: u32,
    ) -> Result<bool, StoreError> {
        self.change(NOTING, async |connection| {
            let begun = sqlx::query(AssertSqlSafe(format!(
                "INSERT INTO dashi_layout (log_id, version, partitions, state, changed_at, expires_at)
                 VALUES (?, ?, ?, 'draining', {NOW_MS}, {NOW_MS} + ? * 1000) ON CONFLICT DO NOTHING"
            )))
            .bind(log.as_str())
            .bind(layout.version)
            .bind(layout.partitions)
            .bind(expires_s)
            .execute(connection)
            .await?;
            Ok(begun.rows_affected() == 1)
        })
        .await
    }

    pub(crate) async fn commit_growth(&self, log: &LogId, version: u32) -> Result<bool, StoreError> {
        self.change(NOTING, async |connection| {
            let committed = sqlx::query(AssertSqlSafe(format!(
                "UPDATE dashi_layout SET state = 'committed', changed_at = {NOW_MS}
                 WHERE log_id = ?1 AND version = ?2 AND state = 'draining' AND NOT EXISTS (
                     SELECT 1 FROM dashi_appender AS a WHERE a.log_id = ?1 AND a.acknowledged < ?2
                     AND a.seen_at >= {NOW_MS} - 1000 * CASE WHEN a.keeps_lease THEN ?3 ELSE ?4 END)"
            )))
            .bind(log.as_str())
            .bind(version)
            .bind(LEASED_SILENT_S)
            .bind(SILENT_S)
            .execute(connection)
            .await?;
            Ok(committed.rows_affected() == 1)
        })
        .await
    }

    pub(crate) async fn move_growth(
        &self,
        log: &LogId,
        version: u32,
        from: Growth,
        to: Growth,
    ) -> Result<bool, StoreError> {
        self.change(NOTING, async |connection| {
            let moved = sqlx::query(AssertSqlSafe(format!(
                "UPDATE dashi_layout SET state = ?, changed_at = {NOW_MS}
                 WHERE log_id = ? AND version = ? AND state = ?"
            )))
            .bind(to.name())
            .bind(log.as_str())
            .bind(version)
            .bind(from.name())
            .execute(connection)
            .await?;
            Ok(moved.rows_affected() == 1)
        })
        .await
    }

    pub(crate) async fn note_appender(
        &self,
        appender: &Appender,
        acknowledged: u32,
    ) -> Result<(), StoreError> {
        self.change(APPENDERS, async |connection| {
            let noted = sqlx::query(AssertSqlSafe(format!(
                "UPDATE dashi_appender SET acknowledged = ?, seen_at = {NOW_MS} WHERE run_id = ?"
            )))
            .bind(acknowledged)
            .bind(text(appender.run_id))
            .execute(&mut *connection)
            .await?;
            if noted.rows_affected() == 1 {
                return Ok(());
            }
            sqlx::query(AssertSqlSafe(format!(
                "DELETE FROM dashi_appender WHERE log_id = ? AND (place = ? OR seen_at < {NOW_MS} - 1000 * ?)"
            )))
            .bind(appender.log.as_str())
            .bind(&appender.place)
            .bind(SILENT_S)
            .execute(&mut *connection)
            .await?;
            sqlx::query(AssertSqlSafe(format!(
                "INSERT INTO dashi_appender (run_id, log_id, name, place, keeps_lease, acknowledged, seen_at)
                 VALUES (?, ?, ?, ?, ?, ?, {NOW_MS}) ON CONFLICT DO NOTHING"
            )))
            .bind(text(appender.run_id))
            .bind(appender.log.as_str())
            .bind(&appender.name)
            .bind(&appender.place)
            .bind(appender.keeps_lease)
            .bind(acknowledged)
            .execute(connection)
            .await
            .map(drop)
        })
        .await
    }

    pub(crate) async fn forget_appender(&self, run_id: Uuid) -> Result<bool, StoreError> {
        self.change(APPENDERS, async |connection| {
            let gone = sqlx::query("DELETE FROM dashi_appender WHERE run_id = ?")
                .bind(text(run_id))
                .execute(connection)
                .await?;
            Ok(gone.rows_affected() == 1)
        })
        .await
    }

    pub(crate) async fn appenders(&self, log: &LogId) -> Result<Vec<AppenderState>, StoreError> {
        let rows: Vec<(String, String, bool, u32, i64)> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT run_id, name, keeps_lease, acknowledged, {NOW_MS} - seen_at
             FROM dashi_appender WHERE log_id = ? ORDER BY name, run_id"
        )))
        .bind(log.as_str())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(READING))?;
        let state = |(run_id, name, keeps_lease, acknowledged, silent_ms): (String, _, _, _, _)| {
            Ok(AppenderState {
                run_id: parse_uuid(&run_id).map_err(StoreError::away(READING))?,
                name,
                keeps_lease,
                acknowledged,
                silent_ms,
            })
        };
        rows.into_iter().map(state).collect()
    }
}
