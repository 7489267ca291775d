//! The catalogue: Umami's tables as they are in this database. Umami's versions differ in a few of them; the catalogue
//! shows which tables and columns there are, and no version number is believed. Version 3.4, which changed rules and no
//! table that is written here, is recognised by tables of its dashboard, or by the list of migrations where it may be
//! read.
//!
//! It is read when the tables are made, when a partition is claimed, when it is a minute old, and when a statement was
//! refused. So an upgrade of Umami is noticed while Dashi runs, at the latest after a minute.

mod current;
mod fit;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use dashi_domain::umami::Release;

pub(super) use self::current::{AGE_MAX, Read};
pub(super) use self::fit::{each_text, keep_newest_properties};
use super::copy::can_copy;
use super::pool::{Session, quoted};
use crate::table::{Owner, Table};
use crate::tables;
use crate::{StoreError, UmamiTables, Unwritten};

/// Columns that are only read, of tables of Umami 3.0 that must be there beside those that rows are written to.
const WEBSITE: (&str, &[&str]) = ("website", &["website_id", "name", "domain", "created_at", "deleted_at"]);
const LINK: (&str, &[&str]) = ("link", &["link_id"]);
const PIXEL: (&str, &[&str]) = ("pixel", &["pixel_id"]);

/// The tables and columns that must be there: those of Umami 3.0, as far as they are read or written here.
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

/// Tables that not every version has and that show the version.
const VERSION_TABLES: &[&str] = &["annotation", "api_key", MIGRATIONS];

/// Prisma's list of the migrations that it ran.
const MIGRATIONS: &str = "_prisma_migrations";

/// The migrations that 3.4 added.
const MIGRATIONS_OF_3_4: &[&str] = &["25_add_annotation", "26_add_api_key"];

/// Tables that newer versions fill with visitors' actions and that Dashi does not write, and their contents in words.
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
    /// Whether `COPY` writes the tables that it is for, as `INSERT` does; see [`super::copy`].
    can_copy: bool,
}

impl Catalogue {
    /// Reads it, through the search path of the connection.
    pub async fn read(connection: &mut Session) -> Result<Self, sqlx::Error> {
        let names: Vec<&str> = tables::of_umami()
            .map(|table| table.name)
            .chain([WEBSITE.0, LINK.0, PIXEL.0])
            .chain(VERSION_TABLES.iter().copied())
            .chain(UNWRITTEN.iter().map(|(table, _)| *table))
            .collect();
        // A table that a generation lacks is the live one's by the search path, and not the generation's to write.
        let own = connection.generation_schema().map(|schema| {
            let is_written = |name: &str| tables::of_umami().any(|table| table.name == name);
            let place = |name: &str| {
                if is_written(name) { format!("{}.{name}", quoted(schema)) } else { name.to_owned() }
            };
            names.iter().map(|name| place(name)).collect::<Vec<_>>()
        });
        let places = own.unwrap_or_else(|| names.iter().map(|name| (*name).to_owned()).collect());
        let columns: Vec<(String, String, Option<i32>, bool)> = sqlx::query_as(
            "/* catalogue */
             SELECT t.name, a.attname::text,
                 CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4
                      THEN a.atttypmod - 4 END,
                 a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
             FROM unnest($1::text[], $2::text[]) AS t (name, place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = to_regclass(t.place)
             WHERE a.attnum > 0 AND NOT a.attisdropped",
        )
        .bind(names)
        .bind(places)
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
        .fetch_one(&mut *connection)
        .await?;
        catalogue.can_copy = can_copy(&mut *connection).await?;
        catalogue.may_write_heatmaps = may_write == Some(true);
        catalogue.may_delete_heatmaps = may_delete == Some(true);
        Ok(catalogue)
    }

    /// Whether migrations of 3.4 ran to their end, as far as Prisma's list may be read.
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
            can_copy: false,
        }
    }

    /// Whether rows can be written by `COPY` as well as by `INSERT`.
    pub fn can_copy(&self) -> bool {
        self.can_copy
    }

    /// The parts of these tables that are not written, and the kinds of data that have no table to go to.
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

    /// Whether clicks of recordings can be written: where recorders post clicks as well, only if posted clicks can be
    /// distinguished from recorded ones, and be preferred.
    pub fn distinguishes_recorded_clicks(&self) -> bool {
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

    /// How many characters, or bytes, a column holds, if that may be less than the width that the fold cuts to.
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

    /// Refuses tables that lack tables or columns of 3.0.
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

    /// Logs the encoding's effect on texts, if it has one.
    fn log_encoding(&self) {
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

    /// The version that made the tables, and the table or column that shows it: the newest there is. 3.4's tables have
    /// common names, so they count only beside those of 3.3 and with their own keys.
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
