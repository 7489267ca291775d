//! Bad input: every kind of it gets its answer, in Umami's order of checks, alone and in a batch.

use hyper::Method;
use integration_tests::setup::{WEBSITE, submission};
use integration_tests::{Setup, http, on_both_setups};
use serde_json::{Value, json};

use super::{
    BLOCKED_ANSWER, BOT_ANSWER, UNKNOWN, UNKNOWN_ANSWER, assert_answer, claims, payload_error, schema_error,
};

on_both_setups!(
    bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log,
    a_batch_answers_for_each_of_its_elements,
    bodies_are_read_as_utf_8_whatever_their_type,
);

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
    // Length and format are reported together with the rule about sources, a wrong type is reported without it.
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
