//! The columns that an event fills from its `url`, `referrer` and `hostname` (Umami 3.1, `saveEvent`, and what newer
//! versions changed).
//!
//! Nothing here fails: a URL that does not parse is read as a path of `https://localhost`.

use std::borrow::Cow;
use std::sync::LazyLock;

use url::{Url, form_urlencoded};

use crate::rows::Campaign;
use crate::text;
use crate::umami::Release;

/// Width of the path, query and referrer columns, in UTF-16 units.
const URL_UNITS_MAX: usize = 500;
/// Width of the utm and click id columns. Umami 3.1 loses the event beyond it, its successor cuts.
const TRACKING_UNITS_MAX: usize = 255;
/// Width of the hostname column.
const HOSTNAME_UNITS_MAX: usize = 100;
/// The path that results where a client turns a missing `url` into text; Umami 3.1 stores `""` for it.
const UNDEFINED_PATH: &str = "/undefined";
const LOCALHOST: &str = "localhost";

static LOCALHOST_BASE: LazyLock<Url> =
    LazyLock::new(|| Url::parse("https://localhost").expect("a constant that is a URL"));

/// The columns that an event's `url` and `hostname` decide, cut to the width of each.
///
/// Parameters inside the hash are not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageUrl {
    /// Path and hash after `decodeURI`; at most 500 units.
    pub url_path: String,
    /// Query without `?`, not decoded; `""` when there is none; at most 500 units.
    pub url_query: String,
    /// `payload.hostname` as sent or, where that is absent or empty, the host of the URL without a leading `www.` (up
    /// to 3.2, `www` and any character after it); at most 100 units.
    pub hostname: String,
    /// The first of each campaign and click parameter of the query, form-decoded; `Some("")` for `utm_source=`.
    pub campaign: Campaign,
}

/// The columns that an event's `referrer` decides, each at most 500 UTF-16 units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Referrer {
    /// Path after `decodeURI`, without the hash.
    pub path: String,
    /// Query without `?`, not decoded; `""` when there is none.
    pub query: String,
    /// Host without a leading `www.`; `""` for URLs that have none. From 3.3 on `None` if it is that of the page.
    pub domain: Option<String>,
}

/// The rules by which URLs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrlRules {
    /// The setting `REMOVE_TRAILING_SLASH`: removes the first `/` that is followed by nothing or by `#`; from 3.3 on
    /// not the one that the path begins with.
    pub remove_trailing_slash: bool,
    /// The version.
    pub release: Release,
}

/// Reads the page columns of an `event`.
///
/// `url` is resolved against `https://{hostname}`; `https://localhost` takes its place where `hostname` is
/// absent, empty or not a host (Umami 3.1 loses the event in the last case). An absent `url` gives the path
/// `""`. Source: Umami 3.1, `/api/send`.
pub fn page_url(url: Option<&str>, hostname: Option<&str>, rules: UrlRules) -> PageUrl {
    let hostname = hostname.filter(|hostname| !hostname.is_empty());
    let parsed = Parsed::of(url.unwrap_or(UNDEFINED_PATH), hostname);

    let path = match (parsed.path(), parsed.hash()) {
        (UNDEFINED_PATH, _) => Cow::Borrowed(""),
        (path, "") => Cow::Borrowed(path),
        (path, hash) => Cow::Owned(format!("{path}#{hash}")),
    };
    let path = if rules.remove_trailing_slash {
        without_trailing_slash(path, usize::from(rules.release >= Release::V3_3))
    } else {
        path
    };
    let hostname = match hostname {
        Some(hostname) => hostname,
        None if rules.release >= Release::V3_3 => without_www_dot(parsed.host_or(LOCALHOST)),
        None => without_www(parsed.host_or(LOCALHOST)),
    };
    let mut page = PageUrl {
        url_path: column(text::decode_uri(&path), URL_UNITS_MAX),
        url_query: column(Cow::Borrowed(parsed.query()), URL_UNITS_MAX),
        hostname: column(Cow::Borrowed(hostname), HOSTNAME_UNITS_MAX),
        ..PageUrl::default()
    };
    page.read_tracking(parsed.query(), rules.release);
    page
}

