//! The store in a SQLite file, WAL mode, every commit fsynced.
//!
//! SQLite has one writer at a time, so this process has one writing connection behind a fair lock: partitions
//! take turns instead of polling for the file's lock.

mod audit;
mod commit;
pub(crate) use commit::Written;
mod erasure;
mod generation;
mod insert;
mod layouts;
mod letters;
mod profile;
mod read;
mod rows;
mod sources;
mod tail;
mod trace;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_domain::fold::Outcomes;
use dashi_domain::guard::GuardRow;
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset, Partition};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _};
use tokio::sync::broadcast;
use uuid::Uuid;

use self::generation::note_live;
pub(crate) use self::rows::SqliteSnapshot;
use self::writer::Writer;
use crate::profile::CHANGES_MAX;
use crate::{Claim, ClaimError, ErrorNote, MissingRange, PartitionState, ProfileChange, StoreError};

/// Settings of a store in a SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteSettings {
    /// The file; its directory is made if it is not there.
    pub path: PathBuf,
}

/// Tables by version (`PRAGMA user_version`); a released step is never edited.
const STEPS: &[&str] = &[
    include_str!("dashi_1.sql"),
    include_str!("dashi_2.sql"),
    include_str!("dashi_3.sql"),
    include_str!("dashi_4.sql"),
    include_str!("dashi_5.sql"),
    include_str!("dashi_6.sql"),
    include_str!("dashi_7.sql"),
    include_str!("dashi_8.sql"),
    include_str!("dashi_9.sql"),
    include_str!("dashi_10.sql"),
];

/// The mark of this program's files (`PRAGMA application_id`): "Dash" in ASCII. Files from before this mark have 0.
const APPLICATION_ID: i32 = 0x44_61_73_68;

/// Where a file's header has its application id: four bytes, the highest first. Source: SQLite, "Database File Format".
const APPLICATION_ID_AT: usize = 68;

/// Pages that the writer keeps, and each of the readers, in KiB as a negative number. The writer changes pages all over the
/// indexes; a reader finds the file in the system's cache.
const WRITER_CACHE: &str = "-32000";
const READER_CACHE: &str = "-4000";

/// Pages of 4 KiB after which the journal is written into the file. A page that is changed again and again until then is
/// written once.
const JOURNAL_PAGES: &str = "16384";

/// The current time in milliseconds, as SQL.
const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// A store in a SQLite file, in WAL mode, with every commit fsynced. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct SqliteStore(Arc<Shared>);

struct Shared {
    writer: Writer,
    path: PathBuf,
    options: SqliteConnectOptions,
    readers: SqlitePool,
    changes: broadcast::Sender<ProfileChange>,
    /// The number of the live generation at the last claim; 0 before the first.
    live_generation: AtomicU32,
}

