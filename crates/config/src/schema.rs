//! `config/default.toml` as the schema: the known keys, their types, and suggestions for unknown ones.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::{error::ConfigError, origin::Origin, secret::printable, settings::Settings};

/// The compiled-in defaults, with their documentation.
pub const DEFAULT_TOML: &str = include_str!("../../../config/default.toml");

/// Least likeness of a name that is suggested, from 0 to 1.
const LIKENESS_MIN: f64 = 0.6;

/// The environment variable that sets `key`: `ingest.in_flight_max` is `DASHI_INGEST_IN_FLIGHT_MAX`.
pub fn variable(key: &str) -> String {
    format!("DASHI_{}", key.to_uppercase().replace('.', "_"))
}

/// The keys of `config/default.toml`. A table that is empty there is an open section: it takes any name, with a text.
pub(super) struct Schema {
    defaults: Table,
    leaves: BTreeMap<String, Value>,
    sections: BTreeSet<String>,
    open: BTreeSet<String>,
}

/// The part that a key plays in a settings file.
pub(super) enum KeyRole {
    Setting,
    Section,
    /// A section that takes any name.
    OpenSection,
    /// There is no such key.
    Unknown,
}

impl Schema {
    pub(super) fn compiled_in() -> Self {
        let defaults = DEFAULT_TOML.parse().expect("default.toml is compiled in, and a test parses it");
        let mut schema = Self {
            defaults: Table::new(),
            leaves: BTreeMap::new(),
            sections: BTreeSet::new(),
            open: BTreeSet::new(),
        };
        schema.collect("", &defaults);
        schema.defaults = defaults;
        schema
    }

    fn collect(&mut self, section: &str, table: &Table) {
        for (name, value) in table {
            let key = join(section, name);
            match value {
                Value::Table(inner) if inner.is_empty() => {
                    self.open.insert(key);
                }
                Value::Table(inner) => {
                    self.collect(&key, inner);
                    self.sections.insert(key);
                }
                value => {
                    self.leaves.insert(key, value.clone());
                }
            }
        }
    }

    /// Every setting with its default, by key; open sections have none.
    pub(super) fn leaves(&self) -> &BTreeMap<String, Value> {
        &self.leaves
    }

    pub(super) fn role(&self, key: &str) -> KeyRole {
        if self.leaves.contains_key(key) {
            KeyRole::Setting
        } else if self.open.contains(key) {
            KeyRole::OpenSection
        } else if self.sections.contains(key) {
            KeyRole::Section
        } else {
            KeyRole::Unknown
        }
    }

    /// Every key that an environment variable sets, by the variable's name.
    pub(super) fn variables(&self) -> BTreeMap<String, &str> {
        self.leaves.keys().chain(&self.open).map(|key| (variable(key), key.as_str())).collect()
    }

