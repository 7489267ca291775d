//! A row of an answer, of either database.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::Answer;

/// A row. Columns are read by position, from 0 on; statements cast each to `text`, `bigint` or `double precision`.
pub(crate) enum AnswerRow {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

macro_rules! read {
    ($row:expr, $at:expr) => {
        match $row {
            AnswerRow::Postgres(row) => row.try_get($at),
            AnswerRow::Sqlite(row) => row.try_get($at),
        }
    };
}

impl AnswerRow {
    pub fn optional_text(&self, at: usize) -> Answer<Option<String>> {
        read!(self, at)
    }

    pub fn text(&self, at: usize) -> Answer<String> {
        read!(self, at)
    }

    pub fn id(&self, at: usize) -> Answer<Uuid> {
        self.text(at)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }

    pub fn optional_id(&self, at: usize) -> Answer<Option<Uuid>> {
        let text = self.optional_text(at)?;
        text.map(|text| text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))).transpose()
    }

    pub fn optional_number(&self, at: usize) -> Answer<Option<i64>> {
        read!(self, at)
    }

    pub fn number(&self, at: usize) -> Answer<i64> {
        read!(self, at)
    }

    /// A number that counts, which is never negative.
    pub fn count(&self, at: usize) -> Answer<u64> {
        self.number(at).map(|count| count.max(0) as u64)
    }

    pub fn optional_real(&self, at: usize) -> Answer<Option<f64>> {
        read!(self, at)
    }
}
