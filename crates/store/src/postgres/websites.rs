//! Websites on PostgreSQL: Umami's own table.

use sqlx::Row as _;
use uuid::Uuid;

use super::PostgresStore;
use crate::{NewWebsite, StoreError, Website};

impl PostgresStore {
    pub(crate) async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        let doing = "listing websites";
        let rows = sqlx::query(
            "SELECT website_id, name, domain, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms
             FROM website WHERE deleted_at IS NULL ORDER BY created_at, website_id",
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

    pub(crate) async fn remove_website(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let removed = sqlx::query(
            "UPDATE website SET deleted_at = dashi.at_ms($2) WHERE website_id = $1 AND deleted_at IS NULL",
        )
        .bind(id)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("removing a website"))?
        .rows_affected();
        Ok(removed > 0)
    }
}
