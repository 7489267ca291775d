//! Reading HTTP/1.1 answers: pure functions over the bytes received so far.
//!
//! Source: RFC 9112, sections 2 to 7, as far as a client of a collector needs it: trailers are dropped, and the
//! only known transfer coding is chunked.

/// Longest status line and headers accepted.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest body accepted.
pub(crate) const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The head of an answer: its status, and how the rest is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The server will take another request on this connection.
    pub(crate) keep_alive: bool,
    /// `Retry-After` in seconds; its other form, a date, is ignored.
    pub(crate) retry_after_s: Option<u64>,
    /// Length of the head itself, the empty line included.
    pub(crate) bytes: usize,
}

/// How the end of a body is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// Parses the head at the start of `input`; `None` if it is not complete yet.
///
/// # Errors
/// The reason why this answer cannot be read. The connection cannot be used any further.
pub(crate) fn parse_head(input: &[u8]) -> Result<Option<Head>, &'static str> {
    let mut lines = Lines { input, at: 0 };
    let Some(status_line) = lines.next() else { return incomplete(input) };
    let (status, is_http_1_1) = parse_status_line(status_line)?;

    let (mut length, mut chunked, mut keep_alive, mut retry_after_s) = (None, false, is_http_1_1, None);
    loop {
        let Some(line) = lines.next() else { return incomplete(input) };
        if line.is_empty() {
            break;
        }
        let (name, value) = split_header(line).ok_or("a header without a colon")?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let this = parse_number(value).ok_or("a content-length that is not a number")?;
            if length.is_some_and(|other| other != this) {
                return Err("two different content-lengths");
            }
            length = Some(this);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("a transfer-encoding other than chunked");
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive = true;
                }
            }
        } else if name.eq_ignore_ascii_case(b"retry-after") {
            retry_after_s = parse_number(value);
        }
    }
    if lines.at > HEAD_BYTES_MAX {
        return Err("a head of more than 16 KiB");
    }

    let framing = match length {
        _ if matches!(status, 100..200 | 204 | 304) => Framing::Length(0),
        _ if chunked => Framing::Chunked,
        Some(length) => match usize::try_from(length) {
            Ok(length) if length <= BODY_BYTES_MAX => Framing::Length(length),
            _ => return Err("a body of more than 16 MiB"),
        },
        None => Framing::UntilClose,
    };
    Ok(Some(Head { status, framing, keep_alive, retry_after_s, bytes: lines.at }))
}

/// The header fields of a complete head that `parse_head` has accepted, in order.
pub(crate) fn headers(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    Lines { input: head, at: 0 }.skip(1).filter_map(split_header)
}

fn incomplete(input: &[u8]) -> Result<Option<Head>, &'static str> {
    if input.len() > HEAD_BYTES_MAX { Err("a head of more than 16 KiB") } else { Ok(None) }
}

fn parse_status_line(line: &[u8]) -> Result<(u16, bool), &'static str> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let is_http_1_1 = match parts.next() {
        Some(b"HTTP/1.1") => true,
        Some(b"HTTP/1.0") => false,
        _ => return Err("an answer that is not HTTP/1"),
    };
    match parts.next().map(|status| (status.len(), parse_number(status))) {
        Some((3, Some(status @ 100..=999))) => Ok((status as u16, is_http_1_1)),
        _ => Err("a status that is not three digits"),
    }
}

fn split_header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// Digits only: no sign, no space, no overflow.
fn parse_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Complete lines without their ends; `at` stands behind the last one.
struct Lines<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        self.at += end + 1;
        let line = &rest[..end];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// Takes a chunked body apart, however it is cut into reads.
#[derive(Debug, Default)]
pub(crate) struct ChunkedDecoder {
    state: Chunked,
    line_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunked {
    /// In the size line, with the size so far.
    Size {
        size: usize,
        digits: u8,
        extension: bool,
    },
    /// In the data, with the number of bytes that are missing.
    Data {
        missing: usize,
    },
    /// At the line end behind the data.
    DataEnd,
    /// In the trailer, with whether this line has any content.
    Trailer {
        empty: bool,
    },
    Done,
}

impl Default for Chunked {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0, extension: false }
    }
}

