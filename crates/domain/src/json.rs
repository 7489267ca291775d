//! JSON with the semantics of JavaScript, borrowing from the body wherever it can.
//!
//! Umami's collector reads bodies with `Request.json()` and writes with `JSON.stringify`; identifiers, rows
//! and answers depend on details in which ordinary JSON libraries differ (key order, duplicate keys, number
//! text, `Number()` of odd values). Source of the rules: ECMA-262 (`JSON.parse`, `JSON.stringify`,
//! `ToNumber`, `OrdinaryOwnPropertyKeys`), the WHATWG Encoding standard, and
//! docs/umami-contract.md §1.1.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use self::parser::parse_text;

mod parser;

/// How many arrays and objects may stand inside each other; one more is a [`ParseError`].
///
/// JavaScript engines have no such limit. Ours keeps parsing, writing and dropping, which recurse, far below
/// a stack of 2 MiB.
pub const DEPTH_MAX: usize = 512;

/// Up to this many keys an object is searched for duplicates pair by pair, which needs no memory. Beyond it a
/// hash set keeps the work linear: a body of 10 MiB holds two million keys.
const PAIRWISE_MAX: usize = 32;

/// A JSON value. Strings borrow from the parsed text unless they hold an escape.
///
/// Equality is that of IEEE numbers (`-0 == 0`) and takes the order of keys into account.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An IEEE double, never NaN when parsed; `1e400` is infinite.
    Number(f64),
    /// A string; a lone surrogate has become U+FFFD, as it does when JavaScript encodes it.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Value<'a>>),
    /// An object.
    Object(Object<'a>),
}

type Member<'a> = (Cow<'a, str>, Value<'a>);

/// A JSON object in the order in which JavaScript enumerates it.
///
/// Keys that are array indices (`"0"` to `"4294967294"`, canonical decimal) come first, ascending; the others
/// in order of first appearance. Every key is there once, with the last value given for it. `__proto__` never
/// is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object<'a>(Vec<Member<'a>>);

/// The text is not JSON, or is nested deeper than [`DEPTH_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("JSON broken at byte {offset}: expected {expected}")]
pub struct ParseError {
    /// Where, in bytes of the decoded text: a byte-order mark does not count, an invalid sequence counts as
    /// the three bytes of the U+FFFD it became.
    pub offset: usize,
    /// The token that was expected there.
    pub expected: &'static str,
}

/// Parses a request body as `Request.json()` does.
///
/// One UTF-8 byte-order mark is skipped, invalid UTF-8 becomes U+FFFD (the result then owns its strings), and
/// [`parse_str`] parses the rest.
///
/// # Errors
/// [`ParseError`] if the text is not what `JSON.parse` accepts or is nested deeper than [`DEPTH_MAX`].
pub fn parse(bytes: &[u8]) -> Result<Value<'_>, ParseError> {
    match decoded(bytes) {
        Cow::Borrowed(text) => parse_str(text),
        Cow::Owned(text) => parse_str(&text).map(Value::into_owned),
    }
}

/// The text as the WHATWG Encoding standard decodes UTF-8. Nearly all bytes are valid, and the check whether they all are
/// is several times as fast as the search for those that are not.
fn decoded(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Parses `text` with the grammar of `JSON.parse`.
///
/// No trailing commas, white space is space, tab, LF and CR only, no control characters in strings. Numbers are
/// correctly rounded doubles; a number that is too large is infinite. Lone surrogate escapes become U+FFFD.
///
/// # Errors
/// [`ParseError`] if the text is anything else or is nested deeper than [`DEPTH_MAX`].
pub fn parse_str(text: &str) -> Result<Value<'_>, ParseError> {
    match parse_text(text, usize::MAX) {
        Ok(value) => Ok(value),
        Err(Stop::Broken(error)) => Err(error),
        Err(Stop::TooMany) => unreachable!("no array has so many elements"),
    }
}

/// Parses as [`parse`] does, as long as the whole text is no array of more than `elements_max` elements. The text
/// behind the first element too many is not looked at, so that a large body costs no more than a small one.
///
/// # Errors
/// [`Stop::TooMany`] for more elements, [`Stop::Broken`] for a text that is not JSON.
pub fn parse_elements(bytes: &[u8], elements_max: usize) -> Result<Value<'_>, Stop> {
    match decoded(bytes) {
        Cow::Borrowed(text) => parse_text(text, elements_max),
        Cow::Owned(text) => parse_text(&text, elements_max).map(Value::into_owned),
    }
}

