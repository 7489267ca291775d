//! The generator against a server whose every answer the test decides.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers in a test crate for production code")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dashi_load::{
    Connection, ConnectionError, LoadError, LoadPlan, Mix, Mode, Report, Snapshot, read_acknowledged, run,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Request {
    fn elements(&self) -> Vec<Value> {
        self.body.as_array().cloned().unwrap_or_else(|| vec![self.body.clone()])
    }
}

/// The mark of an event, wherever its kind carries it.
fn mark(event: &Value) -> String {
    let payload = &event["payload"];
    if event["type"] == "identify" {
        let data = payload["data"].as_object().unwrap();
        return data.keys().find(|key| key.starts_with("/load/")).unwrap().clone();
    }
    let url = payload["url"].as_str().unwrap();
    url.split('?').next().unwrap().strip_prefix("https://shop.example.com").unwrap().to_owned()
}

enum Reply {
    /// These bytes, then the next request.
    Bytes(String),
    /// These pieces, each in a packet of its own.
    Pieces(Vec<String>),
    /// These bytes after a while.
    Late(Duration, String),
    /// These bytes, then the end of the connection.
    Last(String),
    /// Nothing, ever.
    Silence,
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn accepted() -> String {
    answer(200, "", r#"{"cache":"a.b.c","sessionId":"s","visitId":"v"}"#)
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Answers request `n`, counted over all connections, with `reply(n, request)`.
    async fn start(reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (this, reply) = (server.clone(), Arc::new(reply));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                this.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(this.clone().serve(stream, reply.clone()));
            }
        });
        server
    }

    async fn serve(self, stream: TcpStream, reply: Arc<impl Fn(usize, &Request) -> Reply>) {
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream).await {
            let n = {
                let mut requests = self.requests.lock().unwrap();
                requests.push(request.clone());
                requests.len() - 1
            };
            match reply(n, &request) {
                Reply::Bytes(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                Reply::Pieces(pieces) => {
                    for piece in pieces {
                        stream.write_all(piece.as_bytes()).await.unwrap();
                        // Not a wait for a condition: it makes separate reads likely.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                Reply::Late(time, bytes) => {
                    tokio::time::sleep(time).await;
                    if stream.write_all(bytes.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Reply::Last(bytes) => {
                    stream.write_all(bytes.as_bytes()).await.unwrap();
                    return;
                }
                Reply::Silence => {
                    let _ = stream.read_u8().await;
                    return;
                }
            }
        }
    }

    fn plan(&self) -> LoadPlan {
        LoadPlan {
            connections: 4,
            duration: Duration::from_secs(60),
            sessions: 50,
            ..LoadPlan::new(format!("http://{}", self.address), WEBSITE)
        }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    use tokio::io::AsyncBufReadExt;
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        match header.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_owned(), value.trim_start().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { line: line.trim_end().to_owned(), headers, body })
}

async fn load(plan: LoadPlan) -> Report {
    let run = run(plan, CancellationToken::new(), |_: &Snapshot| {});
    tokio::time::timeout(Duration::from_secs(50), run).await.expect("the run ends").unwrap()
}

fn attempts(report: &Report) -> u64 {
    report.counts.requests + report.counts.errors.total() + report.counts.missed
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("dashi-load-{name}-{}", std::process::id())))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn the_report_counts_what_the_server_saw() {
    let server = Server::start(|n, _| {
        Reply::Bytes(match n % 5 {
            0 => answer(503, "", r#"{"error":{}}"#),
            1 => answer(200, "", r#"{"beep":"boop"}"#),
            _ => accepted(),
        })
    })
    .await;
    let plan = LoadPlan { requests_max: Some(500), seed: 77, ..server.plan() };
    let report = load(plan).await;

    let counts = &report.counts;
    assert_eq!(counts.requests, 500);
    assert_eq!(counts.statuses, BTreeMap::from([(200, 400), (503, 100)]));
    assert_eq!((counts.acknowledged_events, counts.refused_events), (300, 200));
    assert_eq!(counts.errors.total(), 0);
    assert_eq!(report.latency.samples, 500);
    assert!(report.elapsed_s > 0.0 && report.elapsed_s < 60.0);
    let requests = server.requests();
    assert_eq!(requests.len(), 500);
    assert_eq!(server.connections.load(Ordering::Relaxed), 4);
    assert!(requests.iter().all(|request| request.line == "POST /api/send HTTP/1.1"));
    assert!(requests.iter().all(|request| !request.headers.contains_key("x-umami-cache")));
    let types: BTreeSet<_> = requests.iter().map(|request| request.body["type"].to_string()).collect();
    assert_eq!(types.len(), 3);
}

#[tokio::test]
async fn the_limit_is_measured_with_empty_requests_that_acknowledge_nothing() {
    let server = Server::start(|_, _| Reply::Bytes(accepted())).await;
    let limit = LoadPlan { requests_max: Some(100), batch: 7, ..server.plan() }.limit();
    assert_eq!((limit.connections, limit.requests_max), (4, None));
    let limit = LoadPlan { requests_max: Some(100), warmup: Duration::ZERO, ..limit };
    let report = load(limit).await;
    assert_eq!((report.counts.requests, report.latency.samples), (100, 100));
    assert_eq!((report.counts.acknowledged_events, report.counts.refused_events), (0, 0));
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.line == "GET /api/heartbeat HTTP/1.1"));
    assert!(requests.iter().all(|request| !request.headers.contains_key("content-type")));
}

#[tokio::test]
async fn only_events_with_a_complete_answer_are_acknowledged_and_recorded() {
    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let at_server = answered.clone();
    let server = Server::start(move |n, request| match n % 6 {
        0 => Reply::Bytes(answer(503, "retry-after: 9\r\n", "")),
        1 => Reply::Silence,
        2 => Reply::Last(accepted()[..60].to_owned()),
        3 => Reply::Last("nonsense\r\n".to_owned()),
        _ => {
            at_server.lock().unwrap().insert(mark(&request.body));
            Reply::Bytes(accepted())
        }
    })
    .await;
    let file = TempFile::new("acknowledged");
    let plan = LoadPlan {
        requests_max: Some(120),
        mix: Mix { page_views: 1, custom_events: 1, identifies: 1, performance: 1 },
        timeout: Duration::from_secs(2),
        connections: 16,
        record_acknowledged: Some(file.0.clone()),
        ..server.plan()
    };
    let report = load(plan).await;

    let recorded = read_acknowledged(&file.0).unwrap();
    let marks: BTreeSet<_> = recorded.iter().map(|event| event.mark.clone()).collect();
    assert_eq!(marks.len(), recorded.len());
    assert_eq!(marks, *answered.lock().unwrap());
    let counts = &report.counts;
    assert_eq!(counts.acknowledged_events, 40);
    assert_eq!(recorded.len(), 40);
    assert_eq!((counts.errors.timeout, counts.errors.lost, counts.errors.protocol), (20, 20, 20));
    assert_eq!(counts.errors.connect, 0);
    assert_eq!(attempts(&report), 120);
    let all: BTreeSet<_> = server.requests().iter().map(|request| mark(&request.body)).collect();
    assert_eq!(all.len(), 120, "no event is sent twice");
    let by_kind = recorded.iter().filter(|event| event.kind == dashi_load::EventKind::Identify).count();
    assert_eq!(by_kind as u64, counts.acknowledged.identifies);
}

#[tokio::test]
async fn retry_after_is_honoured_when_asked_and_only_then() {
    for (asked, pauses) in [(true, 1), (false, 0)] {
        let server = Server::start(|n, _| {
            Reply::Bytes(if n == 0 { answer(503, "Retry-After: 1\r\n", "") } else { accepted() })
        })
        .await;
        let plan =
            LoadPlan { connections: 1, requests_max: Some(2), pause_on_retry_after: asked, ..server.plan() };
        let report = load(plan).await;
        assert_eq!(report.counts.pauses, pauses);
        assert_eq!(report.counts.requests, 2);
        assert!(!asked || report.elapsed_s >= 1.0, "{}", report.elapsed_s);
    }
}

#[tokio::test]
async fn an_open_loop_sends_every_request_and_none_before_its_time() {
    let server = Server::start(|_, _| Reply::Bytes(accepted())).await;
    let plan = LoadPlan {
        mode: Mode::Open { requests_per_s: 500.0 },
        requests_max: Some(251),
        connections: 8,
        ..server.plan()
    };
    let report = load(plan).await;
    assert_eq!(report.counts.requests, 251);
    // Request 250 is due after 0.5 s. How much later it leaves is the machine's business.
    assert!(report.elapsed_s >= 0.5, "{}", report.elapsed_s);
}

/// Measured from when each request was sent, only one would look slow.
#[tokio::test]
async fn a_stall_shows_in_the_latency_of_the_requests_it_held_up() {
    let server = Server::start(|n, _| match n {
        0 => Reply::Late(Duration::from_millis(400), accepted()),
        _ => Reply::Bytes(accepted()),
    })
    .await;
    let plan = LoadPlan {
        mode: Mode::Open { requests_per_s: 100.0 },
        requests_max: Some(40),
        connections: 1,
        ..server.plan()
    };
    let report = load(plan).await;
    assert_eq!(report.counts.requests, 40);
    // Request k is due after 10 k ms and answered after 400 ms at the earliest.
    assert!(report.latency.max_us >= 399_000, "{report}");
    assert!(report.latency.p50_us >= 199_000, "{report}");
}

#[tokio::test]
async fn requests_overdue_by_the_time_out_are_missed_not_sent() {
    let server = Server::start(|_, _| Reply::Late(Duration::from_millis(50), accepted())).await;
    let plan = LoadPlan {
        mode: Mode::Open { requests_per_s: 200.0 },
        requests_max: Some(200),
        connections: 1,
        timeout: Duration::from_millis(300),
        ..server.plan()
    };
    let report = load(plan).await;
    assert!(report.counts.missed > 0, "{report}");
    assert_eq!(attempts(&report), 200);
    assert_eq!(server.requests().len() as u64, 200 - report.counts.missed);
}

#[tokio::test]
async fn a_server_that_goes_away_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let errors = Arc::new(AtomicU64::new(0));
    let seen = errors.clone();
    let plan =
        LoadPlan { connections: 2, requests_max: Some(100), ..LoadPlan::new(address.to_string(), WEBSITE) };
    let run = tokio::spawn(run(plan, CancellationToken::new(), move |snapshot: &Snapshot| {
        seen.store(snapshot.errors, Ordering::Relaxed);
    }));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        read_request(&mut stream).await.unwrap();
        streams.push(stream);
    }
    // The listener first, or a worker could be back before it is gone.
    drop(listener);
    drop(streams);
    // Both connections are lost by now; more errors than that are refused connections.
    let deadline = Instant::now() + Duration::from_secs(20);
    while errors.load(Ordering::Relaxed) < 4 {
        assert!(Instant::now() < deadline, "no refused connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while read_request(&mut stream).await.is_some() {
                    stream.write_all(accepted().as_bytes()).await.unwrap();
                }
            });
        }
    });
    let report = tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap().unwrap();
    let counts = report.counts;
    assert!(counts.errors.connect >= 2);
    assert_eq!(counts.errors.lost, 2);
    assert_eq!(counts.acknowledged_events, 98);
}

