//! The way from a source into the log: batches in order, with many appends in flight.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_domain::calendar::iso_string;
use dashi_domain::pace::Wait;
use dashi_domain::position::{Offset, Partition};
use dashi_event_log::{AppendError, EventLog, NewRecord};
use dashi_store::{NewWebsite, Store};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::batch::{Batch, Item, Position, Reject, Wanted};
use crate::pacing::{Admitted, Pacer};
use crate::rejects::Rejects;
use crate::source::Source;
use crate::state::State;
use crate::{ImportError, tail};

/// Appends that wait for the log at once, at most; each is of one batch.
const IN_FLIGHT_MAX: usize = 8;

/// Time between two versions of the state file.
const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// Time until a full queue is tried again.
const FULL_WAIT: Duration = Duration::from_millis(50);

/// Rejects that the report quotes, at most.
const SAMPLES_MAX: usize = 5;

/// Characters of a website's name in Umami's table.
const NAME_CHARS_MAX: usize = 100;

/// How an import is done.
#[derive(Debug, Clone)]
pub struct ImportSettings {
    /// The file of what cannot be taken; made with the first reject.
    pub rejects: PathBuf,
    /// The state file; by default one with a name of source and log, beside the rejects.
    pub state: Option<PathBuf>,
    /// Whether the state of an earlier run is left aside: everything is read again.
    pub from_start: bool,
    /// Records per second, at most.
    pub rate: Option<f64>,
    /// The pace at which live events leave room; `None` appends as fast as the log takes.
    pub pacer: Option<Pacer>,
    /// History from this time on is left out, milliseconds since 1970.
    pub before_ms: Option<i64>,
    /// Whether websites that the store does not have are added.
    pub add_websites: bool,
    /// The time, milliseconds since 1970.
    pub now_ms: i64,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows, or bytes of files, that are done.
    pub done: u64,
    /// All of them.
    pub total: u64,
    /// Whether they are bytes.
    pub is_bytes: bool,
    /// Records that were appended by this run.
    pub appended: u64,
    /// Why it waits now, if it does.
    pub waits: Option<Wait>,
}

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The source, without passwords.
    pub source: String,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Whether the source was read to its end.
    pub complete: bool,
    /// Lines or rows that this run read.
    pub read: u64,
    /// Records that it appended, or would append.
    pub appended: u64,
    /// Records that an earlier run had appended.
    pub already_in_log: u64,
    /// Lines or rows that cannot be taken.
    pub rejected: u64,
    /// Lines or rows that are left out on purpose, by reason.
    pub ignored: BTreeMap<String, u64>,
    /// Websites that were added, or would be.
    pub websites_added: Vec<Uuid>,
    /// Remarks about the source.
    pub notes: Vec<String>,
    /// The file of what cannot be taken, if this run made or continued one.
    pub rejects_file: Option<PathBuf>,
    /// The state file.
    pub state_file: Option<PathBuf>,
    /// The first of what cannot be taken: places and reasons.
    pub reject_samples: Vec<String>,
}

