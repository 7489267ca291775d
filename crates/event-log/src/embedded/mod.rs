//! The embedded log: one SQLite file in WAL mode, every commit fsynced.
//!
//! One writer task owns the writing connection. It takes all appends that are waiting and commits them as one
//! transaction, so that many requests share one fsync (group commit) and none is answered before it.

mod append;
mod file;
mod growth;
mod lookout;
mod membership;
mod overwrite;
mod queue;
mod read;
mod retention;

pub(crate) use append::Submitted;
pub(crate) use membership::SoleMembership;
pub(crate) use queue::Queued;
pub(crate) use read::EmbeddedReader;

use std::path::PathBuf;
use std::sync::Arc;

use dashi_domain::position::{LogId, Offset, Partition};
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::append::{Append, Writer};
use self::file::{FORMAT, HIGH_WATERMARK, connect, connect_options, create, now_ms};
use self::lookout::Lookout;
use crate::error::Cause;
use crate::{AppendError, Extent, LogError, OpenError};

/// Settings of an embedded log.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// The file; its directory is made if it is not there.
    pub path: PathBuf,
    /// Partitions of a new log. An existing one keeps its own number.
    pub partitions: u32,
    /// Appends that may wait; one more is refused with [`AppendError::Full`].
    pub queue_max: usize,
    /// Appends that share one commit, at most.
    pub batch_max: usize,
}

/// A log in a SQLite file of this machine. Cheap to clone; all clones are one log.
///
/// Every commit is fsynced, and all appends that wait share one commit. Any number of processes may append and read; one
/// at a time projects.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Shared>);

struct Shared {
    id: LogId,
    path: PathBuf,
    /// As this process knows it: another one may have grown the log a moment ago. An append reads the file.
    partitions: watch::Sender<u32>,
    queue: mpsc::Sender<Append>,
    readers: SqlitePool,
    /// For the rare writes that are no appends: probes, checkpoints, retention.
    housekeeper: Mutex<SqliteConnection>,
    /// Counts commits: those of this process at once, so that its readers wake, those of others when they are noticed.
    commits: watch::Receiver<u64>,
    writer: Mutex<Option<JoinHandle<()>>>,
    close: CancellationToken,
}

impl EmbeddedLog {
    /// Opens the log; makes the file if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened, or a newer program wrote it.
    pub async fn open(settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let failed = |source: Cause| OpenError::File { path: path.clone(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| failed(Arc::new(error)))?;
        }
        let sql = |error: sqlx::Error| failed(Arc::new(error));
        let mut writer = connect(&path).await.map_err(sql)?;
        let (format, id) = create(&mut writer, settings.partitions).await.map_err(sql)?;
        if format > FORMAT {
            return Err(OpenError::Format { path, found: format, known: FORMAT });
        }
        let partitions: i64 =
            sqlx::query_scalar("SELECT count(*) FROM partition").fetch_one(&mut writer).await.map_err(sql)?;
        let housekeeper = connect(&path).await.map_err(sql)?;
        let lookout = connect(&path).await.map_err(sql)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(connect_options(&path).read_only(true))
            .await
            .map_err(sql)?;
        let (queue, waiting) = mpsc::channel(settings.queue_max.max(1));
        let (committed, commits) = watch::channel(0);
        let close = CancellationToken::new();
        let partitions = watch::Sender::new(partitions as u32);
        let lookout =
            Lookout { connection: lookout, committed: committed.clone(), partitions: partitions.clone() };
        tokio::spawn(lookout.run(close.clone()));
        let writer = Writer {
            path: settings.path.clone(),
            connection: writer,
            partitions: partitions.clone(),
            batch_max: settings.batch_max.max(1),
            committed,
            refused: 0,
        };
        let writer = tokio::spawn(writer.run(waiting, close.clone()));
        Ok(Self(Arc::new(Shared {
            id: LogId::new(id),
            path,
            partitions,
            queue,
            readers,
            housekeeper: Mutex::new(housekeeper),
            commits,
            writer: Mutex::new(Some(writer)),
            close,
        })))
    }

    pub(crate) fn id(&self) -> &LogId {
        &self.0.id
    }

    pub(crate) fn partition_count(&self) -> u32 {
        *self.0.partitions.borrow()
    }

    pub(crate) async fn extent(&self, partition: Partition) -> Result<Extent, LogError> {
        let (low, high): (i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT low_offset, {HIGH_WATERMARK} FROM partition WHERE partition = ?"
        )))
        .bind(partition.number())
        .fetch_one(&self.0.readers)
        .await
        .map_err(LogError::away("reading a partition's extent"))?;
        Ok(Extent { low: Offset::new(low as u64), high: Offset::new(high as u64) })
    }

    pub(crate) async fn probe(&self) -> Result<(), LogError> {
        if self.0.queue.is_closed() {
            return Err(LogError::Away { doing: "probing it", source: Arc::new(AppendError::Closed) });
        }
        let mut housekeeper = self.0.housekeeper.lock().await;
        sqlx::query("UPDATE meta SET probed_at_ms = ?")
            .bind(now_ms())
            .execute(&mut *housekeeper)
            .await
            .map_err(LogError::away("probing whether it can be written"))?;
        Ok(())
    }

    pub(crate) async fn close(&self) {
        self.0.close.cancel();
        if let Some(writer) = self.0.writer.lock().await.take()
            && let Err(error) = writer.await
        {
            tracing::error!(error = %error, "the event log's writer ended with a panic");
        }
        self.0.readers.close().await;
    }
}
