//! Notes about the topic behind the log, as metrics and in readiness; see [`dashi_event_log::TopicNote`].

use dashi_event_log::{Concern, EventLog};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// One gauge per concern: 1 while it lasts, else 0.
pub struct TopicMetrics(pub EventLog);

impl std::fmt::Debug for TopicMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TopicMetrics").field(&self.0.id()).finish()
    }
}

impl Collector for TopicMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let notes = self.0.notes();
        let mut gauges = encoder.encode_descriptor(
            "dashi_event_log_topic_concern",
            "1 while this property of the topic weakens or breaks a guarantee",
            None,
            MetricType::Gauge,
        )?;
        for concern in Concern::ALL {
            let lasts = notes.iter().any(|note| note.concern == concern);
            let gauge = ConstGauge::new(i64::from(lasts));
            gauge.encode(gauges.encode_family(&[("concern", concern.name())])?)?;
        }
        Ok(())
    }
}

/// The topic's part of readiness.
///
/// # Errors
/// The topic was replaced, or its settings make the log refuse. Warnings are no errors: they do not concern the routing of
/// traffic.
pub fn readiness(log: &EventLog) -> Result<(), String> {
    let notes = log.notes();
    let grave = notes.iter().find(|note| note.concern.is_refusal() || note.concern == Concern::Replaced);
    grave.map_or(Ok(()), |note| Err(note.to_string()))
}
