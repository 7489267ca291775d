//! The wall clock.

use std::time::SystemTime;

use dashi_domain::calendar::ms_since_1970;

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the cli is an edge at which time enters")]
pub fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}
