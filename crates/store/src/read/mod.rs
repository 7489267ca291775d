//! Questions about a website's traffic, for those who read over HTTP. Both databases answer with the same numbers: the
//! statements are one text, and a calendar's boundaries are computed here, not by the database.
//!
//! A question runs on a connection of its own, apart from those of commits, and is stopped when it has taken its time.
//!
//! The meaning of the numbers is docs/umami-contract.md §16. `row` reads the answers, `sql` writes the statements, and
//! each of the other modules has the questions of one subject.

mod activity;
mod metrics;
mod row;
mod sessions;
mod sql;
mod traffic;
mod websites;

use async_recursion::async_recursion as boxed;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

pub use self::activity::{ActivityRow, EventRow, PropertyRow};
pub use self::metrics::{Metric, MetricKind};
pub(crate) use self::row::AnswerRow;
pub use self::sessions::{SessionOrder, SessionRow, SessionTotals};
pub(crate) use self::sql::{Argument, Dialect, Sql};
pub use self::traffic::{Point, Totals};
pub use self::websites::{SourceRow, WebsiteOrder, WebsiteRow};
use crate::{PostgresStore, SqliteStore, Store, StoreError};

/// How much longer a question is waited for than the database lets it take.
const GRACE: Duration = Duration::from_secs(5);

/// Which events a question is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The website, link or pixel.
    pub website_id: Uuid,
    /// The first moment, in milliseconds since 1970.
    pub start_ms: i64,
    /// The last moment, inclusive.
    pub end_ms: i64,
    /// Conditions of events and of their sessions.
    pub filters: Vec<Filter>,
    /// Whether one filter that holds is enough; else all must.
    pub any: bool,
    /// Events of this type alone, beside the filters.
    pub event_type: Option<i32>,
    /// Leaves out the visits that have no or one view in this time.
    pub without_bounces: bool,
}

impl Question {
    /// All events of a website from one moment to another, both inclusive.
    pub fn of(website_id: Uuid, start_ms: i64, end_ms: i64) -> Self {
        Self {
            website_id,
            start_ms,
            end_ms,
            filters: Vec::new(),
            any: false,
            event_type: None,
            without_bounces: false,
        }
    }
}

/// A condition of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The compared column.
    pub field: Field,
    /// How it is compared.
    pub operator: Operator,
    /// With this text.
    pub value: String,
}

/// The comparison of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Equal.
    Is,
    /// Not equal, or there is no value.
    IsNot,
    /// It is a part of the value; letters of ASCII in any case.
    Contains,
    /// It is not, or there is no value.
    DoesNotContain,
}

/// A column that can be filtered by, or counted by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub enum Field {
    Path,
    Query,
    Title,
    Referrer,
    Hostname,
    Tag,
    Event,
    UtmSource,
    UtmMedium,
    UtmCampaign,
    UtmContent,
    UtmTerm,
    Browser,
    Os,
    Device,
    Screen,
    Language,
    Country,
    Region,
    City,
    DistinctId,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Path => "url_path",
            Self::Query => "url_query",
            Self::Title => "page_title",
            Self::Referrer => "referrer_domain",
            Self::Hostname => "hostname",
            Self::Tag => "tag",
            Self::Event => "event_name",
            Self::UtmSource => "utm_source",
            Self::UtmMedium => "utm_medium",
            Self::UtmCampaign => "utm_campaign",
            Self::UtmContent => "utm_content",
            Self::UtmTerm => "utm_term",
            Self::Browser => "browser",
            Self::Os => "os",
            Self::Device => "device",
            Self::Screen => "screen",
            Self::Language => "language",
            Self::Country => "country",
            Self::Region => "region",
            Self::City => "city",
            Self::DistinctId => "distinct_id",
        }
    }

    /// Whether it is a column of the session, not of the event.
    fn is_of_session(self) -> bool {
        matches!(
            self,
            Self::Browser
                | Self::Os
                | Self::Device
                | Self::Screen
                | Self::Language
                | Self::Country
                | Self::Region
                | Self::City
                | Self::DistinctId
        )
    }

    /// The column in a statement, as text: a padded type would compare otherwise.
    fn column(self) -> String {
        let table = if self.is_of_session() { "s" } else { "e" };
        format!("CAST({table}.{} AS text)", self.name())
    }
}

/// Asks questions, each on a connection of its own and within a time. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Questions(Arc<Asked>);

struct Asked {
    store: Readers,
    time_max: Duration,
}

enum Readers {
    Postgres(PostgresStore),
    Sqlite(sqlx::sqlite::SqlitePool),
}

impl Store {
    /// Connections for questions: at most `connections_max`, made when they are needed, and apart from those of commits.
    /// A question's statements may take `time_max` together.
    pub fn questions(&self, connections_max: u32, time_max: Duration) -> Questions {
        let store = match self {
            Self::Postgres(store) => Readers::Postgres(store.for_questions(connections_max)),
            Self::Sqlite(store) => Readers::Sqlite(store.for_questions(connections_max)),
        };
        Questions(Arc::new(Asked { store, time_max }))
    }
}

type Answer<T> = Result<T, sqlx::Error>;

impl Questions {
    /// Lets go of the connections.
    #[boxed]
    pub async fn close(&self) {
        match &self.0.store {
            Readers::Postgres(store) => store.close().await,
            Readers::Sqlite(readers) => readers.close().await,
        }
    }

    fn sql(&self) -> Sql {
        Sql::new(match &self.0.store {
            Readers::Postgres(_) => Dialect::Postgres,
            Readers::Sqlite(_) => Dialect::Sqlite,
        })
    }

    /// The rows of all statements, from one state of the database.
    async fn rows<const N: usize>(
        &self,
        doing: &'static str,
        statements: [Sql; N],
    ) -> Result<[Vec<AnswerRow>; N], StoreError> {
        let time_max = self.0.time_max;
        let answering = async {
            match &self.0.store {
                Readers::Postgres(store) => {
                    let mut statements = statements;
                    for statement in &mut statements {
                        store.storable(statement).await?;
                    }
                    Ok(store.answers(statements, time_max).await)
                }
                Readers::Sqlite(readers) => Ok(SqliteStore::answers(readers, statements, time_max).await),
            }
        };
        let answered = tokio::time::timeout(time_max + GRACE, answering).await;
        let answered = answered.unwrap_or(Err(StoreError::TooLong { doing, time_max }))?;
        answered.map_err(|error| StoreError::unanswered(doing, time_max, error))
    }

    /// The rows of one statement.
    async fn all(&self, doing: &'static str, statement: Sql) -> Result<Vec<AnswerRow>, StoreError> {
        let [rows] = self.rows(doing, [statement]).await?;
        Ok(rows)
    }
}

/// Reads each row of an answer.
fn each<T>(
    doing: &'static str,
    rows: &[AnswerRow],
    read: impl Fn(&AnswerRow) -> Answer<T>,
) -> Result<Vec<T>, StoreError> {
    rows.iter().map(read).collect::<Answer<_>>().map_err(StoreError::away(doing))
}
