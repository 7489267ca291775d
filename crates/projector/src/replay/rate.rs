//! The limit on the rate of a replay.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A limit on records per second, over all partitions together. Time in which nothing was read is not made up for, so the
/// rate is never higher.
pub(crate) struct RateLimit {
    per_s: NonZeroU32,
    /// When the next batch may begin.
    next: Mutex<Instant>,
}

impl RateLimit {
    pub fn new(per_s: NonZeroU32) -> Self {
        Self { per_s, next: Mutex::new(Instant::now()) }
    }

    /// The most records that a batch should have: those of a tenth of a second, so that the load is even.
    pub fn batch_max(&self) -> usize {
        (self.per_s.get() / 10).max(1) as usize
    }

    /// Waits until so many records may be applied.
    pub async fn pass(&self, records: usize) {
        let begin = self.reserve(records, Instant::now());
        tokio::time::sleep_until(begin.into()).await;
    }

    /// When so many records may be applied, if they are read `now`. The time that they take at this rate is the wait of
    /// the next batch.
    fn reserve(&self, records: usize, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*next).max(now);
        *next = begin + Duration::from_secs_f64(records as f64 / f64::from(self.per_s.get()));
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_s: u32) -> RateLimit {
        RateLimit::new(NonZeroU32::new(per_s).expect("it is not 0"))
    }

    #[test]
    fn batches_are_as_far_apart_as_their_records_take() {
        let limit = limit(100);
        let now = Instant::now();
        let wait = |records| (limit.reserve(records, now) - now).as_millis();
        assert_eq!([wait(50), wait(10), wait(10)], [0, 500, 600], "the first one does not wait");
    }

    #[test]
    fn idle_time_is_not_made_up_for() {
        let limit = limit(10);
        let later = Instant::now() + Duration::from_secs(60);
        let wait = |records| (limit.reserve(records, later) - later).as_millis();
        assert_eq!([wait(10), wait(1), wait(1)], [0, 1_000, 1_100]);
    }

    #[test]
    fn a_batch_is_a_tenth_of_a_second_and_at_least_a_record() {
        assert_eq!([limit(1).batch_max(), limit(20_000).batch_max()], [1, 2_000]);
    }
}
