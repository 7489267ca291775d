//! From the `data` of an event to rows of `event_data`, `session_data` and `revenue` (Umami 3.1).
//!
//! Where Umami 3.1 fails on a value and loses the rows, the value is cut or kept as text instead.

use std::borrow::Cow;

use jiff::tz::TimeZone;

use crate::calendar;
use crate::dates::date_ms;
use crate::decimal::Decimal;
use crate::javascript::to_fixed4;
use crate::json::{Object, Value};
use crate::text;
use crate::umami::Release;

/// Width of the key and string columns, in UTF-16 units.
const UNITS_MAX: usize = 500;
/// A key of this many bytes has more than [`UNITS_MAX`] characters, as none takes more than 4 bytes.
const KEY_BYTES_ENOUGH: usize = 4 * UNITS_MAX + 4;
/// Width of the currency column, in characters.
const CURRENCY_CHARS_MAX: usize = 10;
/// Fractional digits of the number columns, `numeric(19,4)`.
const NUMBER_SCALE: u8 = 4;

/// The type of a leaf, numbered as the column `data_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// Text.
    String = 1,
    /// A number.
    Number = 2,
    /// `true` or `false`.
    Boolean = 3,
    /// Text in Umami's form of a date; see [`flatten`].
    Date = 4,
    /// An array as JSON text; also `null`.
    Array = 5,
}

impl DataType {
    /// The number in the column `data_type`.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The type with this number.
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::String, Self::Number, Self::Boolean, Self::Date, Self::Array]
            .into_iter()
            .find(|data_type| data_type.code() == code)
    }
}

/// One row of `event_data` or `session_data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Keys from the top joined by dots, at most 500 UTF-16 units. Not unique: dots within keys are not
    /// escaped.
    pub key: String,
    /// The value's type.
    pub data_type: DataType,
    /// The value as text in the form of its type, at most 500 UTF-16 units.
    pub string_value: String,
    /// The value of a number to 4 decimals; `None` for other types and from 10¹⁵ on, which the column cannot
    /// hold.
    pub number_value: Option<Decimal>,
    /// The instant of a date, in milliseconds since 1970; `None` for other types.
    pub date_value_ms: Option<i64>,
}

/// Lists the leaves of `data`, depth first in the order of its keys. Empty objects have none.
///
/// | leaf | type | `string_value` |
/// |---|---|---|
/// | string | string | itself |
/// | number | number | JavaScript's `n.toFixed(4)` |
/// | boolean | boolean | `true`, `false` |
/// | `YYYY-MM-DDTHH:MM:SS[.mmm[Z or +HH:MM]]` | date | `2026-05-01T08:20:30.123Z` |
/// | array, null | array | compact JSON |
///
/// From 3.2 on a date may name its zone without milliseconds. A date without zone is in the local time of `tz`. A text
/// that only looks like a date is a string.
/// Recursion is as deep as `data`, whose depth the parser limits. Source: Umami 3.1, `flattenJSON`.
pub fn flatten(data: &Object<'_>, tz: &TimeZone, release: Release) -> Vec<Leaf> {
    let mut walk = Walk { tz, release, key: String::new(), leaves: Vec::new() };
    walk.object(data, false);
    walk.leaves
}

/// How many leaves [`flatten`] would give, at a fraction of the cost.
pub fn count(data: &Object<'_>) -> usize {
    data.iter()
        .map(|(_, value)| match value {
            Value::Object(inner) => count(inner),
            _ => 1,
        })
        .sum()
}

struct Walk<'a> {
    tz: &'a TimeZone,
    release: Release,
    /// The key so far, without U+0000; its end may be missing once it is longer than a row can hold.
    key: String,
    leaves: Vec<Leaf>,
}

