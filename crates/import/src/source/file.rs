//! Files of lines: NDJSON, access logs, CSV, exports of Dashi. Read from the beginning in every run, since visits and
//! the numbers of equal lines depend on the lines before; lines that an earlier run appended are skipped by the importer.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use dashi_store::Store;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::past::{Decided, Requests};
use super::{BATCHES_MAX, PastSettings, Reading, access_log, csv_rows, dashi, ndjson};
use crate::ImportError;
use crate::batch::{BATCH_BYTES_MAX, BATCH_ROWS_MAX, Batch, Item, Position, Reject};
use crate::lines::{LINE_BYTES_MAX, Line, Lines};

/// Files of lines of one kind.
pub struct FileSource {
    paths: Vec<PathBuf>,
    kind: FileSourceKind,
}

/// The kind of lines.
pub enum FileSourceKind {
    /// Bodies of `/api/send`, each with a timestamp.
    Ndjson {
        /// The website of lines that name none.
        website: Option<Uuid>,
        /// The rules of requests.
        past: Box<PastSettings>,
    },
    /// Lines of a web server.
    AccessLog {
        /// Their website.
        website: Uuid,
        /// Its host name.
        hostname: String,
        /// The form of the lines.
        format: access_log::Format,
        /// The rules of requests.
        past: Box<PastSettings>,
    },
    /// Umami Cloud's CSV.
    UmamiCsv,
    /// An export of a Dashi log.
    Dashi,
}

impl FileSourceKind {
    /// Whether its records are rows of another store.
    pub(crate) fn are_rows(&self) -> bool {
        matches!(self, Self::UmamiCsv)
    }

    fn name(&self) -> String {
        match self {
            Self::Ndjson { website: Some(website), .. } => format!("ndjson of the website {website}"),
            Self::Ndjson { website: None, .. } => "ndjson".to_owned(),
            Self::AccessLog { website, hostname, format, .. } => {
                format!("access log ({}) of {hostname}, website {website}", format.name())
            }
            Self::UmamiCsv => "umami-csv".to_owned(),
            Self::Dashi => "dashi export".to_owned(),
        }
    }
}

impl FileSource {
    /// A file, or for [`FileSourceKind::UmamiCsv`] also a directory with files whose names contain `.csv`.
    ///
    /// # Errors
    /// The path cannot be read, or its files are none of that kind.
    pub fn new(path: &Path, kind: FileSourceKind) -> Result<Self, ImportError> {
        let read = |path: &Path, source| ImportError::Read { path: path.to_owned(), source };
        let path = std::fs::canonicalize(path).map_err(|error| read(path, error))?;
        let paths = match (&kind, path.is_dir()) {
            (FileSourceKind::UmamiCsv, true) => {
                let mut files = Vec::new();
                for entry in std::fs::read_dir(&path).map_err(|error| read(&path, error))? {
                    let file = entry.map_err(|error| read(&path, error))?.path();
                    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                    if name.contains(".csv") && file.is_file() {
                        files.push(file);
                    }
                }
                if files.is_empty() {
                    return Err(ImportError::Form {
                        path,
                        reason: "no file in it is called .csv".to_owned(),
                    });
                }
                files.sort();
                csv_rows::events_first(files)?
            }
            (_, true) => {
                return Err(ImportError::Form { path, reason: "it is a directory, not a file".to_owned() });
            }
            (FileSourceKind::UmamiCsv, false) => csv_rows::events_first(vec![path])?,
            (_, false) => vec![path],
        };
        Ok(Self { paths, kind })
    }

    pub(crate) fn identity(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
        format!("{}: {}", self.kind.name(), paths.join(", "))
    }

    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub(crate) fn kind(&self) -> &FileSourceKind {
        &self.kind
    }

    pub(crate) async fn start(self, store: &Store) -> Result<Reading, ImportError> {
        let Self { paths, kind } = self;
        let mut total = 0;
        for path in &paths {
            let length = std::fs::metadata(path).map(|file| file.len());
            total += length.map_err(|source| ImportError::Read { path: path.clone(), source })?;
        }
        let parts = match kind {
            FileSourceKind::Ndjson { website, past } => {
                Parts::Ndjson(Box::new(Requests::new("ndjson", *past, store).await?), website)
            }
            FileSourceKind::AccessLog { website, hostname, format, past } => {
                let requests = Requests::new("access-log", *past, store).await?;
                Parts::AccessLog(Box::new(requests), access_log::Site { website, hostname, format })
            }
            FileSourceKind::UmamiCsv => Parts::Csv(csv_rows::CsvRows::default()),
            FileSourceKind::Dashi => Parts::Dashi,
        };
        let (sender, batches) = mpsc::channel(BATCHES_MAX);
        let task = tokio::task::spawn_blocking(move || {
            let mut reader =
                FileReader { paths, parts, sender, batch: Filling::default(), before: Before::default() };
            if let Err(Ended::Failed(error)) = reader.run() {
                // Nobody may be there any more.
                let _ = reader.sender.blocking_send(Err(error));
            }
        });
        Ok(Reading { batches, total, wanted: Vec::new(), notes: Vec::new(), task })
    }
}

