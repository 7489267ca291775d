//! The database, the broker or the disk is away. Every request is answered in bounded time, nothing that was
//! acknowledged is lost, and all goes on by itself when it is back.

use std::time::{Duration, Instant};

use dashi_load::{LoadPlan, Mode, Report};
use integration_tests::http::{self, Answer};
use integration_tests::{
    Deployment, KafkaServer, Ledger, PostgresServer, Server, Space, TestDatabase, TestDirectory, eventually,
    free_port, kafka,
};
use serde_json::{Value, json};

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// How long an answer may take on a busy machine that has nothing to wait for.
const PROMPT: Duration = Duration::from_secs(2);

/// Most memory of a process that only has to let a log grow on disk, and then to catch up.
const MEMORY_MAX_KIB: u64 = 256 * 1024;

fn steady(requests_per_s: f64) -> impl FnOnce(&mut LoadPlan) {
    move |plan| {
        plan.connections = 8;
        plan.mode = Mode::Open { requests_per_s };
        plan.duration = 5 * SOON;
    }
}

async fn readiness(server: &Server) -> (u16, Value) {
    let answer = http::get(&format!("{}/health/ready", server.url())).await.expect("it answers");
    (answer.status, answer.json())
}

/// Asserts that the answer says "not now, try again".
#[track_caller]
fn assert_deferred(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    let retry_after_s: u64 =
        answer.header("retry-after").expect("a Retry-After").parse().expect("in seconds");
    assert!((1..=60).contains(&retry_after_s), "{retry_after_s}");
}

