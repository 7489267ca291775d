//! `dashi accept-lost`: moves checkpoints over records that the log has lost, and records them as missing.

use dashi_config::Loaded;
use dashi_domain::fold::Changes;
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{EventLog, Extent, LogError};
use dashi_store::{Claim, ClaimError, CommitError, PartitionState, Store};
use serde::Serialize;

use crate::args::AcceptLostArgs;
use crate::exit::Exit;
use crate::open;
use crate::output::print;

/// Most claims of a partition: a running projector claims it, too, when it tries again.
const CLAIMS_MAX: u32 = 5;

/// A loss that was accepted.
#[derive(Debug, Serialize)]
struct Lost {
    partition: u32,
    cause: &'static str,
    /// The first offset that is lost (inclusive).
    start_offset: u64,
    /// The first offset behind the loss (exclusive).
    end_offset: u64,
    /// The offset at which the projection goes on.
    resumes_at: u64,
}

/// Accepts the losses of all partitions, or of one.
pub async fn run(loaded: &Loaded, args: &AcceptLostArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    store.migrate().await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let states: Vec<_> =
        store.partitions().await?.into_iter().filter(|state| state.log == *log.id()).collect();
    if states.is_empty() {
        anyhow::bail!(
            "the store holds no projection of the log {}: so it cannot have lost records",
            log.id()
        );
    }
    let mut lost = Vec::new();
    for state in
        states.iter().filter(|state| args.partition.is_none_or(|only| state.partition.number() == only))
    {
        lost.extend(accept(&log, &store, state).await?);
    }
    store.close().await;
    print(&if args.json { serde_json::to_string(&lost)? + "\n" } else { text(&lost) });
    Ok(Exit::Done)
}

async fn accept(log: &EventLog, store: &Store, state: &PartitionState) -> anyhow::Result<Option<Lost>> {
    let partition = state.partition;
    if loss(log, partition, state.checkpoint, state.fingerprint).await?.is_none() {
        return Ok(None);
    }
    for _ in 0..CLAIMS_MAX {
        // From here on no projector moves the checkpoint.
        let claim = match store.claim(log.id(), partition, &open::owner()).await {
            Ok(claim) => claim,
            Err(ClaimError::Fenced { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        if claim.tail.is_some() {
            // Its records may be among those that are lost; the checkpoint reads them again.
            match store.drop_tail(&claim).await {
                Ok(()) | Err(ClaimError::Fenced { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        let Some(loss) = loss(log, partition, claim.resume_from, claim.fingerprint).await? else {
            return Ok(None);
        };
        match commit(store, &claim, &loss).await {
            Ok(()) => return Ok(Some(loss.lost(partition))),
            Err(CommitError::Fenced { .. } | CommitError::Misplaced { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("partition {partition}: a projector claims it again and again; stop the projectors first")
}

/// Records that the log does not have, and the checkpoint from which the projection goes on.
struct Loss {
    missing: Missing,
    to: Checkpoint,
}

impl Loss {
    fn lost(&self, partition: Partition) -> Lost {
        Lost {
            partition: partition.number(),
            cause: self.missing.cause.name(),
            start_offset: self.missing.range.start.number(),
            end_offset: self.missing.range.end.number(),
            resumes_at: self.to.offset().number(),
        }
    }
}

/// The loss of a projection whose checkpoint this is; `None` if it can read on by itself.
async fn loss(
    log: &EventLog,
    partition: Partition,
    checkpoint: Checkpoint,
    fingerprint: Option<i64>,
) -> anyhow::Result<Option<Loss>> {
    let Extent { low, high } = log.extent(partition).await?;
    let at = checkpoint.offset();
    let loss = if at < low {
        Some(Loss { missing: Missing::all(at..low, MissingCause::Retention), to: Checkpoint::at(low) })
    } else {
        match log.reader_behind(partition, at, fingerprint).await {
            Ok(_) => None,
            // Records appended since the log was cut lie below its end now, and the log does not distinguish them
            // from older records. So all of it is read again; applied events are recognised by their ids.
            Err(LogError::Beyond { .. }) => Some(ended(high, at, low)),
            Err(LogError::Rewritten { .. }) => Some(ended(low, at, low)),
            Err(error) => return Err(error.into()),
        }
    };
    // The extent was that of this log, not of one that took its name.
    log.is_same().await?;
    Ok(loss)
}

fn ended(from: Offset, to: Offset, low: Offset) -> Loss {
    Loss { missing: Missing::all(from..to, MissingCause::LogEnded), to: Checkpoint::at(low) }
}

async fn commit(store: &Store, claim: &Claim, loss: &Loss) -> Result<(), CommitError> {
    let changes = Changes { missing: vec![loss.missing.clone()], ..Changes::default() };
    store.commit(claim, claim.resume_from, loss.to, &changes).await.map(|_| ())
}

fn text(lost: &[Lost]) -> String {
    if lost.is_empty() {
        return "nothing is lost: every partition can go on by itself\n".to_owned();
    }
    let mut out = String::new();
    for Lost { partition, cause, start_offset, end_offset, resumes_at } in lost {
        let (last, count) = (end_offset - 1, end_offset - start_offset);
        out.push_str(&if *cause == MissingCause::Retention.name() {
            format!(
                "partition {partition}: offsets {start_offset} to {last} were removed before they were projected; \
                 {count} records are recorded as missing, and the projection goes on at offset {resumes_at}\n"
            )
        } else {
            format!(
                "partition {partition}: offsets {start_offset} to {last} were projected and are no longer in the \
                 log; this is recorded, their rows stay, and the log is read again from offset {resumes_at} on (events \
                 that are applied already count as duplicates)\n"
            )
        });
    }
    out
}
