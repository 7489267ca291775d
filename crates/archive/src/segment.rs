//! The file of a closed range: lines, compressed with Zstandard.

use std::io::{self, BufRead as _, BufReader, Cursor, Write as _};
use std::ops::Range;

use dashi_domain::missing::fingerprint;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use sha2::{Digest as _, Sha256};

use crate::line::{read_record, write_record};
use crate::manifest::{Segment, segment_file};

/// Compression level: Zstandard's own default.
const LEVEL: i32 = 3;

/// Longest line that is read: more than a log takes as one record, base64 included.
const LINE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Builds the file of a range in memory.
pub(crate) struct SegmentWriter {
    encoder: zstd::Encoder<'static, Vec<u8>>,
    first: Offset,
    /// The offset behind the part that is written.
    next: Offset,
    segment: Segment,
    line: Vec<u8>,
}

impl SegmentWriter {
    pub(crate) fn new(first: Offset) -> io::Result<Self> {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
        encoder.include_checksum(true)?;
        let segment = Segment {
            file: String::new(),
            first: first.number(),
            last: 0,
            records: 0,
            erased: 0,
            missing: Vec::new(),
            appended_at_ms_min: i64::MAX,
            appended_at_ms_max: i64::MIN,
            bytes: 0,
            plain_bytes: 0,
            sha256: String::new(),
            fingerprint: None,
            written_at_ms: 0,
        };
        Ok(Self { encoder, first, next: first, segment, line: Vec::new() })
    }

    /// The offset behind the part that is written.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }

    /// Bytes of lines so far.
    pub(crate) fn plain_bytes(&self) -> u64 {
        self.segment.plain_bytes
    }

    /// Adds a record; its offset is not before [`SegmentWriter::next`].
    pub(crate) fn record(&mut self, record: &Record) -> io::Result<()> {
        let segment = &mut self.segment;
        segment.records += 1;
        segment.appended_at_ms_min = segment.appended_at_ms_min.min(record.appended_at_ms);
        segment.appended_at_ms_max = segment.appended_at_ms_max.max(record.appended_at_ms);
        segment.fingerprint = Some(fingerprint(&record.value));
        self.line.clear();
        write_record(record, &mut self.line);
        self.next = record.offset.next();
        segment.plain_bytes += self.line.len() as u64;
        self.encoder.write_all(&self.line)
    }

    /// Counts records in whose place a tombstone was put.
    pub(crate) fn erased(&mut self, records: u64) {
        self.segment.erased += records;
    }

    /// Notes ranges of offsets whose records the log has lost.
    pub(crate) fn missing(&mut self, ranges: impl IntoIterator<Item = Range<Offset>>) {
        for range in ranges {
            if let Some(last) = range.end.before().filter(|last| *last >= range.start) {
                self.segment.missing.push([range.start.number(), last.number()]);
            }
        }
    }

    /// Extends the range up to `to`, exclusive, over offsets without records.
    pub(crate) fn pass(&mut self, to: Offset) {
        if self.next < to {
            self.next = to;
            self.segment.fingerprint = None;
        }
    }

    /// The range's entry in the manifest, and its file. The range is not empty.
    pub(crate) fn finish(self, written_at_ms: i64) -> io::Result<(Segment, Vec<u8>)> {
        let Self { encoder, first, next, mut segment, .. } = self;
        let bytes = encoder.finish()?;
        if segment.records == 0 {
            (segment.appended_at_ms_min, segment.appended_at_ms_max) = (0, 0);
        }
        segment.last = next.before().unwrap_or(Offset::ZERO).number();
        segment.file = segment_file(first, segment.last);
        segment.bytes = bytes.len() as u64;
        segment.sha256 = sha256(&bytes);
        segment.written_at_ms = written_at_ms;
        Ok((segment, bytes))
    }
}

/// Reads the lines of a file back.
pub(crate) struct SegmentReader {
    lines: BufReader<zstd::Decoder<'static, BufReader<Cursor<Vec<u8>>>>>,
    partition: Partition,
    /// The range's end.
    end: Offset,
    /// The first offset that has not been read.
    next: Offset,
    line: Vec<u8>,
}

/// The place and the reason where a file cannot be read.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) offset: Offset,
    pub(crate) reason: String,
}

