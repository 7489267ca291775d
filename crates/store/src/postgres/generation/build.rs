//! Making tables like the live ones: columns, indexes, owners, rights, options and comments. The catalogue itself writes
//! the statements, so that names and expressions are quoted as it knows them.

use super::tables::Live;
use crate::postgres::pool::{Session, quoted};

/// An index of a live table.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub name: String,
    /// When it is built.
    pub need: Need,
    /// The name and the definition of the constraint that it belongs to.
    constraint: Option<(String, String)>,
    /// `CREATE INDEX …`, in two parts: up to the table's name, and from behind it.
    definition: (String, String),
    tablespace: Option<String>,
    comment: Option<String>,
    is_clustered: bool,
}

/// When rows need an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// To be written at all: it shows that an event is applied, or commits look rows up by it.
    AtOnce,
    /// To be written by `INSERT`, whose `ON CONFLICT` names it. `COPY` does without.
    ByInsert,
    /// To be read.
    AtTheEnd,
}

/// Tables with rows whose keys are made of their events' ids (if nobody imports others), so that only new events have
/// them, and their keys.
const DERIVED: &[(&str, &str)] = &[("event_data", "event_data_id"), ("revenue", "revenue_id")];

/// Tables in which commits look rows up by other columns than unique ones, and which have few rows beside events.
const LOOKED_UP: &[&str] = &["session_replay", "heatmap_event"];

/// The columns of the query in [`indexes`].
type IndexColumns = (
    String,
    bool,
    bool,
    Option<String>,
    Option<String>,
    Option<String>,
    String,
    String,
    Option<String>,
    Option<String>,
    bool,
);

/// The valid indexes of a live table, unique ones first. Needs a search path without the table's schema, so that
/// definitions name it.
pub(super) async fn indexes(session: &mut Session, table: &Live) -> Result<Vec<Index>, sqlx::Error> {
    let rows: Vec<IndexColumns> = sqlx::query_as(
        "/* generation_indexes */
         SELECT c.relname::text, i.indisunique, i.indisprimary, a.attname::text, k.conname::text, pg_get_constraintdef(k.oid),
             pg_get_indexdef(i.indexrelid), format(' ON %I.%I ', n.nspname, t.relname), s.spcname::text,
             obj_description(i.indexrelid, 'pg_class'), i.indisclustered
         FROM pg_catalog.pg_index AS i
         JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
         JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
         JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
         LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         LEFT JOIN pg_catalog.pg_constraint AS k
             ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u')
         LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
         WHERE i.indrelid = $1::bigint::oid AND i.indisvalid
         ORDER BY i.indisprimary DESC, i.indisunique DESC, i.indexrelid",
    )
    .bind(table.oid)
    .fetch_all(session)
    .await?;
    let index = |row: IndexColumns| {
        let (
            name,
            is_unique,
            is_primary,
            first,
            constraint,
            constraint_definition,
            definition,
            on,
            tablespace,
            comment,
            is_clustered,
        ) = row;
        let is_looked_up = LOOKED_UP.contains(&&*table.name)
            // Where no index makes a session's properties unique, they are looked up by their session.
            || table.name == "session_data" && first.as_deref() == Some("session_id");
        let is_derived = is_primary
            && DERIVED.iter().any(|(name, key)| *name == table.name && Some(*key) == first.as_deref());
        let (before, after) = definition.split_once(&on).ok_or_else(|| {
            sqlx::Error::Decode(format!("the definition of an index does not name{on}: {definition}").into())
        })?;
        Ok(Index {
            name,
            need: match () {
                () if is_derived => Need::ByInsert,
                () if is_unique || is_looked_up => Need::AtOnce,
                () => Need::AtTheEnd,
            },
            constraint: constraint.zip(constraint_definition),
            definition: (before.to_owned(), after.to_owned()),
            tablespace,
            comment,
            is_clustered,
        })
    };
    rows.into_iter().map(index).collect()
}

