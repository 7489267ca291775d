//! Whether the tasks of a process go on: each notes that it moved, and one that has not for too long is stuck.
//!
//! Time is an argument, as everywhere here: a thread of the process's own calls [`Liveness::advance`], so that time in which
//! the whole process did not run (it was stopped, or its machine was) makes nobody late. Noting a move is an atomic store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The tasks of a process. All clones are one. The default watches nobody, as its time stands still.
#[derive(Debug, Clone, Default)]
pub struct Liveness(Arc<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    /// Time in which the process ran, in ms.
    now_ms: AtomicU64,
    /// Longest time between two moves of a task, in ms.
    silence_max_ms: u64,
    by_number: Mutex<(u64, BTreeMap<u64, Arc<Task>>)>,
}

#[derive(Debug, Default)]
struct Task {
    name: String,
    moved_ms: AtomicU64,
    /// Until when it may be silent.
    due_ms: AtomicU64,
    /// Its present action, for those who look, as a participle.
    doing: Mutex<Option<&'static str>>,
    /// Parts of its work that are under way; `None` if it always has some.
    under_way: Option<AtomicUsize>,
    is_lost: AtomicBool,
}

/// A task that is watched. It is no longer when this is dropped.
#[derive(Debug)]
pub struct Watched {
    tasks: Arc<Tasks>,
    task: Arc<Task>,
    number: u64,
}

/// A task that does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckTask {
    /// Its name, such as `partition 3`.
    pub name: String,
    /// How long it has not moved.
    pub silent: Duration,
    /// Its action when it moved last, as a participle.
    pub doing: Option<&'static str>,
    /// Whether it ended though it should run as long as the process.
    pub is_lost: bool,
}

impl Liveness {
    /// Tasks that are stuck when they have not moved for longer than this.
    pub fn new(silence_max: Duration) -> Self {
        Self(Arc::new(Tasks { silence_max_ms: ms(silence_max), ..Tasks::default() }))
    }

    /// Time has passed in which the process ran.
    pub fn advance(&self, passed: Duration) {
        self.0.now_ms.fetch_add(ms(passed), Ordering::Relaxed);
    }

    /// Watches a task, which moves now.
    pub fn watch(&self, name: impl Into<String>) -> Watched {
        self.insert(Task { name: name.into(), ..Task::default() })
    }

    /// Watches work that comes in parts: it may be silent while none is under way. It moves when one begins after none was
    /// under way, and when one ends.
    pub fn watch_work(&self, name: impl Into<String>) -> Watched {
        let under_way = Some(AtomicUsize::new(0));
        self.insert(Task { name: name.into(), under_way, ..Task::default() })
    }

    fn insert(&self, task: Task) -> Watched {
        let task = Arc::new(task);
        let mut tasks = self.0.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        let number = tasks.0;
        tasks.0 += 1;
        tasks.1.insert(number, Arc::clone(&task));
        drop(tasks);
        let watched = Watched { tasks: Arc::clone(&self.0), task, number };
        watched.moved();
        watched
    }

    /// The tasks that are stuck now, in the order in which they began.
    pub fn stuck(&self) -> Vec<StuckTask> {
        let now_ms = self.0.now_ms.load(Ordering::Relaxed);
        let tasks = self.0.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.1.values().filter_map(|task| task.stuck(now_ms)).collect()
    }
}

impl Task {
    fn stuck(&self, now_ms: u64) -> Option<StuckTask> {
        let is_lost = self.is_lost.load(Ordering::Relaxed);
        let has_work = self.under_way.as_ref().is_none_or(|parts| parts.load(Ordering::Acquire) > 0);
        let is_late = has_work && now_ms > self.due_ms.load(Ordering::Relaxed);
        (is_lost || is_late).then(|| StuckTask {
            name: self.name.clone(),
            silent: Duration::from_millis(now_ms.saturating_sub(self.moved_ms.load(Ordering::Relaxed))),
            doing: *self.doing.lock().unwrap_or_else(PoisonError::into_inner),
            is_lost,
        })
    }
}

impl Watched {
    /// The task moved.
    pub fn moved(&self) {
        self.moved_until(Duration::ZERO);
    }

    /// The task moved, and now rests or waits for so long, which is not counted as silence.
    pub fn waits(&self, at_most: Duration) {
        self.moved_until(at_most);
    }

