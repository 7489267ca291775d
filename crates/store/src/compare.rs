//! Comparison of the rows of two stores.

use async_recursion::async_recursion as boxed;
use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::table::{ColumnType, Table};
use crate::tables;
use crate::{Snapshot, Store, StoreError};

/// Differing rows that are reported per table, at most.
const DIFFERENCES_MAX: usize = 5;

/// Rows of a table between two reports.
const REPORTED: u64 = 1_000;

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
    /// Rows that only the first, and only the second store has.
    pub only: [u64; 2],
    /// Rows that both have and that differ.
    pub changed: u64,
    /// The same by the day on which rows were created; empty for tables without that time.
    pub days: Vec<DayComparison>,
    /// The first rows that differ, in the order of their keys.
    pub differences: Vec<Difference>,
}

/// The result of a comparison in the rows of one day of a table.
#[derive(Debug, Clone, Serialize)]
pub struct DayComparison {
    /// The day in UTC, as `2026-05-01`.
    pub day: String,
    /// Whether all rows are equal.
    pub equal: bool,
    /// Rows in the first and the second store.
    pub rows: [u64; 2],
    /// SHA-256 over the rows in the order of their keys.
    pub checksums: [String; 2],
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

/// Compares two stores row by row, each as it is at one moment, see [`compare_snapshots`].
///
/// # Errors
/// One of them does not answer.
#[boxed]
pub async fn compare(first: &Store, second: &Store) -> Result<Comparison, StoreError> {
    compare_watched(first, second, &|_| ()).await
}

/// How far a comparison is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComparisonProgress {
    /// The table that is compared.
    pub table: &'static str,
    /// Its number, from 1 on, and that of all tables.
    pub number: usize,
    /// See `number`.
    pub tables: usize,
    /// Rows of the first store that were read, of all tables.
    pub rows: u64,
    /// How many rows all tables of the first store have.
    pub rows_total: u64,
}

/// Compares two stores as [`compare`] does, and reports every thousand rows how far it is.
///
/// # Errors
/// One of them does not answer.
#[boxed]
pub async fn compare_watched(
    first: &Store,
    second: &Store,
    report: &(dyn Fn(ComparisonProgress) + Send + Sync),
) -> Result<Comparison, StoreError> {
    let (mut first, mut second) = (first.snapshot().await?, second.snapshot().await?);
    let compared = async {
        // An index of each table is read for it, which takes a small part of the comparison.
        let mut rows_total = 0;
        for table in compared_tables(&first, &second) {
            rows_total += first.count(table).await?;
        }
        compare_tables(&mut first, &mut second, rows_total, report).await
    };
    let compared = compared.await;
    first.close().await;
    second.close().await;
    compared
}

/// Compares two snapshots row by row, each read once, in the order of the keys. Memory does not grow with the rows, only
/// with the days.
///
/// # Errors
/// One of the stores does not answer.
#[boxed]
pub async fn compare_snapshots(
    first: &mut Snapshot,
    second: &mut Snapshot,
) -> Result<Comparison, StoreError> {
    compare_tables(first, second, 0, &|_| ()).await
}

/// The tables that both have.
fn compared_tables(first: &Snapshot, second: &Snapshot) -> Vec<&'static Table> {
    // A table that only some databases have, and no file.
    let link = &tables::SESSION_LINK.table;
    let links = (first.has(link) && second.has(link)).then_some(link);
    tables::ALL.iter().copied().chain(links).collect()
}

async fn compare_tables(
    first: &mut Snapshot,
    second: &mut Snapshot,
    rows_total: u64,
    report: &(dyn Fn(ComparisonProgress) + Send + Sync),
) -> Result<Comparison, StoreError> {
    let all = compared_tables(first, second);
    let (mut compared, mut before) = (Vec::with_capacity(all.len()), 0);
    for (place, table) in all.iter().enumerate() {
        let (number, tables) = (place + 1, all.len());
        let at = ComparisonProgress { table: table.name, number, tables, rows: before, rows_total };
        report(at);
        let of_table = |rows| report(ComparisonProgress { rows: before + rows, ..at });
        compared.push(compare_table(first, second, table, of_table).await?);
        before += compared.last().map_or(0, |table: &TableComparison| table.rows[0]);
    }
    Ok(Comparison { equal: compared.iter().all(|table| table.equal), tables: compared })
}

