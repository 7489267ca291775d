//! A directory of this machine as a place for archives.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Entry;
use crate::durable::DurableFile;
use crate::error::ArchiveError;

/// The file that one writer of a log's archive locks.
const LOCK: &str = "archive.lock";

/// A directory. It is made when the first file is put.
#[derive(Debug, Clone)]
pub struct Directory {
    root: Arc<PathBuf>,
    #[cfg(test)]
    pub(crate) steps_left: Option<Arc<std::sync::atomic::AtomicI64>>,
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root: Arc::new(root),
            #[cfg(test)]
            steps_left: None,
        }
    }

    pub(crate) fn path_of(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let file = self.path_of(path);
        let read = blocking(move || match fs::read(&file) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        read.await.map_err(self.away("reading", path))
    }

    pub(crate) async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        let (file, directory) = (self.path_of(path), self.clone());
        let put = blocking(move || {
            directory.step()?;
            let mut durable = DurableFile::create(&file)?;
            let (first, second) = bytes.split_at(bytes.len() / 2);
            durable.write_all(first)?;
            if let Err(killed) = directory.step() {
                // A process that is killed leaves the temporary file.
                std::mem::forget(durable);
                return Err(killed);
            }
            durable.write_all(second)?;
            durable.finish()?;
            directory.step()
        });
        put.await.map_err(self.away("writing", path))
    }

    pub(crate) async fn remove(&self, path: &str) -> Result<(), ArchiveError> {
        let (file, directory) = (self.path_of(path), self.clone());
        let removed = blocking(move || {
            directory.step()?;
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => directory.step(),
            }
        });
        removed.await.map_err(self.away("removing", path))
    }

    pub(crate) async fn list(&self, below: &str) -> Result<Vec<Entry>, ArchiveError> {
        let (root, start) = (Arc::clone(&self.root), self.path_of(below));
        let listed = blocking(move || {
            let mut entries = Vec::new();
            let mut left = vec![start];
            while let Some(directory) = left.pop() {
                let listing = match fs::read_dir(&directory) {
                    Ok(listing) => listing,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                for entry in listing {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        left.push(entry.path());
                    } else if entry.file_name() != LOCK {
                        let bytes = entry.metadata()?.len();
                        entries.push(Entry { path: relative(&root, &entry.path()), bytes, put_at_ms: None });
                    }
                }
            }
            Ok(entries)
        });
        listed.await.map_err(self.away("listing", below))
    }

    pub(crate) async fn lock(&self, below: &str) -> Result<File, ArchiveError> {
        let directory = self.path_of(below);
        let path = directory.join(LOCK);
        let shown = path.display().to_string();
        let taken = blocking(move || {
            fs::create_dir_all(&directory)?;
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(file)),
                Err(fs::TryLockError::WouldBlock) => Ok(None),
                Err(fs::TryLockError::Error(error)) => Err(error),
            }
        });
        let taken = taken.await.map_err(self.away("locking", &format!("{below}/{LOCK}")))?;
        taken.ok_or_else(|| ArchiveError::Taken { because: format!("it holds {shown}") })
    }

    fn away(&self, doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> ArchiveError + use<> {
        ArchiveError::away(doing, self.path_of(path).display().to_string())
    }

    /// One step of a change. A test lets a step fail as if the process had been killed there.
    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering;
        match &self.steps_left {
            Some(left) if left.fetch_sub(1, Ordering::SeqCst) <= 0 => Err(io::Error::other("killed")),
            _ => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the tests' fault injection")]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
