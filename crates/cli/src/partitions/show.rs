//! `dashi partitions show`.

use std::collections::BTreeMap;

use clap::Args;
use dashi_config::Loaded;
use dashi_domain::layout::{Growth, Layout};
use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::{EventLog, Extent};
use dashi_store::{AppenderState, PartitionState, Store};
use serde::Serialize;

use crate::exit::Exit;
use crate::layouts::{in_force, known, of_stored};
use crate::open;
use crate::output::print;

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    log: String,
    #[serde(flatten)]
    spread: Spread,
}

/// Over how many partitions the log is spread, and how far a growth has come.
#[derive(Debug, Serialize)]
pub struct Spread {
    /// Partitions over which new records are spread.
    partitions: u32,
    /// Partitions that the log has; a topic may have more.
    in_log: u32,
    /// The layouts that are or were in force.
    layouts: Vec<LayoutReport>,
    /// A growth that collectors agree on, or whose barriers are being written.
    growth: Option<GrowthReport>,
    /// Partitions whose projection has passed the barrier of the newest layout, or has come to their end: all, once a growth is
    /// over.
    passed: u32,
    of_partitions: Vec<PartitionReport>,
    /// On Kafka: the processes that append.
    appenders: Vec<AppenderReport>,
}

#[derive(Debug, Serialize)]
struct LayoutReport {
    version: u32,
    partitions: u32,
}

