//! The collector's tallies, and notes of what its spool and its lane hold, on their way into the store.

use std::collections::HashMap;
use std::time::Duration;

use dashi_event_log::{Lane, Spool, SpoolState};
use dashi_ingest::Tallies;
use dashi_store::{CollectorRun, SpoolNote, Store, StoreError, Tally};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;
use crate::spool::HISTORICAL;

/// How often they are written. A collector that is killed loses the tallies of so long a time, and no event.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt may take, so that a silent store does not hold up the stop of the process.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Counts in one statement.
const ROWS: usize = 500;

/// The places in which accepted events wait for the log.
pub struct Waiting {
    pub spool: Option<Spool>,
    pub lane: Option<Lane>,
}

impl Waiting {
    fn notes(&self, run: &CollectorRun) -> Vec<SpoolNote> {
        let spool = self.spool.as_ref().map(|spool| note(spool, run));
        spool.into_iter().chain(self.lane.as_ref().map(|lane| lane_note(lane, run))).collect()
    }
}

/// Writes the tallies every few seconds, and once more when it is stopped. While the store is away they wait in memory.
pub async fn keep(
    tallies: Tallies,
    waiting: Waiting,
    store: Store,
    run: CollectorRun,
    stop: CancellationToken,
) {
    let (mut is_failing, mut noted) = (false, HashMap::new());
    loop {
        let stops = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        match write(&tallies, &waiting, &mut noted, &store, &run).await {
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

async fn write(
    tallies: &Tallies,
    waiting: &Waiting,
    noted: &mut HashMap<String, SpoolNote>,
    store: &Store,
    run: &CollectorRun,
) -> Result<(), String> {
    let changed = tallies.changed();
    // In this order: what was accepted by now is in the log, or noted as waiting for it, before it is tallied.
    for note in waiting.notes(run) {
        if noted.get(&note.spool_id) != Some(&note) {
            in_time(store.note_spool(&note)).await?;
            noted.insert(note.spool_id.clone(), note);
        }
    }
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
        in_time(store.note_tallies(run, &rows)).await?;
        tallies.written(some, now_ms());
    }
    Ok(())
}

async fn in_time(writing: impl Future<Output = Result<(), StoreError>>) -> Result<(), String> {
    match tokio::time::timeout(ATTEMPT, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
        Err(_) => Err(format!("the store did not answer within {} s", ATTEMPT.as_secs())),
    }
}

fn note(spool: &Spool, run: &CollectorRun) -> SpoolNote {
    let status = spool.status();
    SpoolNote {
        spool_id: status.id,
        log: run.log.clone(),
        collector: run.collector.clone(),
        directory: status.directory.display().to_string(),
        state: status.state.name().to_owned(),
        records: status.records,
        bytes: status.bytes,
        set_aside: status.set_aside,
        oldest_ms: status.oldest_ms,
        full: status.full.map(|full| full.to_string()),
        trouble: status.trouble,
        hours: spool.hours(),
        noted_at_ms: 0,
    }
}

fn lane_note(lane: &Lane, run: &CollectorRun) -> SpoolNote {
    let status = lane.status();
    let holds = status.records + status.set_aside > 0;
    SpoolNote {
        spool_id: status.id,
        log: run.log.clone(),
        collector: run.collector.clone(),
        directory: status.directory.display().to_string(),
        state: if holds { HISTORICAL } else { SpoolState::Idle.name() }.to_owned(),
        records: status.records,
        bytes: status.bytes,
        set_aside: status.set_aside,
        oldest_ms: status.oldest_ms,
        full: status.full.map(|full| full.to_string()),
        trouble: status.waits,
        hours: lane.hours(),
        noted_at_ms: 0,
    }
}
