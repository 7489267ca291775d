//! The live tables of a generation: which they are, what forbids that others take their place, and whether others are
//! like them.

use sqlx::AssertSqlSafe;

use super::Ended;
use crate::generation::{GenerationError, SHARED_TABLES};
use crate::postgres::catalogue::Catalogue;
use crate::postgres::pool::Session;
use crate::tables;

/// A table of the live generation, or another one of that shape.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub oid: i64,
    pub schema: String,
    pub name: String,
}

impl Live {
    /// Umami's tables that are written here, found by the search path, and all of Dashi's own that are of a generation.
    pub async fn list(session: &mut Session, catalogue: &Catalogue) -> Result<Vec<Self>, sqlx::Error> {
        let written = |name: &&str| match *name {
            "heatmap_event" => catalogue.has_heatmaps(),
            name => catalogue.has_table(name),
        };
        let umami: Vec<&str> = tables::of_umami().map(|table| table.name).filter(written).collect();
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "/* generation_tables */
             SELECT c.oid::bigint, n.nspname::text, c.relname::text
             FROM (SELECT to_regclass(name)::oid, place FROM unnest($1::text[]) WITH ORDINALITY AS t (name, place)
                   UNION ALL
                   SELECT oid, 1000 FROM pg_catalog.pg_class
                   WHERE relnamespace = to_regnamespace('dashi') AND relkind IN ('r', 'p', 'f')
                     AND relname <> ALL ($2)) AS t (oid, place)
             JOIN pg_catalog.pg_class AS c ON c.oid = t.oid
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
             ORDER BY t.place, c.relname",
        )
        .bind(umami)
        .bind(SHARED_TABLES.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        .fetch_all(session)
        .await?;
        Ok(rows.into_iter().map(|(oid, schema, name)| Self { oid, schema, name }).collect())
    }

    /// All tables of a schema.
    pub async fn of_schema(session: &mut Session, schema: &str) -> Result<Vec<Self>, sqlx::Error> {
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT oid::bigint, $1::text, relname::text FROM pg_catalog.pg_class
             WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relkind = 'r' ORDER BY relname",
        )
        .bind(schema)
        .fetch_all(session)
        .await?;
        Ok(rows.into_iter().map(|(oid, schema, name)| Self { oid, schema, name }).collect())
    }
}

fn oids(tables: &[Live]) -> Vec<i64> {
    tables.iter().map(|table| table.oid).collect()
}

/// Refuses tables whose place others cannot take.
pub(super) async fn refuse(session: &mut Session, tables: &[Live]) -> Result<(), Ended> {
    let mut reasons: Vec<String> = sqlx::query_scalar(
        "/* generation_rights */
         SELECT format('the role %s does not own the table %s.%s, whose owner is %s: run the command as its owner, or '
                'make this role a member of that one', current_user, n.nspname, c.relname, pg_get_userbyid(c.relowner))
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid::bigint = ANY ($1) AND NOT pg_has_role(c.relowner, 'USAGE')
         UNION ALL
         SELECT format('the role %s may not make schemas in the database %s: GRANT CREATE ON DATABASE %I TO %I',
                current_user, current_database(), current_database(), current_user)
         WHERE NOT has_database_privilege(current_database(), 'CREATE')
         UNION ALL
         SELECT DISTINCT format('the role %s may not make tables in the schema %s: GRANT CREATE ON SCHEMA %I TO %I',
                current_user, n.nspname, n.nspname, current_user)
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid::bigint = ANY ($1) AND NOT has_schema_privilege(n.oid, 'CREATE')
         UNION ALL
         SELECT format('%s.%s is %s', n.nspname, c.relname, CASE c.relkind
                WHEN 'p' THEN 'a partitioned table' WHEN 'f' THEN 'a foreign table' WHEN 'v' THEN 'a view'
                WHEN 'm' THEN 'a materialized view' ELSE 'an unlogged or temporary table' END)
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid::bigint = ANY ($1) AND (c.relkind <> 'r' OR c.relpersistence <> 'p')
         UNION ALL
         SELECT format('%s inherits from %s', inhrelid::regclass, inhparent::regclass)
         FROM pg_catalog.pg_inherits WHERE inhrelid::bigint = ANY ($1) OR inhparent::bigint = ANY ($1)
         UNION ALL
         SELECT format('%s.%s has a replica identity by an index', n.nspname, c.relname)
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid::bigint = ANY ($1) AND c.relreplident = 'i'
         UNION ALL
         SELECT format('the publication %s publishes all tables', pubname)
         FROM pg_catalog.pg_publication WHERE puballtables",
    )
    .bind(oids(tables))
    .fetch_all(&mut *session)
    .await?;
    // From PostgreSQL 15 on.
    let has_schema_publications: bool =
        sqlx::query_scalar("SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL")
            .fetch_one(&mut *session)
            .await?;
    if has_schema_publications {
        let published: Vec<String> = sqlx::query_scalar(
            "/* generation_publications */
             SELECT DISTINCT format('the publication %s publishes all tables of the schema %s', p.pubname, n.nspname)
             FROM pg_catalog.pg_publication_namespace AS s
             JOIN pg_catalog.pg_publication AS p ON p.oid = s.pnpubid
             JOIN pg_catalog.pg_namespace AS n ON n.oid = s.pnnspid
             JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
             WHERE c.oid::bigint = ANY ($1)",
        )
        .bind(oids(tables))
        .fetch_all(&mut *session)
        .await?;
        reasons.extend(published);
    }
    reasons.extend(dependents(session, tables).await?);
    if reasons.is_empty() { Ok(()) } else { Err(GenerationError::Refused { reasons }.into()) }
}

