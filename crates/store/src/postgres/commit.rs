//! One transaction per batch: the guard on epoch and checkpoint, then every row, each table by one statement.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dashi_domain::fold::Changes;
use dashi_domain::missing::Missing;
use dashi_domain::position::{Checkpoint, Epoch};
use dashi_domain::rows::{
    AppliedRow, ChunkRow, DeadLetter, EventDataRow, EventRow, HeatmapKind, HeatmapRow, IdentifyRow,
    RevenueRow, SessionAttributes, SessionDataRow, SessionLinkRow, SessionRow,
};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::catalogue::Catalogue;
use super::insert::{ChunkIndexes, assignments, bind, insert, insert_sql, names, unnest};
use super::pool::{Session, is_known};
use super::{PostgresStore, checkpoint_of, profile};
use crate::chunk_index::{SAME_CLICK_MS, placed};
use crate::error::Said;
use crate::missing::{Passed, RANGES_MAX, REWOUND};
use crate::tables;
use crate::{Claim, CommitError, Committed};

/// Rows of `event_data` or `session_data` per statement, at most: one event may have a million leaves, and a single
/// statement for them could outlast the time that statements have.
const LEAVES_PER_STATEMENT: usize = 20_000;

impl PostgresStore {
    pub(crate) async fn commit(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
    ) -> Result<Committed, CommitError> {
        let partition = claim.partition;
        let not_written = |source| CommitError::NotWritten { partition, source };
        let catalogue = self.catalogue().await.map_err(|error| not_written(Arc::new(error)))?;
        let changes = self
            .encodable(std::borrow::Cow::Borrowed(changes), &catalogue)
            .await
            .map_err(|error| not_written(Arc::new(error)))?;
        let outcome = self.transact(claim, from, to, &catalogue.fit(&changes), &catalogue).await;
        let failed = match outcome {
            Ok(committed) => return Ok(committed),
            Err(Ended::Otherwise(error)) => return Err(error),
            Err(Ended::Failed(failed)) => failed,
        };
        let error = failure(claim, &failed);
        if !may_blame_the_tables(&error, &failed) {
            return Err(error);
        }
        // Perhaps Umami was upgraded a moment ago: then the rows were written for tables that are no more.
        match self.read_catalogue().await {
            Ok(read) if read == catalogue => Err(error),
            Ok(_) => match error {
                CommitError::Refused { source, .. } => Err(not_written(source)),
                error => Err(error),
            },
            Err(error) => Err(not_written(Arc::new(error))),
        }
    }

    /// One transaction, with rows that fit the tables.
    async fn transact(
        &self,
        claim: &Claim,
        from: Checkpoint,
        to: Checkpoint,
        changes: &Changes,
        catalogue: &Catalogue,
    ) -> Result<Committed, Ended> {
        let mut session = self.pool.begin().await?;
        let written = write(&mut session, claim, from, to, changes, catalogue).await;
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                session.roll_back().await;
                return Err(Ended::Failed(error));
            }
        };
        match written {
            Written::Rows(committed) => match session.commit().await {
                Ok(()) => Ok(committed),
                Err(error) if is_known(&error) => Err(Ended::Failed(error)),
                Err(error) => Err(Ended::Otherwise(CommitError::Unknown {
                    partition: claim.partition,
                    source: Said::cause(&error),
                })),
            },
            Written::NothingForTheGuard => {
                session.roll_back().await;
                Err(Ended::Otherwise(self.refusal(claim, from).await))
            }
            Written::NothingForDuplicates { with_recordings } => {
                session.roll_back().await;
                Err(Ended::Otherwise(CommitError::Duplicates(self.applied(changes, with_recordings).await?)))
            }
        }
    }

    /// Why the guard did not hold.
    async fn refusal(&self, claim: &Claim, from: Checkpoint) -> CommitError {
        let stored: Result<(i64, i64), _> = sqlx::query_as(
            "/* refusal */ SELECT epoch, checkpoint FROM dashi.checkpoint WHERE log_id = $1 AND partition = $2",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .fetch_one(&self.pool)
        .await;
        let partition = claim.partition;
        match stored {
            Err(error) => CommitError::NotWritten { partition, source: Said::cause(&error) },
            Ok((epoch, _)) if epoch as u64 != claim.epoch.number() => {
                CommitError::Fenced { partition, held: claim.epoch, current: Epoch::new(epoch as u64) }
            }
            Ok((_, stored)) => {
                CommitError::Misplaced { partition, start: from, stored: checkpoint_of(stored) }
            }
        }
    }

    /// Which of the events the tables hold already; of recordings, if there is a table of them and some in the batch.
    async fn applied(&self, changes: &Changes, with_recordings: bool) -> Result<Vec<Uuid>, sqlx::Error> {
        let events = changes.events.iter().map(|row| row.event_id);
        let ids: Vec<Uuid> = events.chain(changes.identifies.iter().map(|row| row.event_id)).collect();
        let mut applied: Vec<Uuid> = sqlx::query_scalar(
            "/* applied */
             SELECT event_id FROM website_event WHERE event_id = ANY($1)
             UNION SELECT event_id FROM dashi.identify WHERE event_id = ANY($1)
             UNION SELECT record_id FROM dashi.applied WHERE record_id = ANY($2)",
        )
        .bind(ids)
        .bind(column!(changes.applied, row => row.record_id))
        .fetch_all(&self.pool)
        .await?;
        if with_recordings {
            let chunks: Vec<Uuid> = changes.chunks.iter().map(|row| row.replay_id).collect();
            let stored: Vec<Uuid> =
                sqlx::query_scalar("SELECT replay_id FROM session_replay WHERE replay_id = ANY($1)")
                    .bind(chunks)
                    .fetch_all(&self.pool)
                    .await?;
            applied.extend(stored);
        }
        Ok(applied)
    }
}

