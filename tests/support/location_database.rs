//! Writes files in MaxMind's format, version 2.0: a tree over the bits of an address, and what is known at its leaves.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

/// The bytes that the file may have between tree and data, and those at which its description begins.
const SEPARATOR: [u8; 16] = [0; 16];
const METADATA: &[u8] = b"\xAB\xCD\xEFMaxMind.com";

/// Where a bit of an address leads.
#[derive(Debug, Clone, Copy)]
enum Next {
    Nowhere,
    Node(usize),
    /// An offset in the data.
    Data(usize),
}

/// A file that knows these networks, such as `2.125.160.216/29` or `2001:db8::/32`, none of which may lie in another.
/// IPv4 addresses are the last 32 bits of IPv6 ones, as in MaxMind's own files.
pub fn location_database(networks: &[(&str, Value)]) -> Vec<u8> {
    let mut nodes = vec![[Next::Nowhere; 2]];
    let mut data = Vec::new();
    for (network, record) in networks {
        let (bits, length) = parse(network);
        let leaf = Next::Data(data.len());
        write_value(record, &mut data);
        let mut node = 0;
        for depth in 0..length {
            let side = usize::from(bits >> (127 - depth) & 1 == 1);
            if depth + 1 == length {
                assert!(matches!(nodes[node][side], Next::Nowhere), "{network} overlaps another network");
                nodes[node][side] = leaf;
            } else {
                node = match nodes[node][side] {
                    Next::Node(next) => next,
                    Next::Nowhere => {
                        nodes.push([Next::Nowhere; 2]);
                        nodes[node][side] = Next::Node(nodes.len() - 1);
                        nodes.len() - 1
                    }
                    Next::Data(_) => panic!("{network} lies in another network"),
                };
            }
        }
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for next in nodes.into_iter().flatten() {
        let record = match next {
            Next::Nowhere => count,
            Next::Node(node) => node,
            Next::Data(offset) => count + SEPARATOR.len() + offset,
        };
        file.extend(u32::try_from(record).expect("a small file").to_be_bytes());
    }
    file.extend(SEPARATOR);
    file.extend(data);
    file.extend(METADATA);
    // Readers insist on these widths: 2, 4 and 8 bytes are the types 5, 6 and 9.
    write_head(7, 9, &mut file);
    let count = u32::try_from(count).expect("a small file");
    for (key, kind, number) in [
        ("node_count", 6, &count.to_be_bytes()[..]),
        ("record_size", 5, &32_u16.to_be_bytes()),
        ("ip_version", 5, &6_u16.to_be_bytes()),
        ("binary_format_major_version", 5, &2_u16.to_be_bytes()),
        ("binary_format_minor_version", 5, &0_u16.to_be_bytes()),
        ("build_epoch", 9, &1_777_593_600_u64.to_be_bytes()),
    ] {
        write_value(&json!(key), &mut file);
        write_head(kind, number.len(), &mut file);
        file.extend(number);
    }
    for (key, value) in [
        ("database_type", json!("Test-City")),
        ("languages", json!(["en"])),
        ("description", json!({ "en": "networks of a test" })),
    ] {
        write_value(&json!(key), &mut file);
        write_value(&value, &mut file);
    }
    file
}

/// Puts a file in the place of another in one step, as tools that update such files do.
pub fn replace(path: &Path, content: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, content).and_then(|()| fs::rename(&new, path)).expect("the file can be written");
}

fn parse(network: &str) -> (u128, u32) {
    let (address, length) = network.split_once('/').expect("a network has a length");
    let length: u32 = length.parse().expect("a number");
    match address.parse().expect("an address") {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), length + 96),
        IpAddr::V6(ip) => (ip.to_bits(), length),
    }
}

/// Appends a text, a number, a list or a map.
fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::String(text) => {
            write_head(2, text.len(), out);
            out.extend(text.bytes());
        }
        Value::Number(number) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            write_head(6, 4, out);
            out.extend(number.expect("a number of 32 bits").to_be_bytes());
        }
        Value::Object(members) => {
            write_head(7, members.len(), out);
            for (key, value) in members {
                write_value(&json!(key), out);
                write_value(value, out);
            }
        }
        Value::Array(items) => {
            write_head(11, items.len(), out);
            items.iter().for_each(|item| write_value(item, out));
        }
        Value::Null | Value::Bool(_) => panic!("{value} is not needed"),
    }
}

/// Appends a type and a length; types from 8 on stand in a byte of their own.
fn write_head(kind: u8, length: usize, out: &mut Vec<u8>) {
    let (short, more) = match length {
        0..29 => (length, None),
        29..285 => (29, Some(length - 29)),
        _ => panic!("{length} is longer than needed"),
    };
    let byte = |n: usize| u8::try_from(n).expect("a byte");
    out.push(if kind < 8 { kind << 5 } else { 0 } | byte(short));
    if kind >= 8 {
        out.push(kind - 7);
    }
    out.extend(more.map(byte));
}
