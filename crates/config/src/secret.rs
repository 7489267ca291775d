//! Values that must not be printed.

use std::fmt;

pub(super) use dashi_store::{REDACTED, redact_url};
use serde::Deserialize;

/// A value that prints as `redacted`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps `value`.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// The setting's value with secrets and the passwords in URLs redacted.
pub(super) fn printable(key: &str, value: &toml::Value) -> toml::Value {
    let text = match value {
        toml::Value::String(text) => text,
        // A secret of the wrong type is still a secret.
        _ if is_secret(key) => return toml::Value::String(REDACTED.to_owned()),
        _ => return value.clone(),
    };
    let shown = match key {
        _ if text.is_empty() => String::new(),
        "log" | "store" | "tracing.otlp_endpoint" => redact_url(text),
        _ if is_secret(key) => REDACTED.to_owned(),
        _ => text.clone(),
    };
    toml::Value::String(shown)
}

/// Whether the whole value is a secret. Of librdkafka's settings those that carry a password, a key or a token are; all of
/// `kafka.properties` in one text may hold one.
fn is_secret(key: &str) -> bool {
    const SECRET_WORDS: [&str; 6] = ["password", "secret", ".pem", "oauthbearer.config", "jaas", "token"];
    match key.strip_prefix("kafka.properties") {
        Some("") => true,
        Some(property) => {
            let property = property.to_ascii_lowercase();
            SECRET_WORDS.iter().any(|word| property.contains(word)) && !property.ends_with(".location")
        }
        None => matches!(key, "secret" | "api.keys" | "profiles.identity_key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret} {secret:?}"), "redacted redacted");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn settings_that_are_secrets_print_redacted_unless_they_are_empty() {
        for key in ["secret", "api.keys", "profiles.identity_key"] {
            let shown = |text: &str| printable(key, &toml::Value::String(text.to_owned()));
            assert_eq!(shown("hunter2").as_str(), Some(REDACTED), "{key}");
            assert_eq!(shown("").as_str(), Some(""), "{key}");
        }
    }

    #[test]
    fn properties_that_carry_credentials_are_secret() {
        for property in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "SASL.Password",
        ] {
            assert!(is_secret(&format!("kafka.properties.{property}")), "{property}");
        }
        for property in ["sasl.username", "security.protocol", "ssl.ca.location"] {
            assert!(!is_secret(&format!("kafka.properties.{property}")), "{property}");
        }
    }
}