/// What a transaction came to, as far as nothing failed.
enum Written {
    /// All rows.
    Rows(Committed),
    /// Nothing: epoch or checkpoint are others.
    NothingForTheGuard,
    /// Nothing that may stay: some of the rows were there.
    NothingForDuplicates { with_recordings: bool },
}

/// Why a transaction did not take place.
enum Ended {
    /// Before it was committed, or the server refused to commit it.
    Failed(sqlx::Error),
    /// For another reason, which is known.
    Otherwise(CommitError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// All statements of a transaction but its beginning and its end.
async fn write(
    connection: &mut Session,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
    catalogue: &Catalogue,
) -> Result<Written, sqlx::Error> {
    if !move_checkpoint(connection, claim, from, to, changes).await? {
        return Ok(Written::NothingForTheGuard);
    }
    let recordings: &[ChunkRow] = if catalogue.has_table("session_replay") { &changes.chunks } else { &[] };
    let (recorded, indexes) = insert_recordings(connection, recordings).await?;
    let inserted = insert_events(connection, &changes.events, catalogue).await?
        + insert_identifies(connection, &changes.identifies).await?
        + insert_applied(connection, &changes.applied).await?
        + recorded;
    let to_insert =
        changes.events.len() + changes.identifies.len() + changes.applied.len() + recordings.len();
    if inserted < to_insert as u64 {
        return Ok(Written::NothingForDuplicates { with_recordings: !recordings.is_empty() });
    }
    let inserted = insert_sessions(connection, &changes.sessions).await?;
    let there: Vec<_> = changes.sessions.iter().filter(|row| !inserted.contains(&row.session_id)).collect();
    fill_sessions(connection, &there).await?;
    if catalogue.has_session_link() {
        link_sessions(connection, &changes.session_links).await?;
    }
    if catalogue.has_session_link() || changes.names_sessions {
        name_sessions(connection, &changes.session_links).await?;
    }
    for rows in changes.event_data.chunks(LEAVES_PER_STATEMENT) {
        insert_event_data(connection, rows).await?;
    }
    for rows in changes.session_data.chunks(LEAVES_PER_STATEMENT) {
        upsert_session_data(connection, rows, catalogue).await?;
    }
    insert_revenue(connection, &changes.revenue).await?;
    if catalogue.has_heatmaps() {
        let (recorded, posted): (Vec<_>, Vec<_>) =
            changes.heatmap.iter().partition(|row| row.recorded.is_some());
        for rows in posted.chunks(LEAVES_PER_STATEMENT) {
            insert_heatmap(connection, rows, &indexes, catalogue).await?;
            remove_recorded_clicks(connection, rows, catalogue).await?;
        }
        if catalogue.tells_recorded_clicks() {
            for rows in recorded.chunks(LEAVES_PER_STATEMENT) {
                insert_heatmap(connection, rows, &indexes, catalogue).await?;
            }
        }
    }
    insert_dead_letters(connection, claim, &changes.dead_letters).await?;
    if to < from {
        set_dead_letters_aside(connection, claim, to).await?;
    }
    note_missing(connection, claim, &changes.missing).await?;
    let (profiles, changed) = crate::profile::write(connection, changes).await?;
    profile::notify(connection, &changed).await?;
    Ok(Written::Rows(Committed { profiles }))
}

/// What an error means for a batch of which nothing was written.
fn failure(claim: &Claim, error: &sqlx::Error) -> CommitError {
    let partition = claim.partition;
    let refused = match error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // 22: data exception; 23: integrity constraint; 54: a row or an index entry beyond a limit, but also a queue
            // of notifications that somebody else does not empty.
            let is_of_the_data = ["22", "23", "54"].iter().any(|class| code.starts_with(class));
            is_of_the_data && !database.message().contains("NOTIFY")
        }),
        sqlx::Error::Encode(_) => true,
        _ => false,
    };
    let source = Said::cause(error);
    if refused {
        CommitError::Refused { partition, source }
    } else {
        CommitError::NotWritten { partition, source }
    }
}

