//! Counts by the hour.

use dashi_domain::fold::Changes;
use dashi_domain::glance::HourKey;
use dashi_domain::position::LogId;
use uuid::Uuid;

use super::PostgresStore;
use super::pool::Session;
use crate::audit::{CountColumns, partition_counts};
use crate::spool::SpoolColumns;
use crate::{Claim, CollectorRun, PartitionCounts, SpoolNote, StoreError, Tally};

/// Adds the outcomes of a batch to those of their hours, in the commit's transaction.
pub(super) async fn count_hours(
    connection: &mut Session,
    claim: &Claim,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let hours = &changes.hours;
    if hours.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* count_hours */
         INSERT INTO dashi.hour_count AS h (log_id, partition, hour, source_id, applied, duplicate, dead)
         SELECT $1, $2, t.hour, t.source_id, t.applied, t.duplicate, greatest(t.dead, 0)
         FROM unnest($3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[])
             AS t (hour, source_id, applied, duplicate, dead)
         ON CONFLICT (log_id, partition, hour, source_id) DO UPDATE
         SET applied = h.applied + excluded.applied, duplicate = h.duplicate + excluded.duplicate,
             dead = CASE WHEN $8 THEN greatest(h.dead - excluded.applied - excluded.duplicate, 0)
                         ELSE h.dead + excluded.dead END",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(column!(hours, hour => hour.0.hour_ms))
    .bind(column!(hours, hour => hour.0.source_id))
    .bind(column!(hours, hour => changes.added(hour.1)[0]))
    .bind(column!(hours, hour => changes.added(hour.1)[1]))
    .bind(column!(hours, hour => changes.added(hour.1)[2]))
    // Letters that were tried again were dead before. Some were set aside before there was this table.
    .bind(changes.tried.is_some())
    .execute(connection)
    .await?;
    Ok(())
}

impl PostgresStore {
    pub(crate) async fn counts(&self, log: &LogId) -> Result<Vec<PartitionCounts>, StoreError> {
        let doing = "reading its counts";
        // One statement, so that checkpoints and counts are of one moment.
        let rows: Vec<CountColumns<Uuid>> = sqlx::query_as(
            "SELECT c.partition::bigint, c.checkpoint, c.applied, c.duplicate, c.dead, c.rewound, c.missing,
                    c.tail_from, c.tail_to, c.tail_applied,
                    h.hour, h.source_id, h.applied, h.duplicate, h.dead
             FROM dashi.checkpoint AS c LEFT JOIN dashi.hour_count AS h
                 ON h.log_id = c.log_id AND h.partition = c.partition
             WHERE c.log_id = $1 ORDER BY c.partition, h.hour, h.source_id",
        )
        .bind(log.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        partition_counts(rows, Ok).map_err(StoreError::away(doing))
    }

    pub(crate) async fn note_tallies(&self, run: &CollectorRun, tallies: &[Tally]) -> Result<(), StoreError> {
        // Greatest: of two writes of which one was late, the later count.
        sqlx::query(
            "/* note_tallies */
             INSERT INTO dashi.tally AS y (log_id, run_id, collector, hour, source_id, subject, outcome, count)
             SELECT $1, $2, $3, t.*
             FROM unnest($4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::bigint[]) AS t
             ON CONFLICT (log_id, run_id, hour, source_id, subject, outcome) DO UPDATE
             SET count = greatest(y.count, excluded.count), noted_at = clock_timestamp()",
        )
        .bind(run.log.as_str())
        .bind(run.run_id)
        .bind(run.collector.as_str())
        .bind(column!(tallies, tally => tally.key.hour_ms))
        .bind(column!(tallies, tally => tally.key.source_id))
        .bind(column!(tallies, tally => tally.subject.as_str()))
        .bind(column!(tallies, tally => tally.outcome.as_str()))
        .bind(column!(tallies, tally => tally.count as i64))
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("noting a collector's tallies"))?;
        Ok(())
    }

    pub(crate) async fn tallies(&self, log: &LogId) -> Result<Vec<Tally>, StoreError> {
        let rows: Vec<(i64, Uuid, String, String, i64)> = sqlx::query_as(
            "SELECT hour, source_id, subject, outcome, sum(count)::bigint FROM dashi.tally WHERE log_id = $1
             GROUP BY hour, source_id, subject, outcome ORDER BY hour, source_id, subject, outcome",
        )
        .bind(log.as_str())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("reading the collectors' tallies"))?;
        let tally = |(hour_ms, source_id, subject, outcome, count): (i64, Uuid, String, String, i64)| Tally {
            key: HourKey { hour_ms, source_id },
            subject,
            outcome,
            count: count as u64,
        };
        Ok(rows.into_iter().map(tally).collect())
    }

    pub(crate) async fn note_spool(&self, note: &SpoolNote) -> Result<(), StoreError> {
        let away = StoreError::away("noting what a spool holds");
        if note.is_empty() {
            let gone = sqlx::query("DELETE FROM dashi.spool WHERE spool_id = $1").bind(&note.spool_id);
            return gone.execute(&self.pool).await.map(drop).map_err(away);
        }
        sqlx::query(
            "/* note_spool */
             INSERT INTO dashi.spool (spool_id, log_id, collector, directory, state, records, bytes, set_aside, oldest_at,
                 full_because, trouble, hours)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (spool_id) DO UPDATE
             SET log_id = excluded.log_id, collector = excluded.collector, directory = excluded.directory,
                 state = excluded.state, records = excluded.records, bytes = excluded.bytes,
                 set_aside = excluded.set_aside, oldest_at = excluded.oldest_at,
                 full_because = excluded.full_because, trouble = excluded.trouble, hours = excluded.hours,
                 noted_at = clock_timestamp()",
        )
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
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(away)
    }

    pub(crate) async fn spools(&self) -> Result<Vec<SpoolNote>, StoreError> {
        let rows: Vec<SpoolColumns> = sqlx::query_as(
            "SELECT spool_id, log_id, collector, directory, state, records, bytes, set_aside, oldest_at, full_because,
                    trouble, hours, (extract(epoch FROM noted_at) * 1000)::bigint
             FROM dashi.spool ORDER BY collector, spool_id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("reading what the spools hold"))?;
        Ok(rows.into_iter().map(SpoolNote::from).collect())
    }
}
