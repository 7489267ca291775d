//! From settings to logs, stores and rules.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use dashi_config::{LogUrl, Settings, StoreUrl, parse_log_url, parse_store_url};
use dashi_domain::calendar::SaltRotation;
use dashi_domain::fold::FoldRules;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret};
use dashi_domain::parking::ParkingLimits;
use dashi_domain::spans::Tracer;
use dashi_domain::umami::Release;
use dashi_event_log::{
    EmbeddedLog, EmbeddedSettings, EventLog, KafkaLog, KafkaSettings, ReadLimit, SpoolSettings,
};
use dashi_projector::ProjectorSettings;
use dashi_store::{
    PostgresSettings, PostgresStore, SqliteSettings, SqliteStore, Store, StoreError, UmamiTables,
};
use jiff::tz::TimeZone;

use crate::secret_file;

/// Whether a file that is not there may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Make the file.
    Create,
    /// Fail.
    Refuse,
}

/// Most bytes that a record adds to the body of its request.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// Opens the event log.
pub async fn log(settings: &Settings, absent: Absent) -> anyhow::Result<EventLog> {
    Ok(match parse_log_url(&settings.log)? {
        LogUrl::Sqlite(path) => {
            refuse_absent(&path, absent, "event log")?;
            EventLog::Embedded(
                EmbeddedLog::open(EmbeddedSettings {
                    path,
                    partitions: settings.event_log.partitions,
                    queue_max: settings.event_log.append_queue_max,
                    batch_max: settings.event_log.append_batch_max,
                })
                .await?,
            )
        }
        LogUrl::Kafka { brokers, topic } => {
            EventLog::Kafka(KafkaLog::open(kafka_settings(settings, brokers, topic)).await?)
        }
    })
}

/// Opens the event log of a process that collects. One on Kafka is remembered in the spool's directory; with `may_be_away`, it is
/// opened by that while no broker answers.
pub async fn collected_log(
    settings: &Settings,
    spool: Option<&SpoolSettings>,
    may_be_away: bool,
) -> anyhow::Result<EventLog> {
    match (parse_log_url(&settings.log)?, spool) {
        (LogUrl::Kafka { brokers, topic }, Some(spool)) => {
            let kafka = kafka_settings(settings, brokers, topic);
            Ok(EventLog::Kafka(KafkaLog::open_for_spool(kafka, &spool.directory, may_be_away).await?))
        }
        _ => log(settings, Absent::Create).await,
    }
}

fn kafka_settings(settings: &Settings, brokers: String, topic: String) -> KafkaSettings {
    KafkaSettings {
        brokers,
        topic,
        partitions: settings.event_log.partitions,
        replication_factor: settings.kafka.replication_factor,
        delivery_timeout: Duration::from_millis(settings.kafka.delivery_timeout_ms),
        linger: Duration::from_millis(settings.kafka.linger_ms),
        session_timeout: Duration::from_millis(settings.kafka.session_timeout_ms),
        instance_id: Some(settings.kafka.instance_id.clone()).filter(|id| !id.is_empty()),
        queue_max: settings.event_log.append_queue_max,
        record_bytes_max: settings.ingest.body_bytes_max.saturating_add(ENVELOPE_BYTES_MAX),
        topic_check_interval: Duration::from_millis(settings.kafka.topic_check_ms),
        properties: settings.kafka.properties.clone(),
    }
}

/// The settings of a collector's spool; `None` without one. An embedded log opens none. `adopt` forwards what waits for other
/// logs to this one.
pub fn spool_settings(settings: &Settings, adopt: bool, tracer: Tracer) -> Option<SpoolSettings> {
    let ingest = &settings.ingest;
    ingest.spool.then(|| SpoolSettings {
        directory: ingest.spool_directory.clone().into(),
        bytes_max: ingest.spool_bytes_max,
        age_max: Duration::from_secs(ingest.spool_age_s_max),
        after: Duration::from_millis(ingest.spool_after_ms),
        queue_max: settings.event_log.append_queue_max,
        batch_max: settings.event_log.append_batch_max,
        adopt,
        tracer,
    })
}

