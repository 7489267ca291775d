//! The routes, and the frame of all answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use dashi_http::Outgoing;
use dashi_http::answer::{empty, json};
use dashi_http::headers::add_missing;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::access::Access;
use crate::answers::{Answers, Ask, Decision, Failure, Question};
use crate::assets;
use crate::live::Live;
use crate::pulse::Pulse;

/// The paths of the console; a name in braces stands for a segment.
pub const PATHS: [&str; 5] = [
    "/console",
    "/console/{file}",
    "/console/data/{name}",
    "/console/data/dead-letters/{place}",
    "/console/data/dead-letters/{place}/{decision}",
];

/// Settings of the console.
pub struct ConsoleSettings {
    /// Who may read and write.
    pub access: Access,
    /// Answers questions.
    pub ask: Ask,
    /// The rates; the process keeps them.
    pub pulse: Pulse,
    /// The events that are applied, of a process that applies them.
    pub live: Option<Live>,
    /// What a page needs to know of the process.
    pub process: ProcessFacts,
}

/// Facts about the process that a page shows to those who may read.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessFacts {
    /// The version of the program.
    pub version: &'static str,
    /// Whether it takes events.
    pub collects: bool,
    /// Whether it applies events.
    pub projects: bool,
    /// The beginning of the paths of the collector, such as `/umami`; empty for none.
    pub base_path: String,
    /// The path of the tracker script.
    pub script_path: String,
    /// The path to which events are posted.
    pub send_path: String,
}

/// The console. Cheap to clone.
#[derive(Clone)]
pub struct Console(Arc<Shared>);

struct Shared {
    access: Access,
    answers: Answers,
    pulse: Pulse,
    live: Option<Live>,
    process: ProcessFacts,
}

/// The answer to a page that asks for its rights.
#[derive(Debug, Serialize)]
struct Session<'a> {
    may_read: bool,
    may_write: bool,
    /// Whether any key is set, so that asking for one has a point.
    has_keys: bool,
    process: Option<&'a ProcessFacts>,
}

impl Console {
    /// A console.
    pub fn new(ConsoleSettings { access, ask, pulse, live, process }: ConsoleSettings) -> Self {
        Self(Arc::new(Shared { access, answers: Answers::new(ask), pulse, live, process }))
    }

    /// The routes, each with the headers that keep other pages out.
    pub fn router(&self) -> Router {
        let data = Router::new()
            .route("/console/data/pulse", get(pulse))
            .route("/console/data/live", get(live))
            .route("/console/data/status", get(status))
            .route("/console/data/websites", get(websites))
            .route("/console/data/dead-letters", get(dead_letters))
            .route("/console/data/dead-letters/{place}", get(dead_letter))
            .route_layer(middleware::from_fn_with_state(self.clone(), permit));
        let changes = Router::new()
            .route("/console/data/dead-letters/{place}/retry", post(retry))
            .route("/console/data/dead-letters/{place}/discard", post(discard))
            .route_layer(middleware::from_fn_with_state(self.clone(), permit_change));
        let router = Router::new()
            .route("/console", get(to_page))
            .route("/console/", get(|request: Parts| file(Path(String::new()), request)))
            .route("/console/{file}", get(file))
            .route("/console/data/session", get(session))
            .merge(data)
            .merge(changes)
            .with_state(self.clone());
        add_missing(router, assets::common_headers())
    }
}

/// Answers a request for data only if it may read.
async fn permit(State(console): State<Console>, request: axum::extract::Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if !console.0.access.may_read(&parts) {
        return unauthorized();
    }
    next.run(axum::extract::Request::from_parts(parts, body)).await
}

/// Answers a request that changes something only with a key.
async fn permit_change(
    State(console): State<Console>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    if !console.0.access.may_write(&parts) {
        return unauthorized();
    }
    next.run(axum::extract::Request::from_parts(parts, body)).await
}

/// Relative, so that a prefix that a proxy adds stays.
async fn to_page() -> Response {
    let mut response = empty(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("console/"));
    response
}

async fn file(Path(name): Path<String>, request: Parts) -> Response {
    assets::serve(&name, &request.headers).unwrap_or_else(|| empty(StatusCode::NOT_FOUND))
}

async fn session(State(console): State<Console>, request: Parts) -> Response {
    let Shared { access, process, .. } = &*console.0;
    let may_read = access.may_read(&request);
    let answer = Session {
        may_read,
        may_write: access.may_write(&request),
        has_keys: access.keys.is_some(),
        process: may_read.then_some(process),
    };
    data(serde_json::to_string(&answer).unwrap_or_default())
}

async fn pulse(State(console): State<Console>, request: Parts) -> Response {
    let after_ms = parameter(&request, "after").and_then(|text| text.parse().ok()).unwrap_or(0);
    data(console.0.pulse.since(after_ms))
}

async fn live(State(console): State<Console>, request: Parts) -> Response {
    let Some(live) = &console.0.live else {
        return failed(
            StatusCode::NOT_FOUND,
            "This process applies no events; a projector's console shows them.",
        );
    };
    // Without it, nothing would show whether the reader reads.
    let opened = request.extensions.get::<Outgoing>().and_then(|outgoing| live.open(outgoing));
    opened
        .unwrap_or_else(|| failed(StatusCode::SERVICE_UNAVAILABLE, "Too many pages watch events; close one."))
}

async fn status(State(console): State<Console>) -> Response {
    console.answer(Question::Status).await
}

async fn websites(State(console): State<Console>) -> Response {
    console.answer(Question::Websites).await
}

async fn dead_letters(State(console): State<Console>, request: Parts) -> Response {
    let discarded = parameter(&request, "discarded").as_deref() == Some("true");
    console.answer(Question::DeadLetters { after: parameter(&request, "after"), discarded }).await
}

async fn dead_letter(State(console): State<Console>, Path(place): Path<String>) -> Response {
    console.answer(Question::DeadLetter(place)).await
}

async fn retry(State(console): State<Console>, Path(place): Path<String>) -> Response {
    console.answer(Question::Decide { place, decision: Decision::Retry }).await
}

async fn discard(State(console): State<Console>, Path(place): Path<String>) -> Response {
    console.answer(Question::Decide { place, decision: Decision::Discard }).await
}

impl Console {
    async fn answer(&self, question: Question) -> Response {
        match self.0.answers.answer(question).await {
            Ok(answer) => data(answer.as_ref().to_owned()),
            Err(Failure::NotFound(text)) => failed(StatusCode::NOT_FOUND, &text),
            Err(Failure::Bad(text)) => failed(StatusCode::BAD_REQUEST, &text),
            Err(Failure::Unavailable(text)) => failed(StatusCode::SERVICE_UNAVAILABLE, &text),
        }
    }
}

/// The value of a parameter of the query.
fn parameter(request: &Parts, name: &str) -> Option<String> {
    let query = request.uri.query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

fn data(body: String) -> Response {
    let mut response = json(StatusCode::OK, body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn failed(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "error": { "message": text, "status": status.as_u16() } });
    let mut response = json(status, body.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unauthorized() -> Response {
    let mut response = failed(
        StatusCode::UNAUTHORIZED,
        "A key of the setting api.keys is needed, as `Authorization: Bearer KEY`. Where none is set, the console can be read \
         on the machine of a server that listens on loopback only.",
    );
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
