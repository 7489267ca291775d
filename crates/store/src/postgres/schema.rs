//! Making the tables. Dashi's own lie in the schema `dashi`. Umami's are made only where there are none: a
//! database that Umami made is written as it stands (see [`super::catalogue`]).

use super::PostgresStore;
use super::catalogue::Catalogue;
use super::generation::note_live;
use super::pool::Session;
use crate::StoreError;

/// Dashi's tables, by version; a released step is never edited.
const STEPS: &[&str] = &[
    include_str!("dashi_1.sql"),
    include_str!("dashi_2.sql"),
    include_str!("dashi_3.sql"),
    include_str!("dashi_4.sql"),
    include_str!("dashi_5.sql"),
    include_str!("dashi_6.sql"),
    include_str!("dashi_7.sql"),
    include_str!("dashi_8.sql"),
    include_str!("dashi_9.sql"),
];

/// Umami's tables as its release 3.1 has them.
const UMAMI: &str = include_str!("umami_3_1.sql");

/// Serialises migrations of one database, whichever process they run in: "dashi" in ASCII.
const LOCK: i64 = 0x64_61_73_68_69;

impl PostgresStore {
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        let doing = "making its tables";
        let mut session = self.pool.begin().await.map_err(StoreError::away(doing))?;
        let made = make(&mut session).await;
        match made {
            Ok(()) => session.commit().await.map_err(StoreError::away(doing))?,
            Err(error) => {
                session.roll_back().await;
                return Err(match error {
                    MakeError::Refused(error) => error,
                    MakeError::Failed(error) => StoreError::away(doing)(error),
                });
            }
        }
        self.read_catalogue().await?;
        Ok(())
    }
}

enum MakeError {
    Refused(StoreError),
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for MakeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

async fn make(connection: &mut Session) -> Result<(), MakeError> {
    lock(connection).await?;
    let found = version(connection).await?;
    let known = STEPS.len() as i64;
    if found > known {
        return Err(MakeError::Refused(StoreError::Version { found, known }));
    }
    let umami = Catalogue::read(connection).await?;
    if !umami.is_empty() {
        umami.check().map_err(MakeError::Refused)?;
    }
    apply(connection, found as usize).await?;
    if umami.is_empty() {
        sqlx::raw_sql(UMAMI).execute(&mut *connection).await?;
        tracing::info!("made the tables of Umami 3.1, for there were none");
    }
    note_live(connection).await?;
    Ok(())
}

/// Waits for other processes that make tables or first rows, and keeps them waiting until the transaction ends.
pub(super) async fn lock(connection: &mut Session) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(connection).await?;
    Ok(())
}

async fn version(connection: &mut Session) -> Result<i64, sqlx::Error> {
    let made: bool = sqlx::query_scalar("SELECT to_regclass('dashi.migration') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !made {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT coalesce(max(version), 0)::bigint FROM dashi.migration")
        .fetch_one(connection)
        .await
}

async fn apply(connection: &mut Session, found: usize) -> Result<(), sqlx::Error> {
    // Looked for first: a role that may not make a schema may not run `CREATE SCHEMA IF NOT EXISTS` where it is there
    // either.
    let has_schema: bool =
        sqlx::query_scalar("SELECT to_regnamespace('dashi') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !has_schema {
        sqlx::raw_sql("CREATE SCHEMA dashi").execute(&mut *connection).await?;
    }
    for (step, sql) in STEPS.iter().enumerate().skip(found) {
        sqlx::raw_sql(*sql).execute(&mut *connection).await?;
        sqlx::query("INSERT INTO dashi.migration (version) VALUES ($1)")
            .bind(step as i64 + 1)
            .execute(&mut *connection)
            .await?;
        tracing::info!(version = step + 1, "made the tables of the schema dashi");
    }
    Ok(())
}
