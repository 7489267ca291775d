//! What clients are answered, to the byte, and that a refusal leaves nothing in the log.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret, Visitor};
use dashi_domain::token::Tokens;
use hmac::{Hmac, Mac};
use hyper::Method;
use integration_tests::http::{self, Answer};
use integration_tests::setup::{AGENT, SECRET, WEBSITE, read_until_silent, submission};
use integration_tests::{Running, Setup, eventually, on_both_setups};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use uuid::Uuid;

on_both_setups!(
    bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log,
    an_identify_has_so_many_properties_and_no_more,
    a_batch_answers_for_each_of_its_elements,
    a_large_batch_is_applied_whole,
    a_website_added_later_takes_events_within_two_seconds,
    a_removed_website_takes_no_events_but_with_a_token,
    links_and_pixels_are_not_looked_up,
    bodies_are_read_as_utf_8_whatever_their_type,
    a_body_that_grows_beyond_a_record_is_refused_at_once,
);

const SILENCE: Duration = Duration::from_secs(10);
const UNKNOWN: &str = "22222222-2222-4222-8222-222222222222";
const UNKNOWN_ANSWER: &str =
    r#"{"error":{"message":"Website not found.","code":"bad-request","status":400}}"#;
const BLOCKED_ANSWER: &str = r#"{"error":{"message":"Forbidden","code":"forbidden","status":403}}"#;
const TOO_LARGE_ANSWER: &str =
    r#"{"error":{"message":"Payload too large","code":"payload-too-large","status":413}}"#;
const NOT_FOUND_ANSWER: &str = r#"{"error":{"message":"Not found","code":"not-found","status":404}}"#;
const BOT_ANSWER: &str = r#"{"beep":"boop"}"#;

/// The headers of docs/umami-contract.md §1.1, on every answer of the API.
fn assert_cross_origin(answer: &Answer) {
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-headers", "*"),
        ("access-control-allow-methods", "GET, DELETE, POST, PUT"),
        ("access-control-max-age", "86400"),
        ("cache-control", "no-cache"),
    ] {
        let sent: Vec<_> = answer.headers.get_all(name).iter().collect();
        assert_eq!(sent, [value], "{name} of {} {}", answer.status, answer.text());
    }
    let of_json = (!answer.body.is_empty()).then_some("application/json");
    assert!(
        answer.status == 200 || answer.header("content-type") == of_json,
        "{}: {:?}",
        answer.status,
        answer.header("content-type")
    );
}

fn assert_answer(answer: &Answer, status: u16, body: &str, what: &str) {
    assert_eq!((answer.status, answer.text().as_str()), (status, body), "{what}");
    assert_cross_origin(answer);
}

