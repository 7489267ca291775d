//! The promises of an event log, one suite for every backend.

mod appending;
mod growth;
mod identity;
mod location;
mod membership;
mod reading;
mod retention;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_event_log::{EventLog, Extent, NewRecord, ReadLimit, Reader};
use uuid::Uuid;

use self::appending::*;
use self::growth::*;
use self::identity::*;
use self::location::LogLocation;
use self::membership::*;
use self::reading::*;
use self::retention::*;

/// How long anything may take on a busy machine before it counts as never.
const SOON: Duration = Duration::from_secs(30);

/// Runs each function of the suite against a log at a new location of the given kind.
macro_rules! log_contract {
    ($location:path: $($promise:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($location()).await;
            }
        )+
    };
}

/// Calls `log_contract!` with every function that all backends share.
macro_rules! whole_contract {
    ($location:path) => {
        log_contract!($location:
            records_are_read_back_in_their_order_with_their_values,
            records_of_one_session_lie_in_one_partition_and_increase,
            the_partition_is_the_one_that_every_kafka_client_computes,
            a_reader_begins_exactly_where_it_is_told_and_sees_everything,
            a_reader_seeks_back_and_forward,
            a_read_keeps_to_its_limits,
            a_record_beyond_the_limit_is_returned_all_the_same,
            a_read_at_the_end_waits_and_is_empty,
            a_waiting_read_wakes_when_something_is_appended,
            the_extent_tells_where_records_lie,
            concurrent_appends_are_each_there_exactly_once,
            every_entry_has_a_result,
            a_reopened_log_is_the_same_log,
            the_partitions_of_an_existing_log_win_over_the_setting,
            two_processes_append_without_losing_or_doubling,
            a_sole_member_gets_every_partition,
            a_reader_below_retention_is_told_so,
            a_reader_that_retention_overtakes_is_told_so,
            a_reader_beyond_the_end_is_told_so,
            close_waits_for_outcomes_and_then_refuses,
            dropping_a_read_loses_nothing,
            a_record_of_nine_mebibytes_goes_through,
            a_probe_of_a_log_that_is_there_succeeds,
        );
    };
}

mod embedded {
    whole_contract!(super::LogLocation::embedded);
    log_contract!(super::LogLocation::embedded:
        a_second_member_is_refused_until_the_first_is_gone,
        trim_keeps_everything_while_no_position_is_saved,
        trim_keeps_what_any_projection_has_not_applied,
        trim_keeps_what_is_young,
        appends_that_wait_together_share_a_commit_and_none_is_answered_before_it,
        a_full_queue_refuses_and_loses_nothing_it_took,
        two_processes_may_make_the_log_at_once,
        a_log_grows_under_processes_that_append_and_project,
    );
}

mod on_kafka {
    whole_contract!(super::LogLocation::kafka);
    log_contract!(super::LogLocation::kafka:
        two_members_share_and_the_rest_falls_to_the_one_that_stays,
        a_topic_made_again_is_another_log,
        a_record_too_large_for_the_topic_is_refused_as_such,
        saved_positions_are_committed_offsets,
        records_of_sessions_that_move_wait_while_the_topic_grows,
    );
}

fn new_record(session_id: Uuid, value: impl Into<Vec<u8>>) -> NewRecord {
    NewRecord { session_id, value: value.into() }
}

/// New records with the values `prefix0`, `prefix1` and so on, each of a session of its own.
fn new_records(prefix: &str, count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| new_record(new_session(), format!("{prefix}{n}"))).collect()
}

/// A random session id; `Uuid::new_v4` would need another feature of its crate.
fn new_session() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, Uuid::now_v7().as_bytes())
}

const fn limit(records_max: usize, wait: Duration) -> ReadLimit {
    ReadLimit { records_max, bytes_max: 64 << 20, wait }
}

async fn append(log: &EventLog, records: Vec<NewRecord>) -> Vec<(Partition, Offset)> {
    log.append(records).await.into_iter().map(|result| result.unwrap()).collect()
}

/// Reads on until `count` records are there.
async fn read(reader: &mut Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let start = Instant::now();
    while records.len() < count {
        assert!(start.elapsed() < SOON, "read {} of {count} records", records.len());
        records.extend(reader.next(limit(1_000, Duration::from_millis(500))).await.unwrap());
    }
    assert_eq!(records.len(), count, "more was read than there is");
    records
}

async fn read_partition(log: &EventLog, partition: Partition) -> Vec<Record> {
    let Extent { low, high } = log.extent(partition).await.unwrap();
    let mut reader = log.reader(partition, low).await.unwrap();
    read(&mut reader, (high.number() - low.number()) as usize).await
}

/// Everything in the log, by place.
async fn read_log(log: &EventLog) -> BTreeMap<(Partition, Offset), Vec<u8>> {
    let mut found = BTreeMap::new();
    for partition in log.partitions().await.unwrap() {
        for record in read_partition(log, partition).await {
            assert_eq!(record.partition, partition);
            let twice = found.insert((partition, record.offset), record.value);
            assert_eq!(twice, None, "an offset is unique");
        }
    }
    found
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.value.clone()).unwrap()).collect()
}

fn offsets(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.offset.number()).collect()
}

const P0: Partition = Partition::new(0);

#[expect(clippy::disallowed_methods, reason = "the log stamps its records by this clock")]
fn wall_clock_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}
