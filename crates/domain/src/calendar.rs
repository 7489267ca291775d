//! Calendar boundaries in the collector's time zone, and how they are printed before they are hashed.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::{DateTime, time};
use jiff::tz::TimeZone;

const MS_PER_S: i64 = 1_000;
const MS_PER_HOUR: i64 = 3_600 * MS_PER_S;
const MS_PER_DAY: i64 = 24 * MS_PER_HOUR;

/// Milliseconds since 1970 of a clock's time; 0 for a clock that is set before 1970.
pub fn ms_since_1970(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Nanoseconds since 1970 of a clock's time; 0 for a clock that is set before 1970.
pub fn ns_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// How often anonymous visitors get new session ids (Umami's `SALT_ROTATION`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaltRotation {
    /// At the start of each month: the default, and the meaning of every unknown word.
    #[default]
    Month,
    /// At the start of each week, Sunday 00:00.
    Week,
    /// At the start of each day.
    Day,
}

impl SaltRotation {
    /// Reads Umami's words; anything but `day` and `week` is `month`, as there.
    pub fn parse(text: &str) -> Self {
        match text {
            "day" => Self::Day,
            "week" => Self::Week,
            _ => Self::Month,
        }
    }
}

/// Start of the month, week or day that `at_ms` lies in, in `zone`; milliseconds since 1970.
pub fn salt_start_ms(at_ms: i64, rotation: SaltRotation, zone: &TimeZone) -> i64 {
    in_zone(at_ms, zone, |local| {
        let day = local.date();
        let start = match rotation {
            SaltRotation::Month => day.first_of_month(),
            SaltRotation::Day => day,
            SaltRotation::Week => {
                let days = i64::from(day.weekday().to_sunday_zero_offset());
                day.checked_sub(jiff::Span::new().days(days)).unwrap_or(day)
            }
        };
        start.to_datetime(time(0, 0, 0, 0))
    })
    .unwrap_or_else(|| utc_salt_start_ms(at_ms, rotation))
}

/// Start of the clock hour that `at_ms` lies in, in `zone`; milliseconds since 1970.
pub fn hour_start_ms(at_ms: i64, zone: &TimeZone) -> i64 {
    in_zone(at_ms, zone, |local| local.date().to_datetime(time(local.hour(), 0, 0, 0)))
        .unwrap_or_else(|| at_ms - at_ms.rem_euclid(MS_PER_HOUR))
}

/// The instant at which `boundary` of the local time of `at_ms` lies. A time that a clock change skips is the
/// one after it, one that happens twice is the first, as JavaScript's `Date` does it. `None` in UTC, where plain
/// arithmetic gives the same in less time, and for years that the zone's rules do not reach (before −9999 or
/// after 9999), which count as UTC.
fn in_zone(at_ms: i64, zone: &TimeZone, boundary: impl Fn(DateTime) -> DateTime) -> Option<i64> {
    if *zone == TimeZone::UTC {
        return None;
    }
    let local = zone.to_datetime(Timestamp::from_millisecond(at_ms).ok()?);
    zone.to_timestamp(boundary(local)).ok().map(Timestamp::as_millisecond)
}

fn utc_salt_start_ms(at_ms: i64, rotation: SaltRotation) -> i64 {
    let days = at_ms.div_euclid(MS_PER_DAY);
    let start = match rotation {
        SaltRotation::Day => days,
        SaltRotation::Week => days - weekday(days),
        SaltRotation::Month => days - (civil(days).2 - 1),
    };
    start * MS_PER_DAY
}

/// Days since Sunday of a day counted from 1970-01-01, which was a Thursday.
const fn weekday(days: i64) -> i64 {
    (days + 4).rem_euclid(7)
}

