//! Rows in the text form in which stores are compared.

use futures::stream::{self, Stream, TryStreamExt as _};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::PostgresStore;
use super::catalogue::Catalogue;
use super::insert::name_of;
use crate::StoreError;
use crate::compare::{NULL, Row};
use crate::table::{ColumnType, Table};

impl PostgresStore {
    /// None of a table that this version of Umami does not have.
    pub(crate) fn rows(
        &self,
        table: &'static Table,
        limit: Option<u32>,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        let begun = async move {
            let catalogue = self.catalogue().await?;
            let Some(select) = select(table, limit, &catalogue) else { return Ok(None) };
            let mut session = self.pool.begin().await.map_err(StoreError::away(DOING))?;
            // The other store may hold the comparison up.
            let declare = format!(
                "SET LOCAL idle_in_transaction_session_timeout = 0; DECLARE compared NO SCROLL CURSOR FOR {select}"
            );
            let declared = sqlx::raw_sql(AssertSqlSafe(declare)).execute(&mut session).await;
            declared.map_err(StoreError::away(DOING))?;
            Ok::<_, StoreError>(Some(session))
        };
        // A piece at a time: a table may be larger than memory.
        let pieces =
            stream::once(begun).try_filter_map(|begun| std::future::ready(Ok(begun))).map_ok(|session| {
                stream::try_unfold(Some(session), |session| async move {
                    let Some(mut session) = session else { return Ok(None) };
                    // Not prepared: a cursor of the same name gives other columns the next time.
                    let fetched =
                        sqlx::raw_sql("FETCH FORWARD 1000 FROM compared").fetch_all(&mut session).await;
                    let rows = fetched.map_err(StoreError::away(DOING))?;
                    if rows.is_empty() {
                        session.roll_back().await;
                        return Ok(None);
                    }
                    let rows: Vec<_> = rows.into_iter().map(text_row).collect();
                    Ok::<_, StoreError>(Some((stream::iter(rows), Some(session))))
                })
            });
        pieces.try_flatten().try_flatten()
    }
}

const DOING: &str = "reading rows to compare";

fn text_row(row: PgRow) -> Result<Row, StoreError> {
    let columns = (0..row.len())
        .map(|column| Ok(row.try_get::<Option<String>, _>(column)?.unwrap_or_else(|| NULL.into())));
    columns.collect::<Result<_, sqlx::Error>>().map_err(StoreError::away(DOING))
}

/// Every column as text, null where this version of Umami has none; rows in the order of their key, byte by byte.
fn select(table: &Table, limit: Option<u32>, catalogue: &Catalogue) -> Option<String> {
    let is_there = match table.name {
        "heatmap_event" => catalogue.has_heatmaps(),
        name => table.is_own() || catalogue.has_table(name),
    };
    if !is_there {
        return None;
    }
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| (column.name, column.column_type))
        .map(|(name, column_type)| match column_type {
            _ if !table.is_own() && !catalogue.has_column(table.name, name) => "NULL::text".to_owned(),
            ColumnType::Time => format!("(extract(epoch FROM {name}) * 1000)::bigint::text"),
            ColumnType::Bytes => format!("encode({name}, 'hex')"),
            ColumnType::Uuid | ColumnType::Text | ColumnType::Integer | ColumnType::Decimal(_) => {
                format!("{name}::text")
            }
        })
        .collect();
    let keys: Vec<String> = table.columns[..table.key]
        .iter()
        .map(|column| match column.column_type {
            ColumnType::Text => format!("{} COLLATE \"C\"", column.name),
            _ => column.name.to_owned(),
        })
        .collect();
    let limit = limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
    Some(format!("SELECT {} FROM {} ORDER BY {}{limit}", columns.join(", "), name_of(table), keys.join(", ")))
}
