//! Dead letters: reading them, and their part in a commit.

use dashi_domain::dead_letters::{LetterAction, LetterCommand};
use dashi_domain::fold::Changes;
use dashi_domain::glance::Glance;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::record::Record;
use dashi_domain::rows::DeadLetter;
use uuid::Uuid;

use super::PostgresStore;
use super::pool::Session;
use crate::letters::{LetterColumns, set_aside, settled};
use crate::{Claim, LetterCounts, LetterFilter, LetterPlace, LetterToTry, SetAside, StoreError};

impl PostgresStore {
    pub(crate) async fn dead_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Vec<SetAside>, StoreError> {
        let doing = "listing its dead letters";
        let reason = match &filter.reason {
            Some(reason) => Some(self.stored_text(reason).await?.into_owned()),
            None => None,
        };
        let rows: Vec<LetterColumns<Uuid>> = sqlx::query_as(
            "/* dead_letters */
             SELECT log_id, partition::bigint, record_offset, reason,
                    (extract(epoch FROM set_aside_at) * 1000)::bigint, record, appended_at, tries::bigint, tried_by,
                    tried_at, discarded_at, parking::bigint
             FROM dashi.dead_letter
             WHERE ($1::text IS NULL OR log_id = $1) AND ($2::integer IS NULL OR partition = $2)
               AND ($3::bigint IS NULL OR record_offset = $3)
               AND ($4::bytea IS NULL OR position($4 IN record) > 0)
               AND ($5::text IS NULL OR position($5 IN reason) > 0)
               AND ($6::bigint IS NULL OR set_aside_at >= dashi.at_ms($6))
               AND ($7::bigint IS NULL OR set_aside_at < dashi.at_ms($7))
               AND ($8::boolean IS NULL OR (discarded_at IS NOT NULL) = $8)
               AND ($9::text IS NULL OR (log_id, partition, record_offset) > ($9, $10::integer, $11::bigint))
             ORDER BY log_id, partition, record_offset LIMIT $12",
        )
        .bind(filter.log.as_ref().map(|log| log.as_str()))
        .bind(filter.partition.map(|partition| partition.number() as i32))
        .bind(filter.offset.map(|offset| offset.number() as i64))
        .bind(filter.record.as_ref().map(|text| text.as_bytes()))
        .bind(reason)
        .bind(filter.since_ms)
        .bind(filter.until_ms)
        .bind(filter.discarded)
        .bind(after.map(|place| place.log.as_str()))
        .bind(after.map(|place| place.partition.number() as i32))
        .bind(after.map(|place| place.offset.number() as i64))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        rows.into_iter()
            .map(|row| set_aside(row, Ok))
            .collect::<Result<_, _>>()
            .map_err(StoreError::away(doing))
    }

