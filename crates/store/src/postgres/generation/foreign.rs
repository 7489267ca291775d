//! Rows of the live tables that a generation does not have.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;

use super::tables::Live;
use crate::generation::{FOREIGN_KEYS_MAX, ForeignRows};
use crate::postgres::pool::{Session, quoted};
use crate::tables;

/// Dashi's own tables whose rows describe the reading of the log: each generation has its own.
const OF_THE_READING: &[&str] = &["checkpoint", "missing"];

/// A table whose rows are looked for in a generation by their keys.
pub(super) struct Keyed {
    pub table: Live,
    live: String,
    generation: String,
    /// The key's columns in SQL.
    keys: Vec<String>,
    /// A condition on the live row `l`, beside its absence in the generation.
    condition: String,
}

impl Keyed {
    /// The tables, with their keys. Tables without any are left out: there is none of Umami's or Dashi's.
    pub async fn list(
        session: &mut Session,
        tables: &[Live],
        schema: &str,
    ) -> Result<Vec<Self>, sqlx::Error> {
        let oids: Vec<i64> = tables.iter().map(|table| table.oid).collect();
        let primary: Vec<(i64, Vec<String>)> = sqlx::query_as(
            "/* generation_keys */
             SELECT i.indrelid::bigint, array_agg(a.attname::text ORDER BY k.place)
             FROM pg_catalog.pg_index AS i
             CROSS JOIN unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indisprimary AND i.indrelid::bigint = ANY ($1) GROUP BY i.indrelid",
        )
        .bind(oids)
        .fetch_all(session)
        .await?;
        let primary: HashMap<i64, Vec<String>> = primary.into_iter().collect();
        let keyed = |table: &Live| {
            if OF_THE_READING.contains(&&*table.name) {
                return None;
            }
            let keys = match &*table.name {
                // A property that Umami wrote first keeps its id.
                "session_data" => vec!["session_id".to_owned(), "data_key".to_owned()],
                name => primary.get(&table.oid).cloned().or_else(|| described(name))?,
            };
            let condition = match &*table.name {
                "dead_letter" => dead_letters_of_others(schema),
                _ => "true".to_owned(),
            };
            Some(Self {
                live: format!("{}.{}", quoted(&table.schema), quoted(&table.name)),
                generation: format!("{}.{}", quoted(schema), quoted(&table.name)),
                keys: keys.iter().map(|key| quoted(key)).collect(),
                table: table.clone(),
                condition,
            })
        };
        Ok(tables.iter().filter_map(keyed).collect())
    }

    fn equal(&self, a: &str, b: &str) -> String {
        let equal: Vec<String> = self.keys.iter().map(|key| format!("{a}.{key} = {b}.{key}")).collect();
        equal.join(" AND ")
    }

    fn columns(&self, row: &str) -> String {
        let columns: Vec<String> = self.keys.iter().map(|key| format!("{row}.{key}")).collect();
        columns.join(", ")
    }

    /// `FROM` and `WHERE` that give the foreign rows, called `l`.
    fn foreign(&self) -> String {
        format!(
            "FROM {} AS l WHERE NOT EXISTS (SELECT 1 FROM {} AS g WHERE {}) AND {}",
            self.live,
            self.generation,
            self.equal("g", "l"),
            self.condition
        )
    }

    async fn report(&self, session: &mut Session, from: &str, row: &str) -> Result<ForeignRows, sqlx::Error> {
        let count = format!("/* foreign_count */ SELECT count(*) {from}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *session).await?;
        let mut keys = Vec::new();
        if rows > 0 {
            let columns = self.columns(row);
            let first = format!(
                "/* foreign_keys */ SELECT concat_ws('/', {columns}) {from} ORDER BY {columns} LIMIT {FOREIGN_KEYS_MAX}"
            );
            keys = sqlx::query_scalar(AssertSqlSafe(first)).fetch_all(session).await?;
        }
        Ok(ForeignRows { table: self.table.name.clone(), rows: rows as u64, keys })
    }

    /// Where [`Candidates`] keeps the keys of this table's foreign rows.
    fn found(&self, schema: &str) -> String {
        format!("{}.{}", quoted(schema), quoted(&format!("foreign_{}", self.table.name)))
    }
}

fn described(name: &str) -> Option<Vec<String>> {
    let all = tables::ALL.iter().copied().chain(tables::of_umami());
    let table = all.into_iter().find(|table| table.name == name)?;
    Some(table.columns[..table.key].iter().map(|column| column.name.to_owned()).collect())
}

/// A dead letter that the generation lacks was applied there, by a newer fold; unless the generation never saw its record.
fn dead_letters_of_others(schema: &str) -> String {
    let schema = quoted(schema);
    format!(
        "(l.log_id NOT IN (SELECT log_id FROM {schema}.checkpoint)
          OR EXISTS (SELECT 1 FROM {schema}.missing AS m WHERE m.log_id = l.log_id AND m.partition = l.partition
                     AND m.start_offset <= l.record_offset AND l.record_offset < m.end_offset))"
    )
}

