use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::connection::{Answer, Connection, ConnectionError, Target};
use crate::cpu::thread_cpu_s;
use crate::error::LoadError;
use crate::journal::Journal;
use crate::payload::{Event, Payloads};
use crate::plan::{LoadPlan, Mode, Requests};
use crate::random::Random;
use crate::report::{Counts, Latency, Report, Snapshot};
use crate::schedule::{Schedule, pace};

/// Runs `plan` to its end, or to `stop`, and reports what was done until then.
///
/// After `stop`, requests under way are still awaited, at most the plan's time-out, because only their
/// answers tell what became of their events. `progress` is called every 500 ms and once at the end, on
/// the generator's thread: it should return quickly. Dropping the future stops the run.
///
/// # Errors
/// See [`LoadError`]. A server that goes away during the run is no error: connections are made anew,
/// with growing pauses of at most 1 s, and the report counts the failures.
pub async fn run(
    plan: LoadPlan,
    stop: CancellationToken,
    progress: impl Fn(&Snapshot) + Send + Sync + 'static,
) -> Result<Report, LoadError> {
    plan.check()?;
    let target = Target::parse(&plan.target)
        .ok_or(LoadError::Plan("target is not http://host:port with an optional path"))?;
    let stop = stop.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("dashi-load".to_owned())
        .spawn(move || {
            let report = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(LoadError::Start)
                .and_then(|runtime| runtime.block_on(steer(plan, target, stop, &progress)));
            // Nobody listens if the caller has dropped the future.
            let _ = sender.send(report);
        })
        .map_err(LoadError::Start)?;
    // Without a report the sender was dropped by a panic, which has printed itself.
    receiver.await.unwrap_or(Err(LoadError::Panicked))
}

/// How often the record is flushed; every `SNAPSHOT_TICKS`th time there is a snapshot.
const TICK: Duration = Duration::from_millis(100);
const SNAPSHOT_TICKS: u32 = 5;

/// Starts the workers, ends the run when it is time, and adds everything up.
async fn steer(
    plan: LoadPlan,
    target: Target,
    stop: CancellationToken,
    progress: &(impl Fn(&Snapshot) + Sync),
) -> Result<Report, LoadError> {
    let first = connect(&target, plan.timeout)
        .await
        .map_err(|source| LoadError::Unreachable { authority: target.authority.clone(), source })?;
    let (connections, total) = (plan.connections, plan.warmup + plan.duration);
    let job = Arc::new(Job::new(plan, target, stop.clone())?);

    let mut workers = JoinSet::new();
    let mut first = Some(first);
    for number in 0..connections {
        workers.spawn(work(job.clone(), first.take(), number as u64));
    }
    let pacer = job.schedule.map(|schedule| {
        let job = job.clone();
        thread::spawn(move || {
            pace(schedule, job.start, &job.turns, &job.stop);
            thread_cpu_s()
        })
    });

    let mut cpu_before_s = None;
    let mut stopped_at = None;
    let mut progress = Progress { job: &job, total, tell: progress, last: (Duration::ZERO, 0) };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (warm, end) = (sleep(job.plan.warmup), sleep(total));
    tokio::pin!(warm, end);
    let mut ticked = 0;
    loop {
        tokio::select! {
            () = &mut warm, if cpu_before_s.is_none() => cpu_before_s = Some(thread_cpu_s()),
            () = &mut end, if stopped_at.is_none() => job.end(),
            _ = ticks.tick() => {
                job.flush();
                // The first tick comes at once.
                if ticked > 0 && ticked % SNAPSHOT_TICKS == 0 {
                    progress.tell();
                }
                ticked += 1;
            }
            worker = workers.join_next() => match worker {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    job.end();
                    // Workers are never aborted, so this is a panic.
                    if let Ok(cause) = error.try_into_panic() {
                        panic::resume_unwind(cause);
                    }
                }
            },
            () = stop.cancelled(), if stopped_at.is_none() => {
                stopped_at = Some(Instant::now());
                job.end();
            }
        }
    }
    let stopped_at = stopped_at.unwrap_or_else(Instant::now);
    let cpu_s = thread_cpu_s();
    job.end();
    job.flush();
    let pacer_cpu_s = match pacer.map(thread::JoinHandle::join) {
        None => Some(0.0),
        Some(Ok(cpu_s)) => cpu_s,
        Some(Err(cause)) => panic::resume_unwind(cause),
    };
    progress.tell();

    if let Some(journal) = &job.journal
        && let Some(source) = journal.take_failure()
    {
        return Err(LoadError::Journal { path: journal.path().to_owned(), source });
    }
    let client_cpu_s = (|| Some(cpu_s? - cpu_before_s.flatten().unwrap_or(0.0) + pacer_cpu_s?))();
    Ok(job.report(stopped_at, client_cpu_s))
}

