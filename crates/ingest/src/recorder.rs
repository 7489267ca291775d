//! The endpoints of a recorder in a page: it asks for its settings, and sends chunks of recordings, and heatmaps.
//! Source of the rules: docs/umami-contract.md §14.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use dashi_domain::chunk::{Chunk, RecorderSubmission};
use dashi_domain::heatmap::HeatmapPost;
use dashi_domain::ids::named_event_id;
use dashi_event_log::NewRecord;
use dashi_http::answer::json;
use dashi_store::{Heatmaps, Recorder, RecorderRules};
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use crate::answer::{CHUNK_JSON, Disabled, RECORD_BYTES_MAX, Rejection, Unstored};
use crate::collector::Collector;
use crate::decide::{names_or_silent, turned_away};
use crate::endpoint::{Attempt, Endpoint, Posted};
use crate::frame::{self, Outcomes, PartOutcome};
use crate::limits::LARGE_BODY_BYTES;
use crate::metrics::Subject;
use crate::now::Now;
use crate::source_registry::Found;

type Decision = frame::Decision<(), Unstored>;

/// `POST /api/record`
pub(crate) static RECORD: Endpoint<(), Unstored> =
    Endpoint { subject: Subject::Chunks, large_bytes: LARGE_BODY_BYTES, decide, respond };

fn respond(outcomes: Outcomes<(), Unstored>) -> Result<Response, Rejection> {
    match outcomes.into_iter().next() {
        Some(PartOutcome::Stored(())) => Ok(json(StatusCode::OK, CHUNK_JSON.to_owned())),
        Some(PartOutcome::Answered(unstored)) => Ok(json(StatusCode::OK, unstored.to_json().to_owned())),
        Some(PartOutcome::Refused(rejection)) => Err(rejection),
        None => Err(Rejection::Unavailable),
    }
}

/// Decides on a chunk or a heatmap, unless its website has to be looked up first.
fn decide(posted: &Posted<'_>) -> Result<Attempt<(), Unstored>, Rejection> {
    let Posted { collector, client, body, now, websites } = *posted;
    let answer = |unstored| Ok(Attempt::Decided(vec![Decision::Answer(unstored)]));
    let rules = collector.sources.recorder_rules();
    if rules == RecorderRules::Configured && body.len() > RECORD_BYTES_MAX {
        return Err(Rejection::RecordTooLarge { bytes: body.len() });
    }
    let takes_heatmaps = rules != RecorderRules::Recordings;
    let submission = RecorderSubmission::parse(body, takes_heatmaps).map_err(Rejection::Schema)?;
    let is_heatmap = matches!(submission, RecorderSubmission::Heatmap(_));
    let website_id = submission.website_id();
    if submission.is_empty() {
        return answer(Unstored::Empty);
    }
    // A chunk names no distinct id: only its website and its address may be blocked.
    let limits = collector.limiter.of_request(&client.address, now);
    if let Some(rejection) = limits.as_ref().and_then(|limits| limits.blocked(website_id, None, None)) {
        return Err(rejection);
    }
    if client.token.is_none() {
        return Err(Rejection::NoToken);
    }
    let claims = collector.rules.claims(client, now.ms).unwrap_or_default();
    let Some((session_id, visit_id)) = claims.session_id.zip(claims.visit_id) else {
        return Err(Rejection::BadToken);
    };
    let website = match websites.get(website_id) {
        None => return Ok(Attempt::Unknown(vec![website_id])),
        // Before 3.3, Umami does not compare a token with the website, so that a token of any website can write into
        // the recordings of all others.
        Some(Found::Yes(_)) if !names_or_silent(&claims, website_id) => return Err(Rejection::BadToken),
        Some(Found::Yes(website)) => website,
        Some(Found::No) => return Err(Rejection::UnknownWebsite),
        Some(Found::Unsure) => return Err(Rejection::Unavailable),
    };
    let disabled = disabled(&website.recorder, is_heatmap);
    // Since the recorder has a configuration, only its main switch is checked before bots and addresses.
    let is_main = disabled == Some(Disabled::Recorder);
    if let Some(disabled) =
        disabled.filter(|_| is_main || website.recorder.rules != RecorderRules::Configured)
    {
        return answer(refuse(collector, website_id, disabled, now));
    }
    let agent = client.user_agent.as_deref().unwrap_or_default();
    match turned_away(&collector.rules, Some(&website.blocked), &client.address, agent) {
        None => {}
        Some(Ok(ignored)) => return answer(Unstored::Ignored(ignored)),
        Some(Err(rejection)) => return Err(rejection),
    }
    if let Some(disabled) = disabled {
        return answer(refuse(collector, website_id, disabled, now));
    }
    let kind = if is_heatmap { "heatmap" } else { "recording" };
    let record_id = match &client.idempotency_key {
        Some(key) => named_event_id(website_id, &format!("{kind}:{key}")),
        None => Uuid::now_v7(),
    };
    let value = match submission {
        RecorderSubmission::Chunk(submission) => {
            let derives_heatmap = website.recorder.heatmaps != Heatmaps::Off;
            let chunk = Chunk::new(&submission, record_id, session_id, visit_id, now.ms);
            Chunk { derives_heatmap, ..chunk }.encode()
        }
        RecorderSubmission::Heatmap(submission) => {
            HeatmapPost { post_id: record_id, received_at_ms: now.ms, session_id, visit_id, submission }
                .encode()
        }
    };
    let mut decision = Decision::Append(NewRecord { session_id, value }, ());
    if let Some(limits) = limits {
        limits.apply(website_id, &mut decision);
    }
    Ok(Attempt::Decided(vec![decision]))
}

