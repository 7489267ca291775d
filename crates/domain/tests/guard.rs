//! A model of writers, a store and the network between them, checked in every order of their steps.
//!
//! Any number of writers may believe that a partition is theirs: the group protocol's assignment is not part of the
//! safety. A commit that was sent may be executed at any later time, once, or never; its answer may be lost; a writer may
//! crash or freeze at any point, and then its commit is still on the way. The store executes one at a time. The rows'
//! transitions and the writers' reactions are those of `dashi_domain::guard`, which production code uses.

use dashi_domain::guard::{CommitOutcome, GuardRow, Position, WriterStep};
use dashi_domain::position::{Checkpoint, Epoch, Offset};
use stateright::{Checker, Model, Property};

/// What of the guard is checked; production checks both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    Both,
    WithoutEpoch,
    WithoutCheckpoint,
}

/// The bounds of the model.
struct Partition {
    guard: Guard,
    writers: usize,
    /// Records in the log.
    records: u64,
    /// Claims, at most.
    claims: u64,
    /// Commits on the way at once, at most.
    in_flight: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    row: GuardRow,
    /// How often each record's rows were written.
    written: Vec<u8>,
    writers: Vec<Writer>,
    /// Commits that were sent and that the store has neither executed nor lost, in order. A writer may send one again
    /// while the first is still on the way.
    network: Vec<Commit>,
    /// Whether a commit of an older epoch succeeded after a newer claim.
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    /// It holds no claim: not started, crashed, or it gave up.
    Idle,
    /// It holds a claim and reads on from here.
    Reading { epoch: Epoch, from: Checkpoint },
    /// It waits for the outcome of a commit.
    Waiting(Commit),
    /// It is to read the stored checkpoint.
    Resuming { epoch: Epoch },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Commit {
    writer: usize,
    epoch: Epoch,
    from: Checkpoint,
    to: Checkpoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Claim(usize),
    /// The writer reads some records and sends their commit.
    Send(usize, u64),
    /// The store executes a commit of the network; its answer arrives, if the writer still waits, or is lost.
    Execute(Commit, Answer),
    /// A commit is lost on its way.
    Lose(Commit),
    /// The writer waits no longer; the commit may still be on the way.
    TimeOut(usize),
    Resume(usize),
    Crash(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Arrives,
    IsLost,
}

fn at(offset: u64) -> Checkpoint {
    Checkpoint::at(Offset::new(offset))
}

impl Partition {
    fn execute(&self, row: GuardRow, commit: Commit) -> (GuardRow, CommitOutcome) {
        let Commit { epoch, from, to, .. } = commit;
        let moved = match self.guard {
            Guard::Both => row.commit(epoch, Position::Checkpoint, from, to, 0),
            Guard::WithoutEpoch => row.commit(row.epoch, Position::Checkpoint, from, to, 0),
            Guard::WithoutCheckpoint => row.commit(epoch, Position::Checkpoint, row.checkpoint, to, 0),
        };
        match moved {
            Ok(row) => (row, CommitOutcome::Moved),
            Err(refusal) => (row, CommitOutcome::Refused(refusal)),
        }
    }
}

/// A writer that waits for this commit learns its outcome.
fn answer(writer: &mut Writer, commit: Commit, outcome: CommitOutcome) {
    if *writer == Writer::Waiting(commit) {
        *writer = match outcome.next() {
            WriterStep::GoOn => Writer::Reading { epoch: commit.epoch, from: commit.to },
            WriterStep::Resume => Writer::Resuming { epoch: commit.epoch },
            WriterStep::Claim | WriterStep::GiveUp => Writer::Idle,
        };
    }
}

impl Model for Partition {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            row: GuardRow::UNCLAIMED,
            written: vec![0; self.records as usize],
            writers: vec![Writer::Idle; self.writers],
            network: Vec::new(),
            stale: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (place, writer) in state.writers.iter().enumerate() {
            match writer {
                Writer::Idle if state.row.epoch.number() < self.claims => actions.push(Action::Claim(place)),
                Writer::Idle => {}
                Writer::Reading { from, .. } => {
                    if state.network.len() < self.in_flight {
                        let left = self.records - from.offset().number();
                        actions.extend((1..=left).map(|records| Action::Send(place, records)));
                    }
                    actions.push(Action::Crash(place));
                }
                Writer::Waiting(_) => actions.extend([Action::TimeOut(place), Action::Crash(place)]),
                Writer::Resuming { .. } => actions.extend([Action::Resume(place), Action::Crash(place)]),
            }
        }
        for commit in &state.network {
            actions.extend([
                Action::Execute(*commit, Answer::Arrives),
                Action::Execute(*commit, Answer::IsLost),
                Action::Lose(*commit),
            ]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Claim(place) => {
                state.row = state.row.claim();
                state.writers[place] = Writer::Reading { epoch: state.row.epoch, from: state.row.checkpoint };
            }
            Action::Send(place, records) => {
                let Writer::Reading { epoch, from } = state.writers[place] else { return None };
                let to = at(from.offset().number() + records);
                let commit = Commit { writer: place, epoch, from, to };
                state.writers[place] = Writer::Waiting(commit);
                state.network.push(commit);
                state.network.sort_unstable();
            }
            Action::Execute(commit, reply) => {
                state.network.remove(state.network.binary_search(&commit).ok()?);
                let (row, outcome) = self.execute(state.row, commit);
                if outcome == CommitOutcome::Moved {
                    let offsets = commit.from.offset().number()..commit.to.offset().number();
                    for written in &mut state.written[offsets.start as usize..offsets.end as usize] {
                        *written += 1;
                    }
                    state.stale |= commit.epoch < state.row.epoch;
                }
                state.row = row;
                if reply == Answer::Arrives {
                    answer(&mut state.writers[commit.writer], commit, outcome);
                }
            }
            Action::Lose(commit) => {
                state.network.remove(state.network.binary_search(&commit).ok()?);
                answer(&mut state.writers[commit.writer], commit, CommitOutcome::NotWritten);
            }
            Action::TimeOut(place) => {
                let Writer::Waiting(commit) = state.writers[place] else { return None };
                answer(&mut state.writers[place], commit, CommitOutcome::Unknown);
            }
            Action::Resume(place) => {
                let Writer::Resuming { epoch } = state.writers[place] else { return None };
                state.writers[place] = match state.row.resume(epoch) {
                    Ok(from) => Writer::Reading { epoch, from },
                    Err(_) => Writer::Idle,
                };
            }
            Action::Crash(place) => state.writers[place] = Writer::Idle,
        }
        // A state that breaks a property leads nowhere else.
        (!last.stale && last.written.iter().all(|written| *written < 2)).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ROWS, |_, state: &State| {
                let checkpoint = state.row.checkpoint.offset().number();
                (0..).zip(&state.written).all(|(offset, written)| *written == u8::from(offset < checkpoint))
            }),
            Property::always(FENCED, |_, state: &State| !state.stale),
            Property::always(KNOWN, |_, state: &State| {
                state.writers.iter().all(|writer| match writer {
                    Writer::Reading { epoch, from } if *epoch == state.row.epoch => {
                        *from <= state.row.checkpoint
                    }
                    _ => true,
                })
            }),
            Property::sometimes(DONE, |model: &Self, state: &State| {
                state.row.checkpoint == at(model.records) && state.network.is_empty()
            }),
            Property::sometimes(TAKEN_OVER, |model: &Self, state: &State| {
                state.row.checkpoint == at(model.records) && state.row.epoch.number() == model.claims
            }),
        ]
    }
}