/// Opens a store by its URL. No connection to PostgreSQL is made yet.
pub async fn store(url: &str, settings: &Settings, absent: Absent) -> anyhow::Result<Store> {
    Ok(match parse_store_url(url)? {
        StoreUrl::Sqlite(path) => {
            refuse_absent(&path, absent, "store")?;
            Store::Sqlite(SqliteStore::open(&SqliteSettings { path }).await?)
        }
        StoreUrl::Postgres(url) => Store::Postgres(PostgresStore::open(&PostgresSettings {
            url,
            connections_max: settings.database.pool_connections_max,
            statement_timeout: Duration::from_millis(settings.database.statement_timeout_ms),
        })?),
    })
}

fn refuse_absent(path: &Path, absent: Absent, what: &str) -> anyhow::Result<()> {
    if absent == Absent::Refuse && !path.exists() {
        anyhow::bail!("there is no {what} at {}: `dashi serve` creates it", path.display());
    }
    Ok(())
}

/// The time zone of calendar boundaries.
pub fn zone(settings: &Settings) -> anyhow::Result<TimeZone> {
    TimeZone::get(&settings.timezone).with_context(|| format!("timezone = {:?}", settings.timezone))
}

/// The rules of ids, except the effect of a distinct id: see [`Formula`].
pub fn id_rules(settings: &Settings) -> anyhow::Result<IdRules> {
    let (rotation, zone) = salt_period(settings)?;
    let secret = Secret::from_text(&secret_text(settings)?);
    Ok(IdRules { secret, rotation, zone, identified: IdentifiedSessions::Shared })
}

/// How often anonymous visitors get new session ids, and in which time zone a period begins.
pub fn salt_period(settings: &Settings) -> anyhow::Result<(SaltRotation, TimeZone)> {
    let rotation = match settings.ingest.salt_rotation {
        dashi_config::SaltRotation::Month => SaltRotation::Month,
        dashi_config::SaltRotation::Week => SaltRotation::Week,
        dashi_config::SaltRotation::Day => SaltRotation::Day,
    };
    Ok((rotation, zone(settings)?))
}

/// Reads the values of settings that `serve` reads beyond their form, without opening or making anything.
pub fn parse_all(settings: &Settings) -> anyhow::Result<()> {
    crate::logging::filter(&settings.logs)?;
    projector_settings(settings, Release::OURS, false)?;
    release_by_settings(settings, &settings.store)?;
    if let (None, LogUrl::Sqlite(log)) = (settings.secret_text(), parse_log_url(&settings.log)?) {
        let path = log.with_file_name("secret");
        if path.exists() {
            secret_file::read_or_make(&path)?;
        }
    }
    if !settings.geo.database.is_empty() {
        let path = &settings.geo.database;
        std::fs::File::open(path).with_context(|| format!("geo.database = {path:?} cannot be read"))?;
    }
    Ok(())
}

/// The effect of a distinct id on a session, and why it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formula {
    /// The effect that is in force.
    pub identified: IdentifiedSessions,
    /// Why, in words.
    pub because: String,
}

impl Formula {
    /// Its name in the settings.
    pub fn name(&self) -> &'static str {
        match self.identified {
            IdentifiedSessions::Shared => "shared",
            IdentifiedSessions::Linked => "linked",
            IdentifiedSessions::PerDevice => "per-device",
        }
    }
}

/// The version of Umami whose rules events are taken and folded by, and why it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The version.
    pub release: Release,
    /// Why, in words.
    pub because: String,
}

/// The version whose rules hold, if the settings or the kind of the store decide it; `None` if the database does. `url` is
/// the store's.
///
/// # Errors
/// The URL is not valid.
pub fn release_by_settings(settings: &Settings, url: &str) -> anyhow::Result<Option<InForce>> {
    let because = |release, because: &str| Some(InForce { release, because: because.to_owned() });
    let set = |release| because(release, "it is set");
    Ok(match (settings.umami_release, parse_store_url(url)?) {
        (dashi_config::UmamiRelease::V3_0, _) => set(Release::V3_0),
        (dashi_config::UmamiRelease::V3_1, _) => set(Release::V3_1),
        (dashi_config::UmamiRelease::V3_2, _) => set(Release::V3_2),
        (dashi_config::UmamiRelease::V3_3, _) => set(Release::V3_3),
        (dashi_config::UmamiRelease::V3_4, _) => set(Release::V3_4),
        (dashi_config::UmamiRelease::Auto, StoreUrl::Sqlite(_)) => {
            because(Release::OURS, "the store is a file")
        }
        (dashi_config::UmamiRelease::Auto, StoreUrl::Postgres(_)) => None,
    })
}

