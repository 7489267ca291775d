//! Warnings that may be due many times a second: the first one is logged at once, the others as a count at intervals.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// The state of one kind of warning.
#[derive(Debug, Default)]
pub struct Repeated(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    since: u64,
}

impl Repeated {
    /// Counts that the warning is due. Returns how often it was due since it was last logged, this time included, if it
    /// is to be logged now.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.since += 1;
        if state.logged.is_some_and(|logged| now.saturating_duration_since(logged) < EVERY) {
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_logged_at_once_and_its_repetitions_as_a_count() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.due_at(start), Some(1));
        for ms in 1..100 {
            assert_eq!(repeated.due_at(start + Duration::from_millis(ms * 100)), None);
        }
        assert_eq!(repeated.due_at(start + EVERY), Some(100));
        assert_eq!(repeated.due_at(start + 3 * EVERY), Some(1));
    }
}
