//! Printing dead letters.

use std::io::Write as _;

use clap::Args;
use dashi_archive::write_record;
use dashi_domain::calendar::iso_string;
use dashi_domain::glance::Glance;
use dashi_domain::json::{self, Value};
use dashi_domain::parking::Parking;
use dashi_domain::position::LogId;
use dashi_domain::record::Record;
use dashi_store::{LetterPlace, SetAside, Store};
use serde::Serialize;
use uuid::Uuid;

use super::select::{FilterArgs, PlaceArg};
use super::{Opened, Selection};
use crate::exit::Exit;
use crate::output::print;

/// Characters of an error in a line of the list, at most.
const ERROR_MAX: usize = 120;

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub filter: FilterArgs,

    /// Those that were discarded, instead of those that were not
    #[arg(long)]
    pub discarded: bool,

    /// Of another log, whose checkpoints or renamed letters the store has
    #[arg(long, value_name = "ID")]
    pub log_id: Option<String>,

    /// List so many, at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,

    /// Begin behind this one: the last one of the page before
    #[arg(long, value_name = "PARTITION:OFFSET")]
    pub after: Option<PlaceArg>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Where it lies, such as 3:4711
    #[arg(value_name = "PARTITION:OFFSET")]
    pub place: PlaceArg,

    /// Of another log, whose checkpoints or renamed letters the store has
    #[arg(long, value_name = "ID")]
    pub log_id: Option<String>,

    /// Print the bytes of the record as they were in the log, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,

    /// Print JSON: the line that `export` writes
    #[arg(long)]
    pub json: bool,
}

/// A dead letter without its record.
#[derive(Debug, Serialize)]
pub struct Letter {
    log: String,
    partition: u32,
    offset: u64,
    /// The error of the last try.
    error: String,
    /// `open`, `discarded`, `holds` its session's later records, or `waits` behind an earlier one.
    state: &'static str,
    /// How often it was folded.
    tries: u32,
    set_aside_at_ms: i64,
    /// When the last command to try it was given.
    tried_at_ms: Option<i64>,
    discarded_at_ms: Option<i64>,
    appended_at_ms: Option<i64>,
    /// By the record, as far as it can be read.
    received_at_ms: Option<i64>,
    event_id: Option<Uuid>,
    #[serde(rename = "type")]
    kind: Option<String>,
    website: Option<Uuid>,
    session: Option<Uuid>,
    bytes: usize,
}

impl Letter {
    pub fn of(letter: &SetAside) -> Self {
        let glance = Glance::of(&letter.record);
        let fields = match json::parse(&letter.record) {
            Ok(Value::Object(fields)) => Some(fields),
            _ => None,
        };
        let text = |name| fields.as_ref().and_then(|fields| fields.get(name)).and_then(Value::as_str);
        Self {
            log: letter.place.log.to_string(),
            partition: letter.place.partition.number(),
            offset: letter.place.offset.number(),
            error: letter.reason.clone(),
            state: match (letter.discarded_at_ms, letter.parking) {
                (Some(_), _) => "discarded",
                (None, Parking::None) => "open",
                (None, Parking::Holds) => "holds",
                (None, Parking::Waits) => "waits",
            },
            tries: letter.tries,
            set_aside_at_ms: letter.set_aside_at_ms,
            tried_at_ms: letter.tried_at_ms,
            discarded_at_ms: letter.discarded_at_ms,
            appended_at_ms: letter.appended_at_ms,
            received_at_ms: glance.received_at_ms,
            event_id: text("id").and_then(|id| id.parse().ok()),
            kind: text("type").map(str::to_owned),
            website: glance.source_id,
            session: glance.session_id,
            bytes: letter.record.len(),
        }
    }
}

/// A part of the list.
#[derive(Debug, Serialize)]
pub struct Page {
    dead_letters: Vec<Letter>,
    /// `--after` of the next page; `None` if this is the last one.
    next: Option<String>,
}

/// Lists letters.
pub async fn list(opened: &Opened<'_>, args: &ListArgs) -> anyhow::Result<Exit> {
    let log = args.log_id.as_ref().map_or_else(|| opened.log_id().clone(), LogId::new);
    let selection = Selection::new(&opened.loaded.settings, log.clone(), &args.filter, Some(args.discarded))?;
    let after = args.after.map(|place| LetterPlace {
        log: log.clone(),
        partition: place.partition,
        offset: place.offset,
    });
    let page = page(&opened.store, &selection, after, args.limit as usize).await?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&page)?));
        return Ok(Exit::Done);
    }
    print(&table(&page));
    for counts in opened.store.letter_counts().await? {
        let is_other = counts.log != log && counts.open + counts.waiting > 0;
        if is_other {
            print(&format!(
                "partition {} of the log {}: {} more (--log-id)\n",
                counts.partition,
                clean(counts.log.as_str()),
                counts.open + counts.waiting
            ));
        }
    }
    Ok(Exit::Done)
}

/// The letters of a selection behind `after`, at most `limit` of them.
///
/// # Errors
/// The store does not answer.
pub async fn page(
    store: &Store,
    selection: &Selection,
    after: Option<LetterPlace>,
    limit: usize,
) -> anyhow::Result<Page> {
    let (mut letters, mut next) = (Vec::new(), None);
    selection
        .each(store, after, |letter| {
            if letters.len() == limit {
                next = letters.last().map(|last: &Letter| format!("{}:{}", last.partition, last.offset));
                return Ok(false);
            }
            letters.push(Letter::of(&letter));
            Ok(true)
        })
        .await?;
    Ok(Page { dead_letters: letters, next })
}

