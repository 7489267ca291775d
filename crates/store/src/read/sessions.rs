//! Sessions: a list of those with events in a time, one with all of its events, and how many there are.

use async_recursion::async_recursion as boxed;
use dashi_domain::rows::SessionAttributes;
use uuid::Uuid;

use super::sql::{CUSTOM_EVENTS, IS_VIEW, VIEWS};
use super::{AnswerRow, Question, Questions, Sql, each};
use crate::StoreError;

/// A session and its events of a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Its id.
    pub session_id: Uuid,
    /// The first of its events' hostnames, by bytes.
    pub hostname: Option<String>,
    /// Browser, place, distinct id.
    pub attributes: SessionAttributes,
    /// The first event in the time, in milliseconds since 1970.
    pub first_at_ms: i64,
    /// The last one.
    pub last_at_ms: i64,
    /// Visits with an event in the time.
    pub visits: u64,
    /// Views in the time.
    pub views: u64,
    /// Custom events in the time.
    pub events: u64,
    /// Whole seconds from each visit's first view to its last one; of one session alone, else 0.
    pub seconds: u64,
}

/// The order of a list of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionOrder {
    /// By the last event.
    LastAt,
    /// By the first event.
    FirstAt,
    /// By the number of visits.
    Visits,
    /// By the number of views.
    Views,
    /// By the number of custom events.
    Events,
}

impl SessionOrder {
    fn column(self) -> &'static str {
        match self {
            Self::LastAt => "v.last_ms",
            Self::FirstAt => "v.first_ms",
            Self::Visits => "v.visits",
            Self::Views => "v.views",
            Self::Events => "v.events",
        }
    }
}

/// How many sessions, and what they did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionTotals {
    /// Views.
    pub pageviews: u64,
    /// Sessions with an event.
    pub visitors: u64,
    /// Visits with an event.
    pub visits: u64,
    /// Countries of these sessions.
    pub countries: u64,
    /// Custom events.
    pub events: u64,
}

/// The columns of `session` that [`read`] expects from the second position on.
const ATTRIBUTES: &str = "CAST(s.browser AS text), CAST(s.os AS text), CAST(s.device AS text),
    CAST(s.screen AS text), CAST(s.language AS text), CAST(s.country AS text), CAST(s.region AS text),
    CAST(s.city AS text), CAST(s.distinct_id AS text)";

fn read(row: &AnswerRow) -> Result<SessionRow, sqlx::Error> {
    Ok(SessionRow {
        session_id: row.id(0)?,
        attributes: SessionAttributes {
            browser: row.optional_text(1)?,
            os: row.optional_text(2)?,
            device: row.optional_text(3)?,
            screen: row.optional_text(4)?,
            language: row.optional_text(5)?,
            country: row.optional_text(6)?,
            region: row.optional_text(7)?,
            city: row.optional_text(8)?,
            distinct_id: row.optional_text(9)?,
        },
        hostname: row.optional_text(10)?,
        first_at_ms: row.number(11)?,
        last_at_ms: row.number(12)?,
        visits: row.count(13)?,
        views: row.count(14)?,
        events: row.count(15)?,
        seconds: row.count(16)?,
    })
}

/// What a session's events add up to, by group of `session_id`.
fn sums(sql: &Sql) -> String {
    format!(
        "min({}) AS hostname, {} AS first_ms, {} AS last_ms, CAST(count(DISTINCT e.visit_id) AS bigint) AS visits,
         CAST({VIEWS} AS bigint) AS views, CAST({CUSTOM_EVENTS} AS bigint) AS events",
        sql.dialect.bytewise("CAST(e.hostname AS text)"),
        sql.dialect.at_ms("min(e.created_at)"),
        sql.dialect.at_ms("max(e.created_at)"),
    )
}