impl Walk<'_> {
    /// `named` is whether the key of the object itself is not empty: only then a dot follows it.
    fn object(&mut self, object: &Object<'_>, named: bool) {
        let length = self.key.len();
        for (key, value) in object.iter() {
            let key: &str = key;
            if self.key.len() < KEY_BYTES_ENOUGH {
                if named {
                    self.key.push('.');
                }
                self.key.push_str(&text::cut_chars(Cow::Borrowed(key), UNITS_MAX + 1));
            }
            match value {
                Value::Object(inner) => self.object(inner, named || !key.is_empty()),
                leaf => self.leaf(leaf),
            }
            self.key.truncate(length);
        }
    }

    fn leaf(&mut self, value: &Value<'_>) {
        let (mut number_value, mut date_value_ms) = (None, None);
        let (data_type, string_value) = match value {
            Value::String(value) => match date_ms(value, self.tz, self.release) {
                Some(at_ms) => {
                    date_value_ms = Some(at_ms);
                    (DataType::Date, Cow::Owned(calendar::iso_string(at_ms)))
                }
                None => (DataType::String, Cow::Borrowed(value.as_ref())),
            },
            Value::Number(value) => {
                number_value = Decimal::round(*value, NUMBER_SCALE);
                (DataType::Number, Cow::Owned(to_fixed4(*value)))
            }
            Value::Bool(value) => (DataType::Boolean, Cow::Borrowed(if *value { "true" } else { "false" })),
            Value::Null => (DataType::Array, Cow::Borrowed("null")),
            Value::Array(_) | Value::Object(_) => (DataType::Array, Cow::Owned(value.to_json())),
        };
        self.leaves.push(Leaf {
            key: self.release.cut_from(Release::V3_2, Cow::Borrowed(&self.key), UNITS_MAX),
            data_type,
            string_value: self.release.cut_from(Release::V3_2, string_value, UNITS_MAX),
            number_value,
            date_value_ms,
        });
    }
}

/// One row of `revenue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revenue {
    /// As sent: 1 to 10 characters in any case.
    pub currency: String,
    /// To 4 decimals; zero for amounts that round to it.
    pub amount: Decimal,
}

