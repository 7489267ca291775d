//! The check behind every test of faults: what was acknowledged is in the tables once, and nothing is there that was
//! not sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr as _;

use dashi_load::{Acknowledged, Counts, EventKind, LoadError, LoadPlan, Report, read_acknowledged};
use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::TestDirectory;
use crate::deployment::{Deployment, Status, Totals};
use crate::http::{self, Answer};

/// How many faults of one kind are reported.
const SHOWN_MAX: usize = 10;

/// All events that were sent to one [`Deployment`], and which of them were acknowledged.
#[derive(Debug)]
pub struct Ledger {
    deployment: Deployment,
    directory: TestDirectory,
    /// Events that were sent, at most, by the beginning of their marks.
    sent: BTreeMap<String, u64>,
    acknowledged: BTreeMap<String, EventKind>,
    started: u64,
    singles: u64,
    dead: u64,
}

/// A running load generator.
#[derive(Debug)]
pub struct Load {
    task: JoinHandle<Result<Report, LoadError>>,
    stop: CancellationToken,
    file: PathBuf,
}

impl Ledger {
    /// An empty one.
    pub fn new(deployment: &Deployment) -> Self {
        Self {
            deployment: deployment.clone(),
            directory: TestDirectory::create("ledger"),
            sent: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            started: 0,
            singles: 0,
            dead: 0,
        }
    }

