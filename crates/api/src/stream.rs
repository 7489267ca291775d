//! A session's effective traits as server-sent events: their present state, and again whenever it changes.
//!
//! Each stream has a task. It holds no queue: a change marks its stream (see `fan_out`), and when the last event is
//! written, the task reads the state at that time. So a reader that is slower than the changes misses values in between
//! and never the last one. A reader that reads nothing at all loses its connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use dashi_http::Outgoing;
use http::HeaderValue;
use http::request::Parts;
use hyper::body::Frame;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use uuid::Uuid;

use crate::answer::Refusal;
use crate::api::Api;
use crate::fan_out::Subscription;
use crate::read::{id, nothing_known, parts, traits_json};

/// Pause before a failed read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long a reader may take for the last event of a stream that ends because the reader is slow or the server stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// A comment: it shows the reader that the stream is alive, and the server whether the reader is.
const HEARTBEAT: &[u8] = b":\n\n";

/// `GET …/sessions/{sessionId}/stream`
pub async fn open(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Parts,
) -> Response {
    let opened = start(&api, path, &request);
    api.finish(opened)
}

fn start(
    api: &Api,
    path: Result<Path<(String, String)>, PathRejection>,
    request: &Parts,
) -> Result<Response, Refusal> {
    // A browser's EventSource cannot send further headers.
    let in_query = || {
        let query = request.uri.query().unwrap_or_default();
        url::form_urlencoded::parse(query.as_bytes())
            .any(|(name, key)| name == "key" && api.0.settings.keys.knows(key.as_bytes()))
    };
    if !api.authorized(&request.headers) && !in_query() {
        return Err(Refusal::NoKey);
    }
    let (website, session) = parts(path)?;
    let (website_id, session_id) = (id(&website)?, id(&session)?);
    // Without it, nothing would show whether the reader reads.
    let outgoing = request.extensions.get::<Outgoing>().cloned().ok_or(Refusal::Unavailable)?;
    if api.0.draining.is_cancelled() {
        return Err(Refusal::Unavailable);
    }
    let permit = Arc::clone(&api.0.streams).try_acquire_owned().map_err(|_| Refusal::Unavailable)?;
    let known = request.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (sender, receiver) = mpsc::channel(1);
    let stream = Stream {
        api: api.clone(),
        website_id,
        session_id,
        subscription: api.0.fan_out.subscribe(website_id, session_id),
        sender,
        outgoing: outgoing.clone(),
        shown: known.map(str::to_owned),
        stale: true,
        _open: OpenStream::new(&api.0.metrics.streams, permit),
    };
    api.0.tasks.spawn(stream.run());
    let mut response = Response::new(Body::new(Events { receiver, outgoing, last: None }));
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        // Proxies of nginx's kind would keep events back until there are more of them.
        ("x-accel-buffering", "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// An open stream's slot, in the gauge while it is held.
struct OpenStream {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl OpenStream {
    fn new(gauge: &Gauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge: gauge.clone(), _permit: permit }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// The task of a stream.
struct Stream {
    api: Api,
    website_id: Uuid,
    session_id: Uuid,
    subscription: Subscription,
    /// To the answer's body. Has room whenever the last item was written.
    sender: mpsc::Sender<Item>,
    outgoing: Outgoing,
    /// The version that the reader has.
    shown: Option<String>,
    /// Whether something may have changed since the last read.
    stale: bool,
    _open: OpenStream,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The reader has gone.
    Gone,
    /// The reader did not take an event in time.
    Slow,
    /// The process stops.
    Draining,
}

impl Stream {
    async fn run(mut self) {
        let draining = self.api.0.draining.clone();
        let ending = tokio::select! {
            biased;
            () = draining.cancelled() => Ending::Draining,
            ending = self.send_changes() => ending,
        };
        match ending {
            Ending::Gone => return,
            Ending::Slow => {
                self.api.0.metrics.dropped.inc();
                tracing::debug!(
                    website_id = %self.website_id, session_id = %self.session_id,
                    "a stream's reader did not take an event in time"
                );
            }
            Ending::Draining => {}
        }
        let reason = if ending == Ending::Slow { "slow" } else { "draining" };
        if !self.send_farewell(reason).await {
            self.outgoing.end();
        }
    }

    /// Sends an event for each change, and heartbeats between them. Returns when the reader is gone or too slow.
    async fn send_changes(&mut self) -> Ending {
        let every = self.api.0.settings.stream_heartbeat;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + every, every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sender = self.sender.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = sender.closed() => return Ending::Gone,
                next = self.next(&mut heartbeat) => next,
            };
            let is_event = next.is_some();
            let bytes = next.map_or(Bytes::from_static(HEARTBEAT), Bytes::from);
            if let Err(ending) = self.deliver(bytes).await {
                return ending;
            }
            if is_event {
                self.api.0.metrics.events.inc();
            }
        }
    }

    /// The next event; `None` when a heartbeat is due.
    async fn next(&mut self, heartbeat: &mut Interval) -> Option<String> {
        tokio::select! {
            event = self.change() => Some(event),
            _ = heartbeat.tick() => None,
        }
    }

    /// Waits until the traits differ from those that the reader has. May be cancelled and called again.
    async fn change(&mut self) -> String {
        loop {
            if !self.stale {
                self.subscription.dirty().await;
                self.stale = true;
            }
            let reading = self.api.0.store.session_traits(self.website_id, self.session_id);
            let Ok(traits) = self.api.read_in_time(reading).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let traits = traits.unwrap_or_else(|| nothing_known(self.website_id, self.session_id));
            if self.subscription.follow(traits.person.as_deref()) {
                continue;
            }
            self.stale = false;
            if self.shown.as_ref() != Some(&traits.version) {
                let event = event(Some(&traits.version), "traits", &traits_json(&traits));
                self.shown = Some(traits.version);
                return event;
            }
        }
    }

    /// Sends bytes, and waits until they are written.
    async fn deliver(&self, bytes: Bytes) -> Result<(), Ending> {
        let (receipt, written) = oneshot::channel();
        self.sender.try_send(Item { bytes, receipt, is_last: false }).map_err(|_| Ending::Gone)?;
        match tokio::time::timeout(self.api.0.settings.stream_write_timeout, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ending::Gone),
            Err(_) => Err(Ending::Slow),
        }
    }

    /// Tries to notify the reader that it has to ask again, and to end the answer in order. Returns whether all of it
    /// was written.
    async fn send_farewell(&self, reason: &str) -> bool {
        let (receipt, written) = oneshot::channel();
        let bytes = event(None, "resync", &format!(r#"{{"reason":"{reason}"}}"#)).into();
        let sending = async {
            self.sender.send(Item { bytes, receipt, is_last: true }).await.is_ok() && written.await.is_ok()
        };
        tokio::time::timeout(FAREWELL, sending).await.unwrap_or(false)
    }
}

/// One event. `data` is a single line; without an id, the reader's last one stays.
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
