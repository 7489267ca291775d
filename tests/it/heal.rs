//! `dashi heal` on databases that Umami damaged: a writer that executes Umami's statements in Umami's order, each
//! committed by itself, makes the damage (docs/umami-contract.md §8, §9.4, §11, §12); queries like the dashboard's (§16)
//! show it before and after.

use std::time::Duration;

use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use integration_tests::{Deployment, TestDatabase, TestDirectory, UmamiVersion};
use jiff::tz::TimeZone;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

const SITE: &str = "11111111-1111-4111-8111-111111111111";
const OTHER_SITE: &str = "22222222-2222-4222-8222-222222222222";
const DELETED_SITE: &str = "33333333-3333-4333-8333-333333333333";

/// The last second of April 2026 and the first of May, UTC.
const APRIL_S: i64 = 1_777_593_599;
const MAY_S: i64 = 1_777_593_600;

/// The state that a page of Umami's tracker keeps between requests.
#[derive(Clone, Copy)]
struct Token {
    visit_id: Uuid,
}

/// A page in a visitor's browser: its website, and the visitor's address and agent.
#[derive(Clone, Copy)]
struct Page {
    website: &'static str,
    address: &'static str,
    agent: &'static str,
    browser: &'static str,
    country: &'static str,
    distinct_id: Option<&'static str>,
    at_s: i64,
}

const PAGE: Page = Page {
    website: SITE,
    address: "192.0.2.1",
    agent: "firefox of one",
    browser: "firefox",
    country: "GB",
    distinct_id: None,
    at_s: MAY_S + 100,
};

struct Site {
    directory: TestDirectory,
    database: TestDatabase,
    deployment: Deployment,
    rules: IdRules,
}

impl Site {
    async fn of(version: UmamiVersion) -> Self {
        let database = TestDatabase::create().await;
        let directory = TestDirectory::create("heal");
        let log = format!("sqlite:{}", directory.path().join("log.db").display());
        let deployment = Deployment::new(log, database.url()).with("TZ", "UTC");
        let rules = IdRules {
            secret: Secret::from_text("umami's own"),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified: IdentifiedSessions::Shared,
        };
        let site = Self { directory, database, deployment, rules };
        let mut connection = site.database.connect().await;
        version.install(&mut connection).await;
        for website in [SITE, OTHER_SITE, DELETED_SITE] {
            let sql = format!("INSERT INTO website (website_id, name) VALUES ('{website}', 'site')");
            run(&mut connection, &sql).await;
        }
        site
    }

    async fn execute(&self, sql: &str) {
        run(&mut self.database.connect().await, sql).await;
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        let query = format!("SELECT t::text FROM ({query}) AS q (t)");
        let mut connection = self.database.connect().await;
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap()
    }

