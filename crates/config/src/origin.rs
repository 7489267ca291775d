//! Origins of settings.

use std::{fmt, path::PathBuf};

/// The layer that gave a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `config/default.toml`.
    Default,
    /// The file of `--config`.
    File(PathBuf),
    /// An environment variable, ours or Umami's.
    Env(String),
    /// A variable in the file of `--env-file`.
    EnvFile(String, PathBuf),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::EnvFile(name, path) => write!(f, "env {name} in {}", path.display()),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}
