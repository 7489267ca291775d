//! Running statements: every one through a watch on the other side's silence.

use std::ops::DerefMut as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Either, Execute, Executor, SqlSafeStr as _, SqlStr};
use tokio::time::Sleep;

use super::{GRACE, PROVEN, Pool, Session, Sharing, silent};
use crate::generation::SHARED_TABLES;

/// A statement that gets no name at the server.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

/// A statement in which the tables of a generation's schema stand for those of the schema `dashi`.
struct Within<E>(E, Arc<str>);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Within<E> {
    fn sql(self) -> SqlStr {
        AssertSqlSafe(in_schema(self.0.sql().as_str(), &self.1)).into_sql_str()
    }

    fn statement(&self) -> Option<&PgStatement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.0.persistent()
    }
}

/// What stays in the schema `dashi` whichever generation a statement is for: tables of all generations, and the function.
fn is_shared(name: &str) -> bool {
    name == "at_ms" || SHARED_TABLES.contains(&name)
}

/// A statement's text with `schema` in the place of `dashi`. Statements of the store have texts and values as parameters,
/// so every `dashi.` that begins a word is the schema's name.
fn in_schema(sql: &str, schema: &str) -> String {
    const NAME: &str = "dashi.";
    let is_of_a_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut written = String::with_capacity(sql.len() + 64);
    let mut rest = sql;
    while let Some(at) = rest.find(NAME) {
        let (before, after) = (&rest[..at], &rest[at + NAME.len()..]);
        let table = after.split(|char| !is_of_a_word(char)).next().unwrap_or_default();
        written.push_str(before);
        if before.ends_with(is_of_a_word) || is_shared(table) {
            written.push_str(NAME);
        } else {
            written.push_str(schema);
            written.push('.');
        }
        rest = after;
    }
    written.push_str(rest);
    written
}

type Step = Either<PgQueryResult, PgRow>;

/// The results of a statement, until the other side is silent for too long.
struct Watched<'s> {
    steps: BoxStream<'s, Result<Step, sqlx::Error>>,
    limit: Duration,
    silence: Pin<Box<Sleep>>,
    has_ended: bool,
}

impl<'s> Watched<'s> {
    fn new(steps: BoxStream<'s, Result<Step, sqlx::Error>>, limit: Duration) -> Self {
        Self { steps, limit, silence: Box::pin(tokio::time::sleep(limit)), has_ended: false }
    }
}

impl Stream for Watched<'_> {
    type Item = Result<Step, sqlx::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.deref_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        match this.steps.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(step))) => {
                let deadline = tokio::time::Instant::now() + this.limit;
                this.silence.as_mut().reset(deadline);
                Poll::Ready(Some(Ok(step)))
            }
            Poll::Ready(ended) => {
                this.has_ended = true;
                Poll::Ready(ended)
            }
            Poll::Pending => {
                std::task::ready!(this.silence.as_mut().poll(context));
                this.has_ended = true;
                Poll::Ready(Some(Err(silent(this.limit))))
            }
        }
    }
}

impl Session {
    async fn run<'q, E: Execute<'q, Postgres> + 'q>(&mut self, query: E) -> Result<Vec<Step>, sqlx::Error> {
        let limit = self.patience.unwrap_or(self.pool.0.statement_timeout + GRACE);
        let schema = self.pool.0.schema.clone();
        let Some(live) = &mut self.live else { return Err(sqlx::Error::PoolClosed) };
        self.busy = true;
        let steps = match (self.sharing, schema) {
            (Sharing::None, None) => live.connection.fetch_many(query),
            (Sharing::None, Some(schema)) => live.connection.fetch_many(Within(query, schema)),
            (Sharing::PerTransaction, None) => live.connection.fetch_many(Unnamed(query)),
            (Sharing::PerTransaction, Some(schema)) => {
                live.connection.fetch_many(Unnamed(Within(query, schema)))
            }
        };
        let outcome = Watched::new(steps, limit).try_collect().await;
        self.finished(outcome.as_ref().err());
        outcome
    }
}

/// Makes `sqlx`'s methods of a type's `run`.
macro_rules! executor {
    ($c:lifetime, $executor:ty) => {
        impl<$c> Executor<$c> for $executor {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
            where
                $c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                stream::once(self.run(query))
                    .map_ok(|steps| stream::iter(steps.into_iter().map(Ok)))
                    .try_flatten()
                    .boxed()
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
            where
                $c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Box::pin(async move { Ok(first_row(self.run(query).await?)) })
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                $c: 'e,
            {
                refuse_to_prepare(sql, parameters)
            }
        }
    };
}

executor!('c, &'c mut Session);
// A statement on a connection of its own, and behind a pooler in a transaction of its own.
executor!('c, &'c Pool);

impl Pool {
    async fn run<'q, E: Execute<'q, Postgres> + 'q>(&self, query: E) -> Result<Vec<Step>, sqlx::Error> {
        let mut session = self.acquire(PROVEN).await?;
        if session.sharing == Sharing::None {
            return session.run(query).await;
        }
        session.begin().await?;
        match session.run(query).await {
            Ok(steps) => {
                session.commit().await?;
                Ok(steps)
            }
            Err(error) => {
                session.roll_back().await;
                Err(error)
            }
        }
    }
}

fn first_row(steps: Vec<Step>) -> Option<PgRow> {
    steps.into_iter().find_map(Either::right)
}

/// Nobody here prepares a statement by hand: behind a pooler it would be prepared for somebody else.
fn refuse_to_prepare<'e>(
    sql: SqlStr,
    _parameters: &'e [PgTypeInfo],
) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>> {
    let refusal = format!("statements are not prepared by hand: {}", sql.as_str());
    Box::pin(std::future::ready(Err(sqlx::Error::InvalidArgument(refusal))))
}

#[cfg(test)]
mod tests {
    use super::in_schema;

    #[test]
    fn tables_of_a_generation_stand_for_those_of_dashi() {
        assert_eq!(
            in_schema("SELECT dashi.at_ms($1), x.dashi.y, mydashi.z FROM dashi.applied", "dashi_gen_2"),
            "SELECT dashi.at_ms($1), x.dashi_gen_2.y, mydashi.z FROM dashi_gen_2.applied"
        );
        for shared in ["SELECT 1 FROM dashi.generation", "dashi.migration", "dashi_profile", "dashi"] {
            assert_eq!(in_schema(shared, "dashi_gen_2"), shared);
        }
        assert_eq!(in_schema("dashi.migrations(dashi.checkpoint)", "g"), "g.migrations(g.checkpoint)");
    }
}
