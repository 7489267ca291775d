//! Metrics of the process itself, under the names that Prometheus' client libraries share, and its version.
//!
//! Source: Prometheus, "Writing client libraries", Process metrics. Read from `/proc` when they are asked for; without
//! `/proc` only the version is there.

use std::fs;
use std::sync::LazyLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

/// The kernel prints times in `/proc` in hundredths of a second on every architecture (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// The metrics of this process.
#[derive(Debug)]
pub struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        build.encode(encoder.encode_descriptor(
            "dashi_build",
            "The version of this program",
            None,
            MetricType::Info,
        )?)?;
        let Some(now) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Figures::parse) else {
            return Ok(());
        };
        let seconds = Some(&Unit::Seconds);
        let bytes = Some(&Unit::Bytes);
        ConstCounter::new(now.cpu_s).encode(encoder.encode_descriptor(
            "process_cpu",
            "User and system time of the process",
            seconds,
            MetricType::Counter,
        )?)?;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<f64>| match value {
            Some(value) => ConstGauge::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                unit,
                MetricType::Gauge,
            )?),
            None => Ok(()),
        };
        let resident = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes);
        gauge("process_resident_memory", "Memory of the process that is in RAM", bytes, resident)?;
        gauge("process_virtual_memory", "Address space of the process", bytes, Some(now.virtual_bytes))?;
        gauge("process_threads", "Threads of the process", None, Some(now.threads))?;
        let started = BOOTED_AT_S.map(|booted| booted + now.started_s);
        gauge("process_start_time", "When the process started, in seconds since 1970", seconds, started)?;
        let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
        gauge("process_open_fds", "Open file descriptors", None, open)?;
        let limits = fs::read_to_string("/proc/self/limits").ok();
        gauge(
            "process_max_fds",
            "Most file descriptors that may be open",
            None,
            limits.as_deref().and_then(open_files_max),
        )
    }
}

/// When the machine booted, in seconds since 1970.
static BOOTED_AT_S: LazyLock<Option<f64>> = LazyLock::new(|| {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
});

/// Figures of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Figures {
    cpu_s: f64,
    threads: f64,
    /// Since the machine booted.
    started_s: f64,
    virtual_bytes: f64,
}

impl Figures {
    /// Source: proc_pid_stat(5), fields 14, 15, 20, 22 and 23. The second field is a name in parentheses and may hold
    /// anything, so counting begins behind the last parenthesis, at field 3.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<f64> =
            fields.split_ascii_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        let field = |number: usize| fields.get(number - 4).copied();
        Some(Self {
            cpu_s: (field(14)? + field(15)?) / TICKS_PER_S,
            threads: field(20)?,
            started_s: field(22)? / TICKS_PER_S,
            virtual_bytes: field(23)?,
        })
    }
}

/// Source: proc_pid_status(5), `VmRSS`, in KiB.
fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1_024.0)
}

/// The soft limit of "Max open files"; none if it is unlimited.
fn open_files_max(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_behind_a_name_with_parentheses() {
        let stat =
            "12 (a) 9 (b) S 1 2 3 -1 5 6 7 8 9 10 150 50 0 0 20 0 7 0 300 4096 12 18446744073709551615";
        let figures = Figures { cpu_s: 2.0, threads: 7.0, started_s: 3.0, virtual_bytes: 4096.0 };
        assert_eq!(Figures::parse(stat), Some(figures));
        assert_eq!(Figures::parse("12 (short) S 1"), None);
    }

    #[test]
    fn memory_and_limits_have_their_units() {
        assert_eq!(resident_bytes("Name:\tdashi\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(
            open_files_max("Max open files            1024                 524288               files"),
            Some(1024.0)
        );
        assert_eq!(
            open_files_max("Max open files            unlimited            unlimited            files"),
            None
        );
    }
}
