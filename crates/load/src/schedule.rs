//! The schedule of an open loop, and the pacer: the thread that releases requests when they fall due.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Evenly spaced due times: request `k` is due at `k / requests_per_s`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    requests_per_s: f64,
}

impl Schedule {
    /// `requests_per_s` is positive and finite, which `LoadPlan::check` ensures.
    pub(crate) fn new(requests_per_s: f64) -> Self {
        Self { requests_per_s }
    }

    /// Time from the start of the run to request `k`.
    pub(crate) fn due_at(&self, k: u64) -> Duration {
        Duration::from_secs_f64(k as f64 / self.requests_per_s)
    }

    /// How many requests are due once `elapsed` has passed: all `k` with `due_at(k) <= elapsed`.
    pub(crate) fn due_count(&self, elapsed: Duration) -> u64 {
        (elapsed.as_secs_f64() * self.requests_per_s) as u64 + 1
    }
}

/// Shortest sleep of the pacer. It bounds both the pacer's own cost (a few percent of a core) and how
/// late it releases a request.
const TICK_MIN: Duration = Duration::from_micros(200);
/// Longest sleep of the pacer: how long a stop may go unnoticed.
const TICK_MAX: Duration = Duration::from_millis(50);

/// Adds a permit to `turns` whenever a request falls due, until `stop`.
///
/// Runs on a thread instead of a timer of the runtime: such timers wake to the millisecond, which would show as
/// latency of the server; a sleeping thread wakes within some 60 µs.
pub(crate) fn pace(schedule: Schedule, start: Instant, turns: &Semaphore, stop: &CancellationToken) {
    let mut released = 0;
    while !stop.is_cancelled() {
        let elapsed = start.elapsed();
        let due = schedule.due_count(elapsed);
        if due > released {
            // Bounded by the length of the run: a permit is a number, not memory.
            turns.add_permits((due - released) as usize);
            released = due;
        }
        thread::sleep(schedule.due_at(released).saturating_sub(elapsed).clamp(TICK_MIN, TICK_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_requests_with_a_past_due_time_are_due(
            requests_per_s in 0.01f64..100_000.0, elapsed_us in 0u64..3_600_000_000
        ) {
            let schedule = Schedule::new(requests_per_s);
            let elapsed = Duration::from_micros(elapsed_us);
            let due = schedule.due_count(elapsed);
            // A microsecond of grace for rounding: the schedule is read from a clock anyway.
            let grace = Duration::from_micros(1);
            prop_assert!(schedule.due_at(due - 1) <= elapsed + grace);
            prop_assert!(schedule.due_at(due) + grace > elapsed);
        }
    }

    #[test]
    fn an_hour_of_schedule_holds_rate_times_3600_requests() {
        let schedule = Schedule::new(12_345.0);
        assert_eq!(schedule.due_count(Duration::from_secs(3_600)), 12_345 * 3_600 + 1);
        assert_eq!(schedule.due_at(12_345 * 3_600), Duration::from_secs(3_600));
    }
}
