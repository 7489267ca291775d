//! Umami's read API: websites, their traffic, sessions and events, with the parameters and shapes of its public
//! documentation. docs/read-api.md has the differences.
//!
//! * `params`: a request's query, read by name within what the route takes
//! * `asked`: a question of these parameters: website, time, filters
//! * `websites`, `traffic`, `sessions`, `events`: the endpoints
//! * `routes`: every path with the parameters that it takes; `openapi`: their description

mod asked;
mod events;
mod openapi;
mod params;
mod routes;
mod sessions;
mod traffic;
mod websites;

pub use self::routes::{ROUTES, router};
pub use self::sessions::session_json;
