//! Why a run gives no report.

use std::io;
use std::path::PathBuf;

use crate::connection::ConnectionError;

/// Why a run gives no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan contradicts itself; nothing was sent. Change it.
    #[error("cannot run this plan: {0}")]
    Plan(&'static str),
    /// The first connection failed; nothing was sent. (Later failures are counted in the report.)
    #[error("the collector at {authority} cannot be reached")]
    Unreachable {
        /// `host:port` of the target.
        authority: String,
        /// Why the connection failed.
        source: ConnectionError,
    },
    /// The file of acknowledged events could not be written. The run was ended; the file is not complete.
    #[error("cannot record acknowledged events in {}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The system gave no thread or runtime for the generator; nothing was sent.
    #[error("cannot start the generator")]
    Start(#[source] io::Error),
    /// The generator panicked, or the progress callback did.
    #[error("the generator panicked")]
    Panicked,
}
