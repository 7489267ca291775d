//! The embedded log: a directory of segments with the records, every append fsynced, and beside it the catalogue, a SQLite file
//! with what changes in place.
//!
//! One writer task takes all appends that are waiting and writes them as one frame, so that many requests share one fsync
//! (group commit) and none is answered before it.

mod append;
mod appender;
mod catalogue;
mod cursor;
mod frame;
mod growth;
mod lookout;
mod membership;
mod overwrite;
mod queue;
mod read;
mod retention;
mod segments;
#[cfg(test)]
mod tests;
mod upgrade;
mod window;

pub(crate) use append::Submitted;
pub(crate) use membership::SoleMembership;
pub(crate) use queue::Queued;
pub(crate) use read::EmbeddedReader;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use async_recursion::async_recursion as boxed;
use dashi_domain::layout::Layout;
use dashi_domain::position::{LogId, Offset, Partition};
use sqlx::SqliteConnection;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::append::{Append, Writer};
use self::appender::Appender;
use self::catalogue::{FORMAT, LOG_ID, connect, connect_options, create, low_offsets, now_ms};
use self::read::blocking;
use self::segments::Segments;
use crate::error::Cause;
use crate::{AppendError, Extent, LogError, OpenError};

/// Settings of an embedded log.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// The catalogue; its directory is made if it is not there. The segments lie beside it, in a directory whose name has
    /// `.segments` behind the file's.
    pub path: PathBuf,
    /// Partitions of a new log. An existing one keeps its own number.
    pub partitions: u32,
    /// Appends that may wait; one more is refused with [`AppendError::Full`].
    pub queue_max: usize,
    /// Appends that share one fsync, at most.
    pub batch_max: usize,
}

/// A log in files of this machine. Cheap to clone; all clones are one log.
///
/// Every append is fsynced, and all appends that wait share one fsync. Any number of processes may append and read; one
/// at a time projects.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Shared>);

struct Shared {
    id: LogId,
    path: PathBuf,
    segments: Arc<Segments>,
    queue: mpsc::Sender<Append>,
    readers: SqlitePool,
    /// For writes to the catalogue: checkpoints, retention, what takes the place of records.
    housekeeper: Mutex<SqliteConnection>,
    /// The first offset of each partition that retention has left, and the number of changes of the catalogue when it was read.
    low: StdMutex<Arc<Vec<u64>>>,
    changes: AtomicU64,
    /// Whether the last append was refused.
    is_failing: Arc<AtomicBool>,
    /// The end of the writer.
    written: Mutex<Option<oneshot::Receiver<()>>>,
    close: CancellationToken,
}

/// The directory of a log's segments.
pub(crate) fn segments_directory(path: &Path) -> PathBuf {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".segments");
    directory.into()
}

