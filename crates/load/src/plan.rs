use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::error::LoadError;

/// Plan of a run: requests, target, rate and duration. [`LoadPlan::new`] gives sensible values to change.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The collector, as `http://host:port` or `host:port`, optionally with a base path. No TLS.
    pub target: String,
    /// Website the events belong to: a UUID the collector knows.
    pub website: String,
    /// Content of each request.
    pub requests: Requests,
    /// Whether requests leave after answers or on schedule.
    pub mode: Mode,
    /// Keep-alive connections, each with at most one request under way. 1 to 10,000.
    pub connections: usize,
    /// Time measured, after the warm-up. Requests under way at the end are awaited, at most `timeout`.
    pub duration: Duration,
    /// Ends the run early after so many requests, those of the warm-up included.
    pub requests_max: Option<u64>,
    /// Time before measuring begins. Its requests are counted apart; their marks are recorded, too.
    pub warmup: Duration,
    /// Distinct visitors, 1 to 16,777,216, drawn uniformly.
    ///
    /// Collectors derive the session from address and user agent, and all our requests come from one
    /// address. So each payload names its visitor through the overrides `ip` (visitor `s` is `s` counted
    /// into 10.0.0.0/8, which no location database knows) and `userAgent` (one of a few real browsers).
    pub sessions: u64,
    /// Makes a new visitor of every so many events: of event 0, and of each whose number is a multiple of it. The other events
    /// are of the `sessions` visitors that are the newest then. `None`: no visitor is newer than another.
    pub new_every: Option<u64>,
    /// Number of the first event. A run that goes on where one of the same seed ended begins with the number of that one's
    /// events.
    pub first: u64,
    /// Shares of the kinds of events.
    pub mix: Mix,
    /// Events per request: 1 posts to `/api/send`, more post arrays to `/api/batch`. 1 to 10,000.
    pub batch: usize,
    /// Send back the cache token a session was last given, as Umami's tracker does: an answer without one takes it away, and a
    /// single identify has an empty header. Tokens are kept per session, about 400 bytes each. A batch has one token for all its
    /// elements, so with this each batch belongs to one session.
    pub token: bool,
    /// Decides all choices and, in hexadecimal, names the run in its marks (`/load/<seed>/<n>`). Give
    /// every run its own seed where their events meet in one database.
    pub seed: u64,
    /// Pause a connection for the time in `Retry-After` (whole seconds, at most 60) after a 429 or 503.
    pub pause_on_retry_after: bool,
    /// Longest wait for a connection and for an answer. An event whose answer is late counts as not
    /// acknowledged, though the server may have kept it.
    pub timeout: Duration,
    /// Write a line `mark<TAB>kind` per acknowledged event to this file, replacing its content; read it
    /// with [`read_acknowledged`](crate::read_acknowledged).
    ///
    /// The mark `/load/<seed>/<n>` is used for one event only. It is written after the complete answer
    /// 200 with a `sessionId`, or, in a batch, for the elements without an error; lines reach the file
    /// within 100 ms. So every mark in the file must be found once in the tables, and an event not in
    /// the file may be there or not. Where to find it:
    ///
    /// - page view, custom event, performance: the path of `url`, hence `website_event.url_path`;
    /// - identify: a key of its own in `data`, hence `session_data.data_key`. Without this option the key
    ///   is always `mark` and the mark is its value, so that properties are overwritten as in real life.
    pub record_acknowledged: Option<PathBuf>,
}

/// As many visitors as 10.0.0.0/8 has addresses.
pub(crate) const SESSIONS_MAX: u64 = 1 << 24;

/// Content of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// Events, by the plan's mix and batch.
    Events,
    /// Nothing: `GET /api/heartbeat`, which Dashi and Umami answer without work. Server's HTTP stack, this generator and
    /// the machine allow no higher rate, so the rate of events is compared with it.
    Empty,
}

/// When the next request leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Each connection sends the next request after the answer to the last: measures the throughput.
    Closed,
    /// Requests leave at evenly spaced times, however slow the answers: measures how long users wait at this rate.
    ///
    /// A request that finds no free connection waits, and its latency counts from when it was due. Once
    /// overdue by the time-out it is counted as missed instead of sent, which bounds the backlog.
    Open {
        /// Requests (not events) per second over all connections.
        requests_per_s: f64,
    },
}

/// Kind of an event. The names in JSON and in the file of acknowledged events are in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// `type: event` without a name.
    PageView,
    /// `type: event` with `name` and `data`.
    CustomEvent,
    /// `type: identify` with `data`.
    Identify,
    /// `type: performance` with web vitals.
    Performance,
}

impl EventKind {
    pub(crate) const ALL: [Self; 4] = [Self::PageView, Self::CustomEvent, Self::Identify, Self::Performance];

    /// The name in the file of acknowledged events.
    pub fn name(self) -> &'static str {
        match self {
            Self::PageView => "page_view",
            Self::CustomEvent => "custom_event",
            Self::Identify => "identify",
            Self::Performance => "performance",
        }
    }
}

