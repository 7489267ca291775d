//! JavaScript's view of text: lengths in UTF-16 units and the URI decoders.

use std::borrow::Cow;

/// Characters whose escapes `decodeURI` leaves alone (ECMA-262, `reservedURISet` and `#`).
const KEPT_BY_DECODE_URI: &[u8] = b";/?:@&=+$,#";

/// Length of `s` in UTF-16 units, which is what JavaScript calls `length`.
pub fn utf16_len(s: &str) -> usize {
    if s.is_ascii() { s.len() } else { s.chars().map(char::len_utf16).sum() }
}

/// Removes U+0000, then keeps the first `units_max` UTF-16 units.
///
/// A character outside the basic plane that straddles the limit leaves U+FFFD in place of its first half,
/// so the result has at most `units_max` units, hence at most `units_max` characters for a `varchar`.
/// Umami 3.1 cuts with `substring`; it fails on U+0000, which PostgreSQL text cannot hold.
pub fn cut(s: Cow<'_, str>, units_max: usize) -> Cow<'_, str> {
    let s = without_nul(s);
    // One unit is never less than one byte of UTF-8.
    if s.len() <= units_max {
        return s;
    }
    let mut units = 0;
    for (at, c) in s.char_indices() {
        let after = units + c.len_utf16();
        if after > units_max {
            return cut_at(s, at, units < units_max);
        }
        units = after;
    }
    s
}

/// Removes U+0000, then keeps the first `chars_max` characters, as a `varchar` counts them.
pub fn cut_chars(s: Cow<'_, str>, chars_max: usize) -> Cow<'_, str> {
    let s = without_nul(s);
    // One character is never less than one byte of UTF-8.
    if s.len() <= chars_max {
        return s;
    }
    match s.char_indices().nth(chars_max).map(|(at, _)| at) {
        Some(at) => cut_at(s, at, false),
        None => s,
    }
}

fn without_nul(s: Cow<'_, str>) -> Cow<'_, str> {
    if s.as_bytes().contains(&0) { Cow::Owned(s.replace('\0', "")) } else { s }
}

fn cut_at(s: Cow<'_, str>, at: usize, splits_pair: bool) -> Cow<'_, str> {
    match s {
        Cow::Borrowed(s) if !splits_pair => Cow::Borrowed(&s[..at]),
        s => {
            let mut s = s.into_owned();
            s.truncate(at);
            if splits_pair {
                s.push(char::REPLACEMENT_CHARACTER);
            }
            Cow::Owned(s)
        }
    }
}

/// JavaScript's `decodeURI`: escapes of ``; / ? : @ & = + $ , #`` stay as they are.
///
/// A text in which any escape is incomplete or not UTF-8 comes back unchanged, as in Umami 3.1, which
/// catches the `URIError`.
pub fn decode_uri(s: &str) -> Cow<'_, str> {
    decode(s, KEPT_BY_DECODE_URI)
}

/// JavaScript's `decodeURIComponent`: every escape is decoded.
///
/// A text in which any escape is incomplete or not UTF-8 comes back unchanged.
pub fn decode_uri_component(s: &str) -> Cow<'_, str> {
    decode(s, b"")
}

fn decode<'a>(s: &'a str, kept: &[u8]) -> Cow<'a, str> {
    match try_decode(s, kept) {
        Some(Some(decoded)) => Cow::Owned(decoded),
        Some(None) | None => Cow::Borrowed(s),
    }
}

/// `None` is JavaScript's `URIError`; `Some(None)` means there was nothing to decode.
fn try_decode(s: &str, kept: &[u8]) -> Option<Option<String>> {
    let Some(first) = s.find('%') else { return Some(None) };
    let mut decoded = String::with_capacity(s.len());
    decoded.push_str(&s[..first]);
    let mut rest = &s[first..];
    // `rest` starts with '%' at the top of the loop.
    loop {
        let (text, length) = escaped_char(rest.as_bytes())?;
        match text {
            Escaped::Ascii(byte) if kept.contains(&byte) => decoded.push_str(&rest[..length]),
            Escaped::Ascii(byte) => decoded.push(char::from(byte)),
            Escaped::Wide(c) => decoded.push(c),
        }
        rest = &rest[length..];
        match rest.find('%') {
            Some(next) => {
                decoded.push_str(&rest[..next]);
                rest = &rest[next..];
            }
            None => {
                decoded.push_str(rest);
                return Some(Some(decoded));
            }
        }
    }
}

enum Escaped {
    Ascii(u8),
    Wide(char),
}

