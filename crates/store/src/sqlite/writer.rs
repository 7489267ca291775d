//! The connection that writes, in turns, and the transaction that batches of several partitions share.
//!
//! A batch changes pages all over the indexes, and so does the next partition's: most of them are the same pages. In one
//! transaction they go into the journal once, and one fsync makes all of it durable. So a batch that is written does not
//! end its transaction while others wait for their turn: those that wait write theirs into it, and the lock's order, which
//! is that of asking, ends it as soon as nobody has asked before.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use dashi_domain::position::Partition;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard, oneshot};

use super::connect;
use crate::error::DriverMessage;
use crate::{Cause, CommitError};

/// Batches that share a transaction, at most: it has all of the journal, and readers see none of it before it ends.
const BATCHES_MAX: usize = 16;

/// The writing connection of a file. Cheap to clone; all clones are one connection.
#[derive(Clone)]
pub(super) struct Writer(Arc<Inner>);

struct Inner {
    turn: Mutex<Turn>,
    options: SqliteConnectOptions,
}

struct Turn {
    connection: SqliteConnection,
    open: Option<Open>,
    /// Whether somebody began to write and has not said how it ended: its task may have been dropped.
    is_interrupted: bool,
    /// How many transactions were begun for batches.
    transactions: u64,
}

/// A transaction that batches were written into, and that is not committed yet.
struct Open {
    number: u64,
    waiting: Vec<oneshot::Sender<Outcome>>,
}

/// How the transaction of a batch ended.
#[derive(Debug, Clone)]
enum Outcome {
    Committed,
    /// Nothing of it is written: another batch's failure ended the transaction.
    NotWritten(Cause),
    Unknown(Cause),
}

/// The connection for one who writes alone. No transaction is open.
pub(super) struct Alone<'a> {
    turn: MutexGuard<'a, Turn>,
    options: &'a SqliteConnectOptions,
}

/// A batch that is being written. One that is dropped takes the whole transaction back, at the next turn.
pub(super) struct Begun<'a> {
    turn: MutexGuard<'a, Turn>,
    writer: &'a Writer,
}

/// A batch that is written into a transaction that has not ended yet.
pub(super) struct Waiting {
    partition: Partition,
    outcome: oneshot::Receiver<Outcome>,
}

#[derive(Debug, thiserror::Error)]
#[error("the transaction that the batch shared with others was interrupted")]
struct Interrupted;

impl Writer {
    /// Connects to the file, which is made if it is not there.
    pub async fn connect(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let connection = connect(&options).await?;
        let turn = Turn { connection, open: None, is_interrupted: false, transactions: 0 };
        Ok(Self(Arc::new(Inner { turn: Mutex::new(turn), options })))
    }

    /// Waits for a turn and ends the transaction that is open.
    pub async fn alone(&self) -> Alone<'_> {
        let mut turn = self.turn().await;
        turn.end(&self.0.options).await;
        Alone { turn, options: &self.0.options }
    }

    /// Waits for a turn and begins a batch, in the transaction that is open or in one of its own.
    pub async fn begin(&self) -> Result<Begun<'_>, sqlx::Error> {
        let mut turn = self.turn().await;
        if turn.open.as_ref().is_some_and(|open| open.waiting.len() >= BATCHES_MAX) {
            turn.end(&self.0.options).await;
        }
        turn.is_interrupted = true;
        let begin = if turn.open.is_some() { "SAVEPOINT batch" } else { "BEGIN IMMEDIATE" };
        let begun = sqlx::raw_sql(begin).execute(&mut turn.connection).await;
        let mut begun_turn = Begun { turn, writer: self };
        match begun {
            Ok(_) => Ok(begun_turn),
            Err(error) => {
                begun_turn.turn.give_up(DriverMessage::cause(&error), &self.0.options).await;
                Err(error)
            }
        }
    }

    async fn turn(&self) -> MutexGuard<'_, Turn> {
        let mut turn = self.0.turn.lock().await;
        if turn.is_interrupted {
            turn.give_up(Arc::new(Interrupted), &self.0.options).await;
        }
        turn
    }

    /// Ends the transaction after everybody who asks for a turn now has had it, unless one of them has ended it.
    fn end_later(&self, number: u64) {
        let writer = self.clone();
        tokio::spawn(async move {
            let mut turn = writer.turn().await;
            if turn.open.as_ref().is_some_and(|open| open.number == number) {
                turn.end(&writer.0.options).await;
            }
        });
    }
}

