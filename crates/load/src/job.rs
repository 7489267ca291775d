//! State that all workers of a run share: the next request, its bytes, and the counts of answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::connection::{Answer, ConnectionError, Target};
use crate::error::LoadError;
use crate::journal::Journal;
use crate::payload::{Event, Payloads};
use crate::plan::{EventKind, LoadPlan, Mode, Requests};
use crate::report::{Counts, Latency, Report};
use crate::schedule::Schedule;
use crate::verdict::Verdict;

/// State that all workers share. They run on one thread, so the locks are never contended and cost no more
/// than counters per worker would; those would take a gigabyte of histograms for a thousand connections.
pub(crate) struct Job {
    payloads: Payloads,
    pub(crate) plan: LoadPlan,
    pub(crate) target: Target,
    /// Start of every request, up to the token and the length.
    head: String,
    pub(crate) start: Instant,
    measure_from: Instant,
    pub(crate) stop: CancellationToken,
    /// Number of the next request.
    next: AtomicU64,
    /// Of an open loop only; `turns` then has a permit for every request due.
    pub(crate) schedule: Option<Schedule>,
    pub(crate) turns: Semaphore,
    /// The cache token that each session got last.
    tokens: Mutex<HashMap<u64, Box<str>>>,
    pub(crate) journal: Option<Journal>,
    tally: Mutex<Tally>,
}

/// Counts of requests and times of answers.
pub(crate) struct Tally {
    pub(crate) warmup: Counts,
    pub(crate) counts: Counts,
    latency: Histogram<u64>,
    first_refusal: Option<String>,
    last_answer_at: Option<Instant>,
}

/// A request to make now.
pub(crate) struct Turn {
    number: u64,
    /// When it was due (open loop) or began (closed loop).
    pub(crate) from: Instant,
}

impl Job {
    pub(crate) fn new(plan: LoadPlan, target: Target, stop: CancellationToken) -> Result<Self, LoadError> {
        let payloads = Payloads::new(plan.clone());
        let journal = match &plan.record_acknowledged {
            Some(path) => Some(
                Journal::create(path, payloads.mark_prefix())
                    .map_err(|source| LoadError::Journal { path: path.clone(), source })?,
            ),
            None => None,
        };
        let (method, endpoint, content_type) = match plan.requests {
            Requests::Events if plan.batch == 1 => ("POST", "send", "content-type: application/json\r\n"),
            Requests::Events => ("POST", "batch", "content-type: application/json\r\n"),
            Requests::Empty => ("GET", "heartbeat", ""),
        };
        let head = format!(
            "{method} {}/api/{endpoint} HTTP/1.1\r\nhost: {}\r\nuser-agent: dashi-bench/{}\r\n{content_type}",
            target.base,
            target.authority,
            env!("CARGO_PKG_VERSION"),
        );
        // From 1 µs to an hour; longer ones count as an hour.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 3)
            .map_err(|_| LoadError::Plan("the bounds of the latencies are not valid"))?;
        let start = Instant::now();
        Ok(Self {
            payloads,
            target,
            head,
            start,
            measure_from: start + plan.warmup,
            stop,
            next: AtomicU64::new(0),
            schedule: match plan.mode {
                Mode::Closed => None,
                Mode::Open { requests_per_s } => Some(Schedule::new(requests_per_s)),
            },
            turns: Semaphore::new(0),
            tokens: Mutex::new(HashMap::new()),
            journal,
            tally: Mutex::new(Tally {
                warmup: Counts::default(),
                counts: Counts::default(),
                latency,
                first_refusal: None,
                last_answer_at: None,
            }),
            plan,
        })
    }

