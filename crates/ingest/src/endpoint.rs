//! The way of a posted request from its head to its answer, the same for every endpoint that takes a body.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use uuid::Uuid;

use crate::answer::Rejection;
use crate::body::BudgetedBody;
use crate::client::Client;
use crate::collector::{Admitted, Collector};
use crate::frame::{Decision, Outcomes, Plan};
use crate::metrics::{Counted, Subject};
use crate::now::Now;
use crate::request_span::RequestSpan;
use crate::websites::Websites;

/// An endpoint that takes a body. `S` answers a part that was stored, `A` one of which nothing is stored.
pub(crate) struct Endpoint<S, A> {
    /// The kind with which its outcomes are counted.
    pub(crate) subject: Subject,
    /// A body of more bytes is large: it is worked on where other requests do not wait for it.
    pub(crate) large_bytes: usize,
    /// Parses a whole body and decides each of its parts. Without I/O; called again when websites were looked up.
    pub(crate) decide: Decide<S, A>,
    /// Makes the answer of the outcomes.
    pub(crate) respond: Respond<S, A>,
}

type Decide<S, A> = fn(&Posted<'_>) -> Result<Attempt<S, A>, Rejection>;
type Respond<S, A> = fn(Outcomes<S, A>) -> Result<Response, Rejection>;

/// A posted request that has arrived, with everything that its decision uses.
pub(crate) struct Posted<'r> {
    pub(crate) collector: &'r Collector,
    pub(crate) client: &'r Client,
    pub(crate) body: &'r [u8],
    /// When the request was whole.
    pub(crate) now: Now,
    pub(crate) websites: &'r Websites<'r>,
}

/// The result of an attempt to decide.
pub(crate) enum Attempt<S, A> {
    /// The decision on each part.
    Decided(Vec<Decision<S, A>>),
    /// These websites have to be looked up first; at least one.
    Unknown(Vec<Uuid>),
}

impl<S: Send + 'static, A: Counted + Send + 'static> Endpoint<S, A> {
    /// Takes a request: its head and a slot, its body, a decision on each part, the append of its records, and the
    /// answer. [`Frame::answer`](crate::frame::Frame::answer) bounds its time, counts its outcomes, and finishes an
    /// append whose client is gone.
    pub(crate) async fn take(&self, collector: Arc<Collector>, request: Request<Body>) -> Response {
        let span = RequestSpan::begin(&collector, &request, None);
        let response = match collector.admit(self.subject, &request) {
            Ok(admitted) => self.answer(&collector, admitted, request.into_body(), span.as_ref()).await,
            Err(rejection) => collector.refusal(rejection),
        };
        if let Some(span) = span {
            span.answered(response.status());
        }
        response
    }

    async fn answer(
        &self,
        collector: &Collector,
        admitted: Admitted,
        body: Body,
        span: Option<&RequestSpan>,
    ) -> Response {
        let Admitted { client, origin, frame } = admitted;
        frame
            .answer(async {
                let body = collector.limits.bodies.read(body, origin).await?;
                let mut decisions = self.decisions(collector, &client, &body, Now::read()).await?;
                let span = span.and_then(|span| span.append(&mut decisions));
                Ok(Plan { decisions, share: Some(body.into_share()), span, respond: self.respond })
            })
            .await
    }

    /// Decides a body: at once, or once more when the websites that it names and that are not on the list were looked
    /// up. No parsed body is kept while the list is read.
    async fn decisions(
        &self,
        collector: &Collector,
        client: &Client,
        body: &BudgetedBody,
        now: Now,
    ) -> Result<Vec<Decision<S, A>>, Rejection> {
        let mut websites = Websites::new(&collector.sources);
        loop {
            let posted = Posted { collector, client, body: &body.bytes, now, websites: &websites };
            let work = || (self.decide)(&posted);
            let attempt = collector.limits.work(posted.body.len(), self.large_bytes, work).await??;
            match attempt {
                Attempt::Decided(decisions) => return Ok(decisions),
                Attempt::Unknown(unknown) => websites.look_up(unknown, now.instant).await,
            }
        }
    }
}
