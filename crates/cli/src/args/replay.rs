//! The flags of `dashi replay`.

use std::num::{NonZeroU32, NonZeroUsize};

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::examples;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = examples::REPLAY
)]
pub struct ReplayArgs {
    #[command(subcommand)]
    pub command: Option<ReplayCommand>,

    #[command(flatten)]
    pub into: IntoArgs,
}

#[derive(Debug, Subcommand)]
pub enum ReplayCommand {
    /// Print the records that a replay would read and estimate its duration; writes nothing
    Plan(PlanArgs),
    /// Build a new generation of the tables from the log; after an interruption, run it again to go on
    Run(RunArgs),
    /// Compare a generation with the live tables (exit code 3 if they differ)
    Compare(CompareGenerationArgs),
    /// Make a generation live and keep the former one (exit code 3 if it was refused because of foreign rows)
    Swap(SwapArgs),
    /// Make the generation live again that was live before
    Rollback(RollbackArgs),
    /// Remove a generation that is not live, with all its rows
    Drop(DropArgs),
    /// List the generations
    List(ListArgs),
    /// Fold the whole log into an empty store; the same as --into
    Into(IntoStoreArgs),
}

/// Without a subcommand
#[derive(Debug, Args)]
pub struct IntoArgs {
    /// The store to fold the log into: an empty store, or that of an interrupted replay
    #[arg(long, value_name = "URL")]
    pub into: Option<String>,

    #[command(flatten)]
    pub fold: FoldArgs,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_INTO)]
pub struct IntoStoreArgs {
    /// An empty store, or that of an interrupted replay
    #[arg(value_name = "URL")]
    pub url: String,

    #[command(flatten)]
    pub fold: FoldArgs,
}

/// Commands that fold a whole log.
#[derive(Debug, Clone, Args)]
pub struct FoldArgs {
    #[command(flatten)]
    pub archive: FromArchiveArgs,

    #[command(flatten)]
    pub speed: SpeedArgs,

    /// Print JSON; progress on standard error is JSON, too, a line every five seconds
    #[arg(long)]
    pub json: bool,
}

/// Records that the log no longer has.
#[derive(Debug, Clone, Args)]
pub struct FromArchiveArgs {
    /// Archive of the log, read where retention has removed records from the log: a directory or s3://BUCKET/PREFIX
    #[arg(long, value_name = "DIR|URL")]
    pub archive: Option<String>,
}

/// How fast the log is read.
#[derive(Debug, Clone, Copy, Args)]
pub struct SpeedArgs {
    /// Read at most N records per second, over all partitions; live events keep their latency [default: no limit]
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    /// Read so many partitions at once [default: 4]
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "TIME is 2026-11-26, 2026-11-26T08:00, both in the setting `timezone`, or 2026-11-26T08:00:00Z.\n\n\
    dashi replay plan                                  the whole log, as `dashi replay run` reads it\n\
    dashi replay plan --from 2026-11-01 --website 94db1cb1-74f4-4a40-ad6c-962362670409   records of a month and of a website"
)]
pub struct PlanArgs {
    /// Where it begins: beginning, an offset of every partition, or a time
    #[arg(long, value_name = "beginning|OFFSET|TIME", default_value = "beginning")]
    pub from: String,

    /// Only records appended before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Count the records of this website, link or pixel
    #[arg(long, value_name = "UUID")]
    pub website: Option<Uuid>,

    #[command(flatten)]
    pub speed: SpeedArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "dashi replay run --rate 5000   beside a busy collector")]
pub struct RunArgs {
    #[command(flatten)]
    pub fold: FoldArgs,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_COMPARE)]
pub struct CompareGenerationArgs {
    /// The generation [default: the newest one that is ready]
    #[arg(value_name = "NUMBER")]
    pub number: Option<u32>,

    #[command(flatten)]
    pub archive: FromArchiveArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_SWAP)]
pub struct SwapArgs {
    /// The generation [default: the newest one that is ready]
    #[arg(value_name = "NUMBER")]
    pub number: Option<u32>,

    #[command(flatten)]
    pub archive: FromArchiveArgs,

    #[command(flatten)]
    pub foreign: ForeignArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The treatment of foreign rows.
#[derive(Debug, Clone, Copy, Args)]
pub struct ForeignArgs {
    /// Copy foreign rows into the generation
    #[arg(long)]
    pub keep_foreign: bool,

    /// Leave foreign rows in the former generation
    #[arg(long, conflicts_with = "keep_foreign")]
    pub lose_foreign: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_ROLLBACK)]
pub struct RollbackArgs {
    #[command(flatten)]
    pub archive: FromArchiveArgs,

    #[command(flatten)]
    pub foreign: ForeignArgs,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_DROP)]
pub struct DropArgs {
    /// The generation
    #[arg(value_name = "NUMBER")]
    pub number: u32,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY_LIST)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
