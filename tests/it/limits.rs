//! Limits of what the collector takes in: shedding by the age of the backlog, rates and numbers by website and address,
//! and the block list. Each refusal is counted once, and whatever is accepted is in the log.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use integration_tests::http::{self, Answer};
use integration_tests::proxy::Proxy;
use integration_tests::setup::{AGENT, WEBSITE, submission};
use integration_tests::{
    Deployment, Ledger, Running, Server, Setup, TestDatabase, TestDirectory, eventually, kafka,
    on_both_setups,
};
use serde_json::{Value, json};

on_both_setups!(
    each_website_and_address_has_its_limits,
    the_block_list_changes_without_a_restart,
    visits_and_chunks_are_limited_and_visitors_arrive,
);

/// How long a busy machine may take for what usually takes some seconds.
const SOON: Duration = Duration::from_secs(90);

const LIMITED_ANSWER: &str =
    r#"{"error":{"message":"Too many requests","code":"too-many-requests","status":429}}"#;
const SHED_ANSWER: &str =
    r#"{"error":{"message":"Service unavailable","code":"service-unavailable","status":503}}"#;

/// A second website.
const OTHER: &str = "22222222-2222-4222-8222-222222222222";

/// Posts a page view of a website from an address, and returns the answer.
async fn send_from(authority: &str, website: &str, address: &str) -> Answer {
    let body =
        json!({ "type": "event", "payload": { "website": website, "url": "/", "hostname": "example.com" } });
    let headers = [("user-agent", AGENT), ("x-real-ip", address)];
    http::post_json(&format!("http://{authority}/api/send"), &body, &headers).await.expect("an answer")
}

async fn metric(authority: &str, series: &str) -> Option<f64> {
    let text = http::get(&format!("http://{authority}/metrics")).await.expect("metrics").text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn readiness(authority: &str) -> Value {
    http::get(&format!("http://{authority}/health/ready")).await.expect("it answers").json()
}

fn outcome(name: &str) -> String {
    format!("dashi_ingest_events_total{{outcome=\"{name}\"}}")
}

fn retry_after_s(answer: &Answer) -> u64 {
    let value = answer.header("retry-after").unwrap_or_else(|| panic!("{} {}", answer.status, answer.text()));
    value.parse().expect("whole seconds")
}

/// Writes a file beside its place and moves it there, as editors and tools do.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("it can be written");
    std::fs::rename(&beside, path).expect("it can be moved");
}