/// Whether tables that are others than the catalogue said may be why: rows that are refused, a table or a column that
/// is not there, an `ON CONFLICT` without its index.
fn may_blame_the_tables(error: &CommitError, failed: &sqlx::Error) -> bool {
    // 42: undefined table, undefined column and the like.
    let is_of_the_tables = failed
        .as_database_error()
        .is_some_and(|database| database.code().is_some_and(|code| code.starts_with("42")));
    is_of_the_tables || matches!(error, CommitError::Refused { .. })
}

/// The guard. It comes first: its row lock keeps a second writer of this partition waiting until this transaction
/// has ended, and then that one finds another epoch or checkpoint.
async fn move_checkpoint(
    connection: &mut Session,
    claim: &Claim,
    from: Checkpoint,
    to: Checkpoint,
    changes: &Changes,
) -> Result<bool, sqlx::Error> {
    let passed = Passed::of(changes, from, to);
    let moved = sqlx::query(
        "/* move_checkpoint */
         UPDATE dashi.checkpoint
         SET checkpoint = $5, applied = applied + $6, duplicate = duplicate + $7, dead = dead + $8,
             missing = missing + $9, markers = markers + $10, rewound = rewound + $11, fingerprint = $12,
             updated_at = clock_timestamp(),
             last_error_over_at = CASE WHEN last_error IS NOT NULL THEN coalesce(last_error_over_at, clock_timestamp()) END
         WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND checkpoint = $4",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .bind(to.offset().number() as i64)
    .bind(changes.outcomes.applied as i64)
    .bind(changes.outcomes.duplicate as i64)
    .bind(changes.outcomes.dead as i64)
    .bind(passed.missing)
    .bind(passed.markers)
    .bind(passed.rewound)
    .bind(changes.fingerprint)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(moved == 1)
}

/// Leaves out what is applied already, in this table or as an identify: an id is one event, whichever its type. Of two
/// partitions that commit an event and an identify of one id in the same moment neither sees the other's row, and both are
/// applied; that takes one client id for two things of different visitors. Two events, or two identifies, are kept apart by
/// the table's key.
async fn insert_events(
    connection: &mut Session,
    rows: &[EventRow],
    catalogue: &Catalogue,
) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let sql = insert_sql(
        &tables::WEBSITE_EVENT,
        "insert_events",
        Some(catalogue),
        "WHERE NOT EXISTS (SELECT 1 FROM dashi.identify AS i WHERE i.event_id = t.event_id)
         ON CONFLICT (event_id) DO NOTHING",
    );
    let query = bind(&tables::WEBSITE_EVENT, sql, rows, &ChunkIndexes::new());
    Ok(query.execute(connection).await?.rows_affected())
}

