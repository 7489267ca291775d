//! The serving commands: start the roles of this process, run until a signal, then drain.
//!
//! [`Process::start`] is the whole start, and [`Process`]'s `drain` the whole stop. Each role is a file: `collect`,
//! `project`, `profiles`; each starts its tasks and returns what runs and how it stops. `tables` makes the store's
//! tables and decides the rules that roles need to know, `introduce` prints how to send a first event.

mod alive;
mod backlog;
mod collect;
mod console;
mod helpers;
mod history;
mod introduce;
mod otlp;
mod profiles;
mod project;
mod tables;
mod tally;

pub use backlog::LimitsState;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dashi_config::{Loaded, Origin, Settings};
use dashi_domain::spans::Tracer;
use dashi_domain::umami::Release;
use dashi_event_log::{EventLog, Lane, Spool};
use dashi_http::{ServerLimits, ServerMetrics, serve};
use dashi_store::Store;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::introduce::AGENT;
use crate::args::ServeArgs;
use crate::exit::Exit;
use crate::layouts::{Follower, Role};
use crate::ops::Ops;
use crate::process_metrics::ProcessMetrics;
use crate::serve::alive::{Alive, StuckTasks};
use crate::serve::collect::{Collecting, Ids};
use crate::serve::console::RunningConsole;
use crate::serve::helpers::{Helpers, log_panic};
use crate::serve::history::History;
use crate::serve::profiles::ReadingProfiles;
use crate::serve::project::Projecting;
use crate::serve::tables::Tables;
use crate::spool::{LaneMetrics, SpoolMetrics};
use crate::topic::TopicMetrics;
use crate::{background, logging, open, open_files, settings};

/// The roles of a process.
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

    /// How far the projector's threads stand back: behind nobody in a process that answers no requests.
    const fn nice(self, settings: &Settings) -> u8 {
        if matches!(self, Self::Both) { settings.projector.nice } else { 0 }
    }
}

/// The default port of `project`: a collector with its own default runs beside it.
const PROJECT_PORT: u16 = 8485;

/// Runs until SIGTERM or SIGINT, or until the projector of a process that only projects cannot run at all: the store
/// holds another log's projection, or the log refuses it. A partition that fails is no such reason.
pub async fn run(loaded: Loaded, roles: Roles, args: ServeArgs) -> anyhow::Result<Exit> {
    settings::check(&loaded)?;
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
    let process = tokio::select! {
        started = Process::start(&settings, roles, args.accept_new_log) => started?,
        _ = &mut signalled => return Ok(Exit::Done),
    };
    let exit = tokio::select! {
        name = &mut signalled => {
            tracing::info!(signal = name, "draining");
            Exit::Done
        }
        // The projector has logged the reason.
        () = process.projector_failed() => Exit::Failed,
    };
    let grace = Duration::from_millis(settings.shutdown.grace_ms);
    match tokio::time::timeout(grace, process.drain()).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => {
            tracing::error!(grace_ms = settings.shutdown.grace_ms, "stopped before everything was finished");
            return Ok(Exit::Overdue);
        }
    }
    Ok(exit)
}

/// The parts that all roles use.
struct Base<'s> {
    settings: &'s Settings,
    roles: Roles,
    /// Where the process listens.
    address: SocketAddr,
    log: EventLog,
    /// The spool of a collector whose log is on Kafka.
    spool: Option<Spool>,
    /// The lane of a collector's historical events.
    lane: Option<Lane>,
    store: Store,
    /// Cancelled when the process begins to stop.
    draining: CancellationToken,
    /// Watches the tasks that run as long as the process.
    alive: Arc<Alive>,
    /// Takes spans; off unless the settings name an endpoint.
    tracer: Tracer,
}

/// Everything that runs.
struct Process {
    log: EventLog,
    store: Store,
    draining: CancellationToken,
    server: JoinHandle<()>,
    collecting: Option<Collecting>,
    history: Option<History>,
    projecting: Option<Projecting>,
    profiles: Option<ReadingProfiles>,
    console: Option<RunningConsole>,
    helpers: Helpers,
}

impl Process {
    async fn start(settings: &Settings, roles: Roles, accept_new_log: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| cannot_listen(settings.listen, error))?;
        let address = listener.local_addr()?;
        let ids = roles.collects().then(|| Ids::new(settings)).transpose()?;
        // The projector task replaces the release by the one in force.
        let projector_settings = open::projector_settings(settings, Release::OURS, accept_new_log)?;
        let store = {
            let settings = settings.clone();
            background::started(roles.nice(&settings), async move {
                open::store(&settings.store, &settings, open::Absent::Create).await
            })
            .await?
        };
        let tracer = otlp::tracer(&settings.tracing);
        let spool_settings =
            open::spool_settings(settings, accept_new_log, tracer.clone()).filter(|_| roles.collects());
        // A projector has nothing to do without its log.
        let may_be_away = !roles.projects();
        let log = open::collected_log(settings, spool_settings.as_ref(), may_be_away).await?;
        // Before anything is appended, so that it goes where the layout says.
        let follower = match roles.collects() {
            true => Follower::start(&log, &store, &Role::Collector(address)).await,
            false => {
                if let EventLog::Kafka(kafka) = &log {
                    // It appends nothing and does not follow a growth, so it must not take the topic's new partitions for a mistake.
                    kafka.forget_layouts();
                }
                None
            }
        };
        let spool = match spool_settings {
            Some(spool) => log.open_spool(spool).await?,
            None => None,
        };
        let draining = CancellationToken::new();
        let alive = Arc::new(Alive::start(Duration::from_millis(settings.health.silence_ms_max))?);
        let mut base = Base {
            settings,
            roles,
            address,
            log,
            spool,
            lane: None,
            store,
            draining,
            alive: Arc::clone(&alive),
            tracer,
        };
        let history = match roles.collects() {
            true => History::start(&base, accept_new_log).await?,
            false => None,
        };
        base.lane = history.as_ref().map(History::lane);

