//! Reading a partition's archive in the order of its offsets, for a replay.

use std::ops::Range;

use async_recursion::async_recursion as boxed;
use dashi_domain::missing::MissingCause;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::ReadLimit;

use crate::archive::Archive;
use crate::error::ArchiveError;
use crate::manifest::{Manifest, Segment};
use crate::segment::{Damage, SegmentReader};

/// Part of a partition, read from its archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Archived {
    /// In the order of their offsets; none if the part has only offsets without records.
    pub records: Vec<Record>,
    /// The offset behind the part: behind the last record if there is one.
    pub to: Offset,
    /// Offsets of the part whose records are missing, and why.
    pub missing: Vec<(Range<Offset>, MissingCause)>,
}

/// Reads the archive of one partition.
#[derive(Debug)]
pub struct ArchiveReader {
    archive: Archive,
    partition: Partition,
    manifest: Option<Manifest>,
    open: Option<Open>,
}

/// The file that is being read.
struct Open {
    segment: Segment,
    reader: SegmentReader,
    /// The offset behind the part that was returned.
    at: Offset,
    /// A record that was read and not returned yet.
    ahead: Option<Record>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("segment", &self.segment).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Archive {
    /// A reader of one partition.
    pub fn reader(&self, partition: Partition) -> ArchiveReader {
        ArchiveReader { archive: self.clone(), partition, manifest: None, open: None }
    }
}

impl ArchiveReader {
    /// The next records from offset `from` on, if the log does not have that offset: it begins at `low`. A file that was
    /// begun is read to its end, beyond `low`, too, so that the record before the log's first one to be read is known.
    /// Offsets below `low` that are in no file are a part without records, missing because of retention.
    ///
    /// `None`: the log is to be read from `from` on.
    ///
    /// # Errors
    /// [`ArchiveError::Damaged`], [`ArchiveError::Manifest`]: an operator has to restore a file. No record of a damaged
    /// file was returned. Any other: call again later.
    #[boxed]
    pub async fn next(
        &mut self,
        from: Offset,
        low: Offset,
        limit: ReadLimit,
    ) -> Result<Option<Archived>, ArchiveError> {
        if self.open.as_ref().is_some_and(|open| open.at != from || from >= open.segment.end()) {
            self.open = None;
        }
        if self.open.is_none() {
            if from >= low {
                return Ok(None);
            }
            match self.find(from).await? {
                None => return Ok(None),
                Some(segment) if segment.start() > from => {
                    let to = segment.start().min(low);
                    let missing = vec![(from..to, MissingCause::Retention)];
                    return Ok(Some(Archived { records: Vec::new(), to, missing }));
                }
                Some(segment) => self.open = Some(self.open(segment, from).await?),
            }
        }
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let (archive, partition) = (self.archive.clone(), self.partition);
        // Decompression takes milliseconds, and other tasks must not wait for it.
        let read = tokio::task::spawn_blocking(move || {
            let part = open.read(limit);
            let part = part.map_err(|damage| archive.damaged(partition, &open.segment, damage));
            part.map(|part| (part, open))
        });
        let (part, open) =
            read.await.map_err(ArchiveError::away("reading", self.archive.place().to_string()))??;
        self.open = Some(open);
        Ok(Some(part))
    }

    /// The first range that ends behind `from`.
    async fn find(&mut self, from: Offset) -> Result<Option<Segment>, ArchiveError> {
        let manifest = match &mut self.manifest {
            Some(manifest) => manifest,
            none => none.insert(self.archive.manifest(self.partition).await?),
        };
        Ok(manifest.segments.iter().find(|segment| segment.end() > from).cloned())
    }

    /// Opens the file of the range that has `from`, and passes the records before it.
    async fn open(&mut self, segment: Segment, from: Offset) -> Result<Open, ArchiveError> {
        let (mut segment, mut reader) = (segment.clone(), self.archive.open(self.partition, &segment).await?);
        if reader.is_none() {
            // A longer file, or one with tombstones, has taken its place since the manifest was read.
            self.manifest = None;
            let now = self.find(from).await?.filter(|now| now.start() <= from && *now != segment);
            segment = now.ok_or_else(|| self.archive.absent(self.partition, &segment, from))?;
            reader = self.archive.open(self.partition, &segment).await?;
        }
        let Some(mut reader) = reader else {
            return Err(self.archive.absent(self.partition, &segment, from));
        };
        let (archive, partition) = (self.archive.clone(), self.partition);
        let passed = tokio::task::spawn_blocking(move || {
            let mut ahead = None;
            while let Some(record) = reader.next()? {
                if record.offset >= from {
                    ahead = Some(record);
                    break;
                }
            }
            Ok((reader, ahead))
        });
        let passed = passed.await.map_err(ArchiveError::away("reading", archive.place().to_string()))?;
        let (reader, ahead) =
            passed.map_err(|damage: Damage| archive.damaged(partition, &segment, damage))?;
        Ok(Open { segment, reader, at: from, ahead })
    }
}

impl Open {
    fn read(&mut self, limit: ReadLimit) -> Result<Archived, Damage> {
        let (from, mut bytes, mut records) = (self.at, 0, Vec::new());
        while records.len() < limit.records_max.max(1) && (records.is_empty() || bytes < limit.bytes_max) {
            let ahead = self.ahead.take();
            let Some(record) = ahead.map_or_else(|| self.reader.next(), |ahead| Ok(Some(ahead)))? else {
                break;
            };
            bytes += record.value.len();
            records.push(record);
        }
        // Without a record the whole rest of the range is passed.
        let to = records.last().map_or(self.segment.end(), |record| record.offset.next());
        self.at = to;
        let missing = self.segment.missing().filter_map(|range| {
            let part = range.start.max(from)..range.end.min(to);
            (part.start < part.end).then_some((part, MissingCause::Gap))
        });
        Ok(Archived { missing: missing.collect(), records, to })
    }
}
