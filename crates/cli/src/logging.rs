//! Diagnostic output on standard error: text on a terminal, JSON elsewhere.

use std::io::IsTerminal as _;

use dashi_config::{Loaded, LogFormat, Logs, Origin};
use tracing_subscriber::EnvFilter;

use crate::exit::Misuse;

/// Starts logging with these settings.
///
/// # Errors
/// The filter is not valid.
pub fn start(logs: &Logs) -> anyhow::Result<()> {
    let filter = filter(logs)?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match logs.format {
        LogFormat::Text => builder.with_ansi(terminal).init(),
        LogFormat::Auto if terminal => builder.with_ansi(true).init(),
        LogFormat::Auto | LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Starts logging for a command that shows its own progress: unless a filter is set, only warnings and errors are logged.
///
/// # Errors
/// The filter is not valid.
pub fn start_quiet(loaded: &Loaded) -> anyhow::Result<()> {
    let mut logs = loaded.settings.logs.clone();
    if matches!(loaded.origin("logs.filter"), Some(Origin::Default)) {
        logs.filter = "warn".to_owned();
    }
    start(&logs)
}

/// The filter that selects the lines to log.
///
/// # Errors
/// The filter is not valid.
pub fn filter(logs: &Logs) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(&logs.filter)
        .map_err(|error| Misuse(format!("logs.filter = {:?} is not valid: {error}", logs.filter)))?)
}
