//! Spans of records that a spool or a lane brings to the log, if their traces are sampled: from the time at which they are
//! given to the log until it has them.

use std::time::SystemTime;

use dashi_domain::calendar::ns_since_1970;
use dashi_domain::glance::Glance;
use dashi_domain::spans::{Attribute, Span, SpanKind, TraceContext, Tracer};
use uuid::Uuid;

use crate::AppendError;
use crate::embedded::Queued;

/// Records that have spans, of those that are forwarded at once, at most; the others' spans are counted as dropped.
const RECORDS_MAX: usize = 256;

/// The spans of records on their way.
pub(crate) struct ForwardSpans {
    tracer: Tracer,
    /// Where the records come from.
    from: &'static str,
    start_ns: u64,
    sampled: Vec<Sampled>,
}

struct Sampled {
    /// Its place among the records.
    place: usize,
    /// The span of its append.
    context: TraceContext,
    received_at_ms: Option<i64>,
}

impl ForwardSpans {
    /// Begins them; `None` if no record is sampled.
    pub(crate) fn begin(tracer: &Tracer, from: &'static str, queued: &[Queued]) -> Option<Self> {
        if !tracer.is_on() {
            return None;
        }
        let mut sampled = queued.iter().enumerate().filter_map(|(place, queued)| {
            let value = &queued.record.value;
            let context = TraceContext::of_record(value).filter(|context| context.sampled)?;
            Some(Sampled { place, context, received_at_ms: Glance::of(value).received_at_ms })
        });
        let first: Vec<_> = sampled.by_ref().take(RECORDS_MAX).collect();
        tracer.forgo(sampled.count());
        let sampled = first;
        (!sampled.is_empty()).then(|| Self { tracer: tracer.clone(), from, start_ns: now_ns(), sampled })
    }

    /// Ends those of the records that the log has. The others begin again with the next attempt.
    pub(crate) fn end<T>(self, outcomes: &[Result<T, AppendError>]) {
        let end_ns = now_ns();
        let began_ms = i64::try_from(self.start_ns / 1_000_000).unwrap_or(i64::MAX);
        for Sampled { place, context, received_at_ms } in self.sampled {
            if !matches!(outcomes.get(place), Some(Ok(_))) {
                continue;
            }
            let mut attributes = vec![
                ("messaging.operation.type", Attribute::Text("send".into())),
                ("dashi.forwarded_from", Attribute::Text(self.from.into())),
            ];
            if let Some(received_at_ms) = received_at_ms {
                let waited_ms = began_ms.saturating_sub(received_at_ms).max(0);
                attributes.push(("dashi.waited_ms", Attribute::Number(waited_ms)));
            }
            self.tracer.record(Span {
                context: context.with_span(Uuid::new_v4().as_u128() as u64),
                parent: Some(context.span),
                name: "forward".into(),
                kind: SpanKind::Producer,
                start_ns: self.start_ns,
                end_ns,
                attributes,
                failure: None,
            });
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "spans are of the wall clock")]
fn now_ns() -> u64 {
    ns_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use dashi_domain::position::Offset;

    use super::*;
    use crate::NewRecord;

    #[test]
    fn records_that_the_log_took_have_a_span_each() {
        let tracer = Tracer::new(1.0, 100);
        let context =
            TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let queued = |is_traced: bool| {
            let mut value = b"{\"v\":1,\"id\":\"x\",\"at\":5}".to_vec();
            if is_traced {
                context.put(&mut value);
            }
            Queued { offset: Offset::ZERO, record: NewRecord { session_id: Uuid::nil(), value } }
        };
        let records = [queued(false), queued(true), queued(true)];
        let spans = ForwardSpans::begin(&tracer, "spool", &records).unwrap();
        spans.end(&[Ok(()), Err(AppendError::Full), Ok(())]);
        let spans = tracer.take();
        assert_eq!(spans.len(), 1, "{spans:?}");
        assert_eq!((spans[0].parent, spans[0].context.trace), (Some(context.span), context.trace));
        assert!(spans[0].attributes.iter().any(|(name, _)| *name == "dashi.waited_ms"), "{spans:?}");
        assert!(ForwardSpans::begin(&tracer, "spool", &records[..1]).is_none());
        assert!(ForwardSpans::begin(&Tracer::default(), "spool", &records).is_none());
    }
}