impl Turn {
    /// Commits what is open, if anything is, and tells those who wait for it.
    async fn end(&mut self, options: &SqliteConnectOptions) {
        let Some(open) = self.open.take() else { return };
        self.is_interrupted = true;
        let outcome = match sqlx::raw_sql("COMMIT").execute(&mut self.connection).await {
            Ok(_) => Outcome::Committed,
            Err(error) => {
                self.renew(options).await;
                Outcome::Unknown(DriverMessage::cause(&error))
            }
        };
        self.is_interrupted = false;
        open.tell(&outcome);
    }

    /// Rolls everything back that is open, and tells those who wait for it.
    async fn give_up(&mut self, cause: Cause, options: &SqliteConnectOptions) {
        let open = self.open.take();
        self.is_interrupted = true;
        // An error: SQLite has rolled back by itself, as it does on a full disk. The new connection has no transaction in
        // either case.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await;
        self.renew(options).await;
        self.is_interrupted = false;
        if let Some(open) = open {
            open.tell(&Outcome::NotWritten(cause));
        }
    }

    /// Replaces a connection whose transaction failed. Where SQLite has rolled back by itself, the driver may take a
    /// transaction to be open still, and begins no other on that connection.
    async fn renew(&mut self, options: &SqliteConnectOptions) {
        match connect(options).await {
            Ok(new) => self.connection = new,
            // The next transaction fails as this one did, and then this is tried again.
            Err(error) => tracing::debug!(error = %error, "the store's file cannot be opened again"),
        }
    }
}

impl Open {
    fn tell(self, outcome: &Outcome) {
        for waiting in self.waiting {
            // A task that was dropped asks the store when it is started again.
            let _ = waiting.send(outcome.clone());
        }
    }
}

impl Begun<'_> {
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.turn.connection
    }

    /// The batch is written: gives the turn to the next one. The transaction is committed by itself, also if nobody waits for it.
    pub async fn written(mut self, partition: Partition) -> Result<Waiting, CommitError> {
        let not_written = |source| CommitError::NotWritten { partition, source };
        let options = &self.writer.0.options;
        if self.turn.open.is_some()
            && let Err(error) = sqlx::raw_sql("RELEASE batch").execute(&mut self.turn.connection).await
        {
            let cause = DriverMessage::cause(&error);
            self.turn.give_up(cause.clone(), options).await;
            return Err(not_written(cause));
        }
        let (told, outcome) = oneshot::channel();
        self.turn.is_interrupted = false;
        match &mut self.turn.open {
            Some(open) => open.waiting.push(told),
            None => {
                let number = self.turn.transactions;
                self.turn.transactions += 1;
                self.turn.open = Some(Open { number, waiting: vec![told] });
                self.writer.end_later(number);
            }
        }
        Ok(Waiting { partition, outcome })
    }

    /// Takes the batch back; other batches of the transaction stay. The connection can be read from, still before the next
    /// turn.
    pub async fn undo(&mut self) -> Result<(), sqlx::Error> {
        let undo = if self.turn.open.is_some() { "ROLLBACK TO batch; RELEASE batch" } else { "ROLLBACK" };
        let undone = sqlx::raw_sql(undo).execute(&mut self.turn.connection).await;
        match undone {
            Ok(_) => {
                self.turn.is_interrupted = false;
                Ok(())
            }
            Err(error) => {
                self.fail(&error).await;
                Err(error)
            }
        }
    }

    /// Takes back the whole transaction, whose state is not known after such an error.
    pub async fn fail(&mut self, error: &sqlx::Error) {
        self.turn.give_up(DriverMessage::cause(error), &self.writer.0.options).await;
    }
}

impl Waiting {
    /// Waits until the transaction has ended.
    pub async fn committed(self) -> Result<(), CommitError> {
        let partition = self.partition;
        match self.outcome.await {
            Ok(Outcome::Committed) => Ok(()),
            Ok(Outcome::NotWritten(source)) => Err(CommitError::NotWritten { partition, source }),
            Ok(Outcome::Unknown(source)) => Err(CommitError::Unknown { partition, source }),
            Err(_) => Err(CommitError::Unknown { partition, source: Arc::new(Interrupted) }),
        }
    }
}

impl Alone<'_> {
    /// Replaces the connection after a failed transaction.
    pub async fn renew(&mut self) {
        self.turn.renew(self.options).await;
    }
}

impl Deref for Alone<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.turn.connection
    }
}

impl DerefMut for Alone<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.turn.connection
    }
}