enum Parts {
    Ndjson(Box<Requests>, Option<Uuid>),
    AccessLog(Box<Requests>, access_log::Site),
    Csv(csv_rows::CsvRows),
    Dashi,
}

/// Why reading ended before the end.
enum Ended {
    Failed(ImportError),
    /// The importer wants no more.
    Unwanted,
}

/// A batch that is being filled.
#[derive(Default)]
struct Filling {
    batch: Batch,
    bytes: usize,
}

/// The files that were read before the present one.
#[derive(Default)]
struct Before {
    bytes: u64,
    lines: u64,
}

struct FileReader {
    paths: Vec<PathBuf>,
    parts: Parts,
    sender: mpsc::Sender<Result<Batch, ImportError>>,
    batch: Filling,
    before: Before,
}

impl FileReader {
    fn run(&mut self) -> Result<(), Ended> {
        let has_several = self.paths.len() > 1;
        for path in std::mem::take(&mut self.paths) {
            let failed = |source| Ended::Failed(ImportError::Read { path: path.clone(), source });
            let mut lines = Lines::open(&path).map_err(failed)?;
            let name =
                has_several.then(|| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            // Lines of a record that was no record after all are looked at again, one by one.
            let mut again = VecDeque::new();
            let mut last = 0;
            loop {
                let line = match again.pop_front() {
                    Some(line) => Some(line),
                    None => lines.next().map_err(failed)?,
                };
                let Some(line) = line else { break };
                last = last.max(line.number);
                let rejects = self.batch.batch.rejects.len();
                self.line(line, &mut lines, &mut again, &path).map_err(|error| match error {
                    LineError::Io(error) => failed(error),
                    LineError::Form(error) => Ended::Failed(error),
                })?;
                for reject in &mut self.batch.batch.rejects[rejects..] {
                    reject.file.clone_from(&name);
                }
                let is_full =
                    self.batch.batch.read >= BATCH_ROWS_MAX as u64 || self.batch.bytes >= BATCH_BYTES_MAX;
                // A batch ends where no line is half done.
                if is_full && again.is_empty() && !self.is_within() {
                    self.send(last, lines.bytes_read())?;
                }
            }
            self.end_of_file();
            self.send(last, lines.bytes_read())?;
            self.before.bytes += lines.bytes_read();
            self.before.lines += last;
        }
        Ok(())
    }

    /// Whether rows are being gathered that belong together.
    fn is_within(&self) -> bool {
        matches!(&self.parts, Parts::Csv(rows) if rows.is_within())
    }

    fn end_of_file(&mut self) {
        if let Parts::Csv(rows) = &mut self.parts {
            rows.end_of_file(&mut self.batch.batch, self.before.lines);
        }
    }

    fn send(&mut self, line: u64, bytes: u64) -> Result<(), Ended> {
        let mut batch = std::mem::take(&mut self.batch).batch;
        batch.position = Some(Position::Lines(self.before.lines + line));
        batch.done = self.before.bytes + bytes;
        self.sender.blocking_send(Ok(batch)).map_err(|_| Ended::Unwanted)
    }

    /// Takes a line into the batch.
    fn line(
        &mut self,
        line: Line,
        lines: &mut Lines,
        again: &mut VecDeque<Line>,
        path: &Path,
    ) -> Result<(), LineError> {
        let batch = &mut self.batch.batch;
        batch.read += 1;
        self.batch.bytes += line.bytes.len();
        if line.is_too_long {
            let reason = format!("the line has more than {LINE_BYTES_MAX} bytes");
            batch.rejects.push(Reject::line(line.number, reason, &line.bytes));
            return Ok(());
        }
        let at = self.before.lines + line.number;
        let decided = match &mut self.parts {
            Parts::Csv(rows) => {
                return rows.line(line, lines, again, path, self.before.lines, batch);
            }
            _ if line.bytes.iter().all(u8::is_ascii_whitespace) => {
                // Often the last one.
                return Ok(());
            }
            Parts::Ndjson(requests, website) => ndjson::line(requests, *website, at, &line.bytes),
            Parts::AccessLog(requests, site) => access_log::line(requests, site, at, &line.bytes),
            Parts::Dashi => dashi::line(at, &line.bytes),
        };
        add(batch, decided, line.number, &line.bytes);
        Ok(())
    }
}

/// Why a line cannot be gone past.
pub(super) enum LineError {
    Io(std::io::Error),
    Form(ImportError),
}

fn add(batch: &mut Batch, decided: Decided, number: u64, bytes: &[u8]) {
    match decided {
        Decided::Item(item) => {
            let item: Item = *item;
            batch.items.push(item);
        }
        Decided::Ignored(reason) => *batch.ignored.entry(reason).or_default() += 1,
        Decided::Refused(reason) => batch.rejects.push(Reject::line(number, reason, bytes)),
    }
}
