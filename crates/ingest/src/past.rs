//! Requests of the past, as an import reads them from files: decided as the collector decides, with the time that they
//! bring.

use std::collections::HashMap;

use dashi_domain::client_address::{BlockedAddresses, resolve};
use dashi_domain::ids::{IdRules, Secret, VISIT_S_MAX, Visit, message_name, named_event_id};
use dashi_domain::location::Location;
use dashi_domain::submission::{SchemaRules, Submission};
use dashi_domain::token::Tokens;
use dashi_domain::umami::Release;
use dashi_event_log::NewRecord;
use uuid::Uuid;

use crate::answer::{Ignored, Rejection};
use crate::client::{Client, ClientRules};
use crate::decide::{Decision, decide_with};
use crate::geo::GeoDatabase;
use crate::rules::Rules;
use crate::session_ids::SessionIds;

/// The rules of a collector, as far as they hold for the past.
pub struct PastRules {
    /// How ids are computed.
    pub ids: IdRules,
    /// The ids' secret.
    pub secret: Secret,
    /// The version of Umami by whose rules requests are checked.
    pub release: Release,
    /// Whether texts longer than their columns are accepted also where the rules of that version refuse them.
    pub cut_long_fields: bool,
    /// Addresses that are left out.
    pub blocked: BlockedAddresses,
    /// Whether bots are counted as well.
    pub bots_welcome: bool,
    /// The locations of addresses: of today, so an address that has moved has its new place.
    pub geo: GeoDatabase,
}

/// A request of the past.
#[derive(Debug)]
pub struct PastRequest<'a> {
    /// Its body. Its `timestamp` has to be there.
    pub submission: Submission<'a>,
    /// The client's address, "" if it is not known; its port is left out.
    pub address: &'a str,
    /// The agent, if it is known.
    pub user_agent: Option<&'a str>,
    /// The location, if the file names one; else that of the address.
    pub location: Option<Location>,
    /// The event's id, if the file has one.
    pub event_id: Option<Uuid>,
    /// A name of the request, unique among all of its source: its event id is computed of it, unless there is one or the
    /// payload names the event.
    pub name: &'a str,
}

/// What becomes of a request of the past.
#[derive(Debug)]
pub enum PastDecision {
    /// It is an event with this id.
    Append(Uuid, NewRecord),
    /// It is left out, as a collector leaves it out: the reason in a word.
    Ignored(&'static str),
    /// It cannot be taken: the reason in words.
    Refused(String),
}

/// Decides about requests of the past, in the order of their file.
pub struct Past {
    rules: Rules,
    visits: Visits,
}

impl Past {
    /// Has seen no visit yet.
    pub fn new(rules: PastRules) -> Self {
        let ids = SessionIds::decided(rules.ids);
        ids.decide_release(rules.release);
        let rules = Rules {
            ids,
            cut_long_fields: rules.cut_long_fields,
            keep_unknown_types: false,
            history_age_ms: None,
            tokens: Tokens::new(&rules.secret),
            blocked: rules.blocked,
            bots_welcome: rules.bots_welcome,
            geo: rules.geo,
            client: ClientRules::default(),
        };
        Self { rules, visits: Visits::default() }
    }

    /// How bodies are checked.
    pub fn schema(&self) -> SchemaRules {
        self.rules.schema()
    }

