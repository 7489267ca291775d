//! The store on PostgreSQL.

/// A column of the rows as an array parameter.
macro_rules! column {
    ($rows:expr, $row:ident => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>()
    };
}

mod address;
mod audit;
mod catalogue;
mod commit;
mod copy;
mod encoding;
mod erasure;
mod fitness;
mod generation;
pub(crate) mod heal;
pub(crate) mod history;
mod insert;
mod layouts;
mod letters;
mod pool;
mod profile;
mod read;
mod rows;
mod schema;
mod socket;
mod sources;
mod tail;
mod trace;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashi_domain::fold::Outcomes;
use dashi_domain::guard::GuardRow;
use dashi_domain::missing::{Missing, MissingCause};
use dashi_domain::position::{Checkpoint, Epoch, LogId, Offset, Partition};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use self::address::Address;
pub use self::address::AddressError;
use self::pool::Pool;
pub(crate) use self::rows::PostgresSnapshot;
use crate::redact_url;
use crate::{Claim, ClaimError, ErrorNote, MissingRange, PartitionState, StoreError};

/// How long a statement over whole tables may take: building an index, a step of a swap, reading rows to compare.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// Settings of a store on PostgreSQL.
#[derive(Clone)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database`, with the parameters that libpq, node-postgres and Prisma know.
    pub url: String,
    /// Connections, at most; fewer if the URL's `connection_limit` is lower.
    pub connections_max: u32,
    /// How long one statement may take: the server ends it then, and a client that has no answer a second later gives
    /// the connection up.
    pub statement_timeout: Duration,
}

impl std::fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSettings").field("url", &redact_url(&self.url)).finish_non_exhaustive()
    }
}

/// A store in a PostgreSQL database: one of Umami's, beside whose tables Dashi keeps the schema `dashi`, or a fresh one. Cheap
/// to clone; all clones share connections.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
    catalogue: Arc<Mutex<catalogue::Read>>,
    catalogue_age_max: Duration,
    repertoire: Arc<encoding::Repertoire>,
    changes: Arc<profile::ChangeFeed>,
    /// So many commits write their rows by `INSERT` at once, since a `COPY` failed.
    by_insert: Arc<AtomicU32>,
    /// Of a generation that is not live.
    beside: Option<Arc<generation::Beside>>,
}

impl PostgresStore {
    /// Prepares connections; makes none yet, so it works while the database is away.
    ///
    /// # Errors
    /// The URL cannot be understood.
    pub fn open(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let address = Address::parse(&settings.url)
            .map_err(|error| StoreError::Open { url: redact_url(&settings.url), source: Arc::new(error) })?;
        let pool = Pool::new(&address, settings.connections_max, settings.statement_timeout);
        Ok(Self {
            pool,
            catalogue: Arc::default(),
            catalogue_age_max: catalogue::AGE_MAX,
            repertoire: Arc::default(),
            changes: Arc::default(),
            by_insert: Arc::default(),
            beside: None,
        })
    }

    /// Whether [`PostgresStore::open`] would take the URL.
    ///
    /// # Errors
    /// Why not.
    pub fn check_url(url: &str) -> Result<(), AddressError> {
        Address::parse(url).map(|_| ())
    }

