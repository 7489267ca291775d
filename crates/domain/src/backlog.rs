//! The backlog of a partition: the age of the oldest record that is not applied, the rate at which records are applied,
//! and how long it takes until the backlog is young enough. Pure: the collector observes checkpoint and high watermark at
//! intervals, by a clock that never goes back, and reads no record for it.
//!
//! Every uncertainty makes the backlog younger, so that nothing is refused for an age that is not certain: a record counts
//! as appended when its offset was first seen below the high watermark.

use std::collections::VecDeque;

use crate::position::{Checkpoint, Offset};

/// Observations of the high watermark that are kept; past that, neighbours are merged.
const HIGHS_MAX: usize = 256;

/// Two observations are merged if they are as close as this part of their age. So much of the age may be lost by it.
const MERGED_PART: i64 = 8;

/// How far back the rate of applying looks.
const RATE_MS: i64 = 30_000;

/// The shortest time of which a rate is made.
const RATE_MS_MIN: i64 = 1_000;

/// Priorities are 0 to 9; the higher ones are taken for longer.
pub const PRIORITY_MAX: u8 = 9;

/// What happens to events while the backlog of their partition is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BacklogPolicy {
    /// They are taken.
    #[default]
    Accept,
    /// They are shed.
    Shed,
    /// Those of websites of lower priorities are shed first.
    Priorities,
}

impl BacklogPolicy {
    /// Its name in settings and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Shed => "shed",
            Self::Priorities => "priorities",
        }
    }

    /// The age of the backlog, in milliseconds, past which events of this priority are shed; `None` if they never are.
    /// Under `Priorities`, each priority is taken for `age_max_ms` longer than the one below it.
    pub fn age_max_ms(self, age_max_ms: u64, priority: u8) -> Option<u64> {
        match self {
            Self::Accept => None,
            Self::Shed => Some(age_max_ms),
            Self::Priorities => Some(age_max_ms.saturating_mul(1 + u64::from(priority.min(PRIORITY_MAX)))),
        }
    }
}

/// The observed past of one partition. Times are milliseconds of a clock that never goes back; they may be negative.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backlog {
    checkpoint: u64,
    high: u64,
    /// When the high watermark was first seen as high: the oldest first, all of them above the checkpoint but the last.
    highs: VecDeque<(i64, u64)>,
    /// The checkpoints of the last half minute.
    checkpoints: VecDeque<(i64, u64)>,
}

impl Backlog {
    /// Observes a partition. Positions that go back are another log's, or were set back: the past is forgotten. The same
    /// for a time that goes back.
    pub fn observe(&mut self, at_ms: i64, checkpoint: Checkpoint, high: Offset) {
        let (checkpoint, high) = (checkpoint.offset().number(), high.number());
        let went_back = checkpoint < self.checkpoint || high < self.high;
        if went_back || self.checkpoints.back().is_some_and(|(last_ms, _)| *last_ms > at_ms) {
            *self = Self::default();
        }
        (self.checkpoint, self.high) = (checkpoint, high);
        if self.highs.back().is_none_or(|(_, last)| *last < high) {
            self.highs.push_back((at_ms, high));
        }
        while self.highs.front().is_some_and(|(_, seen)| *seen <= checkpoint) {
            self.highs.pop_front();
        }
        if self.highs.len() > HIGHS_MAX {
            self.merge(at_ms);
        }
        self.checkpoints.push_back((at_ms, checkpoint));
        while self.checkpoints.front().is_some_and(|(seen_ms, _)| *seen_ms < at_ms - RATE_MS) {
            self.checkpoints.pop_front();
        }
    }

    /// Adds observations of the time before the first one, as the log tells them: in any order, each a time and the high
    /// watermark of that time.
    pub fn add_past(&mut self, past: impl IntoIterator<Item = (i64, Offset)>) {
        let Some(first) = self.highs.front().copied() else { return };
        let mut past: Vec<(i64, u64)> = past.into_iter().map(|(ms, high)| (ms, high.number())).collect();
        past.retain(|(ms, high)| *ms < first.0 && *high > self.checkpoint && *high <= first.1);
        past.sort_unstable();
        for (ms, high) in past.into_iter().rev() {
            match self.highs.front_mut() {
                // It was as high before.
                Some((first_ms, first)) if *first <= high => *first_ms = ms,
                _ => self.highs.push_front((ms, high)),
            }
        }
    }

