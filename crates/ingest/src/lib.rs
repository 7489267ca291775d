//! The collector: HTTP in, event log out. It decides nothing that needs another request's outcome, and answers
//! 2xx with a token only when the record is durable (I1). It knows of the store only what collects: websites, links
//! and pixels.
//!
//! * [`Collector::router`]: the endpoints (`routes`); `visit`, `recorder` and `script` hold those beside `/api/send`
//! * `frame`: what holds a request's place, gauge and outcome, also when its client hangs up
//! * `decide`: one submission and its circumstances in, an outcome out; no I/O

mod answer;
mod body;
mod client;
mod collector;
mod decide;
mod frame;
mod geo;
mod metrics;
mod recorder;
mod routes;
mod script;
mod session_ids;
mod source_registry;
mod visit;

// Shared with the fuzz target and with the tests on real servers.
#[cfg(test)]
#[path = "../../../tests/support/any_body.rs"]
mod any_body;
#[cfg(test)]
#[path = "../../domain/fuzz/src/whole.rs"]
mod whole;

pub use collector::{Collector, CollectorSettings};
pub use geo::{GeoDatabase, GeoKeeper};
pub use metrics::IngestMetrics;
pub use script::{ScriptSettings, vitals_path};
pub use session_ids::SessionIds;
pub use source_registry::{SourceRegistry, SourceRegistrySettings};
