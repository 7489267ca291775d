//! Generations in SQLite. One that is not live is a file of its own beside the live one, `<path>.gen-N`, an ordinary store.

mod note;
mod swap;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dashi_domain::fold::PROJECTION_VERSION;
use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::{NOW_MS, SqliteStore, connect, connect_options};
use crate::StoreError;
use crate::generation::{Generation, GenerationError, GenerationState, IndexProgress};

const COLUMNS: &str = "number, state, projection_version, rules, place, made_at, live_since, replayed_per_s";

/// Tables in which commits look rows up by other columns than unique ones, and which have few rows beside events: they
/// have all their indexes from the beginning.
const LOOKED_UP: &[&str] = &["session_replay", "heatmap_event"];

fn generation(row: &SqliteRow) -> Result<Generation, sqlx::Error> {
    let state: String = row.try_get("state")?;
    Ok(Generation {
        number: row.try_get("number")?,
        state: GenerationState::named(&state).ok_or_else(|| sqlx::Error::Decode(state.into()))?,
        projection_version: row.try_get("projection_version")?,
        rules: row.try_get("rules")?,
        place: row.try_get("place")?,
        made_at_ms: row.try_get("made_at")?,
        live_since_ms: row.try_get("live_since")?,
        replayed_per_s: row.try_get::<Option<i64>, _>("replayed_per_s")?.map(|per_s| per_s as u64),
    })
}

async fn read_all(connection: &mut SqliteConnection) -> Result<Vec<Generation>, sqlx::Error> {
    // Tables that this program has not brought up to date.
    let is_there: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'dashi_generation')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_there {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {COLUMNS} FROM dashi_generation ORDER BY number");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(generation).collect()
}

/// Makes the live generation's row, where there is none yet. Tables that an older program projected into have an unknown
/// version.
pub(super) async fn note_live(connection: &mut SqliteConnection, path: &Path) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO dashi_generation (number, state, projection_version, rules, place, made_at, live_since)
         SELECT 1, 'live', CASE WHEN EXISTS (SELECT 1 FROM dashi_checkpoint) THEN ? ELSE ? END, '', ?, {NOW_MS}, {NOW_MS}
         WHERE NOT EXISTS (SELECT 1 FROM dashi_generation)"
    )))
    .bind(crate::generation::VERSION_UNKNOWN)
    .bind(PROJECTION_VERSION)
    .bind(path.display().to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// A path with something appended to its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Where the copy that becomes a kept generation's file is written.
fn part_of(kept: &Path) -> PathBuf {
    beside(kept, ".part")
}

/// Removes a database with the files of its journal, the database first: a journal without one is nobody's.
fn remove_database(path: &Path) -> Result<(), GenerationError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = beside(path, suffix);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Away {
                    doing: "removing a generation's file",
                    source: Arc::new(std::io::Error::other(format!("{}: {error}", path.display()))),
                }
                .into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Indexes that a file has, by name, with table and definition; not those that belong to a constraint.
async fn indexes(connection: &mut SqliteConnection) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT name, tbl_name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY rowid",
    )
    .fetch_all(connection)
    .await
}

impl SqliteStore {
    fn side_path(&self, number: u32) -> PathBuf {
        beside(&self.0.path, &format!(".gen-{number}"))
    }

    async fn generation(&self, number: u32) -> Result<Generation, GenerationError> {
        let found = self.generations().await?.into_iter().find(|generation| generation.number == number);
        found.ok_or(GenerationError::None { number })
    }

    pub(crate) async fn generations(&self) -> Result<Vec<Generation>, StoreError> {
        let doing = "listing its generations";
        let mut reader = self.0.readers.acquire().await.map_err(StoreError::away(doing))?;
        read_all(&mut reader).await.map_err(StoreError::away(doing))
    }

