//! Profiles: the answers of reads of people, and how sends are committed, alike on both backends.

use std::future::Future;

use dashi_domain::fold::Changes;
use dashi_domain::profile::{
    BaseKey, BaseRow, LinkSource, Person, ProfileCounts, ProfileLink, ProfileLinkKind, ProfileRows,
    ProfileState, TraitKey, TraitRow, WriteRow, base_keys, differences, merge, persons, session_version,
    trait_keys, version,
};
use dashi_domain::rows::{SessionAttributes, SessionDataRow, SessionRow};
use sqlx::{ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

/// A person and their traits.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The person.
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
    /// Arrival of the first event that links the session and the person.
    pub first_at_ms: i64,
    /// The newest event of the session, of any type.
    pub last_at_ms: Option<i64>,
}

/// The effective traits of a session: its person's traits over its own properties.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionTraits {
    /// The website.
    pub website_id: Uuid,
    /// The session.
    pub session_id: Uuid,
    /// The person that it belongs to: the one that its events name; of an anonymous session, the one person linked with
    /// it.
    pub person: Option<String>,
    /// The person's traits by key, deleted ones included.
    pub traits: Vec<TraitRow>,
    /// The session's own properties, by key, of whose keys the person has no trait.
    pub own: Vec<SessionDataRow>,
    /// A function of both; see [`session_version`].
    pub version: String,
}

impl SessionTraits {
    /// Puts together the values that were read; `own` may hold keys that the person has, too.
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
    /// The person.
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

/// Notification that effective traits may have changed, sent once the change is committed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Changes may have gone by unseen: read everything again.
    Resync,
}

/// Changes that a slow receiver may be behind before it is notified to read everything again.
pub(crate) const CHANGES_MAX: usize = 4_096;

/// The effect of a commit on profiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// The outcomes of the sends.
    pub profiles: ProfileCounts,
}

/// The tables of profiles within a commit's transaction.
pub(crate) trait ProfileTables {
    /// Keeps erasures waiting until the transaction ends, and waits for one that goes on.
    fn hold_erasures(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes the sources of links that are new, or older than the stored ones.
    fn write_sources(
        &mut self,
        sources: &[LinkSource],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes the links that are new, or older than the stored ones; returns website and session of these.
    fn write_links(
        &mut self,
        links: &[ProfileLink],
    ) -> impl Future<Output = Result<Vec<(Uuid, Uuid)>, sqlx::Error>> + Send;

    /// The bases of these keys that there are.
    fn read_bases(
        &mut self,
        keys: &[BaseKey],
    ) -> impl Future<Output = Result<Vec<BaseRow>, sqlx::Error>> + Send;

    /// Adds the people of `rows` that are new, each with its first arrival, and keeps everybody else from merging sends of
    /// those in `sent`, which are among them, until the transaction ends. Both are sorted.
    fn lock_persons(
        &mut self,
        rows: &[(Person, i64)],
        sent: &[(Person, i64)],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The traits of these keys that there are.
    fn read_traits(
        &mut self,
        keys: &[TraitKey],
    ) -> impl Future<Output = Result<Vec<TraitRow>, sqlx::Error>> + Send;

    /// All writes of these traits.
    fn read_writes(
        &mut self,
        keys: &[TraitKey],
    ) -> impl Future<Output = Result<Vec<WriteRow>, sqlx::Error>> + Send;

    /// Writes the rows of a merge.
    fn write_rows(&mut self, rows: &ProfileRows) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Writes a batch's changes of profiles, as the last part of its transaction. Returns the changes to notify subscribers
/// of, sorted, once it is committed.
///
/// People are locked in their order, so that writers of different partitions wait for each other and never in a circle;
/// people of whom nothing differs are not locked.
pub(crate) async fn write(
    tables: &mut impl ProfileTables,
    changes: &Changes,
) -> Result<(ProfileCounts, Vec<ProfileChange>), sqlx::Error> {
    if !changes.links.is_empty() || !changes.sends.is_empty() {
        // Before the first row that writers of other partitions want, too.
        tables.hold_erasures().await?;
    }
    tables.write_sources(&changes.link_sources).await?;
    let linked = tables.write_links(&changes.links).await?;
    let sessions = linked.into_iter().chain(sessions_of_nobody(changes));
    let mut changed: Vec<_> =
        sessions.map(|(website_id, session_id)| ProfileChange::Session { website_id, session_id }).collect();
    let bases = tables.read_bases(&base_keys(&changes.sends)).await?;
    let sends = differences(&changes.sends, &bases);
    let repeated = (changes.sends.len() - sends.len()) as u64;
    tables.lock_persons(&persons(&sends, &changes.links), &persons(&sends, &[])).await?;
    let mut counts = ProfileCounts::default();
    if !sends.is_empty() {
        let traits = tables.read_traits(&trait_keys(&sends)).await?;
        let mut state = ProfileState::new(bases, traits);
        let needed = state.needs_history(&sends);
        if !needed.is_empty() {
            let rows = tables.read_writes(&needed).await?;
            state.add_history(needed, rows);
        }
        let rows = merge(&state, &sends);
        tables.write_rows(&rows).await?;
        changed.extend(rows.changed.into_iter().map(ProfileChange::Person));
        counts = rows.counts;
    }
    changed.sort_unstable();
    changed.dedup();
    Ok((counts.with_repetitions(repeated), changed))
}

/// Website and session of the properties that belong to nobody: no notification of a person covers them.
fn sessions_of_nobody(changes: &Changes) -> impl Iterator<Item = (Uuid, Uuid)> {
    let is_of_nobody = |row: &&SessionDataRow| row.distinct_id.as_deref().unwrap_or_default().is_empty();
    changes.session_data.iter().filter(is_of_nobody).map(|row| (row.website_id, row.session_id))
}

/// How a link's session belongs to its person, by its column.
pub(crate) fn kind(code: i32) -> Result<ProfileLinkKind, sqlx::Error> {
    ProfileLinkKind::from_code(code)
        .ok_or_else(|| sqlx::Error::Decode(format!("kind {code} of a link").into()))
}

/// Links as they are stored, (person, kind, first arrival), with their kinds by name.
pub(crate) fn kinds(
    links: Vec<(String, i32, i64)>,
) -> Result<Vec<(String, ProfileLinkKind, i64)>, sqlx::Error> {
    links.into_iter().map(|(person, code, first_ms)| Ok((person, kind(code)?, first_ms))).collect()
}

/// The columns of a session's attributes, all of them texts.
pub(crate) const ATTRIBUTES: [&str; 9] =
    ["browser", "os", "device", "screen", "language", "country", "region", "city", "distinct_id"];

/// The attributes in the order of [`ATTRIBUTES`].
pub(crate) fn attribute_texts(attributes: &SessionAttributes) -> [&Option<String>; 9] {
    let SessionAttributes { browser, os, device, screen, language, country, region, city, distinct_id } =
        attributes;
    [browser, os, device, screen, language, country, region, city, distinct_id]
}

/// The attributes that any of the session's events reports: one bit for each, in the order of [`ATTRIBUTES`], from the lowest.
pub(crate) fn reported_attributes(row: &SessionRow) -> i32 {
    let all = row.reported().iter().flat_map(|reported| (0..).zip(attribute_texts(reported)));
    all.fold(0, |bits, (place, text)| bits | i32::from(text.is_some()) << place)
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
