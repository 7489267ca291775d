//! The backlog as the collector knows it: measured beside the requests, by the process, and read by each event.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dashi_domain::backlog::{Backlog, BacklogPolicy, PRIORITY_MAX};
use dashi_domain::partitioner::{key, partition_for};
use uuid::Uuid;

/// How long a measurement counts. After that the backlog is not known, and nothing is shed.
const FRESH: Duration = Duration::from_secs(15);

/// Settings of a [`BacklogGate`].
#[derive(Debug, Clone, Copy, Default)]
pub struct BacklogGateSettings {
    /// What happens to events while the backlog is too old.
    pub policy: BacklogPolicy,
    /// The age, in milliseconds, past which it is.
    pub age_max_ms: u64,
    /// Least value of `Retry-After`, in seconds.
    pub retry_after_s_min: u64,
    /// Largest value of `Retry-After`, in seconds; also the value while nothing is applied.
    pub retry_after_s_max: u64,
}

/// Sheds events by the age of their partition's backlog. Cheap to clone; clones are one.
#[derive(Debug, Clone, Default)]
pub struct BacklogGate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    settings: BacklogGateSettings,
    measured: RwLock<Option<Measured>>,
}

#[derive(Debug, Clone)]
struct Measured {
    at: Instant,
    /// One for each partition, in their order; `None` where it is not known.
    partitions: Arc<[Option<PartitionAge>]>,
}

/// The backlog of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PartitionAge {
    /// Age of the oldest record that is not applied, in milliseconds; 0 if there is none.
    pub age_ms: u64,
    /// Records that are applied per second; `None` if that is not known.
    pub applied_per_s: Option<f64>,
    /// By priority, the seconds after which its events are taken again; `None` where they are taken now, or nothing is
    /// applied.
    pub(crate) young_in_s: [Option<u32>; PRIORITY_MAX as usize + 1],
}

/// The backlog of all partitions together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BacklogState {
    /// Age of the oldest record of all, in milliseconds.
    pub age_ms: u64,
    /// Records that are applied per second.
    pub applied_per_s: Option<f64>,
    /// Partitions whose events of the lowest priority are shed.
    pub shedding: usize,
}

impl BacklogGate {
    /// A gate that knows no backlog yet.
    pub fn new(settings: BacklogGateSettings) -> Self {
        Self(Arc::new(Shared { settings, measured: RwLock::new(None) }))
    }

    /// The policy.
    pub fn policy(&self) -> BacklogPolicy {
        self.0.settings.policy
    }

    /// The age, in milliseconds, past which the backlog is too old.
    pub fn age_max_ms(&self) -> u64 {
        self.0.settings.age_max_ms
    }

    /// Whether it ever sheds.
    pub(crate) fn sheds(&self) -> bool {
        self.policy() != BacklogPolicy::Accept
    }

    /// The backlog of a partition as it was observed, for [`set`](Self::set).
    pub fn age_of(&self, backlog: &Backlog, now_ms: i64) -> PartitionAge {
        let age_ms = backlog.age_ms(now_ms);
        let mut young_in_s = [None; PRIORITY_MAX as usize + 1];
        for (priority, young_in_s) in (0..=PRIORITY_MAX).zip(&mut young_in_s) {
            let age_max_ms = self.policy().age_max_ms(self.age_max_ms(), priority);
            if let Some(age_max_ms) = age_max_ms.filter(|age_max_ms| age_ms > *age_max_ms) {
                *young_in_s = backlog.young_in_s(now_ms, age_max_ms).map(|wait_s| wait_s.ceil() as u32);
            }
        }
        PartitionAge { age_ms, applied_per_s: backlog.applied_per_s(), young_in_s }
    }

    /// Sets the backlog as it was at `at`: one value for each partition of the log, in their order.
    pub fn set(&self, partitions: Vec<Option<PartitionAge>>, at: Instant) {
        let measured = Measured { at, partitions: partitions.into() };
        *self.0.measured.write().unwrap_or_else(PoisonError::into_inner) = Some(measured);
    }

    /// The backlog of all partitions; `None` if it is not known now.
    pub fn state(&self, now: Instant) -> Option<BacklogState> {
        let measured = self.measured(now)?;
        let mut state: Option<BacklogState> = None;
        for partition in measured.partitions.iter().flatten() {
            let state = state.get_or_insert_default();
            state.age_ms = state.age_ms.max(partition.age_ms);
            state.shedding += usize::from(self.is_too_old(partition, 0));
            if let Some(per_s) = partition.applied_per_s {
                *state.applied_per_s.get_or_insert(0.0) += per_s;
            }
        }
        state
    }

