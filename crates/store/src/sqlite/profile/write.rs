//! The tables of profiles in a commit's transaction.

use dashi_domain::json::write_string;
use dashi_domain::profile::{
    BaseKey, BaseRow, LinkSource, Person, ProfileLink, ProfileRows, TraitKey, TraitRow, WriteRow,
};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Arguments as _, AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{TRAIT_COLUMNS, stamp, trait_row, value};
use crate::profile::ProfileTables;
use crate::sqlite::insert::{insert, insert_returning, run_for_each};
use crate::sqlite::{text, uuid};
use crate::tables;

impl ProfileTables for SqliteConnection {
    /// The file has one writer at a time.
    async fn hold_erasures(&mut self) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn write_sources(&mut self, sources: &[LinkSource]) -> Result<(), sqlx::Error> {
        let on_conflict = "ON CONFLICT (website_id, by_session, session_id, distinct_id)
            DO UPDATE SET first_at = excluded.first_at WHERE excluded.first_at < first_at";
        insert(self, &tables::LINK_SOURCE, sources, on_conflict).await?;
        Ok(())
    }

    async fn write_links(&mut self, links: &[ProfileLink]) -> Result<Vec<(Uuid, Uuid)>, sqlx::Error> {
        let on_conflict = "ON CONFLICT (website_id, session_id, distinct_id, kind)
            DO UPDATE SET first_at = excluded.first_at WHERE excluded.first_at < first_at
            RETURNING website_id, session_id";
        let written = insert_returning(self, &tables::PROFILE_LINK, links, on_conflict).await?;
        written.iter().map(|row| Ok((uuid(row, "website_id")?, uuid(row, "session_id")?))).collect()
    }

    /// The file has one writer at a time, so nobody has to be locked.
    async fn lock_persons(
        &mut self,
        rows: &[(Person, i64)],
        _sent: &[(Person, i64)],
    ) -> Result<(), sqlx::Error> {
        let sql = "INSERT INTO dashi_profile (website_id, distinct_id, created_at) VALUES (?, ?, ?)
            ON CONFLICT (website_id, distinct_id) DO UPDATE SET created_at = excluded.created_at
            WHERE excluded.created_at < dashi_profile.created_at";
        run_for_each(self, sql, rows, |values, (person, at)| {
            values.add(text(person.website_id))?;
            values.add(&person.distinct_id)?;
            values.add(*at)
        })
        .await
    }

    async fn read_bases(&mut self, keys: &[BaseKey]) -> Result<Vec<BaseRow>, sqlx::Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys =
            json_rows(keys.iter().map(|key| {
                [text(key.session_id), text(key.device), key.distinct_id.clone(), key.key.clone()]
            }));
        let rows = sqlx::query(
            "SELECT b.session_id, b.device, b.distinct_id, b.key, b.data_type, b.string_value, b.number_value,
                    b.date_value, b.received_at, b.event_id
             FROM json_each(?) AS k CROSS JOIN dashi_profile_base AS b
             ON b.session_id = k.value ->> 0 AND b.device = k.value ->> 1
                AND b.distinct_id = k.value ->> 2 AND b.key = k.value ->> 3",
        )
        .bind(keys)
        .fetch_all(self)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(BaseRow {
                    session_id: uuid(row, "session_id")?,
                    device: uuid(row, "device")?,
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
            "SELECT {TRAIT_COLUMNS} FROM json_each(?) AS k CROSS JOIN dashi_profile_trait AS r
             ON r.website_id = k.value ->> 0 AND r.distinct_id = k.value ->> 1 AND r.key = k.value ->> 2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(json_keys(keys)).fetch_all(self).await?;
        rows.iter().map(trait_row).collect()
    }

    async fn read_writes(&mut self, keys: &[TraitKey]) -> Result<Vec<WriteRow>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT w.website_id, w.distinct_id, w.key, w.received_at, w.event_id, w.session_id, w.device,
                    w.data_type, w.string_value, w.number_value, w.date_value, w.base_received_at, w.base_event_id
             FROM json_each(?) AS k CROSS JOIN dashi_profile_write AS w
             ON w.website_id = k.value ->> 0 AND w.distinct_id = k.value ->> 1 AND w.key = k.value ->> 2",
        )
        .bind(json_keys(keys))
        .fetch_all(self)
        .await?;
        rows.iter()
            .map(|row| {
                let has_base = row.try_get::<Option<i64>, _>("base_received_at")?.is_some();
                Ok(WriteRow {
                    website_id: uuid(row, "website_id")?,
                    distinct_id: row.try_get("distinct_id")?,
                    key: row.try_get("key")?,
                    stamp: stamp(row, "received_at", "event_id")?,
                    session_id: uuid(row, "session_id")?,
                    device: uuid(row, "device")?,
                    value: value(row)?,
                    base: has_base.then(|| stamp(row, "base_received_at", "base_event_id")).transpose()?,
                })
            })
            .collect()
    }

    async fn write_rows(&mut self, rows: &ProfileRows) -> Result<(), sqlx::Error> {
        let replaced = tables::PROFILE_BASE.table.replacing(&[]);
        let on_conflict =
            format!("ON CONFLICT (session_id, device, distinct_id, key) DO UPDATE SET {replaced}");
        insert(self, &tables::PROFILE_BASE, &rows.bases, &on_conflict).await?;
        insert(self, &tables::PROFILE_WRITE, &rows.writes, "ON CONFLICT DO NOTHING").await?;
        let replaced = tables::PROFILE_TRAIT.table.replacing(&[]);
        let on_conflict = format!("ON CONFLICT (website_id, distinct_id, key) DO UPDATE SET {replaced}");
        insert(self, &tables::PROFILE_TRAIT, &rows.traits, &on_conflict).await?;
        Ok(())
    }
}

/// Keys as a parameter of `json_each`.
fn json_keys(keys: &[TraitKey]) -> String {
    json_rows(keys.iter().map(|key| [text(key.website_id), key.distinct_id.clone(), key.key.clone()]))
}

/// Rows of texts as a JSON array of arrays.
fn json_rows<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let mut json = String::new();
    for row in rows {
        json.push(if json.is_empty() { '[' } else { ',' });
        for (place, text) in row.iter().enumerate() {
            json.push(if place == 0 { '[' } else { ',' });
            write_string(text, &mut json);
        }
        json.push(']');
    }
    json.push(']');
    json
}
