//! `dashi partitions grow`.
//!
//! Embedded: one transaction. On Kafka: note the growth, have the collectors hold back sessions that move, make the topic's
//! partitions, commit, append the barriers, open. The steps are in the store, so a command that was killed is finished by the
//! next one, or by a collector. The topic changes only when all collectors know of it: they take partitions that nobody
//! commanded for a mistake.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use dashi_config::{Loaded, PARTITIONS_MAX};
use dashi_domain::layout::{Growth, Layout, share_moved};
use dashi_event_log::{EventLog, KafkaLog};
use dashi_store::{AppenderState, Store, StoredLayout};
use serde::Serialize;

use super::show::{AppenderReport, awaited};
use crate::exit::{Exit, Misuse};
use crate::layouts::{finish, in_force, known, stored};
use crate::open;
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

#[derive(Debug, Args)]
#[command(
    after_help = "Best is a multiple of the number now: then the fewest sessions move. On Kafka, events of sessions that move wait \
    for about a second; without a spool a collector answers 503 when it takes longer. Run it again after it was killed.\n\n\
    dashi partitions grow --to 16\n\
    dashi partitions grow --to 16 --json"
)]
pub struct GrowArgs {
    /// The new number of partitions, at most 4096
    #[arg(long, value_name = "N")]
    pub to: u32,

    /// On Kafka: do not wait for the process of this name, which has ended for good (`dashi partitions` has the names)
    #[arg(long, value_name = "NAME")]
    pub without: Vec<String>,

    /// On Kafka: longest time in which collectors hold events back, 1 to 600
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub wait: u32,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    log: String,
    from: u32,
    /// Partitions over which new records are spread now.
    to: u32,
    version: u32,
    /// Whether this command, or an earlier one whose growth it finished, let it grow to the number.
    grown: bool,
    /// The share of sessions that went to another partition.
    moved: f64,
    /// Partitions whose projection has passed the barrier, as far as was waited for.
    passed: u32,
    /// The processes that a growth that was given up waited for.
    not_acknowledged: Vec<AppenderReport>,
    elapsed_s: f64,
}

/// How often it is looked whether a step is done.
const LOOK: Duration = Duration::from_millis(100);

/// How long the projection is waited for, once the log has grown: longer only if it moves.
const PROJECTION: Duration = Duration::from_secs(5);

/// Lets the log grow. Exit code 4 if it was given up: not all processes acknowledged it.
pub async fn run(loaded: &Loaded, args: &GrowArgs, json: bool) -> anyhow::Result<Exit> {
    if args.to == 0 || args.to > PARTITIONS_MAX {
        return Err(Misuse(format!("--to {}: a log has 1 to {PARTITIONS_MAX} partitions", args.to)).into());
    }
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    store.migrate().await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let mut growing = Growing {
        store: &store,
        log: &log,
        args,
        display: ProgressDisplay::new(json),
        began: Instant::now(),
    };
    let report = growing.run().await;
    growing.display.finish();
    store.close().await;
    log.close().await;
    let report = report?;
    print(&if json { serde_json::to_string(&report)? + "\n" } else { text(&report) });
    Ok(if report.not_acknowledged.is_empty() { Exit::Done } else { Exit::Overdue })
}

struct Growing<'a> {
    store: &'a Store,
    log: &'a EventLog,
    args: &'a GrowArgs,
    display: ProgressDisplay,
    began: Instant,
}

