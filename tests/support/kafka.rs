//! Topics on the shared Kafka broker, and brokers of one's own for tests of faults.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

use crate::process::{Process, tail};
use crate::settings::{TestDirectory, free_port, repository, setting};
use crate::wait::eventually;

/// How long a broker may take to start on a busy machine.
const START: Duration = Duration::from_secs(90);
/// How long it may take to stop in order.
const STOP: Duration = Duration::from_secs(60);

/// `host:port` of the broker that all tests share.
pub fn shared_broker() -> String {
    setting("DASHI_TEST_KAFKA")
}

/// A topic name that no other test uses. Nothing creates the topic here.
pub fn unique_topic(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7().simple())
}

/// Gives a topic of the shared broker this many partitions, more than it has. Processes that have it open see them later.
pub async fn grow(topic: &str, partitions: usize) {
    assert!(try_to_grow(&shared_broker(), topic, partitions).await, "the topic can grow");
}

/// The same on any cluster, unless it does not answer, or has as many. Returns whether it has grown.
pub async fn try_to_grow(brokers: &str, topic: &str, partitions: usize) -> bool {
    let grown = [NewPartitions::new(topic, partitions)];
    let grown = admin(brokers).create_partitions(&grown, &AdminOptions::new()).await;
    grown.is_ok_and(|topics| topics.iter().all(Result::is_ok))
}

/// A client that administers the cluster.
pub fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client")
}

/// Creates a topic of one replica with these settings of its own, as a person or a tool does. All others are the
/// broker's.
pub async fn create_topic(brokers: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (name, value) in settings {
        new = new.set(name, value);
    }
    let created = admin(brokers).create_topics([&new], &AdminOptions::new()).await;
    created.expect("the broker answers")[0].as_ref().expect("the topic can be created");
}

/// Creates a topic of three replicas, of which two acknowledge.
pub async fn create_replicated_topic(brokers: &str, topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(3));
    let new = new.set("min.insync.replicas", "2").set("retention.ms", "-1");
    let created = admin(brokers).create_topics([&new], &AdminOptions::new()).await;
    created.expect("the brokers answer")[0].as_ref().expect("the topic can be created");
}

/// Deletes a topic.
pub async fn delete_topic(brokers: &str, topic: &str) {
    let deleted = admin(brokers).delete_topics(&[topic], &AdminOptions::new()).await;
    deleted.expect("the broker answers")[0].as_ref().expect("the topic can be deleted");
}

/// Gives a topic these settings of its own, and no others.
pub async fn configure(brokers: &str, topic: &str, settings: &[(&str, &str)]) {
    let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        config = config.set(name, value);
    }
    let altered = admin(brokers).alter_configs([&config], &AdminOptions::new()).await;
    altered.expect("the broker answers")[0].as_ref().expect("the settings are taken");
}

/// Removes all records of a partition below `end`, as retention does.
pub async fn delete_records(brokers: &str, topic: &str, partition: i32, end: i64) {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, rdkafka::Offset::Offset(end)).expect("an offset");
    admin(brokers).delete_records(&offsets, &AdminOptions::new()).await.expect("the broker answers");
}

/// A Kafka broker (KRaft, broker and controller in one) of one test's own, which it may stop and start. Killed on drop, its data removed.
#[derive(Debug)]
pub struct KafkaServer {
    // Before the directory: fields are dropped in order, and the process writes into it.
    process: Option<Process>,
    directory: TestDirectory,
    port: u16,
}

impl KafkaServer {
    /// Starts a broker on a free port and returns when it answers.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with more lines of `server.properties`.
    pub async fn start_with(more: &str) -> Self {
        let mut server = Self::format(&cluster_id(), free_port(), more).await;
        server.start_again().await;
        server
    }

    /// A broker with empty storage, of the cluster with this id. It does not run yet.
    async fn format(cluster_id: &str, controller_port: u16, more: &str) -> Self {
        let directory = TestDirectory::create("kafka");
        let port = free_port();
        let template = fs::read_to_string(repository().join("tests/kafka/server.properties"))
            .expect("the broker's settings are in the repository");
        let properties = template
            .replace("@PORT@", &port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string())
            .replace("@DATA@", &directory.path().join("data").display().to_string());
        // A broker that comes back after a SIGKILL is refused until its earlier session has run out: 9 s by default.
        // Of a setting that is there twice, the last one counts.
        let properties = format!(
            "{properties}\nbroker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n{more}\n"
        );
        fs::write(directory.path().join("server.properties"), properties)
            .expect("the run's directory is writable");
        let server = Self { process: None, directory, port };
        server.format_storage(cluster_id).await;
        server
    }

