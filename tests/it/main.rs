//! The tests on real servers, in one binary: it links once, and its tests share the harness.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helper functions too")]

mod answers;
mod any_body;
mod architecture;
mod cli;
mod clients;
mod compose;
mod contract;
mod copies;
mod crash;
mod dashboard;
mod geography;
mod harness;
mod hostile;
mod invariants;
mod log_contract;
mod outage;
mod ownership;
mod profiles;
mod profiles_http;
mod profiles_load;
mod proofs;
mod proxies;
mod recorder;
mod recordings;
mod replay;
mod script;
mod sessions;
mod store_contract;
mod supervision;
mod umami_databases;
mod unknown_types;
mod unlucky_postgres;
mod unlucky_topics;
mod vectors;
mod visits;