/// Year, month (1–12) and day (1–31) of a day counted from 1970-01-01 in the proleptic Gregorian calendar.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
const fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// The day counted from 1970-01-01 of a year, month (1–12) and day of the proleptic Gregorian calendar: the inverse of
/// [`civil`]. A day beyond the month's end counts on into the next month.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
pub(crate) const fn days_from_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Prints an instant as JavaScript's `toUTCString` does: `Fri, 01 May 2026 00:00:00 GMT`.
pub fn utc_string(at_ms: i64) -> String {
    const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = at_ms.div_euclid(MS_PER_DAY);
    let second = at_ms.rem_euclid(MS_PER_DAY) / MS_PER_S;
    let (year, month, day) = civil(days);
    let sign = if year < 0 { "-" } else { "" };
    format!(
        "{}, {day:02} {} {sign}{:04} {:02}:{:02}:{:02} GMT",
        WEEKDAYS[weekday(days) as usize],
        MONTHS[(month - 1) as usize],
        year.abs(),
        second / 3_600,
        second / 60 % 60,
        second % 60,
    )
}

/// Prints an instant as JavaScript's `toISOString` does: `2026-05-01T08:20:30.123Z`, with a sign and six digits
/// for years outside 0–9999.
pub fn iso_string(at_ms: i64) -> String {
    let (year, month, day) = civil(at_ms.div_euclid(MS_PER_DAY));
    let ms = at_ms.rem_euclid(MS_PER_DAY);
    let year = match year {
        0..=9_999 => format!("{year:04}"),
        _ if year < 0 => format!("-{:06}", -year),
        _ => format!("+{year:06}"),
    };
    let second = ms / MS_PER_S;
    format!(
        "{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        ms % MS_PER_S
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_as_javascript_does() {
        assert_eq!(utc_string(1_777_593_600_000), "Fri, 01 May 2026 00:00:00 GMT");
        assert_eq!(utc_string(-1), "Wed, 31 Dec 1969 23:59:59 GMT");
        // new Date(8.64e15).toUTCString() and toISOString(), the last instant of JavaScript.
        assert_eq!(utc_string(8_640_000_000_000_000), "Sat, 13 Sep 275760 00:00:00 GMT");
        assert_eq!(iso_string(8_640_000_000_000_000), "+275760-09-13T00:00:00.000Z");
        assert_eq!(iso_string(1_777_623_630_123), "2026-05-01T08:20:30.123Z");
    }

    #[test]
    fn a_skipped_midnight_is_the_instant_after_it() {
        // In Beirut on 2022-03-27 the clock went from 00:00 to 01:00.
        let zone = TimeZone::get("Asia/Beirut").expect("a bundled zone");
        let noon = 1_648_371_600_000;
        assert_eq!(
            utc_string(salt_start_ms(noon, SaltRotation::Day, &zone)),
            "Sat, 26 Mar 2022 22:00:00 GMT"
        );
    }

    #[test]
    fn years_beyond_the_zones_rules_count_as_utc() {
        let zone = TimeZone::get("Asia/Kolkata").expect("a bundled zone");
        assert_eq!(hour_start_ms(8_640_000_000_000_000, &zone), 8_640_000_000_000_000);
    }

    proptest! {
        #[test]
        fn utc_arithmetic_agrees_with_the_calendar(at_ms in -62_135_596_800_000_i64..253_402_300_799_000) {
            let stamp = Timestamp::from_millisecond(at_ms).expect("in range");
            let local = TimeZone::UTC.to_datetime(stamp);
            prop_assert_eq!(
                utc_string(at_ms),
                local.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
            );
            let month = local.date().first_of_month().to_datetime(time(0, 0, 0, 0));
            prop_assert_eq!(
                salt_start_ms(at_ms, SaltRotation::Month, &TimeZone::UTC),
                TimeZone::UTC.to_timestamp(month).expect("in range").as_millisecond()
            );
        }

        #[test]
        fn an_hour_starts_at_most_an_hour_ago(at_ms in -62_135_596_800_000_i64..253_402_300_799_000) {
            let start = hour_start_ms(at_ms, &TimeZone::UTC);
            prop_assert!((0..MS_PER_HOUR).contains(&(at_ms - start)));
        }
    }
}
