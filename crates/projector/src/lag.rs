//! How far behind the projection is, for metrics and for the log's own bookkeeping.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dashi_domain::position::{Checkpoint, Partition};
use dashi_event_log::{EventLog, Position};

use crate::metrics::ProjectorMetrics;

/// Where the partitions of this process stand. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing(Arc<Mutex<BTreeMap<Partition, Place>>>);

#[derive(Debug, Clone, Copy)]
struct Place {
    checkpoint: Checkpoint,
    /// When the log took the oldest record not applied; `None` if there is none.
    oldest_appended_at_ms: Option<i64>,
    /// Whether the log was told of the checkpoint.
    saved: bool,
}

impl Standing {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<Partition, Place>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn reached(&self, partition: Partition, checkpoint: Checkpoint) {
        self.with(|places| {
            let place = places.entry(partition).or_insert(Place {
                checkpoint,
                oldest_appended_at_ms: None,
                saved: false,
            });
            place.saved &= place.checkpoint == checkpoint;
            place.checkpoint = checkpoint;
        });
    }

    pub fn behind(&self, partition: Partition, oldest_appended_at_ms: i64) {
        self.with(|places| {
            if let Some(place) = places.get_mut(&partition) {
                place.oldest_appended_at_ms = Some(oldest_appended_at_ms);
            }
        });
    }

    pub fn caught_up(&self, partition: Partition) {
        self.with(|places| {
            if let Some(place) = places.get_mut(&partition) {
                place.oldest_appended_at_ms = None;
            }
        });
    }

    pub fn left(&self, partition: Partition) {
        self.with(|places| places.remove(&partition));
    }

    /// Checkpoints that the log was not told yet.
    pub fn take_unsaved(&self) -> Vec<Position> {
        self.with(|places| {
            places
                .iter_mut()
                .filter_map(|(partition, place)| {
                    let saved = std::mem::replace(&mut place.saved, true);
                    (!saved).then_some((*partition, place.checkpoint))
                })
                .collect()
        })
    }

    fn places(&self) -> Vec<(Partition, Place)> {
        self.with(|places| places.iter().map(|(partition, place)| (*partition, *place)).collect())
    }
}

/// Sets the gauges of all partitions of this process, and forgets those of others.
pub(crate) async fn measure(log: &EventLog, standing: &Standing, metrics: &ProjectorMetrics) {
    let places = standing.places();
    metrics.forget_others(places.iter().map(|(partition, _)| *partition));
    for (partition, place) in places {
        match log.extent(partition).await {
            Ok(extent) => {
                let lag = place.checkpoint.lag(extent.high);
                let age_ms = place.oldest_appended_at_ms.filter(|_| lag > 0).map_or(0, |ms| now_ms() - ms);
                metrics.lag(partition, lag, age_ms.max(0));
            }
            Err(error) => {
                tracing::debug!(partition = %partition, error = %error, "the lag cannot be measured");
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "lag in seconds is measured against the wall clock")]
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
