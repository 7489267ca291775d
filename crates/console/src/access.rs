//! Who may read the console's data, and who may change something through it.

use dashi_api::{Keys, may_read};
use http::header;
use http::request::Parts;

/// The rule by which requests for data are permitted: that of the read API, and one for changes.
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

impl Access {
    /// Whether this request may read.
    pub fn may_read(&self, request: &Parts) -> bool {
        may_read(self.keys.as_ref(), request, self.is_loopback)
    }

    /// Whether this request may change something: only with a key.
    pub fn may_write(&self, request: &Parts) -> bool {
        let sent = request.headers.get(header::AUTHORIZATION);
        sent.zip(self.keys.as_ref()).is_some_and(|(sent, keys)| keys.authorize(sent.as_bytes()))
    }
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
