//! Profiles on PostgreSQL: written in the commit's transaction, read by anybody, changes told by NOTIFY.

use std::sync::OnceLock;
use std::time::Duration;

use dashi_domain::flatten::{DataType, Decimal};
use dashi_domain::fold::Changes;
use dashi_domain::profile::{
    BaseKey, BaseRow, Person, ProfileCounts, ProfileLink, ProfileRows, ProfileState, Settled, Stamp,
    TraitKey, TraitRow, WriteRow, merge, persons, version,
};
use dashi_domain::rows::{DataValue, SessionDataRow};
use sqlx::postgres::{PgListener, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::PostgresStore;
use super::insert::{ChunkIndexes, bind, insert, names, unnest};
use super::pool::{Pool, Session};
use crate::error::Said;
use crate::profile::{CHANGES_MAX, attributes, base_keys, differences, kind, sessions_of_nobody, trait_keys};
use crate::tables;
use crate::{JourneyEvent, PersonSession, Profile, ProfileChange, ProfileSummary, SessionTraits, StoreError};

/// The channel of NOTIFY.
const CHANNEL: &str = "dashi_profile";

/// Least time between two attempts to listen; as long as nobody listens, whoever reads looks again that often.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// How often a connection that listens is asked whether it is there: it may hear nothing for days.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Writes what a batch does to profiles, as the last part of its transaction. People are locked in their order, so
/// that writers of different partitions wait for each other and never in a circle.
pub(super) async fn write(connection: &mut Session, changes: &Changes) -> Result<ProfileCounts, sqlx::Error> {
    let linked = write_links(connection, &changes.links).await?;
    let mut told: Vec<String> =
        linked.into_iter().chain(sessions_of_nobody(changes)).map(session_text).collect();
    let bases = read_bases(connection, &base_keys(&changes.sends)).await?;
    let sends = differences(&changes.sends, &bases);
    let repeated = (changes.sends.len() - sends.len()) as u64;
    lock_persons(connection, &persons(&sends, &changes.links), &persons(&sends, &[])).await?;
    let mut counts = ProfileCounts::default();
    if !sends.is_empty() {
        let traits = read_traits(connection, &trait_keys(&sends)).await?;
        let mut state = ProfileState::new(bases, traits);
        let needed = state.needs_history(&sends);
        if !needed.is_empty() {
            let rows = read_writes(connection, &needed).await?;
            state.add_history(needed, rows);
        }
        let rows = merge(&state, &sends);
        write_rows(connection, &rows).await?;
        told.extend(rows.changed.iter().map(person_text));
        counts = rows.counts;
    }
    counts.sends += repeated;
    counts.avoided += repeated;
    told.sort_unstable();
    told.dedup();
    if !told.is_empty() {
        sqlx::query("/* tell */ SELECT pg_notify($1, told) FROM unnest($2::text[]) AS told")
            .bind(CHANNEL)
            .bind(told)
            .execute(connection)
            .await?;
    }
    Ok(counts)
}

/// Website and session of the links that are new. A link that says nothing new is not touched.
async fn write_links(
    connection: &mut Session,
    rows: &[ProfileLink],
) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let (unnest, names) = (unnest(&tables::PROFILE_LINK), names(&tables::PROFILE_LINK));
    let sql = format!(
        "/* write_links */
         INSERT INTO dashi.profile_link AS l ({names})
         SELECT {names} FROM {unnest} AS t ({names})
         WHERE NOT EXISTS (SELECT 1 FROM dashi.profile_link AS o
             WHERE o.website_id = t.website_id AND o.session_id = t.session_id
               AND o.distinct_id = t.distinct_id AND o.kind = t.kind AND o.first_at <= t.first_at)
         ORDER BY website_id, session_id, distinct_id COLLATE \"C\", kind
         ON CONFLICT (website_id, session_id, distinct_id, kind)
             DO UPDATE SET first_at = least(l.first_at, excluded.first_at)
         RETURNING website_id, session_id"
    );
    let written = bind(&tables::PROFILE_LINK, sql, rows, &ChunkIndexes::new()).fetch_all(connection).await?;
    written.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Adds people, and locks those that sends are about, so that nobody else merges sends of theirs until the transaction
/// ends. All of it is one statement that goes through them in their order: with a second one, a writer that has added
/// a later person could wait for an earlier one whose writer waits for it. People that are there and as old and that no
/// send is about are not touched.
async fn lock_persons(
    connection: &mut Session,
    rows: &[(Person, i64)],
    sent: &[(Person, i64)],
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let is_sent = |person: &Person| sent.binary_search_by(|(other, _)| other.cmp(person)).is_ok();
    // A conflict locks the row also where the last condition does not hold.
    sqlx::query(
        "/* lock_persons */
         INSERT INTO dashi.profile AS p (website_id, distinct_id, created_at)
         SELECT website_id, distinct_id, created_at
         FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bool[])
         AS t (website_id, distinct_id, created_at, is_sent)
         WHERE is_sent OR NOT EXISTS (SELECT 1 FROM dashi.profile AS o
             WHERE o.website_id = t.website_id AND o.distinct_id = t.distinct_id
               AND o.created_at <= t.created_at)
         ORDER BY website_id, distinct_id COLLATE \"C\"
         ON CONFLICT (website_id, distinct_id) DO UPDATE SET created_at = excluded.created_at
         WHERE excluded.created_at < p.created_at",
    )
    .bind(column!(rows, row => row.0.website_id))
    .bind(column!(rows, row => row.0.distinct_id.as_str()))
    .bind(column!(rows, row => row.1))
    .bind(column!(rows, row => is_sent(&row.0)))
    .execute(connection)
    .await?;
    Ok(())
}