    /// The rows of Umami's tables that healing may touch.
    async fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for table in ["session", "website_event", "session_data", "event_data", "revenue", "website"] {
            rows.extend(self.texts(&format!("SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1")).await);
        }
        rows
    }

    fn ids(&self, page: Page, token: Option<Token>) -> (Uuid, Uuid) {
        let visitor = Visitor {
            source: page.website,
            address: page.address,
            user_agent: page.agent,
            distinct_id: page.distinct_id,
        };
        let session = self.rules.session_id(&visitor, page.at_s * 1_000);
        let visit = self.rules.visit_id(session, page.at_s * 1_000);
        (session, token.map_or(visit, |token| token.visit_id))
    }

    /// Writes the row that Umami writes for any request: the session's, unless there is a token.
    async fn session(&self, page: Page, token: Option<Token>) -> (Uuid, Token) {
        let (session, visit_id) = self.ids(page, token);
        if token.is_none() {
            let name = page.distinct_id.map_or("NULL".to_owned(), |id| format!("'{id}'"));
            self.execute(&format!(
                "INSERT INTO session (session_id, website_id, browser, os, device, screen, language, country, region,
                     city, distinct_id, created_at)
                 VALUES ('{session}', '{}', '{}', 'Linux', 'desktop', '2560x1440', 'en-GB', '{}', 'ENG', 'Town', {name},
                     to_timestamp({})) ON CONFLICT DO NOTHING",
                page.website, page.browser, page.country, page.at_s
            ))
            .await;
        }
        (session, Token { visit_id })
    }

    /// A page view, or an event with a name; returns its id, its session and the token of the answer.
    async fn view(&self, page: Page, token: Option<Token>, name: Option<&str>) -> (Uuid, Uuid, Token) {
        let (session, token) = self.session(page, token).await;
        let event = Uuid::new_v4();
        let (kind, name) = name.map_or((1, "NULL".to_owned()), |name| (2, format!("'{name}'")));
        self.execute(&format!(
            "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type,
                 event_name, hostname)
             VALUES ('{event}', '{}', '{session}', '{}', to_timestamp({}), '/a', {kind}, {name}, 'a.example')",
            page.website, token.visit_id, page.at_s
        ))
        .await;
        (event, session, token)
    }

    async fn data(&self, event: Uuid, page: Page, key: &str, kind: u8, text: &str) {
        let number = if kind == 2 { text } else { "NULL" };
        self.execute(&format!(
            "INSERT INTO event_data (event_data_id, website_id, website_event_id, data_key, data_type, string_value,
                 number_value, created_at)
             VALUES ('{}', '{}', '{event}', '{key}', {kind}, '{text}', {number}, to_timestamp({}))",
            Uuid::new_v4(),
            page.website,
            page.at_s
        ))
        .await;
    }

    /// A property, inserted: two identifies at once both find none.
    async fn property(&self, page: Page, session: Uuid, key: &str, value: &str, at_s: i64) {
        let name = page.distinct_id.map_or("NULL".to_owned(), |id| format!("'{id}'"));
        self.execute(&format!(
            "INSERT INTO session_data (session_data_id, website_id, session_id, data_key, data_type, string_value,
                 distinct_id, created_at)
             VALUES ('{}', '{}', '{session}', '{key}', 1, '{value}', {name}, to_timestamp({at_s}))",
            Uuid::new_v4(),
            page.website
        ))
        .await;
    }

    async fn heal(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let ended = self.deployment.run(&[&["heal", "--json"], arguments].concat()).await;
        let report = serde_json::from_str(&ended.stdout);
        (ended.code, report.unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr)))
    }

    /// Events that the dashboard's lists of sessions, browsers and places lack.
    async fn lacking(&self) -> Vec<String> {
        self.texts(
            "SELECT count(*) FROM website_event AS e
             LEFT JOIN session AS s ON s.session_id = e.session_id AND s.website_id = e.website_id
             JOIN website AS w ON w.website_id = e.website_id
             WHERE s.session_id IS NULL AND w.deleted_at IS NULL",
        )
        .await
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The rows of one session, without its ids.
fn of_session(id: Uuid) -> String {
    format!(
        "SELECT concat_ws(' ', browser, os, device, screen, language, coalesce(trim(country), '-'), coalesce(region, '-'),
             coalesce(city, '-'), coalesce(distinct_id, '-'), extract(epoch FROM created_at)::bigint)
         FROM session WHERE session_id = '{id}'"
    )
}

