//! Reading: where a reader begins, what it returns, and how long it waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dashi_domain::position::Offset;
use dashi_event_log::{Extent, ReadLimit};
use uuid::Uuid;

use super::location::LogLocation;
use super::{
    P0, SOON, append, limit, new_record, new_records, new_session, offsets, read, read_partition, values,
    wall_clock_ms,
};

pub(super) async fn records_are_read_back_in_their_order_with_their_values(location: LogLocation) {
    let log = location.open(1).await;
    let session = new_session();
    let sent: Vec<Vec<u8>> =
        vec![b"plain".to_vec(), Vec::new(), vec![0, 255, 10, 0], "é\u{1f600}".into(), vec![b'x'; 100_000]];
    let before_ms = wall_clock_ms();
    let places = append(&log, sent.iter().map(|value| new_record(session, value.clone())).collect()).await;
    assert_eq!(places, (0..5).map(|n| (P0, Offset::new(n))).collect::<Vec<_>>());
    let records = read_partition(&log, P0).await;
    assert_eq!(records.iter().map(|record| record.value.clone()).collect::<Vec<_>>(), sent);
    assert_eq!(offsets(&records), [0, 1, 2, 3, 4]);
    for record in records {
        assert!((before_ms..=wall_clock_ms()).contains(&record.appended_at_ms), "{}", record.appended_at_ms);
    }
}

pub(super) async fn a_reader_begins_exactly_where_it_is_told_and_sees_everything(location: LogLocation) {
    const BEFORE: usize = 4_000;
    const DURING: usize = 2_000;
    let log = location.open(1).await;
    let mut sent = BTreeMap::new();
    for (n, (_, offset)) in append(&log, new_records("", BEFORE)).await.into_iter().enumerate() {
        sent.insert(offset.number(), n.to_string());
    }
    let appender = tokio::spawn({
        let log = log.clone();
        async move {
            let mut sent = Vec::new();
            for n in (BEFORE..BEFORE + DURING).step_by(20) {
                let some = (n..n + 20).map(|n| new_record(new_session(), n.to_string())).collect();
                sent.extend(append(&log, some).await.into_iter().zip(n..));
            }
            sent
        }
    });
    let mut readings = Vec::new();
    for from in [0, 1, BEFORE / 2, BEFORE - 1, BEFORE] {
        let log = log.clone();
        readings.push(tokio::spawn(async move {
            let mut reader = log.reader(P0, Offset::new(from as u64)).await.unwrap();
            (from, read(&mut reader, BEFORE + DURING - from).await)
        }));
    }
    for ((_, offset), n) in appender.await.unwrap() {
        sent.insert(offset.number(), n.to_string());
    }
    for reading in readings {
        let (from, records) = reading.await.unwrap();
        let expected: Vec<u64> = (from as u64..(BEFORE + DURING) as u64).collect();
        assert_eq!(offsets(&records), expected, "from {from}");
        for (record, value) in records.iter().zip(values(&records)) {
            assert_eq!(value, sent[&record.offset.number()]);
        }
    }
}

pub(super) async fn a_reader_seeks_back_and_forward(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("", 3_000)).await;
    let mut reader = log.reader(P0, Offset::new(10)).await.unwrap();
    let first = reader.next(limit(5, SOON)).await.unwrap();
    assert_eq!(first[0].offset, Offset::new(10));
    // More than once, with records of the old place on their way.
    for to in [0, 2_990, 7, 7, 2_999, 1, 1_500] {
        reader.seek(Offset::new(to));
        let records = reader.next(limit(3, SOON)).await.unwrap();
        assert_eq!(records[0].offset, Offset::new(to));
        let follow: Vec<u64> = (to..).take(records.len()).collect();
        assert_eq!(offsets(&records), follow);
    }
}

