//! `dashi export`: the log as NDJSON or Parquet files.

use std::path::PathBuf;

use dashi_archive::{Compression, ExportReport, ExportSettings, ExportTo, Format, export};
use dashi_config::Loaded;
use dashi_event_log::ReadLimit;

use crate::args::{ExportArgs, ExportCompression, ExportFormat};
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};
use crate::{interrupt, moment, open};

/// One read of the log.
const READ: ReadLimit =
    ReadLimit { records_max: 2_000, bytes_max: 4 * 1024 * 1024, wait: std::time::Duration::from_millis(500) };

/// Exports. An interrupt leaves only whole files.
pub async fn run(loaded: &Loaded, args: &ExportArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let zone = open::zone(settings)?;
    let moment = |text: &Option<String>, flag: &str| match text {
        None => Ok(None),
        Some(text) => moment::parse(text, &zone, now_ms())
            .map(Some)
            .map_err(|reason| Misuse(format!("{flag}: {reason}"))),
    };
    let (format, compression, to) = form(args)?;
    let how = ExportSettings {
        to,
        format,
        compression,
        sources: args.website.clone(),
        since_ms: moment(&args.since, "--since")?,
        until_ms: moment(&args.until, "--until")?,
        read_limit: READ,
    };
    let log = open::log(settings, open::Absent::Refuse).await?;
    let (display, stop) = (ProgressDisplay::new(args.json), interrupt::token());
    let report = export(&log, &how, &stop, &|at| {
        let (part, unit) = ("export", Unit::Of("records"));
        display.show(State { part, done: at.done, total: at.total, unit, note: None });
    })
    .await;
    display.finish();
    log.close().await;
    let report = report?;
    match (&how.to, args.json) {
        // Standard output has the records.
        (ExportTo::Output, false) => eprint!("{}", text(&report)),
        (ExportTo::Output, true) => eprintln!("{}", serde_json::to_string(&report)?),
        (_, true) => print(&format!("{}\n", serde_json::to_string(&report)?)),
        (_, false) => print(&text(&report)),
    }
    Ok(if report.complete { Exit::Done } else { Exit::Overdue })
}

/// Form and compression: the flags, or what the file's name says, or the form's own.
fn form(args: &ExportArgs) -> Result<(Format, Compression, ExportTo), Misuse> {
    let to = match &args.to {
        None => ExportTo::Output,
        Some(path) if path.is_dir() || path.as_os_str().to_string_lossy().ends_with('/') => {
            ExportTo::Directory(path.clone())
        }
        Some(path) => ExportTo::File(path.clone()),
    };
    let name = args.to.as_ref().and_then(|path: &PathBuf| path.file_name()).unwrap_or_default();
    let name = name.to_string_lossy();
    let format = match (args.format, &to) {
        (Some(ExportFormat::Ndjson), _) => Format::Ndjson,
        (Some(ExportFormat::Parquet), _) => Format::Parquet,
        (None, ExportTo::File(_)) if name.ends_with(".parquet") => Format::Parquet,
        (None, _) => Format::Ndjson,
    };
    let compression = match (args.compress, format, &to) {
        (Some(ExportCompression::Gzip), Format::Parquet, _) => {
            return Err(Misuse("--compress: Parquet files take zstd or none".to_owned()));
        }
        (Some(ExportCompression::Gzip), ..) => Compression::Gzip,
        (Some(ExportCompression::Zstd), ..) => Compression::Zstd,
        (Some(ExportCompression::None), ..) => Compression::Plain,
        (None, Format::Parquet, _) | (None, _, ExportTo::Directory(_)) => Compression::Zstd,
        (None, _, ExportTo::File(_)) if name.ends_with(".gz") => Compression::Gzip,
        (None, _, ExportTo::File(_)) if name.ends_with(".zst") => Compression::Zstd,
        (None, ..) => Compression::Plain,
    };
    if format == Format::Parquet && to == ExportTo::Output {
        return Err(Misuse("--format: a Parquet file is no text for standard output; give --to".to_owned()));
    }
    Ok((format, compression, to))
}

fn text(report: &ExportReport) -> String {
    let ExportReport { records, undecodable, other_sources, files, complete, .. } = report;
    let mut out = String::new();
    for file in files {
        out.push_str(&format!("{} ({} records, {} bytes)\n", file.path, file.records, file.bytes));
    }
    out.push_str(&format!("exported {records} records"));
    if *undecodable > 0 {
        out.push_str(&format!(", {undecodable} of which cannot be decoded (dead letters)"));
    }
    if *other_sources > 0 {
        out.push_str(&format!("; {other_sources} records are of other websites"));
    }
    out.push('\n');
    if !complete {
        out.push_str("interrupted: the files named above are whole, the others were not finished\n");
    }
    out
}
