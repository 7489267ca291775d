//! Erasures: the tables in the transaction, the transactions before it, and what an erasure would delete.

use dashi_domain::erasure::{Erasure, ErasureCopy, Subject};
use dashi_domain::position::{Checkpoint, Offset};
use dashi_domain::profile::{ProfileLinkKind, TraitKey};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::insert::name_of;
use super::{SqliteStore, guard_row, parse_uuid, text};
use crate::erasure::{
    Erasable, ErasableRows, ErasureTables, NotedColumns, NotedErasure, erase_piece, noted, session_tables,
};
use crate::error::DriverMessage;
use crate::table::Table;
use crate::{Claim, CommitError, StoreError};

/// The tables with rows of sessions. A file has no `session_link`.
pub(super) fn there() -> Vec<&'static Table> {
    let mut tables = session_tables().to_vec();
    tables.retain(|table| table.name != "session_link");
    tables
}

impl ErasureTables for SqliteConnection {
    /// The file has one writer at a time. Deleted content is overwritten from now on, not only left out.
    async fn lock_erasures(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("PRAGMA secure_delete = ON").execute(&mut *self).await?;
        Ok(())
    }

    async fn note_copy(
        &mut self,
        claim: &Claim,
        copy: &ErasureCopy,
        at: Offset,
    ) -> Result<bool, sqlx::Error> {
        let noted = sqlx::query(
            "INSERT INTO dashi_erasure_copy (copy_id, erasure_id, log_id, partition, record_offset)
             VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(text(copy.copy_id))
        .bind(text(copy.erasure.erasure_id))
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(at.number() as i64)
        .execute(&mut *self)
        .await?;
        Ok(noted.rows_affected() == 1)
    }

    async fn forget_copies(&mut self, claim: &Claim, from: Offset) -> Result<(), sqlx::Error> {
        sqlx::query(
            "DELETE FROM dashi_erasure_copy WHERE log_id = ? AND partition = ? AND record_offset >= ?",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(from.number() as i64)
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn note_erasure(&mut self, erasure: &Erasure) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO dashi_erasure (erasure_id, website_id, kind, subject, erased_at)
             VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(text(erasure.erasure_id))
        .bind(text(erasure.website_id))
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
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT session_id FROM dashi_profile_link
             WHERE website_id = ? AND distinct_id = ? AND kind = ? ORDER BY session_id",
        )
        .bind(text(website_id))
        .bind(distinct_id)
        .bind(ProfileLinkKind::Own.code())
        .fetch_all(&mut *self)
        .await?;
        uuids(rows)
    }

    async fn sessions_in(
        &mut self,
        table: &'static Table,
        website_id: Uuid,
        after: Uuid,
        limit: u32,
    ) -> Result<Vec<Uuid>, sqlx::Error> {
        let sql = format!(
            "SELECT DISTINCT session_id FROM {}
             WHERE website_id = ? AND session_id > ? ORDER BY session_id LIMIT ?",
            name_of(table)
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(text(website_id))
            .bind(text(after))
            .bind(limit)
            .fetch_all(&mut *self)
            .await?;
        uuids(rows)
    }

    async fn delete_event_data(&mut self, website_id: Uuid, sessions: &[Uuid]) -> Result<(), sqlx::Error> {
        // By the events, whose sessions have an index.
        sqlx::query(
            "DELETE FROM event_data WHERE website_event_id IN
                 (SELECT event_id FROM website_event
                  WHERE session_id IN (SELECT value FROM json_each(?)) AND +website_id = ?)",
        )
        .bind(list(sessions))
        .bind(text(website_id))
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
            "DELETE FROM {} WHERE +website_id = ? AND session_id IN (SELECT value FROM json_each(?))",
            name_of(table)
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(text(website_id))
            .bind(list(sessions))
            .execute(&mut *self)
            .await?;
        Ok(())
    }

    async fn delete_links(
        &mut self,
        website_id: Uuid,
        sessions: &[Uuid],
    ) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query("DELETE FROM dashi_profile_base WHERE session_id IN (SELECT value FROM json_each(?))")
            .bind(list(sessions))
            .execute(&mut *self)
            .await?;
        let mut people: Vec<String> = sqlx::query_scalar(
            "DELETE FROM dashi_profile_link
             WHERE website_id = ? AND session_id IN (SELECT value FROM json_each(?)) AND kind = ?
             RETURNING distinct_id",
        )
        .bind(text(website_id))
        .bind(list(sessions))
        .bind(ProfileLinkKind::Own.code())
        .fetch_all(&mut *self)
        .await?;
        let sources: Vec<(String, String)> = sqlx::query_as(
            "DELETE FROM dashi_link_source
             WHERE website_id = ? AND by_session IN (SELECT value FROM json_each(?))
             RETURNING session_id, distinct_id",
        )
        .bind(text(website_id))
        .bind(list(sessions))
        .fetch_all(&mut *self)
        .await?;
        for (session_id, distinct_id) in &sources {
            let first: Option<i64> = sqlx::query_scalar(
                "SELECT min(first_at) FROM dashi_link_source
                 WHERE website_id = ? AND session_id = ? AND distinct_id = ?",
            )
            .bind(text(website_id))
            .bind(session_id)
            .bind(distinct_id)
            .fetch_one(&mut *self)
            .await?;
            let sql = match first {
                Some(_) => "UPDATE dashi_profile_link SET first_at = ?1",
                None => "DELETE FROM dashi_profile_link",
            };
            let sql = format!(
                "{sql} WHERE website_id = ?2 AND session_id = ?3 AND distinct_id = ?4 AND kind = ?5
                   AND (?1 IS NULL OR first_at <> ?1)"
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(first)
                .bind(text(website_id))
                .bind(session_id)
                .bind(distinct_id)
                .bind(ProfileLinkKind::Anonymous.code())
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
            Subject::Person(_) => "distinct_id = ?3",
            Subject::Session(_) => "session_id = ?3",
            Subject::Website => "?3 = ''",
        };
        let sql = format!(
            "DELETE FROM dashi_profile_link AS l WHERE website_id = ?1 AND kind = ?2 AND {subject}
                 AND NOT EXISTS (SELECT 1 FROM dashi_link_source AS s WHERE s.website_id = l.website_id
                     AND s.session_id = l.session_id AND s.distinct_id = l.distinct_id)
             RETURNING distinct_id"
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(text(erasure.website_id))
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
            "DELETE FROM dashi_profile_write
             WHERE website_id = ? AND distinct_id IN (SELECT value FROM json_each(?))
               AND session_id IN (SELECT value FROM json_each(?))
             RETURNING distinct_id, key",
        )
        .bind(text(website_id))
        .bind(texts(people))
        .bind(list(sessions))
        .fetch_all(&mut *self)
        .await?;
        Ok(keys.into_iter().map(|(distinct_id, key)| TraitKey { website_id, distinct_id, key }).collect())
    }

    async fn delete_traits(&mut self, keys: &[TraitKey]) -> Result<(), sqlx::Error> {
        for key in keys {
            sqlx::query(
                "DELETE FROM dashi_profile_trait WHERE website_id = ? AND distinct_id = ? AND key = ?",
            )
            .bind(text(key.website_id))
            .bind(&key.distinct_id)
            .bind(&key.key)
            .execute(&mut *self)
            .await?;
        }
        Ok(())
    }

    async fn settle_people(&mut self, website_id: Uuid, people: &[String]) -> Result<(), sqlx::Error> {
        if people.is_empty() {
            return Ok(());
        }
        const FIRST: &str = "(SELECT min(first_at) FROM dashi_profile_link AS l
            WHERE l.website_id = p.website_id AND l.distinct_id = p.distinct_id)";
        for sql in [
            format!("DELETE FROM dashi_profile AS p WHERE {FIRST} IS NULL"),
            format!("UPDATE dashi_profile AS p SET created_at = {FIRST} WHERE created_at <> {FIRST}"),
        ] {
            let sql =
                format!("{sql} AND p.website_id = ? AND p.distinct_id IN (SELECT value FROM json_each(?))");
            sqlx::query(AssertSqlSafe(sql))
                .bind(text(website_id))
                .bind(texts(people))
                .execute(&mut *self)
                .await?;
        }
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
            "SELECT record_offset, record FROM dashi_dead_letter
             WHERE log_id = ? AND partition = ? AND record_offset >= ? AND record_offset < ?
             ORDER BY record_offset LIMIT ?",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number())
        .bind(from.number() as i64)
        .bind(to.number() as i64)
        .bind(limit)
        .fetch_all(&mut *self)
        .await?;
        Ok(rows.into_iter().map(|(offset, record)| (Offset::new(offset as u64), record)).collect())
    }

    async fn delete_letters(&mut self, claim: &Claim, offsets: &[Offset]) -> Result<(), sqlx::Error> {
        for offset in offsets {
            sqlx::query(
                "DELETE FROM dashi_dead_letter WHERE log_id = ? AND partition = ? AND record_offset = ?",
            )
            .bind(claim.log.as_str())
            .bind(claim.partition.number())
            .bind(offset.number() as i64)
            .execute(&mut *self)
            .await?;
        }
        Ok(())
    }
}

fn uuids(rows: Vec<String>) -> Result<Vec<Uuid>, sqlx::Error> {
    rows.iter().map(|id| parse_uuid(id)).collect()
}

/// Sessions as a parameter of `json_each`.
fn list(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("\"{}\"", text(*id))).collect();
    format!("[{}]", ids.join(","))
}

