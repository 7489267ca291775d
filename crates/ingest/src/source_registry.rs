//! The sources of events: websites, links and pixels, kept in memory, so that they outlive the database's outages.
//!
//! The lists are read again at intervals, and once more (for all waiting requests together) when a request names a
//! source that is not on them. So a new website is found at once, and a flood of unknown ids costs a few reads a
//! second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dashi_domain::client_address::BlockedAddresses;
use dashi_domain::page_url::{serialise, with_parameters};
use dashi_store::{LinkCampaign, Recorder, RecorderRules, Store, StoreError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How the lists are kept.
#[derive(Debug, Clone, Copy)]
pub struct SourceRegistrySettings {
    /// How often they are read again when no request needs it.
    pub refresh: Duration,
    /// How long a source that was not on them is taken to be absent without reading them again.
    pub recheck: Duration,
}

/// Least time between two reads of the lists.
const SPACING: Duration = Duration::from_millis(100);

/// How long a request waits for a read.
const WAIT: Duration = Duration::from_secs(5);

/// Most names that are remembered as absent; past that all of them are forgotten.
const ABSENT_MAX: usize = 10_000;

/// No slug is longer: the width of its column.
const SLUG_CHARS_MAX: usize = 100;

/// The result of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<T> {
    /// It takes events.
    Yes(T),
    /// There is none of this name.
    No,
    /// The store could not be asked.
    Unsure,
}

/// A website that takes events.
#[derive(Debug, Clone)]
pub struct Website {
    /// The settings of its recorder.
    pub recorder: Recorder,
    /// Addresses whose visits it ignores.
    pub blocked: BlockedAddresses,
}

/// A link and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTarget {
    /// The source of its events.
    pub id: Uuid,
    /// The URL of its target, as a URL parser writes it, with the campaign's parameters; `None` if the target is no
    /// URL.
    pub location: Option<String>,
    /// Campaign parameters of its visits, by name.
    pub campaign: Vec<(&'static str, String)>,
}

impl LinkTarget {
    fn new(link: &dashi_store::TrackedLink) -> Self {
        let values = LinkCampaign::NAMES.into_iter().zip(link.campaign.values());
        let campaign: Vec<_> = values.filter_map(|(name, value)| Some((name, value?.to_owned()))).collect();
        let location = serialise(&link.url).map(|url| with_parameters(&url, &campaign));
        Self { id: link.id, location, campaign }
    }
}

/// A source as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Website(Uuid),
    Link(String),
    Pixel(String),
}

#[derive(Default)]
struct Lists {
    websites: HashMap<Uuid, Arc<Website>>,
    /// The same for all websites of a store.
    recorder_rules: RecorderRules,
    links: HashMap<String, Arc<LinkTarget>>,
    pixels: HashMap<String, Uuid>,
}

impl Lists {
    async fn read(store: &Store) -> Result<Self, StoreError> {
        let websites = store.websites().await?;
        let links = store.links().await?;
        let pixels = store.pixels().await?;
        let website = |website: dashi_store::Website| {
            let blocked = BlockedAddresses::of_website(&website.blocked_addresses);
            (website.id, Arc::new(Website { recorder: website.recorder, blocked }))
        };
        let link = |link: dashi_store::TrackedLink| {
            let of_link = Arc::new(LinkTarget::new(&link));
            (link.slug, of_link)
        };
        Ok(Self {
            recorder_rules: websites.first().map(|website| website.recorder.rules).unwrap_or_default(),
            websites: websites.into_iter().map(website).collect(),
            links: links.into_iter().map(link).collect(),
            pixels: pixels.into_iter().map(|pixel| (pixel.slug, pixel.id)).collect(),
        })
    }
}

/// The lists of websites, links and pixels, kept in memory and read again at intervals, and when a request names a
/// source that is not on them. Cheap to clone.
#[derive(Clone)]
pub struct SourceRegistry(Arc<Shared>);

struct Shared {
    store: Store,
    settings: SourceRegistrySettings,
    lists: RwLock<Arc<Lists>>,
    absent: Mutex<HashMap<Name, Instant>>,
    wanted: Notify,
    /// The last read: when it began, and whether it succeeded.
    read: watch::Sender<Option<(Instant, bool)>>,
}

impl SourceRegistry {
    /// Empty lists that [`SourceRegistry::keep`] fills.
    pub fn new(store: Store, settings: SourceRegistrySettings) -> Self {
        Self(Arc::new(Shared {
            store,
            settings,
            lists: RwLock::default(),
            absent: Mutex::default(),
            wanted: Notify::new(),
            read: watch::Sender::new(None),
        }))
    }

