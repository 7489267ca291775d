//! One transaction per batch: the guard on epoch and checkpoint, then every row, each table by one statement.

mod events;
mod partition;
mod recordings;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashi_domain::fold::Changes;
use dashi_domain::position::Checkpoint;
use dashi_domain::rows::ChunkRow;
use uuid::Uuid;

use self::events::{
    copy_events, insert_applied, insert_event_data, insert_events, insert_identifies, insert_revenue,
};
use self::partition::{move_checkpoint, note_missing, set_dead_letters_aside};
use self::recordings::{insert_heatmap, insert_recordings, remove_recorded_clicks};
use self::sessions::{
    Replaced, fill_sessions, insert_sessions, link_sessions, name_sessions, set_sessions_back,
    upsert_session_data,
};
use super::audit::count_hours;
use super::catalogue::Catalogue;
use super::copy::{ROWS_MIN, Way};
use super::erasure::there;
use super::letters::{settle_tried, write_letters};
use super::pool::{Session, is_known};
use super::{PostgresStore, profile};
use crate::erasure::{ErasureTables as _, erase, last_offset};
use crate::error::DriverMessage;
use crate::letters::letters_moved;
use crate::{Claim, CommitError, Committed};

/// Rows of `event_data` or `session_data` per statement, at most: one event may have a million leaves, and a single
/// statement for them could outlast the time that statements have.
const LEAVES_PER_STATEMENT: usize = 20_000;

/// Commits of a live projection that write their rows by `INSERT` at once after a `COPY` has failed: where one event is
/// sent again, others often are.
const COMMITS_BY_INSERT: u32 = 16;

impl PostgresStore {
    pub(crate) async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        let partition = claim.partition;
        let not_written = |source| CommitError::NotWritten { partition, source };
        let catalogue = self.catalogue().await.map_err(|error| not_written(Arc::new(error)))?;
        let changes = self
            .encodable(std::borrow::Cow::Borrowed(changes), &catalogue)
            .await
            .map_err(|error| not_written(Arc::new(error)))?;
        let fitting = catalogue.fit(&changes);
        if self.may_copy(&fitting, &catalogue) {
            match self.transact(claim, from, to, &fitting, &catalogue, Way::Copy).await {
                Ok(committed) => return Ok(committed),
                Err(Ended::Otherwise(error)) => return Err(error),
                Err(Ended::Failed(failed)) => {
                    let error = failure(claim, &failed);
                    if !may_blame_the_way(&error, &failed) {
                        return Err(error);
                    }
                    self.by_insert.store(COMMITS_BY_INSERT, Ordering::Relaxed);
                    let with_recordings = catalogue.has_table("session_replay");
                    let applied = self.applied(&fitting, with_recordings).await;
                    let applied = applied.map_err(|error| failure(claim, &error))?;
                    if !applied.is_empty() {
                        return Err(CommitError::Duplicates(applied));
                    }
                    // Some other row is there, or is refused. The same rows by statements show which, and why.
                }
            }
        }
        self.make_keys().await.map_err(|error| not_written(Arc::new(error)))?;
        let outcome = self.transact(claim, from, to, &fitting, &catalogue, Way::Insert).await;
        let failed = match outcome {
            Ok(committed) => return Ok(committed),
            Err(Ended::Otherwise(error)) => return Err(error),
            Err(Ended::Failed(failed)) => failed,
        };
        let error = failure(claim, &failed);
        if !may_blame_the_tables(&error, &failed) {
            return Err(error);
        }
        // Perhaps Umami was upgraded a moment ago: then the rows were written for tables that are no more.
        match self.read_catalogue().await {
            Ok(read) if read == catalogue => Err(error),
            Ok(_) => match error {
                CommitError::Refused { source, .. } => Err(not_written(source)),
                error => Err(error),
            },
            Err(error) => Err(not_written(Arc::new(error))),
        }
    }

    /// Whether the rows go by `COPY` at first: those of a generation that is not live, and those of a batch that is worth
    /// it, unless one of the last batches had a row that was there. Imported rows are looked for in the tables, since their
    /// ids may be there although their event is new.
    fn may_copy(&self, changes: &Changes, catalogue: &Catalogue) -> bool {
        if changes.has_imported || !catalogue.can_copy() {
            return false;
        }
        let failed = self
            .by_insert
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |commits| commits.checked_sub(1))
            .is_ok();
        self.beside.is_some() || (changes.events.len() >= ROWS_MIN && !failed)
    }

    /// One transaction, with rows that fit the tables.
    async fn transact(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
        catalogue: &Catalogue,
        way: Way,
    ) -> Result<Committed, Ended> {
        let mut session = self.pool.begin().await?;
        let written = write(&mut session, claim, from, to, changes, catalogue, way).await;
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                session.roll_back().await;
                return Err(Ended::Failed(error));
            }
        };
        match written {
            Written::Rows(committed) => match session.commit().await {
                Ok(()) => Ok(committed),
                Err(error) if is_known(&error) => Err(Ended::Failed(error)),
                Err(error) => Err(Ended::Otherwise(CommitError::Unknown {
                    partition: claim.partition,
                    source: DriverMessage::cause(&error),
                })),
            },
            Written::NothingForTheGuard => {
                session.roll_back().await;
                let row = self.guard_row(claim).await?;
                Err(Ended::Otherwise(CommitError::by_guard(claim, from, to, row)))
            }
            Written::NothingForMovedLetters => {
                session.roll_back().await;
                Err(Ended::Otherwise(letters_moved(claim)))
            }
            Written::NothingForDuplicates { with_recordings } => {
                session.roll_back().await;
                Err(Ended::Otherwise(CommitError::Duplicates(self.applied(changes, with_recordings).await?)))
            }
        }
    }

    /// The events that the tables hold already; of recordings, if there is a table of them and some in the batch.
    async fn applied(&self, changes: &Changes, with_recordings: bool) -> Result<Vec<Uuid>, sqlx::Error> {
        let events = changes.events.iter().map(|row| row.event_id);
        let ids: Vec<Uuid> = events.chain(changes.identifies.iter().map(|row| row.event_id)).collect();
        let mut applied: Vec<Uuid> = sqlx::query_scalar(
            "/* applied */
             SELECT event_id FROM website_event WHERE event_id = ANY($1)
             UNION SELECT event_id FROM dashi.identify WHERE event_id = ANY($1)
             UNION SELECT record_id FROM dashi.applied WHERE record_id = ANY($2)
             UNION SELECT copy_id FROM dashi.erasure_copy WHERE copy_id = $3",
        )
        .bind(ids)
        .bind(column!(changes.applied, row => row.record_id))
        .bind(changes.erasure.as_ref().map(|copy| copy.copy_id))
        .fetch_all(&self.pool)
        .await?;
        if with_recordings {
            let chunks: Vec<Uuid> = changes.chunks.iter().map(|row| row.replay_id).collect();
            let stored: Vec<Uuid> =
                sqlx::query_scalar("SELECT replay_id FROM session_replay WHERE replay_id = ANY($1)")
                    .bind(chunks)
                    .fetch_all(&self.pool)
                    .await?;
            applied.extend(stored);
        }
        Ok(applied)
    }
}