/// Imports. Returns when everything that it appended is durable, and the state file shows it. After `stop` it ends
/// behind the batches that are in flight; the report is not `complete` then. Without a log nothing is written: that is a
/// dry run.
///
/// # Errors
/// By the caller's next step; see [`ImportError`]. What was appended stays, and the next run goes on behind it.
#[boxed]
pub async fn import(
    log: Option<&EventLog>,
    store: &Store,
    source: Source,
    settings: &ImportSettings,
    stop: &CancellationToken,
    show: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Report, ImportError> {
    let mut importing = Importing::begin(log, store, &source, settings).await?;
    let may_be_ours = source.may_have_appended();
    let is_bytes = source.is_bytes();
    if let Some(log) = log {
        if importing.state.offsets.is_empty() {
            importing.state.offsets = tail::ends(log).await?;
        } else {
            importing.appended_before =
                tail::appended_since(log, &importing.state.offsets, may_be_ours).await?;
        }
        importing.write_state()?;
    }
    let mut reading = source.start(importing.state.position.clone(), store).await?;
    importing.report.notes.append(&mut reading.notes);
    for wanted in &reading.wanted {
        importing.know(wanted).await?;
    }
    importing.refuse_unknown()?;
    let total = reading.total;
    let began = Instant::now();
    let mut in_flight: FuturesOrdered<BoxFuture<'_, Appended>> = FuturesOrdered::new();
    let (mut is_reading, mut held, mut waits) = (true, None::<Held>, None);
    while is_reading || held.is_some() || !in_flight.is_empty() {
        tokio::select! {
            biased;
            Some(appended) = in_flight.next(), if !in_flight.is_empty() => {
                importing.appended(appended)?;
                show(importing.progress(total, is_bytes, waits));
            }
            () = stop.cancelled(), if is_reading || held.is_some() => {
                // What is held is not in the log, and is read again by the next run.
                (is_reading, held) = (false, None);
                importing.is_stopped = true;
            }
            admitted = admit(settings.pacer.as_ref(), held.as_ref(), waits.is_some()),
                if held.is_some() && in_flight.len() < IN_FLIGHT_MAX =>
            {
                let admitted = match admitted {
                    Ok(admitted) => admitted,
                    Err(wait) => {
                        waits = Some(wait);
                        show(importing.progress(total, is_bytes, waits));
                        continue;
                    }
                };
                waits = None;
                let (Some(log), Some(mut batch)) = (log, held.take()) else { continue };
                let count = admitted.as_ref().map_or(batch.items.len(), Admitted::records);
                let items = batch.items.drain(..count.min(batch.items.len())).collect();
                let outcome = if batch.items.is_empty() {
                    batch.outcome
                } else {
                    let part = batch.outcome.part();
                    held = Some(batch);
                    part
                };
                let mut append: BoxFuture<'_, Appended> = Box::pin(append(log, items, outcome, admitted));
                // Appends begin in the order of the source: each is asked once before it waits among the others.
                match futures::poll!(&mut append) {
                    std::task::Poll::Ready(appended) => in_flight.push_back(Box::pin(std::future::ready(appended))),
                    std::task::Poll::Pending => in_flight.push_back(append),
                }
            }
            batch = reading.batches.recv(), if is_reading && held.is_none() && in_flight.len() < IN_FLIGHT_MAX => {
                let Some(batch) = batch else {
                    is_reading = false;
                    continue;
                };
                let (items, outcome) = importing.take(log, batch?).await?;
                importing.keep_to_rate(began, settings.rate, stop).await;
                if items.is_empty() {
                    in_flight.push_back(Box::pin(std::future::ready(outcome)));
                } else {
                    held = Some(Held { items: items.into(), outcome });
                }
            }
        }
    }
    if let Some(failure) = reading.failure().await {
        importing.finish(false)?;
        return Err(failure);
    }
    let complete = !importing.is_stopped;
    importing.refuse_unknown()?;
    importing.finish(complete)?;
    Ok(importing.report)
}

/// A batch of which not all records are on their way to the log.
struct Held {
    items: VecDeque<Item>,
    /// For the last of them.
    outcome: Appended,
}

/// Waits until some of the held records may be appended; all of them without a pacer.
async fn admit(
    pacer: Option<&Pacer>,
    held: Option<&Held>,
    has_waited: bool,
) -> Result<Option<Admitted>, Wait> {
    let (Some(pacer), Some(held)) = (pacer, held) else { return Ok(None) };
    if has_waited {
        tokio::time::sleep(pacer.interval()).await;
    }
    pacer.admit(held.items.iter().map(|item| item.record.session_id)).await.map(Some)
}

/// A batch whose records have their outcomes.
struct Appended {
    position: Option<Position>,
    /// `None` if other records of its batch follow.
    done: Option<u64>,
    rejects: Vec<Reject>,
    places: Vec<(Partition, Offset)>,
    failure: Option<AppendError>,
}

impl Appended {
    /// For the first records of a batch of which others follow.
    const fn part(&self) -> Self {
        Self { position: None, done: None, rejects: Vec::new(), places: Vec::new(), failure: None }
    }
}

struct Importing<'i> {
    store: &'i Store,
    settings: &'i ImportSettings,
    state: State,
    /// `None` in a dry run.
    state_path: Option<PathBuf>,
    written_at: Instant,
    rejects: Option<Rejects>,
    /// Lines up to this one were appended by an earlier run, inclusive.
    lines_before: u64,
    appended_before: HashSet<Uuid>,
    known: HashSet<Uuid>,
    unknown: BTreeSet<Uuid>,
    /// Records handed to the log.
    sent: u64,
    done: u64,
    is_stopped: bool,
    report: Report,
}

