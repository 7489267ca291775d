//! The address a request is counted under, and the list of addresses that are not counted.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Headers that may name the client, the first non-empty one counts.
const BEFORE_FORWARDED_FOR: &[&str] = &[
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-nf-client-connection-ip",
    "do-connecting-ip",
    "x-real-ip",
    "x-appengine-user-ip",
];
const FORWARDED_FOR: &str = "x-forwarded-for";
const AFTER_FORWARDED_FOR: &[&str] = &["forwarded", "x-client-ip", "x-cluster-client-ip", "x-forwarded"];

/// The address of the client as text: canonical if it is an address, otherwise the header's text.
///
/// `header` looks a value up by its lower-case name. `client_ip_header` is the configured header that goes
/// before all others; its value is taken whole. `peer` stands in for an absent `x-forwarded-for`, so that the
/// headers which rank after that one only count when it is present and empty.
///
/// Source: docs/umami-contract.md §7.2.
pub fn client_address<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    client_ip_header: Option<&str>,
    peer: IpAddr,
) -> String {
    let peer = || canonical(&Address { ip: peer, zone: None });
    let non_empty = |name: &str| header(name).filter(|value| !value.is_empty());

    if let Some(name) = client_ip_header.filter(|name| !name.is_empty()) {
        let name = name.to_ascii_lowercase();
        if let Some(value) = non_empty(&name) {
            return resolve(value);
        }
        // The original finds the peer in this header when the client sent none.
        if name == FORWARDED_FOR && header(FORWARDED_FOR).is_none() {
            return peer();
        }
    }
    if let Some(value) = BEFORE_FORWARDED_FOR.iter().find_map(|name| non_empty(name)) {
        return resolve(value);
    }
    match header(FORWARDED_FOR) {
        None => return peer(),
        Some("") => {}
        Some(list) => {
            let first = list.split(',').next().unwrap_or_default().trim();
            return if first.is_empty() { peer() } else { resolve(first) };
        }
    }
    match AFTER_FORWARDED_FOR.iter().find_map(|name| non_empty(name).map(|value| (*name, value))) {
        Some(("forwarded", value)) => resolve(forwarded_for(value).unwrap_or(value)),
        Some((_, value)) => resolve(value),
        None => peer(),
    }
}

/// The first unquoted address after a `for=`, with its brackets.
fn forwarded_for(value: &str) -> Option<&str> {
    value.match_indices("for=").find_map(|(at, token)| {
        let text = &value[at + token.len()..];
        let open = usize::from(text.starts_with('['));
        let inner = text[open..].bytes().take_while(|b| b.is_ascii_hexdigit() || b":.".contains(b)).count();
        let end = open + inner;
        let close = usize::from(text[end..].starts_with(']'));
        (inner > 0).then(|| &text[..end + close])
    })
}

/// The canonical form of the address in `text`, with or without a port; other text comes back without its
/// port.
pub fn resolve(text: &str) -> String {
    if let Some(address) = parse_lenient(text) {
        return canonical(&address);
    }
    let bare = strip_port(text);
    match parse_lenient(&bare) {
        Some(address) => canonical(&address),
        None => bare.into_owned(),
    }
}

fn canonical(address: &Address) -> String {
    match address.ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(_) => address.to_string(),
    }
}

/// Cuts a port off.
///
/// After brackets everything goes, and the brackets stay. Otherwise the last colon ends the text if there is
/// a dot anywhere or only a host name before it; a bare IPv6 address stays whole.
pub fn strip_port(text: &str) -> Cow<'_, str> {
    if text.starts_with('[')
        && let Some(end) = text.find(']')
    {
        return Cow::Borrowed(&text[..=end]);
    }
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    match text.rsplit_once(':') {
        Some((host, _)) if text.contains('.') || (!host.is_empty() && host.bytes().all(host_byte)) => {
            Cow::Borrowed(host)
        }
        _ => Cow::Borrowed(text),
    }
}

/// An address and the zone it is meant in, such as `fe80::1%eth0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address; one that was written as IPv4 inside IPv6 is IPv6 here.
    pub ip: IpAddr,
    /// The zone as written, without its `%`; only an IPv6 address has one.
    pub zone: Option<String>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        match &self.zone {
            Some(zone) => write!(f, "%{zone}"),
            None => Ok(()),
        }
    }
}

