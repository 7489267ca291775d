//! Parking by session: while a record of a session is a dead letter that is neither settled nor discarded, the later records
//! of that session wait behind it, as letters too, in their order. Records of other sessions go on.
//!
//! The order of a partition decides alone, not the cut of its records into batches: which records wait follows from the
//! letters that the table has and from the records since.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::erasure::Tombstone;
use crate::fold::{Changes, is_command};
use crate::glance::Glance;
use crate::position::Offset;
use crate::record::Record;
use crate::rows::DeadLetter;

/// The bounds of parking in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkingLimits {
    /// Records of one session that wait, at most. When one more comes, the session's order is given up: its letters stay, and
    /// its records are applied again.
    pub waiting_max: u32,
    /// Sessions that are held up at once, at most. A dead letter of one more holds up nothing.
    pub sessions_max: usize,
}

/// The part of a dead letter in the parking of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parking {
    /// None: later records of the session are applied.
    #[default]
    None,
    /// Later records of the session wait behind it.
    Holds,
    /// It waits behind an earlier record of the session.
    Waits,
}

impl Parking {
    const ALL: [Self; 3] = [Self::None, Self::Holds, Self::Waits];

    /// Its number in columns.
    pub const fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Holds => 1,
            Self::Waits => 2,
        }
    }

    /// The part with this number; unknown ones have none.
    pub fn from_code(code: i64) -> Self {
        Self::ALL.into_iter().find(|part| i64::from(part.code()) == code).unwrap_or_default()
    }
}

/// The sessions of a partition that are held up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    limits: ParkingLimits,
    /// The session's letter that holds it up, and how many records wait behind it.
    held: HashMap<Uuid, (Offset, u32)>,
}

/// What is to be done with the first of some records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// So many of them are of sessions that nothing holds up: fold them.
    Free(usize),
    /// So many of them wait: see [`Parked::waiting`].
    Waits(usize),
    /// The first one is of this session, behind which no more may wait: give its order up.
    GivenUp(Uuid),
}

impl Parked {
    /// The sessions that letters in the table hold up: each with the holding letter's offset and the number of waiting ones.
    pub fn new(limits: ParkingLimits, held: impl IntoIterator<Item = (Uuid, Offset, u32)>) -> Self {
        let held = held.into_iter().map(|(session, offset, waiting)| (session, (offset, waiting)));
        Self { limits, held: held.collect() }
    }

    /// How many sessions are held up.
    pub fn sessions(&self) -> usize {
        self.held.len()
    }

    /// What is to be done with the first of these records, of which there is at least one.
    pub fn part(&self, records: &[Record]) -> Part {
        if self.held.is_empty() {
            return Part::Free(records.len());
        }
        let mut more: HashMap<Uuid, u32> = HashMap::new();
        let mut waiting = 0;
        for (place, record) in records.iter().enumerate() {
            let held =
                session_of(&record.value).and_then(|session| Some((session, self.held.get(&session)?)));
            match held {
                None if waiting > 0 => break,
                None => {}
                Some(_) if place > waiting => return Part::Free(place),
                Some((session, (_, before))) => {
                    let more = more.entry(session).or_default();
                    if before + *more >= self.limits.waiting_max {
                        if waiting == 0 {
                            return Part::GivenUp(session);
                        }
                        break;
                    }
                    *more += 1;
                    waiting += 1;
                }
            }
        }
        if waiting > 0 { Part::Waits(waiting) } else { Part::Free(records.len()) }
    }

    /// The changes of records that wait: each is a letter behind that of its session.
    pub fn waiting(&self, records: &[Record]) -> Changes {
        let mut changes = Changes::default();
        for record in records {
            let holder = session_of(&record.value).and_then(|session| self.held.get(&session));
            let holder = holder.map_or_else(String::new, |(offset, _)| offset.to_string());
            changes.wait(
                record,
                format!("an earlier record of its session is a dead letter, at offset {holder}"),
            );
        }
        changes
    }

    /// Marks those of a batch's letters that hold up their sessions, in their order.
    pub fn mark(&self, letters: &mut [DeadLetter]) {
        let mut held: HashSet<Uuid> = HashSet::new();
        for letter in letters.iter_mut().filter(|letter| letter.parking == Parking::None) {
            let Some(session) = session_of(&letter.value) else { continue };
            let is_new = !self.held.contains_key(&session) && !held.contains(&session);
            if is_new && self.held.len() + held.len() < self.limits.sessions_max {
                held.insert(session);
                letter.parking = Parking::Holds;
            }
        }
    }

