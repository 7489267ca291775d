//! Tests of [`super`].

use proptest::prelude::*;

use super::check::{NOT_ONE_SOURCE, is_longer};
use super::*;
use crate::page_url::is_url;
use crate::schema::parse_uuid;

const ID: &str = "8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9d0e";

/// The rules up to 3.2, which are the strictest.
const OLD: SchemaRules =
    SchemaRules { any_length: false, no_formulas: false, zero_is_a_time: false, keep_unknown_types: false };

/// A payload with a website and `members` after it.
fn payload(members: &str) -> Result<Payload<'static>, String> {
    let comma = if members.is_empty() { "" } else { "," };
    let body = format!(r#"{{"type":"event","payload":{{"website":"{ID}"{comma}{members}}}}}"#);
    let value = json::parse(body.as_bytes()).unwrap().into_owned();
    Submission::from_value(value, OLD).map(|submission| submission.payload).map_err(|error| error.to_json())
}

fn accepted(members: &str) -> Payload<'static> {
    payload(members).unwrap_or_else(|answer| panic!("{members}: {answer}"))
}

fn refused(body: &str) -> String {
    match Submission::parse(body.as_bytes(), OLD) {
        Ok(submission) => panic!("{body} gave {submission:?}"),
        Err(error) => error.to_json(),
    }
}

