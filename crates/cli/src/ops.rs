//! The endpoints of operators and orchestrators: /health/live, /health/ready, /metrics.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use dashi_domain::liveness::{Liveness, StuckTask};
use dashi_event_log::{EventLog, Lane, Spool};
use dashi_http::answer;
use dashi_ingest::{SessionIds, SourceRegistry};
use dashi_projector::{Progress, ProjectorState, Stuck};
use dashi_store::Store;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;

use crate::serve::LimitsState;

/// How long an answer of readiness is given again, and how long one check may take: probes give up after a second.
const FRESH: Duration = Duration::from_millis(500);
const CHECK: Duration = Duration::from_millis(700);

/// How long a check may take on which readiness does not depend: a database that is away must not delay the answer of a
/// collector until the prober takes it for dead.
const ASIDE: Duration = Duration::from_millis(500);

/// How long a check of an embedded log may take whose last answer was a success: a busy disk that answers late is no
/// outage, and a process that is taken out and put back every second serves nobody. A server that is silent is one.
const SLOW_DISK: Duration = Duration::from_secs(3);

/// The paths of operators; a name in braces stands for a segment.
pub const PATHS: [&str; 2] = ["/health/{check}", "/metrics"];

/// The parts on which readiness depends. A process that collects is ready when it can make an event durable now; a
/// process that only projects, when log and store answer.
pub struct Ops {
    pub log: EventLog,
    /// The spool of a collector whose log is on Kafka.
    pub spool: Option<Spool>,
    /// The lane of a collector's historical events.
    pub lane: Option<Lane>,
    pub store: Store,
    /// The list of websites of a collector.
    pub sources: Option<SourceRegistry>,
    /// The limits of a collector.
    pub limits: Option<LimitsState>,
    /// The session ids of a collector.
    pub ids: Option<SessionIds>,
    /// The projector, if this process has one.
    pub projector: Option<ProjectorReadiness>,
    pub draining: tokio_util::sync::CancellationToken,
    pub liveness: Liveness,
    pub registry: Registry,
    pub probes: Probes,
}

/// The last answer of readiness, and the checks that run.
#[derive(Default)]
pub struct Probes {
    checked: Mutex<Option<(Instant, Readiness)>>,
    log: Probe,
    store: Probe,
}

/// The part of readiness that depends on a projector.
pub struct ProjectorReadiness {
    /// The states of the projector and its partitions.
    pub progress: Progress,
    /// How long the store may work on one call for a partition.
    pub call_max: Duration,
    /// Whether a partition that is failed, or whose call takes longer, makes the process unready.
    pub failed_partition_unready: bool,
}

/// Most partitions or tasks that an answer names.
const STUCK_MAX: usize = 100;

/// One answer of readiness.
#[derive(Debug, Clone)]
pub struct Readiness {
    ready: bool,
    checks: serde_json::Map<String, serde_json::Value>,
    /// The partitions of this process that do not move.
    stuck: Vec<Stuck>,
    spool: Option<serde_json::Value>,
    lane: Option<serde_json::Value>,
    /// The backlog of a process that collects.
    backlog: Option<serde_json::Value>,
}

impl Ops {
    /// The text of the metrics; `None` if it cannot be written.
    pub fn metrics_text(&self) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).ok().map(|()| text)
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }

    async fn check(&self) -> Readiness {
        if self.draining.is_cancelled() {
            let checks = [("process".to_owned(), json!("draining"))].into_iter().collect();
            return Readiness {
                ready: false,
                checks,
                stuck: Vec::new(),
                spool: None,
                lane: None,
                backlog: None,
            };
        }
        if let Some((at, readiness)) = &*self.probes.checked.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < FRESH
        {
            return readiness.clone();
        }
        let spool = self.spool.as_ref().map(crate::spool::readiness);
        let is_spooled = spool.as_ref().is_some_and(|(_, takes)| *takes);
        let spool = spool.map(|(shown, _)| shown);
        let lane = self.lane.as_ref().map(crate::spool::lane_readiness);
        let backlog = self.limits.as_ref().map(LimitsState::json);
        let mut readiness = Readiness {
            ready: true,
            checks: serde_json::Map::new(),
            stuck: Vec::new(),
            spool,
            lane,
            backlog,
        };
        let needs_store = self.sources.is_none();
        let (of_log, of_store) = (self.log.clone(), self.store.clone());
        let slow_log = if matches!(self.log, EventLog::Embedded(_)) { SLOW_DISK } else { Duration::ZERO };
        let (log, store) = tokio::join!(
            self.probes.log.ask(CHECK, slow_log, async move { of_log.probe().await }),
            self.probes.store.ask(if needs_store { CHECK } else { ASIDE }, Duration::ZERO, async move {
                of_store.ping().await
            }),
        );
        // Events are durable in the spool while the log is away.
        readiness.note("event_log", log, !is_spooled);
        if let EventLog::Kafka(_) = &self.log {
            // A collector goes on under the new topic: events that it accepts there are durable. A projector does not.
            readiness.note("topic", crate::topic::readiness(&self.log), needs_store);
        }
        if let Some(sources) = &self.sources {
            let loaded = if sources.is_loaded() { Ok(()) } else { Err("the list was never read".to_owned()) };
            readiness.note("websites", loaded, true);
        }
        if let Some(file) = self.limits.as_ref().and_then(|limits| limits.file.as_ref()) {
            // The collector goes on with its last good version.
            readiness.note("limits_file", file.error().map_or(Ok(()), Err), false);
        }
        if let Some(ids) = &self.ids {
            let decided = if ids.is_decided() {
                Ok(())
            } else {
                Err("the database has not said yet how session ids are computed".to_owned())
            };
            readiness.note("session_ids", decided, true);
        }
        readiness.note("store", store, needs_store);
        if let Some(projector) = &self.projector {
            readiness.note_projector(projector, needs_store);
        }
        *self.probes.checked.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), readiness.clone()));
        readiness
    }
}

