//! What goes wrong with a partition, from its beginning to its end: one line in the logs when it begins, one when its cause
//! changes, one when it is over; waits that grow while it lasts; and a note in the store for `dashi status`.

use std::fmt;
use std::time::{Duration, Instant};

use dashi_domain::position::Checkpoint;
use dashi_event_log::LogError;
use dashi_store::{Claim, CommitError, ErrorNote, StoreError};

use crate::partition::{Failure, Mode, PartitionTask};
use crate::progress::{FailureKind, PartitionState, now_ms};

/// Causes of one outage that are logged, at most: a server may give its reasons in turns.
const CAUSES_MAX: usize = 8;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store, when it was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store, when it was to commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What the task was about to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doing {
    Claiming,
    Reading(Checkpoint),
    Committing(Checkpoint),
    Resuming,
    Projecting,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claiming => f.write_str("claiming the partition"),
            Self::Reading(from) => write!(f, "reading from offset {from} on"),
            Self::Committing(from) => write!(f, "committing from offset {from} on"),
            Self::Resuming => f.write_str("reading the checkpoint"),
            Self::Projecting => f.write_str("projecting"),
        }
    }
}

/// What an outage is of: each has its own beginning and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Reading the log.
    Log,
    /// Claims and commits.
    Store,
    /// The task itself: it was taken from this process, or panicked.
    Task,
}

/// The outages of one partition.
pub(crate) struct Outages<'t> {
    task: &'t PartitionTask,
    log: Option<Outage>,
    store: Option<Outage>,
    task_itself: Option<Outage>,
    /// What the store is still to be told.
    unnoted: Option<Unnoted>,
}

struct Outage {
    state: PartitionState,
    began: Instant,
    attempts: u32,
    /// Without their digits, so that a count or an offset makes no other cause.
    causes: Vec<String>,
    /// The last one, as it was said.
    cause: String,
}

enum Unnoted {
    Error { kind: &'static str, text: String, at_ms: i64, is_over: bool },
    Over,
}

impl Trouble {
    fn of(&self) -> Of {
        match self {
            Self::Log(_) => Of::Log,
            Self::Store(_) | Self::Commit(_) => Of::Store,
        }
    }

    fn state(&self) -> PartitionState {
        match self {
            Self::Log(LogError::Trimmed { .. }) => PartitionState::Failed(FailureKind::Trimmed),
            Self::Log(LogError::Beyond { .. }) => PartitionState::Failed(FailureKind::Beyond),
            Self::Log(LogError::Rewritten { .. }) => PartitionState::Failed(FailureKind::Rewritten),
            Self::Log(LogError::Replaced { .. }) => PartitionState::Failed(FailureKind::Replaced),
            Self::Log(LogError::Refused { .. }) => PartitionState::Failed(FailureKind::Refused),
            Self::Log(_) => PartitionState::WaitingForLog,
            Self::Store(StoreError::Version { .. } | StoreError::TablesTooOld { .. }) => {
                PartitionState::Failed(FailureKind::Tables)
            }
            Self::Store(_) | Self::Commit(_) => PartitionState::WaitingForStore,
        }
    }
}

impl<'t> Outages<'t> {
    pub fn new(task: &'t PartitionTask) -> Self {
        Self { task, log: None, store: None, task_itself: None, unnoted: None }
    }

    /// Notes what failed while `doing`, and waits until it is time to try again: briefly at first, longer each time,
    /// never longer than the limit; at once if the partition is to stop.
    ///
    /// # Errors
    /// In a replay, what waiting does not help: nobody is there to mend it meanwhile.
    pub async fn wait(
        &mut self,
        claim: Option<&Claim>,
        doing: Doing,
        trouble: impl Into<Trouble>,
    ) -> Result<(), Failure> {
        let trouble = trouble.into();
        let state = trouble.state();
        if let (Mode::Replay { .. }, PartitionState::Failed(_)) = (&self.task.mode, state) {
            return Err(Failure::Trouble(trouble));
        }
        self.task.shared.metrics.count_retry();
        let (of, text) = (trouble.of(), chain(&trouble));
        let wait = self.begun(of, state, doing, text);
        // A store that does not answer is told when it does.
        if let (Of::Log, Some(claim)) = (of, claim) {
            self.note(claim).await;
        }
        self.task.pause(wait).await;
        Ok(())
    }

    /// The log gave records, or was asked and had none.
    pub async fn log_answers(&mut self, claim: &Claim) {
        if self.over(Of::Log) {
            self.note(claim).await;
        }
    }

    /// The store did what it was asked for.
    pub async fn store_answers(&mut self, claim: &Claim) {
        self.over(Of::Store);
        self.note(claim).await;
    }

    /// The partition works: it committed, or has nothing to commit.
    pub async fn works(&mut self, claim: &Claim) {
        if self.over(Of::Task) || (self.unnoted.is_some() && self.is_well()) {
            self.note(claim).await;
        }
    }

    /// The store holds an error of an earlier run that is not over yet.
    pub fn found_open_error(&mut self) {
        if self.unnoted.is_none() && self.is_well() {
            self.unnoted = Some(Unnoted::Over);
        }
    }

    /// Whether the log is out, as far as is known.
    pub fn is_log_out(&self) -> bool {
        self.log.is_some()
    }

    /// The task ended; returns how long to wait before it runs again.
    pub fn ended(&mut self, kind: FailureKind, text: String) -> Duration {
        // What it met in this run is no longer what keeps it.
        (self.log, self.store) = (None, None);
        self.begun(Of::Task, PartitionState::Failed(kind), Doing::Projecting, text)
    }

