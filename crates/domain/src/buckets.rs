//! Spans of time cut at the boundaries of a calendar: the buckets of a series.

use jiff::civil::{Date, date, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The width of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Sixty seconds.
    Minute,
    /// An hour of the clock. In the night in which clocks are set back, an hour comes twice, as two buckets.
    Hour,
    /// From one midnight to the next, or from the first moment of a day that has no midnight.
    Day,
    /// From the first day of a month.
    Month,
    /// From 1 January.
    Year,
}

impl Unit {
    /// The units and their names, from the shortest on.
    pub const ALL: [(&'static str, Self); 5] = [
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("month", Self::Month),
        ("year", Self::Year),
    ];

    /// The unit with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, unit)| *unit)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, unit)| *unit == self).map_or("", |(name, _)| name)
    }

    /// The next longer unit; years have none.
    fn longer(self) -> Option<Self> {
        Self::ALL.iter().map(|(_, unit)| *unit).find(|unit| *unit > self)
    }

    /// The longest span, in days, that this unit shows, of those with a limit.
    fn days_max(self) -> Option<i64> {
        match self {
            Self::Minute => Some(0),
            Self::Hour => Some(30),
            Self::Day => Some(184),
            Self::Month | Self::Year => None,
        }
    }

    /// This unit, or the next longer one that shows a span of that length: minutes at most one hour, hours thirty days,
    /// days six months. A span may be an hour longer, for the day on which clocks are set back.
    #[must_use]
    pub fn for_span(self, start_ms: i64, end_ms: i64) -> Self {
        const HOUR_MS: i64 = 3_600_000;
        let took = end_ms.saturating_sub(start_ms);
        let fits = |unit: Self| unit.days_max().is_none_or(|days| took <= (days * 24 + 1) * HOUR_MS);
        let mut unit = self;
        while let Some(longer) = unit.longer().filter(|_| !fits(unit)) {
            unit = longer;
        }
        unit
    }

    /// The unit of a span if none is named: minutes for up to an hour, hours for up to two days, then as
    /// [`Unit::for_span`].
    pub fn by_span(start_ms: i64, end_ms: i64) -> Self {
        const TWO_DAYS_MS: i64 = 49 * 3_600_000;
        match Self::Minute.for_span(start_ms, end_ms) {
            Self::Hour if end_ms.saturating_sub(start_ms) > TWO_DAYS_MS => Self::Day,
            unit => unit,
        }
    }
}

/// A part of a span, from a boundary of its unit to the next one. Milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The boundary at which it begins, which may lie before the span.
    pub at_ms: i64,
    /// Its first moment within the span.
    pub low_ms: i64,
    /// The moment after its last one within the span.
    pub high_ms: i64,
}

/// The buckets that cover the time from `start_ms` to `end_ms`, both inclusive, in order and without gaps. None if the
/// span is empty or reaches beyond the years −9999 to 9999.
pub fn buckets(start_ms: i64, end_ms: i64, unit: Unit, zone: &TimeZone) -> Vec<Bucket> {
    let past_ms = end_ms.saturating_add(1);
    let mut buckets = Vec::new();
    let mut next = boundary(start_ms, unit, zone);
    while let Some(at_ms) = next.filter(|at_ms| *at_ms < past_ms && start_ms < past_ms) {
        next = following(at_ms, unit, zone).filter(|following| *following > at_ms);
        let high_ms = next.unwrap_or(past_ms).min(past_ms);
        let low_ms = at_ms.max(start_ms);
        // The first boundary of a zone's local time may lie before a clock change that comes before the span.
        if low_ms < high_ms {
            buckets.push(Bucket { at_ms, low_ms, high_ms });
        }
    }
    buckets
}

/// The last boundary at or before a moment.
fn boundary(at_ms: i64, unit: Unit, zone: &TimeZone) -> Option<i64> {
    const MINUTE_MS: i64 = 60_000;
    match unit {
        Unit::Minute => Some(at_ms - at_ms.rem_euclid(MINUTE_MS)),
        Unit::Hour => {
            let at = Timestamp::from_millisecond(at_ms).ok()?;
            let local = zone.to_datetime(at).time();
            let past = SignedDuration::from_secs(i64::from(local.minute()) * 60 + i64::from(local.second()));
            let past = past + SignedDuration::from_nanos(i64::from(local.subsec_nanosecond()));
            Some(at.checked_sub(past).ok()?.as_millisecond())
        }
        Unit::Day | Unit::Month | Unit::Year => {
            let local = zone.to_datetime(Timestamp::from_millisecond(at_ms).ok()?).date();
            midnight(first_day(local, unit), zone)
        }
    }
}

/// The first boundary after another one.
fn following(at_ms: i64, unit: Unit, zone: &TimeZone) -> Option<i64> {
    const HOUR_MS: i64 = 3_600_000;
    match unit {
        Unit::Minute => at_ms.checked_add(60_000),
        // Of a zone that sets its clocks by less than an hour, the next full hour of the clock.
        Unit::Hour => {
            let later = at_ms.checked_add(HOUR_MS)?;
            boundary(later, unit, zone).filter(|next| *next > at_ms).or(Some(later))
        }
        Unit::Day | Unit::Month | Unit::Year => {
            let local = zone.to_datetime(Timestamp::from_millisecond(at_ms).ok()?).date();
            let first = first_day(local, unit);
            let next = match unit {
                Unit::Month if first.month() == 12 => date_of(first.year().checked_add(1)?, 1),
                Unit::Month => date_of(first.year(), first.month() + 1),
                Unit::Year => date_of(first.year().checked_add(1)?, 1),
                _ => first.tomorrow().ok(),
            };
            midnight(next?, zone)
        }
    }
}

