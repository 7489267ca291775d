//! Exports spans to an OpenTelemetry collector: OTLP over HTTP, in JSON.
//!
//! Written by hand, since this file is all that it takes: OpenTelemetry's own crates would add protobuf, gRPC's types and a
//! second pool of threads to every build, for a mapping of one structure.
//!
//! Source: OpenTelemetry Protocol 1.x, "OTLP/HTTP" and "JSON Protobuf Encoding": identities are hexadecimal, 64-bit numbers
//! are texts, enumerations are numbers.

use std::time::Duration;

use dashi_config::Tracing;
use dashi_domain::spans::{Attribute, Span, SpanKind, Tracer};
use dashi_load::{Connection, Target};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::exit::Misuse;
use crate::serve::helpers::Helpers;
use crate::serve::{Base, Roles};

/// How often spans are sent.
const SEND: Duration = Duration::from_secs(1);

/// Spans of one request.
const AT_ONCE: usize = 256;

/// Spans that wait, at most, beside as many that are being sent: about 2 MB each.
const WAITING_MAX: usize = 4_096;

/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How often a request is tried that the collector does not take for the moment; once, where it did not take the one before.
const TRIES: u32 = 3;

/// How long the last spans may take when the process stops.
const LAST: Duration = Duration::from_secs(2);

/// Path of the traces below an endpoint.
const PATH: &str = "/v1/traces";

/// The program, as requests name it.
const USER_AGENT: &str = concat!("dashi/", env!("CARGO_PKG_VERSION"));

/// The tracer that the settings want.
pub fn tracer(settings: &Tracing) -> Tracer {
    match settings.otlp_endpoint.as_str() {
        "" => Tracer::default(),
        _ => Tracer::new(settings.sampled_ratio, WAITING_MAX),
    }
}

/// Starts to export, if the settings name an endpoint.
///
/// # Errors
/// It is no address of HTTP.
pub fn start(base: &Base<'_>, helpers: &mut Helpers, registry: &mut Registry) -> anyhow::Result<()> {
    if !base.tracer.is_on() {
        return Ok(());
    }
    let settings = &base.settings.tracing;
    let role = match base.roles {
        Roles::Both => "serve",
        Roles::Collect => "collect",
        Roles::Project => "project",
    };
    let resource = resource(&settings.service_name, &crate::open::owner(), role);
    let endpoint = &settings.otlp_endpoint;
    let target = Target::parse(endpoint)
        .ok_or_else(|| Misuse(format!("tracing.otlp_endpoint = {endpoint}: give http://HOST:PORT")))?;
    let exporter = Exporter::new(base.tracer.clone(), target, resource, registry);
    helpers.spawn("the export of spans", |stop| exporter.run(stop));
    Ok(())
}

/// The process, as spans name it.
fn resource(service: &str, instance: &str, role: &str) -> Value {
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    json!({ "attributes": [
        text("service.name", service),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", instance),
        text("dashi.role", role),
    ] })
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Sends the spans of a tracer.
struct Exporter {
    tracer: Tracer,
    target: Target,
    resource: Value,
    metric: Family<OutcomeLabel, Counter>,
    /// Spans that were taken from the tracer and not sent yet.
    unsent: Vec<Span>,
    /// Whether the last request was not taken.
    is_out: bool,
    /// Spans that the tracer had dropped when that was last counted.
    dropped: u64,
}

/// Why spans were not taken.
enum Untaken {
    /// The collector may take them later.
    ForNow(String),
    /// It never will.
    Refused(String),
}

impl Exporter {
    fn new(tracer: Tracer, target: Target, resource: Value, registry: &mut Registry) -> Self {
        let metric = Family::<OutcomeLabel, Counter>::default();
        registry.register(
            "dashi_tracing_spans",
            "Spans by outcome: exported, refused, failed, dropped",
            metric.clone(),
        );
        for outcome in ["exported", "refused", "failed", "dropped"] {
            // So that each is shown from the start.
            metric.get_or_create(&OutcomeLabel { outcome }).inc_by(0);
        }
        Self { tracer, target, resource, metric, unsent: Vec::new(), is_out: false, dropped: 0 }
    }

    /// Exports until it is stopped, and then what is left.
    async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(SEND) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.send_all() => {}
            }
        }
        // What was on its way is sent again: an OpenTelemetry collector tells a copy by its identity.
        if tokio::time::timeout(LAST, self.send_all()).await.is_err() {
            self.is_out = true;
        }
        let lost = self.unsent.len() + self.tracer.take().len();
        if lost > 0 {
            self.count("failed", lost);
            tracing::debug!(lost, "the last spans were not exported in time");
        }
    }

    /// Sends the spans that wait, until there are none or a request is not taken.
    async fn send_all(&mut self) {
        loop {
            let dropped = self.tracer.dropped();
            self.count("dropped", (dropped - self.dropped) as usize);
            self.dropped = dropped;
            if self.unsent.is_empty() {
                self.unsent = self.tracer.take();
            }
            let count = self.unsent.len().min(AT_ONCE);
            if count == 0 {
                return;
            }
            let body = body(&self.resource, &self.unsent[..count]).to_string();
            let sent = self.send(body.as_bytes()).await;
            self.unsent.drain(..count);
            match sent {
                Ok(()) => {
                    self.count("exported", count);
                    if std::mem::take(&mut self.is_out) {
                        tracing::info!("spans are exported again");
                    }
                }
                Err(untaken) => {
                    let (outcome, error) = match untaken {
                        Untaken::ForNow(error) => ("failed", error),
                        Untaken::Refused(error) => ("refused", error),
                    };
                    self.count(outcome, count);
                    if !std::mem::replace(&mut self.is_out, true) {
                        let endpoint = &self.target.authority;
                        tracing::warn!(
                            endpoint,
                            error,
                            "spans could not be exported and are lost; logged again when it works"
                        );
                    }
                    return;
                }
            }
        }
    }

    fn count(&self, outcome: &'static str, spans: usize) {
        self.metric.get_or_create(&OutcomeLabel { outcome }).inc_by(spans as u64);
    }

    async fn send(&self, body: &[u8]) -> Result<(), Untaken> {
        let tries = if self.is_out { 1 } else { TRIES };
        let mut tried = 1;
        loop {
            match self.try_once(body).await {
                Err(Untaken::ForNow(_)) if tried < tries => {
                    tokio::time::sleep(SEND * tried).await;
                    tried += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn try_once(&self, body: &[u8]) -> Result<(), Untaken> {
        let path = format!("{}{PATH}", self.target.base);
        let headers = [("content-type", "application/json"), ("user-agent", USER_AGENT)];
        let asked = tokio::time::timeout(ANSWER, async {
            let mut connection = Connection::connect(&self.target.authority).await?;
            connection.request("POST", &path, &headers, body).await
        });
        let answer = match asked.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Untaken::ForNow(format!("{:#}", anyhow::Error::from(error)))),
            Err(_) => return Err(Untaken::ForNow(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        match answer.status {
            200..=299 => Ok(()),
            429 | 502 | 503 | 504 => Err(Untaken::ForNow(format!("it answers {}", answer.status))),
            status => Err(Untaken::Refused(format!("it answers {status} to POST {path}"))),
        }
    }
}

fn body(resource: &Value, spans: &[Span]) -> Value {
    let scope = json!({ "name": "dashi", "version": env!("CARGO_PKG_VERSION") });
    let spans: Vec<Value> = spans.iter().map(span_json).collect();
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "scope": scope, "spans": spans }] }] })
}

