//! Layouts of a log: how many partitions its records are spread over, and how that number grows without a session's records
//! losing their order.
//!
//! A *layout* is a version and a number of partitions. The layout in force decides the partition of a session's next
//! record. A new layout is written into the log itself: a *barrier* is the last record of the old layout in every old
//! partition, and the first record of the new one in every new partition.
//!
//! ```text
//! partition 0   a1 b1 a2 | a3 a4 …            a stays
//! partition 1            | b2 b3 …            b comes from partition 0
//!                        barrier 1: from 1 to 2 partitions
//! ```
//!
//! A writer that has passed a barrier in its partition applies nothing behind it until every partition out of which sessions
//! came ([`sources`]) has passed that barrier, too. So a session's records are applied in the order in which they
//! were accepted, in live projection as in a replay.
//!
//! On an embedded log one transaction writes all barriers. On Kafka, collectors agree on a growth first:
//!
//! ```text
//!                    all collectors have          barriers are in
//!          begun     acknowledged                 all partitions
//! open ----------> draining ----------> committed ----------> open, the new layout
//!                     |
//!                     +---> aborted: not all acknowledged in time
//! ```
//!
//! While a growth is draining or committed, a collector sends no record of a session that moves. It acknowledges once all
//! records that it sent by the old layout have their outcome. [`Routing`] is that collector's side; `tests/layout.rs`
//! checks every order of collectors, commands, kills and writers with it.

use uuid::Uuid;

use crate::json::{self, Value};
use crate::partitioner::partition_for;
use crate::position::{LogId, Partition};
use crate::record::{DecodeError, Envelope, Fields};

/// How a barrier's value begins. Only this program writes barriers, always in this form.
const BARRIER: &[u8] = br#"{"v":1,"type":"layout","#;

/// A number of partitions that is or was in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout {
    /// 0 for the number that the log was made with. Higher for each one since; numbers may be left out.
    pub version: u32,
    /// At least 1.
    pub partitions: u32,
}

impl Layout {
    /// The partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> Partition {
        partition_for(key, self.partitions)
    }
}

/// Whether the records of a key go to another partition when the number grows.
pub fn moves(key: &[u8], from: u32, to: u32) -> bool {
    partition_for(key, from) != partition_for(key, to)
}

/// The partitions out of which sessions come into `partition` when the number grows, ascending. A key's hash is congruent to
/// both of its partitions, so these are the old partitions that are congruent to it modulo the greatest common divisor.
pub fn sources(partition: Partition, from: u32, to: u32) -> impl Iterator<Item = Partition> {
    let divisor = gcd(from, to).max(1);
    (partition.number() % divisor..from)
        .step_by(divisor as usize)
        .map(Partition::new)
        .filter(move |source| *source != partition)
}

/// The share of all sessions that go to another partition when the number grows, from 0 to 1: the least when the new number is
/// a multiple of the old one.
pub fn share_moved(from: u32, to: u32) -> f64 {
    // Of the hashes below the least common multiple, those below the smaller number stay.
    1.0 - f64::from(gcd(from, to)) / f64::from(to.max(1))
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The last barrier that a partition's writer has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Passed {
    /// The version of the layout that it begins.
    pub version: u32,
    /// Partitions before.
    pub from: u32,
    /// Partitions since.
    pub to: u32,
}

impl Passed {
    /// The partitions for which the writer of `partition` has to wait before it applies anything behind the barrier.
    /// `version` is the version of the last barrier that another partition's writer has passed, 0 if it passed none.
    pub fn awaits(&self, partition: Partition, version: impl Fn(Partition) -> u32) -> Vec<Partition> {
        sources(partition, self.from, self.to).filter(|source| version(*source) < self.version).collect()
    }
}

/// A barrier: the record in one partition by which a layout ends and the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    /// The log that it was written for.
    pub log: LogId,
    /// The partition that it was written for.
    pub partition: Partition,
    /// When the growth was commanded, milliseconds since 1970.
    pub at_ms: i64,
    /// The layouts before and behind it.
    pub layouts: Passed,
}

impl Barrier {
    /// The barriers of a growth, one for each partition: those of the old ones first.
    pub fn all(log: &LogId, layouts: Passed, at_ms: i64) -> impl Iterator<Item = Self> {
        let partitions = (0..layouts.to).map(Partition::new);
        partitions.map(move |partition| Self { log: log.clone(), partition, at_ms, layouts })
    }

    /// The record's identity, the same for every copy.
    pub fn id(&self) -> Uuid {
        let name = format!("layout:{}:{}:{}", self.log, self.layouts.version, self.partition);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
    }

    /// Whether a record's value is a barrier's, by its first bytes.
    pub fn is(value: &[u8]) -> bool {
        value.starts_with(BARRIER)
    }

