//! A backfill of old events, over HTTP and by import, and live events beside it: these are applied in time, all are there once, and
//! a replay gives the same rows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dashi_domain::record::Event;
use integration_tests::log::{open_log, read_log};
use integration_tests::{
    Database, Deployment, Server, TestDatabase, TestDirectory, eventually, free_port, http, kafka,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// How long it may take for the whole backfill.
const LATE: Duration = Duration::from_secs(300);

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// 2026-05-01T12:00:00Z.
const NOON_S: i64 = 1_777_636_800;

/// Live sessions, of which each has every eighth event.
const LIVE: usize = 8;

/// A log and a store with files beside them.
struct Place {
    deployment: Deployment,
    directory: TestDirectory,
    _database: Option<TestDatabase>,
}

impl Place {
    async fn embedded() -> Self {
        let directory = TestDirectory::create("history");
        Self::with(Deployment::embedded(&directory), directory, None).await
    }

    async fn on_kafka_and_postgres() -> Self {
        let (directory, database) = (TestDirectory::create("history"), TestDatabase::create().await);
        let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("history"));
        let spool = directory.path().join("spool").display().to_string();
        let deployment = Deployment::new(log, database.url())
            .with("DASHI_INGEST_SPOOL", "true")
            .with("DASHI_INGEST_SPOOL_DIRECTORY", &spool);
        Self::with(deployment, directory, Some(database)).await
    }

    async fn with(deployment: Deployment, directory: TestDirectory, database: Option<TestDatabase>) -> Self {
        let deployment = deployment.with("DASHI_HISTORY_EVENT_AGE_S_MIN", "3600");
        deployment.register().await;
        Self { deployment, directory, _database: database }
    }

    async fn count(&self, sql: &str) -> i64 {
        Database::open(self.deployment.store()).await.count(sql).await
    }

    /// Waits until no historical event waits and every record has its outcome.
    async fn settled(&self, server: &Server) -> integration_tests::Status {
        eventually(LATE, "no historical event waits", async || {
            let found = history(server).await?;
            if found["records"] == 0 { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
        self.deployment.settled().await
    }

    /// Replays the log into another store, and compares it with the live one.
    async fn assert_replay_is_equal(&self) {
        let again = format!("sqlite:{}", self.directory.path().join("again.db").display());
        let replayed = self.deployment.run(&["replay", "--into", &again]).await;
        assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
        let compared = self.deployment.run(&["compare", self.deployment.store(), &again]).await;
        assert_eq!(compared.code, Some(0), "{} {}", compared.stdout, compared.stderr);
    }

    fn event(&self, url: &str, ip: &str, timestamp: Option<i64>) -> Value {
        let mut payload =
            json!({ "website": self.deployment.website(), "url": url, "ip": ip, "userAgent": AGENT });
        if let Some(timestamp) = timestamp {
            payload["timestamp"] = timestamp.into();
        }
        json!({ "type": "event", "payload": payload })
    }

    /// A batch of old events: number `n` of all of them is `/old/SESSION/n`.
    fn old(&self, numbers: std::ops::Range<usize>) -> Value {
        numbers
            .map(|n| {
                let session = n % 200;
                let (url, ip) = (format!("/old/{session}/{n}"), format!("198.18.0.{session}"));
                self.event(&url, &ip, Some(NOON_S + n as i64))
            })
            .collect()
    }
}

/// The lane, as readiness shows it.
async fn history(server: &Server) -> Result<Value, String> {
    let answer =
        http::get(&format!("{}/health/ready", server.url())).await.map_err(|error| error.to_string())?;
    let shown = answer.json()["history"].clone();
    if shown.is_object() { Ok(shown) } else { Err(answer.text()) }
}

/// Sends a live event every 50 ms until it is stopped, and notes how long each took from its answer until it was applied. Gives up
/// on those that were not.
async fn live(place: &Place, server: &Server, name: &str, stop: CancellationToken) -> Vec<Duration> {
    let mut answered: Vec<Vec<Instant>> = vec![Vec::new(); LIVE];
    let mut applied = [0; LIVE];
    let mut took = Vec::new();
    let mut store = Database::open(place.deployment.store()).await;
    let url = format!("{}/api/send", server.url());
    let mut number = 0;
    let sql = format!(
        "SELECT region, count(*) FROM (SELECT substr(url_path, 1, {}) AS region FROM website_event \
         WHERE url_path LIKE '/{name}/%') AS live GROUP BY region",
        name.len() + 3
    );
    let mut stopped_at = None;
    loop {
        if stop.is_cancelled() {
            stopped_at.get_or_insert_with(Instant::now);
        } else {
            let session = number % LIVE;
            let event =
                place.event(&format!("/{name}/{session}/{number}"), &format!("192.0.2.{session}"), None);
            let answer = http::post_json(&url, &event, &[("user-agent", AGENT)]).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            answered[session].push(Instant::now());
            number += 1;
        }
        for (path, count) in store.pairs(&sql).await {
            let session: usize = path.rsplit('/').next().unwrap().parse().unwrap();
            // Those of one session are applied in their order.
            let new = answered[session].iter().take(count as usize).skip(applied[session]);
            took.extend(new.map(Instant::elapsed));
            applied[session] = count as usize;
        }
        let is_done = took.len() == number;
        if stopped_at.is_some_and(|at| is_done || at.elapsed() > SOON) {
            assert!(is_done, "{} of {number} live events were applied", took.len());
            took.sort_unstable();
            return took;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_does_not_delay_live_events_embedded() {
    a_backfill_does_not_delay_live_events(Place::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_does_not_delay_live_events_on_kafka_and_postgres() {
    a_backfill_does_not_delay_live_events(Place::on_kafka_and_postgres().await).await;
}

async fn a_backfill_does_not_delay_live_events(mut place: Place) {
    const POSTED: usize = 8_000;
    const IMPORTED: usize = 3_000;
    // A transaction for each record, so that the backfill takes the projector far longer than the limit.
    place.deployment = place.deployment.with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "1");
    let mut server = place.deployment.start("collect").ready().await;
    let mut projector = place.deployment.start("project").ready().await;
    let after = |duration: Duration| {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            stopping.cancel();
        });
        stop
    };
    let before = live(&place, &server, "a", after(Duration::from_secs(4))).await;

    // The lane fills while nothing projects, and is there as a whole when the projector is back.
    assert_eq!(projector.dashi.terminate().await, Some(0));
    let url = format!("{}/api/batch", server.url());
    for from in (0..POSTED).step_by(500) {
        let answer = http::post_json(&url, &place.old(from..from + 500), &[]).await.unwrap();
        assert_eq!((answer.status, &answer.json()["errors"]), (200, &json!(0)), "{}", answer.text());
    }
    let waiting = history(&server).await.unwrap()["records"].as_u64();
    assert!(waiting > Some(POSTED as u64 / 2), "{waiting:?}");
    let mut projector = place.deployment.start("project").ready().await;

    let line = |n: usize| {
        let (url, ip) = (format!("/imported/{n}"), format!("198.19.0.{}", n % 200));
        let mut line = place.event(&url, &ip, Some(NOON_S + n as i64));
        line["agent"] = AGENT.into();
        line.to_string() + "\n"
    };
    let file = place.directory.path().join("old.ndjson");
    std::fs::write(&file, (0..IMPORTED).map(line).collect::<String>()).unwrap();
    let file = file.display().to_string();
    let [rejects, state] =
        ["rejects", "state"].map(|name| place.directory.path().join(name).display().to_string());
    let import = ["import", "ndjson", &file, "--json", "--rejects", &rejects, "--state", &state];

    let stop = CancellationToken::new();
    let backfill = async {
        let imported = place.deployment.run(&import).await;
        assert_eq!(imported.code, Some(0), "{} {}", imported.stdout, imported.stderr);
        let old =
            "SELECT count(*) FROM website_event WHERE url_path LIKE '/old/%' OR url_path LIKE '/imported/%'";
        eventually(LATE, "all of the backfill is applied", async || {
            let applied = place.count(old).await;
            let lane = history(&server).await?;
            if applied == (POSTED + IMPORTED) as i64 { Ok(()) } else { Err(format!("{applied}; {lane}")) }
        })
        .await;
        stop.cancel();
    };
    let began = Instant::now();
    let (beside, ()) = tokio::join!(live(&place, &server, "b", stop.clone()), backfill);
    let part = |took: &[Duration], of: f64| took[((took.len() - 1) as f64 * of) as usize];
    eprintln!(
        "live events took {:?} (median) and {:?} (nine of ten) before, {:?} and {:?} beside {} historical ones in {:?}",
        part(&before, 0.5),
        part(&before, 0.9),
        part(&beside, 0.5),
        part(&beside, 0.9),
        POSTED + IMPORTED,
        began.elapsed()
    );
    // The limit is a second; what a busy machine adds is there without a backfill, too. The first of them wait for the
    // projector to take its partitions, so half of them count: behind a backfill that is not paced the median waits for half
    // of it.
    let bound = 2 * part(&before, 0.9) + Duration::from_secs(1);
    assert!(part(&beside, 0.5) <= bound, "{:?}, and {:?} before", part(&beside, 0.5), part(&before, 0.9));

    let totals = place.deployment.settled().await.totals;
    let live = place.count("SELECT count(*) FROM website_event WHERE url_path LIKE '/_/%/%'").await as u64;
    assert_eq!(live, (before.len() + beside.len()) as u64);
    let all = live + (POSTED + IMPORTED) as u64;
    assert_eq!(
        (totals.in_log, totals.applied, totals.duplicate, totals.dead),
        (all, all, 0, 0),
        "{totals:?}"
    );
    for (path, count) in [("/old/", POSTED), ("/imported/", IMPORTED)] {
        let sql = format!("SELECT count(DISTINCT url_path) FROM website_event WHERE url_path LIKE '{path}%'");
        assert_eq!(place.count(&sql).await, count as i64, "{path}");
    }
    let metrics = http::get(&format!("{}/metrics", server.url())).await.unwrap().text();
    assert!(metrics.contains(&format!("dashi_history_forwarded_total {POSTED}\n")), "{metrics}");

    // Historical events of a session keep their order.
    let log = open_log(place.deployment.log()).await;
    let mut last: HashMap<String, i64> = HashMap::new();
    for record in read_log(&log).await {
        let event = Event::decode(&record.value).unwrap();
        let url = event.submission.payload.url.as_deref().unwrap_or_default();
        if let Some((session, number)) = url.strip_prefix("/old/").and_then(|rest| rest.split_once('/')) {
            let number = number.parse().unwrap();
            let before = last.insert(session.to_owned(), number);
            assert!(before.is_none_or(|before| before < number), "{url} after {before:?}");
        }
    }
    assert_eq!(last.len(), 200);
    log.close().await;
    place.assert_replay_is_equal().await;

    // While no projector runs an import waits, and shows why.
    assert_eq!(projector.dashi.terminate().await, Some(0));
    let mut waiting = place.deployment.spawn(&[&import[..], &["--from-start"]].concat());
    eventually(SOON, "the import shows that it waits", async || {
        let shown = waiting.stderr();
        if shown.contains("is a projector running") { Ok(()) } else { Err(shown) }
    })
    .await;
    waiting.interrupt();
    let ended = waiting.wait_exit(SOON).await;
    assert!(!ended.success() && ended.code().is_some(), "{ended:?}");
    let in_log = place.deployment.status().await.unwrap().totals.in_log;
    assert!(in_log < all + IMPORTED as u64 / 2, "{in_log}, {all} before");
    assert_eq!(server.dashi.terminate().await, Some(0));
    let unpaced = place.deployment.run(&[&import[..], &["--unpaced"]].concat()).await;
    assert_eq!(unpaced.code, Some(0), "{} {}", unpaced.stdout, unpaced.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_full_is_there_once_after_a_kill_embedded() {
    a_lane_that_is_full_is_there_once_after_a_kill(Place::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_full_is_there_once_after_a_kill_on_kafka_and_postgres() {
    a_lane_that_is_full_is_there_once_after_a_kill(Place::on_kafka_and_postgres().await).await;
}

async fn a_lane_that_is_full_is_there_once_after_a_kill(mut place: Place) {
    place.deployment = place.deployment.with("DASHI_HISTORY_WAITING_BYTES_MAX", "1000000");
    let authority = format!("127.0.0.1:{}", free_port());
    // Nothing projects.
    let mut server = place.deployment.start_at("collect", &authority).ready().await;
    let (mut accepted, mut next) = (0, 0);
    let url = format!("{}/api/batch", server.url());
    eventually(SOON, "the lane is full", async || {
        let batch = place.old(next..next + 100);
        let answer = http::post_json(&url, &batch, &[]).await.map_err(|error| error.to_string())?;
        next += 100;
        match answer.status {
            200 => {
                accepted += 100;
                Err(format!("{accepted} accepted"))
            }
            503 if answer.header("retry-after").is_some() => Ok(()),
            other => panic!("{other}: {}", answer.text()),
        }
    })
    .await;
    assert!(accepted > 1_000, "{accepted}");
    // Live events take another way.
    let live = place.event("/live", "192.0.2.1", None);
    let answer = http::post_json(&format!("{}/api/send", server.url()), &live, &[]).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shown = history(&server).await.unwrap();
    assert!(shown["full"].is_string() && shown["waits"].is_string(), "{shown}");
    eventually(SOON, "it says that nothing is applied", async || {
        let shown = history(&server).await?;
        let waits = shown["waits"].as_str().unwrap_or_default();
        if waits.contains("is a projector running") { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    eventually(SOON, "the store has a note of it, and the tallies of all", async || {
        let noted = place.count("SELECT CAST(coalesce(sum(records), 0) AS bigint) FROM @spool").await;
        let tallied = place
            .count("SELECT CAST(coalesce(sum(count), 0) AS bigint) FROM @tally WHERE outcome = 'accepted'")
            .await;
        let is_so = noted > 1_000 && tallied == accepted as i64 + 1;
        if is_so { Ok(()) } else { Err(format!("{noted} noted, {tallied} tallied of {accepted}")) }
    })
    .await;
    let in_log = place.deployment.status().await.unwrap().totals.in_log;
    assert!(in_log < accepted as u64 / 2, "{in_log} of {accepted} did not wait");
    server.dashi.kill9();

    let text = place.deployment.run(&["status"]).await.stdout;
    assert!(text.contains("historical events of ") && text.contains(" wait, "), "{text}");
    let status: Value =
        serde_json::from_str(&place.deployment.run(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(status["spools"][0]["state"], "historical", "{status}");
    assert_eq!(status["totals"]["spooled"].as_u64().unwrap() + in_log, accepted as u64 + 1, "{status}");
    let audit = place.deployment.run(&["audit", "--json"]).await;
    let found: Value = serde_json::from_str(&audit.stdout).unwrap();
    assert_eq!((audit.code, &found["adds_up"]), (Some(0), &Value::Bool(true)), "{found}");

    // Killed once more while it forwards.
    let mut server = place.deployment.start_at("serve", &authority).ready().await;
    eventually(SOON, "some went into the log", async || {
        let forwarded = history(&server).await?["forwarded"].as_u64();
        if forwarded > Some(0) { Ok(()) } else { Err(format!("{forwarded:?}")) }
    })
    .await;
    server.dashi.kill9();
    let mut server = place.deployment.start_at("serve", &authority).ready().await;
    let totals = place.settled(&server).await.totals;
    assert_eq!((totals.applied, totals.dead), (accepted as u64 + 1, 0), "{totals:?}");
    let old = "SELECT count(DISTINCT url_path) FROM website_event WHERE url_path LIKE '/old/%'";
    assert_eq!(place.count(old).await, accepted as i64);
    // One that was acknowledged and not removed yet is there twice in the log.
    assert_eq!(totals.in_log, totals.applied + totals.duplicate, "{totals:?}");
    place.assert_replay_is_equal().await;

    // A lane has one collector. Another one has none, and appends old events as they come.
    if place.deployment.log().starts_with("sqlite:") {
        let other = place.deployment.start("collect").ready().await;
        assert_eq!(history(&other).await.ok(), None);
        let batch = place.old(next..next + 10);
        let answer = http::post_json(&format!("{}/api/batch", other.url()), &batch, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let status = place.deployment.settled().await;
        assert_eq!(status.totals.applied, accepted as u64 + 11);
    }
    assert_eq!(server.dashi.terminate().await, Some(0));
    eventually(SOON, "the note is gone", async || {
        let noted = place.count("SELECT count(*) FROM @spool").await;
        if noted == 0 { Ok(()) } else { Err(noted.to_string()) }
    })
    .await;
}