/// All kinds of damage, in a database of each version.
async fn every_kind_of_damage_is_found_repaired_and_taken_back(version: UmamiVersion) {
    let site = Site::of(version).await;
    // Visits without damage, which nothing may change.
    let (_, _, token) = site.view(PAGE, None, None).await;
    site.view(Page { at_s: MAY_S + 120, ..PAGE }, Some(token), None).await;

    // Each cause of its own: the page keeps its token, and its session's id changes.
    let visitor = |n: usize| {
        let address =
            ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5", "203.0.113.6"][n];
        Page { address, ..PAGE }
    };
    let april = Page { at_s: APRIL_S, ..visitor(0) };
    let (_, _, token) = site.view(april, None, None).await;
    let (_, of_month, _) = site.view(visitor(0), Some(token), None).await;

    let (_, _, token) = site.view(visitor(1), None, None).await;
    let elsewhere = Page { address: "198.51.100.1", country: "FR", ..visitor(1) };
    let (_, of_address, token) = site.view(elsewhere, Some(token), None).await;
    site.view(elsewhere, Some(token), Some("signup")).await;

    let (_, _, token) = site.view(visitor(2), None, None).await;
    let updated = Page { agent: "firefox of tomorrow", ..visitor(2) };
    let (_, of_agent, _) = site.view(updated, Some(token), None).await;

    let (_, _, token) = site.view(visitor(3), None, None).await;
    let known = Page { distinct_id: Some("ada"), ..visitor(3) };
    let (of_id, token) = site.session(known, Some(token)).await;
    site.property(known, of_id, "plan", "pro", MAY_S + 130).await;
    site.view(known, Some(token), None).await;

    let (_, _, token) = site.view(visitor(4), None, None).await;
    let next_site = Page { website: OTHER_SITE, ..visitor(4) };
    let (_, of_website, _) = site.view(next_site, Some(token), None).await;

    let gone = Page { website: DELETED_SITE, ..visitor(5) };
    let (_, _, token) = site.view(gone, None, None).await;
    site.execute(&format!("UPDATE website SET deleted_at = now() WHERE website_id = '{DELETED_SITE}'")).await;
    for table in ["website_event", "session"] {
        site.execute(&format!("DELETE FROM {table} WHERE website_id = '{DELETED_SITE}'")).await;
    }
    let (_, of_deletion, _) = site.view(gone, Some(token), None).await;

    let reset = Page { website: OTHER_SITE, address: "203.0.113.9", ..PAGE };
    let (_, _, token) = site.view(reset, None, None).await;
    site.execute(&format!("UPDATE website SET reset_at = now() WHERE website_id = '{OTHER_SITE}'")).await;
    let own = site.ids(reset, None).0;
    for table in ["website_event", "session"] {
        site.execute(&format!("DELETE FROM {table} WHERE session_id = '{own}'")).await;
    }
    let (_, of_reset, _) = site.view(reset, Some(token), None).await;

    // Identifies at once, where no index prevents it: three rows of one key, two of another.
    let (_, twice, _) = site.view(Page { address: "203.0.113.20", ..PAGE }, None, None).await;
    let has_doubles = version < UmamiVersion::V3_3;
    if has_doubles {
        for (key, value, at_s) in [
            ("plan", "old", 1),
            ("plan", "new", 9),
            ("plan", "older", 0),
            ("seats", "5", 3),
            ("seats", "6", 3),
        ] {
            site.property(PAGE, twice, key, value, MAY_S + 200 + at_s).await;
        }
    }
    site.property(PAGE, twice, "once", "1", MAY_S + 200).await;

    // The database went away between data and revenue; beside it events that give no revenue, and one with its row.
    let (half, _, _) = site.view(PAGE, None, Some("buy")).await;
    site.data(half, PAGE, "revenue", 2, "12.5000").await;
    site.data(half, PAGE, "currency", 1, "EUR").await;
    let (text, _, _) = site.view(PAGE, None, Some("buy")).await;
    site.data(text, PAGE, "revenue", 1, "7.25").await;
    site.data(text, PAGE, "currency", 1, "USD").await;
    for (amount, kind, currency) in
        [("0.0000", 2, "EUR"), ("12,5", 1, "EUR"), ("5.0000", 2, ""), ("true", 3, "EUR")]
    {
        let (event, _, _) = site.view(PAGE, None, Some("buy")).await;
        site.data(event, PAGE, "revenue", kind, amount).await;
        site.data(event, PAGE, "currency", 1, currency).await;
    }
    site.data(Uuid::from_u128(77), PAGE, "stray", 1, "x").await;

    let before = site.rows().await;
    assert_eq!(site.lacking().await, ["7"]);
    let (code, found) = site.heal(&[]).await;
    assert_eq!(code, Some(3), "there is damage, and nobody asked for a repair: {found}");
    assert_eq!(site.rows().await, before, "a report changes nothing");
    let of = |report: &Value, cause: &str| {
        let orphans = &report["orphaned_sessions"][cause];
        ["sessions", "events", "left"].map(|column| orphans[column].as_u64().unwrap_or(0))
    };
    let counted = |report: &Value| {
        assert_eq!(of(report, "month"), [1, 1, 0], "{report}");
        assert_eq!(of(report, "distinct_id"), [1, 1, 0], "{report}");
        assert_eq!(of(report, "address_or_agent"), [2, 3, 0], "{report}");
        assert_eq!(of(report, "website"), [1, 1, 0], "{report}");
        assert_eq!(of(report, "deletion"), [2, 2, 1], "{report}");
        assert_eq!(of(report, "unknown"), [0, 0, 0], "{report}");
        let doubled = [&report["doubled_properties"], &report["locked_sessions"]];
        assert_eq!(doubled, if has_doubles { [3, 1] } else { [0, 0] }, "{report}");
        assert_eq!([&report["missing_revenue"], &report["stray_event_data"]], [2, 1], "{report}");
    };
    counted(&found);
    assert_eq!(found["orphaned_sessions"]["month"]["samples"][0]["session_id"], of_month.to_string());
    assert_eq!(found["repaired"], 0);

    let undo = site.path("undo.ndjson");
    let (code, healed) = site.heal(&["--apply", "--undo-file", &undo, "--batch", "2"]).await;
    assert_eq!((code, &healed["undo_file"]), (Some(0), &Value::from(undo.clone())), "{healed}");
    counted(&healed);
    assert_eq!(healed["repaired"], 6 + if has_doubles { 3 } else { 0 } + 2);
    // Every event of a website that is there has its session.
    assert_eq!(site.lacking().await, ["0"]);
    for (session, expected) in [
        (of_month, format!("firefox Linux desktop 2560x1440 en-GB GB ENG Town - {}", MAY_S + 100)),
        (of_address, format!("firefox Linux desktop 2560x1440 en-GB - - - - {}", MAY_S + 100)),
        (of_agent, format!("firefox Linux desktop 2560x1440 en-GB - - - - {}", MAY_S + 100)),
        (of_id, format!("firefox Linux desktop 2560x1440 en-GB GB ENG Town ada {}", MAY_S + 100)),
        (of_website, format!("firefox Linux desktop 2560x1440 en-GB GB ENG Town - {}", MAY_S + 100)),
        (of_reset, format!("- - - - {}", MAY_S + 100)),
    ] {
        assert_eq!(site.texts(&of_session(session)).await, [expected], "{session}");
    }
    assert!(site.texts(&of_session(of_deletion)).await.is_empty(), "the website is no more");
    if has_doubles {
        let of_twice = format!(
            "SELECT concat(data_key, ' ', string_value) FROM session_data WHERE session_id = '{twice}' ORDER BY 1"
        );
        let left = site.texts(&of_twice).await;
        assert_eq!(
            (left.len(), &left[..2]),
            (3, &["once 1".to_owned(), "plan new".to_owned()][..]),
            "{left:?}"
        );
        assert!(left[2].starts_with("seats "), "{left:?}");
    }
    let revenue = "SELECT concat_ws(' ', event_name, currency, revenue) FROM revenue ORDER BY 1";
    assert_eq!(site.texts(revenue).await, ["buy EUR 12.5000", "buy USD 7.2500"]);

    // A second run: nothing is left to do.
    let after = site.rows().await;
    let (code, again) = site.heal(&["--apply", "--undo-file", &site.path("again.ndjson")]).await;
    assert_eq!((code, &again["repaired"]), (Some(0), &Value::from(0)), "{again}");
    assert_eq!(site.rows().await, after);
    assert_eq!(site.heal(&[]).await.0, Some(0), "sound but for what is left");

    // A row that was changed since stays when the rest is taken back; then all of it.
    let (_, back) = site.heal(&["--undo", &undo]).await;
    assert_eq!(back["taken_back"], healed["repaired"]);
    assert_eq!(site.rows().await, before);
    assert_eq!(site.heal(&["--undo", &undo]).await.1["taken_back"], 0, "safe to repeat");
    site.heal(&["--apply", "--undo-file", &site.path("third.ndjson")]).await;
    site.execute(&format!("UPDATE session SET city = 'Elsewhere' WHERE session_id = '{of_month}'")).await;
    let (_, back) = site.heal(&["--undo", &site.path("third.ndjson")]).await;
    assert_eq!(back["taken_back"], healed["repaired"].as_u64().unwrap() - 1);
    assert_eq!(site.texts(&of_session(of_month)).await.len(), 1);
}

