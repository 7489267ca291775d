//! Errors of settings.

use std::{io, path::PathBuf};

use super::origin::Origin;

/// A setting that cannot be used. Its message states the problem, the value and the remedy; it never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file could not be read.
    #[error("cannot read the settings file {}; check the path given with --config", path.display())]
    FileUnread {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The file of environment variables could not be read. The message does not repeat a line, which may hold a secret.
    #[error("cannot read the variables in {}, given with --env-file: {reason}", path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// The settings file is not TOML. The message does not repeat the line, which may hold a secret.
    #[error("{}, line {line}, column {column} is not valid TOML: {message}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The message of the parser.
        message: String,
    },
    /// A key that is not in `config/default.toml`.
    #[error("{origin}: there is no setting {key}; {}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The layer that gives it.
        origin: Origin,
        /// The key, sections included.
        key: String,
        /// The most similar known key.
        nearest: Option<String>,
    },
    /// An environment variable with our prefix that is no setting.
    #[error("environment variable {name}: there is no such setting; {}", suggestion(nearest.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The most similar known variable.
        nearest: Option<String>,
    },
    /// A value of the wrong type or form.
    #[error("{origin}: {key} takes {expected}, not {got}")]
    WrongType {
        /// The layer that gives it.
        origin: Origin,
        /// The key.
        key: String,
        /// The values that it takes, with an example.
        expected: String,
        /// The given value, with secrets redacted.
        got: String,
    },
    /// A log or store URL that names no backend.
    #[error("{what} `{got}`: {reason}; {remedy}")]
    Url {
        /// `log` or `store`.
        what: &'static str,
        /// The URL without its password.
        got: String,
        /// The problem.
        reason: String,
        /// The form that it should have.
        remedy: &'static str,
    },
    /// A value outside the range in which it means something.
    #[error("{key} = {got}: {reason}; {remedy}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// The consequence of the value.
        reason: &'static str,
        /// The value to set instead.
        remedy: &'static str,
    },
    /// Two values that are unsafe together.
    #[error("{first} with {second}: {reason}; {remedy}")]
    Unsafe {
        /// One key and its value.
        first: String,
        /// The other.
        second: String,
        /// The danger of the two together.
        reason: &'static str,
        /// The value to set instead.
        remedy: &'static str,
    },
    /// A networked log or store without a secret.
    #[error(
        "{key} = {got} without a secret: session ids and tokens are derived from it, and every collector of these \
         websites has to use the same one; set `secret`, DASHI_SECRET or APP_SECRET (Umami's own, where Umami has run)"
    )]
    NoSecret {
        /// `log` or `store`.
        key: &'static str,
        /// The URL without its password.
        got: String,
    },
    /// A librdkafka setting that Dashi sets itself.
    #[error("kafka.properties.{property} cannot be passed through: {reason}")]
    ReservedProperty {
        /// librdkafka's name.
        property: String,
        /// The guarantee that depends on it, or the setting to use instead.
        reason: &'static str,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`dashi config show` lists all settings".to_owned(),
    }
}
