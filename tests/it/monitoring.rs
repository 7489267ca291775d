//! Metrics as operators see them: each is documented, and the alerts and the dashboard name none that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use dashi_load::{LoadPlan, Mode};
use hyper::Method;
use hyper::body::Bytes;
use integration_tests::kafka::unique_topic;
use integration_tests::{
    Deployment, Ledger, Server, TestDatabase, TestDirectory, eventually, http, kafka, repository,
};

/// How long a busy machine may take for what usually takes some seconds.
const SOON: Duration = Duration::from_secs(60);

const API_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Metrics that are there only in a state which the test does not bring about. They are documented all the same.
const OF_RARE_STATES: &[&str] = &[
    "dashi_http_connections_ended",
    "dashi_ingest_limits_file_current",
    "dashi_ingest_recording_chunks",
    "dashi_ingest_unknown_types",
    "dashi_projector_dead_letters_tried",
    "dashi_projector_partition_failure",
    "dashi_projector_rebuild_done_records",
    "dashi_projector_rebuild_left_records",
    "dashi_tracing_spans",
];

/// The metric families of an answer, by name, with their types.
async fn families(server: &Server) -> BTreeMap<String, String> {
    let text = http::get(&format!("{}/metrics", server.url())).await.expect("metrics").text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Names of metrics of Dashi and of its processes in a text, as queries write them.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("dashi_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// The family that a query's name is of: counters end with `_total` there, histograms with `_bucket`, `_sum` or `_count`.
fn family(name: &str) -> &str {
    let suffixes = ["_total", "_bucket", "_sum", "_count"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented_and_alerts_and_dashboard_name_no_other() {
    let database = TestDatabase::create().await;
    let directory = TestDirectory::create("monitoring");
    let log = format!("kafka://{}/{}", kafka::shared_broker(), unique_topic("monitoring"));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_INGEST_SPOOL", "true")
        .with("DASHI_INGEST_SPOOL_DIRECTORY", directory.path().join("spool").to_str().expect("UTF-8"))
        .with("DASHI_HISTORY_EVENT_AGE_S_MIN", "3600")
        .with("DASHI_LIMITS_BACKLOG_POLICY", "shed")
        .with("DASHI_API_KEYS", API_KEY);
    deployment.register().await;
    let collector = deployment.start("collect").ready().await;
    let projector = deployment.start("project").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&collector.authority, |plan: &mut LoadPlan| {
        plan.connections = 8;
        plan.mode = Mode::Open { requests_per_s: 200.0 };
        plan.duration = 2 * SOON;
    });

    // A question to the read side, so that its metrics are there.
    let profiles = format!("{}/api/websites/{}/profiles", collector.url(), deployment.website());
    let key = format!("Bearer {API_KEY}");
    let answer = http::request(Method::GET, &profiles, Bytes::new(), &[("authorization", &key)]).await;
    assert_eq!(answer.expect("an answer").status, 200);

    // During the load, as a server scrapes them.
    let documented: BTreeSet<String> = {
        let text = read("docs/metrics.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        rows.map(|(name, _)| name.to_owned())
            .filter(|name| name.starts_with("dashi_") || name.starts_with("process_"))
            .collect()
    };
    let rare: BTreeSet<String> = OF_RARE_STATES.iter().map(|name| (*name).to_owned()).collect();
    let there = std::cell::RefCell::new(BTreeMap::new());
    eventually(SOON, "every documented metric is there", async || {
        let mut found = families(&collector).await;
        found.extend(families(&projector).await);
        let missing: Vec<_> =
            documented.difference(&rare).filter(|name| !found.contains_key(*name)).cloned().collect();
        let undocumented: Vec<_> = found.keys().filter(|name| !documented.contains(*name)).cloned().collect();
        there.replace(found);
        if missing.is_empty() && undocumented.is_empty() {
            Ok(())
        } else {
            Err(format!("missing {missing:?}, not in docs/metrics.md {undocumented:?}"))
        }
    })
    .await;
    let report = ledger.stop(load).await;
    assert_eq!(report.counts.statuses.keys().collect::<Vec<_>>(), [&200], "{report}");
    ledger.check().await;

    assert!(rare.is_subset(&documented), "{:?}", rare.difference(&documented).collect::<Vec<_>>());
    for path in
        ["config/prometheus/alerts.yml", "config/prometheus/alerts_test.yml", "config/grafana/dashi.json"]
    {
        let names = named(&read(path));
        assert!(names.len() > 5, "{path} names {names:?}");
        let unknown: Vec<_> = names.iter().filter(|name| !documented.contains(family(name))).collect();
        assert!(unknown.is_empty(), "{path} names metrics that are not there: {unknown:?}");
        // A counter without its suffix, or a gauge with one, finds nothing.
        for name in &names {
            let kind = there.borrow().get(family(name)).cloned();
            let is_counter = kind.as_deref() == Some("counter");
            assert!(kind.is_none() || is_counter == name.ends_with("_total"), "{path}: {name} is a {kind:?}");
        }
    }
}

#[test]
fn promtool_accepts_the_rules_and_each_raises_what_its_test_says() {
    for arguments in [
        ["check", "config", "config/prometheus/prometheus.yml"],
        ["check", "rules", "config/prometheus/alerts.yml"],
        ["test", "rules", "config/prometheus/alerts_test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(repository())
            .output()
            .expect("promtool runs; `scripts/servers install` installs it");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "promtool {arguments:?}: {text}");
    }
}

/// docs/operations.md explains every alert, and no other.
#[test]
fn every_alert_is_explained() {
    let alerts = read("config/prometheus/alerts.yml");
    let defined: BTreeSet<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = read("docs/operations.md");
    let explained: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("Dashi"))
        .collect();
    assert_eq!(defined, explained);
}
