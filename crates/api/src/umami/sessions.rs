//! Sessions: a list, one, its events and its properties.

use axum::extract::State;
use axum::response::Response;
use dashi_domain::rows::SessionAttributes;
use dashi_store::{ActivityRow, PropertyRow, Question, SessionOrder, SessionRow, SessionTraits};
use http::StatusCode;
use http::request::Parts;
use uuid::Uuid;

use super::asked::time;
use super::params::Params;
use super::routes::{ACTIVITY, SESSION_STATS, SESSIONS};
use super::websites::{SWITCH, paged};
use crate::answer::{Refusal, json};
use crate::api::Api;
use crate::read::{PathOf, id, parts, with_traits};
use crate::write::{Object, array, number};

/// Most events of a session that are shown, and most properties.
const EVENTS_MAX: u32 = 500;
const PROPERTIES_MAX: u32 = 1_000;

/// The words of `orderBy`.
pub const ORDERS: [(&str, SessionOrder); 6] = [
    ("lastAt", SessionOrder::LastAt),
    ("createdAt", SessionOrder::LastAt),
    ("firstAt", SessionOrder::FirstAt),
    ("visits", SessionOrder::Visits),
    ("views", SessionOrder::Views),
    ("events", SessionOrder::Events),
];

/// `GET …/sessions`
pub async fn list(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&SESSIONS, request.uri.query())?;
        let page = params.page()?;
        let order = params.word("orderBy", &ORDERS)?.unwrap_or(SessionOrder::LastAt);
        let descending = params.word("sortDescending", &SWITCH)?.unwrap_or(true);
        let search = params.text("search").unwrap_or_default().to_owned();
        let question = api.question(website_id, &params).await?;
        let asking = api.ask(move |questions| async move {
            questions.sessions(&question, &search, (order, descending), page.size, page.offset()).await
        });
        let (sessions, count) = asking.await?;
        let rows = sessions.iter().map(|session| {
            let object =
                session_members(website_id, session).optional("hostname", session.hostname.as_deref());
            object.moment("createdAt", session.last_at_ms).end()
        });
        Ok(json(StatusCode::OK, paged(rows, count, page)))
    };
    api.answer(&request, work).await
}

fn session_members(website_id: Uuid, session: &SessionRow) -> Object {
    let object = Object::new()
        .text("id", &session.session_id.to_string())
        .text("websiteId", &website_id.to_string())
        .optional("distinctId", session.attributes.distinct_id.as_deref());
    attributes(object, &session.attributes)
        .moment("firstAt", session.first_at_ms)
        .moment("lastAt", session.last_at_ms)
        .json("visits", &session.visits.to_string())
        .json("views", &session.views.to_string())
        .json("events", &session.events.to_string())
}

/// The members of a session's attributes, but its distinct id.
pub fn attributes(object: Object, attributes: &SessionAttributes) -> Object {
    object
        .optional("browser", attributes.browser.as_deref())
        .optional("os", attributes.os.as_deref())
        .optional("device", attributes.device.as_deref())
        .optional("screen", attributes.screen.as_deref())
        .optional("language", attributes.language.as_deref())
        .optional("country", attributes.country.as_deref())
        .optional("region", attributes.region.as_deref())
        .optional("city", attributes.city.as_deref())
}

/// One session: as Umami shows it, if it has a row, and its effective traits.
pub fn session_json(session: Option<&SessionRow>, traits: &SessionTraits) -> String {
    let object = match session {
        Some(session) => {
            session_members(traits.website_id, session).json("totaltime", &session.seconds.to_string())
        }
        None => Object::new()
            .text("id", &traits.session_id.to_string())
            .text("websiteId", &traits.website_id.to_string()),
    };
    with_traits(object, traits).end()
}

/// `GET …/sessions/stats`
pub async fn stats(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&SESSION_STATS, request.uri.query())?;
        let question = api.question(website_id, &params).await?;
        let asking = api.ask(move |questions| async move { questions.session_totals(&question).await });
        let totals = asking.await?;
        let object = [
            ("pageviews", totals.pageviews),
            ("visitors", totals.visitors),
            ("visits", totals.visits),
            ("countries", totals.countries),
            ("events", totals.events),
        ]
        .iter()
        .fold(Object::new(), |object, (name, value)| {
            object.json(name, &Object::new().json("value", &value.to_string()).end())
        });
        Ok(json(StatusCode::OK, object.end()))
    };
    api.answer(&request, work).await
}

/// `GET …/sessions/{sessionId}/activity`
pub async fn activity(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, session) = parts(path)?;
        let (website_id, session_id) = (id(&website)?, id(&session)?);
        let params = Params::parse(&ACTIVITY, request.uri.query())?;
        let (start_ms, end_ms) = time(&params)?;
        let since_ms = api.since_ms(website_id).await?;
        let question = Question::of(website_id, start_ms.max(since_ms), end_ms);
        let asking = api.ask(move |questions| async move {
            let is_there = questions.session(website_id, session_id).await?.is_some();
            let rows = questions.activity(&question, session_id, EVENTS_MAX).await?;
            Ok(is_there.then_some(rows))
        });
        let rows = asking.await?.ok_or(Refusal::NotFound)?;
        let rows = rows.iter().map(|row| activity_members(Object::new(), row).end());
        Ok(json(StatusCode::OK, array(rows)))
    };
    api.answer(&request, work).await
}

fn activity_members(object: Object, row: &ActivityRow) -> Object {
    object
        .moment("createdAt", row.created_at_ms)
        .optional("hostname", row.hostname.as_deref())
        .optional("urlPath", row.url_path.as_deref())
        .optional("urlQuery", row.url_query.as_deref())
        .optional("referrerDomain", row.referrer_domain.as_deref())
        .text("eventId", &row.event_id.to_string())
        .json("eventType", &row.event_type.to_string())
        .optional("eventName", row.event_name.as_deref())
        .optional("visitId", row.visit_id.map(|id| id.to_string()).as_deref())
        .json("hasData", if row.has_data { "1" } else { "0" })
}

/// `GET …/sessions/{sessionId}/properties`
pub async fn properties(State(api): State<Api>, path: PathOf<(String, String)>, request: Parts) -> Response {
    let work = async {
        let (website, session) = parts(path)?;
        let (website_id, session_id) = (id(&website)?, id(&session)?);
        api.since_ms(website_id).await?;
        let asking = api.ask(move |questions| async move {
            let is_there = questions.session(website_id, session_id).await?.is_some();
            let rows = questions.session_properties(website_id, session_id, PROPERTIES_MAX).await?;
            Ok(is_there.then_some(rows))
        });
        let rows = asking.await?.ok_or(Refusal::NotFound)?;
        let rows = rows.iter().map(|row| {
            let object = Object::new()
                .text("websiteId", &website_id.to_string())
                .text("sessionId", &session_id.to_string());
            property_members(object, row).end()
        });
        Ok(json(StatusCode::OK, array(rows)))
    };
    api.answer(&request, work).await
}

/// The members of a property.
pub fn property_members(object: Object, row: &PropertyRow) -> Object {
    let value = row.number_value.map(number);
    object
        .text("dataKey", &row.data_key)
        .json("dataType", &row.data_type.to_string())
        .optional("stringValue", row.string_value.as_deref())
        .json("numberValue", value.as_deref().unwrap_or("null"))
        .optional_moment("dateValue", row.date_value_ms)
        .moment("createdAt", row.created_at_ms)
}
