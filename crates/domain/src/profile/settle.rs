//! From the rows of a trait to its value.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Stamp, WriteRow};
use crate::rows::DataValue;

/// The value of a trait, by its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// `None` if it is deleted, or never was set.
    pub value: Option<DataValue>,
    /// The newest row, whether it counted as a write or not.
    pub last: Stamp,
    /// The write that gave it this value; [`Stamp::NEVER`] if it never had one.
    pub changed: Stamp,
    /// The session that did; nil if none did.
    pub changed_by: Uuid,
    /// Whether some row names a version.
    pub conditional: bool,
}

/// Settles the rows of one trait, in any order; a repeated row counts once. `None` without rows.
///
/// Rows are taken by stamp. One that names no version is a write. One that does is a write if its value is another one
/// than the trait had at that version, after the writes up to its stamp. A version that lies after the row itself, as
/// only a made-up one does, stands for all that came before the row.
pub fn settle<'a>(rows: impl IntoIterator<Item = &'a WriteRow>) -> Option<Settled> {
    let rows: BTreeMap<Stamp, &WriteRow> = rows.into_iter().map(|row| (row.stamp, row)).collect();
    let (&last, _) = rows.last_key_value()?;
    let conditional = rows.values().any(|row| row.base.is_some());
    // The writes so far that changed the value.
    let mut changes: Vec<&WriteRow> = Vec::new();
    for row in rows.values() {
        let value_at = |count: usize| count.checked_sub(1).and_then(|place| changes[place].value.as_ref());
        let differs_from = |count: usize| value_at(count) != row.value.as_ref();
        let is_write =
            row.base.is_none_or(|base| differs_from(changes.partition_point(|change| change.stamp <= base)));
        if is_write && differs_from(changes.len()) {
            changes.push(row);
        }
    }
    let newest = changes.last();
    Some(Settled {
        value: newest.and_then(|row| row.value.clone()),
        last,
        changed: newest.map_or(Stamp::NEVER, |row| row.stamp),
        changed_by: newest.map_or(Uuid::nil(), |row| row.session_id),
        conditional,
    })
}

impl Settled {
    /// Its value with one more row, if that follows without the rows before it: the row is the newest of all, and the
    /// version that it names, if any, is one at which the trait had the value that it has now.
    pub(super) fn with_newest(&self, row: &WriteRow) -> Option<Self> {
        let known = row.stamp > self.last && row.base.is_none_or(|base| base >= self.changed);
        known.then(|| {
            let mut settled =
                Self { last: row.stamp, conditional: self.conditional || row.base.is_some(), ..self.clone() };
            // Any version that it names is one at which the trait had the value of now.
            if row.value != self.value {
                settled.value = row.value.clone();
                settled.changed = row.stamp;
                settled.changed_by = row.session_id;
            }
            settled
        })
    }
}
