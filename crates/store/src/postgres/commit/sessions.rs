//! Sessions, their distinct ids and their properties.

use std::collections::{BTreeSet, HashMap, HashSet};

use dashi_domain::rows::{SessionAttributes, SessionDataRow, SessionLinkRow, SessionRow};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::postgres::catalogue::Catalogue;
use crate::postgres::copy::{Way, copy};
use crate::postgres::insert::{ChunkIndexes, assignments, bind, insert, insert_sql, names, unnest};
use crate::postgres::pool::Session;
use crate::profile::{attribute_texts, attributes, reported_attributes};
use crate::tables;

/// Inserts the sessions that are not there; returns their ids.
pub(super) async fn insert_sessions(
    connection: &mut Session,
    rows: &[SessionRow],
    catalogue: &Catalogue,
    way: Way,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    if way == Way::Copy {
        let there: Vec<Uuid> = sqlx::query_scalar(
            "/* stored_sessions */
             SELECT s.session_id FROM unnest($1::uuid[]) AS t (id) JOIN session AS s ON s.session_id = t.id",
        )
        .bind(column!(rows, row => row.session_id))
        .fetch_all(&mut *connection)
        .await?;
        let there: HashSet<Uuid> = there.into_iter().collect();
        let new: Vec<&SessionRow> = rows.iter().filter(|row| !there.contains(&row.session_id)).collect();
        copy(connection, &tables::SESSION, catalogue, &new).await?;
        return Ok(new.into_iter().map(|row| row.session_id).collect());
    }
    let rest = "ON CONFLICT (session_id) DO NOTHING RETURNING session_id";
    let sql = insert_sql(&tables::SESSION, "insert_sessions", Some(catalogue), rest);
    let inserted = bind(&tables::SESSION, sql, rows, &ChunkIndexes::new()).fetch_all(connection).await?;
    inserted.iter().map(|row| row.try_get(0)).collect()
}