/// Relative shares of the kinds of events; 0 leaves a kind out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Page views.
    pub page_views: u32,
    /// Named events with 3 to 6 properties.
    pub custom_events: u32,
    /// Session properties.
    pub identifies: u32,
    /// Web vitals.
    pub performance: u32,
}

impl Default for Mix {
    /// Of 100 events 80 page views, 12 custom events, 3 identifies and 5 performance reports.
    fn default() -> Self {
        Self { page_views: 80, custom_events: 12, identifies: 3, performance: 5 }
    }
}

impl Mix {
    pub(crate) fn total(&self) -> u64 {
        [self.page_views, self.custom_events, self.identifies, self.performance].map(u64::from).iter().sum()
    }

    /// The kind at `ticket`, which is below `total()`.
    pub(crate) fn kind_at(&self, ticket: u64) -> EventKind {
        let page_views = u64::from(self.page_views);
        let custom_events = page_views + u64::from(self.custom_events);
        let identifies = custom_events + u64::from(self.identifies);
        match ticket {
            t if t < page_views => EventKind::PageView,
            t if t < custom_events => EventKind::CustomEvent,
            t if t < identifies => EventKind::Identify,
            _ => EventKind::Performance,
        }
    }
}

impl LoadPlan {
    /// A closed loop of 64 connections and 10 s with 10,000 sessions, single events, no token, seed 1.
    pub fn new(target: impl Into<String>, website: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            website: website.into(),
            requests: Requests::Events,
            mode: Mode::Closed,
            connections: 64,
            duration: Duration::from_secs(10),
            requests_max: None,
            warmup: Duration::ZERO,
            sessions: 10_000,
            new_every: None,
            first: 0,
            mix: Mix::default(),
            batch: 1,
            token: false,
            seed: 1,
            pause_on_retry_after: false,
            timeout: Duration::from_secs(10),
            record_acknowledged: None,
        }
    }

    /// The plan that measures the limit of this plan's server: empty requests over as many connections, in a closed
    /// loop of at most 5 s, after a warm-up of half a second.
    #[must_use]
    pub fn limit(&self) -> Self {
        Self {
            requests: Requests::Empty,
            mode: Mode::Closed,
            duration: self.duration.min(Duration::from_secs(5)),
            warmup: Duration::from_millis(500),
            requests_max: None,
            record_acknowledged: None,
            ..self.clone()
        }
    }

    pub(crate) fn check(&self) -> Result<(), LoadError> {
        const SPAN_MAX: Duration = Duration::from_secs(30 * 86_400);
        let refuse = |reason| Err(LoadError::Plan(reason));
        if !is_uuid(&self.website) {
            return refuse("website is not a UUID");
        }
        if !(1..=10_000).contains(&self.connections) {
            return refuse("connections must be 1 to 10,000");
        }
        if !(1..=SESSIONS_MAX).contains(&self.sessions) {
            return refuse("sessions must be 1 to 16,777,216, the addresses of 10.0.0.0/8");
        }
        if self.new_every == Some(0) {
            return refuse("a new visitor of every so many events: 1 at least");
        }
        if !(1..=10_000).contains(&self.batch) {
            return refuse("batch must be 1 to 10,000");
        }
        if self.mix.total() == 0 {
            return refuse("the mix is empty: give at least one kind a share");
        }
        if [self.duration, self.warmup, self.timeout].iter().any(|span| *span > SPAN_MAX) {
            return refuse("duration, warm-up and time-out must not exceed 30 days");
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return refuse("duration and time-out must not be zero");
        }
        if let Mode::Open { requests_per_s } = self.mode
            && !(0.001..=1e6).contains(&requests_per_s)
        {
            return refuse("requests per second must be 0.001 to 1,000,000");
        }
        Ok(())
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

    #[test]
    fn plans_that_cannot_run_are_refused() {
        let changes: [fn(&mut LoadPlan); 10] = [
            |plan| plan.website = "\",\"x\":\"".into(),
            |plan| plan.connections = 0,
            |plan| plan.sessions = 0,
            |plan| plan.sessions = (1 << 24) + 1,
            |plan| plan.new_every = Some(0),
            |plan| plan.batch = 0,
            |plan| plan.mix = Mix { page_views: 0, custom_events: 0, identifies: 0, performance: 0 },
            |plan| plan.duration = Duration::MAX,
            |plan| plan.timeout = Duration::ZERO,
            |plan| plan.mode = Mode::Open { requests_per_s: f64::NAN },
        ];
        assert!(LoadPlan::new("localhost:1", WEBSITE).check().is_ok());
        for (at, change) in changes.iter().enumerate() {
            let mut plan = LoadPlan::new("localhost:1", WEBSITE);
            change(&mut plan);
            assert!(matches!(plan.check(), Err(LoadError::Plan(_))), "change {at}");
        }
    }

    #[test]
    fn the_mix_deals_kinds_by_their_shares() {
        let mix = Mix { page_views: 3, custom_events: 0, identifies: 2, performance: 1 };
        let kinds: Vec<_> = (0..mix.total()).map(|ticket| mix.kind_at(ticket)).collect();
        use EventKind::{Identify, PageView, Performance};
        assert_eq!(kinds, [PageView, PageView, PageView, Identify, Identify, Performance]);
    }
}
