//! The swap: one transaction, in which the tables change their schemas.
//!
//! Its steps, and who waits meanwhile:
//!
//! 1. Nobody. The generation gets what it lacks, is caught up, and foreign rows are searched for.
//! 2. The projector's commits: `dashi.checkpoint` is locked, the generation is caught up with the last records, the
//!    tables are locked against other writers, foreign rows are settled.
//! 3. Readers: all tables are locked exclusively and change their schemas. At first the locks are taken only in a moment
//!    in which all tables are free. Where no such moment comes, readers that are at work are waited for, shortly, since
//!    new ones wait behind this request; then the request is withdrawn, and made again a little later.
//! 4. The commit.

use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};

use super::foreign::{Candidates, Keyed};
use super::tables::{Live, differences, refuse};
use super::{Ended, is_about_locks, lock_timeout, read_all, read_one, schema_of};
use crate::StoreError;
use crate::generation::{
    Foreign, ForeignRows, GenerationError, GenerationState, SwapError, Swapped,
    check_reached as check_reached_by,
};
use crate::postgres::catalogue::Catalogue;
use crate::postgres::pool::{Session, is_known, quoted};
use crate::postgres::profile::CHANNEL;
use crate::postgres::schema::lock;
use crate::postgres::{LONG, PostgresStore};

const DOING: &str = "swapping generations";

/// How long the attempts of step 3 go on.
const READERS_MAX: Duration = Duration::from_secs(60);

/// How long a moment is looked for in which no reader is at work, and how often.
const FREE_MAX: Duration = Duration::from_secs(1);
const FREE_PAUSE: Duration = Duration::from_millis(5);

/// How long one attempt to lock readers out may wait for them, and the pause between two: in an attempt new readers wait.
const ATTEMPT_FIRST: Duration = Duration::from_millis(50);
const ATTEMPT_MAX: Duration = Duration::from_millis(800);
const PAUSE: Duration = Duration::from_millis(250);

/// What each table may be waited for at least, and how statements get as long as they need again.
const LOCK_MIN: Duration = Duration::from_millis(5);
const UNLIMITED: &str = "SET LOCAL statement_timeout = 0";

/// How long the outcome of a commit that was not answered is asked for.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Why the transaction did not take place.
enum Stopped<E> {
    Failed(sqlx::Error),
    Because(SwapError<E>),
}

impl<E> From<sqlx::Error> for Stopped<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl<E> From<SwapError<E>> for Stopped<E> {
    fn from(error: SwapError<E>) -> Self {
        Self::Because(error)
    }
}

impl<E> From<GenerationError> for Stopped<E> {
    fn from(error: GenerationError) -> Self {
        Self::Because(error.into())
    }
}

impl<E> From<Ended> for Stopped<E> {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Failed(error) => Self::Failed(error),
            Ended::Because(error) => Self::Because(error.into()),
        }
    }
}

/// Everything done but the commit.
struct Exchanged {
    old: u32,
    held_since: Instant,
    locked_since: Instant,
    retries: u32,
    kept: Vec<ForeignRows>,
    lost: Vec<ForeignRows>,
}

impl PostgresStore {
    pub(crate) async fn swap<E>(
        &self,
        number: u32,
        foreign: Foreign,
        catch_up: impl AsyncFn(&[(LogId, Partition, Checkpoint)]) -> Result<(), E>,
    ) -> Result<Swapped, SwapError<E>> {
        let found = self.generations().await?.into_iter().find(|generation| generation.number == number);
        found.ok_or(GenerationError::None { number })?.check_can_be_swapped()?;
        self.complete(number, &|_| ()).await?;
        let live = self.partitions().await?;
        if let Some(state) = live.iter().find(|state| state.tail.is_some()) {
            return Err(GenerationError::HasTail { partition: state.partition }.into());
        }
        let targets: Vec<_> = live.into_iter().map(|it| (it.log, it.partition, it.checkpoint)).collect();
        catch_up(&targets).await.map_err(SwapError::CatchUp)?;
        let catalogue = self.read_catalogue().await?;
        let mut session = self.pool.begin().await.map_err(StoreError::away(DOING))?;
        let exchanged = exchange(&mut session, &catalogue, number, foreign, &catch_up).await;
        let done = match exchanged {
            Ok(done) => done,
            Err(stopped) => {
                session.roll_back().await;
                return Err(match stopped {
                    Stopped::Failed(error) => StoreError::away(DOING)(error).into(),
                    Stopped::Because(error) => error,
                });
            }
        };
        if let Err(error) = session.commit().await {
            let known = is_known(&error);
            let error = StoreError::away(DOING)(error);
            if known || !self.became_live(number).await.ok_or(SwapError::Unknown(error.clone()))? {
                return Err(error.into());
            }
        }
        let now = Instant::now();
        // The tables that it was read from are others now.
        *self.known_catalogue() = None;
        Ok(Swapped {
            old: done.old,
            writers_held: now - done.held_since,
            readers_locked: now - done.locked_since,
            retries: done.retries,
            foreign_kept: done.kept,
            foreign_lost: done.lost,
        })
    }

