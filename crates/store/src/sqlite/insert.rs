//! Inserting many rows by few statements.

use sqlx::AssertSqlSafe;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};

/// Values of one statement, at most; SQLite's own limit is 32,766. More rows than fit in it go in several.
const VALUES_MAX: usize = 2_000;

/// A statement whose values are being bound.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Runs `INSERT … VALUES (…), (…)` over all rows, as many per statement as fit, in sizes that are powers of two
/// so that their statements stay prepared. Returns the rows that were written.
pub(super) async fn insert<T>(
    connection: &mut SqliteConnection,
    rows: &[T],
    into: &str,
    on_conflict: &str,
    bind: impl for<'q> Fn(Statement<'q>, &T) -> Statement<'q>,
) -> Result<u64, sqlx::Error> {
    let columns = into.matches(',').count() + 1;
    let tuple = format!("({}?)", "?,".repeat(columns - 1));
    let mut written = 0;
    let mut rest = rows;
    while !rest.is_empty() {
        let size = 1 << rest.len().min(VALUES_MAX / columns).ilog2();
        let (some, others) = rest.split_at(size);
        let tuples = format!("{tuple},").repeat(size - 1) + &tuple;
        let mut statement =
            sqlx::query(AssertSqlSafe(format!("INSERT INTO {into} VALUES {tuples} {on_conflict}")));
        for row in some {
            statement = bind(statement, row);
        }
        written += statement.execute(&mut *connection).await?.rows_affected();
        rest = others;
    }
    Ok(written)
}
