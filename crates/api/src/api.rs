//! The frame of all endpoints: the key, the time of a request, and how many reads run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::Response;
use dashi_domain::identity::IdentityKey;
use dashi_store::{Questions, Store, StoreError};
use http::request::Parts;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::Refusal;
use crate::fan_out::FanOut;
use crate::keys::{Keys, may_read};
use crate::metrics::ApiMetrics;

/// For each question that runs, how many wait.
const WAITING: usize = 10;

/// How long the store's answers to questions are waited for when the process stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Settings of the read side.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The keys that permit reading. Without any, requests from this machine may read traffic, and nobody profiles.
    pub keys: Option<Keys>,
    /// Whether the process listens on a loopback address alone.
    pub listens_on_loopback: bool,
    /// The key of the signatures by which a page may read its own person; without one, no page can.
    pub identity_key: Option<IdentityKey>,
    /// How long a browser may keep the answer to a preflight, in seconds.
    pub cors_max_age_s: u64,
    /// The beginning of every path, such as `/umami`; empty for none.
    pub base_path: String,
    /// Longest time of a request that is no stream, and of one read of a stream.
    pub request_timeout: Duration,
    /// The value of `Retry-After` with a 503, in seconds.
    pub retry_after_s: u64,
    /// Most reads of the store at once, those of streams included; further reads wait.
    pub reads_max: usize,
    /// Most questions about traffic at once; of further ones ten times as many wait, and one more is answered 503.
    pub questions_max: usize,
    /// Longest time of a question's statements.
    pub question_timeout: Duration,
    /// Most open streams; one more is answered 503.
    pub streams_max: usize,
    /// Most open streams of the signed pages of one person; one more is answered 503.
    pub person_streams_max: usize,
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

