//! Reads of people, by anybody and outside of transactions.

use dashi_domain::profile::{Person, TraitRow, person_of, version};
use dashi_domain::rows::SessionDataRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{TRAIT_COLUMNS, trait_row, value};
use crate::profile::{attributes, kind, kinds};
use crate::sqlite::{SqliteStore, text, uuid};
use crate::{JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits, StoreError};

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
            "SELECT {TRAIT_COLUMNS} FROM dashi_profile_trait AS r
             WHERE r.website_id = ? AND r.distinct_id = ? ORDER BY r.key"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(text(website_id))
            .bind(distinct_id)
            .fetch_all(&self.0.readers)
            .await?;
        rows.iter().map(trait_row).collect()
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
        let person = person_of(kinds(links).map_err(failed)?);
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
                 FROM website_event JOIN linked USING (session_id) WHERE +website_id = ?1
                 UNION ALL
                 SELECT event_id, session_id, NULL, 0, NULL, NULL, created_at
                 FROM dashi_identify JOIN linked USING (session_id) WHERE +website_id = ?1)
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
