//! Spans of requests and of their records' way into the tables, for tracing by OpenTelemetry: which are kept, the context
//! that a record carries, and the queue to the exporter.
//!
//! A record carries its context in front, behind its version: `{"v":1,"trace":"00-…-…-01","id":…`. Readers that do not know
//! the field pass over it, and records that are not sampled have none. Time and random bits are arguments.

use std::borrow::Cow;
use std::fmt;
use std::str;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Identity of a trace; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

/// Identity of a span; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SpanId {
    /// The identity made of random bits.
    pub fn of(random: u64) -> Self {
        Self(random.max(1))
    }
}

/// A span as those see it that continue its trace: W3C's trace context, version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span, parent of the next one.
    pub span: SpanId,
    /// Whether it is recorded.
    pub sampled: bool,
}

/// Length of a context of version 0 as text.
const TEXT: usize = 55;

/// The beginning of every record, and of one with a context.
const PLAIN: &[u8] = b"{\"v\":1,";
const TRACED: &[u8] = b"{\"v\":1,\"trace\":\"";

impl TraceContext {
    /// Reads the header `traceparent`. Of a version above 0, the part that version 0 has. `None` if it is not valid, and then a
    /// new trace is to begin.
    ///
    /// Source: W3C Trace Context, 3.2.2.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let fixed = header.get(..TEXT)?;
        let (version, rest) = (hex(&fixed[..2])?, header.get(TEXT));
        let is_whole = if version == 0 {
            rest.is_none()
        } else {
            version != 0xff && rest.is_none_or(|byte| *byte == b'-')
        };
        let is_separated = [2, 35, 52].iter().all(|at| fixed[*at] == b'-');
        if !is_whole || !is_separated {
            return None;
        }
        let (trace, span, flags) = (hex(&fixed[3..35])?, hex(&fixed[36..52])?, hex(&fixed[53..55])?);
        let span = u64::try_from(span).ok()?;
        (trace != 0 && span != 0).then_some(Self {
            trace: TraceId(trace),
            span: SpanId(span),
            sampled: flags & 1 == 1,
        })
    }

    /// The context of a span in the same trace, made of random bits.
    pub fn with_span(self, random: u64) -> Self {
        Self { span: SpanId::of(random), ..self }
    }

    /// Puts it into a record's value, which any reader can read as before. A value that has one already, or is no record of
    /// ours, stays as it is.
    pub fn put(&self, value: &mut Vec<u8>) {
        if value.starts_with(PLAIN) && !value.starts_with(TRACED) {
            let field = format!("\"trace\":\"{self}\",");
            value.splice(PLAIN.len()..PLAIN.len(), field.into_bytes());
        }
    }

    /// The context that a record's value carries. It is looked for in front only, so no part of what a client sent is taken
    /// for one.
    pub fn of_record(value: &[u8]) -> Option<Self> {
        let rest = value.strip_prefix(TRACED)?;
        Self::parse(rest.get(..TEXT)?)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A number in lower-case hexadecimal digits, at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    let is_hex = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(str::from_utf8(digits).ok().filter(|_| is_hex)?, 16).ok()
}

/// The part of a span in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// It answers a request.
    Server,
    /// It hands something over that is worked on later.
    Producer,
    /// It works on something that was handed over.
    Consumer,
    /// It asks another system, such as a database.
    Client,
    /// It is a step within its process.
    Internal,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its trace and its own identity.
    pub context: TraceContext,
    /// The span that it is a part or a consequence of.
    pub parent: Option<SpanId>,
    /// One of few names.
    pub name: Cow<'static, str>,
    /// Its part in the trace.
    pub kind: SpanKind,
    /// When it began, in ns since 1970.
    pub start_ns: u64,
    /// When it ended, in ns since 1970.
    pub end_ns: u64,
    /// Facts about it, by OpenTelemetry's names where it has some.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed, if it did. Never the text of an error, which may quote a record.
    pub failure: Option<&'static str>,
}

/// Decides which traces are recorded, and takes their spans for the exporter. All clones are one. The default records
/// nothing and costs a comparison.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    /// Traces are sampled whose last 56 bits are below this number.
    sampled_below: u64,
    waiting_max: usize,
    waiting: Mutex<Vec<Span>>,
    dropped: AtomicU64,
}

/// The bits of a trace's identity that are random by W3C's rules.
const RANDOM_BITS: u32 = 56;

