//! The pace at which history enters the log while live events do: [`dashi_domain::pace`] with a log and a store.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashi_domain::pace::{Pace, Wait};
use dashi_domain::partitioner::{key, partition_for};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EventLog, Extent, LogError};
use dashi_store::{Store, StoreError};
use futures::{StreamExt as _, stream};
use uuid::Uuid;

/// Time between two observations: a tenth of the limit, within these bounds.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// How long one observation may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Watermarks that are asked for at once.
const AT_ONCE: usize = 16;

/// Watches the backlog while history is appended, and tells how much of it may be. It reads no record: only the log's watermarks
/// and the store's checkpoints, and only while it is asked. Clones are one.
#[derive(Clone)]
pub struct Pacer(Arc<Shared>);

struct Shared {
    log: EventLog,
    store: Store,
    waits_for_projection: bool,
    interval: Duration,
    /// Times are counted from here.
    began: Instant,
    state: Mutex<State>,
    /// When the last observation ended; held while one is made.
    observed: tokio::sync::Mutex<Option<Instant>>,
}

struct State {
    pace: Pace,
    /// Whether a live projector has ever claimed a partition of this log; `None` before the first observation.
    is_projected: Option<bool>,
}

impl fmt::Debug for Pacer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pacer").field("log", self.0.log.id()).finish_non_exhaustive()
    }
}

/// Records that may be appended. They count as being on their way to the log until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    pacer: Pacer,
    partitions: Vec<Partition>,
    records: usize,
}

impl Admitted {
    /// How many of the records, from the first one on; at least one.
    pub const fn records(&self) -> usize {
        self.records
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.pacer.state();
        for partition in &self.partitions {
            state.pace.settled(*partition);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Unobserved {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Pacer {
    /// Live events are to wait for history by `delay_max` at most. A log that no live projector has ever claimed has no live
    /// events to wait for: everything is admitted, unless `waits_for_projection`.
    pub fn new(log: EventLog, store: Store, delay_max: Duration, waits_for_projection: bool) -> Self {
        let pace = Pace::new(u64::try_from(delay_max.as_millis()).unwrap_or(u64::MAX));
        Self(Arc::new(Shared {
            log,
            store,
            waits_for_projection,
            interval: (delay_max / 10).clamp(INTERVAL.0, INTERVAL.1),
            began: Instant::now(),
            state: Mutex::new(State { pace, is_projected: None }),
            observed: tokio::sync::Mutex::default(),
        }))
    }

    /// How long to wait after a [`Wait`] before it is worth asking again.
    pub fn interval(&self) -> Duration {
        self.0.interval
    }

    /// Asks how many records of these sessions may be appended now, in this order; at least one session.
    ///
    /// # Errors
    /// None of them now; ask again after [`Pacer::interval`].
    pub async fn admit(&self, sessions: impl IntoIterator<Item = Uuid>) -> Result<Admitted, Wait> {
        self.observe().await;
        let now_ms = self.elapsed_ms();
        let mut state = self.state();
        let count = u32::try_from(state.pace.partitions()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(Wait::Unknown);
        }
        let mut partitions: Vec<Partition> =
            sessions.into_iter().map(|session| partition_for(key(session).as_bytes(), count)).collect();
        if state.is_projected == Some(false) && !self.0.waits_for_projection {
            return Ok(Admitted { pacer: self.clone(), records: partitions.len(), partitions: Vec::new() });
        }
        let records = state.pace.admit(now_ms, partitions.iter().copied())?;
        partitions.truncate(records);
        Ok(Admitted { pacer: self.clone(), partitions, records })
    }

    /// Observes log and store, if the last observation is old enough.
    async fn observe(&self) {
        let mut observed = self.0.observed.lock().await;
        if observed.is_some_and(|at| at.elapsed() < self.0.interval) {
            return;
        }
        self.state().pace.begin_observation();
        let error = match tokio::time::timeout(ATTEMPT, self.look()).await {
            Ok(Ok((at_ms, partitions, is_projected))) => {
                let mut state = self.state();
                state.pace.observe(at_ms, &partitions);
                state.is_projected = Some(is_projected);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("log and store did not answer within {} s", ATTEMPT.as_secs())),
        };
        if let Some(error) = error {
            tracing::debug!(error, "the backlog cannot be observed");
        }
        *observed = Some(Instant::now());
    }

    /// The time, checkpoint and high watermark of each partition, and whether a live projector has ever claimed one.
    async fn look(&self) -> Result<(i64, Vec<Option<(Checkpoint, Offset)>>, bool), Unobserved> {
        let Shared { log, store, .. } = &*self.0;
        let mut partitions = log.partitions().await?;
        partitions.sort_unstable();
        // The log first: so no record that is applied by now counts as one that is not.
        let asked =
            partitions.clone().into_iter().map(|partition| async move { log.extent(partition).await });
        let extents: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
        let at_ms = self.elapsed_ms();
        let states: HashMap<_, _> = store
            .partitions()
            .await?
            .into_iter()
            .filter(|state| state.log == *log.id())
            .map(|state| (state.partition, state))
            .collect();
        let of_partition = |(partition, extent): (&Partition, Result<Extent, LogError>)| {
            let extent = extent.ok()?;
            // A partition that was never claimed has everything still to be applied.
            let checkpoint = states.get(partition).map_or(Checkpoint::START, |state| state.checkpoint);
            Some((checkpoint.max(Checkpoint::at(extent.low)), extent.high))
        };
        let observed = partitions.iter().zip(extents).map(of_partition).collect();
        Ok((at_ms, observed, states.values().any(|state| state.is_live)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}
