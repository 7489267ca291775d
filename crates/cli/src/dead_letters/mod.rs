//! `dashi dead-letters`: the records that were set aside, as a work list.
//!
//! * `select` finds letters; * `list` prints them; * `decide` has them tried again or discarded; * `export` writes them to
//!   a file.

pub mod decide;
mod export;
pub mod list;
pub mod select;

use clap::{Args, Subcommand};
use dashi_config::Loaded;
use dashi_domain::dead_letters::LetterAction;
use dashi_domain::position::LogId;
use dashi_event_log::EventLog;
use dashi_store::Store;

use self::decide::DecideArgs;
use self::export::ExportArgs;
use self::list::{ListArgs, ShowArgs};
use self::select::Selection;
use crate::args::examples;
use crate::exit::Exit;
use crate::open;

#[derive(Debug, Args)]
#[command(
    after_help = "A record that cannot be decoded, on which the fold fails or whose rows the database refuses is set aside with \
    its bytes and the error, and the others go on. Mend the cause, then try it again: its partition's writer folds it \
    with its own time and ids. docs/dead-letters.md says what a replay makes of it.\n\n\
    dashi dead-letters list --error \"violates check constraint\"\n\
    dashi dead-letters show 3:4711\n\
    dashi dead-letters retry --all\n\
    dashi dead-letters discard 3:4711 3:4712\n\
    dashi dead-letters export --to letters.ndjson"
)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    pub command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, in the order of partitions and offsets
    #[command(after_help = examples::LETTERS_LIST)]
    List(ListArgs),
    /// Show one with its record (exit code 3 if it is not there)
    #[command(after_help = examples::LETTERS_SHOW)]
    Show(ShowArgs),
    /// Try them again (exit code 3 if some are still dead, 4 if the projector has not come to it within --wait)
    #[command(after_help = examples::LETTERS_RETRY)]
    Retry(DecideArgs),
    /// Mark them: nobody has to look at them any more
    #[command(after_help = examples::LETTERS_DISCARD)]
    Discard(DecideArgs),
    /// Write them to NDJSON, with their records; `dashi import dashi` reads it
    #[command(after_help = examples::LETTERS_EXPORT)]
    Export(ExportArgs),
}

/// Log and store of a command.
pub struct Opened<'a> {
    loaded: &'a Loaded,
    log: EventLog,
    store: Store,
}

impl Opened<'_> {
    fn log_id(&self) -> &LogId {
        self.log.id()
    }
}

/// Runs a command.
pub async fn run(loaded: &Loaded, args: &DeadLettersArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let opened = Opened { loaded, log, store };
    let ended = match &args.command {
        DeadLettersCommand::List(args) => list::list(&opened, args).await,
        DeadLettersCommand::Show(args) => list::show(&opened, args).await,
        DeadLettersCommand::Retry(args) => decide::run(&opened, LetterAction::Retry, args).await,
        DeadLettersCommand::Discard(args) => decide::run(&opened, LetterAction::Discard, args).await,
        DeadLettersCommand::Export(args) => export::run(&opened, args).await,
    };
    opened.store.close().await;
    opened.log.close().await;
    ended
}
