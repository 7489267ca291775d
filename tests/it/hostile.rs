//! Clients that hang up, stall, trickle, never read or send nonsense. Whatever they do, and while they still do it: other
//! clients are served as usual, memory stays below a bound, no gauge stays up, each accepted event is in the log and each
//! record of the log has its outcome, and SIGTERM ends the process in order, and soon.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use integration_tests::setup::{AGENT, WEBSITE, read_until_silent, submission};
use integration_tests::{Dashi, Running, Setup, TestDirectory, eventually, free_port, http, on_both_setups};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

on_both_setups!(
    clients_that_hang_up_at_every_byte_leave_nothing_behind,
    clients_that_never_read_are_closed_and_hold_up_nobody,
    clients_that_read_a_byte_a_second_hold_up_nobody,
    a_body_in_pieces_of_one_byte_costs_its_bytes,
    ten_million_bytes_of_elements_are_refused_with_the_number_that_may_be,
    twenty_thousand_pipelined_requests_without_reading_hold_up_nobody,
    heads_that_never_end_are_closed_and_hold_up_nobody,
    bodies_that_stall_or_trickle_are_ended_and_hold_up_nobody,
    endless_bodies_where_none_is_taken_are_cut_off,
);

/// Longest wait for what has to happen.
const SOON: Duration = Duration::from_secs(30);

/// A process under siege ends within this after SIGTERM.
const STOPPED: Duration = Duration::from_secs(3);

/// Below this, twice the usual p99 says more about the machine, which other tests share, than about the server.
const P99_FLOOR: Duration = Duration::from_secs(1);

/// Resident memory at its highest, in KiB: a debug build at rest has about 60 MiB.
const MEMORY_KIB: u64 = 300 * 1024;

/// Where other clients come from.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A server that hostile clients are sent to, and another client that goes on sending events all the while.
struct Siege {
    running: Running,
    usual: Duration,
    stop: Arc<AtomicBool>,
    other: JoinHandle<Vec<Duration>>,
}

fn event(url: &str) -> String {
    submission("event", &json!({ "url": url })).to_string()
}

/// Whole requests with a body, as they stand on the wire.
fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nUser-Agent: {AGENT}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn chunked(path: &str, chunks: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nUser-Agent: {AGENT}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
    )
    .into_bytes()
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// Sends events one after the other until `stop`, `least` of them in any case; gives how long each took.
async fn send_events(authority: String, least: usize, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut connection = http::Connection::open_from(ELSEWHERE, &authority).await.unwrap();
    let mut times = Vec::new();
    while times.len() < least || !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let headers = [("user-agent", AGENT)];
        let answer = connection.send(Method::POST, "/api/send", event("/other"), &headers).await.unwrap();
        assert_eq!(answer.status, 200, "another client is turned away: {}", answer.text());
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times
}