macro_rules! on_versions {
    ($($name:ident: $version:ident,)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            every_kind_of_damage_is_found_repaired_and_taken_back(UmamiVersion::$version).await;
        }
    )* };
}

on_versions! {
    damage_in_a_database_of_3_0_is_found_repaired_and_taken_back: V3_0,
    damage_in_a_database_of_3_1_is_found_repaired_and_taken_back: V3_1,
    damage_in_a_database_of_3_2_is_found_repaired_and_taken_back: V3_2,
    damage_in_a_database_of_3_3_is_found_repaired_and_taken_back: V3_3,
    damage_in_a_database_of_3_4_is_found_repaired_and_taken_back: V3_4,
}

/// Orphans by the thousand, at random ids.
async fn orphans(site: &Site, count: u32) {
    site.execute(&format!(
        "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path)
         SELECT gen_random_uuid(), '{SITE}', gen_random_uuid(), gen_random_uuid(),
             to_timestamp({MAY_S} + n), '/a' FROM generate_series(1, {count}) AS n"
    ))
    .await;
}

/// It ended in the middle and was run again; the undo files together take all of it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_dies_midway_goes_on_and_can_be_taken_back() {
    let site = Site::of(UmamiVersion::V3_1).await;
    orphans(&site, 3_000).await;
    let before = site.rows().await;
    site.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF (SELECT count(*) FROM session) >= 1000 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER die BEFORE INSERT ON session FOR EACH ROW EXECUTE FUNCTION die()",
    )
    .await;
    let first = site.path("first.ndjson");
    let ended = site.deployment.run(&["heal", "--apply", "--batch", "100", "--undo-file", &first]).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("inserting rows of sessions"), "{}", ended.stderr);
    let inserted: u64 = site.texts("SELECT count(*) FROM session").await[0].parse().unwrap();
    assert!((1..=1_000).contains(&inserted), "{inserted}");
    site.execute("DROP TRIGGER die ON session").await;
    let second = site.path("second.ndjson");
    let (code, rest) = site.heal(&["--apply", "--batch", "100", "--undo-file", &second]).await;
    assert_eq!((code, &rest["repaired"]), (Some(0), &Value::from(3_000 - inserted)), "{rest}");
    assert_eq!(site.lacking().await, ["0"]);
    for undo in [&second, &first] {
        site.heal(&["--undo", undo]).await;
    }
    assert_eq!(site.rows().await, before);
}