/// A row as text, column by column; see [`ColumnType`]. Null is [`NULL`].
pub(crate) type Row = Vec<String>;

/// The text that stands for null: U+0000 cannot be in a text column.
pub(crate) const NULL: &str = "\0";

async fn compare_table(
    first: &mut Snapshot,
    second: &mut Snapshot,
    table: &'static Table,
    report: impl Fn(u64) + Send,
) -> Result<TableComparison, StoreError> {
    let mut sides = [Side::new(first, table), Side::new(second, table)];
    let mut differences = Vec::new();
    let (mut only, mut changed) = ([0, 0], 0);
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
        if a.sums.all.rows % REPORTED == 0 {
            report(a.sums.all.rows);
        }
        if left == right {
            continue;
        }
        match order {
            std::cmp::Ordering::Less => only[0] += 1,
            std::cmp::Ordering::Greater => only[1] += 1,
            std::cmp::Ordering::Equal => changed += 1,
        }
        if differences.len() < DIFFERENCES_MAX {
            differences.push(difference(table, left.as_ref(), right.as_ref()));
        }
    }
    let [a, b] = sides.map(Side::finish);
    let days = days(a.days, b.days);
    Ok(TableComparison {
        table: table.name,
        equal: only == [0, 0] && changed == 0,
        rows: [a.all.rows, b.all.rows],
        checksums: [a.all.checksum(), b.all.checksum()],
        only,
        changed,
        days,
        differences,
    })
}

/// Both sides' days in their order.
fn days(mut first: BTreeMap<i64, Sum>, mut second: BTreeMap<i64, Sum>) -> Vec<DayComparison> {
    let mut all: Vec<i64> = first.keys().chain(second.keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    let compared = all.into_iter().map(|day| {
        let sums = [first.remove(&day).unwrap_or_default(), second.remove(&day).unwrap_or_default()];
        let rows = [sums[0].rows, sums[1].rows];
        let checksums = sums.map(Sum::checksum);
        DayComparison { day: date(day), equal: checksums[0] == checksums[1], rows, checksums }
    });
    compared.collect()
}

/// The date of a day, counted from 1970-01-01, in the Gregorian calendar. After Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms": years begin with March, so that the leap day is their last one.
fn date(day: i64) -> String {
    let day = day + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day_of_month:02}", year_of_era + era * 400 + next)
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

/// How many rows, and the hash over them.
#[derive(Default)]
struct Sum {
    rows: u64,
    hash: Sha256,
}

impl Sum {
    fn add(&mut self, row: &Row) {
        self.rows += 1;
        for column in row {
            self.hash.update((column.len() as u64).to_le_bytes());
            self.hash.update(column.as_bytes());
        }
    }

    fn checksum(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The sums of one table.
#[derive(Default)]
struct Sums {
    all: Sum,
    /// By the days since 1970.
    days: BTreeMap<i64, Sum>,
}

struct Side<'s> {
    stream: BoxStream<'s, Result<Row, StoreError>>,
    current: Option<Row>,
    sums: Sums,
    /// The column with the time of the row, in milliseconds since 1970.
    created_at: Option<usize>,
}

/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;

impl<'s> Side<'s> {
    fn new(snapshot: &'s mut Snapshot, table: &'static Table) -> Self {
        let created_at = table.columns.iter().position(|column| column.name == "created_at");
        Self { stream: snapshot.rows(table), current: None, sums: Sums::default(), created_at }
    }

    /// Moves to the next row and returns the one it stood on.
    async fn advance(&mut self) -> Result<Option<Row>, StoreError> {
        let next = self.stream.try_next().await?;
        if let Some(row) = &next {
            self.sums.all.add(row);
            let at_ms = self.created_at.and_then(|column| row[column].parse::<i64>().ok());
            if let Some(at_ms) = at_ms {
                self.sums.days.entry(at_ms.div_euclid(DAY_MS)).or_default().add(row);
            }
        }
        Ok(std::mem::replace(&mut self.current, next))
    }

    fn finish(self) -> Sums {
        self.sums
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

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn days_have_their_dates() {
        for (day, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_575, "2026-05-02"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(day), text);
        }
    }
}