    /// Takes note of letters that were committed.
    pub fn committed(&mut self, letters: &[DeadLetter]) {
        for letter in letters {
            let Some(session) = session_of(&letter.value) else { continue };
            match letter.parking {
                Parking::None => {}
                Parking::Holds => {
                    self.held.insert(session, (letter.offset, 0));
                }
                Parking::Waits => {
                    if let Some((_, waiting)) = self.held.get_mut(&session) {
                        *waiting += 1;
                    }
                }
            }
        }
    }

    /// Takes note that a session's order is given up.
    pub fn give_up(&mut self, session: Uuid) {
        self.held.remove(&session);
    }
}

/// How many of the records of a run may be committed with these letters, which are among them: those up to the first one
/// that has to wait behind one of the letters. `None` if all may.
pub fn cut(records: &[Record], letters: &[DeadLetter]) -> Option<usize> {
    let holding = letters.iter().filter(|letter| letter.parking == Parking::Holds);
    let holding: HashMap<Uuid, Offset> =
        holding.filter_map(|letter| Some((session_of(&letter.value)?, letter.offset))).collect();
    if holding.is_empty() {
        return None;
    }
    records.iter().position(|record| {
        let holder = session_of(&record.value).and_then(|session| holding.get(&session));
        holder.is_some_and(|offset| *offset < record.offset)
    })
}

