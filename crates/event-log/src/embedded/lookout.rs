//! Noticing what another process appended.

use std::sync::Weak;
use std::time::Duration;

use super::segments::Segments;

/// How long an append of another process may go unnoticed.
const POLL: Duration = Duration::from_millis(100);

/// The only task of this process that looks for appends of others, for all readers: so a log at rest costs one short read per
/// interval, however many partitions it has. It ends with the log.
pub(super) async fn run(segments: Weak<Segments>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(segments) = segments.upgrade() else { return };
        // Without an answer the readers look for themselves, and return the error that they meet.
        if let Err(error) = segments.refresh() {
            tracing::debug!(error = %error, "the event log's files cannot be read");
        }
    }
}
