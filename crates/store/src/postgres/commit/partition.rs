//! The rows of a partition itself: its checkpoint, the names of dead letters, and ranges that the log lost.

use dashi_domain::fold::Changes;
use dashi_domain::guard::Position;
use dashi_domain::missing::Missing;
use dashi_domain::position::Checkpoint;

use crate::Claim;
use crate::layout::columns;
use crate::missing::{Passed, RANGES_MAX, REWOUND};
use crate::postgres::pool::Session;

/// The guard; [`crate::Store::commit`] has the table of its results. It comes first: its row lock keeps a second writer of
/// this partition waiting until this transaction has ended, and then that one finds another epoch or checkpoint. Returns
/// whether the checkpoint moved.
pub(super) async fn move_checkpoint(
    connection: &mut Session,
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
    let moved = sqlx::query(
        "/* move_checkpoint */
         UPDATE dashi.checkpoint
         SET checkpoint = $5, applied = applied + $6, duplicate = duplicate + $7, dead = dead + $8,
             missing = missing + $9, markers = markers + $10,
             rewound = rewound + $11 + CASE WHEN tail_to = $5 THEN tail_applied - $17 ELSE 0 END,
             tail_applied = CASE WHEN tail_to = $5 THEN 0 ELSE tail_applied - $17 END,
             tail_from = CASE WHEN tail_to = $5 THEN NULL ELSE tail_from END,
             tail_to = nullif(tail_to, $5),
             fingerprint = CASE WHEN $13 THEN fingerprint ELSE $12 END,
             layout_version = greatest(layout_version, $14),
             layout_from = CASE WHEN $14 > layout_version THEN $15 ELSE layout_from END,
             layout_to = CASE WHEN $14 > layout_version THEN $16 ELSE layout_to END,
             updated_at = clock_timestamp(),
             last_error_over_at = CASE WHEN last_error IS NOT NULL THEN coalesce(last_error_over_at, clock_timestamp()) END
         WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND checkpoint = $4
             AND CASE WHEN $18 THEN tail_to >= $5 ELSE tail_to IS NULL END",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .bind(to.offset().number() as i64)
    .bind(applied)
    .bind(duplicate)
    .bind(dead)
    .bind(passed.missing)
    .bind(passed.markers)
    .bind(passed.rewound)
    .bind(changes.fingerprint)
    .bind(changes.tried.is_some())
    .bind(version.map(|number| number as i32))
    .bind(before.map(|number| number as i32))
    .bind(since.map(|number| number as i32))
    .bind(changes.skipped as i64)
    .bind(claim.position == Position::BesideTail)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// The guard of a commit that moves the end of the tail.
async fn move_tail(
    connection: &mut Session,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let [applied, duplicate, dead] = changes.added(&changes.outcomes);
    let moved = sqlx::query(
        "/* move_tail */
         UPDATE dashi.checkpoint
         SET tail_to = $5, tail_applied = tail_applied + $6, applied = applied + $7, duplicate = duplicate + $8,
             dead = dead + $9, tail_fingerprint = $10, updated_at = clock_timestamp()
         WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND tail_to = $4 AND $4 <= $5",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .bind(to.offset().number() as i64)
    .bind(changes.outcomes.total() as i64)
    .bind(applied)
    .bind(duplicate)
    .bind(dead)
    .bind(changes.fingerprint)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// Offsets from `to` on may get other records, whose dead letters are not to meet these.
pub(super) async fn set_dead_letters_aside(
    connection: &mut Session,
    claim: &Claim,
    to: Checkpoint,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "/* set_dead_letters_aside */
         UPDATE dashi.dead_letter SET log_id = $1 || $4 || $5
         WHERE log_id = $1 AND partition = $2 AND record_offset >= $3",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(to.offset().number() as i64)
    .bind(REWOUND)
    .bind(claim.epoch.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// One statement per range; there are few, and hardly ever any.
pub(super) async fn note_missing(
    connection: &mut Session,
    claim: &Claim,
    missing: &[Missing],
) -> Result<(), sqlx::Error> {
    for Missing { range, records, cause } in missing {
        sqlx::query(
            "/* note_missing */
             INSERT INTO dashi.missing AS m (log_id, partition, number, start_offset, end_offset, records, cause)
             SELECT $1, $2, least(count(*), $7)::integer, $3, $4, $5, $6
             FROM dashi.missing WHERE log_id = $1 AND partition = $2
             ON CONFLICT (log_id, partition, number) DO UPDATE
             SET end_offset = greatest(m.end_offset, excluded.end_offset), records = m.records + excluded.records",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
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
