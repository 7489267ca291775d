//! The bytes of a segment: its header, and frames of records. Pure: it encodes and decodes, and touches no file.
//!
//! A frame is the unit of durability: one write, one fsync. It has the records of one commit, those of each partition together
//! (a run), so that the reader of a partition reads what it needs and passes over the rest.
//!
//! ```text
//! segment  | header, 64 bytes | frame | frame | … | zeros up to the end of the file
//! frame    | head: magic, checksum of the head, position, lengths, kind, layout, runs | records of run 0 | of run 1 | …
//! run      | partition, count of records, first offset, bytes, time of appending
//! record   | key, 16 bytes | length of the value and flag, 4 | checksum of key and value, 4 | value
//! ```
//!
//! All numbers are little-endian. A head names its own position in the log, so that bytes of an older file can never pass for a
//! frame of this place.

use dashi_domain::layout::Layout;
use dashi_domain::position::{Offset, Partition};
use uuid::Uuid;

/// Bytes of a segment's header; its first frame lies behind them.
pub(super) const HEADER_BYTES: u64 = 64;

const HEADER_MAGIC: [u8; 8] = *b"DASHILOG";
const VERSION: u32 = 1;
const FRAME_MAGIC: [u8; 4] = *b"frme";

/// Bytes of a head without its runs, and of each run.
pub(super) const HEAD_BYTES: usize = 40;
const RUN_BYTES: usize = 28;

/// Bytes of a record before its value.
pub(super) const RECORD_BYTES: usize = 24;

/// In a record's length: its value was overwritten, and the catalogue has the value in its place.
const OVERWRITTEN: u32 = 1 << 31;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records.
    Records,
    /// The first frame of a segment: an empty run for each partition, whose offset is the one that its next record gets.
    Start,
    /// The last frame of a segment: the log goes on in the next one.
    End,
}

/// The records of one partition in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) partition: Partition,
    pub(super) count: u32,
    pub(super) first: Offset,
    /// Bytes of its records in the frame.
    pub(super) bytes: u32,
    /// When they were appended, milliseconds since 1970.
    pub(super) at_ms: i64,
}

impl Run {
    /// The offset behind its last record.
    pub(super) const fn end(&self) -> Offset {
        Offset::new(self.first.number() + self.count as u64)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The place of the frame in the log, in bytes.
    pub(super) position: u64,
    pub(super) kind: Kind,
    /// The layout by which its records are spread.
    pub(super) layout: Layout,
    pub(super) runs: Vec<Run>,
    body_bytes: u32,
}

impl Head {
    /// The place of its records.
    pub(super) fn body(&self) -> u64 {
        self.position + (HEAD_BYTES + self.runs.len() * RUN_BYTES) as u64
    }

    /// The place behind the frame, where the next one begins.
    pub(super) fn end(&self) -> u64 {
        self.body() + u64::from(self.body_bytes)
    }

    /// The bytes that the whole head has, by its first [`HEAD_BYTES`]; `None` if no head of this position begins so.
    pub(super) fn length(bytes: &[u8], position: u64) -> Option<usize> {
        let at = bytes.get(8..16)?;
        let runs = u32_at(bytes, 36)? as usize;
        (bytes[..4] == FRAME_MAGIC && at == position.to_le_bytes())
            .then_some(HEAD_BYTES + runs.min(1 << 20) * RUN_BYTES)
    }

    /// Decodes a head; `None` if these bytes are none, or none of this position.
    pub(super) fn decode(bytes: &[u8], position: u64) -> Option<Self> {
        let length = Self::length(bytes, position)?;
        let bytes = bytes.get(..length)?;
        if u32_at(bytes, 4)? != crc32fast::hash(&bytes[8..]) || u32_at(bytes, 16)? as usize != length {
            return None;
        }
        let kind = match bytes[24] {
            0 => Kind::Records,
            1 => Kind::Start,
            2 => Kind::End,
            _ => return None,
        };
        let run = |bytes: &[u8]| {
            Some(Run {
                partition: Partition::new(u32_at(bytes, 0)?),
                count: u32_at(bytes, 4)?,
                first: Offset::new(u64_at(bytes, 8)?),
                bytes: u32_at(bytes, 16)?,
                at_ms: u64_at(bytes, 20)? as i64,
            })
        };
        let runs = bytes[HEAD_BYTES..].chunks_exact(RUN_BYTES).map(run).collect::<Option<Vec<_>>>()?;
        let body_bytes = u32_at(bytes, 20)?;
        let in_runs: u64 = runs.iter().map(|run| u64::from(run.bytes)).sum();
        (in_runs == u64::from(body_bytes)).then_some(Self {
            position,
            kind,
            layout: Layout { version: u32_at(bytes, 28)?, partitions: u32_at(bytes, 32)? },
            runs,
            body_bytes,
        })
    }

