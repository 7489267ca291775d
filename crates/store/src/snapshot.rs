//! One consistent view of a store: its checkpoints and the rows that stand for them.

use async_recursion::async_recursion as boxed;
use dashi_domain::position::{Checkpoint, LogId, Partition};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::compare::Row;
use crate::postgres::PostgresSnapshot;
use crate::sqlite::SqliteSnapshot;
use crate::table::Table;
use crate::{PartitionState, StoreError};

/// A store as it was at one moment, for as long as this is held: a transaction that reads. Commits go on beside it.
pub struct Snapshot {
    partitions: Vec<PartitionState>,
    of: Backend,
}

enum Backend {
    Postgres(PostgresSnapshot),
    Sqlite(SqliteSnapshot),
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(crate) fn postgres(partitions: Vec<PartitionState>, snapshot: PostgresSnapshot) -> Self {
        Self { partitions, of: Backend::Postgres(snapshot) }
    }

    pub(crate) fn sqlite(partitions: Vec<PartitionState>, snapshot: SqliteSnapshot) -> Self {
        Self { partitions, of: Backend::Sqlite(snapshot) }
    }

    /// The state of every partition, by log and partition.
    pub fn partitions(&self) -> &[PartitionState] {
        &self.partitions
    }

    /// The checkpoints that the rows stand for, by log and partition.
    pub fn checkpoints(&self) -> Vec<(LogId, Partition, Checkpoint)> {
        let checkpoint = |it: &PartitionState| (it.log.clone(), it.partition, it.checkpoint);
        self.partitions.iter().map(checkpoint).collect()
    }

    /// Whether the store has such a table.
    pub(crate) fn has(&self, table: &Table) -> bool {
        match &self.of {
            Backend::Postgres(snapshot) => snapshot.has(table),
            Backend::Sqlite(snapshot) => snapshot.has(table),
        }
    }

    /// How many rows a table has.
    pub(crate) async fn count(&mut self, table: &'static Table) -> Result<u64, StoreError> {
        match &mut self.of {
            Backend::Postgres(snapshot) => snapshot.count(table).await,
            Backend::Sqlite(snapshot) => snapshot.count(table).await,
        }
    }

    /// Every row of a table in the order of its key, in the text form in which rows are compared. To be read to its end.
    pub(crate) fn rows(&mut self, table: &'static Table) -> BoxStream<'_, Result<Row, StoreError>> {
        match &mut self.of {
            Backend::Postgres(snapshot) => snapshot.rows(table).boxed(),
            Backend::Sqlite(snapshot) => snapshot.rows(table).boxed(),
        }
    }

    /// Ends it.
    #[boxed]
    pub async fn close(self) {
        match self.of {
            Backend::Postgres(snapshot) => snapshot.close().await,
            Backend::Sqlite(snapshot) => snapshot.close().await,
        }
    }
}
