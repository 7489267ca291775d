//! One request's frame: its place in flight, its gauge and its outcome, each held by a guard that works when the future
//! is dropped, as it is when the client hangs up.
//!
//! A request has two halves. Until it is understood it is worth nothing to anybody but its client: if that one goes
//! away, it is counted as `client_gone` and forgotten. Once there is something to append, it is finished and counted
//! whether or not somebody still waits for the answer ([`Finishing`]).

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::response::Response;
use dashi_event_log::NewRecord;
use dashi_http::{Outgoing, Overdue};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::answer::Rejection;
use crate::body::Share;
use crate::collector::Collector;
use crate::metrics::{Counted, IngestMetrics, Subject};

/// What becomes of one part of a request.
#[derive(Debug)]
pub enum Decision<S, A> {
    /// Append this; once that is durable, answer this.
    Append(NewRecord, S),
    /// Answer at once; nothing is appended.
    Answer(A),
    /// Refuse it.
    Refuse(Rejection),
}

/// What became of one part of a request.
#[derive(Debug)]
pub enum Outcome<S, A> {
    /// It is durable.
    Stored(S),
    /// There was nothing to store.
    Answered(A),
    /// It was not taken.
    Refused(Rejection),
}

/// A request that is understood: what is to be appended, and how its outcomes become the answer.
pub struct Plan<S, A, R> {
    /// One decision for each part.
    pub decisions: Vec<Decision<S, A>>,
    /// The part of the body budget that is held until the records are durable.
    pub share: Option<Share>,
    /// Makes the answer; has the outcomes in the order of the decisions.
    pub respond: R,
}

/// A request that holds a place in flight. Counts its outcome; dropped before it has one, it counts that too.
pub struct Frame {
    collector: Collector,
    subject: Subject,
    outgoing: Option<Outgoing>,
    began: Instant,
    counted: bool,
    _place: Place,
}

impl Frame {
    /// The frame of a request whose place this is.
    pub fn new(collector: &Collector, subject: Subject, outgoing: Option<Outgoing>, place: Place) -> Self {
        let collector = collector.clone();
        Self { collector, subject, outgoing, began: Instant::now(), counted: false, _place: place }
    }

    /// Answers a request: `prepare` understands it, and is dropped with the client or past its bounds; what it plans is
    /// carried out in any case.
    pub async fn answer<S, A, R>(
        self,
        prepare: impl Future<Output = Result<Plan<S, A, R>, Rejection>>,
    ) -> Response
    where
        S: Send + 'static,
        A: Counted + Send + 'static,
        R: FnOnce(Vec<Outcome<S, A>>) -> Result<Response, Rejection> + Send + 'static,
    {
        let deadlines = self.collector.deadlines();
        let outgoing = self.outgoing.as_ref();
        // The one timer of the request.
        let timer = tokio::time::sleep_until(deadlines.first_check(self.began).into());
        let mut timer = std::pin::pin!(timer);
        let mut prepare = std::pin::pin!(prepare);
        let prepared = loop {
            tokio::select! {
                biased;
                prepared = &mut prepare => break prepared,
                () = stopped_waiting(outgoing) => break Err(Rejection::Unavailable),
                () = timer.as_mut() => match deadlines.check(self.began, outgoing) {
                    Ok(next) => timer.as_mut().reset(next.into()),
                    Err(Overdue::Request) => break Err(Rejection::Unavailable),
                    Err(Overdue::Body) => break Err(Rejection::TooSlow),
                },
            }
        };
        let plan = match prepared {
            Ok(plan) => plan,
            Err(rejection) => return self.refuse(rejection),
        };
        let (collector, began) = (self.collector.clone(), self.began);
        let finishing = self.finish(plan);
        timer.as_mut().reset(deadlines.of_request(began).into());
        let answered = tokio::select! {
            biased;
            answered = finishing => answered,
            () = timer => Err(Rejection::Unavailable),
        };
        // Counted where it was finished, or will be.
        answered.unwrap_or_else(|rejection| collector.refusal(rejection))
    }

