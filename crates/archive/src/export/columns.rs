//! The values of a record that have columns of their own. They are read from the record's JSON, so a record of a type that
//! this program does not know has them, too.
#![cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "only Parquet files have all columns"))]

use std::borrow::Cow;

use dashi_domain::json::{self, Object, Value};
use dashi_domain::record::created_at_ms;
use uuid::Uuid;

/// The parsed value of a record; empty if it is no JSON object.
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    envelope: Object<'a>,
    payload: Object<'a>,
}

/// Where a column's text lies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// In the record itself.
    Envelope(&'static str),
    /// In its payload.
    Payload(&'static str),
    /// The first of these in its payload.
    FirstOf(&'static [&'static str]),
}

/// Members of the payload that name its website, link or pixel.
const SOURCES: &[&str] = &["website", "link", "pixel"];

/// Columns of text, in the order of the file.
pub(super) const TEXTS: [(&str, Origin); 20] = [
    ("event_id", Origin::Envelope("id")),
    ("website_id", Origin::FirstOf(SOURCES)),
    ("session_id", Origin::Envelope("session")),
    ("visit_id", Origin::Envelope("visit")),
    ("type", Origin::Envelope("type")),
    ("name", Origin::Payload("name")),
    ("url", Origin::Payload("url")),
    ("referrer", Origin::Payload("referrer")),
    ("title", Origin::Payload("title")),
    ("hostname", Origin::Payload("hostname")),
    ("language", Origin::Payload("language")),
    ("screen", Origin::Payload("screen")),
    ("tag", Origin::Payload("tag")),
    ("agent", Origin::Envelope("agent")),
    ("country", Origin::Envelope("country")),
    ("region", Origin::Envelope("region")),
    ("city", Origin::Envelope("city")),
    ("distinct_id", Origin::Payload("id")),
    ("device", Origin::Envelope("device")),
    ("data", Origin::Payload("data")),
];

impl<'a> Columns<'a> {
    pub(super) fn of(value: &'a [u8]) -> Self {
        let Ok(Value::Object(mut envelope)) = json::parse(value) else { return Self::default() };
        let payload = match envelope.remove("payload") {
            Some(Value::Object(payload)) => payload,
            _ => Object::default(),
        };
        Self { envelope, payload }
    }

    /// The website, link or pixel.
    pub(super) fn source_id(&self) -> Option<Uuid> {
        self.text(Origin::FirstOf(SOURCES))?.parse().ok()
    }

    /// A column's text: a string's characters, any other value as JSON.
    pub(super) fn text(&self, origin: Origin) -> Option<Cow<'_, str>> {
        let value = match origin {
            Origin::Envelope(member) => self.envelope.get(member),
            Origin::Payload(member) => self.payload.get(member),
            Origin::FirstOf(members) => members.iter().find_map(|member| self.payload.get(member)),
        };
        match value? {
            Value::Null => None,
            Value::String(text) => Some(Cow::Borrowed(text)),
            other => Some(Cow::Owned(other.to_json())),
        }
    }

    /// When the collector had the event, milliseconds since 1970.
    pub(super) fn received_at_ms(&self) -> Option<i64> {
        whole(self.envelope.get("at")?)
    }

    /// When the event happened, milliseconds since 1970: its own time if it has one.
    pub(super) fn created_at_ms(&self) -> Option<i64> {
        let own = self.payload.get("timestamp").and_then(whole);
        Some(created_at_ms(own, self.received_at_ms()?))
    }
}

/// A whole number that is a moment in seconds or milliseconds.
fn whole(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Number(number) if number.fract() == 0.0 && number.abs() <= 8.64e15 => Some(*number as i64),
        _ => None,
    }
}
