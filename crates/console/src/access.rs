//! Who may read the console's data, and who may change something through it.

use std::net::IpAddr;

use dashi_api::Keys;
use http::request::Parts;
use http::{HeaderMap, header};

/// The rule by which requests for data are permitted.
///
/// * Where API keys are set, reading and changing need one of them (`Authorization: Bearer KEY`). A browser never adds that
///   header by itself, so no other page can make a change in an operator's name.
/// * Where none is set, nothing can be changed, and reading is permitted where the server listens on loopback only, to
///   requests that were made on this machine: to a loopback name and not through a proxy. The name keeps out pages of the
///   internet whose name was made to mean 127.0.0.1.
#[derive(Debug, Clone)]
pub struct Access {
    /// The keys; `None` if none is set.
    pub keys: Option<Keys>,
    /// Whether the server listens on a loopback address.
    pub is_loopback: bool,
}

/// Headers that proxies add: a request that has one may come from anywhere.
const PROXIES: [&str; 6] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "cf-connecting-ip"];

impl Access {
    /// Whether this request may read.
    pub fn may_read(&self, request: &Parts) -> bool {
        match self.keys {
            Some(_) => self.may_write(request),
            None => self.is_loopback && is_of_this_machine(request),
        }
    }

    /// Whether this request may change something: only with a key.
    pub fn may_write(&self, request: &Parts) -> bool {
        let sent = request.headers.get(header::AUTHORIZATION);
        sent.zip(self.keys.as_ref()).is_some_and(|(sent, keys)| keys.authorize(sent.as_bytes()))
    }
}

/// Whether a program or a page of this machine made the request, as far as the request shows.
fn is_of_this_machine(request: &Parts) -> bool {
    let text = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let host = request.uri.host().map(str::to_owned).or_else(|| text(&request.headers, "host"));
    let site = text(&request.headers, "sec-fetch-site");
    host.is_some_and(|host| is_loopback_name(&host))
        && !PROXIES.iter().any(|name| request.headers.contains_key(*name))
        && site.is_none_or(|site| site == "same-origin" || site == "none")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/console/data/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn access(keys: &str, is_loopback: bool) -> Access {
        Access { keys: Keys::parse(keys), is_loopback }
    }

    #[test]
    fn without_a_key_only_this_machine_reads_and_only_on_loopback() {
        for (headers, is_permitted) in [
            (&[("host", "127.0.0.1:8484")][..], true),
            (&[("host", "localhost:8484")], true),
            (&[("host", "LocalHost")], true),
            (&[("host", "[::1]:8484")], true),
            (&[("host", "127.0.0.1:8484"), ("sec-fetch-site", "same-origin")], true),
            (&[], false),
            (&[("host", "analytics.example")], false),
            (&[("host", "127.0.0.1.evil.example:8484")], false),
            (&[("host", "localhost.evil.example")], false),
            (&[("host", "10.0.0.1:8484")], false),
            (&[("host", "[::1")], true),
            (&[("host", "[2001:db8::1]:8484")], false),
            (&[("host", "localhost"), ("x-forwarded-for", "127.0.0.1")], false),
            (&[("host", "localhost"), ("forwarded", "for=127.0.0.1")], false),
            (&[("host", "localhost"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "localhost"), ("sec-fetch-site", "same-site")], false),
        ] {
            assert_eq!(access("", true).may_read(&request(headers)), is_permitted, "{headers:?}");
            assert!(!access("", false).may_read(&request(headers)), "{headers:?}");
            assert!(!access("", true).may_write(&request(headers)), "{headers:?}");
        }
    }

    #[test]
    fn where_a_key_is_set_it_permits_reading_and_writing_and_nothing_else_does() {
        for is_loopback in [true, false] {
            let access = access("a-key-of-sixteen", is_loopback);
            let known = request(&[("host", "a.example"), ("authorization", "Bearer a-key-of-sixteen")]);
            assert!(access.may_read(&known) && access.may_write(&known));
            let unknown = request(&[("host", "a.example"), ("authorization", "Bearer a-key-of-sixteem")]);
            assert!(!access.may_read(&unknown) && !access.may_write(&unknown));
            let none = request(&[("host", "localhost")]);
            assert!(!access.may_read(&none) && !access.may_write(&none));
        }
        assert!(!access("", true).may_write(&request(&[("authorization", "Bearer ")])));
    }
}
