//! Reading the history of an Umami database, 2.18 and newer: rows in pages, by time and id, so that reading can go on
//! from any place. Nothing is written, and nothing of the schema `dashi` is needed.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_recursion::async_recursion as boxed;
use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::imported::{Imported, ImportedSession};
use dashi_domain::rows::{
    Campaign, DataValue, EventDataRow, EventRow, EventType, RevenueRow, SessionAttributes, SessionDataRow,
    SessionLinkRow, Vitals,
};
use sqlx::AssertSqlSafe;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{PostgresSettings, PostgresStore};
use crate::StoreError;
use crate::history::{HistoryRows, HistorySource, HistorySourceKind, LeftOut, Place};
use crate::profile::ATTRIBUTES;

/// The kind of source in the records.
const SOURCE: &str = "umami";

/// Columns that Umami has had since 2.18, by table. Others are read where they are there.
const NEEDED: [(&str, &[&str]); 5] = [
    ("website", &["website_id", "name", "domain", "deleted_at"]),
    ("session", &["session_id", "website_id", "region", "city", "distinct_id", "created_at"]),
    ("website_event", &["event_id", "visit_id", "hostname", "tag", "utm_source", "gclid", "created_at"]),
    ("event_data", &["event_data_id", "website_event_id", "data_key", "data_type", "created_at"]),
    ("session_data", &["session_data_id", "session_id", "data_key", "distinct_id", "created_at"]),
];

/// Text columns of `website_event`.
const EVENT_TEXTS: [&str; 20] = [
    "url_path",
    "url_query",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_content",
    "utm_term",
    "gclid",
    "fbclid",
    "msclkid",
    "ttclid",
    "li_fat_id",
    "twclid",
    "referrer_path",
    "referrer_query",
    "referrer_domain",
    "page_title",
    "hostname",
    "event_name",
    "tag",
];

/// Columns of `website_event` since 3.1, read as text.
const VITALS: [&str; 5] = ["lcp", "inp", "cls", "fcp", "ttfb"];

/// An Umami database whose history is read.
pub struct UmamiHistory {
    store: PostgresStore,
    columns: HashSet<(String, String)>,
}

impl UmamiHistory {
    /// Connects, and reads which tables and columns there are. Statements may take as long as `settings` allow: a page
    /// of a large table needs some seconds where an index is missing.
    ///
    /// # Errors
    /// The URL cannot be understood, the database does not answer, or it has no tables of Umami 2.18 or newer.
    #[boxed]
    pub async fn open(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let store = PostgresStore::open(settings)?;
        let columns: Vec<(String, String)> = sqlx::query_as(
            "SELECT c.relname::text, a.attname::text
             FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(c.oid)
                 AND a.attnum > 0 AND NOT a.attisdropped",
        )
        .fetch_all(&store.pool)
        .await
        .map_err(StoreError::away("reading which tables there are"))?;
        let history = Self { store, columns: columns.into_iter().collect() };
        let missing: Vec<String> = NEEDED
            .into_iter()
            .flat_map(|(table, columns)| columns.iter().map(move |column| (table, *column)))
            .filter(|(table, column)| !history.has(table, column))
            .map(|(table, column)| format!("{table}.{column}"))
            .collect();
        if missing.is_empty() {
            Ok(history)
        } else {
            Err(StoreError::NoHistory { missing: missing.join(", ") })
        }
    }

    fn has(&self, table: &str, column: &str) -> bool {
        self.columns.contains(&(table.to_owned(), column.to_owned()))
    }

    /// `prefix.column::text`, or null where the table lacks the column.
    fn text(&self, table: &str, prefix: &str, column: &str) -> String {
        let value = if self.has(table, column) {
            format!("{prefix}.{column}::text")
        } else {
            "NULL::text".to_owned()
        };
        format!("{value} AS {prefix}_{column}")
    }

