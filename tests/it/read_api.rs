//! The read API: websites, traffic, sessions and events, with answers worked out by hand from a fixed list of events.
//!
//! The events lie on three days of October 2026, between the second and third of which clocks in Berlin are set back: the
//! 25th is 25 hours long there. Visits are a session's events of one hour. All numbers in `numbers` are counted on the
//! list in `data`, which shows each visit's name.

mod data;
mod numbers;
mod questions;
mod refusals;
mod schema;
