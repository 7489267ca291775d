//! The pace of history: how many historical records may enter the log now, so that live events wait no longer for them than a
//! limit. Pure: time is an argument, of a clock that never goes back.
//!
//! A live event waits for the records of its partition that are before it and not applied. So each partition has a *window*:
//! the number of records that its writer applies within the limit. Historical records enter while fewer than that are not
//! applied, live ones included, and while the oldest of them is no older than the limit. The rate of a writer is that of its
//! fastest seconds of the last ten, because a writer with little to do is slow for that reason alone; so the window begins
//! small and grows with each batch that is applied, until the writer is busy. While the oldest record is too old, only the
//! newest rate counts.
//!
//! Several processes may append history to one log. Each sees the same room, so each takes a quarter of a window at most
//! between two observations.

use std::collections::VecDeque;

use crate::backlog::Backlog;
use crate::position::{Checkpoint, Offset, Partition};

/// How long a rate counts.
const RATE_MS: i64 = 10_000;

/// The shortest time of which a rate is made.
const SPAN_MS_MIN: i64 = 400;

/// How much larger a window is than what its writer applied within the limit, so that it grows while the writer keeps up.
const GAIN: f64 = 1.25;

/// The smallest window, in records.
const WINDOW_MIN: u64 = 10;

/// The largest window, in records: far more than a writer applies within any sensible limit.
const WINDOW_MAX: u64 = 10_000_000;

/// A window is filled in so many observations at least.
const PARTS: u64 = 4;

/// How long an observation counts.
const FRESH_MS: i64 = 3_000;

/// From which time on without a record applied a writer counts as standing still.
const STILL_MS: i64 = 10_000;

/// Why history waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// Log or store do not answer.
    #[error("the backlog is not known, as log or store do not answer")]
    Unknown,
    /// Records of a partition are not applied, as many or as old as the limit allows.
    #[error(
        "live events come first: {records} records of partition {partition} are not applied, the oldest since {age_ms} ms"
    )]
    Behind {
        /// The partition.
        partition: u32,
        /// Records that are not applied.
        records: u64,
        /// The age of the oldest, in milliseconds.
        age_ms: u64,
    },
    /// Nothing of a partition is applied.
    #[error(
        "{records} records of partition {partition} are not applied, and none has been applied for {still_s} s: is a projector \
         running (`dashi serve`, `dashi project`)?"
    )]
    Still {
        /// The partition.
        partition: u32,
        /// Records that are not applied.
        records: u64,
        /// How long none has been applied, in seconds.
        still_s: u64,
    },
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Pace {
    delay_ms_max: u64,
    observed_at_ms: Option<i64>,
    partitions: Vec<PartitionPace>,
}

#[derive(Debug, Clone, Default)]
struct PartitionPace {
    is_known: bool,
    backlog: Backlog,
    /// Times and checkpoints between which rates are taken: when the checkpoint was seen to move, and the last time at which
    /// nothing was left to apply.
    points: VecDeque<(i64, u64)>,
    /// Times and records per second.
    rates: VecDeque<(i64, f64)>,
    /// The last observation: checkpoint, high watermark, and when the checkpoint moved last, or nothing was left.
    checkpoint: u64,
    high: u64,
    moved_at_ms: i64,
    /// Records that were admitted and have no outcome yet.
    pending: u64,
    /// Records with an outcome of the time since the observation that counts; and of these, those from before the one that is
    /// being made.
    settled: u64,
    settled_before: u64,
    /// Records that were admitted since the observation that counts.
    admitted: u64,
}

impl Pace {
    /// Live events are to wait so many milliseconds for history, at most. Admits nothing before it has observed the log.
    pub const fn new(delay_ms_max: u64) -> Self {
        Self { delay_ms_max, observed_at_ms: None, partitions: Vec::new() }
    }

    /// An observation begins: records that have an outcome by now will be below its high watermarks.
    pub fn begin_observation(&mut self) {
        for partition in &mut self.partitions {
            partition.settled_before = partition.settled;
        }
    }

    /// Observes all partitions, in their order: checkpoint and high watermark, or `None` where they are not known.
    pub fn observe(&mut self, at_ms: i64, partitions: &[Option<(Checkpoint, Offset)>]) {
        self.partitions.resize_with(partitions.len(), PartitionPace::default);
        for (partition, observed) in self.partitions.iter_mut().zip(partitions) {
            partition.is_known = observed.is_some();
            if let Some((checkpoint, high)) = *observed {
                partition.observe(self.observed_at_ms, at_ms, checkpoint, high, self.delay_ms_max);
            }
        }
        self.observed_at_ms = Some(at_ms);
    }

