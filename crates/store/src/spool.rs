//! Notes of what collectors' spools hold, so that commands on other machines can show it.

use dashi_domain::glance::HourKey;
use dashi_domain::position::LogId;
use uuid::Uuid;

/// Hours and sources of one note, at most; what comes beyond is left out of them, and stays in the number of records.
const HOURS_MAX: usize = 20_000;

/// What a collector's spool holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolNote {
    /// The identity of its file.
    pub spool_id: String,
    /// The log that its records are for.
    pub log: LogId,
    /// The collector's name, for people.
    pub collector: String,
    /// Its directory on the collector's machine.
    pub directory: String,
    /// What it does.
    pub state: String,
    /// Records that it holds, without those that are set aside.
    pub records: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Records that the log refused for good.
    pub set_aside: u64,
    /// When the oldest was spooled, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Why it takes no more, if so.
    pub full: Option<String>,
    /// Why its records could not be forwarded when that was last tried.
    pub trouble: Option<String>,
    /// The records by hour and source, those that are set aside among them.
    pub hours: Vec<(HourKey, u64)>,
    /// When this was noted, milliseconds since 1970, by the store's clock. Ignored where a note is written.
    pub noted_at_ms: i64,
}

impl SpoolNote {
    /// Whether there is nothing to note: the spool holds nothing and takes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0 && self.set_aside == 0 && self.state == "idle"
    }

    pub(crate) fn hours_text(&self) -> String {
        let line = |(key, records): &(HourKey, u64)| format!("{} {} {records}\n", key.hour_ms, key.source_id);
        self.hours.iter().take(HOURS_MAX).map(line).collect()
    }
}

/// A row as both backends read it: spool, log, collector, directory, state; records, bytes, set aside, oldest; full, trouble,
/// hours; when it was noted.
pub(crate) type SpoolColumns = (
    String,
    String,
    String,
    String,
    String,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<String>,
    Option<String>,
    String,
    i64,
);

impl From<SpoolColumns> for SpoolNote {
    fn from(
        (
            spool_id,
            log,
            collector,
            directory,
            state,
            records,
            bytes,
            set_aside,
            oldest_ms,
            full,
            trouble,
            hours,
            noted,
        ): SpoolColumns,
    ) -> Self {
        Self {
            spool_id,
            log: LogId::new(log),
            collector,
            directory,
            state,
            records: records as u64,
            bytes: bytes as u64,
            set_aside: set_aside as u64,
            oldest_ms,
            full,
            trouble,
            hours: hours.lines().filter_map(hour).collect(),
            noted_at_ms: noted,
        }
    }
}

fn hour(line: &str) -> Option<(HourKey, u64)> {
    let mut words = line.split(' ');
    let hour_ms = words.next()?.parse().ok()?;
    let source_id = words.next()?.parse::<Uuid>().ok()?;
    Some((HourKey { hour_ms, source_id }, words.next()?.parse().ok()?))
}
