//! What the projector counts.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashi_domain::fold::Outcomes;
use dashi_domain::position::Partition;
use dashi_store::Committed;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The projector's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct ProjectorMetrics {
    records: Family<Outcome, Counter>,
    trait_sends: Family<Outcome, Counter>,
    commit_seconds: Histogram,
    lag_records: Family<Of, Gauge>,
    lag_seconds: Family<Of, Gauge<f64, AtomicU64>>,
    /// Partitions claimed.
    pub(crate) claims: Counter,
    /// Claims lost to another projector.
    pub(crate) fenced: Counter,
    retries: Counter,
    /// Partitions that the gauges speak of.
    measured: Arc<Mutex<BTreeSet<Partition>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    partition: u32,
}

impl ProjectorMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
        let metrics = Self {
            records: Family::default(),
            trait_sends: Family::default(),
            commit_seconds: Histogram::new(buckets),
            lag_records: Family::default(),
            lag_seconds: Family::default(),
            claims: Counter::default(),
            fenced: Counter::default(),
            retries: Counter::default(),
            measured: Arc::default(),
        };
        registry.register(
            "dashi_projector_records",
            "Records by outcome: applied, duplicate, dead",
            metrics.records.clone(),
        );
        registry.register(
            "dashi_projector_trait_sends",
            "Values that identifies sent of people: written, or avoided because they were no difference",
            metrics.trait_sends.clone(),
        );
        registry.register_with_unit(
            "dashi_projector_commit",
            "Time of committed transactions",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "dashi_projector_lag_records",
            "High watermark minus checkpoint",
            metrics.lag_records.clone(),
        );
        registry.register_with_unit(
            "dashi_projector_lag",
            "Age of the oldest record not applied",
            Unit::Seconds,
            metrics.lag_seconds.clone(),
        );
        registry.register("dashi_projector_claims", "Partitions claimed", metrics.claims.clone());
        registry.register(
            "dashi_projector_fenced",
            "Claims lost to another projector",
            metrics.fenced.clone(),
        );
        registry.register(
            "dashi_projector_retries",
            "Waits because the log or the store did not answer",
            metrics.retries.clone(),
        );
        metrics
    }

    pub(crate) fn committed(&self, outcomes: &Outcomes, committed: &Committed, took: Duration) {
        let profiles = committed.profiles;
        for (outcome, count) in [("written", profiles.writes), ("avoided", profiles.avoided)] {
            self.trait_sends.get_or_create(&Outcome { outcome }).inc_by(count);
        }
        self.commit_seconds.observe(took.as_secs_f64());
        let Outcomes { applied, duplicate, dead } = *outcomes;
        for (outcome, count) in [("applied", applied), ("duplicate", duplicate), ("dead", dead)] {
            self.records.get_or_create(&Outcome { outcome }).inc_by(count);
        }
    }

    pub(crate) fn count_retry(&self) {
        self.retries.inc();
    }

    pub(crate) fn lag(&self, partition: Partition, records: u64, age_ms: i64) {
        let of = Of { partition: partition.number() };
        self.lag_records.get_or_create(&of).set(i64::try_from(records).unwrap_or(i64::MAX));
        self.lag_seconds.get_or_create(&of).set(age_ms as f64 / 1_000.0);
    }

    /// A partition that moved on is another process's to speak of.
    pub(crate) fn forget_others(&self, mine: impl Iterator<Item = Partition>) {
        let mine: BTreeSet<_> = mine.collect();
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in measured.difference(&mine) {
            let of = Of { partition: partition.number() };
            self.lag_records.remove(&of);
            self.lag_seconds.remove(&of);
        }
        *measured = mine;
    }
}
