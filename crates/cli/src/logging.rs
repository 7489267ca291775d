//! Diagnostics: to standard error, for people on a terminal, as JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::Misuse;
use dashi_config::{LogFormat, Logs};

/// Starts logging as the settings say.
///
/// # Errors
/// The filter cannot be understood.
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

/// What is logged.
///
/// # Errors
/// The filter cannot be understood.
pub fn filter(logs: &Logs) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(&logs.filter)
        .map_err(|error| Misuse(format!("logs.filter = {:?} cannot be understood: {error}", logs.filter)))?)
}
