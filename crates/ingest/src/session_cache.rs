//! Sessions of visitors that were computed lately. A session's id takes eight blocks of SHA-512 and four of SHA-1, and a visitor
//! who comes once comes again.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use dashi_domain::ids::{IdRules, Visitor};
use uuid::Uuid;

/// Sets of the cache, a power of two, and sessions in each of them: as many visitors as a busy collector sees in some minutes.
const SETS: usize = 4_096;
const WAYS: usize = 4;

/// Visitors with longer texts than this, in bytes, are computed each time, so that all of it takes 10 MiB at most.
const KEY_MAX: usize = 512;

/// The cache of one collector, for one formula of ids.
pub(crate) struct SessionCache {
    /// Keyed, so that no client can choose visitors that push each other out.
    hasher: RandomState,
    sets: Box<[Mutex<Set>]>,
}

#[derive(Default)]
struct Set {
    sessions: [Option<Session>; WAYS],
    /// The place that the next new one takes.
    next: usize,
}

struct Session {
    key: Box<[u8]>,
    id: Uuid,
}

impl Default for SessionCache {
    fn default() -> Self {
        Self { hasher: RandomState::new(), sets: (0..SETS).map(|_| Mutex::default()).collect() }
    }
}

impl SessionCache {
    /// [`IdRules::session_id`] by these rules: computed, unless it was lately.
    pub fn session_id(&self, rules: &IdRules, visitor: &Visitor<'_>, created_at_ms: i64) -> Uuid {
        let period = rules.session_period(created_at_ms);
        let mut buffer = [0; KEY_MAX];
        let Some(key) = key(visitor, period, &mut buffer) else {
            return rules.session_id_in(visitor, period);
        };
        let set = &self.sets[self.hasher.hash_one(key) as usize % SETS];
        {
            // Nothing that a panic could have left half done.
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(session) = set.sessions.iter().flatten().find(|session| *session.key == *key) {
                return session.id;
            }
        }
        let id = rules.session_id_in(visitor, period);
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let next = set.next;
        set.sessions[next] = Some(Session { key: key.into(), id });
        set.next = (next + 1) % WAYS;
        id
    }
}

/// All that the session depends on beside the rules, each text behind its length; `None` if it is too long.
fn key<'b>(visitor: &Visitor<'_>, period: i64, buffer: &'b mut [u8; KEY_MAX]) -> Option<&'b [u8]> {
    let texts =
        [visitor.source, visitor.address, visitor.user_agent, visitor.distinct_id.unwrap_or_default()];
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        buffer.get_mut(len..len + bytes.len())?.copy_from_slice(bytes);
        len += bytes.len();
        Some(())
    };
    put(&period.to_le_bytes())?;
    for text in texts {
        put(&u16::try_from(text.len()).ok()?.to_le_bytes())?;
        put(text.as_bytes())?;
    }
    Some(&buffer[..len])
}

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionCache")
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::calendar::SaltRotation;
    use dashi_domain::ids::{IdentifiedSessions, Secret};
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Texts that run into each other, long ones, and times at both sides of a boundary.
        #[test]
        fn a_cached_session_is_the_computed_one(
            visitors in proptest::collection::vec(
                ("[ab]{0,3}", "[ab]{0,3}", "[ab]{0,3}|x{300}|x{70000}", proptest::option::of("[ab]{0,2}"), 0_i64..3),
                1..60,
            ),
            identified in proptest::sample::select(vec![
                IdentifiedSessions::Shared, IdentifiedSessions::Linked, IdentifiedSessions::PerDevice,
            ]),
        ) {
            let rules = IdRules {
                secret: Secret::from_text("s"),
                rotation: SaltRotation::Day,
                zone: TimeZone::get("Europe/Berlin").unwrap(),
                identified,
            };
            let cache = SessionCache::default();
            for (source, address, user_agent, distinct_id, day) in &visitors {
                let visitor = Visitor { source, address, user_agent, distinct_id: distinct_id.as_deref() };
                // The last millisecond of a day and the first of the next.
                for at_ms in [day * 86_400_000 - 3_600_001, day * 86_400_000 - 3_600_000] {
                    prop_assert_eq!(
                        cache.session_id(&rules, &visitor, at_ms), rules.session_id(&visitor, at_ms)
                    );
                }
            }
        }
    }

    #[test]
    fn more_visitors_than_there_is_room_for_push_the_oldest_out() {
        let rules = IdRules {
            secret: Secret::from_text("s"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Shared,
        };
        let cache = SessionCache::default();
        let held = || -> usize {
            cache.sets.iter().map(|set| set.lock().unwrap().sessions.iter().flatten().count()).sum()
        };
        for n in 0..SETS * WAYS * 2 {
            let address = n.to_string();
            let visitor = Visitor { source: "s", address: &address, user_agent: "", distinct_id: None };
            cache.session_id(&rules, &visitor, 0);
        }
        assert!(held() <= SETS * WAYS && held() > SETS * WAYS / 2, "{}", held());
        let again = held();
        let last = (SETS * WAYS * 2 - 1).to_string();
        let visitor = Visitor { source: "s", address: &last, user_agent: "", distinct_id: None };
        assert_eq!(cache.session_id(&rules, &visitor, 0), rules.session_id(&visitor, 0));
        assert_eq!(held(), again);
    }
}
