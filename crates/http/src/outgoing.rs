//! The state of one connection, as its transport and its requests see it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// A connection, among every request's extensions. Cheap to clone.
///
/// HTTP does not report whether the other end accepts the bytes it is sent: bytes wait in the server's buffers, and
/// while they do, the body of an answer that is a stream is not polled. So a stream asks here whether its bytes were
/// written, and closes the connection of a client that does not read.
///
/// Bytes are *written* when the operating system has accepted them; while it accepts no more, the connection is
/// *blocked*.
#[derive(Clone)]
pub struct Outgoing(Arc<State>);

struct State {
    /// Whether there is a receipt to send. Answers without one pay for this flag only.
    has_receipt: AtomicBool,
    receipt: Mutex<Option<oneshot::Sender<()>>>,
    end: CancellationToken,
    /// The times below count from here.
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began, in ms; kept for [`Phase::Idle`] and [`Phase::Head`].
    since_ms: AtomicU64,
    /// Bytes of the request's body that have arrived, and when the last of them did, in ms.
    body_bytes: AtomicU64,
    body_last_ms: AtomicU64,
    /// Bytes of answers that are not written yet.
    waiting_bytes: AtomicU64,
    /// Since when the connection is blocked, in ms and one more; 0 if it is not.
    blocked_since_ms: AtomicU64,
    /// Notified when a blocked connection has written everything.
    written: Notify,
    /// Whether the server stops and waits no longer for the client.
    stopped_waiting: AtomicBool,
    /// Whether a request was answered before its body was whole.
    unread: AtomicBool,
}

/// The phase of a connection's current request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Between two requests.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// The head has arrived, the body in part.
    Body,
    /// The request is whole and is worked on.
    Working,
    /// The answer is known and being written.
    Answering,
    /// The same for an answer that is a stream and ends when its reader leaves.
    Streaming,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self(Arc::new(State {
            has_receipt: AtomicBool::new(false),
            receipt: Mutex::default(),
            end: CancellationToken::new(),
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Idle as u8),
            since_ms: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            body_last_ms: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(0),
            written: Notify::new(),
            stopped_waiting: AtomicBool::new(false),
            unread: AtomicBool::new(false),
        }))
    }
}

/// For answers, and for callers that wait for a client.
impl Outgoing {
    /// Sends `receipt` when everything buffered on this connection is written, including the frame that is being
    /// yielded: call it from the body's `poll_frame`. The receipt is dropped if the connection ends before. A
    /// connection holds one receipt; a newer one replaces an older one, which is dropped.
    pub fn when_written(&self, receipt: oneshot::Sender<()>) {
        *self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt);
        self.0.has_receipt.store(true, Ordering::Release);
    }

    /// Closes the connection now, whatever it still has to write.
    pub fn end(&self) {
        self.0.end.cancel();
    }

    /// Waits until the server stops and waits no longer for the rest of this request. The connection polls its request
    /// whenever that changes, so this needs no waker.
    pub fn stopped_waiting(&self) -> impl Future<Output = ()> {
        std::future::poll_fn(|_| match self.has_stopped_waiting() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
    }

    /// How many bytes of a body have arrived, and when the last of them did; `None` once the body is whole.
    pub(crate) fn body_so_far(&self) -> Option<(u64, Instant)> {
        let last = Duration::from_millis(self.0.body_last_ms.load(Ordering::Relaxed));
        (self.phase() == Phase::Body)
            .then(|| (self.0.body_bytes.load(Ordering::Relaxed), self.0.opened + last))
    }

    /// How long the connection has waited for a request or the rest of its head; `None` in any other phase.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let is_idle = matches!(self.phase(), Phase::Idle | Phase::Head);
        is_idle.then(|| self.since(self.0.since_ms.load(Ordering::Relaxed)))
    }

    /// How long the connection is blocked; `None` if it is not.
    pub(crate) fn blocked_for(&self) -> Option<Duration> {
        let since = self.0.blocked_since_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since(since))
    }

    /// Whether only the client can move this connection on: it has not sent a whole head, or has not read for `grace`.
    pub(crate) fn waits_for_client(&self, grace: Duration) -> bool {
        self.idle_for().is_some() || self.blocked_for().is_some_and(|blocked| blocked >= grace)
    }

    /// Waits until the answers before this one are written.
    pub(crate) async fn until_written(&self) {
        while self.blocked_for().is_some() {
            self.0.written.notified().await;
        }
    }

    /// Waits for [`Outgoing::end`].
    pub(crate) async fn ended(&self) {
        self.0.end.cancelled().await;
    }
}

