//! `dashi status`: checkpoint, lag and account of every partition.

use std::time::Duration;

use dashi_config::{Loaded, Settings};
use dashi_domain::missing::Missing;
use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::Tail;
use dashi_event_log::{EventLog, Extent, LogError, ReadLimit, TopicNote};
use dashi_projector::{Standing, StandingReader};
use dashi_store::{LetterCounts, MissingRange, PartitionState, SpoolNote, Store, StoreError};
use serde::Serialize;

use crate::args::StatusArgs;
use crate::clock::now_ms;
use crate::exit::Exit;
use crate::open;
use crate::output::print;
use crate::partitions::Spread;
use crate::replay::{release, standing};
use crate::spool::SpoolReport;

/// The answer.
#[derive(Debug, Serialize)]
pub struct Status {
    log: String,
    /// The log whose projection the store holds, if it is another one.
    other_log: Option<String>,
    topic: Vec<TopicStatus>,
    partitions: Vec<PartitionStatus>,
    /// Over how many partitions the log is spread, and a growth that is under way.
    layout: Spread,
    totals: Totals,
    /// The dead letters of this log.
    dead_letters: LettersStatus,
    /// Collectors' spools and lanes that hold accepted events.
    spools: Vec<SpoolReport>,
    /// The generations of the tables, and whether a rebuild is due.
    tables: Standing,
    /// Only for a database that Umami made.
    umami: Option<Umami>,
}

/// Version of a database that Umami made, and the parts of it that Dashi does not write.
#[derive(Debug, Serialize)]
struct Umami {
    release: String,
    recognised_by: &'static str,
    not_written: Vec<String>,
    nowhere_to_write: Vec<&'static str>,
    needing_a_value: Vec<String>,
    #[serde(skip)]
    lines: Vec<String>,
}

impl Umami {
    async fn of(store: &Store) -> Result<Option<Self>, StoreError> {
        let (Some(tables), Some(unwritten)) = (store.umami().await?, store.unwritten().await?) else {
            return Ok(None);
        };
        let lines = unwritten.line().into_iter().chain(unwritten.warning()).collect();
        Ok(Some(Self {
            release: tables.release.to_string(),
            recognised_by: tables.by,
            not_written: unwritten.tables,
            nowhere_to_write: unwritten.nowhere,
            needing_a_value: unwritten.unfillable,
            lines,
        }))
    }
}

/// Offsets at which records are missing.
#[derive(Debug, Serialize)]
struct MissingStatus {
    start_offset: u64,
    /// The first offset behind them (exclusive).
    end_offset: u64,
    records: u64,
    cause: &'static str,
    noted_at_ms: i64,
}

impl From<&MissingRange> for MissingStatus {
    fn from(
        MissingRange { missing: Missing { range, records, cause }, noted_at_ms, .. }: &MissingRange,
    ) -> Self {
        Self {
            start_offset: range.start.number(),
            end_offset: range.end.number(),
            records: *records,
            cause: cause.name(),
            noted_at_ms: *noted_at_ms,
        }
    }
}

/// A property of the topic that weakens or breaks a guarantee.
#[derive(Debug, Serialize)]
struct TopicStatus {
    concern: &'static str,
    /// Whether nothing is accepted and projected because of it; otherwise it is a warning.
    refused: bool,
    text: String,
    remedy: Option<String>,
}

impl From<TopicNote> for TopicStatus {
    fn from(TopicNote { concern, text, remedy }: TopicNote) -> Self {
        Self { concern: concern.name(), refused: concern.is_refusal(), text, remedy }
    }
}

/// Numbers of dead letters; each is counted as dead.
#[derive(Debug, Default, Serialize)]
struct LettersStatus {
    /// That somebody has to look at.
    open: u64,
    discarded: u64,
    /// Waiting behind others of their sessions.
    waiting: u64,
    /// Sessions whose later records wait.
    held_sessions: u64,
}

impl LettersStatus {
    fn of(log: &LogId, counts: &[LetterCounts]) -> Self {
        let mut sum = Self::default();
        for counts in counts.iter().filter(|counts| counts.log == *log) {
            sum.open += counts.open;
            sum.discarded += counts.discarded;
            sum.waiting += counts.waiting;
            sum.held_sessions += counts.held_sessions;
        }
        sum
    }

