//! Spans of the records of a run whose traces are sampled: from the fold until the transaction with their rows has committed.
//! The run is one for all of them, so the spans of its fold and of its commit have the same times in each trace.

use std::time::SystemTime;

use dashi_domain::calendar::ns_since_1970;
use dashi_domain::position::{Offset, Partition};
use dashi_domain::record::Record;
use dashi_domain::rows::DeadLetter;
use dashi_domain::spans::{Attribute, Span, SpanKind, TraceContext, Tracer};
use dashi_store::Store;
use uuid::Uuid;

use crate::partition::PartitionTask;

/// Records of one run that have spans, at most; the spans of the others are counted as dropped.
const RECORDS_MAX: usize = 256;

/// Spans of each.
const SPANS: usize = 3;

/// Spans of a run that is being applied; nothing is done where none of its records is sampled.
pub(crate) struct RunSpans<'t> {
    tracer: &'t Tracer,
    partition: Partition,
    /// The kind of database, by OpenTelemetry's name.
    store: &'static str,
    records: usize,
    sampled: Vec<Sampled>,
    /// Sampled records beyond the bound.
    beyond: usize,
    began_ns: u64,
    fold: Option<Interval>,
    commit_began_ns: u64,
}

struct Sampled {
    /// The span of its append.
    context: TraceContext,
    offset: Offset,
    appended_at_ms: i64,
}

#[derive(Clone, Copy)]
struct Interval {
    start_ns: u64,
    end_ns: u64,
}

impl<'t> RunSpans<'t> {
    /// Begins them.
    pub fn begin(task: &'t PartitionTask, records: &[Record]) -> Self {
        let tracer = &task.shared.settings.tracer;
        let sampled = if tracer.is_on() { sampled(records) } else { (Vec::new(), 0) };
        let store = match &task.shared.store {
            Store::Sqlite(_) => "sqlite",
            Store::Postgres(_) => "postgresql",
        };
        Self::of(tracer, task.partition, store, records.len(), sampled)
    }

    fn of(
        tracer: &'t Tracer,
        partition: Partition,
        store: &'static str,
        records: usize,
        (sampled, beyond): (Vec<Sampled>, usize),
    ) -> Self {
        let began_ns = if sampled.is_empty() { 0 } else { now_ns() };
        let commit_began_ns = began_ns;
        Self { tracer, partition, store, records, sampled, beyond, began_ns, fold: None, commit_began_ns }
    }

    /// The fold begins. A run that is folded again has the span of the last time.
    pub fn folds(&mut self) {
        if !self.sampled.is_empty() {
            let now = now_ns();
            self.fold = Some(Interval { start_ns: now, end_ns: now });
        }
    }

    /// The fold has ended.
    pub fn folded(&mut self) {
        if let Some(fold) = &mut self.fold {
            fold.end_ns = now_ns();
        }
    }

    /// The transaction begins.
    pub fn commits(&mut self) {
        if !self.sampled.is_empty() {
            self.commit_began_ns = now_ns();
        }
    }

    /// The transaction has committed; these of the records are dead letters.
    pub fn committed(self, dead: &[DeadLetter]) {
        if self.sampled.is_empty() {
            return;
        }
        self.tracer.forgo(self.beyond * SPANS);
        let end_ns = now_ns();
        let commit = Interval { start_ns: self.commit_began_ns, end_ns };
        for sampled in &self.sampled {
            let is_dead = dead.iter().any(|letter| letter.offset == sampled.offset);
            let project = self.project(sampled, end_ns, is_dead);
            let context = project.context;
            self.tracer.record(project);
            if let Some(fold) = self.fold {
                self.tracer.record(part(context, "fold", SpanKind::Internal, fold, Vec::new()));
            }
            let store = vec![("db.system.name", Attribute::Text(self.store.into()))];
            self.tracer.record(part(context, "commit", SpanKind::Client, commit, store));
        }
    }

    /// The span of a record's way from the log into the tables.
    fn project(&self, sampled: &Sampled, end_ns: u64, is_dead: bool) -> Span {
        let began_ms = i64::try_from(self.began_ns / 1_000_000).unwrap_or(i64::MAX);
        let waited_ms = began_ms.saturating_sub(sampled.appended_at_ms).max(0);
        let number = |number: u64| Attribute::Number(i64::try_from(number).unwrap_or(i64::MAX));
        Span {
            context: sampled.context.with_span(random()),
            parent: Some(sampled.context.span),
            name: "project".into(),
            kind: SpanKind::Consumer,
            start_ns: self.began_ns,
            end_ns,
            attributes: vec![
                ("messaging.operation.type", Attribute::Text("process".into())),
                ("messaging.destination.partition.id", Attribute::Text(self.partition.to_string().into())),
                ("messaging.batch.message_count", number(self.records as u64)),
                ("dashi.log.offset", number(sampled.offset.number())),
                ("dashi.log.waited_ms", Attribute::Number(waited_ms)),
            ],
            failure: is_dead.then_some("the record is a dead letter"),
        }
    }
}

