//! Times in a unit that they are not in.

use jiff::Timestamp;

/// Seconds from here on are in the year 5138 or later: such a number is of milliseconds, or of something finer.
const SECONDS_MAX: i64 = 100_000_000_000;

/// Why a number is no time in seconds, if it seems to be one in another unit.
pub(crate) fn other_unit(number: f64) -> Option<String> {
    if !number.is_finite() || number.abs() < SECONDS_MAX as f64 || number.abs() > 9e18 {
        return None;
    }
    let (unit, per_second) = match number.abs() {
        n if n < 1e14 => ("milliseconds", 1_000),
        n if n < 1e17 => ("microseconds", 1_000_000),
        _ => ("nanoseconds", 1_000_000_000),
    };
    let seconds = number as i64 / per_second;
    let date = Timestamp::from_second(seconds).map_or_else(|_| String::new(), |date| format!(" ({date})"));
    Some(format!(
        "the time {} is in {unit}, and seconds are expected: divide it by {per_second}, which gives {seconds}{date}",
        number as i64
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_and_finer_units_are_recognised_and_the_second_is_named() {
        for (number, unit) in [
            (1_777_636_800_000.0, "milliseconds"),
            (1_777_636_800_000_000.0, "microseconds"),
            (1_777_636_800_000_000_000.0, "nanoseconds"),
        ] {
            let reason = other_unit(number).expect("another unit");
            assert!(
                reason.contains(unit) && reason.contains("1777636800 (2026-05-01T12:00:00Z)"),
                "{reason}"
            );
        }
        for seconds in [0.0, -1.0, 1_777_636_800.0, 99_999_999_999.0, f64::NAN, f64::INFINITY] {
            assert_eq!(other_unit(seconds), None, "{seconds}");
        }
        assert!(other_unit(-1_777_636_800_000.0).is_some());
    }
}
