//! Lines of a web server's access log, in the common and the combined format. A successful GET of a page is a page view.

use std::borrow::Cow;

use dashi_domain::json::{Object, Value};
use dashi_domain::submission::Submission;
use jiff::fmt::strtime;
use uuid::Uuid;

use super::past::{Decided, LineRequest, Requests};
use super::timestamp;

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `host ident user [time] "request" status bytes`
    Common,
    /// The same with `"referrer" "agent"` behind it; more fields may follow.
    Combined,
}

impl Format {
    /// As flags name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::Combined => "combined",
        }
    }
}

/// The site of a log.
pub(super) struct Site {
    pub website: Uuid,
    pub hostname: String,
    pub format: Format,
}

/// A line in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub address: &'a str,
    /// Seconds since 1970.
    pub at_s: i64,
    pub method: Cow<'a, str>,
    pub target: Cow<'a, str>,
    pub status: u16,
    pub referrer: Option<Cow<'a, str>>,
    pub agent: Option<Cow<'a, str>>,
}

/// Endings of paths that are parts of pages, and files that programs fetch by themselves.
const PARTS_OF_PAGES: [&str; 31] = [
    ".css",
    ".js",
    ".mjs",
    ".map",
    ".json",
    ".xml",
    ".txt",
    ".ico",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".svg",
    ".webp",
    ".avif",
    ".bmp",
    ".woff",
    ".woff2",
    ".ttf",
    ".otf",
    ".eot",
    ".mp3",
    ".mp4",
    ".webm",
    ".ogg",
    ".m4a",
    ".wasm",
    ".webmanifest",
    ".rss",
    ".atom",
    ".vtt",
];

pub(super) fn line(requests: &mut Requests, site: &Site, at: u64, bytes: &[u8]) -> Decided {
    let text = String::from_utf8_lossy(bytes);
    let entry = match parse(&text, site.format) {
        Ok(entry) => entry,
        Err(reason) => return Decided::Refused(reason),
    };
    if entry.method != "GET" {
        return Decided::Ignored("not a GET");
    }
    if !(200..300).contains(&entry.status) && entry.status != 304 {
        return Decided::Ignored("not answered with a page");
    }
    if !is_page(&entry.target) {
        return Decided::Ignored("not a page");
    }
    let member =
        |name: &'static str, value: &str| (Cow::Borrowed(name), Value::String(Cow::Owned(value.to_owned())));
    let mut payload = vec![
        member("website", &site.website.to_string()),
        member("hostname", &site.hostname),
        member("url", &entry.target),
        (Cow::Borrowed("timestamp"), Value::Number(entry.at_s as f64)),
    ];
    payload.extend(entry.referrer.as_deref().map(|referrer| member("referrer", referrer)));
    let body = Object::from_members([
        member("type", "event"),
        (Cow::Borrowed("payload"), Value::Object(Object::from_members(payload))),
    ]);
    let submission = match Submission::from_value(Value::Object(body), requests.schema()) {
        Ok(submission) => submission,
        Err(error) => return Decided::Refused(format!("a collector refuses it: {}", error.to_json())),
    };
    let request = LineRequest {
        submission,
        address: entry.address,
        user_agent: entry.agent.as_deref(),
        location: None,
        event_id: None,
        host: Some(&site.hostname),
    };
    requests.decide(at, bytes, request)
}

fn is_page(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = path.to_ascii_lowercase();
    !PARTS_OF_PAGES.iter().any(|ending| path.ends_with(ending)) && !path.starts_with("/.well-known/")
}

