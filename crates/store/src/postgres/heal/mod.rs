//! Healing a database that Umami wrote: the damage is found slice by slice, and repaired in batches, each a transaction
//! whose undo lines are kept before it commits. Nothing of the schema `dashi` is needed.

mod statements;

use std::collections::BTreeMap;
use std::time::Instant;

use async_recursion::async_recursion as boxed;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::QueryScalar;
use uuid::Uuid;

use super::PostgresStore;
use crate::StoreError;
use crate::heal::{OrphanedSession, Orphaning, Sibling, Sweep, WebsiteState};

/// Examples of each kind of damage in a report, at most.
const SAMPLES_MAX: usize = 5;

/// Sessions with doubled properties that are counted one by one, at most: beyond that the number is a lower bound.
const LOCKED_MAX: usize = 1_000_000;

/// The part of the database to heal, and the size of a transaction.
#[derive(Debug, Clone, Copy)]
pub struct HealScope {
    /// Only this website's rows.
    pub website: Option<Uuid>,
    /// Rows in one transaction, at most; at least 1.
    pub batch_max: usize,
}

/// The damage that was found, and the repairs that were made.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HealReport {
    /// Sessions without a row, by cause.
    pub orphaned_sessions: BTreeMap<Orphaning, Orphans>,
    /// Rows of `session_data` that are there twice or more, without the one of each that stays.
    pub doubled_properties: u64,
    /// Sessions that have such rows: every later identify of such a key fails in Umami up to 3.2.
    pub locked_sessions: u64,
    /// Examples of them: session and key.
    pub doubled_samples: Vec<(Uuid, String)>,
    /// Events whose data names an amount and a currency, and that have no row in `revenue`.
    pub missing_revenue: u64,
    /// Examples of them.
    pub revenue_samples: Vec<Uuid>,
    /// Rows of `event_data` whose event is not there. They are left as they are.
    pub stray_event_data: u64,
    /// Examples of them: the events.
    pub stray_samples: Vec<Uuid>,
    /// Rows that were inserted or deleted; none of them is a row that another program wrote meanwhile.
    pub repaired: u64,
}

/// Sessions without a row for one cause.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Orphans {
    /// Sessions.
    pub sessions: u64,
    /// Their events.
    pub events: u64,
    /// The sessions that are left as they are: those of a deleted website.
    pub left: u64,
    /// Examples.
    pub samples: Vec<OrphanedSession>,
}

impl HealReport {
    /// Whether there is anything that a repair would change.
    pub fn is_sound(&self) -> bool {
        self.orphaned_sessions.values().all(|orphans| orphans.sessions == orphans.left)
            && self.doubled_properties == 0
            && self.missing_revenue == 0
    }
}

/// One change of a repair, with the values that take it back. A line of the undo file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "did")]
pub enum Repair {
    /// A row of `session` was inserted.
    InsertedSession {
        /// The row as JSON.
        row: String,
    },
    /// A row of `session_data` was deleted.
    DeletedProperty {
        /// The row as JSON.
        row: String,
    },
    /// A row of `revenue` was inserted.
    InsertedRevenue {
        /// The row as JSON.
        row: String,
    },
}

