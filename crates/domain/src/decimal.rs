//! Exact decimals, as the number columns of the projection hold them.

use std::fmt;

/// An exact number with a fixed count of fractional digits, as PostgreSQL's `numeric(p, s)`.
///
/// Its magnitude is below 10¹⁵. There is no negative zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decimal {
    units: i128,
    scale: u8,
}

impl Decimal {
    const INTEGER_DIGITS_MAX: u8 = 15;
    const SCALE_MAX: u8 = 18;

    /// Rounds the shortest decimal form of `n` to `scale` fractional digits, ties away from zero, as
    /// PostgreSQL does when it reads that text.
    ///
    /// `None` if `n` is not finite or the result is 10¹⁵ or more in magnitude, or `scale` is above 18.
    pub fn round(n: f64, scale: u8) -> Option<Self> {
        if !n.is_finite() || scale > Self::SCALE_MAX {
            return None;
        }
        if n.trunc() == n && n.abs() < 1e15 {
            return Some(Self { units: i128::from(n as i64) * 10_i128.pow(u32::from(scale)), scale });
        }
        Self::parse(ryu_js::Buffer::new().format_finite(n), scale)
    }

    /// Reads a decimal number, with or without exponent, and rounds it to `scale` fractional digits, ties
    /// away from zero.
    ///
    /// `None` for any other text (spaces, `Infinity`, `0x10`, `12,5`, `1_000`), if the result is 10¹⁵ or more
    /// in magnitude, or if `scale` is above 18.
    pub fn parse(text: &str, scale: u8) -> Option<Self> {
        if scale > Self::SCALE_MAX {
            return None;
        }
        let (negative, text) = match text.as_bytes() {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
        let exponent = match text.get(end + 1..) {
            Some(digits) => exponent(digits)?,
            None => 0,
        };
        let point = text[..end].iter().position(|byte| *byte == b'.').unwrap_or(end);
        let integer = &text[..point];
        let fraction = text[..end].get(point + 1..).unwrap_or(b"");
        let digits = || integer.iter().chain(fraction);
        if integer.len() + fraction.len() == 0 || !digits().all(u8::is_ascii_digit) {
            return None;
        }

        // How many of the digits, from the first on, belong to the result.
        let kept = exponent.saturating_add(integer.len() as i64).saturating_add(i64::from(scale));
        let limit = 10_i128.pow(u32::from(Self::INTEGER_DIGITS_MAX + scale));
        let kept_digits = usize::try_from(kept).unwrap_or(0);
        let mut units = 0;
        for digit in digits().take(kept_digits) {
            units = units * 10 + i128::from(digit - b'0');
            if units >= limit {
                return None;
            }
        }
        let missing = kept_digits.saturating_sub(integer.len() + fraction.len());
        if units != 0 {
            let factor = 10_i128.checked_pow(u32::try_from(missing).ok()?)?;
            units = units.checked_mul(factor)?;
        }
        let rounds_up = kept >= 0 && digits().nth(kept_digits).is_some_and(|digit| *digit >= b'5');
        units += i128::from(rounds_up);
        (units < limit).then_some(Self { units: if negative { -units } else { units }, scale })
    }

    /// The number times 10 to the power of [`Self::scale`].
    pub const fn units(self) -> i128 {
        self.units
    }

    /// Count of fractional digits, 0–18.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// The nearest binary number.
    pub fn to_f64(self) -> f64 {
        const EXACT_MAX: u128 = 1 << 53;
        if self.units.unsigned_abs() <= EXACT_MAX {
            // Both are exact, so that the quotient is rounded once.
            return self.units as f64 / 10_f64.powi(i32::from(self.scale));
        }
        self.to_string().parse().unwrap_or(f64::NAN)
    }
}

/// Always prints [`Decimal::scale`] fractional digits: `5.0000`, `-0.5000`.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.units < 0 { "-" } else { "" };
        let units = self.units.unsigned_abs();
        if self.scale == 0 {
            return write!(f, "{sign}{units}");
        }
        let one = 10_u128.pow(u32::from(self.scale));
        write!(f, "{sign}{}.{:0width$}", units / one, units % one, width = usize::from(self.scale))
    }
}

