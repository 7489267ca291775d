//! Noticing what another process appended.

use std::sync::Weak;
use std::time::Duration;

use super::segments::Segments;

/// How long an append of another process may go unnoticed.
const POLL: Duration = Duration::from_millis(100);

/// The same in a log that nobody has appended to for some time.
const POLL_AT_REST: Duration = Duration::from_millis(250);

/// Looks without an append after which a log is at rest.
const QUIET_LOOKS: u32 = 100;

/// The only task of this process that looks for appends of others, for all readers: so a log at rest costs one short read per
/// interval, however many partitions it has. It ends with the log.
pub(super) async fn run(segments: Weak<Segments>) {
    let (mut end, mut quiet_looks) = (0, 0);
    loop {
        tokio::time::sleep(if quiet_looks < QUIET_LOOKS { POLL } else { POLL_AT_REST }).await;
        let Some(segments) = segments.upgrade() else { return };
        // Without an answer the readers look for themselves, and return the error that they meet.
        if let Err(error) = segments.refresh() {
            tracing::debug!(error = %error, "the event log's files cannot be read");
        }
        let before = std::mem::replace(&mut end, segments.state().end);
        quiet_looks = if end == before { quiet_looks.saturating_add(1) } else { 0 };
    }
}
