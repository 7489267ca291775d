//! What a commit is reported by. It is taken from the changes when they are written, so that their rows need not stay in memory
//! until they are committed.

use dashi_domain::applied::AppliedEvents;
use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::missing::Missing;
use dashi_domain::rows::DeadLetter;

use crate::progress::Progress;

/// Summary of the changes of one commit.
pub(crate) struct Summary {
    /// Rows by table, as they were folded.
    pub rows: [(&'static str, usize); 11],
    pub outcomes: Outcomes,
    /// Whether its records are letters that were tried again.
    pub is_trial: bool,
    pub missing: Vec<Missing>,
    pub dead_letters: Vec<DeadLetter>,
    /// For those who watch.
    pub described: Option<AppliedEvents>,
}

impl Summary {
    pub fn of(changes: Changes, progress: &Progress) -> Self {
        Self {
            rows: rows_by_table(&changes),
            outcomes: changes.outcomes,
            is_trial: changes.tried.is_some(),
            described: progress.describe(&changes),
            missing: changes.missing,
            dead_letters: changes.dead_letters,
        }
    }
}

/// How many rows the changes write, by table. Rows of profiles are decided in the transaction; `dashi_projector_trait_sends`
/// counts them.
fn rows_by_table(changes: &Changes) -> [(&'static str, usize); 11] {
    [
        ("session", changes.sessions.len()),
        ("website_event", changes.events.len()),
        ("event_data", changes.event_data.len()),
        ("revenue", changes.revenue.len()),
        ("session_data", changes.session_data.len() + changes.imported_session_data.len()),
        ("session_replay", changes.chunks.len()),
        ("heatmap_event", changes.heatmap.len()),
        ("session_link", changes.session_links.len() + changes.imported_session_links.len()),
        ("identify", changes.identifies.len()),
        ("applied", changes.applied.len()),
        ("dead_letter", changes.dead_letters.len()),
    ]
}