/// Fills sessions that were there, by the fold's own rule. Only rows that lack an attribute which these events report
/// are read, and only those that change are written: hardly any.
pub(super) async fn fill_sessions(connection: &mut Session, rows: &[&SessionRow]) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let reports = column!(rows, row => reported_attributes(row));
    let lacking: Vec<PgRow> = sqlx::query(
        "/* lacking_sessions */
         SELECT s.session_id, s.browser::text, s.os::text, s.device::text, s.screen::text, s.language::text,
             s.country::text, s.region::text, s.city::text, s.distinct_id::text
         FROM unnest($1::uuid[], $2::int[]) AS t (session_id, reports)
         JOIN session AS s ON s.session_id = t.session_id
         WHERE (CASE WHEN s.browser IS NULL THEN 1 ELSE 0 END | CASE WHEN s.os IS NULL THEN 2 ELSE 0 END
             | CASE WHEN s.device IS NULL THEN 4 ELSE 0 END | CASE WHEN s.screen IS NULL THEN 8 ELSE 0 END
             | CASE WHEN s.language IS NULL THEN 16 ELSE 0 END | CASE WHEN s.country IS NULL THEN 32 ELSE 0 END
             | CASE WHEN s.region IS NULL THEN 64 ELSE 0 END | CASE WHEN s.city IS NULL THEN 128 ELSE 0 END
             | CASE WHEN s.distinct_id IS NULL THEN 256 ELSE 0 END) & t.reports <> 0",
    )
    .bind(column!(rows, row => row.session_id))
    .bind(reports)
    .fetch_all(&mut *connection)
    .await?;
    let reported: HashMap<Uuid, &[SessionAttributes]> =
        rows.iter().map(|row| (row.session_id, row.reported())).collect();
    let mut filled: Vec<(Uuid, SessionAttributes)> = Vec::new();
    for row in &lacking {
        let session_id: Uuid = row.try_get("session_id")?;
        let mut attributes = attributes(row)?;
        let reported = reported.get(&session_id).copied().unwrap_or_default();
        if attributes.fill_from(reported) {
            filled.push((session_id, attributes));
        }
    }
    if filled.is_empty() {
        return Ok(());
    }
    // In the order in which all transactions lock them. Umami may name the session meanwhile: its name stays.
    filled.sort_unstable_by_key(|(session_id, _)| *session_id);
    sqlx::query(
        "/* fill_sessions */
         UPDATE session AS s
         SET browser = t.browser, os = t.os, device = t.device, screen = t.screen, language = t.language,
             country = t.country, region = t.region, city = t.city,
             distinct_id = coalesce(s.distinct_id, t.distinct_id)
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
             $7::text[], $8::text[], $9::text[], $10::text[])
         AS t (session_id, browser, os, device, screen, language, country, region, city, distinct_id)
         WHERE s.session_id = t.session_id",
    )
    .bind(column!(filled, row => row.0))
    .bind(column!(filled, row => row.1.browser.as_deref()))
    .bind(column!(filled, row => row.1.os.as_deref()))
    .bind(column!(filled, row => row.1.device.as_deref()))
    .bind(column!(filled, row => row.1.screen.as_deref()))
    .bind(column!(filled, row => row.1.language.as_deref()))
    .bind(column!(filled, row => row.1.country.as_deref()))
    .bind(column!(filled, row => row.1.region.as_deref()))
    .bind(column!(filled, row => row.1.city.as_deref()))
    .bind(column!(filled, row => row.1.distinct_id.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes late events that are older than their sessions' rows the first ones of these.
pub(super) async fn set_sessions_back(
    connection: &mut Session,
    rows: &[&SessionRow],
    names_sessions: bool,
) -> Result<(), sqlx::Error> {
    for row in rows {
        let made_later: Option<PgRow> = sqlx::query(
            "/* sessions_made_later */
             SELECT browser::text, os::text, device::text, screen::text, language::text, country::text, region::text,
                 city::text, distinct_id::text
             FROM session WHERE session_id = $1 AND created_at > dashi.at_ms($2) FOR UPDATE",
        )
        .bind(row.session_id)
        .bind(row.created_at_ms)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(made_later) = made_later else { continue };
        let later = attributes(&made_later)?;
        let attributes = SessionAttributes::set_back(row.reported(), &later, names_sessions);
        let mut statement = sqlx::query(
            "/* set_session_back */
             UPDATE session
             SET browser = $3, os = $4, device = $5, screen = $6, language = $7, country = $8, region = $9, city = $10,
                 distinct_id = $11, created_at = dashi.at_ms($2)
             WHERE session_id = $1",
        )
        .bind(row.session_id)
        .bind(row.created_at_ms);
        for value in attribute_texts(&attributes) {
            statement = statement.bind(value.clone());
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Umami 3.3 and newer: the distinct ids that identifies named in a session.
pub(super) async fn link_sessions(
    connection: &mut Session,
    rows: &[SessionLinkRow],
) -> Result<(), sqlx::Error> {
    let (unnest, names) = (unnest(&tables::SESSION_LINK), names(&tables::SESSION_LINK));
    let sql = format!(
        "/* insert_session_links */
         INSERT INTO session_link ({names})
         SELECT DISTINCT ON (website_id, session_id, distinct_id)
             website_id, session_id, distinct_id, dashi.at_ms(created_at)
         FROM {unnest} WITH ORDINALITY AS t ({names}, place)
         ORDER BY website_id, session_id, distinct_id, place
         ON CONFLICT DO NOTHING"
    );
    run_with_links(connection, rows, sql).await
}

/// The last of the distinct ids that identifies named in a session goes into the session itself; that of a late one only if
/// none is newer.
pub(super) async fn name_sessions(
    connection: &mut Session,
    rows: &[SessionLinkRow],
    is_late: bool,
) -> Result<(), sqlx::Error> {
    let (unnest, names) = (unnest(&tables::SESSION_LINK), names(&tables::SESSION_LINK));
    let none_newer = if is_late {
        "AND NOT EXISTS (SELECT 1 FROM dashi.identify AS i WHERE i.session_id = t.session_id
             AND i.website_id = t.website_id AND i.created_at > dashi.at_ms(t.created_at) AND i.distinct_id <> '')"
    } else {
        ""
    };
    let sql = format!(
        "/* name_sessions */
         UPDATE session AS s SET distinct_id = t.distinct_id
         FROM (SELECT DISTINCT ON (session_id) website_id, session_id, distinct_id, created_at
               FROM {unnest} WITH ORDINALITY AS t ({names}, place)
               ORDER BY session_id, place DESC) AS t
         WHERE s.session_id = t.session_id AND s.website_id = t.website_id
             AND s.distinct_id IS DISTINCT FROM t.distinct_id {none_newer}"
    );
    run_with_links(connection, rows, sql).await
}

async fn run_with_links(
    connection: &mut Session,
    rows: &[SessionLinkRow],
    sql: String,
) -> Result<(), sqlx::Error> {
    if !rows.is_empty() {
        bind(&tables::SESSION_LINK, sql, rows, &ChunkIndexes::new()).execute(connection).await?;
    }
    Ok(())
}

/// The rows of `session_data` that a new value of their session and key replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    /// All of them.
    All,
    /// Those of an earlier time.
    Older,
}

/// A row of that session and key keeps its id, which may be one that Umami gave it.
///
/// Up to 3.2 Umami has no unique key on (session, key), so the row is updated, and inserted where there is none. The
/// session's one writer is this one.
pub(super) async fn upsert_session_data(
    connection: &mut Session,
    rows: &[SessionDataRow],
    catalogue: &Catalogue,
    replaced: Replaced,
    way: Way,
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let table = &tables::SESSION_DATA;
    if catalogue.has_unique_properties() {
        let assigned = table.table.replacing(&["session_id", "data_key"]);
        let only = match replaced {
            Replaced::All => "",
            Replaced::Older => "WHERE session_data.created_at < excluded.created_at",
        };
        let rest = format!("ON CONFLICT (session_id, data_key) DO UPDATE SET {assigned} {only}");
        insert(connection, table, Some(catalogue), "upsert_session_data", rows, &rest).await?;
        return Ok(());
    }
    // Without a unique index a key may have several rows; all of them are updated. They are found by one scan of the
    // sessions' rows: a join on session and key has no index to go by, and looks at every row of a session for each.
    let stored: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
        "/* stored_properties */
         SELECT session_data_id, session_id, data_key::text FROM session_data
         WHERE session_id = ANY($1) AND data_key = ANY($2)",
    )
    .bind(rows.iter().map(|row| row.session_id).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())
    .bind(
        rows.iter().map(|row| row.data_key.as_str()).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut ids: HashMap<(Uuid, &str), Vec<Uuid>> = HashMap::new();
    for (id, session_id, data_key) in &stored {
        ids.entry((*session_id, data_key)).or_default().push(*id);
    }
    let mut updates: Vec<(Uuid, &SessionDataRow)> = Vec::new();
    let mut inserts: Vec<&SessionDataRow> = Vec::new();
    for row in rows {
        match ids.get(&(row.session_id, row.data_key.as_str())) {
            Some(ids) => updates.extend(ids.iter().map(|id| (*id, row))),
            None => inserts.push(row),
        }
    }
    updates.sort_unstable_by_key(|(id, _)| *id);
    let (ids, rows): (Vec<Uuid>, Vec<&SessionDataRow>) = updates.into_iter().unzip();
    if !rows.is_empty() {
        let sql = format!(
            "/* update_session_data */
             UPDATE session_data AS s SET {}
             FROM ROWS FROM ({}, unnest(${}::uuid[])) AS t ({}, stored_id)
             WHERE s.session_data_id = t.stored_id {}",
            assignments(table, &["session_id", "data_key"]),
            unnest(table),
            table.fields.len() + 1,
            names(table),
            match replaced {
                Replaced::All => "",
                Replaced::Older => "AND s.created_at < dashi.at_ms(t.created_at)",
            }
        );
        bind(table, sql, &rows, &ChunkIndexes::new()).bind(&ids).execute(&mut *connection).await?;
    }
    match way {
        Way::Copy => copy(connection, table, catalogue, &inserts).await?,
        Way::Insert => {
            insert(connection, table, Some(catalogue), "insert_session_data", &inserts, "").await?
        }
    };
    Ok(())
}
