//! Projecting into a store: partitions, their claims and commits.

use async_recursion::async_recursion as boxed;
use dashi_domain::fold::Changes;
use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::SessionFilter;
use uuid::Uuid;

use super::Store;
use crate::{
    AppliedEvent, Claim, ClaimError, CommitError, Committed, ErrorNote, MissingRange, PartitionState,
    Snapshot, StoreError, tables,
};

impl Store {
    /// Takes a partition of a log for a live projector, with a new epoch, higher than any before, and returns where to
    /// go on. Once it has returned, no commit under an older epoch succeeds, and no replay claims a partition of this
    /// store, of whichever log. `owner` is for people to read.
    ///
    /// # Errors
    /// [`ClaimError::Store`]: the store does not answer; claim again.
    #[boxed]
    pub async fn claim(&self, log: &LogId, partition: Partition, owner: &str) -> Result<Claim, ClaimError> {
        either!(self, store => store.claim(log, partition, owner).await)
    }

    /// The same for a replay, which takes a store only where no live projector ever claimed a partition.
    ///
    /// # Errors
    /// [`ClaimError::Live`]: the store is a live projector's; nothing was changed. [`ClaimError::Store`]: the store does
    /// not answer; claim again.
    #[boxed]
    pub async fn claim_for_replay(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        either!(self, store => store.claim_for_replay(log, partition, owner).await)
    }

    /// The checkpoint of a claim, to be read after a commit whose outcome is unknown.
    ///
    /// # Errors
    /// [`ClaimError::Fenced`]: a newer writer owns the partition; stop. [`ClaimError::Store`]: the store does not
    /// answer; ask again.
    #[boxed]
    pub async fn resume(&self, claim: &Claim) -> Result<Checkpoint, ClaimError> {
        either!(self, store => store.resume(claim).await)
    }