impl Growing<'_> {
    async fn run(&mut self) -> anyhow::Result<Report> {
        let before = known(self.log, self.store).await?;
        let from = *before.last().context("the log has no layout")?;
        let to = self.args.to;
        if to < from.partitions {
            return Err(Misuse(format!(
                "the log has {} partitions: their number never shrinks",
                from.partitions
            ))
            .into());
        }
        let left = match self.log {
            EventLog::Embedded(log) => {
                log.grow(to).await?;
                Vec::new()
            }
            EventLog::Kafka(log) => self.on_kafka(log).await?,
        };
        let layouts = known(self.log, self.store).await?;
        let now = *layouts.last().context("the log has no layout")?;
        let is_grown = left.is_empty() && now > from;
        let passed = if is_grown { self.passes(now).await? } else { 0 };
        Ok(Report {
            log: self.log.id().to_string(),
            from: from.partitions,
            to: now.partitions,
            version: now.version,
            grown: is_grown,
            moved: if is_grown { share_moved(from.partitions, now.partitions) } else { 0.0 },
            passed,
            not_acknowledged: left.iter().map(AppenderReport::from).collect(),
            elapsed_s: self.began.elapsed().as_secs_f64(),
        })
    }

    /// Goes from step to step until the number is in force; each step may have been done by another process. Returns the
    /// processes that did not acknowledge it, if it was given up.
    async fn on_kafka(&self, log: &KafkaLog) -> anyhow::Result<Vec<AppenderState>> {
        let (id, to) = (log.id(), self.args.to);
        for state in self.store.appenders(id).await? {
            if self.args.without.contains(&state.name) {
                self.store.forget_appender(state.run_id).await?;
            }
        }
        loop {
            let stored = stored(log, self.store).await?;
            let (Some(current), pending) = in_force(&stored) else {
                anyhow::bail!("the store has no layout of the log {id} in force");
            };
            match pending {
                Some(growth) if growth.state == Growth::Committed => {
                    self.show("writing barriers", 0, u64::from(growth.layout.partitions), None);
                    finish(log, self.store, current, &growth).await?;
                }
                Some(growth) if growth.layout.partitions == to || growth.is_expired => {
                    if let Some(left) = self.commit(log, &growth).await? {
                        return Ok(left);
                    }
                }
                Some(growth) => anyhow::bail!(
                    "a growth to {} partitions is under way: wait until it is over, some seconds at most",
                    growth.layout.partitions
                ),
                None if current.partitions >= to => return Ok(Vec::new()),
                None => {
                    let version = stored.iter().map(|stored| stored.layout.version).max().unwrap_or(0) + 1;
                    let layout = Layout { version, partitions: to };
                    // If another command was faster, its growth is found.
                    self.store.begin_growth(id, layout, self.args.wait).await?;
                }
            }
        }
    }

    /// Makes the topic's partitions and commits a growth, once all processes have acknowledged it. Gives it up when its time is
    /// over, and returns those that have not; `None` if it was decided otherwise.
    async fn commit(
        &self,
        log: &KafkaLog,
        growth: &StoredLayout,
    ) -> anyhow::Result<Option<Vec<AppenderState>>> {
        let (id, Layout { version, partitions }) = (log.id(), growth.layout);
        loop {
            let appenders = self.store.appenders(id).await?;
            let names = awaited(&appenders, version);
            if names.is_empty() {
                self.show("making partitions", 0, u64::from(partitions), None);
                if let Err(error) = log.make_partitions(partitions).await {
                    // Nobody has to wait for it any more.
                    self.store.move_growth(id, version, Growth::Draining, Growth::Aborted).await?;
                    return Err(error).context("the growth was given up");
                }
                // Not if another process has come meanwhile.
                if self.store.commit_growth(id, version).await? {
                    return Ok(None);
                }
            }
            let note = format!("waiting for {}", names.join(", "));
            let done = appenders.len() - names.len();
            self.show("collectors acknowledge", done as u64, appenders.len() as u64, Some(&note));
            let stored = self.store.layouts(id).await?;
            let now = stored.iter().find(|stored| stored.layout.version == version);
            match now {
                Some(now) if now.state == Growth::Draining && now.is_expired && !names.is_empty() => {
                    if self.store.move_growth(id, version, Growth::Draining, Growth::Aborted).await? {
                        return Ok(Some(left(appenders, version)));
                    }
                }
                Some(now) if now.state == Growth::Draining => tokio::time::sleep(LOOK).await,
                // A collector gave it up, though all had acknowledged it: its partitions took too long. They are there now.
                Some(now) if now.state == Growth::Aborted && names.is_empty() => return Ok(None),
                // A collector gave it up.
                Some(now) if now.state == Growth::Aborted => return Ok(Some(left(appenders, version))),
                _ => return Ok(None),
            }
        }
    }

    /// Waits while partitions pass the barrier, and some seconds for the first; returns how many have.
    async fn passes(&self, layout: Layout) -> anyhow::Result<u32> {
        let (mut last, mut moved_at) = (0, Instant::now());
        loop {
            let states = self.store.partitions().await?;
            let of_log = states.iter().filter(|state| state.log == *self.log.id());
            let versions = of_log.filter_map(|state| state.layout.map(|passed| passed.version));
            let passed = versions.filter(|version| *version >= layout.version).count() as u32;
            self.show("projection passes", u64::from(passed), u64::from(layout.partitions), None);
            if passed > last {
                (last, moved_at) = (passed, Instant::now());
            }
            if passed >= layout.partitions || moved_at.elapsed() > PROJECTION {
                return Ok(passed);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn show(&self, part: &str, done: u64, total: u64, note: Option<&str>) {
        self.display.show(State { part, done, total, unit: Unit::Of("partitions"), note });
    }
}

/// Those that a growth waited for.
fn left(appenders: Vec<AppenderState>, version: u32) -> Vec<AppenderState> {
    appenders.into_iter().filter(|state| state.is_awaited(version)).collect()
}

fn text(report: &Report) -> String {
    let Report { from, to, passed, elapsed_s, .. } = report;
    if !report.not_acknowledged.is_empty() {
        let mut out =
            format!("The growth was given up after {elapsed_s:.1} s: the log has {to} partitions still.\n");
        for AppenderReport { name, silent_ms, .. } in &report.not_acknowledged {
            out.push_str(&format!(
                "not acknowledged by {name:?}, heard of {} s ago; if it has ended for good: --without {name:?}\n",
                silent_ms / 1_000
            ));
        }
        return out;
    }
    if !report.grown {
        return format!("The log has {to} partitions already.\n");
    }
    let moved = report.moved * 100.0;
    let mut out = format!(
        "The log has grown from {from} to {to} partitions ({elapsed_s:.1} s); {moved:.0} % of all sessions go to another one.\n"
    );
    if passed < to {
        out.push_str(&format!(
            "The projection has passed the barrier in {passed} of {to} partitions; events of sessions that moved wait for the \
             others (`dashi partitions`).\n"
        ));
    }
    out
}
