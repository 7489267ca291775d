//! The websites themselves.

use async_recursion::async_recursion as boxed;
use uuid::Uuid;

use super::{AnswerRow, Dialect, Questions, Sql, each};
use crate::StoreError;

/// A website. On PostgreSQL also the parts that only Umami writes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the column of that name; times are milliseconds since 1970")]
pub struct WebsiteRow {
    pub website_id: Uuid,
    pub name: String,
    pub domain: Option<String>,
    pub reset_at_ms: Option<i64>,
    pub user_id: Option<Uuid>,
    pub team_id: Option<Uuid>,
    pub created_by: Option<Uuid>,
    pub created_at_ms: Option<i64>,
    pub updated_at_ms: Option<i64>,
}

/// A thing that events are of and that is not removed: a website, link or pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRow {
    /// Events before this moment, in milliseconds since 1970, are not shown: the website was reset then.
    pub reset_at_ms: Option<i64>,
}

/// The order of a list of websites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebsiteOrder {
    /// By name.
    Name,
    /// By domain.
    Domain,
    /// By the time of making.
    CreatedAt,
}

fn columns(dialect: Dialect) -> String {
    let (reset, user, team, by, updated) = match dialect {
        Dialect::Postgres => (
            dialect.at_ms("w.reset_at"),
            "CAST(w.user_id AS text)",
            "CAST(w.team_id AS text)",
            "CAST(w.created_by AS text)",
            dialect.at_ms("w.updated_at"),
        ),
        Dialect::Sqlite => ("NULL".to_owned(), "NULL", "NULL", "NULL", "NULL".to_owned()),
    };
    format!(
        "CAST(w.website_id AS text), CAST(w.name AS text), CAST(w.domain AS text), {reset}, {user}, {team}, {by},
         {}, {updated}",
        dialect.at_ms("w.created_at")
    )
}

fn read(row: &AnswerRow) -> Result<WebsiteRow, sqlx::Error> {
    Ok(WebsiteRow {
        website_id: row.id(0)?,
        name: row.text(1)?,
        domain: row.optional_text(2)?,
        reset_at_ms: row.optional_number(3)?,
        user_id: row.optional_id(4)?,
        team_id: row.optional_id(5)?,
        created_by: row.optional_id(6)?,
        created_at_ms: row.optional_number(7)?,
        updated_at_ms: row.optional_number(8)?,
    })
}

impl Questions {
    /// The websites that are not removed, and how many there are in all. `search`: those whose name or domain contains it.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn websites(
        &self,
        search: &str,
        (order, descending): (WebsiteOrder, bool),
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<WebsiteRow>, u64), StoreError> {
        let doing = "listing websites";
        let listed = |sql: &mut Sql| {
            let mut listed = "FROM website AS w WHERE w.deleted_at IS NULL".to_owned();
            if !search.is_empty() {
                let search = sql.text(search);
                let name = sql.dialect.contains("CAST(w.name AS text)", &search);
                let domain = sql.dialect.contains("CAST(w.domain AS text)", &search);
                listed.push_str(&format!(" AND ({name} OR {domain})"));
            }
            listed
        };
        let mut sql = self.sql();
        let from = listed(&mut sql);
        let page = sql.page(limit, offset);
        let direction = if descending { "DESC" } else { "ASC" };
        let by = match order {
            WebsiteOrder::Name => sql.dialect.bytewise("CAST(w.name AS text)"),
            WebsiteOrder::Domain => sql.dialect.bytewise("CAST(coalesce(w.domain, '') AS text)"),
            WebsiteOrder::CreatedAt => "w.created_at".to_owned(),
        };
        let columns = columns(sql.dialect);
        let list = sql.of(format!(
            "SELECT {columns} {from} ORDER BY {by} {direction}, w.website_id {direction} {page}"
        ));
        let mut sql = self.sql();
        let from = listed(&mut sql);
        let count = sql.of(format!("SELECT CAST(count(*) AS bigint) {from}"));
        let [rows, count] = self.rows(doing, [list, count]).await?;
        let count = each(doing, &count, |row| row.count(0))?.first().copied().unwrap_or_default();
        Ok((each(doing, &rows, read)?, count))
    }

    /// A website that is not removed.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn website(&self, website_id: Uuid) -> Result<Option<WebsiteRow>, StoreError> {
        let doing = "reading a website";
        let mut sql = self.sql();
        let website = sql.id(website_id);
        let columns = columns(sql.dialect);
        let text = format!(
            "SELECT {columns} FROM website AS w WHERE w.website_id = {website} AND w.deleted_at IS NULL"
        );
        let rows = self.all(doing, sql.of(text)).await?;
        Ok(each(doing, &rows, read)?.into_iter().next())
    }

    /// A website, link or pixel that is not removed.
    ///
    /// # Errors
    /// The store does not answer, or not in time.
    #[boxed]
    pub async fn source(&self, id: Uuid) -> Result<Option<SourceRow>, StoreError> {
        let doing = "looking for a website";
        let mut sql = self.sql();
        let id = sql.id(id);
        let reset = match sql.dialect {
            Dialect::Postgres => sql.dialect.at_ms("w.reset_at"),
            Dialect::Sqlite => "CAST(NULL AS bigint)".to_owned(),
        };
        let text = format!(
            "SELECT {reset} FROM website AS w WHERE w.website_id = {id} AND w.deleted_at IS NULL
             UNION ALL SELECT CAST(NULL AS bigint) FROM link AS l WHERE l.link_id = {id} AND l.deleted_at IS NULL
             UNION ALL SELECT CAST(NULL AS bigint) FROM pixel AS p WHERE p.pixel_id = {id} AND p.deleted_at IS NULL"
        );
        let rows = self.all(doing, sql.of(text)).await?;
        let rows = each(doing, &rows, |row| Ok(SourceRow { reset_at_ms: row.optional_number(0)? }))?;
        Ok(rows.into_iter().next())
    }
}