/// The digits after `e`, with an optional sign. One that is too long for the type is as large as the type
/// holds: the number is zero or too large in either case.
fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits
        .iter()
        .fold(0_i64, |sum, digit| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Some(if negative { -value } else { value })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_rounded_on_their_shortest_form_away_from_zero() {
        for (n, scale, expected) in [
            (0.05, 1, Some("0.1")),
            (0.25, 1, Some("0.3")),
            (-0.25, 1, Some("-0.3")),
            (0.04, 1, Some("0.0")),
            (1_234.56, 1, Some("1234.6")),
            (60_000.0, 1, Some("60000.0")),
            (9.96, 1, Some("10.0")),
            (5e-5, 4, Some("0.0001")),
            (4.999e-5, 4, Some("0.0000")),
            (-1e-5, 4, Some("0.0000")),
            (-0.0, 4, Some("0.0000")),
            (-0.5, 4, Some("-0.5000")),
            // toFixed(4) gives 8.3449 and 1.0050 here, from the binary values.
            (8.34495, 4, Some("8.3450")),
            (1.00495, 4, Some("1.0050")),
            (5e-324, 4, Some("0.0000")),
            (999_999_999_999_999.0, 4, Some("999999999999999.0000")),
            (999_999_999_999_999.9, 4, Some("999999999999999.9000")),
            // Exactly in the middle between two shortest forms; Node.js 20 prints the even one.
            (3_784_312_173_713.031_2, 4, Some("3784312173713.0312")),
            (999_999_999_999_999.9, 0, None),
            (-1e15, 4, None),
            (1e300, 4, None),
            (1.5, 0, Some("2")),
            (1.5, 18, Some("1.500000000000000000")),
            (1.5, 19, None),
            (f64::NAN, 4, None),
            (f64::NEG_INFINITY, 4, None),
        ] {
            assert_eq!(Decimal::round(n, scale).map(|it| it.to_string()).as_deref(), expected, "{n:e}");
        }
    }

    #[test]
    fn decimals_are_read_from_text() {
        for (text, expected) in [
            ("12.5", Some("12.5000")),
            ("+.5", Some("0.5000")),
            ("-5.", Some("-5.0000")),
            ("00012.34565", Some("12.3457")),
            ("12345e-4", Some("1.2345")),
            ("12345e-6", Some("0.0123")),
            ("5e-5", Some("0.0001")),
            ("50000e-10", Some("0.0000")),
            ("0.9999999", Some("1.0000")),
            ("1.5E+3", Some("1500.0000")),
            ("1e14", Some("100000000000000.0000")),
            ("1e15", None),
            ("999999999999999.99994", Some("999999999999999.9999")),
            ("999999999999999.99995", None),
            ("0e99999999999999999999", Some("0.0000")),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", Some("0.0000")),
            ("-1e-9", Some("0.0000")),
            ("", None),
            (".", None),
            ("-", None),
            ("e5", None),
            ("1e", None),
            ("1e+", None),
            ("1e5.0", None),
            ("1.2.3", None),
            ("12,5", None),
            (" 1", None),
            ("1_000", None),
            ("0x10", None),
            ("--1", None),
            ("Infinity", None),
            ("NaN", None),
            ("１", None),
        ] {
            assert_eq!(Decimal::parse(text, 4).map(|it| it.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    pub(crate) fn any_number() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>(),
            -1e6..1e6,
            -1e-3..1e-3,
            -1e21..1e21,
            // Ties: odd multiples of 1/32 and of half a unit.
            (-1_000_000_i64..1_000_000).prop_map(|n| n as f64 / 32.0),
            (-1_000_000_i64..1_000_000).prop_map(|n| n as f64 / 20_000.0),
        ]
    }

    /// Rounds a plain decimal text to `scale` digits, ties away from zero, by carrying through its digits.
    pub(crate) fn round_text(text: &str, scale: usize) -> String {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, ""));
        let mut digits: Vec<u8> = integer.bytes().chain(fraction.bytes()).collect();
        digits.resize((integer.len() + scale + 1).max(digits.len()), b'0');
        let up = digits[integer.len() + scale] >= b'5';
        digits.truncate(integer.len() + scale);
        let mut carry = up;
        for digit in digits.iter_mut().rev() {
            if carry {
                carry = *digit == b'9';
                *digit = if carry { b'0' } else { *digit + 1 };
            }
        }
        let digits = String::from_utf8(digits).expect("digits");
        let carry = if carry { "1" } else { "" };
        let (integer, fraction) = digits.split_at(integer.len());
        format!("{carry}{integer}.{fraction}")
    }

    proptest! {
        #[test]
        fn decimals_round_the_shortest_form(n in any_number(), scale in 1_u8..=6) {
            let n = n % 9e14;
            let decimal = Decimal::round(n, scale).expect("in range");
            // Of two shortest forms that are equally near, JavaScript takes the even one, Rust's Display does not.
            // Display has no exponent, which JavaScript has only for numbers so small that the case is none.
            let mut buffer = ryu_js::Buffer::new();
            let shortest = buffer.format_finite(n.abs());
            let shortest = if shortest.contains('e') { n.abs().to_string() } else { shortest.to_owned() };
            let expected = round_text(&shortest, usize::from(scale));
            let text = decimal.to_string();
            prop_assert_eq!(text.trim_start_matches('-'), expected);
            prop_assert_eq!(decimal.units() < 0, n < 0.0 && decimal.units() != 0);
        }

        #[test]
        fn a_rounded_decimal_stays_as_it_is(n in any_number(), scale in 0_u8..=6) {
            if let Some(decimal) = Decimal::round(n, scale) {
                prop_assert_eq!(Decimal::parse(&decimal.to_string(), scale), Some(decimal));
                // Beyond 15 digits a binary number need not hold the decimal.
                if decimal.units().abs() < 10_i128.pow(15) {
                    prop_assert_eq!(Decimal::round(decimal.to_f64(), scale), Some(decimal));
                }
                prop_assert_eq!(Some(decimal.to_f64() + 0.0), decimal.to_string().parse::<f64>().ok());
            }
        }

        #[test]
        fn no_text_breaks_a_decimal(
            text in "[-+]?[0-9]{0,25}[.]?[0-9]{0,25}([eE][-+]?[0-9]{0,4})?", scale in 0_u8..=18,
        ) {
            let decimal = Decimal::parse(&text, scale);
            let number: Option<f64> = text.parse().ok();
            match (decimal, number) {
                (Some(decimal), Some(number)) => {
                    let rounding = 0.5001 * 10_f64.powi(-i32::from(scale)) + number.abs() * 1e-15;
                    prop_assert!((decimal.to_f64() - number).abs() <= rounding);
                }
                (None, Some(number)) => prop_assert!(number.abs() >= 999_999_999_999_999.0),
                (decimal, None) => prop_assert_eq!(decimal, None),
            }
        }
    }
}
