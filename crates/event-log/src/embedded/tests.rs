//! Segments under crashes and damage, older files, and what the catalogue has in the place of records.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dashi_domain::layout::Layout;
use dashi_domain::position::{Offset, Partition};
use uuid::Uuid;

use super::appender::Appender;
use super::cursor::Cursor;
use super::frame::FrameBuilder;
use super::segments::Segments;
use super::{EmbeddedLog, EmbeddedSettings, catalogue, segments_directory};
use crate::{NewRecord, ReadLimit};

const LOG: Uuid = Uuid::from_u128(1);
const LAYOUT: Layout = Layout { version: 0, partitions: 2 };
const NOW: i64 = 1_700_000_000_000;

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        // In memory if that can be had: what a loss of power leaves is made by the tests themselves.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("dashi-segments-{}", Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn segment(&self, base: u64) -> PathBuf {
        self.0.join(format!("{base:020}.records"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(directory: &Path) -> Arc<Segments> {
    Arc::new(Segments::open(directory, LOG, (LAYOUT, vec![0, 0]), NOW).unwrap())
}

/// Appends so many records in turn to the partitions, as one frame.
fn append(appender: &mut Appender, count: u64) {
    let mut held = appender.hold(NOW).unwrap();
    let next = held.with(|state| state.next.clone());
    let mut frame = FrameBuilder::default();
    for partition in 0..2_u64 {
        for n in 0..(count + 1 - partition) / 2 {
            let offset = next[partition as usize] + n;
            let value = format!("{partition}/{offset}");
            frame.push(
                Partition::new(partition as u32),
                Offset::new(offset),
                NOW,
                Uuid::nil(),
                value.as_bytes(),
            );
        }
    }
    held.write(&mut frame, LAYOUT).unwrap();
}

/// The offsets of a partition that are there and whole; each has its own value.
fn offsets(segments: &Arc<Segments>, partition: u32) -> Vec<u64> {
    let mut cursor = Cursor::new(Arc::clone(segments), Partition::new(partition), Offset::ZERO);
    let mut offsets = Vec::new();
    loop {
        let found = cursor.read(3, usize::MAX).unwrap();
        if found.is_empty() {
            return offsets;
        }
        for record in found.into_iter().filter(|record| record.is_whole) {
            assert_eq!(record.value, format!("{partition}/{}", record.offset).into_bytes());
            offsets.push(record.offset.number());
        }
    }
}

fn next(segments: &Segments) -> Vec<u64> {
    segments.state().next.clone()
}

#[test]
fn a_file_that_is_cut_at_any_byte_has_whole_frames_and_takes_more() {
    let directory = Directory::new();
    let segments = open(&directory.0);
    let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
    // The end of the log when so many records were acknowledged.
    let (mut acknowledged, mut records) = (vec![(0, 0)], 0);
    for count in [1, 3, 1, 7, 2] {
        append(&mut appender, count);
        records += count;
        acknowledged.push((segments.state().end, records));
    }
    let end = segments.state().end;
    let bytes = fs::read(directory.segment(0)).unwrap();
    for length in 0..=end as usize {
        let crashed = Directory::new();
        let mut left = bytes[..length].to_vec();
        // The zeros ahead were durable before the records, or not.
        left.resize(if length % 2 == 0 { bytes.len() } else { length }, 0);
        fs::write(crashed.segment(0), left).unwrap();
        let segments = open(&crashed.0);
        let kept: u64 = next(&segments).iter().sum();
        let synced = acknowledged.iter().rfind(|(end, _)| *end <= length as u64).unwrap();
        assert_eq!(kept, synced.1, "{length} bytes");
        let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
        append(&mut appender, 4);
        for partition in 0..2 {
            assert_eq!(
                offsets(&segments, partition),
                (0..next(&segments)[partition as usize]).collect::<Vec<_>>()
            );
        }
        assert_eq!(next(&open(&crashed.0)), next(&segments), "{length} bytes, opened again");
    }
}

#[test]
fn a_frame_of_which_any_part_is_missing_is_not_there() {
    let directory = Directory::new();
    let segments = open(&directory.0);
    let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
    append(&mut appender, 3);
    let whole = segments.state().end as usize;
    append(&mut appender, 9);
    let end = segments.state().end as usize;
    let bytes = fs::read(directory.segment(0)).unwrap();
    // The disk wrote the parts of the frame in an order of its own.
    for from in whole..end {
        for to in [from + 1, from + 50, end] {
            let mut left = bytes.clone();
            left[from..to.min(end)].fill(0);
            if left == bytes {
                continue;
            }
            let crashed = Directory::new();
            fs::write(crashed.segment(0), left).unwrap();
            let segments = open(&crashed.0);
            assert_eq!(next(&segments), [2, 1], "without the bytes {from} to {to}");
            let rest = &fs::read(crashed.segment(0)).unwrap()[whole..];
            assert!(
                rest.iter().all(|byte| *byte == 0),
                "nothing of it is left to be taken for a frame later"
            );
        }
    }
}

#[test]
fn damage_costs_the_records_that_it_meets() {
    let directory = Directory::new();
    let segments = open(&directory.0);
    let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
    let mut ends = Vec::new();
    for _ in 0..5 {
        append(&mut appender, 2);
        ends.push(segments.state().end as usize);
    }
    let bytes = fs::read(directory.segment(0)).unwrap();
    for at in ends[0]..ends[3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(directory.segment(0), &damaged).unwrap();
        let frame = ends.iter().filter(|end| **end <= at).count() as u64;
        for partition in 0..2 {
            let found = offsets(&segments, partition);
            let without: Vec<u64> = (0..5).filter(|offset| *offset != frame).collect();
            let is_right = found == without || found.len() == 5 && at < ends[3];
            assert!(is_right, "byte {at}, partition {partition}: {found:?}");
        }
        let both = [offsets(&segments, 0), offsets(&segments, 1)];
        assert!(both.iter().any(|found| found.len() == 4), "byte {at}: {both:?}");
    }
    fs::write(directory.segment(0), &bytes).unwrap();
    assert_eq!(offsets(&segments, 0), [0, 1, 2, 3, 4]);
}

#[test]
fn appenders_of_two_processes_take_turns_and_a_third_reads() {
    let directory = Directory::new();
    let (first, second, third) = (open(&directory.0), open(&directory.0), open(&directory.0));
    let (mut one, mut other) = (Appender::new(first).unwrap(), Appender::new(second).unwrap());
    for _ in 0..5 {
        append(&mut one, 2);
        append(&mut other, 4);
        append(&mut other, 2);
    }
    assert_eq!(next(&third), [0, 0]);
    third.refresh().unwrap();
    assert_eq!(next(&third), [20, 20]);
    assert_eq!(offsets(&third, 1), (0..20).collect::<Vec<_>>());
    // One is killed while it writes: what it leaves is no frame.
    let end = third.state().end as usize;
    let mut bytes = fs::read(directory.segment(0)).unwrap();
    bytes[end..end + 3].copy_from_slice(b"frm");
    fs::write(directory.segment(0), bytes).unwrap();
    append(&mut other, 2);
    third.refresh().unwrap();
    assert_eq!(offsets(&third, 0), (0..21).collect::<Vec<_>>());
}

#[test]
fn segments_follow_each_other_and_go_when_nothing_in_them_is_left() {
    let directory = Directory::new();
    let (segments, reader) = (open(&directory.0), open(&directory.0));
    let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
    let all = |low: u64| [low, low];
    append(&mut appender, 4);
    appender.hold(NOW).unwrap().remove_before(&all(2), 1).unwrap();
    append(&mut appender, 4);
    // A day later a new one is begun.
    let mut held = appender.hold(NOW + 25 * 3_600_000).unwrap();
    let mut frame = FrameBuilder::default();
    frame.push(Partition::new(0), Offset::new(4), NOW + 5, Uuid::nil(), b"0/4");
    held.write(&mut frame, LAYOUT).unwrap();
    drop(held);
    assert_eq!(segments.state().segments.len(), 2);
    assert_eq!(offsets(&segments, 0), [2, 3, 4]);
    assert_eq!(offsets(&open(&directory.0), 0), [2, 3, 4]);
    let from = |at_ms| {
        Cursor::new(Arc::clone(&segments), Partition::new(0), Offset::ZERO).offset_at(at_ms).unwrap().number()
    };
    assert_eq!([from(NOW - 1), from(NOW), from(NOW + 1), from(NOW + 5), from(NOW + 6)], [2, 2, 4, 4, 5]);
    appender.hold(NOW).unwrap().remove_before(&[5, 3], 1).unwrap();
    assert_eq!(segments.state().segments.len(), 2, "partition 1 has a record in the first one");
    appender.hold(NOW).unwrap().remove_before(&[5, 4], 1).unwrap();
    assert_eq!(segments.state().segments.len(), 1);
    assert_eq!(next(&open(&directory.0)), [5, 4], "no offset is used again");
    reader.refresh().unwrap();
    assert_eq!(next(&reader), [5, 4]);
    append(&mut appender, 2);
    reader.refresh().unwrap();
    assert_eq!(next(&reader), [6, 5]);
}

#[test]
fn a_segment_that_was_ended_and_not_followed_is_followed() {
    let directory = Directory::new();
    let segments = open(&directory.0);
    let mut appender = Appender::new(Arc::clone(&segments)).unwrap();
    append(&mut appender, 4);
    appender.hold(NOW).unwrap().remove_before(&[1, 1], 1).unwrap();
    append(&mut appender, 2);
    let mut held = appender.hold(NOW).unwrap();
    held.raise(&[9, 9]).unwrap();
    drop(held);
    let bases: Vec<u64> = segments.state().segments.iter().map(|segment| segment.base).collect();
    let last = *bases.last().unwrap();
    for left in [0, 10, 64, 80] {
        let bytes = fs::read(directory.segment(last)).unwrap();
        fs::write(directory.segment(last), &bytes[..left]).unwrap();
        fs::remove_file(directory.0.join("tail")).unwrap();
        let again = open(&directory.0);
        assert_eq!(again.state().segments.last().unwrap().base, last, "{left} bytes");
        let mut appender = Appender::new(Arc::clone(&again)).unwrap();
        append(&mut appender, 2);
        assert_eq!(offsets(&again, 0).len() as u64, 4);
        fs::write(directory.segment(last), bytes).unwrap();
    }
}

#[test]
fn files_of_another_log_are_refused() {
    let directory = Directory::new();
    open(&directory.0);
    let other = Segments::open(&directory.0, Uuid::from_u128(2), (LAYOUT, vec![0, 0]), NOW);
    assert!(other.is_err_and(|error| error.to_string().contains("holds records of the log")));
}

async fn opened(path: &Path) -> EmbeddedLog {
    let settings = EmbeddedSettings { path: path.to_owned(), partitions: 2, queue_max: 100, batch_max: 100 };
    EmbeddedLog::open(settings).await.unwrap()
}

async fn read_all(log: &EmbeddedLog, partition: u32, from: u64) -> Vec<(u64, i64, Vec<u8>)> {
    let partition = Partition::new(partition);
    let high = log.extent(partition).await.unwrap().high;
    let mut reader = log.reader(partition, Offset::new(from));
    let mut records = Vec::new();
    let limit = ReadLimit { records_max: 2, bytes_max: 1 << 20, wait: Duration::from_secs(5) };
    while reader.passed() < high {
        records.extend(reader.next(limit).await.unwrap());
    }
    records.into_iter().map(|record| (record.offset.number(), record.appended_at_ms, record.value)).collect()
}

fn records(values: &[&str]) -> Vec<NewRecord> {
    let record =
        |value: &&str| NewRecord { session_id: Uuid::from_u128(7), value: value.as_bytes().to_vec() };
    values.iter().map(record).collect()
}

/// The tables of the formats 1 and 2, as their programs made them.
const OLD: &str = "
    CREATE TABLE meta (only INTEGER PRIMARY KEY CHECK (only = 1), format INTEGER NOT NULL, log_id TEXT NOT NULL,
        probed_at_ms INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE partition (partition INTEGER PRIMARY KEY, low_offset INTEGER NOT NULL);
    CREATE TABLE record (id INTEGER PRIMARY KEY, appended_at_ms INTEGER NOT NULL, session_id TEXT NOT NULL, value BLOB NOT NULL);
    CREATE TABLE layout (version INTEGER PRIMARY KEY, partitions INTEGER NOT NULL, begun_at_ms INTEGER NOT NULL);
    CREATE TABLE position (projection TEXT NOT NULL, partition INTEGER NOT NULL, checkpoint INTEGER NOT NULL,
        PRIMARY KEY (projection, partition));
    INSERT INTO meta VALUES (1, 2, 'embedded:00000000-0000-0000-0000-000000000001', 0);
    INSERT INTO partition VALUES (0, 3), (1, 9);
    INSERT INTO layout VALUES (0, 1, 0), (1, 2, 5);
    INSERT INTO position VALUES ('live', 0, 4);
    INSERT INTO record VALUES (3, 100, '00000000-0000-0000-0000-000000000007', CAST('three' AS BLOB)),
        (4, 100, '00000000-0000-0000-0000-000000000007', CAST('four' AS BLOB)),
        (6, 200, '00000000-0000-0000-0000-000000000007', CAST('six' AS BLOB)),
        ((2 << 40) + 8, 50, '00000000-0000-0000-0000-000000000008', CAST('aside' AS BLOB));
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_an_older_file_are_moved_whole_and_once() {
    let directory = Directory::new();
    let path = directory.0.join("log.db");
    let mut old = catalogue::connect(&path).await.unwrap();
    sqlx::raw_sql(OLD).execute(&mut old).await.unwrap();
    // A process that died on the way left files of its own.
    Segments::open(&segments_directory(&path), LOG, (LAYOUT, vec![0, 0]), NOW).unwrap();
    let both = tokio::join!(opened(&path), opened(&path));
    for log in [both.0, both.1, opened(&path).await] {
        assert_eq!(log.id().as_str(), "embedded:00000000-0000-0000-0000-000000000001");
        let value = |text: &str| text.as_bytes().to_vec();
        let expected = [(3, 100, value("three")), (4, 100, value("four")), (6, 200, value("six"))];
        assert_eq!(read_all(&log, 0, 3).await, expected);
        let extent = log.extent(Partition::new(1)).await.unwrap();
        assert_eq!((extent.low.number(), extent.high.number()), (9, 9));
        assert_eq!(log.layouts().await.unwrap().last(), Some(&Layout { version: 1, partitions: 2 }));
        let aside = log.aside().await.unwrap();
        assert_eq!(
            (aside.len(), aside[0].offset.number(), aside[0].record.value.as_slice()),
            (1, 8, &b"aside"[..])
        );
    }
    let refused = sqlx::query("INSERT INTO record VALUES (7, 1, '', '')").execute(&mut old).await;
    assert!(refused.is_err(), "an older program that still runs writes nothing that is lost");
    let log = opened(&path).await;
    let placed = log.append_to(Partition::new(0), records(&["seven"])).await.remove(0).unwrap();
    assert_eq!(placed.1, Offset::new(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_record_is_another_one_for_all_readers_and_its_bytes_are_gone() {
    let directory = Directory::new();
    let path = directory.0.join("log.db");
    let (log, other) = (opened(&path).await, opened(&path).await);
    let p0 = Partition::new(0);
    for appended in log.append_to(p0, records(&["one", "a-secret", "three", "b-secret"])).await {
        appended.unwrap();
    }
    let values = [
        (Offset::new(1), b"x".to_vec()),
        (Offset::new(3), b"longer than it was".to_vec()),
        (Offset::new(9), Vec::new()),
    ];
    for _ in 0..2 {
        assert_eq!(log.overwrite(p0, &values).await.unwrap(), 2);
        for log in [&log, &other, &opened(&path).await] {
            let found: Vec<Vec<u8>> =
                read_all(log, 0, 0).await.into_iter().map(|(_, _, value)| value).collect();
            assert_eq!(found, [&b"one"[..], b"x", b"three", b"longer than it was"]);
        }
    }
    let bytes = fs::read(segments_directory(&path).join(format!("{:020}.records", 0))).unwrap();
    assert!(!bytes.windows(6).any(|bytes| bytes == b"secret"));
    log.raise_low(p0, Offset::new(2)).await.unwrap();
    assert_eq!(read_all(&other, 0, 2).await.len(), 2);
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM overwritten").fetch_one(&other.0.readers).await.unwrap();
    assert_eq!(left, 1, "what retention removed needs no value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_passes_over_what_is_set_aside_and_counts_it() {
    let directory = Directory::new();
    let path = directory.0.join("spool.db");
    let settings = EmbeddedSettings { path, partitions: 1, queue_max: 100, batch_max: 100 };
    let queue = EmbeddedLog::open(settings).await.unwrap();
    for appended in queue.append(records(&["a", "bb", "ccc", "dddd"])).await {
        appended.unwrap();
    }
    let front = async || {
        let front = queue.front(Offset::ZERO, 10, 1 << 20).await.unwrap();
        front.into_iter().map(|queued| queued.offset.number()).collect::<Vec<_>>()
    };
    let content = async || {
        let content = queue.content().await.unwrap();
        (content.records, content.bytes, content.aside)
    };
    assert_eq!((front().await, content().await), (vec![0, 1, 2, 3], (4, 10, 0)));
    queue.set_aside(Offset::new(1)).await.unwrap();
    assert_eq!((front().await, content().await), (vec![0, 2, 3], (3, 10, 1)));
    queue.remove_front(Offset::new(2)).await.unwrap();
    assert_eq!((front().await, content().await), (vec![2, 3], (2, 9, 1)));
    queue.set_aside(Offset::new(2)).await.unwrap();
    queue.remove_aside(Offset::new(1)).await.unwrap();
    assert_eq!((front().await, content().await), (vec![3], (1, 7, 1)));
    queue.remove_aside(Offset::new(2)).await.unwrap();
    assert_eq!((front().await, content().await), (vec![3], (1, 4, 0)));
    queue.remove_front(Offset::new(4)).await.unwrap();
    assert_eq!((front().await, content().await, queue.oldest_ms().await.unwrap()), (vec![], (0, 0, 0), None));
}