#[tokio::test]
async fn a_connection_the_server_closes_in_order_loses_nothing() {
    let body = r#"{"sessionId":"s"}"#;
    let server = Server::start(move |n, _| match n % 3 {
        0 => Reply::Last(answer(200, "connection: close\r\n", body)),
        1 => Reply::Last(format!("HTTP/1.1 200 OK\r\n\r\n{body}")),
        _ => Reply::Bytes(accepted()),
    })
    .await;
    let report = load(LoadPlan { requests_max: Some(60), ..server.plan() }).await;
    assert_eq!(report.counts.acknowledged_events, 60);
    assert_eq!(report.counts.errors.total(), 0);
}

#[tokio::test]
async fn the_refused_elements_of_a_batch_are_not_acknowledged() {
    let server = Server::start(|_, request| {
        let size = request.elements().len();
        let details = json!([{"index": 1, "response": {"error": {"message": "no"}}}]);
        let body =
            json!({"size": size, "processed": size - 1, "errors": 1, "details": details, "cache": "a.b.c"});
        Reply::Bytes(answer(200, "", &body.to_string()))
    })
    .await;
    let file = TempFile::new("batch");
    let plan = LoadPlan {
        requests_max: Some(20),
        batch: 5,
        record_acknowledged: Some(file.0.clone()),
        ..server.plan()
    };
    let report = load(plan).await;
    assert_eq!(report.counts.acknowledged_events, 80);
    assert_eq!(report.counts.refused_events, 20);

    let requests = server.requests();
    assert!(requests.iter().all(|request| request.line == "POST /api/batch HTTP/1.1"));
    let expected: BTreeSet<_> = requests
        .iter()
        .flat_map(|request| request.elements().iter().map(mark).enumerate().collect::<Vec<_>>())
        .filter_map(|(at, mark)| (at != 1).then_some(mark))
        .collect();
    let recorded: BTreeSet<_> =
        read_acknowledged(&file.0).unwrap().into_iter().map(|event| event.mark).collect();
    assert_eq!(recorded, expected);
}

