//! Profiles: what is read of people, and what both backends do alike when sends are committed.

use std::collections::HashMap;

use dashi_domain::fold::Changes;
use dashi_domain::profile::{
    BaseKey, BaseRow, Person, ProfileCounts, ProfileLinkKind, TraitKey, TraitRow, TraitSend, session_version,
    version,
};
use dashi_domain::rows::{SessionAttributes, SessionDataRow};
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

/// A person and what is known of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Who.
    pub person: Person,
    /// Arrival of the first event that named them, milliseconds since 1970, as all times here are.
    pub created_at_ms: i64,
    /// A function of the traits; see [`version`].
    pub version: String,
    /// By key; deleted ones, whose value is `None`, included.
    pub traits: Vec<TraitRow>,
}

/// A session that belongs to a person.
#[derive(Debug, Clone, PartialEq)]
pub struct PersonSession {
    /// The session.
    pub session_id: Uuid,
    /// How they belong together.
    pub kind: ProfileLinkKind,
    /// `None` if no event of it was applied: the session that a device would have had while it was anonymous.
    pub attributes: Option<SessionAttributes>,
    /// Arrival of the first event that told of the session and the person together.
    pub first_at_ms: i64,
    /// The newest event of the session, of any type.
    pub last_at_ms: Option<i64>,
}

/// What a session is effectively known by: its person's traits over its own properties.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionTraits {
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// Whose it is: the person that its events name; of an anonymous session, the one person linked with it.
    pub person: Option<String>,
    /// The person's traits by key, deleted ones included.
    pub traits: Vec<TraitRow>,
    /// The session's own properties, by key, of whose keys the person has no trait.
    pub own: Vec<SessionDataRow>,
    /// A function of both; see [`session_version`].
    pub version: String,
}

impl SessionTraits {
    /// Puts together what was read; `own` may hold keys that the person has, too.
    pub(crate) fn new(
        website_id: Uuid,
        session_id: Uuid,
        person: Option<String>,
        traits: Vec<TraitRow>,
        mut own: Vec<SessionDataRow>,
    ) -> Self {
        own.retain(|row| !traits.iter().any(|of_person| of_person.key == row.data_key));
        // A database that Umami left may have several rows of a key; the newest counts.
        own.sort_by(|a, b| (&a.data_key, b.created_at_ms).cmp(&(&b.data_key, a.created_at_ms)));
        own.dedup_by(|later, first| later.data_key == first.data_key);
        let of_person = person.as_ref().map(|_| version(&traits));
        let version =
            session_version(of_person.as_deref(), own.iter().map(|row| (row.data_key.as_str(), &row.value)));
        Self { website_id, session_id, person, traits, own, version }
    }
}

/// A line of a list of people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileSummary {
    /// Who.
    pub distinct_id: String,
    /// Arrival of the first event that named them.
    pub created_at_ms: i64,
    /// Traits that are not deleted.
    pub traits: u64,
    /// Sessions linked with them, of either kind.
    pub sessions: u64,
}

/// One event of a person's way through all sessions linked with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JourneyEvent {
    /// The event.
    pub event_id: Uuid,
    /// Its session.
    pub session_id: Uuid,
    /// Its visit; an identify has none.
    pub visit_id: Option<Uuid>,
    /// When it happened.
    pub created_at_ms: i64,
    /// The type in `website_event`; 0 for an identify.
    pub event_type: i32,
    /// The page, of an event that has one.
    pub url_path: Option<String>,
    /// The name, of an event that has one.
    pub event_name: Option<String>,
}

/// That effective traits may have changed, told once the change is committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProfileChange {
    /// Traits of a person.
    Person(Person),
    /// Properties of a session that names nobody, or whose session it is.
    Session {
        /// The website.
        website_id: Uuid,
        /// The session.
        session_id: Uuid,
    },
    /// Changes may have gone by unseen: look at everything again.
    Resync,
}

/// Changes that a slow receiver may be behind before it is told to look at everything again.
pub(crate) const CHANGES_MAX: usize = 4_096;

/// What a commit did to profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// What became of the sends.
    pub profiles: ProfileCounts,
}

