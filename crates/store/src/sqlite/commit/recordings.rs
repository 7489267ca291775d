//! Chunks of recordings, and the heatmaps that are read out of them or posted.

use dashi_domain::rows::{ChunkRow, HeatmapKind, HeatmapRow};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::json_list;
use crate::chunk_index::{SAME_CLICK_MS, placed};
use crate::sqlite::insert::{ChunkIndexes, insert_indexed};
use crate::sqlite::{parse_uuid, text};
use crate::tables;

/// Returns how many were inserted, and the index of each chunk.
pub(super) async fn insert_recordings(
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

/// A click that was both recorded and posted counts once, with the columns of the post.
pub(super) async fn insert_heatmap(
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