impl Questions {
    /// Sessions with events that the question is about, one line for each, and how many there are in all. `search`: those
    /// whose distinct id, city, browser, operating system or device contains it.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn sessions(
        &self,
        question: &Question,
        search: &str,
        (order, descending): (SessionOrder, bool),
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<SessionRow>, u64), StoreError> {
        let doing = "listing a website's sessions";
        let searched = |sql: &mut Sql| {
            if search.is_empty() {
                return String::new();
            }
            let search = sql.text(search);
            let columns = ["distinct_id", "city", "browser", "os", "device"];
            let any: Vec<_> = columns
                .iter()
                .map(|column| sql.dialect.contains(&format!("CAST(s.{column} AS text)"), &search))
                .collect();
            format!("({})", any.join(" OR "))
        };
        let mut sql = self.sql();
        let and = searched(&mut sql);
        // The sessions are joined once they are grouped, and before only where they are searched or filtered by.
        let events = sql.events(question, !search.is_empty(), &and);
        let website = sql.id(question.website_id);
        let page = sql.page(limit, offset);
        let direction = if descending { "DESC" } else { "ASC" };
        let text = format!(
            "SELECT CAST(v.session_id AS text), {ATTRIBUTES}, v.hostname, v.first_ms, v.last_ms, v.visits, v.views,
                    v.events, CAST(0 AS bigint)
             FROM (SELECT e.session_id AS session_id, {} {events} GROUP BY e.session_id) AS v
             JOIN session AS s ON s.session_id = v.session_id AND s.website_id = {website}
             ORDER BY {} {direction}, v.session_id {direction} {page}",
            sums(&sql),
            order.column()
        );
        let list = sql.of(text);
        let mut sql = self.sql();
        let and = searched(&mut sql);
        let events = sql.events(question, !search.is_empty(), &and);
        let website = sql.id(question.website_id);
        let count = sql.of(format!(
            "SELECT CAST(count(*) AS bigint) FROM (SELECT DISTINCT e.session_id AS session_id {events}) AS v
             JOIN session AS s ON s.session_id = v.session_id AND s.website_id = {website}"
        ));
        let [rows, count] = self.rows(doing, [list, count]).await?;
        let count = each(doing, &count, |row| row.count(0))?.first().copied().unwrap_or_default();
        Ok((each(doing, &rows, read)?, count))
    }

    /// One session with all of its events; `None` if it has no row. Without an event, its times are those of the row.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn session(
        &self,
        website_id: Uuid,
        session_id: Uuid,
    ) -> Result<Option<SessionRow>, StoreError> {
        let doing = "reading a session";
        let rows = self.all(doing, one_session(self.sql(), website_id, session_id)).await?;
        Ok(each(doing, &rows, read)?.into_iter().next())
    }

    /// How many sessions there are, and what they did.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn session_totals(&self, question: &Question) -> Result<SessionTotals, StoreError> {
        let doing = "counting a website's sessions";
        let mut sql = self.sql();
        let events = sql.events(question, true, "");
        let text = format!(
            "SELECT CAST(coalesce({VIEWS}, 0) AS bigint), CAST(count(DISTINCT e.session_id) AS bigint),
                    CAST(count(DISTINCT e.visit_id) AS bigint), CAST(count(DISTINCT s.country) AS bigint),
                    CAST(coalesce({CUSTOM_EVENTS}, 0) AS bigint) {events}"
        );
        let rows = self.all(doing, sql.of(text)).await?;
        let totals = each(doing, &rows, |row| {
            Ok(SessionTotals {
                pageviews: row.count(0)?,
                visitors: row.count(1)?,
                visits: row.count(2)?,
                countries: row.count(3)?,
                events: row.count(4)?,
            })
        })?;
        Ok(totals.first().copied().unwrap_or_default())
    }
}

/// The statement of [`Questions::session`].
fn one_session(mut sql: Sql, website_id: Uuid, session_id: Uuid) -> Sql {
    let (website, session) = (sql.id(website_id), sql.id(session_id));
    let of_website = sql.dialect.beside_session("e.website_id");
    let created = sql.dialect.at_ms("s.created_at");
    let of_views = |end: &str| {
        let end = format!("{end}(CASE WHEN {IS_VIEW} THEN e.created_at END)");
        sql.dialect.at_ms(&end)
    };
    let text = format!(
        "SELECT CAST(s.session_id AS text), {ATTRIBUTES}, v.hostname, coalesce(v.first_ms, {created}),
                coalesce(v.last_ms, {created}), coalesce(v.visits, 0), coalesce(v.views, 0),
                coalesce(v.events, 0), coalesce(t.seconds, CAST(0 AS bigint))
         FROM session AS s
         LEFT JOIN (SELECT e.session_id AS session_id, {} FROM website_event AS e
                    WHERE {of_website} = {website} AND e.session_id = {session} GROUP BY e.session_id) AS v
             ON v.session_id = s.session_id
         LEFT JOIN (SELECT CAST(sum((w.last_ms - w.first_ms) / 1000) AS bigint) AS seconds FROM (
                        SELECT {} AS first_ms, {} AS last_ms FROM website_event AS e
                        WHERE {of_website} = {website} AND e.session_id = {session} GROUP BY e.visit_id) AS w) AS t
             ON true
         WHERE s.session_id = {session} AND s.website_id = {website}",
        sums(&sql),
        of_views("min"),
        of_views("max"),
    );
    sql.of(text)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnection;
    use sqlx::{AssertSqlSafe, Connection as _, Row as _};

    use super::*;
    use crate::read::sql::Dialect;

    #[tokio::test]
    async fn a_file_reads_one_session_by_its_own_index() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql(include_str!("../sqlite/dashi_1.sql")).execute(&mut connection).await.unwrap();
        let asked = one_session(Sql::new(Dialect::Sqlite), Uuid::nil(), Uuid::nil());
        let plan = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", asked.text));
        let steps = sqlx::query(plan).fetch_all(&mut connection).await.unwrap();
        let steps: Vec<String> = steps.iter().map(|step| step.get("detail")).collect();
        let of_events: Vec<_> = steps.iter().filter(|step| step.starts_with("SEARCH e ")).collect();
        assert_eq!(of_events.len(), 2, "{steps:#?}");
        for step in of_events {
            assert!(step.contains("website_event_session_id_created_at_idx (session_id=?)"), "{steps:#?}");
        }
    }
}