impl SegmentReader {
    /// Checks the size and the sum of a file, and begins to read it.
    ///
    /// # Errors
    /// The file is not the one that was written.
    pub(crate) fn new(segment: &Segment, partition: Partition, bytes: Vec<u8>) -> Result<Self, Damage> {
        let damage = |reason: String| Damage { offset: segment.start(), reason };
        if bytes.len() as u64 != segment.bytes {
            return Err(damage(format!("it has {} bytes, {} were written", bytes.len(), segment.bytes)));
        }
        let found = sha256(&bytes);
        if found != segment.sha256 {
            return Err(damage(format!("its SHA-256 is {found}, {} was written", segment.sha256)));
        }
        let decoder = zstd::Decoder::new(Cursor::new(bytes)).map_err(|error| damage(error.to_string()))?;
        let (next, end) = (segment.start(), segment.end());
        Ok(Self { lines: BufReader::new(decoder), partition, end, next, line: Vec::new() })
    }

    /// The next record; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Damage> {
        let damage = |offset, reason: String| Damage { offset, reason };
        self.line.clear();
        let limited = &mut io::Read::take(&mut self.lines, LINE_BYTES_MAX as u64);
        let read = limited.read_until(b'\n', &mut self.line);
        if read.map_err(|error| damage(self.next, error.to_string()))? == 0 {
            return Ok(None);
        }
        let Some(text) = self.line.strip_suffix(b"\n") else {
            return Err(damage(self.next, "its last line has no end".to_owned()));
        };
        let record =
            read_record(text).map_err(|error| damage(self.next, format!("a line is not valid: {error}")))?;
        let Record { partition, offset, .. } = record;
        if partition != self.partition || offset < self.next || offset >= self.end {
            let place = format!("a record of partition {partition}, offset {offset} is out of its place");
            return Err(damage(self.next, place));
        }
        self.next = offset.next();
        Ok(Some(record))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64) -> Record {
        Record {
            partition: Partition::new(2),
            offset: Offset::new(offset),
            appended_at_ms: 1_000 - offset as i64,
            value: format!("{{\"n\":{offset}}}").into_bytes(),
        }
    }

    fn written() -> (Segment, Vec<u8>) {
        let mut writer = SegmentWriter::new(Offset::new(5)).unwrap();
        writer.record(&record(5)).unwrap();
        writer.missing([Offset::new(6)..Offset::new(8)]);
        writer.record(&record(8)).unwrap();
        writer.record(&record(10)).unwrap();
        writer.pass(Offset::new(12));
        writer.finish(77).unwrap()
    }

    #[test]
    fn a_range_has_what_was_put_into_it() {
        let (segment, bytes) = written();
        assert_eq!((segment.first, segment.last, segment.records), (5, 11, 3));
        assert_eq!((segment.appended_at_ms_min, segment.appended_at_ms_max), (990, 995));
        assert_eq!((segment.fingerprint, &segment.missing[..]), (None, &[[6, 7]][..]));
        assert_eq!(segment.file, "00000000000000000005-00000000000000000011.ndjson.zst");
        let mut reader = SegmentReader::new(&segment, Partition::new(2), bytes).unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            records.push(record);
        }
        assert_eq!(records, [5, 8, 10].map(record));
    }

    #[test]
    fn any_changed_byte_is_found_before_a_record_is_read() {
        let (segment, bytes) = written();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let Err(damage) = SegmentReader::new(&segment, Partition::new(2), changed) else {
                panic!("byte {at} was changed unnoticed")
            };
            assert_eq!(damage.offset, Offset::new(5));
        }
        let short = bytes[..bytes.len() - 1].to_vec();
        assert!(SegmentReader::new(&segment, Partition::new(2), short).is_err());
    }

    #[test]
    fn a_line_that_is_out_of_its_place_is_no_record() {
        let (mut segment, bytes) = written();
        // A manifest that names another range than the file has.
        segment.last = 9;
        let mut reader = SegmentReader::new(&segment, Partition::new(2), bytes).unwrap();
        let damage = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the line was taken"),
                Err(damage) => break damage,
            }
        };
        assert!(damage.reason.contains("offset 10 is out of its place"), "{damage:?}");
    }
}