    /// The runs of a partition, with the place of each in the log.
    pub(super) fn runs_of(&self, partition: Partition) -> impl Iterator<Item = (Run, u64)> {
        self.runs
            .iter()
            .scan(self.body(), |next, run| {
                let at = *next;
                *next += u64::from(run.bytes);
                Some((*run, at))
            })
            .filter(move |(run, _)| run.partition == partition && run.count > 0)
    }
}

/// Collects the records of a frame. Those of one partition are to be pushed one after the other.
#[derive(Debug, Default)]
pub(super) struct FrameBuilder {
    runs: Vec<Run>,
    body: Vec<u8>,
}

impl FrameBuilder {
    /// Bytes of the records so far.
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn push(&mut self, partition: Partition, offset: Offset, at_ms: i64, key: Uuid, value: &[u8]) {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(key.as_bytes());
        checksum.update(value);
        self.body.extend_from_slice(key.as_bytes());
        self.body.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.body.extend_from_slice(&checksum.finalize().to_le_bytes());
        self.body.extend_from_slice(value);
        let bytes = (RECORD_BYTES + value.len()) as u32;
        match self.runs.last_mut() {
            Some(run) if run.partition == partition && run.at_ms == at_ms && run.end() == offset => {
                run.count += 1;
                run.bytes += bytes;
            }
            _ => self.runs.push(Run { partition, count: 1, first: offset, bytes, at_ms }),
        }
    }

    /// An empty run, which says what offset a partition has reached.
    pub(super) fn mark(&mut self, partition: Partition, next: Offset, at_ms: i64) {
        self.runs.push(Run { partition, count: 0, first: next, bytes: 0, at_ms });
    }

    /// Writes the frame behind what `out` has, for a position in the log; returns its head. The builder is empty then.
    pub(super) fn finish(&mut self, position: u64, kind: Kind, layout: Layout, out: &mut Vec<u8>) -> Head {
        let start = out.len();
        let length = HEAD_BYTES + self.runs.len() * RUN_BYTES;
        out.reserve(length + self.body.len());
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&position.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&[
            match kind {
                Kind::Records => 0,
                Kind::Start => 1,
                Kind::End => 2,
            },
            0,
            0,
            0,
        ]);
        out.extend_from_slice(&layout.version.to_le_bytes());
        out.extend_from_slice(&layout.partitions.to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            out.extend_from_slice(&run.partition.number().to_le_bytes());
            out.extend_from_slice(&run.count.to_le_bytes());
            out.extend_from_slice(&run.first.number().to_le_bytes());
            out.extend_from_slice(&run.bytes.to_le_bytes());
            out.extend_from_slice(&run.at_ms.to_le_bytes());
        }
        let checksum = crc32fast::hash(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(&self.body);
        let body_bytes = self.body.len() as u32;
        self.body.clear();
        Head { position, kind, layout, runs: std::mem::take(&mut self.runs), body_bytes }
    }
}

/// A record in the bytes of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored<'b> {
    pub(super) key: Uuid,
    pub(super) value: &'b [u8],
    pub(super) is_overwritten: bool,
    /// Whether key and value are those that were written. An overwritten record has no checksum.
    pub(super) is_whole: bool,
}

impl Stored<'_> {
    /// Bytes that it takes in its run.
    pub(super) const fn bytes(&self) -> usize {
        RECORD_BYTES + self.value.len()
    }
}

/// Bytes of the value of the record that begins so.
pub(super) fn value_bytes(record: &[u8]) -> Option<usize> {
    u32_at(record, 16).filter(|_| record.len() >= RECORD_BYTES).map(|length| (length & !OVERWRITTEN) as usize)
}

/// The first record of these bytes; `None` if its length goes beyond them.
pub(super) fn first_record(bytes: &[u8]) -> Option<Stored<'_>> {
    let length = u32_at(bytes, 16)?;
    let value = bytes.get(RECORD_BYTES..RECORD_BYTES + value_bytes(bytes)?)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..16]);
    checksum.update(value);
    let is_overwritten = length & OVERWRITTEN != 0;
    Some(Stored {
        key: Uuid::from_slice(&bytes[..16]).ok()?,
        value,
        is_overwritten,
        is_whole: is_overwritten || u32_at(bytes, 20)? == checksum.finalize(),
    })
}

