//! Inserting many rows by one statement: each column goes as one array, which `unnest` makes rows of again.

use std::borrow::Borrow;
use std::collections::HashMap;

use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use uuid::Uuid;

use super::catalogue::Catalogue;
use super::pool::Session;
use crate::table::{ColumnType, Field, RowTable, Table, Value};

/// The index of each chunk of a recording, by the chunk's id.
pub(super) type ChunkIndexes = HashMap<Uuid, i32>;

/// A table's name in SQL.
pub(super) fn name_of(table: &Table) -> String {
    if table.is_own() { format!("dashi.{}", table.name) } else { table.name.to_owned() }
}

/// `unnest($1::…[], …)` over all columns.
pub(super) fn unnest<R>(table: &RowTable<R>) -> String {
    let parameters =
        (1..).zip(table.fields).map(|(number, field)| format!("${number}::{}[]", sql_type(field)));
    format!("unnest({})", parameters.collect::<Vec<_>>().join(", "))
}

/// The names of all columns.
pub(super) fn names<R>(table: &RowTable<R>) -> String {
    table.table.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
}

/// Assignments for `UPDATE … SET` from rows called `t`: every column but those of the key and `kept`.
pub(super) fn assignments<R>(table: &RowTable<R>, kept: &[&str]) -> String {
    let fields = table.fields[table.table.key..].iter().filter(|field| !kept.contains(&field.column.name));
    let assigned = fields.map(|field| format!("{} = {}", field.column.name, expression(field)));
    assigned.collect::<Vec<_>>().join(", ")
}

/// The statement that inserts rows, called `t` in `rest`: into the columns that this version of Umami has, or into all
/// columns of a table of Dashi's own, for which no catalogue is needed.
pub(super) fn insert_sql<R>(
    table: &RowTable<R>,
    statement: &str,
    catalogue: Option<&Catalogue>,
    rest: &str,
) -> String {
    let is_there = |field: &&Field<R>| {
        let column = field.column;
        !column.optional || catalogue.is_none_or(|there| there.has_column(table.table.name, column.name))
    };
    let written: Vec<_> = table.fields.iter().filter(is_there).collect();
    let columns: Vec<_> = written.iter().map(|field| field.column.name).collect();
    let values: Vec<_> = written.iter().map(|field| expression(field)).collect();
    format!(
        "/* {statement} */ INSERT INTO {} ({}) SELECT {} FROM {} AS t ({}) {rest}",
        name_of(&table.table),
        columns.join(", "),
        values.join(", "),
        unnest(table),
        names(table)
    )
}

/// A statement with the rows as its first parameters, one for each column.
pub(super) fn bind<'q, R, B: Borrow<R>>(
    table: &RowTable<R>,
    sql: String,
    rows: &'q [B],
    indexes: &ChunkIndexes,
) -> Query<'q, Postgres, PgArguments> {
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for field in table.fields {
        query = match field.value {
            Value::Uuid(get) => query.bind(column!(rows, row => get(row.borrow()))),
            Value::Text(get) => query.bind(column!(rows, row => get(row.borrow()))),
            Value::Integer(get) => query.bind(column!(rows, row => get(row.borrow()))),
            Value::BigInteger(get) => query.bind(column!(rows, row => get(row.borrow()))),
            // As text: the exact decimal, which a float of that many digits is not.
            Value::Decimal(get) => {
                query.bind(column!(rows, row => get(row.borrow()).map(|number| number.to_string())))
            }
            Value::Bytes(get) => query.bind(column!(rows, row => get(row.borrow()))),
            Value::ChunkIndex(chunk) => query.bind(
                column!(rows, row => chunk(row.borrow()).and_then(|chunk| indexes.get(&chunk).copied())),
            ),
        };
    }
    query
}

/// Inserts rows by the statement of [`insert_sql`]. Returns how many were written.
pub(super) async fn insert<R, B: Borrow<R>>(
    connection: &mut Session,
    table: &RowTable<R>,
    catalogue: Option<&Catalogue>,
    statement: &str,
    rows: &[B],
    rest: &str,
) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let query = bind(table, insert_sql(table, statement, catalogue, rest), rows, &ChunkIndexes::new());
    Ok(query.execute(connection).await?.rows_affected())
}

/// The type of a column's parameter.
fn sql_type<R>(field: &Field<R>) -> &'static str {
    match field.value {
        Value::Uuid(_) => "uuid",
        Value::Text(_) | Value::Decimal(_) => "text",
        Value::Integer(_) | Value::ChunkIndex(_) => "int",
        Value::BigInteger(_) => "bigint",
        Value::Bytes(_) => "bytea",
    }
}

/// A column's value, made of that of its parameter in the row `t`.
fn expression<R>(field: &Field<R>) -> String {
    let name = field.column.name;
    match field.column.column_type {
        ColumnType::Time => format!("dashi.at_ms(t.{name})"),
        ColumnType::Decimal(_) => format!("t.{name}::numeric"),
        _ => format!("t.{name}"),
    }
}