    fn texts(&self, table: &str, prefix: &str, columns: &[&str]) -> String {
        columns.iter().map(|column| self.text(table, prefix, column)).collect::<Vec<_>>().join(", ")
    }

    /// The database's clock, microseconds since 1970.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn now_us(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
            .fetch_one(&self.store.pool)
            .await
            .map_err(StoreError::away("reading its clock"))
    }

    /// The sources that have events or sessions, by id. Each is found by one step in an index.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn sources(&self) -> Result<Vec<HistorySource>, StoreError> {
        let doing = "listing its websites";
        let mut found: BTreeMap<Uuid, HistorySource> = BTreeMap::new();
        for table in ["website_event", "session"] {
            let ids: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(format!(
                "WITH RECURSIVE step (website_id) AS (
                     (SELECT website_id FROM {table} ORDER BY website_id LIMIT 1)
                     UNION ALL
                     SELECT (SELECT t.website_id FROM {table} AS t WHERE t.website_id > step.website_id
                             ORDER BY t.website_id LIMIT 1)
                     FROM step WHERE step.website_id IS NOT NULL
                 ) SELECT website_id FROM step WHERE website_id IS NOT NULL"
            )))
            .fetch_all(&self.store.pool)
            .await
            .map_err(StoreError::away(doing))?;
            for id in ids {
                let unknown =
                    HistorySource { id, kind: HistorySourceKind::Unknown, name: None, domain: None };
                found.insert(id, unknown);
            }
        }
        let ids: Vec<Uuid> = found.keys().copied().collect();
        for (table, kind) in [
            ("website", HistorySourceKind::Website),
            ("link", HistorySourceKind::Link),
            ("pixel", HistorySourceKind::Pixel),
        ] {
            if !self.has(table, &format!("{table}_id")) {
                continue;
            }
            let domain = if kind == HistorySourceKind::Website { "domain::text" } else { "NULL::text" };
            let rows: Vec<(Uuid, String, Option<String>, bool)> = sqlx::query_as(AssertSqlSafe(format!(
                "SELECT {table}_id, name::text, {domain}, deleted_at IS NOT NULL FROM {table}
                 WHERE {table}_id = ANY($1)"
            )))
            .bind(&ids)
            .fetch_all(&self.store.pool)
            .await
            .map_err(StoreError::away(doing))?;
            for (id, name, domain, is_deleted) in rows {
                let kind = if is_deleted && kind == HistorySourceKind::Website {
                    HistorySourceKind::DeletedWebsite
                } else {
                    kind
                };
                found.insert(id, HistorySource { id, kind, name: Some(name), domain });
            }
        }
        Ok(found.into_values().collect())
    }

    /// Numbers of events and sessions of a source behind these places: all rows are counted, for an estimate of time.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn counts(
        &self,
        source: Uuid,
        events_after: Option<Place>,
        sessions_after: Option<Place>,
    ) -> Result<(u64, u64), StoreError> {
        let (events, sessions): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM website_event WHERE website_id = $1
                     AND ($2::bigint IS NULL OR created_at >= timestamptz 'epoch' + $2::bigint * interval '1 microsecond')),
                    (SELECT count(*) FROM session WHERE website_id = $1
                     AND ($3::bigint IS NULL OR created_at >= timestamptz 'epoch' + $3::bigint * interval '1 microsecond'))",
        )
        .bind(source)
        .bind(events_after.map(|(us, _)| us))
        .bind(sessions_after.map(|(us, _)| us))
        .fetch_one(&self.store.pool)
        .await
        .map_err(StoreError::away("counting its events"))?;
        Ok((events.max(0) as u64, sessions.max(0) as u64))
    }

    /// At most `limit` events of a source with their data, revenue and session, by time and id, from behind `after` on.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn events(
        &self,
        source: Uuid,
        after: Option<Place>,
        limit: u32,
    ) -> Result<Vec<HistoryRows>, StoreError> {
        let doing = "reading events";
        let sql = format!(
            "SELECT e.event_id, e.session_id, e.visit_id, e.event_type, {}, {}, {}, s.session_id IS NOT NULL AS has_session,
                 {}, {}
             FROM website_event AS e
             LEFT JOIN session AS s ON s.session_id = e.session_id AND s.website_id = e.website_id
             WHERE e.website_id = $1 {}
             ORDER BY e.created_at, e.event_id LIMIT $4",
            us("e.created_at", "e_us"),
            self.texts("website_event", "e", &EVENT_TEXTS),
            self.texts("website_event", "e", &VITALS),
            us("s.created_at", "s_us"),
            self.texts("session", "s", &ATTRIBUTES),
            behind("e", "event_id", after),
        );
        let rows = self.page(sql, source, after, limit).await.map_err(StoreError::away(doing))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            found.push(event(source, row).map_err(StoreError::away(doing))?);
        }
        self.add_data(&mut found).await.map_err(StoreError::away("reading data of events"))?;
        Ok(found)
    }

    async fn page(
        &self,
        sql: String,
        source: Uuid,
        after: Option<Place>,
        limit: u32,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let (us, id) = after.unzip();
        sqlx::query(AssertSqlSafe(sql))
            .bind(source)
            .bind(us)
            .bind(id)
            .bind(i64::from(limit))
            .fetch_all(&self.store.pool)
            .await
    }

    /// Adds the rows of `event_data` and `revenue` to their events.
    async fn add_data(&self, found: &mut [HistoryRows]) -> Result<(), sqlx::Error> {
        let mut places = HashMap::with_capacity(found.len());
        let mut sessions = HashSet::with_capacity(found.len());
        for (place, rows) in found.iter().enumerate() {
            if let Some(imported) = &rows.imported {
                places.insert(imported.record_id, place);
                sessions.insert(imported.session_id);
            }
        }
        let events: Vec<Uuid> = places.keys().copied().collect();
        let sql = format!(
            "SELECT d.event_data_id, d.website_event_id, d.data_key::text AS data_key, d.data_type,
                 d.string_value::text AS string_value, d.number_value::text AS number_value, {}, {}
             FROM event_data AS d WHERE d.website_event_id = ANY($1) ORDER BY d.website_event_id, d.event_data_id",
            us("d.date_value", "date_us"),
            us("d.created_at", "us"),
        );
        let leaves = sqlx::query(AssertSqlSafe(sql)).bind(&events).fetch_all(&self.store.pool).await?;
        for leaf in &leaves {
            let event: Uuid = leaf.try_get("website_event_id")?;
            let id: Uuid = leaf.try_get("event_data_id")?;
            let Some((rows, imported)) = rows_of(found, &places, event) else { continue };
            match data_value(leaf)? {
                Ok((data_key, value, us)) => imported.event_data.push(EventDataRow {
                    event_data_id: id,
                    website_id: imported.website_id,
                    website_event_id: event,
                    data_key,
                    value,
                    created_at_ms: us.map_or(imported.at_ms, ms),
                }),
                Err(reason) => rows.push(LeftOut { table: "event_data", id, reason }),
            }
        }
        if !self.has("revenue", "revenue_id") {
            return Ok(());
        }
        // There is no index of its events, but one of its sessions.
        let sql = format!(
            "SELECT r.revenue_id, r.event_id, r.event_name::text AS event_name, r.currency::text AS currency,
                 r.revenue::text AS revenue, {}
             FROM revenue AS r WHERE r.session_id = ANY($1) AND r.event_id = ANY($2) ORDER BY r.revenue_id",
            us("r.created_at", "us"),
        );
        let revenue = sqlx::query(AssertSqlSafe(sql))
            .bind(sessions.into_iter().collect::<Vec<_>>())
            .bind(&events)
            .fetch_all(&self.store.pool)
            .await?;
        for row in &revenue {
            let (id, event): (Uuid, Uuid) = (row.try_get("revenue_id")?, row.try_get("event_id")?);
            let Some((rows, imported)) = rows_of(found, &places, event) else { continue };
            let amount: Option<String> = row.try_get("revenue")?;
            match amount.as_deref().map(|amount| Decimal::parse(amount, 4)) {
                Some(Some(revenue)) => imported.revenue.push(RevenueRow {
                    revenue_id: id,
                    website_id: imported.website_id,
                    session_id: imported.session_id,
                    event_id: event,
                    event_name: row.try_get("event_name")?,
                    currency: row.try_get("currency")?,
                    revenue,
                    created_at_ms: row.try_get::<Option<i64>, _>("us")?.map_or(imported.at_ms, ms),
                }),
                _ => rows.push(LeftOut {
                    table: "revenue",
                    id,
                    reason: format!("revenue is {}, which is no amount", amount.as_deref().unwrap_or("null")),
                }),
            }
        }
        Ok(())
    }

    /// At most `limit` sessions of a source, by time and id, from behind `after` on. Of most of them there is nothing to
    /// take, since their rows come with their events: only those that have properties or links, or no event, have rows
    /// here. With `changed_since` (microseconds since 1970) only those of which something is newer than that.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn sessions(
        &self,
        source: Uuid,
        after: Option<Place>,
        changed_since: Option<i64>,
        limit: u32,
    ) -> Result<Vec<HistoryRows>, StoreError> {
        let doing = "reading sessions";
        let links = if self.has("session_link", "distinct_id") {
            "EXISTS (SELECT 1 FROM session_link AS l
                     WHERE l.website_id = s.website_id AND l.session_id = s.session_id)"
        } else {
            "false"
        };
        let sql = format!(
            "SELECT s.session_id, {}, {},
                 EXISTS (SELECT 1 FROM session_data AS d WHERE d.session_id = s.session_id AND d.website_id = s.website_id)
                 OR {links}
                 OR NOT EXISTS (SELECT 1 FROM website_event AS e
                                WHERE e.session_id = s.session_id AND e.website_id = s.website_id) AS has_rows
             FROM session AS s WHERE s.website_id = $1 {}
             ORDER BY s.created_at, s.session_id LIMIT $4",
            us("s.created_at", "s_us"),
            self.texts("session", "s", &ATTRIBUTES),
            behind("s", "session_id", after),
        );
        let rows = self.page(sql, source, after, limit).await.map_err(StoreError::away(doing))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            found.push(session(source, row).map_err(StoreError::away(doing))?);
        }
        self.add_properties(source, &mut found, changed_since).await?;
        Ok(found)
    }

    /// At most `limit` sessions of a source that have properties and no row, by id, from behind `after` on.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn sessions_without_row(
        &self,
        source: Uuid,
        after: Option<Uuid>,
        changed_since: Option<i64>,
        limit: u32,
    ) -> Result<Vec<HistoryRows>, StoreError> {
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "SELECT DISTINCT d.session_id FROM session_data AS d
             WHERE d.website_id = $1 AND d.session_id > coalesce($2, '00000000-0000-0000-0000-000000000000'::uuid)
                 AND NOT EXISTS (SELECT 1 FROM session AS s
                                 WHERE s.session_id = d.session_id AND s.website_id = d.website_id)
             ORDER BY d.session_id LIMIT $3",
        )
        .bind(source)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.store.pool)
        .await
        .map_err(StoreError::away("looking for properties of sessions without a row"))?;
        let rows = |id| HistoryRows {
            place: (0, id),
            imported: Some(Imported::of(SOURCE, source, id)),
            left_out: Vec::new(),
        };
        let mut found: Vec<_> = ids.into_iter().map(rows).collect();
        self.add_properties(source, &mut found, changed_since).await?;
        Ok(found)
    }

    /// Adds the rows of `session_data` and `session_link` to their sessions, and gives the records their ids and times.
    async fn add_properties(
        &self,
        source: Uuid,
        found: &mut [HistoryRows],
        changed_since: Option<i64>,
    ) -> Result<(), StoreError> {
        let doing = "reading properties of sessions";
        let mut newest = HashMap::new();
        let mut places = HashMap::with_capacity(found.len());
        for (place, rows) in found.iter().enumerate() {
            if let Some(imported) = &rows.imported {
                places.insert(imported.session_id, place);
            }
        }
        let sessions: Vec<Uuid> = places.keys().copied().collect();
        // Of a key that is there twice, the newest counts.
        let sql = format!(
            "SELECT DISTINCT ON (d.session_id, d.data_key) d.session_data_id, d.session_id, d.data_key::text AS data_key,
                 d.data_type, d.string_value::text AS string_value, d.number_value::text AS number_value,
                 d.distinct_id::text AS distinct_id, {}, {}
             FROM session_data AS d WHERE d.session_id = ANY($1) AND d.website_id = $2
             ORDER BY d.session_id, d.data_key, d.created_at DESC NULLS LAST, d.session_data_id DESC",
            us("d.date_value", "date_us"),
            us("d.created_at", "us"),
        );
        let properties = sqlx::query(AssertSqlSafe(sql))
            .bind(&sessions)
            .bind(source)
            .fetch_all(&self.store.pool)
            .await
            .map_err(StoreError::away(doing))?;
        let mut read = || -> Result<(), sqlx::Error> {
            for row in &properties {
                let (id, session): (Uuid, Uuid) =
                    (row.try_get("session_data_id")?, row.try_get("session_id")?);
                let Some((left_out, imported)) = rows_of(found, &places, session) else { continue };
                let fallback = imported.session.as_ref().map_or(0, |session| session.created_at_ms);
                match data_value(row)? {
                    Ok((data_key, value, at_us)) => {
                        let at = newest.entry(session).or_insert(i64::MIN);
                        *at = at_us.unwrap_or(i64::MIN).max(*at);
                        imported.session_data.push(SessionDataRow {
                            session_data_id: id,
                            website_id: source,
                            session_id: session,
                            data_key,
                            value,
                            distinct_id: row.try_get("distinct_id")?,
                            created_at_ms: at_us.map_or(fallback, ms),
                        });
                    }
                    Err(reason) => left_out.push(LeftOut { table: "session_data", id, reason }),
                }
            }
            Ok(())
        };
        read().map_err(StoreError::away(doing))?;
        if self.has("session_link", "distinct_id") {
            let sql = format!(
                "SELECT l.session_id, l.distinct_id::text AS distinct_id, {} FROM session_link AS l
                 WHERE l.website_id = $2 AND l.session_id = ANY($1) AND l.distinct_id <> ''
                 ORDER BY l.session_id, l.created_at, l.distinct_id",
                us("l.created_at", "us"),
            );
            let doing = "reading links of sessions";
            let links: Vec<(Uuid, String, Option<i64>)> = sqlx::query_as(AssertSqlSafe(sql))
                .bind(&sessions)
                .bind(source)
                .fetch_all(&self.store.pool)
                .await
                .map_err(StoreError::away(doing))?;
            for (session, distinct_id, at_us) in links {
                let Some((_, imported)) = rows_of(found, &places, session) else { continue };
                let fallback = imported.session.as_ref().map_or(0, |session| session.created_at_ms);
                let at = newest.entry(session).or_insert(i64::MIN);
                *at = at_us.unwrap_or(i64::MIN).max(*at);
                imported.session_links.push(SessionLinkRow {
                    website_id: source,
                    session_id: session,
                    distinct_id,
                    created_at_ms: at_us.map_or(fallback, ms),
                });
            }
        }
        for rows in found {
            let Some(imported) = &mut rows.imported else { continue };
            let newest = newest.get(&imported.session_id).copied().unwrap_or(i64::MIN).max(rows.place.0);
            if changed_since.is_some_and(|since| newest < since) {
                rows.imported = None;
                continue;
            }
            imported.at_ms = match &imported.session {
                Some(session) => session.created_at_ms,
                None => ms(newest),
            };
            // Of its content, so that reading a session again that has not changed gives the same record.
            imported.record_id = Uuid::new_v5(&imported.session_id, &imported.encode());
        }
        Ok(())
    }

    /// Rows of a source that have no time, which no dashboard shows either: at most `limit` of each table.
    ///
    /// # Errors
    /// The database does not answer.
    #[boxed]
    pub async fn without_time(&self, source: Uuid, limit: u32) -> Result<Vec<LeftOut>, StoreError> {
        let mut found = Vec::new();
        for (table, key) in [("website_event", "event_id"), ("session", "session_id")] {
            let ids: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(format!(
                "SELECT {key} FROM {table} WHERE website_id = $1 AND created_at IS NULL ORDER BY {key} LIMIT $2"
            )))
            .bind(source)
            .bind(i64::from(limit))
            .fetch_all(&self.store.pool)
            .await
            .map_err(StoreError::away("looking for rows without a time"))?;
            let left_out = |id| LeftOut { table, id, reason: "created_at is null".to_owned() };
            found.extend(ids.into_iter().map(left_out));
        }
        Ok(found)
    }

    /// Lets go of the connections.
    #[boxed]
    pub async fn close(&self) {
        self.store.close().await;
    }
}

