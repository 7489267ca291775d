//! Dead letters: reading them, and their part in a commit.

use dashi_domain::dead_letters::{LetterAction, LetterCommand};
use dashi_domain::fold::Changes;
use dashi_domain::glance::Glance;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::record::Record;
use dashi_domain::rows::DeadLetter;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{NOW_MS, SqliteStore, parse_uuid, text};
use crate::letters::{LetterColumns, set_aside, settled};
use crate::{Claim, LetterCounts, LetterFilter, LetterPlace, LetterToTry, SetAside, StoreError};

impl SqliteStore {
    pub(crate) async fn dead_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Vec<SetAside>, StoreError> {
        let doing = "listing its dead letters";
        let rows: Vec<LetterColumns<String>> = sqlx::query_as(
            "SELECT log_id, partition, record_offset, reason, set_aside_at, record, appended_at, tries, tried_by,
                    tried_at, discarded_at, parking
             FROM dashi_dead_letter
             WHERE (?1 IS NULL OR log_id = ?1) AND (?2 IS NULL OR partition = ?2)
               AND (?3 IS NULL OR record_offset = ?3)
               AND (?4 IS NULL OR instr(record, ?4) > 0) AND (?5 IS NULL OR instr(reason, ?5) > 0)
               AND (?6 IS NULL OR set_aside_at >= ?6) AND (?7 IS NULL OR set_aside_at < ?7)
               AND (?8 IS NULL OR (discarded_at IS NOT NULL) = ?8)
               AND (?9 IS NULL OR (log_id, partition, record_offset) > (?9, ?10, ?11))
             ORDER BY log_id, partition, record_offset LIMIT ?12",
        )
        .bind(filter.log.as_ref().map(|log| log.as_str()))
        .bind(filter.partition.map(Partition::number))
        .bind(filter.offset.map(|offset| offset.number() as i64))
        .bind(filter.record.as_ref().map(|text| text.as_bytes()))
        .bind(filter.reason.as_deref())
        .bind(filter.since_ms)
        .bind(filter.until_ms)
        .bind(filter.discarded)
        .bind(after.map(|place| place.log.as_str()))
        .bind(after.map(|place| place.partition.number()))
        .bind(after.map(|place| place.offset.number() as i64))
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        rows.into_iter()
            .map(|row| set_aside(row, |id| parse_uuid(&id)))
            .collect::<Result<_, _>>()
            .map_err(StoreError::away(doing))
    }

