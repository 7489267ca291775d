//! Rows of events: the events themselves, identifies, records that leave no other row, and the leaves of data and revenue.

use std::collections::BTreeSet;

use dashi_domain::fold::Changes;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::json_list;
use crate::sqlite::insert::insert;
use crate::sqlite::{parse_uuid, text};
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
    let [events, identifies] = [event_ids(changes).collect(), identify_ids(changes).collect()];
    Ok(any_held(connection, "dashi_identify", &events).await?
        || any_held(connection, "website_event", &identifies).await?)
}

/// Looks for `ids` among the keys of `table`. Ids that a collector makes are in the order of time, so that what lies between the
/// first and the last of a batch is of its time: mostly little, which is read in less time than each id is looked for.
async fn any_held(
    connection: &mut SqliteConnection,
    table: &str,
    ids: &BTreeSet<Uuid>,
) -> Result<bool, sqlx::Error> {
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Ok(false) };
    let few = ids.len() / 4 + 1;
    let between: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT event_id FROM {table} WHERE event_id BETWEEN ? AND ? LIMIT ?"
    )))
    .bind(text(*first))
    .bind(text(*last))
    .bind(few as i64)
    .fetch_all(&mut *connection)
    .await?;
    if between.len() < few {
        for id in &between {
            if ids.contains(&parse_uuid(id)?) {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    Ok(!held(connection, table, "event_id", ids.iter().copied()).await?.is_empty())
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
