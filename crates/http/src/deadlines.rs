//! Until when a request and its body must have arrived.

use std::time::{Duration, Instant};

use crate::outgoing::Outgoing;

/// The bounds of one request's time.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For the whole request, from its head to its answer.
    pub request: Duration,
    /// Between two pieces of a body, and before the first.
    pub body_pause: Duration,
    /// Least average rate of a body that has taken longer than `body_pause`.
    pub body_bytes_per_s_min: u64,
}

/// The deadline that a request has missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// That of the whole request.
    Request,
    /// That of its body: the last piece came too long ago, or all of them too slowly.
    Body,
}

impl Deadlines {
    /// When a request that began at `began` has to be checked first.
    pub fn first_check(&self, began: Instant) -> Instant {
        began + self.body_pause.min(self.request)
    }

    /// Until when a request that began at `began` must be answered.
    pub fn of_request(&self, began: Instant) -> Instant {
        began + self.request
    }

    /// Checks a request that began at `began` on this connection. Returns when to check it again.
    ///
    /// # Errors
    /// The deadline that it has missed.
    pub fn check(&self, began: Instant, outgoing: Option<&Outgoing>) -> Result<Instant, Overdue> {
        let now = Instant::now();
        let deadline = self.of_request(began);
        if now >= deadline {
            return Err(Overdue::Request);
        }
        let Some((bytes, last)) = outgoing.and_then(Outgoing::body_so_far) else {
            return Ok(deadline);
        };
        let earned = Duration::from_millis(bytes.saturating_mul(1_000) / self.body_bytes_per_s_min.max(1));
        let by_pause = last.max(began) + self.body_pause;
        let by_rate = began + self.body_pause.saturating_add(earned);
        let due = by_pause.min(by_rate);
        if now >= due { Err(Overdue::Body) } else { Ok(due.min(deadline)) }
    }
}
