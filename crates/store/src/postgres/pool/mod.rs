//! Connections to the database. Every wait for the other side has a bound that is kept here, for a silent peer enforces
//! none.
//!
//! A connection that did not answer in time, or whose server is going or has become read-only, is closed and never used
//! again, and with it all that were made before that moment: after a restart or a fail-over the next attempt gets a
//! fresh connection, not the next dead one.
//!
//! Behind a pooler that hands a server's connection from one client to the next between transactions
//! ([`Sharing::PerTransaction`]) nothing may outlive a transaction: statements are not named, limits and search path
//! are set for each transaction alone, and a single statement is a transaction, too.

mod executor;
mod session;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout, timeout_at};

pub(super) use self::session::{COPY_PIECE, Session, is_known};
use super::address::{Address, Pooler};
use super::socket;

/// How much longer a statement is waited for than the server lets it take: a slow server reports that itself within
/// this time, a silent one does not.
const GRACE: Duration = Duration::from_secs(1);

/// A connection that was used a shorter time ago is taken as it is; others are asked first whether they answer. For a
/// transaction, which is tried again at once, the time is longer than for a single statement, whose failure shows.
const PROVEN: Duration = Duration::from_millis(100);
const PROVEN_FOR_TRANSACTION: Duration = Duration::from_secs(1);

/// How long that answer may take.
const PROBE: Duration = Duration::from_secs(2);

/// How long a connection may be idle, and how old it may become.
const IDLE_MAX: Duration = Duration::from_secs(600);
const AGE_MAX: Duration = Duration::from_secs(1800);

/// How long a transaction may stand idle before the server ends it: a frozen writer's locks must not keep its successor
/// from claiming.
const IDLE_IN_TRANSACTION: &str = "15s";

/// How long a farewell to the server may take when the store is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server with nobody at the other end notices within about a minute; its default is two hours. By way of the list of
/// settings, for not every server has all of them.
const KEEPALIVES: &str = "SELECT set_config(s.name, t.value, false)
    FROM (VALUES ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'))
        AS t (name, value)
    JOIN pg_catalog.pg_settings AS s USING (name);";

/// The other users of a server's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Nobody, as long as it is ours.
    None,
    /// After each transaction anybody.
    PerTransaction,
}

/// Connections to one database, made when they are needed and bounded in number. Cheap to clone; all clones share them.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    /// One per host of the address, in its order.
    hosts: Vec<PgConnectOptions>,
    /// The host that took the last connection.
    host: AtomicUsize,
    connect_timeout: Duration,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    /// As in SQL, where it is not the database's own.
    search_path: Option<String>,
    /// The schema that stands for `dashi` in statements: that of a generation that is not live.
    schema: Option<Arc<str>>,
    connections_max: u32,
    seats: Arc<Semaphore>,
    /// Connections of an older generation are not used again.
    generation: AtomicU64,
    idle: Mutex<Vec<Live>>,
    /// The kind of pooler, once it is known.
    sharing: Mutex<Option<Sharing>>,
    asking: tokio::sync::Mutex<()>,
    /// Since when the database is away, from the first lost connection on.
    lost: Mutex<Option<Instant>>,
    closed: AtomicBool,
    closing: tokio::sync::Notify,
}

/// A connection that can be used.
struct Live {
    connection: PgConnection,
    generation: u64,
    made: Instant,
    idle_since: Instant,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Prepares connections, at most `connections_max` at once, and makes none yet.
    pub fn new(address: &Address, connections_max: u32, statement_timeout: Duration) -> Self {
        let sharing = match address.pooler {
            Pooler::PerTransaction => Some(Sharing::PerTransaction),
            Pooler::None => Some(Sharing::None),
            Pooler::Unknown => None,
        };
        let connections_max = address.connections_max.unwrap_or(connections_max).max(1);
        let statement_timeout =
            address.socket_timeout.map_or(statement_timeout, |limit| limit.min(statement_timeout));
        let pool = Self(Arc::new(Shared {
            hosts: address.options.clone(),
            host: AtomicUsize::new(0),
            connect_timeout: address.connect_timeout.min(statement_timeout + GRACE),
            acquire_timeout: address.acquire_timeout.min(statement_timeout + GRACE),
            statement_timeout,
            search_path: address.schema.as_deref().map(quoted),
            schema: None,
            connections_max,
            seats: Arc::new(Semaphore::new(connections_max as usize)),
            generation: AtomicU64::new(0),
            idle: Mutex::default(),
            sharing: Mutex::new(sharing),
            asking: tokio::sync::Mutex::default(),
            lost: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: tokio::sync::Notify::new(),
        }));
        if sharing == Some(Sharing::PerTransaction) {
            pool.0.log_shared("the store's address sets it");
        }
        pool
    }

