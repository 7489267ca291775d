//! A backlog, and live events beside it: those of new sessions are applied before it, those of its sessions keep their order, and
//! in the end everything is there once, as a replay makes it, whatever was killed on the way.

use std::time::{Duration, Instant};

use dashi_domain::erasure::{Erasure, Subject};
use dashi_domain::partitioner::{key, partition_for};
use dashi_event_log::NewRecord;
use integration_tests::log::{LogCopy, open_log};
use integration_tests::{Database, Deployment, Server, TestDatabase, TestDirectory, eventually, http, kafka};
use serde_json::{Value, json};
use uuid::Uuid;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// How long it may take for the whole backlog.
const LATE: Duration = Duration::from_secs(300);

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

const BACKLOG: usize = 16_000;

/// Sessions of the backlog: number `n` of all events is the session's of its remainder.
const SESSIONS: usize = 300;

/// New sessions' events that have to be applied before the backlog is, at least.
const AHEAD: usize = 10;

/// A log and a store with files beside them.
struct Place {
    deployment: Deployment,
    directory: TestDirectory,
    _database: Option<TestDatabase>,
}

impl Place {
    async fn embedded() -> Self {
        let directory = TestDirectory::create("live-first");
        Self::with(Deployment::embedded(&directory), directory, None).await
    }

