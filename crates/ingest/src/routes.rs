//! The collector's paths: which there are, under which names, and what answers them.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use dashi_domain::submission::{BATCH_ERRORS_MAX, SourceKind, Submission, parse_batch};
use dashi_http::answer::{empty, json};
use dashi_http::headers;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};

use crate::answer::{Accepted, IGNORED_JSON, Ignored, Rejection, batch_json, not_found};
use crate::client::Client;
use crate::collector::{Alias, Collector, Look, Now, Websites};
use crate::decide::{Decision, decide, website_to_look_up};
use crate::frame::{Outcome, Plan};
use crate::metrics::Subject;
use crate::recorder::{record, recorder};
use crate::script::ScriptFile;
use crate::source_registry::Found;
use crate::visit;

impl Collector {
    /// The collector's routes. They need [`dashi_http::Peer`] among a request's extensions, as the server puts it.
    pub fn router(&self) -> Router {
        let posted = |route: MethodRouter<Self>| route.options(|| preflight("OPTIONS, POST"));
        let got = |route: MethodRouter<Self>| route.options(|| preflight("GET, HEAD, OPTIONS"));
        let router = Router::new()
            .route("/api/send", posted(post(send)))
            .route("/api/batch", posted(post(batch)))
            .route("/api/record", posted(post(record)))
            .route("/api/websites/{website}/recorder", got(get(recorder)))
            .route("/api/heartbeat", got(get(heartbeat)))
            .fallback(elsewhere);
        let mut router = headers::add_missing(router, headers::cross_origin(self.paths().cors_max_age_s))
            .route("/p/{slug}", got(get(visit::pixel)))
            .route("/q/{slug}", got(get(visit::link)))
            .route("/script.js", got(get(script)))
            .route("/script-vitals.js", got(get(script_vitals)));
        if self.paths().force_ssl {
            router = headers::add_missing(router, headers::https_only());
        }
        if !self.paths().base.is_empty() {
            router = Router::new().nest(&self.paths().base, router);
        }
        router.with_state(self.clone())
    }
}

async fn send(State(collector): State<Collector>, request: Request<Body>) -> Response {
    events(collector, request, false, |outcomes| match outcomes.into_iter().next() {
        Some(Outcome::Stored(accepted)) => Ok(json(StatusCode::OK, accepted.to_json())),
        Some(Outcome::Answered(_)) => Ok(json(StatusCode::OK, IGNORED_JSON.to_owned())),
        Some(Outcome::Refused(rejection)) => Err(rejection),
        None => Err(Rejection::Unavailable),
    })
    .await
}

async fn batch(State(collector): State<Collector>, request: Request<Body>) -> Response {
    events(collector, request, true, |outcomes| {
        // Nothing of it is in the log and a retry may help: then the whole request says so. Otherwise each element has
        // its own answer, and the client learns which ones to send again.
        let is_away = |outcome: &Outcome<_, _>| matches!(outcome, Outcome::Refused(Rejection::Unavailable));
        let is_taken = |outcome: &Outcome<_, _>| !matches!(outcome, Outcome::Refused(_));
        if outcomes.iter().any(is_away) && !outcomes.iter().any(is_taken) {
            return Err(Rejection::Unavailable);
        }
        Ok(json(StatusCode::OK, batch_json(&outcomes)))
    })
    .await
}

/// Makes the answer of what became of a request's events.
type Respond = fn(Vec<Outcome<Accepted, Ignored>>) -> Result<Response, Rejection>;

/// Takes one event, or a batch of them.
async fn events(collector: Collector, request: Request<Body>, is_batch: bool, respond: Respond) -> Response {
    let client = collector.client(&request);
    let origin = collector.origin(&client, &request);
    let frame = match collector.enter(Subject::Events, origin, &request) {
        Ok(frame) => frame,
        Err(rejection) => return collector.refusal(rejection),
    };
    frame
        .answer(async {
            let body = collector.read(request.into_body(), origin).await?;
            let now = Now::read();
            let look = |websites: &Websites<'_>| {
                decide_all(&collector, &client, &body.bytes, is_batch, now, websites)
            };
            let decisions = collector.looking(&body, is_batch, now, look).await?;
            Ok(Plan { decisions, share: Some(body.into_share()), respond })
        })
        .await
}

