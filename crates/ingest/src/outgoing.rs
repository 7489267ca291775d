//! The state of one connection, and its transport, which bounds how long the other end may take.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::server::{Ended, Guard};

/// A connection, among every request's extensions. Cheap to clone.
///
/// HTTP says nothing of whether the other end takes what it is sent: bytes wait in the server's buffers, and an answer
/// that is a stream is not even asked for more. So a stream asks here, and ends the connection of who does not read.
#[derive(Clone)]
pub struct Outgoing(Arc<Shared>);

struct Shared {
    /// Whether there is a receipt to be given: all that other answers pay for.
    awaited: AtomicBool,
    receipt: Mutex<Option<oneshot::Sender<()>>>,
    end: CancellationToken,
    /// From here on times are counted.
    opened: Instant,
    phase: AtomicU8,
    /// When the phase began, in ms; kept for [`Phase::Idle`] and [`Phase::Head`].
    since_ms: AtomicU64,
    /// What has come of the request's body, and when the last of it came.
    body_bytes: AtomicU64,
    body_last_ms: AtomicU64,
    /// Answers that the operating system has not taken yet, in bytes.
    waiting_bytes: AtomicU64,
    /// Since when it takes no more, in ms and one more; 0: it does.
    stuck_since_ms: AtomicU64,
    /// Tells who waits for it that all was taken.
    taken: Notify,
    hurried: AtomicBool,
    /// Whether a request was answered before it was whole.
    unread: AtomicBool,
}

/// How long, and for how many bytes, the rest of a request is read that was answered before it was whole: a client that
/// still sends when its connection is closed may lose the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Between two requests.
    Idle,
    /// A part of a request's head has come.
    Head,
    /// The head is there, the body not all of it.
    Body,
    /// The request is there and worked on.
    Working,
    /// The answer is there, and on its way.
    Answering,
    /// The same for an answer that goes on for as long as somebody listens.
    Streaming,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self(Arc::new(Shared {
            awaited: AtomicBool::new(false),
            receipt: Mutex::default(),
            end: CancellationToken::new(),
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Idle as u8),
            since_ms: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            body_last_ms: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            stuck_since_ms: AtomicU64::new(0),
            taken: Notify::new(),
            hurried: AtomicBool::new(false),
            unread: AtomicBool::new(false),
        }))
    }
}

