//! Umami Cloud's CSV (docs/umami-contract.md §21): a file of events and one of their data. A header names the columns, in
//! any order; columns of newer versions (`region`, `tag`, `distinct_id`, campaigns) are read where they are there.
//!
//! Rows of data that follow one another and are of one event become one record. An event's revenue is made of its data,
//! as Umami makes it of a request's.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

use dashi_domain::decimal::Decimal;
use dashi_domain::flatten::DataType;
use dashi_domain::ids::dependent_id;
use dashi_domain::imported::{Imported, ImportedSession};
use dashi_domain::location;
use dashi_domain::page_url::{UrlRules, page_url};
use dashi_domain::rows::{
    Campaign, DataValue, EventDataRow, EventRow, EventType, RevenueRow, SessionAttributes, Vitals,
};
use dashi_domain::umami::Release;
use dashi_event_log::NewRecord;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::csv::Fields;
use super::file::LineError;
use super::{csv, timestamp};
use crate::ImportError;
use crate::batch::{Batch, Item, Reject, Wanted};
use crate::lines::{Line, Lines};

/// The kind of source in the records.
const SOURCE: &str = "umami-csv";

/// Lines of one record, and its bytes, at most: a quote that is not closed ends there.
const RECORD_LINES_MAX: usize = 64;
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Rows of data in one record, at most.
const GROUP_MAX: usize = 1_000;

/// What a file's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Events,
    EventData,
}

/// The header of a file.
struct Header {
    kind: Kind,
    columns: HashMap<String, usize>,
}

impl Header {
    fn of(text: &str) -> Result<Self, String> {
        let names = match csv::fields(text) {
            Fields::Whole(names) => names,
            Fields::Open | Fields::Broken => Vec::new(),
        };
        let columns: HashMap<String, usize> =
            names.iter().enumerate().map(|(place, name)| (name.trim().to_lowercase(), place)).collect();
        let has = |name: &str| columns.contains_key(name);
        let kind = if has("event_key") || has("data_key") { Kind::EventData } else { Kind::Events };
        let needed: &[&str] = match kind {
            Kind::Events => {
                &["website_id", "session_id", "visit_id", "event_id", "url_path", "event_type", "created_at"]
            }
            Kind::EventData => &["website_id", "session_id", "event_id", "data_type", "created_at"],
        };
        let missing: Vec<_> = needed.iter().copied().filter(|name| !has(name)).collect();
        if missing.is_empty() {
            Ok(Self { kind, columns })
        } else {
            Err(format!(
                "its first line is no header of Umami Cloud's events or event data: it lacks {}",
                missing.join(", ")
            ))
        }
    }
}