fn date_of(year: i16, month: i8) -> Option<Date> {
    Date::new(year, month, 1).ok()
}

fn first_day(day: Date, unit: Unit) -> Date {
    match unit {
        Unit::Month => day.first_of_month(),
        Unit::Year => date(day.year(), 1, 1),
        _ => day,
    }
}

/// The first moment of a day. Where clocks skip midnight, the moment after; where it comes twice, the first one.
fn midnight(day: Date, zone: &TimeZone) -> Option<i64> {
    zone.to_timestamp(day.to_datetime(time(0, 0, 0, 0))).ok().map(Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn starts(start: &str, end: &str, unit: Unit, zone: &str) -> Vec<String> {
        let zone = TimeZone::get(zone).unwrap();
        let buckets = buckets(ms(start), ms(end), unit, &zone);
        for pair in buckets.windows(2) {
            assert_eq!(pair[0].high_ms, pair[1].low_ms, "no gap and no overlap");
        }
        assert_eq!(buckets.first().map(|bucket| bucket.low_ms), Some(ms(start)));
        assert_eq!(buckets.last().map(|bucket| bucket.high_ms), Some(ms(end) + 1));
        let text = |at_ms| Timestamp::from_millisecond(at_ms).unwrap().to_string();
        buckets.iter().map(|bucket| text(bucket.at_ms)).collect()
    }

    #[test]
    fn days_of_a_zone_are_23_and_25_hours_long_when_clocks_change() {
        assert_eq!(
            starts("2026-03-28T10:00:00Z", "2026-03-31T21:59:59.999Z", Unit::Day, "Europe/Berlin"),
            ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"]
        );
        assert_eq!(
            starts("2026-10-24T22:00:00Z", "2026-10-26T22:59:59.999Z", Unit::Day, "Europe/Berlin"),
            ["2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]
        );
        // Midnight is skipped here.
        assert_eq!(
            starts("2018-11-03T12:00:00Z", "2018-11-04T12:00:00Z", Unit::Day, "America/Sao_Paulo"),
            ["2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z"]
        );
    }

    #[test]
    fn an_hour_that_comes_twice_is_two_buckets() {
        let hours = starts("2026-10-25T00:00:00Z", "2026-10-25T02:59:59.999Z", Unit::Hour, "Europe/Berlin");
        assert_eq!(hours, ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]);
        let hours = starts("2026-05-01T00:10:00Z", "2026-05-01T01:40:00Z", Unit::Hour, "Asia/Kolkata");
        assert_eq!(hours, ["2026-04-30T23:30:00Z", "2026-05-01T00:30:00Z", "2026-05-01T01:30:00Z"]);
        // Clocks go back by half an hour, at 15:00 UTC.
        let hours = starts("2026-04-04T13:00:00Z", "2026-04-04T17:00:00Z", Unit::Hour, "Australia/Lord_Howe");
        assert_eq!(hours.first().map(String::as_str), Some("2026-04-04T13:00:00Z"));
        assert_eq!(hours.last().map(String::as_str), Some("2026-04-04T16:30:00Z"));
    }

    #[test]
    fn months_and_years_begin_at_their_first_day() {
        assert_eq!(
            starts("2025-11-15T00:00:00Z", "2026-01-31T23:00:00Z", Unit::Month, "America/New_York"),
            ["2025-11-01T04:00:00Z", "2025-12-01T05:00:00Z", "2026-01-01T05:00:00Z"]
        );
        assert_eq!(
            starts("2025-11-15T00:00:00Z", "2026-01-31T23:00:00Z", Unit::Year, "UTC"),
            ["2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]
        );
        assert_eq!(
            starts("2026-01-01T00:00:30Z", "2026-01-01T00:02:00Z", Unit::Minute, "UTC"),
            ["2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]
        );
    }

    #[test]
    fn a_unit_gives_way_to_a_longer_one_for_a_span_that_it_cannot_show() {
        let day = 24 * HOUR_MS;
        for (unit, span, shown) in [
            (Unit::Minute, HOUR_MS, Unit::Minute),
            (Unit::Minute, 2 * HOUR_MS, Unit::Hour),
            (Unit::Minute, 31 * day, Unit::Day),
            (Unit::Hour, 30 * day + HOUR_MS, Unit::Hour),
            (Unit::Hour, 31 * day, Unit::Day),
            (Unit::Day, 184 * day, Unit::Day),
            (Unit::Day, 186 * day, Unit::Month),
            (Unit::Month, 9_000 * day, Unit::Month),
            (Unit::Year, 1, Unit::Year),
        ] {
            assert_eq!(unit.for_span(7, 7 + span), shown, "{unit:?} {span}");
        }
        for (span, shown) in
            [(HOUR_MS, Unit::Minute), (2 * day, Unit::Hour), (3 * day, Unit::Day), (200 * day, Unit::Month)]
        {
            assert_eq!(Unit::by_span(0, span - 1), shown);
        }
    }

    #[test]
    fn an_empty_span_has_no_bucket() {
        assert_eq!(buckets(5, 4, Unit::Day, &TimeZone::UTC), []);
        assert_eq!(buckets(5, 5, Unit::Day, &TimeZone::UTC), [Bucket { at_ms: 0, low_ms: 5, high_ms: 6 }]);
        assert_eq!(Unit::named("day").map(Unit::name), Some("day"));
        assert_eq!(Unit::named("week"), None);
    }
}
