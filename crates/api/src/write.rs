//! Values and objects as JSON text.

use dashi_domain::calendar::iso_string;
use dashi_domain::flatten::DataType;
use dashi_domain::json;
use dashi_domain::rows::DataValue;

/// A JSON object that is being written. Names are not compared: each may come once.
#[derive(Debug)]
pub struct Object(String);

impl Object {
    /// An object without members.
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    /// A member whose value is JSON already.
    pub fn json(mut self, name: &str, value: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        json::write_string(name, &mut self.0);
        self.0.push(':');
        self.0.push_str(value);
        self
    }

    /// A text.
    pub fn text(self, name: &str, value: &str) -> Self {
        self.json(name, &text(value))
    }

    /// A text, or null.
    pub fn optional(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self.json(name, "null"),
        }
    }

    /// A moment, as ISO text in UTC.
    pub fn moment(self, name: &str, at_ms: i64) -> Self {
        self.text(name, &iso_string(at_ms))
    }

    /// A moment, or null.
    pub fn optional_moment(self, name: &str, at_ms: Option<i64>) -> Self {
        match at_ms {
            Some(at_ms) => self.moment(name, at_ms),
            None => self.json(name, "null"),
        }
    }

    /// The whole text.
    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// JSON values as an array.
pub fn array(values: impl IntoIterator<Item = String>) -> String {
    let mut out = String::from("[");
    for value in values {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&value);
    }
    out.push(']');
    out
}

/// A number; null if it is not finite.
pub fn number(value: f64) -> String {
    let mut out = String::new();
    if value.is_finite() {
        json::write_number(value, &mut out);
    } else {
        out.push_str("null");
    }
    out
}

fn text(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    json::write_string(value, &mut out);
    out
}

/// A trait's value as JSON: text, number, boolean, date as ISO text, array, null.
///
/// A value that its column does not hold whole is given as the text that it holds: an array whose text was cut to 500
/// characters, a number that is infinite to JavaScript.
pub fn value(value: &DataValue) -> String {
    let stored = value.string_value.as_deref().unwrap_or_default();
    match value.data_type {
        DataType::String => text(stored),
        DataType::Number => {
            let number =
                value.number_value.map_or_else(|| stored.parse().ok(), |number| Some(number.to_f64()));
            match number.filter(|number: &f64| number.is_finite()) {
                Some(finite) => self::number(finite),
                None => text(stored),
            }
        }
        DataType::Boolean => match stored {
            "true" | "false" => stored.to_owned(),
            _ => text(stored),
        },
        DataType::Date => value.date_value_ms.map_or_else(|| text(stored), |at_ms| text(&iso_string(at_ms))),
        DataType::Array => json::parse_str(stored).map_or_else(|_| text(stored), |whole| whole.to_json()),
    }
}

/// The name of a value's type. That of `null` is `null`, though it is stored as an array.
pub fn type_name(value: &DataValue) -> &'static str {
    match value.data_type {
        DataType::String => "string",
        DataType::Number => "number",
        DataType::Boolean => "boolean",
        DataType::Date => "date",
        DataType::Array if value.string_value.as_deref() == Some("null") => "null",
        DataType::Array => "array",
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::decimal::Decimal;

    use super::*;

    fn stored(data_type: DataType, string_value: &str) -> DataValue {
        DataValue {
            data_type,
            string_value: Some(string_value.to_owned()),
            number_value: None,
            date_value_ms: None,
        }
    }

    fn number(text: &str) -> DataValue {
        DataValue { number_value: Decimal::parse(text, 4), ..stored(DataType::Number, text) }
    }

    #[test]
    fn every_type_is_the_json_that_was_sent() {
        for (row, json, name) in [
            (stored(DataType::String, "a \"b\"\n"), r#""a \"b\"\n""#, "string"),
            (stored(DataType::String, "true"), r#""true""#, "string"),
            (stored(DataType::String, ""), r#""""#, "string"),
            (number("5.0000"), "5", "number"),
            (number("-0.5000"), "-0.5", "number"),
            (number("123456789012345.6789"), "123456789012345.67", "number"),
            // No column for numbers holds these.
            (number("1000000000000000.0000"), "1000000000000000", "number"),
            (number("1e+21"), "1e+21", "number"),
            (number("Infinity"), r#""Infinity""#, "number"),
            (stored(DataType::Boolean, "true"), "true", "boolean"),
            (stored(DataType::Boolean, "false"), "false", "boolean"),
            (
                DataValue { date_value_ms: Some(1_777_623_630_123), ..stored(DataType::Date, "whatever") },
                r#""2026-05-01T08:20:30.123Z""#,
                "date",
            ),
            (stored(DataType::Array, r#"[1,"a",null,{"b":[]}]"#), r#"[1,"a",null,{"b":[]}]"#, "array"),
            (stored(DataType::Array, "null"), "null", "null"),
            (stored(DataType::Array, r#"["cut he"#), r#""[\"cut he""#, "array"),
        ] {
            assert_eq!((value(&row).as_str(), type_name(&row)), (json, name), "{row:?}");
        }
    }

    #[test]
    fn objects_and_arrays_are_json() {
        let inner = Object::new().text("a\"", "b").optional("n", None).optional("s", Some("t"));
        let whole = Object::new().json("list", &array([inner.end(), "1".to_owned()])).moment("at", 0).end();
        assert_eq!(whole, r#"{"list":[{"a\"":"b","n":null,"s":"t"},1],"at":"1970-01-01T00:00:00.000Z"}"#);
        serde_json::from_str::<serde_json::Value>(&whole).unwrap();
        assert_eq!((Object::new().end().as_str(), array([]).as_str()), ("{}", "[]"));
    }
}