fn us(expression: &str, name: &str) -> String {
    format!("(extract(epoch FROM {expression}) * 1000000)::bigint AS {name}")
}

/// Milliseconds of microseconds since 1970: the nearest, as a comparison of stores reads them.
fn ms(us: i64) -> i64 {
    us.saturating_add(500).div_euclid(1_000)
}

/// The condition on a page's rows. Rows without a time are in no page.
fn behind(table: &str, key: &str, after: Option<Place>) -> String {
    match after {
        Some(_) => format!(
            "AND ({table}.created_at, {table}.{key}) > (timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3)"
        ),
        None => format!("AND {table}.created_at IS NOT NULL AND $2::bigint IS NULL AND $3::uuid IS NULL"),
    }
}

/// The rows of an event or a session, and those of them that are left out.
fn rows_of<'f>(
    found: &'f mut [HistoryRows],
    places: &HashMap<Uuid, usize>,
    of: Uuid,
) -> Option<(&'f mut Vec<LeftOut>, &'f mut Imported)> {
    let HistoryRows { left_out, imported, .. } = found.get_mut(*places.get(&of)?)?;
    Some((left_out, imported.as_mut()?))
}

fn event(source: Uuid, row: &PgRow) -> Result<HistoryRows, sqlx::Error> {
    let (event_id, session_id): (Uuid, Uuid) = (row.try_get("event_id")?, row.try_get("session_id")?);
    let (visit_id, at_us): (Uuid, i64) = (row.try_get("visit_id")?, row.try_get("e_us")?);
    let place = (at_us, event_id);
    let code: i32 = row.try_get("event_type")?;
    let Some(event_type) = EventType::from_code(code) else {
        let reason = format!("event_type is {code}; this program knows 1 to 5");
        let left_out = vec![LeftOut { table: "website_event", id: event_id, reason }];
        return Ok(HistoryRows { place, imported: None, left_out });
    };
    let text = |column: &str| row.try_get::<Option<String>, _>(&*format!("e_{column}"));
    let number = |column: &str, scale| {
        Ok::<_, sqlx::Error>(text(column)?.and_then(|text| Decimal::parse(&text, scale)))
    };
    let has_session: bool = row.try_get("has_session")?;
    let event = EventRow {
        event_id,
        website_id: source,
        session_id,
        visit_id,
        created_at_ms: ms(at_us),
        url_path: text("url_path")?.unwrap_or_default(),
        url_query: text("url_query")?,
        campaign: Campaign {
            utm_source: text("utm_source")?,
            utm_medium: text("utm_medium")?,
            utm_campaign: text("utm_campaign")?,
            utm_content: text("utm_content")?,
            utm_term: text("utm_term")?,
            gclid: text("gclid")?,
            fbclid: text("fbclid")?,
            msclkid: text("msclkid")?,
            ttclid: text("ttclid")?,
            li_fat_id: text("li_fat_id")?,
            twclid: text("twclid")?,
        },
        referrer_path: text("referrer_path")?,
        referrer_query: text("referrer_query")?,
        referrer_domain: text("referrer_domain")?,
        page_title: text("page_title")?,
        hostname: text("hostname")?,
        event_type,
        event_name: text("event_name")?,
        tag: text("tag")?,
        vitals: Vitals {
            lcp: number("lcp", 1)?,
            inp: number("inp", 1)?,
            cls: number("cls", 4)?,
            fcp: number("fcp", 1)?,
            ttfb: number("ttfb", 1)?,
        },
    };
    let imported = Imported {
        record_id: event_id,
        at_ms: ms(at_us),
        visit_id,
        session: if has_session { Some(session_row(row, at_us)?) } else { None },
        event: Some(event),
        ..Imported::of(SOURCE, source, session_id)
    };
    Ok(HistoryRows { place, imported: Some(imported), left_out: Vec::new() })
}