    /// A line, unless there are none.
    fn line(&self) -> String {
        let Self { open, discarded, waiting, held_sessions } = self;
        if open + discarded + waiting == 0 {
            return String::new();
        }
        let mut line = format!("dead letters: {open} to look at");
        if *waiting > 0 {
            line.push_str(&format!(", {waiting} waiting behind them in {held_sessions} sessions"));
        }
        if *discarded > 0 {
            line.push_str(&format!(", {discarded} discarded"));
        }
        line + " (dashi dead-letters)\n"
    }
}

/// The account of all records (I2): each is applied, a duplicate, dead, missing, or not read yet. And what collectors accepted
/// is in the log, or in a spool or a lane.
#[derive(Debug, Default, Serialize)]
struct Totals {
    /// Submissions that collectors accepted for this log, by their tallies, which they write every two seconds.
    accepted: u64,
    /// Records in the log, in spools and in lanes beyond those: accepted in the last seconds, or of commands, imports and other
    /// producers.
    untallied: u64,
    /// Accepted submissions beyond what was found in log, spools and lanes and what is missing: they are lost.
    not_found: u64,
    /// Accepted events that lie in collectors' spools and lanes and not in the log yet, when that was noted last.
    spooled: u64,
    /// Offsets from `low` to the high watermark, of all partitions.
    in_log: u64,
    applied: u64,
    duplicate: u64,
    dead: u64,
    /// Records that were not in the log when a checkpoint passed their offsets.
    missing: u64,
    /// Offsets that never held a record for a reader, as far as checkpoints have passed them.
    markers: u64,
    /// Offsets over which checkpoints went back because the log ended before them; their outcomes count twice.
    rewound: u64,
    /// Offsets below `low`, of all partitions.
    removed: u64,
    lag_records: u64,
    /// Offsets that checkpoints passed and that are in no count: an older program passed them.
    unaccounted: i64,
}

impl Totals {
    /// Compares all others, once they are summed up, with what collectors accepted.
    fn accept(&mut self, accepted: u64) {
        let found = self.in_log + self.removed + self.spooled;
        self.accepted = accepted;
        self.untallied = found.saturating_sub(accepted);
        // Records that the log lost before they were read have no offset where the log ended before them.
        self.not_found = accepted.saturating_sub(found).saturating_sub(self.missing);
    }
}

#[derive(Debug, Serialize)]
struct PartitionStatus {
    partition: u32,
    low_offset: u64,
    high_watermark: u64,
    checkpoint: u64,
    lag_records: u64,
    lag_seconds: f64,
    /// Records behind the backlog that are applied before it, if the partition has such a tail.
    tail: Option<TailStatus>,
    epoch: u64,
    owner: Option<String>,
    applied: u64,
    duplicate: u64,
    dead: u64,
    missing: u64,
    markers: u64,
    rewound: u64,
    unaccounted: i64,
    /// Where records are missing, at most a thousand ranges.
    missing_ranges: Vec<MissingStatus>,
    /// The loss that an operator has to accept before the projection goes on, in words.
    lost: Option<String>,
    updated_at_ms: Option<i64>,
    last_error: Option<String>,
    last_error_kind: Option<String>,
    last_error_at_ms: Option<i64>,
    last_error_over_at_ms: Option<i64>,
}

/// The tail of a partition.
#[derive(Debug, Serialize)]
struct TailStatus {
    /// Its first offset (inclusive).
    start_offset: u64,
    /// The offset behind it (exclusive).
    end_offset: u64,
    /// Records in it that are applied.
    applied: u64,
}

impl From<Tail> for TailStatus {
    fn from(Tail { from, to, applied }: Tail) -> Self {
        Self { start_offset: from.offset().number(), end_offset: to.offset().number(), applied }
    }
}

/// Reads log and store, and prints; changes neither.
pub async fn run(loaded: &Loaded, args: &StatusArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = match open::log(settings, open::Absent::Refuse).await {
        Ok(log) => log,
        Err(error) => return Err(without_log(error, &store).await),
    };
    let accepted = accepted(&store, log.id()).await?;
    let status = read(settings, &log, &store, None, accepted).await?;
    print(&if args.json { serde_json::to_string(&status)? + "\n" } else { table(&status) });
    store.close().await;
    Ok(Exit::Done)
}