/// Reads the referrer columns of an `event`; `None` where `referrer` is empty, as if it were absent.
///
/// A referrer that is only a path belongs to `hostname`, or to `localhost` as in [`page_url`]; from 3.3 on to the host of
/// `url` where there is no `hostname`, and a referrer of the page's own host has no domain.
/// Source: Umami 3.1, `/api/send`.
pub fn referrer(
    referrer: &str,
    url: Option<&str>,
    hostname: Option<&str>,
    release: Release,
) -> Option<Referrer> {
    if referrer.is_empty() {
        return None;
    }
    let hostname = hostname.filter(|hostname| !hostname.is_empty());
    if release >= Release::V3_3 {
        return Some(other_than_the_page(referrer, url, hostname));
    }
    let mut parsed = Parsed::of(referrer, hostname);
    if hostname.is_some() && parsed.host().is_none() {
        // The host is that of the base, which only a full parse gives.
        parsed = Parsed::Full(resolve(referrer, hostname));
    }
    let host = parsed.host_or(LOCALHOST);
    Some(Referrer {
        path: column(text::decode_uri(parsed.path()), URL_UNITS_MAX),
        query: column(Cow::Borrowed(parsed.query()), URL_UNITS_MAX),
        domain: Some(column(Cow::Borrowed(without_www_dot(host)), URL_UNITS_MAX)),
    })
}

/// The referrer columns from 3.3 on.
fn other_than_the_page(referrer: &str, url: Option<&str>, hostname: Option<&str>) -> Referrer {
    let page = match hostname {
        // As a parser writes it, to be compared with what a parser made of the referrer.
        Some(hostname) if is_plain_host(hostname) => Cow::Borrowed(hostname),
        Some(hostname) => match Url::parse(&format!("https://{hostname}")) {
            Ok(url) => Cow::Owned(url.host_str().unwrap_or_default().to_owned()),
            Err(_) => Cow::Borrowed(hostname),
        },
        None => {
            let parsed = Parsed::of(url.unwrap_or(UNDEFINED_PATH), None);
            Cow::Owned(parsed.host_or(LOCALHOST).to_owned())
        }
    };
    let page = without_www_dot(&page);
    let parsed = Parsed::of(referrer, Some(page).filter(|page| !page.is_empty()));
    // Only a path, as every inner navigation has: the page's own.
    let host = parsed.host_or(page);
    let domain = without_www_dot(host);
    Referrer {
        path: column(text::decode_uri(parsed.path()), URL_UNITS_MAX),
        query: column(Cow::Borrowed(parsed.query()), URL_UNITS_MAX),
        domain: (domain != page).then(|| column(Cow::Borrowed(domain), URL_UNITS_MAX)),
    }
}

/// Reads the path column of a `performance` event: not decoded, without hash, trailing slash kept, `""` for
/// an absent `url`; at most 500 UTF-16 units.
///
/// `url` is resolved as in [`page_url`]. Source: Umami 3.1, `/api/send`.
pub fn performance_path(url: Option<&str>, hostname: Option<&str>) -> String {
    let hostname = hostname.filter(|hostname| !hostname.is_empty());
    match Parsed::of(url.unwrap_or(UNDEFINED_PATH), hostname).path() {
        UNDEFINED_PATH => String::new(),
        path => column(Cow::Borrowed(path), URL_UNITS_MAX),
    }
}

/// An absolute URL as a WHATWG parser writes it, or `None` if the text is none.
pub fn serialise(text: &str) -> Option<String> {
    Url::parse(text).ok().map(String::from)
}

/// A URL, absolute or relative, with query parameters added that it does not have yet.
pub fn with_parameters(url: &str, parameters: &[(&'static str, String)]) -> String {
    let (before, hash) = url.split_once('#').map_or((url, None), |(before, hash)| (before, Some(hash)));
    let query = before.split_once('?').map_or("", |(_, query)| query);
    let has = |name: &str| form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == name);
    let mut out = before.to_owned();
    let mut separator = match before.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some(_) => "&",
    };
    for (name, value) in parameters.iter().filter(|(name, _)| !has(name)) {
        out.push_str(separator);
        out.push_str(name);
        out.push('=');
        out.extend(form_urlencoded::byte_serialize(value.as_bytes()));
        separator = "&";
    }
    if let Some(hash) = hash {
        out.push('#');
        out.push_str(hash);
    }
    out
}

/// The path of an absolute URL as a WHATWG parser writes it, or `None` if the text is none.
pub fn pathname(text: &str) -> Option<String> {
    Url::parse(text).ok().map(|url| url.path().to_owned())
}

/// Whether `text` is what Umami 3.1 accepts as `url` or `referrer`: a URL, absolute or relative to
/// `https://localhost`.
pub fn is_url(text: &str) -> bool {
    Plain::read(text).is_some() || join(&LOCALHOST_BASE, text).is_some()
}

