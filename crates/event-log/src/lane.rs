//! The lane of a collector: historical events wait in a file of this machine, before the log, until live events leave room for
//! them.
//!
//! They do not travel in partitions of their own. A session with live and historical events would have two writers then, and its
//! rows would depend on how the two meet, so that a replay would make others. From the lane they go into the partition of their
//! session, like all events, and the order in which the log has them is the one that counts.
//!
//! A record leaves the lane when the log has acknowledged it, or its [spool](crate::Spool) has it. If the process is killed in
//! between, it is forwarded again, and the fold recognises the copy by its id.

use async_recursion::async_recursion as boxed;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashi_domain::glance::HourKey;
use dashi_domain::position::Offset;
use dashi_domain::spans::Tracer;
use dashi_domain::spool::{Bounds, Full, RECORD_BYTES, Usage};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::embedded::{EmbeddedLog, Queued, Submitted};
use crate::forward_spans::ForwardSpans;
use crate::spool::{self, QueueFile, bytes, hour_key, now_ms, with_cause};
use crate::{AppendError, EventLog, LogError, NewRecord, OpenError};

/// Records that are read at once, at most, and bytes of them; one record is always read.
const FRONT: (usize, usize) = (1_000, 2 << 20);

/// Settings of a lane.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// Its directory; made if it is not there.
    pub directory: PathBuf,
    /// Bytes of the records that wait in it, at most.
    pub bytes_max: u64,
    /// Appends that may wait for its file.
    pub queue_max: usize,
    /// Appends that share one fsync, at most.
    pub batch_max: usize,
    /// Whether records that wait for other logs are to be forwarded to this one.
    pub adopt: bool,
    /// Takes the spans of records that are forwarded.
    pub tracer: Tracer,
}

/// A lane at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// The identity of its file.
    pub id: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Records that wait, without those that are set aside.
    pub records: u64,
    /// Their bytes, as the bound counts them.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
    /// When the oldest came, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Records that the log refused for good, for their size. They are kept, and tried again at the next start.
    pub set_aside: u64,
    /// Records that came since the process started.
    pub taken: u64,
    /// Records that went to the log since the process started.
    pub forwarded: u64,
    /// Why it takes no more records now, if so.
    pub full: Option<Full>,
    /// Why its records wait, if they do.
    pub waits: Option<String>,
    /// Records that wait in the directory for other logs, by log.
    pub apart: Vec<(String, u64)>,
}

/// See the module's text. Clones are one lane.
#[derive(Clone)]
pub struct Lane(Arc<Shared>);

struct Shared {
    file: EmbeddedLog,
    settings: LaneSettings,
    bounds: Bounds,
    /// Bytes of a record that the log would never take; more are refused.
    record_bytes_max: Option<usize>,
    apart: Vec<(String, u64)>,
    inner: Mutex<Inner>,
    /// Appends to the file whose outcome is not known yet. Grows under the lock of `inner` only.
    pending: AtomicU64,
    /// Whether an append to the file failed, so that usage and hours may count records that are not there.
    is_stale: AtomicBool,
    /// Wakes the forwarding task.
    wake: Notify,
    lock: File,
}

struct Inner {
    usage: Usage,
    /// Records that are set aside.
    aside: u64,
    /// The records by hour and source.
    hours: BTreeMap<HourKey, u64>,
    taken: u64,
    forwarded: u64,
    waits: Option<String>,
    /// Whether another log has the name of this one.
    is_stranded: bool,
    /// Records that were refused since the lane was full.
    refused: u64,
    /// The bytes of the last of them.
    refused_bytes: u64,
    /// The first offset that was not forwarded, and the first one that was not removed from the file.
    next: Offset,
    removed: Offset,
}

/// The oldest records of a lane.
#[derive(Debug)]
pub struct Front(Vec<Queued>);

impl Front {
    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sessions of the records, in their order.
    pub fn sessions(&self) -> impl Iterator<Item = Uuid> {
        self.0.iter().map(|queued| queued.record.session_id)
    }
}

