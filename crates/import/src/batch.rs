//! Parts of a source, in its order, as the importer takes them.

use std::collections::BTreeMap;

use dashi_event_log::NewRecord;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::source::UmamiPosition;

/// Lines or rows of one batch, at most.
pub(crate) const BATCH_ROWS_MAX: usize = 500;

/// Bytes of the lines of one batch, at most; one line is always taken.
pub(crate) const BATCH_BYTES_MAX: usize = 4 << 20;

/// A batch: what was read from a source since the batch before.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Records to append, in order.
    pub items: Vec<Item>,
    /// What cannot be taken.
    pub rejects: Vec<Reject>,
    /// What is left out on purpose, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
    /// Lines or rows that were read, all of them.
    pub read: u64,
    /// Units of progress that are done since the beginning of the source.
    pub done: u64,
    /// How far the source is read with this batch.
    pub position: Option<Position>,
}

/// A record to append.
#[derive(Debug)]
pub(crate) struct Item {
    /// The number of its first line in the source, from 1; 0 where there are no lines.
    pub line: u64,
    /// The record's identity.
    pub id: Uuid,
    /// When it happened, milliseconds since 1970.
    pub at_ms: i64,
    /// The website that it is of, if that has to be known.
    pub website: Option<Wanted>,
    /// The record.
    pub record: NewRecord,
}

/// A website that the target must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub id: Uuid,
    /// For a website that is added.
    pub name: Option<String>,
    /// For a website that is added.
    pub domain: Option<String>,
}

/// A part that cannot be taken, as the rejects file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reject {
    /// The file, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The number of its line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The table of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<&'static str>,
    /// The key of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Why.
    pub reason: String,
    /// The line, or its beginning if it is long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Reject {
    /// A line that cannot be taken.
    pub(crate) fn line(line: u64, reason: impl Into<String>, text: &[u8]) -> Self {
        const TEXT_MAX: usize = 8_192;
        let shown = &text[..text.len().min(TEXT_MAX)];
        let mut shown = String::from_utf8_lossy(shown).into_owned();
        if text.len() > TEXT_MAX {
            shown.push_str(&format!("… ({} bytes)", text.len()));
        }
        Self { file: None, line: Some(line), table: None, id: None, reason: reason.into(), text: Some(shown) }
    }
}

/// How far a source is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Position {
    /// Files: so many lines of all of them, one after the other.
    Lines(u64),
    /// A database.
    Umami(UmamiPosition),
}
