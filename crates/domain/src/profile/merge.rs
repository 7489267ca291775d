//! From sends, and the store's rows for them, to the rows to write.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    BaseKey, BaseRow, Person, ProfileLink, Settled, Stamp, TraitKey, TraitRow, TraitSend, WriteRow, settle,
};

/// The store's rows of the traits and bases that some sends name. A row that the store does not have is absent here.
#[derive(Debug, Clone, Default)]
pub struct ProfileState {
    bases: HashMap<BaseKey, BaseRow>,
    registers: HashMap<TraitKey, TraitRow>,
    history: HashMap<TraitKey, BTreeMap<Stamp, WriteRow>>,
}

impl ProfileState {
    /// The store's rows by [`TraitSend::base_key`] and [`TraitSend::trait_key`] of all sends. More do no harm.
    pub fn new(bases: impl IntoIterator<Item = BaseRow>, traits: impl IntoIterator<Item = TraitRow>) -> Self {
        Self {
            bases: bases.into_iter().map(|row| (row.base_key(), row)).collect(),
            registers: traits.into_iter().map(|row| (row.trait_key(), row)).collect(),
            history: HashMap::new(),
        }
    }

    /// The traits whose rows have to be added before the sends can be merged, sorted. Almost always none.
    pub fn needs_history(&self, sends: &[TraitSend]) -> Vec<TraitKey> {
        let mut merging = Merging::new(self);
        sends.iter().for_each(|send| merging.send(send));
        merging.settle();
        merging.missing.into_iter().collect()
    }

    /// Adds the rows of traits: all rows that the store has of these keys.
    pub fn add_history(
        &mut self,
        keys: impl IntoIterator<Item = TraitKey>,
        rows: impl IntoIterator<Item = WriteRow>,
    ) {
        self.history.extend(keys.into_iter().map(|key| (key, BTreeMap::new())));
        for row in rows {
            self.history.entry(row.trait_key()).or_default().insert(row.stamp, row);
        }
    }
}

/// The changes that a merge makes, each part sorted by its key and no key there twice. All parts but the counts are
/// empty if nothing changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProfileRows {
    /// To insert or replace.
    pub bases: Vec<BaseRow>,
    /// To insert. One that is there already is the same.
    pub writes: Vec<WriteRow>,
    /// To insert or replace.
    pub traits: Vec<TraitRow>,
    /// People whose version changed; subscribers are notified of these.
    pub changed: Vec<Person>,
    /// The outcomes of the sends.
    pub counts: ProfileCounts,
}

/// Numbers of sends: `sends = writes + avoided`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProfileCounts {
    /// All.
    pub sends: u64,
    /// That became a [`WriteRow`].
    pub writes: u64,
    /// That were no difference, or are merged already, and left no trace.
    pub avoided: u64,
}

impl ProfileCounts {
    /// With so many sends more that [`super::differences`] left out.
    pub fn with_repetitions(self, repeated: u64) -> Self {
        Self { sends: self.sends + repeated, avoided: self.avoided + repeated, ..self }
    }
}

/// Merges sends of one or several sessions, each session's in the order of the log.
///
/// # Panics
/// If [`ProfileState::needs_history`] of these sends names a trait: without its rows the result would be wrong.
pub fn merge(state: &ProfileState, sends: &[TraitSend]) -> ProfileRows {
    let mut merging = Merging::new(state);
    sends.iter().for_each(|send| merging.send(send));
    let (writes, traits) = merging.settle();
    assert!(merging.missing.is_empty(), "the rows of {:?} are not in the state", merging.missing);
    let was = |row: &TraitRow| state.registers.get(&row.trait_key()).map(|row| row.settled.changed);
    let changed: BTreeSet<Person> = traits
        .iter()
        .filter(|row| was(row).unwrap_or(Stamp::NEVER) != row.settled.changed)
        .map(|row| Person { website_id: row.website_id, distinct_id: row.distinct_id.clone() })
        .collect();
    let (sends, written) = (sends.len() as u64, writes.len() as u64);
    ProfileRows {
        bases: merging.bases.into_values().collect(),
        writes,
        traits,
        changed: changed.into_iter().collect(),
        counts: ProfileCounts { sends, writes: written, avoided: sends - written },
    }
}

/// The people that sends and links are about, sorted, each with the earliest arrival there is of it, milliseconds since
/// 1970.
pub fn persons(sends: &[TraitSend], links: &[ProfileLink]) -> Vec<(Person, i64)> {
    let of_sends = sends.iter().map(|send| (send.website_id, &send.distinct_id, send.stamp.received_at_ms));
    let of_links = links.iter().map(|link| (link.website_id, &link.distinct_id, link.first_ms));
    let mut first: BTreeMap<Person, i64> = BTreeMap::new();
    for (website_id, distinct_id, at) in of_sends.chain(of_links) {
        let person = Person { website_id, distinct_id: distinct_id.clone() };
        first.entry(person).and_modify(|first| *first = at.min(*first)).or_insert(at);
    }
    first.into_iter().collect()
}

