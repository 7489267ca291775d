//! Having dead letters tried again or discarded: appends the command and waits for the projector.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use dashi_domain::dead_letters::{LetterAction, LetterCommand};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EventLog, NewRecord};
use serde::Serialize;
use uuid::Uuid;

use super::select::{FilterArgs, PlaceArg};
use super::{Opened, Selection};
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::{ProgressDisplay, State, Unit};

/// How often the projection's checkpoints are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Letters that are still dead and spelled out, at most.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Args)]
pub struct DecideArgs {
    /// The letters, such as 3:4711
    #[arg(value_name = "PARTITION:OFFSET")]
    pub places: Vec<PlaceArg>,

    #[command(flatten)]
    pub filter: FilterArgs,

    /// All that are not discarded
    #[arg(long)]
    pub all: bool,

    /// Print how many it would be, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Longest wait for the projector
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    action: &'static str,
    /// Letters that were selected.
    selected: usize,
    /// Places that were given and have no letter.
    not_there: Vec<String>,
    /// The records that command it; empty of a dry run.
    commands: Vec<Commanded>,
    /// Whether the projector has passed all of them.
    is_done: bool,
    /// Letters that are no dead letters any more: they are applied, or an event with their id was applied before.
    settled: usize,
    /// Letters that are dead as before, or again.
    still_dead: usize,
    /// The first of these.
    still_dead_first: Vec<StillDead>,
    elapsed_s: f64,
}

#[derive(Debug, Serialize)]
struct Commanded {
    command_id: Uuid,
    partition: u32,
    offset: u64,
    letters: usize,
}

#[derive(Debug, Serialize)]
struct StillDead {
    partition: u32,
    offset: u64,
    tries: u32,
    error: String,
}

/// Commands it, and waits for the outcome.
pub async fn run(opened: &Opened<'_>, action: LetterAction, args: &DecideArgs) -> anyhow::Result<Exit> {
    let (began, mut not_there) = (Instant::now(), Vec::new());
    let selected = select(opened, args, &mut not_there).await?;
    let mut report = Report {
        action: action.name(),
        selected: selected.values().map(Vec::len).sum(),
        not_there,
        commands: Vec::new(),
        is_done: true,
        settled: 0,
        still_dead: 0,
        still_dead_first: Vec::new(),
        elapsed_s: 0.0,
    };
    if !args.dry_run && report.selected > 0 {
        let placed = append(&opened.log, action, &selected).await?;
        let display = ProgressDisplay::new(args.json);
        report.is_done = passes(opened, &display, &placed, Duration::from_secs(args.wait)).await?;
        display.finish();
        if report.is_done {
            look(opened, &selected, &mut report).await?;
        }
        report.commands = placed
            .iter()
            .map(|(command, offset)| Commanded {
                command_id: command.command_id,
                partition: command.partition.number(),
                offset: offset.number(),
                letters: command.offsets.len(),
            })
            .collect();
    }
    report.elapsed_s = began.elapsed().as_secs_f64();
    print(&if args.json {
        format!("{}\n", serde_json::to_string(&report)?)
    } else {
        text(&report, action, args.dry_run)
    });
    let is_work_left = action == LetterAction::Retry && report.still_dead > 0;
    Ok(if !report.is_done {
        Exit::Overdue
    } else if is_work_left || !report.not_there.is_empty() {
        Exit::No
    } else {
        Exit::Done
    })
}