impl ChunkedDecoder {
    /// Appends the content in `input` to `body` and returns how many bytes of `input` were used: all of
    /// them, unless the body ends before.
    ///
    /// # Errors
    /// The reason why this is not a chunked body, or one beyond the limits.
    pub(crate) fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            if let Chunked::Data { missing } = self.state {
                let taken = missing.min(input.len() - at);
                body.extend_from_slice(&input[at..at + taken]);
                at += taken;
                self.state = match missing - taken {
                    0 => Chunked::DataEnd,
                    missing => Chunked::Data { missing },
                };
                continue;
            }
            self.state = self.step(input[at], body.len())?;
            at += 1;
            self.line_bytes += 1;
            if matches!(self.state, Chunked::Data { .. } | Chunked::DataEnd) {
                self.line_bytes = 0;
            }
            if self.line_bytes > HEAD_BYTES_MAX {
                return Err("a chunk size or trailer of more than 16 KiB");
            }
        }
        Ok(at)
    }

    /// The last chunk and the trailer have been read.
    pub(crate) fn is_done(&self) -> bool {
        self.state == Chunked::Done
    }

    fn step(&self, byte: u8, body_bytes: usize) -> Result<Chunked, &'static str> {
        Ok(match (self.state, byte) {
            (Chunked::Size { digits: 0, .. }, b'\n' | b'\r' | b';') => return Err("a chunk without a size"),
            (Chunked::Size { size: 0, .. }, b'\n') => Chunked::Trailer { empty: true },
            (Chunked::Size { size, .. }, b'\n') => Chunked::Data { missing: size },
            (Chunked::Size { size, digits, .. }, b';' | b'\r' | b' ') => {
                Chunked::Size { size, digits, extension: true }
            }
            (state @ Chunked::Size { extension: true, .. }, _) => state,
            (Chunked::Size { size, digits, .. }, _) => {
                let digit = (byte as char).to_digit(16).ok_or("a chunk size that is not a number")? as usize;
                // The limit is far below overflow of the shift.
                let size = size * 16 + digit;
                if size + body_bytes > BODY_BYTES_MAX || digits == 16 {
                    return Err("a body of more than 16 MiB");
                }
                Chunked::Size { size, digits: digits + 1, extension: false }
            }
            (Chunked::DataEnd, b'\r') => Chunked::DataEnd,
            (Chunked::DataEnd, b'\n') => Chunked::default(),
            (Chunked::DataEnd, _) => return Err("a chunk longer than its size"),
            (Chunked::Trailer { empty: true }, b'\n') => Chunked::Done,
            (Chunked::Trailer { .. }, b'\n') => Chunked::Trailer { empty: true },
            (state @ Chunked::Trailer { .. }, b'\r') => state,
            (Chunked::Trailer { .. }, _) => Chunked::Trailer { empty: false },
            (state @ (Chunked::Data { .. } | Chunked::Done), _) => state,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Head>, &'static str> {
        parse_head(text.as_bytes())
    }

    #[test]
    fn a_head_is_read_whatever_the_case_of_its_names() {
        let text = "HTTP/1.1 503 Slow Down\r\nContent-LENGTH:  12 \r\nRETRY-after: 3\r\nConnection: Close\r\n\r\nrest";
        let expected = Head {
            status: 503,
            framing: Framing::Length(12),
            keep_alive: false,
            retry_after_s: Some(3),
            bytes: text.len() - 4,
        };
        assert_eq!(head(text), Ok(Some(expected)));
        let fields: Vec<_> = headers(&text.as_bytes()[..expected.bytes]).collect();
        assert_eq!(fields[0], (&b"Content-LENGTH"[..], &b"12"[..]));
        assert_eq!(fields.len(), 3);
    }

    #[test]
    fn no_beginning_of_a_head_is_taken_for_the_whole() {
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(head(&text[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(head(text).unwrap().unwrap().framing, Framing::Chunked);
    }

    #[test]
    fn keep_alive_follows_version_and_connection_header() {
        let keeps = |text| head(text).unwrap().unwrap().keep_alive;
        assert!(keeps("HTTP/1.1 200\r\n\r\n"));
        assert!(!keeps("HTTP/1.0 200 OK\r\n\r\n"));
        assert!(keeps("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\n"));
        assert!(!keeps("HTTP/1.1 200 OK\r\nconnection: te, close\r\n\r\n"));
    }

    #[test]
    fn framing_follows_status_and_headers() {
        let framing = |text| head(text).unwrap().unwrap().framing;
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n"), Framing::UntilClose);
        assert_eq!(framing("HTTP/1.1 204 No Content\r\n\r\n"), Framing::Length(0));
        assert_eq!(framing("HTTP/1.1 304 Same\r\ncontent-length: 9\r\n\r\n"), Framing::Length(0));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n"),
            Framing::Chunked
        );
    }

    #[test]
    fn what_is_not_an_answer_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/2 200\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 16777217\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        ] {
            assert!(head(text).is_err(), "{text}");
        }
        assert!(head(&"x".repeat(HEAD_BYTES_MAX + 1)).is_err());
        assert!(head(&format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX))).is_err());
    }

    #[test]
    fn what_is_not_a_chunked_body_is_refused() {
        for text in
            ["\r\n", ";x\r\n", "g\r\n", "2\r\nabc\r\n", "-1\r\n", "1000001\r\n", "00000000000000000\r\n"]
        {
            let mut decoder = ChunkedDecoder::default();
            assert!(decoder.decode(text.as_bytes(), &mut Vec::new()).is_err(), "{text:?}");
        }
        let mut trailer = b"0\r\n".to_vec();
        trailer.resize(HEAD_BYTES_MAX + 10, b'x');
        assert!(ChunkedDecoder::default().decode(&trailer, &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn a_chunked_body_survives_any_chunks_and_any_reads(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            with_extension: bool, with_trailer: bool,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                let extension = if with_extension { ";a=b" } else { "" };
                wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(if with_trailer { b"0\r\nx: y\r\n\r\n" } else { b"0\r\n\r\n" });
            let length = wire.len();
            wire.extend_from_slice(b"next answer");

            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let (mut decoder, mut body, mut used) = (ChunkedDecoder::default(), Vec::new(), 0);
            for range in cuts.windows(2) {
                used += decoder.decode(&wire[range[0]..range[1]], &mut body).unwrap();
            }
            prop_assert!(decoder.is_done());
            prop_assert_eq!(used, length);
            prop_assert_eq!(body, chunks.concat());
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_head(&bytes);
            let _ = parse_head(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat());
            let _ = ChunkedDecoder::default().decode(&bytes, &mut Vec::new());
        }
    }
}