    /// Commits rows, dead letters, missing ranges and the checkpoint `to` in one transaction. Durable when it returns `Ok`;
    /// nothing was written on any error but [`CommitError::Unknown`].
    ///
    /// Which position moves is the claim's: the checkpoint, or the end of the [tail](dashi_domain::tail), whose commits begin and
    /// end there in the same way. A checkpoint that reaches the end of a tail ends it.
    ///
    /// The guard decides by the epoch and the checkpoint that are stored for the partition:
    ///
    /// | stored epoch | stored checkpoint | interval | result | effect |
    /// |---|---|---|---|---|
    /// | the claim's | `from` | `from` < `to` | moved | The rows of offsets `from` (inclusive) to `to` (exclusive) and the checkpoint `to` are committed as one. |
    /// | the claim's | `from` | `from` = `to` | moved | The same, with a checkpoint that stays. |
    /// | the claim's | `from` | `to` < `from` | moved back | The log ended before the projection and is read again from `to`. Rows stay; dead letters of offsets from `to` on stay under another name, since those offsets may get other records; `from` - `to` offsets count as rewound. |
    /// | the claim's | another | any | [`CommitError::Misplaced`] | Nothing is written. Resume from the stored checkpoint. |
    /// | the claim's | any | any | [`CommitError::TailDiffers`] | The partition has a tail that the claim does not know of, or none, or one that begins or ends elsewhere. Nothing is written. Claim again. |
    /// | a newer one | any | any | [`CommitError::Fenced`] | Nothing is written. Stop. |
    ///
    /// On PostgreSQL the rows of a generation, and those of a large batch, go by `COPY` where that can write them, in the same
    /// transaction with the same results.
    ///
    /// On SQLite a batch may share its transaction with those that wait for the connection meanwhile, each in a savepoint: one that is
    /// not written leaves the others alone, unless the database itself fails. On return it is committed and fsynced.
    ///
    /// The steps of the transaction, in this order on both backends:
    ///
    /// 1. The guard moves the checkpoint and adds the batch's counts. Its row lock (PostgreSQL) or the one writing connection
    ///    (SQLite) keeps a second writer waiting until the transaction has ended; that one finds another epoch or checkpoint.
    ///    Letters that were tried again leave the table or get the new reason; if one of them is not there as it was read, the
    ///    transaction ends with [`CommitError::NotWritten`].
    /// 2. Chunks of recordings get the next free indexes of their visits and are inserted.
    /// 3. Events, identifies, and notes of records that leave no other row are inserted. Rows that are there already end the
    ///    transaction with [`CommitError::Duplicates`], as does a copy of an erasure that was applied.
    /// 4. The records are counted by hour and source.
    /// 5. A commit with an erasure has no other record: it deletes rows, notes ranges that the log lost, and goes to the end.
    /// 6. Sessions that are new are inserted, others filled by the fold's rule; distinct ids are linked and name them.
    /// 7. Leaves of events' data, properties of sessions, and revenue.
    /// 8. Heatmaps: rows of posts, which replace equal clicks of recordings, then rows of recordings.
    /// 9. Dead letters are inserted; where the checkpoint moves back, those of offsets from `to` on then get another name.
    ///    A command that discards letters marks them.
    /// 10. Ranges of records that the log no longer has.
    /// 11. Profiles: links, then people in their order, then the traits that differ ([`dashi_domain::profile`]).
    /// 12. The commit, after which subscribers are notified of changed profiles.
    ///
    /// # Errors
    /// By the caller's next step; see [`CommitError`].
    #[boxed]
    pub async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        self.write(claim, from, to, changes).await?.committed().await
    }

    /// The first part of [`Self::commit`]: returns when `changes` are not needed any more, so that their memory is free for others.
    /// On PostgreSQL they are committed then. On SQLite they are in a transaction that ends soon, also if nobody waits for it:
    /// [`Written::committed`] tells how.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    #[boxed]
    pub async fn write(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Written, CommitError> {
        Ok(Written(match self {
            Self::Postgres(store) => Ending::Committed(store.commit(claim, from, to, changes).await?),
            Self::Sqlite(store) => Ending::Open(store.write(claim, from, to, changes).await?),
        }))
    }

    /// Begins the tail of a partition at the offset `at`, which is behind its backlog; `sessions` has all that have records in
    /// between. From then on, commits that move the checkpoint need a claim that knows of the tail: claim again.
    ///
    /// # Errors
    /// [`ClaimError::Fenced`]: a newer writer owns the partition. [`ClaimError::Store`]: the store does not answer, or the
    /// partition has another tail; claim again to learn whether it began.
    #[boxed]
    pub async fn begin_tail(
        &self,
        claim: &Claim,
        at: Checkpoint,
        sessions: &SessionFilter,
    ) -> Result<(), ClaimError> {
        either!(self, store => store.begin_tail(claim, at, sessions).await)
    }

    /// Drops the tail of a partition, if it has one, because the log lost records of it: rows stay, and what the tail applied
    /// counts as read again, since the checkpoint will find it as duplicates. Claim again.
    ///
    /// # Errors
    /// [`ClaimError::Fenced`]: a newer writer owns the partition. [`ClaimError::Store`]: the store does not answer; ask again.
    #[boxed]
    pub async fn drop_tail(&self, claim: &Claim) -> Result<(), ClaimError> {
        either!(self, store => store.drop_tail(claim).await)
    }

    /// The sessions that have records in the backlog before a partition's tail. `None` if it never had a tail; of one that has
    /// none now, it is of no use.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn tail_sessions(
        &self,
        log: &LogId,
        partition: Partition,
    ) -> Result<Option<SessionFilter>, StoreError> {
        either!(self, store => store.tail_sessions(log, partition).await)
    }

    /// Notes the last error of a partition, for `dashi status` to show. Does nothing under a claim that is not the newest.
    /// A commit ends it: where the checkpoint moves, the error is over.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    #[boxed]
    pub async fn note_error(&self, claim: &Claim, note: &ErrorNote<'_>) -> Result<(), StoreError> {
        either!(self, store => store.note_error(claim, note).await)
    }

    /// Notes that the last error of a partition is over, if one is noted that is not.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    #[boxed]
    pub async fn note_over(&self, claim: &Claim) -> Result<(), StoreError> {
        either!(self, store => store.note_over(claim).await)
    }

    /// The logs that this store holds checkpoints of: none if nothing was ever projected into it.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn logs(&self) -> Result<Vec<LogId>, StoreError> {
        either!(self, store => store.logs().await)
    }

    /// The state of every partition that was ever claimed, by log and partition.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn partitions(&self) -> Result<Vec<PartitionState>, StoreError> {
        either!(self, store => store.partitions().await)
    }

    /// Where records were missing, by log, partition and the order of noting; at most a thousand for each partition, of
    /// which the last one stands for all that came after.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn missing(&self) -> Result<Vec<MissingRange>, StoreError> {
        either!(self, store => store.missing().await)
    }

    /// Whether the projection has no row at all: where a replay may begin.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        for table in tables::ALL {
            if !either!(self, store => store.first_rows(table, 1).await)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The store as it is now, to be read while commits go on.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        either!(self, store => store.snapshot().await)
    }

    /// The rows of an event, identify, chunk or post that was applied, found by primary keys.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn trace(&self, id: Uuid) -> Result<Option<AppliedEvent>, StoreError> {
        either!(self, store => store.trace(id).await)
    }
}

/// Changes that are written, by [`Store::write`]. If it is dropped, the store's checkpoint tells whether they were committed.
pub struct Written(Ending);

enum Ending {
    Committed(Committed),
    Open(crate::sqlite::Written),
}

impl Written {
    /// Waits until they are committed. Durable when it returns `Ok`.
    ///
    /// # Errors
    /// [`CommitError::NotWritten`]: the transaction failed, nothing was written. [`CommitError::Unknown`]: read the checkpoint.
    #[boxed]
    pub async fn committed(self) -> Result<Committed, CommitError> {
        match self.0 {
            Ending::Committed(committed) => Ok(committed),
            Ending::Open(written) => written.committed().await,
        }
    }
}
