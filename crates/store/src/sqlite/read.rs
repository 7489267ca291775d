//! Questions in a SQLite file: readers of their own, each statement of which is interrupted when its time is over.

use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::{SqliteStore, text};
use crate::read::{AnswerRow, Argument, Sql};

/// How long a reader may be idle. Each has a cache of its own.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How many instructions SQLite executes between two looks at the clock: less than a millisecond's.
const INSTRUCTIONS: i32 = 10_000;

impl SqliteStore {
    pub(crate) fn for_questions(&self, connections_max: u32) -> SqlitePool {
        SqlitePoolOptions::new()
            .max_connections(connections_max.max(1))
            .idle_timeout(IDLE_MAX)
            // A question may be slow; one that is too slow is logged where it is asked.
            .connect_lazy_with(self.0.options.clone().read_only(true).disable_statement_logging())
    }

    pub(crate) async fn answers<const N: usize>(
        readers: &SqlitePool,
        statements: [Sql; N],
        time_max: Duration,
    ) -> Result<[Vec<AnswerRow>; N], sqlx::Error> {
        let deadline = Instant::now() + time_max;
        let mut reader = readers.acquire().await?;
        reader.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || Instant::now() < deadline);
        let answered = answers(&mut reader, statements).await;
        reader.lock_handle().await?.remove_progress_handler();
        answered
    }
}

async fn answers<const N: usize>(
    reader: &mut SqliteConnection,
    statements: [Sql; N],
) -> Result<[Vec<AnswerRow>; N], sqlx::Error> {
    let mut tx = reader.begin().await?;
    let mut answers = [const { Vec::new() }; N];
    for (answer, statement) in answers.iter_mut().zip(statements) {
        let mut query = sqlx::query(AssertSqlSafe(statement.text)).persistent(false);
        for argument in statement.arguments {
            query = match argument {
                Argument::Id(id) => query.bind(text(id)),
                Argument::Number(number) => query.bind(number),
                Argument::Text(text) => query.bind(text),
            };
        }
        let rows = query.fetch_all(&mut *tx).await?;
        *answer = rows.into_iter().map(AnswerRow::Sqlite).collect();
    }
    tx.commit().await?;
    Ok(answers)
}
