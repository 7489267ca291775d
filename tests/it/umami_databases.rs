//! Dashi on the databases of Umami's versions: it writes what each of them holds, and changes nothing that is not its
//! own.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use integration_tests::http::{self, Answer};
use integration_tests::setup::AGENT;
use integration_tests::umami::catalogue_dump;
use integration_tests::{Deployment, Server, Setup, TestDatabase, TestDirectory, UmamiVersion, eventually};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(60);

const SECRET: &str = "a secret of the databases";
const ADDRESS: &str = "192.0.2.7";

/// A database of a version, with a website in it, and Dashi's log beside it.
struct Site {
    // Before the database: fields are dropped in order.
    _directory: TestDirectory,
    database: TestDatabase,
    deployment: Deployment,
    schema: &'static str,
}

impl Site {
    async fn of(version: UmamiVersion) -> Self {
        Self::in_schema(version, "public").await
    }

    async fn in_schema(version: UmamiVersion, schema: &'static str) -> Self {
        let database = TestDatabase::create().await;
        let directory = TestDirectory::create("umami");
        let log = format!("sqlite:{}", directory.path().join("log.db").display());
        let parameter = if schema == "public" { String::new() } else { format!("?schema={schema}") };
        let deployment =
            Deployment::new(log, format!("{}{parameter}", database.url())).with("APP_SECRET", SECRET);
        let site = Self { _directory: directory, database, deployment, schema };
        let mut connection = site.connect().await;
        run(&mut connection, &format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await;
        version.install(&mut connection).await;
        let website = site.deployment.website();
        run(&mut connection, &format!("INSERT INTO website (website_id, name) VALUES ('{website}', 'site')"))
            .await;
        site
    }

    /// A superuser's connection with the search path that Umami has.
    async fn connect(&self) -> PgConnection {
        let mut connection = self.database.connect().await;
        run(&mut connection, &format!("SET search_path = {}", self.schema)).await;
        connection
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        let query = format!("SELECT t::text FROM ({query}) AS q (t)");
        let mut connection = self.connect().await;
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap()
    }

    async fn dump(&self) -> Vec<String> {
        catalogue_dump(&mut self.connect().await, self.schema).await
    }

    async fn send(&self, server: &Server, kind: &str, payload: Value, token: Option<&str>) -> Answer {
        let mut payload = payload;
        payload["website"] = json!(self.deployment.website());
        payload["ip"].is_null().then(|| payload["ip"] = json!(ADDRESS));
        let mut headers = vec![("user-agent", AGENT)];
        headers.extend(token.map(|token| ("x-umami-cache", token)));
        let body = json!({ "type": kind, "payload": payload });
        http::post_json(&format!("{}/api/send", server.url()), &body, &headers).await.unwrap()
    }

    async fn accept(&self, server: &Server, kind: &str, payload: Value, token: Option<&str>) -> Value {
        let answer = self.send(server, kind, payload, token).await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        answer.json()
    }

    fn session(&self, distinct_id: &str, identified: IdentifiedSessions) -> Uuid {
        let rules = IdRules {
            secret: Secret::from_text(SECRET),
            rotation: SaltRotation::Month,
            zone: TimeZone::UTC,
            identified,
        };
        let visitor = Visitor {
            source: self.deployment.website(),
            address: ADDRESS,
            user_agent: AGENT,
            distinct_id: Some(distinct_id),
        };
        rules.session_id(&visitor, MAY_S * 1_000)
    }
}

/// When all events happen: the first of May 2026, in s since 1970.
const MAY_S: i64 = 1_777_593_600;

async fn run(connection: &mut PgConnection, sql: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn claims(answer: &Value) -> String {
    let claims = answer["cache"].as_str().unwrap().split('.').nth(1).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// One event of every kind, with everything that a version may treat in its own way.
async fn everything_is_written_and_nothing_is_changed(site: &Site, version: UmamiVersion) {
    let (release, formula, identified) = match version {
        UmamiVersion::V3_0 => ("3.0", "shared", IdentifiedSessions::Shared),
        UmamiVersion::V3_1 => ("3.1", "shared", IdentifiedSessions::Shared),
        UmamiVersion::V3_2 => ("3.2", "shared", IdentifiedSessions::Shared),
        UmamiVersion::V3_3 => ("3.3", "linked", IdentifiedSessions::Linked),
        UmamiVersion::V3_4 => ("3.4 or newer", "per-device", IdentifiedSessions::PerDevice),
    };
    let is_linked = identified == IdentifiedSessions::Linked;
    let has_type = version >= UmamiVersion::V3_3;
    let user = site.session("user-1", identified);
    let umamis_row = Uuid::from_u128(900);
    run(
        &mut site.connect().await,
        &format!(
            "INSERT INTO session_data (session_data_id, website_id, session_id, data_key, data_type, string_value,
                 created_at) VALUES ('{umamis_row}', '{}', '{user}', 'plan', 1, 'umami''s', now())",
            site.deployment.website()
        ),
    )
    .await;
    let before = site.dump().await;
    assert!(before.iter().any(|line| line.starts_with("migration")), "{before:?}");

    let mut server = site.deployment.start("serve").ready().await;
    let page =
        json!({ "url": "/a?utm_source=news", "title": "A", "hostname": "a.example", "timestamp": MAY_S });
    let with = |more: Value| {
        let mut payload = page.clone();
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        payload
    };
    let anonymous = site.accept(&server, "event", page.clone(), None).await;
    let data = json!({ "items": [1, 2], "at": "2026-05-01T00:00:00.000Z", "total": 12.5 });
    site.accept(&server, "event", with(json!({ "name": "order", "tag": "t", "data": data })), None).await;
    let sale = json!({ "name": "sale", "data": { "revenue": "12.5", "currency": "EUR" } });
    site.accept(&server, "event", with(sale), None).await;
    let first = json!({ "id": "user-1", "data": { "plan": "free", "seats": 5 } });
    let known = site.accept(&server, "identify", with(first), None).await;
    site.accept(&server, "identify", with(json!({ "id": "user-1", "data": { "plan": "pro" } })), None).await;
    let other = json!({ "id": "user-2", "data": { "plan": "free" } });
    site.accept(&server, "identify", with(other), None).await;
    site.accept(&server, "performance", with(json!({ "lcp": 1200.25, "cls": 0.12345 })), None).await;
    let status = site.deployment.settled().await;
    let totals = status.totals;
    assert_eq!((totals.in_log, totals.applied, totals.duplicate, totals.dead), (7, 7, 0, 0), "{status:?}");

    // The ids and the tokens are the version's.
    assert_eq!(known["sessionId"], user.to_string());
    assert_eq!(anonymous["sessionId"], site.session("", identified).to_string());
    assert_eq!(claims(&anonymous).ends_with(r#","type":"cache"}"#), has_type, "{}", claims(&anonymous));
    assert_eq!(claims(&anonymous).contains("type"), has_type, "{}", claims(&anonymous));

    let events =
        "SELECT concat_ws(' ', event_type, event_name, url_path, utm_source, page_title, hostname, tag)
                  FROM website_event ORDER BY 1";
    let mut expected =
        vec!["1 /a news A a.example", "2 order /a news A a.example t", "2 sale /a news A a.example"];
    if version >= UmamiVersion::V3_1 {
        expected.push("5 /a A a.example");
        let vitals = "SELECT concat_ws(' ', lcp, cls) FROM website_event WHERE event_type = 5";
        assert_eq!(site.texts(vitals).await, ["1200.3 0.1235"]);
    }
    assert_eq!(site.texts(events).await, expected);
    let performances = i64::from(version == UmamiVersion::V3_0);
    let applied = "SELECT count(*) FROM dashi.identify";
    assert_eq!(site.texts(applied).await, [(3 + performances).to_string()]);
    let data = "SELECT concat_ws(' ', data_key, data_type, string_value) FROM event_data ORDER BY 1";
    assert_eq!(
        site.texts(data).await,
        [
            "at 4 2026-05-01T00:00:00.000Z",
            "currency 1 EUR",
            "items 5 [1,2]",
            "revenue 1 12.5",
            "total 2 12.5000"
        ]
    );
    let revenue = "SELECT concat_ws(' ', event_name, currency, revenue) FROM revenue";
    assert_eq!(site.texts(revenue).await, ["sale EUR 12.5000"]);
    let properties =
        "SELECT concat_ws(' ', distinct_id, data_key, string_value) FROM session_data ORDER BY 1";
    let kept = format!("SELECT string_value FROM session_data WHERE session_data_id = '{umamis_row}'");
    let sessions = "SELECT concat_ws(' ', coalesce(distinct_id, '-'), browser) FROM session ORDER BY 1";
    if is_linked {
        // One device is one session, whoever it was said to be: its properties and its name are the last said.
        assert_eq!(site.texts(properties).await, ["user-1 seats 5.0000", "user-2 plan free"]);
        assert_eq!(site.texts(&kept).await, ["free"], "the row that Umami made keeps its id");
        assert_eq!(site.texts(sessions).await, ["user-2 chrome"]);
    } else {
        assert_eq!(
            site.texts(properties).await,
            ["user-1 plan pro", "user-1 seats 5.0000", "user-2 plan free"]
        );
        assert_eq!(site.texts(&kept).await, ["pro"], "the row that Umami made keeps its id");
        assert_eq!(site.texts(sessions).await, ["- chrome", "user-1 chrome", "user-2 chrome"]);
    }
    if version >= UmamiVersion::V3_3 {
        let links = format!(
            "SELECT concat_ws(' ', distinct_id, session_id = '{user}', extract(epoch FROM created_at)::bigint)
             FROM session_link ORDER BY 1"
        );
        let of_another = if is_linked { 't' } else { 'f' };
        let expected = [format!("user-1 t {MAY_S}"), format!("user-2 {of_another} {MAY_S}")];
        assert_eq!(site.texts(&links).await, expected);
    }

    assert_eq!(server.dashi.terminate().await, Some(0));
    let after = site.dump().await;
    let made: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    assert!(made.is_empty() && gone.is_empty(), "made {made:#?}, gone {gone:#?}");

    // What was recognised is said once, with the formula and its reason.
    let lines = server.dashi.stderr();
    let recognised: Vec<_> =
        lines.lines().filter(|line| line.contains("recognised Umami's tables")).collect();
    assert_eq!(recognised.len(), 1, "{lines}");
    assert!(recognised[0].contains(&format!(r#""release":"{release}""#)), "{recognised:?}");
    let decided: Vec<_> = lines.lines().filter(|line| line.contains("identified_sessions")).collect();
    assert!(decided.len() == 1 && decided[0].contains(&format!("\"{formula}\"")), "{decided:?}");
    a_replay_gives_the_same_rows(site, version).await;

    let shown = site.deployment.run(&["config", "show", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let in_force = &shown["ingest.identified_sessions"];
    assert_eq!(in_force["value"], "auto");
    let reason = format!("{formula}, for the database is one of Umami {release}: ");
    assert!(in_force["in_force"].as_str().unwrap().starts_with(&reason), "{in_force}");
}

/// But for the property that Umami had made, whose row keeps its id.
async fn a_replay_gives_the_same_rows(site: &Site, version: UmamiVersion) {
    let other = TestDatabase::create().await;
    version.install(&mut other.connect().await).await;
    let replayed = site.deployment.run(&["replay", "--into", other.url()]).await;
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    let compared = site.deployment.run(&["compare", "--json", site.deployment.store(), other.url()]).await;
    let compared: Value = serde_json::from_str(&compared.stdout).unwrap();
    for table in compared["tables"].as_array().unwrap() {
        assert_eq!(table["rows"][0], table["rows"][1], "{table}");
        assert_eq!(table["equal"] == true, table["table"] != "session_data", "{table}");
    }
    if version >= UmamiVersion::V3_3 {
        let links = "SELECT l::text FROM session_link AS l ORDER BY 1";
        let there: Vec<String> =
            sqlx::query_scalar(links).fetch_all(&mut other.connect().await).await.unwrap();
        assert_eq!(there, site.texts(links).await);
    }
}

#[tokio::test]
async fn on_3_0() {
    let site = Site::of(UmamiVersion::V3_0).await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_0).await;
}

#[tokio::test]
async fn on_3_1() {
    let site = Site::of(UmamiVersion::V3_1).await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_1).await;
}

#[tokio::test]
async fn on_3_2() {
    let site = Site::of(UmamiVersion::V3_2).await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_2).await;
}

#[tokio::test]
async fn on_3_3() {
    let site = Site::of(UmamiVersion::V3_3).await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_3).await;
}

#[tokio::test]
async fn on_3_4() {
    let site = Site::of(UmamiVersion::V3_4).await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_4).await;
}

#[tokio::test]
async fn in_a_schema_of_its_own() {
    let site = Site::in_schema(UmamiVersion::V3_4, "analytics").await;
    everything_is_written_and_nothing_is_changed(&site, UmamiVersion::V3_4).await;
    assert_eq!(site.texts("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, ["0"]);
}

/// A formula that is set and is not the database's is used, and logged.
#[tokio::test]
async fn a_formula_that_is_set_is_used_and_told_when_it_is_not_umamis() {
    let site = Site::of(UmamiVersion::V3_4).await;
    let deployment = site.deployment.clone().with("DASHI_INGEST_IDENTIFIED_SESSIONS", "shared");
    let mut server = deployment.start("serve").ready().await;
    let user = json!({ "url": "/", "id": "user-1", "timestamp": MAY_S });
    let answer = site.accept(&server, "event", user, None).await;
    assert_eq!(answer["sessionId"], site.session("user-1", IdentifiedSessions::Shared).to_string());
    assert!(!claims(&answer).contains("type"));
    eventually(SOON, "it is logged", async || {
        let lines = server.dashi.stderr();
        lines
            .lines()
            .any(|line| line.contains(r#""set":"shared","umami":"per-device""#) && line.contains("WARN"))
    })
    .await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// After an upgrade of Umami a start writes for the new tables; what was applied before is not applied again.
#[tokio::test]
async fn a_start_after_an_upgrade_goes_on_with_the_new_tables() {
    let site = Site::of(UmamiVersion::V3_0).await;
    let mut formulas = Vec::new();
    for (n, version) in UmamiVersion::ALL.into_iter().enumerate() {
        if version > UmamiVersion::V3_0 {
            version.migrate(&mut site.connect().await).await;
        }
        let mut server = site.deployment.start("serve").ready().await;
        let vitals = json!({ "messageId": "once", "url": "/", "lcp": 1, "timestamp": MAY_S });
        site.accept(&server, "performance", vitals, None).await;
        let user = json!({ "id": "user-1", "timestamp": MAY_S, "data": { "version": n } });
        let answer = site.accept(&server, "identify", user, None).await;
        let formula = [IdentifiedSessions::Shared, IdentifiedSessions::Linked, IdentifiedSessions::PerDevice]
            .into_iter()
            .find(|formula| answer["sessionId"] == site.session("user-1", *formula).to_string());
        formulas.push(formula.unwrap());
        site.deployment.settled().await;
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
    let shared = IdentifiedSessions::Shared;
    let expected = [shared, shared, shared, IdentifiedSessions::Linked, IdentifiedSessions::PerDevice];
    assert_eq!(formulas, expected);
    let totals = site.deployment.settled().await.totals;
    // The copies of the performance event are known to be copies, though no row of it is in Umami's table.
    assert_eq!((totals.in_log, totals.applied, totals.duplicate, totals.dead), (10, 6, 4, 0));
    assert_eq!(site.texts("SELECT count(*) FROM website_event WHERE event_type = 5").await, ["0"]);
    let values = site.texts("SELECT string_value FROM session_data ORDER BY created_at, 1").await;
    assert_eq!(values, ["2.0000", "3.0000", "4.0000"]);
}

/// A role that may write Umami's tables and nothing else, once with the right to make schemas, once with a schema that
/// somebody made for it.
#[tokio::test]
async fn a_role_that_may_make_nothing_in_umamis_schema_suffices() {
    for with_schema in [false, true] {
        let site = Site::of(UmamiVersion::V3_3).await;
        let role = format!("dashi_{}", Uuid::now_v7().simple());
        let mut connection = site.connect().await;
        let tables =
            "website, session, website_event, event_data, session_data, revenue, session_link, link, pixel,
                      session_replay";
        run(
            &mut connection,
            &format!(
                "CREATE ROLE {role} LOGIN;
                 REVOKE CREATE ON SCHEMA public FROM PUBLIC;
                 GRANT SELECT, INSERT, UPDATE ON {tables} TO {role};"
            ),
        )
        .await;
        let right = if with_schema {
            format!("CREATE SCHEMA dashi AUTHORIZATION {role}")
        } else {
            format!("GRANT CREATE ON DATABASE {} TO {role}", site.database.name())
        };
        run(&mut connection, &right).await;
        let (_, rest) = site.database.url().split_once('@').unwrap();
        let deployment = site.deployment.with_store(&format!("postgres://{role}@{rest}"));
        let mut as_role = PgConnection::connect(deployment.store()).await.unwrap();
        let refused = sqlx::raw_sql("CREATE TABLE public.x ()").execute(&mut as_role).await;
        assert!(refused.is_err(), "the role may make tables");
        as_role.close().await.unwrap();
        let before = site.dump().await;

        let mut server = deployment.start("serve").ready().await;
        let user = json!({ "id": "user-1", "timestamp": MAY_S, "data": { "plan": "pro" } });
        site.accept(&server, "identify", user, None).await;
        site.accept(&server, "event", json!({ "url": "/", "timestamp": MAY_S }), None).await;
        let totals = deployment.settled().await.totals;
        assert_eq!((totals.in_log, totals.applied), (2, 2));
        assert_eq!(site.texts("SELECT count(*) FROM website_event").await, ["1"]);
        assert_eq!(site.texts("SELECT distinct_id FROM session_link").await, ["user-1"]);
        assert_eq!(server.dashi.terminate().await, Some(0));
        // A start on tables that are there needs no right to make any.
        let mut again = deployment.start("serve").ready().await;
        assert_eq!(again.dashi.terminate().await, Some(0));
        assert_eq!(site.dump().await, before);
        run(&mut connection, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
}

#[tokio::test]
async fn tables_older_than_those_of_3_0_are_named_and_nothing_is_made() {
    let site = Site::of(UmamiVersion::V3_0).await;
    let mut connection = site.connect().await;
    run(&mut connection, "DROP TABLE link; ALTER TABLE website_event DROP COLUMN tag").await;
    let missing = "the column website_event.tag, the table link missing";
    let added = site.deployment.run(&["website", "add", "--name", "other"]).await;
    assert_eq!(added.code, Some(1), "{}", added.stderr);
    assert!(added.stderr.contains(missing) && added.stderr.contains("Umami 3.0"), "{}", added.stderr);

    let mut server = site.deployment.start("serve");
    eventually(SOON, "it says what is missing", async || {
        assert!(server.dashi.is_running(), "{}", server.dashi.stderr());
        server.dashi.stderr().contains(missing)
    })
    .await;
    let ready = http::get(&format!("{}/health/ready", server.url())).await.unwrap();
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert_ne!(ready.json()["checks"]["session_ids"], "ok", "{}", ready.text());
    let deferred = site.send(&server, "event", json!({ "url": "/", "id": "user-1" }), None).await;
    assert_eq!(deferred.status, 503, "{}", deferred.text());
    assert!(deferred.header("retry-after").is_some());
    assert_eq!(site.texts("SELECT count(*) FROM pg_namespace WHERE nspname = 'dashi'").await, ["0"]);

    // Umami brings its tables up to date; nobody has to start Dashi again.
    run(
        &mut connection,
        "CREATE TABLE link (link_id uuid PRIMARY KEY); ALTER TABLE website_event ADD tag varchar(50)",
    )
    .await;
    let url = server.url();
    server.dashi.wait_ready(&url).await;
    site.accept(&server, "event", json!({ "url": "/", "id": "user-1" }), None).await;
    assert_eq!(site.deployment.settled().await.totals.applied, 1);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// A token of another session: up to 3.2 its visit goes on, from 3.3 on a new one begins.
#[tokio::test]
async fn with_ids_per_device_a_visit_ends_with_its_session() {
    for (setting, goes_on) in [("per-device", false), ("shared", true), ("auto", true)] {
        let running = Setup::Embedded.start(&[("DASHI_INGEST_IDENTIFIED_SESSIONS", setting)]).await;
        let visitor = |ip: &str, id: Option<&str>| json!({ "url": "/", "ip": ip, "userAgent": AGENT, "id": id.unwrap_or_default() });
        let first = running.accept("event", &visitor("192.0.2.1", None)).await;
        let token = first["cache"].as_str().unwrap();
        let with_token = async |payload: Value| {
            let body = integration_tests::setup::submission("event", &payload).to_string();
            let answer = running.post("/api/send", body, &[("x-umami-cache", token)]).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()
        };
        let same = with_token(visitor("192.0.2.1", None)).await;
        assert_eq!((&same["visitId"], &same["sessionId"]), (&first["visitId"], &first["sessionId"]));
        for other in [visitor("192.0.2.2", None), visitor("192.0.2.1", Some("user-1"))] {
            let moved = with_token(other).await;
            assert_ne!(moved["sessionId"], first["sessionId"], "{setting}");
            assert_eq!(moved["visitId"] == first["visitId"], goes_on, "{setting}");
        }
        // On two devices the same person is one session or two.
        let devices = [visitor("192.0.2.1", Some("user-1")), visitor("192.0.2.2", Some("user-1"))];
        let [here, there] =
            [running.accept("event", &devices[0]).await, running.accept("event", &devices[1]).await];
        assert_eq!(here["sessionId"] == there["sessionId"], goes_on, "{setting}");
        assert_eq!(claims(&here).contains(r#""type":"cache""#), !goes_on, "{setting}");
        running.applied(6).await;
    }
}

/// The differences between the versions' rows and answers for the same requests.
#[derive(Clone, Copy)]
struct Differences {
    /// From 3.2 on: dates without milliseconds.
    has_dates: bool,
    /// From 3.3 on: texts of any length, no formulas, no self-referrals, the root keeps its slash.
    is_3_3: bool,
    /// From 3.4 on: 0 is a time, ids are cut in UTF-16 units.
    is_3_4: bool,
}

impl Differences {
    fn of(version: UmamiVersion) -> Self {
        Self {
            has_dates: version >= UmamiVersion::V3_2,
            is_3_3: version >= UmamiVersion::V3_3,
            is_3_4: version >= UmamiVersion::V3_4,
        }
    }

    /// Type and payload of each request, and whether it is taken.
    fn requests(self) -> Vec<(&'static str, Value, bool)> {
        let dates = json!({ "at": "2026-05-01T08:20:30Z", "at2": "2026-05-01T08:20:30+02:00" });
        let long = |field: &str, length: usize| {
            let mut payload = json!({ "url": "/long", "hostname": "rec.example" });
            payload[field] = json!("x".repeat(length));
            ("event", payload, self.is_3_3)
        };
        let formula = |field: &str, text: &str| {
            let mut payload = json!({ "url": "/formula", "hostname": "rec.example" });
            payload[field] = json!(text);
            ("event", payload, !self.is_3_3)
        };
        let from = |url: &str, referrer: &str| {
            ("event", json!({ "url": url, "hostname": "rec.example", "referrer": referrer }), true)
        };
        vec![
            ("event", json!({ "url": "/when", "name": "when", "data": dates }), true),
            ("identify", json!({ "data": dates }), true),
            long("hostname", 101),
            long("screen", 12),
            long("language", 36),
            long("name", 51),
            long("tag", 51),
            formula("name", "=1"),
            formula("tag", "@x"),
            from("/self", "https://rec.example/x"),
            from("/pathref", "/x?y=1"),
            from("/other", "https://www.other.example/x"),
            ("event", json!({ "url": "/zero", "timestamp": 0 }), true),
            ("event", json!({ "url": "/" }), true),
            ("identify", json!({ "id": "😀".repeat(26), "ip": "192.0.2.99" }), true),
        ]
    }

    /// `url_path referrer_domain`, "-" for null, in their order.
    fn referrers(self) -> Vec<String> {
        let own = if self.is_3_3 { "-" } else { "rec.example" };
        vec!["/other other.example".to_owned(), format!("/pathref {own}"), format!("/self {own}")]
    }

    /// `data_key data_type string_value` of both dates.
    fn dates(self) -> Vec<String> {
        if self.has_dates {
            vec!["at 4 2026-05-01T08:20:30.000Z".to_owned(), "at2 4 2026-05-01T06:20:30.000Z".to_owned()]
        } else {
            vec!["at 1 2026-05-01T08:20:30Z".to_owned(), "at2 1 2026-05-01T08:20:30+02:00".to_owned()]
        }
    }

    fn id_length(self) -> usize {
        if self.is_3_4 { 25 } else { 26 }
    }
}

#[tokio::test]
async fn the_same_requests_give_each_versions_answers_and_rows() {
    for version in UmamiVersion::ALL {
        let site = Site::of(version).await;
        let deployment = site.deployment.clone().with("REMOVE_TRAILING_SLASH", "1");
        let mut server = deployment.start("serve").ready().await;
        let differences = Differences::of(version);
        let mut taken = 0;
        for (kind, payload, is_taken) in differences.requests() {
            let answer = site.send(&server, kind, payload.clone(), None).await;
            assert_eq!(answer.status == 200, is_taken, "{version:?}: {payload}: {}", answer.text());
            assert!([200, 400].contains(&answer.status), "{version:?}: {payload}");
            taken += u64::from(is_taken);
        }
        let totals = deployment.settled().await.totals;
        assert_eq!((totals.in_log, totals.applied, totals.dead), (taken, taken, 0), "{version:?}");

        let referrers = "SELECT concat_ws(' ', url_path, coalesce(referrer_domain, '-')) FROM website_event
                         WHERE url_path IN ('/self', '/pathref', '/other') ORDER BY 1";
        assert_eq!(site.texts(referrers).await, differences.referrers(), "{version:?}");
        for table in ["event_data", "session_data"] {
            let dates = format!(
                "SELECT concat_ws(' ', data_key, data_type, string_value) FROM {table}
                 WHERE (date_value IS NOT NULL) = {} ORDER BY 1",
                differences.has_dates
            );
            assert_eq!(site.texts(&dates).await, differences.dates(), "{version:?}");
        }
        let root = if differences.is_3_3 { "/" } else { "" };
        let roots = format!("SELECT count(*) FROM website_event WHERE url_path = '{root}'");
        assert_eq!(site.texts(&roots).await, ["1"], "{version:?}");
        let zero =
            "SELECT extract(epoch FROM created_at)::bigint = 0 FROM website_event WHERE url_path = '/zero'";
        assert_eq!(site.texts(zero).await, [differences.is_3_4.to_string()], "{version:?}");
        let ids = "SELECT char_length(distinct_id) FROM session WHERE distinct_id IS NOT NULL";
        assert_eq!(site.texts(ids).await, [differences.id_length().to_string()], "{version:?}");
        if differences.is_3_3 {
            let widths = "SELECT concat_ws(' ', max(char_length(hostname)), max(char_length(event_name)),
                              max(char_length(tag))) FROM website_event WHERE url_path = '/long'";
            assert_eq!(site.texts(widths).await, ["100 50 50"], "{version:?}");
        }
        assert_eq!(server.dashi.terminate().await, Some(0));

        // The rules are the tables', in a replay too; and a file has them if they are set.
        let other = TestDatabase::create().await;
        version.install(&mut other.connect().await).await;
        let file = format!("sqlite:{}", site._directory.path().join("replayed.store").display());
        let name = ["3.0", "3.1", "3.2", "3.3", "3.4"][version as usize];
        let pinned = deployment.clone().with("DASHI_UMAMI_RELEASE", name);
        for (deployment, into) in [(&deployment, other.url().to_owned()), (&pinned, file)] {
            let replayed = deployment.run(&["replay", "--into", &into]).await;
            assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
            let compared = deployment.run(&["compare", "--json", deployment.store(), &into]).await;
            assert_eq!(compared.code, Some(0), "{version:?} into {into}: {}", compared.stdout);
        }
    }
}

/// A file has no tables of Umami's: the setting says whose rules it has.
#[tokio::test]
async fn a_file_has_the_rules_of_the_version_that_is_set() {
    for (version, set) in [
        (UmamiVersion::V3_1, "auto"),
        (UmamiVersion::V3_0, "3.0"),
        (UmamiVersion::V3_2, "3.2"),
        (UmamiVersion::V3_3, "3.3"),
        (UmamiVersion::V3_4, "3.4"),
    ] {
        let running = Setup::Embedded.start(&[("DASHI_UMAMI_RELEASE", set)]).await;
        let differences = Differences::of(version);
        let mut taken = 0;
        for (kind, payload, is_taken) in differences.requests() {
            let body = integration_tests::setup::submission(kind, &payload).to_string();
            let answer = running.post("/api/send", body, &[]).await;
            assert_eq!(answer.status == 200, is_taken, "{set}: {payload}: {}", answer.text());
            taken += u64::from(is_taken);
        }
        running.applied(taken).await;
        let shown = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
        let rows = running.rows("website_event", "url_path IN ('/self', '/pathref', '/other')").await;
        let mut referrers: Vec<_> = rows
            .iter()
            .map(|row| format!("{} {}", shown(&row["url_path"]), shown(&row["referrer_domain"])))
            .collect();
        referrers.sort_unstable();
        assert_eq!(referrers, differences.referrers(), "{set}");
        for table in ["event_data", "session_data"] {
            let rows = running.rows(table, "1 = 1").await;
            let mut dates: Vec<_> = rows
                .iter()
                .map(|row| {
                    format!(
                        "{} {} {}",
                        shown(&row["data_key"]),
                        row["data_type"],
                        shown(&row["string_value"])
                    )
                })
                .collect();
            dates.sort_unstable();
            assert_eq!(dates, differences.dates(), "{set}");
        }
        let zero = running.rows("website_event", "url_path = '/zero'").await;
        assert_eq!(zero[0]["created_at"] == 0, differences.is_3_4, "{set}");
        let ids = running.rows("session", "distinct_id IS NOT NULL").await;
        assert_eq!(ids[0]["distinct_id"].as_str().unwrap().chars().count(), differences.id_length(), "{set}");
    }
}

/// One device is one session from before it was known who uses it, and the next person who uses it gives it a new name: on a
/// database of 3.3, and in a file where that is set.
#[tokio::test]
async fn in_a_linked_session_the_last_identify_names_it() {
    for settings in [
        [("DASHI_UMAMI_RELEASE", "3.3"), ("DASHI_INGEST_IDENTIFIED_SESSIONS", "auto")],
        [("DASHI_UMAMI_RELEASE", "auto"), ("DASHI_INGEST_IDENTIFIED_SESSIONS", "linked")],
    ] {
        let running = Setup::Embedded.start(&settings).await;
        let mut sessions = Vec::new();
        for (kind, id) in [
            ("event", None),
            ("identify", Some("u1")),
            ("event", Some("u1")),
            ("identify", Some("u2")),
            ("event", None),
        ] {
            let mut payload = json!({ "url": "/", "userAgent": AGENT, "ip": ADDRESS });
            if let Some(id) = id {
                payload["id"] = json!(id);
            }
            sessions.push(running.accept(kind, &payload).await["sessionId"].clone());
        }
        running.applied(5).await;
        assert!(sessions.iter().all(|session| session == &sessions[0]), "{sessions:?}");
        let rows = running.rows("session", "1 = 1").await;
        assert_eq!((rows.len(), rows[0]["distinct_id"].as_str()), (1, Some("u2")));
    }
}

#[tokio::test]
async fn long_fields_are_cut_where_that_is_set() {
    let running = Setup::Embedded.start(&[("DASHI_INGEST_CUT_LONG_FIELDS", "true")]).await;
    let payload = json!({
        "url": "/", "hostname": "h".repeat(101), "screen": "1".repeat(12), "language": "l".repeat(36),
        "name": "n".repeat(51), "tag": "t".repeat(51),
    });
    running.accept("event", &payload).await;
    running.applied(1).await;
    let row = running.rows("website_event", "1 = 1").await.remove(0);
    let widths = ["hostname", "event_name", "tag"].map(|column| row[column].as_str().unwrap().len());
    assert_eq!(widths, [100, 50, 50]);
    let row = running.rows("session", "1 = 1").await.remove(0);
    let widths = ["screen", "language"].map(|column| row[column].as_str().unwrap().len());
    assert_eq!(widths, [11, 35]);
}