/// Reads an address in any of the notations of the C library: `1.2.3`, `16909060`, `0x1.2.3.4`, `01.2.3.4`
/// (octal), `::1.2.3.4` (meant as mapped), `fe80::1%eth0`. Brackets, ports and surrounding spaces make it no
/// address.
///
/// Source: docs/umami-contract.md §7.2, behaviour of ipaddr.js 2.
pub fn parse_lenient(text: &str) -> Option<Address> {
    if !text.contains(':') {
        return parse_v4(text).map(|ip| Address { ip: ip.into(), zone: None });
    }
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    if zone.is_some_and(|zone| zone.is_empty() || !zone.bytes().all(|b| b.is_ascii_alphanumeric())) {
        return None;
    }
    let ip = if address.contains('.') { parse_v4_in_v6(address)? } else { address.parse().ok()? };
    Some(Address { ip: IpAddr::V6(ip), zone: zone.map(str::to_owned) })
}

/// One to four numbers with dots between; the last one fills the bytes that the others leave.
fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut bits = 0;
    let mut free = 32;
    let mut parts = text.split('.').peekable();
    while let Some(part) = parts.next() {
        if free == 0 {
            return None;
        }
        let number = c_number(part)?;
        let width = if parts.peek().is_some() { 8 } else { free };
        if number >> width != 0 {
            return None;
        }
        free -= width;
        bits |= number << free;
    }
    u32::try_from(bits).ok().map(Ipv4Addr::from_bits)
}

/// A number with the prefixes of C: `0x` for hexadecimal, a leading zero for octal.
fn c_number(text: &str) -> Option<u64> {
    match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => number(&text[2..], 16),
        [b'0', _, ..] => number(&text[1..], 8),
        _ => number(text, 10),
    }
}

/// Unlike `from_str_radix` this takes no sign.
fn number(text: &str, radix: u32) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_alphanumeric()) { u64::from_str_radix(text, radix).ok() } else { None }
}

/// IPv6 that ends in a dotted IPv4 address, here always of four numbers, without octal.
fn parse_v4_in_v6(text: &str) -> Option<Ipv6Addr> {
    let (head, dotted) = text.split_at(text.rfind(':')? + 1);
    let mut octets = [0_u8; 4];
    let mut parts = dotted.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let value = match part.as_bytes() {
            [b'0', b'x' | b'X', ..] => number(&part[2..], 16)?,
            _ => number(part, 10)?,
        };
        *octet = u8::try_from(value).ok()?;
    }
    if parts.next().is_some() {
        return None;
    }
    let v4 = Ipv4Addr::from(octets);
    if head == "::" { Some(v4.to_ipv6_mapped()) } else { format!("{head}{v4}").parse().ok() }
}

/// Addresses whose events are not taken, as configured.
#[derive(Debug, Clone, Default)]
pub struct BlockedAddresses {
    texts: Vec<String>,
    networks: Vec<IpNet>,
    unparsable: Vec<String>,
}

impl BlockedAddresses {
    /// Reads a comma list of addresses and networks (`10.0.0.0/8`). Never fails: an entry that is neither
    /// still blocks a client address of exactly this text.
    ///
    /// Source: docs/umami-contract.md §7.6.
    pub fn parse(list: &str) -> Self {
        let mut blocked = Self::default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match parse_network(entry) {
                Some(network) => blocked.networks.push(network),
                None if parse_lenient(entry).is_none() => blocked.unparsable.push(entry.to_owned()),
                None => {}
            }
            blocked.texts.push(entry.to_owned());
        }
        blocked
    }

    /// The entries of a website's own list. An address counts however it is written; otherwise as [`Self::parse`] reads
    /// them.
    pub fn of_website(entries: &[String]) -> Self {
        let mut blocked = Self::default();
        for entry in entries {
            let single = || parse_lenient(entry).map(|address| IpNet::from(address.ip));
            match parse_network(entry).or_else(single) {
                Some(network) => blocked.networks.push(network),
                None => blocked.unparsable.push(entry.clone()),
            }
            blocked.texts.push(entry.clone());
        }
        blocked
    }

    /// Whether nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// True if `ip_text` is one of the entries letter by letter, or an address in one of the networks.
    ///
    /// A network holds only addresses of its own family. A text that is no address is in no network.
    pub fn contains(&self, ip_text: &str) -> bool {
        if self.texts.iter().any(|text| text == ip_text) {
            return true;
        }
        if self.networks.is_empty() {
            return false;
        }
        parse_lenient(ip_text)
            .is_some_and(|address| self.networks.iter().any(|network| network.contains(&address.ip)))
    }

    /// Entries that are neither an address nor a network, for a warning at the start.
    pub fn unparsable(&self) -> &[String] {
        &self.unparsable
    }
}