/// The feature that this needs and that the website has turned off, if there is one.
fn disabled(recorder: &Recorder, is_heatmap: bool) -> Option<Disabled> {
    if recorder.rules == RecorderRules::Configured && !recorder.enabled {
        return Some(Disabled::Recorder);
    }
    let (taken, otherwise) = if is_heatmap {
        (recorder.takes_heatmaps(), Disabled::Heatmaps)
    } else {
        (recorder.takes_recordings(), Disabled::Recordings)
    };
    (!taken).then_some(otherwise)
}

fn refuse(collector: &Collector, website_id: Uuid, disabled: Disabled, now: Now) -> Unstored {
    if let Some(refused) = collector.refusals.count(website_id, disabled, now.instant) {
        tracing::info!(
            website = %website_id, reason = disabled.reason(), refused,
            "the website's recorder is refused, because the website has turned that off: turn it on, or take the recorder out of \
             its pages"
        );
    }
    Unstored::Disabled(disabled)
}

/// Refusals that were logged, so that each website and reason is logged once in an interval, with their number.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<(Uuid, Disabled), (Instant, u64)>>);

impl Refusals {
    /// Least time between two log lines of one website and reason.
    const INTERVAL: Duration = Duration::from_secs(600);

    /// Most websites and reasons that are remembered; past that nothing new is logged until an interval is over.
    const REMEMBERED_MAX: usize = 1_000;

    /// Counts a refusal. If it is to be logged, returns the number of refusals since the last one that was logged, this
    /// one included.
    fn count(&self, website_id: Uuid, disabled: Disabled, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |at: Instant| now.saturating_duration_since(at) >= Self::INTERVAL;
        if let Some((at, refused)) = logged.get_mut(&(website_id, disabled)) {
            *refused += 1;
            if !is_over(*at) {
                return None;
            }
            *at = now;
            return Some(std::mem::take(refused));
        }
        if logged.len() >= Self::REMEMBERED_MAX {
            logged.retain(|_, (at, _)| !is_over(*at));
        }
        if logged.len() >= Self::REMEMBERED_MAX {
            return None;
        }
        logged.insert((website_id, disabled), (now, 0));
        Some(1)
    }
}

/// `GET /api/websites/{id}/recorder`: the settings for which Umami's recorder, from 3.2 on, asks before it begins. As
/// in Umami, an unknown website has the answer of a website whose recorder is turned off; a path segment that is no id
/// is not found.
pub async fn recorder(
    State(collector): State<Arc<Collector>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let off = |status| json(status, Recorder::default().to_json());
    let Some(id) = id.ok().and_then(|Path(id)| Uuid::try_parse(&id).ok()) else {
        return off(StatusCode::NOT_FOUND);
    };
    let asked = Instant::now();
    let mut response = match collector.sources.website(id, asked).await {
        Found::Yes(website) => json(StatusCode::OK, website.recorder.to_json()),
        Found::No => off(StatusCode::OK),
        Found::Unsure => return collector.refusal(Rejection::Unavailable),
    };
    let caching = HeaderValue::from_static("public, max-age=60, stale-while-revalidate=300");
    response.headers_mut().insert(header::CACHE_CONTROL, caching);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_website_and_reason_are_logged_once_in_an_interval() {
        let refusals = Refusals::default();
        let (one, two, start) = (Uuid::from_u128(1), Uuid::from_u128(2), Instant::now());
        let counted =
            |id, disabled, after: u64| refusals.count(id, disabled, start + Duration::from_secs(after));
        assert_eq!(counted(one, Disabled::Recordings, 0), Some(1));
        assert_eq!(counted(one, Disabled::Recordings, 1), None);
        assert_eq!(counted(one, Disabled::Heatmaps, 1), Some(1));
        assert_eq!(counted(two, Disabled::Recordings, 1), Some(1));
        assert_eq!(counted(one, Disabled::Recordings, 599), None);
        assert_eq!(counted(one, Disabled::Recordings, 600), Some(3));
        assert_eq!(counted(one, Disabled::Recordings, 601), None);
        for n in 0..2_000 {
            counted(Uuid::from_u128(100 + n), Disabled::Recorder, 602);
        }
        assert_eq!(refusals.0.lock().unwrap().len(), Refusals::REMEMBERED_MAX);
        assert_eq!(counted(Uuid::from_u128(7), Disabled::Recorder, 603), None);
        assert_eq!(counted(Uuid::from_u128(7), Disabled::Recorder, 1_300), Some(1));
    }
}
