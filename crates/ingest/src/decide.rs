//! The decision on one submission: its circumstances in, a decision out. No I/O, no clock, no look-up.

use std::borrow::Cow;

use dashi_domain::agent::Agent;
use dashi_domain::client_address::{BlockedAddresses, strip_port};
use dashi_domain::ids::{
    IdRules, IdentifiedSessions, Visit, Visitor, message_name, named_event_id, request_name,
};
use dashi_domain::location::Location;
use dashi_domain::record::{Event, created_at_ms};
use dashi_domain::submission::{SourceKind, Submission};
use dashi_domain::token::TokenClaims;
use dashi_event_log::NewRecord;
use uuid::timestamp::context::{ContextV7, ThreadLocalContext};
use uuid::{Timestamp, Uuid};

use crate::answer::{Accepted, Ignored, Rejection};
use crate::client::{Client, effective, locatable};
use crate::frame;
use crate::rules::Rules;

/// The website that must be known before the submission can be decided, or `None` if nothing has to be looked up: links
/// and pixels are not looked up, nor is a website for which a token of ours vouches.
pub fn website_to_look_up(submission: &Submission<'_>, claims: Option<&TokenClaims>) -> Option<Uuid> {
    let source = &submission.payload.source;
    (source.kind == SourceKind::Website && !claims.is_some_and(|claims| names(claims, source.id)))
        .then_some(source.id)
}

/// Whether a token names this website. A token of another website counts as none: Umami trusts it and stores the event
/// under a website that was never looked up.
fn names(claims: &TokenClaims, website: Uuid) -> bool {
    claims.website_id.as_deref().and_then(|id| Uuid::try_parse(id).ok()) == Some(website)
}

/// Decides: a record to append and the answer to give once it is durable, or an answer alone. `blocked` are the
/// addresses that the submission's website blocks, beside those that the operator blocks; `index` is the position of
/// the submission in its batch, if it came in one.
pub fn decide(
    rules: &Rules,
    blocked: Option<&BlockedAddresses>,
    client: &Client,
    claims: Option<&TokenClaims>,
    submission: Submission<'_>,
    index: Option<usize>,
    now_ms: i64,
) -> Decision {
    let event_id = event_id(client, &submission, index);
    let (kind, source, back_dated, is_historical) = {
        let payload = &submission.payload;
        let at_ms = created_at_ms(payload.timestamp, now_ms);
        let is_historical = rules.history_age_ms.is_some_and(|age_ms| now_ms.saturating_sub(at_ms) >= age_ms);
        (payload.source.kind, payload.source.id, payload.timestamp.is_some(), is_historical)
    };
    let decision = decide_with(
        rules,
        blocked,
        client,
        submission,
        event_id,
        now_ms,
        |ids, session_id, created_at_ms| {
            let about_us =
                claims.filter(|claims| kind == SourceKind::Website && names_or_silent(claims, source));
            let token = about_us
                .filter(|claims| goes_on(claims, session_id, ids.identified))
                .map_or((None, None), |claims| (claims.visit_id, claims.issued_at_s));
            let of_the_hour = || rules.ids.visit_id(ids, session_id, created_at_ms);
            Visit::of(now_ms.div_euclid(1_000), back_dated, token, of_the_hour)
        },
    );
    match decision {
        Decision::Append(record, accepted) if is_historical => Decision::Lane(record, accepted),
        decision => decision,
    }
}