impl PageUrl {
    /// Up to 3.1 Umami does not cut: the column decides how much is stored.
    fn read_tracking(&mut self, query: &str, release: Release) {
        for pair in query.split('&') {
            let key = pair.split_once('=').map_or(pair, |(key, _)| key);
            // Encoded names count too; a `+` is a space, which no name contains.
            let found = if key.contains('%') {
                form_urlencoded::parse(pair.as_bytes())
                    .next()
                    .and_then(|(key, value)| Some((self.tracking_column(&key)?, value)))
            } else {
                self.tracking_column(key).map(|column| (column, value_of(pair)))
            };
            if let Some((slot @ None, value)) = found {
                *slot = Some(release.cut_from(Release::V3_2, value, TRACKING_UNITS_MAX));
            }
        }
    }

    fn tracking_column(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "utm_source" => &mut self.campaign.utm_source,
            "utm_medium" => &mut self.campaign.utm_medium,
            "utm_campaign" => &mut self.campaign.utm_campaign,
            "utm_content" => &mut self.campaign.utm_content,
            "utm_term" => &mut self.campaign.utm_term,
            "gclid" => &mut self.campaign.gclid,
            "fbclid" => &mut self.campaign.fbclid,
            "msclkid" => &mut self.campaign.msclkid,
            "ttclid" => &mut self.campaign.ttclid,
            "li_fat_id" => &mut self.campaign.li_fat_id,
            "twclid" => &mut self.campaign.twclid,
            _ => return None,
        })
    }
}

fn value_of(pair: &str) -> Cow<'_, str> {
    form_urlencoded::parse(pair.as_bytes()).next().map_or(Cow::Borrowed(""), |(_, value)| value)
}

fn column(value: Cow<'_, str>, units_max: usize) -> String {
    text::cut(value, units_max).into_owned()
}

fn without_trailing_slash(path: Cow<'_, str>, from: usize) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let slash =
        (from..bytes.len()).find(|&at| bytes[at] == b'/' && matches!(bytes.get(at + 1), None | Some(b'#')));
    match slash {
        Some(at) => {
            let mut path = path.into_owned();
            path.remove(at);
            Cow::Owned(path)
        }
        None => path,
    }
}

fn without_www_dot(host: &str) -> &str {
    host.strip_prefix("www.").unwrap_or(host)
}

/// Up to 3.2 Umami's pattern is `/^www./`, in which the dot is any character.
fn without_www(host: &str) -> &str {
    let mut rest = host.strip_prefix("www").unwrap_or("").chars();
    if rest.next().is_some() { rest.as_str() } else { host }
}

fn resolve(text: &str, hostname: Option<&str>) -> Url {
    let base = hostname.and_then(|hostname| Url::parse(&format!("https://{hostname}")).ok());
    let base = base.as_ref().unwrap_or(&LOCALHOST_BASE);
    join(base, text).or_else(|| join(&LOCALHOST_BASE, text)).unwrap_or_else(|| as_path(text))
}

/// Resolves `text` against a base whose scheme is https.
fn join(base: &Url, text: &str) -> Option<Url> {
    base.join(text).ok().or_else(|| base.join(&two_leading_slashes(text)?).ok())
}

/// The standard takes any number of slashes before a host as two, the url crate takes the third as an empty
/// host. Source: WHATWG URL, "special authority ignore slashes state".
fn two_leading_slashes(text: &str) -> Option<String> {
    let text = text.trim_start_matches(|c: char| c <= ' ');
    let rest = text.trim_start_matches(['/', '\\', '\t', '\n', '\r']);
    let slashes = text[..text.len() - rest.len()].bytes().filter(|byte| matches!(byte, b'/' | b'\\')).count();
    (slashes > 2).then(|| format!("//{rest}"))
}

/// Keeps as much as it can of a text that is no URL. The collector refuses such texts, so this is for events that
/// came another way.
fn as_path(text: &str) -> Url {
    let mut url = LOCALHOST_BASE.clone();
    let (text, hash) = text.split_once('#').map_or((text, None), |(text, hash)| (text, Some(hash)));
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    url.set_path(path);
    url.set_query(query);
    url.set_fragment(hash);
    url
}

/// A URL as its parts: borrowed where the text is already in the form a parser would give it.
enum Parsed<'a> {
    Plain(Plain<'a>),
    Full(Url),
}

impl<'a> Parsed<'a> {
    fn of(text: &'a str, hostname: Option<&str>) -> Self {
        Plain::read(text).map_or_else(|| Self::Full(resolve(text, hostname)), Self::Plain)
    }

    fn path(&self) -> &str {
        match self {
            Self::Plain(plain) => plain.path,
            Self::Full(url) => url.path(),
        }
    }

    /// Without `?`; an empty query and none are the same to JavaScript's `search`.
    fn query(&self) -> &str {
        match self {
            Self::Plain(plain) => plain.query,
            Self::Full(url) => url.query().unwrap_or(""),
        }
    }

