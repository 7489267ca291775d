//! The location of a visitor, as far as the address and the provider's headers give it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

/// A place as it is stored. The look-up of an address in a database is done elsewhere; this type gives the result its
/// form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Two letters, as the source has them.
    pub country: Option<String>,
    /// `CC-REGION`, such as `GB-ENG`.
    pub region: Option<String>,
    /// Name of the city.
    pub city: Option<String>,
}

const COUNTRY_CHARS_MAX: usize = 2;
const REGION_CHARS_MAX: usize = 20;
const CITY_CHARS_MAX: usize = 50;

impl Location {
    /// Puts a source's answers together: `region` is the source's own code and gets its country, and
    /// everything is percent-decoded once, whatever the source.
    ///
    /// Source: docs/umami-contract.md §7.7.
    pub fn from_parts(country: Option<&str>, region: Option<&str>, city: Option<&str>) -> Self {
        let decoded = |text: &str| Some(percent_decoded(text).into_owned()).filter(|text| !text.is_empty());
        Self {
            country: country.and_then(decoded),
            region: self::region(country, region).as_deref().and_then(decoded),
            city: city.and_then(decoded),
        }
    }

    /// Makes the place fit its columns: a country longer than two characters is none, region and city are cut
    /// to 20 and 50 characters, U+0000 is dropped.
    ///
    /// Source: docs/umami-contract.md §3.4.
    pub fn limited(self) -> Self {
        let clean = |text: String| Some(text.replace('\0', "")).filter(|text| !text.is_empty());
        let cut = |text: String, chars_max| text.chars().take(chars_max).collect::<String>();
        Self {
            // Blanks at its end are none to a column of fixed width.
            country: self
                .country
                .and_then(|text| clean(text.trim_end_matches(' ').to_owned()))
                .filter(|text| text.chars().count() <= COUNTRY_CHARS_MAX),
            region: self.region.and_then(clean).map(|text| cut(text, REGION_CHARS_MAX)),
            city: self.city.and_then(clean).map(|text| cut(text, CITY_CHARS_MAX)),
        }
    }
}

/// Names of the headers for country, region and city, one row per provider; the first row with a country
/// counts.
const PROVIDERS: &[[&str; 3]] = &[
    ["cf-ipcountry", "cf-region-code", "cf-ipcity"],
    ["x-vercel-ip-country", "x-vercel-ip-country-region", "x-vercel-ip-city"],
    ["cloudfront-viewer-country", "cloudfront-viewer-country-region", "cloudfront-viewer-city"],
    ["eo-ipcountry", "eo-region-code", "eo-ipcity"],
];

/// The place the provider's headers name, `None` if none of them names a country.
///
/// `header` looks the bytes of a value up by its lower-case name. They are read as UTF-8 and percent-decoded
/// twice, since the original does so; nothing is upper-cased or checked. A local client has no place even if
/// headers name one, so ask [`is_local`] first.
/// Source: docs/umami-contract.md §7.7.
pub fn from_headers<'h>(header: impl Fn(&str) -> Option<&'h [u8]>) -> Option<Location> {
    let non_empty = |name: &str| header(name).filter(|value| !value.is_empty());
    PROVIDERS.iter().find_map(|[country, region, city]| {
        let decoded = |bytes: &[u8]| percent_decoded(&String::from_utf8_lossy(bytes)).into_owned();
        let country = non_empty(country).map(decoded)?;
        let region = non_empty(region).map(decoded);
        let city = non_empty(city).map(decoded);
        Some(Location::from_parts(Some(&country), region.as_deref(), city.as_deref()))
    })
}

/// The stored form of a region: `CC-REGION`. A region that has a hyphen already is kept; without a country or
/// a region there is none.
pub fn region(country: Option<&str>, region: Option<&str>) -> Option<String> {
    let country = country.filter(|text| !text.is_empty())?;
    let region = region.filter(|text| !text.is_empty())?;
    Some(if region.contains('-') { region.to_owned() } else { format!("{country}-{region}") })
}

/// True for addresses that are in no public place: private, loopback, link-local and unspecified ones.
///
/// 169.254.0.0/24 and 169.254.255.0/24 are reserved and not local, 100.64.0.0/10 is not local either.
/// Source: docs/umami-contract.md §7.7.
pub fn is_local(ip: &IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let link_local = ip.is_link_local() && (1..=254).contains(&ip.octets()[2]);
            ip.is_private() || ip.is_loopback() || link_local || ip == Ipv4Addr::UNSPECIFIED
        }
        IpAddr::V6(ip) => {
            ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback() || ip.is_unspecified()
        }
    }
}

