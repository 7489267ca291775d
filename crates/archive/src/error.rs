//! Errors of archives and exports, by what the caller does next.

use std::sync::Arc;

use dashi_domain::position::{Offset, Partition};
use dashi_event_log::LogError;

/// The cause of an error, shared because errors are cloned for status and logs.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an archive could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ArchiveError {
    /// The archive's place is not valid, or this program cannot reach places of its kind. Correct it first.
    #[error("the archive {place} cannot be used: {reason}")]
    Place {
        /// The place as it was given.
        place: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// The directory or the object store did not do what it was asked to do. Try again later.
    #[error("{doing} {path} failed")]
    Away {
        /// The action that failed, as a participle.
        doing: &'static str,
        /// The file or object.
        path: String,
        /// The system's error.
        #[source]
        source: Cause,
    },
    /// A file is not as it was written. Restore it from a copy.
    #[error(
        "the archive file {file} is damaged at offset {offset} of partition {partition}: {reason}; restore it from a \
         copy, then run `dashi archive verify`"
    )]
    Damaged {
        /// The file, with its place.
        file: String,
        /// The partition.
        partition: Partition,
        /// The first offset that cannot be read.
        offset: Offset,
        /// The difference between the file and its entry in the manifest.
        reason: String,
    },
    /// A manifest is not as it was written. Restore it from a copy.
    #[error("the archive's manifest {file} cannot be read: {reason}; restore it from a copy")]
    Manifest {
        /// The file, with its place.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The log lost records that the archive has, or has others in their place: it may be an older copy of itself. An
    /// operator has to look.
    #[error(
        "the archive has partition {partition} up to offset {end}, and the log does not go on from there: {source}; \
         archive this log to another place"
    )]
    Parted {
        /// The partition.
        partition: Partition,
        /// The offset behind the last one that is archived.
        end: Offset,
        /// The log's error.
        #[source]
        source: LogError,
    },
    /// The log has more records by its high watermark, and returns none. Look at the log, then try again.
    #[error(
        "partition {partition}: no record came from offset {from} on within {waited_s} s, though it ends at {until}"
    )]
    Stalled {
        /// The partition.
        partition: Partition,
        /// The next offset.
        from: Offset,
        /// The offset up to which it was to be read.
        until: Offset,
        /// How long it waited.
        waited_s: u64,
    },
    /// Another process archives into this place. Wait until it has ended.
    #[error("another process writes this archive ({because}); run one at a time")]
    Taken {
        /// The sign of it: the lock that it holds, or the file that it has written.
        because: String,
    },
    /// The log does not answer. Try again later.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ArchiveError {
    pub(crate) fn away<E>(doing: &'static str, path: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = path.into();
        move |source| Self::Away { doing, path, source: Arc::new(source) }
    }

    /// Whether the same call may succeed later, with nothing changed by an operator.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Log(LogError::Away { .. }))
    }
}
