//! Growing the topic: its partitions, and the barriers in them. The layouts themselves are kept in the store, which this
//! crate does not know: the caller reads them there and passes them on.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use async_recursion::async_recursion as boxed;
use dashi_domain::layout::{Barrier, Growth, Layout, Passed, Routing};
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use uuid::Uuid;

use super::topic::{State, topic_state};
use super::{ASK, ASKS_APART, KafkaLog};
use crate::{AppendError, LogError, NewRecord};

/// How long the brokers may take until all of the topic's new partitions have leaders.
const MADE: Duration = Duration::from_secs(30);

impl KafkaLog {
    /// Sends nothing until [`Self::see_layouts`] is called: the layout in force is not known.
    pub fn forget_layouts(&self) {
        self.0.router.forget();
    }

    /// From now on nothing is sent while the layouts have not been read for so long.
    pub fn keep_lease(&self, lease: Duration) {
        self.0.router.keep_lease(lease);
    }

    /// Routes records by these layouts, which were read in the store, all at one moment, by a question that was asked at
    /// `asked`. Records that waited for it are sent.
    ///
    /// # Errors
    /// The brokers do not show the partitions of the layout in force yet: nothing changed, call again.
    #[boxed]
    pub async fn see_layouts(&self, stored: &[(Layout, Growth)], asked: Instant) -> Result<(), LogError> {
        let seen = self.0.router.routing().seen(stored);
        if let Some(current) = seen.current()
            // The first one needs no broker: a collector with a spool may start while they are away.
            && self.0.router.routing().current().is_some_and(|known| known != current)
        {
            self.learn(current.partitions).await?;
        }
        self.0.router.see(stored, asked);
        Ok(())
    }

    /// The layouts by which records are routed now.
    pub fn routing(&self) -> Routing {
        self.0.router.routing()
    }

    /// The version of the layout that this process acknowledges; `None` while records that were sent by an earlier one have no
    /// outcome yet.
    pub fn acknowledged_layout(&self) -> Option<u32> {
        self.0.router.acknowledges()
    }

    /// Makes partitions of the topic until it has so many, and waits until all have leaders. Nobody is sent there by it: the
    /// layout decides that.
    ///
    /// # Errors
    /// The cluster refuses or does not answer. Call again: partitions that are made stay.
    #[boxed]
    pub async fn make_partitions(&self, to: u32) -> Result<(), LogError> {
        const DOING: &str = "making partitions of its topic";
        let away = LogError::away;
        let deadline = tokio::time::Instant::now() + MADE;
        if self.partition_count().await? < to {
            let new = NewPartitions::new(&self.0.settings.topic, to as usize);
            let options = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK));
            let made = self.0.admin.create_partitions([&new], &options).await.map_err(away(DOING))?;
            if let Some(Err((_, code))) = made.into_iter().next()
                // Another command may have made them a moment ago.
                && code != RDKafkaErrorCode::InvalidPartitions
            {
                return Err(away(DOING)(KafkaError::AdminOp(code)));
            }
        }
        loop {
            let ready =
                self.ask_once(DOING, |shared| topic_state(&shared.admin, &shared.settings.topic)).await;
            match ready {
                Ok(State::Ready(partitions)) if partitions >= to => return Ok(()),
                Ok(_) if tokio::time::Instant::now() < deadline => {}
                Ok(_) => return Err(away(DOING)(KafkaError::AdminOp(RDKafkaErrorCode::LeaderNotAvailable))),
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(ASKS_APART).await;
        }
    }

    /// Appends the barriers of a growth that is committed: first those of the old partitions, then those of the new ones.
    /// Durable on return. They may be appended again: a second copy changes nothing.
    ///
    /// # Errors
    /// One of them was not acknowledged: call again.
    #[boxed]
    pub async fn append_barriers(&self, layouts: Passed, at_ms: i64) -> Result<(), AppendError> {
        for barrier in Barrier::all(self.id(), layouts, at_ms) {
            let record = NewRecord { session_id: Uuid::nil(), value: barrier.encode() };
            for appended in self.append_to(barrier.partition, vec![record]).await {
                appended?;
            }
        }
        Ok(())
    }

    /// Waits until the producer knows so many partitions, for it refuses records to others.
    pub(super) async fn learn(&self, partitions: u32) -> Result<(), LogError> {
        const DOING: &str = "waiting until the brokers show its partitions";
        if self.0.learnt.load(SeqCst) >= partitions {
            return Ok(());
        }
        let Ok(producer) = self.producer() else { return Ok(()) };
        let topic = self.0.settings.topic.clone();
        let learnt = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + ASK;
            loop {
                let known = producer.partitions(&topic, ASK);
                match known {
                    Ok(known) if known >= partitions => return Ok(()),
                    Ok(_) if Instant::now() >= deadline => {
                        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition));
                    }
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Ok(_) | Err(_) => std::thread::sleep(ASKS_APART),
                }
            }
        });
        learnt.await.map_err(LogError::away(DOING))?.map_err(LogError::away(DOING))?;
        self.0.learnt.fetch_max(partitions, SeqCst);
        Ok(())
    }
}
