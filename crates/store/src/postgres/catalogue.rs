//! What Umami's tables are like in this database. Its versions differ in a few of them; the catalogue tells which, and no
//! version number is believed. Of 3.4, which changed rules and no table that is written here, tables of its dashboard
//! tell, or the list of migrations where it may be read.
//!
//! It is read when the tables are made, when a partition is claimed, when it is a minute old, and when a statement was
//! refused. So an upgrade of Umami is noticed while Dashi runs, at the latest after a minute.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dashi_domain::fold::Changes;
use dashi_domain::ids::session_data_id;
use dashi_domain::rows::{EventType, IdentifyRow};
use dashi_domain::umami::Release;

use super::PostgresStore;
use super::pool::Session;
use crate::table::{Owner, RowTable, Table};
use crate::tables;
use crate::{StoreError, UmamiTables, Unwritten};

/// How old it may become before a commit reads it again, unless another age is set: two queries a minute.
pub(super) const AGE_MAX: Duration = Duration::from_secs(60);

/// Columns that are only read, of tables of Umami 3.0 that must be there beside those that rows are written to.
const WEBSITE: (&str, &[&str]) = ("website", &["website_id", "name", "domain", "created_at", "deleted_at"]);
const LINK: (&str, &[&str]) = ("link", &["link_id"]);
const PIXEL: (&str, &[&str]) = ("pixel", &["pixel_id"]);

/// What must be there: the tables of Umami 3.0, as far as they are read or written here.
fn required() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    let written = tables::of_umami().filter(|table| table.owner == Owner::Umami);
    let columns =
        |table: &Table| table.columns.iter().filter(|column| !column.optional).map(|column| column.name);
    let read_only = |(table, columns): (&'static str, &[&'static str])| (table, columns.to_vec());
    [WEBSITE]
        .into_iter()
        .map(read_only)
        .chain(written.map(move |table| (table.name, columns(table).collect())))
        .chain([LINK, PIXEL].into_iter().map(read_only))
}

/// Tables that not every version has and that show which one it is.
const TELLING: &[&str] = &["annotation", "api_key", MIGRATIONS];

/// Prisma's list of the migrations that it ran.
const MIGRATIONS: &str = "_prisma_migrations";

/// The migrations that 3.4 added.
const MIGRATIONS_OF_3_4: &[&str] = &["25_add_annotation", "26_add_api_key"];

/// Tables that newer versions fill with what visitors do and that Dashi does not write, and what they hold.
const UNWRITTEN: &[(&str, &str)] = &[
    ("website_engagement", "how long pages were looked at"),
    ("error_event", "errors in pages"),
    ("error_issue", "kinds of errors in pages"),
    ("commerce_event", "carts and orders"),
    ("commerce_item", "what is in carts and orders"),
    ("session_replay_view", "who has watched which recording, which the dashboard writes"),
];

/// Columns of `website_event` that came with 3.1.
const VITALS: &[&str] = &["lcp", "inp", "cls", "fcp", "ttfb"];

/// The encoding that holds every text.
const UTF8: &str = "UTF8";

/// Umami's tables and their columns, found through the search path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalogue {
    /// By table and column: how many characters it holds, if it is a text with a limit.
    tables: BTreeMap<String, BTreeMap<String, Option<usize>>>,
    /// Whether `session_data` has a unique index on exactly (session_id, data_key).
    unique_properties: bool,
    /// Whether the list of migrations names one of 3.4's; false where it may not be read.
    ran_3_4: bool,
    /// How the database stores text, by its own name of it.
    encoding: String,
    /// Whether the role may read and write `heatmap_event`, which Dashi did not need before it wrote heatmaps.
    may_write_heatmaps: bool,
    /// Whether it may delete there as well.
    may_delete_heatmaps: bool,
    /// Columns of tables that are written, `table.column` each, that need a value which is not written.
    unfillable: Vec<String>,
    /// Columns that hold less than those of 3.1.
    narrow: HashMap<(&'static str, &'static str), usize>,
}

/// When the catalogue was read, and what it said.
pub(super) type Read = Option<(Instant, Arc<Catalogue>)>;