    /// Keeps the lists until `stop`. One task of this must run.
    pub async fn keep(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let began = Instant::now();
            let lists = tokio::select! {
                () = stop.cancelled() => return,
                lists = Lists::read(&self.0.store) => lists,
            };
            let succeeded = lists.is_ok();
            match lists {
                Ok(lists) => {
                    warn_of_bad_addresses(&self.lists(), &lists);
                    *self.0.lists.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(lists);
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

    /// Whether the lists were ever read: before that, an unknown source may only be missing in memory.
    pub fn is_loaded(&self) -> bool {
        self.0.read.borrow().is_some_and(|(_, succeeded)| succeeded) || !self.lists().websites.is_empty()
    }

    /// A website. If it is not on the list, this waits a bounded time for a read of the lists, as do the other
    /// look-ups. A read that began after `asked`, the moment of the request, is recent enough: so the unknown websites
    /// of a whole batch wait for one read.
    pub async fn website(&self, id: Uuid, asked: Instant) -> Found<Arc<Website>> {
        self.find(Name::Website(id), asked, |lists| lists.websites.get(&id).cloned()).await
    }

    /// The same without waiting; `None` if the lists have to be read first.
    pub fn known_website(&self, id: Uuid) -> Option<Found<Arc<Website>>> {
        self.known(&Name::Website(id), |lists| lists.websites.get(&id).cloned())
    }

    /// A website, if it is on the list at this moment.
    pub(crate) fn listed_website(&self, id: Uuid) -> Option<Arc<Website>> {
        self.lists().websites.get(&id).cloned()
    }

    /// The rules of the store's recorders, by the last read of the lists.
    pub(crate) fn recorder_rules(&self) -> RecorderRules {
        self.lists().recorder_rules
    }

    /// The link of a slug, if it is on the list.
    pub fn known_link(&self, slug: &str) -> Option<Arc<LinkTarget>> {
        self.lists().links.get(slug).cloned()
    }

    /// The id of a slug's pixel, if it is on the list.
    pub fn known_pixel(&self, slug: &str) -> Option<Uuid> {
        self.lists().pixels.get(slug).copied()
    }

    /// The link of a slug.
    pub async fn link(&self, slug: &str) -> Found<Arc<LinkTarget>> {
        if slug.chars().count() > SLUG_CHARS_MAX {
            return Found::No;
        }
        self.find(Name::Link(slug.to_owned()), Instant::now(), |lists| lists.links.get(slug).cloned()).await
    }

    /// The id of a slug's pixel.
    pub async fn pixel(&self, slug: &str) -> Found<Uuid> {
        if slug.chars().count() > SLUG_CHARS_MAX {
            return Found::No;
        }
        self.find(Name::Pixel(slug.to_owned()), Instant::now(), |lists| lists.pixels.get(slug).copied()).await
    }

    async fn find<T>(&self, name: Name, asked: Instant, get: impl Fn(&Lists) -> Option<T>) -> Found<T> {
        if let Some(known) = self.known(&name, &get) {
            return known;
        }
        let mut read = self.0.read.subscribe();
        let is_recent = read.borrow().is_some_and(|(began, succeeded)| began >= asked && succeeded);
        if !is_recent {
            self.0.wanted.notify_one();
        }
        let waited = tokio::time::timeout(
            WAIT,
            // A read that began before this request may have missed sources that were added since.
            read.wait_for(|read| read.is_some_and(|(began, succeeded)| began >= asked || !succeeded)),
        )
        .await;
        match waited {
            Ok(Ok(read)) if read.is_some_and(|(_, succeeded)| succeeded) => {}
            _ => return Found::Unsure,
        }
        if let Some(found) = get(&self.lists()) {
            return Found::Yes(found);
        }
        let mut absent = self.lock_absent();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(name, asked);
        Found::No
    }

    fn known<T>(&self, name: &Name, get: impl Fn(&Lists) -> Option<T>) -> Option<Found<T>> {
        if let Some(found) = get(&self.lists()) {
            return Some(Found::Yes(found));
        }
        let is_absent =
            self.lock_absent().get(name).is_some_and(|since| since.elapsed() < self.0.settings.recheck);
        is_absent.then_some(Found::No)
    }

    fn lists(&self) -> Arc<Lists> {
        Arc::clone(&self.0.lists.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_absent(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Instant>> {
        self.0.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs entries of each website's list that are no address, when they are new.
fn warn_of_bad_addresses(before: &Lists, now: &Lists) {
    for (id, website) in &now.websites {
        let bad = website.blocked.unparsable();
        let known = before.websites.get(id).is_some_and(|website| website.blocked.unparsable() == bad);
        if !bad.is_empty() && !known {
            tracing::warn!(
                website = %id, entry = bad[0], entries = bad.len(),
                "the website's blocked addresses: this is neither an address nor a CIDR block"
            );
        }
    }
}
