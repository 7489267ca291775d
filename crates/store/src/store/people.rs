//! Reads of people, and the changes of their profiles.

use async_recursion::async_recursion as boxed;
use uuid::Uuid;

use super::Store;
use crate::{JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits, StoreError};

impl Store {
    /// A person, if any event named them.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn profile(&self, website_id: Uuid, distinct_id: &str) -> Result<Option<Profile>, StoreError> {
        either!(self, store => store.profile(website_id, distinct_id).await)
    }

    /// At most `limit` sessions of a person by `first_at_ms` and id, from behind `after` on.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn person_sessions(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PersonSession>, StoreError> {
        either!(self, store => store.person_sessions(website_id, distinct_id, after, limit).await)
    }

    /// The effective traits of a session; `None` if no event named it.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn session_traits(
        &self,
        website_id: Uuid,
        session_id: Uuid,
    ) -> Result<Option<SessionTraits>, StoreError> {
        either!(self, store => store.session_traits(website_id, session_id).await)
    }

    /// At most `limit` people whose distinct id contains `query` in any case ("" is in all), by distinct id, byte by
    /// byte, from behind `after` on.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn profiles(
        &self,
        website_id: Uuid,
        query: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ProfileSummary>, StoreError> {
        either!(self, store => store.profiles(website_id, query, after, limit).await)
    }

    /// At most `limit` events of all sessions linked with a person, by time and id, from behind `after` on.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn journey(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<JourneyEvent>, StoreError> {
        either!(self, store => store.journey(website_id, distinct_id, after, limit).await)
    }

    /// The changes of profiles that are committed from now on: on PostgreSQL by any process, in a SQLite file by this
    /// one. A receiver that falls behind gets an error from the channel, and has to read everything again. Must be
    /// called within a runtime.
    pub fn profile_changes(&self) -> tokio::sync::broadcast::Receiver<ProfileChange> {
        either!(self, store => store.profile_changes())
    }
}
