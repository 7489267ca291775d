//! `dashi export`: the log as files for other programs.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use dashi_archive::read_record;
use dashi_domain::record::Record;
use dashi_event_log::NewRecord;
use integration_tests::log::{open_log, read_log};
use integration_tests::setup::WEBSITE;
use integration_tests::{Deployment, Running, Setup, TestDirectory, eventually, on_both_setups};
use serde_json::{Value, json};
use uuid::Uuid;

on_both_setups!(
    an_export_has_every_record_of_the_log,
    parts_of_the_log_are_exported,
    what_is_exported_is_imported_into_another_log,
);

/// A process that has taken events and one record that is no event, all of them passed.
async fn filled(setup: Setup) -> Running {
    let running = setup.start(&[]).await;
    for page in 0..40 {
        running.accept("event", &json!({ "website": WEBSITE, "url": format!("/é{page}") })).await;
    }
    let log = open_log(running.log()).await;
    for value in [&b"\xff\x00 garbage"[..], b"{\"v\":7}"] {
        let record = NewRecord { session_id: Uuid::from_u128(9), value: value.to_vec() };
        assert!(matches!(log.append(vec![record]).await[..], [Ok(_)]));
    }
    log.close().await;
    eventually(Duration::from_secs(60), "every record has its outcome", async || {
        let totals = running.totals().await;
        if totals.applied + totals.dead == 42 { Ok(()) } else { Err(format!("{totals:?}")) }
    })
    .await;
    running
}

/// Exports with these arguments; returns the report.
async fn export(running: &Running, args: &[&str]) -> Value {
    let ended = running.run(&[&["export", "--json"], args].concat()).await;
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
}

/// The records of lines.
fn records(text: &[u8]) -> Vec<Record> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| read_record(line).unwrap()).collect()
}

fn read(path: &Path) -> Vec<u8> {
    let (file, mut text) = (std::fs::File::open(path).unwrap(), Vec::new());
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut text).unwrap(),
        Some("zst") => zstd::Decoder::new(file).unwrap().read_to_end(&mut text).unwrap(),
        _ => std::io::BufReader::new(file).read_to_end(&mut text).unwrap(),
    };
    text
}

async fn an_export_has_every_record_of_the_log(setup: Setup) {
    let running = filled(setup).await;
    let log = open_log(running.log()).await;
    let expected = read_log(&log).await;
    log.close().await;
    assert_eq!(expected.len(), 42);
    let directory = TestDirectory::create("export");

    // On standard output, with the result on standard error.
    let ended = running.run(&["export"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("exported 42 records, 2 of which cannot be decoded"), "{}", ended.stderr);
    assert_eq!(records(ended.stdout.as_bytes()), expected);

    for (name, more) in [
        ("all.ndjson", &[][..]),
        ("all.ndjson.gz", &[]),
        ("all.ndjson.zst", &[]),
        ("any", &["--compress", "none"]),
    ] {
        let path = directory.path().join(name);
        let report = export(&running, &[&["--to", path.to_str().unwrap()], more].concat()).await;
        assert_eq!((&report["records"], &report["undecodable"]), (&json!(42), &json!(2)), "{report}");
        assert_eq!(report["files"][0]["bytes"], std::fs::metadata(&path).unwrap().len(), "{report}");
        assert_eq!(records(&read(&path)), expected, "{name}");
    }

    // A file for each partition, and no other one.
    let below = directory.path().join("parts/");
    let report = export(&running, &["--to", below.to_str().unwrap()]).await;
    let mut found = Vec::new();
    for file in report["files"].as_array().unwrap() {
        found.extend(records(&read(Path::new(file["path"].as_str().unwrap()))));
    }
    assert_eq!(found, expected);
    let count = std::fs::read_dir(&below).unwrap().count();
    assert_eq!(count, report["files"].as_array().unwrap().len(), "{report}");

    let parquet = directory.path().join("all.parquet");
    let report = export(&running, &["--to", parquet.to_str().unwrap()]).await;
    assert_eq!(report["records"], 42, "{report}");
    let bytes = std::fs::read(&parquet).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));

    for wrong in
        [&["--format", "parquet"][..], &["--to", "x.parquet", "--compress", "gzip"], &["--since", "soon"]]
    {
        let refused = running.run(&[&["export"], wrong].concat()).await;
        assert_eq!(refused.code, Some(2), "{wrong:?}: {}", refused.stderr);
    }
    let nowhere = running.run(&["export", "--to", "/proc/nothing/here.ndjson"]).await;
    assert_eq!(nowhere.code, Some(1));
    assert!(nowhere.stderr.contains("/proc/nothing/here.ndjson"), "{}", nowhere.stderr);
}

async fn parts_of_the_log_are_exported(setup: Setup) {
    let running = filled(setup).await;
    let directory = TestDirectory::create("export");
    let path = directory.path().join("part.ndjson");
    let to = path.to_str().unwrap();
    let one = export(&running, &["--to", to, "--website", WEBSITE]).await;
    assert_eq!((&one["records"], &one["other_sources"]), (&json!(40), &json!(2)), "{one}");
    let other = export(&running, &["--to", to, "--website", &Uuid::from_u128(1).to_string()]).await;
    assert_eq!((&other["records"], &other["other_sources"]), (&json!(0), &json!(42)), "{other}");

    // By time of append: a record on the boundary is in the part that begins there.
    tokio::time::sleep(Duration::from_millis(20)).await;
    running.accept("event", &json!({ "website": WEBSITE, "url": "/last" })).await;
    let log = open_log(running.log()).await;
    let appended = read_log(&log).await.iter().map(|record| record.appended_at_ms).max().unwrap();
    log.close().await;
    let boundary = dashi_domain::calendar::iso_string(appended);
    let since = export(&running, &["--to", to, "--since", &boundary]).await;
    assert_eq!(since["records"], 1, "{since}");
    assert!(String::from_utf8(read(&path)).unwrap().contains("/last"));
    let until = export(&running, &["--to", to, "--until", &boundary]).await;
    assert_eq!(until["records"], 42, "{until}");
}

async fn what_is_exported_is_imported_into_another_log(setup: Setup) {
    let running = filled(setup).await;
    let directory = TestDirectory::create("export");
    let path = directory.path().join("all.ndjson.zst");
    let file = path.to_str().unwrap();
    export(&running, &["--to", file]).await;
    let other = Deployment::embedded(&directory);
    let (rejects, state) = (directory.path().join("rejects"), directory.path().join("state"));
    let files = ["--rejects", rejects.to_str().unwrap(), "--state", state.to_str().unwrap()];
    let imported = other.run(&[&["import", "dashi", file, "--add-websites"][..], &files].concat()).await;
    // The two dead letters cannot be taken.
    assert_eq!(imported.code, Some(3), "{}{}", imported.stdout, imported.stderr);
    let mut projector = other.start("project").ready().await;
    assert_eq!(other.settled().await.totals.applied, 40);
    assert_eq!(projector.dashi.terminate().await, Some(0));
    let compared = running.run(&["compare", "--json", running.store(), other.store()]).await;
    let compared: Value = serde_json::from_str(&compared.stdout).unwrap();
    let tables = compared["tables"].as_array().unwrap();
    let differing = tables.iter().filter(|table| table["equal"] == false).map(|table| &table["table"]);
    // Those of the two records, and the counts of records, which are another log's.
    assert_eq!(differing.collect::<Vec<_>>(), ["dead_letter", "hour_count"], "{compared}");
}
