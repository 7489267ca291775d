//! Export: the log as files for other programs.

mod columns;
mod ndjson;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(test)]
#[cfg(feature = "parquet")]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, LogError, ReadLimit, Reader};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::columns::Columns;
use self::ndjson::NdjsonFile;
use crate::durable::DurableFile;
use crate::error::ArchiveError;

/// Form of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of JSON, see [`crate::write_record`].
    Ndjson,
    /// Apache Parquet, with a column for each value of interest.
    Parquet,
}

/// Compression of the files; within a Parquet file, of its pages. Parquet takes no gzip here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Where an export is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTo {
    /// Standard output.
    Output,
    /// One file for all partitions.
    File(PathBuf),
    /// A file for each partition that has records, in this directory.
    Directory(PathBuf),
}

/// The records that are exported, and how.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// Where to.
    pub to: ExportTo,
    /// Form of the files.
    pub format: Format,
    /// Their compression.
    pub compression: Compression,
    /// Websites, links and pixels whose records are exported; if there are none, all records are.
    pub sources: Vec<Uuid>,
    /// Records appended at this time or later, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Records appended before this time, in milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Size of one read.
    pub read_limit: ReadLimit,
}

/// Progress of an export, in offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExportProgress {
    /// Offsets that were read.
    pub done: u64,
    /// Offsets that are to be read.
    pub total: u64,
}

/// Result of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The log.
    pub log: String,
    /// Records that were written.
    pub records: u64,
    /// Those of them that this program cannot decode; they are dead letters in the tables.
    pub undecodable: u64,
    /// Records that were read and are of other sources than those that were asked for.
    pub other_sources: u64,
    /// The files; none on standard output.
    pub files: Vec<ExportedFile>,
    /// Whether it came to the end. If it was stopped, files that are listed are whole, and no other was left.
    pub complete: bool,
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportedFile {
    /// Its path.
    pub path: String,
    /// Its records.
    pub records: u64,
    /// Its size.
    pub bytes: u64,
}

/// How long the log may return no record although it has more.
const STALL: Duration = Duration::from_secs(60);

/// A part of a partition: from its first offset to the second one, exclusive.
type Span = (Partition, Offset, Offset);

/// Exports the records of a log that it has when the export begins: by partition, each in the order of its offsets. A file
/// is whole and durable when it has its name. `report` is called after each read.
///
/// # Errors
/// [`ArchiveError::Away`]: a file cannot be written. [`ArchiveError::Place`]: this program was built without Parquet. Any
/// other: the log does not answer. The unfinished file is removed.
#[boxed]
pub async fn export(
    log: &EventLog,
    settings: &ExportSettings,
    stop: &CancellationToken,
    report: &(dyn Fn(ExportProgress) + Send + Sync),
) -> Result<ExportReport, ArchiveError> {
    let spans = spans(log, settings).await?;
    let total = spans.iter().map(|(_, from, until)| until.number() - from.number()).sum();
    let mut result = ExportReport { log: log.id().to_string(), ..ExportReport::default() };
    let mut common = match &settings.to {
        ExportTo::Directory(_) => None,
        ExportTo::File(path) => Some(Output::create(settings, Some(path), log)?),
        ExportTo::Output => Some(Output::create(settings, None, log)?),
    };
    let mut done = 0;
    report(ExportProgress { done, total });
    for (partition, from, until) in spans {
        let mut own = match &settings.to {
            ExportTo::Directory(directory) => {
                let path = directory.join(file_name(settings, partition, from, until));
                Some(Output::create(settings, Some(&path), log)?)
            }
            _ => None,
        };
        let Some(output) = own.as_mut().or(common.as_mut()) else { continue };
        let span = (partition, from, until);
        let complete = copy(log, span, settings, stop, output, &mut result, |offsets| {
            report(ExportProgress { done: done + offsets, total });
        });
        if !complete.await? {
            return Ok(result);
        }
        done += until.number() - from.number();
        if let Some(own) = own {
            result.files.extend(own.finish()?);
        }
    }
    if let Some(common) = common {
        result.files.extend(common.finish()?);
    }
    result.complete = true;
    Ok(result)
}

/// The parts that are to be read; none of them is empty.
async fn spans(log: &EventLog, settings: &ExportSettings) -> Result<Vec<Span>, LogError> {
    let mut spans = Vec::new();
    for partition in log.partitions().await? {
        let extent = log.extent(partition).await?;
        let from = match settings.since_ms {
            Some(ms) => log.offset_at(partition, ms).await?.max(extent.low),
            None => extent.low,
        };
        let until = match settings.until_ms {
            Some(ms) => log.offset_at(partition, ms).await?.min(extent.high),
            None => extent.high,
        };
        if from < until {
            spans.push((partition, from, until));
        }
    }
    Ok(spans)
}

