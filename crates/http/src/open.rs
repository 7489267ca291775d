//! The open connections, and the slots that they hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{Ended, ServerMetrics};
use crate::outgoing::Outgoing;

/// How long a connection must have waited for a request before it can be closed in favour of another one.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// How often a connection that waits for a slot looks for an idle one to close.
const LOOK: Duration = Duration::from_millis(100);

/// The slots of connections, and the connections that hold them.
pub(crate) struct OpenConnections {
    free: Arc<Semaphore>,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Outgoing>>,
    metrics: ServerMetrics,
}

/// An open connection's slot; gives it up on drop.
pub(crate) struct OpenSlot {
    open: Arc<OpenConnections>,
    number: u64,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl OpenConnections {
    /// `max` slots, at least one.
    pub(crate) fn new(max: usize, metrics: ServerMetrics) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS))),
            next: AtomicU64::new(0),
            connections: Mutex::default(),
            metrics,
        })
    }

    /// Waits for a slot for an accepted connection: a free one, or that of a connection that waits for a request.
    pub(crate) async fn slot(self: &Arc<Self>, outgoing: &Outgoing) -> OpenSlot {
        let permit = self.permit().await;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, outgoing.clone());
        let gauge = self.metrics.open.clone();
        gauge.inc();
        OpenSlot { open: Arc::clone(self), number, gauge, _permit: permit }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return permit;
            }
            if self.end_longest_idle() {
                self.metrics.ended(Ended::Idle);
            }
            // The semaphore is never closed.
            let waited = tokio::time::timeout(LOOK, Arc::clone(&self.free).acquire_owned()).await;
            if let Ok(Ok(permit)) = waited {
                return permit;
            }
        }
    }

    /// Ends the connection that has waited longest for a request. Returns whether there was one.
    fn end_longest_idle(&self) -> bool {
        let connections = self.lock();
        let idle = connections.values().filter_map(|connection| Some((connection.idle_for()?, connection)));
        let longest =
            idle.filter(|(idle_for, _)| *idle_for >= IDLE_MIN).max_by_key(|(idle_for, _)| *idle_for);
        longest.map(|(_, connection)| connection.end()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Outgoing>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenSlot {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
        self.gauge.dec();
    }
}
