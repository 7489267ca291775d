//! `/api/record`: chunks of recordings. Source of the rules: docs/umami-contract.md §14.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use dashi_domain::ids::named_event_id;
use dashi_domain::recording::{Chunk, ChunkSubmission};
use dashi_event_log::Entry;
use http::{Request, StatusCode};
use uuid::Uuid;

use crate::answer::{Accepted, Rejection, Taken, json_response};
use crate::collector::{Collector, Now, parsing};
use crate::decide::{names_or_silent, turned_away};
use crate::sources::Found;

/// `POST /api/record`.
pub async fn record(State(collector): State<Collector>, request: Request<Body>) -> Response {
    collector
        .bounded(async {
            let taken = take(&collector, request).await;
            collector.metrics().count_chunk(taken.as_ref());
            match taken {
                Ok(taken) => Ok(json_response(StatusCode::OK, taken.to_json().to_owned())),
                Err(rejection) => Ok(collector.refuse(rejection)),
            }
        })
        .await
}

async fn take(collector: &Collector, request: Request<Body>) -> Result<Taken, Rejection> {
    let client = collector.client(&request);
    let body = collector.read(request.into_body()).await?;
    let now = Now::read();
    let submission = parsing(&body, || ChunkSubmission::parse(&body.bytes)).map_err(Rejection::Schema)?;
    if submission.events.is_empty() {
        return Ok(Taken::Empty);
    }
    if client.token.is_none() {
        return Err(Rejection::NoToken);
    }
    let claims = collector.claims(&client, now.ms).unwrap_or_default();
    let Some((session_id, visit_id)) = claims.session_id.zip(claims.visit_id) else {
        return Err(Rejection::BadToken);
    };
    match collector.sources().website(submission.website_id, now.instant).await {
        // Umami compares no token with the website, so one of any website fills the recordings of all others.
        Found::Yes(_) if !names_or_silent(&claims, submission.website_id) => return Err(Rejection::BadToken),
        Found::Yes(website) if website.takes_recordings => {}
        Found::Yes(_) => return Ok(Taken::Disabled),
        Found::No => return Err(Rejection::UnknownWebsite),
        Found::Unsure => return Err(Rejection::Unavailable),
    }
    let agent = client.user_agent.as_deref().unwrap_or_default();
    match turned_away(collector.rules(), &client.address, agent) {
        None => {}
        Some(Ok(Accepted::Bot | Accepted::Event { .. })) => return Ok(Taken::Bot),
        Some(Err(rejection)) => return Err(rejection),
    }
    let chunk_id = match &client.idempotency_key {
        Some(key) => named_event_id(submission.website_id, &format!("recording:{key}")),
        None => Uuid::now_v7(),
    };
    let value = parsing(&body, || Chunk::new(&submission, chunk_id, session_id, visit_id, now.ms).encode());
    drop(submission);
    let _share = body.into_share();
    collector.append(vec![Entry { session_id, value }]).await.pop().unwrap_or(Err(Rejection::Unavailable))?;
    Ok(Taken::Stored)
}
