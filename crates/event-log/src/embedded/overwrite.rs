//! Overwriting records, for erasures: the catalogue gets the value that takes their place, and the file zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use dashi_domain::position::{Offset, Partition};
use sqlx::Connection as _;

use super::EmbeddedLog;
use super::catalogue::{OFFSETS_PER_PARTITION, renew};
use super::cursor::{Cursor, Found};
use super::frame;
use super::read::blocking;
use super::segments::Segments;
use crate::LogError;

/// Records that are read at once on the way to those that are overwritten.
const READ: (usize, usize) = (1_000, 4 << 20);

const OVERWRITING: &str = "overwriting records";

/// The catalogue's key of an overwritten record.
pub(super) fn overwritten_id(partition: Partition, offset: Offset) -> i64 {
    i64::from(partition.number()) * OFFSETS_PER_PARTITION + offset.number() as i64
}

impl EmbeddedLog {
    /// The catalogue has the values before the file loses its own: if the process dies in between, the record is still what
    /// it was, and the next call overwrites it.
    pub(crate) async fn overwrite(
        &self,
        partition: Partition,
        values: &[(Offset, Vec<u8>)],
    ) -> Result<u64, LogError> {
        let low = self.extent(partition).await?.low;
        let mut offsets: Vec<Offset> =
            values.iter().map(|(offset, _)| *offset).filter(|offset| *offset >= low).collect();
        offsets.sort_unstable();
        let segments = Arc::clone(&self.0.segments);
        let records = blocking(move || find(&segments, partition, &offsets))
            .await
            .map_err(LogError::away(OVERWRITING))?;
        let mut housekeeper = self.0.housekeeper.lock().await;
        let noted = async {
            let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
            for (offset, value) in values {
                if records.binary_search_by_key(offset, |record| record.offset).is_ok() {
                    sqlx::query("INSERT INTO overwritten (id, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value")
                        .bind(overwritten_id(partition, *offset))
                        .bind(value.as_slice())
                        .execute(&mut *tx)
                        .await?;
                }
            }
            tx.commit().await
        }
        .await;
        if noted.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        noted.map_err(LogError::away(OVERWRITING))?;
        let (segments, count) = (Arc::clone(&self.0.segments), records.len() as u64);
        blocking(move || zero(&segments, &records)).await.map_err(LogError::away(OVERWRITING))?;
        Ok(count)
    }
}

/// The records with these offsets, in their order, as far as they are there.
fn find(segments: &Arc<Segments>, partition: Partition, offsets: &[Offset]) -> io::Result<Vec<Found>> {
    let (mut found, mut cursor) = (Vec::new(), None::<Cursor>);
    for offset in offsets {
        let is_far =
            |cursor: &Cursor| cursor.next() > *offset || cursor.next().number() + 100_000 < offset.number();
        if cursor.as_ref().is_none_or(is_far) {
            cursor = Some(Cursor::new(Arc::clone(segments), partition, *offset));
        }
        let Some(cursor) = &mut cursor else { continue };
        while cursor.next() <= *offset {
            let left = (offset.number() - cursor.next().number() + 1) as usize;
            let records = cursor.read(left.min(READ.0), READ.1)?;
            let Some(last) = records.last() else { break };
            if last.offset == *offset {
                found.extend(records.into_iter().next_back());
            }
        }
    }
    Ok(found)
}

fn zero(segments: &Segments, records: &[Found]) -> io::Result<()> {
    let mut open: Option<(u64, File)> = None;
    for record in records {
        let (base, at) = record.at;
        if open.as_ref().is_none_or(|(of, _)| *of != base) {
            if let Some((_, file)) = open.take() {
                file.sync_data()?;
            }
            open = Some((base, File::options().write(true).open(segments.path(base))?));
        }
        if let Some((_, file)) = &open {
            file.write_all_at(&frame::overwritten(record.value.len()), at - base)?;
        }
    }
    open.map_or(Ok(()), |(_, file)| file.sync_data())
}
