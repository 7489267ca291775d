//! Texts that are dates in an event's data, read as V8 reads them.

use jiff::civil::{Date, DateTime, time};
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::calendar::days_from_1970;
use crate::umami::Release;

const MS_PER_S: i64 = 1_000;
const MS_PER_MINUTE: i64 = 60 * MS_PER_S;
const MS_PER_HOUR: i64 = 60 * MS_PER_MINUTE;
const MS_PER_DAY: i64 = 24 * MS_PER_HOUR;

/// The instant of a text in Umami's form of a date; `None` for other texts and for those that are invalid dates to V8.
///
/// V8 accepts day 31 in every month and carries it over, and hour 24 only as 24:00:00.000 (ECMA-262, "Date
/// Time String Format"; V8, `dateparser-inl.h`).
pub(crate) fn date_ms(text: &str, tz: &TimeZone, release: Release) -> Option<i64> {
    const FORM: &[u8; 29] = b"dddd-dd-ddTdd:dd:dd.ddd+dd:dd";
    let bytes = text.as_bytes();
    let (local, zone) = match bytes.len() {
        19 | 23 => (bytes, None),
        24 | 29 => (&bytes[..23], Some(&bytes[23..])),
        20 | 25 if release >= Release::V3_2 => (&bytes[..19], Some(&bytes[19..])),
        _ => return None,
    };
    let has_form = |bytes: &[u8], form: &[u8]| {
        bytes
            .iter()
            .zip(form)
            .all(|(byte, form)| if *form == b'd' { byte.is_ascii_digit() } else { byte == form })
    };
    let zone_has_form = zone.is_none_or(|zone| zone == b"Z" || has_form(zone, &FORM[23..]));
    if !has_form(local, FORM) || !zone_has_form {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let [year, month, day] = [&local[..4], &local[5..7], &local[8..10]].map(number);
    let [hour, minute, second] = [&local[11..13], &local[14..16], &local[17..19]].map(number);
    let ms = local.get(20..).map_or(0, number);

    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time =
        hour < 24 && minute < 60 && second < 60 || hour == 24 && minute == 0 && second == 0 && ms == 0;
    if !is_date || !is_time {
        return None;
    }
    let local_ms = days_from_1970(year, month, day) * MS_PER_DAY
        + hour * MS_PER_HOUR
        + minute * MS_PER_MINUTE
        + second * MS_PER_S
        + ms;
    let offset_ms = match zone {
        Some([b'+', hour @ .., b':', minute_high, minute_low]) => {
            let (hour, minute) = (number(hour), number(&[*minute_high, *minute_low]));
            if hour > 23 || minute > 59 {
                return None;
            }
            hour * MS_PER_HOUR + minute * MS_PER_MINUTE
        }
        Some(_) => 0,
        None => {
            let days = day - 1 + hour / 24;
            let date = Date::new(year as i16, month as i8, 1)
                .and_then(|first| first.checked_add(jiff::Span::new().days(days)))
                // Only the midnight that ends the year 9999.
                .unwrap_or(Date::MAX);
            let clock = time((hour % 24) as i8, minute as i8, second as i8, 0);
            local_offset_ms(date.to_datetime(clock), tz)
        }
    };
    Some(local_ms - offset_ms)
}

/// How far `tz` is ahead of UTC at a local time. A time that a clock change skips or repeats counts with the
/// offset before the change (ECMA-262, `LocalTime` and `UTC`).
fn local_offset_ms(local: DateTime, tz: &TimeZone) -> i64 {
    let offset = match tz.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => before,
    };
    i64::from(offset.seconds()) * MS_PER_S
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::calendar;
    use crate::flatten::{DataType, flatten};
    use crate::json::{self, Value};

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a bundled zone")
    }

    fn date_ms(text: &str, tz: &TimeZone) -> Option<i64> {
        super::date_ms(text, tz, Release::V3_1)
    }

    /// The row that `flatten` makes of a text.
    fn leaf(release: Release, text: &str) -> (DataType, String, Option<i64>) {
        let data = format!(r#"{{"at": "{text}"}}"#);
        let Ok(Value::Object(data)) = json::parse_str(&data) else { panic!("not an object: {data}") };
        let leaf = flatten(&data, &TimeZone::UTC, release).remove(0);
        (leaf.data_type, leaf.string_value, leaf.date_value_ms)
    }

    #[test]
    fn from_3_2_on_a_date_needs_no_milliseconds_to_name_its_zone() {
        let ms = 1_777_623_630_000;
        for (text, expected) in [
            ("2026-05-01T08:20:30Z", Some(ms)),
            ("2026-05-01T08:20:30+02:00", Some(ms - 2 * MS_PER_HOUR)),
            ("2026-05-01T08:20:30", Some(ms)),
            ("2026-05-01T08:20:30.123", Some(ms + 123)),
            ("2026-05-01T08:20:30.123Z", Some(ms + 123)),
            ("2026-05-01T24:00:00Z", Some(1_777_680_000_000)),
            // No date in any version.
            ("2026-05-01T08:20:30-02:00", None),
            ("2026-05-01T08:20:30z", None),
            ("2026-05-01T08:20:30.1Z", None),
            ("2026-05-01T08:20:30.Z", None),
            ("2026-05-01T08:20:30+0200", None),
            ("2026-05-01T08:20:30+24:00", None),
            ("2026-05-01T08:20:30 ", None),
            ("2026-05-01T08:20:30ZZZZZZ", None),
            ("2026-05-01T08:20Z", None),
            ("2026-05-01 08:20:30Z", None),
            ("2026-13-01T08:20:30Z", None),
            ("2026-05-01", None),
        ] {
            for release in [Release::V3_2, Release::V3_3, Release::V3_4] {
                assert_eq!(super::date_ms(text, &TimeZone::UTC, release), expected, "{text}");
            }
        }
        for release in [Release::V3_0, Release::V3_1] {
            assert_eq!(super::date_ms("2026-05-01T08:20:30Z", &TimeZone::UTC, release), None);
        }
        assert_eq!(
            leaf(Release::V3_2, "2026-05-01T08:20:30Z"),
            (DataType::Date, "2026-05-01T08:20:30.000Z".to_owned(), Some(ms))
        );
    }

    /// Expectations are those of Node.js 20, where `None` is an invalid date.
    #[test]
    fn dates_are_read_as_v8_does() {
        for (text, tz, expected) in [
            ("2026-05-01T08:20:30.123Z", "UTC", Some("2026-05-01T08:20:30.123Z")),
            ("2026-05-01T08:20:30.123+02:00", "UTC", Some("2026-05-01T06:20:30.123Z")),
            ("2026-05-01T08:20:30.123+23:59", "UTC", Some("2026-04-30T08:21:30.123Z")),
            ("2026-05-01T08:20:30.123+24:00", "UTC", None),
            ("2026-05-01T08:20:30.123+23:60", "UTC", None),
            ("2026-05-01T08:20:30", "UTC", Some("2026-05-01T08:20:30.000Z")),
            ("2026-05-01T08:20:30.999", "Asia/Kolkata", Some("2026-05-01T02:50:30.999Z")),
            ("2026-02-30T00:00:00", "UTC", Some("2026-03-02T00:00:00.000Z")),
            ("2026-02-30T12:00:00", "America/New_York", Some("2026-03-02T17:00:00.000Z")),
            ("2026-04-31T10:00:00.999", "UTC", Some("2026-05-01T10:00:00.999Z")),
            ("2026-02-32T00:00:00", "UTC", None),
            ("2026-01-00T00:00:00", "UTC", None),
            ("2026-00-01T00:00:00", "UTC", None),
            ("2026-13-01T00:00:00", "UTC", None),
            ("2026-01-01T24:00:00", "UTC", Some("2026-01-02T00:00:00.000Z")),
            ("2026-01-01T24:00:00.000+01:00", "UTC", Some("2026-01-01T23:00:00.000Z")),
            ("2026-01-01T24:00:00.001Z", "UTC", None),
            ("2026-01-01T24:00:01", "UTC", None),
            ("2026-01-01T25:00:00", "UTC", None),
            ("2026-01-01T00:60:00", "UTC", None),
            ("2026-01-01T00:00:60", "UTC", None),
            ("0000-01-01T00:00:00.000+01:00", "UTC", Some("-000001-12-31T23:00:00.000Z")),
            ("0000-01-01T00:00:00", "Europe/Berlin", Some("-000001-12-31T23:06:32.000Z")),
            ("9999-12-31T24:00:00", "UTC", Some("+010000-01-01T00:00:00.000Z")),
            ("9999-12-31T24:00:00", "America/New_York", Some("+010000-01-01T05:00:00.000Z")),
            ("9999-12-31T23:59:59", "America/New_York", Some("+010000-01-01T04:59:59.000Z")),
            ("1890-06-01T00:00:00", "Europe/Berlin", Some("1890-05-31T23:06:32.000Z")),
            // Skipped and repeated hours.
            ("2026-03-29T02:30:00", "Europe/Berlin", Some("2026-03-29T01:30:00.000Z")),
            ("2026-10-25T02:30:00", "Europe/Berlin", Some("2026-10-25T00:30:00.000Z")),
            ("2026-03-08T02:30:00", "America/New_York", Some("2026-03-08T07:30:00.000Z")),
            ("2026-11-01T01:30:00", "America/New_York", Some("2026-11-01T05:30:00.000Z")),
            ("2026-10-04T02:15:00", "Australia/Lord_Howe", Some("2026-10-03T15:45:00.000Z")),
            ("2026-04-05T01:45:00", "Australia/Lord_Howe", Some("2026-04-04T14:45:00.000Z")),
        ] {
            let at_ms = date_ms(text, &zone(tz));
            assert_eq!(at_ms.map(calendar::iso_string).as_deref(), expected, "{text} in {tz}");
        }
    }

    #[test]
    fn a_date_needs_milliseconds_before_its_zone() {
        for text in [
            "2026-05-01T08:20:30Z",
            "2026-05-01T08:20:30+02:00",
            "2026-05-01T08:20:30.123-02:00",
            "2026-05-01T08:20:30.123+0200",
            "2026-05-01T08:20:30.123z",
            "2026-05-01T08:20:30.12",
            "2026-05-01T08:20:30.1234",
            "2026-05-01T08:20",
            "2026-05-01 08:20:30",
            "2026-05-01t08:20:30",
            "2026-05-01",
            " 2026-05-01T08:20:30",
            "2026-05-01T08:20:30\n",
            "２026-05-01T08:20",
            "d026-05-01T08:20:30",
            "+2026-05-01T08:20:30.123",
            "",
        ] {
            assert_eq!(date_ms(text, &TimeZone::UTC), None, "{text:?}");
        }
        assert_eq!(
            leaf(Release::V3_1, "2026-05-01T08:20:30"),
            (DataType::Date, "2026-05-01T08:20:30.000Z".to_owned(), Some(1_777_623_630_000))
        );
    }

    proptest! {
        #[test]
        fn dates_of_four_digit_years_are_read_back(at_ms in -62_167_219_200_000_i64..253_402_300_800_000) {
            prop_assert_eq!(date_ms(&calendar::iso_string(at_ms), &TimeZone::UTC), Some(at_ms));
        }

        #[test]
        fn no_text_breaks_a_date(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9](:[0-5][0-9]){2}([.][0-9]{3}([+][0-9]{2}:[0-9]{2}|Z)?)?",
        ) {
            for tz in [TimeZone::UTC, zone("Europe/Berlin"), zone("America/New_York")] {
                let at_ms = date_ms(&text, &tz);
                // A day to either side for zones, and the first day of the year 10000.
                let range = -62_167_400_000_000..253_402_500_000_000;
                prop_assert!(at_ms.is_none_or(|at_ms| range.contains(&at_ms)));
            }
        }
    }
}