/// Everything that others made to depend on tables, or that cannot be made again under its name: triggers, rules, views,
/// foreign keys, policies, publications, statistics, sequences, functions of the row type. Each would go on with the old
/// table.
pub(super) async fn dependents(session: &mut Session, tables: &[Live]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "/* generation_dependents */
         SELECT DISTINCT format('%s depends on the table %s.%s: drop it, and make it again after the swap',
                pg_describe_object(d.classid, d.objid, 0), n.nspname, t.relname)
         FROM pg_catalog.pg_class AS t
         JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
         LEFT JOIN pg_catalog.pg_type AS y ON y.oid = t.reltype
         JOIN pg_catalog.pg_depend AS d
             ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = t.oid
             OR d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid IN (t.reltype, y.typarray)
         WHERE t.oid::bigint = ANY ($1)
           AND NOT (d.classid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'i')
           AND NOT (d.classid = 'pg_catalog.pg_class'::regclass AND EXISTS (
               SELECT 1 FROM pg_catalog.pg_class AS i WHERE i.oid = d.objid AND i.relkind IN ('i', 't')))
           AND NOT (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = t.oid)
           AND NOT (d.classid = 'pg_catalog.pg_attrdef'::regclass AND EXISTS (
               SELECT 1 FROM pg_catalog.pg_attrdef AS a WHERE a.oid = d.objid AND a.adrelid = t.oid))
           AND NOT (d.classid = 'pg_catalog.pg_constraint'::regclass AND EXISTS (
               SELECT 1 FROM pg_catalog.pg_constraint AS k
               WHERE k.oid = d.objid AND k.conrelid = t.oid AND k.contype IN ('p', 'u', 'c', 'n')))
         ORDER BY 1",
    )
    .bind(oids(tables))
    .fetch_all(session)
    .await
}

/// Tables and columns in which a schema's tables differ from the live ones, in words.
pub(super) async fn differences(
    session: &mut Session,
    tables: &[Live],
    schema: &str,
) -> Result<Vec<String>, sqlx::Error> {
    const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
             || coalesce(' DEFAULT ' || pg_get_expr(e.adbin, e.adrelid), '') AS is,
             row_number() OVER (ORDER BY a.attnum) AS place
         FROM pg_catalog.pg_attribute AS a
         LEFT JOIN pg_catalog.pg_attrdef AS e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
         WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid =";
    let mut differences = Vec::new();
    for table in tables {
        let other: Option<i64> =
            sqlx::query_scalar("SELECT to_regclass(format('%I.%I', $1::text, $2::text))::oid::bigint")
                .bind(schema)
                .bind(&table.name)
                .fetch_one(&mut *session)
                .await?;
        let Some(other) = other else {
            differences.push(format!("it has no table {}", table.name));
            continue;
        };
        let sql = format!(
            "/* generation_differences */
             SELECT coalesce(l.attname, g.attname), coalesce(l.is, 'is not there'), coalesce(g.is, 'is not there')
             FROM ({COLUMNS} $1::bigint::oid) AS l FULL JOIN ({COLUMNS} $2::bigint::oid) AS g ON g.attname = l.attname
             WHERE (l.is, l.place) IS DISTINCT FROM (g.is, g.place)"
        );
        let columns: Vec<(String, String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(table.oid).bind(other).fetch_all(&mut *session).await?;
        differences.extend(columns.into_iter().map(|(column, live, generation)| {
            format!("{}.{column}: live {live}, here {generation}", table.name)
        }));
    }
    Ok(differences)
}
