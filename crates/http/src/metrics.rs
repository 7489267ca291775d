//! The server's metrics, and how every crate above registers its own.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

/// Registers a new metric and returns it.
pub fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// The server's metrics; clones count into the same.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    /// Open connections.
    pub(crate) open: Gauge,
    ended: Family<EndedLabel, Counter>,
    /// Connections that could not be accepted.
    pub(crate) refused: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabel {
    reason: &'static str,
}

/// Why the server ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client did not read an answer in time.
    SlowReader,
    /// Too many bytes of answers waited for their readers.
    AnswersFull,
    /// The head of a request did not arrive in time.
    SlowHead,
    /// Another connection needed the slot.
    Idle,
    /// The server stops, and the client did not read or send something in time.
    Draining,
}

impl Ended {
    /// The name in the metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::SlowReader => "slow_reader",
            Self::AnswersFull => "answers_full",
            Self::SlowHead => "slow_head",
            Self::Idle => "idle",
            Self::Draining => "draining",
        }
    }
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            open: register(registry, "dashi_http_connections", "Open connections"),
            ended: register(
                registry,
                "dashi_http_connections_ended",
                "Connections that the server ended before their clients did, by reason",
            ),
            refused: register(
                registry,
                "dashi_http_accept_failures",
                "Connections that could not be accepted",
            ),
        }
    }

    /// Counts a connection that the server ended.
    pub(crate) fn ended(&self, reason: Ended) {
        self.ended.get_or_create(&EndedLabel { reason: reason.name() }).inc();
    }
}