/// Writes the records of a part. Returns whether it came to the end.
async fn copy(
    log: &EventLog,
    (partition, from, until): Span,
    settings: &ExportSettings,
    stop: &CancellationToken,
    output: &mut Output,
    result: &mut ExportReport,
    report: impl Fn(u64),
) -> Result<bool, ArchiveError> {
    let mut reader: Reader = log.reader(partition, from).await?;
    let (mut at, mut idle_since) = (from, tokio::time::Instant::now());
    while at < until {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let records = match reader.next(settings.read_limit).await {
            // Retention was faster: what it removed is not exported.
            Err(LogError::Trimmed { low, .. }) => {
                reader.seek(low);
                at = low.min(until);
                continue;
            }
            records => records?,
        };
        let passed = reader.passed().min(until);
        if passed <= at {
            if idle_since.elapsed() >= STALL {
                let waited_s = STALL.as_secs();
                return Err(ArchiveError::Stalled { partition, from: at, until, waited_s });
            }
            continue;
        }
        (at, idle_since) = (passed, tokio::time::Instant::now());
        for record in records.iter().filter(|record| record.offset < until) {
            write(record, settings, output, result)?;
        }
        report(at.number() - from.number());
    }
    Ok(true)
}

fn write(
    record: &Record,
    settings: &ExportSettings,
    output: &mut Output,
    result: &mut ExportReport,
) -> Result<(), ArchiveError> {
    let needs_columns = !settings.sources.is_empty() || settings.format == Format::Parquet;
    let columns = if needs_columns { Columns::of(&record.value) } else { Columns::default() };
    if !settings.sources.is_empty() && !columns.source_id().is_some_and(|id| settings.sources.contains(&id)) {
        result.other_sources += 1;
        return Ok(());
    }
    let error = LogRecord::decode(&record.value).err().map(|error| error.to_string());
    result.undecodable += u64::from(error.is_some());
    result.records += 1;
    output.write(record, &columns, error)
}

/// The name of a partition's file: its number, the first offset and the last one.
fn file_name(settings: &ExportSettings, partition: Partition, from: Offset, until: Offset) -> String {
    let last = until.number().saturating_sub(1);
    let ending = match (settings.format, settings.compression) {
        (Format::Parquet, _) => "parquet",
        (Format::Ndjson, Compression::Plain) => "ndjson",
        (Format::Ndjson, Compression::Gzip) => "ndjson.gz",
        (Format::Ndjson, Compression::Zstd) => "ndjson.zst",
    };
    format!("{:05}-{:020}-{last:020}.{ending}", partition.number(), from.number())
}

/// A file that is being written, or standard output.
struct Output {
    path: Option<PathBuf>,
    records: u64,
    file: OutputFile,
}

enum OutputFile {
    Ndjson(Box<NdjsonFile>),
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::ParquetFile>),
}

/// The bytes' way out.
pub(super) enum Sink {
    Output(std::io::Stdout),
    File(DurableFile),
}

impl Output {
    fn create(settings: &ExportSettings, path: Option<&Path>, log: &EventLog) -> Result<Self, ArchiveError> {
        let failed = |error| ArchiveError::away("writing", name(path))(error);
        let sink = match path {
            None => Sink::Output(std::io::stdout()),
            Some(path) => Sink::File(DurableFile::create(path).map_err(failed)?),
        };
        let file = match settings.format {
            Format::Ndjson => {
                let file = NdjsonFile::new(sink, settings.compression).map_err(failed)?;
                OutputFile::Ndjson(Box::new(file))
            }
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let file = parquet::ParquetFile::new(sink, settings.compression, log.id());
                OutputFile::Parquet(Box::new(file.map_err(failed)?))
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                let _ = log;
                let reason = "this program was built without the feature `parquet`".to_owned();
                return Err(ArchiveError::Place { place: name(path), reason });
            }
        };
        Ok(Self { path: path.map(Path::to_owned), records: 0, file })
    }

    fn write(
        &mut self,
        record: &Record,
        columns: &Columns<'_>,
        error: Option<String>,
    ) -> Result<(), ArchiveError> {
        self.records += 1;
        let written = match &mut self.file {
            OutputFile::Ndjson(file) => file.write(record),
            #[cfg(feature = "parquet")]
            OutputFile::Parquet(file) => file.write(record, columns, error),
        };
        #[cfg(not(feature = "parquet"))]
        let _ = (columns, error);
        written.map_err(ArchiveError::away("writing", name(self.path.as_deref())))
    }

    /// Ends the file and gives it its name.
    fn finish(self) -> Result<Option<ExportedFile>, ArchiveError> {
        let Self { path, records, file } = self;
        let name = name(path.as_deref());
        let finished = match file {
            OutputFile::Ndjson(file) => file.finish(),
            #[cfg(feature = "parquet")]
            OutputFile::Parquet(file) => file.finish(),
        };
        let sunk = finished.and_then(|sink| match sink {
            Sink::File(file) => file.finish().map(Some),
            Sink::Output(mut output) => output.flush().map(|()| None),
        });
        let bytes = sunk.map_err(ArchiveError::away("writing", name.clone()))?;
        Ok(bytes.map(|bytes| ExportedFile { path: name, records, bytes }))
    }
}

fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string())
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Output(output) => output.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Output(output) => output.flush(),
            Self::File(file) => file.flush(),
        }
    }
}
