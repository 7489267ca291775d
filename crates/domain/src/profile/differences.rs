//! The rules of people that need no merge: which sends differ from their bases, and to which person a session belongs.

use std::collections::HashMap;

use super::{BaseKey, BaseRow, ProfileLinkKind, TraitKey, TraitSend};

/// The bases that sends are compared with, sorted, each once.
pub fn base_keys(sends: &[TraitSend]) -> Vec<BaseKey> {
    let mut keys: Vec<_> = sends.iter().map(TraitSend::base_key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The traits that sends are about, sorted, each once.
pub fn trait_keys(sends: &[TraitSend]) -> Vec<TraitKey> {
    let mut keys: Vec<_> = sends.iter().map(TraitSend::trait_key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The sends that [`super::merge`] has to see: all but those that repeat their base and need nothing else to be known,
/// which are most of them. `bases` holds the store's rows by [`base_keys`].
///
/// A base belongs to the partition's only writer, so it can be read before the person is locked, and a person of whom
/// nothing is left is not locked at all. Sends of one base are left out together or not at all, so those that stay find
/// their base moved by those before them.
pub fn differences(sends: &[TraitSend], bases: &[BaseRow]) -> Vec<TraitSend> {
    let bases: HashMap<BaseKey, &BaseRow> = bases.iter().map(|row| (row.base_key(), row)).collect();
    let mut differs: HashMap<BaseKey, bool> = HashMap::new();
    for send in sends {
        let key = send.base_key();
        let repeats = send.base.is_none() && bases.get(&key).is_some_and(|base| base.value == send.value);
        *differs.entry(key).or_default() |= !repeats;
    }
    sends.iter().filter(|send| differs[&send.base_key()]).cloned().collect()
}

/// The person that a session belongs to, by its links (person, kind, first arrival in milliseconds since 1970): the
/// person that its events name; of an anonymous session the one person linked with it, and nobody if there are several,
/// for it may have been any of them.
pub fn person_of(links: Vec<(String, ProfileLinkKind, i64)>) -> Option<String> {
    let own = links.iter().filter(|(_, kind, _)| *kind == ProfileLinkKind::Own);
    if let Some((person, ..)) = own.max_by_key(|(person, _, first_ms)| (*first_ms, person.clone())) {
        return Some(person.clone());
    }
    let mut people = links.into_iter().map(|(person, ..)| person);
    let first = people.next()?;
    people.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::flatten::DataType;
    use crate::profile::Stamp;
    use crate::rows::DataValue;

    fn value(text: &str) -> DataValue {
        DataValue {
            data_type: DataType::String,
            string_value: Some(text.to_owned()),
            number_value: None,
            date_value_ms: None,
        }
    }

    fn send(key: &str, text: &str, at: i64) -> TraitSend {
        TraitSend {
            website_id: Uuid::nil(),
            session_id: Uuid::nil(),
            device: Uuid::nil(),
            distinct_id: "p".to_owned(),
            key: key.to_owned(),
            value: Some(value(text)),
            stamp: Stamp { received_at_ms: at, event_id: Uuid::from_u128(at as u128) },
            base: None,
        }
    }

    fn base(key: &str, text: &str) -> BaseRow {
        let TraitSend { session_id, device, distinct_id, key, value, stamp, .. } = send(key, text, 1);
        BaseRow { session_id, device, distinct_id, key, value, stamp }
    }

    #[test]
    fn a_repetition_is_left_out_unless_its_base_moves() {
        let bases = [base("a", "1"), base("b", "1")];
        let sends = [
            send("a", "1", 2),
            send("b", "1", 2),
            send("c", "1", 2),
            send("b", "2", 3),
            TraitSend { base: Some(Stamp::NEVER), ..send("a", "1", 4) },
        ];
        let left = |sends: &[TraitSend]| -> Vec<(String, i64)> {
            let left = differences(sends, &bases);
            left.into_iter().map(|send| (send.key, send.stamp.received_at_ms)).collect()
        };
        assert_eq!(left(&sends[..2]), []);
        assert_eq!(left(&sends[..3]), [("c".to_owned(), 2)]);
        assert_eq!(left(&sends[1..4]), [("b".to_owned(), 2), ("c".to_owned(), 2), ("b".to_owned(), 3)]);
        assert_eq!(left(&sends[4..]), [("a".to_owned(), 4)]);
    }

    #[test]
    fn a_session_is_its_own_persons_or_its_only_ones() {
        let link = |person: &str, kind, at| (person.to_owned(), kind, at);
        let (own, anonymous) = (ProfileLinkKind::Own, ProfileLinkKind::Anonymous);
        assert_eq!(person_of(vec![]), None);
        assert_eq!(person_of(vec![link("a", anonymous, 1)]).as_deref(), Some("a"));
        assert_eq!(person_of(vec![link("a", anonymous, 1), link("b", anonymous, 2)]), None);
        assert_eq!(person_of(vec![link("a", anonymous, 3), link("b", own, 2)]).as_deref(), Some("b"));
        assert_eq!(person_of(vec![link("a", own, 3), link("b", own, 2)]).as_deref(), Some("a"));
    }
}