    /// Whether an event of this session and priority is shed now: then the value of `Retry-After`, in seconds.
    pub(crate) fn sheds_now(&self, session_id: Uuid, priority: u8, now: Instant) -> Option<u64> {
        if !self.sheds() {
            return None;
        }
        let partitions = self.measured(now)?.partitions;
        let number = partition_for(key(session_id).as_bytes(), partitions.len().try_into().ok()?).number();
        let partition = partitions.get(number as usize)?.as_ref()?;
        if !self.is_too_old(partition, priority) {
            return None;
        }
        let settings = self.0.settings;
        let wait_s = partition.young_in_s[usize::from(priority.min(PRIORITY_MAX))];
        let wait_s = wait_s.map_or(settings.retry_after_s_max, u64::from);
        Some(wait_s.max(settings.retry_after_s_min).min(settings.retry_after_s_max).max(1))
    }

    fn is_too_old(&self, partition: &PartitionAge, priority: u8) -> bool {
        let age_max_ms = self.policy().age_max_ms(self.age_max_ms(), priority);
        age_max_ms.is_some_and(|age_max_ms| partition.age_ms > age_max_ms)
    }

    fn measured(&self, now: Instant) -> Option<Measured> {
        let measured = self.0.measured.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let is_fresh = now.saturating_duration_since(measured.at) <= FRESH;
        (is_fresh && !measured.partitions.is_empty()).then_some(measured)
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::position::{Checkpoint, Offset};

    use super::*;

    fn gate(policy: BacklogPolicy) -> BacklogGate {
        BacklogGate::new(BacklogGateSettings {
            policy,
            age_max_ms: 10_000,
            retry_after_s_min: 5,
            retry_after_s_max: 60,
        })
    }

    fn backlog(observations: &[(i64, u64, u64)]) -> Backlog {
        let mut backlog = Backlog::default();
        for (at_ms, checkpoint, high) in observations {
            backlog.observe(*at_ms, Checkpoint::at(Offset::new(*checkpoint)), Offset::new(*high));
        }
        backlog
    }

    #[test]
    fn the_wait_is_that_of_the_rate_within_its_bounds() {
        let (gate, now, session) = (gate(BacklogPolicy::Shed), Instant::now(), Uuid::from_u128(1));
        let wait = |observations: &[(i64, u64, u64)]| {
            gate.set(vec![Some(gate.age_of(&backlog(observations), 20_000))], now);
            gate.sheds_now(session, 0, now)
        };
        // All 200 records of the beginning are to be applied, at so many a second.
        assert_eq!(wait(&[(0, 0, 200), (20_000, 100, 200)]), Some(20));
        assert_eq!(wait(&[(0, 0, 200), (20_000, 199, 200)]), Some(5), "no less than the least");
        assert_eq!(wait(&[(0, 0, 200), (20_000, 1, 200)]), Some(60), "no more than the most");
        assert_eq!(wait(&[(0, 0, 200), (20_000, 0, 200)]), Some(60), "nothing is applied");
        assert_eq!(wait(&[(0, 0, 200), (20_000, 200, 200)]), None);
        assert_eq!(wait(&[(0, 0, 0), (10_000, 0, 200), (20_000, 0, 200)]), None, "just old enough");
    }

    #[test]
    fn lower_priorities_are_shed_first_and_only_in_partitions_that_are_behind() {
        let (gate, now) = (gate(BacklogPolicy::Priorities), Instant::now());
        let aged = |age_s: i64| Some(gate.age_of(&backlog(&[(0, 0, 10)]), age_s * 1_000));
        let number = |session: Uuid| partition_for(key(session).as_bytes(), 2).number();
        let sessions: Vec<Uuid> = (0..64).map(Uuid::from_u128).collect();
        let [behind, ahead] = [1, 0].map(|of| *sessions.iter().find(|id| number(**id) == of).expect("one"));
        for (age_s, shed) in [(10, 0), (11, 1), (20, 1), (21, 2), (101, 10)] {
            gate.set(vec![aged(0), aged(age_s)], now);
            let is_shed = |priority| gate.sheds_now(behind, priority, now).is_some();
            assert_eq!((0..=PRIORITY_MAX).filter(|priority| is_shed(*priority)).count(), shed, "{age_s}");
            assert_eq!(
                (0..shed as u8).filter(|priority| is_shed(*priority)).count(),
                shed,
                "the lowest ones"
            );
            assert_eq!(gate.sheds_now(ahead, 0, now), None);
            let state = gate.state(now).expect("it is known");
            assert_eq!((state.age_ms, state.shedding), (age_s as u64 * 1_000, usize::from(shed > 0)));
        }
        assert_eq!(gate.state(now + FRESH + Duration::from_secs(1)), None);
    }
}
