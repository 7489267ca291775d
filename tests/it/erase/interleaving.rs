//! An erasure lies in every partition, and nothing orders the partitions among each other: however they take turns, and
//! however their records are cut into batches, the tables are the same.

use std::collections::HashSet;

use dashi_domain::erasure::{Coverage, Erasure, Subject};
use dashi_domain::fold::{FoldRules, fold, runs};
use dashi_domain::log_record::LogRecord;
use dashi_domain::partitioner::{key, partition_for};
use dashi_domain::position::{Checkpoint, LogId, Offset, Partition};
use dashi_domain::record::Record;
use dashi_domain::umami::Release;
use dashi_store::{Claim, CommitError, PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store};
use integration_tests::setup::WEBSITE;
use integration_tests::{Database, TestDatabase, TestDirectory};
use serde_json::json;
use uuid::Uuid;

const PARTITIONS: u32 = 3;

/// When the erasure was commanded.
const ERASED_MS: i64 = 1_795_000_100_000;

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }
}

fn session(number: u64) -> Uuid {
    Uuid::from_u128(0x5000_0000_0000_4000_8000_0000_0000_0000 + u128::from(number))
}

/// A record of a few people, sessions, devices and keys, so that they meet.
fn record(random: &mut Random, number: u64, received_at_ms: i64) -> (Uuid, Vec<u8>) {
    let of = session(random.below(6));
    let person = ["ada", "bob", ""][random.below(3) as usize];
    // The same device, though another session, as after a change of the formula of sessions.
    let device = session(100 + random.below(3));
    let kind = ["event", "identify", "identify", "performance"][random.below(4) as usize];
    let mut payload = json!({ "website": WEBSITE, "url": format!("/{number}") });
    if !person.is_empty() {
        payload["id"] = json!(person);
    }
    if kind == "identify" {
        payload["data"] =
            json!({ "k": random.below(3), (["l", "m"][random.below(2) as usize]): random.below(2) });
    } else if random.below(3) == 0 {
        payload["name"] = json!("buy");
        payload["data"] = json!({ "revenue": 5, "currency": "EUR" });
    }
    let value = json!({
        "v": 1, "id": Uuid::from_u128(u128::from(number) + 1), "at": received_at_ms, "session": of,
        "visit": Uuid::from_u128(1), "device": device, "type": kind, "payload": payload,
    });
    // Now and then one that is set aside.
    let value = if random.below(15) == 0 {
        value.to_string().replace("\"visit\":\"", "\"visit\":\"x")
    } else {
        value.to_string()
    };
    (of, value.into_bytes())
}

/// The records of each partition: before its copy of the erasure, the copy, and behind it, also of events that were
/// received before the erasure.
fn partitions(random: &mut Random, subject: Subject) -> Vec<Vec<Record>> {
    let erasure = Erasure {
        erasure_id: Uuid::from_u128(0xe),
        erased_at_ms: ERASED_MS,
        website_id: WEBSITE.parse().unwrap(),
        subject,
        partitions: PARTITIONS,
    };
    // Sessions of devices that the records of their partition do not name.
    let copies = erasure.copies(&[session(100), session(2)], &[]);
    let mut partitions: Vec<Vec<Record>> = vec![Vec::new(); PARTITIONS as usize];
    let mut append = |of: Uuid, value: Vec<u8>| {
        let partition = partition_for(key(of).as_bytes(), PARTITIONS);
        let records = &mut partitions[partition.number() as usize];
        let offset = Offset::new(records.len() as u64);
        records.push(Record { partition, offset, appended_at_ms: 1, value });
    };
    for number in 0..40 {
        // In no order: devices and collectors differ.
        let at = ERASED_MS - 1_000 + random.below(1_000) as i64;
        let (of, value) = record(random, number, at);
        append(of, value);
    }
    for copy in &copies {
        append(copy.key, copy.encode());
    }
    for number in 40..70 {
        let at = ERASED_MS - 20 + random.below(100) as i64;
        let (of, value) = record(random, number, at);
        append(of, value);
        if number == 50 {
            // The copies once more, as after an append whose acknowledgement did not come.
            for copy in &copies {
                append(copy.key, copy.encode());
            }
        }
    }
    partitions
}

