//! The state file: how far an import has come, so that the same command goes on after a kill.
//!
//! It is replaced about every second, by renaming. What was appended since is found in the log ([`crate::tail`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ImportError;
use crate::batch::Position;

/// The format of state files.
const FORMAT: u32 = 1;

/// Bytes at the beginning of a file by which it is known again.
const HEAD_BYTES: u64 = 64 << 10;

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    dashi_import: u32,
    /// The source, without passwords, with all that decides how it is read.
    pub source: String,
    /// The log's identity.
    pub log: String,
    /// How far it is in the log; `None` at the beginning.
    pub position: Option<Position>,
    /// By partition, an offset that no record behind the position lies before.
    pub offsets: BTreeMap<u32, u64>,
    /// The source's files, as they were at the beginning of the last run.
    pub files: Vec<FileMark>,
    /// Whether the source was read to its end.
    pub complete: bool,
    /// The file of what cannot be taken.
    pub rejects: Option<PathBuf>,
}

/// By what a file is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileMark {
    path: PathBuf,
    /// Bytes of the head that the hash is of.
    head_bytes: u64,
    head: String,
    bytes: u64,
}

impl FileMark {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let bytes = fs::metadata(path)?.len();
        let head_bytes = bytes.min(HEAD_BYTES);
        Ok(Self { path: path.to_owned(), head_bytes, head: head(path, head_bytes)?, bytes })
    }

    /// Whether the file is the same, or has grown if it may.
    fn is_still(&self, now: &Self, may_grow: bool) -> bool {
        let grew = now.bytes >= self.bytes && (may_grow || now.bytes == self.bytes);
        self.path == now.path && grew && head(&self.path, self.head_bytes).is_ok_and(|head| head == self.head)
    }
}

fn head(path: &Path, bytes: u64) -> io::Result<String> {
    let mut begin = Vec::new();
    File::open(path)?.take(bytes).read_to_end(&mut begin)?;
    Ok(hex(&Sha256::digest(&begin)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    /// The state of an import that has not begun.
    pub(crate) fn new(source: &str, log: &str, files: Vec<FileMark>) -> Self {
        Self {
            dashi_import: FORMAT,
            source: source.to_owned(),
            log: log.to_owned(),
            position: None,
            offsets: BTreeMap::new(),
            files,
            complete: false,
            rejects: None,
        }
    }

    /// A name for the state file of this source and log.
    pub(crate) fn file_name(source: &str, log: &str) -> String {
        let hash = hex(&Sha256::digest(format!("{source}\n{log}")));
        format!("dashi-import-{}.state.json", &hash[..12])
    }

    /// Reads a state file; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is of another source or log.
    pub(crate) fn read(path: &Path, source: &str, log: &str) -> Result<Option<Self>, ImportError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImportError::Read { path: path.to_owned(), source: error }),
        };
        let other = |found: String| ImportError::OtherState {
            path: path.to_owned(),
            found,
            wanted: format!("{source} into the log {log}"),
        };
        let state: Self =
            serde_json::from_slice(&text).map_err(|error| other(format!("unknown form ({error})")))?;
        if state.dashi_import != FORMAT || state.source != source || state.log != log {
            return Err(other(format!("{} into the log {}", state.source, state.log)));
        }
        Ok(Some(state))
    }

    /// Whether the source's files are still those of this state: the last one may have grown.
    pub(crate) fn is_of(&self, files: &[FileMark]) -> bool {
        self.files.len() == files.len()
            && self
                .files
                .iter()
                .zip(files)
                .enumerate()
                .all(|(place, (then, now))| then.is_still(now, place + 1 == files.len()))
    }

    /// Replaces the state file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ImportError> {
        let failed = |source| ImportError::Write { path: path.to_owned(), source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let mut file = File::create(&new).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        fs::rename(&new, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("dashi-state-{}", uuid::Uuid::now_v7()));
            fs::create_dir(&path).expect("a directory");
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_state_is_read_back_and_is_of_one_source_and_log() {
        let directory = Directory::new();
        let path = directory.0.join("a.state.json");
        assert_eq!(State::read(&path, "a", "log").expect("absent"), None);
        let mut state = State::new("a", "log", Vec::new());
        state.position = Some(Position::Lines(7));
        state.offsets.insert(3, 9);
        state.write(&path).expect("written");
        assert_eq!(State::read(&path, "a", "log").expect("read"), Some(state));
        for (source, log) in [("b", "log"), ("a", "other")] {
            let error = State::read(&path, source, log).expect_err("another one").to_string();
            assert!(error.contains("a into the log log") && error.contains(source), "{error}");
        }
        fs::write(&path, "{").expect("written");
        assert!(State::read(&path, "a", "log").is_err(), "what cannot be read is not thrown away");
        assert_ne!(State::file_name("a", "log"), State::file_name("b", "log"));
    }

    #[test]
    fn the_last_file_may_grow_and_no_other() {
        let directory = Directory::new();
        let paths = [directory.0.join("a"), directory.0.join("b")];
        let marks = || paths.iter().map(|path| FileMark::of(path).expect("there")).collect::<Vec<_>>();
        for path in &paths {
            fs::write(path, "one\n").expect("written");
        }
        let state = State::new("s", "l", marks());
        assert!(state.is_of(&marks()));
        fs::write(&paths[1], "one\ntwo\n").expect("written");
        assert!(state.is_of(&marks()), "it has grown");
        fs::write(&paths[1], "One\ntwo\n").expect("written");
        assert!(!state.is_of(&marks()), "it begins otherwise");
        fs::write(&paths[1], "one\n").expect("written");
        fs::write(&paths[0], "one\ntwo\n").expect("written");
        assert!(!state.is_of(&marks()), "the first one has grown");
    }
}
