//! The directory of a spool, or of a lane: a lock, and a file for each log whose records wait in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dashi_domain::position::{LogId, Offset};
use uuid::Uuid;

use super::forward::{BYTES_MAX, RECORDS_MAX};
use crate::embedded::{EmbeddedLog, EmbeddedSettings, Queued, segments_directory};
use crate::error::Cause;
use crate::{LogError, NewRecord, OpenError};

/// A directory and its files.
pub(crate) struct QueueFile<'s> {
    /// For people, such as "the spool".
    pub(crate) name: &'static str,
    /// Begins the names of its files.
    pub(crate) prefix: &'static str,
    /// The name of the file whose lock the process holds.
    pub(crate) lock: &'static str,
    pub(crate) directory: &'s Path,
    /// Appends that may wait for the file.
    pub(crate) queue_max: usize,
    /// Appends that share one fsync, at most.
    pub(crate) batch_max: usize,
    /// Whether records that wait for other logs are to be put behind those of this one.
    pub(crate) adopt: bool,
}

/// Opens the file of a log, and looks at those of other logs. Returns the file, the records of the others, and the lock.
pub(crate) async fn open(
    log: &LogId,
    settings: &QueueFile<'_>,
) -> Result<(EmbeddedLog, Vec<(String, u64)>, File), OpenError> {
    let (directory, name) = (settings.directory, settings.name);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: Cause| OpenError::Spool { path, source }
    };
    fs::create_dir_all(directory).map_err(|error| failed(directory)(Arc::new(error)))?;
    let lock = lock(directory, settings.lock)?;
    let path = directory.join(format!(
        "{}{}.db",
        settings.prefix,
        Uuid::new_v5(&Uuid::nil(), log.as_str().as_bytes())
    ));
    let own = open_file(&path, settings).await?;
    let destination = own.destination(log.as_str()).await.map_err(|error| failed(&path)(Arc::new(error)))?;
    if destination != log.as_str() {
        return Err(OpenError::SpoolOfOther { path, destination, log: log.clone() });
    }
    put_back(&own).await.map_err(|error| failed(&path)(Arc::new(error)))?;
    let mut apart = Vec::new();
    for other in files(directory, settings.prefix).map_err(|error| failed(directory)(Arc::new(error)))? {
        if other == path {
            continue;
        }
        let file = open_file(&other, settings).await?;
        let looked = look(&file).await.map_err(|error| failed(&other)(Arc::new(error)));
        let (destination, records) = looked?;
        if records > 0 && settings.adopt {
            adopt(&file, &own).await.map_err(|error| failed(&other)(Arc::new(error)))?;
            tracing::warn!(records, from = destination, to = %log, "records of another log that waited in {name} are forwarded to this one");
        } else if records > 0 {
            tracing::warn!(
                records,
                of = destination,
                file = %other.display(),
                "events wait in {name} for another log: start once on that log, or with --accept-new-log to forward them \
                 to this one"
            );
            apart.push((destination, records));
        }
        file.close().await;
        if records == 0 || settings.adopt {
            remove(&other);
        }
    }
    Ok((own, apart, lock))
}

fn lock(directory: &Path, name: &str) -> Result<File, OpenError> {
    let path = directory.join(name);
    let failed = |error: std::io::Error| OpenError::Spool { path: path.clone(), source: Arc::new(error) };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::SpoolTaken { lock: path }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

async fn open_file(path: &Path, settings: &QueueFile<'_>) -> Result<EmbeddedLog, OpenError> {
    let settings = EmbeddedSettings {
        path: path.to_owned(),
        partitions: 1,
        queue_max: settings.queue_max,
        batch_max: settings.batch_max,
    };
    EmbeddedLog::open(settings).await.map_err(|error| match error {
        OpenError::File { path, source } => OpenError::Spool { path, source },
        error => error,
    })
}

/// The files in a directory whose names begin so.
fn files(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, std::io::Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let is_spool = name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(".db"));
        if is_spool {
            files.push(directory.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// The log that a file's records wait for, and how many there are.
async fn look(file: &EmbeddedLog) -> Result<(String, u64), LogError> {
    let destination =
        file.destination("").await.map_err(LogError::away("reading the spool's destination"))?;
    let content = file.content().await?;
    Ok((destination, content.records + content.aside))
}

/// Puts records that were set aside behind the others, to be tried again. One that is put back twice, because the process
/// was killed in between, is in the log twice, with one id.
async fn put_back(own: &EmbeddedLog) -> Result<(), LogError> {
    loop {
        let aside = own.aside().await?;
        if aside.is_empty() {
            return Ok(());
        }
        for Queued { offset, record } in aside {
            append(own, vec![record]).await?;
            own.remove_aside(offset).await?;
        }
    }
}

/// Copies all records of another log's file behind those of this one. If the process is killed meanwhile, they are copied
/// again, and the fold recognises the copies.
async fn adopt(from: &EmbeddedLog, own: &EmbeddedLog) -> Result<(), LogError> {
    put_back(from).await?;
    let mut next = Offset::ZERO;
    loop {
        let queued = from.front(next, RECORDS_MAX, BYTES_MAX).await?;
        let Some(last) = queued.last() else { return Ok(()) };
        next = last.offset.next();
        append(own, queued.into_iter().map(|queued| queued.record).collect()).await?;
    }
}

async fn append(own: &EmbeddedLog, records: Vec<NewRecord>) -> Result<(), LogError> {
    let away = LogError::away("writing the spool");
    let outcomes = own.append(records).await.into_iter().collect::<Result<Vec<_>, _>>();
    outcomes.map(drop).map_err(away)
}

fn remove(path: &Path) {
    let segments = segments_directory(path);
    // The catalogue goes last: without it nobody would know whose the segments are.
    match fs::remove_dir_all(&segments) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(error = %error, directory = %segments.display(), "files without records cannot be removed");
            return;
        }
        _ => {}
    }
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(error = %error, file = %path.display(), "a file without records cannot be removed")
            }
        }
    }
}
