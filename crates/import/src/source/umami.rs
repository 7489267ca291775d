//! An Umami database: of each website, link or pixel first its events in the order of time, each with its data, revenue
//! and session; then the sessions that have properties or no event; then properties of sessions that have no row.

use std::collections::BTreeMap;

use dashi_domain::imported::Imported;
use dashi_event_log::NewRecord;
use dashi_store::{HistoryRows, HistorySource, HistorySourceKind, LeftOut, Place, StoreError, UmamiHistory};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{BATCHES_MAX, Reading};
use crate::ImportError;
use crate::batch::{BATCH_ROWS_MAX, Batch, Item, Position, Reject, Wanted};

/// Sessions that are read at once: most of them give no record.
const SESSIONS_MAX: u32 = 2_000;

/// Rows without a time that are reported, at most, of each table.
const WITHOUT_TIME_MAX: u32 = 10_000;

/// An Umami database that is imported.
pub struct UmamiSource {
    history: UmamiHistory,
    /// Its address, without its password.
    address: String,
    /// Only these; all that are not deleted if there are none.
    websites: Vec<Uuid>,
}

/// How far a database is read, by website, link or pixel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UmamiPosition {
    sources: BTreeMap<Uuid, SourcePosition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SourcePosition {
    stage: Stage,
    events: Option<Place>,
    sessions: Option<Place>,
    without_row: Option<Uuid>,
    /// When this round began, by the database's clock, microseconds since 1970.
    began_us: i64,
    /// When the round before began: sessions that have not changed since then are in the log already.
    changed_since_us: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    #[default]
    Events,
    Sessions,
    WithoutRow,
    Done,
}

impl UmamiSource {
    /// History of these websites, links and pixels; of all that are not deleted, if `websites` is empty.
    pub fn new(history: UmamiHistory, address: String, websites: Vec<Uuid>) -> Self {
        Self { history, address, websites }
    }

    pub(crate) fn identity(&self) -> String {
        let mut websites: Vec<String> = self.websites.iter().map(Uuid::to_string).collect();
        websites.sort();
        let of = if websites.is_empty() { String::new() } else { format!(" of {}", websites.join(", ")) };
        format!("umami: {}{of}", self.address)
    }

    pub(crate) async fn start(self, mut position: UmamiPosition) -> Result<Reading, ImportError> {
        let Self { history, websites, .. } = self;
        let all = history.sources().await?;
        if let Some(absent) = websites.iter().find(|id| !all.iter().any(|source| source.id == **id)) {
            return Err(ImportError::NotInSource(*absent));
        }
        let is_named = |source: &HistorySource| websites.contains(&source.id);
        let is_deleted = |source: &HistorySource| {
            matches!(source.kind, HistorySourceKind::DeletedWebsite | HistorySourceKind::Unknown)
        };
        let (chosen, left): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|source| is_named(source) || websites.is_empty() && !is_deleted(source));
        let mut notes = Vec::new();
        if websites.is_empty() {
            notes.extend(left.iter().map(|source| {
                format!(
                    "the website {} is deleted in the source: its rows are left out; --website {} imports them",
                    source.id, source.id
                )
            }));
        }
        let is_website = |source: &&HistorySource| {
            !matches!(source.kind, HistorySourceKind::Link | HistorySourceKind::Pixel)
        };
        let wanted = chosen
            .iter()
            .filter(is_website)
            .map(|source| Wanted { id: source.id, name: source.name.clone(), domain: source.domain.clone() })
            .collect();
        let now_us = history.now_us().await?;
        let mut total = 0;
        for source in &chosen {
            let at = position
                .sources
                .entry(source.id)
                .or_insert_with(|| SourcePosition { began_us: now_us, ..SourcePosition::default() });
            if at.stage == Stage::Done {
                // A further round: later events, and sessions that have changed.
                *at = SourcePosition {
                    stage: Stage::Events,
                    events: at.events,
                    sessions: None,
                    without_row: None,
                    began_us: now_us,
                    changed_since_us: Some(at.began_us),
                };
            }
            let (events, sessions) = history.counts(source.id, at.events, at.sessions).await?;
            total += events + sessions;
        }
        let (sender, batches) = mpsc::channel(BATCHES_MAX);
        let sources = chosen.into_iter().map(|source| source.id).collect();
        let mut reader = DatabaseReader { history, sources, position, sender, done: 0 };
        let task = tokio::spawn(async move {
            if let Err(Ended::Failed(error)) = reader.run().await {
                // Nobody may be there any more.
                let _ = reader.sender.send(Err(error.into())).await;
            }
            reader.history.close().await;
        });
        Ok(Reading { batches, total, wanted, notes, task })
    }
}

