//! The built binary as a process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use crate::http;
use crate::process::{Process, tail};
use crate::settings::{TestDirectory, environment, repository, target};
use crate::wait::eventually;

/// How long a start, with migrations, may take on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long a command that ends by itself may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a drain may take.
const TERMINATE: Duration = Duration::from_secs(60);

/// A running `dashi`. Killed on drop; if the test is failing, its output is printed then.
#[derive(Debug)]
pub struct Dashi {
    // Before the directory: fields are dropped in order, and the process writes into it.
    process: Process,
    directory: TestDirectory,
    command_line: String,
}

/// The exit code and the output of a command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error: the logs.
    pub stderr: String,
}

impl Dashi {
    /// Starts `dashi` with these arguments in an empty directory of its own, so that relative paths such as the
    /// default `data/` are its own too.
    ///
    /// Of this process's environment, `APP_SECRET` and everything that begins with `DASHI_` is taken away before `env`
    /// is added. Unless that says otherwise, `serve` projects at the usual priority: all tests share the machine, and would hold
    /// up what stands back.
    pub fn spawn<A: AsRef<OsStr>>(args: &[A], env: &[(&str, &str)]) -> Self {
        Self::spawn_through(&[], args, env)
    }

    /// The same through a program that in the end executes the arguments it is given, such as `nice`, without a child.
    pub fn spawn_through<A: AsRef<OsStr>>(program: &[&str], args: &[A], env: &[(&str, &str)]) -> Self {
        let directory = TestDirectory::create("dashi");
        let mut command = match program {
            [] => Command::new(binary()),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary());
                command
            }
        };
        command.args(args).current_dir(directory.path());
        for (name, _) in std::env::vars_os() {
            if name == "APP_SECRET" || name.as_encoded_bytes().starts_with(b"DASHI_") {
                command.env_remove(name);
            }
        }
        if args.first().is_some_and(|role| role.as_ref() == "serve") {
            command.env("DASHI_PROJECTOR_NICE", "0");
        }
        command.envs(env.iter().copied());
        let command_line = format!("{command:?}");
        let process = Process::start(command, &directory)
            .unwrap_or_else(|error| panic!("cannot start {command_line}: {error}"));
        Self { process, directory, command_line }
    }

    /// Runs a command that ends by itself, such as `status --json`.
    ///
    /// # Panics
    /// If it has not ended after two minutes.
    pub async fn run<A: AsRef<OsStr>>(args: &[A], env: &[(&str, &str)]) -> Ended {
        let mut dashi = Self::spawn(args, env);
        let status = dashi.wait_exit(COMMAND).await;
        Ended { code: status.code(), stdout: dashi.stdout(), stderr: dashi.stderr() }
    }

    /// Waits until `GET {url}/health/ready` answers 200. `url` is for example `http://127.0.0.1:8484`.
    ///
    /// # Panics
    /// If that does not happen within a minute, or the process ends.
    pub async fn wait_ready(&mut self, url: &str) {
        let health = format!("{url}/health/ready");
        eventually(READY, "dashi is ready", async || {
            if let Some(status) = self.process.ended() {
                panic!("{} ended with {status} before it was ready", self.command_line);
            }
            match http::get(&health).await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// If it still runs after `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        match self.process.wait(deadline).await {
            Some(status) => status,
            None => panic!("{} still runs after {deadline:?}", self.command_line),
        }
    }

    /// SIGTERM; waits for the end and returns the exit code, `None` if the process died of a signal.
    ///
    /// # Panics
    /// If it still runs after a minute.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.process.signal("TERM");
        self.wait_exit(TERMINATE).await.code()
    }

    /// SIGTERM without waiting for the end.
    pub fn sigterm(&mut self) {
        self.process.signal("TERM");
    }

    /// SIGINT, as by Ctrl-C, without waiting for the end.
    pub fn interrupt(&mut self) {
        self.process.signal("INT");
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP: the process stands still, its connections stay open.
    pub fn sigstop(&mut self) {
        self.process.signal("STOP");
    }

    /// SIGCONT.
    pub fn sigcont(&mut self) {
        self.process.signal("CONT");
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Its working directory. It goes away with this value.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.process.output("stdout")
    }

    /// Its standard error so far: the logs.
    pub fn stderr(&self) -> String {
        self.process.output("stderr")
    }

    /// Both, standard output first.
    pub fn logs(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr())
    }

    /// Resident memory at its highest, in KiB.
    pub fn memory_peak_kib(&self) -> Option<u64> {
        let status = crate::process::read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    }
}

impl Drop for Dashi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- {} (pid {}), end of standard output:\n{}\n---- end of standard error:\n{}",
                self.command_line,
                self.pid(),
                tail(&self.stdout()),
                tail(&self.stderr())
            );
        }
    }
}

/// The path of the binary: `DASHI_TEST_BIN`, else the one that was built beside the tests.
///
/// It is built here if it is missing. `scripts/test` builds it again in any case; after a change, plain `cargo test`
/// does not.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(find_binary).clone()
}

fn find_binary() -> PathBuf {
    if let Some(path) = environment("DASHI_TEST_BIN") {
        return PathBuf::from(path);
    }
    let executable = std::env::current_exe().expect("the test executable has a path");
    let profile = executable.ancestors().nth(2).expect("tests run from <target>/<profile>/deps");
    let path = profile.join("dashi");
    if !path.exists() {
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo.args(["build", "--workspace", "--bin", "dashi"]).current_dir(repository());
        cargo.env("CARGO_TARGET_DIR", target());
        match profile.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => {}
            Some(profile) => {
                cargo.args(["--profile", profile]);
            }
        }
        let built = cargo.status().expect("cargo can be started");
        assert!(built.success(), "the binary dashi does not build");
    }
    path
}
