//! A panic: in the fold it makes a dead letter, in a partition's task it fails that partition alone.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashi_domain::fold::{Changes, FoldRules, fold};
use dashi_domain::record::Record;
use dashi_projector::{
    PartitionState, Progress, Projector, ProjectorMetrics, ProjectorSettings, ReplayOptions, replay,
};
use integration_tests::log::open_log;
use integration_tests::{Database, Deployment, Server, TestDirectory, eventually, http};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{FAILED, OVER, SOON, on_files, on_servers, open_store, settings};

/// A fold that panics on some records, as one with a mistake in it would.
fn poisoned(records: &[Record], applied_before: &HashSet<Uuid>, rules: &FoldRules) -> Changes {
    let is_poison = |record: &&Record| record.value.windows(6).any(|bytes| bytes == b"poison");
    if let Some(record) = records.iter().find(is_poison) {
        panic!("no way to fold {} bytes", record.value.len());
    }
    fold(records, applied_before, rules)
}

fn poisoned_settings() -> ProjectorSettings {
    ProjectorSettings { fold: poisoned, ..settings() }
}

/// Posts a page view; all have one visitor and so one partition.
async fn view(deployment: &Deployment, server: &Server, url: &str) {
    let payload = json!({ "website": deployment.website(), "hostname": "example.com", "url": url });
    let agent = ("user-agent", integration_tests::setup::AGENT);
    let body = json!({ "type": "event", "payload": payload });
    let answer = http::post_json(&format!("{}/api/send", server.url()), &body, &[agent]).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_fold_panics_is_a_dead_letter_and_its_neighbours_are_applied_embedded() {
    let (_directory, deployment) = on_files("supervision").await;
    a_record_whose_fold_panics_is_a_dead_letter(deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_fold_panics_is_a_dead_letter_and_its_neighbours_are_applied_on_kafka_and_postgres() {
    let (_database, deployment) = on_servers("supervision").await;
    a_record_whose_fold_panics_is_a_dead_letter(deployment).await;
}

/// The panic ended the projector; after a restart the same record was read again, for ever.
async fn a_record_whose_fold_panics_is_a_dead_letter(deployment: Deployment) {
    let mut collector = deployment.start("collect").ready().await;
    for n in 0..25 {
        view(&deployment, &collector, &format!("/{}{n}", if n % 10 == 4 { "poison" } else { "good" })).await;
    }
    assert_eq!(collector.dashi.terminate().await, Some(0));

    let (log, store) = (open_log(deployment.log()).await, open_store(deployment.store()).await);
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let projector =
        Projector::new(log.clone(), store.clone(), poisoned_settings(), metrics, progress.clone());
    let running = tokio::spawn(projector.run(stop.clone()));
    let totals = deployment.settled().await.totals;
    assert_eq!((totals.applied, totals.duplicate, totals.dead), (22, 0, 3));
    assert_eq!(progress.stuck(SOON), [], "it goes on");
    stop.cancel();
    running.await.unwrap().unwrap();
    let letters = "SELECT reason, CAST(record_offset AS bigint) FROM @dead_letter ORDER BY record_offset";
    let live = Database::open(deployment.store()).await.pairs(letters).await;
    assert_eq!(live.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [4, 14, 24], "{live:?}");
    for (reason, _) in &live {
        assert!(reason.starts_with("the fold panicked: no way to fold "), "{reason}");
        assert!(reason.contains("supervision/panics.rs:"), "it says where: {reason}");
    }

    // A replay sets the same aside.
    let directory = TestDirectory::create("supervision");
    let again = format!("sqlite:{}", directory.path().join("again.db").display());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let into = open_store(&again).await;
    let (options, stop) = (ReplayOptions::default(), CancellationToken::new());
    let report =
        replay(log.clone(), into, poisoned_settings(), options, metrics, stop, |_| {}).await.unwrap();
    assert_eq!((report.applied, report.dead, report.complete), (22, 3, true));
    assert_eq!(Database::open(&again).await.pairs(letters).await, live);
    log.close().await;
    store.close().await;
}

/// Panics where the task of partition 2 logs that it projects, `left` times.
struct Panicking {
    left: AtomicUsize,
    failed: AtomicUsize,
    over: AtomicUsize,
}

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl tracing::Subscriber for Panicking {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("dashi_projector")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let text = fields.0;
        if text.contains(FAILED) {
            assert!(text.contains("the partition's task panicked: of the test"), "{text}");
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if text.contains(OVER) {
            self.over.fetch_add(1, Ordering::Relaxed);
        }
        let is_of_two = text.contains("message=projecting") && text.contains("partition=2");
        if is_of_two
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            resume_unwind(Box::new("of the test"));
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

// On one thread, so that the subscriber is that of all tasks of this test and of no other.
#[tokio::test]
async fn a_partition_whose_task_panics_fails_alone_and_is_tried_again() {
    let directory = TestDirectory::create("supervision");
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let (log, store) = (open_log(&file("log.db")).await, open_store(&file("store.db")).await);
    let count = || AtomicUsize::new(0);
    let panicking = Arc::new(Panicking { left: AtomicUsize::new(3), failed: count(), over: count() });
    let _guard = tracing::subscriber::set_default(Arc::clone(&panicking));
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let metrics = ProjectorMetrics::new(&mut Registry::default());
    let projector =
        Projector::new(log.clone(), store.clone(), poisoned_settings(), metrics, progress.clone());
    let running = tokio::spawn(projector.run(stop.clone()));
    eventually(SOON, "partition 2 has failed, and no other", async || {
        let stuck = progress.stuck(SOON);
        let is_two = matches!(&stuck[..], [stuck] if stuck.partition.number() == 2
            && matches!(stuck.state, PartitionState::Failed(kind) if kind.name() == "panicked"));
        if is_two { Ok(()) } else { Err(format!("{stuck:?}")) }
    })
    .await;
    eventually(SOON, "it runs", async || {
        let is_over = panicking.over.load(Ordering::Relaxed) == 1;
        if is_over && progress.stuck(SOON).is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", progress.stuck(SOON)))
        }
    })
    .await;
    assert_eq!(panicking.left.load(Ordering::Relaxed), 0, "it panicked three times");
    assert_eq!(panicking.failed.load(Ordering::Relaxed), 1, "and it was said once");
    eventually(SOON, "the note says that it is over", async || {
        let states = store.partitions().await.map_err(|error| error.to_string())?;
        let state = states.iter().find(|state| state.partition.number() == 2).unwrap().clone();
        let noted = state.last_error_kind.as_deref() == Some("panicked");
        if noted && state.last_error_over_at_ms.is_some() { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
    log.close().await;
}
