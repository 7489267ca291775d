//! The collector's endpoints: read, decide, append, answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::IdRules;
use dashi_domain::submission::{Submission, parse_batch};
use dashi_domain::token::{Claims, Tokens};
use dashi_event_log::{AppendError, Entry, EventLog};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use tokio::sync::Semaphore;

use crate::answer::{Accepted, Rejection, batch_json, json_response};
use crate::body::{BodyBudget, BudgetedBody};
use crate::client::{Client, ClientRules};
use crate::decide::{Decision, Rules, decide, website_to_look_up};
use crate::geo::GeoDatabase;
use crate::metrics::IngestMetrics;
use crate::server::Peer;
use crate::websites::{Known, Websites};

/// Settings of a collector.
#[derive(Clone)]
pub struct CollectorSettings {
    /// How ids are computed.
    pub ids: IdRules,
    /// Addresses that are answered 403.
    pub blocked: BlockedAddresses,
    /// Whether bots are counted as well.
    pub bots_welcome: bool,
    /// A header whose whole value is the client's address; `None` for the usual ones.
    pub address_header: Option<String>,
    /// Whether proxies' location headers are ignored.
    pub skip_location_headers: bool,
    /// Whose address and location headers are believed.
    pub trusted_proxies: TrustedProxies,
    /// Where addresses are.
    pub geo: GeoDatabase,
    /// Largest body; more is answered 413.
    pub body_bytes_max: usize,
    /// All bodies together; more is answered 503.
    pub bodies_bytes_max: usize,
    /// Requests worked on at once; more are answered 503.
    pub in_flight_max: usize,
    /// Bound of one request: reading, appending, everything.
    pub request_timeout: Duration,
    /// What `Retry-After` says with a 503.
    pub retry_after_s: u64,
    /// What `Access-Control-Max-Age` says.
    pub cors_max_age_s: u64,
}

/// Bodies above this are parsed where they do not hold up other requests.
const LARGE_BODY_BYTES: usize = 64 * 1024;

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub struct Collector(Arc<Shared>);

struct Shared {
    log: EventLog,
    websites: Websites,
    rules: Rules,
    client_rules: ClientRules,
    bodies: BodyBudget,
    in_flight: Semaphore,
    request_timeout: Duration,
    retry_after_s: u64,
    cors_max_age_s: u64,
    metrics: IngestMetrics,
}

impl Collector {
    /// A collector that appends to `log`.
    pub fn new(
        log: EventLog,
        websites: Websites,
        settings: CollectorSettings,
        metrics: IngestMetrics,
    ) -> Self {
        Self(Arc::new(Shared {
            log,
            websites,
            rules: Rules {
                tokens: Tokens::new(&settings.ids.secret),
                ids: settings.ids,
                blocked: settings.blocked,
                bots_welcome: settings.bots_welcome,
                geo: settings.geo,
            },
            client_rules: ClientRules {
                address_header: settings.address_header,
                skip_location_headers: settings.skip_location_headers,
                trusted_proxies: settings.trusted_proxies,
            },
            bodies: BodyBudget::new(settings.body_bytes_max, settings.bodies_bytes_max),
            in_flight: Semaphore::new(settings.in_flight_max),
            request_timeout: settings.request_timeout,
            retry_after_s: settings.retry_after_s,
            cors_max_age_s: settings.cors_max_age_s,
            metrics,
        }))
    }

    /// The collector's routes. They need [`Peer`] among a request's extensions, as [`crate::server`] puts it.
    pub fn router(&self) -> Router {
        let posted = |route: MethodRouter<Self>| route.options(|| preflight("OPTIONS, POST"));
        let cors_max_age = HeaderValue::from(self.0.cors_max_age_s);
        Router::new()
            .route("/api/send", posted(post(send)))
            .route("/api/batch", posted(post(batch)))
            .route("/api/heartbeat", get(heartbeat).options(|| preflight("GET, HEAD, OPTIONS")))
            .fallback(elsewhere)
            .layer(map_response(move |response| cross_origin(response, cors_max_age.clone())))
            .with_state(self.clone())
    }

    /// Runs one request's work within the bounds of all: in flight, and in time.
    async fn bounded(&self, work: impl Future<Output = Result<Response, Rejection>>) -> Response {
        let shared = &self.0;
        let outcome = match shared.in_flight.try_acquire() {
            Err(_) => Err(Rejection::Unavailable),
            Ok(_permit) => {
                shared.metrics.in_flight.inc();
                let outcome = tokio::time::timeout(shared.request_timeout, work).await;
                shared.metrics.in_flight.dec();
                outcome.unwrap_or(Err(Rejection::Unavailable))
            }
        };
        outcome.unwrap_or_else(|rejection| {
            shared.metrics.count(Err(&rejection));
            rejection.into_response(shared.retry_after_s)
        })
    }

    fn client(&self, request: &Request<Body>) -> Client {
        let peer = request.extensions().get::<Peer>().map_or(UNKNOWN_PEER, |peer| peer.0);
        Client::read(request.headers(), peer.ip(), &self.0.client_rules)
    }

    fn claims(&self, client: &Client, now_ms: i64) -> Option<Claims> {
        let token = client.token.as_deref()?;
        self.0.rules.tokens.verify(token, now_ms.div_euclid(1_000))
    }