/// Makes an index under its name on the table of that name in another schema.
pub(super) async fn make_index(
    session: &mut Session,
    schema: &str,
    table: &str,
    index: &Index,
) -> Result<(), sqlx::Error> {
    let target = format!("{}.{}", quoted(schema), quoted(table));
    let tablespace = quoted_text(index.tablespace.as_deref().unwrap_or_default());
    let statement = match (&index.constraint, &index.definition) {
        (Some((name, definition)), _) => {
            format!("ALTER TABLE {target} ADD CONSTRAINT {} {definition}", quoted(name))
        }
        (None, (before, after)) => format!("{before} ON {target} {after}"),
    };
    let mut statements = vec![format!("SET LOCAL default_tablespace = {tablespace}"), statement];
    if let Some(comment) = &index.comment {
        let name = format!("{}.{}", quoted(schema), quoted(&index.name));
        statements.push(format!("COMMENT ON INDEX {name} IS {}", quoted_text(comment)));
    }
    if index.is_clustered {
        statements.push(format!("ALTER TABLE {target} CLUSTER ON {}", quoted(&index.name)));
    }
    statements.push("SET LOCAL default_tablespace = ''".to_owned());
    session.run_raw(statements.join("; ")).await
}

/// Makes an empty table in another schema with the columns of a live one, and without its indexes.
pub(super) async fn make_table(session: &mut Session, table: &Live, schema: &str) -> Result<(), sqlx::Error> {
    let statement: String = sqlx::query_scalar(
        "/* generation_table */
         SELECT format('CREATE TABLE %I.%I (LIKE %I.%I INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS) USING %I',
             $2::text, c.relname, n.nspname, c.relname, m.amname) 
             || CASE WHEN s.spcname IS NULL THEN '' ELSE format(' TABLESPACE %I', s.spcname) END
         FROM pg_catalog.pg_class AS c
         JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
         LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
         WHERE c.oid = $1::bigint::oid",
    )
    .bind(table.oid)
    .bind(schema)
    .fetch_one(&mut *session)
    .await?;
    session.run_raw(statement).await
}

/// Gives the table of that name in another schema everything of a live one but columns and indexes: its owner, rights,
/// options, statistics targets, row security and comment. Changes nothing where nothing differs.
pub(super) async fn make_alike(session: &mut Session, table: &Live, schema: &str) -> Result<(), sqlx::Error> {
    // The owner first: the rights are his to give.
    for statements in [OWNER, OPTIONS, RIGHTS] {
        let statements: Vec<String> =
            sqlx::query_scalar(statements).bind(table.oid).bind(schema).fetch_all(&mut *session).await?;
        if !statements.is_empty() {
            session.run_raw(statements.join("; ")).await?;
        }
    }
    Ok(())
}

/// To own a table a role needs the right to make one in its schema.
const OWNER: &str = "/* generation_owner */
    SELECT format('GRANT USAGE, CREATE ON SCHEMA %I TO %I; ALTER TABLE %I.%I OWNER TO %I',
        $2::text, o.rolname, $2::text, l.relname, o.rolname)
    FROM pg_catalog.pg_class AS l
    JOIN pg_catalog.pg_roles AS o ON o.oid = l.relowner
    JOIN pg_catalog.pg_class AS g ON g.oid = to_regclass(format('%I.%I', $2::text, l.relname))
    WHERE l.oid = $1::bigint::oid AND l.relowner <> g.relowner";

