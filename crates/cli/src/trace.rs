//! `dashi trace`: shows where an event is, and its outcome.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use dashi_config::Loaded;
use dashi_domain::calendar::iso_string;
use dashi_domain::glance::Glance;
use dashi_domain::ids::{message_name, named_event_id, request_name};
use dashi_domain::log_record::LogRecord;
use dashi_domain::parking::Parking;
use dashi_domain::partitioner::key;
use dashi_domain::position::{Checkpoint, Partition};
use dashi_domain::record::Record;
use dashi_domain::tail::Reached;
use dashi_event_log::{EventLog, Extent, ReadLimit};
use dashi_store::{AppliedEvent, NotedErasure, Store};
use serde::Serialize;
use uuid::Uuid;

use crate::args::TraceArgs;
use crate::exit::{Exit, Misuse};
use crate::layouts::known;
use crate::open;
use crate::output::print;
use crate::progress::{self, ProgressDisplay, Unit};
use crate::reached::reached_now;

/// Greatest time between an event's arrival and its record's append: a record is appended at once, or after a wait for
/// a broker.
const APPEND_MS_MAX: i64 = 60_000;

/// Almost every record is appended within this time, of which all partitions are searched first: a minute of a busy log
/// has hundreds of thousands of records.
const APPEND_MS_USUAL: i64 = 1_000;

/// Records per read.
const BATCH: ReadLimit =
    ReadLimit { records_max: 500, bytes_max: 4 * 1024 * 1024, wait: Duration::from_secs(2) };

/// Outcome of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Its rows are in the store.
    Applied,
    /// It is in the log, and no projector has reached it.
    NotYetApplied,
    /// It was set aside.
    DeadLetter,
    /// It was applied, and an erasure covers it.
    Erased,
    /// A projector has passed it, and the store has no row of it: its website was reset or its rows were deleted.
    RowsDeleted,
    /// Neither log nor store has it.
    NotFound,
}

/// A copy of the event in the log.
#[derive(Debug, Serialize)]
struct Copy {
    partition: u32,
    offset: u64,
    appended_at_ms: i64,
    /// Whether the projection has passed it.
    is_passed: bool,
    /// Records that the projection has to pass before it.
    records_before: u64,
}

/// A dead letter of the event.
#[derive(Debug, Serialize)]
struct DeadLetter {
    log: String,
    partition: u32,
    offset: u64,
    reason: String,
    set_aside_at_ms: i64,
    /// How often it was folded.
    tries: u32,
    /// When a command to try it again was given last.
    tried_at_ms: Option<i64>,
    discarded_at_ms: Option<i64>,
    /// Whether it waits behind an earlier record of its session.
    waits: bool,
}

/// The erasure that covers an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ErasedBy {
    erasure_id: Uuid,
    erased_at_ms: i64,
    /// `person`, `session` or `website`; absent where the store does not know the erasure.
    kind: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Trace {
    event_id: Uuid,
    state: State,
    applied: Option<AppliedEvent>,
    /// In the order of the log; the first one that was applied made the rows, the others are duplicates.
    in_log: Vec<Copy>,
    dead_letters: Vec<DeadLetter>,
    /// The erasure, of an event whose state is `erased`.
    erasure: Option<ErasedBy>,
    /// Whether all of the log was read, so that this answer has every copy.
    is_whole_log: bool,
}

/// Looks for the event and prints the answer. Exit code 3 if neither log nor store has it.
pub async fn run(loaded: &Loaded, args: &TraceArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let ids = candidates(args)?;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let mut found = trace(&log, &store, ids[0], args.scan, args.json).await?;
    for id in &ids[1..] {
        if found.state == State::NotFound {
            found = trace(&log, &store, *id, args.scan, args.json).await?;
        }
    }
    store.close().await;
    log.close().await;
    print(&if args.json { format!("{}\n", serde_json::to_string(&found)?) } else { text(&found) });
    Ok(if found.state == State::NotFound { Exit::No } else { Exit::Done })
}

