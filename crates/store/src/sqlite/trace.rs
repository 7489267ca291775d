//! Where the tables hold an event.

use dashi_domain::ids::dependent_id;
use uuid::Uuid;

use super::{SqliteStore, parse_uuid, text};
use crate::StoreError;
use crate::trace::{AppliedEvent, IDENTITIES};

impl SqliteStore {
    pub(crate) async fn trace(&self, id: Uuid) -> Result<Option<AppliedEvent>, StoreError> {
        let doing = "looking for an event";
        let found: Option<(i64, String, String, i64)> = sqlx::query_as(
            "SELECT 0, website_id, session_id, created_at FROM website_event WHERE event_id = ?1
             UNION ALL
             SELECT 1, website_id, session_id, created_at FROM dashi_identify WHERE event_id = ?1
             UNION ALL
             SELECT 2, website_id, session_id, received_at FROM dashi_applied WHERE record_id = ?1
             UNION ALL
             SELECT 3, website_id, session_id, created_at FROM session_replay WHERE replay_id = ?1",
        )
        .bind(text(id))
        .fetch_optional(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        let Some((table, website_id, session_id, created_at_ms)) = found else { return Ok(None) };
        let (has_session, event_data, has_revenue): (bool, i64, bool) = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM session WHERE session_id = ?1),
                 (SELECT count(*) FROM event_data WHERE website_event_id = ?2),
                 EXISTS (SELECT 1 FROM revenue WHERE revenue_id = ?3)",
        )
        .bind(&session_id)
        .bind(text(id))
        .bind(text(dependent_id(id, "revenue")))
        .fetch_one(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        Ok(Some(AppliedEvent {
            table: IDENTITIES[table as usize],
            website_id: parse_uuid(&website_id).map_err(StoreError::away(doing))?,
            session_id: parse_uuid(&session_id).map_err(StoreError::away(doing))?,
            created_at_ms,
            has_session,
            event_data: event_data as u64,
            has_revenue,
        }))
    }
}
