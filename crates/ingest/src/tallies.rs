//! The collector's own account: how many submissions it answered in which way, by the hour. The process writes it into the
//! store from time to time, for `dashi audit`; until then, and while the store is away, it is kept here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dashi_domain::glance::{HOUR_MS, HourKey, hour_of};
use uuid::Uuid;

use crate::metrics::Subject;
use crate::now::Now;

/// Counts that are kept, at most. One hour has some tens of them, and one more for each website with events.
const COUNTS_MAX: usize = 20_000;

/// Counts with a website, at most; what comes beyond is counted without one.
const WITH_SOURCE_MAX: usize = 10_000;

/// Counts of hours that ended longer ago than this are forgotten once they are written: a request takes seconds.
const KEPT_MS: i64 = 2 * HOUR_MS;

/// A count: hour, website, link or pixel (of accepted submissions), subject, outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TallyKey {
    /// The hour and the source; nil where an outcome has none.
    pub key: HourKey,
    /// `events` or `chunks`.
    pub subject: &'static str,
    /// The outcome, by the names that the metrics have.
    pub outcome: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    count: u64,
    written: u64,
}

#[derive(Debug, Default)]
struct Counts {
    by_key: BTreeMap<TallyKey, Count>,
    with_source: usize,
    /// Counts that found no place.
    lost: u64,
}

/// The counts since the collector started. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<Counts>>);

impl Tallies {
    /// Counts an accepted submission, in the hour that its record tells.
    pub(crate) fn accepted(&self, subject: Subject, key: HourKey, outcome: &'static str) {
        let subject = name(subject);
        let mut counts = self.counts();
        let with_source = TallyKey { key, subject, outcome };
        let key = if counts.with_source < WITH_SOURCE_MAX || counts.by_key.contains_key(&with_source) {
            with_source
        } else {
            TallyKey { key: HourKey { source_id: Uuid::nil(), ..key }, subject, outcome }
        };
        counts.add(key);
    }

    /// Counts another outcome, in the hour of now.
    pub(crate) fn answered(&self, subject: Subject, outcome: &'static str) {
        let key = HourKey { hour_ms: hour_of(Now::read().ms), source_id: Uuid::nil() };
        self.counts().add(TallyKey { key, subject: name(subject), outcome });
    }

    /// The counts that changed since they were [written](Self::written), with their values since the start.
    pub fn changed(&self) -> Vec<(TallyKey, u64)> {
        let counts = self.counts();
        let changed = counts.by_key.iter().filter(|(_, count)| count.count > count.written);
        changed.map(|(key, count)| (*key, count.count)).collect()
    }

    /// Notes that these values are written, and forgets the counts of past hours that are. `now_ms` is milliseconds since
    /// 1970.
    pub fn written(&self, values: &[(TallyKey, u64)], now_ms: i64) {
        let mut counts = self.counts();
        for (key, value) in values {
            if let Some(count) = counts.by_key.get_mut(key) {
                count.written = count.written.max(*value);
            }
        }
        let is_kept = |key: &TallyKey, count: &Count| {
            count.count > count.written || key.key.hour_ms > now_ms - HOUR_MS - KEPT_MS
        };
        counts.by_key.retain(|key, count| is_kept(key, count));
        counts.with_source = counts.by_key.keys().filter(|key| !key.key.source_id.is_nil()).count();
    }

    /// How many submissions could not be counted, because the store was away for too long.
    pub fn lost(&self) -> u64 {
        self.counts().lost
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add(&mut self, key: TallyKey) {
        if let Some(count) = self.by_key.get_mut(&key) {
            count.count += 1;
        } else if self.by_key.len() < COUNTS_MAX {
            self.with_source += usize::from(!key.key.source_id.is_nil());
            self.by_key.insert(key, Count { count: 1, written: 0 });
        } else {
            self.lost += 1;
        }
    }
}

const fn name(subject: Subject) -> &'static str {
    match subject {
        Subject::Events => "events",
        Subject::Chunks => "chunks",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(number: i64, source: u128) -> HourKey {
        HourKey { hour_ms: number * HOUR_MS, source_id: Uuid::from_u128(source) }
    }

    #[test]
    fn what_changes_after_it_was_read_is_written_again() {
        let tallies = Tallies::default();
        tallies.accepted(Subject::Events, hour(5, 1), "accepted");
        let read = tallies.changed();
        assert_eq!(read.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1]);
        tallies.accepted(Subject::Events, hour(5, 1), "accepted");
        tallies.written(&read, 5 * HOUR_MS);
        assert_eq!(tallies.changed()[0].1, 2);
        tallies.written(&tallies.changed(), 5 * HOUR_MS);
        assert_eq!(tallies.changed(), []);
        // Long after, it is forgotten; what is not written is not.
        tallies.accepted(Subject::Chunks, hour(5, 1), "accepted");
        tallies.written(&[], 9 * HOUR_MS);
        assert_eq!(tallies.changed().len(), 1);
        assert_eq!(tallies.counts().by_key.len(), 1);
    }

    #[test]
    fn there_are_so_many_counts_and_no_more() {
        let tallies = Tallies::default();
        for source in 0..WITH_SOURCE_MAX as u128 + 10 {
            tallies.accepted(Subject::Events, hour(1, source + 1), "accepted");
        }
        assert_eq!(tallies.counts().by_key.len(), WITH_SOURCE_MAX + 1);
        assert_eq!(
            tallies.counts().by_key[&TallyKey { key: hour(1, 0), subject: "events", outcome: "accepted" }]
                .count,
            10
        );
        for number in 0..2 * COUNTS_MAX as i64 {
            tallies.accepted(Subject::Events, hour(number, 0), "x");
        }
        assert_eq!(tallies.counts().by_key.len(), COUNTS_MAX);
        let kept: u64 = tallies.changed().iter().map(|(_, count)| count).sum();
        assert_eq!(kept + tallies.lost(), WITH_SOURCE_MAX as u64 + 10 + 2 * COUNTS_MAX as u64);
    }
}
