//! Websites, links and pixels: all that a collector reads of the store.

use dashi_domain::json::{self, Value};
use uuid::Uuid;

use crate::Recorder;

/// A website that takes events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Website {
    /// The id that trackers send.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// Its host, for people; at most 500 characters.
    pub domain: Option<String>,
    /// Milliseconds since 1970.
    pub created_at_ms: Option<i64>,
    /// Its recorder settings.
    pub recorder: Recorder,
    /// Addresses and networks whose visits it does not want, as its owner entered them.
    pub blocked_addresses: Vec<String>,
}

/// A website to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWebsite {
    /// See [`Website`].
    pub id: Uuid,
    /// See [`Website`].
    pub name: String,
    /// See [`Website`].
    pub domain: Option<String>,
}

/// A tracked redirect, `/q/{slug}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedLink {
    /// The id that its events are filed under.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// The last part of its path; unique among links, at most 100 characters.
    pub slug: String,
    /// Where it leads; at most 500 characters.
    pub url: String,
    /// Campaign parameters that its visits carry on.
    pub campaign: LinkCampaign,
}

/// Campaign parameters of a link, each at most 255 characters, never empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are the columns and the query parameters of the same names")]
pub struct LinkCampaign {
    pub utm_source: Option<String>,
    pub utm_medium: Option<String>,
    pub utm_campaign: Option<String>,
    pub utm_term: Option<String>,
    pub utm_content: Option<String>,
}

impl LinkCampaign {
    /// Names of columns and parameters, in the order of [`LinkCampaign::values`].
    pub const NAMES: [&'static str; 5] =
        ["utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"];

    /// The values in the order of [`LinkCampaign::NAMES`].
    pub fn values(&self) -> [Option<&str>; 5] {
        let Self { utm_source, utm_medium, utm_campaign, utm_term, utm_content } = self;
        [utm_source, utm_medium, utm_campaign, utm_term, utm_content].map(|value| value.as_deref())
    }

    /// A campaign of the values in the order of [`LinkCampaign::NAMES`]; empty ones count as none.
    pub fn of(values: [Option<String>; 5]) -> Self {
        let [utm_source, utm_medium, utm_campaign, utm_term, utm_content] =
            values.map(|value| value.filter(|value| !value.is_empty()));
        Self { utm_source, utm_medium, utm_campaign, utm_term, utm_content }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A tracking pixel, `/p/{slug}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixel {
    /// The id that its events are filed under.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// The last part of its path; unique among pixels, at most 100 characters.
    pub slug: String,
}

/// The entries of a column of addresses: a text of them, separated by commas or white space, or a JSON array of such
/// texts. Umami's versions have it either way.
pub(crate) fn addresses(column: Option<&str>) -> Vec<String> {
    let Some(text) = column else { return Vec::new() };
    let entries = |text: &str| -> Vec<String> {
        let parts = text.split(|c: char| c == ',' || c == ';' || c.is_whitespace());
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    match json::parse_str(text) {
        Ok(Value::Array(items)) => items.iter().filter_map(Value::as_str).flat_map(entries).collect(),
        Ok(Value::String(text)) => entries(&text),
        Ok(Value::Null) => Vec::new(),
        _ => entries(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_however_a_version_writes_them() {
        let both = ["192.0.2.1", "2001:db8::/32"];
        for column in [
            "192.0.2.1,2001:db8::/32",
            "192.0.2.1\n2001:db8::/32 ",
            r#""192.0.2.1, 2001:db8::/32""#,
            r#"["192.0.2.1","2001:db8::/32"]"#,
            r#"["192.0.2.1\n2001:db8::/32",7,null]"#,
        ] {
            assert_eq!(addresses(Some(column)), both, "{column}");
        }
        for column in [None, Some(""), Some("null"), Some("[]"), Some("\"\"")] {
            assert!(addresses(column).is_empty(), "{column:?}");
        }
    }
}
