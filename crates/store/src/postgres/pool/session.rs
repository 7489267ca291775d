//! One connection while it is in use, and the meaning of its errors.

use std::fmt;
use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio::sync::OwnedSemaphorePermit;

use super::{GRACE, Live, Pool, Sharing, silent};

/// Bytes of `COPY` that are handed to the connection at once, which keeps as large a buffer.
pub(in crate::postgres) const COPY_PIECE: usize = 1 << 17;

/// One connection, for as long as this is held. Given back when it is dropped, unless it is in a transaction, in the
/// middle of a statement, or no longer any good: then it is closed, without a word that could wait for an answer.
pub(in crate::postgres) struct Session {
    pub(super) live: Option<Live>,
    pub(super) pool: Pool,
    pub(super) sharing: Sharing,
    pub(super) in_transaction: bool,
    pub(super) busy: bool,
    pub(super) broken: bool,
    /// How long a statement is waited for, where it is not the limit that all statements have.
    pub(super) patience: Option<Duration>,
    pub(super) _seat: OwnedSemaphorePermit,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Begins a transaction, under the limits that statements have. Its statements are planned each time: a plan that was
    /// made while a table was empty reads all of it once it is full.
    pub async fn begin(&mut self) -> Result<(), sqlx::Error> {
        const PLAN: &str = "SET LOCAL plan_cache_mode = force_custom_plan";
        let begin = match self.sharing {
            Sharing::None => format!("BEGIN; {PLAN}"),
            Sharing::PerTransaction => format!("BEGIN; {PLAN}; {}", self.pool.0.settings("SET LOCAL")),
        };
        self.in_transaction = true;
        self.run_raw(begin).await
    }

    /// Within a transaction: its statements, and the pauses between them, may take so long. A server that is gone is
    /// noticed earlier, by the socket's own limits.
    pub async fn allow(&mut self, limit: Duration) -> Result<(), sqlx::Error> {
        self.patience = Some(limit + GRACE);
        let limit_ms = limit.as_millis();
        self.run_raw(format!(
            "SET LOCAL statement_timeout = {limit_ms}; SET LOCAL idle_in_transaction_session_timeout = {limit_ms}"
        ))
        .await
    }

    /// The schema of the generation that it is for, if that is not the live one.
    pub fn generation_schema(&self) -> Option<&str> {
        self.pool.0.schema.as_deref()
    }

    /// Commits. Whether the transaction took place is known only if the server confirmed it: see [`is_known`].
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.run_raw("COMMIT".to_owned()).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Undoes the transaction. A connection on which that does not work is closed, which undoes it as well.
    pub async fn roll_back(mut self) {
        if !self.broken && !self.busy && self.run_raw("ROLLBACK".to_owned()).await.is_ok() {
            self.in_transaction = false;
        }
    }

    /// Runs statements that have no parameters, and drops their rows.
    pub async fn run_raw(&mut self, statement: String) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(self).await.map(|_| ())
    }

    /// Runs `COPY … FROM STDIN`, in the format that the statement names. `fill` appends the next part of the data, of about
    /// [`COPY_PIECE`] bytes, and tells whether there is more, or why there can be none. Returns how many rows were written.
    /// The whole of it may take as long as a statement.
    pub async fn copy_in(
        &mut self,
        statement: &str,
        mut fill: impl FnMut(&mut Vec<u8>) -> Result<bool, String>,
    ) -> Result<u64, sqlx::Error> {
        let limit = self.patience.unwrap_or(self.pool.0.statement_timeout + GRACE);
        let Some(live) = &mut self.live else { return Err(sqlx::Error::PoolClosed) };
        self.busy = true;
        let copying = async {
            let mut copying = live.connection.copy_in_raw(statement).await?;
            let mut piece = Vec::with_capacity(COPY_PIECE + COPY_PIECE / 4);
            loop {
                piece.clear();
                match fill(&mut piece) {
                    Ok(is_more) => {
                        copying.send(&piece[..]).await?;
                        if !is_more {
                            return copying.finish().await;
                        }
                    }
                    Err(text) => {
                        copying.abort(text.clone()).await?;
                        return Err(sqlx::Error::Encode(text.into()));
                    }
                }
            }
        };
        let outcome = match tokio::time::timeout(limit, copying).await {
            Ok(outcome) => outcome,
            Err(_) => Err(silent(limit)),
        };
        self.finished(outcome.as_ref().err());
        outcome
    }

    pub(super) fn finished(&mut self, error: Option<&sqlx::Error>) {
        let Some(live) = &self.live else { return };
        let shared = &self.pool.0;
        match error {
            None => {
                self.busy = false;
                shared.answered(live.generation);
            }
            Some(error) => match fault(error) {
                Fault::Statement => self.busy = false,
                Fault::Connection => {
                    self.broken = true;
                    shared.lose(live.generation, Some(error));
                }
                Fault::Server => {
                    self.broken = true;
                    shared.lose(live.generation, None);
                }
                Fault::Shared => {
                    self.broken = true;
                    shared.found_shared();
                    shared.lose(live.generation, None);
                }
            },
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(live) = self.live.take()
            && !(self.in_transaction || self.busy || self.broken)
        {
            self.pool.0.give_back(live);
        }
    }
}

/// The part that an error condemns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The statement alone: the connection can be used again.
    Statement,
    /// The connection: it was cut, is silent, or sends messages that cannot be read.
    Connection,
    /// The server: it answers, and is not the one to write to.
    Server,
    /// A pooler that shares connections between transactions.
    Shared,
}

fn fault(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            match &*code {
                // Read-only: a standby, or a primary that was replaced.
                "25006" => Fault::Server,
                // No such prepared statement, or another of that name.
                "26000" | "42P05" => Fault::Shared,
                // The server is going, has crashed, is coming up; it ended an idle session or transaction.
                "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => Fault::Connection,
                // Connection exceptions.
                code if code.starts_with("08") => Fault::Connection,
                _ => match database.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity) {
                    Some(PgSeverity::Fatal | PgSeverity::Panic) => Fault::Connection,
                    _ => Fault::Statement,
                },
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            Fault::Connection
        }
        _ => Fault::Statement,
    }
}

/// Whether a failed `COMMIT` surely left nothing behind: the server reported the failure, and goes on. One that is
/// going may have committed before (so with a standby that confirms, which is no longer waited for).
pub(in crate::postgres) fn is_known(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            // Completion or resolution of the transaction unknown.
            !matches!(&*code, "40003" | "08007") && matches!(fault(error), Fault::Statement | Fault::Server)
        }
        _ => false,
    }
}