/// The files with their events before their data, so that a session's row is made of its events.
pub(super) fn events_first(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, ImportError> {
    let mut kinds = Vec::with_capacity(paths.len());
    for path in paths {
        let first = Lines::open(&path).and_then(|mut lines| lines.next());
        let first = first.map_err(|source| ImportError::Read { path: path.clone(), source })?;
        let text = first.map_or_else(String::new, |line| String::from_utf8_lossy(&line.bytes).into_owned());
        let header = Header::of(&text).map_err(|reason| ImportError::Form { path: path.clone(), reason })?;
        kinds.push((header.kind, path));
    }
    kinds.sort();
    Ok(kinds.into_iter().map(|(_, path)| path).collect())
}

/// Rows of data of one event, as far as they were read.
struct Group {
    event_id: Uuid,
    website_id: Uuid,
    session_id: Uuid,
    event_name: String,
    rows: Vec<EventDataRow>,
    last_line: u64,
}

/// Makes records of rows.
#[derive(Default)]
pub(super) struct CsvRows {
    header: Option<Header>,
    group: Option<Group>,
}

impl CsvRows {
    /// Whether rows are being gathered.
    pub(super) fn is_within(&self) -> bool {
        self.group.is_some()
    }

    pub(super) fn end_of_file(&mut self, batch: &mut Batch, before_lines: u64) {
        self.flush(batch, before_lines);
        self.header = None;
    }

    /// Takes a line, and those after it that its record goes on in.
    pub(super) fn line(
        &mut self,
        line: Line,
        lines: &mut Lines,
        again: &mut VecDeque<Line>,
        path: &Path,
        before_lines: u64,
        batch: &mut Batch,
    ) -> Result<(), LineError> {
        let (number, mut last) = (line.number, line.number);
        let mut text = String::from_utf8_lossy(&line.bytes).into_owned();
        if text.trim().is_empty() {
            return Ok(());
        }
        let mut more = Vec::new();
        let fields = loop {
            match csv::fields(&text) {
                Fields::Whole(fields) => break Some(fields),
                Fields::Broken => break None,
                Fields::Open => {}
            }
            if more.len() + 1 >= RECORD_LINES_MAX || text.len() >= RECORD_BYTES_MAX {
                break None;
            }
            let next = match again.pop_front() {
                Some(next) => Some(next),
                None => lines.next().map_err(LineError::Io)?,
            };
            let Some(next) = next else { break None };
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(&next.bytes));
            last = next.number;
            more.push(next);
        };
        let Some(fields) = fields else {
            // Only this line is wrong, as far as can be seen: the others are looked at one by one.
            for line in more.into_iter().rev() {
                again.push_front(line);
            }
            batch.rejects.push(Reject::line(
                number,
                "a quote in it is not closed, or not doubled",
                &line.bytes,
            ));
            return Ok(());
        };
        batch.read += more.len() as u64;
        let Some(header) = &self.header else {
            let header = Header::of(&text)
                .map_err(|reason| LineError::Form(ImportError::Form { path: path.to_owned(), reason }))?;
            self.header = Some(header);
            return Ok(());
        };
        let row = Row { header, fields: &fields };
        let taken = match header.kind {
            Kind::Events => event(&row).map(|(imported, website)| {
                let line = before_lines + last;
                let record = NewRecord { session_id: imported.session_id, value: imported.encode() };
                let (id, at_ms) = (imported.record_id, imported.at_ms);
                batch.items.push(Item { line, id, at_ms, website, record });
            }),
            Kind::EventData => data(&row).map(|part| self.add(part, last, batch, before_lines)),
        };
        if let Err(reason) = taken {
            batch.rejects.push(Reject::line(number, reason, text.as_bytes()));
        }
        Ok(())
    }

    fn add(&mut self, part: Part, line: u64, batch: &mut Batch, before_lines: u64) {
        let is_other = self.group.as_ref().is_some_and(|group| {
            group.event_id != part.event_id
                || group.session_id != part.session_id
                || group.website_id != part.website_id
                || group.rows.len() >= GROUP_MAX
        });
        if is_other {
            self.flush(batch, before_lines);
        }
        let Part { event_id, website_id, session_id, event_name, data_key, value, created_at_ms } = part;
        let group = self.group.get_or_insert_with(|| Group {
            event_id,
            website_id,
            session_id,
            event_name,
            rows: Vec::new(),
            last_line: line,
        });
        // The id that the fold gives to such a row, so that the same row has the same one.
        let name = format!("{}:{data_key}", group.rows.len());
        group.rows.push(EventDataRow {
            event_data_id: dependent_id(event_id, &name),
            website_id,
            website_event_id: event_id,
            data_key,
            value,
            created_at_ms,
        });
        group.last_line = line;
    }

    fn flush(&mut self, batch: &mut Batch, before_lines: u64) {
        let Some(Group { event_id, website_id, session_id, event_name, rows, last_line }) = self.group.take()
        else {
            return;
        };
        let revenue = revenue(event_id, website_id, session_id, event_name, &rows);
        let mut imported = Imported {
            at_ms: rows.first().map_or(0, |row| row.created_at_ms),
            revenue: revenue.into_iter().collect(),
            event_data: rows,
            ..Imported::of(SOURCE, website_id, session_id)
        };
        imported.record_id = Uuid::new_v5(&event_id, &imported.encode());
        let website = Some(Wanted { id: website_id, name: None, domain: None });
        let record = NewRecord { session_id, value: imported.encode() };
        let (id, at_ms) = (imported.record_id, imported.at_ms);
        batch.items.push(Item { line: before_lines + last_line, id, at_ms, website, record });
    }
}

/// Revenue by Umami's rule: a positive `revenue` and a `currency` at the top of an event's data.
fn revenue(
    event_id: Uuid,
    website_id: Uuid,
    session_id: Uuid,
    event_name: String,
    rows: &[EventDataRow],
) -> Option<RevenueRow> {
    let of = |key: &str| rows.iter().find(|row| row.data_key == key);
    let amount = of("revenue")?;
    let text = amount.value.string_value.as_deref();
    let revenue = amount.value.number_value.or_else(|| Decimal::parse(text?, 4))?;
    let currency = of("currency")?.value.string_value.clone().filter(|text| !text.is_empty())?;
    (revenue.units() > 0).then(|| RevenueRow {
        revenue_id: dependent_id(event_id, "revenue"),
        website_id,
        session_id,
        event_id,
        event_name,
        currency,
        revenue,
        created_at_ms: amount.created_at_ms,
    })
}

