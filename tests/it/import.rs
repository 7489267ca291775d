//! `dashi import umami`: databases with generated history, imported into log and store, and compared with their source.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dashi_store::{PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store, compare};
use integration_tests::log::{open_log, read_log};
use integration_tests::umami::UMAMI_2_18;
use integration_tests::{Deployment, TestDatabase, TestDirectory, UmamiVersion, eventually};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

const SITE: &str = "11111111-1111-4111-8111-111111111111";
const LINK: &str = "44444444-4444-4444-8444-444444444444";

/// Sessions that have no event.
const SILENT: u32 = 20;

/// How much history a generated database has: `events`, a tenth as many sessions, and rows of data.
///
/// Every tenth event is a named one with four leaves of data, every hundredth has revenue, every fiftieth is one of web
/// vitals; every seventh session has a distinct id and two properties.
fn history(events: u32, version: Option<UmamiVersion>) -> String {
    let sessions = events / 10;
    let with_silent = sessions + SILENT;
    let vitals = version >= Some(UmamiVersion::V3_1);
    let (vital_names, vital_values) = if vitals {
        (
            ", lcp, inp, cls, fcp, ttfb",
            ", CASE WHEN n % 50 = 0 THEN n % 977 + 0.5 END, NULL, CASE WHEN n % 50 = 0 THEN 0.0625 END, NULL, NULL",
        )
    } else {
        ("", "")
    };
    let performance = if vitals { "WHEN n % 50 = 0 THEN 5" } else { "" };
    let mut sql = format!(
        "INSERT INTO website (website_id, name, domain) VALUES ('{SITE}', 'site', 'a.example');
         INSERT INTO session (session_id, website_id, browser, os, device, screen, language, country, region, city,
             created_at, distinct_id)
         SELECT md5('session' || n)::uuid, '{SITE}', CASE WHEN n % 5 > 0 THEN 'chrome' END, 'Mac OS', 'laptop',
             '1920x1080', 'de-DE', CASE WHEN n % 3 > 0 THEN 'DE' END, CASE WHEN n % 3 > 0 THEN 'DE-BE' END, 'Köln 😀',
             timestamptz '2026-03-01 00:00:00+00' + n * interval '37.123 seconds',
             CASE WHEN n % 7 = 0 THEN 'person ' || n / 14 END
         FROM generate_series(0, {with_silent} - 1) AS n;
         INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, url_query, utm_source,
             gclid, referrer_path, referrer_query, referrer_domain, page_title, event_type, event_name, tag, hostname
             {vital_names})
         SELECT md5('event' || n)::uuid, '{SITE}', md5('session' || n % {sessions})::uuid,
             md5('visit' || n % {sessions} || '-' || n / (3 * {sessions}))::uuid,
             timestamptz '2026-03-01 00:00:00+00' + n * interval '1.777 seconds', '/seite/' || n % 100 || '/',
             CASE WHEN n % 50 > 0 THEN 'q=' || n END, CASE WHEN n % 4 = 0 THEN 'news' END, CASE WHEN n % 9 = 0 THEN '' END,
             CASE WHEN n % 2 = 0 THEN '/' END, CASE WHEN n % 2 = 0 THEN '' END, CASE WHEN n % 2 = 0 THEN 'b.example' END,
             'Title \"' || n || '\"', CASE WHEN n % 10 = 3 THEN 2 {performance} ELSE 1 END,
             CASE WHEN n % 10 = 3 THEN 'buy' END, CASE WHEN n % 6 = 0 THEN 'a' END, 'a.example' {vital_values}
         FROM generate_series(0, {events} - 1) AS n;
         INSERT INTO event_data (event_data_id, website_id, website_event_id, data_key, string_value, number_value,
             date_value, data_type, created_at)
         SELECT md5('leaf' || k || '-' || n)::uuid, '{SITE}', md5('event' || n)::uuid, 'key.' || k,
             CASE k WHEN 0 THEN 'text ' || n WHEN 1 THEN n || '.5000' WHEN 2 THEN '2026-05-01T08:20:30.123Z' ELSE '[1]' END,
             CASE WHEN k = 1 THEN n + 0.5 END, CASE WHEN k = 2 THEN timestamptz '2026-05-01 08:20:30.123+00' END,
             CASE k WHEN 0 THEN 1 WHEN 1 THEN 2 WHEN 2 THEN 4 ELSE 5 END,
             timestamptz '2026-03-01 00:00:00+00' + n * interval '1.777 seconds'
         FROM generate_series(3, {events} - 1, 10) AS n, generate_series(0, 3) AS k;
         INSERT INTO session_data (session_data_id, website_id, session_id, data_key, string_value, data_type, created_at,
             distinct_id)
         SELECT md5('property' || k || '-' || n)::uuid, '{SITE}', md5('session' || n)::uuid, 'key ' || k,
             'value ' || n, 1, timestamptz '2026-03-02 00:00:00+00' + n * interval '37.123 seconds',
             'person ' || n / 14
         FROM generate_series(0, {sessions} - 1, 7) AS n, generate_series(0, 1) AS k;"
    );
    if version.is_some() {
        sql.push_str(&format!(
            "INSERT INTO revenue (revenue_id, website_id, session_id, event_id, event_name, currency, revenue, created_at)
             SELECT md5('revenue' || n)::uuid, '{SITE}', md5('session' || n % {sessions})::uuid, md5('event' || n)::uuid,
                 'buy', 'EUR', n + 0.99, timestamptz '2026-03-01 00:00:00+00' + n * interval '1.777 seconds'
             FROM generate_series(3, {events} - 1, 100) AS n;
             INSERT INTO link (link_id, name, url, slug) VALUES ('{LINK}', 'a link', 'https://b.example/', 'go');
             INSERT INTO session (session_id, website_id, device, created_at)
             VALUES (md5('follower')::uuid, '{LINK}', 'mobile', '2026-03-01 00:00:00+00');
             INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type)
             VALUES (md5('visit of the link')::uuid, '{LINK}', md5('follower')::uuid, md5('v')::uuid,
                 '2026-03-01 00:00:00+00', '/q/go', 3);"
        ));
    }
    if version >= Some(UmamiVersion::V3_3) {
        sql.push_str(&format!(
            "INSERT INTO session_link (website_id, session_id, distinct_id, created_at)
             SELECT '{SITE}', md5('session' || n)::uuid, 'person ' || n / 14, '2026-03-02 00:00:00+00'
             FROM generate_series(0, {sessions} - 1, 7) AS n;"
        ));
    }
    sql
}

