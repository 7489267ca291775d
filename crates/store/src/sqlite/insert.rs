//! Writing many rows by few calls of the driver. A call goes to the driver's thread and back, which takes as long as writing some
//! rows, and that thread has nothing to do meanwhile.
//!
//! A call of a millisecond, and no longer: where the thread stands back behind those that answer requests (`projector.nice`), it
//! keeps its core until the call ends. Four times as many rows in a call brought 3 % more of them, and took a fifth of `serve`'s
//! requests.

use std::borrow::Borrow;
use std::collections::HashMap;

use dashi_domain::decimal::Decimal;
use sqlx::error::BoxDynError;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe};
use uuid::Uuid;

use super::text;
use crate::table::{Field, RowTable, Table, Value};

/// Values of one statement, at most; SQLite's own limit is 32,766. More rows than fit in it go in several.
const VALUES_MAX: usize = 2_000;

/// Statements of one row each in one call, at most.
const ROWS_MAX: usize = 64;

/// A statement whose values are being bound.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// The index of each chunk of a recording, by the chunk's id.
pub(super) type ChunkIndexes = HashMap<Uuid, i32>;

/// A table's name in SQL.
pub(super) fn name_of(table: &Table) -> String {
    if table.is_own() { format!("dashi_{}", table.name) } else { table.name.to_owned() }
}

/// Inserts rows, as many per statement as fit. Returns how many were written.
pub(super) async fn insert<R, B: Borrow<R>>(
    connection: &mut SqliteConnection,
    table: &RowTable<R>,
    rows: &[B],
    on_conflict: &str,
) -> Result<u64, sqlx::Error> {
    insert_indexed(connection, table, rows, &ChunkIndexes::new(), on_conflict).await
}

/// The same for rows of recordings and heatmaps, which have the index of a chunk.
pub(super) async fn insert_indexed<R, B: Borrow<R>>(
    connection: &mut SqliteConnection,
    table: &RowTable<R>,
    rows: &[B],
    indexes: &ChunkIndexes,
    on_conflict: &str,
) -> Result<u64, sqlx::Error> {
    let mut calls = Calls { table, rows, indexes, on_conflict };
    let (mut written, mut next) = (0, calls.next());
    while let Some(call) = next {
        let (sql, values) = call?;
        // The next call's values are bound while the driver's thread is busy with this one.
        let (done, following) = tokio::join!(run(&mut *connection, sql, values), async { calls.next() });
        written += done?;
        next = following;
    }
    Ok(written)
}

/// Inserts rows. Returns what `on_conflict` returns of those that were written, by its `RETURNING`.
pub(super) async fn insert_returning<R>(
    connection: &mut SqliteConnection,
    table: &RowTable<R>,
    rows: &[R],
    on_conflict: &str,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let (indexes, mut returned) = (ChunkIndexes::new(), Vec::new());
    for call in (Calls { table, rows, indexes: &indexes, on_conflict }) {
        let (sql, values) = call?;
        returned.extend(sqlx::query_with(AssertSqlSafe(sql), values).fetch_all(&mut *connection).await?);
    }
    Ok(returned)
}

/// Runs the same statement for each of these rows, in their order. `bind` adds a row's values; all parameters are `?`.
pub(super) async fn run_for_each<R>(
    connection: &mut SqliteConnection,
    sql: &str,
    rows: &[R],
    bind: impl Fn(&mut SqliteArguments, &R) -> Result<(), BoxDynError>,
) -> Result<(), sqlx::Error> {
    let mut rest = rows;
    while let Some(count) = power_of_two(rest.len(), ROWS_MAX) {
        let (some, others) = rest.split_at(count);
        let mut values = SqliteArguments::default();
        for row in some {
            bind(&mut values, row).map_err(sqlx::Error::Encode)?;
        }
        run(connection, format!("{sql};").repeat(count), values).await?;
        rest = others;
    }
    Ok(())
}

async fn run(
    connection: &mut SqliteConnection,
    sql: String,
    values: SqliteArguments,
) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query_with(AssertSqlSafe(sql), values).execute(connection).await?.rows_affected())
}

/// As many of `len` as fit, at most `max`: a power of two, so that there are few different statements, which stay prepared.
/// `None` for none.
fn power_of_two(len: usize, max: usize) -> Option<usize> {
    len.min(max).checked_ilog2().map(|power| 1 << power)
}

/// The statements `INSERT … VALUES (…), (…)` for rows of one table, call by call, with their values.
struct Calls<'a, R: 'static, B> {
    table: &'a RowTable<R>,
    rows: &'a [B],
    indexes: &'a ChunkIndexes,
    on_conflict: &'a str,
}

impl<R: 'static, B: Borrow<R>> Iterator for Calls<'_, R, B> {
    type Item = Result<(String, SqliteArguments), sqlx::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let columns = &self.table.table.columns;
        let rows = power_of_two(self.rows.len(), VALUES_MAX / columns.len())?;
        let (some, others) = self.rows.split_at(rows);
        self.rows = others;
        let mut values = SqliteArguments::default();
        for row in some {
            for field in self.table.fields {
                if let Err(error) = add(&mut values, field, row.borrow(), self.indexes) {
                    return Some(Err(sqlx::Error::Encode(error)));
                }
            }
        }
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let tuple = format!("({}?)", "?,".repeat(columns.len() - 1));
        let tuples = format!("{tuple},").repeat(rows - 1) + &tuple;
        let (into, names, on_conflict) = (name_of(&self.table.table), names.join(", "), self.on_conflict);
        let sql = format!("INSERT OR FAIL INTO {into} ({names}) VALUES {tuples} {on_conflict}");
        Some(Ok((sql, values)))
    }
}

/// Adds the value of one column. Not by [`Query::bind`], which moves the whole statement for each value.
fn add<R>(
    values: &mut SqliteArguments,
    field: &Field<R>,
    row: &R,
    indexes: &ChunkIndexes,
) -> Result<(), BoxDynError> {
    match field.value {
        Value::Uuid(get) => values.add(get(row).map(text)),
        Value::Text(get) => values.add(get(row).map(str::to_owned)),
        Value::Integer(get) => values.add(get(row)),
        Value::BigInteger(get) => values.add(get(row)),
        Value::Decimal(get) => values.add(get(row).map(Decimal::to_f64)),
        Value::Bytes(get) => values.add(get(row).map(<[u8]>::to_vec)),
        Value::ChunkIndex(chunk) => values.add(chunk(row).and_then(|chunk| indexes.get(&chunk).copied())),
    }
}