/// A record of the file.
struct Row<'r> {
    header: &'r Header,
    fields: &'r [String],
}

impl Row<'_> {
    /// A value; none where it is empty, or null as ClickHouse writes it.
    fn text(&self, name: &str) -> Option<&str> {
        let text = self.fields.get(*self.header.columns.get(name)?)?.as_str();
        Some(text).filter(|text| !text.is_empty() && *text != "\\N")
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    fn uuid(&self, name: &str) -> Result<Uuid, String> {
        let text = self.text(name).ok_or_else(|| format!("its {name} is empty"))?;
        text.parse().map_err(|_| format!("its {name} {text:?} is no UUID"))
    }

    fn integer(&self, name: &str) -> Result<i32, String> {
        let text = self.text(name).ok_or_else(|| format!("its {name} is empty"))?;
        text.parse().map_err(|_| format!("its {name} {text:?} is no whole number"))
    }

    /// Milliseconds since 1970.
    fn time(&self, name: &str) -> Result<i64, String> {
        let text = self.text(name).ok_or_else(|| format!("its {name} is empty"))?;
        time_ms(text).map_err(|reason| format!("its {name}: {reason}"))
    }

    /// Every row has as many fields as the header, else a comma is too many or too few.
    fn check(&self) -> Result<(), String> {
        let (found, expected) = (self.fields.len(), self.header.columns.len());
        if found == expected {
            Ok(())
        } else {
            Err(format!("it has {found} fields, its header has {expected}"))
        }
    }
}

fn time_ms(text: &str) -> Result<i64, String> {
    if let Ok(number) = text.parse::<f64>() {
        let hint = timestamp::other_unit(number).unwrap_or_else(|| format!("the time {text} is a number"));
        return Err(format!("{hint}; the form is 2026-05-01 12:00:00, in UTC"));
    }
    // A civil time would be read without its offset.
    let civil = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok();
    text.parse::<Timestamp>()
        .ok()
        .or_else(|| Some(civil()?.timestamp()))
        .map(Timestamp::as_millisecond)
        .ok_or_else(|| format!("the time {text:?} is not of the form 2026-05-01 12:00:00, in UTC"))
}

fn event(row: &Row<'_>) -> Result<(Imported, Option<Wanted>), String> {
    row.check()?;
    let event_id = row.uuid("event_id")?;
    let (website_id, session_id) = (row.uuid("website_id")?, row.uuid("session_id")?);
    let (visit_id, created_at_ms) = (row.uuid("visit_id")?, row.time("created_at")?);
    let code = row.integer("event_type")?;
    let event_type =
        EventType::from_code(code).ok_or_else(|| format!("its event_type is {code}, expected 1 to 5"))?;
    let url_query = row.owned("url_query");
    let country = row.owned("country");
    // `region` is the column since 2.17, `subdivision1` the one before, without its country at times.
    let region = location::region(country.as_deref(), row.text("region").or(row.text("subdivision1")));
    let number = |name: &str, scale| match row.text(name) {
        None => Ok(None),
        Some(text) => match Decimal::parse(text, scale) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("its {name} {text:?} is no number")),
        },
    };
    let attributes = SessionAttributes {
        browser: row.owned("browser"),
        os: row.owned("os"),
        device: row.owned("device"),
        screen: row.owned("screen"),
        language: row.owned("language"),
        country,
        region,
        city: row.owned("city"),
        distinct_id: row.owned("distinct_id"),
    };
    let event = EventRow {
        event_id,
        website_id,
        session_id,
        visit_id,
        created_at_ms,
        url_path: row.owned("url_path").unwrap_or_default(),
        campaign: campaign(row, url_query.as_deref()),
        url_query: url_query.or_else(|| (event_type != EventType::Performance).then(String::new)),
        referrer_path: row.owned("referrer_path"),
        referrer_query: row.owned("referrer_query"),
        referrer_domain: row.owned("referrer_domain"),
        page_title: row.owned("page_title"),
        hostname: row.owned("hostname"),
        event_type,
        event_name: row.owned("event_name"),
        tag: row.owned("tag"),
        vitals: Vitals {
            lcp: number("lcp", 1)?,
            inp: number("inp", 1)?,
            cls: number("cls", 4)?,
            fcp: number("fcp", 1)?,
            ttfb: number("ttfb", 1)?,
        },
    };
    let is_of_website = !matches!(event_type, EventType::Link | EventType::Pixel);
    let domain = event.hostname.clone();
    let website = is_of_website.then_some(Wanted { id: website_id, name: None, domain });
    let imported = Imported {
        record_id: event_id,
        at_ms: created_at_ms,
        visit_id,
        session: Some(ImportedSession { attributes, created_at_ms }),
        event: Some(event),
        ..Imported::of(SOURCE, website_id, session_id)
    };
    Ok((imported, website))
}

