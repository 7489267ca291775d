//! Applying a batch: fold it, commit it, and find the record that cannot be applied if there is one.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use dashi_domain::fold::{Changes, fold};
use dashi_domain::position::Checkpoint;
use dashi_domain::record::Record;
use dashi_store::{Cause, Claim, ClaimError, CommitError};
use uuid::Uuid;

use crate::story::Story;

/// Why a batch was not applied to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Someone else owns the partition.
    #[error(transparent)]
    Fenced(ClaimError),
    /// The store must say where the partition stands before anything else.
    #[error(transparent)]
    Interrupted(CommitError),
}

/// Applies records that begin at `from`, in as many transactions as it takes; returns the checkpoint behind the
/// last of them. Poison neither blocks nor vanishes: a record that the store refuses becomes a dead letter, alone.
pub(crate) async fn apply(
    story: &Story,
    claim: &Claim,
    from: Checkpoint,
    records: Arc<[Record]>,
) -> Result<Checkpoint, ApplyError> {
    let mut reached = from;
    // Runs still to apply, the next one last.
    let mut runs: Vec<Range<usize>> = std::iter::once(0..records.len()).collect();
    while let Some(run) = runs.pop() {
        let Some(last) = records[run.clone()].last() else { continue };
        let to = Checkpoint::after(last.offset);
        match commit(story, claim, reached, to, &records, run.clone()).await {
            Ok(true) => reached = to,
            Err(CommitError::Refused { source, .. }) if run.len() == 1 => {
                set_aside(story, claim, reached, to, last, &source).await?;
                reached = to;
            }
            Ok(false) | Err(CommitError::Refused { .. }) => {
                let middle = run.start + run.len() / 2;
                runs.push(middle..run.end);
                runs.push(run.start..middle);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(reached)
}

/// Rows of data in one transaction, at most, unless a single record makes more: the statements that write them have a
/// bound of time, and whoever waits for the transaction has one, too.
const DATA_ROWS_MAX: usize = 50_000;

/// Folds and commits one run of the records. Events that the store turns out to hold already are folded out. `false`:
/// nothing was written, for the run makes too many rows; take less of it.
async fn commit(
    story: &Story,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    records: &Arc<[Record]>,
    run: Range<usize>,
) -> Result<bool, CommitError> {
    let mut applied_before: HashSet<Uuid> = HashSet::new();
    loop {
        let changes = fold_aside(story, records, run.clone(), applied_before.clone()).await;
        if changes.data_rows() > DATA_ROWS_MAX && run.len() > 1 {
            return Ok(false);
        }
        let began = Instant::now();
        match story.store.commit(claim, from, to, &changes).await {
            Ok(committed) => {
                story.metrics.committed(&changes.outcomes, &committed, began.elapsed());
                if let Some(dead) = changes.dead_letters.last() {
                    tracing::warn!(
                        partition = %claim.partition, offset = %dead.offset, reason = dead.reason,
                        dead_letters = changes.dead_letters.len(), "set records aside as dead letters"
                    );
                    let note = DeadLettered { offset: dead.offset.number(), reason: dead.reason.clone() };
                    story.note(claim, &note).await;
                }
                return Ok(true);
            }
            Err(CommitError::Duplicates(ids)) if ids.iter().any(|id| !applied_before.contains(id)) => {
                applied_before.extend(ids);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Folds on a thread of its own: a batch takes milliseconds, and requests are not to wait for it.
async fn fold_aside(
    story: &Story,
    records: &Arc<[Record]>,
    run: Range<usize>,
    applied_before: HashSet<Uuid>,
) -> Changes {
    let (records, rules) = (Arc::clone(records), Arc::clone(&story.rules));
    let folded = tokio::task::spawn_blocking(move || fold(&records[run], &applied_before, &rules)).await;
    match folded {
        Ok(changes) => changes,
        // The fold panicked: the panic goes on where it is seen, in the task that owns the partition. A runtime
        // that is shutting down ends this task all the same.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

async fn set_aside(
    story: &Story,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    record: &Record,
    cause: &Cause,
) -> Result<(), ApplyError> {
    let reason = format!("the store refuses its rows: {cause}");
    let changes = Changes::dead_letter(record, reason.clone());
    tracing::warn!(partition = %claim.partition, offset = %record.offset, reason, "set a record aside");
    let began = Instant::now();
    let committed = story.store.commit(claim, from, to, &changes).await.map_err(failed)?;
    story.metrics.committed(&changes.outcomes, &committed, began.elapsed());
    story.note(claim, &DeadLettered { offset: record.offset.number(), reason }).await;
    Ok(())
}

fn failed(error: CommitError) -> ApplyError {
    match error {
        CommitError::Fenced { partition, held, current } => {
            ApplyError::Fenced(ClaimError::Fenced { partition, held, current })
        }
        other => ApplyError::Interrupted(other),
    }
}

/// What `dashi status` shows of a dead letter.
#[derive(Debug, thiserror::Error)]
#[error("the record at offset {offset} is a dead letter: {reason}")]
struct DeadLettered {
    offset: u64,
    reason: String,
}
