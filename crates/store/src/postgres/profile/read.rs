//! Reads of people, by anybody and outside of transactions.

use dashi_domain::profile::{Person, TraitRow, person_of, version};
use dashi_domain::rows::SessionDataRow;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{TRAIT_COLUMNS, trait_row, value};
use crate::postgres::PostgresStore;
use crate::profile::{attributes, kind, kinds};
use crate::{JourneyEvent, PersonSession, Profile, ProfileSummary, SessionTraits, StoreError};

impl PostgresStore {
    pub(crate) async fn profile(
        &self,
        website_id: Uuid,
        distinct_id: &str,
    ) -> Result<Option<Profile>, StoreError> {
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let doing = "reading a profile";
        let created_at_ms: Option<i64> = sqlx::query_scalar(
            "SELECT created_at FROM dashi.profile WHERE website_id = $1 AND distinct_id = $2",
        )
        .bind(website_id)
        .bind(distinct_id)
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let Some(created_at_ms) = created_at_ms else { return Ok(None) };
        let traits = self.traits(website_id, distinct_id).await.map_err(StoreError::away(doing))?;
        let person = Person { website_id, distinct_id: distinct_id.to_owned() };
        Ok(Some(Profile { person, created_at_ms, version: version(&traits), traits }))
    }

    async fn traits(&self, website_id: Uuid, distinct_id: &str) -> Result<Vec<TraitRow>, sqlx::Error> {
        let sql = format!(
            "SELECT {TRAIT_COLUMNS} FROM dashi.profile_trait AS r
             WHERE r.website_id = $1 AND r.distinct_id = $2 ORDER BY r.key"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(website_id).bind(distinct_id);
        query.fetch_all(&self.pool).await?.iter().map(trait_row).collect()
    }

    pub(crate) async fn person_sessions(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PersonSession>, StoreError> {
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let session = |row: &PgRow| {
            let has_row = row.try_get::<Option<Uuid>, _>("known")?.is_some();
            Ok(PersonSession {
                session_id: row.try_get("session_id")?,
                kind: kind(row.try_get("kind")?)?,
                attributes: has_row.then(|| attributes(row)).transpose()?,
                first_at_ms: row.try_get("first_at")?,
                last_at_ms: row.try_get("last_at")?,
            })
        };
        let rows = sqlx::query(
            "SELECT l.session_id, l.kind, l.first_at, s.session_id AS known,
                    s.browser::text, s.os::text, s.device::text, s.screen::text, s.language::text,
                    s.country::text, s.region::text, s.city::text, s.distinct_id::text,
                    greatest(
                        (SELECT (extract(epoch FROM max(e.created_at)) * 1000)::bigint FROM website_event AS e
                         WHERE e.website_id = l.website_id AND e.session_id = l.session_id),
                        (SELECT (extract(epoch FROM max(i.created_at)) * 1000)::bigint FROM dashi.identify AS i
                         WHERE i.session_id = l.session_id)) AS last_at
             FROM dashi.profile_link AS l
             LEFT JOIN session AS s ON s.session_id = l.session_id AND s.website_id = l.website_id
             WHERE l.website_id = $1 AND l.distinct_id = $2 AND (l.first_at, l.session_id) > ($3, $4)
             ORDER BY l.first_at, l.session_id LIMIT $5",
        )
        .bind(website_id)
        .bind(distinct_id)
        .bind(after_at)
        .bind(after_id)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(session).collect())
            .map_err(StoreError::away("listing a person's sessions"))
    }

    pub(crate) async fn session_traits(
        &self,
        website_id: Uuid,
        session_id: Uuid,
    ) -> Result<Option<SessionTraits>, StoreError> {
        let doing = "reading a session's traits";
        let links: Vec<(String, i32, i64)> = sqlx::query_as(
            "SELECT distinct_id, kind, first_at FROM dashi.profile_link WHERE website_id = $1 AND session_id = $2
             ORDER BY kind, first_at DESC, distinct_id",
        )
        .bind(website_id)
        .bind(session_id)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM session WHERE session_id = $1 AND website_id = $2)",
        )
        .bind(session_id)
        .bind(website_id)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        if links.is_empty() && !is_there {
            return Ok(None);
        }
        let person = person_of(kinds(links).map_err(StoreError::away(doing))?);
        let traits = match &person {
            Some(person) => self.traits(website_id, person).await.map_err(StoreError::away(doing))?,
            None => Vec::new(),
        };
        let property = |row: &PgRow| {
            let Some(value) = value(row)? else { return Ok(None) };
            Ok(Some(SessionDataRow {
                session_data_id: Uuid::nil(),
                website_id,
                session_id,
                data_key: row.try_get("data_key")?,
                value,
                distinct_id: None,
                created_at_ms: row.try_get("created_at_ms")?,
            }))
        };
        let rows = sqlx::query(
            "SELECT data_key::text, data_type, string_value::text, number_value::text,
                    (extract(epoch FROM date_value) * 1000)::bigint AS date_value,
                    (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms
             FROM session_data WHERE session_id = $1 AND website_id = $2",
        )
        .bind(session_id)
        .bind(website_id)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let own: Result<_, sqlx::Error> = rows.iter().filter_map(|row| property(row).transpose()).collect();
        let own = own.map_err(StoreError::away(doing))?;
        Ok(Some(SessionTraits::new(website_id, session_id, person, traits, own)))
    }

