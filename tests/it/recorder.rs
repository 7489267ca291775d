//! The requests of Umami's recorder, on every version's tables: settings, recordings, heatmaps (docs/umami-contract.md §14).

use std::time::Duration;

use hyper::Method;
use integration_tests::http::{self, Answer};
use integration_tests::setup::{AGENT, WEBSITE};
use integration_tests::{Deployment, Server, Setup, TestDatabase, TestDirectory, UmamiVersion, eventually};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(60);

/// Umami's development state before its release 3.2, on the tables of 3.1.
const BEFORE_3_2: &str = "CREATE TABLE heatmap_event (
    heatmap_event_id uuid PRIMARY KEY, website_id uuid NOT NULL, session_id uuid NOT NULL, visit_id uuid NOT NULL,
    url_path varchar(500) NOT NULL, event_type integer NOT NULL, node_id integer, x integer, y integer,
    viewport_w integer, viewport_h integer, page_h integer, scroll_pct integer, replay_chunk_index integer,
    replay_event_index integer, replay_time_ms bigint, created_at timestamptz(6) NOT NULL DEFAULT now())";

const OK: &str = r#"{"ok":true}"#;
const SECOND: i64 = 1_777_623_630;

/// A running Dashi with one website that has sent a page view.
struct Site {
    // Before what it uses: fields are dropped in order.
    server: Server,
    token: String,
    deployment: Deployment,
    database: Option<TestDatabase>,
    _directory: TestDirectory,
}

impl Site {
    /// On a SQLite file.
    async fn on_a_file() -> Self {
        Self::start(None, &[]).await
    }

    /// On PostgreSQL, with a version's tables and these changes to them.
    async fn on(version: UmamiVersion, changes: &[&str]) -> Self {
        Self::start(Some(version), changes).await
    }

