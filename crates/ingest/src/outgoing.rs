//! What becomes of what a connection sends: for answers that go on for as long as somebody listens.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The sending side of a connection, among every request's extensions. Cheap to clone.
///
/// HTTP says nothing of whether the other end takes what it is sent: bytes wait in the server's buffers, and an answer
/// that is a stream is not even asked for more. So a stream asks here, and ends the connection of who does not read.
#[derive(Clone, Default)]
pub struct Outgoing(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whether there is a receipt to be given: all that other answers pay for.
    awaited: AtomicBool,
    receipt: Mutex<Option<oneshot::Sender<()>>>,
    end: CancellationToken,
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

    fn all_taken(&self) {
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
        f.debug_struct("Outgoing").field("ended", &self.0.end.is_cancelled()).finish_non_exhaustive()
    }
}

/// A connection's transport that tells its [`Outgoing`] when everything was taken: hyper flushes it only when its own
/// buffers are empty.
pub(crate) struct Watched<T> {
    inner: T,
    outgoing: Outgoing,
}

impl<T> Watched<T> {
    pub(crate) fn new(inner: T, outgoing: Outgoing) -> Self {
        Self { inner, outgoing }
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.outgoing.closed();
    }
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.outgoing.all_taken();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use axum::{Extension, Router};
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::server::{ServerLimits, serve};

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
        let limits = ServerLimits { connections_max: 8, idle_timeout: SOON };
        let server = tokio::spawn(serve(listener, router, limits, stop.clone()));
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
