//! Connections: accepted up to a limit, each with bounds on what its other end may take, all drained on request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use crate::outgoing::{Outgoing, Watched};
use crate::repeated::Repeated;

/// The address of a connection's other end, among every request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Open connections. One more takes the place of the one that has waited longest for a request; without such a one it
    /// waits in the kernel's queue.
    pub connections_max: usize,
    /// How long a connection may be idle or take to send the next request's head, counted from the end of the previous
    /// request.
    pub idle_timeout: Duration,
    /// How long a request's head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long an answer may wait for its reader.
    pub answer_timeout: Duration,
    /// Answers that wait for their readers, in bytes; past it, the connection that adds to them is ended.
    pub answers_bytes_max: usize,
}

/// How much of what is to be sent may wait in the kernel, beyond what the other end has room for; the rest waits in the
/// answer. The kernel's own bound is some megabytes for each connection whose other end does not read.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Largest head of a request; one more byte is answered 431. Also what is read of a body at once.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// How long a client may take, once the server stops, for a request or an answer that is under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked after that.
const IMPATIENCE: Duration = Duration::from_millis(100);

/// How long a connection must have waited for a request before another one may take its place.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// What the server counts; clones count into the same.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    open: Gauge,
    ended: Family<EndedLabel, Counter>,
    refused: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabel {
    reason: Ended,
}

/// Why the server ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// The other end did not read an answer in time.
    SlowReader,
    /// Too many answers waited for their readers.
    AnswersFull,
    /// The head of a request did not arrive in time.
    SlowHead,
    /// Another connection needed the place.
    Idle,
    /// The server stops, and the other end did not take or send something in time.
    Draining,
}

impl EncodeLabelValue for Ended {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::SlowReader => "slow_reader",
            Self::AnswersFull => "answers_full",
            Self::SlowHead => "slow_head",
            Self::Idle => "idle",
            Self::Draining => "draining",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self { open: Gauge::default(), ended: Family::default(), refused: Counter::default() };
        registry.register("dashi_http_connections", "Open connections", metrics.open.clone());
        registry.register(
            "dashi_http_connections_ended",
            "Connections that the server ended before their clients did, by reason",
            metrics.ended.clone(),
        );
        registry.register(
            "dashi_http_accept_failures",
            "Connections that could not be accepted",
            metrics.refused.clone(),
        );
        metrics
    }

    pub(crate) fn ended(&self, reason: Ended) {
        self.ended.get_or_create(&EndedLabel { reason }).inc();
    }
}

/// What the transports of all connections share: the bounds of their other ends.
pub(crate) struct Guard {
    pub(crate) head_timeout: Duration,
    pub(crate) answer_timeout: Duration,
    answers_bytes_max: u64,
    answers_bytes: AtomicU64,
    pub(crate) metrics: ServerMetrics,
}

impl Guard {
    /// Counts bytes that wait for their reader; says whether that is within the budget. To be released in any case.
    pub(crate) fn charge(&self, bytes: u64) -> bool {
        self.answers_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.answers_bytes_max
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.answers_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The open connections, to find one that can go.
#[derive(Default)]
struct Open {
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Outgoing>>,
}

/// A connection's place among the open ones.
struct Registered {
    open: Arc<Open>,
    number: u64,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn register(
        self: &Arc<Self>,
        outgoing: &Outgoing,
        gauge: &Gauge,
        permit: OwnedSemaphorePermit,
    ) -> Registered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, outgoing.clone());
        gauge.inc();
        Registered { open: Arc::clone(self), number, gauge: gauge.clone(), _permit: permit }
    }

    /// Ends the connection that has waited longest for a request; says whether there was one.
    fn end_an_idle_one(&self) -> bool {
        let connections = self.lock();
        let waiting = connections.values().filter_map(|one| Some((one.waits_for_a_request()?, one)));
        let longest = waiting.filter(|(waits, _)| *waits >= IDLE_MIN).max_by_key(|(waits, _)| *waits);
        longest.map(|(_, one)| one.end()).is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Outgoing>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
        self.gauge.dec();
    }
}

