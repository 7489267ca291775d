//! One transaction per batch: the guard on epoch and checkpoint, then every row, each table by few statements.

use std::collections::HashMap;

use dashi_domain::fold::Changes;
use dashi_domain::missing::Missing;
use dashi_domain::position::Checkpoint;
use dashi_domain::rows::{ChunkRow, HeatmapKind, HeatmapRow, SessionAttributes};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use uuid::Uuid;

use super::insert::{ChunkIndexes, Statement, insert, insert_indexed};
use super::{NOW_MS, SqliteStore, parse_uuid, stored, text};
use crate::chunk_index::{SAME_CLICK_MS, placed};
use crate::error::Said;
use crate::missing::{Passed, RANGES_MAX, REWOUND};
use crate::tables;
use crate::{Claim, CommitError, Committed, ProfileChange, profile};

impl SqliteStore {
    pub(crate) async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        let mut writer = self.0.writer.lock().await;
        let outcome = write(&mut writer, claim, from, to, changes).await;
        if matches!(outcome, Err(CommitError::Unknown { .. } | CommitError::NotWritten { .. })) {
            self.renew(&mut writer).await;
        }
        drop(writer);
        let (committed, changed) = outcome?;
        for change in changed {
            // Nobody may be listening.
            let _ = self.0.changes.send(change);
        }
        Ok(committed)
    }
}

/// The transaction.
async fn write(
    writer: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<(Committed, Vec<ProfileChange>), CommitError> {
    let failed = |error: sqlx::Error| failure(claim, error);
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    if !move_checkpoint(&mut tx, claim, from, to, changes).await.map_err(failed)? {
        let (current, stored) = stored(&mut tx, claim).await.map_err(failed)?;
        tx.rollback().await.map_err(failed)?;
        let partition = claim.partition;
        return Err(if current == claim.epoch {
            CommitError::Misplaced { partition, start: from, stored }
        } else {
            CommitError::Fenced { partition, held: claim.epoch, current }
        });
    }
    let elsewhere = applied_as_another_type(&mut tx, changes).await.map_err(failed)?;
    let (recordings, indexes) = insert_recordings(&mut tx, &changes.chunks).await.map_err(failed)?;
    let inserted = insert_events(&mut tx, changes).await.map_err(failed)?
        + insert_identifies(&mut tx, changes).await.map_err(failed)?
        + insert_applied(&mut tx, changes).await.map_err(failed)?
        + recordings;
    let to_insert =
        changes.events.len() + changes.identifies.len() + changes.applied.len() + changes.chunks.len();
    if elsewhere || inserted < to_insert as u64 {
        tx.rollback().await.map_err(failed)?;
        return Err(CommitError::Duplicates(applied(writer, changes).await.map_err(failed)?));
    }
    upsert_sessions(&mut tx, changes).await.map_err(failed)?;
    if changes.names_sessions {
        name_sessions(&mut tx, changes).await.map_err(failed)?;
    }
    insert_event_data(&mut tx, changes).await.map_err(failed)?;
    upsert_session_data(&mut tx, changes).await.map_err(failed)?;
    insert_revenue(&mut tx, changes).await.map_err(failed)?;
    insert_heatmap(&mut tx, &changes.heatmap, &indexes).await.map_err(failed)?;
    insert_dead_letters(&mut tx, claim, changes).await.map_err(failed)?;
    if to < from {
        set_dead_letters_aside(&mut tx, claim, to).await.map_err(failed)?;
    }
    note_missing(&mut tx, claim, &changes.missing).await.map_err(failed)?;
    let (profiles, changed) = profile::write(&mut *tx, changes).await.map_err(failed)?;
    tx.commit()
        .await
        .map_err(|error| CommitError::Unknown { partition: claim.partition, source: Said::cause(&error) })?;
    Ok((Committed { profiles }, changed))
}

/// What a driver's error means for a batch that is not committed yet.
fn failure(claim: &Claim, error: sqlx::Error) -> CommitError {
    let partition = claim.partition;
    let refused = match &error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // The primary code is the low byte: TOOBIG, CONSTRAINT, MISMATCH.
            code.parse::<i32>().is_ok_and(|code| [18, 19, 20].contains(&(code & 0xff)))
        }),
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    let source = Said::cause(&error);
    if refused {
        CommitError::Refused { partition, source }
    } else {
        CommitError::NotWritten { partition, source }
    }
}