/// Reads a line.
///
/// # Errors
/// The part that is not as expected, in words.
pub(super) fn parse(text: &str, format: Format) -> Result<Entry<'_>, String> {
    let (address, rest) = text.split_once(' ').ok_or("it has one word only, not an access log's fields")?;
    if address.is_empty() {
        return Err("it begins with a blank, not with an address".to_owned());
    }
    let begin = rest.find('[').ok_or("it has no time in brackets")?;
    let (time, rest) = rest[begin + 1..].split_once(']').ok_or("the bracket of its time is not closed")?;
    let at_s = seconds(time)?;
    let (request, rest) = quoted(rest).ok_or("it has no request in quotes behind the time")?;
    let mut words = rest.split_ascii_whitespace();
    let status = words.next().ok_or("it has no status behind the request")?;
    let status: u16 = status.parse().map_err(|_| format!("its status {status:?} is no number"))?;
    let (method, target) = request_line(request)?;
    let (referrer, agent) = match format {
        Format::Common => (None, None),
        Format::Combined => {
            let (referrer, rest) =
                quoted(rest).ok_or("it has no referrer in quotes: is it the common format?")?;
            let (agent, _) = quoted(rest).ok_or("it has no agent in quotes behind the referrer")?;
            (given(referrer), given(agent))
        }
    };
    Ok(Entry { address, at_s, method, target, status, referrer, agent })
}

/// A value, unless the server wrote that there is none.
fn given(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    Some(text).filter(|text| !text.is_empty() && text != "-")
}

fn seconds(time: &str) -> Result<i64, String> {
    if let Ok(number) = time.parse::<f64>() {
        return timestamp::other_unit(number).map_or(Ok(number as i64), Err).and_then(|seconds| {
            if number.is_finite() { Ok(seconds) } else { Err(format!("its time is {time:?}")) }
        });
    }
    strtime::parse("%d/%b/%Y:%H:%M:%S %z", time)
        .and_then(|parsed| parsed.to_timestamp())
        .map(|time| time.as_second())
        .map_err(|_| format!("its time {time:?} is not of the form 01/May/2026:12:00:00 +0000"))
}

/// `GET /path HTTP/1.1`
fn request_line(request: Cow<'_, str>) -> Result<(Cow<'_, str>, Cow<'_, str>), String> {
    let broken = || format!("its request {request:?} is not of the form \"GET /path HTTP/1.1\"");
    let (method, rest) = request.split_once(' ').ok_or_else(broken)?;
    // HTTP/0.9 has no version.
    let target =
        rest.rsplit_once(' ').filter(|(_, version)| version.starts_with("HTTP/")).map_or(rest, |(t, _)| t);
    if method.is_empty() || target.is_empty() {
        return Err(broken());
    }
    Ok((Cow::Owned(method.to_owned()), Cow::Owned(target.to_owned())))
}

