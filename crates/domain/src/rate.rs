//! Limits of one sender: a rate of events with a burst, and a number of events by the day. Pure functions of time.
//!
//! The rate is a token bucket in the form of the generic cell rate algorithm: of a whole bucket only one number is kept,
//! the moment at which it would be full again.

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// The moment of a decision, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds of a clock that never goes back, from any beginning. The rate goes by it.
    pub elapsed_ns: u64,
    /// Milliseconds since 1970. The day goes by it.
    pub ms: i64,
}

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

impl Moment {
    /// The day since 1970, in UTC.
    fn day(self) -> i64 {
        self.ms.div_euclid(DAY_MS)
    }

    /// Milliseconds until the next day begins: 1 to a day's.
    fn left_of_day_ms(self) -> u64 {
        (DAY_MS - self.ms.rem_euclid(DAY_MS)).unsigned_abs()
    }
}

/// An average rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds between two events.
    interval_ns: u64,
    /// Nanoseconds that an event may come early.
    early_ns: u64,
}

impl Rate {
    /// So many events per second on average, and so many at once after a pause. Both count as 1 at least; a rate of more
    /// than 1,000,000,000 counts as that.
    pub fn new(events_per_s: u64, burst: u64) -> Self {
        let interval_ns = SECOND_NS / events_per_s.clamp(1, SECOND_NS);
        Self { interval_ns, early_ns: interval_ns.saturating_mul(burst.max(1) - 1) }
    }
}

/// What one sender may send. The default is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// Events per second.
    pub rate: Option<Rate>,
    /// Most events of a day, in UTC.
    pub day_max: Option<u64>,
}

impl RateLimit {
    /// Whether it limits nothing.
    pub fn is_none(&self) -> bool {
        self.rate.is_none() && self.day_max.is_none()
    }
}

/// The limit that an event would exceed, and the wait until one would fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// The rate.
    Rate {
        /// Nanoseconds until the next event fits.
        wait_ns: u64,
    },
    /// The number of the day.
    Day {
        /// Milliseconds until the day is over.
        wait_ms: u64,
    },
}

impl Exceeded {
    /// The wait in whole seconds, 1 at least.
    pub fn wait_s(self) -> u64 {
        match self {
            Self::Rate { wait_ns } => wait_ns.div_ceil(SECOND_NS),
            Self::Day { wait_ms } => wait_ms.div_ceil(1_000),
        }
        .max(1)
    }
}

/// What one sender has used. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The moment at which the whole burst is there again.
    full_ns: u64,
    day: i64,
    /// Events of that day.
    count: u64,
}

impl Usage {
    /// Takes one event, unless it exceeds the limit; then nothing changes.
    ///
    /// Whatever a clock or a new limit did to the numbers, they never refuse more than an honest history could: what no
    /// such history explains counts as nothing used, and another day than the last one begins anew.
    ///
    /// # Errors
    /// The limit, and when an event fits again if nobody else takes its place.
    pub fn take(&mut self, limit: &RateLimit, now: Moment) -> Result<(), Exceeded> {
        let count = if self.day == now.day() { self.count } else { 0 };
        if limit.day_max.is_some_and(|max| count >= max) {
            return Err(Exceeded::Day { wait_ms: now.left_of_day_ms() });
        }
        if let Some(Rate { interval_ns, early_ns }) = limit.rate {
            let most = now.elapsed_ns.saturating_add(early_ns).saturating_add(interval_ns);
            let full_ns = if self.full_ns > most { 0 } else { self.full_ns };
            let wait_ns = full_ns.saturating_sub(early_ns).saturating_sub(now.elapsed_ns);
            if wait_ns > 0 {
                return Err(Exceeded::Rate { wait_ns });
            }
            self.full_ns = full_ns.max(now.elapsed_ns).saturating_add(interval_ns);
        }
        (self.day, self.count) = (now.day(), count + 1);
        Ok(())
    }

    /// Gives one event back that was [taken](Self::take) under this limit and was not used after all.
    pub fn give_back(&mut self, limit: &RateLimit) {
        if let Some(rate) = limit.rate {
            self.full_ns = self.full_ns.saturating_sub(rate.interval_ns);
        }
        self.count = self.count.saturating_sub(1);
    }

