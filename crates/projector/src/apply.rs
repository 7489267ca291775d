//! Applying a batch: fold it, commit it, and find the record that cannot be applied if there is one.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use dashi_domain::fold::Changes;
use dashi_domain::missing::{MissingCause, fingerprint, within};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::record::Record;
use dashi_store::{Claim, ClaimError, CommitError, ErrorNote};
use uuid::Uuid;

use crate::fold_panic::catching;
use crate::outage::chain;
use crate::partition::PartitionTask;
use crate::progress::now_ms;

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
/// last of them. Poison neither blocks nor vanishes: a record that the store refuses, or whose fold panics, becomes a
/// dead letter, alone.
pub(crate) async fn apply(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    records: Arc<[Record]>,
    missing: &[Range<Offset>],
) -> Result<Checkpoint, ApplyError> {
    let mut reached = from;
    // Runs still to apply, the next one last.
    let mut runs: Vec<Range<usize>> = std::iter::once(0..records.len()).collect();
    while let Some(run) = runs.pop() {
        let Some(last) = records[run.clone()].last() else { continue };
        let to = Checkpoint::after(last.offset);
        match commit(task, claim, reached, to, &records, run.clone(), missing).await.map_err(failed)? {
            Outcome::Applied => reached = to,
            Outcome::Poisoned(reason) if run.len() == 1 => {
                set_aside(task, claim, reached, to, last, reason, missing).await?;
                reached = to;
            }
            Outcome::TooMany | Outcome::Poisoned(_) => {
                let middle = run.start + run.len() / 2;
                runs.push(middle..run.end);
                runs.push(run.start..middle);
            }
        }
    }
    Ok(reached)
}

/// The changes of records between two checkpoints, with what else lies between them: offsets at which records are missing, and
/// the rest, which never were records for a reader. So all offsets have an outcome (I2).
pub(crate) fn passing(
    changes: Changes,
    from: Checkpoint,
    to: Checkpoint,
    records: &[Record],
    missing: &[Range<Offset>],
) -> Changes {
    let missing = within(missing, from, to, MissingCause::Gap);
    let lost: u64 = missing.iter().map(|missing| missing.records).sum();
    let markers = from.lag(to.offset()).saturating_sub(records.len() as u64 + lost);
    let last = records.last().filter(|record| Checkpoint::after(record.offset) == to);
    Changes { missing, markers, fingerprint: last.map(|record| fingerprint(&record.value)), ..changes }
}

/// What became of a run of records.
enum Outcome {
    /// It is committed.
    Applied,
    /// It makes too many rows for one transaction; nothing was written. Take less of it.
    TooMany,
    /// One of its records cannot be applied, for this reason; nothing was written. Find it.
    Poisoned(String),
}

/// Rows of data in one transaction, at most, unless a single record makes more: the statements that write them have a
/// bound of time, and whoever waits for the transaction has one, too.
const DATA_ROWS_MAX: usize = 50_000;

/// Folds and commits one run of the records. Events that the store turns out to hold already are folded out.
async fn commit(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    records: &Arc<[Record]>,
    run: Range<usize>,
    missing: &[Range<Offset>],
) -> Result<Outcome, CommitError> {
    let mut applied_before: HashSet<Uuid> = HashSet::new();
    loop {
        let changes = match fold_aside(task, records, run.clone(), applied_before.clone()).await {
            Ok(changes) => changes,
            Err(panic) => return Ok(Outcome::Poisoned(format!("the fold panicked: {panic}"))),
        };
        if changes.data_rows() > DATA_ROWS_MAX && run.len() > 1 {
            return Ok(Outcome::TooMany);
        }
        let changes = passing(changes, from, to, &records[run.clone()], missing);
        match commit_once(task, claim, from, to, &changes).await {
            Ok(()) => {
                if let Some(dead) = changes.dead_letters.last() {
                    tracing::warn!(
                        partition = %claim.partition, offset = %dead.offset, reason = dead.reason,
                        dead_letters = changes.dead_letters.len(), "set records aside as dead letters"
                    );
                    note(task, claim, dead.offset, &dead.reason).await;
                }
                return Ok(Outcome::Applied);
            }
            Err(CommitError::Duplicates(ids)) if ids.iter().any(|id| !applied_before.contains(id)) => {
                applied_before.extend(ids);
            }
            Err(CommitError::Refused { source, .. }) => {
                return Ok(Outcome::Poisoned(format!("the store refuses its rows: {source}")));
            }
            Err(error) => return Err(error),
        }
    }
}

async fn commit_once(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<(), CommitError> {
    let (began, call) = (Instant::now(), task.shared.progress.call(task.partition, "committing a batch"));
    let committed = task.shared.store.commit(claim, from, to, changes).await;
    drop(call);
    task.shared.metrics.committed(&changes.outcomes, &committed?, began.elapsed());
    task.shared.metrics.missing(changes);
    if let (Some(first), Some(last)) = (changes.missing.first(), changes.missing.last()) {
        tracing::warn!(
            partition = %claim.partition, from = %first.range.start, to = %last.range.end,
            records = changes.missing.iter().map(|missing| missing.records).sum::<u64>(),
            "records are missing from the log; `dashi status` has them"
        );
    }
    Ok(())
}

/// Folds on a thread of its own: a batch takes milliseconds, and requests are not to wait for it.
///
/// # Errors
/// The fold panicked; what it said.
async fn fold_aside(
    task: &PartitionTask,
    records: &Arc<[Record]>,
    run: Range<usize>,
    applied_before: HashSet<Uuid>,
) -> Result<Changes, String> {
    let (fold, records, rules) =
        (task.shared.settings.fold, Arc::clone(records), Arc::clone(&task.shared.rules));
    let folded =
        tokio::task::spawn_blocking(move || catching(|| fold(&records[run], &applied_before, &rules)));
    match folded.await {
        Ok(folded) => folded,
        // Only a runtime that is shutting down ends it otherwise, and that ends this task all the same.
        Err(_) => std::future::pending().await,
    }
}

async fn set_aside(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    record: &Record,
    reason: String,
    missing: &[Range<Offset>],
) -> Result<(), ApplyError> {
    let changes = Changes::dead_letter(record, reason.clone());
    let changes = passing(changes, from, to, std::slice::from_ref(record), missing);
    commit_once(task, claim, from, to, &changes).await.map_err(failed)?;
    tracing::warn!(partition = %claim.partition, offset = %record.offset, reason, "set a record aside");
    note(task, claim, record.offset, &reason).await;
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

/// Leaves a dead letter's reason where `dashi status` finds it. It is in the logs and in the table of dead letters, too.
async fn note(task: &PartitionTask, claim: &Claim, offset: Offset, reason: &str) {
    let text = format!("the record at offset {offset} is a dead letter: {reason}");
    let note = ErrorNote { kind: "dead_letter", text: &text, at_ms: now_ms(), is_over: true };
    if let Err(error) = task.shared.store.note_error(claim, &note).await {
        tracing::debug!(partition = %claim.partition, error = %chain(&error), "a dead letter is not noted");
    }
}
