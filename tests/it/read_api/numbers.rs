//! Totals, series and lists.

use integration_tests::setup::WEBSITE;
use integration_tests::{Setup, on_both_setups};
use serde_json::{Value, json};

use super::data::{OTHER, fixed, ms, three_days, time};

on_both_setups!(the_numbers_are_those_that_were_counted_by_hand);

fn stats(pageviews: u64, visitors: u64, visits: u64, bounces: u64, totaltime: u64) -> Value {
    json!({
        "pageviews": pageviews, "visitors": visitors, "visits": visits, "bounces": bounces, "totaltime": totaltime,
    })
}

fn points(points: &[(&str, u64)]) -> Value {
    points.iter().map(|(x, y)| json!({ "x": x, "y": y })).collect()
}

async fn the_numbers_are_those_that_were_counted_by_hand(setup: Setup) {
    let fixed = fixed(setup, &[]).await;
    let days = three_days();

    // All of it, and nothing before.
    let mut whole = stats(13, 3, 9, 4, 3_630);
    whole["comparison"] = stats(0, 0, 0, 0, 0);
    assert_eq!(fixed.shown(&format!("/stats?{days}")).await, whole);
    // Sunday, beside Saturday, and beside the same day a year before.
    let sunday = time("2026-10-25T00:00:00Z", "2026-10-26T00:00:00Z");
    let mut expected = stats(5, 2, 5, 3, 900);
    expected["comparison"] = stats(6, 2, 3, 1, 930);
    assert_eq!(fixed.shown(&format!("/stats?{sunday}")).await, expected);
    assert_eq!(fixed.shown(&format!("/stats?{sunday}&compare=prev")).await, expected);
    expected["comparison"] = stats(0, 0, 0, 0, 0);
    assert_eq!(fixed.shown(&format!("/stats?{sunday}&compare=yoy&timezone=Europe/Berlin")).await, expected);
    let next_year = time("2027-10-25T00:00:00Z", "2027-10-26T00:00:00Z");
    let mut expected = stats(0, 0, 0, 0, 0);
    expected["comparison"] = stats(5, 2, 5, 3, 900);
    assert_eq!(fixed.shown(&format!("/stats?{next_year}&compare=yoy")).await, expected);
    // Both ends are inclusive, to the millisecond.
    let second = ms("2026-10-24T21:30:00Z");
    for (from, to, views) in [(0, 0, 1), (-1, -1, 0), (1, 1, 0), (-1, 0, 1), (0, 1, 1)] {
        let rest = format!("/stats?startAt={}&endAt={}", second + from, second + to);
        assert_eq!(fixed.shown(&rest).await["pageviews"], json!(views), "{from} {to}");
    }
    let other = fixed.shown_at(&format!("/api/websites/{OTHER}/stats?{days}")).await;
    assert_eq!(other["pageviews"], json!(1));

    for (filters, expected) in [
        ("path=/docs", stats(5, 3, 5, 5, 0)),
        ("url=eq./docs", stats(5, 3, 5, 5, 0)),
        ("path=c.DOC", stats(5, 3, 5, 5, 0)),
        // Events count as visits, too: 6 has no other page than /pricing.
        ("path=neq./docs", stats(8, 3, 8, 6, 100)),
        ("path=dnc./doc", stats(8, 3, 8, 6, 100)),
        ("country=GB", stats(5, 1, 3, 1, 2_430)),
        ("browser=firefox&path=/docs", stats(2, 1, 2, 2, 0)),
        ("browser=firefox&path=/docs&match=any", stats(8, 3, 6, 4, 2_430)),
        ("distinctId=ada", stats(5, 1, 4, 3, 900)),
        ("event=signup", stats(0, 2, 2, 0, 0)),
        ("eventType=2", stats(0, 2, 3, 0, 0)),
        ("tag=beta", stats(1, 1, 1, 1, 0)),
        ("title=Home", stats(1, 1, 1, 1, 0)),
        ("referrer=news.example", stats(1, 1, 1, 1, 0)),
        ("utmSource=news", stats(1, 1, 1, 1, 0)),
        ("query=c.a=1", stats(1, 1, 1, 1, 0)),
        ("host=a.example", stats(13, 3, 9, 4, 3_630)),
        ("language=fr-FR&device=mobile", stats(5, 1, 4, 3, 900)),
        ("country=", stats(13, 3, 9, 4, 3_630)),
        ("country=XX", stats(0, 0, 0, 0, 0)),
        ("excludeBounce=true", stats(9, 3, 4, 0, 3_630)),
    ] {
        let mut shown = fixed.shown(&format!("/stats?{days}&{filters}")).await;
        shown.as_object_mut().unwrap().remove("comparison");
        assert_eq!(shown, expected, "{filters}");
    }

    series(&fixed).await;
    lists(&fixed).await;

    assert_eq!(fixed.shown("/active").await, json!({ "visitors": 0 }));
    fixed.running.accept("event", &json!({ "url": "/now" })).await;
    fixed.running.applied(21).await;
    assert_eq!(fixed.shown("/active").await, json!({ "visitors": 1 }));
    let range = fixed.shown("/daterange").await;
    assert_eq!(range["startDate"], json!("2026-10-24T08:00:00.000Z"));
    assert!(range["endDate"].as_str().unwrap() > "2026-10-26T12:30:00.000Z", "{range}");
    assert_eq!(
        fixed.shown_at(&format!("/api/websites/{OTHER}/daterange")).await,
        json!({ "startDate": "2026-10-25T09:00:00.000Z", "endDate": "2026-10-25T09:10:00.000Z" })
    );
    assert_ne!(OTHER, WEBSITE);
}