impl Lane {
    /// Opens the lane of a log in a directory. Nothing is forwarded before somebody asks for it.
    ///
    /// # Errors
    /// The directory cannot be used, or another process uses it.
    #[boxed]
    pub async fn open(log: &EventLog, settings: LaneSettings) -> Result<Self, OpenError> {
        let lane = |error| match error {
            OpenError::Spool { path, source } => OpenError::Lane { path, source },
            OpenError::SpoolTaken { lock } => OpenError::LaneTaken { lock },
            error => error,
        };
        let place = QueueFile {
            name: "the lane of historical events",
            prefix: "history-",
            lock: "history-lock",
            directory: &settings.directory,
            queue_max: settings.queue_max,
            batch_max: settings.batch_max,
            adopt: settings.adopt,
        };
        let (file, apart, lock) = spool::open_file(log.id(), &place).await.map_err(lane)?;
        let failed = |source| OpenError::Lane { path: settings.directory.clone(), source: Arc::new(source) };
        let (usage, hours) = spool::count(&file).await.map_err(failed)?;
        if usage.records > 0 {
            tracing::info!(
                records = usage.records,
                bytes = usage.bytes,
                "historical events of an earlier process wait for the log"
            );
        }
        let inner = Inner {
            usage,
            aside: 0,
            hours,
            taken: 0,
            forwarded: 0,
            waits: None,
            is_stranded: false,
            refused: 0,
            refused_bytes: RECORD_BYTES,
            next: Offset::ZERO,
            removed: Offset::ZERO,
        };
        Ok(Self(Arc::new(Shared {
            file,
            bounds: Bounds { bytes_max: settings.bytes_max, age_ms_max: i64::MAX },
            record_bytes_max: match log {
                EventLog::Embedded(_) => None,
                EventLog::Kafka(_) => Some(spool::RECORD_BYTES_MAX),
            },
            settings,
            apart,
            inner: Mutex::new(inner),
            pending: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
            wake: Notify::new(),
            lock,
        })))
    }

    /// Whether it takes records. It takes no more once another log has the name of its own.
    pub fn takes(&self) -> bool {
        !self.inner().is_stranded
    }

    /// Makes records durable in the lane, behind those of earlier calls. One result for each, in their order.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`]: no log would take the record. Any other: try again later.
    #[boxed]
    pub async fn accept(&self, mut records: Vec<NewRecord>) -> Vec<Result<(), AppendError>> {
        let too_large: Vec<Option<AppendError>> = records
            .iter()
            .map(|record| {
                let bytes = record.value.len();
                let is_too_large = self.0.record_bytes_max.is_some_and(|bytes_max| bytes > bytes_max);
                is_too_large.then_some(AppendError::TooLarge { bytes })
            })
            .collect();
        let mut fits = too_large.iter().map(Option::is_none);
        records.retain(|_| fits.next().unwrap_or(true));
        let outcome = match self.place(records) {
            Ok(placed) => placed.durable().await,
            Err(error) => Err(error),
        };
        too_large.into_iter().map(|too_large| too_large.map_or_else(|| outcome.clone(), Err)).collect()
    }

    /// Puts records into the queue of the file, if its bound allows.
    fn place(&self, records: Vec<NewRecord>) -> Result<Placed, AppendError> {
        let mut inner = self.inner();
        let (count, size, now_ms) = (records.len() as u64, records.iter().map(bytes).sum(), now_ms());
        if let Err(full) = self.0.bounds.admit(&inner.usage, size, now_ms) {
            if inner.refused == 0 {
                tracing::error!(reason = %full, "the lane of historical events is full: they are answered 503");
            }
            inner.refused += count;
            inner.refused_bytes = size;
            return Err(AppendError::LaneFull(full));
        }
        let keys: Vec<_> = records.iter().map(hour_key).collect();
        let submitted = self.0.file.submit(records)?;
        if inner.refused > 0 {
            tracing::info!(refused = inner.refused, "the lane takes historical events again");
            inner.refused = 0;
        }
        self.0.pending.fetch_add(1, SeqCst);
        inner.usage.records += count;
        inner.usage.bytes += size;
        inner.usage.oldest_ms.get_or_insert(now_ms);
        inner.taken += count;
        for key in keys {
            *inner.hours.entry(key).or_default() += 1;
        }
        Ok(Placed { lane: self.clone(), submitted: Some(submitted) })
    }