/// The same with the event's id, and with a rule for the visit: from the rules of ids, the session, and the event's time
/// in milliseconds since 1970.
pub fn decide_with(
    rules: &Rules,
    blocked: Option<&BlockedAddresses>,
    client: &Client,
    submission: Submission<'_>,
    event_id: Uuid,
    now_ms: i64,
    visit: impl FnOnce(&IdRules, Uuid, i64) -> Visit,
) -> Decision {
    if submission.has_too_many_properties() {
        return Decision::Refuse(Rejection::TooLarge);
    }
    let payload = &submission.payload;
    let source = &payload.source;
    let own_address = payload.ip.as_deref().filter(|ip| !ip.is_empty());
    let address = own_address.unwrap_or(&client.address);
    let user_agent = effective(payload.user_agent.as_deref(), client.user_agent.as_deref());
    let agent_text = user_agent.as_deref().unwrap_or_default();
    if let Some(answer) = turned_away(rules, blocked, address, agent_text) {
        return answer.map_or_else(Decision::Refuse, Decision::Answer);
    }
    let visitor =
        Visitor { source: &source.text, address, user_agent: agent_text, distinct_id: payload.id.as_deref() };
    let created_at_ms = created_at_ms(payload.timestamp, now_ms);
    let Some(ids) = rules.ids.rules(visitor.distinct_id) else {
        return Decision::Refuse(Rejection::Unavailable);
    };
    let session_id = rules.ids.session_id(ids, &visitor, created_at_ms);
    let identified = payload.id.as_deref().is_some_and(|id| !id.is_empty());
    let device = (identified && source.kind == SourceKind::Website)
        .then(|| rules.ids.session_id(ids, &Visitor { distinct_id: None, ..visitor }, created_at_ms));
    let visit = visit(ids, session_id, created_at_ms);
    let website = (source.kind == SourceKind::Website).then_some(&*source.text);
    let accepted = Accepted {
        cache: rules.tokens.issue(website, session_id, visit.id, visit.started_at_s, ids.identified),
        session_id,
        visit_id: visit.id,
    };
    let location = location(rules, client, own_address);
    // The submission moves into the event, so an agent that it names is copied.
    let named = payload.user_agent.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let user_agent = named.map(Cow::Owned).or(client.user_agent.as_deref().map(Cow::Borrowed));
    let event = Event {
        event_id,
        received_at_ms: now_ms,
        session_id,
        visit_id: visit.id,
        device,
        location,
        user_agent,
        submission,
    };
    Decision::Append(NewRecord { session_id, value: event.encode() }, accepted)
}

/// The answer to a bot, or to a blocked address: in this order, so a bot is answered 200 from anywhere. An address that
/// the operator blocks is refused; one that the website blocks is ignored.
pub fn turned_away(
    rules: &Rules,
    blocked: Option<&BlockedAddresses>,
    address: &str,
    user_agent: &str,
) -> Option<Result<Ignored, Rejection>> {
    if !rules.bots_welcome && Agent::of(Some(user_agent)).bot {
        return Some(Ok(Ignored::Bot));
    }
    if rules.blocked.contains(address) {
        return Some(Err(Rejection::Blocked));
    }
    blocked.is_some_and(|list| list.contains(address)).then_some(Ok(Ignored::BlockedByWebsite))
}

/// The client's location: by a proxy's headers, unless the payload names the address; else by the location database.
fn location(rules: &Rules, client: &Client, own_address: Option<&str>) -> Location {
    match (own_address, &client.location) {
        (None, Some(location)) => location.clone(),
        _ => {
            // An address that the payload names may have a port, which is not looked up.
            let address = own_address.map_or(Cow::Borrowed(client.address.as_str()), strip_port);
            locatable(&address).map(|ip| rules.geo.locate(&ip)).unwrap_or_default()
        }
    }
}

/// The id of the event. It is derived from the client's own id of the event, if there is one, so that a copy that is
/// sent again is the same event. Without one the event is new.
fn event_id(client: &Client, submission: &Submission<'_>, index: Option<usize>) -> Uuid {
    let source = submission.payload.source.id;
    // An event of an unknown type has ids of its own, so that it cannot be a copy of an event of a known type.
    let kept = submission.kept.as_ref().map_or_else(String::new, |kept| format!("kept:{}:", kept.kind));
    match (&submission.payload.message_id, &client.idempotency_key, index) {
        (Some(id), ..) => named_event_id(source, &format!("{kept}{}", message_name(id))),
        (None, Some(key), index) => named_event_id(source, &format!("{kept}{}", request_name(key, index))),
        (None, None, _) => new_event_id(),
    }
}

/// The id of a new event: of this moment, and random. Ids of one thread grow; each has a context of its own, so that none waits for
/// another.
fn new_event_id() -> Uuid {
    thread_local!(static CONTEXT: ContextV7 = const { ContextV7::new() });
    Uuid::new_v7(Timestamp::now(ThreadLocalContext::new(&CONTEXT)))
}

