//! Whether this process goes on: the tasks that run as long as it does are watched, from a thread of the operating system's
//! that needs none of the runtime's. `/health/live` shows what is stuck, and the logs do, too, where the runtime itself is.
//!
//! A task is watched in two ways. [`Alive::spawn`] polls it once a second, which shows that its thread is not blocked and
//! that none of its steps runs for ever. Partitions and the appends of a collector also note what they get done
//! (`dashi_projector::Progress`, `dashi_ingest::CollectorSettings::liveness`), which shows an await that never ends.

use std::pin::pin;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dashi_domain::liveness::{Liveness, StuckTask, Watched};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often a task is polled that has nothing to do.
const POLL: Duration = Duration::from_secs(1);

/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(500);

/// Most of the time between two looks that counts: more means that the process was stopped, or its machine starved.
const COUNTED: Duration = Duration::from_secs(1);

/// The tasks of this process, and the thread that watches them until this is dropped.
pub struct Alive {
    liveness: Liveness,
    _watchdog: SyncSender<()>,
}

impl Alive {
    /// Starts the watchdog, and a task of the runtime's that shows whether it runs any.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(silence_max: Duration) -> anyhow::Result<Self> {
        let liveness = Liveness::new(silence_max);
        let (stop, stopped) = sync_channel(0);
        let watched = liveness.clone();
        std::thread::Builder::new()
            .name("dashi-watchdog".to_owned())
            .spawn(move || {
                let (mut last, mut known) = (Instant::now(), Vec::new());
                while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    watched.advance(last.elapsed().min(COUNTED));
                    last = Instant::now();
                    known = report(known, watched.stuck());
                }
            })
            .context("cannot start the watchdog's thread")?;
        let alive = Self { liveness, _watchdog: stop };
        drop(alive.spawn("the runtime", std::future::pending::<()>()));
        Ok(alive)
    }

    /// What it watches.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Spawns a task that is to run until it is stopped, and watches it.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        tokio::spawn(polled(self.liveness.watch(name), task))
    }
}

/// Runs a task and notes that it can be polled. A panic is noted, too.
async fn polled<T>(watched: Watched, task: impl Future<Output = T>) -> T {
    /// Knows the task as lost if it unwinds.
    struct Unwinding(Option<Watched>);
    impl Drop for Unwinding {
        fn drop(&mut self) {
            if let Some(watched) = self.0.take().filter(|_| std::thread::panicking()) {
                watched.lost();
            }
        }
    }
    let watched = Unwinding(Some(watched));
    let mut task = pin!(task);
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut task => return ended,
            _ = tick.tick() => if let Some(watched) = &watched.0 {
                watched.moved();
            }
        }
    }
}

/// Logs which tasks are stuck that were not, and which go on. Returns the names of those that are.
fn report(known: Vec<String>, stuck: Vec<StuckTask>) -> Vec<String> {
    for task in stuck.iter().filter(|task| !known.contains(&task.name)) {
        let (silent_s, doing) = (task.silent.as_secs(), task.doing);
        if task.is_lost {
            tracing::error!(task = task.name, "a task has ended that should run; /health/live answers 503");
        } else {
            tracing::error!(task = task.name, silent_s, doing, "a task is stuck; /health/live answers 503");
        }
    }
    for name in known.iter().filter(|name| stuck.iter().all(|task| task.name != **name)) {
        tracing::info!(task = name, "a task that was stuck goes on, or has ended");
    }
    stuck.into_iter().map(|task| task.name).collect()
}

/// The number of stuck tasks, as a metric.
#[derive(Debug)]
pub struct StuckTasks(pub Liveness);

impl Collector for StuckTasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        ConstGauge::new(self.0.stuck().len() as f64).encode(encoder.encode_descriptor(
            "dashi_stuck_tasks",
            "Tasks of the process that do not go on",
            None,
            MetricType::Gauge,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    /// Waits until the stuck tasks are these.
    async fn until_stuck(liveness: &Liveness, names: &[&str]) {
        let began = Instant::now();
        loop {
            let stuck = liveness.stuck();
            if stuck.iter().map(|task| task.name.as_str()).eq(names.iter().copied()) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{stuck:?} are stuck, not {names:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_task_whose_thread_is_blocked_is_stuck_and_one_that_waits_is_not() {
        let alive = Alive::start(Duration::from_secs(3)).unwrap();
        let liveness = alive.liveness();
        let go_on = Arc::new(Notify::new());
        let (release, blocked) = sync_channel::<()>(0);
        let waiting = alive.spawn("waiting", {
            let go_on = Arc::clone(&go_on);
            async move { go_on.notified().await }
        });
        let blocking = alive.spawn("blocking", async move {
            let _ = blocked.recv();
        });
        until_stuck(&liveness, &["blocking"]).await;
        assert!(liveness.stuck()[0].silent >= Duration::from_secs(3));
        drop(release);
        blocking.await.unwrap();
        until_stuck(&liveness, &[]).await;
        go_on.notify_one();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_panics_is_lost_and_one_that_ends_is_not() {
        let alive = Alive::start(Duration::from_secs(600)).unwrap();
        alive.spawn("ending", async {}).await.unwrap();
        assert!(alive.spawn("panicking", async { panic!("for a test") }).await.is_err());
        let stuck = alive.liveness().stuck();
        assert!(
            matches!(&stuck[..], [StuckTask { name, is_lost: true, .. }] if name == "panicking"),
            "{stuck:?}"
        );
        let running = alive.spawn("aborted", std::future::pending::<()>());
        running.abort();
        assert!(running.await.is_err());
        assert_eq!(alive.liveness().stuck().len(), 1);
    }
}
