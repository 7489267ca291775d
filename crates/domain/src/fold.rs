//! The fold: records in, row changes out. Same records in, same changes out.

mod version;

pub use version::{PROJECTION_CHANGES, PROJECTION_VERSION};

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::agent::Agent;
use crate::chunk::Chunk;
use crate::dead_letters::{LetterCommand, Tried};
use crate::decimal::Decimal;
use crate::erasure::ErasureCopy;
use crate::flatten::{self, DataType, Leaf};
use crate::glance::HourKey;
use crate::heatmap::{self, HeatmapPost};
use crate::ids::{dependent_id, session_data_id};
use crate::imported::Imported;
use crate::layout::{Barrier, Passed};
use crate::location::Location;
use crate::log_record::LogRecord;
use crate::missing::Missing;
use crate::page_url::{UrlRules, page_url, performance_path, referrer};
use crate::parking::Parking;
use crate::position::{LogId, Partition};
use crate::profile::{self, LinkSource, ProfileLink, ProfileLinkKind, Stamp, TraitSend, parse_version};
use crate::record::{Event, Record};
use crate::rows::{
    AppliedRow, ChunkRow, DataValue, DeadLetter, EventDataRow, EventRow, EventType, HeatmapRow, IdentifyRow,
    RevenueRow, SessionAttributes, SessionDataRow, SessionLinkRow, SessionRow, Vitals,
};
use crate::submission::{PROPERTIES_MAX, Payload, SourceKind, SubmissionKind};
use crate::text::{cut, decode_uri_component};
use crate::umami::Release;

/// The fold's parameters beside the records. Two runs with the same rules give the same rows.
#[derive(Debug, Clone)]
pub struct FoldRules {
    /// Where a date string without a zone is taken to be.
    pub zone: TimeZone,
    /// Whether a trailing slash of a page's path is dropped.
    pub remove_trailing_slash: bool,
    /// Umami's version, where its rows differ from one to the next.
    pub release: Release,
    /// Whether an identify names its session: its last distinct id replaces the one before, as from 3.3 on.
    pub names_sessions: bool,
    /// Whether null deletes a person's trait. The session's own properties keep it as a value either way.
    pub null_deletes: bool,
}

impl FoldRules {
    /// These, by the rules of a version of Umami.
    #[must_use]
    pub fn by(self, release: Release) -> Self {
        let names_sessions = self.names_sessions || release >= Release::V3_3;
        Self { release, names_sessions, ..self }
    }
}

