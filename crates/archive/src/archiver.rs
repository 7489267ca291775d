//! Archiving: closed ranges of the log's partitions become files.
//!
//! The order of the steps makes a kill at any of them harmless: a file is put whole, then the manifest that lists it, then
//! the file that it replaces is removed. A file that no manifest lists is removed by the next run.

use std::ops::Range;
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use dashi_domain::erasure::ErasureCopy;
use dashi_domain::missing::gaps;
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, Extent, LogError, ReadLimit, Reader};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, Loaded};
use crate::error::ArchiveError;
use crate::manifest::Segment;
use crate::rewrite::{RewriteReport, Rewriting};
use crate::segment::SegmentWriter;

/// How a log is archived.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveSettings {
    /// Records appended at this time or later stay out, in milliseconds since 1970. `None`: all records are archived that
    /// the log has when the run begins.
    pub until_ms: Option<i64>,
    /// A file is full when its lines have this many bytes before compression. The last file of a partition grows with
    /// each run until it is full. A run holds one file in memory.
    pub file_bytes_max: u64,
    /// Whether the embedded log's retention is to remove only records that this archive has, from this run on. A hold that
    /// an earlier run began is kept in any case; [`EventLog::release`] of [`holder`] ends it.
    pub hold: bool,
    /// Size of one read.
    pub read_limit: ReadLimit,
    /// The clock, in milliseconds since 1970.
    pub now_ms: fn() -> i64,
}

/// Progress of a run, in offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ArchiveProgress {
    /// Offsets that this run has archived.
    pub done: u64,
    /// Offsets that it is to archive.
    pub total: u64,
}

/// Result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct ArchiveReport {
    /// The log.
    pub log: String,
    /// In order.
    pub partitions: Vec<PartitionReport>,
    /// Records in whose place this run put a tombstone, because it archived an erasure that covers them.
    pub erased: u64,
    /// Whether the log's retention removes only records that this archive has.
    pub is_held: bool,
    /// Whether it came to its end; `false` if it was stopped. What it archived stays.
    pub complete: bool,
}

/// A partition's part of a run.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionReport {
    /// The partition.
    pub partition: u32,
    /// The first offset that this run archived.
    pub from: u64,
    /// The offset behind the last one that is archived now.
    pub to: u64,
    /// Records that it archived.
    pub records: u64,
    /// Files that it put; the last file of the run before may be one of them, longer now.
    pub files: u64,
    /// Size of these files.
    pub bytes: u64,
    /// Offsets that retention removed from the log before they were archived; the ends are exclusive.
    pub not_archived: Vec<[u64; 2]>,
}

/// How long the log may return no record although it has more.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// How old a file of an object store has to be before it is removed because no manifest lists it.
pub(crate) const UNLISTED_AGE_MS: i64 = 60 * 60 * 1_000;

/// Archives the records of all partitions that are not archived yet. Each partition goes on behind its last archived offset;
/// the log must still have the record there, if retention has not removed it. Erasures among them are applied to the files of
/// their partition. `report` is called after each read.
///
/// # Errors
/// [`ArchiveError::Taken`]: another process archives. [`ArchiveError::Parted`], [`ArchiveError::Damaged`],
/// [`ArchiveError::Manifest`]: an operator has to act. Any other: run it again. Files that were listed stay in any case.
#[boxed]
pub async fn archive(
    log: &EventLog,
    archive: &Archive,
    settings: ArchiveSettings,
    stop: &CancellationToken,
    report: &(dyn Fn(ArchiveProgress) + Send + Sync),
) -> Result<ArchiveReport, ArchiveError> {
    let _lock = archive.lock().await?;
    let mut jobs = Vec::new();
    for partition in log.partitions().await? {
        jobs.push(Job::plan(log, archive, settings, partition).await?);
    }
    let total = jobs.iter().map(Job::left).sum();
    let mut done = 0;
    report(ArchiveProgress { done, total });
    let mut partitions = Vec::new();
    for job in jobs {
        let work = job.left();
        let done_before = done;
        let outcome = job
            .run(stop, |offsets| report(ArchiveProgress { done: (done_before + offsets).min(total), total }))
            .await?;
        done += work;
        partitions.push(outcome);
    }
    let mut rewritten = RewriteReport::default();
    for part in &partitions {
        let partition = Partition::new(part.partition);
        if archive.manifest(partition).await?.rewrite_due && !stop.is_cancelled() {
            let mut work = Rewriting { log, archive, settings, partition, stop, result: &mut rewritten };
            work.run(|_| {}).await?;
        }
    }
    let holder = holder(archive);
    let is_held = if settings.hold || log.is_held(&holder).await? {
        let reached =
            |part: &PartitionReport| (Partition::new(part.partition), Checkpoint::at(Offset::new(part.to)));
        log.hold(&holder, &partitions.iter().map(reached).collect::<Vec<_>>()).await?
    } else {
        false
    };
    let complete = !stop.is_cancelled();
    Ok(ArchiveReport { log: log.id().to_string(), partitions, erased: rewritten.erased, is_held, complete })
}