/// The revenue that `data` reports at its top level under exactly `revenue` and `currency`; `None` if it
/// reports none.
///
/// Revenue counts if it is greater than 0 in JavaScript, which includes texts like `"12.5"`, and the currency
/// if it is not empty. Also `None` where Umami 3.1 fails to write the row: revenue that is neither number nor
/// text, from 10¹⁵ on or in a form that is not decimal, and a currency that is no text or has more than 10
/// characters. Source: Umami 3.1, `saveRevenue`.
pub fn revenue(data: &Object<'_>) -> Option<Revenue> {
    let (revenue, currency) = (data.get("revenue")?, data.get("currency")?);
    let Value::String(currency) = currency else { return None };
    let currency = text::cut(Cow::Borrowed(currency.as_ref()), UNITS_MAX);
    if currency.is_empty() || currency.chars().count() > CURRENCY_CHARS_MAX {
        return None;
    }
    let amount = match revenue {
        Value::Number(n) if *n > 0.0 => Decimal::round(*n, NUMBER_SCALE)?,
        Value::String(text) if revenue.to_number() > 0.0 => {
            // `Number()` has accepted the text, so that only white space of JavaScript's stands around the digits.
            let digits = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            Decimal::parse(digits, NUMBER_SCALE)?
        }
        _ => return None,
    };
    Some(Revenue { currency: currency.into_owned(), amount })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use proptest::prelude::*;

    const VECTORS: &str = include_str!("../tests/vectors/umami-vectors.json");

    fn with_data<T>(data: &str, read: impl FnOnce(&Object<'_>) -> T) -> T {
        match json::parse_str(data).expect("JSON") {
            Value::Object(data) => read(&data),
            _ => panic!("not an object: {data}"),
        }
    }

    fn leaves(data: &str) -> Vec<Leaf> {
        of(Release::V3_1, data)
    }

    fn of(release: Release, data: &str) -> Vec<Leaf> {
        with_data(data, |data| flatten(data, &TimeZone::UTC, release))
    }

    #[test]
    fn up_to_3_1_values_are_counted_as_their_columns_count() {
        let long = "😀".repeat(501);
        let data = format!(r#"{{"{long}": "{long}"}}"#);
        let by_units = "😀".repeat(250);
        assert_eq!(of(Release::V3_1, &data), [leaf(&"😀".repeat(500), DataType::String, &"😀".repeat(500))]);
        assert_eq!(of(Release::V3_2, &data), [leaf(&by_units, DataType::String, &by_units)]);
    }

    fn leaf(key: &str, data_type: DataType, string_value: &str) -> Leaf {
        Leaf {
            key: key.to_owned(),
            data_type,
            string_value: string_value.to_owned(),
            number_value: None,
            date_value_ms: None,
        }
    }

    #[test]
    fn rows_are_those_of_umami() {
        let field = |object: &Value<'_>, name: &str| {
            object.as_object().and_then(|it| it.get(name)).map(Value::to_json).unwrap_or_default()
        };
        let list = |object: &Value<'_>, name: &str| match object.as_object().and_then(|it| it.get(name)) {
            Some(Value::Array(list)) => list.iter().map(Value::to_json).collect::<Vec<_>>(),
            _ => panic!("no list {name}"),
        };
        let number = |decimal: Decimal| {
            let mut text = String::new();
            json::write_number(decimal.to_f64(), &mut text);
            text
        };
        let mut checked = 0;
        for vector in list(&json::parse_str(VECTORS).expect("JSON"), "data") {
            let vector = json::parse_str(&vector).expect("JSON");
            let data = field(&vector, "data");
            let rows: Vec<String> = leaves(&data)
                .iter()
                .map(|leaf| {
                    let mut row = String::from(r#"{"data_key":"#);
                    json::write_string(&leaf.key, &mut row);
                    row += &format!(r#","data_type":{},"string_value":"#, leaf.data_type.code());
                    json::write_string(&leaf.string_value, &mut row);
                    let number = leaf.number_value.map_or("null".to_owned(), number);
                    row + &format!(r#","number_value":{number},"date_value":null}}"#)
                })
                .collect();
            // Where Umami 3.1 failed while writing event_data, no row of it is left to compare with.
            if !list(&vector, "rows").is_empty() {
                assert_eq!(list(&vector, "rows"), rows, "{data}");
                checked += 1;
            }
            let revenue: Vec<String> = with_data(&data, revenue)
                .iter()
                .map(|it| {
                    let amount = number(it.amount);
                    format!(r#"{{"event_name":"ev","currency":"{}","revenue":{amount}}}"#, it.currency)
                })
                .collect();
            assert_eq!(list(&vector, "revenue"), revenue, "{data}");
        }
        assert_eq!(checked, 10);
    }

    /// Umami 3.1 answers 500 to each of these and loses all rows of the event.
    #[test]
    fn what_the_columns_cannot_hold_is_cut_or_kept_as_text() {
        assert_eq!(
            leaves(r#"{"d": "2026-13-45T99:99:99"}"#),
            [leaf("d", DataType::String, "2026-13-45T99:99:99")]
        );
        assert_eq!(leaves(r#"{"n": 1e15}"#), [leaf("n", DataType::Number, "1000000000000000.0000")]);
        assert_eq!(leaves(r#"{"n": -1e21}"#), [leaf("n", DataType::Number, "-1e+21")]);
        assert_eq!(leaves(r#"{"n": 1e999}"#), [leaf("n", DataType::Number, "Infinity")]);
        let long = "x".repeat(501);
        assert_eq!(leaves(&format!(r#"{{"s": "{long}"}}"#)), [leaf("s", DataType::String, &long[1..])]);
        assert_eq!(
            leaves(&format!(r#"{{"a": ["{long}"]}}"#)),
            [leaf("a", DataType::Array, &format!("[\"{}", &long[3..]))]
        );
        assert_eq!(leaves(&format!(r#"{{"{long}": null}}"#)), [leaf(&long[1..], DataType::Array, "null")]);
        assert_eq!(leaves(r#"{"a\u0000b": "c\u0000d"}"#), [leaf("ab", DataType::String, "cd")]);
        assert_eq!(leaves(r#"{"a": ["\u0000"]}"#), [leaf("a", DataType::Array, r#"["\u0000"]"#)]);
    }

    #[test]
    fn objects_are_descended_into_and_everything_else_is_a_leaf() {
        let number =
            |key, n, text| Leaf { number_value: Decimal::round(n, 4), ..leaf(key, DataType::Number, text) };
        let found = leaves(
            r#"{"b": true, "a.b": 1, "a": {"b": 2, "e": {}, "c": {"d": null, "f": false}},
                "l": [], "o": [{"k": [1.50, 1e21]}]}"#,
        );
        assert_eq!(
            found,
            [
                leaf("b", DataType::Boolean, "true"),
                number("a.b", 1.0, "1.0000"),
                number("a.b", 2.0, "2.0000"),
                leaf("a.c.d", DataType::Array, "null"),
                leaf("a.c.f", DataType::Boolean, "false"),
                leaf("l", DataType::Array, "[]"),
                leaf("o", DataType::Array, r#"[{"k":[1.5,1e+21]}]"#),
            ]
        );
        assert_eq!(leaves("{}"), []);
    }

    #[test]
    fn an_empty_key_has_no_dot_after_it_at_the_top_only() {
        let keys = |data| leaves(data).into_iter().map(|leaf| leaf.key).collect::<Vec<_>>();
        assert_eq!(keys(r#"{"": {"": {"a": ""}, "b": ""}, "c": {"": {"": ""}}}"#), ["a", "b", "c.."]);
        assert_eq!(keys(r#"{"\u0000": {"a": ""}}"#), [".a"]);
    }

    #[test]
    fn keys_that_grow_beyond_a_row_keep_their_beginning() {
        let part = "k".repeat(300);
        let data = format!(r#"{{"{part}": {{"{part}": {{"{part}": {{"é": 1}}}}, "x": 2}}, "y": 3}}"#);
        let keys: Vec<String> = leaves(&data).into_iter().map(|leaf| leaf.key).collect();
        assert_eq!(keys, [format!("{part}.{}", &part[..199]), format!("{part}.x"), "y".to_owned()]);
    }

    #[test]
    fn depth_is_no_limit() {
        let depth = 500;
        let data = format!("{}1{}", r#"{"k":"#.repeat(depth), "}".repeat(depth));
        let leaves = leaves(&data);
        assert_eq!((leaves.len(), leaves[0].key.len()), (1, 500));
    }

    #[test]
    fn revenue_needs_a_positive_amount_and_a_currency() {
        for (revenue_json, currency_json, expected) in [
            ("5", r#""usd""#, Some("5.0000 usd")),
            ("0.00001", r#""USD""#, Some("0.0000 USD")),
            (r#""12.5""#, r#""USD""#, Some("12.5000 USD")),
            (r#"" 12.5\n""#, r#""USD""#, Some("12.5000 USD")),
            (r#""1e2""#, r#""ABCDEFGHIJ""#, Some("100.0000 ABCDEFGHIJ")),
            ("5", r#""€€€€€€€€€€""#, Some("5.0000 €€€€€€€€€€")),
            ("5", r#""U\u0000SD""#, Some("5.0000 USD")),
            ("5", r#""\u0000""#, None),
            ("5", r#""ABCDEFGHIJK""#, None),
            ("5", r#""""#, None),
            ("5", "null", None),
            ("5", "7", None),
            ("5", r#"["USD"]"#, None),
            ("0", r#""USD""#, None),
            ("-5", r#""USD""#, None),
            ("1e15", r#""USD""#, None),
            ("1e999", r#""USD""#, None),
            (r#""12,5""#, r#""USD""#, None),
            (r#""""#, r#""USD""#, None),
            (r#""-1""#, r#""USD""#, None),
            (r#""0x10""#, r#""USD""#, None),
            (r#""Infinity""#, r#""USD""#, None),
            ("true", r#""USD""#, None),
            ("[7]", r#""USD""#, None),
            (r#"{"a": 1}"#, r#""USD""#, None),
            ("null", r#""USD""#, None),
        ] {
            let data = format!(r#"{{"revenue": {revenue_json}, "currency": {currency_json}}}"#);
            let found = with_data(&data, revenue).map(|it| format!("{} {}", it.amount, it.currency));
            assert_eq!(found.as_deref(), expected, "{data}");
        }
        assert_eq!(with_data(r#"{"revenue": 5}"#, revenue), None);
        assert_eq!(with_data(r#"{"Revenue": 5, "Currency": "USD"}"#, revenue), None);
        assert_eq!(with_data(r#"{"o": {"revenue": 5, "currency": "USD"}}"#, revenue), None);
    }

    proptest! {
        #[test]
        fn no_leaf_is_wider_than_its_columns(
            key in any::<String>(), value in any::<String>(), times in 1_usize..200,
        ) {
            let value = value.repeat(times);
            let data = serde_json::json!({
                (&key): { (key.repeat(times)): { (&key): value, "a": [value] } }
            });
            for leaf in of(Release::V3_2, &data.to_string()) {
                prop_assert!(text::utf16_len(&leaf.key) <= 500 && !leaf.key.contains('\0'));
                prop_assert!(text::utf16_len(&leaf.string_value) <= 500 && !leaf.string_value.contains('\0'));
                let last = if leaf.data_type == DataType::Array { "a" } else { key.as_str() };
                let whole = [key.as_str(), &key.repeat(times), last].join(".");
                if !key.is_empty() {
                    prop_assert_eq!(leaf.key, text::cut(Cow::Owned(whole), 500));
                }
            }
        }
    }
}