impl Catalogue {
    /// Reads it, through the search path of the connection.
    pub async fn read(connection: &mut Session) -> Result<Self, sqlx::Error> {
        let names: Vec<&str> = tables::of_umami()
            .map(|table| table.name)
            .chain([WEBSITE.0, LINK.0, PIXEL.0])
            .chain(TELLING.iter().copied())
            .chain(UNWRITTEN.iter().map(|(table, _)| *table))
            .collect();
        let columns: Vec<(String, String, Option<i32>, bool)> = sqlx::query_as(
            "/* catalogue */
             SELECT t.name, a.attname::text,
                 CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
                      THEN a.atttypmod - 4 END,
                 a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
             FROM unnest($1::text[]) AS t (name)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = to_regclass(t.name)
             WHERE a.attnum > 0 AND NOT a.attisdropped",
        )
        .bind(names)
        .fetch_all(&mut *connection)
        .await?;
        let (unique_properties, encoding) = sqlx::query_as(
            "/* catalogue */
             SELECT EXISTS (
                 SELECT 1 FROM pg_catalog.pg_index AS i
                 WHERE i.indrelid = to_regclass('session_data') AND i.indisunique AND i.indisvalid
                     AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
                     AND (SELECT array_agg(a.attname::text ORDER BY a.attname)
                          FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
                          JOIN pg_catalog.pg_attribute AS a
                              ON a.attrelid = i.indrelid AND a.attnum = k.attnum)
                         = ARRAY['data_key', 'session_id']), current_setting('server_encoding')",
        )
        .fetch_one(&mut *connection)
        .await?;
        let unfillable = unfillable(&columns);
        let columns = columns.into_iter().map(|(table, column, width, _)| {
            (table, column, width.and_then(|width| usize::try_from(width).ok()))
        });
        let mut catalogue = Self::new(columns, unique_properties);
        catalogue.encoding = encoding;
        catalogue.unfillable = unfillable;
        catalogue.ran_3_4 = catalogue.read_migrations(&mut *connection).await?;
        let (may_write, may_delete): (Option<bool>, Option<bool>) = sqlx::query_as(
            "/* catalogue */
             SELECT has_table_privilege(to_regclass('heatmap_event')::oid, 'SELECT')
                 AND has_table_privilege(to_regclass('heatmap_event')::oid, 'INSERT'),
                 has_table_privilege(to_regclass('heatmap_event')::oid, 'DELETE')",
        )
        .fetch_one(connection)
        .await?;
        catalogue.may_write_heatmaps = may_write == Some(true);
        catalogue.may_delete_heatmaps = may_delete == Some(true);
        Ok(catalogue)
    }

    /// Whether migrations of 3.4 ran to their end, as far as Prisma's list says and may be read.
    async fn read_migrations(&self, connection: &mut Session) -> Result<bool, sqlx::Error> {
        let columns = ["migration_name", "finished_at", "rolled_back_at"];
        if !columns.iter().all(|column| self.has_column(MIGRATIONS, column)) {
            return Ok(false);
        }
        // Asked first: a statement that the role may not run would spoil the transaction it is in.
        let may_read: Option<bool> =
            sqlx::query_scalar("/* catalogue */ SELECT has_table_privilege(to_regclass($1)::oid, 'SELECT')")
                .bind(MIGRATIONS)
                .fetch_one(&mut *connection)
                .await?;
        if may_read != Some(true) {
            return Ok(false);
        }
        sqlx::query_scalar(
            "/* catalogue */
             SELECT EXISTS (
                 SELECT 1 FROM _prisma_migrations
                 WHERE migration_name = ANY($1) AND finished_at IS NOT NULL AND rolled_back_at IS NULL)",
        )
        .bind(MIGRATIONS_OF_3_4)
        .fetch_one(connection)
        .await
    }

    fn new(
        columns: impl IntoIterator<Item = (String, String, Option<usize>)>,
        unique_properties: bool,
    ) -> Self {
        let mut tables: BTreeMap<String, BTreeMap<String, Option<usize>>> = BTreeMap::new();
        for (table, column, width) in columns {
            tables.entry(table).or_default().insert(column, width);
        }
        let mut narrow = HashMap::new();
        for table in tables::of_umami() {
            for column in table.columns {
                let found =
                    tables.get(table.name).and_then(|columns| columns.get(column.name).copied().flatten());
                if let Some((found, _)) = found.zip(column.width).filter(|(found, width)| found < width) {
                    narrow.insert((table.name, column.name), found);
                }
            }
        }
        Self {
            tables,
            unique_properties,
            ran_3_4: false,
            may_write_heatmaps: false,
            may_delete_heatmaps: false,
            unfillable: Vec::new(),
            encoding: UTF8.to_owned(),
            narrow,
        }
    }