    pub(crate) async fn profiles(
        &self,
        website_id: Uuid,
        query: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ProfileSummary>, StoreError> {
        let query = &*self.stored_text(query).await?;
        let summary = |row: &PgRow| {
            Ok(ProfileSummary {
                distinct_id: row.try_get("distinct_id")?,
                created_at_ms: row.try_get("created_at")?,
                traits: row.try_get::<i64, _>("traits")? as u64,
                sessions: row.try_get::<i64, _>("sessions")? as u64,
            })
        };
        let rows = sqlx::query(
            "SELECT p.distinct_id, p.created_at,
                    (SELECT count(*) FROM dashi.profile_trait AS r WHERE r.website_id = p.website_id
                       AND r.distinct_id = p.distinct_id AND r.data_type IS NOT NULL) AS traits,
                    (SELECT count(DISTINCT l.session_id) FROM dashi.profile_link AS l
                     WHERE l.website_id = p.website_id AND l.distinct_id = p.distinct_id) AS sessions
             FROM dashi.profile AS p
             WHERE p.website_id = $1 AND position(lower($2) IN lower(p.distinct_id)) > 0
               AND ($3::text IS NULL OR p.distinct_id > $3)
             ORDER BY p.distinct_id LIMIT $4",
        )
        .bind(website_id)
        .bind(query)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
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
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let event = |row: &PgRow| {
            Ok(JourneyEvent {
                event_id: row.try_get("event_id")?,
                session_id: row.try_get("session_id")?,
                visit_id: row.try_get("visit_id")?,
                created_at_ms: row.try_get("at")?,
                event_type: row.try_get("event_type")?,
                url_path: row.try_get("url_path")?,
                event_name: row.try_get("event_name")?,
            })
        };
        let rows = sqlx::query(
            "WITH linked AS (SELECT DISTINCT session_id FROM dashi.profile_link
                             WHERE website_id = $1 AND distinct_id = $2)
             SELECT * FROM (
                 SELECT e.event_id, e.session_id, e.visit_id, e.event_type, e.url_path::text, e.event_name::text,
                        (extract(epoch FROM e.created_at) * 1000)::bigint AS at
                 FROM website_event AS e JOIN linked USING (session_id) WHERE e.website_id = $1
                 UNION ALL
                 SELECT i.event_id, i.session_id, NULL, 0, NULL, NULL,
                        (extract(epoch FROM i.created_at) * 1000)::bigint
                 FROM dashi.identify AS i JOIN linked USING (session_id) WHERE i.website_id = $1
             ) AS way
             WHERE (at, event_id) > ($3, $4) ORDER BY at, event_id LIMIT $5",
        )
        .bind(website_id)
        .bind(distinct_id)
        .bind(after_at)
        .bind(after_id)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(event).collect())
            .map_err(StoreError::away("reading a person's journey"))
    }
}