async fn move_checkpoint(
    connection: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let passed = Passed::of(changes, from, to);
    let moved = sqlx::query(AssertSqlSafe(format!(
        "UPDATE dashi_checkpoint
         SET checkpoint = ?, applied = applied + ?, duplicate = duplicate + ?, dead = dead + ?,
             missing = missing + ?, markers = markers + ?, rewound = rewound + ?, fingerprint = ?,
             updated_at = {NOW_MS},
             last_error_over_at = CASE WHEN last_error IS NOT NULL THEN coalesce(last_error_over_at, {NOW_MS}) END
         WHERE log_id = ? AND partition = ? AND epoch = ? AND checkpoint = ?"
    )))
    .bind(to.offset().number() as i64)
    .bind(changes.outcomes.applied as i64)
    .bind(changes.outcomes.duplicate as i64)
    .bind(changes.outcomes.dead as i64)
    .bind(passed.missing)
    .bind(passed.markers)
    .bind(passed.rewound)
    .bind(changes.fingerprint)
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// Which of the events the tables hold already.
async fn applied(connection: &mut SqliteConnection, changes: &Changes) -> Result<Vec<Uuid>, sqlx::Error> {
    let ids = || event_ids(changes).chain(identify_ids(changes));
    let mut found = held(connection, "website_event", "event_id", ids()).await?;
    found.extend(held(connection, "dashi_identify", "event_id", ids()).await?);
    let chunks = changes.chunks.iter().map(|row| row.replay_id);
    found.extend(held(connection, "session_replay", "replay_id", chunks).await?);
    let records = changes.applied.iter().map(|row| row.record_id);
    found.extend(held(connection, "dashi_applied", "record_id", records).await?);
    Ok(found)
}

/// Whether an event is applied as an identify, or the other way round: an id is one event, whichever its type. The
/// inserts see their own table only.
async fn applied_as_another_type(
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

/// Ids as a parameter of `json_each`; `None` if there are none.
fn json_list(ids: impl Iterator<Item = Uuid>) -> Option<String> {
    let ids: Vec<String> = ids.map(|id| format!("\"{}\"", text(id))).collect();
    (!ids.is_empty()).then(|| format!("[{}]", ids.join(",")))
}

async fn insert_events(connection: &mut SqliteConnection, changes: &Changes) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::WEBSITE_EVENT, &changes.events, "ON CONFLICT (event_id) DO NOTHING").await
}

async fn insert_identifies(connection: &mut SqliteConnection, changes: &Changes) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::IDENTIFY, &changes.identifies, "ON CONFLICT (event_id) DO NOTHING").await
}

async fn insert_applied(connection: &mut SqliteConnection, changes: &Changes) -> Result<u64, sqlx::Error> {
    insert(connection, &tables::APPLIED, &changes.applied, "ON CONFLICT (record_id) DO NOTHING").await
}

/// Returns how many were inserted, and the index of each chunk.
async fn insert_recordings(
    connection: &mut SqliteConnection,
    rows: &[ChunkRow],
) -> Result<(u64, ChunkIndexes), sqlx::Error> {
    let Some(visits) = json_list(rows.iter().map(|row| row.visit_id)) else { return Ok(Default::default()) };
    let sessions = json_list(rows.iter().map(|row| row.session_id));
    let stored: Vec<(String, String, i32)> = sqlx::query_as(
        "SELECT session_id, visit_id, chunk_index FROM session_replay
         WHERE session_id IN (SELECT value FROM json_each(?)) AND visit_id IN (SELECT value FROM json_each(?))
           AND chunk_index >= ?",
    )
    .bind(sessions)
    .bind(visits)
    .bind(rows.iter().map(|row| row.chunk_index_min).min())
    .fetch_all(&mut *connection)
    .await?;
    let taken: Result<Vec<_>, sqlx::Error> = stored
        .iter()
        .map(|(session, visit, index)| Ok((parse_uuid(session)?, parse_uuid(visit)?, *index)))
        .collect();
    let placed = placed(rows, taken?);
    let indexes: ChunkIndexes = placed.into_iter().map(|(index, row)| (row.replay_id, index)).collect();
    let on_conflict = "ON CONFLICT (replay_id) DO NOTHING";
    let inserted = insert_indexed(connection, &tables::SESSION_REPLAY, rows, &indexes, on_conflict).await?;
    Ok((inserted, indexes))
}

/// A click that was both recorded and posted counts once, with what the post tells of it.
async fn insert_heatmap(
    connection: &mut SqliteConnection,
    rows: &[HeatmapRow],
    indexes: &ChunkIndexes,
) -> Result<(), sqlx::Error> {
    const SAME: &str = "visit_id = ? AND event_type = 1 AND url_path = ? AND x IS ? AND y IS ?
        AND created_at BETWEEN ? AND ?";
    let same = |sql: String, row: &HeatmapRow| {
        sqlx::query(AssertSqlSafe(sql))
            .bind(text(row.visit_id))
            .bind(row.url_path.clone())
            .bind(row.x)
            .bind(row.y)
            .bind(row.created_at_ms.saturating_sub(SAME_CLICK_MS))
            .bind(row.created_at_ms.saturating_add(SAME_CLICK_MS))
    };
    let (recorded, posted): (Vec<&HeatmapRow>, Vec<&HeatmapRow>) =
        rows.iter().partition(|row| row.recorded.is_some());
    insert_heatmap_rows(connection, &posted, indexes).await?;
    for row in posted.iter().filter(|row| row.kind == HeatmapKind::Click) {
        let sql = format!("DELETE FROM heatmap_event WHERE {SAME} AND replay_event_index IS NOT NULL");
        same(sql, row).execute(&mut *connection).await?;
    }
    let mut unposted = Vec::with_capacity(recorded.len());
    for row in recorded {
        let sql = format!("SELECT 1 FROM heatmap_event WHERE {SAME} AND replay_event_index IS NULL LIMIT 1");
        let is_click = row.kind == HeatmapKind::Click;
        if !is_click || same(sql, row).fetch_optional(&mut *connection).await?.is_none() {
            unposted.push(row);
        }
    }
    insert_heatmap_rows(connection, &unposted, indexes).await
}