/// The offsets of the letters, by partition.
async fn select(
    opened: &Opened<'_>,
    args: &DecideArgs,
    not_there: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<Partition, Vec<Offset>>> {
    let ways = [!args.places.is_empty(), !args.filter.is_empty(), args.all];
    if ways.iter().filter(|is_given| **is_given).count() != 1 {
        return Err(Misuse(
            "name the dead letters in one way: places such as 3:4711, or filters, or --all".to_owned(),
        )
        .into());
    }
    let mut selected: BTreeMap<Partition, Vec<Offset>> = BTreeMap::new();
    let log = opened.log_id();
    for place in &args.places {
        let mut is_there = false;
        let selection = Selection::one(log, *place);
        selection.each(&opened.store, None, |_| Ok(std::mem::replace(&mut is_there, true))).await?;
        if is_there {
            selected.entry(place.partition).or_default().push(place.offset);
        } else {
            not_there.push(place.to_string());
        }
    }
    if args.places.is_empty() {
        let selection = Selection::new(&opened.loaded.settings, log.clone(), &args.filter, Some(false))?;
        selection
            .each(&opened.store, None, |letter| {
                selected.entry(letter.place.partition).or_default().push(letter.place.offset);
                Ok(true)
            })
            .await?;
    }
    for offsets in selected.values_mut() {
        offsets.sort_unstable();
        offsets.dedup();
    }
    Ok(selected)
}

/// Appends the commands, each to the partition of its letters.
///
/// # Errors
/// The log did not take all of them; those that it took are obeyed, and may be given again.
pub async fn append(
    log: &EventLog,
    action: LetterAction,
    selected: &BTreeMap<Partition, Vec<Offset>>,
) -> anyhow::Result<Vec<(LetterCommand, Offset)>> {
    let (id, at_ms) = (Uuid::now_v7(), now_ms());
    let partitions = log.partitions().await?.len() as u32;
    let mut commands = Vec::new();
    for (partition, offsets) in selected {
        anyhow::ensure!(
            partition.number() < partitions,
            "the log has {partitions} partitions, and a letter lies in partition {partition}: is it another topic of this name?"
        );
        let of = (log.id(), *partition);
        commands.extend(LetterCommand::all(id, at_ms, action, of, partitions, offsets.clone()));
    }
    let append = async |command: &LetterCommand| {
        let record = NewRecord { session_id: command.key, value: command.encode() };
        log.append_to(command.partition, vec![record]).await
    };
    let appended = futures::future::join_all(commands.iter().map(append)).await;
    let appended: Vec<_> = appended.into_iter().flatten().collect();
    let mut placed = Vec::with_capacity(commands.len());
    for (command, appended) in commands.into_iter().zip(appended) {
        let (_, offset) = appended.context(
            "not all commands were appended to the log; run it again: letters that are settled stay so",
        )?;
        placed.push((command, offset));
    }
    Ok(placed)
}

/// Whether all checkpoints pass the commands in time.
async fn passes(
    opened: &Opened<'_>,
    display: &ProgressDisplay,
    placed: &[(LetterCommand, Offset)],
    wait: Duration,
) -> anyhow::Result<bool> {
    let (deadline, mut most) = (Instant::now() + wait, 0);
    loop {
        let checkpoints: HashMap<Partition, Checkpoint> = opened
            .store
            .partitions()
            .await?
            .into_iter()
            .filter(|state| state.log == *opened.log_id())
            .map(|state| (state.partition, state.checkpoint))
            .collect();
        let lag = |(command, offset): &(LetterCommand, Offset)| {
            checkpoints.get(&command.partition).copied().unwrap_or(Checkpoint::START).lag(offset.next())
        };
        let left: u64 = placed.iter().map(lag).sum();
        most = most.max(left);
        if left == 0 {
            return Ok(true);
        }
        let (part, done, unit) = ("waiting for the projector", most - left, Unit::Of("records"));
        display.show(State { part, done, total: most, unit, note: None });
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The letters that are still there.
async fn look(
    opened: &Opened<'_>,
    selected: &BTreeMap<Partition, Vec<Offset>>,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (partition, offsets) in selected {
        let filter = FilterArgs {
            partition: Some(partition.number()),
            website: None,
            error: None,
            since: None,
            until: None,
        };
        let selection = Selection::new(&opened.loaded.settings, opened.log_id().clone(), &filter, None)?;
        selection
            .each(&opened.store, None, |letter| {
                if offsets.binary_search(&letter.place.offset).is_ok() {
                    report.still_dead += 1;
                    if report.still_dead_first.len() < SHOWN_MAX {
                        report.still_dead_first.push(StillDead {
                            partition: partition.number(),
                            offset: letter.place.offset.number(),
                            tries: letter.tries,
                            error: letter.reason,
                        });
                    }
                }
                Ok(true)
            })
            .await?;
    }
    report.settled = report.selected - report.still_dead;
    Ok(())
}

fn text(report: &Report, action: LetterAction, dry_run: bool) -> String {
    let mut out = String::new();
    for place in &report.not_there {
        out.push_str(&format!("there is no dead letter at {place}\n"));
    }
    if report.selected == 0 {
        return out + "No dead letter is selected.\n";
    }
    let selected = report.selected;
    if dry_run {
        return out + &format!("{selected} dead letters are selected; nothing was changed.\n");
    }
    if !report.is_done {
        return out
            + &format!(
                "The command for {selected} dead letters is in the log; the projector obeys when it reads it: `dashi status` \
                 shows the lag.\n"
            );
    }
    let seconds = report.elapsed_s;
    match action {
        LetterAction::Discard => {
            out.push_str(&format!("{} dead letters are discarded ({seconds:.1} s).\n", report.still_dead));
        }
        LetterAction::Retry => {
            out.push_str(&format!(
                "{} dead letters are settled: applied, or duplicates of applied events ({seconds:.1} s).\n",
                report.settled
            ));
            if report.still_dead > 0 {
                out.push_str(&format!("{} are still dead:\n", report.still_dead));
            }
            for letter in &report.still_dead_first {
                let error: String =
                    letter.error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                out.push_str(&format!(
                    "  {}:{} after {} tries: {error}\n",
                    letter.partition, letter.offset, letter.tries
                ));
            }
        }
    }
    out
}
