//! Names of people, and of the versions of their traits.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Stamp, TraitRow};
use crate::rows::DataValue;
use crate::submission::{Payload, SourceKind};
use crate::text::cut;

/// Width of the columns of a distinct id, in UTF-16 units.
const DISTINCT_ID_UNITS_MAX: usize = 50;
/// Hexadecimal characters of a hash.
const HASH_CHARS: usize = 16;

/// How a person is named in rows: the distinct id as sent, or, where that does not fit Umami's column (50 characters,
/// no U+0000), its beginning, `#` and a hash of it, so that no two people become one by being cut. Naming a
/// name again changes nothing.
pub fn distinct_id(sent: &str) -> String {
    let fits = cut(Cow::Borrowed(sent), DISTINCT_ID_UNITS_MAX);
    if fits == sent {
        return fits.into_owned();
    }
    let mut name = cut(fits, DISTINCT_ID_UNITS_MAX - 1 - HASH_CHARS).into_owned();
    name.push('#');
    name + &hash(Sha256::new().chain_update(sent))
}

/// The person that an event of a website names, in the form of [`distinct_id`].
pub fn person_of_payload(payload: &Payload<'_>) -> Option<String> {
    let id = payload.id.as_deref().filter(|id| !id.is_empty())?;
    (payload.source.kind == SourceKind::Website).then(|| distinct_id(id))
}

/// The version of a person's traits: a function of when each of them changed, and so another one whenever a value is.
///
/// `{received_at_ms}-{event_id}-{hash}`: the newest change, and a hash over the changes of all traits, deleted ones
/// included. `0` if none ever had a value. The rows may come in any order.
pub fn version<'a>(traits: impl IntoIterator<Item = &'a TraitRow>) -> String {
    let mut changed: Vec<(&str, Stamp)> = traits
        .into_iter()
        .map(|row| (row.key.as_str(), row.settled.changed))
        .filter(|(_, changed)| *changed != Stamp::NEVER)
        .collect();
    changed.sort_unstable();
    let Some(newest) = changed.iter().map(|(_, changed)| *changed).max() else { return "0".to_owned() };
    let mut sha = Sha256::new();
    for (key, stamp) in changed {
        text(&mut sha, key);
        sha.update(stamp.received_at_ms.to_be_bytes());
        sha.update(stamp.event_id);
    }
    format!("{}-{}-{}", newest.received_at_ms, newest.event_id, hash(sha))
}

/// The moment that a [`version`] stands for; also that of a [`session_version`] of a session with a person. `None` for
/// any other text.
pub fn parse_version(text: &str) -> Option<Stamp> {
    let is_hash = |text: &str| {
        text.len() == HASH_CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let person = match text.split_once('+') {
        Some((person, own)) => is_hash(own).then_some(person)?,
        None => text,
    };
    if person == "0" {
        return Some(Stamp::NEVER);
    }
    let (stamp, digest) = person.rsplit_once('-')?;
    let split = stamp.len().checked_sub(uuid::fmt::Hyphenated::LENGTH)?;
    let (received_at, event_id) = stamp.split_at_checked(split)?;
    let received_at_ms = received_at.strip_suffix('-')?.parse().ok()?;
    let event_id = Uuid::try_parse(event_id).ok()?;
    is_hash(digest).then_some(Stamp { received_at_ms, event_id })
}

/// The version of a session's effective traits: its person's [`version`], and a hash of the properties that only the
/// session has.
///
/// `own` are the session's own properties of whose keys the person has no [`TraitRow`] (a deleted trait has one); each
/// key once, in any order. With a person and nothing of its own it is the person's version.
pub fn session_version<'a>(
    person: Option<&str>,
    own: impl IntoIterator<Item = (&'a str, &'a DataValue)>,
) -> String {
    let mut own: Vec<(&str, &DataValue)> = own.into_iter().collect();
    own.sort_unstable_by_key(|(key, _)| *key);
    let mut sha = Sha256::new();
    for (key, DataValue { data_type, string_value, number_value, date_value_ms }) in &own {
        text(&mut sha, key);
        sha.update(data_type.code().to_be_bytes());
        text(&mut sha, string_value.as_deref().unwrap_or_default());
        text(&mut sha, &number_value.map(|number| number.to_string()).unwrap_or_default());
        text(&mut sha, &date_value_ms.map(|at| at.to_string()).unwrap_or_default());
    }
    match person {
        Some(person) if own.is_empty() => person.to_owned(),
        Some(person) => format!("{person}+{}", hash(sha)),
        None => format!("s-{}", hash(sha)),
    }
}

/// With its length, so that no two sequences of texts are one.
fn text(sha: &mut Sha256, text: &str) {
    sha.update((text.len() as u64).to_be_bytes());
    sha.update(text);
}

fn hash(sha: Sha256) -> String {
    sha.finalize().iter().take(HASH_CHARS / 2).fold(String::with_capacity(HASH_CHARS), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
