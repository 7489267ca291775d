//! The processes and servers that are disturbed.

use std::time::Duration;

use integration_tests::kafka::{self, unique_topic};
use integration_tests::proxy::Proxy;
use integration_tests::{
    Dashi, Deployment, KafkaCluster, PostgresServer, Server, Space, TestDirectory, eventually, free_port,
    http,
};

use super::faults::{Active, Fault, Subject};

/// How long a process may take until it is ready after all faults, on a busy machine.
const READY: Duration = Duration::from_secs(120);

/// A process of Dashi, which is always started at the same address.
pub struct Role {
    name: &'static str,
    authority: String,
    /// The process of the moment.
    pub server: Server,
}

/// The servers behind the processes.
pub enum Servers {
    /// Log and store are files.
    Files(Space),
    /// Three brokers, and a database behind a proxy.
    Cluster {
        /// The brokers.
        kafka: Box<KafkaCluster>,
        /// The database.
        postgres: PostgresServer,
        /// The network between the processes and the database.
        proxy: Proxy,
        /// The collectors' spools, which outlive their processes.
        spools: TestDirectory,
    },
}

/// Everything that runs.
pub struct World {
    /// Log and store, as the processes see them.
    pub deployment: Deployment,
    /// Collectors and projectors.
    pub processes: Vec<Role>,
    /// What they use.
    pub servers: Servers,
    /// Logs of processes that have ended.
    logs: String,
    /// The number of partitions that was commanded last, and the command, while it runs.
    partitions: u32,
    growth: Option<Dashi>,
    /// The number of partitions that the topic was last given by hand.
    partitions_by_hand: u32,
}

impl World {
    /// A collector and a projector on the embedded log and SQLite, on a small disk.
    pub async fn embedded() -> Self {
        let space = Space::small_disk(2_048);
        let file = |name: &str| format!("sqlite:{}", space.directory().join(name).display());
        let deployment = Deployment::new(file("log.db"), file("store.db"));
        Self::begin(deployment, Servers::Files(space), &["collect", "project"]).await
    }

    /// Two collectors and two projectors on three brokers and PostgreSQL.
    pub async fn cluster() -> Self {
        let (kafka, postgres) = tokio::join!(KafkaCluster::start(), PostgresServer::start());
        postgres.create_database("torture").await;
        let direct = postgres.url("torture");
        let target = direct.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("host:port");
        let proxy = Proxy::start(target).await;
        let log = format!("kafka://{}/{}", kafka.addresses(), unique_topic("torture"));
        let store = format!("postgres://postgres@{}/torture", proxy.authority());
        let deployment = Deployment::new(log, store)
            .with("DASHI_EVENT_LOG_PARTITIONS", "6")
            .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
        let servers = Servers::Cluster {
            kafka: Box::new(kafka),
            postgres,
            proxy,
            spools: TestDirectory::create("spools"),
        };
        Self::begin(deployment, servers, &["collect", "collect", "project", "project"]).await
    }

    async fn begin(deployment: Deployment, servers: Servers, roles: &[&'static str]) -> Self {
        let deployment = deployment
            // Small batches, so that a kill falls into a commit more often than not.
            .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "20")
            // Each short outage makes a backlog behind which live events come first.
            .with("DASHI_PROJECTOR_LIVE_FIRST_AFTER_S", "1")
            // A loss that was accepted is noticed soon.
            .with("DASHI_PROJECTOR_FAILED_RETRY_MS", "1000")
            .with("DASHI_KAFKA_TOPIC_CHECK_MS", "1000");
        deployment.register().await;
        let mut world = Self {
            deployment,
            processes: Vec::new(),
            servers,
            logs: String::new(),
            partitions: 8,
            growth: None,
            partitions_by_hand: 6,
        };
        for name in roles {
            let authority = format!("127.0.0.1:{}", free_port());
            let server = world.spawn(name, &authority);
            world.processes.push(Role { name, authority, server });
        }
        world.ready().await;
        world
    }

