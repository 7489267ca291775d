//! The serving commands: wire log, store, collector and projector together, run until told to stop, then drain.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::Router;
use dashi_api::{Api, ApiMetrics, ApiSettings, Keys};
use dashi_domain::calendar::ms_since_1970;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::Secret;
use dashi_domain::umami::Release;
use dashi_event_log::EventLog;
use dashi_http::{ServerLimits, ServerMetrics, serve};
use dashi_ingest::{
    Collector, CollectorSettings, GeoDatabase, IngestMetrics, ScriptSettings, SessionIds, SourceRegistry,
    SourceRegistrySettings,
};
use dashi_projector::{
    Progress, Projector, ProjectorError, ProjectorMetrics, ProjectorSettings, ProjectorState, measure,
};
use dashi_store::{NewWebsite, REDACTED, Store, StoreError, redact_url};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::args::ServeArgs;
use crate::open::{Formula, InForce};
use crate::ops::{Ops, ProjectorReadiness};
use crate::topic::TopicMetrics;
use crate::{Exit, Misuse, checked, logging, open, open_files, print};
use dashi_config::{Loaded, Origin, Settings};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    Both,
    Collect,
    Project,
}

impl Roles {
    const fn collects(self) -> bool {
        matches!(self, Self::Both | Self::Collect)
    }

    const fn projects(self) -> bool {
        matches!(self, Self::Both | Self::Project)
    }
}

/// Where `project` listens if nothing else is said: beside a collector with its default.
const PROJECT_PORT: u16 = 8485;

/// How often streams look for changes that nobody tells of.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the list of websites waits for the first attempt to make the tables.
const FIRST_TRY: Duration = Duration::from_secs(5);

/// How often retention looks for records to remove.
const RETENTION: Duration = Duration::from_secs(600);

/// Runs until SIGTERM or SIGINT, or until the projector of a process that only projects cannot run at all: the store holds
/// another log's projection, or the log refuses it. A partition that fails is no such reason.
pub async fn run(loaded: Loaded, roles: Roles, args: ServeArgs) -> anyhow::Result<Exit> {
    checked(&loaded)?;
    let mut settings = loaded.settings.clone();
    if roles == Roles::Project && matches!(loaded.origin("listen"), Some(Origin::Default)) {
        settings.listen.set_port(PROJECT_PORT);
    }
    logging::start(&settings.logs)?;
    // Before anything that takes time, so that a signal is never missed.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(signalled);
    let started = tokio::select! {
        started = Process::start(&settings, roles, args.accept_new_log) => started?,
        _ = &mut signalled => return Ok(Exit::Done),
    };
    let ended = tokio::select! {
        name = &mut signalled => {
            tracing::info!(signal = name, "draining");
            None
        }
        () = started.projector_failed.cancelled(), if roles == Roles::Project => Some(Exit::Failed),
    };
    let grace = Duration::from_millis(settings.shutdown.grace_ms);
    match tokio::time::timeout(grace, started.drain()).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => {
            tracing::error!(grace_ms = settings.shutdown.grace_ms, "stopped before everything was finished");
            return Ok(Exit::Overdue);
        }
    }
    // Why a projector failed is in the logs already.
    Ok(ended.unwrap_or(Exit::Done))
}

/// Everything that runs, and what stops it.
struct Process {
    log: EventLog,
    store: Store,
    draining: CancellationToken,
    stop_projector: CancellationToken,
    stop_helpers: CancellationToken,
    server: JoinHandle<()>,
    collector: Option<Collector>,
    api: Option<Api>,
    projector: Option<JoinHandle<()>>,
    projector_failed: CancellationToken,
    helpers: Vec<JoinHandle<()>>,
}

impl Process {
    async fn start(settings: &Settings, roles: Roles, accept_new_log: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("cannot listen on {}", settings.listen))?;
        let address = listener.local_addr()?;
        let id_rules = roles.collects().then(|| open::id_rules(settings)).transpose()?;
        let ids = id_rules.clone().map(SessionIds::undecided);
        // By the rules of the version that the store shows, once it has shown one.
        let projector_settings = open::projector_settings(settings, Release::OURS, accept_new_log)?;
        let store = open::store(&settings.store, settings, open::Absent::Create).await?;
        let log = open::log(settings, open::Absent::Create).await?;