    /// After a commit that was not answered: whether the generation is live. `None` if the store does not answer for long.
    async fn became_live(&self, number: u32) -> Option<bool> {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let asked = async {
                let mut session = self.pool.begin().await?;
                // The other transaction may still be going on, and holds this lock.
                lock(&mut session).await?;
                let all = read_all(&mut session).await?;
                session.roll_back().await;
                Ok::<_, sqlx::Error>(
                    all.iter().any(|it| it.number == number && it.state == GenerationState::Live),
                )
            };
            match asked.await {
                Ok(is_live) => return Some(is_live),
                Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(_) => return None,
            }
        }
    }
}

async fn exchange<E>(
    session: &mut Session,
    catalogue: &Catalogue,
    number: u32,
    foreign: Foreign,
    catch_up: &impl AsyncFn(&[(LogId, Partition, Checkpoint)]) -> Result<(), E>,
) -> Result<Exchanged, Stopped<E>> {
    // Each statement has to see what was committed while it waited, whatever the database's default is.
    session.run_raw("SET TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned()).await?;
    session.allow(LONG).await?;
    session.run_raw(lock_timeout()).await?;
    let generation = read_one(session, number).await?;
    generation.check_can_be_swapped()?;
    let schema = generation.place;
    let tables = Live::list(session, catalogue).await?;
    refuse(session, &tables).await?;
    let differences = differences(session, &tables, &schema).await?;
    if !differences.is_empty() {
        return Err(GenerationError::Changed { number, differences }.into());
    }
    let keyed = Keyed::list(session, &tables, &schema).await?;
    check_no_tail(session).await?;
    let candidates = Candidates::search(session, keyed, &schema).await?;
    // That may have taken long.
    catch_up(&live_checkpoints(session).await?).await.map_err(SwapError::CatchUp)?;
    // From here on no other command changes generations, nor makes tables.
    let asked = Instant::now();
    wait(lock(session).await, "another command makes or swaps tables", asked)?;
    let all = read_all(session).await?;
    let live = all.iter().find(|it| it.state == GenerationState::Live).map(|it| it.number);
    let old = live.ok_or(GenerationError::None { number: 0 })?;
    read_one(session, number).await?.check_can_be_swapped()?;

    let held_since = Instant::now();
    lock_writers(session, &["dashi.checkpoint".to_owned()], held_since).await?;
    let targets = live_checkpoints(session).await?;
    catch_up(&targets).await.map_err(SwapError::CatchUp)?;
    // The generation's as well: this also ends a vacuum, which would hold up step 3.
    let both = |table: &Live| {
        [&table.schema, &schema].map(|schema| format!("{}.{}", quoted(schema), quoted(&table.name)))
    };
    let written: Vec<String> = tables.iter().flat_map(both).collect();
    lock_writers(session, &written, held_since).await?;
    check_no_tail(session).await?;
    check_reached(session, &schema, &targets, foreign).await?;
    let found = candidates.settle(session).await?;
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    match foreign {
        Foreign::Refuse if found.is_empty() => {}
        Foreign::Refuse => return Err(SwapError::Foreign(found).into()),
        Foreign::Keep => {
            lost = candidates.copy(session, &found).await?;
            kept = found;
            for rows in &lost {
                if let Some(kept) = kept.iter_mut().find(|kept| kept.table == rows.table) {
                    kept.rows -= rows.rows;
                }
            }
            kept.retain(|kept| kept.rows > 0);
        }
        Foreign::Lose => lost = found,
    }
    candidates.forget(session).await?;
    take_over(session, &schema, foreign).await?;
    note(session, old, number, &tables).await?;

    let (locked_since, retries) = move_tables(session, &tables, &schema, &schema_of(old)).await?;
    Ok(Exchanged { old, held_since, locked_since, retries, kept, lost })
}

/// The checkpoints of the live tables.
async fn live_checkpoints(session: &mut Session) -> Result<Vec<(LogId, Partition, Checkpoint)>, sqlx::Error> {
    let rows: Vec<(String, i32, i64)> = sqlx::query_as(
        "/* live_checkpoints */ SELECT log_id, partition, checkpoint FROM dashi.checkpoint ORDER BY log_id, partition",
    )
    .fetch_all(session)
    .await?;
    Ok(rows.into_iter().map(checkpoint).collect())
}

/// Rows of a tail are of records that no generation has applied.
async fn check_no_tail<E>(session: &mut Session) -> Result<(), Stopped<E>> {
    let partition: Option<i32> = sqlx::query_scalar(
        "/* check_no_tail */ SELECT partition FROM dashi.checkpoint WHERE tail_to IS NOT NULL LIMIT 1",
    )
    .fetch_optional(session)
    .await?;
    match partition {
        Some(partition) => {
            Err(GenerationError::HasTail { partition: Partition::new(partition as u32) }.into())
        }
        None => Ok(()),
    }
}

fn checkpoint((log, partition, checkpoint): (String, i32, i64)) -> (LogId, Partition, Checkpoint) {
    let checkpoint = Checkpoint::at(Offset::new(checkpoint as u64));
    (LogId::new(log), Partition::new(partition as u32), checkpoint)
}

/// Waits for those who write to tables, and keeps others waiting. Readers go on.
async fn lock_writers<E>(session: &mut Session, tables: &[String], since: Instant) -> Result<(), Stopped<E>> {
    let statement = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", tables.join(", "));
    wait(session.run_raw(statement).await, "other sessions write to them, or change them", since)
}

/// The result of waiting for a lock.
fn wait<E>(waited: Result<(), sqlx::Error>, holders: &str, since: Instant) -> Result<(), Stopped<E>> {
    match waited {
        Err(error) if is_about_locks(&error) => {
            Err(GenerationError::Busy { waited: since.elapsed(), holders: holders.to_owned() }.into())
        }
        waited => Ok(waited?),
    }
}

/// Whether the server ended a statement for the time it took.
fn is_about_time(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("57014"))
}

