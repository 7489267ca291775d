//! One connection: its requests are answered one after the other, until either end closes it or the server drains it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::metrics::Ended;
use crate::outgoing::Outgoing;
use crate::transport::{Transport, TransportBounds};

/// The address of a connection's other end, among every request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// How many unsent bytes may wait in the kernel, beyond those that the client has room for; the rest waits in the
/// answer. The kernel's own bound is some megabytes for each connection whose client does not read.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Largest head of a request; a head of one more byte is answered 431. Also the most that is read of a body at once.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// How long a client may take, once the server stops, for the rest of a request or an answer.
const CLIENT_GRACE: Duration = Duration::from_secs(1);

/// How often the connection is checked after that.
const GRACE_CHECK: Duration = Duration::from_millis(100);

/// A connection that was accepted and has a slot.
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) router: Router,
    pub(crate) idle_timeout: Duration,
    pub(crate) outgoing: Outgoing,
    pub(crate) bounds: Arc<TransportBounds>,
    pub(crate) stop: CancellationToken,
}

impl Connection {
    /// Serves requests until the connection is closed.
    pub(crate) async fn serve(self, stream: TcpStream) {
        set_options(&stream);
        let Self { peer, router, idle_timeout, outgoing, bounds, stop } = self;
        let transport = TokioIo::new(Transport::new(stream, outgoing.clone(), Arc::clone(&bounds)));
        let of_requests = outgoing.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (mut router, outgoing) = (router.clone(), of_requests.clone());
            outgoing.request_begins(!request.body().is_end_stream());
            let arriving = |incoming| Body::new(Arriving { incoming, outgoing: outgoing.clone() });
            let mut request = request.map(arriving);
            request.extensions_mut().insert(Peer(peer));
            request.extensions_mut().insert(outgoing.clone());
            async move {
                // A client that sends requests and reads no answers is answered no further until it reads.
                if outgoing.blocked_for().is_some() {
                    outgoing.until_written().await;
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
        let mut serving = pin!(serving);
        let until_closed = async {
            tokio::select! {
                closed = &mut serving => return Some(closed),
                () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
            }
            let mut check = pin!(tokio::time::sleep(CLIENT_GRACE));
            loop {
                tokio::select! {
                    closed = &mut serving => return Some(closed),
                    () = check.as_mut() => {}
                }
                // The next turn of the loop polls the connection, and with it the request that looks at this flag.
                outgoing.stop_waiting();
                if outgoing.waits_for_client(CLIENT_GRACE) {
                    bounds.metrics.ended(Ended::Draining);
                    return None;
                }
                check.as_mut().reset((Instant::now() + GRACE_CHECK).into());
            }
        };
        let closed = tokio::select! {
            closed = until_closed => closed,
            () = outgoing.ended() => return,
        };
        if let Some(Err(error)) = closed {
            tracing::debug!(error = %error, "a connection ended early");
        }
    }
}

fn set_options(stream: &TcpStream) {
    // Answers are small and complete: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "TCP_NODELAY could not be set");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(error = %error, "TCP_NOTSENT_LOWAT could not be set");
    }
}

/// A request's body that reports its progress to the state of its connection.
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
