//! Errors of a store, by what the caller does next.

use std::sync::Arc;

use dashi_domain::guard::{CommitOutcome, GuardRefusal, GuardRow};
use dashi_domain::position::{Checkpoint, Epoch, Partition};
use dashi_domain::tail::Tail;
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::Claim;

/// Why, in words.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The message of a driver's error, once: the driver's own text repeats its causes and names lines of PostgreSQL's
/// source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DriverMessage(String);

impl DriverMessage {
    pub fn new(error: &sqlx::Error) -> Self {
        Self(match error {
            sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(postgres) => {
                    let hint = postgres.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                    format!("{} (SQLSTATE {}){hint}", postgres.message(), postgres.code())
                }
                None => database.to_string(),
            },
            sqlx::Error::Io(error) => error.to_string(),
            sqlx::Error::Tls(error) => format!("no TLS connection: {error}"),
            sqlx::Error::Configuration(error) | sqlx::Error::Encode(error) | sqlx::Error::Decode(error) => {
                error.to_string()
            }
            sqlx::Error::Protocol(text) => format!("the database sent a message that cannot be read: {text}"),
            sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
            sqlx::Error::PoolClosed => "the store is closed".to_owned(),
            other => other.to_string(),
        })
    }

    pub fn cause(error: &sqlx::Error) -> Cause {
        Arc::new(Self::new(error))
    }
}

/// Errors of operations that no partition depends on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It did not answer, or refused; try again later.
    #[error("the store failed while {doing}")]
    Away {
        /// The operation, in words.
        doing: &'static str,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The address of the store cannot be understood or its file cannot be opened.
    #[error("cannot open the store {url}")]
    Open {
        /// The address, without its password.
        url: String,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// A question was stopped, since its time was over.
    #[error("{doing} took longer than {time_max:?} and was stopped")]
    TooLong {
        /// The operation, in words.
        doing: &'static str,
        /// The time.
        time_max: std::time::Duration,
    },
    /// The server takes no writes: a standby, or a primary that was replaced. Connect again later.
    #[error("the database is read-only: it is a standby, or another server has taken its place")]
    ReadOnly,
    /// A newer program made the tables.
    #[error("the store's tables have version {found}, this program knows up to {known}: use a newer program")]
    Version {
        /// The version of the tables.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The file is a database of another program's. It was not changed.
    #[error(
        "the file {path} is another program's, not a store of Dashi's: {holds}; give Dashi a file of its own"
    )]
    OtherProgram {
        /// The file.
        path: String,
        /// The tables or marks that show it.
        holds: String,
    },
    /// Umami's tables lack tables or columns of its release 3.0.
    #[error(
        "the database's tables are older than those of Umami 3.0: {missing} missing; start Umami 3.0 or newer on this \
         database once, which brings its tables up to date, or give Dashi an empty database"
    )]
    TablesTooOld {
        /// The missing tables and columns, in words.
        missing: String,
    },
    /// The database from which history is to be read has no tables of Umami 2.18 or newer.
    #[error(
        "the database has no tables of Umami 2.18 or newer: {missing} missing; check the database and the parameter \
         `schema` of its URL, and start a newer Umami once on tables that are older"
    )]
    NoHistory {
        /// The missing tables and columns, in words.
        missing: String,
    },
    /// There is a website with this id.
    #[error("there is a website with the id {id} already")]
    WebsiteExists {
        /// The id.
        id: Uuid,
    },
    /// The tables of this version of Umami have nowhere to write it.
    #[error("this version of Umami has no {what}: its table {table} has no column {columns}")]
    NotInThisVersion {
        /// The missing part, in words.
        what: &'static str,
        /// The table.
        table: &'static str,
        /// The columns that would do, in words.
        columns: &'static str,
    },
    /// A link or a pixel has this slug or id, maybe a removed one.
    #[error("there is a {kind} with the slug {slug:?} or with this id already: choose another one")]
    SlugTaken {
        /// "link" or "pixel".
        kind: &'static str,
        /// The slug.
        slug: String,
    },
}

impl StoreError {
    pub(crate) fn away(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Away { doing, source: DriverMessage::cause(&error) }
    }

    /// The error of a question that could take `time_max`.
    pub(crate) fn unanswered(doing: &'static str, time_max: std::time::Duration, error: sqlx::Error) -> Self {
        /// PostgreSQL cancelled the statement; SQLite interrupted it.
        const STOPPED: [&str; 2] = ["57014", "9"];
        let code = error.as_database_error().and_then(|error| error.code());
        if code.is_some_and(|code| STOPPED.contains(&&*code)) {
            return Self::TooLong { doing, time_max };
        }
        Self::away(doing)(error)
    }
}

