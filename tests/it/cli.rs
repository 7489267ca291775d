//! The commands that operators type: their output, and the exit codes that scripts rely on.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashi_domain::record::Event;
use hyper::Method;
use integration_tests::dashi::Ended;
use integration_tests::http::{self, Connection};
use integration_tests::setup::{AGENT, SECRET, WEBSITE, submission};
use integration_tests::{Dashi, Deployment, Setup, TestDirectory, eventually, free_port, on_both_setups};
use serde_json::{Value, json};
use tokio::task::JoinSet;

on_both_setups!(
    websites_are_added_listed_and_removed,
    status_accounts_for_every_record,
    a_stop_under_load_answers_and_keeps_everything_acknowledged,
);

const OTHER: &str = "22222222-2222-4222-8222-222222222222";

/// Asserts how a command ended and that what it said on standard error is in these words and short.
fn assert_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word} is not in {:?}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{:?}", ended.stderr);
    assert_eq!(ended.stdout, "", "errors go to standard error");
}

async fn websites_are_added_listed_and_removed(setup: Setup) {
    let running = setup.start(&[]).await;
    let domain = ["website", "add", "--name", "Zwei", "--domain", "zwei.example", "--id", OTHER];
    let added = running.run(&domain).await;
    assert_eq!(
        (added.code, added.stdout.as_str()),
        (Some(0), format!("{OTHER}\n").as_str()),
        "{}",
        added.stderr
    );
    assert_refused(&running.run(&domain).await, 1, &["there is a website with the id", OTHER]);

    let made = running.run(&["website", "add", "--name", "Drei"]).await;
    let id = made.stdout.trim().to_owned();
    assert!(id.len() == 36 && id.parse::<uuid::Uuid>().is_ok(), "{made:?}");

    let listed = running.run(&["website", "list", "--json"]).await;
    let mut websites: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    for website in &mut websites {
        assert!(website["created_at_ms"].as_i64().is_some_and(|at| at > 1_700_000_000_000), "{website}");
        website.as_object_mut().unwrap().remove("created_at_ms");
    }
    let listed = |id: &str, name: &str, domain: Option<&str>| {
        json!({ "id": id, "name": name, "domain": domain, "recordings": false, "heatmaps": false,
            "blocked_addresses": [] })
    };
    let expected = [
        listed(WEBSITE, "test", None),
        listed(OTHER, "Zwei", Some("zwei.example")),
        listed(&id, "Drei", None),
    ];
    assert_eq!(websites, expected);
    let listed = running.run(&["website", "list"]).await;
    assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), 3), "{}", listed.stdout);
    assert!(listed.stdout.lines().any(|line| line.starts_with(OTHER) && line.ends_with("zwei.example")));

    let removed = running.run(&["website", "remove", OTHER]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(removed.stdout.contains(OTHER), "{}", removed.stdout);
    assert_refused(&running.run(&["website", "remove", OTHER]).await, 1, &["there is no website", OTHER]);
    let listed = running.run(&["website", "list"]).await;
    assert!(!listed.stdout.contains(OTHER), "{}", listed.stdout);

    let long = "x".repeat(101);
    assert_refused(&running.run(&["website", "add", "--name", &long]).await, 2, &["--name", "101", "100"]);
    assert_refused(&running.run(&["website", "add", "--name", ""]).await, 2, &["--name", "empty"]);
    assert_refused(&running.run(&["website", "add", "--name", "x", "--id", "x"]).await, 2, &["--id"]);
    assert_refused(&running.run(&["website", "add"]).await, 2, &["--name"]);
    assert_refused(&running.run(&["website", "remove", "x"]).await, 2, &["'x'"]);
    let fits = running.run(&["website", "add", "--name", &"é".repeat(100)]).await;
    assert_eq!(fits.code, Some(0), "characters are counted: {}", fits.stderr);
}