/// The text in the next quotes, and the rest behind them. Servers write quotes within as `\"`, and other characters as
/// `\xHH`; Apache also writes `\n`, `\t` and the like.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let begin = text.find('"')?;
    let inner = &text[begin + 1..];
    let mut bytes = Vec::new();
    let mut chars = inner.char_indices();
    let mut copied = 0;
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => {
                let rest = &inner[at + 1..];
                if bytes.is_empty() && copied == 0 {
                    return Some((Cow::Borrowed(&inner[..at]), rest));
                }
                bytes.extend_from_slice(&inner.as_bytes()[copied..at]);
                return Some((Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()), rest));
            }
            '\\' => {
                bytes.extend_from_slice(&inner.as_bytes()[copied..at]);
                let (next_at, next) = chars.next()?;
                copied = next_at + next.len_utf8();
                let hex =
                    inner.get(next_at + 1..next_at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match (next, hex) {
                    ('x', Some(byte)) => {
                        bytes.push(byte);
                        chars.nth(1);
                        copied += 2;
                    }
                    ('n', _) => bytes.push(b'\n'),
                    ('r', _) => bytes.push(b'\r'),
                    ('t', _) => bytes.push(b'\t'),
                    _ => bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = r#"203.0.113.9 - ada [01/May/2026:14:00:00 +0200] "GET /a/?q=1 HTTP/1.1" 200 512 "https://b.example/x" "Mozilla/5.0 (\"quoted\" \x41\\)""#;

    #[test]
    fn a_combined_line_is_read_into_its_parts() {
        let expected = Entry {
            address: "203.0.113.9",
            at_s: 1_777_636_800,
            method: "GET".into(),
            target: "/a/?q=1".into(),
            status: 200,
            referrer: Some("https://b.example/x".into()),
            agent: Some("Mozilla/5.0 (\"quoted\" A\\)".into()),
        };
        assert_eq!(parse(LINE, Format::Combined), Ok(expected.clone()));
        assert_eq!(parse(&format!("{LINE} \"more\" 0.003"), Format::Combined), Ok(expected.clone()));
        let common = parse(LINE, Format::Common).expect("its beginning is one");
        assert_eq!((common.agent, common.referrer, common.at_s), (None, None, expected.at_s));
    }

    #[test]
    fn what_is_no_line_is_refused_with_the_part_that_is_wrong() {
        for (line, reason) in [
            ("", "one word only"),
            (" x", "begins with a blank"),
            ("203.0.113.9 - - no time", "no time in brackets"),
            ("203.0.113.9 - - [01/May/2026", "not closed"),
            ("203.0.113.9 - - [yesterday] \"GET / HTTP/1.1\" 200 1", "is not of the form 01/May/2026"),
            ("203.0.113.9 - - [1777636800123] \"GET / HTTP/1.1\" 200 1", "is in milliseconds"),
            ("203.0.113.9 - - [01/May/2026:14:00:00 +0200] GET / 200 1", "no request in quotes"),
            ("203.0.113.9 - - [01/May/2026:14:00:00 +0200] \"GET / HTTP/1.1\"", "no status"),
            ("203.0.113.9 - - [01/May/2026:14:00:00 +0200] \"GET / HTTP/1.1\" ok 1", "status \"ok\""),
            ("203.0.113.9 - - [01/May/2026:14:00:00 +0200] \"\\x16\\x03\" 400 1 \"-\" \"-\"", "its request"),
            (
                "203.0.113.9 - - [01/May/2026:14:00:00 +0200] \"GET / HTTP/1.1\" 200 1",
                "is it the common format?",
            ),
        ] {
            let error = parse(line, Format::Combined).expect_err(line);
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn parts_of_pages_are_none() {
        for (target, page) in [
            ("/", true),
            ("/a/b", true),
            ("/a.html?x=.css", true),
            ("/paper.pdf", true),
            ("/a.CSS?v=1", false),
            ("/favicon.ico", false),
            ("/robots.txt", false),
            ("/.well-known/acme-challenge/x", false),
        ] {
            assert_eq!(is_page(target), page, "{target}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Any text is read or refused.
        #[test]
        fn any_text_is_read_or_refused(
            text in prop_oneof![
                any::<String>(),
                prop::collection::vec(prop_oneof![
                    Just("203.0.113.9"), Just(" "), Just("["), Just("]"), Just("\""), Just("\\"), Just("\\x"),
                    Just("4"), Just("01/May/2026:14:00:00 +0200"), Just("GET / HTTP/1.1"), Just("200"), Just("é😀"),
                ], 0..24).prop_map(|parts| parts.concat()),
            ],
        ) {
            for format in [Format::Common, Format::Combined] {
                if let Err(reason) = parse(&text, format) {
                    prop_assert!(!reason.is_empty());
                }
            }
        }

        /// A damaged line is read or refused, and never read beyond its end.
        #[test]
        fn a_line_that_is_cut_or_changed_is_read_or_refused(
            end in 0..LINE.len(), at in 0..LINE.len(), with in any::<char>(),
        ) {
            let cut: String = LINE.chars().take(end).collect();
            let changed: String = LINE.chars().enumerate().map(|(n, c)| if n == at { with } else { c }).collect();
            for text in [cut, changed] {
                if let Ok(entry) = parse(&text, Format::Combined) {
                    prop_assert!(!entry.target.is_empty() && !entry.address.is_empty());
                }
            }
        }

        /// Whatever an agent has in it, the server's escapes give it back.
        #[test]
        fn quotes_give_back_what_was_escaped(agent in any::<String>()) {
            let escaped: String = agent.bytes().map(|byte| match byte {
                b'"' => "\\\"".to_owned(),
                b'\\' => "\\\\".to_owned(),
                0x20..=0x7e => char::from(byte).to_string(),
                other => format!("\\x{other:02x}"),
            }).collect();
            let text = format!(" \"{escaped}\" rest");
            let (read, rest) = quoted(&text).expect("quotes");
            prop_assert_eq!((read.as_ref(), rest), (agent.as_str(), " rest"));
        }
    }
}
