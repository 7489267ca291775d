//! Files of the formats 1 and 2, which have their records in a table: the records are moved into segments when the log is opened.
//!
//! All of it happens in one transaction of the catalogue, which ends with the table: a process that dies before that begins
//! again, no other one writes in the meantime, and an older program that still has the file open is refused by it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashi_domain::layout::Layout;
use dashi_domain::position::{Offset, Partition};
use futures::TryStreamExt as _;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use uuid::Uuid;

use super::appender::{Appender, FRAME_BYTES, Held};
use super::catalogue::{FORMAT, OFFSETS_PER_PARTITION, low_offsets, now_ms};
use super::frame::FrameBuilder;
use super::segments::Segments;

/// How often the progress is logged.
const PROGRESS: Duration = Duration::from_secs(2);

pub(super) async fn into_segments(
    connection: &mut SqliteConnection,
    path: &Path,
    directory: &Path,
    log: Uuid,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let format: i64 = sqlx::query_scalar("SELECT format FROM meta").fetch_one(&mut *tx).await?;
    if format >= FORMAT {
        return Ok(());
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let low = low_offsets(&mut tx).await?;
    let version: Option<u32> =
        sqlx::query_scalar("SELECT max(version) FROM layout").fetch_one(&mut *tx).await?;
    let layout = Layout { version: version.unwrap_or(0), partitions: low.len() as u32 };
    let segments = Arc::new(Segments::open(directory, log, (layout, low), now_ms())?);
    let mut appender = Appender::new(segments)?;
    let (moved, bytes) = move_records(&mut tx, &mut appender.hold(now_ms())?, layout, path).await?;
    sqlx::raw_sql(
        "INSERT INTO aside (id, session_id, size, value)
         SELECT id - (partitions << 40), session_id, length(value), value
         FROM record, (SELECT count(*) AS partitions FROM partition) WHERE id >= (partitions << 40);
         DROP TABLE record",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE meta SET format = ?").bind(FORMAT).execute(&mut *tx).await?;
    tx.commit().await?;
    tracing::info!(
        file = %path.display(), directory = %directory.display(), records = moved, bytes,
        "the records of the event log lie in segments now; older programs cannot open it any more"
    );
    // The space of the table goes back. Without it nothing is lost.
    if let Err(error) = sqlx::raw_sql("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await {
        tracing::warn!(error = %error, file = %path.display(), "the space of the old records cannot be given back; VACUUM does it");
    }
    Ok(())
}

/// Returns how many records were moved, and the bytes of their values.
async fn move_records(
    connection: &mut SqliteConnection,
    held: &mut Held<'_>,
    layout: Layout,
    path: &Path,
) -> Result<(u64, u64), sqlx::Error> {
    let end = i64::from(layout.partitions) * OFFSETS_PER_PARTITION;
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM record WHERE id < ?")
        .bind(end)
        .fetch_one(&mut *connection)
        .await?;
    let (mut frame, mut moved, mut bytes, mut noted) = (FrameBuilder::default(), 0, 0, Instant::now());
    let mut rows =
        sqlx::query("SELECT id, appended_at_ms, session_id, value FROM record WHERE id < ? ORDER BY id")
            .bind(end)
            .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let (id, key): (i64, String) = (row.try_get(0)?, row.try_get(2)?);
        let value: &[u8] = row.try_get(3)?;
        let key = Uuid::parse_str(&key).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let partition = Partition::new((id / OFFSETS_PER_PARTITION) as u32);
        let offset = Offset::new((id % OFFSETS_PER_PARTITION) as u64);
        if frame.bytes() > 0 && frame.bytes() + value.len() > FRAME_BYTES {
            held.write(&mut frame, layout)?;
        }
        frame.push(partition, offset, row.try_get(1)?, key, value);
        moved += 1;
        bytes += value.len() as u64;
        if noted.elapsed() >= PROGRESS {
            noted = Instant::now();
            tracing::info!(file = %path.display(), moved, of = total, "records of the event log are moved into segments");
        }
    }
    held.write(&mut frame, layout)?;
    Ok((moved, bytes))
}