/// For the connection, as a request goes on.
impl Outgoing {
    /// A request's head has arrived.
    pub(crate) fn request_begins(&self, has_body: bool) {
        self.0.body_bytes.store(0, Ordering::Relaxed);
        self.0.body_last_ms.store(0, Ordering::Relaxed);
        self.enter(if has_body { Phase::Body } else { Phase::Working });
    }

    /// A piece of the body has arrived that is not the last one.
    pub(crate) fn body_grows(&self, bytes: usize) {
        self.0.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.body_last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The body has ended, whole or broken off.
    pub(crate) fn body_ends(&self) {
        if self.phase() == Phase::Body {
            self.enter(Phase::Working);
        }
    }

    /// The answer is known; `bytes` are its length unless it is a stream.
    pub(crate) fn answer_begins(&self, bytes: Option<u64>) {
        /// About the length of an answer's head.
        const HEAD_BYTES: u64 = 512;
        if self.phase() == Phase::Body {
            self.0.unread.store(true, Ordering::Relaxed);
        }
        self.0.waiting_bytes.fetch_add(bytes.unwrap_or_default() + HEAD_BYTES, Ordering::Relaxed);
        self.enter(if bytes.is_some() { Phase::Answering } else { Phase::Streaming });
    }

    /// The server stops and waits no longer for bytes that the client has not sent. The connection must be polled after
    /// this call.
    pub(crate) fn stop_waiting(&self) {
        self.0.stopped_waiting.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_stopped_waiting(&self) -> bool {
        self.0.stopped_waiting.load(Ordering::Relaxed)
    }
}

/// For the transport, as bytes come and go.
impl Outgoing {
    pub(crate) fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Body,
            3 => Phase::Working,
            4 => Phase::Answering,
            _ => Phase::Streaming,
        }
    }

    /// The first bytes of a request's head have arrived.
    pub(crate) fn head_begins(&self) {
        self.0.since_ms.store(self.now_ms(), Ordering::Relaxed);
        self.enter(Phase::Head);
    }

