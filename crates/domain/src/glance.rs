//! Reads the few facts of a record by which it is counted, without decoding it: an audit looks at every record of a
//! log, also at those that cannot be decoded.

use uuid::Uuid;

use crate::json::{self, Value};
use crate::record::Record;

/// The facts of a record that it is counted by. For a record that can be decoded they are those of the decoded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Glance {
    /// When the collector had the request, milliseconds since 1970; `None` if the record does not tell.
    pub received_at_ms: Option<i64>,
    /// The session in its envelope.
    pub session_id: Option<Uuid>,
    /// The website, link or pixel in its payload.
    pub source_id: Option<Uuid>,
}

/// An hour and a website, link or pixel, which records are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HourKey {
    /// The beginning of the hour, milliseconds since 1970; never before 1970.
    pub hour_ms: i64,
    /// Website, link or pixel; nil where the record does not tell.
    pub source_id: Uuid,
}

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// The beginning of the hour of a moment, both in milliseconds since 1970. A moment before 1970 counts as 1970.
pub const fn hour_of(at_ms: i64) -> i64 {
    if at_ms < 0 { 0 } else { at_ms - at_ms % HOUR_MS }
}

impl HourKey {
    /// The hour and source that a record is counted by: the hour in which the collector had it, or, where the record does
    /// not tell, in which the log took it.
    pub fn of(record: &Record) -> Self {
        Glance::of(&record.value).hour_key(record.appended_at_ms)
    }
}

impl Glance {
    /// The facts in a record's value.
    pub fn of(value: &[u8]) -> Self {
        Scan { bytes: value, at: 0 }.record().unwrap_or_else(|| Self::of_json(value))
    }

    /// The key by which the record is counted; `appended_at_ms` is when the log took it.
    pub fn hour_key(&self, appended_at_ms: i64) -> HourKey {
        HourKey {
            hour_ms: hour_of(self.received_at_ms.unwrap_or(appended_at_ms)),
            source_id: self.source_id.unwrap_or_default(),
        }
    }

    /// By the parser, for texts that the scan does not read: keys or ids with escapes, and what is no JSON.
    fn of_json(value: &[u8]) -> Self {
        let Ok(Value::Object(fields)) = json::parse(value) else { return Self::default() };
        let text = |value: Option<&Value<'_>>| value.and_then(Value::as_str).and_then(|id| id.parse().ok());
        let payload = fields.get("payload").and_then(Value::as_object);
        let source = |name| payload.and_then(|payload| text(payload.get(name)));
        Self {
            received_at_ms: match fields.get("at") {
                Some(Value::Number(number)) => whole_ms(*number),
                _ => None,
            },
            session_id: text(fields.get("session")),
            source_id: source("website").or_else(|| source("link")).or_else(|| source("pixel")),
        }
    }
}

fn whole_ms(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= 8.64e15).then_some(number as i64)
}