/// The character whose escapes `bytes` starts with, and how many bytes these escapes take.
fn escaped_char(bytes: &[u8]) -> Option<(Escaped, usize)> {
    let lead = escaped_byte(bytes)?;
    let count = match lead.leading_ones() {
        0 => return Some((Escaped::Ascii(lead), 3)),
        count @ 2..=4 => count as usize,
        _ => return None,
    };
    let mut utf8 = [lead, 0, 0, 0];
    for (n, byte) in utf8.iter_mut().enumerate().take(count).skip(1) {
        *byte = escaped_byte(bytes.get(3 * n..)?)?;
    }
    // The standard library refuses overlong forms, surrogates and what lies beyond U+10FFFF, as ECMA-262
    // does.
    let c = std::str::from_utf8(&utf8[..count]).ok()?.chars().next()?;
    Some((Escaped::Wide(c), 3 * count))
}

fn escaped_byte(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    Some(hex_digit(*high)? << 4 | hex_digit(*low)?)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cutting_counts_utf16_units_and_marks_a_split_pair() {
        for (text, units_max, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "abc"),
            ("", 0, ""),
            ("a", 0, ""),
            ("ééé", 3, "ééé"),
            ("éééé", 3, "ééé"),
            ("a😀", 3, "a😀"),
            ("a😀b", 3, "a😀"),
            ("a😀b", 2, "a\u{fffd}"),
            ("a😀b", 1, "a"),
            ("😀", 1, "\u{fffd}"),
            ("a\0b\0c", 3, "abc"),
            ("\0\0\0abcd", 3, "abc"),
        ] {
            assert_eq!(cut(Cow::Borrowed(text), units_max), expected, "{text:?} {units_max}");
            assert_eq!(cut(Cow::Owned(text.to_owned()), units_max), expected, "{text:?} {units_max}, owned");
        }
    }

    #[test]
    fn a_text_that_fits_is_not_copied() {
        assert!(matches!(cut(Cow::Borrowed("éé"), 4), Cow::Borrowed(_)));
        assert!(matches!(cut(Cow::Borrowed("éé"), 1), Cow::Borrowed("é")));
        assert!(matches!(decode_uri("/a/b"), Cow::Borrowed(_)));
    }

    /// Expectations are what Node.js 20 prints for `decodeURI` and `decodeURIComponent`; `None` where it
    /// throws.
    #[test]
    fn decoders_agree_with_javascript() {
        for (text, uri, component) in [
            ("a b+c", Some("a b+c"), Some("a b+c")),
            ("%20", Some(" "), Some(" ")),
            (
                "%3b%2F%3F%3a%40%26%3D%2B%24%2C%23",
                Some("%3b%2F%3F%3a%40%26%3D%2B%24%2C%23"),
                Some(";/?:@&=+$,#"),
            ),
            ("%25%41%5B%5D%7E%27", Some("%A[]~'"), Some("%A[]~'")),
            ("%2541", Some("%41"), Some("%41")),
            ("é%C3%A9%e4%bd%a0%F0%9F%98%80", Some("éé你😀"), Some("éé你😀")),
            ("%00", Some("\0"), Some("\0")),
            ("%EF%BB%BFx%EF%BF%BF", Some("\u{feff}x\u{ffff}"), Some("\u{feff}x\u{ffff}")),
            ("%", None, None),
            ("%4", None, None),
            ("ok%20%zz", None, None),
            ("%é9", None, None),
            ("%80", None, None),
            ("%C3", None, None),
            ("%C3%", None, None),
            ("%C3é", None, None),
            ("%C3%41", None, None),
            ("%C0%80", None, None),
            ("%E0%80%80", None, None),
            ("%ED%A0%80", None, None),
            ("%ED%A0%BD%ED%B8%80", None, None),
            ("%F4%90%80%80", None, None),
            ("%F8%88%80%80%80", None, None),
            ("%FF", None, None),
            ("100%", None, None),
        ] {
            assert_eq!(decode_uri(text), uri.unwrap_or(text), "decodeURI {text}");
            assert_eq!(decode_uri_component(text), component.unwrap_or(text), "decodeURIComponent {text}");
        }
    }

    proptest! {
        #[test]
        fn a_cut_text_is_within_the_limit_and_what_fits_is_kept(
            text in any::<String>(), units_max in 0usize..40,
        ) {
            let bare = text.replace('\0', "");
            let short = cut(Cow::Borrowed(&text), units_max);
            prop_assert!(utf16_len(&short) <= units_max);
            prop_assert!(!short.contains('\0'));
            let units: Vec<u16> = bare.encode_utf16().take(units_max).collect();
            prop_assert_eq!(short.as_ref(), String::from_utf16_lossy(&units));
        }

        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode_uri_component(&encoded), text.as_str());
        }

        #[test]
        fn utf16_len_is_the_number_of_units(text in any::<String>()) {
            prop_assert_eq!(utf16_len(&text), text.encode_utf16().count());
        }
    }
}
