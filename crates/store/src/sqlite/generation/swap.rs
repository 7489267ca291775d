//! The swap of files. The rows of the live file become those of the generation's file in one transaction; rows that are
//! equal in both are not touched. Readers see the old rows until the commit and never wait. Before that the old content
//! is copied into a file of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::{part_of, remove_database};
use crate::generation::{
    FOREIGN_KEYS_MAX, Foreign, ForeignRows, GenerationError, GenerationState, SHARED_TABLES, SwapError,
    Swapped,
};
use crate::profile::ProfileChange;
use crate::sqlite::{NOW_MS, SqliteStore, connect};
use crate::{StoreError, tables};

const DOING: &str = "swapping generations";

/// A table of a generation, of which `main` has the live rows and `generation` those of the other file.
struct Replaced {
    name: String,
    columns: Vec<String>,
    /// The columns by which rows are the same row.
    keys: Vec<String>,
    /// A condition on a live row `m` that the generation lacks: whether it is foreign.
    foreign: &'static str,
}

/// A dead letter that the generation lacks was applied there, by a newer fold; unless the generation never saw its record.
const DEAD_LETTERS_OF_OTHERS: &str = "(m.log_id NOT IN (SELECT log_id FROM generation.dashi_checkpoint)
    OR EXISTS (SELECT 1 FROM generation.dashi_missing AS x WHERE x.log_id = m.log_id AND x.partition = m.partition
               AND x.start_offset <= m.record_offset AND m.record_offset < x.end_offset))";

impl Replaced {
    /// All tables of a generation but the two that describe the reading of the log.
    async fn list(connection: &mut SqliteConnection) -> Result<Vec<Self>, sqlx::Error> {
        let umami: Vec<&str> = tables::of_umami().map(|table| table.name).collect();
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM main.sqlite_schema WHERE type = 'table' ORDER BY rowid")
                .fetch_all(&mut *connection)
                .await?;
        let mut all = Vec::new();
        for name in names {
            let own = name.strip_prefix("dashi_");
            let is_replaced = match own {
                Some("checkpoint" | "missing") => false,
                Some(own) => !SHARED_TABLES.contains(&own),
                None => umami.contains(&&*name),
            };
            if !is_replaced {
                continue;
            }
            let columns: Vec<(String, i64)> =
                sqlx::query_as("SELECT name, pk FROM pragma_table_info(?, 'main') ORDER BY cid")
                    .bind(&name)
                    .fetch_all(&mut *connection)
                    .await?;
            let primary = columns.iter().filter(|(_, place)| *place > 0).map(|(column, _)| column.clone());
            let keys = match &*name {
                // A property that Umami wrote first keeps its id.
                "session_data" => vec!["session_id".to_owned(), "data_key".to_owned()],
                _ => primary.collect(),
            };
            let foreign = if own == Some("dead_letter") { DEAD_LETTERS_OF_OTHERS } else { "true" };
            let columns = columns.into_iter().map(|(column, _)| column).collect();
            all.push(Self { name, columns, keys, foreign });
        }
        Ok(all)
    }