impl Siege {
    async fn begin(setup: Setup, env: &[(&str, &str)]) -> Self {
        let running = setup.start(env).await;
        let stop = Arc::new(AtomicBool::new(true));
        let usual = p99(send_events(running.authority().to_owned(), 100, Arc::clone(&stop)).await);
        stop.store(false, Ordering::Relaxed);
        let other = tokio::spawn(send_events(running.authority().to_owned(), 200, Arc::clone(&stop)));
        Self { running, usual, stop, other }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.running.authority()).await.unwrap()
    }

    /// A connection whose own end takes next to nothing without reading.
    async fn connect_narrow(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(self.running.authority().parse().unwrap()).await.unwrap()
    }

    /// The number that a metric shows; 0 if it is not there yet.
    async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = http::get(&self.running.url("/metrics")).await?.text();
        let shown = text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        Ok(shown.sum())
    }

    /// Waits until a metric shows this number or more.
    async fn shows(&self, name: &str, least: u64) {
        eventually(SOON, &format!("{name} shows {least}"), async || {
            let shown = self.metric(name).await?;
            if shown >= least { Ok(()) } else { Err(anyhow::anyhow!("{shown}")) }
        })
        .await;
    }

    /// Every promise, with `held`, the hostile connections, still open. `accepts` says whether those are accepted, too,
    /// while they are.
    async fn ends<T>(mut self, held: T) {
        // The siege has lasted for some requests of others, if it is an instant's matter.
        self.stop.store(true, Ordering::Relaxed);
        let times = (&mut self.other).await.unwrap();
        let (served, usual) = (p99(times), self.usual);
        assert!(served <= (2 * usual).max(P99_FLOOR), "p99 of others {served:?}, usually {usual:?}");
        let balance = async || {
            let in_flight = self.metric("dashi_ingest_in_flight ").await?;
            let accepted = self.metric("dashi_ingest_events_total{outcome=\"accepted\"}").await?;
            let totals = self.running.totals().await;
            let settled = totals.lag_records == 0
                && totals.in_log == totals.applied + totals.duplicate + totals.dead
                && totals.in_log == accepted;
            if settled && in_flight == 0 && totals.dead == 0 {
                Ok(())
            } else {
                Err(anyhow::anyhow!("{in_flight} in flight, {accepted} accepted, {totals:?}"))
            }
        };
        eventually(SOON, "nothing is in flight and accepted = in log = applied + duplicate", balance).await;
        let memory = self.running.dashi().memory_peak_kib().unwrap();
        assert!(memory < MEMORY_KIB, "{memory} KiB at the highest");
        let began = Instant::now();
        let code = self.running.dashi().terminate().await;
        assert_eq!(code, Some(0), "{}", self.running.dashi().stderr());
        assert!(began.elapsed() < STOPPED, "SIGTERM took {:?}", began.elapsed());
        drop(held);
    }
}

/// One request of each kind, by what is to become of it.
fn requests() -> Vec<Vec<u8>> {
    let one = event("/hangs-up");
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nUser-Agent: {AGENT}\r\n\r\n").into_bytes();
    vec![
        post("/api/send", &one),
        post("/collect", &one),
        chunked(
            "/api/send",
            &format!("5;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &one[..5], one.len() - 5, &one[5..]),
        ),
        post("/api/batch", &format!("[{one},{{}},{one}]")),
        post(
            "/api/record",
            &format!(r#"{{"type":"record","payload":{{"website":"{WEBSITE}","events":[{{}}]}}}}"#),
        ),
        get("/p/mail"),
        get("/q/sale"),
        get("/q/nowhere"),
        get("/metrics"),
    ]
}

async fn clients_that_hang_up_at_every_byte_leave_nothing_behind(setup: Setup) {
    let siege = Siege::begin(setup, &[("COLLECT_API_ENDPOINT", "/collect")]).await;
    for add in [
        &["link", "add", "--name", "n", "--slug", "sale", "--url", "https://a.example/"][..],
        &["pixel", "add", "--name", "n", "--slug", "mail"],
    ] {
        assert_eq!(siege.running.run(add).await.code, Some(0));
    }
    let mut hanging_up = JoinSet::new();
    let mut whole = 0;
    for request in requests() {
        for (place, bytes) in (0..=request.len()).enumerate() {
            whole += u64::from(bytes == request.len());
            let (begun, authority) = (request[..bytes].to_vec(), siege.running.authority().to_owned());
            hanging_up.spawn(async move {
                let mut stream = TcpStream::connect(authority).await.unwrap();
                stream.write_all(&begun).await.unwrap();
                match place % 3 {
                    // At once, with a reset.
                    0 => stream.set_zero_linger().unwrap(),
                    // When the server has begun.
                    1 => tokio::time::sleep(Duration::from_millis((place % 7) as u64)).await,
                    _ => {}
                }
            });
            if hanging_up.len() >= 32 {
                hanging_up.join_next().await.unwrap().unwrap();
            }
        }
    }
    while let Some(hung_up) = hanging_up.join_next().await {
        hung_up.unwrap();
    }
    assert_eq!(whole, 9);
    siege.shows("dashi_ingest_events_total{outcome=\"client_gone\"}", 100).await;
    siege.shows("dashi_ingest_recording_chunks_total{outcome=\"client_gone\"}", 10).await;
    eventually(SOON, "all connections are closed", async || {
        // That of the other client, and the one that asks.
        let open = siege.metric("dashi_http_connections ").await?;
        if open <= 2 { Ok(()) } else { Err(anyhow::anyhow!("{open} are open")) }
    })
    .await;
    siege.ends(()).await;
}

/// The largest answer that a client can ask for: a batch of nothing but mistakes.
fn many_mistakes() -> Vec<u8> {
    let wrong = r#"{"type":0,"payload":{"url":0,"name":0,"tag":0,"title":0,"data":0,"lcp":"x","cls":"x","screen":0}}"#;
    post("/api/batch", &format!("[{}]", vec![wrong; 200].join(",")))
}

/// Writes requests until the server takes no more of them; gives how many bytes it took.
async fn write_until_it_takes_no_more(stream: &mut TcpStream, request: &[u8]) -> usize {
    let mut written = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(500), stream.write_all(request)).await {
            Ok(Ok(())) => written += request.len(),
            Ok(Err(_)) | Err(_) => return written,
        }
        assert!(written < 1 << 30, "it takes everything");
    }
}

