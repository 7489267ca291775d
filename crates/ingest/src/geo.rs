//! The locations of addresses, by a file in MaxMind's format that is loaded again when it changes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use dashi_domain::location::Location;
use maxminddb::Reader;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// How often the file's length and time of change are compared with those of the loaded version.
const LOOK: Duration = Duration::from_secs(1);

/// Looks addresses up. Without a file, or with one that cannot be read, every location is unknown. Cheap to clone.
#[derive(Clone, Default)]
pub struct GeoDatabase(Option<Arc<Shared>>);

struct Shared {
    path: PathBuf,
    reader: RwLock<Option<Reader<Vec<u8>>>>,
}

/// The members of a file's record that are read; a record has more, and may lack any of these.
#[derive(Deserialize, Default)]
#[serde(default)]
struct GeoRecord<'a> {
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

/// Time of change and length of the file: they distinguish its versions. `None` if the file cannot be read.
type Version = Option<(SystemTime, u64)>;

impl GeoDatabase {
    /// Reads the file. If it is missing, or is no location database, that is logged once, and the keeper tries it
    /// again.
    pub fn open(path: PathBuf) -> (Self, GeoKeeper) {
        let shared = Arc::new(Shared { path, reader: RwLock::new(None) });
        let mut keeper = GeoKeeper { shared: Arc::clone(&shared), seen: None, logged: false };
        keeper.look();
        (Self(Some(shared)), keeper)
    }

    /// The location of an address; unknown parts are `None`.
    pub fn locate(&self, address: &IpAddr) -> Location {
        let Some(shared) = &self.0 else { return Location::default() };
        let reader = shared.reader.read().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = &*reader else { return Location::default() };
        match reader.lookup(*address).and_then(|found| found.decode::<GeoRecord<'_>>()) {
            Ok(Some(record)) => Location::from_parts(
                record.country.iso_code.or(record.registered_country.iso_code),
                record.subdivisions.first().and_then(|subdivision| subdivision.iso_code),
                record.city.names.en,
            ),
            Ok(None) => Location::default(),
            Err(error) => {
                // An IPv6 address in a file of IPv4 addresses, or a damaged record: the location is unknown.
                tracing::debug!(error = %error, "the location database has no answer");
                Location::default()
            }
        }
    }
}

/// Keeps a [`GeoDatabase`] current. One task of [`GeoKeeper::keep`] must run.
pub struct GeoKeeper {
    shared: Arc<Shared>,
    /// The version that was read last, with or without success.
    seen: Version,
    /// Whether the present failure was logged.
    logged: bool,
}

impl GeoKeeper {
    /// Checks the file at intervals until `stop`.
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
                    tracing::error!(error = %error, "the location database is no longer checked for changes");
                    return;
                }
            }
        }
    }

    /// Loads the file if it has changed. If it cannot be read, the last good version stays in use.
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
                self.logged = false;
            }
            Err(error) if !self.logged => {
                self.logged = true;
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
