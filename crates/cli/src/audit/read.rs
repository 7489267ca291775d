//! Counting the records of the log: all partitions at once, each record by a glance.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use dashi_domain::fold::is_command;
use dashi_domain::glance::{HOUR_MS, HourKey};
use dashi_domain::position::{Offset, Partition};
use dashi_domain::tail::Reached;
use dashi_event_log::{EventLog, Extent, LogError, ReadLimit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::progress::{ProgressDisplay, State, Unit};

/// Records per read.
const BATCH: ReadLimit =
    ReadLimit { records_max: 4_000, bytes_max: 8 * 1024 * 1024, wait: Duration::from_secs(5) };

/// Partitions that are read at once.
const AT_ONCE: usize = 4;

/// How much earlier than an hour records may have been appended that say they were received in it: a batch's identifies
/// count as received one millisecond after another.
const EARLIER_MS: i64 = 10 * 60_000;

/// Attempts to read a partition whose oldest records retention removes meanwhile.
const ATTEMPTS: usize = 5;

/// The records of a partition in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionRead {
    pub partition: u32,
    /// The oldest offset; those before it were removed by retention.
    pub low: u64,
    /// When the oldest record that is left was appended, milliseconds since 1970; `None` if there is none.
    pub oldest_ms: Option<i64>,
    /// Records that are applied, by hour and source.
    pub passed: BTreeMap<HourKey, u64>,
    /// Records that are not yet.
    pub unread: BTreeMap<HourKey, u64>,
    /// Commands among both, which no collector accepted.
    pub commands: BTreeMap<HourKey, u64>,
    /// Offsets between records at which no record is any more.
    pub gaps: Vec<Range<u64>>,
}

/// Reads every partition.
///
/// # Errors
/// The log does not answer.
pub async fn all(
    log: &EventLog,
    reached: HashMap<Partition, Reached>,
    since_ms: Option<i64>,
    json: bool,
) -> anyhow::Result<Vec<PartitionRead>> {
    let reached = Arc::new(reached);
    let (done, seats) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(AT_ONCE)));
    let (mut tasks, mut total) = (JoinSet::new(), 0);
    for partition in log.partitions().await? {
        let extent = log.extent(partition).await?;
        let start = start(log, partition, extent, since_ms).await?;
        total += extent.high.number().saturating_sub(start.number());
        let reached = Arc::clone(&reached);
        let (log, done, seats) = (log.clone(), Arc::clone(&done), Arc::clone(&seats));
        tasks.spawn(async move {
            let _seat = seats.acquire_owned().await;
            let reached = reached.get(&partition);
            one(&log, partition, reached, extent.high, since_ms, &done)
                .await
                .with_context(|| format!("partition {partition} of the log cannot be read"))
        });
    }
    let display = ProgressDisplay::new(json);
    let mut read = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => read.push(ended??),
                None => break,
            },
            _ = tick.tick() => {
                let done = done.load(Ordering::Relaxed).min(total);
                display.show(State { part: "reading the log", done, total, unit: Unit::Of("records"), note: None });
            }
        }
    }
    display.finish();
    read.sort_unstable_by_key(|read| read.partition);
    Ok(read)
}

/// Where reading begins.
async fn start(
    log: &EventLog,
    partition: Partition,
    extent: Extent,
    since_ms: Option<i64>,
) -> Result<Offset, LogError> {
    match since_ms {
        None => Ok(extent.low),
        Some(since_ms) => Ok(log.offset_at(partition, since_ms - EARLIER_MS).await?.max(extent.low)),
    }
}

async fn one(
    log: &EventLog,
    partition: Partition,
    reached: Option<&Reached>,
    high: Offset,
    since_ms: Option<i64>,
    done: &AtomicU64,
) -> anyhow::Result<PartitionRead> {
    for _ in 0..ATTEMPTS {
        match attempt(log, partition, reached, high, since_ms, done).await {
            // Retention is faster: once more, from what is left.
            Err(LogError::Trimmed { .. }) => {}
            read => return Ok(read?),
        }
    }
    anyhow::bail!("retention removed records {ATTEMPTS} times while they were read; try again")
}

async fn attempt(
    log: &EventLog,
    partition: Partition,
    reached: Option<&Reached>,
    high: Offset,
    since_ms: Option<i64>,
    done: &AtomicU64,
) -> Result<PartitionRead, LogError> {
    let extent = log.extent(partition).await?;
    let start = start(log, partition, extent, since_ms).await?;
    let mut read =
        PartitionRead { partition: partition.number(), low: extent.low.number(), ..PartitionRead::default() };
    let mut counting = Counting::default();
    let mut reader = log.reader(partition, start).await?;
    let (mut next, mut gaps) = (start, Vec::new());
    while next < high {
        let records = reader.next(BATCH).await?;
        if records.is_empty() && reader.passed() <= next {
            break;
        }
        done.fetch_add(reader.passed().number().saturating_sub(next.number()), Ordering::Relaxed);
        for record in records.iter().filter(|record| record.offset < high) {
            if record.offset > next {
                gaps.push(next..record.offset);
            }
            next = record.offset.next();
            read.oldest_ms.get_or_insert(record.appended_at_ms);
            let key = HourKey::of(record);
            if since_ms.is_none_or(|since_ms| key.hour_ms >= since_ms) {
                let is_passed = reached.is_some_and(|it| it.has_applied(record.offset, &record.value));
                counting.add(&mut read, key, is_passed);
                if is_command(&record.value) {
                    *read.commands.entry(key).or_default() += 1;
                }
            }
        }
        let passed = reader.passed().min(high);
        if passed > next {
            gaps.push(next..passed);
            next = passed;
        }
    }
    if next < high {
        gaps.push(next..high);
    }
    counting.flush(&mut read);
    let missing = log.missing(partition, gaps).await?;
    read.gaps = missing.iter().map(|gap| gap.start.number()..gap.end.number()).collect();
    Ok(read)
}

/// Counts runs of records of one hour and source, as most are, without looking anything up.
#[derive(Default)]
struct Counting {
    run: Option<(HourKey, bool)>,
    length: u64,
}

impl Counting {
    fn add(&mut self, read: &mut PartitionRead, key: HourKey, is_passed: bool) {
        if self.run != Some((key, is_passed)) {
            self.flush(read);
            self.run = Some((key, is_passed));
        }
        self.length += 1;
    }

    fn flush(&mut self, read: &mut PartitionRead) {
        if let Some((key, is_passed)) = self.run.take() {
            let counts = if is_passed { &mut read.passed } else { &mut read.unread };
            *counts.entry(key).or_default() += std::mem::take(&mut self.length);
        }
    }
}

impl PartitionRead {
    /// The last hour of which retention may have removed records; `None` if it has removed none. Milliseconds since 1970.
    pub fn trimmed_to_ms(&self) -> Option<i64> {
        (self.low > 0).then(|| self.oldest_ms.map_or(i64::MAX, |oldest| oldest - oldest % HOUR_MS))
    }
}