async fn clients_that_never_read_are_closed_and_hold_up_nobody(setup: Setup) {
    let siege = Siege::begin(setup, &[("DASHI_INGEST_ANSWER_TIMEOUT_MS", "2000")]).await;
    let mut first = Vec::new();
    for _ in 0..10 {
        let mut stream = siege.connect_narrow().await;
        write_until_it_takes_no_more(&mut stream, &many_mistakes()).await;
        first.push(stream);
    }
    siege.shows("dashi_http_connections_ended_total{reason=\"slow_reader\"}", 10).await;
    // Those that are stuck when the server is to stop do not hold it up either.
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut stream = siege.connect_narrow().await;
        stream.write_all(&[many_mistakes(), many_mistakes()].concat()).await.ok();
        held.push(stream);
    }
    siege.ends((first, held)).await;
}

async fn clients_that_read_a_byte_a_second_hold_up_nobody(setup: Setup) {
    let siege = Siege::begin(setup, &[]).await;
    let mut readers = JoinSet::new();
    let of_metrics = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let of_health = b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    for request in [many_mistakes(), post("/api/send", &event("/slow")), of_metrics, of_health] {
        for _ in 0..10 {
            let mut stream = siege.connect_narrow().await;
            let request = request.repeat(20);
            readers.spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let writing = async {
                    writer.write_all(&request).await.ok();
                    std::future::pending::<()>().await;
                };
                let reading = async {
                    while reader.read_u8().await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                };
                tokio::select! { () = writing => {}, () = reading => {} }
            });
        }
    }
    // The answers to the small ones fit into the system's buffers: ten times twenty, and a hundred of the other client's.
    siege.shows("dashi_ingest_events_total{outcome=\"accepted\"}", 300).await;
    siege.ends(readers).await;
}

async fn a_body_in_pieces_of_one_byte_costs_its_bytes(setup: Setup) {
    let siege = Siege::begin(setup, &[]).await;
    // The review's: as many pieces as the whole budget has permits, and then silence.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = siege.connect().await;
        stream.write_all(&chunked("/api/send", "")).await.unwrap();
        stream.write_all("1\r\n \r\n".repeat(262_144).as_bytes()).await.unwrap();
        held.push(stream);
    }
    // From the same address too, and a whole body in such pieces is taken.
    let pieces: String = event("/pieces").chars().map(|byte| format!("1\r\n{byte}\r\n")).collect();
    let answer = siege.running.raw(&chunked("/api/send", &format!("{pieces}0\r\n\r\n")), SOON / 10).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for _ in 0..20 {
        assert_eq!(siege.running.send(&submission("event", &json!({ "url": "/" }))).await.status, 200);
    }
    siege.ends_stalled(held).await;
}