struct Progress<'a, F> {
    job: &'a Job,
    total: Duration,
    tell: &'a F,
    /// When the last snapshot was, and the requests answered until then.
    last: (Duration, u64),
}

impl<F: Fn(&Snapshot)> Progress<'_, F> {
    fn tell(&mut self) {
        let elapsed = self.job.start.elapsed();
        let books = self.job.books();
        let sum = |field: fn(&Counts) -> u64| field(&books.warmup) + field(&books.counts);
        let requests = sum(|counts| counts.requests);
        let events = sum(|counts| counts.acknowledged_events);
        let errors = sum(Counts::failures);
        drop(books);
        let (before, requests_before) = self.last;
        let requests_per_s = per_s(requests - requests_before, elapsed.saturating_sub(before));
        self.last = (elapsed, requests);
        (self.tell)(&Snapshot { elapsed, total: self.total, requests, events, requests_per_s, errors });
    }
}

/// What all workers share. They run on one thread, so the locks are never contended and cost no more
/// than counters per worker would, which for a thousand connections would be a gigabyte of histograms.
struct Job {
    payloads: Payloads,
    plan: LoadPlan,
    target: Target,
    /// Start of every request, up to the token and the length.
    head: String,
    start: Instant,
    measure_from: Instant,
    stop: CancellationToken,
    /// Number of the next request.
    next: AtomicU64,
    /// Of an open loop only; `turns` then has a permit for every request due.
    schedule: Option<Schedule>,
    turns: Semaphore,
    /// The cache token each session was last given.
    tokens: Mutex<HashMap<u64, Box<str>>>,
    journal: Option<Journal>,
    books: Mutex<Books>,
}

struct Books {
    warmup: Counts,
    counts: Counts,
    latency: Histogram<u64>,
    last_answer_at: Option<Instant>,
}

/// A request to make now.
struct Turn {
    number: u64,
    /// When it was due (open loop) or began (closed loop).
    from: Instant,
}

