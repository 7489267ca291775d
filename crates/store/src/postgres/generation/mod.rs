//! Generations on PostgreSQL. One that is not live lies in the schema `dashi_gen_N`, Umami's tables and Dashi's own
//! together; its store has connections on which that schema comes first and stands for `dashi` (see
//! [`super::pool::Pool::within`]).

mod build;
mod foreign;
mod note;
mod swap;
mod tables;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dashi_domain::fold::PROJECTION_VERSION;
use futures::future::join_all;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tokio::sync::Semaphore;

use self::build::{Need, indexes, make_alike, make_index, make_table};
use self::foreign::Keyed;
use self::tables::{Live, differences, refuse};
use super::catalogue::Catalogue;
use super::pool::{Session, quoted};
use super::schema::lock;
use super::{LONG, PostgresStore};
use crate::generation::{Generation, GenerationError, GenerationState, IndexProgress};
use crate::{ForeignRows, StoreError};

/// How long changes of the tables wait for those who use them.
const LOCK_MAX: Duration = Duration::from_secs(10);

/// Indexes that are built, and tables whose statistics are gathered, at once.
const STEPS_AT_ONCE: usize = 4;

fn lock_timeout() -> String {
    format!("SET LOCAL lock_timeout = {}", LOCK_MAX.as_millis())
}

const COLUMNS: &str = "number, state, projection_version, rules, place,
    (extract(epoch FROM made_at) * 1000)::bigint AS made_at_ms,
    (extract(epoch FROM live_since) * 1000)::bigint AS live_since_ms, replayed_per_s";

/// Why a transaction did not take place.
enum Ended {
    Failed(sqlx::Error),
    Because(GenerationError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<GenerationError> for Ended {
    fn from(error: GenerationError) -> Self {
        Self::Because(error)
    }
}

/// Commits what went well, and undoes what did not.
async fn end<T>(
    session: Session,
    outcome: Result<T, Ended>,
    doing: &'static str,
) -> Result<T, GenerationError> {
    match outcome {
        Ok(done) => {
            session.commit().await.map_err(StoreError::away(doing))?;
            Ok(done)
        }
        Err(ended) => {
            session.roll_back().await;
            Err(match ended {
                Ended::Failed(error) if is_about_locks(&error) => {
                    GenerationError::Busy { waited: LOCK_MAX, holders: "other sessions use them".to_owned() }
                }
                Ended::Failed(error) => StoreError::away(doing)(error).into(),
                Ended::Because(error) => error,
            })
        }
    }
}

/// A lock that was not had in time, or a deadlock.
fn is_about_locks(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "55P03" | "40P01"))
}

fn schema_of(number: u32) -> String {
    format!("dashi_gen_{number}")
}

fn generation(row: &PgRow) -> Result<Generation, sqlx::Error> {
    let state: String = row.try_get("state")?;
    Ok(Generation {
        number: row.try_get::<i32, _>("number")? as u32,
        state: GenerationState::named(&state).ok_or_else(|| sqlx::Error::Decode(state.into()))?,
        projection_version: row.try_get::<i32, _>("projection_version")? as u32,
        rules: row.try_get("rules")?,
        place: row.try_get("place")?,
        made_at_ms: row.try_get("made_at_ms")?,
        live_since_ms: row.try_get("live_since_ms")?,
        replayed_per_s: row.try_get::<Option<i64>, _>("replayed_per_s")?.map(|per_s| per_s as u64),
    })
}

async fn read_all(session: &mut Session) -> Result<Vec<Generation>, sqlx::Error> {
    let sql = format!("/* generations */ SELECT {COLUMNS} FROM dashi.generation ORDER BY number");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(session).await?;
    rows.iter().map(generation).collect()
}

async fn read_one(session: &mut Session, number: u32) -> Result<Generation, Ended> {
    let found = read_all(session).await?.into_iter().find(|generation| generation.number == number);
    found.ok_or_else(|| GenerationError::None { number }.into())
}

impl PostgresStore {
    pub(crate) async fn generations(&self) -> Result<Vec<Generation>, StoreError> {
        let doing = "listing its generations";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let read = read_all(&mut session).await;
        session.roll_back().await;
        match read {
            // Tables that this program has not brought up to date.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(Vec::new()),
            read => read.map_err(StoreError::away(doing)),
        }
    }

