//! The binary `dashi`: reads configuration, wires the crates together, runs a command, and says how it ended.

mod accept_lost;
mod args;
mod bench;
mod compare;
mod heal;
mod health;
mod logging;
mod open;
mod open_files;
mod ops;
mod reach;
mod replay;
mod serve;
mod status;
mod topic;
mod trace;
mod tracked;
mod website;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::args::{Cli, Command, ConfigCommand};
use dashi_config::{ConfigError, Layers, Loaded, ServedPaths, Settings};

/// Requests make many small, short-lived allocations on several threads; the system's allocator took a tenth of the
/// collector's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a command ended, as the shell sees it. Errors are told on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to.
    Done = 0,
    /// It failed; trying again later may help.
    Failed = 1,
    /// It was asked wrongly: a flag or a setting is to be changed first.
    Misused = 2,
    /// It answered the question, and the answer is no: the stores differ.
    No = 3,
    /// It was told to stop and did not finish in time; nothing acknowledged is lost.
    Overdue = 4,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match run(cli) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("dashi: {error:#}");
            if error.is::<ConfigError>() || error.is::<Misuse>() { Exit::Misused } else { Exit::Failed }
        }
    };
    ExitCode::from(exit as u8)
}

/// A mistake in what was asked for that no configuration error covers.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);

fn run(cli: Cli) -> anyhow::Result<Exit> {
    if let Command::Health(args) = &cli.command {
        return runtime()?.block_on(health::run(args));
    }
    let loaded = load(&cli)?;
    match cli.command {
        Command::Config(ConfigCommand::Show { json }) => {
            let [release, formula] = runtime()?.block_on(in_force(&loaded.settings));
            print(&if json {
                loaded.show_json(&[(release.0, &release.1), (formula.0, &formula.1)])
            } else {
                let lines = [release, formula].map(|(key, value)| format!("# {key} in force: {value}\n"));
                format!("{}\n{}", loaded.show(), lines.concat())
            });
            Ok(Exit::Done)
        }
        Command::Config(ConfigCommand::Check { connect }) => {
            checked(&loaded)?;
            open::parse_all(&loaded.settings)?;
            if connect {
                runtime()?.block_on(reach::run(&loaded.settings))?;
                print("settings are valid; the event log and the store can be reached\n");
            } else {
                print("settings are valid; --connect would also reach the event log and the store\n");
            }
            Ok(Exit::Done)
        }
        Command::Serve(args) => runtime()?.block_on(serve::run(loaded, serve::Roles::Both, args)),
        Command::Collect(args) => runtime()?.block_on(serve::run(loaded, serve::Roles::Collect, args)),
        Command::Project(args) => runtime()?.block_on(serve::run(loaded, serve::Roles::Project, args)),
        Command::Website(command) => runtime()?.block_on(website::run(&loaded, command)),
        Command::Link(command) => runtime()?.block_on(tracked::link(&loaded, command)),
        Command::Pixel(command) => runtime()?.block_on(tracked::pixel(&loaded, command)),
        Command::Status(args) => runtime()?.block_on(status::run(&loaded, &args)),
        Command::AcceptLost(args) => runtime()?.block_on(accept_lost::run(&loaded, &args)),
        Command::Replay(args) => runtime()?.block_on(replay::run(&loaded, args)),
        Command::Compare(args) => runtime()?.block_on(compare::run(&loaded, &args)),
        Command::Trace(args) => runtime()?.block_on(trace::run(&loaded, &args)),
        Command::Heal(args) => runtime()?.block_on(heal::run(&loaded, &args)),
        Command::Bench(args) => runtime()?.block_on(bench::run(&loaded, args)),
        Command::Health(_) => Ok(Exit::Done),
    }
}

/// The settings whose values may be for the database to say.
const RELEASE: &str = "umami_release";
const FORMULA: &str = "ingest.identified_sessions";

/// How long `config show` waits for a database.
const STORE_WAIT: Duration = Duration::from_secs(3);

/// By which version's rules a process with these settings would run, and which formula of session ids a collector would
/// use, each with the reason. A database that is away does not hold up an answer about settings.
async fn in_force(settings: &Settings) -> [(&'static str, String); 2] {
    let asked = async {
        if let Some(set) = open::release_by_settings(settings, &settings.store)? {
            return anyhow::Ok(set);
        }
        let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
        let shown = open::release_by_store(&store).await;
        store.close().await;
        anyhow::Ok(shown?)
    };
    let release = match tokio::time::timeout(STORE_WAIT, asked).await {
        Ok(Ok(release)) => Ok(release),
        Ok(Err(error)) => Err(format!("not known: {error:#}")),
        Err(_) => Err(format!("not known: the database does not answer within {} s", STORE_WAIT.as_secs())),
    };
    let formula = match open::formula_by_settings(settings) {
        Some(formula) => Ok(formula),
        None => release.as_ref().map(open::formula_by_release).map_err(Clone::clone),
    };
    [
        (RELEASE, release.map_or_else(|why| why, |it| format!("{}, for {}", it.release.name(), it.because))),
        (FORMULA, formula.map_or_else(|why| why, |it| format!("{}, for {}", it.name(), it.because))),
    ]
}

/// The only place that reads the environment.
#[expect(clippy::disallowed_methods, reason = "main is the edge at which the environment enters")]
fn load(cli: &Cli) -> Result<Loaded, ConfigError> {
    // Variables that are not UTF-8 cannot be settings of ours.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let from_env = std::env::var("DASHI_CONFIG").ok().filter(|path| !path.is_empty());
    let file = cli.config.clone().or(from_env.map(Into::into));
    dashi_config::load(Layers {
        file: file.as_deref(),
        env_file: cli.env_file.as_deref(),
        env,
        flags: cli.flags(),
    })
}

/// Refuses settings that must not run together; tells of those that somebody should know about.
pub fn checked(loaded: &Loaded) -> anyhow::Result<()> {
    let known_timezone = |name: &str| jiff::tz::TimeZone::get(name).is_ok();
    let served = ServedPaths {
        routes: &[&dashi_ingest::PATHS, &dashi_api::PATHS, &ops::PATHS],
        send: dashi_ingest::SEND_PATH,
        script: dashi_ingest::SCRIPT_PATH,
        vitals_path: dashi_ingest::vitals_path,
    };
    match dashi_config::check(&loaded.settings, known_timezone, &served) {
        Ok(warnings) => {
            for warning in warnings {
                eprintln!("dashi: note: {warning}");
            }
            for (name, reason) in loaded.unused_umami_env() {
                eprintln!("dashi: note: {name} has no effect here: {reason}");
            }
            Ok(())
        }
        Err(mut errors) => {
            let last = errors.pop();
            for error in errors {
                eprintln!("dashi: {error}");
            }
            match last {
                Some(error) => Err(error.into()),
                None => Ok(()),
            }
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// What a command has to say goes to standard output; a reader that has left is nobody's loss.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
