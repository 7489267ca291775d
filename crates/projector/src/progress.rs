//! Where the projector and the partitions of this process stand: written by their tasks, read by metrics, readiness and
//! the log's bookkeeping. It outlives the projector.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dashi_domain::calendar::ms_since_1970;
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::PartitionCheckpoint;

/// How long a position that the log was asked to save may stay without an answer before it is asked again.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// Progress of one process. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    projector: ProjectorState,
    partitions: BTreeMap<Partition, Place>,
}

/// What a projector is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProjectorState {
    /// It has not begun: it waits for the store's tables, or is about to start.
    #[default]
    Starting,
    /// It projects the partitions that are this process's.
    Up,
    /// It ended with an error; the log keeps what it has not applied.
    Down(String),
}

/// What the task of a partition is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionState {
    /// It reads, folds and commits, or waits for records.
    Running,
    /// The store failed; it is tried again at growing intervals.
    WaitingForStore,
    /// The log failed; it is tried again at growing intervals.
    WaitingForLog,
    /// It cannot go on until somebody does something; it is tried again now and then.
    Failed(FailureKind),
}

/// Why a partition failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// Retention removed what comes next.
    Trimmed,
    /// The log ends before the checkpoint.
    Beyond,
    /// The log has other records than those that were projected.
    Rewritten,
    /// The topic was deleted and created again.
    Replaced,
    /// The topic's settings lose records.
    Refused,
    /// Another projector claimed the partition.
    ClaimLost,
    /// The store's tables are too old or too new for this program.
    Tables,
    /// The partition's task panicked.
    Panicked,
}

impl PartitionState {
    /// All states, as metrics and readiness name them.
    pub const NAMES: [&'static str; 4] = ["running", "waiting_for_store", "waiting_for_log", "failed"];

    /// The state's name, one of [`Self::NAMES`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::WaitingForStore => "waiting_for_store",
            Self::WaitingForLog => "waiting_for_log",
            Self::Failed(_) => "failed",
        }
    }

    /// The kind of a failure.
    pub const fn failure(self) -> Option<FailureKind> {
        match self {
            Self::Failed(kind) => Some(kind),
            _ => None,
        }
    }
}

impl FailureKind {
    /// The kind's name in metrics, readiness and `dashi status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Beyond => "beyond",
            Self::Rewritten => "rewritten",
            Self::Replaced => "replaced",
            Self::Refused => "refused",
            Self::ClaimLost => "claim_lost",
            Self::Tables => "tables",
            Self::Panicked => "panicked",
        }
    }
}

#[derive(Debug, Clone)]
struct Place {
    state: PartitionState,
    /// Since when it is in this state.
    since: Instant,
    /// Why it is not running.
    error: Option<String>,
    /// `None` until it is claimed.
    checkpoint: Option<Checkpoint>,
    /// Where it stood when it was claimed.
    began: Checkpoint,
    /// When the log took the oldest record not applied; `None` if there is none, or it is not known.
    oldest_appended_at_ms: Option<i64>,
    /// What the log has saved.
    saved: Option<Checkpoint>,
    /// What the log was last asked to save, and when.
    asked: Option<(Checkpoint, Instant)>,
    /// What the store is doing for it, and since when.
    call: Option<(&'static str, Instant)>,
}

/// A partition that does not move, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The partition.
    pub partition: Partition,
    /// What its task is doing; running, if it is a call of the store that takes too long.
    pub state: PartitionState,
    /// For how long.
    pub duration: Duration,
    /// Why, in words.
    pub reason: String,
    /// Whether the store has been working on one call for longer than it may.
    pub is_overdue: bool,
}

/// What is measured of a partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub partition: Partition,
    pub state: PartitionState,
    pub checkpoint: Option<Checkpoint>,
    pub oldest_appended_at_ms: Option<i64>,
    /// How long the store has been working on the call under way.
    pub call: Option<Duration>,
}

