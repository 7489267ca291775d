//! The read side of profiles: people, their sessions and journeys over HTTP, and changes as they happen. Every request
//! needs an API key. Nothing is written here.
//!
//! * [`Api::router`]: the endpoints
//! * `stream`: one connection that is notified of changes. It holds no queue: a change marks it, and it reads the
//!   present state when the last event was written
//! * `fan_out`: the way from a change in the store to the streams that show it
//! * `cursor`, `keys`, `write`: positions in lists, API keys, traits as JSON

mod answer;
mod api;
mod cursor;
mod fan_out;
mod keys;
mod metrics;
mod read;
mod routes;
mod stream;
mod write;

pub use api::{Api, ApiSettings};
pub use keys::Keys;
pub use metrics::ApiMetrics;
pub use routes::PATHS;
