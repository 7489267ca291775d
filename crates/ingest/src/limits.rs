//! The limits of requests: how many at once, how long each, how much of a body, and how much work at once.

use std::time::Duration;

use dashi_http::Deadlines;
use tokio::sync::Semaphore;

use crate::answer::Rejection;
use crate::body::BodyBudget;
use crate::collector::CollectorSettings;
use crate::origin::Origins;
use crate::slots::Slots;

/// A body above this is large, unless its endpoint has another limit.
pub(crate) const LARGE_BODY_BYTES: usize = 64 * 1024;

/// Above this, a body is parsed alone: a body of ten megabytes of `0,` makes a tree of some hundred megabytes.
const HUGE_BODY_BYTES: usize = 1024 * 1024;

/// The limits of a collector.
pub struct Limits {
    /// Requests in flight.
    pub slots: Slots,
    /// The memory of bodies.
    pub bodies: BodyBudget,
    /// Assigns requests to clients and to addresses, none of which may take everything.
    pub origins: Origins,
    /// The time of one request.
    pub deadlines: Deadlines,
    /// Most elements of one batch.
    pub batch_elements_max: usize,
    /// How long a visitor may be kept waiting until the visit is stored.
    pub redirect_wait: Duration,
    /// When a client is to send a request again that was answered 503, in seconds.
    pub retry_after_s: u64,
    /// Large bodies that are worked on at once.
    large: Semaphore,
    /// The same for huge ones.
    huge: Semaphore,
}

impl Limits {
    /// The limits that the settings name.
    pub fn new(settings: &CollectorSettings) -> Self {
        Self {
            slots: Slots::new(settings.in_flight_max),
            bodies: BodyBudget::new(settings.body_bytes_max, settings.bodies_bytes_max),
            origins: Origins::default(),
            deadlines: Deadlines {
                request: settings.request_timeout,
                body_pause: settings.body_pause,
                body_bytes_per_s_min: settings.body_rate_min_bytes_per_s,
            },
            batch_elements_max: settings.batch_elements_max,
            redirect_wait: settings.redirect_wait,
            retry_after_s: settings.retry_after_s,
            large: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            huge: Semaphore::new(1),
        }
    }

    /// Works on a body of so many bytes: at once if they are at most `large_bytes`; else where other requests do not
    /// wait for it, and on few such bodies at once.
    pub async fn work<T>(
        &self,
        bytes: usize,
        large_bytes: usize,
        work: impl FnOnce() -> T,
    ) -> Result<T, Rejection> {
        if bytes <= large_bytes {
            return Ok(work());
        }
        // The semaphores are never closed.
        let unavailable = |_| Rejection::Unavailable;
        let _huge = match bytes > HUGE_BODY_BYTES {
            true => Some(self.huge.acquire().await.map_err(unavailable)?),
            false => None,
        };
        let _large = self.large.acquire().await.map_err(unavailable)?;
        Ok(tokio::task::block_in_place(work))
    }
}