impl Job {
    fn new(plan: LoadPlan, target: Target, stop: CancellationToken) -> Result<Self, LoadError> {
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
            books: Mutex::new(Books {
                warmup: Counts::default(),
                counts: Counts::default(),
                latency,
                last_answer_at: None,
            }),
            plan,
        })
    }

    /// Waits for the next request to be due; `None` when the run is over.
    async fn next_turn(&self) -> Option<Turn> {
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
                // All that may be sent have their worker.
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

    /// Puts the request of `turn` together and returns its events through `events`, none if it is empty.
    fn compose(&self, turn: &Turn, events: &mut Vec<Event>, body: &mut Vec<u8>, request: &mut Vec<u8>) {
        events.clear();
        if self.plan.requests == Requests::Empty {
            request.clear();
            request.extend_from_slice(self.head.as_bytes());
            request.extend_from_slice(b"\r\n");
            return;
        }
        let batch = self.plan.batch as u64;
        events.extend((0..batch).map(|at| self.payloads.event(turn.number * batch + at)));
        let session = events.first().map_or(0, |event| event.session);
        body.clear();
        if batch > 1 {
            body.push(b'[');
        }
        for (at, event) in events.iter_mut().enumerate() {
            if self.plan.token {
                // The token of a request is good for one session only.
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
            for part in ["x-umami-cache: ", token, "\r\n"] {
                request.extend_from_slice(part.as_bytes());
            }
        }
        request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(body);
    }

    /// Books a complete answer: which of `events` it acknowledges, and how long it took.
    fn settle(&self, turn: &Turn, events: &[Event], answer: Answer, body: &[u8]) {
        let at = Instant::now();
        let verdict = match self.plan.requests {
            Requests::Events => Verdict::read(answer.status, body, events.len()),
            Requests::Empty => Verdict::Refused,
        };
        if self.plan.token
            && let Some(token) = verdict.token()
            && let Some(event) = events.first()
        {
            let mut tokens = lock(&self.tokens);
            if tokens.get(&event.session).is_none_or(|known| **known != *token) {
                tokens.insert(event.session, token.into());
            }
        }
        let mut books = self.books();
        books.last_answer_at = Some(at);
        let measured = turn.from >= self.measure_from;
        if measured {
            let latency_us = at.saturating_duration_since(turn.from).as_micros();
            books.latency.saturating_record(u64::try_from(latency_us).unwrap_or(u64::MAX));
        }
        let counts = if measured { &mut books.counts } else { &mut books.warmup };
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

    fn count(&self, from: Instant, change: impl FnOnce(&mut Counts)) {
        let mut books = self.books();
        change(if from >= self.measure_from { &mut books.counts } else { &mut books.warmup });
    }

    fn count_error(&self, from: Instant, error: &ConnectionError) {
        self.count(from, |counts| {
            *match error {
                ConnectionError::Connect { .. } => &mut counts.errors.connect,
                ConnectionError::Lost(_) => &mut counts.errors.lost,
                ConnectionError::Protocol(_) => &mut counts.errors.protocol,
            } += 1;
        });
    }

    /// No more requests; those under way go on.
    fn end(&self) {
        self.stop.cancel();
        self.turns.close();
    }

    fn flush(&self) {
        if self.journal.as_ref().is_some_and(|journal| !journal.flush()) {
            self.end();
        }
    }

    /// Sleeps, but not beyond the end of the run.
    async fn rest(&self, time: Duration) {
        if !time.is_zero() {
            self.stop.run_until_cancelled(sleep(time)).await;
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    fn report(&self, stopped_at: Instant, client_cpu_s: Option<f64>) -> Report {
        let books = self.books();
        let end = books.last_answer_at.map_or(stopped_at, |at| at.max(stopped_at));
        let elapsed = end.saturating_duration_since(self.measure_from);
        Report {
            mark_prefix: self.payloads.mark_prefix().to_owned(),
            elapsed_s: elapsed.as_secs_f64(),
            requests_per_s: per_s(books.counts.requests, elapsed),
            events_per_s: per_s(books.counts.acknowledged_events, elapsed),
            counts: books.counts.clone(),
            warmup: books.warmup.clone(),
            latency: Latency::of(&books.latency),
            client_cpu_s,
            limit: None,
        }
    }
}

/// One connection's life: request, answer, request; a new connection when it is lost.
async fn work(job: Arc<Job>, mut connection: Option<Connection>, number: u64) {
    // Streams below 2^63 belong to events.
    let mut random = Random::new(job.plan.seed, u64::MAX - number);
    let (mut events, mut body, mut request) = (Vec::new(), Vec::new(), Vec::new());
    let mut failures = 0;
    while !job.stop.is_cancelled() {
        let mut current = match connection.take() {
            Some(current) => current,
            None => {
                job.rest(backoff(failures, &mut random)).await;
                match job.stop.run_until_cancelled(connect(&job.target, job.plan.timeout)).await {
                    None => return,
                    Some(Ok(new)) => new,
                    Some(Err(error)) => {
                        failures += 1;
                        job.count_error(Instant::now(), &error);
                        continue;
                    }
                }
            }
        };
        let Some(turn) = job.next_turn().await else { return };
        job.compose(&turn, &mut events, &mut body, &mut request);
        match timeout(job.plan.timeout, current.exchange(&request)).await {
            Ok(Ok(answer)) => {
                failures = 0;
                job.settle(&turn, &events, answer, current.body());
                connection = current.is_usable().then_some(current);
                if let Some(pause) = pause_after(&job.plan, answer) {
                    job.count(turn.from, |counts| counts.pauses += 1);
                    job.rest(pause).await;
                }
            }
            Ok(Err(error)) => {
                failures += 1;
                job.count_error(turn.from, &error);
            }
            Err(_) => {
                failures += 1;
                job.count(turn.from, |counts| counts.errors.timeout += 1);
            }
        }
    }
}

async fn connect(target: &Target, time: Duration) -> Result<Connection, ConnectionError> {
    timeout(time, Connection::connect(&target.authority)).await.unwrap_or_else(|_| {
        let source = io::ErrorKind::TimedOut.into();
        Err(ConnectionError::Connect { authority: target.authority.clone(), source })
    })
}

/// Pause before connecting after `failures` in a row: none, then about 20 ms, doubling up to 1 s, of
/// which up to half is left to chance so that connections do not return all at once.
fn backoff(failures: u32, random: &mut Random) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let full_us = 20_000u64.saturating_mul(1 << doublings.min(10)).min(1_000_000);
    Duration::from_micros(full_us / 2 + random.below(full_us / 2))
}

/// Longest rest a `Retry-After` can ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

fn pause_after(plan: &LoadPlan, answer: Answer) -> Option<Duration> {
    let asked = plan.pause_on_retry_after && matches!(answer.status, 429 | 503);
    let pause = Duration::from_secs(answer.retry_after_s.filter(|_| asked)?);
    Some(pause.min(PAUSE_MAX))
}

/// What an answer says about the events of its request.
#[derive(Debug)]
enum Verdict<'a> {
    Refused,
    Single { token: Option<Cow<'a, str>> },
    Batch { refused: HashSet<usize>, token: Option<Cow<'a, str>> },
}

#[derive(Deserialize)]
struct SingleAnswer<'a> {
    #[serde(borrow, rename = "sessionId")]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cache: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    size: usize,
    errors: usize,
    details: Vec<Refusal>,
    #[serde(borrow)]
    cache: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Refusal {
    index: usize,
}

impl<'a> Verdict<'a> {
    /// `events` tells how many the request held; one means it was no batch. An answer that does not add
    /// up acknowledges nothing.
    fn read(status: u16, body: &'a [u8], events: usize) -> Self {
        if status != 200 {
            return Self::Refused;
        }
        if events == 1 {
            return match serde_json::from_slice(body) {
                Ok(SingleAnswer { session_id: Some(_), cache }) => Self::Single { token: cache },
                _ => Self::Refused,
            };
        }
        match serde_json::from_slice(body) {
            Ok(BatchAnswer { size, errors, details, cache }) if size == events && errors == details.len() => {
                Self::Batch {
                    refused: details.into_iter().map(|refusal| refusal.index).collect(),
                    token: cache,
                }
            }
            _ => Self::Refused,
        }
    }

    fn acknowledges(&self, at: usize) -> bool {
        match self {
            Self::Refused => false,
            Self::Single { .. } => true,
            Self::Batch { refused, .. } => !refused.contains(&at),
        }
    }

    /// The token, if it can stand in a header as it is.
    fn token(&self) -> Option<&str> {
        let token = match self {
            Self::Refused => None,
            Self::Single { token } | Self::Batch { token, .. } => token.as_deref(),
        };
        token.filter(|token| {
            (1..=4_096).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
        })
    }
}

fn per_s(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

/// A panic elsewhere ends the run; the counts are whole, as no lock is held across a panic's cause.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(status: u16, body: &str, events: usize) -> Vec<usize> {
        let verdict = Verdict::read(status, body.as_bytes(), events);
        (0..events).filter(|at| verdict.acknowledges(*at)).collect()
    }

    const NONE: [usize; 0] = [];

    #[test]
    fn only_a_200_with_a_session_acknowledges_an_event() {
        let answer = r#"{"cache":"a.b.c","sessionId":"s","visitId":"v"}"#;
        assert_eq!(acknowledged(200, answer, 1), [0]);
        assert_eq!(acknowledged(503, answer, 1), NONE);
        assert_eq!(acknowledged(202, answer, 1), NONE);
        assert_eq!(acknowledged(200, r#"{"beep":"boop"}"#, 1), NONE);
        assert_eq!(acknowledged(200, &answer[..30], 1), NONE);
        assert_eq!(acknowledged(200, r#"{"sessionId":null}"#, 1), NONE);
    }

    #[test]
    fn a_batch_acknowledges_the_elements_without_errors() {
        let answer = r#"{"size":3,"processed":2,"errors":1,"details":[{"index":1,"response":{"error":{}}}],"cache":null}"#;
        assert_eq!(acknowledged(200, answer, 3), [0, 2]);
        assert_eq!(acknowledged(200, answer, 4), NONE);
        assert_eq!(acknowledged(200, &answer.replace("\"errors\":1", "\"errors\":2"), 3), NONE);
        assert_eq!(acknowledged(400, answer, 3), NONE);
        let without_token = r#"{"size":2,"processed":2,"errors":0,"details":[]}"#;
        assert_eq!(acknowledged(200, without_token, 2), [0, 1]);
    }

    #[test]
    fn a_token_that_would_break_the_header_is_not_used() {
        let token = |cache: &str| {
            let body = format!(r#"{{"sessionId":"s","cache":{cache}}}"#);
            Verdict::read(200, body.as_bytes(), 1).token().map(str::to_owned)
        };
        assert_eq!(token("\"a.b-c_d\"").as_deref(), Some("a.b-c_d"));
        assert_eq!(token(r#""a\r\nx: y""#), None);
        assert_eq!(token("\"\""), None);
        assert_eq!(token("null"), None);
    }

    #[test]
    fn back_off_grows_to_a_second_and_no_further() {
        let mut random = Random::new(1, 1);
        assert_eq!(backoff(0, &mut random), Duration::ZERO);
        for failures in 1..100 {
            let full_ms = (20u64 << (failures - 1).min(10)).min(1_000);
            let pause_ms = backoff(failures, &mut random).as_millis() as u64;
            assert!((full_ms / 2..=full_ms).contains(&pause_ms), "{failures}: {pause_ms}");
        }
    }
}
