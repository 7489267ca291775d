//! Umami 3.1's collection side, in this process: the partner of tests that send to another collector than Dashi. It answers by
//! docs/umami-contract.md §3, §4, §5 and §6, token checks included, and stores nothing: it notes what it took.
//!
//! Its ids and tokens are computed here and not by Dashi's code, and its answers come in chunks, as Node.js sends them.
//! `tests/it/bench.rs` holds it against the recorded vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit, Zoned, ZonedRound};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A visit ends so many seconds after it began.
const VISIT_S: i64 = 1_800;

/// A server on a port of its own, which ends with this value.
#[derive(Debug)]
pub struct UmamiServer {
    authority: String,
    umami: Arc<Umami>,
    task: JoinHandle<()>,
}

/// What the server was sent, and its answers.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Requests of `/api/heartbeat`.
    pub heartbeats: u64,
    /// Events that were answered with a token, in their order.
    pub accepted: Vec<Accepted>,
    /// Events of robots: answered 200, and dropped.
    pub robots: u64,
    /// Events that were refused, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Events for which the website was looked up, since they had no usable token.
    pub look_ups: u64,
    /// Events that had a usable token of another session than their own.
    pub strange_tokens: u64,
}

/// An event that was taken.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its type.
    pub kind: String,
    /// Its payload.
    pub payload: Value,
    /// The session that it was answered with.
    pub session_id: String,
    /// Its header `x-umami-cache`, if it had one.
    pub token: Option<String>,
}

#[derive(Debug)]
struct Umami {
    secret: String,
    websites: BTreeSet<String>,
    robots: Robots,
    seen: Mutex<Seen>,
}

/// The agents that count as robots.
#[derive(Debug, Clone)]
pub enum Robots {
    /// These.
    Of(BTreeSet<String>),
    /// Every one.
    All,
}

/// The claims of a token that was verified; each may be missing.
#[derive(Debug, Default)]
struct Claims {
    website: Option<String>,
    session: Option<String>,
    visit: Option<String>,
    issued_at_s: Option<i64>,
}

impl UmamiServer {
    /// Starts one with this `APP_SECRET`, these websites, and these robots.
    pub async fn start(app_secret: &str, websites: &[&str], robots: Robots) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let authority = listener.local_addr().expect("it is bound").to_string();
        let umami = Arc::new(Umami {
            secret: hash(&[app_secret]),
            websites: websites.iter().map(|website| (*website).to_owned()).collect(),
            robots,
            seen: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&umami)));
        Self { authority, umami, task }
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// What it was sent until now.
    pub fn seen(&self) -> Seen {
        self.umami.seen().clone()
    }
}

impl Drop for UmamiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, umami: Arc<Umami>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let umami = Arc::clone(&umami);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&umami), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client may hang up at any time.
            let _ = connection.await;
        });
    }
}

type Body = StreamBody<futures::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

