//! Server-sent events: an answer that goes on, one event after the other.
//!
//! There is no queue: a further event can be sent when the last one was written. So a reader that is slower than the events
//! makes its sender wait, and one that reads nothing at all loses its connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderValue;
use hyper::body::Frame;
use tokio::sync::{mpsc, oneshot};

use crate::outgoing::Outgoing;

/// How long a reader may take for the last event of a stream that ends because the reader is slow or the server stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// A comment: it shows the reader that the stream is alive, and the server whether the reader is.
const HEARTBEAT: &[u8] = b":\n\n";

/// Why events cannot be sent any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The reader has gone.
    Gone,
    /// The reader did not take an event in time.
    Slow,
}

/// The sending end of a stream.
#[derive(Debug)]
pub struct EventSender {
    /// To the answer's body. Has room whenever the last item was written.
    sender: mpsc::Sender<Item>,
    outgoing: Outgoing,
    write_timeout: Duration,
}

/// An answer whose events are sent by the sender. `outgoing` is that of the request's extensions; `write_timeout` is how long
/// the reader may take for one event.
pub fn event_stream(outgoing: &Outgoing, write_timeout: Duration) -> (EventSender, Response) {
    let (sender, receiver) = mpsc::channel(1);
    let mut response = Response::new(Body::new(Events { receiver, outgoing: outgoing.clone(), last: None }));
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        // Proxies of nginx's kind would keep events back until there are more of them.
        ("x-accel-buffering", "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    (EventSender { sender, outgoing: outgoing.clone(), write_timeout }, response)
}

impl EventSender {
    /// Sends an event, and waits until it is written. `data` is a single line; without an id, the reader's last one stays.
    ///
    /// # Errors
    /// The reader has gone, or is too slow: nothing more can be sent but [`EventSender::farewell`].
    pub async fn send(&self, id: Option<&str>, name: &str, data: &str) -> Result<(), StreamEnd> {
        self.deliver(event(id, name, data).into()).await
    }

    /// Sends a comment, and waits until it is written.
    ///
    /// # Errors
    /// As those of [`EventSender::send`].
    pub async fn heartbeat(&self) -> Result<(), StreamEnd> {
        self.deliver(Bytes::from_static(HEARTBEAT)).await
    }

    /// Completes when the reader has gone.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    async fn deliver(&self, bytes: Bytes) -> Result<(), StreamEnd> {
        let (receipt, written) = oneshot::channel();
        self.sender.try_send(Item { bytes, receipt, is_last: false }).map_err(|_| StreamEnd::Gone)?;
        match tokio::time::timeout(self.write_timeout, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamEnd::Gone),
            Err(_) => Err(StreamEnd::Slow),
        }
    }

    /// Tries to send a last event and to end the answer in order; closes the connection of a reader that takes neither in
    /// time.
    pub async fn farewell(self, name: &str, data: &str) {
        let (receipt, written) = oneshot::channel();
        let bytes = event(None, name, data).into();
        let sending = async {
            self.sender.send(Item { bytes, receipt, is_last: true }).await.is_ok() && written.await.is_ok()
        };
        if !tokio::time::timeout(FAREWELL, sending).await.unwrap_or(false) {
            self.outgoing.end();
        }
    }
}

/// One event.
fn event(id: Option<&str>, name: &str, data: &str) -> String {
    let mut out = String::with_capacity(data.len() + 100);
    if let Some(id) = id {
        out.push_str("id: ");
        out.push_str(id);
        out.push('\n');
    }
    out.push_str("event: ");
    out.push_str(name);
    out.push_str("\ndata: ");
    out.push_str(data);
    out.push_str("\n\n");
    out
}

/// A part of the answer.
#[derive(Debug)]
struct Item {
    bytes: Bytes,
    /// Sent when the operating system has accepted it; for the last part, when it has accepted the answer's end as
    /// well.
    receipt: oneshot::Sender<()>,
    is_last: bool,
}

/// The answer's body.
struct Events {
    receiver: mpsc::Receiver<Item>,
    outgoing: Outgoing,
    /// The receipt of the last item, once that was yielded.
    last: Option<oneshot::Sender<()>>,
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(receipt) = self.last.take() {
            self.receiver.close();
            self.outgoing.when_written(receipt);
            return Poll::Ready(None);
        }
        Poll::Ready(ready!(self.receiver.poll_recv(context)).map(|item| {
            if item.is_last {
                self.last = Some(item.receipt);
            } else {
                self.outgoing.when_written(item.receipt);
            }
            Ok(Frame::data(item.bytes))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_framed_as_browsers_read_it() {
        assert_eq!(event(Some("1-a"), "traits", "{}"), "id: 1-a\nevent: traits\ndata: {}\n\n");
        assert_eq!(event(None, "resync", "{}"), "event: resync\ndata: {}\n\n");
        assert!(HEARTBEAT.starts_with(b":") && HEARTBEAT.ends_with(b"\n\n"));
    }

    #[tokio::test]
    async fn the_body_ends_behind_its_last_item_and_only_then_gives_its_receipt() {
        let (sender, receiver) = mpsc::channel(1);
        let mut body = Events { receiver, outgoing: Outgoing::default(), last: None };
        let mut poll = async || std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let item = |receipt, is_last| Item { bytes: Bytes::from_static(b"x"), receipt, is_last };
        let mut receivers = Vec::new();
        for is_last in [false, false, true] {
            let (receipt, written) = oneshot::channel();
            receivers.push(written);
            assert!(sender.try_send(item(receipt, is_last)).is_ok());
            assert!(sender.try_send(item(oneshot::channel().0, false)).is_err(), "there is room for one");
            let frame = poll().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "x");
        }
        // The connection holds one receipt and drops the one before it.
        let mut is_held =
            |number: usize| receivers[number].try_recv() == Err(oneshot::error::TryRecvError::Empty);
        assert_eq!([is_held(0), is_held(1), is_held(2)], [false, true, true], "the body holds the last one");
        assert!(poll().await.is_none());
        assert_eq!([is_held(1), is_held(2)], [false, true], "the connection has it");
        assert!(sender.is_closed());
    }
}