/// The body of a schema error with these members behind `status`.
fn schema_error(members: &str) -> String {
    format!(r#"{{"error":{{"message":"Bad request","code":"bad-request","status":400,{members}}}}}"#)
}

/// The body of a schema error with these members in the properties of `payload`.
fn payload_error(members: &str) -> String {
    schema_error(&format!(
        r#""errors":[],"properties":{{"payload":{{"errors":[],"properties":{{{members}}}}}}}"#
    ))
}

const BAD_TYPE: &str =
    r#""type":{"errors":["Invalid option: expected one of \"event\"|\"identify\"|\"performance\""]}"#;
const ONE_OF: &str = "Exactly one of website, link, or pixel must be provided";

/// Bodies of `/api/send` that fit no schema, and what is answered: every kind of docs/umami-contract.md §3.3.
fn bad_bodies() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let undefined = schema_error(r#""errors":["Invalid input: expected object, received undefined"]"#);
    for broken in ["", " ", "{", "nonsense", r#"{"type":"event",}"#, "{'type':1}", "undefined", "[1"] {
        all.push((broken.to_owned(), undefined.clone()));
    }
    for (body, received) in
        [("null", "null"), ("[]", "array"), ("\"x\"", "string"), ("7", "number"), ("true", "boolean")]
    {
        let errors = format!(r#""errors":["Invalid input: expected object, received {received}"]"#);
        all.push((body.to_owned(), schema_error(&errors)));
        all.push((
            format!(r#"{{"type":"event","payload":{body}}}"#),
            schema_error(&format!(r#""errors":[],"properties":{{"payload":{{{errors}}}}}"#)),
        ));
    }
    let no_payload = r#""payload":{"errors":["Invalid input: expected object, received undefined"]}"#;
    all.push((
        "{}".to_owned(),
        schema_error(&format!(r#""errors":[],"properties":{{{BAD_TYPE},{no_payload}}}"#)),
    ));
    let only_type = schema_error(&format!(r#""errors":[],"properties":{{{BAD_TYPE}}}"#));
    for kind in [r#""pageview""#, r#""Event""#, r#""""#, "null", "1", r#"["event"]"#, r#""record""#] {
        all.push((format!(r#"{{"type":{kind},"payload":{{"website":"{WEBSITE}"}}}}"#), only_type.clone()));
    }
    let one_of = payload_error(&format!(r#""website":{{"errors":["{ONE_OF}"]}}"#));
    let other = "33333333-3333-4333-8333-333333333333";
    for sources in [
        String::new(),
        format!(r#""website":"{WEBSITE}","link":"{other}""#),
        format!(r#""link":"{WEBSITE}","pixel":"{other}""#),
        format!(r#""website":"{WEBSITE}","link":"{other}","pixel":"{other}""#),
    ] {
        for kind in ["event", "identify", "performance"] {
            all.push((format!(r#"{{"type":"{kind}","payload":{{{sources}}}}}"#), one_of.clone()));
        }
    }
    let empty = payload_error(&format!(r#""website":{{"errors":["Invalid UUID","{ONE_OF}"]}}"#));
    all.push((r#"{"type":"event","payload":{"website":""}}"#.to_owned(), empty));
    // A website that is no UUID is no source, and still the one that was given.
    for no_uuid in [
        "x",
        "11111111-1111-0111-8111-111111111111",
        "11111111-1111-9111-8111-111111111111",
        "11111111-1111-4111-7111-111111111111",
        "11111111111141118111111111111111",
    ] {
        let body = format!(r#"{{"type":"event","payload":{{"website":"{no_uuid}"}}}}"#);
        all.push((body, payload_error(r#""website":{"errors":["Invalid UUID"]}"#)));
    }
    all.extend(bad_fields());
    // Length and format are told together with the rule about sources, a wrong type is told without it.
    let long = "x".repeat(51);
    all.push((
        format!(r#"{{"type":"event","payload":{{"name":"{long}","url":"https://"}}}}"#),
        payload_error(&format!(
            r#""url":{{"errors":["Invalid URL."]}},"name":{{"errors":["Too big: expected string to have <=50 characters"]}},"website":{{"errors":["{ONE_OF}"]}}"#
        )),
    ));
    all.push((
        r#"{"type":"event","payload":{"name":1,"url":"https://"}}"#.to_owned(),
        payload_error(
            r#""url":{"errors":["Invalid URL."]},"name":{"errors":["Invalid input: expected string, received number"]}"#,
        ),
    ));
    // Fields in the order of the schema, not of the body; type before payload.
    all.push((
        format!(r#"{{"payload":{{"ttfb":-1,"cls":101,"data":[],"website":"{WEBSITE}"}},"type":"x"}}"#),
        schema_error(&format!(
            r#""errors":[],"properties":{{{BAD_TYPE},"payload":{{"errors":[],"properties":{{"data":{{"errors":["Invalid input: expected record, received array"]}},"cls":{{"errors":["Too big: expected number to be <=100"]}},"ttfb":{{"errors":["Too small: expected number to be >=0"]}}}}}}}}"#
        )),
    ));
    // The last of two equal keys counts.
    all.push((
        format!(r#"{{"type":"event","payload":{{"website":"{WEBSITE}","tag":"a","tag":null}}}}"#),
        payload_error(r#""tag":{"errors":["Invalid input: expected string, received null"]}"#),
    ));
    all
}

/// A payload with a website and one field that is wrong, in every way in which it can be.
fn bad_fields() -> Vec<(String, String)> {
    let mut fields: Vec<(&str, String, String)> = Vec::new();
    let strings = [
        "hostname",
        "language",
        "referrer",
        "screen",
        "title",
        "url",
        "name",
        "tag",
        "ip",
        "userAgent",
        "id",
        "browser",
        "os",
        "device",
    ];
    let wrong = [("null", "null"), ("1", "number"), ("true", "boolean"), ("[]", "array"), ("{}", "object")];
    for field in strings {
        for (value, received) in wrong {
            fields.push((
                field,
                value.to_owned(),
                format!("Invalid input: expected string, received {received}"),
            ));
        }
    }
    for field in ["link", "pixel"] {
        fields.push((field, "1".to_owned(), "Invalid input: expected string, received number".to_owned()));
        // Empty, it does not count as given; as a UUID it is wrong all the same.
        fields.push((field, "\"\"".to_owned(), "Invalid UUID".to_owned()));
    }
    for (value, received) in
        [("null", "null"), ("[]", "array"), ("\"{}\"", "string"), ("1", "number"), ("false", "boolean")]
    {
        fields.push((
            "data",
            value.to_owned(),
            format!("Invalid input: expected record, received {received}"),
        ));
    }
    for (field, max) in [("hostname", 100), ("language", 35), ("screen", 11), ("name", 50), ("tag", 50)] {
        let text = format!("Too big: expected string to have <={max} characters");
        fields.push((field, format!("\"{}\"", "x".repeat(max + 1)), text.clone()));
        // UTF-16 units are counted: 50 fit 25 emoji, not 26.
        fields.push((field, format!("\"{}\"", "😀".repeat(max / 2 + 1)), text));
    }
    for field in ["url", "referrer"] {
        for value in ["https://", "//[", "http://a b/"] {
            fields.push((field, format!("\"{value}\""), "Invalid URL.".to_owned()));
        }
    }
    for field in ["lcp", "inp", "cls", "fcp", "ttfb"] {
        let max = if field == "cls" { 100 } else { 60_000 };
        for (value, received) in
            [("null", "null"), ("\"1\"", "string"), ("true", "boolean"), ("[1]", "array"), ("{}", "object")]
        {
            fields.push((
                field,
                value.to_owned(),
                format!("Invalid input: expected number, received {received}"),
            ));
        }
        fields.push((field, "-0.001".to_owned(), "Too small: expected number to be >=0".to_owned()));
        fields.push((field, format!("{max}.5"), format!("Too big: expected number to be <={max}")));
    }
    for (value, text) in [
        ("\"soon\"", "Invalid input: expected number, received NaN"),
        ("{}", "Invalid input: expected number, received NaN"),
        ("[1,2]", "Invalid input: expected number, received NaN"),
        ("1.5", "Invalid input: expected int, received number"),
        ("9007199254740992", "Too big: expected int to be <=9007199254740991"),
        // Where Umami fails because no date can hold it.
        ("8640000000001", "Too big: expected int to be <=8640000000000"),
    ] {
        fields.push(("timestamp", value.to_owned(), text.to_owned()));
    }
    fields
        .into_iter()
        .map(|(field, value, text)| {
            let body = format!(r#"{{"type":"event","payload":{{"website":"{WEBSITE}","{field}":{value}}}}}"#);
            (body, payload_error(&format!(r#""{field}":{{"errors":["{text}"]}}"#)))
        })
        .collect()
}

async fn bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log(setup: Setup) {
    let running = setup.start(&[("IGNORE_IP", "203.0.113.7, 198.51.100.0/24")]).await;
    let bodies = bad_bodies();
    assert!(bodies.len() > 150, "{}", bodies.len());
    for (body, expected) in &bodies {
        let answer = running.post("/api/send", body.clone(), &[]).await;
        assert_answer(&answer, 400, expected, body);
    }
    let unknown = submission("event", &json!({ "website": UNKNOWN })).to_string();
    assert_answer(&running.post("/api/send", unknown, &[]).await, 400, UNKNOWN_ANSWER, "unknown website");
    let blocked = submission("event", &json!({ "ip": "203.0.113.7" })).to_string();
    assert_answer(&running.post("/api/send", blocked, &[]).await, 403, BLOCKED_ANSWER, "blocked address");
    let bot = submission("event", &json!({ "userAgent": "Googlebot" })).to_string();
    assert_answer(&running.post("/api/send", bot, &[]).await, 200, BOT_ANSWER, "bot");
    assert_eq!(running.totals().await.in_log, 0, "a refused request is not in the log");
    for table in ["session", "website_event", "session_data", "event_data"] {
        assert_eq!(running.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn checks_are_made_in_umamis_order() {
    let running = Setup::Embedded.start(&[("IGNORE_IP", "203.0.113.7")]).await;
    let post = async |payload: Value, headers: &[(&str, &str)]| {
        let answer = running.post("/api/send", submission("event", &payload).to_string(), headers).await;
        (answer.status, answer.text())
    };
    let bot = ("user-agent", "Googlebot/2.1");
    let blocked = ("x-forwarded-for", "203.0.113.7");
    let bad_name = payload_error(r#""name":{"errors":["Invalid input: expected string, received number"]}"#);
    assert_eq!(
        post(json!({ "website": UNKNOWN, "name": 1 }), &[bot, blocked]).await,
        (400, bad_name),
        "the schema comes before the website"
    );
    let unknown = (400, UNKNOWN_ANSWER.to_owned());
    assert_eq!(
        post(json!({ "website": UNKNOWN }), &[bot, blocked]).await,
        unknown,
        "the website before the bot"
    );
    let beep = (200, BOT_ANSWER.to_owned());
    assert_eq!(post(json!({}), &[bot, blocked]).await, beep, "the bot before the address");
    assert_eq!(post(json!({}), &[blocked]).await, (403, BLOCKED_ANSWER.to_owned()));
    // A link is not looked up, and then takes the same way.
    let link = json!({ "link": UNKNOWN });
    assert_eq!(post(link.clone(), &[bot, blocked]).await, beep);
    assert_eq!(post(link, &[blocked]).await, (403, BLOCKED_ANSWER.to_owned()));
    assert_eq!(running.totals().await.in_log, 0);
}

#[tokio::test]
async fn blocked_addresses_are_refused_and_others_are_not() {
    let list = "203.0.113.7, 198.51.100.0/24 ,2001:db8::/32,::ffff:192.0.2.9";
    let running = Setup::Embedded.start(&[("IGNORE_IP", list)]).await;
    let body = submission("event", &json!({ "url": "/" })).to_string();
    let mut taken = 0;
    for (address, status) in [
        ("203.0.113.7", 403),
        ("203.0.113.7:1234", 403),
        ("::ffff:203.0.113.7", 403),
        ("198.51.100.0", 403),
        ("198.51.100.255, 10.0.0.1", 403),
        ("2001:0db8:0:0::1", 403),
        ("203.0.113.8", 200),
        ("198.51.101.0", 200),
        ("2001:db9::1", 200),
        ("unknown", 200),
        ("[2001:db8::1]:443", 200),
    ] {
        let answer = running.post("/api/send", body.clone(), &[("x-forwarded-for", address)]).await;
        assert_eq!(answer.status, status, "{address}: {}", answer.text());
        taken += u64::from(status == 200);
    }
    // The payload's address is compared as it was sent.
    for (address, status) in [
        ("203.0.113.7", 403),
        ("198.51.100.77", 403),
        ("::ffff:192.0.2.9", 403),
        ("192.0.2.9", 200),
        ("203.0.113.7:80", 200),
        ("198.51.100.77:80", 200),
    ] {
        let answer = running.send(&submission("event", &json!({ "url": "/", "ip": address }))).await;
        assert_eq!(answer.status, status, "{address}: {}", answer.text());
        taken += u64::from(status == 200);
    }
    assert_eq!(running.totals().await.in_log, taken);
}

async fn request(running: &Running, method: Method, path: &str) -> Answer {
    http::request(method, &running.url(path), "", &[("origin", "https://a.example")]).await.unwrap()
}

#[tokio::test]
async fn every_answer_of_the_api_has_the_cross_origin_headers() {
    let running = Setup::Embedded.start(&[]).await;
    for path in ["/api/send", "/api/batch"] {
        let preflight = request(&running, Method::OPTIONS, path).await;
        assert_answer(&preflight, 204, "", path);
        assert_eq!(preflight.header("allow"), Some("OPTIONS, POST"));
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH] {
            let answer = request(&running, method.clone(), path).await;
            assert_answer(&answer, 405, "", &format!("{method} {path}"));
        }
    }
    let preflight = request(&running, Method::OPTIONS, "/api/heartbeat").await;
    assert_answer(&preflight, 204, "", "OPTIONS /api/heartbeat");
    assert_eq!(preflight.header("allow"), Some("GET, HEAD, OPTIONS"));
    let heartbeat = request(&running, Method::GET, "/api/heartbeat").await;
    assert_answer(&heartbeat, 200, r#"{"ok":true}"#, "GET /api/heartbeat");
    assert_eq!(heartbeat.header("content-type"), Some("application/json"));
    let head = request(&running, Method::HEAD, "/api/heartbeat").await;
    assert_answer(&head, 200, "", "HEAD /api/heartbeat");
    assert_answer(&request(&running, Method::POST, "/api/heartbeat").await, 405, "", "POST /api/heartbeat");
    let taken = running.send(&submission("event", &json!({ "url": "/" }))).await;
    assert_eq!((taken.status, taken.header("content-type")), (200, Some("application/json")));
    assert_cross_origin(&taken);
    assert_eq!(taken.header("access-control-allow-credentials"), None);
    assert_answer(&request(&running, Method::GET, "/api/sent").await, 404, NOT_FOUND_ANSWER, "GET /api/sent");
}

#[tokio::test]
async fn the_maximum_age_of_a_preflight_is_a_setting() {
    let running = Setup::Embedded.start(&[("CORS_MAX_AGE", "60")]).await;
    let preflight = request(&running, Method::OPTIONS, "/api/send").await;
    assert_eq!(preflight.header("access-control-max-age"), Some("60"));
}

#[tokio::test]
async fn a_trailing_slash_is_redirected_and_unknown_paths_are_not_found() {
    let running = Setup::Embedded.start(&[]).await;
    for (path, location) in [
        ("/api/send/", "/api/send"),
        ("/api/send/?a=1&b=%2F", "/api/send?a=1&b=%2F"),
        ("/api/batch//", "/api/batch"),
        ("/elsewhere/", "/elsewhere"),
        // No other host than this one.
        ("//evil.example/", "/evil.example"),
        ("/\\evil.example/", "/evil.example"),
    ] {
        for method in [Method::POST, Method::GET] {
            let answer = request(&running, method, path).await;
            assert_eq!((answer.status, answer.header("location")), (308, Some(location)), "{path}");
            if path.starts_with("/api/") {
                assert_cross_origin(&answer);
            }
        }
    }
    for path in ["/", "/api", "/api/", "/API/SEND", "/api/collect", "/umami.js", "/api/send/more"] {
        let expected = if path == "/api/" { 308 } else { 404 };
        let answer = request(&running, Method::POST, path).await;
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
        if expected == 404 {
            assert_eq!(answer.text(), NOT_FOUND_ANSWER, "{path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
    }
}

/// A POST in the raw with this body in chunks of this many bytes.
fn chunked(path: &str, body: &str, chunk: usize) -> Vec<u8> {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    for part in body.as_bytes().chunks(chunk) {
        request.extend(format!("{:x}\r\n", part.len()).bytes());
        request.extend(part);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[tokio::test]
async fn a_body_above_its_bound_is_refused() {
    let running = Setup::Embedded.start(&[("DASHI_INGEST_BODY_BYTES_MAX", "2000")]).await;
    let body = |bytes: usize| {
        let body = submission("event", &json!({ "url": "/" })).to_string();
        format!("{body}{}", " ".repeat(bytes - body.len()))
    };
    assert_eq!(running.post("/api/send", body(2_000), &[]).await.status, 200);
    let answer = running.raw(&chunked("/api/send", &body(2_000), 300), Duration::from_millis(500)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for path in ["/api/send", "/api/batch"] {
        let answer = running.post(path, body(2_001), &[]).await;
        assert_answer(&answer, 413, TOO_LARGE_ANSWER, path);
        let answer = running.raw(&chunked(path, &body(2_001), 300), SILENCE).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 413 "), "{answer}");
        assert!(answer.contains("\r\naccess-control-allow-origin: *\r\n"), "{answer}");
        assert!(answer.ends_with(&TOO_LARGE_ANSWER.to_lowercase()), "{answer}");
    }
    assert_eq!(running.totals().await.in_log, 2);
}

/// A client that still sent when its connection was closed lost the answer to a broken pipe, now and then.
#[tokio::test]
async fn a_client_that_sends_up_to_twice_the_bound_reads_its_refusal() {
    let running = Setup::Embedded.start(&[]).await;
    for _ in 0..10 {
        let answer = running.post("/api/send", vec![b' '; 19 << 20], &[]).await;
        assert_answer(&answer, 413, TOO_LARGE_ANSWER, "19 MiB");
    }
    // Beyond that, what is left is not read.
    let head = format!("POST /api/send HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
    let endless = [head.as_bytes(), &vec![b' '; 22 << 20]].concat();
    let began = Instant::now();
    running.raw(&endless, SILENCE).await;
    assert!(began.elapsed() < SILENCE, "the connection is closed");
    assert_eq!(running.send(&submission("event", &json!({}))).await.status, 200, "it goes on");
}

async fn bodies_are_read_as_utf_8_whatever_their_type(setup: Setup) {
    let running = setup.start(&[]).await;
    let timestamp = 1_777_593_600;
    let body = |place: i64, title: &str| {
        submission("event", &json!({ "url": "/", "title": title, "timestamp": timestamp + place }))
            .to_string()
    };
    let post = async |body: Vec<u8>, headers: &[(&str, &str)]| {
        // Exactly these headers: none that the harness adds.
        http::request(Method::POST, &running.url("/api/send"), body, headers).await.unwrap()
    };
    assert_eq!(post(body(0, "plain").into(), &[("content-type", "text/plain")]).await.status, 200);
    assert_eq!(post(body(1, "none").into(), &[]).await.status, 200);
    let odd = [("content-type", "application/x-www-form-urlencoded; charset=latin1")];
    assert_eq!(post(body(2, "é").into(), &odd).await.status, 200);
    assert_eq!(post([b"\xEF\xBB\xBF", body(3, "bom").as_bytes()].concat(), &[]).await.status, 200);
    let mut invalid = body(4, "a?b").into_bytes();
    let place = invalid.windows(3).position(|window| window == b"a?b").unwrap();
    invalid[place + 1] = 0xFF;
    assert_eq!(post(invalid, &[]).await.status, 200);
    running.applied(5).await;
    let rows = running.rows("website_event", "1 = 1").await;
    let titles: Vec<_> = rows.iter().map(|row| row["page_title"].clone()).collect();
    assert_eq!(titles, ["plain", "none", "é", "bom", "a\u{FFFD}b"]);

    // A compressed body is not decompressed: it is no JSON.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xabV*\xa9,HU\xb2RJ-K\xcd+Q\xd2Q*H\xac\xcc\xc9OLQ\xb2\xaaV*OM\
        *\xce,\x01I\x1aB\x81.\x980\x01\x11\x160.\x0c(\xd5\xd6\x02\x00/\xf7\xf7\xfaM\x00\x00\x00";
    let answer = post(gzip.to_vec(), &[("content-encoding", "gzip")]).await;
    let expected = schema_error(r#""errors":["Invalid input: expected object, received undefined"]"#);
    assert_answer(&answer, 400, &expected, "gzip");
    assert_eq!(running.totals().await.in_log, 5);
}

/// A byte that is no UTF-8 becomes a character of three.
async fn a_body_that_grows_beyond_a_record_is_refused_at_once(setup: Setup) {
    let running = setup.start(&[]).await;
    let head = format!(r#"{{"type":"event","payload":{{"website":"{WEBSITE}","title":""#);
    let body = [head.as_bytes(), &vec![0xFF; 6 << 20], b"\"}}"].concat();
    let answer = running.post("/api/send", body, &[]).await;
    match setup {
        Setup::KafkaAndPostgres => assert_answer(&answer, 413, TOO_LARGE_ANSWER, "Kafka takes 12 MiB"),
        _ => assert_eq!(answer.status, 200, "{}", answer.text()),
    }
    running.accept("event", &json!({ "url": "/" })).await;
    running.applied(1).await;
    assert_eq!(running.complaints(), [""; 0]);
}

async fn an_identify_has_so_many_properties_and_no_more(setup: Setup) {
    let running = setup.start(&[]).await;
    let properties = |count: usize| -> Value {
        let data: serde_json::Map<String, Value> = (0..count).map(|n| (format!("k{n}"), json!(n))).collect();
        submission("identify", &json!({ "id": "user-1", "data": data }))
    };
    // Twice, so that the second one finds every row of the first.
    for _ in 0..2 {
        assert_eq!(running.send(&properties(10_000)).await.status, 200);
    }
    let refused = running.send(&properties(10_001)).await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    let totals = running.applied(2).await;
    assert_eq!((totals.in_log, totals.applied), (2, 2));
    assert_eq!(running.number("SELECT count(*) FROM session_data").await, 10_000);
    // An event's data is only added, and has no such limit.
    let event = json!({ "url": "/", "data": properties(10_001)["payload"]["data"] });
    running.accept("event", &event).await;
    running.applied(3).await;
    assert_eq!(running.number("SELECT count(*) FROM event_data").await, 10_001);
}

#[tokio::test]
async fn unknown_websites_in_a_batch_wait_for_one_look_together() {
    let running = Setup::Embedded.start(&[]).await;
    let mut elements: Vec<Value> = (0..400)
        .map(|n: u128| {
            let website = uuid::Uuid::from_u128((n << 80) | 0x4000_8000_0000_0000_0000);
            submission("event", &json!({ "website": website, "url": "/" }))
        })
        .collect();
    elements.push(submission("event", &json!({ "url": "/" })));
    let began = std::time::Instant::now();
    let answer = running.post("/api/batch", Value::Array(elements).to_string(), &[]).await;
    let answer = answer.json();
    assert_eq!(
        (&answer["errors"], &answer["processed"]),
        (&json!(400), &json!(1)),
        "{}",
        answer["details"][0]
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    running.applied(1).await;
}

async fn a_batch_answers_for_each_of_its_elements(setup: Setup) {
    let running = setup.start(&[("IGNORE_IP", "203.0.113.7")]).await;
    let post = async |body: String| running.post("/api/batch", body, &[]).await;
    let element = |kind: &str, payload: Value| submission(kind, &payload);
    let unknown = element("event", json!({ "website": UNKNOWN }));
    let bot = element("event", json!({ "userAgent": "Googlebot" }));
    let blocked = element("event", json!({ "ip": "203.0.113.7" }));
    let wrong = element("event", json!({ "name": 1 }));

    let all = json!([
        bot,
        unknown,
        element("event", json!({ "url": "/1", "timestamp": 1_777_593_601 })),
        wrong,
        blocked,
        element("identify", json!({ "data": { "a": 1 } })),
        element("performance", json!({ "url": "/2", "lcp": 1 })),
        {},
        element("event", json!({ "url": "/3", "timestamp": 1_777_593_603, "ip": "192.0.2.3" })),
    ]);
    let answer = post(all.to_string()).await;
    let cache = answer.json()["cache"].as_str().expect("a token").to_owned();
    let wrong_error =
        payload_error(r#""name":{"errors":["Invalid input: expected string, received number"]}"#);
    let no_payload = r#""payload":{"errors":["Invalid input: expected object, received undefined"]}"#;
    let empty_error = schema_error(&format!(r#""errors":[],"properties":{{{BAD_TYPE},{no_payload}}}"#));
    let details: Vec<_> = [(1, UNKNOWN_ANSWER), (3, &wrong_error), (4, BLOCKED_ANSWER), (7, &empty_error)]
        .iter()
        .map(|(index, response)| format!(r#"{{"index":{index},"response":{response}}}"#))
        .collect();
    let expected = format!(
        r#"{{"size":9,"processed":5,"errors":4,"details":[{}],"cache":"{cache}"}}"#,
        details.join(",")
    );
    assert_answer(&answer, 200, &expected, "all kinds");
    running.applied(4).await;
    let rows = running.rows("website_event", "event_type = 1").await;
    let paths: Vec<_> = rows.iter().map(|row| row["url_path"].clone()).collect();
    assert_eq!(paths, ["/1", "/3"]);
    assert_eq!(claims(&cache)["sessionId"], rows[0]["session_id"], "the first token");
    assert_eq!(claims(&cache)["visitId"], rows[0]["visit_id"]);

    let error = |index: usize, response: &str| format!(r#"{{"index":{index},"response":{response}}}"#);
    for (body, expected) in [
        (json!([]), r#"{"size":0,"processed":0,"errors":0,"details":[],"cache":null}"#.to_owned()),
        (json!([bot, bot]), r#"{"size":2,"processed":2,"errors":0,"details":[]}"#.to_owned()),
        (
            json!([unknown, blocked]),
            format!(
                r#"{{"size":2,"processed":0,"errors":2,"details":[{},{}],"cache":null}}"#,
                error(0, UNKNOWN_ANSWER),
                error(1, BLOCKED_ANSWER)
            ),
        ),
        (
            json!([unknown, bot]),
            format!(r#"{{"size":2,"processed":1,"errors":1,"details":[{}]}}"#, error(0, UNKNOWN_ANSWER)),
        ),
    ] {
        assert_answer(&post(body.to_string()).await, 200, &expected, &body.to_string());
    }
    let number = r#"{"errors":["Invalid input: expected record, received number"]}"#;
    for (body, members) in [
        ("", r#""errors":["Invalid input: expected array, received undefined"]"#.to_owned()),
        ("[{}", r#""errors":["Invalid input: expected array, received undefined"]"#.to_owned()),
        ("{}", r#""errors":["Invalid input: expected array, received object"]"#.to_owned()),
        ("\"a\"", r#""errors":["Invalid input: expected array, received string"]"#.to_owned()),
        ("[1]", format!(r#""errors":[],"items":[{number}]"#)),
    ] {
        assert_answer(&post(body.to_owned()).await, 400, &schema_error(&members), body);
    }
    // One that is no object fails them all, good ones too.
    let good = element("event", json!({ "url": "/" }));
    let expected = schema_error(&format!(r#""errors":[],"items":[null,null,{number}]"#));
    assert_answer(&post(json!([good, good, 1, good]).to_string()).await, 400, &expected, "one number");
    assert_eq!(running.totals().await.in_log, 4);
}

async fn a_large_batch_is_applied_whole(setup: Setup) {
    const EVENTS: i64 = 3_000;
    let running = setup.start(&[]).await;
    let visit = Uuid::from_u128(0xABCD);
    let token = sign_hs256(&json!({ "websiteId": WEBSITE, "visitId": visit, "iat": now_s() }));
    let elements: Vec<_> = (0..EVENTS)
        .map(|place| {
            let ip = format!("192.0.2.{}", place % 40);
            submission(
                "event",
                &json!({ "url": format!("/{place}"), "timestamp": 1_777_593_600 + place, "ip": ip }),
            )
        })
        .collect();
    let answer = running.post("/api/batch", json!(elements).to_string(), &[("x-umami-cache", &token)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let summary = answer.json();
    assert_eq!(
        json!([summary["size"], summary["processed"], summary["errors"], summary["details"]]),
        json!([EVENTS, EVENTS, 0, []])
    );
    running.applied(EVENTS as u64).await;
    let rows = running.rows("website_event", "1 = 1").await;
    assert_eq!(rows.len(), EVENTS as usize);
    for (place, row) in rows.iter().enumerate() {
        assert_eq!(row["url_path"], format!("/{place}"));
        // The request's token counts for each, and no element's for the next.
        assert_eq!(row["visit_id"], visit.to_string());
    }
    assert_eq!(running.number("SELECT count(*) FROM session").await, 40);
}

fn now_s() -> i64 {
    Timestamp::now().as_second()
}

fn rules() -> IdRules {
    IdRules {
        secret: Secret::from_text(SECRET),
        rotation: SaltRotation::Month,
        zone: TimeZone::UTC,
        identified: IdentifiedSessions::Shared,
    }
}

/// The claims of a token, unverified.
fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).expect("a token has three parts");
    serde_json::from_slice(&BASE64.decode(claims).expect("base64url")).expect("claims are JSON")
}

fn sign<M: Mac + hmac::digest::KeyInit>(algorithm: &str, secret: &str, claims: &Value) -> String {
    let header = json!({ "alg": algorithm, "typ": "JWT" }).to_string();
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims.to_string()));
    let secret = Secret::from_text(secret);
    let mut mac = <M as Mac>::new_from_slice(secret.token_key()).expect("any length is good");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
}

fn sign_hs256(claims: &Value) -> String {
    sign::<Hmac<sha2::Sha256>>("HS256", SECRET, claims)
}

const RECORDED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ3ZWJzaXRlSWQiOiIxMTExMTExMS0xMTExLTQxMTEtODExMS0xMTExMTExMTExMTEiLCJzZXNzaW9uSWQiOiI1YjUzNGY4OS01YWRjLTU1ZGMtODFmYS02YTM3ZGU4MjZjMWIiLCJ2aXNpdElkIjoiNTI0ODlhYjAtMTRmMC01NTczLWExYjMtNjcyYTU2NDNiMmQzIiwiaWF0IjoxNzk1MTY0OTc1fQ.EP3lGowgJvOy-NKxmVUCozngYsL-PI5rP5AUAtBTmcQ";
const RECORDED_VISIT: &str = "52489ab0-14f0-5573-a1b3-672a5643b2d3";
const RECORDED_IAT: i64 = 1_795_164_975;

/// Posts an event of a fixed moment with this token and returns the answer.
async fn with_token(running: &Running, token: &str, payload: &Value) -> Value {
    let body = submission("event", payload).to_string();
    let answer = running.post("/api/send", body, &[("x-umami-cache", token)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_token_in_the_answer_is_umamis_to_the_letter() {
    let running = Setup::Embedded.start(&[]).await;
    let before = now_s();
    let answer = running.accept("event", &json!({ "url": "/" })).await;
    let token = answer["cache"].as_str().unwrap();
    let iat = claims(token)["iat"].as_i64().unwrap();
    assert!((before..=now_s()).contains(&iat), "{iat}");
    let [session, visit] = ["sessionId", "visitId"].map(|id| answer[id].as_str().unwrap().parse().unwrap());
    let tokens = Tokens::new(&Secret::from_text(SECRET));
    assert_eq!(token, tokens.issue(Some(WEBSITE), session, visit, iat, IdentifiedSessions::Shared));
    let parts: Vec<_> = token.split('.').map(|part| BASE64.decode(part).unwrap()).collect();
    assert_eq!(parts[0], br#"{"alg":"HS256","typ":"JWT"}"#);
    let expected =
        format!(r#"{{"websiteId":"{WEBSITE}","sessionId":"{session}","visitId":"{visit}","iat":{iat}}}"#);
    assert_eq!(String::from_utf8_lossy(&parts[1]), expected);
    let link = running.accept("event", &json!({ "link": UNKNOWN })).await;
    assert_eq!(claims(link["cache"].as_str().unwrap()).get("websiteId"), None);
}

#[tokio::test]
async fn a_token_keeps_the_visit_and_its_beginning() {
    let running = Setup::Embedded.start(&[]).await;
    // With a moment of its own, an event's visit does not expire, and its hour is fixed.
    let payload = json!({ "url": "/", "timestamp": 1_777_593_600, "ip": "192.0.2.1" });
    let visitor = Visitor { source: WEBSITE, address: "192.0.2.1", user_agent: AGENT, distinct_id: None };
    let session = rules().session_id(&visitor, 1_777_593_600_000).to_string();
    let of_the_hour = rules().visit_id(session.parse().unwrap(), 1_777_593_600_000).to_string();

    let answer = with_token(&running, RECORDED, &payload).await;
    assert_eq!((&answer["sessionId"], &answer["visitId"]), (&json!(session), &json!(RECORDED_VISIT)));
    let expected = json!({
        "websiteId": WEBSITE, "sessionId": session, "visitId": RECORDED_VISIT, "iat": RECORDED_IAT,
    });
    assert_eq!(
        claims(answer["cache"].as_str().unwrap()),
        expected,
        "the session is the new one, the rest is kept"
    );

    let visit = Uuid::from_u128(0x5EED).to_string();
    let content =
        json!({ "websiteId": WEBSITE, "sessionId": UNKNOWN, "visitId": visit, "iat": 1_700_000_000 });
    let with = |name: &str, value: Value| {
        let mut content = content.clone();
        content[name] = value;
        content
    };
    let past = now_s() - 5;
    for (token, kept) in [
        (sign_hs256(&content), true),
        (sign::<Hmac<sha2::Sha384>>("HS384", SECRET, &content), true),
        (sign::<Hmac<sha2::Sha512>>("HS512", SECRET, &content), true),
        (sign_hs256(&with("exp", json!(past + 3_600))), true),
        (sign_hs256(&json!({ "visitId": visit })), true),
        (sign_hs256(&with("websiteId", json!(UNKNOWN))), false),
        (sign_hs256(&with("exp", json!(past))), false),
        (sign_hs256(&with("nbf", json!(past + 3_600))), false),
        (sign::<Hmac<sha2::Sha256>>("HS256", "another secret", &content), false),
        (sign::<Hmac<sha2::Sha256>>("HS512", SECRET, &content), false),
        (sign::<Hmac<sha2::Sha256>>("none", SECRET, &content), false),
        (format!("{}x", sign_hs256(&content)), false),
        (sign_hs256(&content).replace('.', ""), false),
        (String::new(), false),
        ("undefined".to_owned(), false),
    ] {
        let answer = with_token(&running, &token, &payload).await;
        let expected = if kept { &visit } else { &of_the_hour };
        assert_eq!(answer["visitId"], *expected, "{token}");
        assert_eq!(answer["sessionId"], session, "{token}: the session never comes from a token");
    }
    // A forged one: another visit under the same signature.
    let parts: Vec<_> = RECORDED.split('.').collect();
    let claims = BASE64.encode(content.to_string());
    let answer = with_token(&running, &format!("{}.{claims}.{}", parts[0], parts[2]), &payload).await;
    assert_eq!(answer["visitId"], of_the_hour);
    // For links and pixels the header does not count.
    let payload = json!({ "link": UNKNOWN, "url": "/", "timestamp": 1_777_593_600 });
    let answer = with_token(&running, &sign_hs256(&content), &payload).await;
    assert_ne!(answer["visitId"], visit);
}

#[tokio::test]
async fn a_visit_ends_half_an_hour_after_its_start() {
    let running = Setup::Embedded.start(&[]).await;
    let payload = json!({ "url": "/", "id": "visitor" });
    let visit = Uuid::from_u128(0x5EED).to_string();
    let token = |iat: i64| sign_hs256(&json!({ "websiteId": WEBSITE, "visitId": visit, "iat": iat }));
    let iat = now_s() - 1_700;
    let answer = with_token(&running, &token(iat), &payload).await;
    assert_eq!(answer["visitId"], visit);
    assert_eq!(claims(answer["cache"].as_str().unwrap())["iat"], iat, "it does not slide");

    let before = now_s();
    let answer = with_token(&running, &token(before - 1_801), &payload).await;
    let after = now_s();
    let session: Uuid = answer["sessionId"].as_str().unwrap().parse().unwrap();
    let hours = [before, after].map(|at| json!(rules().visit_id(session, at * 1_000).to_string()));
    assert!(hours.contains(&answer["visitId"]), "{answer}");
    let iat = claims(answer["cache"].as_str().unwrap())["iat"].as_i64().unwrap();
    assert!((before..=after).contains(&iat), "{iat}");
}

#[tokio::test]
async fn a_token_vouches_for_its_own_website_only() {
    let running = Setup::Embedded.start(&[]).await;
    let token =
        |website: &str| sign_hs256(&json!({ "websiteId": website, "sessionId": UNKNOWN, "iat": now_s() }));
    let unknown = submission("event", &json!({ "website": UNKNOWN })).to_string();
    let own = running.post("/api/send", unknown.clone(), &[("x-umami-cache", &token(UNKNOWN))]).await;
    assert_eq!(own.status, 200, "the token says that it existed: {}", own.text());
    let foreign = running.post("/api/send", unknown.clone(), &[("x-umami-cache", &token(WEBSITE))]).await;
    assert_answer(&foreign, 400, UNKNOWN_ANSWER, "a token of another website");
    let silent = sign_hs256(&json!({ "sessionId": UNKNOWN }));
    let silent = running.post("/api/send", unknown, &[("x-umami-cache", &silent)]).await;
    assert_answer(&silent, 400, UNKNOWN_ANSWER, "a token of no website");
    assert_eq!(running.totals().await.in_log, 1);
}

/// The session that a visitor with this address and [`AGENT`] has at the moment that [`session_of`] sends.
fn session_at(address: &str) -> String {
    let visitor = Visitor { source: WEBSITE, address, user_agent: AGENT, distinct_id: None };
    rules().session_id(&visitor, 1_777_593_600_000).to_string()
}

async fn session_of(running: &Running, headers: &[(&str, &str)]) -> String {
    let body = submission("event", &json!({ "url": "/", "timestamp": 1_777_593_600 })).to_string();
    let answer = running.post("/api/send", body, headers).await;
    answer.json()["sessionId"].as_str().unwrap_or_else(|| panic!("{headers:?}: {}", answer.text())).to_owned()
}

#[tokio::test]
async fn the_clients_address_comes_from_the_first_header_that_has_one() {
    let running = Setup::Embedded.start(&[]).await;
    let forwarded = "for=192.0.2.60;proto=http";
    for (headers, address) in [
        (&[][..], "127.0.0.1"),
        (&[("true-client-ip", "203.0.113.1")], "203.0.113.1"),
        (&[("cf-connecting-ip", "203.0.113.2")], "203.0.113.2"),
        (&[("fastly-client-ip", "203.0.113.3")], "203.0.113.3"),
        (&[("x-nf-client-connection-ip", "203.0.113.4")], "203.0.113.4"),
        (&[("do-connecting-ip", "203.0.113.5")], "203.0.113.5"),
        (&[("x-real-ip", "203.0.113.6")], "203.0.113.6"),
        (&[("x-appengine-user-ip", "203.0.113.7")], "203.0.113.7"),
        (&[("x-forwarded-for", " 203.0.113.8 , 10.0.0.1")], "203.0.113.8"),
        (&[("cf-connecting-ip", "203.0.113.2"), ("true-client-ip", "203.0.113.1")], "203.0.113.1"),
        (&[("x-forwarded-for", "203.0.113.8"), ("x-real-ip", "203.0.113.6")], "203.0.113.6"),
        (&[("true-client-ip", ""), ("x-forwarded-for", "203.0.113.8")], "203.0.113.8"),
        // Behind x-forwarded-for, which the server itself fills, nothing is looked at.
        (&[("forwarded", forwarded)], "127.0.0.1"),
        (&[("x-client-ip", "203.0.113.9")], "127.0.0.1"),
        (&[("x-cluster-client-ip", "203.0.113.9"), ("x-forwarded", "203.0.113.9")], "127.0.0.1"),
        (&[("x-umami-client-ip", "203.0.113.9")], "127.0.0.1"),
        (&[("x-forwarded-for", ""), ("forwarded", forwarded)], "192.0.2.60"),
        (&[("x-forwarded-for", ""), ("x-client-ip", "203.0.113.9")], "203.0.113.9"),
        // In canonical form, without a port.
        (&[("x-forwarded-for", "203.0.113.10:8080")], "203.0.113.10"),
        (&[("x-real-ip", "::ffff:203.0.113.11")], "203.0.113.11"),
        (&[("x-real-ip", "2001:0218:0:0:0:0:0:1")], "2001:218::1"),
        (&[("x-real-ip", "[2001:db8::1]:443")], "[2001:db8::1]"),
        (&[("x-real-ip", "16909060")], "1.2.3.4"),
        (&[("x-real-ip", "fe80::1%eth0")], "fe80::1%eth0"),
        (&[("x-real-ip", "some-host:80")], "some-host"),
        (&[("x-forwarded-for", "unknown")], "unknown"),
    ] {
        assert_eq!(session_of(&running, headers).await, session_at(address), "{headers:?}");
    }
    // The payload's address goes before all headers, as it was sent; an empty one does not count.
    let proxy = [("x-real-ip", "203.0.113.6")];
    for (ip, address) in
        [("::ffff:192.0.2.1", "::ffff:192.0.2.1"), ("192.0.2.1:80", "192.0.2.1:80"), ("", "203.0.113.6")]
    {
        let payload = json!({ "url": "/", "timestamp": 1_777_593_600, "ip": ip });
        let answer = running.post("/api/send", submission("event", &payload).to_string(), &proxy).await;
        assert_eq!(answer.json()["sessionId"], session_at(address), "{ip}");
    }
}

#[tokio::test]
async fn a_configured_header_goes_before_all_and_is_taken_whole() {
    let running = Setup::Embedded.start(&[("CLIENT_IP_HEADER", "X-My-Ip")]).await;
    let mine = |value| [("x-my-ip", value), ("true-client-ip", "203.0.113.1")];
    assert_eq!(session_of(&running, &mine("203.0.113.9:80")).await, session_at("203.0.113.9"));
    let list = "203.0.113.9, 10.0.0.1";
    assert_eq!(session_of(&running, &mine(list)).await, session_at(list), "a list is not split");
    assert_eq!(session_of(&running, &mine("")).await, session_at("203.0.113.1"));
}

#[tokio::test]
async fn a_proxys_location_counts_for_public_addresses_it_names() {
    let running = Setup::Embedded.start(&[]).await;
    let cloudflare = [("cf-ipcountry", "GB"), ("cf-region-code", "ENG"), ("cf-ipcity", "L%C3%B3ndon")];
    let mut expected = Vec::new();
    for (place, (address, payload_ip, located)) in
        [("203.0.113.1", "", true), ("192.168.0.1", "", false), ("203.0.113.1", "203.0.113.2", false)]
            .into_iter()
            .enumerate()
    {
        let payload = json!({ "url": "/", "id": format!("{place}"), "ip": payload_ip });
        let headers = [&cloudflare[..], &[("cf-connecting-ip", address)]].concat();
        let answer = running.post("/api/send", submission("event", &payload).to_string(), &headers).await;
        assert_eq!(answer.status, 200);
        let location = if located { json!(["GB", "GB-ENG", "Lóndon"]) } else { json!([null, null, null]) };
        expected.push((answer.json()["sessionId"].as_str().unwrap().to_owned(), location));
    }
    running.applied(expected.len() as u64).await;
    for (session, location) in expected {
        let row = running.rows("session", &format!("session_id = '{session}'")).await.remove(0);
        assert_eq!(json!([row["country"], row["region"], row["city"]]), location, "{row:?}");
    }
}

async fn a_website_added_later_takes_events_within_two_seconds(setup: Setup) {
    let running = setup.start(&[]).await;
    let body = submission("event", &json!({ "website": UNKNOWN }));
    assert_answer(&running.send(&body).await, 400, UNKNOWN_ANSWER, "unknown");
    let added = running.run(&["website", "add", "--name", "later", "--id", UNKNOWN]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    eventually(Duration::from_secs(2), "the website takes events", async || {
        let answer = running.send(&body).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let totals = running.applied(1).await;
    assert_eq!(totals.in_log, 1, "the refused ones are not in the log");
    assert_eq!(running.rows("website_event", "1 = 1").await[0]["website_id"], UNKNOWN);
}

async fn a_removed_website_takes_no_events_but_with_a_token(setup: Setup) {
    let running = setup.start(&[("DASHI_INGEST_WEBSITE_REFRESH_MS", "200")]).await;
    let token = running.accept("event", &json!({ "url": "/" })).await["cache"].as_str().unwrap().to_owned();
    let removed = running.run(&["website", "remove", WEBSITE]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    let body = submission("event", &json!({ "url": "/" })).to_string();
    eventually(Duration::from_secs(10), "the removed website is unknown", async || {
        let answer = running.post("/api/send", body.clone(), &[]).await;
        if answer.status == 400 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert_answer(&running.post("/api/send", body.clone(), &[]).await, 400, UNKNOWN_ANSWER, "removed");
    let answer = running.post("/api/send", body, &[("x-umami-cache", &token)]).await;
    assert_eq!(answer.status, 200, "an open tab goes on as it does in Umami: {}", answer.text());
    running.applied(2).await;
    assert!(running.number("SELECT count(*) FROM website_event").await >= 2, "its rows stay");
    // It can come back.
    let added = running.run(&["website", "add", "--name", "again", "--id", WEBSITE]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    eventually(Duration::from_secs(2), "it takes events again", async || {
        running.send(&submission("event", &json!({ "url": "/" }))).await.status == 200
    })
    .await;
}

async fn links_and_pixels_are_not_looked_up(setup: Setup) {
    let running = setup.start(&[]).await;
    let pixel = "44444444-4444-4444-8444-444444444444";
    let payload = json!({ "url": "https://a.example/q/slug?utm_source=mail", "name": "named" });
    for (source, id) in [("link", UNKNOWN), ("pixel", pixel)] {
        let mut payload = payload.clone();
        payload[source] = json!(id);
        running.accept("event", &payload).await;
    }
    running.applied(2).await;
    for (id, event_type) in [(UNKNOWN, 3), (pixel, 4)] {
        let rows = running.rows("website_event", &format!("website_id = '{id}'")).await;
        let row = &rows[0];
        assert_eq!(
            json!([rows.len(), row["event_type"], row["event_name"], row["utm_source"], row["url_path"]]),
            json!([1, event_type, "named", "mail", "/q/slug"])
        );
        let sessions = running.rows("session", &format!("website_id = '{id}'")).await;
        assert_eq!(sessions[0]["session_id"], row["session_id"]);
    }
}

/// Opens a connection and sends a request's head and the first half of its body; returns the rest of the body too.
async fn unfinished(running: &Running) -> (TcpStream, Vec<u8>) {
    let body = submission("event", &json!({ "url": "/unfinished" })).to_string().into_bytes();
    let head = format!("POST /api/send HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    let (first, rest) = body.split_at(body.len() / 2);
    let mut stream = TcpStream::connect(running.authority()).await.unwrap();
    stream.write_all(&[head.as_bytes(), first].concat()).await.unwrap();
    (stream, rest.to_vec())
}

#[tokio::test]
async fn past_its_bound_of_requests_it_says_when_to_come_back() {
    let env = [("DASHI_INGEST_IN_FLIGHT_MAX", "1"), ("DASHI_INGEST_RETRY_AFTER_S", "7")];
    let running = Setup::Embedded.start(&env).await;
    let (mut stream, rest) = unfinished(&running).await;
    eventually(SILENCE, "the one place is taken", async || {
        let metrics = http::get(&running.url("/metrics")).await?;
        anyhow::Ok(metrics.text().lines().any(|line| line == "dashi_ingest_in_flight 1"))
    })
    .await;
    let body = submission("event", &json!({ "website": UNKNOWN })).to_string();
    for path in ["/api/send", "/api/batch"] {
        let answer = running.post(path, body.clone(), &[]).await;
        let expected =
            r#"{"error":{"message":"Service unavailable","code":"service-unavailable","status":503}}"#;
        assert_answer(&answer, 503, expected, path);
        assert_eq!(answer.header("retry-after"), Some("7"));
    }
    let heartbeat = request(&running, Method::GET, "/api/heartbeat").await;
    assert_answer(&heartbeat, 200, r#"{"ok":true}"#, "liveness does not depend on it");
    stream.write_all(&rest).await.unwrap();
    let answer = read_until_silent(&mut stream, Duration::from_secs(1)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(running.send(&submission("event", &json!({ "url": "/" }))).await.status, 200);
    assert_eq!(running.totals().await.in_log, 2);
}

#[tokio::test]
async fn a_slow_body_has_a_bound() {
    let running = Setup::Embedded.start(&[("DASHI_INGEST_REQUEST_TIMEOUT_MS", "1000")]).await;
    // One that stops, and one that trickles.
    for trickles in [false, true] {
        let began = Instant::now();
        let (stream, rest) = unfinished(&running).await;
        let (mut reader, mut writer) = stream.into_split();
        let trickle = tokio::spawn(async move {
            for byte in rest.into_iter().cycle().take(if trickles { 40 } else { 0 }) {
                tokio::time::sleep(Duration::from_millis(250)).await;
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
            // Dropped, it would tell the server that no more is to come.
            writer
        });
        let mut answer = vec![0; 15];
        tokio::io::AsyncReadExt::read_exact(&mut reader, &mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 503 Se");
        let took = began.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
        trickle.abort();
    }
    assert_eq!(running.totals().await.in_log, 0);
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let running = Setup::Embedded.start(&[("DASHI_INGEST_IDLE_TIMEOUT_MS", "500")]).await;
    let began = Instant::now();
    let answer = running.raw(b"POST /api/send HTTP/1.1\r\nhost:", Duration::from_secs(30)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {answer}", began.elapsed());
}
