//! Lists of values with how often each comes: pages, referrers, browsers, countries, events.

use super::sql::IS_VIEW;
use super::traffic::visits;
use super::{Field, Question, Questions, Sql, Totals, each};
use crate::StoreError;
use async_recursion::async_recursion as boxed;

/// The list that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Values of views, by the number of views.
    Views(Field),
    /// Referring domains but the page's own, by the number of views.
    Referrers,
    /// Names of custom events, by the number of events.
    Events,
    /// Values of sessions, by the number of sessions.
    Sessions(Field),
    /// The pages on which visits begin, by the number of visits.
    Entries,
    /// The pages on which visits end, by the number of visits.
    Exits,
}

/// A value and how often it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// The value; never empty.
    pub value: String,
    /// The number of views, events, sessions or visits.
    pub count: u64,
}

impl MetricKind {
    /// The column, what counts beside the question's conditions, and whether sessions are counted.
    fn parts(self) -> (Field, String, bool) {
        match self {
            Self::Views(field) => (field, IS_VIEW.to_owned(), false),
            Self::Referrers => {
                let others = "(e.hostname IS NULL OR e.referrer_domain <> e.hostname)";
                (Field::Referrer, format!("{IS_VIEW} AND {others}"), false)
            }
            Self::Events => (Field::Event, "e.event_type = 2".to_owned(), false),
            Self::Sessions(field) => (field, String::new(), true),
            Self::Entries | Self::Exits => (Field::Path, IS_VIEW.to_owned(), false),
        }
    }
}

impl Questions {
    /// Values with how often each comes, the most frequent first, equally frequent ones by their bytes: from the row
    /// `offset` on, at most `limit`. With `search`, those that contain it. Rows without a value are left out.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn metrics(
        &self,
        question: &Question,
        kind: MetricKind,
        search: &str,
        limit: u32,
        offset: u64,
    ) -> Result<Vec<Metric>, StoreError> {
        let doing = "counting a website's traffic by value";
        let mut sql = self.sql();
        let (field, and, of_sessions) = kind.parts();
        let column = field.column();
        let and = with_value(&and, &column);
        let counted = match kind {
            MetricKind::Entries | MetricKind::Exits => {
                let order = if kind == MetricKind::Entries { "ASC" } else { "DESC" };
                let events = sql.events(question, false, &and);
                format!(
                    "SELECT p.x, CAST(count(*) AS bigint) AS y FROM (
                         SELECT {column} AS x, row_number() OVER (
                             PARTITION BY e.session_id, e.visit_id
                             ORDER BY e.created_at {order}, e.event_id {order}) AS n
                         {events}) AS p
                     WHERE p.n = 1 GROUP BY p.x"
                )
            }
            _ => {
                let events = sql.events(question, field.is_of_session(), &and);
                let count = if of_sessions { "count(DISTINCT e.session_id)" } else { "count(*)" };
                format!("SELECT {column} AS x, CAST({count} AS bigint) AS y {events} GROUP BY {column}")
            }
        };
        let searched = searched(&mut sql, search);
        let page = sql.page(limit, offset);
        let text = format!(
            "SELECT v.x, v.y FROM ({counted}) AS v {searched} ORDER BY v.y DESC, {} {page}",
            sql.dialect.bytewise("v.x")
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, |row| Ok(Metric { value: row.text(0)?, count: row.count(1)? }))
    }

    /// The same values with the totals of the events that have them, those with the most visitors first.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn expanded_metrics(
        &self,
        question: &Question,
        kind: MetricKind,
        search: &str,
        limit: u32,
        offset: u64,
    ) -> Result<Vec<(String, Totals)>, StoreError> {
        let doing = "adding up a website's traffic by value";
        let mut sql = self.sql();
        let (field, and, _) = kind.parts();
        let column = field.column();
        let visits = visits(&mut sql, question, field.is_of_session(), &column, &with_value(&and, &column));
        let searched = searched(&mut sql, search);
        let page = sql.page(limit, offset);
        let text = format!(
            "SELECT v.x, {} FROM ({visits}) AS v {searched} GROUP BY v.x
             ORDER BY count(DISTINCT v.session_id) DESC, {} {page}",
            Totals::SELECT,
            sql.dialect.bytewise("v.x")
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, |row| Ok((row.text(0)?, Totals::read(row, 1)?)))
    }
}

fn with_value(and: &str, column: &str) -> String {
    let has_value = format!("{column} <> ''");
    if and.is_empty() { has_value } else { format!("{and} AND {has_value}") }
}

fn searched(sql: &mut Sql, search: &str) -> String {
    if search.is_empty() {
        return String::new();
    }
    let search = sql.text(search);
    format!("WHERE {}", sql.dialect.contains("v.x", &search))
}
