//! Websites, links and pixels in a SQLite file.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::insert::Statement;
use super::{SqliteStore, text, uuid};
use crate::recorder::{Recorder, RecorderColumns};
use crate::source::{LinkCampaign, addresses};
use crate::{NewWebsite, Pixel, StoreError, TrackedLink, Website};

impl SqliteStore {
    pub(crate) async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        let doing = "listing websites";
        let rows = sqlx::query(
            "SELECT website_id, name, domain, created_at, replay_enabled, heatmap_enabled, blocked_ips FROM website
             WHERE deleted_at IS NULL ORDER BY created_at, website_id",
        )
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::away(doing))?;
        rows.iter()
            .map(|row| {
                Ok(Website {
                    id: uuid(row, "website_id")?,
                    name: row.try_get("name")?,
                    domain: row.try_get("domain")?,
                    created_at_ms: row.try_get("created_at")?,
                    recorder: Recorder::of(RecorderColumns {
                        replay_enabled: row.try_get("replay_enabled")?,
                        has_heatmaps: true,
                        heatmap_enabled: row.try_get("heatmap_enabled")?,
                        ..RecorderColumns::default()
                    }),
                    blocked_addresses: addresses(row.try_get("blocked_ips")?),
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(StoreError::away(doing))
    }

    pub(crate) async fn add_website(&self, website: &NewWebsite, now_ms: i64) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        let added = sqlx::query(
            "INSERT INTO website (website_id, name, domain, created_at) VALUES (?, ?, ?, ?)
             ON CONFLICT (website_id) DO UPDATE
             SET name = excluded.name, domain = excluded.domain, deleted_at = NULL
             WHERE deleted_at IS NOT NULL",
        )
        .bind(text(website.id))
        .bind(&website.name)
        .bind(&website.domain)
        .bind(now_ms)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("adding a website"))?
        .rows_affected();
        if added == 0 { Err(StoreError::WebsiteExists { id: website.id }) } else { Ok(()) }
    }

    pub(crate) async fn add_first_website(
        &self,
        website: &NewWebsite,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut writer = self.0.writer.alone().await;
        let added = sqlx::query(
            "INSERT INTO website (website_id, name, domain, created_at) SELECT ?, ?, ?, ?
             WHERE NOT EXISTS (SELECT 1 FROM website WHERE deleted_at IS NULL)",
        )
        .bind(text(website.id))
        .bind(&website.name)
        .bind(&website.domain)
        .bind(now_ms)
        .execute(&mut *writer)
        .await
        .map_err(StoreError::away("adding the first website"))?
        .rows_affected();
        Ok(added > 0)
    }

    pub(crate) async fn remove_website(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source("website", id, now_ms).await
    }

    pub(crate) async fn set_recordings(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        let sql = "UPDATE website SET replay_enabled = ? WHERE website_id = ? AND deleted_at IS NULL";
        self.change_website(sqlx::query(sql).bind(taken).bind(text(id))).await
    }

    pub(crate) async fn set_heatmaps(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        let sql = "UPDATE website SET heatmap_enabled = ? WHERE website_id = ? AND deleted_at IS NULL";
        self.change_website(sqlx::query(sql).bind(taken).bind(text(id))).await
    }

    pub(crate) async fn set_blocked_addresses(&self, id: Uuid, addresses: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE website SET blocked_ips = ? WHERE website_id = ? AND deleted_at IS NULL";
        let addresses = Some(addresses.to_owned()).filter(|addresses| !addresses.is_empty());
        self.change_website(sqlx::query(sql).bind(addresses).bind(text(id))).await
    }

    async fn change_website(&self, statement: Statement<'_>) -> Result<bool, StoreError> {
        let mut writer = self.0.writer.alone().await;
        let changed =
            statement.execute(&mut *writer).await.map_err(StoreError::away("changing a website"))?;
        Ok(changed.rows_affected() > 0)
    }

    pub(crate) async fn links(&self) -> Result<Vec<TrackedLink>, StoreError> {
        let sql =
            "SELECT link_id, name, slug, url, utm_source, utm_medium, utm_campaign, utm_term, utm_content
                   FROM link WHERE deleted_at IS NULL ORDER BY slug";
        let link = |row: &SqliteRow| {
            Ok(TrackedLink {
                id: uuid(row, "link_id")?,
                name: row.try_get("name")?,
                slug: row.try_get("slug")?,
                url: row.try_get("url")?,
                campaign: campaign(row)?,
            })
        };
        let rows = sqlx::query(sql).fetch_all(&self.0.readers).await;
        rows.and_then(|rows| rows.iter().map(link).collect()).map_err(StoreError::away("listing links"))
    }

    pub(crate) async fn add_link(&self, link: &TrackedLink, now_ms: i64) -> Result<(), StoreError> {
        let mut statement = sqlx::query(
            "INSERT INTO link (link_id, name, slug, url, created_at,
                 utm_source, utm_medium, utm_campaign, utm_term, utm_content)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(text(link.id))
        .bind(&link.name)
        .bind(&link.slug)
        .bind(&link.url)
        .bind(now_ms);
        for value in link.campaign.values() {
            statement = statement.bind(value);
        }
        self.add_source(statement, "link", &link.slug).await
    }

    pub(crate) async fn remove_link(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source("link", id, now_ms).await
    }

    pub(crate) async fn pixels(&self) -> Result<Vec<Pixel>, StoreError> {
        let sql = "SELECT pixel_id, name, slug FROM pixel WHERE deleted_at IS NULL ORDER BY slug";
        let pixel = |row: &SqliteRow| {
            Ok(Pixel { id: uuid(row, "pixel_id")?, name: row.try_get("name")?, slug: row.try_get("slug")? })
        };
        let rows = sqlx::query(sql).fetch_all(&self.0.readers).await;
        rows.and_then(|rows| rows.iter().map(pixel).collect()).map_err(StoreError::away("listing pixels"))
    }

    pub(crate) async fn add_pixel(&self, pixel: &Pixel, now_ms: i64) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO pixel (pixel_id, name, slug, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(text(pixel.id))
        .bind(&pixel.name)
        .bind(&pixel.slug)
        .bind(now_ms);
        self.add_source(statement, "pixel", &pixel.slug).await
    }

    pub(crate) async fn remove_pixel(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source("pixel", id, now_ms).await
    }

    /// Runs the insert of a link or a pixel, which inserts nothing where its slug or id is taken.
    async fn add_source(
        &self,
        insert: Statement<'_>,
        kind: &'static str,
        slug: &str,
    ) -> Result<(), StoreError> {
        let mut writer = self.0.writer.alone().await;
        let inserted =
            insert.execute(&mut *writer).await.map_err(StoreError::away("adding a link or pixel"))?;
        if inserted.rows_affected() == 0 {
            return Err(StoreError::SlugTaken { kind, slug: slug.to_owned() });
        }
        Ok(())
    }

    /// Marks a row of `website`, `link` or `pixel` removed; returns whether there was one.
    async fn remove_source(&self, table: &str, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let mut writer = self.0.writer.alone().await;
        let sql = format!("UPDATE {table} SET deleted_at = ? WHERE {table}_id = ? AND deleted_at IS NULL");
        let removed = sqlx::query(AssertSqlSafe(sql))
            .bind(now_ms)
            .bind(text(id))
            .execute(&mut *writer)
            .await
            .map_err(StoreError::away("removing a website, link or pixel"))?
            .rows_affected();
        Ok(removed > 0)
    }
}

fn campaign(row: &SqliteRow) -> Result<LinkCampaign, sqlx::Error> {
    let mut values: [Option<String>; 5] = Default::default();
    for (value, name) in values.iter_mut().zip(LinkCampaign::NAMES) {
        *value = row.try_get(name)?;
    }
    Ok(LinkCampaign::of(values))
}
