//! The only seat among the projectors of an embedded log, and the checkpoints that projections save in the file.

use std::fs::File;
use std::path::{Path, PathBuf};

use dashi_domain::position::Partition;
use sqlx::Connection as _;

use super::EmbeddedLog;
use super::catalogue::renew;
use crate::{LogError, Membership, Ownership, PartitionCheckpoint};

impl EmbeddedLog {
    pub(crate) fn membership(&self, group: &str) -> Result<Membership, LogError> {
        let lock = lock_path(&self.0.path);
        let away = LogError::away("taking the projector's lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(away)?;
        match file.try_lock() {
            Ok(()) => Ok(Membership::Sole(SoleMembership {
                log: self.clone(),
                group: group.to_owned(),
                assigned: 0,
                is_failing: false,
                _lock: file,
            })),
            Err(std::fs::TryLockError::WouldBlock) => Err(LogError::Taken { lock }),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(LogError::away("taking the projector's lock")(error))
            }
        }
    }

    pub(super) async fn save_checkpoints(
        &self,
        group: &str,
        checkpoints: &[PartitionCheckpoint],
    ) -> Result<(), LogError> {
        let away = LogError::away("saving the projection's checkpoints");
        let mut housekeeper = self.0.housekeeper.lock().await;
        let saved = async {
            let mut tx = housekeeper.begin_with("BEGIN IMMEDIATE").await?;
            for (partition, checkpoint) in checkpoints {
                sqlx::query(
                    "INSERT INTO position (projection, partition, checkpoint) VALUES (?, ?, ?)
                     ON CONFLICT (projection, partition) DO UPDATE SET checkpoint = excluded.checkpoint",
                )
                .bind(group)
                .bind(partition.number())
                .bind(checkpoint.offset().number() as i64)
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        }
        .await;
        if saved.is_err() {
            renew(&mut housekeeper, &self.0.path).await;
        }
        saved.map_err(away)
    }
}

/// The file whose lock the projecting process holds.
fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".projector-lock");
    lock.into()
}

/// See [`Membership::Sole`]. It owns all partitions for as long as it lives: the first change assigns them, and each other one
/// those by which the log has grown.
pub struct SoleMembership {
    log: EmbeddedLog,
    group: String,
    /// How many partitions are assigned.
    assigned: u32,
    /// Whether the last save failed.
    is_failing: bool,
    /// Its lock keeps a second projector away. The kernel releases it when the process ends, however it ends.
    _lock: File,
}

impl SoleMembership {
    pub(crate) async fn next(&mut self) -> Result<Ownership, LogError> {
        let mut partitions = self.log.0.segments.partitions().subscribe();
        loop {
            let (before, now) = (self.assigned, *partitions.borrow_and_update());
            if now > before {
                self.assigned = now;
                return Ok(Ownership::Assigned((before..now).map(Partition::new).collect()));
            }
            if partitions.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(crate) async fn save(&mut self, checkpoints: &[PartitionCheckpoint]) -> Vec<PartitionCheckpoint> {
        if checkpoints.is_empty() {
            return Vec::new();
        }
        match self.log.save_checkpoints(&self.group, checkpoints).await {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the event log saves the projection's checkpoints again");
                }
                checkpoints.to_vec()
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        error = %error, cause, "the event log cannot save the projection's checkpoints; trying again"
                    );
                }
                Vec::new()
            }
        }
    }
}
