//! The role of a collector: HTTP in, event log out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use dashi_config::Settings;
use dashi_domain::backlog::BacklogPolicy;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::Secret;
use dashi_domain::liveness::Liveness;
use dashi_domain::spans::Tracer;
use dashi_ingest::{
    BacklogGate, BacklogGateSettings, Collector, CollectorSettings, GeoDatabase, IngestMetrics, Limiter,
    LimiterSettings, ScriptSettings, SessionIds, SourceRegistry, SourceRegistrySettings, rate_limit,
};
use dashi_store::CollectorRun;
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::exit::Misuse;
use crate::open;
use crate::serve::Base;
use crate::serve::backlog::{self, LimitsMetrics, LimitsState};
use crate::serve::helpers::Helpers;
use crate::serve::tables::Tables;
use crate::serve::tally;

/// How long the list of websites waits for the first attempt to make the tables.
const FIRST_TRY: Duration = Duration::from_secs(5);

/// How a collector computes ids.
pub struct Ids {
    /// The session ids; their formula is decided while the tables are made.
    pub sessions: SessionIds,
    secret: Secret,
}

impl Ids {
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let rules = open::id_rules(settings)?;
        Ok(Self { secret: rules.secret.clone(), sessions: SessionIds::undecided(rules) })
    }
}

/// A collector that runs.
pub struct Collecting {
    collector: Arc<Collector>,
    sources: SourceRegistry,
    limits: LimitsState,
}

impl Collecting {
    /// Starts the collector, the task that keeps its list of websites, and the one that keeps its location database.
    pub fn start(
        base: &Base<'_>,
        ids: Ids,
        tables: &Tables,
        helpers: &mut Helpers,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let settings = base.settings;
        let sources = SourceRegistry::new(
            base.store.clone(),
            SourceRegistrySettings {
                refresh: Duration::from_millis(settings.ingest.website_refresh_ms),
                recheck: Duration::from_millis(settings.ingest.website_recheck_ms),
            },
        );
        let (kept, tried) = (sources.clone(), tables.tried.clone());
        helpers.spawn("the list of websites", |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(FIRST_TRY, tried.cancelled()) => {}
            }
            kept.keep(stop).await;
        });
        let mut geo = GeoDatabase::default();
        if !settings.geo.database.is_empty() {
            let (database, keeper) = GeoDatabase::open(settings.geo.database.clone().into());
            helpers.spawn("the database of locations", |stop| keeper.keep(stop));
            geo = database;
        }
        let (limiter, limits) = limits(base, helpers, registry);
        let settings = CollectorSettings {
            tracer: base.tracer.clone(),
            ..collector_settings(settings, ids, geo, limiter, base.alive.liveness())?
        };
        let metrics = IngestMetrics::new(registry);
        let (tallies, store) = (metrics.tallies.clone(), base.store.clone());
        let run =
            CollectorRun { log: base.log.id().clone(), run_id: Uuid::now_v7(), collector: open::owner() };
        let waiting = tally::Waiting { spool: base.spool.clone(), lane: base.lane.clone() };
        helpers.spawn("the tally", |stop| tally::keep(tallies, waiting, store, run, stop));
        let (log, lane) = (base.log.clone(), base.lane.clone());
        let collector = Collector::new(log, lane, sources.clone(), settings, metrics);
        Ok(Self { collector, sources, limits })
    }

    pub fn router(&self) -> Router {
        self.collector.router()
    }

    /// The list of websites, for readiness.
    pub fn sources(&self) -> SourceRegistry {
        self.sources.clone()
    }

    /// The state of the limits, for readiness.
    pub fn limits(&self) -> LimitsState {
        self.limits.clone()
    }

    /// Waits until everything that was begun is durable or given up. To be called after the last connection has closed.
    pub async fn drain(self) {
        self.collector.drain().await;
    }
}

