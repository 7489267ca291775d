//! `/api/record`: chunks of recordings. Source of the rules: docs/umami-contract.md §14.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use dashi_domain::ids::named_event_id;
use dashi_domain::recording::{Chunk, ChunkSubmission};
use dashi_event_log::Entry;
use http::{Request, StatusCode};
use uuid::Uuid;

use crate::answer::{CHUNK_JSON, Rejection, Unstored, json_response};
use crate::client::Client;
use crate::collector::{Collector, Look, Now, Websites};
use crate::decide::{names_or_silent, turned_away};
use crate::frame::{self, Outcome, Plan};
use crate::metrics::Subject;
use crate::sources::Found;

type Decision = frame::Decision<(), Unstored>;

/// `POST /api/record`.
pub async fn record(State(collector): State<Collector>, request: Request<Body>) -> Response {
    let client = collector.client(&request);
    let origin = collector.origin(&client, &request);
    let frame = match collector.enter(Subject::Chunks, origin, &request) {
        Ok(frame) => frame,
        Err(rejection) => return collector.refusal(rejection),
    };
    frame
        .answer(async {
            let body = collector.read(request.into_body(), origin).await?;
            let now = Now::read();
            let look = |websites: &Websites<'_>| decide(&collector, &client, &body.bytes, now, websites);
            let decision = collector.looking(&body, false, now, look).await?;
            let respond = |outcomes: Vec<Outcome<(), Unstored>>| match outcomes.into_iter().next() {
                Some(Outcome::Stored(())) => Ok(json_response(StatusCode::OK, CHUNK_JSON.to_owned())),
                Some(Outcome::Answered(unstored)) => {
                    Ok(json_response(StatusCode::OK, unstored.to_json().to_owned()))
                }
                Some(Outcome::Refused(rejection)) => Err(rejection),
                None => Err(Rejection::Unavailable),
            };
            Ok(Plan { decisions: vec![decision], share: Some(body.into_share()), respond })
        })
        .await
}

/// Decides a chunk, as far as the websites are known that it takes.
fn decide(
    collector: &Collector,
    client: &Client,
    body: &[u8],
    now: Now,
    websites: &Websites<'_>,
) -> Result<Look<Decision>, Rejection> {
    let submission = ChunkSubmission::parse(body).map_err(Rejection::Schema)?;
    let website_id = submission.website_id;
    if submission.events.is_empty() {
        return Ok(Look::Decided(Decision::Answer(Unstored::Empty)));
    }
    if client.token.is_none() {
        return Err(Rejection::NoToken);
    }
    let claims = collector.claims(client, now.ms).unwrap_or_default();
    let Some((session_id, visit_id)) = claims.session_id.zip(claims.visit_id) else {
        return Err(Rejection::BadToken);
    };
    match websites.get(website_id) {
        None => return Ok(Look::Unknown(vec![website_id])),
        // Umami compares no token with the website, so one of any website fills the recordings of all others.
        Some(Found::Yes(_)) if !names_or_silent(&claims, website_id) => return Err(Rejection::BadToken),
        Some(Found::Yes(website)) if website.takes_recordings => {}
        Some(Found::Yes(_)) => return Ok(Look::Decided(Decision::Answer(Unstored::Disabled))),
        Some(Found::No) => return Err(Rejection::UnknownWebsite),
        Some(Found::Unsure) => return Err(Rejection::Unavailable),
    }
    let agent = client.user_agent.as_deref().unwrap_or_default();
    match turned_away(collector.rules(), &client.address, agent) {
        None => {}
        Some(Ok(_)) => return Ok(Look::Decided(Decision::Answer(Unstored::Bot))),
        Some(Err(rejection)) => return Err(rejection),
    }
    let chunk_id = match &client.idempotency_key {
        Some(key) => named_event_id(website_id, &format!("recording:{key}")),
        None => Uuid::now_v7(),
    };
    let value = Chunk::new(&submission, chunk_id, session_id, visit_id, now.ms).encode();
    Ok(Look::Decided(Decision::Append(Entry { session_id, value }, ())))
}