    pub(crate) async fn letter_counts(&self) -> Result<Vec<LetterCounts>, StoreError> {
        let rows: Vec<(String, i32, i64, i64, i64, i64)> = sqlx::query_as(
            "/* letter_counts */
             SELECT log_id, partition,
                    count(*) FILTER (WHERE discarded_at IS NULL AND parking < 2),
                    count(*) FILTER (WHERE discarded_at IS NOT NULL),
                    count(*) FILTER (WHERE discarded_at IS NULL AND parking = 2),
                    count(DISTINCT session_id) FILTER (WHERE discarded_at IS NULL AND parking = 1)
             FROM dashi.dead_letter GROUP BY log_id, partition ORDER BY log_id, partition",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("counting its dead letters"))?;
        let counts = |(log, partition, open, discarded, waiting, held): (String, i32, i64, i64, i64, i64)| {
            LetterCounts {
                log: LogId::new(log),
                partition: Partition::new(partition as u32),
                open: open as u64,
                discarded: discarded as u64,
                waiting: waiting as u64,
                held_sessions: held as u64,
            }
        };
        Ok(rows.into_iter().map(counts).collect())
    }

    pub(crate) async fn letters_to_try(
        &self,
        claim: &Claim,
        command: &LetterCommand,
        limit: u32,
    ) -> Result<Vec<LetterToTry>, StoreError> {
        let rows: Vec<LetterRow> = sqlx::query_as(
            "/* letters_to_try */
             SELECT record_offset, coalesce(appended_at, (extract(epoch FROM set_aside_at) * 1000)::bigint), record,
                    parking = 1 AND discarded_at IS NULL
             FROM dashi.dead_letter
             WHERE log_id = $1 AND partition = $2 AND record_offset = ANY($3) AND tried_by IS DISTINCT FROM $4
               AND (parking < 2 OR discarded_at IS NOT NULL)
             ORDER BY record_offset LIMIT $5",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(numbers(&command.offsets))
        .bind(command.command_id)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("reading dead letters"))?;
        Ok(rows.into_iter().map(|row| to_try(claim, row)).collect())
    }

    pub(crate) async fn released_letters(
        &self,
        claim: &Claim,
        limit: u32,
    ) -> Result<Vec<LetterToTry>, StoreError> {
        let rows: Vec<LetterRow> = sqlx::query_as(
            "/* released_letters */
             SELECT record_offset, coalesce(appended_at, (extract(epoch FROM set_aside_at) * 1000)::bigint), record, true
             FROM dashi.dead_letter AS l
             WHERE record_offset = (SELECT min(w.record_offset) FROM dashi.dead_letter AS w
                   WHERE w.log_id = l.log_id AND w.partition = l.partition AND w.session_id = l.session_id
                     AND w.parking > 0 AND w.discarded_at IS NULL)
               AND log_id = $1 AND partition = $2 AND parking = 2
             ORDER BY record_offset LIMIT $3",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("reading dead letters that nothing holds up"))?;
        Ok(rows.into_iter().map(|row| to_try(claim, row)).collect())
    }

    pub(crate) async fn held_sessions(&self, claim: &Claim) -> Result<Vec<(Uuid, Offset, u32)>, StoreError> {
        let rows: Vec<(Uuid, i64, i64)> = sqlx::query_as(
            "/* held_sessions */
             SELECT session_id, min(record_offset), count(*) FILTER (WHERE parking = 2) FROM dashi.dead_letter
             WHERE log_id = $1 AND partition = $2 AND parking > 0 AND discarded_at IS NULL GROUP BY session_id",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("reading which sessions wait"))?;
        let held = |(session, offset, waiting): (Uuid, i64, i64)| {
            (session, Offset::new(offset as u64), waiting as u32)
        };
        Ok(rows.into_iter().map(held).collect())
    }
}

/// A letter to be tried: offset, time of its append, record, whether it is in order.
type LetterRow = (i64, i64, Vec<u8>, bool);

fn to_try(claim: &Claim, (offset, appended_at_ms, value, in_order): LetterRow) -> LetterToTry {
    let (partition, offset) = (claim.partition, Offset::new(offset as u64));
    LetterToTry { record: Record { partition, offset, appended_at_ms, value }, in_order }
}

fn numbers(offsets: &[Offset]) -> Vec<i64> {
    offsets.iter().map(|offset| offset.number() as i64).collect()
}

/// Of letters that were tried again: takes away those that are no longer dead, and writes the new reasons of the others.
/// Returns whether all of them were there as they were read.
pub(super) async fn settle_tried(
    connection: &mut Session,
    claim: &Claim,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let Some(tried) = &changes.tried else { return Ok(true) };
    let deleted = sqlx::query(
        "/* settle_letters */
         DELETE FROM dashi.dead_letter
         WHERE log_id = $1 AND partition = $2 AND record_offset = ANY($3) AND tried_by IS DISTINCT FROM $4",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(numbers(&settled(tried, changes)))
    .bind(tried.command_id)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let dead = &changes.dead_letters;
    let updated = sqlx::query(
        "/* try_letters */
         UPDATE dashi.dead_letter AS l
         SET reason = t.reason, tries = l.tries + 1, tried_by = $5, tried_at = $6, discarded_at = NULL,
             parking = least(l.parking, 1)
         FROM unnest($3::bigint[], $4::text[]) AS t (record_offset, reason)
         WHERE l.log_id = $1 AND l.partition = $2 AND l.record_offset = t.record_offset
           AND l.tried_by IS DISTINCT FROM $5",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(column!(dead, letter => letter.offset.number() as i64))
    .bind(column!(dead, letter => letter.reason.replace('\0', "\u{fffd}")))
    .bind(tried.command_id)
    .bind(tried.at_ms)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    Ok(deleted + updated == tried.offsets.len() as u64)
}

/// Inserts the letters of a batch, and marks those that its command discards.
pub(super) async fn write_letters(
    connection: &mut Session,
    claim: &Claim,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    if changes.tried.is_none() {
        insert(connection, claim, &changes.dead_letters).await?;
    }
    if !changes.given_up.is_empty() {
        sqlx::query(
            "/* give_up_sessions */
             UPDATE dashi.dead_letter SET parking = 0
             WHERE log_id = $1 AND partition = $2 AND session_id = ANY($3) AND parking > 0",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(changes.given_up.as_slice())
        .execute(&mut *connection)
        .await?;
    }
    let command = changes.command.as_ref().filter(|command| command.is_about(&claim.log, claim.partition));
    if let Some(command) = command.filter(|command| command.action == LetterAction::Discard) {
        sqlx::query(
            "/* discard_letters */
             UPDATE dashi.dead_letter SET discarded_at = $4
             WHERE log_id = $1 AND partition = $2 AND record_offset = ANY($3) AND discarded_at IS NULL",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(numbers(&command.offsets))
        .bind(command.at_ms)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn insert(connection: &mut Session, claim: &Claim, rows: &[DeadLetter]) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* insert_dead_letters */
         INSERT INTO dashi.dead_letter (log_id, partition, record_offset, reason, record, appended_at, session_id, parking,
             tries)
         SELECT $1, $2, t.*, CASE WHEN t.parking = 2 THEN 0 ELSE 1 END
         FROM unnest($3::bigint[], $4::text[], $5::bytea[], $6::bigint[], $7::uuid[], $8::integer[])
             AS t (record_offset, reason, record, appended_at, session_id, parking)
         ON CONFLICT DO NOTHING",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(column!(rows, row => row.offset.number() as i64))
    // A reason may quote the record, and text columns cannot hold U+0000.
    .bind(column!(rows, row => row.reason.replace('\0', "\u{fffd}")))
    .bind(column!(rows, row => row.value.as_slice()))
    .bind(column!(rows, row => row.appended_at_ms))
    .bind(column!(rows, row => Glance::of(&row.value).session_id))
    .bind(column!(rows, row => row.parking.code()))
    .execute(connection)
    .await?;
    Ok(())
}
