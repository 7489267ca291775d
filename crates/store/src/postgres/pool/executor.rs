//! Running statements: every one through a watch on the other side's silence.

use std::ops::DerefMut as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, SqlStr};
use tokio::time::Sleep;

use super::{GRACE, PROVEN, Pool, Session, Sharing, silent};

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
        let limit = self.pool.0.statement_timeout + GRACE;
        let Some(live) = &mut self.live else { return Err(sqlx::Error::PoolClosed) };
        self.busy = true;
        let steps = match self.sharing {
            Sharing::None => live.connection.fetch_many(query),
            Sharing::PerTransaction => live.connection.fetch_many(Unnamed(query)),
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
