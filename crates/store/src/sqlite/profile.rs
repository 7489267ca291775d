//! Profiles in a SQLite file: written in the commit's transaction, read by anybody, changes told within this process.

use std::collections::HashSet;

use dashi_domain::flatten::{DataType, Decimal};
use dashi_domain::fold::Changes;
use dashi_domain::profile::{
    BaseKey, BaseRow, Person, ProfileCounts, ProfileLink, ProfileRows, ProfileState, Settled, Stamp,
    TraitKey, TraitRow, WriteRow, merge, persons, version,
};
use dashi_domain::rows::{DataValue, SessionDataRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::insert::insert;
use super::{SqliteStore, text, uuid};
use crate::profile::{attributes, base_keys, differences, kind, person_of, sessions_of_nobody, trait_keys};
use crate::tables;
use crate::{JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits, StoreError};

/// Writes what a batch does to profiles, as the last part of its transaction; returns what is to be told once it is
/// committed. The file has one writer at a time, so nobody has to be locked.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(ProfileCounts, Vec<ProfileChange>), sqlx::Error> {
    let mut told = Vec::new();
    for link in &changes.links {
        if write_link(connection, link).await? {
            told.push(ProfileChange::Session { website_id: link.website_id, session_id: link.session_id });
        }
    }
    let of_nobody = sessions_of_nobody(changes);
    told.extend(of_nobody.map(|(website_id, session_id)| ProfileChange::Session { website_id, session_id }));
    let mut seen = HashSet::with_capacity(told.len());
    told.retain(|change| seen.insert(change.clone()));
    let bases = read_bases(connection, &base_keys(&changes.sends)).await?;
    let sends = differences(&changes.sends, &bases);
    let repeated = (changes.sends.len() - sends.len()) as u64;
    for (person, at) in persons(&sends, &changes.links) {
        write_person(connection, &person, at).await?;
    }
    let mut counts = ProfileCounts::default();
    if !sends.is_empty() {
        let traits = read_traits(connection, &trait_keys(&sends)).await?;
        let mut state = ProfileState::new(bases, traits);
        let needed = state.needs_history(&sends);
        if !needed.is_empty() {
            let rows = read_writes(connection, &needed).await?;
            state.add_history(needed, rows);
        }
        let rows = merge(&state, &sends);
        write_rows(connection, &rows).await?;
        told.extend(rows.changed.into_iter().map(ProfileChange::Person));
        counts = rows.counts;
    }
    counts.sends += repeated;
    counts.avoided += repeated;
    Ok((counts, told))
}

/// Says whether the link is new, or older than it was known to be.
async fn write_link(connection: &mut SqliteConnection, link: &ProfileLink) -> Result<bool, sqlx::Error> {
    let written = sqlx::query(
        "INSERT INTO dashi_profile_link (website_id, session_id, distinct_id, kind, first_at)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (website_id, session_id, distinct_id, kind) DO UPDATE SET first_at = excluded.first_at
         WHERE excluded.first_at < dashi_profile_link.first_at",
    )
    .bind(text(link.website_id))
    .bind(text(link.session_id))
    .bind(&link.distinct_id)
    .bind(link.kind.code())
    .bind(link.first_ms)
    .execute(connection)
    .await?;
    Ok(written.rows_affected() > 0)
}

async fn write_person(
    connection: &mut SqliteConnection,
    person: &Person,
    at: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO dashi_profile (website_id, distinct_id, created_at) VALUES (?, ?, ?)
         ON CONFLICT (website_id, distinct_id) DO UPDATE SET created_at = excluded.created_at
         WHERE excluded.created_at < dashi_profile.created_at",
    )
    .bind(text(person.website_id))
    .bind(&person.distinct_id)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

async fn read_bases(
    connection: &mut SqliteConnection,
    keys: &[BaseKey],
) -> Result<Vec<BaseRow>, sqlx::Error> {
    let mut found = Vec::new();
    for key in keys {
        let row = sqlx::query(
            "SELECT data_type, string_value, number_value, date_value, received_at, event_id
             FROM dashi_profile_base WHERE session_id = ? AND device = ? AND distinct_id = ? AND key = ?",
        )
        .bind(text(key.session_id))
        .bind(text(key.device))
        .bind(&key.distinct_id)
        .bind(&key.key)
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(row) = row {
            let BaseKey { session_id, device, distinct_id, key } = key.clone();
            let (value, stamp) = (value(&row)?, stamp(&row, "received_at", "event_id")?);
            found.push(BaseRow { session_id, device, distinct_id, key, value, stamp });
        }
    }
    Ok(found)
}