    /// Without `#`; an empty fragment and none are the same to JavaScript's `hash`.
    fn hash(&self) -> &str {
        match self {
            Self::Plain(plain) => plain.hash,
            Self::Full(url) => url.fragment().unwrap_or(""),
        }
    }

    /// `None` if it is that of the base; `""` for URLs that have none.
    fn host(&self) -> Option<&str> {
        match self {
            Self::Plain(plain) => plain.host,
            Self::Full(url) => Some(url.host_str().unwrap_or("")),
        }
    }

    fn host_or<'b>(&'b self, base: &'b str) -> &'b str {
        self.host().unwrap_or(base)
    }
}

const IN_PATH: u8 = 1;
const IN_QUERY: u8 = 2;
const IN_HASH: u8 = 4;

/// The parts of a URL in which a byte can stand without a parser changing it, by byte. Rather too few than too many.
const KEPT_IN: [u8; 256] = {
    let mut kept = [0; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        let c = byte as u8;
        if c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'-' | b'_' | b'.' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            )
            || matches!(c, b';' | b'=' | b':' | b'@' | b'%' | b'/')
        {
            kept[byte] |= IN_PATH;
        }
        if !matches!(c, b'"' | b'#' | b'<' | b'>' | b'\'') {
            kept[byte] |= IN_QUERY;
        }
        if !matches!(c, b'"' | b'<' | b'>' | b'`') {
            kept[byte] |= IN_HASH;
        }
        byte += 1;
    }
    kept
};

/// A path, or an http URL, that parsing against an http base would leave as it is: nearly all that browsers
/// send.
struct Plain<'a> {
    host: Option<&'a str>,
    path: &'a str,
    query: &'a str,
    hash: &'a str,
}

impl<'a> Plain<'a> {
    fn read(text: &'a str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix('/') {
            // Two slashes begin a host.
            return if rest.starts_with('/') { None } else { Self::read_path(None, text) };
        }
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
        let end = text.bytes().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(text.len());
        let (host, rest) = text.split_at(end);
        is_plain_host(host).then_some(())?;
        Self::read_path(Some(host), rest)
    }

    fn read_path(host: Option<&'a str>, text: &'a str) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() && KEPT_IN[usize::from(bytes[at])] & IN_PATH != 0 {
            // A segment of dots, or of encoded dots, is resolved by the parser.
            if bytes[at] == b'/' && matches!(&bytes[at + 1..], [b'.', ..] | [b'%', b'2', b'e' | b'E', ..]) {
                return None;
            }
            at += 1;
        }
        let path = if at == 0 { "/" } else { &text[..at] };
        let (mut query, mut hash) = ("", "");
        if bytes.get(at) == Some(&b'?') {
            let from = at + 1;
            at = from + kept_length(&bytes[from..], IN_QUERY);
            query = &text[from..at];
        }
        if bytes.get(at) == Some(&b'#') {
            let from = at + 1;
            at = from + kept_length(&bytes[from..], IN_HASH);
            hash = &text[from..at];
        }
        (at == bytes.len()).then_some(Self { host, path, query, hash })
    }
}

fn kept_length(bytes: &[u8], part: u8) -> usize {
    bytes.iter().position(|&byte| KEPT_IN[usize::from(byte)] & part == 0).unwrap_or(bytes.len())
}

