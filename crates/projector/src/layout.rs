//! Waiting at a barrier: records behind it are applied once the partitions out of which sessions came have passed it, too.

use std::collections::HashMap;
use std::time::Duration;

use dashi_domain::layout::{Barrier, Passed, moves};
use dashi_domain::log_record::LogRecord;
use dashi_domain::parking::session_of;
use dashi_domain::partitioner::{key, partition_for};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::LogError;
use dashi_store::{Claim, StoreError};
use uuid::Uuid;

use crate::letters::give_up;
use crate::outage::{Doing, Outages, Trouble};
use crate::partition::{Failure, Mode, PartitionTask};
use crate::source::Batch;
use crate::state::PartitionState;

/// How often a partition looks whether the others have passed the barrier.
const LOOK: Duration = Duration::from_millis(100);

/// The last barrier of a partition, and whether its writer may go beyond it.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    last: Option<Passed>,
    is_open: bool,
    /// The high watermarks of the partitions that are waited for, read behind the barrier: a writer that has reached its
    /// partition's has applied everything that was sent by the old layout. Retention may have removed the barrier there.
    ends: HashMap<Partition, Offset>,
    /// Whether it is shown as waiting.
    is_shown: bool,
}

/// Why it cannot be known whether the others have passed the barrier.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<LookError> for Trouble {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Store(error) => Self::Store(error),
            LookError::Log(error) => Self::Log(error),
        }
    }
}

impl Barriers {
    /// Of a partition that was claimed.
    pub fn of(claim: &Claim) -> Self {
        Self { last: claim.layout, ..Self::default() }
    }

    /// The partition's writer has passed this barrier.
    pub fn passed(&mut self, layouts: Passed) {
        if self.last.is_none_or(|last| last.version < layouts.version) {
            *self = Self { last: Some(layouts), ..Self::default() };
        }
    }

    /// Records that lie in another partition than the layout in force here says: other producers sent them, or a collector that
    /// the growth did not wait for. They are applied where they lie. Of a log that never grew, none is counted.
    pub fn misplaced(&self, partition: Partition, records: &[Record]) -> u64 {
        let Some(last) = self.last else { return 0 };
        let is_misplaced = |record: &&Record| {
            session_of(&record.value)
                .is_some_and(|session| partition_for(key(session).as_bytes(), last.to) != partition)
        };
        records.iter().filter(is_misplaced).count() as u64
    }

    /// Whether the others need not be looked at.
    pub const fn is_open(&self) -> bool {
        self.is_open || self.last.is_none()
    }

    /// Looks at the others; returns those that are waited for. There is a record behind the barrier.
    pub async fn look(&mut self, task: &PartitionTask) -> Result<Vec<Partition>, LookError> {
        let Some(last) = self.last.filter(|_| !self.is_open) else { return Ok(Vec::new()) };
        let shared = &task.shared;
        let call = shared.progress.call(task.partition, "looking at other partitions");
        let states = shared.store.partitions().await;
        drop(call);
        let states = states?;
        let states: HashMap<Partition, _> = states
            .into_iter()
            .filter(|state| state.log == *shared.log.id())
            .map(|state| {
                (state.partition, (state.layout.map_or(0, |passed| passed.version), state.checkpoint))
            })
            .collect();
        let mut awaited =
            last.awaits(task.partition, |source| states.get(&source).map_or(0, |(version, _)| *version));
        match task.mode {
            Mode::Replay { .. } => awaited.retain(|source| !shared.is_exhausted(*source)),
            Mode::Live { .. } => {
                for source in &awaited {
                    if !self.ends.contains_key(source) {
                        self.ends.insert(*source, shared.log.extent(*source).await?.high);
                    }
                }
                let reached = |source: &Partition| {
                    let checkpoint =
                        states.get(source).map_or(Checkpoint::START, |(_, checkpoint)| *checkpoint);
                    self.ends.get(source).is_some_and(|end| checkpoint.offset() >= *end)
                };
                awaited.retain(|source| !reached(source));
            }
        }
        self.is_open = awaited.is_empty();
        Ok(awaited)
    }
}