/// The columns of campaigns, where the file has them; else those that Umami makes of the query.
fn campaign(row: &Row<'_>, query: Option<&str>) -> Campaign {
    if row.header.columns.contains_key("utm_source") {
        return Campaign {
            utm_source: row.owned("utm_source"),
            utm_medium: row.owned("utm_medium"),
            utm_campaign: row.owned("utm_campaign"),
            utm_content: row.owned("utm_content"),
            utm_term: row.owned("utm_term"),
            gclid: row.owned("gclid"),
            fbclid: row.owned("fbclid"),
            msclkid: row.owned("msclkid"),
            ttclid: row.owned("ttclid"),
            li_fat_id: row.owned("li_fat_id"),
            twclid: row.owned("twclid"),
        };
    }
    let Some(query) = query else { return Campaign::default() };
    let rules = UrlRules { remove_trailing_slash: false, release: Release::OURS };
    page_url(Some(&format!("/?{query}")), None, rules).campaign
}

/// A row of data.
struct Part {
    event_id: Uuid,
    website_id: Uuid,
    session_id: Uuid,
    event_name: String,
    data_key: String,
    value: DataValue,
    created_at_ms: i64,
}

fn data(row: &Row<'_>) -> Result<Part, String> {
    row.check()?;
    let code = row.integer("data_type")?;
    let data_type =
        DataType::from_code(code).ok_or_else(|| format!("its data_type is {code}, expected 1 to 5"))?;
    let number_value = match row.text("number_value") {
        None => None,
        Some(text) => {
            let number = Decimal::parse(text, 4);
            Some(number.ok_or_else(|| format!("its number_value {text:?} is no number below 10^15"))?)
        }
    };
    let date_value_ms = row.text("date_value").map(|_| row.time("date_value")).transpose()?;
    let value = DataValue { data_type, string_value: row.owned("string_value"), number_value, date_value_ms };
    let key = row.owned("event_key").or_else(|| row.owned("data_key"));
    Ok(Part {
        event_id: row.uuid("event_id")?,
        website_id: row.uuid("website_id")?,
        session_id: row.uuid("session_id")?,
        event_name: row.owned("event_name").unwrap_or_default(),
        data_key: key.ok_or("its event_key is empty")?,
        value,
        created_at_ms: row.time("created_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_numbers_are_refused_with_a_hint() {
        assert_eq!(time_ms("2026-05-01 12:00:00"), Ok(1_777_636_800_000));
        assert_eq!(time_ms("2026-05-01 12:00:00.123"), Ok(1_777_636_800_123));
        assert_eq!(time_ms("2026-05-01T14:00:00+02:00"), Ok(1_777_636_800_000));
        for (text, reason) in [
            ("1777636800000", "is in milliseconds"),
            ("1777636800", "the time 1777636800 is a number"),
            ("01.05.2026", "is not of the form"),
            ("yesterday", "is not of the form"),
        ] {
            let error = time_ms(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_header_shows_what_the_rows_are() {
        let kind = |text: &str| Header::of(text).map(|header| header.kind);
        let events = "\"website_id\",\"session_id\",\"visit_id\",\"event_id\",\"url_path\",\"event_type\",\"created_at\"";
        assert_eq!(kind(events), Ok(Kind::Events));
        assert_eq!(
            kind("website_id,session_id,event_id,event_key,data_type,created_at"),
            Ok(Kind::EventData)
        );
        let error = kind("x,y").expect_err("aggregates, say");
        assert!(error.contains("website_id") && error.contains("event_type"), "{error}");
    }
}