impl SqliteStore {
    /// Opens the file, making it if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened.
    #[boxed]
    pub async fn open(settings: &SqliteSettings) -> Result<Self, StoreError> {
        let failed = |source: crate::Cause| StoreError::Open {
            url: format!("sqlite:{}", settings.path.display()),
            source,
        };
        if let Some(directory) = settings.path.parent().filter(|path| !path.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| failed(Arc::new(error)))?;
        }
        refuse_other_programs_file(&settings.path)?;
        Self::connect(&settings.path, connect_options(&settings.path)).await
    }

    async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let failed = |error: sqlx::Error| StoreError::Open {
            url: format!("sqlite:{}", path.display()),
            source: Arc::new(error),
        };
        let writing = options.clone().row_buffer_size(ROWS_BUFFERED);
        let writer = Writer::connect(writing).await.map_err(failed)?;
        let reading = options.clone().read_only(true).pragma("cache_size", READER_CACHE);
        let readers = SqlitePoolOptions::new().max_connections(4).connect_lazy_with(reading);
        Ok(Self(Arc::new(Shared {
            writer,
            path: path.to_owned(),
            options,
            readers,
            changes: broadcast::Sender::new(CHANGES_MAX),
            live_generation: AtomicU32::new(0),
        })))
    }

    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        let doing = "making its tables";
        let mut writer = self.0.writer.alone().await;
        let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::away(doing))?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&mut *tx)
            .await
            .map_err(StoreError::away(doing))?;
        let known = STEPS.len() as i64;
        let application_id: i32 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&mut *tx)
            .await
            .map_err(StoreError::away(doing))?;
        if application_id != APPLICATION_ID {
            let tables: Vec<String> =
                sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(StoreError::away(doing))?;
            let is_of_before =
                (1..=known).contains(&found) && tables.iter().any(|name| name == "dashi_checkpoint");
            if !tables.is_empty() && !is_of_before {
                let holds = format!("it holds the tables {}", tables[..tables.len().min(5)].join(", "));
                return Err(StoreError::OtherProgram { path: self.0.path.display().to_string(), holds });
            }
        }
        if found > known {
            return Err(StoreError::Version { found, known });
        }
        for step in &STEPS[found as usize..] {
            sqlx::raw_sql(*step).execute(&mut *tx).await.map_err(StoreError::away(doing))?;
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "PRAGMA user_version = {known}; PRAGMA application_id = {APPLICATION_ID}"
        )))
        .execute(&mut *tx)
        .await
        .map_err(StoreError::away(doing))?;
        note_live(&mut tx, &self.0.path).await.map_err(StoreError::away(doing))?;
        tx.commit().await.map_err(StoreError::away(doing))
    }

    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(&self.0.readers)
            .await
            .map_err(StoreError::away("asking whether it is there"))?;
        Ok(())
    }

    pub(crate) async fn logs(&self) -> Result<Vec<LogId>, StoreError> {
        let logs: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT log_id FROM dashi_checkpoint ORDER BY log_id")
                .fetch_all(&self.0.readers)
                .await
                .map_err(StoreError::away("listing its logs"))?;
        Ok(logs.into_iter().map(LogId::new).collect())
    }

    pub(crate) async fn claim(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        let mut writer = self.0.writer.alone().await;
        // After a swap by another process every value may be another one.
        let live: Option<u32> =
            sqlx::query_scalar("SELECT number FROM dashi_generation WHERE state = 'live'")
                .fetch_optional(&mut *writer)
                .await
                .map_err(StoreError::away("claiming a partition"))?;
        let live = live.unwrap_or_default();
        let before = self.0.live_generation.swap(live, Ordering::AcqRel);
        if before != 0 && before != live {
            let _ = self.0.changes.send(ProfileChange::Resync);
        }
        sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "INSERT INTO dashi_checkpoint (log_id, partition, checkpoint, epoch, owner, live, updated_at)
             VALUES (?, ?, 0, 1, ?, 1, {NOW_MS})
             ON CONFLICT (log_id, partition) DO UPDATE
             SET epoch = epoch + 1, owner = excluded.owner, live = 1, updated_at = excluded.updated_at
             RETURNING epoch, checkpoint, fingerprint, last_error IS NOT NULL AND last_error_over_at IS NULL,
                 layout_version, layout_from, layout_to, tail_from, tail_to, tail_applied, tail_fingerprint"
        )))
        .bind(log.as_str())
        .bind(partition.number())
        .bind(owner)
        .fetch_one(&mut *writer)
        .await
        .map(|row| Claim::made(log, partition, row))
        .map_err(|error| StoreError::away("claiming a partition")(error).into())
    }

    pub(crate) async fn claim_for_replay(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        let doing = "claiming a partition for a replay";
        let mut writer = self.0.writer.alone().await;
        let row = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "INSERT INTO dashi_checkpoint (log_id, partition, checkpoint, epoch, owner, live, updated_at)
             SELECT ?, ?, 0, 1, ?, 0, {NOW_MS} WHERE NOT EXISTS (SELECT 1 FROM dashi_checkpoint WHERE live)
             ON CONFLICT (log_id, partition) DO UPDATE
             SET epoch = epoch + 1, owner = excluded.owner, updated_at = excluded.updated_at WHERE NOT live
             RETURNING epoch, checkpoint, fingerprint, last_error IS NOT NULL AND last_error_over_at IS NULL,
                 layout_version, layout_from, layout_to, tail_from, tail_to, tail_applied, tail_fingerprint"
        )))
        .bind(log.as_str())
        .bind(partition.number())
        .bind(owner)
        .fetch_optional(&mut *writer)
        .await
        .map_err(StoreError::away(doing))?;
        if let Some(row) = row {
            return Ok(Claim::made(log, partition, row));
        }
        let (partition, owner): (u32, String) = sqlx::query_as(
            "SELECT partition, owner FROM dashi_checkpoint WHERE live ORDER BY updated_at DESC LIMIT 1",
        )
        .fetch_one(&mut *writer)
        .await
        .map_err(StoreError::away(doing))?;
        Err(ClaimError::Live { partition: Partition::new(partition), owner })
    }

    pub(crate) async fn resume(&self, claim: &Claim) -> Result<Checkpoint, ClaimError> {
        let mut writer = self.0.writer.alone().await;
        let row = guard_row(&mut writer, claim).await.map_err(StoreError::away("reading a checkpoint"))?;
        claim.resume(row)
    }

    pub(crate) async fn note_error(&self, claim: &Claim, note: &ErrorNote<'_>) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE dashi_checkpoint SET last_error = ?, last_error_kind = ?, last_error_at = ?,
                 last_error_over_at = CASE WHEN ? THEN {NOW_MS} END
             WHERE log_id = ? AND partition = ? AND epoch = ?"
        )))
        .bind(note.text)
        .bind(note.kind)
        .bind(note.at_ms)
        .bind(note.is_over)
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(claim.epoch.number() as i64)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("noting an error"))?;
        Ok(())
    }

    pub(crate) async fn note_over(&self, claim: &Claim) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE dashi_checkpoint SET last_error_over_at = {NOW_MS}
             WHERE log_id = ? AND partition = ? AND epoch = ?
               AND last_error IS NOT NULL AND last_error_over_at IS NULL"
        )))
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(claim.epoch.number() as i64)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("noting that an error is over"))?;
        Ok(())
    }

    pub(crate) async fn partitions(&self) -> Result<Vec<PartitionState>, StoreError> {
        partition_states(&self.0.readers).await.map_err(StoreError::away("listing its partitions"))
    }

    pub(crate) async fn missing(&self) -> Result<Vec<MissingRange>, StoreError> {
        let doing = "listing what is missing";
        let rows = sqlx::query(
            "SELECT log_id, partition, start_offset, end_offset, records, cause, noted_at
             FROM dashi_missing ORDER BY log_id, partition, number",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        rows.iter().map(missing_range).collect::<Result<_, _>>().map_err(StoreError::away(doing))
    }

    pub(crate) async fn close(&self) {
        self.0.readers.close().await;
    }
}

