//! The collector: HTTP in, event log out. It decides nothing that needs another request's outcome, and answers 2xx with
//! a token only when the record is durable (I1). Of the store it knows only the sources of events: websites, links and
//! pixels. README.md draws the way of a request.
//!
//! * [`Collector::router`]: the endpoints (`routes`). `endpoint` is the way of a request with a body; `events`,
//!   `recorder` and `visit` decide and answer posts and visits, `script` serves the tracker
//! * `frame`: a request's slot, time and outcome, also when its client hangs up
//! * `decide`: one submission and its circumstances in, a decision out; no I/O
//! * [`Past`]: decides about requests of the past, which an import reads from files
//! * `rules`, `limits`: the settings that hold for every request
//! * [`Limiter`]: the limits of what is taken in, off by default; `limits_file` is its file, [`BacklogGate`] the age of the
//!   backlog, `usages` the memory of rates and numbers

mod answer;
mod append;
mod backlog;
mod body;
mod client;
mod collector;
mod decide;
mod endpoint;
mod events;
mod finishing;
mod frame;
mod geo;
mod id_cache;
mod limiter;
mod limits;
mod limits_file;
mod metrics;
mod now;
mod origin;
mod past;
mod recorder;
mod request_span;
mod routes;
mod rules;
mod script;
mod session_ids;
mod slots;
mod source_registry;
mod tallies;
mod usages;
mod visit;
mod websites;

// Shared with the fuzz target and with the tests on real servers.
#[cfg(test)]
#[path = "../../../tests/support/any_body.rs"]
mod any_body;
#[cfg(test)]
#[path = "../../domain/fuzz/src/whole.rs"]
mod whole;

pub use backlog::{BacklogGate, BacklogGateSettings, BacklogState, PartitionAge};
pub use collector::{Collector, CollectorSettings};
pub use geo::{GeoDatabase, GeoKeeper};
pub use limiter::{Limiter, LimiterSettings};
pub use limits_file::{LimitsFileKeeper, WatchedFile, check_limits_file, rate_limit};
pub use metrics::IngestMetrics;
pub use past::{Past, PastDecision, PastRequest, PastRules};
pub use routes::{PATHS, SCRIPT_PATH, SEND_PATH};
pub use script::{ScriptSettings, files_beside};
pub use session_ids::SessionIds;
pub use source_registry::{SourceRegistry, SourceRegistrySettings};
pub use tallies::{Tallies, TallyKey};