    pub(crate) async fn begin_generation(
        &self,
        version: u32,
        rules: &str,
    ) -> Result<Generation, GenerationError> {
        let doing = "making a generation";
        let catalogue = self.read_catalogue().await?;
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let begun = begin(&mut session, &catalogue, version, rules).await;
        end(session, begun, doing).await
    }

    pub(crate) async fn open_generation(&self, number: u32) -> Result<Self, GenerationError> {
        let doing = "opening a generation";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let found = async {
            let generation = read_one(&mut session, number).await?;
            let path: String =
                sqlx::query_scalar("SELECT current_setting('search_path')").fetch_one(&mut session).await?;
            Ok((generation, path))
        };
        let found = found.await;
        let (generation, path) = end(session, found, doing).await?;
        let (pool, beside) = match generation.state {
            GenerationState::Live => (self.pool.another(), None),
            _ => {
                let beside = Beside::new(self.clone(), generation.place.clone());
                (self.pool.within(&generation.place, &path), Some(Arc::new(beside)))
            }
        };
        Ok(Self {
            pool,
            catalogue: Arc::default(),
            catalogue_age_max: self.catalogue_age_max,
            repertoire: Arc::clone(&self.repertoire),
            changes: Arc::default(),
            by_insert: Arc::default(),
            beside,
        })
    }

    pub(crate) async fn finish_generation(
        &self,
        number: u32,
        report: impl Fn(IndexProgress),
    ) -> Result<(), GenerationError> {
        let doing = "finishing a generation";
        self.complete(number, &report).await?;
        sqlx::query("UPDATE dashi.generation SET state = 'ready' WHERE number = $1 AND state = 'building'")
            .bind(number as i32)
            .execute(&self.pool)
            .await
            .map_err(StoreError::away(doing))?;
        Ok(())
    }

    /// Builds the indexes that are missing, and makes the tables like the live ones in all other ways.
    async fn complete(&self, number: u32, report: &impl Fn(IndexProgress)) -> Result<(), GenerationError> {
        let doing = "looking for the indexes that a generation lacks";
        let catalogue = self.read_catalogue().await?;
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let found = lacking(&mut session, &catalogue, number).await;
        let Some(Lacking { schema, is_building, tables, indexes }) = end(session, found, doing).await? else {
            return Ok(());
        };
        let analyzed = if is_building { tables.len() } else { 0 };
        let total = indexes.len() + analyzed;
        let (begun, turns) = (AtomicUsize::new(0), Semaphore::new(STEPS_AT_ONCE));
        let begin = |table: &str, index: Option<&str>| {
            let done = begun.fetch_add(1, Ordering::Relaxed);
            report(IndexProgress { table: table.to_owned(), index: index.map(str::to_owned), done, total });
        };
        // Of a table the indexes first: statistics are of their expressions, too.
        let completed = join_all(tables.iter().map(async |table| {
            let of_table = indexes.iter().filter(|(of, _)| *of == table.name);
            let built = join_all(of_table.map(async |(_, index)| {
                let _turn = turns.acquire().await;
                begin(&table.name, Some(&index.name));
                self.build(&schema, &table.name, index).await
            }));
            built.await.into_iter().collect::<Result<(), GenerationError>>()?;
            if is_building {
                let _turn = turns.acquire().await;
                begin(&table.name, None);
                self.analyze(&schema, &table.name).await?;
            }
            Ok(())
        }));
        completed.await.into_iter().collect::<Result<(), GenerationError>>()?;
        let doing = "giving a generation the owners and rights of the live tables";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let made = async {
            session.run_raw(lock_timeout()).await?;
            for table in &tables {
                make_alike(&mut session, table, &schema).await?;
            }
            Ok(())
        };
        let made = made.await;
        end(session, made, doing).await?;
        report(IndexProgress { table: String::new(), index: None, done: total, total });
        Ok(())
    }

