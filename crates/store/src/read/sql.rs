//! The text of a question in SQL, for both databases: everything in which they differ is a method of [`Dialect`].

use uuid::Uuid;

use super::{Filter, Operator, Question};

/// The database that a statement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

/// A statement's parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Argument {
    Id(Uuid),
    Number(i64),
    Text(String),
}

/// A statement that is being written. Values are parameters, never part of the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sql {
    pub dialect: Dialect,
    pub text: String,
    pub arguments: Vec<Argument>,
}

/// Rows of `website_event`, by the name `e`, and where they need them those of `session`, by the name `s`: the part of a
/// statement from `FROM` to the end of its conditions.
pub(crate) type Events = String;

/// The condition of what counts as a view: neither a custom event nor a performance measurement.
pub(crate) const IS_VIEW: &str = "e.event_type NOT IN (2, 5)";

/// The number of views among a group's rows.
pub(crate) const VIEWS: &str = "sum(CASE WHEN e.event_type NOT IN (2, 5) THEN 1 ELSE 0 END)";

/// The number of custom events among a group's rows.
pub(crate) const CUSTOM_EVENTS: &str = "sum(CASE WHEN e.event_type = 2 THEN 1 ELSE 0 END)";

impl Dialect {
    /// A column with a website, in a condition that names a session as well. A session has few rows and a website all of them,
    /// which SQLite does not know without statistics: `+` keeps it from reading the website's.
    pub fn beside_session(self, column: &str) -> String {
        match self {
            Self::Postgres => column.to_owned(),
            Self::Sqlite => format!("+{column}"),
        }
    }

    /// A column with a moment, as milliseconds since 1970.
    pub fn at_ms(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("CAST(extract(epoch FROM {column}) * 1000 AS bigint)"),
            Self::Sqlite => column.to_owned(),
        }
    }

    /// Milliseconds since 1970, as a value of the type that columns of moments have.
    pub fn moment(self, ms: &str) -> String {
        match self {
            Self::Postgres => format!("dashi.at_ms({ms})"),
            Self::Sqlite => ms.to_owned(),
        }
    }

    /// A text by whose bytes rows are sorted or compared, whatever the database's language.
    pub fn bytewise(self, text: &str) -> String {
        match self {
            Self::Postgres => format!("{text} COLLATE \"C\""),
            Self::Sqlite => text.to_owned(),
        }
    }

    /// Whether a text contains another; letters of ASCII in any case.
    pub fn contains(self, text: &str, part: &str) -> String {
        match self {
            Self::Postgres => {
                format!("strpos(lower({text} COLLATE \"C\"), lower({part} COLLATE \"C\")) > 0")
            }
            Self::Sqlite => format!("instr(lower({text}), lower({part})) > 0"),
        }
    }
}

impl Sql {
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, text: String::new(), arguments: Vec::new() }
    }

    /// Adds a parameter; gives its place in the text.
    pub fn argument(&mut self, argument: Argument) -> String {
        self.arguments.push(argument);
        match (self.dialect, self.arguments.last()) {
            // Without it, a parameter whose use shows no type could not be prepared.
            (Dialect::Postgres, Some(Argument::Text(_))) => format!("${}::text", self.arguments.len()),
            _ => format!("${}", self.arguments.len()),
        }
    }

    pub fn id(&mut self, id: Uuid) -> String {
        self.argument(Argument::Id(id))
    }

    pub fn number(&mut self, number: i64) -> String {
        self.argument(Argument::Number(number))
    }

    pub fn text(&mut self, text: &str) -> String {
        self.argument(Argument::Text(text.to_owned()))
    }

    /// The statement with its whole text.
    pub fn of(mut self, text: String) -> Self {
        self.text = text;
        self
    }

    /// The events that a question is about. With `and`, of those the ones that it is true of as well; `session` joins
    /// the sessions even if no filter needs them.
    pub fn events(&mut self, question: &Question, session: bool, and: &str) -> Events {
        let span = self.span(question, "e");
        self.events_in(question, session, "website_event AS e", &span, and)
    }

    /// The same events by the buckets in which they lie, which the statement has defined as the table `b` with the
    /// columns `n`, `low` and `high`. The buckets come first: each is a range of the index by website and time.
    pub fn events_by_bucket(&mut self, question: &Question, and: &str) -> Events {
        let website = self.id(question.website_id);
        let (low, high) = (self.dialect.moment("b.low"), self.dialect.moment("b.high"));
        let span = format!("e.website_id = {website} AND e.created_at >= {low} AND e.created_at < {high}");
        self.events_in(question, false, "bucket AS b CROSS JOIN website_event AS e", &span, and)
    }

    fn events_in(&mut self, question: &Question, session: bool, from: &str, span: &str, and: &str) -> Events {
        let session = session || question.filters.iter().any(|filter| filter.field.is_of_session());
        let join = if session {
            " JOIN session AS s ON s.session_id = e.session_id AND s.website_id = e.website_id"
        } else {
            ""
        };
        let mut conditions = vec![span.to_owned()];
        if !and.is_empty() {
            conditions.push(and.to_owned());
        }
        if let Some(event_type) = question.event_type {
            conditions.push(format!("e.event_type = {}", self.number(i64::from(event_type))));
        }
        let filters: Vec<_> = question.filters.iter().map(|filter| self.filter(filter)).collect();
        if !filters.is_empty() {
            conditions.push(format!("({})", filters.join(if question.any { " OR " } else { " AND " })));
        }
        if question.without_bounces {
            let span = self.span(question, "v");
            conditions.push(format!(
                "(e.session_id, e.visit_id) IN (SELECT v.session_id, v.visit_id FROM website_event AS v
                 WHERE {span} AND v.event_type NOT IN (2, 5)
                 GROUP BY v.session_id, v.visit_id HAVING count(*) > 1)"
            ));
        }
        format!("FROM {from}{join} WHERE {}", conditions.join(" AND "))
    }

    /// Rows of the question's website and time. The end is exclusive, so that moments between two milliseconds, which
    /// PostgreSQL can hold, belong to one span.
    pub fn span(&mut self, question: &Question, table: &str) -> String {
        let website = self.id(question.website_id);
        let start = self.number(question.start_ms);
        let end = self.number(question.end_ms.saturating_add(1));
        let (start, end) = (self.dialect.moment(&start), self.dialect.moment(&end));
        format!(
            "{table}.website_id = {website} AND {table}.created_at >= {start} AND {table}.created_at < {end}"
        )
    }

    fn filter(&mut self, filter: &Filter) -> String {
        let column = filter.field.column();
        let value = self.text(&filter.value);
        match filter.operator {
            Operator::Is => format!("{column} = {value}"),
            // What has no value does not have this one.
            Operator::IsNot => format!("({column} IS NULL OR {column} <> {value})"),
            Operator::Contains => self.dialect.contains(&column, &value),
            Operator::DoesNotContain => {
                format!("({column} IS NULL OR NOT ({}))", self.dialect.contains(&column, &value))
            }
        }
    }

    /// The rows from `offset` on, at most `limit`.
    pub fn page(&mut self, limit: u32, offset: u64) -> String {
        let limit = self.number(i64::from(limit));
        let offset = self.number(offset.min(i64::MAX as u64) as i64);
        format!("LIMIT {limit} OFFSET {offset}")
    }
}