    /// What these tables have that is not written, and what is taken and has no table to go to.
    pub fn unwritten(&self) -> Unwritten {
        let there = UNWRITTEN.iter().filter(|(table, _)| self.has_table(table));
        let mut tables: Vec<String> = there.map(|(table, what)| format!("{table} ({what})")).collect();
        let mut nowhere: Vec<&'static str> = Vec::new();
        if !self.has_vitals() {
            nowhere.push("web vitals (website_event has no columns of them)");
        }
        if !self.has_table("session_replay") {
            nowhere.push("recordings (there is no table session_replay)");
        }
        match (self.has_table("heatmap_event"), self.has_heatmaps()) {
            (_, true) => {}
            (false, _) => nowhere.push("heatmaps (there is no table heatmap_event)"),
            (true, false) if self.may_write_heatmaps => {
                tables.push("heatmap_event (it lacks columns that heatmaps need)".to_owned());
            }
            (true, false) => {
                tables.push("heatmap_event (the role may not read and insert its rows)".to_owned())
            }
        }
        Unwritten { tables, nowhere, unfillable: self.unfillable.clone() }
    }

    /// Whether there is no table of Umami's at all: then they may be made.
    pub fn is_empty(&self) -> bool {
        !self.has_table("website")
    }

    /// Whether there is a table.
    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Whether a table has a column.
    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).is_some_and(|columns| columns.contains_key(column))
    }

    /// Whether web vitals can be written.
    pub fn has_vitals(&self) -> bool {
        VITALS.iter().all(|column| self.has_column("website_event", column))
    }

    /// Whether sessions are linked to distinct ids.
    pub fn has_session_link(&self) -> bool {
        self.has_table("session_link")
    }

    /// Whether heatmaps can be written, and read to be compared.
    pub fn has_heatmaps(&self) -> bool {
        self.may_write_heatmaps
            && tables::HEATMAP_EVENT
                .table
                .columns
                .iter()
                .all(|column| column.optional || self.has_column("heatmap_event", column.name))
    }

    /// Whether clicks of recordings can be written: where recorders post them as well, only if those that were posted can be
    /// told from them, and be preferred.
    pub fn tells_recorded_clicks(&self) -> bool {
        !self.has_column("website", "recorder_enabled")
            || self.may_delete_heatmaps && self.has_column("heatmap_event", "replay_event_index")
    }

    /// Whether a property of a session is unique by an index.
    pub fn has_unique_properties(&self) -> bool {
        self.unique_properties
    }

    /// Whether every text can be stored as it is.
    pub fn holds_all_text(&self) -> bool {
        // Bytes are bytes there, so UTF-8 goes through.
        self.encoding == UTF8 || self.counts_bytes()
    }

    /// Whether a width is one in bytes: the database knows no characters.
    fn counts_bytes(&self) -> bool {
        self.encoding == "SQL_ASCII"
    }

    /// How many characters, or bytes, a column holds, if that may be less than what the fold cuts to.
    fn width(&self, table: &'static str, column: &'static str) -> Option<usize> {
        if self.counts_bytes() {
            return match self.tables.get(table) {
                Some(columns) => columns.get(column).copied().flatten(),
                // Dashi's own table, which has the fold's width.
                None => tables::ALL
                    .iter()
                    .filter(|own| own.is_own() && own.name == table)
                    .find_map(|own| own.columns.iter().find(|own| own.name == column)?.width),
            };
        }
        self.narrow.get(&(table, column)).copied()
    }

    /// Refuses tables that lack what 3.0's have.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        for (table, columns) in required() {
            if !self.has_table(table) {
                missing.push(format!("the table {table}"));
                continue;
            }
            let absent = columns.iter().filter(|column| !self.has_column(table, column));
            missing.extend(absent.map(|column| format!("the column {table}.{column}")));
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(StoreError::TablesTooOld { missing: missing.join(", ") })
        }
    }

    /// Says what the encoding does to text, if it does something.
    fn say_encoding(&self) {
        if self.counts_bytes() {
            tracing::warn!(
                encoding = self.encoding,
                "the database knows no characters: texts are stored as UTF-8, and cut where their bytes exceed the columns' \
                 widths; a database for text of all languages is made with ENCODING 'UTF8'"
            );
        } else if !self.holds_all_text() {
            tracing::warn!(
                encoding = self.encoding,
                "the database's encoding cannot hold all characters: those that it cannot hold are stored as \"?\"; a \
                 database that holds all is made with ENCODING 'UTF8'"
            );
        }
    }

    /// Which version made the tables, and what tells so: what came last. 3.4's tables have common names, so they count
    /// only beside those of 3.3 and with their own keys.
    pub fn recognised(&self) -> UmamiTables {
        let (release, by) = if self.has_session_link() {
            if self.has_column("annotation", "annotation_id") || self.has_column("api_key", "api_key_id") {
                (Release::V3_4, "the table session_link, and annotation or api_key")
            } else if self.ran_3_4 {
                (Release::V3_4, "the table session_link, and 3.4's migrations")
            } else {
                (Release::V3_3, "the table session_link, and nothing of 3.4")
            }
        } else if self.has_column("website", "recorder_enabled") {
            (Release::V3_2, "the column recorder_enabled in website, and no table session_link")
        } else if self.has_table("heatmap_event") {
            (Release::V3_2, "the table heatmap_event, and no table session_link")
        } else if self.has_vitals() {
            (
                Release::V3_1,
                "the columns of web vitals in website_event, and no tables heatmap_event and session_link",
            )
        } else {
            (Release::V3_0, "no columns of web vitals in website_event")
        };
        UmamiTables { release, by }
    }

    /// The changes as these tables hold them: texts cut where a column is narrower than 3.1's, and without columns
    /// of web vitals a performance event leaves a row in `dashi.identify` alone. In `website_event` a version that
    /// knows no such events would count it as a page view.
    pub fn fit<'c>(&self, changes: &'c Changes) -> Cow<'c, Changes> {
        let is_performance = |event_type| event_type == EventType::Performance;
        let performances =
            !self.has_vitals() && changes.events.iter().any(|row| is_performance(row.event_type));
        let cuts = !self.narrow.is_empty() || self.counts_bytes();
        if !cuts && !performances {
            return Cow::Borrowed(changes);
        }
        let mut changes = changes.clone();
        if performances {
            changes.identifies.extend(
                changes.events.iter().filter(|row| is_performance(row.event_type)).map(|row| IdentifyRow {
                    event_id: row.event_id,
                    website_id: row.website_id,
                    session_id: row.session_id,
                    distinct_id: None,
                    created_at_ms: row.created_at_ms,
                }),
            );
            changes.identifies.sort_unstable_by_key(|row| row.event_id);
            changes.events.retain(|row| !is_performance(row.event_type));
        }
        if cuts {
            each_text(&mut changes, |table, column, text| {
                let Some(width) = self.width(table, column) else { return };
                let end = if self.counts_bytes() {
                    Some(text.floor_char_boundary(width)).filter(|end| *end < text.len())
                } else {
                    text.char_indices().nth(width).map(|(end, _)| end)
                };
                if let Some(end) = end {
                    text.truncate(end);
                }
            });
            keep_newest_properties(&mut changes);
        }
        Cow::Owned(changes)
    }
}

