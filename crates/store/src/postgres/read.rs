//! Questions on PostgreSQL: read-only transactions on connections of their own.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::PostgresStore;
use super::pool::Session;
use crate::StoreError;
use crate::read::{AnswerRow, Argument, Sql};

/// Least memory for one step of a question. A question has some steps, and a few questions are asked at once.
const WORK_MEMORY: &str = "16MB";

impl PostgresStore {
    /// The same store, with connections of its own.
    pub(crate) fn for_questions(&self, connections_max: u32) -> Self {
        let store = self.clone();
        Self { pool: self.pool.for_slow(connections_max), ..store }
    }

    /// Gives the statement's texts the form that the database would have stored.
    pub(crate) async fn storable(&self, statement: &mut Sql) -> Result<(), StoreError> {
        for argument in &mut statement.arguments {
            if let Argument::Text(text) = argument {
                *text = self.stored_text(text).await?.into_owned();
            }
        }
        Ok(())
    }

    pub(crate) async fn answers<const N: usize>(
        &self,
        statements: [Sql; N],
        time_max: Duration,
    ) -> Result<[Vec<AnswerRow>; N], sqlx::Error> {
        let mut session = self.pool.begin().await?;
        match answers(&mut session, statements, time_max).await {
            Ok(answers) => {
                session.commit().await?;
                Ok(answers)
            }
            Err(error) => {
                session.roll_back().await;
                Err(error)
            }
        }
    }
}

async fn answers<const N: usize>(
    session: &mut Session,
    statements: [Sql; N],
    time_max: Duration,
) -> Result<[Vec<AnswerRow>; N], sqlx::Error> {
    let limit_ms = (time_max / N.max(1) as u32).as_millis().max(1);
    // Compiling a question takes longer than most answers. Groups of a hundred thousand visits should not go to disk.
    session
        .run_raw(format!(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
             SET LOCAL statement_timeout = {limit_ms}; SET LOCAL jit = off;
             SELECT set_config('work_mem', '{WORK_MEMORY}', true)
             WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('{WORK_MEMORY}')"
        ))
        .await?;
    let mut answers = [const { Vec::new() }; N];
    for (answer, statement) in answers.iter_mut().zip(statements) {
        let mut query = sqlx::query(AssertSqlSafe(statement.text)).persistent(false);
        for argument in statement.arguments {
            query = match argument {
                Argument::Id(id) => query.bind(id),
                Argument::Number(number) => query.bind(number),
                Argument::Text(text) => query.bind(text),
            };
        }
        let rows = query.fetch_all(&mut *session).await?;
        *answer = rows.into_iter().map(AnswerRow::Postgres).collect();
    }
    Ok(answers)
}