async fn insert_identifies(connection: &mut Session, rows: &[IdentifyRow]) -> Result<u64, sqlx::Error> {
    let rest = "WHERE NOT EXISTS (SELECT 1 FROM website_event AS e WHERE e.event_id = t.event_id)
         ON CONFLICT (event_id) DO NOTHING";
    insert(connection, &tables::IDENTIFY, "insert_identifies", rows, rest).await
}

async fn insert_applied(connection: &mut Session, rows: &[AppliedRow]) -> Result<u64, sqlx::Error> {
    let rest = "ON CONFLICT (record_id) DO NOTHING";
    insert(connection, &tables::APPLIED, "insert_applied", rows, rest).await
}

/// Returns how many were inserted, and the index of each chunk.
async fn insert_recordings(
    connection: &mut Session,
    rows: &[ChunkRow],
) -> Result<(u64, ChunkIndexes), sqlx::Error> {
    if rows.is_empty() {
        return Ok(Default::default());
    }
    let taken: Vec<(Uuid, Uuid, i32)> = sqlx::query_as(
        "/* taken */
         SELECT session_id, visit_id, chunk_index FROM session_replay
         WHERE session_id = ANY($1) AND visit_id = ANY($2) AND chunk_index >= $3",
    )
    .bind(column!(rows, row => row.session_id))
    .bind(column!(rows, row => row.visit_id))
    .bind(rows.iter().map(|row| row.chunk_index_min).min())
    .fetch_all(&mut *connection)
    .await?;
    let placed = placed(rows, taken);
    let indexes: ChunkIndexes = placed.into_iter().map(|(index, row)| (row.replay_id, index)).collect();
    let table = &tables::SESSION_REPLAY;
    let sql = insert_sql(table, "insert_recordings", None, "ON CONFLICT (replay_id) DO NOTHING");
    let inserted = bind(table, sql, rows, &indexes).execute(connection).await?;
    Ok((inserted.rows_affected(), indexes))
}

/// Takes clicks of recordings out again that were posted as well: each counts once, with what the post tells of it.
async fn remove_recorded_clicks(
    connection: &mut Session,
    posted: &[&HeatmapRow],
    catalogue: &Catalogue,
) -> Result<(), sqlx::Error> {
    let clicks: Vec<_> = posted.iter().filter(|row| row.kind == HeatmapKind::Click).collect();
    if clicks.is_empty() || !catalogue.tells_recorded_clicks() {
        return Ok(());
    }
    sqlx::query(AssertSqlSafe(format!(
        "/* remove_recorded_clicks */
         DELETE FROM heatmap_event AS h
         USING unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::bigint[])
         AS t (visit_id, url_path, x, y, created_at)
         WHERE h.visit_id = t.visit_id AND h.event_type = 1 AND h.replay_event_index IS NOT NULL
             AND h.url_path = t.url_path AND h.x IS NOT DISTINCT FROM t.x AND h.y IS NOT DISTINCT FROM t.y
             AND h.created_at BETWEEN dashi.at_ms(t.created_at - {SAME_CLICK_MS})
                 AND dashi.at_ms(t.created_at + {SAME_CLICK_MS})"
    )))
    .bind(column!(clicks, row => row.visit_id))
    .bind(column!(clicks, row => row.url_path.as_str()))
    .bind(column!(clicks, row => row.x))
    .bind(column!(clicks, row => row.y))
    .bind(column!(clicks, row => row.created_at_ms))
    .execute(connection)
    .await?;
    Ok(())
}

/// Rows of the heatmap, in the columns that this version has of them, less recorded clicks that were posted.
async fn insert_heatmap(
    connection: &mut Session,
    rows: &[&HeatmapRow],
    indexes: &ChunkIndexes,
    catalogue: &Catalogue,
) -> Result<(), sqlx::Error> {
    let posted = if catalogue.has_column("heatmap_event", "replay_event_index") {
        "h.replay_event_index IS NULL"
    } else {
        "true"
    };
    let rest = format!(
        "WHERE t.replay_event_index IS NULL OR t.event_type <> 1 OR NOT EXISTS (
             SELECT 1 FROM heatmap_event AS h
             WHERE h.visit_id = t.visit_id AND h.event_type = 1 AND {posted}
                 AND h.url_path = t.url_path AND h.x IS NOT DISTINCT FROM t.x AND h.y IS NOT DISTINCT FROM t.y
                 AND h.created_at BETWEEN dashi.at_ms(t.created_at - {SAME_CLICK_MS})
                     AND dashi.at_ms(t.created_at + {SAME_CLICK_MS}))
         ON CONFLICT DO NOTHING"
    );
    let table = &tables::HEATMAP_EVENT;
    let sql = insert_sql(table, "insert_heatmap", Some(catalogue), &rest);
    bind(table, sql, rows, indexes).execute(connection).await?;
    Ok(())
}

