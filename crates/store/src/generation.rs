//! Generations: complete projections of one log beside each other, of which one is live.
//!
//! A generation has every table that the projector writes: Umami's event tables and Dashi's own. It is built beside the
//! live one, becomes ready, is swapped with the live one, which is kept, and is dropped at the end.

use std::time::Duration;

use dashi_domain::position::{Checkpoint, LogId, Partition};
use serde::Serialize;

use crate::StoreError;

/// The projection version of tables that were made before versions were recorded.
pub const VERSION_UNKNOWN: u32 = 0;

/// Keys of foreign rows that are reported per table, at most.
pub const FOREIGN_KEYS_MAX: usize = 5;

/// Dashi's own tables that are of the store, not of a generation: a swap leaves them where they are. All other tables of
/// the schema `dashi` (PostgreSQL) or with the prefix `dashi_` (SQLite) belong to a generation, so a table whose rows do
/// not follow from the log has to be named here.
pub(crate) const SHARED_TABLES: &[&str] =
    &["migration", "generation", "tally", "spool", "layout", "appender", "tail_sessions"];

/// A generation of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Its number, from 1 on.
    pub number: u32,
    /// Its state.
    pub state: GenerationState,
    /// The version of the fold that made its rows; of the live one the version that it began with.
    /// [`VERSION_UNKNOWN`] if it is older than this record.
    pub projection_version: u32,
    /// The rules of the fold, as text; empty if they are not known.
    pub rules: String,
    /// The schema (PostgreSQL) or the file (SQLite) that holds it.
    pub place: String,
    /// When it was begun; milliseconds since 1970. Of the first one: when the tables began to be recorded.
    pub made_at_ms: i64,
    /// When it became live for the last time; milliseconds since 1970. `None` if it never was.
    pub live_since_ms: Option<i64>,
    /// Records per second of the replay that made it, without a limit on its rate; `None` if that is not known.
    pub replayed_per_s: Option<u64>,
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    /// A replay fills it; indexes are missing. There is at most one.
    Building,
    /// It has all indexes and can be swapped.
    Ready,
    /// Readers read it and the projector writes it. There is exactly one.
    Live,
    /// It was live before and can be swapped back.
    Kept,
}

impl GenerationState {
    const ALL: [Self; 4] = [Self::Building, Self::Ready, Self::Live, Self::Kept];

    /// Its name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Live => "live",
            Self::Kept => "kept",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl std::fmt::Display for GenerationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The progress of [`crate::Store::finish_generation`], reported before each step and once at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexProgress {
    /// The table that is worked on; empty at the end.
    pub table: String,
    /// The index that is built next; `None` while the table's statistics are gathered, and at the end.
    pub index: Option<String>,
    /// Steps that were begun before; at the end, all. A few of them go on at once.
    pub done: usize,
    /// All steps of this call.
    pub total: usize,
}

/// Rows of a live table that a generation of the same log does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignRows {
    /// The table.
    pub table: String,
    /// How many.
    pub rows: u64,
    /// The first keys, at most [`FOREIGN_KEYS_MAX`], columns separated by "/".
    pub keys: Vec<String>,
}

/// The treatment of foreign rows by a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// The swap is refused if there are any.
    Refuse,
    /// They are copied into the generation.
    Keep,
    /// They stay in the generation that was live, and are not in the new one.
    Lose,
}

/// What a swap did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swapped {
    /// The generation that was live and is kept.
    pub old: u32,
    /// How long commits of the projector waited.
    pub writers_held: Duration,
    /// How long a reader can have waited: from the request of the exclusive locks to the end of the commit. Zero on
    /// SQLite, where readers never wait.
    pub readers_locked: Duration,
    /// Attempts to get those locks that were given up because a reader did not end in time.
    pub retries: u32,
    /// Foreign rows that were copied, by table.
    pub foreign_kept: Vec<ForeignRows>,
    /// Foreign rows that are not in the new generation, by table.
    pub foreign_lost: Vec<ForeignRows>,
}

