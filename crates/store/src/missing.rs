//! Counts and notes of missing records, as both backends keep them.

use dashi_domain::fold::Changes;
use dashi_domain::missing::MissingCause;
use dashi_domain::position::Checkpoint;

/// Ranges noted of one partition, at most; the last one grows with all later ones.
pub(crate) const RANGES_MAX: i64 = 1_000;

/// The numbers that a commit adds to a partition's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub missing: i64,
    pub markers: i64,
    pub rewound: i64,
}

impl Passed {
    pub fn of(changes: &Changes, from: Checkpoint, to: Checkpoint) -> Self {
        // Records that the log lost behind the projection are in `rewound`: they were projected.
        let is_missing = |cause| cause != MissingCause::LogEnded;
        let missing = changes.missing.iter().filter(|missing| is_missing(missing.cause));
        Self {
            missing: missing.map(|missing| missing.records).sum::<u64>() as i64,
            markers: changes.markers as i64,
            rewound: from.offset().number().saturating_sub(to.offset().number()) as i64,
        }
    }
}

/// The name that dead letters have from the time that their log went back behind them.
pub(crate) const REWOUND: &str = " before epoch ";
