//! Progress of the projector and of this process's partitions: written by their tasks, read by metrics, by readiness and
//! when checkpoints are saved in the log. It outlives the projector.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dashi_domain::applied::AppliedEvents;
use dashi_domain::calendar::ms_since_1970;
use dashi_domain::fold::Changes;
use dashi_domain::liveness::{Liveness, Watched};
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::PartitionCheckpoint;
use tokio::sync::broadcast;

use crate::state::{PartitionState, ProjectorState};

/// How long the log may take to confirm that a checkpoint is saved before it is asked again.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// Events of a commit that are described, at most.
const DESCRIBED: usize = 100;

/// Commits that a receiver may be behind.
const COMMITS: usize = 64;

/// Progress of one process. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    process: Arc<Mutex<ProcessProgress>>,
    applied: Applied,
    liveness: Liveness,
    call_max: Duration,
}

/// The way of committed events to those who watch them.
#[derive(Debug, Clone)]
struct Applied(broadcast::Sender<Arc<AppliedEvents>>);

impl Default for Applied {
    fn default() -> Self {
        Self(broadcast::channel(COMMITS).0)
    }
}

/// State of the projector and progress of its partitions.
#[derive(Debug, Default)]
struct ProcessProgress {
    projector: ProjectorState,
    partitions: BTreeMap<Partition, PartitionProgress>,
}

/// Progress of one partition.
#[derive(Debug, Clone)]
struct PartitionProgress {
    state: PartitionState,
    /// When it entered this state.
    since: Instant,
    /// Why it is not running.
    error: Option<String>,
    /// `None` until it is claimed.
    checkpoint: Option<Checkpoint>,
    /// The checkpoint at its claim.
    began: Checkpoint,
    /// When the log took the oldest record not applied; `None` if there is none, or it is not known.
    oldest_appended_at_ms: Option<i64>,
    /// The checkpoint that the log has saved last.
    saved: Option<Checkpoint>,
    /// The checkpoint that the log was last asked to save, and when.
    asked: Option<(Checkpoint, Instant)>,
    /// The store's calls under way for it: each as a participle, with its number and when it began.
    calls: Vec<(u64, &'static str, Instant)>,
    /// The number of the next one.
    next_call: u64,
    /// Everything that its task does or waits for is noted here.
    watched: Arc<Watched>,
}

/// A partition that does not move, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The partition.
    pub partition: Partition,
    /// State of its task; `Running` if a call of the store takes too long.
    pub state: PartitionState,
    /// How long it has not moved.
    pub duration: Duration,
    /// Why, in words.
    pub reason: String,
    /// Whether one call of the store has taken longer than it may.
    pub is_overdue: bool,
}

/// Values of a partition for the gauges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub partition: Partition,
    pub state: PartitionState,
    pub checkpoint: Option<Checkpoint>,
    pub oldest_appended_at_ms: Option<i64>,
    /// Age of the store's call under way.
    pub call: Option<Duration>,
}