#[tokio::test]
async fn a_token_goes_back_with_the_session_it_was_given_to() {
    for batch in [1, 3] {
        let server = Server::start(move |_, request| {
            let elements = request.elements();
            let token = format!("token-{}", elements[0]["payload"]["ip"].as_str().unwrap());
            let single = json!({"cache": token, "sessionId": "s", "visitId": "v"});
            let many = json!({"size": batch, "processed": batch, "errors": 0, "details": [], "cache": token});
            Reply::Bytes(answer(200, "", &(if batch == 1 { single } else { many }).to_string()))
        })
        .await;
        let plan = LoadPlan { requests_max: Some(200), batch, token: true, sessions: 20, ..server.plan() };
        let report = load(plan).await;
        assert_eq!(report.counts.acknowledged_events, 200 * batch as u64);
        let mut with_token = 0;
        for request in server.requests() {
            let ips: BTreeSet<_> =
                request.elements().iter().map(|event| event["payload"]["ip"].to_string()).collect();
            assert_eq!(ips.len(), 1);
            if let Some(token) = request.headers.get("x-umami-cache") {
                with_token += 1;
                if batch == 1 && request.body["type"] == "identify" {
                    assert_eq!(token, "", "Umami's tracker has given it up");
                    continue;
                }
                assert_eq!(json!(token.strip_prefix("token-")).to_string(), *ips.first().unwrap());
            }
        }
        // Without a token are a session's first request and those sent before its answer.
        assert!(with_token >= 200 - 20 * 4, "{with_token}");
    }
}

