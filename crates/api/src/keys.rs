//! Who may read: whoever has an API key, or, where none is set, whoever sits at this machine.

use std::fmt;
use std::net::IpAddr;

use dashi_domain::api_key::{KeyHash, entries, hash_of};
use http::request::Parts;
use http::{HeaderMap, Version, header};
use subtle::ConstantTimeEq as _;

/// The API keys, as hashes: a comparison takes the same time for every key that is sent, and nothing prints them.
#[derive(Clone)]
pub struct Keys(Vec<KeyHash>);

impl Keys {
    /// The keys of a comma list, given as they are or as `sha256:` and their hash, the space around each left out. `None`
    /// if it names none. An entry that begins as a hash and is none, which the check of the settings refuses, opens nothing.
    pub fn parse(list: &str) -> Option<Self> {
        let mut entries = entries(list).peekable();
        entries.peek()?;
        Some(Self(entries.filter_map(Result::ok).map(|entry| entry.hash()).collect()))
    }

    /// Whether this is one of them. A hash is no key: what is sent is hashed.
    pub(crate) fn knows(&self, key: &[u8]) -> bool {
        let sent = hash_of(key);
        // All are compared, so that the time does not show which key was nearly hit.
        self.0.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&sent)).into()
    }

    /// Whether an `Authorization` header carries one of them.
    pub fn authorize(&self, header: &[u8]) -> bool {
        bearer(header).is_some_and(|key| self.knows(key))
    }
}

/// The credential of an `Authorization` header of the scheme `Bearer`.
pub fn bearer(header: &[u8]) -> Option<&[u8]> {
    let at = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, credential) = header.split_at(at);
    scheme.eq_ignore_ascii_case(b"bearer").then_some(credential.trim_ascii())
}

/// Whether a request may read. With keys it needs one of them, in the header `Authorization`. Without keys, a process that
/// listens on a loopback address alone answers requests that come from this machine and from no page of another origin:
/// see `is_local`.
pub fn may_read(keys: Option<&Keys>, request: &Parts, listens_on_loopback: bool) -> bool {
    match keys {
        Some(keys) => {
            let sent = request.headers.get(header::AUTHORIZATION);
            sent.is_some_and(|value| keys.authorize(value.as_bytes()))
        }
        None => listens_on_loopback && is_local(request),
    }
}

/// Whether a request to a loopback address shows no sign that it was made for somebody elsewhere: by a proxy (its headers,
/// or HTTP/1.0, which proxies speak unless told otherwise), by a page of another origin, or under a name that was made to
/// point here.
fn is_local(request: &Parts) -> bool {
    const PROXIES: [&str; 8] = [
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-client-ip",
        "cf-connecting-ip",
    ];
    let headers = &request.headers;
    let host =
        request.uri.authority().map(http::uri::Authority::as_str).or_else(|| text(headers, header::HOST));
    let site = text(headers, "sec-fetch-site");
    request.version != Version::HTTP_10
        && !PROXIES.iter().any(|name| headers.contains_key(*name))
        && host.is_some_and(is_loopback_name)
        && site.is_none_or(|site| matches!(site, "same-origin" | "none"))
        && text(headers, header::ORIGIN)
            .is_none_or(|origin| origin.split_once("://").is_some_and(|(_, name)| Some(name) == host))
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

/// Whether a host, with or without a port, is this machine by every resolver's word.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
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
    fn a_key_that_is_listed_by_its_hash_opens_and_its_hash_does_not() {
        let entry = dashi_domain::api_key::hashed_entry("first-key-of-two");
        let keys = Keys::parse(&format!("{entry}, second-key-of-two")).unwrap();
        for key in ["first-key-of-two", "second-key-of-two"] {
            assert!(keys.knows(key.as_bytes()), "{key}");
        }
        for sent in [entry.as_str(), entry.trim_start_matches("sha256:"), ""] {
            assert!(!keys.knows(sent.as_bytes()), "{sent}");
        }
    }

    #[test]
    fn an_entry_that_is_wrong_opens_nothing_to_anybody() {
        let keys = Keys::parse("sha256:0123").expect("it is not as if there were no key");
        assert!(!keys.knows(b"sha256:0123") && !keys.knows(b""));
        let local = request(Version::HTTP_11, &[("host", "localhost")]);
        assert!(!may_read(Some(&keys), &local, true));
    }

    fn request(version: Version, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::get("/api/websites").version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn without_keys_only_this_machine_reads_and_only_over_loopback() {
        let asks = |headers: &[(&str, &str)]| request(Version::HTTP_11, headers);
        for host in ["localhost", "LOCALHOST:8484", "127.0.0.1:8484", "127.1.2.3", "[::1]:8484"] {
            assert!(may_read(None, &asks(&[("host", host)]), true), "{host}");
            assert!(!may_read(None, &asks(&[("host", host)]), false), "{host}");
            assert!(!may_read(None, &request(Version::HTTP_10, &[("host", host)]), true), "{host}");
        }
        for host in ["a.example", "localhost.a.example", "10.0.0.1:8484", "[::2]", "", "127.0.0.1.a.example"]
        {
            assert!(!may_read(None, &asks(&[("host", host)]), true), "{host}");
        }
        assert!(!may_read(None, &asks(&[]), true));
        let here = ("host", "localhost:8484");
        for header in [
            ("x-forwarded-for", "203.0.113.9"),
            ("forwarded", "for=x"),
            ("via", "1.1 proxy"),
            ("x-real-ip", "127.0.0.1"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://a.example"),
            ("origin", "http://localhost:3000"),
            ("origin", "null"),
        ] {
            assert!(!may_read(None, &asks(&[here, header]), true), "{header:?}");
        }
        for header in [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
            ("origin", "http://localhost:8484"),
        ] {
            assert!(may_read(None, &asks(&[here, header]), true), "{header:?}");
        }
    }

    #[test]
    fn with_keys_everybody_needs_one() {
        let keys = Keys::parse("first-key-of-two").unwrap();
        let local = request(Version::HTTP_11, &[("host", "localhost")]);
        assert!(!may_read(Some(&keys), &local, true));
        let with_key = [("host", "a.example"), ("authorization", "Bearer first-key-of-two")];
        assert!(may_read(Some(&keys), &request(Version::HTTP_10, &with_key), false));
    }

    #[test]
    fn a_list_without_a_key_is_none_and_keys_do_not_print_themselves() {
        assert!(Keys::parse("").is_none() && Keys::parse(" , ,").is_none());
        assert_eq!(format!("{:?}", Keys::parse("hunter2,hunter3").unwrap()), "2 keys");
    }
}