/// Goes through JSON without making anything of it. Each step is `None` where the text is of a form that the scan
/// leaves to the parser.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn record(&mut self) -> Option<Glance> {
        let (mut glance, mut sources) = (Glance::default(), [None; 3]);
        self.members(|scan, key| {
            match key {
                b"at" => {
                    let token = scan.value()?;
                    let number = std::str::from_utf8(token).ok().and_then(|token| token.parse::<f64>().ok());
                    let starts = token.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-');
                    glance.received_at_ms = number.filter(|_| starts).and_then(whole_ms);
                }
                b"session" => glance.session_id = scan.id()?,
                b"payload" => {
                    sources = [None; 3];
                    if scan.peek()? != b'{' {
                        scan.value()?;
                        return Some(());
                    }
                    scan.members(|scan, key| {
                        let place = [&b"website"[..], b"link", b"pixel"].iter().position(|name| *name == key);
                        match place {
                            Some(place) => sources[place] = scan.id()?,
                            None => {
                                scan.value()?;
                            }
                        }
                        Some(())
                    })?;
                }
                _ => {
                    scan.value()?;
                }
            }
            Some(())
        })?;
        // Bytes after the object are for the parser to judge.
        self.space();
        glance.source_id = sources.into_iter().flatten().next();
        (self.at == self.bytes.len()).then_some(glance)
    }

    /// Calls `member` with each key of an object, standing before its value.
    fn members(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.space();
            let key = self.string()?;
            if key.contains(&b'\\') {
                return None;
            }
            self.expect(b':')?;
            member(self, key)?;
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Some(());
                }
                _ => return None,
            }
        }
    }

    /// The id in a string; `Some(None)` for another value.
    fn id(&mut self) -> Option<Option<Uuid>> {
        if self.peek()? != b'"' {
            self.value()?;
            return Some(None);
        }
        let text = self.string()?;
        if text.contains(&b'\\') {
            return None;
        }
        Some(Uuid::try_parse_ascii(text).ok())
    }

    /// Passes a value; returns its text, of a string without the quotes.
    fn value(&mut self) -> Option<&'a [u8]> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' | b'[' => {
                let (start, mut depth) = (self.at, 0_usize);
                loop {
                    match self.bytes.get(self.at)? {
                        b'"' => {
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        return Some(&self.bytes[start..self.at]);
                    }
                }
            }
            _ => {
                let rest = &self.bytes[self.at..];
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                let length = rest.iter().position(ends)?;
                self.at += length;
                (length > 0).then(|| &rest[..length])
            }
        }
    }

    /// Passes a string and returns it without its quotes, escapes as they are.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.bytes[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "11111111-1111-4111-8111-111111111111";
    const OTHER: &str = "22222222-2222-4222-8222-222222222222";

    #[test]
    fn a_record_tells_its_time_its_session_and_its_source() {
        let record = format!(
            r#"{{"v":1,"id":"{OTHER}","at":1777623630123,"session":"{OTHER}","visit":"{OTHER}","agent":"a \"}}{{ \\","type":"event","payload":{{"data":{{"website":"{OTHER}","at":[1,{{}}]}},"website":"{ID}","url":"/"}}}}"#
        );
        let glance = Glance::of(record.as_bytes());
        assert_eq!(glance.received_at_ms, Some(1_777_623_630_123));
        assert_eq!(glance.source_id, Some(ID.parse().expect("a UUID")));
        assert_eq!(glance.session_id, Some(OTHER.parse().expect("a UUID")));
        assert_eq!(Glance::of_json(record.as_bytes()), glance);
        assert_eq!(glance.hour_key(5).hour_ms, 1_777_622_400_000);
        let unknown = Glance::of(b"no record").hour_key(HOUR_MS + 5);
        assert_eq!(unknown, HourKey { hour_ms: HOUR_MS, source_id: Uuid::nil() });
        assert_eq!(hour_of(-1), 0);
    }

    fn json() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "at", "session", "payload", "website", "link", "pixel", "v", "\\u0061t", "x",
        ]);
        let leaf = prop::sample::select(vec![
            "1777623630123".to_owned(),
            "-5".to_owned(),
            "1.5e3".to_owned(),
            "1.5".to_owned(),
            "null".to_owned(),
            "true".to_owned(),
            format!("\"{ID}\""),
            format!("\"{OTHER}\""),
            "\"\\u0031\"".to_owned(),
            "\"}{\\\"\\\\\"".to_owned(),
            "[1,{\"website\":2}]".to_owned(),
            "NaN".to_owned(),
            "inf".to_owned(),
        ]);
        let leaf = leaf.prop_recursive(3, 24, 5, move |inner| {
            prop::collection::vec((key.clone(), inner, "[ \n]?"), 0..5).prop_map(|members| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, value, space)| format!("\"{key}\"{space}:{value}{space}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            })
        });
        leaf.boxed()
    }

    proptest! {
        #[test]
        fn what_can_be_parsed_is_read_as_the_parser_reads_it(text in json()) {
            if json::parse(text.as_bytes()).is_ok() {
                prop_assert_eq!(Glance::of(text.as_bytes()), Glance::of_json(text.as_bytes()));
            }
        }

        #[test]
        fn any_bytes_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0..200_usize, text in json()) {
            let _ = Glance::of(&bytes);
            let _ = Glance::of(&text.as_bytes()[..cut.min(text.len())]);
        }
    }
}
