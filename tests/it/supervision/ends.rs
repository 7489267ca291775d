//! Replays end exactly where they are told, keep to a rate, and stop between batches.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::EventLog;
use dashi_projector::{
    ProjectorMetrics, ProjectorSettings, ReplayEnd, ReplayError, ReplayOptions, ReplayReport, replay,
};
use dashi_store::{Store, compare};
use integration_tests::log::open_log;
use integration_tests::{Deployment, Ledger, TestDirectory};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{SOON, on_files, on_servers, open_store, send_events, settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_ends_exactly_where_it_is_told_embedded() {
    let (_directory, deployment) = on_files("ends").await;
    a_replay_ends_exactly_where_it_is_told(&deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_ends_exactly_where_it_is_told_on_kafka() {
    let (_database, deployment) = on_servers("ends").await;
    a_replay_ends_exactly_where_it_is_told(&deployment).await;
}

async fn a_replay_ends_exactly_where_it_is_told(deployment: &Deployment) {
    let log = filled(deployment, 800).await;
    let directory = TestDirectory::create("ends");
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let (whole, parts) = (open_store(&file("whole.db")).await, open_store(&file("parts.db")).await);
    let all = run(&log, &whole, settings(), options(ReplayEnd::HighWatermarks)).await.unwrap();
    assert_eq!((all.applied, all.complete), (800, true));

    // Three ends on the way: batches are cut, none is passed, and each partition goes on from there.
    let partitions = log.partitions().await.unwrap();
    for third in 1..=3 {
        let mut ends = Vec::new();
        for partition in &partitions {
            let extent = log.extent(*partition).await.unwrap();
            ends.push((*partition, at(extent.high.number() * third / 3)));
        }
        let report = run(&log, &parts, settings(), options(ReplayEnd::At(ends.clone()))).await.unwrap();
        assert!(report.complete, "{report:?}");
        assert_eq!(checkpoints(&parts).await, ends);
        assert_eq!(report.applied, ends.iter().map(|(_, end)| end.offset().number()).sum::<u64>());
    }
    let compared = compare(&whole, &parts).await.unwrap();
    assert!(compared.equal, "{compared:#?}");

    // An end that is passed already changes nothing; one beyond the log is refused.
    let passed = ReplayEnd::At(vec![(partitions[0], at(1))]);
    let report = run(&log, &parts, settings(), options(passed)).await.unwrap();
    assert_eq!((report.records, report.complete), (0, true));
    let beyond = ReplayEnd::At(vec![(partitions[0], at(1_000_000))]);
    let refused = run(&log, &parts, settings(), options(beyond)).await;
    assert!(matches!(refused, Err(ReplayError::LogTooShort { until, .. }) if until.number() == 1_000_000));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_keeps_to_its_rate_and_stops_between_batches() {
    let (_directory, deployment) = on_files("ends").await;
    let log = filled(&deployment, 600).await;
    let directory = TestDirectory::create("ends");
    let store = open_store(&format!("sqlite:{}", directory.path().join("again.db").display())).await;
    // At 200 a second, 600 records take 3 s; the first batch of each of the 8 partitions begins early.
    let limited = ReplayOptions { rate: NonZeroU32::new(200), ..options(ReplayEnd::HighWatermarks) };
    let stop = CancellationToken::new();
    let (began, stopping) = (Instant::now(), stop.clone());
    let report =
        replay(log.clone(), store.clone(), settings(), limited.clone(), metrics(), stop, |progress| {
            if progress.done >= 200 {
                stopping.cancel();
            }
        })
        .await
        .unwrap();
    assert!(!report.complete, "{report:?}");
    assert!((200..400).contains(&report.records), "{report:?}");
    let least = Duration::from_secs_f64((report.records as f64 - 20.0) / 200.0);
    assert!(began.elapsed() >= least, "{report:?} took {:?}", began.elapsed());
    let stopped = store.partitions().await.unwrap();
    let applied: u64 = stopped.iter().map(|state| state.outcomes.applied).sum();
    assert_eq!(applied, report.records, "all that was begun is committed when it returns");

    let began = Instant::now();
    let rest = run(&log, &store, settings(), limited).await.unwrap();
    assert_eq!((rest.records, rest.applied, rest.complete), (600 - report.records, 600, true));
    let least = Duration::from_secs_f64((rest.records as f64 - 20.0) / 200.0);
    assert!(began.elapsed() >= least, "{rest:?} took {:?}", began.elapsed());
    log.close().await;
}

/// A log that holds so many events.
async fn filled(deployment: &Deployment, events: u64) -> EventLog {
    let mut collector = deployment.start("collect").ready().await;
    let mut ledger = Ledger::new(deployment);
    send_events(&mut ledger, &collector, events).await;
    assert_eq!(collector.dashi.terminate().await, Some(0));
    open_log(deployment.log()).await
}

fn options(end: ReplayEnd) -> ReplayOptions {
    ReplayOptions { end, jobs: NonZeroUsize::new(3).unwrap(), rate: None, archive: None }
}

fn metrics() -> ProjectorMetrics {
    ProjectorMetrics::new(&mut Registry::default())
}

async fn run(
    log: &EventLog,
    store: &Store,
    settings: ProjectorSettings,
    options: ReplayOptions,
) -> Result<ReplayReport, ReplayError> {
    let replaying =
        replay(log.clone(), store.clone(), settings, options, metrics(), CancellationToken::new(), |_| {});
    tokio::time::timeout(SOON, replaying).await.expect("it ends in time")
}

fn at(offset: u64) -> Checkpoint {
    Checkpoint::at(Offset::new(offset))
}

async fn checkpoints(store: &Store) -> Vec<(Partition, Checkpoint)> {
    let states = store.partitions().await.unwrap();
    states.into_iter().map(|state| (state.partition, state.checkpoint)).collect()
}
