//! Layouts of the log: which one is in force, the task that keeps a process that appends to Kafka informed, and the last steps
//! of a growth, which any process may do.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use dashi_domain::layout::{Growth, Layout, Passed};
use dashi_event_log::{EventLog, KafkaLog};
use dashi_store::{Appender, Store, StoredLayout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::open;

/// How often the layouts are read; while a growth is under way, more often.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_OF_GROWTH: Duration = Duration::from_millis(100);

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How long a command may go without reading the layouts until it appends nothing any more. The store goes on without it when
/// it is silent for three times as long.
const LEASE: Duration = Duration::from_secs(10);

/// How long a growth may be committed until another process than the command finishes it.
const TAKE_OVER: Duration = Duration::from_secs(3);

/// The layouts that are or were in force, by version: one at least.
pub async fn known(log: &EventLog, store: &Store) -> anyhow::Result<Vec<Layout>> {
    match log {
        EventLog::Embedded(log) => Ok(log.layouts().await?),
        EventLog::Kafka(_) => {
            let stored = store.layouts(log.id()).await?;
            Ok(of_stored(&stored, log.partitions().await?.len() as u32))
        }
    }
}

/// Those of the stored layouts that are or were in force; before the first one is noted, that of a topic with so many
/// partitions.
pub fn of_stored(stored: &[StoredLayout], in_topic: u32) -> Vec<Layout> {
    let known = stored.iter().filter(|stored| stored.state == Growth::Open).map(|stored| stored.layout);
    let known: Vec<Layout> = known.collect();
    if known.is_empty() { vec![Layout { version: 0, partitions: in_topic }] } else { known }
}

/// The layout in force, and the one of a growth that is under way.
pub fn in_force(stored: &[StoredLayout]) -> (Option<Layout>, Option<StoredLayout>) {
    let open = stored.iter().filter(|stored| stored.state == Growth::Open).map(|stored| stored.layout).max();
    (open, stored.iter().find(|stored| stored.state.is_pending()).copied())
}

/// The layouts as they are stored; the first one is noted if there is none.
pub async fn stored(log: &KafkaLog, store: &Store) -> anyhow::Result<Vec<StoredLayout>> {
    let id = log.id();
    let stored = store.layouts(id).await?;
    if !stored.is_empty() {
        return Ok(stored);
    }
    store.note_first_layout(id, log.partition_count().await?).await?;
    Ok(store.layouts(id).await?)
}

/// Finishes a growth that is committed: the topic's partitions, the barriers, and the new layout. It may be done by several
/// processes at once, and again.
pub async fn finish(
    log: &KafkaLog,
    store: &Store,
    current: Layout,
    growth: &StoredLayout,
) -> anyhow::Result<()> {
    let Layout { version, partitions: to } = growth.layout;
    log.make_partitions(to).await?;
    let layouts = Passed { version, from: current.partitions, to };
    log.append_barriers(layouts, growth.changed_at_ms).await.context("a barrier was not appended")?;
    store.move_growth(log.id(), version, Growth::Committed, Growth::Open).await?;
    Ok(())
}

/// Who appends.
pub enum Role {
    /// A collector at this address: it goes on while the store is away.
    Collector(std::net::SocketAddr),
    /// A command: it stops to append when it cannot read the layouts.
    Command,
}

/// Keeps a process that appends informed about the layouts of a log on Kafka.
pub struct Follower {
    log: KafkaLog,
    store: Store,
    appender: Appender,
    acknowledged: u32,
}

impl Follower {
    /// Reads the layouts once, if the store answers in time: until it does, nothing is appended. `None` for an embedded log,
    /// whose file has the layout.
    pub async fn start(log: &EventLog, store: &Store, role: &Role) -> Option<Self> {
        let EventLog::Kafka(kafka) = log else { return None };
        let (run_id, name) = (Uuid::now_v7(), open::owner());
        let host = name.split('/').next().unwrap_or_default();
        let (name, place) = match role {
            Role::Collector(address) => {
                let place = format!("{host} {address}");
                (place.clone(), place)
            }
            Role::Command => (name.clone(), run_id.to_string()),
        };
        let keeps_lease = matches!(role, Role::Command);
        let appender = Appender { run_id, log: log.id().clone(), name, place, keeps_lease };
        kafka.forget_layouts();
        if keeps_lease {
            kafka.keep_lease(LEASE);
        }
        let mut follower = Self { log: kafka.clone(), store: store.clone(), appender, acknowledged: 0 };
        match follower.look().await {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the log's layouts cannot be read yet")
            }
        }
        Some(follower)
    }

    /// Goes on until `stop`, which comes when nothing is appended any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut is_failing = false;
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                looked = self.look() => looked,
            };
            let grows = match looked {
                Ok(grows) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("the log's layouts can be read again");
                    }
                    grows
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the log's layouts cannot be read: `dashi partitions grow` waits for this process"
                        );
                    }
                    false
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(if grows { INTERVAL_OF_GROWTH } else { INTERVAL }) => {}
            }
        }
        self.stop().await;
    }

    /// Nothing is appended any more.
    pub async fn stop(self) {
        let forgotten = tokio::time::timeout(ATTEMPT, self.store.forget_appender(self.appender.run_id)).await;
        if !matches!(forgotten, Ok(Ok(_))) {
            tracing::warn!(
                name = self.appender.name,
                "the store could not note that this process appends no more: `dashi partitions grow` waits for it"
            );
        }
    }

    /// Acknowledges, reads the layouts and routes by them; returns whether a growth is under way.
    async fn look(&mut self) -> anyhow::Result<bool> {
        tokio::time::timeout(ATTEMPT, self.look_now())
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", ATTEMPT.as_secs()))?
    }

    async fn look_now(&mut self) -> anyhow::Result<bool> {
        let asked = Instant::now();
        // In this order: a growth that does not see this process yet is seen by it.
        self.store.note_appender(&self.appender, self.acknowledged).await?;
        let stored = stored(&self.log, &self.store).await?;
        let pairs: Vec<(Layout, Growth)> =
            stored.iter().map(|stored| (stored.layout, stored.state)).collect();
        self.log.see_layouts(&pairs, asked).await?;
        if let Some(version) = self.log.acknowledged_layout().filter(|version| *version != self.acknowledged)
        {
            self.store.note_appender(&self.appender, version).await?;
            self.acknowledged = version;
        }
        let (Some(current), Some(growth)) = in_force(&stored) else { return Ok(false) };
        let id = &self.appender.log;
        match growth.state {
            Growth::Draining if growth.is_expired => {
                let version = growth.layout.version;
                if self.store.move_growth(id, version, Growth::Draining, Growth::Aborted).await? {
                    tracing::warn!(
                        partitions = growth.layout.partitions,
                        "the growth of the log is given up: not all collectors acknowledged it in time"
                    );
                }
            }
            Growth::Committed if growth.age_ms > TAKE_OVER.as_millis() as i64 => {
                finish(&self.log, &self.store, current, &growth).await?;
                tracing::info!(partitions = growth.layout.partitions, "the log has grown");
            }
            _ => {}
        }
        Ok(true)
    }
}