/// A process that is killed leaves whole batches, each of which the undo file can take back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_is_killed_has_the_way_back_of_all_that_it_did() {
    let site = Site::of(UmamiVersion::V3_1).await;
    orphans(&site, 5_000).await;
    let before = site.rows().await;
    let undo = site.path("undo.ndjson");
    let mut killed = site.deployment.spawn(&["heal", "--apply", "--batch", "10", "--undo-file", &undo]);
    integration_tests::eventually(Duration::from_secs(60), "some rows are repaired", async || {
        site.texts("SELECT count(*) FROM session").await != ["0"]
    })
    .await;
    killed.kill9();
    killed.wait_exit(Duration::from_secs(10)).await;
    let inserted: u64 = site.texts("SELECT count(*) FROM session").await[0].parse().unwrap();
    assert!((1..5_000).contains(&inserted), "{inserted}");
    assert_eq!(site.heal(&["--undo", &undo]).await.1["taken_back"], inserted);
    assert_eq!(site.rows().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_store_or_file_is_refused_and_nothing_is_changed() {
    let site = Site::of(UmamiVersion::V3_1).await;
    orphans(&site, 3).await;
    let before = site.rows().await;
    let refused = async |deployment: &Deployment, arguments: &[&str], reason: &str| {
        let ended = deployment.run(&[&["heal"], arguments].concat()).await;
        assert!(matches!(ended.code, Some(1 | 2)), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(reason), "{arguments:?}: {}", ended.stderr);
    };
    let there = site.path("there");
    std::fs::write(&there, "not an undo file\n").unwrap();
    refused(&site.deployment, &["--apply", "--undo-file", &there], "is not overwritten").await;
    refused(&site.deployment, &["--undo", &there], "no undo file").await;
    refused(&site.deployment, &["--undo", &site.path("nowhere")], "cannot be read").await;
    refused(&site.deployment, &["--undo-file", &site.path("x")], "--apply").await;
    let of_other = site.path("of_other");
    std::fs::write(&of_other, "{\"dashi_undo\":1,\"store\":\"postgres://elsewhere/db\",\"began_at_ms\":1}\n")
        .unwrap();
    refused(&site.deployment, &["--undo", &of_other], "postgres://elsewhere/db").await;
    let file = site.path("store.db");
    std::fs::write(&file, "").unwrap();
    refused(&site.deployment.with_store(&format!("sqlite:{file}")), &[], "PostgreSQL").await;
    assert_eq!(site.rows().await, before);
}