/// Answers requests that may read. Cheap to clone.
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
    questions: Questions,
    /// The questions that run, and those that wait for their turn or run.
    turns: Arc<Semaphore>,
    asked: Semaphore,
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
        // From here on nothing is missed: no stream has read anything yet. Without keys there are no streams.
        let marking = (settings.keys.is_some() || settings.identity_key.is_some())
            .then(|| fan_out.clone().run(store.profile_changes(), settings.look_again, stop));
        let marking = async move {
            if let Some(marking) = marking {
                marking.await;
            }
        };
        let questions_max = u32::try_from(settings.questions_max).unwrap_or(u32::MAX);
        let api = Self(Arc::new(Shared {
            streams: Arc::new(Semaphore::new(settings.streams_max)),
            reads: Semaphore::new(settings.reads_max),
            questions: store.questions(questions_max, settings.question_timeout),
            turns: Arc::new(Semaphore::new(settings.questions_max)),
            asked: Semaphore::new(settings.questions_max.saturating_mul(1 + WAITING)),
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
        // A question that nobody waits for any more need not end.
        let _ = tokio::time::timeout(FAREWELL, self.0.questions.close()).await;
    }

    /// Answers one request in bounded time, if it may read.
    pub(crate) async fn answer(
        &self,
        request: &Parts,
        work: impl Future<Output = Result<Response, Refusal>>,
    ) -> Response {
        let allowed = self.authorized(request);
        let outcome = if allowed { self.bounded(work).await } else { Err(Refusal::NoKey) };
        self.finish(outcome)
    }

    /// Answers one request in bounded time, whose signature the work itself checks.
    pub(crate) async fn answer_signed(
        &self,
        work: impl Future<Output = Result<Response, Refusal>>,
    ) -> Response {
        let outcome = self.bounded(work).await;
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

    pub(crate) fn authorized(&self, request: &Parts) -> bool {
        let settings = &self.0.settings;
        may_read(settings.keys.as_ref(), request, settings.listens_on_loopback)
    }

    /// Asks a question about traffic, when its turn comes. It keeps its turn until the store has answered or stopped it,
    /// also when nobody waits for the answer any more.
    pub(crate) async fn ask<T, F>(&self, question: impl FnOnce(Questions) -> F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let _asked = self.0.asked.try_acquire().map_err(|_| Refusal::Unavailable)?;
        // The semaphore is never closed.
        let turn = Arc::clone(&self.0.turns).acquire_owned().await.map_err(|_| Refusal::Unavailable)?;
        let asking = question(self.0.questions.clone());
        let answered = tokio::spawn(async move {
            let answer = asking.await;
            drop(turn);
            answer
        });
        match answered.await {
            Ok(answer) => self.answered(answer),
            Err(error) => {
                self.failed(&format!("a question ended without an answer: {error}"));
                Err(Refusal::Unavailable)
            }
        }
    }

    /// Reads from the store, when its turn comes.
    pub(crate) async fn read<T>(
        &self,
        reading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Refusal> {
        // The semaphore is never closed.
        let _turn = self.0.reads.acquire().await.map_err(|_| Refusal::Unavailable)?;
        self.answered(reading.await)
    }

    fn answered<T>(&self, answer: Result<T, StoreError>) -> Result<T, Refusal> {
        match answer {
            Ok(read) => {
                if self.0.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store can be read again");
                }
                Ok(read)
            }
            // The store answers others.
            Err(error @ StoreError::TooLong { .. }) => {
                self.0.metrics.failed_reads.inc();
                tracing::warn!(%error, "a question was too large");
                Err(Refusal::TooLong)
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
            tracing::warn!(error, "the store cannot be read; logged once until it can");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use dashi_store::{SqliteSettings, SqliteStore};
    use prometheus_client::registry::Registry;

    use super::*;

    async fn api(directory: &std::path::Path, questions_max: usize) -> Api {
        let settings = SqliteSettings { path: directory.join("store.db") };
        let store = Store::Sqlite(SqliteStore::open(&settings).await.unwrap());
        let settings = ApiSettings {
            keys: None,
            listens_on_loopback: true,
            identity_key: None,
            cors_max_age_s: 0,
            base_path: String::new(),
            request_timeout: Duration::from_secs(30),
            retry_after_s: 1,
            reads_max: 1,
            questions_max,
            question_timeout: Duration::from_secs(30),
            streams_max: 1,
            person_streams_max: 1,
            stream_heartbeat: Duration::from_secs(1),
            stream_write_timeout: Duration::from_secs(1),
            live: Duration::from_secs(1),
            look_again: None,
        };
        let metrics = ApiMetrics::new(&mut Registry::default());
        Api::new(store, settings, metrics, CancellationToken::new(), CancellationToken::new()).0
    }

    async fn eventually(what: &str, holds: impl Fn() -> bool) {
        let soon = tokio::time::timeout(Duration::from_secs(30), async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(soon.await.is_ok(), "{what}");
    }

    #[tokio::test]
    async fn so_many_questions_run_and_wait_and_one_more_is_refused() {
        let directory = std::env::temp_dir().join(format!("dashi-api-questions-{}", std::process::id()));
        let api = api(&directory, 1).await;
        let (gate, inside) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (api, gate, inside) = (api.clone(), Arc::clone(&gate), Arc::clone(&inside));
            let question = move |_| async move {
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "one at once");
                gate.acquire().await.unwrap().forget();
                inside.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            };
            tokio::spawn(async move { api.ask(question).await })
        };
        // The turn of one that nobody waits for any more is not free before the store has ended it.
        let abandoned = ask();
        eventually("it runs", || inside.load(Ordering::Relaxed) == 1).await;
        abandoned.abort();
        assert!(abandoned.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(api.0.turns.available_permits(), 0);

        let asked: Vec<_> = (0..=WAITING).map(|_| ask()).collect();
        eventually("all are asked", || api.0.asked.available_permits() == 0).await;
        assert_eq!(ask().await.unwrap(), Err(Refusal::Unavailable));
        gate.add_permits(asked.len() + 2);
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Ok(()));
        }
        assert_eq!(ask().await.unwrap(), Ok(()));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