    /// Merges neighbours that are close for their age.
    fn merge(&mut self, now_ms: i64) {
        let mut kept: VecDeque<(i64, u64)> = VecDeque::with_capacity(HIGHS_MAX);
        for index in 0..self.highs.len() {
            let (ms, high) = self.highs[index];
            let is_close =
                kept.back().zip(self.highs.get(index + 1)).is_some_and(|((before_ms, _), (next_ms, _))| {
                    next_ms - before_ms <= (now_ms - next_ms) / MERGED_PART
                });
            if !is_close {
                kept.push_back((ms, high));
            }
        }
        if kept.len() > HIGHS_MAX {
            let last = kept.len() - 1;
            let mut index = 0;
            kept.retain(|_| {
                index += 1;
                (index - 1) % 2 == 1 || index - 1 == last
            });
        }
        self.highs = kept;
    }

    /// Offsets that are not applied.
    pub fn records(&self) -> u64 {
        self.high.saturating_sub(self.checkpoint)
    }

    /// The age of the oldest record that is not applied, in milliseconds; 0 if there is none. At most the interval of
    /// the observations, and an eighth, too young.
    pub fn age_ms(&self, now_ms: i64) -> u64 {
        self.highs.front().map_or(0, |(ms, _)| u64::try_from(now_ms - ms).unwrap_or(0))
    }

    /// Records that are applied per second, over the last half minute; `None` if that is not known yet.
    pub fn applied_per_s(&self) -> Option<f64> {
        let ((from_ms, from), (to_ms, to)) =
            self.checkpoints.front().copied().zip(self.checkpoints.back().copied())?;
        (to_ms - from_ms >= RATE_MS_MIN).then(|| (to - from) as f64 * 1_000.0 / (to_ms - from_ms) as f64)
    }