async fn series(fixed: &super::data::Fixed) {
    let days = three_days();
    let (a, b, c) = ("2026-10-24T00:00:00.000Z", "2026-10-25T00:00:00.000Z", "2026-10-26T00:00:00.000Z");
    assert_eq!(
        fixed.shown(&format!("/pageviews?{days}&unit=day")).await,
        json!({
            "pageviews": points(&[(a, 6), (b, 5), (c, 2)]),
            "sessions": points(&[(a, 2), (b, 2), (c, 1)]),
        })
    );
    // In Berlin, Sunday has 25 hours.
    let berlin = time("2026-10-23T22:00:00Z", "2026-10-26T23:00:00Z");
    let (a, b, c) = ("2026-10-23T22:00:00.000Z", "2026-10-24T22:00:00.000Z", "2026-10-25T23:00:00.000Z");
    assert_eq!(
        fixed.shown(&format!("/pageviews?{berlin}&unit=day&timezone=Europe/Berlin")).await,
        json!({
            "pageviews": points(&[(a, 4), (b, 6), (c, 3)]),
            "sessions": points(&[(a, 2), (b, 3), (c, 2)]),
        })
    );
    // The hour from two to three comes twice.
    let night = time("2026-10-24T23:00:00Z", "2026-10-25T02:00:00Z");
    let (a, b, c) = ("2026-10-24T23:00:00.000Z", "2026-10-25T00:00:00.000Z", "2026-10-25T01:00:00.000Z");
    assert_eq!(
        fixed.shown(&format!("/pageviews?{night}&unit=hour&timezone=Europe/Berlin")).await,
        json!({
            "pageviews": points(&[(a, 0), (b, 2), (c, 1)]),
            "sessions": points(&[(a, 0), (b, 1), (c, 1)]),
        })
    );
    let month = [("2026-10-01T00:00:00.000Z", 13)];
    let shown = fixed.shown(&format!("/pageviews?{days}&unit=month")).await;
    assert_eq!(shown["pageviews"], points(&month));
    let year = [("2025-12-31T23:00:00.000Z", 13)];
    let shown = fixed.shown(&format!("/pageviews?{days}&unit=year&timezone=Europe/Berlin")).await;
    assert_eq!(shown["pageviews"], points(&year));
    // Three days are too long for minutes; without a unit they are days.
    let hours = fixed.shown(&format!("/pageviews?{days}&unit=minute")).await;
    assert_eq!(hours["pageviews"].as_array().unwrap().len(), 72);
    let by_itself = fixed.shown(&format!("/pageviews?{days}")).await;
    assert_eq!(by_itself["pageviews"].as_array().unwrap().len(), 3);
    // Filters hold, and the time before is beside it.
    let sunday = time("2026-10-25T00:00:00Z", "2026-10-26T00:00:00Z");
    assert_eq!(
        fixed.shown(&format!("/pageviews?{sunday}&unit=day&compare=prev&browser=firefox")).await,
        json!({
            "pageviews": points(&[("2026-10-25T00:00:00.000Z", 0)]),
            "sessions": points(&[("2026-10-25T00:00:00.000Z", 0)]),
            "startDate": "2026-10-25T00:00:00.000Z",
            "endDate": "2026-10-25T23:59:59.999Z",
            "compare": {
                "pageviews": points(&[("2026-10-24T00:00:00.000Z", 3)]),
                "sessions": points(&[("2026-10-24T00:00:00.000Z", 1)]),
                "startDate": "2026-10-24T00:00:00.000Z",
                "endDate": "2026-10-24T23:59:59.999Z",
            },
        })
    );
    assert_eq!(
        fixed.shown(&format!("/events/series?{days}&unit=day")).await,
        json!([
            { "x": "signup", "t": "2026-10-24T00:00:00.000Z", "y": 1 },
            { "x": "buy", "t": "2026-10-25T00:00:00.000Z", "y": 1 },
            { "x": "signup", "t": "2026-10-26T00:00:00.000Z", "y": 1 },
        ])
    );
}

