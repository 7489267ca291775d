//! The frame of all endpoints: the key, the time of a request, and how many reads run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::Response;
use dashi_store::{Store, StoreError};
use http::request::Parts;
use http::{HeaderMap, header};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::Refusal;
use crate::fan_out::FanOut;
use crate::keys::Keys;
use crate::metrics::ApiMetrics;

/// Settings of the read side.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The keys that permit reading.
    pub keys: Keys,
    /// The beginning of every path, such as `/umami`; empty for none.
    pub base_path: String,
    /// Longest time of a request that is no stream, and of one read of a stream.
    pub request_timeout: Duration,
    /// The value of `Retry-After` with a 503, in seconds.
    pub retry_after_s: u64,
    /// Most reads of the store at once, those of streams included; further reads wait.
    pub reads_max: usize,
    /// Most open streams; one more is answered 503.
    pub streams_max: usize,
    /// How often a stream without changes sends a comment.
    pub stream_heartbeat: Duration,
    /// How long the reader of a stream may take for one event; then the stream ends.
    pub stream_write_timeout: Duration,
    /// A session is live while its last event is younger than this.
    pub live: Duration,
    /// How often streams look for changes, for a store that does not report the changes of other processes; `None` for
    /// a store that does.
    pub look_again: Option<Duration>,
}

/// Answers requests that have a key. Cheap to clone.
#[derive(Clone)]
pub struct Api(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) settings: ApiSettings,
    pub(crate) metrics: ApiMetrics,
    pub(crate) fan_out: FanOut,
    pub(crate) streams: Arc<Semaphore>,
    /// The tasks behind open streams.
    pub(crate) tasks: TaskTracker,
    /// Ends all streams.
    pub(crate) draining: CancellationToken,
    reads: Semaphore,
    /// Whether the last read failed, so that an outage is logged once.
    failing: AtomicBool,
}

impl Api {
    /// The read side of a store, and the task that marks its streams until `stop`. `draining` ends the streams.
    pub fn new(
        store: Store,
        settings: ApiSettings,
        metrics: ApiMetrics,
        draining: CancellationToken,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let fan_out = FanOut::default();
        // From here on nothing is missed: no stream has read anything yet.
        let marking = fan_out.clone().run(store.profile_changes(), settings.look_again, stop);
        let api = Self(Arc::new(Shared {
            streams: Arc::new(Semaphore::new(settings.streams_max)),
            reads: Semaphore::new(settings.reads_max),
            store,
            settings,
            metrics,
            fan_out,
            tasks: TaskTracker::new(),
            draining,
            failing: AtomicBool::new(false),
        }));
        (api, marking)
    }

    /// Waits until every stream has ended. To be called once they are draining and no request can come any more.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Answers one request in bounded time, if it has a key.
    pub(crate) async fn answer(
        &self,
        request: &Parts,
        work: impl Future<Output = Result<Response, Refusal>>,
    ) -> Response {
        let allowed = self.authorized(&request.headers);
        let outcome = if allowed { self.bounded(work).await } else { Err(Refusal::NoKey) };
        self.finish(outcome)
    }

    /// The answer to a request, counted.
    pub(crate) fn finish(&self, outcome: Result<Response, Refusal>) -> Response {
        let response = outcome.unwrap_or_else(|refusal| refusal.into_response(self.0.settings.retry_after_s));
        self.0.metrics.count(response.status().as_u16());
        response
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let answered = tokio::time::timeout(self.0.settings.request_timeout, work).await;
        answered.unwrap_or_else(|_| {
            self.failed(&format!("no answer within {:?}", self.0.settings.request_timeout));
            Err(Refusal::Unavailable)
        })
    }

    pub(crate) fn authorized(&self, headers: &HeaderMap) -> bool {
        headers
            .get(header::AUTHORIZATION)
            .is_some_and(|value| self.0.settings.keys.authorize(value.as_bytes()))
    }

    /// Reads from the store, when its turn comes.
    pub(crate) async fn read<T>(
        &self,
        reading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Refusal> {
        // The semaphore is never closed.
        let _turn = self.0.reads.acquire().await.map_err(|_| Refusal::Unavailable)?;
        match reading.await {
            Ok(read) => {
                if self.0.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("profiles can be read again");
                }
                Ok(read)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error);
                self.failed(&cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")));
                Err(Refusal::Unavailable)
            }
        }
    }

    /// The same in bounded time, for a caller whose own time has no bound.
    pub(crate) async fn read_in_time<T>(
        &self,
        reading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Refusal> {
        self.bounded(self.read(reading)).await
    }

    fn failed(&self, error: &str) {
        self.0.metrics.failed_reads.inc();
        if !self.0.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(error, "profiles cannot be read; logged once until they can");
        }
    }
}