async fn read_bases(connection: &mut Session, keys: &[BaseKey]) -> Result<Vec<BaseRow>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "/* read_bases */
         SELECT b.session_id, b.device, b.distinct_id, b.key, b.data_type, b.string_value,
             b.number_value::text, b.date_value, b.received_at, b.event_id
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS t (session_id, device, distinct_id, key)
         JOIN dashi.profile_base AS b ON b.session_id = t.session_id AND b.device = t.device
             AND b.distinct_id = t.distinct_id AND b.key = t.key",
    )
    .bind(column!(keys, key => key.session_id))
    .bind(column!(keys, key => key.device))
    .bind(column!(keys, key => key.distinct_id.as_str()))
    .bind(column!(keys, key => key.key.as_str()))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(BaseRow {
                session_id: row.try_get("session_id")?,
                device: row.try_get("device")?,
                distinct_id: row.try_get("distinct_id")?,
                key: row.try_get("key")?,
                value: value(row)?,
                stamp: stamp(row, "received_at", "event_id")?,
            })
        })
        .collect()
}

const TRAIT_COLUMNS: &str = "r.website_id, r.distinct_id, r.key, r.data_type, r.string_value,
    r.number_value::text, r.date_value, r.last_at, r.last_event_id, r.changed_at, r.changed_event_id,
    r.changed_by, r.conditional";

