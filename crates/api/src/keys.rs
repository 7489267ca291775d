//! The API keys, which permit reading.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

/// The API keys, as hashes: a comparison takes the same time for every key that is sent, and nothing prints them.
#[derive(Clone)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// The keys of a comma list, the space around each left out. `None` if it names none.
    pub fn parse(list: &str) -> Option<Self> {
        let keys: Vec<_> = list
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(|key| hash(key.as_bytes()))
            .collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Whether this is one of them.
    pub(crate) fn knows(&self, key: &[u8]) -> bool {
        let sent = hash(key);
        // All are compared, so that the time does not show which key was nearly hit.
        self.0.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&sent)).into()
    }

    /// Whether an `Authorization` header carries one of them.
    pub fn authorize(&self, header: &[u8]) -> bool {
        let Some(at) = header.iter().position(|byte| *byte == b' ') else { return false };
        let (scheme, key) = header.split_at(at);
        scheme.eq_ignore_ascii_case(b"bearer") && self.knows(key.trim_ascii())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_of_the_list_opens_and_nothing_else_does() {
        let keys = Keys::parse(" first-key-of-two , second-key-of-two,").unwrap();
        for key in ["first-key-of-two", "second-key-of-two"] {
            assert!(keys.knows(key.as_bytes()), "{key}");
            for header in [format!("Bearer {key}"), format!("bearer  {key} ")] {
                assert!(keys.authorize(header.as_bytes()), "{header}");
            }
        }
        for key in
            ["", " ", "first-key-of-tw", "first-key-of-two ", "FIRST-KEY-OF-TWO", "first-key-of-two , second"]
        {
            assert!(!keys.knows(key.as_bytes()), "{key:?}");
        }
        for header in
            ["", "Bearer", "Bearer ", "first-key-of-two", "Basic first-key-of-two", "Bearerfirst-key-of-two"]
        {
            assert!(!keys.authorize(header.as_bytes()), "{header:?}");
        }
    }

    #[test]
    fn a_list_without_a_key_is_none_and_keys_do_not_print_themselves() {
        assert!(Keys::parse("").is_none() && Keys::parse(" , ,").is_none());
        assert_eq!(format!("{:?}", Keys::parse("hunter2,hunter3").unwrap()), "2 keys");
    }
}
