//! The whole of Dashi in one process, on every pair of log and store that its promises hold for.

use std::collections::BTreeMap;
use std::time::Duration;

use dashi_domain::record::Record;
use dashi_event_log::EventLog;
use serde_json::{Map, Value, json};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::deployment::Totals;
use crate::http::{self, Answer};
use crate::log::{open_log, read_log};
use crate::{Dashi, TestDatabase, TestDirectory, eventually, free_port, kafka};

/// The website that every setup knows.
pub const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

/// The value of `APP_SECRET`, unless a test sets another: that of the vectors.
pub const SECRET: &str = "lab-secret-0001";

/// A browser on a desktop computer: Chrome 124 on Windows.
pub const AGENT: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                         Chrome/124.0.0.0 Safari/537.36";

/// Umami's own tables.
const UMAMI: &str = include_str!("../../crates/store/src/postgres/umami_3_1.sql");

/// How long applying what a test has sent may take on a busy machine.
const APPLIED: Duration = Duration::from_secs(120);

/// A row: columns by name. Times are milliseconds since 1970, identifiers are text, decimals are floating point, from
/// every store.
pub type Row = Map<String, Value>;

/// A pair of log and store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Both embedded: what runs in a fresh clone.
    Embedded,
    /// A Kafka topic, and a PostgreSQL database with the tables that Umami made in it.
    KafkaAndPostgres,
    /// The embedded log, and a PostgreSQL database that was empty.
    EmbeddedAndPostgres,
}

/// Runs each of these functions, which take a [`Setup`], as tests: `embedded::…` and `kafka_and_postgres::…`.
#[macro_export]
macro_rules! on_both_setups {
    ($($promise:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise($crate::Setup::Embedded).await;
            })+
        }
        mod kafka_and_postgres {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise($crate::Setup::KafkaAndPostgres).await;
            })+
        }
    };
}

/// A running `dashi serve` with its log and its store. All of it goes away with this value.
#[derive(Debug)]
pub struct Running {
    // Before what it uses: fields are dropped in order.
    dashi: Dashi,
    authority: String,
    env: BTreeMap<String, String>,
    log: String,
    store: String,
    database: Option<TestDatabase>,
    directory: TestDirectory,
}

impl Setup {
    /// Registers [`WEBSITE`], starts `dashi serve` with these variables in its environment, and returns when it is
    /// ready. An empty variable is as good as none.
    pub async fn start(self, env: &[(&str, &str)]) -> Running {
        let directory = TestDirectory::create("setup");
        let path = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
        let database = match self {
            Self::Embedded => None,
            Self::KafkaAndPostgres | Self::EmbeddedAndPostgres => Some(TestDatabase::create().await),
        };
        let topic = kafka::unique_topic("setup");
        let log = match self {
            Self::Embedded | Self::EmbeddedAndPostgres => path("log.db"),
            Self::KafkaAndPostgres => format!("kafka://{}/{topic}", kafka::shared_broker()),
        };
        if let (Self::KafkaAndPostgres, Some(database)) = (self, &database) {
            let made = sqlx::raw_sql(UMAMI).execute(&mut database.connect().await).await;
            made.expect("Umami's tables can be made");
        }
        let store = database.as_ref().map_or_else(|| path("store.db"), |database| database.url().to_owned());
        // A group of its own: in a shared one, tests would make each other's projectors wait.
        let mut all = BTreeMap::from([
            ("APP_SECRET", SECRET),
            ("DASHI_KAFKA_GROUP", &topic),
            // A test that has a spool says where.
            ("DASHI_INGEST_SPOOL", "false"),
            ("DASHI_HISTORY_EVENT_AGE_S_MIN", "0"),
        ]);
        all.extend(env.iter().copied());
        let env = all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let authority = format!("127.0.0.1:{}", free_port());
        let add = ["website", "add", "--name", "test", "--id", WEBSITE, "--store", &store];
        let added = Dashi::run(&add, &pairs(&env)).await;
        assert_eq!(added.code, Some(0), "{}", added.stderr);
        let dashi = serve(&log, &store, &authority, &env).await;
        Running { dashi, authority, env, log, store, database, directory }
    }
}

