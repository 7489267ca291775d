//! The paths, and the parameters that each takes.

use axum::Router;
use axum::routing::get;

use super::{events, openapi, sessions, traffic, websites};
use crate::api::Api;

/// A path and the parameters of its query, in groups.
#[derive(Debug)]
pub struct Route {
    /// The path; a name in braces stands for a segment.
    pub path: &'static str,
    /// The names of its parameters.
    pub parameters: &'static [&'static [&'static str]],
}

impl Route {
    /// Whether it takes a parameter of this name.
    pub fn takes(&self, name: &str) -> bool {
        self.parameters.iter().any(|group| group.contains(&name))
    }
}

const TIME: &[&str] = &["startAt", "endAt"];
const ZONE: &[&str] = &["timezone"];
const UNIT: &[&str] = &["unit"];
const COMPARE: &[&str] = &["compare"];
const ROWS: &[&str] = &["limit", "offset"];
const TYPE: &[&str] = &["type"];
const SEARCH: &[&str] = &["search"];
const PAGE: &[&str] = &["page", "pageSize"];
const ORDER: &[&str] = &["orderBy", "sortDescending"];

/// The parameters by which events are filtered. The last two are known and refused: without them the answer would be
/// about other events than those that were asked for.
pub const FILTERS: &[&str] = &[
    "path",
    "url",
    "query",
    "title",
    "referrer",
    "hostname",
    "host",
    "tag",
    "event",
    "utmSource",
    "utmMedium",
    "utmCampaign",
    "utmContent",
    "utmTerm",
    "browser",
    "os",
    "device",
    "screen",
    "language",
    "country",
    "region",
    "city",
    "distinctId",
    "match",
    "eventType",
    "excludeBounce",
    "segment",
    "cohort",
];

pub const WEBSITES: Route = Route { path: "/api/websites", parameters: &[SEARCH, PAGE, ORDER] };
pub const WEBSITE: Route = Route { path: "/api/websites/{website}", parameters: &[] };
pub const STATS: Route =
    Route { path: "/api/websites/{website}/stats", parameters: &[TIME, ZONE, COMPARE, FILTERS] };
pub const PAGEVIEWS: Route =
    Route { path: "/api/websites/{website}/pageviews", parameters: &[TIME, ZONE, UNIT, COMPARE, FILTERS] };
pub const METRICS: Route =
    Route { path: "/api/websites/{website}/metrics", parameters: &[TIME, TYPE, SEARCH, ROWS, FILTERS] };
pub const EXPANDED: Route = Route {
    path: "/api/websites/{website}/metrics/expanded",
    parameters: &[TIME, TYPE, SEARCH, ROWS, FILTERS],
};
pub const ACTIVE: Route = Route { path: "/api/websites/{website}/active", parameters: &[] };
pub const DATE_RANGE: Route = Route { path: "/api/websites/{website}/daterange", parameters: &[] };
pub const EVENTS: Route =
    Route { path: "/api/websites/{website}/events", parameters: &[TIME, SEARCH, PAGE, FILTERS] };
pub const EVENT_SERIES: Route =
    Route { path: "/api/websites/{website}/events/series", parameters: &[TIME, ZONE, UNIT, FILTERS] };
pub const EVENT_DATA: Route = Route { path: "/api/websites/{website}/event-data/{event}", parameters: &[] };
pub const SESSIONS: Route =
    Route { path: "/api/websites/{website}/sessions", parameters: &[TIME, SEARCH, PAGE, ORDER, FILTERS] };
pub const SESSION_STATS: Route =
    Route { path: "/api/websites/{website}/sessions/stats", parameters: &[TIME, FILTERS] };
pub const SESSION: Route = Route { path: "/api/websites/{website}/sessions/{session}", parameters: &[] };
pub const ACTIVITY: Route =
    Route { path: "/api/websites/{website}/sessions/{session}/activity", parameters: &[TIME] };
pub const PROPERTIES: Route =
    Route { path: "/api/websites/{website}/sessions/{session}/properties", parameters: &[] };

pub const DESCRIPTION: Route = Route { path: "/api/openapi.json", parameters: &[] };

/// All of them.
pub const ROUTES: [&Route; 17] = [
    &WEBSITES,
    &WEBSITE,
    &STATS,
    &PAGEVIEWS,
    &METRICS,
    &EXPANDED,
    &ACTIVE,
    &DATE_RANGE,
    &EVENTS,
    &EVENT_SERIES,
    &EVENT_DATA,
    &SESSIONS,
    &SESSION_STATS,
    &SESSION,
    &ACTIVITY,
    &PROPERTIES,
    &DESCRIPTION,
];

/// The endpoints.
pub fn router() -> Router<Api> {
    Router::new()
        .route(WEBSITES.path, get(websites::list))
        .route(WEBSITE.path, get(websites::one))
        .route(STATS.path, get(traffic::stats))
        .route(PAGEVIEWS.path, get(traffic::pageviews))
        .route(METRICS.path, get(traffic::metrics))
        .route(EXPANDED.path, get(traffic::expanded))
        .route(ACTIVE.path, get(traffic::active))
        .route(DATE_RANGE.path, get(websites::date_range))
        .route(EVENTS.path, get(events::list))
        .route(EVENT_SERIES.path, get(events::series))
        .route(EVENT_DATA.path, get(events::data))
        .route(SESSIONS.path, get(sessions::list))
        .route(SESSION_STATS.path, get(sessions::stats))
        .route(SESSION.path, get(crate::read::session))
        .route(ACTIVITY.path, get(sessions::activity))
        .route(PROPERTIES.path, get(sessions::properties))
        .route(DESCRIPTION.path, get(openapi::description))
}
