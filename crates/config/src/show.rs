//! The output of `dashi config show`: every value with its origin, no secret.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::json;

use super::{layer::Loaded, schema::Schema, secret::printable};

impl Loaded {
    /// The settings as TOML, each with its origin in a comment; secrets and passwords are redacted.
    pub fn show(&self) -> String {
        let schema = Schema::compiled_in();
        // The empty section sorts first, as TOML needs it.
        let mut sections: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
        for (key, entry) in &self.entries {
            let (section, name) = match schema.in_open(key) {
                Some((section, name)) => (section, toml::Value::String(name.to_owned()).to_string()),
                None => match key.rsplit_once('.') {
                    Some((section, name)) => (section, name.to_owned()),
                    None => ("", key.clone()),
                },
            };
            let value = printable(key, &entry.value);
            sections
                .entry(section)
                .or_default()
                .push((format!("{name} = {value}"), entry.origin.to_string()));
        }
        let width = sections
            .values()
            .flatten()
            .map(|(setting, _)| setting.chars().count())
            .max()
            .unwrap_or_default()
            .min(60);
        let mut text = String::new();
        for (section, settings) in sections {
            if !section.is_empty() {
                let _ = writeln!(text, "\n[{section}]");
            }
            for (setting, origin) in settings {
                let _ = writeln!(text, "{setting:width$}  # {origin}");
            }
        }
        if !self.unused_umami_env().is_empty() {
            let _ = writeln!(text, "\n# Umami's variables that are set and have no effect here:");
        }
        for (name, reason) in self.unused_umami_env() {
            let _ = writeln!(text, "#   {name}: {reason}");
        }
        text
    }

    /// The settings as JSON: `{"KEY": {"value": …, "origin": "…"}}`, by full key; secrets and passwords are
    /// redacted. A key in `in_force` also has the member `in_force`, the effect that its value has.
    pub fn show_json(&self, in_force: &[(&str, &str)]) -> String {
        let settings: serde_json::Map<String, serde_json::Value> = self
            .entries
            .iter()
            .map(|(key, entry)| {
                let value = printable(key, &entry.value);
                let mut shown = json!({ "value": value, "origin": entry.origin.to_string() });
                if let Some((_, in_force)) = in_force.iter().find(|(of, _)| of == key) {
                    shown["in_force"] = json!(in_force);
                }
                (key.clone(), shown)
            })
            .collect();
        format!("{:#}", serde_json::Value::Object(settings))
    }
}

#[cfg(test)]
mod tests {
    use crate::{FlagValue, Layers, Loaded, load};

    fn loaded() -> Loaded {
        let env = [
            ("APP_SECRET", "hunter2"),
            ("DATABASE_URL", "postgres://u:hunter2@h/d"),
            ("DASHI_API_KEYS", "hunter2-hunter2-hunter2"),
            ("DASHI_KAFKA_PROPERTIES", "sasl.password=hunter2,security.protocol=ssl"),
        ];
        load(Layers {
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            flags: vec![FlagValue { key: "listen", value: "[::]:80".into(), flag: "--listen" }],
            ..Layers::default()
        })
        .unwrap()
    }

    #[test]
    fn every_setting_is_shown_with_its_origin_and_no_secret() {
        let shown = loaded().show();
        let line = |key: &str| {
            let line = shown.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("listen"), "listen = \"[::]:80\" # flag --listen");
        assert_eq!(line("secret"), "secret = \"redacted\" # env APP_SECRET");
        assert_eq!(line("store"), "store = \"postgres://u:redacted@h/d\" # env DATABASE_URL");
        assert_eq!(line("keys"), "keys = \"redacted\" # env DASHI_API_KEYS");
        assert_eq!(line("grace_ms"), "grace_ms = 25000 # default");
        assert_eq!(
            line("\"sasl.password\""),
            "\"sasl.password\" = \"redacted\" # env DASHI_KAFKA_PROPERTIES"
        );
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn what_is_shown_is_a_settings_file() {
        let shown: toml::Table = loaded().show().parse().unwrap();
        assert_eq!(shown["kafka"]["properties"]["security.protocol"].as_str(), Some("ssl"));
        assert_eq!(shown["ingest"]["in_flight_max"].as_integer(), Some(4096));
        // An empty secret shows that none is set.
        assert!(load(Layers::default()).unwrap().show().contains("secret = \"\" "));
    }

    #[test]
    fn json_has_value_and_origin_by_full_key() {
        let text = loaded().show_json(&[("timezone", "UTC, for it is")]);
        assert!(!text.contains("hunter2"));
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["ingest.in_flight_max"]["value"], 4096);
        assert_eq!(shown["ingest.in_flight_max"]["origin"], "default");
        assert_eq!(shown["timezone"]["in_force"], "UTC, for it is");
        assert_eq!(shown["listen"]["in_force"], serde_json::Value::Null);
        assert_eq!(shown["kafka.properties.security.protocol"]["value"], "ssl");
    }
}
