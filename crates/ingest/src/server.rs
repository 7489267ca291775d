//! Connections: accepted up to a limit, each with a bound on its silence, all drained on request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::outgoing::{Outgoing, Watched};

/// The address of a connection's other end, among every request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a connection may take to send a request's head, the rest since its last request included.
    pub idle_timeout: Duration,
}

/// How much of what is to be sent may wait in the kernel, beyond what the other end has room for; the rest waits in the
/// answer. The kernel's own bound is some megabytes for each connection whose other end does not read.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Serves until `stop`, then closes the listener, lets requests in flight be answered, and returns when the last
/// connection has closed. The caller bounds how long it waits for that.
pub async fn serve(listener: TcpListener, router: Router, limits: ServerLimits, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            // The semaphore is never closed.
            Ok(permit) = Arc::clone(&free).acquire_owned() => tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted.map(|accepted| (permit, accepted)),
            },
        };
        match accepted {
            Ok((permit, (stream, peer))) => {
                let serving = connection(stream, peer, router.clone(), limits.idle_timeout, stop.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to close.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    idle_timeout: Duration,
    stop: CancellationToken,
) {
    // Answers are small and complete: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "TCP_NODELAY could not be set");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(error = %error, "TCP_NOTSENT_LOWAT could not be set");
    }
    let outgoing = Outgoing::default();
    let transport = Watched::new(TokioIo::new(stream), outgoing.clone());
    let of_requests = outgoing.clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(of_requests.clone());
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .serve_connection(transport, service);
    let mut connection = std::pin::pin!(connection);
    let whole = async {
        tokio::select! {
            ended = &mut connection => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let ended = tokio::select! {
        ended = whole => ended,
        () = outgoing.ended() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a connection ended early");
    }
}