    /// Decides. `blocked` are the addresses that the website blocks.
    pub fn decide(&mut self, blocked: Option<&BlockedAddresses>, request: PastRequest<'_>) -> PastDecision {
        let PastRequest { submission, address, user_agent, location, event_id, name } = request;
        let payload = &submission.payload;
        let Some(at_s) = payload.timestamp else {
            return PastDecision::Refused("it has no timestamp".to_owned());
        };
        let source = payload.source.id;
        let event_id = event_id.unwrap_or_else(|| match &payload.message_id {
            // The name that a live request has: an event that was sent to both is one.
            Some(id) => named_event_id(source, &message_name(id)),
            None => named_event_id(source, name),
        });
        let client = Client {
            address: resolve(address),
            user_agent: user_agent.filter(|agent| !agent.is_empty()).map(str::to_owned),
            location,
            token: None,
            idempotency_key: None,
        };
        let (visits, at_ms) = (&mut self.visits, at_s * 1_000);
        let visit = |ids: &IdRules, session: Uuid, at_ms: i64| visits.visit(ids, session, at_ms);
        match decide_with(&self.rules, blocked, &client, submission, event_id, at_ms, visit) {
            Decision::Append(record, _) | Decision::Lane(record, _) => PastDecision::Append(event_id, record),
            Decision::Answer(Ignored::Bot) => PastDecision::Ignored("bot"),
            Decision::Answer(Ignored::BlockedByWebsite) | Decision::Refuse(Rejection::Blocked) => {
                PastDecision::Ignored("blocked address")
            }
            Decision::Refuse(Rejection::TooLarge) => {
                PastDecision::Refused("it is an identify with too many properties".to_owned())
            }
            Decision::Refuse(rejection) => {
                PastDecision::Refused(format!("a collector refuses it ({})", rejection.label()))
            }
        }
    }
}

/// Sessions whose visits are remembered, at most twice as many.
const VISITS_MAX: usize = 500_000;

/// The visits of sessions: half an hour from the first event of each, as a token keeps a visit.
///
/// Those that began last are kept in two generations, of which the older one is forgotten when the newer one is full.
/// Which of them are forgotten depends on the events alone, so reading a file again gives the same visits.
#[derive(Debug, Default)]
struct Visits {
    newer: HashMap<Uuid, Visit>,
    older: HashMap<Uuid, Visit>,
}

impl Visits {
    fn visit(&mut self, ids: &IdRules, session_id: Uuid, at_ms: i64) -> Visit {
        let at_s = at_ms.div_euclid(1_000);
        let known = self.newer.get(&session_id).or_else(|| self.older.get(&session_id));
        // Files are not always in order, so an earlier event belongs to the visit as well.
        if let Some(visit) = known.filter(|visit| at_s.abs_diff(visit.started_at_s) <= VISIT_S_MAX as u64) {
            return *visit;
        }
        let visit = Visit { id: ids.visit_id(session_id, at_ms), started_at_s: at_s };
        if self.newer.len() >= VISITS_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(session_id, visit);
        visit
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::calendar::SaltRotation;
    use dashi_domain::ids::IdentifiedSessions;
    use dashi_domain::record::Event;
    use jiff::tz::TimeZone;

    use super::*;

    const SITE: &str = "11111111-1111-4111-8111-111111111111";
    const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    const NOON_S: i64 = 1_777_636_800;

    fn ids() -> IdRules {
        IdRules {
            secret: Secret::from_text("a secret of the tests"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Shared,
        }
    }

    fn past() -> Past {
        Past::new(PastRules {
            ids: ids(),
            secret: Secret::from_text("a secret of the tests"),
            release: Release::V3_1,
            cut_long_fields: false,
            blocked: BlockedAddresses::parse("198.51.100.0/24"),
            bots_welcome: false,
            geo: GeoDatabase::default(),
        })
    }

    fn decided(past: &mut Past, members: &str, address: &str, agent: &str, name: &str) -> PastDecision {
        let body = format!(r#"{{"type":"event","payload":{{"website":"{SITE}"{members}}}}}"#);
        let submission = Submission::parse(body.as_bytes(), past.schema()).expect("valid");
        let (user_agent, location, event_id) = (Some(agent), None, None);
        past.decide(None, PastRequest { submission, address, user_agent, location, event_id, name })
    }

    fn at(past: &mut Past, at_s: i64) -> Event<'static> {
        let members = format!(r#","timestamp":{at_s}"#);
        let PastDecision::Append(_, record) = decided(past, &members, "203.0.113.9", AGENT, "n") else {
            panic!("{at_s} is left out")
        };
        Event::decode(record.value.leak()).expect("decodes")
    }

    #[test]
    fn ids_are_those_of_a_live_event_of_that_time() {
        let event = at(&mut past(), NOON_S);
        let visitor = dashi_domain::ids::Visitor {
            source: SITE,
            address: "203.0.113.9",
            user_agent: AGENT,
            distinct_id: None,
        };
        let session = ids().session_id(&visitor, NOON_S * 1_000);
        assert_eq!((event.session_id, event.received_at_ms), (session, NOON_S * 1_000));
        assert_eq!(event.visit_id, ids().visit_id(session, NOON_S * 1_000));
        assert_eq!(event.event_id, named_event_id(SITE.parse().expect("a UUID"), "n"));
    }

    #[test]
    fn a_visit_lasts_half_an_hour_from_its_first_event() {
        let mut past = past();
        let begin = NOON_S + 3_000;
        let first = at(&mut past, begin).visit_id;
        // Past the full hour, which without the rule is another visit.
        for later in [0, 700, 1_800, -1_800] {
            assert_eq!(at(&mut past, begin + later).visit_id, first, "{later}");
        }
        let second = at(&mut past, begin + 1_801).visit_id;
        assert_ne!(second, first);
        assert_eq!(at(&mut past, begin + 3_601).visit_id, second, "from the second one's own beginning");
    }

    #[test]
    fn bots_and_blocked_addresses_are_left_out_and_a_time_is_needed() {
        let mut past = past();
        let timed = format!(r#","timestamp":{NOON_S}"#);
        let decision = decided(&mut past, &timed, "203.0.113.9", "Googlebot/2.1", "n");
        assert!(matches!(decision, PastDecision::Ignored("bot")), "{decision:?}");
        let decision = decided(&mut past, &timed, "198.51.100.7:443", AGENT, "n");
        assert!(matches!(decision, PastDecision::Ignored("blocked address")), "{decision:?}");
        let decision = decided(&mut past, "", "203.0.113.9", AGENT, "n");
        assert!(
            matches!(&decision, PastDecision::Refused(reason) if reason.contains("timestamp")),
            "{decision:?}"
        );
    }

    #[test]
    fn an_event_that_its_client_named_is_the_live_one() {
        let mut past = past();
        let members = format!(r#","timestamp":{NOON_S},"messageId":"m1""#);
        let PastDecision::Append(id, _) = decided(&mut past, &members, "203.0.113.9", AGENT, "line 1") else {
            panic!("it is left out")
        };
        assert_eq!(id, named_event_id(SITE.parse().expect("a UUID"), &message_name("m1")));
    }
}
