//! Settings: read from four layers, printed with their origins, checked before anything starts.
//!
//! `config/default.toml` is the schema and the documentation of every setting. Nothing here reads the
//! environment or a clock: the caller passes the environment in.
//!
//! ```text
//! Layers (file, environment, flags) --load--> Loaded --check--> Settings that may run
//! ```

mod check;
mod env_file;
mod error;
mod layer;
mod origin;
mod schema;
mod secret;
mod settings;
mod show;
mod umami_env;
mod url;

pub use check::{API_KEY_CHARS_MIN, IDENTITY_KEY_CHARS_MIN, PARTITIONS_MAX, ServedPaths, Warning, check};
pub use error::ConfigError;
pub use layer::{FlagValue, Layers, Loaded, load};
pub use origin::Origin;
pub use settings::{
    BacklogPolicy, IdentifiedSessions, LogFormat, Logs, SaltRotation, Settings, Tracing, UmamiRelease,
};
pub use url::{LogUrl, StoreUrl, parse_log_url, parse_store_url};
