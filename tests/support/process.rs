use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::settings::{TestDirectory, run_directory};

/// A child process with a directory for its output, killed on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    directory: PathBuf,
}

impl Process {
    /// Starts `command`. Its output is appended to `stdout` and `stderr` in `directory`, its pid stands in `pid` there,
    /// where `scripts/test` finds it if this process dies before it can stop the child.
    pub(crate) fn start(mut command: Command, directory: &TestDirectory) -> io::Result<Self> {
        let directory = directory.path().to_owned();
        let append = |name: &str| File::options().create(true).append(true).open(directory.join(name));
        command.stdin(Stdio::null()).stdout(append("stdout")?).stderr(append("stderr")?);
        // By this scripts/test knows its processes.
        command.env("TEST_RUN_DIRECTORY", run_directory());
        let child = command.spawn()?;
        fs::write(directory.join("pid"), child.id().to_string())?;
        Ok(Self { child, directory })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child can be waited for")
    }

    /// Waits for the end. `None` if the process still runs after `deadline`.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if start.elapsed() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&mut self, name: &str) {
        // Until it is reaped, the pid is the child's: nobody else can be hit.
        if self.ended().is_none() {
            assert!(signal(self.pid(), name), "cannot send SIG{name} to process {}", self.pid());
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        // It fails only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn output(&self, name: &str) -> String {
        read(&self.directory.join(name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal by its name without `SIG`; says whether it was sent.
pub(crate) fn signal(pid: u32, name: &str) -> bool {
    // The shell has `kill` built in, and everybody has a shell.
    Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The end of a text: enough for a panic message.
pub(crate) fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
