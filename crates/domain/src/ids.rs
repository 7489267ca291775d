//! Session, visit and row identifiers. They are computed, never generated, wherever a replay must find them
//! again; only the event id of a request is made from the clock, once, and travels in its record.
//!
//! Source of the formulas: Umami 3.1, recorded as vectors in `tests/vectors/umami-vectors.json`; for
//! [`IdentifiedSessions::Linked`] and [`IdentifiedSessions::PerDevice`], docs/umami-contract.md §6.3.

use std::borrow::Cow;

use jiff::tz::TimeZone;
use sha2::{Digest, Sha512};
use uuid::Uuid;

use crate::calendar::{SaltRotation, hour_start_ms, salt_start_ms, utc_string};
use crate::text::cut;

/// The secret of session ids, visit ids and tokens. All collectors of one site must have the same.
#[derive(Clone)]
pub struct Secret(Hex);

/// 128 lower-case hexadecimal characters.
type Hex = [u8; 128];

impl Secret {
    /// The secret that Umami derives from `APP_SECRET` (or, without one, from `DATABASE_URL`).
    pub fn from_text(text: &str) -> Self {
        Self(hash(&[text.as_bytes()]))
    }

    /// The key of the token's HMAC: the characters themselves, not the 64 bytes they stand for.
    pub fn token_key(&self) -> &[u8] {
        &self.0
    }