/// The bytes that take the place of a record whose value the catalogue has from now on: of the same length, all zero.
pub(super) fn overwritten(value_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_BYTES + value_bytes];
    bytes[16..20].copy_from_slice(&(value_bytes as u32 | OVERWRITTEN).to_le_bytes());
    bytes
}

/// Whether a frame's records are those that were written.
pub(super) fn is_whole(head: &Head, mut body: &[u8]) -> bool {
    let records: u64 = head.runs.iter().map(|run| u64::from(run.count)).sum();
    for _ in 0..records {
        match first_record(body) {
            Some(record) if record.is_whole => body = &body[record.bytes()..],
            _ => return false,
        }
    }
    body.is_empty()
}

/// A segment's header: whose log it is of, and where in it the segment begins.
pub(super) fn header(log: Uuid, base: u64) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(&HEADER_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(log.as_bytes());
    bytes[28..36].copy_from_slice(&base.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..36]);
    bytes[36..40].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The log that a segment is of and the position at which it begins; `None` if these bytes are no header.
pub(super) fn decode_header(bytes: &[u8]) -> Option<(Uuid, u64)> {
    let is_header = bytes.get(..8)? == HEADER_MAGIC
        && u32_at(bytes, 8)? == VERSION
        && u32_at(bytes, 36)? == crc32fast::hash(bytes.get(..36)?);
    is_header.then_some((Uuid::from_slice(bytes.get(12..28)?).ok()?, u64_at(bytes, 28)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { version: 3, partitions: 4 };

    fn frame(position: u64) -> (Head, Vec<u8>) {
        let mut builder = FrameBuilder::default();
        for (partition, offset, value) in [(1, 7, "a"), (1, 8, ""), (3, 0, "ccc"), (1, 12, "d")] {
            builder.push(
                Partition::new(partition),
                Offset::new(offset),
                9,
                Uuid::from_u128(5),
                value.as_bytes(),
            );
        }
        let mut bytes = b"before".to_vec();
        let head = builder.finish(position, Kind::Records, LAYOUT, &mut bytes);
        assert!(builder.is_empty() && builder.bytes() == 0);
        (head, bytes.split_off(6))
    }

    #[test]
    fn a_frame_is_decoded_as_it_was_encoded() {
        let (head, bytes) = frame(1_000);
        assert_eq!(Head::decode(&bytes, 1_000).as_ref(), Some(&head));
        assert_eq!(head.end(), 1_000 + bytes.len() as u64);
        assert!(is_whole(&head, &bytes[(head.body() - 1_000) as usize..]));
        let runs: Vec<_> =
            head.runs_of(Partition::new(1)).map(|(run, at)| (run.first.number(), run.count, at)).collect();
        let record = RECORD_BYTES as u64;
        assert_eq!(runs, [(7, 2, head.body()), (12, 1, head.body() + 3 * record + 4)]);
    }

    #[test]
    fn no_changed_byte_and_no_other_place_passes_for_a_frame() {
        let (head, bytes) = frame(1_000);
        assert_eq!(Head::decode(&bytes, 1_001), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let decoded = Head::decode(&changed, 1_000);
            let whole =
                decoded.is_some_and(|head| is_whole(&head, &changed[(head.body() - 1_000) as usize..]));
            // The padding of the record's flag is covered by its own checksum, except where the flag itself is set.
            assert!(!whole, "byte {at}");
        }
        for length in 0..bytes.len() {
            let decoded = Head::decode(&bytes[..length], 1_000);
            assert!(
                decoded.is_none_or(|head| !is_whole(&head, &bytes[(head.body() - 1_000) as usize..length]))
            );
        }
        assert!(is_whole(&head, &bytes[(head.body() - 1_000) as usize..]));
    }

    #[test]
    fn an_overwritten_record_has_its_length_and_nothing_else() {
        let bytes = overwritten(5);
        let record = first_record(&bytes).unwrap();
        assert!(record.is_overwritten && record.is_whole && record.key.is_nil());
        assert_eq!((record.value, record.bytes()), ([0; 5].as_slice(), bytes.len()));
    }

    #[test]
    fn a_header_names_its_log_and_its_place() {
        let log = Uuid::from_u128(77);
        let bytes = header(log, 1 << 40);
        assert_eq!(decode_header(&bytes), Some((log, 1 << 40)));
        for at in 0..40 {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(decode_header(&changed), None, "byte {at}");
        }
    }
}
