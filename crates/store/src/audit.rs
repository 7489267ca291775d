//! Counts by the hour: of records, which the projector counts with their outcomes, and of submissions, which the collectors
//! count.

use dashi_domain::fold::Outcomes;
use dashi_domain::glance::HourKey;
use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::Tail;
use uuid::Uuid;

use crate::tail::tail;

/// The records of a partition that were counted, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionCounts {
    /// The partition.
    pub partition: Partition,
    /// First offset that is not applied, except those that the tail has applied.
    pub checkpoint: Checkpoint,
    /// Records behind a backlog that are applied before it.
    pub tail: Option<Tail>,
    /// All outcomes by the checkpoint's own count.
    pub outcomes: Outcomes,
    /// Offsets that the checkpoint went back over.
    pub rewound: u64,
    /// Records that were missing in the log.
    pub missing: u64,
    /// Outcomes by hour and source. Records that an older program applied are not among them.
    pub hours: Vec<(HourKey, Outcomes)>,
}

/// A collector's count of submissions with one outcome in one hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The hour and the source. Of accepted submissions the record's; of others that of the answer, without a source.
    pub key: HourKey,
    /// `events` or `chunks`.
    pub subject: String,
    /// The outcome, by the names that the collector's metrics have.
    pub outcome: String,
    /// How many since the collector started.
    pub count: u64,
}

/// A run of a collector: one process from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorRun {
    /// The log that it appends to.
    pub log: LogId,
    /// Its identity.
    pub run_id: Uuid,
    /// Its name, for people.
    pub collector: String,
}

/// A row of [`PartitionCounts`] as both backends read it: partition, checkpoint, applied, duplicate, dead, rewound, missing;
/// the tail: from, to, applied; hour, source, applied, duplicate, dead.
pub(crate) type CountColumns<I> = (
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    i64,
    Option<i64>,
    Option<I>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

/// Puts rows, in the order of their partitions, together.
pub(crate) fn partition_counts<I>(
    rows: Vec<CountColumns<I>>,
    id: impl Fn(I) -> Result<Uuid, sqlx::Error>,
) -> Result<Vec<PartitionCounts>, sqlx::Error> {
    let mut partitions: Vec<PartitionCounts> = Vec::new();
    for row in rows {
        let (partition, checkpoint, applied, duplicate, dead, rewound, missing, ..) = row;
        let (.., from, to, of_tail, hour, source, a, d, x) = row;
        let partition = Partition::new(partition as u32);
        if partitions.last().is_none_or(|last| last.partition != partition) {
            partitions.push(PartitionCounts {
                partition,
                checkpoint: Checkpoint::at(dashi_domain::position::Offset::new(checkpoint as u64)),
                tail: tail((from, to, of_tail)),
                outcomes: Outcomes {
                    applied: applied as u64,
                    duplicate: duplicate as u64,
                    dead: dead as u64,
                },
                rewound: rewound as u64,
                missing: missing as u64,
                hours: Vec::new(),
            });
        }
        if let (Some(last), Some(hour_ms), Some(source)) = (partitions.last_mut(), hour, source) {
            let count = |count: Option<i64>| count.unwrap_or_default() as u64;
            let outcomes = Outcomes { applied: count(a), duplicate: count(d), dead: count(x) };
            last.hours.push((HourKey { hour_ms, source_id: id(source)? }, outcomes));
        }
    }
    Ok(partitions)
}
