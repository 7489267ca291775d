//! `dashi partitions show`.

use clap::Args;
use dashi_config::Loaded;
use dashi_domain::layout::{Growth, Layout};
use dashi_event_log::EventLog;
use dashi_store::{AppenderState, Store};
use serde::Serialize;

use crate::exit::Exit;
use crate::layouts::{in_force, known};
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
    /// Partitions over which new records are spread.
    partitions: u32,
    /// Partitions that the log has; a topic may have more.
    in_log: u32,
    /// The layouts that are or were in force.
    layouts: Vec<LayoutReport>,
    /// A growth that is under way.
    growth: Option<GrowthReport>,
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
    let report = report(&log, &store).await?;
    store.close().await;
    log.close().await;
    print(&if args.json { serde_json::to_string(&report)? + "\n" } else { text(&report) });
    Ok(Exit::Done)
}

async fn report(log: &EventLog, store: &Store) -> anyhow::Result<Report> {
    let layouts = known(log, store).await?;
    let (mut growth, mut appenders) = (None, Vec::new());
    if let EventLog::Kafka(_) = log {
        appenders = store.appenders(log.id()).await?;
        let (_, pending) = in_force(&store.layouts(log.id()).await?);
        growth = pending.map(|pending| GrowthReport {
            to: pending.layout.partitions,
            state: pending.state.name(),
            awaits: match pending.state {
                Growth::Draining => awaited(&appenders, pending.layout.version),
                _ => Vec::new(),
            },
        });
    }
    let states: Vec<_> =
        store.partitions().await?.into_iter().filter(|state| state.log == *log.id()).collect();
    let version = |partition| {
        let state = states.iter().find(|state| state.partition == partition);
        state.and_then(|state| state.layout).map_or(0, |passed| passed.version)
    };
    let of_partitions = states.iter().map(|state| {
        let waits_for = state.layout.map_or_else(Vec::new, |passed| passed.awaits(state.partition, version));
        PartitionReport {
            partition: state.partition.number(),
            layout_version: version(state.partition),
            waits_for: waits_for.into_iter().map(|partition| partition.number()).collect(),
        }
    });
    Ok(Report {
        log: log.id().to_string(),
        partitions: layouts.last().map_or(0, |layout| layout.partitions),
        in_log: log.partitions().await?.len() as u32,
        layouts: layouts
            .into_iter()
            .map(|Layout { version, partitions }| LayoutReport { version, partitions })
            .collect(),
        growth,
        of_partitions: of_partitions.collect(),
        appenders: appenders.iter().map(AppenderReport::from).collect(),
    })
}

/// The names of the processes that a growth waits for.
pub(super) fn awaited(appenders: &[AppenderState], version: u32) -> Vec<String> {
    appenders.iter().filter(|state| state.is_awaited(version)).map(|state| state.name.clone()).collect()
}

fn text(report: &Report) -> String {
    let mut out = format!("log: {}\npartitions: {}", report.log, report.partitions);
    if report.in_log != report.partitions {
        out.push_str(&format!(" of {} that the topic has", report.in_log));
    }
    out.push('\n');
    if report.layouts.len() > 1 {
        let numbers: Vec<String> =
            report.layouts.iter().map(|layout| layout.partitions.to_string()).collect();
        out.push_str(&format!("grew: {}\n", numbers.join(", ")));
    }
    if let Some(GrowthReport { to, state, awaits }) = &report.growth {
        out.push_str(&format!("growing to {to}: {state}"));
        if !awaits.is_empty() {
            out.push_str(&format!(", not acknowledged by {}", awaits.join(", ")));
        }
        out.push('\n');
    }
    for PartitionReport { partition, waits_for, .. } in &report.of_partitions {
        if !waits_for.is_empty() {
            let others: Vec<String> = waits_for.iter().map(u32::to_string).collect();
            out.push_str(&format!(
                "partition {partition} waits until the projection has passed the barriers of {}\n",
                others.join(", ")
            ));
        }
    }
    for AppenderReport { name, acknowledged, silent_ms } in &report.appenders {
        let seconds = silent_ms / 1_000;
        out.push_str(&format!("appends: {name} (layout {acknowledged}, heard of {seconds} s ago)\n"));
    }
    out
}
