//! A log and a store that processes of Dashi share: started, killed and started again, together or apart.

use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use crate::dashi::Ended;
use crate::{Dashi, TestDirectory, eventually, free_port};

/// How long a backlog may take on a busy machine.
const SETTLED: Duration = Duration::from_secs(120);

/// Where log and store are, and what all processes on them find in their environment.
#[derive(Debug, Clone)]
pub struct Deployment {
    log: String,
    store: String,
    website: String,
    env: Vec<(String, String)>,
}

/// A process that listens.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub dashi: Dashi,
    /// `host:port`.
    pub authority: String,
}

/// The output of `dashi status --json`.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the command's answer")]
pub struct Status {
    pub partitions: Vec<PartitionStatus>,
    pub totals: Totals,
}

/// One partition of a [`Status`].
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the command's answer")]
pub struct PartitionStatus {
    pub partition: u32,
    pub checkpoint: u64,
    pub lag_records: u64,
    pub epoch: u64,
    pub owner: Option<String>,
    pub dead: u64,
    pub last_error: Option<String>,
    pub last_error_kind: Option<String>,
    pub last_error_over_at_ms: Option<i64>,
}

/// The sums of a [`Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the command's answer")]
pub struct Totals {
    pub in_log: u64,
    pub applied: u64,
    pub duplicate: u64,
    pub dead: u64,
    pub missing: u64,
    pub markers: u64,
    pub rewound: u64,
    pub removed: u64,
    pub unaccounted: i64,
    pub lag_records: u64,
}

impl Deployment {
    /// On this log and this store, with a consumer group and a website of its own.
    pub fn new(log: impl Into<String>, store: impl Into<String>) -> Self {
        let group = format!("group-{}", Uuid::now_v7().simple());
        let new = Self {
            log: log.into(),
            store: store.into(),
            website: Uuid::now_v7().to_string(),
            env: Vec::new(),
        };
        // A process that is started again has a directory of its own, so that it would not find the spool of the one before. Old
        // events would come behind younger ones that a test sends after them.
        new.with("APP_SECRET", "a secret of the tests")
            .with("DASHI_KAFKA_GROUP", &group)
            .with("DASHI_INGEST_SPOOL", "false")
            .with("DASHI_HISTORY_EVENT_AGE_S_MIN", "0")
    }

    /// With log and store as files in this directory.
    pub fn embedded(directory: &TestDirectory) -> Self {
        let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
        Self::new(file("log.db"), file("store.db"))
    }

    /// The same with one more variable in the environment of all processes.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same log, another store.
    #[must_use]
    pub fn with_store(&self, store: &str) -> Self {
        Self { store: store.to_owned(), ..self.clone() }
    }

    /// A variable of the environment, if it was given.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The log's URL.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// The store's URL.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// The id of the website that takes events.
    pub fn website(&self) -> &str {
        &self.website
    }

    /// Adds the website, and with it the store's tables.
    pub async fn register(&self) {
        let added = self.run(&["website", "add", "--name", "test", "--id", &self.website]).await;
        assert_eq!(added.code, Some(0), "{}", added.stderr);
    }

    /// Starts `dashi serve`, `collect` or `project` on a free port; does not wait for anything.
    pub fn start(&self, role: &str) -> Server {
        self.start_at(role, &format!("127.0.0.1:{}", free_port()))
    }

    /// The same at this `host:port`.
    pub fn start_at(&self, role: &str, authority: &str) -> Server {
        self.start_through(&[], role, authority)
    }

    /// The same through a program that in the end executes the arguments it is given, such as `nice`.
    pub fn start_through(&self, program: &[&str], role: &str, authority: &str) -> Server {
        let args = [role, "--log", &self.log, "--store", &self.store, "--listen", authority];
        let dashi = Dashi::spawn_through(program, &args, &self.environment());
        Server { dashi, authority: authority.to_owned() }
    }

    /// Runs a command that ends by itself on this log and store.
    pub async fn run(&self, args: &[&str]) -> Ended {
        Dashi::run(&self.on_log_and_store(args), &self.environment()).await
    }

    /// Starts a command on this log and store.
    pub fn spawn(&self, args: &[&str]) -> Dashi {
        Dashi::spawn(&self.on_log_and_store(args), &self.environment())
    }

    /// The state by `dashi status`.
    ///
    /// # Errors
    /// Its message, if log or store are away.
    pub async fn status(&self) -> Result<Status, String> {
        let ended = self.run(&["status", "--json"]).await;
        if ended.code != Some(0) {
            return Err(format!("status: {:?} {}", ended.code, ended.stderr));
        }
        serde_json::from_str(&ended.stdout).map_err(|error| format!("{error}: {}", ended.stdout))
    }

    /// Waits until every record of the log has its outcome.
    ///
    /// # Panics
    /// If that takes two minutes.
    pub async fn settled(&self) -> Status {
        let seen = std::cell::Cell::new(None);
        eventually(SETTLED, "every record has its outcome", async || {
            let status = self.status().await?;
            let totals = status.totals;
            seen.set(Some(status));
            if totals.lag_records == 0 { Ok(()) } else { Err(format!("{totals:?}")) }
        })
        .await;
        seen.take().expect("it was looked at")
    }

    fn on_log_and_store<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--log", &self.log, "--store", &self.store]].concat()
    }

    fn environment(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

impl Server {
    /// Where it listens, as `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// See [`Dashi::wait_ready`].
    pub async fn ready(mut self) -> Self {
        let url = self.url();
        self.dashi.wait_ready(&url).await;
        self
    }
}

impl Status {
    /// Partitions whose last claim was made by this process.
    pub fn owned_by(&self, dashi: &Dashi) -> Vec<u32> {
        let suffix = format!("/{}", dashi.pid());
        let owned = |partition: &&PartitionStatus| {
            partition.owner.as_ref().is_some_and(|owner| owner.ends_with(&suffix))
        };
        self.partitions.iter().filter(owned).map(|partition| partition.partition).collect()
    }
}