    fn row(&self, name: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("{name}.{column}")).collect();
        columns.join(", ")
    }

    fn same_row(&self) -> String {
        let equal: Vec<String> = self.keys.iter().map(|key| format!("g.{key} = m.{key}")).collect();
        equal.join(" AND ")
    }

    /// Notes the live rows that the generation lacks or has otherwise, by their row ids. The only pass over all columns.
    async fn find_differing(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let (name, live, made) = (&self.name, self.row("m"), self.row("g"));
        let statement = format!(
            "CREATE TEMP TABLE differing_{name} AS
             SELECT m.rowid AS live, g.rowid AS made, g.rowid IS NULL AND {} AS is_foreign
             FROM main.{name} AS m LEFT JOIN generation.{name} AS g ON {}
             WHERE g.rowid IS NULL OR ({made}) IS NOT ({live})",
            self.foreign,
            self.same_row()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
        Ok(())
    }

    /// The foreign rows of this table, once the differing ones are found.
    async fn look(&self, connection: &mut SqliteConnection) -> Result<ForeignRows, sqlx::Error> {
        let name = &self.name;
        let count = format!("SELECT count(*) FROM temp.differing_{name} WHERE is_foreign");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *connection).await?;
        let mut keys = Vec::new();
        if rows > 0 {
            let columns: Vec<String> = self.keys.iter().map(|key| format!("m.{key}")).collect();
            let first = format!(
                "SELECT {} FROM temp.differing_{name} AS d JOIN main.{name} AS m ON m.rowid = d.live
                 WHERE d.is_foreign ORDER BY {} LIMIT {FOREIGN_KEYS_MAX}",
                columns.join(" || '/' || "),
                columns.join(", ")
            );
            keys = sqlx::query_scalar(AssertSqlSafe(first)).fetch_all(connection).await?;
        }
        Ok(ForeignRows { table: name.clone(), rows: rows as u64, keys })
    }

    /// Makes the rows those of the generation, once the differing ones are found; with `keep` the foreign ones stay.
    async fn replace(&self, connection: &mut SqliteConnection, keep: bool) -> Result<(), sqlx::Error> {
        let name = &self.name;
        // A key is there once, so this is how many rows the generation has and the live tables lack.
        let new = format!(
            "SELECT (SELECT count(*) FROM generation.{name}) - (SELECT count(*) FROM main.{name})
                 + (SELECT count(*) FROM temp.differing_{name} WHERE made IS NULL)"
        );
        let new: i64 = sqlx::query_scalar(AssertSqlSafe(new)).fetch_one(&mut *connection).await?;
        let goes = if keep { "NOT is_foreign" } else { "true" };
        let missing = if new > 0 {
            format!("NOT EXISTS (SELECT 1 FROM main.{name} AS m WHERE {})", self.same_row())
        } else {
            format!("g.rowid IN (SELECT made FROM temp.differing_{name} WHERE made IS NOT NULL)")
        };
        let statements = format!(
            "DELETE FROM main.{name} WHERE rowid IN (SELECT live FROM temp.differing_{name} WHERE {goes});
             INSERT INTO main.{name} ({columns}) SELECT {columns} FROM generation.{name} AS g WHERE {missing}",
            columns = self.columns.join(", "),
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await?;
        Ok(())
    }
}

/// Foreign rows by table; only tables that have some.
async fn look(
    connection: &mut SqliteConnection,
    tables: &[Replaced],
) -> Result<Vec<ForeignRows>, sqlx::Error> {
    let mut found = Vec::new();
    for table in tables {
        table.find_differing(&mut *connection).await?;
        let rows = table.look(&mut *connection).await?;
        if rows.rows > 0 {
            found.push(rows);
        }
    }
    Ok(found)
}

impl SqliteStore {
    /// A connection of one's own to the live file, with a generation's beside it.
    async fn with_side(&self, number: u32) -> Result<SqliteConnection, GenerationError> {
        // Its tables are brought up to date.
        let side = self.open_generation(number).await?;
        side.close().await;
        let mut connection = connect(&self.0.options).await.map_err(StoreError::away(DOING))?;
        sqlx::query("ATTACH ? AS generation")
            .bind(self.side_path(number).display().to_string())
            .execute(&mut connection)
            .await
            .map_err(StoreError::away(DOING))?;
        // As much as the live file has.
        sqlx::raw_sql("PRAGMA generation.cache_size = -64000")
            .execute(&mut connection)
            .await
            .map_err(StoreError::away(DOING))?;
        Ok(connection)
    }

    pub(crate) async fn foreign_rows(&self, number: u32) -> Result<Vec<ForeignRows>, GenerationError> {
        let doing = "looking for foreign rows";
        if self.generation(number).await?.state == GenerationState::Live {
            return Ok(Vec::new());
        }
        let mut connection = self.with_side(number).await?;
        let found = async {
            let tables = Replaced::list(&mut connection).await?;
            look(&mut connection, &tables).await
        };
        Ok(found.await.map_err(StoreError::away(doing))?)
    }