/// Folds records of one partition, in offset order, into the changes they make.
///
/// `applied_before` names events that the store already holds (its refusal of a commit names them); they, and a second
/// copy within the records, change nothing and count as duplicates.
///
/// # Panics
/// If a command, such as an erasure, is among several records: it is folded alone; see [`runs`].
pub fn fold(records: &[Record], applied_before: &HashSet<Uuid>, rules: &FoldRules) -> Changes {
    let mut folding = Folding {
        rules,
        changes: Changes::default(),
        seen: HashSet::with_capacity(records.len()),
        sessions: HashMap::new(),
        properties: Properties::default(),
        links: BTreeMap::new(),
        link_sources: BTreeMap::new(),
    };
    for record in records {
        match LogRecord::decode(&record.value) {
            // Before it is remembered: a copy of a record that is set aside is no copy of an applied one, and is set aside
            // like it, in the same batch as in a later one.
            Ok(LogRecord::Event(event)) if event.submission.has_too_many_properties() => {
                let reason = format!("the identify has more than {PROPERTIES_MAX} properties");
                folding.changes.set_aside(record, reason);
            }
            // A copy of the record that was there comes after the erasure, and is a later event.
            Ok(LogRecord::Erased(tombstone)) => folding.changes.count(record, tombstone.outcome),
            Ok(recorded)
                if applied_before.contains(&recorded.id()) || !folding.seen.insert(recorded.id()) =>
            {
                folding.changes.count(record, Outcome::Duplicate);
            }
            Ok(recorded) => {
                match recorded {
                    LogRecord::Event(event) => folding.apply(&event),
                    LogRecord::Chunk(chunk) => folding.recording(chunk),
                    LogRecord::Heatmap(post) => folding.heatmap(&post),
                    LogRecord::Imported(imported) => folding.imported(imported),
                    LogRecord::Erasure(copy) => {
                        assert!(
                            records.len() == 1,
                            "an erasure is folded alone, and is one of {}",
                            records.len()
                        );
                        folding.changes.erasure = Some(copy);
                    }
                    LogRecord::Letters(command) => {
                        assert!(
                            records.len() == 1,
                            "a command about dead letters is folded alone, and is one of {}",
                            records.len()
                        );
                        folding.changes.applied.push(AppliedRow {
                            record_id: command.command_id,
                            record_type: "dead-letters".to_owned(),
                            website_id: Uuid::nil(),
                            session_id: command.key,
                            received_at_ms: command.at_ms,
                        });
                        folding.changes.command = Some(command);
                    }
                    LogRecord::Layout(barrier) => {
                        assert!(
                            records.len() == 1,
                            "a barrier of layouts is folded alone, and is one of {}",
                            records.len()
                        );
                        folding.changes.applied.push(AppliedRow {
                            record_id: barrier.id(),
                            record_type: "layout".to_owned(),
                            website_id: Uuid::nil(),
                            session_id: Uuid::nil(),
                            received_at_ms: barrier.at_ms,
                        });
                        folding.changes.barrier = Some(barrier);
                    }
                    // Handled above.
                    LogRecord::Erased(_) => {}
                }
                folding.changes.count(record, Outcome::Applied);
            }
            Err(error) => folding.changes.set_aside(record, error.to_string()),
        }
    }
    let links = folding.links.into_iter();
    folding.changes.links = links
        .map(|((website_id, session_id, distinct_id, kind), first_ms)| ProfileLink {
            website_id,
            session_id,
            distinct_id,
            kind,
            first_ms,
        })
        .collect();
    (folding.changes.session_data, folding.changes.imported_session_data) = folding.properties.split();
    let sources = folding.link_sources.into_iter();
    folding.changes.link_sources = sources
        .map(|((website_id, by_session, session_id, distinct_id), first_ms)| LinkSource {
            website_id,
            by_session,
            session_id,
            distinct_id,
            first_ms,
        })
        .collect();
    folding.changes.names_sessions = rules.names_sessions;
    folding.changes.sort();
    folding.changes
}

