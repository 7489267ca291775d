//! Visitors who send numbered identifies, each the next one when the last one was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use dashi_domain::layout::Layout;
use dashi_domain::log_record::LogRecord;
use dashi_domain::partitioner::key;
use dashi_event_log::EventLog;
use integration_tests::log::read_log;
use integration_tests::setup::AGENT;
use integration_tests::{Database, eventually, http};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::SOON;

const VISITORS: usize = 12;

/// Between two requests of a visitor.
const PACE: Duration = Duration::from_millis(80);

/// The visitors of a website; each goes to the collectors in turn.
pub struct Visitors {
    tasks: Vec<JoinHandle<(String, u64)>>,
    counts: Vec<Arc<AtomicU64>>,
    refused: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Visitors {
    /// They begin at once.
    pub fn start(website: &str, collectors: &[String]) -> Self {
        let (refused, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let counts: Vec<Arc<AtomicU64>> = (0..VISITORS).map(|_| Arc::default()).collect();
        let tasks = counts
            .iter()
            .enumerate()
            .map(|(number, count)| {
                let visitor = Visitor {
                    number,
                    website: website.to_owned(),
                    collectors: collectors.to_owned(),
                    count: Arc::clone(count),
                    refused: Arc::clone(&refused),
                    stop: Arc::clone(&stop),
                };
                tokio::spawn(visitor.run())
            })
            .collect();
        Self { tasks, counts, refused, stop }
    }

    /// Waits until each has had so many more acknowledged.
    pub async fn until_sent(&mut self, more: u64) {
        let wanted: Vec<u64> = self.counts.iter().map(|count| count.load(SeqCst) + more).collect();
        eventually(SOON, "all visitors have sent more", async || {
            let counts: Vec<u64> = self.counts.iter().map(|count| count.load(SeqCst)).collect();
            let has_all = counts.iter().zip(&wanted).all(|(count, wanted)| count >= wanted);
            if has_all { Ok(()) } else { Err(format!("{counts:?} of {wanted:?}")) }
        })
        .await;
    }

    /// Requests that were not answered 200; they were sent again.
    pub fn refused(&self) -> u64 {
        self.refused.load(SeqCst)
    }

    /// Lets them finish; returns the last number that was acknowledged, by session.
    pub async fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, SeqCst);
        let mut sent = BTreeMap::new();
        for task in self.tasks {
            let (session, count) = task.await.expect("a visitor does not panic");
            sent.insert(session, count);
        }
        assert_eq!(sent.len(), VISITORS, "each has a session");
        sent
    }
}

struct Visitor {
    number: usize,
    website: String,
    collectors: Vec<String>,
    count: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Visitor {
    async fn run(self) -> (String, u64) {
        let (mut session, mut sent, mut tries, mut is_open) = (String::new(), 0, 0, true);
        // The last one is sent until it is acknowledged, so that what is in the log is known.
        while is_open || !self.stop.load(SeqCst) {
            is_open = true;
            let number = sent + 1;
            let body = json!({ "type": "identify", "payload": {
                "website": self.website, "hostname": "example.com", "id": format!("visitor-{}", self.number),
                "messageId": format!("{}-{number}", self.number), "data": { "n": number.to_string() } } });
            // Each request to the next collector: what one acknowledged is before what another one takes.
            let collector = &self.collectors[(self.number + tries) % self.collectors.len()];
            tries += 1;
            let url = format!("http://{collector}/api/send");
            match http::post_json(&url, &body, &[("User-Agent", AGENT)]).await {
                Ok(answer) if answer.status == 200 => {
                    session = answer.json()["sessionId"].as_str().expect("a session").to_owned();
                    sent = number;
                    self.count.store(sent, SeqCst);
                    is_open = false;
                    tokio::time::sleep(PACE).await;
                }
                // It may be killed, or hold the event back for too long.
                _ => {
                    self.refused.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        (session, sent)
    }
}

/// How many barriers the log has.
pub async fn barriers(log: &EventLog) -> usize {
    let records = read_log(log).await;
    records.iter().filter(|record| dashi_domain::layout::Barrier::is(&record.value)).count()
}

/// Every record lies where the layout of its time says, and the numbers of a session grow from layout to layout and within
/// each: in the log as in the order in which barriers let them be applied.
pub async fn assert_in_order(log: &EventLog, partitions: &[u32], sent: &BTreeMap<String, u64>) {
    let mut versions: Vec<u32> = vec![0];
    let mut numbers: BTreeMap<(String, usize), Vec<u64>> = BTreeMap::new();
    let (mut partition, mut place) = (None, 0);
    for record in read_log(log).await {
        if partition != Some(record.partition) {
            partition = Some(record.partition);
            place = 0;
        }
        match LogRecord::decode(&record.value).expect("a record") {
            LogRecord::Layout(barrier) => {
                let version = barrier.layouts.version;
                if !versions.contains(&version) {
                    versions.push(version);
                    versions.sort_unstable();
                }
                let passed = partitions.iter().position(|count| *count == barrier.layouts.to);
                place = place.max(passed.expect("a number that was commanded"));
            }
            LogRecord::Event(event) => {
                let layout = Layout { version: 0, partitions: partitions[place] };
                let key = key(event.session_id);
                assert_eq!(
                    layout.partition_of(key.as_bytes()),
                    record.partition,
                    "a record of the layout with {} partitions",
                    partitions[place]
                );
                let data =
                    serde_json::from_slice::<Value>(&record.value).expect("JSON")["payload"]["data"]["n"]
                        .clone();
                let number = data.as_str().and_then(|text| text.parse().ok()).expect("a number");
                numbers.entry((event.session_id.to_string(), place)).or_default().push(number);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(versions.len(), partitions.len(), "barriers of each growth");
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for ((session, place), numbers) in &numbers {
        for number in numbers {
            let before = last.entry(session).or_default();
            // A copy of a request whose answer was lost is a duplicate.
            assert!(
                *number <= *before + 1,
                "{session}: {number} after {before} with {} partitions",
                partitions[*place]
            );
            *before = number.max(before).to_owned();
        }
    }
    for (session, count) in sent {
        assert!(last.get(session.as_str()) >= Some(count), "{session}");
    }
}

/// The last number of each session in the tables.
pub async fn last_values(store: &str) -> BTreeMap<String, u64> {
    let sql = "SELECT CAST(session_id AS text), CAST(string_value AS bigint) FROM session_data WHERE data_key = 'n'";
    let rows = Database::open(store).await.pairs(sql).await;
    rows.into_iter().map(|(session, number)| (session, number as u64)).collect()
}
