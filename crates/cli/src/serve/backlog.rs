//! The measurement of the backlog for the collector: its age, in metrics and readiness, and shedding by it.
//!
//! The source is the same for every process that collects, with a projector beside it or without: the log's high
//! watermarks and the store's checkpoints, each of which is durable before it is read here. No record is read: the time at
//! which a watermark was first seen stands for the time of the records below it. Only at the start, and only where there is
//! a backlog, the log is asked which offsets it had at some earlier times.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use dashi_domain::backlog::Backlog;
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EventLog, Extent};
use dashi_ingest::{BacklogGate, BacklogState, WatchedFile};
use dashi_store::Store;
use futures::{StreamExt as _, stream};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;

/// How often it is measured.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long one measurement may take. With the interval it is below the time for which a measurement counts.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Watermarks that are asked for at once.
const AT_ONCE: usize = 16;

/// The earlier times for which the log is asked at the start: these many, the first one so many milliseconds ago, each
/// half as long again ago as the one before. The last one is more than a month ago.
const PAST: usize = 34;
const PAST_FIRST_MS: i64 = 4_000;

/// Measures until `stop`. While log or store are away the backlog is not known, and nothing is shed.
pub async fn measure(log: EventLog, store: Store, gate: BacklogGate, stop: CancellationToken) {
    let mut measuring = Measuring { log, store, began: Instant::now(), partitions: BTreeMap::new() };
    let mut shown = Shown::default();
    loop {
        let measured = tokio::select! {
            () = stop.cancelled() => return,
            measured = tokio::time::timeout(ATTEMPT, measuring.observe(&gate)) => measured,
        };
        let error = match measured {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("log and store did not answer within {} s", ATTEMPT.as_secs())),
        };
        if let Some(error) = error {
            tracing::debug!(error, "the backlog cannot be measured");
        }
        shown.show(&gate);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

struct Measuring {
    log: EventLog,
    store: Store,
    /// Times are counted from here.
    began: Instant,
    partitions: BTreeMap<Partition, Backlog>,
}

impl Measuring {
    async fn observe(&mut self, gate: &BacklogGate) -> anyhow::Result<()> {
        let mut partitions = self.log.partitions().await?;
        partitions.sort_unstable();
        // The log first: so no record that is applied by now counts as one that is not.
        let log = &self.log;
        let asked = partitions
            .clone()
            .into_iter()
            .map(async |partition| log.extent_at_a_glance(partition).await.ok());
        let extents: Vec<Option<Extent>> = stream::iter(asked).buffered(AT_ONCE).collect().await;
        let at_ms = self.elapsed_ms();
        let states = self.store.partitions().await?;
        let of_log = states.into_iter().filter(|state| state.log == *self.log.id());
        let checkpoints: HashMap<Partition, Checkpoint> =
            of_log.map(|state| (state.partition, state.checkpoint)).collect();
        let mut ages = Vec::with_capacity(partitions.len());
        for (partition, extent) in partitions.iter().zip(extents) {
            let Some(Extent { low, high }) = extent else {
                ages.push(None);
                continue;
            };
            // A partition that was never claimed has everything still to be applied.
            let checkpoint = checkpoints.get(partition).copied().unwrap_or(Checkpoint::START);
            let is_new = !self.partitions.contains_key(partition);
            let backlog = self.partitions.entry(*partition).or_default();
            backlog.observe(at_ms, checkpoint.max(Checkpoint::at(low)), high);
            if is_new && backlog.records() > 0 {
                backlog.add_past(past(&self.log, *partition, checkpoint, at_ms).await);
            }
            ages.push(Some(gate.age_of(backlog, at_ms)));
        }
        // Events go to the first ones only, where a topic has more.
        ages.truncate(self.log.partitions_in_force().map_or(usize::MAX, |partitions| partitions as usize));
        gate.set(ages, Instant::now());
        Ok(())
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

/// High watermarks of times before `at_ms`, back to one at or below the checkpoint, or as far as the log tells them.
async fn past(
    log: &EventLog,
    partition: Partition,
    checkpoint: Checkpoint,
    at_ms: i64,
) -> Vec<(i64, Offset)> {
    let (mut past, mut ago_ms, wall_ms) = (Vec::new(), PAST_FIRST_MS, now_ms());
    for _ in 0..PAST {
        let Ok(high) = log.offset_at(partition, wall_ms - ago_ms).await else { break };
        if high <= checkpoint.offset() {
            break;
        }
        past.push((at_ms - ago_ms, high));
        ago_ms += ago_ms / 2;
    }
    past
}

/// What was logged last.
#[derive(Default)]
struct Shown {
    is_shedding: bool,
    is_unknown: bool,
}

impl Shown {
    /// Logs when shedding begins and ends, and when it cannot be decided.
    fn show(&mut self, gate: &BacklogGate) {
        let policy = gate.policy();
        if policy == dashi_domain::backlog::BacklogPolicy::Accept {
            return;
        }
        let state = gate.state(Instant::now());
        if std::mem::replace(&mut self.is_unknown, state.is_none()) != state.is_none() {
            match state {
                None => tracing::warn!(
                    "the backlog is not known, as log or store do not answer, so nothing is shed"
                ),
                Some(_) => tracing::info!("the backlog is known again"),
            }
        }
        let is_shedding = state.is_some_and(|state| state.shedding > 0);
        if std::mem::replace(&mut self.is_shedding, is_shedding) == is_shedding {
            return;
        }
        let age_s = state.map(|state| state.age_ms / 1_000);
        match state {
            Some(BacklogState { shedding, applied_per_s, .. }) if shedding > 0 => tracing::warn!(
                age_s,
                limit_s = gate.age_max_ms() / 1_000,
                policy = policy.name(),
                partitions = shedding,
                applied_per_s,
                "the backlog is too old: events are shed"
            ),
            _ => tracing::info!(age_s, "events are no longer shed"),
        }
    }
}

/// The backlog, and the limits file if there is one, as metrics and in readiness.
#[derive(Clone)]
pub struct LimitsState {
    pub backlog: BacklogGate,
    pub file: Option<WatchedFile>,
}

impl LimitsState {
    /// The member `backlog` of readiness.
    pub fn json(&self) -> Value {
        let state = self.backlog.state(Instant::now());
        json!({
            "policy": self.backlog.policy().name(),
            "age_s": state.map(|state| state.age_ms / 1_000),
            "applied_per_s": state.and_then(|state| state.applied_per_s),
            "shedding_partitions": state.map_or(0, |state| state.shedding),
        })
    }
}

/// [`LimitsState`] as gauges. A backlog that is not known has none.
pub struct LimitsMetrics(pub LimitsState);

impl std::fmt::Debug for LimitsMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitsMetrics").finish_non_exhaustive()
    }
}

impl Collector for LimitsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        let state = self.0.backlog.state(Instant::now());
        gauge(
            "dashi_ingest_backlog_age_seconds",
            "Age of the oldest event that is not applied, by watermarks and checkpoints; absent if it is not known",
            state.map(|state| state.age_ms as f64 / 1_000.0),
        )?;
        gauge(
            "dashi_ingest_backlog_applied_per_second",
            "Records that are applied per second, over half a minute",
            state.and_then(|state| state.applied_per_s),
        )?;
        gauge(
            "dashi_ingest_backlog_shedding_partitions",
            "Partitions whose events are shed, those of the lowest priority at least",
            state.map(|state| state.shedding as f64),
        )?;
        gauge(
            "dashi_ingest_limits_file_current",
            "1 if the limits file as it lies there is in use, 0 if it is wrong or missing",
            self.0.file.as_ref().map(|file| if file.error().is_none() { 1.0 } else { 0.0 }),
        )
    }
}