        let draining = CancellationToken::new();
        let stop_projector = CancellationToken::new();
        let stop_helpers = CancellationToken::new();
        let progress = Progress::default();
        let projector_failed = CancellationToken::new();
        let mut registry = Registry::default();
        if let EventLog::Kafka(_) = &log {
            registry.register_collector(Box::new(TopicMetrics(log.clone())));
        }
        let server_metrics = ServerMetrics::new(&mut registry);
        let mut helpers = Vec::new();

        // An embedded store is there at once; a database may be away, and that is waited for while collecting.
        let migrated = CancellationToken::new();
        // The first attempt to make the tables has ended, so the list of websites can be read if it ever can.
        let tried = CancellationToken::new();
        let release = Arc::new(OnceLock::new());
        let rules = Rules::by_settings(settings)?;
        if let (Some(ids), Some(formula)) = (&ids, &rules.formula) {
            decide(ids, formula);
        }
        if let Some(in_force) = &rules.in_force {
            know(&release, ids.as_ref(), in_force);
        }
        if let Store::Sqlite(_) = &store {
            store.migrate().await?;
            if roles == Roles::Both {
                introduce(&store, &settings.store, address).await?;
            }
            migrated.cancel();
            tried.cancel();
        } else {
            let (store, migrated, stop) = (store.clone(), migrated.clone(), stop_helpers.clone());
            let (ids, url, tried) = (ids.clone(), settings.store.clone(), tried.clone());
            let release = Arc::clone(&release);
            helpers.push(tokio::spawn(async move {
                let migrating = async {
                    migrate(&store, ids.as_ref(), &release, &rules, &tried).await;
                    if roles == Roles::Both
                        && let Err(error) = introduce(&store, &url, address).await
                    {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the first website could not be looked at"
                        );
                    }
                    migrated.cancel();
                    tried.cancel();
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = migrating => {}
                }
            }));
        }

        let sources = roles.collects().then(|| {
            let sources = SourceRegistry::new(
                store.clone(),
                SourceRegistrySettings {
                    refresh: Duration::from_millis(settings.ingest.website_refresh_ms),
                    recheck: Duration::from_millis(settings.ingest.website_recheck_ms),
                },
            );
            let (keep, stop) = (sources.clone().keep(stop_helpers.clone()), stop_helpers.clone());
            helpers.push(tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = tokio::time::timeout(FIRST_TRY, tried.cancelled()) => {}
                }
                keep.await;
            }));
            sources
        });
        let mut geo = GeoDatabase::default();
        if roles.collects() && !settings.geo.database.is_empty() {
            let (database, keeper) = GeoDatabase::open(settings.geo.database.clone().into());
            helpers.push(tokio::spawn(keeper.keep(stop_helpers.clone())));
            geo = database;
        }
        let collector = match (&sources, id_rules, &ids) {
            (Some(sources), Some(rules), Some(ids)) => Some(Collector::new(
                log.clone(),
                sources.clone(),
                collector_settings(settings, ids.clone(), rules.secret, geo)?,
                IngestMetrics::new(&mut registry),
            )),
            _ => None,
        };
        let projector = roles.projects().then(|| {
            let metrics = ProjectorMetrics::new(&mut registry);
            let (log, store, progress) = (log.clone(), store.clone(), progress.clone());
            helpers.push(tokio::spawn(measure(
                log.clone(),
                store.clone(),
                progress.clone(),
                metrics.clone(),
                stop_helpers.clone(),
            )));
            tokio::spawn(project(Projecting {
                log,
                store,
                settings: projector_settings,
                release,
                metrics,
                progress,
                migrated,
                stop: stop_projector.clone(),
                failed: (roles == Roles::Project).then(|| projector_failed.clone()),
            }))
        });
        if roles.projects() && settings.event_log.retention_h > 0 {
            helpers.push(tokio::spawn(retain(
                log.clone(),
                settings.event_log.retention_h,
                stop_helpers.clone(),
            )));
        }

        let api = api_settings(settings, roles, &store).map(|of_api| {
            let metrics = ApiMetrics::new(&mut registry);
            let (draining, stop) = (draining.clone(), stop_helpers.clone());
            let (api, telling) = Api::new(store.clone(), of_api, metrics, draining, stop);
            helpers.push(tokio::spawn(telling));
            api
        });

        let ops = Ops {
            log: log.clone(),
            store: store.clone(),
            sources,
            ids,
            projector: roles.projects().then(|| ProjectorReadiness {
                progress: progress.clone(),
                call_max: Duration::from_millis(settings.database.statement_timeout_ms),
                failed_partition_unready: settings.projector.failed_partition_unready,
            }),
            draining: draining.clone(),
            registry,
            checked: Default::default(),
            log_probe: Default::default(),
            store_probe: Default::default(),
        };
        let mut router = collector.as_ref().map_or_else(Router::new, Collector::router).merge(ops.router());
        if let Some(api) = &api {
            router = router.merge(api.router());
        }
        let limits = ServerLimits {
            connections_max: open_files::connections(settings),
            idle_timeout: Duration::from_millis(settings.ingest.idle_timeout_ms),
            head_timeout: Duration::from_millis(settings.ingest.head_timeout_ms),
            answer_timeout: Duration::from_millis(settings.ingest.answer_timeout_ms),
            answers_bytes_max: settings.ingest.answers_bytes_max,
        };
        let server = tokio::spawn(serve(listener, router, limits, server_metrics, draining.clone()));
        tracing::info!(
            address = %address, log = %log.id(), role = ?roles, version = env!("CARGO_PKG_VERSION"), "serving"
        );
        Ok(Self {
            log,
            store,
            draining,
            stop_projector,
            stop_helpers,
            server,
            collector,
            api,
            projector,
            projector_failed,
            helpers,
        })
    }

    /// Readiness off, listener closed, requests in flight answered, the projector's batch committed, log flushed. The
    /// projector stops beside the connections, not after the last of them; the log closes after the last append.
    async fn drain(self) {
        self.draining.cancel();
        self.stop_projector.cancel();
        let collecting = async {
            ended("the server", self.server.await);
            if let Some(collector) = self.collector {
                collector.drain().await;
            }
            if let Some(api) = self.api {
                api.drain().await;
            }
        };
        let projecting = async {
            if let Some(projector) = self.projector {
                ended("the projector", projector.await);
            }
        };
        tokio::join!(collecting, projecting);
        self.stop_helpers.cancel();
        for helper in self.helpers {
            ended("a helper", helper.await);
        }
        self.log.close().await;
        self.store.close().await;
    }
}

