//! `POST /api/send` and `POST /api/batch`: one event, or several in one request.

use std::collections::HashMap;

use axum::response::Response;
use dashi_domain::schema::SchemaError;
use dashi_domain::submission::{
    BATCH_ERRORS_MAX, SchemaRules, SourceKind, Submission, SubmissionKind, parse_batch,
};
use dashi_domain::token::TokenClaims;
use dashi_http::answer::json;
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use crate::answer::{Accepted, IGNORED_JSON, Ignored, Rejection, batch_json};
use crate::decide::{Decision, decide, website_to_look_up};
use crate::endpoint::{Attempt, Endpoint, Posted};
use crate::frame::{Outcomes, PartOutcome};
use crate::limiter::RequestLimits;
use crate::limits::LARGE_BODY_BYTES;
use crate::metrics::Subject;
use crate::source_registry::Found;

/// Batches above this have so many elements that they count as large.
const LARGE_BATCH_BYTES: usize = 4 * 1024;

/// `POST /api/send`
pub(crate) static SEND: Endpoint<Accepted, Ignored> = Endpoint {
    subject: Subject::Events,
    large_bytes: LARGE_BODY_BYTES,
    decide: decide_one,
    respond: answer_one,
};

/// `POST /api/batch`
pub(crate) static BATCH: Endpoint<Accepted, Ignored> = Endpoint {
    subject: Subject::Events,
    large_bytes: LARGE_BATCH_BYTES,
    decide: decide_each,
    respond: answer_each,
};

fn decide_one(posted: &Posted<'_>) -> Result<Attempt<Accepted, Ignored>, Rejection> {
    let mut deciding = Deciding::new(posted);
    let parsed = Submission::parse(posted.body, deciding.schema);
    deciding.note_unknown_type(&parsed);
    let decision = match parsed {
        Ok(submission) => deciding.decide(submission, None),
        Err(error) => deciding.refuse(Rejection::Schema(error)),
    };
    Ok(deciding.attempt(vec![decision]))
}

fn decide_each(posted: &Posted<'_>) -> Result<Attempt<Accepted, Ignored>, Rejection> {
    let elements = parse_batch(posted.body, posted.collector.limits.batch_elements_max)?;
    let mut deciding = Deciding::new(posted);
    let mut invalid = 0;
    let decisions = elements
        .into_iter()
        .enumerate()
        .map(|(index, element)| {
            let parsed = Submission::from_value(element, deciding.schema);
            deciding.note_unknown_type(&parsed);
            match parsed {
                Ok(submission) => deciding.decide(submission, Some(index)),
                Err(error) => {
                    invalid += 1;
                    // The answer spells out the reasons of no more elements than that.
                    let error = if invalid > BATCH_ERRORS_MAX { error.without_reasons() } else { error };
                    deciding.refuse(Rejection::Schema(error))
                }
            }
        })
        .collect();
    Ok(deciding.attempt(decisions))
}

/// Decides the submissions of one request.
struct Deciding<'r> {
    posted: &'r Posted<'r>,
    schema: SchemaRules,
    claims: Option<TokenClaims>,
    /// Websites that have to be looked up first.
    unknown: Vec<Uuid>,
    /// Submissions of types that are not known, and whether each is kept.
    unknown_types: Vec<(&'static str, bool)>,
    /// How many identifies of a person came before in the request.
    identifies: HashMap<(Uuid, String), i64>,
    limits: Option<RequestLimits<'r>>,
    /// The website, link or pixel of each decision so far, if there are limits.
    sources: Vec<Uuid>,
}

impl<'r> Deciding<'r> {
    fn new(posted: &'r Posted<'r>) -> Self {
        let rules = &posted.collector.rules;
        let claims = rules.claims(posted.client, posted.now.ms);
        Self {
            posted,
            schema: rules.schema(),
            claims,
            unknown: Vec::new(),
            unknown_types: Vec::new(),
            identifies: HashMap::new(),
            limits: posted.collector.limiter.of_request(&posted.client.address, posted.now),
            sources: Vec::new(),
        }
    }

    /// Refuses a body or an element that is no submission.
    fn refuse(&mut self, rejection: Rejection) -> Decision {
        if self.limits.is_some() {
            self.sources.push(Uuid::nil());
        }
        Decision::Refuse(rejection)
    }