async fn serve(log: &str, store: &str, authority: &str, env: &BTreeMap<String, String>) -> Dashi {
    let args = ["serve", "--log", log, "--store", store, "--listen", authority];
    let mut dashi = Dashi::spawn(&args, &pairs(env));
    dashi.wait_ready(&format!("http://{authority}")).await;
    dashi
}

fn pairs(env: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

impl Running {
    /// The process.
    pub fn dashi(&mut self) -> &mut Dashi {
        &mut self.dashi
    }

    /// `host:port` that it listens on.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The address of a path that begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    /// Where the embedded log or store lie, and the secret.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The log's URL.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// The store's URL.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Folds the log into a store of its own and compares that with the live one, row by row.
    pub async fn assert_replay_gives_the_same_rows(&self) {
        self.assert_replay_gives_the_same_rows_but(|_| false).await;
    }

    /// As [`Running::assert_replay_gives_the_same_rows`], but in those tables.
    pub async fn assert_replay_gives_the_same_rows_but(&self, may_differ: impl Fn(&str) -> bool) {
        let again = format!("sqlite:{}", self.directory.path().join("again.db").display());
        let replayed = self.run(&["replay", "--into", &again]).await;
        assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
        let compared = self.run(&["compare", "--json", &self.store, &again]).await;
        assert!(matches!(compared.code, Some(0 | 3)), "{}{}", compared.stdout, compared.stderr);
        let compared: Value = serde_json::from_str(&compared.stdout).expect("compare --json prints JSON");
        let tables = compared["tables"].as_array().expect("a list of tables");
        assert!(tables.len() > 10, "{compared}");
        let differing: Vec<_> = tables
            .iter()
            .filter(|table| {
                table["equal"] != true && !may_differ(table["table"].as_str().unwrap_or_default())
            })
            .collect();
        assert!(differing.is_empty(), "{differing:#?}");
    }

    /// Runs another command on the same log and store, such as `website list`.
    pub async fn run(&self, command: &[&str]) -> crate::dashi::Ended {
        let args = [command, &["--log", &self.log, "--store", &self.store]].concat();
        Dashi::run(&args, &pairs(&self.env)).await
    }

    /// Gives a variable of the environment another value, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Starts the process again, after its end, on the same log and store.
    pub async fn start_again(&mut self) {
        assert!(!self.dashi.is_running(), "it still runs");
        self.dashi = serve(&self.log, &self.store, &self.authority, &self.env).await;
    }

    /// Posts to `/api/send`, with [`AGENT`] as the agent.
    pub async fn send(&self, body: &Value) -> Answer {
        self.post("/api/send", body.to_string(), &[]).await
    }

    /// Posts a body with [`AGENT`] and these headers.
    pub async fn post(&self, path: &str, body: impl Into<bytes::Bytes>, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("content-type", "application/json"), ("user-agent", AGENT)];
        all.retain(|(name, _)| !headers.iter().any(|(other, _)| name.eq_ignore_ascii_case(other)));
        all.extend(headers);
        let answered = http::request(hyper::Method::POST, &self.url(path), body, &all).await;
        answered.unwrap_or_else(|error| panic!("POST {path}: {error:#}"))
    }

    /// Posts an event of this type to `/api/send` and returns the answer to it: `cache`, `sessionId`, `visitId`.
    ///
    /// # Panics
    /// If it is not taken.
    pub async fn accept(&self, kind: &str, payload: &Value) -> Value {
        let answer = self.send(&submission(kind, payload)).await;
        assert_eq!(answer.status, 200, "{kind} {payload}: {}", answer.text());
        let answer = answer.json();
        assert!(answer.get("cache").is_some_and(Value::is_string), "{kind} {payload}: {answer}");
        answer
    }

    /// Sends these bytes on a connection of its own and returns all that comes back until the server closes it or is
    /// silent for `silence`.
    pub async fn raw(&self, bytes: &[u8], silence: Duration) -> String {
        let mut stream = TcpStream::connect(&self.authority).await.expect("it listens");
        // It may answer and close before everything is sent.
        stream.write_all(bytes).await.ok();
        read_until_silent(&mut stream, silence).await
    }

    /// The outcomes of the records, as of now.
    pub async fn totals(&self) -> Totals {
        let status = self.run(&["status", "--json"]).await;
        assert_eq!(status.code, Some(0), "{}", status.stderr);
        let status: Value = serde_json::from_str(&status.stdout).expect("status --json prints JSON");
        serde_json::from_value(status["totals"].clone()).expect("the totals are those of this version")
    }

    /// Waits until the log holds `records` records or more and each of them has its outcome. None may be dead.
    pub async fn applied(&self, records: u64) -> Totals {
        let seen = std::cell::Cell::new(None);
        eventually(APPLIED, &format!("{records} records have their outcomes"), async || {
            let totals = self.totals().await;
            seen.set(Some(totals));
            let settled = totals.lag_records == 0
                && totals.in_log == totals.applied + totals.duplicate + totals.dead
                && totals.in_log >= records;
            if settled { Ok(()) } else { Err(format!("{totals:?}")) }
        })
        .await;
        let totals = seen.get().expect("it was looked at");
        assert_eq!(totals.dead, 0, "{totals:?}");
        totals
    }

    /// Every record of the log, partition after partition, each in its order.
    pub async fn records(&self) -> Vec<Record> {
        let log = self.open_log().await;
        let records = read_log(&log).await;
        log.close().await;
        records
    }

    /// The log, opened beside the process.
    pub async fn open_log(&self) -> EventLog {
        open_log(&self.log).await
    }

    /// Rows of one of Umami's tables, oldest first. `condition` is SQL that every store understands.
    pub async fn rows(&self, table: &str, condition: &str) -> Vec<Row> {
        self.rows_without(table, &[], condition).await
    }

    /// Rows as [`Running::rows`] gives them, less these columns: SQLite writes no blob as JSON.
    pub async fn rows_without(&self, table: &str, left_out: &[&str], condition: &str) -> Vec<Row> {
        let mut store = self.connect().await;
        let mut columns = store.columns(table).await;
        columns.retain(|(name, _)| !left_out.contains(&name.as_str()));
        let members: Vec<_> = columns
            .iter()
            .map(|(name, form)| format!("'{name}', {}", store.expression(name, *form)))
            .collect();
        let key = &columns[0].0;
        let select = format!(
            "SELECT {}({}) FROM {table} WHERE {condition} ORDER BY created_at, {key}",
            store.json_object(),
            members.join(", ")
        );
        let decimals: Vec<_> = columns.iter().filter(|(_, form)| *form == ColumnForm::Decimal).collect();
        let mut rows: Vec<Row> = Vec::new();
        for text in store.texts(select).await {
            let mut row: Row = serde_json::from_str(&text).expect("a database writes JSON");
            for (name, _) in &decimals {
                if let Some(number) = row[name].as_f64() {
                    row[name] = json!(number);
                }
            }
            rows.push(row);
        }
        rows
    }

    /// The number that a query gives. It is SQL that every store understands.
    pub async fn number(&self, query: &str) -> i64 {
        let texts = self.connect().await.texts(format!("SELECT CAST(({query}) AS TEXT)")).await;
        texts.first().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{query} gives {texts:?}"))
    }

    /// The texts that a query with one column gives. It is SQL that the store at hand understands.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        self.connect().await.texts(query.to_owned()).await
    }

    /// Runs a statement on the store.
    pub async fn execute(&self, statement: &str) {
        let sql = AssertSqlSafe(statement.to_owned());
        let done = match self.connect().await {
            Connection::Sqlite(mut connection) => {
                sqlx::raw_sql(sql).execute(&mut connection).await.map(|_| ())
            }
            Connection::Postgres(mut connection) => {
                sqlx::raw_sql(sql).execute(&mut connection).await.map(|_| ())
            }
        };
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// Whether the store is SQLite.
    pub fn is_sqlite(&self) -> bool {
        self.database.is_none()
    }

    /// The name of one of Dashi's own tables, such as `identify`, in this store.
    pub fn own(&self, table: &str) -> String {
        match self.database {
            Some(_) => format!("dashi.{table}"),
            None => format!("dashi_{table}"),
        }
    }

    /// SQL for a moment in milliseconds since 1970, of a column that holds one.
    pub fn milliseconds(&self, column: &str) -> String {
        match self.database {
            Some(_) => format!("(extract(epoch FROM {column}) * 1000)::bigint"),
            None => column.to_owned(),
        }
    }

    async fn connect(&self) -> Connection {
        match &self.database {
            Some(database) => Connection::Postgres(database.connect().await),
            None => {
                let path = self.directory.path().join("store.db");
                let options =
                    SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(30));
                let connection = SqliteConnection::connect_with(&options).await;
                Connection::Sqlite(connection.expect("the store can be opened"))
            }
        }
    }

    /// Lines of the process's log that are warnings or errors.
    pub fn complaints(&self) -> Vec<String> {
        // The first producers of a broker that has just started are asked to come back, and do.
        const OF_A_NEW_BROKER: &str = "Coordinator load in progress: retrying";
        const OF_A_SINGLE_BROKER: [&str; 2] = ["min.insync.replicas=1", "has one replica"];
        let is_complaint = |line: &&str| {
            [r#""level":"WARN""#, r#""level":"ERROR""#, "panicked"].iter().any(|word| line.contains(word))
                && !line.contains(OF_A_NEW_BROKER)
                && !OF_A_SINGLE_BROKER.iter().any(|warning| line.contains(warning))
        };
        self.dashi.stderr().lines().filter(is_complaint).map(str::to_owned).collect()
    }
}