async fn insert_heatmap_rows(
    connection: &mut SqliteConnection,
    rows: &[&HeatmapRow],
    indexes: &ChunkIndexes,
) -> Result<(), sqlx::Error> {
    let on_conflict = "ON CONFLICT (heatmap_event_id) DO NOTHING";
    insert_indexed(connection, &tables::HEATMAP_EVENT, rows, indexes, on_conflict).await?;
    Ok(())
}

/// Inserts new sessions, and fills those that were there by the fold's own rule; one that has nothing to gain is not
/// written.
async fn upsert_sessions(connection: &mut SqliteConnection, changes: &Changes) -> Result<(), sqlx::Error> {
    let Some(ids) = json_list(changes.sessions.iter().map(|row| row.session_id)) else { return Ok(()) };
    let stored: Vec<SqliteRow> = sqlx::query(
        "SELECT session_id, browser, os, device, screen, language, country, region, city, distinct_id
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
        let mut attributes = crate::profile::attributes(there[&row.session_id])?;
        if attributes.fill_from(row.said()) {
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

/// The last of the distinct ids that were said in a session goes into the session itself.
async fn name_sessions(connection: &mut SqliteConnection, changes: &Changes) -> Result<(), sqlx::Error> {
    let last: HashMap<Uuid, _> = changes.session_links.iter().map(|row| (row.session_id, row)).collect();
    for row in last.into_values() {
        sqlx::query(
            "UPDATE session SET distinct_id = ?1
             WHERE session_id = ?2 AND website_id = ?3 AND distinct_id IS NOT ?1",
        )
        .bind(row.distinct_id.clone())
        .bind(text(row.session_id))
        .bind(text(row.website_id))
        .execute(&mut *connection)
        .await?;
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

async fn insert_event_data(connection: &mut SqliteConnection, changes: &Changes) -> Result<(), sqlx::Error> {
    let on_conflict = "ON CONFLICT (event_data_id) DO NOTHING";
    insert(connection, &tables::EVENT_DATA, &changes.event_data, on_conflict).await?;
    Ok(())
}

/// A row of that session and key keeps its id.
async fn upsert_session_data(
    connection: &mut SqliteConnection,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    let table = &tables::SESSION_DATA;
    let replaced = table.table.replacing(&["session_id", "data_key"]);
    let on_conflict = format!("ON CONFLICT (session_id, data_key) DO UPDATE SET {replaced}");
    insert(connection, table, &changes.session_data, &on_conflict).await?;
    Ok(())
}

async fn insert_revenue(connection: &mut SqliteConnection, changes: &Changes) -> Result<(), sqlx::Error> {
    insert(connection, &tables::REVENUE, &changes.revenue, "ON CONFLICT (revenue_id) DO NOTHING").await?;
    Ok(())
}

async fn insert_dead_letters(
    connection: &mut SqliteConnection,
    claim: &Claim,
    changes: &Changes,
) -> Result<(), sqlx::Error> {
    for row in &changes.dead_letters {
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO dashi_dead_letter (log_id, partition, record_offset, reason, record, set_aside_at)
             VALUES (?, ?, ?, ?, ?, {NOW_MS}) ON CONFLICT DO NOTHING"
        )))
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(row.offset.number() as i64)
        .bind(row.reason.replace('\0', "\u{fffd}"))
        .bind(row.value.as_slice())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Offsets from `to` on may get other records, whose dead letters are not to meet these.
async fn set_dead_letters_aside(
    connection: &mut SqliteConnection,
    claim: &Claim,
    to: Checkpoint,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE dashi_dead_letter SET log_id = log_id || ? || ?
         WHERE log_id = ? AND partition = ? AND record_offset >= ?",
    )
    .bind(REWOUND)
    .bind(claim.epoch.to_string())
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .bind(to.offset().number() as i64)
    .execute(connection)
    .await?;
    Ok(())
}

/// One statement per range; there are few, and hardly ever any.
async fn note_missing(
    connection: &mut SqliteConnection,
    claim: &Claim,
    missing: &[Missing],
) -> Result<(), sqlx::Error> {
    for Missing { range, records, cause } in missing {
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO dashi_missing
                (log_id, partition, number, start_offset, end_offset, records, cause, noted_at)
             SELECT ?1, ?2, min(count(*), ?7), ?3, ?4, ?5, ?6, {NOW_MS}
             FROM dashi_missing WHERE log_id = ?1 AND partition = ?2
             ON CONFLICT (log_id, partition, number) DO UPDATE
             SET end_offset = max(end_offset, excluded.end_offset), records = records + excluded.records"
        )))
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(range.start.number() as i64)
        .bind(range.end.number() as i64)
        .bind(*records as i64)
        .bind(cause.name())
        .bind(RANGES_MAX - 1)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