impl Progress {
    fn with<T>(&self, act: impl FnOnce(&mut Board) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn at(&self, partition: Partition, act: impl FnOnce(&mut Place)) {
        self.with(|board| board.partitions.get_mut(&partition).map(act));
    }

    /// What the projector is doing.
    pub fn projector(&self) -> ProjectorState {
        self.with(|board| board.projector.clone())
    }

    /// Says what the projector is doing. One that does not run has no partitions.
    pub fn set_projector(&self, state: ProjectorState) {
        self.with(|board| {
            if state != ProjectorState::Up {
                board.partitions.clear();
            }
            board.projector = state;
        });
    }

    /// Partitions of this process.
    pub fn partitions(&self) -> usize {
        self.with(|board| board.partitions.len())
    }

    /// The partitions of this process that do not move: those that do not run, and those for which the store has been
    /// working on one call for longer than `call_max`.
    pub fn stuck(&self, call_max: Duration) -> Vec<Stuck> {
        self.with(|board| {
            board
                .partitions
                .iter()
                .filter_map(|(partition, place)| place.stuck(*partition, call_max))
                .collect()
        })
    }

    /// The partition is this process's.
    pub(crate) fn assigned(&self, partition: Partition) {
        self.with(|board| board.partitions.insert(partition, Place::new()));
    }

    /// The partition is another process's to speak of.
    pub(crate) fn revoked(&self, partition: Partition) {
        self.with(|board| board.partitions.remove(&partition));
    }

    pub(crate) fn claimed(&self, partition: Partition, checkpoint: Checkpoint) {
        self.at(partition, |place| {
            place.checkpoint = Some(checkpoint);
            place.began = checkpoint;
        });
    }

    pub(crate) fn reached(&self, partition: Partition, checkpoint: Checkpoint) {
        self.at(partition, |place| place.checkpoint = Some(checkpoint));
    }

    /// Offsets that this process applied since it claimed the partition.
    pub(crate) fn applied(&self) -> u64 {
        self.with(|board| board.partitions.values().map(Place::applied).sum())
    }

    /// The checkpoints of the partitions that were claimed.
    pub(crate) fn checkpoints(&self) -> Vec<PartitionCheckpoint> {
        self.with(|board| {
            let places = board.partitions.iter();
            places.filter_map(|(partition, place)| Some((*partition, place.checkpoint?))).collect()
        })
    }

    /// `oldest_appended_at_ms` is that of the oldest record not applied; `None` if there is none.
    pub(crate) fn behind(&self, partition: Partition, oldest_appended_at_ms: Option<i64>) {
        self.at(partition, |place| place.oldest_appended_at_ms = oldest_appended_at_ms);
    }

    pub(crate) fn set_state(&self, partition: Partition, state: PartitionState, error: Option<String>) {
        self.at(partition, |place| {
            if place.state != state {
                place.since = Instant::now();
            }
            (place.state, place.error) = (state, error);
        });
    }

    /// The store is at work for a partition until what is returned is dropped.
    pub(crate) fn call(&self, partition: Partition, doing: &'static str) -> Call<'_> {
        self.at(partition, |place| place.call = Some((doing, Instant::now())));
        Call { progress: self, partition }
    }

    /// Checkpoints that the log has not saved and that it is time to ask it for.
    pub(crate) fn take_unsaved(&self) -> Vec<PartitionCheckpoint> {
        self.with(|board| {
            let places = board.partitions.iter_mut();
            places.filter_map(|(partition, place)| Some((*partition, place.take_unsaved()?))).collect()
        })
    }

    /// The log has saved these.
    pub(crate) fn saved(&self, checkpoints: &[PartitionCheckpoint]) {
        for (partition, checkpoint) in checkpoints {
            self.at(*partition, |place| place.saved = Some(*checkpoint));
        }
    }

    pub(crate) fn measured(&self) -> Vec<Measured> {
        self.with(|board| {
            let places = board.partitions.iter();
            places
                .map(|(partition, place)| Measured {
                    partition: *partition,
                    state: place.state,
                    checkpoint: place.checkpoint,
                    oldest_appended_at_ms: place.oldest_appended_at_ms,
                    call: place.call.map(|(_, since)| since.elapsed()),
                })
                .collect()
        })
    }
}

impl Place {
    fn new() -> Self {
        Self {
            state: PartitionState::Running,
            since: Instant::now(),
            error: None,
            checkpoint: None,
            began: Checkpoint::START,
            oldest_appended_at_ms: None,
            saved: None,
            asked: None,
            call: None,
        }
    }

    fn applied(&self) -> u64 {
        self.checkpoint.map_or(0, |checkpoint| self.began.lag(checkpoint.offset()))
    }

    fn take_unsaved(&mut self) -> Option<Checkpoint> {
        let checkpoint = self.checkpoint.filter(|checkpoint| self.saved != Some(*checkpoint))?;
        let is_asked = self.asked.is_some_and(|(asked, at)| asked == checkpoint && at.elapsed() < SAVE_AGAIN);
        if is_asked {
            return None;
        }
        self.asked = Some((checkpoint, Instant::now()));
        Some(checkpoint)
    }

    fn stuck(&self, partition: Partition, call_max: Duration) -> Option<Stuck> {
        if let Some((doing, since)) = self.call.filter(|(_, since)| since.elapsed() > call_max) {
            let reason = format!("the store has been {doing} for longer than {} ms", call_max.as_millis());
            let (state, duration) = (self.state, since.elapsed());
            return Some(Stuck { partition, state, duration, reason, is_overdue: true });
        }
        if self.state == PartitionState::Running {
            return None;
        }
        Some(Stuck {
            partition,
            state: self.state,
            duration: self.since.elapsed(),
            reason: self.error.clone().unwrap_or_default(),
            is_overdue: false,
        })
    }
}

/// A call of the store that is under way; see [`Progress::call`].
pub(crate) struct Call<'p> {
    progress: &'p Progress,
    partition: Partition,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.progress.at(self.partition, |place| place.call = None);
    }
}