/// Looks at a file before it is opened, for opening sets its journal's mode.
fn refuse_other_programs_file(path: &Path) -> Result<(), StoreError> {
    use std::io::Read as _;
    let mut header = [0_u8; APPLICATION_ID_AT + 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    // One that is not there, or empty, is made; one that is no database is for SQLite to refuse.
    if read.is_err() || !header.starts_with(b"SQLite format 3\0") {
        return Ok(());
    }
    let id = header[APPLICATION_ID_AT..].iter().fold(0_u32, |id, byte| id << 8 | u32::from(*byte));
    if id == 0 || id == APPLICATION_ID as u32 {
        return Ok(());
    }
    let holds = format!("its application id is {id:#010x}");
    Err(StoreError::OtherProgram { path: path.display().to_string(), holds })
}

/// How long a connection waits for another process that holds the file.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Statements that a connection keeps prepared: those of a batch, in each of their sizes.
const STATEMENTS_KEPT: usize = 256;

/// Rows that the writing connection reads ahead of who asked for them: a batch looks for thousands of sessions.
const ROWS_BUFFERED: usize = 1_024;

/// How long it waits before it opens the file again.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// SQLite's code for a file that another connection holds; extended codes have it in their lowest byte.
const BUSY: i32 = 5;

/// Connects to the file, which is made if it is not there. The first connection puts a new file into WAL mode. One that
/// meets another doing the same is refused at once, whatever its busy timeout, and so tries again.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        match SqliteConnection::connect_with(options).await {
            Err(error) if is_busy(&error) && Instant::now() < deadline => tokio::time::sleep(BUSY_WAIT).await,
            connected => return connected,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == BUSY)
}

fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_MAX)
        .statement_cache_capacity(STATEMENTS_KEPT)
        .pragma("wal_autocheckpoint", JOURNAL_PAGES)
        .pragma("cache_size", WRITER_CACHE)
}

async fn guard_row(connection: &mut SqliteConnection, claim: &Claim) -> Result<GuardRow, sqlx::Error> {
    let row = sqlx::query_as(
        "SELECT epoch, checkpoint, tail_from, tail_to, tail_applied FROM dashi_checkpoint
         WHERE log_id = ? AND partition = ?",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number())
    .fetch_one(connection)
    .await?;
    Ok(crate::tail::guard_row(row))
}

fn checkpoint_of(stored: i64) -> Checkpoint {
    Checkpoint::at(Offset::new(stored as u64))
}

fn missing_range(row: &SqliteRow) -> Result<MissingRange, sqlx::Error> {
    let offset = |column| row.try_get::<i64, _>(column).map(|offset| Offset::new(offset as u64));
    Ok(MissingRange {
        log: LogId::new(row.try_get::<String, _>("log_id")?),
        partition: Partition::new(row.try_get("partition")?),
        missing: Missing {
            range: offset("start_offset")?..offset("end_offset")?,
            records: row.try_get::<i64, _>("records")? as u64,
            cause: MissingCause::named(row.try_get("cause")?).unwrap_or(MissingCause::Gap),
        },
        noted_at_ms: row.try_get("noted_at")?,
    })
}

async fn partition_states(
    executor: impl sqlx::Executor<'_, Database = sqlx::Sqlite>,
) -> Result<Vec<PartitionState>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT log_id, partition, checkpoint, epoch, owner, applied, duplicate, dead,
                missing, markers, rewound, fingerprint, layout_version, layout_from, layout_to, updated_at,
                tail_from, tail_to, tail_applied,
                live, last_error, last_error_kind, last_error_at, last_error_over_at
         FROM dashi_checkpoint ORDER BY log_id, partition",
    )
    .fetch_all(executor)
    .await?;
    rows.iter().map(partition_state).collect()
}

fn partition_state(row: &SqliteRow) -> Result<PartitionState, sqlx::Error> {
    let count = |column| row.try_get::<i64, _>(column).map(|count| count as u64);
    Ok(PartitionState {
        log: LogId::new(row.try_get::<String, _>("log_id")?),
        partition: Partition::new(row.try_get("partition")?),
        checkpoint: checkpoint_of(row.try_get("checkpoint")?),
        tail: crate::tail::tail((
            row.try_get("tail_from")?,
            row.try_get("tail_to")?,
            row.try_get("tail_applied")?,
        )),
        fingerprint: row.try_get("fingerprint")?,
        epoch: Epoch::new(count("epoch")?),
        owner: row.try_get("owner")?,
        outcomes: Outcomes {
            applied: count("applied")?,
            duplicate: count("duplicate")?,
            dead: count("dead")?,
        },
        missing: count("missing")?,
        markers: count("markers")?,
        rewound: count("rewound")?,
        updated_at_ms: row.try_get("updated_at")?,
        layout: crate::layout::passed((
            row.try_get("layout_version")?,
            row.try_get("layout_from")?,
            row.try_get("layout_to")?,
        )),
        is_live: row.try_get("live")?,
        last_error: row.try_get("last_error")?,
        last_error_kind: row.try_get("last_error_kind")?,
        last_error_at_ms: row.try_get("last_error_at")?,
        last_error_over_at_ms: row.try_get("last_error_over_at")?,
    })
}

/// A UUID as its columns hold it: 36 lower-case characters, which people can read and which sort as the bytes do.
fn text(id: Uuid) -> String {
    id.hyphenated().to_string()
}

/// The UUID that a column holds as [`text`] writes it.
fn uuid(row: &SqliteRow, column: &str) -> Result<Uuid, sqlx::Error> {
    parse_uuid(row.try_get(column)?)
}

fn parse_uuid(text: &str) -> Result<Uuid, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
