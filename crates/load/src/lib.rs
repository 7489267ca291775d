//! The load generator behind `dashi bench`: realistic events over many keep-alive connections, and a
//! report of the answers, their latencies and the acknowledged events.
//!
//! Three decisions explain the rest:
//!
//! - **It must cost little.** Generator, collector, broker and database often share two cores, so what
//!   the generator burns is missing from the figures. It therefore writes HTTP/1.1 by hand ([`Connection`]),
//!   fills prepared payload templates, and lives on one thread of its own, which also makes its
//!   processor time measurable apart from a server in the same process.
//! - **A failed request is never repeated.** Nothing in the protocol identifies a request, so a repeat
//!   could store an event twice. Every event carries a mark used once; see [`LoadPlan::record_acknowledged`].
//! - **An open loop keeps its schedule.** Latency counts from the time a request was due, so a server
//!   that stalls cannot hide the requests it kept from being sent (coordinated omission).
//!
//! Event `n` of a run (its kind, session and variant) depends on the seed and `n` alone, not on timing.

mod answer;
mod comparison;
mod connection;
mod cpu;
mod error;
mod job;
mod journal;
mod payload;
mod plan;
mod random;
mod report;
mod run;
mod schedule;
mod verdict;
mod worker;

pub use comparison::{Comparison, Ratio, Side, Spread};
pub use connection::{Connection, ConnectionError, Response, Target};
pub use error::LoadError;
pub use journal::{Acknowledged, read_acknowledged};
pub use plan::{EventKind, LoadPlan, Mix, Mode, Requests};
pub use report::{ByKind, Counts, Errors, Latency, Limit, Report, Snapshot};
pub use run::run;
