//! A question of a request's parameters: which website, which time, which events.

use dashi_domain::buckets::Unit;
use dashi_store::{Field, Filter, Operator, Question};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use uuid::Uuid;

use super::params::{Params, refused};
use crate::answer::Refusal;
use crate::api::Api;

/// The last millisecond of the year 9998: a later moment has no next boundary in every time zone.
const MOMENT_MAX: i64 = 253_370_764_799_999;

/// The longest time that is asked for, in ms: a hundred years. It bounds the buckets of a series.
const SPAN_MAX: i64 = 36_525 * 86_400_000;

/// The parameters that are compared with a column.
const FIELDS: [(&str, Field); 23] = [
    ("path", Field::Path),
    ("url", Field::Path),
    ("query", Field::Query),
    ("title", Field::Title),
    ("referrer", Field::Referrer),
    ("hostname", Field::Hostname),
    ("host", Field::Hostname),
    ("tag", Field::Tag),
    ("event", Field::Event),
    ("utmSource", Field::UtmSource),
    ("utmMedium", Field::UtmMedium),
    ("utmCampaign", Field::UtmCampaign),
    ("utmContent", Field::UtmContent),
    ("utmTerm", Field::UtmTerm),
    ("browser", Field::Browser),
    ("os", Field::Os),
    ("device", Field::Device),
    ("screen", Field::Screen),
    ("language", Field::Language),
    ("country", Field::Country),
    ("region", Field::Region),
    ("city", Field::City),
    ("distinctId", Field::DistinctId),
];

/// The time before, for a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// As long, and up to the first moment.
    Previous,
    /// A year earlier.
    YearBefore,
}

/// The words of `compare`.
pub const COMPARES: [(&str, Compare); 2] = [("prev", Compare::Previous), ("yoy", Compare::YearBefore)];

impl Api {
    /// The question of a website, link or pixel that is there, with time and filters.
    pub(super) async fn question(&self, website_id: Uuid, params: &Params<'_>) -> Result<Question, Refusal> {
        let (start_ms, end_ms) = time(params)?;
        let asked = with_filters(Question::of(website_id, start_ms, end_ms), params)?;
        let since_ms = self.since_ms(website_id).await?;
        Ok(Question { start_ms: asked.start_ms.max(since_ms), ..asked })
    }

    /// The first moment of which a website shows events: that of its last reset, or 0. Refused if there is no such
    /// website, link or pixel.
    pub(super) async fn since_ms(&self, website_id: Uuid) -> Result<i64, Refusal> {
        let source = self.ask(move |questions| async move { questions.source(website_id).await }).await?;
        Ok(source.ok_or(Refusal::NotFound)?.reset_at_ms.unwrap_or(0))
    }
}

/// `startAt` and `endAt`, both inclusive.
pub fn time(params: &Params<'_>) -> Result<(i64, i64), Refusal> {
    let start_ms = params.needed_number("startAt", 0..=MOMENT_MAX)?;
    let end_ms = params.needed_number("endAt", 0..=MOMENT_MAX)?;
    if start_ms > end_ms {
        return Err(refused("endAt", format!("not lie before startAt, {start_ms}"), &end_ms.to_string()));
    }
    if end_ms - start_ms > SPAN_MAX {
        return Err(refused("endAt", "lie at most a hundred years after startAt", &end_ms.to_string()));
    }
    Ok((start_ms, end_ms))
}

/// `timezone`; UTC if there is none.
pub fn zone(params: &Params<'_>) -> Result<TimeZone, Refusal> {
    let Some(name) = params.text("timezone") else { return Ok(TimeZone::UTC) };
    TimeZone::get(name)
        .map_err(|_| refused("timezone", "be a name of the time zone database, such as Europe/Berlin", name))
}

/// `unit`, or a longer one if the time is too long for it; without one, by the time.
pub fn unit(params: &Params<'_>, question: &Question) -> Result<Unit, Refusal> {
    let (start_ms, end_ms) = (question.start_ms, question.end_ms);
    let unit = params.word("unit", &Unit::ALL)?;
    Ok(unit.map_or_else(|| Unit::by_span(start_ms, end_ms), |unit| unit.for_span(start_ms, end_ms)))
}

/// `compare`.
pub fn compare(params: &Params<'_>) -> Result<Option<Compare>, Refusal> {
    params.word("compare", &COMPARES)
}

/// The same question about the time before.
pub fn before(question: &Question, compare: Compare, zone: &TimeZone) -> Question {
    let (start_ms, end_ms) = match compare {
        Compare::Previous => {
            let length = question.end_ms - question.start_ms + 1;
            (question.start_ms - length, question.start_ms - 1)
        }
        Compare::YearBefore => (year_before(question.start_ms, zone), year_before(question.end_ms, zone)),
    };
    Question { start_ms, end_ms, ..question.clone() }
}

fn year_before(at_ms: i64, zone: &TimeZone) -> i64 {
    let at = Timestamp::from_millisecond(at_ms).ok().map(|at| at.to_zoned(zone.clone()));
    let before = at.and_then(|at| at.checked_sub(1.year()).ok());
    before.map_or(at_ms, |before| before.timestamp().as_millisecond())
}

fn with_filters(mut question: Question, params: &Params<'_>) -> Result<Question, Refusal> {
    for name in ["segment", "cohort"] {
        if let Some(value) = params.text(name) {
            return Err(refused(
                name,
                "be left out: segments and cohorts of Umami are not known here",
                value,
            ));
        }
    }
    for (name, field) in FIELDS {
        if let Some(value) = params.text(name) {
            question.filters.push(filter(name, field, value)?);
        }
    }
    question.any = params.word("match", &[("all", false), ("any", true)])?.unwrap_or(false);
    let event_type = params.number("eventType", 1..=i64::from(i32::MAX))?;
    question.event_type = event_type.and_then(|event_type| i32::try_from(event_type).ok());
    question.without_bounces = params.text("excludeBounce").is_some_and(|text| text != "false");
    Ok(question)
}

/// A value, with the operator before its first point, if that is one.
fn filter(name: &str, field: Field, value: &str) -> Result<Filter, Refusal> {
    let (operator, value) = match value.split_once('.') {
        Some(("eq", rest)) => (Operator::Is, rest),
        Some(("neq", rest)) => (Operator::IsNot, rest),
        Some(("c", rest)) => (Operator::Contains, rest),
        Some(("dnc", rest)) => (Operator::DoesNotContain, rest),
        Some(("re" | "nre", _)) => {
            return Err(refused(
                name,
                "not be a regular expression (eq. before it compares the text itself)",
                value,
            ));
        }
        _ => (Operator::Is, value),
    };
    Ok(Filter { field, operator, value: value.to_owned() })
}