    /// The operating system accepts no more bytes. Returns how many bytes of answers wait.
    pub(crate) fn blocks(&self) -> u64 {
        if self.0.blocked_since_ms.load(Ordering::Relaxed) == 0 {
            self.0.blocked_since_ms.store(self.now_ms() + 1, Ordering::Relaxed);
        }
        self.0.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Everything buffered is written.
    pub(crate) fn all_written(&self) {
        if matches!(self.phase(), Phase::Answering) {
            self.0.since_ms.store(self.now_ms(), Ordering::Relaxed);
            self.enter(Phase::Idle);
        }
        self.0.waiting_bytes.store(0, Ordering::Relaxed);
        if self.0.blocked_since_ms.swap(0, Ordering::Relaxed) != 0 {
            self.0.written.notify_one();
        }
        if self.0.has_receipt.load(Ordering::Acquire) {
            self.0.has_receipt.store(false, Ordering::Release);
            let receipt = self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(receipt) = receipt {
                // Its receiver may have been dropped.
                let _ = receipt.send(());
            }
        }
    }

    /// Whether a request was answered before its body was whole.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }

    /// The connection is closed: a receipt that is not sent by now is dropped.
    pub(crate) fn closed(&self) {
        self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn enter(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.0.opened.elapsed().as_millis() as u64
    }

    fn since(&self, ms: u64) -> Duration {
        self.0.opened.elapsed().saturating_sub(Duration::from_millis(ms))
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("phase", &self.phase())
            .field("ended", &self.0.end.is_cancelled())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, ready};
    use std::time::Duration;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use axum::{Extension, Router};
    use http_body_util::BodyExt as _;
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::metrics::ServerMetrics;
    use crate::server::{ServerLimits, serve};

    /// Longest wait for an event that has to happen, and how long a test waits to see that none happens.
    const SOON: Duration = Duration::from_secs(10);
    const SILENCE: Duration = Duration::from_millis(300);

    type Frame = (Bytes, oneshot::Sender<()>);

    /// An answer whose frames come from a channel, each with its receipt.
    struct Frames {
        frames: mpsc::Receiver<Frame>,
        outgoing: Outgoing,
    }

    impl hyper::body::Body for Frames {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            let frame = ready!(self.frames.poll_recv(context));
            Poll::Ready(frame.map(|(bytes, receipt)| {
                self.outgoing.when_written(receipt);
                Ok(hyper::body::Frame::data(bytes))
            }))
        }
    }

    struct Streaming {
        client: TcpStream,
        frames: mpsc::Sender<Frame>,
        outgoing: Outgoing,
        stop: CancellationToken,
        server: JoinHandle<()>,
    }

    /// A server whose only answer is a stream, and a client that has read its head.
    async fn streaming() -> Streaming {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, mut answering) = mpsc::channel(1);
        let router = Router::new().route(
            "/",
            get(move |Extension(outgoing): Extension<Outgoing>| async move {
                let (sender, frames) = mpsc::channel(1);
                asked.send((sender, outgoing.clone())).await.unwrap();
                Body::new(Frames { frames, outgoing }.boxed())
            }),
        );
        let stop = CancellationToken::new();
        let limits = ServerLimits {
            connections_max: 8,
            idle_timeout: SOON,
            head_timeout: SOON,
            answer_timeout: SOON,
            answers_bytes_max: 1 << 30,
        };
        let metrics = ServerMetrics::new(&mut Registry::default());
        let server = tokio::spawn(serve(listener, router, limits, metrics, stop.clone()));
        let socket = TcpSocket::new_v4().unwrap();
        // The bytes that this end accepts without reading.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let (frames, outgoing) = answering.recv().await.unwrap();
        Streaming { client, frames, outgoing, stop, server }
    }

    impl Streaming {
        fn send(&self, bytes: usize) -> oneshot::Receiver<()> {
            let (receipt, taken) = oneshot::channel();
            self.frames.try_send((vec![b'x'; bytes].into(), receipt)).unwrap();
            taken
        }
    }

    #[tokio::test]
    async fn a_frame_is_taken_when_the_other_end_has_room_for_it_and_not_before() {
        let mut streaming = streaming().await;
        for _ in 0..3 {
            tokio::time::timeout(SOON, streaming.send(100)).await.unwrap().unwrap();
        }
        let mut large = streaming.send(1 << 20);
        assert!(tokio::time::timeout(SILENCE, &mut large).await.is_err());
        let mut read = 0;
        while read < 1 << 20 {
            let mut buffer = [0; 1 << 14];
            read += tokio::time::timeout(SOON, streaming.client.read(&mut buffer)).await.unwrap().unwrap();
        }
        tokio::time::timeout(SOON, large).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_ended_holds_up_nobody_and_drops_its_receipt() {
        let streaming = streaming().await;
        let large = streaming.send(1 << 20);
        streaming.stop.cancel();
        let mut server = streaming.server;
        assert!(tokio::time::timeout(SILENCE, &mut server).await.is_err(), "its answer is in the way");
        streaming.outgoing.end();
        tokio::time::timeout(SOON, server).await.unwrap().unwrap();
        assert!(large.await.is_err());
    }
}