    /// A version 5 UUID over the parts and this secret.
    fn uuid(&self, parts: &[&[u8]]) -> Uuid {
        let mut sha = Sha512::new();
        for part in parts {
            sha.update(part);
        }
        sha.update(self.0);
        Uuid::new_v5(&Uuid::NAMESPACE_DNS, &hex(&sha.finalize()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// How session and visit ids are computed: one value for all collectors of a site.
#[derive(Debug, Clone)]
pub struct IdRules {
    /// The secret that the ids are salted with.
    pub secret: Secret,
    /// How often anonymous visitors become new sessions.
    pub rotation: SaltRotation,
    /// Where calendar boundaries are taken.
    pub zone: TimeZone,
    /// The effect of a distinct id on a session.
    pub identified: IdentifiedSessions,
}

/// The effect of a distinct id on the session of its visitor. Sessions without a distinct id are the same under all,
/// and so are visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentifiedSessions {
    /// It is the session, on all devices and for ever: U(source, id), as Umami has it up to 3.2.
    Shared,
    /// It is no part of it: U(source, ip, userAgent, sessionSalt). An identify links it to the session that its
    /// device has anyway, as Umami 3.3 has it.
    Linked,
    /// It is one more part of it: U(source, ip, userAgent, sessionSalt, id), as Umami has it from 3.4 on.
    PerDevice,
}

/// How many UTF-16 units of a distinct id make a session under [`IdentifiedSessions::PerDevice`]: those that are
/// stored. [`IdentifiedSessions::Shared`] takes all of them.
const DISTINCT_ID_UNITS_MAX: usize = 50;

/// The visitor of an event, as far as the session id depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// The website, link or pixel id, in the letters it was sent in.
    pub source: &'a str,
    /// The effective client address, "" if there is none.
    pub address: &'a str,
    /// The effective user agent, "" if there is none.
    pub user_agent: &'a str,
    /// The distinct id; "" counts as none.
    pub distinct_id: Option<&'a str>,
}

impl IdRules {
    /// The session of a visitor at `created_at_ms`. It depends on address, agent and the salt's period, so a back-dated
    /// event falls into the session of its own month; for the effect of a distinct id, see [`IdentifiedSessions`].
    pub fn session_id(&self, visitor: &Visitor<'_>, created_at_ms: i64) -> Uuid {
        self.session_id_in(visitor, self.session_period(created_at_ms))
    }

    /// The start of the salt's period that an event lies in, in milliseconds since 1970. Within a period a visitor's session is
    /// the same.
    pub fn session_period(&self, created_at_ms: i64) -> i64 {
        salt_start_ms(created_at_ms, self.rotation, &self.zone)
    }

    /// [`Self::session_id`] of an event in a period, by the period's start.
    pub fn session_id_in(&self, visitor: &Visitor<'_>, period: i64) -> Uuid {
        let distinct_id = visitor.distinct_id.unwrap_or_default();
        let part = match self.identified {
            IdentifiedSessions::Shared if !distinct_id.is_empty() => {
                return self.secret.uuid(&[visitor.source.as_bytes(), distinct_id.as_bytes()]);
            }
            IdentifiedSessions::Shared | IdentifiedSessions::Linked => Cow::Borrowed(""),
            IdentifiedSessions::PerDevice => cut(distinct_id.into(), DISTINCT_ID_UNITS_MAX),
        };
        let salt = hash(&[utc_string(period).as_bytes()]);
        self.secret.uuid(&[
            visitor.source.as_bytes(),
            visitor.address.as_bytes(),
            visitor.user_agent.as_bytes(),
            &salt,
            part.as_bytes(),
        ])
    }

    /// The visit of a session in the clock hour of `created_at_ms`.
    pub fn visit_id(&self, session_id: Uuid, created_at_ms: i64) -> Uuid {
        self.visit_id_in(session_id, self.visit_hour(created_at_ms))
    }

    /// The start of the clock hour that an event lies in, in milliseconds since 1970. Within an hour a session's visit is the same,
    /// unless a token carries another one.
    pub fn visit_hour(&self, created_at_ms: i64) -> i64 {
        hour_start_ms(created_at_ms, &self.zone)
    }

    /// [`Self::visit_id`] of an event in an hour, by the hour's start.
    pub fn visit_id_in(&self, session_id: Uuid, hour: i64) -> Uuid {
        let salt = hash(&[utc_string(hour).as_bytes()]);
        let mut session = Uuid::encode_buffer();
        self.secret.uuid(&[session_id.hyphenated().encode_lower(&mut session).as_bytes(), &salt])
    }
}

/// How long a visit lasts from its start, in seconds. It does not slide.
pub const VISIT_S_MAX: i64 = 1_800;

/// A visit and when it began (seconds since 1970), as a token carries it from request to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// The visit's id.
    pub id: Uuid,
    /// When the token that first carried this visit was issued.
    pub started_at_s: i64,
}

impl Visit {
    /// The visit of an event: the token's, if there is one and it has not expired, else that of the hour, which is
    /// [`IdRules::visit_id`].
    ///
    /// With `back_dated` the event brought its own timestamp; then the visit never expires.
    pub fn of(
        now_s: i64,
        back_dated: bool,
        token: (Option<Uuid>, Option<i64>),
        of_the_hour: impl FnOnce() -> Uuid,
    ) -> Self {
        let (token_visit, token_iat) = token;
        let started_at_s = token_iat.unwrap_or(now_s);
        if !back_dated && now_s - started_at_s > VISIT_S_MAX {
            return Self { id: of_the_hour(), started_at_s: now_s };
        }
        Self { id: token_visit.unwrap_or_else(of_the_hour), started_at_s }
    }
}

/// The id of an event that its client has named: one per source and name, whenever and wherever it arrives, so that
/// a copy sent again is known as one. `message_id` is the payload's own, or a request's key (and the place within a
/// batch).
pub fn named_event_id(source: Uuid, message_id: &str) -> Uuid {
    Uuid::new_v5(&source, message_id.as_bytes())
}

/// The name of an event whose payload has a `messageId`, for [`named_event_id`].
pub fn message_name(message_id: &str) -> String {
    format!("message:{message_id}")
}

/// The name of an event whose request has a key (`Idempotency-Key`); `index` is its place in a batch, from 0.
pub fn request_name(key: &str, index: Option<usize>) -> String {
    index.map_or_else(|| format!("request:{key}"), |index| format!("request:{key}:{index}"))
}

/// The id of a row that hangs on an event: version 5 in the namespace of the event's own id, so a redelivered
/// record and a replay write the same row. `name` must be unique among the event's rows.
pub fn dependent_id(event_id: Uuid, name: &str) -> Uuid {
    Uuid::new_v5(&event_id, name.as_bytes())
}

/// The id of a session's property: one per session and key, whichever event writes it.
pub fn session_data_id(session_id: Uuid, key: &str) -> Uuid {
    Uuid::new_v5(&session_id, key.as_bytes())
}

/// Lower-case hexadecimal SHA-512 over the concatenation of the parts.
fn hash(parts: &[&[u8]]) -> Hex {
    let mut sha = Sha512::new();
    for part in parts {
        sha.update(part);
    }
    hex(&sha.finalize())
}

fn hex(bytes: &[u8]) -> Hex {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 128];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        ids: Vec<IdVector>,
    }

    #[derive(serde::Deserialize)]
    struct IdVector {
        note: String,
        secret_input: String,
        source_id: String,
        ip: Option<String>,
        user_agent: Option<String>,
        timestamp: i64,
        distinct_id: Option<String>,
        salt_rotation: String,
        tz: String,
        session_salt_date: Option<String>,
        visit_salt_date: String,
        session_id: Uuid,
        visit_id: Uuid,
    }

    #[test]
    fn every_recorded_id_is_computed() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../tests/vectors/umami-vectors.json")).expect("vectors");
        assert!(!vectors.ids.is_empty());
        for vector in vectors.ids {
            let rules = IdRules {
                secret: Secret::from_text(&vector.secret_input),
                rotation: SaltRotation::parse(&vector.salt_rotation),
                zone: TimeZone::get(&vector.tz).expect("a bundled zone"),
                identified: IdentifiedSessions::Shared,
            };
            let at_ms = vector.timestamp * 1_000;
            if let Some(date) = vector.session_salt_date {
                assert_eq!(utc_string(salt_start_ms(at_ms, rules.rotation, &rules.zone)), date);
            }
            assert_eq!(utc_string(hour_start_ms(at_ms, &rules.zone)), vector.visit_salt_date);
            let visitor = Visitor {
                source: &vector.source_id,
                address: vector.ip.as_deref().unwrap_or_default(),
                user_agent: vector.user_agent.as_deref().unwrap_or_default(),
                distinct_id: vector.distinct_id.as_deref(),
            };
            let session_id = rules.session_id(&visitor, at_ms);
            assert_eq!(session_id, vector.session_id, "{}", vector.note);
            let is_anonymous = visitor.distinct_id.is_none_or(str::is_empty);
            for identified in [IdentifiedSessions::Linked, IdentifiedSessions::PerDevice] {
                let other = IdRules { identified, ..rules.clone() };
                let is_same = other.session_id(&visitor, at_ms) == session_id;
                assert_eq!(is_same, is_anonymous, "{}, {identified:?}", vector.note);
            }
            assert_eq!(rules.visit_id(session_id, at_ms), vector.visit_id, "{}", vector.note);
        }
    }

    #[test]
    fn a_visit_ends_half_an_hour_after_its_start_and_not_with_its_own_timestamp() {
        let rules = IdRules {
            secret: Secret::from_text("lab-secret-0001"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Shared,
        };
        let (session, kept) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let now_s = 1_777_593_600;
        let fresh = rules.visit_id(session, now_s * 1_000);
        let visit =
            |age: i64, back_dated| Visit::of(now_s, back_dated, (Some(kept), Some(now_s - age)), || fresh);
        assert_eq!(visit(1_800, false), Visit { id: kept, started_at_s: now_s - 1_800 });
        assert_eq!(visit(1_801, false), Visit { id: fresh, started_at_s: now_s });
        assert_eq!(visit(99_999, true), Visit { id: kept, started_at_s: now_s - 99_999 });
        let without_token = Visit::of(now_s, false, (None, None), || fresh);
        assert_eq!(without_token, Visit { id: fresh, started_at_s: now_s });
    }

    #[test]
    fn a_distinct_id_is_no_part_of_a_linked_session() {
        let rules = IdRules {
            secret: Secret::from_text("lab-secret-0001"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Linked,
        };
        let id = |address, distinct_id| {
            let source = "11111111-1111-4111-8111-111111111111";
            let visitor = Visitor { source, address, user_agent: "agent", distinct_id };
            rules.session_id(&visitor, 1_777_593_600_000)
        };
        let anonymous = id("2.125.160.216", None);
        for distinct_id in ["", "user-1", "user-2"] {
            assert_eq!(id("2.125.160.216", Some(distinct_id)), anonymous);
        }
        assert_ne!(id("2.125.160.217", Some("user-1")), anonymous);
    }

    /// The expected id was computed apart from this code: version 5 in the DNS namespace over the hexadecimal SHA-512
    /// of `SOURCE ADDRESS AGENT SALT ID SECRET`, without the blanks.
    #[test]
    fn a_distinct_id_is_one_part_of_a_session_per_device() {
        let rules = IdRules {
            secret: Secret::from_text("lab-secret-0001"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::PerDevice,
        };
        let id = |address, agent, distinct_id, at_ms| {
            let source = "11111111-1111-4111-8111-111111111111";
            let visitor = Visitor { source, address, user_agent: agent, distinct_id };
            rules.session_id(&visitor, at_ms)
        };
        let may_ms = 1_777_593_600_000;
        let first = id("2.125.160.216", "agent", Some("user-1"), may_ms);
        assert_eq!(first.to_string(), "7cc5016c-ff1e-5371-9295-c6af9b3c7965");
        for other in [
            id("2.125.160.217", "agent", Some("user-1"), may_ms),
            id("2.125.160.216", "other", Some("user-1"), may_ms),
            id("2.125.160.216", "agent", Some("user-2"), may_ms),
            id("2.125.160.216", "agent", None, may_ms),
            id("2.125.160.216", "agent", Some("user-1"), may_ms - 1),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(id("", "", Some(""), may_ms), id("", "", None, may_ms), "an empty id is none");
        let (long, longer) = ("x".repeat(50), "x".repeat(51));
        assert_eq!(id("", "", Some(&long), may_ms), id("", "", Some(&longer), may_ms), "50 units are stored");
    }
}