impl Tracer {
    /// Samples this share of the traces that begin here, from 0 to 1, and keeps at most `waiting_max` spans for the exporter.
    pub fn new(sampled_ratio: f64, waiting_max: usize) -> Self {
        // Casts of floats saturate, and take what is no number for 0.
        let sampled_below = (sampled_ratio.clamp(0.0, 1.0) * (1_u64 << RANDOM_BITS) as f64) as u64;
        Self(Some(Arc::new(Recorder {
            sampled_below,
            waiting_max,
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
        })))
    }

    /// Whether anything is recorded.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span of a trace that comes with a header `traceparent`, or of a new one if there is none that is valid. Returns
    /// its context and its parent, or `None` if it is not sampled: a caller's trace is if the caller says so.
    pub fn begin(
        &self,
        header: Option<&[u8]>,
        random: impl FnOnce() -> u128,
    ) -> Option<(TraceContext, Option<SpanId>)> {
        let recorder = self.0.as_ref()?;
        match header.and_then(TraceContext::parse) {
            Some(caller) if !caller.sampled => None,
            Some(caller) => Some((caller.with_span(random() as u64), Some(caller.span))),
            None => {
                let random = random();
                let is_sampled = (random as u64) & ((1 << RANDOM_BITS) - 1) < recorder.sampled_below;
                let trace = TraceId(random.max(1));
                let span = SpanId::of((random >> 64) as u64 ^ random as u64);
                is_sampled.then_some((TraceContext { trace, span, sampled: true }, None))
            }
        }
    }

