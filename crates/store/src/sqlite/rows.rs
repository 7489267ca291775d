//! Rows in the text form in which stores are compared.

use dashi_domain::decimal::Decimal;
use futures::stream::{Stream, StreamExt as _};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::SqliteStore;
use super::insert::name_of;
use crate::StoreError;
use crate::compare::{NULL, Row};
use crate::table::{ColumnType, Table};

impl SqliteStore {
    pub(crate) fn rows(
        &self,
        table: &'static Table,
        limit: Option<u32>,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        sqlx::query(AssertSqlSafe(select(table, limit))).fetch(&self.0.readers).map(|row| {
            row.and_then(|row| {
                let columns = table.columns.iter().enumerate();
                columns.map(|(place, column)| cell(&row, place, column.column_type)).collect()
            })
            .map_err(StoreError::away("reading rows to compare"))
        })
    }
}

fn cell(row: &SqliteRow, place: usize, column_type: ColumnType) -> Result<String, sqlx::Error> {
    let text = match column_type {
        ColumnType::Decimal(digits) => {
            row.try_get::<Option<f64>, _>(place)?.map(|number| decimal(number, digits))
        }
        _ => row.try_get(place)?,
    };
    Ok(text.unwrap_or_else(|| NULL.into()))
}

/// The decimal that was written as `number`. SQLite's own printf stops at 16 digits, one fewer than a number may
/// have, and would make equal rows look different.
fn decimal(number: f64, digits: u8) -> String {
    Decimal::round(number, digits)
        .map_or_else(|| format!("{number:.digits$}", digits = usize::from(digits)), |exact| exact.to_string())
}

/// Every column as text, decimals as the numbers they are; rows in the order of their key, byte by byte.
fn select(table: &Table, limit: Option<u32>) -> String {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| (column.name, column.column_type))
        .map(|(name, column_type)| match column_type {
            ColumnType::Uuid | ColumnType::Text | ColumnType::Decimal(_) => name.to_owned(),
            ColumnType::Integer | ColumnType::Time => format!("CAST({name} AS TEXT)"),
            ColumnType::Bytes => format!("lower(hex({name}))"),
        })
        .collect();
    let keys: Vec<&str> = table.columns[..table.key].iter().map(|column| column.name).collect();
    let limit = limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
    format!("SELECT {} FROM {} ORDER BY {}{limit}", columns.join(", "), name_of(table), keys.join(", "))
}
