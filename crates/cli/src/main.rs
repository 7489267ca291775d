//! The binary `dashi`: reads the command line and the settings, and runs a command.

mod accept_lost;
mod allocator;
mod archive;
mod args;
mod audit;
mod background;
mod bench;
mod clock;
mod column;
mod compare;
mod config;
mod dead_letters;
mod doctor;
mod erase;
mod exit;
mod export;
mod heal;
mod health;
mod import;
mod interrupt;
mod keys;
mod layouts;
mod logging;
mod manual;
mod moment;
mod open;
mod open_files;
mod ops;
mod output;
mod partitions;
mod process_metrics;
mod progress;
mod reach;
mod reached;
mod replay;
mod secret_file;
mod serve;
mod settings;
mod spool;
mod status;
mod test_event;
mod topic;
mod trace;
mod tracked;
mod website;

use std::process::ExitCode;

use clap::Parser as _;
use dashi_config::ConfigError;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Misuse};

fn main() -> ExitCode {
    let exit = run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("dashi: {error:#}");
        if error.is::<ConfigError>() || error.is::<Misuse>() { Exit::Misused } else { Exit::Failed }
    });
    ExitCode::from(exit as u8)
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    if let Command::Serve(_) | Command::Collect(_) | Command::Project(_) | Command::Replay(_) = cli.command {
        allocator::give_back_soon();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // These need no settings: a wrong one must not hinder a container's health check.
        match &cli.command {
            Command::Health(args) => return health::run(args).await,
            Command::Completions(args) => return Ok(manual::completions(args)),
            Command::Man(args) => return manual::man(args),
            Command::Keys(command) => return keys::run(command),
            _ => {}
        }
        let loaded = settings::load(&cli)?;
        match cli.command {
            Command::Serve(args) => serve::run(loaded, serve::Roles::Both, args).await,
            Command::Collect(args) => serve::run(loaded, serve::Roles::Collect, args).await,
            Command::Project(args) => serve::run(loaded, serve::Roles::Project, args).await,
            Command::Website(command) => website::run(&loaded, command).await,
            Command::Link(command) => tracked::link(&loaded, command).await,
            Command::Pixel(command) => tracked::pixel(&loaded, command).await,
            Command::Status(args) => status::run(&loaded, &args).await,
            Command::Partitions(args) => partitions::run(&loaded, &args).await,
            Command::AcceptLost(args) => accept_lost::run(&loaded, &args).await,
            Command::Replay(args) => replay::run(&loaded, args).await,
            Command::Compare(args) => compare::run(&loaded, &args).await,
            Command::Audit(args) => audit::run(&loaded, &args).await,
            Command::DeadLetters(args) => dead_letters::run(&loaded, &args).await,
            Command::Erase(args) => erase::run(&loaded, &args).await,
            Command::Trace(args) => trace::run(&loaded, &args).await,
            Command::Heal(args) => heal::run(&loaded, &args).await,
            Command::Import(command) => import::run(&loaded, &command).await,
            Command::Export(args) => export::run(&loaded, &args).await,
            Command::Archive(args) => archive::run(&loaded, args).await,
            Command::Bench(args) => bench::run(&loaded, args).await,
            Command::Config(command) => config::run(&loaded, command).await,
            Command::Doctor(args) => doctor::run(&loaded, &args).await,
            Command::TestEvent(args) => test_event::run(&loaded, &args).await,
            Command::Health(args) => health::run(&args).await,
            Command::Completions(args) => Ok(manual::completions(&args)),
            Command::Man(args) => manual::man(&args),
            Command::Keys(command) => keys::run(&command),
        }
    })
}