impl EmbeddedLog {
    /// Opens the log; makes its files if they are not there. Records of a file that an older program wrote are moved into
    /// segments, which takes some seconds for each gigabyte.
    ///
    /// # Errors
    /// The files cannot be opened, or a newer program wrote them.
    #[boxed]
    pub async fn open(settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let failed = |source: Cause| OpenError::File { path: path.clone(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| failed(Arc::new(error)))?;
        }
        let sql = |error: sqlx::Error| failed(Arc::new(error));
        let io = |error: std::io::Error| failed(Arc::new(error));
        let mut housekeeper = connect(&path).await.map_err(sql)?;
        let found = create(&mut housekeeper, settings.partitions).await.map_err(sql)?;
        if found.format > FORMAT {
            return Err(OpenError::Format { path, found: found.format, known: FORMAT });
        }
        let log = found.log_id.strip_prefix(LOG_ID).and_then(|id| Uuid::parse_str(id).ok());
        let log = log
            .ok_or_else(|| io(std::io::Error::other(format!("{} is no identity of a log", found.log_id))))?;
        let directory = segments_directory(&path);
        if found.format < FORMAT {
            upgrade::into_segments(&mut housekeeper, &path, &directory, log).await.map_err(sql)?;
        }
        let low = low_offsets(&mut housekeeper).await.map_err(sql)?;
        let new = (Layout { version: 0, partitions: found.partitions }, low.clone());
        let segments = blocking(move || Segments::open(&directory, log, new, now_ms())).await.map_err(io)?;
        let segments = Arc::new(segments);
        let changes = segments.refresh().map_err(io)?;
        let layout = segments.state().layout;
        if layout.partitions > found.partitions {
            // A process grew the log and died before it noted that.
            let before = Layout { version: layout.version - 1, partitions: found.partitions };
            growth::note_layout(&mut housekeeper, before, layout, now_ms()).await.map_err(sql)?;
        }
        let mut appender = Appender::new(Arc::clone(&segments)).map_err(io)?;
        appender.hold(now_ms()).and_then(|mut held| held.raise(&low)).map_err(io)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(connect_options(&path).read_only(true))
            .await
            .map_err(sql)?;
        let (queue, waiting) = mpsc::channel(settings.queue_max.max(1));
        let close = CancellationToken::new();
        let is_failing = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            appender,
            batch_max: settings.batch_max.max(1),
            refused: 0,
            is_failing: Arc::clone(&is_failing),
        };
        let (ended, written) = oneshot::channel();
        let (runtime, closed) = (tokio::runtime::Handle::current(), close.clone());
        std::thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || {
                runtime.block_on(writer.run(waiting, closed));
                let _ = ended.send(());
            })
            .map_err(io)?;
        tokio::spawn(lookout::run(Arc::downgrade(&segments)));
        Ok(Self(Arc::new(Shared {
            id: LogId::new(found.log_id),
            path,
            segments,
            queue,
            readers,
            housekeeper: Mutex::new(housekeeper),
            low: StdMutex::new(Arc::new(low)),
            changes: AtomicU64::new(changes),
            is_failing,
            written: Mutex::new(Some(written)),
            close,
        })))
    }

    pub(crate) fn id(&self) -> &LogId {
        &self.0.id
    }

    /// As this process knows it: another one may have let the log grow a moment ago. An append looks.
    pub(crate) fn partition_count(&self) -> u32 {
        *self.0.segments.partitions().borrow()
    }

    pub(crate) async fn extent(&self, partition: Partition) -> Result<Extent, LogError> {
        self.reload_low().await.map_err(LogError::away("reading a partition's extent"))?;
        self.known_extent(partition).await
    }

    /// The extent, by what the files of segments say: retention of another process is read again when they say that it was there.
    pub(crate) async fn known_extent(&self, partition: Partition) -> Result<Extent, LogError> {
        const READING: &str = "reading a partition's extent";
        let changes = self.0.segments.refresh().map_err(LogError::away(READING))?;
        if self.0.changes.swap(changes, Ordering::SeqCst) != changes {
            let reloaded = self.reload_low().await;
            if reloaded.is_err() {
                self.0.changes.store(changes.wrapping_sub(1), Ordering::SeqCst);
            }
            reloaded.map_err(LogError::away(READING))?;
        }
        let low = self.low().get(partition.number() as usize).copied().unwrap_or(0);
        let high = self.0.segments.state().next_of(partition).max(low);
        Ok(Extent { low: Offset::new(low), high: Offset::new(high) })
    }

    fn low(&self) -> Arc<Vec<u64>> {
        Arc::clone(&self.0.low.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reload_low(&self) -> Result<(), sqlx::Error> {
        let mut connection = self.0.readers.acquire().await?;
        let low = Arc::new(low_offsets(&mut connection).await?);
        *self.0.low.lock().unwrap_or_else(PoisonError::into_inner) = low;
        Ok(())
    }

    /// Writes a file beside the segments, makes it durable, and removes it: a disk that is full or read-only refuses that. After
    /// an append that was refused, it writes where the next one will, so that the log is well again without one.
    pub(crate) async fn probe(&self) -> Result<(), LogError> {
        const PROBING: &str = "probing whether it can be written";
        if self.0.queue.is_closed() {
            return Err(LogError::Away { doing: "probing it", source: Arc::new(AppendError::Closed) });
        }
        if self.0.is_failing.load(Ordering::SeqCst) {
            let segments = Arc::clone(&self.0.segments);
            let probe = move || Appender::new(segments)?.hold(now_ms())?.make_room();
            blocking(probe).await.map_err(LogError::away(PROBING))?;
        }
        let path = self.0.segments.directory().join(format!("probe-{}", Uuid::now_v7()));
        let probe = move || {
            let written = std::fs::File::create(&path).and_then(|mut file| {
                std::io::Write::write_all(&mut file, &[1; 16 << 10])?;
                file.sync_data()
            });
            std::fs::remove_file(&path).and(written)
        };
        blocking(probe).await.map_err(LogError::away(PROBING))
    }

    pub(crate) async fn close(&self) {
        self.0.close.cancel();
        if let Some(written) = self.0.written.lock().await.take()
            && written.await.is_err()
        {
            tracing::error!("the event log's writer ended with a panic");
        }
        self.0.readers.close().await;
    }
}