/// Errors that end healing early. Committed repairs stay, and running it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The undo lines could not be kept, so the batch was not committed.
    #[error("the undo file cannot be written, so this batch was not committed")]
    Undo(#[source] std::io::Error),
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Keeps undo lines. They must be durable when it returns; the batch commits after that.
pub trait KeepUndo {
    /// Keeps the lines of one batch.
    ///
    /// # Errors
    /// They are not durable: the batch is not committed.
    fn keep(&mut self, batch: &[Repair]) -> std::io::Result<()>;
}

/// Receives the progress: the part that is being worked on, and its share from 0 to 1. False as its result stops the
/// work before the next batch.
pub type OnProgress<'p> = &'p mut (dyn FnMut(&'static str, f64) -> bool + Send);

impl PostgresStore {
    /// Finds damage, and repairs it if there is an `undo`, which keeps the lines that take the repair back.
    ///
    /// Each batch is durable when the next begins. It may be run beside Umami and Dashi: rows that they write meanwhile
    /// win. `salt_start_ms` is described at [`OrphanedSession::orphaning`].
    ///
    /// # Errors
    /// See [`HealError`]; run it again.
    pub async fn heal(
        &self,
        scope: HealScope,
        salt_start_ms: impl Fn(i64) -> i64,
        mut undo: Option<&mut (dyn KeepUndo + Send)>,
        on_progress: OnProgress<'_>,
    ) -> Result<HealReport, HealError> {
        self.read_catalogue().await?;
        let mut report = HealReport::default();
        self.heal_sessions(scope, &salt_start_ms, &mut undo, on_progress, &mut report).await?;
        self.heal_properties(scope, &mut undo, on_progress, &mut report).await?;
        self.heal_revenue(scope, &mut undo, on_progress, &mut report).await?;
        Ok(report)
    }

    async fn heal_sessions(
        &self,
        scope: HealScope,
        salt_start_ms: &impl Fn(i64) -> i64,
        undo: &mut Option<&mut (dyn KeepUndo + Send)>,
        on_progress: OnProgress<'_>,
        report: &mut HealReport,
    ) -> Result<(), HealError> {
        let mut sweep = Sweep::new(0, u64::MAX);
        while let Some((first, last)) = sweep.slice() {
            go_on("sessions", &sweep, on_progress)?;
            let began = Instant::now();
            let rows = sqlx::query(statements::FIND_SESSIONS)
                .bind(first_id(first))
                .bind(last_id(last))
                .bind(scope.website)
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::away("looking for sessions without a row"))?;
            let took = began.elapsed();
            let found: Result<Vec<_>, _> = rows.iter().map(orphaned).collect();
            let found = found.map_err(StoreError::away("reading a session without a row"))?;
            let mut repaired = Vec::new();
            for orphan in found {
                let cause = orphan.orphaning(salt_start_ms);
                let orphans = report.orphaned_sessions.entry(cause).or_default();
                orphans.sessions += 1;
                orphans.events += orphan.events as u64;
                orphans.left += u64::from(!orphan.is_repaired());
                if orphans.samples.len() < SAMPLES_MAX {
                    orphans.samples.push(orphan.clone());
                }
                if orphan.is_repaired() {
                    repaired.push((orphan, cause));
                }
            }
            if let Some(undo) = undo {
                for batch in repaired.chunks(scope.batch_max.max(1)) {
                    report.repaired += self.insert_sessions(batch, &mut **undo).await?;
                }
            }
            if !sweep.advance(took) {
                break;
            }
        }
        Ok(())
    }

    async fn insert_sessions(
        &self,
        batch: &[(OrphanedSession, Orphaning)],
        undo: &mut (dyn KeepUndo + Send),
    ) -> Result<u64, HealError> {
        let inserting = sqlx::query_scalar(statements::INSERT_SESSIONS)
            .bind(column!(batch, it => it.0.session_id))
            .bind(column!(batch, it => it.0.website_id))
            .bind(column!(batch, it => it.0.first_us))
            .bind(column!(batch, it => it.0.distinct_id.as_deref()))
            .bind(column!(batch, it => it.0.sibling.as_ref().map(|sibling| sibling.session_id)))
            .bind(column!(batch, it => it.1.keeps_place()));
        let repair = |row| Repair::InsertedSession { row };
        self.repair("inserting rows of sessions", inserting, repair, undo).await
    }

    async fn heal_properties(
        &self,
        scope: HealScope,
        undo: &mut Option<&mut (dyn KeepUndo + Send)>,
        on_progress: OnProgress<'_>,
        report: &mut HealReport,
    ) -> Result<(), HealError> {
        let doing = "looking for doubled properties";
        let mut locked = std::collections::HashSet::new();
        let mut sweep = Sweep::new(0, u64::MAX);
        while let Some((first, last)) = sweep.slice() {
            go_on("properties", &sweep, on_progress)?;
            let began = Instant::now();
            let doubled: Vec<(Uuid, Uuid, String)> = sqlx::query_as(statements::FIND_DOUBLED)
                .bind(first_id(first))
                .bind(last_id(last))
                .bind(scope.website)
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::away(doing))?;
            let took = began.elapsed();
            report.doubled_properties += doubled.len() as u64;
            for (_, session_id, key) in &doubled {
                if locked.len() < LOCKED_MAX {
                    locked.insert(*session_id);
                }
                if report.doubled_samples.len() < SAMPLES_MAX {
                    report.doubled_samples.push((*session_id, key.clone()));
                }
            }
            if let Some(undo) = undo {
                for batch in doubled.chunks(scope.batch_max.max(1)) {
                    report.repaired += self.delete_doubled(batch, &mut **undo).await?;
                }
            }
            if !sweep.advance(took) {
                break;
            }
        }
        report.locked_sessions = locked.len() as u64;
        Ok(())
    }

    async fn delete_doubled(
        &self,
        batch: &[(Uuid, Uuid, String)],
        undo: &mut (dyn KeepUndo + Send),
    ) -> Result<u64, HealError> {
        let deleting = sqlx::query_scalar(statements::DELETE_DOUBLED)
            .bind(column!(batch, it => it.0))
            .bind(column!(batch, it => it.1));
        let repair = |row| Repair::DeletedProperty { row };
        self.repair("deleting doubled properties", deleting, repair, undo).await
    }

    async fn heal_revenue(
        &self,
        scope: HealScope,
        undo: &mut Option<&mut (dyn KeepUndo + Send)>,
        on_progress: OnProgress<'_>,
        report: &mut HealReport,
    ) -> Result<(), HealError> {
        let doing = "looking for half-written events";
        let (first, last): (Option<i64>, Option<i64>) = sqlx::query_as(statements::EVENT_DATA_SPAN)
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::away(doing))?;
        let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
        // Keys of a sweep are unsigned.
        let key = |us: i64| us.wrapping_sub(i64::MIN) as u64;
        let us = |key: u64| (key as i64).wrapping_add(i64::MIN);
        let mut sweep = Sweep::new(key(first), key(last));
        while let Some((first, last)) = sweep.slice() {
            go_on("data of events", &sweep, on_progress)?;
            let began = Instant::now();
            let halves: Vec<(Uuid, String, String)> = sqlx::query_as(statements::FIND_REVENUE)
                .bind(us(first))
                .bind(us(last))
                .bind(scope.website)
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::away(doing))?;
            let (strays, samples): (i64, Vec<Uuid>) = sqlx::query_as(statements::FIND_STRAYS)
                .bind(us(first))
                .bind(us(last))
                .bind(scope.website)
                .bind(SAMPLES_MAX as i64)
                .fetch_one(&self.pool)
                .await
                .map_err(StoreError::away(doing))?;
            let took = began.elapsed();
            report.stray_event_data += strays as u64;
            report.stray_samples.extend(samples);
            report.stray_samples.truncate(SAMPLES_MAX);
            report.missing_revenue += halves.len() as u64;
            report.revenue_samples.extend(halves.iter().map(|(event, ..)| *event));
            report.revenue_samples.truncate(SAMPLES_MAX);
            if let Some(undo) = undo {
                for batch in halves.chunks(scope.batch_max.max(1)) {
                    report.repaired += self.insert_revenue_rows(batch, &mut **undo).await?;
                }
            }
            if !sweep.advance(took) {
                break;
            }
        }
        Ok(())
    }

    async fn insert_revenue_rows(
        &self,
        batch: &[(Uuid, String, String)],
        undo: &mut (dyn KeepUndo + Send),
    ) -> Result<u64, HealError> {
        let inserting = sqlx::query_scalar(statements::INSERT_REVENUE)
            .bind(column!(batch, it => it.0))
            .bind(column!(batch, it => dashi_domain::ids::dependent_id(it.0, "revenue")))
            .bind(column!(batch, it => it.1.as_str()))
            .bind(column!(batch, it => it.2.as_str()));
        let repair = |row| Repair::InsertedRevenue { row };
        self.repair("inserting rows of revenue", inserting, repair, undo).await
    }

    /// Repairs one batch: runs a statement that returns the rows it changed, and commits once their undo lines are kept.
    /// Returns how many rows there are.
    async fn repair(
        &self,
        doing: &'static str,
        statement: QueryScalar<'_, Postgres, String, PgArguments>,
        repair: fn(String) -> Repair,
        undo: &mut (dyn KeepUndo + Send),
    ) -> Result<u64, HealError> {
        let mut tx = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let kept = match statement.fetch_all(&mut tx).await {
            Ok(rows) => {
                let repairs: Vec<Repair> = rows.into_iter().map(repair).collect();
                undo.keep(&repairs).map(|()| repairs.len() as u64).map_err(HealError::Undo)
            }
            Err(error) => Err(StoreError::away(doing)(error).into()),
        };
        match kept {
            Ok(count) => {
                tx.commit().await.map_err(StoreError::away(doing))?;
                Ok(count)
            }
            Err(error) => {
                tx.roll_back().await;
                Err(error)
            }
        }
    }

    /// Takes repairs back, the last one first: `repairs` in the order of the undo file. A row that was changed since is
    /// left as it is. Returns how many rows were changed; the batch is durable then. Safe to repeat.
    ///
    /// # Errors
    /// The database failed: nothing of this batch was taken back.
    #[boxed]
    pub async fn undo_heal(&self, repairs: &[Repair]) -> Result<u64, StoreError> {
        let doing = "taking repairs back";
        let mut tx = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let mut changed = 0;
        for repair in repairs.iter().rev() {
            let (statement, row) = match repair {
                Repair::InsertedSession { row } => (statements::UNDO_SESSION, row),
                Repair::DeletedProperty { row } => (statements::UNDO_PROPERTY, row),
                Repair::InsertedRevenue { row } => (statements::UNDO_REVENUE, row),
            };
            match sqlx::query(statement).bind(row).execute(&mut tx).await {
                Ok(done) => changed += done.rows_affected(),
                Err(error) => {
                    tx.roll_back().await;
                    return Err(StoreError::away(doing)(error));
                }
            }
        }
        tx.commit().await.map_err(StoreError::away(doing))?;
        Ok(changed)
    }
}

