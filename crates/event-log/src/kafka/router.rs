//! The partition of each record, by the layout in force; while the number of partitions grows, records of sessions that move
//! wait.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use dashi_domain::layout::{Growth, Layout, Routing, Way};
use dashi_domain::partitioner;
use dashi_domain::position::Partition;
use tokio::sync::watch;

use crate::NewRecord;

/// Decides partitions, and knows which appends are still under way by an earlier state.
pub(super) struct Router {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

struct State {
    routing: Routing,
    /// Held by every record that was sent by this state of the routing, until its outcome is known.
    current: Arc<()>,
    /// Those of earlier states, as long as a record holds one.
    earlier: Vec<Weak<()>>,
    /// How long the layouts may have gone unread, and when they were read last; `None` if that does not matter.
    lease: Option<(Duration, Instant)>,
}

/// Held until the outcome of a record is known.
#[derive(Clone)]
pub(super) struct UnderWay(
    #[expect(dead_code, reason = "it is held, and counted by its references")] Option<Arc<()>>,
);

impl UnderWay {
    /// Of a record that goes into a given partition, whatever the layout.
    pub const APART: Self = Self(None);
}

impl Router {
    pub fn new(layout: Layout) -> Self {
        let (routing, current) = (Routing::of(layout), Arc::new(()));
        let state = State { routing, current, earlier: Vec::new(), lease: None };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0) }
    }

    /// Nothing is known any more, until the next answer of the store.
    pub fn forget(&self) {
        self.change(|state| state.turn(Routing::UNKNOWN));
    }

    /// From now on nothing is sent when the layouts have not been read for so long.
    pub fn keep_lease(&self, lease: Duration) {
        self.change(|state| state.lease = Some((lease, Instant::now())));
    }

    /// These layouts were read, by a question that was asked at `asked`.
    pub fn see(&self, stored: &[(Layout, Growth)], asked: Instant) {
        self.change(|state| {
            let seen = state.routing.seen(stored);
            if seen != state.routing {
                state.turn(seen);
            }
            if let Some((_, read)) = &mut state.lease {
                *read = asked.max(*read);
            }
        });
    }

    pub fn routing(&self) -> Routing {
        self.state().routing
    }

    /// The version to acknowledge: once all records that were sent by earlier states have their outcome.
    pub fn acknowledges(&self) -> Option<u32> {
        let mut state = self.state();
        state.earlier.retain(|earlier| earlier.strong_count() > 0);
        state.routing.acknowledges().filter(|_| state.earlier.is_empty())
    }

    /// The partitions of records; `None` if one of them waits.
    pub fn partitions(&self, records: &[NewRecord]) -> Option<(Vec<Partition>, UnderWay)> {
        let state = self.state();
        if state.is_lease_over() {
            return None;
        }
        let way = |record: &NewRecord| match state.routing.way(partitioner::key(record.session_id).as_bytes())
        {
            Way::To(partition) => Some(partition),
            Way::Held => None,
        };
        let partitions = records.iter().map(way).collect::<Option<Vec<_>>>()?;
        Some((partitions, UnderWay(Some(Arc::clone(&state.current)))))
    }

    /// Whether there are records that wait.
    pub fn holds(&self) -> bool {
        let state = self.state();
        state.routing.holds() || state.is_lease_over()
    }

    /// Changes whenever records that wait may go.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn turn(&mut self, routing: Routing) {
        self.routing = routing;
        self.earlier.push(Arc::downgrade(&std::mem::replace(&mut self.current, Arc::new(()))));
    }

    fn is_lease_over(&self) -> bool {
        self.lease.is_some_and(|(lease, read)| read.elapsed() > lease)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn layouts(state: Growth) -> [(Layout, Growth); 2] {
        [(Layout { version: 0, partitions: 2 }, Growth::Open), (Layout { version: 1, partitions: 4 }, state)]
    }

    fn records() -> Vec<NewRecord> {
        (0..50).map(|number| NewRecord { session_id: Uuid::from_u128(number), value: Vec::new() }).collect()
    }

    #[test]
    fn a_growth_is_acknowledged_once_all_that_was_sent_before_has_its_outcome() {
        let (router, records) = (Router::new(Layout { version: 0, partitions: 2 }), records());
        let (partitions, sent) = router.partitions(&records).expect("nothing waits");
        assert!(partitions.iter().all(|partition| partition.number() < 2));
        assert_eq!(router.acknowledges(), Some(0));
        router.see(&layouts(Growth::Draining), Instant::now());
        assert!(router.partitions(&records).is_none() && router.holds());
        let stays = records.iter().find(|record| router.partitions(std::slice::from_ref(record)).is_some());
        let (_, later) =
            router.partitions(std::slice::from_ref(stays.expect("some stay"))).expect("it stays");
        assert_eq!(router.acknowledges(), None);
        drop(sent);
        // A record that was sent since does not move, and nobody waits for it.
        assert_eq!(router.acknowledges(), Some(1));
        router.see(&layouts(Growth::Open), Instant::now());
        let (partitions, _) = router.partitions(&records).expect("nothing waits");
        assert!(partitions.iter().any(|partition| partition.number() >= 2));
        assert_eq!(router.acknowledges(), None, "a growth that follows waits for what is under way");
        drop(later);
        assert_eq!(router.acknowledges(), Some(1));
    }

    #[test]
    fn nothing_is_sent_when_the_lease_is_over_or_nothing_is_known() {
        let (router, records) = (Router::new(Layout { version: 0, partitions: 2 }), records());
        router.keep_lease(Duration::from_secs(600));
        assert!(router.partitions(&records).is_some());
        router.keep_lease(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        assert!(router.partitions(&records).is_none());
        router.keep_lease(Duration::from_secs(600));
        router.forget();
        assert!(router.partitions(&records).is_none() && router.acknowledges().is_none());
        router.see(&layouts(Growth::Aborted), Instant::now());
        assert!(router.partitions(&records).is_some());
    }
}
