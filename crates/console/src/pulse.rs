//! Rates of the last minutes, so that a page shows them as soon as it is opened. Their only source is the text of
//! `/metrics`: nothing is counted here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::metrics_text::lines;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// Samples that are kept: those of ten minutes. Each takes about 150 bytes.
const KEPT: usize = 600;

/// Values of this process over one interval. Without a role, its values are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Sample {
    /// The end of the interval, milliseconds since 1970.
    at_ms: i64,
    /// Submissions per second that were made durable.
    accepted_per_s: Option<f64>,
    /// Submissions per second that were not: refused, ignored, or put off.
    rejected_per_s: Option<f64>,
    /// Records per second whose rows were committed.
    applied_per_s: Option<f64>,
    /// Median time of appends until they were durable, in milliseconds; `None` if there was none.
    append_p50_ms: Option<f64>,
    /// The time that 99 of 100 appends did not exceed.
    append_p99_ms: Option<f64>,
    /// The time that 99 of 100 transactions did not exceed.
    commit_p99_ms: Option<f64>,
    /// Records of this process's partitions that are not applied.
    lag_records: Option<f64>,
    /// Age of the oldest of them, in seconds.
    lag_s: Option<f64>,
    /// Requests being worked on.
    in_flight: Option<f64>,
    /// Live events per second on their way into the log: all that were accepted but the historical ones.
    live_per_s: Option<f64>,
    /// Historical events per second that the log took from the lane of this process.
    historical_per_s: Option<f64>,
}

/// The lane of historical events of this process, by the last sample.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
struct LaneNow {
    /// Accepted events that wait for the log.
    records: f64,
    bytes: f64,
    bytes_max: f64,
    oldest_wait_s: f64,
    set_aside: f64,
    /// 1 while it takes no more.
    full: f64,
    /// 1 while its events wait.
    waits: f64,
    /// Events that came, and that went into the log, since the process began.
    taken: f64,
    forwarded: f64,
}

impl LaneNow {
    /// The value of a metric, by its name behind `dashi_history_`.
    fn value(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "records" => &mut self.records,
            "bytes" => &mut self.bytes,
            "bytes_max" => &mut self.bytes_max,
            "oldest_wait_seconds" => &mut self.oldest_wait_s,
            "set_aside" => &mut self.set_aside,
            "full" => &mut self.full,
            "waits" => &mut self.waits,
            "taken_total" => &mut self.taken,
            "forwarded_total" => &mut self.forwarded,
            _ => return None,
        })
    }
}

/// A partition of this process, by the last sample.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
struct PartitionNow {
    lag_records: f64,
    lag_s: f64,
    /// `running`, `waiting_for_store`, `waiting_for_log` or `failed`; `None` while the projector is down.
    state: Option<String>,
}

/// Totals since the process began, by the last sample.
#[derive(Debug, Clone, PartialEq, Default)]
struct Totals {
    /// Submissions by outcome; `accepted` is one of them.
    submissions: BTreeMap<String, f64>,
    /// Records by outcome.
    records: BTreeMap<String, f64>,
    appends: Buckets,
    commits: Buckets,
    in_flight: Option<f64>,
    partitions: BTreeMap<u32, PartitionNow>,
    lane: Option<LaneNow>,
}

/// A histogram: by the upper bound of each bucket, how many observations did not exceed it.
#[derive(Debug, Clone, PartialEq, Default)]
struct Buckets(Vec<(f64, f64)>);

/// The samples. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Recent>>);

#[derive(Debug, Default)]
struct Recent {
    samples: VecDeque<Sample>,
    totals: Option<Totals>,
}

/// The answer to a page.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    interval_ms: u128,
    now_ms: i64,
    submissions: &'a BTreeMap<String, f64>,
    records: &'a BTreeMap<String, f64>,
    partitions: &'a BTreeMap<u32, PartitionNow>,
    /// `None` of a process without a lane.
    lane: Option<LaneNow>,
    samples: Vec<Sample>,
}

