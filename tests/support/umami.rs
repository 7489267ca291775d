//! Databases as Umami's versions leave them, in SQL of our own.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

/// A version of Umami.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the versions'")]
pub enum UmamiVersion {
    V3_0,
    V3_1,
    V3_2,
    V3_3,
    V3_4,
}

impl UmamiVersion {
    /// All of them, the oldest first.
    pub const ALL: [Self; 5] = [Self::V3_0, Self::V3_1, Self::V3_2, Self::V3_3, Self::V3_4];

    /// The migrations of this version for a database of the version before.
    pub fn migrations(self) -> &'static str {
        match self {
            Self::V3_0 => include_str!("../umami/umami_3_0.sql"),
            Self::V3_1 => include_str!("../umami/umami_3_1.sql"),
            Self::V3_2 => include_str!("../umami/umami_3_2.sql"),
            Self::V3_3 => include_str!("../umami/umami_3_3.sql"),
            Self::V3_4 => include_str!("../umami/umami_3_4.sql"),
        }
    }

    /// Makes this version's tables in an empty database or schema, step by step.
    pub async fn install(self, connection: &mut PgConnection) {
        for version in Self::ALL {
            if version <= self {
                version.migrate(connection).await;
            }
        }
    }

    /// Runs this version's migrations on the tables of the version before.
    pub async fn migrate(self, connection: &mut PgConnection) {
        let migrated = sqlx::raw_sql(self.migrations()).execute(&mut *connection).await;
        migrated.unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

/// The tables of Umami 2.18, from which history is imported and which Dashi does not write to.
pub const UMAMI_2_18: &str = include_str!("../umami/umami_2_18.sql");

/// Everything that a database has outside the schema `dashi`, one line each: tables, columns, indexes, constraints,
/// functions, triggers, types, sequences, extensions, schemas, and the rows of Prisma's own table in `schema`.
pub async fn catalogue_dump(connection: &mut PgConnection, schema: &str) -> Vec<String> {
    let dump = format!(
        r#"SELECT line FROM (
             SELECT concat_ws(' ', 'relation', n.nspname, c.relname, c.relkind, c.relpersistence, c.reloptions::text,
                 pg_get_userbyid(c.relowner), c.relacl::text) AS line
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE n.nspname NOT IN ('dashi', 'pg_catalog', 'information_schema', 'pg_toast')
             UNION ALL SELECT concat_ws(' ', 'column', n.nspname, c.relname, a.attnum, a.attname,
                 format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
             FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
                 JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attnum > 0 AND n.nspname NOT IN ('dashi', 'pg_catalog', 'information_schema', 'pg_toast')
             UNION ALL SELECT concat_ws(' ', 'index', schemaname, indexdef) FROM pg_indexes
             WHERE schemaname NOT IN ('dashi', 'pg_catalog')
             UNION ALL SELECT concat_ws(' ', 'constraint', n.nspname, c.conrelid::regclass, c.conname,
                 pg_get_constraintdef(c.oid))
             FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = c.connamespace
             WHERE n.nspname NOT IN ('dashi', 'pg_catalog', 'information_schema')
             UNION ALL SELECT concat_ws(' ', 'function', n.nspname, p.oid::regprocedure, md5(p.prosrc))
             FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
             WHERE n.nspname NOT IN ('dashi', 'pg_catalog', 'information_schema')
             UNION ALL SELECT concat_ws(' ', 'trigger', t.tgrelid::regclass, t.tgname) FROM pg_trigger AS t
             UNION ALL SELECT concat_ws(' ', 'type', n.nspname, t.typname)
             FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
             WHERE n.nspname NOT IN ('dashi', 'pg_catalog', 'information_schema', 'pg_toast')
             UNION ALL SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
             UNION ALL SELECT concat_ws(' ', 'schema', nspname, nspacl::text) FROM pg_namespace
             WHERE nspname <> 'dashi' AND nspname NOT LIKE 'pg\_%'
             UNION ALL SELECT 'migration ' || m::text FROM "{schema}"._prisma_migrations AS m
         ) AS of_all ORDER BY line"#
    );
    let lines = sqlx::query_scalar(AssertSqlSafe(dump)).fetch_all(connection).await;
    lines.expect("the catalogue can be read")
}
