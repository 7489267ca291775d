//! `dashi partitions`: over how many partitions the log is spread, and letting that number grow.

mod grow;
mod show;

use clap::{Args, Subcommand};
use dashi_config::Loaded;

use self::grow::GrowArgs;
use self::show::ShowArgs;
pub use self::show::Spread;
use crate::args::examples;
use crate::exit::Exit;

#[derive(Debug, Args)]
#[command(
    after_help = "As many projectors work at once as the log has partitions. The number grows while everything runs, and never \
    shrinks. Sessions that go to another partition keep their order: docs/partitions.md says how, and how long they wait.\n\n\
    dashi partitions                  the number in force, and who appends\n\
    dashi partitions grow --to 16\n\
    dashi partitions grow --to 16 --without \"web-3 0.0.0.0:8484\"   that collector has ended for good"
)]
pub struct PartitionsArgs {
    #[command(subcommand)]
    pub command: Option<PartitionsCommand>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum PartitionsCommand {
    /// Print the layouts of the log, how far each partition has come, and the processes that append (the default)
    #[command(after_help = examples::PARTITIONS_SHOW)]
    Show(ShowArgs),
    /// Let the log grow to more partitions (exit code 4 if collectors have not acknowledged it within --wait: nothing changed)
    Grow(GrowArgs),
}

/// Runs a command.
pub async fn run(loaded: &Loaded, args: &PartitionsArgs) -> anyhow::Result<Exit> {
    match &args.command {
        None => show::run(loaded, &ShowArgs { json: args.json }).await,
        Some(PartitionsCommand::Show(show)) => {
            show::run(loaded, &ShowArgs { json: args.json || show.json }).await
        }
        Some(PartitionsCommand::Grow(grow)) => grow::run(loaded, grow, args.json || grow.json).await,
    }
}
