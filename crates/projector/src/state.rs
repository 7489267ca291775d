//! States of a projector and of its partitions, and their names.

/// State of a projector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProjectorState {
    /// It has not begun: it waits for the store's tables, or is about to start.
    #[default]
    Starting,
    /// It projects the partitions that are assigned to this process.
    Up,
    /// It ended with this error; records that it has not applied stay in the log.
    Down(String),
}

/// State of a partition's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionState {
    /// It reads, folds and commits, or waits for records.
    Running,
    /// The store failed; it is tried again at growing intervals.
    WaitingForStore,
    /// The log failed; it is tried again at growing intervals.
    WaitingForLog,
    /// Its records wait until other partitions have passed a barrier of layouts.
    WaitingForLayout,
    /// It cannot go on until an operator acts; it is tried again at an interval.
    Failed(FailureKind),
}

/// Why a partition failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// Retention removed the next records.
    Trimmed,
    /// The log ends before the checkpoint.
    Beyond,
    /// The log has other records than those that were projected.
    Rewritten,
    /// The topic was deleted and created again.
    Replaced,
    /// The topic's settings lose records.
    Refused,
    /// A file of the archive that a replay reads is damaged.
    Archive,
    /// Another projector claimed the partition.
    ClaimLost,
    /// The store's tables are too old or too new for this program.
    Tables,
    /// The partition's task panicked.
    Panicked,
}

impl PartitionState {
    /// Names of all states, in metrics and readiness.
    pub const NAMES: [&'static str; 5] =
        ["running", "waiting_for_store", "waiting_for_log", "waiting_for_layout", "failed"];

    /// Name of the state, one of [`Self::NAMES`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::WaitingForStore => "waiting_for_store",
            Self::WaitingForLog => "waiting_for_log",
            Self::WaitingForLayout => "waiting_for_layout",
            Self::Failed(_) => "failed",
        }
    }

    /// Kind of the failure, if the partition failed.
    pub const fn failure(self) -> Option<FailureKind> {
        match self {
            Self::Failed(kind) => Some(kind),
            _ => None,
        }
    }
}

impl FailureKind {
    /// Name of the kind in metrics, readiness and `dashi status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Beyond => "beyond",
            Self::Rewritten => "rewritten",
            Self::Replaced => "replaced",
            Self::Refused => "refused",
            Self::Archive => "archive",
            Self::ClaimLost => "claim_lost",
            Self::Tables => "tables",
            Self::Panicked => "panicked",
        }
    }
}