async fn status_accounts_for_every_record(setup: Setup) {
    let running = setup.start(&[]).await;
    let before = running.run(&["status", "--json"]).await;
    let before: Value = serde_json::from_str(&before.stdout).unwrap();
    assert_eq!(
        before["totals"],
        json!({
            "in_log": 0, "applied": 0, "duplicate": 0, "dead": 0, "missing": 0, "markers": 0, "rewound": 0,
            "removed": 0, "lag_records": 0, "unaccounted": 0, "spooled": 0, "accepted": 0, "untallied": 0, "not_found": 0,
        })
    );
    let layout = &before["layout"];
    assert_eq!([&layout["partitions"], &layout["passed"], &layout["in_log"]], [8; 3], "{layout}");
    assert_eq!(layout["growth"], Value::Null);
    for place in 0..30 {
        running.accept("event", &json!({ "url": "/", "id": format!("{place}") })).await;
    }
    running.applied(30).await;
    let status = running.run(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let totals = &status["totals"];
    let [accepted, untallied] = ["accepted", "untallied"].map(|name| totals[name].as_u64().unwrap());
    assert_eq!((accepted + untallied, &totals["not_found"]), (30, &json!(0)), "{totals}");
    let partitions = status["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 8);
    let mut applied = 0;
    for (number, partition) in partitions.iter().enumerate() {
        assert_eq!(partition["partition"], number);
        assert_eq!(partition["checkpoint"], partition["high_watermark"], "{partition}");
        assert_eq!(partition["applied"], partition["high_watermark"], "{partition}");
        assert_eq!(json!([partition["lag_records"], partition["lag_seconds"]]), json!([0, 0.0]));
        assert_eq!((&partition["last_error"], partition["epoch"].as_u64() >= Some(1)), (&Value::Null, true));
        assert!(partition["owner"].is_string(), "{partition}");
        applied += partition["applied"].as_u64().unwrap();
    }
    assert_eq!(applied, 30);
    let table = running.run(&["status"]).await;
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    assert!(table.stdout.contains(status["log"].as_str().unwrap()), "{}", table.stdout);
    let totals = "in log 30 · applied 30 · duplicate 0 · dead 0 · missing 0 · not applied yet 0\n";
    let (partitions, rest) = table.stdout.split_once("accepted ").expect(&table.stdout);
    let (accepted, rest) = rest.split_once(totals).expect(&table.stdout);
    assert!(accepted.starts_with(|c: char| c.is_ascii_digit()), "{accepted}");
    assert_eq!(partitions.lines().count(), 2 + 1 + 8 + 1, "{}", table.stdout);
    let (generation, rest) = rest.split_once('\n').expect("a line for the live generation");
    assert!(generation.starts_with("generation 1 is live since "), "{generation}");
    // The tests' broker is a single one, which `status` warns of.
    assert_eq!(rest.is_empty(), running.log().starts_with("sqlite:"), "{rest}");
}

#[tokio::test]
async fn status_makes_nothing_where_nothing_is() {
    let directory = TestDirectory::create("status");
    let at = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let ended = Dashi::run(&["status", "--log", &at("log.db"), "--store", &at("store.db")], &[]).await;
    assert_refused(&ended, 1, &["there is no store at", "dashi serve"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn settings_are_shown_with_their_origin_and_without_secrets() {
    let env = [
        ("APP_SECRET", "hunter2"),
        ("DATABASE_URL", "postgres://u:hunter2@db.example/umami"),
        ("DASHI_INGEST_IN_FLIGHT_MAX", "7"),
    ];
    let shown = Dashi::run(&["config", "show", "--log", "sqlite:elsewhere/log.db"], &env).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(!shown.stdout.contains("hunter2"), "{}", shown.stdout);
    for line in [
        "secret = \"redacted\" # env APP_SECRET",
        "store = \"postgres://u:redacted@db.example/umami\" # env DATABASE_URL",
        "in_flight_max = 7 # env DASHI_INGEST_IN_FLIGHT_MAX",
        "log = \"sqlite:elsewhere/log.db\" # flag --log",
        "grace_ms = 25000 # default",
    ] {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(shown.stdout.lines().any(|shown| words(shown) == words(line)), "{line}:\n{}", shown.stdout);
    }
    let shown = Dashi::run(&["config", "show", "--json"], &env).await;
    let settings: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(
        settings["ingest.in_flight_max"],
        json!({ "value": 7, "origin": "env DASHI_INGEST_IN_FLIGHT_MAX" })
    );
    assert!(!shown.stdout.contains("hunter2"));
}

/// The ending of `config check`, and of `serve`, which refuses the same.
async fn refused(args: &[&str], env: &[(&str, &str)]) -> [Ended; 2] {
    let listen = format!("127.0.0.1:{}", free_port());
    let check = Dashi::run(&[&["config", "check"], args].concat(), env).await;
    let serve = Dashi::run(&[&["serve", "--listen", &listen], args].concat(), env).await;
    [check, serve]
}

#[tokio::test]
async fn settings_that_must_not_run_are_refused_with_the_reason() {
    let good = Dashi::run(&["config", "check"], &[]).await;
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    let file = TestDirectory::create("settings");
    let path = file.path().join("dashi.toml");
    let path = path.to_str().unwrap();
    fs::write(path, "[ingest]\nin_fligth_max = 7\n").unwrap();
    let kafka = "kafka://127.0.0.1:1/t";
    let postgres = "postgres://u:hunter2@127.0.0.1:1/d";
    let secret = ("APP_SECRET", SECRET);
    for (args, env, words) in [
        (
            &["--config", path][..],
            &[][..],
            &["ingest.in_fligth_max", "did you mean ingest.in_flight_max?", path][..],
        ),
        (&[], &[("DASHI_INGEST_IN_FLIGHTS_MAX", "7")], &["did you mean DASHI_INGEST_IN_FLIGHT_MAX?"]),
        (&["--config", "/nowhere/dashi.toml"], &[], &["/nowhere/dashi.toml"]),
        (&["--store", postgres], &[], &["store = postgres://u:redacted@", "without a secret", "APP_SECRET"]),
        (&["--log", kafka], &[], &["log = kafka://", "without a secret", "APP_SECRET"]),
        (
            &["--log", kafka],
            &[secret, ("DASHI_INGEST_REQUEST_TIMEOUT_MS", "10000")],
            &["ingest.request_timeout_ms", "kafka.delivery_timeout_ms"],
        ),
        (&[], &[("DASHI_INGEST_IN_FLIGHT_MAX", "0")], &["ingest.in_flight_max = 0"]),
        (&[], &[("DASHI_INGEST_IN_FLIGHT_MAX", "many")], &["ingest.in_flight_max", "many"]),
        (&[], &[("TZ", "Mars/Olympus")], &["timezone", "Mars/Olympus"]),
        (&["--log", "sqlite:same.db", "--store", "sqlite:same.db"], &[], &["same.db"]),
        (&["--store", "mysql://h/d"], &[], &["store", "mysql://h/d"]),
        (&[], &[("DASHI_KAFKA_PROPERTIES", "acks=1"), secret], &["kafka.properties.acks"]),
    ] {
        for ended in refused(args, env).await {
            assert_refused(&ended, 2, words);
            assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        }
    }
    assert_refused(&Dashi::run(&["serve", "--lisen", "127.0.0.1:1"], &[]).await, 2, &["--listen"]);
    assert_refused(&Dashi::run(&["serve", "--listen", "nowhere"], &[]).await, 2, &["nowhere"]);
}

#[tokio::test]
async fn the_first_start_makes_a_website_and_a_line_that_can_be_pasted() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut dashi = Dashi::spawn(&["serve", "--listen", &address], &[]);
    dashi.wait_ready(&format!("http://{address}")).await;
    let said = dashi.stdout();
    assert!(said.contains("\"default\"") && said.contains(&format!("http://{address}")), "{said}");
    let line = said.lines().find(|line| line.trim().starts_with("curl ")).expect("a line to paste");
    let sent = Command::new("sh").args(["-c", line]).output().expect("sh and curl are there");
    let answer: Value =
        serde_json::from_slice(&sent.stdout).unwrap_or_else(|error| panic!("{error}: {sent:?}"));
    assert!(answer["cache"].is_string(), "{answer}");

    let log = format!("sqlite:{}", dashi.directory().join("data/log.db").display());
    let store = format!("sqlite:{}", dashi.directory().join("data/store.db").display());
    let at = ["--log", log.as_str(), "--store", store.as_str()];
    let listed = Dashi::run(&[&["website", "list", "--json"][..], &at].concat(), &[]).await;
    let websites: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((websites.len(), &websites[0]["name"]), (1, &json!("default")));
    assert!(said.contains(websites[0]["id"].as_str().unwrap()), "{said}");
    eventually(Duration::from_secs(20), "the event is in the tables", async || {
        let status = Dashi::run(&[&["status"][..], &at].concat(), &[]).await;
        let settled = status
            .stdout
            .contains("in log 1 · applied 1 · duplicate 0 · dead 0 · missing 0 · not applied yet 0\n");
        if settled { Ok(()) } else { Err(status.stdout) }
    })
    .await;
}

#[tokio::test]
async fn a_secret_of_its_own_is_kept_beside_the_log_for_its_owner_alone() {
    let mut running = Setup::Embedded.start(&[("APP_SECRET", "")]).await;
    let path = running.directory().join("secret");
    let secret = fs::read_to_string(&path).expect("it was made at the first start");
    assert!(secret.len() >= 32, "{} characters", secret.len());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let payload = json!({ "url": "/", "timestamp": 1_777_593_600 });
    let first = running.accept("event", &payload).await;
    assert_eq!(running.dashi().terminate().await, Some(0));
    running.start_again().await;
    assert_eq!(fs::read_to_string(&path).unwrap(), secret);
    let second = running.accept("event", &payload).await;
    assert_eq!(second["sessionId"], first["sessionId"], "the same visitor after a restart");
    assert!(!running.dashi().logs().contains(&secret), "a secret is not logged");
    let other = Setup::Embedded.start(&[("APP_SECRET", "")]).await;
    assert_ne!(other.accept("event", &payload).await["sessionId"], first["sessionId"]);
}

/// Commands that change something print what they changed as one JSON value.
#[tokio::test]
async fn what_a_command_changed_is_printed_as_json() {
    let directory = TestDirectory::create("json");
    let deployment = Deployment::embedded(&directory);
    let run = async |args: &[&str]| -> Value {
        let ended = deployment.run(&[args, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {}{}", ended.stdout, ended.stderr);
        serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ended.stdout))
    };
    let website = run(&["website", "add", "--name", "One", "--domain", "one.example"]).await;
    let id = website["id"].as_str().expect("an id").to_owned();
    assert_eq!((&website["name"], &website["domain"]), (&json!("One"), &json!("one.example")));
    for (args, expected) in [
        (["website", "recordings", &id, "on"], json!({ "id": id, "recordings": true })),
        (["website", "heatmaps", &id, "off"], json!({ "id": id, "heatmaps": false })),
        (["website", "block", &id, "10.0.0.0/8"], json!({ "id": id, "blocked_addresses": "10.0.0.0/8" })),
    ] {
        assert_eq!(run(&args).await, expected);
    }
    assert_eq!(run(&["website", "remove", &id]).await, json!({ "id": id, "removed": true }));
    for (kind, more) in [("link", &["--url", "https://a.example/"][..]), ("pixel", &[])] {
        let added = run(&[&[kind, "add", "--name", "x", "--slug", "y"], more].concat()).await;
        assert_eq!(added["slug"], "y", "{added}");
        let id = added["id"].as_str().expect("an id");
        assert_eq!(run(&[kind, "remove", id]).await, json!({ "id": id, "removed": true }));
    }
    let checked = run(&["config", "check"]).await;
    assert_eq!((&checked["valid"], &checked["reached"]), (&json!(true), &json!(false)));
    assert!(run(&["man"]).await["page"].as_str().is_some_and(|page| page.contains(".TH dashi 1")));
    let pages = directory.path().join("man");
    let files = run(&["man", "--output", pages.to_str().expect("UTF-8")]).await;
    let files: Vec<_> = files["files"].as_array().expect("files").iter().filter_map(Value::as_str).collect();
    assert!(files.iter().any(|file| file.ends_with("/dashi-replay-run.1")), "{files:?}");
    assert!(files.iter().all(|file| std::path::Path::new(file).exists()), "{files:?}");
    let there = fs::read_dir(&pages).unwrap().count();
    assert_eq!(files.len(), there, "every page is named");
    assert_eq!(run(&["completions", "bash"]).await["shell"], "bash");
}

#[tokio::test]
async fn health_says_whether_a_running_dashi_is_ready() {
    let mut running = Setup::Embedded.start(&[]).await;
    let url = running.url("");
    let lines = Dashi::run(&["health", "--url", &url], &[]).await;
    assert_eq!(lines.code, Some(0), "{}", lines.stderr);
    assert!(lines.stdout.starts_with("ready\n") && lines.stdout.contains("  store "), "{}", lines.stdout);
    let health = Dashi::run(&["health", "--url", &url, "--json"], &[]).await;
    assert_eq!(health.code, Some(0), "{}", health.stderr);
    let ready: Value = serde_json::from_str(&health.stdout).unwrap();
    assert_eq!(ready["ready"], true, "{ready}");
    for check in ["event_log", "store", "websites", "projector"] {
        assert_eq!(ready["checks"][check], "ok", "{ready}");
    }
    let live = http::get(&running.url("/health/live")).await.unwrap();
    assert_eq!((live.status, live.json()), (200, json!({ "live": true })));
    let metrics = http::get(&running.url("/metrics")).await.unwrap();
    assert!(metrics.status == 200 && metrics.text().ends_with("# EOF\n"), "{}", metrics.text());
    assert_eq!(running.dashi().terminate().await, Some(0));
    assert_refused(&Dashi::run(&["health", "--url", &url], &[]).await, 1, &["does not answer"]);
    let secure = Dashi::run(&["health", "--url", "https://a.example"], &[]).await;
    assert_refused(&secure, 2, &["https://a.example", "http://HOST:PORT"]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let running = Setup::Embedded.start(&[]).await;
    let ended = Dashi::run(&["serve", "--listen", running.authority()], &[]).await;
    assert_refused(&ended, 1, &["cannot listen on", running.authority(), "in use"]);
    assert_eq!(running.send(&submission("event", &json!({ "url": "/" }))).await.status, 200);
}

async fn a_stop_under_load_answers_and_keeps_everything_acknowledged(setup: Setup) {
    const CONNECTIONS: usize = 16;
    let mut running = setup.start(&[]).await;
    let stopping = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..CONNECTIONS {
        let mut connection = Connection::open(running.authority()).await.unwrap();
        let stopping = Arc::clone(&stopping);
        clients.spawn(async move {
            let mut acknowledged = Vec::new();
            for request in 0.. {
                let tag = format!("{client}-{request}");
                let body = submission("event", &json!({ "url": "/", "tag": tag, "id": tag }));
                let headers = [("user-agent", AGENT)];
                match connection.post_json("/api/send", &body, &headers).await {
                    Ok(answer) if answer.status == 200 => acknowledged.push(tag),
                    Ok(answer) => panic!("{} {}", answer.status, answer.text()),
                    // The connection was closed between two requests.
                    Err(_) => {
                        assert!(stopping.load(Ordering::SeqCst), "refused before the stop");
                        break;
                    }
                }
            }
            acknowledged
        });
    }
    eventually(Duration::from_secs(60), "the load is on", async || running.totals().await.in_log > 200).await;
    stopping.store(true, Ordering::SeqCst);
    assert_eq!(running.dashi().terminate().await, Some(0), "{}", running.dashi().stderr());
    let acknowledged: Vec<String> = clients.join_all().await.into_iter().flatten().collect();
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    assert_eq!(running.complaints(), [""; 0]);

    let records = running.records().await;
    let in_log: HashSet<String> = records
        .iter()
        .map(|record| {
            let event = Event::decode(&record.value).expect("an event");
            event.submission.payload.tag.expect("a tag").into_owned()
        })
        .collect();
    assert_eq!(in_log.len(), records.len(), "nothing is in the log twice");
    for tag in &acknowledged {
        assert!(in_log.contains(tag), "{tag} was acknowledged and is not in the log");
    }
    assert_eq!(in_log.len(), acknowledged.len(), "what the stop found in flight was answered");
    running.start_again().await;
    let totals = running.applied(records.len() as u64).await;
    assert_eq!((totals.in_log, totals.applied), (records.len() as u64, records.len() as u64));
    let rows = running.rows("website_event", "1 = 1").await;
    let stored: HashSet<String> = rows.iter().map(|row| row["tag"].as_str().unwrap().to_owned()).collect();
    assert_eq!((rows.len(), stored), (records.len(), in_log), "each is in the tables once");
}

#[tokio::test]
async fn a_key_that_is_listed_by_its_hash_opens_and_the_hash_does_not() {
    let made = Dashi::run(&["keys", "new", "--json"], &[]).await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    let (key, hash) = (made["key"].as_str().unwrap(), made["hash"].as_str().unwrap());
    assert!(hash.starts_with("sha256:") && !hash.contains(key), "{made}");
    let again = Dashi::run(&["keys", "new"], &[]).await.stdout;
    assert!(again.contains("\nhash  sha256:") && !again.contains(key), "two keys are the same: {again}");

    let mut running = Setup::Embedded.start(&[("DASHI_API_KEYS", hash)]).await;
    for path in ["/api/websites", "/console/data/status"] {
        for (sent, status) in [(key, 200), (hash, 401), (&hash["sha256:".len()..], 401), ("", 401)] {
            let bearer = format!("Bearer {sent}");
            let headers = [("authorization", bearer.as_str())];
            let answer = http::request(Method::GET, &running.url(path), "", &headers).await.unwrap();
            assert_eq!(answer.status, status, "{path} with {sent}: {}", answer.text());
        }
    }
    assert_eq!(running.dashi().terminate().await, Some(0));
    assert!(!running.dashi().logs().contains(hash), "the logs show the hash");

    let doctor = async |keys: &str| {
        let directory = TestDirectory::create("doctor-keys");
        let url = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
        let words = ["doctor", "--json", "--log", &url("log.db"), "--store", &url("store.db")];
        let text = Dashi::run(&words, &[("DASHI_API_KEYS", keys)]).await.stdout;
        assert!(!text.contains(key) && !text.contains(hash), "it shows {keys}: {text}");
        let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
        findings.into_iter().find(|finding| finding["subject"] == "keys").unwrap()["level"].clone()
    };
    assert_eq!((doctor(hash).await, doctor(key).await), (json!("ok"), json!("warn")));
    let cut = Dashi::run(&["config", "check"], &[("DASHI_API_KEYS", &hash[..20])]).await;
    assert_refused(&cut, 2, &["api.keys = (key 1 of the list)", "64 hexadecimal digits", "dashi keys new"]);
}
