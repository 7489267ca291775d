//! Sessions and visits that were computed lately. A session's id takes eight blocks of SHA-512 and four of SHA-1, a visit's five
//! and four, and a visitor who comes once comes again.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, PoisonError};

use dashi_domain::ids::{IdRules, Visitor};
use uuid::Uuid;

/// Sets of a cache, a power of two, and ids in each of them: as many visitors as a busy collector sees in some minutes.
const SETS: usize = 4_096;
const WAYS: usize = 4;

/// Visitors with longer texts than this, in bytes, are computed each time, so that sessions take 10 MiB at most; visits take one more.
const KEY_MAX: usize = 512;

/// The cache of one collector, for one formula of ids.
#[derive(Default)]
pub(crate) struct IdCache {
    sessions: Ids<Box<[u8]>>,
    visits: Ids<(Uuid, i64)>,
}

/// Ids by what they are computed of.
struct Ids<K> {
    /// Keyed, so that no client can choose visitors that push each other out.
    hasher: RandomState,
    sets: Box<[Mutex<Set<K>>]>,
}

struct Set<K> {
    ids: [Option<(K, Uuid)>; WAYS],
    /// The place that the next new one takes.
    next: usize,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        let set = || Mutex::new(Set { ids: [const { None }; WAYS], next: 0 });
        Self { hasher: RandomState::new(), sets: (0..SETS).map(|_| set()).collect() }
    }
}

impl<K> Ids<K> {
    /// The id of a key: computed, unless it was lately.
    fn id<Q: Hash + Eq + ?Sized>(
        &self,
        key: &Q,
        own: impl FnOnce() -> K,
        compute: impl FnOnce() -> Uuid,
    ) -> Uuid
    where
        K: Borrow<Q>,
    {
        let set = &self.sets[self.hasher.hash_one(key) as usize % SETS];
        {
            // Nothing that a panic could have left half done.
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, id)) = set.ids.iter().flatten().find(|(other, _)| other.borrow() == key) {
                return *id;
            }
        }
        let id = compute();
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let next = set.next;
        set.ids[next] = Some((own(), id));
        set.next = (next + 1) % WAYS;
        id
    }
}

impl IdCache {
    /// [`IdRules::session_id`] by these rules.
    pub fn session_id(&self, rules: &IdRules, visitor: &Visitor<'_>, created_at_ms: i64) -> Uuid {
        let period = rules.session_period(created_at_ms);
        let mut buffer = [0; KEY_MAX];
        match key(visitor, period, &mut buffer) {
            Some(key) => self.sessions.id(key, || key.into(), || rules.session_id_in(visitor, period)),
            None => rules.session_id_in(visitor, period),
        }
    }

    /// [`IdRules::visit_id`] by these rules.
    pub fn visit_id(&self, rules: &IdRules, session_id: Uuid, created_at_ms: i64) -> Uuid {
        let key = (session_id, rules.visit_hour(created_at_ms));
        self.visits.id(&key, || key, || rules.visit_id_in(session_id, key.1))
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

impl fmt::Debug for IdCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdCache")
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
        fn a_cached_id_is_the_computed_one(
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
            let cache = IdCache::default();
            for (source, address, user_agent, distinct_id, day) in &visitors {
                let visitor = Visitor { source, address, user_agent, distinct_id: distinct_id.as_deref() };
                // The last millisecond of a day and the first of the next.
                for at_ms in [day * 86_400_000 - 3_600_001, day * 86_400_000 - 3_600_000] {
                    let session = rules.session_id(&visitor, at_ms);
                    prop_assert_eq!(cache.session_id(&rules, &visitor, at_ms), session);
                    prop_assert_eq!(
                        cache.visit_id(&rules, session, at_ms), rules.visit_id(session, at_ms)
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
        let cache = IdCache::default();
        let held = || -> usize {
            cache.sessions.sets.iter().map(|set| set.lock().unwrap().ids.iter().flatten().count()).sum()
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
