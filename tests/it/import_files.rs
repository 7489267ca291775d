//! `dashi import` of files: NDJSON, access logs, Umami Cloud's CSV and exports of a Dashi log, each with bad lines among
//! good ones.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use dashi_domain::record::Event;
use dashi_store::{SqliteSettings, SqliteStore, Store, compare};
use integration_tests::log::{open_log, read_log};
use integration_tests::{Deployment, TestDirectory, kafka};
use serde_json::{Value, json};

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const NOON_S: i64 = 1_777_636_800;

struct Place {
    directory: TestDirectory,
    deployment: Deployment,
}

/// The end of a command: its code, the report and what it said.
struct Ended {
    code: Option<i32>,
    report: Value,
    logs: String,
}

impl Place {
    async fn create() -> Self {
        let directory = TestDirectory::create("import-files");
        let deployment = Deployment::embedded(&directory);
        deployment.register().await;
        Self { directory, deployment }
    }

    /// With the log on Kafka.
    async fn on_kafka() -> Self {
        let directory = TestDirectory::create("import-files");
        let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("import"));
        let store = format!("sqlite:{}", directory.path().join("store.db").display());
        let deployment = Deployment::new(log, store);
        deployment.register().await;
        Self { directory, deployment }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).display().to_string()
    }

    async fn import(&self, arguments: &[&str]) -> Ended {
        let (rejects, state) = (self.path("rejects.ndjson"), self.path("state.json"));
        let files = ["--json", "--rejects", rejects.to_str().unwrap(), "--state", state.to_str().unwrap()];
        let ended = self.deployment.run(&[&["import"], arguments, &files].concat()).await;
        let report = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
        Ended { code: ended.code, report, logs: ended.stderr }
    }

    /// Line numbers and reasons of the rejects file.
    fn rejects(&self) -> Vec<(u64, String)> {
        let text = std::fs::read_to_string(self.path("rejects.ndjson")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let reject: Value = serde_json::from_str(line).unwrap();
                assert!(reject["text"].is_string(), "{line}");
                (reject["line"].as_u64().unwrap(), reject["reason"].as_str().unwrap().to_owned())
            })
            .collect()
    }

    async fn records(&self) -> Vec<Vec<u8>> {
        let log = open_log(self.deployment.log()).await;
        let records = read_log(&log).await.into_iter().map(|record| record.value).collect();
        log.close().await;
        records
    }

    async fn project(&self) -> integration_tests::Status {
        let server = self.deployment.start("project").ready().await;
        let status = self.deployment.settled().await;
        drop(server);
        status
    }

    async fn count(&self, sql: &str) -> i64 {
        integration_tests::Database::open(self.deployment.store()).await.count(sql).await
    }
}

