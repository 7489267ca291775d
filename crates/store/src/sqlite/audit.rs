//! Counts by the hour.

use dashi_domain::fold::Changes;
use dashi_domain::glance::HourKey;
use dashi_domain::position::LogId;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::{NOW_MS, SqliteStore, parse_uuid, text};
use crate::audit::{CountColumns, partition_counts};
use crate::spool::SpoolColumns;
use crate::{Claim, CollectorRun, PartitionCounts, SpoolNote, StoreError, Tally};

/// Adds the outcomes of a batch to those of their hours, in the commit's transaction. A batch has few hours and websites.
pub(super) async fn count_hours(
    connection: &mut SqliteConnection,
    claim: &Claim,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    for (key, outcomes) in &changes.hours {
        // Letters that were tried again were dead before. Some were set aside before there was this table.
        let [applied, duplicate, dead] = changes.added(outcomes);
        sqlx::query(
            "INSERT INTO dashi_hour_count (log_id, partition, hour, source_id, applied, duplicate, dead)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, max(?7, 0))
             ON CONFLICT (log_id, partition, hour, source_id) DO UPDATE
             SET applied = applied + excluded.applied, duplicate = duplicate + excluded.duplicate,
                 dead = max(dead + ?7, 0)",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(key.hour_ms)
        .bind(text(key.source_id))
        .bind(applied)
        .bind(duplicate)
        .bind(dead)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl SqliteStore {
    pub(crate) async fn counts(&self, log: &LogId) -> Result<Vec<PartitionCounts>, StoreError> {
        let doing = "reading its counts";
        // One statement, so that checkpoints and counts are of one moment.
        let rows: Vec<CountColumns<String>> = sqlx::query_as(
            "SELECT c.partition, c.checkpoint, c.applied, c.duplicate, c.dead, c.rewound, c.missing,
                    c.tail_from, c.tail_to, c.tail_applied,
                    h.hour, h.source_id, h.applied, h.duplicate, h.dead
             FROM dashi_checkpoint AS c LEFT JOIN dashi_hour_count AS h
                 ON h.log_id = c.log_id AND h.partition = c.partition
             WHERE c.log_id = ? ORDER BY c.partition, h.hour, h.source_id",
        )
        .bind(log.as_str())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        partition_counts(rows, |id| parse_uuid(&id)).map_err(StoreError::away(doing))
    }

    pub(crate) async fn note_tallies(&self, run: &CollectorRun, tallies: &[Tally]) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        let noted = async {
            let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
            for tally in tallies {
                // The greater one: of two writes of which one was late, the later count.
                sqlx::query(AssertSqlSafe(format!(
                    "INSERT INTO dashi_tally
                        (log_id, run_id, collector, hour, source_id, subject, outcome, count, noted_at)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, {NOW_MS})
                     ON CONFLICT (log_id, run_id, hour, source_id, subject, outcome) DO UPDATE
                     SET count = max(count, excluded.count), noted_at = excluded.noted_at"
                )))
                .bind(run.log.as_str())
                .bind(text(run.run_id))
                .bind(run.collector.as_str())
                .bind(tally.key.hour_ms)
                .bind(text(tally.key.source_id))
                .bind(tally.subject.as_str())
                .bind(tally.outcome.as_str())
                .bind(tally.count as i64)
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        }
        .await;
        if noted.is_err() {
            writer.renew().await;
        }
        noted.map_err(StoreError::away("noting a collector's tallies"))
    }

    pub(crate) async fn tallies(&self, log: &LogId) -> Result<Vec<Tally>, StoreError> {
        let doing = "reading the collectors' tallies";
        let rows: Vec<(i64, String, String, String, i64)> = sqlx::query_as(
            "SELECT hour, source_id, subject, outcome, sum(count) FROM dashi_tally WHERE log_id = ?
             GROUP BY hour, source_id, subject, outcome ORDER BY hour, source_id, subject, outcome",
        )
        .bind(log.as_str())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        let mut tallies = Vec::with_capacity(rows.len());
        for (hour_ms, source, subject, outcome, count) in rows {
            let source_id = parse_uuid(&source).map_err(StoreError::away(doing))?;
            let key = HourKey { hour_ms, source_id };
            tallies.push(Tally { key, subject, outcome, count: count as u64 });
        }
        Ok(tallies)
    }

    pub(crate) async fn note_spool(&self, note: &SpoolNote) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        let noted = if note.is_empty() {
            sqlx::query("DELETE FROM dashi_spool WHERE spool_id = ?")
                .bind(&note.spool_id)
                .execute(&mut *writer)
                .await
        } else {
            sqlx::query(AssertSqlSafe(format!(
                "INSERT OR REPLACE INTO dashi_spool (spool_id, log_id, collector, directory, state, records, bytes,
                     set_aside, oldest_at, full_because, trouble, hours, noted_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {NOW_MS})"
            )))
            .bind(&note.spool_id)
            .bind(note.log.as_str())
            .bind(&note.collector)
            .bind(&note.directory)
            .bind(&note.state)
            .bind(note.records as i64)
            .bind(note.bytes as i64)
            .bind(note.set_aside as i64)
            .bind(note.oldest_ms)
            .bind(&note.full)
            .bind(&note.trouble)
            .bind(note.hours_text())
            .execute(&mut *writer)
            .await
        };
        if noted.is_err() {
            writer.renew().await;
        }
        noted.map(drop).map_err(StoreError::away("noting what a spool holds"))
    }

    pub(crate) async fn spools(&self) -> Result<Vec<SpoolNote>, StoreError> {
        let rows: Vec<SpoolColumns> = sqlx::query_as(
            "SELECT spool_id, log_id, collector, directory, state, records, bytes, set_aside, oldest_at, full_because,
                    trouble, hours, noted_at
             FROM dashi_spool ORDER BY collector, spool_id",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away("reading what the spools hold"))?;
        Ok(rows.into_iter().map(SpoolNote::from).collect())
    }
}