impl Readiness {
    fn note(&mut self, check: &str, outcome: Result<(), String>, needed: bool) {
        self.ready &= outcome.is_ok() || !needed;
        self.checks.insert(check.to_owned(), json!(outcome.err().unwrap_or_else(|| "ok".to_owned())));
    }

    /// A process that only projects needs its projector; the settings decide whether it needs each partition. A
    /// partition that waits for a server does not make the process unready: the check of that server does.
    fn note_projector(&mut self, projector: &ProjectorReadiness, is_needed: bool) {
        let (state, partitions) = (projector.progress.projector(), projector.progress.partitions());
        match state {
            ProjectorState::Starting => {
                return self.note("projector", Err("waiting for the store".to_owned()), is_needed);
            }
            ProjectorState::Down(error) => {
                return self.note("projector", Err(error), is_needed || projector.failed_partition_unready);
            }
            ProjectorState::Up => {}
        }
        self.stuck = projector.progress.stuck(projector.call_max);
        let is_grave = self.stuck.iter().any(|stuck| stuck.is_overdue || stuck.state.failure().is_some());
        let outcome = match &self.stuck[..] {
            [] => Ok(()),
            [first, more @ ..] => {
                let others =
                    if more.is_empty() { String::new() } else { format!("; and {} more", more.len()) };
                Err(format!(
                    "{} of {partitions} partitions do not move: partition {} ({}) for {} s: {}{others}",
                    self.stuck.len(),
                    first.partition,
                    first.state.name(),
                    first.duration.as_secs(),
                    first.reason,
                ))
            }
        };
        self.note("projector", outcome, is_grave && projector.failed_partition_unready);
    }

    fn json(&self) -> serde_json::Value {
        let mut value = json!({ "ready": self.ready, "checks": self.checks });
        if let Some(spool) = &self.spool {
            value["spool"] = spool.clone();
        }
        if let Some(lane) = &self.lane {
            value["history"] = lane.clone();
        }
        if let Some(backlog) = &self.backlog {
            value["backlog"] = backlog.clone();
        }
        if !self.stuck.is_empty() {
            let shown = self.stuck.iter().take(STUCK_MAX).map(|stuck| {
                json!({
                    "partition": stuck.partition.number(),
                    "state": stuck.state.name(),
                    "kind": stuck.state.failure().map(dashi_projector::FailureKind::name),
                    "overdue": stuck.is_overdue,
                    "for_s": stuck.duration.as_secs(),
                    "error": stuck.reason,
                })
            });
            value["partitions_not_moving"] = shown.collect();
        }
        value
    }
}

/// A check that runs once at a time, however many requests need it, and for which nobody waits longer than a bound: a
/// check that hangs is left running, and no other one begins before it has ended. Behind a success, one that is only
/// slow counts as a success, too, until it takes longer than `slow`.
#[derive(Default)]
pub struct Probe(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    /// The check that runs, or the last one.
    check: Option<Check>,
    /// Whether the check before it succeeded.
    succeeded_before: bool,
}

#[derive(Clone)]
struct Check {
    began: Instant,
    /// Its result, once there is one.
    result: watch::Receiver<Option<Result<(), String>>>,
}

impl Check {
    fn runs(&self) -> bool {
        self.result.borrow().is_none() && self.result.has_changed().is_ok()
    }
}

