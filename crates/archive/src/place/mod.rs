//! A place for archives: a directory, or a prefix in an S3-compatible object store. Files are put whole: a reader finds a
//! file complete or not at all.

mod directory;
#[cfg(feature = "s3")]
mod objects;

pub use self::directory::Directory;
#[cfg(feature = "s3")]
pub use self::objects::Objects;
use crate::error::ArchiveError;

/// Where archives lie. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Place {
    /// A directory of this machine.
    Directory(Directory),
    /// A prefix in a bucket.
    #[cfg(feature = "s3")]
    Objects(Objects),
}

/// A file of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path below the place, with `/` between the parts.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was put, milliseconds since 1970. `None` in a directory, whose writer holds a lock.
    pub put_at_ms: Option<i64>,
}

/// Version of a file that was read, by which [`Place::replace`] notices another writer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Version {
    #[cfg(feature = "s3")]
    e_tag: Option<String>,
}

/// The right to write one log's archive, until it is dropped.
#[derive(Debug)]
pub(crate) struct WriteLock {
    #[expect(dead_code, reason = "it holds the lock of the file")]
    file: Option<std::fs::File>,
}

impl Place {
    /// The place of a path or of a URL such as `s3://bucket/prefix`. The keys and the endpoint of an object store come from
    /// the variables that AWS's own tools read (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, …).
    ///
    /// # Errors
    /// [`ArchiveError::Place`]: the URL is not valid, or this program was built without the feature `s3`.
    pub fn parse(text: &str) -> Result<Self, ArchiveError> {
        let refused =
            |reason: &str| ArchiveError::Place { place: text.to_owned(), reason: reason.to_owned() };
        match text.split_once("://") {
            None if text.is_empty() => Err(refused("give a directory or s3://BUCKET/PREFIX")),
            // Absolute, so that it has one name wherever a command is started.
            None => match std::path::absolute(text) {
                Ok(path) => Ok(Self::Directory(Directory::new(path))),
                Err(error) => Err(refused(&error.to_string())),
            },
            #[cfg(feature = "s3")]
            Some(("s3", _)) => Objects::s3(text).map(Self::Objects),
            #[cfg(not(feature = "s3"))]
            Some(("s3", _)) => Err(refused(
                "this program was built without object stores; build it with `--features s3`, or archive to a directory",
            )),
            Some(_) => Err(refused("a place is a directory or s3://BUCKET/PREFIX")),
        }
    }

    /// The whole content of a file; `None` if there is none of this name.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, Version)>, ArchiveError> {
        match self {
            Self::Directory(directory) => {
                Ok(directory.get(path).await?.map(|bytes| (bytes, Version::default())))
            }
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.get(path).await,
        }
    }

    /// Puts a file, in place of one of the same name. Durable on return.
    pub(crate) async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        match self {
            Self::Directory(directory) => directory.put(path, bytes).await,
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.put(path, bytes).await,
        }
    }

    /// Puts a file in place of the version `seen`; `None` if there was no such file. Durable on return.
    ///
    /// # Errors
    /// [`ArchiveError::Taken`]: another writer has put the file meanwhile (a directory has a lock for this).
    pub(crate) async fn replace(
        &self,
        path: &str,
        bytes: Vec<u8>,
        seen: Option<&Version>,
    ) -> Result<Version, ArchiveError> {
        match self {
            Self::Directory(directory) => {
                let _ = seen;
                directory.put(path, bytes).await.map(|()| Version::default())
            }
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.replace(path, bytes, seen).await,
        }
    }

    /// Removes a file, if it is there.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), ArchiveError> {
        match self {
            Self::Directory(directory) => directory.remove(path).await,
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.remove(path).await,
        }
    }

    /// All files below a path (the empty one is the whole place), in the order of their names.
    pub(crate) async fn list(&self, below: &str) -> Result<Vec<Entry>, ArchiveError> {
        let mut entries = match self {
            Self::Directory(directory) => directory.list(below).await?,
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.list(below).await?,
        };
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Takes the lock of the writers below a path. An object store has none: see [`Place::replace`].
    ///
    /// # Errors
    /// [`ArchiveError::Taken`]: another process holds it.
    pub(crate) async fn lock(&self, below: &str) -> Result<WriteLock, ArchiveError> {
        match self {
            Self::Directory(directory) => {
                directory.lock(below).await.map(|file| WriteLock { file: Some(file) })
            }
            #[cfg(feature = "s3")]
            Self::Objects(_) => Ok(WriteLock { file: None }),
        }
    }

    /// A file's name with its place, for messages.
    pub(crate) fn name_of(&self, path: &str) -> String {
        match self {
            Self::Directory(directory) => directory.path_of(path).display().to_string(),
            #[cfg(feature = "s3")]
            Self::Objects(objects) => objects.name_of(path),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name_of("").trim_end_matches('/'))
    }
}
