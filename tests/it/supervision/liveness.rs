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
use integration_tests::log::open_log;
use integration_tests::setup::submission;
use integration_tests::{Deployment, Ledger, PostgresServer, Setup, TestDirectory, eventually, http};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{SOON, on_files, open_store, settings};

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

/// A PostgreSQL that falls silent for longer than a task may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_silent_leaves_a_process_alive_on_postgres() {
    const SILENT: Duration = Duration::from_secs(16);
    let directory = TestDirectory::create("liveness");
    let postgres = PostgresServer::start().await;
    postgres.create_database("dashi").await;
    let log = format!("sqlite:{}", directory.path().join("log.db").display());
    let deployment = Deployment::new(log, postgres.url("dashi"))
        .with("DASHI_HEALTH_SILENCE_MS_MAX", "10000")
        .with("DASHI_DATABASE_STATEMENT_TIMEOUT_MS", "500");
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
    postgres.freeze();
    let (began, mut asked) = (Instant::now(), 0);
    while began.elapsed() < SILENT {
        // Every partition gets records that it cannot apply.
        assert_eq!(ledger.send(&server.authority, &[]).await.unwrap().status, 200);
        let answer = live(&server.url()).await;
        assert_eq!(answer, Ok((200, json!({ "live": true }))), "{}", server.dashi.logs());
        asked += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(asked > 1);
    postgres.thaw();
    deployment.settled().await;
    ledger.check().await;
    assert!(!server.dashi.logs().contains("a task is stuck"));
    assert_eq!(server.dashi.terminate().await, Some(0));
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
