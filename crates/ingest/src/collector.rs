//! The collector: the parts that its handlers share. [`crate::routes`] has the paths, [`crate::endpoint`] the way of a
//! request.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::Secret;
use dashi_domain::liveness::{Liveness, Watched};
use dashi_domain::spans::Tracer;
use dashi_event_log::{EventLog, Lane};
use dashi_http::{Outgoing, Peer, Repeated};
use http::Request;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::answer::Rejection;
use crate::client::Client;
use crate::frame::Frame;
use crate::geo::GeoDatabase;
use crate::limiter::Limiter;
use crate::limits::Limits;
use crate::metrics::{IngestMetrics, Subject};
use crate::origin::Origin;
use crate::recorder::Refusals;
use crate::routes::Routes;
use crate::rules::Rules;
use crate::script::{Script, ScriptSettings};
use crate::session_ids::SessionIds;
use crate::source_registry::SourceRegistry;

/// Settings of a collector.
#[derive(Clone)]
pub struct CollectorSettings {
    /// How ids are computed.
    pub ids: SessionIds,
    /// Whether texts longer than their columns are accepted also where the rules of Umami's version refuse them.
    pub cut_long_fields: bool,
    /// The key that signs tokens: the ids' secret.
    pub secret: Secret,
    /// Addresses that are answered 403.
    pub blocked: BlockedAddresses,
    /// Whether bots are counted as well.
    pub bots_welcome: bool,
    /// A header whose whole value is the client's address; `None` for the usual ones.
    pub address_header: Option<String>,
    /// Whether proxies' location headers are ignored.
    pub skip_location_headers: bool,
    /// The proxies whose address and location headers are believed.
    pub trusted_proxies: TrustedProxies,
    /// The locations of addresses.
    pub geo: GeoDatabase,
    /// Largest body in bytes; a larger one is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of all bodies together; a body that exceeds it is answered 503.
    pub bodies_bytes_max: usize,
    /// Most elements of one batch; a batch of more is answered 413.
    pub batch_elements_max: usize,
    /// Most requests worked on at once, half of them of one client; one more is answered 503.
    pub in_flight_max: usize,
    /// Longest time of one request: reading, appending, everything.
    pub request_timeout: Duration,
    /// Longest pause in a body; then 408.
    pub body_pause: Duration,
    /// Least average rate of a body that takes longer than that; below it, 408.
    pub body_rate_min_bytes_per_s: u64,
    /// The value of `Retry-After` with a 503, in seconds.
    pub retry_after_s: u64,
    /// The value of `Access-Control-Max-Age`, in seconds.
    pub cors_max_age_s: u64,
    /// How long a visitor who follows a link, or loads a pixel, may be kept waiting until the visit is stored.
    pub redirect_wait: Duration,
    /// Age from which on an event is historical; `None` if none is.
    pub history_age: Option<Duration>,
    /// Whether submissions of unknown types are kept in the log.
    pub keep_unknown_types: bool,
    /// The beginning of every path, such as `/umami`; empty for none.
    pub base_path: String,
    /// Another path of the endpoint `/api/send`.
    pub send_path: Option<String>,
    /// Other paths of the tracker script.
    pub script_paths: Vec<String>,
    /// The tracker script.
    pub script: ScriptSettings,
    /// Whether every answer demands that browsers use HTTPS only.
    pub force_ssl: bool,
    /// The limits of what is taken in.
    pub limiter: Limiter,
    /// Where appends that do not end are noticed.
    pub liveness: Liveness,
    /// Takes the spans of requests.
    pub tracer: Tracer,
}

/// Accepts events over HTTP and appends them to the log.
pub struct Collector {
    pub(crate) log: EventLog,
    pub(crate) lane: Option<Lane>,
    pub(crate) sources: SourceRegistry,
    pub(crate) rules: Rules,
    pub(crate) limits: Limits,
    pub(crate) limiter: Limiter,
    pub(crate) routes: Routes,
    pub(crate) script: Script,
    pub(crate) metrics: IngestMetrics,
    /// The appends under way.
    pub(crate) appends: Watched,
    pub(crate) tracer: Tracer,
    /// Requests that have something to append and whose clients are gone.
    pub(crate) background: TaskTracker,
    pub(crate) refusals: Refusals,
    unrecorded: Repeated,
}

/// The head of a request that has a slot.
pub(crate) struct Admitted {
    pub(crate) client: Client,
    pub(crate) origin: Origin,
    pub(crate) frame: Frame,
}

impl Collector {
    /// A collector that appends to `log`. Historical events wait in the lane, if there is one.
    pub fn new(
        log: EventLog,
        lane: Option<Lane>,
        sources: SourceRegistry,
        settings: CollectorSettings,
        metrics: IngestMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            log,
            lane,
            sources,
            limits: Limits::new(&settings),
            routes: Routes::new(&settings),
            script: Script::new(&settings.script),
            limiter: settings.limiter.clone(),
            appends: settings.liveness.watch_work("appends"),
            tracer: settings.tracer.clone(),
            rules: Rules::new(settings),
            metrics,
            background: TaskTracker::new(),
            refusals: Refusals::default(),
            unrecorded: Repeated::default(),
        })
    }

    /// Waits until everything that was begun is durable or given up, and counted. To be called when no request can come
    /// any more.
    pub async fn drain(&self) {
        self.background.close();
        self.background.wait().await;
    }

    /// Reads a request's head and takes a slot for it.
    ///
    /// # Errors
    /// [`Rejection::Unavailable`] if no slot is left for this client. It is counted already.
    pub(crate) fn admit(
        self: &Arc<Self>,
        subject: Subject,
        request: &Request<Body>,
    ) -> Result<Admitted, Rejection> {
        let peer = peer(request);
        let client = Client::read(request.headers(), peer, &self.rules.client);
        let origin = self.limits.origins.of(&client.address, peer);
        let Some(slot) = self.limits.slots.take(origin, &self.metrics) else {
            self.metrics.count(subject, Rejection::Unavailable.label());
            return Err(Rejection::Unavailable);
        };
        let outgoing = request.extensions().get::<Outgoing>().cloned();
        let frame = Frame::new(Arc::clone(self), subject, outgoing, slot);
        Ok(Admitted { client, origin, frame })
    }

    /// The answer to a request that is refused as a whole. Counts nothing.
    pub(crate) fn refusal(&self, rejection: Rejection) -> Response {
        rejection.into_response(self.limits.retry_after_s)
    }

    /// Counts and logs that a visit of a link or pixel is answered and not recorded.
    pub(crate) fn unrecorded(&self, source: Uuid) {
        self.metrics.unrecorded_visits.inc();
        if let Some(times) = self.unrecorded.due() {
            tracing::warn!(
                %source, times,
                "a visit was answered and not recorded; logged again with a count while it goes on"
            );
        }
    }
}

/// The address of the connection's other end. The server adds it to every request.
pub(crate) fn peer(request: &Request<Body>) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip())
}
