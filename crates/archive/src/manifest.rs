//! The manifest of a partition's archive: the closed ranges of offsets that its files hold. It is written after the files
//! that it lists, so every file of a manifest is complete.

use std::ops::Range;

use dashi_domain::position::{LogId, Offset, Partition};
use serde::{Deserialize, Serialize};

use crate::error::ArchiveError;

/// The format of manifests and archive files that this program writes, and the only one that it reads.
const VERSION: u32 = 1;

/// Archived ranges of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The log.
    pub log: String,
    /// The partition.
    pub partition: u32,
    /// In the order of their offsets; no offset is in two of them. Offsets before one of them that are in no other are not
    /// archived: retention had removed them from the log before.
    pub segments: Vec<Segment>,
    /// Whether an erasure was archived and has not been applied to all files yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rewrite_due: bool,
}

/// A closed range of offsets and the file of its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Name of the file, beside the manifest.
    pub file: String,
    /// The first offset of the range.
    pub first: u64,
    /// The last offset of the range, in it. Offsets of the range need not all have a record.
    pub last: u64,
    /// Records in the file.
    pub records: u64,
    /// Records of the file in whose place an erasure put a tombstone; they are among `records`.
    #[serde(default)]
    pub erased: u64,
    /// Ranges within this one whose records the log had lost when it was archived, as pairs of a first and a last offset.
    /// Other offsets without a record never held one for a reader.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<[u64; 2]>,
    /// Least time of an append in it, milliseconds since 1970; 0 if it has no record.
    pub appended_at_ms_min: i64,
    /// Greatest time of an append in it.
    pub appended_at_ms_max: i64,
    /// Size of the file.
    pub bytes: u64,
    /// Size of its lines before compression.
    pub plain_bytes: u64,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Fingerprint of the record at `last`, by which the archiver proves that the log goes on from there; absent if
    /// that offset has no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<i64>,
    /// When the file was written, milliseconds since 1970.
    pub written_at_ms: i64,
}

impl Segment {
    /// The offset behind the range.
    pub fn end(&self) -> Offset {
        Offset::new(self.last + 1)
    }

    /// The first offset of the range.
    pub fn start(&self) -> Offset {
        Offset::new(self.first)
    }

    /// Ranges whose records were lost; their ends are exclusive.
    pub(crate) fn missing(&self) -> impl Iterator<Item = Range<Offset>> {
        self.missing.iter().map(|[first, last]| Offset::new(*first)..Offset::new(last + 1))
    }
}

impl Manifest {
    pub(crate) fn empty(log: &LogId, partition: Partition) -> Self {
        Self {
            version: VERSION,
            log: log.to_string(),
            partition: partition.number(),
            segments: Vec::new(),
            rewrite_due: false,
        }
    }

    /// Reads a manifest and checks that its ranges are in order.
    pub(crate) fn decode(bytes: &[u8], file: &str) -> Result<Self, ArchiveError> {
        let damaged = |reason: String| ArchiveError::Manifest { file: file.to_owned(), reason };
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            let found = manifest.version;
            return Err(damaged(format!("it has format {found}, this program knows {VERSION} only")));
        }
        let mut end = 0;
        for segment in &manifest.segments {
            let Segment { file, first, last, .. } = segment;
            if *first < end || last < first || *last == u64::MAX {
                return Err(damaged(format!("its range {first} to {last} is not in order")));
            }
            if file.contains(['/', '\\']) {
                return Err(damaged(format!("{file:?} is no name of a file")));
            }
            end = last + 1;
        }
        Ok(manifest)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The first archived offset.
    pub fn start(&self) -> Option<Offset> {
        self.segments.first().map(Segment::start)
    }

    /// The offset behind the last archived one.
    pub fn end(&self) -> Option<Offset> {
        self.segments.last().map(Segment::end)
    }

    /// Offsets before the last archived one that are not archived; their ends are exclusive. A partition begins at offset 0,
    /// so what was removed before the first archived range is among them.
    pub fn gaps(&self) -> Vec<Range<Offset>> {
        let ends = std::iter::once(Offset::ZERO).chain(self.segments.iter().map(Segment::end));
        let between = ends.zip(&self.segments).map(|(end, next)| end..next.start());
        between.filter(|gap| gap.start < gap.end).collect()
    }
}

/// The name of a manifest in its partition's directory.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The name of a file with this range of offsets.
pub(crate) fn segment_file(first: Offset, last: u64) -> String {
    format!("{:020}-{last:020}.ndjson.zst", first.number())
}

/// The name of a file in which tombstones have taken the places of records: another one with each of them.
pub(crate) fn rewritten_file(segment: &Segment) -> String {
    let Segment { first, last, erased, .. } = segment;
    format!("{first:020}-{last:020}.erased-{erased}.ndjson.zst")
}

/// The directory of a log: its id with all characters but letters, digits, `-` and `.` as `_` and two hexadecimal digits.
pub(crate) fn log_directory(log: &LogId) -> String {
    let mut name = String::new();
    for byte in log.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02X}"));
        }
    }
    name
}

/// The directory of a partition, below that of its log.
pub(crate) fn partition_directory(log: &LogId, partition: Partition) -> String {
    format!("{}/{:05}", log_directory(log), partition.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_sort_by_offset() {
        let log = LogId::new("kafka:a_B+/=c.d".to_owned());
        assert_eq!(partition_directory(&log, Partition::new(7)), "kafka_3Aa_5FB_2B_2F_3Dc.d/00007");
        let names: Vec<_> = [9, 10, u64::MAX - 1].map(|first| segment_file(Offset::new(first), first)).into();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn a_manifest_whose_ranges_overlap_is_refused() {
        let segment = |first, last| Segment {
            file: "f".to_owned(),
            first,
            last,
            records: 1,
            erased: 0,
            missing: Vec::new(),
            appended_at_ms_min: 0,
            appended_at_ms_max: 0,
            bytes: 1,
            plain_bytes: 1,
            sha256: String::new(),
            fingerprint: None,
            written_at_ms: 0,
        };
        let mut manifest = Manifest::empty(&LogId::new("l".to_owned()), Partition::new(0));
        manifest.segments = vec![segment(0, 4), segment(7, 9)];
        let gap = Offset::new(5)..Offset::new(7);
        assert_eq!(manifest.gaps(), std::slice::from_ref(&gap));
        let mut late = manifest.clone();
        late.segments.remove(0);
        assert_eq!(late.gaps(), [Offset::ZERO..Offset::new(7)], "a partition begins at offset 0");
        assert_eq!(Manifest::empty(&LogId::new("l".to_owned()), Partition::new(0)).gaps(), []);
        assert_eq!(Manifest::decode(&manifest.encode().unwrap(), "m").unwrap(), manifest);
        manifest.segments[1].first = 4;
        let refused = Manifest::decode(&manifest.encode().unwrap(), "m").unwrap_err();
        assert!(refused.to_string().contains("4 to 9"), "{refused}");
        manifest.segments.pop();
        manifest.version = 2;
        assert!(Manifest::decode(&manifest.encode().unwrap(), "m").is_err());
    }
}
