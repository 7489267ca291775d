//! The layers of settings (defaults, file, environment, flags) and the origin of each value.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    env_file,
    error::ConfigError,
    origin::Origin,
    schema::{KeyRole, Schema, join},
    settings::Settings,
    umami_env::{ALIASES, OPENTELEMETRY, SECRET_FALLBACK, UNUSED},
};

/// Prefix of our environment variables.
const PREFIX: &str = "DASHI_";

/// The layers above the defaults. The caller reads the environment and passes it in.
#[derive(Default)]
pub struct Layers<'a> {
    /// The file of `--config`.
    pub file: Option<&'a Path>,
    /// The file of `--env-file`.
    pub env_file: Option<&'a Path>,
    /// The environment: names and values (those that are UTF-8).
    pub env: Vec<(String, String)>,
    /// Flags that were given.
    pub flags: Vec<FlagValue>,
}

/// A flag that sets a setting.
pub struct FlagValue {
    /// The setting.
    pub key: &'static str,
    /// The text that was given, read by the setting's type.
    pub value: String,
    /// The flag as it is typed, such as `--listen`.
    pub flag: &'static str,
}

/// Settings with the origin of each value.
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    pub(super) entries: Entries,
    unused: Vec<&'static (&'static str, &'static str)>,
}

impl Loaded {
    /// Umami's variables that are set and have no effect here, each with the reason.
    pub fn unused_umami_env(&self) -> &[&'static (&'static str, &'static str)] {
        &self.unused
    }

    /// The origin of the value of `key`; `None` if there is no such setting. The key of a property of librdkafka is
    /// `kafka.properties.` and its name.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.entries.get(key).map(|entry| &entry.origin)
    }
}

/// Prints as [`Loaded::show`] does, without secrets.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

/// The value of one setting, and where it came from.
pub(super) struct SettingEntry {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// Settings by key; laying one over another is `extend`.
pub(super) type Entries = BTreeMap<String, SettingEntry>;

/// Lays the file over the defaults, the environment over the file and the flags over the environment.
///
/// # Errors
/// The first layer or setting that cannot be used: an unreadable file, an unknown name, a value of the wrong type. None is
/// ignored, so a misspelt setting never goes unnoticed.
pub fn load(layers: Layers<'_>) -> Result<Loaded, ConfigError> {
    let schema = Schema::compiled_in();
    let mut entries: Entries = schema
        .leaves()
        .iter()
        .map(|(key, value)| (key.clone(), SettingEntry { value: value.clone(), origin: Origin::Default }))
        .collect();
    if let Some(path) = layers.file {
        entries.extend(from_file(&schema, path)?);
    }
    let env = Environment::read(layers.env_file, layers.env)?;
    entries.extend(from_aliases(&schema, &env)?);
    entries.extend(from_env(&schema, &env)?);
    for FlagValue { key, value, flag } in layers.flags {
        let origin = Origin::Flag(flag);
        entries.extend(with_origin(schema.parse(key, &value, &origin)?, &origin));
    }
    fall_back_for_the_secret(&mut entries, &env);
    let settings = schema.assemble(entries.iter().map(|(key, entry)| (key, &entry.value)));
    let unused = UNUSED.iter().filter(|(name, _)| env.get(name).is_some()).collect();
    Ok(Loaded { settings, entries, unused })
}

/// Variables by name, each with the file that it comes from, if any. Empty variables are left out.
struct Environment(BTreeMap<String, (String, Option<PathBuf>)>);

impl Environment {
    /// The process's own variables over those of the file.
    fn read(file: Option<&Path>, own: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let mut variables = BTreeMap::new();
        if let Some(path) = file {
            for (name, value) in variables_of(path)? {
                variables.insert(name, (value, Some(path.to_owned())));
            }
        }
        variables.extend(
            own.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, (value, None))),
        );
        variables.retain(|_, (value, _)| !value.is_empty());
        Ok(Self(variables))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    fn origin(&self, name: &str) -> Origin {
        match self.0.get(name) {
            Some((_, Some(path))) => Origin::EnvFile(name.to_owned(), path.clone()),
            _ => Origin::Env(name.to_owned()),
        }
    }
}

/// The variables of a file.
fn variables_of(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let failed = |reason: String| ConfigError::EnvFile { path: path.to_owned(), reason };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let variables = env_file::parse(&text);
    for variable in &variables {
        let text_matters = SECRETS.contains(&variable.name.as_str());
        if text_matters && env_file::would_be_expanded(&variable.value) {
            return Err(failed(format!(
                "line {}: the value of {} has a $ before a name. Umami may replace it by a variable, and here the \
                 exact text matters, because session ids are made from it: set {} in the environment, as Umami sees it",
                variable.line, variable.name, variable.name
            )));
        }
        if is_read_elsewhere(&variable.name) {
            return Err(failed(format!(
                "line {}: {} has no effect in such a file; use the flag --config or the environment",
                variable.line, variable.name
            )));
        }
    }
    Ok(variables.into_iter().map(|variable| (variable.name, variable.value)).collect())
}

