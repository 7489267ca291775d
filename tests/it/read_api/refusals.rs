//! Who may ask, what is asked wrongly, and what is too much.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use integration_tests::http::request;
use integration_tests::setup::WEBSITE;
use integration_tests::{Setup, eventually, on_both_setups};
use serde_json::json;

use super::data::{KEY, fixed, three_days};
use super::schema::{assert_described, description, paths};

on_both_setups!(what_is_asked_wrongly_is_named_with_its_value, a_question_that_takes_too_long_is_stopped);

async fn what_is_asked_wrongly_is_named_with_its_value(setup: Setup) {
    let fixed = fixed(setup, &[]).await;
    let days = three_days();
    for (rest, parts) in [
        ("/stats".to_owned(), vec!["startAt is missing", "253370764799999"]),
        ("/stats?startAt=1".to_owned(), vec!["endAt is missing"]),
        ("/stats?startAt=x&endAt=1".to_owned(), vec!["startAt must be a whole number", r#"not "x""#]),
        ("/stats?startAt=2&endAt=1".to_owned(), vec!["endAt must not lie before startAt, 2", r#"not "1""#]),
        ("/stats?startAt=0&endAt=99999999999999".to_owned(), vec!["endAt", "hundred years"]),
        (format!("/stats?{days}&compare=week"), vec!["compare must be one of prev, yoy", r#"not "week""#]),
        (format!("/stats?{days}&segment={WEBSITE}"), vec!["segment", WEBSITE]),
        (format!("/stats?{days}&cohort=x"), vec!["cohort", r#""x""#]),
        (format!("/stats?{days}&path=re.%5E/a"), vec!["path", "regular expression", "re.^/a"]),
        (format!("/stats?{days}&match=some"), vec!["match must be one of all, any", r#"not "some""#]),
        (format!("/stats?{days}&eventType=0"), vec!["eventType", r#"not "0""#]),
        (
            format!("/stats?{days}&path={}", "x".repeat(501)),
            vec!["path must have at most 500 characters", "x…"],
        ),
        (format!("/pageviews?{days}&unit=week"), vec!["unit must be one of minute, hour", r#"not "week""#]),
        (format!("/pageviews?{days}&timezone=Mars"), vec!["timezone", r#"not "Mars""#]),
        (format!("/metrics?{days}"), vec!["type is missing", "path", "country"]),
        (format!("/metrics?{days}&type=channel"), vec!["type must be one of", r#"not "channel""#]),
        (format!("/metrics?{days}&type=path&limit=0"), vec!["limit must be a whole number from 1 to 10000"]),
        (format!("/metrics?{days}&type=path&offset=-1"), vec!["offset", r#"not "-1""#]),
        (format!("/metrics/expanded?{days}&type=entry"), vec!["type", "entry"]),
        (format!("/sessions?{days}&page=0"), vec!["page must be a whole number from 1", r#"not "0""#]),
        (format!("/sessions?{days}&pageSize=1001"), vec!["pageSize", "1000", r#"not "1001""#]),
        (format!("/sessions?{days}&orderBy=%22name%22"), vec!["orderBy", r#"not "\"name\"""#]),
        (format!("/sessions/{}/activity", fixed.anna), vec!["startAt is missing"]),
        ("/sessions/x/activity".to_owned(), vec!["Invalid UUID"]),
        ("/event-data/x".to_owned(), vec!["Invalid UUID"]),
    ] {
        let answer = fixed.answer(&rest).await;
        assert_eq!(answer.status, 400, "{rest}: {}", answer.text());
        let body = answer.json();
        assert_described(&format!("/api/websites/{WEBSITE}{rest}"), 400, &body);
        assert_eq!(
            json!([body["error"]["code"], body["error"]["status"]]),
            json!(["bad-request", 400]),
            "{rest}"
        );
        let message = body["error"]["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "{rest}: {message:?} does not say {part:?}");
        }
    }
    // A text is compared, whatever is in it, and is no part of a statement.
    for text in ["'", "%22+OR+1=1+--", "x%00", "%F0%9F%A6%80", "$1", "?", "a.b.c", "%FF", "c.%25"] {
        let shown = fixed.shown(&format!("/stats?{days}&path={text}")).await;
        assert_eq!(shown["pageviews"], json!(0), "{text}");
        let shown = fixed.shown(&format!("/sessions?{days}&search=x{text}")).await;
        assert_eq!(shown["count"], json!(0), "{text}");
    }

    let nowhere = "99999999-9999-4999-8999-999999999999";
    for path in paths().iter().filter(|path| path.contains("{website}") && !path.contains("profiles")) {
        let path =
            path.replace("{website}", nowhere).replace("{session}", nowhere).replace("{event}", nowhere);
        if path.ends_with("/stream") {
            continue;
        }
        let path = format!("{path}?{days}&type=path");
        let answer = fixed.answer_of(&path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_described(&path, 404, &answer.json());
    }

    // Without the key nothing is shown, and nothing is changed with it.
    let ask = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        request(method, &fixed.running.url(path), Bytes::new(), headers).await.unwrap()
    };
    for path in paths() {
        let path = path.replace("{website}", WEBSITE).replace("{session}", &fixed.anna);
        let path =
            format!("{}?{days}&type=path", path.replace("{event}", &fixed.buy).replace("{person}", "ada"));
        // The description needs no key, and a page's own person a signature (`follow`).
        if path.starts_with("/api/openapi.json") || path.starts_with("/api/me") {
            continue;
        }
        for headers in
            [vec![], vec![("authorization", "Bearer another-key-of-16")], vec![("authorization", KEY)]]
        {
            let answer = ask(Method::GET, &path, &headers).await;
            assert_eq!(answer.status, 401, "{path} {headers:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
            assert_described(&path, 401, &answer.json());
        }
        for method in [Method::POST, Method::DELETE] {
            let bearer = format!("Bearer {KEY}");
            let answer = ask(method.clone(), &path, &[("authorization", bearer.as_str())]).await;
            assert_eq!(answer.status, 405, "{method} {path}");
        }
    }
    let described = ask(Method::GET, "/api/openapi.json", &[]).await;
    assert_eq!((described.status, described.json()), (200, description()));
}

async fn a_question_that_takes_too_long_is_stopped(setup: Setup) {
    let env = [("DASHI_API_KEYS", KEY), ("DASHI_API_QUESTION_TIMEOUT_MS", "20")];
    let running = setup.start(&env).await;
    // A tenth of a second or more for either database: so many sessions of so many visits.
    let many = |rows: &str, id: &str, at: &str| {
        format!(
            "INSERT INTO website_event (event_id, website_id, session_id, visit_id, created_at, url_path, event_type)
             SELECT {id}, '{WEBSITE}', {id}, {id}, {at}, '/', 1 FROM {rows}"
        )
    };
    if running.is_sqlite() {
        let rows = "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT i FROM n)";
        running.execute(&many(rows, "printf('%036d', i)", "1000000 + i")).await;
    } else {
        let rows = "generate_series(1, 100000) AS n (i)";
        running.execute(&many(rows, "gen_random_uuid()", "dashi.at_ms(1000000 + i)")).await;
    }
    let ask = async |path: &str| {
        let bearer = format!("Bearer {KEY}");
        let headers = [("authorization", bearer.as_str())];
        request(Method::GET, &running.url(path), Bytes::new(), &headers).await.unwrap()
    };
    let stopped = ask(&format!("/api/websites/{WEBSITE}/stats?startAt=0&endAt=2000000000000")).await;
    assert_eq!((stopped.status, stopped.header("retry-after")), (503, Some("5")), "{}", stopped.text());
    let message = stopped.json()["error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("api.question_timeout_ms"), "{message}");
    // The connection is good for the next one.
    let soon = Duration::from_secs(60);
    eventually(soon, "a small question is answered", async || ask("/api/websites").await.status == 200).await;
}

#[tokio::test]
async fn without_a_key_this_machine_alone_reads_traffic() {
    let running = Setup::Embedded.start(&[]).await;
    running.accept("event", &json!({ "url": "/seen" })).await;
    running.applied(1).await;
    let path = format!("/api/websites/{WEBSITE}/metrics?startAt=0&endAt=2000000000000&type=path");
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        request(Method::GET, &running.url(path), Bytes::new(), headers).await.unwrap()
    };
    let shown = ask(&path, &[]).await;
    assert_eq!((shown.status, shown.json()), (200, json!([{ "x": "/seen", "y": 1 }])));
    for header in [
        ("x-forwarded-for", "203.0.113.9"),
        ("via", "1.1 proxy.example"),
        ("origin", "https://page.example"),
        ("sec-fetch-site", "cross-site"),
    ] {
        assert_eq!(ask(&path, &[header]).await.status, 401, "{header:?}");
    }
    // People are not shown without a key.
    assert_eq!(ask(&format!("/api/websites/{WEBSITE}/profiles"), &[]).await.status, 404);
}
