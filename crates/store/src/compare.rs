//! Comparison of the rows of two stores.

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::table::{ColumnType, Table};
use crate::tables;
use crate::{Store, StoreError};

/// Differing rows that are reported per table, at most.
const DIFFERENCES_MAX: usize = 5;

/// The result of a comparison, table by table.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Whether all tables are equal.
    pub equal: bool,
    /// One per table of the projection.
    pub tables: Vec<TableComparison>,
}

/// The result of a comparison in one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableComparison {
    /// The table.
    pub table: &'static str,
    /// Whether all rows are equal.
    pub equal: bool,
    /// Rows in the first and the second store.
    pub rows: [u64; 2],
    /// SHA-256 over the rows in the order of their keys.
    pub checksums: [String; 2],
    /// The first rows that differ, in the order of their keys.
    pub differences: Vec<Difference>,
}

/// A row that is not the same in both stores: the columns that differ, or a whole row that one of them lacks.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// The row's key.
    pub key: String,
    /// `column: value` of the first store; empty if it lacks the row.
    pub first: Vec<String>,
    /// `column: value` of the second store; empty if it lacks the row.
    pub second: Vec<String>,
}

/// Compares two stores row by row, each read once, in the order of the keys. Memory does not grow with the rows.
///
/// # Errors
/// One of them does not answer.
pub async fn compare(first: &Store, second: &Store) -> Result<Comparison, StoreError> {
    let mut compared = Vec::with_capacity(tables::ALL.len());
    for table in tables::ALL {
        compared.push(compare_table(first, second, table).await?);
    }
    Ok(Comparison { equal: compared.iter().all(|table| table.equal), tables: compared })
}

/// A row as text, column by column; see [`ColumnType`]. Null is [`NULL`].
pub(crate) type Row = Vec<String>;

/// The text that stands for null: U+0000 cannot be in a text column.
pub(crate) const NULL: &str = "\0";

pub(crate) fn stream<'s>(
    store: &'s Store,
    table: &'static Table,
    limit: Option<u32>,
) -> BoxStream<'s, Result<Row, StoreError>> {
    match store {
        Store::Postgres(store) => store.rows(table, limit).boxed(),
        Store::Sqlite(store) => store.rows(table, limit).boxed(),
    }
}

async fn compare_table(
    first: &Store,
    second: &Store,
    table: &'static Table,
) -> Result<TableComparison, StoreError> {
    let mut sides = [Side::new(first, table), Side::new(second, table)];
    let mut differences = Vec::new();
    let mut equal = true;
    for side in &mut sides {
        side.advance().await?;
    }
    loop {
        let [a, b] = &mut sides;
        let order = match (&a.current, &b.current) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => key_order(table, a, b),
        };
        let (left, right) = match order {
            std::cmp::Ordering::Less => (a.advance().await?, None),
            std::cmp::Ordering::Greater => (None, b.advance().await?),
            std::cmp::Ordering::Equal => (a.advance().await?, b.advance().await?),
        };
        if left != right {
            equal = false;
            if differences.len() < DIFFERENCES_MAX {
                differences.push(difference(table, left.as_ref(), right.as_ref()));
            }
        }
    }
    let [a, b] = sides;
    Ok(TableComparison {
        table: table.name,
        equal,
        rows: [a.rows, b.rows],
        checksums: [a.checksum(), b.checksum()],
        differences,
    })
}

/// Numbers order as numbers, all else as text: the order in which the backends give the rows.
fn key_order(table: &Table, a: &Row, b: &Row) -> std::cmp::Ordering {
    let keys = table.columns.iter().take(table.key).zip(a.iter().zip(b));
    keys.map(|(column, (a, b))| match column.column_type {
        ColumnType::Integer => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        _ => a.cmp(b),
    })
    .fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
}

struct Side<'s> {
    stream: BoxStream<'s, Result<Row, StoreError>>,
    current: Option<Row>,
    rows: u64,
    sum: Sha256,
}

impl<'s> Side<'s> {
    fn new(store: &'s Store, table: &'static Table) -> Self {
        Self { stream: stream(store, table, None), current: None, rows: 0, sum: Sha256::new() }
    }

    /// Moves to the next row and returns the one it stood on.
    async fn advance(&mut self) -> Result<Option<Row>, StoreError> {
        let next = self.stream.try_next().await?;
        if let Some(row) = &next {
            self.rows += 1;
            for column in row {
                self.sum.update((column.len() as u64).to_le_bytes());
                self.sum.update(column.as_bytes());
            }
        }
        Ok(std::mem::replace(&mut self.current, next))
    }

    fn checksum(self) -> String {
        self.sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn difference(table: &Table, first: Option<&Row>, second: Option<&Row>) -> Difference {
    let key = first.or(second).map(|row| row[..table.key].join("/")).unwrap_or_default();
    let columns = |row: Option<&Row>, other: Option<&Row>| {
        row.map_or_else(Vec::new, |row| {
            table
                .columns
                .iter()
                .enumerate()
                .filter(|(place, _)| other.is_none_or(|other| other[*place] != row[*place]))
                .map(|(place, column)| {
                    let value = if row[place] == NULL { "null" } else { &row[place] };
                    format!("{}: {value}", column.name)
                })
                .collect()
        })
    };
    Difference { key, first: columns(first, second), second: columns(second, first) }
}
