//! Erasures: the steps by which the rows of sessions and people go, alike on both backends.
//!
//! One partition's writer deletes the rows that records of its partition made, and no others. So it does not matter in
//! which order the partitions come to their copies of an erasure:
//!
//! * Rows of sessions, and the links, writes and bases that sessions made of people, belong to the partition of their
//!   session.
//! * A value is a function of the rows that are left: that of a trait of the writes
//!   ([`dashi_domain::profile::settle`]), the time of a person of the links, that of a link to an anonymous session of its
//!   sources ([`dashi_domain::profile::LinkSource`]).
//!
//! On PostgreSQL a commit that writes rows of people holds the table `dashi.erasure` shared from before the first of them
//! on, and an erasure holds it alone, so that neither misses the other's rows.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use dashi_domain::erasure::{Coverage, Erasure, ErasureCopy, Subject};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::profile::{Person, ProfileRows, TraitKey, TraitRow, settle};
use serde::Serialize;
use uuid::Uuid;

use crate::profile::ProfileTables;
use crate::table::Table;
use crate::tables;
use crate::{Claim, ProfileChange};

/// Sessions whose rows one statement deletes, at most.
const SESSIONS_PER_STATEMENT: usize = 200;

/// Sessions whose rows one transaction before the last deletes, at most.
const SESSIONS_PER_PIECE: usize = 400;

/// Sessions that are looked at in one step, of all partitions.
const PAGE: u32 = 5_000;

/// Dead letters that are looked at in one step.
const LETTERS: u32 = 200;

/// Changes of people that are notified one by one; more are one notification to read everything again.
const NOTIFIED_MAX: usize = 1_000;

/// Tables with rows by website and session. Some databases lack the newer ones.
pub(crate) fn session_tables() -> [&'static Table; 9] {
    [
        &tables::REVENUE.table,
        &tables::SESSION_DATA.table,
        &tables::SESSION_LINK.table,
        &tables::SESSION_REPLAY.table,
        &tables::HEATMAP_EVENT.table,
        &tables::IDENTIFY.table,
        &tables::APPLIED.table,
        &tables::WEBSITE_EVENT.table,
        // The last one: as long as it is there, a session is found again after an interruption.
        &tables::SESSION.table,
    ]
}

/// Rows of a table that an erasure would delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErasableRows {
    /// The table.
    pub table: &'static str,
    /// How many.
    pub rows: u64,
}

/// What an erasure would delete, as the tables stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Erasable {
    /// The sessions, sorted; of a whole website none is listed.
    pub sessions: Vec<Uuid>,
    /// Rows by table; tables without any are left out.
    pub tables: Vec<ErasableRows>,
}

/// An erasure that the tables know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotedErasure {
    /// The erasure.
    pub erasure_id: Uuid,
    /// Its website, link or pixel.
    pub website_id: Uuid,
    /// `person`, `session` or `website`.
    pub kind: String,
    /// The distinct id or the session; "" for a website.
    pub subject: String,
    /// When it was commanded, milliseconds since 1970.
    pub erased_at_ms: i64,
    /// The places of its copies that were applied. They cover the records before them in their partitions.
    pub copies: Vec<AppliedCopy>,
}

/// The place of a copy of an erasure that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedCopy {
    /// The log.
    pub log: String,
    /// The partition.
    pub partition: u32,
    /// The record's offset.
    pub offset: u64,
}

/// An erasure and one of its copies as both backends read them: erasure, website, kind, subject, time; log, partition, offset.
pub(crate) type NotedColumns<I> = (I, I, String, String, i64, Option<String>, Option<i64>, Option<i64>);

/// Puts rows, in the order of their erasures, together.
pub(crate) fn noted<I>(
    rows: Vec<NotedColumns<I>>,
    id: impl Fn(I) -> Result<Uuid, sqlx::Error>,
) -> Result<Vec<NotedErasure>, sqlx::Error> {
    let mut noted: Vec<NotedErasure> = Vec::new();
    for (erasure, website, kind, subject, erased_at_ms, log, partition, offset) in rows {
        let (erasure_id, website_id) = (id(erasure)?, id(website)?);
        if noted.last().is_none_or(|last| last.erasure_id != erasure_id) {
            noted.push(NotedErasure {
                erasure_id,
                website_id,
                kind,
                subject,
                erased_at_ms,
                copies: Vec::new(),
            });
        }
        if let (Some(last), Some(log), Some(partition), Some(offset)) =
            (noted.last_mut(), log, partition, offset)
        {
            last.copies.push(AppliedCopy { log, partition: partition as u32, offset: offset as u64 });
        }
    }
    Ok(noted)
}

