use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::{self, BODY_BYTES_MAX, ChunkedDecoder, Framing, Head, parse_head};

/// A keep-alive HTTP/1.1 client connection with one request under way at a time.
///
/// Written by hand because it is a benchmark client: beside the server that it measures, on the same cores,
/// it may cost little more than its system calls. It writes each request at once and reads into one
/// buffer. It knows the answers of a collector (a length, chunks, or the end of the connection) and no more: no TLS, no redirects, no compression. Heads are limited to 16 KiB, bodies
/// to 16 MiB.
///
/// There is no time-out inside: wrap calls in [`tokio::time::timeout`]. A call that was dropped, or
/// failed, leaves the connection unusable, see [`is_usable`](Self::is_usable).
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    authority: String,
    usable: bool,
    /// The bytes of the last answer as they came.
    input: Vec<u8>,
    /// Its body, if it came in chunks.
    chunks: Vec<u8>,
    body: Body,
}

/// The place of the last answer's body.
#[derive(Debug)]
enum Body {
    Input(Range<usize>),
    Chunks,
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Three digits; never an interim 1xx.
    pub status: u16,
    /// Names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    /// The content, taken out of its chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(this, _)| this == name).map(|(_, value)| value.as_str())
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No connection came about, so nothing was sent. Try again later.
    #[error("cannot connect to {authority}")]
    Connect {
        /// `host:port` as given.
        authority: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The connection ended before the answer did. Whether the server took the request is unknown.
    #[error("connection lost before the answer was complete")]
    Lost(#[source] io::Error),
    /// The bytes received are no answer that this client can read. Whether the server took the request is unknown.
    #[error("the server sent {0}")]
    Protocol(&'static str),
}

/// Address of the collector: the parts of `http://host:port/base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    pub authority: String,
    /// Path in front of `/api/send`: empty, or beginning with `/` and not ending with it.
    pub base: String,
}

impl Target {
    /// Reads `http://host[:port][/base]`, where `http://` may be left out and the port is 80 by default.
    /// `None` if it is something else, `https` in particular.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return None,
            None => text,
        };
        let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // Both go into the request as they are.
        let sound = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@".contains(&byte));
        if host.is_empty() || !sound(host) || !sound(base) {
            return None;
        }
        let behind_brackets = host.rfind(']').map_or(0, |at| at + 1);
        let authority = match host[behind_brackets..].split_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            Some(_) => return None,
            None => format!("{host}:80"),
        };
        Some(Self { authority, base: base.trim_end_matches('/').to_owned() })
    }
}

/// The parts of an answer on which a worker decides; the body is [`Connection::body`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after_s: Option<u64>,
    head_start: usize,
    head_end: usize,
}

impl Connection {
    /// Connects to `authority`, a `host:port`, trying every address it resolves to.
    ///
    /// # Errors
    /// [`ConnectionError::Connect`] if none of them takes the connection.
    pub async fn connect(authority: &str) -> Result<Self, ConnectionError> {
        let connect = async {
            let stream = TcpStream::connect(authority).await?;
            // Requests are written whole; waiting to fill a packet would only add to the latency.
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = connect
            .await
            .map_err(|source| ConnectionError::Connect { authority: authority.to_owned(), source })?;
        Ok(Self {
            stream,
            authority: authority.to_owned(),
            usable: true,
            input: Vec::with_capacity(READ_BYTES),
            chunks: Vec::new(),
            body: Body::Input(0..0),
        })
    }

    /// Connects to one address.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_to(address: SocketAddr) -> Result<Self, ConnectionError> {
        Self::connect(&address.to_string()).await
    }

    /// Whether another request can be sent: the last call returned an answer, and the server keeps the
    /// connection. It may still be lost by the time of the next request.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Posts `body` to `path` and awaits the complete answer. `headers` are sent as they are, behind
    /// `host` and `content-length`.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`] (at once if not [`is_usable`](Self::is_usable)) or
    /// [`ConnectionError::Protocol`]. Make a new connection; repeat only requests that may happen twice.
    pub async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ConnectionError> {
        self.request("POST", path, headers, body).await
    }

