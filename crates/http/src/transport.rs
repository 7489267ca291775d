//! A connection's socket, which bounds how long the client may take.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::metrics::{Ended, ServerMetrics};
use crate::outgoing::{Outgoing, Phase};
use crate::server::ServerLimits;

/// How long, and for how many bytes, the rest of a request is read that was answered before it was whole: a client that
/// still sends when its connection is closed may lose the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The bounds that the transports of all connections share.
pub(crate) struct TransportBounds {
    head_timeout: Duration,
    answer_timeout: Duration,
    answers_bytes_max: u64,
    answers_bytes: AtomicU64,
    pub(crate) metrics: ServerMetrics,
}

impl TransportBounds {
    pub(crate) fn new(limits: &ServerLimits, metrics: ServerMetrics) -> Self {
        Self {
            head_timeout: limits.head_timeout,
            answer_timeout: limits.answer_timeout,
            answers_bytes_max: limits.answers_bytes_max as u64,
            answers_bytes: AtomicU64::new(0),
            metrics,
        }
    }

    /// Counts bytes of answers that wait for their reader. Returns whether all such bytes are within the budget; the
    /// caller releases its bytes in either case.
    fn charge(&self, bytes: u64) -> bool {
        self.answers_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.answers_bytes_max
    }

    fn release(&self, bytes: u64) {
        self.answers_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A connection's transport. It notifies its [`Outgoing`] when everything is written (hyper flushes only when its own
/// buffers are empty), and ends the connection of a client that does not read, or that takes too long for a request's
/// head. It also ends a stream whose reader has shut down its sending side: in any other phase the client may have
/// finished sending and still read, so there that is no reason to end.
pub(crate) struct Transport {
    inner: TcpStream,
    outgoing: Outgoing,
    bounds: Arc<TransportBounds>,
    /// Bytes of the budget of answers that this connection holds while it is blocked.
    charged: u64,
    /// Runs while a write is blocked.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the rest of a head is missing.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the rest of a request is read after its answer.
    linger_timer: Option<Pin<Box<Sleep>>>,
    linger_bytes_left: usize,
}

impl Transport {
    pub(crate) fn new(inner: TcpStream, outgoing: Outgoing, bounds: Arc<TransportBounds>) -> Self {
        Self {
            inner,
            outgoing,
            bounds,
            charged: 0,
            write_timer: None,
            head_timer: None,
            linger_timer: None,
            linger_bytes_left: LINGER_BYTES_MAX,
        }
    }

    /// The operating system accepts no more bytes. Pending within the bounds on time and on waiting bytes, an error
    /// past them.
    fn blocked<R>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        let waiting = self.outgoing.blocks();
        let more = waiting.saturating_sub(self.charged);
        if more > 0 {
            self.charged += more;
            if !self.bounds.charge(more) {
                self.bounds.metrics.ended(Ended::AnswersFull);
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
        }
        let limit = self.bounds.answer_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(context));
        self.bounds.metrics.ended(Ended::SlowReader);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the client sends no more. If it still may, the task is woken when that changes.
    fn has_hung_up(&self, context: &mut Context<'_>) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = self.inner.poll_peek(context, &mut ReadBuf::uninit(&mut byte));
        matches!(peeked, Poll::Ready(Ok(0) | Err(_)))
    }

    fn release(&mut self) {
        if self.charged > 0 {
            self.bounds.release(std::mem::take(&mut self.charged));
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.release();
        self.outgoing.closed();
    }
}

impl AsyncRead for Transport {
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
                self.outgoing.head_begins();
                Poll::Ready(Ok(()))
            }
            Poll::Pending if phase == Phase::Head => {
                let limit = self.bounds.head_timeout;
                let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(timer.as_mut().poll(context));
                self.bounds.metrics.ended(Ended::SlowHead);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(context, bytes) {
            Poll::Pending => self.blocked(context),
            written => written,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.inner).poll_write_vectored(context, slices) {
            Poll::Pending => self.blocked(context),
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
        self.outgoing.all_written();
        if self.outgoing.phase() == Phase::Streaming && self.has_hung_up(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        let this = &mut *self;
        if !this.outgoing.is_unread() || this.outgoing.has_stopped_waiting() {
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
            // The answer is written, so an error here changes nothing.
            if read.is_err() || bytes == 0 || bytes > this.linger_bytes_left {
                return Poll::Ready(Ok(()));
            }
            this.linger_bytes_left -= bytes;
        }
    }
}