/// The letter at a place, discarded or not; `None` if there is none.
///
/// # Errors
/// The store does not answer.
pub async fn letter(store: &Store, log: &LogId, place: PlaceArg) -> anyhow::Result<Option<SetAside>> {
    let mut found = None;
    Selection::one(log, place).each(store, None, |letter| Ok(found.replace(letter).is_none())).await?;
    Ok(found)
}

fn table(page: &Page) -> String {
    if page.dead_letters.is_empty() {
        return "There is no dead letter.\n".to_owned();
    }
    let mut out = String::new();
    for letter in &page.dead_letters {
        let error: String = clean(&letter.error).chars().take(ERROR_MAX).collect();
        let (place, tries) = (format!("{}:{}", letter.partition, letter.offset), letter.tries);
        let (at, state) = (iso_string(letter.set_aside_at_ms), letter.state);
        let kind = clean(letter.kind.as_deref().unwrap_or("-"));
        out.push_str(&format!("{place:<14} {at}  {state:<9} tries {tries:<3} {kind:<11} {error}\n"));
    }
    if let Some(next) = &page.next {
        out.push_str(&format!("There are more: --after {next}\n"));
    }
    out
}

/// Shows one letter.
pub async fn show(opened: &Opened<'_>, args: &ShowArgs) -> anyhow::Result<Exit> {
    let log = args.log_id.as_ref().map_or_else(|| opened.log_id().clone(), LogId::new);
    let Some(letter) = letter(&opened.store, &log, args.place).await? else {
        eprintln!("dashi: there is no dead letter at {} of the log {log}", args.place);
        return Ok(Exit::No);
    };
    if args.raw {
        // A reader that has closed the pipe is no error.
        let _ = std::io::stdout().lock().write_all(&letter.record);
    } else if args.json {
        print(&String::from_utf8_lossy(&line(&letter)?));
    } else {
        print(&text(&letter));
    }
    Ok(Exit::Done)
}

fn text(letter: &SetAside) -> String {
    let shown = Letter::of(letter);
    let time = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), iso_string);
    let id = |id: Option<Uuid>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let mut out = String::new();
    for (name, value) in [
        ("place", format!("partition {}, offset {}", shown.partition, shown.offset)),
        ("log", shown.log),
        ("error", shown.error),
        ("state", shown.state.to_owned()),
        ("tries", format!("{}, the last one commanded {}", shown.tries, time(shown.tried_at_ms))),
        ("set aside", iso_string(shown.set_aside_at_ms)),
        ("discarded", time(shown.discarded_at_ms)),
        ("appended", time(shown.appended_at_ms)),
        ("received", time(shown.received_at_ms)),
        ("event", id(shown.event_id)),
        ("type", shown.kind.unwrap_or_else(|| "-".to_owned())),
        ("website", id(shown.website)),
        ("session", id(shown.session)),
    ] {
        out.push_str(&format!("{name:<10} {}\n", clean(&value)));
    }
    out.push_str(&format!("record     {} bytes\n{}\n", shown.bytes, readable(&letter.record)));
    out
}

/// The record in a form for people: JSON on many lines, or text, without characters that a terminal obeys.
fn readable(record: &[u8]) -> String {
    let pretty = serde_json::from_slice::<serde_json::Value>(record)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| String::from_utf8_lossy(record).into_owned());
    pretty.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// A text in which characters that a terminal obeys are escaped.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() { out.extend(char.escape_default()) } else { out.push(char) }
    }
    out
}

/// The line of NDJSON of a letter: that of its record in an export, with the letter beside it.
///
/// # Errors
/// None that is to be expected: it writes JSON of plain values.
pub fn line(letter: &SetAside) -> anyhow::Result<Vec<u8>> {
    let SetAside { place: LetterPlace { partition, offset, .. }, record, .. } = letter;
    let mut out = Vec::with_capacity(record.len() + 500);
    let appended_at_ms = letter.appended_at_ms.unwrap_or(letter.set_aside_at_ms);
    let (partition, offset, value) = (*partition, *offset, record.clone());
    write_record(&Record { partition, offset, appended_at_ms, value }, &mut out);
    // Without the end of the line and of the object.
    out.truncate(out.len() - 2);
    out.extend_from_slice(b",\"dead_letter\":");
    serde_json::to_writer(&mut out, &Letter::of(letter))?;
    out.extend_from_slice(b"}\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use dashi_archive::read_record;
    use dashi_domain::position::{Offset, Partition};

    use super::*;

    #[test]
    fn a_line_is_one_of_an_export_and_has_the_record_byte_for_byte() {
        for record in [&b"\xff\x00 garbage"[..], br#"{"v":7,"id":"x","payload":{"a":"\ud800"}}"#, b""] {
            let letter = SetAside {
                place: LetterPlace {
                    log: LogId::new("a \"log\""),
                    partition: Partition::new(3),
                    offset: Offset::new(17),
                },
                reason: "an \"error\"\n\u{1b}[31m".to_owned(),
                set_aside_at_ms: 5,
                record: record.to_vec(),
                appended_at_ms: Some(4),
                tries: 2,
                tried_by: None,
                tried_at_ms: Some(6),
                discarded_at_ms: None,
                parking: Parking::None,
            };
            let line = line(&letter).unwrap();
            let read = read_record(line.strip_suffix(b"\n").unwrap()).unwrap();
            assert_eq!((read.partition.number(), read.offset.number(), read.appended_at_ms), (3, 17, 4));
            assert_eq!(read.value, record);
            let shown: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
            assert!(shown.is_null() || shown["dead_letter"]["error"] == letter.reason, "{shown}");
            let text = text(&letter);
            assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[31m"), "{text}");
        }
    }
}