/// The ids that the event may have, at least one.
fn candidates(args: &TraceArgs) -> Result<Vec<Uuid>, Misuse> {
    let Some(source) = args.website else {
        return args.event.parse().map(|id| vec![id]).map_err(|_| {
            Misuse(format!(
                "{:?} is no event id; for a messageId or an Idempotency-Key give its website, link or pixel with \
                 --website",
                args.event
            ))
        });
    };
    // KEY:INDEX, for an element of a batch, is the name of such an event already.
    let names = [message_name(&args.event), request_name(&args.event, None)];
    Ok(names.iter().map(|name| named_event_id(source, name)).collect())
}

async fn trace(log: &EventLog, store: &Store, id: Uuid, scan: bool, json: bool) -> anyhow::Result<Trace> {
    let applied = store.trace(id).await?;
    let reached = reached_now(store, log.id()).await?;
    let partitions = log.partitions().await?;
    let mut found = Vec::new();
    if scan {
        found = search_all(log, &partitions, id, json).await?;
    } else if let Some(from_ms) = received_at_ms(id).or(applied.as_ref().map(|event| event.created_at_ms)) {
        // The session and the layout of that time determine the partition.
        let layouts = known(log, store).await?;
        let own = |event: &AppliedEvent| {
            let key = key(event.session_id);
            layouts.iter().map(|layout| layout.partition_of(key.as_bytes())).collect::<Vec<_>>()
        };
        let own = applied.as_ref().map(own);
        let is_own = |partition: &Partition| own.as_ref().is_none_or(|own| own.contains(partition));
        let (own, others): (Vec<_>, Vec<_>) = partitions.iter().copied().partition(is_own);
        let candidates: Vec<_> = own.into_iter().chain(others).collect();
        let (usual, last) = (from_ms + APPEND_MS_USUAL, from_ms + APPEND_MS_MAX);
        'found: for times in [from_ms..usual, usual..last] {
            for partition in &candidates {
                found = search(log, *partition, id, times.clone(), Some(1), |_| ()).await?;
                if !found.is_empty() {
                    break 'found;
                }
            }
        }
    }
    let is_of_event = is_of(id);
    let dead_letters: Vec<_> = store
        .dead_letters_with(&id.to_string())
        .await?
        .into_iter()
        .filter(|letter| is_of_event(&letter.record))
        .map(|letter| DeadLetter {
            log: letter.place.log.to_string(),
            partition: letter.place.partition.number(),
            offset: letter.place.offset.number(),
            reason: letter.reason,
            set_aside_at_ms: letter.set_aside_at_ms,
            tries: letter.tries,
            tried_at_ms: letter.tried_at_ms,
            discarded_at_ms: letter.discarded_at_ms,
            waits: letter.parking == Parking::Waits,
        })
        .collect();
    let in_log: Vec<_> = found.iter().map(|record| copy(record, &reached)).collect();
    let erasure = erased_by(log.id().as_str(), &found, &store.erasures().await?);
    let state = if applied.is_some() {
        State::Applied
    } else if !dead_letters.is_empty() {
        State::DeadLetter
    } else if in_log.iter().any(|copy| !copy.is_passed) {
        State::NotYetApplied
    } else if erasure.is_some() {
        State::Erased
    } else if !in_log.is_empty() {
        State::RowsDeleted
    } else {
        State::NotFound
    };
    Ok(Trace { event_id: id, state, applied, in_log, dead_letters, erasure, is_whole_log: scan })
}

/// When the event was received, milliseconds since 1970: the collector makes its id of that time, unless the client
/// named the event.
fn received_at_ms(id: Uuid) -> Option<i64> {
    (id.get_version_num() == 7).then(|| (id.as_u128() >> 80) as i64)
}

fn copy(record: &Record, reached: &HashMap<Partition, Reached>) -> Copy {
    let reached = reached.get(&record.partition);
    let checkpoint = reached.map_or(Checkpoint::START, |reached| reached.checkpoint);
    Copy {
        partition: record.partition.number(),
        offset: record.offset.number(),
        appended_at_ms: record.appended_at_ms,
        is_passed: reached.is_some_and(|it| it.has_applied(record.offset, &record.value)),
        records_before: checkpoint.lag(record.offset),
    }
}