    pub(crate) async fn letter_counts(&self) -> Result<Vec<LetterCounts>, StoreError> {
        let rows: Vec<(String, i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT log_id, partition,
                    count(*) FILTER (WHERE discarded_at IS NULL AND parking < 2),
                    count(*) FILTER (WHERE discarded_at IS NOT NULL),
                    count(*) FILTER (WHERE discarded_at IS NULL AND parking = 2),
                    count(DISTINCT session_id) FILTER (WHERE discarded_at IS NULL AND parking = 1)
             FROM dashi_dead_letter GROUP BY log_id, partition ORDER BY log_id, partition",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away("counting its dead letters"))?;
        let counts = |(log, partition, open, discarded, waiting, held): (String, i64, i64, i64, i64, i64)| {
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
            "SELECT record_offset, coalesce(appended_at, set_aside_at), record, parking = 1 AND discarded_at IS NULL
             FROM dashi_dead_letter
             WHERE log_id = ? AND partition = ? AND record_offset IN (SELECT value FROM json_each(?))
               AND tried_by IS NOT ? AND (parking < 2 OR discarded_at IS NOT NULL)
             ORDER BY record_offset LIMIT ?",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(list(&command.offsets))
        .bind(text(command.command_id))
        .bind(limit)
        .fetch_all(&self.0.readers)
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
            "SELECT record_offset, coalesce(appended_at, set_aside_at), record, true FROM dashi_dead_letter AS l
             WHERE record_offset = (SELECT min(w.record_offset) FROM dashi_dead_letter AS w
                   WHERE w.log_id = l.log_id AND w.partition = l.partition AND w.session_id = l.session_id
                     AND w.parking > 0 AND w.discarded_at IS NULL)
               AND log_id = ? AND partition = ? AND parking = 2
             ORDER BY record_offset LIMIT ?",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away("reading dead letters that nothing holds up"))?;
        Ok(rows.into_iter().map(|row| to_try(claim, row)).collect())
    }

    pub(crate) async fn held_sessions(&self, claim: &Claim) -> Result<Vec<(Uuid, Offset, u32)>, StoreError> {
        let doing = "reading which sessions wait";
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT session_id, min(record_offset), count(*) FILTER (WHERE parking = 2) FROM dashi_dead_letter
             WHERE log_id = ? AND partition = ? AND parking > 0 AND discarded_at IS NULL GROUP BY session_id",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        rows.into_iter()
            .map(|(session, offset, waiting)| {
                Ok((parse_uuid(&session)?, Offset::new(offset as u64), waiting as u32))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(StoreError::away(doing))
    }
}

/// A letter to be tried: offset, time of its append, record, whether it is in order.
type LetterRow = (i64, i64, Vec<u8>, bool);

fn to_try(claim: &Claim, (offset, appended_at_ms, value, in_order): LetterRow) -> LetterToTry {
    let (partition, offset) = (claim.partition, Offset::new(offset as u64));
    LetterToTry { record: Record { partition, offset, appended_at_ms, value }, in_order }
}

/// Offsets as a parameter of `json_each`.
fn list(offsets: &[Offset]) -> String {
    let offsets: Vec<String> = offsets.iter().map(Offset::to_string).collect();
    format!("[{}]", offsets.join(","))
}

/// Of letters that were tried again: takes away those that are no longer dead, and writes the new reasons of the others.
/// Returns whether all of them were there as they were read.
pub(super) async fn settle_tried(
    connection: &mut SqliteConnection,
    claim: &Claim,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let Some(tried) = &changes.tried else { return Ok(true) };
    let mut written = sqlx::query(
        "DELETE FROM dashi_dead_letter
         WHERE log_id = ? AND partition = ? AND record_offset IN (SELECT value FROM json_each(?))
           AND tried_by IS NOT ?",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(list(&settled(tried, changes)))
    .bind(text(tried.command_id))
    .execute(&mut *connection)
    .await?
    .rows_affected();
    for letter in &changes.dead_letters {
        written += sqlx::query(
            "UPDATE dashi_dead_letter
             SET reason = ?1, tries = tries + 1, tried_by = ?2, tried_at = ?3, discarded_at = NULL,
                 parking = min(parking, 1)
             WHERE log_id = ?4 AND partition = ?5 AND record_offset = ?6 AND tried_by IS NOT ?2",
        )
        .bind(letter.reason.replace('\0', "\u{fffd}"))
        .bind(text(tried.command_id))
        .bind(tried.at_ms)
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(letter.offset.number() as i64)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    }
    Ok(written == tried.offsets.len() as u64)
}

/// Inserts the letters of a batch, and marks those that its command discards.
pub(super) async fn write_letters(
    connection: &mut SqliteConnection,
    claim: &Claim,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    if changes.tried.is_none() {
        for letter in &changes.dead_letters {
            insert(connection, claim, letter).await?;
        }
    }
    for session in &changes.given_up {
        sqlx::query(
            "UPDATE dashi_dead_letter SET parking = 0
             WHERE log_id = ? AND partition = ? AND session_id = ? AND parking > 0",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(text(*session))
        .execute(&mut *connection)
        .await?;
    }
    let command = changes.command.as_ref().filter(|command| command.is_about(&claim.log, claim.partition));
    if let Some(command) = command.filter(|command| command.action == LetterAction::Discard) {
        sqlx::query(
            "UPDATE dashi_dead_letter SET discarded_at = ?
             WHERE log_id = ? AND partition = ? AND record_offset IN (SELECT value FROM json_each(?))
               AND discarded_at IS NULL",
        )
        .bind(command.at_ms)
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(list(&command.offsets))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn insert(
    connection: &mut SqliteConnection,
    claim: &Claim,
    letter: &DeadLetter,
) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO dashi_dead_letter
             (log_id, partition, record_offset, reason, record, set_aside_at, appended_at, session_id, parking, tries)
         VALUES (?1, ?2, ?3, ?4, ?5, {NOW_MS}, ?6, ?7, ?8, ?8 < 2) ON CONFLICT DO NOTHING"
    )))
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(letter.offset.number() as i64)
    .bind(letter.reason.replace('\0', "\u{fffd}"))
    .bind(letter.value.as_slice())
    .bind(letter.appended_at_ms)
    .bind(Glance::of(&letter.value).session_id.map(text))
    .bind(letter.parking.code())
    .execute(connection)
    .await?;
    Ok(())
}
