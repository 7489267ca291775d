//! JavaScript's coercions: `Boolean(value)`, `Number(value)`, `n.toFixed(4)` and white space. Identifiers and rows depend
//! on them wherever Umami's collector coerces a value. Source: ECMA-262.

use crate::json::Value;

impl Value<'_> {
    /// JavaScript's `Boolean(value)`: false for `null`, `false`, zero, NaN and the empty string.
    pub fn is_truthy(&self) -> bool {
        match self {
            Value::Null => false,
            Value::Bool(truth) => *truth,
            Value::Number(number) => *number != 0.0 && !number.is_nan(),
            Value::String(text) => !text.is_empty(),
            Value::Array(_) | Value::Object(_) => true,
        }
    }

    /// JavaScript's `Number(value)`; NaN where that is NaN.
    ///
    /// | value | number |
    /// |---|---|
    /// | `null`, `false`, `""`, `[]` | 0 |
    /// | `true` | 1 |
    /// | string | its `StringNumericLiteral` after trimming: decimal, `0x`, `0o`, `0b`, `Infinity` |
    /// | array | that of the array's text: `[7]` and `["7"]` are 7, `[null]` is 0, `[true]` and `[1,2]` NaN |
    /// | object | NaN (JavaScript throws for one with a key `toString`; NaN here too) |
    ///
    /// Source: ECMA-262, `ToNumber` and `Array.prototype.join`.
    pub fn to_number(&self) -> f64 {
        match self {
            Value::Null => 0.0,
            Value::Bool(truth) => f64::from(u8::from(*truth)),
            Value::Number(number) => *number,
            Value::String(text) => string_to_number(text),
            Value::Array(items) => match items.as_slice() {
                [] => 0.0,
                // The text of a lone element is the text of the array. A boolean's is a word, a number's
                // gives the number again, all but the sign of -0.
                [Value::Bool(_)] => f64::NAN,
                [Value::Number(number)] => *number + 0.0,
                [item] => item.to_number(),
                // The text has a comma in it.
                [_, _, ..] => f64::NAN,
            },
            Value::Object(_) => f64::NAN,
        }
    }
}

/// ECMA-262 `StringToNumber`.
fn string_to_number(text: &str) -> f64 {
    let text = text.trim_matches(is_space);
    if text.is_empty() {
        return 0.0;
    }
    match text.as_bytes() {
        // No sign may stand before a prefix.
        [b'0', b'x' | b'X', digits @ ..] => return power_of_two_radix(digits, 4),
        [b'0', b'o' | b'O', digits @ ..] => return power_of_two_radix(digits, 3),
        [b'0', b'b' | b'B', digits @ ..] => return power_of_two_radix(digits, 1),
        _ => {}
    }
    let (negative, unsigned) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = if unsigned == "Infinity" {
        f64::INFINITY
    } else if is_unsigned_decimal(unsigned.as_bytes()) {
        unsigned.parse().unwrap_or(f64::NAN)
    } else {
        f64::NAN
    };
    if negative { -magnitude } else { magnitude }
}

/// ECMA-262 `WhiteSpace` and `LineTerminator`. Unlike Rust's, it has U+FEFF and lacks U+0085.
pub(crate) fn is_space(char: char) -> bool {
    matches!(
        char,
        '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'
            ..='\u{200a}' | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}'
    )
}

/// ECMA-262 `StrUnsignedDecimalLiteral` without `Infinity`: `1`, `1.`, `.5`, `1.5`, each with an exponent or
/// without. Rust's own parser would also take `inf` and `nan`.
fn is_unsigned_decimal(text: &[u8]) -> bool {
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let before_point = digits(0);
    let mut at = before_point;
    let mut after_point = 0;
    if text.get(at) == Some(&b'.') {
        after_point = digits(at + 1);
        at += 1 + after_point;
    }
    if before_point + after_point == 0 {
        return false;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        let exponent = digits(at);
        if exponent == 0 {
            return false;
        }
        at += exponent;
    }
    at == text.len()
}

