//! The file of lines and rows that cannot be taken: NDJSON, made with the first of them.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::ImportError;
use crate::batch::Reject;

/// Writes rejects.
pub(crate) struct Rejects {
    path: PathBuf,
    /// Whether the lines of an earlier run stay.
    goes_on: bool,
    file: Option<BufWriter<File>>,
}

impl Rejects {
    /// A file that is made with the first reject. `own` is the file of the run before, if this run goes on with it:
    /// that one may be there.
    pub(crate) fn new(path: PathBuf, own: Option<&Path>, goes_on: bool) -> Result<Self, ImportError> {
        let is_own = own == Some(path.as_path());
        if path.exists() && !is_own {
            return Err(ImportError::RejectsTaken(path));
        }
        if is_own && !goes_on && path.exists() {
            // Everything is read again, and written again.
            std::fs::remove_file(&path)
                .map_err(|source| ImportError::Write { path: path.clone(), source })?;
        }
        Ok(Self { path, goes_on, file: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file.
    pub(crate) fn is_made(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn write(&mut self, rejects: &[Reject]) -> Result<(), ImportError> {
        if rejects.is_empty() {
            return Ok(());
        }
        let failed = |source| ImportError::Write { path: self.path.clone(), source };
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let opened = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(&self.path)
                    .map_err(|source| ImportError::Write { path: self.path.clone(), source })?;
                debug_assert!(self.goes_on || opened.metadata().is_ok_and(|file| file.len() == 0));
                self.file.insert(BufWriter::new(opened))
            }
        };
        for reject in rejects {
            let line = serde_json::to_string(reject).map_err(|error| failed(error.into()))?;
            writeln!(file, "{line}").map_err(failed)?;
        }
        Ok(())
    }

    /// Hands everything to the operating system, so that it outlives this process.
    pub(crate) fn flush(&mut self) -> Result<(), ImportError> {
        let failed = |source| ImportError::Write { path: self.path.clone(), source };
        self.file.as_mut().map_or(Ok(()), |file| file.flush()).map_err(failed)
    }
}