    /// Waits for the next request to be due; `None` when the run is over.
    pub(crate) async fn next_turn(&self) -> Option<Turn> {
        loop {
            if self.schedule.is_some() {
                // Closed at the end of the run. A used permit is gone.
                self.turns.acquire().await.ok()?.forget();
            }
            if self.stop.is_cancelled() {
                return None;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if self.plan.requests_max.is_some_and(|max| number >= max) {
                // All requests that may be sent have been given to workers.
                self.end();
                return None;
            }
            let now = Instant::now();
            let from = self.schedule.map_or(now, |schedule| self.start + schedule.due_at(number));
            if now.saturating_duration_since(from) <= self.plan.timeout {
                return Some(Turn { number, from });
            }
            self.count(from, |counts| counts.missed += 1);
        }
    }

    /// Composes the request of `turn` into `request` and its events into `events`: none for an empty request.
    pub(crate) fn compose(
        &self,
        turn: &Turn,
        events: &mut Vec<Event>,
        body: &mut Vec<u8>,
        request: &mut Vec<u8>,
    ) {
        events.clear();
        if self.plan.requests == Requests::Empty {
            request.clear();
            request.extend_from_slice(self.head.as_bytes());
            request.extend_from_slice(b"\r\n");
            return;
        }
        let batch = self.plan.batch as u64;
        let first = self.plan.first + turn.number * batch;
        events.extend((first..first + batch).map(|n| self.payloads.event(n)));
        let session = events.first().map_or(0, |event| event.session);
        body.clear();
        if batch > 1 {
            body.push(b'[');
        }
        for (at, event) in events.iter_mut().enumerate() {
            if self.plan.token {
                // A token holds for one session only, and a request has one token.
                event.session = session;
            }
            if at > 0 {
                body.push(b',');
            }
            self.payloads.write(*event, body);
        }
        if batch > 1 {
            body.push(b']');
        }

        request.clear();
        request.extend_from_slice(self.head.as_bytes());
        if self.plan.token
            && let Some(token) = lock(&self.tokens).get(&session)
        {
            // Umami's tracker gives the token up before an identify.
            let is_identify =
                batch == 1 && events.first().is_some_and(|event| event.kind == EventKind::Identify);
            for part in ["x-umami-cache: ", if is_identify { "" } else { token }, "\r\n"] {
                request.extend_from_slice(part.as_bytes());
            }
        }
        request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(body);
    }

    /// Tally a complete answer: which of `events` it acknowledges, and how long it took.
    pub(crate) fn count_answer(&self, turn: &Turn, events: &[Event], answer: Answer, body: &[u8]) {
        let at = Instant::now();
        let verdict = match self.plan.requests {
            Requests::Events => Verdict::read(answer.status, body, events.len()),
            Requests::Empty => Verdict::Refused,
        };
        if self.plan.token
            && let Some(event) = events.first()
        {
            self.keep_token(event.session, verdict.token(), body);
        }
        let mut tally = self.tally();
        tally.last_answer_at = Some(at);
        if tally.first_refusal.is_none() && (0..events.len()).any(|at| !verdict.acknowledges(at)) {
            tally.first_refusal = Some(shown(answer.status, body));
        }
        let measured = turn.from >= self.measure_from;
        if measured {
            let latency_us = at.saturating_duration_since(turn.from).as_micros();
            tally.latency.saturating_record(u64::try_from(latency_us).unwrap_or(u64::MAX));
        }
        let counts = if measured { &mut tally.counts } else { &mut tally.warmup };
        counts.requests += 1;
        *counts.statuses.entry(answer.status).or_default() += 1;
        for (at, event) in events.iter().enumerate() {
            if !verdict.acknowledges(at) {
                counts.refused_events += 1;
                continue;
            }
            counts.acknowledge(event.kind);
            if let Some(journal) = &self.journal
                && !journal.add(event.n, event.kind)
            {
                self.stop.cancel();
            }
        }
    }

    /// The session's next request has the token of this answer; none, if it is JSON without one.
    fn keep_token(&self, session: u64, token: Option<&str>, body: &[u8]) {
        let mut tokens = lock(&self.tokens);
        match token {
            Some(token) if tokens.get(&session).is_none_or(|known| **known != *token) => {
                tokens.insert(session, token.into());
            }
            Some(_) => {}
            None if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() => {
                tokens.remove(&session);
            }
            None => {}
        }
    }

    pub(crate) fn count(&self, from: Instant, change: impl FnOnce(&mut Counts)) {
        let mut tally = self.tally();
        change(if from >= self.measure_from { &mut tally.counts } else { &mut tally.warmup });
    }

    pub(crate) fn count_error(&self, from: Instant, error: &ConnectionError) {
        self.count(from, |counts| {
            *match error {
                ConnectionError::Connect { .. } => &mut counts.errors.connect,
                ConnectionError::Lost(_) => &mut counts.errors.lost,
                ConnectionError::Protocol(_) => &mut counts.errors.protocol,
            } += 1;
        });
    }

    /// No more requests; those under way go on.
    pub(crate) fn end(&self) {
        self.stop.cancel();
        self.turns.close();
    }

    pub(crate) fn flush(&self) {
        if self.journal.as_ref().is_some_and(|journal| !journal.flush()) {
            self.end();
        }
    }

    /// Sleeps, but not beyond the end of the run.
    pub(crate) async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            self.stop.run_until_cancelled(sleep(time)).await;
        }
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    pub(crate) fn report(&self, stopped_at: Instant, client_cpu_s: Option<f64>) -> Report {
        let tally = self.tally();
        let end = tally.last_answer_at.map_or(stopped_at, |at| at.max(stopped_at));
        let elapsed = end.saturating_duration_since(self.measure_from);
        Report {
            mark_prefix: self.payloads.mark_prefix().to_owned(),
            elapsed_s: elapsed.as_secs_f64(),
            requests_per_s: per_s(tally.counts.requests, elapsed),
            events_per_s: per_s(tally.counts.acknowledged_events, elapsed),
            counts: tally.counts.clone(),
            warmup: tally.warmup.clone(),
            latency: Latency::of(&tally.latency),
            client_cpu_s,
            first_refusal: tally.first_refusal.clone(),
            limit: None,
        }
    }
}

/// A status and the beginning of a body, on one line.
fn shown(status: u16, body: &[u8]) -> String {
    const CHARS_MAX: usize = 200;
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * CHARS_MAX)]);
    let mut line: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() < body.len() {
        line.push('…');
    }
    format!("{status} {line}")
}

/// A rate; 0 if no time has passed.
pub(crate) fn per_s(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// Locks even after a panic elsewhere, which ends the run: no code that can panic runs under a lock, so the counts are
/// consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
