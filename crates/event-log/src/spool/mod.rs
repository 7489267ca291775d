//! The spool of a collector: while the log is away or slow, records become durable in a file of this machine, and are
//! forwarded in their order when the log is back.
//!
//! * [`dashi_domain::spool`] decides which way a record goes, and in which order.
//! * `accept` carries that out for appends; `forward` watches the log and brings it the spool's records; `file` is the
//!   directory: its lock, one file for each log, and the files of other logs.
//!
//! A record that was given to the log without an acknowledgement may be in the log twice. Every record of a collector has an
//! id, by which the fold recognises the second one.

mod accept;
mod file;
mod forward;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dashi_domain::calendar::ms_since_1970;
use dashi_domain::glance::{Glance, HourKey};
use dashi_domain::position::{LogId, Offset};
use dashi_domain::spans::Tracer;
use dashi_domain::spool::{Bounds, Full, Gate, Mode, RECORD_BYTES, Ticket, Usage};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::accept::RECORD_BYTES_MAX;
use self::accept::Waiting;
pub(crate) use self::file::{QueueFile, open as open_file};
pub(crate) use self::forward::with_cause;
use crate::embedded::EmbeddedLog;
use crate::kafka::KafkaLog;
use crate::{LogError, NewRecord, OpenError};

/// Settings of a spool.
#[derive(Debug, Clone)]
pub struct SpoolSettings {
    /// Its directory, which no other process may use; made if it is not there.
    pub directory: PathBuf,
    /// Bytes of the records that it holds, at most.
    pub bytes_max: u64,
    /// How old its oldest record may be when it takes another one.
    pub age_max: Duration,
    /// How long an append may wait for its acknowledgement before the records go into the spool; less than the log's
    /// delivery timeout.
    pub after: Duration,
    /// Appends that may wait for the spool's file.
    pub queue_max: usize,
    /// Appends that share one fsync, at most.
    pub batch_max: usize,
    /// Whether records that wait for other logs are to be forwarded to this one.
    pub adopt: bool,
    /// Takes the spans of records that are forwarded.
    pub tracer: Tracer,
}

/// What a spool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolState {
    /// Records go to the log.
    Idle,
    /// The log is away or slow: records go into the spool.
    Spooling,
    /// The log takes the spool's records; new ones go behind them.
    Forwarding,
    /// Another log has the topic's name: the spool keeps its records and takes no more.
    Stranded,
}

impl SpoolState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Spooling, Self::Forwarding, Self::Stranded];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Spooling => "spooling",
            Self::Forwarding => "forwarding",
            Self::Stranded => "stranded",
        }
    }
}

/// A spool at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolStatus {
    /// The identity of its file.
    pub id: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What it does.
    pub state: SpoolState,
    /// Records that it holds, without those that are set aside.
    pub records: u64,
    /// Their bytes, as the bound counts them.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
    /// When its oldest record was spooled, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Records that the log refused for good, for their size. They are kept, and tried again at the next start.
    pub set_aside: u64,
    /// Records that went into the spool since the process started.
    pub spooled: u64,
    /// Records that the log took from the spool since the process started.
    pub forwarded: u64,
    /// Why it takes no more records now, if so.
    pub full: Option<Full>,
    /// Why its records could not be forwarded when that was last tried.
    pub trouble: Option<String>,
    /// Records that wait in the directory for other logs, by log.
    pub apart: Vec<(String, u64)>,
}

/// See the module's text. Clones are one spool.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    file: EmbeddedLog,
    settings: SpoolSettings,
    bounds: Bounds,
    apart: Vec<(String, u64)>,
    inner: Mutex<Inner>,
    /// Appends to the file whose outcome is not known yet. Grows under the lock of `inner` only.
    pending: AtomicU64,
    /// Whether an append to the file failed, so that usage and hours may count records that are not there.
    is_stale: AtomicBool,
    /// Wakes the forwarding task.
    wake: Notify,
    stop: CancellationToken,
    forwarding: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    lock: File,
}

struct Inner {
    gate: Gate,
    /// When each direct append began.
    began: BTreeMap<Ticket, Instant>,
    /// Records that wait for their place in the spool.
    waiting: BTreeMap<Ticket, Waiting>,
    usage: Usage,
    /// Records that are set aside.
    aside: u64,
    /// The records by hour and source.
    hours: BTreeMap<HourKey, u64>,
    spooled: u64,
    forwarded: u64,
    trouble: Option<String>,
    stranded: Option<LogId>,
    /// Records that were refused since the spool was full.
    refused: u64,
    /// The bytes of the last of them.
    refused_bytes: u64,
    /// The first offset that the log has not acknowledged.
    next: Offset,
}

