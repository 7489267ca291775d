//! The clocks.

use std::time::{Instant, SystemTime};

use dashi_domain::calendar::ms_since_1970;

/// The moment at which a request was whole, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Milliseconds since 1970.
    pub(crate) ms: i64,
    pub(crate) instant: Instant,
}

impl Now {
    #[expect(clippy::disallowed_methods, reason = "the collector is the edge at which time enters")]
    pub(crate) fn read() -> Self {
        Self { ms: ms_since_1970(SystemTime::now()), instant: Instant::now() }
    }
}