    /// Whether it was written for this partition. One that was not, as after an import of a log's export, changes nothing.
    pub fn is_of(&self, log: &LogId, partition: Partition) -> bool {
        self.log == *log && self.partition == partition
    }

    /// The record's value. Its session and visit are nil.
    pub fn encode(&self) -> Vec<u8> {
        let Self { log, partition, at_ms, layouts: Passed { version, from, to } } = self;
        let mut out = String::from_utf8_lossy(BARRIER).into_owned();
        let (id, nil) = (self.id(), Uuid::nil());
        out.push_str(&format!(
            r#""id":"{id}","at":{at_ms},"session":"{nil}","visit":"{nil}","payload":{{"version":{version},"from":{from},"to":{to},"partition":{partition},"log":"#
        ));
        json::write_string(log.as_str(), &mut out);
        out.push_str("}}");
        out.into_bytes()
    }

    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'_>>) -> Result<Self, DecodeError> {
        let mut payload = match payload {
            Some(Value::Object(payload)) => Fields(payload),
            other => return Err(DecodeError::field("payload", other.as_ref(), "an object")),
        };
        let number = |field| {
            u32::try_from(payload.integer(field)?)
                .map_err(|_| DecodeError::field(field, None, "a number that is not negative"))
        };
        let layouts = Passed { version: number("version")?, from: number("from")?, to: number("to")? };
        let partition = Partition::new(number("partition")?);
        if layouts.version == 0 || layouts.from == 0 || layouts.to <= layouts.from {
            return Err(DecodeError::field(
                "to",
                None,
                "more partitions than before, of a version from 1 on",
            ));
        }
        let log = payload.text("log")?.filter(|log| !log.is_empty());
        let log = LogId::new(log.ok_or_else(|| DecodeError::field("log", None, "a log's id"))?);
        Ok(Self { log, partition, at_ms: envelope.received_at_ms, layouts })
    }
}

/// The state of a growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Growth {
    /// Collectors hold back records of sessions that move, until all of them have acknowledged.
    Draining,
    /// It takes place: barriers are being written. Anybody may write them, and again.
    Committed,
    /// The layout is in force.
    Open,
    /// It did not take place.
    Aborted,
}

impl Growth {
    const ALL: [Self; 4] = [Self::Draining, Self::Committed, Self::Open, Self::Aborted];

    /// Its name, as it is stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Committed => "committed",
            Self::Open => "open",
            Self::Aborted => "aborted",
        }
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether it is under way: records of sessions that move are held back.
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Draining | Self::Committed)
    }
}

/// The way of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into this partition.
    To(Partition),
    /// It waits: its session moves, or the layout in force is not known.
    Held,
}

/// The layouts as a collector knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Routing {
    /// In force; `None` until it is known.
    current: Option<Layout>,
    /// The layout of a growth that is under way.
    next: Option<Layout>,
}

impl Routing {
    /// Nothing is known: every record is held.
    pub const UNKNOWN: Self = Self { current: None, next: None };

    /// This layout is in force, and no growth is under way.
    pub const fn of(layout: Layout) -> Self {
        Self { current: Some(layout), next: None }
    }

    /// By the layouts as they are stored, all read at one moment. They never go back: an older answer changes nothing.
    #[must_use]
    pub fn seen(self, stored: &[(Layout, Growth)]) -> Self {
        let of = |wanted: fn(Growth) -> bool| {
            stored.iter().filter(|(_, state)| wanted(*state)).map(|(layout, _)| *layout).max()
        };
        let open = of(|state| state == Growth::Open);
        if open < self.current || open.is_none() {
            return self;
        }
        Self { current: open, next: of(Growth::is_pending).filter(|next| Some(*next) > open) }
    }

    /// The layout in force; `None` if it is not known.
    pub const fn current(&self) -> Option<Layout> {
        self.current
    }

    /// The layout of the growth that is under way.
    pub const fn next(&self) -> Option<Layout> {
        self.next
    }

    /// Whether there are records that wait.
    pub const fn holds(&self) -> bool {
        self.current.is_none() || self.next.is_some()
    }

    /// The way of a record with this key.
    pub fn way(&self, key: &[u8]) -> Way {
        match (self.current, self.next) {
            (Some(current), Some(next)) if moves(key, current.partitions, next.partitions) => Way::Held,
            (Some(current), _) => Way::To(current.partition_of(key)),
            (None, _) => Way::Held,
        }
    }

