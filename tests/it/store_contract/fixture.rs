//! A store of each backend to test, a connection past it, and rows of every kind.

use std::collections::BTreeMap;
use std::time::Duration;

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::fold::{Changes, Outcomes};
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::rows::{
    Campaign, DataValue, EventRow, EventType, SessionAttributes, SessionDataRow, SessionRow, Vitals,
};
use dashi_store::{Claim, PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store};
use integration_tests::{TestDatabase, TestDirectory, UmamiVersion};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use uuid::Uuid;

/// How long anything may take on a busy machine before it counts as never.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// Where a store lies; it can be opened there several times, as by several processes.
pub(super) enum StoreFixture {
    Sqlite(TestDirectory),
    Postgres(TestDatabase),
}

impl StoreFixture {
    pub(super) async fn sqlite() -> Self {
        Self::Sqlite(TestDirectory::create("store"))
    }

    pub(super) async fn postgres() -> Self {
        Self::Postgres(TestDatabase::create().await)
    }

    pub(super) async fn umami() -> Self {
        Self::made_by(UmamiVersion::V3_1).await
    }

    pub(super) async fn umami_3_3() -> Self {
        Self::made_by(UmamiVersion::V3_3).await
    }

    pub(super) async fn made_by(version: UmamiVersion) -> Self {
        let database = TestDatabase::create().await;
        version.install(&mut database.connect().await).await;
        Self::Postgres(database)
    }

    /// A fixture of the other backend.
    pub(super) async fn of_the_other_backend(&self) -> Self {
        match self {
            Self::Sqlite(_) => Self::postgres().await,
            Self::Postgres(_) => Self::sqlite().await,
        }
    }

    /// A handle of its own; the tables may not be there yet.
    pub(super) async fn open(&self) -> Store {
        match self {
            Self::Sqlite(directory) => {
                let path = directory.path().join("made/with/the.store");
                Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await.unwrap())
            }
            Self::Postgres(database) => open_postgres(database.url()),
        }
    }

    pub(super) async fn migrated(&self) -> Store {
        let store = self.open().await;
        store.migrate().await.unwrap();
        store
    }

    pub(super) async fn raw(&self) -> Raw {
        match self {
            Self::Sqlite(directory) => {
                let path = directory.path().join("made/with/the.store");
                let url = format!("sqlite:{}", path.display());
                Raw::Sqlite(SqliteConnection::connect(&url).await.unwrap())
            }
            Self::Postgres(database) => Raw::Postgres(database.connect().await),
        }
    }

    /// Every row of every table, as text.
    pub(super) async fn dump(&self) -> BTreeMap<String, Vec<String>> {
        let mut raw = self.raw().await;
        let mut dump = BTreeMap::new();
        for table in raw.tables().await {
            let sql = match &raw {
                Raw::Postgres(_) => format!("SELECT t::text FROM {table} AS t ORDER BY 1"),
                Raw::Sqlite(_) => {
                    let columns =
                        raw.strings(&format!("SELECT name FROM pragma_table_info('{table}')")).await;
                    let columns: Vec<_> = columns.iter().map(|column| format!("quote({column})")).collect();
                    format!("SELECT {} FROM {table} ORDER BY 1", columns.join(" || ',' || "))
                }
            };
            let rows = raw.strings(&sql).await;
            dump.insert(table, rows);
        }
        dump
    }
}

impl StoreFixture {
    pub(super) async fn migrated_with(self, changes: &Changes) -> (Self, Store) {
        let store = self.migrated().await;
        commit(&store, changes).await;
        (self, store)
    }
}

pub(super) fn open_postgres(url: &str) -> Store {
    let settings = PostgresSettings {
        url: url.to_owned(),
        connections_max: 6,
        statement_timeout: Duration::from_secs(20),
    };
    Store::Postgres(PostgresStore::open(&settings).unwrap())
}

