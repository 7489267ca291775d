//! The catalogue as it was read last, and when it is read again.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Catalogue;
use crate::postgres::PostgresStore;
use crate::{StoreError, UmamiTables, Unwritten};

/// How old it may become before a commit reads it again, unless another age is set: two queries a minute.
pub(in crate::postgres) const AGE_MAX: Duration = Duration::from_secs(60);

/// The catalogue, and when it was read.
pub(in crate::postgres) type Read = Option<(Instant, Arc<Catalogue>)>;

impl PostgresStore {
    /// The catalogue, read again if the last time was long ago.
    pub(in crate::postgres) async fn catalogue(&self) -> Result<Arc<Catalogue>, StoreError> {
        let known = self.known_catalogue().clone();
        match known {
            Some((at, catalogue)) if at.elapsed() < self.catalogue_age_max => Ok(catalogue),
            _ => self.read_catalogue().await,
        }
    }

    /// Reads the catalogue, and logs the version that it recognised if that is new.
    pub(in crate::postgres) async fn read_catalogue(&self) -> Result<Arc<Catalogue>, StoreError> {
        let at = Instant::now();
        let read = self.ask_catalogue().await.map_err(StoreError::away("reading its catalogue"))?;
        read.check()?;
        let mut known = self.known_catalogue();
        let UmamiTables { release, by, .. } = read.recognised();
        match &*known {
            None => {
                tracing::info!(release = %release, by, "recognised Umami's tables");
                read.log_encoding();
            }
            Some((_, before)) if **before != read => tracing::warn!(
                release = %release, by,
                "Umami's tables have changed; rows are written for what they are now, and what was \
                 decided by the version at the start, such as session ids, stays so until the next start"
            ),
            Some(_) => {}
        }
        let unwritten = read.unwritten();
        if known.as_ref().is_none_or(|(_, before)| before.unwritten() != unwritten) {
            if let Some(line) = unwritten.line() {
                tracing::info!(unwritten = line, "not all that Umami has or could have is written here");
            }
            if let Some(warning) = unwritten.warning() {
                tracing::warn!("{warning}");
            }
        }
        let read = Arc::new(read);
        *known = Some((at, Arc::clone(&read)));
        Ok(read)
    }

    /// The version of Umami that made the tables; none if there are no tables yet.
    pub(crate) async fn umami(&self) -> Result<Option<UmamiTables>, StoreError> {
        Ok(self.catalogue_if_any().await?.map(|read| read.recognised()))
    }

    pub(crate) async fn unwritten(&self) -> Result<Option<Unwritten>, StoreError> {
        Ok(self.catalogue_if_any().await?.map(|read| read.unwritten()))
    }

    async fn catalogue_if_any(&self) -> Result<Option<Catalogue>, StoreError> {
        let read = self.ask_catalogue().await.map_err(StoreError::away("reading its catalogue"))?;
        if read.is_empty() {
            return Ok(None);
        }
        read.check()?;
        Ok(Some(read))
    }

    /// In a transaction: so it shows one moment, through the search path that is set for it.
    async fn ask_catalogue(&self) -> Result<Catalogue, sqlx::Error> {
        let mut session = self.pool.begin().await?;
        let read = Catalogue::read(&mut session).await;
        session.roll_back().await;
        read
    }

    pub(in crate::postgres) fn known_catalogue(&self) -> std::sync::MutexGuard<'_, Read> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