    /// Seconds until the backlog is no older than `age_max_ms`, if records are applied at the rate of now and none are
    /// added; 0 if it is no older now, `None` if nothing is applied or the rate is not known.
    pub fn young_in_s(&self, now_ms: i64, age_max_ms: u64) -> Option<f64> {
        if self.age_ms(now_ms) <= age_max_ms {
            return Some(0.0);
        }
        let per_s = self.applied_per_s().filter(|per_s| *per_s > 0.0)?;
        // When all records up to an observation are applied, those behind it are the oldest.
        let wait_s = |high: u64| (high - self.checkpoint) as f64 / per_s;
        let following = self.highs.iter().skip(1).map(|(ms, _)| Some(*ms)).chain([None]);
        self.highs.iter().zip(following).find_map(|((_, high), next_ms)| {
            let wait_s = wait_s(*high);
            let age_then_ms = next_ms.map_or(0.0, |next_ms| (now_ms - next_ms) as f64 + wait_s * 1_000.0);
            (age_then_ms <= age_max_ms as f64).then_some(wait_s)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observe(backlog: &mut Backlog, at_ms: i64, checkpoint: u64, high: u64) {
        backlog.observe(at_ms, Checkpoint::at(Offset::new(checkpoint)), Offset::new(high));
    }

    #[test]
    fn the_age_is_that_of_the_oldest_record_not_applied() {
        let mut backlog = Backlog::default();
        observe(&mut backlog, 0, 0, 0);
        assert_eq!((backlog.age_ms(5_000), backlog.records()), (0, 0));
        observe(&mut backlog, 1_000, 0, 10);
        observe(&mut backlog, 2_000, 0, 20);
        assert_eq!((backlog.age_ms(3_000), backlog.records()), (2_000, 20));
        observe(&mut backlog, 3_000, 10, 20);
        assert_eq!(backlog.age_ms(3_000), 1_000);
        observe(&mut backlog, 4_000, 20, 20);
        assert_eq!(backlog.age_ms(9_000), 0);
    }

    #[test]
    fn a_log_that_goes_back_has_no_past() {
        let mut backlog = Backlog::default();
        observe(&mut backlog, 0, 5, 50);
        observe(&mut backlog, 60_000, 5, 50);
        assert_eq!(backlog.age_ms(60_000), 60_000);
        observe(&mut backlog, 61_000, 0, 40);
        assert_eq!((backlog.age_ms(61_000), backlog.applied_per_s()), (0, None));
        observe(&mut backlog, 1_000, 1, 41);
        assert_eq!(backlog.age_ms(61_000), 60_000, "from the time that it is now");
    }

    #[test]
    fn the_log_tells_what_was_before_the_first_observation() {
        let mut backlog = Backlog::default();
        observe(&mut backlog, 0, 100, 400);
        backlog.add_past([(-1_000, Offset::new(400)), (-8_000, Offset::new(90)), (-4_000, Offset::new(200))]);
        assert_eq!(backlog.age_ms(0), 4_000);
        observe(&mut backlog, 1_000, 250, 400);
        assert_eq!(backlog.age_ms(1_000), 2_000, "as high as it is, it was a second before");
        observe(&mut backlog, 2_000, 400, 400);
        assert_eq!(backlog.age_ms(2_000), 0);
    }

    #[test]
    fn the_wait_is_that_of_the_rate_of_applying() {
        let mut backlog = Backlog::default();
        observe(&mut backlog, 0, 0, 1_000);
        assert_eq!(backlog.young_in_s(20_000, 10_000), None, "no rate is known");
        observe(&mut backlog, 10_000, 0, 2_000);
        assert_eq!(backlog.young_in_s(20_000, 10_000), None, "nothing is applied");
        observe(&mut backlog, 20_000, 200, 2_000);
        assert_eq!(backlog.applied_per_s(), Some(10.0));
        assert_eq!(backlog.young_in_s(20_000, 20_000), Some(0.0));
        // 800 of the first ten seconds are left: in 80 s the oldest is of second ten, and 90 s old.
        assert_eq!(backlog.young_in_s(20_000, 90_000), Some(0.0));
        assert_eq!(backlog.young_in_s(20_000, 10_000), Some(180.0), "all of it");
        let mut younger = backlog.clone();
        observe(&mut younger, 99_000, 990, 2_000);
        observe(&mut younger, 100_000, 999, 2_000);
        let wait_s = younger.young_in_s(100_000, 99_000).expect("it is applied");
        assert!(wait_s < 1.0, "{wait_s}: then it is 90 s old");
    }

    #[test]
    fn each_priority_is_taken_for_as_much_longer() {
        use BacklogPolicy::{Accept, Priorities, Shed};
        assert_eq!(
            [Accept, Shed, Priorities].map(|policy| policy.age_max_ms(10, 0)),
            [None, Some(10), Some(10)]
        );
        assert_eq!(
            [Accept, Shed, Priorities].map(|policy| policy.age_max_ms(10, 3)),
            [None, Some(10), Some(40)]
        );
        assert_eq!(Priorities.age_max_ms(u64::MAX, 9), Some(u64::MAX));
    }

    proptest! {
        /// The age is never above the true one, and below it by no more than the interval and the merged part.
        #[test]
        fn the_age_is_the_true_one_or_a_little_less(
            steps in proptest::collection::vec((0_u64..50, 0_u64..45, 500_i64..5_000), 1..900),
        ) {
            let mut backlog = Backlog::default();
            // The time of each record's append, and how many are applied.
            let (mut appended, mut applied, mut now_ms) = (Vec::new(), 0_usize, 0_i64);
            observe(&mut backlog, 0, 0, 0);
            for (new, applying, pause_ms) in steps {
                now_ms += pause_ms;
                // The worst case: all of them just after the observation before.
                appended.extend(std::iter::repeat_n(now_ms - pause_ms + 1, new as usize));
                applied = (applied + applying as usize).min(appended.len());
                observe(&mut backlog, now_ms, applied as u64, appended.len() as u64);
                let truth = appended.get(applied).map_or(0, |ms| now_ms - ms);
                let age = backlog.age_ms(now_ms) as i64;
                prop_assert!(age <= truth, "{age} > {truth}");
                let least = truth - 5_000 - truth / MERGED_PART - 1;
                prop_assert!(age >= least, "{age} < {least} of {truth}");
                prop_assert!(backlog.highs.len() <= HIGHS_MAX + 1 && backlog.checkpoints.len() <= 62);
            }
        }

        /// After the wait, at that rate and without new records, the backlog is young enough; and not much sooner.
        #[test]
        fn after_the_wait_the_backlog_is_young_enough(
            news in proptest::collection::vec(1_u64..100, 3..60),
            per_s in 1_u64..40,
            age_max_s in 1_u64..60,
        ) {
            let mut backlog = Backlog::default();
            let (mut high, mut checkpoint, mut now_ms) = (0, 0, 0);
            for new in news {
                now_ms += 1_000;
                high += new;
                checkpoint = (checkpoint + per_s).min(high);
                observe(&mut backlog, now_ms, checkpoint, high);
            }
            let age_max_ms = age_max_s * 1_000;
            let Some(wait_s) = backlog.young_in_s(now_ms, age_max_ms) else { return Ok(()) };
            let rate = backlog.applied_per_s().expect("there is one");
            let then = |after_s: f64| {
                let mut then = backlog.clone();
                let reached = (checkpoint + (rate * after_s).ceil() as u64).min(high);
                let then_ms = now_ms + (after_s * 1_000.0).ceil() as i64;
                observe(&mut then, then_ms, reached, high);
                then.age_ms(then_ms)
            };
            prop_assert!(then(wait_s) <= age_max_ms + 2, "{} after {wait_s}", then(wait_s));
            if wait_s > 0.0 {
                let sooner = (wait_s - 2.0 / rate).max(0.0) * 0.999;
                prop_assert!(then(sooner) + 2_000 > age_max_ms, "{} after {sooner}", then(sooner));
            }
        }
    }
}
