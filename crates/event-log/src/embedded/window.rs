//! A part of a segment in memory, which moves along with its reader.

use std::fs::File;
use std::io;

use super::frame::{HEAD_BYTES, Head, RECORD_BYTES, Stored, first_record, value_bytes};
use super::segments::read_at;

/// Bytes that are read at once, if more than these are not asked for.
const BYTES: usize = 64 << 10;

/// Bytes of a buffer that is kept; one that a large record made is not.
const KEPT: usize = 1 << 20;

/// See the module's text. It is of one file at a time; [`Window::clear`] lets it go.
#[derive(Debug, Default, Clone)]
pub(super) struct Window {
    /// The position of its first byte.
    position: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Forgets what it has, before it is used for another file or for what may have changed.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The bytes from a position (inclusive) on, `length` of them; fewer if the file ends, or the log at `end` (exclusive).
    fn at(&mut self, file: &File, base: u64, position: u64, length: usize, end: u64) -> io::Result<&[u8]> {
        let length = length.min(end.saturating_sub(position).min(usize::MAX as u64) as usize);
        let has = self.position..self.position + self.bytes.len() as u64;
        if !(has.contains(&position) && position + length as u64 <= has.end) {
            let wanted = length.max(BYTES).min(end.saturating_sub(position).min(usize::MAX as u64) as usize);
            if self.bytes.capacity() > KEPT && wanted <= KEPT {
                self.bytes = Vec::new();
            }
            self.bytes.resize(wanted, 0);
            self.position = position;
            let read = read_at(file, &mut self.bytes, position - base);
            self.bytes.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        let from = (position - self.position) as usize;
        let bytes = self.bytes.get(from..).unwrap_or_default();
        Ok(&bytes[..length.min(bytes.len())])
    }

    /// The head of the frame at a position; `None` if there is none.
    pub(super) fn head(
        &mut self,
        file: &File,
        base: u64,
        position: u64,
        end: u64,
    ) -> io::Result<Option<Head>> {
        let Some(length) = Head::length(self.at(file, base, position, HEAD_BYTES, end)?, position) else {
            return Ok(None);
        };
        Ok(Head::decode(self.at(file, base, position, length, end)?, position))
    }

    /// The record at a position; `None` if it goes beyond the end.
    pub(super) fn record(
        &mut self,
        file: &File,
        base: u64,
        position: u64,
        end: u64,
    ) -> io::Result<Option<Stored<'_>>> {
        let Some(length) = value_bytes(self.at(file, base, position, RECORD_BYTES, end)?) else {
            return Ok(None);
        };
        Ok(first_record(self.at(file, base, position, RECORD_BYTES + length, end)?))
    }

    /// The bytes of the value of the record at a position, without reading it.
    pub(super) fn value_bytes(
        &mut self,
        file: &File,
        base: u64,
        position: u64,
        end: u64,
    ) -> io::Result<Option<usize>> {
        Ok(value_bytes(self.at(file, base, position, RECORD_BYTES, end)?))
    }

    /// The position of the first frame behind a damaged place, in the same file.
    pub(super) fn next_head(
        &mut self,
        file: &File,
        base: u64,
        damaged: u64,
        end: u64,
    ) -> io::Result<Option<u64>> {
        let mut position = damaged + 1;
        loop {
            let bytes = self.at(file, base, position, BYTES, end)?;
            if bytes.len() < HEAD_BYTES {
                return Ok(None);
            }
            let last = bytes.len() - HEAD_BYTES;
            let candidate =
                (0..=last).find(|at| Head::length(&bytes[*at..], position + *at as u64).is_some());
            match candidate.map(|at| position + at as u64) {
                Some(found) if self.head(file, base, found, end)?.is_some() => return Ok(Some(found)),
                Some(found) => position = found + 1,
                None => position += last as u64 + 1,
            }
        }
    }
}
