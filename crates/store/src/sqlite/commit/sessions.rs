//! Sessions, their distinct ids and their properties.

use std::collections::HashMap;

use dashi_domain::fold::Changes;
use dashi_domain::rows::SessionAttributes;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use super::json_list;
use crate::sqlite::insert::{Statement, insert};
use crate::sqlite::{parse_uuid, text};
use crate::tables;

/// Inserts new sessions, and fills those that were there by the fold's own rule; one that has nothing to gain is not
/// written. A late event that is older than its session's row becomes the session's first.
pub(super) async fn upsert_sessions(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let Some(ids) = json_list(changes.sessions.iter().map(|row| row.session_id)) else { return Ok(()) };
    let stored: Vec<SqliteRow> = sqlx::query(
        "SELECT session_id, browser, os, device, screen, language, country, region, city, distinct_id,
                created_at
         FROM session WHERE session_id IN (SELECT value FROM json_each(?))",
    )
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut there = HashMap::with_capacity(stored.len());
    for row in &stored {
        let id: String = row.try_get("session_id")?;
        there.insert(parse_uuid(&id)?, row);
    }
    let (known, new): (Vec<_>, Vec<_>) =
        changes.sessions.iter().partition(|row| there.contains_key(&row.session_id));
    insert(connection, &tables::SESSION, &new, "").await?;
    for row in known {
        let stored = there[&row.session_id];
        let mut attributes = crate::profile::attributes(stored)?;
        let created_at_ms: i64 = stored.try_get("created_at")?;
        if changes.is_late() && row.created_at_ms < created_at_ms {
            attributes = SessionAttributes::set_back(row.reported(), &attributes, changes.names_sessions);
            let statement = sqlx::query(
                "UPDATE session SET browser = ?, os = ?, device = ?, screen = ?, language = ?, country = ?,
                     region = ?, city = ?, distinct_id = ?, created_at = ?
                 WHERE session_id = ?",
            );
            bind_attributes(statement, &attributes)
                .bind(row.created_at_ms)
                .bind(text(row.session_id))
                .execute(&mut *connection)
                .await?;
        } else if attributes.fill_from(row.reported()) {
            let statement = sqlx::query(
                "UPDATE session SET browser = ?, os = ?, device = ?, screen = ?, language = ?, country = ?,
                     region = ?, city = ?, distinct_id = ?
                 WHERE session_id = ?",
            );
            bind_attributes(statement, &attributes)
                .bind(text(row.session_id))
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

/// In the order of the table's columns.
fn bind_attributes<'q>(statement: Statement<'q>, attributes: &SessionAttributes) -> Statement<'q> {
    let SessionAttributes { browser, os, device, screen, language, country, region, city, distinct_id } =
        attributes.clone();
    statement
        .bind(browser)
        .bind(os)
        .bind(device)
        .bind(screen)
        .bind(language)
        .bind(country)
        .bind(region)
        .bind(city)
        .bind(distinct_id)
}

/// The last of the distinct ids that identifies named in a session goes into the session itself; that of a late one only if
/// none is newer.
pub(super) async fn name_sessions(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let last: HashMap<Uuid, _> = changes.session_links.iter().map(|row| (row.session_id, row)).collect();
    for row in last.into_values() {
        sqlx::query(
            "UPDATE session SET distinct_id = ?1
             WHERE session_id = ?2 AND website_id = ?3 AND distinct_id IS NOT ?1
               AND (NOT ?4 OR NOT EXISTS (SELECT 1 FROM dashi_identify AS i WHERE i.session_id = ?2
                    AND i.created_at > ?5 AND i.website_id = ?3 AND i.distinct_id <> ''))",
        )
        .bind(row.distinct_id.clone())
        .bind(text(row.session_id))
        .bind(text(row.website_id))
        .bind(changes.is_late())
        .bind(row.created_at_ms)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
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
