//! The database's answers about itself.

use crate::fitness::Fitness;
use crate::postgres::PostgresStore;
use crate::table::Owner;
use crate::{StoreError, tables};

/// Rights that a projector and a collector use, and the role does not have. Before the tables are there, the right to make
/// them. `$1` are names of Umami's tables.
const LACKING: &str = "
    SELECT 'CREATE on the database (for the schema dashi)'
    WHERE to_regnamespace('dashi') IS NULL AND NOT has_database_privilege(current_database(), 'CREATE')
    UNION ALL
    SELECT 'USAGE on the schema dashi'
    FROM pg_namespace WHERE nspname = 'dashi' AND NOT has_schema_privilege(oid, 'USAGE')
    UNION ALL
    SELECT format('CREATE on the schema %s (for the tables of Umami)', current_schema())
    WHERE to_regclass('website_event') IS NULL AND NOT has_schema_privilege(current_schema(), 'CREATE')
    UNION ALL
    SELECT format('%s on %s', privilege, CASE nspname WHEN 'dashi' THEN 'dashi.' ELSE '' END || relname)
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
    WHERE relkind IN ('r', 'p')
    AND (nspname = 'dashi' OR (pg_table_is_visible(pg_class.oid) AND relname = ANY($1)))
    AND (nspname <> 'dashi' OR has_schema_privilege(pg_namespace.oid, 'USAGE'))
    AND NOT has_table_privilege(pg_class.oid, privilege)
    ORDER BY 1";

impl PostgresStore {
    pub(crate) async fn fitness(&self) -> Result<Fitness, StoreError> {
        let doing = "asking about itself";
        let (version, clock_ms): (String, i64) = sqlx::query_as(
            "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        let umamis: Vec<&str> =
            tables::ALL.iter().filter(|table| table.owner == Owner::Umami).map(|table| table.name).collect();
        let lacking = sqlx::query_scalar(LACKING)
            .bind(umamis)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::away(doing))?;
        Ok(Fitness { server: format!("PostgreSQL {version}"), clock_ms, lacking })
    }
}
