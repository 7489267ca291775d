//! Noticing what another process wrote into the file.

use std::time::Duration;

use sqlx::SqliteConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::append::note_partitions;

/// How long a commit of another process may go unnoticed.
const POLL: Duration = Duration::from_millis(100);

/// The only task of this process that looks for commits of others, for all readers: so a log at rest costs one short query
/// per interval, however many partitions it has.
pub(super) struct Lookout {
    /// Writes nothing: the number that it reads changes with each commit of any other connection.
    pub(super) connection: SqliteConnection,
    /// Counts commits; a change wakes the readers.
    pub(super) committed: watch::Sender<u64>,
    /// The number of partitions, which another process may let grow.
    pub(super) partitions: watch::Sender<u32>,
}

impl Lookout {
    /// Runs until the log is closed.
    pub(super) async fn run(mut self, close: CancellationToken) {
        let mut last = None;
        loop {
            tokio::select! {
                () = close.cancelled() => return,
                () = tokio::time::sleep(POLL) => {}
            }
            // Source: SQLite, "PRAGMA data_version".
            let version: Result<i64, _> =
                sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut self.connection).await;
            // Without an answer the readers look for themselves, and return the error that they meet.
            if version.as_ref().ok() != last.as_ref()
                && let Ok(count) =
                    sqlx::query_scalar("SELECT count(*) FROM partition").fetch_one(&mut self.connection).await
            {
                note_partitions(&self.partitions, count);
            }
            if version.is_err() || version.as_ref().ok() != last.as_ref() {
                self.committed.send_modify(|commits| *commits += 1);
            }
            last = version.ok();
        }
    }
}