/// Changes that a run of records makes to the tables. They commit as one with the checkpoint behind the last of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    /// At most one per session: the first event's attributes, filled by later ones, and the attributes that fill a row
    /// that is there.
    pub sessions: Vec<SessionRow>,
    /// One per event that is not an identify.
    pub events: Vec<EventRow>,
    /// Leaves of those events' data.
    pub event_data: Vec<EventDataRow>,
    /// Revenue of those events.
    pub revenue: Vec<RevenueRow>,
    /// One per identify.
    pub identifies: Vec<IdentifyRow>,
    /// At most one per session and key: the last written.
    pub session_data: Vec<SessionDataRow>,
    /// Imported properties, of other sessions and keys than those of `session_data`, at most one of each: written where
    /// there is no row of that session and key, or an older one. A row keeps its id.
    pub imported_session_data: Vec<SessionDataRow>,
    /// Values that identifies with a distinct id send of people, in the order of the log; for [`profile::merge`].
    pub sends: Vec<TraitSend>,
    /// At most one per website, session, person and kind, in this order.
    pub links: Vec<ProfileLink>,
    /// Which sessions made the links to anonymous sessions; at most one per all that it consists of, in this order.
    pub link_sources: Vec<LinkSource>,
    /// One per chunk of a recording, in the order of the log.
    pub chunks: Vec<ChunkRow>,
    /// Clicks and scrolls, of recordings and of posts, in the order of the log. For stores that have a table of them.
    pub heatmap: Vec<HeatmapRow>,
    /// One per record that leaves no row by which it would be known again.
    pub applied: Vec<AppliedRow>,
    /// One per identify of a website with a distinct id, in log order: the first makes the link, the last names the
    /// session.
    pub session_links: Vec<SessionLinkRow>,
    /// Imported links, in log order. They name no session: the session's own row has its name.
    pub imported_session_links: Vec<SessionLinkRow>,
    /// Whether the session's distinct id is replaced by that of its last link.
    pub names_sessions: bool,
    /// Whether imported rows are among them, whose ids are those of their source: the ids of all other leaves and of
    /// revenue are made of their events' ids, so none is there twice if its event is not.
    pub has_imported: bool,
    /// Records that are no events.
    pub dead_letters: Vec<DeadLetter>,
    /// An erasure, which is recognised by its copy's id. Then it is the only record.
    pub erasure: Option<ErasureCopy>,
    /// A command about dead letters. Then it is the only record.
    pub command: Option<LetterCommand>,
    /// A barrier of layouts. Then it is the only record.
    pub barrier: Option<Barrier>,
    /// That the records are dead letters that a command has folded again. The projector fills this in, not the fold.
    pub tried: Option<Tried>,
    /// Sessions whose letters hold up nothing any more. The projector fills this in, too.
    pub given_up: Vec<Uuid>,
    /// The outcomes of the records; their sum is the number of records.
    pub outcomes: Outcomes,
    /// The same by hour and website.
    pub hours: BTreeMap<HourKey, Outcomes>,
    /// Records that should have been among them and are not in the log. The reader of the log fills this in, not the
    /// fold.
    pub missing: Vec<Missing>,
    /// Offsets among them that never held a record for a reader: markers of transactions, records of aborted ones.
    /// Filled in by the reader of the log, too.
    pub markers: u64,
    /// Records among them that were applied as part of the [tail](crate::tail). Filled in by the projector.
    pub skipped: u64,
    /// The [`fingerprint`](crate::missing::fingerprint) of the last record, if the last offset is a record's. Filled in
    /// by the reader of the log, too.
    pub fingerprint: Option<i64>,
}

/// Numbers of records by outcome. Every record has exactly one outcome (I2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// Made or changed rows.
    pub applied: u64,
    /// Copies of applied ones.
    pub duplicate: u64,
    /// Set aside with a reason.
    pub dead: u64,
}

/// The outcome of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It made or changed rows.
    Applied,
    /// It is a copy of an applied one.
    Duplicate,
    /// It was set aside.
    Dead,
}

impl Outcome {
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Dead => "dead",
        }
    }

    /// The outcome of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Applied, Self::Duplicate, Self::Dead].into_iter().find(|outcome| outcome.name() == name)
    }
}

/// Runs of records that are folded one after another: a command is a run of its own, for it changes what the records before
/// it made, and nothing of those behind it.
pub fn runs(records: &[Record]) -> Vec<Range<usize>> {
    let (mut runs, mut start) = (Vec::new(), 0);
    for place in (0..records.len()).filter(|place| is_command(&records[*place].value)) {
        runs.extend([start..place, place..place + 1]);
        start = place + 1;
    }
    runs.push(start..records.len());
    runs.retain(|run| !run.is_empty());
    runs
}

/// Whether a record is a command: no collector accepted it, and it is folded alone.
pub fn is_command(value: &[u8]) -> bool {
    ErasureCopy::is(value) || LetterCommand::is(value) || Barrier::is(value)
}

impl Outcomes {
    /// Counts one more.
    pub const fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied => self.applied += 1,
            Outcome::Duplicate => self.duplicate += 1,
            Outcome::Dead => self.dead += 1,
        }
    }

    /// Records that have an outcome.
    pub const fn total(&self) -> u64 {
        self.applied + self.duplicate + self.dead
    }
}

impl Changes {
    /// Rows that come of data, of which one record may make thousands.
    pub fn data_rows(&self) -> usize {
        self.event_data.len()
            + self.session_data.len()
            + self.imported_session_data.len()
            + self.sends.len()
            + self.heatmap.len()
    }

