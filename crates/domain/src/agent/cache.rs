//! A memory of agents that were read: a site's traffic has few of them, and reading one takes as long as all else that
//! is done with an event.

use std::collections::HashMap;
use std::sync::{LazyLock, PoisonError, RwLock};

use super::Agent;

/// Agents remembered; past that the memory starts empty again. Real traffic has hundreds.
const AGENTS_MAX: usize = 8_192;

/// Longer texts are read each time, so that made-up ones take at most 8 MiB.
const BYTES_MAX: usize = 1_024;

/// Process-wide: it only saves work, its result depends on the text alone.
static KNOWN: LazyLock<RwLock<HashMap<Box<str>, Agent>>> = LazyLock::new(RwLock::default);

/// [`Agent::parse`] of a text, remembered.
pub(super) fn agent(ua: &str) -> Agent {
    if ua.len() > BYTES_MAX {
        return Agent::parse(Some(ua));
    }
    if let Some(known) = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(ua) {
        return *known;
    }
    let read = Agent::parse(Some(ua));
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= AGENTS_MAX {
        known.clear();
    }
    known.insert(ua.into(), read);
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_what_was_read() {
        let texts = || {
            (0..2 * AGENTS_MAX).map(|n| format!("Mozilla/5.0 (Windows NT 10.0) Chrome/{n}.0 Safari/537.36"))
        };
        for _ in 0..2 {
            for ua in
                texts().step_by(511).chain(["curl/8.0".to_owned(), String::new(), "x".repeat(2 * BYTES_MAX)])
            {
                assert_eq!(agent(&ua), Agent::parse(Some(&ua)), "{ua}");
            }
        }
        for ua in texts() {
            agent(&ua);
        }
        assert!(KNOWN.read().expect("no panic while it was held").len() <= AGENTS_MAX);
    }
}