    /// Decides a submission. If its website has to be looked up first, that is noted and the decision is not used.
    fn decide(&mut self, submission: Submission<'_>, index: Option<usize>) -> Decision {
        let Posted { collector, client, websites, .. } = self.posted;
        if let Some(limits) = &self.limits {
            let payload = &submission.payload;
            self.sources.push(payload.source.id);
            if let Some(rejection) =
                limits.blocked(payload.source.id, payload.ip.as_deref(), payload.id.as_deref())
            {
                return Decision::Refuse(rejection);
            }
        }
        if let Some(website) = website_to_look_up(&submission, self.claims.as_ref()) {
            match websites.get(website) {
                Some(Found::Yes(_)) => {}
                Some(Found::No) => return Decision::Refuse(Rejection::UnknownWebsite),
                Some(Found::Unsure) => return Decision::Refuse(Rejection::Unavailable),
                None => {
                    self.unknown.push(website);
                    return Decision::Refuse(Rejection::Unavailable);
                }
            }
        }
        let source = &submission.payload.source;
        let is_website = source.kind == SourceKind::Website;
        let website = is_website.then(|| collector.sources.listed_website(source.id)).flatten();
        let blocked = website.as_ref().map(|website| &website.blocked);
        let received_at_ms = self.received_at_ms(&submission, index);
        decide(&collector.rules, blocked, client, self.claims.as_ref(), submission, index, received_at_ms)
    }

    /// When a submission counts as received. A person's writes are ordered by arrival and then by event id, and ids that
    /// clients give are in no order. So in a batch each identify of a person counts as received a millisecond after the one
    /// before, and the last one wins.
    fn received_at_ms(&mut self, submission: &Submission<'_>, index: Option<usize>) -> i64 {
        let now_ms = self.posted.now.ms;
        let payload = &submission.payload;
        let (Some(id), Some(_), SubmissionKind::Identify) = (&payload.id, index, submission.kind) else {
            return now_ms;
        };
        let before = self.identifies.entry((payload.source.id, id.to_string())).or_default();
        *before += 1;
        now_ms + *before - 1
    }

    /// Notes a submission whose type is not known, kept or refused.
    fn note_unknown_type(&mut self, parsed: &Result<Submission<'_>, SchemaError>) {
        let unknown = match parsed {
            Ok(submission) => submission.kept.as_ref().map(|kept| (kept.counted_as(), true)),
            Err(error) => error.unknown_kind().map(|kind| (kind, false)),
        };
        self.unknown_types.extend(unknown);
    }

    fn attempt(mut self, mut decisions: Vec<Decision>) -> Attempt<Accepted, Ignored> {
        if self.unknown.is_empty() {
            // Not before, since a body whose websites are looked up is decided once more.
            if let Some(limits) = &self.limits {
                for (decision, source) in decisions.iter_mut().zip(&self.sources) {
                    limits.apply(*source, decision);
                }
            }
            for (kind, is_kept) in self.unknown_types {
                self.posted.collector.metrics.count_unknown(kind, is_kept);
            }
            return Attempt::Decided(decisions);
        }
        self.unknown.sort_unstable();
        self.unknown.dedup();
        Attempt::Unknown(self.unknown)
    }
}

fn answer_one(outcomes: Outcomes<Accepted, Ignored>) -> Result<Response, Rejection> {
    match outcomes.into_iter().next() {
        Some(PartOutcome::Stored(accepted)) => Ok(json(StatusCode::OK, accepted.to_json())),
        Some(PartOutcome::Answered(_)) => Ok(json(StatusCode::OK, IGNORED_JSON.to_owned())),
        Some(PartOutcome::Refused(rejection)) => Err(rejection),
        None => Err(Rejection::Unavailable),
    }
}

/// If no element is in the log and a retry may help, the answer refuses the whole request: as unavailable if one element is,
/// else as the one that may be sent again first. Otherwise each element has its own answer, and the client learns which
/// ones to send again.
fn answer_each(outcomes: Outcomes<Accepted, Ignored>) -> Result<Response, Rejection> {
    let is_deferred =
        |outcome: &PartOutcome<_, _>| matches!(outcome, PartOutcome::Refused(Rejection::Unavailable));
    let is_taken = |outcome: &PartOutcome<_, _>| !matches!(outcome, PartOutcome::Refused(_));
    let is_any_taken = outcomes.iter().any(is_taken);
    if outcomes.iter().any(is_deferred) && !is_any_taken {
        return Err(Rejection::Unavailable);
    }
    let after_s = |outcome: &PartOutcome<_, _>| match outcome {
        PartOutcome::Refused(rejection) => rejection.own_retry_after_s(),
        _ => None,
    };
    let first =
        outcomes.iter().enumerate().filter_map(|(index, outcome)| Some((after_s(outcome)?, index))).min();
    let Some((after_s, index)) = first else { return Ok(json(StatusCode::OK, batch_json(&outcomes))) };
    if is_any_taken {
        let mut response = json(StatusCode::OK, batch_json(&outcomes));
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after_s));
        return Ok(response);
    }
    match outcomes.into_iter().nth(index) {
        Some(PartOutcome::Refused(rejection)) => Err(rejection),
        _ => Err(Rejection::Unavailable),
    }
}