impl Outgoing {
    /// Has `receipt` sent once the operating system has taken all that the connection holds, the frame included that
    /// the answer's body yields now: to be called while it does. Dropped if the connection ends before. One at a time;
    /// a newer one takes the place of an older one.
    pub fn when_taken(&self, receipt: oneshot::Sender<()>) {
        *self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt);
        self.0.awaited.store(true, Ordering::Release);
    }

    /// Closes the connection now, with whatever it still holds.
    pub fn end(&self) {
        self.0.end.cancel();
    }

    pub(crate) async fn ended(&self) {
        self.0.end.cancelled().await;
    }

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

    fn enter(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// How long it has been in its phase, if that is one of waiting for a request.
    pub(crate) fn waits_for_a_request(&self) -> Option<Duration> {
        let waits = matches!(self.phase(), Phase::Idle | Phase::Head);
        waits.then(|| self.since(self.0.since_ms.load(Ordering::Relaxed)))
    }

    /// A request's head is there.
    pub(crate) fn request_begins(&self, has_body: bool) {
        self.0.body_bytes.store(0, Ordering::Relaxed);
        self.0.body_last_ms.store(0, Ordering::Relaxed);
        self.enter(if has_body { Phase::Body } else { Phase::Working });
    }

    /// A piece of the body has come; not the last one.
    pub(crate) fn body_grows(&self, bytes: usize) {
        self.0.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.body_last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The body has come to its end, whichever.
    pub(crate) fn body_ends(&self) {
        if self.phase() == Phase::Body {
            self.enter(Phase::Working);
        }
    }

    /// How many bytes of a body have come, and when the last of them came; `None` once it is whole.
    pub(crate) fn body_so_far(&self) -> Option<(u64, Instant)> {
        let last = Duration::from_millis(self.0.body_last_ms.load(Ordering::Relaxed));
        (self.phase() == Phase::Body)
            .then(|| (self.0.body_bytes.load(Ordering::Relaxed), self.0.opened + last))
    }

    /// The answer is there; `bytes` are its length unless it is a stream.
    pub(crate) fn answer_begins(&self, bytes: Option<u64>) {
        /// About what a head takes.
        const HEAD_BYTES: u64 = 512;
        if self.phase() == Phase::Body {
            self.0.unread.store(true, Ordering::Relaxed);
        }
        self.0.waiting_bytes.fetch_add(bytes.unwrap_or_default() + HEAD_BYTES, Ordering::Relaxed);
        self.enter(if bytes.is_some() { Phase::Answering } else { Phase::Streaming });
    }

    /// How long the operating system has not taken anything.
    pub(crate) fn stuck_for(&self) -> Option<Duration> {
        let since = self.0.stuck_since_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since(since))
    }

    /// Whether nothing moves here unless the other end does something: it has not sent a whole head, or has not taken
    /// anything for `patience`.
    pub(crate) fn waits_for_its_client(&self, patience: Duration) -> bool {
        self.waits_for_a_request().is_some() || self.stuck_for().is_some_and(|stuck| stuck >= patience)
    }

    /// Waits until the answers before this one were taken, if they were not.
    pub(crate) async fn room(&self) {
        while self.stuck_for().is_some() {
            self.0.taken.notified().await;
        }
    }

    /// The server stops, and waits no longer for what the client has not sent. The connection has to be polled then.
    pub(crate) fn hurry(&self) {
        self.0.hurried.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.0.hurried.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        self.0.opened.elapsed().as_millis() as u64
    }

    fn since(&self, ms: u64) -> Duration {
        self.0.opened.elapsed().saturating_sub(Duration::from_millis(ms))
    }

    fn all_taken(&self) {
        if matches!(self.phase(), Phase::Answering) {
            self.0.since_ms.store(self.now_ms(), Ordering::Relaxed);
            self.enter(Phase::Idle);
        }
        self.0.waiting_bytes.store(0, Ordering::Relaxed);
        if self.0.stuck_since_ms.swap(0, Ordering::Relaxed) != 0 {
            self.0.taken.notify_one();
        }
        if self.0.awaited.load(Ordering::Acquire) {
            self.0.awaited.store(false, Ordering::Release);
            let receipt = self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(receipt) = receipt {
                // Whoever waited for it may have gone.
                let _ = receipt.send(());
            }
        }
    }

    /// Nobody can be told anything any more.
    fn closed(&self) {
        self.0.receipt.lock().unwrap_or_else(PoisonError::into_inner).take();
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

/// A connection's transport. It tells its [`Outgoing`] when everything was taken (hyper flushes it only when its own
/// buffers are empty), ends the connection of who does not read or takes too long for a request's head, and notices that
/// the reader of a stream has hung up: elsewhere "no more is sent" need not be that, and whoever is answered may say it.
pub(crate) struct Watched {
    inner: TcpStream,
    outgoing: Outgoing,
    guard: Arc<Guard>,
    /// Bytes of `guard`'s budget that this connection has, since it is stuck.
    charged: u64,
    /// Runs while a write waits.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the rest of a head is waited for.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the rest of a request is read behind its answer.
    linger_timer: Option<Pin<Box<Sleep>>>,
    linger_bytes_left: usize,
}

impl Watched {
    pub(crate) fn new(inner: TcpStream, outgoing: Outgoing, guard: Arc<Guard>) -> Self {
        Self {
            inner,
            outgoing,
            guard,
            charged: 0,
            write_timer: None,
            head_timer: None,
            linger_timer: None,
            linger_bytes_left: LINGER_BYTES_MAX,
        }
    }

    /// The operating system takes no more: that has a bound, in time and in what waits for it.
    fn stuck<R>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        let shared = &self.outgoing.0;
        if shared.stuck_since_ms.load(Ordering::Relaxed) == 0 {
            shared.stuck_since_ms.store(self.outgoing.now_ms() + 1, Ordering::Relaxed);
        }
        let waiting = shared.waiting_bytes.load(Ordering::Relaxed);
        let more = waiting.saturating_sub(self.charged);
        if more > 0 {
            self.charged += more;
            if !self.guard.charge(more) {
                self.guard.metrics.ended(Ended::AnswersFull);
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
        }
        let limit = self.guard.answer_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(context));
        self.guard.metrics.ended(Ended::SlowReader);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the other end sends no more. If not, the task is woken when that changes.
    fn has_hung_up(&self, context: &mut Context<'_>) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = self.inner.poll_peek(context, &mut ReadBuf::uninit(&mut byte));
        matches!(peeked, Poll::Ready(Ok(0) | Err(_)))
    }

    fn release(&mut self) {
        if self.charged > 0 {
            self.guard.release(std::mem::take(&mut self.charged));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.release();
        self.outgoing.closed();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let phase = self.outgoing.phase();
        match polled {
            Poll::Ready(Ok(())) if buffer.filled().len() > before && phase == Phase::Idle => {
                self.head_timer = None;
                self.outgoing.0.since_ms.store(self.outgoing.now_ms(), Ordering::Relaxed);
                self.outgoing.enter(Phase::Head);
                Poll::Ready(Ok(()))
            }
            Poll::Pending if phase == Phase::Head => {
                let limit = self.guard.head_timeout;
                let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(timer.as_mut().poll(context));
                self.guard.metrics.ended(Ended::SlowHead);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(context, bytes) {
            Poll::Pending => self.stuck(context),
            written => written,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write_vectored(context, slices) {
            Poll::Pending => self.stuck(context),
            written => written,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.write_timer = None;
        self.release();
        self.outgoing.all_taken();
        if self.outgoing.phase() == Phase::Streaming && self.has_hung_up(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        let this = &mut *self;
        let shared = &this.outgoing.0;
        if !shared.unread.load(Ordering::Relaxed) || this.outgoing.is_hurried() {
            return Poll::Ready(Ok(()));
        }
        let timer = this.linger_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut scratch = [std::mem::MaybeUninit::uninit(); 8 * 1024];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            let read = ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer));
            let bytes = buffer.filled().len();
            // Whatever goes wrong here, the answer was sent.
            if read.is_err() || bytes == 0 || bytes > this.linger_bytes_left {
                return Poll::Ready(Ok(()));
            }
            this.linger_bytes_left -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use axum::{Extension, Router};
    use http_body_util::BodyExt as _;
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::server::{ServerLimits, ServerMetrics, serve};

    /// Longest wait for what has to happen; how long nothing happens when nothing should.
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
                self.outgoing.when_taken(receipt);
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

    /// A server whose one answer is a stream, and a client that has read its head.
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
        // What this end takes without reading.
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