    /// The setup in the report.
    pub fn name(&self) -> &'static str {
        match self.servers {
            Servers::Files(_) => "embedded log and SQLite, a collector and a projector",
            Servers::Cluster { .. } => "three brokers and PostgreSQL, two collectors and two projectors",
        }
    }

    /// Addresses of the collectors.
    pub fn collectors(&self) -> impl Iterator<Item = String> {
        self.processes.iter().filter(|role| role.name == "collect").map(|role| role.authority.clone())
    }

    /// Kinds of faults that can happen here.
    pub fn faults(&self) -> Vec<fn(usize, usize) -> Fault> {
        let mut faults: Vec<fn(usize, usize) -> Fault> = vec![
            |process, _| Fault::Kill(process),
            |process, _| Fault::Kill(process),
            |process, _| Fault::Freeze(process),
            |_, _| Fault::RollingRestart,
            |_, _| Fault::Grows,
        ];
        match self.servers {
            Servers::Files(_) => faults.push(|_, _| Fault::DiskFull),
            Servers::Cluster { .. } => faults.extend::<[fn(usize, usize) -> Fault; 8]>([
                |_, _| Fault::DatabaseStops { crash: false },
                |_, _| Fault::DatabaseStops { crash: true },
                |_, _| Fault::DatabaseHangs,
                |_, _| Fault::DatabaseCut,
                |_, _| Fault::DatabaseSlow,
                |_, broker| Fault::BrokerKilled(broker),
                |_, broker| Fault::BrokerFrozen(broker),
                |_, _| Fault::PartitionsByHand,
            ]),
        }
        faults
    }

    /// Begins to let the log grow.
    pub fn grow(&mut self) {
        // At times by a factor, at times so that sessions move between old partitions.
        self.partitions += 1 + self.partitions % 3;
        let to = self.partitions.to_string();
        self.growth = Some(self.deployment.spawn(&["partitions", "grow", "--to", &to, "--wait", "5"]));
    }

    /// Lets the log grow, which no fault keeps from it any more.
    pub async fn grow_at_last(&mut self) {
        self.partitions += 2;
        let to = self.partitions.max(self.partitions_by_hand + 1).to_string();
        self.run(&["partitions", "grow", "--to", &to, "--wait", "60"], READY).await;
    }

    /// Adds a partition to the topic, past the command: collectors do not use it until the log grows.
    pub async fn add_a_partition(&mut self) {
        let (brokers, topic) = self.topic();
        for count in self.partitions_by_hand + 1..self.partitions_by_hand + 20 {
            if kafka::try_to_grow(&brokers, &topic, count as usize).await {
                self.partitions_by_hand = count;
                return;
            }
        }
    }

    /// Ends the command, whatever it has done.
    pub async fn end_growth(&mut self) {
        if let Some(mut growth) = self.growth.take() {
            growth.kill9();
        }
    }

    fn spawn(&self, name: &str, authority: &str) -> Server {
        match &self.servers {
            Servers::Files(space) => space.start(&self.deployment, name, authority),
            Servers::Cluster { spools, .. } => self.with_spool(spools, authority).start_at(name, authority),
        }
    }

    /// Log and store for a collector at this address, with a spool of its own.
    fn with_spool(&self, spools: &TestDirectory, authority: &str) -> Deployment {
        let spool = spools.path().join(authority.replace(':', "-")).display().to_string();
        let own = self.deployment.clone().with("DASHI_INGEST_SPOOL", "true");
        own.with("DASHI_INGEST_SPOOL_DIRECTORY", &spool)
    }

    /// Lets the collectors forward what their spools keep for a log that is gone into the log that took its place.
    pub async fn forward_into_the_new_log(&mut self) {
        for collector in self.places("collect") {
            let authority = self.processes[collector].authority.clone();
            let Servers::Cluster { spools, .. } = &self.servers else { return };
            let deployment = self.with_spool(spools, &authority);
            self.processes[collector].server.dashi.kill9();
            let mut accepting = deployment.spawn(&["collect", "--accept-new-log", "--listen", &authority]);
            eventually(READY, "the spool is empty", async || spool_is_empty(&authority).await).await;
            assert_eq!(accepting.terminate().await, Some(0), "{}", accepting.logs());
            self.start(collector);
        }
    }

    /// Starts a process that has ended again.
    pub fn start(&mut self, process: usize) {
        let Role { name, authority, server } = &self.processes[process];
        self.logs.push_str(&server.dashi.stderr());
        self.processes[process].server = self.spawn(name, authority);
    }

    /// Stops each process in order, waits for its end, starts it and waits until it is ready.
    pub async fn restart_each(&mut self) {
        for process in 0..self.processes.len() {
            let role = &mut self.processes[process];
            let code = role.server.dashi.terminate().await;
            assert_eq!(code, Some(0), "{} ended with {code:?}: {}", role.name, role.server.dashi.stderr());
            self.start(process);
            self.ready().await;
        }
    }

    /// Waits until all processes are ready.
    pub async fn ready(&mut self) {
        for process in 0..self.processes.len() {
            eventually(READY, "the process is ready", async || {
                self.supervise(&[]);
                let url = format!("http://{}/health/ready", self.processes[process].authority);
                match http::get(&url).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    Ok(answer) => Err(answer.text()),
                    Err(error) => Err(format!("{error:#}")),
                }
            })
            .await;
        }
    }

    /// Starts a process again that could not start on a full disk, as a service manager does.
    ///
    /// # Panics
    /// If a process has ended by itself for another reason.
    pub fn supervise(&mut self, active: &[Active]) {
        for index in 0..self.processes.len() {
            let is_killed = active.iter().any(|fault| fault.fault.subject() == Subject::Process(index));
            let Role { name, server, .. } = &mut self.processes[index];
            if is_killed || server.dashi.is_running() {
                continue;
            }
            let logs = server.dashi.stderr();
            assert!(logs.contains("disk is full"), "{name} has ended by itself:\n{logs}");
            self.start(index);
        }
    }

    /// Waits until the collectors have forwarded all that their spools hold; returns how many events went that way.
    pub async fn spools_are_empty(&self) -> u64 {
        let mut forwarded = 0;
        for authority in self.collectors() {
            eventually(READY, "the spool is empty", async || spool_is_empty(&authority).await).await;
            let metrics = http::get(&format!("http://{authority}/metrics")).await.expect("it answers").text();
            let line = metrics.lines().find_map(|line| line.strip_prefix("dashi_spool_forwarded_total "));
            forwarded += line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        }
        forwarded
    }

    /// Lines of all processes' logs that have this text.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let running: String = self.processes.iter().map(|role| role.server.dashi.stderr()).collect();
        self.logs
            .lines()
            .chain(running.lines())
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }

    /// Runs a command on log and store, which must end well within this time; returns its standard output.
    pub async fn run(&self, args: &[&str], within: Duration) -> String {
        let mut dashi = self.deployment.spawn(args);
        let code = dashi.wait_exit(within).await.code();
        assert_eq!(code, Some(0), "{args:?}: {}", dashi.logs());
        dashi.stdout()
    }

    /// Places of the projectors among the processes.
    pub fn projectors(&self) -> Vec<usize> {
        self.places("project")
    }

    /// Places of the processes of a role.
    pub fn places(&self, name: &str) -> Vec<usize> {
        let places = 0..self.processes.len();
        places.filter(|place| self.processes[*place].name == name).collect()
    }

    /// The brokers and the topic of a log on Kafka.
    pub fn topic(&self) -> (String, String) {
        let place = self.deployment.log().trim_start_matches("kafka://");
        let (brokers, topic) = place.split_once('/').expect("kafka://BROKERS/TOPIC");
        (brokers.to_owned(), topic.to_owned())
    }

    /// Ends all processes, as a machine does that loses its power.
    pub fn kill(&mut self) {
        for role in &mut self.processes {
            role.server.dashi.kill9();
        }
    }

    /// Starts all processes, which have ended, and waits until the collectors are ready.
    pub async fn start_all(&mut self) {
        for process in 0..self.processes.len() {
            self.start(process);
        }
        for collector in self.collectors().collect::<Vec<_>>() {
            eventually(READY, "the collector answers", async || {
                let answer = http::get(&format!("http://{collector}/health/live")).await;
                answer.map(|_| ()).map_err(|error| format!("{error:#}"))
            })
            .await;
        }
    }

    /// Stops all processes in order.
    pub async fn stop(&mut self) {
        for role in &mut self.processes {
            assert_eq!(role.server.dashi.terminate().await, Some(0), "{}", role.name);
        }
    }
}

/// Whether a collector has forwarded all that its spool holds.
async fn spool_is_empty(authority: &str) -> Result<(), String> {
    let answer = http::get(&format!("http://{authority}/health/ready")).await;
    let spool = answer.map_err(|error| format!("{error:#}"))?.json()["spool"].clone();
    let is_empty = spool.is_null() || spool["records"] == 0;
    if is_empty { Ok(()) } else { Err(spool.to_string()) }
}

impl Drop for World {
    /// Prints what the brokers did with their replicas, if the run has failed.
    fn drop(&mut self) {
        const OF_REPLICAS: [&str; 7] = ["runcat", "ISR", "isr", "unclean", "leader", "Recover", "recover"];
        let Servers::Cluster { kafka, .. } = &self.servers else { return };
        if std::thread::panicking() {
            for (number, broker) in (1..).zip(&kafka.brokers) {
                let logs = broker.logs();
                let lines = logs.lines().filter(|line| {
                    line.contains("torture") && OF_REPLICAS.iter().any(|word| line.contains(word))
                });
                eprintln!("---- replicas on broker {number}:\n{}", lines.collect::<Vec<_>>().join("\n"));
            }
        }
    }
}
