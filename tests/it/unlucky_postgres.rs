//! Unlucky operators, with PostgreSQL: it restarts, fails over, falls silent, stands behind a pooler, cannot hold some
//! text, or is named by a URL that another program's documentation gave. A proxy in the test freezes, cuts and delays
//! connections; the pooler is a real PgBouncer.

use std::process::Command;
use std::time::{Duration, Instant};

use dashi_domain::fold::Changes;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_load::{LoadPlan, Mode};
use dashi_store::{CommitError, PostgresSettings, PostgresStore, Store};
use integration_tests::http::{self, Answer};
use integration_tests::postgres::{PgBouncer, PoolMode};
use integration_tests::profiles::{KEYS, Reader};
use integration_tests::proxy::Proxy;
use integration_tests::setup::AGENT;
use integration_tests::{
    Dashi, Database, Deployment, Ledger, PostgresServer, Server, TestDatabase, TestDirectory, eventually,
    free_port, kafka,
};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _};

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// How long recovery may take that costs about a second on an idle machine; a back-off for each dead connection, or one
/// limit of the operating system's, is longer.
const PROMPT: Duration = Duration::from_secs(10);

/// A short limit for statements, so that a silent peer is noticed within a test.
const LIMIT: (&str, &str) = ("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "2000");

/// The line that a process logs once when a connection is lost.
const LOST: &str = "lost the connection to the database";

/// How the roles are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roles {
    /// One process, with an embedded log.
    Together,
    /// A collector and a projector, with a topic between them.
    Apart,
}

/// Runs each of these functions, which take [`Roles`], as tests: `together::…` and `apart::…`.
macro_rules! in_both_roles {
    ($($promise:ident),+ $(,)?) => {
        mod together {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::Roles::Together).await;
            })+
        }
        mod apart {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::Roles::Apart).await;
            })+
        }
    };
}

in_both_roles!(
    a_silent_connection_costs_its_limit_and_is_replaced,
    a_restart_costs_about_a_second_and_no_request,
    a_server_that_became_read_only_is_left_for_the_one_that_can_be_written_to,
    behind_a_pooler_that_shares_connections_everything_works_and_nothing_stays_behind,
);

/// Running processes, on a store that they reach by one URL and the test by another.
struct Up {
    servers: Vec<Server>,
    /// On the store as the test reaches it.
    direct: Deployment,
    ledger: Ledger,
    _directory: TestDirectory,
}

impl Up {
    async fn start(roles: Roles, store: &str, direct: &str, env: &[(&str, &str)]) -> Self {
        let directory = TestDirectory::create("unlucky");
        let log = match roles {
            Roles::Together => format!("sqlite:{}", directory.path().join("log.db").display()),
            Roles::Apart => format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("unlucky")),
        };
        let mut deployment = Deployment::new(log, store);
        for (name, value) in env {
            deployment = deployment.with(name, value);
        }
        deployment.register().await;
        let mut servers = Vec::new();
        let roles: &[&str] = match roles {
            Roles::Together => &["serve"],
            Roles::Apart => &["collect", "project"],
        };
        for role in roles {
            servers.push(deployment.start(role).ready().await);
        }
        let direct = deployment.with_store(direct);
        let ledger = Ledger::new(&direct);
        Self { servers, direct, ledger, _directory: directory }
    }

    fn collector(&self) -> &Server {
        &self.servers[0]
    }

    fn projector(&self) -> &Server {
        &self.servers[self.servers.len() - 1]
    }

    async fn send(&mut self) {
        let authority = self.collector().authority.clone();
        let answer = self.ledger.send(&authority, &[]).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Sends an event of another website.
    async fn send_to(&self, website: &str) -> Answer {
        let payload = json!({ "website": website, "hostname": "example.com", "url": "/elsewhere" });
        let body = json!({ "type": "event", "payload": payload });
        let url = format!("{}/api/send", self.collector().url());
        http::post_json(&url, &body, &[("user-agent", AGENT)]).await.expect("an answer")
    }

    /// Adds a website that the collector has not heard of.
    async fn add_website(&self) -> String {
        let added = self.direct.run(&["website", "add", "--name", "another"]).await;
        assert_eq!(added.code, Some(0), "{}", added.stderr);
        added.stdout.trim().to_owned()
    }

    /// How long it takes until every acknowledged page view is a row.
    async fn rows_after(&self) -> Duration {
        let began = Instant::now();
        let mut database = Database::open(self.direct.store()).await;
        let expected = self.ledger.acknowledged() as i64;
        eventually(SOON, "what was acknowledged is a row", async || {
            let rows =
                database.count("SELECT count(*) FROM website_event WHERE url_path LIKE '/load/%'").await;
            if rows >= expected { Ok(()) } else { Err(format!("{rows} of {expected}")) }
        })
        .await;
        began.elapsed()
    }

    /// How often a text stands in the logs of each process.
    fn logged(&self, text: &str) -> Vec<usize> {
        self.servers.iter().map(|server| server.dashi.stderr().matches(text).count()).collect()
    }

    async fn stop(mut self) {
        for server in &mut self.servers {
            assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.stderr());
        }
    }
}

