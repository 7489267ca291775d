//! Processor time of the calling thread, from `/proc`.

use std::fs;

/// The kernel prints times in `/proc` in hundredths of a second on every architecture (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// User and system time of the calling thread in seconds; `None` where there is no `/proc`.
pub(crate) fn thread_cpu_s() -> Option<f64> {
    parse(&fs::read_to_string("/proc/thread-self/stat").ok()?)
}

/// Source: proc_pid_stat(5), fields 14 and 15. The second field is a name in parentheses and may hold
/// anything, so counting begins behind the last parenthesis, at field 3.
fn parse(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_thread_name_may_hold_parentheses_and_spaces() {
        let stat = "12 (a) 9 (b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0";
        assert_eq!(parse(stat), Some(2.0));
        assert_eq!(parse("12 (short) S 1"), None);
    }
}
