//! Tokens: the one in an answer, and what the one in a request vouches for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dashi_domain::ids::{IdentifiedSessions, Secret, Visitor};
use dashi_domain::token::Tokens;
use hmac::Hmac;
use integration_tests::setup::{AGENT, SECRET, WEBSITE, submission};
use integration_tests::{Running, Setup};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{UNKNOWN, UNKNOWN_ANSWER, assert_answer, claims, now_s, rules, sign, sign_hs256};

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
