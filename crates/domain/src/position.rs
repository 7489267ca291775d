//! Offsets, partitions, checkpoints and epochs: where a record lies and how far a projection has come.

use std::fmt;

/// Unit of order and of ownership: all events of one session lie in one partition, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u32);

impl Partition {
    /// The partition with this number, counted from 0.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number, counted from 0.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of one record in its partition, from 0. Strictly increasing; gaps are normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset(u64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);

    /// The offset with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number, from 0.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The offset before it; the first one has none.
    pub const fn before(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(before) => Some(Self(before)),
            None => None,
        }
    }

    /// The next possible offset, which the log need not have given to any record.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The first offset a projection has not applied. Never the last one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checkpoint(Offset);

impl Checkpoint {
    /// Nothing is applied yet.
    pub const START: Self = Self(Offset::ZERO);

    /// The checkpoint of a projection whose first unapplied offset is `offset`.
    pub const fn at(offset: Offset) -> Self {
        Self(offset)
    }

    /// The checkpoint of a projection whose last applied offset is `applied`.
    pub const fn after(applied: Offset) -> Self {
        Self(applied.next())
    }

    /// The first offset not applied.
    pub const fn offset(self) -> Offset {
        self.0
    }

    /// High watermark minus checkpoint, in offsets: an upper bound on the records still to apply, exact where
    /// offsets have no gaps. A watermark behind the checkpoint counts as no lag.
    pub const fn lag(self, high_watermark: Offset) -> u64 {
        high_watermark.number().saturating_sub(self.0.number())
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of an ownership of a partition: every claim takes a higher one, and only the highest may write (I4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number; the first claim of a partition gets 1.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of the log that an offset belongs to. A topic that was deleted and made again has valid-looking offsets
/// that mean other data, so checkpoints carry the identity of the log they count in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(String);

impl LogId {
    /// An identity as the log's backend states it: unique over all logs that ever were.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text, as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_the_first_offset_not_applied() {
        let checkpoint = Checkpoint::after(Offset::new(41));
        assert_eq!(checkpoint.offset(), Offset::new(42));
        assert_eq!(checkpoint.lag(Offset::new(50)), 8);
        assert_eq!(checkpoint.lag(Offset::new(42)), 0);
        assert_eq!(checkpoint.lag(Offset::new(7)), 0, "a truncated log is no negative lag");
    }
}
