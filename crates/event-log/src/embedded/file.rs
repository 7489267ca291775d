//! The file: its tables, connections to it, and the replacement of a connection whose transaction failed.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use dashi_domain::calendar::ms_since_1970;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};
use uuid::Uuid;

/// The newest format of the file that this program knows: the tables of [`SCHEMA`]. A file has it once it has grown, so that
/// no program opens it that would not notice the next growth.
pub(super) const FORMAT: i64 = 2;

/// The format of a file that never grew, which older programs know.
const FORMAT_AS_MADE: i64 = 1;

/// A record's row id is its partition times this, plus its offset: one B-tree, in which each partition is a run
/// of its own.
pub(super) const OFFSETS_PER_PARTITION: i64 = 1 << 40;

/// The offset that the next record of `partition` gets, in a query on the table `partition`: one past its newest
/// record, or, where retention has left none, past the newest that it removed.
pub(super) const HIGH_WATERMARK: &str = "max(low_offset, coalesce(
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

/// Makes the tables if they are not there; returns format and identity. Safe from two processes at once.
pub(super) async fn create(
    connection: &mut SqliteConnection,
    partitions: u32,
) -> Result<(i64, String), sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
    let id = format!("embedded:{}", Uuid::now_v7());
    let made = sqlx::query("INSERT INTO meta (only, format, log_id) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(FORMAT_AS_MADE)
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

/// The log stamps its records itself, as a Kafka client does.
#[expect(clippy::disallowed_methods, reason = "the log is an edge: it stamps what it takes")]
pub(super) fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_watermarks_query_knows_where_partitions_begin() {
        assert_eq!(OFFSETS_PER_PARTITION, 1 << 40, "HIGH_WATERMARK spells it out");
    }
}