fn span_json(span: &Span) -> Value {
    let kind = match span.kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    };
    let attributes = span.attributes.iter().map(|(key, value)| {
        let value = match value {
            Attribute::Text(text) => json!({ "stringValue": text }),
            Attribute::Number(number) => json!({ "intValue": number.to_string() }),
        };
        json!({ "key": key, "value": value })
    });
    let mut value = json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        // W3C's flags: sampled.
        "flags": 1,
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.to_string(),
        "attributes": attributes.collect::<Vec<_>>(),
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = json!(parent.to_string());
    }
    if let Some(failure) = &span.failure {
        value["status"] = json!({ "code": 2, "message": failure });
    }
    value
}

#[cfg(test)]
mod tests {
    use dashi_domain::spans::{SpanId, TraceContext};

    use super::*;

    fn span() -> Span {
        let header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        Span {
            context: TraceContext::parse(header).expect("valid"),
            parent: Some(SpanId::of(10)),
            name: "append".into(),
            kind: SpanKind::Producer,
            start_ns: 1_795_164_975_123_456_789,
            end_ns: 1_795_164_975_123_999_999,
            attributes: vec![
                ("dashi.outcome", Attribute::Text("stored \"x\"".into())),
                ("messaging.batch.message_count", Attribute::Number(3)),
            ],
            failure: Some("unavailable"),
        }
    }

    #[test]
    fn a_span_is_written_as_the_protocol_has_it() {
        let body = body(&json!({ "attributes": [] }), &[span()]);
        let expected = json!({ "resourceSpans": [{
            "resource": { "attributes": [] },
            "scopeSpans": [{
                "scope": { "name": "dashi", "version": env!("CARGO_PKG_VERSION") },
                "spans": [{
                    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                    "spanId": "00f067aa0ba902b7",
                    "parentSpanId": "000000000000000a",
                    "flags": 1,
                    "name": "append",
                    "kind": 4,
                    "startTimeUnixNano": "1795164975123456789",
                    "endTimeUnixNano": "1795164975123999999",
                    "attributes": [
                        { "key": "dashi.outcome", "value": { "stringValue": "stored \"x\"" } },
                        { "key": "messaging.batch.message_count", "value": { "intValue": "3" } },
                    ],
                    "status": { "code": 2, "message": "unavailable" },
                }],
            }],
        }] });
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn spans_that_nobody_takes_are_counted_when_the_process_stops() {
        let tracer = Tracer::new(1.0, 3);
        for _ in 0..5 {
            tracer.record(span());
        }
        // Nothing listens on port 0.
        let target = Target::parse("http://127.0.0.1:0").expect("an address");
        let exporter = Exporter::new(tracer, target, Value::Null, &mut Registry::default());
        let metric = exporter.metric.clone();
        let count = |outcome| metric.get_or_create(&OutcomeLabel { outcome }).get();
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run(stop).await;
        let counts = ["exported", "refused", "failed", "dropped"].map(count);
        assert_eq!(counts, [0, 0, 3, 2]);
    }
}
