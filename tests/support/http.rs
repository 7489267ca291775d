//! A small HTTP/1.1 client. It does not retry and follows nothing: tests look at what the server sends.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};

/// The longest time for one request with its answer. Past it, the request has failed: a server that hangs breaks
/// invariant I7.
const REQUEST: Duration = Duration::from_secs(60);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer {} {:?}", self.status, self.text()))
    }

    /// A header as text, if it was sent once or more: the first.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A connection that is kept over requests, one after the other.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn open(authority: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(authority).await.with_context(|| format!("no connection to {authority}"))?;
        Self::over(stream, authority).await
    }

    /// Connects to an address from this one. On Linux all of 127.0.0.0/8 is there without being set up.
    ///
    /// # Errors
    /// If nobody listens there, or this machine has no such address.
    pub async fn open_from(from: Ipv4Addr, authority: &str) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket
            .connect(authority.parse()?)
            .await
            .with_context(|| format!("no connection from {from} to {authority}"))?;
        Self::over(stream, authority).await
    }

    async fn over(stream: TcpStream, authority: &str) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors reach the sender too.
        tokio::spawn(async { connection.await.ok() });
        Ok(Self { sender, authority: authority.to_owned() })
    }

    /// Sends one request and reads the answer. A `host` in `headers` replaces the connection's.
    ///
    /// # Errors
    /// If the connection breaks or there is no whole answer within a minute.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header(HOST, &self.authority);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let exchange = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        match tokio::time::timeout(REQUEST, exchange).await {
            Ok(answer) => answer,
            Err(_elapsed) => bail!("no answer from {} within {REQUEST:?}", self.authority),
        }
    }

    /// Posts JSON as [`post_json`] does.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn post_json(
        &mut self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, body.to_string(), &with_json(headers)).await
    }
}

/// `GET url` on a connection of its own.
///
/// # Errors
/// If there is no whole answer.
pub async fn get(url: &str) -> anyhow::Result<Answer> {
    request(Method::GET, url, Bytes::new(), &[]).await
}

/// Posts `body` as `application/json`, unless `headers` has another `content-type`, on a connection of its own.
///
/// # Errors
/// If there is no whole answer.
pub async fn post_json(url: &str, body: &Value, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
    request(Method::POST, url, body.to_string(), &with_json(headers)).await
}

/// Any request, with exactly these headers and a `host`, on a connection of its own.
///
/// # Errors
/// If there is no whole answer.
pub async fn request(
    method: Method,
    url: &str,
    body: impl Into<Bytes>,
    headers: &[(&str, &str)],
) -> anyhow::Result<Answer> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is no http:// URL"))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    Connection::open(authority).await?.send(method, path, body, headers).await
}

fn with_json<'a>(headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut headers = headers.to_vec();
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE.as_str())) {
        headers.push(("content-type", "application/json"));
    }
    headers
}
