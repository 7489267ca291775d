//! The process dies between any two steps. Everything that was acknowledged is in the tables once, and nothing
//! else is.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use dashi_domain::fold::{FoldRules, fold};
use dashi_domain::location::Location;
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::record::{Event, Record};
use dashi_domain::submission::{SchemaRules, Submission};
use dashi_domain::umami::Release;
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, EventLog, NewRecord};
use dashi_store::{Claim, CommitError, PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store};
use integration_tests::{
    Dashi, Database, Deployment, Ledger, TestDatabase, TestDirectory, eventually, free_port, kafka,
};
use uuid::Uuid;

/// How long a busy machine may take for what usually takes a second.
const SOON: Duration = Duration::from_secs(60);

/// Moments that look random and are the same in every run.
struct Moments(u64);

impl Moments {
    /// SplitMix64.
    fn next(&mut self, below_ms: u64) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_millis((bits ^ (bits >> 31)) % below_ms)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_and_double_nothing_embedded() {
    const KILLS: u64 = 14;
    let directory = TestDirectory::create("crash");
    // Small batches, so that a kill falls into a commit more often than not.
    let deployment = Deployment::embedded(&directory).with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "50");
    deployment.register().await;
    let authority = format!("127.0.0.1:{}", free_port());
    let mut server = deployment.start_at("serve", &authority).ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&authority, |plan| {
        plan.connections = 16;
        plan.mode = dashi_load::Mode::Open { requests_per_s: 600.0 };
        plan.duration = 4 * SOON;
    });
    let mut moments = Moments(1);
    for _ in 0..KILLS {
        // The moment is random on purpose: nothing is waited for.
        tokio::time::sleep(moments.next(700)).await;
        server.dashi.kill9();
        server = deployment.start_at("serve", &authority).ready().await;
    }
    let report = ledger.stop(load).await;
    assert!(report.counts.errors.total() > 0, "no kill was felt");
    assert!(ledger.acknowledged() > 500, "{report}");
    let status = ledger.check().await;
    // Rows and checkpoint commit as one: nothing was ever applied a second time.
    assert_eq!(status.totals.duplicate, 0);
    assert!(status.partitions.iter().all(|partition| partition.epoch > KILLS / 2), "{status:?}");
    assert_eq!(server.dashi.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_and_double_nothing_on_kafka_and_postgres() {
    const KILLS: u64 = 8;
    let database = TestDatabase::create().await;
    let log = format!("kafka://{}/{}", kafka::shared_broker(), kafka::unique_topic("crash"));
    let deployment = Deployment::new(log, database.url())
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "50")
        .with("DASHI_KAFKA_SESSION_TIMEOUT_MS", "6000");
    deployment.register().await;
    let authority = format!("127.0.0.1:{}", free_port());
    let mut server = deployment.start_at("serve", &authority).ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&authority, |plan| {
        plan.connections = 16;
        plan.mode = dashi_load::Mode::Open { requests_per_s: 400.0 };
        plan.duration = 4 * SOON;
    });
    let mut moments = Moments(2);
    for kill in 0..KILLS {
        until_it_projects(&deployment, &server.dashi).await;
        tokio::time::sleep(moments.next(700)).await;
        server.dashi.kill9();
        // The group keeps the partitions of a dead member until its session has timed out. A group of its own spares
        // most starts that wait, and the store's epochs are all that may matter.
        let group = if kill % 4 == 3 { String::new() } else { format!("crash-{}-{kill}", database.name()) };
        let restarted = if group.is_empty() {
            deployment.clone()
        } else {
            deployment.clone().with("DASHI_KAFKA_GROUP", &group)
        };
        server = restarted.start_at("serve", &authority).ready().await;
    }
    let report = ledger.stop(load).await;
    assert!(report.counts.errors.total() > 0, "no kill was felt");
    assert!(ledger.acknowledged() > 500, "{report}");
    let status = ledger.check().await;
    assert_eq!(status.totals.duplicate, 0);
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// Waits until the process owns every partition and applies what arrives.
async fn until_it_projects(deployment: &Deployment, dashi: &Dashi) {
    let before = std::cell::Cell::new(None);
    eventually(SOON, "the process owns every partition and applies records", async || {
        let status = deployment.status().await?;
        if status.owned_by(dashi).len() < status.partitions.len() {
            return Err(format!("it owns {:?}", status.owned_by(dashi)));
        }
        let applied = status.totals.applied;
        match before.replace(Some(applied)) {
            Some(before) if applied > before => Ok(()),
            _ => Err(format!("{applied} applied")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_killed_goes_on_and_ends_with_the_live_tables() {
    const EVENTS: u64 = 6_000;
    let directory = TestDirectory::create("crash");
    let deployment = Deployment::embedded(&directory);
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&deployment);
    let load = ledger.start(&server.authority, |plan| {
        plan.connections = 16;
        plan.requests_max = Some(EVENTS);
        plan.duration = 2 * SOON;
    });
    ledger.finish(load).await;
    ledger.check().await;
    assert_eq!(server.dashi.terminate().await, Some(0));

    // Small batches: the replay takes a while, and a kill falls into a commit more often than not.
    let deployment = deployment.with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", "5");
    let database = TestDatabase::create().await;
    let file = format!("sqlite:{}", directory.path().join("replayed.db").display());
    let mut moments = Moments(3);
    for (into, kills) in [(file.as_str(), 5), (database.url(), 4)] {
        let mut interrupted = 0;
        for _ in 0..kills {
            let mut replay = deployment.spawn(&["replay", "--into", into]);
            tokio::time::sleep(Duration::from_millis(100) + moments.next(500)).await;
            interrupted += u32::from(replay.is_running());
            replay.kill9();
        }
        assert!(interrupted >= 2, "most replays into {into} had ended before they were killed");
        let ended = deployment.run(&["replay", "--json", "--into", into]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["applied"], &report["complete"]), (&EVENTS.into(), &true.into()), "{report}");
        assert_eq!(report["duplicate"], 0, "{report}");
        let compared = deployment.run(&["compare", deployment.store(), into]).await;
        assert_eq!(compared.code, Some(0), "{}", compared.stdout);
    }
}

/// How many records one commit of the step tests holds.
const BATCH: u64 = 5;

fn log_id() -> LogId {
    LogId::new("a log of a crash test")
}

/// The record at an offset of a log that has no end: of few sessions, and of every kind.
fn record_at(offset: u64) -> Record {
    let (kind, more) = match offset % 4 {
        0 => ("event", format!(r#""url":"/{offset}""#)),
        1 => (
            "event",
            format!(r#""url":"/{offset}","name":"buy","data":{{"revenue":{offset},"currency":"EUR"}}"#),
        ),
        2 => ("identify", format!(r#""id":"p{offset}","data":{{"n":{offset},"only-{offset}":true}}"#)),
        _ => ("performance", format!(r#""url":"/{offset}","lcp":{offset}"#)),
    };
    let website = "11111111-1111-4111-8111-111111111111";
    let body =
        format!(r#"{{"type":"{kind}","payload":{{"website":"{website}","hostname":"example.com",{more}}}}}"#);
    let event = Event {
        event_id: Uuid::from_u128(0xe000_0000 + u128::from(offset)),
        received_at_ms: 1_795_000_000_000 + offset as i64,
        session_id: Uuid::from_u128(0x5000_0000 + u128::from(offset % 7)),
        visit_id: Uuid::from_u128(1),
        device: None,
        user_agent: None,
        location: Location::default(),
        submission: Submission::parse(body.as_bytes(), SchemaRules::RECORDED).expect("a valid event"),
    };
    let (partition, appended_at_ms) = (Partition::new(0), event.received_at_ms);
    Record { partition, offset: Offset::new(offset), appended_at_ms, value: event.encode() }
}

/// Folds the batch that begins at a checkpoint and commits it; returns the checkpoint behind it.
async fn commit_batch(store: &Store, claim: &Claim, from: Checkpoint) -> Result<Checkpoint, CommitError> {
    let first = from.offset().number();
    let records: Vec<Record> = (first..first + BATCH).map(record_at).collect();
    let rules = FoldRules {
        zone: jiff::tz::TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    };
    let to = Checkpoint::after(Offset::new(first + BATCH - 1));
    store.commit(claim, from, to, &fold(&records, &HashSet::new(), &rules)).await?;
    Ok(to)
}

async fn claim(store: &Store) -> Claim {
    store.claim(&log_id(), Partition::new(0), "crash test").await.expect("the store answers")
}

/// Commits batches until the projection has reached `end`.
async fn project_to(store: &Store, end: u64) {
    let claim = claim(store).await;
    let mut from = claim.resume_from;
    while from.offset().number() < end {
        from = commit_batch(store, &claim, from).await.expect("it is committed");
    }
}

/// Asserts that the tables hold what the records before the checkpoint make, no more and no less.
async fn assert_whole(store: &str, checkpoint: Checkpoint) {
    let records = checkpoint.offset().number();
    let mut database = Database::open(store).await;
    let identifies = (0..records).filter(|offset| offset % 4 == 2).count() as i64;
    for (table, expected) in [
        ("website_event", records as i64 - identifies),
        ("@identify", identifies),
        ("revenue", (0..records).filter(|offset| offset % 4 == 1).count() as i64),
        ("session", records.min(7) as i64),
        ("session_data WHERE data_key LIKE 'only-%'", identifies),
    ] {
        let found = database.count(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(found, expected, "{table} at checkpoint {checkpoint}");
    }
}

async fn open_sqlite(path: &Path) -> Store {
    let store = Store::Sqlite(SqliteStore::open(&SqliteSettings { path: path.to_owned() }).await.unwrap());
    store.migrate().await.unwrap();
    store
}

async fn open_postgres(url: &str) -> Store {
    let settings = PostgresSettings { url: url.to_owned(), connections_max: 2, statement_timeout: SOON };
    let store = Store::Postgres(PostgresStore::open(&settings).unwrap());
    store.migrate().await.unwrap();
    store
}

/// Polls a future so many times, then drops it: what happens to it when its process dies there.
async fn up_to_step<F: Future>(step: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polls = 0;
    std::future::poll_fn(|context| {
        if polls == step {
            return Poll::Ready(None);
        }
        polls += 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[tokio::test]
async fn a_commit_that_is_left_at_any_step_is_in_whole_or_not_at_all() {
    let directory = TestDirectory::create("crash");
    let path = directory.path().join("store.db");
    let url = format!("sqlite:{}", path.display());
    let mut left = 0;
    for step in 0.. {
        assert!(step < 1_000, "a commit has no end");
        let store = open_sqlite(&path).await;
        let claim = claim(&store).await;
        assert_whole(&url, claim.resume_from).await;
        match up_to_step(step, commit_batch(&store, &claim, claim.resume_from)).await {
            None => left += 1,
            Some(committed) => {
                committed.unwrap();
                break;
            }
        }
        // Dropped without being closed: its connections break.
    }
    assert!(left > 1, "a commit has more steps than {left}");
    let store = open_sqlite(&path).await;
    assert_goes_on_as_if_nothing_had_happened(&store).await;
}

#[tokio::test]
async fn a_commit_whose_connection_dies_at_any_statement_is_not_in_at_all() {
    let database = TestDatabase::create().await;
    let store = open_postgres(database.url()).await;
    let mut killer = Database::open(database.url()).await;
    killer
        .execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
        )
        .await;
    let each = |table: &'static str| {
        ["BEFORE", "AFTER"]
            .map(|when| (table, format!("TRIGGER die {when} INSERT OR UPDATE ON {table} FOR EACH STATEMENT")))
    };
    let tables =
        ["@checkpoint", "website_event", "@identify", "session", "event_data", "session_data", "revenue"];
    // The last one fires within COMMIT.
    let at_commit =
        "CONSTRAINT TRIGGER die AFTER INSERT ON website_event DEFERRABLE INITIALLY DEFERRED FOR EACH ROW";
    let deaths = tables.into_iter().flat_map(each).chain([("website_event", at_commit.to_owned())]);
    for (table, trigger) in deaths {
        let claim = claim(&store).await;
        killer.execute(&format!("CREATE {trigger} EXECUTE FUNCTION die()")).await;
        let committed = commit_batch(&store, &claim, claim.resume_from).await;
        // Before COMMIT it is sure that nothing was written, within it nothing is.
        let is_as_sure_as_it_can_be = match committed {
            Err(CommitError::Unknown { .. }) => trigger == at_commit,
            Err(CommitError::NotWritten { .. }) => trigger != at_commit,
            _ => false,
        };
        assert!(is_as_sure_as_it_can_be, "{trigger}: {committed:?}");
        killer.execute(&format!("DROP TRIGGER die ON {table}")).await;
        eventually(SOON, "the store answers on another connection", async || {
            store.resume(&claim).await.map(|checkpoint| checkpoint == claim.resume_from)
        })
        .await;
        assert_whole(database.url(), claim.resume_from).await;
        // What comes after it is committed under the same claim.
        commit_batch(&store, &claim, claim.resume_from).await.unwrap();
    }
    assert_goes_on_as_if_nothing_had_happened(&store).await;
}

async fn assert_goes_on_as_if_nothing_had_happened(store: &Store) {
    let directory = TestDirectory::create("crash");
    let at_once = open_sqlite(&directory.path().join("at-once.db")).await;
    for store in [store, &at_once] {
        project_to(store, 20 * BATCH).await;
    }
    let compared = dashi_store::compare(store, &at_once).await.unwrap();
    assert!(compared.equal, "{compared:?}");
}

/// Lengths at which a crash may have left a write-ahead log: whole frames, and in the middle of the next one.
/// Source: SQLite's file format, the write-ahead log: a header of 32 bytes, frames of 24 bytes and a page.
fn crash_points(wal: &[u8]) -> impl Iterator<Item = usize> {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let frames = wal.len().saturating_sub(HEADER) / FRAME;
    (0..=frames).flat_map(move |frame| [HEADER + frame * FRAME, HEADER + frame * FRAME + FRAME / 2])
}

/// Puts a database as a crash leaves it: the file, and the first bytes of its write-ahead log.
fn crashed(from: &Path, wal: &[u8], into: &Path) {
    fs::copy(from, into).unwrap();
    fs::write(into.with_extension("db-wal"), wal).unwrap();
}

#[tokio::test]
async fn a_store_that_dies_at_any_write_goes_on_from_a_whole_batch() {
    const BATCHES: u64 = 4;
    let directory = TestDirectory::create("crash");
    let path = directory.path().join("store.db");
    let store = open_sqlite(&path).await;
    // Into the file, so that the write-ahead log begins with the first batch.
    Database::open(&format!("sqlite:{}", path.display()))
        .await
        .execute("PRAGMA wal_checkpoint(TRUNCATE)")
        .await;
    project_to(&store, BATCHES * BATCH).await;
    let wal = fs::read(path.with_extension("db-wal")).unwrap();
    let mut checkpoints = HashSet::new();
    for (number, length) in crash_points(&wal).enumerate() {
        let path = directory.path().join(format!("crashed-{number}.db"));
        crashed(&directory.path().join("store.db"), &wal[..length.min(wal.len())], &path);
        let revived = open_sqlite(&path).await;
        let resume_from = claim(&revived).await.resume_from;
        checkpoints.insert(resume_from);
        assert_whole(&format!("sqlite:{}", path.display()), resume_from).await;
        // To the end is the same for all that begin at one checkpoint.
        if number % 8 == 0 {
            project_to(&revived, BATCHES * BATCH).await;
            let compared = dashi_store::compare(&store, &revived).await.unwrap();
            assert!(compared.equal, "{length} bytes: {compared:?}");
        }
    }
    assert_eq!(checkpoints.len() as u64, BATCHES + 1, "a crash after each batch was seen: {checkpoints:?}");
}

#[tokio::test]
async fn a_log_that_dies_at_any_write_has_all_that_it_had_acknowledged() {
    let open = async |path: &Path| {
        let settings =
            EmbeddedSettings { path: path.to_owned(), partitions: 2, queue_max: 100, batch_max: 100 };
        EventLog::Embedded(EmbeddedLog::open(settings).await.unwrap())
    };
    let directory = TestDirectory::create("crash");
    let path = directory.path().join("log.db");
    let log = open(&path).await;
    let segment = directory.path().join("log.db.segments").join(format!("{:020}.records", 0));
    // The bytes of the segment that are not zero when so many records were acknowledged.
    let mut acknowledged = Vec::new();
    let mut records = 0;
    for size in [1, 3, 1, 7, 2, 1] {
        let entries = (records..records + size).map(|number| {
            let record = record_at(number);
            NewRecord { session_id: Uuid::from_u128(u128::from(number % 7)), value: record.value }
        });
        assert!(log.append(entries.collect()).await.iter().all(Result::is_ok));
        records += size;
        let bytes = fs::read(&segment).unwrap();
        acknowledged.push((bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1), records));
    }
    let bytes = fs::read(&segment).unwrap();
    let wal = fs::read(path.with_extension("db-wal")).unwrap();
    let ends = acknowledged.iter().map(|(end, _)| *end).collect::<Vec<_>>();
    let around = ends.iter().flat_map(|end| [end - 40, end - 1, *end, end + 1, end + 30]);
    for (number, length) in [0, 10, 64, 100].into_iter().chain(around).enumerate() {
        let path = directory.path().join(format!("crashed-{number}.db"));
        crashed(&directory.path().join("log.db"), &wal, &path);
        let segments = directory.path().join(format!("crashed-{number}.db.segments"));
        fs::create_dir(&segments).unwrap();
        fs::write(segments.join(format!("{:020}.records", 0)), &bytes[..length]).unwrap();
        let revived = open(&path).await;
        let mut kept = 0;
        for partition in revived.partitions().await.unwrap() {
            let extent = revived.extent(partition).await.unwrap();
            kept += extent.high.number() - extent.low.number();
        }
        let least =
            acknowledged.iter().rfind(|(synced, _)| *synced <= length).map_or(0, |(_, records)| *records);
        assert!(kept >= least, "{length} bytes: {kept} of {least} acknowledged records are left");
        let whole = kept == 0 || acknowledged.iter().any(|(_, records)| *records == kept);
        assert!(whole, "{length} bytes: {kept} records are not whole appends");
        revived.close().await;
    }
}
