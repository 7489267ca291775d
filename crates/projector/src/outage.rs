//! Outages of a partition, each from its beginning to its end: one line in the logs when it begins, one when its cause
//! changes, one when it is over; waits that grow while it lasts; and an error in the store for `dashi status`.

use std::fmt;
use std::time::{Duration, Instant};

use dashi_archive::ArchiveError;
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::LogError;
use dashi_store::{Claim, CommitError, ErrorNote, StoreError};

use crate::partition::{Failure, Mode, PartitionTask};
use crate::progress::now_ms;
use crate::source::ReadError;
use crate::state::{FailureKind, PartitionState};

/// Causes of one outage that are logged, at most: a server may give its reasons in turns.
const CAUSES_MAX: usize = 8;

/// The error that interrupts a partition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The archive of a replay failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store failed to answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store failed to commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Log(error) => Self::Log(error),
            ReadError::Archive(error) => Self::Archive(error),
        }
    }
}

/// The action of the task that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doing {
    Claiming,
    Reading(Checkpoint),
    Committing(Checkpoint),
    Resuming,
    LookingAtOthers(Checkpoint),
    BeginningTail(Checkpoint),
    Projecting,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claiming => f.write_str("claiming the partition"),
            Self::Reading(from) => write!(f, "reading from offset {from} on"),
            Self::Committing(from) => write!(f, "committing from offset {from} on"),
            Self::Resuming => f.write_str("reading the checkpoint"),
            Self::LookingAtOthers(from) => {
                write!(f, "looking whether other partitions have passed the barrier before offset {from}")
            }
            Self::BeginningTail(at) => write!(f, "beginning a tail at offset {at}"),
            Self::Projecting => f.write_str("projecting"),
        }
    }
}

/// The part that is out. The outage of each part has its own beginning and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The log: reading.
    Log,
    /// The store: claims and commits.
    Store,
    /// The task itself: another projector claimed its partition, or it panicked.
    Task,
}

/// The outages of one partition.
pub(crate) struct Outages<'t> {
    task: &'t PartitionTask,
    log: Option<Outage>,
    store: Option<Outage>,
    task_itself: Option<Outage>,
    /// News for `dashi status` that the store has not taken yet.
    unreported: Option<Unreported>,
}

struct Outage {
    state: PartitionState,
    began: Instant,
    attempts: u32,
    /// The causes so far without their digits, so that another count or offset is no other cause.
    causes: Vec<String>,
    /// The last cause, in full.
    cause: String,
}

enum Unreported {
    Error { kind: &'static str, text: String, at_ms: i64, is_over: bool },
    Over,
}

impl Trouble {
    fn subject(&self) -> Subject {
        match self {
            Self::Log(_) | Self::Archive(_) => Subject::Log,
            Self::Store(_) | Self::Commit(_) => Subject::Store,
        }
    }

    fn state(&self) -> PartitionState {
        match self {
            Self::Log(LogError::Trimmed { .. }) => PartitionState::Failed(FailureKind::Trimmed),
            Self::Log(LogError::Beyond { .. }) => PartitionState::Failed(FailureKind::Beyond),
            Self::Log(LogError::Rewritten { .. }) => PartitionState::Failed(FailureKind::Rewritten),
            Self::Log(LogError::Replaced { .. }) => PartitionState::Failed(FailureKind::Replaced),
            Self::Log(LogError::Refused { .. }) => PartitionState::Failed(FailureKind::Refused),
            Self::Archive(error) if !error.is_temporary() => PartitionState::Failed(FailureKind::Archive),
            Self::Log(_) | Self::Archive(_) => PartitionState::WaitingForLog,
            Self::Store(StoreError::Version { .. } | StoreError::TablesTooOld { .. }) => {
                PartitionState::Failed(FailureKind::Tables)
            }
            Self::Store(_) | Self::Commit(_) => PartitionState::WaitingForStore,
        }
    }
}

impl<'t> Outages<'t> {
    pub fn new(task: &'t PartitionTask) -> Self {
        Self { task, log: None, store: None, task_itself: None, unreported: None }
    }

    /// Begins or continues an outage, and waits until it is time to try again: briefly at first, longer each time, never
    /// longer than the limit; not at all if the partition is to stop.
    ///
    /// # Errors
    /// In a replay, an error that waiting does not cure: a replay ends with it, so that the operator sees it.
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
        let (subject, text) = (trouble.subject(), chain(&trouble));
        let wait = self.begin(subject, state, doing, text);
        // If the store is out, the error is reported once it answers.
        if let (Subject::Log, Some(claim)) = (subject, claim) {
            self.report(claim).await;
        }
        if subject == Subject::Store {
            let wait = staggered(wait, self.task.partition);
            tokio::select! {
                () = self.task.pause(wait) => {}
                () = self.task.shared.store_is_back.notified() => {}
            }
        } else {
            self.task.pause(wait).await;
        }
        Ok(())
    }

    /// The log gave records, or was asked and had none.
    pub async fn log_answers(&mut self, claim: &Claim) {
        if self.end(Subject::Log) {
            self.report(claim).await;
        }
    }

    /// The store did what it was asked to do.
    pub async fn store_answers(&mut self, claim: &Claim) {
        if self.end(Subject::Store) {
            self.task.shared.store_is_back.notify_waiters();
        }
        self.report(claim).await;
    }