/// Why [`parse_elements`] gives no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The text is not JSON.
    #[error(transparent)]
    Broken(#[from] ParseError),
    /// The text is an array of more elements than may be.
    #[error("the array has too many elements")]
    TooMany,
}

/// How many bytes from the start need no escape in a JSON string and do not end it.
///
/// Looks at eight bytes at a time: a byte of the mask is set if the byte is a quote, a backslash or below
/// 0x20. A borrow can set bytes above a true hit wrongly, never the lowest one.
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut len = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let hit = control | quote | backslash;
        if hit != 0 {
            return len + (hit.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let plain = |byte: &&u8| **byte >= 0x20 && **byte != b'"' && **byte != b'\\';
    len + rest.iter().take_while(plain).count()
}

/// The number of an array index: canonical decimal from 0 to 2^32 - 2.
fn array_index(key: &str) -> Option<u32> {
    let digits = key.as_bytes();
    let canonical = digits.len() <= 10
        && digits.first().is_some_and(u8::is_ascii_digit)
        && (digits[0] != b'0' || digits.len() == 1)
        && digits.iter().all(u8::is_ascii_digit);
    if !canonical {
        return None;
    }
    key.parse().ok().filter(|index| *index < u32::MAX)
}

/// Whether the members already are what [`normalise`] would make of them, as nearly always.
fn is_regular(members: &[Member<'_>]) -> bool {
    if members.iter().any(|(key, _)| key == "__proto__" || array_index(key).is_some()) {
        return false;
    }
    if members.len() > PAIRWISE_MAX {
        let mut seen = HashSet::with_capacity(members.len());
        return members.iter().all(|(key, _)| seen.insert(key.as_ref()));
    }
    members.iter().enumerate().all(|(place, (key, _))| members[..place].iter().all(|(other, _)| other != key))
}

/// Makes the invariant of [`Object`] true: last value at the first place, no `__proto__`, indices in front.
fn normalise(members: Vec<Member<'_>>) -> Vec<Member<'_>> {
    let first_places: Vec<usize> = {
        let mut seen = HashMap::with_capacity(members.len());
        members
            .iter()
            .map(|(key, _)| {
                let next = seen.len();
                *seen.entry(key.as_ref()).or_insert(next)
            })
            .collect()
    };
    let mut unique: Vec<Member<'_>> = Vec::with_capacity(members.len());
    for ((key, value), place) in members.into_iter().zip(first_places) {
        match unique.get_mut(place) {
            Some(earlier) => earlier.1 = value,
            None => unique.push((key, value)),
        }
    }
    unique.retain(|(key, _)| key != "__proto__");
    unique.sort_by_cached_key(|(key, _)| array_index(key).unwrap_or(u32::MAX));
    unique
}

impl<'a> Object<'a> {
    /// Builds an object from members in order of assignment; the order and the duplicates of JavaScript
    /// apply.
    pub fn from_members(members: impl IntoIterator<Item = (Cow<'a, str>, Value<'a>)>) -> Self {
        let members: Vec<Member<'a>> = members.into_iter().collect();
        Self(if is_regular(&members) { members } else { normalise(members) })
    }

    /// The value of `key`. Takes time linear in the number of keys.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.iter().find(|(candidate, _)| candidate == key).map(|(_, value)| value)
    }

    /// Takes the value of `key` out, keeping the order of the rest. Takes time linear in the number of keys.
    pub fn remove(&mut self, key: &str) -> Option<Value<'a>> {
        let place = self.0.iter().position(|(candidate, _)| candidate == key)?;
        Some(self.0.remove(place).1)
    }

    /// The members in the order of JavaScript's `Object.keys`.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value<'a>)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same object without a borrow of the parsed text.
    pub fn into_owned(self) -> Object<'static> {
        // A loop, here and in `Value::into_owned`: iterator adapters would put five more frames on every
        // level.
        let mut members = Vec::with_capacity(self.0.len());
        for (key, value) in self.0 {
            members.push((Cow::Owned(key.into_owned()), value.into_owned()));
        }
        Object(members)
    }

    /// Appends the object as [`Value::write`] does.
    pub fn write(&self, out: &mut String) {
        self.write_with(["null", "null"], out);
    }

    /// Appends the object so that it parses to the same one: as [`Object::write`], but with infinite numbers as
    /// `1e999` and `-1e999`, which every reader of doubles takes for infinite.
    pub fn write_exact(&self, out: &mut String) {
        self.write_with(["1e999", "-1e999"], out);
    }

    fn write_with(&self, infinities: [&str; 2], out: &mut String) {
        out.push('{');
        for (place, (key, value)) in self.0.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            write_string(key, out);
            out.push(':');
            value.write_with(infinities, out);
        }
        out.push('}');
    }
}

