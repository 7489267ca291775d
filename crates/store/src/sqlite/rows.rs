//! Rows in the text form in which stores are compared.

use futures::stream::{Stream, StreamExt as _};
use sqlx::{AssertSqlSafe, Row as _};

use super::SqliteStore;
use crate::StoreError;
use crate::compare::{NULL, Row};
use crate::tables::{Kind, Table};

impl SqliteStore {
    pub(crate) fn rows(
        &self,
        table: &'static Table,
        limit: Option<u32>,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        sqlx::query(AssertSqlSafe(select(table, limit))).fetch(&self.0.readers).map(|row| {
            row.and_then(|row| {
                (0..row.len())
                    .map(|column| {
                        Ok(row.try_get::<Option<String>, _>(column)?.unwrap_or_else(|| NULL.into()))
                    })
                    .collect()
            })
            .map_err(StoreError::away("reading rows to compare"))
        })
    }
}

/// Every column as text; rows in the order of their key, byte by byte.
fn select(table: &Table, limit: Option<u32>) -> String {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Uuid | Kind::Text => (*name).to_owned(),
            Kind::Integer | Kind::Time => format!("CAST({name} AS TEXT)"),
            Kind::Decimal(digits) => format!("iif({name} IS NULL, NULL, printf('%.{digits}f', {name}))"),
            Kind::Bytes => format!("lower(hex({name}))"),
        })
        .collect();
    let keys: Vec<&str> = table.columns[..table.key].iter().map(|(name, _)| *name).collect();
    let prefix = if table.own { "dashi_" } else { "" };
    let limit = limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
    format!("SELECT {} FROM {prefix}{} ORDER BY {}{limit}", columns.join(", "), table.name, keys.join(", "))
}
