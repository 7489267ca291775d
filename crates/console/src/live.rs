//! Events as they are applied, on streams of server-sent events.
//!
//! The process's projector describes each commit; the last events are kept for pages that open. A stream sends what was
//! applied since its last message, so a reader that is slow gets fewer messages, each with the newest events only and the
//! number of all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use axum::response::Response;
use dashi_domain::applied::{AppliedEvent, AppliedEvents};
use dashi_http::{EventSender, Outgoing, StreamEnd, event_stream};
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, Receiver, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Events that a message has, and that are kept for pages that open, at most.
const EVENTS: usize = 100;

/// Commits that a stream may be behind; further ones are not shown.
const BEHIND: usize = 64;

/// Open streams, at most.
const STREAMS: usize = 32;

/// Least time between two messages of a stream.
const PAUSE: Duration = Duration::from_millis(250);

/// Limits of streams, and their end.
#[derive(Debug, Clone)]
pub struct LiveSettings {
    /// How often a stream without events sends a comment.
    pub heartbeat: Duration,
    /// How long a reader may take for one message.
    pub write_timeout: Duration,
    /// Ends all streams.
    pub draining: CancellationToken,
}

/// The events of the last commits. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

struct Shared {
    settings: LiveSettings,
    recent: Mutex<VecDeque<AppliedEvent>>,
    commits: broadcast::Sender<Arc<AppliedEvents>>,
    slots: Arc<Semaphore>,
    /// The tasks behind open streams.
    tasks: TaskTracker,
}

impl Live {
    /// Without events yet.
    pub fn new(settings: LiveSettings) -> Self {
        Self(Arc::new(Shared {
            settings,
            recent: Mutex::default(),
            commits: broadcast::channel(BEHIND).0,
            slots: Arc::new(Semaphore::new(STREAMS)),
            tasks: TaskTracker::new(),
        }))
    }