impl<'a> IntoIterator for Object<'a> {
    type Item = (Cow<'a, str>, Value<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    /// The members in the order of JavaScript's `Object.keys`.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> Value<'a> {
    /// Appends the value as `JSON.stringify` writes it: compact, infinity and NaN as `null`, `-0` as `0`.
    pub fn write(&self, out: &mut String) {
        self.write_with(["null", "null"], out);
    }

    /// `infinities` are the texts of the positive and the negative one.
    fn write_with(&self, infinities: [&str; 2], out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Number(number) if number.is_finite() => write_number(*number, out),
            Value::Number(number) if number.is_nan() => out.push_str("null"),
            Value::Number(number) => out.push_str(infinities[usize::from(*number < 0.0)]),
            Value::String(text) => write_string(text, out),
            Value::Array(items) => {
                out.push('[');
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    item.write_with(infinities, out);
                }
                out.push(']');
            }
            Value::Object(object) => object.write_with(infinities, out),
        }
    }

    /// The text [`Value::write`] writes.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// zod 4's name of the type of a received value: `null`, `array`, `object`, `string`, `number` or `boolean`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    /// The object, if this is one.
    pub fn as_object(&self) -> Option<&Object<'a>> {
        if let Value::Object(object) = self { Some(object) } else { None }
    }

    /// The same value without a borrow of the parsed text.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(truth) => Value::Bool(truth),
            Value::Number(number) => Value::Number(number),
            Value::String(text) => Value::String(Cow::Owned(text.into_owned())),
            Value::Array(items) => {
                let mut owned = Vec::with_capacity(items.len());
                for item in items {
                    owned.push(item.into_owned());
                }
                Value::Array(owned)
            }
            Value::Object(object) => Value::Object(object.into_owned()),
        }
    }
}

/// Appends `text` in quotes, with exactly the escapes of `JSON.stringify`: `\" \\ \b \t \n \f \r` and
/// `\u00xx` in lower case for the other characters below U+0020.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_at(plain_len(rest.as_bytes()));
        out.push_str(plain);
        let Some(special) = tail.bytes().next() else { break };
        match special {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0C => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            control => {
                out.push_str("\\u00");
                out.push(char::from_digit(u32::from(control >> 4), 16).unwrap_or('0'));
                out.push(char::from_digit(u32::from(control & 15), 16).unwrap_or('0'));
            }
        }
        rest = &tail[1..];
    }
    out.push('"');
}

