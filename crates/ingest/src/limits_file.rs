//! The limits file: a block list, priorities, and limits of single websites and addresses. It changes without a restart.
//!
//! One entry a line; `#` begins a comment. docs/limits.md describes it for operators.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use dashi_domain::backlog::PRIORITY_MAX;
use dashi_domain::networks::{Networks, network};
use dashi_domain::rate::{Rate, RateLimit};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the file's length and time of change are compared with those of the version in use.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of the file, at most: some hundred thousand entries.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The seconds of rate that are a burst where none is given.
const BURST_S: u64 = 10;

/// The entries of a file. The default has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitsFile {
    blocked_sources: HashSet<Uuid>,
    blocked_addresses: Networks<()>,
    /// By distinct id: on these websites, or on all.
    blocked_distinct_ids: HashMap<String, Everywhere>,
    priorities: HashMap<Uuid, u8>,
    /// The priority of all other websites.
    priority: u8,
    source_limits: HashMap<Uuid, RateLimit>,
    address_limits: Networks<RateLimit>,
    entries: usize,
}

/// Websites: all of them, or some.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Everywhere {
    All,
    Some(HashSet<Uuid>),
}

/// A line that is no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for WrongLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl LimitsFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is no entry, or that contradicts an earlier one.
    pub fn parse(text: &str) -> Result<Self, WrongLine> {
        let mut file = Self::default();
        let mut has_priority = false;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason| WrongLine { line: index + 1, reason };
            file.add(line, &mut has_priority).map_err(wrong)?;
            file.entries += 1;
        }
        Ok(file)
    }

    fn add(&mut self, line: &str, has_priority: &mut bool) -> Result<(), String> {
        let (kind, rest) = word(line);
        match kind {
            "block" => match word(rest) {
                ("website", id) => self.blocked_sources.insert(website(id)?).then_some(()),
                ("address", text) => {
                    self.blocked_addresses.insert(address(text)?, ()).is_none().then_some(())
                }
                ("distinct-id", rest) => self.block_distinct_id(rest)?.then_some(()),
                (other, _) => {
                    return Err(format!(
                        "`block {other}` is not known: block website, address or distinct-id"
                    ));
                }
            },
            "priority" => {
                let (id, number) = word(rest);
                let priority = number.parse().ok().filter(|number| *number <= PRIORITY_MAX);
                let priority =
                    priority.ok_or_else(|| format!("`{number}` is no priority: 0 to {PRIORITY_MAX}"))?;
                match id {
                    "*" => {
                        self.priority = priority;
                        (!std::mem::replace(has_priority, true)).then_some(())
                    }
                    id => self.priorities.insert(website(id)?, priority).is_none().then_some(()),
                }
            }
            "limit" => match word(rest) {
                ("website", rest) => {
                    let (id, values) = word(rest);
                    self.source_limits.insert(website(id)?, limit(values)?).is_none().then_some(())
                }
                ("address", rest) => {
                    let (text, values) = word(rest);
                    self.address_limits.insert(address(text)?, limit(values)?).is_none().then_some(())
                }
                (other, _) => return Err(format!("`limit {other}` is not known: limit website or address")),
            },
            other => {
                return Err(format!("`{other}` is not known: an entry begins with block, priority or limit"));
            }
        }
        .ok_or_else(|| format!("an earlier line says the same, or otherwise: {line}"))
    }

    fn block_distinct_id(&mut self, text: &str) -> Result<bool, String> {
        let (id, distinct_id) = word(text);
        if distinct_id.is_empty() {
            return Err("`block distinct-id` needs a website (or *) and a distinct id".to_owned());
        }
        let id = if id == "*" { None } else { Some(website(id)?) };
        let blocked = self.blocked_distinct_ids.entry(distinct_id.to_owned());
        let on = blocked.or_insert_with(|| Everywhere::Some(HashSet::new()));
        Ok(match (on, id) {
            (Everywhere::All, _) => false,
            (on, None) => {
                *on = Everywhere::All;
                true
            }
            (Everywhere::Some(websites), Some(id)) => websites.insert(id),
        })
    }

    /// The number of entries.
    pub fn entries(&self) -> usize {
        self.entries
    }

    pub(crate) fn is_source_blocked(&self, source: Uuid) -> bool {
        !self.blocked_sources.is_empty() && self.blocked_sources.contains(&source)
    }

    pub(crate) fn blocks_addresses(&self) -> bool {
        !self.blocked_addresses.is_empty()
    }

    pub(crate) fn is_address_blocked(&self, ip: IpAddr) -> bool {
        self.blocked_addresses.get(ip).is_some()
    }

    pub(crate) fn is_distinct_id_blocked(&self, source: Uuid, distinct_id: &str) -> bool {
        match self.blocked_distinct_ids.get(distinct_id) {
            None => false,
            Some(Everywhere::All) => true,
            Some(Everywhere::Some(websites)) => websites.contains(&source),
        }
    }

    pub(crate) fn priority(&self, source: Uuid) -> u8 {
        self.priorities.get(&source).copied().unwrap_or(self.priority)
    }

    pub(crate) fn source_limit(&self, source: Uuid) -> Option<RateLimit> {
        self.source_limits.get(&source).copied()
    }

    pub(crate) fn address_limit(&self, ip: IpAddr) -> Option<RateLimit> {
        self.address_limits.get(ip).copied()
    }
}

/// The first word of a text, and the rest.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