/// Whether a token may be used for this website: it names it, or no website at all. (Umami issues no such token for a
/// website, but accepts it, and uses the claims that it has.)
pub fn names_or_silent(claims: &TokenClaims, website: Uuid) -> bool {
    claims.website_id.is_none() || names(claims, website)
}

/// Whether a token's visit goes on. When address, agent, month or distinct id have changed since, the session is
/// another one: Umami then begins a new visit from 3.3 on, and keeps the old one before.
fn goes_on(claims: &TokenClaims, session_id: Uuid, identified: IdentifiedSessions) -> bool {
    identified == IdentifiedSessions::Shared || claims.session_id.is_none_or(|before| before == session_id)
}

/// See [`decide`].
pub type Decision = frame::Decision<Accepted, Ignored>;

#[cfg(test)]
mod tests {
    use dashi_domain::calendar::SaltRotation;
    use dashi_domain::client_address::BlockedAddresses;
    use dashi_domain::ids::{IdRules, Secret};
    use dashi_domain::submission::SubmissionKind;
    use dashi_domain::token::Tokens;
    use http::{HeaderMap, HeaderValue, StatusCode};
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;
    use crate::any_body::any_body;
    use crate::client::ClientRules;
    use crate::geo::GeoDatabase;
    use crate::session_ids::SessionIds;
    use crate::whole::{MOMENTS_MS, RECEIVED_MS, assert_refusal, assert_whole};

    const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

