//! Signed distinct ids: the proof by which a page may read the traits of its own person, and of nobody else.
//!
//! A page can claim any distinct id. So a website's server signs the id of whoever is signed in there, with the website's
//! own key, and the page shows the signature. Each website's key is derived from the identity key of the settings: a
//! website that knows its own key can sign for no other.
//!
//! ```text
//! website key = hex(HMAC-SHA-256(identity key, website id))   the id with hyphens, in lower case
//! signature   = hex(HMAC-SHA-256(website key, distinct id))   the website key as text, the distinct id as UTF-8
//! ```

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// Bytes of a signature; its text has twice as many hexadecimal digits.
const SIGNATURE_BYTES: usize = 32;

/// The secret of `profiles.identity_key`, from which each website's key is derived. It never prints itself.
#[derive(Clone)]
pub struct IdentityKey(Hmac<Sha256>);

impl IdentityKey {
    /// The key of this text; `None` if it is empty.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(mac(text)))
    }

    /// The key with which a website's server signs, 64 hexadecimal digits: a secret of that website.
    pub fn website_key(&self, website_id: Uuid) -> String {
        hex(self.0.clone().chain_update(website_id.to_string()))
    }

    /// Whether this is the signature of a website's distinct id, as that website sends it, in hexadecimal digits of
    /// either case. The time does not depend on how much of the signature is right.
    pub fn verifies(&self, website_id: Uuid, distinct_id: &str, signature: &[u8]) -> bool {
        let Some(signature) = bytes(signature) else { return false };
        let signed = mac(&self.website_key(website_id)).chain_update(distinct_id);
        signed.verify_slice(&signature).is_ok()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityKey")
    }
}

/// The signature of a distinct id by a website's key, as the website's server makes it.
pub fn signature(website_key: &str, distinct_id: &str) -> String {
    hex(mac(website_key).chain_update(distinct_id))
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn mac(key: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.as_bytes()).expect("any key length")
}

fn hex(mac: Hmac<Sha256>) -> String {
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a signature's text; `None` if it is none.
fn bytes(text: &[u8]) -> Option<[u8; SIGNATURE_BYTES]> {
    let mut bytes = [0; SIGNATURE_BYTES];
    if text.len() != 2 * SIGNATURE_BYTES {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const WEBSITE: Uuid = Uuid::from_u128(0x01a1_fe94_2b9c_710c_b496_0b40_d859_7ead);
    const WEBSITE_KEY: &str = "3c799ddfafe2b6c703464e2b6af31c3399f62f62f5a0e4d42fc69e5ba27fd099";
    /// Made by Python's `hmac`.
    const SIGNED: [(&str, &str); 2] = [
        ("ada", "e9a0f3a2a2792558faed94f81e5c84bbbfab787faf874f6d96645a638fe35194"),
        ("Łukasz", "3159894b4b791c7731fbafebefbc5806013277853d6f5d56d86ce8c7e91316b4"),
    ];

    #[test]
    fn keys_and_signatures_are_those_of_other_programs() {
        let key = IdentityKey::new(KEY).unwrap();
        assert_eq!(key.website_key(WEBSITE), WEBSITE_KEY);
        for (id, signed) in SIGNED {
            assert_eq!(signature(WEBSITE_KEY, id), signed);
            assert!(key.verifies(WEBSITE, id, signed.as_bytes()), "{id}");
            assert!(key.verifies(WEBSITE, id, signed.to_uppercase().as_bytes()), "{id}");
        }
    }

    #[test]
    fn a_signature_holds_for_one_person_of_one_website_under_one_key() {
        let key = IdentityKey::new(KEY).unwrap();
        let (id, signed) = SIGNED[0];
        let signed = signed.as_bytes();
        assert!(!key.verifies(Uuid::from_u128(1), id, signed));
        for other in ["", "ad", "adaa", "Ada", "ada ", "bob"] {
            assert!(!key.verifies(WEBSITE, other, signed), "{other:?}");
        }
        let other_key = IdentityKey::new(&KEY.replace('0', "1")).unwrap();
        assert!(!other_key.verifies(WEBSITE, id, signed));
        // The key itself signs nothing: no website gets it.
        assert!(!key.verifies(WEBSITE, id, signature(KEY, id).as_bytes()));
    }

    #[test]
    fn a_signature_is_whole_and_right_in_every_digit() {
        let key = IdentityKey::new(KEY).unwrap();
        let (id, signed) = SIGNED[0];
        for at in 0..signed.len() {
            let mut wrong = signed.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            assert!(!key.verifies(WEBSITE, id, &wrong), "digit {at}");
            assert!(!key.verifies(WEBSITE, id, &signed.as_bytes()[..at]), "the first {at}");
        }
        for wrong in
            ["", "0", &format!("{signed}00"), &format!(" {signed}"), &"g".repeat(64), &"é".repeat(32)]
        {
            assert!(!key.verifies(WEBSITE, id, wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_text_is_no_key_and_a_key_does_not_print_itself() {
        assert!(IdentityKey::new("").is_none());
        assert_eq!(format!("{:?}", IdentityKey::new(KEY).unwrap()), "IdentityKey");
    }
}