#[tokio::test]
async fn the_warm_up_is_counted_apart() {
    let server = Server::start(|_, _| Reply::Bytes(accepted())).await;
    let plan = LoadPlan {
        warmup: Duration::from_millis(200),
        duration: Duration::from_millis(200),
        ..server.plan()
    };
    let report = load(plan).await;
    assert!(report.warmup.requests > 0 && report.counts.requests > 0);
    assert_eq!(report.latency.samples, report.counts.requests);
    assert_eq!(report.warmup.requests + report.counts.requests, server.requests().len() as u64);
}

#[tokio::test]
async fn a_stopped_run_reports_what_was_done() {
    let stop = CancellationToken::new();
    let at_server = stop.clone();
    let server = Server::start(move |n, _| {
        if n == 99 {
            at_server.cancel();
        }
        Reply::Bytes(accepted())
    })
    .await;
    let snapshots = Arc::new(Mutex::new(Vec::new()));
    let seen = snapshots.clone();
    let progress = move |snapshot: &Snapshot| seen.lock().unwrap().push(*snapshot);
    let report = run(server.plan(), stop, progress).await.unwrap();
    assert_eq!(report.counts.requests, server.requests().len() as u64);
    assert!(report.counts.requests >= 100);
    let last = *snapshots.lock().unwrap().last().unwrap();
    assert_eq!((last.requests, last.events), (report.counts.requests, report.counts.requests));
    assert_eq!(last.total, Duration::from_secs(60));
}

