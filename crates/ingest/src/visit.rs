//! Visits of links (`/q/{slug}`) and pixels (`/p/{slug}`): appended as an event, and answered also if the event cannot
//! be stored. Source of the rules: docs/umami-contract.md §13.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use dashi_domain::json::{Object, Value};
use dashi_domain::page_url::{is_url, with_parameters};
use dashi_domain::submission::{SourceKind, Submission};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, header};
use tokio::time::Instant;
use uuid::Uuid;

use crate::answer::{Rejection, not_found};
use crate::client::{Client, public_host};
use crate::collector::{Admitted, Collector, peer};
use crate::decide::{Decision, decide};
use crate::frame::{Frame, Outcomes, PartOutcome, Plan};
use crate::metrics::{Counted, Subject};
use crate::now::Now;
use crate::request_span::RequestSpan;
use crate::routes::{LINK_PATH, PIXEL_PATH};
use crate::source_registry::{Found, LinkTarget};

/// A picture of one transparent pixel.
const GIF: [u8; 43] = [
    0x47, 0x49, 0x46, 0x38, 0x39, 0x61, 0x01, 0x00, 0x01, 0x00, 0x80, 0x00, 0x00, 0xff, 0xff, 0xff, 0x00,
    0x00, 0x00, 0x21, 0xf9, 0x04, 0x01, 0x00, 0x00, 0x00, 0x00, 0x2c, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00,
    0x01, 0x00, 0x00, 0x02, 0x02, 0x44, 0x01, 0x00, 0x3b,
];