/// The foreign rows of now, by table; only tables that have some.
pub(super) async fn look(session: &mut Session, tables: &[Keyed]) -> Result<Vec<ForeignRows>, sqlx::Error> {
    let mut found = Vec::new();
    for table in tables {
        let rows = table.report(session, &table.foreign(), "l").await?;
        if rows.rows > 0 {
            found.push(rows);
        }
    }
    Ok(found)
}

/// The foreign rows of a swap, found in two steps: all tables are searched while the projector works, and only the rows
/// that were written since then are searched again while it waits. The keys lie in tables of the generation's schema that
/// the transaction makes and drops.
pub(super) struct Candidates {
    tables: Vec<Keyed>,
    schema: String,
    /// The oldest transaction that may not have been visible to the first step.
    oldest: i64,
}

impl Candidates {
    pub async fn search(
        session: &mut Session,
        tables: Vec<Keyed>,
        schema: &str,
    ) -> Result<Self, sqlx::Error> {
        let oldest = sqlx::query_scalar("SELECT txid_snapshot_xmin(txid_current_snapshot())")
            .fetch_one(&mut *session)
            .await?;
        for table in &tables {
            let (found, keys, foreign) = (table.found(schema), table.columns("l"), table.foreign());
            session
                .run_raw(format!("CREATE UNLOGGED TABLE {found} AS SELECT DISTINCT {keys} {foreign}"))
                .await?;
        }
        Ok(Self { tables, schema: schema.to_owned(), oldest })
    }

    /// The second step: nobody else may write to the tables from here on, and the generation is caught up.
    pub async fn settle(&self, session: &mut Session) -> Result<Vec<ForeignRows>, sqlx::Error> {
        let mut rows = Vec::new();
        // Transaction ids are compared by their age, for they wrap around.
        let oldest = self.oldest.rem_euclid(1 << 32);
        for table in &self.tables {
            let (found, live, generation) = (table.found(&self.schema), &table.live, &table.generation);
            let statements = format!(
                "DELETE FROM {found} AS f USING {generation} AS g WHERE {};
                 DELETE FROM {found} AS f WHERE NOT EXISTS (SELECT 1 FROM {live} AS l WHERE {} AND {});
                 INSERT INTO {found} SELECT DISTINCT {} {} AND age(l.xmin) <= age('{oldest}'::xid)
                     AND NOT EXISTS (SELECT 1 FROM {found} AS f WHERE {})",
                table.equal("g", "f"),
                table.equal("l", "f"),
                table.condition,
                table.columns("l"),
                table.foreign(),
                table.equal("f", "l"),
            );
            session.run_raw(statements).await?;
            let reported = table.report(session, &format!("FROM {found} AS f"), "f").await?;
            if reported.rows > 0 {
                rows.push(reported);
            }
        }
        Ok(rows)
    }

    /// Copies the foreign rows into the generation. Returns those that it cannot hold, because another row has their place
    /// in a unique index.
    pub async fn copy(
        &self,
        session: &mut Session,
        settled: &[ForeignRows],
    ) -> Result<Vec<ForeignRows>, sqlx::Error> {
        let mut lost = Vec::new();
        for rows in settled {
            let Some(table) = self.tables.iter().find(|table| table.table.name == rows.table) else {
                continue;
            };
            let (found, live, generation) = (table.found(&self.schema), &table.live, &table.generation);
            let copy = format!(
                "/* foreign_copy */ INSERT INTO {generation} SELECT l.* FROM {live} AS l
                 WHERE EXISTS (SELECT 1 FROM {found} AS f WHERE {}) ON CONFLICT DO NOTHING",
                table.equal("f", "l")
            );
            sqlx::query(AssertSqlSafe(copy)).execute(&mut *session).await?;
            let left = format!(
                "FROM {found} AS f WHERE NOT EXISTS (SELECT 1 FROM {generation} AS g WHERE {})",
                table.equal("g", "f")
            );
            let left = table.report(session, &left, "f").await?;
            if left.rows > 0 {
                lost.push(left);
            }
        }
        Ok(lost)
    }

    pub async fn forget(&self, session: &mut Session) -> Result<(), sqlx::Error> {
        let found: Vec<String> = self.tables.iter().map(|table| table.found(&self.schema)).collect();
        session.run_raw(format!("DROP TABLE {}", found.join(", "))).await
    }
}
