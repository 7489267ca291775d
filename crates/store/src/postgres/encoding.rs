//! Text that the database's encoding cannot hold: such a character is stored as a question mark. The database itself is
//! asked, once for each character; so the same records give the same rows, whenever they are applied.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use dashi_domain::erasure::Subject;
use dashi_domain::fold::Changes;

use super::PostgresStore;
use super::catalogue::{Catalogue, each_text, keep_newest_properties};
use super::pool::Pool;
use crate::StoreError;

/// The character that is stored instead of one that cannot be.
const REPLACEMENT: char = '?';

/// Characters whose answer is kept; past that they are asked for again.
const KNOWN_MAX: usize = 100_000;

/// The characters that the database can or cannot hold, as far as it was asked.
#[derive(Debug, Default)]
pub(super) struct Repertoire(Mutex<HashMap<char, bool>>);

impl Repertoire {
    /// Those of the characters that cannot be stored.
    async fn missing(&self, pool: &Pool, chars: BTreeSet<char>) -> Result<BTreeSet<char>, sqlx::Error> {
        let is_known = |char: &char| self.known().get(char).copied();
        let (mut missing, mut unknown) = (BTreeSet::new(), Vec::new());
        for char in chars {
            match is_known(&char) {
                Some(true) => {}
                Some(false) => drop(missing.insert(char)),
                None => unknown.push(char),
            }
        }
        // Halved until the refused text is one character.
        let mut runs = vec![unknown.as_slice()];
        while let Some(run) = runs.pop().filter(|run| !run.is_empty()) {
            let can_be_stored = can_be_stored(pool, run).await?;
            match run {
                [char] if !can_be_stored => {
                    missing.insert(*char);
                    self.learn(run, false);
                }
                run if can_be_stored => self.learn(run, true),
                run => runs.extend(<[&[char]; 2]>::from(run.split_at(run.len() / 2))),
            }
        }
        Ok(missing)
    }

    fn learn(&self, chars: &[char], can_be_stored: bool) {
        let mut known = self.known();
        if known.len() > KNOWN_MAX {
            known.clear();
        }
        known.extend(chars.iter().map(|char| (*char, can_be_stored)));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<char, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn can_be_stored(pool: &Pool, chars: &[char]) -> Result<bool, sqlx::Error> {
    let converted = sqlx::query("SELECT convert($1, 'UTF8', current_setting('server_encoding')::name)")
        .bind(chars.iter().collect::<String>().into_bytes())
        .execute(pool)
        .await;
    match converted {
        Ok(_) => Ok(true),
        // Untranslatable, not in the repertoire, or no way at all from the one encoding to the other.
        Err(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("22P05" | "22021" | "42883")) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl PostgresStore {
    /// The changes as the database's encoding holds them.
    pub(super) async fn encodable<'c>(
        &self,
        changes: Cow<'c, Changes>,
        catalogue: &Catalogue,
    ) -> Result<Cow<'c, Changes>, StoreError> {
        if catalogue.holds_all_text() {
            return Ok(changes);
        }
        let mut encoded = changes.clone().into_owned();
        let chars = Mutex::new(BTreeSet::new());
        every_text(&mut encoded, |text| {
            chars
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(text.chars().filter(|char| !char.is_ascii()));
        });
        let chars = chars.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = self.unencodable(chars).await?;
        if missing.is_empty() {
            return Ok(changes);
        }
        every_text(&mut encoded, |text| {
            if text.contains(|char| missing.contains(&char)) {
                *text = replaced(text, &missing);
            }
        });
        // Texts that differed may be equal now.
        keep_newest_properties(&mut encoded);
        let sends = &mut encoded.sends;
        let mut last = HashMap::new();
        for (place, send) in sends.iter().enumerate() {
            last.insert((send.stamp, send.distinct_id.clone(), send.key.clone()), place);
        }
        let mut place = 0..;
        sends.retain(|send| {
            last.get(&(send.stamp, send.distinct_id.clone(), send.key.clone())).copied() == place.next()
        });
        keep_earliest(
            &mut encoded.links,
            |link| (link.website_id, link.session_id, link.distinct_id.clone(), link.kind),
            |link| link.first_ms,
        );
        keep_earliest(
            &mut encoded.link_sources,
            |source| (source.website_id, source.by_session, source.session_id, source.distinct_id.clone()),
            |source| source.first_ms,
        );
        Ok(Cow::Owned(encoded))
    }

    /// A text to look for, as it was stored.
    pub(super) async fn stored_text<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, StoreError> {
        if text.is_ascii() || self.catalogue().await?.holds_all_text() {
            return Ok(Cow::Borrowed(text));
        }
        let missing = self.unencodable(text.chars().filter(|char| !char.is_ascii()).collect()).await?;
        Ok(if missing.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(replaced(text, &missing)) })
    }

    async fn unencodable(&self, chars: BTreeSet<char>) -> Result<BTreeSet<char>, StoreError> {
        let missing = self.repertoire.missing(&self.pool, chars).await;
        missing.map_err(StoreError::away("asking which characters it can hold"))
    }
}

fn replaced(text: &str, missing: &BTreeSet<char>) -> String {
    text.chars().map(|char| if missing.contains(&char) { REPLACEMENT } else { char }).collect()
}

/// Puts rows in the order of their keys; of equal keys the earliest row stays.
fn keep_earliest<R, K: Ord>(rows: &mut Vec<R>, key: impl Fn(&R) -> K, at_ms: impl Fn(&R) -> i64) {
    rows.sort_by_key(|row| (key(row), at_ms(row)));
    rows.dedup_by_key(|row| key(row));
}

/// Calls `f` with every text of the rows, whichever table it goes into.
fn every_text(changes: &mut Changes, f: impl Fn(&mut String)) {
    each_text(changes, |_, _, text| f(text));
    for send in &mut changes.sends {
        f(&mut send.distinct_id);
        f(&mut send.key);
        send.value.iter_mut().filter_map(|value| value.string_value.as_mut()).for_each(&f);
    }
    for link in &mut changes.links {
        f(&mut link.distinct_id);
    }
    for source in &mut changes.link_sources {
        f(&mut source.distinct_id);
    }
    if let Some(Subject::Person(distinct_id)) = changes.erasure.as_mut().map(|copy| &mut copy.erasure.subject)
    {
        f(distinct_id);
    }
    for letter in &mut changes.dead_letters {
        f(&mut letter.reason);
    }
}
