//! The tracker script and its names (docs/umami-contract.md §1 and §20), and the other paths that an operator can give.

use hyper::Method;
use integration_tests::http::{self, Answer};
use integration_tests::setup::submission;
use integration_tests::{Running, Setup};
use serde_json::json;

async fn get(running: &Running, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    http::request(method, &running.url(path), "", headers).await.expect("an answer")
}

#[tokio::test]
async fn the_script_is_served_as_umamis_is() {
    let running = Setup::Embedded.start(&[("TRACKER_SCRIPT_NAME", "stats.js, /s/t ")]).await;
    let built =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../tracker/dist/script.js")).unwrap();
    for path in ["/script.js", "/stats.js", "/s/t"] {
        let answer = get(&running, Method::GET, path, &[]).await;
        assert_eq!((answer.status, answer.text()), (200, built.clone()), "{path}");
        let header = |name| answer.header(name);
        assert_eq!(
            [header("content-type"), header("access-control-allow-origin"), header("cache-control")],
            [
                Some("application/javascript; charset=UTF-8"),
                Some("*"),
                Some("public, max-age=86400, must-revalidate")
            ]
        );
        let (etag, modified) = (header("etag").unwrap(), header("last-modified").unwrap());
        assert!(etag.starts_with("W/\""), "{etag}");
        for condition in [("if-none-match", etag), ("if-modified-since", modified)] {
            let known = get(&running, Method::GET, path, &[condition]).await;
            assert_eq!((known.status, known.body.len()), (304, 0), "{path} {condition:?}");
        }
        let head = get(&running, Method::HEAD, path, &[]).await;
        assert_eq!((head.status, head.body.len(), head.header("etag")), (200, 0, Some(etag)), "{path}");
        let compressed = get(&running, Method::GET, path, &[("accept-encoding", "gzip, br")]).await;
        assert_eq!(compressed.header("content-encoding"), Some("gzip"));
        assert!(compressed.body.len() <= 3_200, "{}", compressed.body.len());
        assert_eq!(get(&running, Method::DELETE, path, &[]).await.status, 405, "{path}");
    }
    for path in [
        "/script",
        "/stats",
        "/S/t",
        "/s",
        "/recorder.js",
        "/vitals.js",
        "/script.js-vitals.js",
        "/s/script-vitals.js",
    ] {
        assert_eq!(get(&running, Method::GET, path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_further_files_are_served_beside_every_name_of_the_script() {
    let read = |name: &str| {
        std::fs::read_to_string(format!("{}/../tracker/dist/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (vitals, profile) = (read("script-vitals.js"), read("script-profile.js"));
    for (base, moved) in [("", ""), ("/umami", ""), ("", "https://cdn.example/own.js")] {
        let env =
            [("TRACKER_SCRIPT_NAME", "stats.js, /s/t "), ("BASE_PATH", base), ("TRACKER_SCRIPT_URL", moved)];
        let running = Setup::Embedded.start(&env).await;
        for (path, built) in [
            ("/script-vitals.js", &vitals),
            ("/stats-vitals.js", &vitals),
            ("/s/t-vitals.js", &vitals),
            ("/script-profile.js", &profile),
            ("/stats-profile.js", &profile),
            ("/s/t-profile.js", &profile),
        ] {
            let path = format!("{base}{path}");
            let answer = get(&running, Method::GET, &path, &[]).await;
            assert_eq!((answer.status, &answer.text()), (200, built), "{path}");
            let header = |name| answer.header(name);
            assert_eq!(
                [header("content-type"), header("access-control-allow-origin"), header("cache-control")],
                [
                    Some("application/javascript; charset=UTF-8"),
                    Some("*"),
                    Some("public, max-age=86400, must-revalidate")
                ]
            );
            let etag = header("etag").unwrap();
            let known = get(&running, Method::GET, &path, &[("if-none-match", etag)]).await;
            assert_eq!((known.status, known.body.len()), (304, 0), "{path}");
            let head = get(&running, Method::HEAD, &path, &[]).await;
            assert_eq!((head.status, head.body.len(), head.header("etag")), (200, 0, Some(etag)), "{path}");
            let compressed = get(&running, Method::GET, &path, &[("accept-encoding", "gzip")]).await;
            assert_eq!(compressed.header("content-encoding"), Some("gzip"));
            assert_eq!(get(&running, Method::DELETE, &path, &[]).await.status, 405, "{path}");
        }
    }
}

#[tokio::test]
async fn the_endpoint_has_the_name_that_the_operator_gives_it() {
    let env = [
        ("COLLECT_API_ENDPOINT", "/collect"),
        ("COLLECT_API_HOST", "https://c.example"),
        ("BASE_PATH", "/umami"),
        ("FORCE_SSL", "1"),
    ];
    let running = Setup::Embedded.start(&env).await;
    let script = get(&running, Method::GET, "/umami/script.js", &[]).await;
    assert_eq!(script.status, 200);
    let text = script.text();
    assert!(text.contains("\"/collect\"") && !text.contains("/api/send"), "the script posts there");
    assert!(text.contains("https://c.example"), "the script posts to that host");
    let hsts = Some("max-age=63072000; includeSubDomains; preload");
    assert_eq!(script.header("strict-transport-security"), hsts);
    let body = submission("event", &json!({ "url": "/" })).to_string();
    for path in ["/umami/collect", "/umami/api/send"] {
        let answer = running.post(path, body.clone(), &[]).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("strict-transport-security"), hsts);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-expose-headers"), Some("Retry-After"));
        let preflight = get(&running, Method::OPTIONS, path, &[]).await;
        assert_eq!((preflight.status, preflight.header("allow")), (204, Some("OPTIONS, POST")));
        assert_eq!(get(&running, Method::GET, path, &[]).await.status, 405);
    }
    let slash = running.post("/umami/api/send/?a=1", body.clone(), &[]).await;
    assert_eq!((slash.status, slash.header("location")), (308, Some("/umami/api/send?a=1")));
    assert_eq!(running.post("/api/send", body, &[]).await.status, 404);
    // What orchestrators ask has no prefix.
    assert_eq!(get(&running, Method::GET, "/health/ready", &[]).await.status, 200);
    running.applied(2).await;
}

#[tokio::test]
async fn another_script_can_stand_in_for_ours() {
    let running = Setup::Embedded.start(&[("TRACKER_SCRIPT_URL", "https://cdn.example/own.js")]).await;
    let answer = get(&running, Method::GET, "/script.js", &[]).await;
    assert_eq!((answer.status, answer.header("location")), (307, Some("https://cdn.example/own.js")));
}