    /// The barrier among them, if it was written for this partition.
    pub fn barrier_of(&self, log: &LogId, partition: Partition) -> Option<Passed> {
        self.barrier.as_ref().filter(|barrier| barrier.is_of(log, partition)).map(|barrier| barrier.layouts)
    }

    /// Whether the records come after later ones of their sessions: then none of their values replaces a newer one (I6).
    pub fn is_late(&self) -> bool {
        self.tried.as_ref().is_some_and(|tried| !tried.in_order)
    }

    /// What some outcomes of this batch, all or those of an hour, add to the counts: applied, duplicate and dead. Letters that
    /// were tried again were dead before.
    pub fn added(&self, outcomes: &Outcomes) -> [i64; 3] {
        let Outcomes { applied, duplicate, dead } = *outcomes;
        let [applied, duplicate, dead] = [applied, duplicate, dead].map(|count| count as i64);
        let before = if self.tried.is_some() { applied + duplicate + dead } else { 0 };
        [applied, duplicate, dead - before]
    }

    /// The changes of a single record that cannot be applied.
    pub fn dead_letter(record: &Record, reason: String) -> Self {
        let mut changes = Self::default();
        changes.set_aside(record, reason);
        changes
    }

    /// Adds a record that waits behind a letter of its session, for this reason; it counts as dead.
    pub(crate) fn wait(&mut self, record: &Record, reason: String) {
        self.set_aside(record, reason);
        if let Some(letter) = self.dead_letters.last_mut() {
            letter.parking = Parking::Waits;
        }
    }

    fn set_aside(&mut self, record: &Record, reason: String) {
        let Record { offset, appended_at_ms, value, .. } = record;
        let (offset, appended_at_ms, value) = (*offset, *appended_at_ms, value.clone());
        let parking = Parking::None;
        self.dead_letters.push(DeadLetter { offset, appended_at_ms, reason, value, parking });
        self.count(record, Outcome::Dead);
    }

    fn count(&mut self, record: &Record, outcome: Outcome) {
        self.outcomes.add(outcome);
        self.hours.entry(HourKey::of(record)).or_default().add(outcome);
    }

    /// Rows lie in the order of their keys, so that transactions of several partitions lock them in one order.
    fn sort(&mut self) {
        self.sessions.sort_unstable_by_key(|row| row.session_id);
        self.events.sort_unstable_by_key(|row| row.event_id);
        self.identifies.sort_unstable_by_key(|row| row.event_id);
        self.applied.sort_unstable_by_key(|row| row.record_id);
        self.session_data.sort_unstable_by_key(|row| row.session_data_id);
        self.imported_session_data.sort_unstable_by_key(|row| row.session_data_id);
    }
}

/// The properties of sessions that a run of records writes: one row of each session and key.
#[derive(Default)]
struct Properties {
    /// The row, and whether it is written whatever the store has.
    rows: Vec<(SessionDataRow, bool)>,
    /// Places in `rows`, by [`session_data_id`].
    places: HashMap<Uuid, usize>,
}

impl Properties {
    /// An identify replaces every value before it.
    fn sent(&mut self, row: SessionDataRow) {
        self.put(row, true, |_| true);
    }

    /// An imported value replaces an older one.
    fn imported(&mut self, row: SessionDataRow) {
        let created_at_ms = row.created_at_ms;
        self.put(row, false, |before| before.created_at_ms < created_at_ms);
    }

    /// The id of a session and key is that of its first row, as it is in the store.
    fn put(&mut self, row: SessionDataRow, always: bool, replaces: impl FnOnce(&SessionDataRow) -> bool) {
        match self.places.entry(session_data_id(row.session_id, &row.data_key)) {
            Entry::Vacant(vacant) => {
                vacant.insert(self.rows.len());
                self.rows.push((row, always));
            }
            Entry::Occupied(place) => {
                let (before, is_always) = &mut self.rows[*place.get()];
                if replaces(before) {
                    *before = SessionDataRow { session_data_id: before.session_data_id, ..row };
                }
                *is_always |= always;
            }
        }
    }