fn rules() -> FoldRules {
    FoldRules {
        zone: jiff::tz::TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    }
}

fn log_id() -> LogId {
    LogId::new("a log with an erasure")
}

/// A partition on its way.
struct Projecting {
    claim: Claim,
    at: Checkpoint,
    records: Vec<Record>,
}

impl Projecting {
    async fn all(store: &Store, partitions: &[Vec<Record>]) -> Vec<Self> {
        let mut all = Vec::new();
        for (number, records) in partitions.iter().enumerate() {
            let claim = store.claim(&log_id(), Partition::new(number as u32), "test").await.unwrap();
            all.push(Self { at: claim.resume_from, claim, records: records.clone() });
        }
        all
    }

    fn is_done(&self) -> bool {
        self.at.offset().number() as usize >= self.records.len()
    }

    /// Applies so many records as the projector does: an erasure alone, with or without its transactions ahead.
    async fn step(&mut self, store: &Store, count: usize, ahead: bool) {
        let start = self.at.offset().number() as usize;
        let batch = &self.records[start..self.records.len().min(start + count)];
        for run in runs(batch) {
            let records = &batch[run];
            let Some(last) = records.last() else { continue };
            let to = Checkpoint::after(last.offset);
            let mut applied = HashSet::new();
            loop {
                let changes = fold(records, &applied, &rules());
                if let Some(copy) = changes.erasure.as_ref().filter(|_| ahead) {
                    let mut after = Some(Uuid::nil());
                    while let Some(from) = after {
                        after = store.erase_some(&self.claim, self.at, copy, from).await.unwrap();
                    }
                }
                match store.commit(&self.claim, self.at, to, &changes).await {
                    Ok(_) => break,
                    Err(CommitError::Duplicates(ids)) => applied.extend(ids),
                    // Two transactions may wait for each other; one of them is tried again.
                    Err(CommitError::NotWritten { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            self.at = to;
        }
    }
}

async fn sqlite(directory: &TestDirectory, name: &str) -> Store {
    let path = directory.path().join(name);
    let store = Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await.unwrap());
    store.migrate().await.unwrap();
    store
}

async fn one_after_another(store: &Store, partitions: &[Vec<Record>]) {
    for mut partition in Projecting::all(store, partitions).await {
        while !partition.is_done() {
            partition.step(store, 1_000, false).await;
        }
    }
}

fn subjects() -> [Subject; 3] {
    [Subject::Person("ada".to_owned()), Subject::Session(session(1)), Subject::Website]
}

#[tokio::test]
async fn any_interleaving_of_partitions_and_batches_gives_the_same_tables() {
    let directory = TestDirectory::create("erase");
    for case in 0..12 {
        let subject = subjects()[case % 3].clone();
        let mut random = Random(case as u64);
        let partitions = partitions(&mut random, subject.clone());
        let expected = sqlite(&directory, &format!("expected-{case}.db")).await;
        one_after_another(&expected, &partitions).await;
        let store = sqlite(&directory, &format!("interleaved-{case}.db")).await;
        let mut all = Projecting::all(&store, &partitions).await;
        while !all.iter().all(Projecting::is_done) {
            let partition = &mut all[random.below(u64::from(PARTITIONS)) as usize];
            if !partition.is_done() {
                let (count, ahead) = (1 + random.below(7) as usize, random.below(2) == 0);
                partition.step(&store, count, ahead).await;
            }
        }
        let compared = dashi_store::compare(&expected, &store).await.unwrap();
        assert!(compared.equal, "case {case}, {subject:?}: {compared:?}");
        let (overwritten, covered) = overwritten(&partitions);
        let path = directory.path().join(format!("expected-{case}.db"));
        assert_gone(&format!("sqlite:{}", path.display()), &covered).await;
        // A replay of a log whose covered records are overwritten.
        let again = sqlite(&directory, &format!("again-{case}.db")).await;
        one_after_another(&again, &overwritten).await;
        let compared = dashi_store::compare(&expected, &again).await.unwrap();
        assert!(compared.equal, "case {case}, {subject:?}, overwritten: {compared:?}");
    }
}

/// The log with tombstones in the place of the covered records, and the ids of these.
fn overwritten(partitions: &[Vec<Record>]) -> (Vec<Vec<Record>>, Vec<Uuid>) {
    let mut ids = Vec::new();
    let partitions = partitions.iter().map(|records| {
        let copy = records.iter().find_map(|record| match LogRecord::decode(&record.value) {
            Ok(LogRecord::Erasure(copy)) => Some((copy, record.offset)),
            _ => None,
        });
        let (copy, at) = copy.expect("every partition has one");
        let mut coverage = Coverage::of(&copy, at);
        records.iter().for_each(|record| coverage.learn(record.offset, &record.value));
        let tombstone = |record: &Record| {
            if !coverage.covers(record.offset, &record.value) {
                return record.clone();
            }
            ids.extend(LogRecord::decode(&record.value).ok().map(|record| record.id()));
            Record {
                value: coverage.tombstone(&record.value, record.appended_at_ms, false),
                ..record.clone()
            }
        };
        records.iter().map(tombstone).collect()
    });
    (partitions.collect(), ids)
}

/// Asserts that the covered events are not in the tables, that later ones are, and that the rows of people fit.
async fn assert_gone(url: &str, covered: &[Uuid]) {
    let mut database = Database::open(url).await;
    assert!(!covered.is_empty());
    let ids: Vec<String> = covered.iter().map(|id| format!("'{id}'")).collect();
    let ids = ids.join(",");
    for (table, id) in
        [("website_event", "event_id"), ("@identify", "event_id"), ("@profile_write", "event_id")]
    {
        let left = format!("SELECT count(*) FROM {table} WHERE {id} IN ({ids})");
        assert_eq!(database.count(&left).await, 0, "{table}");
    }
    let late = "SELECT count(*) FROM website_event WHERE CAST(substr(url_path, 2) AS INTEGER) >= 40";
    assert!(database.count(late).await > 0, "later events stay");
    assert_eq!(database.count("SELECT count(*) FROM @erasure").await, 1);
    for wrong in [
        "SELECT count(*) FROM @profile_trait t WHERE NOT EXISTS (SELECT 1 FROM @profile_write w
            WHERE w.website_id = t.website_id AND w.distinct_id = t.distinct_id AND w.key = t.key)",
        "SELECT count(*) FROM @profile p WHERE NOT EXISTS (SELECT 1 FROM @profile_link l
            WHERE l.website_id = p.website_id AND l.distinct_id = p.distinct_id)",
        "SELECT count(*) FROM event_data d LEFT JOIN website_event e ON e.event_id = d.website_event_id
            WHERE e.event_id IS NULL",
        "SELECT count(*) FROM website_event e LEFT JOIN session s USING (session_id) WHERE s.session_id IS NULL",
    ] {
        assert_eq!(database.count(wrong).await, 0, "{wrong}");
    }
}

/// All partitions at once, as live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_erase_at_once_on_postgres_give_the_same_tables() {
    let directory = TestDirectory::create("erase");
    for case in 0..6 {
        let subject = subjects()[case % 3].clone();
        let partitions = partitions(&mut Random(1_000 + case as u64), subject.clone());
        let expected = sqlite(&directory, &format!("expected-{case}.db")).await;
        one_after_another(&expected, &partitions).await;
        let database = TestDatabase::create().await;
        let settings = PostgresSettings {
            url: database.url().to_owned(),
            connections_max: 4,
            statement_timeout: std::time::Duration::from_secs(30),
        };
        let store = Store::Postgres(PostgresStore::open(&settings).unwrap());
        store.migrate().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for mut partition in Projecting::all(&store, &partitions).await {
            let (store, mut random) = (store.clone(), Random(u64::from(partition.claim.partition.number())));
            tasks.spawn(async move {
                while !partition.is_done() {
                    let count = 1 + random.below(5) as usize;
                    partition.step(&store, count, true).await;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        let compared = dashi_store::compare(&expected, &store).await.unwrap();
        assert!(compared.equal, "case {case}, {subject:?}: {compared:?}");
        store.close().await;
    }
}
