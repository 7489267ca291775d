//! Sessions, their distinct ids and their properties.

use std::collections::HashMap;

use dashi_domain::fold::Changes;
use dashi_domain::session::{SessionAttributes, SessionRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::json_list;
use crate::profile::{ATTRIBUTES, attribute_texts, attributes, reported_attributes};
use crate::sqlite::insert::{insert, run_for_each};
use crate::sqlite::{parse_uuid, text, uuid};
use crate::tables;

/// Inserts new sessions, and fills those that were there by the fold's own rule; one that has nothing to gain is not
/// written. A late event that is older than its session's row becomes the session's first.
pub(super) async fn upsert_sessions(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let there = empty_columns(connection, changes).await?;
    let (known, new): (Vec<_>, Vec<_>) =
        changes.sessions.iter().partition(|row| there.contains_key(&row.session_id));
    insert(connection, &tables::SESSION, &new, "").await?;
    // Most of the known ones have what their events reported long ago, and are not read.
    let gaining: HashMap<Uuid, &SessionRow> = known
        .into_iter()
        .filter(|row| changes.is_late() || there[&row.session_id] & reported_attributes(row) != 0)
        .map(|row| (row.session_id, row))
        .collect();
    fill_sessions(connection, changes, gaining).await
}

/// The sessions that are there, and which of their attributes are empty, in bits as those of
/// [`reported_attributes`].
async fn empty_columns(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<HashMap<Uuid, i32>, sqlx::Error> {
    let Some(ids) = json_list(changes.sessions.iter().map(|row| row.session_id)) else {
        return Ok(HashMap::new());
    };
    let is_empty =
        ATTRIBUTES.iter().enumerate().map(|(bit, column)| format!("(({column} IS NULL) << {bit})"));
    let stored: Vec<(String, i32)> = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT session_id, {} FROM session WHERE session_id IN (SELECT value FROM json_each(?))",
        is_empty.collect::<Vec<_>>().join(" | ")
    )))
    .bind(ids)
    .fetch_all(connection)
    .await?;
    stored.iter().map(|(id, empty)| Ok((parse_uuid(id)?, *empty))).collect()
}

async fn fill_sessions(
    connection: &mut SqliteConnection,
    changes: &Changes,
    sessions: HashMap<Uuid, &SessionRow>,
) -> Result<(), sqlx::Error> {
    let Some(ids) = json_list(sessions.keys().copied()) else { return Ok(()) };
    let stored: Vec<SqliteRow> = sqlx::query(AssertSqlSafe(format!(
        "SELECT session_id, {}, created_at FROM session
         WHERE session_id IN (SELECT value FROM json_each(?))",
        ATTRIBUTES.join(", ")
    )))
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut filled = Vec::with_capacity(stored.len());
    for stored in &stored {
        let row = sessions[&uuid(stored, "session_id")?];
        let mut attributes = attributes(stored)?;
        let created_at_ms: i64 = stored.try_get("created_at")?;
        if changes.is_late() && row.created_at_ms < created_at_ms {
            attributes = SessionAttributes::set_back(row.reported(), &attributes, changes.names_sessions);
            filled.push((row.session_id, attributes, row.created_at_ms));
        } else if attributes.fill_from(row.reported()) {
            filled.push((row.session_id, attributes, created_at_ms));
        }
    }
    let set = ATTRIBUTES.map(|column| format!("{column} = ?")).join(", ");
    let sql = format!("UPDATE session SET {set}, created_at = ? WHERE session_id = ?");
    run_for_each(connection, &sql, &filled, |values, (session_id, attributes, created_at_ms)| {
        attribute_texts(attributes).into_iter().try_for_each(|text| values.add(text))?;
        values.add(*created_at_ms)?;
        values.add(text(*session_id))
    })
    .await
}

/// The last of the distinct ids that identifies named in a session goes into the session itself; that of a late one only if
/// none is newer.
pub(super) async fn name_sessions(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let last: HashMap<Uuid, _> = changes.session_links.iter().map(|row| (row.session_id, row)).collect();
    let last: Vec<_> = last.into_values().collect();
    let sql =
        "UPDATE session SET distinct_id = ? WHERE session_id = ? AND website_id = ? AND distinct_id IS NOT ?";
    let if_newest = format!(
        "{sql} AND NOT EXISTS (SELECT 1 FROM dashi_identify AS i WHERE i.session_id = ?
            AND i.created_at > ? AND i.website_id = ? AND i.distinct_id <> '')"
    );
    let sql = if changes.is_late() { &if_newest } else { sql };
    run_for_each(connection, sql, &last, |values, row| {
        values.add(&row.distinct_id)?;
        values.add(text(row.session_id))?;
        values.add(text(row.website_id))?;
        values.add(&row.distinct_id)?;
        if changes.is_late() {
            values.add(text(row.session_id))?;
            values.add(row.created_at_ms)?;
            values.add(text(row.website_id))?;
        }
        Ok(())
    })
    .await
}

/// A row of that session and key keeps its id. An imported property, and a late one, replaces older ones only.
pub(super) async fn upsert_session_data(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let table = &tables::SESSION_DATA;
    let replaced = table.table.replacing(&["session_id", "data_key"]);
    let on_conflict = format!("ON CONFLICT (session_id, data_key) DO UPDATE SET {replaced}");
    let older = format!("{on_conflict} WHERE session_data.created_at < excluded.created_at");
    let sent = if changes.is_late() { &older } else { &on_conflict };
    insert(connection, table, &changes.session_data, sent).await?;
    insert(connection, table, &changes.imported_session_data, &older).await?;
    Ok(())
}