    /// Connections of their own to the same database.
    pub fn another(&self) -> Self {
        self.like(self.0.schema.clone(), self.0.search_path.clone(), self.0.connections_max)
    }

    /// The same for statements that may be slow, which are not logged for that, with another bound on their number.
    pub fn for_slow(&self, connections_max: u32) -> Self {
        let mut pool = self.like(self.0.schema.clone(), self.0.search_path.clone(), connections_max.max(1));
        // Nobody else has it yet.
        if let Some(shared) = Arc::get_mut(&mut pool.0) {
            for host in &mut shared.hosts {
                *host = host.clone().disable_statement_logging();
            }
        }
        pool
    }

    /// The same, in which the tables of a schema come before those of `search_path`, and stand for those of the schema
    /// `dashi`.
    pub fn within(&self, schema: &str, search_path: &str) -> Self {
        let search_path = format!("{}, {search_path}", quoted(schema));
        self.like(Some(schema.into()), Some(search_path), self.0.connections_max)
    }

    fn like(&self, schema: Option<Arc<str>>, search_path: Option<String>, connections_max: u32) -> Self {
        let shared = &self.0;
        Self(Arc::new(Shared {
            hosts: shared.hosts.clone(),
            host: AtomicUsize::new(shared.host.load(Ordering::Relaxed)),
            connect_timeout: shared.connect_timeout,
            acquire_timeout: shared.acquire_timeout,
            statement_timeout: shared.statement_timeout,
            search_path,
            schema,
            connections_max,
            seats: Arc::new(Semaphore::new(connections_max as usize)),
            generation: AtomicU64::new(0),
            idle: Mutex::default(),
            sharing: Mutex::new(*lock(&shared.sharing)),
            asking: tokio::sync::Mutex::default(),
            lost: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: tokio::sync::Notify::new(),
        }))
    }

    /// A connection of one's own, with a bound for each step on the way to it. One that was used at most `proven` ago is
    /// not asked whether it answers.
    async fn acquire(&self, proven: Duration) -> Result<Session, sqlx::Error> {
        let shared = &self.0;
        let deadline = tokio::time::Instant::now() + shared.acquire_timeout;
        let seat = match timeout_at(deadline, Arc::clone(&shared.seats).acquire_owned()).await {
            Ok(Ok(seat)) => seat,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => return Err(sqlx::Error::PoolTimedOut),
        };
        while let Some(mut live) = shared.take_idle() {
            if live.idle_since.elapsed() < proven {
                return Ok(self.session(live, seat));
            }
            let answered = match timeout(PROBE, live.connection.ping()).await {
                Ok(answered) => answered,
                Err(_) => Err(silent(PROBE)),
            };
            match answered {
                Ok(()) => return Ok(self.session(live, seat)),
                Err(error) => shared.lose(live.generation, Some(&error)),
            }
        }
        let live = self.connect().await?;
        Ok(self.session(live, seat))
    }

    /// A connection in a transaction of its own.
    pub async fn begin(&self) -> Result<Session, sqlx::Error> {
        let mut session = self.acquire(PROVEN_FOR_TRANSACTION).await?;
        session.begin().await?;
        Ok(session)
    }

    /// Where a listener of its own connects to, and how long that may take. `None` where nobody can listen, since the
    /// server's connection belongs to somebody else after each transaction.
    pub async fn listening(&self) -> Result<Option<(PgConnectOptions, Duration)>, sqlx::Error> {
        match self.sharing().await? {
            Sharing::PerTransaction => Ok(None),
            Sharing::None => {
                let shared = &self.0;
                let host = shared.host.load(Ordering::Relaxed);
                Ok(Some((shared.hosts[host].clone(), shared.connect_timeout)))
            }
        }
    }

    /// To be called once that listener is connected.
    pub async fn listened(&self) {
        self.0.set_socket_options(self.0.host.load(Ordering::Relaxed)).await;
    }