/// Errors of claiming a partition, and of reading a claim's checkpoint.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClaimError {
    /// A newer writer owns the partition. Stop.
    #[error("partition {partition} belongs to epoch {current}, this writer holds {held}")]
    Fenced {
        /// The partition.
        partition: Partition,
        /// This writer's epoch.
        held: Epoch,
        /// The newest epoch.
        current: Epoch,
    },
    /// The store belongs to a live projection, and the claim was a replay's. Nothing was changed; take another store.
    #[error("the store belongs to a live projection: {owner} claimed partition {partition}")]
    Live {
        /// The partition that was claimed last.
        partition: Partition,
        /// The owner that claimed it.
        owner: String,
    },
    /// The store did not answer; ask again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Errors of a commit.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A newer writer owns the partition. Stop; do not retry.
    #[error("partition {partition} belongs to epoch {current}, this writer holds {held}")]
    Fenced {
        /// The partition.
        partition: Partition,
        /// This writer's epoch.
        held: Epoch,
        /// The newest epoch.
        current: Epoch,
    },
    /// The batch does not start at the stored checkpoint. Nothing was written; resume from `stored`.
    #[error("partition {partition}: the batch starts at {start}, the checkpoint stands at {stored}")]
    Misplaced {
        /// The partition.
        partition: Partition,
        /// Where the batch starts.
        start: Checkpoint,
        /// Where the projection stands.
        stored: Checkpoint,
    },
    /// The partition has another tail than the claim believes. Nothing was written; claim it again.
    #[error("partition {partition} has another tail than its writer believes: {tail:?}")]
    TailDiffers {
        /// The partition.
        partition: Partition,
        /// Its tail.
        tail: Option<Tail>,
    },
    /// The store holds these events already. Nothing was written; fold again without them.
    #[error("{} events of the batch are applied already", .0.len())]
    Duplicates(Vec<Uuid>),
    /// The database refuses the rows for their data, and will refuse them again. Nothing was written; find the record.
    #[error("the store refuses the rows of partition {partition}")]
    Refused {
        /// The partition.
        partition: Partition,
        /// The database's error.
        #[source]
        source: Cause,
    },
    /// The store failed before the batch was committed: a full disk, a missing right, a lost connection, a lock that
    /// was not had. Nothing was written; try again.
    #[error("the batch of partition {partition} was not written, and is tried again")]
    NotWritten {
        /// The partition.
        partition: Partition,
        /// The driver's error.
        #[source]
        source: Cause,
    },
    /// The store did not answer the commit, so the batch may or may not be in. Call [`crate::Store::resume`] first.
    #[error("the outcome of the commit to partition {partition} is unknown")]
    Unknown {
        /// The partition.
        partition: Partition,
        /// The driver's error.
        #[source]
        source: Cause,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("another transaction moved the partition's row meanwhile")]
struct RowMoved;

impl CommitError {
    /// Why the guard moved no checkpoint, by the row that is stored now.
    pub(crate) fn by_guard(claim: &Claim, from: Checkpoint, to: Checkpoint, stored: GuardRow) -> Self {
        let (partition, held) = (claim.partition, claim.epoch);
        match stored.commit(held, claim.position, from, to, 0) {
            Err(GuardRefusal::Fenced { current }) => Self::Fenced { partition, held, current },
            Err(GuardRefusal::TailDiffers) => Self::TailDiffers { partition, tail: stored.tail },
            Err(GuardRefusal::Misplaced { stored }) => Self::Misplaced { partition, start: from, stored },
            Ok(_) => Self::NotWritten { partition, source: Arc::new(RowMoved) },
        }
    }

    /// The outcome that the writer knows of a commit that ended like this.
    pub const fn outcome(&self) -> CommitOutcome {
        match self {
            Self::Fenced { current, .. } => {
                CommitOutcome::Refused(GuardRefusal::Fenced { current: *current })
            }
            Self::Misplaced { stored, .. } => {
                CommitOutcome::Refused(GuardRefusal::Misplaced { stored: *stored })
            }
            Self::TailDiffers { .. } => CommitOutcome::Refused(GuardRefusal::TailDiffers),
            Self::Duplicates(_) | Self::Refused { .. } | Self::NotWritten { .. } => CommitOutcome::NotWritten,
            Self::Unknown { .. } => CommitOutcome::Unknown,
        }
    }
}
