//! The websites that take events: a list kept in memory, which outlives the database's outages.
//!
//! The list is read again at intervals, and once more (for all who ask together) when an event names a website
//! that is not on it. So a new website is found at once, and a flood of unknown ids costs a few list reads a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dashi_store::Store;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How the list is kept.
#[derive(Debug, Clone, Copy)]
pub struct WebsitesSettings {
    /// How often it is read again when nobody asks.
    pub refresh: Duration,
    /// How long a website that was not on it is taken to be absent without reading it again.
    pub recheck: Duration,
}

/// Least time between two reads of the list.
const SPACING: Duration = Duration::from_millis(100);

/// How long a request waits for a read.
const WAIT: Duration = Duration::from_secs(5);

/// Ids remembered as absent; past that the memory starts anew.
const ABSENT_MAX: usize = 10_000;

/// What is known of a website.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It takes events.
    Yes,
    /// There is none with this id.
    No,
    /// The store could not be asked.
    Unsure,
}

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Websites(Arc<Shared>);

struct Shared {
    store: Store,
    settings: WebsitesSettings,
    listed: RwLock<Arc<HashSet<Uuid>>>,
    absent: Mutex<HashMap<Uuid, Instant>>,
    wanted: Notify,
    /// The last read: when it began, and whether it succeeded.
    read: watch::Sender<Option<(Instant, bool)>>,
}

impl Websites {
    /// An empty list that [`Websites::keep`] fills.
    pub fn new(store: Store, settings: WebsitesSettings) -> Self {
        Self(Arc::new(Shared {
            store,
            settings,
            listed: RwLock::default(),
            absent: Mutex::default(),
            wanted: Notify::new(),
            read: watch::Sender::new(None),
        }))
    }

    /// Keeps the list until `stop`. One task of this must run.
    pub async fn keep(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let began = Instant::now();
            let listed = tokio::select! {
                () = stop.cancelled() => return,
                listed = self.0.store.websites() => listed,
            };
            let succeeded = listed.is_ok();
            match listed {
                Ok(websites) => {
                    let ids = websites.into_iter().map(|website| website.id).collect();
                    *self.0.listed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ids);
                }
                Err(error) if !failing => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        error = %error, cause,
                        "the list of websites cannot be read; events of those on it are taken all the same"
                    );
                }
                Err(_) => {}
            }
            failing = !succeeded;
            self.0.read.send_replace(Some((began, succeeded)));
            let pause = if succeeded { self.0.settings.refresh } else { Duration::from_secs(1) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.0.wanted.notified() => tokio::time::sleep(SPACING).await,
            }
        }
    }

    /// Whether the list was ever read: before that, no unknown website can be told from a new one.
    pub fn is_loaded(&self) -> bool {
        self.0.read.borrow().is_some_and(|(_, succeeded)| succeeded) || !self.listed().is_empty()
    }

    /// Whether a website takes events. Waits for a read of the list if it is not on it, for a bounded time.
    pub async fn knows(&self, id: Uuid) -> Known {
        if self.listed().contains(&id) {
            return Known::Yes;
        }
        let asked = Instant::now();
        if self.lock_absent().get(&id).is_some_and(|since| since.elapsed() < self.0.settings.recheck) {
            return Known::No;
        }
        let mut read = self.0.read.subscribe();
        self.0.wanted.notify_one();
        let waited = tokio::time::timeout(
            WAIT,
            // A read that began before this request may have missed a website that was added since.
            read.wait_for(|read| read.is_some_and(|(began, succeeded)| began >= asked || !succeeded)),
        )
        .await;
        match waited {
            Ok(Ok(read)) if read.is_some_and(|(_, succeeded)| succeeded) => {}
            _ => return Known::Unsure,
        }
        if self.listed().contains(&id) {
            return Known::Yes;
        }
        let mut absent = self.lock_absent();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(id, asked);
        Known::No
    }

    fn listed(&self) -> Arc<HashSet<Uuid>> {
        Arc::clone(&self.0.listed.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_absent(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.0.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
