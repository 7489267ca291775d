//! A model of a log on Kafka that grows from one partition to two, checked in every order of the steps of two collectors, the
//! command, and the writers.
//!
//! All events are of one session, which moves. A client sends the next event when the last one was acknowledged, to any
//! collector. Collectors are killed, and their last record may arrive late; the command is killed at any step, and a
//! collector finishes what is committed. Where a record goes is decided by `dashi_domain::layout::Routing`, and for whom a writer
//! waits by `Passed`, which production code uses.

use dashi_domain::layout::{Growth, Layout, Passed, Routing, Way, moves};
use dashi_domain::partitioner::key;
use dashi_domain::position::Partition;
use stateright::{Checker, Model, Property};
use uuid::Uuid;

/// The rules that are followed; production follows all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    AsInProduction,
    /// A collector goes on with the old layout until the new one is open.
    WithoutHolding,
    /// A collector acknowledges while a record that it sent has no outcome.
    AcknowledgedTooSoon,
    /// The command commits without acknowledgements.
    WithoutAcknowledgements,
    /// A writer goes beyond a barrier at once.
    WithoutWaiting,
    /// The layout is opened before the barriers are in.
    OpenedTooSoon,
}

struct Log {
    rules: Rules,
    events: u8,
    kills: u8,
}