/// The name under which an archive holds records of the embedded log.
pub fn holder(archive: &Archive) -> String {
    format!("archive {}", archive.place())
}

/// The archiving of one partition.
struct Job<'a> {
    log: &'a EventLog,
    archive: &'a Archive,
    settings: ArchiveSettings,
    partition: Partition,
    loaded: Loaded,
    /// The first offset that is not archived and that the log has.
    from: Offset,
    /// The first offset that is not to be archived.
    until: Offset,
    /// Whether a record that was archived is an erasure.
    has_erasure: bool,
    outcome: PartitionReport,
}

impl<'a> Job<'a> {
    async fn plan(
        log: &'a EventLog,
        archive: &'a Archive,
        settings: ArchiveSettings,
        partition: Partition,
    ) -> Result<Self, ArchiveError> {
        let loaded = archive.load(partition).await?;
        let before_ms = (settings.now_ms)() - UNLISTED_AGE_MS;
        archive.remove_unlisted(partition, &loaded.manifest, before_ms).await?;
        let Extent { low, high } = log.extent(partition).await?;
        let until = match settings.until_ms {
            Some(ms) => log.offset_at(partition, ms).await?.min(high),
            None => high,
        };
        let end = loaded.manifest.end();
        if let Some(end) = end.filter(|end| *end > high) {
            let source = LogError::Beyond { partition, from: end, high };
            return Err(ArchiveError::Parted { partition, end, source });
        }
        let reached = end.unwrap_or(Offset::ZERO);
        let from = reached.max(low);
        let mut outcome = PartitionReport {
            partition: partition.number(),
            from: from.number(),
            to: reached.number(),
            records: 0,
            files: 0,
            bytes: 0,
            not_archived: Vec::new(),
        };
        if reached < low {
            outcome.not_archived.push([reached.number(), low.number()]);
        }
        Ok(Self { log, archive, settings, partition, loaded, from, until, has_erasure: false, outcome })
    }

    /// Offsets that are to be archived.
    fn left(&self) -> u64 {
        self.until.number().saturating_sub(self.from.number())
    }

    async fn run(
        mut self,
        stop: &CancellationToken,
        report: impl Fn(u64),
    ) -> Result<PartitionReport, ArchiveError> {
        let begin = self.from;
        while self.from < self.until && !stop.is_cancelled() {
            let mut reader = self.reader().await?;
            let mut writer = self.begin().await?;
            let ended = self.fill(&mut reader, &mut writer, stop, |at: Offset| {
                report(at.number().saturating_sub(begin.number()));
            });
            let ended = ended.await;
            // Whatever was read is kept, also before an error.
            if writer.next() > self.from {
                self.close(writer).await?;
            }
            match ended {
                // Retention was faster; the part that it removed cannot be archived any more.
                Err(ArchiveError::Log(LogError::Trimmed { low, .. })) if low > self.from => {
                    self.outcome.not_archived.push([self.from.number(), low.number()]);
                    self.from = low;
                }
                ended => ended?,
            }
        }
        Ok(self.outcome)
    }

    /// A reader of the log that has proved that the log still has the last archived record.
    async fn reader(&self) -> Result<Reader, ArchiveError> {
        let last = self.loaded.manifest.segments.last().filter(|segment| segment.end() == self.from);
        let fingerprint = last.and_then(|segment| segment.fingerprint);
        let opened = self.log.reader_behind(self.partition, self.from, fingerprint).await;
        opened.map_err(|error| match error {
            LogError::Beyond { .. } | LogError::Rewritten { .. } => {
                ArchiveError::Parted { partition: self.partition, end: self.from, source: error }
            }
            error => error.into(),
        })
    }