/// The erasure that covers an event's records: a tombstone names it; of a record that is there still, it is the first
/// erasure of its person, its session or its website whose copy lies behind it.
fn erased_by(log: &str, records: &[Record], erasures: &[NotedErasure]) -> Option<ErasedBy> {
    records.iter().find_map(|record| match LogRecord::decode(&record.value) {
        Ok(LogRecord::Erased(tombstone)) => {
            let noted = erasures.iter().find(|erasure| erasure.erasure_id == tombstone.erasure_id);
            Some(ErasedBy {
                erasure_id: tombstone.erasure_id,
                erased_at_ms: tombstone.erased_at_ms,
                kind: noted.map(|erasure| erasure.kind.clone()),
            })
        }
        decoded => {
            let glance = Glance::of(&record.value);
            let people = decoded.map_or_else(|_| Vec::new(), |record| record.people());
            let covers = |erasure: &&NotedErasure| {
                glance.source_id == Some(erasure.website_id)
                    && erasure.copies.iter().any(|copy| {
                        copy.log == log
                            && copy.partition == record.partition.number()
                            && record.offset.number() < copy.offset
                    })
                    && match erasure.kind.as_str() {
                        "website" => true,
                        "session" => glance.session_id.is_some_and(|id| id.to_string() == erasure.subject),
                        // A record without a name may be of a session that another one names.
                        _ => people.is_empty() || people.contains(&erasure.subject),
                    }
            };
            erasures.iter().find(covers).map(|erasure| ErasedBy {
                erasure_id: erasure.erasure_id,
                erased_at_ms: erasure.erased_at_ms,
                kind: Some(erasure.kind.clone()),
            })
        }
    })
}

/// Whether a record is the event's. Its text is searched first, because decoding a record takes longer.
fn is_of(id: Uuid) -> impl Fn(&[u8]) -> bool {
    let text = format!("\"id\":\"{id}\"");
    move |record| {
        // Of a record that cannot be decoded, the id in its text counts.
        record.windows(text.len()).any(|window| window == text.as_bytes())
            && LogRecord::decode(record).map_or(true, |record| record.id() == id)
    }
}

/// Copies in one partition that were appended within `times` (without the end), `copies_max` at most, in order.
pub async fn search(
    log: &EventLog,
    partition: Partition,
    id: Uuid,
    times: std::ops::Range<i64>,
    copies_max: Option<usize>,
    on_progress: impl Fn(u64),
) -> anyhow::Result<Vec<Record>> {
    let Extent { low, high } = log.extent(partition).await?;
    let start = log.offset_at(partition, times.start).await?.max(low);
    let (mut found, is_of_event) = (Vec::new(), is_of(id));
    if start >= high {
        return Ok(found);
    }
    let mut reader = log.reader(partition, start).await?;
    let mut at = start;
    while at < high {
        let records = reader.next(BATCH).await?;
        let passed = reader.passed();
        on_progress(passed.number().saturating_sub(at.number()));
        if records.is_empty() && passed == at {
            anyhow::bail!("partition {partition}: no record came from offset {at} on; try again");
        }
        at = passed;
        let is_over = records.last().is_some_and(|record| record.appended_at_ms >= times.end);
        found.extend(records.into_iter().filter(|record| is_of_event(&record.value)));
        if is_over || copies_max.is_some_and(|max| found.len() >= max) {
            break;
        }
    }
    Ok(found)
}

async fn search_all(
    log: &EventLog,
    partitions: &[Partition],
    id: Uuid,
    json: bool,
) -> anyhow::Result<Vec<Record>> {
    let mut total = 0;
    for partition in partitions {
        let Extent { low, high } = log.extent(*partition).await?;
        total += high.number().saturating_sub(low.number());
    }
    let (display, done) = (ProgressDisplay::new(json), Cell::new(0));
    let show = |passed| {
        done.set(done.get() + passed);
        let (part, done, unit) = ("searching", done.get(), Unit::Of("records"));
        display.show(progress::State { part, done, total, unit, note: None });
    };
    let mut found = Vec::new();
    for partition in partitions {
        found.extend(search(log, *partition, id, 0..i64::MAX, None, show).await?);
    }
    display.finish();
    Ok(found)
}