async fn lists(fixed: &super::data::Fixed) {
    let days = three_days();
    for (kind, expected) in [
        ("path", vec![("/", 5), ("/docs", 5), ("/pricing", 3)]),
        ("path&search=O", vec![("/docs", 5)]),
        ("path&limit=1&offset=1", vec![("/docs", 5)]),
        ("entry", vec![("/", 4), ("/docs", 3), ("/pricing", 1)]),
        ("exit", vec![("/", 3), ("/docs", 3), ("/pricing", 2)]),
        ("title", vec![("Home", 1)]),
        ("query", vec![("utm_source=news&a=1", 1)]),
        ("referrer", vec![("news.example", 1)]),
        ("domain", vec![("news.example", 1)]),
        ("hostname", vec![("a.example", 13)]),
        ("tag", vec![("beta", 1)]),
        ("event", vec![("signup", 2), ("buy", 1)]),
        ("utmSource", vec![("news", 1)]),
        ("browser", vec![("chrome", 1), ("firefox", 1), ("ios", 1)]),
        ("device", vec![("desktop", 2), ("mobile", 1)]),
        ("country", vec![("DE", 1), ("FR", 1), ("GB", 1)]),
        ("country&path=/docs&browser=neq.firefox", vec![("DE", 1), ("FR", 1)]),
        ("language", vec![("de-DE", 1), ("en-GB", 1), ("fr-FR", 1)]),
        ("screen", vec![("2560x1440", 3)]),
        ("distinctId", vec![("ada", 1)]),
        ("city", vec![]),
    ] {
        assert_eq!(fixed.shown(&format!("/metrics?{days}&type={kind}")).await, points(&expected), "{kind}");
    }
    let named = |name: &str, stats: Value| {
        let mut named = stats;
        named["name"] = json!(name);
        named
    };
    assert_eq!(
        fixed.shown(&format!("/metrics/expanded?{days}&type=device")).await,
        json!([named("desktop", stats(8, 2, 5, 1, 2_730)), named("mobile", stats(5, 1, 4, 3, 900))])
    );
    assert_eq!(
        fixed.shown(&format!("/metrics/expanded?{days}&type=path&limit=1")).await,
        // The three pages have three visitors each; "/" is the first by its bytes.
        json!([named("/", stats(5, 3, 5, 5, 0))])
    );
}