async fn answer(umami: Arc<Umami>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (token, agent) = (header("x-umami-cache"), header("user-agent"));
    let method = request.method().clone();
    let body = request.into_body().collect().await?.to_bytes();
    let (status, answer) = match (method, path.as_str()) {
        (Method::GET, "/api/heartbeat") => {
            umami.seen().heartbeats += 1;
            (200, json!({ "ok": true }))
        }
        (Method::POST, "/api/send") => {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            umami.take(&body, token.as_deref(), agent.as_deref())
        }
        (Method::POST, "/api/batch") => match serde_json::from_slice(&body) {
            Ok(Value::Array(elements)) => {
                (200, umami.take_all(&elements, token.as_deref(), agent.as_deref()))
            }
            _ => (400, error(400, "Bad request")),
        },
        _ => (404, error(404, "Not found")),
    };
    let text = Bytes::from(answer.to_string());
    let middle = text.len() / 2;
    let pieces = [text.slice(..middle), text.slice(middle..)].map(|piece| Ok(Frame::data(piece)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(pieces)));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

fn error(status: u16, message: &str) -> Value {
    let code = match status {
        400 => "bad-request",
        404 => "not-found",
        _ => "server-error",
    };
    json!({ "error": { "message": message, "code": code, "status": status } })
}

impl Umami {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_all(&self, elements: &[Value], token: Option<&str>, agent: Option<&str>) -> Value {
        let (mut details, mut first, mut has_robot) = (Vec::new(), None, false);
        for (index, element) in elements.iter().enumerate() {
            let (status, answer) = self.take(element, token, agent);
            if status >= 400 {
                details.push(json!({ "index": index, "response": answer }));
            } else {
                has_robot |= answer["beep"] == "boop";
                first = first.or_else(|| answer.get("cache").cloned());
            }
        }
        let (size, errors) = (elements.len(), details.len());
        let mut summary =
            json!({ "size": size, "processed": size - errors, "errors": errors, "details": details });
        if first.is_some() || !has_robot {
            summary["cache"] = first.unwrap_or(Value::Null);
        }
        summary
    }

    fn take(&self, body: &Value, token: Option<&str>, agent: Option<&str>) -> (u16, Value) {
        let (status, answer) = self.decide(body, token, agent);
        let mut seen = self.seen();
        if status >= 400 {
            *seen.refused.entry(status).or_default() += 1;
        } else if answer["beep"] == "boop" {
            seen.robots += 1;
        }
        (status, answer)
    }

    /// In the order of docs/umami-contract.md §3.1.
    fn decide(&self, body: &Value, token: Option<&str>, agent: Option<&str>) -> (u16, Value) {
        let (kind, payload) = (&body["type"], &body["payload"]);
        let website = payload["website"].as_str().filter(|website| website.parse::<Uuid>().is_ok());
        let (Some(kind @ ("event" | "identify" | "performance")), Some(website)) = (kind.as_str(), website)
        else {
            return (400, error(400, "Bad request"));
        };
        let claims =
            token.filter(|token| !token.is_empty()).and_then(|token| self.verify(token)).unwrap_or_default();
        if claims.website.is_none() {
            self.seen().look_ups += 1;
            if !self.websites.contains(website) {
                return (400, error(400, "Website not found."));
            }
        }
        let text = |name: &str| payload[name].as_str().filter(|text| !text.is_empty());
        let agent = text("userAgent").or(agent).unwrap_or_default();
        let is_robot = match &self.robots {
            Robots::All => true,
            Robots::Of(agents) => agents.contains(agent),
        };
        if is_robot {
            return (200, json!({ "beep": "boop" }));
        }
        // Umami takes the host for a URL's, and fails.
        if text("hostname").is_some_and(|hostname| hostname.contains(' ')) {
            return (500, error(500, "Server error"));
        }
        let sent_s = payload["timestamp"].as_i64().filter(|sent| *sent != 0);
        let now = Timestamp::now();
        let at = sent_s.map_or(now, |sent| Timestamp::from_second(sent).expect("a time that was recorded"));
        let at = at.to_zoned(TimeZone::UTC);
        let session = match text("id") {
            Some(id) => self.id(&[website, id]),
            None => {
                self.id(&[website, text("ip").unwrap_or_default(), agent, &hash(&[&printed(&month(&at))])])
            }
        };
        let by_hour = || self.id(&[&session, &hash(&[&printed(&hour(&at))])]);
        let mut visit = claims.visit.clone().unwrap_or_else(by_hour);
        let mut issued_at_s = claims.issued_at_s.unwrap_or(now.as_second());
        if sent_s.is_none() && now.as_second() - issued_at_s > VISIT_S {
            (visit, issued_at_s) = (by_hour(), now.as_second());
        }
        let cache = self.issue(website, &session, &visit, issued_at_s);
        let mut seen = self.seen();
        seen.strange_tokens += u64::from(claims.session.is_some_and(|of_token| of_token != session));
        seen.accepted.push(Accepted {
            kind: kind.to_owned(),
            payload: payload.clone(),
            session_id: session.clone(),
            token: token.map(str::to_owned),
        });
        (200, json!({ "cache": cache, "sessionId": session, "visitId": visit }))
    }

    /// The contract's U(a, b, …).
    fn id(&self, parts: &[&str]) -> String {
        let name = hash(&[parts, &[&self.secret]].concat());
        Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()).to_string()
    }

    fn issue(&self, website: &str, session: &str, visit: &str, issued_at_s: i64) -> String {
        let header = BASE64.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let claims = format!(
            r#"{{"websiteId":"{website}","sessionId":"{session}","visitId":"{visit}","iat":{issued_at_s}}}"#
        );
        let signed = format!("{header}.{}", BASE64.encode(claims));
        format!("{signed}.{}", BASE64.encode(self.signature(&signed).finalize().into_bytes()))
    }

    /// The claims; `None` if the token is none of this server's.
    fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        self.signature(signed).verify_slice(&BASE64.decode(signature).ok()?).ok()?;
        let claims: Value = serde_json::from_slice(&BASE64.decode(signed.split_once('.')?.1).ok()?).ok()?;
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        Some(Claims {
            website: text("websiteId"),
            session: text("sessionId"),
            visit: text("visitId"),
            issued_at_s: claims["iat"].as_i64(),
        })
    }

    fn signature(&self, signed: &str) -> Hmac<sha2::Sha256> {
        let mut mac =
            <Hmac<sha2::Sha256> as Mac>::new_from_slice(self.secret.as_bytes()).expect("any length is good");
        mac.update(signed.as_bytes());
        mac
    }
}

/// The contract's H(a, b, …).
fn hash(parts: &[&str]) -> String {
    Sha512::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn month(at: &Zoned) -> Zoned {
    at.first_of_month().and_then(|first| first.start_of_day()).expect("UTC has every midnight")
}

fn hour(at: &Zoned) -> Zoned {
    at.round(ZonedRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Trunc)).expect("UTC has every hour")
}

/// As RFC 1123 prints a date.
fn printed(at: &Zoned) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