impl Progress {
    /// Progress whose partitions are watched: one that gets nothing done is stuck, while waiting for a server, with its bounds,
    /// is no standstill. A call of the store may take `call_max` beyond the usual silence.
    pub fn watched(liveness: Liveness, call_max: Duration) -> Self {
        Self { liveness, call_max, ..Self::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut ProcessProgress) -> T) -> T {
        act(&mut self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn update(&self, partition: Partition, act: impl FnOnce(&mut PartitionProgress)) {
        self.with(|process| {
            if let Some(progress) = process.partitions.get_mut(&partition) {
                progress.watched.moved();
                act(progress);
            }
        });
    }

    fn new_partition(&self, partition: Partition) -> PartitionProgress {
        PartitionProgress::new(self.liveness.watch(format!("partition {partition}")))
    }

    /// The events of each commit from now on, the last 100 of it described. A receiver that is more than some
    /// dozens of commits behind misses the oldest.
    pub fn applied_events(&self) -> broadcast::Receiver<Arc<AppliedEvents>> {
        self.applied.0.subscribe()
    }

    /// The events of a commit as those who watch are to be notified of them, if anybody watches.
    pub(crate) fn describe(&self, changes: &Changes) -> Option<AppliedEvents> {
        let is_watched = self.applied.0.receiver_count() > 0;
        is_watched.then(|| AppliedEvents::of(changes, DESCRIBED)).filter(|applied| applied.count > 0)
    }

    /// Notifies those who watch of what a commit applied.
    pub(crate) fn notify(&self, applied: AppliedEvents) {
        // The last receiver may have gone just now.
        let _ = self.applied.0.send(Arc::new(applied));
    }

    /// State of the projector.
    pub fn projector(&self) -> ProjectorState {
        self.with(|process| process.projector.clone())
    }

    /// Sets the state of the projector. A projector that is not up has no partitions.
    pub fn set_projector(&self, state: ProjectorState) {
        self.with(|process| {
            if state != ProjectorState::Up {
                process.partitions.clear();
            }
            process.projector = state;
        });
    }

    /// Number of partitions that are assigned to this process.
    pub fn partitions(&self) -> usize {
        self.with(|process| process.partitions.len())
    }

    /// The partitions of this process that do not move: those that are not running, and those for which one call of the
    /// store has taken longer than `call_max`.
    pub fn stuck(&self, call_max: Duration) -> Vec<Stuck> {
        self.with(|process| {
            process
                .partitions
                .iter()
                .filter_map(|(partition, progress)| progress.stuck(*partition, call_max))
                .collect()
        })
    }

    /// The partition is assigned to this process.
    pub(crate) fn assigned(&self, partition: Partition) {
        let progress = self.new_partition(partition);
        self.with(|process| process.partitions.insert(partition, progress));
    }

    /// The partition is worked on again by a replay; what was applied before counts still.
    pub(crate) fn assigned_again(&self, partition: Partition) {
        self.with(|process| {
            process.partitions.entry(partition).or_insert_with(|| self.new_partition(partition)).state =
                PartitionState::Running;
        });
    }

    /// The partition is no longer assigned to this process.
    pub(crate) fn revoked(&self, partition: Partition) {
        self.with(|process| process.partitions.remove(&partition));
    }

    pub(crate) fn claimed(&self, partition: Partition, checkpoint: Checkpoint) {
        self.update(partition, |progress| {
            progress.checkpoint = Some(checkpoint);
            progress.began = checkpoint;
        });
    }

    /// The partition was claimed again, and goes on where it was.
    pub(crate) fn resumed(&self, partition: Partition, checkpoint: Checkpoint) {
        self.update(partition, |progress| {
            if progress.checkpoint.is_none() {
                progress.began = checkpoint;
            }
            progress.checkpoint = Some(checkpoint);
        });
    }

    pub(crate) fn reached(&self, partition: Partition, checkpoint: Checkpoint) {
        self.update(partition, |progress| progress.checkpoint = Some(checkpoint));
    }

    /// Offsets that this process applied since it claimed the partition.
    pub(crate) fn applied(&self) -> u64 {
        self.with(|process| process.partitions.values().map(PartitionProgress::applied).sum())
    }

    /// The checkpoints of the partitions that were claimed.
    pub(crate) fn checkpoints(&self) -> Vec<PartitionCheckpoint> {
        self.with(|process| {
            let partitions = process.partitions.iter();
            partitions.filter_map(|(partition, progress)| Some((*partition, progress.checkpoint?))).collect()
        })
    }

    /// `oldest_appended_at_ms` is that of the oldest record not applied; `None` if there is none.
    pub(crate) fn behind(&self, partition: Partition, oldest_appended_at_ms: Option<i64>) {
        self.update(partition, |progress| progress.oldest_appended_at_ms = oldest_appended_at_ms);
    }

    pub(crate) fn set_state(&self, partition: Partition, state: PartitionState, error: Option<String>) {
        self.update(partition, |progress| {
            if progress.state != state {
                progress.since = Instant::now();
            }
            (progress.state, progress.error) = (state, error);
        });
    }

    /// The store is working for a partition until the returned value is dropped. `doing` is a participle.
    pub(crate) fn call(&self, partition: Partition, doing: &'static str) -> Call<'_> {
        let mut number = 0;
        self.update(partition, |progress| {
            number = progress.next_call;
            progress.next_call += 1;
            progress.calls.push((number, doing, Instant::now()));
            progress.watched.begins(doing, self.call_max);
        });
        Call { progress: self, partition, number }
    }

    /// The partition's task waits for so long at most, because it has nothing to do or nobody answers.
    pub(crate) fn waits(&self, partition: Partition, at_most: Duration) {
        self.update(partition, |progress| progress.watched.waits(at_most));
    }

    /// Checkpoints that the log has not saved and was not asked to save within the last seconds. The caller passes them to
    /// the log.
    pub(crate) fn take_unsaved(&self) -> Vec<PartitionCheckpoint> {
        self.with(|process| {
            let partitions = process.partitions.iter_mut();
            partitions
                .filter_map(|(partition, progress)| Some((*partition, progress.take_unsaved()?)))
                .collect()
        })
    }

    /// The log has saved these checkpoints.
    pub(crate) fn saved(&self, checkpoints: &[PartitionCheckpoint]) {
        // It is the log's answer and no move of the partition's task.
        self.with(|process| {
            for (partition, checkpoint) in checkpoints {
                if let Some(progress) = process.partitions.get_mut(partition) {
                    progress.saved = Some(*checkpoint);
                }
            }
        });
    }

    pub(crate) fn measured(&self) -> Vec<Measured> {
        self.with(|process| {
            let partitions = process.partitions.iter();
            partitions.map(|(partition, progress)| progress.measured(*partition)).collect()
        })
    }

    /// The values of one partition; `None` if it is not assigned to this process.
    pub(crate) fn measured_of(&self, partition: Partition) -> Option<Measured> {
        self.with(|process| Some(process.partitions.get(&partition)?.measured(partition)))
    }
}

impl PartitionProgress {
    fn new(watched: Watched) -> Self {
        Self {
            state: PartitionState::Running,
            since: Instant::now(),
            error: None,
            checkpoint: None,
            began: Checkpoint::START,
            oldest_appended_at_ms: None,
            saved: None,
            asked: None,
            calls: Vec::new(),
            next_call: 0,
            watched: Arc::new(watched),
        }
    }

    fn measured(&self, partition: Partition) -> Measured {
        Measured {
            partition,
            state: self.state,
            checkpoint: self.checkpoint,
            oldest_appended_at_ms: self.oldest_appended_at_ms,
            call: self.calls.first().map(|(.., since)| since.elapsed()),
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
        // The first one began first.
        if let Some((_, doing, since)) = self.calls.first().filter(|(.., since)| since.elapsed() > call_max) {
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
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.progress.update(self.partition, |progress| {
            progress.calls.retain(|(number, ..)| *number != self.number);
            match progress.calls.first() {
                None => progress.watched.done(),
                Some((_, doing, _)) => progress.watched.begins(doing, self.progress.call_max),
            }
        });
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
    use crate::state::FailureKind;

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
        progress.update(P, |partition| {
            let (_, when) = partition.asked.as_mut().expect("it was asked for");
            *when = when.checked_sub(SAVE_AGAIN).expect("the machine runs for longer");
        });
        assert_eq!(progress.take_unsaved(), [(P, at(5))], "the log has not confirmed it");
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
    fn a_partition_is_stuck_when_its_task_gets_nothing_done_and_not_while_it_waits() {
        let (liveness, second) = (Liveness::new(Duration::from_secs(10)), Duration::from_secs(1));
        let progress = Progress::watched(liveness.clone(), Duration::from_secs(60));
        progress.assigned(P);
        let stuck = || liveness.stuck().into_iter().map(|stuck| stuck.name).collect::<Vec<_>>();
        for _ in 0..5 {
            progress.set_state(P, PartitionState::WaitingForStore, None);
            progress.waits(P, Duration::from_secs(30));
            liveness.advance(40 * second);
            assert_eq!(stuck(), [""; 0], "a partition that waits for the store");
        }
        let call = progress.call(P, "committing a batch");
        liveness.advance(70 * second);
        assert_eq!(stuck(), [""; 0], "a call has its own bound");
        progress.saved(&[(P, at(5))]);
        liveness.advance(second);
        assert_eq!(stuck(), ["partition 3"], "the log's answer is no move");
        assert_eq!(liveness.stuck()[0].doing, Some("committing a batch"));
        drop(call);
        assert_eq!(stuck(), [""; 0]);
        liveness.advance(11 * second);
        assert_eq!(stuck(), ["partition 3"]);
        progress.revoked(P);
        assert_eq!(stuck(), [""; 0], "it has no task any more");
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
