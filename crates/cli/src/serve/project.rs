//! The role of a projector: event log in, store out.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashi_config::Settings;
use dashi_domain::applied::AppliedEvents;
use dashi_domain::umami::Release;
use dashi_event_log::EventLog;
use dashi_projector::{
    Progress, Projector, ProjectorError, ProjectorMetrics, ProjectorSettings, ProjectorState, measure,
    measure_rebuild,
};
use dashi_store::Store;
use prometheus_client::registry::Registry;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background;
use crate::clock::now_ms;
use crate::ops::ProjectorReadiness;
use crate::serve::helpers::{Helpers, log_panic};
use crate::serve::tables::Tables;
use crate::serve::{Base, Roles};

/// How long a projector whose store does not answer at the start waits before it asks again.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// How often retention looks for records to remove.
const RETENTION: Duration = Duration::from_secs(600);

/// Statements' time limits within which a call of the store ends in any case: it has several statements, and connects.
const STATEMENTS: u32 = 10;

/// A projector that runs.
pub struct Projecting {
    task: JoinHandle<()>,
    stop: CancellationToken,
    /// Cancelled when the projector cannot run and is not tried again.
    failed: CancellationToken,
    progress: Progress,
}

impl Projecting {
    /// The events of each commit from now on.
    pub fn applied(&self) -> broadcast::Receiver<Arc<AppliedEvents>> {
        self.progress.applied_events()
    }

    /// Starts the projector, the task that measures its lag, and retention.
    pub fn start(
        base: &Base<'_>,
        settings: ProjectorSettings,
        tables: &Tables,
        helpers: &mut Helpers,
        registry: &mut Registry,
    ) -> Self {
        let metrics = ProjectorMetrics::new(registry);
        let (stop, failed) = (CancellationToken::new(), CancellationToken::new());
        let progress = Progress::watched(
            base.alive.liveness(),
            STATEMENTS * Duration::from_millis(base.settings.database.statement_timeout_ms),
        );
        let (log, store) = (base.log.clone(), base.store.clone());
        helpers.spawn("the measuring of lag", |stop| {
            measure(log, store, progress.clone(), metrics.clone(), stop)
        });
        let (store, log, metrics_of_rebuild) = (base.store.clone(), base.log.id().clone(), metrics.clone());
        let (rules, release) = (settings.rules.clone(), Arc::clone(&tables.release));
        let rules = move || release.get().map(|release| rules.clone().by(*release).text());
        helpers.spawn("the measuring of the rebuild", |stop| {
            measure_rebuild(store, log, rules, metrics_of_rebuild, stop)
        });
        let projector = ProjectorTask {
            log: base.log.clone(),
            store: base.store.clone(),
            settings: ProjectorSettings { tracer: base.tracer.clone(), ..settings },
            nice: base.roles.nice(base.settings),
            release: Arc::clone(&tables.release),
            metrics,
            progress: progress.clone(),
            tables_made: tables.made.clone(),
            stop: stop.clone(),
            failed: (base.roles == Roles::Project).then(|| failed.clone()),
        };
        let task = base.alive.spawn("the projector", projector.run());
        let retention_h = base.settings.event_log.retention_h;
        if retention_h > 0 {
            let log = base.log.clone();
            helpers.spawn("retention", |stop| retain(log, retention_h, stop));
        }
        Self { task, stop, failed, progress }
    }

    /// Waits until the projector cannot run and is not tried again. Only in a process that does nothing else.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// The projector's part of readiness.
    pub fn readiness(&self, settings: &Settings) -> ProjectorReadiness {
        ProjectorReadiness {
            progress: self.progress.clone(),
            call_max: Duration::from_millis(settings.database.statement_timeout_ms),
            failed_partition_unready: settings.projector.failed_partition_unready,
        }
    }

    /// Stops the projector and waits until its batch is committed.
    pub async fn stop(self) {
        self.stop.cancel();
        log_panic("the projector", self.task.await);
    }
}

/// The projector's task.
struct ProjectorTask {
    log: EventLog,
    store: Store,
    settings: ProjectorSettings,
    /// How far the threads that fold stand back behind those that answer requests.
    nice: u8,
    /// The version of Umami by whose rules events are folded; known once the tables are made.
    release: Arc<OnceLock<Release>>,
    metrics: ProjectorMetrics,
    progress: Progress,
    tables_made: CancellationToken,
    stop: CancellationToken,
    /// Cancelled when the projector cannot run; `None` if it is to be tried again.
    failed: Option<CancellationToken>,
}

impl ProjectorTask {
    /// Runs the projector once the tables are made. If it cannot run, the collected events stay in the log; a process
    /// that also collects continues to do so and tries the projector again at intervals: the process that holds the
    /// log's lock may release it.
    async fn run(self) {
        let Self { log, store, settings, nice, release, metrics, progress, tables_made, stop, failed } = self;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tables_made.cancelled() => {}
        }
        let release = release.get().copied().unwrap_or(Release::OURS);
        let settings = ProjectorSettings { rules: settings.rules.clone().by(release), ..settings };
        let mut logged = String::new();
        loop {
            let parts = (log.clone(), store.clone(), settings.clone(), metrics.clone(), progress.clone());
            let projector = background::started(nice, async move {
                let (log, store, settings, metrics, progress) = parts;
                Projector::new(log, store, settings, metrics, progress)
            })
            .await;
            let Err(ended) = projector.run(stop.clone()).await else { return };
            // The store may go away between the migration and the projector's first query: then it is tried again.
            let waits_for_store = matches!(ended, ProjectorError::Store(_));
            let error = format!("{:#}", anyhow::Error::from(ended));
            let is_new = logged != error;
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
            logged = error;
            let pause = if waits_for_store { STORE_AGAIN } else { settings.failed_retry };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Removes records that retention no longer keeps, at intervals.
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
