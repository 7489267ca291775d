//! The plan of a replay: the records that it would read, estimated from a sample of the log. It writes nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use dashi_domain::fold::FoldRules;
use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, Extent, LogError, ReadLimit, Reader};
use serde::Serialize;
use uuid::Uuid;

use crate::fold_panic::catching;
use crate::settings::Fold;

/// The part of the log that a plan is of.
#[derive(Debug, Clone, Copy)]
pub struct PlanScope {
    /// Where it begins, inclusive.
    pub from: PlanFrom,
    /// Only records appended before this time, in milliseconds since 1970; `None` for all.
    pub until_ms: Option<i64>,
    /// Count the records of this website, link or pixel.
    pub website: Option<Uuid>,
}

/// Where a plan begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanFrom {
    /// The beginning of the log, as a rebuild.
    Beginning,
    /// This offset of every partition.
    Offset(Offset),
    /// The first record of every partition that was appended at this time or later; milliseconds since 1970.
    Time(i64),
}

/// The plan of a replay. All but `records_max`, `removed` and `partitions` are estimates from the sample.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayPlan {
    /// Partitions of the log.
    pub partitions: usize,
    /// Offsets of the part: an upper bound on its records, exact where offsets have no gaps.
    pub records_max: u64,
    /// Offsets of the part that retention has removed from the log.
    pub removed: u64,
    /// Bytes of the records' values.
    pub bytes: u64,
    /// When the first record of the part was appended; milliseconds since 1970. `None` if the part is empty.
    pub first_appended_at_ms: Option<i64>,
    /// When the last one was.
    pub last_appended_at_ms: Option<i64>,
    /// Records of the website, if one was named.
    pub website_records: Option<u64>,
    /// Seconds that decoding and folding the part takes on one core.
    pub fold_s: f64,
    /// The sample behind the estimates.
    pub sample: Sample,
}

/// The records of a sample.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sample {
    /// How many.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Those of the website.
    pub of_website: u64,
    /// Those that would become dead letters.
    pub dead: u64,
    /// Seconds that decoding and folding them took.
    pub fold_s: f64,
}

/// Places that are read, over all partitions, at most; one per partition at least.
const PLACES_MAX: usize = 64;

/// Records that are read at a place.
const PLACE: ReadLimit =
    ReadLimit { records_max: 256, bytes_max: 4 * 1024 * 1024, wait: Duration::from_secs(2) };

/// Makes the plan of a replay. `report` is called with the places read and their number.
///
/// # Errors
/// The log does not answer.
pub async fn plan(
    log: &EventLog,
    scope: PlanScope,
    fold: Fold,
    rules: &FoldRules,
    report: impl Fn(u64, u64),
) -> Result<ReplayPlan, LogError> {
    let partitions = log.partitions().await?;
    let mut parts = Vec::new();
    let mut removed = 0;
    for partition in &partitions {
        let part = part(log, *partition, scope).await?;
        removed += part.removed;
        parts.push(part);
    }
    let per_partition = (PLACES_MAX / partitions.len().max(1)).max(1);
    let places: Vec<_> = parts.iter().map(|part| (part, part.places(per_partition))).collect();
    let total = places.iter().map(|(_, places)| places.len() as u64).sum();
    let (mut sample, mut done) = (Sample::default(), 0);
    let (mut first_ms, mut last_ms) = (None::<i64>, None::<i64>);
    for (part, places) in places {
        let mut reader: Option<Reader> = None;
        for place in places {
            let records = read(log, &mut reader, part, place).await?;
            let times = || records.iter().map(|record| record.appended_at_ms);
            first_ms = times().chain(first_ms).min();
            last_ms = times().chain(last_ms).max();
            sample.add(records, scope.website, fold, rules).await;
            done += 1;
            report(done, total);
        }
    }
    let records_max: u64 = parts.iter().map(|part| part.end.number() - part.begin.number()).sum();
    let scaled = |amount: f64| amount / sample.records.max(1) as f64 * records_max as f64;
    Ok(ReplayPlan {
        partitions: partitions.len(),
        records_max,
        removed,
        bytes: scaled(sample.bytes as f64) as u64,
        first_appended_at_ms: first_ms,
        last_appended_at_ms: last_ms,
        website_records: scope.website.map(|_| scaled(sample.of_website as f64) as u64),
        fold_s: scaled(sample.fold_s),
        sample,
    })
}

