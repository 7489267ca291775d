//! The records that an import has in the log beyond its state: those that were appended in the moment before it was
//! killed. They are skipped when it goes on, so that the log does not get them twice.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_event_log::{EventLog, ReadLimit};
use uuid::Uuid;

use crate::ImportError;

/// Ids that are remembered, at most. Those beyond are appended again, and the projection counts them as duplicates.
const IDS_MAX: usize = 1_000_000;

const READ: ReadLimit = ReadLimit { records_max: 1_000, bytes_max: 4 << 20, wait: Duration::from_secs(2) };

/// The high watermarks.
pub(crate) async fn ends(log: &EventLog) -> Result<BTreeMap<u32, u64>, ImportError> {
    let mut ends = BTreeMap::new();
    for partition in log.partitions().await? {
        ends.insert(partition.number(), log.extent(partition).await?.high.number());
    }
    Ok(ends)
}

/// Identities of the records at and behind these offsets that an import may have appended. Of a partition that is not
/// among them, all are.
pub(crate) async fn appended_since(
    log: &EventLog,
    offsets: &BTreeMap<u32, u64>,
    may_be_ours: impl Fn(&LogRecord<'_>) -> bool,
) -> Result<HashSet<Uuid>, ImportError> {
    let mut found = HashSet::new();
    for partition in log.partitions().await? {
        let extent = log.extent(partition).await?;
        let from = offsets.get(&partition.number()).map_or(extent.low, |offset| Offset::new(*offset));
        read(log, partition, from.max(extent.low)..extent.high, &may_be_ours, &mut found).await?;
    }
    Ok(found)
}

async fn read(
    log: &EventLog,
    partition: Partition,
    offsets: std::ops::Range<Offset>,
    may_be_ours: &impl Fn(&LogRecord<'_>) -> bool,
    found: &mut HashSet<Uuid>,
) -> Result<(), ImportError> {
    if offsets.is_empty() {
        return Ok(());
    }
    let mut reader = log.reader(partition, offsets.start).await?;
    while reader.passed() < offsets.end && found.len() < IDS_MAX {
        let records = reader.next(READ).await?;
        if records.is_empty() && reader.passed() < offsets.end {
            // Markers at the end, or a broker that is slow: what is missed is appended again, and changes nothing.
            return Ok(());
        }
        for record in records.iter().filter(|record| record.offset < offsets.end) {
            match LogRecord::decode(&record.value) {
                Ok(decoded) if may_be_ours(&decoded) => drop(found.insert(decoded.id())),
                Ok(_) => {}
                Err(_) => drop(found.insert(Uuid::new_v5(&Uuid::nil(), &record.value))),
            }
        }
    }
    Ok(())
}
