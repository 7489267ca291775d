//! Spans of a request and of the append of its records, if its trace is sampled. Their attributes have no part of a body, of
//! a query or of an address.

use std::borrow::Cow;
use std::time::SystemTime;

use axum::body::Body;
use dashi_domain::calendar::ns_since_1970;
use dashi_domain::spans::{Attribute, Span, SpanId, SpanKind, TraceContext, Tracer};
use http::{HeaderMap, Method, Request, StatusCode};
use uuid::Uuid;

use crate::answer::Rejection;
use crate::collector::Collector;
use crate::frame::{Decision, PartOutcome};

/// Longest path in a span, in bytes; a longer one is cut.
const PATH_BYTES_MAX: usize = 100;

/// The span of a request. It ends when this is dropped; without a status if the client went away before there was one.
pub(crate) struct RequestSpan(Box<Begun>);

struct Begun {
    tracer: Tracer,
    context: TraceContext,
    parent: Option<SpanId>,
    start_ns: u64,
    method: &'static str,
    route: String,
    path: String,
    status: Option<StatusCode>,
}

impl RequestSpan {
    /// Begins the span of a request; `None` if its trace is not sampled. `route` is the path with names in braces, where it
    /// has some.
    pub(crate) fn begin(
        collector: &Collector,
        request: &Request<Body>,
        route: Option<&'static str>,
    ) -> Option<Self> {
        if !collector.tracer.is_on() {
            return None;
        }
        let (context, parent) = collector.tracer.begin(trace_parent(request.headers()), random)?;
        let (base, path) = (&collector.routes.base, request.uri().path());
        Some(Self(Box::new(Begun {
            tracer: collector.tracer.clone(),
            context,
            parent,
            start_ns: now_ns(),
            method: method(request.method()),
            route: cut(format!("{base}{}", route.unwrap_or(path))),
            path: cut(format!("{base}{path}")),
            status: None,
        })))
    }

    /// Begins the span of the append of these records, and puts its context into them; `None` if there are none.
    pub(crate) fn append<S, A>(&self, decisions: &mut [Decision<S, A>]) -> Option<AppendSpan> {
        let context = self.0.context.with_span(random() as u64);
        let mut records = 0;
        for decision in decisions {
            if let Decision::Append(record, _) | Decision::Lane(record, _) = decision {
                context.put(&mut record.value);
                records += 1;
            }
        }
        (records > 0).then(|| {
            AppendSpan(Box::new(Appending {
                tracer: self.0.tracer.clone(),
                context,
                parent: self.0.context.span,
                records,
                start_ns: now_ns(),
            }))
        })
    }

    /// Ends it with the answer.
    pub(crate) fn answered(mut self, status: StatusCode) {
        self.0.status = Some(status);
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let Begun { tracer, context, parent, start_ns, method, route, path, status } = &mut *self.0;
        let name = format!("{method} {route}").into();
        let mut attributes = vec![
            ("http.request.method", Attribute::Text(Cow::Borrowed(*method))),
            ("http.route", Attribute::Text(std::mem::take(route).into())),
            ("url.path", Attribute::Text(std::mem::take(path).into())),
            ("url.scheme", Attribute::Text("http".into())),
        ];
        let mut failure = None;
        if let Some(status) = status {
            attributes.push(("http.response.status_code", Attribute::Number(status.as_u16().into())));
            if status.is_server_error() {
                attributes.push(("error.type", Attribute::Text(status.as_str().to_owned().into())));
                failure = Some(status.canonical_reason().unwrap_or("the answer is an error"));
            }
        } else {
            attributes.push(("error.type", Attribute::Text("client_gone".into())));
        }
        tracer.record(Span {
            context: *context,
            parent: *parent,
            name,
            kind: SpanKind::Server,
            start_ns: *start_ns,
            end_ns: now_ns(),
            attributes,
            failure,
        });
    }
}

/// The span of an append that is under way.
pub struct AppendSpan(Box<Appending>);

struct Appending {
    tracer: Tracer,
    context: TraceContext,
    parent: SpanId,
    records: i64,
    start_ns: u64,
}

impl AppendSpan {
    /// Ends it. It failed if a record is not known to be durable.
    pub(crate) fn end<S, A>(self, outcomes: &[PartOutcome<S, A>]) {
        let Appending { tracer, context, parent, records, start_ns } = *self.0;
        let is_failed = |outcome: &PartOutcome<_, _>| {
            matches!(outcome, PartOutcome::Refused(Rejection::Unavailable | Rejection::TooLarge))
        };
        tracer.record(Span {
            context,
            parent: Some(parent),
            name: "append".into(),
            kind: SpanKind::Producer,
            start_ns,
            end_ns: now_ns(),
            attributes: vec![
                ("messaging.operation.type", Attribute::Text("send".into())),
                ("messaging.batch.message_count", Attribute::Number(records)),
            ],
            failure: outcomes.iter().any(is_failed).then_some("a record was not acknowledged"),
        });
    }
}

/// The header `traceparent`. Several of them are none, as W3C's rules say.
fn trace_parent(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all("traceparent").iter();
    let first = all.next()?;
    all.next().is_none().then_some(first.as_bytes())
}

/// The name of a method of the collector's routes.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::POST => "POST",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        _ => "_OTHER",
    }
}

fn cut(mut path: String) -> String {
    if path.len() > PATH_BYTES_MAX {
        let end = (0..=PATH_BYTES_MAX).rev().find(|end| path.is_char_boundary(*end));
        path.truncate(end.unwrap_or(0));
    }
    path
}

fn random() -> u128 {
    Uuid::new_v4().as_u128()
}

#[expect(clippy::disallowed_methods, reason = "the collector is the edge at which time enters")]
fn now_ns() -> u64 {
    ns_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn several_headers_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(trace_parent(&headers), None);
        headers.append("traceparent", HeaderValue::from_static("one"));
        assert_eq!(trace_parent(&headers), Some(&b"one"[..]));
        headers.append("traceparent", HeaderValue::from_static("two"));
        assert_eq!(trace_parent(&headers), None);
    }

    #[test]
    fn a_long_path_is_cut_between_characters() {
        assert_eq!(cut("/p/short".to_owned()), "/p/short");
        assert_eq!(cut(format!("{}é", "x".repeat(99))), "x".repeat(99));
        assert_eq!(cut("é".repeat(100)).len(), 100);
    }
}