/// The value of digits of `bits` bits each, rounded to nearest even; NaN if there is none or a wrong one.
fn power_of_two_radix(digits: &[u8], bits: u32) -> f64 {
    if digits.is_empty() {
        return f64::NAN;
    }
    let mut mantissa = 0_u64;
    let mut exponent = 0_i32;
    for digit in digits {
        let Some(digit) = char::from(*digit).to_digit(1 << bits) else { return f64::NAN };
        if mantissa.leading_zeros() >= bits {
            mantissa = (mantissa << bits) | u64::from(digit);
        } else {
            // At least 61 bits are there and 53 are kept, so of the rest it only matters whether it is zero.
            mantissa |= u64::from(digit != 0);
            exponent = exponent.saturating_add(bits as i32);
        }
    }
    // Rounds once: scaling by a power of two is exact or overflows, and with a mantissa above 2^60 the power
    // overflows only where the product does.
    mantissa as f64 * 2_f64.powi(exponent)
}

/// JavaScript's `n.toFixed(4)`: four decimals, ties of the exact binary value away from zero.
///
/// `-0` gives `0.0000`, a negative number that rounds to zero keeps its sign (`-0.0000`), and from 10²¹ on
/// the text is that of `String(n)`. Source: ECMA-262, `Number.prototype.toFixed`.
pub(crate) fn to_fixed4(n: f64) -> String {
    const MANTISSA_BITS: u64 = 52;
    const UNITS_PER_ONE: u128 = 10_000;
    if n.is_nan() || n.abs() >= 1e21 {
        return ryu_js::Buffer::new().format(n).to_owned();
    }
    let bits = n.abs().to_bits();
    let fraction = bits & ((1 << MANTISSA_BITS) - 1);
    let (mantissa, exponent) = match bits >> MANTISSA_BITS {
        0 => (fraction, -1_074),
        biased => (fraction | 1 << MANTISSA_BITS, biased as i32 - 1_075),
    };
    // The mantissa is below 2⁵³ and 10⁴ below 2¹⁴; below 10²¹ the exponent is at most 17.
    let exact = u128::from(mantissa) * UNITS_PER_ONE;
    let units = match exponent {
        0.. => exact << exponent,
        // Half a unit is 2⁶⁷ or more, which `exact` never reaches.
        ..-67 => 0,
        _ => (exact + (1 << (-exponent - 1))) >> -exponent,
    };
    let sign = if n < 0.0 { "-" } else { "" };
    match u64::try_from(units) {
        // The common case; division of 128 bits is several times slower.
        Ok(units) => format!("{sign}{}.{:04}", units / 10_000, units % 10_000),
        Err(_) => format!("{sign}{}.{:04}", units / UNITS_PER_ONE, units % UNITS_PER_ONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decimal::tests::{any_number, round_text};
    use crate::json::parse_str;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Value<'_> {
        parse_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn to_number_is_javascripts() {
        for (text, expected) in [
            ("null", 0.0),
            ("true", 1.0),
            ("false", 0.0),
            ("1.5", 1.5),
            (r#""""#, 0.0),
            (r#"" \t\n\r\u000b\u000c\u00a0\ufeff\u2028\u2029\u3000\u1680\u202f\u205f\u2003 ""#, 0.0),
            (r#""\ufeff 42 \u2029""#, 42.0),
            (r#""1700000000""#, 1_700_000_000.0),
            (r#""-1.5e3""#, -1500.0),
            (r#""+1""#, 1.0),
            (r#""1.""#, 1.0),
            (r#"".5""#, 0.5),
            (r#""-.5E+1""#, -5.0),
            (r#""007""#, 7.0),
            (r#""0x1F""#, 31.0),
            (r#""0XfF""#, 255.0),
            (r#""0o17""#, 15.0),
            (r#""0B101""#, 5.0),
            (r#""0x0000000000000000000000001""#, 1.0),
            (r#""0x20000000000001""#, 9007199254740992.0),
            (r#""0x20000000000003""#, 9007199254740996.0),
            (r#""0x200000000000010000000000000001""#, 9007199254740994.0 * 2_f64.powi(64)),
            (r#""0x1000000000000080000000000000001""#, 4503599627370497.0 * 2_f64.powi(68)),
            (r#""Infinity""#, f64::INFINITY),
            (r#""+Infinity""#, f64::INFINITY),
            (r#""-Infinity""#, f64::NEG_INFINITY),
            (r#""1e400""#, f64::INFINITY),
            ("[]", 0.0),
            ("[7]", 7.0),
            (r#"["5"]"#, 5.0),
            (r#"[""]"#, 0.0),
            ("[[3]]", 3.0),
            ("[[[]]]", 0.0),
            ("[null]", 0.0),
            ("[[null]]", 0.0),
            ("[1e400]", f64::INFINITY),
        ] {
            assert_eq!(parsed(text).to_number(), expected, "{text}");
        }
        assert!(parsed("[-0]").to_number().is_sign_positive());
        assert!(parsed("\"-0\"").to_number().is_sign_negative());
        assert_eq!(Value::String(format!("0x{}", "f".repeat(100_000)).into()).to_number(), f64::INFINITY);
        for text in [
            "{}",
            "[1,2]",
            "[null,null]",
            "[true]",
            "[{}]",
            "[[1,2]]",
            r#""abc""#,
            r#""1_000""#,
            r#""1,5""#,
            r#""1 2""#,
            r#"".""#,
            r#""+""#,
            r#""-""#,
            r#""e5""#,
            r#""1e""#,
            r#""1e+""#,
            r#""0x""#,
            r#""0xg""#,
            r#""0b2""#,
            r#""0o8""#,
            r#""-0x10""#,
            r#""+0b1""#,
            r#""inf""#,
            r#""infinity""#,
            r#""nan""#,
            r#""NaN""#,
            r#""--1""#,
            r#""1n""#,
            r#""\u00851""#,
            r#""\u180e1""#,
            r#""é""#,
        ] {
            assert!(parsed(text).to_number().is_nan(), "{text}");
        }
    }

    #[test]
    fn truth_is_javascripts() {
        for text in ["null", "false", "0", "-0", r#""""#] {
            assert!(!parsed(text).is_truthy(), "{text}");
        }
        for text in ["true", "1", "-1", "1e400", r#"" ""#, r#""0""#, "[]", "{}"] {
            assert!(parsed(text).is_truthy(), "{text}");
        }
        assert!(!Value::Number(f64::NAN).is_truthy());
    }

    proptest! {
        #[test]
        fn decimal_text_gives_its_number(number in any::<f64>()) {
            let text = format!("{number:e}");
            if number.is_finite() {
                prop_assert_eq!(parsed(&text), Value::Number(number));
                prop_assert_eq!(Value::String(text.into()).to_number(), number);
                let shortest = Value::Number(number).to_json();
                prop_assert_eq!(parsed(&shortest), Value::Number(number));
            }
        }

        #[test]
        fn hexadecimal_text_gives_its_number(number in any::<u128>()) {
            let number_text = format!("{number:#x}");
            prop_assert_eq!(string_to_number(&number_text), number as f64);
            prop_assert_eq!(string_to_number(&format!("{number:#o}")), number as f64);
            prop_assert_eq!(string_to_number(&format!("{number:#b}")), number as f64);
        }
    }

    /// Expectations are what Node.js 20 prints.
    #[test]
    fn fixed_decimals_are_those_of_javascript() {
        for (n, expected) in [
            (0.0, "0.0000"),
            (-0.0, "0.0000"),
            (-5.0, "-5.0000"),
            (0.03125, "0.0313"),
            (-0.03125, "-0.0313"),
            (5e-5, "0.0001"),
            (4.9e-5, "0.0000"),
            (-1e-5, "-0.0000"),
            (1.00005, "1.0001"),
            (1.00015, "1.0002"),
            (5e-324, "0.0000"),
            (123_456.789_05, "123456.7891"),
            (0.99995, "1.0000"),
            (999_999_999_999_999.9, "999999999999999.8750"),
            (1_844_674_407_370_955.2, "1844674407370955.2500"),
            (18_446_744_073_709_551_616.0, "18446744073709551616.0000"),
            (123_456_789_012_345_680_000.0, "123456789012345683968.0000"),
            (9.999999999999999e20, "999999999999999868928.0000"),
            (1e21, "1e+21"),
            (-1.7976931348623157e308, "-1.7976931348623157e+308"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(to_fixed4(n), expected, "{n:e}");
        }
    }

    proptest! {
        #[test]
        fn fixed_decimals_round_the_exact_value(n in any_number()) {
            let n = n % 1e21;
            // A binary number has at most 1074 fractional digits.
            let sign = if n < 0.0 { "-" } else { "" };
            prop_assert_eq!(to_fixed4(n), format!("{sign}{}", round_text(&format!("{:.1074}", n.abs()), 4)));
        }
    }
}