fn ended(what: &str, outcome: Result<(), tokio::task::JoinError>) {
    if let Err(error) = outcome {
        tracing::error!(error = %error, "{what} ended with a panic");
    }
}

fn collector_settings(
    settings: &Settings,
    ids: SessionIds,
    secret: Secret,
    geo: GeoDatabase,
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
        ids,
        cut_long_fields: ingest.cut_long_fields,
        secret,
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
    })
}

/// `None` if there is no key: then there is no API either.
fn api_settings(settings: &Settings, roles: Roles, store: &Store) -> Option<ApiSettings> {
    let (ingest, api) = (&settings.ingest, &settings.api);
    // A SQLite store tells of the changes of this process alone.
    let is_told = roles.projects() || matches!(store, Store::Postgres(_));
    Some(ApiSettings {
        keys: Keys::parse(api.keys.expose())?,
        base_path: ingest.base_path.clone(),
        request_timeout: Duration::from_millis(ingest.request_timeout_ms),
        retry_after_s: ingest.retry_after_s,
        reads_max: api.reads_max,
        streams_max: api.streams_max,
        stream_heartbeat: Duration::from_millis(api.stream_heartbeat_ms),
        stream_write_timeout: Duration::from_millis(api.stream_write_timeout_ms),
        live: Duration::from_secs(settings.profiles.live_s),
        look_again: (!is_told).then_some(LOOK_AGAIN),
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

/// What the settings say of Umami's version, and of what a distinct id does to a session; none where that is for the
/// database to say.
struct Rules {
    in_force: Option<InForce>,
    formula: Option<Formula>,
}

impl Rules {
    fn by_settings(settings: &Settings) -> anyhow::Result<Self> {
        let in_force = open::release_by_settings(settings, &settings.store)?;
        let of_release = || in_force.as_ref().map(open::formula_by_release);
        let formula = open::formula_by_settings(settings).or_else(of_release);
        Ok(Self { in_force, formula })
    }
}

/// Makes the tables, however long the database is away; then asks the database by whose rules events are taken and
/// folded: that settles it, or is compared with what is set. Says what it waits for whenever that changes.
async fn migrate(
    store: &Store,
    ids: Option<&SessionIds>,
    release: &OnceLock<Release>,
    rules: &Rules,
    tried: &CancellationToken,
) {
    let mut told = String::new();
    loop {
        let made = async {
            store.migrate().await?;
            let shown = open::release_by_store(store).await?;
            match &rules.in_force {
                None => know(release, ids, &shown),
                Some(set) if set.release != shown.release => tracing::warn!(
                    set = set.release.name(),
                    umami = shown.release.name(),
                    because = %shown.because,
                    "events are taken and folded by the rules of another version of Umami than this database's"
                ),
                Some(_) => {}
            }
            if let Some(ids) = ids {
                let shown = open::formula_by_release(&shown);
                match &rules.formula {
                    None => decide(ids, &shown),
                    Some(set) if set.identified != shown.identified => tracing::warn!(
                        set = set.name(),
                        umami = shown.name(),
                        because = %shown.because,
                        "session ids of identified visitors are not those that this database's Umami computes"
                    ),
                    Some(_) => {}
                }
            }
            Ok::<(), StoreError>(())
        };
        let Err(error) = made.await else { return };
        let error = format!("{:#}", anyhow::Error::from(error));
        if error != told {
            tracing::warn!(error, "waiting for the store");
            told = error;
        }
        tried.cancel();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Settles by whose rules requests are checked and events folded, and says so.
fn know(release: &OnceLock<Release>, ids: Option<&SessionIds>, in_force: &InForce) {
    tracing::info!(
        umami_release = in_force.release.name(),
        because = %in_force.because,
        "events are taken and folded by the rules of this version of Umami"
    );
    release.get_or_init(|| in_force.release);
    if let Some(ids) = ids {
        ids.know(in_force.release);
    }
}

/// Settles how ids are computed, and says so.
fn decide(ids: &SessionIds, formula: &Formula) {
    tracing::info!(
        identified_sessions = formula.name(),
        because = %formula.because,
        "the formula of identified visitors' session ids"
    );
    ids.decide(formula.identified);
}

struct Projecting {
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    /// Whose rules events are folded by; known once the tables are there.
    release: Arc<OnceLock<Release>>,
    metrics: ProjectorMetrics,
    progress: Progress,
    migrated: CancellationToken,
    stop: CancellationToken,
    /// Cancelled when the projector cannot run; `None` if it is to be tried again.
    failed: Option<CancellationToken>,
}

/// How long a projector whose store does not answer at the start waits before it asks again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// Runs the projector once the tables are there. If it cannot run, what is collected stays in the log; a process that also
/// collects goes on doing that, and tries the projector again now and then: whoever holds the log's lock may let go of it.
async fn project(projecting: Projecting) {
    let Projecting { log, store, settings, release, metrics, progress, migrated, stop, failed } = projecting;
    tokio::select! {
        () = stop.cancelled() => return,
        () = migrated.cancelled() => {}
    }
    let release = release.get().copied().unwrap_or(Release::OURS);
    let settings = ProjectorSettings { rules: settings.rules.clone().by(release), ..settings };
    let mut reported = String::new();
    loop {
        let projector =
            Projector::new(log.clone(), store.clone(), settings.clone(), metrics.clone(), progress.clone());
        let Err(ended) = projector.run(stop.clone()).await else { return };
        // A store that goes away between the migration and the first question is no reason to give up.
        let waits_for_store = matches!(ended, ProjectorError::Store(_));
        let error = format!("{:#}", anyhow::Error::from(ended));
        let is_new = reported != error;
        if waits_for_store {
            if is_new {
                tracing::warn!(error, "the projector waits for the store");
            }
            progress.set_projector(ProjectorState::Starting);
        } else {
            let retry_s = failed.is_none().then_some(settings.failed_retry.as_secs());
            if is_new {
                tracing::error!(error, retry_s, "the projector cannot run");
            }
            progress.set_projector(ProjectorState::Down(error.clone()));
            if let Some(failed) = failed {
                return failed.cancel();
            }
        }
        reported = error;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if waits_for_store { STORE_AGAIN } else { settings.failed_retry }) => {}
        }
    }
}

/// Removes what retention no longer keeps, now and then.
async fn retain(log: EventLog, retention_h: u64, stop: CancellationToken) {
    let retention_ms = i64::try_from(retention_h.saturating_mul(3_600_000)).unwrap_or(i64::MAX);
    loop {
        match log.trim(now_ms().saturating_sub(retention_ms)).await {
            Ok(0) => {}
            Ok(records) => {
                tracing::info!(records, "retention removed records that every projection has applied")
            }
            Err(error) => tracing::warn!(error = %error, "retention could not remove records"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETENTION) => {}
        }
    }
}

/// A first start makes a website, so that the first event has somewhere to go; every start says how to send one, and
/// where it shows.
async fn introduce(store: &Store, url: &str, address: std::net::SocketAddr) -> anyhow::Result<()> {
    let first = NewWebsite { id: Uuid::now_v7(), name: "default".to_owned(), domain: None };
    store.add_first_website(&first, now_ms()).await?;
    let websites = store.websites().await?;
    let Some(website) = websites.first() else {
        print(
            "There is no website yet, so no event is taken: add one in Umami's dashboard, or with `dashi website add`\n",
        );
        return Ok(());
    };
    let shown = match store {
        Store::Sqlite(_) => String::new(),
        Store::Postgres(_) => format!(
            "A moment later it is a row:\n\n  psql '{}' -c 'SELECT created_at, url_path FROM website_event ORDER BY 1 DESC LIMIT 1'\n\n",
            for_psql(url)
        ),
    };
    print(&format!(
        "Dashi collects for the website \"{}\" ({}) on http://{address}\n\
         Send it an event (curl's own agent is a bot's, so it names a browser's):\n\n  \
         curl http://{address}/api/send -H 'Content-Type: application/json' -A '{AGENT}' \
         -d '{{\"type\":\"event\",\"payload\":{{\"website\":\"{}\",\"hostname\":\"example.com\",\"url\":\"/hello\",\"title\":\"Hello\"}}}}'\n\n{shown}",
        website.name, website.id, website.id,
    ));
    Ok(())
}

/// A store's URL as psql takes it: without a password, which psql asks for, and with the parameters that it knows.
fn for_psql(url: &str) -> String {
    let shown = redact_url(url).replace(&format!(":{REDACTED}@"), "@");
    let (address, query) = shown.split_once('?').unwrap_or((&shown, ""));
    let known = |parameter: &&str| {
        ["host=", "hostaddr=", "port=", "user=", "dbname="].iter().any(|name| parameter.starts_with(name))
    };
    let mut kept: Vec<String> = query.split('&').filter(known).map(str::to_owned).collect();
    if let Some(schema) = query.split('&').find_map(|parameter| parameter.strip_prefix("schema=")) {
        kept.push(format!("options=-csearch_path%3D{schema}"));
    }
    let url = if kept.is_empty() { address.to_owned() } else { format!("{address}?{}", kept.join("&")) };
    url.replace('\'', "%27")
}

/// What a browser says it is.
const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

#[expect(clippy::disallowed_methods, reason = "the cli is an edge at which time enters")]
pub fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}