/// Replaces the limits file and waits until the process has it in use, by an entry that this text adds for a probe.
async fn replace_and_wait(running: &Running, path: &Path, text: &str) {
    let probe = "99999999-9999-4999-8999-999999999999";
    let count = std::cell::Cell::new(0);
    let number = text.len() % 200 + 1;
    // A distinct id that nothing else has used shows that this version is read.
    let name = format!("probe {number} {}", uuid::Uuid::now_v7());
    replace(path, &format!("{text}\nblock distinct-id {probe} {name}\n"));
    eventually(SOON, "the limits file is in use", async || {
        count.set(count.get() + 1);
        let body = json!({ "type": "event", "payload": { "website": probe, "id": name } });
        let answer = running.send(&body).await;
        if answer.status == 403 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

async fn each_website_and_address_has_its_limits(setup: Setup) {
    let mut running = setup
        .start(&[("DASHI_LIMITS_WEBSITE_DAY_EVENTS_MAX", "6"), ("DASHI_LIMITS_ADDRESS_DAY_EVENTS_MAX", "4")])
        .await;
    let authority = running.authority().to_owned();
    for _ in 0..4 {
        assert_eq!(send_from(&authority, WEBSITE, "192.0.2.1").await.status, 200);
    }
    let refused = send_from(&authority, WEBSITE, "192.0.2.1").await;
    assert_eq!((refused.status, refused.text().as_str()), (429, LIMITED_ANSWER));
    assert!((1..=86_400).contains(&retry_after_s(&refused)), "until the day is over");
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
    // Of the elements of a batch, the first two fit; each of the others has its own answer.
    let element = submission("event", &json!({ "url": "/b" }));
    let batch = json!([element, element, {}, element, element]).to_string();
    let answer = running.post("/api/batch", batch.clone(), &[("x-real-ip", "192.0.2.2")]).await;
    let body = answer.json();
    assert_eq!((answer.status, &body["processed"], &body["errors"]), (200, &json!(2), &json!(3)), "{body}");
    let statuses: Vec<_> = body["details"]
        .as_array()
        .expect("details")
        .iter()
        .map(|one| &one["response"]["error"]["status"])
        .collect();
    assert_eq!(statuses, [400, 429, 429], "{body}");
    assert!(retry_after_s(&answer) >= 1);
    // None of them fits: the request is refused as a whole, so that the client sends it again.
    let answer = running.post("/api/batch", batch, &[("x-real-ip", "192.0.2.2")]).await;
    assert_eq!((answer.status, answer.text().as_str()), (429, LIMITED_ANSWER));
    assert!(retry_after_s(&answer) >= 1);

    running.applied(6).await;
    for (name, count) in
        [("accepted", 6.0), ("limited_address_day", 1.0), ("limited_website_day", 6.0), ("invalid", 2.0)]
    {
        assert_eq!(metric(&authority, &outcome(name)).await, Some(count), "{name}");
    }
    assert_eq!(running.dashi().terminate().await, Some(0));
    let ended = running.run(&["audit", "--json"]).await;
    let found: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((ended.code, &found["findings"]), (Some(0), &json!([])), "{found}");
    let refused = json!({ "limited_address_day": 1, "limited_website_day": 6, "invalid": 2 });
    assert_eq!((&found["total"]["refused"], &found["total"]["in_log"]), (&refused, &json!(6)), "{found}");
}

#[tokio::test]
async fn a_rate_refills_and_each_address_and_exception_has_its_own() {
    let directory = TestDirectory::create("limits");
    let path = directory.path().join("limits");
    replace(&path, "limit address 198.51.100.0/24 none\n");
    let running = Setup::Embedded
        .start(&[
            ("DASHI_LIMITS_ADDRESS_RATE_EVENTS_MAX", "1"),
            ("DASHI_LIMITS_ADDRESS_BURST_EVENTS_MAX", "20"),
            ("DASHI_LIMITS_FILE", path.to_str().expect("UTF-8")),
        ])
        .await;
    let authority = running.authority();
    let flood = async |address: &str| {
        let batch = Value::from(vec![submission("event", &json!({ "url": "/" })); 100]).to_string();
        let answer = running.post("/api/batch", batch, &[("x-real-ip", address)]).await;
        answer.json()["processed"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
    };
    // A slow machine may refill one or two while it works.
    assert!((20..30).contains(&flood("192.0.2.1").await));
    assert!((20..30).contains(&flood("2001:db8::1").await));
    let refused = send_from(authority, WEBSITE, "2001:db8:0:0:ffff::").await;
    assert_eq!((refused.status, retry_after_s(&refused)), (429, 1), "of the same 64 bits");
    assert_eq!(send_from(authority, WEBSITE, "2001:db8:0:1::1").await.status, 200);
    assert_eq!(flood("198.51.100.7").await, 100, "the file excepts it");
    assert_eq!(flood("198.51.100.7").await, 100);
    eventually(SOON, "the rate refills", async || {
        let answer = send_from(authority, WEBSITE, "192.0.2.1").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.status) }
    })
    .await;
    let accepted = metric(authority, &outcome("accepted")).await.expect("some are") as u64;
    assert_eq!(running.applied(accepted).await.in_log, accepted);
}

async fn the_block_list_changes_without_a_restart(setup: Setup) {
    let directory = TestDirectory::create("limits");
    let path = directory.path().join("limits");
    let running = setup.start(&[("DASHI_LIMITS_FILE", path.to_str().expect("UTF-8"))]).await;
    let authority = running.authority();
    let identified = submission("identify", &json!({ "id": "ada lovelace", "data": { "a": 1 } }));
    let elsewhere = submission("event", &json!({ "url": "/", "ip": "203.0.113.7" }));
    assert_eq!(
        send_from(authority, WEBSITE, "203.0.113.7").await.status,
        200,
        "without a file nothing is blocked"
    );
    let ready = readiness(authority).await;
    assert_eq!(ready["ready"], true);
    assert!(
        ready["checks"]["limits_file"].as_str().is_some_and(|text| text.contains("No such file")),
        "{ready}"
    );

    replace_and_wait(&running, &path, "block address 203.0.113.0/24\nblock distinct-id * ada lovelace").await;
    let refused = send_from(authority, WEBSITE, "203.0.113.7").await;
    let forbidden = r#"{"error":{"message":"Forbidden","code":"forbidden","status":403}}"#;
    assert_eq!((refused.status, refused.text().as_str()), (403, forbidden));
    assert_eq!(running.send(&elsewhere).await.status, 403, "the address that the payload names counts, too");
    assert_eq!(running.send(&identified).await.status, 403);
    assert_eq!(send_from(authority, WEBSITE, "192.0.2.1").await.status, 200);
    // Readiness may be an answer of a moment ago.
    eventually(SOON, "the file is shown as in use", async || {
        let shown = readiness(authority).await["checks"]["limits_file"].clone();
        if shown == "ok" { Ok(()) } else { Err(shown) }
    })
    .await;
    assert_eq!(metric(authority, "dashi_ingest_limits_file_current").await, Some(1.0));

    // A wrong file changes nothing, and says where it is wrong.
    replace(&path, "block address 192.0.2.1\nblock adress 192.0.2.2\n");
    eventually(SOON, "the wrong line is shown", async || {
        let ready = readiness(authority).await;
        let text = ready["checks"]["limits_file"].as_str().unwrap_or_default().to_owned();
        if text.contains("line 2: `block adress` is not known") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(readiness(authority).await["ready"], true);
    let checked = running.run(&["config", "check"]).await;
    assert_eq!(checked.code, Some(2), "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stderr.contains("line 2: `block adress` is not known"), "{}", checked.stderr);
    assert_eq!(metric(authority, "dashi_ingest_limits_file_current").await, Some(0.0));
    assert_eq!(send_from(authority, WEBSITE, "192.0.2.1").await.status, 200);
    assert_eq!(send_from(authority, WEBSITE, "203.0.113.7").await.status, 403);
    let complaints = running.complaints();
    assert!(
        complaints.iter().any(|line| line.contains("line 2: `block adress` is not known")),
        "{complaints:?}"
    );

    replace_and_wait(&running, &path, &format!("block website {WEBSITE}")).await;
    assert_eq!(send_from(authority, WEBSITE, "192.0.2.1").await.status, 403);
    replace_and_wait(&running, &path, "").await;
    assert_eq!(send_from(authority, WEBSITE, "203.0.113.7").await.status, 200);
    assert_eq!(running.send(&identified).await.status, 200);
    running.applied(5).await;
    for (name, count) in [("listed_address", 3.0), ("listed_website", 1.0), ("accepted", 5.0)] {
        assert_eq!(metric(authority, &outcome(name)).await, Some(count), "{name}");
    }
}

/// A visitor who follows a link, or loads a picture, is never refused; the visit is not recorded.
async fn visits_and_chunks_are_limited_and_visitors_arrive(setup: Setup) {
    let running = setup
        .start(&[("DASHI_LIMITS_WEBSITE_DAY_EVENTS_MAX", "1"), ("DASHI_INGEST_WEBSITE_REFRESH_MS", "100")])
        .await;
    let authority = running.authority();
    let set = running.run(&["website", "recordings", WEBSITE, "on"]).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    let link = ["link", "add", "--name", "n", "--slug", "sale", "--url", "https://shop.example/"];
    assert_eq!(running.run(&link).await.code, Some(0));
    let visit = async || {
        http::request(Method::GET, &running.url("/q/sale"), "", &[("user-agent", AGENT)])
            .await
            .expect("an answer")
    };
    eventually(SOON, "the link is known", async || {
        let head = http::request(Method::HEAD, &running.url("/q/sale"), "", &[]).await.expect("an answer");
        if head.status == 307 { Ok(()) } else { Err(head.status) }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(visit().await.status, 307);
    }
    let accepted = send_from(authority, WEBSITE, "192.0.2.1").await;
    assert_eq!(accepted.status, 200, "the link's visits are not the website's");
    let token = accepted.json()["cache"].as_str().expect("a token").to_owned();
    let chunk =
        json!({ "type": "record", "payload": { "website": WEBSITE, "events": [{ "timestamp": 1 }] } });
    let headers = [("x-umami-cache", token.as_str())];
    let of_a_bot = [headers[0], ("user-agent", "Googlebot/2.1")];
    eventually(SOON, "the collector takes recordings", async || {
        let answer = running.post("/api/record", chunk.to_string(), &of_a_bot).await.text();
        if answer == r#"{"beep":"boop"}"# { Ok(()) } else { Err(answer) }
    })
    .await;
    let refused = running.post("/api/record", chunk.to_string(), &headers).await;
    assert_eq!((refused.status, refused.text().as_str()), (429, LIMITED_ANSWER));
    running.applied(2).await;
    assert_eq!(metric(authority, &outcome("limited_website_day")).await, Some(2.0));
    assert_eq!(metric(authority, "dashi_ingest_unrecorded_visits_total").await, Some(2.0));
    let chunks = "dashi_ingest_recording_chunks_total{outcome=\"limited_website_day\"}";
    assert_eq!(metric(authority, chunks).await, Some(1.0));
}

/// With a backlog of more than three seconds, and a short wait, so that a test sees both ends.
fn shedding(deployment: Deployment, policy: &str) -> Deployment {
    deployment
        .with("DASHI_LIMITS_BACKLOG_POLICY", policy)
        .with("DASHI_LIMITS_BACKLOG_S_MAX", "3")
        .with("DASHI_LIMITS_RETRY_AFTER_S_MAX", "2")
        .with("DASHI_INGEST_RETRY_AFTER_S", "1")
}

async fn is_shed(server: &Server, website: &str) -> Result<(), String> {
    let answer = send_from(&server.authority, website, "192.0.2.1").await;
    if answer.status == 503 && answer.text() == SHED_ANSWER {
        assert!((1..=2).contains(&retry_after_s(&answer)));
        return Ok(());
    }
    Err(format!("{} {}", answer.status, answer.text()))
}

async fn is_taken(server: &Server, website: &str) -> Result<(), String> {
    let answer = send_from(&server.authority, website, "192.0.2.1").await;
    if answer.status == 200 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.text())) }
}

/// Nobody projects, so the backlog grows old and events are shed; then somebody does, and they are taken again. All that
/// was accepted is in the log and in the tables, once.
async fn a_backlog_sheds_and_what_was_accepted_is_there_once(deployment: Deployment) {
    let deployment = shedding(deployment, "shed");
    deployment.register().await;
    let mut collector = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&collector.authority, |plan| {
        plan.connections = 4;
        plan.mode = dashi_load::Mode::Open { requests_per_s: 100.0 };
        plan.duration = 4 * SOON;
    });
    // Each partition grows old by itself; the events of the load are in all of them.
    eventually(SOON, "events are shed", async || {
        let shed = metric(&collector.authority, &outcome("shed")).await;
        if shed.is_some_and(|shed| shed >= 50.0) { Ok(()) } else { Err(format!("{shed:?} are")) }
    })
    .await;
    let ready = readiness(&collector.authority).await;
    assert_eq!((&ready["ready"], &ready["backlog"]["policy"]), (&json!(true), &json!("shed")), "{ready}");
    assert!(ready["backlog"]["age_s"].as_u64().is_some_and(|age_s| age_s >= 3), "{ready}");
    assert!(ready["backlog"]["shedding_partitions"].as_u64().is_some_and(|count| count >= 1), "{ready}");
    let age_s = metric(&collector.authority, "dashi_ingest_backlog_age_seconds").await;
    assert!(age_s.is_some_and(|age_s| age_s > 3.0), "{age_s:?}");

    let projector = deployment.start("project").ready().await;
    eventually(SOON, "no partition sheds", async || {
        let ready = readiness(&collector.authority).await;
        if ready["backlog"]["shedding_partitions"] == 0 { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    let accepted = || metric_of(&collector, "accepted");
    let before = accepted().await;
    eventually(SOON, "events are taken again", async || accepted().await > before + 50.0).await;
    let report = ledger.stop(load).await;
    assert!(report.counts.statuses.get(&503).is_some_and(|count| *count > 0), "{:?}", report.counts.statuses);
    ledger.check().await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let ended = deployment.run(&["audit", "--json"]).await;
    let found: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((ended.code, &found["findings"]), (Some(0), &json!([])), "{found}");
    let total = &found["total"];
    assert_eq!((&total["accepted"], &total["not_read"]), (&total["in_log"], &json!(0)), "{found}");
    assert!(total["refused"]["shed"].as_u64().is_some_and(|shed| shed >= 50), "{found}");
    let logs = collector.dashi.stderr();
    assert!(logs.contains("events are shed") && logs.contains("events are no longer shed"), "{logs}");
    drop(projector);
}

async fn metric_of(server: &Server, name: &str) -> f64 {
    metric(&server.authority, &outcome(name)).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_sheds_and_what_was_accepted_is_there_once_embedded() {
    let directory = TestDirectory::create("shedding");
    a_backlog_sheds_and_what_was_accepted_is_there_once(Deployment::embedded(&directory)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_sheds_and_what_was_accepted_is_there_once_on_kafka_and_postgres() {
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("shedding"));
    let deployment = Deployment::new(log, database.url()).with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
    a_backlog_sheds_and_what_was_accepted_is_there_once(deployment).await;
}

/// A collector that starts beside an old backlog knows its age from the log; of two websites the less important one is
/// shed first.
#[tokio::test]
async fn a_collector_that_starts_beside_a_backlog_sheds_the_less_important_website() {
    let directory = TestDirectory::create("priorities");
    let path = directory.path().join("limits");
    let deployment = Deployment::embedded(&directory)
        .with("DASHI_EVENT_LOG_PARTITIONS", "1")
        .with("DASHI_LIMITS_FILE", path.to_str().expect("UTF-8"));
    deployment.register().await;
    let other = deployment.run(&["website", "add", "--name", "other", "--id", OTHER]).await;
    assert_eq!(other.code, Some(0), "{}", other.stderr);
    replace(&path, &format!("priority {} 9\n", deployment.website()));
    let accepting = deployment.start("collect").ready().await;
    let began = Instant::now();
    is_taken(&accepting, OTHER).await.expect("it has no policy");
    eventually(SOON, "the backlog is old", async || {
        let ready = readiness(&accepting.authority).await;
        if ready["backlog"]["age_s"].as_u64().is_some_and(|age_s| age_s >= 8) {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    })
    .await;
    is_taken(&accepting, OTHER).await.expect("the default takes everything");
    drop(accepting);
    // Past the limit of priority 0 at once; that of priority 9 is at 30 s.
    let collector = shedding(deployment.clone(), "priorities").start("collect").ready().await;
    eventually(SOON, "the other website is shed", async || is_shed(&collector, OTHER).await).await;
    let taken = is_taken(&collector, deployment.website()).await;
    // The age is never above the true one.
    assert!(taken.is_ok() || began.elapsed() > Duration::from_secs(30), "it is more important: {taken:?}");
    eventually(SOON, "in the end it is shed, too", async || is_shed(&collector, deployment.website()).await)
        .await;
    let projector = deployment.start("project").ready().await;
    for website in [OTHER, deployment.website()] {
        eventually(SOON, "it is taken again", async || is_taken(&collector, website).await).await;
    }
    drop(projector);
}

/// While the store is away, the age of the backlog is not known: everything is taken.
#[tokio::test]
async fn without_its_store_a_collector_sheds_nothing() {
    let database = TestDatabase::create().await;
    let (_, rest) = database.url().rsplit_once('@').expect("a URL with a user");
    let authority = rest.split('/').next().expect("an authority").to_owned();
    let proxy = Proxy::start(&authority).await;
    let directory = TestDirectory::create("shedding");
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let direct = shedding(Deployment::new(log, database.url()), "shed")
        .with("DASHI_EVENT_LOG_PARTITIONS", "1")
        .with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "2000");
    direct.register().await;
    let through = direct.with_store(&database.url().replace(&authority, &proxy.authority()));
    let collector = through.start("collect").ready().await;
    is_taken(&collector, direct.website()).await.expect("there is no backlog");
    eventually(SOON, "events are shed", async || is_shed(&collector, direct.website()).await).await;
    proxy.freeze();
    eventually(SOON, "events are taken without the store", async || {
        is_taken(&collector, direct.website()).await
    })
    .await;
    assert_eq!(readiness(&collector.authority).await["backlog"]["age_s"], Value::Null);
    assert_eq!(metric(&collector.authority, "dashi_ingest_backlog_age_seconds").await, None);
    proxy.thaw();
    eventually(SOON, "events are shed again", async || is_shed(&collector, direct.website()).await).await;
}