fn text(trace: &Trace) -> String {
    let id = trace.event_id;
    let mut out = match trace.state {
        State::Applied => format!("event {id}: applied\n"),
        State::NotYetApplied => format!("event {id}: in the log, not applied yet\n"),
        State::DeadLetter => format!("event {id}: set aside, a dead letter\n"),
        State::Erased => match &trace.erasure {
            Some(ErasedBy { erasure_id, erased_at_ms, kind }) => format!(
                "event {id}: erased {} by the erasure {erasure_id}{}\n",
                iso_string(*erased_at_ms),
                kind.as_ref().map_or_else(String::new, |kind| format!(" of its {kind}"))
            ),
            None => format!("event {id}: erased\n"),
        },
        State::RowsDeleted => format!(
            "event {id}: a projector has passed it, and the store has no row of it: its website was reset or its rows \
             were deleted\n"
        ),
        State::NotFound => format!("event {id}: neither in the log nor in the store\n"),
    };
    for copy in &trace.in_log {
        let time = iso_string(copy.appended_at_ms);
        let state = match (copy.is_passed, copy.records_before) {
            (true, _) => "passed by the projection".to_owned(),
            (false, 0) => "the next one to be applied".to_owned(),
            (false, before) => format!("up to {before} records are to be applied before it"),
        };
        out.push_str(&format!(
            "  log    partition {}, offset {}, appended {time}; {state}\n",
            copy.partition, copy.offset
        ));
    }
    if let Some(event) = &trace.applied {
        out.push_str(&format!(
            "  row    {} of website {}, {}\n",
            event.table,
            event.website_id,
            iso_string(event.created_at_ms)
        ));
        let session = if event.has_session { "its row is there" } else { "WITHOUT A ROW" };
        out.push_str(&format!("         session {}: {session}\n", event.session_id));
        if event.event_data > 0 || event.has_revenue {
            let revenue = if event.has_revenue { ", revenue 1" } else { "" };
            out.push_str(&format!("         event_data {}{revenue}\n", event.event_data));
        }
    }
    for letter in &trace.dead_letters {
        out.push_str(&format!(
            "  dead   partition {}, offset {}, {}: {}\n",
            letter.partition,
            letter.offset,
            iso_string(letter.set_aside_at_ms),
            letter.reason
        ));
        if letter.tries > 1 {
            let at = letter.tried_at_ms.map(iso_string).unwrap_or_default();
            out.push_str(&format!("         tried {} times, commanded last {at}\n", letter.tries));
        }
        if let Some(at) = letter.discarded_at_ms {
            out.push_str(&format!("         discarded {}\n", iso_string(at)));
        }
        if letter.waits {
            out.push_str("         it waits behind an earlier dead letter of its session\n");
        }
    }
    if trace.in_log.is_empty() && !trace.is_whole_log {
        out.push_str(
            "  log    not found near its time; --scan reads all of the log (retention may have removed the record)\n",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_the_collector_made_says_when() {
        let made = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_777_623_630, 123_000_000));
        assert_eq!(received_at_ms(made), Some(1_777_623_630_123));
        assert_eq!(received_at_ms(named_event_id(Uuid::nil(), "mine")), None);
    }

    #[test]
    fn a_record_is_known_by_its_own_id_only() {
        let (id, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let record = format!(
            r#"{{"v":1,"id":"{id}","at":1,"session":"{other}","visit":"{other}","type":"event","payload":{{"website":"{other}","url":"/"}}}}"#
        );
        assert!(is_of(id)(record.as_bytes()));
        assert!(!is_of(other)(record.as_bytes()));
        assert!(!is_of(id)(b"no record"));
    }
}