/// Serves until `stop`, then closes the listener, lets requests in flight be answered, and returns when the last
/// connection has closed. A client that is waited for, because it does not send the rest of its request or does not read
/// its answer, has a second then; what the server itself is at has the time it needs, which the caller bounds.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    metrics: ServerMetrics,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(limits.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let open = Arc::new(Open::default());
    let guard = Arc::new(Guard {
        head_timeout: limits.head_timeout,
        answer_timeout: limits.answer_timeout,
        answers_bytes_max: limits.answers_bytes_max as u64,
        answers_bytes: AtomicU64::new(0),
        metrics: metrics.clone(),
    });
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
                        "connections cannot be accepted; said again with a count while it goes on"
                    );
                }
                // Out of file descriptors, most likely: give connections time to close.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = place(&free, &open, &metrics) => permit,
        };
        let outgoing = Outgoing::default();
        let registered = open.register(&outgoing, &metrics.open, permit);
        let serving = connection(
            stream,
            peer,
            router.clone(),
            limits.idle_timeout,
            outgoing,
            Arc::clone(&guard),
            stop.clone(),
        );
        connections.spawn(async move {
            serving.await;
            drop(registered);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A place for a connection that has been accepted: a free one, or that of one which waits for a request.
async fn place(free: &Arc<Semaphore>, open: &Open, metrics: &ServerMetrics) -> OwnedSemaphorePermit {
    loop {
        if let Ok(permit) = Arc::clone(free).try_acquire_owned() {
            return permit;
        }
        if open.end_an_idle_one() {
            metrics.ended(Ended::Idle);
        }
        // The semaphore is never closed.
        if let Ok(Ok(permit)) =
            tokio::time::timeout(Duration::from_millis(100), Arc::clone(free).acquire_owned()).await
        {
            return permit;
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    idle_timeout: Duration,
    outgoing: Outgoing,
    guard: Arc<Guard>,
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
    let transport = TokioIo::new(Watched::new(stream, outgoing.clone(), Arc::clone(&guard)));
    let of_requests = outgoing.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (mut router, outgoing) = (router.clone(), of_requests.clone());
        outgoing.request_begins(!request.body().is_end_stream());
        let arriving = |incoming| Body::new(Arriving { incoming, outgoing: outgoing.clone() });
        let mut request = request.map(arriving);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(outgoing.clone());
        async move {
            // A client that sends requests without reading their answers waits for its own sake.
            if outgoing.stuck_for().is_some() {
                outgoing.room().await;
            }
            let response = router.call(request).await.unwrap_or_else(|never| match never {});
            outgoing.answer_begins(response.body().size_hint().exact());
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(transport, service);
    let mut serving = std::pin::pin!(serving);
    let whole = async {
        tokio::select! {
            ended = &mut serving => return Some(ended),
            () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        let mut look = std::pin::pin!(tokio::time::sleep(PATIENCE));
        loop {
            tokio::select! {
                ended = &mut serving => return Some(ended),
                () = look.as_mut() => {}
            }
            // The next turn of the loop polls the connection, and with it who asks whether it is to hurry.
            outgoing.hurry();
            if outgoing.waits_for_its_client(PATIENCE) {
                guard.metrics.ended(Ended::Draining);
                return None;
            }
            look.as_mut().reset((Instant::now() + IMPATIENCE).into());
        }
    };
    let ended = tokio::select! {
        ended = whole => ended,
        () = outgoing.ended() => return,
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(error = %error, "a connection ended early");
    }
}

/// A request's body that tells its connection how far it has come.
struct Arriving {
    incoming: Incoming,
    outgoing: Outgoing,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if self.incoming.is_end_stream() {
                    self.outgoing.body_ends();
                } else {
                    self.outgoing.body_grows(frame.data_ref().map_or(0, Bytes::len));
                }
            }
            Poll::Ready(_) => self.outgoing.body_ends(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