async fn read_traits(connection: &mut Session, keys: &[TraitKey]) -> Result<Vec<TraitRow>, sqlx::Error> {
    let sql = format!(
        "/* read_traits */ SELECT {TRAIT_COLUMNS}
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS t (website_id, distinct_id, key)
         JOIN dashi.profile_trait AS r ON r.website_id = t.website_id AND r.distinct_id = t.distinct_id
             AND r.key = t.key"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(column!(keys, key => key.website_id))
        .bind(column!(keys, key => key.distinct_id.as_str()))
        .bind(column!(keys, key => key.key.as_str()))
        .fetch_all(connection)
        .await?;
    rows.iter().map(trait_row).collect()
}

async fn read_writes(connection: &mut Session, keys: &[TraitKey]) -> Result<Vec<WriteRow>, sqlx::Error> {
    let rows = sqlx::query(
        "/* read_writes */
         SELECT w.website_id, w.distinct_id, w.key, w.received_at, w.event_id, w.session_id, w.device,
             w.data_type, w.string_value, w.number_value::text, w.date_value, w.base_received_at, w.base_event_id
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS t (website_id, distinct_id, key)
         JOIN dashi.profile_write AS w ON w.website_id = t.website_id AND w.distinct_id = t.distinct_id
             AND w.key = t.key",
    )
    .bind(column!(keys, key => key.website_id))
    .bind(column!(keys, key => key.distinct_id.as_str()))
    .bind(column!(keys, key => key.key.as_str()))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let base_at: Option<i64> = row.try_get("base_received_at")?;
            let base_id: Option<Uuid> = row.try_get("base_event_id")?;
            Ok(WriteRow {
                website_id: row.try_get("website_id")?,
                distinct_id: row.try_get("distinct_id")?,
                key: row.try_get("key")?,
                stamp: stamp(row, "received_at", "event_id")?,
                session_id: row.try_get("session_id")?,
                device: row.try_get("device")?,
                value: value(row)?,
                base: base_at
                    .zip(base_id)
                    .map(|(received_at_ms, event_id)| Stamp { received_at_ms, event_id }),
            })
        })
        .collect()
}

async fn write_rows(connection: &mut Session, rows: &ProfileRows) -> Result<(), sqlx::Error> {
    let replaced = tables::PROFILE_BASE.table.replacing(&[]);
    let rest = format!("ON CONFLICT (session_id, device, distinct_id, key) DO UPDATE SET {replaced}");
    insert(connection, &tables::PROFILE_BASE, "write_bases", &rows.bases, &rest).await?;
    insert(connection, &tables::PROFILE_WRITE, "write_writes", &rows.writes, "ON CONFLICT DO NOTHING")
        .await?;
    let replaced = tables::PROFILE_TRAIT.table.replacing(&[]);
    let rest = format!("ON CONFLICT (website_id, distinct_id, key) DO UPDATE SET {replaced}");
    insert(connection, &tables::PROFILE_TRAIT, "write_traits", &rows.traits, &rest).await?;
    Ok(())
}

fn trait_row(row: &PgRow) -> Result<TraitRow, sqlx::Error> {
    Ok(TraitRow {
        website_id: row.try_get("website_id")?,
        distinct_id: row.try_get("distinct_id")?,
        key: row.try_get("key")?,
        settled: Settled {
            value: value(row)?,
            last: stamp(row, "last_at", "last_event_id")?,
            changed: stamp(row, "changed_at", "changed_event_id")?,
            changed_by: row.try_get("changed_by")?,
            conditional: row.try_get::<i32, _>("conditional")? != 0,
        },
    })
}

/// The value in `data_type` and its columns; `number_value` is text. None without a type.
fn value(row: &PgRow) -> Result<Option<DataValue>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<i32>, _>("data_type")? else { return Ok(None) };
    let number: Option<String> = row.try_get("number_value")?;
    Ok(Some(DataValue {
        data_type: DataType::from_code(code)
            .ok_or_else(|| sqlx::Error::Decode(format!("data_type {code}").into()))?,
        string_value: row.try_get("string_value")?,
        number_value: number.and_then(|number| Decimal::parse(&number, 4)),
        date_value_ms: row.try_get("date_value")?,
    }))
}

fn stamp(row: &PgRow, at: &str, id: &str) -> Result<Stamp, sqlx::Error> {
    Ok(Stamp { received_at_ms: row.try_get(at)?, event_id: row.try_get(id)? })
}

fn person_text(person: &Person) -> String {
    format!("p{}{}", person.website_id, person.distinct_id)
}

fn session_text((website_id, session_id): (Uuid, Uuid)) -> String {
    format!("s{website_id}{session_id}")
}