/// Why reading ended before the end.
enum Ended {
    Failed(StoreError),
    /// The importer wants no more.
    Unwanted,
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

struct DatabaseReader {
    history: UmamiHistory,
    sources: Vec<Uuid>,
    position: UmamiPosition,
    sender: mpsc::Sender<Result<Batch, ImportError>>,
    done: u64,
}

impl DatabaseReader {
    async fn run(&mut self) -> Result<(), Ended> {
        for source in self.sources.clone() {
            loop {
                let at = self.position.sources.entry(source).or_default().clone();
                match at.stage {
                    Stage::Events => self.events(source, at).await?,
                    Stage::Sessions => self.sessions(source, at).await?,
                    Stage::WithoutRow => self.without_row(source, at).await?,
                    Stage::Done => break,
                }
            }
        }
        Ok(())
    }

    async fn events(&mut self, source: Uuid, mut at: SourcePosition) -> Result<(), Ended> {
        let rows = self.history.events(source, at.events, BATCH_ROWS_MAX as u32).await?;
        let mut left_out = Vec::new();
        match rows.last() {
            Some(last) => at.events = Some(last.place),
            None => {
                at.stage = Stage::Sessions;
                left_out = self.history.without_time(source, WITHOUT_TIME_MAX).await?;
            }
        }
        self.send(source, at, rows, left_out, true).await
    }

    async fn sessions(&mut self, source: Uuid, mut at: SourcePosition) -> Result<(), Ended> {
        let rows = self.history.sessions(source, at.sessions, at.changed_since_us, SESSIONS_MAX).await?;
        match rows.last() {
            Some(last) => at.sessions = Some(last.place),
            None => at.stage = Stage::WithoutRow,
        }
        self.send(source, at, rows, Vec::new(), true).await
    }

    async fn without_row(&mut self, source: Uuid, mut at: SourcePosition) -> Result<(), Ended> {
        let since = at.changed_since_us;
        let rows = self.history.sessions_without_row(source, at.without_row, since, SESSIONS_MAX).await?;
        match rows.last() {
            Some(last) => at.without_row = Some(last.place.1),
            None => at.stage = Stage::Done,
        }
        self.send(source, at, rows, Vec::new(), false).await
    }

    /// Sends rows as batches that are small enough, the last of them with the new position.
    async fn send(
        &mut self,
        source: Uuid,
        at: SourcePosition,
        rows: Vec<HistoryRows>,
        left_out: Vec<LeftOut>,
        is_counted: bool,
    ) -> Result<(), Ended> {
        let mut rejects: Vec<Reject> = left_out.into_iter().map(reject).collect();
        let mut rows = rows.into_iter().peekable();
        loop {
            let mut batch = Batch::default();
            let mut count = 0;
            let mut bytes = 0;
            while batch.items.len() < BATCH_ROWS_MAX && bytes < crate::batch::BATCH_BYTES_MAX {
                let Some(HistoryRows { imported, left_out, .. }) = rows.next() else { break };
                count += 1;
                batch.rejects.extend(left_out.into_iter().map(reject));
                if let Some(imported) = imported {
                    let item = item(&imported);
                    bytes += item.record.value.len();
                    batch.items.push(item);
                }
            }
            batch.read = count;
            if is_counted {
                self.done += count;
            }
            batch.done = self.done;
            let is_last = rows.peek().is_none();
            if is_last {
                batch.rejects.append(&mut rejects);
                self.position.sources.insert(source, at.clone());
            }
            batch.position = is_last.then(|| Position::Umami(self.position.clone()));
            self.sender.send(Ok(batch)).await.map_err(|_| Ended::Unwanted)?;
            if is_last {
                return Ok(());
            }
        }
    }
}

fn item(imported: &Imported) -> Item {
    Item {
        line: 0,
        id: imported.record_id,
        at_ms: imported.at_ms,
        website: None,
        record: NewRecord { session_id: imported.session_id, value: imported.encode() },
    }
}

fn reject(left_out: LeftOut) -> Reject {
    let LeftOut { table, id, reason } = left_out;
    Reject { file: None, line: None, table: Some(table), id: Some(id), reason, text: None }
}
