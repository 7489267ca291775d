//! The read side over HTTP: websites and their traffic, in Umami's shapes; people, their sessions and journeys, and changes
//! as they happen. Requests need an API key; where none is set, this machine may read traffic (`keys::may_read`). A page reads
//! its own person with a signature. Nothing is written here.
//!
//! * [`Api::router`]: the endpoints
//! * `me`: a page's own person
//! * `stream`: one connection that is notified of changes. It holds no queue: a change marks it, and it reads the
//!   present state when the last event was written
//! * `fan_out`: the way from a change in the store to the streams that show it
//! * `umami`: websites, traffic, sessions and events
//! * `cursor`, `keys`, `write`: positions in lists, API keys, JSON

mod answer;
mod api;
mod cursor;
mod fan_out;
mod keys;
mod me;
mod metrics;
mod read;
mod routes;
mod stream;
mod umami;
mod write;

pub use api::{Api, ApiSettings};
pub use keys::{Keys, may_read};
pub use metrics::ApiMetrics;
pub use routes::PATHS;