    async fn build(&self, schema: &str, table: &str, index: &build::Index) -> Result<(), GenerationError> {
        let doing = "building an index of a generation";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let built = async {
            session.allow(LONG).await?;
            // Several are built at once, each by one process of the server.
            let settings =
                "SET LOCAL search_path = pg_catalog; SET LOCAL max_parallel_maintenance_workers = 0";
            session.run_raw(settings.to_owned()).await?;
            make_index(&mut session, schema, table, index).await?;
            Ok(())
        };
        let built = built.await;
        end(session, built, doing).await
    }

    async fn analyze(&self, schema: &str, table: &str) -> Result<(), GenerationError> {
        let doing = "gathering statistics of a generation";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let gathered = async {
            session.allow(LONG).await?;
            session.run_raw(format!("ANALYZE {}.{}", quoted(schema), quoted(table))).await?;
            Ok(())
        };
        let gathered = gathered.await;
        end(session, gathered, doing).await
    }

    /// Builds the keys that `INSERT` needs and `COPY` does not, of a generation that lacks them. Commits of its other
    /// partitions wait meanwhile.
    pub(in crate::postgres) async fn make_keys(&self) -> Result<(), GenerationError> {
        let Some(beside) = self.beside.as_ref().filter(|beside| !beside.has_keys.load(Ordering::Acquire))
        else {
            return Ok(());
        };
        let doing = "building the keys of a generation";
        let catalogue = beside.live.catalogue().await?;
        let mut session = beside.live.pool.begin().await.map_err(StoreError::away(doing))?;
        let made = make_keys(&mut session, &catalogue, &beside.schema).await;
        end(session, made, doing).await?;
        beside.has_keys.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) async fn foreign_rows(&self, number: u32) -> Result<Vec<ForeignRows>, GenerationError> {
        let doing = "looking for foreign rows";
        let catalogue = self.read_catalogue().await?;
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let found = async {
            session.allow(LONG).await?;
            let generation = read_one(&mut session, number).await?;
            if generation.state == GenerationState::Live {
                return Ok(Vec::new());
            }
            let tables = Live::list(&mut session, &catalogue).await?;
            let schema = generation.place;
            let differences = differences(&mut session, &tables, &schema).await?;
            if !differences.is_empty() {
                return Err(GenerationError::Changed { number, differences }.into());
            }
            let keyed = Keyed::list(&mut session, &tables, &schema).await?;
            Ok(foreign::look(&mut session, &keyed).await?)
        };
        let found = found.await;
        end(session, found, doing).await
    }

    pub(crate) async fn drop_generation(&self, number: u32) -> Result<(), GenerationError> {
        let doing = "dropping a generation";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let dropped = drop_one(&mut session, number).await;
        end(session, dropped, doing).await
    }
}

async fn begin(
    session: &mut Session,
    catalogue: &Catalogue,
    version: u32,
    rules: &str,
) -> Result<Generation, Ended> {
    lock(session).await?;
    let all = read_all(session).await?;
    if let Some(building) = all.iter().find(|generation| generation.state == GenerationState::Building) {
        return Ok(building.clone());
    }
    let tables = Live::list(session, catalogue).await?;
    refuse(session, &tables).await?;
    let number = all.iter().map(|generation| generation.number).max().unwrap_or(0) + 1;
    let schema = schema_of(number);
    session.run_raw(format!("{}; SET LOCAL search_path = pg_catalog", lock_timeout())).await?;
    session.run_raw(format!("CREATE SCHEMA {}", quoted(&schema))).await?;
    for table in &tables {
        make_table(session, table, &schema).await?;
        for index in indexes(session, table).await? {
            if index.need == Need::AtOnce {
                make_index(session, &schema, &table.name, &index).await?;
            }
        }
        make_alike(session, table, &schema).await?;
    }
    let sql = format!(
        "INSERT INTO dashi.generation (number, state, projection_version, rules, place)
         VALUES ($1, 'building', $2, $3, $4) RETURNING {COLUMNS}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(number as i32)
        .bind(version as i32)
        .bind(rules)
        .bind(&schema)
        .fetch_one(session)
        .await?;
    Ok(generation(&row)?)
}

/// The live store, beside which a generation is.
pub(super) struct Beside {
    live: PostgresStore,
    /// The generation's.
    schema: String,
    /// Whether it is known to have the keys that `INSERT` needs.
    has_keys: AtomicBool,
}

impl Beside {
    fn new(live: PostgresStore, schema: String) -> Self {
        Self { live, schema, has_keys: AtomicBool::new(false) }
    }
}

async fn make_keys(session: &mut Session, catalogue: &Catalogue, schema: &str) -> Result<(), Ended> {
    // One at a time, of all processes.
    session.allow(LONG).await?;
    lock(session).await?;
    let tables = Live::list(session, catalogue).await?;
    session.run_raw("SET LOCAL search_path = pg_catalog".to_owned()).await?;
    for table in &tables {
        let there = built(session, schema, &table.name).await?;
        for index in indexes(session, table).await? {
            if index.need == Need::ByInsert && !there.contains(&index.name) {
                tracing::info!(schema, index = index.name, "building a key that imported rows need");
                make_index(session, schema, &table.name, &index).await?;
            }
        }
    }
    Ok(())
}

/// The names of the valid indexes of a table in a schema.
async fn built(session: &mut Session, schema: &str, table: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
         WHERE i.indisvalid AND i.indrelid = to_regclass(format('%I.%I', $1::text, $2::text))",
    )
    .bind(schema)
    .bind(table)
    .fetch_all(session)
    .await
}

