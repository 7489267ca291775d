//! Who may read the console's data, and who may change something through it.

use dashi_api::{Keys, may_read};
use http::request::Parts;

/// The rule by which requests for data are permitted: that of the read API for reading, and a key for changes.
///
/// A browser never adds the key's header by itself, so no other page can make a change in an operator's name. Where no key is
/// set, nothing can be changed.
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

    /// Whether this request may change something.
    pub fn may_write(&self, request: &Parts) -> bool {
        self.keys.is_some() && self.may_read(request)
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

    #[test]
    fn changes_need_a_key_wherever_reading_needs_none() {
        let here = request(&[("host", "localhost:8484")]);
        let with_key = request(&[("host", "a.example"), ("authorization", "Bearer a-key-of-sixteen")]);
        for (keys, is_loopback, request, rights) in [
            ("", true, &here, (true, false)),
            ("", false, &here, (false, false)),
            ("", true, &with_key, (false, false)),
            ("a-key-of-sixteen", true, &here, (false, false)),
            ("a-key-of-sixteen", true, &with_key, (true, true)),
            ("a-key-of-sixteen", false, &with_key, (true, true)),
            ("another-key-of-them", true, &with_key, (false, false)),
        ] {
            let access = Access { keys: Keys::parse(keys), is_loopback };
            assert_eq!((access.may_read(request), access.may_write(request)), rights, "{keys} {is_loopback}");
        }
    }
}