const TRAIT_COLUMNS: &str = "key, data_type, string_value, number_value, date_value, last_at, last_event_id,
    changed_at, changed_event_id, changed_by, conditional";

async fn read_traits(
    connection: &mut SqliteConnection,
    keys: &[TraitKey],
) -> Result<Vec<TraitRow>, sqlx::Error> {
    let sql = format!(
        "SELECT {TRAIT_COLUMNS} FROM dashi_profile_trait WHERE website_id = ? AND distinct_id = ? AND key = ?"
    );
    let mut found = Vec::new();
    for key in keys {
        let row = sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(text(key.website_id))
            .bind(&key.distinct_id)
            .bind(&key.key)
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = row {
            found.push(trait_row(&row, key.website_id, &key.distinct_id)?);
        }
    }
    Ok(found)
}

async fn read_writes(
    connection: &mut SqliteConnection,
    keys: &[TraitKey],
) -> Result<Vec<WriteRow>, sqlx::Error> {
    let mut found = Vec::new();
    for key in keys {
        let rows = sqlx::query(
            "SELECT received_at, event_id, session_id, device, data_type, string_value, number_value, date_value,
                    base_received_at, base_event_id
             FROM dashi_profile_write WHERE website_id = ? AND distinct_id = ? AND key = ?",
        )
        .bind(text(key.website_id))
        .bind(&key.distinct_id)
        .bind(&key.key)
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let has_base = row.try_get::<Option<i64>, _>("base_received_at")?.is_some();
            found.push(WriteRow {
                website_id: key.website_id,
                distinct_id: key.distinct_id.clone(),
                key: key.key.clone(),
                stamp: stamp(row, "received_at", "event_id")?,
                session_id: uuid(row, "session_id")?,
                device: uuid(row, "device")?,
                value: value(row)?,
                base: has_base.then(|| stamp(row, "base_received_at", "base_event_id")).transpose()?,
            });
        }
    }
    Ok(found)
}

async fn write_rows(connection: &mut SqliteConnection, rows: &ProfileRows) -> Result<(), sqlx::Error> {
    let replaced = tables::PROFILE_BASE.table.replacing(&[]);
    let on_conflict = format!("ON CONFLICT (session_id, device, distinct_id, key) DO UPDATE SET {replaced}");
    insert(connection, &tables::PROFILE_BASE, &rows.bases, &on_conflict).await?;
    insert(connection, &tables::PROFILE_WRITE, &rows.writes, "ON CONFLICT DO NOTHING").await?;
    let replaced = tables::PROFILE_TRAIT.table.replacing(&[]);
    let on_conflict = format!("ON CONFLICT (website_id, distinct_id, key) DO UPDATE SET {replaced}");
    insert(connection, &tables::PROFILE_TRAIT, &rows.traits, &on_conflict).await?;
    Ok(())
}

fn trait_row(row: &SqliteRow, website_id: Uuid, distinct_id: &str) -> Result<TraitRow, sqlx::Error> {
    Ok(TraitRow {
        website_id,
        distinct_id: distinct_id.to_owned(),
        key: row.try_get("key")?,
        settled: Settled {
            value: value(row)?,
            last: stamp(row, "last_at", "last_event_id")?,
            changed: stamp(row, "changed_at", "changed_event_id")?,
            changed_by: uuid(row, "changed_by")?,
            conditional: row.try_get::<i32, _>("conditional")? != 0,
        },
    })
}

/// The value in `data_type` and its columns. None without a type.
fn value(row: &SqliteRow) -> Result<Option<DataValue>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<i32>, _>("data_type")? else { return Ok(None) };
    let number: Option<f64> = row.try_get("number_value")?;
    Ok(Some(DataValue {
        data_type: DataType::from_code(code)
            .ok_or_else(|| sqlx::Error::Decode(format!("data_type {code}").into()))?,
        string_value: row.try_get("string_value")?,
        number_value: number.and_then(|number| Decimal::round(number, 4)),
        date_value_ms: row.try_get("date_value")?,
    }))
}

