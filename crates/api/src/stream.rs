//! The effective traits of a session, or of a page's own person, as server-sent events: their present state, and again
//! whenever it changes.
//!
//! Each stream has a task. It holds no queue: a change marks its stream (see `fan_out`), and when the last event is
//! written, the task reads the state at that time. So a reader that is slower than the changes misses values in between
//! and never the last one. A reader that reads nothing at all loses its connection.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use dashi_domain::profile::Person;
use dashi_http::{EventSender, Outgoing, StreamEnd, event_stream};
use http::request::Parts;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use uuid::Uuid;

use crate::answer::Refusal;
use crate::api::Api;
use crate::fan_out::Subscription;
use crate::me::Shown;
use crate::read::{id, nothing_known, parts, traits_json};

/// Pause before a failed read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The session or the person whose traits a stream shows.
#[derive(Debug)]
pub enum Subject {
    /// A session; its person may become another one.
    Session {
        /// The website.
        website_id: Uuid,
        /// The session.
        session_id: Uuid,
    },
    /// The person of a signed page.
    Person(Person),
}

/// `GET …/sessions/{sessionId}/stream`
pub async fn open(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Parts,
) -> Response {
    let opened = session(&api, path, &request).and_then(|subject| start(&api, subject, &request));
    api.finish(opened)
}

/// The session that is asked for, if the request may read it.
fn session(
    api: &Api,
    path: Result<Path<(String, String)>, PathRejection>,
    request: &Parts,
) -> Result<Subject, Refusal> {
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
    Ok(Subject::Session { website_id: id(&website)?, session_id: id(&session)? })
}

/// Opens a stream for whoever may read its subject.
pub fn start(api: &Api, subject: Subject, request: &Parts) -> Result<Response, Refusal> {
    // Without it, nothing would show whether the reader reads.
    let outgoing = request.extensions.get::<Outgoing>().cloned().ok_or(Refusal::Unavailable)?;
    if api.0.draining.is_cancelled() {
        return Err(Refusal::Unavailable);
    }
    let permit = Arc::clone(&api.0.streams).try_acquire_owned().map_err(|_| Refusal::Unavailable)?;
    let subscription = match &subject {
        Subject::Session { website_id, session_id } => api.0.fan_out.subscribe(*website_id, *session_id),
        Subject::Person(person) => {
            let most = api.0.settings.person_streams_max;
            api.0.fan_out.subscribe_page(person.clone(), most).ok_or(Refusal::Unavailable)?
        }
    };
    let known = request.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let (sender, response) = event_stream(&outgoing, api.0.settings.stream_write_timeout);
    let stream = Stream {
        api: api.clone(),
        subject,
        subscription,
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
    subject: Subject,
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
                        website_id = %self.subject.website_id(),
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
            let Ok(Shown { person, version, json }) = self.read().await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            if self.subscription.follow(person.as_deref()) {
                continue;
            }
            self.stale = false;
            if self.shown.as_ref() != Some(&version) {
                self.shown = Some(version.clone());
                return (version, json);
            }
        }
    }

    /// The traits at this time.
    async fn read(&self) -> Result<Shown, Refusal> {
        match &self.subject {
            Subject::Session { website_id, session_id } => {
                let (website_id, session_id) = (*website_id, *session_id);
                let reading = self.api.0.store.session_traits(website_id, session_id);
                let traits = self.api.read_in_time(reading).await?;
                let traits = traits.unwrap_or_else(|| nothing_known(website_id, session_id));
                let json = traits_json(&traits);
                Ok(Shown { person: traits.person, version: traits.version, json })
            }
            Subject::Person(person) => {
                let reading = self.api.0.store.profile(person.website_id, &person.distinct_id);
                let profile = self.api.read_in_time(reading).await?;
                Ok(Shown::of_person(person, profile))
            }
        }
    }
}

impl Subject {
    const fn website_id(&self) -> Uuid {
        match self {
            Self::Session { website_id, .. } | Self::Person(Person { website_id, .. }) => *website_id,
        }
    }
}