    /// The partition works: it has committed, or has nothing to commit.
    pub async fn works(&mut self, claim: &Claim) {
        if self.end(Subject::Task) || (self.unreported.is_some() && self.is_well()) {
            self.report(claim).await;
        }
    }

    /// The store holds an error of an earlier run that is not over yet.
    pub fn found_open_error(&mut self) {
        if self.unreported.is_none() && self.is_well() {
            self.unreported = Some(Unreported::Over);
        }
    }

    /// Whether an outage of the log is under way.
    pub fn is_log_out(&self) -> bool {
        self.log.is_some()
    }

    /// The task ended; returns how long to wait before it runs again.
    pub fn task_ended(&mut self, kind: FailureKind, text: String) -> Duration {
        // The outages of this run are over with it.
        (self.log, self.store) = (None, None);
        self.begin(Subject::Task, PartitionState::Failed(kind), Doing::Projecting, text)
    }

    /// Begins an outage, or adds an attempt and perhaps a cause to the one under way; logs a beginning and a new cause.
    /// Returns how long to wait.
    fn begin(&mut self, subject: Subject, state: PartitionState, doing: Doing, text: String) -> Duration {
        let task = self.task;
        let partition = task.partition;
        task.shared.progress.set_state(partition, state, Some(text.clone()));
        let key: String = text.chars().filter(|char| !char.is_ascii_digit()).collect();
        let mut is_new = true;
        match self.slot(subject) {
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
            self.unreported = Some(Unreported::Error { kind, text, at_ms: now_ms(), is_over: false });
        }
        let attempts = self.slot(subject).as_mut().map_or(0, |outage| {
            outage.attempts += 1;
            outage.attempts - 1
        });
        match state {
            PartitionState::Failed(FailureKind::ClaimLost) => RECLAIM,
            PartitionState::Failed(_) => task.failed_retry(),
            _ => backoff(attempts, task.shared.settings.retry_wait_max),
        }
    }

    /// Ends an outage and logs its end. Returns whether one was under way.
    fn end(&mut self, subject: Subject) -> bool {
        let Some(outage) = self.slot(subject).take() else { return false };
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
                match &mut self.unreported {
                    Some(Unreported::Error { is_over, .. }) => *is_over = true,
                    unreported => *unreported = Some(Unreported::Over),
                }
            }
        }
        true
    }

    fn slot(&mut self, subject: Subject) -> &mut Option<Outage> {
        match subject {
            Subject::Log => &mut self.log,
            Subject::Store => &mut self.store,
            Subject::Task => &mut self.task_itself,
        }
    }

    fn still_out(&self) -> Option<(PartitionState, &str)> {
        let outage = self.task_itself.as_ref().or(self.store.as_ref()).or(self.log.as_ref())?;
        Some((outage.state, &outage.cause))
    }

    fn is_well(&self) -> bool {
        self.still_out().is_none()
    }

    /// Reports news to the store, where `dashi status` reads them. If the store takes none now, they are reported the next
    /// time.
    pub async fn report(&mut self, claim: &Claim) {
        let task = self.task;
        let Some(news) = &self.unreported else { return };
        let call = task.shared.progress.call(task.partition, "reporting an error");
        let reported = match news {
            Unreported::Over => task.shared.store.note_over(claim).await,
            Unreported::Error { kind, text, at_ms, is_over } => {
                let note = ErrorNote { kind, text, at_ms: *at_ms, is_over: *is_over };
                task.shared.store.note_error(claim, &note).await
            }
        };
        drop(call);
        match reported {
            Ok(()) => self.unreported = None,
            // The error itself is in the logs already.
            Err(error) => {
                tracing::debug!(partition = %self.task.partition, error = %chain(&error), "the error could not be reported to the store yet");
            }
        }
    }
}

/// How long to wait before claiming a partition again that another projector took over, if the group still assigns it to
/// this process.
const RECLAIM: Duration = Duration::from_secs(3);

/// The first wait of an outage.
const FIRST_WAIT: Duration = Duration::from_millis(50);

fn backoff(attempts: u32, wait_max: Duration) -> Duration {
    FIRST_WAIT.saturating_mul(1 << attempts.min(16)).min(wait_max)
}

/// A wait for the store that is shorter by up to a half, by another part for each partition: they do not ask all at once, and the
/// first one that has an answer wakes the others.
fn staggered(wait: Duration, partition: Partition) -> Duration {
    // Multiples of the golden ratio, less their whole part, are spread evenly, however many there are.
    const GOLDEN: f64 = 0.618_033_988_749_895;
    wait.mul_f64(1.0 - (f64::from(partition.number()) * GOLDEN).fract() / 2.0)
}

/// An error with all its causes as one text, for a log line or the store. A cause that the text so far ends with is left
/// out.
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
    fn partitions_ask_at_different_times() {
        let wait = |partition| staggered(Duration::from_secs(5), Partition::new(partition)).as_millis();
        let mut waits: Vec<_> = (0..8).map(wait).collect();
        waits.sort_unstable();
        assert!(waits[0] >= 2_500 && waits[7] == 5_000, "{waits:?}");
        assert!(waits.windows(2).all(|two| two[1] - two[0] < 600), "{waits:?}");
    }

    #[test]
    fn waits_grow_to_the_limit() {
        let waits: Vec<_> =
            (0..5).map(|attempts| backoff(attempts, Duration::from_millis(300)).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 300, 300]);
        assert_eq!(backoff(u32::MAX, Duration::from_secs(5)), Duration::from_secs(5));
    }
}
