//! The answers that clients get, to the byte, and that a refusal leaves nothing in the log.

mod addresses;
mod bad_input;
mod headers;
mod limits;
mod sources;
mod tokens;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dashi_domain::calendar::SaltRotation;
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret};
use hmac::{Hmac, Mac};
use hyper::Method;
use integration_tests::http::Answer;
use integration_tests::setup::SECRET;
use integration_tests::{Running, http};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

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

async fn request(running: &Running, method: Method, path: &str) -> Answer {
    http::request(method, &running.url(path), "", &[("origin", "https://a.example")]).await.unwrap()
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
