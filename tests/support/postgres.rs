//! Databases on the shared PostgreSQL, and servers and poolers of one's own for tests of faults.
//!
//! fsync and synchronous_commit are on in both.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use uuid::Uuid;

use crate::process::{Process, read, signal, tail};
use crate::settings::{TestDirectory, free_port, setting};
use crate::wait::eventually;

const START_S: &str = "60";

/// A fresh, empty database on the shared server, dropped with this value.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    url: String,
}

impl TestDatabase {
    /// Makes a database with a name of its own.
    pub async fn create() -> Self {
        let server = setting("DASHI_TEST_POSTGRES");
        let name = format!("t{}", Uuid::now_v7().simple());
        create_database(&server, &name).await;
        let url = with_database(&server, &name);
        Self { name, url }
    }

    /// `postgres://…` of the database, for a superuser.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection to it.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the shared PostgreSQL takes connections")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let server = setting("DASHI_TEST_POSTGRES");
        // Best effort: what stays goes with the server. psql, because a drop cannot wait for a future.
        let _ = Command::new(bin().join("psql"))
            .args(["--no-psqlrc", "--quiet", "-d", &server, "-c"])
            .arg(format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.name))
            .output();
    }
}

/// A PostgreSQL server of one test's own, which it may stop and start. Killed on drop, its data removed.
#[derive(Debug)]
pub struct PostgresServer {
    directory: TestDirectory,
    data: PathBuf,
    port: u16,
}

impl PostgresServer {
    /// Starts a server on a free port and returns when it takes connections.
    pub async fn start() -> Self {
        blocking(|| {
            let directory = TestDirectory::create("postgres");
            let data = data_directory(directory.path());
            // scripts/test reads it to find and remove what lies elsewhere.
            write(&directory.path().join("data-directory"), &data.display().to_string());
            let mut initdb = program("initdb", &data);
            initdb.args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
            // The empty database need not survive a power cut; what tests write into it is synced.
            run(initdb.arg("--no-sync"));
            let port = free_port();
            start_server(directory.path(), &data, port);
            Self { directory, data, port }
        })
        .await
    }

    /// `postgres://…` of a database on this server, for a superuser. The database `postgres` exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database.
    pub async fn create_database(&self, name: &str) {
        create_database(&self.url("postgres"), name).await;
    }

    /// Stops as in a crash: connections are cut, nothing is flushed, the next start recovers from the write-ahead
    /// log.
    pub async fn stop_immediate(&mut self) {
        self.stop("immediate").await;
    }

    /// Stops in order, cutting connections.
    pub async fn stop_fast(&mut self) {
        self.stop("fast").await;
    }

    async fn stop(&mut self, mode: &str) {
        let mut pg_ctl = program("pg_ctl", &self.data);
        pg_ctl.args(["-m", mode, "-w", "stop"]);
        blocking(move || run(&mut pg_ctl)).await;
    }

    /// Starts the stopped server again, on the same port and data. Returns when it takes connections.
    pub async fn start_again(&mut self) {
        let (directory, data, port) = (self.directory.path().to_owned(), self.data.clone(), self.port);
        blocking(move || start_server(&directory, &data, port)).await;
    }

    /// Stops the server's processes where they are, as on a machine that hangs: connections stay open and silent.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    /// The server's log.
    pub fn logs(&self) -> String {
        read(&self.data.join("server.log"))
    }

