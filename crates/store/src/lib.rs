//! The store: the projection's rows, and beside them checkpoints, fencing epochs and dead letters, so that all of
//! them commit as one. Two backends, one set of promises (`tests/it/store_contract.rs` runs against both).
//!
//! Only the projector writes rows. A checkpoint moves only in the transaction that holds its rows. An older epoch
//! never writes.

mod audit;
mod chunk_index;
mod claim;
mod compare;
mod erasure;
mod error;
mod fitness;
mod generation;
mod heal;
mod history;
mod layout;
mod letters;
mod missing;
mod postgres;
mod profile;
mod read;
mod recorder;
mod redact;
mod snapshot;
mod source;
mod spool;
mod sqlite;
mod store;
mod table;
mod tables;
mod tail;
mod trace;
mod umami;

pub use audit::{CollectorRun, PartitionCounts, Tally};
pub use claim::{Claim, ErrorNote, MissingRange, PartitionState};
pub use compare::{
    Comparison, ComparisonProgress, DayComparison, Difference, TableComparison, compare, compare_snapshots,
    compare_watched,
};
pub use erasure::{AppliedCopy, Erasable, ErasableRows, NotedErasure};
pub use error::{Cause, ClaimError, CommitError, StoreError};
pub use fitness::Fitness;
pub use generation::{
    FOREIGN_KEYS_MAX, Foreign, ForeignRows, Generation, GenerationError, GenerationState, IndexProgress,
    SwapError, Swapped, VERSION_UNKNOWN,
};
pub use heal::{OrphanedSession, Orphaning, Sibling, WebsiteState};
pub use history::{HistoryRows, HistorySource, HistorySourceKind, LeftOut, Place};
pub use layout::{Appender, AppenderState, StoredLayout};
pub use letters::{LetterCounts, LetterFilter, LetterPlace, LetterToTry, SetAside};
pub use postgres::heal::{HealError, HealReport, HealScope, KeepUndo, OnProgress, Orphans, Repair};
pub use postgres::history::UmamiHistory;
pub use postgres::{AddressError, PostgresSettings, PostgresStore};
pub use profile::{
    Committed, JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits,
};
pub use read::{
    ActivityRow, EventRow, Field, Filter, Metric, MetricKind, Operator, Point, PropertyRow, Question,
    Questions, SessionOrder, SessionRow, SessionTotals, SourceRow, Totals, WebsiteOrder, WebsiteRow,
};
pub use recorder::{Heatmaps, Recorder, RecorderRules};
pub use redact::{REDACTED, redact_url};
pub use snapshot::Snapshot;
pub use source::{LinkCampaign, NewWebsite, Pixel, TrackedLink, Website};
pub use spool::SpoolNote;
pub use sqlite::{SqliteSettings, SqliteStore};
pub use store::{Store, Written};
pub use trace::AppliedEvent;
pub use umami::{UmamiTables, Unwritten};