    /// The task moved, and now does something that may take so long beyond its usual silence; until [`Watched::done`].
    pub fn begins(&self, doing: &'static str, at_most: Duration) {
        *self.task.doing.lock().unwrap_or_else(PoisonError::into_inner) = Some(doing);
        self.moved_until(at_most);
    }

    /// The task moved: what it began is done.
    pub fn done(&self) {
        *self.task.doing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.moved();
    }

    /// A part of the work begins, until the returned value is dropped.
    pub fn part(&self) -> Part<'_> {
        if let Some(parts) = &self.task.under_way {
            // In this order: whoever sees a part under way sees a move that is as new as its beginning, or as the end of
            // another one.
            if parts.load(Ordering::Relaxed) == 0 {
                self.moved();
            }
            parts.fetch_add(1, Ordering::AcqRel);
        }
        Part(self)
    }

    /// The task ended though it should run on.
    pub fn lost(self) {
        self.task.is_lost.store(true, Ordering::Relaxed);
    }

    fn moved_until(&self, at_most: Duration) {
        let now_ms = self.tasks.now_ms.load(Ordering::Relaxed);
        self.task.moved_ms.store(now_ms, Ordering::Relaxed);
        let due_ms = now_ms.saturating_add(self.tasks.silence_max_ms).saturating_add(ms(at_most));
        self.task.due_ms.store(due_ms, Ordering::Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.task.is_lost.load(Ordering::Relaxed) {
            let mut tasks = self.tasks.by_number.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.1.remove(&self.number);
        }
    }
}

/// A part of the work that is under way; see [`Watched::part`].
#[derive(Debug)]
pub struct Part<'w>(&'w Watched);

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if let Some(parts) = &self.0.task.under_way {
            self.0.moved();
            parts.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn names(liveness: &Liveness) -> Vec<(String, u64)> {
        liveness.stuck().into_iter().map(|stuck| (stuck.name, stuck.silent.as_secs())).collect()
    }

    #[test]
    fn a_task_that_does_not_move_is_stuck_until_it_moves() {
        let liveness = Liveness::new(10 * S);
        let (one, other) = (liveness.watch("one"), liveness.watch("other"));
        liveness.advance(10 * S);
        assert_eq!(names(&liveness), [], "the bound itself is allowed");
        other.moved();
        liveness.advance(Duration::from_millis(1));
        assert_eq!(names(&liveness), [("one".to_owned(), 10)]);
        liveness.advance(10 * S);
        assert_eq!(names(&liveness), [("one".to_owned(), 20), ("other".to_owned(), 10)]);
        one.moved();
        drop(other);
        assert_eq!(names(&liveness), [], "one that is dropped has ended");
    }

    #[test]
    fn a_wait_that_is_announced_is_no_silence() {
        let liveness = Liveness::new(10 * S);
        let task = liveness.watch("task");
        task.waits(30 * S);
        liveness.advance(40 * S);
        assert_eq!(names(&liveness), []);
        liveness.advance(S);
        assert_eq!(names(&liveness), [("task".to_owned(), 41)]);
        task.begins("committing", 5 * S);
        liveness.advance(16 * S);
        assert_eq!(liveness.stuck()[0].doing, Some("committing"));
        task.done();
        liveness.advance(11 * S);
        assert_eq!(liveness.stuck()[0].doing, None, "the allowance ends with the action");
    }

    #[test]
    fn work_may_be_silent_while_none_is_under_way() {
        let liveness = Liveness::new(10 * S);
        let work = liveness.watch_work("appends");
        liveness.advance(100 * S);
        assert_eq!(names(&liveness), []);
        let (first, second) = (work.part(), work.part());
        liveness.advance(10 * S);
        assert_eq!(names(&liveness), []);
        drop(second);
        liveness.advance(10 * S);
        assert_eq!(names(&liveness), [], "the end of one is a move");
        liveness.advance(S);
        assert_eq!(names(&liveness), [("appends".to_owned(), 11)]);
        drop(first);
        liveness.advance(100 * S);
        assert_eq!(names(&liveness), []);
    }

    #[test]
    fn a_task_that_is_lost_stays_stuck() {
        let liveness = Liveness::new(10 * S);
        liveness.watch("helper").lost();
        assert!(liveness.stuck()[0].is_lost);
        let nobody = Liveness::default();
        let _task = nobody.watch("task");
        assert_eq!(names(&nobody), [], "time stands still");
    }
}