/// Errors of generations, by what the caller does next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GenerationError {
    /// The store failed; the same call later goes on where it was.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is none with this number: list them.
    #[error("there is no generation {number}; `dashi replay list` shows those that there are")]
    None {
        /// The number.
        number: u32,
    },
    /// Its state does not allow the operation.
    #[error("generation {number} is {state}: {remedy}")]
    State {
        /// The generation.
        number: u32,
        /// Its state.
        state: GenerationState,
        /// What can be done, in words.
        remedy: &'static str,
    },
    /// The store's tables cannot have generations as they are. Nothing was changed.
    #[error("a generation cannot take the place of these tables: {}", reasons.join("; "))]
    Refused {
        /// Every reason, with its remedy.
        reasons: Vec<String>,
    },
    /// The live tables were changed since the generation was made: drop it, and build another one.
    #[error(
        "generation {number} has other tables than the live one: {}; drop it and build another one",
        differences.join("; ")
    )]
    Changed {
        /// The generation.
        number: u32,
        /// The tables and columns that differ, in words.
        differences: Vec<String>,
    },
    /// A partition of the live tables has a tail: records are applied before older ones. Nothing was changed; try again when the
    /// backlog is applied.
    #[error(
        "the live tables have a backlog before records that are applied already (partition {partition}): `dashi status` shows how \
         much is left of it; try again then, nothing was changed"
    )]
    HasTail {
        /// The partition.
        partition: Partition,
    },
    /// Others held locks for too long. Nothing was changed; try again.
    #[error("the tables were not free for {} ms: {holders}; nothing was changed, try again", waited.as_millis())]
    Busy {
        /// How long the locks were tried for.
        waited: Duration,
        /// The sessions that hold locks, in words.
        holders: String,
    },
}

/// Errors of a swap, by what the caller does next. Nothing was changed on any of them but [`SwapError::Unknown`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwapError<E> {
    /// See [`GenerationError`].
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The generation was not caught up.
    #[error("the generation was not caught up with the live one")]
    CatchUp(#[source] E),
    /// The generation was caught up, and is still behind the live one.
    #[error(
        "partition {partition} of {log} is applied in the live tables up to {live}, and {}: replay the log into it",
        match generation {
            Some(generation) => format!("in the generation only up to {generation}"),
            None => "not at all in the generation".to_owned(),
        }
    )]
    Behind {
        /// The log.
        log: LogId,
        /// The partition.
        partition: Partition,
        /// The live checkpoint.
        live: Checkpoint,
        /// That of the generation; `None` if it never read this partition.
        generation: Option<Checkpoint>,
    },
    /// The live tables have rows that the generation does not have, and [`Foreign::Refuse`] was given.
    #[error(
        "the live tables have rows that are not in the generation: {}; say whether to keep or to lose them",
        tables(.0)
    )]
    Foreign(Vec<ForeignRows>),
    /// The store did not answer the commit, so that the swap may or may not have happened:
    /// [`crate::Store::generations`] shows which generation is live.
    #[error("the outcome of the swap is unknown: look which generation is live")]
    Unknown(#[source] StoreError),
}

impl<E> From<StoreError> for SwapError<E> {
    fn from(error: StoreError) -> Self {
        Self::Generation(error.into())
    }
}

fn tables(foreign: &[ForeignRows]) -> String {
    let tables: Vec<String> =
        foreign.iter().map(|found| format!("{} in {}", found.rows, found.table)).collect();
    tables.join(", ")
}

/// Whether a generation has every record that the live tables have. Partitions of a log that it never read are others'
/// rows, and it is said elsewhere what becomes of those.
pub(crate) fn check_reached<E>(
    live: &[(LogId, Partition, Checkpoint)],
    reached: &[(LogId, Partition, Checkpoint)],
    foreign: Foreign,
) -> Result<(), SwapError<E>> {
    for (log, partition, live) in live {
        let here = reached.iter().find(|(other, of, _)| other == log && of == partition);
        let generation = here.map(|(.., checkpoint)| *checkpoint);
        let reads_log = reached.iter().any(|(other, ..)| other == log);
        let is_reached = match generation {
            Some(generation) => generation >= *live,
            None => *live == Checkpoint::START || !reads_log && foreign != Foreign::Refuse,
        };
        if !is_reached {
            let (log, partition, live) = (log.clone(), *partition, *live);
            return Err(SwapError::Behind { log, partition, live, generation });
        }
    }
    Ok(())
}

impl Generation {
    /// Refuses one that cannot take the live one's place.
    pub(crate) fn check_can_be_swapped(&self) -> Result<(), GenerationError> {
        let remedy = match self.state {
            GenerationState::Ready | GenerationState::Kept => return Ok(()),
            GenerationState::Building => "replay the log into it and finish it first",
            GenerationState::Live => "there is nothing to swap",
        };
        Err(GenerationError::State { number: self.number, state: self.state, remedy })
    }

    /// Refuses the live one.
    pub(crate) fn check_can_be_dropped(&self) -> Result<(), GenerationError> {
        if self.state != GenerationState::Live {
            return Ok(());
        }
        let remedy = "the live one cannot be dropped; swap another one into its place first";
        Err(GenerationError::State { number: self.number, state: self.state, remedy })
    }
}
