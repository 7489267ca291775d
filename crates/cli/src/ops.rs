//! What operators and orchestrators ask: /health/live, /health/ready, /metrics.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use dashi_event_log::EventLog;
use dashi_ingest::{SessionIds, Sources};
use dashi_store::Store;
use prometheus_client::registry::Registry;
use serde_json::json;

/// How long an answer to "ready?" is good for, and how long one check may take.
const FRESH: Duration = Duration::from_millis(500);
const CHECK: Duration = Duration::from_secs(3);

/// How long a check may take that readiness does not depend on: a database that is away is not to hold up the answer
/// of a collector until whoever asks takes it for dead.
const ASIDE: Duration = Duration::from_millis(500);

/// What readiness depends on. A process that collects is ready when it can accept durably now; one that only
/// projects, when log and store answer.
pub struct Ops {
    pub log: EventLog,
    pub store: Store,
    /// Those of a collector.
    pub sources: Option<Sources>,
    /// Those of a collector.
    pub ids: Option<SessionIds>,
    /// What the projector is doing, if there is one here.
    pub projector: Option<Arc<Mutex<ProjectorState>>>,
    pub draining: tokio_util::sync::CancellationToken,
    pub registry: Registry,
    pub checked: tokio::sync::Mutex<Option<(Instant, Readiness)>>,
}

/// What a projector is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectorState {
    /// It waits for the store's tables.
    Starting,
    /// It runs.
    Running,
    /// It ended with an error; the log keeps what it has not applied.
    Failed(String),
}

/// One answer to "ready?".
#[derive(Debug, Clone)]
pub struct Readiness {
    ready: bool,
    checks: serde_json::Map<String, serde_json::Value>,
}

impl Ops {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/health/live", get(|| async { answer(200, json!({ "live": true }).to_string()) }))
            .route("/health/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(self))
    }

    async fn check(&self) -> Readiness {
        if self.draining.is_cancelled() {
            let checks = [("process".to_owned(), json!("draining"))].into_iter().collect();
            return Readiness { ready: false, checks };
        }
        // Whoever asks meanwhile waits for the same answer.
        let mut checked = self.checked.lock().await;
        if let Some((at, readiness)) = &*checked
            && at.elapsed() < FRESH
        {
            return readiness.clone();
        }
        let mut readiness = Readiness { ready: true, checks: serde_json::Map::new() };
        let needs_store = self.sources.is_none();
        let (log, store) = tokio::join!(
            bounded(CHECK, self.log.probe()),
            bounded(if needs_store { CHECK } else { ASIDE }, self.store.ping()),
        );
        readiness.note("event_log", log, true);
        if let Some(sources) = &self.sources {
            let loaded = if sources.is_loaded() { Ok(()) } else { Err("the list was never read".to_owned()) };
            readiness.note("websites", loaded, true);
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
            let state = projector.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let state = match state {
                ProjectorState::Running => Ok(()),
                ProjectorState::Starting => Err("waiting for the store".to_owned()),
                ProjectorState::Failed(error) => Err(error),
            };
            readiness.note("projector", state, needs_store);
        }
        *checked = Some((Instant::now(), readiness.clone()));
        readiness
    }
}

impl Readiness {
    fn note(&mut self, check: &str, outcome: Result<(), String>, needed: bool) {
        self.ready &= outcome.is_ok() || !needed;
        self.checks.insert(check.to_owned(), json!(outcome.err().unwrap_or_else(|| "ok".to_owned())));
    }
}

async fn bounded<E: std::error::Error>(
    limit: Duration,
    check: impl Future<Output = Result<(), E>>,
) -> Result<(), String> {
    match tokio::time::timeout(limit, check).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            Err(error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")))
        }
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

async fn ready(State(ops): State<Arc<Ops>>) -> Response {
    let readiness = ops.check().await;
    let status = if readiness.ready { 200 } else { 503 };
    answer(status, json!({ "ready": readiness.ready, "checks": readiness.checks }).to_string())
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &ops.registry);
    let mut response = answer(if encoded.is_ok() { 200 } else { 500 }, text);
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}

fn answer(status: u16, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
