//! Erasures: a command in the log by which everything about a person, a session or a website goes.
//!
//! An erasure lies in every partition of the log, as one record each, a *copy*: a person's sessions may lie in any of
//! them. A copy covers the records that lie before it in its partition. Records behind it are of later events, and stay.
//!
//! ```json
//! {"v":1,"type":"erase","id":"<copy>","at":1777623630123,"session":"<key>","visit":"<nil>","payload":{
//!  "website":"<uuid>","erasure":"<uuid>","partitions":12,"distinctId":"ada","sessions":["<uuid>", …]}}
//! ```
//!
//! Instead of `distinctId` there is `sessionId`, or `"all":true` for a whole website. `sessions` are sessions of the
//! person that the records of this partition may not name themselves: those of a device before its visitor was known. The
//! key is made up so that the record lies in its partition. The id is made of the erasure's and the copy's number, so a
//! copy that was appended twice is recognised.
//!
//! On a log whose records can be overwritten, a [`Tombstone`] takes the place of a covered record. It has what is
//! counted of that record and nothing else of it.

use std::collections::HashSet;

use uuid::Uuid;

use crate::fold::Outcome;
use crate::glance::Glance;
use crate::json::{self, Value};
use crate::log_record::LogRecord;
use crate::partitioner::{key, partition_for};
use crate::position::{Offset, Partition};
use crate::profile;
use crate::record::{DecodeError, Envelope, Fields};

/// How a copy's value begins. Only this program writes erasures, always in this form.
const COPY: &[u8] = br#"{"v":1,"type":"erase","#;

/// How a tombstone's value begins.
const TOMBSTONE: &[u8] = br#"{"v":1,"type":"erased","#;

/// Sessions that one copy names, at most; more are named by further copies.
pub const SESSIONS_MAX: usize = 10_000;

/// The subject of an erasure: everything about it goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A person, in the form of [`profile::distinct_id`], with all sessions that name them.
    Person(String),
    /// A session.
    Session(Uuid),
    /// All data of the website.
    Website,
}

impl Subject {
    /// Its kind, as columns have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Person(_) => "person",
            Self::Session(_) => "session",
            Self::Website => "website",
        }
    }

    /// The distinct id or the session, as columns have it; "" for a website.
    pub fn text(&self) -> String {
        match self {
            Self::Person(distinct_id) => distinct_id.clone(),
            Self::Session(session_id) => session_id.to_string(),
            Self::Website => String::new(),
        }
    }
}

/// An erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Its identity: that of all of its copies.
    pub erasure_id: Uuid,
    /// When it was commanded, milliseconds since 1970.
    pub erased_at_ms: i64,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// The subject.
    pub subject: Subject,
    /// Partitions of the log at that time.
    pub partitions: u32,
}

/// The record of an erasure in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasureCopy {
    /// The record's identity.
    pub copy_id: Uuid,
    /// The record's key, by which it lies in its partition.
    pub key: Uuid,
    /// The erasure.
    pub erasure: Erasure,
    /// Sessions in this partition that it covers beside those whose records name the person, sorted; at most
    /// [`SESSIONS_MAX`].
    pub sessions: Vec<Uuid>,
}

impl Erasure {
    /// The copies for all partitions. `sessions` are the person's, of any partition. `earlier` are the numbers of partitions
    /// that the log had before: a session's older records lie where they lay then, and the copy there names it, too.
    pub fn copies(&self, sessions: &[Uuid], earlier: &[u32]) -> Vec<ErasureCopy> {
        let mut copies = Vec::new();
        for partition in (0..self.partitions).map(Partition::new) {
            let lies_here = |session: &Uuid| {
                let held = |count: &u32| partition_for(key(*session).as_bytes(), *count) == partition;
                self.holds(partition, *session) || earlier.iter().any(held)
            };
            let mut own: Vec<Uuid> = sessions.iter().copied().filter(lies_here).collect();
            own.sort_unstable();
            own.dedup();
            let mut parts: Vec<&[Uuid]> = own.chunks(SESSIONS_MAX).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            copies.extend(parts.into_iter().enumerate().map(|(part, sessions)| ErasureCopy {
                copy_id: Uuid::new_v5(&self.erasure_id, format!("{partition}:{part}").as_bytes()),
                key: self.key_in(partition),
                erasure: self.clone(),
                sessions: sessions.to_vec(),
            }));
        }
        copies
    }