fn assert_rejects(found: &[(u64, String)], expected: &[(u64, &str)]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((line, reason), (expected_line, part)) in found.iter().zip(expected) {
        assert!(
            line == expected_line && reason.contains(part),
            "{line}: {reason}; expected {expected_line}: {part}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ndjson_goes_the_way_of_requests_and_bad_lines_stop_nothing() {
    let place = Place::create().await;
    let website = place.deployment.website().to_owned();
    let line = |payload: Value, beside: Value| {
        let mut line = beside.as_object().unwrap().clone();
        line.insert("payload".to_owned(), payload);
        line.entry("type").or_insert("event".into());
        Value::Object(line).to_string()
    };
    let of = |at: i64, url: &str| json!({ "website": website, "url": url, "hostname": "a.example", "timestamp": at });
    let head = json!({ "address": "203.0.113.9", "agent": AGENT, "country": "GB", "region": "ENG" });
    let own_id = "0193a5c2-1111-7111-8111-111111111111";
    let lines = [
        line(of(NOON_S, "/a?utm_source=x"), head.clone()),
        // Equal to the first one, byte for byte: an event of its own.
        line(of(NOON_S, "/a?utm_source=x"), head.clone()),
        String::new(),
        "not JSON".to_owned(),
        "[1]".to_owned(),
        line(of(NOON_S * 1_000, "/ms"), head.clone()),
        line(json!({ "website": website, "url": "/never" }), head.clone()),
        line(json!({ "url": "/site", "timestamp": NOON_S + 60 }), head.clone()),
        line(of(NOON_S, "/bot"), json!({ "agent": "Googlebot/2.1" })),
        line(json!({ "website": "x", "timestamp": NOON_S }), head.clone()),
        line(of(NOON_S, "/b"), json!({ "type": "nonsense" })),
        line(of(NOON_S, "/own"), json!({ "id": own_id, "agent": AGENT })),
        line(of(NOON_S, "/id"), json!({ "id": "seven" })),
        line(
            json!({ "website": website, "id": "ada", "data": { "plan": "pro" }, "timestamp": NOON_S }),
            json!({ "type": "identify", "agent": AGENT }),
        ),
    ];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.join("\n").as_bytes()).unwrap();
    let file = place.write("history.ndjson.gz", gzip.finish().unwrap());
    let import = ["ndjson", &file, "--website", &website];

    let dry = place.import(&[&import[..], &["--dry-run"]].concat()).await;
    assert_eq!(
        (dry.code, dry.report["appended"].as_u64()),
        (Some(3), Some(5)),
        "{} {}",
        dry.report,
        dry.logs
    );
    assert!(!place.path("state.json").exists() && !place.path("rejects.ndjson").exists());
    assert!(!place.path("log.db").exists(), "not even the log was made");

    let first = place.import(&import).await;
    assert_eq!(
        (first.code, first.report["appended"].as_u64()),
        (Some(3), Some(5)),
        "{} {}",
        first.report,
        first.logs
    );
    assert_eq!(first.report["ignored"], json!({ "bot": 1 }));
    assert_rejects(
        &place.rejects(),
        &[
            (4, "it is no JSON"),
            (5, "JSON array"),
            (
                6,
                "is in milliseconds, and seconds are expected: divide it by 1000, which gives 1777636800 (2026-05-01",
            ),
            (7, "no `timestamp`"),
            (10, "Invalid UUID"),
            (11, "expected one of"),
            (13, "\"seven\" is no UUID"),
        ],
    );
    let records = place.records().await;
    let events: Vec<Event<'_>> = records.iter().map(|value| Event::decode(value).unwrap()).collect();
    assert!(events.iter().any(|event| event.event_id.to_string() == own_id));
    assert!(
        events.iter().all(|event| event.received_at_ms / 60_000 == NOON_S / 60
            || event.received_at_ms / 1_000 == NOON_S + 60)
    );

    // Once more: nothing is new, also without the state.
    let second = place.import(&import).await;
    assert_eq!((second.code, second.report["appended"].as_u64()), (Some(3), Some(0)), "{}", second.report);
    std::fs::remove_file(place.path("state.json")).unwrap();
    std::fs::remove_file(place.path("rejects.ndjson")).unwrap();
    let third = place.import(&import).await;
    assert_eq!((third.code, third.report["appended"].as_u64()), (Some(3), Some(5)), "{}", third.report);
    let status = place.project().await;
    assert_eq!((status.totals.applied, status.totals.duplicate), (5, 5));
    assert_eq!(
        place.count("SELECT count(*) FROM website_event WHERE utm_source = 'x' AND url_path = '/a'").await,
        2
    );
    assert_eq!(
        place
            .count("SELECT count(DISTINCT visit_id) FROM website_event WHERE url_path IN ('/a', '/site')")
            .await,
        1
    );
    assert_eq!(
        place.count("SELECT count(*) FROM session WHERE region = 'GB-ENG' AND browser = 'firefox'").await,
        1
    );
    assert_eq!(place.count("SELECT count(*) FROM dashi_profile_trait WHERE key = 'plan'").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_were_added_to_a_file_are_the_only_new_ones_and_unknown_websites_are_all_named() {
    let place = Place::create().await;
    let website = place.deployment.website().to_owned();
    let line = |website: &str, n: i64| {
        json!({ "type": "event", "agent": AGENT, "payload": { "website": website, "url": "/", "timestamp": NOON_S + n } })
            .to_string()
            + "\n"
    };
    let first: String = (0..1_200).map(|n| line(&website, n)).collect();
    let file = place.write("a.ndjson", &first);
    assert_eq!(place.import(&["ndjson", &file]).await.report["appended"].as_u64(), Some(1_200));
    let strangers = ["aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"];
    let more: String = strangers.iter().map(|id| line(id, 1)).collect();
    place.write("a.ndjson", first.clone() + &line(&website, 5_000) + &more);
    let refused = place.import(&["ndjson", &file]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.logs);
    assert!(strangers.iter().all(|id| refused.logs.contains(id)), "{}", refused.logs);
    assert_eq!(place.records().await.len(), 1_200, "nothing of that batch is in the log");
    let added = place.import(&["ndjson", &file, "--add-websites"]).await;
    assert_eq!(
        (added.code, added.report["appended"].as_u64()),
        (Some(0), Some(3)),
        "{} {}",
        added.report,
        added.logs
    );
    assert_eq!(added.report["websites_added"].as_array().map(Vec::len), Some(2), "{}", added.report);
    // Another file in its place is read from the beginning.
    place.write("a.ndjson", line(&website, 9_000));
    let other = place.import(&["ndjson", &file]).await;
    assert_eq!(other.report["appended"].as_u64(), Some(1), "{}", other.report);
    assert!(other.report["notes"][0].as_str().unwrap().contains("from the beginning"), "{}", other.report);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_logs_pages_are_page_views() {
    let place = Place::create().await;
    let website = place.deployment.website().to_owned();
    let combined = |time: &str, request: &str, status: u16, agent: &str| {
        format!(r#"203.0.113.9 - - [{time}] "{request}" {status} 512 "https://b.example/x?y=1" "{agent}""#)
    };
    let time = "01/May/2026:14:00:00 +0200";
    let lines = [
        combined(time, "GET /a/?q=1 HTTP/1.1", 200, AGENT),
        combined(time, "GET /style.css HTTP/1.1", 200, AGENT),
        combined(time, "POST /a HTTP/1.1", 200, AGENT),
        combined(time, "GET /gone HTTP/1.1", 404, AGENT),
        combined(time, "GET /bot HTTP/1.1", 200, "curl/8.0"),
        "complete nonsense".to_owned(),
        combined("yesterday", "GET / HTTP/1.1", 200, AGENT),
        combined("01/May/2026:14:20:00 +0200", "GET /b HTTP/1.1", 304, AGENT),
        combined("01/May/2026:15:05:00 +0200", "GET /c HTTP/1.1", 200, AGENT),
        format!(r#"203.0.113.9 - - [{time}] "\x16\x03\x01" 400 0 "-" "-""#),
    ];
    let file = place.write("access.log", lines.join("\n"));
    let import = ["access-log", &file, "--website", &website, "--hostname", "a.example"];
    let ended = place.import(&import).await;
    assert_eq!(
        (ended.code, ended.report["appended"].as_u64()),
        (Some(3), Some(3)),
        "{} {}",
        ended.report,
        ended.logs
    );
    assert_eq!(
        ended.report["ignored"],
        json!({ "bot": 1, "not a GET": 1, "not a page": 1, "not answered with a page": 1 })
    );
    assert_rejects(&place.rejects(), &[(6, "no time in brackets"), (7, "yesterday"), (10, "its request")]);
    let flags = ["--dry-run", "--before", "2026-05-01T12:10:00Z"];
    let early = place.import(&[&import[..], &flags].concat()).await;
    assert_eq!(early.report["appended"].as_u64(), Some(1), "{} {}", early.report, early.logs);
    assert_eq!(early.report["ignored"]["not before the time given"].as_u64(), Some(2), "{}", early.report);
    let again = place.import(&import).await;
    assert_eq!(again.report["appended"].as_u64(), Some(0), "{}", again.report);
    let status = place.project().await;
    assert_eq!(status.totals.applied, 3);
    let of = |condition: &str| {
        format!("SELECT count(*) FROM website_event WHERE hostname = 'a.example' AND {condition}")
    };
    assert_eq!(
        place.count(&of("url_path = '/a/' AND url_query = 'q=1' AND referrer_domain = 'b.example'")).await,
        1
    );
    assert_eq!(
        place.count("SELECT count(DISTINCT visit_id) FROM website_event").await,
        2,
        "half an hour, then another"
    );
    assert_eq!(place.count("SELECT min(created_at) FROM website_event").await, NOON_S * 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn umami_clouds_csv_gives_events_data_and_revenue() {
    let place = Place::create().await;
    let website = place.deployment.website().to_owned();
    let session = "22222222-0000-4000-8000-000000000001";
    let event = |n: u32| format!("33333333-0000-4000-8000-00000000000{n}");
    let header = "website_id,session_id,visit_id,event_id,hostname,browser,os,device,screen,language,country,subdivision1,\
                  subdivision2,city,url_path,url_query,referrer_path,referrer_query,referrer_domain,page_title,event_type,\
                  event_name,created_at";
    let row = |n: u32, title: &str, kind: &str, name: &str, at: &str| {
        format!(
            "\"{website}\",\"{session}\",\"{session}\",\"{}\",\"a.example\",\"chrome\",\"Mac OS\",\"laptop\",\"1x1\",\"en\",\
             \"GB\",\"ENG\",\"\",\"London\",\"/a\",\"utm_source=x\",\"\",\"\",\"\",\"{title}\",\"{kind}\",\"{name}\",\"{at}\"",
            event(n)
        )
    };
    let rows = [
        header.to_owned(),
        row(1, "one, \"\"two\"\"\nand three", "1", "", "2026-05-01 12:00:00"),
        row(2, "t", "2", "buy", "2026-05-01 12:00:01"),
        row(3, "t", "1", "", "1777636800000"),
        row(4, "t", "8", "", "2026-05-01 12:00:02"),
        format!("{},\"one too many\"", row(5, "t", "1", "", "2026-05-01 12:00:03")),
        "\"never closed,1,2".to_owned(),
        row(6, "t", "1", "", "2026-05-01 12:00:04"),
    ];
    std::fs::create_dir(place.path("export")).unwrap();
    place.write("export/website_event.csv", rows.join("\n"));
    let leaf = |key: &str, text: &str, number: &str, kind: u8| {
        format!("{website},{session},{},/a,buy,{key},{text},{number},,{kind},2026-05-01 12:00:01", event(2))
    };
    let data = [
        "website_id,session_id,event_id,url_path,event_name,event_key,string_value,number_value,date_value,data_type,created_at"
            .to_owned(),
        leaf("revenue", "12.5000", "12.5", 2),
        leaf("currency", "EUR", "", 1),
        leaf("odd", "x", "1e99", 2),
        leaf("note", "\"a, b\"", "", 1),
    ];
    // Its name comes first: the header shows that it goes last.
    place.write("export/a_event_data.csv", data.join("\r\n"));
    let directory = place.path("export").display().to_string();
    let ended = place.import(&["umami-csv", &directory]).await;
    assert_eq!(ended.code, Some(3), "{} {}", ended.report, ended.logs);
    assert_rejects(
        &place.rejects(),
        &[
            (5, "in milliseconds"),
            (6, "event_type is 8"),
            (7, "24 fields, its header has 23"),
            (8, "a quote in it is not closed"),
            (4, "1e99"),
        ],
    );
    assert_eq!(ended.report["appended"].as_u64(), Some(4), "three events, and the data of one");
    let again = place.import(&["umami-csv", &directory]).await;
    assert_eq!(again.report["appended"].as_u64(), Some(0), "{}", again.report);
    let status = place.project().await;
    assert_eq!((status.totals.applied, status.totals.dead), (4, 0));
    for (sql, expected) in [
        ("SELECT count(*) FROM website_event WHERE utm_source = 'x' AND event_id LIKE '33333333%'", 3),
        ("SELECT count(*) FROM website_event WHERE page_title LIKE 'one, \"two\"%and three'", 1),
        (
            "SELECT count(*) FROM session WHERE region = 'GB-ENG' AND city = 'London' AND created_at = 1777636800000",
            1,
        ),
        ("SELECT count(*) FROM event_data WHERE data_key IN ('revenue', 'currency', 'note')", 3),
        ("SELECT count(*) FROM revenue WHERE currency = 'EUR' AND revenue = 12.5 AND event_name = 'buy'", 1),
    ] {
        assert_eq!(place.count(sql).await, expected, "{sql}");
    }
    let unknown = place.write("x.csv", "x,y\n1,2\n");
    let refused = place.import(&["umami-csv", &unknown, "--from-start"]).await;
    assert!(
        refused.code == Some(2) && refused.logs.contains("no header of Umami Cloud's"),
        "{}",
        refused.logs
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_a_dashi_gives_the_same_tables() {
    let place = Place::create().await;
    let website = place.deployment.website().to_owned();
    let line = |n: i64, kind: &str| {
        json!({ "type": kind, "agent": AGENT, "address": format!("203.0.113.{}", n % 50),
            "payload": { "website": website, "url": "/", "id": "ada", "timestamp": NOON_S + n, "data": { "n": n } } })
        .to_string()
            + "\n"
    };
    let lines: String = (0..300).map(|n| line(n, if n % 10 == 0 { "identify" } else { "event" })).collect();
    let file = place.write("a.ndjson", lines);
    assert_eq!(place.import(&["ndjson", &file]).await.code, Some(0));
    place.project().await;

    let log = open_log(place.deployment.log()).await;
    let mut export = Vec::new();
    for record in read_log(&log).await {
        let record = format!(
            r#"{{"partition":{},"offset":{},"appended_at_ms":{},"record":{}}}"#,
            record.partition,
            record.offset,
            record.appended_at_ms,
            String::from_utf8(record.value).unwrap()
        );
        writeln!(export, "{record}").unwrap();
    }
    log.close().await;
    writeln!(export, r#"{{"partition":0,"offset":8,"appended_at_ms":1,"record":{{"v":1}}}}"#).unwrap();
    writeln!(export, "[]").unwrap();

    let other = Place::create().await;
    let file = other.write("export.ndjson", export);
    let refused = other.import(&["dashi", &file]).await;
    assert!(refused.code == Some(2) && refused.logs.contains(&website), "{}", refused.logs);
    let ended = other.import(&["dashi", &file, "--add-websites"]).await;
    assert_eq!(
        (ended.code, ended.report["appended"].as_u64()),
        (Some(3), Some(300)),
        "{} {}",
        ended.report,
        ended.logs
    );
    assert_rejects(&other.rejects(), &[(301, "cannot be applied"), (302, "no line of an export")]);
    other.project().await;
    let open = async |place: &Place| {
        let path = place.deployment.store().trim_start_matches("sqlite:").into();
        Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await.unwrap())
    };
    let compared = compare(&open(&place).await, &open(&other).await).await.unwrap();
    // The counts of records name their log, which is another one.
    let differing = compared.tables.iter().filter(|table| !table.equal).map(|table| table.table);
    assert_eq!(differing.collect::<Vec<_>>(), ["hour_count"], "{compared:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_of_a_file_that_is_killed_is_there_once() {
    killed_and_run_again(Place::create().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_of_a_file_into_kafka_that_is_killed_is_there_once() {
    killed_and_run_again(Place::on_kafka().await).await;
}

async fn killed_and_run_again(place: Place) {
    let website = place.deployment.website().to_owned();
    let line = |n: i64| {
        json!({ "type": "event", "agent": AGENT, "address": format!("203.0.113.{}", n % 200),
            "payload": { "website": website, "url": "/", "timestamp": NOON_S + n / 3 } })
        .to_string()
            + "\n"
    };
    const LINES: u64 = 6_000;
    let file = place.write("a.ndjson", (0..LINES as i64).map(line).collect::<String>());
    let state = place.path("state.json").display().to_string();
    let arguments = ["import", "ndjson", &file, "--state", &state, "--rate", "400"];
    let mut import = place.deployment.spawn(&arguments);
    integration_tests::eventually(Duration::from_secs(60), "a part is in the log", async || {
        let count = place.records().await.len();
        if count >= 500 { Ok(()) } else { Err(format!("{count}")) }
    })
    .await;
    import.kill9();
    import.wait_exit(Duration::from_secs(20)).await;
    let before = place.records().await.len() as u64;
    assert!(before < LINES, "{before}");
    let ended = place.import(&["ndjson", &file]).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.report, ended.logs);
    assert_eq!(ended.report["already_in_log"].as_u64(), Some(before), "{}", ended.report);
    assert_eq!(place.records().await.len() as u64, LINES);
    let status = place.project().await;
    assert_eq!((status.totals.applied, status.totals.duplicate), (LINES, 0));
}
