//! Dead letters: trying them again, and letting the later records of their sessions wait behind them.

use std::sync::Arc;

use dashi_domain::dead_letters::{LetterAction, LetterCommand, Tried, refusal};
use dashi_domain::fold::Changes;
use dashi_domain::parking::Parked;
use dashi_domain::position::Checkpoint;
use dashi_domain::record::Record;
use dashi_store::{Claim, CommitError, LetterToTry, StoreError};
use uuid::Uuid;

use crate::apply::{Goal, RunOutcome, commit, commit_once, halves, set_aside};
use crate::partition::PartitionTask;
use crate::progress::now_ms;

/// Dead letters that are read and tried at once.
const LETTERS_AT_ONCE: u32 = 100;

/// Does what a command says, in transactions before the one that passes it at `at`. Each letter's outcome commits with its
/// rows; after an interruption the others are tried. Letters that wait behind settled or discarded ones are tried, too.
pub(crate) async fn obey(
    task: &PartitionTask,
    claim: &Claim,
    at: Checkpoint,
    command: &LetterCommand,
) -> Result<(), CommitError> {
    match command.action {
        LetterAction::Retry => loop {
            let call = task.shared.progress.call(task.partition, "reading dead letters");
            let letters = task.shared.store.letters_to_try(claim, command, LETTERS_AT_ONCE).await;
            drop(call);
            let letters = letters.map_err(|error| away(claim, error))?;
            if letters.is_empty() {
                break;
            }
            let (ordered, late): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.in_order);
            let (command_id, at_ms) = (command.command_id, command.at_ms);
            try_some(task, claim, Goal::Trying { at, command_id, at_ms, in_order: false }, late).await?;
            try_some(task, claim, Goal::Trying { at, command_id, at_ms, in_order: true }, ordered).await?;
        },
        // The transaction that passes the command does it, unless something waits for it.
        LetterAction::Discard if task.shared.settings.parking.is_none() => {}
        LetterAction::Discard => {
            let nothing = tried(Uuid::nil(), 0, false, &[]);
            let changes =
                Changes { command: Some(command.clone()), tried: Some(nothing), ..Changes::default() };
            commit_once(task, claim, at, at, changes, None).await?;
        }
    }
    if task.shared.settings.parking.is_some() {
        release(task, claim, at).await?;
    }
    Ok(())
}

/// Tries letters that wait though no letter holds their session up any more: of each session one after the other, until none
/// waits or one of them holds the session up itself.
async fn release(task: &PartitionTask, claim: &Claim, at: Checkpoint) -> Result<(), CommitError> {
    loop {
        let call = task.shared.progress.call(task.partition, "reading dead letters");
        let letters = task.shared.store.released_letters(claim, LETTERS_AT_ONCE).await;
        drop(call);
        let letters = letters.map_err(|error| away(claim, error))?;
        if letters.is_empty() {
            return Ok(());
        }
        let goal = Goal::Trying { at, command_id: Uuid::nil(), at_ms: now_ms(), in_order: true };
        try_some(task, claim, goal, letters).await?;
    }
}

async fn try_some(
    task: &PartitionTask,
    claim: &Claim,
    goal: Goal<'_>,
    letters: Vec<LetterToTry>,
) -> Result<(), CommitError> {
    let letters: Arc<[Record]> = letters.into_iter().map(|letter| letter.record).collect();
    let whole = 0..letters.len();
    let mut runs = vec![whole];
    while let Some(run) = runs.pop().filter(|run| !run.is_empty()) {
        let refused = letters[run.clone()].iter().find_map(|letter| refusal(&letter.value));
        let outcome = match refused {
            Some(reason) => RunOutcome::Poisoned(reason.to_owned()),
            None => commit(task, claim, goal, &letters, run.clone(), None, None).await?,
        };
        match outcome {
            RunOutcome::Applied => {}
            RunOutcome::Poisoned(reason) if run.len() == 1 => {
                set_aside(task, claim, goal, &letters[run.start], reason, None).await?;
            }
            RunOutcome::TooMany | RunOutcome::Poisoned(_) | RunOutcome::Cut(_) => runs.extend(halves(run)),
        }
    }
    Ok(())
}

/// That these records are letters which were tried again.
pub(crate) fn tried(command_id: Uuid, at_ms: i64, in_order: bool, records: &[Record]) -> Tried {
    let offsets = records.iter().map(|record| record.offset).collect();
    Tried { command_id, at_ms, offsets, in_order }
}

/// The sessions that are held up, once nothing waits without a reason; `None` if sessions do not wait.
pub(crate) async fn parked(
    task: &PartitionTask,
    claim: &Claim,
    at: Checkpoint,
) -> Result<Option<Parked>, CommitError> {
    let Some(limits) = task.shared.settings.parking else { return Ok(None) };
    release(task, claim, at).await?;
    let held = task.shared.store.held_sessions(claim).await.map_err(|error| away(claim, error))?;
    Ok(Some(Parked::new(limits, held)))
}

/// Commits records that wait behind a letter of their session.
pub(crate) async fn wait(
    task: &PartitionTask,
    claim: &Claim,
    goal: Goal<'_>,
    records: &[Record],
    parked: &mut Parked,
) -> Result<(), CommitError> {
    let changes = goal.completed(parked.waiting(records), records);
    let (from, to) = goal.interval();
    let dead_letters = commit_once(task, claim, from, to, changes, None).await?;
    tracing::debug!(partition = %claim.partition, records = records.len(), "records wait behind dead letters");
    task.shared.metrics.parked(records.len() as u64, 0);
    parked.committed(&dead_letters);
    Ok(())
}

/// Gives the order of sessions up: their letters stay, and hold up nothing any more.
pub(crate) async fn give_up(
    task: &PartitionTask,
    claim: &Claim,
    at: Checkpoint,
    sessions: Vec<Uuid>,
) -> Result<(), CommitError> {
    let count = sessions.len() as u64;
    let nothing = tried(Uuid::nil(), 0, false, &[]);
    let changes = Changes { given_up: sessions, tried: Some(nothing), ..Changes::default() };
    commit_once(task, claim, at, at, changes, None).await?;
    task.shared.metrics.parked(0, count);
    Ok(())
}

pub(crate) fn away(claim: &Claim, error: StoreError) -> CommitError {
    CommitError::NotWritten { partition: claim.partition, source: Arc::new(error) }
}