pub(super) async fn a_read_keeps_to_its_limits(location: LogLocation) {
    const COUNT: usize = 100;
    let log = location.open(1).await;
    append(&log, (0..COUNT).map(|_| new_record(new_session(), vec![b'x'; 1_000])).collect()).await;
    for (records_max, bytes_max, most) in
        [(7, 1 << 20, 7), (1, 1 << 20, 1), (1_000, 2_500, 3), (1_000, 2_000, 2), (1_000, 1, 1)]
    {
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        let (mut seen, mut fullest) = (0, 0);
        let start = Instant::now();
        while seen < COUNT {
            assert!(start.elapsed() < SOON, "only {seen} records came");
            let limit = ReadLimit { records_max, bytes_max, wait: Duration::from_millis(500) };
            let records = reader.next(limit).await.unwrap();
            assert!(records.len() <= most, "{} records for {limit:?}", records.len());
            fullest = fullest.max(records.len());
            for record in records {
                assert_eq!(record.offset, Offset::new(seen as u64));
                seen += 1;
            }
        }
        assert_eq!(fullest, most, "a limit is used, too");
    }
}

pub(super) async fn a_record_beyond_the_limit_is_returned_all_the_same(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, vec![new_record(Uuid::nil(), vec![1; 50_000]), new_record(Uuid::nil(), "next")]).await;
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let limit = ReadLimit { records_max: 10, bytes_max: 100, wait: SOON };
    let first = reader.next(limit).await.unwrap();
    assert_eq!((first.len(), first[0].value.len()), (1, 50_000));
    assert_eq!(values(&reader.next(limit).await.unwrap()), ["next"]);
}

pub(super) async fn a_read_at_the_end_waits_and_is_empty(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("", 3)).await;
    let mut reader = log.reader(P0, Offset::new(3)).await.unwrap();
    for wait in [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)] {
        let start = Instant::now();
        assert_eq!(reader.next(limit(10, wait)).await.unwrap(), []);
        let waited = start.elapsed();
        assert!(waited >= wait && waited < wait + Duration::from_secs(5), "waited {waited:?} of {wait:?}");
    }
}

pub(super) async fn a_waiting_read_wakes_when_something_is_appended(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("", 3)).await;
    let mut reader = log.reader(P0, Offset::new(3)).await.unwrap();
    assert_eq!(reader.next(limit(10, Duration::from_millis(300))).await.unwrap(), []);
    for n in 3..13 {
        let waiting = tokio::spawn(async move {
            let records = reader.next(limit(10, SOON)).await.unwrap();
            (reader, records, Instant::now())
        });
        let start = Instant::now();
        append(&log, vec![new_record(Uuid::nil(), "new")]).await;
        let (returned, records, at) = waiting.await.unwrap();
        assert_eq!(offsets(&records), [n]);
        assert!(at - start < Duration::from_secs(3), "woke after {:?}", at - start);
        reader = returned;
    }
}

pub(super) async fn the_extent_tells_where_records_lie(location: LogLocation) {
    let log = location.open(3).await;
    let none = Extent { low: Offset::ZERO, high: Offset::ZERO };
    for partition in log.partitions().await.unwrap() {
        assert_eq!(log.extent(partition).await.unwrap(), none);
    }
    let mut counts = BTreeMap::new();
    for (partition, _) in append(&log, new_records("", 100)).await {
        *counts.entry(partition).or_insert(0) += 1;
    }
    for (partition, count) in counts {
        let extent = log.extent(partition).await.unwrap();
        assert_eq!(extent, Extent { low: Offset::ZERO, high: Offset::new(count) });
    }
}

pub(super) async fn dropping_a_read_loses_nothing(location: LogLocation) {
    const COUNT: usize = 2_000;
    let log = location.open(1).await;
    let appender = tokio::spawn({
        let log = log.clone();
        async move {
            for n in (0..COUNT).step_by(10) {
                append(&log, (n..n + 10).map(|n| new_record(Uuid::nil(), n.to_string())).collect()).await;
            }
        }
    });
    let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
    let (mut seen, mut dropped) = (Vec::new(), 0);
    let start = Instant::now();
    while seen.len() < COUNT {
        assert!(start.elapsed() < SOON, "{} of {COUNT}, {dropped} reads dropped", seen.len());
        // From one look to several: every place at which the future may stand.
        let patience = Duration::from_micros(dropped % 40 * 25);
        match tokio::time::timeout(patience, reader.next(limit(7, SOON))).await {
            Ok(records) => seen.extend(values(&records.unwrap())),
            Err(_) => dropped += 1,
        }
    }
    assert!(dropped > 0, "no read was dropped: the test shows nothing");
    assert_eq!(seen, (0..COUNT).map(|n| n.to_string()).collect::<Vec<_>>());
    appender.await.unwrap();
}