#[expect(clippy::disallowed_methods, reason = "lag in seconds and notes of errors are of the wall clock")]
pub(crate) fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use dashi_domain::position::Offset;

    use super::*;

    const P: Partition = Partition::new(3);

    fn at(offset: u64) -> Checkpoint {
        Checkpoint::at(Offset::new(offset))
    }

    #[test]
    fn a_position_is_asked_for_until_it_is_saved() {
        let progress = Progress::default();
        progress.assigned(P);
        assert_eq!(progress.take_unsaved(), [], "nothing is claimed");
        progress.claimed(P, at(5));
        assert_eq!(progress.take_unsaved(), [(P, at(5))]);
        assert_eq!(progress.take_unsaved(), [], "it was asked for a moment ago");
        progress.at(P, |place| {
            let (_, when) = place.asked.as_mut().expect("it was asked for");
            *when = when.checked_sub(SAVE_AGAIN).expect("the machine runs for longer");
        });
        assert_eq!(progress.take_unsaved(), [(P, at(5))], "nobody said that it is saved");
        progress.saved(&[(P, at(5))]);
        assert_eq!(progress.take_unsaved(), []);
        progress.reached(P, at(9));
        assert_eq!(progress.take_unsaved(), [(P, at(9))]);
    }

    #[test]
    fn an_answer_to_an_earlier_save_does_not_hide_a_later_position() {
        let progress = Progress::default();
        progress.assigned(P);
        progress.claimed(P, at(5));
        progress.take_unsaved();
        progress.reached(P, at(9));
        progress.saved(&[(P, at(5))]);
        assert_eq!(progress.take_unsaved(), [(P, at(9))]);
    }

    #[test]
    fn a_call_of_the_store_is_overdue_while_it_takes_too_long() {
        let progress = Progress::default();
        progress.assigned(P);
        let call = progress.call(P, "committing a batch");
        assert_eq!(progress.stuck(Duration::from_secs(60)), []);
        let stuck = progress.stuck(Duration::ZERO);
        assert!(matches!(&stuck[..], [Stuck { is_overdue: true, .. }]), "{stuck:?}");
        assert!(stuck[0].reason.contains("committing a batch"), "{stuck:?}");
        drop(call);
        assert_eq!(progress.stuck(Duration::ZERO), []);
    }

    #[test]
    fn a_projector_that_is_down_has_no_partitions() {
        let progress = Progress::default();
        progress.set_projector(ProjectorState::Up);
        progress.assigned(P);
        progress.set_state(P, PartitionState::Failed(FailureKind::Beyond), Some("why".to_owned()));
        assert_eq!(progress.stuck(Duration::MAX).len(), 1);
        progress.set_projector(ProjectorState::Down("why".to_owned()));
        assert_eq!((progress.partitions(), progress.stuck(Duration::MAX)), (0, Vec::new()));
    }
}