impl Spool {
    /// Opens the spool of a log in a directory, and starts to forward what an earlier process left in it.
    pub(crate) async fn open(log: &KafkaLog, settings: SpoolSettings) -> Result<Self, OpenError> {
        let place = QueueFile {
            name: "the spool",
            prefix: "spool-",
            lock: "lock",
            directory: &settings.directory,
            queue_max: settings.queue_max,
            batch_max: settings.batch_max,
            adopt: settings.adopt,
        };
        let (file, apart, lock) = file::open(log.id(), &place).await?;
        let bounds = Bounds {
            bytes_max: settings.bytes_max,
            age_ms_max: i64::try_from(settings.age_max.as_millis()).unwrap_or(i64::MAX),
        };
        let failed = |source| OpenError::Spool { path: settings.directory.clone(), source: Arc::new(source) };
        let (usage, hours) = count(&file).await.map_err(failed)?;
        if usage.records > 0 {
            tracing::info!(
                records = usage.records,
                bytes = usage.bytes,
                "the spool holds records of an earlier process; they are forwarded first"
            );
        }
        let inner = Inner {
            // A log that was away when it was opened is away until it answers.
            gate: Gate::new(usage.records > 0 || log.began_away()),
            began: BTreeMap::new(),
            waiting: BTreeMap::new(),
            usage,
            aside: 0,
            hours,
            spooled: 0,
            forwarded: 0,
            trouble: log.began_away().then(|| "no broker has answered since the start".to_owned()),
            stranded: None,
            refused: 0,
            refused_bytes: RECORD_BYTES,
            next: Offset::ZERO,
        };
        let spool = Self(Arc::new(Shared {
            file,
            bounds,
            settings,
            apart,
            inner: Mutex::new(inner),
            pending: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            forwarding: tokio::sync::Mutex::new(None),
            lock,
        }));
        let task = tokio::spawn(forward::run(spool.clone(), log.downgrade()));
        *spool.0.forwarding.lock().await = Some(task);
        Ok(spool)
    }

    /// The spool now.
    pub fn status(&self) -> SpoolStatus {
        let inner = self.inner();
        let state = match (&inner.stranded, inner.gate.mode(), &inner.trouble) {
            (Some(_), ..) => SpoolState::Stranded,
            (None, Mode::Direct, _) => SpoolState::Idle,
            (None, Mode::Spooling | Mode::Returning, None) => SpoolState::Forwarding,
            (None, Mode::Switching | Mode::Spooling | Mode::Returning, Some(_))
            | (None, Mode::Switching, None) => SpoolState::Spooling,
        };
        // A record of the size that was refused last; the space of a smaller one is no help to most.
        let needed = if inner.refused > 0 { inner.refused_bytes } else { RECORD_BYTES };
        SpoolStatus {
            id: self.0.file.id().to_string(),
            directory: self.0.settings.directory.clone(),
            state,
            records: inner.usage.records,
            bytes: inner.usage.bytes,
            bytes_max: self.0.bounds.bytes_max,
            oldest_ms: inner.usage.oldest_ms,
            set_aside: inner.aside,
            spooled: inner.spooled,
            forwarded: inner.forwarded,
            full: self.0.bounds.admit(&inner.usage, needed, now_ms()).err(),
            trouble: inner.trouble.clone(),
            apart: self.0.apart.clone(),
        }
    }

    /// The records that it holds, by the hour and source that they are counted by.
    pub fn hours(&self) -> Vec<(HourKey, u64)> {
        self.inner().hours.iter().map(|(key, records)| (*key, *records)).collect()
    }

    /// Stops to forward and closes the file. What it holds stays there for the next process. To be called when no append
    /// can come any more.
    pub(crate) async fn close(&self, log: &KafkaLog) {
        self.0.stop.cancel();
        let Some(task) = self.0.forwarding.lock().await.take() else { return };
        if let Err(error) = task.await {
            tracing::error!(error = %error, "forwarding the spool ended with a panic");
        }
        let (mode, records) = {
            let inner = self.inner();
            (inner.gate.mode(), inner.usage.records)
        };
        if matches!(mode, Mode::Spooling | Mode::Returning) {
            // A log that is away must not hold up the stop.
            log.abandon().await;
        }
        self.0.file.close().await;
        if let Err(error) = self.0.lock.unlock() {
            tracing::warn!(error = %error, "the spool's directory cannot be unlocked before the process ends");
        }
        if records > 0 {
            tracing::warn!(
                records,
                directory = %self.0.settings.directory.display(),
                "the spool holds accepted events that the log does not have yet; the next start on this directory forwards \
                 them"
            );
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a record, as the bound counts them.
pub(crate) fn bytes(record: &NewRecord) -> u64 {
    record.value.len() as u64 + RECORD_BYTES
}

/// The hour and source that a record is counted by, as its collector counts it.
pub(crate) fn hour_key(record: &NewRecord) -> HourKey {
    Glance::of(&record.value).hour_key(0)
}

/// Reads all records and counts them.
pub(crate) async fn count(file: &EmbeddedLog) -> Result<(Usage, BTreeMap<HourKey, u64>), LogError> {
    let (mut usage, mut hours) = (Usage::default(), BTreeMap::new());
    let mut next = Offset::ZERO;
    loop {
        let records = file.front(next, forward::RECORDS_MAX, forward::BYTES_MAX).await?;
        let Some(last) = records.last() else { break };
        next = last.offset.next();
        for queued in &records {
            usage.records += 1;
            usage.bytes += bytes(&queued.record);
            *hours.entry(hour_key(&queued.record)).or_default() += 1;
        }
    }
    usage.oldest_ms = file.oldest_ms().await?;
    Ok((usage, hours))
}

#[expect(clippy::disallowed_methods, reason = "a spool is an edge: it tells how old its records are")]
pub(crate) fn now_ms() -> i64 {
    ms_since_1970(SystemTime::now())
}