/// The answer with these members behind `status`.
fn answer(members: &str) -> String {
    format!(r#"{{"error":{{"message":"Bad request","code":"bad-request","status":400,{members}}}}}"#)
}

/// The answer with these members in the properties of `payload`.
fn payload_answer(members: &str) -> String {
    answer(&format!(r#""errors":[],"properties":{{"payload":{{"errors":[],"properties":{{{members}}}}}}}"#))
}

fn written(payload: &Payload<'_>) -> String {
    let mut out = String::new();
    payload.write(&mut out);
    out
}

#[test]
fn the_examples_of_the_contract_get_their_answers() {
    const KIND: &str =
        r#""type":{"errors":["Invalid option: expected one of \"event\"|\"identify\"|\"performance\""]}"#;
    let undefined = answer(r#""errors":["Invalid input: expected object, received undefined"]"#);
    for broken in ["", " ", "{", "{\"type\":\"event\",}", "undefined", "\u{1f}\u{8b}"] {
        assert_eq!(refused(broken), undefined, "{broken}");
    }
    let no_payload = r#""payload":{"errors":["Invalid input: expected object, received undefined"]}"#;
    assert_eq!(refused("{}"), answer(&format!(r#""errors":[],"properties":{{{KIND},{no_payload}}}"#)));
    assert_eq!(
        refused(r#"{"type":"event","payload":{}}"#),
        payload_answer(r#""website":{"errors":["Exactly one of website, link, or pixel must be provided"]}"#)
    );
    assert_eq!(
        refused(r#"{"type":"event","payload":{"website":""}}"#),
        payload_answer(
            r#""website":{"errors":["Invalid UUID","Exactly one of website, link, or pixel must be provided"]}"#
        )
    );
    assert_eq!(
        refused(&format!(r#"{{"type":"Event","payload":{{"website":"{ID}"}}}}"#)),
        answer(&format!(r#""errors":[],"properties":{{{KIND}}}"#))
    );
    assert_eq!(
        refused(r#"{"type":null,"payload":[]}"#),
        answer(&format!(
            r#""errors":[],"properties":{{{KIND},"payload":{{"errors":["Invalid input: expected object, received array"]}}}}"#
        ))
    );
    // The rule about the source belongs to the payload and does not care about the type.
    assert_eq!(
        refused(r#"{"type":1,"payload":{}}"#),
        answer(&format!(
            r#""errors":[],"properties":{{{KIND},"payload":{{"errors":[],"properties":{{"website":{{"errors":["{NOT_ONE_SOURCE}"]}}}}}}}}"#
        ))
    );
}

#[test]
fn a_body_that_is_no_object_is_named_by_its_type() {
    for (body, received) in [
        ("null", "null"),
        ("[]", "array"),
        ("\"x\"", "string"),
        ("1", "number"),
        ("1e400", "number"),
        ("false", "boolean"),
    ] {
        let text = format!(r#""errors":["Invalid input: expected object, received {received}"]"#);
        assert_eq!(refused(body), answer(&text), "{body}");
        let body = format!(r#"{{"type":"identify","payload":{body}}}"#);
        let text = format!(r#""errors":[],"properties":{{"payload":{{{text}}}}}"#);
        assert_eq!(refused(&body), answer(&text), "{body}");
    }
}

#[test]
fn texts_of_any_length_are_taken_where_they_are_cut() {
    let newest = SchemaRules::of(Release::V3_4, false);
    let rules = [
        (SchemaRules::of(Release::V3_2, false), false),
        (SchemaRules::of(Release::V3_2, true), true),
        (SchemaRules::of(Release::V3_3, false), true),
        (newest, true),
        (SchemaRules::RECORDED, true),
        (SchemaRules::UNKNOWN, true),
    ];
    for (field, max) in [("hostname", 100), ("language", 35), ("screen", 11), ("name", 50), ("tag", 50)] {
        for (length, is_long) in [(max, false), (max + 1, true), (max * 100, true)] {
            let text = "x".repeat(length);
            let body = format!(r#"{{"type":"event","payload":{{"website":"{ID}","{field}":"{text}"}}}}"#);
            for (rules, cuts) in rules {
                let taken = Submission::parse(body.as_bytes(), rules).is_ok();
                assert_eq!(taken, cuts || !is_long, "{field} of {length} under {rules:?}");
            }
        }
    }
    // Ours have their limits everywhere.
    for field in ["messageId", "baseVersion"] {
        let text = "x".repeat(101);
        let body = format!(r#"{{"type":"event","payload":{{"website":"{ID}","{field}":"{text}"}}}}"#);
        assert!(Submission::parse(body.as_bytes(), newest).is_err());
    }
}

#[test]
fn names_and_tags_that_begin_as_formulas_are_refused_from_3_3_on() {
    let value = |field: &str, text: &str| {
        let mut json = String::new();
        json::write_string(text, &mut json);
        format!(r#"{{"type":"event","payload":{{"website":"{ID}","{field}":{json}}}}}"#)
    };
    for first in ["=", "+", "-", "@", "\t", "\r"] {
        for field in ["name", "tag"] {
            let body = value(field, &format!("{first}1"));
            for release in [Release::V3_3, Release::V3_4] {
                let refused = Submission::parse(body.as_bytes(), SchemaRules::of(release, false));
                let expected = payload_answer(&format!(
                    r#""{field}":{{"errors":["Value must not start with =, +, -, @, tab, or carriage return"]}}"#
                ));
                assert_eq!(refused.unwrap_err().to_json(), expected, "{body}");
            }
            assert!(Submission::parse(body.as_bytes(), SchemaRules::of(Release::V3_2, true)).is_ok());
            assert!(Submission::parse(body.as_bytes(), SchemaRules::RECORDED).is_ok());
        }
        for field in ["title", "hostname", "id"] {
            let body = value(field, &format!("{first}1"));
            assert!(Submission::parse(body.as_bytes(), SchemaRules::of(Release::V3_4, false)).is_ok());
        }
    }
    for fine in ["", "a=", " =1", "\n=1", "'=1", "_"] {
        let body = value("name", fine);
        assert!(
            Submission::parse(body.as_bytes(), SchemaRules::of(Release::V3_4, false)).is_ok(),
            "{fine:?}"
        );
    }
}

#[test]
fn from_3_4_on_a_timestamp_of_0_is_a_time() {
    for sent in ["0", "-0", "null", "\"\"", "\"0\"", "false", "[]"] {
        let body = format!(r#"{{"type":"event","payload":{{"website":"{ID}","timestamp":{sent}}}}}"#);
        for release in Release::ALL {
            let rules = SchemaRules::of(release, false);
            let payload = Submission::parse(body.as_bytes(), rules).unwrap().payload;
            let expected = (release >= Release::V3_4).then_some(0);
            assert_eq!(payload.timestamp, expected, "{sent} under {release}");
            let record = format!(r#"{{"type":"event","payload":{}}}"#, written(&payload));
            let read = Submission::parse(record.as_bytes(), SchemaRules::RECORDED).unwrap().payload;
            assert_eq!(read.timestamp, expected, "{record}");
        }
    }
}

#[test]
fn every_wrong_field_has_its_text() {
    let fifty_one = format!(r#""{}""#, "x".repeat(51));
    let hundred_one = format!(r#""{}""#, "é".repeat(101));
    let twenty_six_emoji = format!(r#""{}""#, "😀".repeat(26));
    for (field, value, text) in [
        ("website", "1", "Invalid input: expected string, received number"),
        ("website", "null", "Invalid input: expected string, received null"),
        ("website", r#""x""#, "Invalid UUID"),
        ("link", "true", "Invalid input: expected string, received boolean"),
        ("link", r#""""#, "Invalid UUID"),
        ("pixel", "[]", "Invalid input: expected string, received array"),
        ("pixel", r#""""#, "Invalid UUID"),
        ("data", "[]", "Invalid input: expected record, received array"),
        ("data", "null", "Invalid input: expected record, received null"),
        ("data", "\"{}\"", "Invalid input: expected record, received string"),
        ("hostname", "{}", "Invalid input: expected string, received object"),
        ("hostname", &hundred_one, "Too big: expected string to have <=100 characters"),
        ("language", "null", "Invalid input: expected string, received null"),
        ("language", &fifty_one, "Too big: expected string to have <=35 characters"),
        ("referrer", "0", "Invalid input: expected string, received number"),
        ("referrer", r#""https://""#, "Invalid URL."),
        ("screen", "null", "Invalid input: expected string, received null"),
        ("screen", r#""100000x10000""#, "Too big: expected string to have <=11 characters"),
        ("title", "null", "Invalid input: expected string, received null"),
        ("url", "null", "Invalid input: expected string, received null"),
        ("url", r#""//[""#, "Invalid URL."),
        ("name", "1e400", "Invalid input: expected string, received number"),
        ("name", &fifty_one, "Too big: expected string to have <=50 characters"),
        ("name", &twenty_six_emoji, "Too big: expected string to have <=50 characters"),
        ("tag", "[\"\"]", "Invalid input: expected string, received array"),
        ("tag", &fifty_one, "Too big: expected string to have <=50 characters"),
        ("ip", "127", "Invalid input: expected string, received number"),
        ("userAgent", "false", "Invalid input: expected string, received boolean"),
        ("timestamp", r#""soon""#, "Invalid input: expected number, received NaN"),
        ("timestamp", "{}", "Invalid input: expected number, received NaN"),
        ("timestamp", "[1,2]", "Invalid input: expected number, received NaN"),
        ("timestamp", "1e400", "Invalid input: expected number, received number"),
        ("timestamp", r#""-Infinity""#, "Invalid input: expected number, received number"),
        ("timestamp", "1.5", "Invalid input: expected int, received number"),
        ("timestamp", r#""1700000000.25""#, "Invalid input: expected int, received number"),
        ("timestamp", "9007199254740992", "Too big: expected int to be <=9007199254740991"),
        ("timestamp", "-1e300", "Too small: expected int to be >=-9007199254740991"),
        ("timestamp", "9007199254740991", "Too big: expected int to be <=8640000000000"),
        ("timestamp", "8640000000001", "Too big: expected int to be <=8640000000000"),
        ("timestamp", "-9007199254740991", "Too small: expected int to be >=-210866803200"),
        ("timestamp", "-210866803201", "Too small: expected int to be >=-210866803200"),
        ("id", "7", "Invalid input: expected string, received number"),
        ("browser", "null", "Invalid input: expected string, received null"),
        ("os", "null", "Invalid input: expected string, received null"),
        ("device", "null", "Invalid input: expected string, received null"),
        ("lcp", r#""1""#, "Invalid input: expected number, received string"),
        ("lcp", "null", "Invalid input: expected number, received null"),
        ("lcp", "1e400", "Invalid input: expected number, received number"),
        ("lcp", "60000.01", "Too big: expected number to be <=60000"),
        ("inp", "-0.001", "Too small: expected number to be >=0"),
        ("inp", "60001", "Too big: expected number to be <=60000"),
        ("cls", "100.5", "Too big: expected number to be <=100"),
        ("cls", "-1", "Too small: expected number to be >=0"),
        ("fcp", "true", "Invalid input: expected number, received boolean"),
        ("fcp", "60001", "Too big: expected number to be <=60000"),
        ("ttfb", "{}", "Invalid input: expected number, received object"),
        ("ttfb", "60001", "Too big: expected number to be <=60000"),
        ("baseVersion", "0", "Invalid input: expected string, received number"),
        ("baseVersion", &hundred_one, "Too big: expected string to have <=100 characters"),
    ] {
        let members = format!(r#""{field}":{value}"#);
        let expected = payload_answer(&format!(r#""{field}":{{"errors":["{text}"]}}"#));
        assert_eq!(payload(&members).unwrap_err(), expected, "{members}");
    }
}

#[test]
fn exactly_one_source_is_required_unless_a_type_is_wrong() {
    let one_of =
        |others: &str| payload_answer(&format!(r#"{others}"website":{{"errors":["{NOT_ONE_SOURCE}"]}}"#));
    let nil = Uuid::nil();
    for (members, expected) in [
        (format!(r#""website":"{ID}","link":"{ID}""#), one_of("")),
        (format!(r#""link":"{ID}","pixel":"{nil}""#), one_of("")),
        // A text that is no id still counts as one, an empty one does not.
        (r#""link":"x""#.into(), payload_answer(r#""link":{"errors":["Invalid UUID"]}"#)),
        (r#""pixel":"""#.into(), one_of(r#""pixel":{"errors":["Invalid UUID"]},"#)),
        (
            format!(r#""website":"x","link":"{ID}""#),
            payload_answer(&format!(r#""website":{{"errors":["Invalid UUID","{NOT_ONE_SOURCE}"]}}"#)),
        ),
        // With errors of length, format and range the rule is evaluated, and comes last.
        (
            r#""ttfb":-1,"screen":"123456789012","url":"https://","timestamp":1e300"#.into(),
            one_of(concat!(
                r#""screen":{"errors":["Too big: expected string to have <=11 characters"]},"#,
                r#""url":{"errors":["Invalid URL."]},"#,
                r#""timestamp":{"errors":["Too big: expected int to be <=9007199254740991"]},"#,
                r#""ttfb":{"errors":["Too small: expected number to be >=0"]},"#
            )),
        ),
        (
            r#""timestamp":1e13"#.into(),
            one_of(r#""timestamp":{"errors":["Too big: expected int to be <=8640000000000"]},"#),
        ),
        // With a wrong type it is not.
        (
            r#""title":1"#.into(),
            payload_answer(r#""title":{"errors":["Invalid input: expected string, received number"]}"#),
        ),
        (
            r#""data":1"#.into(),
            payload_answer(r#""data":{"errors":["Invalid input: expected record, received number"]}"#),
        ),
        (
            r#""lcp":"1""#.into(),
            payload_answer(r#""lcp":{"errors":["Invalid input: expected number, received string"]}"#),
        ),
        (
            r#""timestamp":0.5"#.into(),
            payload_answer(r#""timestamp":{"errors":["Invalid input: expected int, received number"]}"#),
        ),
        (
            r#""timestamp":"x""#.into(),
            payload_answer(r#""timestamp":{"errors":["Invalid input: expected number, received NaN"]}"#),
        ),
        (
            r#""website":"","link":null"#.into(),
            payload_answer(
                r#""website":{"errors":["Invalid UUID"]},"link":{"errors":["Invalid input: expected string, received null"]}"#,
            ),
        ),
    ] {
        let body = format!(r#"{{"type":"event","payload":{{{members}}}}}"#);
        assert_eq!(refused(&body), expected, "{members}");
    }
}

#[test]
fn errors_come_in_the_order_of_the_schema_not_of_the_body() {
    let fields = [
        "website",
        "link",
        "pixel",
        "data",
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
        "lcp",
        "inp",
        "cls",
        "fcp",
        "ttfb",
        "messageId",
        "baseVersion",
    ];
    let members: Vec<_> = fields.iter().rev().map(|field| format!(r#""{field}":false"#)).collect();
    let body = format!(r#"{{"payload":{{{},"timestamp":"x"}},"type":"event"}}"#, members.join(","));
    let answer = refused(&body);
    let mut order: Vec<_> = fields.iter().map(|field| answer.find(&format!("\"{field}\":{{"))).collect();
    order.insert(14, answer.find("\"timestamp\":{"));
    assert!(order.iter().all(Option::is_some), "{answer}");
    assert!(order.is_sorted(), "{answer}");
}

#[test]
fn a_full_submission_is_read_field_by_field() {
    let body = format!(
        r#"{{"type":"performance","cache":1,"payload":{{"ttfb":5,"fcp":4,"cls":0.5,"inp":2,"lcp":60000,
        "device":"d","os":"","browser":"b","id":"i","timestamp":-1,"userAgent":"agent","ip":"not an ip","tag":"t",
        "name":"n","url":"/u","title":"ti","screen":"1920x1080","referrer":"https://r.example/","language":"de",
        "hostname":"a.example","baseVersion":"0","data":{{"b":[1],"1":null}},"pixel":"{ID}","duration":9,"session":"x"}}}}"#
    );
    let submission = Submission::parse(body.as_bytes(), OLD).unwrap();
    assert_eq!(submission.kind, SubmissionKind::Performance);
    let payload = submission.payload;
    assert_eq!(payload.source.kind, SourceKind::Pixel);
    assert_eq!(payload.source.text, ID);
    assert_eq!(payload.source.id.to_string(), ID);
    assert_eq!(payload.data.as_ref().map(Object::len), Some(2));
    for (field, expected) in [
        (&payload.hostname, "a.example"),
        (&payload.language, "de"),
        (&payload.referrer, "https://r.example/"),
        (&payload.screen, "1920x1080"),
        (&payload.title, "ti"),
        (&payload.url, "/u"),
        (&payload.name, "n"),
        (&payload.tag, "t"),
        (&payload.ip, "not an ip"),
        (&payload.user_agent, "agent"),
        (&payload.id, "i"),
        (&payload.browser, "b"),
        (&payload.os, ""),
        (&payload.device, "d"),
        (&payload.base_version, "0"),
    ] {
        assert!(matches!(field, Some(Cow::Borrowed(text)) if *text == expected), "{expected}");
    }
    assert_eq!(payload.timestamp, Some(-1));
    let vitals = [payload.lcp, payload.inp, payload.cls, payload.fcp, payload.ttfb];
    assert_eq!(vitals, [Some(60000.0), Some(2.0), Some(0.5), Some(4.0), Some(5.0)]);
    let expected = format!(
        "{}{ID}{}",
        r#"{"pixel":""#,
        concat!(
            r#"","data":{"1":null,"b":[1]},"hostname":"a.example","language":"de","#,
            r#""referrer":"https://r.example/","screen":"1920x1080","title":"ti","url":"/u","name":"n","tag":"t","#,
            r#""timestamp":-1,"id":"i","browser":"b","os":"","device":"d","#,
            r#""lcp":60000,"inp":2,"cls":0.5,"fcp":4,"ttfb":5,"baseVersion":"0"}"#
        )
    );
    assert_eq!(written(&payload), expected);
    assert_eq!(format!("{payload:?}"), expected);
}

#[test]
fn only_the_source_is_required() {
    for kind in [SubmissionKind::Event, SubmissionKind::Identify, SubmissionKind::Performance] {
        for source in [SourceKind::Website, SourceKind::Link, SourceKind::Pixel] {
            let payload = format!(r#"{{"{}":"{ID}"}}"#, source.as_str());
            let body = format!(r#"{{"type":"{}","payload":{payload}}}"#, kind.as_str());
            let submission = Submission::parse(body.as_bytes(), OLD).unwrap();
            assert_eq!(submission.kind, kind);
            assert_eq!(submission.payload.source.kind, source);
            assert_eq!(written(&submission.payload), payload);
        }
    }
    assert_eq!(SubmissionKind::parse("Event"), None);
}

#[test]
fn a_timestamp_is_coerced_by_javascripts_number() {
    for (value, expected) in [
        ("1700000000", Some(1_700_000_000)),
        (r#""1700000000""#, Some(1_700_000_000)),
        (r#"" 1.7e9\n""#, Some(1_700_000_000)),
        ("[1700000000]", Some(1_700_000_000)),
        (r#"[["0x10"]]"#, Some(16)),
        ("true", Some(1)),
        ("-5", Some(-5)),
        ("8640000000000", Some(8_640_000_000_000)),
        ("-210866803200", Some(-210_866_803_200)),
        ("null", None),
        (r#""""#, None),
        (r#"" ""#, None),
        ("0", None),
        ("-0", None),
        ("1e-400", None),
        ("false", None),
        ("[]", None),
        ("[null]", None),
    ] {
        let members = format!(r#""timestamp":{value}"#);
        assert_eq!(accepted(&members).timestamp, expected, "{value}");
    }
    assert_eq!(accepted("").timestamp, None);
}

#[test]
fn lengths_are_counted_in_utf16_units() {
    for (field, max) in [("hostname", 100), ("language", 35), ("screen", 11), ("name", 50), ("tag", 50)] {
        for unit in ["x", "é", "你", "\u{FFFF}"] {
            assert!(payload(&format!(r#""{field}":"{}""#, unit.repeat(max))).is_ok(), "{field} {unit}");
            assert!(payload(&format!(r#""{field}":"{}""#, unit.repeat(max + 1))).is_err(), "{field} {unit}");
        }
        assert!(payload(&format!(r#""{field}":"{}""#, "😀".repeat(max / 2))).is_ok(), "{field}");
        assert!(payload(&format!(r#""{field}":"{}""#, "😀".repeat(max / 2 + 1))).is_err(), "{field}");
        assert!(payload(&format!(r#""{field}":"{}""#, "\\ud83d".repeat(max))).is_ok(), "{field}");
    }
    let long = "x".repeat(10_000);
    for field in ["title", "ip", "userAgent", "id", "browser", "os", "device", "url", "referrer"] {
        assert!(payload(&format!(r#""{field}":"{long}""#)).is_ok(), "{field}");
    }
}

#[test]
fn uuids_follow_the_rule_of_zod() {
    for text in [
        ID,
        "8E9B6C5E-1F2A-4B3C-8D4E-5F6A7B8C9D0E",
        "8e9b6c5e-1f2a-1b3c-ad4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-8b3c-Bd4e-5f6a7b8c9d0e",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ] {
        assert_eq!(parse_uuid(text), Some(Uuid::parse_str(text).unwrap()), "{text}");
        let body = format!(r#"{{"type":"event","payload":{{"link":"{text}"}}}}"#);
        let submission = Submission::parse(body.as_bytes(), OLD).unwrap();
        assert_eq!(submission.payload.source.text, text, "not lower-cased: it is hashed as sent");
    }
    for text in [
        "",
        "8e9b6c5e-1f2a-0b3c-8d4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-9b3c-8d4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-4b3c-7d4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-4b3c-cd4e-5f6a7b8c9d0e",
        "8e9b6c5e1f2a4b3c8d4e5f6a7b8c9d0e",
        "{8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9d0e}",
        " 8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9d0e\n",
        "8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9d0g",
        "8e9b6c5e+1f2a-4b3c-8d4e-5f6a7b8c9d0e",
        "8e9b6c5e-1f2a-4b3c-8d4e-5f6a7b8c9dé",
        "ffffffff-ffff-ffff-ffff-fffffffffffF",
        "00000000-0000-0000-0000-000000000001",
    ] {
        assert_eq!(parse_uuid(text), None, "{text}");
    }
}

#[test]
fn urls_are_what_whatwg_parses_against_localhost() {
    for text in [
        "",
        "/",
        "/ ",
        "/a b",
        "/\u{0}",
        "/%zz",
        "/?a=//[",
        "x/y",
        "?q",
        "#h",
        " /a",
        "//cdn.example/p",
        "https://bücher.example/",
        "about:blank",
        "android-app://com.example/",
        "undefined",
        "http:relative",
        "https:///a.example",
        "/\\a.example/",
    ] {
        assert!(is_url(text), "{text:?}");
    }
    for text in
        ["//", "//[", "/\t/[", "/\n\\[", "/\r\\", "https://", "http://a b/", "//a:99999", "https://exa%mple/"]
    {
        assert!(!is_url(text), "{text:?}");
    }
}

#[test]
fn a_batch_is_an_array_of_objects() {
    let items = parse_batch(br#"[{"type":"event"},{},{"a":1}]"#, 3).unwrap();
    assert_eq!(items.len(), 3);
    assert!(Submission::from_value(items[0].clone(), OLD).is_err());
    assert_eq!(parse_batch(b"[]", 3).unwrap(), []);
    for (body, members) in [
        ("", r#""errors":["Invalid input: expected array, received undefined"]"#),
        ("[{},]", r#""errors":["Invalid input: expected array, received undefined"]"#),
        ("{}", r#""errors":["Invalid input: expected array, received object"]"#),
        ("null", r#""errors":["Invalid input: expected array, received null"]"#),
        ("[1]", r#""errors":[],"items":[{"errors":["Invalid input: expected record, received number"]}]"#),
        (
            r#"[{},1,{},{},null,[],"s",{}]"#,
            concat!(
                r#""errors":[],"items":[null,{"errors":["Invalid input: expected record, received number"]},null,null,"#,
                r#"{"errors":["Invalid input: expected record, received null"]},"#,
                r#"{"errors":["Invalid input: expected record, received array"]},"#,
                r#"{"errors":["Invalid input: expected record, received string"]}]"#
            ),
        ),
    ] {
        let Err(BatchError::Schema(error)) = parse_batch(body.as_bytes(), 8) else { panic!("{body}") };
        assert_eq!(error.to_json(), answer(members), "{body}");
    }
}

#[test]
fn the_answer_to_a_hostile_batch_stays_small() {
    let body = format!("[{}0]", "0,".repeat(1 << 10));
    let Err(BatchError::Schema(error)) = parse_batch(body.as_bytes(), 1 << 20) else { panic!() };
    assert_eq!(error.to_json().matches("received number").count(), BATCH_ERRORS_MAX);
    assert!(error.to_json().contains("\"errors\":[\"925 further elements are no objects\"]"));
}

/// Of any form, and with anything behind the first element too many: it is not read.
#[test]
fn a_batch_has_so_many_elements_and_no_more() {
    for element in ["{}", "0", "[[]]", r#"{"type":"event"}"#, " \"\" "] {
        let of = |count: usize| format!("[{}]", vec![element; count].join(","));
        let just_so = of(7);
        let taken = parse_batch(just_so.as_bytes(), 7);
        assert!(!matches!(taken, Err(BatchError::TooMany { .. })), "{element}: {taken:?}");
        for body in [
            of(8),
            of(20),
            format!("[{element},{element},{element},{element},{element},{element},{element},{element},?"),
        ] {
            assert_eq!(parse_batch(body.as_bytes(), 7), Err(BatchError::TooMany { max: 7 }), "{body}");
        }
    }
    // Only of the batch itself: the contents of an element are the element's matter.
    let inner = format!("[{{\"a\":[{}0]}}]", "0,".repeat(20));
    assert_eq!(parse_batch(inner.as_bytes(), 7).unwrap().len(), 1);
    // Invalid UTF-8 goes another way.
    assert_eq!(parse_batch(b"[\"\xff\",0]", 1), Err(BatchError::TooMany { max: 1 }));
}

#[test]
fn an_error_names_the_fields_for_the_log() {
    let error = Submission::parse(br#"{"type":"event","payload":{"website":"","name":1}}"#, OLD).unwrap_err();
    let text = "payload.website: Invalid UUID; payload.name: Invalid input: expected string, received number";
    assert_eq!(error.to_string(), format!("body does not fit the schema: {text}"));
    let error = parse_batch(b"[{},1]", 2).unwrap_err();
    let text = "[1]: Invalid input: expected record, received number";
    assert_eq!(error.to_string(), format!("body does not fit the schema: {text}"));
}

#[test]
fn every_field_is_found_by_its_name() {
    let names = [
        "website",
        "link",
        "pixel",
        "data",
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
        "timestamp",
        "id",
        "browser",
        "os",
        "device",
        "lcp",
        "inp",
        "cls",
        "fcp",
        "ttfb",
        "messageId",
        "baseVersion",
    ];
    assert_eq!(names.len(), Field::COUNT);
    for (place, name) in names.into_iter().enumerate() {
        let field = Field::of(name).unwrap();
        assert_eq!((field as usize, field.name()), (place, name));
    }
    assert_eq!(Field::of("useragent"), None);
}

#[test]
fn neither_address_nor_agent_is_written() {
    let payload = accepted(r#""ip":"203.0.113.7","userAgent":"secret agent","title":"\"\u0001""#);
    assert_eq!(written(&payload), format!(r#"{{"website":"{ID}","title":"\"\u0001"}}"#));
    assert!(!format!("{payload:?}").contains("203.0"));
}

#[test]
fn an_infinite_number_in_data_is_written_as_one() {
    let data = r#""data":{"n":1e400,"l":[-1e400,{"x":1e400}]}"#;
    let payload = accepted(data);
    assert_eq!(
        written(&payload),
        format!(r#"{{"website":"{ID}","data":{{"n":1e999,"l":[-1e999,{{"x":1e999}}]}}}}"#)
    );
    let body = format!(r#"{{"type":"event","payload":{}}}"#, written(&payload));
    assert_eq!(Submission::parse(body.as_bytes(), OLD).unwrap().payload, payload);
}

fn members() -> impl Strategy<Value = String> {
    let text =
        || prop_oneof!["[a-z/:.?#\\[ ]{0,12}", any::<String>()].prop_map(Cow::Owned).prop_map(Value::String);
    let number = prop_oneof![
        (-10..70_000_i32).prop_map(f64::from),
        any::<f64>(),
        0.0..1.0_f64,
        (1_600_000_000..1_800_000_000_i32).prop_map(f64::from)
    ];
    let leaf = prop_oneof![
        2 => text(),
        2 => number.prop_map(Value::Number),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => Just(Value::Null)
    ];
    let value = leaf.prop_recursive(3, 16, 6, |inner| {
        let key = prop_oneof!["[a-c]", "[0-9]{1,2}", any::<String>()].prop_map(Cow::Owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|entries| Value::Object(Object::from_members(entries))),
        ]
    });
    let place = 1..Field::COUNT;
    prop::collection::vec((place, value), 0..3).prop_map(|members| {
        let name = |place: usize| {
            [
                "",
                "link",
                "pixel",
                "data",
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
                "timestamp",
                "id",
                "browser",
                "os",
                "device",
                "lcp",
                "inp",
                "cls",
                "fcp",
                "ttfb",
                "messageId",
                "baseVersion",
            ][place]
        };
        let text = |(place, value): (usize, Value<'_>)| format!(r#""{}":{}"#, name(place), value.to_json());
        members.into_iter().map(text).collect::<Vec<_>>().join(",")
    })
}

proptest! {
    #[test]
    fn what_is_written_parses_to_the_same_without_address_and_agent(members in members()) {
        if let Ok(before) = payload(&members) {
            let body = format!(r#"{{"type":"event","payload":{}}}"#, written(&before));
            let after = Submission::parse(body.as_bytes(), OLD).unwrap().payload;
            let expected = Payload { ip: None, user_agent: None, message_id: None, ..before };
            prop_assert_eq!(after, expected);
        }
    }

    #[test]
    fn a_refusal_is_json_and_names_something(members in members()) {
        if let Err(answer) = payload(&members) {
            let value = json::parse_str(&answer).unwrap();
            prop_assert!(value.as_object().and_then(|answer| answer.get("error")).is_some());
            prop_assert!(answer.contains("\"errors\":[\""), "{answer}");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
        let _ = Submission::parse(&bytes, OLD);
        let _ = parse_batch(&bytes, 2);
    }

    #[test]
    fn the_short_cut_for_lengths_agrees_with_counting(text in "[a-zé你😀]{0,12}", max in 0..12_usize) {
        prop_assert_eq!(is_longer(&text, max), text.encode_utf16().count() > max);
    }
}