/// Lower-case ASCII names; no punycode, which is validated, and no last label that may begin an IPv4 address.
fn is_plain_host(host: &str) -> bool {
    let plain = host.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    let name = host.strip_suffix('.').unwrap_or(host);
    let last_label = name.rsplit('.').next().unwrap_or(name);
    plain && last_label.starts_with(|c: char| c.is_ascii_lowercase()) && !host.contains("xn--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    fn page_url(url: Option<&str>, hostname: Option<&str>, remove_trailing_slash: bool) -> PageUrl {
        super::page_url(url, hostname, UrlRules { remove_trailing_slash, release: Release::V3_1 })
    }

    fn referrer(text: &str, hostname: Option<&str>) -> Option<Referrer> {
        super::referrer(text, Some("/page"), hostname, Release::V3_1)
    }

    const VECTORS: &str = include_str!("../tests/vectors/umami-vectors.json");

    fn vectors() -> Vec<Json> {
        let all: Json = serde_json::from_str(VECTORS).expect("JSON");
        all["events"].as_array().expect("a list").clone()
    }

    fn optional(value: &Option<String>) -> Json {
        value.as_deref().map_or(Json::Null, Json::from)
    }

    #[test]
    fn parameters_are_added_where_a_url_has_none_of_the_name() {
        let campaign = [("utm_source", "news letter".to_owned()), ("utm_medium", "e&=#\u{fc}".to_owned())];
        for (url, with) in [
            ("https://a.example/", "https://a.example/?utm_source=news+letter&utm_medium=e%26%3D%23%C3%BC"),
            ("/q/x?", "/q/x?utm_source=news+letter&utm_medium=e%26%3D%23%C3%BC"),
            ("/q/x?a=1#h?b", "/q/x?a=1&utm_source=news+letter&utm_medium=e%26%3D%23%C3%BC#h?b"),
            ("/?utm%5Fsource=x&utm_medium", "/?utm%5Fsource=x&utm_medium"),
        ] {
            assert_eq!(with_parameters(url, &campaign), with);
            assert_eq!(with_parameters(url, &[]), url);
        }
    }

    #[test]
    fn event_columns_are_those_of_umami() {
        let mut checked = 0;
        for vector in vectors() {
            let (payload, row) = (&vector["payload"], &vector["row"]);
            if vector["type"] != "event" || row.is_null() {
                continue;
            }
            let hostname = payload["hostname"].as_str();
            let page = page_url(payload["url"].as_str(), hostname, false);
            let from = referrer(payload["referrer"].as_str().unwrap_or(""), hostname);
            let referrer = |column: fn(&Referrer) -> &String| {
                from.as_ref().map_or(Json::Null, |it| Json::from(column(it).as_str()))
            };
            let domain = |it: &Option<Referrer>| it.as_ref().and_then(|it| it.domain.clone());
            for (column, value) in [
                ("url_path", Json::from(page.url_path.as_str())),
                ("url_query", Json::from(page.url_query.as_str())),
                ("hostname", Json::from(page.hostname.as_str())),
                ("utm_source", optional(&page.campaign.utm_source)),
                ("utm_medium", optional(&page.campaign.utm_medium)),
                ("utm_campaign", optional(&page.campaign.utm_campaign)),
                ("utm_content", optional(&page.campaign.utm_content)),
                ("utm_term", optional(&page.campaign.utm_term)),
                ("gclid", optional(&page.campaign.gclid)),
                ("fbclid", optional(&page.campaign.fbclid)),
                ("msclkid", optional(&page.campaign.msclkid)),
                ("ttclid", optional(&page.campaign.ttclid)),
                ("li_fat_id", optional(&page.campaign.li_fat_id)),
                ("twclid", optional(&page.campaign.twclid)),
                ("referrer_path", referrer(|it| &it.path)),
                ("referrer_query", referrer(|it| &it.query)),
                ("referrer_domain", optional(&domain(&from))),
            ] {
                assert_eq!(row[column], value, "{column} of {payload}");
            }
            if let Some(title) = payload["title"].as_str() {
                assert_eq!(row["page_title"], text::decode_uri_component(title).as_ref());
            }
            checked += 1;
        }
        assert_eq!(checked, 23);
    }

    #[test]
    fn performance_paths_are_those_of_umami() {
        let mut checked = 0;
        for vector in vectors().iter().filter(|vector| vector["type"] == "performance") {
            let payload = &vector["payload"];
            let path = performance_path(payload["url"].as_str(), payload["hostname"].as_str());
            assert_eq!(vector["row"]["url_path"], path, "{payload}");
            checked += 1;
        }
        assert_eq!(checked, 2);
        assert_eq!(performance_path(None, Some("a.example")), "");
        assert_eq!(performance_path(Some("/undefined?a#b"), None), "");
        assert_eq!(performance_path(Some("/a%20b/#h"), None), "/a%20b/");
        assert_eq!(performance_path(Some(" ü "), Some("foo bar")), "/%C3%BC");
    }

    /// Umami 3.1 answers 500 where the host is none; the event is kept instead.
    #[test]
    fn a_hostname_that_is_no_host_keeps_the_event() {
        let page = page_url(Some("x?utm_term=t#h"), Some("foo bar"), false);
        assert_eq!((page.url_path.as_str(), page.url_query.as_str()), ("/x#h", "utm_term=t"));
        assert_eq!((page.hostname.as_str(), page.campaign.utm_term.as_deref()), ("foo bar", Some("t")));
        let domain = |text| referrer(text, Some("foo bar")).expect("not empty").domain;
        assert_eq!(domain("/p").as_deref(), Some("localhost"));
        assert_eq!(domain("http://www.b.example/p").as_deref(), Some("b.example"));
    }

    #[test]
    fn a_text_that_is_no_url_becomes_a_path() {
        let page = page_url(Some("https://x y:z/a b?utm_term=t#h"), None, false);
        assert_eq!(
            (page.url_path.as_str(), page.hostname.as_str(), page.campaign.utm_term.as_deref()),
            ("/https://x y:z/a b#h", "localhost", Some("t"))
        );
    }

    #[test]
    fn url_path_query_and_hostname() {
        // Expectations: Umami 3.1 where its rows are recorded, else the parts Node.js 20 gives.
        for (url, hostname, path, query, stored) in [
            ("https://www.a.example:8443/Path/%E4%BD%A0/?a=1#f", None, "/Path/你/#f", "a=1", "a.example"),
            ("x/y", Some("a.example"), "/x/y", "", "a.example"),
            ("", Some("a.example"), "/", "", "a.example"),
            (" /a b\tc\n? q=1 ", None, "/a bc", "%20q=1", "localhost"),
            ("/a%2Fb%3Fc%20d", None, "/a%2Fb%3Fc d", "", "localhost"),
            ("/a/../b/./c\\d", None, "/b/c/d", "", "localhost"),
            ("/%2e%2E/a/.%2e/b/%2e", None, "/b/", "", "localhost"),
            ("//cdn.example/p", Some("a.example"), "/p", "", "a.example"),
            ("//cdn.example/p", None, "/p", "", "cdn.example"),
            ("https://bücher.example/straße?q=ü", None, "/straße", "q=%C3%BC", "xn--bcher-kva.example"),
            ("https://wwwx.example/", None, "/", "", ".example"),
            ("https://www/", None, "/", "", "www"),
            ("HTTPS://WWW.A.example?#", None, "/", "", "a.example"),
            ("/x?#", None, "/x", "", "localhost"),
            ("?", Some("h/a?b"), "/a", "", "h/a?b"),
            ("#", Some("h/a?b"), "/a", "b", "h/a?b"),
            ("x", Some("user:pw@h:8443/a/b?c#d"), "/a/x", "", "user:pw@h:8443/a/b?c#d"),
            ("https:\\\\user:pw@www.a:80\\b", None, "/b", "", "a"),
            ("https:foo", None, "/foo", "", "localhost"),
            ("file:///C:/x", None, "/C:/x", "", ""),
            ("file://host/x", None, "/x", "", "host"),
            ("data:text/html, x y?q", None, "text/html, x y", "q", ""),
            ("about:blank#a", None, "blank#a", "", ""),
            ("blob:https://x.example/z", None, "https://x.example/z", "", ""),
            ("web+demo:/.//nh/", None, "//nh/", "", ""),
            ("android-app://com.Google.gm/", None, "/", "", "com.Google.gm"),
            ("///www.a.example//p", None, "//p", "", "a.example"),
            (" /\n\\/b.example", Some("a.example"), "/", "", "a.example"),
            ("https:///a.example/p", None, "/p", "", "a.example"),
            ("https://[::1]:80/", None, "/", "", "[::1]"),
            ("http://0x7f.1/", None, "/", "", "127.0.0.1"),
            ("https://a.example./x", None, "/x", "", "a.example."),
            ("/%zz%20", None, "/%zz%20", "", "localhost"),
            ("/%20#%zz", None, "/%20#%zz", "", "localhost"),
            ("/a%00b", None, "/ab", "", "localhost"),
            ("/undefined#x", None, "", "", "localhost"),
            ("/undefined/", None, "/undefined/", "", "localhost"),
            ("undefined", None, "", "", "localhost"),
        ] {
            let page = page_url(Some(url), hostname, false);
            assert_eq!(
                (page.url_path.as_str(), page.url_query.as_str(), page.hostname.as_str()),
                (path, query, stored),
                "{url:?} on {hostname:?}"
            );
        }
        assert_eq!(
            page_url(None, None, false),
            PageUrl { hostname: "localhost".into(), ..PageUrl::default() }
        );
    }

    #[test]
    fn almost_every_text_is_a_url() {
        for text in
            ["", " ", "x y", "/a", "///a", "%", "?", "https://a.example", "mailto:a", "https:a b", "ü:"]
        {
            assert!(is_url(text), "{text:?}");
        }
        for text in
            ["https://a b", "https://", "//", "///", "https://a:99999", "http://a%00b", "//[::1", "foo://a b"]
        {
            assert!(!is_url(text), "{text:?}");
        }
    }

    #[test]
    fn one_trailing_slash_can_be_removed() {
        for (url, path) in [
            ("/", ""),
            ("/x/", "/x"),
            ("/x", "/x"),
            ("/x/#h", "/x#h"),
            ("/x/#/r/", "/x#/r/"),
            ("/x#/r/", "/x#/r"),
            ("/a//", "/a/"),
            ("/x/?q=/", "/x"),
            ("about:blank", "blank"),
        ] {
            assert_eq!(page_url(Some(url), None, true).url_path, path, "{url}");
        }
        assert_eq!(page_url(None, None, true).url_path, "");
    }

    #[test]
    fn tracking_parameters_are_the_first_of_their_name_form_decoded() {
        for (query, expected) in [
            ("utm_source=a&utm_source=b", Some("a")),
            ("utm_source=", Some("")),
            ("utm_source", Some("")),
            ("utm_source=&utm_source=b", Some("")),
            ("a=b&&utm_source=x=y", Some("x=y")),
            ("utm%5Fsource=x&utm_source=y", Some("x")),
            ("u%74m_source", Some("")),
            ("UTM_SOURCE=x", None),
            ("utm_source+=x", None),
            ("%zz=1&%=2&utm_source=%F0%9F%98%80+%2B", Some("😀 +")),
            ("utm_source=%EF%BB%BFx%C3", Some("\u{feff}x\u{fffd}")),
            ("utm_source=a%00b", Some("ab")),
            ("utm_source=a'b\"c<é", Some("a'b\"c<é")),
            ("xutm_source=x", None),
            ("", None),
        ] {
            let url = format!("https://a.example/p?{query}#utm_source=hash");
            assert_eq!(page_url(Some(&url), None, false).campaign.utm_source.as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn every_column_is_cut_to_its_width() {
        let long = "x".repeat(498) + "%F0%9F%98%80y";
        let url = format!("/{long}?utm_term={long}&gclid={long}");
        let page = page_url(Some(&url), Some(&"h".repeat(101)), false);
        assert_eq!(page.url_path, format!("/{}\u{fffd}", "x".repeat(498)));
        assert_eq!(page.url_query.len(), 500);
        assert_eq!(page.campaign.utm_term, Some("x".repeat(255)));
        assert_eq!(page.campaign.gclid, Some("x".repeat(255)));
        assert_eq!(page.hostname, "h".repeat(100));
        let referrer = referrer(&format!("foo://{long}/{long}?{long}"), None).expect("not empty");
        assert_eq!((referrer.domain.expect("another's").len(), referrer.query.len()), (500, 500));
        assert_eq!(text::utf16_len(&referrer.path), 500);
        assert_eq!(performance_path(Some(&url), None), format!("/{}%", "x".repeat(498)));
    }

    #[test]
    fn referrers() {
        let read = |text, hostname| {
            referrer(text, hostname)
                .map(|Referrer { path, query, domain }| (path, query, domain.expect("before 3.3")))
        };
        let row = |path: &str, query: &str, domain: &str| Some((path.into(), query.into(), domain.into()));
        assert_eq!(read("", Some("a.example")), None);
        assert_eq!(read("/prev?x#h", Some("www.A.example:80/p")), row("/prev", "x", "a.example"));
        assert_eq!(read("/prev", Some("")), row("/prev", "", "localhost"));
        assert_eq!(read("/prev", None), row("/prev", "", "localhost"));
        assert_eq!(read("https://wwwx.example", None), row("/", "", "wwwx.example"));
        assert_eq!(read("https://www.www.x.example?a", None), row("/", "a", "www.x.example"));
        assert_eq!(read("android-app://com.x/%20", None), row("/ ", "", "com.x"));
        assert_eq!(read("about:client", None), row("client", "", ""));
        assert_eq!(read("/undefined", None), row("/undefined", "", "localhost"));
        assert_eq!(read(" ", Some("a.example/b")), row("/b", "", "a.example"));
    }

    #[test]
    fn from_3_3_on_a_page_is_not_its_own_referrer() {
        let read = |text, url, hostname| {
            let read = super::referrer(text, Some(url), hostname, Release::V3_3).expect("not empty");
            (read.path, read.query, read.domain)
        };
        let row = |path: &str, query: &str, domain: Option<&str>| {
            (path.to_owned(), query.to_owned(), domain.map(str::to_owned))
        };
        let rec = Some("rec.example");
        assert_eq!(read("https://rec.example/x", "/self", rec), row("/x", "", None));
        assert_eq!(read("/x?y=1", "/pathref", rec), row("/x", "y=1", None));
        assert_eq!(read("https://www.rec.example/x#h", "/", rec), row("/x", "", None));
        assert_eq!(read("https://rec.example/x", "/", Some("WWW.Rec.example:8443")), row("/x", "", None));
        assert_eq!(read("https://xn--bcher-kva.example/", "/", Some("bücher.example")), row("/", "", None));
        assert_eq!(read("/x", "https://www.a.example/p", None), row("/x", "", None));
        assert_eq!(read("https://a.example/x", "https://www.a.example/p", None), row("/x", "", None));
        assert_eq!(read("/x", "/p", None), row("/x", "", None));
        assert_eq!(read("/x", "/p", Some("not a host")).2.as_deref(), None);
        // Others are what they were.
        assert_eq!(read("https://www.b.example/x", "/", rec), row("/x", "", Some("b.example")));
        assert_eq!(read("https://sub.rec.example/x", "/", rec), row("/x", "", Some("sub.rec.example")));
        assert_eq!(read("android-app://com.x/%20", "/", rec), row("/ ", "", Some("com.x")));
        assert_eq!(read("https://wwwx.example", "/", rec).2.as_deref(), Some("wwwx.example"));
        assert_eq!(super::referrer("", Some("/"), rec, Release::V3_4), None);
    }

    #[test]
    fn from_3_3_on_the_root_keeps_its_slash_and_www_ends_with_a_dot() {
        let rules = UrlRules { remove_trailing_slash: true, release: Release::V3_3 };
        for (url, path) in [
            ("/", "/"),
            ("/#h", "/#h"),
            ("/#/r/", "/#/r"),
            ("/x/", "/x"),
            ("/x/#h", "/x#h"),
            ("/a//", "/a/"),
            ("//", "/"),
            ("about:blank", "blank"),
        ] {
            let url = if url == "//" { "https://h//" } else { url };
            assert_eq!(super::page_url(Some(url), None, rules).url_path, path, "{url}");
        }
        for (url, hostname) in
            [("https://wwwx.example/", "wwwx.example"), ("https://www.x.example/", "x.example")]
        {
            assert_eq!(super::page_url(Some(url), None, rules).hostname, hostname);
        }
    }

    #[test]
    fn up_to_3_1_parameters_are_counted_as_their_columns_count() {
        let url = format!("/?utm_term={}", "😀".repeat(256));
        let term = |release| {
            let rules = UrlRules { remove_trailing_slash: false, release };
            super::page_url(Some(&url), None, rules).campaign.utm_term.expect("a term")
        };
        assert_eq!(term(Release::V3_1), "😀".repeat(255));
        assert_eq!(term(Release::V3_2), "😀".repeat(127) + "\u{fffd}");
    }

    fn url_text() -> impl Strategy<Value = String> {
        prop_oneof![
            "(https?://[a-z0-9.-]{0,12})?(/[!-~]{0,8}|/[a-z.%2eE/]{0,8}|){1,3}([?][!-~]{0,12})?(#[!-~]{0,8})?",
            "(https?:[/\\\\]{1,3}(www|0x|xn--|1)?[a-z0-9.]{0,4})?[ -~é\t]{0,16}",
            any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn what_is_read_as_plain_is_what_the_parser_reads(text in url_text()) {
            if let Some(plain) = Plain::read(&text) {
                let url = LOCALHOST_BASE.join(&text).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(plain.host.unwrap_or(LOCALHOST), url.host_str().unwrap_or(""));
                prop_assert_eq!(plain.path, url.path());
                prop_assert_eq!(plain.query, url.query().unwrap_or(""));
                prop_assert_eq!(plain.hash, url.fragment().unwrap_or(""));
            }
        }

        #[test]
        fn nothing_panics_and_nothing_is_too_wide(
            url in url_text(), other in url_text(),
            hostname in any::<Option<String>>(), remove in any::<bool>(),
        ) {
            let page = page_url(Some(&url), hostname.as_deref(), remove);
            for column in [&page.url_path, &page.url_query, &page.hostname] {
                prop_assert!(text::utf16_len(column) <= 500 && !column.contains('\0'));
            }
            prop_assert!(text::utf16_len(&performance_path(Some(&url), hostname.as_deref())) <= 500);
            prop_assert_eq!(referrer(&other, hostname.as_deref()).is_none(), other.is_empty());
        }

        #[test]
        fn tracking_agrees_with_a_plain_reading_of_the_form(
            query in "([ug%5Ft_mclidsource+=&]{0,12}|utm_source|u%74m_source|gclid|[=&x%]){0,8}",
        ) {
            let mut page = PageUrl::default();
            page.read_tracking(&query, Release::V3_2);
            let first = |name: &str| {
                let mut pairs = form_urlencoded::parse(query.as_bytes());
                pairs.find(|(key, _)| key == name).map(|(_, value)| column(value, 255))
            };
            prop_assert_eq!(&page.campaign.utm_source, &first("utm_source"));
            prop_assert_eq!(&page.campaign.gclid, &first("gclid"));
        }
    }
}
