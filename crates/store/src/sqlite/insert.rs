//! Inserting many rows by few statements.

use std::borrow::Borrow;
use std::collections::HashMap;

use dashi_domain::flatten::Decimal;
use sqlx::AssertSqlSafe;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};
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

/// The same for rows of recordings and of what is made of them, which have the index of a chunk.
pub(super) async fn insert_indexed<R, B: Borrow<R>>(
    connection: &mut SqliteConnection,
    table: &RowTable<R>,
    rows: &[B],
    indexes: &ChunkIndexes,
    on_conflict: &str,
) -> Result<u64, sqlx::Error> {
    let columns: Vec<&str> = table.table.columns.iter().map(|column| column.name).collect();
    let into = format!("INSERT INTO {} ({})", name_of(&table.table), columns.join(", "));
    let tuple = format!("({}?)", "?,".repeat(columns.len() - 1));
    let mut written = 0;
    let mut rest = rows;
    while !rest.is_empty() {
        let size = 1 << rest.len().min(VALUES_MAX / columns.len()).ilog2();
        let (some, others) = rest.split_at(size);
        let tuples = format!("{tuple},").repeat(size - 1) + &tuple;
        let mut statement = sqlx::query(AssertSqlSafe(format!("{into} VALUES {tuples} {on_conflict}")));
        for row in some {
            for field in table.fields {
                statement = bind(statement, field, row.borrow(), indexes);
            }
        }
        written += statement.execute(&mut *connection).await?.rows_affected();
        rest = others;
    }
    Ok(written)
}

fn bind<'q, R>(statement: Statement<'q>, field: &Field<R>, row: &R, indexes: &ChunkIndexes) -> Statement<'q> {
    match field.value {
        Value::Uuid(get) => statement.bind(get(row).map(text)),
        Value::Text(get) => statement.bind(get(row).map(str::to_owned)),
        Value::Integer(get) => statement.bind(get(row)),
        Value::BigInteger(get) => statement.bind(get(row)),
        Value::Decimal(get) => statement.bind(get(row).map(Decimal::to_f64)),
        Value::Bytes(get) => statement.bind(get(row).map(<[u8]>::to_vec)),
        Value::ChunkIndex(chunk) => statement.bind(chunk(row).and_then(|chunk| indexes.get(&chunk).copied())),
    }
}