    /// As [`post`](Self::post), with any method but `HEAD` and `CONNECT`, whose answers are framed otherwise.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ConnectionError> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n",
            self.authority,
            body.len()
        );
        for (name, value) in headers {
            request.extend([*name, ": ", *value, "\r\n"]);
        }
        request.push_str("\r\n");
        let mut request = request.into_bytes();
        request.extend_from_slice(body);

        let answer = self.exchange(&request).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = answer::headers(&self.input[answer.head_start..answer.head_end])
            .map(|(name, value)| (text(name).to_ascii_lowercase(), text(value)))
            .collect();
        Ok(Response { status: answer.status, headers, body: self.body().to_vec() })
    }

    /// Sends a request as it is and reads the answer to it; its content is then in `body`.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Answer, ConnectionError> {
        if !self.usable {
            return Err(ConnectionError::Lost(io::ErrorKind::NotConnected.into()));
        }
        self.usable = false;
        self.input.clear();
        let written = self.stream.write_all(request).await;
        // A server that refuses a request may answer and close before it has read it all: look first.
        match (self.read_answer().await, written) {
            (Ok((answer, keep_alive)), written) => {
                self.usable = keep_alive && written.is_ok();
                Ok(answer)
            }
            (Err(ConnectionError::Lost(_)), Err(error)) => Err(ConnectionError::Lost(error)),
            (Err(error), _) => Err(error),
        }
    }

    /// The content of the last answer.
    pub(crate) fn body(&self) -> &[u8] {
        match &self.body {
            Body::Input(range) => &self.input[range.clone()],
            Body::Chunks => &self.chunks,
        }
    }

    async fn read_answer(&mut self) -> Result<(Answer, bool), ConnectionError> {
        let (start, head) = self.read_head().await?;
        let body_start = start + head.bytes;
        let end = match head.framing {
            Framing::Length(length) => {
                let end = body_start + length;
                self.input.reserve(end.saturating_sub(self.input.len()));
                while self.input.len() < end {
                    self.fill_more().await?;
                }
                self.body = Body::Input(body_start..end);
                end
            }
            Framing::Chunked => {
                self.body = Body::Chunks;
                self.chunks.clear();
                let mut decoder = ChunkedDecoder::default();
                let mut at = body_start;
                loop {
                    at += decoder
                        .decode(&self.input[at..], &mut self.chunks)
                        .map_err(ConnectionError::Protocol)?;
                    if decoder.is_done() {
                        break at;
                    }
                    // Decoded bytes are not needed again, but the head is, for its fields.
                    self.input.truncate(body_start);
                    at = body_start;
                    self.fill_more().await?;
                }
            }
            Framing::UntilClose => {
                while self.fill().await? {
                    if self.input.len() - body_start > BODY_BYTES_MAX {
                        return Err(ConnectionError::Protocol("a body of more than 16 MiB"));
                    }
                }
                self.body = Body::Input(body_start..self.input.len());
                self.input.len()
            }
        };
        // Bytes behind the answer belong to no request, so the connection cannot be trusted any further.
        let keep_alive = head.keep_alive && head.framing != Framing::UntilClose && end == self.input.len();
        let Head { status, retry_after_s, .. } = head;
        Ok((Answer { status, retry_after_s, head_start: start, head_end: body_start }, keep_alive))
    }

    /// Reads up to the end of the final head; returns where it begins.
    async fn read_head(&mut self) -> Result<(usize, Head), ConnectionError> {
        let mut start = 0;
        loop {
            match parse_head(&self.input[start..]).map_err(ConnectionError::Protocol)? {
                Some(Head { status: 101, .. }) => {
                    return Err(ConnectionError::Protocol("a switch of protocols that was not requested"));
                }
                Some(interim) if interim.status < 200 => {
                    start += interim.bytes;
                    if start > BODY_BYTES_MAX {
                        return Err(ConnectionError::Protocol("interim answers without end"));
                    }
                }
                Some(head) => return Ok((start, head)),
                None => self.fill_more().await?,
            }
        }
    }

    async fn fill_more(&mut self) -> Result<(), ConnectionError> {
        if self.fill().await? { Ok(()) } else { Err(lost()) }
    }

    /// Reads the bytes that are there, at least one; `false` at the end of the stream.
    async fn fill(&mut self) -> Result<bool, ConnectionError> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 2 {
            self.input.reserve(READ_BYTES);
        }
        Ok(self.stream.read_buf(&mut self.input).await.map_err(ConnectionError::Lost)? > 0)
    }
}

/// Several times an answer to a single event.
const READ_BYTES: usize = 4 * 1024;

fn lost() -> ConnectionError {
    ConnectionError::Lost(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn targets_are_read_with_and_without_scheme_port_and_base() {
        let parse = |text| Target::parse(text).map(|target| (target.authority, target.base));
        let is = |authority: &str, base: &str| Some((authority.to_owned(), base.to_owned()));
        assert_eq!(parse("http://127.0.0.1:8484"), is("127.0.0.1:8484", ""));
        assert_eq!(parse("localhost:1/"), is("localhost:1", ""));
        assert_eq!(parse("http://stats.example/umami/"), is("stats.example:80", "/umami"));
        assert_eq!(parse("http://[::1]:8484"), is("[::1]:8484", ""));
        assert_eq!(parse("[::1]"), is("[::1]:80", ""));
        for text in ["", "https://x", "http://", "x:port", "x:70000", "a b", "x\r\ny: z", "http://u@x"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
