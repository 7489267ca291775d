//! Errors of an import, by what the caller does next.

use std::io;
use std::path::PathBuf;

use dashi_event_log::{AppendError, LogError};
use dashi_store::StoreError;
use uuid::Uuid;

/// Why an import ended early. What was appended stays; the same command goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// History of websites that the target does not have. Nothing of them was appended.
    #[error(
        "the store has no website {}: add it with `dashi website add --id …`, or let the import add all of them with \
         --add-websites",
        list(.0)
    )]
    UnknownWebsites(Vec<Uuid>),
    /// The source has no rows of a website that was asked for.
    #[error("the source has no rows of the website {0}")]
    NotInSource(Uuid),
    /// A file cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file for rejects is there and is not of this import.
    #[error("--rejects: {path} is there already, and is not of this import: name another file", path = .0.display())]
    RejectsTaken(PathBuf),
    /// The state file is one of another import.
    #[error(
        "--state: {path} is the state of an import of {found}, not of {wanted}: name another file, or start from the \
         beginning with --from-start", path = path.display()
    )]
    OtherState {
        /// The file.
        path: PathBuf,
        /// The source that it names.
        found: String,
        /// The source of this import.
        wanted: String,
    },
    /// A source's files have no form that is known.
    #[error("{path}: {reason}", path = path.display())]
    Form {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The log did not take records.
    #[error("the event log did not take records; run the same command again to go on")]
    Append(#[source] AppendError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store, or the source's database, does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task of this import ended by itself.
    #[error("the import's reader has stopped: {0}")]
    Stopped(String),
}

impl ImportError {
    /// Whether flags or files have to be changed first.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            Self::UnknownWebsites(_)
                | Self::NotInSource(_)
                | Self::RejectsTaken(_)
                | Self::OtherState { .. }
                | Self::Form { .. }
        )
    }
}

fn list(ids: &[Uuid]) -> String {
    const SHOWN: usize = 20;
    let mut text = ids.iter().take(SHOWN).map(Uuid::to_string).collect::<Vec<_>>().join(", ");
    if ids.len() > SHOWN {
        text.push_str(&format!(" and {} more", ids.len() - SHOWN));
    }
    text
}
