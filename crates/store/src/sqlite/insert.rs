//! Inserting many rows by few statements.

use std::borrow::Borrow;
use std::collections::HashMap;

use dashi_domain::decimal::Decimal;
use sqlx::error::BoxDynError;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};
use sqlx::{Arguments as _, AssertSqlSafe};
use uuid::Uuid;

use super::text;
use crate::table::{Field, RowTable, Table, Value};

/// Values of one statement, at most; SQLite's own limit is 32,766. More rows than fit in it go in several.
const VALUES_MAX: usize = 2_000;

/// A statement whose values are being bound.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// The index of each chunk of a recording, by the chunk's id.
pub(super) type ChunkIndexes = HashMap<Uuid, i32>;

/// A table's name in SQL.
pub(super) fn name_of(table: &Table) -> String {
    if table.is_own() { format!("dashi_{}", table.name) } else { table.name.to_owned() }
}

/// Runs `INSERT … VALUES (…), (…)` over all rows, as many per statement as fit, in sizes that are powers of two so that
/// their statements stay prepared. Returns how many rows were written.
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
    let columns: Vec<&str> = table.table.columns.iter().map(|column| column.name).collect();
    let into = format!("INSERT OR FAIL INTO {} ({})", name_of(&table.table), columns.join(", "));
    let tuple = format!("({}?)", "?,".repeat(columns.len() - 1));
    let mut written = 0;
    let mut rest = rows;
    while !rest.is_empty() {
        let size = 1 << rest.len().min(VALUES_MAX / columns.len()).ilog2();
        let (some, others) = rest.split_at(size);
        let tuples = format!("{tuple},").repeat(size - 1) + &tuple;
        let mut values = SqliteArguments::default();
        for row in some {
            for field in table.fields {
                add(&mut values, field, row.borrow(), indexes).map_err(sqlx::Error::Encode)?;
            }
        }
        let sql = format!("{into} VALUES {tuples} {on_conflict}");
        let inserted = sqlx::query_with(AssertSqlSafe(sql), values).execute(&mut *connection).await?;
        written += inserted.rows_affected();
        rest = others;
    }
    Ok(written)
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