fn website(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| format!("`{text}` is no id of a website, link or pixel"))
}

fn address(text: &str) -> Result<IpNet, String> {
    network(text)
        .ok_or_else(|| format!("`{text}` is neither an address nor a network such as 203.0.113.0/24"))
}

/// `none`, or `rate=`, `burst=` and `day=`, of which one at least, each a number.
fn limit(text: &str) -> Result<RateLimit, String> {
    if text == "none" {
        return Ok(RateLimit::default());
    }
    let (mut rate, mut burst, mut day_max) = (None, None, None);
    for part in text.split_whitespace() {
        let (name, number) = part.split_once('=').unwrap_or((part, ""));
        let value = match name {
            "rate" => &mut rate,
            "burst" => &mut burst,
            "day" => &mut day_max,
            _ => return Err(format!("`{part}` is not known: give `none`, or rate=, burst= and day=")),
        };
        let number: u64 = number.parse().map_err(|_| format!("`{part}` has no whole number behind the ="))?;
        if number == 0 && name != "day" {
            return Err(format!("`{part}`: nothing could ever pass; give 1 or more, or block it"));
        }
        if value.replace(number).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    match (rate, burst, day_max) {
        (None, None, None) => Err("a limit needs `none`, or rate=, burst= and day=".to_owned()),
        (None, Some(_), _) => Err("burst= needs rate=".to_owned()),
        (rate, burst, day_max) => Ok(rate_limit(rate, burst, day_max)),
    }
}

/// A limit of so many events per second, at once, and by the day. Without a burst it is that of ten seconds.
pub fn rate_limit(rate: Option<u64>, burst: Option<u64>, day_max: Option<u64>) -> RateLimit {
    let rate = rate.map(|rate| Rate::new(rate, burst.unwrap_or(rate.saturating_mul(BURST_S))));
    RateLimit { rate, day_max }
}

/// A limits file that is watched. Cheap to clone.
#[derive(Clone)]
pub struct WatchedFile(Arc<Shared>);

struct Shared {
    path: PathBuf,
    state: RwLock<FileState>,
}

/// Under one lock: whoever meets a new version's entries finds no error of the version before.
#[derive(Default)]
struct FileState {
    /// The last good version; without one, a file without entries.
    file: Arc<LimitsFile>,
    /// Why the file as it lies there is not in use.
    error: Option<String>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, FileState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, FileState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchedFile {
    /// Reads the file. If it is wrong or missing, that is logged, and its keeper looks at it again.
    pub fn open(path: PathBuf) -> (Self, LimitsFileKeeper) {
        let shared = Arc::new(Shared { path, state: RwLock::default() });
        let mut keeper = LimitsFileKeeper { shared: Arc::clone(&shared), seen: None };
        keeper.look();
        (Self(shared), keeper)
    }

    /// Why the file as it lies there is not in use, with its path; `None` if it is.
    pub fn error(&self) -> Option<String> {
        self.0.read().error.clone()
    }

    /// The last good version; without one, a file without entries.
    pub(crate) fn current(&self) -> Arc<LimitsFile> {
        Arc::clone(&self.0.read().file)
    }
}

/// Keeps a [`WatchedFile`] current. One task of [`LimitsFileKeeper::keep`] must run.
pub struct LimitsFileKeeper {
    shared: Arc<Shared>,
    /// The version that was read last, with or without success.
    seen: Version,
}

/// Time of change, length and number of the file: they distinguish its versions. `None` if it cannot be read.
type Version = Option<(SystemTime, u64, u64)>;

impl LimitsFileKeeper {
    /// The file's state, for metrics and readiness.
    pub fn watched(&self) -> WatchedFile {
        WatchedFile(Arc::clone(&self.shared))
    }

    /// Looks at the file at intervals until `stop`.
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
                    tracing::error!(error = %error, "the limits file is no longer watched");
                    return;
                }
            }
        }
    }

    /// Reads the file if it has changed. A version that is wrong changes nothing.
    fn look(&mut self) {
        let version = version(&self.shared.path);
        if version.is_some() && version == self.seen {
            return;
        }
        self.seen = version;
        let path = self.shared.path.display();
        match read(&self.shared.path) {
            Ok(file) => {
                tracing::info!(path = %path, entries = file.entries(), "the limits file is in use");
                *self.shared.write() = FileState { file: Arc::new(file), error: None };
            }
            Err(error) => {
                let error = format!("{path}: {error}");
                let (is_new, entries) = {
                    let mut state = self.shared.write();
                    let logged = state.error.replace(error.clone());
                    (logged.is_none_or(|logged| logged != error), state.file.entries())
                };
                if is_new {
                    tracing::error!(
                        error,
                        entries,
                        "the limits file cannot be used; its last good version stays in use"
                    );
                }
            }
        }
    }
}

/// Checks a limits file without using it. Returns the number of its entries.
///
/// # Errors
/// Its path, and the line and reason, or the error of the system.
pub fn check_limits_file(path: &Path) -> Result<usize, String> {
    let entries = read(path).map(|file| file.entries());
    entries.map_err(|error| format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Result<LimitsFile, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > BYTES_MAX {
        return Err(format!("it has {length} bytes, and may have {BYTES_MAX}"));
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(text).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        format!("line {line}: it is not UTF-8")
    })?;
    LimitsFile::parse(&text).map_err(|wrong| wrong.to_string())
}

fn version(path: &Path) -> Version {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests;
