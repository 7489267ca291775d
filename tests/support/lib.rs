//! The harness for tests on real servers: PostgreSQL, Kafka, and the built binary `dashi` as a process.
//!
//! `scripts/test` starts one PostgreSQL and one Kafka broker that tests share, each with its own databases and
//! topics; a test that stops or kills a server starts its own. With the servers of `scripts/servers up` running,
//! plain `cargo test` works too. A missing server is a failure, never a skip.

pub mod any_body;
pub mod dashi;
pub mod deployment;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod location_database;
pub mod log;
pub mod postgres;
mod process;
pub mod profiles;
pub mod proxy;
mod settings;
pub mod setup;
pub mod space;
pub mod umami;
pub mod umami_server;
pub mod vectors;
mod wait;

pub use dashi::Dashi;
pub use deployment::{Deployment, Server, Status};
pub use kafka::{KafkaCluster, KafkaServer};
pub use ledger::{Database, Ledger};
pub use postgres::{PostgresServer, TestDatabase};
pub use settings::{TestDirectory, environment, free_port, repository};
pub use setup::{Running, Setup};
pub use space::Space;
pub use umami::UmamiVersion;
pub use wait::{Observation, eventually};
