//! Rows as the tables of this version of Umami hold them.

use std::borrow::Cow;
use std::collections::HashMap;

use dashi_domain::fold::Changes;
use dashi_domain::ids::session_data_id;
use dashi_domain::rows::{EventType, IdentifyRow, SessionDataRow};

use super::Catalogue;
use crate::table::RowTable;
use crate::tables;

impl Catalogue {
    /// The changes as these tables hold them: texts cut where a column is narrower than 3.1's, and without columns
    /// of web vitals a performance event leaves a row in `dashi.identify` alone. In `website_event` a version that
    /// knows no such events would count it as a page view.
    pub fn fit<'c>(&self, changes: &'c Changes) -> Cow<'c, Changes> {
        let is_performance = |event_type| event_type == EventType::Performance;
        let performances =
            !self.has_vitals() && changes.events.iter().any(|row| is_performance(row.event_type));
        let cuts = !self.narrow.is_empty() || self.counts_bytes();
        if !cuts && !performances {
            return Cow::Borrowed(changes);
        }
        let mut changes = changes.clone();
        if performances {
            changes.identifies.extend(
                changes.events.iter().filter(|row| is_performance(row.event_type)).map(|row| IdentifyRow {
                    event_id: row.event_id,
                    website_id: row.website_id,
                    session_id: row.session_id,
                    distinct_id: None,
                    created_at_ms: row.created_at_ms,
                }),
            );
            changes.identifies.sort_unstable_by_key(|row| row.event_id);
            changes.events.retain(|row| !is_performance(row.event_type));
        }
        if cuts {
            each_text(&mut changes, |table, column, text| {
                let Some(width) = self.width(table, column) else { return };
                let end = if self.counts_bytes() {
                    Some(text.floor_char_boundary(width)).filter(|end| *end < text.len())
                } else {
                    text.char_indices().nth(width).map(|(end, _)| end)
                };
                if let Some(end) = end {
                    text.truncate(end);
                }
            });
            keep_newest_properties(&mut changes);
        }
        Cow::Owned(changes)
    }
}

/// After texts were changed: keys of a session's properties that were different may have become equal, of which the
/// newest stays, and an id is again that of its session and key. Else it would be the id of whichever key came last in a
/// batch, and another one in a replay.
pub(in crate::postgres) fn keep_newest_properties(changes: &mut Changes) {
    let mut newest: HashMap<_, (i64, _)> = HashMap::new();
    for row in changes.session_data.iter().chain(&changes.imported_session_data) {
        let this = (row.created_at_ms, row.session_data_id);
        let stays = newest.entry((row.session_id, row.data_key.clone())).or_insert(this);
        *stays = (*stays).max(this);
    }
    let stays = |row: &SessionDataRow| {
        let newest = newest.get(&(row.session_id, row.data_key.clone()));
        newest.is_some_and(|(_, id)| *id == row.session_data_id)
    };
    changes.session_data.retain_mut(|row| {
        let stays = stays(row);
        row.session_data_id = session_data_id(row.session_id, &row.data_key);
        stays
    });
    // An imported row keeps the id that it was imported with.
    changes.imported_session_data.retain(stays);
}

/// Calls `f` with every text of the rows that has a width, and the table and the column it goes into.
pub(in crate::postgres) fn each_text(
    changes: &mut Changes,
    f: impl Fn(&'static str, &'static str, &mut String),
) {
    fn of_rows<R>(
        table: &'static RowTable<R>,
        rows: &mut [R],
        f: &impl Fn(&'static str, &'static str, &mut String),
    ) {
        for field in table.fields {
            let Some(text_mut) = field.text_mut else { continue };
            for text in rows.iter_mut().filter_map(text_mut) {
                f(table.table.name, field.column.name, text);
            }
        }
    }
    of_rows(&tables::SESSION, &mut changes.sessions, &f);
    for row in &mut changes.sessions {
        // Each of these is written into the same columns.
        for place in 0..row.reported.len() {
            std::mem::swap(&mut row.attributes, &mut row.reported[place]);
            of_rows(&tables::SESSION, std::slice::from_mut(row), &f);
            std::mem::swap(&mut row.attributes, &mut row.reported[place]);
        }
    }
    of_rows(&tables::WEBSITE_EVENT, &mut changes.events, &f);
    of_rows(&tables::EVENT_DATA, &mut changes.event_data, &f);
    of_rows(&tables::SESSION_DATA, &mut changes.session_data, &f);
    of_rows(&tables::SESSION_DATA, &mut changes.imported_session_data, &f);
    of_rows(&tables::SESSION_LINK, &mut changes.session_links, &f);
    of_rows(&tables::SESSION_LINK, &mut changes.imported_session_links, &f);
    of_rows(&tables::HEATMAP_EVENT, &mut changes.heatmap, &f);
    of_rows(&tables::REVENUE, &mut changes.revenue, &f);
    of_rows(&tables::IDENTIFY, &mut changes.identifies, &f);
}
