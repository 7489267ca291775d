//! Rows of events: the events themselves, identifies, records that leave no other row, and the leaves of data and revenue.

use dashi_domain::fold::Changes;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::json_list;
use crate::sqlite::insert::insert;
use crate::sqlite::parse_uuid;
use crate::tables;

/// The events that the tables hold already.
pub(super) async fn applied(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let ids = || event_ids(changes).chain(identify_ids(changes));
    let mut found = held(connection, "website_event", "event_id", ids()).await?;
    found.extend(held(connection, "dashi_identify", "event_id", ids()).await?);
    let chunks = changes.chunks.iter().map(|row| row.replay_id);
    found.extend(held(connection, "session_replay", "replay_id", chunks).await?);
    let records = changes.applied.iter().map(|row| row.record_id);
    found.extend(held(connection, "dashi_applied", "record_id", records).await?);
    let copies = changes.erasure.iter().map(|copy| copy.copy_id);
    found.extend(held(connection, "dashi_erasure_copy", "copy_id", copies).await?);
    Ok(found)
}

/// Whether an event is applied as an identify, or the other way round: an id is one event, whichever its type. The
/// inserts see their own table only.
pub(super) async fn applied_as_another_type(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    Ok(!held(connection, "dashi_identify", "event_id", event_ids(changes)).await?.is_empty()
        || !held(connection, "website_event", "event_id", identify_ids(changes)).await?.is_empty())
}

fn event_ids(changes: &Changes) -> impl Iterator<Item = Uuid> {
    changes.events.iter().map(|row| row.event_id)
}

fn identify_ids(changes: &Changes) -> impl Iterator<Item = Uuid> {
    changes.identifies.iter().map(|row| row.event_id)
}

/// Those of `ids` that are keys of `table`, found by one statement.
async fn held(
    connection: &mut SqliteConnection,
    table: &str,
    key: &str,
    ids: impl Iterator<Item = Uuid>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let Some(ids) = json_list(ids) else { return Ok(Vec::new()) };
    let sql = format!("SELECT {key} FROM {table} WHERE {key} IN (SELECT value FROM json_each(?))");
    let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(ids).fetch_all(connection).await?;
    found.iter().map(|id| parse_uuid(id)).collect()
}

pub(super) async fn insert_events(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::WEBSITE_EVENT, &changes.events, "ON CONFLICT (event_id) DO NOTHING").await
}

pub(super) async fn insert_identifies(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::IDENTIFY, &changes.identifies, "ON CONFLICT (event_id) DO NOTHING").await
}

pub(super) async fn insert_applied(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::APPLIED, &changes.applied, "ON CONFLICT (record_id) DO NOTHING").await
}

pub(super) async fn insert_event_data(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let on_conflict = "ON CONFLICT (event_data_id) DO NOTHING";
    insert(connection, &tables::EVENT_DATA, &changes.event_data, on_conflict).await?;
    Ok(())
}

pub(super) async fn insert_revenue(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    insert(connection, &tables::REVENUE, &changes.revenue, "ON CONFLICT (revenue_id) DO NOTHING").await?;
    Ok(())
}
