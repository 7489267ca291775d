//! Erasures: the tables in the transaction, the transactions before it, and what an erasure would delete.

use std::sync::Arc;

use dashi_domain::erasure::{Erasure, ErasureCopy, Subject};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::profile::{ProfileLinkKind, TraitKey};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::PostgresStore;
use super::catalogue::Catalogue;
use super::insert::name_of;
use super::pool::{Session, is_known};
use crate::erasure::{
    Erasable, ErasableRows, ErasureTables, NotedColumns, NotedErasure, erase_piece, noted, session_tables,
};
use crate::error::DriverMessage;
use crate::table::Table;
use crate::{Claim, CommitError, StoreError};

/// Those of the tables with rows of sessions that this version of Umami has.
pub(super) fn there(catalogue: &Catalogue) -> Vec<&'static Table> {
    let mut tables = session_tables().to_vec();
    tables.retain(|table| table.is_own() || catalogue.has_table(table.name));
    tables
}

impl ErasureTables for Session {
    async fn lock_erasures(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("/* lock_erasures */ LOCK TABLE dashi.erasure IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *self)
            .await?;
        Ok(())
    }

    async fn note_copy(
        &mut self,
        claim: &Claim,
        copy: &ErasureCopy,
        at: Offset,
    ) -> Result<bool, sqlx::Error> {
        let noted = sqlx::query(
            "/* note_copy */
             INSERT INTO dashi.erasure_copy (copy_id, erasure_id, log_id, partition, record_offset)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(copy.copy_id)
        .bind(copy.erasure.erasure_id)
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(at.number() as i64)
        .execute(&mut *self)
        .await?;
        Ok(noted.rows_affected() == 1)
    }

    async fn forget_copies(&mut self, claim: &Claim, from: Offset) -> Result<(), sqlx::Error> {
        sqlx::query(
            "/* forget_copies */
             DELETE FROM dashi.erasure_copy WHERE log_id = $1 AND partition = $2 AND record_offset >= $3",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(from.number() as i64)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn note_erasure(&mut self, erasure: &Erasure) -> Result<(), sqlx::Error> {
        sqlx::query(
            "/* note_erasure */
             INSERT INTO dashi.erasure (erasure_id, website_id, kind, subject, erased_at)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(erasure.erasure_id)
        .bind(erasure.website_id)
        .bind(erasure.subject.kind())
        .bind(erasure.subject.text())
        .bind(erasure.erased_at_ms)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn sessions_naming(
        &mut self,
        website_id: Uuid,
        distinct_id: &str,
    ) -> Result<Vec<Uuid>, sqlx::Error> {
        sqlx::query_scalar(
            "/* sessions_naming */
             SELECT session_id FROM dashi.profile_link
             WHERE website_id = $1 AND distinct_id = $2 AND kind = $3 ORDER BY session_id",
        )
        .bind(website_id)
        .bind(distinct_id)
        .bind(ProfileLinkKind::Own.code())
        .fetch_all(&mut *self)
        .await
    }

    async fn sessions_in(
        &mut self,
        table: &'static Table,
        website_id: Uuid,
        after: Uuid,
        limit: u32,
    ) -> Result<Vec<Uuid>, sqlx::Error> {
        let sql = format!(
            "/* sessions_in */ SELECT DISTINCT session_id FROM {}
             WHERE website_id = $1 AND session_id > $2 ORDER BY session_id LIMIT $3",
            name_of(table)
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(website_id)
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&mut *self)
            .await
    }

    async fn delete_event_data(&mut self, website_id: Uuid, sessions: &[Uuid]) -> Result<(), sqlx::Error> {
        sqlx::query(
            "/* delete_event_data */
             DELETE FROM event_data WHERE website_event_id IN
                 (SELECT event_id FROM website_event WHERE website_id = $1 AND session_id = ANY($2))",
        )
        .bind(website_id)
        .bind(sessions)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn delete_rows(
        &mut self,
        table: &'static Table,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> Result<(), sqlx::Error> {
        let sql = format!(
            "/* delete_rows */ DELETE FROM {} WHERE website_id = $1 AND session_id = ANY($2)",
            name_of(table)
        );
        sqlx::query(AssertSqlSafe(sql)).bind(website_id).bind(sessions).execute(&mut *self).await?;
        Ok(())
    }

    async fn delete_links(
        &mut self,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query("/* delete_bases */ DELETE FROM dashi.profile_base WHERE session_id = ANY($1)")
            .bind(sessions)
            .execute(&mut *self)
            .await?;
        let mut people: Vec<String> = sqlx::query_scalar(
            "/* delete_links */
             DELETE FROM dashi.profile_link WHERE website_id = $1 AND session_id = ANY($2) AND kind = $3
             RETURNING distinct_id",
        )
        .bind(website_id)
        .bind(sessions)
        .bind(ProfileLinkKind::Own.code())
        .fetch_all(&mut *self)
        .await?;
        let sources: Vec<(Uuid, String)> = sqlx::query_as(
            "/* delete_sources */
             DELETE FROM dashi.link_source WHERE website_id = $1 AND by_session = ANY($2)
             RETURNING session_id, distinct_id",
        )
        .bind(website_id)
        .bind(sessions)
        .fetch_all(&mut *self)
        .await?;
        if sources.is_empty() {
            return Ok(people);
        }
        const OF: &str = "FROM unnest($3::uuid[], $4::text[]) AS t (session_id, distinct_id)
            LEFT JOIN LATERAL (SELECT min(s.first_at) AS first_at FROM dashi.link_source AS s
                WHERE s.website_id = $1 AND s.session_id = t.session_id AND s.distinct_id = t.distinct_id) AS m ON true";
        const IS: &str = "l.website_id = $1 AND l.kind = $2
            AND l.session_id = t.session_id AND l.distinct_id = t.distinct_id";
        for sql in [
            format!(
                "/* settle_links */ UPDATE dashi.profile_link AS l SET first_at = m.first_at {OF}
                 WHERE {IS} AND m.first_at IS NOT NULL"
            ),
            format!(
                "/* settle_links */ DELETE FROM dashi.profile_link AS l USING {} WHERE {IS} AND m.first_at IS NULL",
                &OF["FROM ".len()..]
            ),
        ] {
            sqlx::query(AssertSqlSafe(sql))
                .bind(website_id)
                .bind(ProfileLinkKind::Anonymous.code())
                .bind(column!(sources, source => source.0))
                .bind(column!(sources, source => source.1.as_str()))
                .execute(&mut *self)
                .await?;
        }
        people.extend(sources.into_iter().map(|(_, person)| person));
        people.sort_unstable();
        people.dedup();
        Ok(people)
    }

    async fn delete_unsourced_links(&mut self, erasure: &Erasure) -> Result<Vec<String>, sqlx::Error> {
        let subject = match erasure.subject {
            Subject::Person(_) => "l.distinct_id = $3",
            Subject::Session(_) => "l.session_id = $3::uuid",
            Subject::Website => "$3 = ''",
        };
        let sql = format!(
            "/* delete_unsourced_links */
             DELETE FROM dashi.profile_link AS l WHERE l.website_id = $1 AND l.kind = $2 AND {subject}
                 AND NOT EXISTS (SELECT 1 FROM dashi.link_source AS s WHERE s.website_id = l.website_id
                     AND s.session_id = l.session_id AND s.distinct_id = l.distinct_id)
             RETURNING l.distinct_id"
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(erasure.website_id)
            .bind(ProfileLinkKind::Anonymous.code())
            .bind(erasure.subject.text())
            .fetch_all(&mut *self)
            .await
    }

    async fn delete_writes(
        &mut self,
        website_id: Uuid,
        people: &[String],
        sessions: &[Uuid],
    ) -> Result<Vec<TraitKey>, sqlx::Error> {
        if people.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<(String, String)> = sqlx::query_as(
            "/* delete_writes */
             DELETE FROM dashi.profile_write
             WHERE website_id = $1 AND distinct_id = ANY($2) AND session_id = ANY($3)
             RETURNING distinct_id, key",
        )
        .bind(website_id)
        .bind(people)
        .bind(sessions)
        .fetch_all(&mut *self)
        .await?;
        Ok(keys.into_iter().map(|(distinct_id, key)| TraitKey { website_id, distinct_id, key }).collect())
    }

    async fn delete_traits(&mut self, keys: &[TraitKey]) -> Result<(), sqlx::Error> {
        if keys.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "/* delete_traits */
             DELETE FROM dashi.profile_trait AS r
             USING unnest($1::uuid[], $2::text[], $3::text[]) AS t (website_id, distinct_id, key)
             WHERE r.website_id = t.website_id AND r.distinct_id = t.distinct_id AND r.key = t.key",
        )
        .bind(column!(keys, key => key.website_id))
        .bind(column!(keys, key => key.distinct_id.as_str()))
        .bind(column!(keys, key => key.key.as_str()))
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn settle_people(&mut self, website_id: Uuid, people: &[String]) -> Result<(), sqlx::Error> {
        if people.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "/* settle_people */
             UPDATE dashi.profile AS p SET created_at = l.first_at
             FROM (SELECT distinct_id, min(first_at) AS first_at FROM dashi.profile_link
                   WHERE website_id = $1 AND distinct_id = ANY($2) GROUP BY distinct_id) AS l
             WHERE p.website_id = $1 AND p.distinct_id = l.distinct_id AND p.created_at <> l.first_at",
        )
        .bind(website_id)
        .bind(people)
        .execute(&mut *self)
        .await?;
        sqlx::query(
            "/* delete_people */
             DELETE FROM dashi.profile AS p WHERE p.website_id = $1 AND p.distinct_id = ANY($2)
                 AND NOT EXISTS (SELECT 1 FROM dashi.profile_link AS l
                     WHERE l.website_id = $1 AND l.distinct_id = p.distinct_id)",
        )
        .bind(website_id)
        .bind(people)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn letters(
        &mut self,
        claim: &Claim,
        from: Offset,
        to: Offset,
        limit: u32,
    ) -> Result<Vec<(Offset, Vec<u8>)>, sqlx::Error> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "/* letters */
             SELECT record_offset, record FROM dashi.dead_letter
             WHERE log_id = $1 AND partition = $2 AND record_offset >= $3 AND record_offset < $4
             ORDER BY record_offset LIMIT $5",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(from.number() as i64)
        .bind(to.number() as i64)
        .bind(i64::from(limit))
        .fetch_all(&mut *self)
        .await?;
        Ok(rows.into_iter().map(|(offset, record)| (Offset::new(offset as u64), record)).collect())
    }

    async fn delete_letters(&mut self, claim: &Claim, offsets: &[Offset]) -> Result<(), sqlx::Error> {
        if offsets.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "/* delete_letters */
             DELETE FROM dashi.dead_letter WHERE log_id = $1 AND partition = $2 AND record_offset = ANY($3)",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(column!(offsets, offset => offset.number() as i64))
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}

impl PostgresStore {
    pub(crate) async fn erase_some(
        &self,
        claim: &Claim,
        from: Checkpoint,
        copy: &ErasureCopy,
        after: Uuid,
    ) -> Result<Option<Uuid>, CommitError> {
        let partition = claim.partition;
        let not_written =
            |error: &sqlx::Error| CommitError::NotWritten { partition, source: DriverMessage::cause(error) };
        let catalogue = self
            .catalogue()
            .await
            .map_err(|error| CommitError::NotWritten { partition, source: Arc::new(error) })?;
        let mut session = self.pool.begin().await.map_err(|error| not_written(&error))?;
        match piece(&mut session, &there(&catalogue), claim, from, copy, after).await {
            Ok(Piece::Done(next)) => match session.commit().await {
                Ok(()) => Ok(next),
                Err(error) if is_known(&error) => Err(not_written(&error)),
                Err(error) => Err(CommitError::Unknown { partition, source: DriverMessage::cause(&error) }),
            },
            Ok(Piece::NotOurs) => {
                session.roll_back().await;
                let row = self.guard_row(claim).await.map_err(|error| not_written(&error))?;
                Err(CommitError::by_guard(claim, from, from, row))
            }
            Err(error) => {
                session.roll_back().await;
                Err(not_written(&error))
            }
        }
    }

    pub(crate) async fn erasable(&self, website_id: Uuid, subject: &Subject) -> Result<Erasable, StoreError> {
        let away = || StoreError::away("counting the rows to erase");
        let catalogue = self.catalogue().await?;
        let there = there(&catalogue);
        let sessions: Vec<Uuid> = match subject {
            Subject::Website => Vec::new(),
            Subject::Session(session_id) => vec![*session_id],
            Subject::Person(distinct_id) => {
                let distinct_id = self.stored_text(distinct_id).await?;
                sqlx::query_scalar(
                    "SELECT session_id FROM dashi.profile_link WHERE website_id = $1 AND distinct_id = $2
                 UNION SELECT session_id FROM session WHERE website_id = $1 AND distinct_id = $2
                 UNION SELECT session_id FROM dashi.identify WHERE website_id = $1 AND distinct_id = $2
                 UNION SELECT session_id FROM session_data WHERE website_id = $1 AND distinct_id = $2
                 ORDER BY 1",
                )
                .bind(website_id)
                .bind(&*distinct_id)
                .fetch_all(&self.pool)
                .await
                .map_err(away())?
            }
        };
        let is_all = *subject == Subject::Website;
        let mut tables = Vec::new();
        let mut count = async |table: &'static str, sql: String| {
            let sql = if is_all {
                sql.replace("{sessions}", "$2::uuid[] IS NOT NULL")
            } else {
                sql.replace("{sessions}", "session_id = ANY($2)")
            };
            let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(website_id)
                .bind(&sessions)
                .fetch_one(&self.pool)
                .await
                .map_err(away())?;
            if rows > 0 {
                tables.push(ErasableRows { table, rows: rows as u64 });
            }
            Ok::<_, StoreError>(())
        };
        count(
            "event_data",
            if is_all {
                "SELECT count(*) FROM event_data WHERE website_id = $1 AND {sessions}".to_owned()
            } else {
                "SELECT count(*) FROM event_data WHERE website_event_id IN
                     (SELECT event_id FROM website_event WHERE website_id = $1 AND {sessions})"
                    .to_owned()
            },
        )
        .await?;
        for table in there {
            let name = name_of(table);
            let sql = format!("SELECT count(*) FROM {name} WHERE website_id = $1 AND {{sessions}}");
            count(table.name, sql).await?;
        }
        for table in ["profile_link", "profile_write"] {
            let sql = format!("SELECT count(*) FROM dashi.{table} WHERE website_id = $1 AND {{sessions}}");
            count(table, sql).await?;
        }
        Ok(Erasable { sessions, tables })
    }

    pub(crate) async fn erasures(&self) -> Result<Vec<NotedErasure>, StoreError> {
        let rows: Vec<NotedColumns<Uuid>> = sqlx::query_as(
            "SELECT e.erasure_id, e.website_id, e.kind, e.subject, e.erased_at,
                    c.log_id, c.partition::bigint, c.record_offset
             FROM dashi.erasure AS e LEFT JOIN dashi.erasure_copy AS c ON c.erasure_id = e.erasure_id
             ORDER BY e.erased_at, e.erasure_id, c.log_id, c.partition, c.record_offset",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away("listing its erasures"))?;
        noted(rows, Ok).map_err(StoreError::away("listing its erasures"))
    }
}

/// The result of a piece of an erasure.
enum Piece {
    /// Some rows are deleted; go on behind this session.
    Done(Option<Uuid>),
    /// Nothing: epoch or checkpoint are others.
    NotOurs,
}

async fn piece(
    session: &mut Session,
    there: &[&'static Table],
    claim: &Claim,
    from: Checkpoint,
    copy: &ErasureCopy,
    after: Uuid,
) -> Result<Piece, sqlx::Error> {
    let held: Option<i32> = sqlx::query_scalar(
        "/* erase_some */
         SELECT 1 FROM dashi.checkpoint WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND checkpoint = $4
         FOR UPDATE",
    )
    .bind(claim.log.as_str())
    .bind(claim.partition.number() as i32)
    .bind(claim.epoch.number() as i64)
    .bind(from.offset().number() as i64)
    .fetch_optional(&mut *session)
    .await?;
    if held.is_none() {
        return Ok(Piece::NotOurs);
    }
    // Another copy of the record was applied before: what came since is not covered.
    let is_applied: bool = sqlx::query_scalar(
        "/* erase_some */ SELECT EXISTS (SELECT 1 FROM dashi.erasure_copy WHERE copy_id = $1)",
    )
    .bind(copy.copy_id)
    .fetch_one(&mut *session)
    .await?;
    if is_applied {
        return Ok(Piece::Done(None));
    }
    Ok(Piece::Done(erase_piece(session, there, claim, copy, from.offset(), after).await?))
}