/// The keys that sends name, each once.
pub(crate) fn base_keys(sends: &[TraitSend]) -> Vec<BaseKey> {
    let mut keys: Vec<_> = sends.iter().map(TraitSend::base_key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The traits that sends name, each once.
pub(crate) fn trait_keys(sends: &[TraitSend]) -> Vec<TraitKey> {
    let mut keys: Vec<_> = sends.iter().map(TraitSend::trait_key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Leaves out the sends that repeat their base and need nothing else to be known: most of them. A base belongs to the
/// partition's only writer, so it can be read before the person is locked, and a person of whom nothing is left is not
/// locked at all. Sends of one base are left out together or not at all, so those that stay find their base moved by
/// those before them.
pub(crate) fn differences(sends: &[TraitSend], bases: &[BaseRow]) -> Vec<TraitSend> {
    let bases: HashMap<BaseKey, &BaseRow> = bases.iter().map(|row| (row.base_key(), row)).collect();
    let mut differs: HashMap<BaseKey, bool> = HashMap::new();
    for send in sends {
        let key = send.base_key();
        let repeats = send.base.is_none() && bases.get(&key).is_some_and(|base| base.value == send.value);
        *differs.entry(key).or_default() |= !repeats;
    }
    sends.iter().filter(|send| differs[&send.base_key()]).cloned().collect()
}

/// Whose session it is by its links (person, kind, first arrival): the person that its events name; of an anonymous
/// session the one person linked with it, and nobody if there are several, for it may have been any of them.
pub(crate) fn person_of(links: Vec<(String, i32, i64)>) -> Option<String> {
    let own = links.iter().filter(|(_, kind, _)| *kind == ProfileLinkKind::Own.code());
    if let Some((person, ..)) = own.max_by_key(|(person, _, first_at)| (*first_at, person.clone())) {
        return Some(person.clone());
    }
    let mut people = links.into_iter().map(|(person, ..)| person);
    let first = people.next()?;
    people.all(|other| other == first).then_some(first)
}

/// Website and session of the properties that belong to nobody: no person's change tells of them.
pub(crate) fn sessions_of_nobody(changes: &Changes) -> impl Iterator<Item = (Uuid, Uuid)> {
    let is_of_nobody = |row: &&SessionDataRow| row.distinct_id.as_deref().unwrap_or_default().is_empty();
    changes.session_data.iter().filter(is_of_nobody).map(|row| (row.website_id, row.session_id))
}

/// How a link's session belongs to its person, by its column.
pub(crate) fn kind(code: i32) -> Result<ProfileLinkKind, sqlx::Error> {
    ProfileLinkKind::from_code(code)
        .ok_or_else(|| sqlx::Error::Decode(format!("kind {code} of a link").into()))
}

/// The attributes of a session's row; texts in columns of their names.
pub(crate) fn attributes<'r, R>(row: &'r R) -> Result<SessionAttributes, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(SessionAttributes {
        browser: row.try_get("browser")?,
        os: row.try_get("os")?,
        device: row.try_get("device")?,
        screen: row.try_get("screen")?,
        language: row.try_get("language")?,
        country: row.try_get("country")?,
        region: row.try_get("region")?,
        city: row.try_get("city")?,
        distinct_id: row.try_get("distinct_id")?,
    })
}

#[cfg(test)]
mod tests {
    use dashi_domain::flatten::DataType;
    use dashi_domain::profile::Stamp;
    use dashi_domain::rows::DataValue;

    use super::*;

    fn value(text: &str) -> DataValue {
        DataValue {
            data_type: DataType::String,
            string_value: Some(text.to_owned()),
            number_value: None,
            date_value_ms: None,
        }
    }

    fn send(key: &str, text: &str, at: i64) -> TraitSend {
        TraitSend {
            website_id: Uuid::nil(),
            session_id: Uuid::nil(),
            device: Uuid::nil(),
            distinct_id: "p".to_owned(),
            key: key.to_owned(),
            value: Some(value(text)),
            stamp: Stamp { received_at_ms: at, event_id: Uuid::from_u128(at as u128) },
            base: None,
        }
    }

    fn base(key: &str, text: &str) -> BaseRow {
        let TraitSend { session_id, device, distinct_id, key, value, stamp, .. } = send(key, text, 1);
        BaseRow { session_id, device, distinct_id, key, value, stamp }
    }

    #[test]
    fn a_repetition_is_left_out_unless_its_base_moves() {
        let bases = [base("a", "1"), base("b", "1")];
        let sends = [
            send("a", "1", 2),
            send("b", "1", 2),
            send("c", "1", 2),
            send("b", "2", 3),
            TraitSend { base: Some(Stamp::NEVER), ..send("a", "1", 4) },
        ];
        let left = |sends: &[TraitSend]| -> Vec<(String, i64)> {
            let left = differences(sends, &bases);
            left.into_iter().map(|send| (send.key, send.stamp.received_at_ms)).collect()
        };
        assert_eq!(left(&sends[..2]), []);
        assert_eq!(left(&sends[..3]), [("c".to_owned(), 2)]);
        assert_eq!(left(&sends[1..4]), [("b".to_owned(), 2), ("c".to_owned(), 2), ("b".to_owned(), 3)]);
        assert_eq!(left(&sends[4..]), [("a".to_owned(), 4)]);
    }

    #[test]
    fn a_session_is_its_own_persons_or_its_only_ones() {
        let link = |person: &str, kind: ProfileLinkKind, at| (person.to_owned(), kind.code(), at);
        let (own, anonymous) = (ProfileLinkKind::Own, ProfileLinkKind::Anonymous);
        assert_eq!(person_of(vec![]), None);
        assert_eq!(person_of(vec![link("a", anonymous, 1)]).as_deref(), Some("a"));
        assert_eq!(person_of(vec![link("a", anonymous, 1), link("b", anonymous, 2)]), None);
        assert_eq!(person_of(vec![link("a", anonymous, 3), link("b", own, 2)]).as_deref(), Some("b"));
        assert_eq!(person_of(vec![link("a", own, 3), link("b", own, 2)]).as_deref(), Some("a"));
    }

    #[test]
    fn a_sessions_own_properties_show_where_its_person_has_none() {
        let own = |key: &str, text: &str, at| SessionDataRow {
            session_data_id: Uuid::nil(),
            website_id: Uuid::nil(),
            session_id: Uuid::nil(),
            data_key: key.to_owned(),
            value: value(text),
            distinct_id: None,
            created_at_ms: at,
        };
        let rows = vec![own("b", "old", 1), own("a", "x", 1), own("b", "new", 2)];
        let traits = SessionTraits::new(Uuid::nil(), Uuid::nil(), None, Vec::new(), rows);
        let shown: Vec<_> =
            traits.own.iter().map(|row| (row.data_key.as_str(), row.value.string_value.as_deref())).collect();
        assert_eq!(shown, [("a", Some("x")), ("b", Some("new"))]);
        assert!(traits.version.starts_with("s-"), "{}", traits.version);
    }
}