/// `GET /q/{slug}`: a redirect to the link's target.
pub async fn link(
    State(collector): State<Arc<Collector>>,
    slug: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> Response {
    let Ok(Path(slug)) = slug else { return not_found() };
    let span = RequestSpan::begin(&collector, &request, Some(LINK_PATH));
    let response = follow(&collector, &slug, request, span.as_ref()).await;
    if let Some(span) = span {
        span.answered(response.status());
    }
    response
}

async fn follow(
    collector: &Arc<Collector>,
    slug: &str,
    request: Request<Body>,
    span: Option<&RequestSpan>,
) -> Response {
    let visit = Visit::read(collector, &request);
    let Ok(Admitted { client, frame, .. }) = collector.admit(Subject::Events, &request) else {
        // A visitor who follows a link is to arrive, recorded or not.
        return match collector.sources.known_link(slug) {
            Some(link) => {
                visit.unrecorded(collector, link.id);
                leads_to(&link)
            }
            None => collector.refusal(Rejection::Unavailable),
        };
    };
    let link = match visit.bounded(collector.sources.link(slug)).await {
        Found::Yes(link) => link,
        Found::No => return frame.refuse(Rejection::NoSuchSlug),
        Found::Unsure => return frame.refuse(Rejection::Unavailable),
    };
    let visit = Visit { url: with_parameters(&visit.url, &link.campaign), ..visit };
    append_visit(frame, collector, client, (SourceKind::Link, link.id), visit, span).await;
    leads_to(&link)
}

fn leads_to(link: &LinkTarget) -> Response {
    let mut response = Response::new(Body::empty());
    match link.location.as_deref().and_then(|location| HeaderValue::try_from(location).ok()) {
        Some(location) => {
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert(header::LOCATION, location);
        }
        // The link's owner entered a text that is no URL.
        None => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    response
}

/// `GET /p/{slug}`: a picture of one pixel.
pub async fn pixel(
    State(collector): State<Arc<Collector>>,
    slug: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> Response {
    let Ok(Path(slug)) = slug else { return not_found() };
    let span = RequestSpan::begin(&collector, &request, Some(PIXEL_PATH));
    let response = show(&collector, &slug, request, span.as_ref()).await;
    if let Some(span) = span {
        span.answered(response.status());
    }
    response
}

async fn show(
    collector: &Arc<Collector>,
    slug: &str,
    request: Request<Body>,
    span: Option<&RequestSpan>,
) -> Response {
    let visit = Visit::read(collector, &request);
    let Ok(Admitted { client, frame, .. }) = collector.admit(Subject::Events, &request) else {
        return match collector.sources.known_pixel(slug) {
            Some(id) => {
                visit.unrecorded(collector, id);
                picture()
            }
            None => collector.refusal(Rejection::Unavailable),
        };
    };
    let id = match visit.bounded(collector.sources.pixel(slug)).await {
        Found::Yes(id) => id,
        Found::No => return frame.refuse(Rejection::NoSuchSlug),
        Found::Unsure => return frame.refuse(Rejection::Unavailable),
    };
    append_visit(frame, collector, client, (SourceKind::Pixel, id), visit, span).await;
    picture()
}

fn picture() -> Response {
    let mut response = Response::new(Body::from(&GIF[..]));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/gif"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(header::EXPIRES, HeaderValue::from_static("0"));
    response
}

/// A visit. A HEAD asks only where a link leads and is no visit.
struct Visit {
    url: String,
    referrer: Option<String>,
    counts: bool,
    /// Until when the visitor is kept waiting, for the slug to be found and the visit to be stored together.
    deadline: Instant,
}

impl Visit {
    /// Reads a request's head. The URL is the public one, as far as the client or a trusted proxy names it.
    fn read(collector: &Collector, request: &Request<Body>) -> Self {
        let host = public_host(request.headers(), peer(request), &collector.rules.client);
        let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let path = format!("{}{path}", collector.routes.base);
        let url = host.map(|host| format!("https://{host}{path}")).filter(|url| is_url(url));
        let referrer = request.headers().get(header::REFERER).and_then(|value| value.to_str().ok());
        Self {
            url: url.unwrap_or(path),
            referrer: referrer.filter(|referrer| is_url(referrer)).map(str::to_owned),
            counts: request.method() != Method::HEAD,
            deadline: Instant::now() + collector.limits.redirect_wait,
        }
    }

    async fn bounded<T>(&self, found: impl Future<Output = Found<T>>) -> Found<T> {
        tokio::time::timeout_at(self.deadline, found).await.unwrap_or(Found::Unsure)
    }

    /// Counts and logs that the visit is answered and not recorded.
    fn unrecorded(&self, collector: &Collector, source: Uuid) {
        if self.counts {
            collector.unrecorded(source);
        }
    }
}

/// The outcome of a HEAD.
struct OnlyAsked;

impl Counted for OnlyAsked {
    fn label(&self) -> &'static str {
        "head"
    }
}

/// Appends the visit's event and waits until it is durable or the deadline is over; after the deadline, the append goes
/// on behind the answer.
async fn append_visit(
    frame: Frame,
    collector: &Arc<Collector>,
    client: Client,
    (kind, id): (SourceKind, Uuid),
    visit: Visit,
    span: Option<&RequestSpan>,
) {
    if !visit.counts {
        return frame.done(OnlyAsked);
    }
    let payload = [
        (kind.as_str(), Some(id.hyphenated().to_string())),
        ("url", Some(visit.url)),
        ("referrer", visit.referrer),
    ];
    let payload =
        payload.into_iter().filter_map(|(key, value)| Some((key.into(), Value::String(value?.into()))));
    let body =
        [("type", Value::String("event".into())), ("payload", Value::Object(Object::from_members(payload)))];
    let body = Value::Object(Object::from_members(body.map(|(key, value)| (key.into(), value))));
    let now = Now::read();
    let limits = collector.limiter.of_request(&client.address, now);
    let mut decision = match Submission::from_value(body, collector.rules.schema()) {
        Ok(submission) => match limits.as_ref().and_then(|limits| limits.blocked(id, None, None)) {
            Some(rejection) => Decision::Refuse(rejection),
            None => decide(&collector.rules, None, &client, None, submission, None, now.ms),
        },
        Err(error) => Decision::Refuse(Rejection::Schema(error)),
    };
    if let Some(limits) = limits {
        limits.apply(id, &mut decision);
    }
    let of_outcomes = Arc::clone(collector);
    let respond = move |outcomes: Outcomes<_, _>| {
        let is_lost = |rejection: &Rejection| {
            matches!(rejection, Rejection::Unavailable | Rejection::TooLarge)
                || rejection.own_retry_after_s().is_some()
        };
        if let Some(PartOutcome::Refused(rejection)) = outcomes.first()
            && is_lost(rejection)
        {
            of_outcomes.unrecorded(id);
        }
    };
    let mut decisions = vec![decision];
    let span = span.and_then(|span| span.append(&mut decisions));
    let appending = frame.finish(Plan { decisions, share: None, span, respond });
    let _ = tokio::time::timeout_at(visit.deadline, appending).await;
}
