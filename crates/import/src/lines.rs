//! Lines of a file, plain or compressed, of bounded length.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a line, at most. A record of the log is smaller, also in base64.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 20;

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number in the file, from 1.
    pub number: u64,
    /// Its bytes; the beginning alone if it is too long.
    pub bytes: Vec<u8>,
    /// Whether it has more than [`LINE_BYTES_MAX`] bytes.
    pub is_too_long: bool,
}

/// Reads lines.
pub(crate) struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
    bytes_max: usize,
    taken: Arc<AtomicU64>,
}

impl Lines {
    /// Opens a file. Its first bytes show whether it is compressed by gzip or zstd.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: File::open(path)?, taken: Arc::clone(&taken) };
        let mut file = BufReader::with_capacity(64 << 10, counted);
        let begin = file.fill_buf()?;
        let reader: Box<dyn BufRead + Send> = if begin.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file)))
        } else if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Box::new(BufReader::new(zstd::Decoder::with_buffer(file)?))
        } else {
            Box::new(file)
        };
        Ok(Self { reader, number: 0, bytes_max: LINE_BYTES_MAX, taken })
    }

    /// Bytes of the file that are read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The next line; `None` at the end. A byte-order mark before the first one is left out.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let mut is_too_long = false;
        let mut has_any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            has_any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let fits = part.len().min(self.bytes_max.saturating_sub(bytes.len()));
            bytes.extend_from_slice(&part[..fits]);
            is_too_long |= fits < part.len();
            let used = end.map_or(available.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !has_any {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        self.number += 1;
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Ok(Some(Line { number: self.number, bytes, is_too_long }))
    }
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn lines_of(reader: impl Read + Send + 'static, bytes_max: usize) -> Vec<(u64, String, bool)> {
        let reader = Box::new(BufReader::with_capacity(3, reader));
        let mut lines = Lines { reader, number: 0, bytes_max, taken: Arc::default() };
        let mut all = Vec::new();
        while let Some(line) = lines.next().expect("reads") {
            all.push((line.number, String::from_utf8_lossy(&line.bytes).into_owned(), line.is_too_long));
        }
        all
    }

    fn all(lines: &[(&str, bool)]) -> Vec<(u64, String, bool)> {
        (1..).zip(lines).map(|(number, (text, long))| (number, (*text).to_owned(), *long)).collect()
    }

    #[test]
    fn lines_end_in_either_way_and_the_last_need_not() {
        let text = "\u{feff}one\r\n\ntwo\nthree";
        let expected = all(&[("one", false), ("", false), ("two", false), ("three", false)]);
        assert_eq!(lines_of(text.as_bytes(), 100), expected);
        assert_eq!(lines_of(&b""[..], 100), []);
        assert_eq!(lines_of(&b"\n"[..], 100), all(&[("", false)]));
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let expected = all(&[("12345", true), ("12345", false), ("1", false)]);
        assert_eq!(lines_of(&b"123456789\n12345\n1"[..], 5), expected);
    }

    #[test]
    fn compressed_files_are_known_by_their_first_bytes() {
        let directory = std::env::temp_dir().join(format!("dashi-lines-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).expect("a directory");
        let text = "one\ntwo\n".repeat(1_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).expect("memory");
        // Two members, as of two files that were joined.
        let gzip = gzip.finish().expect("memory").repeat(2);
        let zstd = zstd::encode_all(text.as_bytes(), 1).expect("memory").repeat(2);
        for (name, bytes, copies) in [("a", text.clone().into_bytes(), 1), ("b", gzip, 2), ("c", zstd, 2)] {
            let path = directory.join(name);
            std::fs::write(&path, &bytes).expect("written");
            let mut lines = Lines::open(&path).expect("opens");
            let mut count = 0;
            while let Some(line) = lines.next().expect("reads") {
                assert_eq!(line.bytes, if count % 2 == 0 { b"one" } else { b"two" });
                count += 1;
            }
            assert_eq!((count, lines.bytes_read()), (copies * 2_000, bytes.len() as u64), "{name}");
        }
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