impl Pulse {
    /// Takes a sample every second until `stop`. `text` is the text of the metrics, `now_ms` the clock.
    pub async fn keep(
        self,
        text: impl Fn() -> Option<String> + Send,
        now_ms: impl Fn() -> i64 + Send,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let Some(text) = text() else { continue };
            self.add(Totals::read(&text), now_ms(), last.elapsed());
            last = Instant::now();
        }
    }

    fn add(&self, totals: Totals, at_ms: i64, elapsed: Duration) {
        let mut recent = self.lock();
        if let Some(before) = recent.totals.replace(totals.clone()) {
            if recent.samples.len() == KEPT {
                recent.samples.pop_front();
            }
            recent.samples.push_back(totals.since(&before, at_ms, elapsed.as_secs_f64().max(0.001)));
        }
    }

    /// The samples that ended after a time, as JSON.
    pub(crate) fn since(&self, after_ms: i64) -> String {
        let recent = self.lock();
        let nothing = Totals::default();
        let totals = recent.totals.as_ref().unwrap_or(&nothing);
        let answer = Answer {
            interval_ms: INTERVAL.as_millis(),
            now_ms: recent.samples.back().map_or(0, |sample| sample.at_ms),
            submissions: &totals.submissions,
            records: &totals.records,
            partitions: &totals.partitions,
            lane: totals.lane,
            samples: recent.samples.iter().filter(|sample| sample.at_ms > after_ms).copied().collect(),
        };
        // Numbers and texts always have a form in JSON.
        serde_json::to_string(&answer).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    fn read(text: &str) -> Self {
        let mut totals = Self::default();
        for line in lines(text) {
            let outcome = || line.label("outcome").unwrap_or_default().to_owned();
            match line.name {
                "dashi_ingest_events_total" | "dashi_ingest_recording_chunks_total" => {
                    *totals.submissions.entry(outcome()).or_default() += line.value;
                }
                "dashi_projector_records_total" => {
                    *totals.records.entry(outcome()).or_default() += line.value;
                }
                "dashi_ingest_append_seconds_bucket" => totals.appends.add(line.label("le"), line.value),
                "dashi_projector_commit_seconds_bucket" => totals.commits.add(line.label("le"), line.value),
                "dashi_ingest_in_flight" => totals.in_flight = Some(line.value),
                "dashi_projector_lag_records" => {
                    totals.partition(line.label("partition")).lag_records = line.value
                }
                "dashi_projector_lag_seconds" => totals.partition(line.label("partition")).lag_s = line.value,
                "dashi_projector_partition_state" if line.value == 1.0 => {
                    totals.partition(line.label("partition")).state = line.label("state").map(str::to_owned);
                }
                name => {
                    if let Some(name) = name.strip_prefix("dashi_history_")
                        && let Some(value) = totals.lane.get_or_insert_default().value(name)
                    {
                        *value = line.value;
                    }
                }
            }
        }
        totals
    }

    fn partition(&mut self, number: Option<&str>) -> &mut PartitionNow {
        let number = number.and_then(|number| number.parse().ok()).unwrap_or_default();
        self.partitions.entry(number).or_default()
    }

    /// The sample between an earlier reading and this one.
    fn since(&self, before: &Self, at_ms: i64, elapsed_s: f64) -> Sample {
        let sum = |outcomes: &BTreeMap<String, f64>, of: &dyn Fn(&str) -> bool| -> f64 {
            outcomes.iter().filter(|(outcome, _)| of(outcome)).map(|(_, count)| count).sum()
        };
        let rate = |now: &BTreeMap<String, f64>, then: &BTreeMap<String, f64>, of: &dyn Fn(&str) -> bool| {
            ((sum(now, of) - sum(then, of)) / elapsed_s).max(0.0)
        };
        // The collector's gauge and the projector's histogram are there from the start, their counters are not.
        let collects = self.in_flight.is_some();
        let projects = !self.commits.0.is_empty();
        let submissions =
            |of: &dyn Fn(&str) -> bool| collects.then(|| rate(&self.submissions, &before.submissions, of));
        let accepted_per_s = submissions(&|outcome| outcome == "accepted");
        let of_lane = |of: fn(&LaneNow) -> f64| {
            let then = before.lane.unwrap_or_default();
            self.lane.map(|lane| ((of(&lane) - of(&then)) / elapsed_s).max(0.0))
        };
        let taken_per_s = of_lane(|lane| lane.taken).unwrap_or_default();
        let appends = self.appends.since(&before.appends);
        let has_lag = projects && !self.partitions.is_empty();
        Sample {
            at_ms,
            accepted_per_s,
            live_per_s: accepted_per_s.map(|accepted| (accepted - taken_per_s).max(0.0)),
            historical_per_s: of_lane(|lane| lane.forwarded),
            rejected_per_s: submissions(&|outcome| outcome != "accepted"),
            applied_per_s: projects
                .then(|| rate(&self.records, &before.records, &|outcome| outcome == "applied")),
            append_p50_ms: appends.quantile_ms(0.5),
            append_p99_ms: appends.quantile_ms(0.99),
            commit_p99_ms: self.commits.since(&before.commits).quantile_ms(0.99),
            lag_records: has_lag.then(|| self.partitions.values().map(|each| each.lag_records).sum()),
            lag_s: has_lag.then(|| self.partitions.values().map(|each| each.lag_s).fold(0.0, f64::max)),
            in_flight: self.in_flight,
        }
    }
}