impl Siege {
    /// As [`Siege::ends`], with requests that are still on their way: those are in flight until the server stops.
    async fn ends_stalled(self, held: Vec<TcpStream>) {
        let mut siege = self;
        siege.stop.store(true, Ordering::Relaxed);
        let times = (&mut siege.other).await.unwrap();
        let (served, usual) = (p99(times), siege.usual);
        assert!(served <= (2 * usual).max(P99_FLOOR), "p99 of others {served:?}, usually {usual:?}");
        assert_eq!(siege.metric("dashi_ingest_in_flight ").await.unwrap(), held.len() as u64);
        let memory = siege.running.dashi().memory_peak_kib().unwrap();
        assert!(memory < MEMORY_KIB, "{memory} KiB at the highest");
        let began = Instant::now();
        assert_eq!(siege.running.dashi().terminate().await, Some(0), "{}", siege.running.dashi().stderr());
        assert!(began.elapsed() < STOPPED, "SIGTERM took {:?}", began.elapsed());
        // They are asked to come back.
        for mut stream in held {
            let answer = read_until_silent(&mut stream, Duration::from_secs(1)).await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        }
    }
}

async fn ten_million_bytes_of_elements_are_refused_with_the_number_that_may_be(setup: Setup) {
    let siege = Siege::begin(setup, &[]).await;
    for element in ["{}", "0", "[]", "\"\"", r#"{"type":"event","payload":{}}"#] {
        let count = 10_000_000 / (element.len() + 1);
        let body = format!("[{}]", vec![element; count].join(","));
        let answer = siege.running.post("/api/batch", body, &[]).await;
        assert_eq!(answer.status, 413, "{element}: {}", answer.text());
        assert!(answer.text().contains("10000"), "{element}: {}", answer.text());
    }
    // As many as may be, all of them wrong: a hundred are spelled out, the others counted.
    let body = format!("[{}]", vec!["{}"; 10_000].join(","));
    let answer = siege.running.post("/api/batch", body, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body.len() < 100_000, "{} bytes", answer.body.len());
    let summary = answer.json();
    assert_eq!(
        json!([summary["size"], summary["errors"], summary["detailsOmitted"]]),
        json!([10_000, 10_000, 9_900])
    );
    assert_eq!(summary["details"].as_array().map(Vec::len), Some(100));
    siege.ends(()).await;
}

async fn twenty_thousand_pipelined_requests_without_reading_hold_up_nobody(setup: Setup) {
    let siege = Siege::begin(setup, &[]).await;
    let requests = post("/api/send", &event("/pipelined")).repeat(20_000);
    let mut writers = Vec::new();
    for _ in 0..2 {
        let (mut stream, requests) = (siege.connect_narrow().await, requests.clone());
        // As many as it takes; it may end the connection.
        writers.push(tokio::spawn(async move {
            tokio::time::timeout(Duration::from_secs(5), stream.write_all(&requests)).await.ok();
            stream
        }));
    }
    let mut held = Vec::new();
    for writer in writers {
        held.push(writer.await.unwrap());
    }
    siege.ends(held).await;
}

