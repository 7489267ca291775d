//! Sources of history. Each reads its parts in order on a task of its own, into a channel of few batches.

pub(crate) mod access_log;
mod csv;
mod csv_rows;
mod dashi;
mod file;
mod ndjson;
mod past;
mod timestamp;
mod umami;

use std::path::PathBuf;

use dashi_domain::log_record::LogRecord;
use dashi_store::Store;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use self::file::{FileSource, FileSourceKind};
pub use self::past::PastSettings;
pub(crate) use self::umami::UmamiPosition;
pub use self::umami::UmamiSource;

use crate::ImportError;
use crate::batch::{Batch, Position, Wanted};
use crate::state::FileMark;

/// Batches that wait for the importer, at most.
const BATCHES_MAX: usize = 4;

/// A place that history comes from.
pub enum Source {
    /// An Umami database.
    Umami(UmamiSource),
    /// Files of lines.
    Files(FileSource),
}

/// A source that is being read.
pub(crate) struct Reading {
    /// Its batches, in order; they end with an error, or with the source.
    pub batches: mpsc::Receiver<Result<Batch, ImportError>>,
    /// Units of progress, all of them.
    pub total: u64,
    /// Websites that it has rows of, as far as that is known before.
    pub wanted: Vec<Wanted>,
    /// Remarks for people.
    pub notes: Vec<String>,
    task: JoinHandle<()>,
}

impl Reading {
    /// Why the task ended, if it was not with the source. To be called when there is no batch any more; stops the task
    /// if there are some.
    pub(crate) async fn failure(mut self) -> Option<ImportError> {
        self.batches.close();
        while self.batches.recv().await.is_some() {}
        self.task.await.err().map(|error| ImportError::Stopped(error.to_string()))
    }
}

impl Source {
    /// The source and all that decides how it is read, for people and for the state file; without passwords.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Umami(source) => source.identity(),
            Self::Files(source) => source.identity(),
        }
    }

    pub(crate) fn files(&self) -> Result<Vec<FileMark>, ImportError> {
        let mark = |path: &PathBuf| {
            FileMark::of(path).map_err(|source| ImportError::Read { path: path.clone(), source })
        };
        match self {
            Self::Umami(_) => Ok(Vec::new()),
            Self::Files(source) => source.paths().iter().map(mark).collect(),
        }
    }

    /// Whether it goes on at a place without reading what lies before it. Files are read from their beginning, since
    /// visits and the numbers of equal lines depend on the lines before.
    pub(crate) fn goes_on_without_reading_again(&self) -> bool {
        matches!(self, Self::Umami(_))
    }

    /// Whether progress is counted in bytes.
    pub(crate) fn is_bytes(&self) -> bool {
        matches!(self, Self::Files(_))
    }

    /// Whether a record in the log may be one of this source's.
    pub(crate) fn may_have_appended(&self) -> fn(&LogRecord<'_>) -> bool {
        let are_rows = match self {
            Self::Umami(_) => true,
            Self::Files(source) => source.kind().are_rows(),
        };
        if are_rows { |record| matches!(record, LogRecord::Imported(_)) } else { |_| true }
    }

    /// Begins to read: behind `position`, if the source can.
    pub(crate) async fn start(
        self,
        position: Option<Position>,
        store: &Store,
    ) -> Result<Reading, ImportError> {
        match self {
            Self::Umami(source) => {
                let position = match position {
                    Some(Position::Umami(position)) => position,
                    _ => UmamiPosition::default(),
                };
                source.start(position).await
            }
            Self::Files(source) => source.start(store).await,
        }
    }
}