    /// Waits until a record has come since the last call, or a moment ago.
    #[boxed]
    pub async fn changed(&self) {
        self.0.wake.notified().await;
    }

    /// The oldest records that wait. To be called, as [`Lane::forward`], by one task at a time.
    ///
    /// # Errors
    /// The file cannot be read or written; call again later.
    #[boxed]
    pub async fn front(&self) -> Result<Front, LogError> {
        let (next, removed) = {
            let inner = self.inner();
            (inner.next, inner.removed)
        };
        if removed < next {
            self.remove(next).await?;
        }
        let front = self.0.file.front(next, FRONT.0, FRONT.1).await?;
        if front.is_empty() && self.0.is_stale.load(SeqCst) {
            self.count_again().await;
        }
        Ok(Front(front))
    }

    /// Brings the log the first `records` of the front, in their order, and removes from the lane those that it has.
    ///
    /// # Errors
    /// Why it does not have all of them, in words; call again later.
    #[boxed]
    pub async fn forward(&self, log: &EventLog, front: &Front, records: usize) -> Result<(), String> {
        match log.is_same().await {
            Ok(()) => {}
            Err(error @ LogError::Replaced { .. }) => {
                self.inner().is_stranded = true;
                return Err(error.to_string());
            }
            Err(error) => return Err(with_cause(&error)),
        }
        let queued = &front.0[..records.min(front.0.len())];
        let Some(last) = queued.last() else { return Ok(()) };
        let spans = ForwardSpans::begin(&self.0.settings.tracer, "lane", queued);
        let outcomes = log.accept(queued.iter().map(|queued| queued.record.clone()).collect()).await;
        if let Some(spans) = spans {
            spans.end(&outcomes);
        }
        let is_open = |outcome: &Result<(), AppendError>| matches!(outcome, Err(error) if !matches!(error, AppendError::TooLarge { .. }));
        let trouble = outcomes.iter().position(is_open);
        let done = trouble.unwrap_or(queued.len());
        for (queued, outcome) in queued.iter().zip(&outcomes).take(done) {
            if let Err(AppendError::TooLarge { bytes }) = outcome {
                self.set_aside(queued, *bytes).await.map_err(|error| with_cause(&error))?;
            }
        }
        let next = queued.get(done).map_or_else(|| last.offset.next(), |kept| kept.offset);
        self.forwarded(queued.iter().zip(&outcomes).take(done), next);
        if done > 0 {
            self.remove(next).await.map_err(|error| with_cause(&error))?;
        }
        match trouble.and_then(|at| outcomes[at].as_ref().err()) {
            Some(error) => Err(with_cause(error)),
            None => Ok(()),
        }
    }

