//! Metrics of the projector.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashi_domain::fold::Outcomes;
use dashi_domain::missing::Missing;
use dashi_domain::position::Partition;
use dashi_store::Committed;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::progress::Measured;
use crate::rebuild::{Building, Standing};
use crate::state::{FailureKind, PartitionState};
use crate::summary::Summary;

/// The projector's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct ProjectorMetrics {
    records: Family<OutcomeLabel, Counter>,
    letters_tried: Family<OutcomeLabel, Counter>,
    parked: Counter,
    parking_given_up: Counter,
    trait_sends: Family<OutcomeLabel, Counter>,
    commit_seconds: Histogram,
    batch_records: Histogram,
    rows: Family<TableLabel, Counter>,
    /// Partitions that the log's backend assigned to this process.
    pub(crate) assigned: Counter,
    /// Partitions that it took away again.
    pub(crate) revoked: Counter,
    lag_records: Family<PartitionLabel, Gauge>,
    lag_seconds: Family<PartitionLabel, Gauge<f64, AtomicU64>>,
    /// Partitions claimed.
    pub(crate) claims: Counter,
    /// Claims lost to another projector.
    pub(crate) fenced: Counter,
    /// Partitions with a tail.
    pub(crate) tails: Gauge,
    /// Records that lie in another partition than the layout says.
    pub(crate) misplaced: Counter,
    retries: Counter,
    up: Gauge,
    states: Family<StateLabels, Gauge>,
    failures: Family<FailureLabels, Gauge>,
    call_seconds: Family<PartitionLabel, Gauge<f64, AtomicU64>>,
    projection_version: Gauge,
    rebuild_due: Gauge,
    rebuild_done: Family<GenerationLabel, Gauge>,
    rebuild_left: Family<GenerationLabel, Gauge>,
    /// Partitions whose lag the gauges show.
    lagging: Arc<Mutex<BTreeSet<Partition>>>,
    /// Partitions whose state the gauges show, with the kind of their failure.
    stated: Arc<Mutex<BTreeMap<Partition, Option<FailureKind>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabel {
    partition: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GenerationLabel {
    generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    partition: u32,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    partition: u32,
    kind: &'static str,
}

impl ProjectorMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
        let metrics = Self {
            records: Family::default(),
            letters_tried: Family::default(),
            parked: Counter::default(),
            parking_given_up: Counter::default(),
            trait_sends: Family::default(),
            commit_seconds: Histogram::new(buckets),
            batch_records: Histogram::new([
                1.0, 5.0, 25.0, 100.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 50_000.0,
            ]),
            rows: Family::default(),
            assigned: Counter::default(),
            revoked: Counter::default(),
            lag_records: Family::default(),
            lag_seconds: Family::default(),
            claims: Counter::default(),
            misplaced: Counter::default(),
            fenced: Counter::default(),
            tails: Gauge::default(),
            retries: Counter::default(),
            up: Gauge::default(),
            states: Family::default(),
            failures: Family::default(),
            call_seconds: Family::default(),
            projection_version: Gauge::default(),
            rebuild_due: Gauge::default(),
            rebuild_done: Family::default(),
            rebuild_left: Family::default(),
            lagging: Arc::default(),
            stated: Arc::default(),
        };
        registry.register(
            "dashi_projector_records",
            "Records by outcome: applied, duplicate, dead, or missing from the log",
            metrics.records.clone(),
        );
        registry.register(
            "dashi_projector_dead_letters_tried",
            "Dead letters that a command tried again, by outcome: applied, duplicate, or still dead",
            metrics.letters_tried.clone(),
        );
        registry.register(
            "dashi_projector_parked_records",
            "Records that wait, or waited, behind a dead letter of their session",
            metrics.parked.clone(),
        );
        registry.register(
            "dashi_projector_parking_given_up",
            "Sessions of which as many records waited as may, so that later ones were applied",
            metrics.parking_given_up.clone(),
        );
        registry.register(
            "dashi_projector_trait_sends",
            "Trait values that identifies sent: written, or avoided because they changed nothing",
            metrics.trait_sends.clone(),
        );
        registry.register_with_unit(
            "dashi_projector_commit",
            "Time of committed transactions",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "dashi_projector_batch_records",
            "Records of committed transactions",
            metrics.batch_records.clone(),
        );
        registry.register(
            "dashi_projector_rows",
            "Rows that committed transactions wrote or filled, by table",
            metrics.rows.clone(),
        );
        registry.register(
            "dashi_projector_partitions_assigned",
            "Partitions that this process was given to project",
            metrics.assigned.clone(),
        );
        registry.register(
            "dashi_projector_partitions_revoked",
            "Partitions that were taken from this process again",
            metrics.revoked.clone(),
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
        registry.register(
            "dashi_projector_misplaced_records",
            "Records that lie in another partition than the layout of the grown log says",
            metrics.misplaced.clone(),
        );
        registry.register("dashi_projector_claims", "Partitions claimed", metrics.claims.clone());
        registry.register(
            "dashi_projector_fenced",
            "Claims lost to another projector",
            metrics.fenced.clone(),
        );
        registry.register(
            "dashi_projector_tails",
            "Partitions of this process in which live events are applied before a backlog",
            metrics.tails.clone(),
        );
        registry.register(
            "dashi_projector_retries",
            "Waits because the log or the store did not answer",
            metrics.retries.clone(),
        );
        registry.register(
            "dashi_projector_up",
            "1 while the projector runs; 0 before it starts and when it has ended with an error",
            metrics.up.clone(),
        );
        registry.register(
            "dashi_projector_partition_state",
            "1 for the state that the partition is in: running, waiting_for_store, waiting_for_log, failed",
            metrics.states.clone(),
        );
        registry.register(
            "dashi_projector_partition_failure",
            "1 while the partition is failed, by kind: trimmed, beyond, rewritten, replaced, refused, claim_lost, tables, panicked",
            metrics.failures.clone(),
        );
        registry.register_with_unit(
            "dashi_projector_store_call",
            "Age of the store's call under way for the partition, such as a commit; 0 if none is under way",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        metrics.register_rebuild(registry);
        // From the start, so that the first one is an increase for whoever watches.
        for outcome in ["dead", "missing"] {
            let _ = metrics.records.get_or_create(&OutcomeLabel { outcome });
        }
        metrics
    }

    fn register_rebuild(&self, registry: &mut Registry) {
        registry.register(
            "dashi_projector_projection_version",
            "Projection version of the live tables; 0 if they are older than its record",
            self.projection_version.clone(),
        );
        registry.register(
            "dashi_projector_rebuild_due",
            "1 if the live tables are of an older projection version, or of other rules, than those in force",
            self.rebuild_due.clone(),
        );
        registry.register(
            "dashi_projector_rebuild_done_records",
            "Offsets that the generation being built has applied",
            self.rebuild_done.clone(),
        );
        registry.register(
            "dashi_projector_rebuild_left_records",
            "Offsets that the live tables have applied and the generation being built has not",
            self.rebuild_left.clone(),
        );
    }

    /// Shows the live generation, and the one that is being built.
    pub(crate) fn rebuild(&self, standing: &Standing) {
        let version = standing.live().map_or(0, |live| live.projection_version);
        self.projection_version.set(version.into());
        self.rebuild_due.set(standing.due.is_some().into());
        self.rebuild_done.clear();
        self.rebuild_left.clear();
        if let Some(Building { number: generation, done, total, .. }) = standing.building {
            let of = GenerationLabel { generation };
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.rebuild_done.get_or_create(&of).set(count(done));
            self.rebuild_left.get_or_create(&of).set(count(total.saturating_sub(done)));
        }
    }

    pub(crate) fn committed(&self, summary: &Summary, committed: &Committed, took: Duration) {
        let profiles = committed.profiles;
        for (outcome, count) in [("written", profiles.writes), ("avoided", profiles.avoided)] {
            self.trait_sends.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
        }
        self.commit_seconds.observe(took.as_secs_f64());
        let Outcomes { applied, duplicate, dead } = summary.outcomes;
        self.batch_records.observe((applied + duplicate + dead) as f64);
        for (table, rows) in summary.rows {
            if rows > 0 {
                self.rows.get_or_create(&TableLabel { table }).inc_by(rows as u64);
            }
        }
        // A letter that is tried again was counted when it was read.
        let records = if summary.is_trial { &self.letters_tried } else { &self.records };
        for (outcome, count) in [("applied", applied), ("duplicate", duplicate), ("dead", dead)] {
            records.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
        }
    }

    /// Counts records that wait behind dead letters, and sessions whose order is given up.
    pub(crate) fn parked(&self, records: u64, given_up: u64) {
        self.parked.inc_by(records);
        self.parking_given_up.inc_by(given_up);
    }

    /// Counts records that were missing from the log where a commit passed.
    pub(crate) fn missing(&self, missing: &[Missing]) {
        let records: u64 = missing.iter().map(|missing| missing.records).sum();
        if records > 0 {
            self.records.get_or_create(&OutcomeLabel { outcome: "missing" }).inc_by(records);
        }
    }

    pub(crate) fn count_retry(&self) {
        self.retries.inc();
    }

    pub(crate) fn lag(&self, partition: Partition, records: u64, age_ms: i64) {
        let of = PartitionLabel { partition: partition.number() };
        self.lag_records.get_or_create(&of).set(i64::try_from(records).unwrap_or(i64::MAX));
        self.lag_seconds.get_or_create(&of).set(age_ms as f64 / 1_000.0);
    }

    /// Removes the lag of all partitions but these: other processes show it.
    pub(crate) fn forget_other_lags(&self, mine: BTreeSet<Partition>) {
        let mut lagging = self.lagging.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in lagging.difference(&mine) {
            let of = PartitionLabel { partition: partition.number() };
            self.lag_records.remove(&of);
            self.lag_seconds.remove(&of);
        }
        *lagging = mine;
    }

    /// Shows the states of all partitions of this process, and no others.
    pub(crate) fn states(&self, is_up: bool, partitions: &[Measured]) {
        self.up.set(i64::from(is_up));
        let mut stated = self.stated.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *stated);
        for measured in partitions {
            let partition = measured.partition.number();
            for state in PartitionState::NAMES {
                let is_in = i64::from(state == measured.state.name());
                self.states.get_or_create(&StateLabels { partition, state }).set(is_in);
            }
            let call_s = measured.call.map_or(0.0, |call| call.as_secs_f64());
            self.call_seconds.get_or_create(&PartitionLabel { partition }).set(call_s);
            let kind = measured.state.failure();
            if let Some(before) =
                gone.remove(&measured.partition).flatten().filter(|before| Some(*before) != kind)
            {
                self.failures.remove(&FailureLabels { partition, kind: before.name() });
            }
            if let Some(kind) = kind {
                self.failures.get_or_create(&FailureLabels { partition, kind: kind.name() }).set(1);
            }
            stated.insert(measured.partition, kind);
        }
        for (partition, kind) in gone {
            let partition = partition.number();
            for state in PartitionState::NAMES {
                self.states.remove(&StateLabels { partition, state });
            }
            self.call_seconds.remove(&PartitionLabel { partition });
            if let Some(kind) = kind {
                self.failures.remove(&FailureLabels { partition, kind: kind.name() });
            }
        }
    }
}
