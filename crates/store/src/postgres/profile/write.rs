//! The tables of profiles in a commit's transaction.

use dashi_domain::profile::{
    BaseKey, BaseRow, LinkSource, Person, ProfileLink, ProfileRows, Stamp, TraitKey, TraitRow, WriteRow,
};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{TRAIT_COLUMNS, stamp, trait_row, value};
use crate::postgres::insert::{ChunkIndexes, bind, insert, names, unnest};
use crate::postgres::pool::Session;
use crate::profile::ProfileTables;
use crate::tables;

impl ProfileTables for Session {
    async fn hold_erasures(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("/* hold_erasures */ LOCK TABLE dashi.erasure IN ACCESS SHARE MODE")
            .execute(&mut *self)
            .await?;
        Ok(())
    }

    async fn write_sources(&mut self, sources: &[LinkSource]) -> Result<(), sqlx::Error> {
        let rest = "ON CONFLICT (website_id, by_session, session_id, distinct_id)
                DO UPDATE SET first_at = excluded.first_at WHERE excluded.first_at < link_source.first_at";
        insert(self, &tables::LINK_SOURCE, None, "write_sources", sources, rest).await?;
        Ok(())
    }

    /// Website and session of the links that are new or older than the stored ones. Other links are not touched.
    async fn write_links(&mut self, rows: &[ProfileLink]) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
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
        let written =
            bind(&tables::PROFILE_LINK, sql, rows, &ChunkIndexes::new()).fetch_all(&mut *self).await?;
        written.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Adds people, and locks those that sends are about, so that nobody else merges sends of theirs until the transaction
    /// ends. All of it is one statement that goes through them in their order: with a second one, a writer that has added
    /// a later person could wait for an earlier one whose writer waits for it. People that are there and as old and that no
    /// send is about are not touched.
    async fn lock_persons(
        &mut self,
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
        .execute(&mut *self)
        .await?;
        Ok(())
    }

    async fn read_bases(&mut self, keys: &[BaseKey]) -> Result<Vec<BaseRow>, sqlx::Error> {
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
    .fetch_all(&mut *self)
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

    async fn read_traits(&mut self, keys: &[TraitKey]) -> Result<Vec<TraitRow>, sqlx::Error> {
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
            .fetch_all(&mut *self)
            .await?;
        rows.iter().map(trait_row).collect()
    }

    async fn read_writes(&mut self, keys: &[TraitKey]) -> Result<Vec<WriteRow>, sqlx::Error> {
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
    .fetch_all(&mut *self)
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

    async fn write_rows(&mut self, rows: &ProfileRows) -> Result<(), sqlx::Error> {
        let replaced = tables::PROFILE_BASE.table.replacing(&[]);
        let rest = format!("ON CONFLICT (session_id, device, distinct_id, key) DO UPDATE SET {replaced}");
        insert(self, &tables::PROFILE_BASE, None, "write_bases", &rows.bases, &rest).await?;
        insert(self, &tables::PROFILE_WRITE, None, "write_writes", &rows.writes, "ON CONFLICT DO NOTHING")
            .await?;
        let replaced = tables::PROFILE_TRAIT.table.replacing(&[]);
        let rest = format!("ON CONFLICT (website_id, distinct_id, key) DO UPDATE SET {replaced}");
        insert(self, &tables::PROFILE_TRAIT, None, "write_traits", &rows.traits, &rest).await?;
        Ok(())
    }
}
