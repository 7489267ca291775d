//! Headers and paths of the API's answers.

use hyper::Method;
use integration_tests::Setup;
use integration_tests::setup::submission;
use serde_json::json;

use super::{NOT_FOUND_ANSWER, assert_answer, assert_cross_origin, request};

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
