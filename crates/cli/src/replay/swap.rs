//! `dashi replay swap` and `rollback`: make a generation live and keep the one that was.

use anyhow::Context as _;
use dashi_config::Loaded;
use dashi_projector::RebuildError;
use dashi_store::{Foreign, ForeignRows, Generation, GenerationState, SwapError, Swapped};

use super::{Opened, refuse, state};
use crate::args::{ForeignArgs, RollbackArgs, SwapArgs};
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::ProgressDisplay;

/// Makes a generation live. Exit code 3 if there is none, or foreign rows have no decision.
pub async fn swap(loaded: &Loaded, args: &SwapArgs) -> anyhow::Result<Exit> {
    let opened = Opened::open(loaded, &args.archive, None).await?;
    let ended = match opened.generation(args.number).await? {
        Err(reason) => Ok(refuse(&reason)),
        Ok(generation) => match of_other_rules(&opened, &generation) {
            Some(reason) if generation.state == GenerationState::Ready => Err(Misuse(reason).into()),
            _ => run(&opened, &generation, args.foreign, args.json).await,
        },
    };
    opened.close().await;
    ended
}

/// Makes the generation live again that was live last. Exit code 3 if none is kept, or foreign rows have no decision.
pub async fn rollback(loaded: &Loaded, args: &RollbackArgs) -> anyhow::Result<Exit> {
    let opened = Opened::open(loaded, &args.archive, None).await?;
    let all = opened.store.generations().await?;
    let kept = all.into_iter().filter(|generation| generation.state == GenerationState::Kept);
    let ended = match kept.max_by_key(|generation| generation.live_since_ms) {
        None => Ok(refuse("no generation is kept, so there is none to go back to")),
        Some(generation) => run(&opened, &generation, args.foreign, args.json).await,
    };
    opened.close().await;
    ended
}

/// Why this program would fold the rest of the log into it by other rules than those it was made by.
fn of_other_rules(opened: &Opened, generation: &Generation) -> Option<String> {
    let Generation { number, rules, .. } = generation;
    let current = opened.rules();
    (*rules != current && !rules.is_empty()).then(|| {
        format!("generation {number} was made by the rules {rules:?}, and the settings have {current:?}")
    })
}

async fn run(
    opened: &Opened,
    generation: &Generation,
    foreign: ForeignArgs,
    json: bool,
) -> anyhow::Result<Exit> {
    if let Some(reason) = of_other_rules(opened, generation) {
        eprintln!(
            "dashi: warning: {reason}; events from now on are folded by the rules of the running projector"
        );
    }
    let foreign = match foreign {
        ForeignArgs { keep_foreign: true, .. } => Foreign::Keep,
        ForeignArgs { lose_foreign: true, .. } => Foreign::Lose,
        _ => Foreign::Refuse,
    };
    let (number, progress) = (generation.number, ProgressDisplay::new(json));
    let swapped =
        opened.rebuild.swap(number, foreign, |replayed| progress.show(state("catching up", &replayed))).await;
    progress.finish();
    match swapped {
        Ok(swapped) => {
            print(&if json { self::json(number, &swapped) } else { text(number, &swapped) });
            Ok(Exit::Done)
        }
        Err(SwapError::Foreign(rows)) => {
            print(&if json {
                format!(
                    "{}\n",
                    serde_json::json!({ "generation": number, "swapped": false, "foreign": rows })
                )
            } else {
                format!(
                    "generation {number} was not swapped: the live tables have rows that it does not have\n{}\
                     --keep-foreign copies them into generation {number}, --lose-foreign leaves them in the former one\n",
                    list(&rows)
                )
            });
            Ok(Exit::No)
        }
        Err(SwapError::CatchUp(RebuildError::Stopped)) => {
            eprintln!("dashi: interrupted; `dashi replay list` shows which generation is live");
            Ok(Exit::Overdue)
        }
        Err(error) => Err(anyhow::Error::from(error)).context(format!("generation {number} was not swapped")),
    }
}

fn json(number: u32, swapped: &Swapped) -> String {
    let Swapped { old, writers_held, readers_locked, retries, foreign_kept, foreign_lost } = swapped;
    let value = serde_json::json!({
        "generation": number,
        "swapped": true,
        "former": old,
        "writers_held_ms": writers_held.as_secs_f64() * 1_000.0,
        "readers_locked_ms": readers_locked.as_secs_f64() * 1_000.0,
        "retries": retries,
        "foreign_kept": foreign_kept,
        "foreign_lost": foreign_lost,
    });
    format!("{value}\n")
}

fn text(number: u32, swapped: &Swapped) -> String {
    let Swapped { old, writers_held, readers_locked, retries, foreign_kept, foreign_lost } = swapped;
    let mut out = format!(
        "generation {number} is live; generation {old} is kept: dashi replay rollback makes it live again, \
         dashi replay drop {old} removes it\n\
         the projector waited {:.1} ms, readers at most {:.1} ms",
        writers_held.as_secs_f64() * 1_000.0,
        readers_locked.as_secs_f64() * 1_000.0
    );
    if *retries > 0 {
        out.push_str(&format!("; the locks were given up {retries} times for readers that did not end"));
    }
    out.push('\n');
    if !foreign_kept.is_empty() {
        out.push_str(&format!("foreign rows that were copied:\n{}", list(foreign_kept)));
    }
    if !foreign_lost.is_empty() {
        out.push_str(&format!("foreign rows that are in generation {old} only:\n{}", list(foreign_lost)));
    }
    out
}

/// Foreign rows by table, with their first keys.
pub fn list(rows: &[ForeignRows]) -> String {
    let mut out = String::new();
    for ForeignRows { table, rows, keys } in rows {
        let more = if *rows > keys.len() as u64 { ", …" } else { "" };
        out.push_str(&format!("  {table:<22} {rows:>10}  {}{more}\n", keys.join(", ")));
    }
    out
}
