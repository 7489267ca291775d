//! The history of an Umami database, for an import: its sources, and its rows by session and event.

use dashi_domain::imported::Imported;
use uuid::Uuid;

/// A website, link or pixel that has rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySource {
    /// Its id.
    pub id: Uuid,
    /// What it is.
    pub kind: HistorySourceKind,
    /// Its name, if it has a row.
    pub name: Option<String>,
    /// A website's host name.
    pub domain: Option<String>,
}

/// The table that a source has its row in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistorySourceKind {
    /// A website.
    Website,
    /// A website that was marked as deleted.
    DeletedWebsite,
    /// A tracked link.
    Link,
    /// A pixel.
    Pixel,
    /// Rows alone: the source itself was deleted.
    Unknown,
}

/// A place in a list of rows that is ordered by time and id: microseconds since 1970, and the row's id.
pub type Place = (i64, Uuid);

/// Rows that belong together, and those of them that cannot be taken.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRows {
    /// Where they stand in their list; the next page begins behind the last of them.
    pub place: Place,
    /// The rows as a record holds them; `None` if the first of them cannot be taken, or if there is nothing to take.
    pub imported: Option<Imported>,
    /// The rows that are left out.
    pub left_out: Vec<LeftOut>,
}

/// A row that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its table.
    pub table: &'static str,
    /// Its key.
    pub id: Uuid,
    /// Why.
    pub reason: String,
}