    /// Starts to send events to `host:port`. `change` gives the plan its shape; website, seed and record are set.
    pub fn start(&mut self, authority: &str, change: impl FnOnce(&mut LoadPlan)) -> Load {
        self.started += 1;
        let file = self.directory.path().join(format!("acknowledged-{}", self.started));
        let mut plan = LoadPlan::new(format!("http://{authority}"), self.deployment.website());
        plan.mix = dashi_load::Mix { page_views: 70, custom_events: 12, identifies: 12, performance: 6 };
        plan.sessions = 500;
        change(&mut plan);
        plan.seed = self.started;
        plan.record_acknowledged = Some(file.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(dashi_load::run(plan, stop.clone(), |_| {}));
        Load { task, stop, file }
    }

    /// Ends the load now and enters its events.
    pub async fn stop(&mut self, load: Load) -> Report {
        load.stop.cancel();
        self.finish(load).await
    }

    /// Waits until the load has ended, and enters its events.
    pub async fn finish(&mut self, load: Load) -> Report {
        let report = load.task.await.expect("the generator does not panic").expect("the load ran");
        let taken = |counts: &Counts| counts.requests + counts.errors.total() + counts.missed;
        self.sent.insert(report.mark_prefix.clone(), taken(&report.warmup) + taken(&report.counts));
        for Acknowledged { mark, kind } in read_acknowledged(&load.file).expect("the record can be read") {
            let before = self.acknowledged.insert(mark.clone(), kind);
            assert_eq!(before, None, "{mark} was acknowledged twice");
        }
        report
    }

    /// Sends one page view to `host:port` and enters it.
    ///
    /// # Errors
    /// If there is no whole answer; the event may be in the log all the same.
    pub async fn send(&mut self, authority: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        const PREFIX: &str = "/load/single/";
        let mark = format!("{PREFIX}{}", self.singles);
        self.singles += 1;
        self.sent.insert(PREFIX.to_owned(), self.singles);
        let payload = json!({ "website": self.deployment.website(), "hostname": "example.com", "url": mark });
        let body = json!({ "type": "event", "payload": payload });
        let agent = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0");
        let headers = [&[agent], headers].concat();
        let answer = http::post_json(&format!("http://{authority}/api/send"), &body, &headers).await?;
        if answer.status == 200 {
            self.acknowledged.insert(mark, EventKind::PageView);
        }
        Ok(answer)
    }

    /// Says that so many records of the log are no events. By default there is none.
    pub fn expect_dead(&mut self, records: u64) {
        self.dead = records;
    }

    /// How many events were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Waits until every record has its outcome, then checks everything; returns the last status.
    ///
    /// # Panics
    /// If anything is wrong; the message has the first of each kind of fault.
    pub async fn check(&self) -> Status {
        let status = self.deployment.settled().await;
        let totals = status.totals;
        let tables = Tables::read(self.deployment.store()).await;
        let mut faults = self.compare(&tables, 0);
        let is_whole = totals.missing == 0 && totals.markers == 0 && totals.unaccounted == 0;
        if totals.in_log != totals.applied + totals.duplicate + totals.dead
            || totals.dead != self.dead
            || !is_whole
        {
            faults.add("totals that do not add up", format!("{totals:?}"));
        }
        let rows = tables.marks.values().map(|found| found.len() as u64).sum::<u64>();
        if rows + tables.barriers != totals.applied {
            faults.add("rows and applied records differ", format!("{totals:?}"));
        }
        faults.assert_none(self.acknowledged.len(), &totals);
        status
    }

    /// The same where the log itself has lost records, by an accident that no writer can mend: at most so many acknowledged events
    /// are not in the tables, everything else is there once, and every offset of the log has its outcome.
    ///
    /// # Panics
    /// If anything is wrong; the message has the first of each kind of fault.
    pub async fn check_after_loss(&self, lost_max: u64) -> Status {
        let status = self.deployment.settled().await;
        let totals = status.totals;
        let tables = Tables::read(self.deployment.store()).await;
        let mut faults = self.compare(&tables, lost_max);
        let accounted = totals.applied + totals.duplicate + totals.dead + totals.missing + totals.markers;
        let passed = totals.in_log + totals.removed + totals.rewound;
        if accounted != passed || totals.unaccounted != 0 || totals.dead != self.dead {
            faults.add("totals that do not add up", format!("{totals:?}"));
        }
        faults.assert_none(self.acknowledged.len(), &totals);
        status
    }

    /// Compares what was acknowledged with the tables.
    fn compare(&self, tables: &Tables, lost_max: u64) -> Faults {
        let mut faults = Faults::default();
        let is_lost = |mark: &&String| !tables.marks.contains_key(*mark);
        let are_too_many = self.acknowledged.keys().filter(is_lost).count() as u64 > lost_max;
        for (mark, kind) in &self.acknowledged {
            match tables.marks.get(mark).map(Vec::as_slice) {
                None if are_too_many => faults.add("acknowledged and lost", mark.clone()),
                None => {}
                Some([found]) if *found != code(*kind) => {
                    faults.add("of another kind", format!("{mark} {kind:?} {found}"));
                }
                Some(_) => {}
            }
        }
        for (mark, found) in &tables.marks {
            if found.len() > 1 {
                faults.add("there more than once", format!("{mark}: {found:?}"));
            }
            if !self.may_be_there(mark) {
                faults.add("there and never sent", mark.clone());
            }
        }
        for (what, count) in &tables.broken {
            if *count != 0 {
                faults.add(what, count.to_string());
            }
        }
        faults
    }

    fn may_be_there(&self, mark: &str) -> bool {
        let Some((prefix, number)) = mark.rfind('/').map(|at| mark.split_at(at + 1)) else { return false };
        let sent = self.sent.get(prefix).copied().unwrap_or(0);
        number.parse().is_ok_and(|number: u64| number < sent)
    }
}

#[derive(Default)]
struct Faults(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Faults {
    fn assert_none(&self, acknowledged: usize, totals: &Totals) {
        assert!(self.0.is_empty(), "of {acknowledged} acknowledged events, with {totals:?}: {:#?}", self.0);
    }

    fn add(&mut self, what: &'static str, which: String) {
        let (count, shown) = self.0.entry(what).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(which);
        }
    }
}

/// Stands for an identify, which has no `event_type`.
const IDENTIFY: i64 = 0;

/// The `event_type` of a kind.
fn code(kind: EventKind) -> i64 {
    match kind {
        EventKind::PageView => 1,
        EventKind::CustomEvent => 2,
        EventKind::Performance => 5,
        EventKind::Identify => IDENTIFY,
    }
}

/// The content of the tables.
struct Tables {
    /// Every event's mark with its kinds, one per row.
    marks: BTreeMap<String, Vec<i64>>,
    /// Barriers of a log that grew, which are applied and make no other row.
    barriers: u64,
    /// How often each of these promises is broken.
    broken: Vec<(&'static str, i64)>,
}

/// Rows without the rows that they need, and the like: each query counts what must not be.
const BROKEN: [(&str, &str); 9] = [
    (
        "events without a session",
        "SELECT count(*) FROM website_event e LEFT JOIN session s USING (session_id)
         WHERE s.session_id IS NULL",
    ),
    (
        "identifies without a session",
        "SELECT count(*) FROM @identify i LEFT JOIN session s USING (session_id) WHERE s.session_id IS NULL",
    ),
    (
        "session properties without a session",
        "SELECT count(*) FROM session_data d LEFT JOIN session s USING (session_id)
         WHERE s.session_id IS NULL",
    ),
    (
        "sessions without an event",
        "SELECT count(*) FROM session s
         WHERE NOT EXISTS (SELECT 1 FROM website_event e WHERE e.session_id = s.session_id)
         AND NOT EXISTS (SELECT 1 FROM @identify i WHERE i.session_id = s.session_id)",
    ),
    (
        "session properties written twice",
        "SELECT count(*) FROM (SELECT 1 FROM session_data GROUP BY session_id, data_key
         HAVING count(*) > 1) AS t",
    ),
    (
        "properties without an event",
        "SELECT count(*) FROM event_data d LEFT JOIN website_event e ON e.event_id = d.website_event_id
         WHERE e.event_id IS NULL",
    ),
    (
        // Every custom event of the load has at least three.
        "custom events that lack properties",
        "SELECT count(*) FROM website_event e WHERE event_type = 2
         AND (SELECT count(*) FROM event_data d WHERE d.website_event_id = e.event_id) < 3",
    ),
    (
        "properties written twice",
        "SELECT count(*) FROM (SELECT 1 FROM event_data GROUP BY website_event_id, data_key
         HAVING count(*) > 1) AS t",
    ),
    (
        "revenue that is missing or too much",
        "SELECT abs((SELECT count(*) FROM event_data WHERE data_key = 'revenue') - (SELECT count(*) FROM revenue))",
    ),
];

