//! A session's effective traits as server-sent events: their present state, and again whenever it changes.
//!
//! Each stream has a task. It holds no queue: a change marks its stream (see `fan_out`), and when the last event is
//! written, the task reads the state at that time. So a reader that is slower than the changes misses values in between
//! and never the last one. A reader that reads nothing at all loses its connection.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use dashi_http::{EventSender, Outgoing, StreamEnd, event_stream};
use http::request::Parts;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use uuid::Uuid;

use crate::answer::Refusal;
use crate::api::Api;
use crate::fan_out::Subscription;
use crate::read::{id, nothing_known, parts, traits_json};

/// Pause before a failed read is tried again.
const RETRY: Duration = Duration::from_secs(1);

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
        url::form_urlencoded::parse(query.as_bytes()).any(|(name, key)| {
            name == "key" && api.0.settings.keys.as_ref().is_some_and(|keys| keys.knows(key.as_bytes()))
        })
    };
    if !api.authorized(request) && !in_query() {
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
    let (sender, response) = event_stream(&outgoing, api.0.settings.stream_write_timeout);
    let stream = Stream {
        api: api.clone(),
        website_id,
        session_id,
        subscription: api.0.fan_out.subscribe(website_id, session_id),
        sender,
        shown: known.map(str::to_owned),
        stale: true,
        _open: OpenStream::new(&api.0.metrics.streams, permit),
    };
    api.0.tasks.spawn(stream.run());
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
    sender: EventSender,
    /// The version that the reader has.
    shown: Option<String>,
    /// Whether something may have changed since the last read.
    stale: bool,
    _open: OpenStream,
}

impl Stream {
    async fn run(mut self) {
        let draining = self.api.0.draining.clone();
        let reason = tokio::select! {
            biased;
            () = draining.cancelled() => "draining",
            ended = self.send_changes() => match ended {
                StreamEnd::Gone => return,
                StreamEnd::Slow => {
                    self.api.0.metrics.dropped.inc();
                    tracing::debug!(
                        website_id = %self.website_id, session_id = %self.session_id,
                        "a stream's reader did not take an event in time"
                    );
                    "slow"
                }
            },
        };
        // The reader has to ask again.
        self.sender.farewell("resync", &format!(r#"{{"reason":"{reason}"}}"#)).await;
    }

    /// Sends an event for each change, and heartbeats between them. Returns when the reader is gone or too slow.
    async fn send_changes(&mut self) -> StreamEnd {
        let every = self.api.0.settings.stream_heartbeat;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + every, every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let gone = self.sender.gone();
        tokio::pin!(gone);
        loop {
            let next = tokio::select! {
                biased;
                () = &mut gone => return StreamEnd::Gone,
                next = self.next(&mut heartbeat) => next,
            };
            let sent = match &next {
                Some((version, traits)) => self.sender.send(Some(version), "traits", traits).await,
                None => self.sender.heartbeat().await,
            };
            if let Err(ended) = sent {
                return ended;
            }
            if next.is_some() {
                self.api.0.metrics.events.inc();
            }
        }
    }

    /// The next event; `None` when a heartbeat is due.
    async fn next(&mut self, heartbeat: &mut Interval) -> Option<(String, String)> {
        tokio::select! {
            event = self.change() => Some(event),
            _ = heartbeat.tick() => None,
        }
    }

    /// Waits until the traits differ from those that the reader has; gives their version and their JSON. May be cancelled and called again.
    async fn change(&mut self) -> (String, String) {
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
                let json = traits_json(&traits);
                self.shown = Some(traits.version.clone());
                return (traits.version, json);
            }
        }
    }
}