    /// The open table that `key` lies in, and its name there.
    pub(super) fn in_open<'k>(&self, key: &'k str) -> Option<(&str, &'k str)> {
        self.open.iter().find_map(|open| {
            let name = key.strip_prefix(open.as_str())?.strip_prefix('.')?;
            Some((open.as_str(), name))
        })
    }

    /// Parses a text of the environment or of a flag by the type of the default. An open section gives as many settings
    /// as the text names.
    pub(super) fn parse(
        &self,
        key: &str,
        text: &str,
        origin: &Origin,
    ) -> Result<Vec<(String, Value)>, ConfigError> {
        let typed = match (self.role(key), self.leaves.get(key)) {
            (KeyRole::OpenSection, _) => {
                let pairs = split_pairs(text)
                    .ok_or_else(|| self.wrong_type(key, &Value::String(text.to_owned()), origin, ""))?;
                let entries =
                    pairs.into_iter().map(|(name, value)| (join(key, &name), Value::String(value))).collect();
                return Ok(entries);
            }
            (_, Some(Value::Integer(_))) => text.trim().parse().ok().map(Value::Integer),
            (_, Some(Value::Float(_))) => text.trim().parse().ok().map(Value::Float),
            (_, Some(Value::Boolean(_))) => text.trim().parse().ok().map(Value::Boolean),
            (_, Some(_)) => Some(Value::String(text.to_owned())),
            (_, None) => return Err(self.unknown_key(key, origin)),
        };
        let Some(value) = typed else {
            return Err(self.wrong_type(key, &Value::String(text.to_owned()), origin, ""));
        };
        self.admit(key, &value, origin)?;
        Ok(vec![(key.to_owned(), value)])
    }

    /// Checks that `value` alone fits the setting: the defaults with this value have to deserialise as [`Settings`].
    pub(super) fn admit(&self, key: &str, value: &Value, origin: &Origin) -> Result<(), ConfigError> {
        let mut table = self.defaults.clone();
        self.put(&mut table, key, value.clone());
        match table.try_into::<Settings>() {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.wrong_type(key, value, origin, refusal.message())),
        }
    }

    /// The defaults, overridden by `values`. Every value has been admitted.
    pub(super) fn assemble<'v>(&self, values: impl Iterator<Item = (&'v String, &'v Value)>) -> Settings {
        let mut table = self.defaults.clone();
        for (key, value) in values {
            self.put(&mut table, key, value.clone());
        }
        table.try_into().expect("each value was admitted by itself, and no field depends on another")
    }

    fn put(&self, table: &mut Table, key: &str, value: Value) {
        let (section, name) = self.in_open(key).unwrap_or_else(|| key.rsplit_once('.').unwrap_or(("", key)));
        let mut at = table;
        for part in section.split('.').filter(|part| !part.is_empty()) {
            let inner = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
            at = inner.as_table_mut().expect("sections of a known key are tables in default.toml");
        }
        at.insert(name.to_owned(), value);
    }

    pub(super) fn unknown_key(&self, key: &str, origin: &Origin) -> ConfigError {
        let known = self.leaves.keys().chain(&self.open).map(String::as_str);
        let nearest = nearest(key, known, '.');
        ConfigError::UnknownKey { origin: origin.clone(), key: key.to_owned(), nearest }
    }

    pub(super) fn unknown_variable(&self, name: &str) -> ConfigError {
        let variables = self.variables();
        let nearest = nearest(name, variables.keys().map(String::as_str), '\0');
        ConfigError::UnknownVariable { name: name.to_owned(), nearest }
    }

    /// `refusal` is the type's message about a value of the right TOML type, such as the words that it knows.
    pub(super) fn wrong_type(&self, key: &str, got: &Value, origin: &Origin, refusal: &str) -> ConfigError {
        let default = self.leaves.get(key);
        let expected = match default {
            Some(Value::Integer(default)) => format!("a whole number, such as {default}"),
            Some(Value::Float(default)) => format!("a number, such as {default}"),
            Some(Value::Boolean(_)) => "true or false".to_owned(),
            Some(default) if default.as_str() == Some("") => "a text in quotes".to_owned(),
            Some(default) => format!("a text, such as {default}"),
            None if matches!(self.role(key), KeyRole::OpenSection) => {
                "pairs `name=value,name=value`".to_owned()
            }
            None if matches!(self.role(key), KeyRole::Section) => {
                format!("a section [{key}] with settings in it")
            }
            None => "a text".to_owned(),
        };
        let expected = match default {
            Some(default) if default.same_type(got) && !refusal.is_empty() => {
                format!("{expected} ({refusal})")
            }
            _ => expected,
        };
        ConfigError::WrongType {
            origin: origin.clone(),
            key: key.to_owned(),
            expected,
            got: printable(key, got).to_string(),
        }
    }
}

