//! Chunks of recordings, and the heatmaps that are read out of them or posted.

use dashi_domain::rows::{ChunkRow, HeatmapKind, HeatmapRow};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::chunk_index::{SAME_CLICK_MS, placed};
use crate::postgres::catalogue::Catalogue;
use crate::postgres::insert::{ChunkIndexes, bind, insert_sql};
use crate::postgres::pool::Session;
use crate::tables;

/// Returns how many were inserted, and the index of each chunk.
pub(super) async fn insert_recordings(
    connection: &mut Session,
    rows: &[ChunkRow],
    catalogue: &Catalogue,
) -> Result<(u64, ChunkIndexes), sqlx::Error> {
    if rows.is_empty() {
        return Ok(Default::default());
    }
    let taken: Vec<(Uuid, Uuid, i32)> = sqlx::query_as(
        "/* taken */
         SELECT session_id, visit_id, chunk_index FROM session_replay
         WHERE session_id = ANY($1) AND visit_id = ANY($2) AND chunk_index >= $3",
    )
    .bind(column!(rows, row => row.session_id))
    .bind(column!(rows, row => row.visit_id))
    .bind(rows.iter().map(|row| row.chunk_index_min).min())
    .fetch_all(&mut *connection)
    .await?;
    let placed = placed(rows, taken);
    let indexes: ChunkIndexes = placed.into_iter().map(|(index, row)| (row.replay_id, index)).collect();
    let table = &tables::SESSION_REPLAY;
    let sql = insert_sql(table, "insert_recordings", Some(catalogue), "ON CONFLICT (replay_id) DO NOTHING");
    let inserted = bind(table, sql, rows, &indexes).execute(connection).await?;
    Ok((inserted.rows_affected(), indexes))
}

/// Removes clicks of recordings that were posted as well: each click counts once, with the columns of the post.
pub(super) async fn remove_recorded_clicks(
    connection: &mut Session,
    posted: &[&HeatmapRow],
    catalogue: &Catalogue,
) -> Result<(), sqlx::Error> {
    let clicks: Vec<_> = posted.iter().filter(|row| row.kind == HeatmapKind::Click).collect();
    if clicks.is_empty() || !catalogue.distinguishes_recorded_clicks() {
        return Ok(());
    }
    sqlx::query(AssertSqlSafe(format!(
        "/* remove_recorded_clicks */
         DELETE FROM heatmap_event AS h
         USING unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::bigint[])
         AS t (visit_id, url_path, x, y, created_at)
         WHERE h.visit_id = t.visit_id AND h.event_type = 1 AND h.replay_event_index IS NOT NULL
             AND h.url_path = t.url_path AND h.x IS NOT DISTINCT FROM t.x AND h.y IS NOT DISTINCT FROM t.y
             AND h.created_at BETWEEN dashi.at_ms(t.created_at - {SAME_CLICK_MS})
                 AND dashi.at_ms(t.created_at + {SAME_CLICK_MS})"
    )))
    .bind(column!(clicks, row => row.visit_id))
    .bind(column!(clicks, row => row.url_path.as_str()))
    .bind(column!(clicks, row => row.x))
    .bind(column!(clicks, row => row.y))
    .bind(column!(clicks, row => row.created_at_ms))
    .execute(connection)
    .await?;
    Ok(())
}

/// Rows of the heatmap, in the columns that this version has of them, less recorded clicks that were posted.
pub(super) async fn insert_heatmap(
    connection: &mut Session,
    rows: &[&HeatmapRow],
    indexes: &ChunkIndexes,
    catalogue: &Catalogue,
) -> Result<(), sqlx::Error> {
    let posted = if catalogue.has_column("heatmap_event", "replay_event_index") {
        "h.replay_event_index IS NULL"
    } else {
        "true"
    };
    let rest = format!(
        "WHERE t.replay_event_index IS NULL OR t.event_type <> 1 OR NOT EXISTS (
             SELECT 1 FROM heatmap_event AS h
             WHERE h.visit_id = t.visit_id AND h.event_type = 1 AND {posted}
                 AND h.url_path = t.url_path AND h.x IS NOT DISTINCT FROM t.x AND h.y IS NOT DISTINCT FROM t.y
                 AND h.created_at BETWEEN dashi.at_ms(t.created_at - {SAME_CLICK_MS})
                     AND dashi.at_ms(t.created_at + {SAME_CLICK_MS}))
         ON CONFLICT DO NOTHING"
    );
    let table = &tables::HEATMAP_EVENT;
    let sql = insert_sql(table, "insert_heatmap", Some(catalogue), &rest);
    bind(table, sql, rows, indexes).execute(connection).await?;
    Ok(())
}
