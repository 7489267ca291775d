//! What collects: websites, links and pixels. All that a collector has to know of the store.

use uuid::Uuid;

/// A website that takes events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Website {
    /// What trackers send.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// Its host, for people; at most 500 characters.
    pub domain: Option<String>,
    /// Milliseconds since 1970.
    pub created_at_ms: Option<i64>,
    /// Whether it takes recordings: Umami's `replay_enabled`.
    pub takes_recordings: bool,
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
pub struct Link {
    /// What its events are filed under.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// The last part of its path; unique among links, at most 100 characters.
    pub slug: String,
    /// Where it leads; at most 500 characters.
    pub url: String,
}

/// A tracking pixel, `/p/{slug}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixel {
    /// What its events are filed under.
    pub id: Uuid,
    /// For people; at most 100 characters.
    pub name: String,
    /// The last part of its path; unique among pixels, at most 100 characters.
    pub slug: String,
}