/// After texts were changed: keys of a session's properties that were different may have become equal, of which the
/// newest stays, and an id is again that of its session and key. Else it would be the id of whichever key came last in a
/// batch, and another one in a replay.
pub(super) fn keep_newest_properties(changes: &mut Changes) {
    let mut newest: HashMap<_, (i64, _)> = HashMap::new();
    for row in &changes.session_data {
        let this = (row.created_at_ms, row.session_data_id);
        let stays = newest.entry((row.session_id, row.data_key.clone())).or_insert(this);
        *stays = (*stays).max(this);
    }
    changes.session_data.retain_mut(|row| {
        let stays = newest
            .get(&(row.session_id, row.data_key.clone()))
            .is_some_and(|(_, id)| *id == row.session_data_id);
        row.session_data_id = session_data_id(row.session_id, &row.data_key);
        stays
    });
}

/// Columns that need a value which is not written, `table.column` each.
fn unfillable(columns: &[(String, String, Option<i32>, bool)]) -> Vec<String> {
    let needs_a_value = |(table, column, _, needed): &&(String, String, Option<i32>, bool)| {
        let of_table = tables::of_umami().find(|written| written.name == table);
        *needed && of_table.is_some_and(|written| written.columns.iter().all(|there| there.name != column))
    };
    let mut unfillable: Vec<String> =
        columns.iter().filter(needs_a_value).map(|(table, column, ..)| format!("{table}.{column}")).collect();
    unfillable.sort_unstable();
    unfillable
}

