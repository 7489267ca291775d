//! `dashi replay list` and `drop`: the generations of the tables.

use dashi_config::Loaded;
use dashi_domain::calendar::iso_string;
use dashi_store::{Generation, GenerationError, GenerationState, VERSION_UNKNOWN};

use super::refuse;
use crate::args::{DropArgs, ListArgs};
use crate::exit::{Exit, Misuse};
use crate::open;
use crate::output::{print, print_list};

/// Lists the generations.
pub async fn run(loaded: &Loaded, args: &ListArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let generations = store.generations().await?;
    store.close().await;
    if !args.json {
        print("number  state     version  begun                     live since                place\n");
    }
    print_list(
        &generations,
        args.json,
        |generation| serde_json::to_value(generation).unwrap_or_default(),
        line,
    );
    Ok(Exit::Done)
}

fn line(generation: &Generation) -> String {
    let Generation { number, state, projection_version, place, made_at_ms, live_since_ms, .. } = generation;
    let since = live_since_ms.map_or_else(|| "never".to_owned(), iso_string);
    let begun = iso_string(*made_at_ms);
    let version = version(*projection_version);
    format!("{number:>6}  {:<8}  {version:>7}  {begun:<24}  {since:<24}  {place}", state.name())
}

/// A projection version in words.
pub fn version(version: u32) -> String {
    if version == VERSION_UNKNOWN { "unknown".to_owned() } else { version.to_string() }
}

/// Removes a generation. Exit code 3 if there is none of this number.
pub async fn drop(loaded: &Loaded, args: &DropArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    // A store without generations has no table of them, either.
    let is_there = store.generations().await?.iter().any(|generation| generation.number == args.number);
    let dropped = match is_there {
        true => store.drop_generation(args.number).await,
        false => Err(GenerationError::None { number: args.number }),
    };
    store.close().await;
    match dropped {
        Ok(()) => {
            print(&match args.json {
                true => format!("{}\n", serde_json::json!({ "dropped": args.number })),
                false => format!("generation {} is removed\n", args.number),
            });
            Ok(Exit::Done)
        }
        Err(error @ GenerationError::None { .. }) => Ok(refuse(&error.to_string())),
        Err(error @ GenerationError::State { state: GenerationState::Live, .. }) => {
            Err(Misuse(error.to_string()).into())
        }
        Err(error) => Err(error.into()),
    }
}