/// A connection past the store.
pub(super) enum Raw {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Raw {
    pub(super) async fn execute(&mut self, sql: &str) {
        match self {
            Self::Postgres(connection) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
            }
            Self::Sqlite(connection) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
            }
        }
    }

    pub(super) async fn strings(&mut self, sql: &str) -> Vec<String> {
        self.nullable(sql).await.into_iter().map(|text| text.unwrap_or_else(|| "null".to_owned())).collect()
    }

    pub(super) async fn nullable(&mut self, sql: &str) -> Vec<Option<String>> {
        match self {
            Self::Postgres(connection) => {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
            }
            Self::Sqlite(connection) => {
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
            }
        }
    }

    pub(super) async fn tables(&mut self) -> Vec<String> {
        let sql = match self {
            Self::Postgres(_) => {
                "SELECT table_schema || '.\"' || table_name || '\"' FROM information_schema.tables
                 WHERE table_schema IN ('public', 'dashi') ORDER BY 1"
            }
            Self::Sqlite(_) => "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1",
        };
        self.strings(sql).await
    }

    /// The columns of one of Umami's tables; none if it is not there.
    pub(super) async fn columns(&mut self, table: &str) -> Vec<String> {
        let sql = match self {
            Self::Postgres(_) => format!(
                "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
            ),
            Self::Sqlite(_) => format!("SELECT name FROM pragma_table_info('{table}')"),
        };
        self.strings(&sql).await
    }

    pub(super) async fn count(&mut self, table: &str) -> usize {
        self.strings(&format!("SELECT CAST(count(*) AS text) FROM {table}")).await[0].parse().unwrap()
    }

    /// A column of one of Umami's tables in the form in which [`super::rows::Cells`] has it.
    pub(super) async fn column(&mut self, table: &str, column: &str, key: &str) -> Vec<Option<String>> {
        let own = matches!(table, "identify" | "applied");
        let time = matches!(column, "created_at" | "date_value" | "started_at" | "ended_at");
        let digits = match column {
            "lcp" | "inp" | "fcp" | "ttfb" => Some(1),
            "cls" | "number_value" | "revenue" => Some(4),
            _ => None,
        };
        let (table, value) = match self {
            Self::Postgres(_) => {
                let value = if time {
                    // Microseconds: the resolution of the column.
                    format!("(extract(epoch FROM {column}) * 1000000)::bigint::text")
                } else if column == "events" {
                    format!("encode({column}, 'hex')")
                } else {
                    format!("{column}::text")
                };
                (format!("{}{table}", if own { "dashi." } else { "" }), value)
            }
            Self::Sqlite(_) => {
                let value = match digits {
                    // As the number is, not as SQLite rounds it to 15 digits.
                    Some(_) => format!("printf('%!.17g', {column})"),
                    None if time => format!("CAST({column} * 1000 AS TEXT)"),
                    None if column == "events" => format!("lower(hex({column}))"),
                    None => format!("CAST({column} AS TEXT)"),
                };
                let value = format!("iif({column} IS NULL, NULL, {value})");
                (format!("{}{table}", if own { "dashi_" } else { "" }), value)
            }
        };
        let found = self.nullable(&format!("SELECT {value} FROM {table} ORDER BY {key}")).await;
        let sqlite = matches!(self, Self::Sqlite(_));
        found
            .into_iter()
            .map(|cell| match digits {
                Some(digits) if sqlite => {
                    cell.map(|cell| Decimal::round(cell.parse().unwrap(), digits).unwrap().to_string())
                }
                _ => cell,
            })
            .collect()
    }
}

pub(super) const P0: Partition = Partition::new(0);
pub(super) const P1: Partition = Partition::new(1);
pub(super) const NOON_MS: i64 = 1_777_636_800_000;

pub(super) fn log() -> LogId {
    LogId::new("test:log")
}

pub(super) fn at(offset: u64) -> Checkpoint {
    Checkpoint::at(Offset::new(offset))
}

pub(super) fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0100_0000_0000_4000_8000_0000_0000_0000 + n)
}

pub(super) const WEBSITE: u128 = 1_000_000;

pub(super) fn event(n: u128, session: u128) -> EventRow {
    EventRow {
        event_id: id(n),
        website_id: id(WEBSITE),
        session_id: id(session),
        visit_id: id(session + 1),
        created_at_ms: NOON_MS + n as i64,
        url_path: format!("/{n}"),
        url_query: Some(String::new()),
        campaign: Campaign::default(),
        referrer_path: None,
        referrer_query: None,
        referrer_domain: None,
        page_title: None,
        hostname: None,
        event_type: EventType::PageView,
        event_name: None,
        tag: None,
        vitals: Vitals::default(),
    }
}

pub(super) fn session(n: u128) -> SessionRow {
    SessionRow {
        session_id: id(n),
        website_id: id(WEBSITE),
        attributes: SessionAttributes::default(),
        reported: Vec::new(),
        created_at_ms: NOON_MS,
    }
}

/// Page views with these ids, all of one session.
pub(super) fn page_views(ids: impl IntoIterator<Item = u128>) -> Changes {
    let events: Vec<_> = ids.into_iter().map(|n| event(n, 500_000)).collect();
    let outcomes = Outcomes { applied: events.len() as u64, ..Outcomes::default() };
    Changes { sessions: vec![session(500_000)], events, outcomes, ..Changes::default() }
}

pub(super) fn property(n: u128, session: u128, key: &str, value: &str) -> SessionDataRow {
    SessionDataRow {
        session_data_id: id(n),
        website_id: id(WEBSITE),
        session_id: id(session),
        data_key: key.to_owned(),
        value: DataValue {
            data_type: DataType::String,
            string_value: Some(value.to_owned()),
            number_value: None,
            date_value_ms: None,
        },
        distinct_id: Some(value.to_owned()),
        created_at_ms: NOON_MS + n as i64,
    }
}

pub(super) async fn claim(store: &Store, partition: Partition) -> Claim {
    store.claim(&log(), partition, "the test").await.unwrap()
}

/// Commits behind everything the partition has, under a claim of its own.
pub(super) async fn commit(store: &Store, changes: &Changes) {
    let claim = claim(store, P0).await;
    let to = Checkpoint::after(claim.resume_from.offset());
    store.commit(&claim, claim.resume_from, to, changes).await.unwrap();
}
