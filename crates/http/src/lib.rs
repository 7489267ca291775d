//! The HTTP server below `ingest` and `api`: it accepts connections up to a limit, bounds the time and the memory that
//! each client may cost, and drains all connections on request. It knows nothing of events.
//!
//! * [`serve`]: the accept loop. `open` holds the open connections, `connection` serves one of them
//! * [`Outgoing`]: the state of a connection, among every request's extensions; `transport` keeps it up to date and
//!   closes a connection whose client exceeds its time
//! * [`Deadlines`]: until when a request and its body must have arrived
//! * [`event_stream`]: an answer of server-sent events
//! * [`answer`], [`headers`], [`conditional`]: JSON answers, common headers, `If-None-Match`
//! * [`register`]: registers a metric; [`Repeated`]: limits how often a warning is logged

pub mod answer;
pub mod conditional;
mod connection;
mod deadlines;
mod event_stream;
pub mod headers;
mod metrics;
mod open;
mod outgoing;
mod repeated;
mod server;
mod transport;

pub use connection::Peer;
pub use deadlines::{Deadlines, Overdue};
pub use event_stream::{EventSender, StreamEnd, event_stream};
pub use metrics::{ServerMetrics, register};
pub use outgoing::Outgoing;
pub use repeated::Repeated;
pub use server::{ServerLimits, serve};
