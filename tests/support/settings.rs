use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

/// The top of the repository.
pub fn repository() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// A directory of its own for one server or process of a test, removed on drop.
///
/// It lies in the directory that `scripts/test` removes at the end, so that nothing stays when a test process dies.
#[derive(Debug)]
pub struct TestDirectory(PathBuf);

impl TestDirectory {
    /// Makes the directory. Its name begins with `name`.
    pub fn create(name: &str) -> Self {
        let path = run_directory().join(format!("{name}-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot make the directory {}: {error}", path.display()));
        Self(path)
    }

    /// Where it is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        // What is left behind goes with the directory of the run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port of 127.0.0.1 on which nothing listens and that this process has not handed out before.
///
/// It lies below the ports that the kernel uses for outgoing connections. So none of those can take it while a
/// server is stopped that shall come back on it.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_default();
    for _ in 0..1000 {
        // The last bytes of such an id are random.
        let [.., high, low] = Uuid::now_v7().into_bytes();
        let port = 10_000 + u16::from_be_bytes([high, low]) % 20_000;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("found no free port");
}

/// The directory of this test run.
pub(crate) fn run_directory() -> PathBuf {
    match environment("DASHI_TEST_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => servers().join(format!("run-cargo-{}", std::process::id())),
    }
}

/// A setting of the harness: from the environment, else from the servers that `scripts/servers up` left running.
pub(crate) fn setting(name: &str) -> String {
    let from_running = || {
        let exports = fs::read_to_string(servers().join("dev/env")).ok()?;
        let prefix = format!("export {name}=");
        exports.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    };
    environment(name).or_else(from_running).unwrap_or_else(|| {
        panic!("{name} is not set: run the tests with scripts/test, or start servers with scripts/servers up")
    })
}

/// Where `scripts/servers` keeps everything.
fn servers() -> PathBuf {
    repository().join("target/test-servers")
}

/// A variable of the test run's environment; `None` if it is empty or not set.
pub fn environment(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the harness is configured by scripts/test")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The directory that cargo builds into: tests run from `<target>/<profile>/deps`.
pub(crate) fn target() -> PathBuf {
    let executable = std::env::current_exe().expect("the test executable has a path");
    match executable.ancestors().nth(3) {
        Some(target) => target.to_owned(),
        None => repository().join("target"),
    }
}
