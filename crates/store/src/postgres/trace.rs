//! Where the tables hold an event.

use dashi_domain::ids::dependent_id;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::PostgresStore;
use crate::StoreError;
use crate::trace::{AppliedEvent, IDENTITIES};

/// Each by primary key. Umami 3.0 has no recordings.
const APPLIED: &str = "/* trace */
    SELECT 0, website_id, session_id, (extract(epoch FROM created_at) * 1000)::bigint FROM website_event WHERE event_id = $1
    UNION ALL
    SELECT 1, website_id, session_id, (extract(epoch FROM created_at) * 1000)::bigint FROM dashi.identify WHERE event_id = $1
    UNION ALL
    SELECT 2, website_id, session_id, received_at FROM dashi.applied WHERE record_id = $1";
const OR_CHUNK: &str = " UNION ALL
    SELECT 3, website_id, session_id, (extract(epoch FROM created_at) * 1000)::bigint FROM session_replay WHERE replay_id = $1";

impl PostgresStore {
    pub(crate) async fn trace(&self, id: Uuid) -> Result<Option<AppliedEvent>, StoreError> {
        let doing = "looking for an event";
        let has_chunks = self.catalogue().await?.has_table("session_replay");
        let sql = if has_chunks { format!("{APPLIED}{OR_CHUNK}") } else { APPLIED.to_owned() };
        let found: Option<(i32, Uuid, Uuid, i64)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::away(doing))?;
        let Some((table, website_id, session_id, created_at_ms)) = found else { return Ok(None) };
        let (has_session, event_data, has_revenue): (bool, i64, bool) = sqlx::query_as(
            "/* trace_rows */
             SELECT EXISTS (SELECT 1 FROM session WHERE session_id = $1),
                 (SELECT count(*) FROM event_data WHERE website_event_id = $2),
                 EXISTS (SELECT 1 FROM revenue WHERE revenue_id = $3)",
        )
        .bind(session_id)
        .bind(id)
        .bind(dependent_id(id, "revenue"))
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let table = IDENTITIES[table as usize];
        let event_data = event_data as u64;
        Ok(Some(AppliedEvent {
            table,
            website_id,
            session_id,
            created_at_ms,
            has_session,
            event_data,
            has_revenue,
        }))
    }
}
