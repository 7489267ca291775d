//! How much: totals, series over time, who is there now, and the time that is covered.

use async_recursion::async_recursion as boxed;
use dashi_domain::buckets::Bucket;
use uuid::Uuid;

use super::sql::{IS_VIEW, VIEWS};
use super::{AnswerRow, Question, Questions, each};
use crate::StoreError;

/// A website's totals in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Views: events that are neither custom events nor performance measurements.
    pub pageviews: u64,
    /// Sessions with an event of any type.
    pub visitors: u64,
    /// Visits with an event of any type.
    pub visits: u64,
    /// Visits with exactly one view.
    pub bounces: u64,
    /// Whole seconds from each visit's first view to its last one, added up.
    pub seconds: u64,
}

impl Totals {
    /// The columns of [`Totals::SELECT`], from `at` on.
    pub(super) fn read(row: &AnswerRow, at: usize) -> Result<Self, sqlx::Error> {
        Ok(Self {
            pageviews: row.count(at)?,
            visitors: row.count(at + 1)?,
            visits: row.count(at + 2)?,
            bounces: row.count(at + 3)?,
            seconds: row.count(at + 4)?,
        })
    }

    /// The totals of the visits `v`.
    pub(super) const SELECT: &str = "CAST(coalesce(sum(v.views), 0) AS bigint),
        CAST(count(DISTINCT v.session_id) AS bigint),
        CAST(count(DISTINCT v.visit_id) AS bigint),
        CAST(coalesce(sum(CASE WHEN v.views = 1 THEN 1 ELSE 0 END), 0) AS bigint),
        CAST(coalesce(sum((v.last_ms - v.first_ms) / 1000), 0) AS bigint)";
}

/// A number of views and of visitors in a bucket, or a number of events of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The bucket's place in the list, from 0 on.
    pub bucket: usize,
    /// The event's name, of a series by name.
    pub name: Option<String>,
    /// Views, or events.
    pub count: u64,
    /// Sessions with an event of any type, or with one of this name.
    pub visitors: u64,
}

impl Questions {
    /// A website's totals.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn totals(&self, question: &Question) -> Result<Totals, StoreError> {
        let doing = "adding up a website's traffic";
        let mut sql = self.sql();
        let visits = visits(&mut sql, question, false, "", "");
        let text = format!("SELECT {} FROM ({visits}) AS v", Totals::SELECT);
        let rows = self.all(doing, sql.of(text)).await?;
        let totals = each(doing, &rows, |row| Totals::read(row, 0))?;
        Ok(totals.first().copied().unwrap_or_default())
    }

    /// Views and visitors by bucket; buckets without an event are left out.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn series(&self, question: &Question, buckets: &[Bucket]) -> Result<Vec<Point>, StoreError> {
        let doing = "counting views over time";
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = self.sql();
        let events = sql.events_by_bucket(question, "");
        let text = format!(
            "{} SELECT CAST(b.n AS bigint), CAST({VIEWS} AS bigint), CAST(count(DISTINCT e.session_id) AS bigint)
             {events} GROUP BY b.n ORDER BY b.n",
            table(buckets)
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, |row| {
            let bucket = row.count(0)? as usize;
            Ok(Point { bucket, name: None, count: row.count(1)?, visitors: row.count(2)? })
        })
    }

    /// Custom events by bucket and name, those of the first bucket first; at most `limit` points.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn event_series(
        &self,
        question: &Question,
        buckets: &[Bucket],
        limit: u32,
    ) -> Result<Vec<Point>, StoreError> {
        let doing = "counting events over time";
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = self.sql();
        let events = sql.events_by_bucket(question, "e.event_type = 2 AND e.event_name <> ''");
        let page = sql.page(limit, 0);
        let text = format!(
            "{} SELECT CAST(v.n AS bigint), v.name, v.events, v.visitors FROM (
                 SELECT b.n AS n, CAST(e.event_name AS text) AS name, CAST(count(*) AS bigint) AS events,
                        CAST(count(DISTINCT e.session_id) AS bigint) AS visitors
                 {events} GROUP BY b.n, CAST(e.event_name AS text)) AS v
             ORDER BY v.n, {} {page}",
            table(buckets),
            sql.dialect.bytewise("v.name")
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, |row| {
            let bucket = row.count(0)? as usize;
            Ok(Point { bucket, name: row.optional_text(1)?, count: row.count(2)?, visitors: row.count(3)? })
        })
    }

    /// The number of sessions with an event at or after a moment.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn active(&self, website_id: Uuid, since_ms: i64) -> Result<u64, StoreError> {
        let doing = "counting active visitors";
        let mut sql = self.sql();
        let (website, since) = (sql.id(website_id), sql.number(since_ms));
        let since = sql.dialect.moment(&since);
        let text = format!(
            "SELECT CAST(count(DISTINCT e.session_id) AS bigint) FROM website_event AS e
             WHERE e.website_id = {website} AND e.created_at >= {since}"
        );
        let rows = self.all(doing, sql.of(text)).await?;
        Ok(each(doing, &rows, |row| row.count(0))?.first().copied().unwrap_or_default())
    }

    /// The first and the last moment of a website's events from `since_ms` on; `None` if there are none.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn date_range(
        &self,
        website_id: Uuid,
        since_ms: i64,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        let doing = "looking for a website's first and last event";
        let mut sql = self.sql();
        let (website, since) = (sql.id(website_id), sql.number(since_ms));
        let since = sql.dialect.moment(&since);
        // One look at each end of the index by website and time.
        let end = |of: &str| {
            let end = format!(
                "(SELECT {of}(e.created_at) FROM website_event AS e
                  WHERE e.website_id = {website} AND e.created_at >= {since})"
            );
            sql.dialect.at_ms(&end)
        };
        let text = format!("SELECT {}, {}", end("min"), end("max"));
        let rows = self.all(doing, sql.clone().of(text)).await?;
        let ends = each(doing, &rows, |row| Ok(row.optional_number(0)?.zip(row.optional_number(1)?)))?;
        Ok(ends.into_iter().flatten().next())
    }
}

/// Visits: rows of `session_id`, `visit_id`, `views`, `first_ms` and `last_ms`, the last two of views alone. With `by`, a
/// column beside them by which they are grouped, too.
pub(super) fn visits(
    sql: &mut super::Sql,
    question: &Question,
    session: bool,
    by: &str,
    and: &str,
) -> String {
    let events = sql.events(question, session, and);
    let of_views = |end: &str| {
        let end = format!("{end}(CASE WHEN {IS_VIEW} THEN e.created_at END)");
        sql.dialect.at_ms(&end)
    };
    let (column, group) = if by.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("{by} AS x, "), format!(", {by}"))
    };
    format!(
        "SELECT {column}e.session_id AS session_id, e.visit_id AS visit_id, {VIEWS} AS views,
                {} AS first_ms, {} AS last_ms
         {events} GROUP BY e.session_id, e.visit_id{group}",
        of_views("min"),
        of_views("max")
    )
}

/// The buckets as a table of the statement. They are numbers, so they are part of its text.
fn table(buckets: &[Bucket]) -> String {
    let rows: Vec<_> = buckets
        .iter()
        .enumerate()
        .map(|(n, bucket)| format!("({n}, {}, {})", bucket.low_ms, bucket.high_ms))
        .collect();
    format!("WITH bucket (n, low, high) AS (VALUES {})", rows.join(", "))
}
