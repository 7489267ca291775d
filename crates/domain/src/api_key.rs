//! API keys as the setting `api.keys` lists them: as they are, or as their SHA-256, by which a key is known and which opens
//! nothing.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Begins an entry that is a hash. No key may begin with it.
pub const HASH_PREFIX: &str = "sha256:";

/// SHA-256 of a key.
pub type KeyHash = [u8; 32];

/// An entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEntry<'a> {
    /// A key as it is sent.
    Plain(&'a str),
    /// The hash of one.
    Hash(KeyHash),
}

/// Why an entry that begins as a hash is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHash {
    /// It has another length, or other characters.
    #[error("sha256: is to be followed by 64 hexadecimal digits")]
    Digits,
    /// It is that of an empty key.
    #[error("it is the hash of an empty text or an empty line, so the key was empty where it was computed")]
    Empty,
}

impl KeyEntry<'_> {
    /// The hash by which a key that is sent is compared.
    pub fn hash(&self) -> KeyHash {
        match self {
            Self::Plain(key) => hash_of(key.as_bytes()),
            Self::Hash(hash) => *hash,
        }
    }
}

/// The entries of a list that commas separate, the space around each and empty ones left out.
pub fn entries(list: &str) -> impl Iterator<Item = Result<KeyEntry<'_>, BadHash>> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(entry)
}

fn entry(text: &str) -> Result<KeyEntry<'_>, BadHash> {
    let digits = match text.split_at_checked(HASH_PREFIX.len()) {
        Some((start, digits)) if start.eq_ignore_ascii_case(HASH_PREFIX) => digits,
        _ => return Ok(KeyEntry::Plain(text)),
    };
    let hash = parse_digits(digits).ok_or(BadHash::Digits)?;
    if [&b""[..], b"\n", b"\r\n"].iter().any(|empty| hash_of(empty) == hash) {
        return Err(BadHash::Empty);
    }
    Ok(KeyEntry::Hash(hash))
}

fn parse_digits(digits: &str) -> Option<KeyHash> {
    let mut hash = KeyHash::default();
    if digits.len() != 2 * hash.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a key as it is sent.
pub fn hash_of(key: &[u8]) -> KeyHash {
    Sha256::digest(key).into()
}

/// The entry for a key, which hides it: `sha256:` and 64 digits.
pub fn hashed_entry(key: &str) -> String {
    format!("{HASH_PREFIX}{}", hex(&hash_of(key.as_bytes())))
}

/// A key of 256 random bits. It begins with `dashi_`, by which people and scanners of leaked secrets know it.
pub fn key_of(random: &[u8; 32]) -> String {
    format!("dashi_{}", hex(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_keys_and_hashes() {
        let entry = hashed_entry("first-key-of-two");
        let list = format!(" {entry}, second-key-of-two,, {} ", entry.to_uppercase());
        let parsed: Vec<_> = entries(&list).collect();
        let hash = KeyEntry::Hash(hash_of(b"first-key-of-two"));
        assert_eq!(parsed, [Ok(hash), Ok(KeyEntry::Plain("second-key-of-two")), Ok(hash)]);
        assert_eq!(KeyEntry::Plain("first-key-of-two").hash(), hash.hash());
    }

    #[test]
    fn a_hash_is_that_of_other_programs() {
        // printf %s abc | sha256sum
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashed_entry("abc"), abc);
        assert_eq!(entries(abc).collect::<Vec<_>>(), [Ok(KeyEntry::Hash(hash_of(b"abc")))]);
    }

    #[test]
    fn what_begins_as_a_hash_is_one_or_is_wrong() {
        let good = hashed_entry("abc");
        let (short, long) = (&good[..good.len() - 1], format!("{good}0"));
        for wrong in
            [short, &long, "sha256:", "SHA256:abc", &good.replace("ba", "ü"), &good.replace("ba", "+a")]
        {
            assert_eq!(entries(wrong).collect::<Vec<_>>(), [Err(BadHash::Digits)], "{wrong}");
        }
        for empty in ["", "\n"] {
            assert_eq!(entries(&hashed_entry(empty)).collect::<Vec<_>>(), [Err(BadHash::Empty)]);
        }
        assert_eq!(entries("sha256").collect::<Vec<_>>(), [Ok(KeyEntry::Plain("sha256"))]);
    }

    #[test]
    fn a_new_key_can_be_sent_and_listed() {
        let key = key_of(&[0xab; 32]);
        assert_eq!(key, format!("dashi_{}", "ab".repeat(32)));
        assert_eq!(entries(&key).collect::<Vec<_>>(), [Ok(KeyEntry::Plain(key.as_str()))]);
    }
}
