//! Limits of one request and of one connection: its bytes, its elements and properties, its time.

use std::time::{Duration, Instant};

use hyper::Method;
use integration_tests::setup::{WEBSITE, read_until_silent, submission};
use integration_tests::{Running, Setup, eventually, http, on_both_setups};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{SILENCE, TOO_LARGE_ANSWER, UNKNOWN, assert_answer, now_s, request, sign_hs256};

on_both_setups!(
    an_identify_has_so_many_properties_and_no_more,
    a_large_batch_is_applied_whole,
    a_body_that_grows_beyond_a_record_is_refused_at_once,
);

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
    // One that says how much it would send, and waits, is refused and not timed out.
    for declared in ["20000000", "1000000000000000"] {
        let head = format!("POST /api/send HTTP/1.1\r\nhost: a\r\ncontent-length: {declared}\r\n\r\n{{}}");
        let began = Instant::now();
        let answer = running.raw(head.as_bytes(), SILENCE).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{declared}: {answer}");
        assert!(began.elapsed() < SILENCE, "{declared}: it took {:?}", began.elapsed());
    }
    // Beyond that, what is left is not read.
    let head = format!("POST /api/send HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
    let endless = [head.as_bytes(), &vec![b' '; 22 << 20]].concat();
    let began = Instant::now();
    running.raw(&endless, SILENCE).await;
    assert!(began.elapsed() < SILENCE, "the connection is closed");
    assert_eq!(running.send(&submission("event", &json!({}))).await.status, 200, "it goes on");
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
            // If it were dropped, the server would see the end of the request.
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