fn session(source: Uuid, row: &PgRow) -> Result<HistoryRows, sqlx::Error> {
    let (session_id, at_us): (Uuid, i64) = (row.try_get("session_id")?, row.try_get("s_us")?);
    let place = (at_us, session_id);
    if !row.try_get::<bool, _>("has_rows")? {
        return Ok(HistoryRows { place, imported: None, left_out: Vec::new() });
    }
    let session = Some(session_row(row, at_us)?);
    let imported = Imported { session, ..Imported::of(SOURCE, source, session_id) };
    Ok(HistoryRows { place, imported: Some(imported), left_out: Vec::new() })
}

/// `otherwise_us` is the time of a session that has none.
fn session_row(row: &PgRow, otherwise_us: i64) -> Result<ImportedSession, sqlx::Error> {
    let text = |column: &str| row.try_get::<Option<String>, _>(&*format!("s_{column}"));
    Ok(ImportedSession {
        attributes: SessionAttributes {
            browser: text("browser")?,
            os: text("os")?,
            device: text("device")?,
            screen: text("screen")?,
            language: text("language")?,
            country: text("country")?,
            region: text("region")?,
            city: text("city")?,
            distinct_id: text("distinct_id")?,
        },
        created_at_ms: ms(row.try_get::<Option<i64>, _>("s_us")?.unwrap_or(otherwise_us)),
    })
}

/// Key, value and time of a row of data, or why it cannot be taken.
type Data = Result<(String, DataValue, Option<i64>), String>;

fn data_value(row: &PgRow) -> Result<Data, sqlx::Error> {
    let code: i32 = row.try_get("data_type")?;
    let Some(data_type) = DataType::from_code(code) else {
        return Ok(Err(format!("data_type is {code}; this program knows 1 to 5")));
    };
    let number: Option<String> = row.try_get("number_value")?;
    let number_value = match &number {
        None => None,
        Some(text) => match Decimal::parse(text, 4) {
            Some(number) => Some(number),
            None => return Ok(Err(format!("number_value is {text}, which is no number below 10^15"))),
        },
    };
    let value = DataValue {
        data_type,
        string_value: row.try_get("string_value")?,
        number_value,
        date_value_ms: row.try_get::<Option<i64>, _>("date_us")?.map(ms),
    };
    Ok(Ok((row.try_get("data_key")?, value, row.try_get("us")?)))
}
