//! Layouts of logs on Kafka, and the processes that append to them.

use async_recursion::async_recursion as boxed;
use dashi_domain::layout::{Growth, Layout};
use dashi_domain::position::LogId;
use uuid::Uuid;

use super::Store;
use crate::{Appender, AppenderState, StoreError, StoredLayout};

impl Store {
    /// The layouts of a log, by version, all of one moment; none if none was ever noted.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn layouts(&self, log: &LogId) -> Result<Vec<StoredLayout>, StoreError> {
        either!(self, store => store.layouts(log).await)
    }

    /// Notes the first layout of a log, version 0, unless there is one. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; call again.
    #[boxed]
    pub async fn note_first_layout(&self, log: &LogId, partitions: u32) -> Result<(), StoreError> {
        either!(self, store => store.note_first_layout(log, partitions).await)
    }

    /// Begins a growth: notes its layout as draining, to expire after so many seconds. Returns whether it is noted; `false` if
    /// another growth is under way, or the version is taken. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; read the layouts.
    #[boxed]
    pub async fn begin_growth(
        &self,
        log: &LogId,
        layout: Layout,
        expires_s: u32,
    ) -> Result<bool, StoreError> {
        either!(self, store => store.begin_growth(log, layout, expires_s).await)
    }

    /// Commits a growth that is draining, if every process that appends has acknowledged it. Returns whether it is committed
    /// by this call. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; read the layouts.
    #[boxed]
    pub async fn commit_growth(&self, log: &LogId, version: u32) -> Result<bool, StoreError> {
        either!(self, store => store.commit_growth(log, version).await)
    }

    /// Moves a layout from one state to another. Returns whether it was in that state. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; read the layouts.
    #[boxed]
    pub async fn move_growth(
        &self,
        log: &LogId,
        version: u32,
        from: Growth,
        to: Growth,
    ) -> Result<bool, StoreError> {
        either!(self, store => store.move_growth(log, version, from, to).await)
    }

    /// Notes that a process appends and has acknowledged this version; the first time, earlier runs at its place are
    /// forgotten. Durable on return. A process notes itself before it reads the layouts for the first time, so that a growth
    /// waits for it, or is seen by it.
    ///
    /// # Errors
    /// The store does not answer; call again.
    #[boxed]
    pub async fn note_appender(&self, appender: &Appender, acknowledged: u32) -> Result<(), StoreError> {
        either!(self, store => store.note_appender(appender, acknowledged).await)
    }

    /// Forgets a process that appends no more; returns whether it was there. Durable on return.
    ///
    /// # Errors
    /// The store does not answer; call again.
    #[boxed]
    pub async fn forget_appender(&self, run_id: Uuid) -> Result<bool, StoreError> {
        either!(self, store => store.forget_appender(run_id).await)
    }

    /// The processes that append to a log, by name.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn appenders(&self, log: &LogId) -> Result<Vec<AppenderState>, StoreError> {
        either!(self, store => store.appenders(log).await)
    }
}