    pub(crate) async fn swap<E>(
        &self,
        number: u32,
        foreign: Foreign,
        catch_up: impl AsyncFn(&[(LogId, Partition, Checkpoint)]) -> Result<(), E>,
    ) -> Result<Swapped, SwapError<E>> {
        let away = |error| SwapError::from(StoreError::away(DOING)(error));
        self.generation(number).await?.check_can_be_swapped()?;
        self.finish_generation(number, |_| ()).await?;
        let all = self.generations().await?;
        let old = all.iter().find(|it| it.state == GenerationState::Live).map(|it| it.number);
        let old = old.ok_or(GenerationError::None { number: 0 })?;
        let mut connection = self.with_side(number).await?;
        check_no_tail(&mut connection).await?;
        let targets = live_checkpoints(&mut connection).await.map_err(away)?;
        catch_up(&targets).await.map_err(SwapError::CatchUp)?;
        keep(&mut connection, &self.side_path(old)).await?;
        // That may have taken long.
        let targets = live_checkpoints(&mut connection).await.map_err(away)?;
        catch_up(&targets).await.map_err(SwapError::CatchUp)?;

        let held_since = Instant::now();
        // Partitions of this process wait for their connection, those of others for the file.
        let writer = self.0.writer.alone().await;
        // A write to this file alone: `BEGIN IMMEDIATE` would lock the generation's file as well.
        let begin = format!("BEGIN; UPDATE dashi_generation SET state = state WHERE number = {number}");
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut connection).await.map_err(away)?;
        let targets = live_checkpoints(&mut connection).await.map_err(away)?;
        catch_up(&targets).await.map_err(SwapError::CatchUp)?;
        check_no_tail(&mut connection).await?;
        check_reached(&mut connection, &targets, foreign).await?;
        let tables = Replaced::list(&mut connection).await.map_err(away)?;
        let found = look(&mut connection, &tables).await.map_err(away)?;
        if foreign == Foreign::Refuse && !found.is_empty() {
            return Err(SwapError::Foreign(found));
        }
        for table in &tables {
            table.replace(&mut connection, foreign == Foreign::Keep).await.map_err(away)?;
        }
        take_over(&mut connection, foreign).await.map_err(away)?;
        self.note(&mut connection, old, number).await.map_err(away)?;
        sqlx::raw_sql("COMMIT").execute(&mut connection).await.map_err(away)?;
        let writers_held = held_since.elapsed();
        drop(writer);
        // Everything may have changed.
        let _ = self.0.changes.send(ProfileChange::Resync);
        let _ = connection.close().await;
        // Its rows are in the live file now. What cannot be removed now is removed later.
        if let Err(error) = remove_database(&self.side_path(number)) {
            tracing::warn!(error = %error, "the file of the generation that became live is left");
        }
        let (foreign_kept, foreign_lost) = match foreign {
            Foreign::Keep => (found, Vec::new()),
            Foreign::Refuse | Foreign::Lose => (Vec::new(), found),
        };
        let (readers_locked, retries) = (Duration::ZERO, 0);
        Ok(Swapped { old, writers_held, readers_locked, retries, foreign_kept, foreign_lost })
    }

    async fn note(&self, connection: &mut SqliteConnection, old: u32, new: u32) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE main.dashi_generation SET state = 'kept', place = ? WHERE number = ?")
            .bind(self.side_path(old).display().to_string())
            .bind(old)
            .execute(&mut *connection)
            .await?;
        sqlx::query(AssertSqlSafe(format!(
            "UPDATE main.dashi_generation SET state = 'live', place = ?, live_since = {NOW_MS} WHERE number = ?"
        )))
        .bind(self.0.path.display().to_string())
        .bind(new)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Copies the live content into the file in which it is kept; whole or not at all. A replay may catch it up later.
async fn keep(connection: &mut SqliteConnection, kept: &Path) -> Result<(), GenerationError> {
    let doing = "copying the live tables";
    let io = |error: std::io::Error| StoreError::Away { doing, source: Arc::new(error) };
    let part = part_of(kept);
    remove_database(&part)?;
    sqlx::query("VACUUM main INTO ?")
        .bind(part.display().to_string())
        .execute(&mut *connection)
        .await
        .map_err(StoreError::away(doing))?;
    let copied = async {
        sqlx::query("ATTACH ? AS copy").bind(part.display().to_string()).execute(&mut *connection).await?;
        sqlx::raw_sql("UPDATE copy.dashi_checkpoint SET live = 0; DETACH copy")
            .execute(&mut *connection)
            .await
    };
    copied.await.map_err(StoreError::away(doing))?;
    let durable = tokio::task::spawn_blocking({
        let (part, kept) = (part.clone(), kept.to_owned());
        move || {
            std::fs::File::open(&part)?.sync_all()?;
            // One of this number that was left behind, with its journal.
            remove_database(&kept).map_err(std::io::Error::other)?;
            std::fs::rename(&part, &kept)?;
            match kept.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => std::fs::File::open(parent)?.sync_all(),
                None => std::fs::File::open(".")?.sync_all(),
            }
        }
    });
    durable.await.map_err(std::io::Error::other).and_then(|done| done).map_err(io)?;
    Ok(())
}