/// Variables whose text makes the secret.
const SECRETS: &[&str] = &["APP_SECRET", "DATABASE_URL", "DASHI_SECRET"];

fn from_file(schema: &Schema, path: &Path) -> Result<Entries, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::FileUnread { path: path.to_owned(), source })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError::FileSyntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().to_owned(),
        }
    })?;
    let mut entries = Entries::new();
    walk(schema, "", table, &Origin::File(path.to_owned()), &mut entries)?;
    Ok(entries)
}

fn walk(
    schema: &Schema,
    section: &str,
    table: Table,
    origin: &Origin,
    entries: &mut Entries,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = join(section, &name);
        match (schema.role(&key), value) {
            (KeyRole::Setting, value) => {
                schema.admit(&key, &value, origin)?;
                entries.insert(key, SettingEntry { value, origin: origin.clone() });
            }
            (KeyRole::Section, Value::Table(inner)) => walk(schema, &key, inner, origin, entries)?,
            (KeyRole::OpenSection, Value::Table(inner)) => walk_open(schema, &key, inner, origin, entries)?,
            (KeyRole::Section | KeyRole::OpenSection, value) => {
                return Err(schema.wrong_type(&key, &value, origin, ""));
            }
            // Its first key suggests more than its name: `[kafak] group` is similar to `kafka.group`.
            (KeyRole::Unknown, Value::Table(inner)) if !inner.is_empty() => {
                walk(schema, &key, inner, origin, entries)?
            }
            (KeyRole::Unknown, _) => return Err(schema.unknown_key(&key, origin)),
        }
    }
    Ok(())
}

/// Reads an open section: any name, each with a text. `security.protocol = …` without quotes is a table in TOML; its dots
/// become a part of the name again.
fn walk_open(
    schema: &Schema,
    section: &str,
    table: Table,
    origin: &Origin,
    entries: &mut Entries,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = join(section, &name);
        let text = match value {
            Value::Table(inner) => {
                walk_open(schema, &key, inner, origin, entries)?;
                continue;
            }
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(flag) => flag.to_string(),
            other => return Err(schema.wrong_type(&key, &other, origin, "")),
        };
        entries.insert(key, SettingEntry { value: Value::String(text), origin: origin.clone() });
    }
    Ok(())
}

fn from_aliases(schema: &Schema, env: &Environment) -> Result<Entries, ConfigError> {
    let mut entries = Entries::new();
    let ours = |key: &str| env.get(&super::schema::variable(key)).is_some();
    for alias in ALIASES.iter().chain(OPENTELEMETRY).filter(|alias| !ours(alias.key)) {
        if let Some(text) = env.get(alias.name).and_then(|value| (alias.read)(value)) {
            let origin = env.origin(alias.name);
            entries.extend(with_origin(schema.parse(alias.key, &text, &origin)?, &origin));
        }
    }
    Ok(entries)
}

fn from_env(schema: &Schema, env: &Environment) -> Result<Entries, ConfigError> {
    let variables = schema.variables();
    let mut entries = Entries::new();
    for (name, (value, _)) in env.0.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        if let Some(key) = variables.get(name) {
            let origin = env.origin(name);
            entries.extend(with_origin(schema.parse(key, value, &origin)?, &origin));
        } else if !is_read_elsewhere(name) && !is_service_link(name, value) {
            return Err(schema.unknown_variable(name));
        }
    }
    Ok(entries)
}

/// Whether a variable of ours is no setting: `DASHI_CONFIG` names the file of `--config`, the others are for the tests.
fn is_read_elsewhere(name: &str) -> bool {
    name == "DASHI_CONFIG" || name.starts_with("DASHI_TEST_")
}

/// Whether Kubernetes or a Docker link made the variable, as they do for every service whose name begins with "dashi":
/// `DASHI_SERVICE_HOST`, `DASHI_COLLECTOR_PORT=tcp://10.0.0.7:8484`, `DASHI_PORT_8484_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    value.starts_with("tcp://")
        || value.starts_with("udp://")
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.contains("_PORT_") && (name.contains("_TCP_") || name.contains("_UDP_")))
}

fn with_origin(values: Vec<(String, Value)>, origin: &Origin) -> Entries {
    values.into_iter().map(|(key, value)| (key, SettingEntry { value, origin: origin.clone() })).collect()
}

/// Takes `DATABASE_URL` as the secret if there is no other, as Umami does without `APP_SECRET`; so a switch from such an
/// Umami keeps ids and tokens.
fn fall_back_for_the_secret(entries: &mut Entries, env: &Environment) {
    let is_empty = entries.get("secret").is_none_or(|entry| entry.value.as_str() == Some(""));
    if let Some(text) = env.get(SECRET_FALLBACK).filter(|_| is_empty) {
        let origin = env.origin(SECRET_FALLBACK);
        entries.insert("secret".to_owned(), SettingEntry { value: Value::String(text.to_owned()), origin });
    }
}

#[cfg(test)]
mod tests;