impl Tables {
    async fn read(store: &str) -> Self {
        let mut database = Database::open(store).await;
        let rows = database
            .pairs(
                "SELECT url_path, CAST(event_type AS bigint) FROM website_event
                 UNION ALL SELECT data_key, CAST(0 AS bigint) FROM session_data WHERE data_key LIKE '/load/%'",
            )
            .await;
        let mut marks: BTreeMap<_, Vec<i64>> = BTreeMap::new();
        for (mark, kind) in rows {
            marks.entry(mark).or_default().push(kind);
        }
        let identifies = marks.values().flatten().filter(|kind| **kind == IDENTIFY).count() as i64;
        let mut broken = Vec::new();
        for (what, sql) in BROKEN {
            broken.push((what, database.count(sql).await));
        }
        let listed = database.count("SELECT count(*) FROM @identify").await;
        broken.push(("identifies that are not listed, or listed too often", identifies - listed));
        let barriers =
            database.count("SELECT count(*) FROM @applied WHERE record_type = 'layout'").await as u64;
        Self { marks, barriers, broken }
    }
}

/// A connection to either kind of store. In its SQL, `@` stands before the names of Dashi's own tables.
pub enum Database {
    /// A SQLite file.
    Sqlite(SqliteConnection),
    /// A PostgreSQL database.
    Postgres(PgConnection),
}

impl Database {
    /// Connects to a store by its URL.
    pub async fn open(store: &str) -> Self {
        match store.strip_prefix("sqlite:") {
            Some(path) => {
                let options = SqliteConnectOptions::from_str("sqlite:").expect("a valid URL").filename(path);
                let connection = SqliteConnection::connect_with(&options.create_if_missing(false)).await;
                Self::Sqlite(connection.expect("the store can be opened"))
            }
            None => Self::Postgres(PgConnection::connect(store).await.expect("PostgreSQL takes connections")),
        }
    }

    /// Runs statements.
    pub async fn execute(&mut self, sql: &str) {
        let sql = AssertSqlSafe(self.named(sql));
        match self {
            Self::Sqlite(connection) => {
                sqlx::raw_sql(sql).execute(connection).await.expect("it can be run");
            }
            Self::Postgres(connection) => {
                sqlx::raw_sql(sql).execute(connection).await.expect("it can be run");
            }
        }
    }

    /// One number.
    pub async fn count(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(self.named(sql));
        match self {
            Self::Sqlite(connection) => sqlx::query_scalar(sql).fetch_one(connection).await,
            Self::Postgres(connection) => sqlx::query_scalar(sql).fetch_one(connection).await,
        }
        .expect("it can be counted")
    }

    /// Rows of a text and a number.
    pub async fn pairs(&mut self, sql: &str) -> Vec<(String, i64)> {
        let sql = AssertSqlSafe(self.named(sql));
        match self {
            Self::Sqlite(connection) => sqlx::query_as(sql).fetch_all(connection).await,
            Self::Postgres(connection) => sqlx::query_as(sql).fetch_all(connection).await,
        }
        .expect("it can be read")
    }

    fn named(&self, sql: &str) -> String {
        match self {
            Self::Sqlite(_) => sql.replace('@', "dashi_"),
            Self::Postgres(_) => sql.replace('@', "dashi."),
        }
    }
}