const OPTIONS: &str = "/* generation_options */
    WITH l AS (SELECT c.*, t.reloptions AS toast FROM pg_catalog.pg_class AS c
               LEFT JOIN pg_catalog.pg_class AS t ON t.oid = c.reltoastrelid WHERE c.oid = $1::bigint::oid),
         g AS (SELECT c.*, t.reloptions AS toast FROM l JOIN pg_catalog.pg_class AS c
                   ON c.oid = to_regclass(format('%I.%I', $2::text, l.relname))
               LEFT JOIN pg_catalog.pg_class AS t ON t.oid = c.reltoastrelid),
         o (prefix, live, made) AS (SELECT '', l.reloptions, g.reloptions FROM l, g
                                    UNION ALL SELECT 'toast.', l.toast, g.toast FROM l, g)
    SELECT format('ALTER TABLE %I.%I RESET (%s)', $2::text, g.relname,
               (SELECT string_agg(prefix || option_name, ', ') FROM pg_options_to_table(o.made)))
    FROM g, o WHERE o.made IS NOT NULL AND o.live IS DISTINCT FROM o.made
    UNION ALL
    SELECT format('ALTER TABLE %I.%I SET (%s)', $2::text, g.relname,
               (SELECT string_agg(format('%s = %L', prefix || option_name, option_value), ', ')
                FROM pg_options_to_table(o.live)))
    FROM g, o WHERE o.live IS NOT NULL AND o.live IS DISTINCT FROM o.made
    UNION ALL
    SELECT format('ALTER TABLE %I.%I ALTER COLUMN %I SET STATISTICS %s', $2::text, g.relname, a.attname,
               coalesce(a.attstattarget, -1))
    FROM g JOIN pg_catalog.pg_attribute AS a ON a.attrelid = $1::bigint::oid
        JOIN pg_catalog.pg_attribute AS b ON b.attrelid = g.oid AND b.attname = a.attname
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget IS DISTINCT FROM b.attstattarget
    UNION ALL
    SELECT format('ALTER TABLE %I.%I ALTER COLUMN %I SET (%s)', $2::text, g.relname, a.attname,
               (SELECT string_agg(format('%s = %L', option_name, option_value), ', ') FROM pg_options_to_table(a.attoptions)))
    FROM g JOIN pg_catalog.pg_attribute AS a ON a.attrelid = $1::bigint::oid
        JOIN pg_catalog.pg_attribute AS b ON b.attrelid = g.oid AND b.attname = a.attname
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attoptions IS NOT NULL
        AND a.attoptions IS DISTINCT FROM b.attoptions
    UNION ALL
    SELECT format('COMMENT ON TABLE %I.%I IS %L', $2::text, g.relname, obj_description(l.oid, 'pg_class'))
    FROM l, g WHERE obj_description(l.oid, 'pg_class') IS DISTINCT FROM obj_description(g.oid, 'pg_class')
    UNION ALL
    SELECT format('ALTER TABLE %I.%I %s ROW LEVEL SECURITY', $2::text, g.relname,
               CASE WHEN l.relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END)
    FROM l, g WHERE l.relrowsecurity <> g.relrowsecurity
    UNION ALL
    SELECT format('ALTER TABLE %I.%I %s ROW LEVEL SECURITY', $2::text, g.relname,
               CASE WHEN l.relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
    FROM l, g WHERE l.relforcerowsecurity <> g.relforcerowsecurity
    UNION ALL
    SELECT format('ALTER TABLE %I.%I REPLICA IDENTITY %s', $2::text, g.relname,
               CASE l.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'DEFAULT' END)
    FROM l, g WHERE l.relreplident <> g.relreplident";

/// First the rights that are too much, then those that are missing.
const RIGHTS: &str = "/* generation_rights */
    WITH l AS (SELECT * FROM pg_catalog.pg_class WHERE oid = $1::bigint::oid),
         g AS (SELECT c.* FROM l JOIN pg_catalog.pg_class AS c
                   ON c.oid = to_regclass(format('%I.%I', $2::text, l.relname))),
         lr AS (SELECT r.privilege_type || ' ON TABLE' AS what, r.grantee, r.is_grantable
                FROM l, aclexplode(coalesce(l.relacl, acldefault('r', l.relowner))) AS r
                UNION
                SELECT format('%s (%I) ON TABLE', r.privilege_type, a.attname), r.grantee, r.is_grantable
                FROM l JOIN pg_catalog.pg_attribute AS a ON a.attrelid = l.oid, aclexplode(a.attacl) AS r
                WHERE a.attnum > 0 AND NOT a.attisdropped),
         gr AS (SELECT r.privilege_type || ' ON TABLE' AS what, r.grantee, r.is_grantable
                FROM g, aclexplode(coalesce(g.relacl, acldefault('r', g.relowner))) AS r
                UNION
                SELECT format('%s (%I) ON TABLE', r.privilege_type, a.attname), r.grantee, r.is_grantable
                FROM g JOIN pg_catalog.pg_attribute AS a ON a.attrelid = g.oid, aclexplode(a.attacl) AS r
                WHERE a.attnum > 0 AND NOT a.attisdropped),
         role AS (SELECT 0::oid AS oid, 'PUBLIC' AS name UNION ALL SELECT oid, quote_ident(rolname) FROM pg_catalog.pg_roles)
    SELECT statement FROM (
        SELECT 1 AS step, format('REVOKE %s %I.%I FROM %s', r.what, $2::text, g.relname, role.name) AS statement
        FROM (SELECT * FROM gr EXCEPT SELECT * FROM lr) AS r JOIN role ON role.oid = r.grantee, g
        UNION ALL
        SELECT 2, format('GRANT %s %I.%I TO %s', r.what, $2::text, g.relname, role.name)
            || CASE WHEN r.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        FROM (SELECT * FROM lr EXCEPT SELECT * FROM gr) AS r JOIN role ON role.oid = r.grantee, g
    ) AS statements ORDER BY step";

/// A text in SQL.
fn quoted_text(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
