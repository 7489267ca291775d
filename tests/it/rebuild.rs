//! Rebuilds: a new generation of the tables is made of the log beside the live ones, equals them, and is swapped with
//! them under load; whatever interrupts it, it goes on.

mod determinism;
mod foreign;
mod interrupted;
mod load;
mod plan;

use std::time::Duration;

use integration_tests::dashi::Ended;
use integration_tests::{Deployment, Ledger, Server, TestDatabase, TestDirectory, kafka};
use serde_json::Value;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// A deployment and everything that goes away with it.
struct Place {
    deployment: Deployment,
    _directory: TestDirectory,
    _database: Option<TestDatabase>,
}

/// Log and store as files.
async fn on_files() -> Place {
    let directory = TestDirectory::create("rebuild");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    Place { deployment, _directory: directory, _database: None }
}

/// A topic of eight partitions, and a database of its own.
async fn on_servers() -> Place {
    let (directory, database) = (TestDirectory::create("rebuild"), TestDatabase::create().await);
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("rebuild"));
    let deployment = Deployment::new(log, database.url()).with("DASHI_EVENT_LOG_PARTITIONS", "8");
    deployment.register().await;
    Place { deployment, _directory: directory, _database: Some(database) }
}

/// The embedded log, and a database of its own.
async fn on_file_and_database() -> Place {
    let (directory, database) = (TestDirectory::create("rebuild"), TestDatabase::create().await);
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, database.url());
    deployment.register().await;
    Place { deployment, _directory: directory, _database: Some(database) }
}

/// Runs each of these functions, which take a [`Place`], on files and on servers.
macro_rules! on_both {
    ($($promise:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::rebuild::on_files().await).await;
            })+
        }
        mod kafka_and_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::rebuild::on_servers().await).await;
            })+
        }
    };
}
use on_both;

/// Sends so many events of many visitors, and returns when they are in the tables.
async fn fill(deployment: &Deployment, ledger: &mut Ledger, server: &Server, events: u64) {
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 8;
        plan.sessions = 200;
        plan.requests_max = Some(events);
        plan.duration = SOON;
    });
    ledger.finish(load).await;
    deployment.settled().await;
}

/// Runs `dashi replay …` and returns its code and output.
async fn replay(deployment: &Deployment, args: &[&str]) -> Ended {
    deployment.run(&[&["replay"], args].concat()).await
}

/// Runs `dashi replay … --json`, which must end with this code; returns the JSON that it printed.
async fn replay_json(deployment: &Deployment, args: &[&str], code: i32) -> Value {
    let ended = replay(deployment, &[args, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{args:?}: {}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ended.stdout))
}

/// Builds a generation and returns its number.
async fn build(deployment: &Deployment) -> u64 {
    let built = replay_json(deployment, &["run"], 0).await;
    assert_eq!(built["complete"], true, "{built}");
    built["generation"].as_u64().expect("a number")
}

/// The states of the generations, by number.
async fn states(deployment: &Deployment) -> Vec<(u64, String)> {
    let list = replay_json(deployment, &["list"], 0).await;
    let list = list.as_array().expect("a list").iter();
    list.map(|generation| {
        let state = generation["state"].as_str().expect("a text").to_owned();
        (generation["number"].as_u64().expect("a number"), state)
    })
    .collect()
}

fn named(states: &[(u64, &str)]) -> Vec<(u64, String)> {
    states.iter().map(|(number, state)| (*number, (*state).to_owned())).collect()
}