    /// Reads the catalogue again before a commit when it is older than this, so that an upgrade of Umami is noticed;
    /// else when it is a minute old.
    #[must_use]
    pub fn with_catalogue_age_max(self, catalogue_age_max: Duration) -> Self {
        Self { catalogue_age_max, ..self }
    }

    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        let doing = "asking whether it is there";
        let read_only: String = sqlx::query_scalar("SELECT current_setting('transaction_read_only')")
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::away(doing))?;
        if read_only == "on" {
            // Another server may have its place by now.
            self.pool.renew();
            return Err(StoreError::ReadOnly);
        }
        Ok(())
    }

    pub(crate) async fn logs(&self) -> Result<Vec<LogId>, StoreError> {
        let logs: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT log_id FROM dashi.checkpoint ORDER BY log_id")
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::away("listing its logs"))?;
        Ok(logs.into_iter().map(LogId::new).collect())
    }

    pub(crate) async fn claim(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        self.read_catalogue().await?;
        sqlx::query_as(
            "/* claim */
             INSERT INTO dashi.checkpoint (log_id, partition, checkpoint, epoch, owner, live)
             VALUES ($1, $2, 0, 1, $3, true)
             ON CONFLICT (log_id, partition) DO UPDATE
             SET epoch = dashi.checkpoint.epoch + 1, owner = excluded.owner, live = true,
                 updated_at = clock_timestamp()
             RETURNING epoch, checkpoint, fingerprint, last_error IS NOT NULL AND last_error_over_at IS NULL,
                 layout_version::bigint, layout_from::bigint, layout_to::bigint, tail_from, tail_to, tail_applied, tail_fingerprint",
        )
        .bind(log.as_str())
        .bind(partition.number() as i32)
        .bind(owner)
        .fetch_one(&self.pool)
        .await
        .map(|row| Claim::made(log, partition, row))
        .map_err(|error| StoreError::away("claiming a partition")(error).into())
    }

    pub(crate) async fn claim_for_replay(
        &self,
        log: &LogId,
        partition: Partition,
        owner: &str,
    ) -> Result<Claim, ClaimError> {
        let doing = "claiming a partition for a replay";
        self.read_catalogue().await?;
        // A live projector that claims another partition in this moment goes unseen; it fences this replay, or the
        // replay's next claim finds it.
        let row = sqlx::query_as(
            "/* claim_for_replay */
             INSERT INTO dashi.checkpoint (log_id, partition, checkpoint, epoch, owner, live)
             SELECT $1, $2, 0, 1, $3, false WHERE NOT EXISTS (SELECT 1 FROM dashi.checkpoint WHERE live)
             ON CONFLICT (log_id, partition) DO UPDATE
             SET epoch = dashi.checkpoint.epoch + 1, owner = excluded.owner, updated_at = clock_timestamp()
             WHERE NOT dashi.checkpoint.live
             RETURNING epoch, checkpoint, fingerprint, last_error IS NOT NULL AND last_error_over_at IS NULL,
                 layout_version::bigint, layout_from::bigint, layout_to::bigint, tail_from, tail_to, tail_applied, tail_fingerprint",
        )
        .bind(log.as_str())
        .bind(partition.number() as i32)
        .bind(owner)
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        if let Some(row) = row {
            return Ok(Claim::made(log, partition, row));
        }
        let (partition, owner): (i32, String) = sqlx::query_as(
            "SELECT partition, owner FROM dashi.checkpoint WHERE live ORDER BY updated_at DESC LIMIT 1",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        Err(ClaimError::Live { partition: Partition::new(partition as u32), owner })
    }

    pub(crate) async fn resume(&self, claim: &Claim) -> Result<Checkpoint, ClaimError> {
        let row = self.guard_row(claim).await.map_err(StoreError::away("reading a checkpoint"))?;
        claim.resume(row)
    }

    async fn guard_row(&self, claim: &Claim) -> Result<GuardRow, sqlx::Error> {
        let row = sqlx::query_as(
            "/* guard_row */ SELECT epoch, checkpoint, tail_from, tail_to, tail_applied FROM dashi.checkpoint
             WHERE log_id = $1 AND partition = $2",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .fetch_one(&self.pool)
        .await?;
        Ok(crate::tail::guard_row(row))
    }

    pub(crate) async fn note_error(&self, claim: &Claim, note: &ErrorNote<'_>) -> Result<(), StoreError> {
        // An error may quote a record, and text columns cannot hold U+0000.
        let text = note.text.replace('\0', "\u{fffd}");
        let text = self.stored_text(&text).await?;
        sqlx::query(
            "/* note_error */
             UPDATE dashi.checkpoint SET last_error = $4, last_error_kind = $5, last_error_at = dashi.at_ms($6),
                 last_error_over_at = CASE WHEN $7 THEN clock_timestamp() END
             WHERE log_id = $1 AND partition = $2 AND epoch = $3",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(claim.epoch.number() as i64)
        .bind(&*text)
        .bind(note.kind)
        .bind(note.at_ms)
        .bind(note.is_over)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("noting an error"))?;
        Ok(())
    }

    pub(crate) async fn note_over(&self, claim: &Claim) -> Result<(), StoreError> {
        sqlx::query(
            "/* note_over */
             UPDATE dashi.checkpoint SET last_error_over_at = clock_timestamp()
             WHERE log_id = $1 AND partition = $2 AND epoch = $3
               AND last_error IS NOT NULL AND last_error_over_at IS NULL",
        )
        .bind(claim.log.as_str())
        .bind(claim.partition.number() as i32)
        .bind(claim.epoch.number() as i64)
        .execute(&self.pool)
        .await
        .map_err(StoreError::away("noting that an error is over"))?;
        Ok(())
    }

    pub(crate) async fn partitions(&self) -> Result<Vec<PartitionState>, StoreError> {
        partition_states(&self.pool).await.map_err(StoreError::away("listing its partitions"))
    }

    pub(crate) async fn missing(&self) -> Result<Vec<MissingRange>, StoreError> {
        let doing = "listing what is missing";
        let rows = sqlx::query(
            "SELECT log_id, partition, start_offset, end_offset, records, cause,
                    (extract(epoch FROM noted_at) * 1000)::bigint AS noted_at_ms
             FROM dashi.missing ORDER BY log_id, partition, number",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::away(doing))?;
        rows.iter().map(missing_range).collect::<Result<_, _>>().map_err(StoreError::away(doing))
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

fn missing_range(row: &PgRow) -> Result<MissingRange, sqlx::Error> {
    let offset = |column| row.try_get::<i64, _>(column).map(|offset| Offset::new(offset as u64));
    Ok(MissingRange {
        log: LogId::new(row.try_get::<String, _>("log_id")?),
        partition: Partition::new(row.try_get::<i32, _>("partition")? as u32),
        missing: Missing {
            range: offset("start_offset")?..offset("end_offset")?,
            records: row.try_get::<i64, _>("records")? as u64,
            cause: MissingCause::named(row.try_get("cause")?).unwrap_or(MissingCause::Gap),
        },
        noted_at_ms: row.try_get("noted_at_ms")?,
    })
}

async fn partition_states(
    executor: impl sqlx::Executor<'_, Database = sqlx::Postgres>,
) -> Result<Vec<PartitionState>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT log_id, partition, checkpoint, epoch, owner, applied, duplicate, dead,
                missing, markers, rewound, fingerprint, layout_version, layout_from, layout_to, live, last_error, last_error_kind,
                tail_from, tail_to, tail_applied,
                (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at_ms,
                (extract(epoch FROM last_error_at) * 1000)::bigint AS last_error_at_ms,
                (extract(epoch FROM last_error_over_at) * 1000)::bigint AS last_error_over_at_ms
         FROM dashi.checkpoint ORDER BY log_id, partition",
    )
    .fetch_all(executor)
    .await?;
    rows.iter().map(partition_state).collect()
}

fn partition_state(row: &PgRow) -> Result<PartitionState, sqlx::Error> {
    let count = |column| row.try_get::<i64, _>(column).map(|count| count as u64);
    let small = |column| row.try_get::<i32, _>(column).map(i64::from);
    Ok(PartitionState {
        log: LogId::new(row.try_get::<String, _>("log_id")?),
        partition: Partition::new(row.try_get::<i32, _>("partition")? as u32),
        checkpoint: checkpoint_of(row.try_get("checkpoint")?),
        tail: crate::tail::tail((
            row.try_get("tail_from")?,
            row.try_get("tail_to")?,
            row.try_get("tail_applied")?,
        )),
        fingerprint: row.try_get("fingerprint")?,
        epoch: Epoch::new(count("epoch")?),
        owner: row.try_get("owner")?,
        outcomes: Outcomes {
            applied: count("applied")?,
            duplicate: count("duplicate")?,
            dead: count("dead")?,
        },
        missing: count("missing")?,
        markers: count("markers")?,
        rewound: count("rewound")?,
        updated_at_ms: row.try_get("updated_at_ms")?,
        layout: crate::layout::passed((small("layout_version")?, small("layout_from")?, small("layout_to")?)),
        is_live: row.try_get("live")?,
        last_error: row.try_get("last_error")?,
        last_error_kind: row.try_get("last_error_kind")?,
        last_error_at_ms: row.try_get("last_error_at_ms")?,
        last_error_over_at_ms: row.try_get("last_error_over_at_ms")?,
    })
}

fn checkpoint_of(stored: i64) -> Checkpoint {
    Checkpoint::at(Offset::new(stored as u64))
}