/// The tables within an erasure's transaction.
pub(crate) trait ErasureTables: ProfileTables {
    /// Keeps everybody else from writing rows of people until the transaction ends.
    fn lock_erasures(&mut self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Notes that the partition applies this copy, at this offset. Returns whether it had not done so before.
    fn note_copy(
        &mut self,
        claim: &Claim,
        copy: &ErasureCopy,
        at: Offset,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Forgets the copies that the partition applied from this offset (inclusive) on: the log is read again from there, and
    /// they cover what is applied again.
    fn forget_copies(
        &mut self,
        claim: &Claim,
        from: Offset,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Adds the erasure, unless it is there.
    fn note_erasure(&mut self, erasure: &Erasure) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Sessions of which an event named the person.
    fn sessions_naming(
        &mut self,
        website_id: Uuid,
        distinct_id: &str,
    ) -> impl Future<Output = Result<Vec<Uuid>, sqlx::Error>> + Send;

    /// The first `limit` sessions of the website behind `after` that have rows in the table, sorted.
    fn sessions_in(
        &mut self,
        table: &'static Table,
        website_id: Uuid,
        after: Uuid,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Uuid>, sqlx::Error>> + Send;

    /// Deletes the leaves of the data of these sessions' events.
    fn delete_event_data(
        &mut self,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Deletes these sessions' rows of a table.
    fn delete_rows(
        &mut self,
        table: &'static Table,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Deletes these sessions' bases and their own links, and the links to anonymous sessions that only they made; the
    /// others of these get the time of the sources that are left. Returns the people that were linked.
    fn delete_links(
        &mut self,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Deletes the subject's links to anonymous sessions that have no source: an older program made them. Returns the people
    /// that were linked.
    fn delete_unsourced_links(
        &mut self,
        erasure: &Erasure,
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Deletes the writes of these sessions to these people's traits; returns the traits.
    fn delete_writes(
        &mut self,
        website_id: Uuid,
        people: &[String],
        sessions: &[Uuid],
    ) -> impl Future<Output = Result<Vec<TraitKey>, sqlx::Error>> + Send;

    /// Deletes traits.
    fn delete_traits(&mut self, keys: &[TraitKey]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Gives people the time of the earliest link that is left, and deletes those that have none.
    fn settle_people(
        &mut self,
        website_id: Uuid,
        people: &[String],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The first `limit` dead letters of a partition from `from` (inclusive) up to `to` (exclusive).
    fn letters(
        &mut self,
        claim: &Claim,
        from: Offset,
        to: Offset,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<(Offset, Vec<u8>)>, sqlx::Error>> + Send;

    /// Deletes dead letters of a partition.
    fn delete_letters(
        &mut self,
        claim: &Claim,
        offsets: &[Offset],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// The offset of the only record of a commit that ends at this checkpoint.
pub(crate) fn last_offset(to: Checkpoint) -> Offset {
    to.offset().before().unwrap_or(Offset::ZERO)
}

/// Deletes everything of the partition that a copy covers, as a part of the transaction that passes its record at the
/// offset `at`. Returns the changes to notify subscribers of.
pub(crate) async fn erase(
    tables: &mut impl ErasureTables,
    there: &[&'static Table],
    claim: &Claim,
    copy: &ErasureCopy,
    at: Offset,
) -> Result<Vec<ProfileChange>, sqlx::Error> {
    let erasure = &copy.erasure;
    tables.lock_erasures().await?;
    tables.note_erasure(erasure).await?;
    let mut people: BTreeSet<String> = tables.delete_unsourced_links(erasure).await?.into_iter().collect();
    let mut coverage = Coverage::of(copy, at);
    let mut after = Some(Uuid::nil());
    while let Some(from) = after {
        let (sessions, next) = covered(tables, there, claim, copy, from, usize::MAX).await?;
        if erasure.subject != Subject::Website {
            coverage.add(&sessions);
        }
        people.extend(erase_sessions(tables, there, erasure.website_id, &sessions).await?);
        after = next;
    }
    let changed: Vec<String> = people.into_iter().collect();
    tables.settle_people(erasure.website_id, &changed).await?;
    erase_letters(tables, claim, &coverage, at).await?;
    if changed.len() > NOTIFIED_MAX {
        return Ok(vec![ProfileChange::Resync]);
    }
    let person = |distinct_id| ProfileChange::Person(Person { website_id: erasure.website_id, distinct_id });
    Ok(changed.into_iter().map(person).collect())
}

/// Deletes the rows and dead letters of some of the sessions behind `after`, in a transaction of its own before that of
/// [`erase`]; `at` is the copy's offset. Returns
/// where to go on; `None` at the end.
pub(crate) async fn erase_piece(
    tables: &mut impl ErasureTables,
    there: &[&'static Table],
    claim: &Claim,
    copy: &ErasureCopy,
    at: Offset,
    after: Uuid,
) -> Result<Option<Uuid>, sqlx::Error> {
    let (sessions, next) = covered(tables, there, claim, copy, after, SESSIONS_PER_PIECE).await?;
    if sessions.is_empty() {
        return Ok(next);
    }
    tables.lock_erasures().await?;
    let website_id = copy.erasure.website_id;
    if copy.erasure.subject != Subject::Website {
        // The last transaction does not find these sessions any more.
        let mut coverage = Coverage::of(copy, at);
        coverage.add(&sessions);
        erase_letters(tables, claim, &coverage, at).await?;
    }
    let people: Vec<String> =
        erase_sessions(tables, there, website_id, &sessions).await?.into_iter().collect();
    tables.settle_people(website_id, &people).await?;
    Ok(next)
}

/// The next sessions of the partition that a copy covers, behind `after`, at most `max`, and where to go on.
async fn covered(
    tables: &mut impl ErasureTables,
    there: &[&'static Table],
    claim: &Claim,
    copy: &ErasureCopy,
    after: Uuid,
    max: usize,
) -> Result<(Vec<Uuid>, Option<Uuid>), sqlx::Error> {
    let erasure = &copy.erasure;
    let mut found: BTreeSet<Uuid> = BTreeSet::new();
    let mut page_end = None;
    match &erasure.subject {
        Subject::Session(session_id) => {
            found.insert(*session_id);
            found.extend(&copy.sessions);
        }
        Subject::Person(distinct_id) => {
            found.extend(&copy.sessions);
            found.extend(tables.sessions_naming(erasure.website_id, distinct_id).await?);
        }
        Subject::Website => {
            let mut ends: Vec<Uuid> = Vec::new();
            for table in there {
                let page = tables.sessions_in(table, erasure.website_id, after, PAGE).await?;
                if page.len() == PAGE as usize {
                    ends.extend(page.last());
                }
                found.extend(page);
            }
            // Behind the end of the shortest page a table may have more.
            page_end = ends.into_iter().min();
        }
    }
    let is_next = |session: &Uuid| *session > after && page_end.is_none_or(|end| *session <= end);
    let own = |session: &Uuid| is_next(session) && erasure.holds(claim.partition, *session);
    let mut sessions: Vec<Uuid> = found.into_iter().filter(own).collect();
    if sessions.len() > max {
        sessions.truncate(max);
        let last = sessions.last().copied();
        return Ok((sessions, last));
    }
    Ok((sessions, page_end))
}

/// Deletes the rows of sessions; returns the people whose rows changed. Their times are not settled yet.
async fn erase_sessions(
    tables: &mut impl ErasureTables,
    there: &[&'static Table],
    website_id: Uuid,
    sessions: &[Uuid],
) -> Result<BTreeSet<String>, sqlx::Error> {
    let mut people = BTreeSet::new();
    for some in sessions.chunks(SESSIONS_PER_STATEMENT) {
        let linked = tables.delete_links(website_id, some).await?;
        let mut keys = tables.delete_writes(website_id, &linked, some).await?;
        keys.sort_unstable();
        keys.dedup();
        settle_traits(tables, keys).await?;
        people.extend(linked);
        tables.delete_event_data(website_id, some).await?;
        for table in there {
            tables.delete_rows(table, website_id, some).await?;
        }
    }
    Ok(people)
}

/// Makes traits of the writes that are left.
async fn settle_traits(tables: &mut impl ErasureTables, keys: Vec<TraitKey>) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut writes: BTreeMap<TraitKey, Vec<_>> = keys.into_iter().map(|key| (key, Vec::new())).collect();
    let of_keys: Vec<TraitKey> = writes.keys().cloned().collect();
    for row in tables.read_writes(&of_keys).await? {
        writes.entry(row.trait_key()).or_default().push(row);
    }
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    for (key, rows) in writes {
        match settle(&rows) {
            None => gone.push(key),
            Some(settled) => {
                let TraitKey { website_id, distinct_id, key } = key;
                left.push(TraitRow { website_id, distinct_id, key, settled });
            }
        }
    }
    tables.delete_traits(&gone).await?;
    tables.write_rows(&ProfileRows { traits: left, ..ProfileRows::default() }).await
}

async fn erase_letters(
    tables: &mut impl ErasureTables,
    claim: &Claim,
    coverage: &Coverage,
    at: Offset,
) -> Result<(), sqlx::Error> {
    let mut from = Offset::ZERO;
    loop {
        let letters = tables.letters(claim, from, at, LETTERS).await?;
        let Some((last, _)) = letters.last() else { return Ok(()) };
        from = last.next();
        let covered: Vec<Offset> = letters
            .iter()
            .filter(|(offset, record)| coverage.covers(*offset, record))
            .map(|(offset, _)| *offset)
            .collect();
        tables.delete_letters(claim, &covered).await?;
    }
}
