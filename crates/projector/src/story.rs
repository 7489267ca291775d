//! What the story of a partition is told with.

use std::sync::Arc;
use std::time::Duration;

use dashi_domain::fold::FoldRules;
use dashi_domain::position::Partition;
use dashi_event_log::{EventLog, ReadLimit};
use dashi_store::{Claim, Store};
use tokio_util::sync::CancellationToken;

use crate::lag::Standing;
use crate::metrics::ProjectorMetrics;

/// Settings of a projector.
#[derive(Debug, Clone)]
pub struct ProjectorSettings {
    /// The consumer group, or the name of the projection in an embedded log.
    pub group: String,
    /// For people: who projects.
    pub owner: String,
    /// How the fold folds.
    pub rules: FoldRules,
    /// What one batch may hold, and how long to wait for records.
    pub read_limit: ReadLimit,
    /// Least time between two batches of a partition, unless the last one was full.
    pub batch_interval: Duration,
    /// The longest wait between two tries.
    pub retry_wait_max: Duration,
    /// Whether the store may go on with a log whose checkpoints it does not hold, beside those of another one.
    pub accept_new_log: bool,
}

/// What one partition's story needs.
#[derive(Clone)]
pub(crate) struct Story {
    pub log: EventLog,
    pub store: Store,
    pub rules: Arc<FoldRules>,
    pub partition: Partition,
    /// For people: who projects.
    pub owner: Arc<str>,
    pub read_limit: ReadLimit,
    /// Least time between two batches, unless the last one was full.
    pub batch_interval: Duration,
    pub retry_wait_max: Duration,
    pub standing: Standing,
    pub metrics: ProjectorMetrics,
    pub stop: CancellationToken,
}

impl Story {
    /// The story of one partition of a log, told into a store, until `stop`.
    pub fn new(
        (log, store, partition): (EventLog, Store, Partition),
        settings: &ProjectorSettings,
        (standing, metrics): (Standing, ProjectorMetrics),
        stop: CancellationToken,
    ) -> Self {
        Self {
            log,
            store,
            partition,
            rules: Arc::new(settings.rules.clone()),
            owner: settings.owner.as_str().into(),
            read_limit: settings.read_limit,
            batch_interval: settings.batch_interval,
            retry_wait_max: settings.retry_wait_max,
            standing,
            metrics,
            stop,
        }
    }

    /// Leaves the error where `dashi status` finds it.
    pub async fn note(&self, claim: &Claim, error: &(dyn std::error::Error + Sync)) {
        if let Err(failed) = self.store.note_error(claim, &chain(error)).await {
            tracing::warn!(partition = %self.partition, error = %chain(&failed), "an error could not be noted");
        }
    }
}

/// An error with all its causes, for a log line or a note: at this edge nobody will look at the chain again.
pub(crate) fn chain(error: &(dyn std::error::Error + Sync)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
