//! The vectors recorded from Umami: what it computed, stored and answered for given requests.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::settings::repository;

/// Everything in `umami-vectors.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    /// How they were recorded.
    pub about: String,
    /// Session and visit ids.
    pub ids: Vec<IdVector>,
    /// Requests and their rows in `website_event`.
    pub events: Vec<EventVector>,
    /// Requests with data and their rows in `event_data`, `session_data` and `revenue`.
    pub data: Vec<DataVector>,
    /// The detected browser, OS and device of each user agent, by a name for it.
    pub user_agents: BTreeMap<String, UserAgentVector>,
}

/// The ids of one request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdVector {
    /// The special case that it shows.
    pub note: String,
    /// The value of `APP_SECRET`.
    pub secret_input: String,
    /// The website's id.
    pub source_id: String,
    /// The client's address.
    pub ip: Option<String>,
    /// The user agent.
    pub user_agent: Option<String>,
    /// When it was received, in seconds since 1970.
    pub timestamp: i64,
    /// The `id` that the client sent.
    pub distinct_id: Option<String>,
    /// `month`, `day`, …
    pub salt_rotation: String,
    /// The time zone of the server.
    pub tz: String,
    /// The date that went into the session's salt.
    pub session_salt_date: Option<String>,
    /// The date that went into the visit's salt.
    pub visit_salt_date: String,
    /// The session's id.
    pub session_id: String,
    /// The visit's id.
    pub visit_id: String,
}

/// One request and its row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventVector {
    /// The request's `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request's `payload`, without `website`.
    pub payload: Value,
    /// The answer's status.
    pub status: u16,
    /// Columns of `website_event` by name, if a row was stored.
    pub row: Option<Map<String, Value>>,
}

/// One request's data and its rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataVector {
    /// The request's `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The payload's `data`.
    pub data: Value,
    /// The answer's status.
    pub status: u16,
    /// Columns of `event_data` or `session_data` by name.
    pub rows: Vec<Map<String, Value>>,
    /// Columns of `revenue` by name.
    pub revenue: Vec<Map<String, Value>>,
}

/// The detection of a user agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserAgentVector {
    /// The header's value.
    #[serde(rename = "userAgent")]
    pub user_agent: String,
    /// Whether it is a robot, whose events are dropped.
    #[serde(rename = "isBot")]
    pub is_bot: bool,
    /// The browser's name.
    pub browser: Option<String>,
    /// The operating system's name.
    pub os: Option<String>,
    /// The device without a screen size.
    pub device_no_screen: String,
    /// The device with the screen `1920x1080`.
    pub device_1920x1080: String,
    /// The device with the screen `2560x1440`.
    pub device_2560x1440: String,
}

/// Reads the vectors.
pub fn load() -> Vectors {
    let path = repository().join("crates/domain/tests/vectors/umami-vectors.json");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read the vectors {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