    /// The writer of the next file. A last file that is not full is written again, with more records.
    async fn begin(&self) -> Result<SegmentWriter, ArchiveError> {
        let Some(last) = self.grows() else { return self.writer(self.from) };
        let Some(mut records) = self.archive.open(self.partition, last).await? else {
            return Err(self.archive.absent(self.partition, last, last.start()));
        };
        let mut writer = self.writer(last.start())?;
        while let Some(record) =
            records.next().map_err(|damage| self.archive.damaged(self.partition, last, damage))?
        {
            writer.record(&record).map_err(self.failed())?;
        }
        writer.erased(last.erased);
        writer.missing(last.missing());
        writer.pass(last.end());
        Ok(writer)
    }

    /// The last file, if the next records belong into it.
    fn grows(&self) -> Option<&Segment> {
        let last = self.loaded.manifest.segments.last()?;
        let grows = last.end() == self.from && last.plain_bytes < self.settings.file_bytes_max;
        grows.then_some(last)
    }

    /// Reads on and fills files until the end; the last one is left to the caller to close.
    async fn fill(
        &mut self,
        reader: &mut Reader,
        writer: &mut SegmentWriter,
        stop: &CancellationToken,
        report: impl Fn(Offset),
    ) -> Result<(), ArchiveError> {
        let mut idle_since = tokio::time::Instant::now();
        while writer.next() < self.until && !stop.is_cancelled() {
            let at = writer.next();
            let mut records = reader.next(self.settings.read_limit).await?;
            let to = reader.passed().min(self.until);
            records.retain(|record| record.offset < self.until);
            if to <= at {
                if idle_since.elapsed() >= STALL {
                    let (partition, waited_s) = (self.partition, STALL.as_secs());
                    return Err(ArchiveError::Stalled { partition, from: at, until: self.until, waited_s });
                }
                continue;
            }
            idle_since = tokio::time::Instant::now();
            let empty = gaps(Checkpoint::at(at), &records, Checkpoint::at(to));
            let lost = self.log.missing(self.partition, empty).await?;
            self.add(writer, &records, lost, to).await?;
            report(to);
        }
        Ok(())
    }

    /// Adds records and the lost offsets between them; closes files that are full.
    async fn add(
        &mut self,
        writer: &mut SegmentWriter,
        records: &[Record],
        lost: Vec<Range<Offset>>,
        to: Offset,
    ) -> Result<(), ArchiveError> {
        let mut lost = lost.into_iter().peekable();
        for record in records {
            if writer.plain_bytes() >= self.settings.file_bytes_max {
                let next = self.writer(writer.next())?;
                self.close(std::mem::replace(writer, next)).await?;
            }
            writer.missing(std::iter::from_fn(|| lost.next_if(|range| range.end <= record.offset)));
            writer.record(record).map_err(self.failed())?;
            self.has_erasure |= ErasureCopy::is(&record.value);
            self.outcome.records += 1;
        }
        writer.missing(lost);
        writer.pass(to);
        Ok(())
    }

    /// Puts a file and the manifest that lists it.
    async fn close(&mut self, writer: SegmentWriter) -> Result<(), ArchiveError> {
        let (segment, bytes) = writer.finish((self.settings.now_ms)()).map_err(self.failed())?;
        self.archive.put(self.partition, &segment, bytes).await?;
        self.from = segment.end();
        self.outcome.to = self.from.number();
        self.outcome.files += 1;
        self.outcome.bytes += segment.bytes;
        let segments = &mut self.loaded.manifest.segments;
        let replaced = segments.pop_if(|last| last.first == segment.first);
        segments.push(segment);
        // It covers records before it, which are archived by now.
        self.loaded.manifest.rewrite_due |= self.has_erasure;
        self.archive.save(self.partition, &mut self.loaded).await?;
        if let Some(replaced) = replaced {
            self.archive.remove(self.partition, &replaced).await?;
        }
        Ok(())
    }

    fn writer(&self, first: Offset) -> Result<SegmentWriter, ArchiveError> {
        SegmentWriter::new(first).map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> ArchiveError + use<> {
        ArchiveError::away("compressing a file of", self.archive.place().to_string())
    }
}

#[cfg(test)]
mod tests;