/// Calls `f` with every text of the rows that has a width, and the table and the column it goes into.
pub(super) fn each_text(changes: &mut Changes, f: impl Fn(&'static str, &'static str, &mut String)) {
    fn of_rows<R>(
        table: &'static RowTable<R>,
        rows: &mut [R],
        f: &impl Fn(&'static str, &'static str, &mut String),
    ) {
        for field in table.fields {
            let Some(text_mut) = field.text_mut else { continue };
            for text in rows.iter_mut().filter_map(text_mut) {
                f(table.table.name, field.column.name, text);
            }
        }
    }
    of_rows(&tables::SESSION, &mut changes.sessions, &f);
    for row in &mut changes.sessions {
        // Each of these is written into the same columns.
        for place in 0..row.said.len() {
            std::mem::swap(&mut row.attributes, &mut row.said[place]);
            of_rows(&tables::SESSION, std::slice::from_mut(row), &f);
            std::mem::swap(&mut row.attributes, &mut row.said[place]);
        }
    }
    of_rows(&tables::WEBSITE_EVENT, &mut changes.events, &f);
    of_rows(&tables::EVENT_DATA, &mut changes.event_data, &f);
    of_rows(&tables::SESSION_DATA, &mut changes.session_data, &f);
    of_rows(&tables::SESSION_LINK, &mut changes.session_links, &f);
    of_rows(&tables::HEATMAP_EVENT, &mut changes.heatmap, &f);
    of_rows(&tables::REVENUE, &mut changes.revenue, &f);
    of_rows(&tables::IDENTIFY, &mut changes.identifies, &f);
}

impl PostgresStore {
    /// What the catalogue said, read again if that was long ago.
    pub(super) async fn catalogue(&self) -> Result<Arc<Catalogue>, StoreError> {
        let known = self.known_catalogue().clone();
        match known {
            Some((at, catalogue)) if at.elapsed() < self.catalogue_age_max => Ok(catalogue),
            _ => self.read_catalogue().await,
        }
    }

    /// Reads the catalogue, and says what it recognised if that is news.
    pub(super) async fn read_catalogue(&self) -> Result<Arc<Catalogue>, StoreError> {
        let at = Instant::now();
        let read = self.ask_catalogue().await.map_err(StoreError::away("reading its catalogue"))?;
        read.check()?;
        let mut known = self.known_catalogue();
        let UmamiTables { release, by, .. } = read.recognised();
        match &*known {
            None => {
                tracing::info!(release = %release, by, "recognised Umami's tables");
                read.say_encoding();
            }
            Some((_, before)) if **before != read => tracing::warn!(
                release = %release, by,
                "Umami's tables have changed; rows are written for what they are now, and what was \
                 decided by the version at the start, such as session ids, stays so until the next start"
            ),
            Some(_) => {}
        }
        let unwritten = read.unwritten();
        if known.as_ref().is_none_or(|(_, before)| before.unwritten() != unwritten) {
            if let Some(line) = unwritten.line() {
                tracing::info!(unwritten = line, "not all that Umami has or could have is written here");
            }
            if let Some(warning) = unwritten.warning() {
                tracing::warn!("{warning}");
            }
        }
        let read = Arc::new(read);
        *known = Some((at, Arc::clone(&read)));
        Ok(read)
    }

    /// Which of Umami's versions made the tables; none if there are no tables yet.
    pub(crate) async fn umami(&self) -> Result<Option<UmamiTables>, StoreError> {
        Ok(self.catalogue_if_any().await?.map(|read| read.recognised()))
    }

