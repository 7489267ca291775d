//! Tracing by OpenTelemetry: one trace from the request to the commit, over both processes, received by a collector of the
//! test's own; and one that is away, or never answers, costs neither a request nor a commit.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use integration_tests::kafka::{self, unique_topic};
use integration_tests::log::{open_log, read_log};
use integration_tests::setup::AGENT;
use integration_tests::{Deployment, KafkaServer, Server, TestDatabase, TestDirectory, eventually, http};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

/// How long a busy machine may take for what usually takes some seconds.
const SOON: Duration = Duration::from_secs(60);

/// A trace that the request's sender began.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What a client sends and no span may show.
const PRIVATE: [&str; 6] =
    [AGENT, "planted-host.example", "planted-path", "planted-title", "planted-person", "198.51.100.77"];

/// Receives spans as an OpenTelemetry collector does; it is busy at first.
#[derive(Clone)]
struct Receiver {
    endpoint: String,
    bodies: Arc<Mutex<Vec<Value>>>,
}

/// A span, with the role of the process that it is of.
#[derive(Debug, Clone)]
struct Received {
    role: String,
    span: Value,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/base/", listener.local_addr().unwrap());
        let receiver = Self { endpoint, bodies: Arc::default() };
        let taking = receiver.clone();
        tokio::spawn(async move {
            let mut is_first = true;
            while let Ok((stream, _)) = listener.accept().await {
                let (bodies, busy) = (Arc::clone(&taking.bodies), std::mem::take(&mut is_first));
                let service = service_fn(move |request: Request<Incoming>| {
                    let bodies = Arc::clone(&bodies);
                    async move {
                        let kind = request.headers().get("content-type").cloned();
                        let is_right = request.method() == "POST"
                            && request.uri().path() == "/base/v1/traces"
                            && kind.is_some_and(|kind| kind == "application/json");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let status = match (busy, is_right) {
                            (true, _) => 503,
                            (false, true) => 200,
                            (false, false) => 404,
                        };
                        if status == 200 {
                            bodies.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                        }
                        let answer =
                            Response::builder().status(status).body(Full::new(Bytes::from_static(b"{}")));
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        receiver
    }

    /// Everything that was received, as text.
    fn text(&self) -> String {
        self.bodies.lock().unwrap().iter().map(Value::to_string).collect()
    }

    /// The spans of a trace.
    fn spans(&self, trace: &str) -> Vec<Received> {
        let mut spans = Vec::new();
        for body in self.bodies.lock().unwrap().iter() {
            let part = &body["resourceSpans"][0];
            let resource = attributes(&part["resource"]);
            assert_eq!(resource["service.name"], "dashi-of-the-test");
            for span in part["scopeSpans"][0]["spans"].as_array().unwrap() {
                if span["traceId"] == trace {
                    spans.push(Received { role: resource["dashi.role"].clone(), span: span.clone() });
                }
            }
        }
        spans
    }

    /// Waits until a trace has spans of these names, and returns each by its name.
    async fn trace(&self, trace: &str, names: &[&str]) -> BTreeMap<String, Received> {
        eventually(2 * SOON, "the trace is whole", async || {
            let mut found: Vec<_> = self.spans(trace).iter().map(|received| name(&received.span)).collect();
            found.sort_unstable();
            if found == names { Ok(()) } else { Err(format!("{found:?}: {}", self.text())) }
        })
        .await;
        self.spans(trace).into_iter().map(|received| (name(&received.span), received)).collect()
    }
}

fn name(span: &Value) -> String {
    span["name"].as_str().unwrap().to_owned()
}

/// The attributes of a span or a resource.
fn attributes(of: &Value) -> BTreeMap<String, String> {
    let attributes = of["attributes"].as_array().unwrap().iter();
    let value = |value: &Value| {
        let text = value.get("stringValue").or_else(|| value.get("intValue")).expect("one of both");
        text.as_str().expect("64-bit numbers are texts, too").to_owned()
    };
    attributes
        .map(|attribute| (attribute["key"].as_str().unwrap().to_owned(), value(&attribute["value"])))
        .collect()
}

fn time(span: &Value, end: &str) -> u64 {
    span[format!("{end}TimeUnixNano")].as_str().expect("64-bit numbers are texts").parse().unwrap()
}

async fn send(deployment: &Deployment, url: &str, headers: &[(&str, &str)]) {
    let payload = json!({
        "website": deployment.website(), "hostname": "planted-host.example", "url": "/planted-path?q=1",
        "title": "planted-title", "id": "planted-person",
    });
    let body = json!({ "type": "event", "payload": payload });
    let headers = [&[("user-agent", AGENT), ("x-forwarded-for", "198.51.100.77")], headers].concat();
    let answer = http::post_json(&format!("{url}/api/send?planted-path"), &body, &headers).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn metrics(server: &Server) -> Result<String, String> {
    let answer = http::get(&format!("{}/metrics", server.url())).await;
    answer.map(|answer| answer.text()).map_err(|error| error.to_string())
}

/// Spans of an outcome, by the metric.
fn counted(metrics: &str, outcome: &str) -> u64 {
    let prefix = format!("dashi_tracing_spans_total{{outcome=\"{outcome}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {prefix} in {metrics}")).parse().unwrap()
}

/// One event's spans, from the request to the commit, in as many processes as there are roles.
async fn an_event_has_one_trace(deployment: Deployment, roles: &[&str], database: &str) {
    let receiver = Receiver::start().await;
    let deployment = deployment
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint)
        .with("OTEL_SERVICE_NAME", "dashi-of-the-test")
        .with("DASHI_TRACING_SAMPLED_RATIO", "0");
    deployment.register().await;
    let mut servers = Vec::new();
    for role in roles {
        servers.push(deployment.start(role).ready().await);
    }
    let collector = servers[0].url();
    let header = format!("00-{TRACE}-{PARENT}-01");
    send(&deployment, &collector, &[("traceparent", &header)]).await;
    // None of these is sampled.
    send(&deployment, &collector, &[]).await;
    send(&deployment, &collector, &[("traceparent", &header.replace("-01", "-00"))]).await;
    send(&deployment, &collector, &[("traceparent", &header.replace("00-4", "ff-4"))]).await;
    assert_eq!(deployment.settled().await.totals.applied, 4);

    let spans = receiver.trace(TRACE, &["POST /api/send", "append", "commit", "fold", "project"]).await;
    let of = |name: &str| &spans[name].span;
    // The tree: request, append, and the record's way into the tables with its two parts.
    for (name, parent) in
        [("append", "POST /api/send"), ("project", "append"), ("fold", "project"), ("commit", "project")]
    {
        assert_eq!(of(name)["parentSpanId"], of(parent)["spanId"], "{name}: {spans:#?}");
    }
    assert_eq!(of("POST /api/send")["parentSpanId"], PARENT);
    let (first, last) = (roles[0], roles[roles.len() - 1]);
    for (name, role, kind) in [
        ("POST /api/send", first, 2),
        ("append", first, 4),
        ("project", last, 5),
        ("fold", last, 1),
        ("commit", last, 3),
    ] {
        assert_eq!(spans[name].role, role, "{name}");
        assert_eq!(of(name)["kind"], kind, "{name}");
        assert_eq!(of(name).get("status"), None, "{name}");
        assert!(time(of(name), "start") <= time(of(name), "end"), "{name}");
    }
    assert!(time(of("POST /api/send"), "start") <= time(of("append"), "start"));
    assert!(time(of("append"), "end") <= time(of("POST /api/send"), "end"));
    assert!(time(of("append"), "start") <= time(of("project"), "start"));
    assert!(time(of("fold"), "end") <= time(of("commit"), "start"));
    assert!(time(of("commit"), "end") <= time(of("project"), "end"));
    let request = attributes(of("POST /api/send"));
    assert_eq!(
        request,
        BTreeMap::from(
            [
                ("http.request.method", "POST"),
                ("http.route", "/api/send"),
                ("http.response.status_code", "200"),
                ("url.path", "/api/send"),
                ("url.scheme", "http"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
        )
    );
    assert_eq!(attributes(of("commit"))["db.system.name"], database);

    let received = receiver.text();
    for private in PRIVATE.into_iter().chain(["a secret of the tests"]) {
        assert!(!received.contains(private), "a span shows {private}: {received}");
    }
    for server in &mut servers {
        // A moment after the receiver has them.
        eventually(SOON, "the spans are counted", async || {
            let metrics = metrics(server).await?;
            if counted(&metrics, "exported") >= 2 { Ok(()) } else { Err(metrics) }
        })
        .await;
        let metrics = metrics(server).await.unwrap();
        assert_eq!(["refused", "failed", "dropped"].map(|outcome| counted(&metrics, outcome)), [0; 3]);
        assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
    }

    // The record carries the context; one that is not sampled is as it was.
    let log = open_log(deployment.log()).await;
    let records = read_log(&log).await;
    let append = of("append")["spanId"].as_str().unwrap();
    let traced = format!("{{\"v\":1,\"trace\":\"00-{TRACE}-{append}-01\",\"id\":\"");
    let is_traced = |value: &[u8]| value.starts_with(traced.as_bytes());
    assert_eq!(records.iter().filter(|record| is_traced(&record.value)).count(), 1);
    let others = records.iter().filter(|record| record.value.starts_with(b"{\"v\":1,\"id\":\""));
    assert_eq!((others.count(), records.len()), (3, 4));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_has_one_trace_from_request_to_commit_embedded() {
    let directory = TestDirectory::create("spans");
    an_event_has_one_trace(Deployment::embedded(&directory), &["serve"], "sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_has_one_trace_from_request_to_commit_on_kafka_and_postgres() {
    let (database, topic) = (TestDatabase::create().await, unique_topic("spans"));
    let log = format!("kafka://{}/{topic}", kafka::shared_broker());
    an_event_has_one_trace(Deployment::new(log, database.url()), &["collect", "project"], "postgresql").await;

    // Other programs find the context where they look for it.
    let headers = tokio::task::spawn_blocking(move || headers(&topic, 4)).await.unwrap();
    let found: Vec<_> = headers.iter().flatten().collect();
    assert_eq!(found.len(), 1, "{headers:?}");
    assert!(found[0].starts_with(&format!("traceparent: 00-{TRACE}-")), "{headers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_spooled_has_its_way_to_the_log_in_its_trace() {
    let mut broker = KafkaServer::start().await;
    let (database, directory) = (TestDatabase::create().await, TestDirectory::create("spans"));
    let receiver = Receiver::start().await;
    let deployment = Deployment::new(format!("kafka://{}/spans", broker.address()), database.url())
        .with("DASHI_INGEST_SPOOL", "true")
        .with("DASHI_INGEST_SPOOL_DIRECTORY", &directory.path().join("spool").display().to_string())
        .with("DASHI_INGEST_SPOOL_AFTER_MS", "200")
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint)
        .with("OTEL_SERVICE_NAME", "dashi-of-the-test");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    broker.stop().await;
    send(&deployment, &server.url(), &[("traceparent", &format!("00-{TRACE}-{PARENT}-01"))]).await;
    broker.start_again().await;

    let names = ["POST /api/send", "append", "commit", "fold", "forward", "project"];
    let spans = receiver.trace(TRACE, &names).await;
    let of = |name: &str| &spans[name].span;
    for name in ["forward", "project"] {
        assert_eq!(of(name)["parentSpanId"], of("append")["spanId"], "{name}: {spans:#?}");
    }
    let forward = attributes(of("forward"));
    assert_eq!((forward["dashi.forwarded_from"].as_str(), &of("forward")["kind"]), ("spool", &json!(4)));
    assert!(forward["dashi.waited_ms"].parse::<u64>().is_ok(), "{forward:?}");
    assert!(time(of("append"), "end") <= time(of("forward"), "start"), "{spans:#?}");
    assert!(time(of("forward"), "start") <= time(of("project"), "start"), "{spans:#?}");
    assert_eq!(deployment.settled().await.totals.applied, 1);
    assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
}

/// The headers of so many records of a topic, each with its only header if it has any.
fn headers(topic: &str, records: usize) -> Vec<Option<String>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka::shared_broker())
        .set("group.id", "onlooker")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), SOON).unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let next = || {
        let message = consumer.poll(SOON).expect("a record comes").unwrap();
        let headers = message.headers()?;
        assert_eq!(headers.count(), 1);
        let header = headers.get(0);
        Some(format!("{}: {}", header.key, String::from_utf8_lossy(header.value.unwrap_or_default())))
    };
    (0..records).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visits_of_pixels_and_refused_requests_have_spans_too() {
    let receiver = Receiver::start().await;
    let directory = TestDirectory::create("spans");
    let deployment = Deployment::embedded(&directory)
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint)
        .with("OTEL_SERVICE_NAME", "dashi-of-the-test")
        .with("DASHI_INGEST_BASE_PATH", "/umami");
    deployment.register().await;
    let added = deployment.run(&["pixel", "add", "--name", "test", "--slug", "planted-slug"]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    let mut server = deployment.start("serve").ready().await;
    let header = |trace: &str| format!("00-{trace}-{PARENT}-01");

    let get = async |path: &str, trace: &str| {
        let url = format!("{}{path}", server.url());
        let headers = [("user-agent", AGENT), ("traceparent", &header(trace))];
        http::request(hyper::Method::GET, &url, "", &headers).await.unwrap().status
    };
    let (visited, absent, refused) = ("1".repeat(32), "2".repeat(32), "3".repeat(32));
    assert_eq!(get("/umami/p/planted-slug", &visited).await, 200);
    assert_eq!(get("/umami/q/nothing", &absent).await, 404);
    let (url, traceparent) = (format!("{}/umami/api/send", server.url()), header(&refused));
    let headers = [("user-agent", AGENT), ("traceparent", traceparent.as_str())];
    assert_eq!(http::post_json(&url, &json!({ "type": "event" }), &headers).await.unwrap().status, 400);

    let pixel = "GET /umami/p/{slug}";
    let spans = receiver.trace(&visited, &[pixel, "append", "commit", "fold", "project"]).await;
    assert_eq!(attributes(&spans[pixel].span)["url.path"], "/umami/p/planted-slug");
    for (trace, name, status) in
        [(absent, "GET /umami/q/{slug}", "404"), (refused, "POST /umami/api/send", "400")]
    {
        let spans = receiver.trace(&trace, &[name]).await;
        assert_eq!(attributes(&spans[name].span)["http.response.status_code"], status);
    }
    assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_otlp_collector_that_is_away_costs_spans_and_nothing_else() {
    let directory = TestDirectory::create("spans");
    // A port that is taken, so that no other test gets it, and on which nobody listens.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let deployment = Deployment::embedded(&directory)
        .with("DASHI_TRACING_OTLP_ENDPOINT", &format!("http://{}", nobody.local_addr().unwrap()))
        .with("DASHI_TRACING_SAMPLED_RATIO", "1");
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    for outages in 1..=2 {
        send(&deployment, &server.url(), &[]).await;
        eventually(SOON, "the spans are given up", async || {
            let metrics = metrics(&server).await?;
            if counted(&metrics, "failed") == 5 * outages { Ok(()) } else { Err(metrics) }
        })
        .await;
    }
    assert_eq!(deployment.settled().await.totals.applied, 2);
    assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
    let logs = server.dashi.logs();
    assert_eq!(logs.matches("spans could not be exported").count(), 1, "{logs}");
    assert!(logs.contains("Connection refused"), "{logs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_otlp_collector_that_never_answers_costs_spans_and_no_time() {
    /// Batches and their events, each of which has three spans.
    const BATCHES: usize = 24;
    const EVENTS: usize = 200;

    let directory = TestDirectory::create("spans");
    // The system takes its connections, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deployment = Deployment::embedded(&directory)
        .with("DASHI_TRACING_OTLP_ENDPOINT", &format!("http://{}", silent.local_addr().unwrap()))
        .with("DASHI_TRACING_SAMPLED_RATIO", "1")
        // Spans for every record.
        .with("DASHI_PROJECTOR_BATCH_RECORDS_MAX", &EVENTS.to_string());
    deployment.register().await;
    let mut server = deployment.start("serve").ready().await;
    let event = json!({ "type": "event", "payload": { "website": deployment.website(), "url": "/" } });
    let batch = Value::Array(vec![event; EVENTS]);
    let url = format!("{}/api/batch", server.url());
    for _ in 0..BATCHES {
        let answer = http::post_json(&url, &batch, &[("user-agent", AGENT)]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(deployment.settled().await.totals.applied, (BATCHES * EVENTS) as u64);
    eventually(SOON, "spans are dropped, and counted", async || {
        let metrics = metrics(&server).await?;
        if counted(&metrics, "dropped") > 0 { Ok(()) } else { Err(metrics) }
    })
    .await;
    let stopping = Instant::now();
    assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
    assert!(stopping.elapsed() < Duration::from_secs(20), "{:?}", stopping.elapsed());
}
