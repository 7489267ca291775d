//! Moments and durations on the command line.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// A moment in milliseconds since 1970: `2026-05-01T12:00:00Z`, or `2026-05-01` and `2026-05-01T12:00` in `zone`, or a
/// duration before now, such as `30d`.
///
/// # Errors
/// A text for people.
pub fn parse(text: &str, zone: &TimeZone, now_ms: i64) -> Result<i64, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment.as_millisecond());
    }
    if let Ok(local) = text.parse::<DateTime>() {
        let moment = zone.to_zoned(local).map_err(|error| format!("{text:?}: {error}"))?;
        return Ok(moment.timestamp().as_millisecond());
    }
    let ago = duration_ms(text).map_err(|_| {
        format!(
            "{text:?} is no moment: give a time such as 2026-05-01T12:00:00Z, a date such as 2026-05-01, or a duration \
             before now such as 30d"
        )
    })?;
    Ok(now_ms - ago)
}

/// A duration in milliseconds, not negative: `30d`, `12h`, `90 minutes`. A day has 24 hours.
///
/// # Errors
/// A text for people.
pub fn duration_ms(text: &str) -> Result<i64, String> {
    let refused = || format!("{text:?} is no duration: give one such as 30d, 12h or 90m");
    let span: Span = text.parse().map_err(|_| refused())?;
    let length: SignedDuration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| refused())?;
    i64::try_from(length.as_millis()).ok().filter(|ms| *ms >= 0).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_every_form() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let now_ms = 1_800_000_000_000;
        let at = |text: &str| parse(text, &zone, now_ms);
        assert_eq!(at("2026-05-01T12:00:00Z"), Ok(1_777_636_800_000));
        assert_eq!(at("2026-05-01T12:00:00.123+02:00"), Ok(1_777_629_600_123));
        assert_eq!(at("2026-05-01"), Ok(1_777_586_400_000));
        assert_eq!(at("2026-05-01T01:00"), Ok(1_777_590_000_000));
        assert_eq!(at("30d"), Ok(now_ms - 30 * 86_400_000));
        assert_eq!(at("1h30m"), Ok(now_ms - 5_400_000));
        for wrong in ["", "yesterday", "-3d", "2026-13-01", "30"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }
}
