//! Rows in the text form in which stores are compared.

use futures::stream::{Stream, StreamExt as _};
use sqlx::{AssertSqlSafe, Row as _};

use super::PostgresStore;
use crate::StoreError;
use crate::compare::{NULL, Row};
use crate::tables::{Kind, Table};

impl PostgresStore {
    pub(crate) fn rows(
        &self,
        table: &'static Table,
        limit: Option<u32>,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        sqlx::query(AssertSqlSafe(select(table, limit))).fetch(&self.pool).map(|row| {
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
            Kind::Time => format!("(extract(epoch FROM {name}) * 1000)::bigint::text"),
            Kind::Bytes => format!("encode({name}, 'hex')"),
            Kind::Uuid | Kind::Text | Kind::Integer | Kind::Decimal(_) => format!("{name}::text"),
        })
        .collect();
    let keys: Vec<String> = table.columns[..table.key]
        .iter()
        .map(|(name, kind)| match kind {
            Kind::Text => format!("{name} COLLATE \"C\""),
            _ => (*name).to_owned(),
        })
        .collect();
    let schema = if table.own { "dashi." } else { "" };
    let limit = limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
    format!("SELECT {} FROM {schema}{} ORDER BY {}{limit}", columns.join(", "), table.name, keys.join(", "))
}