/// A body of `/api/send`: `payload` with [`WEBSITE`], unless it names a source itself.
pub fn submission(kind: &str, payload: &Value) -> Value {
    let mut payload = payload.clone();
    let sources = ["website", "link", "pixel"];
    if let Some(payload) =
        payload.as_object_mut().filter(|payload| !sources.iter().any(|name| payload.contains_key(*name)))
    {
        payload.insert("website".to_owned(), json!(WEBSITE));
    }
    json!({ "type": kind, "payload": payload })
}

/// Reads what a server sends until it closes the connection or is silent for `silence`.
pub async fn read_until_silent(stream: &mut TcpStream, silence: Duration) -> String {
    let mut received = Vec::new();
    loop {
        match tokio::time::timeout(silence, stream.read_buf(&mut received)).await {
            Ok(Ok(1..)) => {}
            // The end, a reset, or silence.
            Ok(Ok(0) | Err(_)) | Err(_) => return String::from_utf8_lossy(&received).into_owned(),
        }
    }
}

/// How [`Running::rows`] gives a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ColumnForm {
    /// As the database writes them in JSON.
    Plain,
    /// Milliseconds since 1970.
    Time,
    /// Floating point.
    Decimal,
}

enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Connection {
    /// Names and forms of a table's columns.
    async fn columns(&mut self, table: &str) -> Vec<(String, ColumnForm)> {
        let list = match self {
            Self::Sqlite(_) => format!("SELECT name || ' ' || type FROM pragma_table_info('{table}')"),
            Self::Postgres(_) => format!(
                "SELECT column_name || ' ' || data_type FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name = '{table}' ORDER BY ordinal_position"
            ),
        };
        let columns = self.texts(list).await;
        assert!(!columns.is_empty(), "there is no table {table}");
        let form = |name: &str, column_type: &str| match column_type {
            _ if name.ends_with("_at") || name == "date_value" => ColumnForm::Time,
            "REAL" | "numeric" => ColumnForm::Decimal,
            _ => ColumnForm::Plain,
        };
        let column = |text: &String| {
            let (name, column_type) = text.split_once(' ').expect("a column has a type");
            (name.to_owned(), form(name, column_type))
        };
        columns.iter().map(column).collect()
    }

    fn expression(&self, name: &str, form: ColumnForm) -> String {
        match (self, form) {
            (Self::Postgres(_), ColumnForm::Time) => format!("(extract(epoch FROM {name}) * 1000)::bigint"),
            _ => name.to_owned(),
        }
    }

    fn json_object(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "json_object",
            Self::Postgres(_) => "json_build_object",
        }
    }

    async fn texts(&mut self, query: String) -> Vec<String> {
        let fetched = match self {
            Self::Sqlite(connection) => {
                sqlx::query_scalar(AssertSqlSafe(query.clone())).fetch_all(connection).await
            }
            Self::Postgres(connection) => {
                let query = format!("SELECT CAST(texts.text AS TEXT) FROM ({query}) AS texts (text)");
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(connection).await
            }
        };
        fetched.unwrap_or_else(|error| panic!("{query}: {error}"))
    }
}