/// Peers whose address and location headers are believed. By default all are, as Umami has it: then any client can
/// claim any address.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Option<Vec<IpNet>>);

impl TrustedProxies {
    /// Reads a comma list of addresses and networks; an empty one trusts everybody.
    ///
    /// # Errors
    /// The first entry that is neither an address nor a network.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let networks = entries
            .map(|entry| {
                let single = || entry.parse::<IpAddr>().ok().map(IpNet::from);
                parse_network(entry).or_else(single).ok_or_else(|| entry.to_owned())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self((!networks.is_empty()).then_some(networks)))
    }

    /// Whether every peer is believed.
    pub fn is_everybody(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this peer is believed. An IPv4 peer of a socket that serves both families counts as IPv4.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.as_ref().is_none_or(|networks| networks.iter().any(|network| network.contains(&peer)))
    }
}

/// A network in the notation `10.0.0.0/8`.
pub(crate) fn parse_network(entry: &str) -> Option<IpNet> {
    let (address, length) = entry.rsplit_once('/')?;
    let length = u8::try_from(number(length, 10)?).ok()?;
    IpNet::new(parse_lenient(address)?.ip, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

    fn address_of(headers: &[(&str, &'static str)], configured: Option<&str>) -> String {
        let look_up = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        client_address(look_up, configured, PEER)
    }

    #[test]
    fn the_peer_counts_when_no_header_names_the_client() {
        assert_eq!(address_of(&[], None), "198.51.100.7");
        assert_eq!(address_of(&[("x-client-ip", "8.8.8.8")], None), "198.51.100.7");
        let mapped = client_address(|_| None, None, "::ffff:9.9.9.9".parse().unwrap());
        assert_eq!(mapped, "9.9.9.9");
    }

    #[test]
    fn the_first_non_empty_header_counts() {
        let both = [("cf-connecting-ip", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")];
        assert_eq!(address_of(&both, None), "1.1.1.1");
        let empty = [("cf-connecting-ip", ""), ("x-forwarded-for", " 2.2.2.2:80 , 3.3.3.3")];
        assert_eq!(address_of(&empty, None), "2.2.2.2");
        let later = [("x-forwarded-for", ""), ("x-client-ip", "4.4.4.4")];
        assert_eq!(address_of(&later, None), "4.4.4.4");
    }

    #[test]
    fn the_configured_header_goes_first_and_is_no_list() {
        let headers = [("x-mine", "5.5.5.5"), ("cf-connecting-ip", "1.1.1.1")];
        assert_eq!(address_of(&headers, Some("X-Mine")), "5.5.5.5");
        assert_eq!(address_of(&headers, Some("x-other")), "1.1.1.1");
        assert_eq!(address_of(&[("x-mine", "5.5.5.5, 6.6.6.6")], Some("x-mine")), "5.5.5.5, 6.6.6.6");
        let configured = [("cf-connecting-ip", "1.1.1.1")];
        assert_eq!(address_of(&configured, Some("x-forwarded-for")), "198.51.100.7");
    }

    #[test]
    fn forwarded_names_the_client_after_for() {
        let of = |value| address_of(&[("x-forwarded-for", ""), ("forwarded", value)], None);
        assert_eq!(of("proto=https;for=8.8.8.8;by=1.1.1.1"), "8.8.8.8");
        assert_eq!(of("for=[2001:db8::1]:443"), "[2001:db8::1]");
        assert_eq!(of("for=2001:DB8::1"), "2001:db8::1");
        assert_eq!(of("for=\"x\", for=8.8.8.8"), "8.8.8.8");
        assert_eq!(of("by=1.1.1.1"), "by=1.1.1.1");
    }

    #[test]
    fn addresses_get_their_canonical_form_and_lose_their_port() {
        let cases = [
            ("2001:0218:0:0:0:0:0:1", "2001:218::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::FFFF:0102:0304", "1.2.3.4"),
            ("::1.2.3.4", "1.2.3.4"),
            ("01.2.3.4", "1.2.3.4"),
            ("0x1.2.3.4", "1.2.3.4"),
            ("1.2.3", "1.2.0.3"),
            ("16909060", "1.2.3.4"),
            ("256", "0.0.1.0"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::1]:443", "[2001:db8::1]"),
            ("::ffff:1.2.3.4x", "::ffff"),
            ("example.com:80", "example.com"),
            ("localhost:80", "localhost"),
            ("1.2.3.256", "1.2.3.256"),
            ("1.2.3.4 ", "1.2.3.4 "),
            ("unknown", "unknown"),
            ("", ""),
        ];
        for (text, resolved) in cases {
            assert_eq!(resolve(text), resolved, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let texts = [
            "",
            " 1.2.3.4",
            "1.2.3.4 ",
            "1.2.3.256",
            "[::1]",
            "1.2.3.4.5",
            "1..2",
            "08.1.1.1",
            "0x.1.1.1",
            "+1.2.3.4",
            "4294967296",
            "1.16777216",
            "1.2.65536",
            ":::",
            "1::2::3",
            "::1%",
            "::1%et-h",
            "fe80::12345",
            "1:2:3:4:5:6:7:8:9",
            "::1.2.3",
            "::256.1.1.1",
            "1.2.3.4%eth0",
            "1:2",
        ];
        for text in texts {
            assert_eq!(parse_lenient(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_mapped_form_has_its_own_number_rules() {
        assert_eq!(resolve("::ffff:010.1.1.1"), "10.1.1.1");
        assert_eq!(resolve("010.1.1.1"), "8.1.1.1");
        assert_eq!(resolve("64:ff9b::0x10.1.1.1"), "64:ff9b::1001:101");
    }

    #[test]
    fn blocking_is_by_equal_text_or_by_network_of_the_same_family() {
        let blocked = BlockedAddresses::parse(
            " 1.2.3.4, 10.0.0.0/8 ,2001:db8::/32,office,/8,10.0.0.0/33,,::ffff:0:0/96",
        );
        for hit in [
            "1.2.3.4",
            "10.200.1.1",
            "2001:db8:1::5",
            "2001:db8::1%eth0",
            "office",
            "/8",
            "10.0.0.0/8",
            "012.1.1.1",
        ] {
            assert!(blocked.contains(hit), "{hit}");
        }
        for miss in ["1.2.3.5", "11.0.0.1", "2001:db9::1", "unknown", "", "[2001:db8::1]:443", "10.0.0.1:80"]
        {
            assert!(!blocked.contains(miss), "{miss}");
        }
        // The mapped network is of the other family.
        assert!(!blocked.contains("9.9.9.9"));
        assert_eq!(blocked.unparsable(), ["office", "/8", "10.0.0.0/33"]);
        assert!(!BlockedAddresses::parse("").contains(""));
    }

    proptest! {
        #[test]
        fn every_address_is_read_back_from_its_own_text(bits: u128, v4: u32) {
            for ip in [IpAddr::from(Ipv6Addr::from_bits(bits)), IpAddr::from(Ipv4Addr::from_bits(v4))] {
                prop_assert_eq!(parse_lenient(&ip.to_string()).map(|address| address.ip), Some(ip));
            }
        }

        #[test]
        fn resolving_twice_changes_nothing_for_addresses(bits: u128) {
            let once = resolve(&Ipv6Addr::from_bits(bits).to_string());
            prop_assert_eq!(resolve(&once), once);
        }

        #[test]
        fn any_text_is_resolved_without_a_panic(text in "[0-9a-fx:.%\\[\\]é ]{0,24}") {
            resolve(&text);
            BlockedAddresses::parse(&text).contains(&text);
        }
    }

    #[test]
    fn a_list_of_proxies_trusts_them_alone_and_an_empty_one_everybody() {
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let everybody = TrustedProxies::parse(" , ").unwrap();
        assert!(everybody.is_everybody() && everybody.trusts(peer("203.0.113.9")));
        let some = TrustedProxies::parse("10.0.0.0/8, 192.0.2.1,::1").unwrap();
        for (text, trusted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(some.trusts(peer(text)), trusted, "{text}");
        }
        assert_eq!(TrustedProxies::parse("10.0.0.0/8,proxy").unwrap_err(), "proxy");
    }
}
