//! Totals, series, lists of values, and who is there now.

use axum::extract::State;
use axum::response::Response;
use dashi_domain::buckets::{Bucket, Unit, buckets};
use dashi_domain::calendar::iso_string;
use dashi_store::{Field, MetricKind, Point, Question, Totals};
use http::StatusCode;
use http::request::Parts;
use jiff::tz::TimeZone;

use super::asked::{Compare, before, compare, unit, zone};
use super::params::Params;
use super::routes::{EXPANDED, METRICS, PAGEVIEWS, STATS};
use crate::answer::{Refusal, json};
use crate::api::Api;
use crate::read::{PathOf, id, now_ms, parts};
use crate::write::{Object, array};

/// A visitor is active for so long after an event.
const ACTIVE_MS: i64 = 5 * 60_000;

/// Rows of a list of values if the request names no number, and at most.
const ROWS: i64 = 500;
const ROWS_MAX: i64 = 10_000;

/// The words of `type`.
pub const KINDS: [(&str, MetricKind); 26] = [
    ("path", MetricKind::Views(Field::Path)),
    ("url", MetricKind::Views(Field::Path)),
    ("entry", MetricKind::Entries),
    ("exit", MetricKind::Exits),
    ("title", MetricKind::Views(Field::Title)),
    ("query", MetricKind::Views(Field::Query)),
    ("referrer", MetricKind::Referrers),
    ("domain", MetricKind::Referrers),
    ("hostname", MetricKind::Views(Field::Hostname)),
    ("host", MetricKind::Views(Field::Hostname)),
    ("tag", MetricKind::Views(Field::Tag)),
    ("event", MetricKind::Events),
    ("utmSource", MetricKind::Views(Field::UtmSource)),
    ("utmMedium", MetricKind::Views(Field::UtmMedium)),
    ("utmCampaign", MetricKind::Views(Field::UtmCampaign)),
    ("utmContent", MetricKind::Views(Field::UtmContent)),
    ("utmTerm", MetricKind::Views(Field::UtmTerm)),
    ("browser", MetricKind::Sessions(Field::Browser)),
    ("os", MetricKind::Sessions(Field::Os)),
    ("device", MetricKind::Sessions(Field::Device)),
    ("screen", MetricKind::Sessions(Field::Screen)),
    ("language", MetricKind::Sessions(Field::Language)),
    ("country", MetricKind::Sessions(Field::Country)),
    ("region", MetricKind::Sessions(Field::Region)),
    ("city", MetricKind::Sessions(Field::City)),
    ("distinctId", MetricKind::Sessions(Field::DistinctId)),
];

/// `GET …/stats`
pub async fn stats(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&STATS, request.uri.query())?;
        let (zone, compare) = (zone(&params)?, compare(&params)?.unwrap_or(Compare::Previous));
        let question = api.question(website_id, &params).await?;
        let earlier = before(&question, compare, &zone);
        let asking = api.ask(move |questions| async move {
            Ok((questions.totals(&question).await?, questions.totals(&earlier).await?))
        });
        let (now, earlier) = asking.await?;
        let stats = totals(Object::new(), now).json("comparison", &totals(Object::new(), earlier).end());
        Ok(json(StatusCode::OK, stats.end()))
    };
    api.answer(&request, work).await
}

fn totals(object: Object, totals: Totals) -> Object {
    object
        .json("pageviews", &totals.pageviews.to_string())
        .json("visitors", &totals.visitors.to_string())
        .json("visits", &totals.visits.to_string())
        .json("bounces", &totals.bounces.to_string())
        .json("totaltime", &totals.seconds.to_string())
}

/// `GET …/pageviews`
pub async fn pageviews(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&PAGEVIEWS, request.uri.query())?;
        let (zone, compare) = (zone(&params)?, compare(&params)?);
        let question = api.question(website_id, &params).await?;
        let unit = unit(&params, &question)?;
        let mut object = series(&api, Object::new(), &question, unit, &zone).await?;
        if let Some(compare) = compare {
            let earlier = before(&question, compare, &zone);
            let compared = series(&api, Object::new(), &earlier, unit, &zone).await?;
            let compared = compared.moment("startDate", earlier.start_ms).moment("endDate", earlier.end_ms);
            object = object
                .moment("startDate", question.start_ms)
                .moment("endDate", question.end_ms)
                .json("compare", &compared.end());
        }
        Ok(json(StatusCode::OK, object.end()))
    };
    api.answer(&request, work).await
}

