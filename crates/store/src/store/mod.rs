//! The one enum in front of the backends. Each method is the contract of both; the backends' own have no text of theirs.
//!
//! Its futures are boxed, so that they are compiled here, once. The compiler makes the code of a future where it is polled: in each
//! crate that awaits it.

use crate::{Fitness, PostgresStore, SqliteStore, StoreError, UmamiTables, Unwritten};
use async_recursion::async_recursion as boxed;

/// A store.
#[derive(Clone)]
pub enum Store {
    /// A PostgreSQL database: one that Umami made, or a fresh one.
    Postgres(PostgresStore),
    /// A SQLite file.
    Sqlite(SqliteStore),
}

/// Calls the method of the backend that it is.
macro_rules! either {
    ($self:expr, $store:ident => $call:expr) => {
        match $self {
            Store::Postgres($store) => $call,
            Store::Sqlite($store) => $call,
        }
    };
}

mod audit;
mod erasures;
mod generations;
mod layouts;
mod letters;
mod people;
mod projection;
mod sources;

pub use projection::Written;

impl Store {
    /// Makes the tables that are missing. On a database that Umami made, only those of the schema `dashi`. Safe to
    /// run twice, and from two processes at once.
    ///
    /// # Errors
    /// The store does not answer, a newer program made its tables, or an Umami older than 3.0 did.
    #[boxed]
    pub async fn migrate(&self) -> Result<(), StoreError> {
        either!(self, store => store.migrate().await)
    }

    /// The version of Umami that made the tables, read from the database again. `None` if there is none: in a file, and
    /// in a database that is empty yet, where [`Store::migrate`] makes those of 3.1.
    ///
    /// # Errors
    /// The store does not answer, or its tables are older than those of 3.0.
    #[boxed]
    pub async fn umami(&self) -> Result<Option<UmamiTables>, StoreError> {
        match self {
            Self::Postgres(store) => store.umami().await,
            Self::Sqlite(_) => Ok(None),
        }
    }

    /// The parts of Umami's tables that are not written, and the kinds of data that have no table, read from the
    /// database again. `None` where there are no tables of Umami's.
    ///
    /// # Errors
    /// The store does not answer, or its tables are older than those of 3.0.
    #[boxed]
    pub async fn unwritten(&self) -> Result<Option<Unwritten>, StoreError> {
        match self {
            Self::Postgres(store) => store.unwritten().await,
            Self::Sqlite(_) => Ok(None),
        }
    }

    /// Proves that the store answers and takes writes.
    ///
    /// # Errors
    /// It does not answer, or is read-only.
    #[boxed]
    pub async fn ping(&self) -> Result<(), StoreError> {
        either!(self, store => store.ping().await)
    }

    /// The database's answers about itself; nothing is changed. `None` for a file, whose rights are those of this process.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn fitness(&self) -> Result<Option<Fitness>, StoreError> {
        match self {
            Self::Postgres(store) => store.fitness().await.map(Some),
            Self::Sqlite(_) => Ok(None),
        }
    }

    /// Lets go of the connections.
    #[boxed]
    pub async fn close(&self) {
        either!(self, store => store.close().await);
    }
}