#[tokio::test]
async fn a_run_that_cannot_begin_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let fails = async |plan| run(plan, CancellationToken::new(), |_: &Snapshot| {}).await.unwrap_err();
    assert!(matches!(fails(LoadPlan::new(closed.to_string(), WEBSITE)).await, LoadError::Unreachable { .. }));
    assert!(matches!(fails(LoadPlan::new("https://x", WEBSITE)).await, LoadError::Plan(_)));

    let server = Server::start(|_, _| Reply::Bytes(accepted())).await;
    let plan = LoadPlan { record_acknowledged: Some("/nonexistent/file".into()), ..server.plan() };
    assert!(matches!(fails(plan).await, LoadError::Journal { .. }));
    let progress = |_: &Snapshot| panic!("on purpose");
    let plan = LoadPlan { requests_max: Some(1), ..server.plan() };
    assert!(matches!(run(plan, CancellationToken::new(), progress).await, Err(LoadError::Panicked)));
}

#[tokio::test]
async fn answers_in_pieces_and_chunks_are_put_together_and_the_connection_is_kept() {
    let server = Server::start(|n, _| {
        let text = match n {
            0 => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nX-Name: Some Value\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\nt: u\r\n\r\n".to_owned(),
            _ => answer(200, "", "hello"),
        };
        Reply::Pieces(text.split_inclusive(['\r', 'l', ':']).map(str::to_owned).collect())
    })
    .await;
    let mut connection = Connection::connect_to(server.address).await.unwrap();
    let response = connection.post("/x", &[("a", "b")], b"{}").await.unwrap();
    assert_eq!(response.status, 201);
    assert_eq!(response.header("x-name"), Some("Some Value"));
    assert_eq!(response.body, b"hello, world");
    assert!(connection.is_usable());
    let response = connection.request("GET", "/y", &[], b"").await.unwrap();
    assert_eq!((response.status, response.body.as_slice()), (200, &b"hello"[..]));
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let requests = server.requests();
    assert_eq!(
        (requests[0].line.as_str(), requests[1].line.as_str()),
        ("POST /x HTTP/1.1", "GET /y HTTP/1.1")
    );
    assert_eq!(requests[0].headers["a"], "b");
}

#[tokio::test]
async fn a_connection_says_when_it_is_of_no_further_use() {
    let server = Server::start(|n, _| match n {
        0 => Reply::Bytes(format!("{}more than was asked for", answer(200, "", "x"))),
        1 => Reply::Last("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour".to_owned()),
        2 => Reply::Last("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfour".to_owned()),
        3 => Reply::Last("HTTP/1.1 200 OK\r\n\r\nto the end".to_owned()),
        _ => Reply::Silence,
    })
    .await;
    let connect = async || Connection::connect_to(server.address).await.unwrap();

    let mut connection = connect().await;
    assert_eq!(connection.post("/", &[], b"").await.unwrap().body, b"x");
    assert!(!connection.is_usable());
    assert!(matches!(connection.post("/", &[], b"").await, Err(ConnectionError::Lost(_))));
    for _ in 1..=2 {
        assert!(matches!(connect().await.post("/", &[], b"").await, Err(ConnectionError::Lost(_))));
    }
    assert_eq!(connect().await.post("/", &[], b"").await.unwrap().body, b"to the end");
    let mut connection = connect().await;
    assert!(tokio::time::timeout(Duration::from_millis(20), connection.post("/", &[], b"")).await.is_err());
    assert!(!connection.is_usable());
}

/// Not a promise but a measurement: `cargo test --release -p dashi-load -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn rate_against_a_trivial_server() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let serve = async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        sender.send(listener.local_addr().unwrap()).unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let reply = accepted();
                let mut buffer = vec![0; 16 * 1024];
                // Requests of a closed loop come whole and one at a time.
                while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime().block_on(serve));
    let address = receiver.recv().unwrap();
    let plan = |mode| LoadPlan {
        mode,
        duration: Duration::from_secs(5),
        warmup: Duration::from_secs(1),
        token: true,
        ..LoadPlan::new(address.to_string(), WEBSITE)
    };
    for mode in [Mode::Closed, Mode::Open { requests_per_s: 5_000.0 }] {
        println!("{mode:?}\n{}", runtime().block_on(load(plan(mode))));
    }
}