/// The members `pageviews` and `sessions`: a point for every bucket, also for one without events.
async fn series(
    api: &Api,
    object: Object,
    question: &Question,
    unit: Unit,
    zone: &TimeZone,
) -> Result<Object, Refusal> {
    let buckets = buckets(question.start_ms, question.end_ms, unit, zone);
    let (asked, within) = (question.clone(), buckets.clone());
    let points = api.ask(move |questions| async move { questions.series(&asked, &within).await }).await?;
    let line = |value: fn(&Point) -> u64| {
        let mut values = vec![0; buckets.len()];
        for point in &points {
            if let Some(found) = values.get_mut(point.bucket) {
                *found = value(point);
            }
        }
        array(buckets.iter().zip(values).map(|(bucket, value)| {
            Object::new().text("x", &start(bucket)).json("y", &value.to_string()).end()
        }))
    };
    Ok(object.json("pageviews", &line(|point| point.count)).json("sessions", &line(|point| point.visitors)))
}

/// Where a bucket begins, in UTC.
pub fn start(bucket: &Bucket) -> String {
    iso_string(bucket.at_ms)
}

/// `GET …/metrics`
pub async fn metrics(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&METRICS, request.uri.query())?;
        let (kind, search, limit, offset) = list(&params)?;
        let question = api.question(website_id, &params).await?;
        let asking = api.ask(move |questions| async move {
            questions.metrics(&question, kind, &search, limit, offset).await
        });
        let rows = asking.await?;
        let rows = rows
            .iter()
            .map(|row| Object::new().text("x", &row.value).json("y", &row.count.to_string()).end());
        Ok(json(StatusCode::OK, array(rows)))
    };
    api.answer(&request, work).await
}

/// `GET …/metrics/expanded`
pub async fn expanded(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        let params = Params::parse(&EXPANDED, request.uri.query())?;
        let (kind, search, limit, offset) = list(&params)?;
        if matches!(kind, MetricKind::Entries | MetricKind::Exits) {
            return Err(Refusal::bad(
                "type must be another one than entry and exit, which are asked for with metrics",
            ));
        }
        let question = api.question(website_id, &params).await?;
        let asking = api.ask(move |questions| async move {
            questions.expanded_metrics(&question, kind, &search, limit, offset).await
        });
        let rows = asking.await?;
        let rows = rows.iter().map(|(name, row)| totals(Object::new().text("name", name), *row).end());
        Ok(json(StatusCode::OK, array(rows)))
    };
    api.answer(&request, work).await
}

/// `type`, `search`, `limit` and `offset`.
fn list(params: &Params<'_>) -> Result<(MetricKind, String, u32, u64), Refusal> {
    let kind = params.needed_word("type", &KINDS)?;
    let search = params.text("search").unwrap_or_default().to_owned();
    let limit = params.number("limit", 1..=ROWS_MAX)?.unwrap_or(ROWS);
    let offset = params.number("offset", 0..=1_000_000_000)?.unwrap_or(0);
    Ok((kind, search, limit as u32, offset as u64))
}

/// `GET …/active`
pub async fn active(State(api): State<Api>, path: PathOf<String>, request: Parts) -> Response {
    let work = async {
        let website_id = id(&parts(path)?)?;
        api.since_ms(website_id).await?;
        let since_ms = now_ms().saturating_sub(ACTIVE_MS);
        let asking = api.ask(move |questions| async move { questions.active(website_id, since_ms).await });
        let visitors = asking.await?.to_string();
        Ok(json(StatusCode::OK, Object::new().json("visitors", &visitors).end()))
    };
    api.answer(&request, work).await
}
