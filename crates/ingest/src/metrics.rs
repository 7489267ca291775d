//! What the collector counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::answer::{Accepted, Rejection, Taken};

/// The collector's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct IngestMetrics {
    events: Family<Outcome, Counter<u64, AtomicU64>>,
    chunks: Family<Outcome, Counter<u64, AtomicU64>>,
    /// Visits of links and pixels that were answered and not recorded.
    pub unrecorded_visits: Counter<u64, AtomicU64>,
    /// How long appends took to be durable.
    pub append_seconds: Histogram,
    /// Requests being worked on.
    pub in_flight: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl IngestMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets =
            [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let metrics = Self {
            events: Family::default(),
            chunks: Family::default(),
            unrecorded_visits: Counter::default(),
            append_seconds: Histogram::new(buckets),
            in_flight: Gauge::default(),
        };
        registry.register(
            "dashi_ingest_events",
            "Events (requests, or elements of a batch) by outcome",
            metrics.events.clone(),
        );
        registry.register(
            "dashi_ingest_recording_chunks",
            "Chunks of recordings by outcome",
            metrics.chunks.clone(),
        );
        registry.register(
            "dashi_ingest_unrecorded_visits",
            "Visits of links and pixels that were answered and could not be recorded",
            metrics.unrecorded_visits.clone(),
        );
        registry.register_with_unit(
            "dashi_ingest_append",
            "Time until appended records were durable",
            Unit::Seconds,
            metrics.append_seconds.clone(),
        );
        registry.register("dashi_ingest_in_flight", "Requests being worked on", metrics.in_flight.clone());
        metrics
    }

    /// Counts one event's outcome.
    pub fn count(&self, outcome: Result<&Accepted, &Rejection>) {
        let outcome = match outcome {
            Ok(Accepted::Event { .. }) => "accepted",
            Ok(Accepted::Bot) => "bot",
            Err(rejection) => label(rejection),
        };
        self.events.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts the outcome of a chunk of a recording.
    pub fn count_chunk(&self, outcome: Result<&Taken, &Rejection>) {
        let outcome = match outcome {
            Ok(Taken::Stored) => "accepted",
            Ok(Taken::Empty) => "empty",
            Ok(Taken::Disabled) => "disabled",
            Ok(Taken::Bot) => "bot",
            Err(rejection) => label(rejection),
        };
        self.chunks.get_or_create(&Outcome { outcome }).inc();
    }
}

fn label(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Schema(_) => "invalid",
        Rejection::UnknownWebsite => "unknown_website",
        Rejection::NoToken | Rejection::BadToken => "bad_token",
        Rejection::Blocked => "blocked",
        Rejection::TooLarge => "too_large",
        Rejection::TooSlow => "too_slow",
        Rejection::Unavailable => "unavailable",
    }
}
