//! The file system that processes have their files in, which can run out of space.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::deployment::{Deployment, Server};
use crate::{Dashi, TestDirectory};

/// See the module's text.
#[derive(Debug)]
pub enum Space {
    /// A small file system.
    Disk(SmallDisk),
    /// A log and a store `log.db` and `store.db` whose files' size can be limited.
    Files(TestDirectory),
}

/// Where a small file system is mounted; unmounted on drop.
#[derive(Debug)]
pub struct SmallDisk(PathBuf, #[expect(dead_code, reason = "it is removed on drop")] TestDirectory);

impl Space {
    /// A file system of so many MiB, or [`Space::files`] if this user may not mount one.
    pub fn small_disk(size_mib: u32) -> Self {
        SmallDisk::mount(size_mib).map_or_else(Self::files, Self::Disk)
    }

    /// Files whose size can be limited.
    pub fn files() -> Self {
        Self::Files(TestDirectory::create("files"))
    }

    /// Where the files have to be.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Disk(disk) => &disk.0,
            Self::Files(directory) => directory.path(),
        }
    }

    /// Starts a process that lives on when it comes to the limit of a file's size.
    pub fn start(&self, deployment: &Deployment, role: &str, authority: &str) -> Server {
        // A process that does not ignore the signal dies when it goes beyond its limit.
        let ignoring = ["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""];
        deployment.start_through(&ignoring, role, authority)
    }

    /// Leaves nothing to these processes.
    pub fn take<'a>(&self, processes: impl IntoIterator<Item = &'a Dashi>) {
        match self {
            Self::Disk(_) => {
                let ballast =
                    File::options().create(true).append(true).open(self.directory().join("ballast"));
                let mut ballast = ballast.expect("a file can be made");
                for size in [64 * 1024, 1] {
                    while ballast.write_all(&vec![0; size]).is_ok() {}
                }
            }
            Self::Files(directory) => {
                let limit = size(&directory.path().join("log.db.segments")).to_string();
                processes.into_iter().for_each(|dashi| limit_file_size(dashi, &limit));
            }
        }
    }

    /// Gives it back.
    pub fn give<'a>(&self, processes: impl IntoIterator<Item = &'a mut Dashi>) {
        match self {
            Self::Disk(_) => fs::remove_file(self.directory().join("ballast")).expect("it was taken"),
            // The limit dies with the process.
            Self::Files(_) => {
                let running = processes.into_iter().filter_map(|dashi| dashi.is_running().then_some(dashi));
                running.for_each(|dashi| limit_file_size(dashi, "unlimited"));
            }
        }
    }
}

impl SmallDisk {
    fn mount(size_mib: u32) -> Option<Self> {
        let directory = TestDirectory::create("disk");
        let at = directory.path().join("small");
        fs::create_dir(&at).expect("the run's directory is writable");
        let options = format!("size={size_mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at, directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that a failing test leaves behind may still have files there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// Bytes of the largest file in a directory.
fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).max().unwrap_or(0)
}

fn limit_file_size(dashi: &Dashi, bytes: &str) {
    let pid = dashi.pid().to_string();
    let limit = format!("--fsize={bytes}:unlimited");
    let output = Command::new("prlimit").args(["--pid", &pid, &limit]).output().expect("prlimit is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