/// Records that such history becomes: one for each event, and one for each session that has properties or no event.
fn records(events: u32, version: Option<UmamiVersion>) -> u64 {
    u64::from(events + (events / 10).div_ceil(7) + SILENT) + u64::from(version.is_some())
}

async fn umami(events: u32, version: Option<UmamiVersion>) -> TestDatabase {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    match version {
        Some(version) => version.install(&mut connection).await,
        None => {
            sqlx::raw_sql(UMAMI_2_18).execute(&mut connection).await.unwrap();
        }
    }
    execute(&database, &history(events, version)).await;
    database
}

async fn execute(database: &TestDatabase, sql: &str) {
    let executed = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut database.connect().await).await;
    executed.unwrap_or_else(|error| panic!("{error}: {sql}"));
}

async fn texts(database: &TestDatabase, query: &str) -> Vec<String> {
    let query = format!("SELECT t::text FROM ({query}) AS q (t)");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut database.connect().await).await.unwrap()
}

/// The files of an import, which each run of the command is given.
struct Files {
    directory: TestDirectory,
}

impl Files {
    fn create() -> Self {
        Self { directory: TestDirectory::create("import") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("state.json")).unwrap()).unwrap()
    }

    fn arguments(&self, of: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = ["import"].iter().chain(of).map(|text| (*text).to_owned()).collect();
        for (flag, name) in [("--rejects", "rejects.ndjson"), ("--state", "state.json")] {
            all.extend([flag.to_owned(), self.path(name).display().to_string()]);
        }
        all.push("--json".to_owned());
        all
    }

    async fn import(&self, deployment: &Deployment, of: &[&str]) -> (Option<i32>, Value, String) {
        let arguments = self.arguments(of);
        let ended = deployment.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let report = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
        (ended.code, report, ended.stderr)
    }
}

