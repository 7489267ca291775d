//! `dashi status`: where every partition stands.

use std::time::Duration;

use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::{EventLog, ReadLimit};
use dashi_store::PartitionState;
use serde::Serialize;

use crate::args::StatusArgs;
use crate::config::Loaded;
use crate::serve::now_ms;
use crate::{Exit, open, print};

#[derive(Debug, Serialize)]
struct Status {
    log: String,
    partitions: Vec<PartitionStatus>,
    totals: Totals,
}

/// I2, asked: every record in the log is applied, a duplicate, dead, or not read yet.
#[derive(Debug, Default, Serialize)]
struct Totals {
    in_log: u64,
    applied: u64,
    duplicate: u64,
    dead: u64,
    lag_records: u64,
}

#[derive(Debug, Serialize)]
struct PartitionStatus {
    partition: u32,
    low_offset: u64,
    high_watermark: u64,
    checkpoint: u64,
    lag_records: u64,
    lag_seconds: f64,
    epoch: u64,
    owner: Option<String>,
    applied: u64,
    duplicate: u64,
    dead: u64,
    updated_at_ms: Option<i64>,
    last_error: Option<String>,
    last_error_kind: Option<String>,
    last_error_at_ms: Option<i64>,
    last_error_over_at_ms: Option<i64>,
}

/// Asks log and store; changes neither.
pub async fn run(loaded: &Loaded, args: &StatusArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let states = store.partitions().await?;
    let mut partitions = Vec::new();
    for partition in log.partitions().await? {
        let state = states.iter().find(|state| state.log == *log.id() && state.partition == partition);
        partitions.push(partition_status(&log, partition, state).await?);
    }
    let mut totals = Totals::default();
    for partition in &partitions {
        totals.in_log += partition.high_watermark - partition.low_offset;
        totals.applied += partition.applied;
        totals.duplicate += partition.duplicate;
        totals.dead += partition.dead;
        totals.lag_records += partition.lag_records;
    }
    let status = Status { log: log.id().to_string(), partitions, totals };
    print(&if args.json { serde_json::to_string(&status)? + "\n" } else { table(&status) });
    store.close().await;
    Ok(Exit::Done)
}

async fn partition_status(
    log: &EventLog,
    partition: Partition,
    state: Option<&PartitionState>,
) -> anyhow::Result<PartitionStatus> {
    let extent = log.extent(partition).await?;
    let checkpoint = state.map_or(Checkpoint::at(extent.low), |state| state.checkpoint);
    let lag_records = checkpoint.lag(extent.high);
    let mut lag_seconds = 0.0;
    if lag_records > 0 {
        let limit = ReadLimit { records_max: 1, bytes_max: 1, wait: Duration::from_secs(5) };
        let from = checkpoint.offset().max(extent.low);
        let oldest = log.reader(partition, from).await?.next(limit).await?;
        lag_seconds =
            oldest.first().map_or(0.0, |record| (now_ms() - record.appended_at_ms).max(0) as f64 / 1_000.0);
    }
    let outcomes = state.map(|state| state.outcomes).unwrap_or_default();
    Ok(PartitionStatus {
        partition: partition.number(),
        low_offset: extent.low.number(),
        high_watermark: extent.high.number(),
        checkpoint: checkpoint.offset().number(),
        lag_records,
        lag_seconds,
        epoch: state.map_or(0, |state| state.epoch.number()),
        owner: state.map(|state| state.owner.clone()),
        applied: outcomes.applied,
        duplicate: outcomes.duplicate,
        dead: outcomes.dead,
        updated_at_ms: state.map(|state| state.updated_at_ms),
        last_error: state.and_then(|state| state.last_error.clone()),
        last_error_kind: state.and_then(|state| state.last_error_kind.clone()),
        last_error_at_ms: state.and_then(|state| state.last_error_at_ms),
        last_error_over_at_ms: state.and_then(|state| state.last_error_over_at_ms),
    })
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
    let Totals { in_log, applied, duplicate, dead, lag_records } = status.totals;
    out.push_str(&format!(
        "\nin log {in_log} · applied {applied} · duplicate {duplicate} · dead {dead} · not applied yet {lag_records}\n"
    ));
    for p in &status.partitions {
        if let Some(error) = &p.last_error {
            out.push_str(&last_error(p, error));
        }
    }
    out
}

/// When the last error was, of what kind, and whether it is over.
fn last_error(p: &PartitionStatus, error: &str) -> String {
    let time = |ms: Option<i64>| ms.map(dashi_domain::calendar::iso_string).unwrap_or_default();
    let kind = p.last_error_kind.as_deref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    let over = match (p.last_error_kind.as_deref(), p.last_error_over_at_ms) {
        // One that is set aside is an event; there is nothing that could be over.
        (Some("dead_letter"), _) => String::new(),
        (_, Some(_)) => format!(", over since {}", time(p.last_error_over_at_ms)),
        (_, None) => ", not over".to_owned(),
    };
    format!("partition {}: last error{kind} at {}{over}: {error}\n", p.partition, time(p.last_error_at_ms))
}
