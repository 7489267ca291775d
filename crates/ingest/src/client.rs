//! The client of a request, by its connection and headers: determined once, also for a whole batch.

use std::borrow::Cow;
use std::net::IpAddr;

use dashi_domain::client_address::{TrustedProxies, client_address, parse_lenient};
use dashi_domain::location::{Location, from_headers, is_local};
use http::{HeaderMap, header};

/// Client facts that a payload may override.
#[derive(Debug)]
pub struct Client {
    /// The address in its canonical text, if it is one.
    pub address: String,
    /// The `User-Agent` header, its bytes read as Latin-1, as Umami's server does.
    pub user_agent: Option<String>,
    /// The location that a proxy's headers name, if they do; used only if the payload names no address.
    pub location: Option<Location>,
    /// The token of an earlier answer.
    pub token: Option<String>,
    /// `Idempotency-Key`: the request's name, from clients that cannot name each event.
    pub idempotency_key: Option<String>,
}

/// How a client is recognised.
#[derive(Debug, Clone, Default)]
pub struct ClientRules {
    /// A header whose whole value is the client's address; `None` for the usual ones.
    pub address_header: Option<String>,
    /// Whether proxies' location headers are ignored.
    pub skip_location_headers: bool,
    /// The proxies whose headers are believed at all.
    pub trusted_proxies: TrustedProxies,
}

impl Client {
    /// Reads a request's head.
    pub fn read(headers: &HeaderMap, peer: IpAddr, rules: &ClientRules) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let trusted = rules.trusted_proxies.trusts(peer);
        let by_proxy = |name: &str| if trusted { text(name) } else { None };
        let address = client_address(by_proxy, rules.address_header.as_deref(), peer);
        let location = if rules.skip_location_headers || !trusted || locatable(&address).is_none() {
            None
        } else {
            from_headers(|name| headers.get(name).map(|value| value.as_bytes()))
        };
        Self {
            location,
            address,
            user_agent: headers.get(header::USER_AGENT).map(|value| latin1(value.as_bytes())),
            token: text("x-umami-cache").filter(|token| !token.is_empty()).map(str::to_owned),
            idempotency_key: text("idempotency-key").filter(|key| !key.is_empty()).map(str::to_owned),
        }
    }
}

/// The host that a client asked for, with its port: the one that a trusted proxy names, else the `Host` header.
pub fn public_host<'h>(headers: &'h HeaderMap, peer: IpAddr, rules: &ClientRules) -> Option<&'h str> {
    let host = |name: &str| {
        let first = headers.get(name)?.to_str().ok()?.split(',').next()?.trim();
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        (!first.is_empty() && first.bytes().all(is_host)).then_some(first)
    };
    let by_proxy = if rules.trusted_proxies.trusts(peer) { host("x-forwarded-host") } else { None };
    by_proxy.or_else(|| host("host"))
}

/// The address to look up, if this text has a location at all: a local address has none, nor has a text that is no
/// address.
pub fn locatable(address: &str) -> Option<IpAddr> {
    parse_lenient(address).map(|address| address.ip).filter(|ip| !is_local(ip))
}

fn latin1(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => text.to_owned(),
        _ => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// The agent of an event: the payload's, if it has one that is not empty, else the header's.
pub fn effective<'a>(payload: Option<&'a str>, header: Option<&'a str>) -> Option<Cow<'a, str>> {
    payload.filter(|text| !text.is_empty()).or(header).map(Cow::Borrowed)
}
