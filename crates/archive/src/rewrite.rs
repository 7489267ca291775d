//! Erasures in an archive: tombstones take the places of the records that erasures cover.
//!
//! An erasure is a record of the log (see [`dashi_domain::erasure`]), and covers the records before it in its partition.
//! A file that has covered records is written again with tombstones under another name; then the manifest lists that one,
//! then the old file is removed. So a kill leaves each file either as it was or as it is to be, and the next run goes on.

use std::collections::BTreeMap;

use async_recursion::async_recursion as boxed;
use dashi_domain::erasure::{Coverage, ErasureCopy, Subject};
use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, LogError};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::archive::{Archive, Loaded};
use crate::archiver::{ArchiveSettings, STALL, UNLISTED_AGE_MS};
use crate::error::ArchiveError;
use crate::manifest::{Segment, rewritten_file};
use crate::segment::SegmentWriter;

/// Result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RewriteReport {
    /// The log.
    pub log: String,
    /// Erasures that were found, of which each may have a copy in every partition.
    pub erasures: u64,
    /// Files that were written again.
    pub files: u64,
    /// Records in whose place this run put a tombstone.
    pub erased: u64,
    /// Whether it came to its end; `false` if it was stopped. Files that were written again stay so.
    pub complete: bool,
}

/// Progress of a run, in records that were read; files are read up to three times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RewriteProgress {
    /// Records that were read.
    pub done: u64,
    /// Records in the archive, three times each: an upper bound.
    pub total: u64,
}

/// Applies the erasures that are in the archive or in the log to all files of the archive. `report` is called after each
/// part that was read.
///
/// # Errors
/// As [`archive`](crate::archive()).
#[boxed]
pub async fn rewrite(
    log: &EventLog,
    archive: &Archive,
    settings: ArchiveSettings,
    stop: &CancellationToken,
    report: &(dyn Fn(RewriteProgress) + Send + Sync),
) -> Result<RewriteReport, ArchiveError> {
    let _lock = archive.lock().await?;
    let partitions = archive.partitions().await?;
    let mut total = 0;
    for partition in &partitions {
        let manifest = archive.manifest(*partition).await?;
        total += 3 * manifest.segments.iter().map(|segment| segment.records).sum::<u64>();
    }
    let mut result = RewriteReport { log: archive.log().to_string(), ..RewriteReport::default() };
    let (mut erasures, mut done) = (std::collections::HashSet::new(), 0);
    for partition in partitions {
        let mut work = Rewriting { log, archive, settings, partition, stop, result: &mut result };
        let found = work
            .run(|records| {
                done += records;
                report(RewriteProgress { done: done.min(total), total });
            })
            .await?;
        erasures.extend(found);
    }
    result.erasures = erasures.len() as u64;
    result.complete = !stop.is_cancelled();
    Ok(result)
}

/// The rewriting of one partition.
pub(crate) struct Rewriting<'a> {
    pub log: &'a EventLog,
    pub archive: &'a Archive,
    pub settings: ArchiveSettings,
    pub partition: Partition,
    pub stop: &'a CancellationToken,
    pub result: &'a mut RewriteReport,
}

