//! Applying a batch: folds it, commits it, and if a record cannot be applied, finds that record.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use dashi_domain::dead_letters::LetterCommand;
use dashi_domain::erasure::ErasureCopy;
use dashi_domain::fold::{Changes, is_command, runs};
use dashi_domain::guard::WriterStep;
use dashi_domain::missing::{Missing, MissingCause, fingerprint, within};
use dashi_domain::parking::{Parked, Part, cut};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::record::Record;
use dashi_domain::rows::DeadLetter;
use dashi_store::{Claim, ClaimError, CommitError, ErrorNote};
use uuid::Uuid;

use crate::budget::Share;
use crate::fold_panic::catching;
use crate::letters::{self, give_up, parked, wait};
use crate::outage::chain;
use crate::partition::{PartitionTask, Shared};
use crate::progress::now_ms;
use crate::record_spans::RunSpans;
use crate::source::{Batch, MissingRange};
use crate::summary::Summary;
use crate::tail::between;

/// Why a batch was not applied to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// Another projector owns the partition.
    #[error(transparent)]
    Fenced(ClaimError),
    /// The commit failed or its outcome is unknown. Read the stored checkpoint before anything else.
    #[error(transparent)]
    Interrupted(CommitError),
}

/// Records that are to be applied, and what is known of the offsets among them.
#[derive(Debug)]
pub(crate) struct Applying {
    records: Arc<[Record]>,
    /// The checkpoint behind them.
    to: Checkpoint,
    missing: Vec<MissingRange>,
    skipped: Vec<Offset>,
    /// Of the record before `to`.
    pub fingerprint: Option<i64>,
    /// Whether they move the end of a tail. The checkpoint that comes later accounts for offsets without a record.
    is_of_tail: bool,
}

impl Applying {
    /// A batch of one record or more.
    pub fn of(batch: Batch) -> Self {
        let fingerprint = batch.last_fingerprint();
        let Batch { records, to, missing, skipped, .. } = batch;
        Self { records: records.into(), to, missing, skipped, fingerprint, is_of_tail: false }
    }

    /// The same of a tail.
    pub fn of_tail(batch: Batch) -> Self {
        Self { is_of_tail: true, ..Self::of(batch) }
    }
}

/// Applies records that begin at `from`, in as many transactions as it takes; returns the checkpoint behind them. A record
/// that the store refuses, or whose fold panics, neither blocks the others nor is lost: it alone becomes a dead letter. Most
/// of the share is given back when the last record is written, before it is committed.
pub(crate) async fn apply(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    batch: Applying,
    share: &mut Share,
) -> Result<Checkpoint, ApplyError> {
    let mut reached = from;
    let mut parked = parked(task, claim, from).await.map_err(ApplyError::of)?;
    let records = &batch.records;
    // Runs that are still to be applied; the last one is the next.
    let mut runs: Vec<Range<usize>> = runs(records).into_iter().rev().collect();
    while let Some(run) = runs.pop() {
        let part = match &parked {
            Some(parked) if !run.is_empty() => parked.part(&records[run.clone()]),
            _ => Part::Free(run.len()),
        };
        let (Part::Free(count) | Part::Waits(count)) = part else {
            if let (Part::GivenUp(session), Some(parked)) = (part, &mut parked) {
                give_up(task, claim, reached, vec![session]).await.map_err(ApplyError::of)?;
                tracing::warn!(
                    partition = %claim.partition, %session,
                    "as many records as may wait behind a dead letter of their session: its later ones are applied"
                );
                parked.give_up(session);
            }
            runs.push(run);
            continue;
        };
        let (run, rest) = (run.start..run.start + count, run.start + count..run.end);
        if !rest.is_empty() {
            runs.push(rest);
        }
        let Some(last) = records[run.clone()].last() else { continue };
        let to = if runs.is_empty() { batch.to } else { Checkpoint::after(last.offset) };
        let goal = Goal::Passing { from: reached, to, batch: &batch };
        if let (Part::Waits(_), Some(parked)) = (part, &mut parked) {
            wait(task, claim, goal, &records[run], parked).await.map_err(ApplyError::of)?;
            reached = to;
            continue;
        }
        let share = runs.is_empty().then_some(&mut *share);
        match commit(task, claim, goal, records, run.clone(), parked.as_mut(), share)
            .await
            .map_err(ApplyError::of)?
        {
            RunOutcome::Applied => reached = to,
            RunOutcome::Poisoned(reason) if run.len() == 1 => {
                set_aside(task, claim, goal, last, reason, parked.as_mut()).await.map_err(ApplyError::of)?;
                reached = to;
            }
            RunOutcome::TooMany | RunOutcome::Poisoned(_) => runs.extend(halves(run)),
            RunOutcome::Cut(count) => {
                runs.extend([run.start + count..run.end, run.start..run.start + count]);
            }
        }
        if parked.is_some() && reached == to && is_command(&last.value) {
            // It may have taken letters away.
            parked = letters::parked(task, claim, reached).await.map_err(ApplyError::of)?;
        }
    }
    Ok(reached)
}