/// Makes the limiter, and starts the tasks that measure the backlog and watch the limits file.
fn limits(base: &Base<'_>, helpers: &mut Helpers, registry: &mut Registry) -> (Limiter, LimitsState) {
    let limits = &base.settings.limits;
    let retry_after_s_min = base.settings.ingest.retry_after_s;
    let backlog = BacklogGate::new(BacklogGateSettings {
        policy: match limits.backlog_policy {
            dashi_config::BacklogPolicy::Accept => BacklogPolicy::Accept,
            dashi_config::BacklogPolicy::Shed => BacklogPolicy::Shed,
            dashi_config::BacklogPolicy::Priorities => BacklogPolicy::Priorities,
        },
        age_max_ms: limits.backlog_s_max * 1_000,
        retry_after_s_min,
        retry_after_s_max: limits.retry_after_s_max.max(retry_after_s_min),
    });
    let (log, store, gate) = (base.log.clone(), base.store.clone(), backlog.clone());
    helpers.spawn("the measuring of the backlog", |stop| backlog::measure(log, store, gate, stop));
    let set = |number: u64| Some(number).filter(|number| *number > 0);
    let (limiter, keeper) = Limiter::open(LimiterSettings {
        website: rate_limit(
            set(limits.website_rate_events_max),
            set(limits.website_burst_events_max),
            set(limits.website_day_events_max),
        ),
        address: rate_limit(
            set(limits.address_rate_events_max),
            set(limits.address_burst_events_max),
            set(limits.address_day_events_max),
        ),
        addresses_max: limits.addresses_max,
        file: not_empty(&limits.file).map(Into::into),
        backlog: backlog.clone(),
    });
    let state = LimitsState { backlog, file: keeper.as_ref().map(dashi_ingest::LimitsFileKeeper::watched) };
    if let Some(keeper) = keeper {
        helpers.spawn("the limits file", |stop| keeper.keep(stop));
    }
    registry.register_collector(Box::new(LimitsMetrics(state.clone())));
    (limiter, state)
}

fn collector_settings(
    settings: &Settings,
    ids: Ids,
    geo: GeoDatabase,
    limiter: Limiter,
    liveness: Liveness,
) -> anyhow::Result<CollectorSettings> {
    let ingest = &settings.ingest;
    let blocked = BlockedAddresses::parse(&ingest.ignore_ip);
    for entry in blocked.unparsable() {
        tracing::warn!(entry, "ingest.ignore_ip: this is neither an address nor a CIDR block");
    }
    let trusted_proxies = TrustedProxies::parse(&ingest.trusted_proxies).map_err(|entry| {
        Misuse(format!(
            "ingest.trusted_proxies: {entry:?} is neither an address nor a CIDR block such as 10.0.0.0/8"
        ))
    })?;
    Ok(CollectorSettings {
        ids: ids.sessions,
        cut_long_fields: ingest.cut_long_fields,
        secret: ids.secret,
        blocked,
        trusted_proxies,
        geo,
        bots_welcome: ingest.disable_bot_check,
        address_header: not_empty(&ingest.client_ip_header),
        skip_location_headers: ingest.skip_location_headers,
        body_bytes_max: ingest.body_bytes_max,
        bodies_bytes_max: ingest.bodies_bytes_max,
        batch_elements_max: ingest.batch_elements_max,
        in_flight_max: ingest.in_flight_max,
        request_timeout: Duration::from_millis(ingest.request_timeout_ms),
        body_pause: Duration::from_millis(ingest.body_pause_ms_max),
        body_rate_min_bytes_per_s: ingest.body_rate_bytes_min,
        retry_after_s: ingest.retry_after_s,
        cors_max_age_s: ingest.cors_max_age_s,
        redirect_wait: Duration::from_millis(ingest.redirect_wait_ms),
        keep_unknown_types: ingest.keep_unknown_types,
        history_age: Some(Duration::from_secs(settings.history.event_age_s_min)).filter(|age| !age.is_zero()),
        base_path: ingest.base_path.clone(),
        send_path: not_empty(&ingest.send_path),
        script_paths: settings.script_paths(),
        script: ScriptSettings {
            send_path: not_empty(&ingest.send_path),
            collect_host: not_empty(&settings.script.collect_host),
            url: not_empty(&settings.script.url),
            modified: made_at(),
        },
        force_ssl: ingest.force_ssl,
        limiter,
        liveness,
        tracer: Tracer::default(),
    })
}

fn not_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// When this program was made: the time of its file, the same after a restart.
#[expect(clippy::disallowed_methods, reason = "the cli is an edge at which time enters")]
fn made_at() -> SystemTime {
    let modified = || std::env::current_exe().ok()?.metadata().ok()?.modified().ok();
    modified().unwrap_or_else(SystemTime::now)
}
