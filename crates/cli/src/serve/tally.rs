//! The collector's tallies on their way into the store.

use std::time::Duration;

use dashi_ingest::Tallies;
use dashi_store::{CollectorRun, Store, Tally};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;

/// How often they are written. A collector that is killed loses the tallies of so long a time, and no event.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt may take, so that a silent store does not hold up the stop of the process.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Counts in one statement.
const ROWS: usize = 500;

/// Writes the tallies every few seconds, and once more when it is stopped. While the store is away they wait in memory.
pub async fn keep(tallies: Tallies, store: Store, run: CollectorRun, stop: CancellationToken) {
    let mut is_failing = false;
    loop {
        let stops = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        match write(&tallies, &store, &run).await {
            Ok(()) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!(lost = tallies.lost(), "the collector's tallies are written again");
                }
            }
            Err(error) if stops || !std::mem::replace(&mut is_failing, true) => {
                tracing::warn!(
                    error,
                    "the collector's tallies cannot be written; they are for `dashi audit` only"
                );
            }
            Err(_) => {}
        }
        if stops {
            return;
        }
    }
}

async fn write(tallies: &Tallies, store: &Store, run: &CollectorRun) -> Result<(), String> {
    let changed = tallies.changed();
    for some in changed.chunks(ROWS) {
        let rows: Vec<Tally> = some
            .iter()
            .map(|(key, count)| Tally {
                key: key.key,
                subject: key.subject.to_owned(),
                outcome: key.outcome.to_owned(),
                count: *count,
            })
            .collect();
        match tokio::time::timeout(ATTEMPT, store.note_tallies(run, &rows)).await {
            Ok(Ok(())) => tallies.written(some, now_ms()),
            Ok(Err(error)) => return Err(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => return Err(format!("the store did not answer within {} s", ATTEMPT.as_secs())),
        }
    }
    Ok(())
}