    pub(crate) async fn unwritten(&self) -> Result<Option<Unwritten>, StoreError> {
        Ok(self.catalogue_if_any().await?.map(|read| read.unwritten()))
    }

    async fn catalogue_if_any(&self) -> Result<Option<Catalogue>, StoreError> {
        let read = self.ask_catalogue().await.map_err(StoreError::away("reading its catalogue"))?;
        if read.is_empty() {
            return Ok(None);
        }
        read.check()?;
        Ok(Some(read))
    }

    /// In a transaction: so it shows one moment, through the search path that is set for it.
    async fn ask_catalogue(&self) -> Result<Catalogue, sqlx::Error> {
        let mut session = self.pool.begin().await?;
        let read = Catalogue::read(&mut session).await;
        session.roll_back().await;
        read
    }

    fn known_catalogue(&self) -> std::sync::MutexGuard<'_, Read> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::flatten::DataType;
    use dashi_domain::rows::{
        DataValue, EventRow, RevenueRow, SessionAttributes, SessionDataRow, SessionRow,
    };
    use uuid::Uuid;

    use super::*;

    /// The tables of 3.1, after `edit`.
    fn catalogue(unique_properties: bool, edit: impl Fn(&str, &str) -> Option<Option<usize>>) -> Catalogue {
        let written = tables::of_umami().filter(|table| table.owner == Owner::Umami);
        let written = written
            .flat_map(|table| table.columns.iter().map(|column| (table.name, column.name, column.width)));
        let read_only = [WEBSITE, LINK, PIXEL]
            .into_iter()
            .flat_map(|(table, columns)| columns.iter().map(move |column| (table, *column, None)));
        let columns = read_only.chain(written).filter_map(|(table, column, width)| {
            let width = edit(table, column).unwrap_or(Some(width.unwrap_or(usize::MAX)))?;
            Some((table.to_owned(), column.to_owned(), Some(width).filter(|width| *width < usize::MAX)))
        });
        Catalogue::new(columns, unique_properties)
    }

    fn event(id: u128, event_type: EventType) -> EventRow {
        EventRow {
            event_id: Uuid::from_u128(id),
            website_id: Uuid::from_u128(1),
            session_id: Uuid::from_u128(2),
            visit_id: Uuid::from_u128(3),
            created_at_ms: 4,
            url_path: "/ääää".to_owned(),
            url_query: None,
            campaign: Default::default(),
            referrer_path: None,
            referrer_query: None,
            referrer_domain: None,
            page_title: Some("title".to_owned()),
            hostname: None,
            event_type,
            event_name: None,
            tag: None,
            vitals: Default::default(),
        }
    }

    /// The tables of 3.1 with these columns beside them.
    fn with(more: &[(&str, &str)]) -> Catalogue {
        let mut catalogue = catalogue(false, |_, _| None);
        for (table, column) in more {
            let columns = catalogue.tables.entry((*table).to_owned()).or_default();
            columns.insert((*column).to_owned(), None);
        }
        catalogue
    }

    #[test]
    fn versions_are_recognised_by_what_came_with_them() {
        let release = |catalogue: &Catalogue| catalogue.recognised().release;
        let without_cls = catalogue(false, |_, column| (column == "cls").then_some(None));
        assert!(without_cls.check().is_ok() && !without_cls.has_vitals());
        assert_eq!(release(&without_cls), Release::V3_0);
        let (link, heatmap) = (("session_link", "session_id"), ("heatmap_event", "heatmap_event_id"));
        for (more, expected) in [
            (&[][..], Release::V3_1),
            (&[heatmap], Release::V3_2),
            (&[("website", "recorder_enabled")], Release::V3_2),
            (&[heatmap, link], Release::V3_3),
            (&[link], Release::V3_3),
            (&[heatmap, link, ("annotation", "annotation_id")], Release::V3_4),
            (&[heatmap, link, ("api_key", "api_key_id")], Release::V3_4),
            // Somebody else's tables of the same names.
            (&[link, ("annotation", "id"), ("api_key", "id")], Release::V3_3),
            (&[("annotation", "annotation_id")], Release::V3_1),
        ] {
            assert_eq!(release(&with(more)), expected, "{more:?}");
        }
        let mut of_migrations = with(&[link]);
        of_migrations.ran_3_4 = true;
        assert_eq!(release(&of_migrations), Release::V3_4);
        // An index that somebody made is no other version.
        assert_eq!(release(&catalogue(true, |_, _| None)), Release::V3_1);
    }

