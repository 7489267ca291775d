//! Websites: the only thing a collector has to know of the store.

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
