//! The collector's metrics.

use std::sync::atomic::AtomicU64;

use dashi_domain::glance::HourKey;
use dashi_http::register;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::answer::Rejection;
use crate::tallies::Tallies;

/// The outcome of a submission whose record is durable.
const ACCEPTED: &str = "accepted";

/// The kind of requests that an outcome is counted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Events: requests, or elements of a batch.
    Events,
    /// Chunks of recordings, and heatmap posts.
    Chunks,
}

/// An outcome that has a name in the metrics.
pub trait Counted {
    /// The name.
    fn label(&self) -> &'static str;
}

/// The collector's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct IngestMetrics {
    events: Family<OutcomeLabel, Counter<u64, AtomicU64>>,
    chunks: Family<OutcomeLabel, Counter<u64, AtomicU64>>,
    unknown_types: Family<UnknownTypeLabel, Counter<u64, AtomicU64>>,
    /// The same outcomes by the hour, for the store.
    pub tallies: Tallies,
    /// Visits of links and pixels that were answered and not recorded.
    pub unrecorded_visits: Counter<u64, AtomicU64>,
    /// How long appends took to be durable.
    pub append_seconds: Histogram,
    /// Requests being worked on.
    pub in_flight: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// `kind` is one of a few names, however many types there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnknownTypeLabel {
    kind: &'static str,
    outcome: &'static str,
}

impl IngestMetrics {
    /// Counts a submission of an unknown type.
    pub fn count_unknown(&self, kind: &'static str, is_kept: bool) {
        let outcome = if is_kept { "kept" } else { "refused" };
        self.unknown_types.get_or_create(&UnknownTypeLabel { kind, outcome }).inc();
    }

    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets =
            [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let append_seconds = Histogram::new(buckets);
        let metrics = Self {
            tallies: Tallies::default(),
            events: register(
                registry,
                "dashi_ingest_events",
                "Events (requests, or elements of a batch) by outcome",
            ),
            chunks: register(
                registry,
                "dashi_ingest_recording_chunks",
                "Chunks of recordings and heatmap posts that recorders sent, by outcome",
            ),
            unknown_types: register(
                registry,
                "dashi_ingest_unknown_types",
                "Submissions of types that this version does not know, by type (or other), and by whether they were kept",
            ),
            unrecorded_visits: register(
                registry,
                "dashi_ingest_unrecorded_visits",
                "Visits of links and pixels that were answered and could not be recorded",
            ),
            in_flight: register(registry, "dashi_ingest_in_flight", "Requests being worked on"),
            append_seconds: append_seconds.clone(),
        };
        registry.register_with_unit(
            "dashi_ingest_append",
            "Time until appended records were durable",
            Unit::Seconds,
            append_seconds,
        );
        // From the start, so that the first one is an increase for whoever watches.
        for outcome in [ACCEPTED, Rejection::Unavailable.label()] {
            let _ = metrics.events.get_or_create(&OutcomeLabel { outcome });
        }
        metrics
    }

    /// Counts one outcome of which no record came.
    pub fn count(&self, subject: Subject, outcome: &'static str) {
        self.inc(subject, outcome);
        self.tallies.answered(subject, outcome);
    }

    /// Counts an accepted submission, whose record is counted by this key.
    pub fn count_accepted(&self, subject: Subject, key: HourKey) {
        self.inc(subject, ACCEPTED);
        self.tallies.accepted(subject, key, ACCEPTED);
    }

    fn inc(&self, subject: Subject, outcome: &'static str) {
        let family = match subject {
            Subject::Events => &self.events,
            Subject::Chunks => &self.chunks,
        };
        family.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
