//! GuardRow of a partition as the store keeps it: who may write, and from where on.
//!
//! The transitions of one row, and the writer's next step after each outcome. They are pure, so that
//! `tests/guard.rs` can check them in every order in which claims, commits, lost answers and crashes can meet; both
//! stores decide by them, and a test of the store's contract compares the stores with them.

use crate::position::{Checkpoint, Epoch};
use crate::tail::Tail;

/// The columns of a partition's row in the store by which the guard decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuardRow {
    /// The newest claim's epoch; [`GuardRow::UNCLAIMED`] has 0, which no claim gets.
    pub epoch: Epoch,
    /// The first offset not applied, except those that the tail has applied.
    pub checkpoint: Checkpoint,
    /// Records behind a backlog that are applied before it.
    pub tail: Option<Tail>,
}

/// The position of a partition that a commit moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Position {
    /// The checkpoint. There is no tail.
    Checkpoint,
    /// The checkpoint, towards a tail: up to its end at most, and the tail ends where the checkpoint reaches that.
    BesideTail,
    /// The end of the tail.
    Tail,
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
    /// The partition has another tail than the writer believes.
    TailDiffers,
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
    /// Read the stored checkpoint ([`GuardRow::resume`]) and go on from there. A writer that has a tail claims the partition
    /// again instead: so nothing that it sent can still be written, and it learns both positions.
    Resume,
    /// Claim the partition again.
    Claim,
    /// Give the claim up. A writer that is to own the partition claims it again.
    GiveUp,
}

impl GuardRow {
    /// A partition that nobody has claimed yet.
    pub const UNCLAIMED: Self = Self { epoch: Epoch::new(0), checkpoint: Checkpoint::START, tail: None };

    /// After a claim: the writer holds the new epoch and goes on from the checkpoint.
    #[must_use]
    pub const fn claim(self) -> Self {
        Self { epoch: Epoch::new(self.epoch.number() + 1), ..self }
    }

    /// After a commit of a writer that holds the epoch `held`, of the offsets `from` (inclusive) to `to` (exclusive), which
    /// moves that position. `to` may lie before `from`, where the log ended before the projection and is read again; a tail is
    /// dropped before ([`Self::drop_tail`]). `of_tail` is the number of records in the tail that the commit applies
    /// ([`Position::Tail`]) or passes as applied ([`Position::BesideTail`]).
    ///
    /// # Errors
    /// The guard refuses; see [`GuardRefusal`].
    pub fn commit(
        self,
        held: Epoch,
        position: Position,
        from: Checkpoint,
        to: Checkpoint,
        of_tail: u64,
    ) -> Result<Self, GuardRefusal> {
        self.resume(held)?;
        if position != Position::Tail && self.checkpoint != from {
            return Err(GuardRefusal::Misplaced { stored: self.checkpoint });
        }
        match (position, self.tail) {
            (Position::Checkpoint, None) => Ok(Self { checkpoint: to, ..self }),
            (Position::BesideTail, Some(tail)) if to <= tail.to => {
                let tail = (to < tail.to).then(|| Tail { applied: tail.applied - of_tail, ..tail });
                Ok(Self { checkpoint: to, tail, ..self })
            }
            (Position::Tail, Some(tail)) if tail.to == from && from <= to => {
                Ok(Self { tail: Some(Tail { to, applied: tail.applied + of_tail, ..tail }), ..self })
            }
            _ => Err(GuardRefusal::TailDiffers),
        }
    }

    /// After the begin of a tail at this checkpoint, behind the backlog.
    ///
    /// # Errors
    /// The guard refuses; see [`GuardRefusal`].
    pub fn begin_tail(self, held: Epoch, at: Checkpoint) -> Result<Self, GuardRefusal> {
        let checkpoint = self.resume(held)?;
        if self.tail.is_some() || at < checkpoint {
            return Err(GuardRefusal::TailDiffers);
        }
        Ok(Self { tail: Some(Tail { from: at, to: at, applied: 0 }), ..self })
    }

    /// After the tail was dropped, because the log lost records of it: it is read again by the checkpoint, which finds what is
    /// applied as duplicates.
    ///
    /// # Errors
    /// [`GuardRefusal::Fenced`].
    pub fn drop_tail(self, held: Epoch) -> Result<Self, GuardRefusal> {
        self.resume(held)?;
        Ok(Self { tail: None, ..self })
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
            Self::Refused(GuardRefusal::TailDiffers) => WriterStep::Claim,
            Self::Refused(GuardRefusal::Misplaced { .. }) | Self::NotWritten | Self::Unknown => {
                WriterStep::Resume
            }
        }
    }
}
