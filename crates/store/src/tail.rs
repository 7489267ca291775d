//! Tails as both backends keep them.

use dashi_domain::guard::{GuardRow, Position};
use dashi_domain::position::{Checkpoint, Epoch, Offset};
use dashi_domain::tail::{SessionFilter, Tail};

use crate::{Claim, ClaimError, StoreError};

/// The columns of a tail: from, to, applied.
pub(crate) type TailColumns = (Option<i64>, Option<i64>, i64);

/// The tail of these columns.
pub(crate) fn tail((from, to, applied): TailColumns) -> Option<Tail> {
    let at = |offset: i64| Checkpoint::at(Offset::new(offset as u64));
    Some(Tail { from: at(from?), to: at(to?), applied: applied as u64 })
}

/// A row of the guard as both backends read it: epoch, checkpoint, and the tail.
pub(crate) type GuardColumns = (i64, i64, Option<i64>, Option<i64>, i64);

pub(crate) fn guard_row((epoch, checkpoint, from, to, applied): GuardColumns) -> GuardRow {
    GuardRow {
        epoch: Epoch::new(epoch as u64),
        checkpoint: Checkpoint::at(Offset::new(checkpoint as u64)),
        tail: tail((from, to, applied)),
    }
}

/// The position that the commits of a claim move whose partition has such a tail.
pub(crate) const fn position(tail: Option<Tail>) -> Position {
    match tail {
        None => Position::Checkpoint,
        Some(_) => Position::BesideTail,
    }
}

/// The filter that a store holds.
pub(crate) fn filter(bytes: Vec<u8>) -> Result<SessionFilter, sqlx::Error> {
    SessionFilter::from_bytes(&bytes)
        .ok_or_else(|| sqlx::Error::Decode(format!("a filter of sessions has {} bytes", bytes.len()).into()))
}

/// Why no tail begins, by the row that is stored.
pub(crate) fn not_begun(claim: &Claim, at: Checkpoint, stored: GuardRow) -> ClaimError {
    match stored.begin_tail(claim.epoch, at) {
        Err(dashi_domain::guard::GuardRefusal::Fenced { current }) => {
            ClaimError::Fenced { partition: claim.partition, held: claim.epoch, current }
        }
        _ => ClaimError::Store(StoreError::away("beginning a tail")(sqlx::Error::Protocol(format!(
            "partition {} has another tail, or stands beyond offset {at}",
            claim.partition
        )))),
    }
}
