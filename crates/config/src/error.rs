//! What can be wrong with settings.

use std::{io, path::PathBuf};

use super::origin::Origin;

/// A setting that cannot be used. Its message says what failed, which value, and what to do; never a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file could not be read.
    #[error("cannot read the settings file {}; check the path given with --config", path.display())]
    FileUnread {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file of environment variables could not be read. A line itself is not repeated, since it may hold a
    /// secret.
    #[error("cannot read the variables in {}, given with --env-file: {reason}", path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The settings file is not TOML. The line itself is not repeated, since it may hold a secret.
    #[error("{}, line {line}, column {column} is not valid TOML: {message}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that is not in `config/default.toml`.
    #[error("{origin}: there is no setting {key}; {}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// The key, sections included.
        key: String,
        /// The known key most like it.
        nearest: Option<String>,
    },
    /// An environment variable that looks like ours and is not.
    #[error("environment variable {name}: there is no such setting; {}", suggestion(nearest.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The known variable most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong type or form.
    #[error("{origin}: {key} takes {expected}, not {got}")]
    WrongType {
        /// Where it was given.
        origin: Origin,
        /// The key.
        key: String,
        /// What it takes, with an example.
        expected: String,
        /// What was given, as far as it may be printed.
        got: String,
    },
    /// A log or store URL that names no backend.
    #[error("{what} `{got}`: {reason}; {remedy}")]
    Url {
        /// `log` or `store`.
        what: &'static str,
        /// The URL without its password.
        got: String,
        /// What is wrong with it.
        reason: String,
        /// What it should look like.
        remedy: &'static str,
    },
    /// A value outside the range in which it means something.
    #[error("{key} = {got}: {reason}; {remedy}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        got: String,
        /// What would happen.
        reason: &'static str,
        /// What to set.
        remedy: &'static str,
    },
    /// Two values that are unsafe together.
    #[error("{first} with {second}: {reason}; {remedy}")]
    Unsafe {
        /// One key and its value.
        first: String,
        /// The other.
        second: String,
        /// What could go wrong.
        reason: &'static str,
        /// What to set.
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
        /// What rests on it, and what to use instead if there is something.
        reason: &'static str,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`dashi config show` lists all there are".to_owned(),
    }
}
