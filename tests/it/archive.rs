//! `dashi archive`: closed ranges of the log in files, from which a replay reads what retention has removed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dashi_archive::read_record;
use dashi_event_log::EventLog;
use integration_tests::log::{open_log, read_log};
use integration_tests::{Deployment, Ledger, Server, TestDatabase, TestDirectory, http, kafka};
use serde_json::{Value, json};

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// Sends so many events and returns when they are in the tables.
async fn fill(ledger: &mut Ledger, server: &Server, events: u64) {
    let before = ledger.acknowledged() as u64;
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 16;
        plan.requests_max = Some(events);
        plan.duration = SOON;
    });
    ledger.finish(load).await;
    assert_eq!(ledger.acknowledged() as u64, before + events);
    ledger.check().await;
}

/// Runs a command that prints JSON and ends with this exit code.
async fn run(deployment: &Deployment, args: &[&str], code: i32) -> Value {
    let ended = deployment.run(&[args, &["--json"]].concat()).await;
    assert_eq!(ended.code, Some(code), "{args:?}: {}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
}

/// Sum of a member over the partitions of a report.
fn sum(report: &Value, member: &str) -> u64 {
    let partitions = report["partitions"].as_array().unwrap();
    partitions.iter().map(|partition| partition[member].as_u64().unwrap()).sum()
}

async fn assert_equal(deployment: &Deployment, first: &str, second: &str) {
    let ended = deployment.run(&["compare", first, second]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

/// The archive's files, in order.
fn files(below: &Path) -> Vec<PathBuf> {
    let (mut left, mut files) = (vec![below.to_owned()], Vec::new());
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let list = if entry.file_type().unwrap().is_dir() { &mut left } else { &mut files };
            list.push(entry.path());
        }
    }
    files.retain(|file| file.to_string_lossy().ends_with(".zst"));
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_reads_the_archive_and_then_the_log_embedded() {
    let directory = TestDirectory::create("archive");
    let deployment = Deployment::embedded(&directory);
    let archive = directory.path().join("archive").display().to_string();
    let replayed = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    fill(&mut ledger, &server, 600).await;
    let report = run(&deployment, &["archive", "--to", &archive], 0).await;
    assert_eq!((sum(&report, "records"), &report["complete"]), (600, &json!(true)), "{report}");
    fill(&mut ledger, &server, 300).await;
    assert_eq!(server.dashi.terminate().await, Some(0));

    // Retention removes what is archived and half of what is not read from the archive either way.
    let log = open_log(deployment.log()).await;
    let low = trim_to_the_archive(&log, &report).await;
    assert!(low > 0);
    assert_eq!(read_log(&log).await.len() as u64, 900 - low);
    log.close().await;

    let whole = replayed("whole.db");
    let replay = run(&deployment, &["replay", "--into", &whole, "--archive", &archive], 0).await;
    assert_eq!((&replay["applied"], &replay["complete"]), (&json!(900), &json!(true)), "{replay}");
    assert_equal(&deployment, deployment.store(), &whole).await;
    // In batches of any size, and without the archive the removed records are missing.
    let small = replayed("small.db");
    let of_seven = deployment.clone().with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "7");
    run(&of_seven, &["replay", "--into", &small, "--archive", &archive], 0).await;
    assert_equal(&deployment, &whole, &small).await;
    let without = replayed("without.db");
    let replay = run(&deployment, &["replay", "--into", &without], 0).await;
    assert_eq!(replay["applied"], json!(900 - low), "{replay}");

    // A damaged file stops the replay before one of its records is applied, and verify names it, too.
    let damaged = &files(directory.path())[0];
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(damaged, &bytes).unwrap();
    let name = damaged.display().to_string();
    let failed = deployment.run(&["replay", "--into", &replayed("d.db"), "--archive", &archive]).await;
    assert_eq!(failed.code, Some(1), "{}", failed.stdout);
    assert!(failed.stderr.contains(&name) && failed.stderr.contains("offset 0 of"), "{}", failed.stderr);
    let verified = run(&deployment, &["archive", "verify", "--archive", &archive], 3).await;
    assert_eq!(verified[0]["damaged"].as_array().unwrap().len(), 1, "{verified}");
    assert!(verified[0]["damaged"][0].as_str().unwrap().contains(&name), "{verified}");
}

/// Removes all records that the archiver's report names from the log; returns how many.
async fn trim_to_the_archive(log: &EventLog, report: &Value) -> u64 {
    // The time of the first record that is not archived.
    let records = read_log(log).await;
    let ends: Vec<_> =
        report["partitions"].as_array().unwrap().iter().map(|part| part["to"].as_u64().unwrap()).collect();
    let later =
        records.iter().filter(|record| record.offset.number() >= ends[record.partition.number() as usize]);
    let before_ms = later.map(|record| record.appended_at_ms).min().unwrap();
    log.trim(before_ms).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_reads_the_archive_and_then_the_log_on_kafka_and_postgres() {
    let (live, again) = (TestDatabase::create().await, TestDatabase::create().await);
    let directory = TestDirectory::create("archive");
    let archive = directory.path().join("archive").display().to_string();
    let topic = kafka::unique_topic("archive");
    let log = format!("kafka://{}/{topic}", kafka::shared_broker());
    let deployment = Deployment::new(log, live.url());
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    fill(&mut ledger, &server, 400).await;
    let report = run(&deployment, &["archive", "--to", &archive], 0).await;
    assert_eq!(sum(&report, "records"), 400, "{report}");
    fill(&mut ledger, &server, 200).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    // The archived records go, all but the last one: offsets that both have are read once.
    let parts = report["partitions"].as_array().unwrap();
    for part in parts {
        let (partition, to) = (part["partition"].as_i64().unwrap(), part["to"].as_i64().unwrap());
        if to > 0 {
            kafka::delete_records(&kafka::shared_broker(), &topic, partition as i32, to - 1).await;
        }
    }
    let replay = run(&deployment, &["replay", "--into", again.url(), "--archive", &archive], 0).await;
    assert_eq!((&replay["applied"], &replay["duplicate"]), (&json!(600), &json!(0)), "{replay}");
    assert_equal(&deployment, live.url(), again.url()).await;
    // The rest is archived behind it, in the same files.
    let report = run(&deployment, &["archive", "--to", &archive], 0).await;
    assert_eq!(sum(&report, "records"), 200, "{report}");
    assert!(report["partitions"].as_array().unwrap().iter().all(|part| part["not_archived"] == json!([])));
    let verified = run(&deployment, &["archive", "verify", "--archive", &archive], 0).await;
    assert_eq!(
        (&verified[0]["records"], &verified[0]["not_archived"]),
        (&json!(600), &json!(0)),
        "{verified}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_that_is_killed_again_and_again_leaves_no_gap() {
    let directory = TestDirectory::create("archive");
    let deployment = Deployment::embedded(&directory);
    let archive = directory.path().join("archive").display().to_string();
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    let mut server = deployment.start("serve").ready().await;
    // The kills are spread over the time that a whole run takes on this machine.
    let begun = Instant::now();
    run(&deployment, &["archive", "--to", &archive], 0).await;
    let whole = begun.elapsed();
    let mut killed = 0;
    for twelfth in 0..12 {
        fill(&mut ledger, &server, 40).await;
        let mut archiver = deployment.spawn(&["archive", "--to", &archive]);
        tokio::time::sleep(whole * twelfth / 12).await;
        killed += u32::from(archiver.is_running());
        archiver.kill9();
        archiver.wait_exit(SOON).await;
    }
    assert!(killed > 0, "each run was whole before it was killed");
    assert_eq!(server.dashi.terminate().await, Some(0));
    run(&deployment, &["archive", "--to", &archive], 0).await;
    let verified = run(&deployment, &["archive", "verify", "--archive", &archive], 0).await;
    for (member, value) in [("records", json!(480)), ("not_archived", json!(0)), ("unlisted", json!([]))] {
        assert_eq!(verified[0][member], value, "{member} of {verified}");
    }
    // Line by line, the archive is the log.
    let mut archived = Vec::new();
    for file in files(directory.path()) {
        let text = zstd::decode_all(std::fs::File::open(file).unwrap()).unwrap();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            archived.push(read_record(line).unwrap());
        }
    }
    let log = open_log(deployment.log()).await;
    assert_eq!(archived, read_log(&log).await);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_listed_and_what_cannot_be_archived_is_named() {
    let directory = TestDirectory::create("archive");
    let deployment = Deployment::embedded(&directory);
    let archive = directory.path().join("archive").display().to_string();
    deployment.register().await;
    let mut ledger = Ledger::new(&deployment);
    // So many events of so many sessions that no partition is without one of them.
    const EVENTS: u64 = 400;
    let none = deployment.run(&["archive", "list", "--archive", &archive]).await;
    assert_eq!(none.code, Some(1), "{}", none.stdout);
    assert!(none.stderr.contains("there is no archive in"), "{}", none.stderr);
    let mut server = deployment.start("serve").ready().await;
    fill(&mut ledger, &server, EVENTS).await;
    // Nothing is older than an hour.
    let report = run(&deployment, &["archive", "--to", &archive, "--keep-in-log", "1h"], 0).await;
    assert_eq!(sum(&report, "records"), 0, "{report}");
    run(&deployment, &["archive", "--to", &archive], 0).await;
    fill(&mut ledger, &server, EVENTS).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
    // Retention removes records that were never archived.
    let log = open_log(deployment.log()).await;
    let removed = log.trim(i64::MAX).await.unwrap();
    assert_eq!(removed, 2 * EVENTS);
    log.close().await;
    let mut server = deployment.start("serve").ready().await;
    let load = ledger.start(&server.authority, |plan| {
        plan.requests_max = Some(EVENTS);
        plan.duration = SOON;
    });
    ledger.finish(load).await;
    assert_eq!(deployment.settled().await.totals.in_log, EVENTS);
    assert_eq!(server.dashi.terminate().await, Some(0));
    let ended = deployment.run(&["archive", "--to", &archive, "--until", "2999-01-01"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("are not archived: retention removed them"), "{}", ended.stdout);
    let listed = deployment.run(&["archive", "list", "--archive", &archive]).await;
    assert!(listed.stdout.contains("are not archived"), "{}", listed.stdout);
    let manifests = run(&deployment, &["archive", "list", "--archive", &archive], 0).await;
    let records = manifests.as_array().unwrap().iter().flat_map(|manifest| {
        manifest["segments"].as_array().unwrap().iter().map(|segment| segment["records"].as_u64().unwrap())
    });
    assert_eq!(records.sum::<u64>(), 2 * EVENTS);
    let verified = run(&deployment, &["archive", "verify", "--archive", &archive], 0).await;
    assert_eq!(verified[0]["not_archived"], EVENTS, "{verified}");
    // The part that neither has is missing in a replay, because of retention.
    let into = format!("sqlite:{}", directory.path().join("replayed.db").display());
    let replay = run(&deployment, &["replay", "--into", &into, "--archive", &archive], 0).await;
    assert_eq!(replay["applied"], 2 * EVENTS, "{replay}");
    let status = deployment.with_store(&into).run(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["totals"]["missing"], EVENTS, "{status}");
    let wrong = deployment.run(&["archive", "--to", "ftp://somewhere/x"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

/// Posts an event of a person; it must be taken.
async fn send(deployment: &Deployment, server: &Server, person: &str, page: &str) {
    let payload = json!({
        "website": deployment.website(), "hostname": "example.com", "url": page, "id": person,
        "data": { "secret": format!("the secret of {person}") }, "name": "note",
    });
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let url = format!("{}/api/send", server.url());
    let body = json!({ "type": "event", "payload": payload });
    let answer = http::post_json(&url, &body, &[("user-agent", agent)]).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Whether the archive's files contain a text.
fn archive_has(directory: &TestDirectory, text: &str) -> bool {
    files(directory.path()).iter().any(|file| {
        let lines = zstd::decode_all(std::fs::File::open(file).unwrap()).unwrap();
        lines.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_are_applied_to_an_archive_embedded() {
    let directory = TestDirectory::create("archive");
    erasures_are_applied_to_an_archive(&directory, &Deployment::embedded(&directory)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_are_applied_to_an_archive_on_kafka_and_postgres() {
    let (directory, database) = (TestDirectory::create("archive"), TestDatabase::create().await);
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("archive"));
    erasures_are_applied_to_an_archive(&directory, &Deployment::new(log, database.url())).await;
}

async fn erasures_are_applied_to_an_archive(directory: &TestDirectory, deployment: &Deployment) {
    let archive = directory.path().join("archive").display().to_string();
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    for person in ["ada", "bob", "cleo"] {
        for page in 0..20 {
            send(deployment, &server, person, &format!("/{person}/{page}")).await;
        }
    }
    deployment.settled().await;
    run(deployment, &["archive", "--to", &archive], 0).await;
    let secrets =
        |people: [&str; 3]| people.map(|person| archive_has(directory, &format!("secret of {person}")));
    assert_eq!(secrets(["ada", "bob", "cleo"]), [true, true, true]);

    let erase = |person: &'static str| async move {
        let args = ["erase", "--website", deployment.website(), "--distinct-id", person, "--apply"];
        let ended = deployment.run(&args).await;
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    };
    // The erasure is in the log only, and the archive is rewritten by command.
    erase("ada").await;
    let report = run(deployment, &["archive", "rewrite", "--archive", &archive], 0).await;
    assert_eq!((&report["erased"], &report["erasures"]), (&json!(20), &json!(1)), "{report}");
    assert_eq!(secrets(["ada", "bob", "cleo"]), [false, true, true]);
    let again = run(deployment, &["archive", "rewrite", "--archive", &archive], 0).await;
    assert_eq!((&again["erased"], &again["files"]), (&json!(0), &json!(0)), "{again}");
    // A run that archives an erasure applies it by itself. On an embedded log its later records are tombstones already.
    send(deployment, &server, "bob", "/bob/later").await;
    deployment.settled().await;
    erase("bob").await;
    run(deployment, &["archive", "--to", &archive], 0).await;
    assert_eq!(secrets(["ada", "bob", "cleo"]), [false, false, true]);
    assert_eq!(server.dashi.terminate().await, Some(0));

    let verified = run(deployment, &["archive", "verify", "--archive", &archive], 0).await;
    assert_eq!((&verified[0]["damaged"], &verified[0]["unlisted"]), (&json!([]), &json!([])), "{verified}");
    assert!(verified[0]["erased"].as_u64() >= Some(40), "{verified}");
    let into = format!("sqlite:{}", directory.path().join("replayed.db").display());
    let replay = run(deployment, &["replay", "--into", &into, "--archive", &archive], 0).await;
    assert_eq!(replay["dead"], 0, "{replay}");
    let compared = deployment.run(&["compare", "--json", deployment.store(), &into]).await;
    let compared: Value = serde_json::from_str(&compared.stdout).unwrap();
    let tables = compared["tables"].as_array().unwrap();
    let differing: Vec<_> = tables.iter().filter(|table| table["equal"] == false).collect();
    assert!(differing.is_empty(), "{differing:?}");
}
