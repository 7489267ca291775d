//! Single events and properties: what a session did, what a website was sent, what came with an event.

use async_recursion::async_recursion as boxed;
use dashi_domain::rows::SessionAttributes;
use uuid::Uuid;

use super::{AnswerRow, Question, Questions, each};
use crate::StoreError;

/// An event of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub struct ActivityRow {
    pub event_id: Uuid,
    pub visit_id: Option<Uuid>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    pub event_type: i64,
    pub event_name: Option<String>,
    pub url_path: Option<String>,
    pub url_query: Option<String>,
    pub referrer_domain: Option<String>,
    pub hostname: Option<String>,
    /// Whether data came with it.
    pub has_data: bool,
}

/// An event and its session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub struct EventRow {
    pub session_id: Uuid,
    pub activity: ActivityRow,
    pub page_title: Option<String>,
    pub referrer_path: Option<String>,
    pub referrer_query: Option<String>,
    pub tag: Option<String>,
    /// Browser, place, distinct id.
    pub attributes: SessionAttributes,
}

/// A property: a value that came with an event, or that a session has.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub struct PropertyRow {
    pub data_key: String,
    pub data_type: i64,
    pub string_value: Option<String>,
    pub number_value: Option<f64>,
    pub date_value_ms: Option<i64>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// The event that it came with: session, path and name.
    pub event: Option<(Uuid, Option<String>, Option<String>)>,
}

fn activity(row: &AnswerRow) -> Result<ActivityRow, sqlx::Error> {
    Ok(ActivityRow {
        event_id: row.id(0)?,
        visit_id: row.optional_id(1)?,
        created_at_ms: row.number(2)?,
        event_type: row.number(3)?,
        event_name: row.optional_text(4)?,
        url_path: row.optional_text(5)?,
        url_query: row.optional_text(6)?,
        referrer_domain: row.optional_text(7)?,
        hostname: row.optional_text(8)?,
        has_data: row.number(9)? != 0,
    })
}

/// The columns that [`activity`] reads. PostgreSQL's `at_ms` is for `created_at`.
fn activity_columns(at_ms: &str) -> String {
    format!(
        "CAST(e.event_id AS text), CAST(e.visit_id AS text), {at_ms}, CAST(e.event_type AS bigint),
         CAST(e.event_name AS text), CAST(e.url_path AS text), CAST(e.url_query AS text),
         CAST(e.referrer_domain AS text), CAST(e.hostname AS text),
         CAST(CASE WHEN EXISTS (SELECT 1 FROM event_data AS d WHERE d.website_event_id = e.event_id)
              THEN 1 ELSE 0 END AS bigint)"
    )
}