    #[test]
    fn what_3_0_has_must_be_there_and_what_is_missing_is_named() {
        let old = catalogue(false, |table, column| {
            (table == "link" || (table, column) == ("website_event", "tag")).then_some(None)
        });
        let error = old.check().expect_err("too old").to_string();
        assert!(error.contains("the column website_event.tag, the table link"), "{error}");
        assert!(error.contains("Umami 3.0"), "{error}");
    }

    #[test]
    fn texts_are_cut_to_narrower_columns_only() {
        let narrow = catalogue(false, |_, column| match column {
            "url_path" => Some(Some(3)),
            "page_title" => Some(Some(9_000)),
            "browser" | "currency" => Some(Some(2)),
            "data_key" => Some(Some(1)),
            _ => None,
        });
        let property = |id, key: &str, created_at_ms| SessionDataRow {
            session_data_id: Uuid::from_u128(id),
            website_id: Uuid::from_u128(1),
            session_id: Uuid::from_u128(2),
            data_key: key.to_owned(),
            value: DataValue {
                data_type: DataType::String,
                string_value: Some("value".to_owned()),
                number_value: None,
                date_value_ms: None,
            },
            distinct_id: None,
            created_at_ms,
        };
        let changes = Changes {
            sessions: vec![SessionRow {
                session_id: Uuid::from_u128(2),
                website_id: Uuid::from_u128(1),
                attributes: SessionAttributes { browser: Some("chrome".to_owned()), ..Default::default() },
                said: vec![SessionAttributes { browser: Some("chromium".to_owned()), ..Default::default() }],
                created_at_ms: 4,
            }],
            events: vec![event(10, EventType::PageView), event(11, EventType::Performance)],
            session_data: vec![property(20, "aa", 5), property(21, "ab", 7), property(22, "b", 6)],
            revenue: vec![RevenueRow {
                revenue_id: Uuid::from_u128(30),
                website_id: Uuid::from_u128(1),
                session_id: Uuid::from_u128(2),
                event_id: Uuid::from_u128(10),
                event_name: String::new(),
                currency: "EUR".to_owned(),
                revenue: dashi_domain::flatten::Decimal::round(1.0, 4).expect("a decimal"),
                created_at_ms: 4,
            }],
            ..Changes::default()
        };
        let fitted = narrow.fit(&changes);
        assert_eq!((fitted.events[0].url_path.as_str(), fitted.events.len()), ("/ää", 2));
        assert_eq!(fitted.events[0].page_title.as_deref(), Some("title"));
        assert_eq!(fitted.sessions[0].attributes.browser.as_deref(), Some("ch"));
        assert_eq!(fitted.sessions[0].said[0].browser.as_deref(), Some("ch"));
        assert_eq!(fitted.revenue[0].currency, "EU");
        let keys: Vec<_> =
            fitted.session_data.iter().map(|row| (row.data_key.as_str(), row.created_at_ms)).collect();
        assert_eq!(keys, [("a", 7), ("b", 6)], "of two keys that became one the newest stays");
        let ids: Vec<_> = fitted.session_data.iter().map(|row| row.session_data_id).collect();
        let of_keys = ["a", "b"].map(|key| session_data_id(Uuid::from_u128(2), key));
        assert_eq!(ids, of_keys, "an id is that of the key as it is stored");
        assert!(matches!(catalogue(true, |_, _| None).fit(&changes), Cow::Borrowed(_)));
    }

    #[test]
    fn without_columns_for_them_vitals_leave_no_event_but_an_identify() {
        let without = catalogue(false, |_, column| (column == "lcp").then_some(None));
        let changes = Changes {
            events: vec![event(10, EventType::PageView), event(11, EventType::Performance)],
            ..Changes::default()
        };
        let fitted = without.fit(&changes);
        assert_eq!(fitted.events, [event(10, EventType::PageView)]);
        let applied: Vec<_> = fitted.identifies.iter().map(|row| (row.event_id, row.created_at_ms)).collect();
        assert_eq!(applied, [(Uuid::from_u128(11), 4)]);
    }
}
