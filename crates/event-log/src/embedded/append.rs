//! Appending: one writer task that commits all waiting appends as one transaction (group commit).

use std::path::PathBuf;
use std::sync::Arc;

use dashi_domain::partitioner;
use dashi_domain::position::{Offset, Partition};
use sqlx::{AssertSqlSafe, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::EmbeddedLog;
use super::file::{HIGH_WATERMARK, OFFSETS_PER_PARTITION, now_ms, renew};
use crate::error::Cause;
use crate::{AppendError, NewRecord};

/// Rows of one insert statement, at most. Each number of rows is a statement of its own, kept prepared.
const ROWS_PER_INSERT: usize = 64;

/// The records of one call, and where the partition and offset of each are sent once they are durable.
pub(super) struct Append {
    records: Vec<NewRecord>,
    /// The partition of all of them; by their keys if there is none.
    to: Option<Partition>,
    done: oneshot::Sender<Result<Vec<(Partition, Offset)>, AppendError>>,
}

impl EmbeddedLog {
    pub(crate) async fn append(
        &self,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let count = records.len();
        match self.enqueue(records, None).await {
            Ok(offsets) => offsets.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    /// Appends to one partition, which the log has, whatever the records' keys.
    pub(crate) async fn append_to(
        &self,
        partition: Partition,
        records: Vec<NewRecord>,
    ) -> Vec<Result<(Partition, Offset), AppendError>> {
        let count = records.len();
        match self.enqueue(records, Some(partition)).await {
            Ok(offsets) => offsets.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    /// Waits until the records are durable; returns the partition and offset of each, in their order.
    async fn enqueue(
        &self,
        records: Vec<NewRecord>,
        to: Option<Partition>,
    ) -> Result<Vec<(Partition, Offset)>, AppendError> {
        self.submit_to(records, to)?.outcome().await
    }

    /// Puts records into the queue of the writer, behind those of earlier calls.
    pub(crate) fn submit(&self, records: Vec<NewRecord>) -> Result<Submitted, AppendError> {
        self.submit_to(records, None)
    }

    fn submit_to(&self, records: Vec<NewRecord>, to: Option<Partition>) -> Result<Submitted, AppendError> {
        let (done, outcome) = oneshot::channel();
        self.0.queue.try_send(Append { records, to, done }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => AppendError::Full,
            mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
        })?;
        Ok(Submitted(outcome))
    }
}

/// Records in the writer's queue. They are written whether or not somebody waits for them.
pub(crate) struct Submitted(oneshot::Receiver<Result<Vec<(Partition, Offset)>, AppendError>>);

impl Submitted {
    /// Waits until they are durable; returns the partition and offset of each, in their order.
    pub(crate) async fn outcome(self) -> Result<Vec<(Partition, Offset)>, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// The only task of this process that appends. Another process may append too: each transaction reads the next offsets
/// from the file, whose lock serialises the transactions.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) connection: SqliteConnection,
    pub(super) partitions: watch::Sender<u32>,
    /// Appends that share one commit, at most.
    pub(super) batch_max: usize,
    pub(super) committed: watch::Sender<u64>,
    /// Appends refused since the log could last be written.
    pub(super) refused: usize,
}

impl Writer {
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Append>, close: CancellationToken) {
        let mut appends = Vec::with_capacity(self.batch_max);
        loop {
            let taken = tokio::select! {
                biased;
                taken = waiting.recv_many(&mut appends, self.batch_max) => taken,
                () = close.cancelled() => {
                    // Appends in the queue still get their outcome; no new one gets in.
                    waiting.close();
                    waiting.recv_many(&mut appends, self.batch_max).await
                }
            };
            if taken == 0 {
                return;
            }
            let outcome = self.commit(&appends).await;
            match outcome {
                Ok(offsets) => {
                    if self.refused > 0 {
                        tracing::info!(refused = self.refused, "the event log can be written again");
                        self.refused = 0;
                    }
                    let mut offsets = offsets.into_iter();
                    for append in appends.drain(..) {
                        let of_append = offsets.by_ref().take(append.records.len()).collect();
                        // The caller may have gone; its records are in the log all the same.
                        let _ = append.done.send(Ok(of_append));
                    }
                    self.committed.send_modify(|commits| *commits += 1);
                }
                Err(error) => {
                    // Logged once: the logs may lie on the disk that is full.
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

    /// Writes all records in one transaction; they are durable when it returns `Ok`. Returns the partition and offset of
    /// each, in their order.
    async fn commit(&mut self, appends: &[Append]) -> Result<Vec<(Partition, Offset)>, sqlx::Error> {
        let written = self.write(appends).await;
        if written.is_err() {
            // Ends the transaction if it is still open. If it is not, this statement fails and does no harm.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
        }
        written
    }

    /// Each statement is a round trip to the connection's own thread, so there are as few as there can be. The high
    /// watermarks are read from the records, where appends of another process show too, and are kept nowhere.
    async fn write<'a>(&mut self, appends: &'a [Append]) -> Result<Vec<(Partition, Offset)>, sqlx::Error> {
        let now_ms = now_ms();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        let mut next: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT {HIGH_WATERMARK} FROM partition ORDER BY partition"
        )))
        .fetch_all(&mut self.connection)
        .await?;
        let mut rows = Vec::with_capacity(appends.iter().map(|append| append.records.len()).sum());
        let mut offsets = Vec::with_capacity(rows.capacity());
        // Another process may have grown the log: the number of partitions is the one that the file has in this transaction.
        let partitions = next.len() as u32;
        let records = |append: &'a Append| append.records.iter().map(|record| (append.to, record));
        for (to, record) in appends.iter().flat_map(records) {
            let key = partitioner::key(record.session_id);
            let partition = to.unwrap_or_else(|| partitioner::partition_for(key.as_bytes(), partitions));
            let offset = &mut next[partition.number() as usize];
            rows.push((i64::from(partition.number()) * OFFSETS_PER_PARTITION + *offset, key, &record.value));
            offsets.push((partition, Offset::new(*offset as u64)));
            *offset += 1;
        }
        // In the order of their ids, so that each partition's run is one visit to the B-tree.
        rows.sort_unstable_by_key(|(id, ..)| *id);
        for chunk in rows.chunks(ROWS_PER_INSERT) {
            let mut insert = sqlx::query(AssertSqlSafe(insert_sql(chunk.len())));
            for (id, key, value) in chunk {
                insert = insert.bind(id).bind(now_ms).bind(key).bind(value.as_slice());
            }
            insert.execute(&mut self.connection).await?;
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        note_partitions(&self.partitions, partitions);
        Ok(offsets)
    }
}

/// Notes the number of partitions that the file has, and wakes those who wait for more.
pub(super) fn note_partitions(known: &watch::Sender<u32>, partitions: u32) {
    known.send_if_modified(|known| {
        let has_grown = partitions > *known;
        *known = partitions.max(*known);
        has_grown
    });
}

fn insert_sql(rows: usize) -> String {
    let mut sql = String::from("INSERT INTO record (id, appended_at_ms, session_id, value) VALUES (?,?,?,?)");
    sql.push_str(&",(?,?,?,?)".repeat(rows - 1));
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_has_a_tuple_per_row() {
        assert_eq!(insert_sql(1).matches("(?,?,?,?)").count(), 1);
        assert_eq!(insert_sql(64).matches("(?,?,?,?)").count(), 64);
    }
}