/// Whether the generation has every record that the live tables have. Logs that it never read count as foreign.
async fn check_reached<E>(
    session: &mut Session,
    schema: &str,
    targets: &[(LogId, Partition, Checkpoint)],
    foreign: Foreign,
) -> Result<(), Stopped<E>> {
    let sql = format!("SELECT log_id, partition, checkpoint FROM {}.checkpoint", quoted(schema));
    let rows: Vec<(String, i32, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(session).await?;
    let reached: Vec<_> = rows.into_iter().map(checkpoint).collect();
    Ok(check_reached_by(targets, &reached, foreign)?)
}

/// Gives the generation's checkpoints epochs above all of before, so that every claim is fenced; and takes the live ones
/// their mark, so that a replay may catch them up later.
async fn take_over(session: &mut Session, schema: &str, foreign: Foreign) -> Result<(), sqlx::Error> {
    let schema = quoted(schema);
    let others = match foreign {
        Foreign::Keep => "true",
        Foreign::Refuse | Foreign::Lose => "l.checkpoint = 0",
    };
    session
        .run_raw(format!(
            "INSERT INTO {schema}.missing SELECT m.* FROM dashi.missing AS m
                 WHERE {keep} AND m.log_id NOT IN (SELECT log_id FROM {schema}.checkpoint);
             INSERT INTO {schema}.checkpoint SELECT l.* FROM dashi.checkpoint AS l
                 WHERE {others} ON CONFLICT DO NOTHING;
             UPDATE {schema}.checkpoint SET epoch = epoch + 1, live = true;
             UPDATE {schema}.checkpoint AS g SET epoch = greatest(g.epoch, l.epoch + 1), owner = l.owner
                 FROM dashi.checkpoint AS l WHERE l.log_id = g.log_id AND l.partition = g.partition;
             UPDATE dashi.checkpoint SET live = false;
             NOTIFY {CHANNEL}, 'resync'",
            keep = foreign == Foreign::Keep
        ))
        .await
}

/// Notes both generations' new states and places.
async fn note(session: &mut Session, old: u32, new: u32, tables: &[Live]) -> Result<(), sqlx::Error> {
    let place = tables.iter().find(|table| table.name == "website_event").map(|table| table.schema.clone());
    sqlx::query("UPDATE dashi.generation SET state = 'kept', place = $2 WHERE number = $1")
        .bind(old as i32)
        .bind(schema_of(old))
        .execute(&mut *session)
        .await?;
    sqlx::query(
        "UPDATE dashi.generation SET state = 'live', place = coalesce($2, place), live_since = clock_timestamp()
         WHERE number = $1",
    )
    .bind(new as i32)
    .bind(place)
    .execute(session)
    .await?;
    Ok(())
}

/// Locks readers out and moves all tables. Returns when the lock that was had was asked for, and how many requests were
/// withdrawn.
async fn move_tables<E>(
    session: &mut Session,
    tables: &[Live],
    generation: &str,
    old: &str,
) -> Result<(Instant, u32), Stopped<E>> {
    let (generation, old) = (quoted(generation), quoted(old));
    let mut pairs = Vec::new();
    let mut moves = Vec::new();
    for Live { schema, name, .. } in tables {
        let (schema, name) = (quoted(schema), quoted(name));
        pairs.push(format!("{schema}.{name}, {generation}.{name}"));
        moves.push(format!("ALTER TABLE {schema}.{name} SET SCHEMA {old}"));
        moves.push(format!("ALTER TABLE {generation}.{name} SET SCHEMA {schema}"));
    }
    session.run_raw(format!("CREATE SCHEMA IF NOT EXISTS {old}; SAVEPOINT unlocked")).await?;
    let began = Instant::now();
    let mut attempt = ATTEMPT_FIRST;
    for retries in 0.. {
        let requested = Instant::now();
        let waits = began.elapsed() >= FREE_MAX;
        let locked = if waits {
            lock_in_turn(session, &mut pairs, requested + attempt).await
        } else {
            let all = pairs.join(", ");
            session.run_raw(format!("LOCK TABLE {all} IN ACCESS EXCLUSIVE MODE NOWAIT")).await
        };
        match locked {
            Ok(()) => {
                let moves = moves.join("; ");
                session.run_raw(format!("{UNLIMITED}; {moves}; DROP SCHEMA {generation}")).await?;
                return Ok((requested, retries));
            }
            Err(error) if is_about_locks(&error) || is_about_time(&error) => {}
            Err(error) => return Err(error.into()),
        }
        session.run_raw("ROLLBACK TO SAVEPOINT unlocked".to_owned()).await?;
        if began.elapsed() >= READERS_MAX {
            let holders = holders(session, tables).await?;
            return Err(GenerationError::Busy { waited: began.elapsed(), holders }.into());
        }
        if waits {
            attempt = (attempt * 2).min(ATTEMPT_MAX);
            tokio::time::sleep(PAUSE).await;
        } else {
            tokio::time::sleep(FREE_PAUSE).await;
        }
    }
    unreachable!("attempts end with an answer or with their time")
}

/// Locks tables against readers, each pair once the one before is had, until the deadline. The one that was waited for in
/// vain is the first of the next attempt: a reader that holds it may be waiting for one that was locked here before it,
/// and if readers take their tables in one order, the first of that order has to be locked first.
async fn lock_in_turn(
    session: &mut Session,
    pairs: &mut [String],
    deadline: Instant,
) -> Result<(), sqlx::Error> {
    for place in 0..pairs.len() {
        let left = deadline.saturating_duration_since(Instant::now()).max(LOCK_MIN);
        let lock = format!(
            "SET LOCAL statement_timeout = {}; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
            left.as_millis(),
            pairs[place]
        );
        if let Err(error) = session.run_raw(lock).await {
            pairs[..=place].rotate_right(1);
            return Err(error);
        }
    }
    Ok(())
}

/// The sessions that hold locks on tables, in words.
async fn holders(session: &mut Session, tables: &[Live]) -> Result<String, sqlx::Error> {
    let holders: Vec<String> = sqlx::query_scalar(
        "/* holders */
         SELECT DISTINCT format('process %s (%s, %s) since %s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'),
             a.state, a.xact_start::timestamptz(0))
         FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
         WHERE l.relation::bigint = ANY ($1) AND l.granted AND l.pid <> pg_backend_pid() LIMIT 5",
    )
    .bind(tables.iter().map(|table| table.oid).collect::<Vec<_>>())
    .fetch_all(session)
    .await?;
    Ok(if holders.is_empty() { "readers came and went".to_owned() } else { holders.join(", ") })
}