    /// Carries out what is planned, even if nobody waits for it any more. Gives the answer.
    pub fn finish<S, A, R, T>(
        mut self,
        plan: Plan<S, A, R>,
    ) -> Finishing<impl Future<Output = T> + Send + use<S, A, R, T>>
    where
        T: Send + 'static,
        S: Send + 'static,
        A: Counted + Send + 'static,
        R: FnOnce(Vec<Outcome<S, A>>) -> T + Send + 'static,
    {
        let background = self.collector.background().clone();
        self.counted = true;
        let finishing = async move {
            let Plan { decisions, share, respond } = plan;
            let outcomes = self.collector.carry_out(decisions).await;
            drop(share);
            let metrics = self.collector.metrics();
            for outcome in &outcomes {
                let label = match outcome {
                    Outcome::Stored(_) => "accepted",
                    Outcome::Answered(answered) => answered.label(),
                    Outcome::Refused(rejection) => rejection.label(),
                };
                metrics.count(self.subject, label);
            }
            respond(outcomes)
        };
        Finishing { future: Some(Box::pin(finishing)), background }
    }

    /// Refuses the request as a whole.
    pub fn refuse(mut self, rejection: Rejection) -> Response {
        self.count(rejection.label());
        self.collector.refusal(rejection)
    }

    /// Ends a request that had nothing to store.
    pub fn done(mut self, what: impl Counted) {
        self.count(what.label());
    }

    fn count(&mut self, label: &'static str) {
        self.counted = true;
        self.collector.metrics().count(self.subject, label);
    }
}

/// Waits until the server stops and waits no longer for the rest of the request.
async fn stopped_waiting(outgoing: Option<&Outgoing>) {
    match outgoing {
        Some(outgoing) => outgoing.stopped_waiting().await,
        None => std::future::pending().await,
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if !self.counted {
            self.count(if std::thread::panicking() { "panicked" } else { "client_gone" });
        }
    }
}

/// Work that is finished in any case: here, as long as somebody waits for it, else on a task of its own. A request that
/// is waited for to its end so costs no change of tasks.
pub struct Finishing<F: Future<Output: Send + 'static> + Send + 'static> {
    /// Taken out while it runs: one that panics is not tried again.
    future: Option<Pin<Box<F>>>,
    background: TaskTracker,
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Future for Finishing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> Drop for Finishing<F> {
    fn drop(&mut self) {
        // Without a runtime, the process has ended.
        if let (Some(future), Ok(runtime)) = (self.future.take(), tokio::runtime::Handle::try_current()) {
            self.background.spawn_on(future, &runtime);
        }
    }
}

/// The places of requests that are worked on.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    fair: Arc<Fair>,
}

/// One place, counted as long as it is held.
#[derive(Debug)]
pub struct Place {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
    _part: Part,
}

impl Places {
    /// So many places, of which one client has a half at most, and all that come from one address three quarters.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let fair = Fair::new(max.div_ceil(2), (max - max / 4).max(1));
        Self { free: Arc::new(Semaphore::new(max)), fair: Arc::new(fair) }
    }

    /// A place for a client, if there is one left for it.
    pub fn take(&self, origin: Origin, metrics: &IngestMetrics) -> Option<Place> {
        let part = self.fair.part(origin, 1)?;
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        metrics.in_flight.inc();
        Some(Place { gauge: metrics.in_flight.clone(), _permit: permit, _part: part })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Where a request comes from: the client's address, which a proxy may have named, and that of the connection, each as a
/// slot that it shares with others by chance.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    client: usize,
    peer: usize,
}

#[cfg(test)]
impl Origin {
    pub(crate) fn client(self) -> usize {
        self.client
    }

    pub(crate) fn peer(self) -> usize {
        self.peer
    }
}

/// Makes origins, differently in each process: nobody can choose with whom to share.
#[derive(Debug, Default)]
pub struct Origins(std::hash::RandomState);

/// Enough that two clients seldom meet; some kilobytes.
const SLOTS: usize = 1_024;

impl Origins {
    /// The origin of a client at the other end of a connection, or behind that.
    pub fn of(&self, client: &str, peer: IpAddr) -> Origin {
        let slot = |hash: u64| hash as usize % SLOTS;
        Origin { client: slot(self.0.hash_one(client)), peer: slot(self.0.hash_one(peer)) }
    }
}

/// Sees to it that nobody has more than a part of something: neither a client, nor all that come from one address, so that
/// neither a client behind a proxy nor one that pretends to be many takes it from all others.
#[derive(Debug)]
pub struct Fair {
    clients: Slots,
    peers: Slots,
}

