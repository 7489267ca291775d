//! The file of acknowledged events.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::plan::EventKind;

/// One event the collector has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acknowledged {
    /// `/load/<seed>/<n>`, used for this event only.
    pub mark: String,
    /// Kind of the event.
    pub kind: EventKind,
}

/// Reads a file of acknowledged events, see [`LoadPlan::record_acknowledged`](crate::LoadPlan).
///
/// A last line without its end is left out: the generator was stopped while it wrote it.
///
/// # Errors
/// The error of reading the file, or `InvalidData` if a complete line is not a mark and a kind.
pub fn read_acknowledged(path: &Path) -> io::Result<Vec<Acknowledged>> {
    let text = fs::read_to_string(path)?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(|line| parse(line).ok_or_else(|| io::ErrorKind::InvalidData.into())).collect()
}

fn parse(line: &str) -> Option<Acknowledged> {
    let (mark, kind) = line.split_once('\t')?;
    let kind = EventKind::ALL.into_iter().find(|this| this.name() == kind)?;
    Some(Acknowledged { mark: mark.to_owned(), kind })
}

/// Writes the file. The first failure is kept, and returned at the end.
pub(crate) struct Journal {
    path: PathBuf,
    mark_prefix: String,
    state: Mutex<State>,
}

struct State {
    file: BufWriter<File>,
    failure: Option<io::Error>,
}

impl Journal {
    pub(crate) fn create(path: &Path, mark_prefix: &str) -> io::Result<Self> {
        let file = BufWriter::with_capacity(64 * 1024, File::create(path)?);
        let state = Mutex::new(State { file, failure: None });
        Ok(Self { path: path.to_owned(), mark_prefix: mark_prefix.to_owned(), state })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds event `n`; `false` once writing has failed.
    pub(crate) fn add(&self, n: u64, kind: EventKind) -> bool {
        self.attempt(|file| writeln!(file, "{}{n}\t{}", self.mark_prefix, kind.name()))
    }

    /// Hands everything to the system; `false` once writing has failed.
    pub(crate) fn flush(&self) -> bool {
        self.attempt(BufWriter::flush)
    }

    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        self.lock().failure.take()
    }

    fn attempt(&self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> bool {
        let mut state = self.lock();
        if state.failure.is_none() {
            state.failure = write(&mut state.file).err();
        }
        state.failure.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_written_are_read_back_and_a_torn_one_is_left_out() {
        let path = std::env::temp_dir().join(format!("dashi-load-record-{}", std::process::id()));
        let journal = Journal::create(&path, "/load/a/").unwrap();
        assert!(
            journal.add(1, EventKind::PageView) && journal.add(2, EventKind::Identify) && journal.flush()
        );
        assert!(journal.take_failure().is_none());
        let expected = [("/load/a/1", EventKind::PageView), ("/load/a/2", EventKind::Identify)]
            .map(|(mark, kind)| Acknowledged { mark: mark.to_owned(), kind });
        assert_eq!(read_acknowledged(&path).unwrap(), expected);

        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}/load/a/3\tpage")).unwrap();
        assert_eq!(read_acknowledged(&path).unwrap(), expected);
        fs::write(&path, "nonsense\n").unwrap();
        assert!(read_acknowledged(&path).is_err());
        fs::remove_file(path).unwrap();
    }
}
