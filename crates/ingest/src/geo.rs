//! Where an address is, by a file in MaxMind's format, reloaded when it changes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use dashi_domain::location::Location;
use maxminddb::Reader;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// How often the file is looked at: its length and time of change, unless they differ.
const LOOK: Duration = Duration::from_secs(1);

/// Looks addresses up. Without a file, or with one that cannot be read, nobody is anywhere. Cheap to clone.
#[derive(Clone, Default)]
pub struct GeoDatabase(Option<Arc<Shared>>);

struct Shared {
    path: PathBuf,
    reader: RwLock<Option<Reader<Vec<u8>>>>,
}

/// What of a record is looked at; files have more, and may lack any of it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Place<'a> {
    #[serde(borrow)]
    country: Coded<'a>,
    #[serde(borrow)]
    registered_country: Coded<'a>,
    #[serde(borrow)]
    subdivisions: Vec<Coded<'a>>,
    #[serde(borrow)]
    city: Named<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Coded<'a> {
    iso_code: Option<&'a str>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named<'a> {
    #[serde(borrow)]
    names: Names<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Names<'a> {
    en: Option<&'a str>,
}

/// What tells one version of the file from another.
type Version = Option<(SystemTime, u64)>;

impl GeoDatabase {
    /// Reads the file. One that is not there, or is none, is told of once and looked for again.
    pub fn open(path: PathBuf) -> (Self, GeoKeeper) {
        let shared = Arc::new(Shared { path, reader: RwLock::new(None) });
        let mut keeper = GeoKeeper { shared: Arc::clone(&shared), seen: None, told: false };
        keeper.look();
        (Self(Some(shared)), keeper)
    }

    /// The location of an address; unknown parts are `None`.
    pub fn locate(&self, address: &IpAddr) -> Location {
        let Some(shared) = &self.0 else { return Location::default() };
        let reader = shared.reader.read().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = &*reader else { return Location::default() };
        match reader.lookup(*address).and_then(|found| found.decode::<Place<'_>>()) {
            Ok(Some(place)) => Location::from_parts(
                place.country.iso_code.or(place.registered_country.iso_code),
                place.subdivisions.first().and_then(|subdivision| subdivision.iso_code),
                place.city.names.en,
            ),
            Ok(None) => Location::default(),
            Err(error) => {
                // An IPv6 address in a file of IPv4 ones, or a damaged record: it is nowhere.
                tracing::debug!(error = %error, "the location database has no answer");
                Location::default()
            }
        }
    }
}

/// Keeps a [`GeoDatabase`] current. One task of [`GeoKeeper::keep`] must run.
pub struct GeoKeeper {
    shared: Arc<Shared>,
    /// The version that was read last, well or not.
    seen: Version,
    told: bool,
}

impl GeoKeeper {
    /// Looks at the file now and then until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(keeper) => self = keeper,
                Err(error) => {
                    tracing::error!(error = %error, "the location database is no longer looked at");
                    return;
                }
            }
        }
    }

    /// Loads the file if it has changed. One that cannot be read leaves the last good one in place.
    fn look(&mut self) {
        let path = &self.shared.path;
        let version = version(path);
        if version.is_some() && version == self.seen {
            return;
        }
        self.seen = version;
        match Reader::open_readfile(path) {
            Ok(reader) => {
                tracing::info!(
                    path = %path.display(), kind = reader.metadata().database_type, "loaded the location database"
                );
                *self.shared.reader.write().unwrap_or_else(PoisonError::into_inner) = Some(reader);
                self.told = false;
            }
            Err(error) if !self.told => {
                self.told = true;
                let instead = match *self.shared.reader.read().unwrap_or_else(PoisonError::into_inner) {
                    Some(_) => "its last good version stays in use",
                    None => "events get a location from proxies' headers only",
                };
                tracing::warn!(
                    path = %path.display(), error = %error, "the location database cannot be read; {instead}"
                );
            }
            Err(_) => {}
        }
    }
}

fn version(path: &Path) -> Version {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