/// The records that have spans, and how many more are sampled.
fn sampled(records: &[Record]) -> (Vec<Sampled>, usize) {
    let mut sampled = records.iter().filter_map(|record| {
        let context = TraceContext::of_record(&record.value).filter(|context| context.sampled)?;
        Some(Sampled { context, offset: record.offset, appended_at_ms: record.appended_at_ms })
    });
    let first = sampled.by_ref().take(RECORDS_MAX).collect();
    (first, sampled.count())
}

/// A span within another one.
fn part(
    within: TraceContext,
    name: &'static str,
    kind: SpanKind,
    Interval { start_ns, end_ns }: Interval,
    attributes: Vec<(&'static str, Attribute)>,
) -> Span {
    Span {
        context: within.with_span(random()),
        parent: Some(within.span),
        name: name.into(),
        kind,
        start_ns,
        end_ns,
        attributes,
        failure: None,
    }
}

fn random() -> u64 {
    Uuid::new_v4().as_u128() as u64
}

#[expect(clippy::disallowed_methods, reason = "spans are of the wall clock")]
fn now_ns() -> u64 {
    ns_since_1970(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use dashi_domain::parking::Parking;

    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn record(offset: u64, header: Option<&str>) -> Record {
        let mut value = b"{\"v\":1,\"id\":\"x\"}".to_vec();
        if let Some(context) = header.and_then(|header| TraceContext::parse(header.as_bytes())) {
            context.put(&mut value);
        }
        Record { partition: Partition::new(3), offset: Offset::new(offset), appended_at_ms: 0, value }
    }

    fn run<'t>(tracer: &'t Tracer, records: &[Record]) -> RunSpans<'t> {
        RunSpans::of(tracer, Partition::new(3), "sqlite", records.len(), sampled(records))
    }

    #[test]
    fn a_record_that_is_sampled_has_a_span_with_its_fold_and_its_commit() {
        let tracer = Tracer::new(1.0, 100);
        let not_sampled = HEADER.replace("-01", "-00");
        let records = [
            record(5, Some(HEADER)),
            record(6, None),
            record(7, Some(&not_sampled)),
            record(8, Some(HEADER)),
        ];
        let mut spans = run(&tracer, &records);
        spans.folds();
        spans.folded();
        spans.commits();
        let letter = DeadLetter {
            offset: Offset::new(8),
            appended_at_ms: 0,
            reason: "it says \"hello\"".to_owned(),
            value: Vec::new(),
            parking: Parking::default(),
        };
        spans.committed(&[letter]);
        let spans = tracer.take();
        let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["project", "fold", "commit", "project", "fold", "commit"]);
        let parent = |span: &Span| span.parent.expect("it has one").to_string();
        for project in spans.chunks(3) {
            assert_eq!(parent(&project[0]), "00f067aa0ba902b7");
            for part in &project[1..] {
                assert_eq!(part.parent, Some(project[0].context.span));
                assert!(project[0].start_ns <= part.start_ns && part.end_ns <= project[0].end_ns);
            }
            assert!(project[1].end_ns <= project[2].start_ns);
        }
        assert!(spans.iter().all(|span| span.context.trace == spans[0].context.trace));
        assert!(spans[0].attributes.contains(&("dashi.log.offset", Attribute::Number(5))), "{spans:?}");
        let failures: Vec<_> = spans.iter().filter_map(|span| span.failure).collect();
        assert_eq!(failures, ["the record is a dead letter"]);
    }

    #[test]
    fn a_run_has_spans_for_a_bounded_number_of_records_and_none_without_a_context() {
        let tracer = Tracer::new(1.0, 10_000);
        run(&tracer, &[record(1, None)]).committed(&[]);
        assert!(tracer.take().is_empty());
        let many: Vec<_> = (0..1_000).map(|offset| record(offset, Some(HEADER))).collect();
        // One that is set aside without a fold has none.
        run(&tracer, &many).committed(&[]);
        assert_eq!(tracer.take().len(), 2 * RECORDS_MAX);
        assert_eq!(tracer.dropped(), 3 * (1_000 - RECORDS_MAX as u64));
    }
}
