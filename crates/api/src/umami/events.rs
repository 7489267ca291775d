//! Events: a list, a series by name, and what came with one.

use axum::extract::State;
use axum::response::Response;
use dashi_domain::buckets::buckets;
use dashi_store::EventRow;
use http::StatusCode;
use http::request::Parts;
use uuid::Uuid;

use super::asked::{unit, zone};
use super::params::Params;
use super::routes::{EVENT_SERIES, EVENTS};
use super::sessions::{attributes, property_members};
use super::traffic::start;
use super::websites::paged;
use crate::answer::json;
use crate::api::Api;
use crate::read::{PathOf, id, parts};
use crate::write::{Object, array};

/// Most points of a series, and most properties of an event.
const POINTS_MAX: u32 = 10_000;
const PROPERTIES_MAX: u32 = 1_000;

/// `GET …/events`
pub async fn list(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&EVENTS, request.uri.query())?;
        let page = params.page()?;
        let search = params.text("search").unwrap_or_default().to_owned();
        let question = api.question(website_id, &params).await?;
        let asking = api.ask(move |questions| async move {
            questions.events(&question, &search, page.size, page.offset()).await
        });
        let (events, count) = asking.await?;
        let rows = events.iter().map(|event| event_json(website_id, event));
        Ok(json(StatusCode::OK, paged(rows, count, page)))
    };
    api.answer(&request, work).await
}

fn event_json(website_id: Uuid, event: &EventRow) -> String {
    let row = &event.activity;
    let object = Object::new()
        .text("id", &row.event_id.to_string())
        .text("websiteId", &website_id.to_string())
        .text("sessionId", &event.session_id.to_string())
        .optional("visitId", row.visit_id.map(|id| id.to_string()).as_deref())
        .moment("createdAt", row.created_at_ms)
        .optional("hostname", row.hostname.as_deref())
        .optional("urlPath", row.url_path.as_deref())
        .optional("urlQuery", row.url_query.as_deref())
        .optional("referrerPath", event.referrer_path.as_deref())
        .optional("referrerQuery", event.referrer_query.as_deref())
        .optional("referrerDomain", row.referrer_domain.as_deref())
        .optional("distinctId", event.attributes.distinct_id.as_deref());
    attributes(object, &event.attributes)
        .optional("pageTitle", event.page_title.as_deref())
        .json("eventType", &row.event_type.to_string())
        .optional("eventName", row.event_name.as_deref())
        .optional("tag", event.tag.as_deref())
        .json("hasData", if row.has_data { "1" } else { "0" })
        .end()
}

/// `GET …/events/series`
pub async fn series(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&EVENT_SERIES, request.uri.query())?;
        let zone = zone(&params)?;
        let question = api.question(website_id, &params).await?;
        let buckets = buckets(question.start_ms, question.end_ms, unit(&params, &question)?, &zone);
        let within = buckets.clone();
        let asking =
            api.ask(
                move |questions| async move { questions.event_series(&question, &within, POINTS_MAX).await },
            );
        let points = asking.await?;
        let points = points.iter().filter_map(|point| {
            let bucket = buckets.get(point.bucket)?;
            let object = Object::new().optional("x", point.name.as_deref()).text("t", &start(bucket));
            Some(object.json("y", &point.count.to_string()).end())
        });
        Ok(json(StatusCode::OK, array(points)))
    };
    api.answer(&request, work).await
}

/// `GET …/event-data/{eventId}`
pub async fn data(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, event) = parts(path)?;
        let (website_id, event_id) = (id(&website)?, id(&event)?);
        api.since_ms(website_id).await?;
        let asking = api.ask(move |questions| async move {
            questions.event_properties(website_id, event_id, PROPERTIES_MAX).await
        });
        let rows = asking.await?;
        let rows = rows.iter().map(|row| {
            let mut object = Object::new().text("websiteId", &website_id.to_string());
            if let Some((session_id, path, name)) = &row.event {
                object = object
                    .text("sessionId", &session_id.to_string())
                    .text("eventId", &event_id.to_string())
                    .optional("urlPath", path.as_deref())
                    .optional("eventName", name.as_deref());
            }
            property_members(object, row).end()
        });
        Ok(json(StatusCode::OK, array(rows)))
    };
    api.answer(&request, work).await
}
