//! Rows in the text form in which stores are compared.

use std::sync::Arc;

use futures::stream::{self, Stream, TryStreamExt as _};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::catalogue::Catalogue;
use super::insert::name_of;
use super::pool::Session;
use super::{LONG, PostgresStore, partition_states};
use crate::compare::{NULL, Row};
use crate::table::{ColumnType, Table};
use crate::{Snapshot, StoreError};

const DOING: &str = "reading rows to compare";

/// A transaction that reads one moment.
pub(crate) struct PostgresSnapshot {
    session: Session,
    catalogue: Arc<Catalogue>,
}

impl PostgresStore {
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let catalogue = self.read_catalogue().await?;
        let mut session = self.pool.begin().await.map_err(StoreError::away(DOING))?;
        let begun = async {
            session.run_raw("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY".to_owned()).await?;
            // The other store may hold the comparison up.
            session.allow(LONG).await?;
            partition_states(&mut session).await
        };
        let partitions = begun.await.map_err(StoreError::away(DOING))?;
        Ok(Snapshot::postgres(partitions, PostgresSnapshot { session, catalogue }))
    }

    /// The first rows of a table; none of a table that this version of Umami does not have.
    pub(crate) async fn first_rows(&self, table: &'static Table, limit: u32) -> Result<Vec<Row>, StoreError> {
        let Some(select) = select(table, &*self.catalogue().await?) else { return Ok(Vec::new()) };
        let rows = sqlx::query(AssertSqlSafe(format!("{select} LIMIT {limit}"))).fetch_all(&self.pool).await;
        rows.map_err(StoreError::away(DOING))?.into_iter().map(text_row).collect()
    }
}

impl PostgresSnapshot {
    pub(crate) fn has(&self, table: &Table) -> bool {
        is_there(table, &self.catalogue)
    }

    pub(crate) async fn close(self) {
        self.session.roll_back().await;
    }

    /// 0 of a table that this version of Umami does not have.
    pub(crate) async fn count(&mut self, table: &'static Table) -> Result<u64, StoreError> {
        if !self.has(table) {
            return Ok(0);
        }
        let sql = format!("SELECT count(*) FROM {}", name_of(table));
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut self.session)
            .await
            .map_err(StoreError::away(DOING))?;
        Ok(count.unsigned_abs())
    }

    /// None of a table that this version of Umami does not have.
    pub(crate) fn rows(
        &mut self,
        table: &'static Table,
    ) -> impl Stream<Item = Result<Row, StoreError>> + Send + '_ {
        let session = &mut self.session;
        let select = select(table, &self.catalogue);
        let begun = async move {
            let Some(select) = select else { return Ok(None) };
            let declare = format!("DECLARE compared NO SCROLL CURSOR FOR {select}");
            session.run_raw(declare).await.map_err(StoreError::away(DOING))?;
            Ok::<_, StoreError>(Some(session))
        };
        // A piece at a time: a table may be larger than memory.
        let pieces =
            stream::once(begun).try_filter_map(|begun| std::future::ready(Ok(begun))).map_ok(|session| {
                stream::try_unfold(session, |session| async move {
                    // Not prepared: a cursor of the same name gives other columns the next time.
                    let fetched =
                        sqlx::raw_sql("FETCH FORWARD 1000 FROM compared").fetch_all(&mut *session).await;
                    let rows = fetched.map_err(StoreError::away(DOING))?;
                    if rows.is_empty() {
                        let close = session.run_raw("CLOSE compared".to_owned()).await;
                        close.map_err(StoreError::away(DOING))?;
                        return Ok(None);
                    }
                    let rows: Vec<_> = rows.into_iter().map(text_row).collect();
                    Ok::<_, StoreError>(Some((stream::iter(rows), session)))
                })
            });
        pieces.try_flatten().try_flatten()
    }
}

fn text_row(row: PgRow) -> Result<Row, StoreError> {
    let columns = (0..row.len())
        .map(|column| Ok(row.try_get::<Option<String>, _>(column)?.unwrap_or_else(|| NULL.into())));
    columns.collect::<Result<_, sqlx::Error>>().map_err(StoreError::away(DOING))
}

/// Every column as text, null where this version of Umami has none; rows in the order of their key, byte by byte.
fn select(table: &Table, catalogue: &Catalogue) -> Option<String> {
    if !is_there(table, catalogue) {
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
            // With its table: the name alone would be that of the text in the result.
            _ => format!("{}.{}", table.name, column.name),
        })
        .collect();
    Some(format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), name_of(table), keys.join(", ")))
}

fn is_there(table: &Table, catalogue: &Catalogue) -> bool {
    match table.name {
        "heatmap_event" => catalogue.has_heatmaps(),
        name => table.is_own() || catalogue.has_table(name),
    }
}
