//! The catalogue, a SQLite file: identity, layouts, what retention removed, checkpoints, and what takes the place of records. Its
//! tables, connections to it, and the replacement of a connection whose transaction failed.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use dashi_domain::calendar::ms_since_1970;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};
use uuid::Uuid;

/// The format of the catalogue that this program makes and knows: the tables of [`SCHEMA`], and records in segments. Files of the
/// formats 1 and 2 have their records in a table; they get this one when they are opened.
pub(super) const FORMAT: i64 = 3;

/// A record in the catalogue has its partition times this, plus its offset, as its row id.
pub(super) const OFFSETS_PER_PARTITION: i64 = 1 << 40;

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
    CREATE TABLE IF NOT EXISTS layout (
        version INTEGER PRIMARY KEY,
        partitions INTEGER NOT NULL,
        begun_at_ms INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS position (
        projection TEXT NOT NULL,
        partition INTEGER NOT NULL,
        checkpoint INTEGER NOT NULL,
        PRIMARY KEY (projection, partition)
    );
    CREATE TABLE IF NOT EXISTS overwritten (
        id INTEGER PRIMARY KEY,
        value BLOB NOT NULL
    );
    CREATE TABLE IF NOT EXISTS aside (
        id INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL,
        size INTEGER NOT NULL,
        value BLOB
    );
";

/// How long a connection waits for another process that holds the file.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// How long it waits before it opens the file again.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// SQLite's code for a file that another connection holds; extended codes have it in their lowest byte.
const BUSY: i32 = 5;

/// Connects to the file, which is made if it is not there. The first connection puts a new file into WAL mode. One that
/// meets another doing the same is refused at once, whatever its busy timeout, and so tries again.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        match SqliteConnection::connect_with(&connect_options(path)).await {
            Err(error) if is_busy(&error) && Instant::now() < deadline => tokio::time::sleep(BUSY_WAIT).await,
            connected => return connected,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == BUSY)
}

pub(super) fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_MAX)
        .statement_cache_capacity(128)
        .pragma("wal_autocheckpoint", "4000")
        .pragma("cache_size", "-16000")
}

/// Replaces a connection whose transaction failed. Where SQLite has rolled back by itself, as it does on a full disk,
/// the driver takes the transaction to be open still and begins no other on that connection.
pub(super) async fn renew(connection: &mut SqliteConnection, path: &Path) {
    match connect(path).await {
        Ok(new) => *connection = new,
        // The next transaction fails, too, and then a new connection is tried again.
        Err(error) => tracing::debug!(error = %error, "the event log's file cannot be opened again"),
    }
}

/// A catalogue as it was found or made.
pub(super) struct Found {
    pub(super) format: i64,
    /// The log's identity.
    pub(super) log_id: String,
    pub(super) partitions: u32,
}

/// Makes the tables if they are not there. Safe from two processes at once.
pub(super) async fn create(connection: &mut SqliteConnection, partitions: u32) -> Result<Found, sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
    let id = format!("{LOG_ID}{}", Uuid::now_v7());
    let made = sqlx::query("INSERT INTO meta (only, format, log_id) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(FORMAT)
        .bind(id)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    if made == 1 {
        add_partitions(&mut tx, 0, partitions.max(1)).await?;
    }
    let (format, log_id) = sqlx::query_as("SELECT format, log_id FROM meta").fetch_one(&mut *tx).await?;
    let partitions = sqlx::query_scalar("SELECT count(*) FROM partition").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(Found { format, log_id, partitions })
}

/// Begins the identity of a log; a UUID follows.
pub(super) const LOG_ID: &str = "embedded:";

/// Adds the partitions from `from` (inclusive) to `to` (exclusive), as far as they are not there.
pub(super) async fn add_partitions(
    connection: &mut SqliteConnection,
    from: u32,
    to: u32,
) -> Result<(), sqlx::Error> {
    for partition in from..to {
        sqlx::query("INSERT INTO partition (partition, low_offset) VALUES (?, 0) ON CONFLICT DO NOTHING")
            .bind(partition)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The lowest offset of each partition that retention has left.
pub(super) async fn low_offsets(connection: &mut SqliteConnection) -> Result<Vec<u64>, sqlx::Error> {
    let low: Vec<i64> = sqlx::query_scalar("SELECT low_offset FROM partition ORDER BY partition")
        .fetch_all(connection)
        .await?;
    Ok(low.into_iter().map(|low| low as u64).collect())
}

/// The log stamps its records itself, as a Kafka client does.
#[expect(clippy::disallowed_methods, reason = "the log is an edge: it stamps what it takes")]
pub(super) fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}