    async fn start(version: Option<UmamiVersion>, changes: &[&str]) -> Self {
        let directory = TestDirectory::create("recorder");
        let path = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
        let mut database = None;
        if let Some(version) = version {
            let made = TestDatabase::create().await;
            let mut connection = made.connect().await;
            version.install(&mut connection).await;
            for sql in changes {
                run(&mut connection, sql).await;
            }
            database = Some(made);
        }
        let store = database.as_ref().map_or_else(|| path("store.db"), |database| database.url().to_owned());
        let deployment = Deployment::new(path("log.db"), store)
            .with("APP_SECRET", "a secret of recorders")
            .with("DASHI_INGEST_WEBSITE_REFRESH_MS", "100");
        deployment.register().await;
        let server = deployment.start("serve").ready().await;
        let mut site = Self { server, token: String::new(), deployment, database, _directory: directory };
        let answer = site.send(json!({ "url": "/a" }), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        site.token = answer.json()["cache"].as_str().unwrap().to_owned();
        site
    }

    fn website(&self) -> &str {
        self.deployment.website()
    }

    async fn send(&self, mut payload: Value, headers: &[(&str, &str)]) -> Answer {
        payload["website"] = json!(self.website());
        let mut all = vec![("user-agent", AGENT)];
        all.retain(|(name, _)| !headers.iter().any(|(other, _)| name == other));
        all.extend(headers);
        let body = json!({ "type": "event", "payload": payload });
        http::post_json(&format!("{}/api/send", self.server.url()), &body, &all).await.unwrap()
    }

    async fn post(&self, kind: &str, mut payload: Value) -> (u16, String) {
        payload["website"] = json!(self.website());
        self.post_text(json!({ "type": kind, "payload": payload }).to_string(), &[]).await
    }

    async fn post_text(&self, body: String, headers: &[(&str, &str)]) -> (u16, String) {
        let url = format!("{}/api/record", self.server.url());
        let mut all = vec![("user-agent", AGENT), ("x-umami-cache", &self.token)];
        all.retain(|(name, _)| !headers.iter().any(|(other, _)| name == other));
        all.extend(headers);
        let answer = http::request(Method::POST, &url, body, &all).await.unwrap();
        (answer.status, answer.text())
    }

    /// The minimal chunk with a click, with a scroll behind it.
    async fn record(&self) -> (u16, String) {
        let events = json!([
            { "type": 4, "data": { "href": "https://x/p", "width": 1280, "height": 720 }, "timestamp": SECOND * 1_000 },
            { "type": 3, "data": { "source": 2, "type": 2, "id": 3, "x": 10.4, "y": 20.6 }, "timestamp": SECOND * 1_000 + 500 },
            { "type": 5, "data": { "tag": "scroll-progress", "payload": { "url": "https://x/p", "scrollPct": 62.4, "viewportW": 1280, "viewportH": 720, "pageH": 3000 } }, "timestamp": SECOND * 1_000 + 700 },
        ]);
        self.post("record", json!({ "events": events, "timestamp": SECOND })).await
    }

    async fn post_heatmap(&self) -> (u16, String) {
        let events = json!([
            { "type": "click", "url": "https://x/p?q=1", "x": 10, "y": 21, "pageX": 10, "pageY": 921, "pageW": 1265,
              "pageH": 3000, "viewportW": 1280, "viewportH": 720, "timestamp": SECOND * 1_000 + 500 },
            { "type": "scroll", "url": "https://x/p", "scrollPct": 62, "viewportW": 1280, "viewportH": 720,
              "pageW": 1265, "pageH": 3000, "timestamp": SECOND * 1_000 + 700 },
        ]);
        self.post("heatmap", json!({ "events": events, "timestamp": SECOND })).await
    }

    async fn sql(&self, sql: &str) {
        run(&mut self.database.as_ref().expect("a database").connect().await, sql).await;
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        match &self.database {
            Some(database) => {
                let query = format!("SELECT t::text FROM ({query}) AS q (t)");
                sqlx::query_scalar(AssertSqlSafe(query))
                    .fetch_all(&mut database.connect().await)
                    .await
                    .unwrap()
            }
            None => {
                let path = self.deployment.store();
                let mut connection = sqlx::SqliteConnection::connect(path).await.unwrap();
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap()
            }
        }
    }

    /// Waits until all is applied; gives the rows of the heatmap in these columns.
    async fn heatmap(&self, columns: &[&str]) -> Vec<String> {
        let totals = self.deployment.settled().await.totals;
        assert_eq!((totals.dead, totals.duplicate), (0, 0));
        let cells: Vec<_> =
            columns.iter().map(|column| format!("coalesce(CAST({column} AS text), '-')")).collect();
        self.texts(&format!("SELECT {} FROM heatmap_event ORDER BY event_type", cells.join(" || ' ' || ")))
            .await
    }

    async fn command(&self, args: &[&str]) -> String {
        let ended = self.deployment.run(args).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    async fn switch(&self, what: &str, taken: &str) {
        self.command(&["website", what, self.website(), taken]).await;
    }

    /// Waits until the collector answers a bot's request like this, which stores nothing.
    async fn until(&self, kind: &str, expected: &str) {
        let payload = json!({ "website": self.website(), "events": [{ "type": "scroll", "url": "/" }] });
        let body = json!({ "type": kind, "payload": payload }).to_string();
        eventually(SOON, &format!("{kind} is answered {expected}"), async || {
            let (_, text) = self.post_text(body.clone(), &[("user-agent", "Googlebot/2.1")]).await;
            if text.contains(expected) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn ask(&self, id: &str) -> Answer {
        http::get(&format!("{}/api/websites/{id}/recorder", self.server.url())).await.unwrap()
    }

    /// Waits until the recorder is answered this: enabled, recordings, heatmaps.
    async fn answers(&self, expected: Value) {
        eventually(SOON, &format!("the recorder is answered {expected}"), async || {
            let shown = self.ask(self.website()).await.json();
            let found = json!([shown["enabled"], shown["replayEnabled"], shown["heatmapEnabled"]]);
            if found == expected { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// A replay into an empty store gives the same heatmap.
    async fn assert_replayed(&self, version: Option<UmamiVersion>, changes: &[&str]) {
        let directory = TestDirectory::create("replayed");
        let other = TestDatabase::create().await;
        let into = match version {
            Some(version) => {
                let mut connection = other.connect().await;
                version.install(&mut connection).await;
                for sql in changes {
                    run(&mut connection, sql).await;
                }
                other.url().to_owned()
            }
            None => format!("sqlite:{}", directory.path().join("other.db").display()),
        };
        self.command(&["replay", "--into", &into]).await;
        let compared = self.command(&["compare", "--json", self.deployment.store(), &into]).await;
        let compared: Value = serde_json::from_str(&compared).unwrap();
        assert_eq!(compared["equal"], true, "{compared:#}");
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn refused(reason: &str) -> (u16, String) {
    (200, format!(r#"{{"ok":false,"reason":"{reason}"}}"#))
}

fn ok() -> (u16, String) {
    (200, OK.to_owned())
}

const ALL: [&str; 12] = [
    "event_type",
    "url_path",
    "x",
    "y",
    "viewport_w",
    "viewport_h",
    "page_h",
    "scroll_pct",
    "node_id",
    "replay_chunk_index",
    "replay_event_index",
    "replay_time_ms",
];

/// The rows of [`Site::record`], in the columns of [`ALL`].
const OF_RECORDING: [&str; 2] = [
    "1 /p 10 21 1280 720 - - 3 1777623630 1 1777623630500",
    "2 /p - - 1280 720 3000 62 - 1777623630 2 1777623630700",
];

const POSTED: [&str; 10] =
    ["event_type", "url_path", "x", "y", "page_x", "page_y", "page_w", "viewport_w", "page_h", "scroll_pct"];

/// The rows of [`Site::post_heatmap`], in the columns of [`POSTED`].
const OF_POST: [&str; 2] = ["1 /p 10 21 10 921 1265 1280 3000 -", "2 /p - - - - 1265 1280 3000 62"];

#[tokio::test]
async fn up_to_3_1_there_are_recordings_and_no_heatmaps() {
    let site = Site::on(UmamiVersion::V3_1, &[]).await;
    assert_eq!(site.record().await, refused("replay_disabled"));
    site.switch("recordings", "on").await;
    site.until("record", "beep").await;
    assert_eq!(site.record().await, ok());
    let (status, text) = site.post_heatmap().await;
    assert!(status == 400 && text.contains(r#"Invalid input: expected \"record\""#), "{text}");
    // Large bodies are taken: the limit came later.
    let large = json!([{ "data": "x".repeat(1_100_000) }]);
    assert_eq!(site.post("record", json!({ "events": large })).await, ok());
    let totals = site.deployment.settled().await.totals;
    assert_eq!((totals.in_log, totals.applied), (3, 3));
    assert_eq!(site.texts("SELECT count(*) FROM session_replay").await, ["2"]);
    // There is no switch of heatmaps here, nor a list of addresses, and the error says so.
    for args in [["website", "heatmaps", site.website(), "on"], ["website", "block", site.website(), "::1"]] {
        let ended = site.deployment.run(&args).await;
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("this version of Umami has no"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn on_3_0_recordings_cannot_be_turned_on() {
    let site = Site::on(UmamiVersion::V3_0, &[]).await;
    let ended = site.deployment.run(&["website", "recordings", site.website(), "on"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no column replay_enabled or recorder_enabled"), "{}", ended.stderr);
    assert_eq!(site.record().await, refused("replay_disabled"));
}

/// The development state before 3.2: clicks and scrolls come out of the chunks, with the places in them.
#[tokio::test]
async fn before_3_2_clicks_and_scrolls_are_read_out_of_recordings() {
    let site = Site::on(UmamiVersion::V3_1, &[BEFORE_3_2]).await;
    site.switch("recordings", "on").await;
    site.until("record", "beep").await;
    assert_eq!(site.record().await, ok());
    assert_eq!(site.heatmap(&ALL).await, OF_RECORDING);
    assert_eq!(site.texts("SELECT count(*) FROM session_replay").await, ["1"]);
    site.assert_replayed(Some(UmamiVersion::V3_1), &[BEFORE_3_2]).await;
    // A file holds the same.
    site.assert_replayed(None, &[]).await;
}

#[tokio::test]
async fn in_a_file_heatmaps_come_out_of_recordings_until_they_are_posted() {
    let site = Site::on_a_file().await;
    assert_eq!(site.record().await, refused("replay_disabled"));
    assert_eq!(site.post_heatmap().await, refused("heatmap_disabled"));
    site.switch("recordings", "on").await;
    site.until("record", "beep").await;
    assert_eq!(site.record().await, ok());
    assert_eq!(site.heatmap(&ALL).await, OF_RECORDING);
    site.answers(json!([true, true, false])).await;

    // From now on the recorder posts them as well, and a click counts once, whichever comes first.
    site.switch("heatmaps", "on").await;
    site.answers(json!([true, true, true])).await;
    assert_eq!(site.post_heatmap().await, ok());
    site.deployment.settled().await;
    assert_eq!(site.record().await, ok());
    site.deployment.settled().await;
    // The scrolls of two chunks and of the post, and the click of the post.
    let count = "SELECT CAST(count(*) AS text) FROM heatmap_event";
    assert_eq!(site.texts(count).await, ["4"]);
    let posted = "SELECT x || ' ' || page_y || ' ' || created_at FROM heatmap_event WHERE page_x IS NOT NULL";
    assert_eq!(site.texts(posted).await, ["10 921 1777623630500"]);
    site.assert_replayed(None, &[]).await;

    site.switch("heatmaps", "off").await;
    site.until("heatmap", "heatmap_disabled").await;
    assert_eq!(site.record().await, ok());
    site.deployment.settled().await;
    assert_eq!(site.texts(count).await, ["4"]);
}

async fn from_3_2_on_the_settings_say_what_is_taken(version: UmamiVersion) {
    let site = Site::on(version, &[]).await;
    let set = async |enabled: bool, config: Value| {
        let website = site.website();
        site.sql(&format!(
            "UPDATE website SET recorder_enabled = {enabled}, replay_config = '{config}' WHERE website_id = '{website}'"
        ))
        .await;
    };
    let both = json!({ "replayEnabled": true, "heatmapEnabled": true });
    assert_eq!(site.record().await, refused("recorder_disabled"));
    assert_eq!(site.post_heatmap().await, refused("recorder_disabled"));
    set(true, json!({ "heatmapEnabled": true })).await;
    site.answers(json!([true, false, true])).await;
    assert_eq!(site.record().await, refused("replay_disabled"));
    set(true, json!({ "replayEnabled": true, "heatmapEnabled": "true" })).await;
    site.answers(json!([true, true, false])).await;
    assert_eq!(site.post_heatmap().await, refused("heatmap_disabled"));
    assert_eq!(site.deployment.settled().await.totals.in_log, 1, "nothing of it was stored");

    set(true, both).await;
    site.answers(json!([true, true, true])).await;
    assert_eq!(site.record().await, ok());
    assert_eq!(site.post_heatmap().await, ok());
    // The click is in both, and counts once.
    let scroll = "2 /p - - - - - 1280 3000 62";
    let expected = [OF_POST[0], scroll, OF_POST[1]].map(str::to_owned);
    let mut rows = site.heatmap(&POSTED).await;
    rows.sort_unstable();
    assert_eq!(rows, expected);
    // So it does when the post comes first, and a click that was not posted counts as well.
    let click =
        |ms: i64| json!({ "type": 3, "data": { "source": 2, "type": 2, "x": 10, "y": 21 }, "timestamp": ms });
    let page = json!({ "type": 4, "data": { "href": "https://x/p" }, "timestamp": 1 });
    let events = json!([page, click(SECOND * 1_000), click(SECOND * 1_000 + 9_000)]);
    assert_eq!(site.post("record", json!({ "events": events, "timestamp": SECOND })).await, ok());
    site.deployment.settled().await;
    let clicks = "SELECT (extract(epoch FROM created_at) * 1000)::bigint FROM heatmap_event WHERE event_type = 1 ORDER BY 1";
    assert_eq!(site.texts(clicks).await, ["1777623630500", "1777623639000"]);
    assert_eq!(site.texts("SELECT count(*) FROM session_replay").await, ["2"]);

    // A copy with the same name changes nothing.
    let body = json!({ "type": "heatmap", "payload": { "website": site.website(), "timestamp": SECOND,
        "events": [{ "type": "scroll", "url": "/again" }] } });
    for _ in 0..2 {
        assert_eq!(site.post_text(body.to_string(), &[("idempotency-key", "one")]).await, ok());
        site.deployment.settled().await;
    }
    assert_eq!(site.texts("SELECT count(*) FROM heatmap_event WHERE url_path = '/again'").await, ["1"]);
    assert_eq!(site.deployment.settled().await.totals.duplicate, 1);
    site.assert_replayed(Some(version), &[]).await;

    // What is too large is answered as Umami does, before anything else.
    let (status, text) = site.post_text("x".repeat(1_000_001), &[]).await;
    assert_eq!(status, 413);
    assert!(text.contains(r#""maxBytes":1000000,"size":1000001"#), "{text}");
    let (status, text) = site.post_text(" ".repeat(1_000_000), &[]).await;
    assert!(status == 400 && text.contains("expected object, received undefined"), "{text}");

    // The commands change the settings and leave the others in them.
    site.switch("recordings", "off").await;
    site.switch("heatmaps", "off").await;
    let row = "SELECT concat_ws(' ', recorder_enabled, replay_config::text) FROM website";
    assert_eq!(site.texts(row).await, [r#"f {"replayEnabled": false, "heatmapEnabled": false}"#]);
    site.until("record", "recorder_disabled").await;
    site.sql("UPDATE website SET replay_config = '{\"sampleRate\": 1}'").await;
    site.switch("recordings", "on").await;
    assert_eq!(site.texts(row).await, [r#"t {"sampleRate": 1, "replayEnabled": true}"#]);
    site.until("record", "beep").await;
    let listed: Value = serde_json::from_str(&site.command(&["website", "list", "--json"]).await).unwrap();
    assert_eq!([&listed[0]["recordings"], &listed[0]["heatmaps"]], [true, false]);
}

#[tokio::test]
async fn on_3_2_the_settings_say_what_is_taken() {
    from_3_2_on_the_settings_say_what_is_taken(UmamiVersion::V3_2).await;
}

#[tokio::test]
async fn on_3_3_the_settings_say_what_is_taken() {
    from_3_2_on_the_settings_say_what_is_taken(UmamiVersion::V3_3).await;
}

#[tokio::test]
async fn on_3_4_the_settings_say_what_is_taken() {
    from_3_2_on_the_settings_say_what_is_taken(UmamiVersion::V3_4).await;
}

/// Recordings that were taken before an upgrade to 3.2 go on after it, without a start of Dashi.
#[tokio::test]
async fn an_upgrade_to_3_2_interrupts_no_recording() {
    let site = Site::on(UmamiVersion::V3_1, &[]).await;
    site.switch("recordings", "on").await;
    site.until("record", "beep").await;
    assert_eq!(site.record().await, ok());
    UmamiVersion::V3_2.migrate(&mut site.database.as_ref().unwrap().connect().await).await;
    eventually(SOON, "the collector sees the new tables", async || {
        let (_, text) = site.post("heatmap", json!({ "events": [{ "type": "scroll", "url": "/" }] })).await;
        if text.contains("heatmap_disabled") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(site.record().await, ok());
    assert_eq!(site.deployment.settled().await.totals.applied, 3);
    assert_eq!(site.texts("SELECT count(*) FROM session_replay").await, ["2"]);
    // A replay reads the clicks of the time before out of its recordings; after it the website wanted no heatmaps.
    let other = TestDatabase::create().await;
    UmamiVersion::V3_2.install(&mut other.connect().await).await;
    site.command(&["replay", "--into", other.url()]).await;
    let clicks: i64 = sqlx::query_scalar("SELECT count(*) FROM heatmap_event WHERE event_type = 1")
        .fetch_one(&mut other.connect().await)
        .await
        .unwrap();
    assert_eq!(clicks, 1);
}

#[tokio::test]
async fn refusals_are_counted_by_reason_and_logged_once() {
    let site = Site::on(UmamiVersion::V3_2, &[]).await;
    for _ in 0..3 {
        assert_eq!(site.record().await, refused("recorder_disabled"));
    }
    assert_eq!(site.post_heatmap().await, refused("recorder_disabled"));
    let metrics = http::get(&format!("{}/metrics", site.server.url())).await.unwrap().text();
    let line = r#"dashi_ingest_recording_chunks_total{outcome="recorder_disabled"} 4"#;
    assert!(metrics.contains(line), "{line} is not in {metrics}");
    let lines = site.server.dashi.stderr();
    let shown: Vec<_> = lines.lines().filter(|line| line.contains("recorder_disabled")).collect();
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(shown[0].contains(site.website()), "{shown:?}");
}

#[tokio::test]
async fn the_recorder_is_told_its_settings_from_anywhere() {
    let site = Site::on(UmamiVersion::V3_2, &[]).await;
    let off = site.ask(site.website()).await;
    assert_eq!((off.status, off.text().as_str()), (200, r#"{"enabled":false}"#));
    let unknown = site.ask("99999999-9999-4999-8999-999999999999").await;
    assert_eq!((unknown.status, unknown.text().as_str()), (200, r#"{"enabled":false}"#));
    assert_eq!(site.ask("x").await.status, 404);
    let config = json!({ "replayEnabled": true, "heatmapEnabled": true, "sampleRate": 1, "maskLevel": "strict",
        "maxDuration": 60_000, "blockSelector": ".private", "heatmapSampleRate": 0.5 });
    site.sql(&format!("UPDATE website SET recorder_enabled = true, replay_config = '{config}'")).await;
    eventually(SOON, "it is on", async || {
        let shown = site.ask(site.website()).await.json();
        if shown["enabled"] == true { Ok(()) } else { Err(shown) }
    })
    .await;
    let shown = site.ask(site.website()).await;
    let mut expected = config;
    expected["enabled"] = json!(true);
    assert_eq!((shown.status, shown.json()), (200, expected));
    assert_eq!(shown.header("access-control-allow-origin"), Some("*"));
    assert_eq!(shown.header("cache-control"), Some("public, max-age=60, stale-while-revalidate=300"));
    assert_eq!(shown.header("content-type"), Some("application/json"));
    let url = format!("{}/api/websites/{}/recorder", site.server.url(), site.website());
    let preflight = http::request(Method::OPTIONS, &url, "", &[]).await.unwrap();
    assert_eq!((preflight.status, preflight.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
}

/// The paths of people's profiles begin alike and are for those with a key; the recorder's is for everybody.
#[tokio::test]
async fn the_recorders_path_lies_beside_those_of_profiles() {
    let key = "a-key-of-sixteen-letters";
    let running = Setup::Embedded.start(&[("DASHI_API_KEYS", key)]).await;
    let get = async |path: &str, headers: &[(&str, &str)]| {
        http::request(Method::GET, &running.url(path), "", headers).await.unwrap().status
    };
    let bearer = format!("Bearer {key}");
    let profiles = format!("/api/websites/{WEBSITE}/profiles");
    assert_eq!(get(&format!("/api/websites/{WEBSITE}/recorder"), &[]).await, 200);
    assert_eq!(get(&profiles, &[]).await, 401);
    assert_eq!(get(&profiles, &[("authorization", &bearer)]).await, 200);
    assert_eq!(get(&format!("/api/websites/{WEBSITE}"), &[]).await, 401);
    assert_eq!(get(&format!("/api/websites/{WEBSITE}/nothing"), &[]).await, 404);
}

/// The answer to bots, and to whom a website blocks.
const IGNORED: &str = r#"{"beep":"boop"}"#;

/// `blocked_ips` is text in one version and JSON in another.
#[tokio::test]
async fn addresses_that_a_website_blocks_are_answered_like_bots_and_not_recorded() {
    let kinds = ["varchar(500)", "jsonb", "text[]"];
    for kind in kinds.into_iter().map(Some).chain([None]) {
        let site = match kind {
            Some(kind) => {
                let add = format!("ALTER TABLE website ADD COLUMN blocked_ips {kind}");
                Site::on(UmamiVersion::V3_1, &[&add]).await
            }
            None => Site::on_a_file().await,
        };
        site.switch("recordings", "on").await;
        let bad = site.deployment.run(&["website", "block", site.website(), "192.0.2.1, nowhere"]).await;
        assert!(bad.code == Some(2) && bad.stderr.contains("\"nowhere\""), "{}", bad.stderr);
        site.command(&[
            "website",
            "block",
            site.website(),
            "192.0.2.1, 198.51.100.0/24,2001:DB8::/32, ::1:2",
        ])
        .await;
        let from =
            async |address: &str| site.send(json!({ "url": "/" }), &[("x-forwarded-for", address)]).await;
        eventually(SOON, "the collector knows", async || {
            let text = from("192.0.2.1").await.text();
            if text == IGNORED { Ok(()) } else { Err(text) }
        })
        .await;
        let listed: Value =
            serde_json::from_str(&site.command(&["website", "list", "--json"]).await).unwrap();
        assert_eq!(listed[0]["blocked_addresses"].as_array().unwrap().len(), 4, "{kind:?}");
        let blocked = from("198.51.100.9").await;
        assert_eq!((blocked.status, blocked.text().as_str()), (200, IGNORED));
        for address in ["2001:db8:0:1::5", "::ffff:192.0.2.1", "0:0:0:0:0:0:1:2"] {
            assert_eq!(from(address).await.text(), IGNORED, "{kind:?} {address}");
        }
        for address in ["192.0.2.2", "2001:db9::1", "unknown"] {
            assert!(from(address).await.text().contains("sessionId"), "{kind:?} {address}");
        }
        // A token does not help, a bot is answered as ever, an address that the payload names counts.
        let with_token = [("x-umami-cache", site.token.as_str()), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(site.send(json!({ "url": "/" }), &with_token).await.text(), IGNORED);
        let bot = [("x-forwarded-for", "192.0.2.1"), ("user-agent", "Googlebot/2.1")];
        assert_eq!(site.send(json!({ "url": "/" }), &bot[..]).await.text(), IGNORED);
        assert_eq!(site.send(json!({ "url": "/", "ip": "192.0.2.1" }), &[]).await.text(), IGNORED);
        let body = json!({ "type": "record", "payload": { "website": site.website(), "events": [{}] } });
        let chunk = site.post_text(body.to_string(), &[("x-forwarded-for", "192.0.2.1")]).await;
        assert_eq!(chunk, (200, IGNORED.to_owned()));

        // What is known stays known while the database is away.
        if site.database.is_some() {
            site.sql("ALTER TABLE website RENAME TO website_gone").await;
            eventually(SOON, "the list cannot be read", async || {
                site.server.dashi.stderr().contains("the list of websites cannot be read")
            })
            .await;
            assert_eq!(from("192.0.2.1").await.text(), IGNORED);
            assert!(from("192.0.2.2").await.text().contains("sessionId"));
            site.sql("ALTER TABLE website_gone RENAME TO website").await;
        }
        site.command(&["website", "block", site.website(), ""]).await;
        eventually(SOON, "nobody is blocked", async || {
            let text = from("192.0.2.1").await.text();
            if text.contains("sessionId") { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_links_campaign_goes_on_to_where_it_leads_and_is_its_visits() {
    const COLUMNS: &str = "ALTER TABLE link ADD COLUMN utm_source varchar(255), ADD COLUMN utm_medium varchar(255),
        ADD COLUMN utm_campaign varchar(255), ADD COLUMN utm_term varchar(255), ADD COLUMN utm_content varchar(255)";
    for site in [Site::on_a_file().await, Site::on(UmamiVersion::V3_1, &[COLUMNS]).await] {
        let link = "33333333-3333-4333-8333-333333333333";
        site.command(&[
            "link",
            "add",
            "--name",
            "n",
            "--slug",
            "sale",
            "--url",
            "https://shop.example/?utm_medium=own&a=1#top",
            "--id",
            link,
            "--utm-source",
            "news letter",
            "--utm-medium",
            "mail",
            "--utm-campaign",
            "spring",
        ])
        .await;
        let listed: Value = serde_json::from_str(&site.command(&["link", "list", "--json"]).await).unwrap();
        assert_eq!([&listed[0]["utm_source"], &listed[0]["utm_term"]], [&json!("news letter"), &Value::Null]);
        let visit = async |query: &str| {
            let headers = [("user-agent", AGENT), ("host", "go.example")];
            let url = format!("{}/q/sale{query}", site.server.url());
            http::request(Method::GET, &url, "", &headers).await.unwrap()
        };
        eventually(SOON, "the link is known", async || {
            let headers = [("user-agent", "Googlebot/2.1")];
            let url = format!("{}/q/sale", site.server.url());
            let status = http::request(Method::GET, &url, "", &headers).await.unwrap().status;
            if status == 307 { Ok(()) } else { Err(status) }
        })
        .await;
        // What the address has of its own stays.
        let there = "https://shop.example/?utm_medium=own&a=1&utm_source=news+letter&utm_campaign=spring#top";
        assert_eq!(visit("").await.header("location"), Some(there));
        assert_eq!(visit("?utm_source=other&x").await.header("location"), Some(there));
        let totals = site.deployment.settled().await.totals;
        assert_eq!((totals.applied, totals.dead), (3, 0));
        let rows = site
            .texts(&format!(
                "SELECT utm_source || '|' || utm_medium || '|' || utm_campaign || '|' || url_path FROM website_event
                 WHERE website_id = '{link}' ORDER BY 1"
            ))
            .await;
        assert_eq!(rows, ["news letter|mail|spring|/q/sale", "other|mail|spring|/q/sale"]);
    }
    let without = Site::on(UmamiVersion::V3_1, &[]).await;
    let args = ["link", "add", "--name", "n", "--url", "https://a.example/", "--utm-source", "x"];
    let refused = without.deployment.run(&args).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no campaign parameters of links"), "{}", refused.stderr);
}

#[tokio::test]
async fn what_is_not_written_is_said() {
    let newer = "CREATE TABLE website_engagement (engagement_id uuid PRIMARY KEY);
        CREATE TABLE error_event (event_id uuid PRIMARY KEY);
        ALTER TABLE revenue ADD COLUMN market varchar(20) NOT NULL;
        ALTER TABLE revenue ADD COLUMN fine varchar(20) NOT NULL DEFAULT ''";
    for (version, changes, said) in [
        (UmamiVersion::V3_0, "SELECT 1", "web vitals (website_event has no columns of them), recordings ("),
        (UmamiVersion::V3_1, "SELECT 1", "heatmaps (there is no table heatmap_event)"),
        (UmamiVersion::V3_2, "ALTER TABLE heatmap_event DROP COLUMN x", "heatmap_event (it lacks columns"),
        (
            UmamiVersion::V3_4,
            newer,
            "not written: website_engagement (how long pages were looked at), error_event (",
        ),
    ] {
        let site = Site::on(version, &[changes]).await;
        let status = site.command(&["status"]).await;
        assert!(status.contains(said), "{status}");
        let lines = site.server.dashi.stderr();
        let shown: Vec<_> = lines.lines().filter(|line| line.contains(said)).collect();
        assert_eq!(shown.len(), 1, "{lines}");
        let json: Value = serde_json::from_str(&site.command(&["status", "--json"]).await).unwrap();
        let needing = if version == UmamiVersion::V3_4 { json!(["revenue.market"]) } else { json!([]) };
        assert_eq!(json["umami"]["needing_a_value"], needing, "{json}");
        assert_eq!(status.contains("need a value"), version == UmamiVersion::V3_4, "{status}");
        assert_eq!(lines.contains("revenue.market"), version == UmamiVersion::V3_4);
    }
    let site = Site::on(UmamiVersion::V3_4, &[]).await;
    let status = site.command(&["status"]).await;
    assert!(status.contains("tables of Umami 3.4") && !status.contains("not written"), "{status}");
    assert!(!site.server.dashi.stderr().contains("unwritten"));
}