    fn rules() -> Rules {
        let ids = IdRules {
            secret: Secret::from_text("a secret of the tests"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Shared,
        };
        Rules {
            tokens: Tokens::new(&ids.secret),
            ids: SessionIds::decided(ids),
            cut_long_fields: false,
            keep_unknown_types: false,
            history_age_ms: None,
            blocked: BlockedAddresses::parse("198.51.100.0/24, 127.0.0.1"),
            bots_welcome: false,
            geo: GeoDatabase::default(),
            client: ClientRules::default(),
        }
    }

    /// A request's head with these values of the headers that count.
    fn client(agent: &[u8], country: &[u8], city: &[u8], key: &[u8]) -> Client {
        let mut headers = HeaderMap::new();
        headers.insert("cf-connecting-ip", HeaderValue::from_static("203.0.113.9"));
        let names = ["user-agent", "cf-ipcountry", "cf-ipcity", "idempotency-key"];
        for (name, value) in names.into_iter().zip([agent, country, city, key]) {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(name, value);
            }
        }
        Client::read(&headers, [127, 0, 0, 1].into(), &ClientRules::default())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// 200 with a whole event, 200 for a bot, 403, or the documented 400: there is nothing else.
        #[test]
        fn any_body_is_refused_as_documented_or_makes_a_whole_event(
            body in any_body(),
            agent in prop_oneof![Just(AGENT.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..40)],
            country in prop_oneof![Just(b"GB".to_vec()), prop::collection::vec(any::<u8>(), 0..6)],
            city in prop_oneof![Just(b"L%C3%B3ndon".to_vec()), prop::collection::vec(any::<u8>(), 0..80)],
            key in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let submission = match Submission::parse(&body, rules().schema()) {
                Ok(submission) => submission,
                Err(error) => {
                    let rejection = Rejection::Schema(error);
                    assert_eq!(rejection.status(), StatusCode::BAD_REQUEST);
                    assert_refusal(&rejection.to_json());
                    return Ok(());
                }
            };
            let client = client(&agent, &country, &city, &key);
            match decide(&rules(), None, &client, None, submission.clone(), None, RECEIVED_MS) {
                Decision::Answer(ignored) => {
                    assert_eq!(ignored, Ignored::Bot, "no website blocks anybody here");
                    let agent = effective(submission.payload.user_agent.as_deref(), client.user_agent.as_deref());
                    assert!(Agent::parse(agent.as_deref()).bot);
                }
                Decision::Refuse(Rejection::Blocked) => {
                    let address = submission.payload.ip.as_deref().unwrap_or_default();
                    assert!(address.starts_with("198.51.100.") || address == "127.0.0.1", "{address}");
                }
                Decision::Append(entry, Accepted { cache, session_id, visit_id }) => {
                    let changes = assert_whole(&entry.value);
                    assert_eq!((entry.session_id, changes.sessions[0].session_id), (session_id, session_id));
                    assert_eq!(changes.events.len(), usize::from(submission.kind != SubmissionKind::Identify));
                    assert!(changes.events.iter().all(|event| event.visit_id == visit_id));
                    assert!(MOMENTS_MS.contains(&changes.sessions[0].created_at_ms), "{changes:?}");
                    let claims = rules().tokens.verify(&cache, RECEIVED_MS / 1_000).expect("our own token");
                    assert_eq!((claims.session_id, claims.visit_id), (Some(session_id), Some(visit_id)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    const NOW_MS: i64 = 1_777_636_800_123;
    const SOURCE: &str = "11111111-1111-4111-8111-111111111111";

    /// Session and device of the record that a payload becomes.
    fn recorded(kind: &str, members: &str) -> (Uuid, Option<Uuid>) {
        let rules = Rules { bots_welcome: true, blocked: BlockedAddresses::default(), ..rules() };
        let client = Client {
            address: "203.0.113.7".to_owned(),
            user_agent: Some("agent".to_owned()),
            location: None,
            token: None,
            idempotency_key: None,
        };
        let body = format!(r#"{{"type":"{kind}","payload":{{{members}}}}}"#);
        let submission = Submission::parse(body.as_bytes(), rules.schema()).expect("valid");
        let Decision::Append(entry, _) = decide(&rules, None, &client, None, submission, None, NOW_MS) else {
            panic!("{body} is turned away")
        };
        let event = Event::decode(&entry.value).expect("decodes");
        (event.session_id, event.device)
    }

    #[test]
    fn an_event_is_historical_from_an_age_on() {
        let now_s = NOW_MS.div_euclid(1_000);
        let is_historical = |history_age_ms, timestamp: &str| {
            let rules = Rules { history_age_ms, ..rules() };
            let body = format!(r#"{{"type":"event","payload":{{"website":"{SOURCE}"{timestamp}}}}}"#);
            let submission = Submission::parse(body.as_bytes(), rules.schema()).expect("valid");
            let client = client(AGENT.as_bytes(), b"", b"", b"");
            let decided = decide(&rules, None, &client, None, submission, None, NOW_MS);
            match decided {
                Decision::Lane(..) => true,
                Decision::Append(..) => false,
                other => panic!("{other:?}"),
            }
        };
        let at = |s: i64| format!(r#","timestamp":{s}"#);
        assert!(!is_historical(Some(3_600_000), ""));
        assert!(!is_historical(Some(3_600_000), &at(now_s - 3_599)));
        // NOW_MS is 123 ms past its second.
        assert!(is_historical(Some(3_600_000), &at(now_s - 3_600)));
        assert!(is_historical(Some(3_600_000), &at(-1)));
        assert!(!is_historical(Some(3_600_000), &at(now_s + 9_999)));
        assert!(!is_historical(Some(3_600_000), &at(0)), "0 stands for now");
        assert!(!is_historical(None, &at(1)));
    }

    #[test]
    fn the_device_of_an_identified_visitor_is_the_session_that_it_has_without_a_name() {
        let website = format!(r#""website":"{SOURCE}""#);
        let anonymous = recorded("event", &website);
        assert_eq!(anonymous.1, None, "it has no other");
        for (kind, name) in [("event", "ada"), ("identify", "ada"), ("performance", "bob")] {
            let (session, device) = recorded(kind, &format!(r#"{website},"id":"{name}""#));
            assert_ne!(session, anonymous.0);
            assert_eq!(device, Some(anonymous.0));
        }
        assert_eq!(recorded("identify", &format!(r#"{website},"id":"""#)), anonymous);
        for source in ["link", "pixel"] {
            assert_eq!(recorded("identify", &format!(r#""{source}":"{SOURCE}","id":"ada""#)).1, None);
        }
        // Address, agent and time of the payload count for the device as for the session.
        for own in [r#""ip":"198.51.100.9""#, r#""userAgent":"other""#, r#""timestamp":1700000000"#] {
            let there = recorded("event", &format!("{website},{own}")).0;
            assert_ne!(there, anonymous.0, "{own}");
            let identified = recorded("event", &format!(r#"{website},{own},"id":"ada""#));
            assert_eq!(identified.1, Some(there), "{own}");
        }
    }
}
