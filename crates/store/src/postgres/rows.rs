//! Rows in the text form in which stores are compared.

use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::PostgresStore;
use super::catalogue::Catalogue;
use crate::StoreError;
use crate::compare::{NULL, Row};
use crate::tables::{Kind, Table};

impl PostgresStore {
    /// None of a table that this version of Umami does not have.
    pub(crate) fn rows(
        &self,
        table: &'static Table,
        limit: Option<u32>,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        let selected = async move {
            let catalogue = self.catalogue().await?;
            Ok::<_, StoreError>(select(table, limit, &catalogue))
        };
        stream::once(selected)
            .map_ok(|select| match select {
                None => stream::empty().left_stream(),
                Some(select) => {
                    sqlx::query(AssertSqlSafe(select)).fetch(&self.pool).map(text_row).right_stream()
                }
            })
            .try_flatten()
    }
}

fn text_row(row: Result<PgRow, sqlx::Error>) -> Result<Row, StoreError> {
    row.and_then(|row| {
        (0..row.len())
            .map(|column| Ok(row.try_get::<Option<String>, _>(column)?.unwrap_or_else(|| NULL.into())))
            .collect()
    })
    .map_err(StoreError::away("reading rows to compare"))
}

/// Every column as text, null where this version of Umami has none; rows in the order of their key, byte by byte.
fn select(table: &Table, limit: Option<u32>, catalogue: &Catalogue) -> Option<String> {
    if !table.own && !catalogue.has_table(table.name) {
        return None;
    }
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match kind {
            _ if !table.own && !catalogue.has_column(table.name, name) => "NULL::text".to_owned(),
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
    Some(format!(
        "SELECT {} FROM {schema}{} ORDER BY {}{limit}",
        columns.join(", "),
        table.name,
        keys.join(", ")
    ))
}
