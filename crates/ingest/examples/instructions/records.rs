//! The loads on records of the log: the fold, and encoding and decoding.

use std::collections::HashSet;

use dashi_domain::calendar::SaltRotation;
use dashi_domain::fold::{FoldRules, fold};
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use dashi_domain::location::Location;
use dashi_domain::log_record::LogRecord;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::{Event, Record};
use dashi_domain::submission::{SchemaRules, Submission};
use dashi_domain::umami::Release;
use jiff::tz::TimeZone;
use uuid::{Builder, Uuid};

use crate::{Outcome, WEBSITE, bodies};

const RECORDS: usize = 10_000;

/// As many as a projector folds at once by default (`projector.batch_records_max`).
const BATCH: usize = 5_000;

const VISITORS: usize = 1_000;

/// 2026-05-01T12:00:00.123Z.
const RECEIVED_MS: u64 = 1_777_636_800_123;

/// Records of one partition as a collector writes them, ten a second.
fn records() -> Outcome<Vec<Record>> {
    let ids = IdRules {
        secret: Secret::from_text("secret"),
        rotation: SaltRotation::Month,
        zone: TimeZone::UTC,
        identified: IdentifiedSessions::Shared,
    };
    let location = Location {
        country: Some("GB".to_owned()),
        region: Some("GB-ENG".to_owned()),
        city: Some("London".to_owned()),
    };
    let record = |n: usize| -> Outcome<Record> {
        let bodies::Event { address, device, body } = bodies::event(n, VISITORS);
        let received_ms = RECEIVED_MS + n as u64 * 100;
        let received_at_ms = received_ms as i64;
        let visitor =
            Visitor { source: WEBSITE, address: &address, user_agent: device.user_agent, distinct_id: None };
        let session_id = ids.session_id(&visitor, received_at_ms);
        let event = Event {
            event_id: event_id(n, received_ms),
            received_at_ms,
            session_id,
            visit_id: ids.visit_id(session_id, received_at_ms),
            device: None,
            user_agent: Some(device.user_agent.into()),
            location: location.clone(),
            submission: Submission::parse(body.as_bytes(), SchemaRules::RECORDED)
                .map_err(|error| format!("the body of event {n}: {}", error.to_json()))?,
        };
        let value = event.encode();
        let offset = Offset::new(n as u64);
        Ok(Record { partition: Partition::new(0), offset, appended_at_ms: received_at_ms, value })
    };
    (0..RECORDS).map(record).collect()
}

/// A version 7 UUID: ordered by time, as collectors make them.
fn event_id(n: usize, at_ms: u64) -> Uuid {
    let mixed = (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
    let mut random = [0; 10];
    random.copy_from_slice(&mixed[..10]);
    Builder::from_unix_timestamp_millis(at_ms, &random).into_uuid()
}

/// Folds 10,000 records; returns their number.
pub fn run_fold() -> Outcome<usize> {
    let rules = FoldRules {
        zone: TimeZone::UTC,
        remove_trailing_slash: false,
        release: Release::V3_1,
        names_sessions: false,
        null_deletes: false,
    };
    let applied = counted_fold(&records()?, &rules);
    if applied != RECORDS as u64 {
        return Err(format!("{applied} of {RECORDS} records were applied").into());
    }
    Ok(RECORDS)
}

/// Returns the number of records that were applied.
#[inline(never)]
fn counted_fold(records: &[Record], rules: &FoldRules) -> u64 {
    let none = HashSet::new();
    records.chunks(BATCH).map(|batch| fold(batch, &none, rules).outcomes.applied).sum()
}

/// Decodes 10,000 records and encodes them again; returns their number.
pub fn run_encode_decode() -> Outcome<usize> {
    let records = records()?;
    let again = counted_encode_decode(&records)?;
    match records.iter().zip(&again).position(|(record, again)| record.value != *again) {
        None if again.len() == RECORDS => Ok(RECORDS),
        position => Err(format!("record {position:?} of {} is not what it was", again.len()).into()),
    }
}

#[inline(never)]
fn counted_encode_decode(records: &[Record]) -> Outcome<Vec<Vec<u8>>> {
    let encoded = |record: &Record| match LogRecord::decode(&record.value)? {
        LogRecord::Event(event) => Ok(event.encode()),
        _ => Err(format!("the record at {} is not an event", record.offset).into()),
    };
    records.iter().map(encoded).collect()
}
