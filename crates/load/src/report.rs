use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::plan::EventKind;

/// Result of a run. `Display` is a table for people; the field names in JSON end with their units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Beginning of every mark of this run: `/load/<seed>/`.
    pub mark_prefix: String,
    /// From the end of the warm-up to the end of the run, or to the last answer if that came later.
    pub elapsed_s: f64,
    /// Answered requests, whatever their status, per second of `elapsed_s`.
    pub requests_per_s: f64,
    /// Acknowledged events per second of `elapsed_s`.
    pub events_per_s: f64,
    /// Requests due after the warm-up.
    #[serde(flatten)]
    pub counts: Counts,
    /// Requests due during the warm-up; they are in no other figure.
    pub warmup: Counts,
    /// Answered requests after the warm-up, whatever their status.
    pub latency: Latency,
    /// Processor time of the generator in `elapsed_s`, user and system; absent without `/proc`.
    pub client_cpu_s: Option<f64>,
    /// The first answer that refused an event, warm-up included: its status, and the beginning of its body.
    pub first_refusal: Option<String>,
    /// Rate of empty requests to the same server; absent if it was not measured, or if none was answered 200.
    pub limit: Option<Limit>,
}

/// Empty requests to the same server in the same run: a rate that requests with work cannot exceed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limit {
    /// Empty requests that were answered 200, per second.
    pub empty_requests_per_s: f64,
    /// Median time to the answer of an empty request.
    pub empty_p50_us: u64,
    /// `requests_per_s` of the report, divided by that of empty requests.
    pub requests_ratio: f64,
    /// `events_per_s` of the report, divided by the rate of empty requests; above 1 only in batches.
    pub events_ratio: f64,
}

/// Outcomes of requests. Each is answered, an error, or missed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Answered completely, with any status.
    pub requests: u64,
    /// Answered requests by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Events acknowledged: 200 with a `sessionId`, or no error for the element of a batch.
    pub acknowledged_events: u64,
    /// The same by kind.
    pub acknowledged: ByKind,
    /// Events in answered requests that were not acknowledged.
    pub refused_events: u64,
    /// Attempts without an answer.
    pub errors: Errors,
    /// Open loop only: not sent because they were overdue by the time-out.
    pub missed: u64,
    /// How often a connection rested because of `Retry-After`.
    pub pauses: u64,
}

/// Events by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ByKind {
    /// Page views.
    pub page_views: u64,
    /// Custom events.
    pub custom_events: u64,
    /// Identify calls.
    pub identifies: u64,
    /// Performance reports.
    pub performance: u64,
}

/// Attempts without an answer, by cause. Only after `connect` it is certain that the server took nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Errors {
    /// No connection; no request was sent.
    pub connect: u64,
    /// No complete answer within the time-out.
    pub timeout: u64,
    /// The connection ended first.
    pub lost: u64,
    /// An answer that cannot be read.
    pub protocol: u64,
}

/// Times from when a request was sent (closed loop) or due (open loop) to its complete answer.
///
/// Three significant digits; all 0 without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Number of requests.
    pub samples: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: u64,
    /// 90 % are not slower.
    pub p90_us: u64,
    /// 99 % are not slower.
    pub p99_us: u64,
    /// 99.9 % are not slower.
    pub p99_9_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// Progress of a run, for a display.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Snapshot {
    /// Time since the start, including the warm-up.
    pub elapsed: Duration,
    /// Warm-up and duration of the plan.
    pub total: Duration,
    /// Requests answered so far.
    pub requests: u64,
    /// Events acknowledged so far.
    pub events: u64,
    /// Answered requests per second since the last snapshot.
    pub requests_per_s: f64,
    /// Attempts without an answer, missed requests and answers other than 200 so far.
    pub errors: u64,
}

impl Report {
    /// Sets this report beside that of [`LoadPlan::limit`](crate::LoadPlan::limit).
    #[must_use]
    pub fn beside(self, empty: &Self) -> Self {
        // Another answer, such as 404, is none without work but none at all.
        let answered = empty.counts.statuses.get(&200).copied().unwrap_or(0);
        let empty_requests_per_s = answered as f64 / empty.elapsed_s;
        let limit = (answered > 0 && empty.elapsed_s > 0.0).then(|| Limit {
            empty_requests_per_s,
            empty_p50_us: empty.latency.p50_us,
            requests_ratio: self.requests_per_s / empty_requests_per_s,
            events_ratio: self.events_per_s / empty_requests_per_s,
        });
        Self { limit, ..self }
    }
}

impl Errors {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.connect + self.timeout + self.lost + self.protocol
    }
}

impl Counts {
    pub(crate) fn acknowledge(&mut self, kind: EventKind) {
        self.acknowledged_events += 1;
        *match kind {
            EventKind::PageView => &mut self.acknowledged.page_views,
            EventKind::CustomEvent => &mut self.acknowledged.custom_events,
            EventKind::Identify => &mut self.acknowledged.identifies,
            EventKind::Performance => &mut self.acknowledged.performance,
        } += 1;
    }