/// Inserts the sessions that are not there; says which these are.
async fn insert_sessions(
    connection: &mut Session,
    rows: &[SessionRow],
) -> Result<HashSet<Uuid>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    let rest = "ON CONFLICT (session_id) DO NOTHING RETURNING session_id";
    let sql = insert_sql(&tables::SESSION, "insert_sessions", None, rest);
    let inserted = bind(&tables::SESSION, sql, rows, &ChunkIndexes::new()).fetch_all(connection).await?;
    inserted.iter().map(|row| row.try_get(0)).collect()
}

/// Fills sessions that were there, by the fold's own rule. Only rows that lack what these events say are read, and
/// only those that change are written: hardly any.
async fn fill_sessions(connection: &mut Session, rows: &[&SessionRow]) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    // One bit for each attribute that any of the events says, in the order of the columns.
    let says = column!(rows, row => {
        row.said().iter().flat_map(|said| (0..).zip(columns_of(said))).fold(0, |bits, (place, value)| {
            bits | i32::from(value.is_some()) << place
        })
    });
    let lacking: Vec<PgRow> = sqlx::query(
        "/* lacking_sessions */
         SELECT s.session_id, s.browser::text, s.os::text, s.device::text, s.screen::text, s.language::text,
             s.country::text, s.region::text, s.city::text, s.distinct_id::text
         FROM unnest($1::uuid[], $2::int[]) AS t (session_id, says)
         JOIN session AS s ON s.session_id = t.session_id
         WHERE (CASE WHEN s.browser IS NULL THEN 1 ELSE 0 END | CASE WHEN s.os IS NULL THEN 2 ELSE 0 END
             | CASE WHEN s.device IS NULL THEN 4 ELSE 0 END | CASE WHEN s.screen IS NULL THEN 8 ELSE 0 END
             | CASE WHEN s.language IS NULL THEN 16 ELSE 0 END | CASE WHEN s.country IS NULL THEN 32 ELSE 0 END
             | CASE WHEN s.region IS NULL THEN 64 ELSE 0 END | CASE WHEN s.city IS NULL THEN 128 ELSE 0 END
             | CASE WHEN s.distinct_id IS NULL THEN 256 ELSE 0 END) & t.says <> 0",
    )
    .bind(column!(rows, row => row.session_id))
    .bind(says)
    .fetch_all(&mut *connection)
    .await?;
    let said: HashMap<Uuid, &[SessionAttributes]> =
        rows.iter().map(|row| (row.session_id, row.said())).collect();
    let mut filled: Vec<(Uuid, SessionAttributes)> = Vec::new();
    for row in &lacking {
        let session_id: Uuid = row.try_get("session_id")?;
        let mut attributes = crate::profile::attributes(row)?;
        let said = said.get(&session_id).copied().unwrap_or_default();
        if attributes.fill_from(said) {
            filled.push((session_id, attributes));
        }
    }
    if filled.is_empty() {
        return Ok(());
    }
    // In the order in which all transactions lock them. Umami may name the session meanwhile: its name stays.
    filled.sort_unstable_by_key(|(session_id, _)| *session_id);
    sqlx::query(
        "/* fill_sessions */
         UPDATE session AS s
         SET browser = t.browser, os = t.os, device = t.device, screen = t.screen, language = t.language,
             country = t.country, region = t.region, city = t.city,
             distinct_id = coalesce(s.distinct_id, t.distinct_id)
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
             $7::text[], $8::text[], $9::text[], $10::text[])
         AS t (session_id, browser, os, device, screen, language, country, region, city, distinct_id)
         WHERE s.session_id = t.session_id",
    )
    .bind(column!(filled, row => row.0))
    .bind(column!(filled, row => row.1.browser.as_deref()))
    .bind(column!(filled, row => row.1.os.as_deref()))
    .bind(column!(filled, row => row.1.device.as_deref()))
    .bind(column!(filled, row => row.1.screen.as_deref()))
    .bind(column!(filled, row => row.1.language.as_deref()))
    .bind(column!(filled, row => row.1.country.as_deref()))
    .bind(column!(filled, row => row.1.region.as_deref()))
    .bind(column!(filled, row => row.1.city.as_deref()))
    .bind(column!(filled, row => row.1.distinct_id.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}

/// In the order of the table's columns.
fn columns_of(attributes: &SessionAttributes) -> [&Option<String>; 9] {
    let SessionAttributes { browser, os, device, screen, language, country, region, city, distinct_id } =
        attributes;
    [browser, os, device, screen, language, country, region, city, distinct_id]
}

/// Umami 3.3 and newer: the distinct ids that identifies named in a session.
async fn link_sessions(connection: &mut Session, rows: &[SessionLinkRow]) -> Result<(), sqlx::Error> {
    let (unnest, names) = (unnest(&tables::SESSION_LINK), names(&tables::SESSION_LINK));
    let sql = format!(
        "/* insert_session_links */
         INSERT INTO session_link ({names})
         SELECT DISTINCT ON (website_id, session_id, distinct_id)
             website_id, session_id, distinct_id, dashi.at_ms(created_at)
         FROM {unnest} WITH ORDINALITY AS t ({names}, place)
         ORDER BY website_id, session_id, distinct_id, place
         ON CONFLICT DO NOTHING"
    );
    run_with_links(connection, rows, sql).await
}

/// The last of the distinct ids that identifies named in a session goes into the session itself.
async fn name_sessions(connection: &mut Session, rows: &[SessionLinkRow]) -> Result<(), sqlx::Error> {
    let (unnest, names) = (unnest(&tables::SESSION_LINK), names(&tables::SESSION_LINK));
    let sql = format!(
        "/* name_sessions */
         UPDATE session AS s SET distinct_id = t.distinct_id
         FROM (SELECT DISTINCT ON (session_id) website_id, session_id, distinct_id
               FROM {unnest} WITH ORDINALITY AS t ({names}, place)
               ORDER BY session_id, place DESC) AS t
         WHERE s.session_id = t.session_id AND s.website_id = t.website_id
             AND s.distinct_id IS DISTINCT FROM t.distinct_id"
    );
    run_with_links(connection, rows, sql).await
}

async fn run_with_links(
    connection: &mut Session,
    rows: &[SessionLinkRow],
    sql: String,
) -> Result<(), sqlx::Error> {
    if !rows.is_empty() {
        bind(&tables::SESSION_LINK, sql, rows, &ChunkIndexes::new()).execute(connection).await?;
    }
    Ok(())
}

async fn insert_event_data(connection: &mut Session, rows: &[EventDataRow]) -> Result<(), sqlx::Error> {
    let rest = "ON CONFLICT (event_data_id) DO NOTHING";
    insert(connection, &tables::EVENT_DATA, "insert_event_data", rows, rest).await?;
    Ok(())
}

/// A row of that session and key keeps its id, which may be one that Umami gave it.
///
/// Up to 3.2 Umami has no unique key on (session, key), so the row is updated, and inserted where there is none. The
/// session's one writer is this one.
async fn upsert_session_data(
    connection: &mut Session,
    rows: &[SessionDataRow],
    catalogue: &Catalogue,
) -> Result<(), sqlx::Error> {
    let table = &tables::SESSION_DATA;
    if catalogue.has_unique_properties() {
        let replaced = table.table.replacing(&["session_id", "data_key"]);
        let rest = format!("ON CONFLICT (session_id, data_key) DO UPDATE SET {replaced}");
        insert(connection, table, "upsert_session_data", rows, &rest).await?;
        return Ok(());
    }
    // Without a unique index a key may have several rows; all of them are updated. They are found by one scan of the
    // sessions' rows: a join on session and key has no index to go by, and looks at every row of a session for each.
    let stored: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
        "/* stored_properties */
         SELECT session_data_id, session_id, data_key::text FROM session_data
         WHERE session_id = ANY($1) AND data_key = ANY($2)",
    )
    .bind(rows.iter().map(|row| row.session_id).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())
    .bind(
        rows.iter().map(|row| row.data_key.as_str()).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut ids: HashMap<(Uuid, &str), Vec<Uuid>> = HashMap::new();
    for (id, session_id, data_key) in &stored {
        ids.entry((*session_id, data_key)).or_default().push(*id);
    }
    let mut updates: Vec<(Uuid, &SessionDataRow)> = Vec::new();
    let mut inserts: Vec<&SessionDataRow> = Vec::new();
    for row in rows {
        match ids.get(&(row.session_id, row.data_key.as_str())) {
            Some(ids) => updates.extend(ids.iter().map(|id| (*id, row))),
            None => inserts.push(row),
        }
    }
    updates.sort_unstable_by_key(|(id, _)| *id);
    let (ids, rows): (Vec<Uuid>, Vec<&SessionDataRow>) = updates.into_iter().unzip();
    if !rows.is_empty() {
        let sql = format!(
            "/* update_session_data */
             UPDATE session_data AS s SET {}
             FROM ROWS FROM ({}, unnest(${}::uuid[])) AS t ({}, stored_id) WHERE s.session_data_id = t.stored_id",
            assignments(table, &["session_id", "data_key"]),
            unnest(table),
            table.fields.len() + 1,
            names(table)
        );
        bind(table, sql, &rows, &ChunkIndexes::new()).bind(&ids).execute(&mut *connection).await?;
    }
    insert(connection, table, "insert_session_data", &inserts, "").await?;
    Ok(())
}

async fn insert_revenue(connection: &mut Session, rows: &[RevenueRow]) -> Result<(), sqlx::Error> {
    let rest = "ON CONFLICT (revenue_id) DO NOTHING";
    insert(connection, &tables::REVENUE, "insert_revenue", rows, rest).await?;
    Ok(())
}

async fn insert_dead_letters(
    connection: &mut Session,
    claim: &Claim,
    rows: &[DeadLetter],
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* insert_dead_letters */
         INSERT INTO dashi.dead_letter (log_id, partition, record_offset, reason, record)
         SELECT $1, $2, record_offset, reason, record
         FROM unnest($3::bigint[], $4::text[], $5::bytea[]) AS t (record_offset, reason, record)
         ON CONFLICT DO NOTHING",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(column!(rows, row => row.offset.number() as i64))
    // A reason may quote the record, and text columns cannot hold U+0000.
    .bind(column!(rows, row => row.reason.replace('\0', "\u{fffd}")))
    .bind(column!(rows, row => row.value.as_slice()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Offsets from `to` on may get other records, whose dead letters are not to meet these.
async fn set_dead_letters_aside(
    connection: &mut Session,
    claim: &Claim,
    to: Checkpoint,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "/* set_dead_letters_aside */
         UPDATE dashi.dead_letter SET log_id = $1 || $4 || $5
         WHERE log_id = $1 AND partition = $2 AND record_offset >= $3",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(to.offset().number() as i64)
    .bind(REWOUND)
    .bind(claim.epoch.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// One statement per range; there are few, and hardly ever any.
async fn note_missing(
    connection: &mut Session,
    claim: &Claim,
    missing: &[Missing],
) -> Result<(), sqlx::Error> {
    for Missing { range, records, cause } in missing {
        sqlx::query(
            "/* note_missing */
             INSERT INTO dashi.missing AS m (log_id, partition, number, start_offset, end_offset, records, cause)
             SELECT $1, $2, least(count(*), $7)::integer, $3, $4, $5, $6
             FROM dashi.missing WHERE log_id = $1 AND partition = $2
             ON CONFLICT (log_id, partition, number) DO UPDATE
             SET end_offset = greatest(m.end_offset, excluded.end_offset), records = m.records + excluded.records",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(range.start.number() as i64)
        .bind(range.end.number() as i64)
        .bind(*records as i64)
        .bind(cause.name())
        .bind(RANGES_MAX - 1)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