/// JavaScript's `decodeURIComponent`, except that text it refuses is kept as it is.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    decode(text.as_bytes())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map_or(Cow::Borrowed(text), Cow::Owned)
}

fn decode(mut text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    loop {
        match text {
            [] => return Some(bytes),
            [b'%', high, low, rest @ ..] => {
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                text = rest;
            }
            [b'%', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                text = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(country: &str, region: &str, city: &str) -> Location {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Location { country: some(country), region: some(region), city: some(city) }
    }

    fn from(headers: &[(&str, &'static [u8])]) -> Option<Location> {
        from_headers(|name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    #[test]
    fn private_and_own_addresses_are_local() {
        let local = [
            "10.0.0.1",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.1.0",
            "169.254.254.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "::ffff:192.168.1.1",
            "fc00::1",
            "fdff::5",
            "fe80::1",
            "febf::1",
            "0.0.0.0",
            "::1",
            "::",
        ];
        for ip in local {
            assert!(is_local(&ip.parse().unwrap()), "{ip}");
        }
        let public = [
            "8.8.8.8",
            "100.64.0.1",
            "169.254.0.1",
            "169.254.255.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "0.0.0.1",
            "2001:db8::1",
            "fec0::1",
            "fb00::1",
        ];
        for ip in public {
            assert!(!is_local(&ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn the_first_provider_with_a_country_counts_alone() {
        assert_eq!(from(&[]), None);
        assert_eq!(from(&[("cf-ipcity", b"Paris"), ("cf-ipcountry", b"")]), None);
        let two: &[(&str, &[u8])] = &[
            ("cf-ipcountry", b""),
            ("cf-ipcity", b"Paris"),
            ("x-vercel-ip-country", b"GB"),
            ("x-vercel-ip-country-region", b"ENG"),
            ("eo-ipcountry", b"CN"),
            ("eo-ipcity", b"Beijing"),
        ];
        assert_eq!(from(two), Some(place("GB", "GB-ENG", "")));
        assert_eq!(from(&[("cloudfront-viewer-country", b"us")]), Some(place("us", "", "")));
    }

    #[test]
    fn values_are_utf8_and_percent_decoded_twice() {
        let city = |value| from(&[("cf-ipcountry", b"XX"), ("cf-ipcity", value)]).unwrap().city.unwrap();
        assert_eq!(city("Zürich".as_bytes()), "Zürich");
        assert_eq!(city(b"Z%C3%BCrich"), "Zürich");
        assert_eq!(city(b"Z%25C3%25BCrich"), "Zürich");
        assert_eq!(city(b"100%"), "100%");
        assert_eq!(city(b"%zz%41"), "%zz%41");
        assert_eq!(city(b"%C3"), "%C3");
        assert_eq!(city(b"%+1"), "%+1");
        assert_eq!(city(b"a+b"), "a+b");
    }

    #[test]
    fn a_region_carries_its_country() {
        assert_eq!(region(Some("US"), Some("CA")).as_deref(), Some("US-CA"));
        assert_eq!(region(Some("US"), Some("GB-ENG")).as_deref(), Some("GB-ENG"));
        assert_eq!(region(None, Some("CA")), None);
        assert_eq!(region(Some(""), Some("GB-ENG")), None);
        assert_eq!(region(Some("US"), Some("")), None);
    }

    #[test]
    fn a_place_fits_its_columns() {
        let long = place("USA", &"é".repeat(30), &"ü".repeat(60)).limited();
        assert_eq!(long, place("", &"é".repeat(20), &"ü".repeat(50)));
        assert_eq!(place("U\0S", "\0", "a\0b").limited(), place("US", "", "ab"));
    }

    proptest! {
        #[test]
        fn limiting_twice_changes_nothing(country in ".{0,4}", region in ".{0,40}", city in ".{0,80}") {
            let once = place(&country, &region, &city).limited();
            prop_assert_eq!(once.clone().limited(), once);
        }

        #[test]
        fn what_was_encoded_comes_back(text in ".{0,20}") {
            let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decoded(&encoded), text);
        }
    }
}