/// `section.name`, or `name` at the top.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// `a=1,b=2`, where `\,` is a comma and `\\` a backslash inside a value; `None` if a part is no pair.
fn split_pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = match character {
            ',' => {
                parts.push(String::new());
                continue;
            }
            '\\' if matches!(characters.peek(), Some(',' | '\\')) => characters.next(),
            other => Some(other),
        };
        parts.last_mut()?.extend(part);
    }
    parts
        .iter()
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let name = name.trim();
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The known name whose last part is most similar to that of `name`, so that a key in the wrong section is found, too;
/// among equals the one that is most similar as a whole. Words in another order count as similar: `body_max_bytes`.
fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>, separator: char) -> Option<String> {
    let likeness = |a: &str, b: &str| {
        let as_written = strsim::normalized_damerau_levenshtein(a, b);
        as_written.max(strsim::normalized_damerau_levenshtein(&sorted_words(a), &sorted_words(b)))
    };
    let name = name.to_lowercase();
    known
        .map(|candidate| {
            let known = candidate.to_lowercase();
            let part = likeness(last_part(&name, separator), last_part(&known, separator));
            (part, likeness(&name, &known), candidate)
        })
        .filter(|(part, _, _)| *part >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .map(|(_, _, candidate)| candidate.to_owned())
}

fn last_part(name: &str, separator: char) -> &str {
    name.rsplit(separator).next().unwrap_or_default()
}

fn sorted_words(name: &str) -> String {
    let mut words: Vec<&str> = name.split(['_', '.']).collect();
    words.sort_unstable();
    words.join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_toml_is_exactly_the_settings() {
        let schema = Schema::compiled_in();
        assert!(schema.leaves.len() > 30);
        // All of it deserialises, so no key is unknown to the types; and without any one key it does not, so
        // every key is a field and no field has a default beside the file's.
        let _: Settings = schema.defaults.clone().try_into().unwrap();
        for key in schema.leaves.keys().chain(&schema.open) {
            let mut table = schema.defaults.clone();
            let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
            let mut at = &mut table;
            for part in section.split('.').filter(|part| !part.is_empty()) {
                at = at[part].as_table_mut().unwrap();
            }
            at.remove(name).unwrap();
            assert!(table.try_into::<Settings>().is_err(), "{key} is in default.toml, and no field needs it");
        }
    }

    #[test]
    fn every_key_and_section_of_default_toml_is_documented_above_it() {
        let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
        let mut keys = 0;
        for (at, line) in lines.iter().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys += usize::from(!line.starts_with('['));
            assert!(at > 0 && lines[at - 1].starts_with("# ") || lines[at - 1].starts_with("#   "), "{line}");
        }
        assert_eq!(keys, Schema::compiled_in().leaves.len());
    }

    #[test]
    fn every_key_has_a_variable_of_its_own() {
        let schema = Schema::compiled_in();
        assert_eq!(schema.variables().len(), schema.leaves.len() + schema.open.len());
        assert_eq!(variable("ingest.in_flight_max"), "DASHI_INGEST_IN_FLIGHT_MAX");
        assert_eq!(variable("log"), "DASHI_LOG");
        assert_eq!(schema.variables()["DASHI_EVENT_LOG_PARTITIONS"], "event_log.partitions");
        // These are read by others: `main` for the file, the tests for their servers.
        assert!(!schema.variables().contains_key("DASHI_CONFIG"));
        assert!(schema.variables().keys().all(|name| !name.starts_with("DASHI_TEST_")));
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let schema = Schema::compiled_in();
        let suggested = |key: &str| match schema.unknown_key(key, &Origin::Default) {
            ConfigError::UnknownKey { nearest, .. } => nearest,
            other => panic!("{other}"),
        };
        assert_eq!(suggested("listn").as_deref(), Some("listen"));
        assert_eq!(suggested("ingest.body_max_bytes").as_deref(), Some("ingest.body_bytes_max"));
        assert_eq!(suggested("kafak.group").as_deref(), Some("kafka.group"));
        assert_eq!(suggested("ingest.partitions").as_deref(), Some("event_log.partitions"));
        assert_eq!(suggested("statement_timeout_ms").as_deref(), Some("database.statement_timeout_ms"));
        assert_eq!(suggested("zzzzzzzzzzzzzzzz"), None);
    }

    #[test]
    fn pairs_may_hold_commas_backslashes_and_equal_signs() {
        let pairs = |text: &str| split_pairs(text).map(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>());
        let found = pairs(r"a.b=1, sasl.password=p\,q\\=r\s,,").unwrap();
        assert_eq!(found["a.b"], "1");
        assert_eq!(found["sasl.password"], r"p,q\=r\s");
        assert_eq!(found.len(), 2);
        assert_eq!(pairs("a.b"), None);
        assert_eq!(pairs("=b"), None);
    }
}