impl Questions {
    /// A session's events in a time, the last one first; at most `limit`.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn activity(
        &self,
        question: &Question,
        session_id: Uuid,
        limit: u32,
    ) -> Result<Vec<ActivityRow>, StoreError> {
        let doing = "reading a session's events";
        let mut sql = self.sql();
        let session = sql.id(session_id);
        let events = sql.events(question, false, &format!("e.session_id = {session}"));
        let page = sql.page(limit, 0);
        let text = format!(
            "SELECT {} {events} ORDER BY e.created_at DESC, e.event_id DESC {page}",
            activity_columns(&sql.dialect.at_ms("e.created_at"))
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, activity)
    }

    /// Events, the last one first, and how many there are in all. `search`: those whose name, path, title or referring
    /// domain contains it.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn events(
        &self,
        question: &Question,
        search: &str,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<EventRow>, u64), StoreError> {
        let doing = "listing a website's events";
        let searched = |sql: &mut super::Sql| {
            if search.is_empty() {
                return String::new();
            }
            let search = sql.text(search);
            let columns = ["event_name", "url_path", "page_title", "referrer_domain"];
            let any: Vec<_> = columns
                .iter()
                .map(|column| sql.dialect.contains(&format!("CAST(e.{column} AS text)"), &search))
                .collect();
            format!("({})", any.join(" OR "))
        };
        let mut sql = self.sql();
        let and = searched(&mut sql);
        let events = sql.events(question, true, &and);
        let page = sql.page(limit, offset);
        let text = format!(
            "SELECT {}, CAST(e.session_id AS text), CAST(e.page_title AS text), CAST(e.referrer_path AS text),
                    CAST(e.referrer_query AS text), CAST(e.tag AS text), CAST(s.browser AS text), CAST(s.os AS text),
                    CAST(s.device AS text), CAST(s.screen AS text), CAST(s.language AS text),
                    CAST(s.country AS text), CAST(s.region AS text), CAST(s.city AS text),
                    CAST(s.distinct_id AS text)
             {events} ORDER BY e.created_at DESC, e.event_id DESC {page}",
            activity_columns(&sql.dialect.at_ms("e.created_at"))
        );
        let list = sql.of(text);
        let mut sql = self.sql();
        let and = searched(&mut sql);
        let events = sql.events(question, true, &and);
        let count = sql.of(format!("SELECT CAST(count(*) AS bigint) {events}"));
        let [rows, count] = self.rows(doing, [list, count]).await?;
        let rows = each(doing, &rows, |row| {
            Ok(EventRow {
                activity: activity(row)?,
                session_id: row.id(10)?,
                page_title: row.optional_text(11)?,
                referrer_path: row.optional_text(12)?,
                referrer_query: row.optional_text(13)?,
                tag: row.optional_text(14)?,
                attributes: SessionAttributes {
                    browser: row.optional_text(15)?,
                    os: row.optional_text(16)?,
                    device: row.optional_text(17)?,
                    screen: row.optional_text(18)?,
                    language: row.optional_text(19)?,
                    country: row.optional_text(20)?,
                    region: row.optional_text(21)?,
                    city: row.optional_text(22)?,
                    distinct_id: row.optional_text(23)?,
                },
            })
        })?;
        let count = each(doing, &count, |row| row.count(0))?.first().copied().unwrap_or_default();
        Ok((rows, count))
    }

    /// The properties that a session has, by key; at most `limit`.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn session_properties(
        &self,
        website_id: Uuid,
        session_id: Uuid,
        limit: u32,
    ) -> Result<Vec<PropertyRow>, StoreError> {
        let doing = "reading a session's properties";
        let mut sql = self.sql();
        let (website, session) = (sql.id(website_id), sql.id(session_id));
        let page = sql.page(limit, 0);
        let dialect = sql.dialect;
        let text = format!(
            "SELECT CAST(d.data_key AS text), CAST(d.data_type AS bigint), CAST(d.string_value AS text),
                    CAST(d.number_value AS double precision), {}, {}
             FROM session_data AS d WHERE {} = {website} AND d.session_id = {session}
             ORDER BY {}, d.created_at {page}",
            dialect.at_ms("d.date_value"),
            dialect.at_ms("d.created_at"),
            dialect.beside_session("d.website_id"),
            dialect.bytewise("CAST(d.data_key AS text)")
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, property)
    }

    /// The data that came with an event, by key; at most `limit`.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn event_properties(
        &self,
        website_id: Uuid,
        event_id: Uuid,
        limit: u32,
    ) -> Result<Vec<PropertyRow>, StoreError> {
        let doing = "reading an event's data";
        let mut sql = self.sql();
        let (website, event) = (sql.id(website_id), sql.id(event_id));
        let page = sql.page(limit, 0);
        let dialect = sql.dialect;
        let text = format!(
            "SELECT CAST(d.data_key AS text), CAST(d.data_type AS bigint), CAST(d.string_value AS text),
                    CAST(d.number_value AS double precision), {}, {}, CAST(e.session_id AS text),
                    CAST(e.url_path AS text), CAST(e.event_name AS text)
             FROM event_data AS d JOIN website_event AS e ON e.event_id = d.website_event_id
             WHERE d.website_id = {website} AND d.website_event_id = {event}
             ORDER BY {} {page}",
            dialect.at_ms("d.date_value"),
            dialect.at_ms("d.created_at"),
            dialect.bytewise("CAST(d.data_key AS text)")
        );
        let rows = self.all(doing, sql.of(text)).await?;
        each(doing, &rows, |row| {
            let event = (row.id(6)?, row.optional_text(7)?, row.optional_text(8)?);
            Ok(PropertyRow { event: Some(event), ..property(row)? })
        })
    }
}

fn property(row: &AnswerRow) -> Result<PropertyRow, sqlx::Error> {
    Ok(PropertyRow {
        data_key: row.text(0)?,
        data_type: row.number(1)?,
        string_value: row.optional_text(2)?,
        number_value: row.optional_real(3)?,
        date_value_ms: row.optional_number(4)?,
        created_at_ms: row.number(5)?,
        event: None,
    })
}
