//! The accept loop: connections up to a limit, all drained on request.

use std::sync::Arc;
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::metrics::ServerMetrics;
use crate::open::OpenConnections;
use crate::outgoing::Outgoing;
use crate::repeated::Repeated;
use crate::transport::TransportBounds;

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Open connections. For one more, the server closes the connection that has waited longest for a request; if none
    /// waits for one, the new connection waits in the kernel's queue.
    pub connections_max: usize,
    /// How long a connection may be idle or take to send the next request's head, counted from the end of the previous
    /// request.
    pub idle_timeout: Duration,
    /// How long a request's head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long an answer may wait for its reader.
    pub answer_timeout: Duration,
    /// Bytes of answers that wait for their readers, over all connections. A connection that exceeds it is closed.
    pub answers_bytes_max: usize,
}

/// Pause after a connection could not be accepted: most likely the process has no file descriptor left, and open
/// connections need time to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`. Then it closes the listener, lets requests in flight be answered, and returns when the last
/// connection has closed. A client that does not send the rest of its request, or does not read its answer, has one
/// second from then on; the server's own work on a request has the time it needs, which the caller bounds.
#[boxed]
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    metrics: ServerMetrics,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let open = OpenConnections::new(limits.connections_max, metrics.clone());
    let bounds = Arc::new(TransportBounds::new(&limits, metrics.clone()));
    let failures = Repeated::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                metrics.refused.inc();
                if let Some(times) = failures.due() {
                    tracing::warn!(
                        error = %error, times,
                        "connections cannot be accepted; logged again with a count while it goes on"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let outgoing = Outgoing::default();
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = open.slot(&outgoing) => slot,
        };
        let connection = Connection {
            peer,
            router: router.clone(),
            idle_timeout: limits.idle_timeout,
            outgoing,
            bounds: Arc::clone(&bounds),
            stop: stop.clone(),
        };
        tasks.spawn(async move {
            connection.serve(stream).await;
            drop(slot);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}