    /// Those that are written whatever the store has, and those that replace only older ones.
    fn split(self) -> (Vec<SessionDataRow>, Vec<SessionDataRow>) {
        let (sent, imported): (Vec<_>, Vec<_>) = self.rows.into_iter().partition(|(_, always)| *always);
        let rows = |rows: Vec<(SessionDataRow, bool)>| rows.into_iter().map(|(row, _)| row).collect();
        (rows(sent), rows(imported))
    }
}

struct Folding<'r> {
    rules: &'r FoldRules,
    changes: Changes,
    seen: HashSet<Uuid>,
    /// Places in `changes.sessions`.
    sessions: HashMap<Uuid, usize>,
    properties: Properties,
    /// The earliest arrival of each link, by all that it consists of.
    links: BTreeMap<(Uuid, Uuid, String, ProfileLinkKind), i64>,
    /// The earliest arrival of each link to an anonymous session, by website, session that made it, and the rest.
    link_sources: BTreeMap<(Uuid, Uuid, Uuid, String), i64>,
}

impl Folding<'_> {
    fn apply(&mut self, event: &Event<'_>) {
        if let Some(kept) = &event.submission.kept {
            // A later version decides its meaning, also whether it makes a session.
            self.changes.applied.push(AppliedRow {
                record_id: event.event_id,
                record_type: kept.kind.clone().into_owned(),
                website_id: event.submission.payload.source.id,
                session_id: event.session_id,
                received_at_ms: event.received_at_ms,
            });
            return;
        }
        self.session(event);
        self.link(event);
        match event.submission.kind {
            SubmissionKind::Event => {
                let name = self.page_or_custom_event(event);
                self.event_data(event, &name);
            }
            SubmissionKind::Performance => self.performance(event),
            SubmissionKind::Identify => self.identify(event),
            // Handled above.
            SubmissionKind::Kept => {}
        }
    }

    /// A session row comes from the first event of any type (I3).
    fn session(&mut self, event: &Event<'_>) {
        let website_id = event.submission.payload.source.id;
        let attributes = self.attributes(event);
        self.session_row(event.session_id, website_id, attributes, event.created_at_ms());
    }

    fn session_row(
        &mut self,
        session_id: Uuid,
        website_id: Uuid,
        attributes: SessionAttributes,
        created_at_ms: i64,
    ) {
        match self.sessions.get(&session_id) {
            Some(&place) => self.changes.sessions[place].add(attributes),
            None => {
                self.sessions.insert(session_id, self.changes.sessions.len());
                let reported = Vec::new();
                self.changes.sessions.push(SessionRow {
                    session_id,
                    website_id,
                    attributes,
                    reported,
                    created_at_ms,
                });
            }
        }
    }

    /// The session, and the one that the device has while it is anonymous, belong to the person that an event names.
    fn link(&mut self, event: &Event<'_>) {
        let Some(person) = profile::person_of_payload(&event.submission.payload) else { return };
        let anonymous = event.device.filter(|device| *device != event.session_id);
        let sessions =
            [(Some(event.session_id), ProfileLinkKind::Own), (anonymous, ProfileLinkKind::Anonymous)];
        for (session_id, kind) in sessions {
            let Some(session_id) = session_id else { continue };
            let website_id = event.submission.payload.source.id;
            self.link_person((website_id, session_id, person.clone(), kind), event.received_at_ms);
        }
        if let Some(device) = anonymous {
            let source = (event.submission.payload.source.id, event.session_id, device, person);
            let first_ms = self.link_sources.entry(source).or_insert(event.received_at_ms);
            *first_ms = event.received_at_ms.min(*first_ms);
        }
    }

    fn link_person(&mut self, link: (Uuid, Uuid, String, ProfileLinkKind), at_ms: i64) {
        let first_ms = self.links.entry(link).or_insert(at_ms);
        *first_ms = at_ms.min(*first_ms);
    }

    fn attributes(&self, event: &Event<'_>) -> SessionAttributes {
        let payload = &event.submission.payload;
        let agent = Agent::of(event.user_agent.as_deref());
        let device = match &payload.device {
            Some(device) => self.column_text(device, 20),
            None => agent.device.on_screen(payload.screen.as_deref()).to_owned(),
        };
        let Location { country, region, city } = event.location.clone().limited();
        SessionAttributes {
            browser: payload
                .browser
                .as_ref()
                .map(|sent| self.column_text(sent, 20))
                .or(agent.browser.map(str::to_owned)),
            os: payload.os.as_ref().map(|sent| self.column_text(sent, 20)).or(agent.os.map(str::to_owned)),
            device: Some(device),
            screen: payload.screen.as_ref().map(|sent| text(sent, 11)),
            language: payload.language.as_ref().map(|sent| text(sent, 35)),
            country,
            region,
            city,
            distinct_id: self.distinct_id(payload),
        }
    }

    fn distinct_id(&self, payload: &Payload<'_>) -> Option<String> {
        payload.id.as_ref().map(|id| self.column_text(id, 50))
    }

    /// A text of which no version's schema limits the length.
    fn column_text(&self, sent: &str, width: usize) -> String {
        self.rules.release.cut_from(Release::V3_4, Cow::Borrowed(sent), width)
    }

    fn url_rules(&self) -> UrlRules {
        UrlRules { remove_trailing_slash: self.rules.remove_trailing_slash, release: self.rules.release }
    }

    /// Returns the event's name, "" if it has none.
    fn page_or_custom_event(&mut self, event: &Event<'_>) -> String {
        let payload = &event.submission.payload;
        let hostname = payload.hostname.as_deref();
        let (url, release) = (payload.url.as_deref(), self.rules.release);
        let page = page_url(url, hostname, self.url_rules());
        let from = payload.referrer.as_deref().and_then(|sent| referrer(sent, url, hostname, release));
        let (referrer_path, referrer_query, referrer_domain) = match from {
            Some(from) => (Some(from.path), Some(from.query), from.domain),
            None => (None, None, None),
        };
        let name = payload.name.as_ref().map(|sent| text(sent, 50)).filter(|name| !name.is_empty());
        let event_type = match payload.source.kind {
            SourceKind::Link => EventType::Link,
            SourceKind::Pixel => EventType::Pixel,
            SourceKind::Website if name.is_some() => EventType::Custom,
            SourceKind::Website => EventType::PageView,
        };
        let row = EventRow {
            event_id: event.event_id,
            website_id: payload.source.id,
            session_id: event.session_id,
            visit_id: event.visit_id,
            created_at_ms: event.created_at_ms(),
            url_path: page.url_path,
            url_query: Some(page.url_query),
            campaign: page.campaign,
            referrer_path,
            referrer_query,
            referrer_domain,
            page_title: page_title(payload),
            hostname: Some(page.hostname),
            event_type,
            event_name: name.clone(),
            tag: payload.tag.as_ref().map(|sent| text(sent, 50)),
            vitals: Vitals::default(),
        };
        self.changes.events.push(row);
        name.unwrap_or_default()
    }

    fn event_data(&mut self, event: &Event<'_>, event_name: &str) {
        let payload = &event.submission.payload;
        let Some(data) = &payload.data else { return };
        let created_at_ms = event.created_at_ms();
        for (place, leaf) in
            flatten::flatten(data, &self.rules.zone, self.rules.release).into_iter().enumerate()
        {
            // Two leaves may have one key ({"a.b":1,"a":{"b":2}}), so the place is part of the name.
            let name = format!("{place}:{}", leaf.key);
            let (data_key, value) = columns(leaf);
            self.changes.event_data.push(EventDataRow {
                event_data_id: dependent_id(event.event_id, &name),
                website_id: payload.source.id,
                website_event_id: event.event_id,
                data_key,
                value,
                created_at_ms,
            });
        }
        if let Some(revenue) = flatten::revenue(data) {
            self.changes.revenue.push(RevenueRow {
                revenue_id: dependent_id(event.event_id, "revenue"),
                website_id: payload.source.id,
                session_id: event.session_id,
                event_id: event.event_id,
                event_name: event_name.to_owned(),
                currency: revenue.currency,
                revenue: revenue.amount,
                created_at_ms,
            });
        }
    }

    /// Fills `hostname` where Umami leaves null: its session list groups by it and would show the visitor twice.
    fn performance(&mut self, event: &Event<'_>) {
        let payload = &event.submission.payload;
        let (url, hostname) = (payload.url.as_deref(), payload.hostname.as_deref());
        let vital = |sent: Option<f64>, scale| sent.and_then(|value| Decimal::round(value, scale));
        self.changes.events.push(EventRow {
            event_id: event.event_id,
            website_id: payload.source.id,
            session_id: event.session_id,
            visit_id: event.visit_id,
            created_at_ms: event.created_at_ms(),
            url_path: performance_path(url, hostname),
            url_query: None,
            campaign: Default::default(),
            referrer_path: None,
            referrer_query: None,
            referrer_domain: None,
            page_title: page_title(payload),
            hostname: Some(page_url(url, hostname, self.url_rules()).hostname),
            event_type: EventType::Performance,
            event_name: None,
            tag: None,
            vitals: Vitals {
                lcp: vital(payload.lcp, 1),
                inp: vital(payload.inp, 1),
                cls: vital(payload.cls, 4),
                fcp: vital(payload.fcp, 1),
                ttfb: vital(payload.ttfb, 1),
            },
        });
    }

    /// A recording makes no session row: Umami lists recordings of sessions that have events.
    fn recording(&mut self, chunk: Chunk) {
        self.changes.heatmap.extend(heatmap::of_chunk(&chunk));
        self.changes.chunks.push(ChunkRow {
            replay_id: chunk.chunk_id,
            website_id: chunk.website_id,
            session_id: chunk.session_id,
            visit_id: chunk.visit_id,
            chunk_index_min: chunk.second.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32,
            events: chunk.events_gzip,
            event_count: i32::try_from(chunk.event_count).unwrap_or(i32::MAX),
            started_at_ms: chunk.started_at_ms,
            ended_at_ms: chunk.ended_at_ms,
            created_at_ms: chunk.received_at_ms,
        });
    }

    /// Like a recording it makes no session row.
    fn heatmap(&mut self, post: &HeatmapPost<'_>) {
        self.changes.heatmap.extend(heatmap::of_post(post));
        self.changes.applied.push(AppliedRow {
            record_id: post.post_id,
            record_type: "heatmap".to_owned(),
            website_id: post.submission.website_id,
            session_id: post.session_id,
            received_at_ms: post.received_at_ms,
        });
    }

    fn identify(&mut self, event: &Event<'_>) {
        let payload = &event.submission.payload;
        let created_at_ms = event.created_at_ms();
        let distinct_id = self.distinct_id(payload);
        self.changes.identifies.push(IdentifyRow {
            event_id: event.event_id,
            website_id: payload.source.id,
            session_id: event.session_id,
            distinct_id: distinct_id.clone(),
            created_at_ms,
        });
        if let (Some(distinct_id), SourceKind::Website) =
            (distinct_id.clone().filter(|id| !id.is_empty()), payload.source.kind)
        {
            self.changes.session_links.push(SessionLinkRow {
                website_id: payload.source.id,
                session_id: event.session_id,
                distinct_id,
                created_at_ms,
            });
        }
        // Links and pixels have no properties; Umami fails here, we ignore the data.
        let (Some(data), SourceKind::Website) = (&payload.data, payload.source.kind) else { return };
        let leaves = flatten::flatten(data, &self.rules.zone, self.rules.release);
        self.send(event, &leaves);
        for leaf in leaves {
            let (data_key, value) = columns(leaf);
            let row = SessionDataRow {
                session_data_id: session_data_id(event.session_id, &data_key),
                website_id: payload.source.id,
                session_id: event.session_id,
                data_key,
                value,
                distinct_id: distinct_id.clone(),
                created_at_ms,
            };
            self.properties.sent(row);
        }
    }

    /// The rows of another store, as they were there. An event without its session makes one of which nothing is known
    /// but the event's time.
    fn imported(&mut self, imported: Imported) {
        self.changes.has_imported = true;
        for (person, at_ms) in imported.people() {
            let link = (imported.website_id, imported.session_id, person, ProfileLinkKind::Own);
            self.link_person(link, at_ms);
        }
        let Imported { record_id, at_ms, session_id, visit_id: _, website_id, source: _, session, .. } =
            imported;
        let (attributes, created_at_ms) = match session {
            Some(session) => (session.attributes, session.created_at_ms),
            None => (SessionAttributes::default(), at_ms),
        };
        self.session_row(session_id, website_id, attributes, created_at_ms);
        match imported.event {
            Some(event) => self.changes.events.push(event),
            None => self.changes.applied.push(AppliedRow {
                record_id,
                record_type: "imported".to_owned(),
                website_id,
                session_id,
                received_at_ms: at_ms,
            }),
        }
        self.changes.event_data.extend(imported.event_data);
        self.changes.revenue.extend(imported.revenue);
        self.changes.imported_session_links.extend(imported.session_links);
        for row in imported.session_data {
            self.send_imported(&row);
            self.properties.imported(row);
        }
    }

    /// An imported property is what an identify sent of the person that it named, at the time of the row. Newer values,
    /// which live events sent, win over it whenever it comes.
    fn send_imported(&mut self, row: &SessionDataRow) {
        let Some(distinct_id) = row.distinct_id.as_deref().filter(|id| !id.is_empty()) else { return };
        let value = &row.value;
        let is_null = value.data_type == DataType::Array && value.string_value.as_deref() == Some("null");
        self.changes.sends.push(TraitSend {
            website_id: row.website_id,
            session_id: row.session_id,
            device: row.session_id,
            distinct_id: profile::distinct_id(distinct_id),
            key: row.data_key.clone(),
            value: (!(is_null && self.rules.null_deletes)).then(|| value.clone()),
            stamp: Stamp { received_at_ms: row.created_at_ms, event_id: row.session_data_id },
            base: None,
        });
    }

    /// The last leaf of a key counts, as it does for the session's own properties.
    fn send(&mut self, event: &Event<'_>, leaves: &[Leaf]) {
        let payload = &event.submission.payload;
        let Some(distinct_id) = profile::person_of_payload(payload) else { return };
        let stamp = Stamp { received_at_ms: event.received_at_ms, event_id: event.event_id };
        let base = payload.base_version.as_deref().and_then(parse_version);
        let last: HashMap<&str, usize> =
            leaves.iter().enumerate().map(|(place, leaf)| (leaf.key.as_str(), place)).collect();
        for (place, leaf) in leaves.iter().enumerate() {
            if last[leaf.key.as_str()] != place {
                continue;
            }
            // No array is the text "null".
            let is_null = leaf.data_type == DataType::Array && leaf.string_value == "null";
            let (key, value) = columns(leaf.clone());
            self.changes.sends.push(TraitSend {
                website_id: payload.source.id,
                session_id: event.session_id,
                device: event.device.unwrap_or(event.session_id),
                distinct_id: distinct_id.clone(),
                key,
                value: (!(is_null && self.rules.null_deletes)).then_some(value),
                stamp,
                base,
            });
        }
    }
}

fn columns(leaf: Leaf) -> (String, DataValue) {
    let Leaf { key, data_type, string_value, number_value, date_value_ms } = leaf;
    (key, DataValue { data_type, string_value: Some(string_value), number_value, date_value_ms })
}

fn page_title(payload: &Payload<'_>) -> Option<String> {
    payload.title.as_ref().map(|title| text(&decode_uri_component(title), 500))
}

fn text(sent: &str, units_max: usize) -> String {
    cut(Cow::Borrowed(sent), units_max).into_owned()
}
