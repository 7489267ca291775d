//! Rows in the text form in which stores are compared.

use dashi_domain::decimal::Decimal;
use futures::stream::{Stream, StreamExt as _};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use super::insert::name_of;
use super::{SqliteStore, connect, partition_states};
use crate::compare::{NULL, Row};
use crate::table::{ColumnType, Table};
use crate::{Snapshot, StoreError};

const DOING: &str = "reading rows to compare";

/// A transaction that reads one moment, on a connection of its own.
pub(crate) struct SqliteSnapshot {
    connection: SqliteConnection,
    tables: Vec<String>,
}

impl SqliteStore {
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        // A statement lasts as long as its rows are read, and that depends on the other store: none is slow.
        let options = self.0.options.clone().read_only(true).disable_statement_logging();
        let mut connection = connect(&options).await.map_err(StoreError::away(DOING))?;
        let begun = async {
            sqlx::raw_sql("BEGIN").execute(&mut connection).await?;
            let partitions = partition_states(&mut connection).await?;
            let tables = sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'")
                .fetch_all(&mut connection)
                .await?;
            Ok((partitions, tables))
        };
        let (partitions, tables) = begun.await.map_err(StoreError::away(DOING))?;
        Ok(Snapshot::sqlite(partitions, SqliteSnapshot { connection, tables }))
    }

    /// The first rows of a table.
    pub(crate) async fn first_rows(&self, table: &'static Table, limit: u32) -> Result<Vec<Row>, StoreError> {
        let sql = format!("{} LIMIT {limit}", select(table));
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&self.0.readers).await;
        let rows = rows.map_err(StoreError::away(DOING))?;
        rows.iter().map(|row| text_row(row, table)).collect()
    }
}

impl SqliteSnapshot {
    pub(crate) fn has(&self, table: &Table) -> bool {
        self.tables.contains(&name_of(table))
    }

    pub(crate) async fn close(self) {
        let _ = self.connection.close().await;
    }

    pub(crate) async fn count(&mut self, table: &'static Table) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", name_of(table));
        let counted = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await;
        counted.map(i64::unsigned_abs).map_err(StoreError::away(DOING))
    }

    pub(crate) fn rows(
        &mut self,
        table: &'static Table,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        sqlx::query(AssertSqlSafe(select(table))).fetch(&mut self.connection).map(|row| {
            let row = row.map_err(StoreError::away(DOING))?;
            text_row(&row, table)
        })
    }
}

fn text_row(row: &SqliteRow, table: &Table) -> Result<Row, StoreError> {
    let columns = table.columns.iter().enumerate();
    let cells = columns.map(|(place, column)| cell(row, place, column.column_type));
    cells.collect::<Result<_, _>>().map_err(StoreError::away(DOING))
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
fn select(table: &Table) -> String {
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
    format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), name_of(table), keys.join(", "))
}