impl<'i> Importing<'i> {
    async fn begin(
        log: Option<&EventLog>,
        store: &'i Store,
        source: &Source,
        settings: &'i ImportSettings,
    ) -> Result<Self, ImportError> {
        let before = settings.before_ms.map_or_else(String::new, |ms| format!(", before {}", iso_string(ms)));
        let identity = source.identity() + &before;
        let files = source.files()?;
        let log_id = log.map_or_else(String::new, |log| log.id().to_string());
        let mut notes = Vec::new();
        let mut state = State::new(&identity, &log_id, files.clone());
        let state_path = log.map(|_| {
            let beside = || settings.rejects.with_file_name(State::file_name(&identity, &log_id));
            settings.state.clone().unwrap_or_else(beside)
        });
        let mut own_rejects = None;
        if let Some(path) = &state_path {
            let before = match State::read(path, &identity, &log_id) {
                Err(_) if settings.from_start => None,
                before => before?,
            };
            own_rejects = before.as_ref().and_then(|before| before.rejects.clone());
            if let Some(before) = before.filter(|_| !settings.from_start) {
                if before.is_of(&files) {
                    state = before;
                    state.files = files;
                } else {
                    notes.push(
                        "the files are others than those of the last run: they are read from the beginning"
                            .to_owned(),
                    );
                    // What that run appended is behind these offsets as well.
                    state.offsets = before.offsets;
                }
                if state.complete {
                    // Nothing of that run is beyond its position.
                    state.offsets.clear();
                }
            }
        }
        state.complete = false;
        let goes_on = source.goes_on_without_reading_again() && state.position.is_some();
        let rejects = match log {
            Some(_) => Some(Rejects::new(settings.rejects.clone(), own_rejects.as_deref(), goes_on)?),
            None => None,
        };
        let lines_before = match &state.position {
            Some(Position::Lines(lines)) => *lines,
            _ => 0,
        };
        let known = store.websites().await?.into_iter().map(|website| website.id).collect();
        let report = Report {
            source: identity,
            dry_run: log.is_none(),
            notes,
            state_file: state_path.clone(),
            ..Report::default()
        };
        Ok(Self {
            store,
            settings,
            state,
            state_path,
            written_at: Instant::now(),
            rejects,
            lines_before,
            appended_before: HashSet::new(),
            known,
            unknown: BTreeSet::new(),
            sent: 0,
            done: 0,
            is_stopped: false,
            report,
        })
    }

    /// Makes sure that the store has a website, or remembers that it has not.
    async fn know(&mut self, wanted: &Wanted) -> Result<(), ImportError> {
        if self.known.contains(&wanted.id) {
            return Ok(());
        }
        if !self.settings.add_websites {
            self.unknown.insert(wanted.id);
            return Ok(());
        }
        if !self.report.dry_run {
            let name = wanted.name.clone().or_else(|| wanted.domain.clone());
            let name = name.unwrap_or_else(|| wanted.id.to_string());
            let name = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
            let website = NewWebsite { id: wanted.id, name, domain: wanted.domain.clone() };
            self.store.add_website(&website, self.settings.now_ms).await?;
        }
        self.known.insert(wanted.id);
        self.report.websites_added.push(wanted.id);
        Ok(())
    }

    fn refuse_unknown(&mut self) -> Result<(), ImportError> {
        if self.unknown.is_empty() {
            return Ok(());
        }
        // What was appended before the first of them stays, and is in the state.
        self.finish(false)?;
        Err(ImportError::UnknownWebsites(std::mem::take(&mut self.unknown).into_iter().collect()))
    }

    fn progress(&self, total: u64, is_bytes: bool, waits: Option<Wait>) -> Progress {
        let (done, appended) = (self.done, self.report.appended);
        Progress { done, total: total.max(done), is_bytes, appended, waits }
    }

    /// Counts a batch. Returns what is new in it and is to be appended, and the outcome of the rest.
    async fn take(
        &mut self,
        log: Option<&EventLog>,
        batch: Batch,
    ) -> Result<(Vec<Item>, Appended), ImportError> {
        let Batch { items, rejects, ignored, read, done, position } = batch;
        self.report.read += read;
        for (reason, count) in ignored {
            *self.report.ignored.entry(reason.to_owned()).or_default() += count;
        }
        let (items, late): (Vec<_>, Vec<_>) = items
            .into_iter()
            .partition(|item| self.settings.before_ms.is_none_or(|before| item.at_ms < before));
        if !late.is_empty() {
            *self.report.ignored.entry("not before the time given".to_owned()).or_default() +=
                late.len() as u64;
        }
        for wanted in items.iter().filter_map(|item| item.website.as_ref()) {
            self.know(wanted).await?;
        }
        let mut new = Vec::with_capacity(items.len());
        for item in items {
            if item.line > 0 && item.line <= self.lines_before || self.appended_before.remove(&item.id) {
                self.report.already_in_log += 1;
            } else {
                new.push(item);
            }
        }
        let nothing = Appended { position, done: Some(done), rejects, places: Vec::new(), failure: None };
        // After the first website that is not known the rest is only read, for the others.
        if log.is_none() || !self.unknown.is_empty() {
            if self.report.dry_run {
                self.report.appended += new.len() as u64;
            }
            let position = nothing.position.filter(|_| self.unknown.is_empty());
            return Ok((Vec::new(), Appended { position, ..nothing }));
        }
        self.sent += new.len() as u64;
        Ok((new, nothing))
    }