    pub(crate) fn failures(&self) -> u64 {
        let other_than_200 = self.requests - self.statuses.get(&200).copied().unwrap_or(0);
        self.errors.total() + self.missed + other_than_200
    }
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            samples: histogram.len(),
            mean_us: histogram.mean(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p99_9_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, latency, .. } = self;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, text: String| writeln!(f, "{name:<14}{text}");
        row(
            f,
            "requests",
            format!("{} in {:.2} s, {:.0}/s", counts.requests, self.elapsed_s, self.requests_per_s),
        )?;
        row(f, "acknowledged", format!("{} events, {:.0}/s", counts.acknowledged_events, self.events_per_s))?;
        let ByKind { page_views, custom_events, identifies, performance } = counts.acknowledged;
        let kinds = format!(
            "page views {page_views}, custom events {custom_events}, identifies {identifies}, performance {performance}"
        );
        row(f, "", kinds)?;
        if counts.refused_events > 0 {
            row(f, "refused", format!("{} events", counts.refused_events))?;
        }
        if let Some(refusal) = &self.first_refusal {
            row(f, "first refusal", refusal.clone())?;
        }
        let statuses: Vec<_> =
            counts.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        row(f, "statuses", if statuses.is_empty() { "none".to_owned() } else { statuses.join(", ") })?;
        let Errors { connect, timeout, lost, protocol } = counts.errors;
        let errors = format!("connect {connect}, timeout {timeout}, lost {lost}, protocol {protocol}");
        row(f, "errors", errors)?;
        if counts.missed > 0 {
            row(f, "missed", format!("{} requests, overdue by the time-out", counts.missed))?;
        }
        if counts.pauses > 0 {
            row(f, "pauses", format!("{} after Retry-After", counts.pauses))?;
        }
        row(f, "latency ms", "    p50       p90       p99     p99.9       max      mean".to_owned())?;
        let ms = |us: f64| format!("{:>10.3}", us / 1_000.0);
        let Latency { p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = *latency;
        let quantiles: String = [p50_us, p90_us, p99_us, p99_9_us, max_us].map(|us| ms(us as f64)).concat();
        writeln!(f, "           {quantiles}{}", ms(latency.mean_us))?;
        if self.warmup.requests > 0 {
            let Counts { requests, acknowledged_events, .. } = self.warmup;
            row(
                f,
                "warm-up",
                format!("{requests} requests, {acknowledged_events} events, not counted above"),
            )?;
        }
        if let Some(cpu_s) = self.client_cpu_s {
            let share = if self.elapsed_s > 0.0 { 100.0 * cpu_s / self.elapsed_s } else { 0.0 };
            row(f, "generator", format!("{cpu_s:.2} s of processor time, {share:.0} % of a core"))?;
        }
        if let Some(limit) = self.limit {
            let Limit { empty_requests_per_s, empty_p50_us, events_ratio, .. } = limit;
            let text = format!(
                "{empty_requests_per_s:.0} empty requests/s of this server (p50 {:.3} ms); events are {events_ratio:.2} of it",
                empty_p50_us as f64 / 1_000.0
            );
            row(f, "limit", text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut histogram = Histogram::new(3).unwrap();
        (1..=1_000).for_each(|us| histogram.record(us).unwrap());
        let mut counts = Counts { requests: 1_000, ..Counts::default() };
        counts.statuses.extend([(200, 900), (503, 100)]);
        counts.acknowledge(EventKind::Identify);
        Report {
            mark_prefix: "/load/1/".into(),
            elapsed_s: 2.0,
            requests_per_s: 500.0,
            events_per_s: 0.5,
            counts,
            warmup: Counts::default(),
            latency: Latency::of(&histogram),
            client_cpu_s: Some(0.5),
            first_refusal: None,
            limit: None,
        }
    }

    #[test]
    fn a_limit_beside_a_report_shows_the_ratio() {
        let answered = |statuses: &[(u16, u64)]| {
            let counts = Counts { statuses: statuses.iter().copied().collect(), ..Counts::default() };
            Report { counts, ..report() }
        };
        let beside = report().beside(&answered(&[(200, 4_000), (503, 7)]));
        let limit = beside.limit.unwrap();
        assert_eq!((limit.requests_ratio, limit.events_ratio), (0.25, 0.000_25));
        assert!(beside.to_string().contains("2000 empty requests/s of this server (p50 0.500 ms)"));
        assert_eq!(report().beside(&answered(&[(404, 4_000)])).limit, None);
    }

    #[test]
    fn machines_read_flat_counts_and_quantiles() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["requests"], 1_000);
        assert_eq!(json["statuses"]["503"], 100);
        assert_eq!(json["acknowledged"]["identifies"], 1);
        assert_eq!(json["latency"]["p99_us"], 990);
        assert_eq!(json["warmup"]["requests"], 0);
    }

    #[test]
    fn people_read_a_table() {
        let expected = "\
requests      1000 in 2.00 s, 500/s
acknowledged  1 events, 0/s
              page views 0, custom events 0, identifies 1, performance 0
statuses      200: 900, 503: 100
errors        connect 0, timeout 0, lost 0, protocol 0
latency ms        p50       p90       p99     p99.9       max      mean
                0.500     0.900     0.990     0.999     1.000     0.500
generator     0.50 s of processor time, 25 % of a core
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn failures_are_errors_and_answers_other_than_200() {
        let mut counts = report().counts;
        counts.errors.lost = 3;
        counts.missed = 2;
        assert_eq!(counts.failures(), 105);
    }
}
