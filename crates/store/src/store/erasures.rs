//! Erasures: deleting the rows of a person, a session or a website.

use async_recursion::async_recursion as boxed;
use dashi_domain::erasure::{ErasureCopy, Subject};
use dashi_domain::position::Checkpoint;
use uuid::Uuid;

use super::Store;
use crate::{Claim, CommitError, Erasable, NotedErasure, StoreError};

impl Store {
    /// Deletes rows that a copy of an erasure covers, of a bounded number of sessions behind `after` in the order of their
    /// ids, in a transaction of its own; the checkpoint stays at `from`, the offset of the copy. Returns where to go on, and
    /// `None` at the end. [`Store::commit`] deletes the rows that are left and moves the checkpoint. So a large erasure takes
    /// many short transactions and a short last one. Does nothing if another copy of the record was applied before.
    ///
    /// # Errors
    /// As those of [`Store::commit`], but never [`CommitError::Duplicates`] or [`CommitError::Refused`].
    #[boxed]
    pub async fn erase_some(
        &self,
        claim: &Claim,
        from: Checkpoint,
        copy: &ErasureCopy,
        after: Uuid,
    ) -> Result<Option<Uuid>, CommitError> {
        either!(self, store => store.erase_some(claim, from, copy, after).await)
    }

    /// What an erasure would delete now.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn erasable(&self, website_id: Uuid, subject: &Subject) -> Result<Erasable, StoreError> {
        either!(self, store => store.erasable(website_id, subject).await)
    }

    /// The erasures that at least one partition has applied, by time.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn erasures(&self) -> Result<Vec<NotedErasure>, StoreError> {
        either!(self, store => store.erasures().await)
    }
}