/// Texts as a parameter of `json_each`.
fn texts(texts: &[String]) -> String {
    let mut json = String::from("[");
    for (place, text) in texts.iter().enumerate() {
        if place > 0 {
            json.push(',');
        }
        dashi_domain::json::write_string(text, &mut json);
    }
    json.push(']');
    json
}

impl SqliteStore {
    pub(crate) async fn erase_some(
        &self,
        claim: &Claim,
        from: Checkpoint,
        copy: &ErasureCopy,
        after: Uuid,
    ) -> Result<Option<Uuid>, CommitError> {
        let mut writer = self.0.writer.alone().await;
        let outcome = piece(&mut writer, claim, from, copy, after).await;
        if matches!(outcome, Err(CommitError::Unknown { .. } | CommitError::NotWritten { .. })) {
            writer.renew().await;
        }
        outcome
    }

    pub(crate) async fn erasable(&self, website_id: Uuid, subject: &Subject) -> Result<Erasable, StoreError> {
        let away = || StoreError::away("counting the rows to erase");
        let sessions: Vec<Uuid> = match subject {
            Subject::Website => Vec::new(),
            Subject::Session(session_id) => vec![*session_id],
            Subject::Person(distinct_id) => {
                let rows: Vec<String> = sqlx::query_scalar(
                    "SELECT session_id FROM dashi_profile_link WHERE website_id = ?1 AND distinct_id = ?2
                     UNION SELECT session_id FROM session WHERE website_id = ?1 AND distinct_id = ?2
                     UNION SELECT session_id FROM dashi_identify WHERE website_id = ?1 AND distinct_id = ?2
                     UNION SELECT session_id FROM session_data WHERE website_id = ?1 AND distinct_id = ?2
                     ORDER BY 1",
                )
                .bind(text(website_id))
                .bind(distinct_id.as_str())
                .fetch_all(&self.0.readers)
                .await
                .map_err(away())?;
                uuids(rows).map_err(away())?
            }
        };
        let is_all = *subject == Subject::Website;
        let of_sessions =
            if is_all { "?2 IS NOT NULL" } else { "session_id IN (SELECT value FROM json_each(?2))" };
        // Without the `+`, a count of some sessions' rows could read all of the website's.
        let website = if is_all { "website_id" } else { "+website_id" };
        let chosen = format!("{website} = ?1 AND {of_sessions}");
        let event_data = if is_all {
            format!("SELECT count(*) FROM event_data WHERE {chosen}")
        } else {
            format!(
                "SELECT count(*) FROM event_data WHERE website_event_id IN
                     (SELECT event_id FROM website_event WHERE {chosen})"
            )
        };
        let mut queries = vec![("event_data", event_data)];
        for table in there() {
            queries.push((table.name, format!("SELECT count(*) FROM {} WHERE {chosen}", name_of(table))));
        }
        for table in ["profile_link", "profile_write"] {
            // Their keys begin with the website.
            let sql = format!("SELECT count(*) FROM dashi_{table} WHERE website_id = ?1 AND {of_sessions}");
            queries.push((table, sql));
        }
        let mut tables = Vec::new();
        for (table, sql) in queries {
            let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
                .bind(text(website_id))
                .bind(list(&sessions))
                .fetch_one(&self.0.readers)
                .await
                .map_err(away())?;
            if rows > 0 {
                tables.push(ErasableRows { table, rows: rows as u64 });
            }
        }
        Ok(Erasable { sessions, tables })
    }