/// Submissions that collectors accepted for a log, by their tallies. It reads a row for each hour, website and outcome.
///
/// # Errors
/// The store does not answer.
pub async fn accepted(store: &Store, log: &LogId) -> Result<u64, StoreError> {
    let tallies = store.tallies(log).await?;
    Ok(tallies.iter().filter(|tally| tally.outcome == "accepted").map(|tally| tally.count).sum())
}

/// Reads the state of all partitions from log and store; changes neither. The ages of lags of partitions that this owner has
/// are left out, as 0: its process knows them, and a reader of its own for each is not cheap. `accepted` was read before: an event
/// is in the log, or noted as waiting for it, before it is tallied.
///
/// # Errors
/// Log or store do not answer.
pub async fn read(
    settings: &Settings,
    log: &EventLog,
    store: &Store,
    owner: Option<&str>,
    accepted: u64,
) -> anyhow::Result<Status> {
    let states = store.partitions().await?;
    let missing = store.missing().await?;
    // Before the log: an event goes from a spool into the log.
    let spools = store.spools().await?;
    let mut partitions = Vec::new();
    for partition in log.partitions().await? {
        let state = states.iter().find(|state| state.log == *log.id() && state.partition == partition);
        let ranges = missing.iter().filter(|range| range.log == *log.id() && range.partition == partition);
        let ranges = ranges.map(MissingStatus::from).collect();
        let reads_age = owner.is_none() || state.map(|state| state.owner.as_str()) != owner;
        partitions.push(partition_status(log, partition, state, ranges, reads_age).await?);
    }
    let mut totals = Totals::default();
    for partition in &partitions {
        totals.in_log += partition.high_watermark - partition.low_offset;
        totals.applied += partition.applied;
        totals.duplicate += partition.duplicate;
        totals.dead += partition.dead;
        totals.missing += partition.missing;
        totals.markers += partition.markers;
        totals.rewound += partition.rewound;
        totals.removed += partition.low_offset;
        totals.unaccounted += partition.unaccounted;
        totals.lag_records += partition.lag_records;
    }
    let spools: Vec<_> = spools.into_iter().map(|note| SpoolReport::of(note, log.id().as_str())).collect();
    let of_log = spools.iter().filter(|spool| spool.other_log.is_none());
    totals.spooled = of_log.map(|spool| spool.records + spool.set_aside).sum();
    totals.accept(accepted);
    let lags = partitions.iter().map(|each| (Partition::new(each.partition), each.lag_records)).collect();
    let layout = Spread::read(log, store, &states, &lags).await?;
    let is_projected = states.is_empty() || states.iter().any(|state| state.log == *log.id());
    let other_log = states.first().filter(|_| !is_projected).map(|state| state.log.to_string());
    let topic = log.notes().into_iter().map(TopicStatus::from).collect();
    let umami = Umami::of(store).await?;
    let release = release(settings, store).await?;
    let rules = open::fold_rules(settings, release)?.text();
    let mut reader = StandingReader::new(store.clone(), log.id().clone());
    let tables = reader.read(Some(&rules)).await?;
    reader.close().await;
    let dead_letters = LettersStatus::of(log.id(), &store.letter_counts().await?);
    let log = log.id().to_string();
    Ok(Status { log, other_log, topic, partitions, layout, totals, dead_letters, spools, tables, umami })
}

/// The error of a log that cannot be opened, with what collectors' spools hold meanwhile.
async fn without_log(error: anyhow::Error, store: &Store) -> anyhow::Error {
    let spools = store.spools().await.unwrap_or_default();
    if spools.is_empty() {
        return error;
    }
    let text = |note: SpoolNote| {
        let log = note.log.to_string();
        SpoolReport::of(note, &log).text()
    };
    let lines: String = spools.into_iter().map(text).collect();
    error.context(format!("the log cannot be opened; collectors' spools hold accepted events:\n{lines}"))
}

