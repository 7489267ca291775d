//! The collector: within bounds, decide and append. What is answered on which path is told in `routes`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::Secret;
use dashi_domain::submission::Submission;
use dashi_domain::token::{Claims, Tokens};
use dashi_event_log::{AppendError, Entry, EventLog};
use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::answer::{Accepted, Rejection};
use crate::body::{BodyBudget, BudgetedBody};
use crate::client::{Client, ClientRules};
use crate::decide::{Decision, Rules, decide, website_to_look_up};
use crate::geo::GeoDatabase;
use crate::metrics::IngestMetrics;
use crate::script::{Script, ScriptFile, ScriptSettings, vitals_path};
use crate::server::Peer;
use crate::session_ids::SessionIds;
use crate::sources::{Found, Sources};

/// Settings of a collector.
#[derive(Clone)]
pub struct CollectorSettings {
    /// How ids are computed.
    pub ids: SessionIds,
    /// What tokens are signed with: the ids' secret.
    pub secret: Secret,
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
    /// How long who follows a link waits for its visit to be recorded.
    pub redirect_wait: Duration,
    /// What every path begins with, such as `/umami`; empty for nothing.
    pub base_path: String,
    /// Another path that takes what `/api/send` takes.
    pub send_path: Option<String>,
    /// Other paths of the tracker script.
    pub script_paths: Vec<String>,
    /// The tracker script.
    pub script: ScriptSettings,
    /// Whether browsers are told to come by HTTPS only.
    pub force_ssl: bool,
}

/// Bodies above this are parsed where they do not hold up other requests.
const LARGE_BODY_BYTES: usize = 64 * 1024;

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub struct Collector(Arc<Shared>);

struct Shared {
    log: EventLog,
    sources: Sources,
    rules: Rules,
    client_rules: ClientRules,
    bodies: BodyBudget,
    in_flight: Arc<Semaphore>,
    request_timeout: Duration,
    redirect_wait: Duration,
    retry_after_s: u64,
    paths: Paths,
    /// Visits that are still being recorded behind their answer.
    background: TaskTracker,
    metrics: IngestMetrics,
}

/// What the operator says of the paths and of what is answered on them.
pub(crate) struct Paths {
    /// What every path begins with; empty for nothing.
    pub(crate) base: String,
    /// Further paths, by what they are.
    pub(crate) aliases: HashMap<String, Alias>,
    /// What the tracker script's paths serve.
    pub(crate) script: Script,
    /// Whether browsers are told to come by HTTPS only.
    pub(crate) force_ssl: bool,
    /// What `Access-Control-Max-Age` says.
    pub(crate) cors_max_age_s: u64,
}

/// What else a path may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alias {
    Send,
    Script(ScriptFile),
}

