//! The parts that the schemas of all endpoints share: the tree of errors that a client reads, and the rules of UUIDs
//! and times.
//!
//! The rules are those of Umami's schemas (docs/umami-contract.md §2, §3.3 and §14), the texts those of zod 4.3,
//! compared with zod itself when this was written.

use std::borrow::Cow;
use std::fmt;

use uuid::Uuid;

use crate::json::{self, Value};

/// The largest integer JavaScript counts as safe, 2^53 - 1. zod accepts none beyond it, nor below its
/// negative.
const SAFE_INTEGER_MAX: i64 = 9_007_199_254_740_991;

/// The last second a JavaScript `Date` can hold, inclusive (ECMA-262, time values).
const TIMESTAMP_MAX: i64 = 8_640_000_000_000;

/// The first second a PostgreSQL `timestamptz` can hold, inclusive: 24 November 4714 BC, Julian day 0.
const TIMESTAMP_MIN: i64 = -210_866_803_200;

/// The last millisecond a JavaScript `Date` can hold, inclusive (ECMA-262, time values).
pub(crate) const TIME_MS_MAX: f64 = 8.64e15;

/// The first millisecond a PostgreSQL `timestamptz` can hold, inclusive.
pub(crate) const TIME_MS_MIN: f64 = TIMESTAMP_MIN as f64 * 1_000.0;

pub(crate) const BAD_UUID: &str = "Invalid UUID";

/// A body that does not fit the schema; the client gets a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("body does not fit the schema: {0}")]
pub struct SchemaError(pub(crate) Node);

impl SchemaError {
    /// The same refusal without its reasons, for where nobody will read them.
    #[must_use]
    pub fn without_reasons(self) -> Self {
        Self(Node::default())
    }

    /// One of a few names for the type of a submission whose type is not known.
    pub fn unknown_kind(&self) -> Option<&'static str> {
        self.0.unknown_kind
    }

    /// The whole answer, as JSON.
    ///
    /// `{"error":{"message":"Bad request","code":"bad-request","status":400,"errors":[…],"properties":{…}}}`,
    /// where `properties` is left out if there are none and a batch has `items`. Source:
    /// docs/umami-contract.md §3.3.
    pub fn to_json(&self) -> String {
        let mut out = String::from(r#"{"error":{"message":"Bad request","code":"bad-request","status":400,"#);
        self.0.write_members(&mut out);
        out.push_str("}}");
        out
    }
}

/// One level of zod's error tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Node {
    pub(crate) errors: Vec<Cow<'static, str>>,
    pub(crate) properties: Vec<(&'static str, Node)>,
    /// By index, ascending; the items between have no error and are written as `null`.
    pub(crate) items: Vec<(usize, Node)>,
    /// Of a whole submission: that its type is not known, by one of a few names. It is not written.
    pub(crate) unknown_kind: Option<&'static str>,
}

impl Node {
    pub(crate) fn leaf(error: impl Into<Cow<'static, str>>) -> Self {
        Self { errors: vec![error.into()], ..Self::default() }
    }

