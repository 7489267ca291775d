//! Websites, links and pixels on PostgreSQL: Umami's own tables.

use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{PostgresStore, schema};
use crate::recorder::{Recorder, RecorderColumns};
use crate::source::{LinkCampaign, addresses};
use crate::{NewWebsite, Pixel, StoreError, TrackedLink, Website};

/// Switches one of a recorder's two tasks; the recorder is on while one of them is.
macro_rules! configure {
    ($task:literal, $other:literal) => {
        concat!(
            "UPDATE website
             SET replay_config = (CASE WHEN jsonb_typeof(replay_config) = 'object' THEN replay_config ELSE '{}' END)
                     || jsonb_build_object('",
            $task,
            "', $2::boolean),
                 recorder_enabled = $2 OR coalesce(replay_config -> '",
            $other,
            "' = 'true', false)
             WHERE website_id = $1 AND deleted_at IS NULL"
        )
    };
}

/// PostgreSQL's code for a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";

impl PostgresStore {
    pub(crate) async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        let doing = "listing websites";
        let rows = sqlx::query(
            // As text: a prepared statement fails for good when Umami changes the width of a column that it returns.
            // By way of JSON, for older versions of Umami have no such column.
            "SELECT website_id, name::text, domain::text, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
                    (to_jsonb(w) ->> 'replay_enabled')::boolean AS replay_enabled,
                    (to_jsonb(w) ->> 'recorder_enabled')::boolean AS recorder_enabled,
                    to_jsonb(w) ->> 'replay_config' AS replay_config,
                    to_jsonb(w) ->> 'blocked_ips' AS blocked_ips,
                    to_regclass('heatmap_event') IS NOT NULL AS has_heatmaps
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
                    recorder: Recorder::of(RecorderColumns {
                        replay_enabled: row.try_get("replay_enabled")?,
                        recorder_enabled: row.try_get("recorder_enabled")?,
                        config: row.try_get("replay_config")?,
                        has_heatmaps: row.try_get("has_heatmaps")?,
                        heatmap_enabled: None,
                    }),
                    blocked_addresses: addresses(row.try_get("blocked_ips")?),
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
        self.remove_source("website", id, now_ms).await
    }

    pub(crate) async fn set_recordings(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        let catalogue = self.read_catalogue().await?;
        let sql = if catalogue.has_column("website", "recorder_enabled") {
            configure!("replayEnabled", "heatmapEnabled")
        } else if catalogue.has_column("website", "replay_enabled") {
            "UPDATE website SET replay_enabled = $2 WHERE website_id = $1 AND deleted_at IS NULL"
        } else {
            return Err(StoreError::NotInThisVersion {
                what: "recordings",
                table: "website",
                columns: "replay_enabled or recorder_enabled",
            });
        };
        self.change_website(sqlx::query(sql).bind(id).bind(taken)).await
    }

    pub(crate) async fn set_heatmaps(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        if !self.read_catalogue().await?.has_column("website", "recorder_enabled") {
            return Err(StoreError::NotInThisVersion {
                what: "heatmaps that are posted",
                table: "website",
                columns: "recorder_enabled",
            });
        }
        let sql = configure!("heatmapEnabled", "replayEnabled");
        self.change_website(sqlx::query(sql).bind(id).bind(taken)).await
    }

    pub(crate) async fn set_blocked_addresses(&self, id: Uuid, addresses: &str) -> Result<bool, StoreError> {
        if !self.read_catalogue().await?.has_column("website", "blocked_ips") {
            return Err(StoreError::NotInThisVersion {
                what: "addresses that one website blocks",
                table: "website",
                columns: "blocked_ips",
            });
        }
        let kind: String = sqlx::query_scalar(
            "SELECT format_type(atttypid, NULL)::text FROM pg_catalog.pg_attribute
             WHERE attrelid = to_regclass('website') AND attname = 'blocked_ips'",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away("reading the type of a column"))?;
        // Its versions have a text, a JSON array, or an array.
        let value = match kind.as_str() {
            "json" | "jsonb" => format!("to_jsonb(regexp_split_to_array(nullif($2, ''), '[,\\s]+'))::{kind}"),
            kind if kind.ends_with("[]") => {
                format!("regexp_split_to_array(nullif($2, ''), '[,\\s]+')::{kind}")
            }
            _ => "nullif($2, '')".to_owned(),
        };
        let sql =
            format!("UPDATE website SET blocked_ips = {value} WHERE website_id = $1 AND deleted_at IS NULL");
        self.change_website(sqlx::query(AssertSqlSafe(sql)).bind(id).bind(addresses)).await
    }

    async fn change_website(&self, statement: Query<'_, Postgres, PgArguments>) -> Result<bool, StoreError> {
        let changed = statement.execute(&self.pool).await.map_err(StoreError::away("changing a website"))?;
        Ok(changed.rows_affected() > 0)
    }

    pub(crate) async fn links(&self) -> Result<Vec<TrackedLink>, StoreError> {
        let doing = "listing links";
        // By way of JSON, for not every version of Umami has the columns.
        let sql = "SELECT link_id, name::text, slug::text, url::text,
                       to_jsonb(l) ->> 'utm_source' AS utm_source, to_jsonb(l) ->> 'utm_medium' AS utm_medium,
                       to_jsonb(l) ->> 'utm_campaign' AS utm_campaign, to_jsonb(l) ->> 'utm_term' AS utm_term,
                       to_jsonb(l) ->> 'utm_content' AS utm_content
                   FROM link AS l WHERE deleted_at IS NULL ORDER BY slug";
        let link = |row: &PgRow| {
            Ok(TrackedLink {
                id: row.try_get("link_id")?,
                name: row.try_get("name")?,
                slug: row.try_get("slug")?,
                url: row.try_get("url")?,
                campaign: campaign(row)?,
            })
        };
        let rows = rows_if_there(sqlx::query(sql).fetch_all(&self.pool).await);
        rows.and_then(|rows| rows.iter().map(link).collect()).map_err(StoreError::away(doing))
    }

    pub(crate) async fn add_link(&self, link: &TrackedLink, now_ms: i64) -> Result<(), StoreError> {
        let sql = if link.campaign.is_empty() {
            // Whether or not this version has the columns.
            "INSERT INTO link (link_id, name, slug, url, created_at) VALUES ($1, $2, $3, $4, dashi.at_ms($5))
             ON CONFLICT DO NOTHING"
        } else if self.read_catalogue().await?.has_column("link", "utm_source") {
            "INSERT INTO link (link_id, name, slug, url, created_at,
                 utm_source, utm_medium, utm_campaign, utm_term, utm_content)
             VALUES ($1, $2, $3, $4, dashi.at_ms($5), $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING"
        } else {
            return Err(StoreError::NotInThisVersion {
                what: "campaign parameters of links",
                table: "link",
                columns: "utm_source",
            });
        };
        let mut statement =
            sqlx::query(sql).bind(link.id).bind(&link.name).bind(&link.slug).bind(&link.url).bind(now_ms);
        if !link.campaign.is_empty() {
            for value in link.campaign.values() {
                statement = statement.bind(value);
            }
        }
        self.add_source(statement, "link", &link.slug).await
    }

    pub(crate) async fn remove_link(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        self.remove_source("link", id, now_ms).await
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
        let statement = sqlx::query(
            "INSERT INTO pixel (pixel_id, name, slug, created_at) VALUES ($1, $2, $3, dashi.at_ms($4))
             ON CONFLICT DO NOTHING",
        )
        .bind(pixel.id)
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
        insert: Query<'_, Postgres, PgArguments>,
        kind: &'static str,
        slug: &str,
    ) -> Result<(), StoreError> {
        let inserted =
            insert.execute(&self.pool).await.map_err(StoreError::away("adding a link or pixel"))?;
        if inserted.rows_affected() == 0 {
            return Err(StoreError::SlugTaken { kind, slug: slug.to_owned() });
        }
        Ok(())
    }

    /// Marks a row of `website`, `link` or `pixel` removed; returns whether there was one.
    async fn remove_source(&self, table: &str, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE {table} SET deleted_at = dashi.at_ms($2) WHERE {table}_id = $1 AND deleted_at IS NULL"
        );
        let removed = sqlx::query(AssertSqlSafe(sql))
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

fn campaign(row: &PgRow) -> Result<LinkCampaign, sqlx::Error> {
    let mut values: [Option<String>; 5] = Default::default();
    for (value, name) in values.iter_mut().zip(LinkCampaign::NAMES) {
        *value = row.try_get(name)?;
    }
    Ok(LinkCampaign::of(values))
}