impl Collector {
    /// A collector that appends to `log`.
    pub fn new(log: EventLog, sources: Sources, settings: CollectorSettings, metrics: IngestMetrics) -> Self {
        let scripts = settings
            .script_paths
            .into_iter()
            .flat_map(|path| [(vitals_path(&path), ScriptFile::Vitals), (path, ScriptFile::Tracker)]);
        let scripts = scripts.map(|(path, file)| (path, Alias::Script(file)));
        let sends = settings.send_path.into_iter().map(|path| (path, Alias::Send));
        Self(Arc::new(Shared {
            log,
            sources,
            rules: Rules {
                tokens: Tokens::new(&settings.secret),
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
            in_flight: Arc::new(Semaphore::new(settings.in_flight_max)),
            request_timeout: settings.request_timeout,
            redirect_wait: settings.redirect_wait,
            retry_after_s: settings.retry_after_s,
            paths: Paths {
                base: settings.base_path,
                aliases: scripts.chain(sends).collect(),
                script: Script::new(&settings.script),
                force_ssl: settings.force_ssl,
                cors_max_age_s: settings.cors_max_age_s,
            },
            background: TaskTracker::new(),
            metrics,
        }))
    }

    /// Waits until every visit that was answered is recorded or given up. To be called when no request can come any
    /// more.
    pub async fn drain(&self) {
        self.0.background.close();
        self.0.background.wait().await;
    }

    /// Runs one request's work within the bounds of all: in flight, and in time.
    pub(crate) async fn bounded(&self, work: impl Future<Output = Result<Response, Rejection>>) -> Response {
        let shared = &self.0;
        let outcome = match self.in_flight_permit() {
            None => Err(Rejection::Unavailable),
            Some(_permit) => {
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

    /// One place among the requests worked on at once, if there is one left.
    pub(crate) fn in_flight_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.in_flight).try_acquire_owned().ok()
    }

    pub(crate) async fn read(&self, body: Body) -> Result<BudgetedBody, Rejection> {
        self.0.bodies.read(body).await
    }

    /// The answer to a request that is refused as a whole.
    pub(crate) fn refuse(&self, rejection: Rejection) -> Response {
        rejection.into_response(self.0.retry_after_s)
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.0.paths
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.0.sources
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.0.rules
    }

    pub(crate) fn client_rules(&self) -> &ClientRules {
        &self.0.client_rules
    }

    pub(crate) fn metrics(&self) -> &IngestMetrics {
        &self.0.metrics
    }

    pub(crate) fn redirect_wait(&self) -> Duration {
        self.0.redirect_wait
    }

    pub(crate) fn background(&self) -> &TaskTracker {
        &self.0.background
    }

    /// The address of the connection's other end.
    pub(crate) fn peer(&self, request: &Request<Body>) -> IpAddr {
        // The server names it with every request.
        request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip())
    }

    pub(crate) fn client(&self, request: &Request<Body>) -> Client {
        Client::read(request.headers(), self.peer(request), &self.0.client_rules)
    }

    pub(crate) fn claims(&self, client: &Client, now_ms: i64) -> Option<Claims> {
        let token = client.token.as_deref()?;
        self.0.rules.tokens.verify(token, now_ms.div_euclid(1_000))
    }

    /// Decides one submission; asks the list of websites if it must.
    pub(crate) async fn decide(
        &self,
        client: &Client,
        claims: Option<&Claims>,
        submission: Submission<'_>,
        index: Option<usize>,
        now: Now,
    ) -> Decision {
        if let Some(website) = website_to_look_up(&submission, claims) {
            match self.0.sources.website(website, now.instant).await {
                Found::Yes(_) => {}
                Found::No => return Decision::Answer(Err(Rejection::UnknownWebsite)),
                Found::Unsure => return Decision::Answer(Err(Rejection::Unavailable)),
            }
        }
        decide(&self.0.rules, client, claims, submission, index, now.ms)
    }

    /// Appends the records of all decisions at once and gives each its outcome.
    pub(crate) async fn carry_out(&self, decisions: Vec<Decision>) -> Vec<Result<Accepted, Rejection>> {
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
        let mut appended = self.append(entries).await.into_iter();
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Ok(Accepted::Event { .. }) => {
                    appended.next().unwrap_or(Err(Rejection::Unavailable)).and(outcome)
                }
                other => other,
            })
            .collect::<Vec<_>>();
        for outcome in &outcomes {
            self.0.metrics.count(outcome.as_ref());
        }
        outcomes
    }

    /// Appends records; what returns `Ok` is durable.
    pub(crate) async fn append(&self, entries: Vec<Entry>) -> Vec<Result<(), Rejection>> {
        if entries.is_empty() {
            return Vec::new();
        }
        let began = Instant::now();
        let appended = self.0.log.append(entries).await;
        self.0.metrics.append_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = |appended: Result<_, AppendError>| match appended {
            Ok(_) => Ok(()),
            Err(AppendError::TooLarge { .. }) => Err(Rejection::TooLarge),
            Err(
                AppendError::Full
                | AppendError::Unconfirmed(_)
                | AppendError::Refused(_)
                | AppendError::Closed,
            ) => Err(Rejection::Unavailable),
        };
        appended.into_iter().map(outcome).collect()
    }
}

/// Parses; a large body on a thread that other requests do not wait for.
pub(crate) fn parsing<T>(body: &BudgetedBody, parse: impl FnOnce() -> T) -> T {
    if body.bytes.len() > LARGE_BODY_BYTES { tokio::task::block_in_place(parse) } else { parse() }
}

/// When the whole request was there, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Milliseconds since 1970.
    pub(crate) ms: i64,
    pub(crate) instant: Instant,
}

impl Now {
    #[expect(clippy::disallowed_methods, reason = "the collector is the edge at which time enters")]
    pub(crate) fn read() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { ms: since.map_or(0, |since| since.as_millis() as i64), instant: Instant::now() }
    }
}
