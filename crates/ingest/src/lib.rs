//! The collector: HTTP in, event log out. It decides nothing that needs another request's outcome, and answers
//! 2xx with a token only when the record is durable (I1). It knows of the store only the list of websites.
//!
//! * [`server`]: connections, their limits, and draining them
//! * [`Collector::router`]: `/api/send`, `/api/batch`, `/api/heartbeat`
//! * `decide`: one submission and its circumstances in, an outcome out; no I/O

mod answer;
mod body;
mod client;
mod collector;
mod decide;
mod geo;
mod metrics;
pub mod server;
mod websites;

pub use collector::{Collector, CollectorSettings};
pub use geo::{GeoDatabase, GeoKeeper};
pub use metrics::IngestMetrics;
pub use websites::{Websites, WebsitesSettings};