    /// `host:port`, the same over stops and starts.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL, as in a crash. Returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops in order (SIGTERM). Returns when the process is gone.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("CONT");
            process.signal("TERM");
            let ended = process.wait(STOP).await;
            assert!(ended.is_some(), "Kafka does not stop within {STOP:?}:\n{}", tail(&self.logs()));
        }
    }

    /// Starts the stopped broker again, on the same port and data. Returns when it answers.
    ///
    /// # Panics
    /// If it runs already, or does not answer in time; the message has the end of its log.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the broker runs already");
        let earlier = self.logs().len();
        let mut java = self.java(&["-Xmx512m", "-XX:+UseSerialGC"]);
        java.arg("kafka.Kafka").arg(self.directory.path().join("server.properties"));
        let mut process = Process::start(java, &self.directory).expect("java can be started");
        eventually(START, "Kafka answers", async || {
            let logs = process.output("stderr");
            if let Some(status) = process.ended() {
                panic!("Kafka ended with {status}:\n{}", tail(&logs));
            }
            if !logs[earlier.min(logs.len())..].contains("Kafka Server started") {
                return Err(format!("its log ends with\n{}", tail(&logs)));
            }
            if !self.answers().await {
                return Err("it started but does not answer".to_owned());
            }
            Ok(())
        })
        .await;
        self.process = Some(process);
    }

    /// Stops the process where it is (SIGSTOP): connections stay open and silent.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("the broker runs").signal("STOP");
    }

    /// Lets a frozen broker go on.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("the broker runs").signal("CONT");
    }

    /// Whether the broker answers a request of the Kafka protocol within a second.
    pub async fn answers(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let asked = tokio::task::spawn_blocking(move || ask_api_versions(address)).await;
        asked.is_ok_and(|answer| answer.is_ok())
    }

    /// Changes access lists as `kafka-acls.sh` does.
    pub async fn acls(&self, args: &[&str]) {
        let mut java = self.java(&["-XX:TieredStopAtLevel=1"]);
        java.arg("org.apache.kafka.tools.AclCommand")
            .args(["--bootstrap-server", &self.address()])
            .args(args);
        let output = tokio::task::spawn_blocking(move || java.output()).await;
        let output = output.expect("the task ends").expect("java can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}{said}", String::from_utf8_lossy(&output.stdout));
    }

    /// Where its log segments lie, for a stopped broker's to be copied and put back.
    pub fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    /// The broker's log.
    pub fn logs(&self) -> String {
        crate::process::read(&self.directory.path().join("stderr"))
    }

    async fn format_storage(&self, cluster_id: &str) {
        let mut java = self.java(&["-XX:TieredStopAtLevel=1"]);
        java.args(["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c"])
            .arg(self.directory.path().join("server.properties"));
        let output = tokio::task::spawn_blocking(move || java.output()).await;
        match output.expect("the task ends") {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!(
                "cannot format Kafka's storage:\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => panic!("cannot run java: {error}"),
        }
    }

    fn java(&self, options: &[&str]) -> Command {
        let mut java = Command::new("java");
        java.args(options)
            .args(["-Dorg.slf4j.simpleLogger.showDateTime=true"])
            .args(["-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"])
            .args(["-cp", &format!("{}/*", setting("DASHI_TEST_KAFKA_LIBS"))]);
        java
    }
}

/// Three brokers, each of which is a controller, too. A topic has three replicas, and two acknowledge a record.
#[derive(Debug)]
pub struct KafkaCluster {
    /// The brokers. One of them may be away.
    pub brokers: [KafkaServer; 3],
}

impl KafkaCluster {
    /// Starts the brokers on free ports and returns when they answer.
    pub async fn start() -> Self {
        let (id, controllers) = (cluster_id(), [free_port(), free_port(), free_port()]);
        let numbered = || (1..).zip(controllers);
        let voters: Vec<_> = numbered().map(|(number, port)| format!("{number}@127.0.0.1:{port}")).collect();
        let mut brokers = Vec::new();
        for (number, port) in numbered() {
            let more = format!(
                "node.id={number}\ncontroller.quorum.voters={}\ndefault.replication.factor=3\n\
                 min.insync.replicas=2\noffsets.topic.replication.factor=3\n\
                 transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n\
                 replica.lag.time.max.ms=5000\n",
                voters.join(",")
            );
            brokers.push(KafkaServer::format(&id, port, &more).await);
        }
        let mut brokers: [KafkaServer; 3] = brokers.try_into().expect("there are three controllers");
        let [first, second, third] = &mut brokers;
        // None is ready without another one.
        tokio::join!(first.start_again(), second.start_again(), third.start_again());
        Self { brokers }
    }

    /// `host:port,host:port,host:port`.
    pub fn addresses(&self) -> String {
        self.brokers.each_ref().map(KafkaServer::address).join(",")
    }
}

/// Any 16 bytes will do for a cluster's id; 22 characters hold them in base64.
fn cluster_id() -> String {
    Uuid::now_v7().simple().to_string()[..22].to_owned()
}

/// Sends ApiVersions (key 18, version 0), the one request that every broker answers without further ado.
/// Source: the Kafka protocol, request header version 1.
fn ask_api_versions(address: SocketAddr) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    const CORRELATION: [u8; 4] = *b"dash";
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut request = vec![0, 0, 0, 10, 0, 18, 0, 0];
    request.extend(CORRELATION);
    request.extend([0xff, 0xff]);
    stream.write_all(&request)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    let [_, _, _, _, correlation @ .., error_high, error_low] = answer;
    if correlation == CORRELATION && [error_high, error_low] == [0, 0] {
        Ok(())
    } else {
        Err(io::Error::other("this is not Kafka"))
    }
}