    async fn keep_to_rate(&self, began: Instant, rate: Option<f64>, stop: &CancellationToken) {
        let Some(rate) = rate else { return };
        let due = began + Duration::from_secs_f64(self.sent as f64 / rate);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = stop.cancelled() => {}
        }
    }

    fn appended(&mut self, appended: Appended) -> Result<(), ImportError> {
        let Appended { position, done, rejects, places, failure } = appended;
        self.report.appended += places.len() as u64;
        for (partition, offset) in places {
            let next = self.state.offsets.entry(partition.number()).or_insert(0);
            *next = (*next).max(offset.next().number());
        }
        if let Some(failure) = failure {
            self.finish(false)?;
            return Err(ImportError::Append(failure));
        }
        self.report.rejected += rejects.len() as u64;
        for reject in rejects.iter().take(SAMPLES_MAX.saturating_sub(self.report.reject_samples.len())) {
            self.report.reject_samples.push(sample(reject));
        }
        if let Some(file) = &mut self.rejects {
            file.write(&rejects)?;
        }
        self.done = done.unwrap_or(self.done);
        // Lines of an earlier run are read again, and do not move the state back.
        let is_further = match (&position, &self.state.position) {
            (Some(Position::Lines(now)), Some(Position::Lines(before))) => now > before,
            (position, _) => position.is_some(),
        };
        if is_further {
            self.state.position = position;
        }
        if self.written_at.elapsed() >= STATE_INTERVAL {
            self.write_state()?;
        }
        Ok(())
    }

    fn write_state(&mut self) -> Result<(), ImportError> {
        if let Some(rejects) = &mut self.rejects {
            rejects.flush()?;
            if rejects.is_made() {
                self.state.rejects = Some(rejects.path().to_owned());
            }
        }
        if let Some(path) = &self.state_path {
            self.state.write(path)?;
        }
        self.written_at = Instant::now();
        Ok(())
    }

    fn finish(&mut self, complete: bool) -> Result<(), ImportError> {
        self.report.complete = complete;
        self.state.complete = complete;
        self.write_state()?;
        if let Some(rejects) = self.rejects.as_ref().filter(|rejects| rejects.is_made()) {
            self.report.rejects_file = Some(rejects.path().to_owned());
        }
        Ok(())
    }
}

/// Appends records in their order; what the log is too small for is a reject.
async fn append(
    log: &EventLog,
    items: Vec<Item>,
    mut appended: Appended,
    _admitted: Option<Admitted>,
) -> Appended {
    let mut waiting = items;
    while !waiting.is_empty() {
        let records: Vec<NewRecord> = waiting.iter().map(|item| item.record.clone()).collect();
        let outcomes = log.append(records).await;
        let mut full = Vec::new();
        for (item, outcome) in waiting.into_iter().zip(outcomes) {
            match outcome {
                Ok(place) => appended.places.push(place),
                Err(AppendError::Full) => full.push(item),
                Err(error @ AppendError::TooLarge { .. }) => appended.rejects.push(Reject {
                    line: Some(item.line).filter(|line| *line > 0),
                    id: Some(item.id),
                    ..Reject::line(0, error.to_string(), &[])
                }),
                Err(error) => drop(appended.failure.get_or_insert(error)),
            }
        }
        waiting = full;
        if !waiting.is_empty() {
            tokio::time::sleep(FULL_WAIT).await;
        }
    }
    appended
}

fn sample(reject: &Reject) -> String {
    let place = match (&reject.file, reject.line, reject.table, reject.id) {
        (Some(file), Some(line), ..) => format!("{file}:{line}"),
        (None, Some(line), ..) => format!("line {line}"),
        (_, _, Some(table), Some(id)) => format!("{table} {id}"),
        (_, _, _, Some(id)) => id.to_string(),
        _ => "source".to_owned(),
    };
    format!("{place}: {}", reject.reason)
}
