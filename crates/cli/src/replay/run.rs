//! `dashi replay run`: builds a new generation of the tables.

use std::time::Instant;

use dashi_config::Loaded;
use dashi_projector::{RebuildError, RebuildStep, Rebuilt};

use super::{Opened, state};
use crate::args::{FoldArgs, RunArgs};
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit, duration};

/// Builds a generation, or goes on with the one that was begun. Exit code 4 after an interrupt.
pub async fn run(loaded: &Loaded, args: &RunArgs) -> anyhow::Result<Exit> {
    let FoldArgs { archive, speed, json } = &args.fold;
    let opened = Opened::open(loaded, archive, Some(*speed)).await?;
    let (progress, began) = (ProgressDisplay::new(*json), Instant::now());
    let rebuilt = opened.rebuild.run(|step| show(&progress, &step)).await;
    progress.finish();
    opened.close().await;
    let elapsed_s = began.elapsed().as_secs_f64();
    let rebuilt = match rebuilt {
        Ok(rebuilt) => rebuilt,
        Err(error @ RebuildError::OtherRules { .. }) => return Err(Misuse(error.to_string()).into()),
        Err(RebuildError::Stopped) => return Ok(Exit::Overdue),
        Err(error) => return Err(error.into()),
    };
    print(&match json {
        true => {
            let mut value = serde_json::to_value(&rebuilt)?;
            value["elapsed_s"] = elapsed_s.into();
            format!("{value}\n")
        }
        false => text(&rebuilt),
    });
    Ok(if rebuilt.complete { Exit::Done } else { Exit::Overdue })
}

fn show(progress: &ProgressDisplay, step: &RebuildStep) {
    match step {
        RebuildStep::Replaying(replayed) => progress.show(state("replaying", replayed)),
        RebuildStep::CatchingUp(replayed) => progress.show(state("catching up", replayed)),
        // Nothing is missing in a generation that is ready.
        RebuildStep::Indexing(at) if at.total == 0 => {}
        RebuildStep::Indexing(at) => {
            let note = match (&at.index, at.table.as_str()) {
                (Some(index), _) => Some(index.clone()),
                (None, "") => None,
                (None, table) => Some(format!("statistics of {table}")),
            };
            let (part, done, total) = ("building indexes", at.done as u64, at.total as u64);
            progress.show(State { part, done, total, unit: Unit::Of("indexes"), note: note.as_deref() });
        }
    }
}

fn text(rebuilt: &Rebuilt) -> String {
    let Rebuilt { generation, records, applied, duplicate, dead, replay_s, index_s, complete } = rebuilt;
    let rate = *records as f64 / replay_s.max(0.001);
    let next = if *complete {
        format!(
            "generation {generation} is ready; indexes took {}\n\
             next: dashi replay compare {generation}, then dashi replay swap {generation}\n",
            duration(*index_s)
        )
    } else {
        format!("generation {generation} is not complete: the same command goes on\n")
    };
    format!(
        "replayed {records} records in {} ({rate:.0}/s): applied {applied} · duplicate {duplicate} · dead {dead}\n{next}",
        duration(*replay_s)
    )
}