    /// The version that the collector acknowledges, once everything that it sent by an earlier state of the routing has its
    /// outcome.
    pub fn acknowledges(&self) -> Option<u32> {
        self.next.or(self.current).map(|layout| layout.version)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::glance::Glance;
    use crate::log_record::LogRecord;
    use crate::partitioner::key;

    #[test]
    fn the_sources_of_a_partition_are_exactly_the_partitions_that_keys_come_from() {
        let keys: Vec<String> = (0..4_000_u128).map(|n| key(Uuid::from_u128(n * 0x9e37_79b9))).collect();
        for (from, to) in [(1, 2), (2, 3), (4, 6), (6, 9), (8, 12), (8, 16), (8, 32), (5, 7)] {
            let mut came: Vec<BTreeSet<Partition>> = vec![BTreeSet::new(); to as usize];
            let mut moved = 0;
            for key in &keys {
                let [before, after] = [from, to].map(|count| partition_for(key.as_bytes(), count));
                assert_eq!(moves(key.as_bytes(), from, to), before != after);
                moved += usize::from(before != after);
                if before != after {
                    came[after.number() as usize].insert(before);
                }
            }
            let share = moved as f64 / keys.len() as f64;
            assert!((share - share_moved(from, to)).abs() < 0.05, "{share} of {from} to {to}");
            for (number, came) in (0..).zip(came) {
                let found: BTreeSet<Partition> = sources(Partition::new(number), from, to).collect();
                assert_eq!(found, came, "partition {number} of {from} to {to}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_barrier_is_read_back_and_is_of_its_partition_alone(
            version in 1_u32..9, from in 1_u32..60, more in 1_u32..60, at_ms in 0_i64..4_000_000_000_000,
        ) {
            let log = LogId::new("kafka:\"a\\b\"/é");
            let layouts = Passed { version, from, to: from + more };
            let all: Vec<Barrier> = Barrier::all(&log, layouts, at_ms).collect();
            prop_assert_eq!(all.len(), (from + more) as usize);
            let ids: BTreeSet<Uuid> = all.iter().map(Barrier::id).collect();
            prop_assert_eq!(ids.len(), all.len());
            for (number, barrier) in (0..).zip(&all) {
                let value = barrier.encode();
                prop_assert!(Barrier::is(&value));
                let Ok(LogRecord::Layout(read)) = LogRecord::decode(&value) else { panic!("no barrier") };
                prop_assert_eq!(&read, barrier);
                prop_assert!(read.is_of(&log, Partition::new(number)));
                prop_assert!(!read.is_of(&log, Partition::new(number + 1)));
                prop_assert!(!read.is_of(&LogId::new("other"), Partition::new(number)));
                let glance = Glance::of(&value);
                prop_assert_eq!((glance.received_at_ms, glance.source_id), (Some(at_ms), None));
            }
        }
    }

    #[test]
    fn a_damaged_barrier_is_refused() {
        let layouts = Passed { version: 1, from: 2, to: 3 };
        let barrier = Barrier { log: LogId::new("a"), partition: Partition::new(0), at_ms: 5, layouts };
        let value = String::from_utf8(barrier.encode()).unwrap();
        for (from, to, reason) in [
            ("\"version\":1", "\"version\":0", "`to`"),
            ("\"to\":3", "\"to\":2", "`to`"),
            ("\"from\":2", "\"from\":-2", "`from`"),
            ("\"log\":\"a\"", "\"log\":\"\"", "`log`"),
            ("\"partition\":0", "\"partition\":\"0\"", "`partition`"),
        ] {
            let damaged = value.replace(from, to);
            assert_ne!(damaged, value, "{from}");
            let error = LogRecord::decode(damaged.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_routing_holds_what_moves_and_never_goes_back() {
        let (zero, one) = (Layout { version: 0, partitions: 2 }, Layout { version: 1, partitions: 3 });
        let keys: Vec<String> = (0..50_u128).map(|n| key(Uuid::from_u128(n))).collect();
        assert!(keys.iter().all(|key| Routing::UNKNOWN.way(key.as_bytes()) == Way::Held));
        let open = Routing::UNKNOWN.seen(&[(zero, Growth::Open)]);
        assert_eq!((open, open.holds(), open.acknowledges()), (Routing::of(zero), false, Some(0)));
        let draining = open.seen(&[(zero, Growth::Open), (one, Growth::Draining)]);
        assert_eq!((draining.holds(), draining.acknowledges()), (true, Some(1)));
        for key in &keys {
            let expected = match moves(key.as_bytes(), 2, 3) {
                true => Way::Held,
                false => Way::To(zero.partition_of(key.as_bytes())),
            };
            assert_eq!(draining.way(key.as_bytes()), expected);
        }
        assert_eq!(draining.seen(&[(zero, Growth::Open), (one, Growth::Aborted)]), open);
        assert_eq!(draining.seen(&[]), draining, "an answer without a layout is none");
        let grown = draining.seen(&[(zero, Growth::Open), (one, Growth::Open)]);
        assert_eq!(grown, Routing::of(one));
        assert_eq!(grown.seen(&[(zero, Growth::Open), (one, Growth::Draining)]), grown);
    }
}
