//! Spools and lanes as metrics, in readiness and in `dashi status`; see [`dashi_event_log::Spool`] and
//! [`dashi_event_log::Lane`].

use dashi_domain::calendar::iso_string;
use dashi_event_log::{Lane, Spool, SpoolState};
use dashi_store::SpoolNote;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::now_ms;

/// The state of a note that is of a lane: its events are historical, and wait until live ones leave room.
pub const HISTORICAL: &str = "historical";

/// The metrics of this process's spool.
pub struct SpoolMetrics(pub Spool);

impl std::fmt::Debug for SpoolMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SpoolMetrics").field(&self.0.status().id).finish()
    }
}

impl Collector for SpoolMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        let age_s = status.oldest_ms.map_or(0.0, |oldest_ms| (now_ms() - oldest_ms).max(0) as f64 / 1_000.0);
        let gauges = [
            (
                "dashi_spool_records",
                "Accepted events in the spool, which the log does not have yet",
                status.records,
            ),
            ("dashi_spool_bytes", "Bytes of the events in the spool", status.bytes),
            ("dashi_spool_bytes_max", "Most bytes of the events in the spool", status.bytes_max),
            (
                "dashi_spool_set_aside",
                "Events in the spool that the log refused for their size",
                status.set_aside,
            ),
            ("dashi_spool_full", "1 while the spool takes no more events", u64::from(status.full.is_some())),
        ];
        for (name, help, value) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(encoder)?;
        }
        let help = "Age of the oldest event in the spool, in seconds";
        ConstGauge::new(age_s).encode(encoder.encode_descriptor(
            "dashi_spool_oldest_age_seconds",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let counters = [
            ("dashi_spool_spooled", "Events that went into the spool since the start", status.spooled),
            (
                "dashi_spool_forwarded",
                "Events that the log took from the spool since the start",
                status.forwarded,
            ),
        ];
        for (name, help, value) in counters {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)?;
        }
        let mut states = encoder.encode_descriptor(
            "dashi_spool_state",
            "1 for the state that the spool is in",
            None,
            MetricType::Gauge,
        )?;
        for state in SpoolState::ALL {
            let gauge = ConstGauge::new(i64::from(status.state == state));
            gauge.encode(states.encode_family(&[("state", state.name())])?)?;
        }
        Ok(())
    }
}

/// The metrics of this process's lane of historical events.
pub struct LaneMetrics(pub Lane);

impl std::fmt::Debug for LaneMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LaneMetrics").field(&self.0.status().id).finish()
    }
}

impl Collector for LaneMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        let age_s = status.oldest_ms.map_or(0.0, |oldest_ms| (now_ms() - oldest_ms).max(0) as f64 / 1_000.0);
        let gauges = [
            ("dashi_history_records", "Accepted historical events that wait for the log", status.records),
            ("dashi_history_bytes", "Bytes of the historical events that wait", status.bytes),
            ("dashi_history_bytes_max", "Most bytes of the historical events that wait", status.bytes_max),
            (
                "dashi_history_set_aside",
                "Historical events that the log refused for their size",
                status.set_aside,
            ),
            ("dashi_history_full", "1 while historical events are refused", u64::from(status.full.is_some())),
            (
                "dashi_history_waits",
                "1 while historical events wait: for live ones, for a projector, or for the log",
                u64::from(status.waits.is_some()),
            ),
        ];
        for (name, help, value) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(encoder)?;
        }
        let help = "How long the oldest historical event has waited, in seconds";
        ConstGauge::new(age_s).encode(encoder.encode_descriptor(
            "dashi_history_oldest_wait_seconds",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let counters = [
            ("dashi_history_taken", "Historical events that came since the start", status.taken),
            (
                "dashi_history_forwarded",
                "Historical events that went into the log since the start",
                status.forwarded,
            ),
        ];
        for (name, help, value) in counters {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)?;
        }
        Ok(())
    }
}

/// The lane in the answer of readiness. Whether it takes events makes no process unready: live ones go another way.
pub fn lane_readiness(lane: &Lane) -> Value {
    let status = lane.status();
    json!({
        "records": status.records,
        "bytes": status.bytes,
        "bytes_max": status.bytes_max,
        "oldest_wait_s": status.oldest_ms.map(|oldest_ms| (now_ms() - oldest_ms).max(0) / 1_000),
        "set_aside": status.set_aside,
        "taken": status.taken,
        "forwarded": status.forwarded,
        "full": status.full.map(|full| full.to_string()),
        "waits": status.waits,
        "apart": status.apart.iter().map(|(log, records)| json!({ "log": log, "records": records })).collect::<Vec<_>>(),
    })
}

/// The spool in the answer of readiness, and whether it makes events durable now.
pub fn readiness(spool: &Spool) -> (Value, bool) {
    let status = spool.status();
    let takes = status.full.is_none() && status.state != SpoolState::Stranded;
    let value = json!({
        "state": status.state.name(),
        "records": status.records,
        "bytes": status.bytes,
        "bytes_max": status.bytes_max,
        "oldest_age_s": status.oldest_ms.map(|oldest_ms| (now_ms() - oldest_ms).max(0) / 1_000),
        "set_aside": status.set_aside,
        "spooled": status.spooled,
        "forwarded": status.forwarded,
        "full": status.full.map(|full| full.to_string()),
        "trouble": status.trouble,
        "apart": status.apart.iter().map(|(log, records)| json!({ "log": log, "records": records })).collect::<Vec<_>>(),
    });
    (value, takes)
}

/// A collector's spool or lane that held something when this was noted.
#[derive(Debug, Serialize)]
pub struct SpoolReport {
    pub collector: String,
    pub directory: String,
    /// The log that its records are for, if it is not the one that the command is about.
    pub other_log: Option<String>,
    pub state: String,
    pub records: u64,
    pub bytes: u64,
    pub set_aside: u64,
    pub oldest_at_ms: Option<i64>,
    pub full: Option<String>,
    pub trouble: Option<String>,
    pub noted_at_ms: i64,
}

impl SpoolReport {
    /// Of a note, for a command that is about this log.
    pub fn of(note: SpoolNote, log: &str) -> Self {
        Self {
            collector: note.collector,
            directory: note.directory,
            other_log: Some(note.log.to_string()).filter(|other| other != log),
            state: note.state,
            records: note.records,
            bytes: note.bytes,
            set_aside: note.set_aside,
            oldest_at_ms: note.oldest_ms,
            full: note.full,
            trouble: note.trouble,
            noted_at_ms: note.noted_at_ms,
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        let Self { collector, directory, state, records, bytes, .. } = self;
        let mut text = match state.as_str() {
            HISTORICAL => {
                format!("historical events of {collector} ({directory}): {records} wait, {bytes} bytes")
            }
            _ => format!("spool of {collector} ({directory}): {state}, {records} events, {bytes} bytes"),
        };
        if let Some(oldest_at_ms) = self.oldest_at_ms {
            text.push_str(&format!(", the oldest since {}", iso_string(oldest_at_ms)));
        }
        if self.set_aside > 0 {
            text.push_str(&format!(", and {} that the log refused for their size", self.set_aside));
        }
        if let Some(full) = &self.full {
            text.push_str(&format!("; full: {full}"));
        }
        if let Some(trouble) = &self.trouble {
            text.push_str(&format!("; {trouble}"));
        }
        if let Some(log) = &self.other_log {
            text.push_str(&format!("; they are for another log, {log}"));
        }
        text + &format!(" (noted {})\n", iso_string(self.noted_at_ms))
    }
}
