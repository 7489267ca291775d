//! Dead letters: records that were set aside, to be listed, tried again or discarded.

use std::sync::Arc;

use dashi_domain::dead_letters::Tried;
use dashi_domain::fold::Changes;
use dashi_domain::parking::Parking;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::record::Record;
use uuid::Uuid;

use crate::{Claim, CommitError};

/// A record that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it lies.
    pub place: LetterPlace,
    /// The reason why it could not be applied when that was tried last.
    pub reason: String,
    /// When it was set aside first, milliseconds since 1970.
    pub set_aside_at_ms: i64,
    /// The record, byte for byte.
    pub record: Vec<u8>,
    /// When the log took it, milliseconds since 1970; `None` of letters that an older program set aside.
    pub appended_at_ms: Option<i64>,
    /// How often it was folded; 0 while it waits behind another one.
    pub tries: u32,
    /// The command that tried it last; `None` if none did.
    pub tried_by: Option<Uuid>,
    /// When that command was given, milliseconds since 1970.
    pub tried_at_ms: Option<i64>,
    /// When it was discarded, milliseconds since 1970; `None` if somebody has to look at it.
    pub discarded_at_ms: Option<i64>,
    /// Whether it holds up its session, or waits.
    pub parking: Parking,
}

/// A dead letter to be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterToTry {
    /// The record.
    pub record: Record,
    /// Whether the later records of its session waited behind it.
    pub in_order: bool,
}

/// The place of a dead letter, by which letters are ordered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterPlace {
    /// The log. Letters whose offsets were used again have another name here, which is no log's.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// The record's offset.
    pub offset: Offset,
}

/// The dead letters to list; those for which everything that is given holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetterFilter {
    /// Of this log.
    pub log: Option<LogId>,
    /// Of this partition.
    pub partition: Option<Partition>,
    /// At this offset.
    pub offset: Option<Offset>,
    /// Whose record contains this text.
    pub record: Option<String>,
    /// Whose reason contains this text.
    pub reason: Option<String>,
    /// Set aside at this time or later, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Set aside before this time, milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Discarded ones only, or only others.
    pub discarded: Option<bool>,
}

/// Numbers of dead letters of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterCounts {
    /// The log.
    pub log: LogId,
    /// The partition.
    pub partition: Partition,
    /// That somebody has to look at: neither discarded nor waiting.
    pub open: u64,
    /// Discarded.
    pub discarded: u64,
    /// Waiting behind others of their sessions.
    pub waiting: u64,
    /// Sessions whose later records wait.
    pub held_sessions: u64,
}

/// The columns of a dead letter as both backends read them: log, partition, offset, reason, time, record; appended at, tries,
/// tried by, tried at, discarded at, parking.
pub(crate) type LetterColumns<I> =
    (String, i64, i64, String, i64, Vec<u8>, Option<i64>, i64, Option<I>, Option<i64>, Option<i64>, i64);

/// Reads the columns of a dead letter.
pub(crate) fn set_aside<I>(
    columns: LetterColumns<I>,
    id: impl Fn(I) -> Result<Uuid, sqlx::Error>,
) -> Result<SetAside, sqlx::Error> {
    let (log, partition, offset, reason, at, record, appended, tries, by, tried, discarded, parking) =
        columns;
    Ok(SetAside {
        place: LetterPlace {
            log: LogId::new(log),
            partition: Partition::new(partition as u32),
            offset: Offset::new(offset as u64),
        },
        reason,
        set_aside_at_ms: at,
        record,
        appended_at_ms: appended,
        tries: tries as u32,
        tried_by: by.map(id).transpose()?,
        tried_at_ms: tried,
        discarded_at_ms: discarded,
        parking: Parking::from_code(parking),
    })
}

/// The letters of a batch that was tried again and that are applied or duplicates now: all but those that are still dead.
pub(crate) fn settled(tried: &Tried, changes: &Changes) -> Vec<Offset> {
    let is_dead = |offset: &&Offset| changes.dead_letters.iter().any(|letter| letter.offset == **offset);
    tried.offsets.iter().filter(|offset| !is_dead(offset)).copied().collect()
}

#[derive(Debug, thiserror::Error)]
#[error("dead letters were changed by another transaction of this writer, whose outcome was not known")]
struct LettersMoved;

/// The error of a batch of letters that are not as they were read.
pub(crate) fn letters_moved(claim: &Claim) -> CommitError {
    CommitError::NotWritten { partition: claim.partition, source: Arc::new(LettersMoved) }
}