async fn in_log(deployment: &Deployment) -> u64 {
    let log = open_log(deployment.log()).await;
    let mut count = 0;
    for partition in log.partitions().await.unwrap() {
        let extent = log.extent(partition).await.unwrap();
        count += extent.high.number() - extent.low.number();
    }
    log.close().await;
    count
}

/// Projects what is in the log, and stops again.
async fn project(deployment: &Deployment) -> integration_tests::Status {
    let server = deployment.start("project").ready().await;
    let status = deployment.settled().await;
    drop(server);
    status
}

async fn store(url: &str) -> Store {
    match url.strip_prefix("sqlite:") {
        Some(path) => Store::Sqlite(
            SqliteStore::open(&SqliteSettings { path: Path::new(path).to_owned() }).await.unwrap(),
        ),
        None => Store::Postgres(
            PostgresStore::open(&PostgresSettings {
                url: url.to_owned(),
                connections_max: 2,
                statement_timeout: Duration::from_secs(60),
            })
            .unwrap(),
        ),
    }
}

/// Row counts of Umami's tables, which are equal row by row in both, with equal checksums.
async fn assert_equal_rows(source: &TestDatabase, target: &str) -> Vec<(&'static str, u64)> {
    let (source, target) = (store(source.url()).await, store(target).await);
    // The source lacks Dashi's own tables, which a comparison reads as well.
    source.migrate().await.unwrap();
    let compared = compare(&source, &target).await.unwrap();
    let tables = ["session", "website_event", "event_data", "session_data", "revenue"];
    let mut counts = Vec::new();
    for table in compared.tables.iter().filter(|table| tables.contains(&table.table)) {
        assert!(table.equal, "{table:?}");
        assert_eq!(table.checksums[0], table.checksums[1], "{table:?}");
        counts.push((table.table, table.rows[0]));
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_rows_of_umami_are_there_once_though_killed_and_run_again_on_postgres() {
    const EVENTS: u32 = 13_000;
    let version = Some(UmamiVersion::V3_1);
    let source = umami(EVENTS, version).await;
    let files = Files::create();
    let directory = TestDirectory::create("target");
    let deployment = Deployment::embedded(&directory);
    let expected = records(EVENTS, version);
    let umami = ["umami", source.url()];
    let slowly = ["umami", source.url(), "--add-websites", "--rate", "3000"];

    // Killed twice while it appends.
    for reached in [1_500, 4_000] {
        let arguments = files.arguments(&slowly);
        let mut import = deployment.spawn(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        eventually(Duration::from_secs(60), "a part is in the log", async || {
            let count = in_log(&deployment).await;
            if count >= reached { Ok(()) } else { Err(format!("{count} of {reached}")) }
        })
        .await;
        import.kill9();
        import.wait_exit(Duration::from_secs(20)).await;
    }
    let before = in_log(&deployment).await;
    assert!(before < expected, "{before} of {expected} were killed midway");
    // The second time, before it could write down that it had begun.
    let mut state = files.state();
    state["position"] = Value::Null;
    state["offsets"].as_object_mut().unwrap().values_mut().for_each(|offset| *offset = 0.into());
    std::fs::write(files.path("state.json"), state.to_string()).unwrap();

    let (code, report, logs) = files.import(&deployment, &umami).await;
    assert_eq!((code, &report["complete"]), (Some(0), &Value::Bool(true)), "{report} {logs}");
    assert_eq!(report["already_in_log"], before, "{report}");
    assert_eq!(in_log(&deployment).await, expected, "every record is in the log once: {report}");

    let status = project(&deployment).await;
    assert_eq!((status.totals.applied, status.totals.duplicate, status.totals.dead), (expected, 0, 0));
    let counts = assert_equal_rows(&source, deployment.store()).await;
    assert!(counts.iter().map(|(_, rows)| rows).sum::<u64>() >= 20_000, "{counts:?}");

    // Once more: nothing. From the beginning: copies alone. A later event: that one.
    let (code, report, _) = files.import(&deployment, &umami).await;
    assert_eq!((code, report["appended"].as_u64()), (Some(0), Some(0)), "{report}");
    execute(
        &source,
        &format!(
            "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path)
             VALUES (md5('later')::uuid, '{SITE}', md5('session0')::uuid, md5('v')::uuid, '2026-04-01 00:00:00+00', '/');
             UPDATE session_data SET string_value = 'changed', created_at = now() + interval '1 second'
             WHERE session_data_id = md5('property0-7')::uuid"
        ),
    )
    .await;
    let (code, report, _) = files.import(&deployment, &umami).await;
    assert_eq!((code, report["appended"].as_u64()), (Some(0), Some(2)), "{report}");
    // No projector runs.
    let again = ["umami", source.url(), "--from-start", "--unpaced"];
    let (code, report, _) = files.import(&deployment, &again).await;
    assert_eq!((code, report["appended"].as_u64()), (Some(0), Some(expected + 1)), "{report}");
    let status = project(&deployment).await;
    assert_eq!((status.totals.applied, status.totals.duplicate), (expected + 2, expected + 1));
    let again = assert_equal_rows(&source, deployment.store()).await;
    assert_eq!(again.len(), counts.len());
}

/// The rows of Umami's tables as text, in the columns that both databases have.
async fn rows(database: &TestDatabase, common: &TestDatabase) -> Vec<String> {
    let mut rows = Vec::new();
    for table in ["session", "website_event", "event_data", "session_data", "revenue", "session_link"] {
        let columns = |database| {
            let query = format!(
                "SELECT column_name FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name = '{table}' ORDER BY column_name"
            );
            async move { texts(database, &query).await }
        };
        let (mine, theirs) = (columns(database).await, columns(common).await);
        let both: Vec<_> = mine.into_iter().filter(|column| theirs.contains(column)).collect();
        if !both.is_empty() {
            let query = format!("SELECT row('{table}'::text, {}) FROM {table} ORDER BY 1", both.join(", "));
            rows.extend(texts(database, &query).await);
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_of_umami_gives_its_rows_on_postgres() {
    const EVENTS: u32 = 300;
    for version in [
        None,
        Some(UmamiVersion::V3_0),
        Some(UmamiVersion::V3_2),
        Some(UmamiVersion::V3_3),
        Some(UmamiVersion::V3_4),
    ] {
        let source = umami(EVENTS, version).await;
        let target = TestDatabase::create().await;
        version.unwrap_or(UmamiVersion::V3_0).install(&mut target.connect().await).await;
        let (files, directory) = (Files::create(), TestDirectory::create("target"));
        let log = format!("sqlite:{}", directory.path().join("log.db").display());
        let deployment = Deployment::new(log, target.url());
        let (code, report, logs) =
            files.import(&deployment, &["umami", source.url(), "--add-websites"]).await;
        assert_eq!(code, Some(0), "{version:?}: {report} {logs}");
        assert_eq!(report["appended"].as_u64(), Some(records(EVENTS, version)), "{version:?}: {report}");
        project(&deployment).await;
        let (from, to) = (rows(&source, &target).await, rows(&target, &source).await);
        assert!(from.len() > 300, "{}", from.len());
        assert_eq!(from, to, "{version:?}");
        let website = texts(&target, "SELECT name || domain FROM website").await;
        assert_eq!(website, ["sitea.example"], "{version:?}");
        // People: each session with a distinct id is linked, and its properties are traits.
        let people = texts(&target, "SELECT count(*) FROM dashi.profile_link").await;
        assert_eq!(people, [(EVENTS / 10 + SILENT).div_ceil(7).to_string()], "{version:?}");
        let traits = texts(&target, "SELECT count(*) FROM dashi.profile_trait").await;
        assert_ne!(traits, ["0"], "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_umami_damaged_is_imported_as_far_as_it_goes_and_the_rest_is_named_on_postgres() {
    const EVENTS: u32 = 20;
    let source = umami(EVENTS, Some(UmamiVersion::V3_1)).await;
    let orphan = Uuid::from_u128(77);
    execute(
        &source,
        &format!(
            "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type) VALUES
                 (md5('orphan')::uuid, '{SITE}', '{orphan}', md5('v')::uuid, '2026-03-05 00:00:00.123456+00', '/o', 1),
                 (md5('newer type')::uuid, '{SITE}', '{orphan}', md5('v')::uuid, '2026-03-06 00:00:00+00', '/o', 9),
                 (md5('no time')::uuid, '{SITE}', '{orphan}', md5('v')::uuid, NULL, '/o', 1);
             INSERT INTO session_data (session_data_id, website_id, session_id, data_key, string_value, data_type, created_at)
             VALUES (md5('older')::uuid, '{SITE}', md5('session0')::uuid, 'key 0', 'older', 1, '2026-03-01 00:00:00+00'),
                 (md5('of none')::uuid, '{SITE}', md5('nobody')::uuid, 'k', 'v', 1, '2026-03-01 00:00:00+00');
             INSERT INTO event_data (event_data_id, website_id, website_event_id, data_key, string_value, data_type, created_at)
             VALUES (md5('odd leaf')::uuid, '{SITE}', md5('event3')::uuid, 'k', 'v', 6, '2026-03-01 00:00:00+00')"
        ),
    )
    .await;
    let (files, directory) = (Files::create(), TestDirectory::create("target"));
    let deployment = Deployment::embedded(&directory);
    let (code, report, logs) = files.import(&deployment, &["umami", source.url(), "--add-websites"]).await;
    assert_eq!(code, Some(3), "something was left out: {report} {logs}");
    let rejects: Vec<Value> = std::fs::read_to_string(files.path("rejects.ndjson"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut reasons: Vec<String> = rejects
        .iter()
        .map(|reject| {
            format!("{}: {}", reject["table"].as_str().unwrap(), reject["reason"].as_str().unwrap())
        })
        .collect();
    reasons.sort();
    assert_eq!(
        reasons,
        [
            "event_data: data_type is 6; this program knows 1 to 5",
            "website_event: created_at is null",
            "website_event: event_type is 9; this program knows 1 to 5",
        ]
    );
    project(&deployment).await;
    let mut database = integration_tests::Database::open(deployment.store()).await;
    let count = |sql: String| sql;
    for (sql, expected) in [
        (count(format!("SELECT count(*) FROM session WHERE session_id = '{orphan}' AND browser IS NULL")), 1),
        // To the millisecond.
        (count(format!("SELECT created_at FROM session WHERE session_id = '{orphan}'")), 1_772_668_800_123),
        (count("SELECT count(*) FROM session_data WHERE string_value = 'older'".to_owned()), 0),
        (count("SELECT count(*) FROM session_data WHERE data_key = 'k'".to_owned()), 1),
        (count("SELECT count(*) FROM website_event WHERE url_path = '/o'".to_owned()), 1),
    ] {
        assert_eq!(database.count(&sql).await, expected, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websites_that_are_not_there_are_named_and_nothing_is_appended_on_postgres() {
    let source = umami(20, Some(UmamiVersion::V3_1)).await;
    let (files, directory) = (Files::create(), TestDirectory::create("target"));
    let deployment = Deployment::embedded(&directory);
    let (code, _, logs) = files.import(&deployment, &["umami", source.url()]).await;
    assert_eq!(code, Some(2), "{logs}");
    assert!(logs.contains(SITE) && logs.contains("--add-websites") && !logs.contains(LINK), "{logs}");
    assert_eq!(in_log(&deployment).await, 0);
    let other = Uuid::from_u128(9).to_string();
    let (code, _, logs) =
        files.import(&deployment, &["umami", source.url(), "--website", &other, "--from-start"]).await;
    assert!(code == Some(2) && logs.contains(&other), "{logs}");
    // A link alone needs no website.
    let (code, report, _) =
        files.import(&deployment, &["umami", source.url(), "--website", LINK, "--from-start"]).await;
    assert_eq!((code, report["appended"].as_u64()), (Some(0), Some(1)), "{report}");
    let records = read_log(&open_log(deployment.log()).await).await;
    assert!(String::from_utf8_lossy(&records[0].value).contains(r#""type":"imported","source":"umami""#));
    // Not a database of Umami's.
    let empty = TestDatabase::create().await;
    let (code, _, logs) = files.import(&deployment, &["umami", empty.url()]).await;
    assert!(code == Some(1) && logs.contains("no tables of Umami 2.18 or newer"), "{logs}");
}