    /// Decides one submission; asks the list of websites if it must.
    async fn decide(
        &self,
        client: &Client,
        claims: Option<&Claims>,
        submission: Submission<'_>,
        index: Option<usize>,
        now_ms: i64,
    ) -> Decision {
        if let Some(website) = website_to_look_up(&submission, claims) {
            match self.0.websites.knows(website).await {
                Known::Yes => {}
                Known::No => return Decision::Answer(Err(Rejection::UnknownWebsite)),
                Known::Unsure => return Decision::Answer(Err(Rejection::Unavailable)),
            }
        }
        decide(&self.0.rules, client, claims, submission, index, now_ms)
    }

    /// Appends the records of all decisions at once and gives each its outcome.
    async fn carry_out(&self, decisions: Vec<Decision>) -> Vec<Result<Accepted, Rejection>> {
        let mut entries: Vec<Entry> = Vec::with_capacity(decisions.len());
        let outcomes: Vec<_> = decisions
            .into_iter()
            .map(|decision| match decision {
                Decision::Answer(answer) => answer,
                Decision::Append(entry, accepted) => {
                    entries.push(entry);
                    Ok(accepted)
                }
            })
            .collect();
        let mut appended = Vec::new().into_iter();
        if !entries.is_empty() {
            let began = Instant::now();
            appended = self.0.log.append(entries).await.into_iter();
            self.0.metrics.append_seconds.observe(began.elapsed().as_secs_f64());
        }
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Ok(Accepted::Event { .. }) => match appended.next() {
                    Some(Ok(_)) => outcome,
                    Some(Err(AppendError::TooLarge { .. })) => Err(Rejection::TooLarge),
                    Some(Err(AppendError::Full | AppendError::Unconfirmed(_) | AppendError::Closed))
                    | None => Err(Rejection::Unavailable),
                },
                other => other,
            })
            .collect::<Vec<_>>();
        for outcome in &outcomes {
            self.0.metrics.count(outcome.as_ref());
        }
        outcomes
    }
}

/// Stands for a peer that the server did not name; it never happens behind [`crate::server`].
const UNKNOWN_PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

async fn send(State(collector): State<Collector>, request: Request<Body>) -> Response {
    collector
        .bounded(async {
            let client = collector.client(&request);
            let body = collector.0.bodies.read(request.into_body()).await?;
            let now_ms = now_ms();
            let claims = collector.claims(&client, now_ms);
            let submission = parsing(&body, || Submission::parse(&body.bytes)).map_err(Rejection::Schema)?;
            let decision = collector.decide(&client, claims.as_ref(), submission, None, now_ms).await;
            let _share = body.into_share();
            match collector.carry_out(vec![decision]).await.pop() {
                Some(Ok(accepted)) => Ok(json_response(StatusCode::OK, accepted.to_json())),
                // Counted where it was carried out.
                Some(Err(rejection)) => Ok(rejection.into_response(collector.0.retry_after_s)),
                None => Err(Rejection::Unavailable),
            }
        })
        .await
}

async fn batch(State(collector): State<Collector>, request: Request<Body>) -> Response {
    collector
        .bounded(async {
            let client = collector.client(&request);
            let body = collector.0.bodies.read(request.into_body()).await?;
            let now_ms = now_ms();
            let claims = collector.claims(&client, now_ms);
            let elements = parsing(&body, || parse_batch(&body.bytes)).map_err(Rejection::Schema)?;
            let mut decisions = Vec::with_capacity(elements.len());
            for (index, element) in elements.into_iter().enumerate() {
                decisions.push(match Submission::from_value(element) {
                    Ok(submission) => {
                        collector.decide(&client, claims.as_ref(), submission, Some(index), now_ms).await
                    }
                    Err(error) => Decision::Answer(Err(Rejection::Schema(error))),
                });
            }
            let _share = body.into_share();
            let outcomes = collector.carry_out(decisions).await;
            // Nothing of it is in the log and a retry may help: then the whole request says so. Otherwise each
            // element has its own answer, and the client learns which ones to send again.
            let is_away = |outcome: &Result<_, _>| matches!(outcome, Err(Rejection::Unavailable));
            if outcomes.iter().any(is_away) && !outcomes.iter().any(Result::is_ok) {
                return Ok(Rejection::Unavailable.into_response(collector.0.retry_after_s));
            }
            Ok(json_response(StatusCode::OK, batch_json(&outcomes)))
        })
        .await
}

/// Parses; a large body on a thread that other requests do not wait for.
fn parsing<T>(body: &BudgetedBody, parse: impl FnOnce() -> T) -> T {
    if body.bytes.len() > LARGE_BODY_BYTES { tokio::task::block_in_place(parse) } else { parse() }
}

async fn heartbeat() -> Response {
    json_response(StatusCode::OK, r#"{"ok":true}"#.to_owned())
}

async fn preflight(allow: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// A path that is none of ours: without its trailing slash it may be one.
async fn elsewhere(uri: Uri) -> Response {
    let path = uri.path();
    let Some(shorter) = path.strip_suffix('/').filter(|shorter| !shorter.is_empty()) else {
        return not_found();
    };
    // Two slashes, or a slash and a backslash, begin the name of another host.
    let mut location = format!("/{}", shorter.trim_matches(['/', '\\']));
    if let Some(query) = uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let Ok(location) = HeaderValue::try_from(location) else { return not_found() };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn not_found() -> Response {
    let body = r#"{"error":{"message":"Not found","code":"not-found","status":404}}"#;
    json_response(StatusCode::NOT_FOUND, body.to_owned())
}

/// The headers that every answer of `/api/*` has, whatever its status. Others that have them do no harm.
async fn cross_origin(mut response: Response, max_age: HeaderValue) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, DELETE, POST, PUT"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, max_age);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// When the whole request was there.
#[expect(clippy::disallowed_methods, reason = "the collector is the edge at which time enters")]
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