    pub(crate) async fn erasures(&self) -> Result<Vec<NotedErasure>, StoreError> {
        let doing = "listing its erasures";
        let rows: Vec<NotedColumns<String>> = sqlx::query_as(
            "SELECT e.erasure_id, e.website_id, e.kind, e.subject, e.erased_at,
                    c.log_id, c.partition, c.record_offset
             FROM dashi_erasure AS e LEFT JOIN dashi_erasure_copy AS c ON c.erasure_id = e.erasure_id
             ORDER BY e.erased_at, e.erasure_id, c.log_id, c.partition, c.record_offset",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        noted(rows, |id| parse_uuid(&id)).map_err(StoreError::away(doing))
    }
}

async fn piece(
    writer: &mut SqliteConnection,
    claim: &Claim,
    from: Checkpoint,
    copy: &ErasureCopy,
    after: Uuid,
) -> Result<Option<Uuid>, CommitError> {
    let partition = claim.partition;
    let failed =
        |error: sqlx::Error| CommitError::NotWritten { partition, source: DriverMessage::cause(&error) };
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let row = guard_row(&mut tx, claim).await.map_err(failed)?;
    if (row.epoch, row.checkpoint) != (claim.epoch, from) {
        tx.rollback().await.map_err(failed)?;
        return Err(CommitError::by_guard(claim, from, from, row));
    }
    // Another copy of the record was applied before: what came since is not covered.
    let is_applied: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM dashi_erasure_copy WHERE copy_id = ?)")
            .bind(text(copy.copy_id))
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
    let next = if is_applied {
        None
    } else {
        erase_piece(&mut *tx, &there(), claim, copy, from.offset(), after).await.map_err(failed)?
    };
    tx.commit()
        .await
        .map_err(|error| CommitError::Unknown { partition, source: DriverMessage::cause(&error) })?;
    Ok(next)
}