/// Decides all submissions of a body, unless there are websites among them that have to be looked up first.
fn decide_all(
    collector: &Collector,
    client: &Client,
    body: &[u8],
    is_batch: bool,
    now: Now,
    websites: &Websites<'_>,
) -> Result<Look<Vec<Decision>>, Rejection> {
    let claims = collector.claims(client, now.ms);
    let rules = collector.rules().schema().keeping(collector.keeps());
    let mut unknown = Vec::new();
    let mut decide = |submission: Submission<'_>, index| {
        if let Some(website) = website_to_look_up(&submission, claims.as_ref()) {
            match websites.get(website) {
                Some(Found::Yes(_)) => {}
                Some(Found::No) => return Decision::Refuse(Rejection::UnknownWebsite),
                Some(Found::Unsure) => return Decision::Refuse(Rejection::Unavailable),
                None => {
                    unknown.push(website);
                    return Decision::Refuse(Rejection::Unavailable);
                }
            }
        }
        let source = &submission.payload.source;
        let is_website = source.kind == SourceKind::Website;
        let website = is_website.then(|| collector.sources().listed_website(source.id)).flatten();
        let blocked = website.as_ref().map(|website| &website.blocked);
        decide(collector.rules(), blocked, client, claims.as_ref(), submission, index, now.ms)
    };
    let decisions = if is_batch {
        let mut wrong = 0;
        let elements = parse_batch(body, collector.batch_elements_max())?.into_iter().enumerate();
        elements
            .map(|(index, element)| {
                let parsed = Submission::from_value(element, rules);
                collector.count_unknown(&parsed);
                match parsed {
                    Ok(submission) => decide(submission, Some(index)),
                    Err(error) => {
                        wrong += 1;
                        // No more of them are spelled out in the answer.
                        let error = if wrong > BATCH_ERRORS_MAX { error.without_reasons() } else { error };
                        Decision::Refuse(Rejection::Schema(error))
                    }
                }
            })
            .collect()
    } else {
        let parsed = Submission::parse(body, rules);
        collector.count_unknown(&parsed);
        vec![decide(parsed.map_err(Rejection::Schema)?, None)]
    };
    if unknown.is_empty() {
        return Ok(Look::Decided(decisions));
    }
    unknown.sort_unstable();
    unknown.dedup();
    Ok(Look::Unknown(unknown))
}

async fn heartbeat() -> Response {
    json(StatusCode::OK, r#"{"ok":true}"#.to_owned())
}

async fn preflight(allow: &'static str) -> Response {
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

async fn script(State(collector): State<Collector>, headers: HeaderMap) -> Response {
    collector.paths().script.respond(ScriptFile::Tracker, &headers)
}

async fn script_vitals(State(collector): State<Collector>, headers: HeaderMap) -> Response {
    collector.paths().script.respond(ScriptFile::Vitals, &headers)
}

/// A path that is not among the routes: an alias of one, or one with a slash too many at its end.
async fn elsewhere(State(collector): State<Collector>, request: Request<Body>) -> Response {
    let path = request.uri().path();
    if let Some(alias) = collector.paths().aliases.get(path).copied() {
        return match (alias, request.method()) {
            (Alias::Send, &Method::POST) => send(State(collector), request).await,
            (Alias::Send, &Method::OPTIONS) => preflight("OPTIONS, POST").await,
            (Alias::Script(file), &Method::GET | &Method::HEAD) => {
                let mut response = collector.paths().script.respond(file, request.headers());
                if request.method() == Method::HEAD {
                    *response.body_mut() = Body::empty();
                }
                response
            }
            (Alias::Script(_), &Method::OPTIONS) => preflight("GET, HEAD, OPTIONS").await,
            _ => empty(StatusCode::METHOD_NOT_ALLOWED),
        };
    }
    let Some(shorter) = path.strip_suffix('/').filter(|shorter| !shorter.is_empty()) else {
        return not_found();
    };
    // Two slashes, or a slash and a backslash, begin the name of another host.
    let mut location = format!("{}/{}", collector.paths().base, shorter.trim_matches(['/', '\\']));
    if let Some(query) = request.uri().query() {
        location.push('?');
        location.push_str(query);
    }
    let Ok(location) = HeaderValue::try_from(location) else { return not_found() };
    let mut response = empty(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(header::LOCATION, location);
    response
}
