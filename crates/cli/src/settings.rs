//! The settings of this process: read from the command line, the environment and files, and checked.

use dashi_config::{ConfigError, Layers, Loaded, ServedPaths, Warning};

use crate::args::Cli;
use crate::ops;

/// Reads the settings. No other place reads the environment.
///
/// # Errors
/// A layer cannot be read, or holds a setting that cannot be used.
#[expect(clippy::disallowed_methods, reason = "the edge at which the environment enters")]
pub fn load(cli: &Cli) -> Result<Loaded, ConfigError> {
    // A variable that is not UTF-8 cannot be a setting of ours.
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

/// Checks the settings: warnings about those that may run, or everything that must not.
///
/// # Errors
/// Every setting that has to be changed first.
pub fn examine(loaded: &Loaded) -> Result<Vec<Warning>, Vec<ConfigError>> {
    let known_timezone = |name: &str| jiff::tz::TimeZone::get(name).is_ok();
    let served = ServedPaths {
        routes: &[&dashi_ingest::PATHS, &dashi_api::PATHS, &dashi_console::PATHS, &ops::PATHS],
        send: dashi_ingest::SEND_PATH,
        script: dashi_ingest::SCRIPT_PATH,
        files_beside: dashi_ingest::files_beside,
    };
    dashi_config::check(&loaded.settings, known_timezone, &served)
}

/// Checks the settings before a process runs with them; prints notes about those that an operator should know of.
///
/// # Errors
/// The last of the settings that must not run; the others are printed.
pub fn check(loaded: &Loaded) -> anyhow::Result<()> {
    match examine(loaded) {
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