const ROWS: &str = "the rows are those of the records before the checkpoint, each once";
const FENCED: &str = "no commit of an older epoch succeeds after a claim";
const KNOWN: &str = "the newest owner never reads ahead of the checkpoint";
const DONE: &str = "every record is applied";
const TAKEN_OVER: &str = "every record is applied although the partition changed hands as often as it can";

fn check(
    guard: Guard,
    writers: usize,
    records: u64,
    claims: u64,
    in_flight: usize,
) -> impl Checker<Partition> {
    Partition { guard, writers, records, claims, in_flight }.checker().spawn_bfs().join()
}

#[test]
fn no_order_of_claims_commits_and_failures_breaks_the_tables() {
    for (writers, records, claims, in_flight) in [(2, 3, 3, 3), (3, 2, 3, 3)] {
        let checked = check(Guard::Both, writers, records, claims, in_flight);
        println!(
            "{writers} writers, {records} records, {claims} claims: {} states",
            checked.unique_state_count()
        );
        checked.assert_properties();
        assert!(checked.unique_state_count() > 10_000, "the model has shrunk to nothing");
    }
}

/// The shortest way in which a writer that was succeeded changes a row, where the guard does not look at the epoch.
#[test]
fn without_the_epoch_a_writer_that_was_succeeded_still_writes() {
    let checked = check(Guard::WithoutEpoch, 2, 1, 2, 2);
    let late = Commit { writer: 0, epoch: Epoch::new(1), from: at(0), to: at(1) };
    checked.assert_discovery(
        FENCED,
        vec![Action::Claim(0), Action::Send(0, 1), Action::Claim(1), Action::Execute(late, Answer::Arrives)],
    );
}

/// The shortest way to rows that are there twice, where the guard does not look at the checkpoint.
#[test]
fn without_the_checkpoint_a_commit_of_unknown_outcome_is_applied_twice() {
    let checked = check(Guard::WithoutCheckpoint, 1, 1, 1, 2);
    let path = checked.discovery(ROWS).expect("a counter-example");
    let last = path.last_state();
    assert!(last.written.contains(&2), "{last:?}");
}
