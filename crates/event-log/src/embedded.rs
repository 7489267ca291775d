//! The embedded log: one SQLite file in WAL mode, every commit fsynced.
//!
//! One writer task owns the writing connection. It takes all appends that are waiting and commits them as one
//! transaction, so that many requests share one fsync (group commit) and none is answered before it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashi_domain::calendar::ms_since_1970;
use dashi_domain::partitioner;
use dashi_domain::position::{LogId, Offset, Partition};
use dashi_domain::record::Record;
use futures::TryStreamExt as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::error::Cause;
use crate::membership::SoleMembership;
use crate::{
    AppendError, Extent, LogError, Membership, NewRecord, OpenError, PartitionCheckpoint, ReadLimit,
};

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

/// Format of the file: what the tables below are.
const FORMAT: i64 = 1;

/// A record's row id is its partition times this, plus its offset: one B-tree, in which each partition is a run
/// of its own.
const OFFSETS_PER_PARTITION: i64 = 1 << 40;

/// How long a read waits before it looks for records of another process.
const POLL: Duration = Duration::from_millis(100);

/// Rows of one insert statement, at most. Each number of rows is a statement of its own, kept prepared.
const ROWS_PER_INSERT: usize = 64;

/// The offset that the next record of `partition` gets, in a query on the table `partition`: one past its newest
/// record, or, where retention has left none, past the newest that it removed.
const HIGH_WATERMARK: &str = "max(low_offset, coalesce(
    (SELECT id FROM record WHERE id >= (partition << 40) AND id < ((partition + 1) << 40) ORDER BY id DESC LIMIT 1)
    + 1 - (partition << 40), 0))";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        format INTEGER NOT NULL,
        log_id TEXT NOT NULL,
        probed_at_ms INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS partition (
        partition INTEGER PRIMARY KEY,
        low_offset INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS record (
        id INTEGER PRIMARY KEY,
        appended_at_ms INTEGER NOT NULL,
        session_id TEXT NOT NULL,
        value BLOB NOT NULL
    );
    CREATE TABLE IF NOT EXISTS position (
        projection TEXT NOT NULL,
        partition INTEGER NOT NULL,
        checkpoint INTEGER NOT NULL,
        PRIMARY KEY (projection, partition)
    );
";

/// See the module's text. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Shared>);

struct Shared {
    id: LogId,
    path: PathBuf,
    partitions: u32,
    queue: mpsc::Sender<Append>,
    readers: SqlitePool,
    /// For the rare writes that are no appends.
    housekeeper: Mutex<SqliteConnection>,
    /// Counts commits of this process, so that its readers wake at once.
    commits: watch::Receiver<u64>,
    writer: Mutex<Option<tokio::task::JoinHandle<()>>>,
    close: tokio_util::sync::CancellationToken,
}

struct Append {
    entries: Vec<NewRecord>,
    done: oneshot::Sender<Result<Vec<(Partition, Offset)>, AppendError>>,
}

impl EmbeddedLog {
    /// Opens the log, making it if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened, or a newer program wrote it.
    pub async fn open(settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let path = settings.path.clone();
        let failed = |source: Cause| OpenError::File { path: path.clone(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| failed(Arc::new(error)))?;
        }
        let options = connect_options(&path);
        let sql = |error: sqlx::Error| failed(Arc::new(error));
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(sql)?;
        let (format, id) = create(&mut writer, settings.partitions).await.map_err(sql)?;
        if format > FORMAT {
            return Err(OpenError::Format { path, found: format, known: FORMAT });
        }
        let partitions: i64 =
            sqlx::query_scalar("SELECT count(*) FROM partition").fetch_one(&mut writer).await.map_err(sql)?;
        let housekeeper = SqliteConnection::connect_with(&options).await.map_err(sql)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true))
            .await
            .map_err(sql)?;
        let (queue, waiting) = mpsc::channel(settings.queue_max.max(1));
        let (committed, commits) = watch::channel(0);
        let close = tokio_util::sync::CancellationToken::new();
        let writer = Writer {
            path: settings.path.clone(),
            connection: writer,
            partitions: partitions as u32,
            batch_max: settings.batch_max.max(1),
            committed,
            refused: 0,
        };
        let writer = tokio::spawn(writer.run(waiting, close.clone()));
        Ok(Self(Arc::new(Shared {
            id: LogId::new(id),
            path,
            partitions: partitions as u32,
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
        self.0.partitions
    }

    pub(crate) async fn append(
        &self,
        entries: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let count = entries.len();
        match self.enqueue(entries).await {
            Ok(places) => places.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    async fn enqueue(&self, entries: Vec<NewRecord>) -> Result<Vec<(Partition, Offset)>, AppendError> {
        let (done, outcome) = oneshot::channel();
        self.0.queue.try_send(Append { entries, done }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => AppendError::Full,
            mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
        })?;
        outcome.await.unwrap_or(Err(AppendError::Closed))
    }

    pub(crate) fn reader(&self, partition: Partition, from: Offset) -> EmbeddedReader {
        EmbeddedReader { log: self.clone(), partition, next: from, commits: self.0.commits.clone() }
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

    pub(crate) fn membership(&self, group: &str) -> Result<Membership, LogError> {
        let lock = lock_path(&self.0.path);
        let away = LogError::away("taking the projector's lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(away)?;
        match file.try_lock() {
            Ok(()) => Ok(Membership::Sole(SoleMembership {
                log: self.clone(),
                group: group.to_owned(),
                assigned: false,
                is_failing: false,
                _lock: file,
            })),
            Err(std::fs::TryLockError::WouldBlock) => Err(LogError::Taken { lock }),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(LogError::away("taking the projector's lock")(error))
            }
        }
    }

    pub(crate) async fn save_checkpoints(
        &self,
        group: &str,
        checkpoints: &[PartitionCheckpoint],
    ) -> Result<(), LogError> {
        let away = LogError::away("saving the projection's checkpoints");
        let mut housekeeper = self.0.housekeeper.lock().await;
        let saved = async {
            let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
            for (partition, checkpoint) in checkpoints {
                sqlx::query(
                    "INSERT INTO position (projection, partition, checkpoint) VALUES (?, ?, ?)
                     ON CONFLICT (projection, partition) DO UPDATE SET checkpoint = excluded.checkpoint",
                )
                .bind(group)
                .bind(partition.number())
                .bind(checkpoint.offset().number() as i64)
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        }
        .await;
        if saved.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        saved.map_err(away)
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

    pub(crate) async fn trim(&self, before_ms: i64) -> Result<u64, LogError> {
        let mut removed = 0;
        for partition in (0..self.0.partitions).map(Partition::new) {
            loop {
                let gone = self.trim_some(partition, before_ms).await;
                if gone.is_err() {
                    renew(&mut *self.0.housekeeper.lock().await, &self.0.path).await;
                }
                let gone = gone.map_err(LogError::away("removing what retention no longer keeps"))?;
                removed += gone;
                if gone == 0 {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Removes some of the oldest records of a partition; a bounded number, so that appends wait but briefly.
    /// A log that no projection has ever read keeps everything, and a projection that has saved no position for
    /// this partition yet needs all of it.
    async fn trim_some(&self, partition: Partition, before_ms: i64) -> Result<u64, sqlx::Error> {
        const ROWS: i64 = 2_000;
        let base = i64::from(partition.number()) * OFFSETS_PER_PARTITION;
        let mut housekeeper = self.0.housekeeper.lock().await;
        let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
        let applied: Option<i64> =
            sqlx::query_scalar(
                "SELECT min(coalesce(position.checkpoint, 0)) FROM (SELECT DISTINCT projection FROM position) AS known
                 LEFT JOIN position ON position.projection = known.projection AND position.partition = ?",
            )
            .bind(partition.number())
            .fetch_one(&mut *tx)
            .await?;
        // The first record to stay: the oldest that is young enough, not applied, or beyond this round.
        let stays: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM (SELECT id, appended_at_ms FROM record WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3)
             WHERE appended_at_ms >= ?4 OR id >= ?5 ORDER BY id LIMIT 1",
        )
        .bind(base)
        .bind(base + OFFSETS_PER_PARTITION)
        .bind(ROWS)
        .bind(before_ms)
        .bind(base + applied.unwrap_or(0))
        .fetch_optional(&mut *tx)
        .await?;
        let end = match stays {
            Some(id) => id,
            None => {
                let last: Option<i64> = sqlx::query_scalar(
                    "SELECT max(id) FROM (SELECT id FROM record WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3)",
                )
                .bind(base)
                .bind(base + OFFSETS_PER_PARTITION)
                .bind(ROWS)
                .fetch_one(&mut *tx)
                .await?;
                last.map_or(base, |id| id + 1)
            }
        };
        let gone = sqlx::query("DELETE FROM record WHERE id >= ? AND id < ?")
            .bind(base)
            .bind(end)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if gone > 0 {
            sqlx::query("UPDATE partition SET low_offset = ? WHERE partition = ?")
                .bind(end - base)
                .bind(partition.number())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(gone)
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

fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .statement_cache_capacity(128)
        .pragma("wal_autocheckpoint", "4000")
        .pragma("cache_size", "-16000")
}

/// Replaces a connection whose transaction failed. Where SQLite has rolled back by itself, as it does on a full disk,
/// the driver takes the transaction to be open still and begins no other on that connection.
async fn renew(connection: &mut SqliteConnection, path: &Path) {
    match SqliteConnection::connect_with(&connect_options(path)).await {
        Ok(new) => *connection = new,
        // The next transaction fails as this one did, and then this is tried again.
        Err(error) => tracing::debug!(error = %error, "the event log's file cannot be opened anew"),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".projector-lock");
    lock.into()
}

/// Makes the tables if they are not there; returns format and identity. Safe from two processes at once.
async fn create(connection: &mut SqliteConnection, partitions: u32) -> Result<(i64, String), sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
    let id = format!("embedded:{}", Uuid::now_v7());
    let made = sqlx::query("INSERT INTO meta (only, format, log_id) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(FORMAT)
        .bind(id)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    if made == 1 {
        for partition in 0..partitions.max(1) {
            sqlx::query("INSERT INTO partition (partition, low_offset) VALUES (?, 0)")
                .bind(partition)
                .execute(&mut *tx)
                .await?;
        }
    }
    let found = sqlx::query_as("SELECT format, log_id FROM meta").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(found)
}

/// The only one who appends in this process. Another process may append too: offsets are read anew in each
/// transaction, which the file's lock serialises.
struct Writer {
    path: PathBuf,
    connection: SqliteConnection,
    partitions: u32,
    batch_max: usize,
    committed: watch::Sender<u64>,
    /// Appends refused since the log could last be written.
    refused: usize,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::Receiver<Append>, close: tokio_util::sync::CancellationToken) {
        let mut appends = Vec::with_capacity(self.batch_max);
        loop {
            let taken = tokio::select! {
                biased;
                taken = waiting.recv_many(&mut appends, self.batch_max) => taken,
                () = close.cancelled() => {
                    // What is in the queue still gets its outcome; nothing new gets in.
                    waiting.close();
                    waiting.recv_many(&mut appends, self.batch_max).await
                }
            };
            if taken == 0 {
                return;
            }
            let outcome = self.commit(&appends).await;
            match outcome {
                Ok(positions) => {
                    if self.refused > 0 {
                        tracing::info!(refused = self.refused, "the event log can be written again");
                        self.refused = 0;
                    }
                    let mut positions = positions.into_iter();
                    for append in appends.drain(..) {
                        let mine = positions.by_ref().take(append.entries.len()).collect();
                        // Whoever asked may have gone; the record is in all the same.
                        let _ = append.done.send(Ok(mine));
                    }
                    self.committed.send_modify(|commits| *commits += 1);
                }
                Err(error) => {
                    // Told once: whoever fills a disk is not to fill it with this.
                    if self.refused == 0 {
                        tracing::error!(error = %error, appends = taken, "the event log cannot be written");
                    }
                    self.refused += taken;
                    renew(&mut self.connection, &self.path).await;
                    let cause: Cause = Arc::new(error);
                    for append in appends.drain(..) {
                        let _ = append.done.send(Err(AppendError::Unconfirmed(Arc::clone(&cause))));
                    }
                }
            }
        }
    }

    /// Writes all entries in one transaction. Durable when it returns `Ok`.
    async fn commit(&mut self, appends: &[Append]) -> Result<Vec<(Partition, Offset)>, sqlx::Error> {
        let written = self.write(appends).await;
        if written.is_err() {
            // What is left of the transaction goes. If nothing is, this fails and does no harm.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
        }
        written
    }

    /// Each statement is a round trip to the connection's own thread, so there are as few as there can be: the
    /// high watermarks are read from the records, where appends of another process show too, and kept nowhere.
    async fn write(&mut self, appends: &[Append]) -> Result<Vec<(Partition, Offset)>, sqlx::Error> {
        let now_ms = now_ms();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        let mut next: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT {HIGH_WATERMARK} FROM partition ORDER BY partition"
        )))
        .fetch_all(&mut self.connection)
        .await?;
        let mut rows = Vec::with_capacity(appends.iter().map(|append| append.entries.len()).sum());
        let mut positions = Vec::with_capacity(rows.capacity());
        for entry in appends.iter().flat_map(|append| &append.entries) {
            let key = partitioner::key(entry.session_id);
            let partition = partitioner::partition_for(key.as_bytes(), self.partitions);
            let offset = &mut next[partition.number() as usize];
            rows.push((i64::from(partition.number()) * OFFSETS_PER_PARTITION + *offset, key, &entry.value));
            positions.push((partition, Offset::new(*offset as u64)));
            *offset += 1;
        }
        // In the order of their ids, so that each partition's run is one visit to the B-tree.
        rows.sort_unstable_by_key(|(id, ..)| *id);
        for some in rows.chunks(ROWS_PER_INSERT) {
            let mut insert = sqlx::query(AssertSqlSafe(insert_sql(some.len())));
            for (id, key, value) in some {
                insert = insert.bind(id).bind(now_ms).bind(key).bind(value.as_slice());
            }
            insert.execute(&mut self.connection).await?;
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(positions)
    }
}

fn insert_sql(rows: usize) -> String {
    let mut sql = String::from("INSERT INTO record (id, appended_at_ms, session_id, value) VALUES (?,?,?,?)");
    sql.push_str(&",(?,?,?,?)".repeat(rows - 1));
    sql
}

/// See [`crate::Reader`].
pub struct EmbeddedReader {
    log: EmbeddedLog,
    partition: Partition,
    next: Offset,
    commits: watch::Receiver<u64>,
}

impl EmbeddedReader {
    pub(crate) fn seek(&mut self, offset: Offset) {
        self.next = offset;
    }

    pub(crate) fn passed(&self) -> Offset {
        self.next
    }

    pub(crate) async fn next(&mut self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let deadline = tokio::time::Instant::now() + limit.wait;
        loop {
            self.commits.mark_unchanged();
            let records = self.read(limit).await?;
            if let Some(first) = records.first() {
                // A hole before the first record is one that retention made: we leave none.
                if first.offset > self.next {
                    self.refuse_outside().await?;
                }
                if let Some(last) = records.last() {
                    self.next = last.offset.next();
                }
                return Ok(records);
            }
            self.refuse_outside().await?;
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Ok(Vec::new());
            }
            // Woken by this process's appends; those of another are found by looking. When the writer is gone, the
            // channel answers at once, for ever: then this is a wait like any other.
            let wait = tokio::time::sleep(POLL.min(deadline - now));
            tokio::select! {
                Ok(()) = self.commits.changed() => {}
                () = wait => {}
            }
        }
    }

    async fn read(&self, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let base = i64::from(self.partition.number()) * OFFSETS_PER_PARTITION;
        let mut rows = sqlx::query(
            "SELECT id, appended_at_ms, value FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        )
        .bind(base + self.next.number() as i64)
        .bind(base + OFFSETS_PER_PARTITION)
        .bind(limit.records_max.max(1) as i64)
        .fetch(&self.log.0.readers);
        let away = |error| LogError::away("reading records")(error);
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await.map_err(away)? {
            let id: i64 = row.try_get(0).map_err(away)?;
            let value: Vec<u8> = row.try_get(2).map_err(away)?;
            bytes += value.len();
            records.push(Record {
                partition: self.partition,
                offset: Offset::new((id - base) as u64),
                appended_at_ms: row.try_get(1).map_err(away)?,
                value,
            });
            if bytes >= limit.bytes_max {
                break;
            }
        }
        Ok(records)
    }

    async fn refuse_outside(&self) -> Result<(), LogError> {
        let Extent { low, high } = self.log.extent(self.partition).await?;
        let (partition, from) = (self.partition, self.next);
        if from < low {
            return Err(LogError::Trimmed { partition, from, low });
        }
        if from > high {
            return Err(LogError::Beyond { partition, from, high });
        }
        Ok(())
    }
}

/// The log stamps its records itself, as a Kafka client does.
#[expect(clippy::disallowed_methods, reason = "the log is an edge: it stamps what it takes")]
fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_has_a_tuple_per_row() {
        assert_eq!(insert_sql(1).matches("(?,?,?,?)").count(), 1);
        assert_eq!(insert_sql(64).matches("(?,?,?,?)").count(), 64);
    }

    #[test]
    fn the_high_watermarks_query_knows_where_partitions_begin() {
        assert_eq!(OFFSETS_PER_PARTITION, 1 << 40, "HIGH_WATERMARK spells it out");
    }
}