    /// Logs what is new, and returns how long to wait.
    fn begun(&mut self, of: Of, state: PartitionState, doing: Doing, text: String) -> Duration {
        let task = self.task;
        let partition = task.partition;
        task.shared.progress.set_state(partition, state, Some(text.clone()));
        let key: String = text.chars().filter(|char| !char.is_ascii_digit()).collect();
        let mut is_new = true;
        match self.slot(of) {
            Some(outage) => {
                outage.state = state;
                is_new = !outage.causes.contains(&key) && outage.causes.len() < CAUSES_MAX;
                if is_new {
                    let for_s = outage.began.elapsed().as_secs();
                    tracing::warn!(
                        partition = %partition, doing = %doing, error = text, state = state.name(), for_s,
                        "still interrupted, now for another reason"
                    );
                    outage.causes.push(key);
                }
                outage.cause.clone_from(&text);
            }
            slot @ None => {
                let (began, cause) = (Instant::now(), text.clone());
                *slot = Some(Outage { state, began, attempts: 0, causes: vec![key], cause });
                let kind = state.failure().map(FailureKind::name);
                match state {
                    PartitionState::Failed(FailureKind::ClaimLost) => tracing::warn!(
                        partition = %partition, error = text, "another projector took over"
                    ),
                    PartitionState::Failed(_) => tracing::error!(
                        partition = %partition, doing = %doing, error = text, kind,
                        retry_s = task.failed_retry().as_secs(),
                        "the partition has failed and does not move; the others go on"
                    ),
                    _ => tracing::warn!(
                        partition = %partition, doing = %doing, error = text, state = state.name(),
                        "interrupted; trying again until it works"
                    ),
                }
            }
        }
        if is_new && !matches!(state, PartitionState::Failed(FailureKind::ClaimLost)) {
            let kind = state.failure().map_or(state.name(), FailureKind::name);
            self.unnoted = Some(Unnoted::Error { kind, text, at_ms: now_ms(), is_over: false });
        }
        let attempts = self.slot(of).as_mut().map_or(0, |outage| {
            outage.attempts += 1;
            outage.attempts - 1
        });
        match state {
            PartitionState::Failed(FailureKind::ClaimLost) => RECLAIM,
            PartitionState::Failed(_) => task.failed_retry(),
            _ => backoff(attempts, task.shared.settings.retry_wait_max),
        }
    }

    /// Ends an outage if there is one, and says so.
    fn over(&mut self, of: Of) -> bool {
        let Some(outage) = self.slot(of).take() else { return false };
        let after_s = outage.began.elapsed().as_secs_f64();
        tracing::info!(
            partition = %self.task.partition, after_s = (after_s * 10.0).round() / 10.0,
            attempts = outage.attempts, was = outage.cause, "the interruption is over"
        );
        match self.still_out() {
            Some((state, cause)) => {
                let cause = cause.to_owned();
                self.task.shared.progress.set_state(self.task.partition, state, Some(cause));
            }
            None => {
                self.task.shared.progress.set_state(self.task.partition, PartitionState::Running, None);
                match &mut self.unnoted {
                    Some(Unnoted::Error { is_over, .. }) => *is_over = true,
                    unnoted => *unnoted = Some(Unnoted::Over),
                }
            }
        }
        true
    }

    fn slot(&mut self, of: Of) -> &mut Option<Outage> {
        match of {
            Of::Log => &mut self.log,
            Of::Store => &mut self.store,
            Of::Task => &mut self.task_itself,
        }
    }

    fn still_out(&self) -> Option<(PartitionState, &str)> {
        let outage = self.task_itself.as_ref().or(self.store.as_ref()).or(self.log.as_ref())?;
        Some((outage.state, &outage.cause))
    }

    fn is_well(&self) -> bool {
        self.still_out().is_none()
    }

    /// Leaves what is new where `dashi status` finds it. A store that takes no note now is told the next time.
    pub async fn note(&mut self, claim: &Claim) {
        let noted = match &self.unnoted {
            None => return,
            Some(Unnoted::Over) => self.task.shared.store.note_over(claim).await,
            Some(Unnoted::Error { kind, text, at_ms, is_over }) => {
                let note = ErrorNote { kind, text, at_ms: *at_ms, is_over: *is_over };
                self.task.shared.store.note_error(claim, &note).await
            }
        };
        match noted {
            Ok(()) => self.unnoted = None,
            // The line that tells of the error itself is in the logs already.
            Err(error) => {
                tracing::debug!(partition = %self.task.partition, error = %chain(&error), "an error is not noted yet");
            }
        }
    }
}

/// How long a partition that another projector took over, and that the group still gives to this process, stays alone
/// before it is claimed again.
const RECLAIM: Duration = Duration::from_secs(3);

/// The first wait of an outage.
const FIRST_WAIT: Duration = Duration::from_millis(50);

fn backoff(attempts: u32, wait_max: Duration) -> Duration {
    FIRST_WAIT.saturating_mul(1 << attempts.min(16)).min(wait_max)
}

/// An error with all its causes, for a log line or a note: at this edge nobody will look at the chain again.
pub(crate) fn chain(error: &(dyn std::error::Error + Sync)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit() {
        let waits: Vec<_> =
            (0..5).map(|attempts| backoff(attempts, Duration::from_millis(300)).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 300, 300]);
        assert_eq!(backoff(u32::MAX, Duration::from_secs(5)), Duration::from_secs(5));
    }
}