/// Asserts that every request was answered 200, and soon.
#[track_caller]
fn assert_undisturbed(report: &Report) {
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    assert_eq!((report.counts.errors.total(), report.counts.missed), (0, 0), "{report}");
    assert!(report.latency.max_us < PROMPT.as_micros() as u64, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_outage_delays_rows_only_with_an_embedded_log() {
    let directory = TestDirectory::create("outage");
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    a_database_outage_delays_rows_only(log, Outage::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_outage_delays_rows_only_on_kafka() {
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("outage"));
    a_database_outage_delays_rows_only(log, Outage::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_delays_rows_only() {
    let directory = TestDirectory::create("outage");
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    a_database_outage_delays_rows_only(log, Outage::Frozen).await;
}

/// How a database goes away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// As in a crash: connections are cut, and new ones are refused.
    Stopped,
    /// Connections stay open and silent.
    Frozen,
}

async fn a_database_outage_delays_rows_only(log: String, outage: Outage) {
    let mut postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let deployment = Deployment::new(log, postgres.url("dashi"));
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&server.authority, steady(400.0));
    eventually(SOON, "rows appear", async || {
        Ok::<_, String>(deployment.status().await?.totals.applied > 200)
    })
    .await;

    match outage {
        Outage::Stopped => postgres.stop_immediate().await,
        Outage::Frozen => postgres.freeze(),
    }
    // The outage lasts this long, whatever happens in it; meanwhile nobody waits for the database.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        let asked = Instant::now();
        let (status, checks) = readiness(&server).await;
        assert_eq!(status, 200, "it can accept durably: {checks}");
        assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
        if began.elapsed() > Duration::from_secs(1) {
            assert_ne!(checks["checks"]["store"], "ok", "{checks}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let before = server.dashi.memory_peak_kib().expect("it runs");
    match outage {
        Outage::Stopped => postgres.start_again().await,
        Outage::Frozen => postgres.thaw(),
    }
    let report = ledger.stop(load).await;
    assert_undisturbed(&report);

    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    let after = server.dashi.memory_peak_kib().expect("it runs");
    assert!(after < MEMORY_MAX_KIB, "{before} KiB in the outage, {after} KiB at most");
    assert_eq!(readiness(&server).await.1["checks"]["store"], "ok");
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_database_a_start_takes_what_tokens_vouch_for_and_recovers_by_itself() {
    let directory = TestDirectory::create("outage");
    let mut postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi"));
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    let token =
        ledger.send(&server.authority, &[]).await.unwrap().json()["cache"].as_str().unwrap().to_owned();
    assert_eq!(server.dashi.terminate().await, Some(0));
    postgres.stop_fast().await;

    let mut servers = Vec::new();
    for role in ["serve", "collect"] {
        let mut server = deployment.start(role);
        eventually(SOON, "it lives", async || {
            assert!(server.dashi.is_running(), "{}", server.dashi.stderr());
            let answer = http::get(&format!("{}/health/live", server.url())).await;
            answer.map(|answer| answer.status == 200).map_err(|error| error.to_string())
        })
        .await;
        let (status, checks) = readiness(&server).await;
        assert_eq!(status, 503, "{role}: {checks}");
        let checks = &checks["checks"];
        assert_eq!(checks["event_log"], "ok", "{role}: {checks}");
        for check in ["websites", "store"] {
            assert_ne!(checks[check], "ok", "{role}: {checks}");
        }
        let vouched = ledger.send(&server.authority, &[("x-umami-cache", &token)]).await.unwrap();
        assert_eq!(vouched.status, 200, "{role}: {}", vouched.text());
        // How the session of an identified visitor is computed is for the database to say.
        assert_ne!(checks["session_ids"], "ok", "{role}: {checks}");
        let payload = json!({ "website": deployment.website(), "url": "/", "id": "user-1" });
        let headers = [("x-umami-cache", token.as_str()), ("user-agent", integration_tests::setup::AGENT)];
        let body = json!({ "type": "event", "payload": payload });
        let url = format!("{}/api/send", server.url());
        assert_deferred(&http::post_json(&url, &body, &headers).await.unwrap());
        let asked = Instant::now();
        assert_deferred(&ledger.send(&server.authority, &[]).await.unwrap());
        assert!(asked.elapsed() < Duration::from_secs(7), "{role}: {:?}", asked.elapsed());
        servers.push(server);
    }

    postgres.start_again().await;
    for server in &mut servers {
        let url = server.url();
        server.dashi.wait_ready(&url).await;
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    }
    ledger.check().await;
    // A partition without records may not have asked yet.
    eventually(SOON, "every partition has the store again", async || {
        let (_, checks) = readiness(&servers[0]).await;
        if checks["checks"]["projector"] == "ok" { Ok(()) } else { Err(checks.to_string()) }
    })
    .await;
    for mut server in servers {
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_broker_every_request_is_deferred_in_time_and_all_goes_on_when_it_is_back() {
    const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
    let mut broker = KafkaServer::start().await;
    let database = TestDatabase::create().await;
    let deployment = Deployment::new(format!("kafka://{}/outage", broker.address()), database.url())
        .with("DASHI_KAFKA_DELIVERY_TIMEOUT_MS", &DELIVERY_TIMEOUT.as_millis().to_string())
        .with("DASHI_INGEST_REQUEST_TIMEOUT_MS", "5000");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    // Each connection waits for its answer: with fixed times to send at, a request would also wait for those before it.
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 8;
        plan.duration = 5 * SOON;
    });
    eventually(SOON, "rows appear", async || {
        Ok::<_, String>(deployment.status().await?.totals.applied > 200)
    })
    .await;

    for _ in 0..2 {
        broker.kill();
        let began = Instant::now();
        let mut asked = 0;
        while began.elapsed() < Duration::from_secs(6) {
            let sent = Instant::now();
            assert_deferred(&ledger.send(&server.authority, &[]).await.unwrap());
            let took = sent.elapsed();
            assert!(took < DELIVERY_TIMEOUT + Duration::from_secs(2), "{took:?}");
            asked += 1;
        }
        let sent = Instant::now();
        let (status, checks) = readiness(&server).await;
        assert_eq!(status, 503, "{checks}");
        assert_ne!(checks["checks"]["event_log"], "ok", "{checks}");
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
        assert!(asked >= 2, "{asked}");

        broker.start_again().await;
        eventually(SOON, "events are taken again", async || {
            ledger.send(&server.authority, &[]).await.map(|answer| answer.status == 200)
        })
        .await;
        eventually(SOON, "it is ready again", async || readiness(&server).await.0 == 200).await;
    }
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200, &503], "{report}");
    assert_eq!(report.counts.errors.total(), 0, "{report}");
    assert!(report.latency.max_us < 5_000_000, "{report}");
    ledger.check().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_requests_are_deferred_and_all_goes_on_when_there_is_space() {
    // Where nobody may mount, the other test still shows it.
    without_space(Space::small_disk(64)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_files_may_not_grow_requests_are_deferred_and_all_goes_on_when_they_may() {
    without_space(Space::files()).await;
}

async fn without_space(space: Space) {
    let file = |name: &str| format!("sqlite:{}", space.directory().join(name).display());
    let deployment = &Deployment::new(file("log.db"), file("store.db"));
    deployment.register().await;
    let mut server = space.start(deployment, "serve", &format!("127.0.0.1:{}", free_port())).ready().await;
    let mut ledger = Ledger::new(deployment);
    let load = ledger.start(&server.authority, steady(100.0));
    for _ in 0..2 {
        eventually(SOON, "rows appear", async || {
            Ok::<_, String>(deployment.status().await?.totals.applied > 100)
        })
        .await;
        space.take([&server.dashi]);
        // A small record may still find a place, but not for long.
        let (began, mut in_a_row) = (Instant::now(), 0);
        while in_a_row < 20 {
            let sent = Instant::now();
            let answer = ledger.send(&server.authority, &[]).await.unwrap();
            assert!(sent.elapsed() < 2 * PROMPT, "{:?}", sent.elapsed());
            if answer.status == 200 {
                in_a_row = 0;
                assert!(began.elapsed() < SOON, "there is space without end");
            } else {
                assert_deferred(&answer);
                in_a_row += 1;
            }
        }
        // What asks needs little space: it may find some a few times.
        eventually(SOON, "it is not ready", async || {
            let (status, checks) = readiness(&server).await;
            let shown = status == 503 && checks["checks"]["event_log"] != "ok";
            if shown { Ok(()) } else { Err(checks.to_string()) }
        })
        .await;

        space.give([&mut server.dashi]);
        eventually(SOON, "events are taken again", async || {
            ledger.send(&server.authority, &[]).await.map(|answer| answer.status == 200)
        })
        .await;
        eventually(SOON, "it is ready again", async || readiness(&server).await.0 == 200).await;
    }
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200, &503], "{report}");
    assert_eq!(report.counts.errors.total(), 0, "{report}");
    ledger.check().await;

    // Dying without space loses nothing either.
    space.take([&server.dashi]);
    let load = ledger.start(&server.authority, steady(100.0));
    eventually(SOON, "requests are deferred", async || {
        ledger.send(&server.authority, &[]).await.map(|answer| answer.status == 503)
    })
    .await;
    server.dashi.kill9();
    ledger.stop(load).await;
    space.give([&mut server.dashi]);
    let mut server = deployment.start("serve").ready().await;
    ledger.check().await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}