    /// Adds `error` to the subtree of `field`, which keeps its place if it is there already.
    pub(crate) fn add(&mut self, field: &'static str, error: impl Into<Cow<'static, str>>) {
        match self.properties.iter_mut().find(|(name, _)| *name == field) {
            Some((_, node)) => node.errors.push(error.into()),
            None => self.properties.push((field, Self::leaf(error))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty() && self.properties.is_empty() && self.items.is_empty()
    }

    /// Appends the node as members of an object whose braces the caller writes.
    fn write_members(&self, out: &mut String) {
        out.push_str("\"errors\":[");
        for (place, error) in self.errors.iter().enumerate() {
            out.push_str(if place > 0 { "," } else { "" });
            json::write_string(error, out);
        }
        out.push(']');
        if !self.properties.is_empty() {
            out.push_str(",\"properties\":{");
            for (place, (name, node)) in self.properties.iter().enumerate() {
                out.push_str(if place > 0 { "," } else { "" });
                json::write_string(name, out);
                out.push_str(":{");
                node.write_members(out);
                out.push('}');
            }
            out.push('}');
        }
        if !self.items.is_empty() {
            out.push_str(",\"items\":[");
            let mut next = 0;
            for (index, node) in &self.items {
                out.push_str(if next > 0 { "," } else { "" });
                out.push_str(&"null,".repeat(index - next));
                out.push('{');
                node.write_members(out);
                out.push('}');
                next = index + 1;
            }
            out.push(']');
        }
    }

    /// Writes `path: error; error; path: error …`.
    fn describe(&self, path: &str, out: &mut fmt::Formatter<'_>, first: &mut bool) -> fmt::Result {
        for error in &self.errors {
            let separator = if *first { "" } else { "; " };
            *first = false;
            let colon = if path.is_empty() { "" } else { ": " };
            write!(out, "{separator}{path}{colon}{error}")?;
        }
        let dot = if path.is_empty() { "" } else { "." };
        for (name, node) in &self.properties {
            node.describe(&format!("{path}{dot}{name}"), out, first)?;
        }
        for (index, node) in &self.items {
            node.describe(&format!("{path}[{index}]"), out, first)?;
        }
        Ok(())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("", out, &mut true)
    }
}

/// Why a value is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The text for the client.
    pub(crate) error: String,
    /// Whether the value has the wrong type; zod then skips rules about the whole object.
    pub(crate) is_of_type: bool,
}

/// Whole seconds by JavaScript's `Number()`.
///
/// # Errors
/// It is no whole number, or none that PostgreSQL and a JavaScript date can both hold.
pub(crate) fn seconds(value: &Value<'_>) -> Result<i64, Refusal> {
    let number = integer(value)?;
    let of_size = |error| Refusal { error, is_of_type: false };
    if let Some(max) = [SAFE_INTEGER_MAX, TIMESTAMP_MAX].into_iter().find(|max| number > *max as f64) {
        return Err(of_size(format!("Too big: expected int to be <={max}")));
    }
    if let Some(min) = [-SAFE_INTEGER_MAX, TIMESTAMP_MIN].into_iter().find(|min| number < *min as f64) {
        return Err(of_size(format!("Too small: expected int to be >={min}")));
    }
    Ok(number as i64)
}

/// A whole number by JavaScript's `Number()`; it may still be too large for anything.
///
/// # Errors
/// It is none.
pub(crate) fn integer(value: &Value<'_>) -> Result<f64, Refusal> {
    let number = value.to_number();
    let of_type = |error| Refusal { error, is_of_type: true };
    if !number.is_finite() {
        // zod looks at the coerced value and has a name of its own for NaN, but none for infinity.
        return Err(of_type(wrong_type("number", if number.is_nan() { "NaN" } else { "number" })));
    }
    if number.fract() != 0.0 {
        return Err(of_type(wrong_type("int", "number")));
    }
    Ok(number)
}

pub(crate) fn wrong_type(expected: &str, received: &str) -> String {
    format!("Invalid input: expected {expected}, received {received}")
}

/// Reads a UUID by zod's rule: 8-4-4-4-12 hexadecimal digits of any case, version 1 to 8 and variant 8, 9, a
/// or b; or the nil UUID, or the max UUID in lower case.
pub(crate) fn parse_uuid(text: &str) -> Option<Uuid> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 {
        return None;
    }
    let mut id = 0_u128;
    for (place, byte) in bytes.iter().enumerate() {
        if let 8 | 13 | 18 | 23 = place {
            if *byte != b'-' {
                return None;
            }
        } else {
            id = (id << 4) | u128::from(char::from(*byte).to_digit(16)?);
        }
    }
    let ordinary =
        matches!(bytes[14], b'1'..=b'8') && matches!(bytes[19], b'8' | b'9' | b'a' | b'b' | b'A' | b'B');
    let extreme = id == 0 || (id == u128::MAX && bytes.iter().all(|byte| *byte != b'F'));
    (ordinary || extreme).then(|| Uuid::from_u128(id))
}
