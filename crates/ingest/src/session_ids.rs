//! How a collector computes session ids, and by which version's rules it checks requests, once that is known.

use std::sync::{Arc, OnceLock};

use dashi_domain::ids::{IdRules, IdentifiedSessions, Visitor};
use dashi_domain::umami::Release;
use uuid::Uuid;

use crate::id_cache::IdCache;

/// The id rules of a collector. Whether a distinct id changes the session may have to be read from the database first;
/// until then there are no rules for visitors with a distinct id, so that no id is ever computed by two formulas in one
/// process. Cheap to clone; all clones are decided together.
#[derive(Debug, Clone)]
pub struct SessionIds {
    /// The rules for visitors without a distinct id; the decision does not change them.
    anonymous: IdRules,
    decided: Arc<OnceLock<IdRules>>,
    /// The version of Umami by whose rules requests are checked.
    release: Arc<OnceLock<Release>>,
    cache: Arc<IdCache>,
}

impl SessionIds {
    /// The rules for identified visitors are not decided yet; those of `rules` are not used.
    pub fn undecided(rules: IdRules) -> Self {
        let anonymous = IdRules { identified: IdentifiedSessions::Shared, ..rules };
        Self { anonymous, decided: Arc::default(), release: Arc::default(), cache: Arc::default() }
    }

    /// The rules for all visitors are decided.
    pub fn decided(rules: IdRules) -> Self {
        let identified = rules.identified;
        let ids = Self::undecided(rules);
        ids.decide(identified);
        ids
    }

    /// Decides the rules for identified visitors for the rest of the process; later calls change nothing.
    pub fn decide(&self, identified: IdentifiedSessions) {
        self.decided.get_or_init(|| IdRules { identified, ..self.anonymous.clone() });
    }

    /// Decides by which version's rules requests are checked for the rest of the process; later calls change nothing.
    pub fn decide_release(&self, release: Release) {
        self.release.get_or_init(|| release);
    }

    /// The version by whose rules requests are checked, once it is known.
    pub(crate) fn release(&self) -> Option<Release> {
        self.release.get().copied()
    }

    /// Whether there are rules for all visitors.
    pub fn is_decided(&self) -> bool {
        self.decided.get().is_some()
    }

    /// The rules for a visitor; `None` as long as they are not decided: try again later.
    pub fn rules(&self, distinct_id: Option<&str>) -> Option<&IdRules> {
        let is_anonymous = distinct_id.is_none_or(str::is_empty);
        self.decided.get().or(is_anonymous.then_some(&self.anonymous))
    }

    /// The session of a visitor by these rules, which are those of [`Self::rules`] for this visitor.
    pub(crate) fn session_id(&self, rules: &IdRules, visitor: &Visitor<'_>, created_at_ms: i64) -> Uuid {
        // The decision does not change sessions without a distinct id, so what was computed before it stays true.
        self.cache.session_id(rules, visitor, created_at_ms)
    }

    /// The visit of a session in the clock hour of an event; see [`IdRules::visit_id`].
    pub(crate) fn visit_id(&self, rules: &IdRules, session_id: Uuid, created_at_ms: i64) -> Uuid {
        self.cache.visit_id(rules, session_id, created_at_ms)
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::calendar::SaltRotation;
    use dashi_domain::ids::Secret;
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn identified_visitors_wait_for_the_first_decision_which_stays() {
        let ids = SessionIds::undecided(IdRules {
            secret: Secret::from_text("s"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::PerDevice,
        });
        let formula = |ids: &SessionIds, id| ids.rules(id).map(|rules| rules.identified);
        assert!(!ids.is_decided());
        assert_eq!(formula(&ids, Some("user-1")), None);
        assert_eq!(formula(&ids, None), Some(IdentifiedSessions::Shared));
        assert_eq!(formula(&ids, Some("")), Some(IdentifiedSessions::Shared));
        let clone = ids.clone();
        ids.decide(IdentifiedSessions::PerDevice);
        ids.decide(IdentifiedSessions::Shared);
        for id in [None, Some("user-1")] {
            assert_eq!(formula(&clone, id), Some(IdentifiedSessions::PerDevice));
        }
    }
}
