//! Positions in lists, as clients send them back. Clients cannot read them.
//!
//! A cursor holds the key of the last row of a page, and the next page begins behind that key. So rows that are added
//! meanwhile move no others: a row that exists all the time is listed once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use uuid::Uuid;

/// Longest cursor that is decoded; ours are shorter.
const CHARS_MAX: usize = 400;

/// A cursor behind this distinct id.
pub fn of_person(distinct_id: &str) -> String {
    BASE64.encode(format!("p{distinct_id}"))
}

/// A cursor behind the row of this time and id.
pub fn of_moment(list: List, (at_ms, id): (i64, Uuid)) -> String {
    BASE64.encode(format!("{}{at_ms},{id}", list.letter()))
}

/// The distinct id of a cursor that [`of_person`] made.
pub fn person(cursor: &str) -> Option<String> {
    decode(cursor)?.strip_prefix('p').map(str::to_owned)
}

/// Time and id of a cursor that [`of_moment`] made for this list.
pub fn moment(list: List, cursor: &str) -> Option<(i64, Uuid)> {
    let text = decode(cursor)?;
    let (at_ms, id) = text.strip_prefix(list.letter())?.split_once(',')?;
    Some((at_ms.parse().ok()?, Uuid::try_parse(id).ok()?))
}

/// Lists that are ordered by time and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// A person's sessions, by the time when each first belonged to the person.
    Sessions,
    /// A person's events.
    Journey,
}

impl List {
    const fn letter(self) -> char {
        match self {
            Self::Sessions => 's',
            Self::Journey => 'j',
        }
    }
}

fn decode(cursor: &str) -> Option<String> {
    if cursor.len() > CHARS_MAX {
        return None;
    }
    String::from_utf8(BASE64.decode(cursor).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_gives_back_what_it_was_made_of() {
        for distinct_id in ["a", "ärger, 1", "", "p", "\u{1F600}".repeat(50).as_str()] {
            assert_eq!(person(&of_person(distinct_id)).as_deref(), Some(distinct_id));
        }
        for position in [(0, Uuid::nil()), (1_795_267_812_345, Uuid::max()), (-1, Uuid::from_u128(7))] {
            for list in [List::Sessions, List::Journey] {
                assert_eq!(moment(list, &of_moment(list, position)), Some(position));
            }
        }
    }

    #[test]
    fn a_cursor_fits_a_query_and_no_other_list() {
        let cursors = [
            of_person("a/b?c&d=e+f"),
            of_moment(List::Sessions, (1, Uuid::max())),
            of_moment(List::Journey, (1, Uuid::max())),
        ];
        for cursor in &cursors {
            assert!(
                cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
                "{cursor}"
            );
        }
        let [p, s, j] = &cursors;
        assert!(person(s).is_none() && person(j).is_none());
        assert!(moment(List::Sessions, p).is_none() && moment(List::Sessions, j).is_none());
        assert!(moment(List::Journey, p).is_none() && moment(List::Journey, s).is_none());
    }

    #[test]
    fn anything_else_is_none() {
        let broken = [
            BASE64.encode("s1,no-uuid"),
            BASE64.encode(format!("s1.5,{}", Uuid::nil())),
            BASE64.encode("s"),
            BASE64.encode([b's', 0xff]),
            "%%".to_owned(),
            String::new(),
            of_moment(List::Sessions, (1, Uuid::nil())) + "=",
        ];
        for cursor in &broken {
            assert_eq!(moment(List::Sessions, cursor), None, "{cursor}");
        }
        assert_eq!(person(&of_person(&"x".repeat(1_000))), None);
    }
}