async fn readiness(server: &Server) -> Value {
    http::get(&format!("{}/health/ready", server.url())).await.expect("it answers").json()
}

/// `host:port` of a URL.
fn authority(url: &str) -> &str {
    let rest = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    rest.split('/').next().expect("a URL has an authority")
}

/// The same database by way of another `host:port`.
fn by_way_of(url: &str, other: &str) -> String {
    url.replace(authority(url), other)
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL takes connections");
    let executed = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await;
    executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Ends the connections of all others to a database, as a restart or a fail-over does. Returns how many there were.
async fn end_connections(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL takes connections");
    sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a superuser can end connections")
}

/// A partition was hung for ever by a peer that acknowledged bytes and said nothing, and every request for a website
/// not yet known was refused: the only limit was a setting of the server, which cannot be heard.
async fn a_silent_connection_costs_its_limit_and_is_replaced(roles: Roles) {
    let database = TestDatabase::create().await;
    let proxy = Proxy::start(authority(database.url())).await;
    let through = by_way_of(database.url(), &proxy.authority());
    let mut up = Up::start(roles, &through, database.url(), &[LIMIT]).await;
    for round in 1..=2 {
        for _ in 0..20 {
            up.send().await;
        }
        up.rows_after().await;
        proxy.freeze_open();
        up.send().await;
        let website = up.add_website().await;
        let began = Instant::now();
        eventually(SOON, "the new website's events are taken", async || {
            let answer = up.send_to(&website).await;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        let taken_after = began.elapsed();
        let rows_after = up.rows_after().await;
        assert!(taken_after < PROMPT && rows_after < PROMPT, "{taken_after:?} {rows_after:?}");
        for (server, logged) in up.servers.iter().zip(up.logged(LOST)) {
            let logs = server.dashi.stderr();
            assert!((1..=round).contains(&logged), "once in an outage, {logged} times in {round}: {logs}");
        }
    }
    up.direct.settled().await;
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_altogether_is_shown_and_holds_up_no_stop() {
    let database = TestDatabase::create().await;
    let proxy = Proxy::start(authority(database.url())).await;
    let through = by_way_of(database.url(), &proxy.authority());
    let mut up = Up::start(Roles::Together, &through, database.url(), &[LIMIT]).await;
    up.send().await;
    up.rows_after().await;
    proxy.freeze();
    up.send().await;
    eventually(SOON, "the store is not shown as ok", async || {
        let ready = readiness(up.projector()).await;
        if ready["checks"]["store"] != "ok" { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    eventually(SOON, "the outage is logged", async || up.logged(LOST) == [1]).await;
    // Commands that ask the database end, too.
    let began = Instant::now();
    let command = up.direct.with_store(&through).run(&["website", "list"]).await;
    assert_eq!(command.code, Some(1), "{}", command.stderr);
    assert!(began.elapsed() < 3 * PROMPT, "{:?}", began.elapsed());

    proxy.thaw();
    let after = up.rows_after().await;
    // The longest wait between two tries is five seconds.
    assert!(after < 2 * PROMPT, "{after:?}");
    eventually(SOON, "the end of the outage is logged", async || {
        up.logged("the database answers again") == [1]
    })
    .await;

    proxy.freeze();
    up.send().await;
    // The batch is under way by now, or will be: either way the stop waits for it no longer than its limit.
    let began = Instant::now();
    let code = up.servers[0].dashi.terminate().await;
    assert_eq!(code, Some(0), "{}", up.servers[0].dashi.stderr());
    assert!(began.elapsed() < 2 * PROMPT, "{:?}", began.elapsed());
}

/// A slow network is not a silent one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_network_loses_no_connection() {
    let database = TestDatabase::create().await;
    let proxy = Proxy::start(authority(database.url())).await;
    let through = by_way_of(database.url(), &proxy.authority());
    let mut up = Up::start(Roles::Together, &through, database.url(), &[LIMIT]).await;
    proxy.delay(Duration::from_millis(50));
    for _ in 0..10 {
        up.send().await;
    }
    up.rows_after().await;
    assert_eq!(up.logged(LOST), [0]);
    proxy.cut();
    up.send().await;
    up.rows_after().await;
    up.ledger.check().await;
    up.stop().await;
}

/// A restart cost one back-off for each dead connection of the pool (21 s for ten), and a look-up failed for each.
async fn a_restart_costs_about_a_second_and_no_request(roles: Roles) {
    let database = TestDatabase::create().await;
    let mut up = Up::start(roles, database.url(), database.url(), &[]).await;
    for round in 0..3 {
        for _ in 0..100 {
            up.send().await;
        }
        up.rows_after().await;
        let website = up.add_website().await;
        let ended = end_connections(database.url()).await;
        // The claims of eight partitions, all at once, have left as many connections.
        assert!(ended >= if round == 0 { 4 } else { 1 }, "round {round}: {ended} connections");
        up.send().await;
        let answer = up.send_to(&website).await;
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        let after = up.rows_after().await;
        assert!(after < PROMPT / 2, "round {round}: {after:?}");
    }
    up.direct.settled().await;
    up.stop().await;
}

/// The connections that were made while the server was read-only stayed in the pool for half an hour.
async fn a_server_that_became_read_only_is_left_for_the_one_that_can_be_written_to(roles: Roles) {
    let database = TestDatabase::create().await;
    let mut up = Up::start(roles, database.url(), database.url(), &[]).await;
    up.send().await;
    up.rows_after().await;
    let alter = |change: &str| format!("ALTER DATABASE \"{}\" {change}", database.name());
    execute(database.url(), &alter("SET default_transaction_read_only = on")).await;
    end_connections(database.url()).await;
    up.send().await;
    for server in &up.servers {
        eventually(SOON, "the store is shown as read-only", async || {
            let ready = readiness(server).await;
            let shown = ready["checks"]["store"].as_str().unwrap_or_default();
            if shown.contains("read-only") { Ok(()) } else { Err(ready.to_string()) }
        })
        .await;
    }
    let logs = || up.projector().dashi.stderr();
    eventually(SOON, "the projector says why", async || logs().contains("read-only transaction")).await;
    assert!(!logs().contains("is unknown"), "{}", logs());
    // Promoted, or another server under the old name: new connections can write.
    let mut promoted = PgConnection::connect(database.url()).await.expect("PostgreSQL takes connections");
    sqlx::raw_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        .execute(&mut promoted)
        .await
        .expect("anybody may");
    sqlx::raw_sql(AssertSqlSafe(alter("RESET default_transaction_read_only")))
        .execute(&mut promoted)
        .await
        .expect("a superuser can");
    let after = up.rows_after().await;
    assert!(after < PROMPT, "{after:?}");
    for server in &up.servers {
        eventually(SOON, "the store is ok", async || readiness(server).await["checks"]["store"] == "ok")
            .await;
    }
    up.ledger.check().await;
    up.stop().await;
}

/// Statements of one client were bound on another's connection, limits and search path stayed behind on connections that
/// an Umami shares, and `?pgbouncer=true` was not heeded.
async fn behind_a_pooler_that_shares_connections_everything_works_and_nothing_stays_behind(roles: Roles) {
    // Said in the URL, with a schema; and not said, so it has to be found out.
    for (said, schema) in [("?pgbouncer=true&schema=stats", "stats"), ("", "public")] {
        let postgres = PostgresServer::start().await;
        postgres.create_database("umami").await;
        execute(&postgres.url("umami"), "CREATE SCHEMA IF NOT EXISTS stats").await;
        let bouncer = PgBouncer::start(&postgres.url("umami"), PoolMode::Transaction, 3).await;
        let store = format!("{}{said}", bouncer.url("umami"));
        let direct = format!("{}?options=-csearch_path%3D{schema}", postgres.url("umami"));
        let umami = tokio::spawn(umami_beside(bouncer.url("umami")));
        let mut up = Up::start(roles, &store, &direct, &[KEYS]).await;
        let authority = up.collector().authority.clone();
        let load = up.ledger.start(&authority, steady(200.0));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let report = up.ledger.stop(load).await;
        assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
        up.ledger.check().await;
        a_change_is_shown(&up).await;

        assert!(!umami.is_finished(), "an Umami beside it found what is not its own");
        umami.abort();
        assert_eq!(Database::open(&direct).await.count("SELECT count(*) FROM website").await, 1);
        for server in &up.servers {
            let logs = server.dashi.stderr();
            assert_eq!(logs.matches("a pooler shares the database's connections").count(), 1, "{logs}");
            for complaint in
                ["prepared statement", "interrupted", LOST, "waiting for the store", "cannot be read"]
            {
                assert!(!logs.contains(complaint), "{complaint}: {logs}");
            }
        }
        let other = if schema == "public" { "stats" } else { "public" };
        let elsewhere = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{other}'");
        assert_eq!(Database::open(&direct).await.count(&elsewhere).await, 0, "tables in {other}");
        up.stop().await;
    }
}

fn steady(requests_per_s: f64) -> impl FnOnce(&mut LoadPlan) {
    move |plan| {
        plan.connections = 4;
        plan.mode = Mode::Open { requests_per_s };
        plan.duration = 5 * SOON;
    }
}

/// A client that shares a pooler with Dashi: it relies on a server's defaults, and ends with a panic if they are others.
async fn umami_beside(url: String) {
    // A pooler refuses what the driver would say at the start.
    let options: PgConnectOptions = url.parse().expect("a valid URL");
    let connected = PgConnection::connect_with(&options.extra_float_digits(None)).await;
    let mut connection = connected.expect("the pooler takes connections");
    let expected = [
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("search_path", "\"$user\", public"),
        ("transaction_read_only", "off"),
    ];
    loop {
        for (setting, value) in expected {
            let shown = sqlx::raw_sql(AssertSqlSafe(format!("SHOW {setting}")));
            let row = shown.fetch_one(&mut connection).await.expect("it answers");
            let shown: String = sqlx::Row::get(&row, 0);
            assert_eq!(shown, value, "{setting}");
        }
        let prepared = sqlx::raw_sql("SELECT count(*)::text FROM pg_prepared_statements");
        let row = prepared.fetch_one(&mut connection).await.expect("it answers");
        let prepared: String = sqlx::Row::get(&row, 0);
        assert_eq!(prepared, "0", "prepared statements");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A change of a profile reaches an open stream, though nobody can listen.
async fn a_change_is_shown(up: &Up) {
    let identify = async |name: &str| {
        let payload = json!({ "website": up.direct.website(), "id": "ada", "data": { "name": name } });
        let body = json!({ "type": "identify", "payload": payload });
        let url = format!("{}/api/send", up.collector().url());
        let answer = http::post_json(&url, &body, &[("user-agent", AGENT)]).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["sessionId"].as_str().expect("a session").to_owned()
    };
    let session = identify("Ada").await;
    up.direct.settled().await;
    let reader = Reader::new(&up.collector().authority, up.direct.website());
    let following = reader.follow(&session).await;
    identify("Lovelace").await;
    following.until("the change is shown", |traits| traits.to_string().contains("Lovelace")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_that_leaves_a_session_its_connection_everything_works() {
    let postgres = PostgresServer::start().await;
    postgres.create_database("umami").await;
    let bouncer = PgBouncer::start(&postgres.url("umami"), PoolMode::Session, 30).await;
    let mut up = Up::start(Roles::Together, &bouncer.url("umami"), &postgres.url("umami"), &[KEYS]).await;
    for _ in 0..50 {
        up.send().await;
    }
    up.rows_after().await;
    up.ledger.check().await;
    a_change_is_shown(&up).await;
    assert_eq!(up.logged("a pooler shares"), [0]);
    assert_eq!(up.logged("interrupted"), [0], "{}", up.collector().dashi.stderr());
    let stays = tokio::spawn(umami_beside(bouncer.url("umami")));
    up.stop().await;
    // Its connections are somebody else's now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!stays.is_finished(), "something of ours stayed behind");
    stays.abort();
}

/// Every one of these was called an unknown outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_before_the_commit_says_that_nothing_was_written_and_why() {
    let database = TestDatabase::create().await;
    let settings = PostgresSettings {
        url: database.url().to_owned(),
        connections_max: 4,
        statement_timeout: Duration::from_secs(60),
    };
    let store = Store::Postgres(PostgresStore::open(&settings).expect("a valid URL"));
    store.migrate().await.expect("it answers");
    let claim = store.claim(&LogId::new("log"), Partition::new(0), "test").await.expect("it answers");
    let at = |offset| Checkpoint::at(Offset::new(offset));
    for code in
        ["42501", "53100", "53200", "53300", "40001", "40P01", "55P03", "57014", "42P01", "25006", "XX000"]
    {
        let function = format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'as ordered' USING ERRCODE = '{code}'; END $$;
             CREATE TRIGGER fail BEFORE UPDATE ON dashi.checkpoint FOR EACH ROW EXECUTE FUNCTION fail()"
        );
        execute(database.url(), &function).await;
        let failed = store.commit(&claim, at(0), at(1), &Changes::default()).await;
        let Err(error @ CommitError::NotWritten { .. }) = &failed else { panic!("{code}: {failed:?}") };
        assert!(error.to_string().contains("was not written"), "{error}");
        let cause = std::error::Error::source(error).expect("a cause").to_string();
        assert_eq!(cause, format!("as ordered (SQLSTATE {code})"));
        execute(database.url(), "DROP TRIGGER fail ON dashi.checkpoint").await;
        assert_eq!(store.resume(&claim).await.expect("it answers"), at(0), "{code}");
    }
    store.commit(&claim, at(0), at(1), &Changes::default()).await.expect("nothing is in the way");
    store.close().await;
}

/// Events with a character that the encoding cannot hold were dead letters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_the_database_cannot_hold_is_stored_with_a_replacement() {
    let postgres = PostgresServer::start().await;
    for (name, encoding) in
        [("latin", "LATIN1"), ("again", "LATIN1"), ("cyrillic", "KOI8R"), ("bytes", "SQL_ASCII")]
    {
        let create = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        execute(&postgres.url("postgres"), &create).await;
    }
    let long = "ä".repeat(400);
    for (name, title, cut, note) in [
        ("latin", "Grüße ?", long.as_str(), "cannot hold all characters"),
        ("cyrillic", "Gr??e ?", &"?".repeat(400), "cannot hold all characters"),
        ("bytes", "Grüße 🎉", &"ä".repeat(250), "the database knows no characters"),
    ] {
        let url = postgres.url(name);
        let up = Up::start(Roles::Together, &url, &url, &[KEYS]).await;
        let send = async |kind: &str, mut payload: Value| {
            payload["website"] = json!(up.direct.website());
            let body = json!({ "type": kind, "payload": payload });
            let send = format!("{}/api/send", up.collector().url());
            let answer = http::post_json(&send, &body, &[("user-agent", AGENT)]).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
        };
        send("event", json!({ "url": "/a", "title": "Grüße 🎉" })).await;
        send("event", json!({ "url": "/b", "title": long })).await;
        send("event", json!({ "url": "/c", "name": "🎉", "data": { "🎉": 1, "🎊": "🎊" } })).await;
        for data in [json!({ "🎉": "a", "🎊": "b", "Ort": "Łódź" }), json!({ "🎉": "c" })] {
            send("identify", json!({ "id": "Zoë 🎉", "data": data })).await;
        }
        let status = up.direct.settled().await;
        assert_eq!((status.totals.applied, status.totals.dead), (5, 0), "{name}: {status:?}");
        let mut database = Database::open(&url).await;
        let titles = database.pairs("SELECT page_title, CAST(1 AS bigint) FROM website_event WHERE page_title IS NOT NULL ORDER BY url_path").await;
        let titles: Vec<&str> = titles.iter().map(|(title, _)| title.as_str()).collect();
        assert_eq!(titles, [title, cut], "{name}");
        // A person is found by the name that was sent.
        let reader = Reader::new(&up.collector().authority, up.direct.website());
        let person = reader.get("/profiles/Zo%C3%AB%20%F0%9F%8E%89").await;
        assert_eq!(person.status, 200, "{name}: {}", person.text());
        assert_eq!(up.logged(note), [1], "{name}: {}", up.collector().dashi.stderr());
        if name == "latin" {
            let again = postgres.url("again");
            let replayed = up.direct.run(&["replay", "--into", &again]).await;
            assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
            let compared = up.direct.run(&["compare", &url, &again]).await;
            assert_eq!(compared.code, Some(0), "{}{}", compared.stdout, compared.stderr);
        }
        up.stop().await;
    }
}

/// It began with a warning and left nothing to send events to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_on_an_empty_database_warns_of_nothing_and_says_how_to_send() {
    let database = TestDatabase::create().await;
    let directory = TestDirectory::create("first");
    let deployment =
        Deployment::new(format!("sqlite:{}", directory.path().join("log.db").display()), database.url());
    // Two at once: one website between them.
    let mut servers = [deployment.start("serve"), deployment.start("serve")];
    for server in &mut servers {
        let url = server.url();
        server.dashi.wait_ready(&url).await;
        eventually(SOON, "it is introduced", async || server.dashi.stdout().contains("curl ")).await;
        let logs = server.dashi.stderr();
        assert!(
            !logs.contains("the list of websites cannot be read") && !logs.contains("waiting for"),
            "{logs}"
        );
    }
    let mut store = Database::open(database.url()).await;
    assert_eq!(store.count("SELECT count(*) FROM website").await, 1);
    let said = servers[0].dashi.stdout();
    assert!(said.contains("the website \"default\""), "{said}");
    let line = |begin: &str| {
        let line = said.lines().find(|line| line.trim().starts_with(begin)).expect("a line to paste");
        let output = Command::new("sh").args(["-c", line]).output().expect("sh is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(line("curl ").contains("cache"), "{said}");
    eventually(SOON, "the row is there", async || {
        store.count("SELECT count(*) FROM website_event WHERE url_path = '/hello'").await == 1
    })
    .await;
    for mut server in servers {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }

    // On a database that Umami made, a website belongs to somebody: none is made up.
    let umamis = TestDatabase::create().await;
    let deployment =
        Deployment::new(format!("sqlite:{}", directory.path().join("three").display()), umamis.url());
    deployment.register().await;
    execute(umamis.url(), "DELETE FROM website; CREATE TABLE _prisma_migrations (id text)").await;
    let mut server = deployment.start("serve").ready().await;
    eventually(SOON, "it is introduced", async || server.dashi.stdout().contains("dashi website add")).await;
    assert_eq!(Database::open(umamis.url()).await.count("SELECT count(*) FROM website").await, 0);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// They were said to be good and then failed, or another store was used without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_of_other_programs_are_heeded_or_refused_and_never_replaced_by_another_store() {
    let secret = ("APP_SECRET", "a secret of the tests");
    for (url, sentence) in [
        ("prisma+postgres://h/?api_key=hunter2", "Prisma's own service"),
        ("prisma://h/?api_key=hunter2", "Prisma's own service"),
        ("mysql://u:hunter2@h/d", "PostgreSQL"),
        ("file:./hunter2.db", "no known kind"),
        ("postgres://u:pa/hunter2@h/d", "%2F"),
        ("postgres://u:pa#hunter2@h/d", "%23"),
        ("postgres://u:hunter2@h/d?sslmode=nonsense", "`sslmode=nonsense`"),
        ("postgres://u:hunter2@h/d?foo=bar", "`foo=bar`"),
        ("postgres://u:hunter2@h/d?password=hunter2&sslidentity=x", "PKCS #12"),
    ] {
        let listen = format!("127.0.0.1:{}", free_port());
        for command in [&["config", "check"][..], &["serve", "--listen", &listen]] {
            let mut dashi = Dashi::spawn(command, &[("DATABASE_URL", url), secret]);
            let code = dashi.wait_exit(SOON).await.code();
            let said = dashi.logs();
            assert_eq!(code, Some(2), "{url}: {said}");
            assert!(said.contains(sentence), "{url}: {said}");
            assert!(!said.contains("hunter2") || url.starts_with("file:"), "{url}: {said}");
            assert!(!dashi.directory().join("data").exists(), "{url}: another store was made");
        }
    }
    for query in [
        "sslmode=no-verify",
        "sslmode=prefer",
        "pgbouncer=true&connection_limit=1",
        "schema=x&pool_timeout=3",
    ] {
        let url = format!("postgresql://u:p%40ss%2Fw@h/d?{query}");
        let checked = Dashi::run(&["config", "check"], &[("DATABASE_URL", &url), secret]).await;
        assert_eq!(checked.code, Some(0), "{query}: {}", checked.stderr);
    }
    // Errors of commands: no password, and no word twice.
    for store in [
        "postgres://u:pa/hunter2@h/d",
        "postgres://u:hunter2@127.0.0.1:1/d",
        "postgres://h:1/d?password=hunter2&x=y",
    ] {
        let ended = Dashi::run(&["status", "--store", store], &[secret]).await;
        assert!(ended.code != Some(0) && !ended.stderr.contains("hunter2"), "{}", ended.stderr);
        let last = ended.stderr.trim().lines().last().expect("it says why").to_owned();
        let causes: Vec<&str> = last.split(": ").collect();
        let distinct: std::collections::HashSet<&&str> = causes.iter().collect();
        assert_eq!(causes.len(), distinct.len(), "{last}");
        assert!(!last.contains("at line"), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_connects_reaches_log_and_store_within_a_bound() {
    let database = TestDatabase::create().await;
    let proxy = Proxy::start(authority(database.url())).await;
    let through = by_way_of(database.url(), &proxy.authority());
    let secret = ("APP_SECRET", "a secret of the tests");
    let check = async |store: &str, log: &str| {
        let began = Instant::now();
        let command = ["config", "check", "--connect", "--store", store, "--log", log];
        let ended = Dashi::run(&command, &[secret]).await;
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
        (ended.code, ended.stdout + &ended.stderr)
    };
    let kafka = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("check"));
    assert_eq!(check(&through, "sqlite:log.db").await.0, Some(0));
    assert_eq!(check(&through, &kafka).await.0, Some(0));
    assert_eq!(
        Database::open(database.url())
            .await
            .count("SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'dashi')")
            .await,
        0
    );
    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, said) = check(&through, &format!("kafka://{nobody}/t")).await;
    assert!(code == Some(1) && said.contains(&nobody), "{said}");
    let (code, said) = check(&by_way_of(database.url(), &nobody), "sqlite:log.db").await;
    assert!(code == Some(1) && said.contains("the store cannot be used"), "{said}");
    let (code, said) = check(&format!("{}-not", database.url()), "sqlite:log.db").await;
    assert!(code == Some(1) && said.contains("does not exist (SQLSTATE 3D000)"), "{said}");
    proxy.freeze();
    let (code, said) = check(&through, "sqlite:log.db").await;
    assert!(code == Some(1) && said.contains("store"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_one_that_can_be_written_to_is_used() {
    let database = TestDatabase::create().await;
    let first = Proxy::start(authority(database.url())).await;
    let second = Proxy::start(authority(database.url())).await;
    let nobody = format!("127.0.0.1:{}", free_port());
    let hosts = format!("{nobody},{},{}", first.authority(), second.authority());
    let through = format!("{}?target_session_attrs=read-write", by_way_of(database.url(), &hosts));
    let mut up = Up::start(Roles::Together, &through, database.url(), &[LIMIT]).await;
    up.send().await;
    up.rows_after().await;
    // The one in use goes: nothing passes, whether it is connected or tries to be.
    first.freeze();
    up.send().await;
    let after = up.rows_after().await;
    assert!(after < 2 * PROMPT, "{after:?}");
    up.ledger.check().await;
    up.stop().await;
}
