//! Counts by the hour, and the collectors' tallies.

use async_recursion::async_recursion as boxed;
use dashi_domain::position::LogId;

use super::Store;
use crate::{CollectorRun, PartitionCounts, SpoolNote, StoreError, Tally};

impl Store {
    /// The records of a log that were counted, by partition, all of one moment: counts and checkpoints agree.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn counts(&self, log: &LogId) -> Result<Vec<PartitionCounts>, StoreError> {
        either!(self, store => store.counts(log).await)
    }

    /// Notes how many submissions a collector has answered in which way since it started. The values are absolute, so
    /// noting them again changes nothing. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; note the same values again, or later ones.
    #[boxed]
    pub async fn note_tallies(&self, run: &CollectorRun, tallies: &[Tally]) -> Result<(), StoreError> {
        either!(self, store => store.note_tallies(run, tallies).await)
    }

    /// The tallies of all collectors that ever appended to a log, summed up.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn tallies(&self, log: &LogId) -> Result<Vec<Tally>, StoreError> {
        either!(self, store => store.tallies(log).await)
    }

    /// Notes what a collector's spool holds, in place of what was noted of it before. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; note it again, or what it holds then.
    #[boxed]
    pub async fn note_spool(&self, note: &SpoolNote) -> Result<(), StoreError> {
        either!(self, store => store.note_spool(note).await)
    }

    /// The spools that held something when their collectors noted it last, of all logs.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn spools(&self) -> Result<Vec<SpoolNote>, StoreError> {
        either!(self, store => store.spools().await)
    }
}