/// The second and the first half of a run.
pub(crate) fn halves(run: Range<usize>) -> [Range<usize>; 2] {
    let middle = run.start + run.len() / 2;
    [middle..run.end, run.start..middle]
}

/// What a commit of some records is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal<'a> {
    /// The checkpoint passes them, or the end of a tail does.
    Passing { from: Checkpoint, to: Checkpoint, batch: &'a Applying },
    /// They are dead letters that are tried again, by a command or because nothing holds them up any more.
    Trying { at: Checkpoint, command_id: Uuid, at_ms: i64, in_order: bool },
}

impl Goal<'_> {
    /// Both ends of the commit's interval.
    pub(crate) const fn interval(self) -> (Checkpoint, Checkpoint) {
        match self {
            Self::Passing { from, to, .. } => (from, to),
            Self::Trying { at, .. } => (at, at),
        }
    }

    /// The changes of these records with all that belongs to the commit.
    pub(crate) fn completed(self, changes: Changes, records: &[Record]) -> Changes {
        match self {
            Self::Passing { from, to, batch } => {
                let fingerprint = if to == batch.to {
                    batch.fingerprint
                } else {
                    records.last().map(|record| fingerprint(&record.value))
                };
                let changes = Changes { fingerprint, ..changes };
                if batch.is_of_tail {
                    return changes;
                }
                passing(changes, from, to, records.len(), &batch.missing, &batch.skipped)
            }
            Self::Trying { command_id, at_ms, in_order, .. } => {
                Changes { tried: Some(letters::tried(command_id, at_ms, in_order, records)), ..changes }
            }
        }
    }
}

/// The changes of so many records between two checkpoints, completed by the other offsets between them: those at which records are
/// missing, those that a tail has applied, and the rest, which never held a record for a reader. So every offset has an outcome (I2).
pub(crate) fn passing(
    changes: Changes,
    from: Checkpoint,
    to: Checkpoint,
    records: usize,
    missing: &[MissingRange],
    skipped: &[Offset],
) -> Changes {
    let missing = noted(missing, from, to);
    let lost: u64 = missing.iter().map(|missing| missing.records).sum();
    let skipped = between(skipped, from, to);
    let markers = from.lag(to.offset()).saturating_sub(records as u64 + lost + skipped);
    Changes { missing, markers, skipped, ..changes }
}

/// The parts of missing ranges that lie between two checkpoints, by cause.
fn noted(missing: &[MissingRange], from: Checkpoint, to: Checkpoint) -> Vec<Missing> {
    let mut noted = Vec::new();
    for cause in [MissingCause::Gap, MissingCause::Retention] {
        let of_cause = missing.iter().filter(|(_, found)| *found == cause);
        let ranges: Vec<_> = of_cause.map(|(range, _)| range.clone()).collect();
        noted.extend(within(&ranges, from, to, cause));
    }
    noted
}

