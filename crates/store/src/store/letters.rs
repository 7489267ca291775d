//! Dead letters: records that were set aside.

use async_recursion::async_recursion as boxed;
use dashi_domain::dead_letters::LetterCommand;
use dashi_domain::position::Offset;
use uuid::Uuid;

use super::Store;
use crate::{Claim, LetterCounts, LetterFilter, LetterPlace, LetterToTry, SetAside, StoreError};

/// Letters that are read at once where all of them are.
const PAGE: u32 = 200;

impl Store {
    /// The first `limit` dead letters behind `after`, in the order of their places. Filters by a text read the letters.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn dead_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Vec<SetAside>, StoreError> {
        either!(self, store => store.dead_letters(filter, after, limit).await)
    }

    /// The dead letters whose record contains `text`, of all logs. All dead letters are read for it.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn dead_letters_with(&self, text: &str) -> Result<Vec<SetAside>, StoreError> {
        let filter = LetterFilter { record: Some(text.to_owned()), ..LetterFilter::default() };
        let mut all: Vec<SetAside> = Vec::new();
        loop {
            let after = all.last().map(|letter| letter.place.clone());
            let page = self.dead_letters(&filter, after.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// How many dead letters each partition has; those without any are left out.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn letter_counts(&self) -> Result<Vec<LetterCounts>, StoreError> {
        either!(self, store => store.letter_counts().await)
    }

    /// The first `limit` of the letters that a command names and has not tried yet, but for those that wait, in the order of their offsets, as the
    /// records that they are. [`Store::commit`] writes the outcome, with the checkpoint that the claim stands at as both
    /// ends of the interval, and [`Tried`](dashi_domain::dead_letters::Tried) in the changes.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn letters_to_try(
        &self,
        claim: &Claim,
        command: &LetterCommand,
        limit: u32,
    ) -> Result<Vec<LetterToTry>, StoreError> {
        either!(self, store => store.letters_to_try(claim, command, limit).await)
    }

    /// Of sessions that no letter holds up any more, the first of the letters that wait, at most `limit`. Once it is tried,
    /// the next one is the first, or it holds the session up itself.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn released_letters(&self, claim: &Claim, limit: u32) -> Result<Vec<LetterToTry>, StoreError> {
        either!(self, store => store.released_letters(claim, limit).await)
    }

    /// The sessions of a partition that have letters which hold them up or wait: the offset of the first of these, and the
    /// number of those that wait.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn held_sessions(&self, claim: &Claim) -> Result<Vec<(Uuid, Offset, u32)>, StoreError> {
        either!(self, store => store.held_sessions(claim).await)
    }
}
