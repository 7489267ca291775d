//! The tail of a partition that has a backlog: records behind the backlog, of which those are applied before it whose sessions
//! have no record in it. So what people do now is in the tables while hours of records are caught up.
//!
//! ```text
//!            checkpoint             tail.from          tail.to        high watermark
//!                |                      |                 |                 |
//!     applied    v       backlog        v  applied, if    v   not applied   v
//!   -------------|----------------------|  their session  |-----------------|
//!                                       |  is not in the  |
//!                                       |  filter         |
//! ```
//!
//! The order within a session stays: a session that has a record in the backlog is in the filter, and its later records wait
//! for the checkpoint. The order between sessions decides nothing that is in the tables, for two sessions may as well lie in
//! two partitions. When the checkpoint has come through the backlog, it passes what is applied, applies the rest, and the
//! tail ends where the two meet.

use uuid::Uuid;

use crate::parking::session_of;
use crate::position::{Checkpoint, Offset};

/// The tail of a partition, as its row in the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tail {
    /// Its first offset (inclusive), where the backlog ends.
    pub from: Checkpoint,
    /// The first offset behind it (exclusive).
    pub to: Checkpoint,
    /// Records in it that are applied and that the checkpoint has not passed.
    pub applied: u64,
}

impl Tail {
    /// Whether the offset lies in it.
    pub fn contains(&self, offset: Offset) -> bool {
        self.from.offset() <= offset && offset < self.to.offset()
    }
}

/// What of a partition is applied: all before the checkpoint, and what the tail has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The tail and the sessions of its backlog, if there is one.
    pub tail: Option<(Tail, SessionFilter)>,
}

impl Reached {
    /// Whether the record at this offset is applied.
    pub fn has_applied(&self, offset: Offset, value: &[u8]) -> bool {
        let in_tail =
            |(tail, sessions): &(Tail, SessionFilter)| tail.contains(offset) && sessions.lets_pass(value);
        offset < self.checkpoint.offset() || self.tail.as_ref().is_some_and(in_tail)
    }
}

/// The sessions that have records in a backlog, as a Bloom filter: it knows every session that was added, and takes some
/// others for known ones, whose records then wait without need.
///
/// The store keeps its bytes, so the bits of a session never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter {
    /// A power of two of them.
    words: Vec<u64>,
}

/// Bits that are set for each session.
const BITS: u64 = 4;

impl SessionFilter {
    /// The largest size, in bytes. With 800,000 sessions in it, a filter takes one of a hundred others for known; with two million,
    /// one of six.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Without a session, of so many bytes, less what makes them no power of two; at least 8 and at most [`Self::BYTES_MAX`].
    pub fn new(bytes: usize) -> Self {
        let bytes = bytes.clamp(8, Self::BYTES_MAX);
        Self { words: vec![0; 1 << (bytes / 8).ilog2()] }
    }

    /// Adds a session.
    pub fn insert(&mut self, session: Uuid) {
        for bit in self.bits(session) {
            self.words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Whether the session was added, or is taken for one that was.
    pub fn contains(&self, session: Uuid) -> bool {
        self.bits(session).all(|bit| self.words[(bit / 64) as usize] & 1 << (bit % 64) != 0)
    }

    /// Whether a record in the tail is applied before the backlog.
    pub fn lets_pass(&self, value: &[u8]) -> bool {
        session_of(value).is_some_and(|session| !self.contains(session))
    }

    /// The same sessions in fewer bytes, as long as that makes few others known.
    #[must_use]
    pub fn shrunk(mut self) -> Self {
        /// At most one bit of so many is set in a filter that is halved.
        const SPARSE: usize = 8;
        let ones = |words: &[u64]| words.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        while self.words.len() > 1 && ones(&self.words) * SPARSE <= self.words.len() * 64 {
            let upper = self.words.split_off(self.words.len() / 2);
            // The place of a bit is a number modulo the size.
            self.words.iter_mut().zip(upper).for_each(|(word, upper)| *word |= upper);
        }
        self
    }

    /// Its bytes, for the store.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The filter of these bytes; `None` if they are none's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        (words.len().is_power_of_two() && rest.is_empty()).then_some(Self { words })
    }

    /// The places of a session's bits, by double hashing.
    fn bits(&self, session: Uuid) -> impl Iterator<Item = u64> + use<> {
        let (upper, lower) = session.as_u64_pair();
        let (first, step) = (mixed(upper ^ mixed(lower)), mixed(lower ^ mixed(!upper)) | 1);
        let mask = self.words.len() as u64 * 64 - 1;
        (0..BITS).map(move |n| first.wrapping_add(n.wrapping_mul(step)) & mask)
    }
}

/// Spreads every bit over all of them (the finalizer of SplitMix64): ids of other producers may differ in few.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(sessions: impl IntoIterator<Item = u128>) -> SessionFilter {
        let mut filter = SessionFilter::new(SessionFilter::BYTES_MAX);
        sessions.into_iter().for_each(|session| filter.insert(Uuid::from_u128(session)));
        filter
    }

    /// Of other sessions, those that are taken for known, in 10,000.
    fn mistaken(filter: &SessionFilter, others: impl Iterator<Item = u128>) -> usize {
        others.take(10_000).filter(|session| filter.contains(Uuid::from_u128(*session))).count()
    }

    #[test]
    fn it_knows_every_session_and_few_others_in_any_size() {
        // Ids in order are the worst that other producers send.
        for (spread, sessions, mistaken_max) in
            [(1, 800_000, 150), (1 << 90, 800_000, 150), (1, 1_000, 60), (7 << 64, 10, 60)]
        {
            let full = filter((0..sessions).map(|n| n * spread));
            let small = full.clone().shrunk();
            for filter in [&full, &small] {
                assert!((0..sessions).all(|n| filter.contains(Uuid::from_u128(n * spread))));
                let others = mistaken(filter, (sessions..).map(|n| n * spread));
                assert!(others <= mistaken_max, "{sessions} sessions {spread} apart: {others} of 10,000");
            }
            assert_eq!(SessionFilter::from_bytes(&small.to_bytes()), Some(small));
        }
        assert!(filter(0..1_000).shrunk().to_bytes().len() <= 8 << 10);
        assert_eq!(mistaken(&filter([]).shrunk(), 0..), 0);
    }

    #[test]
    fn its_bits_are_those_that_stores_keep() {
        let bytes = filter([0, 1, u128::MAX]).shrunk().to_bytes();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "430c010028804030");
    }

    #[test]
    fn its_size_has_bounds() {
        let bytes = |bytes| SessionFilter::new(bytes).to_bytes().len();
        assert_eq!(
            [0, 8, 100, 4 << 10, usize::MAX].map(bytes),
            [8, 8, 64, 4 << 10, SessionFilter::BYTES_MAX]
        );
    }

    #[test]
    fn other_bytes_are_no_filter() {
        for bytes in [&[][..], &[0; 7], &[0; 24]] {
            assert_eq!(SessionFilter::from_bytes(bytes), None);
        }
    }

    #[test]
    fn records_of_known_sessions_and_those_without_a_session_wait() {
        let filter = filter([7]);
        let record = |session: u128| format!(r#"{{"session":"{}"}}"#, Uuid::from_u128(session)).into_bytes();
        assert!(filter.lets_pass(&record(8)));
        assert!(!filter.lets_pass(&record(7)));
        assert!(!filter.lets_pass(b"{}") && !filter.lets_pass(b"no record"));
    }
}