/// Outcome of an attempt to commit a run of records.
pub(crate) enum RunOutcome {
    /// It is committed.
    Applied,
    /// It makes too many rows for one transaction; nothing was written. Take less of it.
    TooMany,
    /// One of its records cannot be applied, for this reason; nothing was written. Find it.
    Poisoned(String),
    /// Only so many of the records may be committed together; nothing was written. The next one waits behind one of them.
    Cut(usize),
}

/// Rows of data in one transaction, at most, unless a single record makes more: the statements that write them have a time
/// limit, and so has everything that waits for the transaction.
const DATA_ROWS_MAX: usize = 50_000;

/// Folds and commits one run of the records. If the store holds some of their events already, folds again without them.
pub(crate) async fn commit(
    task: &PartitionTask,
    claim: &Claim,
    goal: Goal<'_>,
    records: &Arc<[Record]>,
    run: Range<usize>,
    mut parked: Option<&mut Parked>,
    mut share: Option<&mut Share>,
) -> Result<RunOutcome, CommitError> {
    let (from, to) = goal.interval();
    let mut applied_before: HashSet<Uuid> = HashSet::new();
    let mut spans = RunSpans::begin(task, &records[run.clone()]);
    loop {
        spans.folds();
        let mut changes = match fold_aside(task, records, run.clone(), applied_before.clone()).await {
            Ok(changes) => changes,
            Err(panic) => return Ok(RunOutcome::Poisoned(format!("the fold panicked: {panic}"))),
        };
        spans.folded();
        if changes.data_rows() > DATA_ROWS_MAX && run.len() > 1 {
            return Ok(RunOutcome::TooMany);
        }
        if let Some(parked) = parked.as_deref() {
            parked.mark(&mut changes.dead_letters);
            if let Some(count) = cut(&records[run.clone()], &changes.dead_letters) {
                return Ok(RunOutcome::Cut(count));
            }
        }
        if let Some(copy) = &changes.erasure {
            erase_ahead(task, claim, from, copy).await?;
        }
        let own = |command: &&LetterCommand| command.is_about(&claim.log, claim.partition);
        if let Some(command) = changes.command.as_ref().filter(own) {
            // No letter that is tried is a command.
            Box::pin(letters::obey(task, claim, from, command)).await?;
        }
        let layouts = changes.barrier_of(&claim.log, claim.partition);
        if let Some(layouts) = layouts.filter(|_| task.shared.settings.parking.is_some()) {
            task.let_go(claim, from, layouts).await?;
        }
        let changes = goal.completed(changes, &records[run.clone()]);
        spans.commits();
        match commit_once(task, claim, from, to, changes, share.as_deref_mut()).await {
            Ok(dead_letters) => {
                spans.committed(&dead_letters);
                if let Some(dead) = dead_letters.last() {
                    tracing::warn!(
                        partition = %claim.partition, offset = %dead.offset, reason = dead.reason,
                        dead_letters = dead_letters.len(), "set records aside as dead letters"
                    );
                    report_dead_letter(task, claim, dead.offset, &dead.reason).await;
                }
                if let Some(parked) = &mut parked {
                    parked.committed(&dead_letters);
                }
                return Ok(RunOutcome::Applied);
            }
            Err(CommitError::Duplicates(ids)) if ids.iter().any(|id| !applied_before.contains(id)) => {
                applied_before.extend(ids);
            }
            Err(CommitError::Refused { source, .. }) => {
                return Ok(RunOutcome::Poisoned(format!("the store refuses its rows: {source}")));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Deletes the rows that an erasure covers in transactions of a bounded size, before the one that passes its record. If it
/// is interrupted, it is done again, and deletes what is left.
async fn erase_ahead(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    copy: &ErasureCopy,
) -> Result<(), CommitError> {
    let mut after = Some(Uuid::nil());
    while let Some(session) = after {
        let call = task.shared.progress.call(task.partition, "erasing rows");
        after = task.shared.store.erase_some(claim, from, copy, session).await?;
        drop(call);
    }
    Ok(())
}

/// How many times as much memory a batch takes while it is folded and written as its records take alone.
const OF_RECORDS: usize = 6;

/// Commits; returns the dead letters. As soon as the changes are written, their rows are dropped, and of the share only what the
/// records take is kept: other batches are read and folded until the transaction ends.
pub(crate) async fn commit_once(
    task: &PartitionTask,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: Changes,
    share: Option<&mut Share>,
) -> Result<Vec<DeadLetter>, CommitError> {
    let Shared { store, progress, metrics, .. } = &*task.shared;
    let (began, call) = (Instant::now(), progress.call(task.partition, "committing a batch"));
    let written = store.write(claim, from, to, &changes).await?;
    let summary = Summary::of(changes, progress);
    if let Some(share) = share {
        share.keep(share.bytes() / OF_RECORDS);
    }
    let committed = written.committed().await?;
    drop(call);
    metrics.committed(&summary, &committed, began.elapsed());
    let Summary { missing, dead_letters, described, .. } = summary;
    metrics.missing(&missing);
    if let Some(described) = described {
        progress.notify(described);
    }
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        tracing::warn!(
            partition = %claim.partition, from = %first.range.start, to = %last.range.end,
            records = missing.iter().map(|missing| missing.records).sum::<u64>(),
            "records are missing from the log; `dashi status` lists them"
        );
    }
    Ok(dead_letters)
}

/// Folds on a thread of its own: a batch takes milliseconds, and requests must not wait for it.
///
/// # Errors
/// The fold panicked: the text of the panic.
async fn fold_aside(
    task: &PartitionTask,
    records: &Arc<[Record]>,
    run: Range<usize>,
    applied_before: HashSet<Uuid>,
) -> Result<Changes, String> {
    let (fold, records, rules) =
        (task.shared.settings.fold, Arc::clone(records), Arc::clone(&task.shared.rules));
    let folding = move || catching(|| fold(&records[run], &applied_before, &rules));
    match task.shared.fold_threads.run(folding).await {
        Some(folded) => folded,
        // Panics are caught inside, so only a runtime that shuts down gets here, and it ends this task, too.
        None => std::future::pending().await,
    }
}

/// Commits one record as a dead letter.
pub(crate) async fn set_aside(
    task: &PartitionTask,
    claim: &Claim,
    goal: Goal<'_>,
    record: &Record,
    reason: String,
    parked: Option<&mut Parked>,
) -> Result<(), CommitError> {
    let mut changes = Changes::dead_letter(record, reason.clone());
    if let Some(parked) = parked.as_deref() {
        parked.mark(&mut changes.dead_letters);
    }
    let changes = goal.completed(changes, std::slice::from_ref(record));
    let (from, to) = goal.interval();
    let spans = RunSpans::begin(task, std::slice::from_ref(record));
    let dead_letters = commit_once(task, claim, from, to, changes, None).await?;
    spans.committed(&dead_letters);
    if let Some(parked) = parked {
        parked.committed(&dead_letters);
    }
    tracing::warn!(partition = %claim.partition, offset = %record.offset, reason, "set a record aside");
    report_dead_letter(task, claim, record.offset, &reason).await;
    Ok(())
}

impl ApplyError {
    pub fn of(error: CommitError) -> Self {
        match (error.outcome().next(), error) {
            (WriterStep::GiveUp, CommitError::Fenced { partition, held, current }) => {
                Self::Fenced(ClaimError::Fenced { partition, held, current })
            }
            (_, error) => Self::Interrupted(error),
        }
    }
}

/// Reports a dead letter to the store, where `dashi status` reads its reason. The logs and the table of dead letters have
/// it, too.
async fn report_dead_letter(task: &PartitionTask, claim: &Claim, offset: Offset, reason: &str) {
    let text = format!("the record at offset {offset} is a dead letter: {reason}");
    let note = ErrorNote { kind: "dead_letter", text: &text, at_ms: now_ms(), is_over: true };
    let call = task.shared.progress.call(task.partition, "reporting a dead letter");
    let noted = task.shared.store.note_error(claim, &note).await;
    drop(call);
    if let Err(error) = noted {
        tracing::debug!(partition = %claim.partition, error = %chain(&error), "a dead letter could not be reported to the store");
    }
}
