//! The store: the projection's rows, and beside them checkpoints, fencing epochs and dead letters, so that all of
//! them commit as one. Two backends, one set of promises (`tests/it/store_contract.rs` runs against both).
//!
//! Only the projector writes rows. A checkpoint moves only in the transaction that holds its rows. An older epoch
//! never writes.

mod chunk_index;
mod claim;
mod compare;
mod error;
mod heal;
mod missing;
mod postgres;
mod profile;
mod recorder;
mod redact;
mod source;
mod sqlite;
mod table;
mod tables;
mod trace;
mod umami;

pub use claim::{Claim, ErrorNote, MissingRange, PartitionState};
pub use compare::{Comparison, TableComparison, compare};
pub use error::{Cause, ClaimError, CommitError, StoreError};
pub use heal::{OrphanedSession, Orphaning, Sibling, WebsiteState};
pub use postgres::heal::{HealError, HealReport, HealScope, KeepUndo, OnProgress, Orphans, Repair};
pub use postgres::{AddressError, PostgresSettings, PostgresStore};
pub use profile::{
    Committed, JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits,
};
pub use recorder::{Heatmaps, Recorder, RecorderRules};
pub use redact::{REDACTED, redact_url};
pub use source::{LinkCampaign, NewWebsite, Pixel, TrackedLink, Website};
pub use sqlite::{SqliteSettings, SqliteStore};
pub use trace::{AppliedEvent, SetAside};
pub use umami::{UmamiTables, Unwritten};

use dashi_domain::fold::Changes;
use dashi_domain::position::{Checkpoint, LogId, Partition};
use uuid::Uuid;

/// A store.
#[derive(Clone)]
pub enum Store {
    /// A PostgreSQL database: one that Umami made, or a fresh one.
    Postgres(PostgresStore),
    /// A SQLite file.
    Sqlite(SqliteStore),
}

/// Calls the same method of whichever backend it is.
macro_rules! either {
    ($self:expr, $store:ident => $call:expr) => {
        match $self {
            Store::Postgres($store) => $call,
            Store::Sqlite($store) => $call,
        }
    };
}