    /// Throws away idle connections, and those in use once they are given back: the server is not the one to talk to.
    pub fn renew(&self) {
        self.0.lose(self.0.generation.load(Ordering::Acquire), None);
    }

    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Returns when the pool is closed.
    pub async fn closed(&self) {
        let mut closing = std::pin::pin!(self.0.closing.notified());
        closing.as_mut().enable();
        if !self.is_closed() {
            closing.await;
        }
    }

    /// Lets go of all connections, those in use as soon as they are given back. Takes a second at most.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.seats.close();
        self.0.closing.notify_waiters();
        let idle = std::mem::take(&mut *lock(&self.0.idle));
        let farewells = idle.into_iter().map(|live| timeout(FAREWELL, live.connection.close()));
        // A server that does not receive it notices the closed socket.
        let _ = futures::future::join_all(farewells).await;
    }

    fn session(&self, live: Live, seat: OwnedSemaphorePermit) -> Session {
        let sharing = lock(&self.0.sharing).unwrap_or(Sharing::None);
        Session {
            live: Some(live),
            pool: self.clone(),
            sharing,
            in_transaction: false,
            busy: false,
            broken: false,
            patience: None,
            _seat: seat,
        }
    }

    /// A fresh connection, of the first host that takes one; of several hosts, the first that can be written to.
    async fn connect(&self) -> Result<Live, sqlx::Error> {
        let sharing = self.sharing().await?;
        let shared = &self.0;
        let generation = shared.generation.load(Ordering::Acquire);
        let hosts = shared.hosts.len();
        let first = shared.host.load(Ordering::Relaxed);
        let mut failed = None;
        for host in (0..hosts).map(|step| (first + step) % hosts) {
            let connected = async {
                let mut connection = shared.connect_to(host).await?;
                let mut setting = String::new();
                if sharing == Sharing::None {
                    setting.push_str(&shared.settings("SET"));
                    setting.push_str(KEEPALIVES);
                }
                setting.push_str("SHOW transaction_read_only");
                let read_only = last_text(&mut connection, setting, shared.connect_timeout).await?;
                if hosts > 1 && read_only == "on" {
                    return Err(sqlx::Error::Io(std::io::Error::other("the server is read-only")));
                }
                Ok(connection)
            };
            match connected.await {
                Ok(connection) => {
                    shared.host.store(host, Ordering::Relaxed);
                    let now = Instant::now();
                    return Ok(Live { connection, generation, made: now, idle_since: now });
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(sqlx::Error::PoolTimedOut))
    }

    /// Whether a pooler shares connections between transactions. That is asked of the server once: of two sessions that
    /// are open side by side, each has a process of its own there and keeps it, unless somebody between them and the
    /// server deals out processes as they come.
    async fn sharing(&self) -> Result<Sharing, sqlx::Error> {
        let shared = &self.0;
        let _asking = shared.asking.lock().await;
        if let Some(sharing) = *lock(&shared.sharing) {
            return Ok(sharing);
        }
        let host = shared.host.load(Ordering::Relaxed);
        let mut first = shared.connect_any(host).await?;
        let first_process = process(&mut first, shared.connect_timeout).await?;
        let sharing = match shared.is_dealt_out(&mut first, &first_process).await {
            Ok(true) => Sharing::PerTransaction,
            // A client that gets no second connection has the first one for itself.
            Ok(false) | Err(_) => Sharing::None,
        };
        *lock(&shared.sharing) = Some(sharing);
        if sharing == Sharing::PerTransaction {
            shared.log_shared("two sessions were given the same process of the server");
        }
        Ok(sharing)
    }
}

impl Shared {
    /// Connects to a host, or to the next ones if that fails.
    async fn connect_any(&self, host: usize) -> Result<PgConnection, sqlx::Error> {
        let mut failed = None;
        for step in 0..self.hosts.len() {
            let host = (host + step) % self.hosts.len();
            match self.connect_to(host).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(sqlx::Error::PoolTimedOut))
    }

    async fn connect_to(&self, host: usize) -> Result<PgConnection, sqlx::Error> {
        match timeout(self.connect_timeout, PgConnection::connect_with(&self.hosts[host])).await {
            Ok(connected) => {
                if connected.is_ok() {
                    self.set_socket_options(host).await;
                }
                connected
            }
            Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no connection within {} ms", self.connect_timeout.as_millis()),
            ))),
        }
    }

    async fn set_socket_options(&self, host: usize) {
        socket::set_options(self.hosts[host].get_port(), self.statement_timeout + GRACE).await;
    }

    /// Whether two sessions have, or come to have, one process of the server.
    async fn is_dealt_out(
        &self,
        first: &mut PgConnection,
        process_of_first: &str,
    ) -> Result<bool, sqlx::Error> {
        let limit = PROBE;
        let host = self.host.load(Ordering::Relaxed);
        let second = timeout(limit, self.connect_any(host)).await.map_err(|_| silent(limit))?;
        let mut second = second?;
        let process_of_second = process(&mut second, limit).await?;
        let mut is_dealt_out = process_of_second == process_of_first;
        // Beside other clients of a pooler, they may get different ones for a while.
        for _ in 0..4 {
            is_dealt_out = is_dealt_out
                || process(first, limit).await? != process_of_first
                || process(&mut second, limit).await? != process_of_second;
        }
        Ok(is_dealt_out)
    }

    fn log_shared(&self, because: &str) {
        tracing::info!(
            because,
            "a pooler shares the database's connections between transactions: statements are not prepared, limits are \
             set for each transaction, and readers look for changes of profiles once a second instead of being notified"
        );
    }

    /// Limits and search path, by `SET` or `SET LOCAL`.
    fn settings(&self, set: &str) -> String {
        let mut settings = format!(
            "{set} statement_timeout = {}; {set} idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION}';",
            self.statement_timeout.as_millis()
        );
        if let Some(search_path) = &self.search_path {
            settings.push_str(&format!("{set} search_path = {search_path};"));
        }
        if self.schema.is_some() {
            // A generation is made again from the log; the commit that makes it live waits for all before it.
            settings.push_str(&format!("{set} synchronous_commit = off;"));
        }
        settings
    }

    /// The connection that was used last: so those that are not needed grow old.
    fn take_idle(&self) -> Option<Live> {
        let generation = self.generation.load(Ordering::Acquire);
        let mut idle = lock(&self.idle);
        idle.retain(|live| {
            live.generation == generation
                && live.idle_since.elapsed() < IDLE_MAX
                && live.made.elapsed() < AGE_MAX
        });
        idle.pop()
    }

    fn give_back(&self, mut live: Live) {
        let is_current = live.generation == self.generation.load(Ordering::Acquire);
        if is_current && !self.closed.load(Ordering::Acquire) {
            live.idle_since = Instant::now();
            lock(&self.idle).push(live);
        }
    }

    /// A connection of this generation is no longer any good: nor are the others. `error` shows that the database is
    /// away; it is logged once until the database answers again.
    fn lose(&self, generation: u64, error: Option<&sqlx::Error>) {
        let next = generation + 1;
        let ended =
            self.generation.compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !ended {
            // One of those that were given up before.
            return;
        }
        lock(&self.idle).clear();
        let Some(error) = error else { return };
        let mut lost = lock(&self.lost);
        if lost.is_none() && !self.closed.load(Ordering::Acquire) {
            *lost = Some(Instant::now());
            tracing::warn!(error = %crate::error::DriverMessage::new(error), "lost the connection to the database; connecting again");
        }
    }

    /// A statement was answered on a connection of this generation.
    fn answered(&self, generation: u64) {
        if generation != self.generation.load(Ordering::Acquire) {
            return;
        }
        let lost = lock(&self.lost).take();
        if let Some(since) = lost {
            let away_ms = since.elapsed().as_millis() as u64;
            tracing::info!(away_ms, "the database answers again");
        }
    }

    /// A statement is not known, or known as another one: so this is not the server that prepared it.
    fn found_shared(&self) {
        let before = lock(&self.sharing).replace(Sharing::PerTransaction);
        if before != Some(Sharing::PerTransaction) {
            self.log_shared("a prepared statement was not there any more");
        }
    }
}

/// A name in SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn silent(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the database has not answered for {} ms", limit.as_millis()),
    ))
}

/// The process of the server that serves a connection, or its transaction.
async fn process(connection: &mut PgConnection, limit: Duration) -> Result<String, sqlx::Error> {
    last_text(connection, "SELECT pg_backend_pid()::text".to_owned(), limit).await
}

/// The only column of the last row that statements give.
async fn last_text(
    connection: &mut PgConnection,
    sql: String,
    limit: Duration,
) -> Result<String, sqlx::Error> {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection);
    let rows = timeout(limit, rows).await.map_err(|_| silent(limit))??;
    rows.last().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
