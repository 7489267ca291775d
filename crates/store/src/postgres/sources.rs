//! Websites, links and pixels on PostgreSQL: Umami's own tables.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{PostgresStore, schema};
use crate::{Link, NewWebsite, Pixel, StoreError, Website};

/// PostgreSQL's code for a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";

impl PostgresStore {
    pub(crate) async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        let doing = "listing websites";
        let rows = sqlx::query(
            // As text: a prepared statement fails for good when Umami changes the width of a column that it returns.
            // By way of JSON, for older versions of Umami have no such column.
            "SELECT website_id, name::text, domain::text, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
                    coalesce((to_jsonb(w) ->> 'replay_enabled')::boolean, false) AS records
             FROM website AS w WHERE deleted_at IS NULL ORDER BY created_at, website_id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        rows.iter()
            .map(|row| {
                Ok(Website {
                    id: row.try_get("website_id")?,
                    name: row.try_get("name")?,
                    domain: row.try_get("domain")?,
                    created_at_ms: row.try_get("created_at_ms")?,
                    takes_recordings: row.try_get("records")?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(StoreError::away(doing))
    }

    pub(crate) async fn add_website(&self, website: &NewWebsite, now_ms: i64) -> Result<(), StoreError> {
        let added = sqlx::query(
            "INSERT INTO website (website_id, name, domain, created_at) VALUES ($1, $2, $3, dashi.at_ms($4))
             ON CONFLICT (website_id) DO UPDATE
             SET name = excluded.name, domain = excluded.domain, deleted_at = NULL
             WHERE website.deleted_at IS NOT NULL",
        )
        .bind(website.id)
        .bind(&website.name)
        .bind(&website.domain)
        .bind(now_ms)
        .execute(&self.pool)
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
        let add = async {
            let mut session = self.pool.begin().await?;
            schema::lock(&mut session).await?;
            let added = sqlx::query(
                "INSERT INTO website (website_id, name, domain, created_at) SELECT $1, $2, $3, dashi.at_ms($4)
                 WHERE NOT EXISTS (SELECT 1 FROM website) AND to_regclass('_prisma_migrations') IS NULL",
            )
            .bind(website.id)
            .bind(&website.name)
            .bind(&website.domain)
            .bind(now_ms)
            .execute(&mut session)
            .await?
            .rows_affected();
            session.commit().await?;
            Ok(added > 0)
        };
        add.await.map_err(StoreError::away("adding the first website"))
    }

    pub(crate) async fn remove_website(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source(
            "UPDATE website SET deleted_at = dashi.at_ms($2) WHERE website_id = $1 AND deleted_at IS NULL",
            id,
            now_ms,
        )
        .await
    }

    pub(crate) async fn set_recording(&self, id: Uuid, records: bool) -> Result<bool, StoreError> {
        let set = sqlx::query(
            "UPDATE website SET replay_enabled = $2 WHERE website_id = $1 AND deleted_at IS NULL",
        )
        .bind(id)
        .bind(records)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("changing a website"))?
        .rows_affected();
        Ok(set > 0)
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, StoreError> {
        let doing = "listing links";
        let sql = "SELECT link_id, name::text, slug::text, url::text FROM link WHERE deleted_at IS NULL ORDER BY slug";
        let link = |row: &PgRow| {
            Ok(Link {
                id: row.try_get("link_id")?,
                name: row.try_get("name")?,
                slug: row.try_get("slug")?,
                url: row.try_get("url")?,
            })
        };
        let rows = rows_if_there(sqlx::query(sql).fetch_all(&self.pool).await);
        rows.and_then(|rows| rows.iter().map(link).collect()).map_err(StoreError::away(doing))
    }

    pub(crate) async fn add_link(&self, link: &Link, now_ms: i64) -> Result<(), StoreError> {
        let added = sqlx::query(
            "INSERT INTO link (link_id, name, slug, url, created_at) VALUES ($1, $2, $3, $4, dashi.at_ms($5))
             ON CONFLICT DO NOTHING",
        )
        .bind(link.id)
        .bind(&link.name)
        .bind(&link.slug)
        .bind(&link.url)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("adding a link"))?
        .rows_affected();
        if added == 0 { Err(StoreError::SlugTaken { kind: "link", slug: link.slug.clone() }) } else { Ok(()) }
    }

    pub(crate) async fn remove_link(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source(
            "UPDATE link SET deleted_at = dashi.at_ms($2) WHERE link_id = $1 AND deleted_at IS NULL",
            id,
            now_ms,
        )
        .await
    }

    pub(crate) async fn pixels(&self) -> Result<Vec<Pixel>, StoreError> {
        let doing = "listing pixels";
        let sql = "SELECT pixel_id, name::text, slug::text FROM pixel WHERE deleted_at IS NULL ORDER BY slug";
        let pixel = |row: &PgRow| {
            Ok(Pixel { id: row.try_get("pixel_id")?, name: row.try_get("name")?, slug: row.try_get("slug")? })
        };
        let rows = rows_if_there(sqlx::query(sql).fetch_all(&self.pool).await);
        rows.and_then(|rows| rows.iter().map(pixel).collect()).map_err(StoreError::away(doing))
    }

    pub(crate) async fn add_pixel(&self, pixel: &Pixel, now_ms: i64) -> Result<(), StoreError> {
        let added = sqlx::query(
            "INSERT INTO pixel (pixel_id, name, slug, created_at) VALUES ($1, $2, $3, dashi.at_ms($4))
             ON CONFLICT DO NOTHING",
        )
        .bind(pixel.id)
        .bind(&pixel.name)
        .bind(&pixel.slug)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("adding a pixel"))?
        .rows_affected();
        if added == 0 {
            Err(StoreError::SlugTaken { kind: "pixel", slug: pixel.slug.clone() })
        } else {
            Ok(())
        }
    }

    pub(crate) async fn remove_pixel(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source(
            "UPDATE pixel SET deleted_at = dashi.at_ms($2) WHERE pixel_id = $1 AND deleted_at IS NULL",
            id,
            now_ms,
        )
        .await
    }

    async fn remove_source(&self, sql: &'static str, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let removed = sqlx::query(sql)
            .bind(id)
            .bind(now_ms)
            .execute(&self.pool)
            .await
            .map_err(StoreError::away("removing a website, link or pixel"))?
            .rows_affected();
        Ok(removed > 0)
    }
}

/// No rows where there is no table.
fn rows_if_there(rows: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<PgRow>, sqlx::Error> {
    match rows {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            Ok(Vec::new())
        }
        rows => rows,
    }
}