async fn heads_that_never_end_are_closed_and_hold_up_nobody(setup: Setup) {
    let env = [("DASHI_INGEST_HEAD_TIMEOUT_MS", "2000"), ("DASHI_INGEST_CONNECTIONS_MAX", "40")];
    let siege = Siege::begin(setup, &env).await;
    let mut trickling = JoinSet::new();
    let mut trickle = |stream: TcpStream| {
        trickling.spawn(async move {
            let mut stream = stream;
            for byte in b"POST /api/send HTTP/1.1\r\nHost: a\r\nX-".iter().chain([b'a'; 600].iter()) {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    };
    for _ in 0..20 {
        trickle(siege.connect().await);
    }
    siege.shows("dashi_http_connections_ended_total{reason=\"slow_head\"}", 20).await;
    // More than there are places, heads and silence: the place of the oldest is given to who needs it.
    let mut silent = Vec::new();
    for _ in 0..60 {
        trickle(siege.connect().await);
        silent.push(siege.connect().await);
    }
    for _ in 0..20 {
        assert_eq!(siege.running.send(&submission("event", &json!({ "url": "/" }))).await.status, 200);
    }
    siege.ends((trickling, silent)).await;
}

async fn bodies_that_stall_or_trickle_are_ended_and_hold_up_nobody(setup: Setup) {
    let env = [("DASHI_INGEST_BODY_PAUSE_MS_MAX", "1000"), ("DASHI_INGEST_BODY_RATE_BYTES_MIN", "100")];
    let siege = Siege::begin(setup, &env).await;
    let mut ended = JoinSet::new();
    for place in 0..40_u64 {
        let mut stream = siege.connect().await;
        ended.spawn(async move {
            let head = "POST /api/send HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let trickling = async {
                // Every other one sends a byte now and then.
                while place.is_multiple_of(2) && writer.write_all(b" ").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                std::future::pending().await
            };
            let began = Instant::now();
            let mut status = [0; 12];
            let reading = async { reader.read_exact(&mut status).await.map(|_| ()) };
            tokio::select! { () = trickling => {}, read = reading => read.unwrap() }
            assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 408", "{place}");
            began.elapsed()
        });
    }
    while let Some(took) = ended.join_next().await {
        let took = took.unwrap();
        assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    }
    siege.shows("dashi_ingest_events_total{outcome=\"too_slow\"}", 40).await;
    // One that is slow and fast enough is taken.
    let mut stream = siege.connect().await;
    let (head, body) =
        (format!("POST /api/send HTTP/1.1\r\nHost: a\r\nUser-Agent: {AGENT}\r\n"), event("/slow"));
    let body = format!("{body}{}", " ".repeat(400));
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    for piece in body.as_bytes().chunks(80) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        stream.write_all(piece).await.unwrap();
    }
    let answer = read_until_silent(&mut stream, Duration::from_secs(1)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    siege.ends(()).await;
}

async fn endless_bodies_where_none_is_taken_are_cut_off(setup: Setup) {
    let siege = Siege::begin(setup, &[("DASHI_INGEST_HEAD_TIMEOUT_MS", "2000")]).await;
    for line in [
        "POST /nowhere",
        "OPTIONS /api/send",
        "GET /api/send",
        "GET /api/heartbeat",
        "PUT /api/batch",
        "GET /metrics",
        "POST /health/live",
        "GET /script.js",
        "GET /q/nowhere",
        "GET /p/nowhere",
        "POST /api/websites/x/sessions/y",
    ] {
        for framing in ["Content-Length: 9000000000000000000", "Transfer-Encoding: chunked"] {
            let mut stream = siege.connect().await;
            let head = format!("{line} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
            let mut sent = 0_usize;
            let endless = async {
                while writer.write_all(chunk.as_bytes()).await.is_ok() {
                    sent += chunk.len();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let mut answer = Vec::new();
            let reading = async { reader.read_to_end(&mut answer).await.ok() };
            let both = async { tokio::join!(endless, reading) };
            tokio::time::timeout(SOON, both)
                .await
                .unwrap_or_else(|_| panic!("{line} {framing} is read for ever"));
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 "), "{line} {framing} gets no answer: {answer:?}");
            assert!(!answer.starts_with("HTTP/1.1 408"), "{line} {framing}: {answer}");
            assert!(sent < 200 << 20, "{line} {framing}: {sent} bytes were taken");
        }
    }
    siege.ends(()).await;
}

#[tokio::test]
async fn what_is_no_http_is_a_400_and_never_a_time_out() {
    let running = Setup::Embedded.start(&[]).await;
    let silence = Duration::from_secs(5);
    let plain = event("/");
    let length = format!("Content-Length: {}\r\n", plain.len());
    let head = "POST /api/send HTTP/1.1\r\nHost: x\r\n";
    for (what, request) in [
        ("a size that is no number", chunked("/api/send", "zz\r\n{}\r\n0\r\n\r\n")),
        ("no line end behind a chunk", chunked("/api/send", "2\r\n{}xx0\r\n\r\n")),
        ("a size of 2^64", chunked("/api/send", "10000000000000000\r\n{}\r\n0\r\n\r\n")),
        ("an endless extension", chunked("/api/send", &format!("2;{}", "x".repeat(40_000)))),
        (
            "endless trailers",
            chunked("/api/send", &format!("2\r\n{{}}\r\n0\r\n{}", "X: y\r\n".repeat(20_000))),
        ),
        ("a trailer that is none", chunked("/api/send", "2\r\n{}\r\n0\r\n: :\r\n\r\n")),
        ("both lengths", format!("{head}{length}Transfer-Encoding: chunked\r\n\r\n{plain}").into_bytes()),
        (
            "both lengths turned",
            format!("{head}Transfer-Encoding: chunked\r\n{length}\r\n{plain}").into_bytes(),
        ),
        ("two lengths", format!("{head}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}x").into_bytes()),
        ("a negative length", format!("{head}Content-Length: -2\r\n\r\n{{}}").into_bytes()),
        ("an unknown encoding", format!("{head}Transfer-Encoding: gzip\r\n\r\n{{}}").into_bytes()),
        (
            "chunks of HTTP/1.0",
            b"POST /api/send HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        ),
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
    ] {
        let answer = running.raw(&request, silence).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{what}: {answer:?}"
        );
    }
    for (what, request) in [
        ("many headers", format!("{head}{}\r\n", "X: y\r\n".repeat(200))),
        ("a gigantic header", format!("{head}X: {}\r\n\r\n", "y".repeat(1 << 20))),
        ("a gigantic address", format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(1 << 20))),
    ] {
        let answer = running.raw(request.as_bytes(), silence).await;
        assert!(
            answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "),
            "{what}: {answer:?}"
        );
    }
    // And what is unusual and yet right is taken.
    let trailed = format!("{:x}\r\n{plain}\r\n0\r\nX-Checksum: 1\r\n\r\n", plain.len());
    let extended = format!("{:X};a=b;c=\"d\"\r\n{plain}\r\n000\r\n\r\n", plain.len());
    let agent = format!("User-Agent: {AGENT}\r\n");
    for (what, request) in [
        ("a trailer", chunked("/api/send", &trailed)),
        ("chunk extensions", chunked("/api/send", &extended)),
        ("HTTP/1.0", format!("POST /api/send HTTP/1.0\r\n{agent}{length}\r\n{plain}").into_bytes()),
        ("100-continue", format!("{head}{agent}{length}Expect: 100-continue\r\n\r\n{plain}").into_bytes()),
    ] {
        let answer = running.raw(&request, Duration::from_secs(1)).await;
        assert!(answer.contains(" 200 OK\r\n") && answer.contains("\"cache\""), "{what}: {answer:?}");
    }
    assert_eq!(running.applied(4).await.in_log, 4);
    let metrics = http::get(&running.url("/metrics")).await.unwrap().text();
    assert!(metrics.contains("dashi_ingest_events_total{outcome=\"malformed\"} "), "{metrics}");
    assert!(!metrics.contains("too_slow"), "{metrics}");
}

#[tokio::test]
async fn who_has_finished_sending_and_still_reads_is_answered() {
    let running = Setup::Embedded.start(&[]).await;
    let requests = [
        post("/api/send", &event("/half")),
        post("/api/batch", &format!("[{}]", event("/half"))),
        post(
            "/api/send",
            &submission("event", &json!({ "website": "22222222-2222-4222-8222-222222222222" })).to_string(),
        ),
        b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /q/nowhere HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
    ];
    for request in requests {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(running.authority()).await.unwrap();
            stream.write_all(&request).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 "), "{} {answer:?}", String::from_utf8_lossy(&request));
        }
    }
    assert_eq!(running.applied(40).await.in_log, 40);
}

#[tokio::test]
async fn events_accepted_while_the_server_stops_are_durable() {
    let mut running = Setup::Embedded.start(&[]).await;
    let sending: Vec<_> = (0..16)
        .map(|_| {
            let authority = running.authority().to_owned();
            tokio::spawn(async move {
                let mut accepted = 0_u64;
                let Ok(mut connection) = http::Connection::open(&authority).await else { return accepted };
                let headers = [("user-agent", AGENT)];
                while let Ok(answer) =
                    connection.send(Method::POST, "/api/send", event("/last"), &headers).await
                {
                    accepted += u64::from(answer.status == 200);
                }
                accepted
            })
        })
        .collect();
    eventually(SOON, "they are under way", async || {
        let metrics = http::get(&running.url("/metrics")).await?.text();
        anyhow::Ok(metrics.contains("dashi_ingest_events_total{outcome=\"accepted\"} "))
    })
    .await;
    let began = Instant::now();
    assert_eq!(running.dashi().terminate().await, Some(0));
    assert!(began.elapsed() < STOPPED, "{:?}", began.elapsed());
    let mut accepted = 0;
    for sender in sending {
        accepted += sender.await.unwrap();
    }
    // The answers to some of the last may not have been read.
    let in_log = running.totals().await.in_log;
    assert!(
        accepted > 0 && (accepted..=accepted + 16).contains(&in_log),
        "{accepted} accepted, {in_log} in the log"
    );
    running.start_again().await;
    assert_eq!(running.applied(in_log).await.in_log, in_log);
}

#[tokio::test]
async fn more_connections_than_files_are_said_at_start_and_hold_up_nobody() {
    let directory = TestDirectory::create("files");
    let file = |name: &str| format!("sqlite:{}", directory.path().join(name).display());
    let (log, store, authority) = (file("log.db"), file("store.db"), format!("127.0.0.1:{}", free_port()));
    let add = ["website", "add", "--name", "t", "--id", WEBSITE, "--store", &store];
    assert_eq!(Dashi::run(&add, &[]).await.code, Some(0));
    let limited = ["sh", "-c", "ulimit -n 200; exec \"$@\"", "sh"];
    let args = ["serve", "--log", &log, "--store", &store, "--listen", &authority];
    let mut dashi =
        Dashi::spawn_through(&limited, &args, &[("APP_SECRET", "x"), ("DASHI_LOGS_FORMAT", "json")]);
    dashi.wait_ready(&format!("http://{authority}")).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(TcpStream::connect(&authority).await.unwrap());
    }
    for _ in 0..20 {
        let body = submission("event", &json!({ "url": "/" }));
        let answer =
            http::post_json(&format!("http://{authority}/api/send"), &body, &[("user-agent", AGENT)]).await;
        assert_eq!(answer.unwrap().status, 200);
    }
    let log = dashi.stderr();
    let said: Vec<_> = log.lines().filter(|line| line.contains("ulimit -n")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("may open 200 files") && said[0].contains("16384"), "{}", said[0]);
    let warnings = log.lines().filter(|line| line.contains("\"level\":\"WARN\"")).count();
    assert!(warnings <= 2, "{log}");
    let began = Instant::now();
    assert_eq!(dashi.terminate().await, Some(0));
    assert!(began.elapsed() < STOPPED, "{:?}", began.elapsed());
}

#[tokio::test]
async fn whether_it_is_ready_is_answered_within_a_second_whatever_hangs() {
    let mut server = integration_tests::KafkaServer::start().await;
    let directory = TestDirectory::create("ready");
    let store = format!("sqlite:{}", directory.path().join("store.db").display());
    let topic = integration_tests::kafka::unique_topic("ready");
    let deployment =
        integration_tests::Deployment::new(format!("kafka://{}/{topic}", server.address()), store);
    deployment.register().await;
    let (collector, projector) =
        (deployment.start("collect").ready().await, deployment.start("project").ready().await);
    server.freeze();
    for one in [&collector, &projector] {
        let url = format!("{}/health/ready", one.url());
        eventually(SOON, "it is not ready any more", async || {
            let began = Instant::now();
            let answer = http::get(&url).await?;
            let took = began.elapsed();
            assert!(took < Duration::from_secs(1), "{took:?}");
            anyhow::Ok(answer.status == 503)
        })
        .await;
    }
    server.thaw();
}
