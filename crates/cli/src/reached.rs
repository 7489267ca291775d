//! What of the log is applied, for commands that look at single records.

use std::collections::HashMap;

use dashi_domain::position::{Checkpoint, LogId, Partition};
use dashi_domain::tail::{Reached, Tail};
use dashi_store::{PartitionCounts, Store};

/// Attempts to read tails while others begin.
const ATTEMPTS: usize = 5;

const CHANGED: &str = "tails began and ended again and again while they were read; try again";

/// The counts of all partitions of a log, and what of each is applied, as of one moment.
///
/// # Errors
/// The store does not answer.
pub async fn counts_and_reached(
    store: &Store,
    log: &LogId,
) -> anyhow::Result<(Vec<PartitionCounts>, HashMap<Partition, Reached>)> {
    for _ in 0..ATTEMPTS {
        let counts = store.counts(log).await?;
        let stands = counts.iter().map(|counts| (counts.partition, counts.checkpoint, counts.tail));
        if let Some(reached) = reached(store, log, stands).await? {
            return Ok((counts, reached));
        }
    }
    anyhow::bail!(CHANGED)
}

/// What is applied of each partition of a log that was ever claimed.
///
/// # Errors
/// The store does not answer.
pub async fn reached_now(store: &Store, log: &LogId) -> anyhow::Result<HashMap<Partition, Reached>> {
    for _ in 0..ATTEMPTS {
        let states = store.partitions().await?;
        let of_log = states.iter().filter(|state| state.log == *log);
        let stands = of_log.map(|state| (state.partition, state.checkpoint, state.tail));
        if let Some(reached) = reached(store, log, stands).await? {
            return Ok(reached);
        }
    }
    anyhow::bail!(CHANGED)
}

/// What is applied of partitions that stand there; `None` if it cannot be known any more, since a tail has ended.
async fn reached(
    store: &Store,
    log: &LogId,
    stands: impl Iterator<Item = (Partition, Checkpoint, Option<Tail>)>,
) -> anyhow::Result<Option<HashMap<Partition, Reached>>> {
    let mut reached = HashMap::new();
    let mut tails = HashMap::new();
    for (partition, checkpoint, tail) in stands {
        let sessions = match tail {
            Some(_) => store.tail_sessions(log, partition).await?,
            None => None,
        };
        tails.extend(tail.map(|tail| (partition, tail.from)));
        reached.insert(partition, Reached { checkpoint, tail: tail.zip(sessions) });
    }
    if !tails.is_empty() {
        // The sessions are those of the tail that the partition has now.
        let states = store.partitions().await?;
        let now = |partition: &Partition| {
            let state = states.iter().find(|state| state.log == *log && state.partition == *partition);
            state.and_then(|state| state.tail).map(|tail| tail.from)
        };
        if tails.iter().any(|(partition, from)| now(partition) != Some(*from)) {
            return Ok(None);
        }
    }
    Ok(Some(reached))
}