impl Probe {
    async fn ask<E: std::error::Error + Send + 'static>(
        &self,
        limit: Duration,
        slow: Duration,
        check: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Result<(), String> {
        let (mut asked, succeeded_before) = {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &last.check {
                Some(running) if running.runs() => (running.clone(), last.succeeded_before),
                ended => {
                    let succeeded = matches!(ended, Some(ended) if *ended.result.borrow() == Some(Ok(())));
                    let (sender, result) = watch::channel(None);
                    tokio::spawn(async move { sender.send_replace(Some(check.await.map_err(with_cause))) });
                    let new = Check { began: Instant::now(), result };
                    *last = Asked { check: Some(new.clone()), succeeded_before: succeeded };
                    (new, succeeded)
                }
            }
        };
        match tokio::time::timeout(limit, asked.result.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Ok(())),
            Ok(Err(_)) => Err("the check ended with a panic".to_owned()),
            Err(_) if succeeded_before && asked.began.elapsed() < slow => Ok(()),
            Err(_) => Err(format!("no answer within {} ms", asked.began.elapsed().max(limit).as_millis())),
        }
    }
}

/// An error and its cause.
fn with_cause(error: impl std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Whether every task of the process goes on. It asks neither log nor store: a process that waits for them lives.
async fn live(State(ops): State<Arc<Ops>>) -> Response {
    let stuck = ops.liveness.stuck();
    let status = if stuck.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut value = json!({ "live": stuck.is_empty() });
    if !stuck.is_empty() {
        value["stuck"] = stuck.iter().take(STUCK_MAX).map(stuck_json).collect();
    }
    answer::json(status, value.to_string())
}

fn stuck_json(stuck: &StuckTask) -> serde_json::Value {
    json!({
        "task": stuck.name,
        "silent_s": stuck.silent.as_secs(),
        "doing": stuck.doing,
        "ended": stuck.is_lost,
    })
}

async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let readiness = ops.check().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer::json(status, readiness.json().to_string())
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let text = ops.metrics_text();
    let status = if text.is_some() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let mut response = answer::json(status, text.unwrap_or_default());
    response.headers_mut().insert(
        "content-type",
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_question_that_hangs_is_waited_for_so_long_and_asked_once() {
        let limit = Duration::from_millis(50);
        let (probe, asked) = (Probe::default(), Arc::new(AtomicU32::new(0)));
        let answered = Arc::new(tokio::sync::Notify::new());
        let hanging = || {
            let (asked, answered) = (Arc::clone(&asked), Arc::clone(&answered));
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                answered.notified().await;
                Ok::<_, std::io::Error>(())
            }
        };
        for _ in 0..3 {
            let (one, other) = tokio::join!(
                probe.ask(limit, Duration::ZERO, hanging()),
                probe.ask(limit, Duration::ZERO, hanging())
            );
            for answer in [one, other] {
                let reason = answer.expect_err("it hangs");
                assert!(reason.starts_with("no answer within "), "{reason}");
            }
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        answered.notify_one();
        assert_eq!(
            probe.ask(CHECK, Duration::ZERO, hanging()).await,
            Ok(()),
            "the answer to the one that hung"
        );
        let failing = async { Err(std::io::Error::other("away")) };
        assert_eq!(probe.ask(CHECK, Duration::ZERO, failing).await, Err("away".to_owned()));
        assert_eq!(probe.ask(CHECK, Duration::ZERO, async { Ok::<_, std::io::Error>(()) }).await, Ok(()));
    }

    #[tokio::test]
    async fn a_slow_answer_after_a_success_is_no_outage_until_it_is_too_slow() {
        let (limit, slow) = (Duration::from_millis(10), Duration::from_millis(100));
        let hanging = || std::future::pending::<Result<(), std::io::Error>>();
        let probe = Probe::default();
        assert_eq!(probe.ask(CHECK, Duration::ZERO, async { Ok::<_, std::io::Error>(()) }).await, Ok(()));
        let began = Instant::now();
        assert_eq!(probe.ask(limit, Duration::MAX, hanging()).await, Ok(()));
        while probe.ask(limit, slow, hanging()).await.is_ok() {}
        assert!(began.elapsed() >= slow, "{:?}", began.elapsed());

        let after_a_failure = Probe::default();
        let failing = async { Err(std::io::Error::other("away")) };
        assert_eq!(after_a_failure.ask(CHECK, Duration::ZERO, failing).await, Err("away".to_owned()));
        assert!(after_a_failure.ask(limit, slow, hanging()).await.is_err());
    }

    #[tokio::test]
    async fn a_question_that_panics_is_a_failed_check_and_asked_again() {
        let probe = Probe::default();
        let panicking = async { panic!("in a check") };
        let answer = probe.ask::<std::io::Error>(CHECK, Duration::ZERO, panicking).await;
        assert_eq!(answer, Err("the check ended with a panic".to_owned()));
        assert_eq!(probe.ask(CHECK, Duration::ZERO, async { Ok::<_, std::io::Error>(()) }).await, Ok(()));
    }
}