    fn signal_all(&self, name: &str) {
        let pid = running_pid(&self.data).expect("the server runs");
        signal(pid, name);
        for child in read(Path::new(&format!("/proc/{pid}/task/{pid}/children"))).split_whitespace() {
            if let Ok(child) = child.parse() {
                // A connection's process may end at any time.
                signal(child, name);
            }
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(pid) = running_pid(&self.data) {
            self.thaw();
            // PostgreSQL's immediate shutdown, which takes its children along.
            signal(pid, "QUIT");
            // A process that has ended but that nobody has waited for has no command line any more.
            let command_line = PathBuf::from(format!("/proc/{pid}/cmdline"));
            let start = Instant::now();
            while !read(&command_line).is_empty() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if !self.data.starts_with(self.directory.path())
            && let Some(parent) = self.data.parent()
        {
            let _ = fs::remove_dir_all(parent);
        }
    }
}

/// How PgBouncer shares the server's connections among its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// A client keeps one until it leaves.
    Session,
    /// A client has one for a transaction.
    Transaction,
}

/// A PgBouncer in front of a server, killed on drop.
#[derive(Debug)]
pub struct PgBouncer {
    // Before the directory: fields are dropped in order, and the process writes into it.
    process: Process,
    _directory: TestDirectory,
    port: u16,
}

impl PgBouncer {
    /// Starts one in front of the server of this URL, with at most `servers` connections to it for each database.
    pub async fn start(server: &str, mode: PoolMode, servers: u32) -> Self {
        let directory = TestDirectory::create("pgbouncer");
        let port = free_port();
        let authority = server.rsplit_once('@').map_or(server, |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or_default();
        let (host, server_port) = authority.split_once(':').expect("the server's URL has a port");
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let settings = format!(
            "[databases]\n* = host={host} port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
             default_pool_size = {servers}\nmax_client_conn = 200\n"
        );
        let file = directory.path().join("pgbouncer.ini");
        write(&file, &settings);
        let mut command = Command::new(pgbouncer());
        if runs_as_root() {
            command.args(["-u", "postgres"]);
        }
        command.arg(&file);
        let process = Process::start(command, &directory).expect("pgbouncer can be started");
        let mut started = Self { process, _directory: directory, port };
        eventually(Duration::from_secs(20), "PgBouncer takes connections", async || {
            if started.process.ended().is_some() {
                panic!("PgBouncer has ended: {}", started.logs());
            }
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map(drop)
        })
        .await;
        started
    }

    /// `postgres://…` of a database behind it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Its logs so far.
    pub fn logs(&self) -> String {
        self.process.output("stderr")
    }
}

/// The program: Debian's package puts it where only root looks.
fn pgbouncer() -> PathBuf {
    let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("pgbouncer is there: run scripts/servers install")
}

/// Starts the server that has its data in `data`; its output and its pid go into `directory`. Returns when it takes
/// connections.
fn start_server(directory: &Path, data: &Path, port: u16) {
    let options = format!(
        "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200"
    );
    let log = data.join("server.log");
    let mut pg_ctl = program("pg_ctl", data);
    pg_ctl.arg("-l").arg(&log).args(["-w", "-t", START_S, "-o", &options, "start"]);
    // The server inherits these from pg_ctl: with pipes, whoever read them would wait for the server's end.
    let output = directory.join("pg_ctl.log");
    let file = File::create(&output).expect("the run's directory is writable");
    let errors = file.try_clone().expect("a file can be shared");
    let status = pg_ctl.stdin(Stdio::null()).stdout(file).stderr(errors).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "PostgreSQL does not start:\n{}\n{}",
        read(&output),
        tail(&read(&log))
    );
    if let Some(pid) = running_pid(data) {
        write(&directory.join("pid"), &pid.to_string());
    }
}

/// The first process of the server that runs on `data`.
fn running_pid(data: &Path) -> Option<u32> {
    read(&data.join("postmaster.pid")).lines().next()?.trim().parse().ok()
}

/// A server program on `data`, as the user that owns it.
fn program(name: &str, data: &Path) -> Command {
    let mut command = as_server_user(&bin().join(name));
    // Where the user postgres may not enter, its programs complain.
    command.arg("-D").arg(data).current_dir("/");
    command
}

/// Where the server's data goes: into `directory`, unless the server's user cannot get there.
fn data_directory(directory: &Path) -> PathBuf {
    if runs_as_root() {
        let mut chown = Command::new("chown");
        run(chown.arg("postgres").arg(directory));
        let mut test = as_server_user(Path::new("test"));
        if !test.arg("-w").arg(directory).current_dir("/").status().is_ok_and(|status| status.success()) {
            let elsewhere = PathBuf::from(format!("/tmp/dashi-postgres.{}", Uuid::now_v7().simple()));
            run(as_server_user(Path::new("mkdir")).arg(&elsewhere).current_dir("/"));
            return elsewhere.join("data");
        }
    }
    directory.join("data")
}

/// PostgreSQL refuses to run as root; then it runs as the user that Debian's package made for it.
fn as_server_user(program: &Path) -> Command {
    if !runs_as_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn runs_as_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The directory of PostgreSQL's programs.
fn bin() -> PathBuf {
    PathBuf::from(setting("DASHI_TEST_POSTGRES_BIN"))
}

async fn create_database(server: &str, name: &str) {
    let mut connection = PgConnection::connect(server).await.expect("PostgreSQL takes connections");
    // A template that somebody else is copying at this moment is no reason to fail: PostgreSQL waits for it.
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\"")))
        .execute(&mut connection)
        .await
        .expect("a superuser can create a database");
}

/// The URL of another database on the same server.
fn with_database(url: &str, name: &str) -> String {
    let (server, parameters) = match url.split_once('?') {
        Some((server, parameters)) => (server, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let authority = server.find("://").map_or(0, |at| at + 3);
    let end = server[authority..].find('/').map_or(server.len(), |at| authority + at);
    format!("{}/{name}{parameters}", &server[..end])
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("cannot run {command:?}: {error}"),
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn a_url_keeps_all_but_its_database() {
        assert_eq!(with_database("postgres://u:p@h:1/postgres?x=1", "d"), "postgres://u:p@h:1/d?x=1");
        assert_eq!(with_database("postgres://u@h", "d"), "postgres://u@h/d");
    }
}