    /// Whether a session's newest records lie in a partition: its writer deletes the session's rows.
    pub fn holds(&self, partition: Partition, session_id: Uuid) -> bool {
        partition_for(key(session_id).as_bytes(), self.partitions) == partition
    }

    /// The first key of a series that lies in the partition.
    fn key_in(&self, partition: Partition) -> Uuid {
        let mut number = 0_u64;
        loop {
            let tried = Uuid::new_v5(&self.erasure_id, format!("key:{number}").as_bytes());
            if self.holds(partition, tried) {
                return tried;
            }
            number += 1;
        }
    }
}

impl ErasureCopy {
    /// The partition that it is for: its key lies there.
    pub fn partition(&self) -> Partition {
        partition_for(key(self.key).as_bytes(), self.erasure.partitions)
    }

    /// Whether a record's value is a copy's, by its first bytes.
    pub fn is(value: &[u8]) -> bool {
        value.starts_with(COPY)
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { copy_id, key, erasure, sessions } = self;
        let mut out = String::from_utf8_lossy(COPY).into_owned();
        out.push_str(&format!(
            r#""id":"{copy_id}","at":{},"session":"{key}","visit":"{}","payload":{{"website":"{}","erasure":"{}","partitions":{},"#,
            erasure.erased_at_ms,
            Uuid::nil(),
            erasure.website_id,
            erasure.erasure_id,
            erasure.partitions
        ));
        match &erasure.subject {
            Subject::Person(distinct_id) => {
                out.push_str("\"distinctId\":");
                json::write_string(distinct_id, &mut out);
            }
            Subject::Session(session_id) => out.push_str(&format!(r#""sessionId":"{session_id}""#)),
            Subject::Website => out.push_str("\"all\":true"),
        }
        let sessions: Vec<String> = sessions.iter().map(|session| format!("\"{session}\"")).collect();
        out.push_str(&format!(r#","sessions":[{}]}}}}"#, sessions.join(",")));
        out.into_bytes()
    }

    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'_>>) -> Result<Self, DecodeError> {
        let mut payload = object(payload)?;
        let subject = match (payload.text("distinctId")?, payload.0.get("sessionId"), payload.0.get("all")) {
            (Some(distinct_id), None, None) if !distinct_id.is_empty() => {
                Subject::Person(profile::distinct_id(&distinct_id))
            }
            (None, Some(_), None) => Subject::Session(payload.uuid("sessionId")?),
            (None, None, Some(Value::Bool(true))) => Subject::Website,
            _ => return Err(DecodeError::field("payload", None, "one of distinctId, sessionId and all")),
        };
        let sessions = match payload.0.get("sessions") {
            Some(Value::Array(sessions)) if sessions.len() <= SESSIONS_MAX => {
                let ids = sessions.iter().map(|session| session.as_str().and_then(|id| id.parse().ok()));
                ids.collect::<Option<Vec<Uuid>>>()
            }
            _ => None,
        };
        let partitions = u32::try_from(payload.integer("partitions")?).ok().filter(|count| *count > 0);
        Ok(Self {
            copy_id: envelope.event_id,
            key: envelope.session_id,
            erasure: Erasure {
                erasure_id: payload.uuid("erasure")?,
                erased_at_ms: envelope.received_at_ms,
                website_id: payload.uuid("website")?,
                subject,
                partitions: partitions
                    .ok_or_else(|| DecodeError::field("partitions", None, "a positive number"))?,
            },
            sessions: sessions
                .ok_or_else(|| DecodeError::field("sessions", None, "an array of at most 10000 UUIDs"))?,
        })
    }
}

/// Takes the place of a record that an erasure covers: it has the record's outcome, and makes no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The identity of the record that was there; nil where that could not be read.
    pub record_id: Uuid,
    /// When the collector had that record, milliseconds since 1970.
    pub received_at_ms: i64,
    /// That record's website, link or pixel.
    pub website_id: Uuid,
    /// The erasure.
    pub erasure_id: Uuid,
    /// When it was commanded, milliseconds since 1970.
    pub erased_at_ms: i64,
    /// The outcome of that record, which stays counted.
    pub outcome: Outcome,
    /// That record's [`fingerprint`](crate::missing::fingerprint), so that a checkpoint right behind it stays valid.
    pub fingerprint: i64,
}

impl Tombstone {
    /// Whether a record's value is a tombstone's, by its first bytes.
    pub fn is(value: &[u8]) -> bool {
        value.starts_with(TOMBSTONE)
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { record_id, received_at_ms, website_id, erasure_id, erased_at_ms, outcome, fingerprint } =
            self;
        let (nil, outcome) = (Uuid::nil(), outcome.name());
        let mut out = TOMBSTONE.to_vec();
        out.extend_from_slice(
            format!(
                r#""id":"{record_id}","at":{received_at_ms},"session":"{nil}","visit":"{nil}","payload":{{"website":"{website_id}","erasure":"{erasure_id}","erasedAt":{erased_at_ms},"outcome":"{outcome}","fingerprint":"{fingerprint}"}}}}"#
            )
            .as_bytes(),
        );
        out
    }

    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'_>>) -> Result<Self, DecodeError> {
        let mut payload = object(payload)?;
        let outcome = payload.text("outcome")?.and_then(|name| Outcome::named(&name));
        let fingerprint = payload.text("fingerprint")?.and_then(|number| number.parse().ok());
        Ok(Self {
            record_id: envelope.event_id,
            received_at_ms: envelope.received_at_ms,
            website_id: payload.uuid("website")?,
            erasure_id: payload.uuid("erasure")?,
            erased_at_ms: payload.integer("erasedAt")?,
            outcome: outcome
                .ok_or_else(|| DecodeError::field("outcome", None, "applied, duplicate or dead"))?,
            fingerprint: fingerprint
                .ok_or_else(|| DecodeError::field("fingerprint", None, "a number as text"))?,
        })
    }
}

/// The fingerprint that a tombstone has of the record that it replaces; `None` for every other value.
pub(crate) fn replaced_fingerprint(value: &[u8]) -> Option<i64> {
    if !Tombstone::is(value) {
        return None;
    }
    match LogRecord::decode(value) {
        Ok(LogRecord::Erased(tombstone)) => Some(tombstone.fingerprint),
        _ => None,
    }
}

fn object(payload: Option<Value<'_>>) -> Result<Fields<'_>, DecodeError> {
    match payload {
        Some(Value::Object(payload)) => Ok(Fields(payload)),
        other => Err(DecodeError::field("payload", other.as_ref(), "an object")),
    }
}

/// Decides which records of a partition an erasure covers, and what takes their place. For one partition: first
/// [`Coverage::learn`] from every record before the copy (of those that archives hold, too), then [`Coverage::covers`]
/// each of them, in the order of the log.
#[derive(Debug, Clone)]
pub struct Coverage {
    erasure: Erasure,
    /// The copy's place; the records before it are covered.
    before: Offset,
    sessions: HashSet<Uuid>,
    /// Ids of covered records so far.
    seen: HashSet<Uuid>,
}

/// The facts of a record by which it is covered.
struct Facts {
    session_id: Uuid,
    /// The people that it names.
    people: Vec<String>,
    /// Whether it has no rows that link its session with the person.
    is_set_aside: bool,
}

impl Coverage {
    /// Of the records before `before` (exclusive), the offset of this copy, in its partition. If there are several copies
    /// of the erasure in the partition, `add` the others.
    pub fn of(copy: &ErasureCopy, before: Offset) -> Self {
        let mut sessions: HashSet<Uuid> = copy.sessions.iter().copied().collect();
        if let Subject::Session(session_id) = copy.erasure.subject {
            sessions.insert(session_id);
        }
        Self { erasure: copy.erasure.clone(), before, sessions, seen: HashSet::new() }
    }

    /// Covers these sessions, too.
    pub fn add(&mut self, sessions: &[Uuid]) {
        self.sessions.extend(sessions);
    }

    /// Learns from a record whether its session is the person's. Only an erasure of a person needs this.
    pub fn learn(&mut self, offset: Offset, value: &[u8]) {
        let Subject::Person(person) = &self.erasure.subject else { return };
        if offset >= self.before {
            return;
        }
        let names = |facts: &Facts| facts.people.contains(person) && !facts.is_set_aside;
        if let Some(facts) = self.facts(value).filter(names) {
            self.sessions.insert(facts.session_id);
        }
    }

    /// Whether a record is covered. Never one of an erasure, nor a tombstone.
    pub fn covers(&self, offset: Offset, value: &[u8]) -> bool {
        offset < self.before
            && self.facts(value).is_some_and(|facts| match &self.erasure.subject {
                Subject::Website => true,
                Subject::Session(_) => self.sessions.contains(&facts.session_id),
                Subject::Person(person) => {
                    self.sessions.contains(&facts.session_id) || facts.people.contains(person)
                }
            })
    }

    /// The value that takes the place of a covered record. `is_dead` is whether the record was set aside, for a reason that
    /// the record itself does not show.
    pub fn tombstone(&mut self, value: &[u8], appended_at_ms: i64, is_dead: bool) -> Vec<u8> {
        let glance = Glance::of(value);
        let decoded = LogRecord::decode(value).ok();
        let record_id = decoded.as_ref().map(LogRecord::id).unwrap_or_default();
        let outcome = match &decoded {
            None => Outcome::Dead,
            Some(LogRecord::Event(event)) if event.submission.has_too_many_properties() => Outcome::Dead,
            Some(_) if is_dead => Outcome::Dead,
            Some(_) if !self.seen.insert(record_id) => Outcome::Duplicate,
            Some(_) => Outcome::Applied,
        };
        Tombstone {
            record_id,
            received_at_ms: glance.received_at_ms.unwrap_or(appended_at_ms),
            website_id: self.erasure.website_id,
            erasure_id: self.erasure.erasure_id,
            erased_at_ms: self.erasure.erased_at_ms,
            outcome,
            fingerprint: crate::missing::fingerprint(value),
        }
        .encode()
    }

    /// Sessions that it covers, as far as it has learned them.
    pub fn sessions(&self) -> impl Iterator<Item = Uuid> {
        self.sessions.iter().copied()
    }

    /// The facts of a record of the website; of one that cannot be decoded, as far as they can be read.
    fn facts(&self, value: &[u8]) -> Option<Facts> {
        if ErasureCopy::is(value) || Tombstone::is(value) {
            return None;
        }
        let glance = Glance::of(value);
        if glance.source_id != Some(self.erasure.website_id) {
            return None;
        }
        let session_id = glance.session_id.unwrap_or_default();
        // Only a person's name needs more than a glance.
        let decoded = match self.erasure.subject {
            Subject::Person(_) => LogRecord::decode(value).ok(),
            Subject::Session(_) | Subject::Website => None,
        };
        let is_set_aside =
            matches!(&decoded, Some(LogRecord::Event(event)) if event.submission.has_too_many_properties());
        Some(Facts {
            session_id,
            people: decoded.map_or_else(Vec::new, |record| record.people()),
            is_set_aside,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::missing::fingerprint;

    const WEBSITE: Uuid = Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111);

    fn erasure(subject: Subject) -> Erasure {
        Erasure {
            erasure_id: Uuid::from_u128(9),
            erased_at_ms: 1_777_623_630_123,
            website_id: WEBSITE,
            subject,
            partitions: 5,
        }
    }

    fn event(id: u128, session: u128, more: &str) -> Vec<u8> {
        let [id, session, visit] = [id, session, 3].map(Uuid::from_u128);
        format!(
            r#"{{"v":1,"id":"{id}","at":5,"session":"{session}","visit":"{visit}","type":"event","payload":{{"website":"{WEBSITE}","url":"/"{more}}}}}"#,
        )
        .into_bytes()
    }

    #[test]
    fn a_copy_lies_in_every_partition_and_is_read_back() {
        let sessions: Vec<Uuid> = (0..100).map(Uuid::from_u128).collect();
        for subject in
            [Subject::Person("ada \"x\"".to_owned()), Subject::Session(Uuid::from_u128(7)), Subject::Website]
        {
            let copies = erasure(subject).copies(&sessions, &[]);
            assert_eq!(copies.len(), 5);
            assert_eq!(copies.iter().map(|copy| copy.sessions.len()).sum::<usize>(), 100);
            for (number, copy) in copies.iter().enumerate() {
                let partition = Partition::new(number as u32);
                assert!(copy.erasure.holds(partition, copy.key) && copy.partition() == partition);
                assert!(copy.sessions.iter().all(|session| copy.erasure.holds(partition, *session)));
                let value = copy.encode();
                assert!(ErasureCopy::is(&value) && !Tombstone::is(&value));
                let Ok(LogRecord::Erasure(read)) = LogRecord::decode(&value) else { panic!("no erasure") };
                assert_eq!(read, *copy);
                let glance = Glance::of(&value);
                assert_eq!(
                    (glance.received_at_ms, glance.source_id),
                    (Some(1_777_623_630_123), Some(WEBSITE))
                );
            }
        }
        // The log had two partitions before: the older records of a session lie in one of those.
        for copy in erasure(Subject::Person("x".to_owned())).copies(&sessions, &[2, 5]) {
            let lies_here = |session: &Uuid| {
                let held = |count| partition_for(key(*session).as_bytes(), count) == copy.partition();
                held(2) || held(5)
            };
            let expected: Vec<Uuid> = sessions.iter().copied().filter(lies_here).collect();
            assert_eq!(copy.sessions, expected);
        }
        let many: Vec<Uuid> = (0..60_000).map(Uuid::from_u128).collect();
        let copies = erasure(Subject::Person("x".to_owned())).copies(&many, &[]);
        assert!(copies.len() > 5 && copies.iter().all(|copy| copy.sessions.len() <= SESSIONS_MAX));
        let ids: HashSet<Uuid> = copies.iter().map(|copy| copy.copy_id).collect();
        assert_eq!(ids.len(), copies.len());
    }

    #[test]
    fn a_person_has_the_sessions_that_name_them_and_those_of_the_copy() {
        let mut copies = erasure(Subject::Person("ada".to_owned())).copies(&[], &[]);
        copies[0].sessions.push(Uuid::from_u128(21));
        let mut coverage = Coverage::of(&copies[0], Offset::new(10));
        let named = event(1, 20, r#","id":"ada""#);
        let other = event(2, 22, r#","id":"bob""#);
        coverage.learn(Offset::new(3), &named);
        coverage.learn(Offset::new(4), &other);
        coverage.learn(Offset::new(11), &event(5, 23, r#","id":"ada""#));
        for (session, expected) in [(20, true), (21, true), (22, false), (23, false)] {
            assert_eq!(coverage.covers(Offset::new(1), &event(7, session, "")), expected, "{session}");
        }
        assert!(!coverage.covers(Offset::new(10), &named), "behind the copy");
        assert!(!coverage.covers(Offset::new(1), &copies[0].encode()));
    }

    #[test]
    fn a_tombstone_has_the_outcome_and_the_fingerprint_of_the_record_and_nothing_else_of_it() {
        let copies = erasure(Subject::Website).copies(&[], &[]);
        let mut coverage = Coverage::of(&copies[0], Offset::new(10));
        let value = event(1, 20, r#","id":"ada","title":"secret""#);
        for expected in [Outcome::Applied, Outcome::Duplicate] {
            let tombstone = coverage.tombstone(&value, 0, false);
            assert!(!coverage.covers(Offset::ZERO, &tombstone));
            let Ok(LogRecord::Erased(read)) = LogRecord::decode(&tombstone) else { panic!("no tombstone") };
            assert_eq!(
                (read.outcome, read.record_id, read.received_at_ms),
                (expected, Uuid::from_u128(1), 5)
            );
            assert_eq!(fingerprint(&tombstone), fingerprint(&value));
            let text = String::from_utf8(tombstone).expect("UTF-8");
            assert!(
                !text.contains("ada")
                    && !text.contains("secret")
                    && !text.contains(&Uuid::from_u128(20).to_string())
            );
        }
        let broken = event(1, 20, r#","timestamp":"no""#);
        assert!(coverage.covers(Offset::ZERO, &broken));
        let tombstone = coverage.tombstone(&broken, 77, false);
        assert!(
            matches!(LogRecord::decode(&tombstone), Ok(LogRecord::Erased(read)) if read.outcome == Outcome::Dead)
        );
    }
}
