//! `/health/live`: it names a task that is stuck, and no outage of a server makes it fail.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::liveness::Liveness;
use dashi_domain::record::Record;
use dashi_projector::{Progress, Projector, ProjectorMetrics, ProjectorSettings};
use integration_tests::kafka::{self, KafkaServer};
use integration_tests::log::open_log;
use integration_tests::setup::submission;
use integration_tests::{
    Deployment, Ledger, PostgresServer, Server, Setup, TestDatabase, TestDirectory, eventually, http,
};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{SOON, metrics, on_files, open_store, readiness, send_events, settings};

/// Threads of a process that stand still until this is dropped, while its other threads run. A debugger stops them so.
struct Stopped {
    release: Option<mpsc::SyncSender<()>>,
    holder: Option<std::thread::JoinHandle<()>>,
}

impl Stopped {
    /// Stops the threads whose name begins so; there is one at least.
    fn threads(pid: u32, name: &str) -> Self {
        let is_named = |task: &Path| {
            fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end().starts_with(name))
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        let number = |task: &Path| task.file_name()?.to_str()?.parse().ok().map(Pid::from_raw);
        let threads: Vec<Pid> = tasks
            .map(|task| task.expect("a thread").path())
            .filter(|task| is_named(task))
            .filter_map(|task| number(&task))
            .collect();
        assert!(!threads.is_empty(), "no thread of process {pid} is called {name}");
        let (release, released) = mpsc::sync_channel::<()>(0);
        let (stopped, is_stopped) = mpsc::sync_channel(0);
        // All calls for a thread come from the one that stopped it.
        let holder = std::thread::spawn(move || {
            for thread in &threads {
                ptrace::seize(*thread, ptrace::Options::empty()).expect("a test may trace its child");
                ptrace::interrupt(*thread).expect("it is traced");
                waitpid(*thread, Some(WaitPidFlag::__WALL)).expect("it stops");
            }
            stopped.send(()).expect("the test waits");
            let _ = released.recv();
            for thread in threads {
                // One that has ended meanwhile needs nothing.
                let _ = ptrace::detach(thread, None);
            }
        });
        is_stopped.recv().expect("the threads stop");
        Self { release: Some(release), holder: Some(holder) }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// The answer of `/health/live`; an error if there is none within some seconds.
async fn live(url: &str) -> Result<(u16, Value), String> {
    let asked = tokio::time::timeout(Duration::from_secs(5), http::get(&format!("{url}/health/live"))).await;
    let answer = asked.map_err(|_| "no answer")?.map_err(|error| error.to_string())?;
    Ok((answer.status, answer.json()))
}

async fn until_live(url: &str) {
    eventually(SOON, "it lives", async || {
        let answer = live(url).await?;
        if answer == (200, json!({ "live": true })) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_disk_never_answers_names_what_is_stuck_and_goes_on_when_it_does() {
    let env = [
        ("DASHI_HEALTH_SILENCE_MS_MAX", "3000"),
        ("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "200"),
        ("DASHI_INGEST_REQUEST_TIMEOUT_MS", "2000"),
    ];
    let mut running = Setup::Embedded.start(&env).await;
    let url = running.url("");
    until_live(&url).await;
    // The thread that writes the log, as it stands while the disk does not answer.
    let stopped = Stopped::threads(running.dashi().pid(), "event-log");
    let unanswered = running.send(&submission("event", &json!({ "url": "/stuck" }))).await;
    assert_eq!(unanswered.status, 503, "{}", unanswered.text());
    eventually(SOON, "the stuck tasks are named", async || {
        let (status, answer) = live(&url).await?;
        let tasks: Vec<_> = answer["stuck"].as_array().into_iter().flatten().collect();
        let is_named = |name: &str| {
            tasks.iter().any(|task| {
                task["task"].as_str().is_some_and(|task| task.starts_with(name))
                    && task["silent_s"].as_u64() >= Some(3)
                    && task["ended"] == false
            })
        };
        if status == 503 && answer["live"] == false && is_named("appends") {
            Ok(())
        } else {
            Err(format!("{status} {answer}"))
        }
    })
    .await;
    let metrics = http::get(&running.url("/metrics")).await.unwrap().text();
    let number =
        metrics.lines().find_map(|line| line.strip_prefix("dashi_stuck_tasks ")).expect("it is there");
    assert!(number.parse::<f64>().unwrap() >= 1.0, "{number}");
    eventually(SOON, "the logs name it", async || {
        let logs = running.dashi().logs();
        if logs.contains("a task is stuck") && logs.contains("appends") { Ok(()) } else { Err(logs) }
    })
    .await;

    drop(stopped);
    until_live(&url).await;
    let sent = running.send(&submission("event", &json!({ "url": "/goes-on" }))).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    eventually(SOON, "the logs have its end", async || {
        let logs = running.dashi().logs();
        if logs.contains("a task that was stuck goes on") { Ok(()) } else { Err(logs) }
    })
    .await;
    assert_eq!(running.dashi().terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_is_blocked_is_in_the_logs_and_answers_nothing() {
    let mut running = Setup::Embedded
        .start(&[("DASHI_HEALTH_SILENCE_MS_MAX", "3000"), ("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "1000")])
        .await;
    let url = running.url("");
    until_live(&url).await;
    let stopped = Stopped::threads(running.dashi().pid(), "tokio-r");
    eventually(SOON, "the runtime is in the logs", async || {
        let logs = running.dashi().logs();
        if logs.contains("the runtime") && logs.contains("a task is stuck") { Ok(()) } else { Err(logs) }
    })
    .await;
    let answer = live(&url).await;
    assert!(answer.is_err(), "{answer:?}");
    drop(stopped);
    until_live(&url).await;
    assert_eq!(running.dashi().terminate().await, Some(0));
}

/// Asks so long whether these live, and does something in between.
async fn lives_for(time: Duration, servers: &[&Server], mut between: impl AsyncFnMut()) {
    let began = Instant::now();
    while began.elapsed() < time {
        between().await;
        for server in servers {
            let answer = live(&server.url()).await;
            assert_eq!(answer, Ok((200, json!({ "live": true }))), "{}", server.dashi.logs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A PostgreSQL that falls silent for longer than a task may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_silent_leaves_a_process_alive_on_postgres() {
    const SILENT: Duration = Duration::from_secs(16);
    let directory = TestDirectory::create("liveness");
    let postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi")).with("DASHI_HEALTH_SILENCE_MS_MAX", "10000");
    // Making the tables may take a busy machine longer than the limit.
    deployment.register().await;
    let deployment = deployment.with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "500");
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    postgres.freeze();
    // Every partition gets records that it cannot apply.
    lives_for(SILENT, &[&server], async || {
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    })
    .await;
    postgres.thaw();
    deployment.settled().await;
    ledger.check().await;
    assert!(!server.dashi.logs().contains("a task is stuck"));
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// A budget that one batch takes whole, and a silent PostgreSQL: one partition after the other asks it, each until it gives up, and
/// the last ones wait for their share for longer than a task may be silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_wait_for_a_share_of_the_budget_leave_a_process_alive_on_postgres() {
    // A turn takes 1.5 s at least: three times the limit of a statement.
    const SILENT: Duration = Duration::from_secs(14);
    const PARTITIONS: usize = 16;
    let directory = TestDirectory::create("liveness");
    let postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi"))
        .with("DASHI_EVENT_LOG_PARTITIONS", &PARTITIONS.to_string())
        .with("DASHI_HEALTH_SILENCE_MS_MAX", "10000")
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "20")
        .with("DASHI_PROJECTOR_BATCHES_BYTES_MAX", "1");
    deployment.register().await;
    let deployment = deployment.with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "500");
    let mut ledger = Ledger::new(&deployment);
    let mut collector = deployment.start("collect").ready().await;
    send_events(&mut ledger, &collector, 2_000).await;
    assert_eq!(collector.dashi.terminate().await, Some(0));

    // No batch is committed, so that all partitions still have their backlog when the server falls silent.
    let mut holder = PgConnection::connect(&postgres.url("dashi")).await.expect("it answers");
    sqlx::raw_sql("BEGIN; LOCK TABLE website_event IN SHARE MODE").execute(&mut holder).await.unwrap();
    let mut projector = deployment.start("project");
    // Partitions that have had no turn are running, and all have records.
    let without_turn = async || {
        let text = metrics(&projector).await;
        let lines = |begin: &str, end: &str| {
            text.lines().filter(|line| line.starts_with(begin) && line.ends_with(end)).count()
        };
        let lags = lines("dashi_projector_lag_records{", "") - lines("dashi_projector_lag_records{", "} 0");
        let in_state =
            |state: &str| lines("dashi_projector_partition_state{", &format!("state=\"{state}\"}} 1"));
        let [running, waiting] = ["running", "waiting_for_store"].map(in_state);
        if lags == PARTITIONS && running > 0 && waiting > 0 && running + waiting == PARTITIONS {
            Ok(running)
        } else {
            Err(format!("{running} running and {waiting} waiting partitions, {lags} have records"))
        }
    };
    eventually(SOON, "it serves", async || live(&projector.url()).await.map(drop)).await;
    eventually(SOON, "one waits for the store, the others for their share", async || {
        without_turn().await.map(drop)
    })
    .await;
    postgres.freeze();
    lives_for(SILENT, &[&projector], async || ()).await;
    let waited = without_turn().await;
    assert!(waited.is_ok(), "some waited all the time: {waited:?}: {}", projector.dashi.logs());
    postgres.thaw();
    drop(holder);
    deployment.settled().await;
    ledger.check().await;
    assert!(!projector.dashi.logs().contains("a task is stuck"), "{}", projector.dashi.logs());
    assert_eq!(projector.dashi.terminate().await, Some(0));
}

/// A broker that falls silent for longer than a task may be, and then is gone: collectors with a spool and without one wait for
/// it, and so does a projector.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_silent_or_gone_leaves_processes_alive_on_kafka() {
    // The least that may be set with Kafka is half a minute.
    const SILENT: Duration = Duration::from_secs(37);
    const GONE: Duration = Duration::from_secs(5);
    let directory = TestDirectory::create("liveness");
    let mut broker = KafkaServer::start().await;
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", broker.address(), kafka::unique_topic("liveness"));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_HEALTH_SILENCE_MS_MAX", "30000")
        .with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "5000");
    deployment.register().await;
    let spool = directory.path().join("spool").display().to_string();
    let spooling =
        deployment.clone().with("DASHI_INGEST_SPOOL", "true").with("DASHI_INGEST_SPOOL_DIRECTORY", &spool);
    let mut server = spooling.start("serve").ready().await;
    let mut bare = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(&deployment);
    for server in [&server, &bare] {
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    }
    broker.freeze();
    // Appends are under way in both: one spools, the other one waits and answers 503.
    let load = ledger.start(&bare.authority, |plan| {
        plan.connections = 4;
        plan.duration = 10 * SOON;
    });
    let mut send = async || {
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    };
    lives_for(SILENT, &[&server, &bare], &mut send).await;
    broker.kill();
    lives_for(GONE, &[&server, &bare], &mut send).await;
    broker.start_again().await;
    ledger.stop(load).await;
    eventually(SOON, "the log has all of the spool", async || {
        let (_, ready) = readiness(&server).await;
        if ready["spool"]["records"] == 0 { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    deployment.settled().await;
    ledger.check().await;
    for server in [&mut server, &mut bare] {
        assert!(!server.dashi.logs().contains("a task is stuck"), "{}", server.dashi.logs());
        assert_eq!(server.dashi.terminate().await, Some(0));
    }
}

/// Holds the fold up until it is opened.
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// A fold that does not end, as one with a mistake in it would.
fn hanging(records: &[Record], applied_before: &HashSet<Uuid>, rules: &FoldRules) -> Changes {
    let (open, opened) = &GATE;
    let is_open = opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
    drop(is_open);
    fold(records, applied_before, rules)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_fold_does_not_end_is_stuck_and_the_others_are_not() {
    const SILENCE: Duration = Duration::from_secs(10);
    let (_directory, deployment) = on_files("liveness").await;
    let mut ledger = Ledger::new(&deployment);
    let mut collector = deployment.start("collect").ready().await;
    assert_eq!(ledger.send(&collector.authority, &[]).await.unwrap().status, 200);
    assert_eq!(collector.dashi.terminate().await, Some(0));

    let (log, store) = (open_log(deployment.log()).await, open_store(deployment.store()).await);
    let (liveness, stop) = (Liveness::new(SILENCE), CancellationToken::new());
    let progress = Progress::watched(liveness.clone(), Duration::from_secs(600));
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let settings = ProjectorSettings { fold: hanging, ..settings() };
    let projector = Projector::new(log.clone(), store.clone(), settings, metrics, progress);
    let running = tokio::spawn(projector.run(stop.clone()));
    let mut last = Instant::now();
    let mut advance = || {
        liveness.advance(last.elapsed());
        last = Instant::now();
        liveness.stuck()
    };
    eventually(SOON, "one partition is stuck", async || {
        let stuck = advance();
        match &stuck[..] {
            [one] if one.name.starts_with("partition ") && one.silent >= SILENCE => Ok(()),
            _ => Err(format!("{stuck:?}")),
        }
    })
    .await;
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    eventually(SOON, "it goes on", async || {
        let stuck = advance();
        if stuck.is_empty() { Ok(()) } else { Err(format!("{stuck:?}")) }
    })
    .await;
    assert_eq!(deployment.settled().await.totals.applied, 1);
    stop.cancel();
    running.await.unwrap().unwrap();
    log.close().await;
    store.close().await;
}
