//! The collector: within bounds, decide and append. What is answered on which path is told in `routes`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::response::Response;
use dashi_domain::calendar::ms_since_1970;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::Secret;
use dashi_domain::schema::SchemaError;
use dashi_domain::submission::Submission;
use dashi_domain::token::{TokenClaims, Tokens};
use dashi_event_log::{AppendError, EventLog, NewRecord};
use dashi_http::{Deadlines, Outgoing, Peer, Repeated};
use http::Request;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::answer::Rejection;
use crate::body::{BodyBudget, BudgetedBody};
use crate::client::{Client, ClientRules};
use crate::decide::Rules;
use crate::frame::{Decision, Frame, Origin, Origins, Outcome, Places};
use crate::geo::GeoDatabase;
use crate::metrics::{IngestMetrics, Subject};
use crate::recorder::Refusals;
use crate::script::{Script, ScriptFile, ScriptSettings, vitals_path};
use crate::session_ids::SessionIds;
use crate::source_registry::{Found, SourceRegistry, Website};

/// Settings of a collector.
#[derive(Clone)]
pub struct CollectorSettings {
    /// How ids are computed.
    pub ids: SessionIds,
    /// Whether texts longer than their columns are taken also where Umami refuses them.
    pub cut_long_fields: bool,
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
    /// Elements of one batch; more are answered 413.
    pub batch_elements_max: usize,
    /// Requests worked on at once, half of them of one client; more are answered 503.
    pub in_flight_max: usize,
    /// Bound of one request: reading, appending, everything.
    pub request_timeout: Duration,
    /// Longest pause in a body; then 408.
    pub body_pause: Duration,
    /// Least rate of a body that takes longer than that; below it, 408.
    pub body_rate_min_bytes_per_s: u64,
    /// What `Retry-After` says with a 503.
    pub retry_after_s: u64,
    /// What `Access-Control-Max-Age` says.
    pub cors_max_age_s: u64,
    /// How long who follows a link waits for its visit to be recorded.
    pub redirect_wait: Duration,
    /// Whether submissions of unknown types are kept in the log.
    pub keep_unknown_types: bool,
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

/// Bodies above this are worked on where they do not hold up other requests.
const LARGE_BODY_BYTES: usize = 64 * 1024;

/// Above this, a body is parsed alone: one of ten megabytes of `0,` makes a tree of some hundred megabytes.
const HUGE_BODY_BYTES: usize = 1024 * 1024;

/// Batches above this have so many elements that they count as large.
const LARGE_BATCH_BYTES: usize = 4 * 1024;

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub struct Collector(Arc<Shared>);

struct Shared {
    log: EventLog,
    sources: SourceRegistry,
    rules: Rules,
    client_rules: ClientRules,
    bodies: BodyBudget,
    batch_elements_max: usize,
    origins: Origins,
    places: Places,
    /// Large bodies that are worked on at once.
    large: Semaphore,
    /// The same for huge ones.
    huge: Semaphore,
    deadlines: Deadlines,
    redirect_wait: Duration,
    retry_after_s: u64,
    paths: Paths,
    /// What was begun and has lost its client.
    background: TaskTracker,
    unrecorded: Repeated,
    refusals: Refusals,
    keep_unknown_types: bool,
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
    pub fn new(
        log: EventLog,
        sources: SourceRegistry,
        settings: CollectorSettings,
        metrics: IngestMetrics,
    ) -> Self {
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
                cut_long_fields: settings.cut_long_fields,
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
            batch_elements_max: settings.batch_elements_max,
            origins: Origins::default(),
            places: Places::new(settings.in_flight_max),
            large: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            huge: Semaphore::new(1),
            deadlines: Deadlines {
                request: settings.request_timeout,
                body_pause: settings.body_pause,
                body_bytes_per_s_min: settings.body_rate_min_bytes_per_s,
            },
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
            unrecorded: Repeated::default(),
            refusals: Refusals::default(),
            keep_unknown_types: settings.keep_unknown_types,
            metrics,
        }))
    }

    /// Waits until all that was begun is durable or given up, and counted. To be called when no request can come any
    /// more.
    pub async fn drain(&self) {
        self.0.background.close();
        self.0.background.wait().await;
    }

    /// The frame of a request, if there is a place for it. What is refused here is counted.
    pub(crate) fn enter(
        &self,
        subject: Subject,
        origin: Origin,
        request: &Request<Body>,
    ) -> Result<Frame, Rejection> {
        let outgoing = request.extensions().get::<Outgoing>().cloned();
        match self.0.places.take(origin, &self.0.metrics) {
            Some(place) => Ok(Frame::new(self, subject, outgoing, place)),
            None => {
                self.0.metrics.count(subject, Rejection::Unavailable.label());
                Err(Rejection::Unavailable)
            }
        }
    }

    pub(crate) async fn read(&self, body: Body, origin: Origin) -> Result<BudgetedBody, Rejection> {
        self.0.bodies.read(body, origin).await
    }

    /// Whose part of what all share a request takes.
    pub(crate) fn origin(&self, client: &Client, request: &Request<Body>) -> Origin {
        self.0.origins.of(&client.address, self.peer(request))
    }

    /// Looks at a body until everything is known that it asks for: a first time, and once more if it names websites that
    /// are not on the list. So nothing that was parsed is kept while the list is read. `is_batch` counts its elements.
    pub(crate) async fn looking<T>(
        &self,
        body: &BudgetedBody,
        is_batch: bool,
        now: Now,
        look: impl Fn(&Websites<'_>) -> Result<Look<T>, Rejection>,
    ) -> Result<T, Rejection> {
        let mut websites = Websites { sources: &self.0.sources, asked: HashMap::new() };
        loop {
            let unknown = match self.aside(body.bytes.len(), is_batch, || look(&websites)).await?? {
                Look::Decided(decided) => return Ok(decided),
                Look::Unknown(unknown) => unknown,
            };
            for website in unknown {
                let found = self.0.sources.website(website, now.instant).await;
                websites.asked.insert(website, found);
            }
        }
    }

    /// Works on a body; on a large one where other requests do not wait for it, and on few of them at once.
    async fn aside<T>(&self, bytes: usize, is_batch: bool, work: impl FnOnce() -> T) -> Result<T, Rejection> {
        if bytes <= if is_batch { LARGE_BATCH_BYTES } else { LARGE_BODY_BYTES } {
            return Ok(work());
        }
        // The semaphores are never closed.
        let unavailable = |_| Rejection::Unavailable;
        let _huge = match bytes > HUGE_BODY_BYTES {
            true => Some(self.0.huge.acquire().await.map_err(unavailable)?),
            false => None,
        };
        let _large = self.0.large.acquire().await.map_err(unavailable)?;
        Ok(tokio::task::block_in_place(work))
    }

    /// The answer to a request that is refused as a whole. Counts nothing.
    pub(crate) fn refusal(&self, rejection: Rejection) -> Response {
        rejection.into_response(self.0.retry_after_s)
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        self.0.deadlines
    }

    pub(crate) fn batch_elements_max(&self) -> usize {
        self.0.batch_elements_max
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.0.paths
    }

    pub(crate) fn sources(&self) -> &SourceRegistry {
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

    /// Whether submissions of unknown types are kept.
    pub(crate) fn keeps(&self) -> bool {
        self.0.keep_unknown_types
    }

    /// Counts a submission whose type is not known, kept or refused.
    pub(crate) fn count_unknown(&self, parsed: &Result<Submission<'_>, SchemaError>) {
        let unknown = match parsed {
            Ok(submission) => submission.kept.as_ref().map(|kept| (kept.counted_as(), true)),
            Err(error) => error.unknown_kind().map(|kind| (kind, false)),
        };
        if let Some((kind, is_kept)) = unknown {
            self.0.metrics.count_unknown(kind, is_kept);
        }
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// Notes that a visit of a link or pixel is answered and not recorded.
    pub(crate) fn unrecorded(&self, source: Uuid) {
        self.0.metrics.unrecorded_visits.inc();
        if let Some(times) = self.0.unrecorded.due() {
            tracing::warn!(
                %source, times,
                "a visit was answered and not recorded; said again with a count while it goes on"
            );
        }
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

    pub(crate) fn claims(&self, client: &Client, now_ms: i64) -> Option<TokenClaims> {
        let token = client.token.as_deref()?;
        self.0.rules.tokens.verify(token, now_ms.div_euclid(1_000))
    }

    /// Appends the records of all decisions at once and gives each its outcome, in order.
    pub(crate) async fn carry_out<S, A>(&self, decisions: Vec<Decision<S, A>>) -> Vec<Outcome<S, A>> {
        let mut entries = Vec::with_capacity(decisions.len());
        let waiting: Vec<_> = decisions
            .into_iter()
            .map(|decision| match decision {
                Decision::Append(entry, stored) => {
                    entries.push(entry);
                    Waiting::Append(stored)
                }
                Decision::Answer(answer) => Waiting::Not(Outcome::Answered(answer)),
                Decision::Refuse(rejection) => Waiting::Not(Outcome::Refused(rejection)),
            })
            .collect();
        let mut appended = self.append(entries).await.into_iter();
        waiting
            .into_iter()
            .map(|waiting| match waiting {
                Waiting::Not(outcome) => outcome,
                Waiting::Append(stored) => match appended.next() {
                    Some(Ok(())) => Outcome::Stored(stored),
                    Some(Err(rejection)) => Outcome::Refused(rejection),
                    None => Outcome::Refused(Rejection::Unavailable),
                },
            })
            .collect()
    }

    /// Appends records; what returns `Ok` is durable.
    async fn append(&self, entries: Vec<NewRecord>) -> Vec<Result<(), Rejection>> {
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

/// A decision on its way through [`Collector::carry_out`].
enum Waiting<S, A> {
    Append(S),
    Not(Outcome<S, A>),
}

/// What a look at a body gives.
pub(crate) enum Look<T> {
    /// What is to be done.
    Decided(T),
    /// Websites that have to be looked up first; at least one.
    Unknown(Vec<Uuid>),
}

/// The websites as far as they are known: those on the list, and those that were asked for.
pub(crate) struct Websites<'s> {
    sources: &'s SourceRegistry,
    asked: HashMap<Uuid, Found<Arc<Website>>>,
}

impl Websites<'_> {
    /// `None` if it has to be looked up.
    pub(crate) fn get(&self, id: Uuid) -> Option<Found<Arc<Website>>> {
        self.asked.get(&id).cloned().or_else(|| self.sources.known_website(id))
    }
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
        Self { ms: ms_since_1970(SystemTime::now()), instant: Instant::now() }
    }
}