fn stamp(row: &SqliteRow, at: &str, id: &str) -> Result<Stamp, sqlx::Error> {
    Ok(Stamp { received_at_ms: row.try_get(at)?, event_id: uuid(row, id)? })
}

impl SqliteStore {
    pub(crate) fn profile_changes(&self) -> broadcast::Receiver<ProfileChange> {
        self.0.changes.subscribe()
    }

    pub(crate) async fn profile(
        &self,
        website_id: Uuid,
        distinct_id: &str,
    ) -> Result<Option<Profile>, StoreError> {
        let doing = "reading a profile";
        let created_at_ms: Option<i64> = sqlx::query_scalar(
            "SELECT created_at FROM dashi_profile WHERE website_id = ? AND distinct_id = ?",
        )
        .bind(text(website_id))
        .bind(distinct_id)
        .fetch_optional(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        let Some(created_at_ms) = created_at_ms else { return Ok(None) };
        let traits = self.traits(website_id, distinct_id).await.map_err(StoreError::away(doing))?;
        let person = Person { website_id, distinct_id: distinct_id.to_owned() };
        Ok(Some(Profile { person, created_at_ms, version: version(&traits), traits }))
    }

    async fn traits(&self, website_id: Uuid, distinct_id: &str) -> Result<Vec<TraitRow>, sqlx::Error> {
        let sql = format!(
            "SELECT {TRAIT_COLUMNS} FROM dashi_profile_trait WHERE website_id = ? AND distinct_id = ?
             ORDER BY key"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(text(website_id))
            .bind(distinct_id)
            .fetch_all(&self.0.readers)
            .await?;
        rows.iter().map(|row| trait_row(row, website_id, distinct_id)).collect()
    }

    pub(crate) async fn person_sessions(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PersonSession>, StoreError> {
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let session = |row: &SqliteRow| {
            let has_row = row.try_get::<Option<String>, _>("known")?.is_some();
            Ok(PersonSession {
                session_id: uuid(row, "session_id")?,
                kind: kind(row.try_get("kind")?)?,
                attributes: has_row.then(|| attributes(row)).transpose()?,
                first_at_ms: row.try_get("first_at")?,
                last_at_ms: row.try_get("last_at")?,
            })
        };
        let rows = sqlx::query(
            "SELECT l.session_id, l.kind, l.first_at, s.session_id AS known, s.browser, s.os, s.device, s.screen,
                    s.language, s.country, s.region, s.city, s.distinct_id,
                    (SELECT max(at) FROM (
                        SELECT max(created_at) AS at FROM website_event WHERE session_id = l.session_id
                        UNION ALL
                        SELECT max(created_at) FROM dashi_identify WHERE session_id = l.session_id)) AS last_at
             FROM dashi_profile_link AS l
             LEFT JOIN session AS s ON s.session_id = l.session_id AND s.website_id = l.website_id
             WHERE l.website_id = ? AND l.distinct_id = ? AND (l.first_at, l.session_id) > (?, ?)
             ORDER BY l.first_at, l.session_id LIMIT ?",
        )
        .bind(text(website_id))
        .bind(distinct_id)
        .bind(after_at)
        .bind(text(after_id))
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await;
        rows.and_then(|rows| rows.iter().map(session).collect())
            .map_err(StoreError::away("listing a person's sessions"))
    }

    pub(crate) async fn session_traits(
        &self,
        website_id: Uuid,
        session_id: Uuid,
    ) -> Result<Option<SessionTraits>, StoreError> {
        let failed = |error: sqlx::Error| StoreError::away("reading a session's traits")(error);
        let links: Vec<(String, i32, i64)> = sqlx::query_as(
            "SELECT distinct_id, kind, first_at FROM dashi_profile_link WHERE website_id = ? AND session_id = ?",
        )
        .bind(text(website_id))
        .bind(text(session_id))
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM session WHERE session_id = ? AND website_id = ?)",
        )
        .bind(text(session_id))
        .bind(text(website_id))
        .fetch_one(&self.0.readers)
        .await
        .map_err(failed)?;
        if links.is_empty() && !is_there {
            return Ok(None);
        }
        let person = person_of(links);
        let traits = match &person {
            Some(person) => self.traits(website_id, person).await.map_err(failed)?,
            None => Vec::new(),
        };
        let rows = sqlx::query(
            "SELECT data_key, data_type, string_value, number_value, date_value, created_at FROM session_data
             WHERE session_id = ? AND website_id = ?",
        )
        .bind(text(session_id))
        .bind(text(website_id))
        .fetch_all(&self.0.readers)
        .await
        .map_err(failed)?;
        let property = |row: &SqliteRow| {
            let Some(value) = value(row)? else { return Ok(None) };
            Ok(Some(SessionDataRow {
                session_data_id: Uuid::nil(),
                website_id,
                session_id,
                data_key: row.try_get("data_key")?,
                value,
                distinct_id: None,
                created_at_ms: row.try_get("created_at")?,
            }))
        };
        let own = rows.iter().filter_map(|row| property(row).transpose()).collect::<Result<_, _>>();
        Ok(Some(SessionTraits::new(website_id, session_id, person, traits, own.map_err(failed)?)))
    }

    pub(crate) async fn profiles(
        &self,
        website_id: Uuid,
        query: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ProfileSummary>, StoreError> {
        let summary = |row: &SqliteRow| {
            Ok(ProfileSummary {
                distinct_id: row.try_get("distinct_id")?,
                created_at_ms: row.try_get("created_at")?,
                traits: row.try_get::<i64, _>("traits")? as u64,
                sessions: row.try_get::<i64, _>("sessions")? as u64,
            })
        };
        // SQLite's lower() knows ASCII only.
        let rows = sqlx::query(
            "SELECT p.distinct_id, p.created_at,
                    (SELECT count(*) FROM dashi_profile_trait AS r WHERE r.website_id = p.website_id
                       AND r.distinct_id = p.distinct_id AND r.data_type IS NOT NULL) AS traits,
                    (SELECT count(DISTINCT l.session_id) FROM dashi_profile_link AS l
                     WHERE l.website_id = p.website_id AND l.distinct_id = p.distinct_id) AS sessions
             FROM dashi_profile AS p
             WHERE p.website_id = ?1 AND (?2 = '' OR instr(lower(p.distinct_id), lower(?2)) > 0)
               AND (?3 IS NULL OR p.distinct_id > ?3)
             ORDER BY p.distinct_id LIMIT ?4",
        )
        .bind(text(website_id))
        .bind(query)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await;
        rows.and_then(|rows| rows.iter().map(summary).collect()).map_err(StoreError::away("listing profiles"))
    }

    pub(crate) async fn journey(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<JourneyEvent>, StoreError> {
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let event = |row: &SqliteRow| {
            let visit: Option<String> = row.try_get("visit_id")?;
            Ok(JourneyEvent {
                event_id: uuid(row, "event_id")?,
                session_id: uuid(row, "session_id")?,
                visit_id: visit.and_then(|visit| visit.parse().ok()),
                created_at_ms: row.try_get("at")?,
                event_type: row.try_get("event_type")?,
                url_path: row.try_get("url_path")?,
                event_name: row.try_get("event_name")?,
            })
        };
        let rows = sqlx::query(
            "WITH linked AS (SELECT DISTINCT session_id FROM dashi_profile_link
                             WHERE website_id = ?1 AND distinct_id = ?2)
             SELECT * FROM (
                 SELECT event_id, session_id, visit_id, event_type, url_path, event_name, created_at AS at
                 FROM website_event JOIN linked USING (session_id) WHERE website_id = ?1
                 UNION ALL
                 SELECT event_id, session_id, NULL, 0, NULL, NULL, created_at
                 FROM dashi_identify JOIN linked USING (session_id) WHERE website_id = ?1)
             WHERE (at, event_id) > (?3, ?4) ORDER BY at, event_id LIMIT ?5",
        )
        .bind(text(website_id))
        .bind(distinct_id)
        .bind(after_at)
        .bind(text(after_id))
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await;
        rows.and_then(|rows| rows.iter().map(event).collect())
            .map_err(StoreError::away("reading a person's journey"))
    }
}
