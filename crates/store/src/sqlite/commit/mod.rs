//! One transaction per batch: the guard on epoch and checkpoint, then every row, each table by few statements.

mod events;
mod partition;
mod recordings;
mod sessions;

use dashi_domain::fold::Changes;
use dashi_domain::position::Checkpoint;
use sqlx::sqlite::{Sqlite, SqliteConnection};
use sqlx::{Connection as _, Transaction};
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
use super::{SqliteStore, guard_row, text};
use crate::erasure::{ErasureTables as _, erase, last_offset};
use crate::error::DriverMessage;
use crate::letters::letters_moved;
use crate::{Claim, CommitError, Committed, ProfileChange, profile};

impl SqliteStore {
    pub(crate) async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        let mut writer = self.0.writer.lock().await;
        let outcome = write(&mut writer, claim, from, to, changes).await;
        if matches!(outcome, Err(CommitError::Unknown { .. } | CommitError::NotWritten { .. })) {
            self.renew(&mut writer).await;
        }
        drop(writer);
        let (committed, changed) = outcome?;
        for change in changed {
            // Nobody may be listening.
            let _ = self.0.changes.send(change);
        }
        Ok(committed)
    }
}

/// The transaction.
async fn write(
    writer: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<(Committed, Vec<ProfileChange>), CommitError> {
    let failed = |error: sqlx::Error| failure(claim, error);
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    if !move_checkpoint(&mut tx, claim, from, to, changes).await.map_err(failed)? {
        let row = guard_row(&mut tx, claim).await.map_err(failed)?;
        tx.rollback().await.map_err(failed)?;
        return Err(CommitError::by_guard(claim, from, to, row));
    }
    if !settle_tried(&mut tx, claim, changes).await.map_err(failed)? {
        tx.rollback().await.map_err(failed)?;
        return Err(letters_moved(claim));
    }
    let elsewhere = applied_as_another_type(&mut tx, changes).await.map_err(failed)?;
    let (recordings, indexes) = insert_recordings(&mut tx, &changes.chunks).await.map_err(failed)?;
    let inserted = insert_events(&mut tx, changes).await.map_err(failed)?
        + insert_identifies(&mut tx, changes).await.map_err(failed)?
        + insert_applied(&mut tx, changes).await.map_err(failed)?
        + recordings;
    let to_insert =
        changes.events.len() + changes.identifies.len() + changes.applied.len() + changes.chunks.len();
    let is_known = match &changes.erasure {
        Some(copy) => !tx.note_copy(claim, copy, last_offset(to)).await.map_err(failed)?,
        None => false,
    };
    if is_known || elsewhere || inserted < to_insert as u64 {
        tx.rollback().await.map_err(failed)?;
        return Err(CommitError::Duplicates(applied(writer, changes).await.map_err(failed)?));
    }
    count_hours(&mut tx, claim, changes).await.map_err(failed)?;
    if let Some(copy) = &changes.erasure {
        let changed = erase(&mut *tx, &there(), claim, copy, last_offset(to)).await.map_err(failed)?;
        note_missing(&mut tx, claim, &changes.missing).await.map_err(failed)?;
        commit(tx, claim).await?;
        return Ok((Committed::default(), changed));
    }
    upsert_sessions(&mut tx, changes).await.map_err(failed)?;
    if changes.names_sessions {
        name_sessions(&mut tx, changes).await.map_err(failed)?;
    }
    insert_event_data(&mut tx, changes).await.map_err(failed)?;
    upsert_session_data(&mut tx, changes).await.map_err(failed)?;
    insert_revenue(&mut tx, changes).await.map_err(failed)?;
    insert_heatmap(&mut tx, &changes.heatmap, &indexes).await.map_err(failed)?;
    write_letters(&mut tx, claim, changes).await.map_err(failed)?;
    if to < from {
        set_dead_letters_aside(&mut tx, claim, to).await.map_err(failed)?;
        tx.forget_copies(claim, to.offset()).await.map_err(failed)?;
    }
    note_missing(&mut tx, claim, &changes.missing).await.map_err(failed)?;
    let (profiles, changed) = profile::write(&mut *tx, changes).await.map_err(failed)?;
    commit(tx, claim).await?;
    Ok((Committed { profiles }, changed))
}

async fn commit(tx: Transaction<'_, Sqlite>, claim: &Claim) -> Result<(), CommitError> {
    tx.commit().await.map_err(|error| CommitError::Unknown {
        partition: claim.partition,
        source: DriverMessage::cause(&error),
    })
}

/// The consequence of a driver's error for a batch that is not committed yet.
fn failure(claim: &Claim, error: sqlx::Error) -> CommitError {
    let partition = claim.partition;
    let refused = match &error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // The primary code is the low byte: TOOBIG, CONSTRAINT, MISMATCH.
            code.parse::<i32>().is_ok_and(|code| [18, 19, 20].contains(&(code & 0xff)))
        }),
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    let source = DriverMessage::cause(&error);
    if refused {
        CommitError::Refused { partition, source }
    } else {
        CommitError::NotWritten { partition, source }
    }
}

/// Ids as a parameter of `json_each`; `None` if there are none.
fn json_list(ids: impl Iterator<Item = Uuid>) -> Option<String> {
    let ids: Vec<String> = ids.map(|id| format!("\"{}\"", text(id))).collect();
    (!ids.is_empty()).then(|| format!("[{}]", ids.join(",")))
}
