//! Offsets that a checkpoint passes without a record, and the notes of them by which the counts add up (I2).

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::erasure::replaced_fingerprint;
use crate::position::{Checkpoint, Offset};
use crate::record::Record;

/// Ranges that one commit notes, at most. Further ones are merged into wider ranges, whose counts stay exact.
pub const RANGES_MAX: usize = 64;

/// Records of a range of offsets that are not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Where they were or would have been; its start is in it, its end is not.
    pub range: Range<Offset>,
    /// How many they are: the width of the range, or less if records lie between them.
    pub records: u64,
    /// Why they are not there.
    pub cause: MissingCause,
}

/// Why records are not in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingCause {
    /// They lie between records that are there: compaction, or deletion, has removed them.
    Gap,
    /// They lay before the log's beginning: retention has removed them before they were projected.
    Retention,
    /// They were projected, and the log ends before them: it lost them, or an older copy of it was restored. The
    /// projection goes back; offsets get other records.
    LogEnded,
}

impl MissingCause {
    /// Its name in the store and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Retention => "retention",
            Self::LogEnded => "log_ended",
        }
    }

    /// The cause of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Gap, Self::Retention, Self::LogEnded].into_iter().find(|cause| cause.name() == name)
    }
}

impl Missing {
    /// All offsets of a range.
    pub fn all(range: Range<Offset>, cause: MissingCause) -> Self {
        let records = range.end.number().saturating_sub(range.start.number());
        Self { range, records, cause }
    }
}

/// Distinguishes a record from another one that lies at the same offset: the first bytes of the SHA-256 of its value. A
/// [tombstone](crate::erasure::Tombstone) has that of the record that it replaces.
pub fn fingerprint(value: &[u8]) -> i64 {
    if let Some(fingerprint) = replaced_fingerprint(value) {
        return fingerprint;
    }
    let digest = Sha256::digest(value);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// The ranges between `from` and `to` in which none of these records lies. Records are in order and all between the two.
pub fn gaps(from: Checkpoint, records: &[Record], to: Checkpoint) -> Vec<Range<Offset>> {
    let mut gaps = Vec::new();
    let mut next = from.offset();
    for record in records {
        if next < record.offset {
            gaps.push(next..record.offset);
        }
        next = record.offset.next();
    }
    if next < to.offset() {
        gaps.push(next..to.offset());
    }
    gaps
}

/// Those parts of ranges that lie between `from` and `to`, as missing for one cause; at most [`RANGES_MAX`].
pub fn within(
    ranges: &[Range<Offset>],
    from: Checkpoint,
    to: Checkpoint,
    cause: MissingCause,
) -> Vec<Missing> {
    let parts = ranges.iter().filter_map(|range| {
        let part = range.start.max(from.offset())..range.end.min(to.offset());
        (part.start < part.end).then_some(part)
    });
    let parts: Vec<_> = parts.collect();
    let per_range = parts.len().div_ceil(RANGES_MAX).max(1);
    parts
        .chunks(per_range)
        .filter_map(|some| {
            let range = some.first()?.start..some.last()?.end;
            let records = some.iter().map(|part| part.end.number() - part.start.number()).sum();
            Some(Missing { range, records, cause })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Partition;

    fn at(offset: u64) -> Offset {
        Offset::new(offset)
    }

    fn records(offsets: &[u64]) -> Vec<Record> {
        let record = |offset: &u64| Record {
            partition: Partition::new(0),
            offset: at(*offset),
            appended_at_ms: 0,
            value: Vec::new(),
        };
        offsets.iter().map(record).collect()
    }

    #[test]
    fn gaps_are_what_no_record_lies_in() {
        let found = |from, offsets: &[u64], to| {
            let gaps = gaps(Checkpoint::at(at(from)), &records(offsets), Checkpoint::at(at(to)));
            gaps.iter().map(|gap| (gap.start.number(), gap.end.number())).collect::<Vec<_>>()
        };
        assert_eq!(found(0, &[0, 1, 2], 3), []);
        assert_eq!(found(2, &[4, 5, 9], 12), [(2, 4), (6, 9), (10, 12)]);
        assert_eq!(found(5, &[], 7), [(5, 7)]);
        assert_eq!(found(5, &[], 5), []);
    }

    #[test]
    fn a_part_of_a_range_is_counted_in_the_commit_that_passes_it() {
        let ranges = [at(2)..at(6), at(8)..at(9)];
        let count = |from, to| {
            let missing =
                within(&ranges, Checkpoint::at(at(from)), Checkpoint::at(at(to)), MissingCause::Gap);
            missing.iter().map(|missing| missing.records).sum::<u64>()
        };
        assert_eq!((count(0, 4), count(4, 9), count(0, 9)), (2, 3, 5));
        assert_eq!((count(0, 2), count(9, 20)), (0, 0));
    }

    #[test]
    fn more_ranges_than_are_noted_become_wider_ones_with_the_same_count() {
        let ranges: Vec<_> = (0..10_000).map(|n| at(2 * n)..at(2 * n + 1)).collect();
        let missing = within(&ranges, Checkpoint::START, Checkpoint::at(at(20_000)), MissingCause::Gap);
        assert!(missing.len() <= RANGES_MAX, "{}", missing.len());
        assert_eq!(missing.iter().map(|missing| missing.records).sum::<u64>(), 10_000);
        assert!(missing.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }
}