async fn partition_status(
    log: &EventLog,
    partition: Partition,
    state: Option<&PartitionState>,
    missing_ranges: Vec<MissingStatus>,
    reads_age: bool,
) -> anyhow::Result<PartitionStatus> {
    let extent = log.extent(partition).await?;
    let checkpoint = state.map_or(Checkpoint::at(extent.low), |state| state.checkpoint);
    // Offsets below `low` will never be read, so they are no lag.
    let tail = state.and_then(|state| state.tail);
    let of_tail = tail.map_or(0, |tail| tail.applied);
    let lag_records = checkpoint.max(Checkpoint::at(extent.low)).lag(extent.high).saturating_sub(of_tail);
    let mut lag_seconds = 0.0;
    if lag_records > 0 && reads_age {
        let limit = ReadLimit { records_max: 1, bytes_max: 1, wait: Duration::from_secs(5) };
        let from = checkpoint.offset().max(extent.low);
        let mut reader = log.reader(partition, from).await?;
        let mut oldest = reader.next(limit).await;
        if let Err(LogError::Away { .. }) = oldest {
            // A new client reports the cluster as away after a single connection that failed.
            oldest = reader.next(limit).await;
        }
        let oldest = match oldest {
            // The reason is printed below the table.
            Err(LogError::Refused { .. }) => Vec::new(),
            oldest => oldest?,
        };
        lag_seconds =
            oldest.first().map_or(0.0, |record| (now_ms() - record.appended_at_ms).max(0) as f64 / 1_000.0);
    }
    let outcomes = state.map(|state| state.outcomes).unwrap_or_default();
    let [missing, markers, rewound] =
        state.map_or([0; 3], |state| [state.missing, state.markers, state.rewound]);
    let counted = (outcomes.total() + missing + markers) as i64 - rewound as i64;
    let passed = state.map_or(0, |_| (checkpoint.offset().number() + of_tail) as i64);
    Ok(PartitionStatus {
        partition: partition.number(),
        low_offset: extent.low.number(),
        high_watermark: extent.high.number(),
        checkpoint: checkpoint.offset().number(),
        lag_records,
        lag_seconds,
        tail: tail.map(TailStatus::from),
        epoch: state.map_or(0, |state| state.epoch.number()),
        owner: state.map(|state| state.owner.clone()),
        applied: outcomes.applied,
        duplicate: outcomes.duplicate,
        dead: outcomes.dead,
        missing,
        markers,
        rewound,
        unaccounted: passed - counted,
        missing_ranges,
        lost: lost(extent, checkpoint),
        updated_at_ms: state.map(|state| state.updated_at_ms),
        last_error: state.and_then(|state| state.last_error.clone()),
        last_error_kind: state.and_then(|state| state.last_error_kind.clone()),
        last_error_at_ms: state.and_then(|state| state.last_error_at_ms),
        last_error_over_at_ms: state.and_then(|state| state.last_error_over_at_ms),
    })
}

/// Why a projection with this checkpoint cannot read on, if so.
fn lost(Extent { low, high }: Extent, checkpoint: Checkpoint) -> Option<String> {
    let at = checkpoint.offset();
    if at < low {
        let (last, count) = (low.number() - 1, low.number() - at.number());
        return Some(format!(
            "offsets {at} to {last} ({count} records) were removed from the log before they were projected"
        ));
    }
    (at > high).then(|| format!("the log ends at offset {high}, and was projected up to offset {at}"))
}

/// The totals in one line; rare ones only if they are not zero.
fn account(totals: &Totals) -> String {
    let Totals { accepted, in_log, applied, duplicate, dead, missing, lag_records, .. } = totals;
    let mut line = format!(
        "\naccepted {accepted} · in log {in_log} · applied {applied} · duplicate {duplicate} · dead {dead} · missing {missing} · \
         not applied yet {lag_records}"
    );
    for (name, count) in [
        ("waiting for the log", totals.spooled),
        ("markers", totals.markers),
        ("removed from the log", totals.removed),
        ("read again", totals.rewound),
        ("accepted and not found", totals.not_found),
    ] {
        if count > 0 {
            line.push_str(&format!(" · {name} {count}"));
        }
    }
    if totals.unaccounted != 0 {
        line.push_str(&format!(" · unaccounted {}", totals.unaccounted));
    }
    line + "\n"
}

/// The newest ranges of a partition in which records are missing.
fn missing(p: &PartitionStatus) -> String {
    const SHOWN: usize = 10;
    let mut out = String::new();
    let hidden = p.missing_ranges.len().saturating_sub(SHOWN);
    for range in &p.missing_ranges[hidden..] {
        let MissingStatus { start_offset, end_offset, records, cause, noted_at_ms } = range;
        let why = match *cause {
            "retention" => "removed from the log before they were projected",
            "log_ended" => "projected, and no longer in the log",
            _ => "not in the log, between records that are",
        };
        out.push_str(&format!(
            "partition {}: offsets {start_offset} to {}: {records} records {why} (recorded {})\n",
            p.partition,
            end_offset - 1,
            dashi_domain::calendar::iso_string(*noted_at_ms)
        ));
    }
    if hidden > 0 {
        out.push_str(&format!("partition {}: {hidden} earlier ranges: see --json\n", p.partition));
    }
    out
}

