//! Generations of the tables: see [`crate::generation`].

use async_recursion::async_recursion as boxed;
use dashi_domain::position::{Checkpoint, LogId, Partition};

use super::Store;
use crate::{
    Foreign, ForeignRows, Generation, GenerationError, IndexProgress, StoreError, SwapError, Swapped,
};

impl Store {
    /// All generations, by number. After [`Store::migrate`] there is at least the live one.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn generations(&self) -> Result<Vec<Generation>, StoreError> {
        either!(self, store => store.generations().await)
    }

    /// Makes a generation with empty tables, or returns the one that is being built already, whatever its version and
    /// rules. It has those indexes by which commits look rows up or find that they are there; the others are built by
    /// [`Store::finish_generation`]. Durable when it returns; to be called again after any error.
    ///
    /// # Errors
    /// [`GenerationError::Refused`]: the tables cannot have generations, and why. [`GenerationError::Store`]: try again.
    #[boxed]
    pub async fn begin_generation(&self, version: u32, rules: &str) -> Result<Generation, GenerationError> {
        either!(self, store => store.begin_generation(version, rules).await)
    }

    /// Notes the rules by which the first rows of the live tables are about to be made. Does nothing where there are rows
    /// already, or rules.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    #[boxed]
    pub async fn note_rules(&self, rules: &str) -> Result<(), StoreError> {
        either!(self, store => store.note_rules(rules).await)
    }

    /// Notes how many records per second a replay into a generation has reached, for later estimates.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    #[boxed]
    pub async fn note_replay_rate(&self, number: u32, per_s: u64) -> Result<(), StoreError> {
        either!(self, store => store.note_replay_rate(number, per_s).await)
    }

    /// A generation as a store of its own, to replay into, to compare, to read: it has the rows, checkpoints and claims of
    /// that generation, and the websites of the live one. Closing it leaves this store open. After a crash of the machine
    /// the last commits of one that is not live may be missing, rows and checkpoints alike; a swap makes all of them
    /// durable.
    ///
    /// # Errors
    /// [`GenerationError::None`]; [`GenerationError::Store`]: try again.
    #[boxed]
    pub async fn open_generation(&self, number: u32) -> Result<Store, GenerationError> {
        match self {
            Self::Postgres(store) => store.open_generation(number).await.map(Self::Postgres),
            Self::Sqlite(store) => store.open_generation(number).await.map(Self::Sqlite),
        }
    }

    /// Builds the indexes that are missing, gathers statistics, and makes a generation that is being built ready. Each
    /// index is durable by itself, so after any error the same call goes on where it was. Does nothing for one that is
    /// ready or kept and has all.
    ///
    /// # Errors
    /// [`GenerationError::Changed`]: drop it, and build another one. Others: see [`GenerationError`].
    pub async fn finish_generation(
        &self,
        number: u32,
        report: impl Fn(IndexProgress),
    ) -> Result<(), GenerationError> {
        either!(self, store => store.finish_generation(number, report).await)
    }

    /// The rows of the live tables that a generation does not have, by table; only tables that have such rows. They were
    /// written by others, or their records are not in the log any more. Rows of records that the generation has not read
    /// yet are among them, so it should be caught up before.
    ///
    /// # Errors
    /// See [`GenerationError`].
    #[boxed]
    pub async fn foreign_rows(&self, number: u32) -> Result<Vec<ForeignRows>, GenerationError> {
        either!(self, store => store.foreign_rows(number).await)
    }

    /// Makes a generation live, which is ready or kept, and keeps the one that was live. One transaction: it happens
    /// wholly or not at all, and is durable on `Ok`.
    ///
    /// `catch_up` brings the generation to the checkpoints that it is given, exactly or farther. It is called twice while
    /// the projector works, and once while the projector's commits wait; then it must not write to this store. After the swap every claim of before is fenced
    /// once: the projector claims again and goes on in the new tables.
    ///
    /// # Errors
    /// By the caller's next step; see [`SwapError`].
    pub async fn swap<E>(
        &self,
        number: u32,
        foreign: Foreign,
        catch_up: impl AsyncFn(&[(LogId, Partition, Checkpoint)]) -> Result<(), E>,
    ) -> Result<Swapped, SwapError<E>> {
        either!(self, store => store.swap(number, foreign, catch_up).await)
    }

    /// Removes a generation that is not live, with all its rows. Durable when it returns; to be called again after an
    /// error.
    ///
    /// # Errors
    /// [`GenerationError::State`]: it is live. [`GenerationError::None`], [`GenerationError::Store`].
    #[boxed]
    pub async fn drop_generation(&self, number: u32) -> Result<(), GenerationError> {
        either!(self, store => store.drop_generation(number).await)
    }
}