/// Reads a notification; one that is none of ours is as good as any change.
fn change(text: &str) -> ProfileChange {
    let split = |text: &str| {
        let (website, rest) = text.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
        Some((website.parse::<Uuid>().ok()?, rest.to_owned()))
    };
    let read = || match text.split_at_checked(1)? {
        ("p", rest) => split(rest)
            .map(|(website_id, distinct_id)| ProfileChange::Person(Person { website_id, distinct_id })),
        ("s", rest) => {
            let (website_id, session) = split(rest)?;
            Some(ProfileChange::Session { website_id, session_id: session.parse().ok()? })
        }
        _ => None,
    };
    read().unwrap_or(ProfileChange::Resync)
}

/// Tells the changes that anybody commits.
#[derive(Debug)]
pub(super) struct ChangeFeed {
    sender: broadcast::Sender<ProfileChange>,
    listening: OnceLock<()>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(CHANGES_MAX), listening: OnceLock::new() }
    }
}

/// Listens until the pool is closed. Whatever may have been missed in between is told as a resync: once a second where
/// nobody can listen.
async fn listen(pool: Pool, sender: broadcast::Sender<ProfileChange>) {
    let mut failing = false;
    while !pool.is_closed() {
        let outcome = tokio::select! {
            () = pool.closed() => return,
            outcome = listen_once(&pool, &sender, &mut failing) => outcome,
        };
        match outcome {
            // Again at once: what is committed meanwhile is not heard of.
            Ok(Listened::UntilItWasLost) => continue,
            Ok(Listened::NotAtAll) => {}
            Err(error) => {
                if !failing {
                    let error = Said::new(&error);
                    tracing::warn!(
                        error = %error,
                        "changes of profiles are not heard of, and looked for instead; trying again"
                    );
                }
                failing = true;
            }
        }
        let _ = sender.send(ProfileChange::Resync);
        tokio::select! {
            () = pool.closed() => return,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}

enum Listened {
    UntilItWasLost,
    /// Nobody can, behind this pooler.
    NotAtAll,
}

/// Listens until the connection is lost.
async fn listen_once(
    pool: &Pool,
    sender: &broadcast::Sender<ProfileChange>,
    failing: &mut bool,
) -> Result<Listened, sqlx::Error> {
    let Some((options, limit)) = pool.listening().await? else { return Ok(Listened::NotAtAll) };
    let silent = |_| sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"));
    // The driver's listener wants a pool; this one makes the one connection that it listens on.
    let single = PgPoolOptions::new().max_connections(1).acquire_timeout(limit).connect_lazy_with(options);
    let connected = async {
        let mut listener = PgListener::connect_with(&single).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let mut listener = tokio::time::timeout(limit, connected).await.map_err(silent)??;
    pool.listened().await;
    // Nobody may be listening here at the moment.
    let _ = sender.send(ProfileChange::Resync);
    *failing = false;
    loop {
        match tokio::time::timeout(HEARTBEAT, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                let _ = sender.send(change(notification.payload()));
            }
            // The connection was lost.
            Ok(Ok(None)) => return Ok(Listened::UntilItWasLost),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                tokio::time::timeout(limit, listener.execute("SELECT 1")).await.map_err(silent)??;
            }
        }
    }
}

impl PostgresStore {
    pub(crate) fn profile_changes(&self) -> broadcast::Receiver<ProfileChange> {
        let receiver = self.changes.sender.subscribe();
        self.changes.listening.get_or_init(|| {
            tokio::spawn(listen(self.pool.clone(), self.changes.sender.clone()));
        });
        receiver
    }

    pub(crate) async fn profile(
        &self,
        website_id: Uuid,
        distinct_id: &str,
    ) -> Result<Option<Profile>, StoreError> {
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let doing = "reading a profile";
        let created_at_ms: Option<i64> = sqlx::query_scalar(
            "SELECT created_at FROM dashi.profile WHERE website_id = $1 AND distinct_id = $2",
        )
        .bind(website_id)
        .bind(distinct_id)
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let Some(created_at_ms) = created_at_ms else { return Ok(None) };
        let traits = self.traits(website_id, distinct_id).await.map_err(StoreError::away(doing))?;
        let person = Person { website_id, distinct_id: distinct_id.to_owned() };
        Ok(Some(Profile { person, created_at_ms, version: version(&traits), traits }))
    }

    async fn traits(&self, website_id: Uuid, distinct_id: &str) -> Result<Vec<TraitRow>, sqlx::Error> {
        let sql = format!(
            "SELECT {TRAIT_COLUMNS} FROM dashi.profile_trait AS r
             WHERE r.website_id = $1 AND r.distinct_id = $2 ORDER BY r.key"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(website_id).bind(distinct_id);
        query.fetch_all(&self.pool).await?.iter().map(trait_row).collect()
    }

    pub(crate) async fn person_sessions(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<PersonSession>, StoreError> {
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let session = |row: &PgRow| {
            let has_row = row.try_get::<Option<Uuid>, _>("known")?.is_some();
            Ok(PersonSession {
                session_id: row.try_get("session_id")?,
                kind: kind(row.try_get("kind")?)?,
                attributes: has_row.then(|| attributes(row)).transpose()?,
                first_at_ms: row.try_get("first_at")?,
                last_at_ms: row.try_get("last_at")?,
            })
        };
        let rows = sqlx::query(
            "SELECT l.session_id, l.kind, l.first_at, s.session_id AS known,
                    s.browser::text, s.os::text, s.device::text, s.screen::text, s.language::text,
                    s.country::text, s.region::text, s.city::text, s.distinct_id::text,
                    greatest(
                        (SELECT (extract(epoch FROM max(e.created_at)) * 1000)::bigint FROM website_event AS e
                         WHERE e.website_id = l.website_id AND e.session_id = l.session_id),
                        (SELECT (extract(epoch FROM max(i.created_at)) * 1000)::bigint FROM dashi.identify AS i
                         WHERE i.session_id = l.session_id)) AS last_at
             FROM dashi.profile_link AS l
             LEFT JOIN session AS s ON s.session_id = l.session_id AND s.website_id = l.website_id
             WHERE l.website_id = $1 AND l.distinct_id = $2 AND (l.first_at, l.session_id) > ($3, $4)
             ORDER BY l.first_at, l.session_id LIMIT $5",
        )
        .bind(website_id)
        .bind(distinct_id)
        .bind(after_at)
        .bind(after_id)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(session).collect())
            .map_err(StoreError::away("listing a person's sessions"))
    }

    pub(crate) async fn session_traits(
        &self,
        website_id: Uuid,
        session_id: Uuid,
    ) -> Result<Option<SessionTraits>, StoreError> {
        let doing = "reading a session's traits";
        let links: Vec<(String, i32, i64)> = sqlx::query_as(
            "SELECT distinct_id, kind, first_at FROM dashi.profile_link WHERE website_id = $1 AND session_id = $2
             ORDER BY kind, first_at DESC, distinct_id",
        )
        .bind(website_id)
        .bind(session_id)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM session WHERE session_id = $1 AND website_id = $2)",
        )
        .bind(session_id)
        .bind(website_id)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        if links.is_empty() && !is_there {
            return Ok(None);
        }
        let person = crate::profile::person_of(links);
        let traits = match &person {
            Some(person) => self.traits(website_id, person).await.map_err(StoreError::away(doing))?,
            None => Vec::new(),
        };
        let property = |row: &PgRow| {
            let Some(value) = value(row)? else { return Ok(None) };
            Ok(Some(SessionDataRow {
                session_data_id: Uuid::nil(),
                website_id,
                session_id,
                data_key: row.try_get("data_key")?,
                value,
                distinct_id: None,
                created_at_ms: row.try_get("created_at_ms")?,
            }))
        };
        let rows = sqlx::query(
            "SELECT data_key::text, data_type, string_value::text, number_value::text,
                    (extract(epoch FROM date_value) * 1000)::bigint AS date_value,
                    (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms
             FROM session_data WHERE session_id = $1 AND website_id = $2",
        )
        .bind(session_id)
        .bind(website_id)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let own: Result<_, sqlx::Error> = rows.iter().filter_map(|row| property(row).transpose()).collect();
        let own = own.map_err(StoreError::away(doing))?;
        Ok(Some(SessionTraits::new(website_id, session_id, person, traits, own)))
    }

    pub(crate) async fn profiles(
        &self,
        website_id: Uuid,
        query: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ProfileSummary>, StoreError> {
        let query = &*self.stored_text(query).await?;
        let summary = |row: &PgRow| {
            Ok(ProfileSummary {
                distinct_id: row.try_get("distinct_id")?,
                created_at_ms: row.try_get("created_at")?,
                traits: row.try_get::<i64, _>("traits")? as u64,
                sessions: row.try_get::<i64, _>("sessions")? as u64,
            })
        };
        let rows = sqlx::query(
            "SELECT p.distinct_id, p.created_at,
                    (SELECT count(*) FROM dashi.profile_trait AS r WHERE r.website_id = p.website_id
                       AND r.distinct_id = p.distinct_id AND r.data_type IS NOT NULL) AS traits,
                    (SELECT count(DISTINCT l.session_id) FROM dashi.profile_link AS l
                     WHERE l.website_id = p.website_id AND l.distinct_id = p.distinct_id) AS sessions
             FROM dashi.profile AS p
             WHERE p.website_id = $1 AND position(lower($2) IN lower(p.distinct_id)) > 0
               AND ($3::text IS NULL OR p.distinct_id > $3)
             ORDER BY p.distinct_id LIMIT $4",
        )
        .bind(website_id)
        .bind(query)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(summary).collect()).map_err(StoreError::away("listing profiles"))
    }

    pub(crate) async fn journey(
        &self,
        website_id: Uuid,
        distinct_id: &str,
        after: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<JourneyEvent>, StoreError> {
        let distinct_id = &*self.stored_text(distinct_id).await?;
        let (after_at, after_id) = after.unwrap_or((i64::MIN, Uuid::nil()));
        let event = |row: &PgRow| {
            Ok(JourneyEvent {
                event_id: row.try_get("event_id")?,
                session_id: row.try_get("session_id")?,
                visit_id: row.try_get("visit_id")?,
                created_at_ms: row.try_get("at")?,
                event_type: row.try_get("event_type")?,
                url_path: row.try_get("url_path")?,
                event_name: row.try_get("event_name")?,
            })
        };
        let rows = sqlx::query(
            "WITH linked AS (SELECT DISTINCT session_id FROM dashi.profile_link
                             WHERE website_id = $1 AND distinct_id = $2)
             SELECT * FROM (
                 SELECT e.event_id, e.session_id, e.visit_id, e.event_type, e.url_path::text, e.event_name::text,
                        (extract(epoch FROM e.created_at) * 1000)::bigint AS at
                 FROM website_event AS e JOIN linked USING (session_id) WHERE e.website_id = $1
                 UNION ALL
                 SELECT i.event_id, i.session_id, NULL, 0, NULL, NULL,
                        (extract(epoch FROM i.created_at) * 1000)::bigint
                 FROM dashi.identify AS i JOIN linked USING (session_id) WHERE i.website_id = $1
             ) AS way
             WHERE (at, event_id) > ($3, $4) ORDER BY at, event_id LIMIT $5",
        )
        .bind(website_id)
        .bind(distinct_id)
        .bind(after_at)
        .bind(after_id)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await;
        rows.and_then(|rows| rows.iter().map(event).collect())
            .map_err(StoreError::away("reading a person's journey"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_reads_back_what_was_told() {
        let website_id = Uuid::from_u128(1);
        let person = Person { website_id, distinct_id: "Łukasz \u{1f600}".to_owned() };
        assert_eq!(change(&person_text(&person)), ProfileChange::Person(person));
        let session_id = Uuid::from_u128(2);
        assert_eq!(
            change(&session_text((website_id, session_id))),
            ProfileChange::Session { website_id, session_id }
        );
        for foreign in ["", "p", "x", "sfoo", "é"] {
            assert_eq!(change(foreign), ProfileChange::Resync, "{foreign}");
        }
    }
}
