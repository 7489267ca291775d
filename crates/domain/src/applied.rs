//! Applied events in a few words, for people who watch them arrive.

use std::collections::HashMap;

use uuid::Uuid;

use crate::fold::Changes;
use crate::rows::EventType;
use crate::session::SessionAttributes;

/// An event whose rows are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedEvent {
    /// Its id.
    pub event_id: Uuid,
    /// Website, link or pixel.
    pub website_id: Uuid,
    /// Its session.
    pub session_id: Uuid,
    /// When it happened, milliseconds since 1970.
    pub created_at_ms: i64,
    /// `view`, `event`, `link`, `pixel`, `performance` or `identify`.
    pub kind: &'static str,
    /// The page's path; empty of an identify.
    pub path: String,
    /// The custom event's name.
    pub name: Option<String>,
    /// Where and with what, by the first event of its session in this batch.
    pub attributes: SessionAttributes,
}

/// The events of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppliedEvents {
    /// All of them.
    pub count: u64,
    /// The last of them by time, oldest first, at most as many as were asked for.
    pub last: Vec<AppliedEvent>,
}

impl AppliedEvents {
    /// Those of these changes, which are committed. At most `max` of them are described.
    pub fn of(changes: &Changes, max: usize) -> Self {
        let count = (changes.events.len() + changes.identifies.len()) as u64;
        let sessions: HashMap<Uuid, &SessionAttributes> =
            changes.sessions.iter().map(|session| (session.session_id, &session.attributes)).collect();
        let attributes = |session: Uuid| sessions.get(&session).copied().cloned().unwrap_or_default();
        // The rows of a batch are in the order of the log: the last ones are there at its end.
        let events = changes.events.iter().rev().take(max).map(|row| AppliedEvent {
            event_id: row.event_id,
            website_id: row.website_id,
            session_id: row.session_id,
            created_at_ms: row.created_at_ms,
            kind: kind(row.event_type),
            path: row.url_path.clone(),
            name: row.event_name.clone(),
            attributes: attributes(row.session_id),
        });
        let identifies = changes.identifies.iter().rev().take(max).map(|row| AppliedEvent {
            event_id: row.event_id,
            website_id: row.website_id,
            session_id: row.session_id,
            created_at_ms: row.created_at_ms,
            kind: "identify",
            path: String::new(),
            name: None,
            attributes: attributes(row.session_id),
        });
        let mut last: Vec<_> = events.chain(identifies).collect();
        last.sort_by_key(|event| (event.created_at_ms, event.event_id));
        last.drain(..last.len().saturating_sub(max));
        Self { count, last }
    }
}

fn kind(event_type: EventType) -> &'static str {
    match event_type {
        EventType::PageView => "view",
        EventType::Custom => "event",
        EventType::Link => "link",
        EventType::Pixel => "pixel",
        EventType::Performance => "performance",
    }
}