impl PartitionTask {
    /// The part of a batch up to a barrier that was written for this partition, and the rest of it.
    pub fn up_to_a_barrier(&self, mut batch: Batch) -> (Batch, Option<Batch>) {
        let Some(place) = batch.records.iter().position(|record| self.barrier(record).is_some()) else {
            return (batch, None);
        };
        let behind = batch.records.split_off(place + 1);
        let to = batch.records.last().map_or(batch.to, |barrier| Checkpoint::after(barrier.offset));
        if to == batch.to {
            return (batch, None);
        }
        let rest = Batch { records: behind, missing: batch.missing.clone(), ..Batch::empty(batch.to) };
        (Batch { to, ..batch }, Some(rest))
    }

    /// The barrier that a batch ends with.
    pub fn barrier_at_the_end(&self, batch: &Batch) -> Option<Passed> {
        batch.records.last().and_then(|record| self.barrier(record))
    }

    fn barrier(&self, record: &Record) -> Option<Passed> {
        match Barrier::is(&record.value).then(|| LogRecord::decode(&record.value)) {
            Some(Ok(LogRecord::Layout(barrier))) if barrier.is_of(self.shared.log.id(), self.partition) => {
                Some(barrier.layouts)
            }
            _ => None,
        }
    }

    /// Whether the records behind the last barrier may be applied. If not, it has waited for a moment; a replay does not
    /// wait.
    pub async fn may_go_on(
        &self,
        outages: &mut Outages<'_>,
        claim: &Claim,
        from: Checkpoint,
        barriers: &mut Barriers,
        batch: &Batch,
    ) -> Result<bool, Failure> {
        match barriers.look(self).await {
            Ok(awaited) if awaited.is_empty() => {
                if std::mem::take(&mut barriers.is_shown) {
                    tracing::info!(partition = %self.partition, "the other partitions have passed the barrier, too");
                    self.show_waiting(&[]);
                }
                return Ok(true);
            }
            Ok(_) if matches!(self.mode, Mode::Replay { .. }) => {}
            Ok(awaited) => {
                if !std::mem::replace(&mut barriers.is_shown, true) {
                    tracing::info!(partition = %self.partition, ?awaited, "waiting for other partitions at a barrier");
                }
                self.show_waiting(&awaited);
                let oldest_appended_at_ms = batch.records.first().map(|record| record.appended_at_ms);
                self.shared.progress.behind(self.partition, oldest_appended_at_ms);
                self.pause(LOOK).await;
            }
            Err(error) => outages.wait(Some(claim), Doing::LookingAtOthers(from), error).await?,
        }
        Ok(false)
    }

    /// Shows that the partition waits for others, or that it goes on.
    fn show_waiting(&self, awaited: &[Partition]) {
        let (state, reason) = if awaited.is_empty() {
            (PartitionState::Running, None)
        } else {
            let names: Vec<String> = awaited.iter().map(ToString::to_string).collect();
            let reason = format!(
                "sessions came out of partitions {} when the number of partitions grew: their records there are applied first",
                names.join(", ")
            );
            (PartitionState::WaitingForLayout, Some(reason))
        };
        self.shared.progress.set_state(self.partition, state, reason);
    }

    /// Sessions that wait behind a dead letter here, and whose records go to another partition since the barrier, wait no
    /// more: their letters stay.
    pub async fn let_go(
        &self,
        claim: &Claim,
        at: Checkpoint,
        layouts: Passed,
    ) -> Result<(), dashi_store::CommitError> {
        let call = self.shared.progress.call(self.partition, "reading sessions that wait");
        let held = self.shared.store.held_sessions(claim).await;
        drop(call);
        let held = held.map_err(|error| crate::letters::away(claim, error))?;
        let moved = |session: &Uuid| moves(key(*session).as_bytes(), layouts.from, layouts.to);
        let sessions: Vec<Uuid> = held.into_iter().map(|(session, ..)| session).filter(moved).collect();
        if sessions.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            partition = %claim.partition, sessions = sessions.len(),
            "sessions whose records wait behind dead letters go to other partitions: their later records are applied"
        );
        give_up(self, claim, at, sessions).await
    }
}
