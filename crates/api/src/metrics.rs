//! The read side's metrics.

use std::sync::atomic::AtomicU64;

use dashi_http::register;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The read side's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    /// Streams that are open.
    pub(crate) streams: Gauge,
    /// Events that were written to the readers of streams.
    pub(crate) events: Counter<u64, AtomicU64>,
    /// Streams that ended because their reader did not read an event in time.
    pub(crate) dropped: Counter<u64, AtomicU64>,
    /// Reads that the store did not answer, or not in time.
    pub(crate) failed_reads: Counter<u64, AtomicU64>,
    requests: Family<StatusLabel, Counter<u64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

impl ApiMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            streams: register(registry, "dashi_api_streams", "Streams of changes that are open"),
            events: register(
                registry,
                "dashi_api_stream_events",
                "Events that readers of streams have taken",
            ),
            dropped: register(
                registry,
                "dashi_api_streams_dropped",
                "Streams that ended because their reader did not take what was sent in time",
            ),
            failed_reads: register(
                registry,
                "dashi_api_failed_reads",
                "Reads that the store did not answer, or not in time",
            ),
            requests: register(
                registry,
                "dashi_api_requests",
                "Requests to the read side by the status of their answer",
            ),
        }
    }

    /// Counts an answer.
    pub(crate) fn count(&self, status: u16) {
        self.requests.get_or_create(&StatusLabel { status }).inc();
    }
}
