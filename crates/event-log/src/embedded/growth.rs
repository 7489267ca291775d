//! Growing: one frame has the barriers of all partitions, and is the first one of the new layout.

use std::io;
use std::sync::Arc;

use async_recursion::async_recursion as boxed;
use dashi_domain::layout::{Barrier, Layout, Passed};
use dashi_domain::position::{LogId, Offset};
use sqlx::{Connection as _, SqliteConnection};
use uuid::Uuid;

use super::EmbeddedLog;
use super::appender::Appender;
use super::catalogue::{add_partitions, now_ms, renew};
use super::frame::FrameBuilder;
use super::read::blocking;
use super::segments::Segments;
use crate::LogError;

impl EmbeddedLog {
    /// The layouts, by version; the last one is in force.
    ///
    /// # Errors
    /// The file does not answer.
    #[boxed]
    pub async fn layouts(&self) -> Result<Vec<Layout>, LogError> {
        let away = |error| LogError::away("reading its layouts")(error);
        let rows: Vec<(u32, u32)> = sqlx::query_as("SELECT version, partitions FROM layout ORDER BY version")
            .fetch_all(&self.0.readers)
            .await
            .map_err(away)?;
        if rows.is_empty() {
            return Ok(vec![Layout { version: 0, partitions: self.partition_count() }]);
        }
        Ok(rows.into_iter().map(|(version, partitions)| Layout { version, partitions }).collect())
    }

    /// Lets the log grow to so many partitions; returns the layout that is in force then, which has more if it had more
    /// before. The barriers of all partitions are one frame: with it the log has grown, and every append behind it, of whichever
    /// process, is spread over the new number. Durable on return.
    ///
    /// # Errors
    /// The files cannot be written. Either nothing changed, or the log has grown and the next process that opens it notes it.
    #[boxed]
    pub async fn grow(&self, to: u32) -> Result<Layout, LogError> {
        let away = LogError::away("growing");
        let (segments, log) = (Arc::clone(&self.0.segments), self.0.id.clone());
        let now_ms = now_ms();
        let grown = blocking(move || append_barriers(segments, &log, to, now_ms)).await;
        let (before, layout) = grown.map_err(LogError::away("growing"))?;
        let mut housekeeper = self.0.housekeeper.lock().await;
        let noted = note_layout(&mut housekeeper, before, layout, now_ms).await;
        if noted.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        noted.map_err(away)?;
        Ok(layout)
    }
}

/// Appends the barriers; returns the layouts before and behind them, which are one if the log has as many partitions.
fn append_barriers(
    segments: Arc<Segments>,
    log: &LogId,
    to: u32,
    now_ms: i64,
) -> io::Result<(Layout, Layout)> {
    let mut appender = Appender::new(segments)?;
    let mut held = appender.hold(now_ms)?;
    let (before, mut next) = held.with(|state| (state.layout, state.next.clone()));
    if to <= before.partitions {
        return Ok((before, before));
    }
    let layout = Layout { version: before.version + 1, partitions: to };
    next.resize(to as usize, 0);
    let mut frame = FrameBuilder::default();
    let passed = Passed { version: layout.version, from: before.partitions, to };
    for (barrier, offset) in Barrier::all(log, passed, now_ms).zip(next) {
        frame.push(barrier.partition, Offset::new(offset), now_ms, Uuid::nil(), &barrier.encode());
    }
    held.write(&mut frame, layout)?;
    Ok((before, layout))
}

/// Notes in the catalogue by which layout the log goes, and the one before it. Durable on return.
pub(super) async fn note_layout(
    connection: &mut SqliteConnection,
    before: Layout,
    layout: Layout,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    if layout.version == 0 {
        return Ok(());
    }
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    add_partitions(&mut tx, 0, layout.partitions).await?;
    let begun = |layout: Layout| if layout.version == 0 { 0 } else { now_ms };
    for layout in [before, layout] {
        sqlx::query(
            "INSERT INTO layout (version, partitions, begun_at_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(layout.version)
        .bind(layout.partitions)
        .bind(begun(layout))
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await
}