/// What a generation lacks of the live one.
struct Lacking {
    schema: String,
    is_building: bool,
    tables: Vec<Live>,
    /// By table.
    indexes: Vec<(String, build::Index)>,
}

/// `None` if it is the live one.
async fn lacking(
    session: &mut Session,
    catalogue: &Catalogue,
    number: u32,
) -> Result<Option<Lacking>, Ended> {
    let generation = read_one(session, number).await?;
    if generation.state == GenerationState::Live {
        return Ok(None);
    }
    let schema = generation.place;
    let tables = Live::list(session, catalogue).await?;
    let differences = differences(session, &tables, &schema).await?;
    if !differences.is_empty() {
        return Err(GenerationError::Changed { number, differences }.into());
    }
    session.run_raw("SET LOCAL search_path = pg_catalog".to_owned()).await?;
    let mut missing = Vec::new();
    for table in &tables {
        let there = built(session, &schema, &table.name).await?;
        let all = indexes(session, table).await?;
        missing.extend(
            all.into_iter()
                .filter(|index| !there.contains(&index.name))
                .map(|index| (table.name.clone(), index)),
        );
    }
    let is_building = generation.state == GenerationState::Building;
    Ok(Some(Lacking { schema, is_building, tables, indexes: missing }))
}

async fn drop_one(session: &mut Session, number: u32) -> Result<(), Ended> {
    lock(session).await?;
    let generation = read_one(session, number).await?;
    generation.check_can_be_dropped()?;
    session.run_raw(lock_timeout()).await?;
    let tables = Live::of_schema(session, &generation.place).await?;
    let dependents = tables::dependents(session, &tables).await?;
    if !dependents.is_empty() {
        return Err(GenerationError::Refused { reasons: dependents }.into());
    }
    if !tables.is_empty() {
        let names: Vec<String> =
            tables.iter().map(|table| format!("{}.{}", quoted(&table.schema), quoted(&table.name))).collect();
        session.run_raw(format!("DROP TABLE {}", names.join(", "))).await?;
    }
    session.run_raw(format!("DROP SCHEMA IF EXISTS {}", quoted(&generation.place))).await?;
    sqlx::query("DELETE FROM dashi.generation WHERE number = $1")
        .bind(number as i32)
        .execute(session)
        .await?;
    Ok(())
}

/// Makes the live generation's row, where there is none yet. Tables that an older program projected into have an unknown
/// version.
pub(super) async fn note_live(session: &mut Session) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO dashi.generation (number, state, projection_version, rules, place, live_since)
         SELECT 1, 'live', CASE WHEN EXISTS (SELECT 1 FROM dashi.checkpoint) THEN $1 ELSE $2 END, '',
             n.nspname, clock_timestamp()
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = to_regclass('website_event') AND NOT EXISTS (SELECT 1 FROM dashi.generation)",
    )
    .bind(crate::generation::VERSION_UNKNOWN as i32)
    .bind(PROJECTION_VERSION as i32)
    .execute(session)
    .await?;
    Ok(())
}