impl Rewriting<'_> {
    /// Rewrites the files. Returns the erasures that have a copy in this partition.
    pub(crate) async fn run(&mut self, mut report: impl FnMut(u64)) -> Result<Vec<Uuid>, ArchiveError> {
        let mut loaded = self.archive.load(self.partition).await?;
        let before_ms = (self.settings.now_ms)() - UNLISTED_AGE_MS;
        self.archive.remove_unlisted(self.partition, &loaded.manifest, before_ms).await?;
        let mut coverages = self.find(&mut report).await?;
        let erasures = coverages.keys().copied().collect();
        if coverages.values().any(|erasure| erasure.learns) {
            let learn = |record: &Record| {
                for erasure in coverages.values_mut().filter(|erasure| erasure.learns) {
                    erasure.coverage.learn(record.offset, &record.value);
                }
            };
            self.each(learn, &mut report).await?;
        }
        let mut at = 0;
        while at < loaded.manifest.segments.len() && !self.stop.is_cancelled() {
            let segment = loaded.manifest.segments[at].clone();
            report(segment.records);
            if coverages.values().any(|erasure| erasure.before > segment.start()) {
                self.rewrite(&mut loaded, at, &segment, &mut coverages).await?;
            }
            at += 1;
        }
        if loaded.manifest.rewrite_due && !self.stop.is_cancelled() {
            loaded.manifest.rewrite_due = false;
            self.archive.save(self.partition, &mut loaded).await?;
        }
        Ok(erasures)
    }

    /// The erasures that have a copy in this partition, in the archive or behind it in the log.
    async fn find(&self, report: &mut impl FnMut(u64)) -> Result<BTreeMap<Uuid, ErasureHere>, ArchiveError> {
        let mut found: BTreeMap<Uuid, ErasureHere> = BTreeMap::new();
        let look = |record: &Record| {
            if !ErasureCopy::is(&record.value) {
                return;
            }
            let Ok(LogRecord::Erasure(copy)) = LogRecord::decode(&record.value) else { return };
            // The first copy is the one that counts; further ones name more sessions.
            let erasure = found.entry(copy.erasure.erasure_id).or_insert_with(|| ErasureHere {
                coverage: Coverage::of(&copy, record.offset),
                before: record.offset,
                learns: matches!(copy.erasure.subject, Subject::Person(_)),
            });
            erasure.coverage.add(&copy.sessions);
        };
        self.each(look, report).await?;
        Ok(found)
    }

    /// Calls `see` with all records of the partition: those of the archive, then those behind it in the log.
    async fn each(
        &self,
        mut see: impl FnMut(&Record),
        report: &mut impl FnMut(u64),
    ) -> Result<(), ArchiveError> {
        let (mut archived, mut at) = (self.archive.reader(self.partition), Offset::ZERO);
        let limit = self.settings.read_limit;
        while let Some(part) = archived.next(at, Offset::new(u64::MAX), limit).await? {
            part.records.iter().for_each(&mut see);
            report(part.records.len() as u64);
            at = part.to;
            if self.stop.is_cancelled() {
                return Ok(());
            }
        }
        let extent = self.log.extent(self.partition).await?;
        at = at.max(extent.low);
        let mut reader = self.log.reader(self.partition, at).await?;
        let mut idle_since = tokio::time::Instant::now();
        while at < extent.high && !self.stop.is_cancelled() {
            match reader.next(limit).await {
                Err(LogError::Trimmed { low, .. }) => reader.seek(low),
                records => records?.iter().for_each(&mut see),
            }
            if reader.passed() > at {
                (at, idle_since) = (reader.passed(), tokio::time::Instant::now());
            } else if idle_since.elapsed() >= STALL {
                let (partition, until, waited_s) = (self.partition, extent.high, STALL.as_secs());
                return Err(ArchiveError::Stalled { partition, from: at, until, waited_s });
            }
        }
        Ok(())
    }

    /// Writes a file again, if it has covered records.
    async fn rewrite(
        &mut self,
        loaded: &mut Loaded,
        at: usize,
        segment: &Segment,
        coverages: &mut BTreeMap<Uuid, ErasureHere>,
    ) -> Result<(), ArchiveError> {
        let Some(mut records) = self.archive.open(self.partition, segment).await? else {
            return Err(self.archive.absent(self.partition, segment, segment.start()));
        };
        let failed = || ArchiveError::away("compressing a file of", self.archive.place().to_string());
        let mut writer = SegmentWriter::new(segment.start()).map_err(failed())?;
        let mut erased = 0;
        while let Some(mut record) =
            records.next().map_err(|damage| self.archive.damaged(self.partition, segment, damage))?
        {
            let covering =
                coverages.values_mut().find(|erasure| erasure.coverage.covers(record.offset, &record.value));
            if let Some(erasure) = covering {
                // Which decodable records the store had set aside is not known any more.
                record.value = erasure.coverage.tombstone(&record.value, record.appended_at_ms, false);
                erased += 1;
            }
            writer.record(&record).map_err(failed())?;
        }
        if erased == 0 {
            return Ok(());
        }
        writer.missing(segment.missing());
        writer.pass(segment.end());
        writer.erased(segment.erased + erased);
        let (mut new, bytes) = writer.finish((self.settings.now_ms)()).map_err(failed())?;
        new.file = rewritten_file(&new);
        self.archive.put(self.partition, &new, bytes).await?;
        loaded.manifest.segments[at] = new;
        self.archive.save(self.partition, loaded).await?;
        self.archive.remove(self.partition, segment).await?;
        self.result.files += 1;
        self.result.erased += erased;
        Ok(())
    }
}

/// An erasure as it is in one partition.
struct ErasureHere {
    coverage: Coverage,
    /// The offset of its first copy.
    before: Offset,
    /// Whether it learns from records which sessions it covers.
    learns: bool,
}