impl Store {
    /// Makes the tables that are missing. On a database that Umami made, only those of the schema `dashi`. Safe to
    /// run twice, and from two processes at once.
    ///
    /// # Errors
    /// The store does not answer, a newer program made its tables, or an Umami older than 3.0 did.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        either!(self, store => store.migrate().await)
    }

    /// The rows of an event, identify, chunk or post that was applied, found by primary keys.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn trace(&self, id: Uuid) -> Result<Option<AppliedEvent>, StoreError> {
        either!(self, store => store.trace(id).await)
    }

    /// The dead letters whose record contains `text`, of all logs. All dead letters are read for it.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn dead_letters_with(&self, text: &str) -> Result<Vec<SetAside>, StoreError> {
        either!(self, store => store.set_aside(text).await)
    }

    /// Which of Umami's versions made the tables, read anew. None if there is none: in a file, and in a database that
    /// is empty yet, where [`Store::migrate`] makes those of 3.1.
    ///
    /// # Errors
    /// The store does not answer, or its tables are older than those of 3.0.
    pub async fn umami(&self) -> Result<Option<UmamiTables>, StoreError> {
        match self {
            Self::Postgres(store) => store.umami().await,
            Self::Sqlite(_) => Ok(None),
        }
    }

    /// What the tables have that is not written, and what has no place in them, read anew. None where there are no tables of
    /// Umami's.
    ///
    /// # Errors
    /// The store does not answer, or its tables are older than those of 3.0.
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
    pub async fn ping(&self) -> Result<(), StoreError> {
        either!(self, store => store.ping().await)
    }

    /// The logs that this store holds checkpoints of: none if nothing was ever projected into it.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn logs(&self) -> Result<Vec<LogId>, StoreError> {
        either!(self, store => store.logs().await)
    }

    /// Takes a partition of a log for a live projector, with a new epoch, higher than any before, and says where to go on.
    /// From when it returns, no commit under an older epoch succeeds, and no replay claims a partition of this store, of
    /// whichever log. `owner` is for people to read.
    ///
    /// # Errors
    /// [`ClaimError::Store`]: the store does not answer; claim again.
    pub async fn claim(&self, log: &LogId, partition: Partition, owner: &str) -> Result<Claim, ClaimError> {
        either!(self, store => store.claim(log, partition, owner).await)
    }

    /// The same for a replay, which takes a store only where no live projector ever claimed a partition.
    ///
    /// # Errors
    /// [`ClaimError::Live`]: the store is a live projector's; nothing was changed. [`ClaimError::Store`]: the store does
    /// not answer; claim again.
    pub async fn claim_for_replay(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        either!(self, store => store.claim_for_replay(log, partition, owner).await)
    }

    /// Where a claim stands: what to do after a commit whose outcome is unknown.
    ///
    /// # Errors
    /// [`ClaimError::Fenced`]: a newer writer owns the partition; stop. [`ClaimError::Store`]: the store does not
    /// answer; ask again.
    pub async fn resume(&self, claim: &Claim) -> Result<Checkpoint, ClaimError> {
        either!(self, store => store.resume(claim).await)
    }

    /// Commits rows, dead letters, what is missing and the checkpoint `to` in one transaction, which holds only if `claim`
    /// has the newest epoch and the stored checkpoint is `from`. `to` may lie before `from`: then the log ended before the
    /// projection and is read again from there; dead letters of offsets from `to` on stay, under another name, since those
    /// offsets may get other records. Durable when it returns `Ok`; nothing was written on any
    /// error but [`CommitError::Unknown`].
    ///
    /// # Errors
    /// By what to do next; see [`CommitError`].
    pub async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        either!(self, store => store.commit(claim, from, to, changes).await)
    }

    /// Notes the last error of a partition, for `dashi status` to show. Does nothing under a claim that is not the newest.
    /// A commit ends it: where the checkpoint moves, the error is over.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    pub async fn note_error(&self, claim: &Claim, note: &ErrorNote<'_>) -> Result<(), StoreError> {
        either!(self, store => store.note_error(claim, note).await)
    }

    /// Notes that the last error of a partition is over, if one is noted that is not.
    ///
    /// # Errors
    /// The store does not answer; the note is lost.
    pub async fn note_over(&self, claim: &Claim) -> Result<(), StoreError> {
        either!(self, store => store.note_over(claim).await)
    }

    /// The state of every partition that was ever claimed, by log and partition.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn partitions(&self) -> Result<Vec<PartitionState>, StoreError> {
        either!(self, store => store.partitions().await)
    }

    /// Where records were missing, by log, partition and the order of noting; at most a thousand for each partition, of
    /// which the last one stands for all that came after.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn missing(&self) -> Result<Vec<MissingRange>, StoreError> {
        either!(self, store => store.missing().await)
    }

    /// Whether the projection has no row at all: where a replay may begin.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        for table in tables::ALL {
            if !self.rows(table, 1).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The websites that are not removed.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        either!(self, store => store.websites().await)
    }

    /// Adds a website; brings a removed one with the same id back under the new name and domain.
    ///
    /// # Errors
    /// [`StoreError::WebsiteExists`]: there is one with this id. Any other: the store does not answer.
    pub async fn add_website(&self, website: &NewWebsite, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_website(website, now_ms).await)
    }

    /// Adds a website where there was never any, so that the first event has somewhere to go. Two processes that start
    /// at once add one between them. Tables that Umami made are left as they are: a website has an owner there. Says
    /// whether it was added.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn add_first_website(&self, website: &NewWebsite, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.add_first_website(website, now_ms).await)
    }

    /// Marks a website removed: it takes no more events from clients without a token. Its rows stay. Says whether
    /// there was one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn remove_website(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_website(id, now_ms).await)
    }

    /// Sets whether a website takes recordings. Says whether there was one.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami knows no recordings. Any other: the store does not answer.
    pub async fn set_recordings(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        either!(self, store => store.set_recordings(id, taken).await)
    }

    /// Sets whether a website takes heatmaps that its recorder posts; then none are read out of recordings. Says whether
    /// there was one.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami knows no such posts. Any other: the store does not answer.
    pub async fn set_heatmaps(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        either!(self, store => store.set_heatmaps(id, taken).await)
    }

    /// Sets the addresses and networks whose visits a website does not want: a text, separated by commas, of at most 500
    /// characters; empty for none. Says whether there was one.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami blocks addresses for all websites only. Any other: the store does not
    /// answer.
    pub async fn set_blocked_addresses(&self, id: Uuid, addresses: &str) -> Result<bool, StoreError> {
        either!(self, store => store.set_blocked_addresses(id, addresses).await)
    }

    /// The links that are not removed. None in a database of an Umami that had no links yet.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn links(&self) -> Result<Vec<TrackedLink>, StoreError> {
        either!(self, store => store.links().await)
    }

    /// Adds a link.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`]: choose another slug. [`StoreError::NotInThisVersion`]: its Umami keeps no campaign
    /// parameters of links. Any other: the store does not answer.
    pub async fn add_link(&self, link: &TrackedLink, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_link(link, now_ms).await)
    }

    /// Marks a link removed: it leads nowhere any more. Its rows stay, and its slug stays taken. Says whether there
    /// was one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn remove_link(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_link(id, now_ms).await)
    }

    /// The pixels that are not removed. None in a database of an Umami that had no pixels yet.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn pixels(&self) -> Result<Vec<Pixel>, StoreError> {
        either!(self, store => store.pixels().await)
    }

    /// Adds a pixel.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`]: choose another slug. Any other: the store does not answer.
    pub async fn add_pixel(&self, pixel: &Pixel, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_pixel(pixel, now_ms).await)
    }

    /// Marks a pixel removed: it is not found any more. Its rows stay, and its slug stays taken. Says whether there
    /// was one.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn remove_pixel(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_pixel(id, now_ms).await)
    }

    /// A person, if any event named them.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn profile(&self, website_id: Uuid, distinct_id: &str) -> Result<Option<Profile>, StoreError> {
        either!(self, store => store.profile(website_id, distinct_id).await)
    }

    /// At most `limit` sessions of a person by `first_at_ms` and id, from behind `after` on.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn person_sessions(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PersonSession>, StoreError> {
        either!(self, store => store.person_sessions(website_id, distinct_id, after, limit).await)
    }

    /// What a session is effectively known by; `None` if no event told of it.
    ///
    /// # Errors
    /// The store does not answer.
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
    /// one. A receiver that falls behind gets an error from the channel, and has to look at everything again. Must be
    /// called within a runtime.
    pub fn profile_changes(&self) -> tokio::sync::broadcast::Receiver<ProfileChange> {
        either!(self, store => store.profile_changes())
    }

    /// Lets go of the connections.
    pub async fn close(&self) {
        either!(self, store => store.close().await);
    }

    /// The first rows of a table in the order of its key, in the text form in which rows are compared.
    async fn rows(&self, table: &'static table::Table, limit: u32) -> Result<Vec<Vec<String>>, StoreError> {
        use futures::TryStreamExt as _;
        compare::stream(self, table, Some(limit)).try_collect().await
    }
}
