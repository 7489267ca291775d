//! Surveying a backlog: which sessions have records in it. It reads the log ahead of the writer, also while the store is away,
//! and decides when a tail is to begin.

use std::time::Duration;

use dashi_domain::parking::session_of;
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::record::Record;
use dashi_domain::tail::SessionFilter;
use dashi_event_log::ReadLimit;

use crate::partition::{Mode, PartitionTask};
use crate::progress::now_ms;
use crate::source::{LastApplied, Source};
use crate::state::PartitionState;

/// How often a partition looks whether it has a backlog.
const LOOK: Duration = Duration::from_secs(1);

/// How much a survey reads at once. It comes beside the batches that are folded, so it is little.
const READ: ReadLimit = ReadLimit { records_max: 1_000, bytes_max: 256 << 10, wait: LOOK };

/// Memory of the sessions of all partitions of a process.
const SESSIONS_BYTES: usize = 8 << 20;

/// A backlog whose sessions are known.
pub(crate) struct Surveyed {
    /// The offset behind it (exclusive).
    pub to: Checkpoint,
    pub sessions: SessionFilter,
}

/// How a survey ended.
enum Ended {
    Surveyed(Surveyed),
    /// A record of no session lies at this offset.
    Blocked(Offset),
    /// The backlog is gone, the log failed, or the task is to stop.
    Useless,
}

impl PartitionTask {
    /// Waits until the partition has a backlog before which new sessions' records are to be applied, and its sessions are
    /// known; `None` if the task is to stop before. A log that fails is the writer's to report: the survey begins again.
    pub async fn survey(&self) -> Option<Surveyed> {
        let settings = &self.shared.settings;
        let is_off = matches!(self.mode, Mode::Replay { .. }) || settings.parking.is_some();
        let Some(age) = settings.live_first_after.filter(|_| !is_off) else {
            self.stop.cancelled().await;
            return None;
        };
        // The writer has a record to pass before another survey is of use.
        let mut blocked_at = None;
        loop {
            self.rest(LOOK).await;
            if self.stop.is_cancelled() {
                return None;
            }
            let Some(from) = self.backlog(age) else { continue };
            if blocked_at.is_some_and(|offset| from.offset() <= offset) {
                continue;
            }
            match self.survey_from(from, age).await {
                Ended::Surveyed(surveyed) => return Some(surveyed),
                Ended::Blocked(offset) => blocked_at = Some(offset),
                Ended::Useless => {}
            }
        }
    }

    /// The checkpoint, if the oldest record behind it is older than `age`.
    fn backlog(&self, age: Duration) -> Option<Checkpoint> {
        let measured = self.shared.progress.measured_of(self.partition)?;
        let age_ms = now_ms() - measured.oldest_appended_at_ms?;
        (age_ms >= age.as_millis() as i64).then_some(measured.checkpoint?)
    }

    /// Reads the log from here on, and follows it, until the writer is at work, and has more before it than it takes in a
    /// moment.
    async fn survey_from(&self, begin: Checkpoint, age: Duration) -> Ended {
        let bytes = SESSIONS_BYTES / self.shared.progress.partitions().max(1);
        let (mut source, mut at, mut sessions) = (Source::default(), begin, SessionFilter::new(bytes));
        let writer_takes = 2 * self.shared.settings.read_limit.records_max as u64;
        loop {
            let last = LastApplied { behind: at, fingerprint: None };
            let Ok(batch) = source.read(self, READ, at, last).await else { return Ended::Useless };
            if self.stop.is_cancelled() {
                return Ended::Useless;
            }
            let is_at_the_end = batch.records.len() < READ.records_max && batch.bytes() < READ.bytes_max;
            at = batch.to;
            match self.noted(sessions, batch.records).await {
                // A command is about records before it, and relies on their order.
                Some((_, Some(offset))) => return Ended::Blocked(offset),
                Some((noted, None)) => sessions = noted,
                None => return Ended::Useless,
            }
            let Some(checkpoint) = self.backlog(age) else { return Ended::Useless };
            if is_at_the_end && checkpoint > begin && self.is_running() {
                if checkpoint.lag(at.offset()) <= writer_takes {
                    return Ended::Useless;
                }
                return Ended::Surveyed(Surveyed { to: at, sessions: sessions.shrunk() });
            }
        }
    }

    fn is_running(&self) -> bool {
        let measured = self.shared.progress.measured_of(self.partition);
        measured.is_some_and(|measured| measured.state == PartitionState::Running)
    }

    /// The sessions with those of these records, and the offset of the first record of no session. It is work for each record,
    /// so it is done where the fold is.
    async fn noted(
        &self,
        mut sessions: SessionFilter,
        records: Vec<Record>,
    ) -> Option<(SessionFilter, Option<Offset>)> {
        let note = move || {
            for record in &records {
                match session_of(&record.value) {
                    Some(session) => sessions.insert(session),
                    None => return (sessions, Some(record.offset)),
                }
            }
            (sessions, None)
        };
        self.shared.fold_threads.run(note).await
    }

    /// Waits, unless it is to stop; no move of the partition's writer.
    async fn rest(&self, length: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}