/// The result of a transaction in which nothing failed.
enum Written {
    /// All rows.
    Rows(Committed),
    /// Nothing: epoch or checkpoint are others.
    NothingForTheGuard,
    /// Nothing: letters that were tried again are not as they were read.
    NothingForMovedLetters,
    /// Nothing that may stay: some of the rows were there.
    NothingForDuplicates { with_recordings: bool },
}

/// Why a transaction did not take place.
enum Ended {
    /// Before it was committed, or the server refused to commit it.
    Failed(sqlx::Error),
    /// For another reason, which is known.
    Otherwise(CommitError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// All statements of a transaction but its beginning and its end.
async fn write(
    connection: &mut Session,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
    catalogue: &Catalogue,
    way: Way,
) -> Result<Written, sqlx::Error> {
    if !move_checkpoint(connection, claim, from, to, changes).await? {
        return Ok(Written::NothingForTheGuard);
    }
    if !settle_tried(connection, claim, changes).await? {
        return Ok(Written::NothingForMovedLetters);
    }
    let recordings: &[ChunkRow] = if catalogue.has_table("session_replay") { &changes.chunks } else { &[] };
    let (recorded, indexes) = insert_recordings(connection, recordings, catalogue).await?;
    let events = match way {
        Way::Insert => {
            insert_events(connection, &changes.events, catalogue).await?
                + insert_identifies(connection, &changes.identifies).await?
        }
        Way::Copy => copy_events(connection, &changes.events, &changes.identifies, catalogue).await?,
    };
    let inserted = events + insert_applied(connection, &changes.applied).await? + recorded;
    let to_insert =
        changes.events.len() + changes.identifies.len() + changes.applied.len() + recordings.len();
    let is_known = match &changes.erasure {
        Some(copy) => !connection.note_copy(claim, copy, last_offset(to)).await?,
        None => false,
    };
    if is_known || inserted < to_insert as u64 {
        return Ok(Written::NothingForDuplicates { with_recordings: !recordings.is_empty() });
    }
    count_hours(connection, claim, changes).await?;
    if let Some(copy) = &changes.erasure {
        let there = there(catalogue);
        let changed = erase(connection, &there, claim, copy, last_offset(to)).await?;
        note_missing(connection, claim, &changes.missing).await?;
        profile::notify(connection, &changed).await?;
        return Ok(Written::Rows(Committed::default()));
    }
    let inserted = insert_sessions(connection, &changes.sessions, catalogue, way).await?;
    let there: Vec<_> = changes.sessions.iter().filter(|row| !inserted.contains(&row.session_id)).collect();
    if changes.is_late() {
        set_sessions_back(connection, &there, changes.names_sessions).await?;
    }
    fill_sessions(connection, &there).await?;
    if catalogue.has_session_link() {
        link_sessions(connection, &changes.session_links).await?;
        link_sessions(connection, &changes.imported_session_links).await?;
    }
    if catalogue.has_session_link() || changes.names_sessions {
        name_sessions(connection, &changes.session_links, changes.is_late()).await?;
    }
    for rows in changes.event_data.chunks(LEAVES_PER_STATEMENT) {
        insert_event_data(connection, rows, catalogue, way).await?;
    }
    let replaced = if changes.is_late() { Replaced::Older } else { Replaced::All };
    for rows in changes.session_data.chunks(LEAVES_PER_STATEMENT) {
        upsert_session_data(connection, rows, catalogue, replaced, way).await?;
    }
    for rows in changes.imported_session_data.chunks(LEAVES_PER_STATEMENT) {
        upsert_session_data(connection, rows, catalogue, Replaced::Older, way).await?;
    }
    insert_revenue(connection, &changes.revenue, catalogue, way).await?;
    if catalogue.has_heatmaps() {
        let (recorded, posted): (Vec<_>, Vec<_>) =
            changes.heatmap.iter().partition(|row| row.recorded.is_some());
        for rows in posted.chunks(LEAVES_PER_STATEMENT) {
            insert_heatmap(connection, rows, &indexes, catalogue).await?;
            remove_recorded_clicks(connection, rows, catalogue).await?;
        }
        if catalogue.distinguishes_recorded_clicks() {
            for rows in recorded.chunks(LEAVES_PER_STATEMENT) {
                insert_heatmap(connection, rows, &indexes, catalogue).await?;
            }
        }
    }
    write_letters(connection, claim, changes).await?;
    if to < from {
        set_dead_letters_aside(connection, claim, to).await?;
        connection.forget_copies(claim, to.offset()).await?;
    }
    note_missing(connection, claim, &changes.missing).await?;
    let (profiles, changed) = crate::profile::write(connection, changes).await?;
    profile::notify(connection, &changed).await?;
    Ok(Written::Rows(Committed { profiles }))
}

/// The consequence of an error for a batch of which nothing was written.
fn failure(claim: &Claim, error: &sqlx::Error) -> CommitError {
    let partition = claim.partition;
    let refused = match error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // 22: data exception; 23: integrity constraint; 54: a row or an index entry beyond a limit, but also a queue
            // of notifications that somebody else does not empty.
            let is_of_the_data = ["22", "23", "54"].iter().any(|class| code.starts_with(class));
            is_of_the_data && !database.message().contains("NOTIFY")
        }),
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    let source = DriverMessage::cause(error);
    if refused {
        CommitError::Refused { partition, source }
    } else {
        CommitError::NotWritten { partition, source }
    }
}

/// Whether `INSERT` may write what `COPY` did not.
fn may_blame_the_way(error: &CommitError, failed: &sqlx::Error) -> bool {
    // 0A: `COPY` into such a table is not supported.
    let code = failed.as_database_error().and_then(|database| database.code());
    code.is_some_and(|code| code.starts_with("0A")) || may_blame_the_tables(error, failed)
}

/// Whether tables that differ from the catalogue may be the cause: rows that are refused, a table or a column that is
/// not there, an `ON CONFLICT` without its index.
fn may_blame_the_tables(error: &CommitError, failed: &sqlx::Error) -> bool {
    // 42: undefined table, undefined column and the like.
    let is_of_the_tables = failed
        .as_database_error()
        .is_some_and(|database| database.code().is_some_and(|code| code.starts_with("42")));
    is_of_the_tables || matches!(error, CommitError::Refused { .. })
}