fn go_on(part: &'static str, sweep: &Sweep, on_progress: OnProgress<'_>) -> Result<(), HealError> {
    if on_progress(part, sweep.share()) { Ok(()) } else { Err(HealError::Stopped) }
}

/// The smallest id whose first 64 bits are the key.
fn first_id(key: u64) -> Uuid {
    Uuid::from_u64_pair(key, 0)
}

/// The greatest one.
fn last_id(key: u64) -> Uuid {
    Uuid::from_u64_pair(key, u64::MAX)
}

fn orphaned(row: &PgRow) -> Result<OrphanedSession, sqlx::Error> {
    let sibling: Option<Uuid> = row.try_get("sibling_id")?;
    let (website_found, deleted, reset): (bool, bool, bool) =
        (row.try_get("website_found")?, row.try_get("website_deleted")?, row.try_get("website_reset")?);
    Ok(OrphanedSession {
        session_id: row.try_get("session_id")?,
        website_id: row.try_get("website_id")?,
        first_us: row.try_get("first_us")?,
        events: row.try_get("events")?,
        properties: row.try_get("properties")?,
        distinct_id: row.try_get("distinct_id")?,
        sibling: match sibling {
            Some(session_id) => Some(Sibling {
                session_id,
                website_id: row.try_get("sibling_website_id")?,
                event_us: row.try_get("sibling_us")?,
                distinct_id: row.try_get("sibling_distinct_id")?,
            }),
            None => None,
        },
        website: match (website_found && !deleted, reset) {
            (false, _) => WebsiteState::Deleted,
            (true, true) => WebsiteState::Reset,
            (true, false) => WebsiteState::There,
        },
    })
}
