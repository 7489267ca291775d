//! The gate of a collector with a spool: which records go to the log directly, which into the spool, and in which order.
//!
//! ```text
//!            an append failed, or took too long:           all appends that were begun
//!            the producer is abandoned                     have their outcome
//!   direct ----------------------------------> switching ---------------------> spooling
//!      ^                                                                         |    ^
//!      |                                          the spool holds little, and    |    | the log is
//!      |   the log has acknowledged all           the log takes it               v    | away again
//!      +---------------------------------------------------------------------- returning
//! ```
//!
//! Without the last state a collector that always has a request in flight would never leave its spool: while it returns, new
//! appends wait for a moment, and then go to the log.
//!
//! Order is kept by three rules. A producer that is abandoned has brought into each partition a prefix of the records that it
//! was given, because the log takes an idempotent producer's records in their order only. The records without an
//! acknowledgement go into the spool in the order in which they were given to the producer, before all newer ones. And
//! while the spool holds a record, no record goes past it. So a record whose first copy arrived unnoticed is followed by
//! its second one, which the fold recognises by the record's id, and the first copies lie in their order.
//!
//! Pure: `tests/spool.rs` checks it in every order in which appends, outages, crashes and restarts can meet, and
//! `dashi_event_log` decides by it.

use std::collections::BTreeSet;

/// The place of an append in the order of all appends of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The way of new records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// To the log. The spool is empty.
    Direct,
    /// They wait until every append that was begun directly has its outcome.
    Switching,
    /// Into the spool.
    Spooling,
    /// They wait until the log has acknowledged the rest of the spool.
    Returning,
}

/// The way of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// To the log, now; its outcome is told to the gate by this ticket.
    Direct(Ticket),
    /// It waits until the gate lets this ticket go: into the spool or to the log.
    Waits(Ticket),
    /// Into the spool, now.
    Spool,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate {
    mode: Mode,
    next: u64,
    /// Appends that were given to the log and have no outcome yet.
    direct: BTreeSet<Ticket>,
    /// Appends that wait until it is decided which way they go.
    waiting: BTreeSet<Ticket>,
}