#[derive(Debug, Serialize)]
struct GrowthReport {
    to: u32,
    state: &'static str,
    /// How long it has been in this state.
    age_ms: i64,
    /// Processes that have acknowledged it, of all that append.
    acknowledged: usize,
    processes: usize,
    /// Processes that have not acknowledged it.
    awaits: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PartitionReport {
    partition: u32,
    /// The layout whose barrier the projection has passed here; 0 for the first one.
    layout_version: u32,
    /// Partitions that have to pass it, too, before this one goes on.
    waits_for: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct AppenderReport {
    pub name: String,
    pub acknowledged: u32,
    pub silent_ms: i64,
}

impl From<&AppenderState> for AppenderReport {
    fn from(state: &AppenderState) -> Self {
        Self { name: state.name.clone(), acknowledged: state.acknowledged, silent_ms: state.silent_ms }
    }
}

/// Reads log and store, and prints; changes neither.
pub async fn run(loaded: &Loaded, args: &ShowArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let states = store.partitions().await?;
    let spread = Spread::read(&log, &store, &states, &lags(&log, &states).await?).await?;
    let report = Report { log: log.id().to_string(), spread };
    store.close().await;
    log.close().await;
    print(&if args.json { serde_json::to_string(&report)? + "\n" } else { text(&report) });
    Ok(Exit::Done)
}

impl Spread {
    /// As of now. `states` are those of all partitions that the store has, of every log; `lags` has the records of each partition
    /// of this log that are not applied.
    ///
    /// # Errors
    /// Log or store do not answer.
    pub async fn read(
        log: &EventLog,
        store: &Store,
        states: &[PartitionState],
        lags: &BTreeMap<Partition, u64>,
    ) -> anyhow::Result<Self> {
        let in_log = lags.len() as u32;
        let (mut growth, mut appenders) = (None, Vec::new());
        let layouts = match log {
            EventLog::Embedded(_) => known(log, store).await?,
            EventLog::Kafka(_) => {
                // Before the layouts: a process that came meanwhile is no reason to wait.
                appenders = store.appenders(log.id()).await?;
                let stored = store.layouts(log.id()).await?;
                growth = in_force(&stored).1.map(|pending| {
                    let awaits = match pending.state {
                        Growth::Draining => awaited(&appenders, pending.layout.version),
                        _ => Vec::new(),
                    };
                    GrowthReport {
                        to: pending.layout.partitions,
                        state: pending.state.name(),
                        age_ms: pending.age_ms,
                        acknowledged: appenders.len() - awaits.len(),
                        processes: appenders.len(),
                        awaits,
                    }
                });
                of_stored(&stored, in_log)
            }
        };
        let newest = layouts.last().copied().unwrap_or(Layout { version: 0, partitions: in_log });
        let states: Vec<_> = states.iter().filter(|state| state.log == *log.id()).collect();
        let version = |partition| {
            let state = states.iter().find(|state| state.partition == partition);
            state.and_then(|state| state.layout).map_or(0, |passed| passed.version)
        };
        // Of a log that never grew, each has. Retention may have removed a barrier, so the end of a partition counts, too.
        let has_passed =
            |(partition, lag): &(&Partition, &u64)| version(**partition) >= newest.version || **lag == 0;
        let passed = lags.iter().filter(has_passed).count().min(newest.partitions as usize) as u32;
        let of_partitions = states.iter().map(|state| {
            let waits_for =
                state.layout.map_or_else(Vec::new, |passed| passed.awaits(state.partition, version));
            PartitionReport {
                partition: state.partition.number(),
                layout_version: version(state.partition),
                waits_for: waits_for.into_iter().map(|partition| partition.number()).collect(),
            }
        });
        Ok(Self {
            partitions: newest.partitions,
            in_log,
            growth,
            passed,
            of_partitions: of_partitions.collect(),
            layouts: layouts
                .into_iter()
                .map(|Layout { version, partitions }| LayoutReport { version, partitions })
                .collect(),
            appenders: appenders.iter().map(AppenderReport::from).collect(),
        })
    }

    /// A growth that is under way, in words: nothing if there is none.
    pub fn growth_text(&self) -> String {
        let mut out = String::new();
        if let Some(GrowthReport { to, state, acknowledged, processes, awaits, .. }) = &self.growth {
            out.push_str(&format!("growing to {to}: {state}, acknowledged by {acknowledged} of {processes}"));
            if !awaits.is_empty() {
                out.push_str(&format!(", not by {}", awaits.join(", ")));
            }
            out.push('\n');
        } else if self.passed < self.partitions {
            out.push_str(&format!(
                "grown to {}: the projection has passed the barrier in {} of them\n",
                self.partitions, self.passed
            ));
        }
        for PartitionReport { partition, waits_for, .. } in &self.of_partitions {
            if !waits_for.is_empty() {
                let others: Vec<String> = waits_for.iter().map(u32::to_string).collect();
                out.push_str(&format!(
                    "partition {partition} waits until the projection has passed the barriers of {}\n",
                    others.join(", ")
                ));
            }
        }
        out
    }
}

/// Records of each partition that are not applied.
async fn lags(log: &EventLog, states: &[PartitionState]) -> anyhow::Result<BTreeMap<Partition, u64>> {
    let mut lags = BTreeMap::new();
    for partition in log.partitions().await? {
        let Extent { low, high } = log.extent(partition).await?;
        let state = states.iter().find(|state| state.log == *log.id() && state.partition == partition);
        let from = state.map_or(low, |state| state.checkpoint.offset().max(low));
        lags.insert(partition, Checkpoint::at(from).lag(high));
    }
    Ok(lags)
}

/// The names of the processes that a growth waits for.
pub(super) fn awaited(appenders: &[AppenderState], version: u32) -> Vec<String> {
    appenders.iter().filter(|state| state.is_awaited(version)).map(|state| state.name.clone()).collect()
}

fn text(Report { log, spread }: &Report) -> String {
    let mut out = format!("log: {log}\npartitions: {}", spread.partitions);
    if spread.in_log != spread.partitions {
        out.push_str(&format!(" of {} that the topic has", spread.in_log));
    }
    out.push('\n');
    if spread.layouts.len() > 1 {
        let numbers: Vec<String> =
            spread.layouts.iter().map(|layout| layout.partitions.to_string()).collect();
        out.push_str(&format!("grew: {}\n", numbers.join(", ")));
    }
    out.push_str(&spread.growth_text());
    for AppenderReport { name, acknowledged, silent_ms } in &spread.appenders {
        let seconds = silent_ms / 1_000;
        out.push_str(&format!("appends: {name} (layout {acknowledged}, heard of {seconds} s ago)\n"));
    }
    out
}