    /// These records need not be forwarded again; the first one that has to be is at `next`.
    fn forwarded<'q>(
        &self,
        queued: impl Iterator<Item = (&'q Queued, &'q Result<(), AppendError>)>,
        next: Offset,
    ) {
        let mut inner = self.inner();
        inner.next = next;
        for (queued, _) in queued.filter(|(_, outcome)| outcome.is_ok()) {
            inner.usage.records = inner.usage.records.saturating_sub(1);
            inner.usage.bytes = inner.usage.bytes.saturating_sub(bytes(&queued.record));
            inner.forwarded += 1;
            let key = hour_key(&queued.record);
            if let Some(records) = inner.hours.get_mut(&key) {
                *records = records.saturating_sub(1);
                if *records == 0 {
                    inner.hours.remove(&key);
                }
            }
        }
    }

    async fn remove(&self, next: Offset) -> Result<(), LogError> {
        self.0.file.remove_front(next).await?;
        let oldest_ms = self.0.file.oldest_ms().await?;
        let mut inner = self.inner();
        inner.removed = next;
        // A record that is on its way into the file is not older than this.
        if oldest_ms.is_some() || self.0.pending.load(SeqCst) == 0 {
            inner.usage.oldest_ms = oldest_ms;
        }
        Ok(())
    }

    /// Keeps a record that the log refuses for good out of the way of the others.
    async fn set_aside(&self, queued: &Queued, size: usize) -> Result<(), LogError> {
        self.0.file.set_aside(queued.offset).await?;
        tracing::error!(
            bytes = size,
            session = %queued.record.session_id,
            "the log refuses a historical event for its size: it is set aside in its lane and tried again at the next start; \
             raise the topic's max.message.bytes"
        );
        let mut inner = self.inner();
        inner.usage.records = inner.usage.records.saturating_sub(1);
        inner.aside += 1;
        Ok(())
    }

    /// Counts the content of the file, in place of counts that may be wrong; later, if records are on their way into it.
    async fn count_again(&self) {
        let taken = self.inner().taken;
        if self.0.pending.load(SeqCst) > 0 {
            return;
        }
        self.0.is_stale.store(false, SeqCst);
        let counted = spool::count(&self.0.file).await;
        let mut inner = self.inner();
        match counted {
            Ok((usage, hours)) if self.0.pending.load(SeqCst) == 0 && inner.taken == taken => {
                (inner.usage, inner.hours) = (usage, hours);
            }
            _ => self.0.is_stale.store(true, SeqCst),
        }
    }

    /// Notes why its records wait; `None` if they do not.
    pub fn waits(&self, reason: Option<String>) {
        self.inner().waits = reason;
    }

    /// The lane now.
    pub fn status(&self) -> LaneStatus {
        let inner = self.inner();
        // A record of the size that was refused last; the space of a smaller one is no help to most.
        let needed = if inner.refused > 0 { inner.refused_bytes } else { RECORD_BYTES };
        LaneStatus {
            id: self.0.file.id().to_string(),
            directory: self.0.settings.directory.clone(),
            records: inner.usage.records,
            bytes: inner.usage.bytes,
            bytes_max: self.0.bounds.bytes_max,
            oldest_ms: inner.usage.oldest_ms,
            set_aside: inner.aside,
            taken: inner.taken,
            forwarded: inner.forwarded,
            full: self.0.bounds.admit(&inner.usage, needed, now_ms()).err(),
            waits: inner.waits.clone(),
            apart: self.0.apart.clone(),
        }
    }

    /// The records that it holds, by the hour and source that they are counted by.
    pub fn hours(&self) -> Vec<(HourKey, u64)> {
        self.inner().hours.iter().map(|(key, records)| (*key, *records)).collect()
    }

    /// Gives the space of forwarded records back to the file system, if that is worth it. To be called when it is empty.
    #[boxed]
    pub async fn give_space_back(&self) {
        if let Err(error) = self.0.file.give_space_back().await {
            tracing::debug!(error = %error, "the lane's space cannot be given back");
        }
    }

    /// Closes the file. What it holds stays there for the next process. To be called when nothing calls [`Lane::accept`] or
    /// [`Lane::forward`] any more.
    #[boxed]
    pub async fn close(&self) {
        self.0.file.close().await;
        if let Err(error) = self.0.lock.unlock() {
            tracing::warn!(error = %error, "the lane's directory cannot be unlocked before the process ends");
        }
        let records = self.inner().usage.records;
        if records > 0 {
            tracing::warn!(
                records,
                directory = %self.0.settings.directory.display(),
                "accepted historical events wait for the log; the next collector on this directory forwards them"
            );
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records in the queue of the lane's file.
struct Placed {
    lane: Lane,
    submitted: Option<Submitted>,
}

impl Placed {
    /// Waits until they are durable.
    async fn durable(mut self) -> Result<(), AppendError> {
        let Some(submitted) = self.submitted.take() else { return Err(AppendError::Closed) };
        let outcome = submitted.outcome().await;
        if outcome.is_err() {
            self.lane.0.is_stale.store(true, SeqCst);
        }
        outcome.map(drop)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if self.submitted.is_some() {
            // Nobody waited for the outcome, so the records are counted again.
            self.lane.0.is_stale.store(true, SeqCst);
        }
        self.lane.0.pending.fetch_sub(1, SeqCst);
        self.lane.0.wake.notify_one();
    }
}
