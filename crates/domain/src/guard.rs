//! GuardRow of a partition as the store keeps it: who may write, and from where on.
//!
//! Three transitions of one row, and the writer's next step after each outcome. They are pure, so that
//! `tests/guard.rs` can check them in every order in which claims, commits, lost answers and crashes can meet; both
//! stores decide by them, and a test of the store's contract compares the stores with them.

use crate::position::{Checkpoint, Epoch};

/// The columns of a partition's row in the store by which the guard decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRow {
    /// The newest claim's epoch; [`GuardRow::UNCLAIMED`] has 0, which no claim gets.
    pub epoch: Epoch,
    /// The first offset not applied.
    pub checkpoint: Checkpoint,
}

/// Why the guard refused a commit. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardRefusal {
    /// A newer claim was made.
    Fenced {
        /// Its epoch.
        current: Epoch,
    },
    /// The batch does not begin at the stored checkpoint.
    Misplaced {
        /// The stored checkpoint.
        stored: Checkpoint,
    },
}

/// Outcome of a commit, as far as its writer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitOutcome {
    /// Rows and checkpoint are durable.
    Moved,
    /// The guard refused it.
    Refused(GuardRefusal),
    /// It failed before it was committed.
    NotWritten,
    /// The store did not answer: it may be committed, now or later.
    Unknown,
}

/// The writer's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriterStep {
    /// Go on behind the batch.
    GoOn,
    /// Read the stored checkpoint ([`GuardRow::resume`]) and go on from there.
    Resume,
    /// Give the claim up. A writer that is to own the partition claims it again.
    GiveUp,
}

impl GuardRow {
    /// A partition that nobody has claimed yet.
    pub const UNCLAIMED: Self = Self { epoch: Epoch::new(0), checkpoint: Checkpoint::START };

    /// After a claim: the writer holds the new epoch and goes on from the checkpoint.
    #[must_use]
    pub const fn claim(self) -> Self {
        Self { epoch: Epoch::new(self.epoch.number() + 1), ..self }
    }

    /// After a commit of a writer that holds the epoch `held`, of the offsets `from` (inclusive) to `to` (exclusive). `to`
    /// may lie before `from`, where the log ended before the projection and is read again.
    ///
    /// # Errors
    /// The guard refuses; see [`GuardRefusal`].
    pub fn commit(self, held: Epoch, from: Checkpoint, to: Checkpoint) -> Result<Self, GuardRefusal> {
        self.resume(held)?;
        if self.checkpoint != from {
            return Err(GuardRefusal::Misplaced { stored: self.checkpoint });
        }
        Ok(Self { checkpoint: to, ..self })
    }

    /// The checkpoint from which the writer that holds the epoch `held` goes on.
    ///
    /// # Errors
    /// [`GuardRefusal::Fenced`].
    pub fn resume(self, held: Epoch) -> Result<Checkpoint, GuardRefusal> {
        if self.epoch == held {
            Ok(self.checkpoint)
        } else {
            Err(GuardRefusal::Fenced { current: self.epoch })
        }
    }
}

impl CommitOutcome {
    /// The writer's next step.
    pub const fn next(self) -> WriterStep {
        match self {
            Self::Moved => WriterStep::GoOn,
            Self::Refused(GuardRefusal::Fenced { .. }) => WriterStep::GiveUp,
            Self::Refused(GuardRefusal::Misplaced { .. }) | Self::NotWritten | Self::Unknown => {
                WriterStep::Resume
            }
        }
    }
}