/// The part of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    partition: Partition,
    /// Inclusive.
    begin: Offset,
    /// Exclusive.
    end: Offset,
    /// Offsets of the part below the low end of the log.
    removed: u64,
}

async fn part(log: &EventLog, partition: Partition, scope: PlanScope) -> Result<Part, LogError> {
    let Extent { low, high } = log.extent(partition).await?;
    let (from, removed) = match scope.from {
        PlanFrom::Beginning => (low, low.number()),
        PlanFrom::Offset(offset) => (offset, low.number().saturating_sub(offset.number())),
        PlanFrom::Time(at_ms) => (log.offset_at(partition, at_ms).await?, 0),
    };
    let end = match scope.until_ms {
        Some(until_ms) => log.offset_at(partition, until_ms).await?.clamp(low, high),
        None => high,
    };
    Ok(Part { partition, begin: from.max(low).min(end), end, removed })
}

impl Part {
    /// Which offsets to read: ranges that lie evenly over the part, its first and its last records among them.
    fn places(&self, at_most: usize) -> Vec<Range<Offset>> {
        let (begin, length) = (self.begin.number(), self.end.number() - self.begin.number());
        let wide = PLACE.records_max as u64;
        let count = length.div_ceil(wide).min(at_most.max(1) as u64);
        let last = length.saturating_sub(wide);
        let start = |place: u64| Offset::new(begin + last * place / (count - 1).max(1));
        let end = |place| if place + 1 < count { start(place + 1) } else { self.end };
        (0..count).map(|place| start(place)..end(place)).collect()
    }
}

/// Reads the records of one place, at most so many as [`PLACE`] allows.
async fn read(
    log: &EventLog,
    reader: &mut Option<Reader>,
    part: &Part,
    place: Range<Offset>,
) -> Result<Vec<Record>, LogError> {
    let reader = match reader {
        Some(reader) => {
            reader.seek(place.start);
            reader
        }
        None => reader.insert(log.reader(part.partition, place.start).await?),
    };
    let mut records = reader.next(PLACE).await?;
    records.retain(|record| record.offset < place.end);
    Ok(records)
}

impl Sample {
    async fn add(&mut self, records: Vec<Record>, website: Option<Uuid>, fold: Fold, rules: &FoldRules) {
        let rules = rules.clone();
        let measured = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            // A panic of the fold is a dead letter in a replay; here its records only do not count.
            let dead = catching(|| fold(&records, &HashSet::new(), &rules).outcomes.dead).unwrap_or_default();
            let fold_s = began.elapsed().as_secs_f64();
            let is_of = |record: &&Record| {
                let decoded = LogRecord::decode(&record.value);
                website.is_some() && decoded.is_ok_and(|decoded| Some(decoded.source_id()) == website)
            };
            let of_website = records.iter().filter(is_of).count() as u64;
            let bytes = records.iter().map(|record| record.value.len() as u64).sum();
            Self { records: records.len() as u64, bytes, of_website, dead, fold_s }
        });
        if let Ok(more) = measured.await {
            self.records += more.records;
            self.bytes += more.bytes;
            self.of_website += more.of_website;
            self.dead += more.dead;
            self.fold_s += more.fold_s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(begin: u64, end: u64, at_most: usize) -> Vec<(u64, u64)> {
        let (begin, end) = (Offset::new(begin), Offset::new(end));
        let part = Part { partition: Partition::new(0), begin, end, removed: 0 };
        let places = part.places(at_most).into_iter();
        places.map(|place| (place.start.number(), place.end.number())).collect()
    }

    #[test]
    fn places_lie_evenly_and_reach_the_end() {
        assert_eq!(places(7, 7, 8), [], "an empty part");
        assert_eq!(places(7, 8, 8), [(7, 8)]);
        assert_eq!(places(0, 256, 8), [(0, 256)]);
        assert_eq!(places(0, 300, 8), [(0, 44), (44, 300)], "no record is read twice");
        let starts: Vec<_> = places(100, 100 + 2_560, 4).iter().map(|place| place.0).collect();
        assert_eq!(starts, [100, 868, 1_636, 2_404]);
        assert_eq!(places(0, 1_000_000, 1), [(0, 1_000_000)]);
        assert_eq!(places(0, 1_000_000, 8).last(), Some(&(1_000_000 - 256, 1_000_000)));
    }
}
