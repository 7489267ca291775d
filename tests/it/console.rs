//! The console over HTTP: who may read it, and that its numbers are those of the process. Its page is tested in a browser
//! (tracker/e2e/console.test.mjs).

use std::time::Duration;

use bytes::Bytes;
use dashi_event_log::NewRecord;
use hyper::Method;
use integration_tests::http::{Answer, request};
use integration_tests::setup::WEBSITE;
use integration_tests::{Dashi, Running, Setup, eventually, free_port, on_both_setups};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

on_both_setups!(
    the_console_shows_what_the_process_does,
    nobody_reads_it_from_elsewhere_without_a_key,
    dead_letters_are_listed_and_shown,
    letters_are_decided_with_a_key,
    events_are_streamed_as_they_are_applied,
);

const KEY: &str = "the-key-of-the-console-tests";
const BEARER: (&str, &str) = ("authorization", "Bearer the-key-of-the-console-tests");

/// Longest wait for anything that has to come.
const SOON: Duration = Duration::from_secs(60);

async fn get_with(url: &str, headers: &[(&str, &str)]) -> Answer {
    request(Method::GET, url, Bytes::new(), headers)
        .await
        .unwrap_or_else(|error| panic!("GET {url}: {error:#}"))
}

async fn data(running: &Running, name: &str) -> Value {
    let answer = get_with(&running.url(&format!("/console/data/{name}")), &[]).await;
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{name}");
    answer.json()
}