struct Merging<'s> {
    state: &'s ProfileState,
    /// Bases that moved.
    bases: BTreeMap<BaseKey, BaseRow>,
    /// Rows of these sends, as they came; some may be in the store already.
    rows: BTreeMap<TraitKey, Vec<WriteRow>>,
    /// Traits whose rows are needed and not there.
    missing: BTreeSet<TraitKey>,
}

impl<'s> Merging<'s> {
    fn new(state: &'s ProfileState) -> Self {
        Self { state, bases: BTreeMap::new(), rows: BTreeMap::new(), missing: BTreeSet::new() }
    }

    /// Compares a send with its own base.
    fn send(&mut self, send: &TraitSend) {
        let (base_key, trait_key) = (send.base_key(), send.trait_key());
        let base = self.bases.get(&base_key).or_else(|| self.state.bases.get(&base_key));
        let moves = base.is_none_or(|base| base.value != send.value && base.stamp < send.stamp);
        let is_late = base.is_some_and(|base| base.value != send.value && base.stamp >= send.stamp);
        if send.base.is_some() || moves || is_late && !self.repeats(&trait_key, send) {
            self.rows.entry(trait_key).or_default().push(row(send));
        }
        if moves {
            let BaseKey { session_id, device, distinct_id, key } = base_key.clone();
            let (value, stamp) = (send.value.clone(), send.stamp);
            self.bases.insert(base_key, BaseRow { session_id, device, distinct_id, key, value, stamp });
        }
    }

    /// Whether a send that is older than its base is merged already, or repeated the base of its time.
    fn repeats(&mut self, key: &TraitKey, send: &TraitSend) -> bool {
        let stored = self.history(key);
        let stored = stored.into_iter().flat_map(BTreeMap::values);
        let here = self.rows.get(key).into_iter().flatten();
        let own = |row: &&WriteRow| row.session_id == send.session_id && row.device == send.device;
        let before = stored.chain(here).filter(own).filter(|row| row.stamp <= send.stamp);
        before
            .max_by_key(|row| row.stamp)
            .is_some_and(|row| row.stamp == send.stamp || row.value == send.value)
    }

    /// The store's rows of a trait; `None` if it has none, or they are missing, which is noted.
    fn history(&mut self, key: &TraitKey) -> Option<&'s BTreeMap<Stamp, WriteRow>> {
        let rows = self.state.history.get(key);
        if rows.is_none() && self.state.registers.contains_key(key) {
            self.missing.insert(key.clone());
        }
        rows
    }

    /// The rows that the store lacks, and the traits that they make other ones.
    fn settle(&mut self) -> (Vec<WriteRow>, Vec<TraitRow>) {
        let (mut writes, mut traits) = (Vec::new(), Vec::new());
        for (key, rows) in std::mem::take(&mut self.rows) {
            let before = self.state.registers.get(&key).map(|row| &row.settled);
            let after = match settled_at_once(before, &rows) {
                Some(after) => {
                    writes.extend(rows);
                    Some(after)
                }
                None => {
                    let stored = self.history(&key);
                    let after = settle(stored.into_iter().flat_map(BTreeMap::values).chain(&rows));
                    let is_new =
                        |row: &WriteRow| stored.is_none_or(|stored| !stored.contains_key(&row.stamp));
                    let new = rows.into_iter().filter(is_new).map(|row| (row.stamp, row));
                    writes.extend(new.collect::<BTreeMap<_, _>>().into_values());
                    after
                }
            };
            let TraitKey { website_id, distinct_id, key } = key;
            traits.extend(after.filter(|after| Some(after) != before).map(|settled| TraitRow {
                website_id,
                distinct_id,
                key,
                settled,
            }));
        }
        (writes, traits)
    }
}

/// Puts rows onto the kept result, if each is newer than all before it; see [`Settled::with_newest`].
fn settled_at_once(kept: Option<&Settled>, rows: &[WriteRow]) -> Option<Settled> {
    let mut rows = rows.iter();
    let first = match kept {
        Some(kept) => kept.clone(),
        None => settle(rows.next())?,
    };
    rows.try_fold(first, |settled, row| settled.with_newest(row))
}

fn row(send: &TraitSend) -> WriteRow {
    let TraitSend { website_id, session_id, device, distinct_id, key, value, stamp, base } = send.clone();
    WriteRow { website_id, distinct_id, key, stamp, session_id, device, value, base }
}