/// Appends JavaScript's `String(number)`: the shortest text that gives the number again, `-0` as `0`.
///
/// A number that is not finite gives `NaN`, `Infinity` or `-Infinity`, which are not JSON; [`Value::write`]
/// writes `null` for them.
pub fn write_number(number: f64, out: &mut String) {
    out.push_str(ryu_js::Buffer::new().format(number));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Value<'_> {
        parse_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn json(text: &str) -> String {
        parsed(text).to_json()
    }

    #[test]
    fn what_is_parsed_is_written_as_json_stringify_writes_it() {
        for (text, expected) in [
            (" {\t\"a\" : [ 1 , 2.50 ,\r\n true , false , null ] } ", r#"{"a":[1,2.5,true,false,null]}"#),
            ("{}", "{}"),
            ("[]", "[]"),
            ("[[],[{}]]", "[[],[{}]]"),
            ("\"\"", "\"\""),
            ("-0", "0"),
            ("[-0.0, 0e5, -1]", "[0,0,-1]"),
            ("1e400", "null"),
            ("[-1e400]", "[null]"),
            ("1e21", "1e+21"),
            ("123456789012345680000", "123456789012345680000"),
            ("1E-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("5e-324", "5e-324"),
            ("1e-400", "0"),
            ("9007199254740993", "9007199254740992"),
            ("0.1", "0.1"),
            ("999999999999999", "999999999999999"),
            (r#""\u0041\/\"\\\b\f\n\r\t""#, r#""A/\"\\\b\f\n\r\t""#),
            (r#""\u0000\u001F\u007f\u2028é""#, "\"\\u0000\\u001f\u{7f}\u{2028}é\""),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    #[test]
    fn what_json_parse_refuses_is_refused_with_the_place() {
        for (text, offset, expected) in [
            ("", 0, "a value"),
            ("   ", 3, "a value"),
            ("undefined", 0, "a value"),
            ("NaN", 0, "a value"),
            ("nul", 0, "null"),
            ("[1,]", 3, "a value"),
            ("[1 2]", 3, "',' or ']'"),
            ("[", 1, "a value"),
            ("{\"a\":1,}", 7, "a key in quotes"),
            ("{a:1}", 1, "a key in quotes"),
            ("{'a':1}", 1, "a key in quotes"),
            ("{\"a\" 1}", 5, "':'"),
            ("{\"a\":1 \"b\":2}", 7, "',' or '}'"),
            ("{\"a\":}", 5, "a value"),
            ("1 2", 2, "the end of the text"),
            ("01", 1, "the end of the text"),
            ("+1", 0, "a value"),
            (".5", 0, "a value"),
            ("-", 1, "a digit"),
            ("1.", 2, "a digit"),
            ("1.e5", 2, "a digit"),
            ("1e", 2, "a digit"),
            ("1e+", 3, "a digit"),
            ("\"abc", 4, "'\"'"),
            ("\"a\nb\"", 2, "no bare control character in a string"),
            ("\"\\x\"", 2, "one of \"\\/bfnrtu after a backslash"),
            ("\"\\u12g4\"", 5, "a hexadecimal digit"),
            ("\"\\ud800\\u12\"", 11, "a hexadecimal digit"),
            ("\u{a0}1", 0, "a value"),
            ("\u{b}1", 0, "a value"),
            ("\u{feff}1", 0, "a value"),
        ] {
            assert_eq!(parse_str(text), Err(ParseError { offset, expected }), "{text:?}");
        }
    }

    #[test]
    fn an_error_says_where_and_what() {
        let error = parse(b"{\"a\";1}").unwrap_err();
        assert_eq!(error.to_string(), "JSON broken at byte 4: expected ':'");
    }

    #[test]
    fn a_body_is_decoded_as_utf8_with_replacement_and_one_mark_is_skipped() {
        assert_eq!(parse(b"\xEF\xBB\xBF {\"a\":1}").unwrap().to_json(), "{\"a\":1}");
        assert_eq!(parse(b"\xEF\xBB\xBF\xEF\xBB\xBF1").unwrap_err().offset, 0);
        assert_eq!(
            parse(b"\"a\xFFb\xF0\x9F\x98c\xC3\"").unwrap().as_str(),
            Some("a\u{FFFD}b\u{FFFD}c\u{FFFD}")
        );
        assert_eq!(
            parse(b"{\"\xFF\":[\"\xFE\",1,true,null]}").unwrap().to_json(),
            "{\"�\":[\"�\",1,true,null]}"
        );
        // A truncated gzip stream or UTF-16 is simply not JSON.
        assert!(parse(b"\x1F\x8B\x08\x00").is_err());
        assert!(parse(b"\xFF\xFE{\x00}\x00").is_err());
    }

    #[test]
    fn surrogates_pair_up_or_become_the_replacement_character() {
        for (text, expected) in [
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\uD83D\uDE00!""#, "😀!"),
            (r#""\ud83d""#, "\u{FFFD}"),
            (r#""\ude00\ud83d""#, "\u{FFFD}\u{FFFD}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{FFFD}😀"),
            (r#""\ud83d\u0041""#, "\u{FFFD}A"),
            (r#""\ud83d\n""#, "\u{FFFD}\n"),
            (r#""\udbff\udfff""#, "\u{10FFFF}"),
        ] {
            assert_eq!(parsed(text).as_str(), Some(expected), "{text}");
        }
    }

    #[test]
    fn strings_borrow_unless_they_hold_an_escape() {
        let Value::Array(items) = parsed(r#"["plain and long enough for a word", "a\nb"]"#) else { panic!() };
        assert!(matches!(items[0], Value::String(Cow::Borrowed(_))));
        assert!(matches!(items[1], Value::String(Cow::Owned(_))));
    }

    #[test]
    fn keys_are_enumerated_as_javascript_does() {
        for (text, expected) in [
            (r#"{"b":1,"a":2,"b":3}"#, r#"{"b":3,"a":2}"#),
            (r#"{"b":1,"10":2,"9":3,"a":4,"0":5}"#, r#"{"0":5,"9":3,"10":2,"b":1,"a":4}"#),
            (r#"{"x":1,"01":2,"-1":3,"1.0":4,"+1":5,"":6}"#, r#"{"x":1,"01":2,"-1":3,"1.0":4,"+1":5,"":6}"#),
            (
                r#"{"4294967295":1,"4294967294":2,"99999999999":3,"4294967296":4}"#,
                r#"{"4294967294":2,"4294967295":1,"99999999999":3,"4294967296":4}"#,
            ),
            (r#"{"a":{"2":1,"1":2,"2":3}}"#, r#"{"a":{"1":2,"2":3}}"#),
            (r#"{"a":1,"__proto__":{"x":1},"b":2}"#, r#"{"a":1,"b":2}"#),
            (r#"{"__proto__":1,"__proto__":2}"#, "{}"),
            (r#"{"\u0061":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":1,"2":2,"a":[],"1":3,"b":4}"#, r#"{"1":3,"2":2,"a":[],"b":4}"#),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    #[test]
    fn many_keys_follow_the_same_rules_as_few() {
        let body = |count: usize| {
            let first = (0..count).map(|key| format!("\"k{key}\":0"));
            let again = (0..count).map(|key| format!("\"k{key}\":{key}"));
            format!("{{{}}}", first.chain(again).collect::<Vec<_>>().join(","))
        };
        for count in [1, 15, 16, 17, 33, 100_000] {
            let text = body(count);
            let Value::Object(object) = parsed(&text) else { panic!() };
            assert_eq!(object.len(), count);
            assert!(object.iter().enumerate().all(|(place, (key, value))| {
                key == format!("k{place}") && *value == Value::Number(place as f64)
            }));
        }
    }

    #[test]
    fn an_object_is_read_changed_and_rebuilt() {
        let Value::Object(mut object) = parsed(r#"{"a":1,"b":"x","c":null}"#) else { panic!() };
        assert_eq!(object.get("b"), Some(&Value::String("x".into())));
        assert_eq!(object.get("d"), None);
        assert_eq!(object.remove("a"), Some(Value::Number(1.0)));
        assert_eq!(object.remove("a"), None);
        assert_eq!(object.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "c"]);
        let members = object.into_iter().chain([("7".into(), Value::Bool(true)), ("b".into(), Value::Null)]);
        let rebuilt = Object::from_members(members);
        assert_eq!(Value::Object(rebuilt).to_json(), r#"{"7":true,"b":null,"c":null}"#);
        assert!(Object::default().is_empty());
    }

    #[test]
    fn nesting_is_limited_and_the_limit_needs_little_stack() {
        let nested = |depth: usize| "[{\"a\":".repeat(depth / 2) + "1" + &"}]".repeat(depth / 2);
        let walk = move || {
            let text = nested(DEPTH_MAX);
            let value = parse(text.as_bytes()).unwrap();
            assert_eq!(value.to_json(), text);
            assert_eq!(value.clone(), value);
            assert!(value.to_number().is_nan());
            assert_eq!(value.into_owned().to_json(), text);
            let text = nested(DEPTH_MAX + 2);
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.expected, "at most 512 levels of nesting");
            assert_eq!(error.offset, 6 * DEPTH_MAX / 2);
            assert!(parse("[".repeat(10 << 20).as_bytes()).is_err());
        };
        // Half of what a thread has, so that a caller deep in its own stack is safe too.
        std::thread::Builder::new().stack_size(1 << 20).spawn(walk).unwrap().join().unwrap();
        // The limit is on depth, not on the number of containers.
        assert!(parse(format!("[{}[]]", "[],".repeat(2 * DEPTH_MAX)).as_bytes()).is_ok());
    }

    #[test]
    fn types_have_the_names_zod_gives_them() {
        for (text, name) in [
            ("null", "null"),
            ("[]", "array"),
            ("{}", "object"),
            ("\"\"", "string"),
            ("0", "number"),
            ("1e400", "number"),
            ("true", "boolean"),
        ] {
            assert_eq!(parsed(text).type_name(), name);
        }
    }

    #[test]
    fn a_number_that_is_not_finite_has_its_javascript_text() {
        for (number, text) in
            [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity")]
        {
            let mut out = String::new();
            write_number(number, &mut out);
            assert_eq!(out, text);
            assert_eq!(Value::Number(number).to_json(), "null");
        }
    }

    fn documents() -> impl Strategy<Value = serde_json::Value> {
        let number = prop_oneof![
            any::<i64>().prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
            (-1_000_000..1_000_000_i32).prop_map(|number| f64::from(number) / 100.0).prop_map(Into::into),
        ];
        let text = prop_oneof![any::<String>(), "[a-c0-9\"\\\\\\x00-\\x1f\u{2028}é😀]{0,24}"];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            number,
            text.prop_map(Into::into)
        ];
        let key = prop_oneof!["[a-c]{0,2}", "[0-9]{1,3}", any::<String>()];
        leaf.prop_recursive(5, 64, 40, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((key.clone(), inner), 0..40).prop_map(|members| {
                    serde_json::Value::Object(
                        members.into_iter().filter(|(key, _)| key != "__proto__").collect(),
                    )
                }),
            ]
        })
    }

    fn same(ours: &Value<'_>, theirs: &serde_json::Value) -> bool {
        match (ours, theirs) {
            (Value::Null, serde_json::Value::Null) => true,
            (Value::Bool(ours), serde_json::Value::Bool(theirs)) => ours == theirs,
            (Value::Number(ours), serde_json::Value::Number(theirs)) => Some(*ours) == theirs.as_f64(),
            (Value::String(ours), serde_json::Value::String(theirs)) => ours == theirs,
            (Value::Array(ours), serde_json::Value::Array(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs))
            }
            (Value::Object(ours), serde_json::Value::Object(theirs)) => {
                ours.len() == theirs.len()
                    && theirs.iter().all(|(key, theirs)| ours.get(key).is_some_and(|ours| same(ours, theirs)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_document_means_what_serde_json_says(document in documents()) {
            for text in [document.to_string(), serde_json::to_string_pretty(&document).unwrap()] {
                let value = parse(text.as_bytes()).unwrap();
                prop_assert!(same(&value, &document), "{text}");
                let written = value.to_json();
                prop_assert_eq!(&parse_str(&written).unwrap(), &value);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok());
                prop_assert_eq!(value.clone().into_owned(), value);
            }
        }

        #[test]
        fn a_damaged_document_is_refused_exactly_when_serde_json_refuses_it(
            document in documents(),
            at in any::<prop::sample::Index>(),
            with in "[\\[\\]{},:\"\\\\ntu0.eE+\\- \t\u{b}x]?",
        ) {
            let mut text: Vec<char> = document.to_string().chars().collect();
            let at = at.index(text.len());
            text.splice(at..=at, with.chars());
            let text: String = text.into_iter().collect();
            match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(_) => prop_assert!(parse_str(&text).is_ok(), "{text}"),
                // There the two differ on purpose.
                Err(error) if error.to_string().contains("out of range") => {}
                Err(error) if error.to_string().contains("surrogate") => {}
                Err(error) if error.to_string().contains("end of hex escape") => {}
                Err(_) => prop_assert!(parse_str(&text).is_err(), "{text}"),
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = parse(&bytes);
        }

        #[test]
        fn anything_made_of_json_characters_is_parsed_or_refused_without_a_panic(
            text in "[\\[\\]{},:\"\\\\ntrufalse0-9.eE+\\- \\x00é]{0,40}",
        ) {
            if let Ok(value) = parse(text.as_bytes()) {
                let _ = value.to_number();
                prop_assert!(parse_str(&value.to_json()).is_ok());
            }
        }

        #[test]
        fn plain_text_ends_at_the_first_byte_that_needs_an_escape(bytes in any::<Vec<u8>>()) {
            let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            prop_assert_eq!(plain_len(&bytes), bytes.iter().position(special).unwrap_or(bytes.len()));
        }
    }
}
