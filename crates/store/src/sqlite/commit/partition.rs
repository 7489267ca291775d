//! The rows of a partition itself: its checkpoint, the names of dead letters, and ranges that the log lost.

use dashi_domain::fold::Changes;
use dashi_domain::guard::Position;
use dashi_domain::missing::Missing;
use dashi_domain::position::Checkpoint;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use crate::Claim;
use crate::layout::columns;
use crate::missing::{Passed, RANGES_MAX, REWOUND};
use crate::sqlite::NOW_MS;

/// The guard; [`crate::Store::commit`] has the table of its results. Returns whether the checkpoint moved.
pub(super) async fn move_checkpoint(
    connection: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let passed = Passed::of(changes, from, to);
    let [applied, duplicate, dead] = changes.added(&changes.outcomes);
    if claim.position == Position::Tail {
        return move_tail(connection, claim, from, to, changes).await;
    }
    let [version, before, since] = columns(changes.barrier_of(&claim.log, claim.partition));
    // Of a tail that ends here nothing is left to be passed, unless the log lost it meanwhile: then it counts as read again.
    let moved = sqlx::query(AssertSqlSafe(format!(
        "UPDATE dashi_checkpoint
         SET checkpoint = ?1, applied = applied + ?2, duplicate = duplicate + ?3, dead = dead + ?4,
             missing = missing + ?5, markers = markers + ?6,
             rewound = rewound + ?7 + CASE WHEN tail_to = ?1 THEN tail_applied - ?8 ELSE 0 END,
             tail_applied = CASE WHEN tail_to = ?1 THEN 0 ELSE tail_applied - ?8 END,
             tail_from = CASE WHEN tail_to = ?1 THEN NULL ELSE tail_from END,
             tail_to = nullif(tail_to, ?1),
             fingerprint = CASE WHEN ?9 THEN fingerprint ELSE ?10 END,
             layout_version = max(layout_version, coalesce(?11, 0)),
             layout_from = CASE WHEN ?11 > layout_version THEN ?12 ELSE layout_from END,
             layout_to = CASE WHEN ?11 > layout_version THEN ?13 ELSE layout_to END,
             updated_at = {NOW_MS},
             last_error_over_at = CASE WHEN last_error IS NOT NULL THEN coalesce(last_error_over_at, {NOW_MS}) END
         WHERE log_id = ?14 AND partition = ?15 AND epoch = ?16 AND checkpoint = ?17
             AND CASE WHEN ?18 THEN tail_to >= ?1 ELSE tail_to IS NULL END"
    )))
    .bind(to.offset().number() as i64)
    .bind(applied)
    .bind(duplicate)
    .bind(dead)
    .bind(passed.missing)
    .bind(passed.markers)
    .bind(passed.rewound)
    .bind(changes.skipped as i64)
    .bind(changes.tried.is_some())
    .bind(changes.fingerprint)
    .bind(version)
    .bind(before)
    .bind(since)
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .bind(claim.position == Position::BesideTail)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// The guard of a commit that moves the end of the tail.
async fn move_tail(
    connection: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let [applied, duplicate, dead] = changes.added(&changes.outcomes);
    let moved = sqlx::query(AssertSqlSafe(format!(
        "UPDATE dashi_checkpoint
         SET tail_to = ?1, tail_applied = tail_applied + ?2, applied = applied + ?3, duplicate = duplicate + ?4,
             dead = dead + ?5, tail_fingerprint = ?6, updated_at = {NOW_MS}
         WHERE log_id = ?7 AND partition = ?8 AND epoch = ?9 AND tail_to = ?10 AND ?10 <= ?1"
    )))
    .bind(to.offset().number() as i64)
    .bind(changes.outcomes.total() as i64)
    .bind(applied)
    .bind(duplicate)
    .bind(dead)
    .bind(changes.fingerprint)
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// Offsets from `to` on may get other records, whose dead letters are not to meet these.
pub(super) async fn set_dead_letters_aside(
    connection: &mut SqliteConnection,
    claim: &Claim,
    to: Checkpoint,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE dashi_dead_letter SET log_id = log_id || ? || ?
         WHERE log_id = ? AND partition = ? AND record_offset >= ?",
    )
    .bind(REWOUND)
    .bind(claim.epoch.to_string())
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(to.offset().number() as i64)
    .execute(connection)
    .await?;
    Ok(())
}

/// One statement per range; there are few, and hardly ever any.
pub(super) async fn note_missing(
    connection: &mut SqliteConnection,
    claim: &Claim,
    missing: &[Missing],
) -> Result<(), sqlx::Error> {
    for Missing { range, records, cause } in missing {
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO dashi_missing
                (log_id, partition, number, start_offset, end_offset, records, cause, noted_at)
             SELECT ?1, ?2, min(count(*), ?7), ?3, ?4, ?5, ?6, {NOW_MS}
             FROM dashi_missing WHERE log_id = ?1 AND partition = ?2
             ON CONFLICT (log_id, partition, number) DO UPDATE
             SET end_offset = max(end_offset, excluded.end_offset), records = records + excluded.records"
        )))
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(range.start.number() as i64)
        .bind(range.end.number() as i64)
        .bind(*records as i64)
        .bind(cause.name())
        .bind(RANGES_MAX - 1)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