    /// How much would be forgotten with it: the events of today, then the time until the burst is there again. A table
    /// that is full forgets the least of them.
    pub fn weight(&self, now: Moment) -> (u64, u64) {
        let count = if self.day == now.day() { self.count } else { 0 };
        (count, self.full_ns.saturating_sub(now.elapsed_ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(elapsed_ms: u64) -> Moment {
        Moment { elapsed_ns: elapsed_ms * 1_000_000, ms: 1_000 * DAY_MS + elapsed_ms as i64 }
    }

    fn rate(events_per_s: u64, burst: u64) -> RateLimit {
        RateLimit { rate: Some(Rate::new(events_per_s, burst)), day_max: None }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_by_one() {
        let (limit, mut usage) = (rate(10, 3), Usage::default());
        for _ in 0..3 {
            assert_eq!(usage.take(&limit, at(5_000)), Ok(()));
        }
        assert_eq!(usage.take(&limit, at(5_000)), Err(Exceeded::Rate { wait_ns: 100_000_000 }));
        assert_eq!(usage.take(&limit, at(5_099)).unwrap_err().wait_s(), 1);
        assert_eq!(usage.take(&limit, at(5_100)), Ok(()));
        assert!(usage.take(&limit, at(5_100)).is_err());
    }

    #[test]
    fn a_day_has_so_many_events_and_the_next_one_as_many() {
        let (limit, mut usage) = (RateLimit { rate: None, day_max: Some(2) }, Usage::default());
        let late = at(DAY_MS as u64 - 1_500);
        assert_eq!([usage.take(&limit, late), usage.take(&limit, late)], [Ok(()), Ok(())]);
        let exceeded = usage.take(&limit, late).unwrap_err();
        assert_eq!((exceeded, exceeded.wait_s()), (Exceeded::Day { wait_ms: 1_500 }, 2));
        assert_eq!(usage.take(&limit, at(DAY_MS as u64)), Ok(()));
        // The clock goes back to the day before, whose count is forgotten: events are taken.
        assert_eq!(usage.take(&limit, late), Ok(()));
    }

    #[test]
    fn a_limit_of_no_events_takes_none() {
        let limit = RateLimit { rate: None, day_max: Some(0) };
        assert!(Usage::default().take(&limit, at(1)).is_err());
        assert!(RateLimit::default().is_none() && !limit.is_none());
        assert_eq!(Usage::default().take(&RateLimit::default(), at(1)), Ok(()));
    }

    proptest! {
        /// However events come, no stretch of time has more than the burst and the rate's share of that time.
        #[test]
        fn no_stretch_of_time_has_more_than_burst_and_rate(
            events_per_s in 1_u64..2_000,
            burst in 1_u64..50,
            pauses_ms in proptest::collection::vec(prop_oneof![4 => 0_u64..3, 1 => 0_u64..2_000], 1..300),
        ) {
            let (limit, mut usage) = (rate(events_per_s, burst), Usage::default());
            let mut now_ms = 0;
            let mut taken = Vec::new();
            for pause_ms in pauses_ms {
                now_ms += pause_ms;
                if usage.take(&limit, at(now_ms)).is_ok() {
                    taken.push(now_ms);
                }
            }
            for (index, from) in taken.iter().enumerate() {
                for (number, to) in taken[index..].iter().enumerate() {
                    // An interval of whole nanoseconds is a millionth short at most.
                    let share = (to - from) as f64 / 1_000.0 * events_per_s as f64 * 1.000_002;
                    prop_assert!((number + 1) as f64 <= burst as f64 + share + 0.01, "{from} to {to}: {number}");
                }
            }
        }

        /// After the wait that a refusal names, an event fits; and a refusal changes nothing.
        #[test]
        fn the_wait_is_long_enough_and_no_longer_and_a_refusal_changes_nothing(
            events_per_s in 1_u64..2_000,
            burst in 1_u64..20,
            day_max in proptest::option::of(1_u64..40),
            pauses_ms in proptest::collection::vec(0_u64..200, 1..80),
        ) {
            let limit = RateLimit { day_max, ..rate(events_per_s, burst) };
            let mut usage = Usage::default();
            let mut now = at(0);
            for pause_ms in pauses_ms {
                now = Moment { elapsed_ns: now.elapsed_ns + pause_ms * 1_000_000, ms: now.ms + pause_ms as i64 };
                let before = usage;
                if let Err(exceeded) = usage.take(&limit, now) {
                    prop_assert_eq!(usage, before);
                    if let Exceeded::Rate { wait_ns } = exceeded {
                        let then = Moment { elapsed_ns: now.elapsed_ns + wait_ns, ..now };
                        prop_assert!(before.clone().take(&limit, then).is_ok());
                        let sooner = Moment { elapsed_ns: then.elapsed_ns - 1, ..now };
                        prop_assert!(before.clone().take(&limit, sooner).is_err());
                    }
                }
            }
        }

        /// Events that come no faster than the rate all pass, with any burst.
        #[test]
        fn whoever_keeps_to_the_rate_is_never_refused(
            events_per_s in 1_u64..1_000,
            burst in 1_u64..20,
            late_ns in proptest::collection::vec(0_u64..1_000_000, 1..200),
        ) {
            let (limit, mut usage) = (rate(events_per_s, burst), Usage::default());
            let mut now = at(0);
            for late_ns in late_ns {
                now.elapsed_ns += SECOND_NS.div_ceil(events_per_s) + late_ns;
                prop_assert_eq!(usage.take(&limit, now), Ok(()));
            }
        }

        /// Whatever numbers clocks and former limits left behind, a sender waits no longer than for its own burst.
        #[test]
        fn nothing_that_clocks_did_locks_a_sender_out(
            full_ns in any::<u64>(),
            day in any::<i64>(),
            count in any::<u64>(),
            elapsed_ms in 0_u64..1_000_000_000,
            events_per_s in 1_u64..2_000,
            burst in 1_u64..20,
        ) {
            let (limit, now) = (rate(events_per_s, burst), at(elapsed_ms));
            let mut usage = Usage { full_ns, day: day.min(0), count };
            if let Err(Exceeded::Rate { wait_ns }) = usage.take(&limit, now) {
                prop_assert!(wait_ns <= SECOND_NS / events_per_s);
            }
        }

        #[test]
        fn what_is_given_back_can_be_taken_again(taken in 1_u64..10, events_per_s in 1_u64..100) {
            let limit = RateLimit { day_max: Some(10), ..rate(events_per_s, 10) };
            let mut usage = Usage::default();
            for _ in 0..taken {
                usage.take(&limit, at(1_000)).expect("it fits");
            }
            let full = usage;
            usage.give_back(&limit);
            prop_assert_eq!(usage.take(&limit, at(1_000)), Ok(()));
            prop_assert_eq!(usage, full);
        }
    }
}
