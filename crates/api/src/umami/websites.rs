//! The websites, and the time that the events of one cover.

use axum::extract::State;
use axum::response::Response;
use dashi_store::{WebsiteOrder, WebsiteRow};
use http::StatusCode;
use http::request::Parts;

use super::params::{Page, Params};
use super::routes::{DATE_RANGE, WEBSITES};
use crate::answer::{Refusal, json};
use crate::api::Api;
use crate::read::{PathOf, id, parts};
use crate::write::{Object, array};

/// The words of `orderBy`.
pub const ORDERS: [(&str, WebsiteOrder); 3] =
    [("name", WebsiteOrder::Name), ("domain", WebsiteOrder::Domain), ("createdAt", WebsiteOrder::CreatedAt)];

/// The words of a switch.
pub const SWITCH: [(&str, bool); 4] = [("true", true), ("false", false), ("1", true), ("0", false)];

/// `GET /api/websites`
pub async fn list(State(api): State<Api>, request: Parts) -> Response {
    let work = async {
        let params = Params::parse(&WEBSITES, request.uri.query())?;
        let page = params.page()?;
        let order = params.word("orderBy", &ORDERS)?.unwrap_or(WebsiteOrder::Name);
        let descending = params.word("sortDescending", &SWITCH)?.unwrap_or(false);
        let search = params.text("search").unwrap_or_default().to_owned();
        let asking = api.ask(move |questions| async move {
            questions.websites(&search, (order, descending), page.size, page.offset()).await
        });
        let (websites, count) = asking.await?;
        Ok(json(StatusCode::OK, paged(websites.iter().map(website_json), count, page)))
    };
    api.answer(&request, work).await
}

/// A page of a list, in Umami's envelope.
pub fn paged(rows: impl IntoIterator<Item = String>, count: u64, page: Page) -> String {
    Object::new()
        .json("data", &array(rows))
        .json("count", &count.to_string())
        .json("page", &page.number.to_string())
        .json("pageSize", &page.size.to_string())
        .end()
}

/// `GET /api/websites/{websiteId}`
pub async fn one(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let asking = api.ask(move |questions| async move { questions.website(website_id).await });
        let website = asking.await?.ok_or(Refusal::NotFound)?;
        Ok(json(StatusCode::OK, website_json(&website)))
    };
    api.answer(&request, work).await
}

fn website_json(website: &WebsiteRow) -> String {
    let optional_id = |id: Option<uuid::Uuid>| id.map(|id| id.to_string());
    Object::new()
        .text("id", &website.website_id.to_string())
        .text("name", &website.name)
        .optional("domain", website.domain.as_deref())
        .json("shareId", "null")
        .optional_moment("resetAt", website.reset_at_ms)
        .optional("userId", optional_id(website.user_id).as_deref())
        .optional("teamId", optional_id(website.team_id).as_deref())
        .optional("createdBy", optional_id(website.created_by).as_deref())
        .optional_moment("createdAt", website.created_at_ms)
        .optional_moment("updatedAt", website.updated_at_ms)
        .json("deletedAt", "null")
        .end()
}

/// `GET …/daterange`
pub async fn date_range(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        Params::parse(&DATE_RANGE, request.uri.query())?;
        let since_ms = api.since_ms(website_id).await?;
        let asking =
            api.ask(move |questions| async move { questions.date_range(website_id, since_ms).await });
        let (first, last) = asking.await?.unzip();
        let range = Object::new().optional_moment("startDate", first).optional_moment("endDate", last);
        Ok(json(StatusCode::OK, range.end()))
    };
    api.answer(&request, work).await
}