impl Gate {
    /// The gate of a process that starts, whose spool holds records of an earlier one or none.
    pub const fn new(spool_holds_records: bool) -> Self {
        let mode = if spool_holds_records { Mode::Spooling } else { Mode::Direct };
        Self { mode, next: 0, direct: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// The way of new records.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Appends that were given to the log and have no outcome yet.
    pub fn direct(&self) -> usize {
        self.direct.len()
    }

    /// An append begins. Records of direct ones are given to the producer before another append begins.
    pub fn enter(&mut self) -> Entry {
        if self.mode == Mode::Spooling {
            return Entry::Spool;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        if self.mode == Mode::Direct {
            self.direct.insert(ticket);
            Entry::Direct(ticket)
        } else {
            self.waiting.insert(ticket);
            Entry::Waits(ticket)
        }
    }

    /// The log has acknowledged a direct append, or refused it for good, or nobody waits for it any more. Returns the
    /// appends whose records go into the spool now, in this order.
    #[must_use]
    pub fn settled(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.direct.remove(&ticket);
        self.release()
    }

    /// A direct append, or a part of it, has no acknowledgement: its records are to go into the spool. If the gate was
    /// direct it switches, and the caller abandons the producer. Returns as [`Gate::settled`] does.
    #[must_use]
    pub fn failed(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.direct.remove(&ticket);
        self.waiting.insert(ticket);
        if self.mode == Mode::Direct {
            self.mode = Mode::Switching;
        }
        self.release()
    }

    /// A direct append takes too long: if the gate was direct it switches, and the caller abandons the producer, so that
    /// every direct append has its outcome soon. Returns as [`Gate::settled`] does.
    #[must_use]
    pub fn switch(&mut self) -> Vec<Ticket> {
        if self.mode == Mode::Direct {
            self.mode = Mode::Switching;
        }
        self.release()
    }

    /// The log takes what the spool holds, which is little: new appends wait for the rest of it.
    pub fn drain(&mut self) {
        if self.mode == Mode::Spooling {
            self.mode = Mode::Returning;
        }
    }

    /// The log does not take the rest of the spool. Returns the appends that waited for it, whose records go into the spool
    /// now, in this order.
    #[must_use]
    pub fn stalled(&mut self) -> Vec<Ticket> {
        if self.mode != Mode::Returning {
            return Vec::new();
        }
        self.mode = Mode::Spooling;
        std::mem::take(&mut self.waiting).into_iter().collect()
    }

    /// The log has acknowledged all that the spool held, and nothing is on its way into the spool. Returns the appends that
    /// waited for that: they are direct ones now, and their records go to the log in this order, before those of others.
    #[must_use]
    pub fn emptied(&mut self) -> Vec<Ticket> {
        if !matches!(self.mode, Mode::Spooling | Mode::Returning) {
            return Vec::new();
        }
        self.mode = Mode::Direct;
        self.direct = std::mem::take(&mut self.waiting);
        self.direct.iter().copied().collect()
    }

    fn release(&mut self) -> Vec<Ticket> {
        if self.mode != Mode::Switching || !self.direct.is_empty() {
            return Vec::new();
        }
        self.mode = Mode::Spooling;
        std::mem::take(&mut self.waiting).into_iter().collect()
    }
}

/// The content of a spool, with what is on its way into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Records.
    pub records: u64,
    /// Their bytes, with [`RECORD_BYTES`] for each.
    pub bytes: u64,
    /// When the oldest was spooled, milliseconds since 1970; `None` if there is none.
    pub oldest_ms: Option<i64>,
}

/// Bytes that a record takes beside its value.
pub const RECORD_BYTES: u64 = 64;

/// The bounds of a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes, at most.
    pub bytes_max: u64,
    /// How old the oldest record may be when another one comes, in milliseconds.
    pub age_ms_max: i64,
}

/// Why a spool takes no record. Nothing is ever removed from it to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The bytes would exceed their bound.
    #[error("it holds {bytes} of at most {bytes_max} bytes")]
    Bytes {
        /// Bytes that it holds.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The oldest record waits for too long.
    #[error("its oldest record waits for {age_s} s, and the bound is {age_s_max} s")]
    Age {
        /// The age of the oldest record, in seconds.
        age_s: i64,
        /// The bound.
        age_s_max: i64,
    },
}

impl Bounds {
    /// Whether records of so many bytes, as [`Usage`] counts them, may come to this content.
    ///
    /// # Errors
    /// The bound that they would exceed.
    pub fn admit(&self, usage: &Usage, bytes: u64, now_ms: i64) -> Result<(), Full> {
        if let Some(age_ms) = usage.oldest_ms.map(|oldest_ms| now_ms - oldest_ms)
            && age_ms > self.age_ms_max
        {
            return Err(Full::Age { age_s: age_ms / 1_000, age_s_max: self.age_ms_max / 1_000 });
        }
        if usage.bytes.saturating_add(bytes) > self.bytes_max {
            return Err(Full::Bytes { bytes: usage.bytes, bytes_max: self.bytes_max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(entry: Entry) -> Ticket {
        match entry {
            Entry::Direct(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unacknowledged_appends_are_spooled_in_the_order_in_which_they_began_and_before_newer_ones() {
        let mut gate = Gate::new(false);
        let [first, second, third] = [(); 3].map(|()| direct(gate.enter()));
        assert_eq!(gate.failed(third), []);
        assert_eq!(gate.mode(), Mode::Switching);
        let Entry::Waits(fourth) = gate.enter() else { panic!("it waits") };
        assert_eq!(gate.settled(second), []);
        // Only once no direct append is left is it known what goes into the spool, and in which order.
        assert_eq!(gate.failed(first), [first, third, fourth]);
        assert_eq!((gate.mode(), gate.enter()), (Mode::Spooling, Entry::Spool));
        assert_eq!(gate.emptied(), []);
        assert!(matches!(gate.enter(), Entry::Direct(_)));
    }

    #[test]
    fn appends_wait_for_the_rest_of_the_spool_and_then_go_the_way_that_it_went() {
        let mut gate = Gate::new(true);
        gate.drain();
        let (Entry::Waits(first), Entry::Waits(second)) = (gate.enter(), gate.enter()) else {
            panic!("they wait")
        };
        let mut stalled = gate.clone();
        assert_eq!((stalled.stalled(), stalled.enter()), (vec![first, second], Entry::Spool));
        assert_eq!((gate.emptied(), gate.direct()), (vec![first, second], 2));
        assert_eq!(gate.mode(), Mode::Direct);
        assert_eq!((gate.stalled(), gate.emptied()), (vec![], vec![]));
    }

    #[test]
    fn a_gate_without_appends_switches_at_once_and_begins_where_the_spool_stands() {
        let mut gate = Gate::new(false);
        assert_eq!((gate.switch(), gate.mode()), (Vec::new(), Mode::Spooling));
        assert_eq!(Gate::new(true).enter(), Entry::Spool);
    }

    #[test]
    fn a_spool_is_full_by_bytes_and_by_age_of_its_oldest_record() {
        let bounds = Bounds { bytes_max: 100, age_ms_max: 5_000 };
        let usage = Usage { records: 1, bytes: 60, oldest_ms: Some(1_000) };
        assert_eq!(bounds.admit(&usage, 40, 6_000), Ok(()));
        assert_eq!(bounds.admit(&usage, 41, 6_000), Err(Full::Bytes { bytes: 60, bytes_max: 100 }));
        assert_eq!(bounds.admit(&usage, 1, 7_001), Err(Full::Age { age_s: 6, age_s_max: 5 }));
        assert_eq!(bounds.admit(&Usage::default(), 100, i64::MAX), Ok(()));
    }
}
