//! One transaction per batch: the guard on epoch and checkpoint, then every row, each table by few statements.

mod events;
mod partition;
mod recordings;
mod sessions;

use dashi_domain::fold::Changes;
use dashi_domain::position::Checkpoint;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use self::events::{
    applied, applied_as_another_type, insert_applied, insert_event_data, insert_events, insert_identifies,
    insert_revenue,
};
use self::partition::{move_checkpoint, note_missing, set_dead_letters_aside};
use self::recordings::{insert_heatmap, insert_recordings};
use self::sessions::{name_sessions, upsert_session_data, upsert_sessions};
use super::audit::count_hours;
use super::erasure::there;
use super::letters::{settle_tried, write_letters};
use super::writer::Waiting;
use super::{SqliteStore, guard_row, text};
use crate::erasure::{ErasureTables as _, erase, last_offset};
use crate::error::DriverMessage;
use crate::letters::letters_moved;
use crate::{Claim, CommitError, Committed, ProfileChange, profile};

impl SqliteStore {
    pub(crate) async fn write(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Written, CommitError> {
        let failed = |error: sqlx::Error| failure(claim, error);
        let mut batch = self.0.writer.begin().await.map_err(failed)?;
        let (committed, changed) = match write(batch.connection(), claim, from, to, changes).await {
            Ok(written) => written,
            Err(NotWritten::Guard) => {
                batch.undo().await.map_err(failed)?;
                let row = guard_row(batch.connection(), claim).await.map_err(failed)?;
                return Err(CommitError::by_guard(claim, from, to, row));
            }
            Err(NotWritten::LettersMoved) => {
                batch.undo().await.map_err(failed)?;
                return Err(letters_moved(claim));
            }
            Err(NotWritten::Duplicates) => {
                batch.undo().await.map_err(failed)?;
                return Err(CommitError::Duplicates(
                    applied(batch.connection(), changes).await.map_err(failed)?,
                ));
            }
            Err(NotWritten::Failed(error)) => {
                if is_refused(&error) {
                    batch.undo().await.map_err(failed)?;
                } else {
                    batch.fail(&error).await;
                }
                return Err(failed(error));
            }
        };
        let transaction = batch.written(claim.partition).await?;
        Ok(Written { store: self.clone(), transaction, committed, changed })
    }
}

/// A batch that is written, and not committed yet.
pub(crate) struct Written {
    store: SqliteStore,
    transaction: Waiting,
    committed: Committed,
    changed: Vec<ProfileChange>,
}

impl Written {
    pub async fn committed(self) -> Result<Committed, CommitError> {
        self.transaction.committed().await?;
        for change in self.changed {
            // Nobody may be listening.
            let _ = self.store.0.changes.send(change);
        }
        Ok(self.committed)
    }
}

/// Why a batch is not written, and is to be undone.
enum NotWritten {
    Guard,
    LettersMoved,
    Duplicates,
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for NotWritten {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// All of the batch, in a transaction that is open.
async fn write(
    tx: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<(Committed, Vec<ProfileChange>), NotWritten> {
    if !move_checkpoint(tx, claim, from, to, changes).await? {
        return Err(NotWritten::Guard);
    }
    if !settle_tried(tx, claim, changes).await? {
        return Err(NotWritten::LettersMoved);
    }
    let elsewhere = applied_as_another_type(tx, changes).await?;
    let (recordings, indexes) = insert_recordings(tx, &changes.chunks).await?;
    let inserted = insert_events(tx, changes).await?
        + insert_identifies(tx, changes).await?
        + insert_applied(tx, changes).await?
        + recordings;
    let to_insert =
        changes.events.len() + changes.identifies.len() + changes.applied.len() + changes.chunks.len();
    let is_known = match &changes.erasure {
        Some(copy) => !tx.note_copy(claim, copy, last_offset(to)).await?,
        None => false,
    };
    if is_known || elsewhere || inserted < to_insert as u64 {
        return Err(NotWritten::Duplicates);
    }
    count_hours(tx, claim, changes).await?;
    if let Some(copy) = &changes.erasure {
        let changed = erase(tx, &there(), claim, copy, last_offset(to)).await?;
        note_missing(tx, claim, &changes.missing).await?;
        return Ok((Committed::default(), changed));
    }
    upsert_sessions(tx, changes).await?;
    if changes.names_sessions {
        name_sessions(tx, changes).await?;
    }
    insert_event_data(tx, changes).await?;
    upsert_session_data(tx, changes).await?;
    insert_revenue(tx, changes).await?;
    insert_heatmap(tx, &changes.heatmap, &indexes).await?;
    write_letters(tx, claim, changes).await?;
    if to < from {
        set_dead_letters_aside(tx, claim, to).await?;
        tx.forget_copies(claim, to.offset()).await?;
    }
    note_missing(tx, claim, &changes.missing).await?;
    let (profiles, changed) = profile::write(tx, changes).await?;
    Ok((Committed { profiles }, changed))
}

/// The consequence of a driver's error for a batch that is not committed yet.
fn failure(claim: &Claim, error: sqlx::Error) -> CommitError {
    let partition = claim.partition;
    let source = DriverMessage::cause(&error);
    if is_refused(&error) {
        CommitError::Refused { partition, source }
    } else {
        CommitError::NotWritten { partition, source }
    }
}

/// Whether the database refuses the rows for their data. The transaction is open still, with what other batches wrote.
fn is_refused(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // The primary code is the low byte: TOOBIG, CONSTRAINT, MISMATCH.
            code.parse::<i32>().is_ok_and(|code| [18, 19, 20].contains(&(code & 0xff)))
        }),
        sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

/// Ids as a parameter of `json_each`; `None` if there are none.
fn json_list(ids: impl Iterator<Item = Uuid>) -> Option<String> {
    let ids: Vec<String> = ids.map(|id| format!("\"{}\"", text(id))).collect();
    (!ids.is_empty()).then(|| format!("[{}]", ids.join(",")))
}