    /// Takes a span. If too many wait, it is dropped and counted.
    pub fn record(&self, span: Span) {
        let Some(recorder) = &self.0 else { return };
        let mut waiting = recorder.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < recorder.waiting_max {
            waiting.push(span);
        } else {
            drop(waiting);
            recorder.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts spans as dropped that are not even made, because they would be too many at once.
    pub fn forgo(&self, spans: usize) {
        if let Some(recorder) = &self.0 {
            recorder.dropped.fetch_add(spans as u64, Ordering::Relaxed);
        }
    }

    /// Takes the spans that wait, in their order.
    pub fn take(&self) -> Vec<Span> {
        let Some(recorder) = &self.0 else { return Vec::new() };
        std::mem::take(&mut *recorder.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many spans were dropped because there were too many.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |recorder| recorder.dropped.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn random(bits: u128) -> impl FnOnce() -> u128 {
        move || bits
    }

    #[test]
    fn a_header_is_read_as_the_standard_says() {
        let context = TraceContext::parse(HEADER.as_bytes()).expect("valid");
        assert_eq!((context.to_string().as_str(), context.sampled), (HEADER, true));
        let not_sampled = HEADER.replace("-01", "-00");
        assert!(!TraceContext::parse(not_sampled.as_bytes()).expect("valid").sampled);
        // Flags that are not known, and a later version with more behind.
        for later in [
            HEADER.replace("-01", "-03"),
            HEADER.replacen("00", "cc", 1),
            HEADER.replacen("00", "cc", 1) + "-what",
        ] {
            assert!(TraceContext::parse(later.as_bytes()).is_some_and(|context| context.sampled), "{later}");
        }
        for wrong in [
            String::new(),
            HEADER[..54].to_owned(),
            format!("{HEADER}-what"),
            format!("{HEADER}x"),
            HEADER.replacen("00", "ff", 1),
            HEADER.replacen("00", "cc", 1) + "x",
            HEADER.to_uppercase(),
            HEADER.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            HEADER.replace("00f067aa0ba902b7", &"0".repeat(16)),
            HEADER.replace('4', "g"),
            HEADER.replace('-', "_"),
            HEADER.replace("00f067aa0ba902b7", "+0f067aa0ba902b7"),
            "é".repeat(28),
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_record_carries_a_context_in_front_and_nowhere_else() {
        let context = TraceContext::parse(HEADER.as_bytes()).expect("valid");
        let plain = b"{\"v\":1,\"id\":\"x\",\"payload\":{}}".to_vec();
        assert_eq!(TraceContext::of_record(&plain), None);
        let mut traced = plain.clone();
        context.put(&mut traced);
        assert_eq!(
            traced,
            format!("{{\"v\":1,\"trace\":\"{HEADER}\",\"id\":\"x\",\"payload\":{{}}}}").into_bytes()
        );
        assert_eq!(TraceContext::of_record(&traced), Some(context));
        let once = traced.clone();
        context.put(&mut traced);
        assert_eq!(traced, once, "it has one already");
        for other in [&b"[]"[..], b"", b"{\"v\":2,\"id\":1}"] {
            let mut value = other.to_vec();
            context.put(&mut value);
            assert_eq!(value, other);
        }
        let sent =
            format!("{{\"v\":1,\"id\":\"x\",\"trace\":\"{HEADER}\",\"payload\":{{\"trace\":\"{HEADER}\"}}}}");
        assert_eq!(TraceContext::of_record(sent.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn a_context_that_is_written_is_read_and_no_bytes_are_misread(
            trace in 1_u128.., span in 1_u64.., sampled: bool, at in 0..TEXT, byte: u8, tail in "[ -~]{0,8}",
            any in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let context = TraceContext { trace: TraceId(trace), span: SpanId(span), sampled };
            let text = context.to_string();
            prop_assert_eq!(TraceContext::parse(text.as_bytes()), Some(context));
            prop_assert_eq!(TraceContext::parse(&text.as_bytes()[..at]), None);
            if !tail.is_empty() {
                prop_assert_eq!(TraceContext::parse(format!("{text}{tail}").as_bytes()), None);
            }
            // Whatever is taken has the length and the letters of a context, and names the trace that it shows.
            let mut changed = text.into_bytes();
            changed[at] = byte;
            for header in [changed, any] {
                if let Some(read) = TraceContext::parse(&header) {
                    let shown = read.to_string();
                    prop_assert_eq!(&shown.as_bytes()[3..53], &header[3..53]);
                    prop_assert!(header[..TEXT].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-')));
                }
            }
        }

        #[test]
        fn a_value_that_carries_a_context_is_the_value_and_the_context(
            trace in 1_u128.., span in 1_u64.., rest in "[ -~]{0,60}",
        ) {
            let context = TraceContext { trace: TraceId(trace), span: SpanId(span), sampled: true };
            let plain = format!("{{\"v\":1,{rest}").into_bytes();
            prop_assume!(!plain.starts_with(TRACED));
            let mut traced = plain.clone();
            context.put(&mut traced);
            prop_assert_eq!(TraceContext::of_record(&traced), Some(context));
            prop_assert_eq!(TraceContext::of_record(&plain), None);
            prop_assert_eq!(traced.len(), plain.len() + 66);
            traced.drain(PLAIN.len()..PLAIN.len() + 66);
            prop_assert_eq!(traced, plain);
        }
    }

    #[test]
    fn a_callers_decision_counts_and_else_the_share() {
        let off = Tracer::default();
        assert_eq!(off.begin(Some(HEADER.as_bytes()), random(7)), None);
        let none = Tracer::new(0.0, 1);
        assert_eq!(none.begin(None, random(0)), None);
        let (context, parent) = none.begin(Some(HEADER.as_bytes()), random(7)).expect("the caller samples");
        assert_eq!(context.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        assert_eq!(parent.map(|span| span.to_string()).as_deref(), Some("00f067aa0ba902b7"));
        let all = Tracer::new(1.0, 1);
        assert_eq!(all.begin(Some(HEADER.replace("-01", "-00").as_bytes()), random(7)), None);
        let (context, parent) = all.begin(Some(b"no context"), random(u128::MAX)).expect("all are");
        assert!(context.sampled && parent.is_none());
        assert!(
            all.begin(None, random(0))
                .expect("all are")
                .0
                .to_string()
                .contains("-00000000000000000000000000000001-")
        );
        let half = Tracer::new(0.5, 1);
        let middle = 1_u128 << 55;
        assert!(half.begin(None, random(middle - 1)).is_some() && half.begin(None, random(middle)).is_none());
        for beyond in [f64::NAN, -1.0] {
            assert!(Tracer::new(beyond, 1).begin(None, random(0)).is_none(), "{beyond}");
        }
    }

    #[test]
    fn spans_that_nobody_takes_are_dropped_and_counted() {
        let (tracer, off) = (Tracer::new(1.0, 2), Tracer::default());
        let (context, parent) = tracer.begin(None, random(5)).expect("all are");
        let span = |name| Span {
            context,
            parent,
            name: Cow::Borrowed(name),
            kind: SpanKind::Server,
            start_ns: 1,
            end_ns: 2,
            attributes: Vec::new(),
            failure: None,
        };
        for name in ["one", "two", "three"] {
            tracer.record(span(name));
            off.record(span(name));
        }
        assert_eq!((tracer.dropped(), off.dropped(), off.take()), (1, 0, Vec::new()));
        let taken: Vec<_> = tracer.take().into_iter().map(|span| span.name).collect();
        assert_eq!(taken, ["one", "two"]);
        tracer.record(span("four"));
        assert_eq!((tracer.take().len(), tracer.take().len(), tracer.dropped()), (1, 0, 1));
        tracer.forgo(7);
        off.forgo(7);
        assert_eq!((tracer.dropped(), off.dropped()), (8, 0));
    }
}