/// The session by which a record waits; `None` for records that never do.
pub fn session_of(value: &[u8]) -> Option<Uuid> {
    if Tombstone::is(value) || is_command(value) {
        return None;
    }
    Glance::of(value).session_id
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fold::Outcome;
    use crate::position::Partition;

    const LIMITS: ParkingLimits = ParkingLimits { waiting_max: 3, sessions_max: 2 };

    /// A record of a session, which cannot be applied if it is poison.
    fn record(offset: usize, session: u8, is_poison: bool) -> Record {
        let session = Uuid::from_u128(u128::from(session));
        let value = format!(r#"{{"session":"{session}","poison":{is_poison}}}"#).into_bytes();
        Record { partition: Partition::new(0), offset: Offset::new(offset as u64), appended_at_ms: 0, value }
    }

    fn is_poison(record: &Record) -> bool {
        record.value.ends_with(b"true}")
    }

    /// What became of each record, in the order in which they were folded or set aside.
    #[derive(Debug, Default, PartialEq)]
    struct Model {
        applied: Vec<Offset>,
        letters: Vec<(Offset, Parking)>,
        given_up: Vec<(Uuid, usize)>,
    }

    /// As the projector does: parts of a batch, in order; a run with a letter is cut where one has to wait.
    fn project(parked: &mut Parked, model: &mut Model, batch: &[Record]) {
        let mut runs = vec![batch];
        while let Some(run) = runs.pop() {
            if run.is_empty() {
                continue;
            }
            let (part, rest) = match parked.part(run) {
                Part::GivenUp(session) => {
                    parked.give_up(session);
                    model.given_up.push((session, model.applied.len() + model.letters.len()));
                    for (offset, parking) in &mut model.letters {
                        let of = batch_record(*offset);
                        if session_of(&of.value) == Some(session) {
                            *parking = Parking::None;
                        }
                    }
                    runs.push(run);
                    continue;
                }
                Part::Waits(count) => {
                    let changes = parked.waiting(&run[..count]);
                    assert_eq!(changes.outcomes.dead as usize, count);
                    model.letters.extend(changes.dead_letters.iter().map(|it| (it.offset, it.parking)));
                    parked.committed(&changes.dead_letters);
                    runs.push(&run[count..]);
                    continue;
                }
                Part::Free(count) => run.split_at(count),
            };
            runs.push(rest);
            let mut changes = Changes::default();
            for record in part.iter().filter(|record| is_poison(record)) {
                changes.dead_letters.extend(Changes::dead_letter(record, "poison".to_owned()).dead_letters);
                changes.outcomes.add(Outcome::Dead);
            }
            parked.mark(&mut changes.dead_letters);
            if let Some(count) = cut(part, &changes.dead_letters) {
                assert!(count > 0 && count < part.len());
                runs.push(&part[count..]);
                runs.push(&part[..count]);
                continue;
            }
            model.letters.extend(changes.dead_letters.iter().map(|letter| (letter.offset, letter.parking)));
            model.applied.extend(part.iter().filter(|record| !is_poison(record)).map(|record| record.offset));
            parked.committed(&changes.dead_letters);
        }
    }

    thread_local! {
        static LOG: std::cell::RefCell<Vec<Record>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    fn batch_record(offset: Offset) -> Record {
        LOG.with_borrow(|log| log[offset.number() as usize].clone())
    }

    fn run(records: &[Record], batch: usize) -> (Parked, Model) {
        LOG.set(records.to_vec());
        let (mut parked, mut model) = (Parked::new(LIMITS, []), Model::default());
        records.chunks(batch).for_each(|batch| project(&mut parked, &mut model, batch));
        model.letters.sort_unstable_by_key(|(offset, _)| *offset);
        model.applied.sort_unstable();
        (parked, model)
    }

    proptest! {
        /// However records are cut into batches, the same ones wait; no record is applied past one that holds its session
        /// up, unless a bound was reached; every record has one outcome.
        #[test]
        fn any_batches_park_the_same_records_in_order(
            made in proptest::collection::vec((0_u8..4, prop::bool::weighted(0.15)), 1..60),
            batch in 1_usize..20,
        ) {
            let records: Vec<Record> =
                made.iter().enumerate().map(|(at, (session, poison))| record(at, *session, *poison)).collect();
            let (whole, expected) = run(&records, records.len());
            let (parked, model) = run(&records, batch);
            prop_assert_eq!(&parked, &whole);
            prop_assert_eq!(&model.letters, &expected.letters);
            prop_assert_eq!(&model.applied, &expected.applied);
            let mut all = model.applied.clone();
            all.extend(model.letters.iter().map(|(offset, _)| *offset));
            all.sort_unstable();
            prop_assert_eq!(all, records.iter().map(|record| record.offset).collect::<Vec<_>>());
            prop_assert!(parked.sessions() <= LIMITS.sessions_max);
            // By the definition.
            let mut waiting: HashMap<Uuid, u32> = HashMap::new();
            let parts: HashMap<Offset, Parking> = model.letters.iter().copied().collect();
            for record in &records {
                let session = session_of(&record.value).unwrap();
                match parts.get(&record.offset) {
                    None => {
                        prop_assert!(!waiting.contains_key(&session), "{} is applied too early", record.offset);
                        prop_assert!(!is_poison(record));
                    }
                    Some(Parking::Holds) => {
                        prop_assert!(is_poison(record) && waiting.insert(session, 0).is_none());
                    }
                    Some(Parking::Waits) => {
                        let count = waiting.get_mut(&session);
                        prop_assert!(count.is_some(), "{} waits for nobody", record.offset);
                        *count.unwrap() += 1;
                    }
                    Some(Parking::None) => {}
                }
            }
            prop_assert!(waiting.values().all(|count| *count <= LIMITS.waiting_max));
        }
    }

    #[test]
    fn a_session_waits_and_others_go_on_until_the_bound() {
        let of =
            [(1, true), (2, false), (1, false), (1, false), (2, false), (1, true), (1, false), (1, false)];
        let records: Vec<Record> = of.iter().enumerate().map(|(at, (s, p))| record(at, *s, *p)).collect();
        let (parked, model) = run(&records[..6], 6);
        let at = |offset| Offset::new(offset);
        assert_eq!(model.applied, [at(1), at(4)]);
        let waits = Parking::Waits;
        assert_eq!(model.letters, [(at(0), Parking::Holds), (at(2), waits), (at(3), waits), (at(5), waits)]);
        assert_eq!(parked.part(&records[6..]), Part::GivenUp(Uuid::from_u128(1)));
        let (parked, model) = run(&records, 8);
        assert_eq!((model.applied, parked.sessions()), (vec![at(1), at(4), at(6), at(7)], 0));
        assert!(model.letters.iter().all(|(_, part)| *part == Parking::None), "{:?}", model.letters);
    }
}
