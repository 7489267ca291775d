//! Values by network: of the networks that hold an address, the smallest one counts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::client_address::{parse_lenient, parse_network};

/// A network from its text: an address (`192.0.2.1`), or an address and a length (`2001:db8::/32`). IPv4 that is written
/// inside IPv6 is IPv4.
pub fn network(text: &str) -> Option<IpNet> {
    let single = || parse_lenient(text).map(|address| IpNet::from(address.ip.to_canonical()));
    parse_network(text).or_else(single).map(|network| network.trunc())
}

/// The address under which a sender counts: an IPv4 address as it is; of an IPv6 address its first 64 bits, for a
/// network of that size is what one subscriber gets.
pub fn sender(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

/// Values by network. A look-up costs one comparison for each length of network that occurs, however many networks there
/// are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks<T> {
    /// The longest lengths first.
    by_length: Vec<(u8, HashMap<IpNet, T>)>,
}

impl<T> Default for Networks<T> {
    fn default() -> Self {
        Self { by_length: Vec::new() }
    }
}

impl<T> Networks<T> {
    /// Sets the value of a network. Returns the one that it had.
    pub fn insert(&mut self, network: IpNet, value: T) -> Option<T> {
        let length = network.prefix_len();
        let found = self.by_length.binary_search_by(|(other, _)| length.cmp(other));
        let index = found.unwrap_or_else(|index| {
            self.by_length.insert(index, (length, HashMap::new()));
            index
        });
        self.by_length[index].1.insert(network.trunc(), value)
    }

    /// The value of the smallest network that holds this address.
    pub fn get(&self, ip: IpAddr) -> Option<&T> {
        let ip = ip.to_canonical();
        self.by_length.iter().find_map(|(length, networks)| {
            let network = IpNet::new(ip, *length).ok()?.trunc();
            networks.get(&network)
        })
    }

    /// The number of networks.
    pub fn len(&self) -> usize {
        self.by_length.iter().map(|(_, networks)| networks.len()).sum()
    }

    /// Whether there is no network.
    pub fn is_empty(&self) -> bool {
        self.by_length.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_smallest_network_counts() {
        let mut networks = Networks::default();
        for (text, value) in [("10.0.0.0/8", 8), ("10.1.0.0/16", 16), ("10.1.2.3", 32), ("::/0", 0)] {
            assert_eq!(networks.insert(network(text).expect("a network"), value), None);
        }
        assert_eq!(networks.insert(network("10.1.2.3/32").expect("a network"), 33), Some(32));
        let found = |text: &str| networks.get(ip(text)).copied();
        assert_eq!(["10.1.2.3", "10.1.2.4", "10.2.0.0"].map(found), [Some(33), Some(16), Some(8)]);
        assert_eq!(["11.0.0.0", "2001:db8::1", "::ffff:10.1.2.3"].map(found), [None, Some(0), Some(33)]);
        assert_eq!((networks.len(), networks.is_empty()), (4, false));
    }

    #[test]
    fn a_sender_is_an_ipv4_address_or_64_bits() {
        assert_eq!(sender(ip("192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(sender(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(sender(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        for text in ["", "a", "10.0.0.0/33", "10.0.0.0/", "/8", "2001:db8::/129"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_through_all_finds(
            entries in proptest::collection::vec((0_u32..16, 24_u8..=32), 0..20),
            looked_for in 0_u32..16,
        ) {
            let address = |low: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 | low));
            let mut networks = Networks::default();
            let mut all: Vec<IpNet> = Vec::new();
            for (low, length) in entries {
                let network = IpNet::new(address(low), length).expect("a length").trunc();
                networks.insert(network, network);
                all.push(network);
            }
            let holding = all.iter().filter(|network| network.contains(&address(looked_for)));
            let expected = holding.max_by_key(|network| network.prefix_len());
            prop_assert_eq!(networks.get(address(looked_for)), expected);
        }
    }
}