    pub(crate) async fn begin_generation(
        &self,
        version: u32,
        rules: &str,
    ) -> Result<Generation, GenerationError> {
        let doing = "making a generation";
        let mut writer = self.0.writer.alone().await;
        let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::away(doing))?;
        let all = read_all(&mut tx).await.map_err(StoreError::away(doing))?;
        let building = all.iter().find(|generation| generation.state == GenerationState::Building);
        let begun = match building {
            Some(building) => building.clone(),
            None => {
                let number = all.iter().map(|generation| generation.number).max().unwrap_or(0) + 1;
                let path = self.side_path(number);
                // What was left behind when a generation was dropped, or became live, and the program stopped.
                remove_database(&path)?;
                if let Some(live) = all.iter().find(|generation| generation.state == GenerationState::Live) {
                    remove_database(&self.side_path(live.number))?;
                }
                let sql = format!(
                    "INSERT INTO dashi_generation (number, state, projection_version, rules, place, made_at)
                     VALUES (?, 'building', ?, ?, ?, {NOW_MS}) RETURNING {COLUMNS}"
                );
                let row = sqlx::query(AssertSqlSafe(sql))
                    .bind(number)
                    .bind(version)
                    .bind(rules)
                    .bind(path.display().to_string())
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(StoreError::away(doing))?;
                generation(&row).map_err(StoreError::away(doing))?
            }
        };
        tx.commit().await.map_err(StoreError::away(doing))?;
        drop(writer);
        // Its file; where it is there already, nothing changes.
        self.open_side(begun.number, true).await?.close().await;
        Ok(begun)
    }

    pub(crate) async fn open_generation(&self, number: u32) -> Result<Self, GenerationError> {
        let generation = self.generation(number).await?;
        match generation.state {
            GenerationState::Live => Ok(Self::connect(&self.0.path, self.0.options.clone()).await?),
            state => self.open_side(number, state == GenerationState::Building).await,
        }
    }

    /// The store in a generation's file.
    async fn open_side(&self, number: u32, may_make: bool) -> Result<Self, GenerationError> {
        let path = self.side_path(number);
        let is_there = path.try_exists().map_err(|error| StoreError::Away {
            doing: "looking for a generation's file",
            source: Arc::new(error),
        })?;
        if !may_make && !is_there {
            let reason = format!("its file {} is gone: drop the generation", path.display());
            return Err(GenerationError::Refused { reasons: vec![reason] });
        }
        // It can be made again from the log, so a commit need not be durable before the next one begins.
        let options = connect_options(&path).synchronous(SqliteSynchronous::Normal);
        let side = Self::connect(&path, options).await?;
        side.migrate().await?;
        if may_make {
            side.drop_indexes().await?;
        }
        Ok(side)
    }

    /// Drops the indexes that writing does not need, as long as nothing was written.
    async fn drop_indexes(&self) -> Result<(), StoreError> {
        let doing = "dropping a generation's indexes";
        let mut writer = self.0.writer.alone().await;
        let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::away(doing))?;
        let is_begun: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM dashi_checkpoint)")
            .fetch_one(&mut *tx)
            .await
            .map_err(StoreError::away(doing))?;
        if is_begun {
            return Ok(());
        }
        for (name, table, sql) in indexes(&mut tx).await.map_err(StoreError::away(doing))? {
            if sql.starts_with("CREATE INDEX") && !LOOKED_UP.contains(&&*table) {
                sqlx::raw_sql(AssertSqlSafe(format!("DROP INDEX {name}")))
                    .execute(&mut *tx)
                    .await
                    .map_err(StoreError::away(doing))?;
            }
        }
        tx.commit().await.map_err(StoreError::away(doing))
    }

    pub(crate) async fn finish_generation(
        &self,
        number: u32,
        report: impl Fn(IndexProgress),
    ) -> Result<(), GenerationError> {
        let doing = "building an index of a generation";
        let generation = self.generation(number).await?;
        if generation.state == GenerationState::Live {
            return Ok(());
        }
        let side = self.open_generation(number).await?;
        let mut live = connect(&self.0.options).await.map_err(StoreError::away(doing))?;
        let wanted = indexes(&mut live).await.map_err(StoreError::away(doing))?;
        {
            let mut writer = side.0.writer.alone().await;
            let there = indexes(&mut writer).await.map_err(StoreError::away(doing))?;
            let missing: Vec<_> =
                wanted.iter().filter(|(name, ..)| there.iter().all(|(other, ..)| other != name)).collect();
            let total = missing.len();
            for (done, (name, table, sql)) in missing.into_iter().enumerate() {
                report(IndexProgress { table: table.clone(), index: Some(name.clone()), done, total });
                sqlx::raw_sql(AssertSqlSafe(sql.clone()))
                    .execute(&mut *writer)
                    .await
                    .map_err(StoreError::away(doing))?;
            }
            report(IndexProgress { table: String::new(), index: None, done: total, total });
        }
        side.close().await;
        let mut writer = self.0.writer.alone().await;
        sqlx::query("UPDATE dashi_generation SET state = 'ready' WHERE number = ? AND state = 'building'")
            .bind(number)
            .execute(&mut *writer)
            .await
            .map_err(StoreError::away("making a generation ready"))?;
        Ok(())
    }

    pub(crate) async fn drop_generation(&self, number: u32) -> Result<(), GenerationError> {
        self.generation(number).await?.check_can_be_dropped()?;
        remove_database(&self.side_path(number))?;
        remove_database(&part_of(&self.side_path(number)))?;
        let mut writer = self.0.writer.alone().await;
        sqlx::query("DELETE FROM dashi_generation WHERE number = ? AND state <> 'live'")
            .bind(number)
            .execute(&mut *writer)
            .await
            .map_err(StoreError::away("dropping a generation"))?;
        Ok(())
    }
}
