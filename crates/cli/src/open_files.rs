//! The number of files that this process may open, which bounds the connections that it can serve.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use dashi_config::Settings;

/// Files open beside connections: the process's own files and sockets, and some that are open for a moment.
const OWN: u64 = 64;

/// Approximate number per partition of a log on Kafka: its own client with a socket for each broker.
const PER_KAFKA_PARTITION: u64 = 8;

/// Raises the process's own limit of open files as far as it may, and returns the number of connections that fit into it:
/// `ingest.connections_max`, or fewer, which is then logged.
pub fn connections(settings: &Settings) -> usize {
    let wanted = settings.ingest.connections_max;
    let own = own(settings);
    let needed = wanted as u64 + own;
    let limits = getrlimit(Resource::Nofile);
    let may = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if may(limits.current) < needed {
        let raised = Rlimit { current: Some(needed.min(may(limits.maximum))), maximum: limits.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(error = %error, "the limit of open files could not be raised");
        }
    }
    let current = may(getrlimit(Resource::Nofile).current);
    let fitting = fitting(wanted, current, own);
    if fitting < wanted {
        tracing::warn!(
            open_files_max = current,
            connections_max = wanted,
            connections_used = fitting,
            "this process may open {current} files and needs {needed} for ingest.connections_max = {wanted}: it serves \
             {fitting} connections at once; raise the limit (`ulimit -n {needed}`, LimitNOFILE={needed} with systemd) or \
             set ingest.connections_max to {fitting}"
        );
    }
    fitting
}

/// Connections that [`connections`] would find room for, and those that the settings want.
pub fn room(settings: &Settings) -> (usize, usize) {
    let wanted = settings.ingest.connections_max;
    // A start raises the limit in force to the greatest that it may.
    let open_files_max = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    (fitting(wanted, open_files_max, own(settings)), wanted)
}

/// Connections for which there are files beside its own.
fn fitting(wanted: usize, open_files_max: u64, own: u64) -> usize {
    // A process that can hardly have its own files shares them out evenly.
    let left = open_files_max.saturating_sub(own).max(open_files_max / 2).max(1);
    usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
}

fn own(settings: &Settings) -> u64 {
    // A SQLite connection has its file, the write-ahead log and shared memory.
    let store = 3 * u64::from(settings.database.pool_connections_max);
    let is_on_kafka = settings.log.starts_with("kafka://");
    let kafka = if is_on_kafka { PER_KAFKA_PARTITION * u64::from(settings.event_log.partitions) } else { 0 };
    OWN + store + kafka
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_open_files_that_are_left() {
        assert_eq!(fitting(16_384, 20_000, 94), 16_384);
        assert_eq!(fitting(16_384, 1_024, 94), 930);
        assert_eq!(fitting(100, 1_024, 94), 100);
        assert_eq!(fitting(16_384, 100, 94), 50);
        assert_eq!(fitting(16_384, 0, 94), 1);
        assert_eq!(fitting(16_384, u64::MAX, 94), 16_384);
    }
}
