//! The ends of the records: what retention removes and keeps, and the answer to a reader outside the extent.

use std::time::{Duration, Instant};

use dashi_domain::position::{Checkpoint, Offset, Partition};
use dashi_event_log::{Extent, LogError};
use integration_tests::eventually;
use uuid::Uuid;

use super::location::LogLocation;
use super::{
    P0, SOON, append, limit, new_record, new_records, offsets, read, read_log, read_partition, values,
    wall_clock_ms,
};

pub(super) async fn a_reader_below_retention_is_told_so(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("", 100)).await;
    location.remove_before(&log, P0, Offset::new(40)).await;
    let extent = log.extent(P0).await.unwrap();
    assert_eq!(extent, Extent { low: Offset::new(40), high: Offset::new(100) });
    for from in [0, 39] {
        let mut reader = log.reader(P0, Offset::new(from)).await.unwrap();
        // Reported by every read, because it stays true.
        for _ in 0..3 {
            match reader.next(limit(10, SOON)).await {
                Err(LogError::Trimmed { partition, from: stands, low }) => {
                    assert_eq!((partition, stands, low), (P0, Offset::new(from), Offset::new(40)));
                }
                other => panic!("from {from}: {other:?}"),
            }
        }
        reader.seek(Offset::new(40));
        assert_eq!(values(&read(&mut reader, 60).await)[0], "40");
    }
    location.remove_before(&log, P0, Offset::new(100)).await;
    let mut reader = log.reader(P0, Offset::new(100)).await.unwrap();
    assert_eq!(reader.next(limit(1, Duration::from_millis(300))).await.unwrap(), []);
    append(&log, new_records("after", 1)).await;
    let record = &reader.next(limit(1, SOON)).await.unwrap()[0];
    assert_eq!((record.offset, record.value.as_slice()), (Offset::new(100), b"after0".as_slice()));
}

/// A reader may hold records that retention removes; behind them, it must not wait for ever.
pub(super) async fn a_reader_that_retention_overtakes_is_told_so(location: LogLocation) {
    const COUNT: u64 = 48;
    let log = location.open(1).await;
    // More than a reader fetches ahead.
    for _ in 0..COUNT {
        append(&log, vec![new_record(Uuid::nil(), vec![b'x'; 1 << 20])]).await;
    }
    let mut readers = Vec::new();
    for records_max in [1, 2, 3, 4] {
        let mut reader = log.reader(P0, Offset::ZERO).await.unwrap();
        let first = reader.next(limit(1, SOON)).await.unwrap();
        assert_eq!(offsets(&first), [0]);
        readers.push((records_max, reader));
    }
    location.remove_before(&log, P0, Offset::new(COUNT)).await;
    for (records_max, mut reader) in readers {
        let (start, mut next) = (Instant::now(), 1);
        loop {
            assert!(start.elapsed() < SOON, "the reader waits in vain at {next}");
            match reader.next(limit(records_max, Duration::from_millis(200))).await {
                Ok(records) => {
                    for record in records {
                        assert_eq!(record.offset, Offset::new(next));
                        next += 1;
                    }
                    assert!(next < COUNT, "all records were fetched ahead: the test shows nothing");
                    // The pace of a projector that commits each batch.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(LogError::Trimmed { from, low, .. }) => {
                    assert_eq!((from, low), (Offset::new(next), Offset::new(COUNT)));
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

pub(super) async fn a_reader_beyond_the_end_is_told_so(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("", 10)).await;
    for from in [11, 5_000] {
        let mut reader = log.reader(P0, Offset::new(from)).await.unwrap();
        for _ in 0..2 {
            match reader.next(limit(10, SOON)).await {
                Err(LogError::Beyond { partition, from: stands, high }) => {
                    assert_eq!((partition, stands, high), (P0, Offset::new(from), Offset::new(10)));
                }
                other => panic!("from {from}: {other:?}"),
            }
        }
    }
}

pub(super) async fn trim_keeps_everything_while_no_position_is_saved(location: LogLocation) {
    let log = location.open(3).await;
    append(&log, new_records("", 100)).await;
    let before = read_log(&log).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    let mut member = log.membership("projectors").await.unwrap();
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    member.save(&[]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    assert_eq!(read_log(&log).await, before);
}

pub(super) async fn trim_keeps_what_any_projection_has_not_applied(location: LogLocation) {
    let log = location.open(2).await;
    let p1 = Partition::new(1);
    append(&log, new_records("", 9_000)).await;
    let high = [log.extent(P0).await.unwrap().high, log.extent(p1).await.unwrap().high];
    let low =
        async || [log.extent(P0).await.unwrap().low.number(), log.extent(p1).await.unwrap().low.number()];

    let mut live = log.membership("live").await.unwrap();
    live.save(&[(P0, Checkpoint::at(Offset::new(2_500)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 2_500);
    assert_eq!(low().await, [2_500, 0]);
    assert_eq!(read_partition(&log, P0).await[0].offset, Offset::new(2_500));

    live.save(&[(P0, Checkpoint::at(high[0])), (p1, Checkpoint::at(high[1]))]).await;
    live.leave().await;
    // Another projection has begun, and has applied nothing of partition 1 yet.
    let mut rebuild = log.membership("rebuild").await.unwrap();
    rebuild.save(&[(P0, Checkpoint::at(Offset::new(2_600)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 100);
    assert_eq!(low().await, [2_600, 0]);
    rebuild.save(&[(p1, Checkpoint::at(Offset::new(1)))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 1);
    assert_eq!(low().await, [2_600, 1]);
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);

    rebuild.save(&[(P0, Checkpoint::at(high[0])), (p1, Checkpoint::at(high[1]))]).await;
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 9_000 - 2_601);
    assert_eq!(low().await, high.map(Offset::number));
    // What follows gets the offsets that follow, also after reopening.
    log.close().await;
    let again = location.open(2).await;
    for (partition, offset) in append(&again, new_records("", 20)).await {
        assert!(offset >= high[partition.number() as usize], "{partition}/{offset}");
    }
}

pub(super) async fn trim_keeps_what_is_young(location: LogLocation) {
    let log = location.open(1).await;
    append(&log, new_records("old", 50)).await;
    let last_ms = read_partition(&log, P0).await[49].appended_at_ms;
    eventually(SOON, "the clock moves", async || wall_clock_ms() > last_ms + 1).await;
    append(&log, new_records("young", 50)).await;
    let mut member = log.membership("projectors").await.unwrap();
    member.save(&[(P0, Checkpoint::at(Offset::new(100)))]).await;
    assert_eq!(log.trim(last_ms - 10_000).await.unwrap(), 0);
    assert_eq!(log.trim(last_ms + 1).await.unwrap(), 50);
    assert_eq!(values(&read_partition(&log, P0).await)[0], "young0");
}