/// A part of something that a client has.
#[derive(Debug)]
pub struct Part {
    fair: Arc<Fair>,
    origin: Origin,
    units: u32,
}

#[derive(Debug)]
struct Slots {
    used: Box<[AtomicU32]>,
    each_max: u32,
}

impl Slots {
    fn new(each_max: usize) -> Self {
        let used = std::iter::repeat_with(AtomicU32::default).take(SLOTS).collect();
        Self { used, each_max: u32::try_from(each_max).unwrap_or(u32::MAX) }
    }

    fn add(&self, slot: usize, units: u32) -> bool {
        let before = self.used[slot].fetch_add(units, Ordering::Relaxed);
        let fits = before.saturating_add(units) <= self.each_max;
        if !fits {
            self.remove(slot, units);
        }
        fits
    }

    fn remove(&self, slot: usize, units: u32) {
        self.used[slot].fetch_sub(units, Ordering::Relaxed);
    }
}

impl Fair {
    /// So many units for one client, and so many for all that come from one address.
    pub fn new(of_client: usize, of_peer: usize) -> Self {
        Self { clients: Slots::new(of_client), peers: Slots::new(of_peer) }
    }

    /// So many units, unless that makes more than there are for one.
    pub fn part(self: &Arc<Self>, origin: Origin, units: u32) -> Option<Part> {
        self.add(origin, units).then(|| Part { fair: Arc::clone(self), origin, units })
    }

    fn add(&self, origin: Origin, units: u32) -> bool {
        if !self.clients.add(origin.client, units) {
            return false;
        }
        let fits = self.peers.add(origin.peer, units);
        if !fits {
            self.clients.remove(origin.client, units);
        }
        fits
    }
}

impl Part {
    /// So many units more; says whether they were to be had.
    pub fn grow(&mut self, units: u32) -> bool {
        let grown = self.fair.add(self.origin, units);
        if grown {
            self.units += units;
        }
        grown
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.fair.clients.remove(self.origin.client, self.units);
        self.fair.peers.remove(self.origin.peer, self.units);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_client_has_half_of_the_places_and_those_of_one_address_three_quarters() {
        let (places, origins) = (Places::new(8), Origins::default());
        let metrics = IngestMetrics::new(&mut Registry::default());
        let (proxy, elsewhere) = (IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::new(192, 0, 2, 1).into());
        // Names that share no slot.
        let mut names: Vec<String> = Vec::new();
        for name in (0..).map(|name| format!("client {name}")) {
            let slot = |name: &str| origins.of(name, proxy).client;
            if names.iter().all(|other| slot(other) != slot(&name)) {
                names.push(name);
            }
            if names.len() == 4 {
                break;
            }
        }
        let take = |name: usize, peer| places.take(origins.of(&names[name], peer), &metrics);
        let mut held: Vec<_> = (0..8).map_while(|_| take(0, proxy)).collect();
        assert_eq!(held.len(), 4);
        held.extend((0..8).map_while(|_| take(1, proxy)));
        assert_eq!(held.len(), 6, "others behind the same address have the rest of its part");
        assert!(take(2, proxy).is_none());
        if origins.of("", proxy).peer != origins.of("", elsewhere).peer {
            held.extend((0..8).map_while(|_| take(3, elsewhere)));
            assert_eq!(held.len(), 8);
        }
        assert_eq!(metrics.in_flight.get(), held.len() as i64);
        drop(held);
        assert_eq!(metrics.in_flight.get(), 0);
        assert!(take(2, proxy).is_some());
        assert!(
            Places::new(1).take(origins.of("a", proxy), &metrics).is_some(),
            "one place is one for everybody"
        );
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_when_nobody_waits_any_more() {
        let background = TaskTracker::new();
        let (go, waits) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel();
        let work = async move {
            waits.await.ok();
            done.send("finished").ok();
        };
        let mut finishing =
            Box::pin(Finishing { future: Some(Box::pin(work)), background: background.clone() });
        assert!(futures::poll!(&mut finishing).is_pending());
        drop(finishing);
        go.send(()).unwrap();
        assert_eq!(finished.await, Ok("finished"));
        background.close();
        background.wait().await;
        // What is waited for to its end leaves nothing behind.
        let finishing = Finishing { future: Some(Box::pin(async { 7 })), background: background.clone() };
        assert_eq!(finishing.await, 7);
        assert!(background.is_empty());
    }
}