/// The page, its files, and the numbers of status and rates after events.
async fn the_console_shows_what_the_process_does(setup: Setup) {
    let running = setup.start(&[]).await;
    let redirect = get_with(&running.url("/console"), &[]).await;
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("console/")));
    let page = get_with(&running.url("/console/"), &[]).await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(
        policy.starts_with("default-src 'self';") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    for (name, value) in [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")] {
        assert_eq!(page.header(name), Some(value));
    }
    let text = page.text();
    let script =
        text.split("src=\"").find_map(|rest| rest.split('"').next().filter(|name| name.ends_with(".js")));
    let script = get_with(&running.url(&format!("/console/{}", script.expect("a script"))), &[]).await;
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    let tag = script.header("etag").expect("a validator").to_owned();
    let url = running.url("/console/main.js");
    assert_eq!(get_with(&url, &[("if-none-match", &tag)]).await.status, 304);
    assert_eq!(get_with(&running.url("/console/nothing.js"), &[]).await.status, 404);

    let session = data(&running, "session").await;
    assert_eq!((&session["may_read"], &session["may_write"]), (&json!(true), &json!(false)));
    assert_eq!(session["process"]["collects"], true);
    let websites = data(&running, "websites").await;
    assert_eq!(websites["websites"][0]["id"], WEBSITE);
    for number in 0..3 {
        running.accept("event", &json!({ "url": format!("/{number}") })).await;
    }
    running.applied(3).await;
    eventually(SOON, "the status shows it", async || {
        let status = data(&running, "status").await;
        let totals = &status["totals"];
        let shown = ["in_log", "applied", "accepted", "unaccounted", "lag_records", "untallied", "not_found"]
            .map(|name| totals[name].as_u64());
        // The collector's tally comes a moment later.
        if shown == [3, 3, 3, 0, 0, 0, 0].map(Some) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    eventually(SOON, "the rates show it", async || {
        let pulse = data(&running, "pulse").await;
        let sum = |name: &str| -> f64 {
            let samples = pulse["samples"].as_array().expect("samples").iter();
            samples.filter_map(|sample| sample[name].as_f64()).sum()
        };
        let shown = sum("accepted_per_s") > 0.0 && sum("applied_per_s") > 0.0 && sum("append_p99_ms") > 0.0;
        let counted = [&pulse["submissions"]["accepted"], &pulse["records"]["applied"]];
        if shown && counted == [&json!(3.0), &json!(3.0)] { Ok(()) } else { Err(pulse.to_string()) }
    })
    .await;
    let pulse = data(&running, "pulse").await;
    let later = data(&running, &format!("pulse?after={}", pulse["now_ms"])).await;
    assert!(later["samples"].as_array().unwrap().len() < pulse["samples"].as_array().unwrap().len());
}

/// Without keys: not through a proxy, under another name, or from another site's page. With keys: only with one.
async fn nobody_reads_it_from_elsewhere_without_a_key(setup: Setup) {
    let elsewhere: [&[(&str, &str)]; 3] = [
        &[("x-forwarded-for", "203.0.113.7")],
        &[("host", "analytics.example")],
        &[("sec-fetch-site", "cross-site")],
    ];
    let names = ["status", "pulse", "websites", "dead-letters", "dead-letters/0:0"];
    let rights = async |running: &Running, headers: &[(&str, &str)]| {
        let session = get_with(&running.url("/console/data/session"), headers).await.json();
        (session["may_read"] == true, session["may_write"] == true)
    };
    let mut running = setup.start(&[]).await;
    for name in names {
        let url = running.url(&format!("/console/data/{name}"));
        assert_ne!(get_with(&url, &[]).await.status, 401, "{name}");
        for headers in elsewhere {
            let refused = get_with(&url, headers).await;
            assert_eq!(refused.status, 401, "{name} {headers:?}");
            assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
            assert!(refused.header("access-control-allow-origin").is_none());
        }
    }
    assert_eq!(rights(&running, &[]).await, (true, false));
    assert_eq!(rights(&running, elsewhere[0]).await, (false, false));
    assert_eq!(running.dashi().terminate().await, Some(0));

    let running = setup.start(&[("DASHI_API_KEYS", KEY)]).await;
    for name in names {
        let url = running.url(&format!("/console/data/{name}"));
        assert_eq!(get_with(&url, &[]).await.status, 401, "{name}");
        let wrong = [("authorization", "Bearer another-key-that-is-not-known")];
        assert_eq!(get_with(&url, &wrong).await.status, 401, "{name}");
        for headers in elsewhere {
            let with_key = get_with(&url, &[headers, &[BEARER][..]].concat()).await;
            assert_ne!(with_key.status, 401, "{name} {headers:?}");
        }
    }
    assert_eq!(rights(&running, &[]).await, (false, false));
    assert_eq!(rights(&running, &[BEARER]).await, (true, true));
}

/// With a key, a letter is tried again and discarded; without one, nothing is.
async fn letters_are_decided_with_a_key(setup: Setup) {
    let running = setup.start(&[("DASHI_API_KEYS", KEY)]).await;
    let place = garbage(&running).await;
    let url = running.url(&format!("/console/data/dead-letters/{place}"));
    let letter = async || get_with(&url, &[BEARER]).await.json()["dead_letter"].clone();
    let decide = async |url: &str, headers: &[(&str, &str)]| {
        request(Method::POST, url, Bytes::new(), headers).await.expect("an answer").status
    };
    eventually(SOON, "the letter is there", async || letter().await["tries"] == 1).await;
    for (decision, headers, status) in [
        ("retry", &[][..], 401),
        ("discard", &[("authorization", "Bearer another-key-that-is-not-known")], 401),
        ("retry", &[BEARER], 200),
    ] {
        assert_eq!(decide(&format!("{url}/{decision}"), headers).await, status, "{decision} {headers:?}");
    }
    eventually(SOON, "it was tried again", async || letter().await["tries"] == 2).await;
    assert_eq!(letter().await["state"], "open", "the refused discard did nothing");
    assert_eq!(decide(&format!("{url}/discard"), &[BEARER]).await, 200);
    eventually(SOON, "it is discarded", async || letter().await["state"] == "discarded").await;
    let nowhere = running.url("/console/data/dead-letters/0:999999/retry");
    assert_eq!(decide(&nowhere, &[BEARER]).await, 404);
    assert_eq!(get_with(&format!("{url}/retry"), &[BEARER]).await.status, 405);
}

/// To a page that was open before, and to one that is opened later; a stop ends the stream.
async fn events_are_streamed_as_they_are_applied(setup: Setup) {
    let mut running = setup.start(&[]).await;
    let mut early = Stream::open(&running).await;
    for number in 0..3 {
        let page = format!("/streamed/{number}");
        let payload = match number {
            2 => json!({ "url": page, "name": "signup" }),
            _ => json!({ "url": page }),
        };
        running.accept("event", &payload).await;
        early.until(&page).await;
    }
    let last = early.text.rsplit("data: ").next().expect("an event");
    let message: Value = serde_json::from_str(last.lines().next().expect("a line")).expect("JSON");
    let event = &message["events"][0];
    assert_eq!(
        (&message["applied"], &event["website"], &event["type"]),
        (&json!(1), &json!(WEBSITE), &json!("event"))
    );
    assert_eq!(
        (&event["name"], &event["browser"], &event["device"]),
        (&json!("signup"), &json!("chrome"), &json!("desktop"))
    );
    for number in 0..3 {
        assert_eq!(early.text.matches(&format!("/streamed/{number}\"")).count(), 1, "{}", early.text);
    }
    let mut late = Stream::open(&running).await;
    late.until("/streamed/2").await;
    assert_eq!(running.dashi().terminate().await, Some(0));
    for mut stream in [early, late] {
        stream.until(r#"data: {"reason":"draining"}"#).await;
    }
}

/// A stream's reader.
struct Stream {
    connection: TcpStream,
    text: String,
}

impl Stream {
    async fn open(running: &Running) -> Self {
        let mut connection = TcpStream::connect(running.authority()).await.expect("it listens");
        let request = format!("GET /console/data/live HTTP/1.1\r\nhost: {}\r\n\r\n", running.authority());
        connection.write_all(request.as_bytes()).await.expect("it reads");
        let mut stream = Self { connection, text: String::new() };
        stream.until("event: applied").await;
        assert!(
            stream.text.starts_with("HTTP/1.1 200 ") && stream.text.contains("text/event-stream"),
            "{}",
            stream.text
        );
        stream
    }

    /// Reads until this was sent, and the rest of its event.
    async fn until(&mut self, wanted: &str) {
        let reading = async {
            while !self.text.split_once(wanted).is_some_and(|(_, rest)| rest.contains("\n\n")) {
                let mut bytes = [0; 4096];
                let count = self.connection.read(&mut bytes).await.expect("it writes");
                assert_ne!(count, 0, "the end, without {wanted:?}: {}", self.text);
                self.text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        };
        tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| panic!("no {wanted:?} within {SOON:?}"));
    }
}

/// Bytes that are no record become a dead letter.
async fn dead_letters_are_listed_and_shown(setup: Setup) {
    let running = setup.start(&[]).await;
    assert_eq!(data(&running, "dead-letters").await, json!({ "dead_letters": [], "next": null }));
    let place = garbage(&running).await;
    let mut list = Value::Null;
    eventually(SOON, "the letter is listed", async || {
        list = data(&running, "dead-letters").await;
        if list["dead_letters"].as_array().is_some_and(|letters| letters.len() == 1) {
            Ok(())
        } else {
            Err(list.to_string())
        }
    })
    .await;
    let letter = &list["dead_letters"][0];
    assert_eq!(format!("{}:{}", letter["partition"], letter["offset"]), place);
    let shown = data(&running, &format!("dead-letters/{place}")).await;
    assert_eq!(&shown["dead_letter"], letter);
    for (wrong, status) in [("0:999999", 404), ("nowhere", 400)] {
        let answer = get_with(&running.url(&format!("/console/data/dead-letters/{wrong}")), &[]).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"]["message"].as_str().is_some_and(|text| text.contains(wrong)));
    }
}

/// A server that others can reach shows nothing without a key, and one whose console is off has none.
#[tokio::test]
async fn a_server_that_others_reach_needs_a_key_and_a_console_can_be_off() {
    let port = free_port();
    let (listen, url) = (format!("0.0.0.0:{port}"), format!("http://127.0.0.1:{port}"));
    let mut dashi = Dashi::spawn(&["serve", "--listen", &listen], &[("DASHI_API_KEYS", KEY)]);
    dashi.wait_ready(&url).await;
    let status = format!("{url}/console/data/status");
    assert_eq!(get_with(&status, &[]).await.status, 401);
    assert_eq!(get_with(&status, &[BEARER]).await.status, 200);
    assert_eq!(get_with(&format!("{url}/console/"), &[]).await.status, 200, "the page that asks for the key");
    let said = dashi.stdout();
    assert!(said.contains("with a key of api.keys"), "{said}");

    let url = format!("http://127.0.0.1:{}", free_port());
    let off = [("DASHI_CONSOLE_ENABLED", "false")];
    let mut dashi = Dashi::spawn(&["serve", "--listen", url.trim_start_matches("http://")], &off);
    dashi.wait_ready(&url).await;
    for path in ["/console", "/console/main.js", "/console/data/session"] {
        assert_eq!(get_with(&format!("{url}{path}"), &[]).await.status, 404, "{path}");
    }
    assert!(!dashi.stdout().contains("/console"), "{}", dashi.stdout());
}

/// Appends bytes that are no record; gives their place once they are a dead letter.
async fn garbage(running: &Running) -> String {
    let log = running.open_log().await;
    let garbage = NewRecord { session_id: Uuid::from_u128(7), value: b"\xff\x00 garbage".to_vec() };
    let appended = log.append(vec![garbage]).await.remove(0);
    log.close().await;
    let (partition, offset) = appended.expect("the log takes it");
    format!("{partition}:{offset}")
}
