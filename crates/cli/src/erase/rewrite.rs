//! Overwriting the records that an erasure covers, in an embedded log.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dashi_domain::erasure::{Coverage, Subject};
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::ReadLimit;
use uuid::Uuid;

use super::{Erasing, Placed};
use crate::progress::{State, Unit};

/// Records per read, and per transaction of the log: appends wait for no more than that.
const BATCH: ReadLimit =
    ReadLimit { records_max: 1_000, bytes_max: 4 * 1024 * 1024, wait: Duration::from_secs(5) };

/// Puts tombstones into the place of covered records. Returns how many.
pub async fn overwrite(erasing: &Erasing<'_>, website_id: Uuid, placed: &[Placed]) -> anyhow::Result<u64> {
    // Of a record that was set aside by the store, the outcome is known to the store only.
    let letters = erasing.store.dead_letters_with(&website_id.to_string()).await?;
    let dead: HashSet<(Partition, Offset)> = letters
        .iter()
        .filter(|letter| letter.place.log == *erasing.log.id())
        .map(|letter| (letter.place.partition, letter.place.offset))
        .collect();
    let mut partitions: BTreeMap<Partition, (Coverage, Offset)> = BTreeMap::new();
    for Placed { copy, partition, offset } in placed {
        // The first copy is the one that counts.
        let (coverage, end) =
            partitions.entry(*partition).or_insert_with(|| (Coverage::of(copy, *offset), *offset));
        coverage.add(&copy.sessions);
        *end = (*end).min(*offset);
    }
    let is_person = placed.iter().any(|placed| matches!(placed.copy.erasure.subject, Subject::Person(_)));
    let passes = if is_person { 2 } else { 1 };
    let mut total = 0;
    for (partition, (_, end)) in &partitions {
        let low = erasing.log.extent(*partition).await?.low;
        total += end.number().saturating_sub(low.number()) * passes;
    }
    let (mut done, mut overwritten) = (0, 0);
    for (partition, (mut coverage, end)) in partitions {
        if is_person {
            let mut learn = |records: &[Record]| {
                records.iter().for_each(|record| coverage.learn(record.offset, &record.value));
            };
            each(erasing, partition, end, &mut done, total, async |records| {
                learn(&records);
                Ok(())
            })
            .await?;
        }
        each(erasing, partition, end, &mut done, total, async |records| {
            let mut values = Vec::new();
            for record in &records {
                if !coverage.covers(record.offset, &record.value) {
                    continue;
                }
                let is_dead = dead.contains(&(partition, record.offset));
                let tombstone = coverage.tombstone(&record.value, record.appended_at_ms, is_dead);
                values.push((record.offset, tombstone));
            }
            if !values.is_empty() {
                overwritten += erasing.log.overwrite(partition, &values).await?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(overwritten)
}

/// Calls `f` with all records of a partition before `end`, some at a time.
async fn each(
    erasing: &Erasing<'_>,
    partition: Partition,
    end: Offset,
    done: &mut u64,
    total: u64,
    mut f: impl AsyncFnMut(Vec<Record>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let low = erasing.log.extent(partition).await?.low;
    let mut reader = erasing.log.reader(partition, low).await?;
    while reader.passed() < end {
        let before = reader.passed();
        let mut records = reader.next(BATCH).await?;
        if records.is_empty() && reader.passed() <= before {
            anyhow::bail!(
                "partition {partition}: no record came from offset {before} on; run the command again"
            );
        }
        *done += reader.passed().min(end).number().saturating_sub(before.number());
        records.retain(|record| record.offset < end);
        f(records).await?;
        let state = State { part: "overwriting", done: *done, total, unit: Unit::Of("records"), note: None };
        erasing.display.show(state);
    }
    Ok(())
}
