//! One request's frame: its slot, its time and its outcome, each held by a guard that works when the future is dropped,
//! as it is when the client hangs up.
//!
//! A request has two halves. Until it is decided, it matters to its client alone: if the client goes away, it is
//! counted as `client_gone` and forgotten. Once there is something to append, it is finished and counted whether or not
//! somebody still waits for the answer ([`Finishing`]).

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use dashi_domain::glance::{Glance, HourKey};
use dashi_event_log::NewRecord;
use dashi_http::{Outgoing, Overdue};

use crate::answer::Rejection;
use crate::append::carry_out;
use crate::body::Share;
use crate::collector::Collector;
use crate::finishing::Finishing;
use crate::metrics::{Counted, Subject};
use crate::request_span::AppendSpan;
use crate::slots::Slot;

/// The decision on one part of a request.
#[derive(Debug)]
pub enum Decision<S, A> {
    /// Append this record; once that is durable, answer this.
    Append(NewRecord, S),
    /// Let this record, which is historical, wait until live events leave room; once that is durable, answer this.
    Lane(NewRecord, S),
    /// Answer at once; nothing is appended.
    Answer(A),
    /// Refuse it.
    Refuse(Rejection),
}

/// The outcome of one part of a request.
#[derive(Debug)]
pub enum PartOutcome<S, A> {
    /// It is durable.
    Stored(S),
    /// There was nothing to store.
    Answered(A),
    /// It was not taken.
    Refused(Rejection),
}

/// The outcomes of a request's parts, in the order of the decisions.
pub type Outcomes<S, A> = Vec<PartOutcome<S, A>>;

/// A request that is decided, and how its outcomes become the answer.
pub struct Plan<S, A, R> {
    /// One decision for each part.
    pub decisions: Vec<Decision<S, A>>,
    /// The part of the body budget that is held until the records are durable.
    pub share: Option<Share>,
    /// The span of the append; it ends when the outcomes are known.
    pub span: Option<AppendSpan>,
    /// Makes the answer of the outcomes.
    pub respond: R,
}

/// A request that holds a slot. Counts its outcome; a frame that is dropped before there is one counts that too.
pub struct Frame {
    collector: Arc<Collector>,
    subject: Subject,
    outgoing: Option<Outgoing>,
    began: Instant,
    counted: bool,
    _slot: Slot,
}

impl Frame {
    /// The frame of a request that holds this slot.
    pub fn new(collector: Arc<Collector>, subject: Subject, outgoing: Option<Outgoing>, slot: Slot) -> Self {
        Self { collector, subject, outgoing, began: Instant::now(), counted: false, _slot: slot }
    }

    /// Answers a request: `prepare` reads and decides it, and is dropped with the client or past its deadlines; its
    /// plan is carried out in any case.
    pub async fn answer<S, A, R>(
        self,
        prepare: impl Future<Output = Result<Plan<S, A, R>, Rejection>>,
    ) -> Response
    where
        S: Send + 'static,
        A: Counted + Send + 'static,
        R: FnOnce(Outcomes<S, A>) -> Result<Response, Rejection> + Send + 'static,
    {
        let (began, outgoing) = (self.began, self.outgoing.as_ref());
        let deadlines = self.collector.limits.deadlines;
        // The only timer of the request.
        let mut timer = pin!(tokio::time::sleep_until(deadlines.first_check(began).into()));
        let mut prepare = pin!(prepare);
        let prepared = loop {
            tokio::select! {
                biased;
                prepared = &mut prepare => break prepared,
                () = stopped_waiting(outgoing) => break Err(Rejection::Unavailable),
                () = timer.as_mut() => match deadlines.check(began, outgoing) {
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
        let collector = Arc::clone(&self.collector);
        let finishing = self.finish(plan);
        timer.as_mut().reset(deadlines.of_request(began).into());
        let answered = tokio::select! {
            biased;
            answered = finishing => answered,
            () = timer => Err(Rejection::Unavailable),
        };
        // `finish` counts the outcomes, also those that come after the deadline.
        answered.unwrap_or_else(|rejection| collector.refusal(rejection))
    }

    /// Carries out a plan and counts its outcomes, even if nobody waits for it any more. Returns the answer.
    pub fn finish<S, A, R, T>(
        mut self,
        plan: Plan<S, A, R>,
    ) -> Finishing<impl Future<Output = T> + Send + use<S, A, R, T>>
    where
        T: Send + 'static,
        S: Send + 'static,
        A: Counted + Send + 'static,
        R: FnOnce(Outcomes<S, A>) -> T + Send + 'static,
    {
        let background = self.collector.background.clone();
        self.counted = true;
        let work = async move {
            let Plan { decisions, share, span, respond } = plan;
            let Collector { log, lane, metrics, appends, .. } = &*self.collector;
            // Its record tells the hour and the website of a submission, as it tells them to the projector.
            let keys: Vec<HourKey> = decisions.iter().map(hour_key).collect();
            let outcomes = carry_out(log, lane.as_ref(), metrics, appends, decisions).await;
            drop(share);
            if let Some(span) = span {
                span.end(&outcomes);
            }
            for (outcome, key) in outcomes.iter().zip(keys) {
                match outcome {
                    PartOutcome::Stored(_) => metrics.count_accepted(self.subject, key),
                    PartOutcome::Answered(answered) => metrics.count(self.subject, answered.label()),
                    PartOutcome::Refused(rejection) => metrics.count(self.subject, rejection.label()),
                }
            }
            respond(outcomes)
        };
        Finishing::new(work, background)
    }

    /// Refuses the request as a whole, and counts that.
    pub fn refuse(mut self, rejection: Rejection) -> Response {
        self.count(rejection.label());
        self.collector.refusal(rejection)
    }

    /// Counts the outcome of a request that had nothing to store.
    pub fn done(mut self, outcome: impl Counted) {
        self.count(outcome.label());
    }

    fn count(&mut self, label: &'static str) {
        self.counted = true;
        self.collector.metrics.count(self.subject, label);
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if !self.counted {
            self.count(if std::thread::panicking() { "panicked" } else { "client_gone" });
        }
    }
}

/// The hour and source that the record of a decision is counted by; of no use without a record.
fn hour_key<S, A>(decision: &Decision<S, A>) -> HourKey {
    match decision {
        // Records of ours tell when they were received.
        Decision::Append(record, _) | Decision::Lane(record, _) => Glance::of(&record.value).hour_key(0),
        Decision::Answer(_) | Decision::Refuse(_) => Glance::default().hour_key(0),
    }
}

/// Waits until the server stops and waits no longer for the rest of the request.
async fn stopped_waiting(outgoing: Option<&Outgoing>) {
    match outgoing {
        Some(outgoing) => outgoing.stopped_waiting().await,
        None => std::future::pending().await,
    }
}