impl Buckets {
    fn add(&mut self, bound: Option<&str>, count: f64) {
        let bound = match bound {
            Some("+Inf") | None => f64::INFINITY,
            Some(bound) => bound.parse().unwrap_or(f64::INFINITY),
        };
        self.0.push((bound, count));
    }

    fn since(&self, before: &Self) -> Self {
        let then = |at: usize| before.0.get(at).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().enumerate().map(|(at, (bound, count))| (*bound, count - then(at))).collect())
    }

    /// An estimate of a quantile, in milliseconds: even within its bucket. `None` without an observation.
    fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let all = self.0.last()?.1;
        if all <= 0.0 {
            return None;
        }
        let rank = all * quantile;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank {
                if bound.is_infinite() {
                    return Some(lower * 1_000.0);
                }
                let share = if *count > below { (rank - below) / (count - below) } else { 1.0 };
                return Some((lower + (bound - lower) * share) * 1_000.0);
            }
            (lower, below) = (*bound, *count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(accepted: u64, bots: u64, applied: u64, appends: [u64; 3]) -> String {
        let [fast, slow, all] = appends;
        format!(
            "# TYPE dashi_ingest_events counter\n\
             dashi_ingest_events_total{{outcome=\"accepted\"}} {accepted}\n\
             dashi_ingest_events_total{{outcome=\"bot\"}} {bots}\n\
             dashi_ingest_recording_chunks_total{{outcome=\"accepted\"}} 1\n\
             dashi_ingest_in_flight 2\n\
             dashi_ingest_append_seconds_bucket{{le=\"0.001\"}} {fast}\n\
             dashi_ingest_append_seconds_bucket{{le=\"0.002\"}} {slow}\n\
             dashi_ingest_append_seconds_bucket{{le=\"+Inf\"}} {all}\n\
             dashi_projector_commit_seconds_bucket{{le=\"+Inf\"}} 0\n\
             dashi_projector_records_total{{outcome=\"applied\"}} {applied}\n\
             dashi_projector_lag_records{{partition=\"0\"}} 3\n\
             dashi_projector_lag_records{{partition=\"1\"}} 4\n\
             dashi_projector_lag_seconds{{partition=\"1\"}} 1.5\n\
             dashi_projector_partition_state{{partition=\"1\",state=\"running\"}} 0\n\
             dashi_projector_partition_state{{partition=\"1\",state=\"failed\"}} 1\n"
        )
    }

    #[test]
    fn a_sample_is_the_difference_of_two_readings() {
        let pulse = Pulse::default();
        pulse.add(Totals::read(&text(10, 1, 8, [0, 0, 0])), 1_000, Duration::from_secs(1));
        pulse.add(Totals::read(&text(30, 2, 28, [50, 100, 100])), 3_000, Duration::from_secs(2));
        let sample = pulse.lock().samples[0];
        assert_eq!(
            sample,
            Sample {
                at_ms: 3_000,
                accepted_per_s: Some(10.0),
                rejected_per_s: Some(0.5),
                applied_per_s: Some(10.0),
                append_p50_ms: Some(1.0),
                append_p99_ms: Some(1.98),
                commit_p99_ms: None,
                lag_records: Some(7.0),
                lag_s: Some(1.5),
                in_flight: Some(2.0),
                live_per_s: Some(10.0),
                historical_per_s: None,
            }
        );
        let answer: serde_json::Value = serde_json::from_str(&pulse.since(0)).unwrap();
        assert_eq!(answer["submissions"], serde_json::json!({ "accepted": 31.0, "bot": 2.0 }));
        assert_eq!(answer["partitions"]["1"]["state"], "failed");
        assert_eq!(answer["samples"].as_array().unwrap().len(), 1);
        let later: serde_json::Value = serde_json::from_str(&pulse.since(3_000)).unwrap();
        assert_eq!(later["samples"], serde_json::json!([]));
    }

    #[test]
    fn live_and_historical_events_are_told_apart() {
        let lane = |taken: u64, forwarded: u64| {
            format!(
                "dashi_history_records {}\ndashi_history_bytes_max 4096\ndashi_history_waits 1\n\
                 dashi_history_taken_total {taken}\ndashi_history_forwarded_total {forwarded}\n",
                taken - forwarded
            )
        };
        let pulse = Pulse::default();
        let reading = |accepted, taken, forwarded| {
            Totals::read(&(text(accepted, 0, 0, [0, 0, 0]) + &lane(taken, forwarded)))
        };
        pulse.add(reading(10, 4, 1), 1_000, Duration::from_secs(1));
        pulse.add(reading(40, 24, 11), 3_000, Duration::from_secs(2));
        let sample = pulse.lock().samples[0];
        assert_eq!((sample.accepted_per_s, sample.live_per_s), (Some(15.0), Some(5.0)));
        assert_eq!(sample.historical_per_s, Some(5.0));
        let answer: serde_json::Value = serde_json::from_str(&pulse.since(0)).unwrap();
        let shown = &answer["lane"];
        assert_eq!((&shown["records"], &shown["waits"]), (&13.0.into(), &1.0.into()), "{answer}");
        assert_eq!((&shown["bytes_max"], &shown["taken"]), (&4096.0.into(), &24.0.into()), "{answer}");
        let without = Totals::read(&text(1, 0, 0, [0, 0, 0]));
        assert_eq!(without.since(&without, 0, 1.0).historical_per_s, None);
    }

    #[test]
    fn a_role_that_the_process_lacks_has_no_values() {
        let only_accepting: String = text(1, 0, 0, [0, 0, 0])
            .lines()
            .filter(|line| !line.contains("projector"))
            .map(|line| format!("{line}\n"))
            .collect();
        let totals = Totals::read(&only_accepting);
        let sample = totals.since(&totals, 0, 1.0);
        assert_eq!((sample.accepted_per_s, sample.applied_per_s, sample.lag_s), (Some(0.0), None, None));
    }

    #[test]
    fn samples_are_kept_for_ten_minutes() {
        let pulse = Pulse::default();
        for second in 0..700 {
            pulse.add(Totals::default(), second * 1_000, INTERVAL);
        }
        let recent = pulse.lock();
        assert_eq!((recent.samples.len(), recent.samples[0].at_ms), (600, 100_000));
    }

    #[test]
    fn a_quantile_beyond_the_last_bound_is_that_bound() {
        let mut buckets = Buckets::default();
        for (bound, count) in [("0.001", 0.0), ("0.5", 1.0), ("+Inf", 100.0)] {
            buckets.add(Some(bound), count);
        }
        assert_eq!(buckets.quantile_ms(0.99), Some(500.0));
        assert_eq!(Buckets::default().quantile_ms(0.5), None);
    }
}
