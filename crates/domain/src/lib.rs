//! The rules of events: their form, their identifiers, and the rows that a run of records folds into.
//!
//! Pure and synchronous: no runtime, no driver, no clock. Time arrives as an argument, so the same records
//! give the same rows today and in a replay next year (I5).
//!
//! * requests: [`json`], [`schema`], [`submission`], [`chunk`], [`heatmap`], [`client_address`], [`location`]
//! * computed at ingest: [`ids`], [`token`], [`calendar`]
//! * records in the log: [`record`], [`log_record`], [`imported`], [`position`], [`partitioner`], [`layout`]; records that are lost:
//!   [`missing`]; counting them: [`glance`]; commands among them: [`erasure`], [`dead_letters`];
//!   waiting behind a record that cannot be applied: [`parking`]; applied before a backlog: [`tail`]; keeping them while the log is
//!   away: [`spool`]
//! * the fold and its rows: [`fold`], [`rows`], [`session`], [`profile`] and their parts [`agent`], [`page_url`],
//!   [`flatten`], [`decimal`], [`text`]
//! * applied events in a few words: [`applied`]
//! * limits of what is taken: [`rate`], [`networks`], [`backlog`]; keys of readers: [`api_key`]
//! * series: [`buckets`]; signed distinct ids: [`identity`]
//! * tasks of a process that are stuck: [`liveness`]; spans for OpenTelemetry: [`spans`]
//! * versions of the rules: [`umami`]

pub mod agent;
pub mod api_key;
pub mod applied;
pub mod backlog;
pub mod buckets;
pub mod calendar;
pub mod chunk;
pub mod client_address;
mod dates;
pub mod dead_letters;
pub mod decimal;
pub mod erasure;
pub mod flatten;
pub mod fold;
pub mod glance;
pub mod guard;
pub mod heatmap;
pub mod identity;
pub mod ids;
pub mod imported;
mod javascript;
pub mod json;
pub mod layout;
pub mod liveness;
pub mod location;
pub mod log_record;
pub mod missing;
pub mod networks;
pub mod pace;
pub mod page_url;
pub mod parking;
pub mod partitioner;
pub mod position;
pub mod profile;
pub mod rate;
pub mod record;
pub mod rows;
pub mod schema;
pub mod session;
pub mod spans;
pub mod spool;
pub mod submission;
pub mod tail;
pub mod text;
pub mod token;
pub mod umami;