    /// Takes the events of each commit until `stop`.
    #[boxed]
    pub async fn keep(self, mut commits: Receiver<Arc<AppliedEvents>>, stop: CancellationToken) {
        loop {
            let commit = tokio::select! {
                () = stop.cancelled() => return,
                commit = commits.recv() => commit,
            };
            match commit {
                Ok(commit) => self.add(&commit),
                Err(RecvError::Lagged(commits)) => {
                    tracing::debug!(commits, "events of commits are not shown in the console");
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn add(&self, commit: &Arc<AppliedEvents>) {
        let mut recent = self.recent();
        recent.extend(commit.last.iter().cloned());
        let over = recent.len().saturating_sub(EVENTS);
        recent.drain(..over);
        // Under the lock, so that a stream that opens gets each commit once. Nobody may be listening.
        let _ = self.0.commits.send(Arc::clone(commit));
    }

    /// Opens a stream, which begins with the last events; `None` if too many are open or the process stops.
    pub(crate) fn open(&self, outgoing: &Outgoing) -> Option<Response> {
        if self.0.settings.draining.is_cancelled() {
            return None;
        }
        let slot = Arc::clone(&self.0.slots).try_acquire_owned().ok()?;
        let (recent, commits) = {
            let recent = self.recent();
            (recent.iter().cloned().collect(), self.0.commits.subscribe())
        };
        let (sender, response) = event_stream(outgoing, self.0.settings.write_timeout);
        let first = Message { applied: 0, events: recent };
        self.0.tasks.spawn(run(self.clone(), sender, first, commits, slot));
        Some(response)
    }

    /// Waits until every stream has ended. To be called once they are draining and no request can come any more.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<AppliedEvent>> {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    live: Live,
    sender: EventSender,
    first: Message,
    commits: Receiver<Arc<AppliedEvents>>,
    _slot: OwnedSemaphorePermit,
) {
    let reason = tokio::select! {
        biased;
        () = live.0.settings.draining.cancelled() => "draining",
        () = sender.gone() => return,
        ended = send_all(&live, &sender, first, commits) => match ended {
            StreamEnd::Gone => return,
            StreamEnd::Slow => "slow",
        },
    };
    sender.farewell("end", &json!({ "reason": reason }).to_string()).await;
}

async fn send_all(
    live: &Live,
    sender: &EventSender,
    first: Message,
    mut commits: Receiver<Arc<AppliedEvents>>,
) -> StreamEnd {
    let every = live.0.settings.heartbeat;
    let mut heartbeat = tokio::time::interval_at(Instant::now() + every, every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut message = first;
    loop {
        if let Err(ended) = sender.send(None, "applied", &message.json().to_string()).await {
            return ended;
        }
        tokio::time::sleep(PAUSE).await;
        message = Message::default();
        while message.is_empty() {
            let beats = tokio::select! {
                _ = heartbeat.tick() => true,
                gathered = message.gather(&mut commits) => {
                    if !gathered {
                        return StreamEnd::Gone;
                    }
                    false
                }
            };
            if beats && let Err(ended) = sender.heartbeat().await {
                return ended;
            }
        }
    }
}

/// What a stream sends at once.
#[derive(Debug, Default, PartialEq)]
struct Message {
    /// Events that were applied since the last message, those that are not described included.
    applied: u64,
    events: Vec<AppliedEvent>,
}

impl Message {
    fn is_empty(&self) -> bool {
        self.applied == 0 && self.events.is_empty()
    }

    /// Waits for a commit and takes all that are there. May be cancelled while it waits. Returns whether more can come.
    async fn gather(&mut self, commits: &mut Receiver<Arc<AppliedEvents>>) -> bool {
        match commits.recv().await {
            Ok(commit) => self.add(&commit),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return false,
        }
        while let Ok(commit) = commits.try_recv() {
            self.add(&commit);
        }
        true
    }

    fn add(&mut self, commit: &AppliedEvents) {
        self.applied += commit.count;
        self.events.extend(commit.last.iter().cloned());
        let over = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..over);
    }

    fn json(&self) -> Value {
        let events: Vec<Value> = self.events.iter().map(shown).collect();
        json!({ "applied": self.applied, "events": events })
    }
}

fn shown(event: &AppliedEvent) -> Value {
    let AppliedEvent { event_id, website_id, session_id, created_at_ms, kind, path, name, attributes } =
        event;
    json!({
        "id": event_id,
        "website": website_id,
        "session": session_id,
        "at_ms": created_at_ms,
        "type": kind,
        "path": path,
        "name": name,
        "country": attributes.country,
        "city": attributes.city,
        "browser": attributes.browser,
        "os": attributes.os,
        "device": attributes.device,
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use uuid::Uuid;

    use super::*;

    fn live() -> Live {
        Live::new(LiveSettings {
            heartbeat: Duration::from_secs(15),
            write_timeout: Duration::from_secs(5),
            draining: CancellationToken::new(),
        })
    }

    fn commit(numbers: std::ops::Range<u128>) -> Arc<AppliedEvents> {
        let event = |number: u128| AppliedEvent {
            event_id: Uuid::from_u128(number),
            website_id: Uuid::nil(),
            session_id: Uuid::nil(),
            created_at_ms: number as i64,
            kind: "view",
            path: format!("/{number}"),
            name: None,
            attributes: Default::default(),
        };
        Arc::new(AppliedEvents {
            count: (numbers.end - numbers.start) as u64,
            last: numbers.map(event).collect(),
        })
    }

    #[test]
    fn a_message_has_the_newest_events_and_the_number_of_all() {
        let mut message = Message::default();
        message.add(&commit(0..90));
        message.add(&commit(90..150));
        let shown = message.json();
        assert_eq!(shown["applied"], 150);
        let events = shown["events"].as_array().unwrap();
        assert_eq!(
            (events.len(), &events[0]["path"], &events[99]["path"]),
            (100, &json!("/50"), &json!("/149"))
        );
    }

    #[tokio::test]
    async fn a_stream_begins_with_the_last_events() {
        let live = live();
        live.add(&commit(0..90));
        live.add(&commit(90..130));
        let mut body = live.open(&Outgoing::default()).unwrap().into_body();
        let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
        let frame = frame.expect("in time").expect("it goes on").expect("no failure");
        let text = String::from_utf8_lossy(&frame.into_data().unwrap()).into_owned();
        assert!(text.starts_with("event: applied\ndata: {\"applied\":0,"), "{text}");
        for (number, times) in [(29, 0), (30, 1), (89, 1), (129, 1)] {
            assert_eq!(text.matches(&format!("\"/{number}\"")).count(), times, "{number}: {text}");
        }
    }

    #[tokio::test]
    async fn commits_that_were_missed_end_nothing() {
        let (sender, mut commits) = broadcast::channel(2);
        for number in 0..5 {
            sender.send(commit(number..number + 1)).unwrap();
        }
        let mut message = Message::default();
        while message.is_empty() {
            assert!(message.gather(&mut commits).await);
        }
        assert_eq!((message.applied, message.events.len()), (2, 2));
        drop(sender);
        assert!(!message.gather(&mut commits).await);
    }

    #[tokio::test]
    async fn there_are_so_many_streams_and_none_while_the_process_stops() {
        let live = live();
        let open: Vec<_> = (0..STREAMS).map(|_| live.open(&Outgoing::default())).collect();
        assert!(open.iter().all(Option::is_some) && live.open(&Outgoing::default()).is_none());
        drop(open);
        live.0.settings.draining.cancel();
        assert!(live.open(&Outgoing::default()).is_none());
        live.drain().await;
    }
}