/// The version of Umami that made the database's tables.
///
/// # Errors
/// The store does not answer.
pub async fn release_by_store(store: &Store) -> Result<InForce, StoreError> {
    Ok(match store.umami().await? {
        Some(UmamiTables { release, by }) => {
            InForce { release, because: format!("the database is one of Umami {release}: {by}") }
        }
        None => InForce { release: Release::OURS, because: "the store has no tables of Umami's".to_owned() },
    })
}

/// The effect of a distinct id on a session, if the settings decide it.
pub fn formula_by_settings(settings: &Settings) -> Option<Formula> {
    let identified = match settings.ingest.identified_sessions {
        dashi_config::IdentifiedSessions::Auto => return None,
        dashi_config::IdentifiedSessions::Shared => IdentifiedSessions::Shared,
        dashi_config::IdentifiedSessions::Linked => IdentifiedSessions::Linked,
        dashi_config::IdentifiedSessions::PerDevice => IdentifiedSessions::PerDevice,
    };
    Some(Formula { identified, because: "it is set".to_owned() })
}

/// The effect of a distinct id on a session in a version of Umami.
pub fn formula_by_release(in_force: &InForce) -> Formula {
    Formula { identified: in_force.release.identified_sessions(), because: in_force.because.clone() }
}

/// The rules of the fold.
///
/// # Errors
/// The time zone is not known.
pub fn fold_rules(settings: &Settings, release: Release) -> anyhow::Result<FoldRules> {
    let is_linked = settings.ingest.identified_sessions == dashi_config::IdentifiedSessions::Linked;
    let rules = FoldRules {
        zone: zone(settings)?,
        remove_trailing_slash: settings.fold.remove_trailing_slash,
        release,
        names_sessions: is_linked,
        null_deletes: settings.profiles.null_deletes,
    };
    Ok(rules.by(release))
}

/// Settings of a projector or of a replay, without spans.
pub fn projector_settings(
    settings: &Settings,
    release: Release,
    accept_new_log: bool,
) -> anyhow::Result<ProjectorSettings> {
    Ok(ProjectorSettings {
        group: settings.kafka.group.clone(),
        owner: owner(),
        fold: dashi_domain::fold::fold,
        rules: fold_rules(settings, release)?,
        parking: settings.dead_letters.park_session.then_some(ParkingLimits {
            waiting_max: settings.dead_letters.parked_records_max,
            sessions_max: settings.dead_letters.parked_sessions_max,
        }),
        read_limit: ReadLimit {
            records_max: settings.projector.batch_records_max,
            bytes_max: settings.projector.batch_bytes_max,
            wait: Duration::from_millis(settings.projector.read_wait_ms),
        },
        batches_bytes_max: batches_bytes_max(settings.projector.batches_bytes_max),
        batch_interval: Duration::from_millis(settings.projector.batch_interval_ms),
        live_first_after: Some(Duration::from_secs(settings.projector.live_first_after_s))
            .filter(|after| !after.is_zero()),
        retry_wait_max: Duration::from_millis(settings.projector.retry_wait_ms_max),
        failed_retry: Duration::from_millis(settings.projector.failed_retry_ms),
        accept_new_log,
        tracer: Tracer::default(),
    })
}

/// The memory of batches: as it is set, or by the number of cores.
fn batches_bytes_max(set: usize) -> usize {
    const PER_CORE: usize = 4 << 20;
    if set > 0 {
        return set;
    }
    std::thread::available_parallelism().map_or(1, usize::from).max(2) * PER_CORE
}

/// Name of this process, for people who look at claims: host and process id.
pub fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}/{}", std::process::id())
}

/// The configured secret, or the one that an embedded Dashi keeps beside its log.
fn secret_text(settings: &Settings) -> anyhow::Result<String> {
    if let Some(text) = settings.secret_text() {
        return Ok(text.to_owned());
    }
    let LogUrl::Sqlite(log) = parse_log_url(&settings.log)? else {
        anyhow::bail!("a log on Kafka needs the setting `secret` (APP_SECRET)");
    };
    secret_file::read_or_make(&log.with_file_name("secret"))
}