    async fn on_kafka_and_postgres() -> Self {
        let (directory, database) = (TestDirectory::create("live-first"), TestDatabase::create().await);
        let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("live-first"));
        Self::with(Deployment::new(log, database.url()), directory, Some(database)).await
    }

    async fn with(deployment: Deployment, directory: TestDirectory, database: Option<TestDatabase>) -> Self {
        // A transaction for each record, so that the backlog takes the projector a while.
        let deployment = deployment
            .with("DASHI_PROJECTOR_LIVE_FIRST_AFTER_S", "1")
            .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "1")
            .with("DASHI_INGEST_SPOOL", "false");
        deployment.register().await;
        Self { deployment, directory, _database: database }
    }

    fn event(&self, url: &str, ip: &str) -> Value {
        let payload =
            json!({ "website": self.deployment.website(), "url": url, "ip": ip, "userAgent": AGENT });
        json!({ "type": "event", "payload": payload })
    }

    /// An event of a session that has some in the backlog.
    fn old(&self, n: usize) -> Value {
        let session = n % SESSIONS;
        self.event(&format!("/old/{session}/{n}"), &format!("198.18.{}.{}", session / 250, session % 250))
    }

    /// The only event of a session.
    fn new_session(&self, n: usize) -> Value {
        self.event(&format!("/new/{n}"), &format!("10.0.{}.{}", n / 250, n % 250))
    }

    /// Sends all of the backlog, which nobody projects.
    async fn fill(&self, collector: &Server) {
        let url = format!("{}/api/batch", collector.url());
        for from in (0..BACKLOG).step_by(500) {
            let batch: Value = (from..from + 500).map(|n| self.old(n)).collect();
            let answer = http::post_json(&url, &batch, &[]).await.unwrap();
            assert_eq!((answer.status, &answer.json()["errors"]), (200, &json!(0)), "{}", answer.text());
        }
    }

    /// Sends one event; returns its session.
    async fn send(&self, collector: &Server, event: &Value) -> Uuid {
        let url = format!("{}/api/send", collector.url());
        let answer = http::post_json(&url, event, &[("user-agent", AGENT)]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["sessionId"].as_str().unwrap().parse().unwrap()
    }

    /// The tails by `dashi status`.
    async fn tails(&self) -> Result<Vec<Value>, String> {
        let ended = self.deployment.run(&["status", "--json"]).await;
        let status: Value = serde_json::from_str(&ended.stdout).map_err(|_| ended.stderr)?;
        assert_eq!(status["totals"]["unaccounted"], 0, "{status}");
        let partitions = status["partitions"].as_array().ok_or("no partitions")?;
        Ok(partitions.iter().map(|each| each["tail"].clone()).filter(Value::is_object).collect())
    }

    /// How many rows have such a path.
    async fn count(&self, path: &str) -> usize {
        let sql = format!("SELECT count(*) FROM website_event WHERE url_path LIKE '{path}'");
        Database::open(self.deployment.store()).await.count(&sql).await as usize
    }

    /// How many of the first new sessions' events are applied.
    async fn applied_before(&self, number: usize) -> usize {
        let sql =
            "SELECT url_path, count(*) FROM website_event WHERE url_path LIKE '/new/%' GROUP BY url_path";
        let rows = Database::open(self.deployment.store()).await.pairs(sql).await;
        let is_before =
            |path: &str| path.trim_start_matches("/new/").parse::<usize>().is_ok_and(|n| n < number);
        rows.iter().filter(|(path, _)| is_before(path)).count()
    }

    /// Of each session of the backlog, the events that are applied are the first ones. Returns how many there are.
    async fn assert_order(&self) -> usize {
        let sql =
            "SELECT url_path, count(*) FROM website_event WHERE url_path LIKE '/old/%' GROUP BY url_path";
        let mut last = [(0, 0); SESSIONS];
        for (path, _) in Database::open(self.deployment.store()).await.pairs(sql).await {
            let n: usize = path.rsplit('/').next().unwrap().parse().unwrap();
            let (count, highest) = &mut last[n % SESSIONS];
            (*count, *highest) = (*count + 1, n.max(*highest));
        }
        for (session, (count, highest)) in last.into_iter().enumerate().filter(|(_, (count, _))| *count > 0) {
            assert_eq!(highest, session + SESSIONS * (count - 1), "session {session}, {count} events");
        }
        last.iter().map(|(count, _)| count).sum()
    }

    async fn assert_adds_up(&self) {
        let audit = self.deployment.run(&["audit", "--json"]).await;
        assert_eq!(audit.code, Some(0), "{} {}", audit.stdout, audit.stderr);
    }

    async fn assert_replay_is_equal(&self) {
        let again = format!("sqlite:{}", self.directory.path().join("again.db").display());
        let replayed = self.deployment.run(&["replay", "--into", &again]).await;
        assert_eq!(replayed.code, Some(0), "{} {}", replayed.stdout, replayed.stderr);
        let compared = self.deployment.run(&["compare", self.deployment.store(), &again]).await;
        assert_eq!(compared.code, Some(0), "{} {}", compared.stdout, compared.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_sessions_are_applied_before_a_backlog_embedded() {
    new_sessions_are_applied_before_a_backlog(Place::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_sessions_are_applied_before_a_backlog_on_kafka_and_postgres() {
    new_sessions_are_applied_before_a_backlog(Place::on_kafka_and_postgres().await).await;
}

async fn new_sessions_are_applied_before_a_backlog(place: Place) {
    let mut collector = place.deployment.start("collect").ready().await;
    place.fill(&collector).await;
    let mut projector = place.deployment.start("project").ready().await;
    let (mut new, mut old, mut ahead, mut is_killed) = (0, BACKLOG, 0, false);
    let deadline = Instant::now() + LATE;
    loop {
        for _ in 0..4 {
            place.send(&collector, &place.new_session(new)).await;
            new += 1;
        }
        place.send(&collector, &place.old(old)).await;
        old += 1;
        let applied = place.count("/new/%").await;
        let of_sessions_with_a_backlog = place.assert_order().await;
        if of_sessions_with_a_backlog >= BACKLOG {
            break;
        }
        ahead = applied;
        if ahead >= AHEAD && !is_killed {
            // What is applied and what is not is known at any time, also when its writer dies.
            place.assert_adds_up().await;
            assert!(!place.tails().await.unwrap().is_empty());
            projector.dashi.kill9();
            place.assert_adds_up().await;
            projector = place.deployment.start("project").ready().await;
            is_killed = true;
        }
        assert!(Instant::now() < deadline, "{of_sessions_with_a_backlog} of {BACKLOG} are applied");
    }
    assert!(
        is_killed && ahead > AHEAD,
        "{ahead} of {new} new sessions' events came before the backlog was applied"
    );
    let all = (old + new) as u64;
    let totals = place.deployment.settled().await.totals;
    assert_eq!(
        (totals.in_log, totals.applied, totals.duplicate, totals.dead, totals.missing, totals.rewound),
        (all, all, 0, 0, 0, 0),
        "{totals:?}"
    );
    eventually(SOON, "no tail is left", async || {
        let tails = place.tails().await?;
        if tails.is_empty() { Ok(()) } else { Err(format!("{tails:?}")) }
    })
    .await;
    assert_eq!((place.assert_order().await, place.count("/new/%").await), (old, new));
    place.assert_adds_up().await;
    assert_eq!(projector.dashi.terminate().await, Some(0));
    assert_eq!(collector.dashi.terminate().await, Some(0));
    place.assert_replay_is_equal().await;
}

/// An erasure is about the records before it, so nothing behind it comes first; and what it covers is gone, also where live
/// events were applied before older ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_a_command() {
    let place = Place::embedded().await;
    let mut collector = place.deployment.start("collect").ready().await;
    place.fill(&collector).await;
    let mut projector = place.deployment.start("project").ready().await;
    let mut sent = 0;
    eventually(SOON, "tails have applied records", async || {
        place.send(&collector, &place.new_session(sent)).await;
        sent += 1;
        let tails = place.tails().await?;
        let applied = tails.iter().filter_map(|tail| tail["applied"].as_u64()).sum::<u64>();
        if applied > 0 { Ok(()) } else { Err(format!("{tails:?}")) }
    })
    .await;
    // An erasure of a session of the backlog, as `dashi erase` appends it, but without waiting for the backlog.
    let session = place.send(&collector, &place.old(BACKLOG)).await;
    let log = open_log(place.deployment.log()).await;
    let erasure = Erasure {
        erasure_id: Uuid::now_v7(),
        erased_at_ms: 1_795_000_000_000,
        website_id: place.deployment.website().parse().unwrap(),
        subject: Subject::Session(session),
        partitions: log.partitions().await.unwrap().len() as u32,
    };
    for copy in erasure.copies(&[session], &[]) {
        let record = NewRecord { session_id: copy.key, value: copy.encode() };
        log.append_to(copy.partition(), vec![record]).await.remove(0).unwrap();
    }
    log.close().await;
    // A new event of it is a new session's.
    place.send(&collector, &place.old(BACKLOG + SESSIONS)).await;
    // New sessions behind it, some of them in its partition.
    let partition = |session| partition_for(key(session).as_bytes(), erasure.partitions);
    let mut behind = Vec::new();
    while behind.len() < 3 {
        if partition(place.send(&collector, &place.new_session(sent)).await) == partition(session) {
            behind.push(sent);
        }
        sent += 1;
    }
    let erased = format!("/old/{}/%", BACKLOG % SESSIONS);
    eventually(LATE, "those behind it are applied, and not before it", async || {
        let mut applied = 0;
        for n in &behind {
            applied += place.count(&format!("/new/{n}")).await;
        }
        let left = place.count(&erased).await;
        assert!(applied == 0 || left <= 1, "{applied} came before the erasure, {left} rows are left");
        if applied == behind.len() { Ok(()) } else { Err(format!("{applied}, {left} rows of the session")) }
    })
    .await;
    place.deployment.settled().await;
    assert_eq!((place.count(&erased).await, place.count("/new/%").await), (1, sent));
    place.assert_adds_up().await;
    assert_eq!(projector.dashi.terminate().await, Some(0));
    assert_eq!(collector.dashi.terminate().await, Some(0));
    place.assert_replay_is_equal().await;
}

/// An older copy of the log is restored, which ends where the tails began, and has grown past their ends since: its new records are
/// no longer those that were applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_of_another_log_is_noticed_and_read_again() {
    let place = Place::embedded().await;
    let mut collector = place.deployment.start("collect").ready().await;
    place.fill(&collector).await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    let older = LogCopy::take(place.deployment.log());
    let mut collector = place.deployment.start("collect").ready().await;
    let mut projector = place.deployment.start("project").ready().await;
    let mut sent = 0;
    eventually(SOON, "all tails have applied records", async || {
        for _ in 0..8 {
            place.send(&collector, &place.new_session(sent)).await;
            sent += 1;
        }
        let tails = place.tails().await?;
        let applied = tails.iter().filter(|tail| tail["applied"].as_u64() > Some(0)).count();
        if applied == 8 { Ok(()) } else { Err(format!("{tails:?}")) }
    })
    .await;
    let applied_ahead = place.count("/new/%").await;
    for process in [&mut projector, &mut collector] {
        process.dashi.kill9();
    }
    let tails = place.tails().await.unwrap();
    let longest =
        tails.iter().map(|tail| &tail["end_offset"]).zip(tails.iter().map(|tail| &tail["start_offset"]));
    let longest =
        longest.map(|(end, start)| end.as_u64().unwrap() - start.as_u64().unwrap()).max().unwrap() as usize;
    older.restore();

    // As many sessions that no tail has seen as take each partition past its end.
    let mut collector = place.deployment.start("collect").ready().await;
    let before = sent;
    sent += 8 * (2 * longest + 10);
    for n in before..sent {
        place.send(&collector, &place.new_session(n)).await;
    }
    let mut projector = place.deployment.start("project").ready().await;
    let status = place.deployment.settled().await;
    let expected = BACKLOG + (sent - before) + place.applied_before(before).await;
    assert!(place.applied_before(before).await >= applied_ahead);
    assert_eq!(place.count("%").await, expected);
    let totals = status.totals;
    assert!(totals.rewound > 0 && totals.unaccounted == 0 && totals.dead == 0, "{totals:?}");
    let says = "the log lost records that were applied before its backlog";
    assert!(projector.dashi.logs().contains(says), "{}", projector.dashi.logs());
    assert_eq!(projector.dashi.terminate().await, Some(0));
    assert_eq!(collector.dashi.terminate().await, Some(0));
}