        let (mut registry, mut helpers) = (Registry::default(), Helpers::new(Arc::clone(&alive)));
        if let Some(follower) = follower {
            helpers.spawn("the following of the layout", |stop| follower.run(stop));
        }
        otlp::start(&base, &mut helpers, &mut registry)?;
        registry.register_collector(Box::new(ProcessMetrics));
        registry.register_collector(Box::new(StuckTasks(alive.liveness())));
        if let EventLog::Kafka(_) = &base.log {
            registry.register_collector(Box::new(TopicMetrics(base.log.clone())));
        }
        if let Some(spool) = &base.spool {
            registry.register_collector(Box::new(SpoolMetrics(spool.clone())));
        }
        if let Some(lane) = &base.lane {
            registry.register_collector(Box::new(LaneMetrics(lane.clone())));
        }
        let server_metrics = ServerMetrics::new(&mut registry);
        let session_ids = ids.as_ref().map(|ids| ids.sessions.clone());
        let tables = Tables::prepare(&base, session_ids.clone(), &mut helpers).await?;
        let collecting = match ids {
            Some(ids) => Some(Collecting::start(&base, ids, &tables, &mut helpers, &mut registry)?),
            None => None,
        };
        let projecting = roles
            .projects()
            .then(|| Projecting::start(&base, projector_settings, &tables, &mut helpers, &mut registry));
        let profiles = ReadingProfiles::start(&base, &mut helpers, &mut registry);

        let ops = Arc::new(Ops {
            log: base.log.clone(),
            spool: base.spool.clone(),
            lane: base.lane.clone(),
            store: base.store.clone(),
            sources: collecting.as_ref().map(Collecting::sources),
            limits: collecting.as_ref().map(Collecting::limits),
            ids: session_ids,
            projector: projecting.as_ref().map(|projecting| projecting.readiness(settings)),
            draining: base.draining.clone(),
            liveness: alive.liveness(),
            registry,
            probes: Default::default(),
        });
        let console = console::start(&base, &ops, projecting.as_ref(), &mut helpers);
        let router = collecting.as_ref().map_or_else(Router::new, Collecting::router);
        let router = router.merge(ops.router());
        let router = match &profiles {
            Some(profiles) => router.merge(profiles.router()),
            None => router,
        };
        let router = match &console {
            Some(console) => router.merge(console.router()),
            None => router,
        };
        let limits = server_limits(settings);
        let serving = serve(listener, router, limits, server_metrics, base.draining.clone());
        let server = alive.spawn("the server", serving);
        tracing::info!(
            address = %address, log = %base.log.id(), role = ?roles, version = env!("CARGO_PKG_VERSION"), "serving"
        );
        let Base { log, store, draining, .. } = base;
        Ok(Self { log, store, draining, server, collecting, history, projecting, profiles, console, helpers })
    }

    /// Waits until the projector cannot run and the process cannot do anything else. Never returns in other processes.
    async fn projector_failed(&self) {
        match &self.projecting {
            Some(projecting) => projecting.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Readiness off, listener closed, requests in flight answered, the projector's batch committed, log flushed. The
    /// projector stops beside the connections, not after the last of them; the log closes after the last append.
    async fn drain(self) {
        self.draining.cancel();
        let answering = async {
            log_panic("the server", self.server.await);
            if let Some(collecting) = self.collecting {
                collecting.drain().await;
            }
            if let Some(history) = self.history {
                history.stop().await;
            }
            if let Some(profiles) = self.profiles {
                profiles.drain().await;
            }
            if let Some(console) = self.console {
                console.drain().await;
            }
        };
        let projecting = async {
            if let Some(projecting) = self.projecting {
                projecting.stop().await;
            }
        };
        tokio::join!(projecting, answering);
        // Before the last note of what it holds is written.
        self.log.close_spool().await;
        self.helpers.stop().await;
        self.log.close().await;
        self.store.close().await;
    }
}

fn cannot_listen(address: SocketAddr, error: std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            ": another program listens there, perhaps another Dashi; choose another address with --listen"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot listen on {address}{remedy}"))
}

fn server_limits(settings: &Settings) -> ServerLimits {
    ServerLimits {
        connections_max: open_files::connections(settings),
        idle_timeout: Duration::from_millis(settings.ingest.idle_timeout_ms),
        head_timeout: Duration::from_millis(settings.ingest.head_timeout_ms),
        answer_timeout: Duration::from_millis(settings.ingest.answer_timeout_ms),
        answers_bytes_max: settings.ingest.answers_bytes_max,
    }
}