/// The checkpoints of the live tables.
async fn live_checkpoints(
    connection: &mut SqliteConnection,
) -> Result<Vec<(LogId, Partition, Checkpoint)>, sqlx::Error> {
    checkpoints(connection, "main").await
}

/// Rows of a tail are of records that no generation has applied.
async fn check_no_tail(connection: &mut SqliteConnection) -> Result<(), GenerationError> {
    let partition: Option<u32> =
        sqlx::query_scalar("SELECT partition FROM main.dashi_checkpoint WHERE tail_to IS NOT NULL LIMIT 1")
            .fetch_optional(connection)
            .await
            .map_err(StoreError::away(DOING))?;
    match partition {
        Some(partition) => Err(GenerationError::HasTail { partition: Partition::new(partition) }),
        None => Ok(()),
    }
}

async fn checkpoints(
    connection: &mut SqliteConnection,
    database: &str,
) -> Result<Vec<(LogId, Partition, Checkpoint)>, sqlx::Error> {
    let sql = format!(
        "SELECT log_id, partition, checkpoint FROM {database}.dashi_checkpoint ORDER BY log_id, partition"
    );
    let rows: Vec<(String, u32, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let checkpoint = |(log, partition, checkpoint)| {
        let checkpoint = Checkpoint::at(Offset::new(checkpoint as u64));
        (LogId::new(log), Partition::new(partition), checkpoint)
    };
    Ok(rows.into_iter().map(checkpoint).collect())
}

/// Whether the generation has every record that the live tables have. Logs that it never read count as foreign.
async fn check_reached<E>(
    connection: &mut SqliteConnection,
    targets: &[(LogId, Partition, Checkpoint)],
    foreign: Foreign,
) -> Result<(), SwapError<E>> {
    let reached = checkpoints(connection, "generation").await.map_err(StoreError::away(DOING))?;
    crate::generation::check_reached(targets, &reached, foreign)
}

/// Takes the generation's checkpoints, with epochs above all of before, so that every claim is fenced.
async fn take_over(connection: &mut SqliteConnection, foreign: Foreign) -> Result<(), sqlx::Error> {
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('dashi_checkpoint', 'main')")
            .fetch_all(&mut *connection)
            .await?;
    let columns = names.join(", ");
    let others = match foreign {
        Foreign::Keep => "true",
        Foreign::Refuse | Foreign::Lose => "checkpoint = 0",
    };
    let lost_logs = match foreign {
        Foreign::Keep => "log_id IN (SELECT log_id FROM generation.dashi_checkpoint)",
        Foreign::Refuse | Foreign::Lose => "true",
    };
    sqlx::raw_sql(AssertSqlSafe(format!(
        "CREATE TEMP TABLE live_checkpoint AS SELECT * FROM main.dashi_checkpoint;
         DELETE FROM main.dashi_missing WHERE {lost_logs};
         INSERT INTO main.dashi_missing SELECT * FROM generation.dashi_missing;
         DELETE FROM main.dashi_checkpoint;
         INSERT INTO main.dashi_checkpoint ({columns}) SELECT {columns} FROM generation.dashi_checkpoint;
         INSERT INTO main.dashi_checkpoint ({columns}) SELECT {columns} FROM temp.live_checkpoint
             WHERE {others} ON CONFLICT DO NOTHING;
         UPDATE main.dashi_checkpoint SET epoch = epoch + 1, live = 1;
         UPDATE main.dashi_checkpoint SET epoch = max(main.dashi_checkpoint.epoch, l.epoch + 1), owner = l.owner
             FROM temp.live_checkpoint AS l
             WHERE l.log_id = main.dashi_checkpoint.log_id AND l.partition = main.dashi_checkpoint.partition;
         DROP TABLE temp.live_checkpoint"
    )))
    .execute(connection)
    .await?;
    Ok(())
}