fn table(status: &Status) -> String {
    let mut out = format!("log {}\n\n", status.log);
    out.push_str("partition   checkpoint  high watermark         lag    lag s  epoch      applied  duplicate   dead  owner\n");
    for p in &status.partitions {
        out.push_str(&format!(
            "{:>9} {:>12} {:>15} {:>11} {:>8.1} {:>6} {:>12} {:>10} {:>6}  {}\n",
            p.partition,
            p.checkpoint,
            p.high_watermark,
            p.lag_records,
            p.lag_seconds,
            p.epoch,
            p.applied,
            p.duplicate,
            p.dead,
            p.owner.as_deref().unwrap_or("never claimed"),
        ));
    }
    for p in &status.partitions {
        if let Some(TailStatus { start_offset, end_offset, applied }) = &p.tail {
            out.push_str(&format!(
                "partition {}: live events come first; {applied} of the records from offset {start_offset} to {} are applied before the \
                 backlog\n",
                p.partition,
                end_offset.saturating_sub(1).max(*start_offset)
            ));
        }
    }
    out.push_str(&account(&status.totals));
    out.push_str(&status.layout.growth_text());
    out.push_str(&status.dead_letters.line());
    for spool in &status.spools {
        out.push_str(&spool.text());
    }
    if let Some(other) = &status.other_log {
        out.push_str(&format!(
            "the store holds the projection of another log, {other}: if its topic or file was created again, start once with \
             --accept-new-log\n"
        ));
    }
    out.push_str(&standing(&status.tables));
    if let Some(umami) = &status.umami {
        out.push_str(&format!("tables of Umami {}, recognised by {}\n", umami.release, umami.recognised_by));
        for line in &umami.lines {
            out.push_str(&format!("{line}\n"));
        }
    }
    for p in &status.partitions {
        out.push_str(&missing(p));
        if let Some(lost) = &p.lost {
            out.push_str(&format!("partition {}: {lost}\n  to go on: dashi accept-lost\n", p.partition));
        }
    }
    for TopicStatus { refused, text, remedy, .. } in &status.topic {
        out.push_str(&format!("\n{}: {text}\n", if *refused { "refused" } else { "warning" }));
        if let Some(remedy) = remedy {
            out.push_str(&format!("  to correct it: {remedy}\n"));
        }
    }
    for p in &status.partitions {
        if let Some(error) = &p.last_error {
            out.push_str(&last_error(p, error));
        }
    }
    out
}

/// The last error with its time and kind, and whether it is over.
fn last_error(p: &PartitionStatus, error: &str) -> String {
    let time = |ms: Option<i64>| ms.map(dashi_domain::calendar::iso_string).unwrap_or_default();
    let kind = p.last_error_kind.as_deref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    let over = match (p.last_error_kind.as_deref(), p.last_error_over_at_ms) {
        // A dead letter is a single event, which does not last.
        (Some("dead_letter"), _) => String::new(),
        (_, Some(_)) => format!(", over since {}", time(p.last_error_over_at_ms)),
        (_, None) => ", not over".to_owned(),
    };
    format!("partition {}: last error{kind} at {}{over}: {error}\n", p.partition, time(p.last_error_at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_collectors_accepted_is_in_log_spools_or_lanes_or_it_is_not_found() {
        for (accepted, in_log, removed, spooled, missing, expected) in [
            (0, 0, 0, 0, 0, (0, 0)),
            // The last seconds of a collector, or an import.
            (7, 10, 0, 2, 0, (5, 0)),
            (12, 10, 0, 2, 0, (0, 0)),
            // Retention removed some.
            (12, 3, 7, 2, 0, (0, 0)),
            // The log ended before some that it had acknowledged, which are noted.
            (15, 10, 0, 2, 3, (0, 0)),
            (17, 10, 0, 2, 3, (0, 2)),
        ] {
            let mut totals = Totals { in_log, removed, spooled, missing, ..Totals::default() };
            totals.accept(accepted);
            assert_eq!((totals.untallied, totals.not_found), expected, "{totals:?}");
        }
    }
}