const OLD: Layout = Layout { version: 0, partitions: 1 };
const NEW: Layout = Layout { version: 1, partitions: 2 };
const GROWN: Passed = Passed { version: 1, from: 1, to: 2 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Record {
    Event(u8),
    Barrier,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Collector {
    routing: Routing,
    /// A record that has no outcome yet: the event, its partition, and whether it was sent by the present state of the
    /// routing.
    under_way: Option<(u8, usize, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// The state of the growth in the store; `None` before it.
    growth: Option<Growth>,
    /// What each collector has acknowledged; `None` if it is not registered.
    acknowledged: [Option<u32>; 2],
    collectors: [Option<Collector>; 2],
    /// Records of collectors that were killed.
    late: Vec<(u8, usize)>,
    /// The event that the client sends next, or again.
    next: u8,
    kills: u8,
    log: [Vec<Record>; 2],
    /// The writers: the next place, and the version of the last barrier passed.
    writers: [(usize, u32); 2],
    /// Events in the order in which they were first applied.
    applied: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Send(usize),
    /// The log takes the record, and the collector and the client learn of it.
    Acknowledged(usize),
    ArriveLate(usize),
    /// A collector reads the store.
    Look(usize),
    Acknowledge(usize),
    Kill(usize),
    Restart(usize),
    Begin,
    Commit,
    GiveUp,
    Barrier(usize),
    Open,
    Apply(usize),
}

fn session() -> String {
    (0..)
        .map(|number| key(Uuid::from_u128(number)))
        .find(|key| moves(key.as_bytes(), OLD.partitions, NEW.partitions))
        .expect("half of the sessions move")
}

impl State {
    fn stored(&self) -> Vec<(Layout, Growth)> {
        let mut stored = vec![(OLD, Growth::Open)];
        stored.extend(self.growth.map(|growth| (NEW, growth)));
        stored
    }

    fn has_all_barriers(&self) -> bool {
        self.log.iter().all(|records| records.contains(&Record::Barrier))
    }

    fn awaits(&self, partition: usize) -> bool {
        let (_, version) = self.writers[partition];
        version > 0
            && !GROWN
                .awaits(Partition::new(partition as u32), |other| self.writers[other.number() as usize].1)
                .is_empty()
    }
}

impl Model for Log {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let collector = || Some(Collector { routing: Routing::of(OLD), under_way: None });
        vec![State {
            growth: None,
            acknowledged: [Some(0); 2],
            collectors: [collector(), collector()],
            late: Vec::new(),
            next: 0,
            kills: 0,
            log: [Vec::new(), Vec::new()],
            writers: [(0, 0); 2],
            applied: Vec::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, collector) in state.collectors.iter().enumerate() {
            let Some(collector) = collector else {
                actions.push(Action::Restart(number));
                continue;
            };
            if state.kills < self.kills {
                actions.push(Action::Kill(number));
            }
            if collector.under_way.is_some() {
                actions.push(Action::Acknowledged(number));
            }
            // One request at a time, wherever it goes.
            let is_idle = state.collectors.iter().flatten().all(|collector| collector.under_way.is_none());
            if is_idle && state.next < self.events {
                actions.push(Action::Send(number));
            }
            if collector.routing.seen(&state.stored()) != collector.routing {
                actions.push(Action::Look(number));
            }
            let is_clear = collector.under_way.is_none_or(|(.., is_present)| is_present);
            let version = collector.routing.acknowledges();
            if (is_clear || self.rules == Rules::AcknowledgedTooSoon)
                && version.is_some()
                && version != state.acknowledged[number]
            {
                actions.push(Action::Acknowledge(number));
            }
        }
        actions.extend((0..state.late.len()).map(Action::ArriveLate));
        match state.growth {
            None => actions.push(Action::Begin),
            Some(Growth::Draining) => {
                let all = state.acknowledged.iter().all(|version| version.is_none_or(|version| version >= 1));
                if all || self.rules == Rules::WithoutAcknowledgements {
                    actions.push(Action::Commit);
                }
                actions.push(Action::GiveUp);
            }
            Some(Growth::Committed) => {
                // Old partitions first; a copy may follow when two processes finish it.
                actions.push(Action::Barrier(0));
                if state.log[0].contains(&Record::Barrier) {
                    actions.push(Action::Barrier(1));
                }
                if state.has_all_barriers() || self.rules == Rules::OpenedTooSoon {
                    actions.push(Action::Open);
                }
            }
            Some(Growth::Open) if self.rules == Rules::OpenedTooSoon => {
                actions.extend([Action::Barrier(0), Action::Barrier(1)]);
            }
            Some(Growth::Open | Growth::Aborted) => {}
        }
        for partition in 0..2 {
            let may_apply = self.rules == Rules::WithoutWaiting || !state.awaits(partition);
            if state.writers[partition].0 < state.log[partition].len() && may_apply {
                actions.push(Action::Apply(partition));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(number) => {
                let collector = state.collectors[number].as_mut()?;
                let way = match collector.routing.current() {
                    Some(current) if self.rules == Rules::WithoutHolding => {
                        Way::To(current.partition_of(session().as_bytes()))
                    }
                    _ => collector.routing.way(session().as_bytes()),
                };
                let Way::To(partition) = way else { return None };
                collector.under_way = Some((state.next, partition.number() as usize, true));
            }
            Action::Acknowledged(number) => {
                let (event, partition, _) = state.collectors[number].as_mut()?.under_way.take()?;
                state.log[partition].push(Record::Event(event));
                state.next = state.next.max(event + 1);
            }
            Action::ArriveLate(which) => {
                let (event, partition) = state.late.remove(which);
                state.log[partition].push(Record::Event(event));
            }
            Action::Look(number) => {
                let stored = state.stored();
                let collector = state.collectors[number].as_mut()?;
                collector.routing = collector.routing.seen(&stored);
                if let Some((.., is_present)) = &mut collector.under_way {
                    *is_present = false;
                }
            }
            Action::Acknowledge(number) => {
                state.acknowledged[number] = state.collectors[number].as_ref()?.routing.acknowledges();
            }
            Action::Kill(number) => {
                state.kills += 1;
                let collector = state.collectors[number].take()?;
                state.late.extend(collector.under_way.map(|(event, partition, _)| (event, partition)));
            }
            Action::Restart(number) => {
                // It notes itself, then it reads the store.
                state.acknowledged[number] = Some(0);
                let routing = Routing::UNKNOWN;
                state.collectors[number] = Some(Collector { routing, under_way: None });
            }
            Action::Begin => state.growth = Some(Growth::Draining),
            Action::Commit => state.growth = Some(Growth::Committed),
            Action::GiveUp => state.growth = Some(Growth::Aborted),
            Action::Open => state.growth = Some(Growth::Open),
            Action::Barrier(partition) => {
                let copies = state.log[partition].iter().filter(|record| **record == Record::Barrier).count();
                if copies > 1 {
                    return None;
                }
                state.log[partition].push(Record::Barrier);
            }
            Action::Apply(partition) => {
                let record = state.log[partition][state.writers[partition].0];
                state.writers[partition].0 += 1;
                match record {
                    Record::Barrier => state.writers[partition].1 = GROWN.version,
                    Record::Event(event) if !state.applied.contains(&event) => state.applied.push(event),
                    Record::Event(_) => {}
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "events are applied in the order in which they were sent",
                |_, state: &State| state.applied.is_sorted(),
            ),
            Property::sometimes(
                "the log grows, and all events are applied",
                |model: &Self, state: &State| {
                    state.growth == Some(Growth::Open)
                        && state.applied.len() == usize::from(model.events)
                        && state.log[1].len() > 1
                        && state.kills == model.kills
                },
            ),
        ]
    }
}

fn check(rules: Rules, events: u8, kills: u8) -> Vec<&'static str> {
    let checker = Log { rules, events, kills }.checker().spawn_bfs().join();
    assert!(checker.is_done(), "{} states", checker.unique_state_count());
    let mut found: Vec<&'static str> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    found
}

const GROWS: &str = "the log grows, and all events are applied";
const OUT_OF_ORDER: &str = "events are applied in the order in which they were sent";

#[test]
fn no_order_of_collectors_commands_kills_and_writers_reorders_a_session() {
    for (events, kills) in [(3, 0), (2, 1)] {
        // A "sometimes" that is found is an example; an "always" that is found is a violation.
        assert_eq!(check(Rules::AsInProduction, events, kills), [GROWS], "{events} {kills}");
    }
}

#[test]
fn each_rule_is_needed() {
    for rules in [
        Rules::WithoutHolding,
        Rules::AcknowledgedTooSoon,
        Rules::WithoutAcknowledgements,
        Rules::WithoutWaiting,
        Rules::OpenedTooSoon,
    ] {
        assert!(check(rules, 3, 0).contains(&OUT_OF_ORDER), "{rules:?}");
    }
}