    /// The number of partitions that were observed last.
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// How many of these records, given by their partitions in the order in which they are to be appended, may be appended now.
    /// They count as not applied from now on; see [`Pace::settled`].
    ///
    /// # Errors
    /// Not even the first one: why.
    pub fn admit(
        &mut self,
        now_ms: i64,
        records: impl IntoIterator<Item = Partition>,
    ) -> Result<usize, Wait> {
        if self.observed_at_ms.is_none_or(|at_ms| now_ms - at_ms > FRESH_MS) {
            return Err(Wait::Unknown);
        }
        let mut admitted = 0;
        for record in records {
            let delay_ms_max = self.delay_ms_max;
            let Some(partition) = self.partitions.get_mut(record.number() as usize) else {
                return if admitted > 0 { Ok(admitted) } else { Err(Wait::Unknown) };
            };
            if !partition.has_room(now_ms, delay_ms_max) {
                let wait = partition.wait(record, now_ms);
                return if admitted > 0 { Ok(admitted) } else { Err(wait) };
            }
            partition.pending += 1;
            partition.admitted += 1;
            admitted += 1;
        }
        Ok(admitted)
    }

    /// An admitted record of this partition has its outcome: it is in the log, or it will not be.
    pub fn settled(&mut self, partition: Partition) {
        if let Some(partition) = self.partitions.get_mut(partition.number() as usize) {
            partition.pending = partition.pending.saturating_sub(1);
            partition.settled += 1;
        }
    }
}

impl PartitionPace {
    fn observe(
        &mut self,
        before_ms: Option<i64>,
        at_ms: i64,
        checkpoint: Checkpoint,
        high: Offset,
        delay_ms_max: u64,
    ) {
        self.backlog.observe(at_ms, checkpoint, high);
        let (checkpoint, high) = (checkpoint.offset().number(), high.number());
        let was_idle = self.high <= self.checkpoint;
        if before_ms.is_none() || checkpoint < self.checkpoint || high < self.high {
            // Another log, or positions that were set back.
            self.points.clear();
            self.rates.clear();
            self.moved_at_ms = at_ms;
        } else if was_idle && high > self.checkpoint {
            // Its writer has had something to do since the last observation, at the latest.
            self.points.push_back((before_ms.unwrap_or(at_ms), self.checkpoint));
        }
        if checkpoint > self.checkpoint || checkpoint >= high || was_idle {
            self.moved_at_ms = at_ms;
        }
        if checkpoint > self.checkpoint && !self.points.is_empty() {
            let began = self.points.iter().rev().find(|(began_ms, _)| at_ms - began_ms >= SPAN_MS_MIN);
            if let Some((began_ms, from)) = began {
                let rate = (checkpoint - from) as f64 * 1_000.0 / (at_ms - began_ms) as f64;
                self.rates.push_back((at_ms, rate));
            }
        }
        if checkpoint > self.checkpoint {
            self.points.push_back((at_ms, checkpoint));
        }
        while self.points.len() > 1 && self.points.front().is_some_and(|(ms, _)| at_ms - ms > RATE_MS) {
            self.points.pop_front();
        }
        while self.rates.front().is_some_and(|(ms, _)| at_ms - ms > RATE_MS) {
            self.rates.pop_front();
        }
        (self.checkpoint, self.high) = (checkpoint, high);
        if self.backlog.age_ms(at_ms) > delay_ms_max {
            // It is slower than it was.
            while self.rates.len() > 1 {
                self.rates.pop_front();
            }
        }
        self.settled -= self.settled_before;
        self.settled_before = 0;
        self.admitted = 0;
    }

    /// Records that may be in the log and not applied, at most.
    fn window(&self, delay_ms_max: u64) -> u64 {
        let per_s = self.rates.iter().map(|(_, per_s)| *per_s).fold(0.0, f64::max);
        let window = (per_s * delay_ms_max as f64 / 1_000.0 * GAIN) as u64;
        window.clamp(WINDOW_MIN, WINDOW_MAX)
    }

    fn unapplied(&self) -> u64 {
        self.backlog.records() + self.pending + self.settled
    }

    fn has_room(&self, now_ms: i64, delay_ms_max: u64) -> bool {
        let window = self.window(delay_ms_max);
        self.is_known
            && self.unapplied() < window
            && self.admitted < (window / PARTS).max(WINDOW_MIN)
            && self.backlog.age_ms(now_ms) <= delay_ms_max
    }

    fn wait(&self, partition: Partition, now_ms: i64) -> Wait {
        let (partition, records) = (partition.number(), self.unapplied());
        let still_ms = now_ms - self.moved_at_ms;
        if !self.is_known {
            Wait::Unknown
        } else if self.backlog.records() > 0 && still_ms >= STILL_MS {
            Wait::Still { partition, records, still_s: u64::try_from(still_ms / 1_000).unwrap_or(0) }
        } else {
            Wait::Behind { partition, records, age_ms: self.backlog.age_ms(now_ms) }
        }
    }
}

#[cfg(test)]
mod tests;
